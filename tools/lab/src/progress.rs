//! Says on stderr what takes long, and for how long it has: a spinner on a
//! terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// One long step.
pub(crate) struct Progress {
    bar: Option<ProgressBar>,
    title: String,
    start: Instant,
}

impl Progress {
    pub(crate) fn start(title: impl Into<String>) -> Progress {
        let title = title.into();
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner().with_style(style);
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("lab: {title}");
            None
        };
        Progress {
            bar,
            title,
            start: Instant::now(),
        }
    }

    /// Shows a detail of the step.
    pub(crate) fn detail(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("lab:   {:5.1}s {text}", self.start.elapsed().as_secs_f64()),
        }
    }

    /// The step is done.
    pub(crate) fn done(self) {
        let elapsed = self.start.elapsed().as_secs_f64();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("lab: {}: done in {elapsed:.1} s", self.title);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
