//! The connections' bytes: rings whose sizes are powers of two, pieces of the arena. The byte with
//! sequence number `s` lies at `s` modulo the ring's size, so a ring needs no head and no tail.
//!
//! What is handed out stays below a limit; nothing but what was written is ever read from a ring, so
//! none is cleared.

pub use super::arena::NONE;
use super::arena::{self, Arena};
use super::seq::Seq;

/// Size of the smallest ring, bytes; class `c` has this size times 2^c.
pub const SMALLEST: u32 = arena::UNIT as u32;
/// Sizes of rings.
pub const CLASSES: u8 = arena::ORDERS;

/// All rings.
#[derive(Debug)]
pub struct Buffers {
    arena: Arena,
    used: usize,
    limit: usize,
}

/// The smallest class whose rings hold `len` bytes.
pub const fn class_for(len: u32) -> u8 {
    let mut class = 0;
    while class + 1 < CLASSES && SMALLEST << class < len {
        class += 1;
    }
    class
}

/// The size of a class's rings, bytes.
pub const fn size_of_class(class: u8) -> u32 {
    SMALLEST << (if class < CLASSES { class } else { CLASSES - 1 })
}

impl Buffers {
    /// Rings in this arena, of at most `limit` bytes together.
    pub fn new(arena: Arena, limit: usize) -> Self {
        let used = 0;
        Self { arena, used, limit }
    }

    /// So many bytes of rings are in use: they came with a switch.
    pub fn set_used(&mut self, used: usize) {
        self.used = used;
    }

    /// Where they lie.
    pub fn arena(&mut self) -> &mut Arena {
        &mut self.arena
    }

    /// Gives the arena back.
    pub fn into_arena(self) -> Arena {
        self.arena
    }

    /// Bytes of the arena that nobody uses.
    pub fn free_bytes(&self) -> usize {
        self.arena.free_bytes()
    }

    /// Bytes of the rings in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether more than three quarters of what there is for rings are in use.
    pub fn is_short(&self) -> bool {
        self.used > self.limit / 4 * 3 || self.arena.free_bytes() < self.limit / 4
    }

    /// A ring of this class.
    pub fn take(&mut self, class: u8) -> Option<u32> {
        let size = size_of_class(class) as usize;
        if self.used + size > self.limit {
            return None;
        }
        let number = self.arena.take_ring(class)?;
        self.used += size;
        Some(number)
    }

    /// Gives a ring back; [`NONE`] is none.
    pub fn give(&mut self, number: u32) {
        let size = self.size(number) as usize;
        if self.arena.give_ring(number) {
            self.used -= size;
        }
    }

    /// A ring's size; 0 of [`NONE`].
    pub fn size(&self, number: u32) -> u32 {
        self.arena.size(number)
    }

    /// Makes `*number` a ring for `need` bytes that keeps those with the sequence numbers
    /// `start..end`. A new one has at least the size of class `hint` when there is plenty.
    pub fn ensure(&mut self, number: &mut u32, hint: u8, start: Seq, end: Seq, need: u32) -> bool {
        let size = self.size(*number);
        if need <= size {
            return true;
        }
        let class = class_for(need);
        if size_of_class(class) < need {
            return false;
        }
        let roomy = if self.is_short() {
            class
        } else {
            class.max(hint)
        };
        let Some(new) = self.take(roomy).or_else(|| self.take(class)) else {
            return false;
        };
        if let Some((old, target)) = self.arena.two(*number, new) {
            let mut at = start;
            for piece in pieces(old, start, end - start) {
                copy_to_ring(target, at, piece);
                at += piece.len() as u32;
            }
            self.give(*number);
        }
        *number = new;
        true
    }

    /// Puts `bytes` where sequence number `at` lies.
    pub fn write(&mut self, number: u32, at: Seq, bytes: &[u8]) {
        copy_to_ring(self.arena.ring_mut(number), at, bytes);
    }

    /// The `len` bytes from sequence number `at` on, in order.
    pub fn pieces(&self, number: u32, at: Seq, len: u32) -> [&[u8]; 2] {
        pieces(self.arena.ring(number), at, len)
    }
}

fn pieces(ring: &[u8], at: Seq, len: u32) -> [&[u8]; 2] {
    let len = (len as usize).min(ring.len());
    let start = at.0 as usize & ring.len().wrapping_sub(1);
    let tail = ring.get(start..).unwrap_or_default();
    match tail.get(..len) {
        Some(whole) => [whole, &[]],
        None => [tail, ring.get(..len - tail.len()).unwrap_or_default()],
    }
}

fn copy_to_ring(ring: &mut [u8], at: Seq, bytes: &[u8]) {
    let start = at.0 as usize & ring.len().wrapping_sub(1);
    let (front, tail) = ring.split_at_mut(start.min(ring.len()));
    let (first, rest) = bytes.split_at(bytes.len().min(tail.len()));
    tail[..first.len()].copy_from_slice(first);
    let rest = &rest[..rest.len().min(front.len())];
    front[..rest.len()].copy_from_slice(rest);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::arena::Memory;
    use super::*;

    fn buffers(limit: usize) -> Buffers {
        let memory = Memory::new(arena::len_for(limit, 0)).unwrap();
        Buffers::new(Arena::new(memory).unwrap(), limit)
    }

    proptest! {
        /// Bytes stay what and where they are while rings grow, whatever their numbers.
        #[test]
        fn grows_without_loss(start: u32, chunks in prop::collection::vec(1usize..3000, 1..12)) {
            let mut buffers = buffers(1 << 20);
            let start = Seq(start);
            let mut ring = NONE;
            let mut all: Vec<u8> = Vec::new();
            for (n, len) in chunks.into_iter().enumerate() {
                let chunk: Vec<u8> = (0..len).map(|i| (i * 7 + n) as u8).collect();
                let end = start + all.len() as u32;
                prop_assert!(buffers.ensure(&mut ring, 0, start, end, (all.len() + len) as u32));
                buffers.write(ring, end, &chunk);
                all.extend(chunk);
                prop_assert_eq!(buffers.pieces(ring, start, all.len() as u32).concat(), all.clone());
            }
            buffers.give(ring);
            prop_assert_eq!(buffers.used(), 0);
        }
    }

    #[test]
    fn limit_holds_and_small_rings_make_room() {
        let mut buffers = buffers(8192);
        let small: Vec<u32> = (0..4).map(|_| buffers.take(0).unwrap()).collect();
        assert_eq!(buffers.take(0), None);
        assert!(buffers.is_short());
        small.into_iter().for_each(|ring| buffers.give(ring));
        let large = buffers.take(2).unwrap();
        assert_eq!(buffers.size(large), 8192);
        assert_eq!(buffers.take(0), None);
    }
}
