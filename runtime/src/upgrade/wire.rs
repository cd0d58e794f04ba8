//! Frames over TCP, each by a deadline: nobody who sends byte after byte is waited for longer.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Why there is no frame.
#[derive(Debug)]
pub enum WireError {
    /// The deadline has passed.
    Late,
    /// The other side has closed.
    Closed,
    /// A frame longer than it may be, or empty.
    Length {
        /// Its length.
        len: u32,
    },
    /// The connection is broken.
    Io(io::Error),
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Late => f.write_str("it takes too long"),
            Self::Closed => f.write_str("the connection was closed"),
            Self::Length { len } => write!(f, "a frame of {len} bytes"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for WireError {}

/// What is left until then.
fn left(deadline: Instant) -> Result<Duration, WireError> {
    let left = deadline.saturating_duration_since(Instant::now());
    // Finer than a millisecond is no time-out on some systems, and none at all would be for ever.
    match left.is_zero() {
        true => Err(WireError::Late),
        false => Ok(left.max(Duration::from_millis(1))),
    }
}

/// What a failed call says.
fn failed(error: io::Error) -> Result<(), WireError> {
    match error.kind() {
        // The deadline is looked at before the next try.
        ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => Ok(()),
        ErrorKind::BrokenPipe
        | ErrorKind::ConnectionAborted
        | ErrorKind::ConnectionReset
        | ErrorKind::NotConnected
        | ErrorKind::UnexpectedEof => Err(WireError::Closed),
        _ => Err(WireError::Io(error)),
    }
}

/// Fills `bytes`.
///
/// # Errors
/// See [`WireError`].
pub fn read(
    mut stream: &TcpStream,
    mut bytes: &mut [u8],
    deadline: Instant,
) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let limit = Some(left(deadline)?);
        stream.set_read_timeout(limit).map_err(WireError::Io)?;
        match stream.read(bytes) {
            Ok(0) => return Err(WireError::Closed),
            Ok(n) => bytes = bytes.get_mut(n..).unwrap_or_default(),
            Err(error) => failed(error)?,
        }
    }
    Ok(())
}

/// Reads a frame of at most `most` bytes into `room`, which has that many.
///
/// # Errors
/// See [`WireError`].
pub fn read_frame<'a>(
    stream: &TcpStream,
    room: &'a mut [u8],
    most: usize,
    deadline: Instant,
) -> Result<&'a [u8], WireError> {
    let mut head = [0; 4];
    read(stream, &mut head, deadline)?;
    let len = u32::from_le_bytes(head);
    let fits = usize::try_from(len).ok().filter(|n| (1..=most).contains(n));
    let frame = fits.and_then(|n| room.get_mut(..n));
    let frame = frame.ok_or(WireError::Length { len })?;
    read(stream, frame, deadline)?;
    Ok(frame)
}

/// Sends `bytes`.
///
/// # Errors
/// See [`WireError`].
pub fn write(mut stream: &TcpStream, mut bytes: &[u8], deadline: Instant) -> Result<(), WireError> {
    while !bytes.is_empty() {
        let limit = Some(left(deadline)?);
        stream.set_write_timeout(limit).map_err(WireError::Io)?;
        match stream.write(bytes) {
            Ok(0) => return Err(WireError::Closed),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) => failed(error)?,
        }
    }
    Ok(())
}
