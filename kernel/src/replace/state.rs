//! The app's state over a switch: preserved regions and the block of named values, and whose their
//! frames are (I7).
//!
//! A region is **live** (this image's), **offered** (it came with the switch, and nobody has taken
//! it yet) or, while a switch is on, **dropped**: it goes when the switch has failed. Live ones are
//! in the record of the next switch, the others are not, so their frames are free after its commit.
//!
//! What was offered and not taken is freed at the commit, never before. An app without
//! `segue::trial!()` commits before its first line: there it is freed when the app says that it has
//! taken what it wants ([`finish`]), or with the next switch.

use crate::memory::{Extent, Gfn, PAGE_SIZE, vm};
use crate::net::handover;
use crate::replace::gate::{Gate, Inside};
use crate::replace::region::{self, Header, MAX_REGIONS};
use crate::sync::{Lock, Noted};
use crate::task::wait::WaitQueue;
use crate::xen::Committed;
use arrayvec::ArrayVec;
use core::sync::atomic::AtomicU32;

/// Frames of 2 MiB.
const LARGE: u64 = 512;

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Live,
    Offered,
    Dropped,
}

/// The block of named values that came.
#[derive(Clone, Copy)]
struct Values {
    extent: Extent,
    len: usize,
    /// The app has it, or had it.
    asked: bool,
    /// The app needs it no more: it is freed at the commit.
    done: bool,
}

struct Registry {
    regions: ArrayVec<(Extent, State), MAX_REGIONS>,
    /// At most one; not an `Option`, so that all of this is zero at first, and takes no room in the
    /// image's file.
    values: ArrayVec<Values, 1>,
    /// A switch has written down which regions there are.
    frozen: bool,
}

static REGISTRY: Lock<Registry> = Lock::new(Registry {
    regions: ArrayVec::new_const(),
    values: ArrayVec::new_const(),
    frozen: false,
});
/// Woken when `frozen` ends.
static THAWED: WaitQueue = WaitQueue::new();
static GATE: Gate = Gate::with(AtomicU32::new(0));

/// All regions there are, for whoever can't wait for the lock: first frame and number of frames.
static NOTED: Noted<MAX_REGIONS> = Noted::new();
/// Bits of a word in [`NOTED`] for the number of frames.
const COUNT_BITS: u32 = 28;

/// How many regions were being changed when the image before crashed.
pub(super) fn torn_regions() -> usize {
    let torn = |region: &&Extent| {
        // SAFETY: a region is mapped, and its first frame is its header.
        let header = unsafe { core::slice::from_raw_parts(region.addr().as_ptr(), region::LEN) };
        Header::parse(header, region.bytes()).is_ok_and(|header| !header.consistent)
    };
    all_regions().iter().filter(torn).count()
}

/// All regions there are, taken or not, each once. Takes no lock.
pub(super) fn all_regions() -> ArrayVec<Extent, MAX_REGIONS> {
    let extent = |word: u64| {
        let frames = word & ((1 << COUNT_BITS) - 1);
        Extent::new(Gfn::new(word >> COUNT_BITS)?, frames)
    };
    let mut all = ArrayVec::<Extent, MAX_REGIONS>::new();
    for region in NOTED.get().into_iter().filter_map(extent) {
        // Whoever was stopped while it took one out may have left another twice.
        if !all.contains(&region) {
            let _ = all.try_push(region);
        }
    }
    all
}

/// Why there is no new region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CreateError {
    /// This image is on trial.
    OnTrial,
    /// There are [`MAX_REGIONS`].
    TooMany,
    /// There are not as many free frames in a row.
    NoMemory {
        /// How many are needed.
        frames: u64,
    },
}

/// Makes a region with this header and room for `bytes` bytes of data, which are zero. Waits while a
/// switch is on.
///
/// # Errors
/// See [`CreateError`].
pub fn create(bytes: u64, header: &Header) -> Result<Extent, CreateError> {
    if Committed::get().is_none() {
        return Err(CreateError::OnTrial);
    }
    let frames = (region::DATA / PAGE_SIZE).saturating_add(bytes.div_ceil(PAGE_SIZE));
    let none = CreateError::NoMemory { frames };
    // On a boundary of large pages, if it can be had: fewer page tables for the trial.
    let aligned = (frames >= LARGE).then(|| vm::alloc_frames(frames, LARGE));
    let extent = aligned.flatten().or_else(|| vm::alloc_frames(frames, 1));
    let extent = extent.ok_or(none)?;
    let ptr = extent.addr().as_ptr::<u8>();
    let header = header.to_bytes();
    // SAFETY: fresh from the allocator, mapped writable as all RAM is; a frame has room for the
    // header.
    unsafe {
        ptr.write_bytes(0, extent.bytes() as usize);
        ptr.copy_from_nonoverlapping(header.as_ptr(), header.len());
    }
    let added = THAWED.wait_until(None, || {
        let mut registry = REGISTRY.lock();
        (!registry.frozen).then(|| {
            let added = registry.regions.try_push((extent, State::Live)).is_ok();
            registry.note();
            added
        })
    });
    if added == Some(true) {
        return Ok(extent);
    }
    // SAFETY: from the allocator, and nobody's.
    unsafe { vm::free_frames(extent) };
    Err(CreateError::TooMany)
}

/// The regions that are this image's.
#[must_use]
pub fn live() -> ArrayVec<Extent, MAX_REGIONS> {
    REGISTRY.lock().in_state(State::Live).collect()
}

/// The regions that came and nobody has taken.
#[must_use]
pub fn offered() -> ArrayVec<Extent, MAX_REGIONS> {
    REGISTRY.lock().in_state(State::Offered).collect()
}

impl Registry {
    /// Tells of what has changed.
    fn note(&self) {
        let word = |e: Extent| e.start().as_u64() << COUNT_BITS | e.frames();
        NOTED.set(self.regions.iter().map(|(extent, _)| word(*extent)));
    }

    fn in_state(&self, state: State) -> impl Iterator<Item = Extent> {
        let regions = self.regions.iter();
        regions.filter(move |(_, s)| *s == state).map(|(e, _)| *e)
    }

    /// Frees all regions in a state.
    fn free(&mut self, state: State) {
        self.regions.retain(|(extent, s)| {
            if *s == state {
                // SAFETY: they are this image's to give, and nobody has them: offered ones were not
                // taken, those that were dropped have no handle any more.
                unsafe { vm::free_frames(*extent) };
            }
            *s != state
        });
        self.note();
    }

    /// Frees the block of values if it is not needed any more.
    fn free_values(&mut self) {
        self.values.retain(|values| {
            if values.done {
                // SAFETY: it came with the switch for this image alone, which is done with it.
                unsafe { vm::free_frames(values.extent) };
            }
            !values.done
        });
    }
}

/// Takes an offered region; false if it is not offered. Waits while a switch is on: it would not be
/// among those that are handed over.
pub fn take(extent: Extent) -> bool {
    let taken = THAWED.wait_until(None, || {
        let mut registry = REGISTRY.lock();
        (!registry.frozen).then(|| {
            let mut regions = registry.regions.iter_mut();
            let found = regions.find(|region| **region == (extent, State::Offered));
            found.map(|(_, state)| *state = State::Live).is_some()
        })
    });
    taken == Some(true)
}

/// Gives a live region up: its frames are free. On trial it is offered again: they are freed at the
/// commit. While a switch is on, they stay until it has failed.
pub fn give_up(extent: Extent) {
    let mut registry = REGISTRY.lock();
    let next = match Committed::get() {
        None => State::Offered,
        Some(_) => State::Dropped,
    };
    let mut regions = registry.regions.iter_mut();
    if let Some((_, state)) = regions.find(|region| **region == (extent, State::Live)) {
        *state = next;
    }
    if !registry.frozen {
        registry.free(State::Dropped);
    }
}

/// The block of named values that came, once.
#[must_use]
pub fn values() -> Option<&'static [u8]> {
    let mut registry = REGISTRY.lock();
    let values = registry.values.first_mut().filter(|values| !values.asked)?;
    values.asked = true;
    let ptr = values.extent.addr().as_ptr::<u8>();
    // SAFETY: mapped readable, on trial too; nobody writes it, and its frames stay until `finish`
    // says that nobody reads it any more.
    Some(unsafe { core::slice::from_raw_parts(ptr, values.len) })
}

/// Whether the image before has left anything.
#[must_use]
pub fn any() -> bool {
    let registry = REGISTRY.lock();
    registry.values.iter().any(|v| !v.asked) || registry.in_state(State::Offered).next().is_some()
}

/// The app has taken what it wants: the rest is freed, on trial at the commit.
///
/// # Safety
/// Nobody uses the bytes that [`values`] gave.
pub unsafe fn finish() {
    let mut registry = REGISTRY.lock();
    for values in &mut registry.values {
        values.done = true;
    }
    if Committed::get().is_some() {
        registry.free(State::Offered);
        registry.free_values();
    }
    drop(registry);
    handover::finish();
}

/// What came with a switch, as its record says. Called once, on trial.
pub(super) fn adopt(regions: ArrayVec<Extent, MAX_REGIONS>, values: Option<(Extent, usize)>) {
    let mut registry = REGISTRY.lock();
    registry.regions = regions.iter().map(|e| (*e, State::Offered)).collect();
    registry.note();
    let values = values.map(|(extent, len)| Values {
        extent,
        len,
        asked: false,
        done: false,
    });
    registry.values = values.into_iter().collect();
}

/// The switch is committed, the frame allocator there. An app that was `tried` has taken what it
/// wants.
pub(super) fn committed(tried: bool) {
    let mut registry = REGISTRY.lock();
    // Sockets are claimed by what is in values.
    let over = registry.values.iter().all(|v| tried && !v.asked);
    if tried {
        registry.free(State::Offered);
        for values in &mut registry.values {
            // What it has not asked for by now it does not know of.
            values.done |= !values.asked;
        }
    }
    registry.free_values();
    drop(registry);
    if over {
        handover::finish();
    }
}

/// Goes in to change a region: no switch happens until the guard is dropped. Waits while one is on.
#[must_use]
pub fn change() -> Inside<'static> {
    GATE.enter()
}

/// Which regions are handed over is settled: none comes or goes until this is dropped.
pub(super) struct Settled {
    /// The regions.
    pub regions: ArrayVec<Extent, MAX_REGIONS>,
}

impl Settled {
    pub fn new() -> Self {
        let mut registry = REGISTRY.lock();
        registry.frozen = true;
        Self {
            regions: registry.in_state(State::Live).collect(),
        }
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        {
            let mut registry = REGISTRY.lock();
            registry.frozen = false;
            registry.free(State::Dropped);
        }
        THAWED.wake_all();
    }
}

/// Nobody changes a region until this is dropped.
pub(super) struct Quiet(());

impl Quiet {
    /// If nobody does just now.
    pub fn at_once() -> Option<Self> {
        GATE.try_close().then_some(Self(()))
    }

    /// Waits until nobody does, at most until `deadline` (system time, in ns).
    pub fn wait(deadline: u64) -> Option<Self> {
        GATE.close(deadline).then_some(Self(()))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        GATE.open();
    }
}
