//! The network device's rings (public/io/netif.h, io/ring.h) as plain logic over shared memory.
//!
//! The other side is not trusted. Every entry is copied once and then checked (XSA-155), producer
//! indices are bounded by what was asked for, ids have to be those that are out, and sizes and
//! offsets have to lie in a page. The first breach ends the ring's use: a [`Violation`], never a
//! panic. Work per call is bounded by the caller's budget and the ring's size.

use crate::net::nic::{Gso, RxMeta, SendError, TxMeta};
use crate::xen::grant::GrantRef;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering, fence};

/// Slots in either ring: `__RING_SIZE` of a page.
pub const SLOTS: u32 = 256;
/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Longest frame, in bytes (`XEN_NETIF_MAX_TX_SIZE`).
pub const MAX_FRAME: usize = 0xffff;
/// Slots of data in a frame that any backend takes (`XEN_NETIF_NR_SLOTS_MIN`).
const MAX_TX_SLOTS: usize = 18;
/// Slots of data in a received frame. Linux sends 17 fragments and a head.
const MAX_RX_SLOTS: usize = 20;
/// Bytes of a frame that its first piece has.
pub const HEAD: usize = 256;
/// Bytes of an Ethernet header.
const ETH_HLEN: usize = 14;

/// `XEN_NETTXF_csum_blank`, `_data_validated`, `_more_data`, `_extra_info`.
const TXF_CSUM_BLANK: u16 = 1;
const TXF_DATA_VALIDATED: u16 = 2;
const TXF_MORE_DATA: u16 = 4;
const TXF_EXTRA_INFO: u16 = 8;
/// `XEN_NETRXF_data_validated`, `_csum_blank`, `_more_data`, `_extra_info`, `_gso_prefix`.
const RXF_DATA_VALIDATED: u16 = 1;
const RXF_CSUM_BLANK: u16 = 2;
const RXF_MORE_DATA: u16 = 4;
const RXF_EXTRA_INFO: u16 = 8;
const RXF_GSO_PREFIX: u16 = 16;
/// `XEN_NETIF_EXTRA_TYPE_GSO`, `XEN_NETIF_EXTRA_TYPE_MAX` (with XDP), `XEN_NETIF_EXTRA_FLAG_MORE`.
const EXTRA_GSO: u8 = 1;
const EXTRA_MAX: u8 = 6;
const EXTRA_MORE: u8 = 1;
/// `XEN_NETIF_RSP_NULL`, `_OKAY`, `_ERROR`, `_DROPPED`.
const RSP_NULL: i16 = 1;
const RSP_OKAY: i16 = 0;
const RSP_ERROR: i16 = -1;
const RSP_DROPPED: i16 = -2;

/// A ring's page.
pub type Page = [AtomicU32; PAGE / 4];

/// Words before the first entry, and where the indices are in them.
const HEADER: usize = 16;
const REQ_PROD: usize = 0;
const REQ_EVENT: usize = 1;
const RSP_PROD: usize = 2;
const RSP_EVENT: usize = 3;

/// A breach of the protocol by the backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Violation {
    /// More responses than requests.
    Index(u32),
    /// A response to a request that is not out.
    Id(u16),
    /// A status that there is not.
    Status(i16),
    /// Data outside its page.
    Bounds {
        /// Where it is said to start.
        offset: u16,
        /// Its length.
        len: u16,
    },
    /// Extra information that makes no sense.
    Extra(u8),
    /// A frame of more slots than a frame has.
    Chain,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(n) => write!(f, "rsp_prod is {n}, past what was asked for"),
            Self::Id(id) => write!(f, "a response to {id}, which is not out"),
            Self::Status(s) => write!(f, "a response of status {s}"),
            Self::Bounds { offset, len } => write!(f, "{len} bytes at {offset} of a page"),
            Self::Extra(kind) => write!(f, "bad extra information of type {kind}"),
            Self::Chain => f.write_str("a frame of too many slots"),
        }
    }
}

/// The pages that frames lie in, one for each slot: page *n* belongs to slot or id *n*.
pub trait Buffers {
    /// The grant of a page.
    fn gref(&self, page: u16) -> GrantRef;
    /// Bytes of a page; less where it ends.
    fn bytes(&self, page: u16, at: usize, len: usize) -> &[u8];
    /// Writes into a page, up to its end.
    fn write(&mut self, page: u16, at: usize, bytes: &[u8]);
}

/// What both rings have: the page, and how far the two sides are.
#[derive(Debug)]
struct Front<'a> {
    page: &'a Page,
    /// `req_prod_pvt`: requests written.
    written: u32,
    /// Requests the backend may see.
    published: u32,
    /// `rsp_cons`
    consumed: u32,
}

/// How far our side of a ring is: what is not in its page.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Indices {
    /// `req_prod_pvt`: requests written.
    pub written: u32,
    /// Requests the backend may see.
    pub published: u32,
    /// `rsp_cons`
    pub consumed: u32,
}

impl Indices {
    /// Slots without an answer; `None` if the indices make no sense.
    fn used(self) -> Option<u32> {
        let used = self.written.wrapping_sub(self.consumed);
        let seen = self.published.wrapping_sub(self.consumed);
        (used <= SLOTS && seen <= used).then_some(used)
    }
}

impl<'a> Front<'a> {
    fn indices(&self) -> Indices {
        Indices {
            written: self.written,
            published: self.published,
            consumed: self.consumed,
        }
    }

    /// Goes on where another image was; the page is left as it is.
    fn adopt(page: &'a Page, indices: Indices) -> Self {
        Self {
            page,
            written: indices.written,
            published: indices.published,
            consumed: indices.consumed,
        }
    }

    fn new(page: &'a Page) -> Self {
        for word in page {
            word.store(0, Ordering::Relaxed);
        }
        page[REQ_EVENT].store(1, Ordering::Release);
        Self {
            page,
            written: 0,
            published: 0,
            consumed: 0,
        }
    }

    fn word(&self, slot: u32, stride: usize, n: usize) -> &AtomicU32 {
        &self.page[HEADER + (slot % SLOTS) as usize * stride + n]
    }

    /// Responses that are there.
    fn responses(&self) -> Result<u32, Violation> {
        let prod = self.page[RSP_PROD].load(Ordering::Acquire);
        let there = prod.wrapping_sub(self.consumed);
        if there > self.published.wrapping_sub(self.consumed) {
            return Err(Violation::Index(prod));
        }
        Ok(there)
    }

    /// Slots that are not taken by a request without an answer.
    fn room(&self) -> u32 {
        SLOTS.saturating_sub(self.written.wrapping_sub(self.consumed))
    }

    /// `RING_PUSH_REQUESTS_AND_CHECK_NOTIFY`
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.written);
        if old == new {
            return false;
        }
        self.page[REQ_PROD].store(new, Ordering::Release);
        self.published = new;
        fence(Ordering::SeqCst);
        let event = self.page[REQ_EVENT].load(Ordering::Relaxed);
        new.wrapping_sub(event) < new.wrapping_sub(old)
    }

    /// Asks for an event when `count` more responses are there; true if that is so already.
    fn arm(&self, count: u32) -> bool {
        let at = self.consumed.wrapping_add(count);
        self.page[RSP_EVENT].store(at, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let there = self.page[RSP_PROD].load(Ordering::Acquire);
        there.wrapping_sub(self.consumed) >= count
    }
}

/// What the backend does for frames to send.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxFeatures {
    /// `feature-sg`: frames of several slots.
    pub sg: bool,
    /// `feature-gso-tcpv4`
    pub gso4: bool,
    /// `feature-gso-tcpv6`
    pub gso6: bool,
}

const TX_STRIDE: usize = 3;

/// Frames to send, copied into pages that stay granted.
#[derive(Debug)]
pub struct TxRing<'a, B> {
    front: Front<'a>,
    buffers: B,
    features: TxFeatures,
    free: ArrayVec<u16, { SLOTS as usize }>,
    out: [bool; SLOTS as usize],
    /// Slots of extra information that are not answered: they have no id.
    extras: u32,
    /// Frames that the backend did not send.
    pub errors: u64,
}

/// Our side of a tx ring, for another image to go on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TxState {
    /// How far it is.
    pub indices: Indices,
    /// A bit for each page that is out.
    pub out: [u64; SLOTS as usize / 64],
    /// Slots of extra information that are not answered.
    pub extras: u32,
    /// Frames that the backend did not send.
    pub errors: u64,
}

impl TxState {
    fn is_out(&self, id: u16) -> bool {
        let word = self.out.get(usize::from(id) / 64);
        word.is_some_and(|w| w & 1 << (id % 64) != 0)
    }

    /// Whether a ring can be so: each slot without an answer has its page, or is extra information.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        let out: u32 = self.out.iter().map(|w| w.count_ones()).sum();
        self.indices
            .used()
            .is_some_and(|used| out.checked_add(self.extras) == Some(used))
    }
}

impl<'a, B: Buffers> TxRing<'a, B> {
    /// What another image has to know to go on.
    #[must_use]
    pub fn state(&self) -> TxState {
        let mut out = [0; SLOTS as usize / 64];
        for (id, is_out) in self.out.iter().enumerate() {
            out[id / 64] |= u64::from(*is_out) << (id % 64);
        }
        TxState {
            indices: self.front.indices(),
            out,
            extras: self.extras,
            errors: self.errors,
        }
    }

    /// Goes on where another image was; the page is left as it is. `None` if no ring is so.
    pub fn adopt(
        page: &'a Page,
        buffers: B,
        features: TxFeatures,
        state: &TxState,
    ) -> Option<Self> {
        let ids = 0..SLOTS as u16;
        state.is_sound().then(|| Self {
            front: Front::adopt(page, state.indices),
            buffers,
            features,
            free: ids.rev().filter(|id| !state.is_out(*id)).collect(),
            out: core::array::from_fn(|id| state.is_out(id as u16)),
            extras: state.extras,
            errors: state.errors,
        })
    }

    /// Starts the ring; the page is cleared.
    pub fn new(page: &'a Page, buffers: B, features: TxFeatures) -> Self {
        Self {
            front: Front::new(page),
            buffers,
            features,
            free: (0..SLOTS as u16).rev().collect(),
            out: [false; SLOTS as usize],
            extras: 0,
            errors: 0,
        }
    }

    /// Puts one frame into the ring; the backend sees it after [`publish`](Self::publish).
    ///
    /// # Errors
    /// `Ok(Err(_))`: it was not taken. `Err(_)`: the backend broke the protocol.
    pub fn send(
        &mut self,
        pieces: &[&[u8]],
        meta: TxMeta,
    ) -> Result<Result<(), SendError>, Violation> {
        let total: usize = pieces.iter().map(|p| p.len()).sum();
        let slots = total.div_ceil(PAGE);
        if !(ETH_HLEN..=MAX_FRAME).contains(&total)
            || slots > if self.features.sg { MAX_TX_SLOTS } else { 1 }
        {
            return Ok(Err(SendError::Refused));
        }
        let gso = match meta.gso {
            None => None,
            Some((kind, mss)) => {
                let (can, number) = match kind {
                    Gso::Tcp4 => (self.features.gso4, 1),
                    Gso::Tcp6 => (self.features.gso6, 2),
                };
                if !can || mss == 0 || !meta.csum_blank {
                    return Ok(Err(SendError::Refused));
                }
                Some((number, mss))
            }
        };
        let need = slots + usize::from(gso.is_some());
        if !self.has_room(slots, need) {
            self.reclaim()?;
            if !self.has_room(slots, need) {
                return Ok(Err(SendError::Full));
            }
        }
        let mut flags = 0;
        if meta.csum_blank {
            flags |= TXF_CSUM_BLANK | TXF_DATA_VALIDATED;
        }
        let mut source = pieces.iter().copied();
        let mut piece: &[u8] = &[];
        for n in 0..slots {
            let Some(id) = self.free.pop() else {
                return Ok(Err(SendError::Full));
            };
            self.out[usize::from(id)] = true;
            let len = (total - n * PAGE).min(PAGE);
            let mut at = 0;
            while at < len {
                if piece.is_empty() {
                    piece = source.next().unwrap_or_default();
                    continue;
                }
                let (now, later) = piece.split_at(piece.len().min(len - at));
                self.buffers.write(id, at, now);
                at += now.len();
                piece = later;
            }
            let more = if n + 1 < slots { TXF_MORE_DATA } else { 0 };
            // The first slot has the whole frame's size.
            if n == 0 {
                let extra = if gso.is_some() { TXF_EXTRA_INFO } else { 0 };
                self.put(id, flags | more | extra, total as u16);
                if let Some((number, mss)) = gso {
                    self.put_gso(number, mss);
                }
            } else {
                self.put(id, more, len as u16);
            }
        }
        Ok(Ok(()))
    }

    fn has_room(&self, slots: usize, need: usize) -> bool {
        self.free.len() >= slots && self.front.room() as usize >= need
    }

    fn put(&mut self, id: u16, flags: u16, size: u16) {
        let slot = self.front.written;
        let words = [
            self.buffers.gref(id).0,
            u32::from(flags) << 16,
            u32::from(id) | u32::from(size) << 16,
        ];
        for (n, word) in words.into_iter().enumerate() {
            let to = self.front.word(slot, TX_STRIDE, n);
            to.store(word, Ordering::Relaxed);
        }
        self.front.written = slot.wrapping_add(1);
    }

    fn put_gso(&mut self, number: u8, mss: u16) {
        let slot = self.front.written;
        let words = [
            u32::from(EXTRA_GSO) | u32::from(mss) << 16,
            u32::from(number),
            0,
        ];
        for (n, word) in words.into_iter().enumerate() {
            let to = self.front.word(slot, TX_STRIDE, n);
            to.store(word, Ordering::Relaxed);
        }
        self.front.written = slot.wrapping_add(1);
        self.extras += 1;
    }

    /// Takes back the pages of frames that are sent; returns how many slots were answered.
    ///
    /// # Errors
    /// The backend broke the protocol.
    pub fn reclaim(&mut self) -> Result<u32, Violation> {
        let there = self.front.responses()?;
        for _ in 0..there {
            let slot = self.front.consumed;
            let word = self.front.word(slot, TX_STRIDE, 0).load(Ordering::Relaxed);
            let (id, status) = (word as u16, (word >> 16) as i16);
            match status {
                RSP_NULL => {
                    self.extras = self.extras.checked_sub(1).ok_or(Violation::Id(id))?;
                }
                RSP_OKAY | RSP_ERROR | RSP_DROPPED => {
                    let out = self.out.get_mut(usize::from(id)).ok_or(Violation::Id(id))?;
                    if !core::mem::replace(out, false) {
                        return Err(Violation::Id(id));
                    }
                    self.free.try_push(id).map_err(|_| Violation::Id(id))?;
                    self.errors += u64::from(status != RSP_OKAY);
                }
                other => return Err(Violation::Status(other)),
            }
            self.front.consumed = slot.wrapping_add(1);
        }
        Ok(there)
    }

    /// Whether the longest frame has room, or would after a [`reclaim`](Self::reclaim). So it is, too,
    /// when the backend has broken the ring: who sends finds that, else it would be waited for.
    #[must_use]
    pub fn ready(&self) -> bool {
        let answered = self.front.responses();
        answered.map_or(true, |n| self.front.room() + n > MAX_TX_SLOTS as u32)
    }

    /// Asks for an event when half of what is out is answered; true if there is room already. Sent
    /// frames need no event otherwise: their pages wait until they are wanted.
    pub fn arm(&self) -> bool {
        let out = self.front.published.wrapping_sub(self.front.consumed);
        self.front.arm((out / 2).max(1)) || self.ready()
    }

    /// Shows the backend what was put into the ring; true if it wants to be told.
    pub fn publish(&mut self) -> bool {
        self.front.publish()
    }
}

const RX_STRIDE: usize = 2;

/// A piece of a received frame.
#[derive(Clone, Copy, Debug)]
struct Slice {
    page: u16,
    offset: u16,
    len: u16,
}

/// One received frame, put together from the ring.
struct Frame {
    slices: ArrayVec<Slice, MAX_RX_SLOTS>,
    meta: RxMeta,
    /// Slots it takes, extra information included.
    slots: u32,
    total: usize,
    failed: bool,
}

/// Received frames. All slots are posted at all times: slot *n* always has page *n*.
#[derive(Debug)]
pub struct RxRing<'a, B> {
    front: Front<'a>,
    buffers: B,
    head: [u8; HEAD],
    /// Slots of a frame whose last one is not there yet.
    partial: u32,
    /// Frames that the backend said it could not deliver, or that were too short.
    pub errors: u64,
}

/// Our side of an rx ring, for another image to go on with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RxState {
    /// How far it is.
    pub indices: Indices,
    /// Slots of a frame whose last one is not there yet.
    pub partial: u32,
    /// Frames that were not received.
    pub errors: u64,
}

impl RxState {
    /// Whether a ring can be so: every page is posted.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.indices.used() == Some(SLOTS) && self.partial <= SLOTS
    }
}

impl<'a, B: Buffers> RxRing<'a, B> {
    /// What another image has to know to go on.
    #[must_use]
    pub fn state(&self) -> RxState {
        RxState {
            indices: self.front.indices(),
            partial: self.partial,
            errors: self.errors,
        }
    }

    /// Goes on where another image was; the page is left as it is. `None` if no ring is so.
    pub fn adopt(page: &'a Page, buffers: B, state: &RxState) -> Option<Self> {
        state.is_sound().then(|| Self {
            front: Front::adopt(page, state.indices),
            buffers,
            head: [0; HEAD],
            partial: state.partial,
            errors: state.errors,
        })
    }

    /// Starts the ring with every page posted; the ring's page is cleared.
    pub fn new(page: &'a Page, buffers: B) -> Self {
        let mut ring = Self {
            front: Front::new(page),
            buffers,
            head: [0; HEAD],
            partial: 0,
            errors: 0,
        };
        ring.post(SLOTS);
        ring.publish();
        ring
    }

    fn post(&mut self, slots: u32) {
        for _ in 0..slots {
            let slot = self.front.written;
            let page = (slot % SLOTS) as u16;
            let words = [u32::from(page), self.buffers.gref(page).0];
            for (n, word) in words.into_iter().enumerate() {
                let to = self.front.word(slot, RX_STRIDE, n);
                to.store(word, Ordering::Relaxed);
            }
            self.front.written = slot.wrapping_add(1);
        }
    }

    /// Passes at most `budget` frames to `each` and posts their pages again; returns how many it
    /// looked at. The first piece is a copy of the frame's first [`HEAD`] bytes, which the backend
    /// cannot change any more; the others lie where it put them.
    ///
    /// # Errors
    /// The backend broke the protocol.
    pub fn receive(
        &mut self,
        budget: usize,
        each: &mut dyn FnMut(&[&[u8]], RxMeta),
    ) -> Result<usize, Violation> {
        let mut count = 0;
        while count < budget {
            let there = self.front.responses()?;
            let Some(frame) = self.next_frame(there)? else {
                self.partial = there;
                break;
            };
            self.partial = 0;
            if frame.failed || frame.total < ETH_HLEN {
                self.errors += 1;
            } else {
                self.deliver(&frame, each);
            }
            self.front.consumed = self.front.consumed.wrapping_add(frame.slots);
            self.post(frame.slots);
            count += 1;
        }
        Ok(count)
    }

    fn deliver(&mut self, frame: &Frame, each: &mut dyn FnMut(&[&[u8]], RxMeta)) {
        let mut head = 0;
        let mut pieces = ArrayVec::<&[u8], { MAX_RX_SLOTS + 1 }>::new();
        // The copy comes first, and is known when all slices are cut.
        pieces.push(&[]);
        for slice in &frame.slices {
            let (at, len) = (usize::from(slice.offset), usize::from(slice.len));
            let bytes = self.buffers.bytes(slice.page, at, len);
            let (copied, rest) = bytes.split_at(bytes.len().min(HEAD - head));
            if let Some(room) = self.head.get_mut(head..head + copied.len()) {
                room.copy_from_slice(copied);
            }
            head += copied.len();
            if !rest.is_empty() {
                let _ = pieces.try_push(rest);
            }
        }
        if let (Some(first), Some(copy)) = (pieces.first_mut(), self.head.get(..head)) {
            *first = copy;
        }
        each(&pieces, frame.meta);
    }

    /// Copies and checks the next frame's slots, of `there` responses; `None` if its last is not
    /// there yet.
    fn next_frame(&self, there: u32) -> Result<Option<Frame>, Violation> {
        let mut frame = Frame {
            slices: ArrayVec::new(),
            meta: RxMeta::default(),
            slots: 0,
            total: 0,
            failed: false,
        };
        loop {
            if frame.slots == there {
                return Ok(None);
            }
            let slot = self.front.consumed.wrapping_add(frame.slots);
            let [a, b] = self.words(slot);
            let (id, offset) = (a as u16, (a >> 16) as u16);
            let (flags, status) = (b as u16, (b >> 16) as i16);
            // Responses come in the order of requests, so each slot's id is known.
            if u32::from(id) != slot % SLOTS {
                return Err(Violation::Id(id));
            }
            if flags & RXF_GSO_PREFIX != 0 {
                return Err(Violation::Extra(0));
            }
            let first = frame.slots == 0;
            frame.slots += 1;
            match u16::try_from(status) {
                Ok(len) if usize::from(offset) + usize::from(len) <= PAGE => {
                    let page = id;
                    let slice = Slice { page, offset, len };
                    frame.slices.try_push(slice).map_err(|_| Violation::Chain)?;
                    frame.total += usize::from(len);
                }
                Ok(len) => return Err(Violation::Bounds { offset, len }),
                Err(_) if matches!(status, RSP_ERROR | RSP_DROPPED) => frame.failed = true,
                Err(_) => return Err(Violation::Status(status)),
            }
            if frame.slots as usize > MAX_RX_SLOTS + usize::from(EXTRA_MAX) {
                return Err(Violation::Chain);
            }
            if first {
                frame.meta.csum_valid = flags & (RXF_DATA_VALIDATED | RXF_CSUM_BLANK) != 0;
                if flags & RXF_EXTRA_INFO != 0 && !self.extras(&mut frame, there)? {
                    return Ok(None);
                }
            }
            if flags & RXF_MORE_DATA == 0 {
                return Ok(Some(frame));
            }
        }
    }

    /// Reads the extra information behind a frame's first slot; false if it is not all there.
    fn extras(&self, frame: &mut Frame, there: u32) -> Result<bool, Violation> {
        let mut seen = 0u8;
        loop {
            if frame.slots == there {
                return Ok(false);
            }
            let [a, b] = self.words(self.front.consumed.wrapping_add(frame.slots));
            let [kind, flags, ..] = a.to_le_bytes();
            // Each kind once at most, so the chain ends.
            if kind == 0 || kind >= EXTRA_MAX || seen & 1 << kind != 0 {
                return Err(Violation::Extra(kind));
            }
            seen |= 1 << kind;
            frame.slots += 1;
            if kind == EXTRA_GSO {
                let size = (a >> 16) as u16;
                if size == 0 || !matches!(b as u8, 1 | 2) {
                    return Err(Violation::Extra(kind));
                }
                frame.meta.gso_mss = size;
            }
            if flags & EXTRA_MORE == 0 {
                return Ok(true);
            }
        }
    }

    fn words(&self, slot: u32) -> [u32; 2] {
        [0, 1].map(|n| self.front.word(slot, RX_STRIDE, n).load(Ordering::Relaxed))
    }

    /// Asks for an event at the next response that was not seen; true if there is one already.
    pub fn arm(&self) -> bool {
        self.front.arm(self.partial + 1)
    }

    /// Shows the backend the pages that were posted; true if it wants to be told.
    pub fn publish(&mut self) -> bool {
        self.front.publish()
    }
}

/// Events without work that are let pass before a port is held.
const SPURIOUS: u32 = 8;
/// First and longest time a port is held, in ns.
const HOLD_NS: u64 = 1_000_000;
const HOLD_MAX_NS: u64 = 128_000_000;

/// Bounds what a backend can take of us by events without work (XSA-391): the port stays masked,
/// longer each time, until there is work again.
#[derive(Debug, Default)]
pub struct Throttle {
    spurious: u32,
    until: u64,
}

impl Throttle {
    /// An event came and led to `work` or not; times are in ns.
    pub fn woken(&mut self, work: bool, now: u64) {
        if work {
            *self = Self::default();
            return;
        }
        self.spurious = self.spurious.saturating_add(1);
        if let Some(over) = self.spurious.checked_sub(SPURIOUS) {
            let hold = HOLD_NS.checked_shl(over.min(7)).unwrap_or(HOLD_MAX_NS);
            self.until = now.saturating_add(hold.min(HOLD_MAX_NS));
        }
    }

    /// Until when the port is held, in ns; `None` if it isn't.
    #[must_use]
    pub fn held(&self, now: u64) -> Option<u64> {
        (now < self.until).then_some(self.until)
    }
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;
