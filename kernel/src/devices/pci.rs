//! PCI configuration space by port I/O (mechanism #1), before any heap, and in it the one device
//! that matters: the xen-platform device. Every access is a trip to the device model, so the scan
//! stops where it finds what it looks for.

use crate::cpu::percpu;
use crate::memory::ExtentSet;
use crate::xen::Committed;
use crate::xen::carve::Carve;
use pci_types::{ConfigRegionAccess, PciAddress, PciHeader};
use x86_64::instructions::port::Port;

/// Vendor and device of the xen-platform device (QEMU `hw/xen/xen_platform.c`).
const XEN_PLATFORM: (u16, u16) = (0x5853, 0x0001);
const NO_DEVICE: u16 = 0xffff;
/// Offset of BAR1 in configuration space.
const BAR1: u16 = 0x14;
/// Size of BAR1 in QEMU's device, in bytes. Asking for it by writing ones takes four trips and
/// unmaps the range meanwhile.
const BAR1_BYTES: u64 = 16 << 20;

/// Ports 0xCF8 and 0xCFC.
#[derive(Clone, Copy)]
struct PortAccess(#[allow(dead_code, reason = "proof that ports may be touched")] Committed);

impl PortAccess {
    fn select(address: PciAddress, offset: u16) {
        percpu::this().count_exit();
        percpu::this().count_exit();
        let value = 1 << 31
            | u32::from(address.bus()) << 16
            | u32::from(address.device()) << 11
            | u32::from(address.function()) << 8
            | u32::from(offset & 0xfc);
        // SAFETY: 0xCF8 selects a register and does nothing else.
        unsafe { Port::new(0xcf8).write(value) };
    }
}

impl ConfigRegionAccess for PortAccess {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        Self::select(address, offset);
        // SAFETY: reading the selected register; one vCPU runs at this time of the boot.
        unsafe { Port::new(0xcfc).read() }
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        Self::select(address, offset);
        // SAFETY: the caller's promise about the register's value; one vCPU runs.
        unsafe { Port::new(0xcfc).write(value) }
    }
}

/// Finds the xen-platform device on bus 0 and its BAR1: the range to carve frames from. `map` is
/// what the memory map says, for a check that the BAR is where no RAM is.
#[must_use]
pub fn platform_bar<const N: usize>(token: Committed, map: &ExtentSet<N>) -> Option<Carve> {
    let access = PortAccess(token);
    // xl puts it at slot 2: looked at first, as each slot costs two trips.
    for device in (2..32).chain(0..2) {
        let header = PciHeader::new(PciAddress::new(0, 0, device, 0));
        let id = header.id(access);
        if id.0 == NO_DEVICE {
            continue;
        }
        if id == XEN_PLATFORM {
            // SAFETY: reading a BAR changes nothing.
            let bar = unsafe { access.read(header.address(), BAR1) };
            return memory_bar(bar).and_then(|start| Carve::from_bar(start, BAR1_BYTES, map));
        }
    }
    None
}

/// The address in a 32-bit memory BAR (PCI Local Bus 3.0, section 6.2.5.1); `None` for another
/// kind, one that is not set, or one that is not aligned to its size.
fn memory_bar(bar: u32) -> Option<u64> {
    const KIND: u32 = 0b111;
    let start = u64::from(bar & !0xf);
    (bar & KIND == 0 && start != 0 && start.is_multiple_of(BAR1_BYTES)).then_some(start)
}
