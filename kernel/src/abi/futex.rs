//! Futexes: what all of std's locks wait with.

use crate::abi::answer_int;
use crate::abi::errno::Errno;
use crate::abi::time::{Timespec, as_ns};
use crate::task::futex::{NotWoken, Table};
use crate::task::{self, sys};
use core::sync::atomic::{AtomicU32, Ordering};
use hermit_abi::FUTEX_RELATIVE_TIMEOUT;

static FUTEXES: Table<128> = Table::new();

fn wait(
    word: &AtomicU32,
    expected: u32,
    timeout: Option<&Timespec>,
    flags: u32,
) -> Result<i32, Errno> {
    if flags & !FUTEX_RELATIVE_TIMEOUT != 0 {
        return Err(Errno::EINVAL);
    }
    let deadline = match timeout {
        None => None,
        Some(t) => {
            let ns = as_ns(*t).ok_or(Errno::EINVAL)?;
            let base = if flags & FUTEX_RELATIVE_TIMEOUT != 0 {
                task::now()
            } else {
                0
            };
            Some(base.saturating_add(ns))
        }
    };
    let unchanged = || word.load(Ordering::Acquire) == expected;
    let Some(me) = sys::current() else {
        // Nothing blocks here: who waits looks again, until the time is over.
        core::hint::spin_loop();
        return match deadline {
            Some(d) if unchanged() && task::now() >= d => Err(Errno::ETIMEDOUT),
            _ => Ok(0),
        };
    };
    let address = core::ptr::from_ref(word).addr();
    match FUTEXES.wait(address, deadline, me, unchanged) {
        Ok(()) => Ok(0),
        Err(NotWoken::Changed) => Err(Errno::EAGAIN),
        Err(NotWoken::TimedOut) => Err(Errno::ETIMEDOUT),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_futex_wait(
    address: *const AtomicU32,
    expected: u32,
    timeout: *const Timespec,
    flags: u32,
) -> i32 {
    // SAFETY: std passes a live atomic, and a timespec or NULL.
    let (word, timeout) = unsafe { (address.as_ref(), timeout.as_ref()) };
    answer_int(match word {
        Some(word) => wait(word, expected, timeout, flags),
        None => Err(Errno::EINVAL),
    })
}

#[unsafe(no_mangle)]
extern "C" fn sys_futex_wake(address: *const AtomicU32, count: i32) -> i32 {
    let woken = match usize::try_from(count) {
        Ok(_) if address.is_null() => Err(Errno::EINVAL),
        Ok(count) => Ok(FUTEXES.wake(address.addr(), count)),
        Err(_) => Err(Errno::EINVAL),
    };
    answer_int(woken)
}
