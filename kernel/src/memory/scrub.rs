//! Memory that held code is overwritten before anybody else gets it.
//!
//! The image before leaves its text and constants, a failed trial all of its image. What is left of
//! a program is not lying about then. And under an emulator that translates code, as the lab's,
//! every store to a page with translated code in it is hundreds of times slower until all of that
//! is overwritten: a stack there makes a switch take seconds.
//!
//! A vCPU with nothing else to do sees to it, frame by frame; who needs the frames now does it at
//! once.

use crate::memory::{Extent, vm};
use crate::sync::Lock;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use x86_64::instructions::interrupts;

/// More than can come together: the image before, and trials that failed since.
static WAITING: Lock<ArrayVec<Extent, 4>> = Lock::new(ArrayVec::new_const());
/// Frames that wait, or are in hand.
static FRAMES: AtomicU64 = AtomicU64::new(0);

/// Takes frames that held code: they are free when they are overwritten.
///
/// # Safety
/// They are mapped writable and nobody's, but counted as taken by the allocator.
pub(super) unsafe fn add(extent: Extent) {
    // Whoever counts them waits for them, maybe on this vCPU: nothing comes between.
    interrupts::without_interrupts(|| {
        FRAMES.fetch_add(extent.frames(), Ordering::AcqRel);
        let full = WAITING.lock().try_push(extent);
        if full.is_err() {
            overwrite(extent);
        }
    });
}

/// Frames that will be free soon.
pub(super) fn frames() -> u64 {
    FRAMES.load(Ordering::Acquire)
}

fn overwrite(extent: Extent) {
    // SAFETY: `add`'s caller has given them away, and they are in no list any more.
    unsafe {
        extent
            .addr()
            .as_ptr::<u8>()
            .write_bytes(0, extent.bytes() as usize);
        vm::free_frames_of(extent, &FRAMES);
    }
}

/// One frame of what waits.
fn next() -> Option<Extent> {
    let mut waiting = WAITING.lock();
    let all = waiting.last_mut()?;
    let (last, rest) = (all.frames() - 1, *all);
    match rest.part(0, last) {
        Some(rest) => *all = rest,
        None => {
            waiting.pop();
        }
    }
    rest.part(last, 1)
}

/// In a blackout nobody overwrites anything: the processor is wanted for others.
static HELD: AtomicBool = AtomicBool::new(false);

/// Has idle vCPUs leave it, or not.
pub(crate) fn hold(on: bool) {
    HELD.store(on, Ordering::Relaxed);
}

/// [`step`] for a vCPU that has nothing else to do.
pub(crate) fn idle_step() -> bool {
    !HELD.load(Ordering::Relaxed) && step()
}

/// Overwrites a frame, if one waits; says whether there was one.
fn step() -> bool {
    // Not to be left half done: who needs the memory waits for it.
    frames() > 0 && interrupts::without_interrupts(|| next().map(overwrite).is_some())
}

/// Overwrites all that waits; says whether there was any.
pub(crate) fn finish() -> bool {
    let any = frames() > 0;
    while step() {}
    // Others are at what is left, with interrupts off.
    while frames() > 0 {
        core::hint::spin_loop();
    }
    any
}
