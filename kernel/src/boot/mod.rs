//! The start: three ways in, one order.
//!
//! [`info`] parses what the loader says, [`cmdline`] the command line. `start` is the first boot
//! (Linux protocol or PVH); the third way, a handover, is `replace/adopt.rs`. Both end with a
//! [`Machine`], which never changes, and the few things that do.

pub mod cmdline;
pub mod info;

#[cfg(target_os = "hermit")]
mod machine;
#[cfg(target_os = "hermit")]
pub mod start;

pub use info::{EntryKind, Module};
#[cfg(target_os = "hermit")]
pub use machine::*;
