//! The heap: talc behind a lock that turns interrupts off. It starts with the workspace's share
//! and grows by frames; in a trial by those that the image before has set aside for it.

use crate::memory::addr::PAGE_SIZE;
use crate::memory::{Extent, vm};
use crate::sync::RawLock;
use core::alloc::{GlobalAlloc, Layout};
use core::sync::atomic::{AtomicUsize, Ordering};
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
            .ok_or(())?;
        let grow = |bytes: u64| vm::alloc_frames(bytes.div_ceil(PAGE_SIZE), 1);
        let extent = grow(want.max(GROWTH)).or_else(|| grow(want)).ok_or(())?;
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
    noted(unsafe { HEAP.alloc(layout) }, layout.size())
}

/// What there was no memory for at last, in bytes; 0: there always was.
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// What there was no memory for at last, in bytes; 0: there always was.
pub(crate) fn refused() -> usize {
    REFUSED.load(Ordering::Relaxed)
}

fn noted(block: *mut u8, size: usize) -> *mut u8 {
    if block.is_null() {
        REFUSED.store(size, Ordering::Relaxed);
    }
    block
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
    noted(unsafe { HEAP.realloc(ptr, layout, size) }, size)
}
