//! Event channels, two-level (public/event_channel.h, xen.h "Event channel bitmaps").
//!
//! Ports: on each vCPU one for its timer and one for wake-ups; one that parked vCPUs poll on,
//! always masked; the console's, xenstore's and the devices'. A port stays bound over switches: the
//! record carries it.
//!
//! A port may have a handler, which the upcall runs with interrupts off: it wakes who waits, and
//! may mask the port until that one has looked.

use crate::cpu::percpu::{self, PerCpu};
use crate::sync::{Lock, Noted};
use crate::task::sched;
use crate::xen::Committed;
use crate::xen::grant::DomId;
use crate::xen::hypercall::{self, Port, XenError};
use crate::xen::shared_info::{self, MAX_VCPUS};
use alloc::boxed::Box;
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// `VIRQ_TIMER`.
const VIRQ_TIMER: u32 = 0;

/// The ports an image has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    /// What parked vCPUs poll on.
    pub park: Port,
    /// Timer and wake-up of each vCPU.
    pub vcpus: ArrayVec<(Port, Port), MAX_VCPUS>,
}

/// Upcalls taken, of all vCPUs.
static UPCALLS: AtomicU64 = AtomicU64::new(0);

/// Event upcalls taken since the image started.
pub fn upcalls() -> u64 {
    UPCALLS.load(Ordering::Relaxed)
}

/// Interrupts that came while they were off, of all vCPUs: no processor does that.
#[unsafe(export_name = "SEGUE_REPEATED")]
static REPEATED: AtomicU64 = AtomicU64::new(0);

/// Interrupts that an emulated processor delivered twice since the image started. They are ignored.
pub fn repeated() -> u64 {
    REPEATED.load(Ordering::Relaxed)
}

/// Masks everything, as a domain starts with it all unmasked.
pub fn mask_all(_: Committed) {
    if let Some(si) = shared_info::get() {
        for word in &si.evtchn_mask {
            word.store(u64::MAX, Ordering::Relaxed);
        }
    }
}

impl Ports {
    /// Binds the ports of `vcpus` vCPUs; all still masked.
    ///
    /// # Errors
    /// As Xen says.
    pub fn bind(token: Committed, vcpus: u32) -> Result<Self, XenError> {
        let mut ports = Self {
            park: hypercall::bind_ipi(token, 0)?,
            vcpus: ArrayVec::new(),
        };
        for vcpu in 0..vcpus.min(MAX_VCPUS as u32) {
            ports.vcpus.push((
                hypercall::bind_virq(token, VIRQ_TIMER, vcpu)?,
                hypercall::bind_ipi(token, vcpu)?,
            ));
        }
        Ok(ports)
    }

    /// Tells upcalls which ports mean one vCPU: before any of them is unmasked or taken over.
    pub fn note(&self) {
        for port in self.vcpus.iter().flat_map(|(timer, ipi)| [timer, ipi]) {
            if let Some(word) = LOCAL.get(port.0 as usize / 64) {
                word.fetch_or(1 << (port.0 % 64), Ordering::Relaxed);
            }
        }
    }

    /// Gives a vCPU its ports and unmasks them.
    pub fn enable_on(&self, token: Committed, cpu: &PerCpu) {
        if let Some((timer, ipi)) = self.vcpus.get(cpu.vcpu() as usize) {
            cpu.set_ports(*timer, *ipi);
            let _ = hypercall::unmask(token, *timer);
            let _ = hypercall::unmask(token, *ipi);
        }
    }

    /// Gives a vCPU ports that the image before had unmasked: no hypercall.
    pub fn adopt_on(&self, cpu: &PerCpu) {
        if let Some((timer, ipi)) = self.vcpus.get(cpu.vcpu() as usize) {
            cpu.set_ports(*timer, *ipi);
        }
    }
}

/// Clears a port's pending bit.
pub fn clear_pending(_: Committed, port: Port) {
    if let Some(word) =
        shared_info::get().and_then(|si| si.evtchn_pending.get(port.0 as usize / 64))
    {
        word.fetch_and(!(1 << (port.0 % 64)), Ordering::AcqRel);
    }
}

/// Runs in an upcall, with interrupts off: no waiting, no allocation.
pub type Handler = fn(Port);

/// Handlers of 64 ports, as function pointers; 0 for none.
type Word = [AtomicUsize; 64];

/// A word's handlers, made when the first of its ports gets one, never freed.
static HANDLERS: [AtomicPtr<Word>; 64] = [const { AtomicPtr::new(core::ptr::null_mut()) }; 64];

fn handlers(word: usize) -> Option<&'static Word> {
    let ptr = HANDLERS.get(word)?.load(Ordering::Acquire);
    // SAFETY: null, or leaked by `adopt`.
    unsafe { ptr.as_ref() }
}

/// Has `handler` run for events of a port, and unmasks it.
pub fn handle(token: Committed, port: Port, handler: Handler) {
    adopt(port, handler);
    let _ = hypercall::unmask(token, port);
}

/// Has `handler` run for events of a port that the image before had open, masked or not: no
/// hypercall. What came before that is lost, so whoever is woken by it has to look once.
pub fn adopt(port: Port, handler: Handler) {
    let (word, bit) = (port.0 as usize / 64, port.0 as usize % 64);
    let Some(slot) = HANDLERS.get(word) else {
        return;
    };
    if slot.load(Ordering::Acquire).is_null() {
        let new = Box::into_raw(Box::new([const { AtomicUsize::new(0) }; 64]));
        let null = core::ptr::null_mut();
        if slot
            .compare_exchange(null, new, Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: another vCPU was first; nobody has seen this one.
            drop(unsafe { Box::from_raw(new) });
        }
    }
    if let Some(entry) = handlers(word).and_then(|w| w.get(bit)) {
        entry.store(handler as usize, Ordering::Release);
    }
}

/// Most ports to other domains' devices.
pub const MAX_OPEN: usize = 64;

/// Ports that [`open`] made; the next image closes them.
static OPEN: Lock<ArrayVec<Port, MAX_OPEN>> = Lock::new(ArrayVec::new_const());
/// The same, for whoever can't wait for the lock.
static NOTED: Noted<MAX_OPEN> = Noted::new();

/// Changes [`OPEN`].
fn with_open<R>(f: impl FnOnce(&mut ArrayVec<Port, MAX_OPEN>) -> R) -> R {
    let mut open = OPEN.lock();
    let result = f(&mut open);
    NOTED.set(open.iter().map(|port| u64::from(port.0)));
    result
}

/// Makes a port that `remote` may bind to; its events go to `handler`.
///
/// # Errors
/// As Xen says; `ENOMEM` past [`MAX_OPEN`].
pub fn open(token: Committed, remote: DomId, handler: Handler) -> Result<Port, XenError> {
    let port = hypercall::alloc_unbound(token, remote.0)?;
    if with_open(|open| open.try_push(port)).is_err() {
        let _ = hypercall::close(token, port);
        return Err(XenError(12));
    }
    handle(token, port, handler);
    Ok(port)
}

/// Ports of the image before that stay open.
pub fn adopt_open(ports: impl IntoIterator<Item = Port>) {
    with_open(|open| open.extend(ports.into_iter().take(MAX_OPEN - open.len())));
}

/// Whether domain `remote` is at the other end of a port, by Xen's word.
pub fn is_connected(token: Committed, port: Port, remote: DomId) -> bool {
    hypercall::remote(token, port) == Ok(Some(remote.0))
}

/// Ports that [`open`] made and [`close`] has not closed. Takes no lock.
#[must_use]
pub fn open_ports() -> ArrayVec<Port, MAX_OPEN> {
    NOTED
        .get()
        .into_iter()
        .map(|port| Port(port as u32))
        .collect()
}

/// Closes a port that [`open`] made, here or in the image before; its handler runs no more.
pub fn close(token: Committed, port: Port) {
    with_open(|open| open.retain(|p| *p != port));
    mask(port);
    let (word, bit) = (port.0 as usize / 64, port.0 as usize % 64);
    if let Some(entry) = handlers(word).and_then(|w| w.get(bit)) {
        entry.store(0, Ordering::Release);
    }
    let _ = hypercall::close(token, port);
    clear_pending(token, port);
}

fn bit_of(words: &[AtomicU64; 64], port: Port) -> Option<(&AtomicU64, u64)> {
    let word = words.get(port.0 as usize / 64)?;
    Some((word, 1 << (port.0 % 64)))
}

/// Masks a port: its events stay pending and cause no upcall.
pub fn mask(port: Port) {
    if let Some((word, bit)) = shared_info::get().and_then(|si| bit_of(&si.evtchn_mask, port)) {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

/// Whether a port is masked.
pub fn is_masked(port: Port) -> bool {
    shared_info::get()
        .and_then(|si| bit_of(&si.evtchn_mask, port))
        .is_some_and(|(word, bit)| word.load(Ordering::Relaxed) & bit != 0)
}

/// Unmasks a port without asking Xen: true if an event came meanwhile, which causes no upcall any
/// more, so that the caller has to look.
pub fn unmask_and_take(port: Port) -> bool {
    let Some(si) = shared_info::get() else {
        return false;
    };
    let (Some((mask, bit)), Some((pending, _))) = (
        bit_of(&si.evtchn_mask, port),
        bit_of(&si.evtchn_pending, port),
    ) else {
        return false;
    };
    // Xen sets the pending bit before it looks at the mask: one of the two sees the other.
    mask.fetch_and(!bit, Ordering::SeqCst);
    pending.load(Ordering::SeqCst) & bit != 0
        && pending.fetch_and(!bit, Ordering::SeqCst) & bit != 0
}

/// Called by the interrupt stub on Xen's callback vector, interrupts off.
///
/// The upcall clears the bits and runs handlers; the scheduler then sees to timers and to whose turn
/// it is, and may leave the interrupted thread for another. Each pass is bounded by the two-level
/// bitmap.
pub(crate) extern "C" fn upcall() {
    let cpu = percpu::this();
    UPCALLS.fetch_add(1, Ordering::Relaxed);
    let (Some(si), Some(info)) = (shared_info::get(), shared_info::vcpu_info(cpu.vcpu())) else {
        return;
    };
    info.upcall_pending.store(0, Ordering::SeqCst);
    let mut timer = false;
    let mut words = info.pending_sel.swap(0, Ordering::SeqCst);
    while words != 0 {
        let i = words.trailing_zeros() as usize;
        words &= words - 1;
        if let (Some(pending), Some(mask)) = (si.evtchn_pending.get(i), si.evtchn_mask.get(i)) {
            let mine = own_bits(cpu, i) | !LOCAL[i % LOCAL.len()].load(Ordering::Relaxed);
            let ready = pending.load(Ordering::Acquire) & !mask.load(Ordering::Acquire) & mine;
            pending.fetch_and(!ready, Ordering::AcqRel);
            timer |= cpu.timer_port().is_some_and(|p| ready & bit(p, i) != 0);
            dispatch(i, ready);
        }
    }
    sched::after_upcall(timer);
}

/// Runs the handlers of the ports whose bits are set.
fn dispatch(word: usize, mut bits: u64) {
    let Some(handlers) = handlers(word) else {
        return;
    };
    while bits != 0 {
        let bit = bits.trailing_zeros() as usize;
        bits &= bits - 1;
        let handler = handlers.get(bit).map_or(0, |h| h.load(Ordering::Acquire));
        if handler != 0 {
            // SAFETY: only `adopt` stores other values than 0, and they are `Handler`s.
            let handler: Handler = unsafe { core::mem::transmute(handler) };
            handler(Port((word * 64 + bit) as u32));
        }
    }
}

/// Ports that mean one vCPU, by word: another one that looks at the same word leaves them alone.
static LOCAL: [AtomicU64; 64] = [const { AtomicU64::new(0) }; 64];

/// `port`'s bit in word `word`, 0 if it is in another.
fn bit(port: Port, word: usize) -> u64 {
    u64::from(port.0 as usize / 64 == word) << (port.0 % 64)
}

fn own_bits(cpu: &PerCpu, word: usize) -> u64 {
    let ports = [cpu.timer_port(), cpu.ipi_port()];
    ports
        .into_iter()
        .flatten()
        .fold(0, |bits, p| bits | bit(p, word))
}

/// Number of ports that are bound, counted by asking Xen (`EVTCHNOP_status`); for audits.
pub fn bound_ports(token: Committed) -> u32 {
    let mut bound = 0;
    let mut closed_in_a_row = 0;
    for port in 1..4096 {
        match hypercall::is_bound(token, Port(port)) {
            Ok(true) => {
                bound += 1;
                closed_in_a_row = 0;
            }
            Ok(false) => closed_in_a_row += 1,
            // One of Xen's own, to the device model (EACCES).
            Err(XenError(13)) => bound += 1,
            Err(_) => break,
        }
        if closed_in_a_row == 64 {
            break;
        }
    }
    bound
}
