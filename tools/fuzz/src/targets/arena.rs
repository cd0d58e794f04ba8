//! The network's state as another image left it: an arena with connections in many states, with
//! places changed.
//!
//! The input says which: in the header, in the notes, in the control blocks, anywhere. It is refused,
//! or one can go on with it: nothing panics, nothing loops, whatever the apps do.

use crate::input::Script;
use crate::peer::SECOND;
use crate::{Input, Target};
use segue_kernel::net::config::Config;
use segue_kernel::net::notes;
use segue_kernel::net::ports::At;
use segue_kernel::net::stack::{Stack, Token};
use segue_kernel::net::tcp::arena::Memory;
use segue_kernel::net::tcp::{self, Id, Options, Shutdown};
use std::sync::{Arc, OnceLock};

pub const TARGET: Target = Target {
    name: "arena",
    what: "the network's state that came with a switch",
    longest: 512,
    memory: 3 << 20,
    seeds,
    run,
};

/// Where the notes begin, and units: as the arena's header has it.
const NOTES: usize = 4096;
const UNIT: usize = 2048;
const NOTES_LEN: usize = 36;
const CHUNKS: usize = 48;

fn config() -> tcp::Config {
    tcp::Config {
        max_connections: 32,
        buffer_memory: 64 << 10,
        ..tcp::Config::default()
    }
}

/// An arena of a stack that talks to itself.
fn sealed() -> &'static [u8] {
    static SEALED: OnceLock<Vec<u8>> = OnceLock::new();
    SEALED.get_or_init(|| {
        let mut s = Stack::new(Config::default(), config(), [7; 32], 0);
        let at = "127.0.0.1:80".parse().expect("an address");
        let options = Options::default();
        let listener = s.engine.listen(at, 8, &options).expect("a free port");
        let mut ids = Vec::new();
        for _ in 0..7 {
            let Stack { engine, host, .. } = &mut s;
            ids.push(engine.connect(1, None, at, &options, host).expect("room"));
            while s.settle(1) {}
        }
        let accepted = std::iter::from_fn(|| s.engine.accept(listener).ok());
        let servers: Vec<_> = accepted.take(5).collect();
        let _ = s.engine.send(ids[0], &[1; 9000]);
        let _ = s.engine.shutdown(ids[1], Shutdown::Write);
        let _ = s.engine.abort(ids[2]);
        let _ = s.engine.close(2, servers[3]);
        let _ = s.engine.close(2, ids[3]);
        while s.settle(2) {}
        let _ = s.engine.send(servers[4], &[2; 3000]);
        let udp = s.host.udp.open(Arc::default());
        let bound = s.host.udp.bind(udp, At::All, 7, true, 0);
        bound.expect("a free port");
        let to = "127.0.0.1:7".parse().expect("an address");
        s.host.udp.deliver(at, to, None, false, &[b"waits"]);
        s.freeze(3).expect("room");
        let mut memory = s.engine.into_memory().expect("nobody else's");
        memory.bytes().to_vec()
    })
}

fn word(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..at + 4).and_then(|w| w.try_into().ok());
    u32::from_le_bytes(word.unwrap_or_default()) as usize
}

fn run(input: &[u8]) {
    let mut input = Input(input);
    let sealed = sealed();
    let mut bytes = sealed.to_vec();
    let (notes, blocks) = (word(sealed, NOTES_LEN), word(sealed, CHUNKS) * UNIT);
    while input.more() {
        let what = input.u8();
        let (start, len) = match what & 3 {
            0 => (0, CHUNKS + 40),
            1 => (NOTES, notes),
            2 => (blocks, 16 << 10),
            _ => (0, bytes.len()),
        };
        let place = start + usize::from(input.u16()) % len;
        let value = input.bytes(1 << (what >> 2 & 3));
        for (to, from) in bytes.iter_mut().skip(place).zip(value) {
            *to = if what & 16 == 0 { *from } else { *to ^ from };
        }
    }
    let mut memory = Memory::copy_of(&bytes).expect("memory");
    drop(bytes);
    memory.reseal();
    let Ok(offer) = notes::look(&memory) else {
        return;
    };
    let tokens = offer.tokens.clone();
    let s = Stack::adopt(Config::default(), config(), memory, offer, [8; 32], 4);
    let mut s = s.expect("what was looked at is good");
    let mut now = 4;
    let mut part = [3; 4000];
    for (n, token) in tokens.into_iter().enumerate() {
        s.claim(token);
        match token {
            Token::Tcp(Id::Conn(id)) => {
                let _ = s.engine.recv(id, &mut part);
                let _ = s.engine.send(id, &part);
                let _ = (n % 3 == 0).then(|| s.engine.close(now, id));
            }
            Token::Tcp(Id::Listener(id)) => {
                let _ = s.engine.accept(id);
            }
            Token::Udp(id) => while s.host.udp.get(id).is_some_and(|u| u.pop().is_some()) {},
        }
    }
    // It lives on for hours, but in few steps.
    for _ in 0..600 {
        let mut rounds = 0..100;
        while s.settle(now) && rounds.next().is_some() {}
        s.idle(now);
        now = s
            .deadline()
            .unwrap_or(u64::MAX)
            .clamp(now + SECOND / 10, now + 100 * SECOND);
    }
    s.close_unclaimed(now);
    while s.settle(now) {}
}

fn seeds() -> Vec<Vec<u8>> {
    let change = |what: u8, place: u16, value: &[u8]| {
        Script::default()
            .then(&[what])
            .then(&place.to_le_bytes())
            .then(value)
            .0
    };
    let mut seeds = vec![Vec::new()];
    for place in (0..64).step_by(4) {
        seeds.push(change(0, place, &[1]));
        seeds.push(change(1, place, &[1]));
    }
    for place in (0..2000).step_by(24) {
        seeds.push(change(2 | 2 << 2, place, &[0xff; 4]));
        seeds.push(change(2 | 16, place, &[1]));
    }
    // A socket whose number is as large as can be.
    for place in 32..96 {
        seeds.push(change(1 | 3 << 2, place, &[0xf3, 0xf3, 2, 0x8e, 0, 0]));
    }
    seeds
}
