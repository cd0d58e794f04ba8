//! What the command line says of the network: `segue.ip=ADDR/LEN`, `segue.gateway=ADDR`,
//! `segue.dns=ADDR`. Each may be said several times, or once with commas; an `ip` or a `gateway`
//! may end in `%N`, the number of the interface it is for (0 if not said).

use crate::boot::cmdline::CommandLine;
use arrayvec::ArrayVec;
use core::net::IpAddr;
use serde::{Deserialize, Serialize};

/// Most addresses, gateways or servers of each kind.
pub const MAX: usize = 8;

/// An address and how many of its first bits name the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cidr {
    /// The address.
    pub addr: IpAddr,
    /// Bits of the prefix.
    pub len: u8,
}

impl Cidr {
    /// Whether `other` is on this link.
    #[must_use]
    pub fn contains(&self, other: IpAddr) -> bool {
        match (self.addr, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.len.min(32));
                u32::from(a).checked_shr(shift) == u32::from(b).checked_shr(shift)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.len.min(128));
                u128::from(a).checked_shr(shift) == u128::from(b).checked_shr(shift)
            }
            _ => false,
        }
    }

    /// The link's own broadcast address, if it has one.
    #[must_use]
    pub fn broadcast(&self) -> Option<IpAddr> {
        match self.addr {
            IpAddr::V4(a) if self.len < 31 => {
                let host = u32::MAX.checked_shr(u32::from(self.len)).unwrap_or(0);
                Some(IpAddr::V4((u32::from(a) | host).into()))
            }
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (addr, len) = match text.split_once('/') {
            Some((addr, len)) => (addr.parse().ok()?, Some(len.parse().ok()?)),
            None => (text.parse().ok()?, None),
        };
        let most = if matches!(addr, IpAddr::V4(_)) {
            32
        } else {
            128
        };
        let len = len.unwrap_or(most);
        (len <= most && usable(addr)).then_some(Self { addr, len })
    }
}

impl core::fmt::Display for Cidr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.addr, self.len)
    }
}

/// Whether an address can be an interface's own.
#[must_use]
pub fn usable(addr: IpAddr) -> bool {
    !addr.is_multicast()
        && !addr.is_unspecified()
        && !addr.is_loopback()
        && addr != IpAddr::V4(core::net::Ipv4Addr::BROADCAST)
}

/// Something for one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct On<T> {
    /// Number of the interface, in the order of attachment.
    pub interface: usize,
    /// What it gets.
    pub value: T,
}

/// The network's settings. What is not said here comes by DHCP and router advertisements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Fixed addresses.
    pub addresses: ArrayVec<On<Cidr>, MAX>,
    /// Fixed default routers.
    pub gateways: ArrayVec<On<IpAddr>, MAX>,
    /// Fixed name servers.
    pub dns: ArrayVec<IpAddr, MAX>,
}

/// A value on the command line that says nothing of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadValue<'a> {
    /// `ip`, `gateway` or `dns`.
    pub key: &'static str,
    /// What stands there.
    pub value: &'a str,
}

impl core::fmt::Display for BadValue<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let form = if self.key == "ip" {
            "ADDRESS/LENGTH"
        } else {
            "an address"
        };
        write!(f, "segue.{}={}: not {form}", self.key, self.value)
    }
}

fn on(text: &str) -> Option<On<&str>> {
    match text.split_once('%') {
        Some((value, n)) => Some(On {
            interface: n.parse().ok()?,
            value,
        }),
        None => Some(On {
            interface: 0,
            value: text,
        }),
    }
}

impl Config {
    /// Reads a command line; `complain` is told what is passed over.
    pub fn read<'a>(line: &'a CommandLine, mut complain: impl FnMut(BadValue<'a>)) -> Self {
        let mut config = Self::default();
        for key in ["ip", "gateway", "dns"] {
            for value in line.options(key).flat_map(|v| v.split(',')) {
                let taken = match key {
                    "ip" => on(value).and_then(|o| {
                        let value = Cidr::parse(o.value)?;
                        let interface = o.interface;
                        config.addresses.try_push(On { interface, value }).ok()
                    }),
                    "gateway" => on(value).and_then(|o| {
                        let value = o.value.parse().ok().filter(|a| usable(*a))?;
                        let interface = o.interface;
                        config.gateways.try_push(On { interface, value }).ok()
                    }),
                    _ => value
                        .parse()
                        .ok()
                        .filter(|a| usable(*a))
                        .and_then(|a| config.dns.try_push(a).ok()),
                };
                if taken.is_none() {
                    complain(BadValue { key, value });
                }
            }
        }
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_of_both_kinds_for_several_interfaces() {
        let line = CommandLine::from_bytes(
            b"segue.ip=10.0.0.2/24,fd00::2/64 segue.ip=192.168.7.1%1 segue.gateway=10.0.0.1 \
              segue.dns=10.0.0.53,x segue.ip=10.0.0.3/33 segue.ip=224.0.0.1/4 -- a segue.dns=1.1.1.1",
        );
        let mut bad = Vec::new();
        let c = Config::read(&line, |b| bad.push(b.to_string()));
        let said: Vec<_> = c
            .addresses
            .iter()
            .map(|o| format!("{}%{}", o.value, o.interface))
            .collect();
        assert_eq!(said, ["10.0.0.2/24%0", "fd00::2/64%0", "192.168.7.1/32%1"]);
        assert_eq!(c.gateways[0].value.to_string(), "10.0.0.1");
        assert_eq!(c.dns.len(), 1);
        assert_eq!(
            bad,
            [
                "segue.ip=10.0.0.3/33: not ADDRESS/LENGTH",
                "segue.ip=224.0.0.1/4: not ADDRESS/LENGTH",
                "segue.dns=x: not an address"
            ]
        );
    }

    proptest! {
        #[test]
        fn a_link_holds_what_shares_its_prefix(a: u32, b: u32, len in 0u8..=32) {
            let c = Cidr { addr: IpAddr::V4(a.into()), len };
            let mask = if len == 0 { 0 } else { u32::MAX << (32 - len) };
            prop_assert_eq!(c.contains(IpAddr::V4(b.into())), a & mask == b & mask);
            if let Some(IpAddr::V4(broadcast)) = c.broadcast() {
                prop_assert_eq!(u32::from(broadcast), a | !mask);
            }
        }
    }
}
