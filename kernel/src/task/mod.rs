//! Threads: on all vCPUs, preempted, blocked in queues of what they wait for.
//!
//! | file | what |
//! |---|---|
//! | `thread.rs` | a thread: stack with a guard page, thread-locals, the switch from one to another |
//! | `sched.rs` | run queues, timers, slices, idle vCPUs |
//! | `token.rs`, `idle.rs` | what the scheduler's parts agree by without a lock (loom models) |
//! | `wait.rs`, `futex.rs` | waiting for something to become so; the same code on the host |
//!
//! On trial there are no threads: nothing starts one and nothing blocks.

pub mod futex;
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "for the scheduler")
)]
mod idle;
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "for the scheduler")
)]
mod token;
pub mod wait;

#[cfg(target_os = "hermit")]
pub mod sched;
#[cfg(target_os = "hermit")]
pub mod thread;

#[cfg(not(target_os = "hermit"))]
#[path = "host.rs"]
pub mod sys;
#[cfg(target_os = "hermit")]
#[path = "kernel.rs"]
pub mod sys;

pub use sys::now;

#[cfg(target_os = "hermit")]
pub use on_xen::*;
#[cfg(not(target_os = "hermit"))]
pub use sys::{spawn, yield_now};

#[cfg(target_os = "hermit")]
mod on_xen {
    use super::sched;
    use super::thread::{Kind, NOWHERE};
    use crate::abi::errno::Errno;
    use crate::memory::Extent;
    use alloc::boxed::Box;
    use core::fmt;
    use core::marker::PhantomData;
    use core::sync::atomic::Ordering;

    pub use super::thread::{Options, Priority, Tid};

    /// Starts a thread of the kernel's.
    ///
    /// # Errors
    /// `EAGAIN` on trial, `ENOMEM`.
    pub fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> Result<Tid, Errno> {
        spawn_with(name, Options::default(), f)
    }

    /// Starts a thread of the kernel's with options.
    ///
    /// # Errors
    /// `EAGAIN` on trial, `EINVAL` for a vCPU that is not there, `ENOMEM`.
    pub fn spawn_with(
        name: &str,
        options: Options,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<Tid, Errno> {
        sched::spawn(Kind::Kernel, Some(name), options, Box::new(f))
    }

    /// Starts one of std's threads.
    ///
    /// # Errors
    /// As [`spawn_with`].
    pub(crate) fn spawn_app(
        options: Options,
        f: impl FnOnce() + Send + 'static,
    ) -> Result<Tid, Errno> {
        sched::spawn(Kind::App, None, options, Box::new(f))
    }

    /// Waits until a thread has ended and its memory is free again; at once if there is none.
    ///
    /// # Errors
    /// `EDEADLK`: the thread itself.
    pub fn join(tid: Tid) -> Result<(), Errno> {
        if tid == current_tid() {
            return Err(Errno::EDEADLK);
        }
        if let Some(thread) = sched::find(tid) {
            thread
                .joiners
                .wait_until(None, || thread.is_dead().then_some(()));
        }
        Ok(())
    }

    /// The calling thread's number; 0 where there is none yet.
    pub fn current_tid() -> Tid {
        sched::this_thread().map_or(0, |t| t.tid())
    }

    /// Blocks until `deadline` (system time, in ns). False where nothing can block.
    pub fn sleep_until(deadline: u64) -> bool {
        while super::now() < deadline {
            if super::sys::current().is_none() {
                return false;
            }
            super::sys::park(Some(deadline));
        }
        true
    }

    /// Gives others a turn.
    pub fn yield_now() {
        sched::yield_now();
    }

    /// The calling thread's priority.
    pub fn priority() -> Priority {
        sched::this_thread().map_or(Priority::Normal, |t| t.priority())
    }

    /// Sets a thread's priority, from the next time on that it waits for its turn.
    ///
    /// # Errors
    /// `ESRCH`: there is none.
    pub fn set_priority(tid: Tid, priority: Priority) -> Result<(), Errno> {
        sched::find(tid)
            .map(|t| t.set_priority(priority))
            .ok_or(Errno::ESRCH)
    }

    /// What the last failed call of the calling thread said.
    pub(crate) fn errno() -> i32 {
        sched::this_thread().map_or(0, |t| t.errno.load(Ordering::Relaxed))
    }

    pub(crate) fn set_errno(errno: Errno) {
        if let Some(t) = sched::this_thread() {
            t.errno.store(errno.0, Ordering::Relaxed);
        }
    }

    /// Whether `addr` is in the page below the calling thread's stack.
    pub fn is_guard(addr: u64) -> bool {
        let guard = sched::this_thread().and_then(|t| t.guard());
        guard.is_some_and(|g| Extent::touching(addr, 1).is_some_and(|page| g.overlaps(page)))
    }

    unsafe extern "Rust" {
        /// The runtime crate's: has `use_name` called with the name that std knows the calling
        /// thread by, if it has one. Only for threads that std started.
        safe fn segue_thread_name(use_name: &mut dyn FnMut(&str));
    }

    /// The calling thread's name, for reports: std's where it has one.
    pub struct Name;

    impl fmt::Display for Name {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Some(thread) = sched::this_thread() else {
                return f.write_str("none");
            };
            let mut told = None;
            if thread.kind() == Kind::App {
                segue_thread_name(&mut |name| told = Some(write!(f, "{name:?}")));
            }
            told.unwrap_or_else(|| f.write_str(thread.name()))
        }
    }

    /// Keeps the calling thread on the vCPU it is on.
    #[derive(Debug)]
    pub struct Pin {
        before: u32,
        /// A thread pins itself.
        _own: PhantomData<*mut ()>,
    }

    /// Keeps the calling thread where it is until the value is dropped.
    #[must_use]
    pub fn pin() -> Pin {
        x86_64::instructions::interrupts::without_interrupts(|| {
            let here = crate::cpu::percpu::this().vcpu();
            let before =
                sched::this_thread().map_or(NOWHERE, |t| t.pinned.swap(here, Ordering::Relaxed));
            Pin {
                before,
                _own: PhantomData,
            }
        })
    }

    impl Drop for Pin {
        fn drop(&mut self) {
            if let Some(t) = sched::this_thread() {
                t.pinned.store(self.before, Ordering::Relaxed);
            }
        }
    }
}
