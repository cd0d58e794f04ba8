//! Devices: the emulated ones that HVM domains have before anything paravirtual is up, and the
//! paravirtual ones of xenbus.

#[cfg(target_os = "hermit")]
pub mod pci;
#[cfg(target_os = "hermit")]
pub mod pic;
#[cfg(target_os = "hermit")]
pub mod uart;
#[cfg(target_os = "hermit")]
pub mod unplug;

pub mod netfront;
pub mod xenbus;
