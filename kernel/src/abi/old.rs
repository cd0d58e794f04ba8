//! The system ABI that Rust's std for `x86_64-unknown-hermit` calls (crate `hermit-abi` declares
//! it), implemented for Xen. What std does not reach in an app is dropped by the linker.

use crate::end;
use crate::memory::heap;
use crate::xen::console;
use crate::xen::hypercall::{self, ShutdownReason};
use crate::xen::{Committed, shared_info};
use core::alloc::Layout;
use core::sync::atomic::{AtomicU32, Ordering};

const EBADF: i32 = 9;
const EFAULT: i32 = 14;
const EINVAL: i32 = 22;
const ENOSYS: i32 = 38;
const ETIMEDOUT: i32 = 110;

const CLOCK_REALTIME: i32 = 1;
const CLOCK_MONOTONIC: i32 = 4;
const FUTEX_RELATIVE_TIMEOUT: u32 = 1;

/// `struct timespec`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Timespec {
    tv_sec: i64,
    tv_nsec: i32,
}

impl Timespec {
    /// As ns; `None` if it is negative, not normalised or beyond 584 years.
    fn as_ns(self) -> Option<u64> {
        let (sec, nsec) = (
            u64::try_from(self.tv_sec).ok()?,
            u64::try_from(self.tv_nsec).ok()?,
        );
        if nsec >= 1_000_000_000 {
            return None;
        }
        sec.checked_mul(1_000_000_000)?.checked_add(nsec)
    }
}

fn layout(size: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), align).ok()
}

#[unsafe(no_mangle)]
extern "C" fn sys_malloc(size: usize, align: usize) -> *mut u8 {
    layout(size, align).map_or(core::ptr::null_mut(), heap::alloc)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_free(ptr: *mut u8, size: usize, align: usize) {
    if let Some(layout) = layout(size, align) {
        // SAFETY: std passes what it got from `sys_malloc`, with the same layout.
        unsafe { heap::dealloc(ptr, layout) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_realloc(ptr: *mut u8, size: usize, align: usize, new: usize) -> *mut u8 {
    match layout(size, align) {
        // SAFETY: as above; `new` is not 0 (GlobalAlloc's rule).
        Some(layout) => unsafe { heap::realloc(ptr, layout, new.max(1)) },
        None => core::ptr::null_mut(),
    }
}

/// `struct iovec`.
#[repr(C)]
#[derive(Debug)]
pub struct IoVec {
    base: *const u8,
    len: usize,
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_write(fd: i32, buf: *const u8, len: usize) -> isize {
    if fd != 1 && fd != 2 {
        return -(EBADF as isize);
    }
    if len == 0 {
        return 0;
    }
    if buf.is_null() {
        return -(EFAULT as isize);
    }
    // SAFETY: std passes a slice.
    console::write(unsafe { core::slice::from_raw_parts(buf, len) });
    len as isize
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_writev(fd: i32, iov: *const IoVec, count: usize) -> isize {
    let mut total = 0;
    for i in 0..count {
        // SAFETY: std passes an array of `count` slices.
        let written = unsafe {
            let v = &*iov.add(i);
            sys_write(fd, v.base, v.len)
        };
        if written < 0 {
            return if total > 0 { total } else { written };
        }
        total += written;
    }
    total
}

#[unsafe(no_mangle)]
extern "C" fn sys_exit(status: i32) -> ! {
    if status != 0 {
        console::println!("segue: exit status={status}");
    }
    end::end(ShutdownReason::Poweroff)
}

#[unsafe(no_mangle)]
extern "C" fn sys_abort() -> ! {
    end::end(ShutdownReason::Crash)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_clock_gettime(clock: i32, out: *mut Timespec) -> i32 {
    let (sec, nsec) = match clock {
        CLOCK_REALTIME => shared_info::wall_clock(),
        CLOCK_MONOTONIC => {
            let ns = shared_info::now();
            (ns / 1_000_000_000, (ns % 1_000_000_000) as u32)
        }
        _ => return -EINVAL,
    };
    // SAFETY: std passes a place for a timespec.
    unsafe {
        out.write(Timespec {
            tv_sec: sec as i64,
            tv_nsec: nsec as i32,
        })
    };
    0
}

fn sleep_ns(ns: u64) -> i32 {
    let deadline = shared_info::now().saturating_add(ns);
    match Committed::get() {
        Some(token) => {
            crate::cpu::smp::sleep_until(token, deadline);
            0
        }
        // A trial has no timer: it would have to ask Xen for one.
        None => -ENOSYS,
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_usleep(us: u64) {
    sleep_ns(us.saturating_mul(1000));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_nanosleep(time: *const Timespec) -> i32 {
    // SAFETY: std passes a timespec.
    match unsafe { time.read() }.as_ns() {
        Some(ns) => sleep_ns(ns),
        None => -EINVAL,
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_yield() {
    if let Some(token) = Committed::get() {
        hypercall::sched_yield(token);
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_getpid() -> i32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn sys_available_parallelism() -> usize {
    crate::cpu::smp::online() as usize
}

/// Waits while `*address == expected`. There are no threads to switch to: it polls, giving the
/// processor to another vCPU between looks.
#[unsafe(no_mangle)]
unsafe extern "C" fn sys_futex_wait(
    address: *const AtomicU32,
    expected: u32,
    timeout: *const Timespec,
    flags: u32,
) -> i32 {
    // SAFETY: std passes a live atomic, and a timespec or NULL.
    let (word, timeout) = unsafe { (&*address, timeout.as_ref()) };
    let deadline = match timeout.map(|t| t.as_ns()) {
        None => u64::MAX,
        Some(None) => return -EINVAL,
        Some(Some(ns)) if flags & FUTEX_RELATIVE_TIMEOUT != 0 => {
            shared_info::now().saturating_add(ns)
        }
        Some(Some(ns)) => ns,
    };
    while word.load(Ordering::Acquire) == expected {
        if shared_info::now() >= deadline {
            return -ETIMEDOUT;
        }
        sys_yield();
    }
    0
}

/// Waiters poll: nothing to do. The number woken is not known.
#[unsafe(no_mangle)]
extern "C" fn sys_futex_wake(_address: *const AtomicU32, _count: i32) -> i32 {
    0
}

#[unsafe(no_mangle)]
extern "C" fn sys_get_errno() -> i32 {
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_read_entropy(buf: *mut u8, len: usize, _flags: u32) -> isize {
    for done in 0..len {
        let mut value = 0;
        // SAFETY: the target has RDRAND (its base features say so).
        let ok = (0..16).any(|_| unsafe { core::arch::x86_64::_rdrand64_step(&mut value) } == 1);
        if !ok {
            return -(ENOSYS as isize);
        }
        // SAFETY: std passes a buffer of `len` bytes.
        unsafe { buf.add(done).write(value as u8) };
    }
    len as isize
}
