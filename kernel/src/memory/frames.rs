//! The frame allocator: one bit a frame, 1 = free.
//!
//! A bitmap costs 32 KiB for each GiB and has no state besides itself: the free count can be
//! audited, and building it anew after a switch is a few stores a MiB.

use crate::memory::addr::{Extent, Gfn};

/// Which frames are free. `words` has a bit for every frame from 0 to the highest.
#[derive(Debug)]
pub struct FrameBitmap<'a> {
    words: &'a mut [u64],
    free: u64,
}

/// Words needed for frames `0..end`.
#[must_use]
pub const fn words_for(end: u64) -> u64 {
    end.div_ceil(64)
}

impl<'a> FrameBitmap<'a> {
    /// No frame is free yet.
    #[must_use]
    pub fn new(words: &'a mut [u64]) -> Self {
        words.fill(0);
        Self { words, free: 0 }
    }

    /// Number of free frames.
    #[must_use]
    pub const fn free(&self) -> u64 {
        self.free
    }

    fn end(&self) -> u64 {
        self.words.len() as u64 * 64
    }

    fn is_free(&self, gfn: u64) -> bool {
        self.words
            .get((gfn / 64) as usize)
            .is_some_and(|w| w >> (gfn % 64) & 1 == 1)
    }

    /// Whether every frame of `extent` is in state `free`.
    #[must_use]
    pub fn all(&self, extent: Extent, free: bool) -> bool {
        (extent.start().as_u64()..extent.end()).all(|gfn| self.is_free(gfn) == free)
    }

    /// Sets or clears the bits of `extent`, word by word; returns how many changed.
    fn mark(&mut self, extent: Extent, free: bool) -> u64 {
        let (mut gfn, end) = (extent.start().as_u64(), extent.end().min(self.end()));
        let mut changed = 0;
        while gfn < end {
            let (word, bit) = ((gfn / 64) as usize, gfn % 64);
            let count = (64 - bit).min(end - gfn);
            let mask = (u64::MAX >> (64 - count)) << bit;
            let Some(w) = self.words.get_mut(word) else {
                break;
            };
            let before = *w;
            *w = if free { before | mask } else { before & !mask };
            changed += u64::from((before ^ *w).count_ones());
            gfn += count;
        }
        changed
    }

    /// Gives frames to the allocator. Frames that are free already stay so (and count once).
    pub fn release(&mut self, extent: Extent) {
        self.free += self.mark(extent, true);
    }

    /// Takes these very frames. Frames that are taken already stay so.
    pub fn reserve(&mut self, extent: Extent) {
        self.free -= self.mark(extent, false);
    }

    /// Takes `frames` frames in a row, the first a multiple of `align`, all below frame `limit`.
    /// The lowest that fits.
    pub fn alloc(&mut self, frames: u64, align: u64, limit: u64) -> Option<Extent> {
        let end = self.end().min(limit);
        let align = align.max(1);
        let mut start = 0u64;
        while frames > 0 && start.checked_add(frames)? <= end {
            match self.first_taken(start, start + frames) {
                None => {
                    let extent = Extent::new(Gfn::new(start)?, frames)?;
                    self.reserve(extent);
                    return Some(extent);
                }
                Some(taken) => {
                    start = self
                        .first_free(taken + 1, end)?
                        .checked_next_multiple_of(align)?;
                }
            }
        }
        None
    }

    /// The first taken frame in `from..to`.
    fn first_taken(&self, from: u64, to: u64) -> Option<u64> {
        self.find(from, to, |w| !w)
    }

    /// The first free frame in `from..to`.
    fn first_free(&self, from: u64, to: u64) -> Option<u64> {
        self.find(from, to, |w| w)
    }

    fn find(&self, from: u64, to: u64, wanted: impl Fn(u64) -> u64) -> Option<u64> {
        let mut gfn = from;
        while gfn < to {
            let word = self.words.get((gfn / 64) as usize)?;
            let rest = wanted(*word) >> (gfn % 64);
            if rest != 0 {
                return Some(gfn + u64::from(rest.trailing_zeros())).filter(|g| *g < to);
            }
            gfn = (gfn / 64 + 1) * 64;
        }
        None
    }

    /// The free extents, lowest first.
    pub fn iter_free(&self) -> impl Iterator<Item = Extent> + '_ {
        let mut next = 0;
        core::iter::from_fn(move || {
            let start = self.first_free(next, self.end())?;
            let end = self.first_taken(start, self.end()).unwrap_or(self.end());
            next = end;
            Extent::from_bounds(start, end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn extent(start: u64, frames: u64) -> Extent {
        Extent::new(Gfn::new(start).unwrap(), frames).unwrap()
    }

    proptest! {
        /// No frame is given twice, alignment and limit hold, a refusal means that nothing fits,
        /// and after all is given back the count is what it was (I7).
        #[test]
        fn allocations_never_overlap(
            holes in proptest::collection::vec((0u64..600, 1u64..50), 0..10),
            wants in proptest::collection::vec((1u64..80, 0u32..7, 100u64..800), 1..40),
        ) {
            let mut words = [0u64; 10];
            let mut map = FrameBitmap::new(&mut words);
            map.release(extent(1, 630));
            for (s, n) in holes { map.reserve(extent(s, n)); }
            let mut taken: Vec<Extent> = Vec::new();
            let before = map.free();
            for (frames, shift, limit) in wants {
                let align = 1 << shift;
                let fits = (0..limit.min(640)).step_by(align as usize).any(|s|
                    s + frames <= limit.min(640) && map.all(extent(s, frames), true));
                match map.alloc(frames, align, limit) {
                    Some(e) => {
                        prop_assert!(fits);
                        prop_assert_eq!(e.frames(), frames);
                        prop_assert_eq!(e.start().as_u64() % align, 0);
                        prop_assert!(e.end() <= limit);
                        prop_assert!(taken.iter().all(|t| !t.overlaps(e)));
                        taken.push(e);
                    }
                    None => prop_assert!(!fits),
                }
                let listed: u64 = map.iter_free().map(Extent::frames).sum();
                prop_assert_eq!(listed, map.free());
            }
            for e in taken { map.release(e); }
            prop_assert_eq!(map.free(), before);
        }
    }
}
