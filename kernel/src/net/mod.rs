//! The network: everything between a device that moves Ethernet frames and the sockets of std.
//!
//! A [`stack::Stack`] is plain code, told the time and called under one lock. Its
//! [`interface::Interface`]s have devices ([`nic`]); `input.rs` takes their frames: TCP's go
//! straight to its engine ([`tcp`]) and UDP's to sockets ([`udp`]), without a copy on the way;
//! `host.rs` sends. What is left to smoltcp are wire formats, group reports and the clients of DHCP
//! and DNS.
//!
//! One thread does what devices and timers ask for, with a bound on each round. Who sends or
//! receives runs the stack on its own thread, under the same lock.

pub mod config;
#[cfg(target_os = "hermit")]
pub mod device;
pub mod handover;
pub mod host;
mod input;
pub mod interface;
pub mod ip;
pub mod lock;
pub mod neighbor;
pub mod nic;
pub mod notes;
pub mod ports;
pub mod reassembly;
pub mod resolve;
pub mod socket;
pub mod stack;
pub mod stats;
pub mod streams;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod udp;

use crate::task::{self, wait::WaitQueue};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use resolve::ResolveError;
use serde::{Deserialize, Serialize};
use stack::Stack;

/// TTL or hop limit of what says nothing else (IANA).
pub const HOPS: u8 = 64;

/// Why something of the network's was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Error {
    /// Not now.
    WouldBlock,
    /// It makes no sense.
    Invalid,
    /// Somebody else has the address and port.
    InUse,
    /// No address of this host.
    NotLocal,
    /// No route.
    Unreachable,
    /// The next neighbour does not answer, or a router says that the host can't be reached.
    HostUnreachable,
    /// Nobody there takes it.
    Refused,
    /// A router or this host forbids it.
    Denied,
    /// Somebody on the way could not understand it.
    Protocol,
    /// Longer than any packet.
    TooLong,
    /// Longer than what passes on the way, in bytes of the IP packet.
    PathTooLong(u32),
    /// There is nobody to send it to.
    NoDestination,
    /// There is no such interface.
    NoInterface,
    /// No memory or no table entry for it.
    NoBuffers,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WouldBlock => "not now",
            Self::Invalid => "it makes no sense",
            Self::InUse => "address in use",
            Self::NotLocal => "no address of this host",
            Self::Unreachable => "no route",
            Self::HostUnreachable => "the host can't be reached",
            Self::Refused => "nobody there takes it",
            Self::Denied => "not permitted",
            Self::Protocol => "not understood on the way",
            Self::TooLong => "longer than any packet",
            Self::PathTooLong(_) => "longer than what passes on the way",
            Self::NoDestination => "no destination",
            Self::NoInterface => "no such interface",
            Self::NoBuffers => "no memory for it",
        })
    }
}

impl core::error::Error for Error {}

impl From<nic::SendError> for Error {
    fn from(error: nic::SendError) -> Self {
        match error {
            nic::SendError::Full => Self::WouldBlock,
            nic::SendError::Refused => Self::TooLong,
        }
    }
}

static STACK: lock::Mutex<Option<Stack>> = lock::Mutex::new(None);
/// How many threads want the stack that did not get it at once.
static WANTED: AtomicU32 = AtomicU32::new(0);
/// How often the network's thread lets others go first before it goes on itself.
const COURTESY: u32 = 100;
/// What the network's thread waits in.
static WORK: WaitQueue = WaitQueue::new();
/// Something has happened since the thread last looked.
static PENDING: AtomicBool = AtomicBool::new(false);
/// The thread sleeps no longer than until then.
static ARMED: AtomicU64 = AtomicU64::new(u64::MAX);
/// Those who wait for names.
static ANSWERS: WaitQueue = WaitQueue::new();

/// How long a name may take to be found, in ns: three servers' time-outs of smoltcp's client.
const LOOK_UP_TIME: u64 = 30_000_000_000;

/// Tells what has changed: one line for each interface.
pub type Tell = fn(fmt::Arguments<'_>);

/// Starts the network, once; it works from the first [`notify`] on. `make` makes the stack, and is
/// told the time; `tell` is given a line whenever addresses change.
pub fn start(make: impl FnOnce(u64) -> Stack, tell: Tell) {
    let mut guard = STACK.lock();
    if guard.is_none() {
        let now = task::now();
        handover::begin(guard.insert(make(now)), now);
        drop(guard);
        // Without it nothing works, and there is nobody to tell.
        let _ = task::spawn("net", move || run(tell));
    }
}

/// A device has something received, or room to send again. May be called in interrupt context.
pub fn notify() {
    if !PENDING.swap(true, Ordering::AcqRel) {
        WORK.wake_one();
    }
}

fn take() -> lock_api::MutexGuard<'static, lock::Sleeping, Option<Stack>> {
    STACK.try_lock().unwrap_or_else(|| {
        WANTED.fetch_add(1, Ordering::Relaxed);
        let guard = STACK.lock();
        WANTED.fetch_sub(1, Ordering::Relaxed);
        guard
    })
}

/// Whoever comes first has the lock: without this a flood of frames would keep everybody else out.
fn let_others_go_first() {
    for _ in 0..COURTESY {
        if WANTED.load(Ordering::Relaxed) == 0 {
            break;
        }
        task::yield_now();
    }
}

fn run(tell: Tell) {
    let pending = || PENDING.load(Ordering::Acquire).then_some(());
    WORK.wait_until(None, pending);
    loop {
        PENDING.store(false, Ordering::Release);
        let mut guard = STACK.lock();
        let Some(stack) = guard.as_mut() else {
            return;
        };
        let now = task::now();
        let mut more = stack.round(now);
        let mut deadline = stack.deadline();
        if !more {
            match stack.idle(now) {
                nic::Idle::Until(until) => deadline = deadline.into_iter().chain(until).min(),
                nic::Idle::Work | nic::Idle::Gone => more = true,
            }
        }
        ARMED.store(deadline.unwrap_or(u64::MAX), Ordering::Relaxed);
        if core::mem::take(&mut stack.changed) {
            describe(stack, tell);
        }
        let answered = core::mem::take(&mut stack.answered);
        drop(guard);
        if answered {
            ANSWERS.wake_all();
        }
        if more {
            let_others_go_first();
        } else {
            WORK.wait_until(deadline, pending);
        }
    }
}

fn describe(stack: &mut Stack, tell: Tell) {
    struct List<'a, T>(&'a [T]);
    impl<T: fmt::Display> fmt::Display for List<'_, T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            for (n, item) in self.0.iter().enumerate() {
                write!(f, "{}{item}", if n == 0 { "" } else { "," })?;
            }
            Ok(())
        }
    }
    for number in stack.gone.drain(..) {
        tell(format_args!("net interface={number} gone"));
    }
    let dns = stack.host.name_servers();
    for (number, i) in stack.host.each() {
        let [a, b, c, d, e, f] = i.caps.mac;
        let addresses: Vec<_> = i.addresses().iter().map(|a| a.cidr).collect();
        let routers: Vec<_> = i.routers().iter().map(|r| r.addr).collect();
        tell(format_args!(
            "net interface={number} mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu={} \
             ip={} gateway={} dns={}",
            i.caps.mtu,
            List(&addresses),
            List(&routers),
            List(&dns),
        ));
    }
}

/// Runs `f` on the stack, and then what that has begun. `None` before the start.
pub fn with<R>(f: impl FnOnce(&mut Stack, u64) -> R) -> Option<R> {
    let mut guard = take();
    let stack = guard.as_mut()?;
    let now = task::now();
    stack.host.now = now;
    let result = f(stack, now);
    let more = stack.settle(now);
    let deadline = stack.deadline().unwrap_or(u64::MAX);
    let sooner = deadline < ARMED.load(Ordering::Relaxed);
    if sooner {
        ARMED.store(deadline, Ordering::Relaxed);
    }
    // The thread sees to it that a full device tells when there is room.
    let wake = more || sooner || stack.changed || stack.waits_for_room();
    drop(guard);
    if wake {
        notify();
    }
    Some(result)
}

/// Runs `f` on the stack, where that changes nothing that would have to be sent or told.
pub fn look<R>(f: impl FnOnce(&mut Stack) -> R) -> Option<R> {
    take().as_mut().map(f)
}

/// Why the network does not come to rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FreezeError {
    /// Somebody has the stack for too long.
    Busy,
    /// See [`notes::NoRoom`].
    NoRoom,
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("it is busy"),
            Self::NoRoom => notes::NoRoom.fmt(f),
        }
    }
}

impl core::error::Error for FreezeError {}

/// Brings the network to rest for a switch, at most until `deadline` (system time, in ns): whoever
/// wants the stack waits until [`thaw`]. Gives what [`Stack::freeze`] gives.
///
/// # Errors
/// See [`FreezeError`]; nothing has changed then.
pub fn freeze(deadline: u64) -> Result<u64, FreezeError> {
    WANTED.fetch_add(1, Ordering::Relaxed);
    // SAFETY: the lock is not unlocked by this.
    let taken = unsafe { STACK.raw() }.lock_until(Some(deadline));
    WANTED.fetch_sub(1, Ordering::Relaxed);
    if !taken {
        return Err(FreezeError::Busy);
    }
    // SAFETY: the lock was just taken, and is given back below or in `thaw`.
    let stack = unsafe { &mut *STACK.data_ptr() };
    let frozen = stack.as_mut().map_or(Ok(0), |s| s.freeze(task::now()));
    frozen.map_err(|notes::NoRoom| {
        // SAFETY: it was taken above.
        unsafe { STACK.force_unlock() };
        FreezeError::NoRoom
    })
}

/// The network goes on as if nothing had been.
///
/// # Safety
/// [`freeze`] was the last to be called, and has succeeded.
pub unsafe fn thaw() {
    // SAFETY: `freeze` has left the lock taken, as the caller says.
    if let Some(stack) = unsafe { &mut *STACK.data_ptr() } {
        stack.thaw();
    }
    // SAFETY: as above.
    unsafe { STACK.force_unlock() };
    notify();
}

/// Adds a device; gives the interface's number. The device calls [`notify`].
///
/// # Errors
/// [`Error::Invalid`] before [`start`], or if its Ethernet address is none.
pub fn attach(nic: Box<dyn nic::Nic + Send>) -> Result<usize, Error> {
    let attached = look(|stack| stack.attach(task::now(), nic)).unwrap_or(Err(Error::Invalid));
    notify();
    attached
}

/// Takes a device away and gives it back.
pub fn detach(number: usize) -> Option<Box<dyn nic::Nic + Send>> {
    with(|stack, now| stack.detach(now, number))?
}

/// What was done so far.
#[must_use]
pub fn stats() -> stats::Stats {
    look(|stack| stack.host.stats).unwrap_or_default()
}

/// What TCP has done so far.
#[must_use]
pub fn tcp_stats() -> tcp::Stats {
    look(|stack| stack.engine.stats()).unwrap_or_default()
}

/// The addresses of a host, by its name; those there is a way to first.
///
/// # Errors
/// See [`ResolveError`].
pub fn look_up(name: &str, v4: bool, v6: bool) -> Result<Vec<IpAddr>, ResolveError> {
    let begun = with(|stack, _| stack.host.look_up(name, v4, v6));
    let mut lookup = begun.unwrap_or(Err(ResolveError::NoServer))?;
    let deadline = task::now().saturating_add(LOOK_UP_TIME);
    let done = ANSWERS.wait_until(Some(deadline), || {
        look(|stack| stack.host.looked_up(&mut lookup)).flatten()
    });
    done.unwrap_or_else(|| {
        look(|stack| stack.host.cancel(&mut lookup));
        Err(ResolveError::Unknown)
    })
}
