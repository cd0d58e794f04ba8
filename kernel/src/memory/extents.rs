//! Sets of frames as sorted extents: memory maps and who owns what (I7).

use crate::memory::addr::Extent;
use arrayvec::ArrayVec;

/// The set would need more extents than it has room for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooManyExtents;

impl core::fmt::Display for TooManyExtents {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the memory map has too many pieces")
    }
}

/// A set of frames, kept as disjoint, sorted, non-adjacent extents; at most `N` of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentSet<const N: usize> {
    parts: ArrayVec<Extent, N>,
}

impl<const N: usize> ExtentSet<N> {
    /// The empty set.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            parts: ArrayVec::new_const(),
        }
    }

    /// The extents, lowest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Extent> + '_ {
        self.parts.iter().copied()
    }

    /// Number of frames in the set.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.iter().map(Extent::frames).sum()
    }

    /// Number of the frame after the highest, 0 if there is none.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.parts.last().map_or(0, |e| e.end())
    }

    /// Whether every frame of `extent` is in the set.
    #[must_use]
    pub fn contains(&self, extent: Extent) -> bool {
        self.iter().any(|e| e.contains(extent))
    }

    /// Whether any frame of `extent` is in the set.
    #[must_use]
    pub fn overlaps(&self, extent: Extent) -> bool {
        self.iter().any(|e| e.overlaps(extent))
    }

    /// Adds frames; those already in the set stay.
    ///
    /// # Errors
    /// No room: the set is unchanged.
    pub fn insert(&mut self, extent: Extent) -> Result<(), TooManyExtents> {
        let (mut start, mut end) = (extent.start().as_u64(), extent.end());
        // As a record's sets are read, which is in the blackout.
        if self.parts.last().is_none_or(|last| last.end() < start) {
            return push(&mut self.parts, start, end);
        }
        let mut next: ArrayVec<Extent, N> = ArrayVec::new();
        let mut placed = false;
        for part in self.iter() {
            if part.end() < start {
                next.try_push(part).map_err(|_| TooManyExtents)?;
            } else if end < part.start().as_u64() {
                if !placed {
                    push(&mut next, start, end)?;
                    placed = true;
                }
                next.try_push(part).map_err(|_| TooManyExtents)?;
            } else {
                start = start.min(part.start().as_u64());
                end = end.max(part.end());
            }
        }
        if !placed {
            push(&mut next, start, end)?;
        }
        self.parts = next;
        Ok(())
    }

    /// Takes frames out; those not in the set are no matter.
    ///
    /// # Errors
    /// No room (a hole splits an extent): the set is unchanged.
    pub fn remove(&mut self, extent: Extent) -> Result<(), TooManyExtents> {
        let mut next: ArrayVec<Extent, N> = ArrayVec::new();
        for part in self.iter() {
            if part.overlaps(extent) {
                push(&mut next, part.start().as_u64(), extent.start().as_u64())?;
                push(&mut next, extent.end(), part.end())?;
            } else {
                next.try_push(part).map_err(|_| TooManyExtents)?;
            }
        }
        self.parts = next;
        Ok(())
    }
}

/// Adds `start..end` unless it is empty.
fn push<const N: usize>(
    parts: &mut ArrayVec<Extent, N>,
    start: u64,
    end: u64,
) -> Result<(), TooManyExtents> {
    match Extent::from_bounds(start, end) {
        Some(extent) => parts.try_push(extent).map_err(|_| TooManyExtents),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::addr::Gfn;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn extent(start: u64, frames: u64) -> Extent {
        Extent::new(Gfn::new(start).unwrap(), frames).unwrap()
    }

    proptest! {
        /// The set is what a set of single frames would be, in canonical form.
        #[test]
        fn behaves_like_a_set_of_frames(
            ops in proptest::collection::vec((any::<bool>(), 0u64..200, 1u64..40), 0..60)
        ) {
            let mut set = ExtentSet::<64>::new();
            let mut model = BTreeSet::new();
            for (add, start, frames) in ops {
                let e = extent(start, frames);
                if add {
                    prop_assert!(set.insert(e).is_ok());
                    model.extend(start..start + frames);
                } else {
                    prop_assert!(set.remove(e).is_ok());
                    model.retain(|f| !(start..start + frames).contains(f));
                }
                let flat: Vec<u64> =
                    set.iter().flat_map(|e| e.start().as_u64()..e.end()).collect();
                prop_assert_eq!(&flat, &model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(set.frames(), model.len() as u64);
                let gaps = set.iter().zip(set.iter().skip(1)).all(|(a, b)| a.end() < b.start().as_u64());
                prop_assert!(gaps, "extents touch: {:?}", set);
                prop_assert_eq!(set.contains(e), add);
            }
        }
    }

    #[test]
    fn a_full_set_refuses_and_stays_as_it_was() {
        let mut set = ExtentSet::<2>::new();
        set.insert(extent(0, 10)).unwrap();
        set.insert(extent(20, 10)).unwrap();
        let before = set.clone();
        assert_eq!(set.insert(extent(40, 1)), Err(TooManyExtents));
        assert_eq!(set.remove(extent(5, 1)), Err(TooManyExtents));
        assert_eq!(set, before);
    }

    #[test]
    fn ram_is_rounded_inwards_and_claims_outwards() {
        assert_eq!(
            Extent::inside(0x1001, 0x2fff),
            Extent::new(Gfn::new(2).unwrap(), 2)
        );
        assert_eq!(Extent::inside(0x1001, 0xfff), None);
        assert_eq!(
            Extent::touching(0x1fff, 2),
            Extent::new(Gfn::new(1).unwrap(), 2)
        );
        assert_eq!(Extent::inside(u64::MAX, u64::MAX), None);
        assert!(Extent::inside(0, u64::MAX).is_some());
    }
}
