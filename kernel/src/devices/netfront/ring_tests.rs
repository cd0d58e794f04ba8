//! The ring code against a backend of ours: one that keeps to the protocol, and hostile ones, a
//! test for each point of the checklist.

use super::*;
use proptest::prelude::*;
use std::cell::RefCell;
use std::rc::Rc;

fn page() -> Box<Page> {
    Box::new([const { AtomicU32::new(0) }; PAGE / 4])
}

/// Pages that both sides see. Page n has grant 1000 + n.
#[derive(Clone)]
struct Pages(Rc<RefCell<Vec<Box<[u8; PAGE]>>>>);

impl Pages {
    fn new() -> Self {
        let pages = (0..SLOTS).map(|_| Box::new([0; PAGE])).collect();
        Self(Rc::new(RefCell::new(pages)))
    }
}

impl Buffers for Pages {
    fn gref(&self, page: u16) -> GrantRef {
        GrantRef(1000 + u32::from(page))
    }
    fn bytes(&self, page: u16, at: usize, len: usize) -> &[u8] {
        let pages = self.0.borrow();
        let bytes: *const [u8] = &pages[usize::from(page)][at..at + len];
        // SAFETY: test memory that lives as long as the ring, not written while it is looked at.
        unsafe { &*bytes }
    }
    fn write(&mut self, page: u16, at: usize, bytes: &[u8]) {
        self.0.borrow_mut()[usize::from(page)][at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// The backend's side of a ring.
struct Back<'a> {
    page: &'a Page,
    stride: usize,
    req_cons: u32,
    rsp_prod: u32,
    pages: Pages,
}

impl<'a> Back<'a> {
    fn new(page: &'a Page, stride: usize, pages: &Pages) -> Self {
        Self {
            page,
            stride,
            req_cons: 0,
            rsp_prod: 0,
            pages: pages.clone(),
        }
    }

    fn words(&self, slot: u32) -> [u32; 3] {
        let at = HEADER + (slot % SLOTS) as usize * self.stride;
        [0, 1, 2].map(|n| {
            self.page
                .get(at + n)
                .map_or(0, |w| w.load(Ordering::SeqCst))
        })
    }

    fn respond(&mut self, words: &[u32]) {
        let at = HEADER + (self.rsp_prod % SLOTS) as usize * self.stride;
        for (n, word) in words.iter().enumerate() {
            self.page[at + n].store(*word, Ordering::SeqCst);
        }
        self.rsp_prod = self.rsp_prod.wrapping_add(1);
    }

    fn push(&self) {
        self.page[RSP_PROD].store(self.rsp_prod, Ordering::SeqCst);
    }

    fn requests(&self) -> u32 {
        self.page[REQ_PROD]
            .load(Ordering::SeqCst)
            .wrapping_sub(self.req_cons)
    }

    /// Takes one frame off the tx ring as netback does; returns it with first flags and GSO.
    fn take_frame(&mut self) -> (Vec<u8>, u16, Option<(u8, u16)>) {
        let first = self.words(self.req_cons);
        let (flags, total) = ((first[1] >> 16) as u16, (first[2] >> 16) as usize);
        let mut answers = vec![first];
        let mut slots = vec![first];
        self.req_cons += 1;
        let mut gso = None;
        if flags & TXF_EXTRA_INFO != 0 {
            let extra = self.words(self.req_cons);
            assert_eq!(extra[0] as u8, EXTRA_GSO);
            assert_eq!(extra[0] >> 8 & 0xff, 0);
            gso = Some((extra[1] as u8, (extra[0] >> 16) as u16));
            self.req_cons += 1;
            answers.push([0xdead, 0, 0]);
        }
        let mut more = flags;
        while more & TXF_MORE_DATA != 0 {
            let slot = self.words(self.req_cons);
            more = (slot[1] >> 16) as u16;
            assert_eq!(more & !TXF_MORE_DATA, 0);
            self.req_cons += 1;
            slots.push(slot);
            answers.push(slot);
        }
        let rest: usize = slots[1..].iter().map(|s| (s[2] >> 16) as usize).sum();
        let mut frame = Vec::new();
        for (n, slot) in slots.iter().enumerate() {
            let (id, len) = (slot[2] as u16, (slot[2] >> 16) as usize);
            assert_eq!(slot[0], 1000 + u32::from(id));
            assert_eq!(slot[1] & 0xffff, 0);
            let len = if n == 0 { total - rest } else { len };
            assert!(len <= PAGE);
            frame.extend(self.pages.bytes(id, 0, len));
        }
        for (n, answer) in answers.iter().enumerate() {
            let null = n == 1 && gso.is_some();
            let (id, status) = if null {
                (0x55aa, RSP_NULL)
            } else {
                (answer[2] as u16, RSP_OKAY)
            };
            self.respond(&[u32::from(id) | u32::from(status as u16) << 16]);
        }
        (frame, flags, gso)
    }

    /// A data slot of the rx ring, answered as it should be.
    fn rx_data(&mut self, offset: u16, flags: u16, bytes: &[u8]) {
        let id = self.words(self.rsp_prod)[0] as u16;
        assert_eq!(self.words(self.rsp_prod)[1], 1000 + u32::from(id));
        self.pages.write(id, offset.into(), bytes);
        self.rx_raw(id, offset, flags, bytes.len() as i16);
    }

    fn rx_raw(&mut self, id: u16, offset: u16, flags: u16, status: i16) {
        self.respond(&[
            u32::from(id) | u32::from(offset) << 16,
            u32::from(flags) | u32::from(status as u16) << 16,
        ]);
    }

    fn rx_gso(&mut self, kind: u8, mss: u16) {
        self.respond(&[u32::from(EXTRA_GSO) | u32::from(mss) << 16, u32::from(kind)]);
    }
}

const ALL: TxFeatures = TxFeatures {
    sg: true,
    gso4: true,
    gso6: true,
};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add((i >> 8) as u8) ^ seed)
        .collect()
}

fn collect(
    rx: &mut RxRing<'_, Pages>,
    budget: usize,
) -> Result<Vec<(Vec<u8>, usize, RxMeta)>, Violation> {
    let mut frames = Vec::new();
    let n = rx.receive(budget, &mut |pieces, meta| {
        let first = pieces.first().map_or(0, |p| p.len());
        let total: usize = pieces.iter().map(|p| p.len()).sum();
        assert_eq!(first, total.min(HEAD));
        frames.push((pieces.concat(), pieces.len(), meta));
    })?;
    assert!(n <= budget);
    Ok(frames)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Frames of every size arrive whole, in order, with their flags, whatever pieces they lie in,
    /// as long as the backend answers now and then; no slot or page is lost.
    #[test]
    fn frames_are_sent(frames in proptest::collection::vec(
        (prop_oneof![14usize..1600, 4000usize..4200, 60_000usize..=MAX_FRAME],
         0usize..3, 1u16..1500, any::<proptest::sample::Index>(), any::<bool>()), 1..60)) {
        let (ring, pages) = (page(), Pages::new());
        let mut tx = TxRing::new(&ring, pages.clone(), ALL);
        let mut back = Back::new(&ring, TX_STRIDE, &pages);
        let mut expected = std::collections::VecDeque::new();
        for (n, (len, offload, mss, cut, answer)) in frames.into_iter().enumerate() {
            let data = pattern(len, n as u8);
            let (a, b) = data.split_at(cut.index(len));
            let gso = match offload { 1 => Some((Gso::Tcp4, mss)), 2 => Some((Gso::Tcp6, mss)), _ => None };
            let meta = TxMeta { csum_blank: offload != 0, gso };
            let mut sent = tx.send(&[a, &[], b], meta).unwrap();
            if sent == Err(SendError::Full) {
                prop_assert!(!tx.ready() || len > 1);
                while let Some((data, offload, gso)) = expected.pop_front() {
                    let _: &Vec<u8> = &data;
                    let (got, flags, extra) = { tx.publish(); back.take_frame() };
                    prop_assert_eq!(&got, &data);
                    prop_assert_eq!(flags & 3, if offload { 3 } else { 0 });
                    prop_assert_eq!(extra, gso);
                }
                back.push();
                prop_assert!(tx.ready());
                sent = tx.send(&[a, &[], b], meta).unwrap();
            }
            prop_assert_eq!(sent, Ok(()));
            expected.push_back((data, offload != 0, gso.map(|(k, m)| (if k == Gso::Tcp4 { 1u8 } else { 2 }, m))));
            if answer {
                tx.publish();
                while back.requests() != 0 {
                    let (data, _, gso) = expected.pop_front().unwrap();
                    let (got, _, extra) = back.take_frame();
                    prop_assert_eq!(got, data);
                    prop_assert_eq!(extra, gso);
                }
                back.push();
            }
        }
        tx.publish();
        while back.requests() != 0 { back.take_frame(); }
        back.push();
        tx.reclaim().unwrap();
        prop_assert_eq!(tx.free.len(), SLOTS as usize);
        prop_assert_eq!((tx.extras, tx.front.room()), (0, SLOTS));
    }

    /// Frames of many slots at any offsets are received as sent, with what is said of them, and
    /// all slots are posted again.
    #[test]
    fn frames_are_received(frames in proptest::collection::vec(
        (proptest::collection::vec((0u16..2000, 14usize..2000), 1..18), 0u16..4, 0u16..3, any::<bool>()), 1..40)) {
        let (ring, pages) = (page(), Pages::new());
        let mut rx = RxRing::new(&ring, pages.clone());
        let mut back = Back::new(&ring, RX_STRIDE, &pages);
        for (slots, csum, mss, partial) in frames {
            let mut whole = Vec::new();
            let count = slots.len();
            for (n, (offset, len)) in slots.into_iter().enumerate() {
                let data = pattern(len, n as u8);
                let more = if n + 1 < count { RXF_MORE_DATA } else { 0 };
                let extra = if n == 0 && mss != 0 { RXF_EXTRA_INFO } else { 0 };
                back.rx_data(offset, more | extra | if n == 0 { csum } else { 0 }, &data);
                if extra != 0 { back.rx_gso(1, mss); }
                whole.extend(data);
                if partial && more != 0 {
                    // The backend shows a part of a frame: it waits, and asks for an event.
                    back.push();
                    prop_assert_eq!(collect(&mut rx, 9).unwrap().len(), 0);
                    prop_assert!(!rx.arm());
                }
            }
            back.push();
            prop_assert!(rx.arm());
            let got = collect(&mut rx, 9).unwrap();
            prop_assert_eq!(got.len(), 1);
            prop_assert_eq!(&got[0].0, &whole);
            prop_assert!(got[0].1 <= count + 1);
            prop_assert_eq!(got[0].2, RxMeta { csum_valid: csum != 0, gso_mss: mss });
            rx.publish();
            prop_assert_eq!(rx.front.published.wrapping_sub(rx.front.consumed), SLOTS);
        }
    }

    /// A backend that writes anything anywhere, at any time, gets a violation or nothing; no panic,
    /// and no more than the budget or the ring's size is done for it.
    #[test]
    fn garbage_is_survived(
        writes in proptest::collection::vec((0usize..1024, any::<u32>()), 0..400),
        small in proptest::collection::vec((0usize..200, 0u32..300), 0..200),
        prods in proptest::collection::vec(0u32..600, 1..8),
    ) {
        let (txp, rxp, pages) = (page(), page(), Pages::new());
        let mut tx = TxRing::new(&txp, pages.clone(), ALL);
        let mut rx = RxRing::new(&rxp, pages.clone());
        for (prod, write) in prods.into_iter().zip(writes.chunks(50).chain(std::iter::repeat(&[][..]))) {
            let _ = tx.send(&[&pattern(5000, 1)], TxMeta { csum_blank: true, gso: Some((Gso::Tcp4, 1400)) });
            tx.publish();
            for ring in [&txp, &rxp] {
                for (at, word) in write.iter().chain(&small) { ring[*at].store(*word, Ordering::SeqCst); }
                ring[RSP_PROD].store(prod, Ordering::SeqCst);
            }
            let _ = (tx.ready(), tx.arm(), rx.arm());
            if let Ok(n) = tx.reclaim() { prop_assert!(n <= SLOTS); }
            prop_assert!(tx.free.len() <= SLOTS as usize);
            let mut seen = 0;
            let _ = rx.receive(5, &mut |pieces, _| { seen += 1; assert!(!pieces.is_empty()); });
            prop_assert!(seen <= 5);
            rx.publish();
        }
    }
}

/// Another image's sides of both rings, from what this one writes down.
fn go_on<'a>(
    (tx, rx): (&TxRing<'a, Pages>, &RxRing<'a, Pages>),
    (tx_page, rx_page): (&'a Page, &'a Page),
    pages: &Pages,
) -> (TxRing<'a, Pages>, RxRing<'a, Pages>) {
    use super::super::private;
    let mut frame = [0; PAGE];
    let (tx, rx) = (tx.state(), rx.state());
    let said = private::Moving {
        tx,
        rx,
        ..private::Moving::default()
    };
    private::rest(&mut frame, &said);
    let read = private::moving(&frame).unwrap();
    assert_eq!(read, said);
    (
        TxRing::adopt(tx_page, pages.clone(), ALL, &read.tx).unwrap(),
        RxRing::adopt(rx_page, pages.clone(), &read.rx).unwrap(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Rings that go from image to image at any moment, with the backend at work all the time: each
    /// frame comes once, whole and in order, both ways, and no slot or page is lost.
    #[test]
    fn rings_go_on_in_another_image(steps in proptest::collection::vec((0u8..7, 14usize..9000, 0usize..6), 1..200)) {
        let (tx_page, rx_page) = (page(), page());
        // Those of the two directions.
        let (tx_pages, rx_pages) = (Pages::new(), Pages::new());
        let mut tx = TxRing::new(&tx_page, tx_pages.clone(), ALL);
        let mut rx = RxRing::new(&rx_page, rx_pages.clone());
        let mut tx_back = Back::new(&tx_page, TX_STRIDE, &tx_pages);
        let mut rx_back = Back::new(&rx_page, RX_STRIDE, &rx_pages);
        let mut sent = std::collections::VecDeque::new();
        let mut coming = std::collections::VecDeque::new();
        for (n, (what, len, count)) in steps.into_iter().enumerate() {
            match what {
                0 | 1 => {
                    let data = pattern(len, n as u8);
                    let gso = (what == 1).then_some((Gso::Tcp4, 1000));
                    let meta = TxMeta { csum_blank: what == 1, gso };
                    if tx.send(&[&data], meta).unwrap().is_ok() { sent.push_back(data); }
                }
                2 => { tx.publish(); }
                3 => for _ in 0..count {
                    if tx_back.requests() == 0 { break; }
                    prop_assert_eq!(Some(tx_back.take_frame().0), sent.pop_front());
                },
                4 => tx_back.push(),
                5 => {
                    // A frame of a few slots, of which the last may be shown later.
                    let slots = count.max(1) as u32;
                    let posted = rx_page[REQ_PROD].load(Ordering::SeqCst);
                    if posted.wrapping_sub(rx_back.rsp_prod) >= slots {
                        let mut whole = Vec::new();
                        for slot in 0..slots {
                            let data = pattern(len.min(PAGE), (n as u8) ^ (slot as u8));
                            let more = if slot + 1 < slots { RXF_MORE_DATA } else { 0 };
                            rx_back.rx_data(0, more, &data);
                            if len.is_multiple_of(2) || more == 0 { rx_back.push(); }
                            whole.extend(data);
                        }
                        coming.push_back(whole);
                    }
                }
                _ => {
                    for (frame, _, _) in collect(&mut rx, count).unwrap() {
                        prop_assert_eq!(Some(frame), coming.pop_front());
                    }
                    if len.is_multiple_of(2) { rx.publish(); }
                }
            }
            if n % 3 == 0 {
                let pages = (&tx_page as &Page, &rx_page as &Page);
                tx = go_on((&tx, &rx), pages, &tx_pages).0;
                rx = go_on((&tx, &rx), pages, &rx_pages).1;
            }
        }
        tx.publish();
        while tx_back.requests() != 0 {
            prop_assert_eq!(Some(tx_back.take_frame().0), sent.pop_front());
        }
        tx_back.push();
        tx.reclaim().unwrap();
        prop_assert_eq!((sent.len(), tx.free.len(), tx.extras, tx.front.room()), (0, SLOTS as usize, 0, SLOTS));
        for (frame, _, _) in collect(&mut rx, 1000).unwrap() {
            prop_assert_eq!(Some(frame), coming.pop_front());
        }
        prop_assert_eq!(coming.len(), 0);
        rx.publish();
        prop_assert_eq!(rx.front.published.wrapping_sub(rx.front.consumed), SLOTS);
    }

    /// No ring is made of what none can be.
    #[test]
    fn states_that_cannot_be_are_refused(written: u32, published: u32, consumed: u32, out: [u64; 4], extras: u32) {
        let page = page();
        let indices = Indices { written, published, consumed };
        let state = TxState { indices, out, extras, errors: 0 };
        if let Some(mut tx) = TxRing::adopt(&page, Pages::new(), ALL, &state) {
            prop_assert_eq!(tx.state(), state);
            let _ = tx.send(&[&pattern(5000, 1)], TxMeta::default());
        }
        let state = RxState { indices, partial: extras, errors: 0 };
        prop_assert_eq!(RxRing::adopt(&page, Pages::new(), &state).is_some(), state.is_sound());
    }
}

fn rx_violation(play: impl FnOnce(&mut Back<'_>)) -> Violation {
    let (ring, pages) = (page(), Pages::new());
    let mut rx = RxRing::new(&ring, pages.clone());
    let mut back = Back::new(&ring, RX_STRIDE, &pages);
    play(&mut back);
    back.push();
    rx.receive(64, &mut |_, _| {}).unwrap_err()
}

fn tx_violation(play: impl FnOnce(&mut Back<'_>)) -> Violation {
    let (ring, pages) = (page(), Pages::new());
    let mut tx = TxRing::new(&ring, pages.clone(), ALL);
    let mut back = Back::new(&ring, TX_STRIDE, &pages);
    let blank = TxMeta {
        csum_blank: true,
        gso: Some((Gso::Tcp4, 1000)),
    };
    tx.send(&[&pattern(100, 0)], TxMeta::default())
        .unwrap()
        .unwrap();
    tx.send(&[&pattern(3000, 0)], blank).unwrap().unwrap();
    tx.publish();
    play(&mut back);
    back.push();
    tx.reclaim().unwrap_err()
}

#[test]
fn rsp_prod_past_the_requests_is_refused() {
    assert_eq!(
        rx_violation(|b| b.rsp_prod = SLOTS + 1),
        Violation::Index(SLOTS + 1)
    );
    assert_eq!(
        rx_violation(|b| b.rsp_prod = u32::MAX),
        Violation::Index(u32::MAX)
    );
    assert_eq!(tx_violation(|b| b.rsp_prod = 4), Violation::Index(4));
}

#[test]
fn requests_not_shown_cannot_be_answered() {
    let (ring, pages) = (page(), Pages::new());
    let mut tx = TxRing::new(&ring, pages, ALL);
    tx.send(&[&pattern(100, 0)], TxMeta::default())
        .unwrap()
        .unwrap();
    ring[RSP_PROD].store(1, Ordering::SeqCst);
    assert_eq!(tx.reclaim(), Err(Violation::Index(1)));
}

#[test]
fn ids_out_of_range_or_not_out_are_refused() {
    assert_eq!(tx_violation(|b| b.respond(&[256])), Violation::Id(256));
    assert_eq!(tx_violation(|b| b.respond(&[77])), Violation::Id(77));
    assert_eq!(
        tx_violation(|b| {
            b.respond(&[0]);
            b.respond(&[0])
        }),
        Violation::Id(0)
    );
    assert_eq!(rx_violation(|b| b.rx_raw(1, 0, 0, 60)), Violation::Id(1));
    assert_eq!(
        rx_violation(|b| b.rx_raw(0x100, 0, 0, 60)),
        Violation::Id(0x100)
    );
    assert_eq!(
        rx_violation(|b| {
            b.rx_raw(0, 0, 0, 60);
            b.rx_raw(0, 0, 0, 60)
        }),
        Violation::Id(0)
    );
}

#[test]
fn statuses_that_there_are_not_are_refused() {
    assert_eq!(
        tx_violation(|b| b.respond(&[2 << 16])),
        Violation::Status(2)
    );
    assert_eq!(
        rx_violation(|b| b.rx_raw(0, 0, 0, -3)),
        Violation::Status(-3)
    );
    // More slots of extra information answered than were sent.
    let null = u32::from(RSP_NULL as u16) << 16;
    assert_eq!(
        tx_violation(|b| {
            b.respond(&[null]);
            b.respond(&[null])
        }),
        Violation::Id(0)
    );
}

#[test]
fn data_outside_its_page_is_refused() {
    for (offset, len) in [
        (0, 4097),
        (4096, 1),
        (4095, 2),
        (u16::MAX, 1),
        (1, i16::MAX),
    ] {
        let bounds = Violation::Bounds {
            offset,
            len: len as u16,
        };
        assert_eq!(rx_violation(|b| b.rx_raw(0, offset, 0, len)), bounds);
    }
}

#[test]
fn extra_information_is_bounded_and_checked() {
    let with = |words: &'static [[u32; 2]]| {
        rx_violation(move |b| {
            b.rx_raw(0, 0, RXF_EXTRA_INFO, 60);
            words.iter().for_each(|w| b.respond(w));
            b.rx_raw(9, 0, 0, 60);
        })
    };
    assert_eq!(with(&[[0, 0]]), Violation::Extra(0));
    assert_eq!(with(&[[6, 0]]), Violation::Extra(6));
    assert_eq!(with(&[[1, 1]]), Violation::Extra(1)); // no size
    assert_eq!(with(&[[1 | 1400 << 16, 3]]), Violation::Extra(1)); // no such protocol
    assert_eq!(
        with(&[[2 | (EXTRA_MORE as u32) << 8, 0]; 2]),
        Violation::Extra(2)
    );
    assert_eq!(
        rx_violation(|b| b.rx_raw(0, 0, RXF_GSO_PREFIX, 60)),
        Violation::Extra(0)
    );
}

#[test]
fn a_frame_without_end_is_refused() {
    let endless = |status| {
        rx_violation(move |b| {
            (0..SLOTS as u16).for_each(|id| b.rx_raw(id, 0, RXF_MORE_DATA, status));
        })
    };
    assert_eq!(endless(60), Violation::Chain);
    assert_eq!(endless(0), Violation::Chain);
    assert_eq!(endless(RSP_ERROR), Violation::Chain);
}

#[test]
fn frames_that_failed_or_are_short_are_passed_over() {
    let (ring, pages) = (page(), Pages::new());
    let mut rx = RxRing::new(&ring, pages.clone());
    let mut back = Back::new(&ring, RX_STRIDE, &pages);
    back.rx_raw(0, 0, RXF_MORE_DATA, RSP_ERROR);
    back.rx_data(0, 0, &pattern(60, 0));
    back.rx_data(0, 0, &pattern(13, 0));
    back.rx_raw(3, 0, 0, 0);
    back.rx_data(0, 0, &pattern(60, 3));
    back.push();
    let got = collect(&mut rx, 64).unwrap();
    assert_eq!(got.len(), 1);
    assert_eq!(got[0].0, pattern(60, 3));
    assert_eq!(rx.errors, 3);
}

/// XSA-155: what is checked is what is used, though the backend changes it in between.
#[test]
fn entries_are_copied_once() {
    let (ring, pages) = (page(), Pages::new());
    let mut rx = RxRing::new(&ring, pages.clone());
    let mut back = Back::new(&ring, RX_STRIDE, &pages);
    back.rx_data(0, 0, &pattern(1000, 1));
    back.rx_data(0, 0, &pattern(1000, 2));
    back.push();
    let mut seen = 0;
    rx.receive(1, &mut |pieces, _| {
        // The frame is being handled: now its entry says something else.
        back.page[HEADER].store(7 | 0xffff << 16, Ordering::SeqCst);
        back.page[HEADER + 1].store(0xffff_ffff, Ordering::SeqCst);
        // And its bytes: the headers are ours already.
        back.pages.write(0, 0, &[0xee; 300]);
        assert_eq!(pieces[0], &pattern(1000, 1)[..HEAD]);
        assert_eq!(pieces.concat().len(), 1000);
        seen += 1;
    })
    .unwrap();
    assert_eq!(seen, 1);
    assert_eq!(collect(&mut rx, 9).unwrap()[0].0, pattern(1000, 2));
}

#[test]
fn work_is_bounded_by_the_budget() {
    let (ring, pages) = (page(), Pages::new());
    let mut rx = RxRing::new(&ring, pages.clone());
    let mut back = Back::new(&ring, RX_STRIDE, &pages);
    (0..100).for_each(|n| back.rx_data(0, 0, &pattern(60, n)));
    back.push();
    assert_eq!(collect(&mut rx, 64).unwrap().len(), 64);
    assert!(rx.arm(), "there is more");
    assert_eq!(collect(&mut rx, 64).unwrap().len(), 36);
    assert!(!rx.arm());
}

#[test]
fn a_frame_is_refused_that_the_backend_cannot_take() {
    let (ring, pages) = (page(), Pages::new());
    let mut tx = TxRing::new(&ring, pages, TxFeatures::default());
    let gso = |csum_blank| TxMeta {
        csum_blank,
        gso: Some((Gso::Tcp4, 1400)),
    };
    for (len, meta) in [
        (13, TxMeta::default()),
        (4097, TxMeta::default()),
        (65536, TxMeta::default()),
        (2000, gso(true)),
    ] {
        assert_eq!(
            tx.send(&[&pattern(len, 0)], meta),
            Ok(Err(SendError::Refused))
        );
    }
    assert_eq!(tx.front.room(), SLOTS);
    tx.features = ALL;
    assert_eq!(
        tx.send(&[&pattern(2000, 0)], gso(false)),
        Ok(Err(SendError::Refused))
    );
    assert_eq!(
        tx.send(&[&pattern(65536, 0)], gso(true)),
        Ok(Err(SendError::Refused))
    );
}

#[test]
fn the_backend_is_told_once_a_batch_and_only_if_it_asks() {
    let (ring, pages) = (page(), Pages::new());
    let mut tx = TxRing::new(&ring, pages, ALL);
    let send = |tx: &mut TxRing<'_, Pages>| {
        tx.send(&[&pattern(60, 0)], TxMeta::default())
            .unwrap()
            .unwrap()
    };
    send(&mut tx);
    send(&mut tx);
    assert!(tx.publish());
    assert!(!tx.publish(), "nothing new");
    send(&mut tx);
    assert!(!tx.publish(), "it has not asked since");
    ring[REQ_EVENT].store(4, Ordering::SeqCst);
    send(&mut tx);
    assert!(tx.publish());
}

#[test]
fn a_full_ring_asks_for_an_event() {
    let (ring, pages) = (page(), Pages::new());
    let mut tx = TxRing::new(&ring, pages.clone(), ALL);
    let mut back = Back::new(&ring, TX_STRIDE, &pages);
    while tx
        .send(&[&pattern(60, 0)], TxMeta::default())
        .unwrap()
        .is_ok()
    {}
    tx.publish();
    assert!(!tx.ready() && !tx.arm());
    assert_eq!(ring[RSP_EVENT].load(Ordering::SeqCst), SLOTS / 2);
    (0..100).for_each(|_| drop(back.take_frame()));
    back.push();
    assert!(tx.ready() && tx.arm());
    assert_eq!(tx.reclaim(), Ok(100));
}

/// XSA-391: a backend that does nothing but send events for a second gets few upcalls.
#[test]
fn an_event_storm_is_held_off() {
    let (mut throttle, mut now, mut upcalls) = (Throttle::default(), 0u64, 0);
    while now < 1_000_000_000 {
        upcalls += 1;
        throttle.woken(false, now);
        now = throttle.held(now).unwrap_or(now + 10_000);
    }
    assert!(upcalls < 25, "{upcalls}");
    throttle.woken(true, now);
    assert_eq!(throttle.held(now), None);
}
