//! The two 8259 interrupt controllers of an HVM machine: nothing here uses them, but the BIOS left
//! its timer tick on, whose vector is that of a double fault.

use crate::cpu::percpu;
use crate::xen::Committed;
use x86_64::instructions::port::Port;

/// Masks all sixteen lines.
pub fn mask_all(_: Committed) {
    for port in [0x21u16, 0xa1] {
        percpu::this().count_exit();
        // SAFETY: the interrupt mask registers; no line is used.
        unsafe { Port::new(port).write(0xffu8) };
    }
}
