//! What every way in says about the machine, in one shape, and the two formats it is read from:
//! Linux `boot_params` (Documentation/arch/x86/zero-page.rst) and PVH `hvm_start_info`
//! (public/arch-x86/hvm/start_info.h). Parsing takes bytes and a way to read memory, so that the
//! host can test it.

use crate::boot::cmdline::{self, CommandLine};
use crate::memory::extents::TooManyExtents;
use crate::memory::{Extent, ExtentSet};
use arrayvec::ArrayVec;

/// Most extents in a memory map.
pub const MAX_EXTENTS: usize = 64;
/// Most modules.
pub const MAX_MODULES: usize = 8;

/// E820 and PVH type of RAM.
const RAM: u32 = 1;

/// How this image came to run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum EntryKind {
    /// By the Linux boot protocol.
    Linux = 1,
    /// By PVH.
    Pvh = 2,
    /// From another Segue image.
    Handover = 3,
}

impl EntryKind {
    /// As the console says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Linux => "linux",
            Self::Pvh => "pvh",
            Self::Handover => "handover",
        }
    }
}

/// Bytes that came with the image: a ramdisk or a PVH module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module {
    /// Address of the first byte.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Module {
    /// The frames it touches; `None` for an empty one or one past the end of addresses.
    #[must_use]
    pub fn extent(&self) -> Option<Extent> {
        (self.len > 0)
            .then(|| Extent::touching(self.addr, self.len))
            .flatten()
    }
}

/// What the loader says.
#[derive(Clone, Debug)]
pub struct BootInfo {
    /// How we got here.
    pub entry: EntryKind,
    /// Whole frames of RAM.
    pub ram: ExtentSet<MAX_EXTENTS>,
    /// All frames that the map speaks of, of whatever kind.
    pub claimed: ExtentSet<MAX_EXTENTS>,
    /// The command line.
    pub cmdline: CommandLine,
    /// Ramdisk or modules.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// Address of ACPI's RSDP where the loader knows it.
    pub rsdp: Option<u64>,
}

/// Why boot data cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootError {
    /// A pointer leads where nothing can be read.
    BadPointer(u64),
    /// The magic number is not there.
    BadMagic,
    /// The memory map has no RAM.
    NoRam,
    /// The memory map has more pieces than [`MAX_EXTENTS`].
    MapTooLong,
}

impl core::fmt::Display for BootError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadPointer(p) => write!(f, "the loader's boot data points to {p:#x}"),
            Self::BadMagic => f.write_str("the boot data has no magic number"),
            Self::NoRam => f.write_str("the memory map has no RAM"),
            Self::MapTooLong => write!(f, "the memory map has more than {MAX_EXTENTS} pieces"),
        }
    }
}

impl From<TooManyExtents> for BootError {
    fn from(_: TooManyExtents) -> Self {
        Self::MapTooLong
    }
}

/// Reads physical memory while boot data is parsed.
pub trait Read {
    /// `N` bytes at `addr`; `None` where that cannot be read.
    fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]>;

    /// A little-endian u32.
    ///
    /// # Errors
    /// The address cannot be read.
    fn u32(&self, addr: u64) -> Result<u32, BootError> {
        self.bytes(addr)
            .map(u32::from_le_bytes)
            .ok_or(BootError::BadPointer(addr))
    }

    /// A little-endian u64.
    ///
    /// # Errors
    /// The address cannot be read.
    fn u64(&self, addr: u64) -> Result<u64, BootError> {
        self.bytes(addr)
            .map(u64::from_le_bytes)
            .ok_or(BootError::BadPointer(addr))
    }
}

fn command_line(memory: &impl Read, addr: u64) -> CommandLine {
    let mut text = [0u8; cmdline::MAX];
    if addr != 0 {
        for (i, byte) in (0u64..).zip(text.iter_mut()) {
            match memory.bytes::<1>(addr.saturating_add(i)) {
                Some([b]) if b != 0 => *byte = b,
                _ => break,
            }
        }
    }
    CommandLine::from_bytes(&text)
}

/// Collects map entries: firmware lists may overlap and need not be sorted; what anything but RAM
/// claims is not RAM.
#[derive(Default)]
struct Map {
    ram: ExtentSet<MAX_EXTENTS>,
    other: ExtentSet<MAX_EXTENTS>,
}

impl Map {
    fn add(&mut self, addr: u64, len: u64, kind: u32) -> Result<(), BootError> {
        if kind == RAM {
            Extent::inside(addr, len).map_or(Ok(()), |e| self.ram.insert(e))?;
        } else if len > 0 {
            Extent::touching(addr, len).map_or(Ok(()), |e| self.other.insert(e))?;
        }
        Ok(())
    }

    /// RAM, and everything the map speaks of.
    fn finish(mut self) -> Result<(ExtentSet<MAX_EXTENTS>, ExtentSet<MAX_EXTENTS>), BootError> {
        for extent in self.other.iter() {
            self.ram.remove(extent)?;
        }
        for extent in self.ram.iter() {
            self.other.insert(extent)?;
        }
        if self.ram.frames() == 0 {
            Err(BootError::NoRam)
        } else {
            Ok((self.ram, self.other))
        }
    }
}

impl BootInfo {
    /// Reads Linux boot parameters at `addr`.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn from_linux(memory: &impl Read, addr: u64) -> Result<Self, BootError> {
        let at = |offset| memory.u32(addr.saturating_add(offset));
        if at(0x202)? != u32::from_le_bytes(*b"HdrS") {
            return Err(BootError::BadMagic);
        }
        let entries = at(0x1e8)? & 0xff;
        let mut map = Map::default();
        for i in 0..u64::from(entries.min(128)) {
            let e = addr.saturating_add(0x2d0 + i * 20);
            map.add(memory.u64(e)?, memory.u64(e + 8)?, memory.u32(e + 16)?)?;
        }
        let (ram, claimed) = map.finish()?;
        let ramdisk = Module {
            addr: u64::from(at(0x218)?) | u64::from(at(0xc0)?) << 32,
            len: u64::from(at(0x21c)?) | u64::from(at(0xc4)?) << 32,
        };
        let cmdline = u64::from(at(0x228)?) | u64::from(at(0xc8)?) << 32;
        let rsdp = memory.u64(addr.saturating_add(0x70))?;
        Ok(Self {
            entry: EntryKind::Linux,
            ram,
            claimed,
            cmdline: command_line(memory, cmdline),
            modules: ramdisk.extent().map(|_| ramdisk).into_iter().collect(),
            rsdp: (rsdp != 0).then_some(rsdp),
        })
    }

    /// Reads a PVH start info at `addr`.
    ///
    /// # Errors
    /// See [`BootError`].
    pub fn from_pvh(memory: &impl Read, addr: u64) -> Result<Self, BootError> {
        let at32 = |offset| memory.u32(addr.saturating_add(offset));
        let at64 = |offset| memory.u64(addr.saturating_add(offset));
        if at32(0)? != 0x336e_c578 {
            return Err(BootError::BadMagic);
        }
        let mut map = Map::default();
        // The memory map came with version 1.
        if at32(4)? >= 1 {
            let (table, entries) = (at64(40)?, at32(48)?);
            for i in 0..u64::from(entries.min(1024)) {
                let e = table.saturating_add(i * 24);
                map.add(
                    memory.u64(e)?,
                    memory.u64(e.saturating_add(8))?,
                    memory.u32(e.saturating_add(16))?,
                )?;
            }
        }
        let (ram, claimed) = map.finish()?;
        let mut modules = ArrayVec::new();
        let (list, count) = (at64(16)?, at32(12)?);
        for i in 0..u64::from(count) {
            let m = list.saturating_add(i * 32);
            let module = Module {
                addr: memory.u64(m)?,
                len: memory.u64(m.saturating_add(8))?,
            };
            if module.extent().is_some() && modules.try_push(module).is_err() {
                break;
            }
        }
        let rsdp = at64(32)?;
        Ok(Self {
            entry: EntryKind::Pvh,
            ram,
            claimed,
            cmdline: command_line(memory, at64(24)?),
            modules,
            rsdp: (rsdp != 0).then_some(rsdp),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Memory from address 0 on.
    struct Fake(Vec<u8>);

    impl Read for Fake {
        fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
            let start = usize::try_from(addr).ok()?;
            self.0.get(start..start.checked_add(N)?)?.try_into().ok()
        }
    }

    fn put(m: &mut [u8], at: usize, bytes: &[u8]) {
        m[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn linux() -> Vec<u8> {
        let mut m = vec![0; 0x4000];
        put(&mut m, 0x1202, b"HdrS");
        m[0x11e8] = 3;
        for (i, (a, l, t)) in [
            (0u64, 0x9fc00u64, 1u32),
            (0x9fc00, 0x400, 2),
            (0x10_0000, 0x3f0_0000, 1),
        ]
        .into_iter()
        .enumerate()
        {
            put(&mut m, 0x12d0 + i * 20, &a.to_le_bytes());
            put(&mut m, 0x12d8 + i * 20, &l.to_le_bytes());
            put(&mut m, 0x12e0 + i * 20, &t.to_le_bytes());
        }
        put(&mut m, 0x1218, &0x300_0000u32.to_le_bytes());
        put(&mut m, 0x121c, &0x1234u32.to_le_bytes());
        put(&mut m, 0x1228, &0x3000u32.to_le_bytes());
        put(&mut m, 0x3000, b"a=b -- c\0");
        m
    }

    fn pvh() -> Vec<u8> {
        let mut m = vec![0; 0x4000];
        put(&mut m, 0x1000, &0x336e_c578u32.to_le_bytes());
        put(&mut m, 0x1004, &1u32.to_le_bytes());
        put(&mut m, 0x100c, &1u32.to_le_bytes());
        put(&mut m, 0x1010, &0x2000u64.to_le_bytes());
        put(&mut m, 0x1018, &0x3000u64.to_le_bytes());
        put(&mut m, 0x1020, &0xfc00_0000u64.to_le_bytes());
        put(&mut m, 0x1028, &0x2800u64.to_le_bytes());
        put(&mut m, 0x1030, &1u32.to_le_bytes());
        put(&mut m, 0x2000, &0x50_0000u64.to_le_bytes());
        put(&mut m, 0x2008, &77u64.to_le_bytes());
        put(&mut m, 0x2808, &0x400_0000u64.to_le_bytes());
        put(&mut m, 0x2810, &1u32.to_le_bytes());
        put(&mut m, 0x3000, b"-- x\0");
        m
    }

    #[test]
    fn linux_boot_params() {
        let info = BootInfo::from_linux(&Fake(linux()), 0x1000).unwrap();
        assert_eq!(info.ram.frames(), 0x9f + 0x3f00);
        assert_eq!(info.claimed.frames(), 0xa0 + 0x3f00);
        assert_eq!(info.cmdline.args().collect::<Vec<_>>(), ["c"]);
        assert_eq!(
            info.modules[..],
            [Module {
                addr: 0x300_0000,
                len: 0x1234
            }]
        );
        assert_eq!(info.rsdp, None);
    }

    #[test]
    fn pvh_start_info() {
        let info = BootInfo::from_pvh(&Fake(pvh()), 0x1000).unwrap();
        assert_eq!(info.ram.frames(), 0x4000);
        assert_eq!(
            info.modules[..],
            [Module {
                addr: 0x50_0000,
                len: 77
            }]
        );
        assert_eq!(info.rsdp, Some(0xfc00_0000));
        assert_eq!(info.cmdline.as_str(), "-- x");
    }

    #[test]
    fn bad_magic_and_pointers_are_errors() {
        let empty = Fake(vec![0; 0x4000]);
        assert_eq!(
            BootInfo::from_linux(&empty, 0).unwrap_err(),
            BootError::BadMagic
        );
        assert_eq!(
            BootInfo::from_pvh(&empty, 0).unwrap_err(),
            BootError::BadMagic
        );
        assert!(matches!(
            BootInfo::from_pvh(&empty, u64::MAX - 3).unwrap_err(),
            BootError::BadPointer(_)
        ));
    }

    proptest! {
        /// Whatever a loader leaves, parsing ends with a value or an error.
        #[test]
        fn damaged_boot_data_never_panics(
            hits in proptest::collection::vec((0usize..0x3100, any::<u8>()), 0..60)
        ) {
            for mut m in [linux(), pvh()] {
                for (at, byte) in &hits { m[*at] = *byte; }
                let m = Fake(m);
                let _ = BootInfo::from_linux(&m, 0x1000);
                let _ = BootInfo::from_pvh(&m, 0x1000);
            }
        }
    }
}
