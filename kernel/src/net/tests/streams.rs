//! TCP over the stack: between two of them with all offloads and without, and with smoltcp's TCP as
//! somebody else's, over a wire that loses, damages, repeats and swaps frames.

use super::wire::{Faults, Queue, caps, pair, run};
use super::*;
use crate::net::nic::RxMeta;
use crate::net::tcp::{ConnId, ListenerId, Options, State};
use core::net::SocketAddr;
use proptest::prelude::*;
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp as other;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};
use std::sync::{Arc, Mutex};

pub fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed)
        .collect()
}

pub fn listen(stack: &mut Stack, at: &str) -> ListenerId {
    let options = Options::default();
    stack
        .engine
        .listen(at.parse().unwrap(), 16, &options)
        .unwrap()
}

pub fn connect(stack: &mut Stack, now: u64, to: SocketAddr) -> ConnId {
    let options = Options::default();
    let Stack { engine, host, .. } = stack;
    let id = engine.connect(now, None, to, &options, host).unwrap();
    stack.settle(now);
    id
}

/// One end of a connection that sends and receives as much as it can.
#[derive(Default)]
pub struct Pump {
    pub to_send: Vec<u8>,
    pub sent: usize,
    pub got: Vec<u8>,
    pub shut: bool,
    pub ended: bool,
}

impl Pump {
    pub fn run(&mut self, stack: &mut Stack, now: u64, id: ConnId) {
        while self.sent < self.to_send.len() {
            match stack.engine.send(id, &self.to_send[self.sent..]) {
                Ok(n) => self.sent += n,
                Err(tcp::Error::WouldBlock) => break,
                Err(e) => panic!("{e}"),
            }
        }
        if self.sent == self.to_send.len() && !self.shut {
            let shut = stack.engine.shutdown(id, tcp::Shutdown::Write);
            self.shut = shut.is_ok();
        }
        let mut buf = [0; 20_000];
        loop {
            match stack.engine.recv(id, &mut buf) {
                Ok(0) => {
                    self.ended = true;
                    break;
                }
                Ok(n) => self.got.extend(&buf[..n]),
                Err(tcp::Error::WouldBlock | tcp::Error::NotConnected) => break,
                Err(e) => panic!("{e}"),
            }
        }
        stack.settle(now);
    }
}

/// What has been acknowledged while nobody looked is not sent again, whoever comes first: a second
/// end of a connection would be answered, and that by a reset.
#[test]
fn what_came_goes_before_what_is_overdue() {
    let (a, b) = pair(caps(1), caps(2), false);
    let tap = Arc::clone(&a.tx);
    let mut a = stack("segue.ip=10.0.0.1/24", a);
    let mut b = stack("segue.ip=10.0.0.2/24", b);
    let (now, to) = (clock(), "10.0.0.2:80");
    let listener = listen(&mut b, to);
    let client = connect(&mut a, 1, to.parse().unwrap());
    let mut server = None;
    assert!(run(&mut [&mut a, &mut b], &now, SECOND, |s, _| {
        server = server.or_else(|| s[1].engine.accept(listener).ok());
        server.is_some() && s[0].engine.state(client) == Ok(State::ESTABLISHED)
    }));
    let begin = *now.borrow();
    assert_eq!(a.engine.send(client, b"once"), Ok(4));
    a.settle(begin);
    while b.round(begin) {}
    // The acknowledgement, after the time of a delayed one.
    let later = begin + SECOND / 2;
    while b.round(later) {}
    tap.lock().unwrap().tap = Some(Vec::new());
    let late = begin + 20 * SECOND;
    a.settle(late);
    while a.round(late) {}
    let sent = tap.lock().unwrap().tap.take().unwrap();
    let segments = sent.iter().filter(|f| f[12..14] == [8, 0] && f[23] == 6);
    assert_eq!(segments.count(), 0);
}

fn exchange(a: &mut Stack, b: &mut Stack, to: &str, len: usize, limit: u64) -> u64 {
    let now = clock();
    let to: SocketAddr = to.parse().unwrap();
    let listener = listen(b, &to.to_string());
    let mut up = Pump {
        to_send: bytes(len, 1),
        ..Pump::default()
    };
    let mut down = Pump {
        to_send: bytes(len / 2 + 1, 2),
        ..Pump::default()
    };
    let client = connect(a, 1, to);
    let mut server = None;
    let done = run(&mut [a, b], &now, limit, |s, now| {
        if server.is_none() {
            server = s[1].engine.accept(listener).ok();
        }
        if s[0].engine.state(client) != Ok(State::SYN_SENT) {
            up.run(s[0], now, client);
        }
        if let Some(id) = server {
            down.run(s[1], now, id);
        }
        up.ended && down.ended
    });
    assert!(
        done,
        "{} of {}, {} of {}: {:?} {:?}",
        down.got.len(),
        up.to_send.len(),
        up.got.len(),
        down.to_send.len(),
        a.engine.stats(),
        b.engine.stats(),
    );
    assert!(down.got == up.to_send && up.got == down.to_send);
    let took = *now.borrow();
    let server = server.unwrap();
    assert_eq!(a.engine.remote_addr(client), Ok(to));
    a.engine.close(took, client).unwrap();
    b.engine.close(took, server).unwrap();
    took
}

#[test]
fn all_offloads_and_none() {
    for bits in 0..16u8 {
        let (csum, gso, passes, v6) = (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0, bits & 8 != 0);
        if gso && !csum {
            continue;
        }
        let mut c = caps(1);
        (c.csum_tx, c.csum6_tx) = (csum, csum);
        if gso {
            (c.gso4_max, c.gso6_max) = (65_000, 65_000);
        }
        let (mut a, mut b) = two(
            c,
            crate::net::nic::Caps {
                mac: caps(2).mac,
                ..c
            },
            passes,
        );
        let to = if v6 { "[fd00::2]:80" } else { "10.0.0.2:80" };
        exchange(&mut a, &mut b, to, 1_000_000, 60 * SECOND);
        for s in [&a, &b] {
            let (t, n) = (s.engine.stats(), s.host.stats);
            assert_eq!(
                (t.retransmits, t.malformed, n.rx_dropped, n.tx_dropped),
                (0, 0, 0, 0)
            );
        }
        if gso {
            // Many segments in one.
            assert!(
                a.engine.stats().segments_out < 300,
                "{:?}",
                a.engine.stats()
            );
        }
    }
}

#[test]
fn to_itself() {
    for to in ["127.0.0.1:80", "[::1]:81", "10.0.0.1:82", "[fd00::1]:83"] {
        let (mut a, _) = two(caps(1), caps(2), false);
        let to: SocketAddr = to.parse().unwrap();
        let now = clock();
        let listener = listen(&mut a, &to.to_string());
        let client = connect(&mut a, 1, to);
        let (mut up, mut down) = (Pump::default(), Pump::default());
        up.to_send = bytes(3_000_000, 3);
        let mut server = None;
        let before = a.host.stats.tx_frames;
        let done = run(&mut [&mut a], &now, 60 * SECOND, |s, now| {
            server = server.or(s[0].engine.accept(listener).ok());
            up.run(s[0], now, client);
            if let Some(id) = server {
                down.run(s[0], now, id);
            }
            up.ended && down.ended
        });
        assert!(done && down.got == up.to_send);
        assert_eq!(a.engine.local_addr(client).unwrap().ip(), to.ip());
        assert!(
            a.host.stats.tx_frames - before <= 3,
            "router solicitations only"
        );
    }
}

#[test]
fn nobody_listens_and_nobody_is_there() {
    let (mut a, mut b) = two(caps(1), caps(2), false);
    let now = clock();
    for (to, error, limit) in [
        ("10.0.0.2:9", tcp::Error::Refused, 100_000_000),
        ("[fd00::2]:9", tcp::Error::Refused, 100_000_000),
        ("127.0.0.1:9", tcp::Error::Refused, 100_000_000),
        ("10.0.0.99:9", tcp::Error::HostUnreachable, 4 * SECOND),
    ] {
        let id = connect(&mut a, *now.borrow(), to.parse().unwrap());
        let mut end = None;
        run(&mut [&mut a, &mut b], &now, limit, |s, _| {
            end = s[0].engine.take_error(id).unwrap();
            end.is_some()
        });
        assert_eq!(end, Some(error), "{to}");
    }
    let Stack { engine, host, .. } = &mut a;
    let far = "8.8.8.8:1".parse().unwrap();
    let refused = engine.connect(*now.borrow(), None, far, &Options::default(), host);
    assert_eq!(refused, Err(tcp::Error::NetUnreachable));
}

#[test]
fn a_full_device_stops_nobody_for_good() {
    let (a, b) = pair(caps(1), caps(2), false);
    a.tx.lock().unwrap().room = 3;
    b.tx.lock().unwrap().room = 2;
    let mut a = stack("segue.ip=10.0.0.1/24", a);
    let mut b = stack("segue.ip=10.0.0.2/24", b);
    exchange(&mut a, &mut b, "10.0.0.2:80", 300_000, 300 * SECOND);
}

/// smoltcp's end of the wire.
struct Plug {
    rx: Arc<Mutex<Queue>>,
    tx: Arc<Mutex<Queue>>,
}
struct Rx(Vec<u8>);
struct Tx(Arc<Mutex<Queue>>);

impl RxToken for Rx {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Tx {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let r = f(&mut frame);
        self.0.lock().unwrap().put(frame, RxMeta::default());
        r
    }
}

impl Device for Plug {
    type RxToken<'a> = Rx;
    type TxToken<'a> = Tx;
    fn receive(&mut self, _: Instant) -> Option<(Rx, Tx)> {
        let (frame, _) = self.rx.lock().unwrap().frames.pop_front()?;
        Some((Rx(frame), Tx(Arc::clone(&self.tx))))
    }
    fn transmit(&mut self, _: Instant) -> Option<Tx> {
        Some(Tx(Arc::clone(&self.tx)))
    }
    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ethernet;
        caps.max_transmission_unit = 1514;
        caps
    }
}

fn with_smoltcp(faults: Faults, seed: u64, v6: bool, we_listen: bool, len: usize) {
    let (ours, theirs) = pair(caps(1), caps(2), false);
    for (n, q) in [&theirs.rx, &theirs.tx].into_iter().enumerate() {
        let mut q = q.lock().unwrap();
        q.faults = faults;
        q.seed = seed.wrapping_add(n as u64);
    }
    let mut plug = Plug {
        rx: theirs.rx,
        tx: theirs.tx,
    };
    let mut us = stack("segue.ip=10.0.0.1/24,fd00::1/64", ours);
    let address = HardwareAddress::Ethernet(EthernetAddress(caps(2).mac));
    let config = smoltcp::iface::Config::new(address);
    let mut them = Interface::new(config, &mut plug, Instant::ZERO);
    them.update_ip_addrs(|a| {
        a.push(IpCidr::new("10.0.0.2".parse().unwrap(), 24))
            .unwrap();
        a.push(IpCidr::new("fd00::2".parse().unwrap(), 64)).unwrap();
    });
    let buffer = || other::SocketBuffer::new(vec![0; 60_000]);
    let mut sockets = SocketSet::new(Vec::new());
    let handle = sockets.add(other::Socket::new(buffer(), buffer()));
    let now = clock();
    let (our_address, their_address) = if v6 {
        ("[fd00::1]:80", "[fd00::2]:80")
    } else {
        ("10.0.0.1:80", "10.0.0.2:80")
    };
    let mut id = None;
    let listener = we_listen.then(|| listen(&mut us, our_address));
    let socket = sockets.get_mut::<other::Socket<'_>>(handle);
    if we_listen {
        let to: SocketAddr = our_address.parse().unwrap();
        socket.connect(them.context(), to, 4000).unwrap();
    } else {
        socket.listen(80).unwrap();
        id = Some(connect(&mut us, 1, their_address.parse().unwrap()));
    }
    let mut up = Pump {
        to_send: bytes(len, 5),
        ..Pump::default()
    };
    let down = bytes(len / 2, 6);
    let (mut sent, mut got) = (0, Vec::<u8>::new());
    let done = run(&mut [&mut us], &now, 3000 * SECOND, |s, now| {
        let at = Instant::from_micros((now / 1000) as i64);
        them.poll(at, &mut plug, &mut sockets);
        let socket = sockets.get_mut::<other::Socket<'_>>(handle);
        if socket.can_send() && sent < down.len() {
            sent += socket.send_slice(&down[sent..]).unwrap();
        } else if socket.may_send() && sent == down.len() {
            socket.close();
        }
        while socket.can_recv() {
            socket
                .recv(|b| {
                    got.extend(&b[..]);
                    (b.len(), ())
                })
                .unwrap();
        }
        them.poll(at, &mut plug, &mut sockets);
        if let (None, Some(l)) = (id, listener) {
            id = s[0].engine.accept(l).ok();
        }
        if let Some(id) = id
            && s[0].engine.state(id) != Ok(State::SYN_SENT)
        {
            up.run(s[0], now, id);
        }
        // Time goes on for them too.
        up.ended && got.len() == up.to_send.len()
    });
    assert!(
        done,
        "{} of {len}, {} of {}: {:?}",
        got.len(),
        up.got.len(),
        down.len(),
        us.engine.stats()
    );
    assert!(got == up.to_send && up.got == down);
}

#[test]
fn smoltcp_understands_us() {
    for bits in 0..4 {
        with_smoltcp(Faults::default(), 1, bits & 1 != 0, bits & 2 != 0, 300_000);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn no_byte_is_lost_on_a_bad_wire(
        seed: u64, v6: bool, we_listen: bool, passes: bool, gso: bool,
        lost in 0u64..60, damaged in 0u64..30, twice in 0u64..60, overtaken in 0u64..60,
    ) {
        let faults = Faults { lost, damaged, twice, overtaken };
        with_smoltcp(faults, seed, v6, we_listen, 60_000);
        let mut c = caps(1);
        c.csum_tx = true;
        c.csum6_tx = true;
        if gso {
            (c.gso4_max, c.gso6_max) = (60_000, 60_000);
        }
        let (a, b) = pair(c, caps(2), passes);
        for (n, q) in [&a.tx, &b.tx].into_iter().enumerate() {
            let mut q = q.lock().unwrap();
            q.faults = faults;
            // A frame that never left the host is not damaged.
            q.faults.damaged = if passes { 0 } else { damaged };
            q.seed = seed.wrapping_add(n as u64);
        }
        let mut a = stack("segue.ip=10.0.0.1/24,fd00::1/64", a);
        let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", b);
        let to = if v6 { "[fd00::2]:80" } else { "10.0.0.2:80" };
        exchange(&mut a, &mut b, to, 200_000, 3000 * SECOND);
    }
}
