//! The start of the network in an image, and the network devices of xenbus as the stack's.
//!
//! The first socket starts it: an image without sockets has none of it in its file.

use super::config::Config;
use super::{attach, detach, start as start_stack, tcp};
use crate::abi::random;
use crate::boot;
use crate::devices::control;
use crate::devices::netfront::Netfront;
use crate::devices::xenbus::{Listener, Xenbus};
use crate::memory::vm;
use crate::sync::Lock;
use crate::task;
use crate::task::wait::WaitQueue;
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
                ready();
                let known = self.there.lock().try_push((vif, number));
                if known.is_err() {
                    drop(detach(number));
                }
            }
            Err(e) => println!("segue: vif={vif} refused reason=\"{e}\""),
        }
    }

    fn failed(&self) {
        ready();
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

/// How long the first socket waits for a device, in ns.
const READY_NS: u64 = 3_000_000_000;

/// A device is there, or none will come.
static READY: AtomicBool = AtomicBool::new(false);
static WAITING: WaitQueue = WaitQueue::new();

fn ready() {
    READY.store(true, Ordering::Release);
    WAITING.wake_all();
}

/// Starts the network and looks for devices, once, and waits until there is one, for a while; in a
/// trial nothing is done.
pub fn start() {
    begin();
    if Committed::get().is_some() && !READY.load(Ordering::Acquire) {
        let deadline = task::now().saturating_add(READY_NS);
        let _ = WAITING.wait_until(Some(deadline), || {
            READY.load(Ordering::Acquire).then_some(())
        });
        ready();
    }
}

/// Everything that the network has stands still until [`thaw`].
fn freeze(deadline: u64) -> bool {
    let stack = loop {
        match super::STACK.try_lock() {
            Some(stack) => break stack,
            None if task::now() > deadline => return false,
            None => task::yield_now(),
        }
    };
    let mut stack = core::mem::ManuallyDrop::new(stack);
    if let Some(stack) = stack.as_mut() {
        for nic in stack
            .host
            .interfaces
            .iter_mut()
            .flatten()
            .filter_map(|i| i.nic.as_mut())
        {
            nic.freeze();
        }
    }
    true
}

fn thaw() {
    // SAFETY: `freeze` has it.
    unsafe { super::STACK.force_unlock() };
}

fn begin() {
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
        ready();
        return;
    }
    let config = Config::read(&boot::machine().cmdline, |bad| {
        println!("segue: net ignored=\"{bad}\"");
    });
    start_stack(config, tcp_config(), secret, |line| {
        println!("segue: {line}")
    });
    crate::replace::live::register(crate::replace::live::Live {
        extent: || None,
        freeze,
        thaw,
    });
    match Xenbus::new(token, Devices::default()) {
        Ok(mut bus) => {
            bus.adopt();
            control::add(Box::new(bus));
        }
        Err(e) => {
            println!("segue: net off reason=\"{e}\"");
            ready();
        }
    }
}
