//! xenstore: the ring, the connection, and the calls above it, with a xenstored that answers as the
//! input says.
//!
//! An answer that keeps to the protocol has to arrive as it was sent, at the request it is for;
//! after one that does not, every call is an error.

use crate::input::Script;
use crate::{Input, Target};
use segue_kernel::xen::xenstore::wire::{Header, Interface, Op, PAYLOAD_MAX, RING_SIZE};
use segue_kernel::xen::xenstore::{
    Client, Connection, Error, RequestId, Ring, Transaction, Violation,
};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

pub const TARGET: Target = Target {
    name: "xenstore",
    what: "xenstore's ring, replies and watch events",
    longest: 4096,
    // 512 events of two strings at the worst, and what the input itself says.
    memory: 1 << 20,
    seeds,
    run,
};

fn run(input: &[u8]) {
    let mut input = Input(input);
    match input.u8() % 2 {
        0 => connection(input),
        _ => calls(input),
    }
}

/// Our side of a ring, and how many bytes came since xenstored had its turn.
struct Shared(Interface, usize);

impl Ring for Shared {
    fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation> {
        self.0.look(buf)
    }
    fn take(&mut self, count: usize) {
        self.0.take(count);
        self.1 += count;
        assert!(self.1 <= RING_SIZE as usize, "more than a ring holds");
    }
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        self.0.send(bytes)
    }
    fn notify(&mut self) {}
}

const OPS: [Op; 8] = [
    Op::Directory,
    Op::Read,
    Op::Write,
    Op::Rm,
    Op::Mkdir,
    Op::Watch,
    Op::TransactionStart,
    Op::TransactionEnd,
];

const REQUEST: u8 = 0;
const ANSWER: u8 = 1;
const RAW: u8 = 2;
const EVENT: u8 = 3;
const TAKE: u8 = 4;
const ABANDON: u8 = 5;
const SCRIBBLE: u8 = 6;
const REFUSE: u8 = 7;
const NEXT_EVENT: u8 = 8;
const STEPS: u8 = 9;

/// Most requests that are out.
const REQUESTS: usize = 32;
/// What xenstored has ready to be sent, in bytes, before it waits.
const BACKLOG: usize = 16 << 10;

/// What is known of a request that is out.
struct Asked {
    id: RequestId,
    op: Op,
    answer: Option<Vec<u8>>,
    refused: bool,
}

fn message(op: u32, id: u32, payload: &[u8]) -> Vec<u8> {
    let header = Header {
        op,
        id,
        transaction: 0,
        len: payload.len() as u32,
    };
    [&header.to_bytes(), payload].concat()
}

fn connection(mut input: Input<'_>) {
    let mut ring = Shared(Interface::blank(), 0);
    let start = input.u32();
    for index in ring.0.indices() {
        index.store(start, Ordering::SeqCst);
    }
    let first = input.u32();
    let mut connection = Connection::new(first);
    let mut next = first;
    let mut asked: BTreeMap<u32, Asked> = BTreeMap::new();
    let mut events: Vec<(String, String)> = Vec::new();
    // Nothing was said that is against the protocol.
    let mut honest = true;
    let mut waiting: Vec<u8> = Vec::new();
    while input.more() {
        let pick = |asked: &BTreeMap<u32, Asked>, n: u8| {
            let at = usize::from(n) % asked.len().max(1);
            asked.keys().nth(at).copied()
        };
        match input.u8() % STEPS {
            REQUEST => {
                let op = OPS[usize::from(input.u8()) % OPS.len()];
                let payload = input.piece();
                // As many as threads ask at a time: each has room for its reply.
                if asked.len() == REQUESTS {
                    continue;
                }
                match connection.request(op, 0, &[payload, b"\0"]) {
                    Ok(id) => {
                        let known = Asked {
                            id,
                            op,
                            answer: None,
                            refused: false,
                        };
                        asked.insert(next, known);
                        next = next.wrapping_add(1);
                    }
                    Err(error) => assert!(!honest, "{error}"),
                }
            }
            ANSWER => {
                // A xenstored that does not get rid of what it answers stops answering.
                if let Some(n) = pick(&asked, input.u8())
                    && waiting.len() <= BACKLOG
                {
                    // Up to twice as long as it may be.
                    let payload = vec![input.u8(); usize::from(input.u16()) % (2 * PAYLOAD_MAX)];
                    let known = asked.get_mut(&n).expect("picked");
                    waiting.extend(message(known.op as u32, n, &payload));
                    // A second answer to the same is against the protocol.
                    honest &= known.answer.is_none() && !known.refused;
                    honest &= payload.len() <= PAYLOAD_MAX;
                    known.answer = Some(payload);
                }
            }
            REFUSE => {
                if let Some(n) = pick(&asked, input.u8()) {
                    let known = asked.get_mut(&n).expect("picked");
                    waiting.extend(message(Op::Error as u32, n, input.piece()));
                    honest &= known.answer.is_none() && !known.refused;
                    known.refused = true;
                }
            }
            RAW => {
                honest = false;
                waiting.extend(input.piece());
            }
            EVENT => {
                let text = |bytes: &[u8]| -> String {
                    let letters = bytes.iter().map(|b| char::from(b'a' + b % 26));
                    letters.collect()
                };
                let event = (text(input.piece()), text(input.piece()));
                let payload = format!("{}\0{}\0", event.0, event.1);
                waiting.extend(message(Op::WatchEvent as u32, 0, payload.as_bytes()));
                if !events.contains(&event) {
                    events.push(event);
                }
            }
            TAKE => {
                if let Some(n) = pick(&asked, input.u8()) {
                    let known = &asked[&n];
                    match connection.take(known.id) {
                        None => assert!(
                            !honest
                                || !waiting.is_empty()
                                || known.answer.is_none() && !known.refused
                        ),
                        Some(result) => {
                            let len = result.as_ref().map_or(0, Vec::len);
                            assert!(len <= PAYLOAD_MAX, "a reply of {len} bytes");
                            if honest {
                                match result {
                                    Ok(bytes) => assert_eq!(Some(bytes), known.answer),
                                    Err(error) => {
                                        assert!(
                                            known.refused && matches!(error, Error::Refused(_))
                                        );
                                    }
                                }
                            }
                            asked.remove(&n);
                        }
                    }
                }
            }
            ABANDON => {
                // Not one that is answered later: the model forgets it at once.
                if let Some(n) = pick(&asked, input.u8())
                    && waiting.is_empty()
                {
                    let known = asked.remove(&n).expect("picked");
                    connection.abandon(known.id);
                }
            }
            NEXT_EVENT => match connection.next_event() {
                Ok(Some(event)) if honest => {
                    assert_eq!(events.remove(0), (event.path, event.token));
                }
                Ok(_) => {}
                Err(error) => assert!(!honest, "{error}"),
            },
            _ => {
                let which = usize::from(input.u8() % 4);
                ring.0.indices()[which].store(input.u32(), Ordering::SeqCst);
                honest = false;
            }
        }
        // xenstored takes what is there and gives what there is room for.
        for _ in 0..64 {
            let _ = connection.pump(&mut ring);
            ring.1 = 0;
            let mut requests = [0; 4096];
            let took = ring.0.take_requests(&mut requests).unwrap_or(0);
            let put = ring.0.put_replies(&waiting).unwrap_or(0);
            waiting.drain(..put);
            if took == 0 && put == 0 {
                break;
            }
        }
        let _ = connection.pump(&mut ring);
        ring.1 = 0;
        if let Err(error) = connection.request(Op::Read, 0, &[&[0; PAYLOAD_MAX + 1]]) {
            assert!(!honest || error == Error::TooLong, "{error}");
        }
    }
    let _ = connection.is_quiet();
}

/// Answers each request at once as the input says, and breaks the ring when that is over: nobody
/// would wait for what does not come.
struct Answers<'a> {
    input: Input<'a>,
    asked: Vec<u8>,
    waiting: Vec<u8>,
}

impl Answers<'_> {
    fn answer(&mut self) {
        while let Some(header) = self.asked.first_chunk::<16>() {
            let word = |n: usize| {
                u32::from_le_bytes([header[n], header[n + 1], header[n + 2], header[n + 3]])
            };
            let (op, id, len) = (word(0), word(4), word(12) as usize);
            if self.asked.len() < 16 + len {
                return;
            }
            self.asked.drain(..16 + len);
            let kind = self.input.u8();
            let payload = match kind % 4 {
                0 => b"OK\0".to_vec(),
                1 => [b"E2BIG\0", b"EAGAIN"][usize::from(kind > 99)].to_vec(),
                _ => self.input.piece().repeat(1 + usize::from(kind / 16)),
            };
            let op = if kind % 4 == 1 { Op::Error as u32 } else { op };
            self.waiting.extend(message(op, id, &payload));
        }
    }
}

impl Ring for Answers<'_> {
    fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation> {
        if self.waiting.is_empty() && !self.input.more() {
            return Err(Violation::RingIndices);
        }
        let count = buf.len().min(self.waiting.len());
        buf[..count].copy_from_slice(&self.waiting[..count]);
        Ok(count)
    }
    fn take(&mut self, count: usize) {
        self.waiting.drain(..count);
    }
    fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
        self.asked.extend(bytes);
        self.answer();
        Ok(bytes.len())
    }
    fn notify(&mut self) {}
}

fn calls(mut input: Input<'_>) {
    let what: Vec<u8> = input.piece().to_vec();
    let ring = Answers {
        input,
        asked: Vec::new(),
        waiting: Vec::new(),
    };
    let client = Client::new(ring, 1);
    let none = Transaction::NONE;
    for call in what {
        let result = match call % 8 {
            0 => client.read(none, "name").map(drop),
            1 => client
                .read_number::<u32>(none, "device/vif/0/state")
                .map(drop),
            2 => client.directory(none, "device").map(|names| {
                assert!(names.iter().all(|n| !n.contains('\0')));
            }),
            3 => client.write(none, "a", b"b"),
            4 => client.watch("device/vif", "token"),
            5 => client.unwatch("device/vif", "token"),
            6 => client.transaction(|t| client.read(t, "x")).map(drop),
            _ => client.next_event(None, || true).map(drop),
        };
        if let Err(error) = result {
            assert!(!error.to_string().is_empty());
        }
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let head = |start: u32, first: u32| {
        Script::default()
            .then(&[0])
            .then(&start.to_le_bytes())
            .then(&first.to_le_bytes())
    };
    let talk = |start: u32| {
        head(start, u32::MAX)
            .then(&[REQUEST, 1])
            .piece(b"domid")
            .then(&[REQUEST, 0])
            .piece(b"device")
            .then(&[ANSWER, 1, 7, 0, 2, EVENT])
            .piece(b"path")
            .piece(b"token")
            .then(&[TAKE, 1, REFUSE, 0])
            .piece(b"ENOENT\0")
            .then(&[TAKE, 0, NEXT_EVENT])
    };
    let mut all = vec![
        talk(0).0,
        talk(u32::MAX - 500).0,
        talk(5).then(&[SCRIBBLE, 3, 0, 0, 0, 1]).0,
        talk(5)
            .then(&[RAW])
            .piece(&message(Op::Read as u32, 7, b"nobody asked"))
            .0,
        head(0, 1)
            .then(&[REQUEST, 1])
            .piece(b"x")
            .then(&[ABANDON, 0, RAW])
            .piece(&[0xff; 16])
            .0,
    ];
    let flood = (0..=255u8).fold(head(0, 1), |s, n| {
        s.then(&[EVENT]).piece(&[n % 26, n / 26]).piece(b"t")
    });
    all.push(flood.0);
    // Calls and what they are answered.
    all.push(
        Script::default()
            .then(&[1])
            .piece(&[0, 1, 2, 3, 4, 5, 6, 7])
            .then(&[2])
            .piece(b"value")
            .then(&[2])
            .piece(b"4")
            .then(&[1, 2])
            .piece(b"12\0vif\0vbd\0")
            .then(&[2])
            .piece(b"12\0console\0\0")
            .then(&[0, 0, 0, 2])
            .piece(b"17\0")
            .then(&[2])
            .piece(b"v")
            .then(&[1, 101])
            .0,
    );
    all
}
