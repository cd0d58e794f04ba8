//! Waiting for what a backend does: the wait queues and the clock of threads.

pub use crate::task::now;
pub use crate::task::wait::WaitQueue;
