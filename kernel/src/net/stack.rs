//! The stack: TCP's engine, the rest of the host, and the order in which work is done. Plain code:
//! no lock, no clock, no thread. What calls it says the time.
//!
//! Whatever is called ends in [`Stack::settle`]: packets to ourselves are taken, timers run, TCP
//! sends what it has decided, devices are told once, and sockets whose readiness may have changed
//! are woken.

use super::Error;
use super::config::Config;
use super::host::{Failure, Host};
use super::ip::Header;
use super::nic::{Idle, Nic};
use super::streams::Streams;
use super::tcp::arena::Arena;
use super::tcp::{self, Engine, IcmpError, Id};
use super::udp::UdpId;
use alloc::boxed::Box;
use alloc::collections::BTreeSet;
use alloc::vec::Vec;

/// Most frames of one device, and most packets to ourselves, in one round.
pub const BUDGET: usize = 64;

/// Rounds in which what came goes before what is overdue: what a device's ring holds (256 frames).
const FIRST_ROUNDS: u32 = 4;

/// How long an app may do without what came with a switch before it is closed, in ns.
const CLAIM_WITHIN: u64 = 10_000_000_000;

/// What a socket stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Token {
    /// A connection or a listener.
    Tcp(Id),
    /// A UDP socket.
    Udp(UdpId),
}

/// The network stack.
#[derive(Debug)]
pub struct Stack {
    /// TCP.
    pub engine: Engine,
    /// Everything but TCP.
    pub host: Host,
    /// Which socket waits for which connection.
    pub streams: Streams,
    /// Addresses, routers or name servers have changed; for the one who tells people.
    pub changed: bool,
    /// Numbers of interfaces whose device has not come after a switch; for the same.
    pub gone: Vec<usize>,
    /// Names that are being looked up may have been found.
    pub answered: bool,
    /// What came with a switch and no app has asked for yet.
    unclaimed: BTreeSet<Token>,
    /// It is closed then.
    unclaimed_until: Option<u64>,
    /// Rounds that left timers to the next one.
    untimed: u32,
}

/// A seed for what may be guessed some day: ports and identifications; TCP's secret not.
pub(super) fn fold(secret: [u8; 32]) -> u64 {
    let folded = secret.chunks(8).fold(0u64, |s, c| {
        s.rotate_left(7) ^ c.iter().fold(0, |n, b| n << 8 | u64::from(*b))
    });
    folded.wrapping_mul(0xd6e8_feb8_6659_fd93)
}

impl Stack {
    /// A stack without devices. The secret must be random and is nobody else's.
    #[must_use]
    pub fn new(config: Config, tcp: tcp::Config, secret: [u8; 32], now: u64) -> Self {
        Self::with(Engine::new(tcp, secret), config, secret, now)
    }

    /// As [`Stack::new`], in this arena.
    #[must_use]
    pub fn in_arena(
        config: Config,
        tcp: tcp::Config,
        arena: Arena,
        secret: [u8; 32],
        now: u64,
    ) -> Self {
        Self::with(Engine::over(tcp, arena, secret), config, secret, now)
    }

    fn with(engine: Engine, config: Config, secret: [u8; 32], now: u64) -> Self {
        let host = Host::new(config, fold(secret), now);
        Self::over(engine, host, BTreeSet::new())
    }

    /// From an engine and a host, and what came with them that sockets may claim.
    #[must_use]
    pub fn over(engine: Engine, host: Host, unclaimed: BTreeSet<Token>) -> Self {
        let until = host.now.saturating_add(CLAIM_WITHIN);
        Self {
            engine,
            host,
            streams: Streams::default(),
            changed: false,
            gone: Vec::new(),
            answered: false,
            unclaimed_until: (!unclaimed.is_empty()).then_some(until),
            unclaimed,
            untimed: 0,
        }
    }

    /// Whether this came with a switch and nobody had asked for it: now somebody has. From then on
    /// what else came waits for [`Stack::close_unclaimed`].
    pub fn claim(&mut self, token: Token) -> bool {
        let claimed = self.unclaimed.remove(&token);
        if claimed {
            self.unclaimed_until = None;
        }
        claimed
    }

    /// Closes what nobody has claimed, as if its app had.
    pub fn close_unclaimed(&mut self, now: u64) {
        self.unclaimed_until = None;
        for token in core::mem::take(&mut self.unclaimed) {
            self.close(now, token);
        }
    }

    fn close(&mut self, now: u64, token: Token) {
        // Each may be gone already.
        match token {
            Token::Tcp(Id::Conn(id)) => drop(self.engine.close(now, id)),
            Token::Tcp(Id::Listener(id)) => drop(self.engine.close_listener(id)),
            Token::Udp(id) => self.close_udp(id),
        }
    }

    /// Closes a UDP socket.
    pub fn close_udp(&mut self, id: UdpId) {
        if let Some(socket) = self.host.udp.close(id) {
            for (number, group) in socket.groups {
                // Leaving can't fail.
                let _ = self.host.membership(number, group, false);
            }
        }
    }

    /// An app wants this port for itself: what of it came with a switch and nobody has claimed makes
    /// room.
    pub fn displace(&mut self, now: u64, tcp: bool, port: u16) {
        let here = |token: &Token| match token {
            Token::Tcp(Id::Listener(id)) if tcp => {
                let addr = self.engine.listener_addr(*id);
                addr.is_ok_and(|addr| addr.port() == port)
            }
            Token::Udp(id) if !tcp => self.host.udp.at_port(port).contains(id),
            _ => false,
        };
        let displaced: Vec<Token> = self.unclaimed.iter().copied().filter(here).collect();
        for token in displaced {
            self.unclaimed.remove(&token);
            self.close(now, token);
        }
    }

    /// Adds a device; gives the interface's number. A [`round`](Stack::round) does the rest: what
    /// came over a device while an image was replaced is looked at before anything is sent again,
    /// as it may be the acknowledgement.
    ///
    /// # Errors
    /// [`Error::Invalid`] if its Ethernet address is none.
    pub fn attach(&mut self, now: u64, nic: Box<dyn Nic + Send>) -> Result<usize, Error> {
        self.host.now = now;
        let number = self.host.attach(nic).ok_or(Error::Invalid)?;
        self.changed = true;
        self.engine.paths_changed();
        Ok(number)
    }

    /// Takes a device away; connections over it may go on when it or another one comes.
    pub fn detach(&mut self, now: u64, number: usize) -> Option<Box<dyn Nic + Send>> {
        self.host.now = now;
        self.changed = true;
        self.host.detach(number)
    }

    /// Takes what devices have received, within bounds, and does what is due. True if there may be
    /// more at once.
    pub fn round(&mut self, now: u64) -> bool {
        self.host.now = now;
        let mut more = false;
        for number in 0..self.host.interfaces.len() {
            let Some(Some(i)) = self.host.interfaces.get_mut(number) else {
                continue;
            };
            // While it passes frames, nothing can be sent by it: that waits in the outbox.
            let Some(mut nic) = i.nic.take() else {
                continue;
            };
            let (host, engine) = (&mut self.host, &mut self.engine);
            let taken = nic.receive(BUDGET, &mut |pieces, meta| {
                host.frame(engine, number, pieces, meta);
            });
            if let Some(Some(i)) = self.host.interfaces.get_mut(number) {
                i.nic = Some(nic);
            }
            more |= taken >= BUDGET;
        }
        // What is overdue may be acknowledged already, by what waits: after a pause (a switch, a
        // domain that was not run) that comes first. A flood does not hold up timers for ever.
        self.untimed += u32::from(more);
        if !more || self.untimed >= FIRST_ROUNDS {
            self.untimed = 0;
            if self.engine.deadline().is_some_and(|d| d <= now) {
                self.engine.tick(now, &mut self.host);
            }
        }
        self.settle(now) || more
    }

    /// Finishes what a call or a round has begun. True if there is more to do at once. Timers are
    /// the rounds': they have looked at what came.
    pub fn settle(&mut self, now: u64) -> bool {
        self.host.now = now;
        if self.unclaimed_until.is_some_and(|until| until <= now) {
            self.close_unclaimed(now);
        }
        self.answered |= self.host.each().any(|(_, i)| i.has_queries());
        if self.host.run() {
            self.changed = true;
            self.engine.paths_changed();
        }
        self.engine.flush(now, &mut self.host);
        let mut left = BUDGET;
        while left > 0
            && let Some(looped) = self.host.looped()
        {
            left -= 1;
            let h = Header {
                src: looped.ip.src,
                dst: looped.ip.dst,
                protocol: looped.ip.protocol,
                hops: looped.ip.hops,
                header: 0,
                payload: looped.payload.len(),
                fragment: None,
                hop_by_hop: false,
            };
            // It never left the host: nothing can have damaged it.
            let taken = self
                .host
                .packet(&mut self.engine, None, &h, &[&looped.payload], true);
            self.host.stats.rx_dropped += u64::from(taken.is_none());
            if self.host.loopback.is_empty() {
                self.engine.flush(now, &mut self.host);
            }
        }
        while let Some(failure) = self.host.failures.pop_front() {
            self.failed(failure);
        }
        let (interfaces, stats) = self.host.each_mut();
        let mut ready = true;
        for (_, i) in interfaces {
            // One whose device is still to come does not hold up the others.
            ready &= i.absent_until.is_some() || i.send_waiting(stats);
        }
        if self.host.blocked && ready && left > 0 {
            self.host.blocked = false;
            self.engine.unblocked(now, &mut self.host);
            self.host.udp.unblocked();
        }
        let (interfaces, _) = self.host.each_mut();
        for (_, i) in interfaces {
            if let Some(nic) = &mut i.nic {
                nic.flush();
            }
        }
        self.streams.wake(&mut self.engine);
        !self.host.loopback.is_empty()
    }

    /// Asks all devices for their next event; drops those that are gone.
    pub fn idle(&mut self, now: u64) -> Idle {
        let mut until = None;
        let mut work = false;
        for (number, place) in self.host.interfaces.iter_mut().enumerate() {
            let Some(i) = place else {
                continue;
            };
            if i.absent_until.is_some_and(|until| until <= now) {
                // It has not come.
                *place = None;
                self.gone.push(number);
                self.changed = true;
                work = true;
                continue;
            }
            let Some(nic) = i.nic.as_mut() else {
                continue;
            };
            match nic.idle(now) {
                Idle::Work => work = true,
                Idle::Until(None) => {}
                Idle::Until(Some(t)) => until = Some(until.map_or(t, |u: u64| u.min(t))),
                Idle::Gone => {
                    *place = None;
                    self.changed = true;
                    work = true;
                }
            }
        }
        if work { Idle::Work } else { Idle::Until(until) }
    }

    /// Whether something could not be sent yet.
    #[must_use]
    pub fn waits_for_room(&self) -> bool {
        self.host.blocked || self.host.each().any(|(_, i)| i.waits_for_room())
    }

    fn failed(&mut self, failure: Failure) {
        let error = match failure.why {
            Error::PathTooLong(mtu) => IcmpError::TooBig {
                mtu: u16::try_from(mtu).unwrap_or(u16::MAX),
            },
            // Like Linux, an attempt to connect ends with any of them.
            Error::Refused => IcmpError::Hard(tcp::Error::Refused),
            Error::Unreachable => IcmpError::Hard(tcp::Error::NetUnreachable),
            Error::Protocol => IcmpError::Soft(tcp::Error::HostUnreachable),
            _ => IcmpError::Hard(tcp::Error::HostUnreachable),
        };
        let Failure {
            local, remote, seq, ..
        } = failure;
        self.engine.icmp(local, remote, seq, error);
    }

    /// When [`Stack::round`] has something to do even if nothing comes.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let tcp = self.engine.deadline();
        let deadlines = tcp.into_iter().chain(self.host.deadline());
        deadlines.chain(self.unclaimed_until).min()
    }
}
