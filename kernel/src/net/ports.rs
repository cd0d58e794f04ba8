//! Who has which port at which addresses: what `bind` gives out, for TCP and for UDP.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// Ports that are given out to those who ask for any; above are those of the DHCP and DNS client.
const ANY: core::ops::Range<u16> = 32_768..61_000;

/// At which of our addresses a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum At {
    /// At this one.
    One(IpAddr),
    /// At all of IPv4.
    All4,
    /// At all of IPv6.
    All6,
    /// At all.
    All,
}

impl At {
    /// Whether a packet to `addr` is meant.
    #[must_use]
    pub fn takes(self, addr: IpAddr) -> bool {
        match self {
            Self::One(a) => a == addr,
            Self::All4 => addr.is_ipv4(),
            Self::All6 => addr.is_ipv6(),
            Self::All => true,
        }
    }

    fn meets(self, other: Self) -> bool {
        match (self, other) {
            (Self::One(a), o) | (o, Self::One(a)) => o.takes(a),
            (Self::All4, Self::All6) | (Self::All6, Self::All4) => false,
            _ => true,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    id: u32,
    at: At,
    shares: bool,
}

/// The ports of one protocol.
#[derive(Debug, Default)]
pub struct Ports {
    held: BTreeMap<u16, Vec<Holder>>,
    next: u32,
}

/// A port that is held; to be given back with [`Ports::free`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The port.
    pub port: u16,
    /// At which addresses.
    pub at: At,
    id: u32,
}

impl Ports {
    /// Takes `port` (0: any that is free, looked for from where `random` says), which others may
    /// have too if all of them say that it `shares`. `None` if it is taken.
    pub fn take(&mut self, at: At, port: u16, shares: bool, random: u32) -> Option<Held> {
        let port = match port {
            0 => self.any(at, random)?,
            p if self.is_free(at, p, shares) => p,
            _ => return None,
        };
        Some(self.restore(at, port, shares))
    }

    fn is_free(&self, at: At, port: u16, shares: bool) -> bool {
        let holders = self.held.get(&port);
        !holders
            .into_iter()
            .flatten()
            .any(|h| h.at.meets(at) && !(h.shares && shares))
    }

    fn any(&self, at: At, random: u32) -> Option<u16> {
        let start = random % u32::from(ANY.end - ANY.start);
        let from = ANY.start + start as u16;
        (from..ANY.end)
            .chain(ANY.start..from)
            .find(|p| self.is_free(at, *p, false))
    }

    /// Takes a port that a socket had before a switch, whoever has it now.
    pub fn restore(&mut self, at: At, port: u16, shares: bool) -> Held {
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        let holder = Holder { id, at, shares };
        self.held.entry(port).or_default().push(holder);
        Held { port, at, id }
    }

    /// Whether who holds this port would share it.
    #[must_use]
    pub fn shares(&self, held: Held) -> bool {
        let mut holders = self.held.get(&held.port).into_iter().flatten();
        holders.any(|h| h.id == held.id && h.shares)
    }

    /// From now on the port is shared with nobody who comes (a listener's).
    pub fn keep(&mut self, held: Held) {
        let holders = self.held.get_mut(&held.port).into_iter().flatten();
        for h in holders.filter(|h| h.id == held.id) {
            h.shares = false;
        }
    }

    /// Whether somebody else keeps the port (see [`Ports::keep`]) at one of these addresses.
    #[must_use]
    pub fn kept_by_other(&self, held: Held) -> bool {
        let mut holders = self.held.get(&held.port).into_iter().flatten();
        holders.any(|h| h.id != held.id && !h.shares && h.at.meets(held.at))
    }

    /// Gives a port back.
    pub fn free(&mut self, held: Held) {
        if let Some(holders) = self.held.get_mut(&held.port) {
            holders.retain(|h| h.id != held.id);
            if holders.is_empty() {
                self.held.remove(&held.port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at() -> impl Strategy<Value = At> {
        prop_oneof![
            Just(At::All),
            Just(At::All4),
            Just(At::All6),
            (0u32..2).prop_map(|a| At::One(IpAddr::V4(a.into()))),
            (0u128..2).prop_map(|a| At::One(IpAddr::V6(a.into()))),
        ]
    }

    proptest! {
        #[test]
        fn no_packet_has_two_takers_who_do_not_share(
            asks in proptest::collection::vec((at(), 0u16..4, any::<bool>(), any::<u32>(), any::<bool>()), 0..40),
        ) {
            let mut ports = Ports::default();
            let mut held = Vec::new();
            for (at, port, shares, random, free) in asks {
                if let Some(h) = ports.take(at, port, shares, random) {
                    prop_assert!(h.port == port || (port == 0 && ANY.contains(&h.port)));
                    held.push((h, shares && port != 0));
                }
                if free && !held.is_empty() {
                    ports.free(held.swap_remove(random as usize % held.len()).0);
                }
                for addr in [IpAddr::V4(0.into()), IpAddr::V4(1.into()), IpAddr::V6(0.into()), IpAddr::V6(1.into())] {
                    for port in held.iter().map(|h| h.0.port) {
                        let takers: Vec<_> = held.iter().filter(|h| h.0.port == port && h.0.at.takes(addr)).collect();
                        prop_assert!(takers.len() <= 1 || takers.iter().all(|h| h.1));
                    }
                }
            }
            for (h, _) in held {
                ports.free(h);
            }
            prop_assert!(ports.held.is_empty());
        }
    }
}
