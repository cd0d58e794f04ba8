//! The old image's side of the switch, step by step.

use crate::boot;
use crate::boot::cmdline::CommandLine;
use crate::cpu::percpu;
use crate::cpu::{apic, smp};
use crate::devices::handed::{self, Device};
use crate::devices::netfront::private;
use crate::devices::{Frozen, control};
use crate::image::{Policy, Running, Verified, VerifyError, verify};
use crate::memory::paging::{AddressSpace, NoTableFrame, Perms, tables_for};
use crate::memory::scrub;
use crate::memory::vm::{self, TablePool};
use crate::memory::{Extent, Gfn, PAGE_SIZE};
use crate::replace::fallback;
use crate::replace::live::{self, AtRest};
use crate::replace::park::{self, ArmError, Ended, GIVE_UP, Park, Phase, Plan};
use crate::replace::placed::{Frames, Loaded, Place, Told};
use crate::replace::record::NoRoom;
use crate::replace::state::{Quiet, Settled};
use crate::replace::values::{self, Values};
use crate::task;
use crate::xen::console::println;
use crate::xen::hypercall::{self, XenError};
use crate::xen::shared_info::{self, Home};
use crate::xen::{Committed, events, grant, xenstore};
use alloc::string::String;
use alloc::vec::Vec;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

/// How long a thread may take to change a preserved region once the switch waits for it, in ns.
const CHANGE_LIMIT_NS: u64 = 1_000_000_000;
/// How long the network may take to come to rest, in ns.
const NETWORK_LIMIT_NS: u64 = 1_000_000_000;
/// How long all vCPUs may take to park, in ns.
const QUIESCE_LIMIT_NS: u64 = 2_000_000_000;
/// Longest limit of a trial, in ns: an hour.
const TRIAL_LIMIT_MAX_NS: u64 = 3_600_000_000_000;
/// Seconds after which Xen's watchdog ends a domain whose only vCPU hangs in a trial.
const WATCHDOG_SECONDS: u32 = 15;

/// How to switch.
#[derive(Clone, Debug)]
pub struct Options {
    /// Arguments for the new image's app; `None` passes on this one's.
    pub args: Option<String>,
    /// What the trial may take, in ns.
    pub trial_limit_ns: u64,
    /// An image of another name may take this one's place. One without trusted keys does not ask.
    pub other_app: bool,
    /// A signed statement that allows an older version
    /// ([`Statement`](crate::image::Statement)).
    pub downgrade: Option<Vec<u8>>,
    /// Keep this image as the way back from the new one, if there is memory for it.
    pub keep: bool,
    /// How long it is kept, in ns.
    pub probation_ns: u64,
    /// After that time the way back is taken, unless the new image is confirmed.
    pub must_confirm: bool,
    /// Faults to inject, in test builds.
    #[cfg(feature = "fault-injection")]
    pub faults: Faults,
}

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    /// Leave shared_info where it is, in memory that the new image is told is free: what a kexec
    /// does that knows nothing of it.
    pub skip_relocation: bool,
    /// Xen refuses to move shared_info.
    pub refuse_relocation: bool,
    /// The watcher's NMI gets lost, so that INIT has to do it.
    pub lose_nmi: bool,
    /// The new image runs into a fault there.
    pub at: Option<Place>,
    /// This step fails when it has done its work.
    pub step: Option<Step>,
    /// This vCPU does not hear that it is to park.
    pub deaf: Option<u32>,
    /// The record is damaged when the new image reads it.
    pub damage_record: bool,
    /// What a network device's private frame says is damaged when the new image reads it.
    pub damage_device: bool,
}

impl Faults {
    /// Nothing goes wrong.
    pub const NONE: Self = Self {
        skip_relocation: false,
        refuse_relocation: false,
        lose_nmi: false,
        at: None,
        step: None,
        deaf: None,
        damage_record: false,
        damage_device: false,
    };
}

/// Steps that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Step 2.
    Load,
    /// Step 3.
    Prepare,
}

impl Options {
    #[cfg(feature = "fault-injection")]
    const fn faults(&self) -> Faults {
        self.faults
    }

    #[cfg(not(feature = "fault-injection"))]
    const fn faults(&self) -> Faults {
        Faults::NONE
    }

    /// Where the new image will find shared_info.
    fn new_home(&self) -> Gfn {
        if self.faults().skip_relocation {
            boot::home().gfn()
        } else {
            boot::machine().final_home()
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            args: None,
            trial_limit_ns: 2_000_000_000,
            other_app: false,
            downgrade: None,
            keep: true,
            probation_ns: 60_000_000_000,
            must_confirm: false,
            #[cfg(feature = "fault-injection")]
            faults: Faults::NONE,
        }
    }
}

/// Why the image was not replaced. In every case this image goes on as before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplaceError {
    /// Another switch is on, or this image is itself on trial.
    Busy,
    /// The bundle is not sound, or may not take this image's place.
    Verify(VerifyError),
    /// There are not as many free frames in a row.
    NoMemory {
        /// How many are needed.
        frames: u64,
    },
    /// The app did not want to be replaced now.
    Refused {
        /// Why.
        why: String,
    },
    /// The app did not say in time what it hands over.
    Late {
        /// The time it had, in ms.
        limit_ms: u64,
    },
    /// A preserved region was being changed all the time.
    Changing,
    /// There is no image to go back to: this one is not on probation.
    NoFallback,
    /// A device was being attached or detached, or xenstore did not answer, for seconds.
    Devices,
    /// Somebody was at the network all the time.
    Network,
    /// The domain was asked to end: a new image would not know.
    Ending,
    /// The handover does not fit what is reserved for it.
    TooMuch(&'static str),
    /// There is no local APIC in x2APIC mode to park the other vCPUs with.
    NoApic,
    /// A vCPU did not park.
    NotParked {
        /// The first that did not.
        vcpu: u32,
    },
    /// Xen would not move shared_info.
    Relocate(XenError),
    /// The new image ran on trial and this one was resumed.
    Resumed {
        /// Why.
        reason: String,
        /// What the new image printed.
        console: String,
    },
}

impl fmt::Display for ReplaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Busy => f.write_str("another switch is going on; try again later"),
            Self::Verify(e) => write!(f, "the bundle was refused: {e}"),
            Self::NoMemory { frames } => write!(
                f,
                "the new image needs {} KiB of memory in one piece; give the domain more memory",
                frames * PAGE_SIZE / 1024
            ),
            Self::Refused { why } => write!(f, "the app refused to be replaced: {why}"),
            Self::Late { limit_ms } => {
                write!(
                    f,
                    "the app was not ready to be replaced within {limit_ms} ms"
                )
            }
            Self::Changing => f.write_str("a preserved region was being changed all the time"),
            Self::NoFallback => f.write_str(
                "there is no image to go back to: the probation is over, or none was kept",
            ),
            Self::Devices => f.write_str("devices did not come to rest; try again later"),
            Self::Network => f.write_str("the network did not come to rest; try again later"),
            Self::Ending => f.write_str("the domain was asked to end"),
            Self::TooMuch(what) => write!(f, "too much to hand over: {what}"),
            Self::NoApic => f.write_str("the other vCPUs cannot be parked: no x2APIC"),
            Self::NotParked { vcpu } => {
                write!(
                    f,
                    "vCPU {vcpu} did not park in time: it runs with interrupts off"
                )
            }
            Self::Relocate(e) => write!(f, "Xen did not move shared_info: {e}"),
            Self::Resumed { reason, .. } => {
                write!(f, "the new image gave up and this one goes on: {reason}")
            }
        }
    }
}

impl core::error::Error for ReplaceError {}

impl From<NoTableFrame> for ReplaceError {
    fn from(_: NoTableFrame) -> Self {
        Self::TooMuch("page tables")
    }
}

impl From<NoRoom> for ReplaceError {
    fn from(_: NoRoom) -> Self {
        Self::TooMuch("the handover record")
    }
}

/// One switch at a time.
static SWITCHING: AtomicBool = AtomicBool::new(false);

struct Turn;

impl Turn {
    fn take() -> Result<Self, ReplaceError> {
        let free = SWITCHING.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        free.map(|_| Self).map_err(|_| ReplaceError::Busy)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        SWITCHING.store(false, Ordering::Release);
    }
}

/// Replaces this image by the one in `bundle`. `values` is called when the bundle is sound and
/// loaded, while everything runs: it has the app bring its state into order and say what it hands
/// over by name.
///
/// Returns only if that did not come about; then everything is as before, and the error says why.
///
/// # Errors
/// See [`ReplaceError`].
pub fn replace_image(
    bundle: &[u8],
    options: &Options,
    values: &mut dyn FnMut() -> Result<Values, ReplaceError>,
) -> Result<core::convert::Infallible, ReplaceError> {
    let token = Committed::get().ok_or(ReplaceError::Busy)?;
    let _turn = Turn::take()?;
    called();
    if !smp::wait_for_all() {
        return Err(ReplaceError::Busy);
    }
    // The new image gets a place in one piece.
    scrub::finish();
    // The record names the vCPU that runs the trial: this thread stays on it.
    let _pin = task::pin();
    let copy = Copied::new(bundle)?;
    let verified = copy.verify(token, options)?;
    let keep = options.keep && !verified.manifest.revokes_previous;
    let loaded = verified.load(token, options)?;
    // A switch comes about without a way back, too.
    let own = keep
        .then(|| fallback::this_image(token, options.new_home()))
        .and_then(|own| {
            own.inspect_err(|e| println!("segue: no way back: {e}"))
                .ok()
        });
    let machine = boot::machine();
    let cmdline = match &options.args {
        None => machine.cmdline.clone(),
        Some(args) => machine
            .cmdline
            .with_args(args.split_ascii_whitespace())
            .ok_or(ReplaceError::TooMuch("the command line"))?,
    };
    let still = Still::new(token)?;
    let values = values()?;
    stopped();
    let _ahead = Ahead::new();
    let prepared = loaded.prepare(token, options, &cmdline, own, &values, still)?;
    let quiesced = prepared.quiesce(token)?;
    let relocated = quiesced.relocate(token, options)?;
    let (ended, guard) = relocated.jump(token);
    Err(guard.resume(token, ended))
}

/// Puts the image before in this one's place again, while this one is on probation. It is loaded
/// already, and gets the command line it had; all else is as in [`replace_image`].
///
/// # Errors
/// See [`ReplaceError`]: this image goes on as before, but once the other one has been tried there
/// is no way back any more.
pub fn roll_back(
    options: &Options,
    values: &mut dyn FnMut() -> Result<Values, ReplaceError>,
) -> Result<core::convert::Infallible, ReplaceError> {
    let token = Committed::get().ok_or(ReplaceError::Busy)?;
    let _turn = Turn::take()?;
    called();
    // The new image gets a place in one piece.
    scrub::finish();
    let _pin = task::pin();
    let still = Still::new(token)?;
    let values = values()?;
    stopped();
    let _ahead = Ahead::new();
    let (loaded, cmdline) = fallback::take(token).ok_or(ReplaceError::NoFallback)?;
    let prepared = loaded.prepare(token, options, cmdline, None, &values, still)?;
    let quiesced = prepared.quiesce(token)?;
    let relocated = quiesced.relocate(token, options)?;
    let (ended, guard) = relocated.jump(token);
    Err(guard.resume(token, ended))
}

/// Notes the time: all until the blackout begins is while everybody runs.
fn called() {
    if let Some(park) = park::get() {
        park.baton().times[Phase::Call as usize].store(shared_info::now(), Ordering::Relaxed);
    }
}

/// Notes the time: the app has said what it hands over, and may have stopped to do anything else.
fn stopped() {
    if let Some(park) = park::get() {
        let now = shared_info::now();
        park.baton().stopped.store(now, Ordering::Relaxed);
    }
}

/// The calling thread comes before all others until this is dropped: what the app has stopped for it
/// waits for, and when the network is at rest others could only wait for it.
struct Ahead(task::Priority);

impl Ahead {
    fn new() -> Self {
        let before = task::priority();
        let _ = task::set_priority(task::current_tid(), task::Priority::High);
        Self(before)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        let _ = task::set_priority(task::current_tid(), self.0);
    }
}

/// The bundle in frames that nobody else writes: what is checked is what is loaded.
struct Copied {
    frames: Frames,
    len: usize,
}

impl Copied {
    fn new(bundle: &[u8]) -> Result<Self, ReplaceError> {
        let mut frames = Frames::alloc((bundle.len() as u64).div_ceil(PAGE_SIZE).max(1))?;
        frames.bytes_mut()[..bundle.len()].copy_from_slice(bundle);
        Ok(Self {
            frames,
            len: bundle.len(),
        })
    }

    /// Step 1, **verify**. Before: a private copy. After: it is sound in all its parts, and may take
    /// this image's place.
    fn verify(&self, token: Committed, options: &Options) -> Result<Verified<'_>, ReplaceError> {
        // SAFETY: the frames are this value's, initialised by `new`, and not written any more.
        let bytes =
            unsafe { core::slice::from_raw_parts(self.frames.0.addr().as_ptr::<u8>(), self.len) };
        let ident = boot::identity();
        let policy = Policy {
            keys: boot::trusted_keys(),
            running: Some(Running {
                name: ident.name,
                version: ident.version,
                build: ident.build,
                abi: boot::ABI,
                other_app: options.other_app,
                downgrade: options.downgrade.as_deref(),
                place: boot::place(token),
                now: shared_info::wall_clock().0,
            }),
        };
        let verified = verify(bytes, &policy).map_err(ReplaceError::Verify)?;
        let frames = verified.manifest.min_memory.div_ceil(PAGE_SIZE);
        if frames > boot::machine().ram.frames() {
            return Err(ReplaceError::NoMemory { frames });
        }
        Ok(verified)
    }
}

impl Verified<'_> {
    /// Step 2, **load**. Before: a sound bundle, everybody runs. After: the image is in free
    /// frames at its final address, relocated, its unset data zeroed; two sets of page tables give
    /// each segment its permissions: one for the trial, one for after the commit.
    fn load(self, token: Committed, options: &Options) -> Result<Loaded, ReplaceError> {
        let digests = &self.manifest.segments;
        let loaded = Loaded::new(token, &self.image, digests, options.new_home())?;
        match options.faults().step {
            Some(Step::Load) => Err(ReplaceError::TooMuch("an injected fault")),
            _ => Ok(loaded),
        }
    }
}

/// Which devices there are does not change any more, nor what is asked of xenstore; frames still
/// come and go. Before the app is asked for what it hands over, as all this may take its time.
struct Still {
    _devices: Frozen,
    /// What the next image goes on with: each found to be as it should be.
    going_on: ArrayVec<Device, { grant::MAX_BLOCKS }>,
    /// What is open in xenstore.
    transactions: Vec<u32>,
}

impl Still {
    fn new(token: Committed) -> Result<Self, ReplaceError> {
        let devices = Frozen::new().ok_or(ReplaceError::Devices)?;
        // From here on no request is taken: it waits in xenstore for the next image.
        if control::requested().is_some() {
            return Err(ReplaceError::Ending);
        }
        let client = xenstore::client();
        Ok(Self {
            going_on: handed::going_on(token, live::get().is_some()),
            transactions: client.map_or_else(|_| Vec::new(), |c| c.open_transactions()),
            _devices: devices,
        })
    }
}

impl Still {
    /// Changes a byte of what each network device's private frame says of its rings: a test. The
    /// next rest writes it anew.
    fn damage(&self) {
        for frame in self.going_on.iter().filter_map(Device::private_frames) {
            let at = private::MOVING_AT + 8;
            // SAFETY: a frame of a device's that is at rest, mapped writable; nobody reads it now.
            unsafe { *frame.addr().as_ptr::<u8>().add(at) ^= 1 };
        }
    }
}

/// Ready to stop everything.
struct Prepared {
    loaded: Loaded,
    park: Park,
    vcpus: u32,
    /// shared_info has to move from this frame.
    hole: Option<Gfn>,
    /// This image, for the way back.
    _own: Option<Loaded>,
    _handed: HandedOver,
    _watchdog: Watchdog,
    still: Still,
    damage_device: bool,
}

/// The app's state, as the record tells of it.
struct HandedOver {
    /// Which regions there are does not change any more.
    settled: Settled,
    /// The block of named values, and its length in bytes.
    values: Option<(Frames, usize)>,
    /// Memory for the trial to take it all in.
    room: Option<Frames>,
    /// The trial's page tables for all of it.
    _tables: Option<Frames>,
}

/// What a trial gets for its heap: at least so much, in bytes, if anything is handed over.
const LEAST_ROOM: usize = 256 * 1024;
/// For each byte of named values: a connection's ticket is 80 bytes, and the connection 2 KiB.
const ROOM_FOR_VALUES: usize = 32;
/// It is at most that part of the free memory.
const SHARE: u64 = 4;

/// Memory for a trial to take in so many bytes of values. Whether it is enough only the app knows:
/// if not, the trial fails.
fn room(values: usize) -> Option<Frames> {
    let wanted = values * ROOM_FOR_VALUES + LEAST_ROOM;
    let mut frames = (wanted as u64 / PAGE_SIZE).min(vm::free_count() / SHARE);
    while frames > 0 {
        if let Ok(room) = Frames::alloc(frames) {
            return Some(room);
        }
        frames /= 2;
    }
    None
}

impl HandedOver {
    /// Puts the values into frames, and lets the trial see them, the regions, and what else goes on
    /// in place (`more`), to read. Nothing here depends on how large regions are, but for a table
    /// for each GiB.
    fn new(
        trial: Gfn,
        values: &Values,
        more: impl Iterator<Item = Extent> + Clone,
    ) -> Result<Self, ReplaceError> {
        if values.overflowed() || values.len() > values::MAX_BYTES {
            return Err(ReplaceError::TooMuch("named values"));
        }
        let settled = Settled::new();
        let mut block = None;
        if !values.is_empty() {
            let len = values.len();
            let mut frames = Frames::alloc((len as u64).div_ceil(PAGE_SIZE))?;
            values.write(&mut frames.bytes_mut()[..len])?;
            block = Some((frames, len));
        }
        let extents = || {
            let values = block.iter().map(|(frames, _)| frames.0);
            let regions = settled.regions.iter().copied();
            regions.chain(values).chain(more.clone())
        };
        let something = block.is_some() || extents().next().is_some();
        let room = something.then(|| room(values.len())).flatten();
        let own = room.as_ref().map(|frames| frames.0);
        let need = extents().chain(own).map(tables_for).sum();
        let tables = (need > 0).then(|| Frames::alloc_low(need)).transpose()?;
        if let Some(tables) = &tables {
            let space = AddressSpace::from_root(trial);
            // SAFETY: the frames are ours, and stay while the trial can run.
            let mut pool = unsafe { TablePool::new(tables.0) };
            for extent in extents() {
                space.map(&mut pool, extent, Perms::Read)?;
            }
            if let Some(own) = own {
                space.map(&mut pool, own, Perms::Write)?;
            }
        }
        Ok(Self {
            settled,
            values: block,
            room,
            _tables: tables,
        })
    }
}

/// Xen's watchdog, armed in a domain whose only vCPU nobody else can take back; off when dropped.
struct Watchdog(Option<u32>);

impl Watchdog {
    fn arm(token: Committed, vcpus: u32, limit_ns: u64) -> Self {
        let seconds = WATCHDOG_SECONDS.max((limit_ns / 1_000_000_000) as u32 + 1);
        Self(
            (vcpus == 1)
                .then(|| hypercall::watchdog(token, 0, seconds).ok())
                .flatten(),
        )
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        if let (Some(id), Some(token)) = (self.0, Committed::get()) {
            let _ = hypercall::watchdog(token, id, 0);
        }
    }
}

impl Loaded {
    /// Step 3, **prepare**. Before: the image is loaded. After: the app has said what it hands
    /// over; the record is written, with the owners of all frames as they will be (I7); devices
    /// stay as they are; the park pages hold our code and know this switch. Still everybody runs.
    fn prepare(
        self,
        token: Committed,
        options: &Options,
        cmdline: &CommandLine,
        own: Option<Loaded>,
        values: &Values,
        still: Still,
    ) -> Result<Prepared, ReplaceError> {
        let park = *park::get().ok_or(ReplaceError::NoApic)?;
        let vcpus = smp::vcpus();
        let hole = match boot::home() {
            Home::Ram(gfn) if !options.faults().skip_relocation => Some(gfn),
            _ => None,
        };
        let limit_ns = options.trial_limit_ns.min(TRIAL_LIMIT_MAX_NS);
        let network = live::get().and_then(|live| (live.extent)());
        let private = still.going_on.iter().filter_map(Device::private_frames);
        let more = network.into_iter().chain(private);
        let handed = HandedOver::new(self.placed.trial_root, values, more)?;
        let watchdog = Watchdog::arm(token, vcpus, limit_ns);
        let told = Told {
            cmdline,
            home: options.new_home(),
            hole,
            regions: &handed.settled.regions,
            values: handed.values.as_ref().map(|(frames, len)| (frames.0, *len)),
            room: handed.room.as_ref().map(|frames| frames.0),
            network,
            devices: &still.going_on,
            transactions: &still.transactions,
            watchdog: watchdog.0,
            fallback: own.as_ref().map(|own| own.placed),
            probation_ns: options.probation_ns,
            must_confirm: options.must_confirm,
            crashed: None,
            fault_at: options.faults().at,
        };
        // SAFETY: the frames are `self.handover`'s.
        unsafe { self.placed.write_record(&told)? };
        if options.faults().damage_record {
            self.placed.damage_record();
        }
        let faults = options.faults();
        let no_nmi = if faults.lose_nmi {
            park::test::NO_NMI
        } else {
            0
        };
        let test = no_nmi | faults.deaf.map_or(0, park::test::deaf);
        let port = boot::ports().map(|p| p.park).ok_or(ReplaceError::NoApic)?;
        events::clear_pending(token, port);
        let watch_ns = shared_info::now().saturating_add(limit_ns);
        let plan = Plan {
            vcpus,
            port,
            limit_ns,
            watch_ns,
            test,
        };
        park.arm(token, plan).map_err(|e| match e {
            ArmError::Busy => ReplaceError::Busy,
            ArmError::NoTable => ReplaceError::TooMuch("page tables"),
        })?;
        let prepared = Prepared {
            loaded: self,
            park,
            vcpus,
            hole,
            _own: own,
            _handed: handed,
            _watchdog: watchdog,
            still,
            damage_device: faults.damage_device,
        };
        match options.faults().step {
            Some(Step::Prepare) => Err(ReplaceError::TooMuch("an injected fault")),
            _ => Ok(prepared),
        }
    }
}

/// Every other vCPU is parked; interrupts are off here.
struct Quiesced {
    // Dropped in this order: who waits for them goes on first.
    _at_rest: AtRest,
    _quiet: Quiet,
    prepared: Prepared,
    interrupts: bool,
    before: percpu::Counters,
}

impl Prepared {
    /// Step 4, **quiesce**: the blackout begins. Before: everybody runs. After: every other vCPU is
    /// in the park pages, at a point where it had interrupts on; this one has them off.
    fn quiesce(self, token: Committed) -> Result<Quiesced, ReplaceError> {
        let interrupts = x86_64::instructions::interrupts::are_enabled();
        x86_64::instructions::interrupts::disable();
        let vcpus = self.vcpus;
        let begin = self.stamp(Phase::Begin);
        // To finish what he is at, somebody may need this vCPU.
        let with_interrupts = |on: bool| match interrupts && on {
            true => x86_64::instructions::interrupts::enable(),
            false => x86_64::instructions::interrupts::disable(),
        };
        // Who else wants to change a region is held up from here on, and nobody is served any more:
        // this counts as part of the blackout.
        let quiet = Quiet::at_once().or_else(|| {
            with_interrupts(true);
            Quiet::wait(begin.saturating_add(CHANGE_LIMIT_NS))
        });
        // Who has the network does not wait for a region.
        let at_rest = quiet.as_ref().and_then(|_| {
            with_interrupts(live::get().is_some());
            AtRest::new(shared_info::now().saturating_add(NETWORK_LIMIT_NS))
        });
        with_interrupts(false);
        let (quiet, at_rest) = match (quiet, at_rest) {
            (Some(quiet), Some(at_rest)) => (quiet, at_rest),
            (quiet, _) => {
                with_interrupts(true);
                return Err(match quiet {
                    Some(_) => ReplaceError::Network,
                    None => ReplaceError::Changing,
                });
            }
        };
        if self.damage_device {
            self.still.damage();
        }
        let begin = shared_info::now();
        let quiesced = Quiesced {
            before: percpu::this().counters(),
            prepared: self,
            interrupts,
            _quiet: quiet,
            _at_rest: at_rest,
        };
        if vcpus > 1 {
            quiesced.prepared.park.hold(token);
            apic::park_others(token);
            let park = &quiesced.prepared.park;
            while park.parked(token) + 1 < vcpus {
                if shared_info::now() > begin + QUIESCE_LIMIT_NS {
                    let own = percpu::this().vcpu();
                    let vcpu = park.missing(token, vcpus, own).unwrap_or(own);
                    return Err(ReplaceError::NotParked { vcpu });
                }
                core::hint::spin_loop();
            }
        }
        quiesced.prepared.stamp(Phase::Quiesce);
        Ok(quiesced)
    }

    fn stamp(&self, phase: Phase) -> u64 {
        let now = shared_info::now();
        self.park.baton().times[phase as usize].store(now, Ordering::Relaxed);
        now
    }
}

impl Drop for Quiesced {
    fn drop(&mut self) {
        if let Some(token) = Committed::get() {
            self.prepared.park.resume_others(token);
        }
        if self.interrupts {
            x86_64::instructions::interrupts::enable();
        }
    }
}

/// shared_info is in a carved frame, or wherever a test left it.
struct Relocated {
    // Dropped in this order: the hole is RAM again before anyone reads the clock.
    _hole: Hole,
    quiesced: Quiesced,
}

/// A frame of RAM that shared_info was moved from; refilled when dropped.
struct Hole(Option<Gfn>);

impl Drop for Hole {
    fn drop(&mut self) {
        if let (Some(gfn), Some(token)) = (self.0, Committed::get()) {
            boot::refill_hole(token, gfn);
        }
    }
}

impl Quiesced {
    /// Step 5, **relocate**. Before: nobody but this vCPU runs, so nobody can read the clock (I6).
    /// After: shared_info is outside RAM (I2).
    fn relocate(self, token: Committed, options: &Options) -> Result<Relocated, ReplaceError> {
        let hole = self.prepared.hole;
        if options.faults().refuse_relocation {
            return Err(ReplaceError::Relocate(XenError(22)));
        }
        if hole.is_some() {
            let to = boot::machine().final_home();
            // SAFETY: all other vCPUs are parked, this one is here; the carved frame is no RAM.
            unsafe { boot::move_shared_info(token, to) }.map_err(ReplaceError::Relocate)?;
        }
        self.prepared.stamp(Phase::Relocate);
        Ok(Relocated {
            _hole: Hole(hole),
            quiesced: self,
        })
    }
}

impl Relocated {
    /// Steps 6 and 7, **jump** and **trial**. Before: the domain is this vCPU, in the park pages'
    /// care. It comes back only if the new image did not commit (step 8 is the new image's).
    fn jump(mut self, token: Committed) -> (Ended, Self) {
        self.quiesced.prepared.loaded.memory.hold_code();
        let p = &self.quiesced.prepared;
        let (before, now) = (self.quiesced.before, percpu::this().counters());
        let baton = p.park.baton();
        for (slot, count) in baton.counters.iter().zip([
            now.hypercalls - before.hypercalls,
            now.exits - before.exits,
            now.p2m_updates - before.p2m_updates,
        ]) {
            slot.store(count, Ordering::Relaxed);
        }
        baton
            .clock
            .store(shared_info::last_told(), Ordering::Relaxed);
        let stack = p.loaded.workspace.main_stack().end_addr();
        // SAFETY: armed in prepare, all others parked, interrupts off; the trial's tables were
        // built by `trial_space` for this entry and stack.
        let ended = unsafe {
            p.park.try_image(
                token,
                p.loaded.placed.trial_root.addr().as_u64(),
                p.loaded.placed.entry,
                stack,
                p.loaded.handover.0.addr().as_u64(),
            )
        };
        (ended, self)
    }

    /// **Resume**: everything is undone in the reverse order; says why. What is said of it takes
    /// memory, and is made when everybody runs: the park pages keep it until another switch.
    fn resume(self, token: Committed, ended: Ended) -> ReplaceError {
        let p = &self.quiesced.prepared;
        let (park, workspace) = (p.park, p.loaded.workspace);
        let base = p.loaded.memory.0.addr().as_u64();
        if p.vcpus > 1 {
            // INIT resets the APIC; enabling it again does no harm otherwise.
            apic::enable(token);
        }
        drop(self);
        let reason = match ended {
            Ended::Hung { rip: 0 } => {
                String::from("hang: no commit within the time limit; ended by INIT")
            }
            Ended::Hung { rip } => alloc::format!(
                "hang: no commit within the time limit, at image_offset={:#x}",
                rip.wrapping_sub(base)
            ),
            Ended::Fault {
                vector: GIVE_UP, ..
            } if park.reason().is_empty() => String::from(
                "it could not read the handover: it speaks another version of record or park pages",
            ),
            Ended::Fault {
                vector: GIVE_UP, ..
            } => String::from(park.reason()),
            Ended::Fault {
                vector,
                error,
                rip,
                cr2,
                rsp,
            } => {
                let guard = workspace
                    .guards()
                    .any(|g| Extent::touching(cr2, 1).is_some_and(|page| g.overlaps(page)));
                let name = match vector {
                    14 if guard => "stack-overflow",
                    v => crate::cpu::fault::vector_name(v),
                };
                alloc::format!(
                    "fault: {name} vector={vector} error={error:#x} address={cr2:#x} image_offset={:#x} rsp={rsp:#x}",
                    rip.wrapping_sub(base)
                )
            }
        };
        let console = String::from_utf8_lossy(park.text()).into_owned();
        println!(
            "segue: resume generation={} reason=\"{}\"",
            boot::generation(),
            reason.escape_debug()
        );
        ReplaceError::Resumed { reason, console }
    }
}
