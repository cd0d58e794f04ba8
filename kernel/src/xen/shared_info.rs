//! shared_info (`struct shared_info`, public/xen.h, 64-bit layout) and the clock read from it.
//!
//! It lives in a carved frame, never in RAM (I2), unless a test or a foreign starter put it there;
//! then the switch moves it (I6). The pointer to it is atomic and read anew for every access.

use crate::cpu::percpu;
use crate::memory::Gfn;
use crate::xen::clock::{Monotonic, TimeInfo};
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, AtomicU64, Ordering};

/// vCPUs that have a `vcpu_info` in shared_info (`XEN_LEGACY_MAX_VCPUS`).
pub const MAX_VCPUS: usize = 32;

/// Where shared_info is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// In a carved frame.
    Mmio(Gfn),
    /// In RAM.
    Ram(Gfn),
}

impl Home {
    /// The frame.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        match self {
            Self::Mmio(gfn) | Self::Ram(gfn) => gfn,
        }
    }

    /// As the console says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Mmio(_) => "mmio",
            Self::Ram(_) => "ram",
        }
    }
}

/// `struct vcpu_time_info`.
#[repr(C)]
struct VcpuTimeInfo {
    version: AtomicU32,
    pad0: u32,
    tsc_timestamp: AtomicU64,
    system_time: AtomicU64,
    /// `tsc_to_system_mul` in bits 31:0, `tsc_shift` in 39:32, `flags` in 47:40: one load for all.
    scale: AtomicU64,
}

/// `struct vcpu_info`.
#[repr(C)]
pub struct VcpuInfo {
    /// `evtchn_upcall_pending`.
    pub upcall_pending: AtomicU8,
    upcall_mask: AtomicU8,
    pad0: [u8; 6],
    /// `evtchn_pending_sel`: a bit for each word of `evtchn_pending`.
    pub pending_sel: AtomicU64,
    arch: [u64; 2],
    time: VcpuTimeInfo,
}

/// `struct shared_info`.
#[repr(C)]
pub struct SharedInfo {
    /// One entry a vCPU.
    pub vcpu_info: [VcpuInfo; MAX_VCPUS],
    /// A bit a port.
    pub evtchn_pending: [AtomicU64; 64],
    /// A bit a port.
    pub evtchn_mask: [AtomicU64; 64],
    wc_version: AtomicU32,
    wc_sec: AtomicU32,
    wc_nsec: AtomicU32,
    wc_sec_hi: AtomicU32,
}

const _: () = {
    assert!(size_of::<VcpuInfo>() == 64);
    assert!(core::mem::offset_of!(VcpuInfo, time) == 32);
    assert!(core::mem::offset_of!(VcpuTimeInfo, scale) == 24);
    assert!(size_of::<VcpuTimeInfo>() == 32);
    assert!(core::mem::offset_of!(SharedInfo, evtchn_pending) == 0x800);
    assert!(core::mem::offset_of!(SharedInfo, evtchn_mask) == 0xA00);
    assert!(core::mem::offset_of!(SharedInfo, wc_version) == 0xC00);
};

/// shared_info; null before it is mapped.
static HOME: AtomicPtr<SharedInfo> = AtomicPtr::new(core::ptr::null_mut());
static MONOTONIC: Monotonic = Monotonic::new();
/// The domain has one vCPU.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Tells where shared_info is now.
///
/// # Safety
/// Xen's shared_info of this domain is at `gfn` and mapped there, readable (and writable, in an
/// image that handles events), until this is called again.
pub unsafe fn set_home(gfn: Gfn) {
    HOME.store(gfn.addr().as_ptr(), Ordering::Release);
}

/// shared_info; `None` before it is mapped.
#[inline]
pub fn get() -> Option<&'static SharedInfo> {
    // SAFETY: `set_home`'s promise; all fields that Xen writes are atomics.
    unsafe { HOME.load(Ordering::Acquire).as_ref() }
}

/// This vCPU's part.
#[inline]
pub fn vcpu_info(vcpu: u32) -> Option<&'static VcpuInfo> {
    get()?.vcpu_info.get(vcpu as usize)
}

/// A consistent copy of the calling vCPU's time info, and the time stamp counter read with it: a
/// vCPU that goes to another CPU in between gets a new version, a thread that goes to another vCPU
/// and a vCPU that was parked, when shared_info may have moved, another turn. The loop ends: Xen's
/// writes are short.
#[inline]
fn time_info() -> Option<(TimeInfo, u64)> {
    loop {
        let turn = percpu::turn();
        let time = &get()?.vcpu_info[turn as usize % MAX_VCPUS].time;
        let version = time.version.load(Ordering::Acquire);
        let scale = time.scale.load(Ordering::Relaxed);
        let info = TimeInfo {
            tsc_timestamp: time.tsc_timestamp.load(Ordering::Relaxed),
            system_time: time.system_time.load(Ordering::Relaxed),
            tsc_to_system_mul: scale as u32,
            tsc_shift: (scale >> 32) as i8,
        };
        let tsc = rdtsc();
        core::sync::atomic::fence(Ordering::Acquire);
        let (version_now, turn_now) = (time.version.load(Ordering::Relaxed), percpu::turn());
        // One branch for all three.
        if u64::from(version & 1 | version ^ version_now) | (turn ^ turn_now) == 0 {
            return Some((info, tsc));
        }
        core::hint::spin_loop();
    }
}

/// The time stamp counter, not read before earlier loads are done.
#[inline]
pub fn rdtsc() -> u64 {
    // SAFETY: LFENCE and RDTSC exist on every x86-64 and touch nothing.
    unsafe {
        core::arch::x86_64::_mm_lfence();
        core::arch::x86_64::_rdtsc()
    }
}

/// System time: ns since the domain started, monotonic over all vCPUs (I8). 0 before the clock is
/// there. No exit, no lock.
#[inline]
pub fn now() -> u64 {
    let ns = unclamped();
    if ALONE.load(Ordering::Relaxed) {
        MONOTONIC.clamp_alone(ns)
    } else {
        MONOTONIC.clamp(ns)
    }
}

/// Tells how many vCPUs the domain has, before any other one starts.
pub(crate) fn set_vcpus(vcpus: u32) {
    ALONE.store(vcpus == 1, Ordering::Relaxed);
}

/// System time as this vCPU's clock has it, not made monotonic, in ns: for tests, which could not
/// see a clock that went backward behind [`now`].
#[inline]
pub fn unclamped() -> u64 {
    time_info().map_or(0, |(info, tsc)| info.system_time_at(tsc))
}

/// Whether the clock can be used: its scale is set.
pub fn clock_works() -> bool {
    time_info().is_some_and(|(info, _)| info.tsc_to_system_mul != 0)
}

/// The highest time anyone has been told, in ns; handed over to the next image.
pub fn last_told() -> u64 {
    MONOTONIC.last()
}

/// Takes over the highest time told by the image before.
pub fn continue_after(ns: u64) {
    MONOTONIC.clamp(ns);
}

/// Cycles of the time stamp counter in `ns`.
pub fn cycles(ns: u64) -> u64 {
    time_info().map_or(0, |(info, _)| info.cycles(ns))
}

/// ns since this vCPU's time stamp counter read `tsc`. For reports.
pub fn elapsed_since(tsc: u64) -> u64 {
    time_info().map_or(0, |(info, now)| {
        TimeInfo {
            tsc_timestamp: tsc,
            system_time: 0,
            ..info
        }
        .system_time_at(now)
    })
}

/// Wall clock time now: seconds and ns since 1970 (UTC).
pub fn wall_clock() -> (u64, u32) {
    let base = loop {
        let home = HOME.load(Ordering::Acquire);
        let Some(si) = get() else { return (0, 0) };
        let version = si.wc_version.load(Ordering::Acquire);
        let sec = u64::from(si.wc_sec.load(Ordering::Relaxed))
            | u64::from(si.wc_sec_hi.load(Ordering::Relaxed)) << 32;
        let nsec = si.wc_nsec.load(Ordering::Relaxed);
        core::sync::atomic::fence(Ordering::Acquire);
        if version & 1 == 0
            && si.wc_version.load(Ordering::Relaxed) == version
            && HOME.load(Ordering::Relaxed) == home
        {
            break u128::from(sec) * 1_000_000_000 + u128::from(nsec);
        }
        core::hint::spin_loop();
    };
    let ns = base + u128::from(now());
    ((ns / 1_000_000_000) as u64, (ns % 1_000_000_000) as u32)
}
