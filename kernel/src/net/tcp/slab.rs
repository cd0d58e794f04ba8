//! Where the control blocks lie: in chunks that are never moved, so that a block keeps its address
//! for as long as its connection lives.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use super::block::Block;
use super::buffers::NONE;

const CHUNK: u32 = 32;

/// The blocks.
#[derive(Debug)]
pub struct Slab {
    chunks: Vec<Box<[Block]>>,
    /// The first free block; the others follow by `next`.
    free: u32,
    used: u32,
    limit: u32,
}

impl Slab {
    /// At most `limit` blocks, rounded up to whole chunks.
    pub fn new(limit: u32) -> Self {
        Self {
            chunks: Vec::new(),
            free: NONE,
            used: 0,
            limit,
        }
    }

    /// How many are in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The block of a slot that may be none.
    pub fn get(&self, slot: u32) -> Option<&Block> {
        self.chunks
            .get((slot / CHUNK) as usize)?
            .get((slot % CHUNK) as usize)
    }

    /// A block that stands for no connection yet; it has kept its generation.
    pub fn take(&mut self) -> Option<u32> {
        if self.used >= self.limit {
            return None;
        }
        if self.free == NONE {
            self.grow()?;
        }
        let slot = self.free;
        let block = &mut self[slot];
        let next = block.next;
        *block = Block {
            generation: block.generation,
            ..Block::vacant()
        };
        self.free = next;
        self.used += 1;
        Some(slot)
    }

    fn grow(&mut self) -> Option<()> {
        let first = self.chunks.len() as u32 * CHUNK;
        let mut chunk = Vec::new();
        chunk.try_reserve_exact(CHUNK as usize).ok()?;
        chunk.extend((first + 1..=first + CHUNK).map(|next| Block {
            next: if next == first + CHUNK { NONE } else { next },
            ..Block::vacant()
        }));
        self.chunks.push(chunk.into_boxed_slice());
        self.free = first;
        Some(())
    }

    /// Makes it free. Ids that name it are stale from now on.
    pub fn free(&mut self, slot: u32) {
        let next = self.free;
        let block = &mut self[slot];
        let generation = block.generation.wrapping_add(1);
        *block = Block {
            generation,
            next,
            ..Block::vacant()
        };
        self.free = slot;
        self.used -= 1;
    }
}

impl Index<u32> for Slab {
    type Output = Block;
    fn index(&self, slot: u32) -> &Block {
        &self.chunks[(slot / CHUNK) as usize][(slot % CHUNK) as usize]
    }
}

impl IndexMut<u32> for Slab {
    fn index_mut(&mut self, slot: u32) -> &mut Block {
        &mut self.chunks[(slot / CHUNK) as usize][(slot % CHUNK) as usize]
    }
}
