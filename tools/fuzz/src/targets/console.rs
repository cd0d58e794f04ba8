//! The console's ring against a backend that writes any index at any time.
//!
//! While the backend keeps to the protocol, bytes have to come out as they went in, both ways.

use crate::input::Script;
use crate::{Input, Target};
use segue_kernel::xen::console_ring::{IN_SIZE, OUT_SIZE, Ring};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;

pub const TARGET: Target = Target {
    name: "console",
    what: "the console's ring, with a hostile backend",
    longest: 1024,
    memory: 64 << 10,
    seeds,
    run,
};

const PUT: u8 = 0;
const TAKE: u8 = 1;
const BACK_TAKE: u8 = 2;
const BACK_PUT: u8 = 3;
const SCRIBBLE: u8 = 4;
const STEPS: u8 = 5;

fn run(input: &[u8]) {
    let mut input = Input(input);
    let ring = Ring::blank();
    let start = input.u32();
    for index in ring.indices() {
        index.store(start, Ordering::SeqCst);
    }
    let (mut output, mut typed) = (VecDeque::new(), VecDeque::new());
    let mut honest = true;
    let mut next = 0u8;
    let mut bytes = |len: u16| -> Vec<u8> {
        (0..len % 4096)
            .map(|_| {
                next = next.wrapping_mul(5).wrapping_add(1);
                next
            })
            .collect()
    };
    while input.more() {
        match input.u8() % STEPS {
            PUT => {
                let bytes = bytes(input.u16());
                let put = ring.put(&bytes);
                assert!(put <= bytes.len() && put <= OUT_SIZE as usize);
                output.extend(&bytes[..put]);
                assert!(!honest || put == bytes.len() || ring.used() == OUT_SIZE);
            }
            TAKE => {
                let mut buf = vec![0; usize::from(input.u16() % 4096)];
                let took = ring.take(&mut buf);
                assert!(took <= IN_SIZE as usize);
                if honest {
                    let expected: Vec<u8> = typed.drain(..took.min(typed.len())).collect();
                    assert_eq!(&buf[..took], &expected);
                    assert!(took == buf.len() || typed.is_empty());
                }
            }
            BACK_TAKE if honest => {
                let took = ring.take_output(input.u16().into());
                let expected: Vec<u8> = output.drain(..took.len().min(output.len())).collect();
                assert_eq!(took, expected);
            }
            BACK_PUT if honest => {
                let bytes = bytes(input.u16());
                let put = ring.put_input(&bytes);
                typed.extend(&bytes[..put]);
            }
            SCRIBBLE => {
                let which = usize::from(input.u8() % 4);
                ring.indices()[which].store(input.u32(), Ordering::SeqCst);
                honest = false;
            }
            _ => {}
        }
        assert!(ring.used() <= OUT_SIZE);
        assert!(!honest || ring.used() as usize == output.len());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let talk = |start: u32| {
        Script::default()
            .then(&start.to_le_bytes())
            .then(&[PUT, 0, 7, BACK_TAKE, 0, 3, PUT, 0, 8, BACK_TAKE, 0xff, 0xff])
            .then(&[BACK_PUT, 0, 2, TAKE, 0, 1, BACK_PUT, 0, 4, TAKE, 0, 4])
    };
    vec![
        talk(0).0,
        talk(u32::MAX - 1000).0,
        talk(0)
            .then(&[SCRIBBLE, 1, 0xff, 0xff, 0xff, 0xff, TAKE, 0, 8, PUT, 0, 8])
            .then(&[SCRIBBLE, 2, 0, 0, 0, 0x80, PUT, 0, 8])
            .0,
    ]
}
