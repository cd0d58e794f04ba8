//! Faults in a running image: a report, then the domain ends with reason crash.
//!
//! In a trial none of this runs: the park pages have the gates, and the old image resumes.

use crate::cpu::percpu;
use crate::task;
use crate::xen::console::emergency_println;
use crate::xen::hypercall::ShutdownReason;
use core::sync::atomic::{AtomicBool, Ordering};

/// What the stubs push and the processor pushed before (Intel SDM 3 §6.12).
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    cr2: u64,
    r15: u64,
    r14: u64,
    r13: u64,
    r12: u64,
    r11: u64,
    r10: u64,
    r9: u64,
    r8: u64,
    rbp: u64,
    rdi: u64,
    rsi: u64,
    rdx: u64,
    rcx: u64,
    rbx: u64,
    rax: u64,
    vector: u64,
    error: u64,
    rip: u64,
    cs: u64,
    rflags: u64,
    rsp: u64,
    ss: u64,
}

/// The SDM's names, as the console prints them.
#[must_use]
pub fn vector_name(vector: u64) -> &'static str {
    match vector {
        0 => "divide-error",
        1 => "debug",
        2 => "nmi",
        3 => "breakpoint",
        4 => "overflow",
        5 => "bound-range",
        6 => "invalid-opcode",
        7 => "device-not-available",
        8 => "double-fault",
        10 => "invalid-tss",
        11 => "segment-not-present",
        12 => "stack-fault",
        13 => "general-protection",
        14 => "page-fault",
        16 => "x87",
        17 => "alignment-check",
        18 => "machine-check",
        19 => "simd",
        _ => "reserved",
    }
}

static REPORTING: AtomicBool = AtomicBool::new(false);

/// Called by the stubs on a stack of the interrupt stack table.
pub(super) extern "C" fn fault(frame: &Frame) -> ! {
    if REPORTING.swap(true, Ordering::AcqRel) {
        // A fault while one is being reported: the first report is what there is.
        crate::end::end(ShutdownReason::Crash);
    }
    let base = crate::boot::image_base();
    let what = match frame.vector {
        14 if crate::memory::vm::is_guard(frame.cr2) || task::is_guard(frame.cr2) => {
            "stack-overflow"
        }
        v => vector_name(v),
    };
    emergency_println!(
        "segue: fault generation={} name={what} vector={} error={:#x} address={:#x} rip={:#x} image_offset={:#x} vcpu={} thread={}",
        crate::boot::generation(),
        frame.vector,
        frame.error,
        frame.cr2,
        frame.rip,
        frame.rip.wrapping_sub(base),
        percpu::this().vcpu(),
        task::Name,
    );
    for line in [
        [
            ("rax", frame.rax),
            ("rbx", frame.rbx),
            ("rcx", frame.rcx),
            ("rdx", frame.rdx),
        ],
        [
            ("rsi", frame.rsi),
            ("rdi", frame.rdi),
            ("rbp", frame.rbp),
            ("rsp", frame.rsp),
        ],
        [
            ("r8 ", frame.r8),
            ("r9 ", frame.r9),
            ("r10", frame.r10),
            ("r11", frame.r11),
        ],
        [
            ("r12", frame.r12),
            ("r13", frame.r13),
            ("r14", frame.r14),
            ("r15", frame.r15),
        ],
        [
            ("cs ", frame.cs),
            ("ss ", frame.ss),
            ("rfl", frame.rflags),
            ("rip", frame.rip),
        ],
    ] {
        let [a, b, c, d] = line;
        emergency_println!(
            "  {} {:016x}  {} {:016x}  {} {:016x}  {} {:016x}",
            a.0,
            a.1,
            b.0,
            b.1,
            c.0,
            c.1,
            d.0,
            d.1
        );
    }
    backtrace(frame.rip, frame.rbp);
    crate::end::crash(format_args!(
        "fault name={what} image_offset={:#x}",
        frame.rip.wrapping_sub(base)
    ))
}

/// Prints return addresses found by the chain of frame pointers; each as an offset into the image,
/// which is what `addr2line -e` on the linked image wants (plus the link base).
fn backtrace(rip: u64, mut rbp: u64) {
    let base = crate::boot::image_base();
    emergency_println!("  backtrace (image offsets): {:#x}", rip.wrapping_sub(base));
    for _ in 0..16 {
        // A frame pointer has to be an aligned address in writable memory of ours.
        if !rbp.is_multiple_of(8) || !crate::memory::vm::is_writable(rbp, 16) {
            break;
        }
        let frame = core::ptr::with_exposed_provenance::<[u64; 2]>(rbp as usize);
        // SAFETY: aligned and mapped, as checked; it is read as plain numbers.
        let [next, ret] = unsafe { frame.read_volatile() };
        if ret == 0 || next <= rbp {
            break;
        }
        emergency_println!("    {:#x}", ret.wrapping_sub(base));
        rbp = next;
    }
}
