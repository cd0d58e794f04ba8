//! What a thread that parks and those that wake it agree by: one word, so that a wake that comes
//! first is not lost and several make the thread runnable once.

use super::sys::AtomicU8;
use core::sync::atomic::Ordering;

const EMPTY: u8 = 0;
/// Woken; the park that is on ends, or the next one does not begin.
const NOTIFIED: u8 = 1;
/// Parked, or about to leave its vCPU: who wakes it has to make it runnable.
const PARKED: u8 = 2;

/// One thread's word.
#[derive(Debug)]
pub struct Token(AtomicU8);

impl Default for Token {
    fn default() -> Self {
        Self::new()
    }
}

impl Token {
    /// Not parked, not woken.
    #[must_use]
    pub fn new() -> Self {
        Self(AtomicU8::new(EMPTY))
    }

    /// Called by the thread itself: whether it has to leave its vCPU, and then to call
    /// [`resumed`](Self::resumed). If not, there was a wake, which is used up now.
    #[must_use]
    pub fn park(&self) -> bool {
        use Ordering::{AcqRel, Acquire};
        let parked = self.0.compare_exchange(EMPTY, PARKED, AcqRel, Acquire);
        if parked.is_err() {
            self.resumed();
        }
        parked.is_ok()
    }

    /// Called by the thread itself when it runs again.
    pub fn resumed(&self) {
        // A swap, so that whatever was written before any wake until now is seen.
        self.0.swap(EMPTY, Ordering::AcqRel);
    }

    /// Wakes it: true for the one caller that has to make it runnable.
    #[must_use]
    pub fn unpark(&self) -> bool {
        self.0.swap(NOTIFIED, Ordering::AcqRel) == PARKED
    }
}
