//! The local APIC in x2APIC mode (Intel SDM 3 §11.12): each register an MSR, so no mapping and no
//! emulated instruction. Xen offers the mode to every HVM and PVH guest.
//!
//! Used for what event channels can't do: starting vCPUs, the one broadcast that parks them all,
//! and taking a hung trial back.

use crate::cpu::percpu;
use crate::cpu::tables::{VECTOR_PARK, VECTOR_SPURIOUS};
use crate::xen::Committed;
use x86_64::registers::model_specific::Msr;

const IA32_APIC_BASE: u32 = 0x1b;
const X2APIC_APICID: u32 = 0x802;
const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SIVR: u32 = 0x80f;
/// Interrupt command register; the park code writes it too.
pub const X2APIC_ICR: u32 = 0x830;

const APIC_BASE_ENABLE: u64 = 1 << 11;
const APIC_BASE_EXTD: u64 = 1 << 10;
const SIVR_ENABLE: u64 = 1 << 8;

const ICR_INIT: u64 = 0b101 << 8;
const ICR_STARTUP: u64 = 0b110 << 8;
const ICR_ASSERT: u64 = 1 << 14;
const ICR_ALL_BUT_SELF: u64 = 0b11 << 18;

fn write(register: u32, value: u64) {
    percpu::this().count_exit();
    // SAFETY: callers pass registers and values of the APIC that this module names.
    unsafe { Msr::new(register).write(value) };
}

/// Puts the calling vCPU's APIC into x2APIC mode, enabled, and remembers its id.
pub fn enable(_: Committed) {
    // SAFETY: the MSR exists with x2APIC, which was checked at boot.
    let base = unsafe { Msr::new(IA32_APIC_BASE).read() };
    write(IA32_APIC_BASE, base | APIC_BASE_ENABLE | APIC_BASE_EXTD);
    write(X2APIC_SIVR, SIVR_ENABLE | u64::from(VECTOR_SPURIOUS));
    // SAFETY: readable in x2APIC mode.
    let id = unsafe { Msr::new(X2APIC_APICID).read() };
    percpu::this().set_apic_id(id as u32);
}

/// Ends the interrupt in service.
pub fn eoi(_: Committed) {
    write(X2APIC_EOI, 0);
}

/// Sends the park interrupt to every other vCPU: one register write, however many there are.
pub fn park_others(_: Committed) {
    write(
        X2APIC_ICR,
        ICR_ALL_BUT_SELF | ICR_ASSERT | u64::from(VECTOR_PARK),
    );
}

/// Resets a vCPU.
pub fn init(_: Committed, apic_id: u32) {
    write(X2APIC_ICR, u64::from(apic_id) << 32 | ICR_INIT | ICR_ASSERT);
}

/// Starts a reset vCPU at frame `page` (below 0x100) in real mode.
pub fn startup(_: Committed, apic_id: u32, page: u8) {
    write(
        X2APIC_ICR,
        u64::from(apic_id) << 32 | ICR_STARTUP | ICR_ASSERT | u64::from(page),
    );
}
