//! Tests the network device alone, without a network stack: answers ARP and ping for 10.0.0.2 by
//! hand, sends TCP frames that are to be cut back as they came, says every second what came, and
//! replaces the image by each bundle of its modules when `r` is typed. Ends when it is asked to.

use segue::kernel::devices::control;
use segue::kernel::devices::netfront::{EVENTS, Idle, Netfront};
use segue::kernel::devices::xenbus::{Listener, Xenbus};
use segue::kernel::net::nic::{Gso, Nic, RxMeta, TxMeta};
use segue::kernel::xen::hypercall::ShutdownReason;
use segue::kernel::xen::{Committed, console, events, grant};
use std::cell::RefCell;
use std::process::exit;
use std::rc::Rc;

const IP: [u8; 4] = [10, 0, 0, 2];

#[derive(Clone, Default)]
struct Nics(Rc<RefCell<Vec<Netfront>>>);

impl Listener for Nics {
    fn attached(&self, nic: Box<Netfront>) {
        println!("attached vif={} {:?}", nic.vif(), nic.caps());
        self.0.borrow_mut().push(*nic);
    }
    fn detached(&self, vif: u32) {
        self.0.borrow_mut().retain(|n| n.vif() != vif);
    }
}

#[derive(Default, Debug)]
struct Stats {
    frames: u64,
    bytes: u64,
    large: u64,
    blank: u64,
    pieces: usize,
    sent: u64,
    refused: u64,
}

fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// The answer to a frame, if it is for us.
fn answer(mac: [u8; 6], mut f: Vec<u8>, meta: RxMeta) -> Option<(Vec<u8>, TxMeta)> {
    let mut how = TxMeta::default();
    let kind = [*f.get(12)?, *f.get(13)?];
    let from: [u8; 6] = f.get(6..12)?.try_into().ok()?;
    match kind {
        [8, 6] if f.get(20..22)? == [0, 1] && f.get(38..42)? == IP => {
            let sender: Vec<u8> = f.get(22..32)?.to_vec();
            f[21] = 2;
            f[22..28].copy_from_slice(&mac);
            f[28..32].copy_from_slice(&IP);
            f[32..42].copy_from_slice(&sender);
        }
        [8, 0] if f.get(30..34)? == IP && f.get(23)? == &1 && f.get(34)? == &8 => {
            let sender: Vec<u8> = f.get(26..30)?.to_vec();
            f[26..30].copy_from_slice(&IP);
            f[30..34].copy_from_slice(&sender);
            let len = 14 + usize::from(u16::from_be_bytes([f[16], f[17]]));
            f.truncate(len);
            f[34] = 0;
            f[36..38].fill(0);
            let check = sum(&f[34..]);
            f[36..38].copy_from_slice(&check.to_be_bytes());
        }
        // The pseudo-header's sum is the same both ways.
        [8, 0] if f.get(30..34)? == IP && f.get(23)? == &6 && meta.gso_mss != 0 => {
            let sender: Vec<u8> = f.get(26..30)?.to_vec();
            f[26..30].copy_from_slice(&IP);
            f[30..34].copy_from_slice(&sender);
            how.csum_blank = true;
            how.gso = Some((Gso::Tcp4, meta.gso_mss));
        }
        _ => return None,
    }
    f[0..6].copy_from_slice(&from);
    f[6..12].copy_from_slice(&mac);
    Some((f, how))
}

fn main() {
    let token = Committed::get().expect("committed");
    let nics = Nics::default();
    let mut bus = match Xenbus::start(token, nics.clone()) {
        Ok(bus) => bus,
        Err(e) => panic!("{e}"),
    };
    let mut stats = Stats::default();
    let now = segue::system_time;
    let (mut next, mut last) = (now() + 1_000_000_000, 0);
    loop {
        if let Err(e) = bus.turn(Some(0)) {
            println!("xenbus: {e}");
            exit(1);
        }
        let mut work = false;
        for nic in nics.0.borrow_mut().iter_mut() {
            let mac = nic.caps().mac;
            let mut answers = Vec::new();
            nic.receive(64, &mut |pieces: &[&[u8]], meta: RxMeta| {
                let frame = pieces.concat();
                stats.frames += 1;
                stats.bytes += frame.len() as u64;
                stats.large += u64::from(meta.gso_mss != 0);
                stats.blank += u64::from(meta.csum_valid);
                stats.pieces = stats.pieces.max(pieces.len());
                answers.extend(answer(mac, frame, meta));
            });
            for (a, how) in answers {
                match nic.send(&[&a[..a.len().min(20)], &a[a.len().min(20)..]], how) {
                    Ok(()) => stats.sent += 1,
                    Err(_) => stats.refused += 1,
                }
            }
            nic.flush();
            work |= nic.idle(now()) == Idle::Work;
        }
        if let Some(request) = control::requested() {
            println!("asked to {request:?}");
            match request.reason() {
                ShutdownReason::Poweroff => exit(0),
                other => segue::kernel::end::end(other),
            }
        }
        let mut typed = [0; 64];
        let n = console::read(&mut typed);
        if n != 0 {
            println!("typed {:?}", String::from_utf8_lossy(&typed[..n]));
            if typed[..n].contains(&b'r') {
                for bundle in segue::bundles() {
                    println!("not replaced: {:?}", segue::replace_image(bundle));
                }
            }
        }
        if now() > next {
            next = now() + 1_000_000_000;
            if stats.frames != last {
                last = stats.frames;
                let upcalls = events::upcalls();
                let (grants, blocks) = grant::audit();
                println!(
                    "{stats:?} upcalls={upcalls} grants={grants} blocks={blocks} {}",
                    segue::audit().unwrap()
                );
            }
        }
        if !work {
            EVENTS.wait_until(Some(now() + 2_000_000), || {
                nics.0
                    .borrow_mut()
                    .iter_mut()
                    .any(|n| n.idle(now()) == Idle::Work)
                    .then_some(())
            });
        }
    }
}
