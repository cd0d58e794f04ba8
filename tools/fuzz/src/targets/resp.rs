//! RESP: requests in whatever pieces, and the commands that they ask for.
//!
//! However the bytes are cut, the same requests come of them; each gets exactly one reply that is
//! RESP; keys and values stay within their bound, and the store's books are right.

use crate::{Input, Target};
use kv::Limits;
use kv::command::{Client, Context, execute};
use kv::resp::{Error, Parsed, Parser};
use kv::store::Table;

pub const TARGET: Target = Target {
    name: "resp",
    what: "RESP requests, the commands and the store of `kv`",
    longest: 4096,
    memory: 1 << 20,
    seeds,
    run,
};

const MEMORY: usize = 64 << 10;
/// Arguments of this length at most.
const VALUE: usize = 16 << 10;

type Request = Vec<Vec<u8>>;

fn run(input: &[u8]) {
    let mut input = Input(input);
    let cut = usize::from(input.u8());
    let tick = u64::from(input.u8());
    let bytes = input.rest();
    let (whole, end) = requests(bytes, bytes.len().max(1));
    let (pieces, end_in_pieces) = requests(bytes, 1 + cut % 64);
    assert_eq!(whole, pieces, "cutting makes no difference");
    assert_eq!(end, end_in_pieces);
    commands(&whole, tick);
}

/// The requests of bytes that come `step` at a time, and how that ended.
fn requests(bytes: &[u8], step: usize) -> (Vec<Request>, Option<Error>) {
    let mut parser = Parser::default();
    let mut all = Vec::new();
    let (mut start, mut there) = (0, 0);
    loop {
        let input = &bytes[start..there];
        match parser.parse(input, VALUE) {
            Ok(Parsed::Incomplete) => {
                if there == bytes.len() {
                    return (all, None);
                }
                there = bytes.len().min(there + step);
            }
            Ok(Parsed::Request(arguments, len)) => {
                assert!(len > 0 && len <= input.len());
                let request: Request = arguments.from(0).map(<[u8]>::to_vec).collect();
                assert_eq!(request.len(), arguments.len());
                assert!(request.iter().all(|argument| argument.len() <= VALUE));
                all.push(request);
                start += len;
                parser.shrink();
            }
            Err(error) => {
                assert!(error.to_string().starts_with("ERR "));
                return (all, Some(error));
            }
        }
    }
}

/// A request as clients send it.
fn encoded(request: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", request.len()).into_bytes();
    for argument in request {
        bytes.extend(format!("${}\r\n", argument.len()).bytes());
        bytes.extend(argument);
        bytes.extend(b"\r\n");
    }
    bytes
}

fn commands(requests: &[Request], tick: u64) {
    let mut limits = Limits::new(MEMORY);
    limits.value = VALUE;
    let mut table = Table::new(MEMORY).expect("memory");
    let mut store = table.open();
    let mut client = Client::default();
    let mut parser = Parser::default();
    let mut now = 0;
    for request in requests.iter().filter(|request| !request.is_empty()) {
        // What was understood is understood again.
        let bytes = encoded(request);
        let Ok(Parsed::Request(arguments, len)) = parser.parse(&bytes, VALUE) else {
            panic!("a request is one again: {:?}", bytes.escape_ascii());
        };
        assert_eq!(len, bytes.len());
        assert!(arguments.from(0).eq(request.iter().map(Vec::as_slice)));
        now += tick;
        store.set_now(now);
        let mut out = Vec::new();
        let mut context = Context {
            store: &mut store,
            client: &mut client,
            limits: &limits,
            wall_ms: 1_700_000_000_000 + now,
            info: &String::new,
            out: &mut out,
        };
        execute(&mut context, arguments);
        assert_eq!(
            reply(&out, 0),
            Some(out.len()),
            "one reply: {:?}",
            out.escape_ascii()
        );
        // A request may go over the bound once, by what it brings and what its entry costs.
        let most = limits.memory + 2 * bytes.len() + 512 * request.len();
        assert!(store.used() <= most, "{} bytes are used", store.used());
        assert!(store.expiring() <= store.len());
        if client.quits {
            break;
        }
    }
    // The books are right: nothing is left of nothing.
    store.expire(usize::MAX);
    let keys: Vec<Vec<u8>> = store.keys().map(<[u8]>::to_vec).collect();
    assert_eq!(keys.len(), store.len());
    for key in keys {
        assert!(store.delete(&key));
    }
    assert_eq!((store.len(), store.used(), store.expiring()), (0, 0, 0));
}

/// Where the reply ends that starts there.
fn reply(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let len = rest.windows(2).position(|pair| pair == b"\r\n")?;
    let end = at + len + 2;
    let line = &rest[..len];
    let (kind, text) = line.split_first()?;
    let number = || std::str::from_utf8(text).ok()?.parse::<i64>().ok();
    match kind {
        b'+' | b'-' => (!text.contains(&b'\n') && !text.contains(&b'\r')).then_some(end),
        b':' => number().map(|_| end),
        b'$' => match usize::try_from(number()?) {
            Err(_) => (number()? == -1).then_some(end),
            Ok(len) => {
                let after = end.checked_add(len)?;
                (bytes.get(after..after + 2)? == b"\r\n").then_some(after + 2)
            }
        },
        b'*' => match usize::try_from(number()?) {
            Err(_) => (number()? == -1).then_some(end),
            Ok(count) => (0..count).try_fold(end, |at, _| reply(bytes, at)),
        },
        _ => None,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let lines = |tick: u8, text: &str| {
        let mut bytes = vec![3, tick];
        for line in text.lines() {
            let words = line.split_whitespace().map(|word| word.as_bytes().to_vec());
            bytes.extend(encoded(&words.collect::<Vec<_>>()));
        }
        bytes
    };
    let inline: &[u8] =
        b"\x07\x01SET k \"a \\x41\\n\\\"b\" EX 5\r\nGET k\n\r\nset 'it\\'s' 1\r\nINCR it's\n\
        APPEND k x\nGETRANGE k 0 -1\nSCAN 0 MATCH * COUNT 10\nKEYS [a-k]*\nCONFIG GET *\nHELLO\n";
    vec![
        inline.to_vec(),
        lines(
            1,
            "PING\nSET a 1 NX PX 100\nINCR a\nDECRBY a 5\nINCRBYFLOAT a 0.5\nGET a\nMSET b 2 c 3\n\
             MGET a b c d\nEXPIRE b 1 GT\nPTTL b\nPERSIST b\nGETSET b x\nGETDEL b\nEXISTS a b\nTYPE a",
        ),
        lines(
            200,
            "SET k v EX 1\nTTL k\nSETEX k 1 v\nPEXPIREAT k 1700000000500\nSETNX n 9223372036854775807\n\
             INCR n\nSTRLEN n\nDBSIZE\nCLIENT SETNAME me\nCLIENT ID\nCOMMAND\nCOMMAND INFO get x\n\
             INFO\nSELECT 0\nTIME\nFLUSHALL\nQUIT",
        ),
        b"\x01\x01*2\r\n$3\r\nGET\r\n$1\r\nk\r\n*0\r\n*-1\r\n*1\r\n$4\r\nPING\r\n*1\r\n$-1\r\n"
            .to_vec(),
    ]
}
