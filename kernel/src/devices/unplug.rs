//! Unplugging emulated NICs and disks, so that a device is not there twice (docs/misc/
//! hvm-emulated-unplug.pandoc): the protocol of port 0x10 of the xen-platform device.

use crate::cpu::percpu;
use crate::xen::Committed;
use x86_64::instructions::port::Port;

const IO_BASE: u16 = 0x10;
/// What port 0x10 reads where the protocol is spoken.
const MAGIC: u16 = 0x49d2;
/// `UNPLUG_ALL_IDE_DISKS`, `UNPLUG_ALL_NICS`, `UNPLUG_AUX_IDE_DISKS`, `UNPLUG_NVME_DISKS`.
const ALL: u16 = 1 | 2 | 4 | 8;
/// A product number that is nobody's; the device model only logs it and may refuse it.
const PRODUCT: u16 = 0xffff;

/// Unplugs; false where the device model does not speak the protocol or refuses.
pub fn unplug_all(_: Committed) -> bool {
    let (mut magic, mut version) = (Port::<u16>::new(IO_BASE), Port::<u8>::new(IO_BASE + 2));
    let (mut product, mut build) = (Port::<u16>::new(IO_BASE + 2), Port::<u32>::new(IO_BASE));
    for _ in 0..5 {
        percpu::this().count_exit();
    }
    // SAFETY: these ports do nothing else; a machine without them reads all ones.
    unsafe {
        if magic.read() != MAGIC {
            return false;
        }
        // From version 1 on drivers say who they are, and may be refused by a changed magic.
        if version.read() >= 1 {
            product.write(PRODUCT);
            build.write(1);
            if magic.read() != MAGIC {
                return false;
            }
        }
        magic.write(ALL);
    }
    true
}
