//! What goes over a switch of the network's: sockets by ticket.
//!
//! Connections, listeners and datagrams lie in the [arena](super::arena), all of it goes along. A
//! [`Ticket`] is what an app's socket is beside that: the old image [`offer`]s it by its descriptor,
//! the new one [`claim`]s a descriptor by it. What nobody has claimed is closed when the new image
//! says that it has [`finish`]ed.

use super::ports::At;
use super::tcp::{self, ConnId, ListenerId};
use super::udp::UdpId;
use crate::abi::errno::Errno;
use crate::abi::fd;
use serde::{Deserialize, Serialize};

/// What a socket is, for the next image: plain data.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    pub(super) version: u8,
    pub(super) common: Common,
    pub(super) what: What,
}

/// What all sockets have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Common {
    pub v6: bool,
    pub v6_only: bool,
    pub reuse: bool,
    pub nonblocking: bool,
    /// In ns; 0: none.
    pub receive_timeout: u64,
    pub send_timeout: u64,
}

/// What kind of socket, and which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum What {
    Stream { id: ConnId, told: bool, tcp: Tcp },
    Listener { id: ListenerId, tcp: Tcp },
    Udp { id: UdpId },
}

/// What TCP sockets have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tcp {
    /// The port that it has bound.
    pub held: Option<(At, u16)>,
    pub options: tcp::Options,
    pub linger: Option<u32>,
}

/// Which kind of socket a ticket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A TCP connection: `TcpStream`.
    Stream,
    /// `TcpListener`.
    Listener,
    /// `UdpSocket`.
    Udp,
}

/// Changes with the meaning of a ticket.
const VERSION: u8 = 1;

impl Ticket {
    pub(super) fn new(common: Common, what: What) -> Self {
        Self {
            version: VERSION,
            common,
            what,
        }
    }

    /// Which kind of socket it is for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.what {
            What::Stream { .. } => Kind::Stream,
            What::Listener { .. } => Kind::Listener,
            What::Udp { .. } => Kind::Udp,
        }
    }
}

/// The old image's side: a ticket for the socket behind a descriptor, which goes on working.
///
/// # Errors
/// `EBADF`, `ENOTSOCK`; `ENOTCONN`: a TCP socket that neither listens nor is connected.
pub fn offer(fd: i32) -> Result<Ticket, Errno> {
    let object = fd::get(fd)?;
    object.socket().ok_or(Errno::ENOTSOCK)?.ticket()
}

/// The new image's side: a descriptor for what a ticket stands for. Also on trial: then it is
/// connected at the commit. Each ticket is good once, until [`finish`].
///
/// # Errors
/// `ESTALE`: it did not come, or somebody has claimed it; `EMFILE`.
pub fn claim(ticket: &Ticket) -> Result<i32, Errno> {
    if ticket.version != VERSION {
        return Err(Errno::ESTALE);
    }
    Err(Errno::ESTALE)
}

/// Nothing more is claimed: what nobody has is closed, as if its app had closed it. Links nothing
/// of the network into an image that claims nothing.
pub fn finish() {}
