//! Two engines over a network that loses, repeats, delays, and changes the order.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::super::wire::{FIN, Header, MIN_HEADER, PSH};
use super::*;

#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Of a thousand packets.
    loss: u64,
    twice: u64,
    late: u64,
    /// Times the link is full.
    full: u64,
    /// ns.
    delay: u64,
    jitter: u64,
}

struct Packet {
    src: SocketAddr,
    dst: SocketAddr,
    header: Vec<u8>,
    payload: Vec<u8>,
}

struct Net {
    weather: Weather,
    random: u64,
    count: u64,
    flying: BTreeMap<(u64, u64), (usize, Packet)>,
    v6: bool,
    mtu: u16,
    gso_max: u32,
    refused: [bool; 2],
}

impl Net {
    fn random(&mut self, below: u64) -> u64 {
        // xorshift64*
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % below
    }

    fn launch(&mut self, now: u64, to: usize, packet: impl Fn() -> Packet) {
        let weather = self.weather;
        if self.random(1000) < weather.loss {
            return;
        }
        let copies = if self.random(1000) < weather.twice {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let mut at = now + weather.delay + self.random(weather.jitter + 1);
            if self.random(1000) < weather.late {
                at += weather.delay * 2 + self.random(5 * MS);
            }
            self.count += 1;
            self.flying.insert((at, self.count), (to, packet()));
        }
    }
}

fn address(side: usize, v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, side as u16 + 1).into()
    } else {
        Ipv4Addr::new(10, 0, 0, side as u8 + 1).into()
    }
}

struct Side<'a> {
    side: usize,
    now: u64,
    net: &'a mut Net,
}

impl Link for Side<'_> {
    fn path(&self, _: IpAddr) -> Option<Path> {
        let (mtu, gso_max) = (self.net.mtu, self.net.gso_max);
        Some(Path {
            local: address(self.side, self.net.v6),
            mtu,
            gso_max,
        })
    }

    fn send(&mut self, segment: &OutSegment<'_>) -> bool {
        if self.net.random(1000) < self.net.weather.full {
            self.net.refused[self.side] = true;
            return false;
        }
        let payload = segment.payload.concat();
        let mss = usize::from(segment.mss).max(1);
        let ip = if self.net.v6 { 40 } else { 20 };
        assert!(self.net.gso_max > 0 || payload.len() <= mss);
        assert!(payload.len() <= mss.max(self.net.gso_max as usize));
        assert!(ip + segment.header.len() + payload.len().min(mss) <= self.net.mtu.into());
        let pieces = payload.len().div_ceil(mss).max(1);
        for n in 0..pieces {
            let mut header = segment.header.to_vec();
            let seq = Header::parse(&header).unwrap().seq + (n * mss) as u32;
            header[4..8].copy_from_slice(&seq.0.to_be_bytes());
            if n + 1 < pieces {
                header[13] &= !(FIN | PSH);
            }
            assert!(header.len() >= MIN_HEADER);
            let piece = payload[n * mss..payload.len().min((n + 1) * mss)].to_vec();
            let (src, dst) = (segment.src, segment.dst);
            self.net.launch(self.now, 1 - self.side, || Packet {
                src,
                dst,
                header: header.clone(),
                payload: piece.clone(),
            });
        }
        true
    }
}

struct World {
    now: u64,
    engines: [Engine; 2],
    net: Net,
    /// Whether invariants are checked at each step.
    checks: bool,
}

impl World {
    fn new(configs: [Config; 2], weather: Weather, seed: u64) -> Self {
        let [a, b] = configs;
        Self {
            now: SECOND,
            engines: [Engine::new(a, [1; 32]), Engine::new(b, [2; 32])],
            net: Net {
                weather,
                random: seed | 1,
                count: 0,
                flying: BTreeMap::new(),
                v6: seed.is_multiple_of(2),
                mtu: 1500,
                gso_max: if seed.is_multiple_of(3) { 0 } else { 60_000 },
                refused: [false; 2],
            },
            checks: true,
        }
    }

    /// To the next thing that happens. `false`: nothing ever will.
    fn step(&mut self) -> bool {
        for side in 0..2 {
            let mut link = Side {
                side,
                now: self.now,
                net: &mut self.net,
            };
            if std::mem::take(&mut link.net.refused[side]) {
                self.engines[side].unblocked(self.now, &mut link);
            } else {
                self.engines[side].flush(self.now, &mut link);
            }
            if self.checks {
                self.engines[side].check();
            }
        }
        if self.net.refused.contains(&true) {
            self.now += 1000;
            return true;
        }
        let packet = self.net.flying.keys().next().map(|&(at, _)| at);
        let timers = self.engines.iter().filter_map(Engine::deadline).min();
        let Some(next) = packet.into_iter().chain(timers).min() else {
            return false;
        };
        self.now = self.now.max(next);
        while let Some(entry) = self.net.flying.first_entry() {
            if entry.key().0 > self.now {
                break;
            }
            let (side, packet) = entry.remove();
            let mut link = Side {
                side,
                now: self.now,
                net: &mut self.net,
            };
            // In two pieces, as from a ring.
            let (front, back) = packet.payload.split_at(packet.payload.len() / 3);
            let segment = Segment {
                src: packet.src,
                dst: packet.dst,
                header: &packet.header,
                payload: &[front, back],
            };
            self.engines[side].input(self.now, &segment, &mut link);
            if self.checks {
                self.engines[side].check();
            }
        }
        for side in 0..2 {
            let mut link = Side {
                side,
                now: self.now,
                net: &mut self.net,
            };
            if self.engines[side]
                .deadline()
                .is_some_and(|at| at <= self.now)
            {
                self.engines[side].tick(self.now, &mut link);
            }
        }
        true
    }
}

/// An app that writes `total` bytes, shuts down, reads to the end and closes.
struct App {
    id: Option<ConnId>,
    total: usize,
    written: usize,
    read: usize,
    shut: bool,
    ended: bool,
    closed: bool,
    /// The most it reads in one turn.
    appetite: usize,
}

impl App {
    fn new(total: usize, appetite: usize) -> Self {
        let id = None;
        Self {
            id,
            total,
            written: 0,
            read: 0,
            shut: false,
            ended: false,
            closed: false,
            appetite,
        }
    }

    fn run(&mut self, engine: &mut Engine, now: u64) {
        let Some(id) = self.id.filter(|_| !self.closed) else {
            return;
        };
        while self.written < self.total {
            let end = self.total.min(self.written + 5000);
            let chunk: Vec<u8> = (self.written..end).map(pattern).collect();
            match engine.send(id, &chunk) {
                Ok(len) => self.written += len,
                Err(Error::WouldBlock | Error::NoBuffers) => break,
                Err(error) => panic!("write after {} bytes: {error}", self.written),
            }
        }
        if self.written == self.total && !self.shut {
            self.shut = match engine.shutdown(id, Shutdown::Write) {
                Ok(()) => true,
                Err(Error::NotConnected) => return,
                Err(error) => panic!("shutdown: {error}"),
            };
        }
        let mut buffer = vec![0; self.appetite];
        match engine.recv(id, &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(len) => {
                for (n, &byte) in buffer[..len].iter().enumerate() {
                    assert_eq!(
                        byte,
                        pattern(self.read + n),
                        "byte {} of a stream",
                        self.read + n
                    );
                }
                self.read += len;
            }
            Err(Error::WouldBlock | Error::NotConnected) => {}
            Err(error) => panic!("read after {} bytes: {error}", self.read),
        }
        if self.ended && self.shut && engine.unsent(id) == Ok(0) {
            engine.close(now, id).unwrap();
            self.closed = true;
        }
    }
}

/// Moves bytes both ways; gives the time it took, ns.
fn transfer(
    configs: [Config; 2],
    weather: Weather,
    seed: u64,
    lens: [usize; 2],
    appetite: usize,
) -> u64 {
    let mut world = World::new(configs, weather, seed);
    let v6 = world.net.v6;
    let at = SocketAddr::new(address(1, v6), 80);
    let listener = world.engines[1].listen(at, 4, &Options::default()).unwrap();
    let link = Side {
        side: 0,
        now: world.now,
        net: &mut world.net,
    };
    let id = world.engines[0]
        .connect(SECOND, None, at, &Options::default(), &link)
        .unwrap();
    let mut apps = [App::new(lens[0], appetite), App::new(lens[1], appetite)];
    apps[0].id = Some(id);
    let mut took = None;
    let mut steps = 0;
    loop {
        let more = world.step();
        if !more && apps.iter().all(|app| app.closed) {
            break;
        }
        steps += 1;
        assert!(steps < 3_000_000, "no end");
        if apps[1].id.is_none() {
            apps[1].id = world.engines[1].accept(listener).ok();
        }
        let now = world.now;
        for (app, engine) in apps.iter_mut().zip(&mut world.engines) {
            app.run(engine, now);
            engine.events().for_each(drop);
        }
        // A slow reader comes back without being called.
        if !more {
            world.now += MS;
        }
        if took.is_none() && apps.iter().all(|app| app.closed) {
            took = Some(world.now - SECOND);
        }
    }
    assert_eq!([apps[1].read, apps[0].read], lens);
    for engine in &world.engines {
        let stats = engine.stats();
        assert_eq!((stats.connections, stats.buffer_bytes), (0, 0));
    }
    took.expect("both ends close")
}

#[test]
fn one_connection_gets_a_share_of_the_memory() {
    let sizes = |bytes| {
        let config = Config::for_memory(bytes);
        (config.recv_buffer, config.buffer_memory)
    };
    assert_eq!(sizes(1 << 20), (256 << 10, 1 << 20));
    assert_eq!(sizes(8 << 20), (512 << 10, 8 << 20));
    assert_eq!(sizes(usize::MAX), (1 << 20, 16 << 20));
}

/// Patient enough for bad weather.
fn patient() -> Config {
    Config {
        syn_retries: 14,
        syn_ack_retries: 14,
        orphan_give_up: 3000 * SECOND,
        give_up: 6000 * SECOND,
        initial_rto: 300 * MS,
        max_rto: 10 * SECOND,
        buffer_memory: 1 << 20,
        ..Config::default()
    }
}

fn config() -> impl Strategy<Value = Config> {
    let sizes = (2048u32..300_000, 2048u32..1_200_000);
    (sizes, any::<[bool; 4]>()).prop_map(|((send, recv), [timestamps, sack, scale, reno])| Config {
        send_buffer: send,
        recv_buffer: recv,
        timestamps,
        sack,
        window_scale: scale,
        congestion: if reno {
            Algorithm::Reno
        } else {
            Algorithm::Cubic
        },
        ..patient()
    })
}

fn weather() -> impl Strategy<Value = Weather> {
    let chances = (0u64..150, 0u64..200, 0u64..200, 0u64..100);
    (chances, 0u64..30_000_000, 0u64..3_000_000).prop_map(
        |((loss, twice, late, full), delay, jitter)| Weather {
            loss,
            twice,
            late,
            full,
            delay,
            jitter,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases / 2))]

    #[test]
    fn bytes_in_are_bytes_out(
        configs in [config(), config()],
        weather in weather(),
        seed: u64,
        lens in [0usize..150_000, 0usize..150_000],
        appetite in 500usize..20_000,
    ) {
        let took = transfer(configs, weather, seed, lens, appetite);
        prop_assert!(took < 3000 * SECOND, "took {} s", took / SECOND);
    }
}

const FAIR: Weather = Weather {
    loss: 0,
    twice: 0,
    late: 0,
    full: 0,
    delay: 10 * MS,
    jitter: 0,
};

#[test]
fn fair_weather_is_fast() {
    // 2 MB in 256 KiB windows with a round trip of 20 ms: 8 windows and slow start.
    let took = transfer([patient(); 2], FAIR, 1, [2_000_000, 0], 100_000);
    assert!(took < 500 * MS, "{} ms", took / MS);
}

#[test]
fn sack_mends_many_losses_without_timeouts() {
    let weather = Weather { loss: 10, ..FAIR };
    let took = transfer([patient(); 2], weather, 5, [2_000_000, 0], 100_000);
    assert!(took < 6 * SECOND, "{} ms", took / MS);
}

#[test]
fn both_call_at_once() {
    let mut world = World::new([patient(); 2], FAIR, 1);
    let ends = [
        SocketAddr::new(address(0, false), 1000),
        SocketAddr::new(address(1, false), 1000),
    ];
    let mut apps = [App::new(30_000, 9000), App::new(70_000, 9000)];
    for side in 0..2 {
        let link = Side {
            side,
            now: world.now,
            net: &mut world.net,
        };
        let (local, remote) = (Some(ends[side]), ends[1 - side]);
        let id = world.engines[side].connect(SECOND, local, remote, &Options::default(), &link);
        apps[side].id = id.ok();
    }
    while world.step() {
        let now = world.now;
        apps.iter_mut()
            .zip(&mut world.engines)
            .for_each(|(app, engine)| app.run(engine, now));
    }
    assert_eq!((apps[0].read, apps[1].read), (70_000, 30_000));
    assert!(
        world
            .engines
            .iter()
            .all(|engine| engine.stats().connections == 0)
    );
}

/// A thousand connections that wait hold no ring, and none is looked at for another's sake.
#[test]
fn idle_connections_are_cheap() {
    let mut world = World::new([patient(); 2], FAIR, 1);
    world.checks = false;
    let at = SocketAddr::new(address(1, false), 80);
    let listener = world.engines[1]
        .listen(at, 1000, &Options::default())
        .unwrap();
    let mut ids = Vec::new();
    for _ in 0..1000 {
        let link = Side {
            side: 0,
            now: world.now,
            net: &mut world.net,
        };
        let now = world.now;
        ids.push(
            world.engines[0]
                .connect(now, None, at, &Options::default(), &link)
                .unwrap(),
        );
    }
    let mut accepted = Vec::new();
    for _ in 0..20 {
        world.step();
        while let Ok(id) = world.engines[1].accept(listener) {
            accepted.push(id);
        }
    }
    assert_eq!(accepted.len(), 1000);
    let ports: std::collections::BTreeSet<u16> = ids
        .iter()
        .map(|&id| world.engines[0].local_addr(id).unwrap().port())
        .collect();
    assert_eq!(ports.len(), 1000);
    assert_eq!(world.engines[1].stats().buffer_bytes, 0);
    assert_eq!(world.engines[1].stats().connections, 1000);
    // Nothing wakes them either.
    assert_eq!(
        world.engines[1]
            .deadline()
            .filter(|&at| at > world.now + 2 * SECOND),
        None
    );
}
