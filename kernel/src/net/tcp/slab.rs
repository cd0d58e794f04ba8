//! Where the control blocks lie: in chunks of the arena that are never moved, so that a block keeps
//! its address for as long as its connection lives, also over a switch.

use alloc::vec::Vec;
use core::ops::{Index, IndexMut};

use super::arena::{Arena, CHUNK, CHUNKS, Chunk};
use super::block::Block;

const ALL: u32 = u32::MAX;

const _: () = assert!(CHUNK == u32::BITS, "a word has a bit for each block");

/// The blocks.
#[derive(Debug)]
pub struct Slab {
    chunks: Vec<Option<Chunk>>,
    /// By chunk: which of its blocks are free. None of one that is not there.
    vacant: Vec<u32>,
    /// No chunk before it has a free block.
    hint: usize,
    /// Free blocks of all chunks.
    spare: u32,
    /// There may be a chunk that nobody uses.
    idle: bool,
    used: u32,
    limit: u32,
    /// Of the next block that is taken: no two of this slab have the same for long.
    generation: u32,
}

impl Slab {
    /// At most `limit` blocks.
    pub fn new(limit: u32) -> Self {
        Self {
            chunks: Vec::new(),
            vacant: Vec::new(),
            hint: 0,
            spare: 0,
            idle: false,
            used: 0,
            limit: limit.min(CHUNKS as u32 * CHUNK),
            generation: 0,
        }
    }

    /// From chunks that came with a switch.
    pub fn adopt(chunks: Vec<Option<Chunk>>, limit: u32, generation: u32) -> Self {
        let mut slab = Self {
            generation,
            idle: true,
            ..Self::new(limit)
        };
        for chunk in &chunks {
            let blocks = chunk.as_deref().unwrap_or_default().iter().enumerate();
            let vacant = blocks.fold(0, |bits, (n, block)| {
                bits | u32::from(block.is_vacant()) << n
            });
            slab.spare += vacant.count_ones();
            slab.used += chunk.as_ref().map_or(0, |_| CHUNK - vacant.count_ones());
            slab.vacant.push(vacant);
        }
        slab.chunks = chunks;
        slab
    }

    /// How many are in use.
    pub fn used(&self) -> u32 {
        self.used
    }

    /// The next block's generation.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The block of a slot that may be none.
    pub fn get(&self, slot: u32) -> Option<&Block> {
        let chunk = self.chunks.get((slot / CHUNK) as usize)?.as_ref()?;
        chunk.get((slot % CHUNK) as usize)
    }

    /// The slots of blocks in use, ascending.
    pub fn slots(&self) -> impl Iterator<Item = u32> + '_ {
        let chunks = (0u32..).zip(self.chunks.iter().zip(&self.vacant));
        chunks
            .filter(|(_, (chunk, _))| chunk.is_some())
            .flat_map(|(n, (_, vacant))| {
                let of = (0..CHUNK).filter(move |bit| vacant >> bit & 1 == 0);
                of.map(move |bit| n * CHUNK + bit)
            })
    }

    /// A block that stands for no connection yet, with a generation of its own.
    pub fn take(&mut self, arena: &mut Arena) -> Option<u32> {
        if self.used >= self.limit {
            return None;
        }
        if self.spare == 0 {
            self.grow(arena)?;
        }
        let rest = self.vacant.get(self.hint..)?;
        self.hint += rest.iter().position(|bits| *bits != 0)?;
        let bits = self.vacant.get_mut(self.hint)?;
        let slot = self.hint as u32 * CHUNK + bits.trailing_zeros();
        *bits &= *bits - 1;
        self.spare -= 1;
        self.used += 1;
        let generation = self.generation;
        self.generation = generation.wrapping_add(1);
        self[slot] = Block {
            generation,
            ..Block::vacant()
        };
        Some(slot)
    }

    fn grow(&mut self, arena: &mut Arena) -> Option<()> {
        let number = self.chunks.iter().position(Option::is_none);
        let number = number.unwrap_or(self.chunks.len());
        if number == self.chunks.len() {
            self.chunks.try_reserve(1).ok()?;
            self.vacant.try_reserve(1).ok()?;
            self.chunks.push(None);
            self.vacant.push(0);
        }
        *self.chunks.get_mut(number)? = Some(arena.take_chunk(number)?);
        *self.vacant.get_mut(number)? = ALL;
        self.spare += CHUNK;
        self.hint = self.hint.min(number);
        Some(())
    }

    /// Makes it free. Ids that name it are stale from now on.
    pub fn free(&mut self, slot: u32) {
        let number = (slot / CHUNK) as usize;
        let block = &mut self[slot];
        let generation = block.generation.wrapping_add(1);
        *block = Block {
            generation,
            ..Block::vacant()
        };
        if let Some(bits) = self.vacant.get_mut(number) {
            *bits |= 1 << (slot % CHUNK);
            self.idle |= *bits == ALL;
        }
        self.hint = self.hint.min(number);
        self.spare += 1;
        self.used -= 1;
    }

    /// Gives chunks back that nobody uses, but for some room. Slots of blocks that were freed may
    /// not be used any more.
    pub fn trim(&mut self, arena: &mut Arena) {
        if !core::mem::take(&mut self.idle) {
            return;
        }
        let places = self
            .chunks
            .iter_mut()
            .zip(&mut self.vacant)
            .enumerate()
            .rev();
        for (number, (chunk, vacant)) in places {
            if *vacant == ALL
                && self.spare >= 2 * CHUNK
                && let Some(chunk) = chunk.take()
            {
                arena.give_chunk(number, chunk);
                *vacant = 0;
                self.spare -= CHUNK;
            }
        }
    }
}

impl Index<u32> for Slab {
    type Output = Block;
    fn index(&self, slot: u32) -> &Block {
        let chunk = &self.chunks[(slot / CHUNK) as usize];
        &chunk.as_deref().unwrap_or_default()[(slot % CHUNK) as usize]
    }
}

impl IndexMut<u32> for Slab {
    fn index_mut(&mut self, slot: u32) -> &mut Block {
        let chunk = &mut self.chunks[(slot / CHUNK) as usize];
        &mut chunk.as_deref_mut().unwrap_or_default()[(slot % CHUNK) as usize]
    }
}
