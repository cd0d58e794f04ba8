//! The Xen guest side: hypercalls, shared_info, clock, event channels, console, grants,
//! xenstore.
//!
//! Numbers and structures are those of Xen's public headers (`xen/include/public/`), written down
//! with the headers' names. Whatever touches what other domains or the next image share demands a
//! [`Committed`] token; reading the clock does not.

pub mod carve;
pub mod clock;
pub mod console_ring;
pub mod grant;
pub mod wait;
pub mod xenstore;

#[cfg(target_os = "hermit")]
pub mod console;
#[cfg(target_os = "hermit")]
pub mod cpuid;
#[cfg(target_os = "hermit")]
pub mod events;
#[cfg(target_os = "hermit")]
pub mod hypercall;
#[cfg(target_os = "hermit")]
pub mod shared_info;

use core::sync::atomic::{AtomicBool, Ordering};

/// Proof that this image owns the domain: it booted it, or its switch is committed.
///
/// An image on trial has none, so it cannot reach a port, the APIC or a hypercall (I5).
#[derive(Clone, Copy, Debug)]
pub struct Committed(());

static COMMITTED: AtomicBool = AtomicBool::new(false);

impl Committed {
    /// The token, once there is one.
    #[must_use]
    pub fn get() -> Option<Self> {
        COMMITTED.load(Ordering::Acquire).then_some(Self(()))
    }

    /// Declares the domain ours.
    ///
    /// # Safety
    /// 1. The domain was booted into this image, or
    /// 2. the switch to it has been committed: the park page's verdict says so, and no other
    ///    image will run again.
    #[must_use]
    pub unsafe fn declare() -> Self {
        COMMITTED.store(true, Ordering::Release);
        Self(())
    }
}
