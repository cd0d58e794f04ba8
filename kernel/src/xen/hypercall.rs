//! Hypercalls, made by VMCALL or VMMCALL: no hypercall page (XSA-466).
//!
//! Number in RAX, arguments in RDI, RSI, RDX, R10, R8 (public/arch-x86/xen-x86_64.h). Results below
//! zero are negated errno values.

use crate::cpu::percpu;
use crate::memory::Gfn;
use crate::xen::Committed;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

const MEMORY_OP: u64 = 12;
const XEN_VERSION: u64 = 17;
const GRANT_TABLE_OP: u64 = 20;
const VCPU_OP: u64 = 24;
const SCHED_OP: u64 = 29;
const EVENT_CHANNEL_OP: u64 = 32;
const HVM_OP: u64 = 34;

/// `DOMID_SELF`.
pub const DOMID_SELF: u16 = 0x7FF0;

static USE_VMMCALL: AtomicBool = AtomicBool::new(false);

/// Says which instruction to use; before the first hypercall.
pub fn init(vmmcall: bool) {
    USE_VMMCALL.store(vmmcall, Ordering::Relaxed);
}

/// Whether hypercalls use VMMCALL.
pub fn uses_vmmcall() -> bool {
    USE_VMMCALL.load(Ordering::Relaxed)
}

/// Why Xen refused (public/errno.h).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct XenError(pub i32);

impl fmt::Debug for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for XenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.0 {
            1 => "EPERM",
            2 => "ENOENT",
            12 => "ENOMEM",
            14 => "EFAULT",
            16 => "EBUSY",
            17 => "EEXIST",
            22 => "EINVAL",
            38 => "ENOSYS",
            n => return write!(f, "Xen error {n}"),
        };
        f.write_str(name)
    }
}

/// One hypercall with up to three arguments.
///
/// # Safety
/// The arguments must be what this hypercall wants: pointers to live structures of its header,
/// and an effect that breaks nothing this image relies on.
unsafe fn hypercall(nr: u64, a1: u64, a2: u64, a3: u64) -> Result<u64, XenError> {
    let cpu = percpu::this();
    cpu.count_hypercall();
    let ret: i64;
    // SAFETY: the instruction is the one this processor has; Xen preserves all registers but RAX
    // and the argument registers; what it reads and writes is the caller's promise.
    unsafe {
        if USE_VMMCALL.load(Ordering::Relaxed) {
            core::arch::asm!("vmmcall", inlateout("rax") nr => ret, inlateout("rdi") a1 => _,
                inlateout("rsi") a2 => _, inlateout("rdx") a3 => _);
        } else {
            core::arch::asm!("vmcall", inlateout("rax") nr => ret, inlateout("rdi") a1 => _,
                inlateout("rsi") a2 => _, inlateout("rdx") a3 => _);
        }
    }
    u64::try_from(ret).map_err(|_| XenError(ret.unsigned_abs() as i32))
}

fn arg<T>(arg: &mut T) -> u64 {
    core::ptr::from_mut(arg).expose_provenance() as u64
}

// --- hvm_op (public/hvm/hvm_op.h, params.h) ---

/// `HVM_PARAM_CALLBACK_IRQ`.
pub const HVM_PARAM_CALLBACK_IRQ: u32 = 0;
/// `HVM_PARAM_STORE_PFN`.
pub const HVM_PARAM_STORE_PFN: u32 = 1;
/// `HVM_PARAM_STORE_EVTCHN`.
pub const HVM_PARAM_STORE_EVTCHN: u32 = 2;
/// `HVM_PARAM_CONSOLE_PFN`.
pub const HVM_PARAM_CONSOLE_PFN: u32 = 17;
/// `HVM_PARAM_CONSOLE_EVTCHN`.
pub const HVM_PARAM_CONSOLE_EVTCHN: u32 = 18;

#[repr(C)]
struct XenHvmParam {
    domid: u16,
    pad: u16,
    index: u32,
    value: u64,
}

/// `HVMOP_get_param`.
///
/// # Errors
/// As Xen says.
pub fn hvm_get_param(_: Committed, index: u32) -> Result<u64, XenError> {
    let mut p = XenHvmParam {
        domid: DOMID_SELF,
        pad: 0,
        index,
        value: 0,
    };
    // SAFETY: the structure is `xen_hvm_param_t` and lives through the call.
    unsafe { hypercall(HVM_OP, 1, arg(&mut p), 0) }?;
    Ok(p.value)
}

/// Has Xen inject `vector` on a vCPU whenever an event is pending for it: `HVMOP_set_param` of
/// `HVM_PARAM_CALLBACK_IRQ`, type 2. Also latches the 64-bit layout of shared_info.
///
/// # Errors
/// As Xen says.
pub fn set_callback_vector(_: Committed, vector: u8) -> Result<(), XenError> {
    let mut p = XenHvmParam {
        domid: DOMID_SELF,
        pad: 0,
        index: HVM_PARAM_CALLBACK_IRQ,
        value: 2 << 56 | u64::from(vector),
    };
    // SAFETY: as above; the IDT has a gate for the vector before interrupts are enabled.
    unsafe { hypercall(HVM_OP, 0, arg(&mut p), 0) }.map(drop)
}

// --- memory_op (public/memory.h) ---

#[repr(C)]
struct XenAddToPhysmap {
    domid: u16,
    size: u16,
    space: u32,
    idx: u64,
    gpfn: u64,
}

/// Puts shared_info at `gfn` (`XENMEM_add_to_physmap`, `XENMAPSPACE_shared_info`). Where it was
/// becomes a hole; RAM that was at `gfn` goes back to Xen.
///
/// # Safety
/// Nobody reads or writes the old or the new frame during the call (I6), and `gfn` is not RAM that
/// anything else uses.
///
/// # Errors
/// As Xen says; shared_info stays where it was.
pub unsafe fn map_shared_info(_: Committed, gfn: Gfn) -> Result<(), XenError> {
    percpu::this().count_p2m_update();
    let mut x = XenAddToPhysmap {
        domid: DOMID_SELF,
        size: 0,
        space: 0,
        idx: 0,
        gpfn: gfn.as_u64(),
    };
    // SAFETY: the structure is `xen_add_to_physmap`; the effect is the caller's promise.
    unsafe { hypercall(MEMORY_OP, 7, arg(&mut x), 0) }.map(drop)
}

/// Puts the `index`th frame of the grant table at `gfn` (`XENMAPSPACE_grant_table`); the table
/// grows to have it.
///
/// # Safety
/// `gfn` is not RAM, and nobody else's.
///
/// # Errors
/// As Xen says.
pub unsafe fn map_grant_frame(_: Committed, index: u64, gfn: Gfn) -> Result<(), XenError> {
    percpu::this().count_p2m_update();
    let mut x = XenAddToPhysmap {
        domid: DOMID_SELF,
        size: 0,
        space: 1,
        idx: index,
        gpfn: gfn.as_u64(),
    };
    // SAFETY: the structure is `xen_add_to_physmap`; the effect is the caller's promise.
    unsafe { hypercall(MEMORY_OP, 7, arg(&mut x), 0) }.map(drop)
}

#[repr(C)]
struct XenMemoryReservation {
    extent_start: u64,
    nr_extents: u64,
    extent_order: u32,
    mem_flags: u32,
    domid: u16,
}

/// Puts RAM with unspecified contents into the hole at `gfn` (`XENMEM_populate_physmap`).
///
/// # Errors
/// `ENOMEM` when Xen gave no frame.
pub fn populate_hole(_: Committed, gfn: Gfn) -> Result<(), XenError> {
    percpu::this().count_p2m_update();
    let mut frame = gfn.as_u64();
    let mut r = XenMemoryReservation {
        extent_start: arg(&mut frame),
        nr_extents: 1,
        extent_order: 0,
        mem_flags: 0,
        domid: DOMID_SELF,
    };
    // SAFETY: the structure is `xen_memory_reservation`, the frame list lives through the call;
    // filling a true hole takes nothing away from anyone.
    match unsafe { hypercall(MEMORY_OP, 6, arg(&mut r), 0) }? {
        1 => Ok(()),
        _ => Err(XenError(12)),
    }
}

/// `XENMEM_current_reservation`: frames of RAM that Xen counts as the domain's. A hole is one
/// less.
///
/// # Errors
/// As Xen says.
pub fn current_reservation(_: Committed) -> Result<u64, XenError> {
    let mut domid = DOMID_SELF;
    // SAFETY: the argument is a `domid_t`; Xen only counts.
    unsafe { hypercall(MEMORY_OP, 3, arg(&mut domid), 0) }
}

// --- xen_version (public/version.h) ---

/// `XENVER_guest_handle`: the domain's UUID.
///
/// # Errors
/// As Xen says.
pub fn guest_handle(_: Committed) -> Result<[u8; 16], XenError> {
    let mut handle = [0; 16];
    // SAFETY: the argument is a `xen_domain_handle_t`, which Xen writes.
    unsafe { hypercall(XEN_VERSION, 8, arg(&mut handle), 0) }?;
    Ok(handle)
}

// --- sched_op (public/sched.h) ---

/// Why a domain ended (`SHUTDOWN_*`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum ShutdownReason {
    /// `SHUTDOWN_poweroff`.
    Poweroff = 0,
    /// `SHUTDOWN_reboot`.
    Reboot = 1,
    /// `SHUTDOWN_crash`.
    Crash = 3,
}

/// `SCHEDOP_shutdown`: the domain ends here.
pub fn shutdown(_: Committed, reason: ShutdownReason) -> ! {
    let mut r = reason as u32;
    loop {
        // SAFETY: the structure is `sched_shutdown`; ending the domain is what was asked for.
        let _ = unsafe { hypercall(SCHED_OP, 2, arg(&mut r), 0) };
    }
}

/// `SCHEDOP_yield`.
pub fn sched_yield(_: Committed) {
    // SAFETY: no arguments, no effect but that another vCPU may run.
    let _ = unsafe { hypercall(SCHED_OP, 0, 0, 0) };
}

/// `SCHEDOP_watchdog`: slot `id` (0 takes a new one) fires in `seconds` unless set again; 0 ends it.
///
/// # Errors
/// As Xen says.
pub fn watchdog(_: Committed, id: u32, seconds: u32) -> Result<u32, XenError> {
    let mut w = [id, seconds];
    // SAFETY: the structure is `sched_watchdog`: two words.
    unsafe { hypercall(SCHED_OP, 6, arg(&mut w), 0) }.map(|id| id as u32)
}

// --- vcpu_op (public/vcpu.h) ---

#[repr(C)]
struct VcpuSetSingleshotTimer {
    timeout_abs_ns: u64,
    flags: u32,
}

/// Fires `VIRQ_TIMER` on the calling vCPU at `at_ns` of system time, at once if that has passed.
///
/// # Errors
/// As Xen says.
pub fn set_singleshot_timer(_: Committed, at_ns: u64) -> Result<(), XenError> {
    let vcpu = u64::from(percpu::this().vcpu());
    let mut t = VcpuSetSingleshotTimer {
        timeout_abs_ns: at_ns,
        flags: 0,
    };
    // SAFETY: the structure is `vcpu_set_singleshot_timer`.
    unsafe { hypercall(VCPU_OP, 8, vcpu, arg(&mut t)) }.map(drop)
}

// --- event_channel_op (public/event_channel.h) ---

/// An event channel port of this domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Port(pub u32);

/// `EVTCHNOP_bind_virq` on `vcpu`.
///
/// # Errors
/// `EEXIST` if it is bound already.
pub fn bind_virq(_: Committed, virq: u32, vcpu: u32) -> Result<Port, XenError> {
    let mut b = [virq, vcpu, 0];
    // SAFETY: the structure is `evtchn_bind_virq`: three words.
    unsafe { hypercall(EVENT_CHANNEL_OP, 1, arg(&mut b), 0) }?;
    Ok(Port(b[2]))
}

/// `EVTCHNOP_bind_ipi` for `vcpu`.
///
/// # Errors
/// As Xen says.
pub fn bind_ipi(_: Committed, vcpu: u32) -> Result<Port, XenError> {
    let mut b = [vcpu, 0];
    // SAFETY: the structure is `evtchn_bind_ipi`: two words.
    unsafe { hypercall(EVENT_CHANNEL_OP, 7, arg(&mut b), 0) }?;
    Ok(Port(b[1]))
}

#[repr(C)]
struct EvtchnAllocUnbound {
    dom: u16,
    remote_dom: u16,
    port: u32,
}

/// `EVTCHNOP_alloc_unbound`: a port that domain `remote` may bind to.
///
/// # Errors
/// As Xen says.
pub fn alloc_unbound(_: Committed, remote: u16) -> Result<Port, XenError> {
    let mut a = EvtchnAllocUnbound {
        dom: DOMID_SELF,
        remote_dom: remote,
        port: 0,
    };
    // SAFETY: the structure is `evtchn_alloc_unbound`.
    unsafe { hypercall(EVENT_CHANNEL_OP, 6, arg(&mut a), 0) }?;
    Ok(Port(a.port))
}

/// `EVTCHNOP_close`.
///
/// # Errors
/// `EINVAL` if the port is not bound.
pub fn close(_: Committed, port: Port) -> Result<(), XenError> {
    let mut p = port.0;
    // SAFETY: the structure is `evtchn_close`: one word. Ports that the image cannot do without
    // are not passed here: this module's users close what they opened.
    unsafe { hypercall(EVENT_CHANNEL_OP, 3, arg(&mut p), 0) }.map(drop)
}

/// `GNTTABOP_query_size`: frames the grant table has, and most it may have.
///
/// # Errors
/// As Xen says.
pub fn grant_table_size(_: Committed) -> Result<(u32, u32), XenError> {
    #[repr(C)]
    struct GnttabQuerySize {
        dom: u16,
        nr_frames: u32,
        max_nr_frames: u32,
        status: i16,
    }
    let mut q = GnttabQuerySize {
        dom: DOMID_SELF,
        nr_frames: 0,
        max_nr_frames: 0,
        status: 0,
    };
    // SAFETY: the structure is `gnttab_query_size`; one of them.
    unsafe { hypercall(GRANT_TABLE_OP, 6, arg(&mut q), 1) }?;
    match q.status {
        0 => Ok((q.nr_frames, q.max_nr_frames)),
        e => Err(XenError(i32::from(e).abs())),
    }
}

/// `EVTCHNOP_send`.
///
/// # Errors
/// `EINVAL` if the port is not bound.
pub fn send(_: Committed, port: Port) -> Result<(), XenError> {
    let mut p = port.0;
    // SAFETY: the structure is `evtchn_send`: one word.
    unsafe { hypercall(EVENT_CHANNEL_OP, 4, arg(&mut p), 0) }.map(drop)
}

/// `EVTCHNOP_unmask`: unmasks, and delivers what became pending meanwhile.
///
/// # Errors
/// `EINVAL` if there is no such port.
pub fn unmask(_: Committed, port: Port) -> Result<(), XenError> {
    let mut p = port.0;
    // SAFETY: the structure is `evtchn_unmask`: one word.
    unsafe { hypercall(EVENT_CHANNEL_OP, 9, arg(&mut p), 0) }.map(drop)
}

#[repr(C)]
#[derive(Default)]
struct EvtchnStatus {
    dom: u16,
    port: u32,
    status: u32,
    vcpu: u32,
    u: [u32; 2],
}

fn status(_: Committed, port: Port) -> Result<EvtchnStatus, XenError> {
    let mut s = EvtchnStatus {
        dom: DOMID_SELF,
        port: port.0,
        ..EvtchnStatus::default()
    };
    // SAFETY: the structure is `evtchn_status`.
    unsafe { hypercall(EVENT_CHANNEL_OP, 5, arg(&mut s), 0) }?;
    Ok(s)
}

/// `EVTCHNOP_status`: whether the port is bound to anything.
///
/// # Errors
/// `EINVAL` past the last port that Xen has made room for.
pub fn is_bound(token: Committed, port: Port) -> Result<bool, XenError> {
    status(token, port).map(|s| s.status != 0)
}

/// `EVTCHNOP_status`: the domain at the port's other end, if it has one.
///
/// # Errors
/// `EINVAL` past the last port that Xen has made room for.
pub fn remote(token: Committed, port: Port) -> Result<Option<u16>, XenError> {
    /// `EVTCHNSTAT_interdomain`
    const INTERDOMAIN: u32 = 2;
    // `u.interdomain`: the domain in the first 16 bits, then its port.
    status(token, port).map(|s| (s.status == INTERDOMAIN).then_some(s.u[0] as u16))
}
