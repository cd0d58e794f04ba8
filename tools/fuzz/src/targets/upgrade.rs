//! What the upgrade service and its clients read: openings, requests, answers, keys.
//!
//! The first byte says which; requests are read as the service does, so that nothing may come of
//! one that no operator has signed.

use crate::{Input, Target};
use segue::upgrade::parse_keys;
use segue::upgrade::protocol::{
    Answer, Command, Hello, MAX_DATA_REQUEST, Occasion, Opening, Refused, Request, Signed, Status,
    Stays, Switch,
};
use segue_kernel::image::testing;
use segue_kernel::image::{BuildId, Digest, PublicKey};

pub const TARGET: Target = Target {
    name: "upgrade",
    what: "requests to the upgrade service, and its answers",
    longest: 4096,
    // serde sets aside up to 1 MiB for a list that says that it is long, however short the frame.
    memory: (1 << 20) + (256 << 10),
    seeds,
    run,
};

const OCCASION: Occasion = Occasion {
    domain: [7; 16],
    generation: 3,
    nonce: [9; 32],
};

fn run(input: &[u8]) {
    let mut script = Input(input);
    match script.u8() % 4 {
        0 => request(script.rest()),
        1 => answer(script.rest()),
        2 => {
            if let Some(bytes) = script.rest().first_chunk()
                && let Some(opening) = Opening::decode(bytes)
            {
                assert_eq!(opening.encode(), *bytes);
                assert!(
                    opening
                        .version()
                        .is_none_or(|v| opening.min <= v && v <= opening.max)
                );
            }
        }
        _ => {
            if let Ok(keys) = parse_keys(&String::from_utf8_lossy(script.rest())) {
                assert!(!keys.is_empty() && keys.iter().all(PublicKey::is_sound));
            }
        }
    }
}

fn request(bytes: &[u8]) {
    let Ok(request) = Request::decode(bytes) else {
        return;
    };
    let mut room = [0; MAX_DATA_REQUEST + 4];
    let frame = request.encode(&mut room).unwrap_or_default();
    // Integers may be written longer than they have to be, so not all that is read is what would be
    // written.
    assert_eq!(
        frame.get(4..).map(Request::decode),
        Some(Ok(request.clone()))
    );
    if let Request::Signed(signed) = request {
        let operators = [PublicKey::of(&testing::key(2))];
        let other = Occasion {
            generation: 4,
            ..OCCASION
        };
        assert!(!signed.is_of(&operators, &other), "nobody has signed that");
    }
}

fn answer(bytes: &[u8]) {
    if let Ok(answer) = Answer::decode(bytes)
        && let Some(frame) = answer.encode()
    {
        assert_eq!(frame.get(4..).map(Answer::decode), Some(Ok(answer)));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let commands = [
        Command::Upload {
            bundle: Digest([1; 32]),
            len: 1 << 20,
            downgrade: None,
        },
        Command::Switch {
            bundle: Digest([1; 32]),
            probation_ms: 60_000,
            must_confirm: true,
            downgrade: [1; 100].as_slice().try_into().ok(),
        },
        Command::Confirm {
            build: BuildId([2; 32]),
        },
        Command::RollBack {
            build: BuildId([2; 32]),
        },
    ];
    let signed = commands.map(|command| {
        let signed = Signed::new(command, &OCCASION, &testing::key(2));
        Request::Signed(Box::new(signed))
    });
    let others = [
        Request::Status,
        Request::Data {
            offset: 16384,
            bytes: &[5; 100],
        },
    ];
    let mut room = [0; MAX_DATA_REQUEST + 4];
    let mut seeds: Vec<_> = signed
        .iter()
        .chain(&others)
        .map(|request| {
            let frame = request.encode(&mut room).unwrap_or_default();
            [&[0], frame.get(4..).unwrap_or_default()].concat()
        })
        .collect();
    let status = Status {
        name: "kv".into(),
        version: "1.0.0".into(),
        switch: Some(Switch {
            parts: vec![("quiesce".into(), 12)],
            handed: vec![("regions".into(), 1)],
            ..Switch::default()
        }),
        ..Status::default()
    };
    let answers = [
        Answer::Hello(Hello {
            version: 1,
            domain: [7; 16],
            generation: 3,
            nonce: [9; 32],
            build: BuildId([2; 32]),
            most: 4 << 20,
        }),
        Answer::Status(Box::new(status)),
        Answer::Refused(Refused::Busy),
        Answer::Stays(Stays::Resumed {
            why: "panic".into(),
            console: "lines\n".into(),
        }),
    ];
    for answer in answers {
        let frame = answer.encode().unwrap_or_default();
        seeds.push([&[1], frame.get(4..).unwrap_or_default()].concat());
    }
    seeds.push([&[2], &Opening::OURS.encode()[..]].concat());
    seeds.push(b"\x03# none\nAAAA".to_vec());
    seeds
}
