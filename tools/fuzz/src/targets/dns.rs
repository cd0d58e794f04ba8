//! What a name server answers, to a stack that looks up a name.

use crate::input::Script;
use crate::peer::{IT, MS, Peer, SECOND, WE, datagram, no_tcp, parse};
use crate::{Input, Target};

pub const TARGET: Target = Target {
    name: "dns",
    what: "DNS answers",
    longest: 1500,
    // The stack's arena takes 84 KiB of it.
    memory: 152 << 10,
    seeds,
    run,
};

/// A question: port, identifier and record asked for.
struct Question {
    port: u16,
    message: Vec<u8>,
}

fn run(input: &[u8]) {
    let mut input = Input(input);
    let line = "segue.ip=10.0.0.1/24 segue.dns=10.0.0.2,10.0.0.2";
    let mut peer = Peer::new(line, no_tcp(), false);
    let lookup = peer.stack.host.look_up("www.example.test", true, true);
    let mut lookup = lookup.expect("there is a server");
    let mut asked = Vec::new();
    let mut found = None;
    turn(&mut peer, &mut asked);
    while input.more() && found.is_none() {
        let step = input.u8();
        match step % 4 {
            0 => peer.now += u64::from(input.u16()) * MS,
            kind => {
                let at = usize::from(input.u8()) % asked.len().max(1);
                let Some(question): Option<&Question> = asked.get(at) else {
                    peer.wait(SECOND);
                    turn(&mut peer, &mut asked);
                    continue;
                };
                // What makes it an answer is as it should be; the rest is the input's.
                let mut answer = question.message[..2].to_vec();
                if kind == 1 {
                    answer.extend(input.piece());
                } else {
                    answer.extend([0x84, input.u8(), 0, 1, 0, input.u8(), 0, 0, 0, 0]);
                    answer.extend(&question.message[12..]);
                    answer.extend(input.piece());
                    if kind == 3 {
                        let at = usize::from(input.u8()) % answer.len();
                        answer[at] = input.u8();
                    }
                }
                if step & 4 != 0 {
                    answer.extend(input.piece());
                }
                let frame = datagram(WE, IT, 53, question.port, &answer);
                peer.put(frame);
            }
        }
        turn(&mut peer, &mut asked);
        found = peer.stack.host.looked_up(&mut lookup);
    }
    // Without a further answer it ends, in a minute and a half.
    let end = peer.now + 90 * SECOND;
    while found.is_none() && peer.now < end {
        peer.wait(SECOND);
        turn(&mut peer, &mut asked);
        found = peer.stack.host.looked_up(&mut lookup);
    }
    match found.expect("a look-up ends") {
        Ok(addresses) => assert!(!addresses.is_empty() && addresses.len() <= 32),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Lets the stack work, and keeps its last questions.
fn turn(peer: &mut Peer, asked: &mut Vec<Question>) {
    peer.turn(|frame, _| {
        let Some((h, udp)) = parse(frame) else { return };
        if h.protocol == 17 && udp[2..4] == [0, 53] && udp.len() > 20 {
            asked.truncate(3);
            let question = Question {
                port: u16::from_be_bytes([udp[0], udp[1]]),
                message: udp[8..].to_vec(),
            };
            asked.insert(0, question);
        }
    });
}

fn seeds() -> Vec<Vec<u8>> {
    let record = |kind: u8, data: &[u8]| {
        let mut bytes = vec![0xc0, 12, 0, kind, 0, 1, 0, 0, 0, 9, 0, data.len() as u8];
        bytes.extend(data);
        bytes
    };
    let v4 = record(1, &[10, 0, 0, 7]);
    let v6 = record(28, &[0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    let alias = record(5, b"\x05other\xc0\x10");
    let answer = |s: Script, which: u8, count: u8, records: &[u8]| {
        s.then(&[2, which, 0, count]).piece(records)
    };
    let s = Script::default;
    vec![
        answer(answer(s(), 1, 1, &v4), 0, 1, &v6).0,
        answer(s(), 1, 2, &[&alias[..], &v4].concat()).0,
        answer(s(), 1, 20, &v4.repeat(15)).0,
        // No such name, twice; and an answer without one.
        s().then(&[2, 0, 3, 0, 0, 2, 1, 3, 0, 0]).0,
        answer(s(), 0, 0, &[]).0,
        // A name that points to itself; a message of a few bytes; time.
        s().then(&[1, 0])
            .piece(&[0x84, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1])
            .0,
        s().then(&[1, 0]).piece(&[0x84]).then(&[0, 0xff, 0xff]).0,
        s().then(&[3, 0, 0, 1]).piece(&v4).then(&[3, 0xff]).0,
    ]
}
