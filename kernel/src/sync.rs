//! The lock that kernel data is behind: on Xen a spin lock with interrupts off inside, so that
//! interrupt handlers may take it and nobody is preempted (or parked) who holds it; on the host,
//! for tests, the standard library's.

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
