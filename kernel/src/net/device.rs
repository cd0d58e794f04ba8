//! The start of the network in an image, and the network devices of xenbus as the stack's.

use super::config::Config;
use super::{attach, detach, start as start_stack, tcp};
use crate::abi::random;
use crate::boot;
use crate::devices::netfront::Netfront;
use crate::devices::xenbus::{Listener, Xenbus};
use crate::memory::vm;
use crate::sync::Lock;
use crate::task;
use crate::xen::Committed;
use crate::xen::console::println;
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicBool, Ordering};

/// Most devices.
const DEVICES: usize = 16;

/// Passes devices on to the stack.
#[derive(Debug, Default)]
struct Devices {
    /// Device and interface numbers.
    there: Lock<ArrayVec<(u32, usize), DEVICES>>,
}

impl Listener for Devices {
    fn attached(&self, nic: Box<Netfront>) {
        let vif = nic.vif();
        match attach(nic) {
            Ok(number) => {
                let known = self.there.lock().try_push((vif, number));
                if known.is_err() {
                    drop(detach(number));
                }
            }
            Err(e) => println!("segue: vif={vif} refused reason=\"{e}\""),
        }
    }

    fn detached(&self, vif: u32) {
        let number = {
            let mut there = self.there.lock();
            let at = there.iter().position(|(v, _)| *v == vif);
            at.map(|at| there.swap_remove(at).1)
        };
        if let Some(number) = number {
            drop(detach(number));
            println!("segue: net interface={number} gone");
        }
    }
}

/// What TCP may use in a domain of this size: an eighth of the memory that is free now.
fn tcp_config() -> tcp::Config {
    let defaults = tcp::Config::default();
    let free = usize::try_from(vm::free_count()).unwrap_or(usize::MAX);
    let share = free.saturating_mul(4096) / 8;
    tcp::Config {
        buffer_memory: defaults.buffer_memory.min(share.max(1 << 20)),
        ..defaults
    }
}

/// Starts the network and looks for devices, once; in a trial nothing is done.
pub fn start() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    let Some(token) = Committed::get() else {
        return;
    };
    if STARTED.swap(true, Ordering::AcqRel) {
        return;
    }
    let mut secret = [0; 32];
    if random::fill(&mut secret).is_err() {
        println!("segue: net off reason=\"the processor gives no random numbers\"");
        return;
    }
    let config = Config::read(&boot::machine().cmdline, |bad| {
        println!("segue: net ignored=\"{bad}\"");
    });
    start_stack(config, tcp_config(), secret, |line| {
        println!("segue: {line}")
    });
    let bus = move || {
        let mut bus = match Xenbus::start(token, Devices::default()) {
            Ok(bus) => bus,
            Err(e) => {
                println!("segue: xenbus off reason=\"{e}\"");
                return;
            }
        };
        loop {
            if let Err(e) = bus.turn(None) {
                println!("segue: xenbus off reason=\"{e}\"");
                return;
            }
        }
    };
    if task::spawn("xenbus", bus).is_err() {
        println!("segue: xenbus off reason=\"no memory for its thread\"");
    }
}
