//! What is to be sent on one connection.

use std::io::{self, IoSlice, Write};

/// Above this much, output should be sent before more is added.
const FULL: usize = 64 * 1024;
/// A slice up to this long is copied: one piece is sent faster than two.
const COPY: usize = 4 * 1024;
/// A buffer that has grown beyond it is given back when it is empty.
const KEEP: usize = 2 * FULL;

/// Where in `whole` its part `part` lies; `None` if it is no part of it.
#[must_use]
pub fn offset_in(whole: &[u8], part: &[u8]) -> Option<usize> {
    let at = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let end = at.checked_add(part.len())?;
    (end <= whole.len()).then_some(at)
}

/// Bytes to send: first those of a buffer, then those of a slice that lives for ever.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    /// How many of `bytes` are sent.
    sent: usize,
    tail: &'static [u8],
}

impl Output {
    /// The buffer, to add to. Only where [`Output::is_full`] said no.
    pub fn bytes(&mut self) -> &mut Vec<u8> {
        debug_assert!(self.tail.is_empty(), "bytes after a slice");
        &mut self.bytes
    }

    /// Adds a slice, without copying it if it is long. After that the output is full.
    pub fn push_static(&mut self, slice: &'static [u8]) {
        debug_assert!(self.tail.is_empty(), "a slice after a slice");
        if slice.len() <= COPY {
            self.bytes.extend_from_slice(slice);
        } else {
            self.tail = slice;
        }
    }

    /// Whether it should be sent before more is added.
    #[must_use]
    pub fn is_full(&self) -> bool {
        !self.tail.is_empty() || self.bytes.len() >= FULL
    }

    /// Whether nothing is left to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tail.is_empty() && self.sent == self.bytes.len()
    }

    /// What is left to send, of the buffer and of the slice.
    pub(crate) fn parts(&self) -> (&[u8], &'static [u8]) {
        (self.bytes.get(self.sent..).unwrap_or_default(), self.tail)
    }

    /// Of parts as [`Output::parts`] tells them.
    pub(crate) fn from_parts(bytes: Vec<u8>, tail: &'static [u8]) -> Self {
        Self {
            bytes,
            sent: 0,
            tail,
        }
    }

    /// Sends what the writer takes; returns how much that was. Then the output is empty, or the
    /// writer would block.
    pub(crate) fn send(&mut self, writer: &mut impl Write) -> io::Result<usize> {
        let mut total = 0;
        while !self.is_empty() {
            let head = self.bytes.get(self.sent..).unwrap_or_default();
            let result = if self.tail.is_empty() {
                writer.write(head)
            } else if head.is_empty() {
                writer.write(self.tail)
            } else {
                writer.write_vectored(&[IoSlice::new(head), IoSlice::new(self.tail)])
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    total += n;
                    let of_head = n.min(head.len());
                    self.sent += of_head;
                    self.tail = self.tail.get(n - of_head..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(total),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.clear();
        Ok(total)
    }

    /// Forgets what was not sent.
    pub(crate) fn clear(&mut self) {
        self.sent = 0;
        self.tail = &[];
        if self.bytes.capacity() > KEEP {
            self.bytes = Vec::new();
        } else {
            self.bytes.clear();
        }
    }
}
