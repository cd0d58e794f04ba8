//! What wait queues and futexes need of the kernel's threads.

use crate::task::sched;
use crate::task::thread::{Kind, Thread};
use crate::xen::Committed;
use alloc::sync::Arc;

pub use crate::sync::Lock;
pub use crate::xen::shared_info::now;
pub use core::sync::atomic::{AtomicU8, AtomicU32, fence};

/// A thread that can be woken.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Thread>);

impl Handle {
    /// Ends its [`park`], or the next one. May be called in interrupt context.
    pub fn unpark(&self) {
        sched::unpark(&self.0);
    }
}

/// The calling thread; `None` where nothing can block: on trial, with interrupts off, before there
/// are threads.
pub fn current() -> Option<Handle> {
    Committed::get()?;
    if !x86_64::instructions::interrupts::are_enabled() {
        return None;
    }
    let thread = sched::this_handle()?;
    (thread.kind() != Kind::Idle).then_some(Handle(thread))
}

/// Blocks until woken or until `deadline` (system time, in ns); may return early.
pub fn park(deadline: Option<u64>) {
    sched::park(deadline);
}
