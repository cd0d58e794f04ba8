//! The network device's rings against a backend that answers what it likes.
//!
//! What has to hold whatever it says: a page is written only while no request for it is out, bytes
//! are read only inside of a page and only of slots that were answered, work is bounded, and all
//! pages are posted again. A frame that is sent is what the backend reads.

use crate::input::Script;
use crate::{Input, Target};
use segue_kernel::devices::netfront::ring::{
    Buffers, HEAD, MAX_FRAME, PAGE, Page, RxRing, SLOTS, TxFeatures, TxRing,
};
use segue_kernel::net::nic::{Gso, SendError, TxMeta};
use segue_kernel::xen::grant::GrantRef;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};

pub const TARGET: Target = Target {
    name: "netring",
    what: "netfront's tx and rx rings, with a hostile backend",
    longest: 2048,
    memory: 2 << 20,
    seeds,
    run,
};

// As in io/ring.h and io/netif.h: word numbers in a ring's page, and words of an entry.
const REQ_PROD: usize = 0;
const RSP_PROD: usize = 2;
const HEADER: usize = 16;
const TX_WORDS: usize = 3;
const RX_WORDS: usize = 2;
const MORE_DATA: u16 = 4;
const EXTRA_INFO: u16 = 8;
const GRANTS: u32 = 1000;

fn run(input: &[u8]) {
    let mut input = Input(input);
    match input.u8() % 2 {
        0 => tx(input),
        _ => rx(input),
    }
}

fn page() -> Page {
    [const { AtomicU32::new(0) }; PAGE / 4]
}

fn entry(page: &Page, slot: u32, words: usize, n: usize) -> &AtomicU32 {
    &page[HEADER + (slot % SLOTS) as usize * words + n]
}

#[derive(Default)]
struct Sent {
    /// What lies in each page.
    pages: Vec<Vec<u8>>,
    /// Pages that the backend was shown and has not answered.
    out: BTreeSet<u16>,
}

/// Pages that only we write.
#[derive(Clone)]
struct TxPages(Rc<RefCell<Sent>>);

impl Buffers for TxPages {
    fn gref(&self, page: u16) -> GrantRef {
        GrantRef(GRANTS + u32::from(page))
    }
    fn bytes(&self, _: u16, _: usize, _: usize) -> &[u8] {
        panic!("what is sent is not read");
    }
    fn write(&mut self, page: u16, at: usize, bytes: &[u8]) {
        let mut sent = self.0.borrow_mut();
        assert!(
            !sent.out.contains(&page),
            "page {page} is written while the backend has it"
        );
        assert!(at + bytes.len() <= PAGE);
        let place = &mut sent.pages[usize::from(page)];
        place.resize(place.len().max(at + bytes.len()), 0);
        place[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

const SEND: u8 = 0;
const ANSWER: u8 = 1;
const ANSWER_RAW: u8 = 2;
const RECLAIM: u8 = 3;
/// Anything anywhere.
const SCRIBBLE: u8 = 4;
const TX_STEPS: u8 = 5;

fn tx(mut input: Input<'_>) {
    let page = page();
    let features = input.u8();
    let sent = Rc::new(RefCell::new(Sent {
        pages: vec![Vec::new(); SLOTS as usize],
        out: BTreeSet::new(),
    }));
    let features = TxFeatures {
        sg: features & 1 != 0,
        gso4: features & 2 != 0,
        gso6: features & 4 != 0,
    };
    let mut ring = TxRing::new(&page, TxPages(Rc::clone(&sent)), features);
    let (mut seen, mut answered, mut consumed) = (0u32, 0u32, 0u32);
    // Request slots of which the backend knows what they are: an id, or extra information.
    let mut requests: Vec<Option<u16>> = Vec::new();
    // Entries are the requests' until they are answered.
    let mut honest = true;
    let mut fill = 0u8;
    while input.more() {
        match input.u8() % TX_STEPS {
            SEND => {
                let (len, cut, how) = (input.u16(), input.u16(), input.u8());
                fill = fill.wrapping_add(1);
                let frame = vec![fill; usize::from(len)];
                let (a, b) = frame.split_at(usize::from(cut).min(frame.len()));
                let meta = TxMeta {
                    csum_blank: how & 1 != 0,
                    gso: match how >> 1 & 3 {
                        1 => Some((Gso::Tcp4, u16::from(how))),
                        2 => Some((Gso::Tcp6, u16::from(how))),
                        _ => None,
                    },
                };
                // `send` does the same when it wants room; here it is known when.
                if !reclaim(&mut ring, honest) {
                    return;
                }
                consumed = catch_up(&page, &sent, consumed, answered);
                let result = ring.send(&[a, b], meta);
                ring.publish();
                let new = page[REQ_PROD].load(Ordering::SeqCst).wrapping_sub(seen);
                match result {
                    Ok(Ok(())) => {
                        assert!((1..=19).contains(&new));
                        requests.extend(read_frame(&page, &sent, seen, new, &frame));
                        seen = seen.wrapping_add(new);
                    }
                    Ok(Err(SendError::Refused)) => {
                        let gso = meta.gso.is_some();
                        assert!(frame.len() < 14 || !features.sg || frame.len() > MAX_FRAME || gso);
                    }
                    Ok(Err(SendError::Full)) => {
                        let out = requests.len() as u32 - consumed;
                        assert!(out + 19 > SLOTS, "{out} are out");
                    }
                    Err(violation) => {
                        assert!(!honest, "{violation}");
                        return;
                    }
                }
            }
            ANSWER => {
                // As it should be, in order.
                for _ in 0..=input.u8() {
                    let Some(request) = requests.get(answered as usize) else {
                        break;
                    };
                    let word = match request {
                        Some(id) => u32::from(*id) | (u32::from(input.u8() % 2) * 0xffff_0000),
                        None => 0x1_dead,
                    };
                    entry(&page, answered, TX_WORDS, 0).store(word, Ordering::SeqCst);
                    answered += 1;
                }
                page[RSP_PROD].store(answered, Ordering::SeqCst);
            }
            ANSWER_RAW => {
                honest = false;
                entry(&page, answered, TX_WORDS, 0).store(input.u32(), Ordering::SeqCst);
                answered = answered.wrapping_add(1);
                page[RSP_PROD].store(answered, Ordering::SeqCst);
            }
            RECLAIM => {
                if !reclaim(&mut ring, honest) {
                    return;
                }
                consumed = catch_up(&page, &sent, consumed, answered);
            }
            SCRIBBLE.. => {
                honest = false;
                // Not req_prod, by which the model reads.
                let at = 1 + usize::from(input.u16()) % (PAGE / 4 - 1);
                page[at].store(input.u32(), Ordering::SeqCst);
                answered = page[RSP_PROD].load(Ordering::SeqCst);
            }
        }
        let _ = (ring.ready(), ring.arm());
    }
}

/// Takes answers; false where that ends the ring's use, which only a hostile backend brings about.
fn reclaim(ring: &mut TxRing<'_, TxPages>, honest: bool) -> bool {
    match ring.reclaim() {
        Ok(n) => {
            assert!(n <= SLOTS);
            true
        }
        Err(violation) => {
            assert!(!honest, "{violation}");
            false
        }
    }
}

/// Every answer that the ring has taken was for a page that was out.
fn catch_up(page: &Page, sent: &RefCell<Sent>, mut at: u32, until: u32) -> u32 {
    let mut sent = sent.borrow_mut();
    assert!(
        until.wrapping_sub(at) <= SLOTS,
        "more answers were taken than there are slots"
    );
    while at != until {
        let word = entry(page, at, TX_WORDS, 0).load(Ordering::SeqCst);
        if word >> 16 != 1 {
            assert!(
                sent.out.remove(&(word as u16)),
                "an answer for a page that was not out was taken"
            );
        }
        at = at.wrapping_add(1);
    }
    at
}

/// The requests of a frame, as netback reads them.
fn read_frame(
    page: &Page,
    sent: &RefCell<Sent>,
    from: u32,
    count: u32,
    frame: &[u8],
) -> Vec<Option<u16>> {
    let mut sent = sent.borrow_mut();
    let mut requests = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    let mut extra = false;
    let mut more = true;
    for slot in from..from + count {
        let [gref, flags, id] =
            [0, 1, 2].map(|n| entry(page, slot, TX_WORDS, n).load(Ordering::SeqCst));
        if std::mem::take(&mut extra) {
            requests.push(None);
            continue;
        }
        assert!(more, "a slot behind the frame's last");
        let (flags, id, size) = ((flags >> 16) as u16, id as u16, (id >> 16) as usize);
        assert_eq!(gref, GRANTS + u32::from(id));
        more = flags & MORE_DATA != 0;
        extra = flags & EXTRA_INFO != 0;
        if slot == from {
            assert_eq!(size, frame.len());
        }
        assert!(sent.out.insert(id), "page {id} is shown twice");
        let len = (frame.len() - bytes.len()).min(PAGE);
        bytes.extend(&sent.pages[usize::from(id)][..len]);
        requests.push(Some(id));
    }
    assert!(!more && !extra && bytes == frame);
    requests
}

/// Pages that only the backend writes.
struct RxPages(Vec<[u8; PAGE]>);

impl Buffers for RxPages {
    fn gref(&self, page: u16) -> GrantRef {
        GrantRef(GRANTS + u32::from(page))
    }
    fn bytes(&self, page: u16, at: usize, len: usize) -> &[u8] {
        &self.0[usize::from(page)][at..at + len]
    }
    fn write(&mut self, _: u16, _: usize, _: &[u8]) {
        panic!("what is received is not written");
    }
}

const DATA: u8 = 0;
const GSO: u8 = 1;
const RESPONSE: u8 = 2;
const RECEIVE: u8 = 3;
const RX_STEPS: u8 = 5;

fn rx(mut input: Input<'_>) {
    let page = page();
    // Every page says in every byte which one it is.
    let pages = (0..SLOTS).map(|n| [n as u8; PAGE]).collect();
    let mut ring = RxRing::new(&page, RxPages(pages));
    let mut prod = 0u32;
    let mut consumed = 0u32;
    while input.more() {
        match input.u8() % RX_STEPS {
            DATA => {
                // A slot as it should be but for what the input says of it.
                let (offset, len, flags) = (input.u16(), input.u16(), input.u8());
                let id = prod % SLOTS;
                let (offset, len) = (u32::from(offset % 4096), u32::from(len));
                entry(&page, prod, RX_WORDS, 0).store(id | offset << 16, Ordering::SeqCst);
                entry(&page, prod, RX_WORDS, 1)
                    .store(u32::from(flags) | len << 16, Ordering::SeqCst);
                prod = prod.wrapping_add(1);
            }
            GSO => {
                let (mss, kind, more) = (input.u16(), input.u8(), input.u8());
                let a = 1 | u32::from(more & 1) << 8 | u32::from(mss) << 16;
                entry(&page, prod, RX_WORDS, 0).store(a, Ordering::SeqCst);
                entry(&page, prod, RX_WORDS, 1).store(kind.into(), Ordering::SeqCst);
                prod = prod.wrapping_add(1);
            }
            RESPONSE => {
                for n in 0..RX_WORDS {
                    entry(&page, prod, RX_WORDS, n).store(input.u32(), Ordering::SeqCst);
                }
                prod = prod.wrapping_add(1);
            }
            RECEIVE => {
                page[RSP_PROD].store(prod, Ordering::SeqCst);
                let budget = usize::from(input.u8() % 65);
                let mut frames = 0;
                let result = ring.receive(budget, &mut |pieces, _| {
                    frames += 1;
                    let total: usize = pieces.iter().map(|p| p.len()).sum();
                    let first = pieces.first().map_or(0, |p| p.len());
                    assert_eq!(first, total.min(HEAD), "headers are in one piece");
                    assert!((14..=20 * PAGE).contains(&total));
                    // Pages come in the ring's order, each once.
                    let mut changes = 0;
                    let mut last = None;
                    for byte in pieces.iter().flat_map(|p| p.iter()) {
                        if last.replace(*byte) != Some(*byte) {
                            changes += 1;
                        }
                    }
                    assert!(changes <= 20);
                });
                assert!(frames <= budget);
                match result {
                    Ok(looked) => assert!(looked <= budget && frames <= looked),
                    Err(_) => return,
                }
                ring.publish();
                let posted = page[REQ_PROD].load(Ordering::SeqCst);
                let done = posted.wrapping_sub(SLOTS);
                // What was taken is posted again, and no more was taken than was there.
                let took = done.wrapping_sub(consumed);
                assert!(took <= prod.wrapping_sub(consumed) && took <= SLOTS);
                consumed = done;
            }
            _ => {
                // Not req_prod, by which the model reads.
                let at = 1 + usize::from(input.u16()) % (PAGE / 4 - 1);
                page[at].store(input.u32(), Ordering::SeqCst);
                if at == RSP_PROD {
                    prod = page[RSP_PROD].load(Ordering::SeqCst);
                }
            }
        }
        let _ = ring.arm();
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let send = |s: Script, len: u16, how: u8| {
        s.then(&[SEND])
            .then(&len.to_le_bytes())
            .then(&(len / 3).to_le_bytes())
            .then(&[how])
    };
    let mut all = Vec::new();
    for features in [0, 1, 7] {
        let mut s = Script::default().then(&[0, features]);
        for len in [60, 1514, 4097, 65_535] {
            s = send(s, len, 0);
        }
        s = send(s, 9000, 3);
        s = send(s, 9000, 5);
        s = s.then(&[ANSWER, 3, 0, 0, 0, 0, RECLAIM, ANSWER, 255]);
        all.push(s.0);
    }
    let mut full = Script::default().then(&[0, 7]);
    for _ in 0..40 {
        full = send(full, 40_000, 3);
    }
    all.push(full.clone().then(&[ANSWER, 99]).0);
    all.push(full.then(&[ANSWER_RAW, 0xff, 0, 0, 0, RECLAIM]).0);
    let data = |s: Script, offset: u16, len: u16, flags: u8| {
        s.then(&[DATA])
            .then(&offset.to_le_bytes())
            .then(&len.to_le_bytes())
            .then(&[flags])
    };
    let rx = || Script::default().then(&[1]);
    let one = data(rx(), 0, 60, 0).then(&[RECEIVE, 64]);
    let big = data(rx(), 2, 4000, 4 | 8).then(&[GSO, 0xb4, 5, 1, 0]);
    let big = (0..15).fold(big, |s, _| data(s, 0, 4096, 4));
    let big = data(big, 0, 100, 0).then(&[RECEIVE, 64]);
    all.push(one.0);
    all.push(big.0);
    let partial = data(rx(), 0, 100, 4).then(&[RECEIVE, 9]);
    all.push(data(partial, 0, 200, 0).then(&[RECEIVE, 9]).0);
    all.push(
        rx().then(&[RESPONSE, 1, 0, 0, 0, 0, 0, 60, 0, RECEIVE, 1])
            .then(&[SCRIBBLE, 1, 0, 0xff, 0xff, 0xff, 0xff, RECEIVE, 64])
            .0,
    );
    all.push(
        (0..30)
            .fold(rx(), |s, _| data(s, 0, 60, 4))
            .then(&[RECEIVE, 64])
            .0,
    );
    all
}
