//! A short list of disjoint ranges of sequence numbers in ascending order: what lies out of order
//! in a receive buffer, and what a peer has acknowledged selectively (RFC 2018).

use super::seq::Seq;

/// How many ranges a list holds. A range more is refused: its data counts as lost.
pub const MAX_RANGES: usize = 32;

/// The sequence numbers from `start` up to, not including, `end`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Range {
    /// The first one.
    pub start: Seq,
    /// The one after the last.
    pub end: Seq,
}

/// The list. Invariant: ranges are not empty, ascend, and do not touch.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Ranges {
    list: [Range; MAX_RANGES],
    count: u32,
}

impl Ranges {
    /// An empty list.
    pub const fn new() -> Self {
        let none = Range {
            start: Seq(0),
            end: Seq(0),
        };
        Self {
            list: [none; MAX_RANGES],
            count: 0,
        }
    }

    /// The ranges, ascending.
    pub fn as_slice(&self) -> &[Range] {
        self.list.get(..self.count as usize).unwrap_or(&self.list)
    }

    /// Whether the list is one, all between `from` and `to`, and no longer than sequence numbers can
    /// be told apart: another image says so.
    pub fn is_sane(&self, from: Seq, to: Seq) -> bool {
        let Some(ranges) = self.list.get(..self.count as usize) else {
            return false;
        };
        let length = to - from;
        let mut last = None;
        length <= 1 << 30
            && ranges.iter().all(|range| {
                let (start, end) = (range.start - from, range.end - from);
                // What is acknowledged may end within the first one.
                let good = last < Some(start) && start < end && end <= length;
                last = Some(end);
                good
            })
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.count = 0;
    }

    /// All ranges' lengths together.
    pub fn total(&self) -> u32 {
        let lengths = self.as_slice().iter().map(|range| range.end - range.start);
        lengths.fold(0, u32::wrapping_add)
    }

    /// Adds `start..end`, which must not be empty, joined with those it overlaps or touches.
    /// `false`, and nothing changed, if the list is full.
    pub fn insert(&mut self, start: Seq, end: Seq) -> bool {
        let ranges = self.as_slice();
        let from = ranges.partition_point(|range| range.end.lt(start));
        let to = ranges.partition_point(|range| range.start.le(end));
        let count = self.count as usize;
        let mut joined = Range { start, end };
        if let Some(touched @ [first, ..]) = ranges.get(from..to) {
            let last = touched.last().unwrap_or(first);
            joined = Range {
                start: start.min(first.start),
                end: end.max(last.end),
            };
            self.list.copy_within(to..count, from + 1);
            self.count -= (to - from - 1) as u32;
        } else {
            if count == MAX_RANGES {
                return false;
            }
            self.list.copy_within(from..count, from + 1);
            self.count += 1;
        }
        if let Some(place) = self.list.get_mut(from) {
            *place = joined;
        }
        true
    }

    /// Forgets everything before `seq`.
    pub fn trim_before(&mut self, seq: Seq) {
        let gone = self.as_slice().partition_point(|range| range.end.le(seq));
        if gone > 0 {
            self.list.copy_within(gone..self.count as usize, 0);
            self.count -= gone as u32;
        }
        if let Some(first) = self.list.first_mut().filter(|_| self.count > 0) {
            first.start = first.start.max(seq);
        }
    }

    /// The range that holds `seq`.
    pub fn holding(&self, seq: Seq) -> Option<Range> {
        let at = self.as_slice().partition_point(|range| range.end.le(seq));
        self.as_slice()
            .get(at)
            .copied()
            .filter(|range| range.start.le(seq))
    }

    /// The end of the last range.
    pub fn end(&self) -> Option<Seq> {
        self.as_slice().last().map(|range| range.end)
    }

    /// The first stretch from `from` up to `to` that is in no range.
    pub fn first_gap(&self, from: Seq, to: Seq) -> Option<Range> {
        let mut start = from;
        let at = self.as_slice().partition_point(|range| range.end.le(from));
        for range in self.as_slice().get(at..).unwrap_or_default() {
            if start.lt(range.start) {
                break;
            }
            start = range.end;
        }
        let next = self
            .as_slice()
            .iter()
            .map(|range| range.start)
            .find(|edge| edge.gt(start));
        let end = next.map_or(to, |edge| edge.min(to));
        start.lt(end).then_some(Range { start, end })
    }

    /// How many sequence numbers from `from` up to `to` are in no range.
    pub fn gaps(&self, from: Seq, to: Seq) -> u32 {
        let covered = self
            .as_slice()
            .iter()
            .map(|range| range.end.min(to).beyond(range.start.max(from)));
        to.beyond(from)
            .saturating_sub(covered.fold(0, u32::wrapping_add))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The list says what a set of numbers says, wherever the sequence space starts.
        #[test]
        fn as_a_set(
            base: u32,
            steps in prop::collection::vec((0u32..60, 1u32..9, any::<bool>()), 1..80),
        ) {
            let base = Seq(base);
            let mut ranges = Ranges::new();
            let mut set = BTreeSet::new();
            for (start, len, add) in steps {
                if add {
                    prop_assert!(ranges.insert(base + start, base + (start + len)));
                    set.extend(start..start + len);
                } else {
                    ranges.trim_before(base + start / 4);
                    set.retain(|&n| n >= start / 4);
                }
                for window in ranges.as_slice().windows(2) {
                    prop_assert!(window[0].end.lt(window[1].start));
                }
                prop_assert_eq!(ranges.total() as usize, set.len());
                for n in 0..70 {
                    prop_assert_eq!(ranges.holding(base + n).is_some(), set.contains(&n));
                    let gap = ranges.first_gap(base + n, base + 70);
                    let first = (n..70).find(|n| !set.contains(n));
                    prop_assert_eq!(gap.map(|gap| gap.start - base), first);
                    let gaps = (n..70).filter(|n| !set.contains(n)).count();
                    prop_assert_eq!(ranges.gaps(base + n, base + 70) as usize, gaps);
                }
            }
        }
    }

    #[test]
    fn full_list_refuses_one_more_but_not_a_join() {
        let mut ranges = Ranges::new();
        for n in 0..MAX_RANGES as u32 {
            assert!(ranges.insert(Seq(n * 10), Seq(n * 10 + 5)));
        }
        assert!(!ranges.insert(Seq(1000), Seq(1001)));
        assert!(ranges.insert(Seq(5), Seq(10)));
        assert!(ranges.insert(Seq(1000), Seq(1001)));
    }
}
