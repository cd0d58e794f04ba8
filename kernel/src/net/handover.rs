//! What goes over a switch of the network's: sockets by ticket.
//!
//! Connections, listeners and datagrams lie in the [arena](super::tcp::arena), all of it goes along. A
//! [`Ticket`] is what an app's socket is beside that: the old image [`offer`]s it by its descriptor,
//! the new one [`claim`]s a descriptor by it. What nobody has claimed is closed when the new image
//! says that it has [`finish`]ed.

use super::notes::Offer;
use super::ports::At;
use super::socket::{Kind as SocketKind, TcpSocket, UdpSocket};
use super::stack::{Stack, Token};
use super::tcp::{self, ConnId, Id, ListenerId};
#[cfg(target_os = "hermit")]
use super::tcp::{adopt::Refused, arena::Memory};
use super::udp::UdpId;
use crate::abi::errno::Errno;
use crate::abi::fd::{self, Object};
use crate::sync::Lock;
use alloc::collections::BTreeSet;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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

/// Somebody's socket, if it is still there when the stack is.
enum Pending {
    Tcp(Weak<TcpSocket>, Tcp),
    Udp(Weak<UdpSocket>),
}

/// What was claimed before there was a stack: on trial, when nothing may be changed.
struct Claims {
    /// What came, once it was looked at; `None` in it: nothing.
    offer: Option<Option<Offer>>,
    claimed: BTreeSet<Token>,
    pending: Vec<Pending>,
}

static CLAIMS: Lock<Claims> = Lock::new(Claims {
    offer: None,
    claimed: BTreeSet::new(),
    pending: Vec::new(),
});
/// A `fn()`, or 0.
static FINISH: AtomicUsize = AtomicUsize::new(0);
/// Nothing more is claimed.
static FINISHED: AtomicBool = AtomicBool::new(false);

/// The new image's side: a descriptor for what a ticket stands for. Also on trial: then it is
/// connected at the commit, and what came with the switch is looked at first; if it is not good for
/// this image, the trial is given up. Each ticket is good once, until [`finish`].
///
/// # Errors
/// `ESTALE`: it did not come, or somebody has claimed it; `EMFILE`.
pub fn claim(ticket: &Ticket) -> Result<i32, Errno> {
    if ticket.version != VERSION {
        return Err(Errno::ESTALE);
    }
    wants_finish();
    #[cfg(target_os = "hermit")]
    super::device::begin();
    let common = &ticket.common;
    let (token, object, pending): (_, Arc<dyn Object>, _) = match &ticket.what {
        What::Stream { id, told, tcp } => {
            let (id, told) = (*id, *told);
            let socket = TcpSocket::revive(common, SocketKind::Connected { id, told }, tcp);
            let pending = Pending::Tcp(Arc::downgrade(&socket), tcp.clone());
            (Token::Tcp(Id::Conn(id)), socket, pending)
        }
        What::Listener { id, tcp } => {
            let socket = TcpSocket::revive(common, SocketKind::Listening(*id), tcp);
            let pending = Pending::Tcp(Arc::downgrade(&socket), tcp.clone());
            (Token::Tcp(Id::Listener(*id)), socket, pending)
        }
        What::Udp { id } => {
            let socket = UdpSocket::revive(common, *id);
            let pending = Pending::Udp(Arc::downgrade(&socket));
            (Token::Udp(*id), socket, pending)
        }
    };
    let plugged = super::with(|stack, _| pending.plug_in(stack));
    if !plugged.unwrap_or_else(|| wait(token, pending)) {
        return Err(Errno::ESTALE);
    }
    let fd = fd::insert(object)?;
    if common.nonblocking {
        fd::set_nonblocking(fd, true)?;
    }
    Ok(fd)
}

/// There is no stack yet: what came is looked at where it lies. False if this did not come.
fn wait(token: Token, pending: Pending) -> bool {
    let mut claims = CLAIMS.lock();
    let offer = claims.offer.get_or_insert_with(offered);
    let there = offer.as_ref().is_some_and(|o| o.tokens.contains(&token));
    let first = there && claims.claimed.insert(token);
    if first {
        claims.pending.push(pending);
    }
    first
}

/// What was found in this memory on trial, when it could not be changed; else what is found now.
#[cfg(target_os = "hermit")]
pub(super) fn looked(memory: &Memory) -> Result<Offer, Refused> {
    let looked = CLAIMS.lock().offer.take().flatten();
    looked.map_or_else(|| super::notes::look(memory), Ok)
}

/// What came with the switch that this image is on trial for.
#[cfg(target_os = "hermit")]
fn offered() -> Option<Offer> {
    use crate::replace::{live, trial};
    let memory = super::device::memory(live::offered()?)?;
    if let Err(why) = crate::devices::netfront::check_offered() {
        trial::give_up(format_args!("{why}"));
    }
    live::on_commit(|_| super::device::begin());
    match super::notes::look(&memory) {
        Ok(offer) => Some(offer),
        Err(why) => trial::give_up(format_args!("{why}")),
    }
}

/// Nothing comes to a host.
#[cfg(not(target_os = "hermit"))]
fn offered() -> Option<Offer> {
    None
}

impl Pending {
    /// False if it did not come, or nobody has the socket any more.
    fn plug_in(&self, stack: &mut Stack) -> bool {
        match self {
            Self::Tcp(socket, tcp) => socket.upgrade().is_some_and(|s| s.plug_in(stack, tcp)),
            Self::Udp(socket) => socket.upgrade().is_some_and(|s| s.plug_in(stack)),
        }
    }
}

/// A stack begins: who has claimed before gets what he claimed.
pub(super) fn begin(stack: &mut Stack, now: u64) {
    wants_finish();
    let pending = core::mem::take(&mut CLAIMS.lock().pending);
    for socket in pending {
        socket.plug_in(stack);
    }
    if FINISHED.load(Ordering::Acquire) {
        stack.close_unclaimed(now);
    }
}

fn wants_finish() {
    fn close() {
        super::with(|stack, now| stack.close_unclaimed(now));
    }
    FINISH.store(close as fn() as usize, Ordering::Release);
}

/// Nothing more is claimed: what nobody has is closed, as if its app had closed it. Links nothing
/// of the network into an image that has no sockets.
pub fn finish() {
    FINISHED.store(true, Ordering::Release);
    let close = FINISH.load(Ordering::Acquire);
    if close != 0 {
        // SAFETY: only `wants_finish` stores other values than 0, and they are such functions.
        let close: fn() = unsafe { core::mem::transmute(close) };
        close();
    }
}
