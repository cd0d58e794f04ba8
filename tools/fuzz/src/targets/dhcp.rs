//! What a DHCP server answers, to a stack that asks for its address.

use crate::input::Script;
use crate::peer::{Peer, SECOND, datagram, no_tcp, parse};
use crate::{Input, Target};
use segue_kernel::net::config::usable;
use std::net::{IpAddr, Ipv4Addr};

pub const TARGET: Target = Target {
    name: "dhcp",
    what: "DHCP answers",
    longest: 1500,
    // The stack's arena takes 84 KiB of it.
    memory: 152 << 10,
    seeds,
    run,
};

const SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
/// Bytes before the options, the magic cookie included.
const OPTIONS: usize = 240;

fn run(input: &[u8]) {
    let mut input = Input(input);
    let mut peer = Peer::new("", no_tcp(), false);
    let mut asked = Vec::new();
    let mut questions = 0;
    while input.more() {
        turn(&mut peer, &mut asked, &mut questions);
        let step = input.u8();
        match step % 4 {
            // The client's own time, or ours.
            0 => peer.wait(3600 * SECOND),
            1 => peer.now += u64::from(input.u16()) * SECOND,
            kind => {
                let Some(question) = asked.last() else {
                    peer.wait(3600 * SECOND);
                    continue;
                };
                // An answer to the last question: what makes it one is as it should be.
                let mut answer = vec![0; OPTIONS];
                answer[..4].copy_from_slice(&[2, 1, 6, 0]);
                let question: &Vec<u8> = question;
                answer[4..8].copy_from_slice(&question[4..8]);
                answer[16..20].copy_from_slice(input.bytes(4).first_chunk().unwrap_or(&[0; 4]));
                answer[28..44].copy_from_slice(&question[28..44]);
                answer[236..].copy_from_slice(&[99, 130, 83, 99]);
                if kind == 2 {
                    answer.extend([53, 1, input.u8() % 8, 54, 4, 10, 9, 0, 1]);
                }
                answer.extend(input.piece());
                if step & 4 != 0 {
                    let at = usize::from(input.u8()) % answer.len();
                    answer[at] = input.u8();
                }
                if step & 8 != 0 {
                    answer.truncate(usize::from(input.u16()) % answer.len());
                }
                let to = IpAddr::V4(Ipv4Addr::BROADCAST);
                peer.put(datagram(SERVER, to, 67, 68, &answer));
            }
        }
        turn(&mut peer, &mut asked, &mut questions);
        sane(&peer);
    }
    // It goes on asking: a server that says nothing of use does not silence it.
    let before = questions;
    for _ in 0..500 {
        peer.wait(24 * 3600 * SECOND);
        turn(&mut peer, &mut asked, &mut questions);
        if questions > before {
            break;
        }
    }
    let leased = peer.stack.host.each().any(|(_, i)| {
        let mut addresses = i.addresses().iter();
        addresses.any(|a| a.cidr.addr.is_ipv4())
    });
    assert!(questions > before || leased, "it has stopped asking");
}

/// Lets the stack work, and keeps its questions.
fn turn(peer: &mut Peer, asked: &mut Vec<Vec<u8>>, questions: &mut usize) {
    peer.turn(|frame, _| {
        let Some((h, udp)) = parse(frame) else { return };
        if h.protocol == 17 && udp[2..4] == [0, 67] {
            *questions += 1;
            asked.clear();
            asked.push(udp[8..].to_vec());
        }
    });
}

/// What was told is of use, or not taken.
fn sane(peer: &Peer) {
    let host = &peer.stack.host;
    for (_, i) in host.each() {
        for address in i.addresses() {
            let cidr = address.cidr;
            assert!(usable(cidr.addr), "{cidr} is an address of ours");
            assert!(cidr.len <= if cidr.addr.is_ipv4() { 32 } else { 128 });
        }
        for router in i.routers() {
            assert!(usable(router.addr), "{} is a router", router.addr);
        }
    }
    for server in host.name_servers() {
        assert!(usable(server), "{server} is a name server");
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let options: &[u8] = &[
        1, 4, 255, 255, 255, 0, // mask
        3, 4, 10, 9, 0, 1, // router
        6, 8, 10, 9, 0, 1, 10, 9, 0, 2, // name servers
        51, 4, 0, 0, 2, 88, // lease
        58, 4, 0, 0, 1, 44, 59, 4, 0, 0, 1, 244, // T1, T2
        255,
    ];
    let answer =
        |s: Script, kind: u8, addr: [u8; 4]| s.then(&[2]).then(&addr).then(&[kind]).piece(options);
    let lease = || {
        let s = answer(Script::default().then(&[0]), 2, [10, 9, 0, 42]);
        answer(s.then(&[0]), 5, [10, 9, 0, 42])
    };
    let mut all = vec![
        lease().0,
        // Renewed; refused; run out.
        answer(lease().then(&[0]), 5, [10, 9, 0, 42]).0,
        answer(lease().then(&[0]), 6, [0; 4]).0,
        lease().then(&[1, 0xff, 0xff, 0, 0]).0,
    ];
    for addr in [[0; 4], [255; 4], [127, 0, 0, 1], [224, 0, 0, 1]] {
        let s = answer(Script::default().then(&[0]), 2, addr);
        all.push(answer(s.then(&[0]), 5, addr).0);
    }
    // Other options; damage; a cut.
    all.push(
        lease()
            .then(&[3, 1, 2, 3, 4])
            .piece(&[53, 1, 5, 52, 1, 3, 255])
            .0,
    );
    all.push(
        lease()
            .then(&[2 | 4 | 8, 1, 2, 3, 4, 2, 1, 0, 5, 9, 0, 1])
            .0,
    );
    all
}
