//! What is sent, and when: new data (Nagle, silly-window avoidance, both windows), repetitions, ACKs.

use super::addr;
use super::block::{
    ACK_NOW, Block, CWND_LIMITED, FIN_QUEUED, FIN_SENT, FORCE, NODELAY, OFF, ORPHAN, PERSIST,
    PROBE_DUE, QUEUED, RST_DUE, RTT_TIMED, Recovery, SACK_ON, SCALE_ON, SYN_DUE, State, TS_ON,
};
use super::congestion::initial_window;
use super::ranges::Range;
use super::seq::Seq;
use super::wire::{ACK, FIN, Header, MAX_SACK, PSH, RST, SYN, TIMESTAMPS_LEN};
use super::{Engine, Link, OutSegment};

/// What to send next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Nothing,
    /// Without payload, from this sequence number on.
    Control {
        flags: u8,
        seq: Seq,
    },
    /// Payload, and FIN behind it; `again` if it was sent before.
    Text {
        seq: Seq,
        len: u32,
        fin: bool,
        again: bool,
    },
}

impl Engine {
    /// Sends what was decided since the last call: ACKs and data. To be called after a batch of
    /// inputs, and after calls of apps that have something sent (`connect`, `send`, `recv`,
    /// `shutdown`, `close`, `abort`).
    pub fn flush(&mut self, now: u64, link: &mut impl Link) {
        while !self.blocked
            && let Some(id) = self.queue.pop_front()
        {
            let stale = self
                .blocks
                .get(id.slot)
                .is_none_or(|it| it.generation != id.generation);
            if stale {
                continue;
            }
            if !self.output(now, id.slot, link) {
                self.blocked = true;
                self.queue.push_front(id);
                return self.rearm(id.slot);
            }
            let block = &mut self.blocks[id.slot];
            block.clear(QUEUED);
            if block.state == State::CLOSED && block.has(ORPHAN) {
                self.free(id.slot);
            } else {
                self.rearm(id.slot);
            }
        }
        // Here nobody has the slot of a connection that is gone.
        self.blocks.trim(self.buffers.arena());
    }

    /// The link has room again.
    pub fn unblocked(&mut self, now: u64, link: &mut impl Link) {
        self.blocked = false;
        self.flush(now, link);
    }

    /// Routes, addresses or the device have changed: paths are asked for anew.
    pub fn paths_changed(&mut self) {
        self.path_epoch = self.path_epoch.wrapping_add(1);
    }

    /// Sends all that may be sent. `false`: the link is full.
    fn output(&mut self, now: u64, slot: u32, link: &mut impl Link) -> bool {
        let max_rto = self.config.max_rto;
        let limit = self.recv_limit(slot);
        let block = &mut self.blocks[slot];
        if block.path_epoch != self.path_epoch {
            block.path_epoch = self.path_epoch;
            if let Some(path) = link.path(addr::ip(block.tuple.remote)) {
                block.use_path(&path);
            }
        }
        if block.flight() == 0
            && block.state.sends()
            && now.saturating_sub(block.sent_at) > block.rto
        {
            // RFC 5681, section 4.1: what the window knew is out of date.
            block.window.cwnd = block.window.cwnd.min(initial_window(block.smss()));
            block.window.idle();
        }
        block.clear(CWND_LIMITED);
        loop {
            let (header, room) = self.blocks[slot].header(now, limit);
            let plan = self.blocks[slot].plan(room);
            if plan == Plan::Nothing {
                break;
            }
            if !self.send_planned(slot, plan, header, room, link) {
                return false;
            }
            self.blocks[slot].sent(now, max_rto, plan, &header);
        }
        let block = &mut self.blocks[slot];
        // Slow start may go on while half the window is used: a batch of ACKs comes late.
        if block.window.cwnd < block.window.ssthresh && block.pipe() >= block.window.cwnd / 2 {
            block.set(CWND_LIMITED);
        }
        let waits =
            block.state.sends() && block.flight() == 0 && block.snd_end.beyond(block.snd_nxt) > 0;
        if !waits {
            if block.has(PERSIST) {
                block.clear(PERSIST);
                block.backoff = 0;
                block.rto_at = if block.flight() > 0 {
                    now.saturating_add(block.rto)
                } else {
                    OFF
                };
            }
        } else if block.rto_at == OFF {
            // Only the peer's window holds us back (RFC 9293, section 3.8.6.1).
            block.set(PERSIST);
            block.rto_at = now.saturating_add(block.backed_off(max_rto));
        }
        true
    }

    fn send_planned(
        &mut self,
        slot: u32,
        plan: Plan,
        header: Header,
        room: u32,
        link: &mut impl Link,
    ) -> bool {
        let block = &self.blocks[slot];
        let mut header = header;
        let mut payload: [&[u8]; 2] = [&[], &[]];
        match plan {
            Plan::Nothing => {}
            Plan::Control { flags, seq } => {
                header.seq = seq;
                header.flags = flags;
                if flags & SYN != 0 {
                    block.syn_options(&mut header);
                }
                if flags & RST != 0 {
                    header.timestamps = None;
                    header.sack_count = 0;
                }
            }
            Plan::Text { seq, len, fin, .. } => {
                header.seq = seq;
                header.flags = ACK | if fin { FIN } else { 0 };
                if len > 0 && seq + len == block.snd_end {
                    header.flags |= PSH;
                }
                payload = self.buffers.pieces(block.tx, seq, len);
            }
        }
        let tuple = &block.tuple;
        let emitted = header.emit(tuple.local_port, tuple.remote_port);
        let taken = link.send(&OutSegment {
            src: tuple.local(),
            dst: tuple.remote(),
            header: emitted.as_bytes(),
            payload,
            mss: room as u16,
            ttl: block.ttl,
        });
        if taken {
            self.stats.segments_out += 1;
            self.stats.resets_out += u64::from(header.has(RST));
            if let Plan::Text { len, again, .. } = plan {
                self.stats.bytes_out += u64::from(len);
                self.stats.retransmits += u64::from(again);
            }
        }
        taken
    }
}

impl Block {
    /// What all segments of now carry, and how much payload one has room for beside it.
    fn header(&self, now: u64, limit: u32) -> (Header, u32) {
        let mut header = Header {
            ack: self.rcv_nxt,
            ..Header::default()
        };
        let edge = self.window_edge(limit);
        header.window = if self.has(SCALE_ON) {
            // Rounded up, so that the right edge does not go back, unless there is no room for it.
            let unit = (1u32 << self.rcv_scale) - 1;
            let open = edge.beyond(self.rcv_nxt);
            let free = limit.saturating_sub(self.rcv_nxt.beyond(self.rcv_read));
            let up = open.saturating_add(unit) >> self.rcv_scale;
            let most = free.max(open) >> self.rcv_scale;
            up.min(most).min(0xffff) as u16
        } else {
            edge.beyond(self.rcv_nxt).min(0xffff) as u16
        };
        let mut options = 0;
        if self.has(TS_ON) {
            header.timestamps = Some((self.clock(now), self.ts_recent));
            options += TIMESTAMPS_LEN;
        }
        if self.has(SACK_ON) && !self.ooo.is_empty() {
            // The one that came last first (RFC 2018, section 4).
            let newest = self.ooo.holding(self.ooo_last);
            let others = self
                .ooo
                .as_slice()
                .iter()
                .copied()
                .filter(|&it| Some(it) != newest);
            let most = if self.has(TS_ON) {
                MAX_SACK - 1
            } else {
                MAX_SACK
            };
            let blocks = newest.into_iter().chain(others).take(most);
            for (place, range) in header.sack.iter_mut().zip(blocks) {
                *place = (range.start, range.end);
                header.sack_count += 1;
            }
            options += 4 + 8 * u32::from(header.sack_count);
        }
        (header, u32::from(self.mss).saturating_sub(options).max(1))
    }

    /// Before the peer's SYN the flags say what we offer, afterwards what was agreed upon.
    fn syn_options(&self, header: &mut Header) {
        header.window = self.rx_max.min(0xffff) as u16;
        header.mss = Some(self.own_mss);
        header.scale = self.has(SCALE_ON).then_some(self.rcv_scale);
        header.sack_permitted = self.has(SACK_ON);
    }

    /// What to send next; a segment has room for this much payload.
    fn plan(&mut self, room: u32) -> Plan {
        if self.has(RST_DUE) {
            return Plan::Control {
                flags: RST | ACK,
                seq: self.snd_nxt,
            };
        }
        match self.state {
            State::CLOSED => return Plan::Nothing,
            State::SYN_SENT if self.has(SYN_DUE) => {
                return Plan::Control {
                    flags: SYN,
                    seq: self.iss,
                };
            }
            State::SYN_RECEIVED if self.has(SYN_DUE) => {
                return Plan::Control {
                    flags: SYN | ACK,
                    seq: self.iss,
                };
            }
            State::SYN_SENT | State::SYN_RECEIVED => return Plan::Nothing,
            _ => {}
        }
        if self.state.sends() {
            // New data does not overtake what is lost.
            let text = match self.next_lost() {
                Some(gap) => self.plan_again(gap, room),
                None => self.plan_new(room),
            };
            if let Some(text) = text {
                return text;
            }
        }
        if self.has(PROBE_DUE) {
            // Outside the window, so it must be answered (RFC 9293, section 3.8.4).
            return Plan::Control {
                flags: ACK,
                seq: self.snd_una - 1,
            };
        }
        if self.has(ACK_NOW) {
            return Plan::Control {
                flags: ACK,
                seq: self.snd_nxt,
            };
        }
        Plan::Nothing
    }

    /// The most payload of one piece: a segment's, or many whole ones.
    fn piece(&self, room: u32) -> u32 {
        (self.gso_max / room * room).max(room)
    }

    fn plan_again(&mut self, gap: Range, room: u32) -> Option<Plan> {
        let open = self.window.cwnd.max(room).saturating_sub(self.pipe());
        let whole = gap.end.min(self.snd_end).beyond(gap.start);
        let len = whole
            .min(self.piece(room))
            .min((open / room * room).max(room));
        // What is at the left edge may always go once: all waits for it.
        if open < len && self.high_rxt.gt(self.snd_una) {
            self.set(CWND_LIMITED);
            return None;
        }
        let fin = len == whole && gap.end.gt(self.snd_end);
        Some(Plan::Text {
            seq: gap.start,
            len,
            fin,
            again: true,
        })
    }

    fn plan_new(&mut self, room: u32) -> Option<Plan> {
        if self.has(FIN_SENT) {
            return None;
        }
        let seq = self.snd_nxt;
        let available = self.snd_end.beyond(seq);
        let fin_next = self.has(FIN_QUEUED);
        if available == 0 {
            return fin_next.then_some(Plan::Text {
                seq,
                len: 0,
                fin: true,
                again: false,
            });
        }
        let usable = (self.snd_una + self.snd_wnd).beyond(seq);
        let open = self.window.cwnd.max(room).saturating_sub(self.pipe());
        let mut len = available.min(usable).min(open).min(self.piece(room));
        if len == available {
            // Nagle, by Minshall: one segment on its way may be less than full, not two.
            let tail = len % room;
            let small_out = self.snd_small.gt(self.snd_una);
            if tail > 0 && small_out && !self.has(NODELAY) && !fin_next {
                len -= tail;
            }
        } else if len >= room {
            len -= len % room;
        } else if open <= usable {
            // The congestion window is worth waiting for.
            self.set(CWND_LIMITED);
            len = 0;
        } else if len < self.max_snd_wnd / 2 && !self.has(FORCE) {
            len = 0;
        }
        if len == 0 {
            if open < available.min(usable) {
                self.set(CWND_LIMITED);
            }
            return None;
        }
        let fin = fin_next && len == available;
        Some(Plan::Text {
            seq,
            len,
            fin,
            again: false,
        })
    }

    /// Notes what the link has taken.
    fn sent(&mut self, now: u64, max_rto: u64, plan: Plan, header: &Header) {
        let acks = match plan {
            Plan::Nothing => false,
            Plan::Control { flags, .. } => {
                if flags & RST != 0 {
                    self.clear(RST_DUE);
                } else if flags & SYN != 0 {
                    self.clear(SYN_DUE);
                    if self.backoff == 0 {
                        self.sent_at = now;
                    }
                } else {
                    self.clear(PROBE_DUE);
                }
                flags == ACK
            }
            Plan::Text {
                seq,
                len,
                fin,
                again,
            } => {
                let end = seq + len + u32::from(fin);
                self.sent_at = now;
                if again {
                    self.high_rxt = self.high_rxt.max(end);
                    self.rxt_mark = self.snd_nxt;
                } else {
                    self.snd_nxt = end;
                    self.clear(FORCE);
                    if fin {
                        self.set(FIN_SENT);
                    }
                    if !len.is_multiple_of(self.smss()) {
                        self.snd_small = end;
                    }
                    if !self.has(RTT_TIMED) && self.recovery == Recovery::OPEN {
                        self.rtt_seq = end;
                        self.rtt_at = now;
                        self.set(RTT_TIMED);
                    }
                }
                if self.rto_at == OFF || self.has(PERSIST) {
                    if self.has(PERSIST) {
                        self.clear(PERSIST);
                        self.backoff = 0;
                    }
                    self.rto_at = now.saturating_add(self.backed_off(max_rto));
                }
                true
            }
        };
        if acks {
            self.ack_at = OFF;
            self.last_ack = self.rcv_nxt;
            let told = u32::from(header.window)
                << if self.has(SCALE_ON) {
                    self.rcv_scale
                } else {
                    0
                };
            self.rcv_adv = self.rcv_adv.max(self.rcv_nxt + told);
            // A peer without SACK counts duplicates: one for each segment out of order.
            self.dup_owed = self.dup_owed.saturating_sub(1);
            if self.dup_owed == 0 || self.has(SACK_ON) || self.ooo.is_empty() {
                self.dup_owed = 0;
                self.clear(ACK_NOW);
            }
        }
    }
}
