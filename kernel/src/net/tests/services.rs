//! UDP, echo, neighbours, DHCP, router advertisements and DNS between a stack and its peers.

use super::wire::{TestNic, caps, pair, run};
use super::*;
use crate::net::ip::{self, Out, Sum};
use crate::net::nic::{Nic, RxMeta, TxMeta};
use crate::net::ports::At;
use crate::net::reassembly::Reassembler;
use crate::net::udp::UdpId;
use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire as w;
use std::sync::Arc;

pub fn udp(stack: &mut Stack, port: u16) -> UdpId {
    let id = stack.host.udp.open(Arc::default());
    stack.host.udp.bind(id, At::All, port, false, 0).unwrap();
    id
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

#[test]
fn datagrams_of_any_size_get_there() {
    for passes in [false, true] {
        let mut c = caps(1);
        (c.csum_tx, c.csum6_tx) = (passes, true);
        let (mut a, mut b) = two(c, caps(2), passes);
        let now = clock();
        let to = udp(&mut b, 7);
        for (n, size) in [0usize, 1, 1000, 1472, 1473, 9001, 65_507]
            .into_iter()
            .enumerate()
        {
            for (from, dst) in [("10.0.0.1:9", "10.0.0.2:7"), ("[fd00::1]:9", "[fd00::2]:7")] {
                let data: Vec<u8> = (0..size).map(|i| (i * 7 + n) as u8).collect();
                let (from, dst) = (addr(from), addr(dst));
                a.host.send_udp(from, dst, 64, None, &data).unwrap();
                a.settle(*now.borrow());
                let got = run(&mut [&mut a, &mut b], &now, 5 * SECOND, |s, _| {
                    s[1].host.udp.get(to).unwrap().first().is_some()
                });
                assert!(got, "{size} bytes to {dst}");
                let datagram = b.host.udp.get(to).unwrap().pop().unwrap();
                assert_eq!((datagram.from, datagram.bytes == data), (from, true));
            }
        }
        assert_eq!((b.host.stats.udp_in, b.host.stats.rx_dropped), (14, 0));
        let far = addr("10.0.0.2:7");
        let too_long = a
            .host
            .send_udp(addr("10.0.0.1:9"), far, 64, None, &[0; 65_508]);
        assert_eq!(too_long, Err(Error::TooLong));
    }
}

#[test]
fn a_closed_port_says_so_to_who_is_connected() {
    let (mut a, mut b) = two(caps(1), caps(2), false);
    let now = clock();
    for (me, there) in [("10.0.0.1", "10.0.0.2:9"), ("fd00::1", "[fd00::2]:9")] {
        let id = udp(&mut a, 0);
        let there = addr(there);
        let s = a.host.udp.get(id).unwrap();
        s.remote = Some(there);
        let me = SocketAddr::new(me.parse().unwrap(), s.port());
        a.host.send_udp(me, there, 64, None, b"x").unwrap();
        assert!(run(&mut [&mut a, &mut b], &now, SECOND, |s, _| {
            s[0].host.udp.get(id).unwrap().error == Some(Error::Refused)
        }));
    }
    // Nobody answers a flood of them without bounds.
    let sent = b.host.stats.tx_frames;
    for _ in 0..500 {
        a.host
            .send_udp(addr("10.0.0.1:9"), addr("10.0.0.2:9"), 64, None, b"x")
            .ok();
        b.round(*now.borrow());
    }
    assert!(b.host.stats.tx_frames - sent <= 60);
}

/// The echo requests' answers, put together from what was on the wire.
fn echoed(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut r = Reassembler::default();
    let mut out = Vec::new();
    for f in frames {
        let Some(h) = ip::parse(&f[14..], f.len() - 14) else {
            continue;
        };
        let payload = &f[14 + h.header..][..h.payload];
        let whole = match h.fragment {
            None => Some((h, payload.to_vec())),
            Some(at) => r.take(0, &h, at, &[payload]),
        };
        if let Some((h, p)) = whole
            && matches!((h.protocol, p[0]), (ip::ICMP, 0) | (ip::ICMPV6, 129))
        {
            let sum = match h.protocol {
                ip::ICMP => Sum::default(),
                _ => Sum::pseudo(h.src, h.dst, ip::ICMPV6, p.len()),
            };
            assert!(sum.over(&[&p]).right());
            out.push(p[8..].to_vec());
        }
    }
    out
}

#[test]
fn pings_are_answered_fragmented_ones_too() {
    let (a, b) = pair(caps(1), caps(2), false);
    b.tx.lock().unwrap().tap = Some(Vec::new());
    let tap = Arc::clone(&b.tx);
    let mut a = stack("segue.ip=10.0.0.1/24,fd00::1/64", a);
    let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", b);
    let now = clock();
    let mut expected = Vec::new();
    for size in [0usize, 56, 1472, 1473, 65_507 - 20] {
        for (src, dst, kind, protocol) in [
            ("10.0.0.1", "10.0.0.2", 8, ip::ICMP),
            ("fd00::1", "fd00::2", 128, ip::ICMPV6),
        ] {
            let (src, dst): (IpAddr, IpAddr) = (src.parse().unwrap(), dst.parse().unwrap());
            let data: Vec<u8> = (0..size).map(|i| (i / 3) as u8).collect();
            let mut head = [kind, 0, 0, 0, 1, 2, 3, 4];
            let sum = match protocol {
                ip::ICMP => Sum::default(),
                _ => Sum::pseudo(src, dst, protocol, 8 + size),
            };
            let field = sum.over(&[&head, &data]).field();
            head[2..4].copy_from_slice(&field.to_be_bytes());
            let out = Out {
                src,
                dst,
                protocol,
                hops: 64,
            };
            a.host
                .send_ip(&out, None, &[&head, &data], TxMeta::default(), true)
                .unwrap();
            expected.push(data);
            run(&mut [&mut a, &mut b], &now, SECOND, |_, _| false);
        }
    }
    assert_eq!(b.host.stats.echoes, 10);
    let frames = tap.lock().unwrap().tap.take().unwrap();
    let got = echoed(&frames);
    assert!(got == expected, "{} answers", got.len());
    assert_eq!(a.host.stats.rx_dropped + b.host.stats.rx_dropped, 0);
}

#[test]
fn a_neighbour_that_is_not_there_is_given_up() {
    let (mut a, mut b) = two(caps(1), caps(2), false);
    let now = clock();
    let id = udp(&mut a, 5);
    let there = addr("10.0.0.77:9");
    a.host.udp.get(id).unwrap().remote = Some(there);
    a.host
        .send_udp(addr("10.0.0.1:5"), there, 64, None, b"x")
        .unwrap();
    let began = *now.borrow();
    assert!(run(&mut [&mut a, &mut b], &now, 10 * SECOND, |s, _| {
        s[0].host.udp.get(id).unwrap().error == Some(Error::HostUnreachable)
    }));
    let took = *now.borrow() - began;
    assert!((2_999_000_000..3_100_000_000).contains(&took), "{took} ns");
}

/// A DHCP server's answer to a client's frame.
pub fn dhcp_answer(frame: &[u8], your_ip: Ipv4Addr) -> Option<Vec<u8>> {
    let server = Ipv4Addr::new(10, 9, 0, 1);
    let h = ip::parse(&frame[14..], frame.len() - 14)?;
    let udp = w::UdpPacket::new_checked(&frame[14 + h.header..]).ok()?;
    if (udp.src_port(), udp.dst_port()) != (68, 67) {
        return None;
    }
    let packet = w::DhcpPacket::new_checked(udp.payload()).ok()?;
    let asked = w::DhcpRepr::parse(&packet).ok()?;
    let message_type = match asked.message_type {
        w::DhcpMessageType::Discover => w::DhcpMessageType::Offer,
        w::DhcpMessageType::Request => w::DhcpMessageType::Ack,
        _ => return None,
    };
    let answer = w::DhcpRepr {
        message_type,
        your_ip,
        router: Some(server),
        subnet_mask: Some(Ipv4Addr::new(255, 255, 255, 0)),
        server_identifier: Some(server),
        lease_duration: Some(600),
        dns_servers: Some(core::iter::once(server).collect()),
        requested_ip: None,
        client_identifier: None,
        parameter_request_list: None,
        max_size: None,
        ..asked
    };
    let mut dhcp = vec![0; answer.buffer_len()];
    answer
        .emit(&mut w::DhcpPacket::new_unchecked(&mut dhcp[..]))
        .unwrap();
    let mut out = ip::HeaderBuffer::new();
    ip::ethernet(
        &mut out,
        [2, 0, 0, 0, 0, 9],
        frame[6..12].try_into().unwrap(),
        false,
    );
    let ip = Out {
        src: server.into(),
        dst: Ipv4Addr::BROADCAST.into(),
        protocol: ip::UDP,
        hops: 64,
    };
    ip::header(&mut out, &ip, dhcp.len() + 8, None);
    let mut all = out.to_vec();
    all.extend([0, 67, 0, 68]);
    all.extend((dhcp.len() as u16 + 8).to_be_bytes());
    all.extend([0, 0]);
    all.extend(dhcp);
    Some(all)
}

#[test]
fn who_takes_an_address_over_is_heard_of() {
    let (a, b) = pair(caps(1), caps(2), false);
    let next = TestNic {
        caps: caps(3),
        rx: Arc::clone(&b.rx),
        tx: Arc::clone(&b.tx),
        ..b
    };
    let mut a = stack("segue.ip=10.0.0.1/24,fd00::1/64", a);
    let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", b);
    let now = clock();
    let known = |a: &Stack| {
        ["10.0.0.2", "fd00::2"].map(|b| {
            let (_, i) = a.host.each().next().unwrap();
            i.neighbors.known(b.parse().unwrap())
        })
    };
    for (me, there) in [("10.0.0.1:9", "10.0.0.2:9"), ("[fd00::1]:9", "[fd00::2]:9")] {
        let (me, there) = (addr(me), addr(there));
        a.host.send_udp(me, there, 64, None, b"x").unwrap();
    }
    run(&mut [&mut a, &mut b], &now, 5 * SECOND, |_, _| false);
    assert_eq!(known(&a), [Some([2, 0, 0, 0, 0, 2]); 2]);
    drop(b);
    next.tx.lock().unwrap().tap = Some(Vec::new());
    let tap = Arc::clone(&next.tx);
    let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", next);
    // Told before anybody asks, and not for ever.
    run(&mut [&mut a], &now, SECOND / 10, |_, _| false);
    assert_eq!(known(&a), [Some([2, 0, 0, 0, 0, 3]); 2]);
    run(&mut [&mut a, &mut b], &now, 60 * SECOND, |_, _| false);
    let sent = tap.lock().unwrap().tap.take().unwrap();
    let arp = sent.iter().filter(|f| f[12..14] == [8, 6]).count();
    let adverts = sent
        .iter()
        .filter(|f| f[12..14] == [0x86, 0xdd] && f[54] == 136);
    // The link-local address too.
    assert_eq!((arp, adverts.count()), (3, 6));
}

#[test]
fn an_address_comes_by_dhcp() {
    let (a, mut server) = pair(caps(1), caps(2), false);
    let mut a = stack("", a);
    let now = clock();
    let mut asked = 0;
    let got = run(&mut [&mut a], &now, 60 * SECOND, |s, _| {
        let mut answers = Vec::new();
        server.receive(100, &mut |pieces, _| {
            answers.extend(dhcp_answer(&pieces.concat(), [10, 9, 0, 42].into()))
        });
        for answer in answers {
            asked += 1;
            server.tx.lock().unwrap().put(answer, RxMeta::default());
        }
        s[0].host.is_local([10, 9, 0, 42].into())
    });
    assert!(got && asked == 2);
    let (_, i) = a.host.each().next().unwrap();
    assert_eq!(i.routers()[0].addr.to_string(), "10.9.0.1");
    assert_eq!(a.host.name_servers()[0].to_string(), "10.9.0.1");
    assert!(a.changed);
    let far = "1.2.3.4".parse().unwrap();
    assert_eq!(a.host.source_for(far).unwrap().to_string(), "10.9.0.42");
    // The server is gone: the lease ends.
    assert!(run(&mut [&mut a], &now, 700 * SECOND, |s, _| !s[0]
        .host
        .is_local([10, 9, 0, 42].into())));
}

/// Found by fuzzing: a lease of an address that is none kept the client quiet for as long as it was.
#[test]
fn a_lease_of_no_use_is_not_waited_for() {
    let (a, mut server) = pair(caps(1), caps(2), false);
    let mut a = stack("", a);
    let now = clock();
    let mut asked = 0;
    let mut serve = |s: &mut Stack, given: [u8; 4]| {
        let mut answers = Vec::new();
        server.receive(100, &mut |pieces, _| {
            answers.extend(dhcp_answer(&pieces.concat(), given.into()))
        });
        asked += answers.len();
        for answer in answers {
            server.tx.lock().unwrap().put(answer, RxMeta::default());
        }
        (asked, s.host.is_local([10, 9, 0, 42].into()))
    };
    run(&mut [&mut a], &now, 55 * SECOND, |s, _| {
        assert!(serve(s[0], [127, 0, 0, 1]).0 <= 12, "it does not hurry");
        false
    });
    assert!(run(&mut [&mut a], &now, 20 * SECOND, |s, _| {
        serve(s[0], [10, 9, 0, 42]).1
    }));
}

#[test]
fn a_router_gives_an_address_and_takes_it_back() {
    let (a, router) = pair(caps(1), caps(2), false);
    let mut a = stack("segue.ip=10.0.0.1/24", a);
    let now = clock();
    let advertise = |prefix: &str, lifetime: u64| {
        let src = "fe80::9".parse().unwrap();
        let all = "ff02::1".parse().unwrap();
        let lifetime = smoltcp::time::Duration::from_secs(lifetime);
        let message = w::Icmpv6Repr::Ndisc(w::NdiscRepr::RouterAdvert {
            hop_limit: 64,
            flags: w::NdiscRouterFlags::empty(),
            router_lifetime: lifetime,
            reachable_time: smoltcp::time::Duration::ZERO,
            retrans_time: smoltcp::time::Duration::ZERO,
            lladdr: None,
            mtu: None,
            prefix_info: Some(w::NdiscPrefixInformation {
                prefix_len: 64,
                flags: w::NdiscPrefixInfoFlags::ADDRCONF | w::NdiscPrefixInfoFlags::ON_LINK,
                valid_lifetime: lifetime,
                preferred_lifetime: lifetime,
                prefix: prefix.parse().unwrap(),
            }),
        });
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(
            &src,
            &all,
            &mut w::Icmpv6Packet::new_unchecked(&mut bytes[..]),
            &ChecksumCapabilities::default(),
        );
        let mut out = ip::HeaderBuffer::new();
        ip::ethernet(&mut out, [2, 0, 0, 0, 0, 9], [0x33, 0x33, 0, 0, 0, 1], true);
        let ip = Out {
            src: src.into(),
            dst: all.into(),
            protocol: ip::ICMPV6,
            hops: 255,
        };
        ip::header(&mut out, &ip, bytes.len(), None);
        let frame = [&out[..], &bytes].concat();
        router.tx.lock().unwrap().put(frame, RxMeta::default());
    };
    run(&mut [&mut a], &now, 10 * SECOND, |_, _| false);
    // It has asked for routers, three times.
    let solicits = |q: &super::wire::Queue| {
        q.frames
            .iter()
            .filter(|(f, _)| f[12..14] == [0x86, 0xdd] && f[54] == 133)
            .count()
    };
    assert_eq!(solicits(&router.rx.lock().unwrap()), 3);
    let mine = "fd01::ff:fe00:1".parse().unwrap();
    let far: IpAddr = "2001:db8::1".parse().unwrap();
    assert!(a.host.source_for(far).is_none());
    // Group prefixes and link-local ones make no addresses.
    for bad in ["ff02::", "fe80::"] {
        advertise(bad, 3600);
        run(&mut [&mut a], &now, SECOND, |_, _| false);
    }
    assert_eq!(a.host.each().next().unwrap().1.addresses().len(), 2);
    advertise("fd01::", 10_000);
    run(&mut [&mut a], &now, SECOND, |_, _| false);
    assert!(a.host.is_local(mine));
    assert_eq!(a.host.source_for(far), Some(mine));
    // Taken back at once, it stays for two hours, but the router is gone.
    advertise("fd01::", 0);
    run(&mut [&mut a], &now, SECOND, |_, _| false);
    assert!(a.host.is_local(mine) && a.host.source_for(far).is_none());
    run(&mut [&mut a], &now, 7300 * SECOND, |_, _| false);
    assert!(!a.host.is_local(mine));
}

#[test]
fn names_are_looked_up() {
    let (a, b) = pair(caps(1), caps(2), false);
    let mut a = stack("segue.ip=10.0.0.1/24,fd00::1/64 segue.dns=10.0.0.2", a);
    let mut b = stack("segue.ip=10.0.0.2/24", b);
    let server = udp(&mut b, 53);
    let now = clock();
    for (name, known) in [("example.test", true), ("nobody.test", false)] {
        let mut lookup = a.host.look_up(name, true, true).unwrap();
        let mut result = None;
        run(&mut [&mut a, &mut b], &now, 60 * SECOND, |s, now| {
            while let Some(d) = s[1].host.udp.get(server).unwrap().pop() {
                // The question again, and one answer for it.
                let mut answer = d.bytes.clone();
                let kind = answer[answer.len() - 3];
                answer[2] = 0x84;
                if known {
                    answer[7] = 1;
                    answer.extend([0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0]);
                    match kind {
                        1 => answer.extend([4, 10, 0, 0, 7]),
                        _ => {
                            answer.push(16);
                            answer
                                .extend("fd00::7".parse::<core::net::Ipv6Addr>().unwrap().octets());
                        }
                    }
                } else {
                    answer[3] = 3;
                }
                let me = addr("10.0.0.2:53");
                s[1].host.send_udp(me, d.from, 64, None, &answer).unwrap();
                s[1].settle(now);
            }
            result = s[0].host.looked_up(&mut lookup);
            result.is_some()
        });
        let result = result.unwrap().map(|all| {
            let all: Vec<_> = all.iter().map(ToString::to_string).collect();
            all.join(" ")
        });
        assert_eq!(result.ok().as_deref(), known.then_some("fd00::7 10.0.0.7"));
    }
    assert!(matches!(
        a.host.look_up("a..b", true, true),
        Err(crate::net::resolve::ResolveError::BadName)
    ));
}

#[test]
fn groups_are_joined_and_heard() {
    let (mut a, mut b) = two(caps(1), caps(2), false);
    let now = clock();
    for (me, group) in [
        ("10.0.0.1:4", "239.1.2.3:7"),
        ("[fd00::1]:4", "[ff05::7]:7"),
    ] {
        let (me, group) = (addr(me), addr(group));
        let id = b.host.udp.open(Arc::default());
        b.host.udp.bind(id, At::All, 7, true, 0).unwrap();
        let mut send = |b: &mut Stack| {
            a.host.send_udp(me, group, 1, None, b"x").unwrap();
            run(&mut [&mut a, b], &now, SECOND, |_, _| false);
            b.host.udp.get(id).unwrap().pop().is_some()
        };
        assert!(!send(&mut b));
        b.host.membership(0, group.ip(), true).unwrap();
        b.host.membership(0, group.ip(), true).unwrap();
        assert!(send(&mut b));
        b.host.membership(0, group.ip(), false).unwrap();
        assert!(send(&mut b));
        b.host.membership(0, group.ip(), false).unwrap();
        assert!(!send(&mut b));
        b.host.udp.close(id);
    }
}
