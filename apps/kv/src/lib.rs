//! A key-value store in memory, spoken to in Redis's protocol, RESP2: strings, counters, expiry.
//!
//! [`resp`] parses requests and writes replies, [`store`] keeps values, in an [`arena`] that stays
//! where it is when the image is replaced, [`command`] is the table of
//! commands and what each does, [`service`] puts them on connections of `segue-serve`. Commands
//! are atomic: one lock is taken for all that arrived together.
//!
//! Words of errors are those of Redis 7, because clients look at them.

pub mod arena;
pub mod command;
mod glob;
pub mod resp;
pub mod service;
pub mod store;

pub use service::{Counted, Kv, Limits};

#[cfg(test)]
mod tests;
