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

pub mod control;
pub mod handed;
pub mod netfront;
pub mod xenbus;

#[cfg(target_os = "hermit")]
pub(crate) use freeze::Frozen;

#[cfg(target_os = "hermit")]
mod freeze {
    use super::xenbus::GATE;
    use crate::xen::wait;
    use crate::xen::xenstore;

    /// How long devices may take to come to rest, in ns.
    const LIMIT_NS: u64 = 5_000_000_000;

    /// No device is attached or detached, and xenstore's ring is between two messages: what the
    /// record says of them stays true until this is dropped.
    ///
    /// Frames may still come and go. Their rings are the old image's, and the new one closes the
    /// devices before it frees them.
    #[derive(Debug)]
    pub(crate) struct Frozen(());

    impl Frozen {
        /// Waits until devices and xenstore are at rest; `None` if they aren't in time.
        pub(crate) fn new() -> Option<Self> {
            let deadline = wait::now().saturating_add(LIMIT_NS);
            if !GATE.freeze(deadline) {
                return None;
            }
            if xenstore::client().is_ok_and(|c| c.freeze(deadline).is_err()) {
                GATE.thaw();
                return None;
            }
            Some(Self(()))
        }
    }

    impl Drop for Frozen {
        fn drop(&mut self) {
            if let Ok(client) = xenstore::client() {
                client.thaw();
            }
            GATE.thaw();
        }
    }
}
