//! Sockets in a domain: the kernel's.

use crate::kernel::net::handover;
pub use handover::{Ticket, finish};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// What the next image finds a socket by.
pub fn offer(fd: BorrowedFd<'_>) -> io::Result<Ticket> {
    handover::offer(fd.as_raw_fd()).map_err(io::Error::other)
}

/// A socket of the image before.
pub fn claim(ticket: &Ticket) -> io::Result<OwnedFd> {
    let fd = handover::claim(ticket).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
