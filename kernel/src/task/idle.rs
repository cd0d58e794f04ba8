//! What a vCPU without work tells those that have some for it.
//!
//! It says so before it looks for work the last time, and whoever gives it work looks afterwards
//! whether it sleeps: one of them sees what the other did (a full fence between the two steps of
//! each). `tests/loom.rs` tries all orders.

use super::sys::{AtomicU8, fence};
use core::sync::atomic::Ordering;

/// What a vCPU does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// It runs a thread.
    Busy = 0,
    /// It looks for work in a loop: no interrupt is needed.
    Polling = 1,
    /// It sleeps in the hypervisor, or is about to.
    Halted = 2,
}

/// A vCPU's [`State`], for all to see.
#[derive(Debug)]
pub struct Idle(AtomicU8);

impl Idle {
    /// In a word that holds a [`State`].
    #[must_use]
    pub const fn with(state: AtomicU8) -> Self {
        Self(state)
    }

    /// Called by the vCPU; it looks for work after this.
    pub fn set(&self, state: State) {
        self.0.store(state as u8, Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Called after work was put where the vCPU looks: whether an interrupt has to tell it.
    #[must_use]
    pub fn must_interrupt(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Acquire) == State::Halted as u8
    }

    /// Whether it runs a thread.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.0.load(Ordering::Acquire) == State::Busy as u8
    }
}
