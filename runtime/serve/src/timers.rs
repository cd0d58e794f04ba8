//! Deadlines of connections: setting one costs nothing in the usual case, that it moves later.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

/// A connection's deadline.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    /// When it is over.
    at: Instant,
    /// When the heap will have a look at it; never later than `at`.
    look: Instant,
}

impl Deadline {
    /// How long it is until then.
    pub fn left(&self, now: Instant) -> Duration {
        self.at.saturating_duration_since(now)
    }
}

/// When to look at which connection, known by its index and its serial number.
#[derive(Debug, Default)]
pub struct Timers(BinaryHeap<Reverse<(Instant, usize, u64)>>);

impl Timers {
    /// The first deadline of a connection.
    pub fn start(&mut self, index: usize, serial: u64, at: Instant) -> Deadline {
        self.0.push(Reverse((at, index, serial)));
        Deadline { at, look: at }
    }

    /// Moves a deadline.
    pub fn set(&mut self, deadline: &mut Deadline, index: usize, serial: u64, at: Instant) {
        deadline.at = at;
        if at < deadline.look {
            deadline.look = at;
            self.0.push(Reverse((at, index, serial)));
        }
    }

    /// When to call [`Timers::due`] next.
    pub fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next connection to look at: its index, its serial number, and what to ask
    /// [`Timers::is_over`] with.
    pub fn due(&mut self, now: Instant) -> Option<(usize, u64, Look)> {
        let &Reverse((at, index, serial)) = self.0.peek()?;
        (at <= now).then(|| {
            self.0.pop();
            (index, serial, Look(at))
        })
    }

    /// Whether the deadline of the connection to be looked at is over. If not, it stays known.
    pub fn is_over(
        &mut self,
        deadline: &mut Deadline,
        (index, serial, look): (usize, u64, Look),
        now: Instant,
    ) -> bool {
        if deadline.look != look.0 {
            // An entry from before the deadline moved earlier: another one stands for it.
            return false;
        }
        if deadline.at <= now {
            return true;
        }
        deadline.look = deadline.at;
        self.0.push(Reverse((deadline.at, index, serial)));
        false
    }
}

/// When it was to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look(Instant);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_told_once_it_is_over_and_not_before() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut timers = Timers::default();
        let mut deadline = timers.start(7, 1, at(100));
        let told = |timers: &mut Timers, deadline: &mut Deadline, ms| {
            let due = timers.due(at(ms))?;
            assert_eq!((due.0, due.1), (7, 1));
            Some(timers.is_over(deadline, due, at(ms)))
        };
        timers.set(&mut deadline, 7, 1, at(200));
        assert_eq!(timers.next(), Some(at(100)));
        assert_eq!(told(&mut timers, &mut deadline, 99), None);
        assert_eq!(told(&mut timers, &mut deadline, 100), Some(false));
        assert_eq!(timers.next(), Some(at(200)));
        timers.set(&mut deadline, 7, 1, at(150));
        assert_eq!(timers.next(), Some(at(150)));
        timers.set(&mut deadline, 7, 1, at(180));
        assert_eq!(told(&mut timers, &mut deadline, 149), None);
        assert_eq!(told(&mut timers, &mut deadline, 179), Some(false));
        assert_eq!(told(&mut timers, &mut deadline, 179), None);
        assert_eq!(told(&mut timers, &mut deadline, 180), Some(true));
        // What is left of the old entry is passed over.
        assert_eq!(timers.next(), Some(at(200)));
        assert_eq!(told(&mut timers, &mut deadline, 300), Some(false));
        assert_eq!(timers.next(), None);
    }
}
