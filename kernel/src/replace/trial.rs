//! An image on trial: what it may do besides running. Its page tables allow no more (I5).

use crate::replace::park;
use crate::xen::Committed;
use core::fmt;

/// Console output goes to the park pages; whoever wins prints it.
pub fn buffer(bytes: &[u8]) {
    if let Some(park) = park::get() {
        park.add_text(bytes);
    }
}

/// Gives up the trial: the old image resumes and is told `why`. Only in a trial.
pub fn give_up(why: fmt::Arguments<'_>) -> ! {
    debug_assert!(Committed::get().is_none());
    if let Some(park) = park::get() {
        let mut text = arrayvec::ArrayString::<400>::new();
        let _ = fmt::Write::write_fmt(&mut text, why);
        park.set_reason(&text);
    }
    loop {
        // SAFETY: vector 31 is a gate of the park pages, which take the vCPU back.
        unsafe { core::arch::asm!("int 31", options(nomem)) };
    }
}
