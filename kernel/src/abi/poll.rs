//! `poll`: waiting for several descriptors at once.

use crate::abi::answer_int;
use crate::abi::errno::Errno;
use crate::abi::fd::{self, Object, Ready};
use crate::task::{self, sys};
use alloc::sync::Arc;
use alloc::vec::Vec;
use hermit_abi::{POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLRDNORM, POLLWRNORM, pollfd};

const EVENTS: [(i16, Ready); 6] = [
    (POLLIN, Ready::READ),
    (POLLRDNORM, Ready::READ),
    (POLLOUT, Ready::WRITE),
    (POLLWRNORM, Ready::WRITE),
    (POLLERR, Ready::ERROR),
    (POLLHUP, Ready::HANGUP),
];

/// What `poll` says of readiness: what was asked for, errors and hang-ups always.
fn events(wanted: i16, ready: Ready) -> i16 {
    let bits =
        |events: i16, (bit, r): &(i16, Ready)| events | if ready.intersects(*r) { *bit } else { 0 };
    EVENTS.iter().fold(0, bits) & (wanted | POLLERR | POLLHUP)
}

/// Fills in what is ready; says how many are.
fn look(fds: &mut [pollfd], objects: &[Option<Arc<dyn Object>>]) -> usize {
    let mut count = 0;
    for (p, object) in fds.iter_mut().zip(objects) {
        p.revents = match object {
            Some(o) => events(p.events, o.readiness()),
            // A negative number is one to be left out.
            None if p.fd < 0 => 0,
            None => POLLNVAL,
        };
        count += usize::from(p.revents != 0);
    }
    count
}

fn poll(fds: &mut [pollfd], timeout_ms: i32) -> usize {
    let deadline = u64::try_from(timeout_ms)
        .ok()
        .map(|ms| task::now().saturating_add(ms * 1_000_000));
    let objects: Vec<Option<Arc<dyn Object>>> = fds.iter().map(|p| fd::get(p.fd).ok()).collect();
    let queues = || {
        let all = objects.iter().enumerate();
        all.filter_map(|(i, o)| Some((i, o.as_ref()?.waiters()?)))
    };
    let expired = || deadline.is_some_and(|d| task::now() >= d);
    loop {
        let count = look(fds, &objects);
        if count > 0 || expired() {
            return count;
        }
        let Some(me) = sys::current() else {
            return 0;
        };
        // On all queues first; then a look, so that nothing that happens after it is missed.
        let tickets: Vec<u64> = queues().map(|(_, q)| q.enroll(me.clone())).collect();
        let none = look(fds, &objects) == 0;
        while none && !expired() && queues().zip(&tickets).all(|((_, q), t)| q.is_waiting(*t)) {
            sys::park(deadline);
        }
        let count = look(fds, &objects);
        let ends = count > 0 || expired();
        for ((i, queue), ticket) in queues().zip(&tickets) {
            let ready = fds.get(i).is_some_and(|p| p.revents != 0);
            // A wake of one that came here and is not used: for somebody else. Not while this
            // goes on waiting, or two would wake each other for ever.
            if !queue.leave(*ticket) && ends && !ready {
                queue.wake_one();
            }
        }
        if ends {
            return count;
        }
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_poll(fds: *mut pollfd, count: usize, timeout_ms: i32) -> i32 {
    let fds = match count {
        0 => Ok(&mut [][..]),
        _ if fds.is_null() || count > fd::MAX => Err(Errno::EINVAL),
        // SAFETY: std passes an array of as many.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(fds, count) }),
    };
    answer_int(fds.map(|fds| poll(fds, timeout_ms)))
}
