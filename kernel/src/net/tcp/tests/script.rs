//! Scripts: segments told and expected as text, with numbers relative to each side's first.
//!
//! `FLAGS FROM:TO [ack N] [win N] [sack A-B]… [ts VALUE/ECHO] [mss N] [ws N] [sackok]`, where flags
//! are letters of SFRPA and `FROM:TO` is the payload.

use std::net::Ipv4Addr;

use super::super::wire::{ACK, FIN, Header, PSH, RST, SYN};
use super::*;

const US: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 80);
const THEM: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)), 4000);
const FLAGS: [(u8, char); 5] = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, 'A')];
const THEIR_FIRST: Seq = Seq(0xffff_f000);

use super::super::seq::Seq;

#[derive(Default)]
struct Wire {
    sent: Vec<(Header, usize)>,
    gso_max: u32,
    full: bool,
    mtu: u16,
}

impl Link for Wire {
    fn path(&self, _: IpAddr) -> Option<Path> {
        Some(Path {
            local: US.ip(),
            mtu: self.mtu,
            gso_max: self.gso_max,
        })
    }

    fn send(&mut self, segment: &OutSegment<'_>) -> bool {
        if !self.full {
            let header = Header::parse(segment.header).unwrap();
            let len = segment.payload.iter().map(|piece| piece.len()).sum();
            self.sent.push((header, len));
        }
        !self.full
    }
}

struct Script {
    engine: Engine,
    wire: Wire,
    now: u64,
    /// Our first sequence number, from our SYN.
    ours: Option<Seq>,
    listener: ListenerId,
    /// Whether windows and options are shown.
    more: bool,
    from: SocketAddr,
}

fn plain() -> Config {
    Config {
        timestamps: false,
        sack: false,
        window_scale: false,
        ..Config::default()
    }
}

impl Script {
    fn new(config: Config) -> Self {
        Self::with(config, 8, Options::default())
    }

    fn with(config: Config, backlog: usize, options: Options) -> Self {
        let mut engine = Engine::new(config, [3; 32]);
        let listener = engine.listen(US, backlog, &options).unwrap();
        let wire = Wire {
            mtu: 1040,
            ..Wire::default()
        };
        Self {
            engine,
            wire,
            now: 1000 * SECOND,
            ours: None,
            listener,
            more: false,
            from: THEM,
        }
    }

    /// A connection the peer has opened with these SYN options.
    fn accepted(config: Config, syn: &str) -> (Self, ConnId) {
        let mut script = Self::new(config);
        script.them(&format!("S 0:0 {syn}"));
        assert_eq!(script.us().len(), 1);
        let win = if syn.contains("win") { "" } else { "win 50000" };
        let ts = if syn.contains("ts") { "ts 100/0" } else { "" };
        script.them(&format!("A 1:1 ack 1 {win} {ts}"));
        let id = script.engine.accept(script.listener).unwrap();
        (script, id)
    }

    /// A segment of the peer.
    fn them(&mut self, text: &str) {
        let mut words = text.split_whitespace();
        let flags = words.next().unwrap();
        let (from, to) = words.next().unwrap().split_once(':').unwrap();
        let (from, to): (u32, u32) = (from.parse().unwrap(), to.parse().unwrap());
        let ours = self.ours.unwrap_or(Seq(0));
        let mut header = Header {
            seq: THEIR_FIRST + from,
            window: 50_000,
            ..Header::default()
        };
        header.flags = FLAGS
            .iter()
            .filter(|(_, c)| flags.contains(*c))
            .map(|(bit, _)| bit)
            .sum();
        while let Some(word) = words.next() {
            let mut number = || words.next().unwrap().to_string();
            match word {
                "ack" => header.ack = ours + number().parse::<i64>().unwrap() as u32,
                "win" => header.window = number().parse().unwrap(),
                "mss" => header.mss = Some(number().parse().unwrap()),
                "ws" => header.scale = Some(number().parse().unwrap()),
                "sackok" => header.sack_permitted = true,
                "ts" => {
                    let number = number();
                    let (value, echo) = number.split_once('/').unwrap();
                    header.timestamps = Some((value.parse().unwrap(), echo.parse().unwrap()));
                }
                "sack" => {
                    let number = number();
                    let (a, b) = number.split_once('-').unwrap();
                    let block = (ours + a.parse().unwrap(), ours + b.parse().unwrap());
                    header.sack[usize::from(header.sack_count)] = block;
                    header.sack_count += 1;
                }
                _ => panic!("what is {word}?"),
            }
        }
        let payload: Vec<u8> = (from..to).map(|at| pattern(at as usize)).collect();
        let emitted = header.emit(self.from.port(), US.port());
        let segment = Segment {
            src: self.from,
            dst: US,
            header: emitted.as_bytes(),
            payload: &[&payload],
        };
        self.engine.input(self.now, &segment, &mut self.wire);
        self.engine.check();
    }

    /// What we have sent since the last call.
    fn us(&mut self) -> Vec<String> {
        self.engine.flush(self.now, &mut self.wire);
        self.engine.check();
        let sent = std::mem::take(&mut self.wire.sent);
        sent.iter()
            .map(|(header, len)| self.show(header, *len))
            .collect()
    }

    fn show(&mut self, header: &Header, len: usize) -> String {
        if header.has(SYN) {
            self.ours = Some(header.seq);
        }
        let ours = self.ours.unwrap_or(Seq(0));
        let mut text: String = FLAGS
            .iter()
            .filter(|(f, _)| header.has(*f))
            .map(|(_, c)| c)
            .collect();
        let from = header.seq - ours;
        text += &format!(" {from}:{}", from.wrapping_add(len as u32));
        if header.has(ACK) {
            text += &format!(" ack {}", header.ack - THEIR_FIRST);
        }
        for (start, end) in header.sack_blocks() {
            text += &format!(" sack {}-{}", *start - THEIR_FIRST, *end - THEIR_FIRST);
        }
        if self.more {
            text += &format!(" win {}", header.window);
            text += &header
                .mss
                .map_or(String::new(), |mss| format!(" mss {mss}"));
            text += &header
                .scale
                .map_or(String::new(), |scale| format!(" ws {scale}"));
            text += if header.sack_permitted { " sackok" } else { "" };
            text += if header.timestamps.is_some() {
                " ts"
            } else {
                ""
            };
        }
        text
    }

    /// Lets time pass; what we send in it.
    fn wait(&mut self, ns: u64) -> Vec<String> {
        let end = self.now + ns;
        while let Some(at) = self.engine.deadline().filter(|&at| at <= end) {
            self.now = at.max(self.now);
            self.engine.tick(self.now, &mut self.wire);
        }
        self.now = end;
        self.us()
    }

    fn write(&mut self, id: ConnId, len: usize) {
        let bytes: Vec<u8> = (0..len).map(pattern).collect();
        assert_eq!(self.engine.send(id, &bytes), Ok(len));
    }

    fn read(&mut self, id: ConnId) -> Result<usize, Error> {
        self.engine.recv(id, &mut [0; 100_000])
    }

    fn state(&self, id: ConnId) -> Result<State, Error> {
        self.engine.state(id)
    }
}

const NONE: [&str; 0] = [];

#[test]
fn handshake_data_and_both_closes() {
    let mut script = Script::new(plain());
    script.more = true;
    script.them("S 0:0 mss 900");
    assert_eq!(script.us(), ["SA 0:0 ack 1 win 65535 mss 1000"]);
    script.more = false;
    script.them("A 1:1 ack 1");
    let events: Vec<Id> = script.engine.events().collect();
    assert_eq!(events, [Id::Listener(script.listener)]);
    let id = script.engine.accept(script.listener).unwrap();
    assert_eq!(
        script.engine.accept(script.listener),
        Err(Error::WouldBlock)
    );
    script.them("PA 1:101 ack 1");
    assert_eq!(script.engine.events().collect::<Vec<_>>(), [Id::Conn(id)]);
    assert_eq!(script.read(id), Ok(100));
    // The ACK rides on the answer.
    script.write(id, 50);
    assert_eq!(script.us(), ["PA 1:51 ack 101"]);
    script.them("FA 101:101 ack 51");
    assert_eq!(script.us(), ["A 51:51 ack 102"]);
    assert_eq!(script.state(id), Ok(State::CLOSE_WAIT));
    assert_eq!(script.read(id), Ok(0));
    // Half closed: we may still send.
    script.write(id, 10);
    assert_eq!(script.us(), ["PA 51:61 ack 102"]);
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.us(), ["FA 61:61 ack 102"]);
    assert_eq!(script.state(id), Err(Error::Stale));
    script.them("A 102:102 ack 62");
    assert_eq!(script.us(), NONE);
    assert_eq!(script.engine.stats().connections, 0);
}

#[test]
fn acks_are_delayed_and_every_second_segment_has_one() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.them("A 1:1001 ack 1");
    assert_eq!(script.us(), NONE);
    assert_eq!(script.wait(39 * MS), NONE);
    assert_eq!(script.wait(2 * MS), ["A 1:1 ack 1001"]);
    script.them("A 1001:2001 ack 1");
    script.them("A 2001:3001 ack 1");
    script.them("A 3001:4001 ack 1");
    // One for a batch.
    assert_eq!(script.us(), ["A 1:1 ack 4001"]);
    assert_eq!(script.wait(SECOND), NONE);
    assert_eq!(script.read(id), Ok(4000));
}

#[test]
fn nagle_holds_one_small_segment() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.write(id, 10);
    assert_eq!(script.us(), ["PA 1:11 ack 1"]);
    script.write(id, 10);
    assert_eq!(script.us(), NONE);
    script.write(id, 990);
    assert_eq!(script.us(), ["PA 11:1011 ack 1"]);
    script.write(id, 5);
    script.them("A 1:1 ack 1011");
    assert_eq!(script.us(), ["PA 1011:1016 ack 1"]);
    let options = Options {
        nodelay: true,
        ..Options::default()
    };
    script.engine.set_options(script.now, id, &options).unwrap();
    script.write(id, 5);
    assert_eq!(script.us(), ["PA 1016:1021 ack 1"]);
}

#[test]
fn newreno_mends_two_losses_of_one_window() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.write(id, 8000);
    assert_eq!(script.us().len(), 8);
    script.wait(10 * MS);
    // 1 and 4 are lost.
    script.them("A 1:1 ack 1");
    script.them("A 1:1 ack 1");
    assert_eq!(script.us(), NONE);
    script.them("A 1:1 ack 1");
    assert_eq!(script.us(), ["A 1:1001 ack 1"]);
    script.them("A 1:1 ack 3001");
    assert_eq!(script.us(), ["A 3001:4001 ack 1"]);
    script.them("A 1:1 ack 8001");
    assert_eq!(script.us(), NONE);
    assert_eq!(script.engine.stats().timeouts, 0);
    assert_eq!(script.engine.stats().recoveries, 1);
}

#[test]
fn sack_sends_only_what_is_missing() {
    let config = Config {
        sack: true,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000 sackok");
    script.write(id, 10_000);
    assert_eq!(script.us().len(), 10);
    script.wait(10 * MS);
    // 1 and 3 are lost.
    script.them("A 1:1 ack 1 sack 1001-2001");
    script.them("A 1:1 ack 1 sack 3001-5001 sack 1001-2001");
    script.them("A 1:1 ack 1 sack 3001-7001 sack 1001-2001");
    assert_eq!(script.us(), ["A 1:1001 ack 1", "A 2001:3001 ack 1"]);
    // A block that says what was never sent is no block.
    script.them("A 1:1 ack 1 sack 3001-90001");
    script.them("A 1:1 ack 10001");
    assert_eq!(script.us(), NONE);
}

#[test]
fn what_comes_out_of_order_is_told() {
    let config = Config {
        sack: true,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000 sackok");
    script.them("A 1001:2001 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 1 sack 1001-2001"]);
    script.them("A 3001:4001 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 1 sack 3001-4001 sack 1001-2001"]);
    script.them("FA 4001:4500 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 1 sack 3001-4500 sack 1001-2001"]);
    assert_eq!(script.read(id), Err(Error::WouldBlock));
    script.them("A 1:1001 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 2001 sack 3001-4500"]);
    script.them("A 1501:3501 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 4501"]);
    let mut bytes = vec![0; 5000];
    assert_eq!(script.engine.recv(id, &mut bytes), Ok(4499));
    assert!((0..4499).all(|n| bytes[n] == pattern(n + 1)));
    assert_eq!(script.read(id), Ok(0));
}

#[test]
fn without_sack_each_segment_out_of_order_has_its_ack() {
    let (mut script, _) = Script::accepted(plain(), "mss 1000");
    script.them("A 1001:2001 ack 1");
    script.them("A 2001:3001 ack 1");
    script.them("A 3001:4001 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 1"; 3]);
}

#[test]
fn timer_backs_off_and_gives_up() {
    let config = Config {
        give_up: 20 * SECOND,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000");
    script.write(id, 2500);
    assert_eq!(script.us().len(), 3);
    let start = script.now;
    let mut times = Vec::new();
    while script.state(id) == Ok(State::ESTABLISHED) {
        for segment in script.wait(10 * MS) {
            if segment == "A 1:1001 ack 1" {
                times.push((script.now - start) / MS);
            }
        }
    }
    // From 1 s, for nothing was measured, doubling.
    assert_eq!(times, [1000, 3000, 7000, 15_000]);
    assert_eq!(script.engine.take_error(id), Ok(Some(Error::TimedOut)));
    assert_eq!(script.read(id), Ok(0));
    assert_eq!(script.engine.send(id, b"x"), Err(Error::Closed));
}

#[test]
fn closed_window_is_probed_for_as_long_as_the_peer_answers() {
    let config = Config {
        give_up: 20 * SECOND,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000");
    script.them("A 1:1 ack 1 win 0");
    script.write(id, 500);
    assert_eq!(script.us(), NONE);
    let mut probes = 0;
    for _ in 0..300 {
        for segment in script.wait(SECOND) {
            assert_eq!(segment, "A 0:0 ack 1");
            probes += 1;
            script.them("A 1:1 ack 1 win 0");
        }
    }
    assert!((5..15).contains(&probes), "{probes} probes in 300 s");
    // A silly window is not used, unless nothing better comes.
    script.them("A 1:1 ack 1 win 100");
    assert_eq!(script.us(), NONE);
    let forced = (0..61)
        .map(|_| script.wait(SECOND))
        .find(|sent| !sent.is_empty());
    assert_eq!(forced.unwrap(), ["A 1:101 ack 1"]);
    script.them("A 1:1 ack 101 win 1000");
    assert_eq!(script.us(), ["PA 101:501 ack 1"]);
}

#[test]
fn our_window_closes_and_opens_in_worthwhile_steps() {
    let config = Config {
        recv_buffer: 4096,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000");
    script.more = true;
    script.them("A 1:1001 ack 1");
    script.them("A 1001:4097 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 4097 win 0"]);
    // There is no room for more.
    script.them("A 4097:5097 ack 1");
    assert_eq!(script.us(), ["A 1:1 ack 4097 win 0"]);
    assert_eq!(script.engine.recv(id, &mut [0; 100]), Ok(100));
    assert_eq!(script.us(), NONE);
    assert_eq!(script.engine.recv(id, &mut [0; 3000]), Ok(3000));
    assert_eq!(script.us(), ["A 1:1 ack 4097 win 3100"]);
}

#[test]
fn our_window_grows_by_what_is_read() {
    const STEP: u32 = 32 << 10;
    let config = Config {
        recv_buffer: 1 << 20,
        window_scale: true,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000 ws 0");
    // As much as is taken while nobody reads, in KiB.
    let fill = |script: &mut Script| {
        let end = |script: &Script| {
            let block = &script.engine.blocks[id.slot];
            block.rcv_nxt - block.irs
        };
        let (begin, mut refused) = (end(script), 0);
        while refused < 2 {
            let at = end(script);
            script.them(&format!("A {at}:{} ack 1", at + STEP));
            script.us();
            refused += u32::from(end(script) == at);
        }
        (end(script) - begin) >> 10
    };
    for expected in [256, 256, 512, 1024, 1024] {
        assert_eq!(fill(&mut script), expected);
        while script.read(id).is_ok_and(|len| len > 0) {}
    }
}

#[test]
fn time_wait_lasts_and_makes_room() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.us(), ["FA 1:1 ack 1"]);
    script.them("A 1:1 ack 2");
    script.them("FA 1:1 ack 2");
    assert_eq!(script.us(), ["A 2:2 ack 2"]);
    assert_eq!(script.engine.stats().time_wait, 1);
    // FIN again: the ACK was lost. RST: RFC 1337.
    script.wait(50 * SECOND);
    script.them("FA 1:1 ack 2");
    assert_eq!(script.us(), ["A 2:2 ack 2"]);
    script.them("R 2:2");
    script.wait(50 * SECOND);
    assert_eq!(script.engine.stats().time_wait, 1);
    // An old SYN is not a new connection; one beyond the old numbers is, and ours are beyond too.
    script.them("S 0:0");
    assert_eq!(script.us(), ["A 2:2 ack 2"]);
    let before = script.ours.unwrap();
    script.them("S 500:500");
    let answer = script.us();
    assert_eq!(answer.len(), 1);
    assert!(answer[0].starts_with("SA") && answer[0].ends_with("ack 501"));
    assert!(script.ours.unwrap().gt(before + 2));
    assert_eq!(script.engine.stats().time_wait, 0);
    assert_eq!(script.wait(300 * SECOND).len(), 5);
    assert_eq!(script.engine.stats().connections, 0);
}

#[test]
fn resets_count_only_at_the_exact_number() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.them("R 90000:90000");
    assert_eq!(script.us(), NONE);
    script.them("R 2:2");
    assert_eq!(script.us(), ["A 1:1 ack 1"]);
    assert_eq!(script.state(id), Ok(State::ESTABLISHED));
    script.them("PA 1:11 ack 1");
    script.them("R 11:11");
    assert_eq!(script.state(id), Ok(State::CLOSED));
    // What had come can be read first.
    assert_eq!(script.read(id), Ok(10));
    assert_eq!(script.read(id), Err(Error::Reset));
    assert_eq!(script.read(id), Ok(0));
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.engine.stats().connections, 0);
}

#[test]
fn challenge_acks_have_a_limit() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    let mut answers = 0;
    for n in 0..100 {
        script.them(
            [
                "S 5:5",
                "SA 1:1 ack 1",
                "A 1:1 ack 70000",
                "A 1:1 ack -70000",
            ][n % 4],
        );
        for answer in script.us() {
            assert_eq!(answer, "A 1:1 ack 1");
            answers += 1;
        }
        script.wait(MS);
    }
    assert_eq!(answers, 10);
    script.wait(SECOND);
    script.them("S 5:5");
    assert_eq!(script.us(), ["A 1:1 ack 1"]);
    assert_eq!(script.state(id), Ok(State::ESTABLISHED));
}

#[test]
fn paws_refuses_old_segments() {
    let config = Config {
        timestamps: true,
        ..plain()
    };
    let (mut script, id) = Script::accepted(config, "mss 1000 ts 100/0");
    script.them("PA 1:11 ack 1 ts 200/0");
    assert_eq!(script.read(id), Ok(10));
    script.them("PA 11:21 ack 1 ts 150/0");
    assert_eq!(script.us(), ["A 1:1 ack 11"]);
    assert_eq!(script.read(id), Err(Error::WouldBlock));
    // Nor does it take one without, but for RST.
    script.them("PA 11:21 ack 1");
    assert_eq!(script.read(id), Err(Error::WouldBlock));
    assert_eq!(script.engine.stats().paws, 1);
    script.them("PA 11:21 ack 1 ts 200/0");
    assert_eq!(script.read(id), Ok(10));
    script.them("R 21:21");
    assert_eq!(script.state(id), Ok(State::CLOSED));
}

#[test]
fn syn_flood_does_not_shut_out_others() {
    let config = Config {
        timestamps: true,
        sack: true,
        window_scale: true,
        ..plain()
    };
    let mut script = Script::with(config, 4, Options::default());
    for port in 5000..15_000 {
        script.from = SocketAddr::new(THEM.ip(), port);
        script.them("S 0:0 mss 1400 sackok ws 7 ts 1/0");
    }
    assert_eq!(script.engine.stats().connections, 4);
    assert_eq!(script.engine.stats().cookies_out, 10_000 - 4);
    script.us();
    script.from = THEM;
    script.more = true;
    script.them("S 0:0 mss 900 sackok ws 7 ts 1/0");
    let answer = script.wire.sent.pop().unwrap();
    let shown = script.show(&answer.0, 0);
    assert_eq!(shown, "SA 0:0 ack 1 win 65535 mss 1000 ws 3 sackok ts");
    script.more = false;
    let echo = answer.0.timestamps.unwrap().0;
    script.them(&format!("PA 1:11 ack 1 win 100 ts 2/{echo}"));
    let id = script.engine.accept(script.listener).unwrap();
    assert_eq!(script.read(id), Ok(10));
    // Window scale, SACK and segment size have been kept.
    script.write(id, 5000);
    assert_eq!(script.us()[..2], ["A 1:525 ack 11", "A 525:1049 ack 11"]);
    script.them(&format!("A 12:22 ack 1 win 100 ts 2/{echo}"));
    let told = script.us();
    assert!(told[0].ends_with("ack 11 sack 12-22"), "{told:?}");
    // A guess is not a cookie.
    script.from = SocketAddr::new(THEM.ip(), 20_000);
    script.them("A 1:1 ack 12345 ts 1/1");
    assert_eq!(script.us(), ["R 12345:12345"]);
    assert_eq!(
        script.engine.accept(script.listener),
        Err(Error::WouldBlock)
    );
}

#[test]
fn full_accept_queue_drops_and_recovers() {
    let mut script = Script::with(plain(), 1, Options::default());
    script.them("S 0:0");
    script.us();
    script.them("A 1:1 ack 1");
    script.from = SocketAddr::new(THEM.ip(), 4001);
    script.them("S 0:0");
    assert_eq!(script.us(), NONE);
    assert_eq!(script.engine.stats().listen_overflows, 1);
    script.engine.accept(script.listener).unwrap();
    script.them("S 0:0");
    assert_eq!(script.us(), ["SA 0:0 ack 1"]);
}

#[test]
fn connecting() {
    let mut script = Script::new(plain());
    let local = Some(US);
    let connect = |script: &mut Script| {
        let options = Options::default();
        script
            .engine
            .connect(script.now, local, THEM, &options, &script.wire)
    };
    let id = connect(&mut script).unwrap();
    assert_eq!(connect(&mut script), Err(Error::AddrInUse));
    assert_eq!(script.us(), ["S 0:0"]);
    assert_eq!(script.engine.send(id, b"x"), Err(Error::WouldBlock));
    // An ACK of something else; then the answer.
    script.them("A 0:0 ack 9");
    assert_eq!(script.us(), ["R 9:9"]);
    script.them("SA 0:0 ack 1 mss 1000");
    assert_eq!(script.us(), ["A 1:1 ack 1"]);
    assert!(script.engine.readiness(Id::Conn(id)).unwrap().writable);
    script.engine.abort(id).unwrap();
    assert_eq!(script.us(), ["RA 1:1 ack 1"]);
    assert_eq!(script.state(id), Err(Error::Stale));

    let id = connect(&mut script).unwrap();
    script.us();
    script.them("RA 0:0 ack 1");
    assert_eq!(script.engine.take_error(id), Ok(Some(Error::Refused)));
    script.engine.close(script.now, id).unwrap();

    let id = connect(&mut script).unwrap();
    script.us();
    // After 1, 2, 4, 8, 16 and 32 s again, then no more.
    assert_eq!(script.wait(126 * SECOND), ["S 0:0"; 6]);
    script.wait(2 * SECOND);
    assert_eq!(script.engine.take_error(id), Ok(Some(Error::TimedOut)));
    let again = connect(&mut script).unwrap();
    assert_ne!(again, id);
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.engine.close(script.now, id), Err(Error::Stale));
    assert_eq!(script.state(again), Ok(State::SYN_SENT));
}

#[test]
fn icmp_is_believed_only_where_it_fits() {
    let mut script = Script::new(plain());
    let options = Options::default();
    let id = script
        .engine
        .connect(script.now, Some(US), THEM, &options, &script.wire)
        .unwrap();
    script.us();
    let first = script.ours.unwrap();
    let hard = IcmpError::Hard(Error::Refused);
    script.engine.icmp(US, THEM, (first + 7).0, hard);
    assert_eq!(script.state(id), Ok(State::SYN_SENT));
    script.engine.icmp(US, THEM, first.0, hard);
    assert_eq!(script.engine.take_error(id), Ok(Some(Error::Refused)));

    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.write(id, 2000);
    assert_eq!(script.us(), ["A 1:1001 ack 1", "PA 1001:2001 ack 1"]);
    let first = script.ours.unwrap();
    script.engine.icmp(US, THEM, (first + 1).0, hard);
    assert_eq!(script.state(id), Ok(State::ESTABLISHED));
    script
        .engine
        .icmp(US, THEM, (first + 5000).0, IcmpError::TooBig { mtu: 600 });
    assert_eq!(script.us(), NONE);
    script
        .engine
        .icmp(US, THEM, (first + 1).0, IcmpError::TooBig { mtu: 40 });
    let again = script.us();
    assert_eq!(again[..2], ["A 1:513 ack 1", "A 513:1025 ack 1"]);
    assert_eq!(again.len(), 4);
}

#[test]
fn keep_alive_probes_and_gives_up() {
    let keepalive = KeepAlive {
        idle: 10 * SECOND,
        interval: 2 * SECOND,
        count: 3,
    };
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    let options = Options {
        keepalive: Some(keepalive),
        ..Options::default()
    };
    script.engine.set_options(script.now, id, &options).unwrap();
    assert_eq!(script.wait(9 * SECOND), NONE);
    assert_eq!(script.wait(2 * SECOND), ["A 0:0 ack 1"]);
    script.them("A 1:1 ack 1");
    assert_eq!(script.wait(8 * SECOND), NONE);
    assert_eq!(script.wait(7 * SECOND), ["A 0:0 ack 1"; 3]);
    assert_eq!(script.wait(2 * SECOND), ["RA 1:1 ack 1"]);
    assert_eq!(script.read(id), Err(Error::TimedOut));
}

#[test]
fn user_timeout_ends_it() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    let options = Options {
        user_timeout: Some(5 * SECOND),
        ..Options::default()
    };
    script.engine.set_options(script.now, id, &options).unwrap();
    script.write(id, 10);
    script.us();
    script.wait(4900 * MS);
    assert_eq!(script.state(id), Ok(State::ESTABLISHED));
    script.wait(200 * MS);
    assert_eq!(script.engine.take_error(id), Ok(Some(Error::TimedOut)));
}

#[test]
fn large_pieces_for_a_link_that_cuts() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.wire.gso_max = 5500;
    script.engine.paths_changed();
    script.write(id, 9300);
    assert_eq!(script.us(), ["A 1:5001 ack 1", "PA 5001:9301 ack 1"]);
}

#[test]
fn full_link_loses_nothing() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.wire.full = true;
    script.write(id, 1500);
    script.them("A 1:11 ack 1");
    assert_eq!(script.us(), NONE);
    script.wire.full = false;
    assert_eq!(script.us(), NONE);
    script.engine.unblocked(script.now, &mut script.wire);
    assert_eq!(script.us(), ["A 1:1001 ack 11", "PA 1001:1501 ack 11"]);
}

#[test]
fn unread_data_at_close_is_a_reset() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.them("PA 1:11 ack 1");
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.us(), ["RA 1:1 ack 11"]);
    assert_eq!(script.engine.stats().connections, 0);

    // And so is data after it.
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    script.engine.close(script.now, id).unwrap();
    assert_eq!(script.us(), ["FA 1:1 ack 1"]);
    script.them("PA 1:11 ack 2");
    assert_eq!(script.us(), ["RA 2:2 ack 1"]);
    assert_eq!(script.engine.stats().connections, 0);
}

#[test]
fn nobody_listens() {
    let mut script = Script::new(plain());
    script.engine.close_listener(script.listener).unwrap();
    script.ours = Some(Seq(0));
    script.them("S 0:0");
    assert_eq!(script.us(), ["RA 0:0 ack 1"]);
    script.them("FA 3:13 ack 77");
    assert_eq!(script.us(), ["R 77:77"]);
    script.them("RA 0:0 ack 1");
    assert_eq!(script.us(), NONE);
    assert_eq!(script.engine.accept(script.listener), Err(Error::Stale));
}

#[test]
fn closing_a_listener_resets_what_waits() {
    let mut script = Script::new(plain());
    script.them("S 0:0");
    script.us();
    script.them("A 1:1 ack 1");
    script.engine.close_listener(script.listener).unwrap();
    assert_eq!(script.us(), ["RA 1:1 ack 1"]);
    assert_eq!(script.engine.stats().connections, 0);
    let at = script.engine.listen(US, 8, &Options::default()).unwrap();
    assert_ne!(at, script.listener);
    assert_eq!(
        script.engine.listen(US, 8, &Options::default()),
        Err(Error::AddrInUse)
    );
    let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
    let port = script.engine.listen(any, 8, &Options::default()).unwrap();
    assert_ne!(script.engine.listener_addr(port).unwrap().port(), 0);
}

#[test]
fn options_are_offered_and_only_those_answered_count() {
    let mut script = Script::new(Config::default());
    script.more = true;
    let options = Options::default();
    let connect = |script: &mut Script| {
        script
            .engine
            .connect(script.now, Some(US), THEM, &options, &script.wire)
            .unwrap()
    };
    let id = connect(&mut script);
    let offer = "S 0:0 win 65535 mss 1000 ws 3 sackok ts";
    assert_eq!(script.us(), [offer]);
    script.them("SA 0:0 ack 1 mss 1000 win 4");
    assert_eq!(script.us(), ["A 1:1 ack 1 win 65535"]);
    script.engine.abort(id).unwrap();
    script.us();

    let id = connect(&mut script);
    script.us();
    script.them("SA 0:0 ack 1 mss 1000 win 4 ws 7 ts 5/0");
    assert_eq!(script.us(), ["A 1:1 ack 1 win 32768 ts"]);
    // The SYN's own window is not scaled, those after it are.
    script.them("A 1:1 ack 1 win 4 ts 6/0");
    script.write(id, 5000);
    assert_eq!(script.us(), ["A 1:513 ack 1 win 32768 ts"]);
}

/// A connection that has moved more than 2^31 bytes: its first numbers look like future ones.
#[test]
fn old_connections_go_on() {
    let (mut script, id) = Script::accepted(plain(), "mss 1000");
    let block = &mut script.engine.blocks[id.slot];
    block.iss = block.iss - 0x9000_0000;
    block.irs = block.irs - 0x9000_0000;
    script.write(id, 1500);
    assert_eq!(script.us(), ["A 1:1001 ack 1", "PA 1001:1501 ack 1"]);
    script.them("PA 1:11 ack 1501");
    assert_eq!(script.read(id), Ok(10));
    assert_eq!(script.engine.unsent(id), Ok(0));
    script.write(id, 10);
    assert_eq!(script.us(), ["PA 1501:1511 ack 11"]);
}
