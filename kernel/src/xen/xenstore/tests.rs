//! The client against a small xenstored of ours.

use super::wire::{Decoder, HEADER_LEN, Header, Message};
use super::*;
use std::collections::{BTreeMap, VecDeque};

/// Answers at once, a few bytes at a time.
#[derive(Default)]
struct Store {
    nodes: BTreeMap<String, Vec<u8>>,
    decoder: Decoder,
    to_client: VecDeque<u8>,
    /// Transactions to be refused with `EAGAIN`.
    conflicts: u32,
    /// Answer nothing.
    silent: bool,
    /// Children in a reply to `XS_DIRECTORY_PART`.
    part: usize,
    ended: Vec<String>,
    watches: Vec<(String, Vec<u8>)>,
}

impl Store {
    fn answer(&mut self, m: &Message, op: u32, payload: &[u8]) {
        let header = Header {
            op,
            len: payload.len() as u32,
            ..m.header
        };
        self.to_client.extend(header.to_bytes());
        self.to_client.extend(payload);
    }

    fn children(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        let mut all: Vec<String> = self
            .nodes
            .keys()
            .filter_map(|k| Some(k.strip_prefix(&prefix)?.split('/').next()?.to_string()))
            .collect();
        all.dedup();
        all
    }

    fn handle(&mut self, m: Message) {
        let text = |b: &[u8]| String::from_utf8_lossy(b).into_owned();
        let mut parts = m.payload.splitn(2, |b| *b == 0);
        let (path, rest) = (
            text(parts.next().unwrap()),
            parts.next().unwrap_or(&[]).to_vec(),
        );
        let op = m.header.op;
        let result: std::result::Result<Vec<u8>, &str> = match op {
            2 => self.nodes.get(&path).cloned().ok_or("ENOENT"),
            11 => {
                self.nodes.insert(path, rest);
                Ok(b"OK\0".to_vec())
            }
            13 => self
                .nodes
                .remove(&path)
                .map(|_| b"OK\0".to_vec())
                .ok_or("ENOENT"),
            1 => {
                let all: String = self
                    .children(&path)
                    .iter()
                    .map(|c| format!("{c}\0"))
                    .collect();
                if all.len() > 64 {
                    Err("E2BIG")
                } else {
                    Ok(all.into())
                }
            }
            22 => {
                let offset: usize = text(&rest[..rest.len() - 1]).parse().unwrap();
                let all: String = self
                    .children(&path)
                    .iter()
                    .map(|c| format!("{c}\0"))
                    .collect();
                let tail = &all[offset..];
                let mut cut = tail.len().min(self.part);
                cut = tail[..cut].rfind('\0').map_or(0, |i| i + 1);
                let end = if cut == tail.len() { "\0" } else { "" };
                Ok(format!("{}\0{}{end}", self.nodes.len(), &tail[..cut]).into())
            }
            6 => Ok(b"42\0".to_vec()),
            7 => {
                assert_eq!(m.header.transaction, 42);
                self.ended.push(text(&m.payload));
                if self.conflicts > 0 && path == "T" {
                    self.conflicts -= 1;
                    Err("EAGAIN")
                } else {
                    Ok(b"OK\0".to_vec())
                }
            }
            4 if self.watches.contains(&(path.clone(), rest.clone())) => Err("EEXIST"),
            4 => {
                self.watches.push((path.clone(), rest.clone()));
                self.answer(
                    &Message {
                        header: Header {
                            op: 15,
                            id: 0,
                            transaction: 0,
                            len: 0,
                        },
                        payload: vec![],
                    },
                    15,
                    &[path.as_bytes(), b"\0", &rest[..]].concat(),
                );
                Ok(b"OK\0".to_vec())
            }
            _ => Err("ENOSYS"),
        };
        match result {
            Ok(payload) => self.answer(&m, op, &payload),
            Err(name) => self.answer(&m, 16, format!("{name}\0").as_bytes()),
        }
    }
}

impl Ring for Store {
    fn look(&mut self, buf: &mut [u8]) -> std::result::Result<usize, Violation> {
        let n = buf.len().min(self.to_client.len()).min(19);
        for (to, byte) in buf.iter_mut().zip(self.to_client.range(..n)) {
            *to = *byte;
        }
        Ok(n)
    }
    fn take(&mut self, count: usize) {
        self.to_client.drain(..count);
    }
    fn send(&mut self, bytes: &[u8]) -> std::result::Result<usize, Violation> {
        let n = bytes.len().min(11);
        let mut rest = &bytes[..n];
        while let Some(m) = self.decoder.feed(&mut rest)? {
            if !self.silent {
                self.handle(m);
            }
        }
        Ok(n)
    }
    fn notify(&mut self) {}
}

fn client(store: Store) -> Client<Store> {
    Client::new(store, 5)
}

const NO: Transaction = Transaction::NONE;

#[test]
fn values_are_written_and_read() {
    let c = client(Store::default());
    assert!(c.read(NO, "a").unwrap_err().is_not_found());
    c.write(NO, "a", b"12").unwrap();
    assert_eq!(c.read_text(NO, "a").unwrap(), "12");
    assert_eq!(c.read_number::<u8>(NO, "a"), Ok(Some(12)));
    assert_eq!(c.read_number::<u8>(NO, "b"), Ok(None));
    c.write(NO, "a", b"x\xff").unwrap();
    assert_eq!(c.read_text(NO, "a"), Err(Error::Value));
    assert_eq!(c.read_number::<u8>(NO, "a"), Err(Error::Value));
    assert_eq!(c.read(NO, "a\0b"), Err(Error::TooLong));
    assert_eq!(c.write(NO, "a", &[0; 4096]), Err(Error::TooLong));
    assert_eq!(c.mkdir(NO, "d"), Err(Error::Refused(Refusal::Unsupported)));
}

#[test]
fn directories_come_whole_however_long() {
    for count in [0, 1, 5, 100] {
        let mut store = Store {
            part: 50,
            ..Store::default()
        };
        let names: Vec<String> = (0..count).map(|i| format!("node{i:03}")).collect();
        for name in &names {
            store.nodes.insert(format!("dir/{name}"), vec![]);
        }
        assert_eq!(client(store).directory(NO, "dir").unwrap(), names);
    }
}

#[test]
fn transactions_are_tried_again() {
    let c = client(Store {
        conflicts: 2,
        ..Store::default()
    });
    let mut runs = 0;
    c.transaction(|t| {
        runs += 1;
        c.write(t, "a", b"1")
    })
    .unwrap();
    assert_eq!(runs, 3);
    let failed = c.transaction(|t| c.read(t, "none"));
    assert!(failed.unwrap_err().is_not_found());
    assert_eq!(c.inner.lock().ring.ended, ["T\0", "T\0", "T\0", "F\0"]);
}

#[test]
fn watches_give_events() {
    let c = client(Store::default());
    c.watch("device", "tok").unwrap();
    let event = c.next_event(Some(0), || false).unwrap().unwrap();
    assert_eq!((&*event.path, &*event.token), ("device", "tok"));
    assert_eq!(c.next_event(Some(0), || false), Ok(None));
    assert_eq!(c.next_event(None, || true), Ok(None));
}

/// An image comes to rest, and another one goes on with its watches: all of them fire once more,
/// whatever the image before has looked at. What it left open is ended.
#[test]
fn another_image_goes_on() {
    let c = client(Store::default());
    c.watch("device", "tok").unwrap();
    let start = |c: &Client<Store>| c.call(Op::TransactionStart, NO, &[&[0]]);
    let begun = c
        .inner
        .lock()
        .connection
        .request(Op::TransactionStart, 0, &[&[0]]);
    c.freeze(now_plus(1000)).unwrap();
    // Its thread has not even heard that it has begun.
    assert_eq!(c.open_transactions(), [42]);
    let ring = {
        let mut inner = c.inner.lock();
        assert_eq!(
            inner.connection.take(begun.unwrap()),
            Some(Ok(b"42\0".to_vec()))
        );
        core::mem::take(&mut inner.ring)
    };
    let c = Client::over(ring, Connection::going_on(1 << 24 | 1, vec![42]));
    assert_eq!(c.next_event(Some(0), || false), Ok(None));
    for _ in 0..2 {
        c.watch("device", "tok").unwrap();
        c.watch("device", "other").unwrap();
    }
    for token in ["tok", "other"] {
        let event = c.next_event(Some(0), || false).unwrap().unwrap();
        assert_eq!((&*event.path, &*event.token), ("device", token));
    }
    assert_eq!(c.next_event(Some(0), || false), Ok(None));
    // One that is not taken any further is in the next record, too.
    assert_eq!(c.open_transactions(), [42]);
    c.end_transactions(&[42]).unwrap();
    assert_eq!(c.inner.lock().ring.ended, ["F\0"]);
    assert!(c.open_transactions().is_empty());
    start(&c).unwrap();
    assert_eq!(c.open_transactions(), [42]);
    c.reset_watches().unwrap_err();
    c.transaction(|_| Ok(())).unwrap();
    assert!(c.open_transactions().is_empty());
}

#[test]
fn a_frozen_client_is_quiet_and_goes_on_after() {
    let c = std::sync::Arc::new(client(Store::default()));
    c.freeze(now_plus(1000)).unwrap();
    let other = c.clone();
    let thread = std::thread::spawn(move || other.write(NO, "late", b"1"));
    std::thread::sleep(std::time::Duration::from_millis(20));
    assert!(c.inner.lock().ring.nodes.is_empty());
    c.thaw();
    thread.join().unwrap().unwrap();
    assert_eq!(c.read(NO, "late").unwrap(), b"1");
    // What is not answered cannot be handed over.
    let id = {
        let mut i = c.inner.lock();
        i.ring.silent = true;
        i.connection.request(Op::Read, 0, &[b"a\0"]).unwrap()
    };
    assert_eq!(c.freeze(now_plus(20)), Err(Error::TimedOut));
    c.inner.lock().connection.abandon(id);
    assert!(!c.inner.lock().frozen);
}

#[test]
fn a_frozen_client_leaves_the_ring_alone() {
    let c = client(Store::default());
    c.watch("device", "tok").unwrap();
    // A reply that its caller has not fetched yet, when the next message has half arrived.
    let read = c.inner.lock().connection.request(Op::Read, 0, &[b"a\0"]);
    c.freeze(now_plus(1000)).unwrap();
    let half = [15, 0, 0, 0, 0, 0];
    let mut inner = c.inner.lock();
    inner.ring.to_client.extend(half);
    inner.pump();
    let reply = inner.connection.take(read.unwrap()).unwrap();
    assert!(reply.unwrap_err().is_not_found());
    assert_eq!(inner.ring.to_client, half);
    assert!(inner.connection.is_quiet());
}

#[test]
fn a_breach_closes_the_client() {
    let c = client(Store::default());
    c.inner.lock().ring.to_client.extend([0xff; HEADER_LEN]);
    assert_eq!(
        c.read(NO, "a"),
        Err(Error::Closed(Violation::PayloadLength(u32::MAX)))
    );
    assert_eq!(
        c.write(NO, "a", b""),
        Err(Error::Closed(Violation::PayloadLength(u32::MAX)))
    );
    assert!(c.next_event(None, || false).is_err());
}

fn now_plus(ms: u64) -> u64 {
    crate::xen::wait::now() + ms * 1_000_000
}
