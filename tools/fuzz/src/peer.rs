//! A network stack and the other end of its wire: what comes out of the one, and frames to put into
//! the other.

use segue_kernel::boot::cmdline::CommandLine;
use segue_kernel::net::config::Config;
use segue_kernel::net::ip::{self, Header, HeaderBuffer, Out, Sum};
use segue_kernel::net::nic::{Caps, Nic, RxMeta, SendError, TxMeta};
use segue_kernel::net::stack::Stack;
use segue_kernel::net::tcp;
use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The stack's Ethernet address, and ours.
pub const ITS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// The stack's address, if it is given one, and ours.
pub const IT: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
pub const WE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2));
pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;

/// As little of TCP as there can be.
pub fn no_tcp() -> tcp::Config {
    tcp::Config {
        max_connections: 1,
        buffer_memory: 8 << 10,
        ..tcp::Config::default()
    }
}

/// What lies on the wire.
#[derive(Debug, Default)]
pub struct Wire {
    /// Frames for the stack.
    pub to_it: VecDeque<(Vec<u8>, RxMeta)>,
    /// Frames of the stack.
    pub from_it: Vec<(Vec<u8>, TxMeta)>,
    /// The device takes nothing.
    pub full: bool,
}

struct Device {
    caps: Caps,
    wire: Arc<Mutex<Wire>>,
}

fn lock(wire: &Mutex<Wire>) -> MutexGuard<'_, Wire> {
    wire.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Nic for Device {
    fn caps(&self) -> Caps {
        self.caps
    }

    fn send(&mut self, pieces: &[&[u8]], meta: TxMeta) -> Result<(), SendError> {
        let mut wire = lock(&self.wire);
        if wire.full {
            return Err(SendError::Full);
        }
        wire.from_it.push((pieces.concat(), meta));
        Ok(())
    }

    fn tx_ready(&self) -> bool {
        !lock(&self.wire).full
    }

    fn receive(&mut self, budget: usize, each: &mut dyn FnMut(&[&[u8]], RxMeta)) -> usize {
        for n in 0..budget {
            let Some((frame, meta)) = lock(&self.wire).to_it.pop_front() else {
                return n;
            };
            // As rings pass them: headers in one piece, the rest in others.
            let (first, rest) = frame.split_at(frame.len().min(256));
            let rest = rest.chunks(4096);
            let pieces: Vec<&[u8]> = std::iter::once(first).chain(rest).collect();
            each(&pieces, meta);
        }
        budget
    }

    fn flush(&mut self) {}
}

/// A stack, its wire and its clock.
pub struct Peer {
    pub stack: Stack,
    pub wire: Arc<Mutex<Wire>>,
    /// In ns.
    pub now: u64,
}

impl Peer {
    /// A stack with this command line, TCP settings, and device.
    pub fn new(line: &str, tcp: tcp::Config, offload: bool) -> Self {
        let caps = Caps {
            mac: ITS_MAC,
            mtu: 1500,
            csum_tx: offload,
            csum6_tx: offload,
            gso4_max: if offload { 60_000 } else { 0 },
            gso6_max: if offload { 60_000 } else { 0 },
        };
        let wire = Arc::new(Mutex::new(Wire::default()));
        let config = Config::read(&CommandLine::from_bytes(line.as_bytes()), |_| ());
        let mut stack = Stack::new(config, tcp, [7; 32], SECOND);
        let device = Device {
            caps,
            wire: Arc::clone(&wire),
        };
        let number = stack.attach(SECOND, Box::new(device));
        assert_eq!(number, Ok(0));
        Self {
            stack,
            wire,
            now: SECOND,
        }
    }

    pub fn wire(&self) -> MutexGuard<'_, Wire> {
        lock(&self.wire)
    }

    /// Puts a frame on the wire.
    pub fn put(&mut self, frame: Vec<u8>) {
        self.wire().to_it.push_back((frame, RxMeta::default()));
    }

    /// Lets the stack work. Questions for our address are answered; other frames go to `each`.
    pub fn turn(&mut self, mut each: impl FnMut(&[u8], TxMeta)) {
        for _ in 0..50 {
            while self.stack.round(self.now) {}
            let frames = std::mem::take(&mut self.wire().from_it);
            if frames.is_empty() {
                return;
            }
            for (frame, meta) in frames {
                match arp_answer(&frame) {
                    Some(answer) => self.put(answer),
                    None => each(&frame, meta),
                }
            }
        }
    }

    /// Goes to the stack's next timer, `most` ns at most.
    pub fn wait(&mut self, most: u64) {
        let due = self.stack.deadline().unwrap_or(u64::MAX);
        self.now = due.clamp(self.now + 1, self.now.saturating_add(most.max(1)));
    }
}

/// The answer to a question for our address.
fn arp_answer(frame: &[u8]) -> Option<Vec<u8>> {
    let question = frame.get(12..42)?;
    let ours = [10, 0, 0, 2];
    if question[..2] != [8, 6] || question[8..10] != [0, 1] || question[26..30] != ours {
        return None;
    }
    let mut answer = Vec::new();
    answer.extend(&frame[6..12]);
    answer.extend(OUR_MAC);
    answer.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    answer.extend(OUR_MAC);
    answer.extend(ours);
    answer.extend(&frame[6..12]);
    answer.extend(&question[16..20]);
    Some(answer)
}

/// A frame to the stack with one IP packet in it.
pub fn packet(src: IpAddr, dst: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let to_all = matches!(dst, IpAddr::V4(a) if a.is_broadcast());
    let mac = if to_all { [0xff; 6] } else { ITS_MAC };
    let mut head = HeaderBuffer::new();
    ip::ethernet(&mut head, OUR_MAC, mac, src.is_ipv6());
    let out = Out {
        src,
        dst,
        protocol,
        hops: 64,
    };
    assert!(ip::header(&mut head, &out, payload.len(), None));
    [&head[..], payload].concat()
}

/// A UDP datagram, without a checksum.
pub fn datagram(src: IpAddr, dst: IpAddr, from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for field in [from, to, payload.len() as u16 + 8, 0] {
        bytes.extend(field.to_be_bytes());
    }
    bytes.extend(payload);
    packet(src, dst, ip::UDP, &bytes)
}

/// Makes the checksums of a frame right, as far as it is one.
pub fn mend(frame: &mut [u8]) {
    let Some(packet) = frame.get_mut(14..) else {
        return;
    };
    if packet.first().is_some_and(|b| b >> 4 == 4) {
        let len = usize::from(packet[0] & 15) * 4;
        if len >= 20 && packet.len() >= len {
            packet[10..12].fill(0);
            let sum = Sum::default().over(&[&packet[..len]]).field();
            packet[10..12].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let Some(h) = ip::parse(packet, packet.len()) else {
        return;
    };
    if h.fragment.is_some() {
        return;
    }
    let Some(payload) = packet.get_mut(h.header..h.header + h.payload) else {
        return;
    };
    let field = match h.protocol {
        ip::TCP => 16,
        ip::UDP => 6,
        ip::ICMP | ip::ICMPV6 => 2,
        _ => return,
    };
    if let Some(place) = payload.get_mut(field..field + 2) {
        place.fill(0);
        let sum = transport_sum(&h, payload).field();
        payload[field..field + 2].copy_from_slice(&sum.to_be_bytes());
    }
}

/// The sum over a transport's packet.
pub fn transport_sum(h: &Header, payload: &[u8]) -> Sum {
    let start = match h.protocol {
        ip::ICMP => Sum::default(),
        protocol => Sum::pseudo(h.src, h.dst, protocol, payload.len()),
    };
    start.over(&[payload])
}

/// The headers and the payload of a frame of the stack's; `None` if there is no IP packet in it.
pub fn parse(frame: &[u8]) -> Option<(Header, &[u8])> {
    if !matches!(frame.get(12..14)?, [8, 0] | [0x86, 0xdd]) {
        return None;
    }
    let packet = &frame[14..];
    let h = ip::parse(packet, packet.len()).expect("what is sent is well formed");
    Some((h, &packet[h.header..h.header + h.payload]))
}
