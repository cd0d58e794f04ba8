//! One domain's connection to xenstored: which requests are out, what came back.
//!
//! Plain state over a [`Ring`]; who waits and who wakes is the client's matter.

use super::wire::{Decoder, HEADER_LEN, Header, Message, Op, PAYLOAD_MAX, Ring, Torn, Violation};
use super::{Error, Refusal, WatchEvent};
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

/// Watch events kept for those who have not fetched them; the same one twice counts once.
const MAX_EVENTS: usize = 512;

/// Names a request that is out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RequestId(u32);

/// What was asked, and in which transaction.
#[derive(Clone, Copy, Debug)]
struct Asked {
    op: Op,
    transaction: u32,
}

#[derive(Debug)]
enum Slot {
    Waiting(Asked),
    /// Nobody waits any more: the reply is dropped when it comes.
    Abandoned(Asked),
    Done(Result<Vec<u8>, Refusal>),
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Connection {
    /// Requests that are not all in the ring yet.
    out: VecDeque<Vec<u8>>,
    /// Bytes of the first of them that are.
    sent: usize,
    decoder: Decoder,
    requests: Vec<(u32, Slot)>,
    events: VecDeque<WatchEvent>,
    next_id: u32,
    /// Transactions that are open, those of an image before included.
    open: Vec<u32>,
    /// Bytes of a torn reply that are passed over.
    skip: usize,
    /// Replies to requests of an image that has crashed may come.
    lenient: bool,
    failed: Option<Violation>,
}

impl Connection {
    /// With nothing out; requests are numbered from `first_id` on.
    #[must_use]
    pub const fn new(first_id: u32) -> Self {
        Self {
            out: VecDeque::new(),
            sent: 0,
            decoder: Decoder::new(),
            requests: Vec::new(),
            events: VecDeque::new(),
            next_id: first_id,
            open: Vec::new(),
            skip: 0,
            lenient: false,
            failed: None,
        }
    }

    /// The same, where an image has come to rest: these transactions of its are open.
    #[must_use]
    pub fn going_on(first_id: u32, open: Vec<u32>) -> Self {
        Self {
            open,
            ..Self::new(first_id)
        }
    }

    /// The same, where an image has crashed in the middle of messages. What is missing of its request
    /// is sent as zeros, which xenstored takes for a path or a value that ends early; the rest of its
    /// reply, and replies to its other requests, are passed over.
    #[must_use]
    pub fn after_crash(first_id: u32, torn: Torn) -> Self {
        let mut new = Self::new(first_id);
        if torn.request != 0 {
            new.out.push_back(vec![0; torn.request as usize]);
        }
        new.skip = torn.reply as usize;
        new.lenient = true;
        new
    }

    /// Queues a request whose payload is `parts`, one after the other.
    ///
    /// # Errors
    /// It is too long, or the connection is closed.
    pub fn request(
        &mut self,
        op: Op,
        transaction: u32,
        parts: &[&[u8]],
    ) -> Result<RequestId, Error> {
        self.check()?;
        let len: usize = parts.iter().map(|p| p.len()).sum();
        if len > PAYLOAD_MAX {
            return Err(Error::TooLong);
        }
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        let header = Header {
            op: op as u32,
            id,
            transaction,
            len: len as u32,
        };
        let mut message = Vec::with_capacity(HEADER_LEN + len);
        message.extend(header.to_bytes());
        for part in parts {
            message.extend(*part);
        }
        self.out.push_back(message);
        self.requests
            .push((id, Slot::Waiting(Asked { op, transaction })));
        Ok(RequestId(id))
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.map_or(Ok(()), |v| Err(Error::Closed(v)))
    }

    /// Moves what can be moved, both ways; true if something was and the other side wants to know.
    pub fn pump(&mut self, ring: &mut impl Ring) -> bool {
        if self.failed.is_some() {
            return false;
        }
        match self.try_pump(ring) {
            Ok(moved) => moved,
            Err(violation) => {
                self.failed = Some(violation);
                self.out.clear();
                self.events.clear();
                false
            }
        }
    }

    fn try_pump(&mut self, ring: &mut impl Ring) -> Result<bool, Violation> {
        let mut moved = false;
        while let Some(first) = self.out.front() {
            if self.sent == 0 {
                // A header goes out whole: xenstored has to know how long a message is of which only
                // the rest can be made up after a crash.
                if ring.room()? < HEADER_LEN {
                    break;
                }
                ring.request_begins(first.len() as u32);
            }
            let sent = ring.send(first.get(self.sent..).unwrap_or(&[]))?;
            if sent == 0 {
                break;
            }
            moved = true;
            self.sent += sent;
            if self.sent >= first.len() {
                self.out.pop_front();
                self.sent = 0;
            }
        }
        let mut buf = [0; 256];
        loop {
            let begins = self.skip == 0 && self.decoder.at_boundary();
            let wanted = match self.skip {
                0 => self.decoder.missing(),
                n => n,
            };
            let room = buf.len().min(wanted);
            let count = ring.look(&mut buf[..room])?;
            let mut bytes = buf.get(..count).ok_or(Violation::RingIndices)?;
            // A header is taken whole, so that the end of its message is known as soon as one byte is.
            if bytes.is_empty() || begins && count < HEADER_LEN {
                break;
            }
            let message = if self.skip == 0 {
                self.decoder.feed(&mut bytes)?
            } else {
                self.skip -= count;
                None
            };
            if begins {
                let payload = match self.decoder.at_boundary() {
                    true => 0,
                    false => self.decoder.missing(),
                };
                ring.reply_begins((HEADER_LEN + payload) as u32);
            }
            ring.take(count);
            moved = true;
            if let Some(message) = message {
                self.accept(message)?;
            }
        }
        Ok(moved)
    }

    /// Has an event told to whoever fetches them.
    ///
    /// # Errors
    /// There are too many that nobody has fetched.
    pub fn add_event(&mut self, event: WatchEvent) -> Result<(), Violation> {
        if self.events.contains(&event) {
            return Ok(());
        }
        if self.events.len() == MAX_EVENTS {
            return Err(Violation::Events);
        }
        self.events.push_back(event);
        Ok(())
    }

    /// Transactions that are open.
    #[must_use]
    pub fn open(&self) -> &[u32] {
        &self.open
    }

    fn accept(&mut self, message: Message) -> Result<(), Violation> {
        let Header { op, id, .. } = message.header;
        if op == Op::WatchEvent as u32 {
            let event = WatchEvent::parse(&message.payload).ok_or(Violation::Payload)?;
            return self.add_event(event);
        }
        let at = self
            .requests
            .iter()
            .position(|(i, slot)| *i == id && !matches!(slot, Slot::Done(_)));
        let Some(at) = at else {
            return self.lenient.then_some(()).ok_or(Violation::Reply);
        };
        let (Slot::Waiting(asked) | Slot::Abandoned(asked)) = self.requests[at].1 else {
            return Err(Violation::Reply);
        };
        let result = match op {
            _ if op == asked.op as u32 => Ok(message.payload),
            _ if op == Op::Error as u32 => Err(Refusal::parse(&message.payload)),
            _ => return Err(Violation::Reply),
        };
        match (asked.op, &result) {
            (Op::TransactionStart, Ok(payload)) => self.open.extend(number(payload)),
            (Op::ResetWatches, Ok(_)) => self.open.clear(),
            // However it ended.
            (Op::TransactionEnd, _) => self.open.retain(|t| *t != asked.transaction),
            _ => {}
        }
        if matches!(self.requests[at].1, Slot::Abandoned(_)) {
            self.requests.swap_remove(at);
        } else {
            self.requests[at].1 = Slot::Done(result);
        }
        Ok(())
    }

    /// The reply to a request, once; `None` while there is none.
    pub fn take(&mut self, id: RequestId) -> Option<Result<Vec<u8>, Error>> {
        if let Err(e) = self.check() {
            self.requests.retain(|(i, _)| *i != id.0);
            return Some(Err(e));
        }
        let at = self.requests.iter().position(|(i, _)| *i == id.0)?;
        if !matches!(self.requests[at].1, Slot::Done(_)) {
            return None;
        }
        match self.requests.swap_remove(at).1 {
            Slot::Done(result) => Some(result.map_err(Error::Refused)),
            _ => None,
        }
    }

    /// Nobody waits for this reply any more.
    pub fn abandon(&mut self, id: RequestId) {
        if let Some(at) = self.requests.iter().position(|(i, _)| *i == id.0) {
            match self.requests[at].1 {
                Slot::Waiting(asked) => self.requests[at].1 = Slot::Abandoned(asked),
                Slot::Abandoned(_) => {}
                Slot::Done(_) => drop(self.requests.swap_remove(at)),
            }
        }
    }

    /// The oldest watch event.
    ///
    /// # Errors
    /// The connection is closed.
    pub fn next_event(&mut self) -> Result<Option<WatchEvent>, Error> {
        self.check()?;
        Ok(self.events.pop_front())
    }

    /// Whether all that was sent is answered and all messages are whole: another image could go on
    /// from here.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.failed.is_some()
            || (self.out.is_empty()
                && self.skip == 0
                && self.decoder.at_boundary()
                && self
                    .requests
                    .iter()
                    .all(|(_, s)| matches!(s, Slot::Done(_))))
    }
}

/// A transaction's number, as the reply to its start has it.
pub(super) fn number(payload: &[u8]) -> Option<u32> {
    let digits = payload.strip_suffix(b"\0").unwrap_or(payload);
    core::str::from_utf8(digits).ok()?.parse().ok()
}

impl WatchEvent {
    /// `path NUL token NUL`.
    fn parse(payload: &[u8]) -> Option<Self> {
        let text = |bytes: &[u8]| core::str::from_utf8(bytes).ok().map(String::from);
        let mut parts = payload.strip_suffix(b"\0")?.split(|b| *b == 0);
        let event = Self {
            path: text(parts.next()?)?,
            token: text(parts.next()?)?,
        };
        parts.next().is_none().then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xen::xenstore::wire::{Interface, Marks};
    use proptest::prelude::*;

    /// A ring whose other side is the test.
    #[derive(Default)]
    struct Wire {
        to_us: VecDeque<u8>,
        from_us: Vec<u8>,
        chunk: usize,
    }

    impl Ring for Wire {
        fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation> {
            let n = buf.len().min(self.to_us.len());
            for (to, byte) in buf.iter_mut().zip(&self.to_us) {
                *to = *byte;
            }
            Ok(n)
        }
        fn take(&mut self, count: usize) {
            self.to_us.drain(..count);
        }
        fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
            let n = bytes.len().min(self.chunk);
            self.from_us.extend(&bytes[..n]);
            Ok(n)
        }
        fn notify(&mut self) {}
    }

    fn reply(op: Op, id: u32, payload: &[u8]) -> Vec<u8> {
        let len = payload.len() as u32;
        let header = Header {
            op: op as u32,
            id,
            transaction: 0,
            len,
        };
        header
            .to_bytes()
            .into_iter()
            .chain(payload.iter().copied())
            .collect()
    }

    #[test]
    fn replies_find_their_requests_in_any_order() {
        let mut c = Connection::new(u32::MAX);
        let mut wire = Wire {
            chunk: 7,
            ..Wire::default()
        };
        let a = c.request(Op::Read, 0, &[b"a\0"]).unwrap();
        let b = c.request(Op::Write, 0, &[b"b\0", b"x"]).unwrap();
        assert!(c.pump(&mut wire));
        assert_eq!(wire.from_us.len(), 2 * HEADER_LEN + 5);
        assert!(c.take(a).is_none());
        assert!(!c.is_quiet());
        wire.to_us.extend(reply(Op::Error, 0, b"EACCES\0"));
        wire.to_us
            .extend(reply(Op::WatchEvent, 99, b"device/vif\0t\0"));
        wire.to_us
            .extend(reply(Op::WatchEvent, 99, b"device/vif\0t\0"));
        wire.to_us.extend(reply(Op::Read, u32::MAX, b"value"));
        assert!(c.pump(&mut wire));
        assert_eq!(c.take(a), Some(Ok(b"value".to_vec())));
        assert_eq!(c.take(b), Some(Err(Error::Refused(Refusal::AccessDenied))));
        let event = c.next_event().unwrap().unwrap();
        assert_eq!((&*event.path, &*event.token), ("device/vif", "t"));
        assert_eq!(c.next_event(), Ok(None));
        assert!(c.is_quiet());
    }

    #[test]
    fn a_late_reply_to_nobody_is_dropped_and_one_to_nothing_closes() {
        let mut c = Connection::new(1);
        let mut wire = Wire {
            chunk: 4096,
            ..Wire::default()
        };
        let a = c.request(Op::Read, 0, &[b"a\0"]).unwrap();
        c.abandon(a);
        wire.to_us.extend(reply(Op::Read, 1, b"late"));
        c.pump(&mut wire);
        assert!(c.is_quiet() && c.next_event() == Ok(None));
        wire.to_us.extend(reply(Op::Read, 1, b"again"));
        c.pump(&mut wire);
        assert_eq!(c.next_event(), Err(Error::Closed(Violation::Reply)));
        assert_eq!(
            c.request(Op::Read, 0, &[]),
            Err(Error::Closed(Violation::Reply))
        );
    }

    /// Wherever a crash tears what is on the way, the next image's calls are answered.
    #[test]
    fn after_a_crash_the_ring_is_used_on() {
        let request_len = HEADER_LEN + 2;
        let answer = reply(Op::Read, 7, b"stale");
        for sent in 0..=request_len {
            for read in 0..=answer.len() {
                let mut wire = Wire {
                    chunk: 4096,
                    from_us: vec![1; sent],
                    to_us: answer[read..].iter().copied().collect(),
                };
                // An answer of which nothing was read is not torn, it is one to nobody.
                let torn = Torn {
                    request: if sent == 0 {
                        0
                    } else {
                        (request_len - sent) as u32
                    },
                    reply: if read == 0 {
                        0
                    } else {
                        (answer.len() - read) as u32
                    },
                };
                let mut c = Connection::after_crash(100, torn);
                let a = c.request(Op::Read, 0, &[b"a\0"]).unwrap();
                wire.to_us.extend(reply(Op::Read, 8, b"stale, too"));
                wire.to_us.extend(reply(Op::Read, 100, b"value"));
                c.pump(&mut wire);
                assert_eq!(c.take(a), Some(Ok(b"value".to_vec())), "{torn:?}");
                let whole = if sent == 0 { 0 } else { request_len };
                assert_eq!(wire.from_us.len(), whole + request_len);
                assert!(c.is_quiet());
            }
        }
    }

    /// A ring with marks, as a domain has it.
    struct Marked {
        ring: Interface,
        marks: Marks,
    }

    impl Ring for Marked {
        fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation> {
            self.ring.look(buf)
        }
        fn take(&mut self, count: usize) {
            self.ring.take(count);
        }
        fn reply_begins(&mut self, len: u32) {
            self.ring.mark_reply(&self.marks, len);
        }
        fn request_begins(&mut self, len: u32) {
            self.ring.mark_request(&self.marks, len);
        }
        fn room(&self) -> Result<usize, Violation> {
            self.ring.room()
        }
        fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
            self.ring.send(bytes)
        }
        fn notify(&mut self) {}
    }

    /// xenstored can read on after a crash: it has each header whole, or nothing of it.
    #[test]
    fn a_header_is_sent_whole_or_not_at_all() {
        for room in 0..3 * HEADER_LEN {
            let mut wire = Marked {
                ring: Interface::blank(),
                marks: Marks::new(),
            };
            wire.ring.mark_nothing(&wire.marks);
            let full = wire.ring.room().unwrap();
            assert_eq!(wire.ring.send(&vec![7; full - room]).unwrap(), full - room);
            let mut old = Connection::new(1);
            let _ = old.request(Op::Write, 0, &[b"a\0", b"value"]).unwrap();
            old.pump(&mut wire);
            let sent = room - wire.ring.room().unwrap();
            assert!(sent == 0 || sent >= HEADER_LEN, "{sent} of {room}");
            // What is sent and what is made up is one message.
            let missing = wire.ring.torn(&wire.marks).request as usize;
            assert!(sent == 0 && missing == 0 || sent + missing == HEADER_LEN + 7);
        }
    }

    /// However far the stale replies have come when an image crashes, empty ones among them: what
    /// the marks say is what the next image has to pass over.
    #[test]
    fn marks_say_what_a_crash_tears_of_replies() {
        for first in [&b""[..], b"OK\0"] {
            let mut stale = reply(Op::Directory, 1, first);
            stale.extend(reply(Op::Write, 2, b"OK\0"));
            for there in 0..=stale.len() {
                let mut wire = Marked {
                    ring: Interface::blank(),
                    marks: Marks::new(),
                };
                let mut old = Connection::new(1);
                let _ = old.request(Op::Directory, 0, &[b"a\0"]).unwrap();
                let _ = old.request(Op::Write, 0, &[b"a\0", b"1"]).unwrap();
                wire.ring.put_replies(&stale[..there]).unwrap();
                old.pump(&mut wire);
                let torn = wire.ring.torn(&wire.marks);
                let mut new = Connection::after_crash(100, torn);
                let a = new.request(Op::Read, 0, &[b"a\0"]).unwrap();
                wire.ring.put_replies(&stale[there..]).unwrap();
                wire.ring
                    .put_replies(&reply(Op::Read, 100, b"value"))
                    .unwrap();
                new.pump(&mut wire);
                assert_eq!(new.take(a), Some(Ok(b"value".to_vec())), "{torn:?} {there}");
            }
        }
    }

    #[test]
    fn a_reply_of_another_kind_or_a_bad_event_closes() {
        for bytes in [
            reply(Op::Write, 1, b""),
            reply(Op::WatchEvent, 0, b"no end"),
            reply(Op::WatchEvent, 0, b"a\0b\0c\0"),
            reply(Op::WatchEvent, 0, b"\xff\0b\0"),
        ] {
            let mut c = Connection::new(1);
            let a = c.request(Op::Read, 0, &[b"a\0"]).unwrap();
            let mut wire = Wire {
                chunk: 4096,
                to_us: bytes.into(),
                ..Wire::default()
            };
            c.pump(&mut wire);
            assert!(matches!(c.take(a), Some(Err(Error::Closed(_)))));
        }
    }

    #[test]
    fn a_flood_of_events_closes() {
        let mut c = Connection::new(1);
        let mut wire = Wire::default();
        for i in 0..=MAX_EVENTS {
            wire.to_us
                .extend(reply(Op::WatchEvent, 0, format!("p{i}\0t\0").as_bytes()));
        }
        c.pump(&mut wire);
        assert_eq!(c.next_event(), Err(Error::Closed(Violation::Events)));
    }

    proptest! {
        /// Whatever comes, nothing panics and nothing grows without bound.
        #[test]
        fn garbage_is_survived(bytes in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>(), 1u8..23], 0..3000)) {
            let mut c = Connection::new(1);
            let ids: Vec<_> = (0..3).map(|_| c.request(Op::Read, 0, &[b"a\0"]).unwrap()).collect();
            let mut wire = Wire { chunk: 64, to_us: bytes.into(), ..Wire::default() };
            c.pump(&mut wire);
            prop_assert!(c.events.len() <= MAX_EVENTS && c.requests.len() <= 3);
            for id in ids { let _ = c.take(id); c.abandon(id); }
        }
    }
}
