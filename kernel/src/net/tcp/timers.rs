//! One timer for each connection, in a heap. A timer that is put off keeps its place and comes up
//! too early once: most are put off with each segment, and this costs nothing then.

use alloc::vec::Vec;

const NOWHERE: u32 = u32::MAX;

/// Timers by slot.
#[derive(Debug, Default)]
pub struct Timers {
    /// (when, slot): each no earlier than its parent at `(n - 1) / 2`.
    heap: Vec<(u64, u32)>,
    /// Slot → place in the heap.
    place: Vec<u32>,
}

impl Timers {
    /// When the first one comes up.
    pub fn first(&self) -> Option<u64> {
        self.heap.first().map(|&(when, _)| when)
    }

    /// Has `slot` come up at `when` or earlier.
    pub fn arm(&mut self, slot: u32, when: u64) {
        if self.place.len() <= slot as usize {
            self.place.resize(slot as usize + 1, NOWHERE);
        }
        let at = self.place[slot as usize];
        if at == NOWHERE {
            self.heap.push((when, slot));
            self.rise(self.heap.len() - 1);
        } else if when < self.heap[at as usize].0 {
            self.heap[at as usize].0 = when;
            self.rise(at as usize);
        }
    }

    /// Takes a slot whose time has come.
    pub fn take_due(&mut self, now: u64) -> Option<u32> {
        let &(when, slot) = self.heap.first()?;
        (when <= now).then(|| {
            self.disarm(slot);
            slot
        })
    }

    /// Forgets `slot`.
    pub fn disarm(&mut self, slot: u32) {
        let Some(place) = self.place.get_mut(slot as usize) else {
            return;
        };
        let at = core::mem::replace(place, NOWHERE) as usize;
        if at == NOWHERE as usize {
            return;
        }
        self.heap.swap_remove(at);
        if let Some(&(_, moved)) = self.heap.get(at) {
            self.place[moved as usize] = at as u32;
            self.sink(at);
            self.rise(at);
        }
    }

    fn rise(&mut self, mut at: usize) {
        let entry = self.heap[at];
        while at > 0 {
            let parent = (at - 1) / 2;
            if self.heap[parent].0 <= entry.0 {
                break;
            }
            self.put(at, self.heap[parent]);
            at = parent;
        }
        self.put(at, entry);
    }

    fn sink(&mut self, mut at: usize) {
        let entry = self.heap[at];
        loop {
            let (left, right) = (2 * at + 1, 2 * at + 2);
            let Some(mut child) = self.heap.get(left).map(|_| left) else {
                break;
            };
            if self
                .heap
                .get(right)
                .is_some_and(|entry| entry.0 < self.heap[left].0)
            {
                child = right;
            }
            if entry.0 <= self.heap[child].0 {
                break;
            }
            self.put(at, self.heap[child]);
            at = child;
        }
        self.put(at, entry);
    }

    fn put(&mut self, at: usize, entry: (u64, u32)) {
        self.heap[at] = entry;
        self.place[entry.1 as usize] = at as u32;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is due comes out, in order, and nothing else.
        #[test]
        fn as_a_map(steps in prop::collection::vec((0u32..20, 0u64..100, 0u8..4), 1..200)) {
            let mut timers = Timers::default();
            let mut map = BTreeMap::new();
            for (slot, when, what) in steps {
                match what {
                    0 => {
                        timers.disarm(slot);
                        map.remove(&slot);
                    }
                    1 => while let Some(first) = timers.first() {
                        let due = timers.take_due(when);
                        prop_assert_eq!(due.is_some(), first <= when);
                        let Some(slot) = due else { break };
                        prop_assert_eq!(map.remove(&slot), Some(first));
                    },
                    _ => {
                        timers.arm(slot, when);
                        map.entry(slot).and_modify(|at| *at = when.min(*at)).or_insert(when);
                    }
                }
                prop_assert_eq!(timers.first(), map.values().min().copied());
            }
        }
    }
}
