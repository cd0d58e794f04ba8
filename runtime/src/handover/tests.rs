use super::*;
use crate::preserved::play;
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::AtomicU32;
use std::time::Instant;

/// As version 1 of an app has it, and version 2.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Old {
    name: String,
    hits: u32,
    gone: Option<Vec<u16>>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct New {
    #[serde(default)]
    since: i64,
    hits: u64,
    name: String,
}

fn pass(outgoing: &Outgoing) -> Option<Incoming> {
    play::values(outgoing);
    handover()
}

proptest! {
    #[test]
    fn values_come_back(
        number: i64, text in ".{0,40}", float: f64, list in proptest::collection::vec(any::<u32>(), 0..40),
        map in proptest::collection::btree_map("[a-z]{1,8}", any::<(u8, bool)>(), 0..9),
    ) {
        let mut out = Outgoing::default();
        out.schema(7);
        out.put("number", &number).unwrap();
        out.put("text", text.as_str()).unwrap();
        out.put("float", &float).unwrap();
        out.put("list", &list).unwrap();
        out.put("map", &map).unwrap();
        let mut come = pass(&out).unwrap();
        prop_assert_eq!(come.schema(), 7);
        prop_assert_eq!(come.take::<i64>("number").unwrap(), number);
        prop_assert_eq!(come.take::<String>("text").unwrap(), text);
        prop_assert_eq!(come.take::<f64>("float").unwrap().to_bits(), float.to_bits());
        prop_assert!(come.names().eq(["list", "map"]));
        prop_assert_eq!(come.take::<Vec<u32>>("list").unwrap(), list);
        prop_assert_eq!(come.take::<BTreeMap<String, (u8, bool)>>("map").unwrap(), map);
        prop_assert_eq!(come.names().count(), 0);
    }

    /// Fields that are new have their default, fields that are gone are passed over, both ways.
    #[test]
    fn versions_understand_each_other(name in ".{0,9}", hits: u32, gone: Option<Vec<u16>>, since: i64) {
        let mut out = Outgoing::default();
        out.put("old", &Old { name: name.clone(), hits, gone }).unwrap();
        out.put("new", &New { since, hits: hits.into(), name: name.clone() }).unwrap();
        let mut come = pass(&out).unwrap();
        let new: New = come.take("old").unwrap();
        prop_assert_eq!(new, New { since: 0, hits: hits.into(), name: name.clone() });
        let old: Old = come.take("new").unwrap();
        prop_assert_eq!(old, Old { name, hits, gone: None });
    }
}

#[test]
fn what_can_not_be_taken_says_why_and_stays() {
    let mut out = Outgoing::default();
    out.schema(3);
    out.put("n", &300u32).unwrap();
    out.put("s", "text").unwrap();
    assert!(matches!(out.put("n", &1), Err(PutError::Value(_))));
    let mut come = pass(&out).unwrap();
    let missing = |name: &str| TakeError::Missing { name: name.into() };
    assert_eq!(come.take::<u32>("x"), Err(missing("x")));
    for wrong in [
        come.take::<u8>("n").map(drop),
        come.take::<String>("n").map(drop),
        come.take::<Vec<u32>>("n").map(drop),
        come.take::<u32>("s").map(drop),
        come.take::<Old>("s").map(drop),
    ] {
        assert!(
            matches!(wrong, Err(TakeError::WrongType { .. })),
            "{wrong:?}"
        );
    }
    come.understand(2);
    let newer = TakeError::Newer {
        schema: 3,
        known: 2,
    };
    assert_eq!(come.take::<u32>("n"), Err(newer));
    come.understand(3);
    assert!(come.names().eq(["n", "s"]));
    assert_eq!(come.take::<u32>("n"), Ok(300));
    assert_eq!(come.take::<u32>("n"), Err(missing("n")));
    assert!(handover().is_none());
}

#[test]
fn a_struct_without_a_needed_field_is_of_another_type() {
    let mut out = Outgoing::default();
    out.put("value", &BTreeMap::from([("hits", 1)])).unwrap();
    let got = pass(&out).unwrap().take::<New>("value");
    let Err(TakeError::WrongType { why, .. }) = got else {
        panic!("{got:?}");
    };
    assert!(why.contains("missing field `name`"), "{why}");
}

#[test]
fn damage_is_seen() {
    let mut out = Outgoing::default();
    out.put("text", "something of some length").unwrap();
    let mut block = out.block().unwrap();
    let last = block.len() - 10;
    block[last] ^= 4;
    let mut come = Incoming::new(Some(block.clone().leak()));
    assert_eq!(come.take::<String>("text"), Err(TakeError::Damaged));
    block[30] ^= 1;
    let mut come = Incoming::new(Some(block.leak()));
    assert_eq!((come.schema(), come.names().count()), (0, 0));
    assert_eq!(come.take::<String>("text"), Err(TakeError::Damaged));
}

/// One test, as handlers are the process's.
#[test]
fn handlers_say_what_goes_or_refuse_or_are_late() {
    static RESUMED: AtomicU32 = AtomicU32::new(0);
    let (values, part) = collect(Duration::ZERO).unwrap();
    assert_eq!(values, Values::default());
    on_resume(|| {
        // Until it is over there is no other switch.
        assert!(matches!(collect(Duration::ZERO), Err(Unready::Busy)));
        RESUMED.fetch_add(1, Ordering::Relaxed);
    });
    // Nobody had been asked to take part.
    drop(part);
    let resumed = || RESUMED.load(Ordering::Relaxed);
    assert_eq!(resumed(), 0);
    let (refuse, busy) = (AtomicBool::new(false), AtomicBool::new(false));
    let flags: &'static _ = Box::leak(Box::new((refuse, busy)));
    let mut count = 0u32;
    on_replace(move |out| {
        count += 1;
        Ok(out.put("count", &count)?)
    });
    on_replace(move |out| {
        if flags.0.load(Ordering::Relaxed) {
            return Err(Refusal::new("not now"));
        }
        while flags.1.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        out.schema(2);
        Ok(out.put("second", "handler")?)
    });
    let long = Duration::from_secs(20);
    let taken = |values: Values| {
        play::values(&Outgoing { values });
        handover().unwrap().take::<u32>("count").unwrap()
    };
    let refused = |limit| collect(limit).map(drop).unwrap_err();
    let (values, part) = collect(long).unwrap();
    assert_eq!(taken(values), 1);
    // The switch is on.
    assert_eq!((refused(long), resumed()), (Unready::Busy, 0));
    drop(part);
    assert_eq!(resumed(), 1);
    flags.0.store(true, Ordering::Relaxed);
    assert_eq!(refused(long), Unready::Refused("not now".into()));
    assert_eq!(resumed(), 2);
    flags.0.store(false, Ordering::Relaxed);
    flags.1.store(true, Ordering::Relaxed);
    let start = Instant::now();
    assert_eq!(refused(Duration::from_millis(5)), Unready::Late);
    assert_eq!(refused(long), Unready::Busy);
    assert!(start.elapsed() < long);
    assert_eq!(resumed(), 2);
    flags.1.store(false, Ordering::Relaxed);
    while RUNNING.load(Ordering::Relaxed) {
        thread::yield_now();
    }
    // The late one was over.
    assert_eq!(resumed(), 3);
    assert_eq!(taken(collect(long).unwrap().0), 4);
    assert_eq!(resumed(), 4);
}

#[derive(Serialize, Deserialize)]
struct Conn {
    stream: Socket<TcpStream>,
    pending: Vec<u8>,
}

#[test]
fn sockets_are_taken_once_and_as_what_they_are() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut peer = TcpStream::connect(address).unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_address = udp.local_addr().unwrap();
    let mut out = Outgoing::default();
    let conn = Conn {
        stream: listener.accept().unwrap().0.into(),
        pending: b"half a re".into(),
    };
    peer.write_all(b"quest\n").unwrap();
    out.put_socket("listener", &listener).unwrap();
    out.put_socket("udp", &udp).unwrap();
    out.put("connections", &[&conn]).unwrap();
    drop((listener, udp, conn));
    let mut come = pass(&out).unwrap();
    let wrong = come.take_socket::<TcpStream>("udp").unwrap_err();
    let text = wrong.to_string();
    assert!(text.contains("another kind than TcpStream"), "{text}");
    assert!(come.take::<u32>("udp").is_err());
    let udp: UdpSocket = come.take_socket("udp").unwrap();
    assert_eq!(udp.local_addr().unwrap(), udp_address);
    let mut connections: Vec<Conn> = come.take("connections").unwrap();
    let Conn { stream, pending } = &mut connections[0];
    let mut line = pending.clone();
    let mut rest = [0; 6];
    stream.read_exact(&mut rest).unwrap();
    line.extend(rest);
    assert_eq!(line, b"half a request\n");
    // What is not taken is closed.
    drop(come);
    assert!(TcpStream::connect(address).is_err());
    // Nor can what was taken be taken again.
    let mut again = pass(&out).unwrap();
    let text = again.take_socket::<UdpSocket>("udp").unwrap_err();
    assert!(text.to_string().contains("can't be taken"), "{text}");
}
