//! The lock that kernel data is behind: on Xen a spin lock with interrupts off inside, so that
//! interrupt handlers may take it and nobody is preempted (or parked) who holds it; on the host,
//! for tests, the standard library's. And a list that needs no lock to be read.

use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

#[cfg(target_os = "hermit")]
pub use kernel::{Lock, RawLock};

#[cfg(not(target_os = "hermit"))]
pub use host::Lock;

#[cfg(target_os = "hermit")]
mod kernel {
    use crate::xen::{Committed, hypercall};
    use core::hint;
    use hermit_sync::{RawInterruptMutex, RawSpinMutex};
    use lock_api::{Mutex, RawMutex};

    /// Around a value.
    pub type Lock<T> = Mutex<RawLock, T>;
    /// By itself.
    pub type RawLock = RawInterruptMutex<Yielding>;

    /// How often a waiter looks before it takes the holder's vCPU for one without a processor:
    /// longer than anybody holds a lock who has one.
    const LOOKS: u32 = 2000;

    /// A spin lock whose waiters leave the processor to other vCPUs after a while.
    ///
    /// Where there are more vCPUs than processors its holder may be without one. Not a ticket lock:
    /// there the next in turn may be without one, too, and all others behind it.
    #[derive(Debug)]
    pub struct Yielding(RawSpinMutex);

    // SAFETY: it is locked and unlocked as the spin lock inside is, which excludes.
    unsafe impl RawMutex for Yielding {
        #[allow(
            clippy::declare_interior_mutable_const,
            reason = "the trait wants it, to make locks with"
        )]
        const INIT: Self = Self(RawSpinMutex::INIT);
        type GuardMarker = <RawSpinMutex as RawMutex>::GuardMarker;

        fn lock(&self) {
            let mut looks = 0;
            while !self.0.try_lock() {
                while self.0.is_locked() {
                    looks += 1;
                    // On trial there are no hypercalls, and no other vCPU runs.
                    match Committed::get() {
                        Some(token) if looks % LOOKS == 0 => hypercall::sched_yield(token),
                        _ => hint::spin_loop(),
                    }
                }
            }
        }

        fn try_lock(&self) -> bool {
            self.0.try_lock()
        }

        unsafe fn unlock(&self) {
            // SAFETY: the caller holds it.
            unsafe { self.0.unlock() }
        }

        fn is_locked(&self) -> bool {
            self.0.is_locked()
        }
    }
}

#[cfg(not(target_os = "hermit"))]
mod host {
    use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

    /// A mutual exclusion lock.
    #[derive(Debug, Default)]
    pub struct Lock<T: ?Sized>(Mutex<T>);

    impl<T> Lock<T> {
        /// Around `value`.
        pub const fn new(value: T) -> Self {
            Self(Mutex::new(value))
        }

        /// Takes the lock, waiting for it.
        pub fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        /// Takes the lock if it is free.
        pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            match self.0.try_lock() {
                Ok(guard) => Some(guard),
                Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
                Err(TryLockError::WouldBlock) => None,
            }
        }
    }
}

/// A list of words that can be read at any time, whoever may have stopped in the middle of what:
/// what the image after a crash is told of.
#[derive(Debug)]
pub struct Noted<const N: usize> {
    len: AtomicUsize,
    words: [AtomicU64; N],
}

impl<const N: usize> Noted<N> {
    /// An empty list.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            words: [const { AtomicU64::new(0) }; N],
        }
    }

    /// Replaces it by `words`, of which at most `N` are kept. One writer at a time.
    ///
    /// Whatever is in the old and in the new list, in the same order, is in the list at every moment
    /// between: words only move towards the front, and each is written before it is overwritten.
    pub fn set(&self, words: impl IntoIterator<Item = u64>) {
        let mut len = 0;
        for (slot, word) in self.words.iter().zip(words) {
            slot.store(word, Ordering::Release);
            len += 1;
        }
        self.len.store(len, Ordering::Release);
    }

    /// The words.
    #[must_use]
    pub fn get(&self) -> ArrayVec<u64, N> {
        let len = self.len.load(Ordering::Acquire);
        let words = self.words.iter().take(len);
        words.map(|word| word.load(Ordering::Acquire)).collect()
    }
}

impl<const N: usize> Default for Noted<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// A reader in the middle of a change finds everything that stays.
        #[test]
        fn what_stays_is_there_all_the_time(
            before in proptest::collection::btree_set(1u64..1000, 0..16),
            keep: [bool; 16],
            more in proptest::option::of(1000u64..2000),
        ) {
            let list = Noted::<16>::new();
            list.set(before.iter().copied());
            prop_assert!(list.get().iter().eq(before.iter()));
            let kept = before.iter().zip(keep).filter(|(_, keep)| *keep).map(|(word, _)| *word);
            let after: Vec<u64> = kept.clone().chain(more).take(16).collect();
            let staying: Vec<u64> = kept.collect();
            // Each step is one store; it is looked at before each.
            let look = after.iter().map(|word| {
                let seen = list.get();
                assert!(staying.iter().all(|word| seen.contains(word)), "{seen:?}");
                *word
            });
            list.set(look);
            prop_assert_eq!(&list.get()[..], &after[..]);
        }
    }
}
