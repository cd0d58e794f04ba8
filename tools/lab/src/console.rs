//! What a domain prints, line by line.

use std::fmt;
use std::io::Read;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::domain::EndReason;

/// Where a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The PV console.
    Pv,
    /// The emulated serial port of an HVM domain.
    Uart,
}

/// A line that a domain printed.
#[derive(Debug, Clone)]
pub struct Line {
    /// Its text, without the line end.
    pub text: String,
    /// Where it came from.
    pub source: Source,
    /// When its end arrived on this machine, counted from the moment the domain
    /// was told to run.
    pub at: Duration,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.source {
            Source::Pv => "",
            Source::Uart => "uart: ",
        };
        write!(f, "{:9.3} {mark}{}", self.at.as_secs_f64(), self.text)
    }
}

/// Lines and end of one domain; filled by reader threads.
#[derive(Debug)]
pub(crate) struct Log {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    start: Instant,
    lines: Vec<Line>,
    partial: [Vec<u8>; 2],
    last_byte: Instant,
    end: Option<(EndReason, Instant)>,
}

/// What a wait ended with.
pub(crate) enum Waited<T> {
    Found(T),
    Ended(EndReason),
    TimedOut,
}

/// How long lines may still be on their way after the domain's end was seen.
const DRAIN_IDLE: Duration = Duration::from_millis(700);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

impl Log {
    pub(crate) fn new() -> Log {
        let now = Instant::now();
        Log {
            state: Mutex::new(State {
                start: now,
                lines: Vec::new(),
                partial: [Vec::new(), Vec::new()],
                last_byte: now,
                end: None,
            }),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change to the state is complete before the lock is released.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The domain runs from now on.
    pub(crate) fn start_now(&self) {
        self.state().start = Instant::now();
    }

    /// The time since then.
    pub(crate) fn elapsed(&self) -> Duration {
        self.state().start.elapsed()
    }

    /// Reads a stream to its end, adding its lines.
    pub(crate) fn follow(&self, source: Source, mut stream: impl Read) {
        let mut buffer = [0; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => self.add(source, &buffer[..count]),
            }
        }
        let mut state = self.state();
        if !state.partial[source as usize].is_empty() {
            state.finish_line(source);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn add(&self, source: Source, bytes: &[u8]) {
        let mut state = self.state();
        state.last_byte = Instant::now();
        for &byte in bytes {
            if byte == b'\n' {
                state.finish_line(source);
            } else {
                state.partial[source as usize].push(byte);
            }
        }
        drop(state);
        self.changed.notify_all();
    }

    /// The domain ended.
    pub(crate) fn set_end(&self, reason: EndReason) {
        let mut state = self.state();
        if state.end.is_none() {
            state.end = Some((reason, Instant::now()));
        }
        drop(state);
        self.changed.notify_all();
    }

    pub(crate) fn end(&self) -> Option<EndReason> {
        self.state().end.map(|(reason, _)| reason)
    }

    /// All lines from the given one on; an unfinished last line is included
    /// once the domain has ended.
    pub(crate) fn lines_from(&self, first: usize) -> Vec<Line> {
        let state = self.state();
        state.lines.get(first..).unwrap_or_default().to_vec()
    }

    /// Waits for a line at or after `first` that satisfies `wanted`, and returns
    /// its number with it.
    pub(crate) fn wait_line(
        &self,
        first: usize,
        mut wanted: impl FnMut(&Line) -> bool,
        timeout: Duration,
    ) -> Waited<(usize, Line)> {
        let deadline = Instant::now() + timeout;
        let mut next = first;
        let mut state = self.state();
        loop {
            while let Some(line) = state.lines.get(next) {
                if wanted(line) {
                    return Waited::Found((next, line.clone()));
                }
                next += 1;
            }
            let now = Instant::now();
            let mut wait_until = deadline;
            if let Some(until) = state.drained_at() {
                if now >= until {
                    if state.finish_partials() {
                        continue;
                    }
                    return state
                        .end
                        .map_or(Waited::TimedOut, |(reason, _)| Waited::Ended(reason));
                }
                wait_until = wait_until.min(until);
            }
            if now >= deadline {
                return Waited::TimedOut;
            }
            state = self.wait(state, wait_until - now);
        }
    }

    /// Waits for the domain's end and for the lines it still had under way.
    pub(crate) fn wait_end(&self, timeout: Duration) -> Option<EndReason> {
        let deadline = Instant::now() + timeout;
        let mut state = self.state();
        loop {
            let now = Instant::now();
            match state.drained_at() {
                Some(until) if now >= until => {
                    state.finish_partials();
                    return state.end.map(|(reason, _)| reason);
                }
                Some(until) => state = self.wait(state, until - now),
                None if now >= deadline => return None,
                None => state = self.wait(state, deadline - now),
            }
        }
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, time: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, time)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// The last lines, for error messages.
    pub(crate) fn tail(&self, count: usize) -> String {
        let state = self.state();
        let mut text: Vec<String> = state.lines[state.lines.len().saturating_sub(count)..]
            .iter()
            .map(Line::to_string)
            .collect();
        for source in [Source::Pv, Source::Uart] {
            let partial = &state.partial[source as usize];
            if !partial.is_empty() {
                let partial = String::from_utf8_lossy(partial);
                text.push(format!("{source:?}, unfinished: {partial}"));
            }
        }
        if text.is_empty() {
            "(it printed nothing)".to_owned()
        } else {
            text.join("\n")
        }
    }
}

impl State {
    fn finish_line(&mut self, source: Source) {
        let bytes = std::mem::take(&mut self.partial[source as usize]);
        let text = String::from_utf8_lossy(&bytes);
        self.lines.push(Line {
            text: text.trim_end_matches('\r').to_owned(),
            source,
            at: self.start.elapsed(),
        });
    }

    /// Turns unfinished lines into lines; true if there were any.
    fn finish_partials(&mut self) -> bool {
        let before = self.lines.len();
        for source in [Source::Pv, Source::Uart] {
            if !self.partial[source as usize].is_empty() {
                self.finish_line(source);
            }
        }
        self.lines.len() > before
    }

    /// When all that the ended domain printed can be taken as arrived.
    fn drained_at(&self) -> Option<Instant> {
        let (_, seen) = self.end?;
        Some((self.last_byte.max(seen) + DRAIN_IDLE).min(seen + DRAIN_LIMIT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(10);

    fn texts(log: &Log) -> Vec<String> {
        log.lines_from(0)
            .into_iter()
            .map(|line| line.text)
            .collect()
    }

    #[test]
    fn lines_are_split_per_source() {
        let log = Log::new();
        log.add(Source::Pv, b"he");
        log.add(Source::Uart, b"uart\r\n");
        log.add(Source::Pv, b"llo\nwor");
        assert_eq!(texts(&log), ["uart", "hello"]);
        log.follow(Source::Pv, &b"ld"[..]);
        assert_eq!(texts(&log), ["uart", "hello", "world"]);
    }

    #[test]
    fn wait_line_finds_from_where_it_is_told() {
        let log = Log::new();
        log.add(Source::Pv, b"a\nb\na\n");
        let is_a = |line: &Line| line.text == "a";
        assert!(matches!(
            log.wait_line(0, is_a, SHORT),
            Waited::Found((0, _))
        ));
        assert!(matches!(
            log.wait_line(1, is_a, SHORT),
            Waited::Found((2, _))
        ));
        assert!(matches!(log.wait_line(3, is_a, SHORT), Waited::TimedOut));
    }

    #[test]
    fn an_end_stops_the_wait_and_keeps_the_unfinished_line() {
        let log = Log::new();
        log.add(Source::Pv, b"last words");
        log.set_end(EndReason::Crash);
        assert_eq!(log.wait_end(SHORT), Some(EndReason::Crash));
        assert_eq!(texts(&log), ["last words"]);
        let waited = log.wait_line(0, |_| false, Duration::from_secs(9));
        assert!(matches!(waited, Waited::Ended(EndReason::Crash)));
    }

    #[test]
    fn tail_says_when_nothing_came() {
        assert_eq!(Log::new().tail(3), "(it printed nothing)");
    }
}
