//! What a vCPU without work tells those that have some for it.
//!
//! It says so before it looks for work the last time, and whoever gives it work looks afterwards
//! whether it sleeps: one of them sees what the other did (a full fence between the two steps of
//! each). `tests/loom.rs` tries all orders.

use super::sys::{AtomicU8, AtomicU32, fence};
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

/// The vCPUs that have no work, for those that have some: a bit for each.
///
/// Who takes one out gives it work, but another vCPU may have stolen that by the time it looks. So
/// it puts itself in again before it sleeps, or nobody would ever wake it.
#[derive(Debug)]
pub struct IdleSet(AtomicU32);

impl IdleSet {
    /// In a word that is 0.
    #[must_use]
    pub const fn with(word: AtomicU32) -> Self {
        Self(word)
    }

    /// Called by a vCPU, before it looks for work: once that it polls, and once that it sleeps.
    pub fn add(&self, number: u32) {
        self.0.fetch_or(bit(number), Ordering::SeqCst);
    }

    /// Takes this one out; false if it is not there.
    pub fn claim(&self, number: u32) -> bool {
        let bit = bit(number);
        self.0.load(Ordering::Relaxed) & bit != 0
            && self.0.fetch_and(!bit, Ordering::AcqRel) & bit != 0
    }

    /// Takes any one out.
    pub fn claim_any(&self) -> Option<u32> {
        loop {
            let number = self.0.load(Ordering::Acquire).trailing_zeros();
            if number >= u32::BITS {
                return None;
            }
            if self.claim(number) {
                return Some(number);
            }
        }
    }
}

/// None for a number that is no vCPU's.
fn bit(number: u32) -> u32 {
    1u32.checked_shl(number).unwrap_or(0)
}
