//! The network: everything between a device that moves Ethernet frames and the sockets of std.
//!
//! Devices pass frames ([`nic`]); TCP's go straight to its engine, UDP's to sockets ([`udp`]), and
//! what is left to smoltcp are wire formats, group reports and the clients of DHCP and DNS.

pub mod config;
pub mod ip;
pub mod lock;
pub mod neighbor;
pub mod nic;
pub mod ports;
pub mod reassembly;
pub mod stats;
pub mod tcp;
pub mod udp;

use core::fmt;

/// TTL or hop limit of what says nothing else (IANA).
pub const HOPS: u8 = 64;

/// Why something of the network's was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Not now.
    WouldBlock,
    /// It makes no sense.
    Invalid,
    /// Somebody else has the address and port.
    InUse,
    /// No address of this host.
    NotLocal,
    /// No route.
    Unreachable,
    /// The next neighbour does not answer, or a router says that the host can't be reached.
    HostUnreachable,
    /// Nobody there takes it.
    Refused,
    /// A router or this host forbids it.
    Denied,
    /// Somebody on the way could not understand it.
    Protocol,
    /// Longer than any packet.
    TooLong,
    /// Longer than what passes on the way, in bytes of the IP packet.
    PathTooLong(u32),
    /// There is nobody to send it to.
    NoDestination,
    /// There is no such interface.
    NoInterface,
    /// No memory or no table entry for it.
    NoBuffers,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "not now",
            Self::Invalid => "it makes no sense",
            Self::InUse => "address in use",
            Self::NotLocal => "no address of this host",
            Self::Unreachable => "no route",
            Self::HostUnreachable => "the host can't be reached",
            Self::Refused => "nobody there takes it",
            Self::Denied => "not permitted",
            Self::Protocol => "not understood on the way",
            Self::TooLong => "longer than any packet",
            Self::PathTooLong(_) => "longer than what passes on the way",
            Self::NoDestination => "no destination",
            Self::NoInterface => "no such interface",
            Self::NoBuffers => "no memory for it",
        })
    }
}

impl core::error::Error for Error {}

impl From<nic::SendError> for Error {
    fn from(error: nic::SendError) -> Self {
        match error {
            nic::SendError::Full => Self::WouldBlock,
            nic::SendError::Refused => Self::TooLong,
        }
    }
}
