//! A hash table from keyed hashes to slots. The entries are numbers only; what a slot holds is
//! compared by whoever asks.

use alloc::vec;
use alloc::vec::Vec;

const NONE: u32 = u32::MAX;
const FIRST_BUCKETS: usize = 64;

/// The table.
#[derive(Debug)]
pub struct Index {
    heads: Vec<u32>,
    /// By slot: its hash and the next slot of the same bucket.
    links: Vec<(u32, u32)>,
    count: usize,
}

impl Index {
    /// An empty one.
    pub fn new() -> Self {
        Self {
            heads: vec![NONE; FIRST_BUCKETS],
            links: Vec::new(),
            count: 0,
        }
    }

    fn bucket(&self, hash: u32) -> usize {
        // The number of buckets is a power of two.
        hash as usize & (self.heads.len() - 1)
    }

    /// The slots with this hash's bucket.
    pub fn candidates(&self, hash: u32) -> impl Iterator<Item = u32> + '_ {
        let mut at = self.heads[self.bucket(hash)];
        core::iter::from_fn(move || {
            while at != NONE {
                let slot = at;
                let (its, next) = self.links[slot as usize];
                at = next;
                if its == hash {
                    return Some(slot);
                }
            }
            None
        })
    }

    /// Enters `slot`, which must not be in the table.
    pub fn insert(&mut self, hash: u32, slot: u32) {
        if self.count >= self.heads.len() {
            self.grow();
        }
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, (0, NONE));
        }
        let bucket = self.bucket(hash);
        self.links[slot as usize] = (hash, self.heads[bucket]);
        self.heads[bucket] = slot;
        self.count += 1;
    }

    /// Takes `slot` out, if it is in.
    pub fn remove(&mut self, slot: u32) {
        let Some(&(hash, next)) = self.links.get(slot as usize) else {
            return;
        };
        let bucket = self.bucket(hash);
        let mut at = self.heads[bucket];
        if at == slot {
            self.heads[bucket] = next;
            self.count -= 1;
            return;
        }
        while at != NONE {
            let link = &mut self.links[at as usize].1;
            if *link == slot {
                *link = next;
                self.count -= 1;
                return;
            }
            at = *link;
        }
    }

    fn grow(&mut self) {
        let old = core::mem::take(&mut self.heads);
        self.heads = vec![NONE; old.len() * 2];
        for head in old {
            let mut at = head;
            while at != NONE {
                let (hash, next) = self.links[at as usize];
                let bucket = self.bucket(hash);
                self.links[at as usize].1 = self.heads[bucket];
                self.heads[bucket] = at;
                at = next;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn as_a_map(steps in prop::collection::vec((0u32..300, 0u32..40, any::<bool>()), 1..800)) {
            let mut index = Index::new();
            let mut map = BTreeMap::new();
            for (slot, hash, add) in steps {
                if !add {
                    index.remove(slot);
                    map.remove(&slot);
                } else if let std::collections::btree_map::Entry::Vacant(entry) = map.entry(slot) {
                    entry.insert(hash);
                    index.insert(hash, slot);
                }
                let mut found: Vec<u32> = index.candidates(hash).collect();
                found.sort_unstable();
                let expected: Vec<u32> =
                    map.iter().filter(|(_, its)| **its == hash).map(|(slot, _)| *slot).collect();
                prop_assert_eq!(found, expected);
            }
        }
    }
}
