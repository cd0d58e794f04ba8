//! Clocks and sleeping.

/// `struct timespec`.
pub use hermit_abi::timespec as Timespec;

/// A time as ns; `None` if it is negative, not normalised or beyond 584 years.
#[must_use]
pub fn as_ns(time: Timespec) -> Option<u64> {
    let sec = u64::try_from(time.tv_sec).ok()?;
    let nsec = u64::try_from(time.tv_nsec).ok()?;
    if nsec >= 1_000_000_000 {
        return None;
    }
    sec.checked_mul(1_000_000_000)?.checked_add(nsec)
}

#[cfg(target_os = "hermit")]
mod calls {
    use super::{Timespec, as_ns};
    use crate::abi::answer_int;
    use crate::abi::errno::Errno;
    use crate::task;
    use crate::xen::shared_info;
    use hermit_abi::{CLOCK_MONOTONIC, CLOCK_REALTIME};

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sys_clock_gettime(clock: i32, out: *mut Timespec) -> i32 {
        let (sec, nsec) = match clock {
            CLOCK_REALTIME => shared_info::wall_clock(),
            CLOCK_MONOTONIC => {
                let ns = shared_info::now();
                (ns / 1_000_000_000, (ns % 1_000_000_000) as u32)
            }
            _ => return answer_int::<i32>(Err(Errno::EINVAL)),
        };
        // SAFETY: std passes a place for a timespec.
        unsafe {
            out.write(Timespec {
                tv_sec: sec as i64,
                tv_nsec: nsec as i32,
            });
        }
        0
    }

    /// On trial there is nobody to wake a sleeper: it does not sleep.
    fn sleep_ns(ns: u64) -> Result<i32, Errno> {
        if task::sleep_until(shared_info::now().saturating_add(ns)) {
            Ok(0)
        } else {
            Err(Errno::ENOSYS)
        }
    }

    #[unsafe(no_mangle)]
    extern "C" fn sys_usleep(us: u64) {
        answer_int(sleep_ns(us.saturating_mul(1000)));
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn sys_nanosleep(time: *const Timespec) -> i32 {
        // SAFETY: std passes a timespec.
        let time = as_ns(unsafe { time.read() });
        answer_int(time.ok_or(Errno::EINVAL).and_then(sleep_ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn only_times_that_are_some_count(sec in any::<i64>(), nsec in any::<i32>()) {
            let ns = as_ns(Timespec { tv_sec: sec, tv_nsec: nsec });
            let exact = i128::from(sec) * 1_000_000_000 + i128::from(nsec);
            let good = sec >= 0 && (0..1_000_000_000).contains(&nsec) && exact <= u64::MAX.into();
            prop_assert_eq!(ns.map(i128::from), good.then_some(exact));
        }

        #[test]
        fn small_ones_too(ns in 0u64..1 << 62) {
            let time = Timespec {
                tv_sec: (ns / 1_000_000_000) as i64,
                tv_nsec: (ns % 1_000_000_000) as i32,
            };
            prop_assert_eq!(as_ns(time), Some(ns));
        }
    }
}
