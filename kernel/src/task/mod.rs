//! Threads: on all vCPUs, preempted, blocked in queues of what they wait for.

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

#[cfg(not(target_os = "hermit"))]
#[path = "host.rs"]
pub mod sys;

pub use sys::{now, spawn};
