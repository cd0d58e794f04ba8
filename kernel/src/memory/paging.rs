//! Page tables over a trait, so that the host can test them (Intel SDM 3 §4.5, AMD APM 2 §5.3).
//!
//! Identity mapping only (I1): a mapping says which addresses exist and what may be done there.
//! 2 MiB pages where an extent allows, 4 KiB elsewhere; a change inside a large page splits it.

use crate::memory::addr::{Extent, Gfn, PAGE_SIZE, PhysAddr};
use x86_64::structures::paging::PageTableFlags as Flags;

/// Frames of 2 MiB.
const LARGE: u64 = 512;

/// What may be done with memory. There is no way to say "write and execute" (W^X).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Perms {
    /// Read.
    Read,
    /// Read and write.
    Write,
    /// Read and execute.
    Execute,
}

impl Perms {
    fn flags(self) -> Flags {
        match self {
            Self::Read => Flags::PRESENT | Flags::NO_EXECUTE,
            Self::Write => Flags::PRESENT | Flags::NO_EXECUTE | Flags::WRITABLE,
            Self::Execute => Flags::PRESENT,
        }
        // Accessed and dirty from the start: the processor never has to write a table.
        .union(Flags::ACCESSED | Flags::DIRTY)
    }
}

/// There is no frame for another page table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoTableFrame;

impl core::fmt::Display for NoTableFrame {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("no free frame for a page table")
    }
}

/// 512 entries of one page table.
pub type Table = [u64; 512];

/// Where page tables come from and how they are reached.
pub trait Tables {
    /// A zeroed frame for a table, below 4 GiB (a processor that starts loads CR3 in 32-bit mode).
    fn alloc(&mut self) -> Option<Gfn>;
    /// The table in a frame that [`alloc`](Self::alloc) gave.
    fn table(&mut self, gfn: Gfn) -> &mut Table;
}

/// The most tables that mapping `extent` takes besides the root, whatever is mapped already:
/// what lies between the edges takes large pages, and each edge a table of small ones.
#[must_use]
pub fn tables_for(extent: Extent) -> u64 {
    let touched = |frames| extent.end().div_ceil(frames) - extent.start().as_u64() / frames;
    let edges = [extent.start().as_u64(), extent.end()];
    let uneven = edges.iter().filter(|edge| !edge.is_multiple_of(LARGE));
    let small = (uneven.count() as u64).min(touched(LARGE));
    small + touched(LARGE * 512) + touched(LARGE * 512 * 512)
}

/// One set of page tables: a root and all below it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AddressSpace {
    root: Gfn,
}

impl AddressSpace {
    /// Nothing is mapped.
    ///
    /// # Errors
    /// No frame for the root.
    pub fn new(tables: &mut impl Tables) -> Result<Self, NoTableFrame> {
        Ok(Self {
            root: tables.alloc().ok_or(NoTableFrame)?,
        })
    }

    /// Tables that exist already, by their root.
    #[must_use]
    pub const fn from_root(root: Gfn) -> Self {
        Self { root }
    }

    /// Address of the root, as CR3 wants it.
    #[must_use]
    pub const fn root(self) -> PhysAddr {
        self.root.addr()
    }

    /// Maps `extent` with `perms`, whatever was there before.
    ///
    /// # Errors
    /// No frame for a table: a part of the extent may be mapped.
    pub fn map(
        self,
        tables: &mut impl Tables,
        extent: Extent,
        perms: Perms,
    ) -> Result<(), NoTableFrame> {
        self.set(tables, extent, Some(perms))
    }

    /// Unmaps `extent`.
    ///
    /// # Errors
    /// No frame for a table (a large page has to be split).
    pub fn unmap(self, tables: &mut impl Tables, extent: Extent) -> Result<(), NoTableFrame> {
        self.set(tables, extent, None)
    }

    fn set(
        self,
        tables: &mut impl Tables,
        extent: Extent,
        perms: Option<Perms>,
    ) -> Result<(), NoTableFrame> {
        let (mut gfn, end) = (extent.start().as_u64(), extent.end());
        while gfn < end {
            let pdpt = child(tables, self.root, index(gfn, 27))?;
            let pd = child(tables, pdpt, index(gfn, 18))?;
            if gfn.is_multiple_of(LARGE) && end - gfn >= LARGE {
                let slot = index(gfn, 9);
                // A table below stays and is filled: freeing it would need a shootdown.
                match lookup(tables, pd, slot) {
                    Entry::Table(pt) => {
                        for i in 0..LARGE {
                            tables.table(pt)[i as usize] = leaf(gfn + i, perms, false);
                        }
                    }
                    _ => tables.table(pd)[slot] = leaf(gfn, perms, true),
                }
                gfn += LARGE;
            } else {
                let pt = child(tables, pd, index(gfn, 9))?;
                tables.table(pt)[index(gfn, 0)] = leaf(gfn, perms, false);
                gfn += 1;
            }
        }
        Ok(())
    }

    /// What the tables allow at `addr`; `None` if it isn't mapped.
    pub fn perms(self, tables: &mut impl Tables, addr: PhysAddr) -> Option<Perms> {
        let gfn = addr.gfn().as_u64();
        // Four levels translate 48 bits.
        if gfn >> 36 != 0 {
            return None;
        }
        let mut table = self.root;
        for shift in [27, 18, 9, 0] {
            let entry = tables.table(table)[index(gfn, shift)];
            let flags = Flags::from_bits_truncate(entry);
            if !flags.contains(Flags::PRESENT) {
                return None;
            }
            if shift == 0 || flags.contains(Flags::HUGE_PAGE) {
                return Some(if flags.contains(Flags::WRITABLE) {
                    Perms::Write
                } else if flags.contains(Flags::NO_EXECUTE) {
                    Perms::Read
                } else {
                    Perms::Execute
                });
            }
            table = Gfn::new((entry & ADDR) / PAGE_SIZE)?;
        }
        None
    }
}

const ADDR: u64 = 0x000f_ffff_ffff_f000;

fn index(gfn: u64, shift: u32) -> usize {
    (gfn >> shift & 511) as usize
}

fn leaf(gfn: u64, perms: Option<Perms>, large: bool) -> u64 {
    perms.map_or(0, |p| {
        let size = if large {
            Flags::HUGE_PAGE
        } else {
            Flags::empty()
        };
        (gfn * PAGE_SIZE) | (p.flags() | size).bits()
    })
}

enum Entry {
    Empty,
    Table(Gfn),
    Large(u64),
}

fn lookup(tables: &mut impl Tables, table: Gfn, slot: usize) -> Entry {
    let entry = tables.table(table)[slot];
    let flags = Flags::from_bits_truncate(entry);
    if !flags.contains(Flags::PRESENT) {
        Entry::Empty
    } else if flags.contains(Flags::HUGE_PAGE) {
        Entry::Large(entry)
    } else {
        Gfn::new((entry & ADDR) / PAGE_SIZE).map_or(Entry::Empty, Entry::Table)
    }
}

/// The table below `slot`; made, or made from a large page, where there is none.
fn child(tables: &mut impl Tables, table: Gfn, slot: usize) -> Result<Gfn, NoTableFrame> {
    let before = match lookup(tables, table, slot) {
        Entry::Table(gfn) => return Ok(gfn),
        Entry::Empty => None,
        Entry::Large(entry) => Some(entry & !Flags::HUGE_PAGE.bits()),
    };
    let gfn = tables.alloc().ok_or(NoTableFrame)?;
    if let Some(first) = before {
        for (i, e) in tables.table(gfn).iter_mut().enumerate() {
            *e = first + i as u64 * PAGE_SIZE;
        }
    }
    // The leaf decides: every level above allows writing and executing.
    let flags = Flags::PRESENT | Flags::WRITABLE | Flags::ACCESSED;
    tables.table(table)[slot] = gfn.addr().as_u64() | flags.bits();
    Ok(gfn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Fake {
        tables: BTreeMap<Gfn, Box<Table>>,
        limit: Option<usize>,
    }

    impl Tables for Fake {
        fn alloc(&mut self) -> Option<Gfn> {
            if self.limit.is_some_and(|l| self.tables.len() >= l) {
                return None;
            }
            let gfn = Gfn::new(0x8_0000 + self.tables.len() as u64).unwrap();
            self.tables.insert(gfn, Box::new([0; 512]));
            Some(gfn)
        }
        fn table(&mut self, gfn: Gfn) -> &mut Table {
            self.tables
                .get_mut(&gfn)
                .expect("a table that was allocated")
        }
    }

    fn extent(start: u64, frames: u64) -> Extent {
        Extent::new(Gfn::new(start).unwrap(), frames).unwrap()
    }

    /// Under Miri, which takes long for each frame, less of everything.
    const FRAMES: u64 = if cfg!(miri) { 200 } else { 3 << 18 };
    const OPS: usize = if cfg!(miri) { 3 } else { 25 };
    const STEP: usize = if cfg!(miri) { 61 } else { 1 };

    proptest! {
        /// Each frame has what was said of it last, through splits and large pages.
        #[test]
        fn the_last_word_on_a_frame_holds(
            ops in proptest::collection::vec((0u64..3000, 1u64..1600, 0u8..4), 1..OPS)
        ) {
            let mut fake = Fake::default();
            let space = AddressSpace::new(&mut fake).unwrap();
            let mut model = vec![None; 5000];
            for (start, frames, what) in ops {
                let perms = [None, Some(Perms::Read), Some(Perms::Write), Some(Perms::Execute)]
                    [usize::from(what)];
                space.set(&mut fake, extent(start, frames), perms).unwrap();
                model[start as usize..(start + frames) as usize].fill(perms);
            }
            for (gfn, perms) in model.iter().enumerate().step_by(STEP) {
                let addr = Gfn::new(gfn as u64).unwrap().addr();
                prop_assert_eq!(space.perms(&mut fake, addr), *perms, "frame {}", gfn);
            }
        }
    }

    proptest! {
        /// Enough tables for each extent, and for a single one no more than are used.
        #[test]
        fn as_many_tables_as_are_said(
            extents in proptest::collection::vec((0u64..1 << 20, 1..FRAMES), 1..5)
        ) {
            let mut fake = Fake::default();
            let space = AddressSpace::new(&mut fake).unwrap();
            let mut most = 1;
            for (n, (start, frames)) in extents.into_iter().enumerate() {
                let extent = extent(start, frames);
                most += tables_for(extent);
                space.map(&mut fake, extent, Perms::Read).unwrap();
                prop_assert!(fake.tables.len() as u64 <= most);
                if n == 0 {
                    prop_assert_eq!(fake.tables.len() as u64, most);
                }
            }
        }
    }

    #[test]
    fn a_gibibyte_takes_large_pages() {
        let mut fake = Fake::default();
        let space = AddressSpace::new(&mut fake).unwrap();
        space
            .map(&mut fake, extent(0x4_0000, 0x4_0000), Perms::Write)
            .unwrap();
        assert_eq!(fake.tables.len(), 3);
    }

    #[test]
    fn running_out_of_frames_is_an_error() {
        let mut fake = Fake {
            limit: Some(3),
            ..Fake::default()
        };
        let space = AddressSpace::new(&mut fake).unwrap();
        assert_eq!(
            space.map(&mut fake, extent(1, 1), Perms::Read),
            Err(NoTableFrame)
        );
    }
}
