//! The control block: all that a connection is, but for its bytes. Numbers only, so that another
//! image can take it over where it lies; whoever reads blocks of another build compares
//! [`BLOCK_VERSION`] and the size first. Variable names are RFC 9293's (section 3.3.1).

use super::addr::Tuple;
use super::buffers::NONE;
use super::congestion::Window;
use super::ranges::{Range, Ranges};
use super::seq::Seq;
use super::wire::TIMESTAMPS_LEN;

/// Changes with the layout or the meaning of [`Block`].
pub const BLOCK_VERSION: u32 = 2;

/// A timer that is not set.
pub const OFF: u64 = u64::MAX;

/// A connection's state (RFC 9293, section 3.3.2). Listeners are no connections here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct State(pub u8);

#[expect(missing_docs, reason = "the names are the RFC's")]
impl State {
    pub const CLOSED: Self = Self(0);
    pub const SYN_SENT: Self = Self(1);
    pub const SYN_RECEIVED: Self = Self(2);
    pub const ESTABLISHED: Self = Self(3);
    pub const FIN_WAIT_1: Self = Self(4);
    pub const FIN_WAIT_2: Self = Self(5);
    pub const CLOSE_WAIT: Self = Self(6);
    pub const CLOSING: Self = Self(7);
    pub const LAST_ACK: Self = Self(8);
    pub const TIME_WAIT: Self = Self(9);
}

impl State {
    /// Whether the peer may still send data.
    pub const fn receives(self) -> bool {
        matches!(
            self,
            Self::ESTABLISHED | Self::FIN_WAIT_1 | Self::FIN_WAIT_2
        )
    }

    /// Whether data or FIN of ours may be sent or be on its way.
    pub const fn sends(self) -> bool {
        matches!(
            self,
            Self::ESTABLISHED
                | Self::FIN_WAIT_1
                | Self::CLOSE_WAIT
                | Self::CLOSING
                | Self::LAST_ACK
        )
    }
}

/// Whether losses are being mended (RFC 6675, section 5; RFC 6582).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Recovery(pub u8);

impl Recovery {
    /// No loss is known.
    pub const OPEN: Self = Self(0);
    /// Fast recovery: some is lost, acknowledgements still come.
    pub const FAST: Self = Self(1);
    /// The retransmission timer has run out: all that was on its way counts as lost.
    pub const LOSS: Self = Self(2);
}

/// The app is done with the connection: its id is no longer good.
pub const ORPHAN: u32 = 1 << 0;
/// It is in the queue of those with something to send.
pub const QUEUED: u32 = 1 << 1;
/// It is in the list of events.
pub const TOLD: u32 = 1 << 2;
/// An acknowledgement must go out.
pub const ACK_NOW: u32 = 1 << 3;
/// SYN, or SYN with ACK, must go out.
pub const SYN_DUE: u32 = 1 << 4;
/// RST must go out.
pub const RST_DUE: u32 = 1 << 5;
/// A probe (keep-alive, zero window) must go out.
pub const PROBE_DUE: u32 = 1 << 6;
/// The app writes no more.
pub const FIN_QUEUED: u32 = 1 << 7;
/// FIN has been sent.
pub const FIN_SENT: u32 = 1 << 8;
/// `fin_seq` is the place of the peer's FIN.
pub const FIN_KNOWN: u32 = 1 << 9;
/// `rcv_nxt` is past the peer's FIN.
pub const FIN_SEEN: u32 = 1 << 10;
/// The app reads no more: what comes is taken and forgotten.
pub const READ_SHUT: u32 = 1 << 11;
/// Nagle's algorithm is off.
pub const NODELAY: u32 = 1 << 12;
/// Timestamps were agreed upon.
pub const TS_ON: u32 = 1 << 13;
/// SACK was agreed upon.
pub const SACK_ON: u32 = 1 << 14;
/// Window scale was agreed upon.
pub const SCALE_ON: u32 = 1 << 15;
/// `rto_at` is the persist timer.
pub const PERSIST: u32 = 1 << 16;
/// The persist timer has run out: a small window is used as it is.
pub const FORCE: u32 = 1 << 17;
/// `rtt_seq` is being timed.
pub const RTT_TIMED: u32 = 1 << 18;
/// It was the congestion window that held back the last output.
pub const CWND_LIMITED: u32 = 1 << 19;
/// It came through a listener.
pub const PASSIVE: u32 = 1 << 20;
/// Keep-alive is on.
pub const KEEPALIVE: u32 = 1 << 21;

const FLAGS: u32 = (1 << 22) - 1;

/// Three duplicate acknowledgements, or so many ranges, mean a loss (RFC 5681, RFC 6675).
pub const DUP_THRESH: u32 = 3;

/// Timers are in ns of the clock that the engine is told, or [`OFF`]; lengths in bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Block {
    /// The connection's ends.
    pub tuple: Tuple,
    /// Goes up each time the block is freed.
    pub generation: u32,
    /// Bits from above.
    pub flags: u32,
    /// State.
    pub state: State,
    /// State of loss recovery.
    pub recovery: Recovery,
    /// Why it ended: an `Error` as a number, 0 for none.
    pub error: u8,
    /// The last soft error, told if it ends by a time-out.
    pub soft_error: u8,
    /// Our shift of the peer's windows.
    pub snd_scale: u8,
    /// The peer's shift of ours.
    pub rcv_scale: u8,
    /// Time-outs in a row.
    pub backoff: u8,
    /// Keep-alive probes without an answer.
    pub probes: u8,
    /// Duplicate ACKs owed to a peer without SACK.
    pub dup_owed: u8,
    /// Class of the send ring when there was one.
    pub tx_class: u8,
    /// Class of the receive ring when there was one.
    pub rx_class: u8,
    /// Time to live, hop limit; 0: the stack's default.
    pub ttl: u8,

    /// Initial send sequence number.
    pub iss: Seq,
    /// The first byte not acknowledged.
    pub snd_una: Seq,
    /// The next to be sent for the first time.
    pub snd_nxt: Seq,
    /// After the last byte the app has written.
    pub snd_end: Seq,
    /// The peer's window from `snd_una` on.
    pub snd_wnd: u32,
    /// The largest it ever was.
    pub max_snd_wnd: u32,
    /// Sequence number of the segment that told the window.
    pub snd_wl1: Seq,
    /// Acknowledgement number of it.
    pub snd_wl2: Seq,
    /// After the last segment sent that was not full (Minshall's variant of Nagle).
    pub snd_small: Seq,
    /// The send ring.
    pub tx: u32,
    /// Sizes the rings may grow to.
    pub tx_max: u32,
    /// For receiving.
    pub rx_max: u32,

    /// Initial receive sequence number.
    pub irs: Seq,
    /// The next one expected.
    pub rcv_nxt: Seq,
    /// The next one the app reads.
    pub rcv_read: Seq,
    /// Right edge of the window told.
    pub rcv_adv: Seq,
    /// The last ACK sent.
    pub last_ack: Seq,
    /// The peer's FIN, see [`FIN_KNOWN`].
    pub fin_seq: Seq,
    /// In the range that came last out of order.
    pub ooo_last: Seq,
    /// The receive ring.
    pub rx: u32,
    /// The longest segment seen.
    pub rcv_mss: u32,

    /// The largest segment to send: payload and options.
    pub mss: u16,
    /// The peer's option.
    pub peer_mss: u16,
    /// What a router said the path carries.
    pub path_mtu: u16,
    /// Segment size we offer.
    pub own_mss: u16,
    /// The most payload in one piece; 0: a segment's.
    pub gso_max: u32,
    /// Which of the engine's path epochs the above is of.
    pub path_epoch: u32,

    /// TS.Recent.
    pub ts_recent: u32,
    /// Added to the clock.
    pub ts_offset: u32,
    /// When TS.Recent was taken.
    pub ts_recent_at: u64,

    /// Congestion window.
    pub window: Window,
    /// Recovery ends here.
    pub recover: Seq,
    /// Up to here losses have been sent again.
    pub high_rxt: Seq,
    /// Up to here all that is not in `sacked` counts as lost.
    pub lost_edge: Seq,
    /// `snd_nxt` at the last retransmission.
    pub rxt_mark: Seq,
    /// Duplicate acknowledgements.
    pub dup_acks: u32,
    /// What is being timed, see [`RTT_TIMED`].
    pub rtt_seq: Seq,
    /// Since when.
    pub rtt_at: u64,
    /// Smoothed round-trip time; 0: none measured.
    pub srtt: u64,
    /// Its variation.
    pub rttvar: u64,
    /// Retransmission time-out without back-off.
    pub rto: u64,

    /// Retransmission or persist timer.
    pub rto_at: u64,
    /// Delayed ACK.
    pub ack_at: u64,
    /// Keep-alive.
    pub keep_at: u64,
    /// End of TIME-WAIT, or of an orphan's FIN-WAIT-2.
    pub life_at: u64,
    /// When the peer was last heard.
    pub heard_at: u64,
    /// When data was last sent.
    pub sent_at: u64,
    /// When something was last acknowledged.
    pub progress_at: u64,
    /// Start of the second in which `challenges` counts.
    pub challenge_at: u64,
    /// Keep-alive: idle time before the first probe.
    pub keep_idle: u64,
    /// Between probes.
    pub keep_interval: u64,
    /// User time-out; 0: the engine's.
    pub user_timeout: u64,
    /// How many probes.
    pub keep_count: u32,
    /// Challenge ACKs in this second.
    pub challenges: u32,

    /// The listener it came through.
    pub listener: u32,
    /// And that one's generation.
    pub listener_generation: u32,
    /// The next in the listener's queue, or among free blocks.
    pub next: u32,

    /// What lies in the receive ring beyond a gap.
    pub ooo: Ranges,
    /// What the peer has beyond a gap.
    pub sacked: Ranges,
}

// The largest alignment is the addresses', and there is no pointer: a block may lie anywhere.
const _: () = assert!(size_of::<Block>() <= 1024 && align_of::<Block>() == align_of::<u128>());

impl Block {
    /// One that stands for no connection.
    pub const fn vacant() -> Self {
        const ZERO: Seq = Seq(0);
        Self {
            tuple: Tuple {
                local: 0,
                remote: 0,
                local_port: 0,
                remote_port: 0,
            },
            generation: 0,
            flags: ORPHAN,
            state: State::CLOSED,
            recovery: Recovery::OPEN,
            error: 0,
            soft_error: 0,
            snd_scale: 0,
            rcv_scale: 0,
            backoff: 0,
            probes: 0,
            dup_owed: 0,
            tx_class: 0,
            rx_class: 0,
            ttl: 0,
            iss: ZERO,
            snd_una: ZERO,
            snd_nxt: ZERO,
            snd_end: ZERO,
            snd_wnd: 0,
            max_snd_wnd: 0,
            snd_wl1: ZERO,
            snd_wl2: ZERO,
            snd_small: ZERO,
            tx: NONE,
            tx_max: 0,
            rx_max: 0,
            irs: ZERO,
            rcv_nxt: ZERO,
            rcv_read: ZERO,
            rcv_adv: ZERO,
            last_ack: ZERO,
            fin_seq: ZERO,
            ooo_last: ZERO,
            rx: NONE,
            rcv_mss: 536,
            mss: 536,
            peer_mss: 536,
            path_mtu: u16::MAX,
            own_mss: 536,
            gso_max: 0,
            path_epoch: 0,
            ts_recent: 0,
            ts_offset: 0,
            ts_recent_at: 0,
            window: Window::NONE,
            recover: ZERO,
            high_rxt: ZERO,
            lost_edge: ZERO,
            rxt_mark: ZERO,
            dup_acks: 0,
            rtt_seq: ZERO,
            rtt_at: 0,
            srtt: 0,
            rttvar: 0,
            rto: 0,
            rto_at: OFF,
            ack_at: OFF,
            keep_at: OFF,
            life_at: OFF,
            heard_at: 0,
            sent_at: 0,
            progress_at: 0,
            challenge_at: 0,
            keep_idle: 0,
            keep_interval: 0,
            user_timeout: 0,
            keep_count: 0,
            challenges: 0,
            listener: NONE,
            listener_generation: 0,
            next: NONE,
            ooo: Ranges::new(),
            sacked: Ranges::new(),
        }
    }

    /// Whether it is free.
    pub const fn is_vacant(&self) -> bool {
        self.state.0 == State::CLOSED.0 && self.has(ORPHAN) && !self.has(RST_DUE)
    }

    /// What is wrong with a block that another image has written, beside its rings' places; `size`
    /// tells a ring's. What this lets pass can send nonsense, but not make the engine panic or
    /// loop: so whatever arithmetic elsewhere takes for granted is asked for here.
    pub fn check(&self, size: impl Fn(u32) -> u32) -> Result<(), &'static str> {
        const FAR: u32 = 1 << 30;
        let ensure = |good: bool, what| if good { Ok(()) } else { Err(what) };
        ensure(self.state.0 <= State::TIME_WAIT.0, "state")?;
        ensure(self.recovery.0 <= Recovery::LOSS.0, "recovery")?;
        ensure(self.flags & !FLAGS == 0, "flags")?;
        if self.is_vacant() {
            return ensure(self.rx == NONE && self.tx == NONE, "rings of none");
        }
        let (closed, opening) = match self.state {
            State::CLOSED => (true, false),
            State::SYN_SENT | State::SYN_RECEIVED => (false, true),
            _ => (false, false),
        };
        let held = self.readable_end() - self.rcv_read;
        ensure(held <= size(self.rx), "bytes received")?;
        if closed {
            return ensure(self.tx == NONE && self.deadline() == OFF, "ended");
        }
        let tuple = &self.tuple;
        ensure(
            super::addr::is_v4(tuple.local) == super::addr::is_v4(tuple.remote)
                && super::addr::is_unicast(super::addr::ip(tuple.remote))
                && tuple.local_port != 0
                && tuple.remote_port != 0,
            "addresses",
        )?;
        ensure(self.snd_scale <= 14 && self.rcv_scale <= 14, "scale")?;
        let sizes = [self.mss, self.peer_mss, self.own_mss];
        ensure(sizes.into_iter().all(|mss| mss >= 88), "segment size")?;
        ensure(
            self.gso_max <= 1 << 18 && self.rcv_mss <= 1 << 18,
            "segment size",
        )?;
        let limits = [self.tx_max, self.rx_max];
        let sane = limits.into_iter().all(|max| max > 0 && max <= 16 << 20);
        ensure(sane, "ring limits")?;
        ensure(self.snd_wnd <= FAR && self.max_snd_wnd <= FAR, "window")?;
        ensure(opening || self.window.is_sane(), "congestion window")?;
        let times = [self.srtt, self.rttvar];
        ensure(
            times.into_iter().all(|time| time < 1 << 60),
            "round-trip time",
        )?;
        // Backed off it must neither be 0 nor overflow.
        ensure((1_000_000..1 << 42).contains(&self.rto), "time-out")?;
        ensure(
            self.keep_at == OFF || self.keep_interval >= 1_000_000,
            "keep-alive",
        )?;

        let flight = self.snd_nxt - self.snd_una;
        let queued = (self.snd_end + 1) - self.snd_una;
        ensure(flight <= FAR && queued <= FAR, "sequence numbers to send")?;
        let fin = u32::from(self.has(FIN_SENT));
        ensure(self.snd_nxt.le(self.snd_end + fin), "sequence numbers sent")?;
        let first = self.snd_una == self.iss && self.snd_nxt == self.iss + 1;
        ensure(!opening || first, "SYN's sequence number")?;
        ensure(self.unacked() <= size(self.tx), "bytes to send")?;
        ensure(
            self.state != State::TIME_WAIT || (self.tx == NONE && self.life_at != OFF),
            "TIME-WAIT",
        )?;
        ensure(self.sacked.is_sane(self.snd_una, self.snd_nxt), "SACK")?;
        if self.recovery != Recovery::OPEN {
            let edges = [self.high_rxt, self.lost_edge, self.recover, self.rxt_mark];
            let sane = edges.into_iter().all(|edge| edge.le(self.snd_nxt));
            ensure(
                sane && self.high_rxt - self.snd_una <= flight,
                "recovery's edges",
            )?;
        }
        let waits = self.state.sends() && flight > 0;
        ensure(!waits || self.rto_at != OFF, "retransmission timer")?;

        let stored = self.ooo.end().unwrap_or(self.readable_end());
        ensure(
            stored - self.rcv_read <= size(self.rx),
            "bytes out of order",
        )?;
        ensure(
            self.ooo.is_empty() || self.ooo.is_sane(self.rcv_nxt, stored),
            "ranges out of order",
        )?;
        let told = self.rcv_adv.max(self.rcv_nxt) - self.rcv_nxt;
        ensure(
            told <= FAR && stored.le(self.rcv_adv.max(self.rcv_nxt)),
            "window told",
        )?;
        let unread = self.rcv_nxt - self.last_ack;
        ensure(
            self.state == State::SYN_SENT || unread <= FAR,
            "acknowledged",
        )?;
        let fin = !self.has(FIN_SEEN) || (self.has(FIN_KNOWN) && self.fin_seq + 1 == self.rcv_nxt);
        ensure(fin, "FIN")
    }

    /// Whether any of these flags is set.
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// Sets flags.
    pub fn set(&mut self, flags: u32) {
        self.flags |= flags;
    }

    /// Clears flags.
    pub fn clear(&mut self, flags: u32) {
        self.flags &= !flags;
    }

    /// The earliest of its timers.
    pub fn deadline(&self) -> u64 {
        self.rto_at
            .min(self.ack_at)
            .min(self.keep_at)
            .min(self.life_at)
    }

    /// Sequence numbers sent and not acknowledged.
    pub fn flight(&self) -> u32 {
        self.snd_nxt.beyond(self.snd_una)
    }

    /// The first byte in the send ring. Before SYN is acknowledged it is not `snd_una`.
    pub fn snd_base(&self) -> Seq {
        match self.state {
            State::SYN_SENT | State::SYN_RECEIVED => self.iss + 1,
            _ => self.snd_una.min(self.snd_end),
        }
    }

    /// Bytes the app has written that are not acknowledged.
    pub fn unacked(&self) -> u32 {
        self.snd_end.beyond(self.snd_base())
    }

    /// Bytes the app may write.
    pub fn room(&self) -> u32 {
        self.tx_max.saturating_sub(self.unacked())
    }

    /// Whether it is worth telling the app that it may write.
    pub fn roomy(&self) -> bool {
        self.room() >= self.tx_max / 3
    }

    /// After the last byte the app can read.
    pub fn readable_end(&self) -> Seq {
        if self.has(FIN_SEEN) {
            self.rcv_nxt - 1
        } else {
            self.rcv_nxt
        }
    }

    /// A full segment's payload when no SACK blocks ride with it.
    pub fn smss(&self) -> u32 {
        let options = if self.has(TS_ON) { TIMESTAMPS_LEN } else { 0 };
        u32::from(self.mss).saturating_sub(options).max(1)
    }

    /// Whether the peer has acknowledged our FIN.
    pub fn fin_acked(&self) -> bool {
        self.has(FIN_SENT) && self.snd_una == self.snd_end + 1
    }

    /// Our clock for timestamps: milliseconds (RFC 7323, section 5.4).
    pub fn clock(&self, now: u64) -> u32 {
        ((now / 1_000_000) as u32).wrapping_add(self.ts_offset)
    }

    /// RFC 6675's pipe: what is thought to be in the network.
    pub fn pipe(&self) -> u32 {
        let flight = self.flight();
        if self.recovery == Recovery::OPEN && self.sacked.is_empty() && self.dup_acks == 0 {
            return flight;
        }
        let mut gone = if self.has(SACK_ON) {
            self.sacked.total()
        } else {
            self.dup_acks.saturating_mul(self.smss())
        };
        if self.recovery != Recovery::OPEN {
            gone = gone.saturating_add(
                self.sacked
                    .gaps(self.high_rxt.max(self.snd_una), self.lost_edge),
            );
        }
        flight.saturating_sub(gone)
    }

    /// Up to where bytes count as lost, as RFC 6675's IsLost says.
    pub fn sack_lost_edge(&self) -> Seq {
        let mut above = 0u32;
        let ranges = self.sacked.as_slice();
        for (count, range) in (1u32..).zip(ranges.iter().rev()) {
            above = above.saturating_add(range.end - range.start);
            if count >= DUP_THRESH || above > (DUP_THRESH - 1) * self.smss() {
                return range.start;
            }
        }
        self.snd_una
    }

    /// The next stretch to send again.
    pub fn next_lost(&self) -> Option<Range> {
        if self.recovery == Recovery::OPEN {
            return None;
        }
        self.sacked
            .first_gap(self.high_rxt.max(self.snd_una), self.lost_edge)
    }

    /// RFC 6298, section 2.
    pub fn measured(&mut self, rtt: u64, min: u64, max: u64) {
        let rtt = rtt.max(1);
        if self.srtt == 0 {
            self.srtt = rtt;
            self.rttvar = rtt / 2;
        } else {
            self.rttvar = self.rttvar - self.rttvar / 4 + self.srtt.abs_diff(rtt) / 4;
            self.srtt = self.srtt - self.srtt / 8 + rtt / 8;
        }
        self.rto = self
            .srtt
            .saturating_add(self.rttvar.saturating_mul(4))
            .clamp(min, max);
    }

    /// The time-out with back-off.
    pub fn backed_off(&self, max: u64) -> u64 {
        self.rto
            .checked_shl(self.backoff.min(20).into())
            .unwrap_or(max)
            .min(max)
    }

    /// Right edge of the window to tell: never left of the last one told, and moved only by a
    /// worthwhile step (RFC 9293, section 3.8.6.2.2).
    pub fn window_edge(&self, limit: u32) -> Seq {
        let free = limit.saturating_sub(self.rcv_nxt.beyond(self.rcv_read));
        let edge = self.rcv_nxt + free;
        let step = (limit / 2).min(self.own_mss.into());
        if edge.beyond(self.rcv_adv) >= step.max(1) {
            edge
        } else {
            self.rcv_adv
        }
    }
}
