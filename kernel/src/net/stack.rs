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
use super::tcp::{self, Engine, IcmpError};
use alloc::boxed::Box;

/// Most frames of one device, and most packets to ourselves, in one round.
pub const BUDGET: usize = 64;

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
    /// Names that are being looked up may have been found.
    pub answered: bool,
}

impl Stack {
    /// A stack without devices. The secret must be random and is nobody else's.
    #[must_use]
    pub fn new(config: Config, tcp: tcp::Config, secret: [u8; 32], now: u64) -> Self {
        // What ports and identifications are drawn from may be guessed some day; TCP's secret not.
        let seed = secret
            .chunks(8)
            .fold(0u64, |s, c| {
                s.rotate_left(7) ^ c.iter().fold(0, |n, b| n << 8 | u64::from(*b))
            })
            .wrapping_mul(0xd6e8_feb8_6659_fd93);
        Self {
            engine: Engine::new(tcp, secret),
            host: Host::new(config, seed, now),
            streams: Streams::default(),
            changed: false,
            answered: false,
        }
    }

    /// Adds a device; gives the interface's number.
    ///
    /// # Errors
    /// [`Error::Invalid`] if its Ethernet address is none.
    pub fn attach(&mut self, now: u64, nic: Box<dyn Nic + Send>) -> Result<usize, Error> {
        self.host.now = now;
        let number = self.host.attach(nic).ok_or(Error::Invalid)?;
        self.changed = true;
        self.engine.paths_changed();
        self.settle(now);
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
        self.settle(now) || more
    }

    /// Finishes what a call or a round has begun. True if there is more to do at once.
    pub fn settle(&mut self, now: u64) -> bool {
        self.host.now = now;
        self.answered |= self.host.each().any(|(_, i)| i.has_queries());
        if self.host.run() {
            self.changed = true;
            self.engine.paths_changed();
        }
        if self.engine.deadline().is_some_and(|d| d <= now) {
            self.engine.tick(now, &mut self.host);
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
            ready &= i.send_waiting(stats);
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
        for place in &mut self.host.interfaces {
            let Some(nic) = place.as_mut().and_then(|i| i.nic.as_mut()) else {
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
        tcp.into_iter().chain(self.host.deadline()).min()
    }
}
