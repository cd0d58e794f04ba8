//! Xen's paravirtual clock (`struct vcpu_time_info`, public/xen.h).
//!
//! The arithmetic and the reading protocol are plain code; the image adds where the structure is.

use core::sync::atomic::{AtomicU64, Ordering};

/// One consistent reading of a `vcpu_time_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TimeInfo {
    /// TSC at `system_time`, in cycles.
    pub tsc_timestamp: u64,
    /// ns since the domain's start at `tsc_timestamp`.
    pub system_time: u64,
    /// ns in a cycle after the shift, as a fraction of 2^32.
    pub tsc_to_system_mul: u32,
    /// Shift of the cycle count before the multiplication; negative is to the right.
    pub tsc_shift: i8,
}

impl TimeInfo {
    /// System time at `tsc`, in ns. A TSC behind the time stamp (another CPU's) counts as none.
    #[inline]
    #[must_use]
    pub fn system_time_at(&self, tsc: u64) -> u64 {
        let delta = tsc.saturating_sub(self.tsc_timestamp);
        let mul = u64::from(self.tsc_to_system_mul);
        // ns = (delta << shift) * mul >> 32, without a branch: Xen gives no shift outside -31..=32.
        let shift = 32u32.wrapping_sub_signed(i32::from(self.tsc_shift)) % 64;
        let ns = (u128::from(delta) * u128::from(mul)) >> shift;
        self.system_time.wrapping_add(ns as u64)
    }

    /// Cycles that `ns` take by this scale: for waits that must not read the clock.
    #[must_use]
    pub fn cycles(&self, ns: u64) -> u64 {
        let mul = u128::from(self.tsc_to_system_mul.max(1));
        let delta = ((u128::from(ns)) << 32) / mul;
        let shift = u32::from(self.tsc_shift.unsigned_abs());
        let delta = if self.tsc_shift < 0 {
            delta << shift
        } else {
            delta >> shift
        };
        u64::try_from(delta).unwrap_or(u64::MAX)
    }
}

/// Makes a clock monotonic over all vCPUs: nothing it returns is below what it returned before.
#[derive(Debug)]
pub struct Monotonic(AtomicU64);

impl Monotonic {
    /// Nothing has been read yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// `ns`, or the last value returned if that is later.
    #[inline]
    pub fn clamp(&self, ns: u64) -> u64 {
        let last = self.0.load(Ordering::Relaxed);
        // The first try is nearly always enough; then the loop of `fetch_max` is longer.
        match self
            .0
            .compare_exchange(last, ns.max(last), Ordering::Relaxed, Ordering::Relaxed)
        {
            Ok(_) => ns.max(last),
            Err(_) => ns.max(self.0.fetch_max(ns, Ordering::Relaxed)),
        }
    }

    /// As [`clamp`](Self::clamp), where interrupts may come in between but no other processor does.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    pub fn clamp_alone(&self, ns: u64) -> u64 {
        let last = self.0.load(Ordering::Relaxed);
        let (new, seen) = (ns.max(last), last);
        let seen_now: u64;
        // SAFETY: the instruction changes this atomic only; without a lock prefix it is atomic
        // towards whatever else this processor runs, which is all that the caller promises.
        unsafe {
            core::arch::asm!("cmpxchg [{}], {}", in(reg) self.0.as_ptr(), in(reg) new,
                inout("rax") seen => seen_now, options(nostack));
        }
        if seen_now == last {
            new
        } else {
            self.clamp(ns)
        }
    }

    /// The last value returned, in ns.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Default for Monotonic {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Within a reading time never runs backwards, and a wait's cycles are worth its ns.
        #[test]
        fn scaling_is_monotonic_and_inverts(
            tsc in 0u64..1 << 62, a in 0u64..1 << 40, b in 0u64..1 << 40,
            mul in 1u32 << 24.., shift in -8i8..8,
        ) {
            let t = TimeInfo {
                tsc_timestamp: tsc, system_time: 1_000, tsc_to_system_mul: mul, tsc_shift: shift,
            };
            let (lo, hi) = (a.min(b), a.max(b));
            prop_assert!(t.system_time_at(tsc + lo) <= t.system_time_at(tsc + hi));
            prop_assert_eq!(t.system_time_at(tsc.saturating_sub(lo)), 1_000);
            let ns = a >> 16;
            let back = t.system_time_at(tsc + t.cycles(ns)) - 1_000;
            // One cycle less or one unit of the shift more is rounding.
            let unit = (1u64 << shift.unsigned_abs()) * u64::from(mul >> 24) + 512;
            prop_assert!(back.abs_diff(ns) <= unit, "{} ns became {}", ns, back);
        }
    }

    #[test]
    fn a_gigahertz_counts_nanoseconds() {
        let t = TimeInfo {
            tsc_timestamp: 500,
            system_time: 7,
            tsc_to_system_mul: 1 << 31,
            tsc_shift: 1,
        };
        assert_eq!(t.system_time_at(1_500), 1_007);
        assert_eq!(t.cycles(1_000), 1_000);
    }

    #[test]
    fn the_clamp_never_steps_back() {
        let m = Monotonic::new();
        assert_eq!(
            [m.clamp(5), m.clamp(3), m.clamp(9), m.clamp(8)],
            [5, 5, 9, 9]
        );
        assert_eq!(m.last(), 9);
        assert_eq!([m.clamp_alone(8), m.clamp_alone(11)], [9, 11]);
        assert_eq!(m.last(), 11);
    }
}
