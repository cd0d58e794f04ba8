//! Which Ethernet address stands behind an IP address on the link: what ARP (RFC 826) and neighbour
//! discovery (RFC 4861 section 7) have told, what is being asked, and the frames that wait for it.
//!
//! An entry is sure for a while, then still used but asked again when it is; without an answer it
//! goes.

use super::nic::TxMeta;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;
use core::net::IpAddr;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// Most entries of one interface.
const ENTRIES: usize = 512;
/// Most frames that wait for one address.
const WAITING: usize = 16;
/// Most bytes that wait for one address.
const WAITING_BYTES: usize = 128 * 1024;
/// How long an answer is sure, in ns (REACHABLE_TIME of RFC 4861).
const SURE: u64 = 30_000_000_000;
/// Time between two questions, in ns (RETRANS_TIMER).
const RETRY: u64 = 1_000_000_000;
/// Questions before giving up (MAX_MULTICAST_SOLICIT, MAX_UNICAST_SOLICIT).
const TRIES: u8 = 3;

/// A frame that waits for its destination's Ethernet address (its first six bytes).
#[derive(Debug)]
pub struct Waiting {
    /// The frame.
    pub frame: Vec<u8>,
    /// What is left to the device.
    pub meta: TxMeta,
}

#[derive(Debug)]
struct Asking {
    tries: u8,
    next: u64,
}

#[derive(Debug, Default)]
struct Entry {
    mac: Option<Mac>,
    sure_until: u64,
    asking: Option<Asking>,
    used: u64,
    waiting: VecDeque<Waiting>,
}

impl Entry {
    fn waiting_bytes(&self) -> usize {
        self.waiting.iter().map(|w| w.frame.len()).sum()
    }
}

/// A question to be sent: to `mac` alone, or to all who may be `addr`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Who is looked for.
    pub addr: IpAddr,
    /// Where it was last.
    pub mac: Option<Mac>,
}

/// The neighbours of one interface.
#[derive(Debug, Default)]
pub struct Neighbors {
    entries: BTreeMap<IpAddr, Entry>,
    /// How many are being asked for.
    asking: usize,
}

impl Neighbors {
    /// The Ethernet address of `addr`, and a question if one is due.
    pub fn find(&mut self, addr: IpAddr, now: u64) -> (Option<Mac>, Option<Question>) {
        if let Some(e) = self.entries.get_mut(&addr) {
            e.used = now;
            let due = e.asking.is_none() && e.sure_until <= now;
            if due {
                e.asking = Some(Asking {
                    tries: 1,
                    next: now.saturating_add(RETRY),
                });
                self.asking += 1;
            }
            let mac = e.mac;
            return (mac, due.then_some(Question { addr, mac }));
        }
        self.make_room();
        let asking = Some(Asking {
            tries: 1,
            next: now.saturating_add(RETRY),
        });
        self.asking += 1;
        let used = now;
        self.entries.insert(
            addr,
            Entry {
                asking,
                used,
                ..Entry::default()
            },
        );
        (None, Some(Question { addr, mac: None }))
    }

    /// Where `addr` was last, without asking.
    #[must_use]
    pub fn known(&self, addr: IpAddr) -> Option<Mac> {
        self.entries.get(&addr)?.mac
    }

    /// Those that have been found, and until when that is sure: it may be over.
    pub fn found(&self) -> impl Iterator<Item = (IpAddr, Mac, u64)> + '_ {
        let entries = self.entries.iter();
        entries.filter_map(|(addr, e)| Some((*addr, e.mac?, e.sure_until)))
    }

    /// Takes one that another image has found. If it is not sure any more, it is asked when it is
    /// used, as it would have been there: frames go to it meanwhile, as more come after a blackout
    /// than may wait.
    pub fn restore(&mut self, addr: IpAddr, mac: Mac, sure_until: u64, now: u64) {
        drop(self.learn(addr, mac, now, true));
        if let Some(e) = self.entries.get_mut(&addr) {
            e.sure_until = sure_until.min(now.saturating_add(SURE));
        }
    }

    /// Keeps a frame until `addr` is found. The oldest that waits goes when there are too many.
    pub fn wait(&mut self, addr: IpAddr, waiting: Waiting) {
        if let Some(e) = self.entries.get_mut(&addr) {
            e.waiting.push_back(waiting);
            while e.waiting.len() > WAITING || e.waiting_bytes() > WAITING_BYTES {
                e.waiting.pop_front();
            }
        }
    }

    /// `addr` has said that it is at `mac`; returns the frames that waited for that. Somebody new
    /// is taken in only if `wanted` (it asked for us); who is known may move.
    pub fn learn(&mut self, addr: IpAddr, mac: Mac, now: u64, wanted: bool) -> VecDeque<Waiting> {
        // No group address is anybody's.
        if mac[0] & 1 != 0 || mac == [0; 6] {
            return VecDeque::new();
        }
        if !self.entries.contains_key(&addr) {
            if !wanted {
                return VecDeque::new();
            }
            self.make_room();
        }
        let e = self.entries.entry(addr).or_default();
        if e.asking.take().is_some() {
            self.asking -= 1;
        }
        e.mac = Some(mac);
        e.sure_until = now.saturating_add(SURE);
        core::mem::take(&mut e.waiting)
    }

    /// When [`Neighbors::due`] has to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        if self.asking == 0 {
            return None;
        }
        let next = |e: &Entry| e.asking.as_ref().map(|a| a.next);
        self.entries.values().filter_map(next).min()
    }

    /// Questions to be asked again go to `ask`; the frames that waited for somebody who isn't there
    /// to `lost`.
    pub fn due(
        &mut self,
        now: u64,
        mut ask: impl FnMut(Question),
        mut lost: impl FnMut(IpAddr, VecDeque<Waiting>),
    ) {
        if self.deadline().is_none_or(|d| d > now) {
            return;
        }
        let asking = &mut self.asking;
        self.entries.retain(|addr, e| {
            let Some(a) = e.asking.as_mut().filter(|a| a.next <= now) else {
                return true;
            };
            if a.tries < TRIES {
                a.tries += 1;
                a.next = now.saturating_add(RETRY);
                let mac = e.mac;
                ask(Question { addr: *addr, mac });
                return true;
            }
            *asking -= 1;
            lost(*addr, core::mem::take(&mut e.waiting));
            false
        });
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    fn make_room(&mut self) {
        if self.entries.len() < ENTRIES {
            return;
        }
        let oldest = self.entries.iter().min_by_key(|(_, e)| e.used);
        if let Some(addr) = oldest.map(|(a, _)| *a)
            && let Some(e) = self.entries.remove(&addr)
            && e.asking.is_some()
        {
            self.asking -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const A: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(10, 0, 0, 1));
    const MAC: Mac = [2, 0, 0, 0, 0, 1];

    fn frame(n: u8) -> Waiting {
        let frame = vec![n; 100];
        Waiting {
            frame,
            meta: TxMeta::default(),
        }
    }

    #[test]
    fn asked_thrice_then_given_up() {
        let mut n = Neighbors::default();
        assert_eq!(n.find(A, 0), (None, Some(Question { addr: A, mac: None })));
        assert_eq!(n.find(A, 1), (None, None));
        n.wait(A, frame(1));
        let mut asked = 0;
        let mut lost = Vec::new();
        for now in [RETRY - 1, RETRY, 2 * RETRY, 3 * RETRY, 4 * RETRY] {
            n.due(
                now,
                |_| asked += 1,
                |_, w| lost.extend(w.into_iter().map(|w| w.frame[0])),
            );
        }
        assert_eq!((asked, lost, n.deadline()), (2, vec![1], None));
        assert!(n.entries.is_empty());
    }

    #[test]
    fn an_answer_frees_what_waits_and_grows_old() {
        let mut n = Neighbors::default();
        n.find(A, 0);
        for i in 0..20 {
            n.wait(A, frame(i));
        }
        let freed: Vec<u8> = n
            .learn(A, MAC, 5, true)
            .iter()
            .map(|w| w.frame[0])
            .collect();
        assert_eq!(freed, (4..20).collect::<Vec<u8>>());
        assert_eq!(n.find(A, 6), (Some(MAC), None));
        // It may move, but nobody else comes in unasked, and no group is at an address.
        n.learn(A, [2; 6], 7, false);
        assert_eq!(n.find(A, 8), (Some([2; 6]), None));
        n.learn(A, [3; 6], 8, true);
        n.learn(IpAddr::V4([10, 0, 0, 9].into()), MAC, 8, false);
        assert_eq!((n.find(A, 9).0, n.entries.len()), (Some([2; 6]), 1));
        n.learn(A, MAC, 5, false);
        // Old: still used, and asked for where it was.
        let later = 5 + SURE;
        let question = Question {
            addr: A,
            mac: Some(MAC),
        };
        assert_eq!(n.find(A, later), (Some(MAC), Some(question)));
        assert_eq!(n.find(A, later + 1), (Some(MAC), None));
        n.learn(A, MAC, later + 2, true);
        assert_eq!(n.deadline(), None);
    }

    proptest! {
        #[test]
        fn bounded_and_counted(ops in proptest::collection::vec((0u32..700, 0u8..4, 0u64..4), 0..2000)) {
            let mut n = Neighbors::default();
            let mut now = 0;
            for (addr, op, wait) in ops {
                let addr = IpAddr::V4(addr.into());
                now += wait * RETRY / 4;
                match op {
                    0 => drop(n.find(addr, now)),
                    1 => n.wait(addr, frame(0)),
                    2 => drop(n.learn(addr, MAC, now, wait == 0)),
                    _ => n.due(now, |_| (), |_, _| ()),
                }
                prop_assert!(n.entries.len() <= ENTRIES);
                prop_assert_eq!(n.asking, n.entries.values().filter(|e| e.asking.is_some()).count());
                prop_assert!(n.entries.values().all(|e| e.waiting.len() <= WAITING));
            }
        }
    }
}
