//! The start of the network in an image, and the network devices of xenbus as the stack's.
//!
//! The first socket starts it: an image without sockets has none of it in its file.

use super::config::Config;
use super::handover;
use super::stack::Stack;
use super::tcp::arena::{Arena, Memory};
use super::{attach, detach, notify, start as start_stack, tcp};
use crate::abi::random;
use crate::boot;
use crate::devices::control;
use crate::devices::netfront::Netfront;
use crate::devices::xenbus::{Listener, Xenbus};
use crate::memory::addr::PAGE_SIZE;
use crate::memory::{Extent, vm};
use crate::replace::live::{self, Live};
use crate::sync::Lock;
use crate::task;
use crate::task::wait::WaitQueue;
use crate::xen::Committed;
use crate::xen::console::println;
use alloc::boxed::Box;
use alloc::string::{String, ToString};
use arrayvec::ArrayVec;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, Ordering};
use hermit_sync::OnceCell;

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

/// The least and the most that the arena takes, in bytes.
const LEAST: u64 = 1 << 20;
const MOST: u64 = 24 << 20;
/// Frames of a large page.
const LARGE: u64 = 512;

/// Where the network's state lies.
static ARENA: OnceCell<Extent> = OnceCell::new();

/// Frames for the arena in a domain of this size: an eighth of the memory that is free now, or what
/// there is in a row.
fn frames() -> Option<Extent> {
    let share = vm::free_count().saturating_mul(PAGE_SIZE) / 8;
    let mut frames = share.clamp(LEAST, MOST) / PAGE_SIZE;
    while frames * PAGE_SIZE >= LEAST / 4 {
        // On a boundary of large pages, if it can be had: fewer page tables for a trial.
        let aligned = (frames >= LARGE).then(|| vm::alloc_frames(frames, LARGE));
        let found = aligned.flatten().or_else(|| vm::alloc_frames(frames, 1));
        if found.is_some() {
            return found;
        }
        frames /= 2;
    }
    None
}

/// The memory of these frames.
pub(super) fn memory(extent: Extent) -> Option<Memory> {
    let len = usize::try_from(extent.bytes()).ok()?;
    let base = NonNull::new(extent.addr().as_ptr::<u8>())?;
    // SAFETY: they are the network's: of this image, or of the one before, which is at rest or gone;
    // on trial they are mapped, and only looked at.
    unsafe { Memory::over(base, len) }
}

/// What TCP may use of an arena.
fn tcp_config(extent: Extent) -> tcp::Config {
    tcp::Config::for_memory(usize::try_from(extent.bytes()).unwrap_or(usize::MAX))
}

/// A stack without connections.
fn new_stack(config: Config, extent: Extent, secret: [u8; 32], now: u64) -> Option<Stack> {
    let arena = Arena::new(memory(extent)?)?;
    let tcp = tcp_config(extent);
    Some(Stack::in_arena(config, tcp, arena, secret, now))
}

/// The stack that came with the switch.
fn adopted(config: Config, extent: Extent, secret: [u8; 32], now: u64) -> Option<Stack> {
    let memory = memory(extent)?;
    let adopted = handover::looked(&memory)
        .and_then(|offer| Stack::adopt(config, tcp_config(extent), memory, offer, secret, now));
    match adopted {
        Ok(stack) => Some(stack),
        // Only if nobody has claimed anything on trial: else it would have ended there.
        Err(why) => {
            println!("segue: net adopted=no reason=\"{why}\"");
            None
        }
    }
}

/// For the switch: brings the network to rest.
fn freeze(deadline: u64) -> bool {
    match super::freeze(deadline) {
        Ok(0) => true,
        Ok(dropped) => {
            println!("segue: net frozen dropped={dropped}");
            true
        }
        Err(why) => {
            println!("segue: net frozen=no reason=\"{why}\"");
            false
        }
    }
}

/// For the switch: the network goes on.
fn thaw() {
    // SAFETY: the switch calls it after `freeze` only, and only if that has succeeded.
    unsafe { super::thaw() };
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

/// As [`start`], without waiting for a device.
pub(super) fn begin() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    let Some(token) = Committed::get() else {
        return;
    };
    if STARTED.swap(true, Ordering::AcqRel) {
        return;
    }
    if let Err(why) = begin_with(token) {
        println!("segue: net off reason=\"{why}\"");
        ready();
    }
}

fn begin_with(token: Committed) -> Result<(), String> {
    let mut secret = [0; 32];
    let no_random = "the processor gives no random numbers";
    random::fill(&mut secret).map_err(|_| no_random)?;
    let config = Config::read(&boot::machine().cmdline, |bad| {
        println!("segue: net ignored=\"{bad}\"");
    });
    let came = live::take(token);
    let now = task::now();
    let stack = came.and_then(|extent| adopted(config.clone(), extent, secret, now));
    let extent = came.or_else(frames).ok_or("no memory for it")?;
    let stack = match stack {
        Some(stack) => stack,
        None => new_stack(config, extent, secret, now).ok_or("no memory for it")?,
    };
    let _ = ARENA.set(extent);
    live::register(Live {
        extent: || ARENA.get().copied(),
        freeze,
        thaw,
    });
    start_stack(|_| stack, |line| println!("segue: {line}"));
    // The network's thread begins when a device is attached: the first that it does for connections
    // is to look at what waits for them.
    let bus = Xenbus::new(token, Devices::default());
    let mut bus = bus.inspect_err(|_| notify()).map_err(|e| e.to_string())?;
    bus.adopt();
    control::add(Box::new(bus));
    Ok(())
}
