//! The memory that goes over a switch where it lies: control blocks and rings, in one extent.
//!
//! ```text
//! 0      header: what it is, how long, the notes' length and digest, where each chunk of blocks is
//! 4096   room for notes: what is not in blocks and rings, written when a switch is tried
//! then   pieces: 2 KiB times a power of two, each at a multiple of its size
//! ```
//! A [`Chunk`] is a piece with control blocks, a ring one with a connection's bytes. A ring's name
//! says where and how large it is: so another image finds all of them in the blocks. Which pieces
//! are free is not in the extent: it is derived from those in use ([`Pieces`]), and nothing that
//! another image says of it is believed.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::fmt;
use core::ops::{Deref, DerefMut, Range};
use core::ptr::NonNull;

use super::adopt::Refused;
use super::block::{BLOCK_VERSION, Block};
use crate::replace::record::DIGEST;

/// Size of the smallest piece, bytes.
pub const UNIT: usize = 2048;
/// Sizes of pieces: `UNIT` times 2^order.
pub const ORDERS: u8 = 16;
/// Blocks of a chunk.
pub const CHUNK: u32 = 32;
const CHUNK_BYTES: usize = (CHUNK as usize * size_of::<Block>()).next_power_of_two();
const CHUNK_ORDER: u8 = (CHUNK_BYTES / UNIT).trailing_zeros() as u8;
/// No piece.
pub const NONE: u32 = u32::MAX;

const MAGIC: u64 = u64::from_le_bytes(*b"SEGUENET");
/// Changes with the layout of the header, and with what a ring's name says.
const LAYOUT: u32 = 1;
const PAGE: usize = 4096;
/// Most chunks.
pub const CHUNKS: usize = 1000;
/// The largest arena; what a ring's name has room for is more.
pub const LONGEST: usize = 1 << 30;
/// Bits of a ring's name that say at which unit it is; those above are the order.
const PLACE_BITS: u32 = 24;

/// Numbers only: any bytes are one.
#[repr(C)]
struct Header {
    magic: u64,
    layout: u32,
    block_version: u32,
    block_size: u32,
    chunk: u32,
    len: u64,
    notes_room: u32,
    /// 0: there are none, it is at work.
    notes_len: u32,
    notes_digest: u64,
    /// The unit that a chunk begins at; 0: there is none of that number.
    chunks: [u32; CHUNKS],
}

const _: () = assert!(size_of::<Header>() <= PAGE && LONGEST / UNIT <= 1 << PLACE_BITS);
const _: () = assert!(CHUNK_ORDER < ORDERS && align_of::<Block>() <= UNIT);

/// The extent.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    /// It came from the heap.
    owned: bool,
}

// SAFETY: it is memory that nobody else has; who may use which part is the business of `Arena`,
// `Chunk` and `Sealed`.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    fn layout(len: usize) -> Option<Layout> {
        Layout::from_size_align(len, PAGE).ok()
    }

    /// From the heap; zero. The length is rounded up to pages.
    pub fn new(len: usize) -> Option<Self> {
        let len = len.checked_next_multiple_of(PAGE)?.max(PAGE);
        let layout = Self::layout(len)?;
        // SAFETY: its size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let owned = true;
        Some(Self { base, len, owned })
    }

    /// A copy of these bytes.
    pub fn copy_of(bytes: &[u8]) -> Option<Self> {
        let memory = Self::new(bytes.len())?;
        // SAFETY: just made, at least as long, and nobody else's.
        unsafe {
            memory
                .base
                .copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len())
        };
        Some(memory)
    }

    /// Over frames. `None` if they don't begin with a page.
    ///
    /// # Safety
    /// They are mapped, and nobody else's from now on. If they are mapped read-only, they are only
    /// looked at (`adopt::check`).
    pub unsafe fn over(base: NonNull<u8>, len: usize) -> Option<Self> {
        let fits = base.addr().get().is_multiple_of(PAGE) && len >= PAGE;
        let owned = false;
        fits.then_some(Self { base, len, owned })
    }

    /// Puts the right digest of the notes in: else nothing but that would ever be tried.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn reseal(&mut self) {
        if self.len < size_of::<Header>() {
            return;
        }
        // SAFETY: the memory begins with a header and is nobody else's; any bytes are one.
        let header = unsafe { self.base.cast::<Header>().as_mut() };
        let end = (header.notes_len as usize).saturating_add(PAGE);
        let digest = DIGEST.checksum(self.bytes().get(PAGE..end).unwrap_or_default());
        header.notes_digest = digest;
    }

    /// All of it, while nobody has pieces of it.
    pub fn bytes(&mut self) -> &[u8] {
        // SAFETY: it is initialised memory, and borrowed for as long as the slice lives; who has
        // pieces has the memory in an `Arc`, and `&mut` can't be had then.
        unsafe { core::slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }

    /// Where a unit is, if `len` bytes from there on are in the memory.
    fn at(&self, unit: u32, len: usize) -> Option<NonNull<u8>> {
        let start = (unit as usize).checked_mul(UNIT)?;
        let end = start.checked_add(len)?;
        // SAFETY: the sum is in the memory.
        (end <= self.len).then(|| unsafe { self.base.add(start) })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let (true, Some(layout)) = (self.owned, Self::layout(self.len)) {
            // SAFETY: it was allocated with this layout, and nobody has it any more.
            unsafe { dealloc(self.base.as_ptr(), layout) };
        }
    }
}

/// Room for notes in an arena of that length.
fn notes_room(len: usize) -> usize {
    (len / 32 / PAGE * PAGE).clamp(PAGE, 256 << 10)
}

/// The length of an arena for rings of so many bytes together and so many blocks.
pub fn len_for(rings: usize, blocks: u32) -> usize {
    let chunks = (blocks.div_ceil(CHUNK) as usize).min(CHUNKS) * CHUNK_BYTES;
    // Pieces lie at multiples of their size: some room is lost between them.
    let pieces = rings.saturating_add(rings / 4).saturating_add(chunks);
    let notes = notes_room(pieces.saturating_add(pieces / 16));
    pieces
        .saturating_add(notes + PAGE + CHUNK_BYTES)
        .min(LONGEST)
}

/// The first unit that pieces may have.
fn first_unit(notes_room: usize) -> usize {
    (PAGE + notes_room) / UNIT
}

/// An order's name for a ring.
const fn ring_name(unit: u32, order: u8) -> u32 {
    (order as u32) << PLACE_BITS | unit
}

const fn place_of(name: u32) -> (u32, u8) {
    (name & ((1 << PLACE_BITS) - 1), (name >> PLACE_BITS) as u8)
}

/// What begins at a unit: 0, or one of these with the order.
const RING: u8 = 0x80;
const BLOCKS: u8 = 0xc0;
const KIND: u8 = 0xc0;

/// Which pieces are in use.
#[derive(Debug)]
pub struct Pieces {
    heads: Vec<u8>,
    first: usize,
}

impl Pieces {
    fn new(memory: &Memory, notes_room: usize) -> Option<Self> {
        let units = memory.len / UNIT;
        let mut heads = Vec::new();
        heads.try_reserve_exact(units).ok()?;
        heads.resize(units, 0);
        let first = first_unit(notes_room);
        Some(Self { heads, first })
    }

    fn mark(&mut self, unit: u32, order: u8, kind: u8) -> bool {
        let unit = unit as usize;
        let size = 1usize << (order & 31);
        let fits = order < ORDERS
            && unit >= self.first
            && unit.is_multiple_of(size)
            && unit
                .checked_add(size)
                .is_some_and(|end| end <= self.heads.len());
        match self.heads.get_mut(unit) {
            Some(head) if fits && *head == 0 => *head = kind | order,
            _ => return false,
        }
        true
    }

    /// This ring is in use; [`NONE`] is none. False if there can be no such ring.
    pub fn ring(&mut self, name: u32) -> bool {
        let (unit, order) = place_of(name);
        name == NONE || self.mark(unit, order, RING)
    }

    /// The size of a ring that is in use; 0 of [`NONE`].
    pub fn size(&self, name: u32) -> u32 {
        let (unit, order) = place_of(name);
        match self.heads.get(unit as usize) {
            Some(head) if *head == RING | order && order < ORDERS => (UNIT as u32) << order,
            _ => 0,
        }
    }

    /// Calls `gap` with what lies between pieces. False if two pieces overlap.
    pub fn gaps(&self, mut gap: impl FnMut(Range<usize>)) -> bool {
        let mut at = self.first;
        while let Some(head) = self.heads.get(at) {
            if *head == 0 {
                let rest = self.heads.get(at..).unwrap_or_default();
                let len = rest.iter().position(|h| *h != 0).unwrap_or(rest.len());
                gap(at..at + len);
                at += len;
                continue;
            }
            let end = at + (1usize << (head & !KIND));
            let within = self.heads.get(at + 1..end);
            if within.is_none_or(|within| within.iter().any(|h| *h != 0)) {
                return false;
            }
            at = end;
        }
        true
    }
}

/// Free pieces of one size, a bit each.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
    /// There is none in the words before it.
    hint: usize,
}

impl Bits {
    fn take_first(&mut self) -> Option<usize> {
        let from = self.words.get(self.hint..)?;
        let word = from.iter().position(|word| *word != 0);
        self.hint += word.unwrap_or(from.len());
        let word = self.words.get_mut(self.hint)?;
        let bit = word.trailing_zeros() as usize;
        *word &= *word - 1;
        Some(self.hint * 64 + bit)
    }

    fn take(&mut self, at: usize) -> bool {
        let Some(word) = self.words.get_mut(at / 64) else {
            return false;
        };
        let there = *word >> (at % 64) & 1 != 0;
        *word &= !(1 << (at % 64));
        there
    }

    fn put(&mut self, at: usize) {
        if let Some(word) = self.words.get_mut(at / 64) {
            *word |= 1 << (at % 64);
            self.hint = self.hint.min(at / 64);
        }
    }
}

/// An arena that is used. Buddies: a piece that is given back is joined with its neighbour.
#[derive(Debug)]
pub struct Arena {
    memory: Arc<Memory>,
    pieces: Pieces,
    free: [Bits; ORDERS as usize],
    free_units: usize,
}

impl Arena {
    /// A new one. `None` if the memory is too short or too long, or there is none for the lists.
    pub fn new(memory: Memory) -> Option<Self> {
        let room = notes_room(memory.len);
        let shortest = PAGE + room + CHUNK_BYTES;
        if !(shortest..=LONGEST).contains(&memory.len) {
            return None;
        }
        let pieces = Pieces::new(&memory, room)?;
        let header = Header {
            magic: MAGIC,
            layout: LAYOUT,
            block_version: BLOCK_VERSION,
            block_size: size_of::<Block>() as u32,
            chunk: CHUNK,
            len: memory.len as u64,
            notes_room: room as u32,
            notes_len: 0,
            notes_digest: 0,
            chunks: [0; CHUNKS],
        };
        // SAFETY: the memory is longer and nobody else's, and begins with a page.
        unsafe { memory.base.cast::<Header>().write(header) };
        Self::with(Arc::new(memory), pieces)
    }

    fn with(memory: Arc<Memory>, pieces: Pieces) -> Option<Self> {
        let units = memory.len / UNIT;
        let mut free: [Bits; ORDERS as usize] = Default::default();
        for (order, bits) in free.iter_mut().enumerate() {
            let words = (units >> order) / 64 + 1;
            bits.words.try_reserve_exact(words).ok()?;
            bits.words.resize(words, 0);
        }
        let mut free_units = 0;
        let sound = pieces.gaps(|gap| {
            let mut at = gap.start;
            free_units += gap.len();
            while at < gap.end {
                let order = at.trailing_zeros().min((gap.end - at).ilog2());
                let order = order.min(u32::from(ORDERS) - 1);
                if let Some(bits) = free.get_mut(order as usize) {
                    bits.put(at >> order);
                }
                at += 1 << order;
            }
        });
        sound.then_some(Self {
            memory,
            pieces,
            free,
            free_units,
        })
    }

    /// Bytes that nobody uses.
    pub fn free_bytes(&self) -> usize {
        self.free_units * UNIT
    }

    fn take(&mut self, order: u8, kind: u8) -> Option<u32> {
        let fits = usize::from(order)..usize::from(ORDERS);
        let from = self.free.iter_mut().enumerate().skip(fits.start);
        let (mut found, at) = from
            .filter_map(|(n, bits)| Some((n, bits.take_first()?)))
            .next()?;
        let mut at = at << found;
        while found > fits.start {
            found -= 1;
            // The upper half stays free.
            if let Some(bits) = self.free.get_mut(found) {
                bits.put((at >> found) + 1);
            }
        }
        self.free_units -= 1 << order;
        if let Some(head) = self.pieces.heads.get_mut(at) {
            *head = kind | order;
        }
        at &= (1 << PLACE_BITS) - 1;
        Some(at as u32)
    }

    fn give(&mut self, unit: u32, order: u8, kind: u8) -> bool {
        let mut at = unit as usize;
        match self.pieces.heads.get_mut(at) {
            Some(head) if *head == kind | order => *head = 0,
            _ => return false,
        }
        self.free_units += 1 << order;
        let mut order = usize::from(order);
        while order + 1 < usize::from(ORDERS)
            && let Some(bits) = self.free.get_mut(order)
            && bits.take((at >> order) ^ 1)
        {
            at &= !(1 << order);
            order += 1;
        }
        if let Some(bits) = self.free.get_mut(order) {
            bits.put(at >> order);
        }
        true
    }

    /// A ring of `UNIT` times 2^`order` bytes; its name.
    pub fn take_ring(&mut self, order: u8) -> Option<u32> {
        let unit = self.take(order, RING)?;
        Some(ring_name(unit, order))
    }

    /// Gives a ring back; [`NONE`] is none.
    pub fn give_ring(&mut self, name: u32) -> bool {
        let (unit, order) = place_of(name);
        order < ORDERS && self.give(unit, order, RING)
    }

    /// A ring's size; 0 of [`NONE`], and of whatever is no ring in use.
    pub fn size(&self, name: u32) -> u32 {
        self.pieces.size(name)
    }

    fn ring_at(&self, name: u32) -> Option<(NonNull<u8>, usize)> {
        let size = self.size(name) as usize;
        let at = self.memory.at(place_of(name).0, size)?;
        (size > 0).then_some((at, size))
    }

    /// A ring's bytes; none if there is no such ring.
    pub fn ring(&self, name: u32) -> &[u8] {
        self.ring_at(name).map_or(&[], |(at, size)| {
            // SAFETY: a piece that is a ring in use: initialised memory, and only this arena, which
            // is borrowed, gives access to rings.
            unsafe { core::slice::from_raw_parts(at.as_ptr(), size) }
        })
    }

    /// A ring's bytes, to be changed.
    pub fn ring_mut(&mut self, name: u32) -> &mut [u8] {
        self.ring_at(name).map_or(&mut [], |(at, size)| {
            // SAFETY: as in `ring`; the arena is borrowed mutably.
            unsafe { core::slice::from_raw_parts_mut(at.as_ptr(), size) }
        })
    }

    /// The bytes of two rings, those of the second to be changed. `None` if they are the same.
    pub fn two(&mut self, from: u32, to: u32) -> Option<(&[u8], &mut [u8])> {
        let ((a, a_len), (b, b_len)) = (self.ring_at(from)?, self.ring_at(to)?);
        (from != to).then(|| {
            // SAFETY: as in `ring_mut`; two pieces in use never overlap.
            unsafe {
                (
                    core::slice::from_raw_parts(a.as_ptr(), a_len),
                    core::slice::from_raw_parts_mut(b.as_ptr(), b_len),
                )
            }
        })
    }

    fn header(&mut self) -> &mut Header {
        // SAFETY: the memory begins with it; it is only used here, with the arena borrowed.
        unsafe { self.memory.base.cast::<Header>().as_mut() }
    }

    /// A chunk of blocks that stand for no connection, with this number.
    pub fn take_chunk(&mut self, number: usize) -> Option<Chunk> {
        if number >= CHUNKS {
            return None;
        }
        let unit = self.take(CHUNK_ORDER, BLOCKS)?;
        let blocks = self.memory.at(unit, CHUNK_BYTES)?.cast::<Block>();
        for n in 0..CHUNK as usize {
            // SAFETY: a piece of this size is ours alone, and aligned to its size.
            unsafe { blocks.add(n).write(Block::vacant()) };
        }
        *self.header().chunks.get_mut(number)? = unit;
        let memory = Arc::clone(&self.memory);
        Some(Chunk {
            blocks,
            unit,
            memory,
        })
    }

    /// Gives the chunk of this number back.
    pub fn give_chunk(&mut self, number: usize, chunk: Chunk) {
        if let Some(place) = self.header().chunks.get_mut(number) {
            *place = 0;
        }
        self.give(chunk.unit, CHUNK_ORDER, BLOCKS);
    }

    fn notes_room(&mut self) -> &mut [u8] {
        let room = self.header().notes_room as usize;
        // SAFETY: the room is behind the header's page and before all pieces, as it was made or
        // checked; only this arena, borrowed here, gives access.
        unsafe { core::slice::from_raw_parts_mut(self.memory.base.as_ptr().add(PAGE), room) }
    }

    /// Has `write` write the notes for another image; it says how long they are. From then on until
    /// [`Arena::unseal`] the arena can be adopted.
    pub fn seal<E>(&mut self, write: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        let room = self.notes_room();
        let most = room.len();
        let len = write(room)?.min(most);
        let digest = DIGEST.checksum(self.notes_room().get(..len).unwrap_or_default());
        let header = self.header();
        header.notes_len = len as u32;
        header.notes_digest = digest;
        Ok(())
    }

    /// Wipes the notes: there are secrets in them.
    pub fn unseal(&mut self) {
        let len = core::mem::take(&mut self.header().notes_len) as usize;
        if let Some(notes) = self.notes_room().get_mut(..len) {
            notes.fill(0);
        }
        self.header().notes_digest = 0;
    }

    /// Its memory, when nobody has chunks any more.
    pub fn into_memory(self) -> Option<Memory> {
        Arc::into_inner(self.memory)
    }
}

/// A piece with control blocks: like a `Box` of them.
pub struct Chunk {
    blocks: NonNull<Block>,
    unit: u32,
    memory: Arc<Memory>,
}

// SAFETY: the blocks are numbers, and nobody else's.
unsafe impl Send for Chunk {}
// SAFETY: as above.
unsafe impl Sync for Chunk {}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.memory.len;
        f.debug_struct("Chunk")
            .field("unit", &self.unit)
            .field("of", &of)
            .finish()
    }
}

impl Deref for Chunk {
    type Target = [Block];
    fn deref(&self) -> &[Block] {
        // SAFETY: a piece in use with as many blocks, which are initialised; the memory lives for as
        // long as this chunk does, and nobody else looks at this piece.
        unsafe { core::slice::from_raw_parts(self.blocks.as_ptr(), CHUNK as usize) }
    }
}

impl DerefMut for Chunk {
    fn deref_mut(&mut self) -> &mut [Block] {
        // SAFETY: as above, borrowed mutably.
        unsafe { core::slice::from_raw_parts_mut(self.blocks.as_ptr(), CHUNK as usize) }
    }
}

/// Another image's arena, to be looked at: its header and its notes' digest are right, and chunks
/// lie where chunks may.
#[derive(Debug)]
pub struct Sealed<'a> {
    memory: &'a Memory,
    header: &'a Header,
    /// Pieces in use; rings are to be added.
    pub pieces: Pieces,
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl<'a> Sealed<'a> {
    /// Looks at it. Nothing is written: it may be mapped read-only.
    pub fn read(memory: &'a Memory) -> Result<Self, Refused> {
        // SAFETY: the memory has at least a page and begins with one; any bytes are a header.
        let header = unsafe { memory.base.cast::<Header>().as_ref() };
        if header.magic != MAGIC {
            return Err(Refused::NoArena);
        }
        let block = (header.block_version, header.block_size, header.chunk);
        let ours = (BLOCK_VERSION, size_of::<Block>() as u32, CHUNK);
        if header.layout != LAYOUT || block != ours {
            return Err(Refused::Version {
                layout: header.layout,
                block: header.block_version,
            });
        }
        let room = header.notes_room as usize;
        let fits = header.len == memory.len as u64
            && memory.len <= LONGEST
            && room.is_multiple_of(PAGE)
            && room.checked_add(PAGE).is_some_and(|end| end <= memory.len)
            && header.notes_len <= header.notes_room;
        if !fits {
            return Err(Refused::Length);
        }
        let pieces = Pieces::new(memory, room).ok_or(Refused::NoMemory)?;
        let mut sealed = Self {
            memory,
            header,
            pieces,
        };
        if sealed.notes().is_empty() || DIGEST.checksum(sealed.notes()) != header.notes_digest {
            return Err(Refused::Digest);
        }
        for unit in header.chunks.iter().filter(|unit| **unit != 0) {
            if !sealed.pieces.mark(*unit, CHUNK_ORDER, BLOCKS) {
                return Err(Refused::Chunks);
            }
        }
        Ok(sealed)
    }

    /// The notes.
    pub fn notes(&self) -> &'a [u8] {
        let len = self.header.notes_len as usize;
        // SAFETY: it lies in the memory, as checked, and nobody writes while it is looked at.
        unsafe { core::slice::from_raw_parts(self.memory.base.as_ptr().add(PAGE), len) }
    }

    /// The blocks of all chunks, with the first one's slot.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, &'a [Block])> + use<'a> {
        let memory = self.memory;
        let chunks = self.header.chunks.iter().enumerate();
        chunks
            .filter(|(_, unit)| **unit != 0)
            .filter_map(move |(n, unit)| {
                let at = memory.at(*unit, CHUNK_BYTES)?.cast::<Block>();
                // SAFETY: in the memory, aligned as units are; any bytes are a block, and nobody writes.
                let blocks = unsafe { core::slice::from_raw_parts(at.as_ptr(), CHUNK as usize) };
                Some((n as u32 * CHUNK, blocks))
            })
    }

    /// All pieces that are in use, now that rings are added too. The memory has to be the one that
    /// was looked at.
    pub fn into_pieces(self) -> Pieces {
        self.pieces
    }
}

/// Takes a memory over that was looked at: the arena and its chunks, by number.
pub fn take_over(memory: Memory, pieces: Pieces) -> Option<(Arena, Vec<Option<Chunk>>)> {
    let mut arena = Arena::with(Arc::new(memory), pieces)?;
    let units = arena.header().chunks;
    let count = units
        .iter()
        .rposition(|unit| *unit != 0)
        .map_or(0, |last| last + 1);
    let mut chunks = Vec::new();
    chunks.try_reserve_exact(count).ok()?;
    for unit in units.into_iter().take(count) {
        let there =
            unit != 0 && arena.pieces.heads.get(unit as usize) == Some(&(BLOCKS | CHUNK_ORDER));
        let at = arena.memory.at(unit, CHUNK_BYTES).filter(|_| there);
        chunks.push(at.map(|at| Chunk {
            blocks: at.cast(),
            unit,
            memory: Arc::clone(&arena.memory),
        }));
    }
    Some((arena, chunks))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn arena(len: usize) -> Arena {
        Arena::new(Memory::new(len).unwrap()).unwrap()
    }

    /// Under Miri it is the kind of access that counts.
    const STEPS: usize = if cfg!(miri) { 16 } else { 120 };

    proptest! {
        /// Pieces never overlap, keep what is written to them, and are joined when they are free;
        /// who finds those in use finds the same ones free.
        #[test]
        fn pieces_are_had_once(steps in prop::collection::vec((0u8..6, any::<u8>(), 0usize..40), 1..STEPS)) {
            let mut arena = arena(400 << 10);
            let all = arena.free_bytes();
            let mut rings: Vec<(u32, u8)> = Vec::new();
            let mut chunks = BTreeMap::new();
            for (order, fill, which) in steps {
                // Large ones take Miri long to compare.
                let order = if cfg!(miri) { order & 1 } else { order };
                if which < 24 {
                    if let Some(name) = arena.take_ring(order) {
                        prop_assert_eq!(arena.ring(name).len(), UNIT << order);
                        arena.ring_mut(name).fill(fill);
                        rings.push((name, fill));
                    }
                } else if which < 30 && !rings.is_empty() {
                    let (name, _) = rings.swap_remove(which % rings.len());
                    prop_assert!(arena.give_ring(name) && !arena.give_ring(name));
                    prop_assert_eq!((arena.size(name), arena.ring(name).len()), (0, 0));
                } else if let Some(chunk) = chunks.remove(&(which % 4)) {
                    arena.give_chunk(which % 4, chunk);
                } else if let Some(mut chunk) = arena.take_chunk(which % 4) {
                    chunk[31].generation = fill.into();
                    chunks.insert(which % 4, chunk);
                }
                let used: usize = rings.iter().map(|(name, _)| arena.size(*name) as usize).sum();
                let used = used + chunks.len() * CHUNK_BYTES;
                prop_assert_eq!(arena.free_bytes(), all - used);
                for (name, fill) in &rings {
                    let ring = arena.ring(*name);
                    prop_assert!(ring.first() == Some(fill) && ring.last() == Some(fill));
                }
            }
            let there: Vec<_> = chunks.keys().copied().collect();
            drop(chunks);
            let free = arena.free_bytes();
            arena.seal(|room| { room[0] = 1; Ok::<_, ()>(1) }).unwrap();
            let memory = arena.into_memory().unwrap();
            let mut sealed = Sealed::read(&memory).unwrap();
            for (name, _) in &rings {
                prop_assert!(sealed.pieces.ring(*name) && !sealed.pieces.ring(*name));
            }
            prop_assert!(sealed.pieces.gaps(|_| ()));
            let found: Vec<_> = sealed.chunks().map(|(slot, _)| (slot / CHUNK) as usize).collect();
            prop_assert_eq!(&found, &there);
            let pieces = sealed.into_pieces();
            let (mut arena, chunks) = take_over(memory, pieces).unwrap();
            arena.unseal();
            prop_assert_eq!(arena.free_bytes(), free);
            for (name, fill) in rings {
                prop_assert!(arena.ring(name).iter().all(|byte| *byte == fill));
                prop_assert!(arena.give_ring(name));
            }
            for (number, chunk) in chunks.into_iter().enumerate() {
                if let Some(chunk) = chunk {
                    prop_assert!(chunk[0].is_vacant());
                    arena.give_chunk(number, chunk);
                }
            }
            prop_assert_eq!(arena.free_bytes(), all);
            // All of it in pieces as large as there were.
            prop_assert!(arena.take_ring(5).is_some());
        }
    }

    #[test]
    fn bytes_move_from_ring_to_ring() {
        let mut arena = arena(200 << 10);
        let (a, b) = (arena.take_ring(0).unwrap(), arena.take_ring(1).unwrap());
        arena.ring_mut(a).fill(7);
        let (from, to) = arena.two(a, b).unwrap();
        to[..UNIT].copy_from_slice(from);
        assert!(arena.two(a, a).is_none() && arena.two(a, NONE).is_none());
        assert_eq!(arena.ring(b)[UNIT - 1], 7);
        assert!(Arena::new(Memory::new(1).unwrap()).is_none());
    }
}
