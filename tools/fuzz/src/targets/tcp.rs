//! TCP segments into a live stack: an established connection, and a listener that anybody may
//! connect to.
//!
//! The input says what the peer does, relative to the connection's true numbers: segments that
//! overlap, repeat, come out of order, lie beyond the window, have any flags and options; ICMP
//! errors; time; and what the app does meanwhile. What has to hold:
//! - what the app reads is a prefix of what the peer sent, and what the stack sends is what the app
//!   wrote, whatever is sent again;
//! - the stack acknowledges nothing that was not sent, and its segments are well formed;
//! - the engine's own invariants, after every step;
//! - a new client is answered, and when the apps are gone nothing is left.

use crate::input::Script;
use crate::peer::{IT, MS, Peer, SECOND, WE, mend, packet, parse, transport_sum};
use crate::{Input, Target};
use segue_kernel::net::ip;
use segue_kernel::net::nic::TxMeta;
use segue_kernel::net::tcp::{self, ConnId, ListenerId, Options, Shutdown};
use std::net::SocketAddr;

pub const TARGET: Target = Target {
    name: "tcp",
    what: "TCP segments into a stack with a connection and a listener",
    longest: 2048,
    memory: 1 << 20,
    seeds,
    run,
};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Its port, the port that it connects to, and that of a new client.
const ITS_PORT: u16 = 80;
const OUR_PORT: u16 = 5000;
const NEW_PORT: u16 = 60_000;
/// Bytes that one connection may carry: sequence numbers farther away are nobody's.
const FAR: u32 = 1 << 24;
/// Rings together, in bytes.
const BUFFERS: usize = 256 << 10;
const CONNECTIONS: u32 = 24;

/// The byte of a stream at this place: what the peer sends, and what the app writes.
fn pattern(at: u32, ours: bool) -> u8 {
    let mixed = at.wrapping_mul(0x9e37_79b9) ^ u32::from(ours);
    (mixed >> 24) as u8 ^ at as u8
}

/// A segment's fields.
#[derive(Clone, Copy, Default)]
struct Segment {
    from: u16,
    to: u16,
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
}

impl Segment {
    fn bytes(&self, options: &[u8], len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.to_be_bytes());
        bytes.extend(self.to.to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let options_len = options.len().min(40).next_multiple_of(4);
        bytes.extend([((20 + options_len) / 4 * 16) as u8, self.flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend(&options[..options.len().min(40)]);
        bytes.resize(20 + options_len, 0);
        bytes.resize(20 + options_len + len, 0);
        bytes
    }

    fn read(bytes: &[u8]) -> (Self, &[u8], &[u8]) {
        let word = |at: usize| {
            u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let header = usize::from(bytes[12] >> 4) * 4;
        let segment = Self {
            from: (word(0) >> 16) as u16,
            to: word(0) as u16,
            seq: word(4),
            ack: word(8),
            flags: bytes[13],
            window: word(12) as u16,
        };
        (segment, &bytes[20..header], &bytes[header..])
    }
}

/// The value of the timestamps option, if it is there.
fn timestamp(mut options: &[u8]) -> Option<u32> {
    loop {
        options = match *options {
            [8, 10, a, b, c, d, ..] => return Some(u32::from_be_bytes([a, b, c, d])),
            [1, ref rest @ ..] => rest,
            [kind, len, ..] if kind != 0 && len >= 2 => options.get(len.into()..)?,
            _ => return None,
        };
    }
}

/// The peer, the app, and what they know.
struct Talk {
    peer: Peer,
    listener: ListenerId,
    conn: Option<ConnId>,
    /// The peer's first sequence number; our bytes begin behind it.
    first: u32,
    /// The farthest that the peer has sent, from `first`.
    sent: u32,
    /// The stack's first sequence number.
    its_first: Option<u32>,
    /// The end of what it has sent.
    its_next: u32,
    /// What it acknowledged last.
    its_ack: u32,
    /// Its timestamp, if it sends any.
    its_time: Option<u32>,
    /// Bytes that the app has written, and read.
    written: u32,
    read: u32,
    /// The app has read the end.
    ended: bool,
    /// SYNs with ACK to the new client.
    welcomes: usize,
    options: [u8; 12],
}

impl Talk {
    fn turn(&mut self) {
        let mut frames = Vec::new();
        self.peer
            .turn(|frame, meta| frames.push((frame.to_vec(), meta)));
        for (frame, meta) in frames {
            self.sees(&frame, meta);
        }
        self.peer.stack.engine.check();
        let stats = self.peer.stack.engine.stats();
        assert!(stats.buffer_bytes <= BUFFERS as u64 && stats.connections <= CONNECTIONS);
    }

    /// Looks at what the stack sends.
    fn sees(&mut self, frame: &[u8], meta: TxMeta) {
        let Some((h, bytes)) = parse(frame) else {
            return;
        };
        if h.protocol != ip::TCP || h.fragment.is_some() {
            return;
        }
        assert!(meta.csum_blank || transport_sum(&h, bytes).right());
        let (s, options, payload) = Segment::read(bytes);
        if s.to == NEW_PORT && s.flags & (SYN | ACK) == SYN | ACK {
            self.welcomes += 1;
        }
        if (s.from, s.to) != (ITS_PORT, OUR_PORT) || h.dst != WE {
            return;
        }
        if s.flags & RST != 0 {
            // It belongs to no connection: its numbers are those of what was sent there.
            return;
        }
        if s.flags & SYN != 0 && self.its_first.is_none() {
            self.its_first = Some(s.seq);
            self.its_next = s.seq;
        }
        let Some(its_first) = self.its_first else {
            return;
        };
        if s.flags & SYN != 0 && s.seq != its_first {
            // A second handshake, after the first connection is gone.
            return;
        }
        let at = s.seq.wrapping_sub(its_first.wrapping_add(1));
        // Behind FIN, what has no bytes stands one further.
        if s.flags & SYN == 0 && at < FAR && !payload.is_empty() {
            let end = at + payload.len() as u32;
            assert!(end <= self.written, "{end} of {} bytes sent", self.written);
            for (n, byte) in payload.iter().enumerate() {
                assert_eq!(*byte, pattern(at + n as u32, false), "byte {n} behind {at}");
            }
        }
        if s.flags & ACK != 0 {
            let acked = s.ack.wrapping_sub(self.first);
            if acked < FAR {
                assert!(
                    acked <= self.sent,
                    "{acked} acknowledged, {} sent",
                    self.sent
                );
            }
            self.its_ack = s.ack;
        }
        let len = payload.len() as u32 + u32::from(s.flags & SYN != 0) + u32::from(s.flags & FIN);
        let end = s.seq.wrapping_add(len);
        if end.wrapping_sub(self.its_next) < FAR {
            self.its_next = end;
        }
        self.its_time = timestamp(options).or(self.its_time);
    }

    /// Sends a segment's bytes, the payload filled in as its sequence number says.
    fn send(&mut self, mut bytes: Vec<u8>) {
        let header = usize::from(bytes[12] >> 4) * 4;
        let (s, ..) = Segment::read(&{
            let mut head = bytes[..20].to_vec();
            head[12] = 5 << 4;
            head
        });
        if header >= 20 && header <= bytes.len() {
            let start = s
                .seq
                .wrapping_sub(self.first)
                .wrapping_sub(1)
                .wrapping_add(u32::from(s.flags & SYN != 0));
            for (n, byte) in (0u32..).zip(&mut bytes[header..]) {
                *byte = pattern(start.wrapping_add(n), true);
            }
            let len = (bytes.len() - header) as u32 + u32::from(s.flags & FIN);
            let end = start.wrapping_add(1).wrapping_add(len);
            if end < FAR {
                self.sent = self.sent.max(end);
            }
        }
        let mut frame = packet(WE, IT, ip::TCP, &bytes);
        mend(&mut frame);
        self.peer.put(frame);
    }

    /// A segment of the connection: where it starts from what was acknowledged, what it
    /// acknowledges from what the stack has sent.
    fn segment(&mut self, seq: i32, ack: i32, flags: u8, window: u16, extra: &[u8], len: usize) {
        let s = Segment {
            from: OUR_PORT,
            to: ITS_PORT,
            seq: self.its_ack.wrapping_add_signed(seq),
            ack: self.its_next.wrapping_add_signed(ack),
            flags,
            window,
        };
        let mut options = Vec::new();
        if let Some(time) = self.its_time {
            let ours = (self.peer.now / MS) as u32;
            options.extend([1, 1, 8, 10]);
            options.extend(ours.to_be_bytes());
            options.extend(time.to_be_bytes());
        }
        options.extend(extra);
        let bytes = s.bytes(&options, len);
        self.send(bytes);
    }

    fn write(&mut self, len: usize) {
        let Some(conn) = self.conn else { return };
        let bytes: Vec<u8> = (0..len as u32)
            .map(|n| pattern(self.written.wrapping_add(n), false))
            .collect();
        if let Ok(n) = self.peer.stack.engine.send(conn, &bytes) {
            assert!(n <= len);
            self.written += n as u32;
        }
    }

    fn read(&mut self, len: usize) {
        let Some(conn) = self.conn else { return };
        let mut buf = vec![0; len];
        if let Ok(n) = self.peer.stack.engine.recv(conn, &mut buf) {
            assert!(!self.ended || n == 0, "bytes behind the end");
            self.ended |= n == 0 && len > 0;
            for (at, byte) in (self.read..).zip(&buf[..n]) {
                assert_eq!(*byte, pattern(at, true), "byte {at} of the peer's");
            }
            self.read += n as u32;
            assert!(self.read < self.sent, "more is read than was sent");
        }
    }
}

/// Sets up a connection, by either side.
fn connected(how: u8, offload: bool) -> Talk {
    let config = tcp::Config {
        send_buffer: 32 << 10,
        recv_buffer: 32 << 10,
        buffer_memory: BUFFERS,
        max_connections: CONNECTIONS,
        max_time_wait: 4,
        timestamps: how & 1 == 0,
        sack: how & 2 == 0,
        window_scale: how & 4 == 0,
        ..tcp::Config::default()
    };
    let mut peer = Peer::new("segue.ip=10.0.0.1/24", config, offload);
    let options = Options {
        nodelay: how & 8 != 0,
        keepalive: (how & 16 != 0).then_some(tcp::KeepAlive {
            idle: 10 * SECOND,
            interval: SECOND,
            count: 3,
        }),
        ..Options::default()
    };
    let at: SocketAddr = "0.0.0.0:80".parse().expect("an address");
    let active = how & 32 != 0;
    let listener = peer.stack.engine.listen(at, 4, &options).expect("a port");
    // Near the end of sequence numbers, or not.
    let first = if how & 64 != 0 { 0xffff_ff00 } else { 0x1000 };
    // MSS 1000, window scale 2, SACK permitted; timestamps come by themselves.
    let mut talk = Talk {
        peer,
        listener,
        conn: None,
        first,
        sent: 1,
        its_first: None,
        its_next: 0,
        its_ack: first,
        its_time: (how & 1 == 0 && !active).then_some(0),
        written: 0,
        read: 0,
        ended: false,
        welcomes: 0,
        options: [2, 4, 3, 0xe8, 1, 3, 3, 2, 1, 1, 4, 2],
    };
    let options_of_syn = talk.options;
    if active {
        let local = SocketAddr::new(IT, ITS_PORT);
        let stack = &mut talk.peer.stack;
        let remote = SocketAddr::new(WE, OUR_PORT);
        let conn = stack
            .engine
            .connect(talk.peer.now, Some(local), remote, &options, &stack.host);
        talk.conn = conn.ok();
        stack.settle(talk.peer.now);
        talk.turn();
        talk.segment(0, 0, SYN | ACK, 8000, &options_of_syn, 0);
        talk.turn();
    } else {
        talk.segment(0, 0, SYN, 8000, &options_of_syn, 0);
        talk.turn();
        talk.segment(0, 0, ACK, 8000, &[], 0);
        talk.turn();
        talk.conn = talk.peer.stack.engine.accept(listener).ok();
    }
    assert!(talk.conn.is_some() && talk.its_first.is_some());
    talk
}

const SEGMENT: u8 = 0;
const DATA: u8 = 1;
const MUTANT: u8 = 2;
const WAIT: u8 = 3;
const WRITE: u8 = 4;
const READ: u8 = 5;
const APP: u8 = 6;
const DEVICE: u8 = 7;
const STRANGER: u8 = 8;
const ICMP: u8 = 9;
const ACCEPT: u8 = 10;
const PURE_ACK: u8 = 11;
const STEPS: u8 = 12;

fn run(input: &[u8]) {
    let mut input = Input(input);
    let (how, more) = (input.u8(), input.u8());
    let mut talk = connected(how, more & 1 != 0);
    let mut steps = 0;
    while input.more() && steps < 300 {
        steps += 1;
        step(&mut talk, &mut input);
        talk.turn();
    }
    end(talk);
}

fn step(talk: &mut Talk, input: &mut Input<'_>) {
    let near = |input: &mut Input<'_>| i32::from(input.u16() as i16);
    match input.u8() % STEPS {
        SEGMENT => {
            let (seq, ack) = (near(input), near(input));
            let (flags, window, len) = (input.u8(), input.u16(), input.u8());
            let options = input.piece();
            let options = &options[..options.len().min(28)];
            talk.segment(seq, ack, flags, window, options, usize::from(len) * 8);
        }
        DATA => {
            // What the peer sends next, as it should.
            let len = usize::from(input.u16() % 1400);
            let next = talk.first.wrapping_add(talk.sent);
            let seq = next.wrapping_sub(talk.its_ack) as i32;
            talk.segment(seq, 0, ACK, 8000, &[], len);
        }
        MUTANT => {
            let len = usize::from(input.u8());
            let s = Segment {
                from: OUR_PORT,
                to: ITS_PORT,
                seq: talk.its_ack,
                ack: talk.its_next,
                flags: ACK,
                window: 1000,
            };
            let mut bytes = s.bytes(&talk.options, len);
            for _ in 0..=input.u8() % 4 {
                let at = usize::from(input.u8()) % 32;
                bytes[at] = input.u8();
            }
            talk.send(bytes);
        }
        WAIT => match input.u16() {
            0 => talk.peer.wait(3600 * SECOND),
            ms => talk.peer.now += u64::from(ms) * MS,
        },
        WRITE => talk.write(input.u16().into()),
        READ => talk.read(input.u16().into()),
        APP => {
            let (now, conn) = (talk.peer.now, talk.conn);
            let engine = &mut talk.peer.stack.engine;
            let Some(conn) = conn else { return };
            match input.u8() % 8 {
                0 => drop(engine.shutdown(conn, Shutdown::Read)),
                1 | 2 => drop(engine.shutdown(conn, Shutdown::Write)),
                3 => drop(engine.shutdown(conn, Shutdown::Both)),
                4 => drop(engine.close(now, conn)),
                5 => drop(engine.abort(conn)),
                6 => drop(engine.take_error(conn)),
                _ => {}
            }
        }
        DEVICE => {
            let full = input.u8() % 2 == 1;
            talk.peer.wire().full = full;
        }
        STRANGER => {
            let (port, flags, seq) = (input.u8(), input.u8(), input.u8());
            let s = Segment {
                from: 6000 + u16::from(port),
                to: ITS_PORT,
                seq: seq.into(),
                ack: input.u8().into(),
                flags,
                window: 1000,
            };
            let mut frame = packet(WE, IT, ip::TCP, &s.bytes(&talk.options, 4));
            mend(&mut frame);
            talk.peer.put(frame);
        }
        ICMP => {
            // About a segment of the connection.
            let (kind, code, mtu, seq) = (input.u8(), input.u8(), input.u16(), near(input));
            let s = Segment {
                from: ITS_PORT,
                to: OUR_PORT,
                seq: talk.its_next.wrapping_add_signed(seq),
                ..Segment::default()
            };
            let quoted = packet(IT, WE, ip::TCP, &s.bytes(&[], 0));
            let [a, b] = mtu.to_be_bytes();
            let kind = [3, 4, 11, 12][usize::from(kind % 4)];
            let head = [kind, code % 16, 0, 0, 0, 0, a, b];
            let mut frame = packet(WE, IT, ip::ICMP, &[&head[..], &quoted[14..]].concat());
            mend(&mut frame);
            talk.peer.put(frame);
        }
        ACCEPT => {
            let now = talk.peer.now;
            if let Ok(conn) = talk.peer.stack.engine.accept(talk.listener) {
                if talk.conn.is_none() {
                    talk.conn = Some(conn);
                } else {
                    let _ = talk.peer.stack.engine.close(now, conn);
                }
            }
        }
        _ => talk.segment(0, 0, ACK, input.u16(), &[], 0),
    }
}

/// A new client is answered; when all is closed, nothing is left.
fn end(mut talk: Talk) {
    talk.peer.wire().full = false;
    talk.turn();
    let s = Segment {
        from: NEW_PORT,
        to: ITS_PORT,
        seq: 77,
        flags: SYN,
        window: 1000,
        ..Segment::default()
    };
    for _ in 0..3 {
        let mut frame = packet(WE, IT, ip::TCP, &s.bytes(&talk.options, 0));
        mend(&mut frame);
        talk.peer.put(frame);
        talk.turn();
        talk.peer.now += SECOND;
    }
    assert!(talk.welcomes > 0, "a new client got no answer");
    talk.read(64 << 10);
    let now = talk.peer.now;
    let stack = &mut talk.peer.stack;
    if let Some(conn) = talk.conn {
        let _ = stack.engine.close(now, conn);
    }
    stack
        .engine
        .close_listener(talk.listener)
        .expect("it listens");
    for _ in 0..2000 {
        talk.turn();
        if talk.peer.stack.engine.stats().connections == 0 {
            break;
        }
        talk.peer.wait(SECOND * 60);
    }
    let stats = talk.peer.stack.engine.stats();
    assert_eq!(
        (stats.connections, stats.buffer_bytes, stats.time_wait),
        (0, 0, 0),
        "something is left"
    );
}

fn seeds() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    let data = |s: Script, len: u16| s.then(&[DATA]).then(&len.to_le_bytes());
    let segment = |s: Script, seq: i16, ack: i16, flags: u8, len: u8| {
        s.then(&[SEGMENT])
            .then(&seq.to_le_bytes())
            .then(&ack.to_le_bytes())
            .then(&[flags, 0x40, 0x1f, len, 0])
    };
    for how in [0u8, 7, 8 + 16, 32, 33, 64, 64 + 32] {
        let start = || Script::default().then(&[how, how & 1]);
        // A talk that goes well, to its end.
        let mut s = start();
        for len in [10, 1000, 1399] {
            s = data(s, len).then(&[READ, 0, 8]);
        }
        s = s
            .then(&[WRITE, 0, 40, PURE_ACK, 0, 0x40, WAIT, 50, 0])
            .then(&[PURE_ACK, 0, 0x40, APP, 1]);
        s = segment(s, 0, 0, ACK | FIN, 0).then(&[READ, 1, 0, WAIT, 0, 0]);
        all.push(s.0);
        // Holes, repetitions, overlaps, beyond the window.
        let mut s = start();
        for (seq, len) in [(1000, 100), (400, 50), (500, 100), (0, 30), (-100, 60)] {
            s = segment(s, seq, 0, ACK, len);
        }
        s = segment(s, 30_000, 0, ACK, 255).then(&[READ, 0, 64]);
        all.push(s.0);
        // Loss: duplicate ACKs, SACK, time-outs.
        let mut s = start().then(&[WRITE, 0, 100]);
        for _ in 0..4 {
            s = segment(s, 0, -3000, ACK, 0);
        }
        s = s.then(&[WAIT, 0, 0, WAIT, 0, 0, PURE_ACK, 0, 4]);
        all.push(s.0);
        // Resets, SYNs, far ACKs; strangers; errors.
        let mut s = start();
        for flags in [SYN, RST, SYN | ACK, ACK | RST, 0xff, 0] {
            s = segment(s, 5, 9, flags, 1);
        }
        for port in 0..8 {
            s = s.then(&[STRANGER, port, SYN, 1, 1]);
        }
        s = s.then(&[ICMP, 0, 4, 0, 3, 0, 0, ICMP, 0, 1, 0, 0, 0xff, 0xff]);
        s = s.then(&[MUTANT, 40, 1, 12, 0xf0, 13, 2, ACCEPT, DEVICE, 1]);
        s = segment(data(s, 100), 0, 0, RST | ACK, 0);
        all.push(s.0);
        // A closed window, probes, an abort.
        let s = start().then(&[PURE_ACK, 0, 0, WRITE, 0, 16]).then(&[
            WAIT, 0, 0, WAIT, 0, 0, WAIT, 0, 0, PURE_ACK, 0, 0x10, APP, 5,
        ]);
        all.push(s.0);
    }
    all
}
