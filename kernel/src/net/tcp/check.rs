//! The engine's invariants, for tests and fuzz targets.

use alloc::collections::{BTreeMap, BTreeSet};

use super::block::{self, FIN_SENT, OFF, PASSIVE, QUEUED};
use super::buffers::NONE;
use super::{ConnId, Engine, State};

impl Engine {
    /// What must hold between any two calls.
    #[doc(hidden)]
    pub fn check(&self) {
        let mut rings = BTreeMap::new();
        let queue: BTreeSet<ConnId> = self.queue.iter().copied().collect();
        let mut used = 0;
        let mut half_open = BTreeMap::new();
        let mut time_wait = 0;
        for slot in self.blocks.slots() {
            let block = &self.blocks[slot];
            assert!(!block.is_vacant());
            used += 1;
            for (ring, what) in [(block.rx, "rx"), (block.tx, "tx")] {
                if ring != NONE {
                    assert!(rings.insert(ring, what).is_none(), "a ring has one owner");
                }
            }
            assert_eq!(queue.contains(&self.id_of(slot)), block.has(QUEUED));
            if block.state == State::CLOSED {
                continue;
            }
            let hash = self.secrets.place(&block.tuple);
            assert_eq!(
                self.index.candidates(hash).filter(|&it| it == slot).count(),
                1
            );
            if block.deadline() != OFF {
                assert!(
                    self.timers
                        .first()
                        .is_some_and(|first| first <= block.deadline())
                );
            }
            assert!(block.snd_una.le(block.snd_nxt));
            let fin = u32::from(block.has(FIN_SENT));
            assert!(block.snd_nxt.le(block.snd_end + fin));
            assert!(block.unacked() <= self.buffers.size(block.tx));
            assert!(block.rcv_read.le(block.readable_end()));
            let last = block.ooo.end().unwrap_or(block.readable_end());
            assert!(last - block.rcv_read <= self.buffers.size(block.rx));
            assert!(last.le(block.rcv_adv.max(block.rcv_nxt)));
            if let Some(first) = block.ooo.as_slice().first() {
                assert!(
                    first.start.gt(block.rcv_nxt),
                    "a gap is before what is out of order"
                );
            }
            if let Some(first) = block.sacked.as_slice().first() {
                assert!(first.start.gt(block.snd_una));
                assert!(block.sacked.end().is_some_and(|end| end.le(block.snd_nxt)));
            }
            assert!(block.high_rxt.le(block.snd_nxt) || block.recovery == block::Recovery::OPEN);
            let sending = matches!(
                block.state,
                State::ESTABLISHED
                    | State::FIN_WAIT_1
                    | State::CLOSE_WAIT
                    | State::CLOSING
                    | State::LAST_ACK
            );
            if sending && block.flight() > 0 {
                assert_ne!(block.rto_at, OFF, "what is on its way has a timer");
            }
            if sending && block.unacked() > 0 {
                assert!(
                    block.rto_at != OFF || block.has(QUEUED),
                    "unsent data waits for something"
                );
            }
            if block.state == State::SYN_RECEIVED && block.has(PASSIVE) {
                *half_open
                    .entry((block.listener, block.listener_generation))
                    .or_insert(0) += 1;
            }
            time_wait += u32::from(block.state == State::TIME_WAIT);
        }
        assert_eq!(used, self.blocks.used());
        assert_eq!(time_wait, self.stats.time_wait);
        let bytes: usize = rings
            .keys()
            .map(|&ring| self.buffers.size(ring) as usize)
            .sum();
        assert_eq!(bytes, self.buffers.used());
        for (slot, (listener, _)) in self.listeners.iter().enumerate() {
            if listener.open != 0 {
                let counted = half_open.get(&(slot as u32, listener.generation)).copied();
                assert_eq!(listener.half_open, counted.unwrap_or(0));
                let mut queue = 0;
                let mut at = listener.head;
                while at != NONE {
                    queue += 1;
                    at = self.blocks[at].next;
                }
                assert_eq!(queue, listener.ready);
            }
        }
    }
}
