//! Who may touch the park pages when, and who decides about a trial: the words through which vCPUs
//! agree, and in which order they are read and written.
//!
//! `park.S` has the other half of it. `tests/loom.rs` runs both in every order: this file as it is,
//! that one written out.

use crate::task::sys::{AtomicU32, fence};
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

/// How the trial stands. Whoever changes it from `PENDING` decides.
pub mod verdict {
    /// The trial runs.
    pub const PENDING: u32 = 0;
    /// The new image has the domain.
    pub const COMMITTED: u32 = 1;
    /// The trial ran into a gate.
    pub const FAULT: u32 = 2;
    /// The watcher ended it.
    pub const HUNG: u32 = 3;
}

/// Who takes the trial's vCPU back from a hang.
pub mod taken {
    /// Nobody yet.
    pub const OPEN: u32 = 0;
    /// The vCPU is ours.
    pub const OURS: u32 = 1;
    /// The watcher sends an INIT.
    pub const INIT: u32 = 2;
}

/// What a parked vCPU is told.
pub mod release {
    /// Wait.
    pub const HOLD: u32 = 0;
    /// Go on in the old image.
    pub const RESUME: u32 = 1;
    /// Go to the new image.
    pub const COMMIT: u32 = 2;
}

/// Where a vCPU is.
pub mod place {
    /// Not near the park pages.
    pub const ELSEWHERE: u32 = 0;
    /// In their code.
    pub const PARKED: u32 = 1;
    /// It looks whether it is to park.
    pub const ENTERING: u32 = 2;
}

/// The park interrupt has come: whether this vCPU goes to the park pages. They stay as they are from
/// here to [`leave`].
#[must_use]
pub fn enter(place: &AtomicU32, release: &AtomicU32) -> bool {
    place.store(place::ENTERING, Relaxed);
    // Either this vCPU sees that nobody is to park any more, or who said so sees it here.
    fence(SeqCst);
    release.load(Acquire) == release::HOLD
}

/// It is out again.
pub fn leave(place: &AtomicU32) {
    place.store(place::ELSEWHERE, Release);
}

/// Whether a vCPU is far from the park pages, which may then be written until [`hold`]: an interrupt
/// that comes late finds `RESUME`.
#[must_use]
pub fn is_elsewhere(place: &AtomicU32) -> bool {
    place.load(Acquire) == place::ELSEWHERE
}

/// Whether a vCPU is parked.
#[must_use]
pub fn is_parked(place: &AtomicU32) -> bool {
    place.load(Acquire) == place::PARKED
}

/// From now on a park interrupt parks.
pub fn hold(release: &AtomicU32) {
    release.store(release::HOLD, Release);
}

/// Sends parked vCPUs on. To wake them comes after this.
pub fn send_on(release: &AtomicU32, to: u32) {
    release.store(to, Release);
    // See `enter`.
    fence(SeqCst);
}

/// A vCPU goes to a new image and does not come back to [`leave`]: before [`send_on`].
pub fn forget(place: &AtomicU32) {
    place.store(place::ELSEWHERE, Relaxed);
}

/// Whether the trial ends as `how` says: the first one decides.
#[must_use]
pub fn decide(verdict: &AtomicU32, how: u32) -> bool {
    verdict
        .compare_exchange(verdict::PENDING, how, SeqCst, SeqCst)
        .is_ok()
}
