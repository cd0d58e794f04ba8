//! Numbers for Prometheus, in its text format 0.0.4.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// The statuses this server answers with.
pub const STATUSES: [u16; 17] = [
    200, 204, 206, 301, 304, 400, 404, 405, 408, 412, 413, 414, 416, 431, 501, 503, 505,
];

/// Requests by status.
#[derive(Debug, Default)]
pub struct Requests([AtomicU64; STATUSES.len()]);

impl Requests {
    /// Counts an answer.
    pub fn count(&self, status: u16) {
        debug_assert!(STATUSES.contains(&status), "{status} is not in the table");
        self.add(status, 1);
    }

    /// Counts answers of the image before. A status that this one has not is passed over.
    pub fn add(&self, status: u16, count: u64) {
        let at = STATUSES.iter().position(|s| *s == status);
        if let Some(counter) = at.and_then(|at| self.0.get(at)) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Status and number of each that occurred.
    pub fn by_status(&self) -> impl Iterator<Item = (u16, u64)> {
        STATUSES
            .into_iter()
            .zip(self.0.iter().map(|counter| counter.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// A number that is read when somebody asks for it.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    /// Its name, by Prometheus's rules, with its unit.
    pub name: &'static str,
    /// What it is, in a line.
    pub help: &'static str,
    /// Whether it goes down.
    pub kind: Kind,
    /// Reads it.
    pub read: fn() -> f64,
}

/// A page of metrics.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Adds a metric with one value.
    pub fn value(&mut self, name: &str, help: &str, kind: Kind, value: f64) {
        self.head(name, help, kind);
        self.line(name, value);
    }

    /// Starts a metric with labels.
    pub fn head(&mut self, name: &str, help: &str, kind: Kind) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        // Writing to a String can't fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    /// Adds one value of a metric; `name` has its labels.
    pub fn line(&mut self, name: &str, value: f64) {
        let _ = writeln!(self.0, "{name} {value}");
    }

    /// The text.
    #[must_use]
    pub fn text(self) -> String {
        self.0
    }
}
