//! The network: everything between a device that moves Ethernet frames and the sockets of std.

pub mod nic;
