//! The network.

pub mod tcp;
