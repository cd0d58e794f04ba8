//! The seam between the switch and what goes over it live: the network, whose connections are handed
//! over where they lie.
//!
//! The network registers itself when it starts ([`register`]), and what came with a switch waits
//! here until somebody wants it ([`offered`]): so an image without sockets has none of the
//! network's code in its file.

use crate::memory::Extent;
use crate::xen::Committed;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use hermit_sync::OnceCell;

/// What the switch asks of the network. The old image's side.
#[derive(Clone, Copy, Debug)]
pub struct Live {
    /// Where its state lies, if there is any. Takes no lock.
    pub extent: fn() -> Option<Extent>,
    /// Brings it to rest, at most until then (system time, in ns): nobody is at its state until
    /// `thaw`, and all of it is in its extent and in its devices' blocks. False if it could not,
    /// and then nothing has changed. May sleep; called in a thread, while everybody runs.
    pub freeze: fn(deadline: u64) -> bool,
    /// It goes on as if nothing had been.
    pub thaw: fn(),
}

static LIVE: OnceCell<Live> = OnceCell::new();

/// Has switches take the network along.
pub fn register(live: Live) {
    let _ = LIVE.set(live);
}

/// What is registered.
pub(super) fn get() -> Option<Live> {
    LIVE.get().copied()
}

/// The network is at rest until this is dropped.
#[derive(Debug)]
pub(super) struct AtRest(Option<Live>);

impl AtRest {
    /// `None` if it did not come to rest in time.
    pub fn new(deadline: u64) -> Option<Self> {
        let live = get();
        match live {
            Some(live) if !(live.freeze)(deadline) => None,
            live => Some(Self(live)),
        }
    }
}

impl Drop for AtRest {
    fn drop(&mut self) {
        if let Some(live) = self.0 {
            (live.thaw)();
        }
    }
}

static OFFERED: OnceCell<Extent> = OnceCell::new();
static TAKEN: AtomicBool = AtomicBool::new(false);
/// A `fn(Committed)`, or 0.
static ON_COMMIT: AtomicUsize = AtomicUsize::new(0);

/// A network's state came with the switch. Mapped readable in the trial, writable after the commit.
pub(super) fn offer(extent: Extent) {
    let _ = OFFERED.set(extent);
}

/// The state that came and that nobody has taken. If nobody does, its frames are free after the next
/// switch: this image may still get its first socket, and then goes on with addresses and neighbours.
#[must_use]
pub fn offered() -> Option<Extent> {
    OFFERED
        .get()
        .copied()
        .filter(|_| !TAKEN.load(Ordering::Acquire))
}

/// Takes it, once; after the commit.
pub fn take(_: Committed) -> Option<Extent> {
    let extent = OFFERED.get().copied()?;
    (!TAKEN.swap(true, Ordering::AcqRel)).then_some(extent)
}

/// Has `start` run at the commit, as soon as devices can be adopted: set on trial by whoever wants
/// what is [`offered`].
pub fn on_commit(start: fn(Committed)) {
    ON_COMMIT.store(start as usize, Ordering::Release);
}

/// The commit has come about: devices can be adopted.
pub(super) fn committed(token: Committed) {
    let start = ON_COMMIT.load(Ordering::Acquire);
    if start != 0 {
        // SAFETY: only `on_commit` stores other values than 0, and they are such functions.
        let start: fn(Committed) = unsafe { core::mem::transmute(start) };
        start(token);
    }
}
