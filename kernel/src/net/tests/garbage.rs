//! Whatever comes from the wire: nothing of it makes a stack panic, and it goes on working.

use super::wire::{Queue, caps, pair, run};
use super::*;
use crate::net::ip::{self, Sum};
use crate::net::nic::RxMeta;
use crate::net::ports::At;
use crate::net::tcp::Options;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// A stack with everything open, and the end of its wire.
fn victim() -> (Stack, Arc<Mutex<Queue>>, Arc<Mutex<Queue>>) {
    let (a, b) = pair(caps(1), caps(2), false);
    // DHCP runs, names are looked up.
    let mut a = stack("segue.ip=10.0.0.1/24%1,fd00::1/64 segue.dns=fd00::53", a);
    let options = Options::default();
    for at in ["0.0.0.0:80", "[::]:81"] {
        a.engine.listen(at.parse().unwrap(), 4, &options).unwrap();
    }
    let udp = a.host.udp.open(Arc::default());
    a.host.udp.bind(udp, At::All, 7, true, 0).unwrap();
    for group in ["239.0.0.1", "ff05::7"] {
        a.host.membership(0, group.parse().unwrap(), true).unwrap();
    }
    drop(a.host.look_up("example.test", true, true).unwrap());
    a.settle(1);
    (a, b.tx, b.rx)
}

/// Frames that make sense, to be damaged: what two stacks say to each other.
fn sensible() -> Vec<Vec<u8>> {
    let (a, b) = pair(caps(1), caps(2), false);
    a.tx.lock().unwrap().tap = Some(Vec::new());
    b.tx.lock().unwrap().tap = Some(Vec::new());
    let taps = [Arc::clone(&a.tx), Arc::clone(&b.tx)];
    let mut a = stack("segue.ip=fd00::1/64", a);
    let mut b = stack("segue.ip=10.0.0.2/24,fd00::2/64", b);
    let now = clock();
    b.engine
        .listen("[::]:80".parse().unwrap(), 4, &Options::default())
        .unwrap();
    let Stack { engine, host, .. } = &mut a;
    let to = "[fd00::2]:80".parse().unwrap();
    engine
        .connect(1, None, to, &Options::default(), host)
        .unwrap();
    let from = "[fd00::1]:7".parse().unwrap();
    for (to, len) in [
        ("[fd00::2]:7", 10),
        ("[fd00::2]:9", 3000),
        ("[ff05::7]:7", 1),
    ] {
        let data = vec![0x5a; len];
        a.host
            .send_udp(from, to.parse().unwrap(), 64, None, &data)
            .unwrap();
    }
    a.settle(1);
    run(&mut [&mut a, &mut b], &now, 12 * SECOND, |_, _| false);
    let frames = taps.map(|t| t.lock().unwrap().tap.take().unwrap());
    frames.concat()
}

/// Makes checksums right, so that damage gets further.
fn mend(frame: &mut [u8]) {
    if frame.len() < 34 {
        return;
    }
    if frame[12..14] == [8, 0] {
        let len = usize::from(frame[14] & 15) * 4;
        if len >= 20 && frame.len() >= 14 + len {
            frame[24..26].fill(0);
            let sum = Sum::default().over(&[&frame[14..14 + len]]).field();
            frame[24..26].copy_from_slice(&sum.to_be_bytes());
        }
    }
    let Some(h) = ip::parse(&frame[14..], frame.len() - 14) else {
        return;
    };
    let at = 14 + h.header;
    let field = match h.protocol {
        ip::TCP => 16,
        ip::UDP => 6,
        ip::ICMP | ip::ICMPV6 => 2,
        _ => return,
    };
    let end = at + h.payload;
    if h.payload < field + 2 || h.fragment.is_some() {
        return;
    }
    frame[at + field..at + field + 2].fill(0);
    let sum = match h.protocol {
        ip::ICMP => Sum::default(),
        p => Sum::pseudo(h.src, h.dst, p, h.payload),
    };
    let sum = sum.over(&[&frame[at..end]]).field();
    frame[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
}

fn damage() -> impl Strategy<Value = (usize, Vec<(u16, u8)>, Option<u16>, bool, bool)> {
    (
        any::<usize>(),
        proptest::collection::vec((any::<u16>(), any::<u8>()), 0..5),
        proptest::option::weighted(0.2, any::<u16>()),
        any::<bool>(),
        any::<bool>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_frame(
        frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..50),
        kind in 0usize..4,
        csum_valid: bool,
    ) {
        let (mut a, tx, rx) = victim();
        let head = [[8, 0, 0x45], [0x86, 0xdd, 0x60], [8, 6, 0], [1, 2, 3]][kind];
        for mut f in frames {
            if f.len() > 14 {
                f[..6].copy_from_slice(&caps(1).mac);
                f[12..15].copy_from_slice(&head);
            }
            mend(&mut f);
            tx.lock().unwrap().frames.push_back((f, RxMeta { csum_valid, gso_mss: 0 }));
            rx.lock().unwrap().frames.clear();
            a.round(2);
        }
    }

    #[test]
    fn damaged_frames(all in proptest::collection::vec(damage(), 0..60), step in 0u64..2_000_000_000) {
        thread_local! {
            static FRAMES: Vec<Vec<u8>> = sensible();
        }
        let (mut a, tx, rx) = victim();
        let mut now = 2;
        for (which, changes, cut, mended, csum_valid) in all {
            let mut f = FRAMES.with(|f| f[which % f.len()].clone());
            for (at, value) in changes {
                let at = usize::from(at) % f.len();
                f[at] = value;
            }
            if let Some(cut) = cut {
                f.truncate(usize::from(cut) % f.len());
            }
            if mended {
                mend(&mut f);
            }
            now += step;
            tx.lock().unwrap().frames.push_back((f, RxMeta { csum_valid, gso_mss: 0 }));
            rx.lock().unwrap().frames.clear();
            a.round(now);
        }
        // It still answers.
        let mut ping = FRAMES.with(|f| f.iter().find(|f| f[12..14] == [0x86, 0xdd] && f[20] == 17).unwrap().clone());
        ping[0..6].copy_from_slice(&caps(1).mac);
        ping.truncate(54);
        ping.extend([128, 0, 0, 0, 0, 0, 0, 0]);
        ping[18..20].copy_from_slice(&[0, 8]);
        ping[20] = ip::ICMPV6;
        ping[22..54].copy_from_slice(&{
            let mut a = [0; 32];
            (a[0], a[15], a[16], a[31]) = (0xfd, 2, 0xfd, 1);
            a
        });
        mend(&mut ping);
        let before = a.host.stats.echoes;
        tx.lock().unwrap().frames.push_back((ping, RxMeta::default()));
        a.round(now);
        prop_assert_eq!(a.host.stats.echoes, before + 1);
    }
}
