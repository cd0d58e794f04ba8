//! `eventfd`: a counter to wait for, also together with sockets, in `poll`.
//!
//! One that may block is as ESP-IDF's: a read takes what there is, be it 0, and never waits. Crate
//! `polling`, which is what uses it on this target, takes a notification once for each time that it
//! was sent, although one read takes all: with Linux's counter its second read waits for ever, with
//! the poller locked.

use crate::abi::answer_int;
use crate::abi::errno::Errno;
use crate::abi::fd::{self, Object, Ready, Stat};
use crate::sync::Lock;
use crate::task::wait::WaitQueue;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use hermit_abi::{EFD_CLOEXEC, EFD_NONBLOCK, EFD_SEMAPHORE};

/// The highest count.
const MAX: u64 = u64::MAX - 1;

struct EventFd {
    count: Lock<u64>,
    /// A read takes 1, not all.
    semaphore: bool,
    nonblocking: AtomicBool,
    waiters: WaitQueue,
}

impl EventFd {
    /// Until `change` has done something to the count.
    fn until<R>(&self, mut change: impl FnMut(&mut u64) -> Option<R>) -> Result<R, Errno> {
        let mut attempt = || change(&mut self.count.lock());
        let done = if self.nonblocking.load(Ordering::Relaxed) {
            attempt()
        } else {
            self.waiters.wait_until(None, attempt)
        };
        let done = done.ok_or(Errno::EAGAIN)?;
        self.waiters.wake_all();
        Ok(done)
    }
}

impl Object for EventFd {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let out = buf.first_chunk_mut::<8>().ok_or(Errno::EINVAL)?;
        let waits = self.semaphore || self.nonblocking.load(Ordering::Relaxed);
        let taken = self.until(|count| {
            let take = if self.semaphore { 1 } else { *count };
            if take == 0 && !waits {
                return Some(0);
            }
            *count = count.checked_sub(take.max(1))?;
            Some(take)
        })?;
        *out = taken.to_ne_bytes();
        Ok(out.len())
    }

    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        let add = u64::from_ne_bytes(*buf.first_chunk::<8>().ok_or(Errno::EINVAL)?);
        if add > MAX {
            return Err(Errno::EINVAL);
        }
        self.until(|count| {
            *count = count.checked_add(add).filter(|sum| *sum <= MAX)?;
            Some(())
        })?;
        Ok(8)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(Stat::default())
    }

    fn set_nonblocking(&self, on: bool) -> Result<(), Errno> {
        self.nonblocking.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn readiness(&self) -> Ready {
        let count = *self.count.lock();
        let mut ready = Ready::NONE;
        if count > 0 {
            ready |= Ready::READ;
        }
        if count < MAX {
            ready |= Ready::WRITE;
        }
        ready
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        Some(&self.waiters)
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_eventfd(initial: u64, flags: i16) -> i32 {
    let known = EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC;
    answer_int(if flags & !known != 0 || initial > MAX {
        Err(Errno::EINVAL)
    } else {
        fd::insert(Arc::new(EventFd {
            count: Lock::new(initial),
            semaphore: flags & EFD_SEMAPHORE != 0,
            nonblocking: AtomicBool::new(flags & EFD_NONBLOCK != 0),
            waiters: WaitQueue::new(),
        }))
    })
}
