//! Stacks on a simulated wire.

mod garbage;
mod handover;
mod services;
mod sockets;
mod streams;
mod wire;

use super::Error;
use super::config::Config;
use super::nic::Caps;
use super::stack::Stack;
use super::tcp;
use crate::boot::cmdline::CommandLine;
use std::cell::RefCell;
use std::rc::Rc;
use wire::{TestNic, pair};

/// A stack with this command line and device.
fn stack(line: &str, nic: TestNic) -> Stack {
    let config = Config::read(&CommandLine::from_bytes(line.as_bytes()), |b| panic!("{b}"));
    let secret = [nic.caps.mac[5]; 32];
    let mut stack = Stack::new(config, tcp::Config::default(), secret, 0);
    stack.attach(0, Box::new(nic)).unwrap();
    stack.round(0);
    stack
}

fn two(a: Caps, b: Caps, passes_offload: bool) -> (Stack, Stack) {
    let (a, b) = pair(a, b, passes_offload);
    (
        stack("segue.ip=10.0.0.1/24,fd00::1/64", a),
        stack("segue.ip=10.0.0.2/24,fd00::2/64", b),
    )
}

fn clock() -> Rc<RefCell<u64>> {
    Rc::new(RefCell::new(1))
}

const SECOND: u64 = 1_000_000_000;
