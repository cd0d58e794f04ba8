//! Frames for what Xen writes (I2): a few frames of an address range that holds no RAM.
//!
//! On HVM that is BAR1 of the xen-platform PCI device. Without one (PVH) it is the part of the
//! hole below 4 GiB that hvmloader keeps free for guests (`tools/firmware/hvmloader/config.h`:
//! "must never be used by us"), provided the memory map says nothing of it.

use crate::memory::{Extent, ExtentSet, Gfn};

/// The range hvmloader never uses, 0xFE700000..0xFE800000.
pub const GUEST_HOLE: (u64, u64) = (0xFE70_0000, 0x10_0000);

/// A range without RAM from which frames are handed out, first to last, never back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Carve {
    range: Extent,
    used: u64,
}

impl Carve {
    /// The range of a PCI memory BAR; `None` if it is no range or RAM is in it.
    #[must_use]
    pub fn from_bar<const N: usize>(addr: u64, len: u64, map: &ExtentSet<N>) -> Option<Self> {
        Extent::inside(addr, len)
            .filter(|range| !map.overlaps(*range))
            .map(|range| Self { range, used: 0 })
    }

    /// The hole below 4 GiB; `None` if the memory map (RAM and reserved) claims a part of it.
    #[must_use]
    pub fn from_hole<const N: usize>(map: &ExtentSet<N>) -> Option<Self> {
        Self::from_bar(GUEST_HOLE.0, GUEST_HOLE.1, map)
    }

    /// As it was in another image: `used` frames of `range` are out.
    #[must_use]
    pub fn resume(range: Extent, used: u64) -> Option<Self> {
        (used <= range.frames()).then_some(Self { range, used })
    }

    /// The next frame.
    pub fn take(&mut self) -> Option<Gfn> {
        let gfn = self.range.part(self.used, 1)?.start();
        self.used += 1;
        Some(gfn)
    }

    /// The whole range.
    #[must_use]
    pub const fn range(&self) -> Extent {
        self.range
    }

    /// Frames handed out.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_order_and_end_with_the_range() {
        let mut carve = Carve::from_bar(0xf000_0000, 0x2000, &ExtentSet::<4>::new()).unwrap();
        assert_eq!(carve.take().map(Gfn::as_u64), Some(0xf_0000));
        assert_eq!(carve.take().map(Gfn::as_u64), Some(0xf_0001));
        assert_eq!(carve.take(), None);
        assert_eq!(carve.used(), 2);
    }

    #[test]
    fn a_bar_over_ram_or_of_no_size_is_refused() {
        let mut ram = ExtentSet::<4>::new();
        ram.insert(Extent::inside(0xf000_1000, 0x1000).unwrap())
            .unwrap();
        assert_eq!(Carve::from_bar(0xf000_0000, 0x2000, &ram), None);
        assert_eq!(Carve::from_bar(0xf000_0000, 0x800, &ram), None);
        assert!(Carve::from_hole(&ram).is_some());
    }
}
