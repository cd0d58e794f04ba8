//! This image's memory: which frames are free, what is mapped, and the plan of a workspace.
//!
//! An image lives in one extent: its segments, then the **workspace** that whoever starts it lays
//! out: stacks with guard pages, data of each vCPU, page tables, the frame bitmap, the first heap.

use crate::cpu::percpu::PerCpu;
use crate::cpu::tables::FaultStacks;
use crate::memory::addr::PAGE_SIZE;
use crate::memory::frames::{FrameBitmap, words_for};
use crate::memory::paging::{AddressSpace, NoTableFrame, Perms, Table, Tables};
use crate::memory::scrub;
use crate::memory::workspace::Workspace;
use crate::memory::{Extent, ExtentSet, Gfn};
use crate::sync::Lock;
use core::sync::atomic::{AtomicU64, Ordering};
use x86_64::VirtAddr;

struct Memory {
    frames: FrameBitmap<'static>,
    space: AddressSpace,
    pool: TablePool,
    workspace: Workspace,
}

static MEMORY: Lock<Option<Memory>> = Lock::new(None);

/// Frames that an image on trial may take, lowest first.
struct Room {
    extent: Extent,
    used: u64,
}

static ROOM: Lock<Option<Room>> = Lock::new(None);

/// On trial, where no frame is free: these are to be had. What is taken of them belongs to this
/// image after the commit, the rest is free then.
///
/// # Safety
/// They are mapped writable, nobody's, and not among what is kept.
pub unsafe fn make_room(extent: Extent) {
    *ROOM.lock() = Some(Room { extent, used: 0 });
}

fn take_room(frames: u64, align: u64) -> Option<Extent> {
    let mut room = ROOM.lock();
    let room = room.as_mut()?;
    let first = room.extent.start().as_u64();
    let start = (first + room.used).checked_next_multiple_of(align.max(1))?;
    let taken = room.extent.part(start - first, frames)?;
    room.used = start - first + frames;
    Some(taken)
}

/// Frames for page tables: a bump pointer over an extent that is zeroed.
#[derive(Debug)]
pub struct TablePool {
    extent: Extent,
    used: u64,
}

impl TablePool {
    /// Zeroes the extent and hands it out.
    ///
    /// # Safety
    /// The extent is mapped writable and nobody else's, now and while a table in it is in use.
    #[must_use]
    pub unsafe fn new(extent: Extent) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            extent
                .addr()
                .as_ptr::<u8>()
                .write_bytes(0, extent.bytes() as usize)
        };
        Self { extent, used: 0 }
    }

    /// A pool another image made, of which `used` frames are out.
    ///
    /// # Safety
    /// As for [`new`](Self::new), and the rest is zeroed.
    #[must_use]
    pub unsafe fn resume(extent: Extent, used: u64) -> Self {
        Self { extent, used }
    }

    /// Frames handed out.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.used
    }
}

impl Tables for TablePool {
    fn alloc(&mut self) -> Option<Gfn> {
        let gfn = self.extent.part(self.used, 1)?.start();
        self.used += 1;
        Some(gfn)
    }

    fn table(&mut self, gfn: Gfn) -> &mut Table {
        // SAFETY: only frames that `alloc` gave come here (the field is private); they are page
        // tables, mapped writable, and `&mut self` is the only way to them.
        unsafe { &mut *gfn.addr().as_ptr::<Table>() }
    }
}

/// Everything an image maps besides its own segments and stacks.
#[derive(Debug)]
pub struct Surroundings<'a, const N: usize> {
    /// RAM.
    pub ram: &'a ExtentSet<N>,
    /// Frames outside RAM, mapped writable: shared_info, the console ring.
    pub devices: &'a [Gfn],
    /// The park pages: code (execute), the rest (write).
    pub park_code: Extent,
}

/// Builds the tables an image runs on: RAM writable, its segments with their permissions, guard
/// pages and page 0 unmapped, the park code executable.
///
/// # Errors
/// The pool is too small.
pub fn build_space<const N: usize>(
    pool: &mut TablePool,
    around: &Surroundings<'_, N>,
    segments: impl Iterator<Item = (Extent, Perms)>,
    workspace: &Workspace,
) -> Result<AddressSpace, NoTableFrame> {
    let space = AddressSpace::new(pool)?;
    for extent in around.ram.iter() {
        space.map(pool, extent, Perms::Write)?;
    }
    for gfn in around.devices {
        space.map(pool, gfn.extent(), Perms::Write)?;
    }
    for (extent, perms) in segments {
        space.map(pool, extent, perms)?;
    }
    for guard in workspace.guards() {
        space.unmap(pool, guard)?;
    }
    space.map(pool, around.park_code, Perms::Execute)?;
    if let Some(zero) = Gfn::new(0) {
        space.unmap(pool, zero.extent())?;
    }
    Ok(space)
}

/// Starts the frame allocator: RAM less what is kept. `code` is where the image before had its
/// text, which is free a little later.
///
/// # Safety
/// `space` is loaded and was built with `pool`; the workspace's bitmap frames are mapped and
/// nobody else's; every frame of RAM that somebody uses is in `kept`.
pub unsafe fn init<const N: usize, const M: usize>(
    ram: &ExtentSet<N>,
    kept: &ExtentSet<M>,
    code: Option<Extent>,
    space: AddressSpace,
    pool: TablePool,
    workspace: Workspace,
) {
    let words = words_for(ram.end()) as usize;
    // SAFETY: the caller's promise; the workspace was planned for as many words.
    let words = unsafe {
        core::slice::from_raw_parts_mut(workspace.bitmap().addr().as_ptr::<u64>(), words)
    };
    let mut frames = FrameBitmap::new(words);
    for extent in ram.iter() {
        frames.release(extent);
    }
    for extent in kept.iter() {
        frames.reserve(extent);
    }
    if let Some(zero) = Gfn::new(0) {
        frames.reserve(zero.extent());
    }
    if let Some(Room { extent, used }) = ROOM.lock().take()
        && let Some(taken) = extent.part(0, used)
    {
        frames.reserve(taken);
    }
    let code = code.filter(|code| {
        ram.iter().any(|e| e.contains(*code)) && !kept.iter().any(|e| e.overlaps(*code))
    });
    if let Some(code) = code {
        frames.reserve(code);
    }
    *MEMORY.lock() = Some(Memory {
        frames,
        space,
        pool,
        workspace,
    });
    if let Some(code) = code {
        // SAFETY: RAM that is not kept, mapped writable, and taken just now.
        unsafe { scrub::add(code) };
    }
}

fn alloc_below(limit: u64, frames: u64, align: u64) -> Option<Extent> {
    let alloc = || match MEMORY.lock().as_mut() {
        Some(m) => m.frames.alloc(frames, align, limit),
        None => take_room(frames, align),
    };
    alloc().or_else(|| scrub::finish().then(alloc)?)
}

/// Takes `frames` frames in a row, aligned to `align` frames; contents unspecified.
pub fn alloc_frames(frames: u64, align: u64) -> Option<Extent> {
    alloc_below(u64::MAX, frames, align)
}

/// As [`alloc_frames`], below 4 GiB.
pub fn alloc_frames_low(frames: u64, align: u64) -> Option<Extent> {
    alloc_below(1 << 20, frames, align)
}

/// Gives frames back.
///
/// # Safety
/// They came from the allocator (or belonged to an image that is gone) and nobody uses them.
pub unsafe fn free_frames(extent: Extent) {
    if let Some(m) = MEMORY.lock().as_mut() {
        m.frames.release(extent);
    }
}

/// The same; `waiting` falls by as many at the same moment, for who counts both.
///
/// # Safety
/// As for [`free_frames`].
pub(super) unsafe fn free_frames_of(extent: Extent, waiting: &AtomicU64) {
    let mut memory = MEMORY.lock();
    if let Some(m) = memory.as_mut() {
        m.frames.release(extent);
    }
    waiting.fetch_sub(extent.frames(), Ordering::AcqRel);
}

/// Gives frames back that held code: they are free when they are overwritten.
///
/// # Safety
/// As for [`free_frames`], and they are mapped writable.
pub unsafe fn free_code(extent: Extent) {
    // SAFETY: the caller's promise.
    unsafe { scrub::add(extent) };
}

/// Number of free frames, with those that will be soon.
pub fn free_count() -> u64 {
    let memory = MEMORY.lock();
    memory.as_ref().map_or(0, |m| m.frames.free()) + scrub::frames()
}

/// The `n`th free extent, lowest first.
pub fn free_extent(n: usize) -> Option<Extent> {
    MEMORY.lock().as_ref()?.frames.iter_free().nth(n)
}

/// Page tables from the pool, and from the free frames when it is used up: they stay tables.
struct Growing<'a> {
    pool: &'a mut TablePool,
    frames: &'a mut FrameBitmap<'static>,
}

impl Tables for Growing<'_> {
    fn alloc(&mut self) -> Option<Gfn> {
        self.pool.alloc().or_else(|| {
            let frame = self.frames.alloc(1, 1, 1 << 20)?.start();
            // SAFETY: the frame was free: nobody's, and mapped writable as all free RAM is.
            unsafe { frame.addr().as_ptr::<Table>().write([0; 512]) };
            Some(frame)
        })
    }

    fn table(&mut self, gfn: Gfn) -> &mut Table {
        self.pool.table(gfn)
    }
}

fn change(
    extent: Extent,
    change: impl FnOnce(AddressSpace, &mut Growing<'_>) -> Result<(), NoTableFrame>,
) -> Result<(), NoTableFrame> {
    let mut guard = MEMORY.lock();
    let m = guard.as_mut().ok_or(NoTableFrame)?;
    let mut tables = Growing {
        pool: &mut m.pool,
        frames: &mut m.frames,
    };
    change(m.space, &mut tables)?;
    for gfn in extent.start().as_u64()..extent.end() {
        x86_64::instructions::tlb::flush(VirtAddr::new(gfn * PAGE_SIZE));
    }
    Ok(())
}

/// Maps `extent` with `perms`. Other vCPUs may remember for a while what was there before.
///
/// # Errors
/// There is no frame for a page table.
pub fn map(extent: Extent, perms: Perms) -> Result<(), NoTableFrame> {
    change(extent, |space, tables| space.map(tables, extent, perms))
}

/// Unmaps `extent`. Other vCPUs may remember for a while what was there before.
///
/// # Errors
/// There is no frame for a page table.
pub fn unmap(extent: Extent) -> Result<(), NoTableFrame> {
    change(extent, |space, tables| space.unmap(tables, extent))
}

/// Whether `len` bytes at `addr` are mapped writable. False when the lock is held: for fault
/// reports, which must not wait.
pub fn is_writable(addr: u64, len: u64) -> bool {
    let Some(mut guard) = MEMORY.try_lock() else {
        return false;
    };
    let (Some(m), Some(extent)) = (guard.as_mut(), Extent::touching(addr, len)) else {
        return false;
    };
    (extent.start().as_u64()..extent.end()).all(|gfn| {
        Gfn::new(gfn).is_some_and(|g| m.space.perms(&mut m.pool, g.addr()) == Some(Perms::Write))
    })
}

/// Whether `addr` is in a guard page.
pub fn is_guard(addr: u64) -> bool {
    let Some(guard) = MEMORY.try_lock() else {
        return false;
    };
    let (Some(m), Some(page)) = (guard.as_ref(), Extent::touching(addr, 1)) else {
        return false;
    };
    m.workspace.guards().any(|g| g.overlaps(page))
}

/// Root of the tables this image runs on.
pub fn root() -> Option<u64> {
    MEMORY.lock().as_ref().map(|m| m.space.root().as_u64())
}

/// This image's workspace.
pub fn workspace() -> Option<Workspace> {
    MEMORY.lock().as_ref().map(|m| m.workspace)
}

/// A vCPU's own data in the workspace.
///
/// # Safety
/// The workspace is mapped, and the data was [`prepare_vcpu`]d.
#[must_use]
pub unsafe fn vcpu_data(workspace: &Workspace, vcpu: u32) -> Option<&'static PerCpu> {
    let area = workspace.vcpu(vcpu)?;
    // SAFETY: the caller's promise.
    Some(unsafe { &*area.data.addr().as_ptr::<PerCpu>() })
}

/// Writes an empty [`PerCpu`] for a vCPU.
///
/// # Safety
/// The workspace is mapped, and nobody uses the vCPU's data.
pub unsafe fn prepare_vcpu(workspace: &Workspace, vcpu: u32) {
    const { assert!(size_of::<PerCpu>() as u64 <= Workspace::DATA_FRAMES * PAGE_SIZE) };
    if let Some(area) = workspace.vcpu(vcpu) {
        // SAFETY: the caller's promise; the size is checked above, frames are aligned.
        unsafe { area.data.addr().as_ptr::<PerCpu>().write(PerCpu::new()) };
    }
}

/// The stacks a vCPU's faults run on.
#[must_use]
pub fn fault_stacks(workspace: &Workspace, vcpu: u32) -> Option<FaultStacks> {
    let area = workspace.vcpu(vcpu)?;
    Some(FaultStacks {
        fault: area.fault.end_addr(),
        critical: area.critical.end_addr(),
    })
}
