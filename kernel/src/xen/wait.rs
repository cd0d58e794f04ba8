//! Waiting for what a backend does.
//!
//! Stands in for the wait queues of threads until there are threads: who waits looks again after
//! every event that its vCPU takes, and after [`LOOK_NS`] at the latest.

#[cfg(target_os = "hermit")]
mod sys {
    use crate::cpu::smp;
    use crate::xen::{Committed, hypercall, shared_info};

    /// How long a wait sleeps when no event comes, in ns.
    const LOOK_NS: u64 = 5_000_000;

    /// Waiters are not listed: each looks for itself.
    #[derive(Debug, Default)]
    pub struct WaitQueue;

    impl WaitQueue {
        /// Nobody waits.
        #[must_use]
        pub const fn new() -> Self {
            Self
        }

        /// Blocks until `ready` gives something, or `deadline` (system time, in ns) is over.
        pub fn wait_until<R>(
            &self,
            deadline: Option<u64>,
            mut ready: impl FnMut() -> Option<R>,
        ) -> Option<R> {
            let enabled = x86_64::instructions::interrupts::are_enabled();
            let result = loop {
                x86_64::instructions::interrupts::disable();
                if let Some(result) = ready() {
                    break Some(result);
                }
                let now = shared_info::now();
                let (Some(token), true) = (Committed::get(), deadline.is_none_or(|d| now < d))
                else {
                    break None;
                };
                let look = now.saturating_add(LOOK_NS);
                if hypercall::set_singleshot_timer(token, deadline.map_or(look, |d| d.min(look)))
                    .is_ok()
                {
                    smp::wait_for_event(token);
                }
            };
            if enabled {
                x86_64::instructions::interrupts::enable();
            }
            result
        }

        /// Waiters look by themselves.
        pub fn wake_all(&self) {}
    }

    /// System time, in ns.
    pub fn now() -> u64 {
        shared_info::now()
    }
}

#[cfg(not(target_os = "hermit"))]
mod sys {
    use std::sync::{Condvar, Mutex, OnceLock, PoisonError};
    use std::time::{Duration, Instant};

    /// Over the host's threads, for tests.
    #[derive(Debug, Default)]
    pub struct WaitQueue(Mutex<u64>, Condvar);

    impl WaitQueue {
        /// Nobody waits.
        #[must_use]
        pub const fn new() -> Self {
            Self(Mutex::new(0), Condvar::new())
        }

        /// Blocks until `ready` gives something, or `deadline` (in ns of [`now`]) is over.
        pub fn wait_until<R>(
            &self,
            deadline: Option<u64>,
            mut ready: impl FnMut() -> Option<R>,
        ) -> Option<R> {
            loop {
                let seen = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(result) = ready() {
                    return Some(result);
                }
                let rest = deadline.map_or(u64::MAX, |d| d.saturating_sub(now()));
                if rest == 0 {
                    return None;
                }
                let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let rest = Duration::from_nanos(rest.min(1_000_000_000));
                drop(
                    self.1
                        .wait_timeout_while(guard, rest, |wakes| *wakes == seen),
                );
            }
        }

        /// Wakes all who wait now.
        pub fn wake_all(&self) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            self.1.notify_all();
        }
    }

    /// ns since the first call.
    pub fn now() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64
    }
}

pub use sys::{WaitQueue, now};
