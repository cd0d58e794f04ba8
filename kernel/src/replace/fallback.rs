//! The way back after a commit: the image before, loaded afresh from its own memory and kept aside
//! while the new one is on probation.
//!
//! The old image puts itself there before the switch, so it is ready from the commit on. A crash
//! then starts it as a switch would: a record, a jump, a commit; only that the other vCPUs are reset
//! first, wherever they are, and started again by it. It finds the regions, the devices' ports and
//! grants and the rings, all of which it closes or takes as after any switch. Named values it finds
//! none, and connections are gone. It has no way back of its own: another crash ends the domain.
//!
//! What a crash needs is read without a lock; nothing is allocated.

use crate::boot::cmdline::CommandLine;
use crate::boot::{self};
use crate::cpu::{percpu, smp};
use crate::image::origin::{self, OriginError};
use crate::image::{Ident, Image, Manifest};
use crate::memory::paging::{AddressSpace, Perms};
use crate::memory::vm::{self, TablePool};
use crate::memory::{Gfn, PAGE_SIZE};
use crate::replace::ReplaceError;
use crate::replace::park::{self, Ended};
use crate::replace::placed::{Frames, Loaded, Placed, Told};
use crate::replace::record::{Kind, Record, RecordError};
use crate::replace::state;
use crate::task::wait::WaitQueue;
use crate::xen::console::{emergency_println, println};
use crate::xen::shared_info;
use crate::xen::{Committed, hypercall};
use core::sync::atomic::{AtomicU32, Ordering};
use hermit_sync::OnceCell;

/// Seconds until Xen's watchdog ends a domain whose fallback hangs.
const WATCHDOG_SECONDS: u32 = 15;

unsafe extern "C" {
    static __origin_start: [u8; 0];
    static __origin_end: [u8; 0];
}

/// The section from which this image's file comes back.
fn own_origin() -> &'static [u8] {
    let start = (&raw const __origin_start).cast::<u8>();
    let len = (&raw const __origin_end).addr() - start.addr();
    // SAFETY: the linker script's section, read-only.
    unsafe { core::slice::from_raw_parts(start, len) }
}

/// This image as it was when it was loaded, once more.
///
/// # Errors
/// There is no memory for it, or it was not built by `segue build`.
pub(super) fn this_image(token: Committed, home: Gfn) -> Result<Loaded, ReplaceError> {
    const BAD: ReplaceError = ReplaceError::TooMuch("this image's own file");
    let origin = own_origin();
    let len = origin::file_len(origin).map_err(|_: OriginError| BAD)?;
    let mut frames = Frames::alloc((len as u64).div_ceil(PAGE_SIZE))?;
    let file = frames.bytes_mut().get_mut(..len).ok_or(BAD)?;
    file.fill(0);
    let base = boot::image_base();
    // SAFETY: text and constants of this image, which nobody writes.
    let memory = unsafe {
        let len = boot::image_data() - base;
        core::slice::from_raw_parts(base as *const u8, len as usize)
    };
    origin::rebuild(origin, memory, file).map_err(|_| BAD)?;
    // It is the file that was built if it has its build id.
    let build = boot::identity().build;
    if Ident::stamp_build(file) != Ok(build) {
        return Err(BAD);
    }
    let manifest = Manifest::describe(file).map_err(|_| BAD)?;
    let image = Image::parse(file).map_err(|_| BAD)?;
    Loaded::new(token, &image, &manifest.segments, home)
}

/// What is kept, as the record said.
#[derive(Debug)]
struct Kept {
    placed: Placed,
    cmdline: CommandLine,
    probation_ns: u64,
    must_confirm: bool,
}

static KEPT: OnceCell<Kept> = OnceCell::new();

/// How far it is with the way back: whoever changes it has what is kept.
static STATE: AtomicU32 = AtomicU32::new(NONE);
/// There is none.
const NONE: u32 = 0;
/// It can be taken.
const READY: u32 = 1;
/// It is taken, or given up.
const GONE: u32 = 2;

/// Woken when `STATE` changes.
static CHANGED: WaitQueue = WaitQueue::new();

/// Takes over what the record says of the way back.
pub(super) fn adopt(record: &Record<'_>) -> Result<(), RecordError> {
    let Ok(words) = record.array::<{ Placed::WORDS }>(Kind::Fallback) else {
        return Ok(());
    };
    // One of another layout can't be started by this image: it is left, and its frames are free.
    let Some(placed) = Placed::from_words(words) else {
        return Ok(());
    };
    let [probation_ns, must_confirm] = record.array(Kind::Probation)?;
    let kept = Kept {
        placed,
        cmdline: CommandLine::from_bytes(record.bytes(Kind::FallbackCommandLine)?),
        probation_ns,
        must_confirm: must_confirm != 0,
    };
    if KEPT.set(kept).is_ok() {
        STATE.store(READY, Ordering::Release);
    }
    Ok(())
}

fn claim() -> Option<&'static Kept> {
    STATE
        .compare_exchange(READY, GONE, Ordering::AcqRel, Ordering::Acquire)
        .ok()?;
    KEPT.get()
}

/// After a crash, on the vCPU that found it: starts the image before. Comes back only if there is
/// none, or it did not start; then the domain is to end.
pub(crate) fn start(token: Committed, reason: &str) {
    let Some(kept) = claim() else { return };
    let Some(park) = park::get() else { return };
    x86_64::instructions::interrupts::disable();
    smp::stop_others(token);
    let placed = &kept.placed;
    let regions = state::all_regions();
    let watchdog = hypercall::watchdog(token, 0, WATCHDOG_SECONDS).ok();
    let told = Told {
        cmdline: &kept.cmdline,
        home: boot::machine().final_home(),
        hole: None,
        regions: &regions,
        values: None,
        room: None,
        network: None,
        devices: &[],
        transactions: &[],
        watchdog,
        fallback: None,
        probation_ns: 0,
        must_confirm: false,
        crashed: Some(reason),
        fault_at: None,
    };
    let prepared = (|| {
        let space = AddressSpace::from_root(placed.trial_root);
        let spare = placed.spare_tables().ok_or(ReplaceError::NoApic)?;
        // SAFETY: kept for this, mapped writable, and nobody else's.
        let mut pool = unsafe { TablePool::new(spare) };
        for extent in &regions {
            space.map(&mut pool, *extent, Perms::Read)?;
        }
        // SAFETY: as above.
        unsafe { placed.write_record(&told)? };
        placed
            .workspace()
            .ok_or(ReplaceError::TooMuch("the workspace"))
    })();
    let workspace = match prepared {
        Ok(workspace) => workspace,
        Err(error) => {
            emergency_println!("segue: fallback failed: {error}");
            return;
        }
    };
    park.rearm_alone(token, percpu::this().vcpu());
    let baton = park.baton();
    baton.begin_alone(shared_info::now(), shared_info::last_told());
    // SAFETY: all other vCPUs are reset, interrupts are off, the park pages armed; the image and its
    // trial's tables were made for this entry and stack.
    let ended = unsafe {
        park.try_image(
            token,
            placed.trial_root.addr().as_u64(),
            placed.entry,
            workspace.main_stack().end_addr(),
            placed.handover.addr().as_u64(),
        )
    };
    match ended {
        Ended::Hung { .. } => emergency_println!("segue: fallback failed: hang"),
        Ended::Fault { vector, rip, .. } => emergency_println!(
            "segue: fallback failed: vector={vector} image_offset={:#x} reason=\"{}\"",
            rip.wrapping_sub(placed.memory.addr().as_u64()),
            park.reason().escape_debug()
        ),
    }
}

/// Says that this image is on probation, and guards the way back against stray writes. After the
/// commit.
pub(super) fn begin() {
    let Some(kept) = KEPT.get() else { return };
    // Without a page table for it, it goes without.
    let _ = vm::map(kept.placed.memory, Perms::Read);
    println!(
        "segue: probation generation={} seconds={} confirm={}",
        boot::generation(),
        kept.probation_ns / 1_000_000_000,
        u8::from(kept.must_confirm),
    );
}

/// What the probation of this image is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probation {
    /// How long it lasts from the commit, in ns.
    pub length_ns: u64,
    /// Unless this image is confirmed in that time, the one before comes back.
    pub must_confirm: bool,
}

/// This image's probation; `None` if it is over or there was none.
#[must_use]
pub fn probation() -> Option<Probation> {
    let kept = KEPT.get()?;
    (STATE.load(Ordering::Acquire) == READY).then_some(Probation {
        length_ns: kept.probation_ns,
        must_confirm: kept.must_confirm,
    })
}

/// Ends the probation: there is no way back any more, and its memory is free. `why` is told. False
/// if it was over.
pub fn end(_: Committed, why: &str) -> bool {
    let Some(kept) = claim() else { return false };
    let _ = vm::map(kept.placed.memory, Perms::Write);
    for extent in [kept.placed.memory, kept.placed.handover] {
        // SAFETY: kept for the way back alone, and whoever claimed it is here.
        unsafe { vm::free_frames(extent) };
    }
    println!(
        "segue: probation generation={} over={why}",
        boot::generation()
    );
    CHANGED.wake_all();
    true
}

/// Waits until the probation is over or `deadline` (system time, in ns) has come; true if it is over.
pub fn wait(deadline: u64) -> bool {
    let over = || (STATE.load(Ordering::Acquire) != READY).then_some(());
    CHANGED.wait_until(Some(deadline), over).is_some()
}

/// The image that is kept, and its command line, for a switch back to it while this one lives;
/// nobody else has it then.
pub(super) fn take(_: Committed) -> Option<(Loaded, &'static CommandLine)> {
    let kept = claim()?;
    let workspace = kept.placed.workspace()?;
    let _ = vm::map(kept.placed.memory, Perms::Write);
    CHANGED.wake_all();
    // SAFETY: both extents came with the record for this image to keep, and are nobody else's.
    let loaded = unsafe {
        Loaded {
            memory: Frames::adopt(kept.placed.memory),
            handover: Frames::adopt(kept.placed.handover),
            placed: kept.placed,
            workspace,
        }
    };
    Some((loaded, &kept.cmdline))
}
