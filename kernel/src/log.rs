//! The `log` crate's records, on the console: `log: level=warn target=app::part message="…"`.
//!
//! `segue.log=` on the command line says from which level on: off, error, warn, info (the default),
//! debug or trace.

use crate::boot;
use crate::xen::console::{Escaped, println};
use log::{LevelFilter, Log, Metadata, Record};

struct Console;

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                log::Level::Error => "error",
                log::Level::Warn => "warn",
                log::Level::Info => "info",
                log::Level::Debug => "debug",
                log::Level::Trace => "trace",
            };
            println!(
                "log: level={level} target={} message=\"{}\"",
                record.target(),
                Escaped(record.args())
            );
        }
    }

    fn flush(&self) {}
}

/// Has records printed from here on.
pub(crate) fn start() {
    let option = boot::machine().cmdline.option("log");
    let level = option.map_or(Some(LevelFilter::Info), |o| o.parse().ok());
    log::set_max_level(level.unwrap_or(LevelFilter::Info));
    let _ = log::set_logger(&Console);
    if let (Some(option), None) = (option, level) {
        log::warn!("segue.log={option} is none of off, error, warn, info, debug, trace");
    }
}
