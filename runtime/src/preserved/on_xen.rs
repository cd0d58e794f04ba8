//! Regions in a domain: frames of the kernel's.

use super::{Block, CreateError};
use crate::kernel::memory::Extent;
use crate::kernel::replace::region::{DATA, Header};
use crate::kernel::replace::{gate, state};
use crate::kernel::xen::Committed;
use std::ptr::NonNull;

/// While it lives a region may be changed, and no switch happens.
pub type Change = gate::Inside<'static>;

fn block(extent: Extent) -> Option<Block> {
    Some(Block {
        at: NonNull::new(extent.addr().as_ptr::<u8>())?,
        room: usize::try_from(extent.bytes() - DATA).ok()?,
    })
}

fn extent(block: &Block) -> Option<Extent> {
    let at = block.at.as_ptr().expose_provenance() as u64;
    Extent::touching(at, DATA + block.room as u64)
}

/// Frames with this header and room for `bytes` bytes, all zero.
pub fn create(bytes: usize, header: &Header) -> Result<Block, CreateError> {
    let extent = state::create(bytes as u64, header).map_err(|e| match e {
        state::CreateError::OnTrial => CreateError::OnTrial,
        state::CreateError::TooMany => CreateError::TooMany,
        state::CreateError::NoMemory { .. } => CreateError::NoMemory { bytes },
    })?;
    block(extent).ok_or(CreateError::NoMemory { bytes })
}

/// The regions that are this image's.
pub fn live() -> Vec<Block> {
    state::live().into_iter().filter_map(block).collect()
}

/// The regions that came and were not taken.
pub fn offered() -> Vec<Block> {
    state::offered().into_iter().filter_map(block).collect()
}

/// Takes a region that is offered.
pub fn take(block: &Block) -> bool {
    extent(block).is_some_and(state::take)
}

/// Gives up one that is this image's.
pub fn give_up(block: &Block) {
    if let Some(extent) = extent(block) {
        state::give_up(extent);
    }
}

/// Whether regions may be written to.
pub fn writable() -> bool {
    Committed::get().is_some()
}

/// Keeps a switch away while a region is changed.
pub fn change() -> Change {
    state::change()
}

/// What came: the block of values, if there is one; `None` if nothing came, or it was asked before.
pub fn came() -> Option<Option<&'static [u8]>> {
    state::any().then(state::values)
}

/// All is taken that is wanted.
///
/// # Safety
/// Nobody uses the bytes that [`came`] gave.
pub unsafe fn finish() {
    // SAFETY: the caller's promise.
    unsafe { state::finish() };
}
