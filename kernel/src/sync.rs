//! The lock that kernel data is behind: on Xen a ticket lock with interrupts off inside, so that
//! interrupt handlers may take it and nobody is preempted (or parked) who holds it; on the host,
//! for tests, the standard library's.

#[cfg(target_os = "hermit")]
pub use hermit_sync::InterruptTicketMutex as Lock;

#[cfg(not(target_os = "hermit"))]
pub use host::Lock;

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
