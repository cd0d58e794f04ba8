//! Event channels, two-level (public/event_channel.h, xen.h "Event channel bitmaps").
//!
//! Ports: on each vCPU one for its timer and one for wake-ups; one that parked vCPUs poll on,
//! always masked; the console's. A port stays bound over switches: the record carries it.

use crate::cpu::percpu::{self, PerCpu};
use crate::task::sched;
use crate::xen::Committed;
use crate::xen::hypercall::{self, Port, XenError};
use crate::xen::shared_info::{self, MAX_VCPUS};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};

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

/// Called by the interrupt stub on Xen's callback vector, interrupts off.
///
/// The upcall clears the bits; the scheduler then sees to timers and to whose turn it is, and may
/// leave the interrupted thread for another. Each pass is bounded by the two-level bitmap.
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
        }
    }
    sched::after_upcall(timer);
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
            Err(_) => break,
        }
        if closed_in_a_row == 64 {
            break;
        }
    }
    bound
}
