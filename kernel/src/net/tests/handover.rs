//! Another stack goes on where one stood, over the same arena, on a wire that goes on too.

use super::services::{dhcp_answer, udp};
use super::streams::{Pump, bytes, connect, listen};
use super::wire::{Faults, caps, pair, run};
use super::*;
use crate::net::interface::Outgoing;
use crate::net::nic::{Nic, RxMeta, TxMeta};
use crate::net::notes;
use crate::net::stack::Token;
use crate::net::tcp::adopt::Refused;
use crate::net::tcp::arena::Memory;
use crate::net::tcp::{Id, Options, State};
use core::net::{IpAddr, SocketAddr};
use proptest::prelude::*;
use std::sync::Arc;

fn config(line: &str) -> Config {
    Config::read(&CommandLine::from_bytes(line.as_bytes()), |b| panic!("{b}"))
}

/// Freezes a stack and takes it to pieces: its arena, and its devices.
fn taken(stack: &mut Stack, now: u64) -> (Memory, Vec<Box<dyn Nic + Send>>) {
    assert_eq!(stack.freeze(now), Ok(0));
    let nics = stack.host.interfaces.iter_mut().flatten();
    let nics = nics.filter_map(|i| i.nic.take()).collect();
    let small = tcp::Config {
        buffer_memory: 64 << 10,
        max_connections: 1,
        ..tcp::Config::default()
    };
    let old = core::mem::replace(stack, Stack::new(Config::default(), small, [0; 32], now));
    (old.engine.into_memory().unwrap(), nics)
}

fn adopt(line: &str, memory: Memory, now: u64) -> Result<Stack, Refused> {
    let offer = notes::look(&memory)?;
    Stack::adopt(
        config(line),
        tcp::Config::default(),
        memory,
        offer,
        [9; 32],
        now,
    )
}

/// A stack in whose place is another one, as after a switch; everything of the old one's is claimed.
fn switch(stack: &mut Stack, now: u64) {
    let (memory, nics) = taken(stack, now);
    let tokens = notes::look(&memory).unwrap().tokens;
    let mut new = adopt("", memory, now).unwrap();
    new.engine.check();
    for token in tokens {
        assert!(new.claim(token) && !new.claim(token));
    }
    for nic in nics {
        new.attach(now, nic).unwrap();
    }
    new.engine.check();
    *stack = new;
}

/// A transfer both ways with a switch, or one that is not made, at random moments. Gives the sides'
/// counts at the end.
fn exchange(
    sides: &mut [&mut Stack; 2],
    len: usize,
    seed: u64,
    mut at_random: impl FnMut(&mut Stack, u64),
) {
    let now = clock();
    let to: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let free = [sides[0].engine.free_bytes(), sides[1].engine.free_bytes()];
    let listener = listen(sides[1], &to.to_string());
    let client = connect(sides[0], 1, to);
    let mut pumps = [Pump::default(), Pump::default()];
    pumps[0].to_send = bytes(len, 1);
    pumps[1].to_send = bytes(len / 2 + 1, 2);
    let (mut server, mut random) = (None, seed | 1);
    let done = run(sides, &now, 3000 * SECOND, |s, now| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        if random >> 33 & 15 == 0 {
            at_random(s[(random >> 40 & 1) as usize], now);
        }
        server = server.or(s[1].engine.accept(listener).ok());
        if s[0].engine.state(client) != Ok(State::SYN_SENT) {
            pumps[0].run(s[0], now, client);
        }
        if let Some(id) = server {
            pumps[1].run(s[1], now, id);
        }
        pumps.iter().all(|p| p.ended)
    });
    assert!(
        done,
        "{:?} {:?}",
        sides[0].engine.stats(),
        sides[1].engine.stats()
    );
    assert!(pumps[0].got == pumps[1].to_send && pumps[1].got == pumps[0].to_send);
    let at = *now.borrow();
    sides[0].engine.close(at, client).unwrap();
    sides[1].engine.close(at, server.unwrap()).unwrap();
    sides[1].engine.close_listener(listener).unwrap();
    // TIME-WAIT ends, and a switch within it changes nothing of that.
    at_random(sides[0], at);
    at_random(sides[1], at);
    run(sides, &now, 200 * SECOND, |_, _| false);
    for (side, free) in sides.iter().zip(free) {
        let stats = side.engine.stats();
        assert_eq!((stats.connections, stats.buffer_bytes), (0, 0));
        // Room for a few connections is kept.
        assert!(side.engine.free_bytes() + (64 << 10) >= free);
    }
}

fn two_on(faults: Faults, seed: u64) -> [Stack; 2] {
    let (a, b) = pair(caps(1), caps(2), false);
    for (n, q) in [&a.tx, &b.tx].into_iter().enumerate() {
        let mut q = q.lock().unwrap();
        q.faults = faults;
        q.seed = seed.wrapping_add(n as u64);
    }
    [
        stack("segue.ip=10.0.0.1/24", a),
        stack("segue.ip=10.0.0.2/24", b),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn no_byte_is_lost_over_switches(
        seed: u64, lost in 0u64..40, damaged in 0u64..20, twice in 0u64..40, overtaken in 0u64..40,
    ) {
        let faults = Faults { lost, damaged, twice, overtaken };
        let [mut a, mut b] = two_on(faults, seed);
        exchange(&mut [&mut a, &mut b], 100_000, seed, switch);
    }

    /// A switch that fails leaves no trace.
    #[test]
    fn a_thaw_changes_nothing(seed: u64, lost in 0u64..40) {
        let faults = Faults { lost, ..Faults::default() };
        let mut ends = Vec::new();
        for freezes in [false, true] {
            let [mut a, mut b] = two_on(faults, seed);
            exchange(&mut [&mut a, &mut b], 60_000, seed, |stack, now| {
                if freezes {
                    assert_eq!(stack.freeze(now), Ok(0));
                    stack.thaw();
                    stack.engine.check();
                }
            });
            ends.push([a, b].map(|s| (s.engine.stats(), s.host.stats)));
        }
        prop_assert_eq!(ends[0], ends[1]);
    }
}

/// A stack with a connection of every kind, and its peer. Gives also who is who.
fn colourful() -> ([Stack; 2], u64, Vec<tcp::ConnId>) {
    let (a, b) = pair(caps(1), caps(2), false);
    let mut a = stack("segue.ip=10.0.0.1/24,fd00::1/64 segue.gateway=10.0.0.9", a);
    let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", b);
    let now = clock();
    let at: SocketAddr = "10.0.0.2:80".parse().unwrap();
    let listener = listen(&mut b, "[::]:80");
    let waits = listen(&mut b, "10.0.0.2:81");
    let clients: Vec<_> = (0..6).map(|_| connect(&mut a, 1, at)).collect();
    for _ in 0..3 {
        connect(&mut a, 1, "10.0.0.2:81".parse().unwrap());
    }
    run(&mut [&mut a, &mut b], &now, SECOND, |_, _| false);
    let all: Vec<_> = core::iter::from_fn(|| b.engine.accept(listener).ok()).collect();
    assert!(all.len() == 6 && b.engine.readiness(Id::Listener(waits)).unwrap().readable);
    let from = |b: &Stack, id| b.engine.remote_addr(id).unwrap();
    let servers: Vec<_> = clients
        .iter()
        .map(|c| {
            let at = a.engine.local_addr(*c).unwrap();
            *all.iter().find(|s| from(&b, **s) == at).unwrap()
        })
        .collect();
    // Half closed by the peer, by us; a full window; a reset; unread; unsent.
    a.engine.shutdown(clients[0], tcp::Shutdown::Write).unwrap();
    b.engine.shutdown(servers[1], tcp::Shutdown::Write).unwrap();
    let flood = bytes(1 << 20, 4);
    let mut sent = 0;
    run(&mut [&mut a, &mut b], &now, 2 * SECOND, |s, now| {
        sent += s[0].engine.send(clients[2], &flood[sent..]).unwrap_or(0);
        s[0].settle(now);
        false
    });
    a.engine.abort(clients[3]).unwrap();
    a.engine.send(clients[4], b"unread").unwrap();
    a.settle(*now.borrow());
    run(&mut [&mut a, &mut b], &now, SECOND, |_, _| false);
    // Nobody takes these frames off the wire before the switch.
    b.engine.send(servers[5], &bytes(3000, 7)).unwrap();
    let u = udp(&mut b, 7);
    a.host
        .send_udp(
            "10.0.0.1:9".parse().unwrap(),
            "10.0.0.2:7".parse().unwrap(),
            64,
            None,
            b"one",
        )
        .unwrap();
    a.settle(*now.borrow());
    run(&mut [&mut b], &now, SECOND / 10, |_, _| false);
    assert!(b.host.udp.get(u).unwrap().first().is_some());
    b.host
        .membership(0, "239.0.0.1".parse().unwrap(), true)
        .unwrap();
    b.host
        .udp
        .get(u)
        .unwrap()
        .groups
        .push((0, "239.0.0.1".parse().unwrap()));
    b.host.too_long_for("10.0.0.77".parse().unwrap(), 1000);
    let (frame, meta) = (vec![0x55; 60], TxMeta::default());
    b.host
        .interface_mut(0)
        .unwrap()
        .restore_frame(Outgoing { frame, meta });
    let at = *now.borrow();
    ([a, b], at, servers)
}

#[test]
fn everything_that_an_app_sees_is_there_again() {
    let ([mut a, mut b], at, servers) = colourful();
    let now = clock();
    *now.borrow_mut() = at;
    let look = |b: &mut Stack| {
        let conns = servers.iter().map(|&id| {
            let e = &b.engine;
            (
                e.state(id),
                e.readable(id),
                e.unsent(id),
                e.readiness(Id::Conn(id)),
            )
        });
        let conns: Vec<_> = conns.collect();
        let udp: Vec<_> = b
            .host
            .udp
            .notes()
            .map(|(n, s)| {
                let queue: Vec<_> = s.waiting().cloned().collect();
                (n, queue, s.groups.clone())
            })
            .collect();
        let (_, i) = b.host.each().next().unwrap();
        let neighbors: Vec<_> = i.neighbors.found().collect();
        let host = (
            i.addresses().to_vec(),
            i.routers().to_vec(),
            neighbors,
            i.waiting().count(),
        );
        let paths: Vec<_> = b.host.paths().collect();
        let group = b.host.is_member(Some(0), "239.0.0.1".parse().unwrap());
        (conns, udp, host, paths, group, b.engine.stats().connections)
    };
    b.freeze(at).unwrap();
    b.thaw();
    let before = look(&mut b);
    let (memory, nics) = taken(&mut b, at);
    let tokens = notes::look(&memory).unwrap().tokens;
    let mut new = adopt("", memory, at).unwrap();
    assert_eq!(look(&mut new), before);
    assert_eq!(before.0[0].0, Ok(State::CLOSE_WAIT));
    assert_eq!(before.0[1].0, Ok(State::FIN_WAIT_2));
    assert_eq!(before.0[3].0, Ok(State::CLOSED));
    assert_eq!(before.0[4].1, Ok(6));
    for token in tokens {
        assert!(new.claim(token));
    }
    for nic in nics {
        assert_eq!(new.attach(at, nic), Ok(0));
    }
    let mut b = new;
    // The ended one tells why, and the window opens: all data comes.
    assert_eq!(b.engine.take_error(servers[3]), Ok(Some(tcp::Error::Reset)));
    let mut got = Vec::<u8>::new();
    run(&mut [&mut a, &mut b], &now, 20 * SECOND, |s, now| {
        let mut part = [0; 4000];
        while let Ok(n @ 1..) = s[1].engine.recv(servers[2], &mut part) {
            got.extend(&part[..n]);
        }
        s[1].settle(now);
        false
    });
    assert!(got.len() > 200_000 && got == bytes(1 << 20, 4)[..got.len()]);
    b.engine.check();
}

/// More is answered right after a switch than may wait for a neighbour to be found.
#[test]
fn a_neighbor_that_is_old_is_still_known() {
    let [mut a, mut b] = two_on(Faults::default(), 1);
    let now = clock();
    let client = connect(&mut a, 1, "10.0.0.2:80".parse().unwrap());
    run(&mut [&mut a, &mut b], &now, SECOND, |_, _| false);
    assert!(a.engine.state(client).is_ok());
    let later = *now.borrow() + 60 * SECOND;
    let at = "10.0.0.1".parse::<IpAddr>().unwrap();
    for asked_before in [false, true] {
        b.settle(later);
        let i = b.host.interfaces[0].as_mut().unwrap();
        if asked_before {
            i.neighbors.find(at, later);
        }
        switch(&mut b, later);
        let i = b.host.interfaces[0].as_mut().unwrap();
        let (mac, question) = i.neighbors.find(at, later);
        assert!(mac.is_some() && question.is_some_and(|q| q.mac == mac));
    }
}

#[test]
fn a_listeners_queue_and_handshakes_live_on_and_who_is_not_claimed_is_closed() {
    let [mut a, mut b] = two_on(Faults::default(), 1);
    let now = clock();
    let listener = listen(&mut b, "10.0.0.2:80");
    let clients: Vec<_> = (0..5)
        .map(|_| connect(&mut a, 1, "10.0.0.2:80".parse().unwrap()))
        .collect();
    run(&mut [&mut a, &mut b], &now, SECOND, |_, _| false);
    let early = b.engine.accept(listener).unwrap();
    // One whose SYN is just being answered.
    let late = connect(&mut a, *now.borrow(), "10.0.0.2:80".parse().unwrap());
    b.round(*now.borrow());
    let at = *now.borrow();
    let (memory, nics) = taken(&mut b, at);
    let mut b = adopt("", memory, at).unwrap();
    b.engine.check();
    assert!(b.claim(Token::Tcp(Id::Listener(listener))));
    for nic in nics {
        b.attach(at, nic).unwrap();
    }
    let mut accepted = Vec::new();
    run(&mut [&mut a, &mut b], &now, SECOND, |s, _| {
        accepted.extend(core::iter::from_fn(|| s[1].engine.accept(listener).ok()));
        false
    });
    assert_eq!(accepted.len(), 5);
    let ports = accepted.iter().map(|id| b.engine.remote_addr(*id).unwrap());
    let mut expected: Vec<_> = clients
        .iter()
        .chain([&late])
        .map(|id| a.engine.local_addr(*id).unwrap())
        .collect();
    let first = b.engine.remote_addr(early).unwrap();
    expected.retain(|at| *at != first);
    let ports: Vec<_> = ports.collect();
    assert!(expected.iter().all(|at| ports.contains(at)) && ports.len() == expected.len());
    // Something was claimed: the rest waits until it is said that nothing more is.
    run(&mut [&mut a, &mut b], &now, 30 * SECOND, |_, _| false);
    assert_eq!(b.engine.state(early), Ok(State::ESTABLISHED));
    b.close_unclaimed(*now.borrow());
    assert!(!b.claim(Token::Tcp(Id::Conn(early))));
    let closed = clients
        .iter()
        .find(|c| a.engine.local_addr(**c) == Ok(first))
        .unwrap();
    let ended = run(&mut [&mut a, &mut b], &now, SECOND, |s, _| {
        s[0].engine.state(*closed) == Ok(State::CLOSE_WAIT)
    });
    assert!(ended);
    assert!(
        accepted
            .iter()
            .all(|id| b.engine.state(*id) == Ok(State::ESTABLISHED))
    );
}

#[test]
fn an_app_that_asks_for_nothing_lets_all_go_and_a_port_is_had_anew() {
    let ([_, mut b], at, servers) = colourful();
    let (memory, nics) = taken(&mut b, at);
    let mut b = adopt("", memory, at).unwrap();
    for nic in nics {
        b.attach(at, nic).unwrap();
    }
    b.displace(at, true, 81);
    let again = b
        .engine
        .listen("10.0.0.2:81".parse().unwrap(), 4, &Options::default());
    let again = again.unwrap();
    b.displace(at, false, 7);
    udp(&mut b, 7);
    let now = clock();
    *now.borrow_mut() = at;
    run(&mut [&mut b], &now, 9 * SECOND, |_, _| false);
    assert_eq!(b.engine.state(servers[5]), Ok(State::ESTABLISHED));
    run(&mut [&mut b], &now, 2 * SECOND, |_, _| false);
    assert_eq!(b.engine.state(servers[5]), Err(tcp::Error::Stale));
    assert!(b.engine.listener_addr(again).is_ok());
    b.engine.check();
}

#[test]
fn adopted_twice_it_is_the_same() {
    let ([_, mut b], at, _) = colourful();
    let (mut memory, _) = taken(&mut b, at);
    let copy = Memory::copy_of(memory.bytes()).unwrap();
    let mut all = [memory, copy].map(|memory| {
        let mut stack = adopt("", memory, at).unwrap();
        stack.engine.check();
        taken(&mut stack, at).0
    });
    let [first, second] = &mut all;
    assert!(first.bytes() == second.bytes());
}

#[test]
fn a_lease_goes_on_and_ends_when_it_would_have() {
    let (a, mut server) = pair(caps(1), caps(2), false);
    let mut a = stack("", a);
    let now = clock();
    let own: IpAddr = [10, 9, 0, 42].into();
    let mut answering = true;
    let mut serve = |s: &mut [&mut Stack], _| {
        let mut answers = Vec::new();
        server.receive(100, &mut |pieces, _| {
            answers.extend(dhcp_answer(&pieces.concat(), [10, 9, 0, 42].into()));
        });
        for answer in answers.into_iter().filter(|_| answering) {
            server.tx.lock().unwrap().put(answer, RxMeta::default());
        }
        let here = s[0].host.is_local(own);
        answering &= !here;
        here
    };
    assert!(run(&mut [&mut a], &now, 60 * SECOND, &mut serve));
    let leased = *now.borrow();
    run(&mut [&mut a], &now, 20 * SECOND, |_, _| false);
    switch(&mut a, *now.borrow());
    let (_, i) = a.host.each().next().unwrap();
    assert!(i.has(own) && i.has_dhcp() && i.routers()[0].addr.to_string() == "10.9.0.1");
    // Nobody answers: it lasts as long as it was given for (600 s).
    assert!(!run(&mut [&mut a], &now, 570 * SECOND, |s, _| !s[0]
        .host
        .is_local(own)));
    assert!(run(&mut [&mut a], &now, 20 * SECOND, |s, _| !s[0]
        .host
        .is_local(own)));
    assert!(*now.borrow() - leased >= 590 * SECOND);
}

#[test]
fn what_came_counts_more_than_the_command_line_and_no_device_is_waited_for_for_ever() {
    let (a, b) = pair(caps(1), caps(2), false);
    let mut a = stack("segue.ip=10.0.0.1/24", a);
    let line = "segue.ip=10.0.0.5/24,fd00::5/64 segue.gateway=10.0.0.9";
    let (memory, nics) = taken(&mut a, 5);
    let mut a = adopt(line, memory, 5).unwrap();
    let (_, i) = a.host.each().next().unwrap();
    let addresses: Vec<_> = i.addresses().iter().map(|a| a.cidr.to_string()).collect();
    assert_eq!(
        addresses,
        ["fe80::ff:fe00:1/64", "10.0.0.1/24", "fd00::5/64"]
    );
    assert_eq!(i.routers().len(), 1);
    // Another device comes, then its own.
    assert_eq!(a.attach(6, Box::new(b)), Ok(1));
    for nic in nics {
        assert_eq!(a.attach(7, nic), Ok(0));
    }
    let (memory, _) = taken(&mut a, 8);
    let mut a = adopt("", memory, 8).unwrap();
    let now = clock();
    let wait = |a: &mut Stack, time| {
        run(&mut [a], &now, time, |s, now| {
            s[0].idle(now);
            false
        });
    };
    wait(&mut a, 6 * SECOND);
    assert_eq!((a.host.each().count(), a.gone.len()), (2, 0));
    // Nor by images that come one after the other.
    let (memory, _) = taken(&mut a, 6 * SECOND);
    let mut a = adopt("", memory, 6 * SECOND).unwrap();
    wait(&mut a, 5 * SECOND);
    assert_eq!((a.host.each().count(), a.gone), (0, vec![0, 1]));
}

#[test]
fn what_there_is_no_room_for_is_counted() {
    let (a, _) = pair(caps(1), caps(2), false);
    let mut a = stack("segue.ip=10.0.0.1/24", a);
    let u = udp(&mut a, 7);
    a.host.udp.get(u).unwrap().limit = 8 << 20;
    let (from, to) = ("10.0.0.9:9".parse().unwrap(), "10.0.0.1:7".parse().unwrap());
    for n in 0..100 {
        a.host.udp.deliver(from, to, None, false, &[&[n; 9000]]);
    }
    let dropped = a.freeze(5).unwrap();
    assert!((50..100).contains(&dropped), "{dropped}");
    a.thaw();
    assert_eq!(a.host.udp.get(u).unwrap().waiting().count(), 100);
    // Sockets must not be missing.
    for _ in 0..40_000 {
        a.host.udp.open(Arc::default());
    }
    assert_eq!(a.freeze(6), Err(notes::NoRoom));
    assert!(!a.round(7));
}

#[test]
fn what_is_no_arena_is_refused() {
    let ([_, mut b], at, _) = colourful();
    let (mut memory, _) = taken(&mut b, at);
    let good = memory.bytes().to_vec();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        notes::look(&Memory::copy_of(&bytes).unwrap()).unwrap_err()
    };
    assert_eq!(refused(&|b| b[0] ^= 1), Refused::NoArena);
    assert!(matches!(refused(&|b| b[8] ^= 1), Refused::Version { .. }));
    assert!(matches!(refused(&|b| b[12] ^= 1), Refused::Version { .. }));
    assert_eq!(refused(&|b| b.truncate(1 << 20)), Refused::Length);
    assert_eq!(refused(&|b| b[4096] ^= 1), Refused::Digest);
    assert_eq!(refused(&|b| b[36..40].fill(0)), Refused::Digest);
    // The second chunk is where the first one is.
    assert_eq!(refused(&|b| b.copy_within(48..52, 52)), Refused::Chunks);
    let (mut stack, mut again) = (adopt("", memory, at).unwrap(), good);
    stack.thaw();
    // One that is at work is not sealed.
    again.truncate(0);
    again.extend(stack.engine.into_memory().unwrap().bytes());
    assert_eq!(
        notes::look(&Memory::copy_of(&again).unwrap()).unwrap_err(),
        Refused::Digest
    );
}

/// Lives with a stack for a while: frames come and go, timers run, apps read, write and close.
pub fn live(mut stack: Stack, tokens: impl IntoIterator<Item = Token>, at: u64) {
    let (ours, peer) = pair(caps(2), caps(1), false);
    let mut peer = stack_with(peer);
    stack.attach(at, Box::new(ours)).unwrap();
    let now = clock();
    *now.borrow_mut() = at;
    let mut part = [0; 5000];
    for (n, token) in tokens.into_iter().enumerate() {
        stack.claim(token);
        match token {
            Token::Tcp(Id::Conn(id)) => {
                let _ = stack.engine.recv(id, &mut part);
                let _ = stack.engine.send(id, &part);
                let _ = (n & 1 == 0).then(|| stack.engine.close(at, id));
            }
            Token::Tcp(Id::Listener(id)) => while stack.engine.accept(id).is_ok() {},
            Token::Udp(id) => while stack.host.udp.get(id).is_some_and(|s| s.pop().is_some()) {},
        }
    }
    let to = "10.0.0.2:80".parse().unwrap();
    connect(&mut peer, at, to);
    let mut rounds = 0;
    run(
        &mut [&mut stack, &mut peer],
        &now,
        300 * SECOND,
        |s, now| {
            s[0].idle(now);
            rounds += 1;
            rounds > 500
        },
    );
    stack.close_unclaimed(*now.borrow());
    run(&mut [&mut stack, &mut peer], &now, 2 * SECOND, |_, _| false);
}

fn stack_with(nic: super::wire::TestNic) -> Stack {
    stack("segue.ip=10.0.0.1/24,fd00::1/64", nic)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Whatever bytes there are: it is refused, or can be lived with.
    #[test]
    fn a_damaged_arena_is_refused_or_does_no_harm(
        changes in prop::collection::vec((0u8..20, any::<prop::sample::Index>(), any::<u32>()), 1..6),
    ) {
        thread_local! {
            static GOOD: (Vec<u8>, u64) = {
                let ([_, mut b], at, _) = colourful();
                (taken(&mut b, at).0.bytes().to_vec(), at)
            };
        }
        let (mut bytes, at) = GOOD.with(Clone::clone);
        let notes = u32::from_le_bytes(bytes[36..40].try_into().unwrap()) as usize;
        // The header and its chunks, notes, the first chunk's blocks.
        let unit = u32::from_le_bytes(bytes[48..52].try_into().unwrap()) as usize;
        let areas = [(0, 80), (4096, notes), (unit * 2048, 12 << 10)];
        for (area, index, value) in changes {
            let (start, len) = areas[usize::from(area.min(2))];
            let place = start + index.index(len - 4);
            if value & 1 == 0 {
                bytes[place] ^= (value >> 8) as u8;
            } else {
                bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        let digest = crate::replace::record::DIGEST.checksum(&bytes[4096..4096 + notes]);
        bytes[40..48].copy_from_slice(&digest.to_le_bytes());
        let memory = Memory::copy_of(&bytes).unwrap();
        if let Ok(offer) = notes::look(&memory) {
            let tokens = offer.tokens.clone();
            live(adopt("", memory, at).unwrap(), tokens, at);
        }
    }
}
