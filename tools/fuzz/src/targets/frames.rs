//! Any frames into a stack with everything open: Ethernet, ARP, IPv4 and IPv6, fragments, ICMP,
//! neighbour discovery, router advertisements, group reports, UDP.

use crate::input::Script;
use crate::peer::{IT, Peer, SECOND, WE, datagram, mend, packet};
use crate::{Input, Target};
use segue_kernel::net::config::usable;
use segue_kernel::net::ip;
use segue_kernel::net::ports::At;
use segue_kernel::net::tcp::{self, Options};
use std::net::IpAddr;
use std::sync::Arc;

pub const TARGET: Target = Target {
    name: "frames",
    what: "any frames: ARP, IPv4, IPv6, fragments, ICMP, neighbours, routers",
    longest: 4096,
    // Fragments that wait take 512 KiB.
    memory: 900 << 10,
    seeds,
    run,
};

fn run(input: &[u8]) {
    let mut input = Input(input);
    let config = tcp::Config {
        max_connections: 16,
        buffer_memory: 64 << 10,
        ..tcp::Config::default()
    };
    let line = "segue.ip=10.0.0.1/24,fd00::1/64 segue.dns=10.0.0.2,fd00::53";
    let mut peer = Peer::new(line, config, false);
    for at in ["0.0.0.0:80", "[::]:81"] {
        let at = at.parse().expect("an address");
        let listening = peer.stack.engine.listen(at, 4, &Options::default());
        assert!(listening.is_ok());
    }
    let host = &mut peer.stack.host;
    let udp = host.udp.open(Arc::default());
    assert!(host.udp.bind(udp, At::All, 7, true, 0).is_ok());
    for group in ["239.0.0.1", "ff05::7"] {
        let group: IpAddr = group.parse().expect("an address");
        assert!(host.membership(0, group, true).is_ok());
    }
    let mut lookup = host.look_up("example.test", true, true).ok();
    while input.more() {
        // A frame, or time.
        let kind = input.u8();
        match kind % 4 {
            0 => peer.now += u64::from(input.u16()) * SECOND / 16,
            _ => {
                let len = usize::from(input.u16() % 2048);
                let mut frame = input.bytes(len).to_vec();
                if kind & 4 == 0 {
                    mend(&mut frame);
                }
                peer.put(frame);
            }
        }
        let mut sent = 0;
        peer.turn(|_, _| sent += 1);
        // One frame calls forth a few, not a storm.
        assert!(sent < 200, "{sent} frames for one");
        if let Some(l) = &mut lookup
            && peer.stack.host.looked_up(l).is_some()
        {
            lookup = None;
        }
        while let Some(d) = peer.stack.host.udp.get(udp).and_then(|s| s.pop()) {
            assert!(d.bytes.len() <= 0xffff);
        }
    }
    for (_, i) in peer.stack.host.each() {
        for address in i.addresses() {
            assert!(usable(address.cidr.addr), "{}", address.cidr);
        }
    }
    // It still answers.
    let before = peer.stack.host.stats.echoes;
    let mut ping = packet(WE, IT, ip::ICMP, &[8, 0, 0, 0, 1, 2, 3, 4]);
    mend(&mut ping);
    peer.put(ping);
    peer.turn(|_, _| ());
    assert_eq!(peer.stack.host.stats.echoes, before + 1);
}

fn seeds() -> Vec<Vec<u8>> {
    let v6 = |text: &str| -> IpAddr { text.parse().expect("an address") };
    let (we6, it6, all6) = (v6("fd00::2"), v6("fd00::1"), v6("ff02::1"));
    let link = v6("fe80::2");
    let udp = |len: u16| {
        let mut bytes = vec![0, 9, 0, 7];
        bytes.extend((len + 8).to_be_bytes());
        bytes.extend([0, 0]);
        bytes.resize(8 + usize::from(len), 7);
        bytes
    };
    let mut frames: Vec<Vec<u8>> = vec![
        packet(WE, IT, ip::ICMP, &[8, 0, 0, 0, 1, 2, 3, 4, 5]),
        packet(WE, IT, ip::ICMP, &[3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0, 0, 28]),
        packet(WE, v6_to_group(), 2, &[0x11, 100, 0, 0, 239, 0, 0, 1]),
        packet(we6, it6, ip::ICMPV6, &[128, 0, 0, 0, 1, 2, 3, 4]),
        packet(we6, it6, ip::UDP, &udp(100)),
        datagram(WE, IT, 9, 7, b"hello"),
        datagram(WE, IT, 9, 99, b"nobody is there"),
        packet(we6, it6, 250, b"no such protocol"),
    ];
    // A router advertisement: prefix fd01::/64, for an hour; and a neighbour's question.
    let mut router = vec![134, 0, 0, 0, 64, 0, 0x0e, 0x10, 0, 0, 0, 0, 0, 0, 0, 0];
    router.extend([
        3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x0e, 0x10, 0, 0, 0, 0,
    ]);
    router.extend([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut question = vec![135, 0, 0, 0, 0, 0, 0, 0, 0xfd, 0];
    question.extend([
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0, 2,
    ]);
    for (to, message) in [(all6, router), (it6, question)] {
        let mut frame = packet(link, to, ip::ICMPV6, &message);
        frame[21] = 255; // the hop limit that shows it comes from the link
        frame[..6].copy_from_slice(&if to == all6 {
            [0x33, 0x33, 0, 0, 0, 1]
        } else {
            [2, 0, 0, 0, 0, 1]
        });
        frames.push(frame);
    }
    // Two fragments of IPv4, and of IPv6.
    for (flags, at) in [(0x20u8, 0u8), (0, 3)] {
        let mut frame = packet(WE, IT, ip::UDP, &udp(40)[usize::from(at) * 8..][..24]);
        (frame[20], frame[21]) = (flags, at);
        frames.push(frame);
        let head = [ip::UDP, 0, 0, at << 3 | flags >> 5, 0, 0, 0, 9];
        let part = &udp(40)[usize::from(at) * 8..][..24];
        frames.push(packet(we6, it6, 44, &[&head[..], part].concat()));
    }
    // Last fragments of many packets, as far behind as there is.
    let far = (0..16u8).map(|ident| {
        let mut frame = packet(WE, IT, ip::UDP, &[ident; 7]);
        frame[19] = ident;
        (frame[20], frame[21]) = (0x1f, 0xff);
        frame
    });
    let far: Vec<Vec<u8>> = far.collect();
    let mut arp = vec![0xff; 6];
    arp.extend([2, 0, 0, 0, 0, 2, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);
    frames.push(arp);
    let script = |frames: &[Vec<u8>]| {
        frames.iter().fold(Script::default(), |s, frame| {
            s.then(&[1])
                .then(&(frame.len() as u16).to_le_bytes())
                .then(frame)
        })
    };
    let mut all: Vec<Vec<u8>> = frames
        .iter()
        .map(|f| script(std::slice::from_ref(f)).0)
        .collect();
    all.push(script(&far).0);
    all.push(script(&frames).then(&[0, 0, 4, 0, 0xff, 0xff]).0);
    all
}

/// A group that the stack is in.
fn v6_to_group() -> IpAddr {
    IpAddr::from([239, 0, 0, 1])
}
