//! The system ABI that Rust's std for `x86_64-unknown-hermit` calls (crate `hermit-abi` declares
//! it), implemented for Xen. What std does not reach in an app is dropped by the linker.
//!
//! Every function gives a negated [`errno::Errno`] where it fails, and the calling thread's
//! `sys_get_errno` says it again.

pub mod errno;
pub mod fd;
#[cfg(target_os = "hermit")]
mod files;
pub mod socket;

#[cfg(target_os = "hermit")]
mod console;
#[cfg(target_os = "hermit")]
mod eventfd;
#[cfg(target_os = "hermit")]
mod futex;
#[cfg(target_os = "hermit")]
mod io;
#[cfg(target_os = "hermit")]
mod memory;
#[cfg(target_os = "hermit")]
mod poll;
#[cfg(target_os = "hermit")]
pub mod random;
#[cfg(target_os = "hermit")]
mod tasks;
pub mod time;
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "for the console")
)]
pub(crate) mod typed;

#[cfg(target_os = "hermit")]
pub(crate) use console::open as open_console;

/// What a function of the ABI returns: the value, or the error, which the thread remembers.
#[cfg(target_os = "hermit")]
pub(crate) fn answer<T: TryInto<isize>>(result: Result<T, errno::Errno>) -> isize {
    let result = result.and_then(|v| v.try_into().map_err(|_| errno::Errno::EOVERFLOW));
    result.unwrap_or_else(|e| {
        crate::task::set_errno(e);
        -(e.0 as isize)
    })
}

/// As [`answer`], for functions that return an int.
#[cfg(target_os = "hermit")]
pub(crate) fn answer_int<T: TryInto<isize>>(result: Result<T, errno::Errno>) -> i32 {
    answer(result) as i32
}
