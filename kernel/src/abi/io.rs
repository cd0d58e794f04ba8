//! Reading, writing and the rest of what is done with descriptors.

use crate::abi::errno::Errno;
use crate::abi::fd::{self, Stat};
use crate::abi::{answer, answer_int};
use core::ffi::c_void;
use hermit_abi::{F_DUPFD, F_GETFD, F_GETFL, F_SETFD, F_SETFL, FIONBIO, O_NONBLOCK, O_RDWR};
use hermit_abi::{IOV_MAX, iovec};

/// # Safety
/// `buf` is NULL, or `len` bytes from there are the caller's for as long as `'a`.
unsafe fn bytes<'a>(buf: *const u8, len: usize) -> Result<&'a [u8], Errno> {
    match len {
        0 => Ok(&[]),
        _ if buf.is_null() || isize::try_from(len).is_err() => Err(Errno::EFAULT),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { core::slice::from_raw_parts(buf, len) }),
    }
}

/// # Safety
/// As for [`bytes`], and nobody else uses them. They may be uninitialised: who gets them only
/// writes there.
unsafe fn bytes_mut<'a>(buf: *mut u8, len: usize) -> Result<&'a mut [u8], Errno> {
    match len {
        0 => Ok(&mut []),
        _ if buf.is_null() || isize::try_from(len).is_err() => Err(Errno::EFAULT),
        // SAFETY: the caller's promise.
        _ => Ok(unsafe { core::slice::from_raw_parts_mut(buf, len) }),
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_read(fd: i32, buf: *mut u8, len: usize) -> isize {
    // SAFETY: std passes a buffer.
    answer(fd::get(fd).and_then(|o| o.read(unsafe { bytes_mut(buf, len) }?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_write(fd: i32, buf: *const u8, len: usize) -> isize {
    // SAFETY: std passes a slice.
    answer(fd::get(fd).and_then(|o| o.write(unsafe { bytes(buf, len) }?)))
}

/// Does `each` buffer in turn, until one is not used up; an error counts only at the first.
///
/// # Safety
/// `iov` is an array of `count`.
unsafe fn vectored(
    iov: *const iovec,
    count: usize,
    mut each: impl FnMut(&iovec) -> Result<usize, Errno>,
) -> Result<usize, Errno> {
    if count > IOV_MAX || iov.is_null() && count > 0 {
        return Err(Errno::EINVAL);
    }
    let mut total = 0usize;
    for i in 0..count {
        // SAFETY: the caller's promise.
        let v = unsafe { &*iov.add(i) };
        match each(v) {
            Ok(n) => {
                total += n;
                if n < v.iov_len {
                    break;
                }
            }
            Err(e) if total == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(total)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_readv(fd: i32, iov: *const iovec, count: usize) -> isize {
    answer(fd::get(fd).and_then(|o| {
        // Only the first may wait: what is there is given.
        let mut first = true;
        // SAFETY: std passes an array of buffers.
        unsafe {
            vectored(iov, count, |v| {
                if v.iov_len == 0 {
                    return Ok(0);
                }
                if !core::mem::take(&mut first) && !o.readiness().contains(fd::Ready::READ) {
                    return Ok(0);
                }
                o.read(bytes_mut(v.iov_base.cast(), v.iov_len)?)
            })
        }
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_writev(fd: i32, iov: *const iovec, count: usize) -> isize {
    answer(fd::get(fd).and_then(|o| {
        // SAFETY: std passes an array of slices.
        unsafe {
            vectored(iov, count, |v| {
                o.write(bytes(v.iov_base.cast(), v.iov_len)?)
            })
        }
    }))
}

#[unsafe(no_mangle)]
extern "C" fn sys_close(fd: i32) -> i32 {
    answer_int(fd::close(fd).map(|()| 0))
}

#[unsafe(no_mangle)]
extern "C" fn sys_dup(fd: i32) -> i32 {
    answer_int(fd::dup(fd))
}

#[unsafe(no_mangle)]
extern "C" fn sys_lseek(fd: i32, offset: isize, whence: i32) -> isize {
    let at = fd::get(fd).and_then(|o| o.seek(offset as i64, whence));
    answer(at.and_then(|at| isize::try_from(at).map_err(|_| Errno::EOVERFLOW)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_fstat(fd: i32, stat: *mut Stat) -> i32 {
    answer_int(fd::get(fd).and_then(|o| o.stat()).map(|s| {
        // SAFETY: std passes a place for it.
        unsafe { stat.write(s) };
        0
    }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_getdents64(fd: i32, buf: *mut u8, len: usize) -> i64 {
    // SAFETY: std passes a buffer.
    answer(fd::get(fd).and_then(|o| o.read_dir(unsafe { bytes_mut(buf, len) }?))) as i64
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_ioctl(fd: i32, command: i32, argument: *mut c_void) -> i32 {
    answer_int(match command {
        FIONBIO if argument.is_null() => Err(Errno::EFAULT),
        FIONBIO => {
            // SAFETY: this command's argument is an int.
            let on = unsafe { argument.cast::<i32>().read() } != 0;
            fd::set_nonblocking(fd, on).map(|()| 0)
        }
        _ => fd::get(fd).and(Err(Errno::ENOTTY)),
    })
}

#[unsafe(no_mangle)]
extern "C" fn sys_fcntl(fd: i32, command: i32, argument: i32) -> i32 {
    answer_int(match command {
        F_DUPFD => fd::dup(fd),
        // There is no exec: the flag means nothing.
        F_GETFD | F_SETFD => fd::get(fd).map(|_| 0),
        F_GETFL => fd::is_nonblocking(fd).map(|on| O_RDWR | if on { O_NONBLOCK } else { 0 }),
        F_SETFL => fd::set_nonblocking(fd, argument & O_NONBLOCK != 0).map(|()| 0),
        _ => Err(Errno::EINVAL),
    })
}

/// The console is one.
#[unsafe(no_mangle)]
extern "C" fn sys_isatty(fd: i32) -> i32 {
    i32::from((0..=2).contains(&fd) && fd::get(fd).is_ok())
}
