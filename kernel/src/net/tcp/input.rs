//! Segments that arrive: RFC 9293, section 3.10.7, with RFC 5961's and RFC 7323's checks.

use super::addr::{self, Tuple};
use super::block::{
    ACK_NOW, Block, CWND_LIMITED, DUP_THRESH, FIN_KNOWN, FIN_QUEUED, FIN_SEEN, KEEPALIVE, NODELAY,
    OFF, ORPHAN, PASSIVE, PERSIST, READ_SHUT, RTT_TIMED, Recovery, SACK_ON, SCALE_ON, SYN_DUE,
    State, TS_ON,
};
use super::buffers::NONE;
use super::secrets::{COOKIE_PERIOD, mark_clock, read_clock};
use super::seq::Seq;
use super::wire::{ACK, FIN, Header, RST, SYN};
use super::{
    Engine, Error, IcmpError, Id, Link, ListenerId, MS, Options, OutSegment, Path, SECOND, Segment,
};

/// A timestamp older than this says nothing (RFC 7323, section 5.5).
const TS_OLD: u64 = 24 * 24 * 3600 * SECOND;
/// No packet the network delivers is longer, cut or not.
const MAX_PAYLOAD: usize = 1 << 18;
/// The least segment size we believe in: options must fit.
const MIN_MSS: u16 = 88;
/// What IP must carry (RFC 8200; RFC 879's 576 less some), against false "too big" messages.
const MIN_MTU_V4: u16 = 552;
const MIN_MTU_V6: u16 = 1280;

/// IP and TCP header without options.
pub fn headers_len(tuple: &Tuple) -> u16 {
    if addr::is_v4(tuple.remote) { 40 } else { 60 }
}

impl Engine {
    /// Takes a received segment. What it makes us send goes out in [`Engine::flush`], but for
    /// answers that belong to no connection.
    pub fn input(&mut self, now: u64, segment: &Segment<'_>, link: &mut impl Link) {
        self.stats.segments_in += 1;
        let (src, dst) = (segment.src, segment.dst);
        let len: usize = segment.payload.iter().map(|piece| piece.len()).sum();
        let sound = addr::is_unicast(src.ip())
            && addr::is_unicast(dst.ip())
            && src.is_ipv4() == dst.is_ipv4()
            && src.port() != 0
            && dst.port() != 0
            && len <= MAX_PAYLOAD;
        let Some(header) = Header::parse(segment.header).filter(|_| sound) else {
            self.stats.malformed += 1;
            return;
        };
        let tuple = Tuple::new(dst, src);
        let arrived = Arrived {
            header,
            payload: segment.payload,
            len: len as u32,
        };
        let Some(slot) = self.find(&tuple) else {
            return self.unmatched(now, &tuple, &arrived, None, link);
        };
        let block = &self.blocks[slot];
        match block.state {
            State::SYN_SENT => self.syn_sent(now, slot, &arrived, link),
            State::TIME_WAIT if may_reuse(block, &header) => {
                // RFC 9293, 3.10.7.4 and RFC 6191: a new connection, beyond the old one's numbers.
                let floor = block.snd_nxt + (1 << 18);
                self.end_silently(slot);
                return self.unmatched(now, &tuple, &arrived, Some(floor), link);
            }
            _ => self.synchronized(now, slot, &arrived, link),
        }
        self.rearm(slot);
    }

    /// Ends a connection that nobody knows of any more.
    fn end_silently(&mut self, slot: u32) {
        self.blocks[slot].set(ORPHAN);
        self.end(slot, None);
    }

    /// A segment for no connection.
    fn unmatched(
        &mut self,
        now: u64,
        tuple: &Tuple,
        arrived: &Arrived<'_>,
        floor: Option<Seq>,
        link: &mut impl Link,
    ) {
        let header = &arrived.header;
        if header.has(RST) {
            return;
        }
        let listener = self.listener_for(tuple);
        match (listener, header.has(SYN), header.has(ACK)) {
            (Some(listener), true, false) if !header.has(FIN) => {
                self.incoming(now, listener, tuple, header, floor, link);
            }
            (Some(listener), false, true)
                if now < self.listeners[listener as usize].0.cookies_until =>
            {
                self.cookie_back(now, listener, tuple, arrived, link);
            }
            _ => self.reset(tuple, arrived, link),
        }
    }

    fn listener_for(&self, tuple: &Tuple) -> Option<u32> {
        let hash = self.secrets.place_of_port(tuple.local_port);
        let any = addr::any_of(tuple.local);
        let mut best = None;
        for slot in self.listener_index.candidates(hash) {
            let listener = &self.listeners[slot as usize].0;
            if listener.port != tuple.local_port {
                continue;
            }
            if listener.local == tuple.local {
                return Some(slot);
            }
            let rank = if listener.local == any {
                2
            } else if listener.local == 0 && listener.v6_only == 0 {
                1
            } else {
                continue;
            };
            if best.is_none_or(|(other, _)| other < rank) {
                best = Some((rank, slot));
            }
        }
        best.map(|(_, slot)| slot)
    }

    /// A segment without payload that belongs to no control block. Lost if the link is full.
    fn answer(&mut self, tuple: &Tuple, header: &Header, link: &mut impl Link) {
        let emitted = header.emit(tuple.local_port, tuple.remote_port);
        self.stats.segments_out += 1;
        link.send(&OutSegment {
            src: tuple.local(),
            dst: tuple.remote(),
            header: emitted.as_bytes(),
            payload: [&[], &[]],
            mss: 0,
            ttl: 0,
        });
    }

    /// RFC 9293, 3.10.7.1: RST for a segment that should not have come.
    fn reset(&mut self, tuple: &Tuple, arrived: &Arrived<'_>, link: &mut impl Link) {
        let header = &arrived.header;
        if header.has(RST) {
            return;
        }
        let answer = if header.has(ACK) {
            Header {
                seq: header.ack,
                flags: RST,
                ..Header::default()
            }
        } else {
            Header {
                ack: arrived.end(),
                flags: RST | ACK,
                ..Header::default()
            }
        };
        self.stats.resets_out += 1;
        self.answer(tuple, &answer, link);
    }

    /// SYN for a listener.
    fn incoming(
        &mut self,
        now: u64,
        listener_slot: u32,
        tuple: &Tuple,
        header: &Header,
        floor: Option<Seq>,
        link: &mut impl Link,
    ) {
        let (listener, options) = &self.listeners[listener_slot as usize];
        if listener.ready >= listener.backlog {
            self.stats.listen_overflows += 1;
            return;
        }
        let (options, generation) = (*options, listener.generation);
        let crowded = listener.half_open >= listener.backlog;
        let Some(path) = link.path(addr::ip(tuple.remote)) else {
            return;
        };
        let slot = if crowded {
            None
        } else {
            self.blocks.take(self.buffers.arena())
        };
        let Some(slot) = slot else {
            return self.send_cookie(now, listener_slot, tuple, header, &path, link);
        };
        let fresh = self.secrets.isn(now, tuple);
        let iss = floor.map_or(fresh, |floor| fresh.max(floor));
        self.prepare(now, slot, tuple, iss, &options, &path);
        let block = &mut self.blocks[slot];
        block.state = State::SYN_RECEIVED;
        block.set(PASSIVE | SYN_DUE);
        block.listener = listener_slot;
        block.listener_generation = generation;
        self.take_syn(now, slot, header);
        self.listeners[listener_slot as usize].0.half_open += 1;
        self.queue(slot);
        self.rearm(slot);
    }

    /// Fills in a new block. Its timers start with SYN's.
    pub(super) fn prepare(
        &mut self,
        now: u64,
        slot: u32,
        tuple: &Tuple,
        iss: Seq,
        options: &Options,
        path: &Path,
    ) {
        let config = &self.config;
        let offset = self.secrets.clock_offset(tuple);
        let hash = self.secrets.place(tuple);
        let block = &mut self.blocks[slot];
        block.tuple = *tuple;
        block.flags = 0;
        let offers = [
            (config.window_scale, SCALE_ON),
            (config.sack, SACK_ON),
            (config.timestamps, TS_ON),
        ];
        for (_, flag) in offers.into_iter().filter(|(on, _)| *on) {
            block.set(flag);
        }
        block.iss = iss;
        block.snd_una = iss;
        block.snd_nxt = iss + 1;
        block.snd_end = iss + 1;
        block.snd_small = iss;
        block.tx_max = options.tx_max(config);
        block.rx_max = options.rx_max(config);
        block.rcv_scale = scale_for(block.rx_max);
        block.ts_offset = offset;
        block.rto = config.initial_rto;
        block.rto_at = now.saturating_add(config.initial_rto);
        block.heard_at = now;
        block.progress_at = now;
        block.sent_at = now;
        block.path_epoch = self.path_epoch;
        block.use_path(path);
        block.own_mss = path.mtu.saturating_sub(headers_len(tuple)).max(MIN_MSS);
        block.apply(options);
        self.index.insert(hash, slot);
    }

    /// What a SYN of the peer says.
    fn take_syn(&mut self, now: u64, slot: u32, header: &Header) {
        let block = &mut self.blocks[slot];
        block.irs = header.seq;
        block.rcv_nxt = header.seq + 1;
        block.rcv_read = block.rcv_nxt;
        block.last_ack = block.rcv_nxt;
        block.rcv_adv = block.rcv_nxt + block.rx_max.min(0xffff);
        block.peer_mss = header.mss.unwrap_or(536).max(MIN_MSS);
        block.mss = block.mss.min(block.peer_mss);
        block.snd_wnd = header.window.into();
        block.max_snd_wnd = block.snd_wnd;
        block.snd_wl1 = header.seq;
        block.snd_wl2 = block.iss;
        // What we offered and the peer did not is off.
        match header.scale {
            Some(scale) => block.snd_scale = scale,
            None => block.clear(SCALE_ON),
        }
        if !block.has(SCALE_ON) {
            block.snd_scale = 0;
            block.rcv_scale = 0;
        }
        if !header.sack_permitted {
            block.clear(SACK_ON);
        }
        match header.timestamps {
            Some((value, _)) => block.ts_recent = value,
            None => block.clear(TS_ON),
        }
        block.ts_recent_at = now;
    }

    /// Answers SYN without keeping anything of it.
    fn send_cookie(
        &mut self,
        now: u64,
        listener: u32,
        tuple: &Tuple,
        header: &Header,
        path: &Path,
        link: &mut impl Link,
    ) {
        let config = &self.config;
        let (listener, options) = &mut self.listeners[listener as usize];
        listener.cookies_until = now.saturating_add(2 * COOKIE_PERIOD);
        let rx_max = options.rx_max(config);
        let mss = header.mss.unwrap_or(536);
        let clock = ((now / 1_000_000) as u32).wrapping_add(self.secrets.clock_offset(tuple));
        let timestamps = header.timestamps.filter(|_| config.timestamps);
        // Without timestamps there is nowhere to keep these.
        let scale = header
            .scale
            .filter(|_| config.window_scale && timestamps.is_some());
        let sack = header.sack_permitted && config.sack && timestamps.is_some();
        let answer = Header {
            seq: self.secrets.cookie(now, tuple, header.seq, mss),
            ack: header.seq + 1,
            flags: SYN | ACK,
            window: rx_max.min(0xffff) as u16,
            mss: Some(path.mtu.saturating_sub(headers_len(tuple)).max(MIN_MSS)),
            scale: scale.map(|_| scale_for(rx_max)),
            sack_permitted: sack,
            timestamps: timestamps.map(|(value, _)| (mark_clock(clock, scale, sack), value)),
            ..Header::default()
        };
        self.stats.cookies_out += 1;
        self.answer(tuple, &answer, link);
    }

    /// ACK that may be the answer to a cookie.
    fn cookie_back(
        &mut self,
        now: u64,
        listener: u32,
        tuple: &Tuple,
        arrived: &Arrived<'_>,
        link: &mut impl Link,
    ) {
        let header = &arrived.header;
        let (irs, iss) = (header.seq - 1, header.ack - 1);
        let Some(mss) = self.secrets.open_cookie(now, tuple, irs, iss) else {
            return self.reset(tuple, arrived, link);
        };
        let (at, options) = &self.listeners[listener as usize];
        let (options, generation) = (*options, at.generation);
        let full = at.ready >= at.backlog;
        let path = link.path(addr::ip(tuple.remote));
        let (false, Some(path)) = (full, path) else {
            self.stats.listen_overflows += 1;
            return;
        };
        let Some(slot) = self.blocks.take(self.buffers.arena()) else {
            return;
        };
        self.stats.cookies_in += 1;
        self.prepare(now, slot, tuple, iss, &options, &path);
        let (scale, sack_permitted) = header
            .timestamps
            .map_or((None, false), |(_, echo)| read_clock(echo));
        let syn = Header {
            seq: irs,
            window: header.window,
            mss: Some(mss),
            scale,
            sack_permitted,
            timestamps: header.timestamps,
            ..Header::default()
        };
        self.take_syn(now, slot, &syn);
        let block = &mut self.blocks[slot];
        block.state = State::SYN_RECEIVED;
        block.set(PASSIVE);
        block.listener = listener;
        block.listener_generation = generation;
        self.listeners[listener as usize].0.half_open += 1;
        self.synchronized(now, slot, arrived, link);
        self.rearm(slot);
    }

    /// RFC 9293, 3.10.7.3.
    fn syn_sent(&mut self, now: u64, slot: u32, arrived: &Arrived<'_>, link: &mut impl Link) {
        let header = &arrived.header;
        let block = &mut self.blocks[slot];
        let tuple = block.tuple;
        let acks_syn = header.has(ACK) && header.ack == block.snd_nxt;
        if header.has(ACK) && !acks_syn {
            return self.reset(&tuple, arrived, link);
        }
        if header.has(RST) {
            if acks_syn {
                self.stats.resets_in += 1;
                self.end(slot, Some(Error::Refused));
            }
            return;
        }
        if !header.has(SYN) {
            return;
        }
        block.heard_at = now;
        self.take_syn(now, slot, header);
        let block = &mut self.blocks[slot];
        if acks_syn {
            if block.has(TS_ON) {
                // RFC 7323, section 3.2: the handshake's echo must be ours.
                let echo = header.timestamps.map_or(0, |(_, echo)| echo);
                if echo != 0 && (block.clock(now).wrapping_sub(echo) as i32) < 0 {
                    return self.reset(&tuple, arrived, link);
                }
            }
            block.snd_una = header.ack;
            block.snd_wl2 = header.ack;
            block.set(ACK_NOW);
            self.established(now, slot);
        } else {
            // Both sides have called each other (3.5, figure 8).
            block.state = State::SYN_RECEIVED;
            block.set(SYN_DUE);
        }
        self.queue(slot);
    }

    /// The handshake is over.
    fn established(&mut self, now: u64, slot: u32) {
        let config = &self.config;
        let block = &mut self.blocks[slot];
        let rtt = now.saturating_sub(block.sent_at);
        if block.backoff == 0 && rtt > 0 {
            // Nothing was repeated, so this is the SYN's round trip; a cookie's is not known.
            block.measured(rtt, config.min_rto, config.max_rto);
        }
        block.window = super::congestion::Window::new(block.smss());
        if block.backoff > 0 {
            // RFC 6298, 5.7 and RFC 5681, 3.1: SYN was lost.
            block.window.cwnd = block.smss();
            block.rto = block.rto.max(3 * SECOND);
        }
        block.state = if block.has(FIN_QUEUED) {
            State::FIN_WAIT_1
        } else {
            State::ESTABLISHED
        };
        block.backoff = 0;
        block.rto_at = OFF;
        block.clear(SYN_DUE);
        block.progress_at = now;
        if block.has(KEEPALIVE) {
            block.keep_at = now.saturating_add(block.keep_idle);
        }
        let (passive, listener) = (block.has(PASSIVE), block.listener);
        if !passive {
            return self.tell(slot);
        }
        self.stats.passive_opens += 1;
        let (at, _) = &mut self.listeners[listener as usize];
        at.half_open = at.half_open.saturating_sub(1);
        at.ready += 1;
        let id = ListenerId {
            slot: listener,
            generation: at.generation,
        };
        let tail = core::mem::replace(&mut at.tail, slot);
        if tail == NONE {
            at.head = slot;
        } else {
            self.blocks[tail].next = slot;
        }
        if at.told == 0 {
            at.told = 1;
            self.events.push_back(Id::Listener(id));
        }
    }

    /// RFC 9293, 3.10.7.4: all states but LISTEN and SYN-SENT.
    fn synchronized(&mut self, now: u64, slot: u32, arrived: &Arrived<'_>, link: &mut impl Link) {
        let mut arrived = *arrived;
        let block = &mut self.blocks[slot];
        let tuple = block.tuple;
        if block.state == State::SYN_RECEIVED
            && arrived.header.has(SYN)
            && !arrived.header.has(RST)
            && arrived.header.seq == block.irs
        {
            if !arrived.header.has(ACK) {
                // Our answer was lost.
                block.set(SYN_DUE);
                return self.queue(slot);
            }
            // The other half of a simultaneous open.
            arrived.header.flags &= !SYN;
            arrived.header.seq += 1;
        }
        let header = &arrived.header;

        if block.has(TS_ON) && !header.has(RST) {
            // RFC 7323, sections 3.2 and 5.3.
            let Some((value, _)) = header.timestamps else {
                return;
            };
            let old = (value.wrapping_sub(block.ts_recent) as i32) < 0;
            if old && now.saturating_sub(block.ts_recent_at) < TS_OLD {
                self.stats.paws += 1;
                return self.duplicate(now, slot, &arrived);
            }
        }

        // Acceptable, or at the left edge with nothing new: ACK and RST still count then.
        let edge = block.rcv_adv.max(block.rcv_nxt);
        if arrived.end().lt(block.rcv_nxt) || header.seq.gt(edge) {
            if !header.has(RST) {
                self.duplicate(now, slot, &arrived);
            }
            return;
        }

        if header.has(RST) {
            // RFC 5961, section 3; RFC 1337 for TIME-WAIT.
            if block.state == State::TIME_WAIT {
                return;
            }
            if header.seq != block.rcv_nxt {
                return self.challenge(now, slot);
            }
            self.stats.resets_in += 1;
            let error = match block.state {
                State::SYN_RECEIVED => Some(Error::Refused),
                State::CLOSING | State::LAST_ACK => None,
                _ => Some(Error::Reset),
            };
            return self.end(slot, error);
        }
        if header.has(SYN) {
            // RFC 5961, section 4.
            return self.challenge(now, slot);
        }
        if !header.has(ACK) {
            return;
        }

        if let Some((value, _)) = header.timestamps.filter(|_| block.has(TS_ON))
            && header.seq.le(block.last_ack)
        {
            block.ts_recent = value;
            block.ts_recent_at = now;
        }

        if block.state == State::SYN_RECEIVED {
            if header.ack != block.snd_nxt {
                return self.reset(&tuple, &arrived, link);
            }
            if block.has(PASSIVE) {
                let listener = self.listeners.get(block.listener as usize);
                let listener = listener.map(|(listener, _)| listener).filter(|listener| {
                    listener.open != 0 && listener.generation == block.listener_generation
                });
                let Some(listener) = listener else {
                    return self.break_off(slot, None);
                };
                if listener.ready >= listener.backlog {
                    // The peer will send again, and so shall we.
                    self.stats.listen_overflows += 1;
                    return;
                }
            }
            block.snd_una = header.ack;
            block.snd_wl1 = header.seq - 1;
            self.established(now, slot);
        } else {
            // RFC 5961, section 5.
            let oldest = block.snd_una - block.max_snd_wnd.max(1);
            if header.ack.gt(block.snd_nxt) || header.ack.lt(oldest) {
                return self.challenge(now, slot);
            }
        }

        let block = &mut self.blocks[slot];
        block.heard_at = now;
        block.probes = 0;
        self.acknowledge(now, slot, &arrived);
        if self.blocks[slot].state == State::CLOSED {
            return;
        }
        self.take_text(now, slot, &arrived);
    }

    /// Answers a segment that is not acceptable: such with nothing in it only so often, lest two
    /// ends answer each other for ever.
    fn duplicate(&mut self, now: u64, slot: u32, arrived: &Arrived<'_>) {
        if arrived.len == 0 && !arrived.header.has(FIN | SYN) {
            return self.challenge(now, slot);
        }
        self.blocks[slot].set(ACK_NOW);
        self.queue(slot);
    }

    /// A challenge ACK, if this second has one left (RFC 5961, section 7).
    fn challenge(&mut self, now: u64, slot: u32) {
        let block = &mut self.blocks[slot];
        if now.saturating_sub(block.challenge_at) >= SECOND || block.challenges == 0 {
            block.challenge_at = now;
            block.challenges = 0;
        }
        if block.challenges < self.config.challenge_acks {
            block.challenges += 1;
            block.set(ACK_NOW);
            self.stats.challenge_acks += 1;
            self.queue(slot);
        }
    }

    /// Fifth check: the ACK field.
    fn acknowledge(&mut self, now: u64, slot: u32, arrived: &Arrived<'_>) {
        let header = &arrived.header;
        let block = &mut self.blocks[slot];
        let was_roomy = block.roomy();
        let before = block.sacked.total();
        let acked = header.ack.beyond(block.snd_una);

        if block.has(SACK_ON) {
            for &(start, end) in header.sack_blocks() {
                // Blocks below the ACK tell of duplicates (RFC 2883).
                if start.lt(end) && start.gt(header.ack.max(block.snd_una)) && end.le(block.snd_nxt)
                {
                    block.sacked.insert(start, end);
                }
            }
        }
        let newly_sacked = block.sacked.total() > before;

        let window = u32::from(header.window) << block.snd_scale;
        let window_same = window == block.snd_wnd;
        let newer = block.snd_wl1.lt(header.seq)
            || (block.snd_wl1 == header.seq && block.snd_wl2.le(header.ack));
        if newer {
            block.snd_wnd = window;
            block.max_snd_wnd = block.max_snd_wnd.max(window);
            block.snd_wl1 = header.seq;
            block.snd_wl2 = header.ack;
        }
        if block.snd_wnd == 0 && !block.has(ORPHAN) {
            // The peer lives and has no room: that is no reason to give up.
            block.progress_at = now;
        }

        if acked > 0 {
            self.advance(now, slot, acked, header);
        } else {
            let duplicate = block.flight() > 0
                && if block.has(SACK_ON) {
                    newly_sacked
                } else {
                    arrived.len == 0
                        && window_same
                        && !header.has(FIN)
                        && header.ack == block.snd_una
                };
            if duplicate {
                block.dup_acks = block.dup_acks.saturating_add(1);
            }
        }
        self.detect_loss(slot, now);

        let block = &self.blocks[slot];
        if !was_roomy && block.roomy() {
            self.tell(slot);
        }
        let block = &self.blocks[slot];
        if block.snd_end.beyond(block.snd_nxt) > 0
            || block.recovery != Recovery::OPEN
            || block.has(PERSIST | FIN_QUEUED)
        {
            self.queue(slot);
        }
        let block = &mut self.blocks[slot];
        if block.fin_acked() {
            match block.state {
                State::FIN_WAIT_1 => {
                    block.state = State::FIN_WAIT_2;
                    if block.has(ORPHAN) {
                        block.life_at = now.saturating_add(self.config.fin_wait);
                    }
                    self.tell(slot);
                }
                State::CLOSING => self.enter_time_wait(now, slot),
                State::LAST_ACK => self.end(slot, None),
                _ => {}
            }
        }
    }

    /// `acked` more have been acknowledged.
    fn advance(&mut self, now: u64, slot: u32, acked: u32, header: &Header) {
        let config = &self.config;
        let block = &mut self.blocks[slot];
        block.snd_una = header.ack;
        block.sacked.trim_before(header.ack);
        block.high_rxt = block.high_rxt.max(header.ack);
        block.lost_edge = block.lost_edge.max(header.ack);
        // Taken along: numbers more than 2^31 old would look new again.
        block.snd_small = block.snd_small.max(header.ack);
        block.progress_at = now;
        block.backoff = 0;

        if block.has(RTT_TIMED) && header.ack.ge(block.rtt_seq) {
            block.clear(RTT_TIMED);
            block.measured(
                now.saturating_sub(block.rtt_at),
                config.min_rto,
                config.max_rto,
            );
        } else if !block.has(RTT_TIMED)
            && let Some((_, echo)) = header.timestamps
            && block.has(TS_ON)
        {
            // Segments sent again can be timed by what the peer echoes (RFC 7323, section 4).
            let ms = block.clock(now).wrapping_sub(echo);
            if ms < 120_000 {
                block.measured(u64::from(ms) * 1_000_000, config.min_rto, config.max_rto);
            }
        }

        if !block.has(PERSIST) {
            block.rto_at = if block.flight() > 0 {
                now.saturating_add(block.rto)
            } else {
                OFF
            };
        }

        let mss = block.smss();
        let (algorithm, rtt) = (config.congestion, block.srtt);
        if block.recovery != Recovery::OPEN && header.ack.ge(block.recover) {
            if block.recovery == Recovery::FAST {
                // RFC 6582, section 3.2, step 3, option 1: no burst.
                let flight = block.flight().max(mss) + mss;
                block.window.cwnd = block.window.ssthresh.min(flight);
            }
            block.recovery = Recovery::OPEN;
            block.dup_acks = 0;
        }
        match block.recovery {
            Recovery::FAST => {
                // What is now at the left edge is lost as well.
                block.lost_edge = block.lost_edge.max(header.ack + mss.min(block.flight()));
                let segments = (acked / mss).saturating_sub(1);
                block.dup_acks = block.dup_acks.saturating_sub(segments);
            }
            Recovery::LOSS => block.window.grow(algorithm, now, acked, mss, rtt),
            _ => {
                block.dup_acks = 0;
                if block.has(CWND_LIMITED) {
                    block.window.grow(algorithm, now, acked, mss, rtt);
                }
            }
        }

        if block.tx != NONE && block.unacked() == 0 {
            block.tx_class = super::buffers::class_for(self.buffers.size(block.tx));
            self.buffers.give(core::mem::replace(&mut block.tx, NONE));
        }
    }

    /// RFC 6675, section 5 and RFC 5681, section 3.2.
    fn detect_loss(&mut self, slot: u32, now: u64) {
        let algorithm = self.config.congestion;
        let block = &mut self.blocks[slot];
        let flight = block.flight();
        let edge = if block.sacked.is_empty() {
            block.snd_una
        } else {
            block.sack_lost_edge()
        };
        let mss = block.smss();
        if block.recovery == Recovery::OPEN {
            if flight == 0 || (block.dup_acks < DUP_THRESH && edge.le(block.snd_una)) {
                return;
            }
            block.window.lost(algorithm, flight, mss);
            block.window.cwnd = block.window.ssthresh;
            block.recovery = Recovery::FAST;
            block.recover = block.snd_nxt;
            block.high_rxt = block.snd_una;
            block.lost_edge = edge.max(block.snd_una + mss.min(flight));
            block.rxt_mark = block.snd_nxt;
            block.clear(RTT_TIMED);
            self.stats.recoveries += 1;
            return self.queue(slot);
        }
        block.lost_edge = block.lost_edge.max(edge);
        // What was sent well after the last repetition has arrived, but the repetition has not.
        let arrived = block.sacked.end().unwrap_or(block.snd_una);
        let mark = block.rxt_mark + DUP_THRESH * mss;
        if block.high_rxt.gt(block.snd_una) && arrived.gt(mark) && arrived.gt(block.recover) {
            block.high_rxt = block.snd_una;
            block.rxt_mark = block.snd_nxt;
            block.recover = block.snd_nxt;
            block.window.lost(algorithm, block.pipe(), mss);
            block.window.cwnd = block.window.cwnd.min(block.window.ssthresh);
            let timeout = block.backed_off(self.config.max_rto);
            block.rto_at = now.saturating_add(timeout);
            self.queue(slot);
        }
    }

    /// Seventh and eighth check: text and FIN.
    fn take_text(&mut self, now: u64, slot: u32, arrived: &Arrived<'_>) {
        let header = &arrived.header;
        let block = &mut self.blocks[slot];
        if arrived.len == 0 && !header.has(FIN) {
            return;
        }
        let data_end = header.seq + arrived.len;
        if !block.state.receives() {
            // Either it comes again, or it is beyond the peer's FIN.
            block.set(ACK_NOW);
            if block.state == State::TIME_WAIT {
                block.life_at = now.saturating_add(self.config.time_wait);
            }
            return self.queue(slot);
        }
        if block.has(ORPHAN) && arrived.len > 0 && data_end.gt(block.rcv_nxt) {
            // RFC 9293, 3.6: nobody is left to read this.
            return self.break_off(slot, None);
        }

        let start = header.seq.max(block.rcv_nxt);
        let edge = block.rcv_adv.max(block.rcv_nxt);
        let mut end = data_end.min(edge);
        if header.has(FIN) && end == data_end && !block.has(FIN_KNOWN) && data_end.ge(start) {
            let beyond = block.ooo.end().is_some_and(|last| last.gt(data_end));
            if !beyond {
                block.fin_seq = data_end;
                block.set(FIN_KNOWN);
            }
        }
        if block.has(FIN_KNOWN) {
            end = end.min(block.fin_seq);
        }
        block.rcv_mss = block.rcv_mss.max(arrived.len.min(block.own_mss.into()));

        let old = block.rcv_nxt;
        if start.lt(end) {
            if !self.store(slot, start, end, arrived) {
                self.stats.no_memory += 1;
                self.blocks[slot].set(ACK_NOW);
                return self.queue(slot);
            }
        } else if arrived.len > 0 {
            // Nothing new: a repetition, or beyond the window.
            block.set(ACK_NOW);
        }
        let block = &mut self.blocks[slot];
        if start.gt(old) {
            block.set(ACK_NOW);
            block.dup_owed = block.dup_owed.saturating_add(1);
            block.ooo_last = start;
            self.stats.out_of_order += 1;
        }

        let block = &mut self.blocks[slot];
        if block.has(FIN_KNOWN) && block.rcv_nxt == block.fin_seq && !block.has(FIN_SEEN) {
            block.rcv_nxt += 1;
            block.set(FIN_SEEN | ACK_NOW);
            match block.state {
                State::ESTABLISHED => block.state = State::CLOSE_WAIT,
                State::FIN_WAIT_1 => block.state = State::CLOSING,
                _ => self.enter_time_wait(now, slot),
            }
        }
        let block = &mut self.blocks[slot];
        let moved = block.rcv_nxt - old;
        if moved > 0 {
            self.stats.bytes_in += u64::from(moved);
            self.settle_if_shut(slot);
            self.tell(slot);
        }
        let delay = self.config.delayed_ack;
        let block = &mut self.blocks[slot];
        if block.rcv_nxt - block.last_ack >= 2 * block.rcv_mss || block.has(ACK_NOW) {
            block.set(ACK_NOW);
            self.queue(slot);
        } else if moved > 0 && block.ack_at == OFF {
            block.ack_at = now.saturating_add(delay);
        }
    }

    fn settle_if_shut(&mut self, slot: u32) {
        if self.blocks[slot].has(READ_SHUT) {
            self.settle_rx(slot);
        }
    }

    /// Puts the bytes `start..end` of a segment into the receive ring. `false`: no memory, or too
    /// many gaps.
    fn store(&mut self, slot: u32, start: Seq, end: Seq, arrived: &Arrived<'_>) -> bool {
        let block = &mut self.blocks[slot];
        let stored_to = block.ooo.end().unwrap_or(block.rcv_nxt).max(block.rcv_nxt);
        let need = end.max(stored_to) - block.rcv_read;
        let (hint, from) = (block.rx_class, block.rcv_read);
        if !self
            .buffers
            .ensure(&mut block.rx, hint, from, stored_to, need)
        {
            return false;
        }
        if start == block.rcv_nxt {
            block.rcv_nxt = end;
            if !block.ooo.is_empty() {
                if let Some(next) = block.ooo.holding(end) {
                    block.rcv_nxt = next.end;
                }
                block.ooo.trim_before(block.rcv_nxt);
                // It filled a gap, or there are more.
                block.set(ACK_NOW);
            }
        } else if !block.ooo.insert(start, end) {
            return false;
        }
        let mut at = arrived.header.seq;
        for piece in arrived.payload {
            let piece_end = at + piece.len() as u32;
            let (from, to) = (at.max(start), piece_end.min(end));
            if from.lt(to) {
                let bytes = piece.get((from - at) as usize..(to - at) as usize);
                self.buffers
                    .write(block.rx, from, bytes.unwrap_or_default());
            }
            at = piece_end;
        }
        true
    }

    /// An ICMP error came for a segment that we sent from `local` to `remote` with this sequence
    /// number. It is believed only if that is on its way (RFC 5927, section 4).
    pub fn icmp(
        &mut self,
        local: core::net::SocketAddr,
        remote: core::net::SocketAddr,
        seq: u32,
        error: IcmpError,
    ) {
        let tuple = Tuple::new(local, remote);
        let Some(slot) = self.find(&tuple) else {
            return;
        };
        let block = &mut self.blocks[slot];
        let seq = Seq(seq);
        if seq.lt(block.snd_una) || seq.ge(block.snd_nxt) || block.state == State::TIME_WAIT {
            return;
        }
        match error {
            IcmpError::Hard(error) if block.state == State::SYN_SENT => {
                self.end(slot, Some(error));
            }
            // An established connection is not ended by what anyone may send.
            IcmpError::Hard(error) | IcmpError::Soft(error) => block.soft_error = error as u8,
            IcmpError::TooBig { mtu } => {
                let least = if addr::is_v4(tuple.remote) {
                    MIN_MTU_V4
                } else {
                    MIN_MTU_V6
                };
                let mtu = mtu.max(least);
                let mss = mtu.saturating_sub(headers_len(&tuple));
                if mss >= block.mss {
                    return;
                }
                block.path_mtu = mtu;
                block.mss = mss;
                if block.state.sends() {
                    // All of it must go again in smaller pieces; that is no congestion.
                    if block.recovery == Recovery::OPEN {
                        block.window.ssthresh = block.window.cwnd;
                    }
                    block.recovery = Recovery::FAST;
                    block.recover = block.snd_nxt;
                    block.high_rxt = block.snd_una;
                    block.lost_edge = block.snd_nxt;
                    block.rxt_mark = block.snd_nxt;
                    block.clear(RTT_TIMED);
                    self.queue(slot);
                }
            }
        }
    }
}

/// A segment with its header read.
#[derive(Clone, Copy)]
struct Arrived<'a> {
    header: Header,
    payload: &'a [&'a [u8]],
    len: u32,
}

impl Arrived<'_> {
    /// The sequence number after it. SYN and FIN count.
    fn end(&self) -> Seq {
        let header = &self.header;
        self.header.seq + self.len + u32::from(header.has(SYN)) + u32::from(header.has(FIN))
    }
}

/// Whether a SYN may open its connection anew while the old one is in TIME-WAIT.
fn may_reuse(block: &Block, header: &Header) -> bool {
    let newer = match header.timestamps.filter(|_| block.has(TS_ON)) {
        Some((value, _)) => value.wrapping_sub(block.ts_recent) as i32 > 0,
        None => false,
    };
    header.has(SYN) && !header.has(ACK | RST | FIN) && (newer || header.seq.gt(block.rcv_nxt))
}

/// The shift with which a window of `size` can be told.
fn scale_for(size: u32) -> u8 {
    (0..14).find(|&scale| size >> scale <= 0xffff).unwrap_or(14)
}

impl Block {
    /// Segment sizes for a path.
    pub fn use_path(&mut self, path: &Path) {
        let mtu = path.mtu.min(self.path_mtu);
        let room = mtu.saturating_sub(headers_len(&self.tuple)).max(MIN_MSS);
        // Before the peer's SYN its option is not known.
        let told = !matches!(self.state, State::CLOSED | State::SYN_SENT);
        self.mss = if told { room.min(self.peer_mss) } else { room };
        self.gso_max = path.gso_max;
    }

    /// An app's wishes.
    pub fn apply(&mut self, options: &Options) {
        self.clear(NODELAY | KEEPALIVE);
        if options.nodelay {
            self.set(NODELAY);
        }
        if let Some(keep) = options.keepalive {
            self.set(KEEPALIVE);
            self.keep_idle = keep.idle.max(MS);
            self.keep_interval = keep.interval.max(MS);
            self.keep_count = keep.count.min(u8::MAX.into());
        }
        self.user_timeout = options.user_timeout.unwrap_or(0);
        self.ttl = options.ttl.unwrap_or(0);
    }
}
