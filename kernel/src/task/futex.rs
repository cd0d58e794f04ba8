//! Futexes: threads that wait while a word has a value, found by the word's address.
//!
//! The word is looked at under the lock of its bucket, and a wake takes that lock: a thread either
//! sees the new value or is on the list when the wake looks there. `tests/loom.rs` tries all orders.

use super::sys::{self, Handle, Lock};
use alloc::collections::VecDeque;

/// A wait that ended without a wake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotWoken {
    /// The word had another value.
    Changed,
    /// The deadline came first.
    TimedOut,
}

#[derive(Debug)]
struct Waiter {
    address: usize,
    ticket: u64,
    handle: Handle,
}

#[derive(Debug)]
struct Bucket {
    waiters: VecDeque<Waiter>,
    next: u64,
}

/// Waiting threads by the address of their word, in `N` lists.
#[derive(Debug)]
pub struct Table<const N: usize> {
    buckets: [Lock<Bucket>; N],
}

impl<const N: usize> Default for Table<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Table<N> {
    /// Nobody waits.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            buckets: [const {
                Lock::new(Bucket {
                    waiters: VecDeque::new(),
                    next: 0,
                })
            }; N],
        }
    }

    /// Words are 4 bytes; Fibonacci hashing spreads neighbours.
    fn bucket(&self, address: usize) -> &Lock<Bucket> {
        let hash = (address as u64 >> 2).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.buckets[hash as usize % N]
    }

    /// Blocks the calling thread while `unchanged` says that the word at `address` has the value
    /// it is waited with, until [`wake`](Self::wake) or the deadline (system time, in ns).
    ///
    /// # Errors
    /// See [`NotWoken`].
    pub fn wait(
        &self,
        address: usize,
        deadline: Option<u64>,
        me: Handle,
        unchanged: impl FnOnce() -> bool,
    ) -> Result<(), NotWoken> {
        let bucket = self.bucket(address);
        let ticket = {
            let mut b = bucket.lock();
            if !unchanged() {
                return Err(NotWoken::Changed);
            }
            let ticket = b.next;
            b.next += 1;
            b.waiters.push_back(Waiter {
                address,
                ticket,
                handle: me,
            });
            ticket
        };
        loop {
            sys::park(deadline);
            let mut b = bucket.lock();
            let Ok(at) = b.waiters.binary_search_by_key(&ticket, |w| w.ticket) else {
                return Ok(());
            };
            if deadline.is_some_and(|d| sys::now() >= d) {
                b.waiters.remove(at);
                return Err(NotWoken::TimedOut);
            }
        }
    }

    /// Wakes up to `count` threads that wait on the word at `address`; says how many.
    pub fn wake(&self, address: usize, count: usize) -> usize {
        let mut bucket = self.bucket(address).lock();
        let mut woken = 0;
        let mut at = 0;
        while woken < count {
            match bucket.waiters.get(at) {
                None => break,
                Some(w) if w.address != address => at += 1,
                Some(_) => {
                    if let Some(w) = bucket.waiters.remove(at) {
                        w.handle.unpark();
                        woken += 1;
                    }
                }
            }
        }
        woken
    }
}
