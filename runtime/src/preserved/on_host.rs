//! Regions on a host: memory of the process, which nothing replaces but [`play`], for tests. Each
//! thread plays for itself.

use super::{Block, CreateError};
use crate::kernel::replace::region::{DATA, Header, MAX_REGIONS};
use std::alloc::{self, Layout};
use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// Keeps nothing away: there is no switch.
#[derive(Debug)]
pub struct Change;

#[derive(Clone, Copy, PartialEq)]
enum State {
    Live,
    Offered,
}

/// A region, and the thread that has made it.
struct Made {
    at: NonNull<u8>,
    room: usize,
    state: State,
    by: ThreadId,
}

// SAFETY: an address; who uses what is there has a `Region`, which says itself what it can do.
unsafe impl Send for Made {}

static REGIONS: Mutex<Vec<Made>> = Mutex::new(Vec::new());

thread_local! {
    static ON_TRIAL: Cell<bool> = const { Cell::new(false) };
    static CAME: Cell<Option<Option<&'static [u8]>>> = const { Cell::new(None) };
}

fn regions() -> MutexGuard<'static, Vec<Made>> {
    REGIONS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn layout(room: usize) -> Option<Layout> {
    Layout::from_size_align(room.checked_add(DATA as usize)?, DATA as usize).ok()
}

fn free(at: NonNull<u8>, room: usize) {
    if let Some(layout) = layout(room) {
        // SAFETY: made by `create` with this layout, and nobody has it any more.
        unsafe { alloc::dealloc(at.as_ptr(), layout) };
    }
}

fn in_state(state: State) -> Vec<Block> {
    let me = thread::current().id();
    let regions = regions();
    let regions = regions.iter().filter(|r| r.by == me && r.state == state);
    regions
        .map(|&Made { at, room, .. }| Block { at, room })
        .collect()
}

pub fn create(bytes: usize, header: &Header) -> Result<Block, CreateError> {
    if !writable() {
        return Err(CreateError::OnTrial);
    }
    if live().len() + offered().len() >= MAX_REGIONS {
        return Err(CreateError::TooMany);
    }
    let none = CreateError::NoMemory { bytes };
    let layout = layout(bytes).ok_or(none.clone())?;
    // SAFETY: the layout has the header's size at least.
    let at = NonNull::new(unsafe { alloc::alloc_zeroed(layout) }).ok_or(none)?;
    let block = Block { at, room: bytes };
    block.set_header(header);
    regions().push(Made {
        at,
        room: bytes,
        state: State::Live,
        by: thread::current().id(),
    });
    Ok(block)
}

pub fn live() -> Vec<Block> {
    in_state(State::Live)
}

pub fn offered() -> Vec<Block> {
    in_state(State::Offered)
}

pub fn take(block: &Block) -> bool {
    let mut regions = regions();
    let mut regions = regions.iter_mut();
    let found = regions.find(|r| r.at == block.at && r.state == State::Offered);
    found.is_some_and(|r| {
        r.state = State::Live;
        true
    })
}

pub fn give_up(block: &Block) {
    if ON_TRIAL.get() {
        set_offered(block.at);
        return;
    }
    regions().retain(|r| r.at != block.at);
    free(block.at, block.room);
}

fn set_offered(at: NonNull<u8>) {
    for region in regions().iter_mut().filter(|r| r.at == at) {
        region.state = State::Offered;
    }
}

pub fn writable() -> bool {
    !ON_TRIAL.get()
}

pub fn change() -> Change {
    Change
}

pub fn came() -> Option<Option<&'static [u8]>> {
    CAME.take()
}

/// # Safety
/// As in a domain.
pub unsafe fn finish() {
    if !ON_TRIAL.get() {
        play::free_offered();
    }
}

/// For tests on a host: what the kernel does in a switch.
pub mod play {
    use super::{CAME, ON_TRIAL, free, regions, set_offered};
    use crate::handover::Outgoing;
    use crate::preserved::{Region, Shape};

    /// Hands over values: the next [`handover`](crate::handover()) of this thread gives them. They
    /// are leaked.
    pub fn values(outgoing: &Outgoing) {
        CAME.set(Some(outgoing.block().map(|block| &*block.leak())));
    }

    /// Hands over a region: it is no longer the image's, and waits to be taken.
    pub fn region<T: Shape + ?Sized>(region: Region<T>) {
        set_offered(region.into_block().at);
    }

    /// From here on this thread is on trial.
    pub fn trial() {
        ON_TRIAL.set(true);
    }

    /// The trial is over and this image has committed: what was not taken is gone.
    pub fn commit() {
        ON_TRIAL.set(false);
        free_offered();
    }

    pub(super) fn free_offered() {
        for block in super::offered() {
            regions().retain(|r| r.at != block.at);
            free(block.at, block.room);
        }
    }
}
