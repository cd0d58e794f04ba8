//! Addresses as numbers: IPv6 as it is, IPv4 mapped into it (::ffff:0:0/96, RFC 4291).

use core::hash::Hasher;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// 0.0.0.0.
pub const V4_ANY: u128 = 0xffff << 32;

/// An address as a number.
pub fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => V4_ANY | u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The address a number stands for.
pub fn ip(number: u128) -> IpAddr {
    if is_v4(number) {
        IpAddr::V4(Ipv4Addr::from_bits(number as u32))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

/// Whether it is an IPv4 address.
pub fn is_v4(number: u128) -> bool {
    number >> 32 == V4_ANY >> 32
}

/// Whether a segment may bear this address: one host's, and no IPv4 address in an IPv6 header.
pub fn is_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast() && !is_v4(ip.to_bits()),
    }
}

/// The "any" address of this one's family.
pub fn any_of(number: u128) -> u128 {
    if is_v4(number) { V4_ANY } else { 0 }
}

/// What tells connections apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Tuple {
    /// Our address.
    pub local: u128,
    /// The peer's.
    pub remote: u128,
    /// Our port.
    pub local_port: u16,
    /// The peer's.
    pub remote_port: u16,
}

impl Tuple {
    /// From two ends.
    pub fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self {
            local: number(local.ip()),
            remote: number(remote.ip()),
            local_port: local.port(),
            remote_port: remote.port(),
        }
    }

    /// Our end.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(ip(self.local), self.local_port)
    }

    /// The peer's end.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(ip(self.remote), self.remote_port)
    }

    /// Puts it into a hash.
    pub fn feed(&self, hasher: &mut impl Hasher) {
        let ports = u64::from(self.local_port) << 16 | u64::from(self.remote_port);
        if is_v4(self.remote) {
            // Both are: 16 bytes do, and are hashed in half the time.
            hasher.write_u64(u64::from(self.local as u32) << 32 | u64::from(self.remote as u32));
            hasher.write_u64(ports);
        } else {
            hasher.write_u128(self.local);
            hasher.write_u128(self.remote);
            hasher.write_u64(ports);
        }
    }
}
