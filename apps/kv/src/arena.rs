//! Blocks of a region's bytes, by offsets: what a heap is elsewhere.
//!
//! ```text
//! Header, padded to 4 KiB | buckets u32 | order u32 | heap u32 | blocks
//! ```
//! The three arrays are [`store`](crate::store)'s and are as long as they ever get, so nothing is
//! moved when there are more keys, and nothing is looked through when the table is handed over.
//!
//! Blocks are counted in units of 16 bytes. Each begins with its size and that of the block before
//! it, so that free neighbours are joined. Free ones are in lists by size, eight for each power of
//! two, with a bit for each list (TLSF: Masmano et al. 2004): taking one and giving it back costs the
//! same however many there are.

use segue::Plain;
use segue::preserved::Offset;

/// Bytes of a unit.
const UNIT: usize = 16;
/// Bytes of a block before its content.
const TAG: usize = 8;
/// Bytes before the arrays.
const HEAD: usize = 4096;
const LISTS: usize = 256;
/// In a block's size: it is free.
const FREE: u32 = 1 << 31;
/// Most bytes of an arena: sizes have 31 bits.
const MOST: usize = 32 << 30;

/// What begins an arena: its plan, which never changes, and its books.
#[derive(Clone, Copy, Plain)]
#[repr(C)]
pub struct Header {
    /// Bytes of keys and values that it was made for.
    pub memory: u64,
    /// Number of buckets, a power of two.
    pub buckets: u64,
    /// Most keys.
    pub most: u64,
    /// First unit of the blocks, and the one after the last.
    blocks: [u32; 2],
    /// Of the hash of keys.
    pub seed: [u64; 2],
    /// Keys.
    pub len: u64,
    /// Keys that expire.
    pub expiring: u64,
    /// Bytes used, as they are reckoned.
    pub used: u64,
    /// Keys that have expired so far.
    pub expired: u64,
    /// The time, in ms.
    pub now: u64,
    /// A bit for each list that is not empty.
    bits: [u64; LISTS / 64],
    /// The first block of each list; 0 for none.
    lists: [u32; LISTS],
}

const _: () = assert!(size_of::<Header>() <= HEAD);

/// A block's first words; the links are content of free blocks only.
#[derive(Clone, Copy, Plain)]
#[repr(C)]
struct Block {
    /// Units, and whether it is free.
    size: u32,
    /// Units of the block before it; 0 for the first.
    before: u32,
    /// Next and previous free block of the list; 0 for none.
    next: u32,
    previous: u32,
}

/// An array behind the header.
#[derive(Clone, Copy)]
pub enum Array {
    /// The first entry of each bucket.
    Buckets,
    /// All entries.
    Order,
    /// Entries that expire, as a heap.
    Heap,
}

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// The list of free blocks of a size: those in it have this size at least, and less than those in
/// the next.
fn list(units: u32) -> usize {
    if units < 8 {
        return units as usize;
    }
    let log = units.ilog2();
    ((log - 2) * 8 + (units >> (log - 3) & 7)) as usize
}

/// The first list whose blocks are all as large.
fn list_for(units: u32) -> Option<usize> {
    let round = if units < 8 {
        0
    } else {
        (1 << (units.ilog2() - 3)) - 1
    };
    Some(list(units.checked_add(round)?))
}

fn units(bytes: usize) -> Result<u32, Full> {
    let units = bytes.checked_add(TAG).ok_or(Full)?.div_ceil(UNIT);
    u32::try_from(units)
        .ok()
        .filter(|u| u & FREE == 0)
        .ok_or(Full)
}

/// Something that can't be, unless somebody else wrote here.
#[cold]
fn damaged() -> ! {
    panic!("kv: the table is damaged")
}

/// An arena, open to be changed.
#[derive(Debug)]
pub struct Arena<B> {
    bytes: B,
}

/// Bytes and arrays that an arena for `memory` bytes of keys and values has, and most keys.
fn plan(memory: usize, entry: usize) -> (usize, usize, usize) {
    let most = (memory / entry).max(8);
    let buckets = most.next_power_of_two();
    let arrays = HEAD + 4 * (buckets + 2 * most);
    // What sizes are rounded up by, and tags.
    let blocks = memory + memory / 8 + HEAD;
    (
        (arrays.next_multiple_of(UNIT) + blocks).min(MOST),
        buckets,
        most,
    )
}

/// Bytes of an arena for `memory` bytes of keys and values of `entry` bytes at least.
#[must_use]
pub fn size_for(memory: usize, entry: usize) -> usize {
    plan(memory, entry).0
}

impl<B: std::ops::DerefMut<Target = [u8]>> Arena<B> {
    /// The arena that is in these bytes.
    pub fn new(bytes: B) -> Self {
        Self { bytes }
    }

    /// Makes an empty arena of zeroed bytes.
    pub fn init(&mut self, memory: usize, entry: usize, seed: [u64; 2]) {
        let (_, buckets, most) = plan(memory, entry);
        let h = self.header_mut();
        h.memory = memory as u64;
        h.buckets = buckets as u64;
        h.most = most as u64;
        h.seed = seed;
        self.clear();
    }

    /// Makes it empty: the books begin anew, but for the plan, the time, and what has expired.
    pub fn clear(&mut self) {
        let buckets = self.header().buckets as usize;
        let most = self.header().most as usize;
        let first = (HEAD + 4 * (buckets + 2 * most)).div_ceil(UNIT) as u32;
        let end = (self.bytes.len().min(MOST) / UNIT) as u32;
        self.array_mut(Array::Buckets).fill(0);
        let h = self.header_mut();
        h.blocks = [first, end];
        (h.len, h.expiring, h.used) = (0, 0, 0);
        h.bits = [0; LISTS / 64];
        h.lists = [0; LISTS];
        *self.block_mut(first) = Block {
            size: end - first,
            before: 0,
            next: 0,
            previous: 0,
        };
        self.insert(first);
    }

    /// The books of the arena in these bytes, which nobody changes; `None` if they are too few.
    #[must_use]
    pub fn books(bytes: &[u8]) -> Option<&Header> {
        Offset::<Header>::at(0).and_then(|at| at.resolve(bytes))
    }

    /// Whether the plan fits the bytes.
    #[must_use]
    pub fn is_sound(bytes: &[u8], entry: usize) -> bool {
        let Some(h) = Self::books(bytes) else {
            return false;
        };
        usize::try_from(h.memory).is_ok_and(|memory| {
            let (size, buckets, most) = plan(memory, entry);
            size <= bytes.len() && (h.buckets, h.most) == (buckets as u64, most as u64)
        })
    }

    /// The books.
    pub fn header(&self) -> &Header {
        self.at(0)
    }

    /// The books, to write.
    pub fn header_mut(&mut self) -> &mut Header {
        self.at_mut(0)
    }

    fn at<T: Plain>(&self, byte: usize) -> &T {
        let offset = Offset::at(byte as u64);
        let found = offset.and_then(|at| at.resolve(&self.bytes));
        found.unwrap_or_else(|| damaged())
    }

    fn at_mut<T: Plain>(&mut self, byte: usize) -> &mut T {
        let offset = Offset::at(byte as u64);
        let found = offset.and_then(|at| at.resolve_mut(&mut self.bytes));
        found.unwrap_or_else(|| damaged())
    }

    fn place(&self, array: Array) -> (Option<Offset<u32>>, usize) {
        let h = self.header();
        let (buckets, most) = (h.buckets as usize, h.most as usize);
        let (before, len) = match array {
            Array::Buckets => (0, buckets),
            Array::Order => (buckets, most),
            Array::Heap => (buckets + most, most),
        };
        (Offset::at((HEAD + 4 * before) as u64), len)
    }

    /// An array.
    pub fn array(&self, array: Array) -> &[u32] {
        let (at, len) = self.place(array);
        let found = at.and_then(|at| at.slice(&self.bytes, len));
        found.unwrap_or_else(|| damaged())
    }

    /// An array, to write.
    pub fn array_mut(&mut self, array: Array) -> &mut [u32] {
        let (at, len) = self.place(array);
        let found = at.and_then(|at| at.slice_mut(&mut self.bytes, len));
        found.unwrap_or_else(|| damaged())
    }

    fn block(&self, block: u32) -> &Block {
        self.at(block as usize * UNIT)
    }

    fn block_mut(&mut self, block: u32) -> &mut Block {
        self.at_mut(block as usize * UNIT)
    }

    /// What is at the begin of a block's content.
    pub fn content<T: Plain>(&self, block: u32) -> &T {
        self.at(block as usize * UNIT + TAG)
    }

    /// As [`content`](Self::content), to write.
    pub fn content_mut<T: Plain>(&mut self, block: u32) -> &mut T {
        self.at_mut(block as usize * UNIT + TAG)
    }

    /// Bytes of a block's content.
    pub fn capacity(&self, block: u32) -> usize {
        (self.block(block).size & !FREE) as usize * UNIT - TAG
    }

    fn range(block: u32, from: usize, len: usize) -> std::ops::Range<usize> {
        let start = block as usize * UNIT + TAG + from;
        start..start + len
    }

    /// Bytes of a block's content.
    pub fn read(&self, block: u32, from: usize, len: usize) -> &[u8] {
        let bytes = self.bytes.get(Self::range(block, from, len));
        bytes.unwrap_or_else(|| damaged())
    }

    /// Bytes of a block's content, to write.
    pub fn write(&mut self, block: u32, from: usize, len: usize) -> &mut [u8] {
        let bytes = self.bytes.get_mut(Self::range(block, from, len));
        bytes.unwrap_or_else(|| damaged())
    }

    /// Copies bytes of one block to another.
    pub fn copy(&mut self, from: u32, to: u32, len: usize) {
        let to = Self::range(to, 0, len).start;
        self.bytes.copy_within(Self::range(from, 0, len), to);
    }

    /// The block behind; `None` for the last.
    fn behind(&self, block: u32) -> Option<u32> {
        let next = block + (self.block(block).size & !FREE);
        (next < self.header().blocks[1]).then_some(next)
    }

    /// Puts a block into its list.
    fn insert(&mut self, block: u32) {
        let size = self.block(block).size & !FREE;
        let list = list(size);
        let first = self.header().lists[list];
        let b = self.block_mut(block);
        (b.size, b.next, b.previous) = (size | FREE, first, 0);
        if first != 0 {
            self.block_mut(first).previous = block;
        }
        let h = self.header_mut();
        h.lists[list] = block;
        h.bits[list / 64] |= 1 << (list % 64);
    }

    /// Takes a block out of its list.
    fn remove(&mut self, block: u32) {
        let Block {
            size,
            next,
            previous,
            ..
        } = *self.block(block);
        let list = list(size & !FREE);
        self.block_mut(block).size = size & !FREE;
        if next != 0 {
            self.block_mut(next).previous = previous;
        }
        if previous != 0 {
            self.block_mut(previous).next = next;
            return;
        }
        let h = self.header_mut();
        h.lists[list] = next;
        if next == 0 {
            h.bits[list / 64] &= !(1 << (list % 64));
        }
    }

    /// The first list from `list` on that is not empty.
    fn find(&self, list: usize) -> Option<usize> {
        let mut mask = u64::MAX << (list % 64);
        for (n, bits) in self.header().bits.iter().enumerate().skip(list / 64) {
            if bits & mask != 0 {
                return Some(n * 64 + (bits & mask).trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// Sets a block's size, and what the one behind it knows of it.
    fn resize(&mut self, block: u32, size: u32) {
        self.block_mut(block).size = size;
        if let Some(behind) = self.behind(block) {
            self.block_mut(behind).before = size;
        }
    }

    /// A block with room for `bytes` bytes; what is in it is anything.
    ///
    /// # Errors
    /// There is none.
    pub fn alloc(&mut self, bytes: usize) -> Result<u32, Full> {
        let want = units(bytes)?;
        let list = list_for(want)
            .and_then(|list| self.find(list))
            .ok_or(Full)?;
        let block = self.header().lists[list];
        self.remove(block);
        let rest = self.block(block).size - want;
        if rest > 0 {
            self.resize(block, want);
            let behind = block + want;
            *self.block_mut(behind) = Block {
                size: rest,
                before: want,
                next: 0,
                previous: 0,
            };
            self.resize(behind, rest);
            self.insert(behind);
        }
        Ok(block)
    }

    /// Gives a block back.
    pub fn free(&mut self, mut block: u32) {
        let Block {
            mut size, before, ..
        } = *self.block(block);
        if let Some(behind) = self.behind(block)
            && self.block(behind).size & FREE != 0
        {
            self.remove(behind);
            size += self.block(behind).size;
        }
        if before != 0 && self.block(block - before).size & FREE != 0 {
            block -= before;
            self.remove(block);
            size += before;
        }
        self.resize(block, size);
        self.insert(block);
    }

    /// Units of free blocks; walks over all blocks and checks them.
    #[cfg(test)]
    pub fn audit(&self) -> usize {
        let [first, end] = self.header().blocks;
        let (mut block, mut before, mut was_free, mut free) = (first, 0, false, 0);
        let mut lists = vec![0; LISTS];
        while block < end {
            let b = *self.block(block);
            let (size, is_free) = (b.size & !FREE, b.size & FREE != 0);
            assert!(size > 0 && b.before == before);
            assert!(!(is_free && was_free), "free neighbours");
            if is_free {
                free += size as usize;
                lists[list(size)] += 1;
            }
            (before, was_free) = (size, is_free);
            block += size;
        }
        assert_eq!(block, end);
        for (n, count) in lists.into_iter().enumerate() {
            let (mut at, mut found) = (self.header().lists[n], 0);
            assert_eq!(at != 0, self.header().bits[n / 64] >> (n % 64) & 1 == 1);
            while at != 0 {
                found += 1;
                at = self.block(at).next;
            }
            assert_eq!(found, count);
        }
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use segue::preserved::Region;

    proptest! {
        /// Blocks keep what is in them, are apart, and all is one free block in the end. A size
        /// that is refused has no free block twice as large.
        #[test]
        fn blocks_are_apart(ops in vec((any::<bool>(), 0usize..3000, any::<prop::sample::Index>()), 1..150)) {
            let mut region = Region::<[u8]>::create("arena", 1, size_for(20_000, 96)).unwrap();
            let mut arena = Arena::new(region.edit().unwrap());
            arena.init(20_000, 96, [1, 2]);
            let whole = arena.audit();
            let mut held: Vec<(u32, usize, u8)> = Vec::new();
            for (n, (give, size, which)) in ops.into_iter().enumerate() {
                if give && !held.is_empty() {
                    let (block, size, mark) = held.swap_remove(which.index(held.len()));
                    prop_assert!(arena.read(block, 0, size).iter().all(|b| *b == mark));
                    arena.free(block);
                } else if let Ok(block) = arena.alloc(size) {
                    prop_assert!(arena.capacity(block) >= size);
                    let all = arena.capacity(block);
                    arena.write(block, 0, all).fill(n as u8);
                    held.push((block, all, n as u8));
                } else {
                    prop_assert!(size > 1000 || arena.audit() * UNIT < 8 * 3000);
                }
                arena.audit();
            }
            for (block, size, mark) in held {
                prop_assert!(arena.read(block, 0, size).iter().all(|b| *b == mark));
                arena.free(block);
            }
            prop_assert_eq!(arena.audit(), whole);
        }

        #[test]
        fn lists_are_by_size(size in 1u32..FREE) {
            prop_assert!(list(size) < LISTS);
            prop_assert!(list(size) <= list(size + 1));
            let all = list_for(size).unwrap();
            prop_assert!(all == list(size) || all == list(size) + 1);
            // Whatever is in that list is as large.
            prop_assert!(list(size - 1) < all);
        }
    }
}
