//! Queues of threads that wait for something to become so.
//!
//! A thread is on the queue before it looks at what it waits for, and whoever changes that wakes
//! the queue afterwards: so no wake is lost. A wake that reaches a thread which no longer needs it
//! is passed on. `tests/loom.rs` runs this file in every order that loom can think of.

use super::sys::{self, Handle, Lock};
use alloc::collections::VecDeque;

/// Threads that wait, first come first served.
#[derive(Debug)]
pub struct WaitQueue {
    waiters: Lock<Waiters>,
}

#[derive(Debug)]
struct Waiters {
    /// Ascending tickets, so that one can be found by halving.
    queue: VecDeque<(u64, Handle)>,
    next: u64,
}

impl Default for WaitQueue {
    fn default() -> Self {
        Self::new()
    }
}

impl WaitQueue {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            waiters: Lock::new(Waiters {
                queue: VecDeque::new(),
                next: 0,
            }),
        }
    }

    /// Blocks the calling thread until `ready` gives something, or `deadline` (system time, in ns)
    /// is over: `None`. `ready` is called with no lock of the queue held, again after each wake.
    ///
    /// Where nothing can block (on trial, before there are threads) it gives `None` at once.
    pub fn wait_until<R>(
        &self,
        deadline: Option<u64>,
        mut ready: impl FnMut() -> Option<R>,
    ) -> Option<R> {
        loop {
            if let Some(result) = ready() {
                return Some(result);
            }
            let me = sys::current()?;
            let ticket = self.enroll(me);
            if let Some(result) = ready() {
                if !self.leave(ticket) {
                    // Woken for what it took, or for something else: somebody may still want that.
                    self.wake_one();
                }
                return Some(result);
            }
            while self.is_waiting(ticket) {
                if deadline.is_some_and(|d| sys::now() >= d) {
                    if self.leave(ticket) {
                        return None;
                    }
                    break;
                }
                sys::park(deadline);
            }
        }
    }

    /// Wakes all who wait now. May be called in interrupt context.
    pub fn wake_all(&self) {
        let mut waiters = self.waiters.lock();
        while let Some((_, handle)) = waiters.queue.pop_front() {
            handle.unpark();
        }
    }

    /// Wakes who has waited longest. May be called in interrupt context.
    pub fn wake_one(&self) {
        let first = self.waiters.lock().queue.pop_front();
        if let Some((_, handle)) = first {
            handle.unpark();
        }
    }

    /// Adds the calling thread, for a wait on several queues: it is taken off by a wake or by
    /// [`leave`](Self::leave).
    pub(crate) fn enroll(&self, me: Handle) -> u64 {
        let mut waiters = self.waiters.lock();
        let ticket = waiters.next;
        waiters.next += 1;
        waiters.queue.push_back((ticket, me));
        ticket
    }

    /// Whether no wake has taken it off.
    pub(crate) fn is_waiting(&self, ticket: u64) -> bool {
        self.waiters.lock().find(ticket).is_ok()
    }

    /// Takes it off; false if a wake has done so.
    pub(crate) fn leave(&self, ticket: u64) -> bool {
        let mut waiters = self.waiters.lock();
        let found = waiters.find(ticket);
        if let Ok(at) = found {
            waiters.queue.remove(at);
        }
        found.is_ok()
    }
}

impl Waiters {
    fn find(&self, ticket: u64) -> Result<usize, usize> {
        self.queue.binary_search_by_key(&ticket, |(t, _)| *t)
    }
}
