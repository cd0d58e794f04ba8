//! Addresses and frames as types.

use core::fmt;

/// Bytes in a frame.
pub const PAGE_SIZE: u64 = 4096;

/// First address that no x86 processor can translate (52 physical bits, Intel SDM 3 §4.1.4).
const PHYS_END: u64 = 1 << 52;

/// A guest physical address in bytes; also the virtual address of what is there (I1).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct PhysAddr(u64);

impl PhysAddr {
    /// The address, if a processor can have it.
    #[must_use]
    pub const fn new(addr: u64) -> Option<Self> {
        if addr < PHYS_END {
            Some(Self(addr))
        } else {
            None
        }
    }

    /// The number, in bytes.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The address as a pointer. Reading or writing through it is up to the page tables.
    #[must_use]
    pub const fn as_ptr<T>(self) -> *mut T {
        core::ptr::with_exposed_provenance_mut(self.0 as usize)
    }

    /// The frame the address is in.
    #[must_use]
    pub const fn gfn(self) -> Gfn {
        Gfn(self.0 / PAGE_SIZE)
    }
}

impl fmt::Debug for PhysAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A guest frame number (Xen: `xen_pfn_t` of an HVM guest).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gfn(u64);

impl Gfn {
    /// The frame number, if a processor can address it.
    #[must_use]
    pub const fn new(gfn: u64) -> Option<Self> {
        if gfn < PHYS_END / PAGE_SIZE {
            Some(Self(gfn))
        } else {
            None
        }
    }

    /// The number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// Address of the frame's first byte.
    #[must_use]
    pub const fn addr(self) -> PhysAddr {
        PhysAddr(self.0 * PAGE_SIZE)
    }

    /// The frame alone.
    #[must_use]
    pub const fn extent(self) -> Extent {
        Extent {
            start: self.0,
            end: self.0 + 1,
        }
    }
}

impl fmt::Debug for Gfn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// Frames one after the other; never empty, never past the end of what can be addressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Extent {
    start: u64,
    end: u64,
}

impl Extent {
    /// `frames` frames from `start` on.
    #[must_use]
    pub const fn new(start: Gfn, frames: u64) -> Option<Self> {
        match start.0.checked_add(frames) {
            Some(end) if frames > 0 && end <= PHYS_END / PAGE_SIZE => Some(Self {
                start: start.0,
                end,
            }),
            _ => None,
        }
    }

    /// The frames that lie wholly inside `len` bytes at `addr` (what a memory map promises).
    #[must_use]
    pub fn inside(addr: u64, len: u64) -> Option<Self> {
        let end = addr.saturating_add(len).min(PHYS_END);
        let first = addr.checked_next_multiple_of(PAGE_SIZE)? / PAGE_SIZE;
        Self::new(Gfn::new(first)?, (end / PAGE_SIZE).checked_sub(first)?)
    }

    /// The frames that `len` bytes at `addr` touch (what has to be kept from others).
    #[must_use]
    pub fn touching(addr: u64, len: u64) -> Option<Self> {
        let end = addr.saturating_add(len).min(PHYS_END);
        let first = addr / PAGE_SIZE;
        Self::new(
            Gfn::new(first)?,
            end.div_ceil(PAGE_SIZE).checked_sub(first)?,
        )
    }

    pub(crate) const fn from_bounds(start: u64, end: u64) -> Option<Self> {
        if start < end && end <= PHYS_END / PAGE_SIZE {
            Some(Self { start, end })
        } else {
            None
        }
    }

    /// First frame.
    #[must_use]
    pub const fn start(self) -> Gfn {
        Gfn(self.start)
    }

    /// Number of the frame after the last.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// Length in frames.
    #[must_use]
    pub const fn frames(self) -> u64 {
        self.end - self.start
    }

    /// Length in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.frames() * PAGE_SIZE
    }

    /// First byte.
    #[must_use]
    pub const fn addr(self) -> PhysAddr {
        self.start().addr()
    }

    /// Address after the last byte.
    #[must_use]
    pub const fn end_addr(self) -> u64 {
        self.end * PAGE_SIZE
    }

    /// Whether all of `other` is in here.
    #[must_use]
    pub const fn contains(self, other: Extent) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share a frame.
    #[must_use]
    pub const fn overlaps(self, other: Extent) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// `frames` frames that begin `offset` frames in.
    #[must_use]
    pub fn part(self, offset: u64, frames: u64) -> Option<Self> {
        let part = Self::new(Gfn::new(self.start.checked_add(offset)?)?, frames)?;
        self.contains(part).then_some(part)
    }
}

impl fmt::Debug for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:#x}..{:#x}",
            self.start * PAGE_SIZE,
            self.end * PAGE_SIZE
        )
    }
}
