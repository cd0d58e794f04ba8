//! TCP and UDP sockets as descriptors' objects: what waits, what fails at once and how, as Linux
//! has it.
//!
//! Addresses are kept in their own family. A socket of `AF_INET6` shows IPv4 as `::ffff:a.b.c.d`
//! and takes it so, unless it is `V6ONLY`.

use super::config::usable;
use super::handover::{self, Ticket, What};
use super::host::Host;
use super::ports::{At, Held};
use super::stack::{Stack, Token};
use super::tcp::{self, ConnId, Id, ListenerId, State};
use super::udp::{UdpId, UdpSocket as Datagrams};
use super::{Error, with};
use crate::abi::errno::Errno;
use crate::abi::fd::{Object, Ready, Stat};
use crate::abi::socket::{How, Name, SetOption, Socket, Value, msg};
use crate::sync::Lock;
use crate::task::{self, wait::WaitQueue};
use alloc::sync::Arc;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Keep-alive when it is on: as Linux has it (tcp(7)).
const KEEP_ALIVE: tcp::KeepAlive = tcp::KeepAlive {
    idle: 7_200_000_000_000,
    interval: 75_000_000_000,
    count: 9,
};

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::WouldBlock => Self::EAGAIN,
            Error::Invalid => Self::EINVAL,
            Error::InUse => Self::EADDRINUSE,
            Error::NotLocal => Self::EADDRNOTAVAIL,
            Error::Unreachable => Self::ENETUNREACH,
            Error::HostUnreachable => Self::EHOSTUNREACH,
            Error::Refused => Self::ECONNREFUSED,
            Error::Denied => Self::EACCES,
            Error::Protocol => Self::EPROTO,
            Error::TooLong | Error::PathTooLong(_) => Self::EMSGSIZE,
            Error::NoDestination => Self::EDESTADDRREQ,
            Error::NoInterface => Self::ENODEV,
            Error::NoBuffers => Self::ENOBUFS,
        }
    }
}

impl From<tcp::Error> for Errno {
    fn from(error: tcp::Error) -> Self {
        match error {
            tcp::Error::WouldBlock => Self::EAGAIN,
            tcp::Error::Stale => Self::EBADF,
            tcp::Error::NotConnected => Self::ENOTCONN,
            tcp::Error::Closed => Self::EPIPE,
            tcp::Error::Refused => Self::ECONNREFUSED,
            tcp::Error::Reset => Self::ECONNRESET,
            tcp::Error::TimedOut => Self::ETIMEDOUT,
            tcp::Error::HostUnreachable => Self::EHOSTUNREACH,
            tcp::Error::NetUnreachable => Self::ENETUNREACH,
            tcp::Error::AddrInUse => Self::EADDRINUSE,
            tcp::Error::AddrNotAvailable => Self::EADDRNOTAVAIL,
            tcp::Error::NoBuffers => Self::ENOBUFS,
            tcp::Error::Invalid => Self::EINVAL,
        }
    }
}

/// Runs `f` on the stack.
fn net<R>(f: impl FnOnce(&mut Stack, u64) -> Result<R, Errno>) -> Result<R, Errno> {
    with(f).unwrap_or(Err(Errno::ENETDOWN))
}

/// What both kinds of sockets have.
#[derive(Debug)]
struct Common {
    v6: bool,
    v6_only: AtomicBool,
    reuse: AtomicBool,
    nonblocking: AtomicBool,
    /// In ns; 0: none.
    receive_timeout: AtomicU64,
    send_timeout: AtomicU64,
    waiters: Arc<WaitQueue>,
}

impl Common {
    fn new(v6: bool) -> Self {
        Self {
            v6,
            v6_only: AtomicBool::new(false),
            reuse: AtomicBool::new(false),
            nonblocking: AtomicBool::new(false),
            receive_timeout: AtomicU64::new(0),
            send_timeout: AtomicU64::new(0),
            waiters: Arc::default(),
        }
    }

    /// From what another image's socket was.
    fn from_note(note: &handover::Common) -> Self {
        Self {
            v6: note.v6,
            v6_only: AtomicBool::new(note.v6_only),
            reuse: AtomicBool::new(note.reuse),
            nonblocking: AtomicBool::new(note.nonblocking),
            receive_timeout: AtomicU64::new(note.receive_timeout),
            send_timeout: AtomicU64::new(note.send_timeout),
            waiters: Arc::default(),
        }
    }

    /// For another image.
    fn noted(&self) -> handover::Common {
        handover::Common {
            v6: self.v6,
            v6_only: self.v6_only.load(Ordering::Relaxed),
            reuse: self.reuse.load(Ordering::Relaxed),
            nonblocking: self.nonblocking.load(Ordering::Relaxed),
            receive_timeout: self.receive_timeout.load(Ordering::Relaxed),
            send_timeout: self.send_timeout.load(Ordering::Relaxed),
        }
    }

    /// Runs `f` until it does not answer that it would have to wait.
    fn wait<R>(
        &self,
        timeout: &AtomicU64,
        flags: i32,
        mut f: impl FnMut(&mut Stack, u64) -> Result<R, Errno>,
    ) -> Result<R, Errno> {
        let mut attempt = || match net(&mut f) {
            Err(Errno::EAGAIN) => None,
            result => Some(result),
        };
        if self.nonblocking.load(Ordering::Relaxed) || flags & msg::DONTWAIT != 0 {
            return attempt().unwrap_or(Err(Errno::EAGAIN));
        }
        let deadline = match timeout.load(Ordering::Relaxed) {
            0 => None,
            ns => Some(task::now().saturating_add(ns)),
        };
        let done = self.waiters.wait_until(deadline, attempt);
        done.unwrap_or(Err(Errno::EAGAIN))
    }

    /// An address as the app says it, in its own family.
    fn taken(&self, addr: SocketAddr) -> Result<SocketAddr, Errno> {
        match (self.v6, addr) {
            (false, SocketAddr::V4(_)) => Ok(addr),
            (true, SocketAddr::V6(a)) => match a.ip().to_ipv4_mapped() {
                Some(_) if self.v6_only.load(Ordering::Relaxed) => Err(Errno::ENETUNREACH),
                Some(v4) => Ok(SocketAddr::new(v4.into(), a.port())),
                None => Ok(addr),
            },
            (true, SocketAddr::V4(_)) => Err(Errno::EINVAL),
            (false, SocketAddr::V6(_)) => Err(Errno::EAFNOSUPPORT),
        }
    }

    /// An address as the app sees it.
    fn shown(&self, addr: SocketAddr) -> SocketAddr {
        match addr {
            SocketAddr::V4(a) if self.v6 => {
                let ip = if a.ip().is_unspecified() {
                    Ipv6Addr::UNSPECIFIED
                } else {
                    a.ip().to_ipv6_mapped()
                };
                SocketAddr::new(ip.into(), a.port())
            }
            addr => addr,
        }
    }

    fn any(&self) -> SocketAddr {
        let ip = if self.v6 {
            Ipv6Addr::UNSPECIFIED.into()
        } else {
            IpAddr::V4(Ipv4Addr::UNSPECIFIED)
        };
        SocketAddr::new(ip, 0)
    }

    /// What a socket is bound to that is bound to `addr`.
    fn at(&self, addr: IpAddr) -> At {
        match addr {
            IpAddr::V4(a) if a.is_unspecified() => At::All4,
            IpAddr::V6(a) if a.is_unspecified() => {
                if self.v6_only.load(Ordering::Relaxed) {
                    At::All6
                } else {
                    At::All
                }
            }
            addr => At::One(addr),
        }
    }

    fn bound(&self, at: At, port: u16) -> SocketAddr {
        match at {
            At::One(addr) => self.shown(SocketAddr::new(addr, port)),
            At::All4 | At::All6 | At::All => SocketAddr::new(self.any().ip(), port),
        }
    }

    fn set_option(&self, option: SetOption) -> Option<Result<(), Errno>> {
        let flag = |place: &AtomicBool, n: i32| {
            place.store(n != 0, Ordering::Relaxed);
            Ok(())
        };
        Some(match option {
            SetOption::Number(Name::ReuseAddr, n) => flag(&self.reuse, n),
            SetOption::Number(Name::V6Only, n) if self.v6 => flag(&self.v6_only, n),
            SetOption::Number(Name::V6Only, _) => Err(Errno::ENOPROTOOPT),
            SetOption::Number(Name::Error, _) => Err(Errno::ENOPROTOOPT),
            SetOption::Timeout(Name::ReceiveTimeout, ns) => {
                self.receive_timeout.store(ns, Ordering::Relaxed);
                Ok(())
            }
            SetOption::Timeout(_, ns) => {
                self.send_timeout.store(ns, Ordering::Relaxed);
                Ok(())
            }
            _ => return None,
        })
    }

    fn option(&self, name: Name) -> Option<Result<Value, Errno>> {
        let flag = |b: &AtomicBool| Ok(Value::Number(i32::from(b.load(Ordering::Relaxed))));
        Some(match name {
            Name::ReuseAddr => flag(&self.reuse),
            Name::V6Only if self.v6 => flag(&self.v6_only),
            Name::V6Only => Err(Errno::ENOPROTOOPT),
            Name::ReceiveTimeout => {
                Ok(Value::Timeout(self.receive_timeout.load(Ordering::Relaxed)))
            }
            Name::SendTimeout => Ok(Value::Timeout(self.send_timeout.load(Ordering::Relaxed))),
            _ => return None,
        })
    }
}

/// `st_mode` of a socket.
fn socket_stat() -> Stat {
    Stat {
        st_mode: hermit_abi::S_IFSOCK | 0o777,
        st_nlink: 1,
        st_blksize: 4096,
        ..Stat::default()
    }
}

fn hops(n: i32) -> Result<u8, Errno> {
    match n {
        -1 => Ok(super::HOPS),
        n => u8::try_from(n).ok().filter(|n| *n > 0).ok_or(Errno::EINVAL),
    }
}

/// What a TCP socket is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Neither of these.
    Closed,
    /// A listener.
    Listening(ListenerId),
    /// A connection; `told`: the app knows that it is there.
    Connected {
        /// Which.
        id: ConnId,
        /// The app knows.
        told: bool,
    },
}

#[derive(Clone, Copy, Debug)]
struct Tcp {
    kind: Kind,
    held: Option<Held>,
    options: tcp::Options,
    linger: Option<u32>,
}

/// A TCP socket.
#[derive(Debug)]
pub struct TcpSocket {
    common: Common,
    /// Changed under the stack's lock only; this one is never held for more than a copy.
    state: Lock<Tcp>,
}

impl TcpSocket {
    /// A socket that is neither bound nor connected.
    #[must_use]
    pub fn open(v6: bool) -> Arc<Self> {
        Arc::new(Self {
            common: Common::new(v6),
            state: Lock::new(Tcp {
                kind: Kind::Closed,
                held: None,
                options: tcp::Options::default(),
                linger: None,
            }),
        })
    }

    /// What a ticket is for; to be [plugged in](Self::plug_in).
    pub(super) fn revive(common: &handover::Common, kind: Kind, tcp: &handover::Tcp) -> Arc<Self> {
        Arc::new(Self {
            common: Common::from_note(common),
            state: Lock::new(Tcp {
                kind,
                held: None,
                options: tcp.options,
                linger: tcp.linger,
            }),
        })
    }

    /// From now on it stands for what its ticket says, if that came and nobody else has it.
    pub(super) fn plug_in(&self, stack: &mut Stack, tcp: &handover::Tcp) -> bool {
        let kind = self.get().kind;
        let id = match kind {
            Kind::Closed => return false,
            Kind::Listening(id) => Id::Listener(id),
            Kind::Connected { id, .. } => Id::Conn(id),
        };
        if !stack.claim(Token::Tcp(id)) {
            // It must not close what is not its own.
            self.state.lock().kind = Kind::Closed;
            return false;
        }
        stack.streams.watch(id, Arc::clone(&self.common.waiters));
        let shares = self.common.reuse.load(Ordering::Relaxed);
        let shares = shares && !matches!(kind, Kind::Listening(_));
        let held = tcp.held;
        let held = held.map(|(at, port)| stack.streams.ports.restore(at, port, shares));
        self.state.lock().held = held;
        self.common.waiters.wake_all();
        true
    }

    fn get(&self) -> Tcp {
        *self.state.lock()
    }

    fn conn(&self) -> Result<ConnId, Errno> {
        match self.get().kind {
            Kind::Connected { id, .. } => Ok(id),
            _ => Err(Errno::ENOTCONN),
        }
    }

    fn start_connect(&self, stack: &mut Stack, now: u64, to: SocketAddr) -> Result<(), Errno> {
        let state = self.get();
        match state.kind {
            Kind::Listening(_) => return Err(Errno::EISCONN),
            Kind::Connected { id, told } => {
                let progress = stack.connected(id);
                return match progress {
                    Ok(true) if told => Err(Errno::EISCONN),
                    Ok(true) => {
                        self.state.lock().kind = Kind::Connected { id, told: true };
                        Ok(())
                    }
                    Ok(false) => Err(Errno::EALREADY),
                    Err(e) => {
                        self.give_up(stack, id);
                        Err(e)
                    }
                };
            }
            Kind::Closed => {}
        }
        // Nobody is at the unspecified address: it means this host (as on Linux).
        let to = match to.ip() {
            IpAddr::V4(a) if a.is_unspecified() => {
                SocketAddr::new(Ipv4Addr::LOCALHOST.into(), to.port())
            }
            IpAddr::V6(a) if a.is_unspecified() => {
                SocketAddr::new(Ipv6Addr::LOCALHOST.into(), to.port())
            }
            ip => SocketAddr::new(ip, to.port()),
        };
        if to.port() == 0 {
            return Err(Errno::ECONNREFUSED);
        }
        if to.ip().is_multicast() || stack.host.is_broadcast(to.ip()) {
            return Err(Errno::ENETUNREACH);
        }
        let local = state.held.map(|h| match h.at {
            At::One(addr) => SocketAddr::new(addr, h.port),
            _ => SocketAddr::new(
                if to.is_ipv4() {
                    Ipv4Addr::UNSPECIFIED.into()
                } else {
                    Ipv6Addr::UNSPECIFIED.into()
                },
                h.port,
            ),
        });
        let Stack { engine, host, .. } = stack;
        let id = engine.connect(now, local, to, &state.options, host)?;
        let waiters = Arc::clone(&self.common.waiters);
        stack.streams.watch(Id::Conn(id), waiters);
        self.state.lock().kind = Kind::Connected { id, told: false };
        Err(Errno::EINPROGRESS)
    }

    /// Forgets a connection that did not come about.
    fn give_up(&self, stack: &mut Stack, id: ConnId) {
        stack.streams.forget(Id::Conn(id));
        // It may be gone already.
        let _ = stack.engine.abort(id);
        self.state.lock().kind = Kind::Closed;
    }

    fn send_some(&self, bytes: &[u8], flags: i32) -> Result<usize, Errno> {
        let Ok(id) = self.conn() else {
            return Err(Errno::EPIPE);
        };
        let sent = self
            .common
            .wait(&self.common.send_timeout, flags, |stack, _| {
                Ok(stack.engine.send(id, bytes)?)
            });
        match sent {
            // Memory comes back when others are done.
            Err(Errno::ENOBUFS) if flags & msg::DONTWAIT != 0 => Err(Errno::EAGAIN),
            sent => sent,
        }
    }

    fn option_changed(&self, f: impl FnOnce(&mut tcp::Options)) -> Result<(), Errno> {
        net(|stack, now| {
            let mut state = self.get();
            f(&mut state.options);
            self.state.lock().options = state.options;
            if let Kind::Connected { id, .. } = state.kind {
                stack.engine.set_options(now, id, &state.options)?;
            }
            Ok(())
        })
    }
}

impl Stack {
    /// Whether a connection has come about.
    fn connected(&mut self, id: ConnId) -> Result<bool, Errno> {
        if let Some(error) = self.engine.take_error(id)? {
            return Err(error.into());
        }
        match self.engine.state(id)? {
            State::SYN_SENT | State::SYN_RECEIVED => Ok(false),
            State::CLOSED => Err(Errno::ECONNABORTED),
            _ => Ok(true),
        }
    }
}

impl Object for TcpSocket {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.receive(buf, 0)?.0)
    }

    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        self.send(buf, 0, None)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(socket_stat())
    }

    fn set_nonblocking(&self, on: bool) -> Result<(), Errno> {
        self.common.nonblocking.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn readiness(&self) -> Ready {
        let id = match self.get().kind {
            // As Linux tells it of a socket that is not connected.
            Kind::Closed => return Ready::WRITE | Ready::HANGUP,
            Kind::Listening(id) => Id::Listener(id),
            Kind::Connected { id, .. } => Id::Conn(id),
        };
        let readiness = super::look(|stack| stack.engine.readiness(id));
        let Some(Ok(is)) = readiness else {
            return Ready::WRITE | Ready::HANGUP | Ready::ERROR;
        };
        let mut ready = Ready::NONE;
        if is.readable || is.read_closed {
            ready |= Ready::READ;
        }
        if is.writable {
            ready |= Ready::WRITE;
        }
        if is.error {
            ready |= Ready::ERROR | Ready::HANGUP | Ready::ALWAYS;
        }
        if is.read_closed && is.write_closed {
            ready |= Ready::HANGUP;
        }
        ready
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.common.waiters)
    }

    fn socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}

impl Socket for TcpSocket {
    fn bind(&self, addr: SocketAddr) -> Result<(), Errno> {
        let addr = self.common.taken(addr)?;
        net(|stack, _| {
            let state = self.get();
            if state.held.is_some() || state.kind != Kind::Closed {
                return Err(Errno::EINVAL);
            }
            if !addr.ip().is_unspecified() && !stack.host.is_local(addr.ip()) {
                return Err(Errno::EADDRNOTAVAIL);
            }
            let at = self.common.at(addr.ip());
            let random = stack.host.random();
            let shares = self.common.reuse.load(Ordering::Relaxed);
            let held = stack.streams.ports.take(at, addr.port(), shares, random);
            self.state.lock().held = Some(held.ok_or(Errno::EADDRINUSE)?);
            Ok(())
        })
    }

    fn listen(&self, backlog: i32) -> Result<(), Errno> {
        net(|stack, now| {
            let state = self.get();
            match state.kind {
                Kind::Listening(_) => return Ok(()),
                Kind::Connected { .. } => return Err(Errno::EINVAL),
                Kind::Closed => {}
            }
            let held = match state.held {
                Some(held) => held,
                None => {
                    let at = self.common.at(self.common.any().ip());
                    let random = stack.host.random();
                    let held = stack.streams.ports.take(at, 0, false, random);
                    held.ok_or(Errno::EADDRINUSE)?
                }
            };
            self.state.lock().held = Some(held);
            if stack.streams.ports.kept_by_other(held) {
                return Err(Errno::EADDRINUSE);
            }
            let (ip, v6_only) = match held.at {
                At::One(addr) => (addr, false),
                At::All4 => (Ipv4Addr::UNSPECIFIED.into(), false),
                At::All6 => (Ipv6Addr::UNSPECIFIED.into(), true),
                At::All => (Ipv6Addr::UNSPECIFIED.into(), false),
            };
            let options = tcp::Options {
                v6_only,
                ..state.options
            };
            // Linux's limit; 0 is one, and less than that is all (listen(2)).
            let backlog = usize::try_from(backlog).unwrap_or(4096).clamp(1, 4096);
            let at = SocketAddr::new(ip, held.port);
            stack.displace(now, true, held.port);
            let id = stack.engine.listen(at, backlog, &options)?;
            stack.streams.ports.keep(held);
            let waiters = Arc::clone(&self.common.waiters);
            stack.streams.watch(Id::Listener(id), waiters);
            self.state.lock().kind = Kind::Listening(id);
            Ok(())
        })
    }

    fn accept(&self) -> Result<(Arc<dyn Object>, SocketAddr), Errno> {
        let Kind::Listening(listener) = self.get().kind else {
            return Err(Errno::EINVAL);
        };
        let timeout = &self.common.receive_timeout;
        let (socket, peer) = self.common.wait(timeout, 0, |stack, _| {
            let id = match stack.engine.accept(listener) {
                // Shut down meanwhile.
                Err(tcp::Error::Stale) => return Err(Errno::EINVAL),
                id => id?,
            };
            let socket = Self::open(self.common.v6);
            let peer = stack.engine.remote_addr(id)?;
            let mut state = self.get();
            state.kind = Kind::Connected { id, told: true };
            state.held = None;
            *socket.state.lock() = state;
            let waiters = Arc::clone(&socket.common.waiters);
            stack.streams.watch(Id::Conn(id), waiters);
            Ok((socket, peer))
        })?;
        let peer = self.common.shown(peer);
        Ok((socket, peer))
    }

    fn connect(&self, to: Option<SocketAddr>) -> Result<(), Errno> {
        let to = self.common.taken(to.ok_or(Errno::EAFNOSUPPORT)?)?;
        match net(|stack, now| self.start_connect(stack, now, to)) {
            Err(Errno::EINPROGRESS | Errno::EALREADY)
                if !self.common.nonblocking.load(Ordering::Relaxed) => {}
            result => return result,
        }
        let id = self.conn()?;
        let timeout = &self.common.send_timeout;
        let done = self
            .common
            .wait(timeout, 0, |stack, _| match stack.connected(id) {
                Ok(false) => Err(Errno::EAGAIN),
                Ok(true) => {
                    self.state.lock().kind = Kind::Connected { id, told: true };
                    Ok(())
                }
                Err(e) => {
                    self.give_up(stack, id);
                    Err(e)
                }
            });
        match done {
            // It goes on, but the time is over.
            Err(Errno::EAGAIN) => Err(Errno::EINPROGRESS),
            done => done,
        }
    }

    fn send(&self, bytes: &[u8], flags: i32, to: Option<SocketAddr>) -> Result<usize, Errno> {
        let connected = self.conn().is_ok();
        if to.is_some() && connected {
            return Err(Errno::EISCONN);
        }
        let mut sent = 0;
        while let Some(rest) = bytes.get(sent..) {
            match self.send_some(rest, flags) {
                Ok(n) => sent += n,
                Err(e) if sent == 0 => return Err(e),
                Err(_) => break,
            }
            let waits = !self.common.nonblocking.load(Ordering::Relaxed);
            if sent == bytes.len() || !waits || flags & msg::DONTWAIT != 0 {
                break;
            }
        }
        Ok(sent)
    }

    fn receive(&self, into: &mut [u8], flags: i32) -> Result<(usize, Option<SocketAddr>), Errno> {
        let id = self.conn()?;
        let peek = flags & msg::PEEK != 0;
        let all = flags & msg::WAITALL != 0 && !peek;
        let mut got = 0;
        loop {
            let rest = into.get_mut(got..).unwrap_or_default();
            let timeout = &self.common.receive_timeout;
            let result = self.common.wait(timeout, flags, |stack, _| {
                let engine = &mut stack.engine;
                Ok(if peek {
                    engine.peek(id, rest)?
                } else {
                    engine.recv(id, rest)?
                })
            });
            match result {
                Ok(0) => break,
                Ok(n) => got += n,
                Err(e) if got == 0 => return Err(e),
                Err(_) => break,
            }
            if !all || got == into.len() {
                break;
            }
        }
        Ok((got, None))
    }

    fn shutdown(&self, how: How) -> Result<(), Errno> {
        net(|stack, _| match self.get().kind {
            Kind::Connected { id, .. } => Ok(stack.engine.shutdown(
                id,
                match how {
                    How::Read => tcp::Shutdown::Read,
                    How::Write => tcp::Shutdown::Write,
                    How::Both => tcp::Shutdown::Both,
                },
            )?),
            // Who waits to accept is told.
            Kind::Listening(id) if how != How::Write => {
                stack.streams.forget(Id::Listener(id));
                stack.engine.close_listener(id)?;
                self.state.lock().kind = Kind::Closed;
                self.common.waiters.wake_all();
                Ok(())
            }
            _ => Err(Errno::ENOTCONN),
        })
    }

    fn local(&self) -> Result<SocketAddr, Errno> {
        let state = self.get();
        if let Kind::Connected { id, .. } = state.kind {
            let addr = net(|stack, _| Ok(stack.engine.local_addr(id)?))?;
            return Ok(self.common.shown(addr));
        }
        Ok(match state.held {
            Some(held) => self.common.bound(held.at, held.port),
            None => self.common.any(),
        })
    }

    fn peer(&self) -> Result<SocketAddr, Errno> {
        let Kind::Connected { id, told } = self.get().kind else {
            return Err(Errno::ENOTCONN);
        };
        let addr = net(|stack, _| {
            let pending = matches!(stack.engine.state(id)?, State::SYN_SENT);
            if pending && !told {
                return Err(Errno::ENOTCONN);
            }
            Ok(stack.engine.remote_addr(id)?)
        })?;
        Ok(self.common.shown(addr))
    }

    fn set_option(&self, option: SetOption) -> Result<(), Errno> {
        if let Some(result) = self.common.set_option(option) {
            return result;
        }
        match option {
            SetOption::Linger(time) => {
                self.state.lock().linger = time;
                Ok(())
            }
            SetOption::Number(Name::NoDelay, n) => self.option_changed(|o| o.nodelay = n != 0),
            SetOption::Number(Name::KeepAlive, n) => {
                self.option_changed(|o| o.keepalive = (n != 0).then_some(KEEP_ALIVE))
            }
            SetOption::Number(Name::Ttl, n) => {
                let n = hops(n)?;
                self.option_changed(|o| o.ttl = Some(n))
            }
            SetOption::Number(Name::SendBuffer, n) => {
                let n = u32::try_from(n).map_err(|_| Errno::EINVAL)?;
                self.option_changed(|o| o.send_buffer = Some(n))
            }
            SetOption::Number(Name::ReceiveBuffer, n) => {
                let n = u32::try_from(n).map_err(|_| Errno::EINVAL)?;
                self.option_changed(|o| o.recv_buffer = Some(n))
            }
            SetOption::Number(Name::Broadcast, _) => Ok(()),
            _ => Err(Errno::ENOPROTOOPT),
        }
    }

    fn option(&self, name: Name) -> Result<Value, Errno> {
        if let Some(result) = self.common.option(name) {
            return result;
        }
        let state = self.get();
        let config = || super::look(|stack| *stack.engine.config()).unwrap_or_default();
        let size = |n: u32| i32::try_from(n).unwrap_or(i32::MAX);
        Ok(Value::Number(match name {
            Name::Linger => return Ok(Value::Linger(state.linger)),
            Name::NoDelay => i32::from(state.options.nodelay),
            Name::KeepAlive => i32::from(state.options.keepalive.is_some()),
            Name::Ttl => i32::from(state.options.ttl.unwrap_or(super::HOPS)),
            Name::SendBuffer => size(
                state
                    .options
                    .send_buffer
                    .unwrap_or_else(|| config().send_buffer),
            ),
            Name::ReceiveBuffer => size(
                state
                    .options
                    .recv_buffer
                    .unwrap_or_else(|| config().recv_buffer),
            ),
            Name::Broadcast => 0,
            Name::Error => match state.kind {
                Kind::Connected { id, .. } => {
                    let error = net(|stack, _| Ok(stack.engine.take_error(id)?))?;
                    error.map_or(0, |e| Errno::from(e).0)
                }
                _ => 0,
            },
            _ => return Err(Errno::ENOPROTOOPT),
        }))
    }

    fn ticket(&self) -> Result<Ticket, Errno> {
        let state = self.get();
        let tcp = handover::Tcp {
            held: state.held.map(|h| (h.at, h.port)),
            options: state.options,
            linger: state.linger,
        };
        let what = match state.kind {
            Kind::Closed => return Err(Errno::ENOTCONN),
            Kind::Listening(id) => What::Listener { id, tcp },
            Kind::Connected { id, told } => What::Stream { id, told, tcp },
        };
        Ok(Ticket::new(self.common.noted(), what))
    }
}

impl Drop for TcpSocket {
    fn drop(&mut self) {
        let state = self.get();
        if let (Kind::Connected { id, .. }, Some(time @ 1..)) = (state.kind, state.linger) {
            let finished = net(|stack, _| Ok(stack.engine.shutdown(id, tcp::Shutdown::Write)?));
            let deadline = task::now().saturating_add(u64::from(time) * 1_000_000_000);
            let sent = || {
                super::look(|stack| stack.engine.unsent(id).unwrap_or(0) == 0)
                    .unwrap_or(true)
                    .then_some(())
            };
            if finished.is_ok()
                && self
                    .common
                    .waiters
                    .wait_until(Some(deadline), sent)
                    .is_none()
            {
                let _ = net(|stack, _| Ok(stack.engine.abort(id)?));
            }
        }
        with(|stack, now| {
            match state.kind {
                Kind::Closed => {}
                Kind::Listening(id) => {
                    stack.streams.forget(Id::Listener(id));
                    let _ = stack.engine.close_listener(id);
                }
                Kind::Connected { id, .. } => {
                    stack.streams.forget(Id::Conn(id));
                    let _ = match state.linger {
                        Some(0) => stack.engine.abort(id),
                        _ => stack.engine.close(now, id),
                    };
                }
            }
            if let Some(held) = state.held {
                stack.streams.ports.free(held);
            }
        });
    }
}

/// A UDP socket.
#[derive(Debug)]
pub struct UdpSocket {
    common: Common,
    id: UdpId,
    /// Its datagrams' place is its own: not yet that of one that came with a switch.
    claimed: AtomicBool,
}

/// The datagrams' place in the stack.
fn datagrams(stack: &mut Stack, id: UdpId) -> Result<&mut Datagrams, Errno> {
    stack.host.udp.get(id).ok_or(Errno::EBADF)
}

/// Link-local addresses are shown with their interface.
fn with_scope(addr: SocketAddr, by: Option<usize>) -> SocketAddr {
    match addr {
        SocketAddr::V6(a) if a.ip().is_unicast_link_local() => {
            let scope = by.and_then(|n| u32::try_from(n + 1).ok()).unwrap_or(0);
            SocketAddrV6::new(*a.ip(), a.port(), 0, scope).into()
        }
        addr => addr,
    }
}

/// Without flow and scope: as the stack knows it.
fn plain(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip(), addr.port())
}

/// The interface that an address names, if it does.
fn scope(addr: SocketAddr) -> Option<usize> {
    match addr {
        SocketAddr::V6(a) => usize::try_from(a.scope_id()).ok()?.checked_sub(1),
        SocketAddr::V4(_) => None,
    }
}

impl UdpSocket {
    /// A socket that is neither bound nor connected.
    ///
    /// # Errors
    /// `ENETDOWN` before the network is started.
    pub fn open(v6: bool) -> Result<Arc<Self>, Errno> {
        let common = Common::new(v6);
        let waiters = Arc::clone(&common.waiters);
        let id = net(|stack, _| Ok(stack.host.udp.open(waiters)))?;
        let claimed = AtomicBool::new(true);
        Ok(Arc::new(Self {
            common,
            id,
            claimed,
        }))
    }

    /// What a ticket is for; to be [plugged in](Self::plug_in).
    pub(super) fn revive(common: &handover::Common, id: UdpId) -> Arc<Self> {
        let common = Common::from_note(common);
        let claimed = AtomicBool::new(false);
        Arc::new(Self {
            common,
            id,
            claimed,
        })
    }

    /// From now on it stands for what its ticket says, if that came and nobody else has it.
    pub(super) fn plug_in(&self, stack: &mut Stack) -> bool {
        let claimed = stack.claim(Token::Udp(self.id));
        if claimed {
            let waiters = Arc::clone(&self.common.waiters);
            stack.host.udp.watch(self.id, waiters);
            self.claimed.store(true, Ordering::Relaxed);
            self.common.waiters.wake_all();
        }
        claimed
    }

    fn bind_in(&self, stack: &mut Stack, addr: SocketAddr) -> Result<(), Errno> {
        if addr.port() != 0 {
            stack.displace(stack.host.now, false, addr.port());
        }
        let host = &mut stack.host;
        let ip = addr.ip();
        let group = ip.is_multicast() || host.is_broadcast(ip);
        if !ip.is_unspecified() && !group && !host.is_local(ip) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let random = host.random();
        let shares = self.common.reuse.load(Ordering::Relaxed);
        let at = self.common.at(ip);
        Ok(host.udp.bind(self.id, at, addr.port(), shares, random)?)
    }

    /// Has a port, whichever.
    fn bind_any(&self, stack: &mut Stack) -> Result<(), Errno> {
        if datagrams(stack, self.id)?.port() == 0 {
            self.bind_in(stack, self.common.any())?;
        }
        Ok(())
    }

    /// The interface on which a group is joined or left.
    fn group_interface(
        host: &Host,
        group: IpAddr,
        at: Option<IpAddr>,
        number: u32,
    ) -> Result<usize, Errno> {
        if number > 0 {
            let number = usize::try_from(number - 1).map_err(|_| Errno::ENODEV)?;
            let there = host.interfaces.get(number).is_some_and(Option::is_some);
            return there.then_some(number).ok_or(Errno::ENODEV);
        }
        let found = match at {
            Some(at) => host.each().find(|(_, i)| i.has(at)).map(|(n, _)| n),
            None => host
                .route(group, None)
                .map(|(n, _)| n)
                .or_else(|| host.each().next().map(|(n, _)| n)),
        };
        found.ok_or(Errno::ENODEV)
    }

    fn send_in(
        &self,
        stack: &mut Stack,
        bytes: &[u8],
        to: Option<SocketAddr>,
    ) -> Result<(), Errno> {
        self.bind_any(stack)?;
        let socket = datagrams(stack, self.id)?;
        if let Some(error) = socket.error.take() {
            return Err(error.into());
        }
        if socket.write_closed {
            return Err(Errno::EPIPE);
        }
        let connected = to.is_none();
        let to = to.or(socket.remote).ok_or(Errno::EDESTADDRREQ)?;
        let (by, mut to) = (scope(to), plain(to));
        if to.port() == 0 {
            return Err(Errno::EINVAL);
        }
        if to.ip().is_unspecified() {
            to.set_ip(match to {
                SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        let (port, at) = (socket.port(), socket.at());
        let (broadcast, group_loop) = (socket.broadcast, socket.group_loop);
        let hops = if to.ip().is_multicast() {
            socket.group_hops
        } else {
            socket.hops
        };
        let bound = match at {
            Some(At::One(addr)) if usable(addr) || addr.is_loopback() => Some(addr),
            _ => socket.local.filter(|_| connected),
        };
        let host = &mut stack.host;
        let everybody = host.is_broadcast(to.ip());
        if everybody && !broadcast {
            return Err(Errno::EACCES);
        }
        let routed = by
            .and_then(|n| host.interfaces.get(n)?.as_ref()?.source_for(to.ip()))
            .or_else(|| host.source_for(to.ip()));
        let source = bound.or(routed).ok_or(Errno::ENETUNREACH)?;
        if source.is_ipv4() != to.is_ipv4() {
            return Err(Errno::ENETUNREACH);
        }
        if source.is_loopback() && !host.is_local(to.ip()) {
            return Err(Errno::EINVAL);
        }
        let from = SocketAddr::new(source, port);
        host.send_udp(from, to, hops, by, bytes).inspect_err(|e| {
            if *e == Error::WouldBlock {
                host.udp.refused(self.id);
            }
        })?;
        // Members and listeners of this host hear it too.
        let here = to.ip().is_multicast() && group_loop && host.is_member(None, to.ip());
        if here || everybody {
            let by = host.route(to.ip(), Some(source)).map(|(n, _)| n);
            host.udp.deliver(from, to, by, true, &[bytes]);
        }
        Ok(())
    }
}

impl Object for UdpSocket {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        Ok(self.receive(buf, 0)?.0)
    }

    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        self.send(buf, 0, None)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(socket_stat())
    }

    fn set_nonblocking(&self, on: bool) -> Result<(), Errno> {
        self.common.nonblocking.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn readiness(&self) -> Ready {
        let ready = super::look(|stack| {
            let refused = stack.host.udp.is_refused(self.id);
            let socket = stack.host.udp.get(self.id)?;
            let mut ready = if refused { Ready::NONE } else { Ready::WRITE };
            if socket.first().is_some() || socket.read_closed {
                ready |= Ready::READ;
            }
            if socket.error.is_some() {
                ready |= Ready::ERROR | Ready::ALWAYS;
            }
            if socket.read_closed && socket.write_closed {
                ready |= Ready::HANGUP;
            }
            Some(ready)
        });
        ready.flatten().unwrap_or(Ready::ERROR)
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.common.waiters)
    }

    fn socket(&self) -> Option<&dyn Socket> {
        Some(self)
    }
}

impl Socket for UdpSocket {
    fn bind(&self, addr: SocketAddr) -> Result<(), Errno> {
        let addr = plain(self.common.taken(addr)?);
        net(|stack, _| self.bind_in(stack, addr))
    }

    fn connect(&self, to: Option<SocketAddr>) -> Result<(), Errno> {
        let Some(to) = to else {
            return net(|stack, _| {
                let socket = datagrams(stack, self.id)?;
                (socket.remote, socket.local) = (None, None);
                Ok(())
            });
        };
        let to = self.common.taken(to)?;
        net(|stack, _| {
            self.bind_any(stack)?;
            let mut to = to;
            if to.ip().is_unspecified() {
                to.set_ip(match to {
                    SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                    SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
                });
            }
            let broadcast = stack.host.is_broadcast(to.ip());
            let source = stack.host.source_for(to.ip()).ok_or(Errno::ENETUNREACH)?;
            let socket = datagrams(stack, self.id)?;
            if broadcast && !socket.broadcast {
                return Err(Errno::EACCES);
            }
            socket.remote = Some(plain(to));
            socket.local = match socket.at() {
                Some(At::One(_)) => None,
                _ => Some(source),
            };
            socket.error = None;
            Ok(())
        })
    }

    fn send(&self, bytes: &[u8], flags: i32, to: Option<SocketAddr>) -> Result<usize, Errno> {
        let to = to.map(|to| self.common.taken(to)).transpose()?;
        let timeout = &self.common.send_timeout;
        self.common
            .wait(timeout, flags, |stack, _| self.send_in(stack, bytes, to))?;
        Ok(bytes.len())
    }

    fn receive(&self, into: &mut [u8], flags: i32) -> Result<(usize, Option<SocketAddr>), Errno> {
        let timeout = &self.common.receive_timeout;
        let (n, from) = self.common.wait(timeout, flags, |stack, _| {
            let socket = datagrams(stack, self.id)?;
            if let Some(error) = socket.error.take() {
                return Err(error.into());
            }
            let Some(first) = socket.first() else {
                if socket.read_closed {
                    return Ok((0, None));
                }
                return Err(Errno::EAGAIN);
            };
            let n = first.bytes.len().min(into.len());
            let (Some(to), Some(bytes)) = (into.get_mut(..n), first.bytes.get(..n)) else {
                return Err(Errno::EINVAL);
            };
            to.copy_from_slice(bytes);
            let told = if flags & msg::TRUNC != 0 {
                first.bytes.len()
            } else {
                n
            };
            let from = with_scope(first.from, first.by);
            if flags & msg::PEEK == 0 {
                socket.pop();
            }
            Ok((told, Some(from)))
        })?;
        Ok((n, from.map(|f| self.common.shown(f))))
    }

    fn shutdown(&self, how: How) -> Result<(), Errno> {
        net(|stack, _| {
            let socket = datagrams(stack, self.id)?;
            if socket.remote.is_none() {
                return Err(Errno::ENOTCONN);
            }
            socket.read_closed |= how != How::Write;
            socket.write_closed |= how != How::Read;
            self.common.waiters.wake_all();
            Ok(())
        })
    }

    fn local(&self) -> Result<SocketAddr, Errno> {
        net(|stack, _| {
            let socket = datagrams(stack, self.id)?;
            let (at, port) = (socket.at(), socket.port());
            Ok(match (at, socket.local) {
                (None, _) => self.common.any(),
                (_, Some(local)) => self.common.shown(SocketAddr::new(local, port)),
                (Some(at), None) => self.common.bound(at, port),
            })
        })
    }

    fn peer(&self) -> Result<SocketAddr, Errno> {
        let remote = net(|stack, _| Ok(datagrams(stack, self.id)?.remote))?;
        Ok(self.common.shown(remote.ok_or(Errno::ENOTCONN)?))
    }

    fn set_option(&self, option: SetOption) -> Result<(), Errno> {
        if let Some(result) = self.common.set_option(option) {
            return result;
        }
        net(|stack, _| {
            if let SetOption::Group {
                group,
                at,
                number,
                join,
            } = option
            {
                if !group.is_multicast() || group.is_ipv6() != self.common.v6 {
                    return Err(Errno::EINVAL);
                }
                let number = Self::group_interface(&stack.host, group, at, number)?;
                let socket = datagrams(stack, self.id)?;
                let place = socket.groups.iter().position(|g| *g == (number, group));
                match (join, place) {
                    (true, Some(_)) => return Err(Errno::EADDRINUSE),
                    (false, None) => return Err(Errno::EADDRNOTAVAIL),
                    (true, None) => socket.groups.push((number, group)),
                    (false, Some(i)) => drop(socket.groups.swap_remove(i)),
                }
                let done = stack.host.membership(number, group, join);
                if join && done.is_err() {
                    let socket = datagrams(stack, self.id)?;
                    socket.groups.retain(|g| *g != (number, group));
                }
                return Ok(done?);
            }
            let socket = datagrams(stack, self.id)?;
            match option {
                SetOption::Number(Name::Broadcast, n) => socket.broadcast = n != 0,
                SetOption::Number(Name::Ttl, n) => socket.hops = hops(n)?,
                SetOption::Number(Name::GroupTtl, n) => {
                    let n = if n == -1 { 1 } else { n };
                    socket.group_hops = u8::try_from(n).map_err(|_| Errno::EINVAL)?;
                }
                SetOption::Number(Name::GroupLoop | Name::GroupLoop6, n) => {
                    socket.group_loop = n != 0;
                }
                SetOption::Number(Name::ReceiveBuffer, n) => {
                    // Twice what is asked for, at least Linux's least (socket(7)).
                    let n = usize::try_from(n).map_err(|_| Errno::EINVAL)?;
                    socket.limit = n.saturating_mul(2).clamp(2304, 32 << 20);
                }
                // Datagrams do not wait to be sent.
                SetOption::Number(Name::SendBuffer, _) => {}
                SetOption::Linger(_) | SetOption::Number(Name::KeepAlive, _) => {}
                _ => return Err(Errno::ENOPROTOOPT),
            }
            Ok(())
        })
    }

    fn option(&self, name: Name) -> Result<Value, Errno> {
        if let Some(result) = self.common.option(name) {
            return result;
        }
        net(|stack, _| {
            let socket = datagrams(stack, self.id)?;
            Ok(Value::Number(match name {
                Name::Broadcast => i32::from(socket.broadcast),
                Name::Ttl => i32::from(socket.hops),
                Name::GroupTtl => i32::from(socket.group_hops),
                Name::GroupLoop | Name::GroupLoop6 => i32::from(socket.group_loop),
                Name::ReceiveBuffer | Name::SendBuffer => {
                    i32::try_from(socket.limit).unwrap_or(i32::MAX)
                }
                Name::Error => socket.error.take().map_or(0, |e| Errno::from(e).0),
                Name::Linger => return Ok(Value::Linger(None)),
                Name::KeepAlive => 0,
                _ => return Err(Errno::ENOPROTOOPT),
            }))
        })
    }

    fn ticket(&self) -> Result<Ticket, Errno> {
        let what = What::Udp { id: self.id };
        Ok(Ticket::new(self.common.noted(), what))
    }
}

impl Drop for UdpSocket {
    fn drop(&mut self) {
        if self.claimed.load(Ordering::Relaxed) {
            with(|stack, _| stack.close_udp(self.id));
        }
    }
}
