//! The heap: talc behind a lock that turns interrupts off. It starts with the workspace's share
//! and grows by frames; in a trial it can't grow.

use crate::memory::addr::PAGE_SIZE;
use crate::memory::{Extent, vm};
use crate::sync::RawLock;
use core::alloc::{GlobalAlloc, Layout};
use talc::base::Talc;
use talc::base::binning::Binning;
use talc::source::Source;

/// What the heap grows by at least, in bytes.
const GROWTH: u64 = 256 * 1024;

#[derive(Debug)]
struct FromFrames;

// SAFETY: takes frames from the frame allocator, never from the heap; does not touch the lock.
unsafe impl Source for FromFrames {
    fn acquire<B: Binning>(talc: &mut Talc<Self, B>, layout: Layout) -> Result<(), ()> {
        // Room for the block, its alignment and talc's own words.
        let want = (layout.size() as u64)
            .checked_add(layout.align() as u64 + PAGE_SIZE)
            .ok_or(())?
            .max(GROWTH);
        let extent = vm::alloc_frames(want.div_ceil(PAGE_SIZE), 1).ok_or(())?;
        // SAFETY: the frames are this heap's from here on, mapped writable, used by nobody.
        unsafe { talc.claim(extent.addr().as_ptr(), extent.bytes() as usize) }
            .map(drop)
            .ok_or(())
    }
}

static HEAP: talc::TalcLock<RawLock, FromFrames> = talc::TalcLock::new(FromFrames);

/// Gives the heap its first memory.
///
/// # Safety
/// The extent is mapped writable and nobody else's.
pub unsafe fn init(extent: Extent) {
    // SAFETY: the caller's promise.
    unsafe {
        HEAP.lock()
            .claim(extent.addr().as_ptr(), extent.bytes() as usize)
    };
}

/// Allocates; null when there is no memory.
pub(crate) fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: a layout of size 0 is never passed (std does not).
    unsafe { HEAP.alloc(layout) }
}

/// Frees.
///
/// # Safety
/// As `GlobalAlloc::dealloc`.
pub(crate) unsafe fn dealloc(ptr: *mut u8, layout: Layout) {
    // SAFETY: the caller's promise.
    unsafe { HEAP.dealloc(ptr, layout) };
}

/// Grows or shrinks.
///
/// # Safety
/// As `GlobalAlloc::realloc`.
pub(crate) unsafe fn realloc(ptr: *mut u8, layout: Layout, size: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { HEAP.realloc(ptr, layout, size) }
}
