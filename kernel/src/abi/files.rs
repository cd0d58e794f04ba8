//! Files by path: the calls of `crate::fs`. Those by descriptor are in `io.rs`.

use crate::abi::errno::Errno;
use crate::abi::fd::{self, Stat};
use crate::fs;
use core::ffi::{CStr, c_char};

/// The bytes of a path.
///
/// # Safety
/// `path` is NULL or a C string that lives as long as the result is used.
unsafe fn bytes<'a>(path: *const c_char) -> Result<&'a [u8], Errno> {
    if path.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: the caller's promise.
    Ok(unsafe { CStr::from_ptr(path) }.to_bytes())
}

fn returned(result: Result<(), Errno>) -> i32 {
    result.map_or_else(|error| -error.0, |()| 0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_open(path: *const c_char, flags: i32, mode: i32) -> i32 {
    // SAFETY: std passes a C string.
    let object = unsafe { bytes(path) }.and_then(|path| fs::open(path, flags, mode as u32));
    object.and_then(fd::insert).unwrap_or_else(|error| -error.0)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_unlink(path: *const c_char) -> i32 {
    // SAFETY: std passes a C string.
    returned(unsafe { bytes(path) }.and_then(fs::unlink))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_mkdir(path: *const c_char, mode: u32) -> i32 {
    // SAFETY: std passes a C string.
    returned(unsafe { bytes(path) }.and_then(|path| fs::mkdir(path, mode)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_rmdir(path: *const c_char) -> i32 {
    // SAFETY: std passes a C string.
    returned(unsafe { bytes(path) }.and_then(fs::rmdir))
}

/// Writes what a path leads to.
///
/// # Safety
/// `path` is NULL or a C string, `out` is NULL or a place for a `struct stat`.
unsafe fn stat_to(
    path: *const c_char,
    out: *mut Stat,
    stat: fn(&[u8]) -> Result<Stat, Errno>,
) -> i32 {
    if out.is_null() {
        return -Errno::EFAULT.0;
    }
    // SAFETY: the caller's promise.
    let result = unsafe { bytes(path) }.and_then(stat);
    // SAFETY: the caller's promise.
    returned(result.map(|stat| unsafe { out.write(stat) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_stat(path: *const c_char, out: *mut Stat) -> i32 {
    // SAFETY: std passes a C string and a place for a stat.
    unsafe { stat_to(path, out, fs::stat) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_lstat(path: *const c_char, out: *mut Stat) -> i32 {
    // SAFETY: std passes a C string and a place for a stat.
    unsafe { stat_to(path, out, fs::lstat) }
}
