//! GDT, TSS and IDT. Each vCPU has a GDT and a TSS; the IDT is one for all and never changes after
//! it has been loaded.

use crate::cpu::percpu::PerCpu;
use x86_64::VirtAddr;
use x86_64::instructions::segmentation::{CS, DS, ES, SS, Segment};
use x86_64::instructions::tables::load_tss;
use x86_64::structures::gdt::{Descriptor, GlobalDescriptorTable};
use x86_64::structures::idt::InterruptDescriptorTable;
use x86_64::structures::tss::TaskStateSegment;

/// Vector of Xen's event upcall. Part of the handover ABI (I12): Xen is told once.
pub const VECTOR_UPCALL: u8 = 0xf3;
/// Vector of the inter-processor interrupt that parks a vCPU. Part of the handover ABI.
pub const VECTOR_PARK: u8 = 0xf2;
/// The APIC's spurious interrupt.
pub const VECTOR_SPURIOUS: u8 = 0xff;

/// Index of the stack for faults in the interrupt stack table.
const IST_FAULT: u16 = 0;
/// Index of the stack for what can interrupt a fault handler: double fault, NMI, machine check.
const IST_CRITICAL: u16 = 1;

/// A vCPU's GDT and TSS.
#[derive(Debug)]
pub struct Tables {
    gdt: GlobalDescriptorTable<8>,
    tss: TaskStateSegment,
}

impl Tables {
    pub(super) const fn new() -> Self {
        Self {
            gdt: GlobalDescriptorTable::empty(),
            tss: TaskStateSegment::new(),
        }
    }
}

/// Stacks that faults run on.
#[derive(Clone, Copy, Debug)]
pub struct FaultStacks {
    /// Top of the stack for faults.
    pub fault: u64,
    /// Top of the stack for double faults, NMIs and machine checks.
    pub critical: u64,
}

core::arch::global_asm!(include_str!("vectors.S"), options(att_syntax),
    fault = sym super::fault::fault,
    upcall = sym crate::xen::events::upcall,
    park = sym crate::replace::park::park_interrupt,
);

unsafe extern "C" {
    /// Addresses of the stubs for vectors 0 to 31.
    static segue_fault_stubs: [u64; 32];
    fn segue_upcall_stub();
    fn segue_park_stub();
    fn segue_spurious_stub();
    fn segue_sleep();
}

/// Sleeps until an interrupt has been handled. Interrupts are off before and after.
pub fn sleep() {
    // SAFETY: the IDT is loaded: an interrupt that comes is handled.
    unsafe { segue_sleep() }
}

/// Bytes XSAVE needs; read by the stubs.
#[unsafe(no_mangle)]
static mut SEGUE_XSAVE_SIZE: u64 = 512;
/// Nonzero when the stubs use XSAVE and not FXSAVE.
#[unsafe(no_mangle)]
static mut SEGUE_USE_XSAVE: u64 = 0;

static mut IDT: InterruptDescriptorTable = InterruptDescriptorTable::new();

/// Fills the IDT. Once, before any vCPU loads it.
///
/// # Safety
/// The calling vCPU is the only one that runs this image.
pub unsafe fn init_idt(features: super::Features) {
    // SAFETY: one vCPU, and nothing has loaded the table; the stubs are functions of the shape the
    // processor calls, with an IST index that every TSS fills.
    unsafe {
        SEGUE_XSAVE_SIZE = u64::from(features.xsave_size.max(512));
        SEGUE_USE_XSAVE = u64::from(features.xcr0 != 0);
        let stubs = &raw const segue_fault_stubs;
        let at = |i: usize| VirtAddr::new((*stubs)[i]);
        let idt = &raw mut IDT;
        let idt = &mut *idt;
        idt.divide_error
            .set_handler_addr(at(0))
            .set_stack_index(IST_FAULT);
        idt.debug.set_handler_addr(at(1)).set_stack_index(IST_FAULT);
        idt.non_maskable_interrupt
            .set_handler_addr(at(2))
            .set_stack_index(IST_CRITICAL);
        idt.breakpoint
            .set_handler_addr(at(3))
            .set_stack_index(IST_FAULT);
        idt.overflow
            .set_handler_addr(at(4))
            .set_stack_index(IST_FAULT);
        idt.bound_range_exceeded
            .set_handler_addr(at(5))
            .set_stack_index(IST_FAULT);
        idt.invalid_opcode
            .set_handler_addr(at(6))
            .set_stack_index(IST_FAULT);
        idt.device_not_available
            .set_handler_addr(at(7))
            .set_stack_index(IST_FAULT);
        idt.double_fault
            .set_handler_addr(at(8))
            .set_stack_index(IST_CRITICAL);
        idt.invalid_tss
            .set_handler_addr(at(10))
            .set_stack_index(IST_FAULT);
        idt.segment_not_present
            .set_handler_addr(at(11))
            .set_stack_index(IST_FAULT);
        idt.stack_segment_fault
            .set_handler_addr(at(12))
            .set_stack_index(IST_FAULT);
        idt.general_protection_fault
            .set_handler_addr(at(13))
            .set_stack_index(IST_FAULT);
        idt.page_fault
            .set_handler_addr(at(14))
            .set_stack_index(IST_FAULT);
        idt.x87_floating_point
            .set_handler_addr(at(16))
            .set_stack_index(IST_FAULT);
        idt.alignment_check
            .set_handler_addr(at(17))
            .set_stack_index(IST_FAULT);
        idt.machine_check
            .set_handler_addr(at(18))
            .set_stack_index(IST_CRITICAL);
        idt.simd_floating_point
            .set_handler_addr(at(19))
            .set_stack_index(IST_FAULT);
        let stub = |f: unsafe extern "C" fn()| VirtAddr::from_ptr(f as *const ());
        idt[VECTOR_UPCALL].set_handler_addr(stub(segue_upcall_stub));
        idt[VECTOR_PARK].set_handler_addr(stub(segue_park_stub));
        idt[VECTOR_SPURIOUS].set_handler_addr(stub(segue_spurious_stub));
    }
}

/// Loads GDT, TSS and IDT on the calling vCPU. The GDT is made anew: a used TSS descriptor is
/// marked busy and could not be loaded again (a vCPU that comes back from the park pages does).
///
/// # Safety
/// Interrupts are off, the IDT is filled, the stacks are this vCPU's alone.
pub unsafe fn load(cpu: &'static PerCpu, stacks: FaultStacks) {
    // SAFETY: only the owning vCPU touches its tables, and `cpu` lives as long as the image.
    let tables = unsafe { &mut *cpu.tables.get() };
    tables.tss = TaskStateSegment::new();
    tables.tss.interrupt_stack_table[IST_FAULT as usize] = VirtAddr::new(stacks.fault);
    tables.tss.interrupt_stack_table[IST_CRITICAL as usize] = VirtAddr::new(stacks.critical);
    tables.gdt = GlobalDescriptorTable::empty();
    let code = tables.gdt.append(Descriptor::kernel_code_segment());
    let data = tables.gdt.append(Descriptor::kernel_data_segment());
    // SAFETY: the TSS is in the same per-vCPU data and never moves.
    let tss = tables
        .gdt
        .append(unsafe { Descriptor::tss_segment_unchecked(&tables.tss) });
    // SAFETY: the descriptors are valid and static; the order is GDT, segments, TSS, IDT.
    unsafe {
        tables.gdt.load_unsafe();
        CS::set_reg(code);
        SS::set_reg(data);
        DS::set_reg(data);
        ES::set_reg(data);
        load_tss(tss);
        let idt = &raw const IDT;
        (*idt).load_unsafe();
    }
}
