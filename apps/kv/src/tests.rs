//! The server as a client sees it, and properties of parser, patterns and store.

use crate::glob::matches;
use crate::resp::{Parsed, Parser, integer};
use crate::store::{Table, Value};
use crate::{Counted, Kv, Limits};
use proptest::collection::vec;
use proptest::prelude::*;
use segue::handover::{Outgoing, Socket};
use segue::preserved::play;
use segue_serve::{Config, Server};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::thread;
use std::time::{Duration, Instant};

const MEMORY: usize = 8 << 20;

fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_millis() as u64
}

fn with_server(test: impl FnOnce(SocketAddr, &Server<Kv>)) {
    let config = Config {
        threads: 2,
        ..Config::default()
    };
    let table = Table::new(MEMORY).unwrap();
    let server = Server::new(Kv::new(table, Limits::new(MEMORY), now), config).unwrap();
    Kv::observe(&server);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| server.run(&listener));
        let stop = Stop(&server);
        test(address, &server);
        drop(stop);
        running.join().unwrap().unwrap();
    });
}

/// Stops the server also when a test fails: else its threads would be waited for for ever.
struct Stop<'a>(&'a Server<Kv>);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

struct Client(TcpStream);

fn encode(arguments: &[&[u8]]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        request.extend(format!("${}\r\n", argument.len()).bytes());
        request.extend(*argument);
        request.extend(b"\r\n");
    }
    request
}

impl Client {
    fn new(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(stream)
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).unwrap();
    }

    fn line(&mut self) -> String {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        line.truncate(line.len() - 2);
        String::from_utf8(line).unwrap()
    }

    /// A reply, written as redis-cli does, in short.
    fn reply(&mut self) -> String {
        let line = self.line();
        let number = || line[1..].parse::<i64>().unwrap();
        match &line[..1] {
            "+" | "-" | ":" => line,
            "$" | "*" if number() < 0 => "nil".into(),
            "$" => {
                let mut bytes = vec![0; number() as usize + 2];
                self.0.read_exact(&mut bytes).unwrap();
                assert!(bytes.ends_with(b"\r\n"));
                bytes.truncate(bytes.len() - 2);
                format!("\"{}\"", bytes.escape_ascii())
            }
            "*" => {
                let parts: Vec<String> = (0..number()).map(|_| self.reply()).collect();
                format!("[{}]", parts.join(" "))
            }
            _ => panic!("{line}"),
        }
    }

    /// Sends words split at spaces.
    fn ask(&mut self, request: &str) -> String {
        let words: Vec<&[u8]> = request.split(' ').map(str::as_bytes).collect();
        self.send(encode(&words));
        self.reply()
    }
}

/// Lines of a request and its reply.
fn script(client: &mut Client, text: &str) {
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (request, expected) = line.split_once(" => ").unwrap();
        assert_eq!(client.ask(request), expected, "{request}");
    }
}

#[test]
fn strings_and_counters() {
    with_server(|address, _| {
        script(
            &mut Client::new(address),
            r#"
            PING => +PONG
            ping hello => "hello"
            ECHO hello => "hello"
            GET k => nil
            SET k v => +OK
            get k => "v"
            EXISTS k k other => :2
            TYPE k => +string
            TYPE other => +none
            SET k w NX => nil
            SET other w XX => nil
            SET k w XX => +OK
            SET k x GET => "w"
            SET k y NX GET => "x"
            SET new 1 NX GET => nil
            GET new => "1"
            GETSET k z => "x"
            GETDEL k => "z"
            GETDEL k => nil
            SETNX k 1 => :1
            SETNX k 2 => :0
            APPEND k 23 => :3
            GET k => "123"
            INCR k => :124
            APPEND fresh abc => :3
            STRLEN fresh => :3
            STRLEN none => :0
            SETRANGE fresh 1 XY => :3
            GET fresh => "aXY"
            SETRANGE fresh 4 z => :5
            STRLEN fresh => :5
            GETRANGE fresh 4 4 => "z"
            SETRANGE fresh 0 abc => :5
            SETRANGE none 3  => :0
            EXISTS none => :0
            SETRANGE fresh -1 x => -ERR offset is out of range
            SETRANGE fresh 9223372036854775807 x => -ERR string exceeds maximum allowed size (proto-max-bulk-len)
            SET number 12345 => +OK
            SETRANGE number 1 9 => :5
            INCR number => :19346
            DEL number => :1
            SET fresh abc => +OK
            GETRANGE fresh 1 -1 => "bc"
            GETRANGE fresh -2 -3 => ""
            GETRANGE fresh -100 100 => "abc"
            GETRANGE fresh 3 9223372036854775807 => ""
            MSET a 1 b 2 a 3 => +OK
            MGET a b none => ["3" "2" nil]
            INCR a => :4
            DECR a => :3
            INCRBY a 10 => :13
            DECRBY a 3 => :10
            DECR none => :-1
            SET a 9223372036854775806 => +OK
            INCR a => :9223372036854775807
            INCR a => -ERR increment or decrement would overflow
            DECRBY a -9223372036854775808 => -ERR decrement would overflow
            SET a -9223372036854775808 => +OK
            DECR a => -ERR increment or decrement would overflow
            GET a => "-9223372036854775808"
            SET a 007 => +OK
            INCR a => -ERR value is not an integer or out of range
            GET a => "007"
            INCRBY b 1.5 => -ERR value is not an integer or out of range
            INCRBYFLOAT b 0.5 => "2.5"
            INCRBYFLOAT b 7.5 => "10"
            INCR b => :11
            INCRBYFLOAT fresh 1 => -ERR value is not a valid float
            INCRBYFLOAT b nan => -ERR value is not a valid float
            INCRBYFLOAT b inf => -ERR increment would produce NaN or Infinity
            DEL a b none nothing => :3
            UNLINK fresh => :1
            DBSIZE => :2
            FLUSHALL => +OK
            DBSIZE => :0
            "#,
        );
    });
}

#[test]
fn expiry() {
    with_server(|address, server| {
        let mut client = Client::new(address);
        script(
            &mut client,
            r#"
            SET k v EX 100 => +OK
            TTL k => :100
            SET k v => +OK
            TTL k => :-1
            PTTL none => :-2
            SETEX k 100 v => +OK
            SET k w KEEPTTL => +OK
            TTL k => :100
            APPEND k x => :2
            TTL k => :100
            PERSIST k => :1
            PERSIST k => :0
            TTL k => :-1
            EXPIRE k 100 => :1
            EXPIRE none 100 => :0
            EXPIRE k 50 NX => :0
            EXPIRE k 50 GT => :0
            EXPIRE k 50 LT => :1
            EXPIRE k 200 XX => :1
            TTL k => :200
            GETSET k x => "wx"
            TTL k => :-1
            EXPIRE k 100 GT => :0
            EXPIRE k 100 LT => :1
            EXPIRE k 100 NX XX => -ERR NX and XX, GT or LT options at the same time are not compatible
            EXPIRE k 100 YY => -ERR Unsupported option YY
            SET n 1 EX 100 => +OK
            INCR n => :2
            TTL n => :100
            EXPIRE k -1 => :1
            GET k => nil
            SET k v PXAT 1 => +OK
            GET k => nil
            EXPIREAT n 4102444800 => :1
            SET k v EX 0 => -ERR invalid expire time in 'set' command
            SET k v EX -1 => -ERR invalid expire time in 'set' command
            SET k v EX 9223372036854775807 => -ERR invalid expire time in 'set' command
            SETEX k 0 v => -ERR invalid expire time in 'setex' command
            EXPIRE n 9223372036854775807 => -ERR invalid expire time in 'expire' command
            SET k v EX x => -ERR value is not an integer or out of range
            SET k v EX => -ERR syntax error
            SET k v EX 1 PX 1 => -ERR syntax error
            SET k v EX 1 KEEPTTL => -ERR syntax error
            SET k v NX XX => -ERR syntax error
            SET k v PX 60 => +OK
            GET k => "v"
            SET gone v PX 60 => +OK
            "#,
        );
        assert_eq!(server.service().len(), 3);
        thread::sleep(Duration::from_millis(80));
        // One goes because it is asked for, the other because it is looked for.
        script(&mut client, "GET k => nil\nTTL k => :-2\nKEYS * => [\"n\"]");
        assert_eq!(server.service().len(), 2);
        server.service().sweep();
        assert_eq!(server.service().len(), 1);
        assert!(client.ask("INFO").contains("expired_keys:2"));
    });
}

#[test]
fn what_clients_ask_of_a_server() {
    with_server(|address, server| {
        let mut client = Client::new(address);
        script(
            &mut client,
            r#"
            SELECT 0 => +OK
            SELECT 1 => -ERR DB index is out of range
            CLIENT SETNAME me => +OK
            CLIENT GETNAME => "me"
            CLIENT ID => :1
            CLIENT SETINFO LIB-NAME x => +OK
            CONFIG GET save => ["save" ""]
            CONFIG GET maxmemory appendonly => ["appendonly" "no" "maxmemory" "8388608"]
            COMMAND DOCS => []
            COMMAND INFO get nothing => [["get" :2 [] :0 :0 :0] nil]
            HELLO 3 => -NOPROTO unsupported protocol version
            GET => -ERR wrong number of arguments for 'get' command
            mset a 1 b => -ERR wrong number of arguments for 'mset' command
            PING a b => -ERR wrong number of arguments for 'ping' command
            SCAN x => -ERR invalid cursor
            SCAN 0 COUNT 0 => -ERR syntax error
            "#,
        );
        let unknown = "-ERR unknown command 'foo', with args beginning with: ";
        assert_eq!(client.ask("foo"), unknown);
        assert_eq!(client.ask("foo a b"), format!("{unknown}'a' 'b' "));
        assert!(client.ask("HELLO 2").starts_with("[\"server\" \"redis\""));
        let info = client.ask("INFO");
        assert!(
            info.contains("connected_clients:1") && info.contains("redis_version"),
            "{info}"
        );
        assert!(client.ask("COMMAND").starts_with("[[\"append\" :3"));
        assert_eq!(client.ask("QUIT"), "+OK");
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
        assert_eq!(server.stats().accepted, 1);
    });
}

#[test]
fn people_may_type() {
    with_server(|address, _| {
        let mut client = Client::new(address);
        client.send("PING\r\n\r\n   \nset k  \"a b\\n\\x41\" \r\nget k\nset k 'it\\'s'\nGET k\n");
        let replies: Vec<String> = (0..5).map(|_| client.reply()).collect();
        assert_eq!(
            replies,
            ["+PONG", "+OK", "\"a b\\nA\"", "+OK", "\"it\\'s\""]
        );
        client.send("GET \"k\r\n");
        assert_eq!(
            client.reply(),
            "-ERR Protocol error: unbalanced quotes in request"
        );
        assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
    });
}

#[test]
fn what_is_no_request_ends_the_connection() {
    with_server(|address, _| {
        let long = [b'1'; 70_000];
        let error = |request: &[u8]| {
            let mut client = Client::new(address);
            client.send(request);
            let reply = client.reply();
            assert_eq!(client.0.read(&mut [0]).unwrap(), 0);
            reply
                .strip_prefix("-ERR Protocol error: ")
                .unwrap()
                .to_owned()
        };
        assert_eq!(error(b"*x\r\n"), "invalid multibulk length");
        assert_eq!(error(b"*99999999\r\n"), "invalid multibulk length");
        assert_eq!(error(b"*1\r\n+x\r\n"), "expected '$', got '+'");
        assert_eq!(error(b"*1\r\n\r\n"), "expected '$', got '\\r'");
        assert_eq!(error(b"*1\r\n$-1\r\n"), "invalid bulk length");
        assert_eq!(error(b"*1\r\n$9999999\r\n"), "invalid bulk length");
        assert_eq!(error(&long), "too big inline request");
        assert_eq!(
            error(&[b"*", &long[..]].concat()),
            "too big mbulk count string"
        );
        assert_eq!(
            error(&[b"*1\r\n$", &long[..]].concat()),
            "too big bulk count string"
        );
        // None at all, or fewer than none, is nothing to answer.
        let mut client = Client::new(address);
        client.send("*0\r\n*-1\r\nPING\r\n");
        assert_eq!(client.reply(), "+PONG");
    });
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    with_server(|address, _| {
        let mut client = Client::new(address);
        let mut writer = client.0.try_clone().unwrap();
        let value = vec![b'x'; 20_000];
        let requests: Vec<u8> = (0..2000)
            .flat_map(|i: i32| {
                let key = format!("k{}", i % 10);
                let get = encode(&[b"GET", key.as_bytes()]);
                let set = encode(&[b"SET", key.as_bytes(), &value[..(i * 10) as usize]]);
                [set, get, encode(&[b"INCR", b"n"])].concat()
            })
            .collect();
        let writing = thread::spawn(move || writer.write_all(&requests).unwrap());
        for i in 0..2000 {
            assert_eq!(client.reply(), "+OK");
            assert_eq!(client.reply().len(), i * 10 + 2);
            assert_eq!(client.reply(), format!(":{}", i + 1));
        }
        writing.join().unwrap();
    });
}

#[test]
fn counters_of_many_clients_add_up() {
    with_server(|address, _| {
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let mut client = Client::new(address);
                    for _ in 0..500 {
                        client.ask("INCR n");
                    }
                });
            }
        });
        assert_eq!(Client::new(address).ask("GET n"), "\"4000\"");
    });
}

#[test]
fn memory_is_bounded() {
    with_server(|address, _| {
        let mut client = Client::new(address);
        let value = vec![b'v'; MEMORY / 8];
        let mut replies = Vec::new();
        for i in 0..10 {
            client.send(encode(&[b"SET", format!("k{i}").as_bytes(), &value]));
            replies.push(client.reply());
        }
        let oom = "-OOM command not allowed when used memory > 'maxmemory'.";
        let stored = replies.iter().position(|reply| reply == oom).unwrap();
        assert_eq!(stored, 7);
        assert!(replies[stored..].iter().all(|reply| reply == oom));
        // What needs none is still done.
        assert_eq!(
            client.ask("MGET k0 k1 k2"),
            "-ERR the reply would be too large"
        );
        client.send(encode(&[b"GET", b"k0"]));
        assert_eq!(client.reply().len(), value.len() + 2);
        let append = client.ask("APPEND k0 x");
        assert_eq!(
            append,
            "-ERR string exceeds maximum allowed size (proto-max-bulk-len)"
        );
        assert_eq!(client.ask("DEL k0"), ":1");
        client.send(encode(&[b"SET", b"k0", &value]));
        assert_eq!(client.reply(), "+OK");
    });
}

/// All keys that a whole scan gives.
fn scan_all(client: &mut Client, options: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut cursor = "0".to_owned();
    loop {
        let reply = client.ask(&format!("SCAN {cursor}{options}"));
        let (next, keys) = reply[1..reply.len() - 2].split_once(" [").unwrap();
        found.extend(keys.split_terminator(' ').map(str::to_owned));
        cursor = next.trim_matches('"').to_owned();
        if cursor == "0" {
            return found;
        }
    }
}

#[test]
fn scans_and_patterns_find_keys() {
    with_server(|address, _| {
        let mut client = Client::new(address);
        for i in 0..100 {
            client.ask(&format!("SET key:{i} v"));
        }
        client.ask("SET other v");
        assert_eq!(scan_all(&mut client, "").len(), 101);
        assert_eq!(scan_all(&mut client, " COUNT 1000").len(), 101);
        assert_eq!(scan_all(&mut client, " MATCH key:1* COUNT 7").len(), 11);
        assert_eq!(scan_all(&mut client, " TYPE list").len(), 0);
        assert_eq!(client.ask("KEYS o[a-t]h?r"), "[\"other\"]");
        assert_eq!(client.ask("KEYS none*"), "[]");
    });
}

#[test]
fn patterns_match_as_in_redis() {
    for (pattern, text, fits) in [
        ("*", "", true),
        ("", "", true),
        ("", "a", false),
        ("a*b*c", "aXbYbZc", true),
        ("a*b*c", "aXbYbZ", false),
        ("h?llo", "hello", true),
        ("h[ae]llo", "hallo", true),
        ("h[^e]llo", "hello", false),
        ("h[^e]llo", "hbllo", true),
        ("h[b-a]llo", "hallo", true),
        ("[\\]]", "]", true),
        ("\\*", "*", true),
        ("\\*", "a", false),
        ("**a", "bba", true),
        ("[a", "a", true),
        ("a[", "a", false),
        ("x\\", "x\\", true),
    ] {
        assert_eq!(
            matches(pattern.as_bytes(), text.as_bytes()),
            fits,
            "{pattern} {text}"
        );
    }
    // No pattern takes long.
    let start = Instant::now();
    assert!(!matches("*a".repeat(500).as_bytes(), &[b'b'; 20_000]));
    assert!(!matches(
        "a*".repeat(500).as_bytes(),
        "a".repeat(499).as_bytes()
    ));
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// What a parser finds in a stream that comes in pieces.
fn parse_in_pieces(bytes: &[u8], cuts: &[usize]) -> (Vec<Vec<Vec<u8>>>, Option<String>, usize) {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.push(bytes.len());
    cuts.sort_unstable();
    let (mut parser, mut requests, mut consumed) = (Parser::default(), Vec::new(), 0);
    for cut in cuts {
        loop {
            match parser.parse(&bytes[consumed..cut], 1000) {
                Err(error) => return (requests, Some(error.to_string()), consumed),
                Ok(Parsed::Incomplete) => break,
                Ok(Parsed::Request(arguments, len)) => {
                    assert!(len > 0 && consumed + len <= cut);
                    requests.push(arguments.from(0).map(<[u8]>::to_vec).collect());
                    consumed += len;
                }
            }
        }
    }
    (requests, None, consumed)
}

/// Bytes that often are requests, or nearly so.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let request = vec(vec(any::<u8>(), 0..20), 1..5).prop_map(|arguments| {
        let arguments: Vec<&[u8]> = arguments.iter().map(|a| &a[..]).collect();
        encode(&arguments)
    });
    let piece = prop_oneof![
        6 => request,
        1 => "[*$0-9\r\n+ a'\"\\\\x-]{0,12}".prop_map(String::into_bytes),
        1 => vec(any::<u8>(), 0..12),
    ];
    vec(piece, 0..6).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// How a stream is cut does not matter, and nothing in it does harm.
    #[test]
    fn pieces_parse_as_the_whole(bytes in stream(), cuts in vec(any::<usize>(), 0..8)) {
        prop_assert_eq!(parse_in_pieces(&bytes, &cuts), parse_in_pieces(&bytes, &[]));
    }

    /// What is encoded is parsed again.
    #[test]
    fn requests_are_found(
        requests in vec(vec(vec(any::<u8>(), 0..50), 1..6), 0..6), cuts in vec(any::<usize>(), 0..8),
    ) {
        let bytes: Vec<u8> = requests
            .iter()
            .flat_map(|request| encode(&request.iter().map(|a| &a[..]).collect::<Vec<_>>()))
            .collect();
        prop_assert_eq!(parse_in_pieces(&bytes, &cuts), (requests, None, bytes.len()));
    }

    /// Integers are taken in one form only.
    #[test]
    fn integers_have_one_form(number in any::<i64>(), text in "[+-]?[0-9]{0,21}") {
        prop_assert_eq!(integer(number.to_string().as_bytes()), Some(number));
        let parsed = text.parse::<i64>().ok().filter(|n| n.to_string() == text);
        prop_assert_eq!(integer(text.as_bytes()), parsed);
        prop_assert!(Value::new(text.as_bytes()).with_bytes(|bytes| bytes == text.as_bytes()));
    }

    /// The store is a map with times, its memory is what its parts add up to, and a scan gives all
    /// that stays. Now and then it is handed over, which nobody notices.
    #[test]
    fn the_store_is_a_map(
        ops in vec((0..8_u8, 0..12_u8, 0..30_u64), 0..80),
        churn in vec((any::<bool>(), 20..60_u8), 0..40),
    ) {
        let mut table = Some(Table::new(20_000).unwrap());
        let mut model: BTreeMap<Vec<u8>, (Vec<u8>, Option<u64>)> = BTreeMap::new();
        let mut now = 0;
        for (op, key, number) in ops {
            let key = vec![b'k', key];
            model.retain(|_, (_, at)| at.is_none_or(|at| at > now));
            if op == 6 {
                play::region(table.take().unwrap().into_region());
                table = Table::take().unwrap();
                // As on trial, where it is not opened.
                let size = table.as_ref().unwrap().size();
                let store = table.as_mut().unwrap().open();
                prop_assert_eq!(size, (store.memory(), store.len()));
            }
            let mut store = table.as_mut().unwrap().open();
            match op {
                0 => {
                    store.set(&key, Value::new(number.to_string().as_bytes()), None).unwrap();
                    model.insert(key, (number.to_string().into_bytes(), None));
                }
                1 => {
                    let at = now + number + 1;
                    store.set(&key, Value::new(b"text"), Some(at)).unwrap();
                    model.insert(key, (b"text".to_vec(), Some(at)));
                }
                2 => prop_assert_eq!(store.delete(&key), model.remove(&key).is_some()),
                3 => {
                    let tail = &b"+++++++++++++++++++++++++++++"[..number as usize];
                    let len = store.append(&key, tail).unwrap();
                    let value = &mut model.entry(key).or_default().0;
                    value.extend(tail);
                    prop_assert_eq!(len, value.len());
                }
                4 => {
                    now += number;
                    store.set_now(now);
                    store.expire(3);
                }
                5 => {
                    let at = (number > 5).then_some(now + number);
                    let there = store.get(&key).is_some() && store.set_expiry(&key, at);
                    prop_assert_eq!(there, model.contains_key(&key));
                    if let Some((_, expires)) = model.get_mut(&key) {
                        *expires = at;
                    }
                }
                _ => {
                    let found = store.get(&key).map(|value| value.with_bytes(<[u8]>::to_vec));
                    prop_assert_eq!(found.as_ref(), model.get(&key).map(|(value, _)| value));
                }
            }
            store.audit();
        }
        let mut table = table.unwrap();
        let mut store = table.open();
        model.retain(|_, (_, at)| at.is_none_or(|at| at > now));
        let keys: BTreeSet<Vec<u8>> = store.keys().map(<[u8]>::to_vec).collect();
        prop_assert_eq!(&keys, &model.keys().cloned().collect::<BTreeSet<_>>());
        let mut churn = churn.into_iter();
        let (mut found, mut cursor) = (BTreeSet::new(), 0);
        loop {
            let (keys, next) = store.scan(cursor, 2);
            found.extend(keys.map(<[u8]>::to_vec));
            cursor = next;
            if cursor == 0 {
                break;
            }
            // Other keys come and go meanwhile.
            for (new, key) in churn.by_ref().take(3) {
                if new {
                    store.set(&[key], Value::Integer(0), None).unwrap();
                } else {
                    store.delete(&[key]);
                }
            }
        }
        prop_assert!(keys.is_subset(&found));
        let all: Vec<Vec<u8>> = store.keys().map(<[u8]>::to_vec).collect();
        for key in all {
            store.delete(&key);
        }
        store.set_now(u64::MAX);
        store.expire(usize::MAX);
        prop_assert_eq!((store.len(), store.expiring(), store.used()), (0, 0, 0));
    }

    /// What does not fit is refused and changes nothing; what is freed can be had again.
    #[test]
    fn a_full_store_stays_whole(ops in vec((0..5_u8, 0..40_u8, 0..4000_usize), 0..120)) {
        let mut table = Table::new(16_000).unwrap();
        let mut store = table.open();
        let mut model: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        for (op, key, len) in ops {
            let bytes = vec![key; len];
            match op {
                0 => {
                    store.delete(&[key]);
                    model.remove(&key);
                }
                2 => {
                    let from = len / 2;
                    if store.set_range(&[key], from, &bytes).is_ok() {
                        let value = model.entry(key).or_default();
                        let end = value.len().max(from + len);
                        value.resize(end, 0);
                        value[from..from + len].copy_from_slice(&bytes);
                    }
                }
                1 => {
                    if store.append(&[key], &bytes).is_ok() {
                        model.entry(key).or_default().extend(&bytes);
                    }
                }
                _ => {
                    if store.set(&[key], Value::Bytes(&bytes), None).is_ok() {
                        model.insert(key, bytes);
                    }
                }
            }
            store.audit();
            prop_assert_eq!(store.len(), model.len());
        }
        for (key, bytes) in &model {
            prop_assert_eq!(store.get(&[*key]), Some(Value::Bytes(bytes)));
        }
        store.clear();
        prop_assert_eq!((store.len(), store.used()), (0, 0));
        store.set(b"large", Value::Bytes(&[1; 15_000]), None).unwrap();
        store.audit();
    }
}

/// Another layout, or another version, is not taken.
#[test]
fn a_table_of_another_kind_is_refused() {
    use segue::preserved::Region;
    assert!(Table::take().unwrap().is_none());
    play::region(Region::<[u8]>::create("kv", 2, 10_000).unwrap());
    assert!(Table::take().is_err());
    play::commit();
    play::region(Region::<[u8]>::create("kv", 1, 10_000).unwrap());
    assert!(Table::take().is_err());
}

/// A switch in the middle of a request: name, number, counts and the rest of it go on.
#[test]
fn clients_go_on_in_the_next_image() {
    let server = |table, counted| {
        let mut kv = Kv::new(table, Limits::new(MEMORY), now);
        kv.go_on(counted);
        let server = Server::new(kv, Config::default()).unwrap();
        Kv::observe(&server);
        server
    };
    let first = server(Table::new(MEMORY).unwrap(), Counted::default());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::scope(|scope| {
        let running = scope.spawn(|| first.run(&listener));
        let stop = Stop(&first);
        let mut client = Client::new(address);
        assert_eq!(client.ask("CLIENT SETNAME me"), "+OK");
        let mut other = Client::new(address);
        assert_eq!(other.ask("CLIENT ID"), ":2");
        let request = encode(&[b"CLIENT", b"GETNAME"]);
        client.send(&request[..20]);
        thread::sleep(Duration::from_millis(50));

        let mut out = Outgoing::default();
        let clients = (Socket::new(&listener), first.pause());
        out.put("clients", &clients).unwrap();
        out.put("counted", &first.service().counted()).unwrap();
        play::values(&out);
        let mut before = segue::handover();
        let counted = before.as_mut().unwrap().take("counted").unwrap();
        // The keys are another test's affair: this one's are of a thread of their own.
        let table = scope.spawn(|| Table::new(MEMORY).unwrap()).join().unwrap();
        let next = server(table, counted);
        let listener = next.take(&mut before, "clients").unwrap().unwrap();
        drop((before, stop));
        running.join().unwrap().unwrap();
        thread::scope(|scope| {
            let running = scope.spawn(|| next.run(&listener));
            let stop = Stop(&next);
            client.send(&request[20..]);
            assert_eq!(client.reply(), "\"me\"");
            assert_eq!(client.ask("CLIENT ID"), ":1");
            assert_eq!(Client::new(address).ask("CLIENT ID"), ":3");
            let info = client.ask("INFO");
            for wanted in ["total_connections_received:3", "total_commands_processed:5"] {
                assert!(info.contains(wanted), "{info}");
            }
            drop(stop);
            running.join().unwrap().unwrap();
        });
    });
}
