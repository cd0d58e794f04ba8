//! The end of the domain.

use crate::cpu::percpu;
use crate::devices::control;
use crate::memory::heap;
use crate::replace::{fallback, trial};
use crate::xen::Committed;
use crate::xen::console::{self, emergency_println, println};
use crate::xen::hypercall::{self, ShutdownReason};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The domain is about to end,
static ENDING: AtomicBool = AtomicBool::new(false);
/// by this vCPU.
static ENDER: AtomicU32 = AtomicU32::new(u32::MAX);

/// This image can't go on: on probation the image before takes the domain back, else it ends.
pub fn crash(why: core::fmt::Arguments<'_>) -> ! {
    if let Some(token) = Committed::get()
        && !ENDING.swap(true, Ordering::AcqRel)
    {
        x86_64::instructions::interrupts::disable();
        ENDER.store(percpu::this().vcpu(), Ordering::Release);
        let mut text = arrayvec::ArrayString::<400>::new();
        let _ = core::fmt::Write::write_fmt(&mut text, why);
        console::flush();
        fallback::start(token, &text);
    }
    end(ShutdownReason::Crash)
}

/// Ends the domain with `reason`; in a trial, gives the trial up.
pub fn end(reason: ShutdownReason) -> ! {
    let name = match reason {
        ShutdownReason::Poweroff => "poweroff",
        ShutdownReason::Reboot => "reboot",
        ShutdownReason::Crash => "crash",
    };
    let Some(token) = Committed::get() else {
        match heap::refused() {
            0 => trial::give_up(format_args!("exit without commit: {name}")),
            size => trial::give_up(format_args!(
                "exit without commit: {name}; there was no memory for {size} bytes"
            )),
        }
    };
    x86_64::instructions::interrupts::disable();
    if ENDING.swap(true, Ordering::AcqRel) && percpu::this().vcpu() != ENDER.load(Ordering::Acquire)
    {
        // Another vCPU is at it.
        loop {
            hypercall::sched_yield(token);
        }
    }
    ENDER.store(percpu::this().vcpu(), Ordering::Release);
    emergency_println!("segue: shutdown reason={name}");
    console::flush();
    hypercall::shutdown(token, reason)
}

/// The app has ended. A status that is not 0 is told, and is a failure: the domain ends as crashed,
/// so that `on_crash` can have it started again. Who was asked to end does so with that reason,
/// whatever the status.
pub fn exit(status: i32) -> ! {
    if status != 0 {
        println!("segue: exit status={status}");
    }
    match (control::requested(), status) {
        (Some(request), _) => end(request.reason()),
        (None, 0) => end(ShutdownReason::Poweroff),
        (None, _) => crash(format_args!("exit status={status}")),
    }
}

/// Reports a panic, then ends the domain (or the trial).
pub fn panic(location: Option<&core::panic::Location<'_>>, message: &dyn core::fmt::Display) -> ! {
    let at = |f: &mut core::fmt::Formatter<'_>| match location {
        Some(l) => write!(f, "{}:{}", l.file(), l.line()),
        None => f.write_str("unknown"),
    };
    let at = core::fmt::from_fn(at);
    if Committed::get().is_none() {
        trial::give_up(format_args!("panic at={at} message={message}"));
    }
    let generation = crate::boot::generation();
    let escaped = crate::xen::console::Escaped(message);
    let thread = crate::task::Name;
    emergency_println!(
        "segue: panic generation={generation} at={at} message=\"{escaped}\" thread={thread}"
    );
    crash(format_args!("panic at={at} message={message}"))
}
