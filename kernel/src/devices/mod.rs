//! Emulated devices: those that HVM domains have before anything paravirtual is up.

pub mod pci;
pub mod pic;
pub mod uart;
