//! Sockets: what the `sys_*` functions of std's `net` need of a descriptor's object.

/// A socket behind a descriptor.
pub trait Socket: Send + Sync {}
