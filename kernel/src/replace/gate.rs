//! Who is changing preserved regions, and the switch that waits until nobody is.
//!
//! A vCPU is parked wherever it happens to be. So that no region is handed over half changed, a
//! change goes through this gate, and the switch closes it first. `tests/loom.rs` tries all orders.

use crate::task::sys::AtomicU32;
use crate::task::wait::WaitQueue;
use core::sync::atomic::Ordering;

/// Bit of the state: closed. The rest counts those inside.
const CLOSED: u32 = 1 << 31;

/// The gate.
#[derive(Debug, Default)]
pub struct Gate {
    state: AtomicU32,
    changed: WaitQueue,
}

impl Gate {
    /// Open, and nobody inside, if `state` is 0.
    #[must_use]
    pub const fn with(state: AtomicU32) -> Self {
        Self {
            state,
            changed: WaitQueue::new(),
        }
    }

    fn try_enter(&self) -> Option<()> {
        let enter = |state| (state & CLOSED == 0).then_some(state + 1);
        self.state
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, enter)
            .map(drop)
            .ok()
    }

    /// Goes in, once the gate is open.
    #[must_use]
    pub fn enter(&self) -> Inside<'_> {
        // Where nobody can wait there are no threads, so no switch either.
        if self.try_enter().is_none()
            && self.changed.wait_until(None, || self.try_enter()).is_none()
        {
            self.state.fetch_add(1, Ordering::Acquire);
        }
        Inside(self)
    }

    /// Closes the gate if nobody is inside.
    #[must_use]
    pub fn try_close(&self) -> bool {
        self.state
            .compare_exchange(0, CLOSED, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    /// Closes the gate and waits until nobody is inside; if that takes longer than until `deadline`
    /// (system time, in ns) it is open again, and this false.
    #[must_use]
    pub fn close(&self, deadline: u64) -> bool {
        self.state.fetch_or(CLOSED, Ordering::Acquire);
        let empty = || (self.state.load(Ordering::Acquire) == CLOSED).then_some(());
        let closed = self.changed.wait_until(Some(deadline), empty).is_some();
        if !closed {
            self.open();
        }
        closed
    }

    /// Opens it.
    pub fn open(&self) {
        self.state.fetch_and(!CLOSED, Ordering::Release);
        self.changed.wake_all();
    }
}

/// Inside, until dropped.
#[derive(Debug)]
pub struct Inside<'a>(&'a Gate);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        if self.0.state.fetch_sub(1, Ordering::Release) == CLOSED + 1 {
            self.0.changed.wake_all();
        }
    }
}
