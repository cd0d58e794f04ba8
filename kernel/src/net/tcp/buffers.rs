//! The connections' bytes: rings whose sizes are powers of two, handed out by number. The byte with
//! sequence number `s` lies at `s` modulo the ring's size, so a ring needs no head and no tail.
//!
//! Rings that are given back are kept for the next taker of their size. What is handed out and kept
//! stays below a limit; nothing but what was written is ever read from a ring, so none is cleared.

use alloc::vec::Vec;

use super::seq::Seq;

/// No ring.
pub const NONE: u32 = u32::MAX;
/// Size of the smallest ring, bytes; class `c` has this size times 2^c.
pub const SMALLEST: u32 = 2048;
/// Sizes of rings.
pub const CLASSES: u8 = 16;

/// All rings.
#[derive(Debug)]
pub struct Buffers {
    rings: Vec<Vec<u8>>,
    /// By class: rings that nobody uses.
    kept: [Vec<u32>; CLASSES as usize],
    /// Numbers without a ring.
    vacant: Vec<u32>,
    used: usize,
    held: usize,
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
    /// Rings of at most `limit` bytes together.
    pub fn new(limit: usize) -> Self {
        Self {
            rings: Vec::new(),
            kept: [const { Vec::new() }; CLASSES as usize],
            vacant: Vec::new(),
            used: 0,
            held: 0,
            limit,
        }
    }

    /// Bytes of the rings in use.
    pub fn used(&self) -> usize {
        self.used
    }

    /// Whether more than three quarters of the limit are in use.
    pub fn is_short(&self) -> bool {
        self.used > self.limit / 4 * 3
    }

    /// A ring of this class.
    pub fn take(&mut self, class: u8) -> Option<u32> {
        let size = size_of_class(class) as usize;
        let kept = self.kept.get_mut(class as usize)?;
        if let Some(number) = kept.pop() {
            self.used += size;
            return Some(number);
        }
        if self.held + size > self.limit {
            self.drop_kept();
            if self.held + size > self.limit {
                return None;
            }
        }
        let mut ring = Vec::new();
        ring.try_reserve_exact(size).ok()?;
        ring.resize(size, 0);
        self.held += size;
        self.used += size;
        if let Some(number) = self.vacant.pop() {
            self.rings[number as usize] = ring;
            return Some(number);
        }
        self.rings.push(ring);
        Some((self.rings.len() - 1) as u32)
    }

    /// Gives a ring back; [`NONE`] is none.
    pub fn give(&mut self, number: u32) {
        if number != NONE {
            let size = self.size(number);
            self.used -= size as usize;
            self.kept[class_for(size) as usize].push(number);
        }
    }

    fn drop_kept(&mut self) {
        for kept in &mut self.kept {
            for number in kept.drain(..) {
                let ring = core::mem::take(&mut self.rings[number as usize]);
                self.held -= ring.len();
                self.vacant.push(number);
            }
        }
    }

    /// A ring's size; 0 of [`NONE`].
    pub fn size(&self, number: u32) -> u32 {
        self.rings
            .get(number as usize)
            .map_or(0, |ring| ring.len() as u32)
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
        if *number != NONE {
            let mut target = core::mem::take(&mut self.rings[new as usize]);
            let mut at = start;
            for piece in self.pieces(*number, start, end - start) {
                copy_to_ring(&mut target, at, piece);
                at += piece.len() as u32;
            }
            self.rings[new as usize] = target;
            self.give(*number);
        }
        *number = new;
        true
    }

    /// Puts `bytes` where sequence number `at` lies.
    pub fn write(&mut self, number: u32, at: Seq, bytes: &[u8]) {
        if let Some(ring) = self.rings.get_mut(number as usize) {
            copy_to_ring(ring, at, bytes);
        }
    }

    /// The `len` bytes from sequence number `at` on, in order.
    pub fn pieces(&self, number: u32, at: Seq, len: u32) -> [&[u8]; 2] {
        let Some(ring) = self.rings.get(number as usize) else {
            return [&[], &[]];
        };
        let len = (len as usize).min(ring.len());
        let start = at.0 as usize & ring.len().wrapping_sub(1);
        let tail = ring.get(start..).unwrap_or_default();
        match tail.get(..len) {
            Some(whole) => [whole, &[]],
            None => [tail, ring.get(..len - tail.len()).unwrap_or_default()],
        }
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

    use super::*;

    proptest! {
        /// Bytes stay what and where they are while rings grow, whatever their numbers.
        #[test]
        fn grows_without_loss(start: u32, chunks in prop::collection::vec(1usize..3000, 1..12)) {
            let mut buffers = Buffers::new(1 << 20);
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
    fn limit_holds_and_kept_rings_make_room() {
        let mut buffers = Buffers::new(8192);
        let small: Vec<u32> = (0..4).map(|_| buffers.take(0).unwrap()).collect();
        assert_eq!(buffers.take(0), None);
        assert!(buffers.is_short());
        small.into_iter().for_each(|ring| buffers.give(ring));
        let large = buffers.take(2).unwrap();
        assert_eq!(buffers.size(large), 8192);
        assert_eq!(buffers.take(0), None);
    }
}
