//! An HTTP/1.1 server (RFC 9110, 9112) for a tree of files that does not change.
//!
//! All that a request can name is in a table made at the start ([`Site`]): whatever a path says,
//! nothing else is reached, and nothing is opened or looked up on the way to an answer.
//!
//! Parsing is `httparse`'s, dates are `httpdate`'s, connections are `segue-serve`'s; this crate
//! decides what a request means: [`request`] parses a head into a [`request::Head`], [`answer`]
//! picks the status and the headers, [`metrics`] counts.

pub mod answer;
pub mod metrics;
pub mod request;
pub mod service;
pub mod site;

pub use metrics::Gauge;
pub use service::{Http, Known, Limits};
pub use site::Site;

#[cfg(test)]
mod tests;
