//! A simulated wire: two devices, what lies between them, and a clock.

use crate::net::ip::{self, Sum};
use crate::net::nic::{Caps, Gso, Nic, RxMeta, SendError, TxMeta};
use crate::net::stack::Stack;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

/// What a wire does to frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Frames lost, of 1000.
    pub lost: u64,
    /// Frames damaged.
    pub damaged: u64,
    /// Frames sent twice.
    pub twice: u64,
    /// Frames overtaken by the next.
    pub overtaken: u64,
}

#[derive(Debug, Default)]
pub struct Queue {
    pub frames: VecDeque<(Vec<u8>, RxMeta)>,
    /// Copies of all frames, if wanted.
    pub tap: Option<Vec<Vec<u8>>>,
    pub faults: Faults,
    pub seed: u64,
    /// Frames it holds.
    pub room: usize,
}

impl Queue {
    fn chance(&mut self, of_1000: u64) -> bool {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.seed >> 33) % 1000 < of_1000
    }

    pub fn put(&mut self, mut frame: Vec<u8>, meta: RxMeta) {
        if let Some(tap) = &mut self.tap {
            tap.push(frame.clone());
        }
        // Who loses three questions for a neighbour in a row is right to give up: not these.
        let asks = frame[12..14] == [8, 6] || frame[12..14] == [0x86, 0xdd] && frame[20] == 58;
        let f = if asks { Faults::default() } else { self.faults };
        if self.chance(f.lost) {
            return;
        }
        let mut meta = meta;
        if self.chance(f.damaged) {
            let at = (self.seed >> 20) as usize % frame.len();
            frame[at] ^= 1 << (self.seed >> 50 & 7);
            // Damage is seen by nobody but the receiver.
            meta.csum_valid = false;
        }
        if self.chance(f.twice) {
            self.frames.push_back((frame.clone(), meta));
        }
        let last = self.chance(f.overtaken).then(|| self.frames.pop_back());
        self.frames.push_back((frame, meta));
        self.frames.extend(last.flatten());
    }
}

/// One end of a wire.
pub struct TestNic {
    pub caps: Caps,
    pub rx: Arc<Mutex<Queue>>,
    pub tx: Arc<Mutex<Queue>>,
    /// The other end takes frames that are not cut, with blank checksums.
    pub passes_offload: bool,
    /// Bytes after which received frames are cut into pieces.
    pub piece: usize,
}

pub fn caps(n: u8) -> Caps {
    Caps {
        mac: [2, 0, 0, 0, 0, n],
        mtu: 1500,
        csum_tx: false,
        csum6_tx: false,
        gso4_max: 0,
        gso6_max: 0,
    }
}

/// Two ends.
pub fn pair(a: Caps, b: Caps, passes_offload: bool) -> (TestNic, TestNic) {
    let queue = |seed| {
        Arc::new(Mutex::new(Queue {
            seed,
            room: 200,
            ..Queue::default()
        }))
    };
    let (ab, ba) = (queue(1), queue(2));
    let end = |caps, rx: &Arc<_>, tx: &Arc<_>| TestNic {
        caps,
        rx: Arc::clone(rx),
        tx: Arc::clone(tx),
        passes_offload,
        piece: 700,
    };
    (end(a, &ba, &ab), end(b, &ab, &ba))
}

/// Completes a checksum as a device does: the field holds the pseudo-header's sum. `at` is where
/// the transport header begins.
fn complete(frame: &mut [u8], at: usize, field: usize) {
    let sum = Sum::default().over(&[&frame[at..]]).field();
    frame[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Cuts a TCP frame as a device does.
fn cut(frame: &[u8], kind: Gso, mss: usize) -> Vec<Vec<u8>> {
    let (ip_len, v6) = match kind {
        Gso::Tcp4 => (20, false),
        Gso::Tcp6 => (40, true),
    };
    let tcp = 14 + ip_len;
    let header = tcp + usize::from(frame[tcp + 12] >> 4) * 4;
    let payload = &frame[header..];
    let seq = u32::from_be_bytes(frame[tcp + 4..tcp + 8].try_into().unwrap());
    let count = payload.len().div_ceil(mss);
    let mut out = Vec::new();
    for (n, part) in payload.chunks(mss).enumerate() {
        let mut f = frame[..header].to_vec();
        f.extend(part);
        let seq = seq.wrapping_add((n * mss) as u32);
        f[tcp + 4..tcp + 8].copy_from_slice(&seq.to_be_bytes());
        if n + 1 < count {
            // FIN and PSH belong to the last one.
            f[tcp + 13] &= !0x09;
        }
        let length = (f.len() - tcp) as u16;
        if v6 {
            f[18..20].copy_from_slice(&length.to_be_bytes());
        } else {
            f[16..18].copy_from_slice(&(length + 20).to_be_bytes());
            f[24..26].fill(0);
            let sum = Sum::default().over(&[&f[14..34]]).field();
            f[24..26].copy_from_slice(&sum.to_be_bytes());
        }
        let h = ip::parse(&f[14..], f.len() - 14).unwrap();
        let pseudo = Sum::pseudo(h.src, h.dst, ip::TCP, h.payload).partial();
        f[tcp + 16..tcp + 18].copy_from_slice(&pseudo.to_be_bytes());
        complete(&mut f, tcp, 16);
        out.push(f);
    }
    out
}

impl Nic for TestNic {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn send(&mut self, pieces: &[&[u8]], meta: TxMeta) -> Result<(), SendError> {
        let mut frame = pieces.concat();
        let mut tx = self.tx.lock().unwrap();
        if tx.frames.len() >= tx.room {
            return Err(SendError::Full);
        }
        let v6 = frame[12..14] == [0x86, 0xdd];
        let most = usize::from(self.caps.mtu) + 14;
        if let Some((kind, mss)) = meta.gso {
            let most = if v6 {
                self.caps.gso6_max
            } else {
                self.caps.gso4_max
            };
            assert!(meta.csum_blank && most > 0 && (kind == Gso::Tcp6) == v6);
            if self.passes_offload {
                let meta = RxMeta {
                    csum_valid: true,
                    gso_mss: mss,
                };
                tx.put(frame, meta);
            } else {
                for f in cut(&frame, kind, mss.into()) {
                    assert!(f.len() <= most as usize + 200);
                    tx.put(f, RxMeta::default());
                }
            }
            return Ok(());
        }
        assert!(frame.len() <= most, "{} bytes", frame.len());
        if meta.csum_blank {
            assert!(if v6 {
                self.caps.csum6_tx
            } else {
                self.caps.csum_tx
            });
            let at = if v6 { 54 } else { 34 };
            let protocol = if v6 { frame[20] } else { frame[23] };
            if self.passes_offload {
                let meta = RxMeta {
                    csum_valid: true,
                    gso_mss: 0,
                };
                tx.put(frame, meta);
                return Ok(());
            }
            complete(&mut frame, at, if protocol == ip::TCP { 16 } else { 6 });
        }
        tx.put(frame, RxMeta::default());
        Ok(())
    }

    fn tx_ready(&self) -> bool {
        let tx = self.tx.lock().unwrap();
        tx.frames.len() < tx.room
    }

    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(&[&[u8]], RxMeta)) -> usize {
        for n in 0..budget {
            let Some((frame, meta)) = self.rx.lock().unwrap().frames.pop_front() else {
                return n;
            };
            // The first piece holds the headers; the rest comes in pages.
            let (first, rest) = frame.split_at(frame.len().min(256));
            let pieces: Vec<&[u8]> = core::iter::once(first)
                .chain(rest.chunks(if frame.len() > 9000 { 4096 } else { self.piece }))
                .collect();
            each(&pieces, meta);
        }
        budget
    }

    fn flush(&mut self) {}
}

/// Runs stacks until nothing moves and `done` holds, or until `limit` (ns) from `now` is over.
pub fn run(
    stacks: &mut [&mut Stack],
    now: &Rc<RefCell<u64>>,
    limit: u64,
    mut done: impl FnMut(&mut [&mut Stack], u64) -> bool,
) -> bool {
    let end = *now.borrow() + limit;
    loop {
        let at = *now.borrow();
        let before: Vec<_> = stacks.iter().map(|s| s.host.stats).collect();
        for stack in stacks.iter_mut() {
            while stack.round(at) {}
        }
        if done(stacks, at) {
            return true;
        }
        let moved = stacks.iter().zip(&before).any(|(s, b)| s.host.stats != *b);
        // Something on the way takes a while: no two rounds are at the same time.
        let mut next = at + 50_000;
        if !moved {
            let due = stacks.iter().filter_map(|s| s.deadline()).min();
            // Others than these stacks may have timers too.
            next = due.unwrap_or(u64::MAX).clamp(next, at + 100_000_000);
        }
        if next > end {
            return false;
        }
        *now.borrow_mut() = next;
    }
}
