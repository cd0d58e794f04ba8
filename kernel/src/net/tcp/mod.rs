//! TCP: the engine, without I/O, clock or lock. It is told segments and the time, and asks a
//! [`Link`] to send.
//!
//! RFC 9293; window scale, timestamps, PAWS (7323); SACK (2018) with loss recovery (6675) or NewReno
//! (6582), limited transmit (3042); CUBIC (9438) or Reno (5681); RTO (6298); SYN cookies (4987);
//! initial sequence numbers (6528); challenge ACKs (5961); ICMP with care (5927); ports (6056).
//!
//! What holds:
//! - A connection is a [`block::Block`] of plain numbers in a [`slab::Slab`] that never moves it.
//!   Its bytes lie in rings named by number ([`buffers`]); one without bytes has no ring. Both lie in
//!   one [`arena`], which another image can go on with ([`adopt`]).
//! - `snd_nxt` never goes back. What is lost is what lies below `lost_edge` and is not SACKed; what
//!   of it was sent again lies below `high_rxt`.
//! - Nothing is sent from within a call but answers that belong to no connection. What has to be
//!   sent is queued, and goes out in [`Engine::flush`]: so a batch of segments is answered by one
//!   ACK, and by segments as large as the link cuts (GSO).
//! - Finding a connection, accepting one and telling events take constant time; a timer takes the
//!   logarithm of their number.
//!
//! `input.rs` reads as RFC 9293's section 3.10.7, `output.rs` decides what is sent, `timeout.rs`
//! what happens when nothing comes.

mod addr;
pub mod adopt;
mod api;
pub mod arena;
mod block;
mod buffers;
#[cfg(any(test, feature = "fuzzing"))]
mod check;
mod congestion;
mod index;
mod input;
mod output;
mod ranges;
mod secrets;
mod seq;
mod slab;
#[cfg(test)]
mod tests;
mod timeout;
mod timers;
mod wire;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, SocketAddr};
use serde::{Deserialize, Serialize};

use self::addr::Tuple;
use self::arena::{Arena, Memory};
pub use self::block::{BLOCK_VERSION, State};
use self::block::{ORPHAN, PASSIVE, QUEUED, READ_SHUT, TOLD};
use self::buffers::{Buffers, NONE};
pub use self::congestion::Algorithm;
use self::index::Index;
use self::secrets::Secrets;
use self::slab::Slab;
use self::timers::Timers;

const SECOND: u64 = 1_000_000_000;
const MS: u64 = 1_000_000;

/// A connection's name. One whose connection is gone never means another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConnId {
    slot: u32,
    generation: u32,
}

/// A listener's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ListenerId {
    slot: u32,
    generation: u32,
}

/// Whose readiness may have changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// A connection's.
    Conn(ConnId),
    /// A listener's: there is something to accept.
    Listener(ListenerId),
}

/// A received segment. Checksums have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// The sender.
    pub src: SocketAddr,
    /// Us.
    pub dst: SocketAddr,
    /// The TCP header with its options.
    pub header: &'a [u8],
    /// What follows it, in pieces.
    pub payload: &'a [&'a [u8]],
}

/// How a peer is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Path {
    /// The address to send from.
    pub local: IpAddr,
    /// The largest IP packet, bytes.
    pub mtu: u16,
    /// The most TCP payload that may be sent in one piece to be cut up later; 0: none.
    pub gso_max: u32,
}

/// A segment to send.
#[derive(Clone, Copy, Debug)]
pub struct OutSegment<'a> {
    /// Us.
    pub src: SocketAddr,
    /// The receiver.
    pub dst: SocketAddr,
    /// The TCP header with its options; its checksum is 0.
    pub header: &'a [u8],
    /// What follows it, in two pieces.
    pub payload: [&'a [u8]; 2],
    /// If there is more payload than this, it is to be cut into pieces of this length (GSO).
    pub mss: u16,
    /// Time to live, or hop limit; 0: the stack's default.
    pub ttl: u8,
}

/// What carries segments.
pub trait Link {
    /// How `remote` is reached. `None`: not at all.
    fn path(&self, remote: IpAddr) -> Option<Path>;
    /// Sends a segment. `false`: there is no room now; the engine keeps it, and is told by
    /// [`Engine::unblocked`].
    fn send(&mut self, segment: &OutSegment<'_>) -> bool;
}

/// Why a call failed or a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Error {
    /// Not now (EAGAIN).
    WouldBlock = 1,
    /// The id's connection or listener is gone (EBADF).
    Stale,
    /// There is no connection yet, or none any more (ENOTCONN).
    NotConnected,
    /// We have sent FIN, or the connection is gone (EPIPE).
    Closed,
    /// The peer did not want the connection (ECONNREFUSED).
    Refused,
    /// The peer broke it off (ECONNRESET).
    Reset,
    /// The peer did not answer (ETIMEDOUT).
    TimedOut,
    /// No way to the host (EHOSTUNREACH).
    HostUnreachable,
    /// No way to its net (ENETUNREACH).
    NetUnreachable,
    /// The address is taken (EADDRINUSE).
    AddrInUse,
    /// There is no such local address, or no port is free (EADDRNOTAVAIL).
    AddrNotAvailable,
    /// No memory or no more connections (ENOBUFS).
    NoBuffers,
    /// An argument makes no sense (EINVAL).
    Invalid,
}

impl Error {
    fn from_code(code: u8) -> Option<Self> {
        const ALL: [Error; 13] = [
            Error::WouldBlock,
            Error::Stale,
            Error::NotConnected,
            Error::Closed,
            Error::Refused,
            Error::Reset,
            Error::TimedOut,
            Error::HostUnreachable,
            Error::NetUnreachable,
            Error::AddrInUse,
            Error::AddrNotAvailable,
            Error::NoBuffers,
            Error::Invalid,
        ];
        ALL.into_iter().find(|&error| error as u8 == code)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "not now",
            Self::Stale => "the connection is gone",
            Self::NotConnected => "not connected",
            Self::Closed => "closed for writing",
            Self::Refused => "connection refused",
            Self::Reset => "connection reset by the peer",
            Self::TimedOut => "the peer does not answer",
            Self::HostUnreachable => "host unreachable",
            Self::NetUnreachable => "network unreachable",
            Self::AddrInUse => "address in use",
            Self::AddrNotAvailable => "no such address, or no free port",
            Self::NoBuffers => "no memory for it",
            Self::Invalid => "invalid argument",
        })
    }
}

/// What an ICMP message said of a segment of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Protocol or port unreachable, or forbidden: ends an attempt to connect.
    Hard(Error),
    /// Anything that may pass: told if the connection times out.
    Soft(Error),
    /// Too big for a link on the way that carries IP packets of this size, bytes.
    TooBig {
        /// The size.
        mtu: u16,
    },
}

/// What the engine may use and how long it waits. Times in ns, sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Largest send ring of a connection, unless it says otherwise.
    pub send_buffer: u32,
    /// Largest receive ring, which bounds the window.
    pub recv_buffer: u32,
    /// All rings together.
    pub buffer_memory: usize,
    /// Connections, whatever their state.
    pub max_connections: u32,
    /// Of them in TIME-WAIT; the oldest makes room.
    pub max_time_wait: u32,
    /// Congestion control.
    pub congestion: Algorithm,
    /// Whether timestamps are offered and accepted.
    pub timestamps: bool,
    /// Whether SACK is.
    pub sack: bool,
    /// Whether window scale is.
    pub window_scale: bool,
    /// Retransmission time-out before there is a measurement.
    pub initial_rto: u64,
    /// The least one.
    pub min_rto: u64,
    /// The greatest one.
    pub max_rto: u64,
    /// How long an ACK may be put off.
    pub delayed_ack: u64,
    /// Twice the maximum segment lifetime.
    pub time_wait: u64,
    /// How long FIN-WAIT-2 lasts when the app is gone.
    pub fin_wait: u64,
    /// A connection whose data is not acknowledged for so long ends.
    pub give_up: u64,
    /// One that its app has closed.
    pub orphan_give_up: u64,
    /// How often SYN is repeated.
    pub syn_retries: u8,
    /// How often SYN with ACK is.
    pub syn_ack_retries: u8,
    /// Ports for `connect`, first and last.
    pub ports: (u16, u16),
    /// Challenge ACKs a connection sends in a second (RFC 5961, section 7). The limit is each
    /// connection's own: one for all can be used to find others' ports and sequence numbers.
    pub challenge_acks: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            send_buffer: 256 << 10,
            recv_buffer: FIRST_RECV,
            buffer_memory: 16 << 20,
            max_connections: 16_384,
            max_time_wait: 4096,
            congestion: Algorithm::Cubic,
            timestamps: true,
            sack: true,
            window_scale: true,
            initial_rto: SECOND,
            min_rto: 200 * MS,
            max_rto: 60 * SECOND,
            delayed_ack: 40 * MS,
            time_wait: 60 * SECOND,
            fin_wait: 60 * SECOND,
            give_up: 900 * SECOND,
            orphan_give_up: 60 * SECOND,
            syn_retries: 6,
            syn_ack_retries: 5,
            ports: (32_768, 60_999),
            challenge_acks: 10,
        }
    }
}

/// What a connection may have received and not read, in bytes, before anything was read: it grows by
/// what is, so that one that nobody reads does not take more.
const FIRST_RECV: u32 = 256 << 10;
/// Largest receive ring of one connection, in bytes, and as a part of all buffers.
const MOST_RECV: usize = 1 << 20;
const RECV_SHARE: usize = 16;

impl Config {
    /// The default for buffers of so many bytes at most. A sender fills a window of 256 KiB within
    /// milliseconds and then waits for us: where there is memory for it, a window is wider.
    #[must_use]
    pub fn for_memory(bytes: usize) -> Self {
        let defaults = Self::default();
        let buffer_memory = defaults.buffer_memory.min(bytes);
        let least = defaults.recv_buffer as usize;
        let recv_buffer = (buffer_memory / RECV_SHARE).clamp(least, MOST_RECV) as u32;
        Self {
            recv_buffer,
            buffer_memory,
            ..defaults
        }
    }
}

/// Keep-alive (RFC 9293, section 3.8.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepAlive {
    /// Silence before the first probe, ns.
    pub idle: u64,
    /// Between probes, ns.
    pub interval: u64,
    /// Probes without an answer before the connection ends.
    pub count: u32,
}

/// What an app may set of a connection, or of a listener for those it will accept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Options {
    /// Nagle's algorithm off.
    pub nodelay: bool,
    /// Keep-alive.
    pub keepalive: Option<KeepAlive>,
    /// Data not acknowledged for so long ends the connection, ns (RFC 5482).
    pub user_timeout: Option<u64>,
    /// Time to live or hop limit.
    pub ttl: Option<u8>,
    /// Size the send ring may grow to; the default is [`Config::send_buffer`].
    pub send_buffer: Option<u32>,
    /// Size the receive ring may grow to.
    pub recv_buffer: Option<u32>,
    /// A listener at `[::]` takes no IPv4.
    pub v6_only: bool,
}

/// What can be done with a connection or listener at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Readiness {
    /// There is data, an end or an error to read, or a connection to accept.
    pub readable: bool,
    /// There is room to write.
    pub writable: bool,
    /// The peer has sent FIN, or reading was shut down.
    pub read_closed: bool,
    /// Our side is closed.
    pub write_closed: bool,
    /// The connection ended with an error, not yet taken.
    pub error: bool,
}

/// Which direction to shut down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// No more reading.
    Read,
    /// No more writing: FIN follows what was written.
    Write,
    /// Neither.
    Both,
}

/// Counters since the start, and gauges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Segments received.
    pub segments_in: u64,
    /// Segments handed to the link, one to be cut counts once.
    pub segments_out: u64,
    /// Payload received in order.
    pub bytes_in: u64,
    /// Payload sent, repetitions too.
    pub bytes_out: u64,
    /// Segments that were no TCP, or had impossible addresses.
    pub malformed: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Times the retransmission timer ran out.
    pub timeouts: u64,
    /// Fast recoveries.
    pub recoveries: u64,
    /// Segments that came out of order.
    pub out_of_order: u64,
    /// Segments PAWS refused.
    pub paws: u64,
    /// Challenge ACKs sent.
    pub challenge_acks: u64,
    /// RSTs sent.
    pub resets_out: u64,
    /// RSTs that ended a connection.
    pub resets_in: u64,
    /// SYN cookies sent.
    pub cookies_out: u64,
    /// SYN cookies that came back good.
    pub cookies_in: u64,
    /// SYNs and handshakes dropped because a listener's queue was full.
    pub listen_overflows: u64,
    /// Payload dropped for want of memory.
    pub no_memory: u64,
    /// Connections opened by us.
    pub active_opens: u64,
    /// Connections accepted from peers.
    pub passive_opens: u64,
    /// Blocks in use now.
    pub connections: u32,
    /// Of them in TIME-WAIT.
    pub time_wait: u32,
    /// Bytes of rings in use.
    pub buffer_bytes: u64,
}

/// A ring's size, whatever was asked for: bytes between the smallest ring's and 16 MiB.
fn sane_size(asked: u32) -> u32 {
    asked.clamp(buffers::SMALLEST, 16 << 20)
}

impl Options {
    fn tx_max(&self, config: &Config) -> u32 {
        self.send_buffer.map_or(config.send_buffer, sane_size)
    }

    fn rx_max(&self, config: &Config) -> u32 {
        self.recv_buffer.map_or(config.recv_buffer, sane_size)
    }
}

/// Somebody who waits at a port. Plain numbers as well.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Listener {
    local: u128,
    /// SYN cookies are looked for until then.
    cookies_until: u64,
    generation: u32,
    backlog: u32,
    half_open: u32,
    /// Length of the queue from `head` to `tail`.
    ready: u32,
    head: u32,
    tail: u32,
    port: u16,
    /// 0: free.
    open: u8,
    v6_only: u8,
    /// 1: in the list of events.
    told: u8,
}

/// All connections.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    secrets: Secrets,
    blocks: Slab,
    index: Index,
    listeners: Vec<(Listener, Options)>,
    listener_index: Index,
    buffers: Buffers,
    timers: Timers,
    /// Those with something to send; some may be gone.
    queue: VecDeque<ConnId>,
    events: VecDeque<Id>,
    /// Those in TIME-WAIT, oldest first; some may be gone.
    time_waits: VecDeque<ConnId>,
    blocked: bool,
    path_epoch: u32,
    port_step: u32,
    /// The last one found: segments come in runs.
    last_found: u32,
    stats: Stats,
}

impl Engine {
    /// What it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// An engine without connections, in memory of the heap's. The secret must be random and is
    /// nobody else's.
    ///
    /// # Panics
    /// There is no memory for it.
    pub fn new(config: Config, secret: [u8; 32]) -> Self {
        let len = arena::len_for(config.buffer_memory, config.max_connections);
        let arena = Memory::new(len).and_then(Arena::new);
        Self::over(config, arena.expect("memory for TCP"), secret)
    }

    /// An engine without connections, in this arena.
    pub fn over(config: Config, arena: Arena, secret: [u8; 32]) -> Self {
        Self {
            config: Config {
                send_buffer: sane_size(config.send_buffer),
                recv_buffer: sane_size(config.recv_buffer),
                ..config
            },
            secrets: Secrets::new(secret),
            blocks: Slab::new(config.max_connections),
            index: Index::new(),
            listeners: Vec::new(),
            listener_index: Index::new(),
            buffers: Buffers::new(arena, config.buffer_memory),
            timers: Timers::default(),
            queue: VecDeque::new(),
            events: VecDeque::new(),
            time_waits: VecDeque::new(),
            blocked: false,
            path_epoch: 0,
            port_step: 0,
            last_found: NONE,
            stats: Stats::default(),
        }
    }

    /// The arena, to be sealed for another image.
    pub fn arena(&mut self) -> &mut Arena {
        self.buffers.arena()
    }

    /// Bytes of the arena that nobody uses.
    pub fn free_bytes(&self) -> usize {
        self.buffers.free_bytes()
    }

    /// The counters.
    pub fn stats(&self) -> Stats {
        Stats {
            connections: self.blocks.used(),
            buffer_bytes: self.buffers.used() as u64,
            ..self.stats
        }
    }

    fn find(&mut self, tuple: &Tuple) -> Option<u32> {
        if let Some(block) = self.blocks.get(self.last_found)
            && block.tuple == *tuple
            && block.state != State::CLOSED
        {
            return Some(self.last_found);
        }
        let hash = self.secrets.place(tuple);
        let slot = self
            .index
            .candidates(hash)
            .find(|&slot| self.blocks[slot].tuple == *tuple)?;
        self.last_found = slot;
        Some(slot)
    }

    fn id_of(&self, slot: u32) -> ConnId {
        ConnId {
            slot,
            generation: self.blocks[slot].generation,
        }
    }

    /// Has `flush` look at it.
    fn queue(&mut self, slot: u32) {
        let id = self.id_of(slot);
        let block = &mut self.blocks[slot];
        if !block.has(QUEUED) {
            block.set(QUEUED);
            self.queue.push_back(id);
        }
    }

    /// Tells the app that its readiness changed.
    fn tell(&mut self, slot: u32) {
        let id = self.id_of(slot);
        let block = &mut self.blocks[slot];
        // One with a listener is still in its queue: nobody knows its id.
        if !block.has(TOLD | ORPHAN) && block.listener == NONE {
            block.set(TOLD);
            self.events.push_back(Id::Conn(id));
        }
    }

    fn rearm(&mut self, slot: u32) {
        let deadline = self.blocks[slot].deadline();
        if deadline != block::OFF {
            self.timers.arm(slot, deadline);
        }
    }

    /// Ends a connection: nothing is sent or taken any more. Its app may still read what came.
    fn end(&mut self, slot: u32, error: Option<Error>) {
        let block = &mut self.blocks[slot];
        if block.state == State::CLOSED {
            return;
        }
        if block.state == State::SYN_RECEIVED && block.has(PASSIVE) {
            let (listener, generation) = (block.listener, block.listener_generation);
            // The app has not seen it: nobody else will free it.
            block.set(ORPHAN);
            if let Some((listener, _)) = self.listeners.get_mut(listener as usize)
                && listener.generation == generation
            {
                listener.half_open = listener.half_open.saturating_sub(1);
            }
        }
        let block = &mut self.blocks[slot];
        if block.state == State::TIME_WAIT {
            self.stats.time_wait -= 1;
        }
        block.state = State::CLOSED;
        block.error = error.map_or(0, |error| error as u8);
        block.rto_at = block::OFF;
        block.ack_at = block::OFF;
        block.keep_at = block::OFF;
        block.life_at = block::OFF;
        self.buffers.give(core::mem::replace(&mut block.tx, NONE));
        self.index.remove(slot);
        self.timers.disarm(slot);
        if !block.has(ORPHAN) {
            self.tell(slot);
        } else if !block.has(block::RST_DUE) {
            self.free(slot);
        }
    }

    /// Makes an ended connection's block free.
    fn free(&mut self, slot: u32) {
        let block = &mut self.blocks[slot];
        self.buffers.give(core::mem::replace(&mut block.rx, NONE));
        if self.last_found == slot {
            self.last_found = NONE;
        }
        self.blocks.free(slot);
    }

    /// Ends it with RST.
    fn break_off(&mut self, slot: u32, error: Option<Error>) {
        self.blocks[slot].set(block::RST_DUE);
        self.end(slot, error);
        self.queue(slot);
    }

    fn enter_time_wait(&mut self, now: u64, slot: u32) {
        let id = self.id_of(slot);
        let block = &mut self.blocks[slot];
        block.state = State::TIME_WAIT;
        block.rto_at = block::OFF;
        block.keep_at = block::OFF;
        block.life_at = now.saturating_add(self.config.time_wait);
        self.buffers.give(core::mem::replace(&mut block.tx, NONE));
        self.stats.time_wait += 1;
        // They end in the order they came: what is gone stands in front.
        while let Some(&oldest) = self.time_waits.front() {
            let alive = self.blocks.get(oldest.slot).is_some_and(|block| {
                block.generation == oldest.generation && block.state == State::TIME_WAIT
            });
            if alive && self.stats.time_wait <= self.config.max_time_wait {
                break;
            }
            self.time_waits.pop_front();
            if alive {
                self.end(oldest.slot, None);
            }
        }
        self.time_waits.push_back(id);
    }

    /// What its window is bounded by now.
    fn recv_limit(&self, slot: u32) -> u32 {
        let block = &self.blocks[slot];
        if self.buffers.is_short() {
            let has = self.buffers.size(block.rx);
            has.max(2 * buffers::SMALLEST).min(block.rx_max)
        } else {
            // Anew every 4 GiB, which nobody notices: the window told never moves back.
            let read = block.rcv_read - block.irs;
            block.rx_max.min(read.max(FIRST_RECV))
        }
    }

    /// Lets go of the receive ring when nothing is in it, and of what nobody will read.
    fn settle_rx(&mut self, slot: u32) {
        let block = &mut self.blocks[slot];
        if block.has(READ_SHUT) {
            block.rcv_read = block.readable_end();
        }
        if block.rx != NONE && block.rcv_read == block.readable_end() && block.ooo.is_empty() {
            let size = self.buffers.size(block.rx).min(FIRST_RECV);
            block.rx_class = buffers::class_for(size);
            self.buffers.give(core::mem::replace(&mut block.rx, NONE));
        }
    }
}
