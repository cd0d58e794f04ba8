//! What the switch to this image was like, as numbers: the console line has the same.

use arrayvec::ArrayString;
use hermit_sync::OnceCell;

/// Longest reason of a crash, in bytes.
pub(super) const MAX_REASON: usize = 400;

/// The switch to this image.
#[derive(Clone, Debug)]
pub struct Figures {
    /// From this generation.
    pub from: u64,
    /// To that.
    pub to: u64,
    /// System time of its end, in ns.
    pub at_ns: u64,
    /// How long nobody ran, in µs.
    pub blackout_us: u64,
    /// Its parts, in their order.
    pub parts: [(&'static str, u64); 7],
    /// What came before it, while everybody ran, in µs.
    pub before_us: u64,
    /// How much of that the app had stopped for, in µs.
    pub stopped_us: u64,
    /// Hypercalls of the vCPU that switched.
    pub hypercalls: u64,
    /// Preserved regions that came.
    pub regions: usize,
    /// The image before had crashed, and why.
    pub crashed: Option<ArrayString<MAX_REASON>>,
}

static LAST: OnceCell<Figures> = OnceCell::new();

/// The switch to this image; `None` if the domain was booted with it.
#[must_use]
pub fn last_switch() -> Option<&'static Figures> {
    LAST.get()
}

/// Notes it, once.
pub(super) fn note(figures: Figures) -> &'static Figures {
    LAST.get_or_init(|| figures)
}
