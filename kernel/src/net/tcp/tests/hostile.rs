//! A live engine fed with anything: it does not panic, and its invariants hold.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::super::seq::Seq;
use super::super::wire::Header;
use super::*;

const US: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 80);

/// Keeps the last sequence and acknowledgement number sent to each port, as an attacker on the path
/// would.
#[derive(Default)]
struct Seen {
    last: BTreeMap<u16, (Seq, Seq)>,
    full: bool,
}

impl Link for Seen {
    fn path(&self, _: IpAddr) -> Option<Path> {
        Some(Path {
            local: US.ip(),
            mtu: 1500,
            gso_max: 20_000,
        })
    }

    fn send(&mut self, segment: &OutSegment<'_>) -> bool {
        let header = Header::parse(segment.header).expect("a header of ours");
        let len: usize = segment.payload.iter().map(|piece| piece.len()).sum();
        self.last
            .insert(segment.dst.port(), (header.seq + len as u32, header.ack));
        !self.full
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Any bytes as header.
    Raw(Vec<u8>, usize),
    /// A header whose numbers are near the true ones.
    Near {
        port: u16,
        header: Header,
        seq: i32,
        ack: i32,
        len: usize,
    },
    Wait(u64),
    Flush,
    Full(bool),
    Connect(u16),
    Accept,
    Send(usize, usize),
    Recv(usize, usize),
    Shutdown(usize, Shutdown),
    Close(usize),
    Abort(usize),
    Icmp(u16, i32, u16),
}

fn near() -> impl Strategy<Value = i32> {
    prop_oneof![4 => Just(0), 2 => -3i32..3000, 1 => -70_000i32..70_000, 1 => any::<i32>()]
}

fn header() -> impl Strategy<Value = Header> {
    let flags = prop_oneof![
        Just(0x10u8),
        Just(0x02),
        Just(0x11),
        Just(0x12),
        Just(0x18),
        any::<u8>()
    ];
    let syn = (
        any::<Option<u16>>(),
        prop::option::of(0u8..15),
        any::<bool>(),
    );
    let rest = (
        any::<Option<(u32, u32)>>(),
        prop::collection::vec((near(), near()), 0..4),
    );
    (flags, any::<u16>(), syn, rest).prop_map(
        |(flags, window, (mss, scale, sack_permitted), (timestamps, sack))| {
            let syn = flags & 2 != 0;
            let mut header = Header {
                flags,
                window,
                mss: mss.filter(|_| syn),
                scale: scale.filter(|_| syn),
                sack_permitted: syn && sack_permitted,
                timestamps,
                ..Header::default()
            };
            for (place, (a, b)) in header.sack.iter_mut().zip(sack) {
                *place = (Seq(a as u32), Seq(b as u32));
                header.sack_count += 1;
            }
            header
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let port = 1u16..6;
    let how = prop_oneof![
        Just(Shutdown::Read),
        Just(Shutdown::Write),
        Just(Shutdown::Both)
    ];
    prop_oneof![
        1 => (prop::collection::vec(any::<u8>(), 0..70), 0usize..3000)
            .prop_map(|(bytes, len)| Step::Raw(bytes, len)),
        12 => (port.clone(), header(), near(), near(), prop_oneof![Just(0usize), 0usize..4000])
            .prop_map(|(port, header, seq, ack, len)| Step::Near { port, header, seq, ack, len }),
        2 => (0u64..100_000_000_000).prop_map(Step::Wait),
        3 => Just(Step::Flush),
        1 => any::<bool>().prop_map(Step::Full),
        1 => port.clone().prop_map(Step::Connect),
        2 => Just(Step::Accept),
        2 => (0usize..8, 0usize..9000).prop_map(|(n, len)| Step::Send(n, len)),
        2 => (0usize..8, 0usize..9000).prop_map(|(n, len)| Step::Recv(n, len)),
        1 => (0usize..8, how).prop_map(|(n, how)| Step::Shutdown(n, how)),
        1 => (0usize..8).prop_map(Step::Close),
        1 => (0usize..8).prop_map(Step::Abort),
        1 => (port, near(), any::<u16>()).prop_map(|(port, seq, mtu)| Step::Icmp(port, seq, mtu)),
    ]
}

fn run(timestamps: bool, sack: bool, steps: Vec<Step>) {
    let config = Config {
        timestamps,
        sack,
        buffer_memory: 64 << 10,
        max_connections: 6,
        max_time_wait: 2,
        recv_buffer: 20_000,
        ..Config::default()
    };
    let mut engine = Engine::new(config, [9; 32]);
    let mut link = Seen::default();
    let listener = engine.listen(US, 2, &Options::default()).unwrap();
    let mut now = 5 * SECOND;
    let mut conns: Vec<ConnId> = Vec::new();
    let bytes = [7; 9000];
    let peer = |port| SocketAddr::new(Ipv4Addr::new(10, 0, 0, 2).into(), port);
    for step in steps {
        let pick = |n: usize| conns.get(n % conns.len().max(1)).copied();
        match step {
            Step::Raw(header, len) => {
                let payload = &[&bytes[..len]];
                let segment = Segment {
                    src: peer(1),
                    dst: US,
                    header: &header,
                    payload,
                };
                engine.input(now, &segment, &mut link);
            }
            Step::Near {
                port,
                mut header,
                seq,
                ack,
                len,
            } => {
                let (ours, theirs) = link.last.get(&port).copied().unwrap_or_default();
                header.seq = theirs + seq as u32;
                header.ack = ours + ack as u32;
                for (start, end) in &mut header.sack {
                    (*start, *end) = (ours + start.0, ours + end.0);
                }
                let emitted = header.emit(port, 80);
                let payload = &[&bytes[..len / 2], &bytes[..len - len / 2]];
                let header = emitted.as_bytes();
                engine.input(
                    now,
                    &Segment {
                        src: peer(port),
                        dst: US,
                        header,
                        payload,
                    },
                    &mut link,
                );
            }
            Step::Wait(ns) => {
                let end = now + ns;
                for _ in 0..100 {
                    let Some(at) = engine.deadline().filter(|&at| at <= end) else {
                        break;
                    };
                    now = now.max(at);
                    engine.tick(now, &mut link);
                    engine.check();
                }
                now = end;
                engine.tick(now, &mut link);
            }
            Step::Flush => engine.flush(now, &mut link),
            Step::Full(full) => {
                link.full = full;
                engine.unblocked(now, &mut link);
            }
            Step::Connect(port) => {
                let options = Options::default();
                conns.extend(engine.connect(now, Some(US), peer(port), &options, &link));
            }
            Step::Accept => conns.extend(engine.accept(listener)),
            Step::Send(n, len) => {
                let _ = pick(n).map(|id| engine.send(id, &bytes[..len]));
            }
            Step::Recv(n, len) => {
                let _ = pick(n).map(|id| engine.recv(id, &mut vec![0; len]));
            }
            Step::Shutdown(n, how) => {
                let _ = pick(n).map(|id| engine.shutdown(id, how));
            }
            Step::Close(n) => {
                let _ = pick(n).map(|id| engine.close(now, id));
            }
            Step::Abort(n) => {
                let _ = pick(n).map(|id| engine.abort(id));
            }
            Step::Icmp(port, seq, mtu) => {
                let (ours, _) = link.last.get(&port).copied().unwrap_or_default();
                engine.icmp(
                    US,
                    peer(port),
                    (ours + seq as u32).0,
                    IcmpError::TooBig { mtu },
                );
            }
        }
        engine.check();
        let events: Vec<Id> = engine.events().collect();
        for id in events {
            assert!(engine.readiness(id).is_ok());
        }
    }
    // Whatever was done to it, it comes to rest when the apps are gone.
    link.full = false;
    engine.unblocked(now, &mut link);
    for id in conns {
        let _ = engine.close(now, id);
    }
    engine.close_listener(listener).unwrap();
    engine.flush(now, &mut link);
    for _ in 0..10_000 {
        let Some(at) = engine.deadline() else { break };
        now = now.max(at);
        engine.tick(now, &mut link);
        engine.check();
    }
    let stats = engine.stats();
    assert_eq!(
        (stats.connections, stats.buffer_bytes, stats.time_wait),
        (0, 0, 0)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases * 2))]

    #[test]
    fn anything_goes(
        timestamps: bool,
        sack: bool,
        steps in prop::collection::vec(step(), 1..150),
    ) {
        run(timestamps, sack, steps);
    }
}
