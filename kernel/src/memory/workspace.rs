//! The plan of a workspace: what lies behind an image's segments. Plain arithmetic, the same for
//! an image that boots and for one that is started by another.

use crate::memory::addr::Extent;
use crate::memory::frames::words_for;

/// Frames of the stack that `main` runs on.
const MAIN_STACK: u64 = 64;
/// Frames of a vCPU's stack.
const VCPU_STACK: u64 = 8;
const FAULT_STACK: u64 = 4;
const CRITICAL_STACK: u64 = 2;
/// Frames of the first heap.
const HEAP: u64 = 64;
/// Frames for page tables besides one for each GiB.
const TABLES: u64 = 24;

/// Guard, fault stack, guard, critical stack, guard, stack, data.
const AREA: u64 = 1 + FAULT_STACK + 1 + CRITICAL_STACK + 1 + VCPU_STACK + Workspace::DATA_FRAMES;

/// One vCPU's part.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VcpuArea {
    /// Stack for faults.
    pub fault: Extent,
    /// Stack for double faults, NMIs, machine checks.
    pub critical: Extent,
    /// Stack the vCPU idles and runs jobs on.
    pub stack: Extent,
    /// Its `PerCpu`.
    pub data: Extent,
}

/// The plan: everything follows from the extent, the number of vCPUs and the end of RAM.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Workspace {
    extent: Extent,
    vcpus: u32,
    ram_end: u64,
}

impl Workspace {
    /// Frames of a vCPU's own data.
    pub const DATA_FRAMES: u64 = 1;

    /// Frames a workspace takes.
    #[must_use]
    pub const fn frames(vcpus: u32, ram_end: u64) -> u64 {
        1 + MAIN_STACK + vcpus as u64 * AREA + tables(ram_end) + bitmap(ram_end) + HEAP
    }

    /// The plan for an extent; `None` if it has not the size that
    /// [`frames`](Self::frames) says.
    #[must_use]
    pub fn plan(extent: Extent, vcpus: u32, ram_end: u64) -> Option<Self> {
        (extent.frames() == Self::frames(vcpus, ram_end)).then_some(Self {
            extent,
            vcpus,
            ram_end,
        })
    }

    /// All of it.
    #[must_use]
    pub const fn extent(&self) -> Extent {
        self.extent
    }

    /// Number of vCPUs it is for.
    #[must_use]
    pub const fn vcpus(&self) -> u32 {
        self.vcpus
    }

    fn part(&self, offset: u64, frames: u64) -> Extent {
        // `plan` checked the size that all offsets follow from.
        self.extent.part(offset, frames).unwrap_or(self.extent)
    }

    /// The stack `main` runs on.
    #[must_use]
    pub fn main_stack(&self) -> Extent {
        self.part(1, MAIN_STACK)
    }

    fn area(&self, vcpu: u32) -> u64 {
        1 + MAIN_STACK + u64::from(vcpu) * AREA
    }

    /// A vCPU's part; `None` past the last.
    #[must_use]
    pub fn vcpu(&self, vcpu: u32) -> Option<VcpuArea> {
        if vcpu >= self.vcpus {
            return None;
        }
        let fault = self.area(vcpu) + 1;
        let critical = fault + FAULT_STACK + 1;
        let stack = critical + CRITICAL_STACK + 1;
        Some(VcpuArea {
            fault: self.part(fault, FAULT_STACK),
            critical: self.part(critical, CRITICAL_STACK),
            stack: self.part(stack, VCPU_STACK),
            data: self.part(stack + VCPU_STACK, Self::DATA_FRAMES),
        })
    }

    /// Frames for page tables.
    #[must_use]
    pub fn tables(&self) -> Extent {
        self.part(self.area(self.vcpus), tables(self.ram_end))
    }

    /// The frame allocator's bitmap.
    #[must_use]
    pub fn bitmap(&self) -> Extent {
        self.part(
            self.area(self.vcpus) + tables(self.ram_end),
            bitmap(self.ram_end),
        )
    }

    /// The first heap.
    #[must_use]
    pub fn heap(&self) -> Extent {
        let offset = self.area(self.vcpus) + tables(self.ram_end) + bitmap(self.ram_end);
        self.part(offset, HEAP)
    }

    /// The pages under the stacks, to be left unmapped.
    pub fn guards(&self) -> impl Iterator<Item = Extent> + '_ {
        let below = |e: Extent| Extent::from_bounds(e.start().as_u64() - 1, e.start().as_u64());
        (0..self.vcpus)
            .filter_map(|v| self.vcpu(v))
            .flat_map(|a| [a.fault, a.critical, a.stack])
            .chain([self.main_stack()])
            .filter_map(below)
    }
}

/// A table a GiB, and some for what is mapped in pages of 4 KiB.
const fn tables(ram_end: u64) -> u64 {
    TABLES + ram_end.div_ceil(1 << 18)
}

const fn bitmap(ram_end: u64) -> u64 {
    words_for(ram_end).div_ceil(512)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Gfn;

    #[test]
    fn parts_are_disjoint_and_fill_the_extent() {
        for (vcpus, ram_end) in [(1, 0x4000), (2, 0x1_0000), (32, 0x14_8000)] {
            let frames = Workspace::frames(vcpus, ram_end);
            let extent = Extent::new(Gfn::new(0x300).unwrap(), frames).unwrap();
            let w = Workspace::plan(extent, vcpus, ram_end).unwrap();
            let mut parts: Vec<Extent> = w.guards().collect();
            parts.extend([w.main_stack(), w.tables(), w.bitmap(), w.heap()]);
            for v in 0..vcpus {
                let a = w.vcpu(v).unwrap();
                parts.extend([a.fault, a.critical, a.stack, a.data]);
            }
            parts.sort_by_key(|e| e.start());
            assert!(
                parts
                    .windows(2)
                    .all(|p| p[0].end() == p[1].start().as_u64())
            );
            assert_eq!(parts.iter().map(|e| e.frames()).sum::<u64>(), frames);
            assert_eq!(parts[0].start(), extent.start());
            assert_eq!(w.vcpu(vcpus), None);
        }
    }

    #[test]
    fn a_plan_of_another_size_is_refused() {
        let extent = Extent::new(Gfn::new(1).unwrap(), 100).unwrap();
        assert_eq!(Workspace::plan(extent, 2, 0x4000), None);
    }
}
