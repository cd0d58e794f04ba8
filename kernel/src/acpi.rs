//! ACPI tables at first boot: where they are and which local APICs the vCPUs have (ACPI 6.5
//! §5.2.5, §5.2.12). No AML is run. A later image gets the APIC ids from the record.

use crate::cpu::percpu::MAX;
use acpi::sdt::madt::{Madt, MadtEntry};
use acpi::{AcpiTables, Handler, PciAddress, PhysicalMapping};
use arrayvec::ArrayVec;
use core::ptr::NonNull;

/// Physical memory as it is mapped: identity.
#[derive(Clone, Copy)]
struct Identity;

/// Accesses that only AML makes.
macro_rules! no_aml {
    ($($name:ident($($arg:ident: $type:ty),*) $(-> $ret:ty)?;)*) => {
        $(fn $name(&self, $($arg: $type),*) $(-> $ret)? { $(let _ = $arg;)* $(<$ret>::MAX)? })*
    };
}

impl Handler for Identity {
    unsafe fn map_physical_region<T>(&self, addr: usize, size: usize) -> PhysicalMapping<Self, T> {
        let ptr = core::ptr::with_exposed_provenance_mut::<T>(addr);
        PhysicalMapping {
            physical_start: addr,
            virtual_start: NonNull::new(ptr).unwrap_or(NonNull::dangling()),
            region_length: size,
            mapped_length: size,
            handler: *self,
        }
    }

    fn unmap_physical_region<T>(_: &PhysicalMapping<Self, T>) {}

    no_aml! {
        read_u8(addr: usize) -> u8;
        read_u16(addr: usize) -> u16;
        read_u32(addr: usize) -> u32;
        read_u64(addr: usize) -> u64;
        write_u8(addr: usize, value: u8);
        write_u16(addr: usize, value: u16);
        write_u32(addr: usize, value: u32);
        write_u64(addr: usize, value: u64);
        read_io_u8(port: u16) -> u8;
        read_io_u16(port: u16) -> u16;
        read_io_u32(port: u16) -> u32;
        write_io_u8(port: u16, value: u8);
        write_io_u16(port: u16, value: u16);
        write_io_u32(port: u16, value: u32);
        read_pci_u8(addr: PciAddress, offset: u16) -> u8;
        read_pci_u16(addr: PciAddress, offset: u16) -> u16;
        read_pci_u32(addr: PciAddress, offset: u16) -> u32;
        write_pci_u8(addr: PciAddress, offset: u16, value: u8);
        write_pci_u16(addr: PciAddress, offset: u16, value: u16);
        write_pci_u32(addr: PciAddress, offset: u16, value: u32);
        nanos_since_boot() -> u64;
        stall(us: u64);
        sleep(ms: u64);
    }
}

/// Looks for the RSDP where a BIOS puts it (ACPI 6.5 §5.2.5.1): on 16-byte boundaries in
/// 0xE0000..0x100000, the ACPI 2.0 size, bytes adding up to 0.
#[must_use]
pub fn scan_bios_area() -> Option<u64> {
    (0xe_0000u64..0x10_0000).step_by(16).find(|addr| {
        let ptr = core::ptr::with_exposed_provenance::<[u8; 20]>(*addr as usize);
        // SAFETY: the BIOS area, mapped by the boot tables; plain bytes that nobody writes.
        let bytes = unsafe { ptr.read() };
        bytes.starts_with(b"RSD PTR ") && bytes.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)) == 0
    })
}

/// The ids of all enabled local APICs, in the order of the MADT, which is that of the vCPUs.
///
/// # Safety
/// `rsdp` is where the firmware put it, and its tables are mapped.
#[must_use]
pub unsafe fn apic_ids(rsdp: Option<u64>) -> ArrayVec<u32, { MAX + 1 }> {
    let mut ids = ArrayVec::new();
    let Some(rsdp) = rsdp else { return ids };
    // SAFETY: the caller's promise.
    let Ok(tables) = (unsafe { AcpiTables::from_rsdp(Identity, rsdp as usize) }) else {
        return ids;
    };
    if let Some(madt) = tables.find_table::<Madt>() {
        for entry in madt.get().entries().take(1024) {
            let id = match entry {
                MadtEntry::LocalApic(e) if e.flags & 1 != 0 => u32::from(e.apic_id),
                MadtEntry::LocalX2Apic(e) if e.flags & 1 != 0 => e.x2apic_id,
                _ => continue,
            };
            if ids.try_push(id).is_err() {
                break;
            }
        }
    }
    ids
}
