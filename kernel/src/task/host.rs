//! What the kernel's threads offer, over the host's own: for tests of what is built on them.

pub use crate::sync::Lock;
pub use core::sync::atomic::{AtomicU8, AtomicU32, fence};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

/// A thread that can be woken.
#[derive(Clone, Debug)]
pub struct Handle(thread::Thread);

impl Handle {
    /// Ends its [`park`], or the next one.
    pub fn unpark(&self) {
        self.0.unpark();
    }
}

/// The calling thread.
pub fn current() -> Option<Handle> {
    Some(Handle(thread::current()))
}

/// Blocks until woken or until `deadline` (of [`now`]'s clock, in ns); may return early.
pub fn park(deadline: Option<u64>) {
    match deadline {
        None => thread::park(),
        Some(d) => thread::park_timeout(Duration::from_nanos(d.saturating_sub(now()))),
    }
}

/// ns since the first call.
pub fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}

/// Starts a thread.
///
/// # Errors
/// As the host says.
pub fn spawn(name: &str, f: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let builder = thread::Builder::new().name(name.into());
    builder.spawn(f).map(drop)
}

/// Lets other threads run.
pub fn yield_now() {
    thread::yield_now();
}
