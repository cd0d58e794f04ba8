//! What each vCPU has for itself, found through GS.

use crate::cpu::tables::Tables;
use crate::task::sched::Leave;
use crate::task::thread::Thread;
use crate::xen::hypercall::Port;
use crate::xen::shared_info::MAX_VCPUS;
use core::cell::{Cell, UnsafeCell};
use core::mem::offset_of;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::VirtAddr;
use x86_64::registers::model_specific::GsBase;

/// Counters of what a vCPU did that is dear on Xen. Read by the switch and the benchmarks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Hypercalls, all kinds.
    pub hypercalls: u64,
    /// Exits to the hypervisor that this image causes knowingly: hypercalls, port I/O, APIC
    /// registers, HLT.
    pub exits: u64,
    /// Changes of the guest's physical memory map; each is a hypercall too.
    pub p2m_updates: u64,
}

/// One vCPU's own data. Lives as long as the image runs; GS points at it.
#[repr(C)]
#[derive(Debug)]
pub struct PerCpu {
    this: Cell<*const PerCpu>,
    vcpu: Cell<u32>,
    turn: Cell<u64>,
    apic_id: Cell<u32>,
    hypercalls: AtomicU64,
    exits: AtomicU64,
    p2m_updates: AtomicU64,
    timer_port: Cell<Option<Port>>,
    ipi_port: Cell<Option<Port>>,
    current: Cell<*const Thread>,
    left: Cell<(*const Thread, Leave)>,
    pub(super) tables: UnsafeCell<Tables>,
}

// SAFETY: the cells are written by the owning vCPU only (or before it runs); what others read are
// the atomics.
unsafe impl Sync for PerCpu {}

impl PerCpu {
    /// For a vCPU that has not started.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            this: Cell::new(core::ptr::null()),
            vcpu: Cell::new(0),
            turn: Cell::new(0),
            apic_id: Cell::new(0),
            hypercalls: AtomicU64::new(0),
            exits: AtomicU64::new(0),
            p2m_updates: AtomicU64::new(0),
            timer_port: Cell::new(None),
            ipi_port: Cell::new(None),
            current: Cell::new(core::ptr::null()),
            left: Cell::new((core::ptr::null(), Leave::Parked)),
            tables: UnsafeCell::new(Tables::new()),
        }
    }

    /// Makes this the calling vCPU's data.
    ///
    /// # Safety
    /// No other vCPU uses it.
    pub unsafe fn install(&'static self, vcpu: u32) {
        self.this.set(self);
        self.vcpu.set(vcpu);
        self.turn.set(u64::from(vcpu));
        GsBase::write(VirtAddr::from_ptr(self));
    }

    /// Xen's number of this vCPU.
    #[inline]
    pub fn vcpu(&self) -> u32 {
        self.vcpu.get()
    }

    /// Something else runs on this vCPU from here on, or shared_info may have moved: see [`turn`].
    pub(crate) fn next_turn(&self) {
        self.turn.set(self.turn.get().wrapping_add(MAX as u64));
    }

    /// The id of its local APIC.
    pub fn apic_id(&self) -> u32 {
        self.apic_id.get()
    }

    pub(super) fn set_apic_id(&self, id: u32) {
        self.apic_id.set(id);
    }

    /// Takes over an id that the image before found out; 0 stays where there is none.
    pub(crate) fn adopt_apic_id(&self, id: Option<u32>) {
        self.apic_id.set(id.unwrap_or(0));
    }

    /// The port that `VIRQ_TIMER` is bound to here.
    pub fn timer_port(&self) -> Option<Port> {
        self.timer_port.get()
    }

    /// The port that wakes this vCPU.
    pub fn ipi_port(&self) -> Option<Port> {
        self.ipi_port.get()
    }

    pub(crate) fn set_ports(&self, timer: Port, ipi: Port) {
        self.timer_port.set(Some(timer));
        self.ipi_port.set(Some(ipi));
    }

    /// Says which thread runs: a counted reference, as a pointer. Interrupts are off.
    pub(crate) fn set_current(&self, thread: *const Thread) {
        self.current.set(thread);
    }

    /// Notes the thread that this vCPU is about to leave, and why, for the one it goes on with.
    pub(crate) fn set_left(&self, thread: *const Thread, why: Leave) {
        self.left.set((thread, why));
    }

    /// What [`set_left`](Self::set_left) noted; null the second time.
    pub(crate) fn take_left(&self) -> (*const Thread, Leave) {
        self.left.replace((core::ptr::null(), Leave::Parked))
    }

    #[inline]
    pub(crate) fn count_hypercall(&self) {
        self.hypercalls.fetch_add(1, Ordering::Relaxed);
        self.count_exit();
    }

    #[inline]
    pub(crate) fn count_exit(&self) {
        self.exits.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_p2m_update(&self) {
        self.p2m_updates.fetch_add(1, Ordering::Relaxed);
    }

    /// What has been counted.
    pub fn counters(&self) -> Counters {
        Counters {
            hypercalls: self.hypercalls.load(Ordering::Relaxed),
            exits: self.exits.load(Ordering::Relaxed),
            p2m_updates: self.p2m_updates.load(Ordering::Relaxed),
        }
    }
}

impl Default for PerCpu {
    fn default() -> Self {
        Self::new()
    }
}

/// The data of the vCPU that boots, until memory is there for its own.
pub static BOOT: PerCpu = PerCpu::new();

/// The calling vCPU's data.
#[inline]
pub fn this() -> &'static PerCpu {
    let ptr: *const PerCpu;
    // SAFETY: GS points at a `PerCpu` whose first word is its address from the first Rust
    // instruction of every vCPU on (`install`).
    unsafe {
        core::arch::asm!("mov {}, gs:[0]", out(reg) ptr, options(nostack, readonly, preserves_flags));
        &*ptr
    }
}

/// The calling vCPU's number, modulo [`MAX`], and above it a count of turns. The same before and
/// after means: the same vCPU, nothing else ran on it in between, and shared_info did not move.
#[inline]
#[must_use]
pub fn turn() -> u64 {
    let turn: u64;
    // SAFETY: as in `this`; the field is at that offset.
    unsafe {
        core::arch::asm!(
            "mov {}, gs:[{at}]", out(reg) turn, at = const core::mem::offset_of!(PerCpu, turn),
            options(nostack, readonly, preserves_flags),
        );
    }
    turn
}

/// The running thread, null before there is one. One instruction: right also for a thread that is
/// moved to another vCPU right before or after.
#[inline]
pub(crate) fn current_thread() -> *const Thread {
    let ptr: *const Thread;
    // SAFETY: as in `this`.
    unsafe {
        core::arch::asm!("mov {}, gs:[{at}]", out(reg) ptr, at = const offset_of!(PerCpu, current),
            options(nostack, readonly, preserves_flags));
    }
    ptr
}

/// Most vCPUs an image runs on.
pub const MAX: usize = MAX_VCPUS;
