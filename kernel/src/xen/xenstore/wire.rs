//! The xenstore protocol's bytes (public/io/xs_wire.h): messages, and the ring they travel in.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// `XENSTORE_PAYLOAD_MAX`, in bytes.
pub const PAYLOAD_MAX: usize = 4096;
/// Bytes of `struct xsd_sockmsg`.
pub const HEADER_LEN: usize = 16;
/// `XENSTORE_RING_SIZE`, in bytes, each way.
pub const RING_SIZE: u32 = 1024;

/// What a message is about (`enum xsd_sockmsg_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Op {
    /// `XS_DIRECTORY`
    Directory = 1,
    /// `XS_READ`
    Read = 2,
    /// `XS_WATCH`
    Watch = 4,
    /// `XS_UNWATCH`
    Unwatch = 5,
    /// `XS_TRANSACTION_START`
    TransactionStart = 6,
    /// `XS_TRANSACTION_END`
    TransactionEnd = 7,
    /// `XS_WRITE`
    Write = 11,
    /// `XS_MKDIR`
    Mkdir = 12,
    /// `XS_RM`
    Rm = 13,
    /// `XS_WATCH_EVENT`
    WatchEvent = 15,
    /// `XS_ERROR`
    Error = 16,
    /// `XS_RESET_WATCHES`
    ResetWatches = 21,
    /// `XS_DIRECTORY_PART`
    DirectoryPart = 22,
}

/// A breach of the protocol by the other side. The connection is not used any more after one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// More bytes in a ring than it holds.
    RingIndices,
    /// A payload longer than [`PAYLOAD_MAX`].
    PayloadLength(u32),
    /// A reply to no request, or to another kind of request.
    Reply,
    /// A payload that is not what its kind of message has.
    Payload,
    /// More watch events than are kept.
    Events,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RingIndices => f.write_str("ring indices that cannot be"),
            Self::PayloadLength(n) => write!(f, "a message of {n} bytes"),
            Self::Reply => f.write_str("a reply to no request"),
            Self::Payload => f.write_str("a message that makes no sense"),
            Self::Events => f.write_str("too many watch events"),
        }
    }
}

/// `struct xsd_sockmsg`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// `type`, not checked.
    pub op: u32,
    /// `req_id`
    pub id: u32,
    /// `tx_id`
    pub transaction: u32,
    /// `len`: bytes of payload.
    pub len: u32,
}

impl Header {
    /// As it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let words = [self.op, self.id, self.transaction, self.len];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(b: &[u8; HEADER_LEN]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        Self {
            op: word(0),
            id: word(4),
            transaction: word(8),
            len: word(12),
        }
    }
}

/// A whole message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Puts messages together from pieces of any size.
#[derive(Debug, Default)]
pub struct Decoder {
    head: [u8; HEADER_LEN],
    have: usize,
    payload: Vec<u8>,
}

impl Decoder {
    /// At the start of a message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            head: [0; HEADER_LEN],
            have: 0,
            payload: Vec::new(),
        }
    }

    /// Takes bytes off the front of `bytes` up to the end of a message.
    ///
    /// # Errors
    /// A payload that is too long.
    pub fn feed(&mut self, bytes: &mut &[u8]) -> Result<Option<Message>, Violation> {
        if let Some(room) = self.head.get_mut(self.have..) {
            let (now, later) = bytes.split_at(room.len().min(bytes.len()));
            room[..now.len()].copy_from_slice(now);
            self.have += now.len();
            *bytes = later;
        }
        if self.have < HEADER_LEN {
            return Ok(None);
        }
        let header = Header::from_bytes(&self.head);
        let len = header.len as usize;
        if len > PAYLOAD_MAX {
            return Err(Violation::PayloadLength(header.len));
        }
        let missing = len.saturating_sub(self.payload.len());
        let (now, later) = bytes.split_at(missing.min(bytes.len()));
        self.payload.extend_from_slice(now);
        *bytes = later;
        if self.payload.len() < len {
            return Ok(None);
        }
        self.have = 0;
        Ok(Some(Message {
            header,
            payload: core::mem::take(&mut self.payload),
        }))
    }

    /// Bytes that are missing of the message that has begun: of its payload, once its header is
    /// whole.
    #[must_use]
    pub fn missing(&self) -> usize {
        match HEADER_LEN - self.have {
            0 => (Header::from_bytes(&self.head).len as usize).saturating_sub(self.payload.len()),
            n => n,
        }
    }

    /// Whether the last message is whole.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.have == 0
    }
}

/// Moves bytes to and from xenstored.
///
/// What is on the way is marked before it moves, so that an image that is started after a crash
/// knows what is missing of it.
pub trait Ring {
    /// Copies bytes that are there, from the first on; returns how many, 0 for none.
    ///
    /// # Errors
    /// The ring is broken.
    fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation>;

    /// Takes that many off.
    fn take(&mut self, count: usize);

    /// A reply of `len` bytes begins with the first one there.
    fn reply_begins(&mut self, _len: u32) {}

    /// A request of `len` bytes begins with the next one given.
    fn request_begins(&mut self, _len: u32) {}

    /// Bytes that can be given now.
    ///
    /// # Errors
    /// The ring is broken.
    fn room(&self) -> Result<usize, Violation> {
        Ok(usize::MAX)
    }

    /// Gives bytes as far as there is room; returns how many.
    ///
    /// # Errors
    /// The ring is broken.
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation>;

    /// Tells the other side that something was moved.
    fn notify(&mut self);
}

/// What a crash has torn: bytes that are missing of a request, and of a reply.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Torn {
    /// Not sent yet.
    pub request: u32,
    /// Not read yet.
    pub reply: u32,
}

/// Where the messages that are on the way begin and end, in the ring's own counts of bytes.
#[derive(Debug, Default)]
pub struct Marks {
    request_start: AtomicU32,
    request_end: AtomicU32,
    reply_end: AtomicU32,
}

impl Marks {
    /// Of no message.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            request_start: AtomicU32::new(0),
            request_end: AtomicU32::new(0),
            reply_end: AtomicU32::new(0),
        }
    }
}

/// `struct xenstore_domain_interface`.
#[repr(C)]
#[derive(Debug)]
pub struct Interface {
    req: [AtomicU8; RING_SIZE as usize],
    rsp: [AtomicU8; RING_SIZE as usize],
    req_cons: AtomicU32,
    req_prod: AtomicU32,
    rsp_cons: AtomicU32,
    rsp_prod: AtomicU32,
}

const _: () = assert!(core::mem::offset_of!(Interface, rsp_prod) == 2060);

impl Interface {
    /// Copies bytes of the response ring, which stay.
    ///
    /// # Errors
    /// Indices further apart than the ring is long.
    pub fn look(&self, buf: &mut [u8]) -> Result<usize, Violation> {
        look(&self.rsp, &self.rsp_cons, &self.rsp_prod, buf)
    }

    /// Takes bytes that were looked at off the response ring.
    pub fn take(&self, count: usize) {
        take(&self.rsp_cons, count as u32);
    }

    /// Nothing is on the way: once, before anything is.
    pub fn mark_nothing(&self, marks: &Marks) {
        self.mark_request(marks, 0);
        self.mark_reply(marks, 0);
    }

    /// See [`Ring::reply_begins`].
    pub fn mark_reply(&self, marks: &Marks, len: u32) {
        let start = self.rsp_cons.load(Ordering::Relaxed);
        marks
            .reply_end
            .store(start.wrapping_add(len), Ordering::Release);
    }

    /// See [`Ring::request_begins`].
    pub fn mark_request(&self, marks: &Marks, len: u32) {
        let start = self.req_prod.load(Ordering::Relaxed);
        // In this order: between the two nothing is missing, as nothing has been sent.
        marks.request_start.store(start, Ordering::Release);
        marks
            .request_end
            .store(start.wrapping_add(len), Ordering::Release);
    }

    /// What is on the way. May be asked at any moment of the other functions, in a crash.
    #[must_use]
    pub fn torn(&self, marks: &Marks) -> Torn {
        const LONGEST: u32 = (HEADER_LEN + PAYLOAD_MAX) as u32;
        let missing = |end: u32, at: u32| match end.wrapping_sub(at) {
            // Marks of a message that was not on this ring.
            n if n > LONGEST => 0,
            n => n,
        };
        let sent = self.req_prod.load(Ordering::Acquire);
        let read = self.rsp_cons.load(Ordering::Acquire);
        let whole = sent == marks.request_start.load(Ordering::Acquire);
        Torn {
            request: match whole {
                true => 0,
                false => missing(marks.request_end.load(Ordering::Acquire), sent),
            },
            reply: missing(marks.reply_end.load(Ordering::Acquire), read),
        }
    }

    /// Bytes that the request ring has room for.
    ///
    /// # Errors
    /// Indices further apart than the ring is long.
    pub fn room(&self) -> Result<usize, Violation> {
        let at = self.req_prod.load(Ordering::Relaxed);
        room(at, &self.req_cons).map(|n| n as usize)
    }

    /// Puts bytes into the request ring.
    ///
    /// # Errors
    /// Indices further apart than the ring is long.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Violation> {
        put(&self.req, &self.req_cons, &self.req_prod, bytes)
    }
}

/// xenstored's side, for tests and fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "not part of the kernel")]
impl Interface {
    pub fn blank() -> Self {
        Self {
            req: [const { AtomicU8::new(0) }; RING_SIZE as usize],
            rsp: [const { AtomicU8::new(0) }; RING_SIZE as usize],
            req_cons: AtomicU32::new(0),
            req_prod: AtomicU32::new(0),
            rsp_cons: AtomicU32::new(0),
            rsp_prod: AtomicU32::new(0),
        }
    }

    /// In the order in which they lie in the page.
    pub fn indices(&self) -> [&AtomicU32; 4] {
        [
            &self.req_cons,
            &self.req_prod,
            &self.rsp_cons,
            &self.rsp_prod,
        ]
    }

    pub fn take_requests(&self, buf: &mut [u8]) -> Result<usize, Violation> {
        let count = look(&self.req, &self.req_cons, &self.req_prod, buf)?;
        take(&self.req_cons, count as u32);
        Ok(count)
    }

    pub fn put_replies(&self, bytes: &[u8]) -> Result<usize, Violation> {
        put(&self.rsp, &self.rsp_cons, &self.rsp_prod, bytes)
    }
}

type Bytes = [AtomicU8; RING_SIZE as usize];

fn look(
    ring: &Bytes,
    cons: &AtomicU32,
    prod: &AtomicU32,
    buf: &mut [u8],
) -> Result<usize, Violation> {
    let mut at = cons.load(Ordering::Relaxed);
    let there = prod.load(Ordering::Acquire).wrapping_sub(at);
    if there > RING_SIZE {
        return Err(Violation::RingIndices);
    }
    let count = buf.len().min(there as usize);
    for (to, _) in buf.iter_mut().zip(0..count) {
        *to = ring[(at % RING_SIZE) as usize].load(Ordering::Relaxed);
        at = at.wrapping_add(1);
    }
    Ok(count)
}

fn take(cons: &AtomicU32, count: u32) {
    // The bytes have been read before the other side may write over them.
    fence(Ordering::AcqRel);
    let at = cons.load(Ordering::Relaxed);
    cons.store(at.wrapping_add(count), Ordering::Release);
}

/// Bytes that there is room for at `at`.
fn room(at: u32, cons: &AtomicU32) -> Result<u32, Violation> {
    let used = at.wrapping_sub(cons.load(Ordering::Acquire));
    RING_SIZE.checked_sub(used).ok_or(Violation::RingIndices)
}

fn put(ring: &Bytes, cons: &AtomicU32, prod: &AtomicU32, bytes: &[u8]) -> Result<usize, Violation> {
    let mut at = prod.load(Ordering::Relaxed);
    let count = bytes.len().min(room(at, cons)? as usize);
    for byte in bytes.iter().take(count) {
        ring[(at % RING_SIZE) as usize].store(*byte, Ordering::Relaxed);
        at = at.wrapping_add(1);
    }
    prod.store(at, Ordering::Release);
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(pieces: &[&[u8]]) -> Result<Vec<Message>, Violation> {
        let mut decoder = Decoder::default();
        let mut all = Vec::new();
        for piece in pieces {
            let mut rest = *piece;
            while let Some(message) = decoder.feed(&mut rest)? {
                all.push(message);
            }
            assert!(rest.is_empty());
        }
        Ok(all)
    }

    proptest! {
        /// Any split of the bytes gives the messages that were sent.
        #[test]
        fn splits_do_not_matter(
            sent in proptest::collection::vec(
                (any::<u32>(), any::<u32>(), any::<u32>(), proptest::collection::vec(any::<u8>(), 0..200)), 1..8),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..20),
        ) {
            let messages: Vec<Message> = sent.into_iter().map(|(op, id, transaction, payload)| Message {
                header: Header { op, id, transaction, len: payload.len() as u32 }, payload }).collect();
            let bytes: Vec<u8> = messages.iter()
                .flat_map(|m| m.header.to_bytes().into_iter().chain(m.payload.iter().copied())).collect();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len())).chain([0, bytes.len()]).collect();
            at.sort_unstable();
            let pieces: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&pieces), Ok(messages));
        }

        /// Garbage is messages or a violation, never a panic, never more than a payload kept.
        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(any::<u8>(), 0..5000)) {
            let mut decoder = Decoder::default();
            let mut rest = &bytes[..];
            while let Ok(Some(m)) = decoder.feed(&mut rest) {
                prop_assert!(m.payload.len() <= PAYLOAD_MAX);
            }
            prop_assert!(decoder.payload.len() <= PAYLOAD_MAX);
        }

        /// Bytes come out of a ring as they went in, over its end and over the end of the indices;
        /// indices that cannot be are refused.
        #[test]
        fn rings_carry_bytes(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 100), any::<u32>()],
            chunks in proptest::collection::vec((0usize..1500, 0usize..1500), 1..40),
            lie in 1025u32..u32::MAX,
        ) {
            let ring = Interface::blank();
            for index in [&ring.req_cons, &ring.req_prod] {
                index.store(start, Ordering::Relaxed);
            }
            let (mut next_in, mut next_out) = (0u8, 0u8);
            for (give, get) in chunks {
                let bytes: Vec<u8> = (0..give).map(|i| next_in.wrapping_add(i as u8)).collect();
                let sent = ring.send(&bytes).unwrap();
                next_in = next_in.wrapping_add(sent as u8);
                let mut buf = vec![0; get];
                let n = ring.take_requests(&mut buf).unwrap();
                for byte in &buf[..n] {
                    prop_assert_eq!(*byte, next_out);
                    next_out = next_out.wrapping_add(1);
                }
            }
            ring.req_prod.store(ring.req_cons.load(Ordering::Relaxed).wrapping_add(lie), Ordering::Relaxed);
            prop_assert_eq!(ring.send(b"x"), Err(Violation::RingIndices));
            ring.rsp_prod.store(lie, Ordering::Relaxed);
            prop_assert_eq!(ring.look(&mut [0]), Err(Violation::RingIndices));
        }

        /// What is missing of the message that is on the way is known at any moment.
        #[test]
        fn what_a_crash_tears_is_known(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 100), any::<u32>()],
            requests in proptest::collection::vec(16u32..1000, 1..5),
            crash_at in any::<proptest::sample::Index>(),
        ) {
            let ring = Interface::blank();
            for index in ring.indices() {
                index.store(start, Ordering::Relaxed);
            }
            let marks = Marks::new();
            ring.mark_nothing(&marks);
            let total: u32 = requests.iter().sum();
            let mut left = crash_at.index(total as usize + 1) as u32;
            for len in requests {
                ring.mark_request(&marks, len);
                prop_assert_eq!(ring.torn(&marks).request, 0);
                let now = left.min(len);
                prop_assert_eq!(ring.send(&vec![0; now as usize]), Ok(now as usize));
                let missing = if now == 0 { 0 } else { len - now };
                prop_assert_eq!(ring.torn(&marks), Torn { request: missing, reply: 0 });
                ring.put_replies(&vec![0; now as usize]).unwrap();
                ring.mark_reply(&marks, len);
                ring.take(now as usize);
                prop_assert_eq!(ring.torn(&marks).reply, len - now);
                ring.take_requests(&mut vec![0; len as usize]).unwrap();
                left -= now;
                if left == 0 {
                    break;
                }
            }
        }
    }
}
