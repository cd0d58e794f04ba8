//! A lock for long work in threads: who waits for it does not spin for long but sleeps, and who has
//! it may be interrupted and preempted.

use crate::task::wait::WaitQueue;
use core::sync::atomic::{AtomicU32, Ordering};
use lock_api::{GuardSend, RawMutex};

/// A mutual exclusion lock that blocks threads.
pub type Mutex<T> = lock_api::Mutex<Sleeping, T>;

const FREE: u32 = 0;
const TAKEN: u32 = 1;
/// Taken, and somebody may be waiting.
const WANTED: u32 = 2;
/// Looks at a taken lock before going to sleep: about what a wake costs.
const LOOKS: u32 = 200;

/// The lock's state.
#[derive(Debug)]
pub struct Sleeping {
    state: AtomicU32,
    waiters: WaitQueue,
}

impl Sleeping {
    /// Takes the lock, waiting no longer than until then (system time, in ns). True: it is taken.
    pub fn lock_until(&self, deadline: Option<u64>) -> bool {
        for _ in 0..LOOKS {
            if self.state.load(Ordering::Relaxed) == FREE && self.try_lock() {
                return true;
            }
            core::hint::spin_loop();
        }
        // The queue gives up at once where threads can't block.
        let taken = self.waiters.wait_until(deadline, || {
            (self.state.swap(WANTED, Ordering::Acquire) == FREE).then_some(())
        });
        taken.is_some()
    }
}

// SAFETY: `lock` and `try_lock` succeed only by changing `state` from FREE, which no other does
// until `unlock`.
unsafe impl RawMutex for Sleeping {
    #[allow(clippy::declare_interior_mutable_const, reason = "lock_api's way")]
    const INIT: Self = Self {
        state: AtomicU32::new(FREE),
        waiters: WaitQueue::new(),
    };

    type GuardMarker = GuardSend;

    fn lock(&self) {
        while !self.lock_until(None) {
            core::hint::spin_loop();
        }
    }

    fn try_lock(&self) -> bool {
        self.state
            .compare_exchange(FREE, TAKEN, Ordering::Acquire, Ordering::Relaxed)
            .is_ok()
    }

    unsafe fn unlock(&self) {
        if self.state.swap(FREE, Ordering::Release) == WANTED {
            self.waiters.wake_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn one_at_a_time() {
        let lock = Arc::new(Mutex::new((0u64, false)));
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let lock = Arc::clone(&lock);
                std::thread::spawn(move || {
                    for n in 0..2000 {
                        let mut guard = lock.lock();
                        assert!(!guard.1);
                        guard.1 = true;
                        if n % 100 == i {
                            std::thread::yield_now();
                        }
                        guard.0 += 1;
                        guard.1 = false;
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|t| t.join().unwrap());
        assert_eq!(lock.lock().0, 8000);
    }
}
