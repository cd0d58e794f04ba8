//! The old image's side of the switch, step by step.

use crate::boot::{self, Module};
use crate::cpu::percpu;
use crate::cpu::{apic, smp};
use crate::devices::{Frozen, control};
use crate::image::{Image, VerifyError, verify};
use crate::memory::paging::{AddressSpace, NoTableFrame, Perms};
use crate::memory::vm::{self, Surroundings, TablePool};
use crate::memory::workspace::Workspace;
use crate::memory::{Extent, ExtentSet, Gfn, PAGE_SIZE};
use crate::replace::park::{self, ArmError, Ended, GIVE_UP, Park, Phase, Plan};
use crate::replace::record::{Kind, NoRoom, Writer};
use crate::task;
use crate::xen::hypercall::{self, XenError};
use crate::xen::shared_info::{self, Home};
use crate::xen::{Committed, events, grant, xenstore};
use alloc::string::String;
use arrayvec::ArrayVec;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering};

/// Extents in the map of what is kept.
const MAX_KEPT: usize = 32;
/// Frames for the record.
const RECORD_FRAMES: u64 = 2;
/// Frames for the trial's page tables.
const TRIAL_TABLES: u64 = 32;
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
    /// Faults to inject, in test builds.
    #[cfg(feature = "fault-injection")]
    pub faults: Faults,
}

/// What goes wrong on purpose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Leave shared_info where it is, in memory that the new image is told is free: what a kexec
    /// does that knows nothing of it.
    pub skip_relocation: bool,
    /// Xen refuses to move shared_info.
    pub refuse_relocation: bool,
    /// The watcher's NMI gets lost, so that INIT has to do it.
    pub lose_nmi: bool,
    /// The new image runs into a fault in its first lines.
    pub early_fault: bool,
}

impl Options {
    #[cfg(feature = "fault-injection")]
    const fn faults(&self) -> Faults {
        self.faults
    }

    #[cfg(not(feature = "fault-injection"))]
    const fn faults(&self) -> Faults {
        Faults {
            skip_relocation: false,
            refuse_relocation: false,
            lose_nmi: false,
            early_fault: false,
        }
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
            #[cfg(feature = "fault-injection")]
            faults: Faults::default(),
        }
    }
}

/// Why the image was not replaced. In every case this image goes on as before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplaceError {
    /// Another switch is on, or this image is itself on trial.
    Busy,
    /// The bundle is not sound.
    Verify(VerifyError),
    /// The bundle speaks no handover ABI that this image speaks.
    Abi,
    /// There are not as many free frames in a row.
    NoMemory {
        /// How many are needed.
        frames: u64,
    },
    /// A device was being attached or detached, or xenstore did not answer, for seconds.
    Devices,
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
            Self::Abi => {
                f.write_str("the bundle was refused: it needs another handover ABI; rebuild it")
            }
            Self::NoMemory { frames } => write!(
                f,
                "the new image needs {} KiB of memory in one piece; give the domain more memory",
                frames * PAGE_SIZE / 1024
            ),
            Self::Devices => f.write_str("devices did not come to rest; try again later"),
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

/// Frames from the allocator, given back when dropped.
#[derive(Debug)]
struct Frames(Extent);

impl Frames {
    fn alloc(frames: u64) -> Result<Self, ReplaceError> {
        vm::alloc_frames(frames, 1)
            .map(Self)
            .ok_or(ReplaceError::NoMemory { frames })
    }

    fn alloc_low(frames: u64) -> Result<Self, ReplaceError> {
        vm::alloc_frames_low(frames, 1)
            .map(Self)
            .ok_or(ReplaceError::NoMemory { frames })
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the frames are this value's alone, mapped writable as all RAM is.
        unsafe { core::slice::from_raw_parts_mut(self.0.addr().as_ptr(), self.0.bytes() as usize) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: they came from the allocator; who borrowed them is gone with the value.
        unsafe { vm::free_frames(self.0) };
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

/// Replaces this image by the one in `bundle`.
///
/// Returns only if that did not come about; then everything is as before, and the error says why.
///
/// # Errors
/// See [`ReplaceError`].
pub fn replace_image(
    bundle: &[u8],
    options: &Options,
) -> Result<core::convert::Infallible, ReplaceError> {
    let token = Committed::get().ok_or(ReplaceError::Busy)?;
    let _turn = Turn::take()?;
    // The record names the vCPU that runs the trial: this thread stays on it.
    let _pin = task::pin();
    let copy = Copied::new(bundle)?;
    let verified = copy.verify()?;
    let loaded = verified.load(token, options)?;
    let prepared = loaded.prepare(token, options)?;
    let quiesced = prepared.quiesce(token)?;
    let relocated = quiesced.relocate(token, options)?;
    let (ended, guard) = relocated.jump(token);
    Err(guard.resume(token, ended))
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

    /// Step 1, **verify**. Before: a private copy. After: it is sound, in all its parts.
    fn verify(&self) -> Result<Verified<'_>, ReplaceError> {
        // SAFETY: the frames are this value's, initialised by `new`, and not written any more.
        let bytes =
            unsafe { core::slice::from_raw_parts(self.frames.0.addr().as_ptr::<u8>(), self.len) };
        let (bundle, image) = verify(bytes).map_err(ReplaceError::Verify)?;
        if bundle.header.abi.common(&boot::ABI).is_none() {
            return Err(ReplaceError::Abi);
        }
        let frames = bundle.header.min_memory.div_ceil(PAGE_SIZE);
        if frames > boot::machine().ram.frames() {
            return Err(ReplaceError::NoMemory { frames });
        }
        Ok(Verified { image })
    }
}

/// A sound bundle.
struct Verified<'a> {
    image: Image<'a>,
}

/// The new image in its place.
struct Loaded {
    /// Its memory: segments, then the workspace.
    memory: Frames,
    /// For the trial only: the record, the trial's page tables.
    handover: Frames,
    segments: u64,
    workspace: Workspace,
    root: Gfn,
    pool_used: u64,
    trial_root: Gfn,
    entry: u64,
}

impl Verified<'_> {
    /// Step 2, **load**. Before: a sound bundle, everybody runs. After: the image is in free
    /// frames at its final address, relocated, its unset data zeroed; two sets of page tables give
    /// each segment its permissions: one for the trial, one for after the commit.
    fn load(self, token: Committed, options: &Options) -> Result<Loaded, ReplaceError> {
        let map = boot::machine();
        let vcpus = smp::online();
        let segments = self.image.span() / PAGE_SIZE;
        let mut memory = Frames::alloc_low(segments + Workspace::frames(vcpus, map.ram.end()))?;
        let mut handover = Frames::alloc_low(RECORD_FRAMES + TRIAL_TABLES)?;
        let extent = memory.0;
        let base = extent.addr().as_u64();
        let span = self.image.span() as usize;
        let dest = memory
            .bytes_mut()
            .get_mut(..span)
            .ok_or(ReplaceError::TooMuch("segments"))?;
        self.image
            .load(base, dest)
            .map_err(|_| ReplaceError::TooMuch("segments"))?;
        let workspace = extent
            .part(segments, extent.frames() - segments)
            .and_then(|e| Workspace::plan(e, vcpus, map.ram.end()))
            .ok_or(ReplaceError::TooMuch("workspace"))?;

        let parts: ArrayVec<(Extent, Perms), 8> = self
            .image
            .segments()
            .filter_map(|s| {
                let perms = match s.perms {
                    p if p.execute => Perms::Execute,
                    p if p.write => Perms::Write,
                    _ => Perms::Read,
                };
                Some((
                    Extent::touching(base.checked_add(s.offset)?, s.mem_len)?,
                    perms,
                ))
            })
            .take(8)
            .collect();
        let park = park::get().ok_or(ReplaceError::NoApic)?;
        let devices = boot::device_frames(token);
        // SAFETY: the frames are ours, in the workspace and in the handover block.
        let (mut pool, mut trial_pool) = unsafe {
            let trial = handover.0.part(RECORD_FRAMES, TRIAL_TABLES);
            (
                TablePool::new(workspace.tables()),
                TablePool::new(trial.ok_or(ReplaceError::TooMuch("page tables"))?),
            )
        };
        handover.bytes_mut()[..(RECORD_FRAMES * PAGE_SIZE) as usize].fill(0);
        let around = Surroundings {
            ram: &map.ram,
            devices: &devices,
            park_code: park.code(),
        };
        let space = vm::build_space(&mut pool, &around, parts.iter().copied(), &workspace)?;
        let home = options.new_home();
        let trial = trial_space(&mut trial_pool, park, &parts, &workspace, &handover, home)?;
        Ok(Loaded {
            memory,
            segments,
            workspace,
            root: space.root().gfn(),
            pool_used: pool.used(),
            trial_root: trial.root().gfn(),
            entry: base + self.image.entry_offset(),
            handover,
        })
    }
}

/// What a trial sees: itself, the record, the clock, its part of the park pages, the modules. Of
/// the old image nothing, of all else nothing (I5).
fn trial_space(
    pool: &mut TablePool,
    park: &Park,
    parts: &[(Extent, Perms)],
    workspace: &Workspace,
    handover: &Frames,
    home: Gfn,
) -> Result<AddressSpace, ReplaceError> {
    let space = AddressSpace::new(pool)?;
    space.map(pool, workspace.extent(), Perms::Write)?;
    // Its page tables after the commit are not the trial's to write.
    space.unmap(pool, workspace.tables())?;
    for guard in workspace.guards() {
        space.unmap(pool, guard)?;
    }
    for (extent, perms) in parts {
        space.map(pool, *extent, *perms)?;
    }
    if let Some(record) = handover.0.part(0, RECORD_FRAMES) {
        space.map(pool, record, Perms::Read)?;
    }
    for (extent, perms) in park.trial_view() {
        space.map(pool, extent, perms)?;
    }
    for module in boot::modules() {
        if let Some(extent) = module.extent() {
            space.map(pool, extent, Perms::Read)?;
        }
    }
    space.map(pool, home.extent(), Perms::Read)?;
    Ok(space)
}

/// Ready to stop everything.
struct Prepared {
    loaded: Loaded,
    park: Park,
    vcpus: u32,
    /// shared_info has to move from this frame.
    hole: Option<Gfn>,
    _watchdog: Watchdog,
    _devices: Frozen,
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
    /// Step 3, **prepare**. Before: the image is loaded. After: the record is written, with the
    /// owners of all frames as they will be (I7); devices stay as they are; the park pages hold our code and know this
    /// switch. Still everybody runs.
    fn prepare(mut self, token: Committed, options: &Options) -> Result<Prepared, ReplaceError> {
        let park = *park::get().ok_or(ReplaceError::NoApic)?;
        let vcpus = smp::online();
        let hole = match boot::home() {
            Home::Ram(gfn) if !options.faults().skip_relocation => Some(gfn),
            _ => None,
        };
        let limit_ns = options.trial_limit_ns.min(TRIAL_LIMIT_MAX_NS);
        let devices = Frozen::new().ok_or(ReplaceError::Devices)?;
        // From here on no request is taken: it waits in xenstore for the next image.
        if control::requested().is_some() {
            return Err(ReplaceError::Ending);
        }
        let watchdog = Watchdog::arm(token, vcpus, limit_ns);
        self.write_record(options, &park, hole, vcpus, &watchdog)?;
        let test = if options.faults().lose_nmi {
            park::test::NO_NMI
        } else {
            0
        };
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
        Ok(Prepared {
            loaded: self,
            park,
            vcpus,
            hole,
            _watchdog: watchdog,
            _devices: devices,
        })
    }

    fn write_record(
        &mut self,
        options: &Options,
        park: &Park,
        hole: Option<Gfn>,
        vcpus: u32,
        watchdog: &Watchdog,
    ) -> Result<(), ReplaceError> {
        // A hole that Xen would not refill stays one, and the next image tries again.
        let hole = hole.or_else(boot::open_hole);
        let machine = boot::machine();
        let modules = boot::modules();
        let cmdline = match &options.args {
            None => machine.cmdline.clone(),
            Some(args) => machine
                .cmdline
                .with_args(args.split_ascii_whitespace())
                .ok_or(ReplaceError::TooMuch("the command line"))?,
        };
        let granted = grant::blocks();
        let mut kept = ExtentSet::<MAX_KEPT>::new();
        let module_extents = modules.iter().filter_map(Module::extent);
        let all = [
            self.memory.0,
            self.handover.0,
            park.block(),
            park.sipi().extent(),
        ];
        for extent in all
            .into_iter()
            .chain(module_extents)
            .chain(hole.map(Gfn::extent))
            .chain(granted.iter().copied())
        {
            kept.insert(extent)
                .map_err(|_| ReplaceError::TooMuch("modules and devices"))?;
        }
        let (memory, handover) = (self.memory.0, self.handover.0);
        let workspace = self.workspace;
        let words = |e: Extent| [e.start().as_u64(), e.end()];
        let w = &mut Writer::new(
            &mut self.handover.bytes_mut()[..(RECORD_FRAMES * PAGE_SIZE) as usize],
        );
        w.words(Kind::Generation, [boot::generation() + 1].into_iter())?;
        w.words(Kind::Ram, machine.ram.iter().flat_map(words))?;
        w.words(Kind::Kept, kept.iter().flat_map(words))?;
        let version = u64::from(machine.xen.0) << 16 | u64::from(machine.xen.1);
        let vmmcall = u64::from(hypercall::uses_vmmcall());
        w.words(
            Kind::Platform,
            [version, vmmcall, machine.hvm as u64].into_iter(),
        )?;
        let carve = machine.carve;
        let [start, end] = words(carve.range());
        let hole = hole.map_or(0, Gfn::as_u64);
        let home = options.new_home().as_u64();
        w.words(
            Kind::SharedInfo,
            [home, hole, start, end, boot::carved()].into_iter(),
        )?;
        if let Some(ports) = boot::ports() {
            let each = ports.vcpus.iter().flat_map(|(t, i)| [t.0, i.0]);
            w.words(
                Kind::Ports,
                [ports.park.0].into_iter().chain(each).map(u64::from),
            )?;
        }
        let ids = (0..vcpus).map(|v| {
            // SAFETY: the vCPU is online, so its data is prepared and stays.
            let cpu = vm::workspace().and_then(|w| unsafe { vm::vcpu_data(&w, v) });
            cpu.map_or(0, |c| u64::from(c.apic_id()))
        });
        w.words(Kind::ApicIds, ids)?;
        if let Some(c) = crate::xen::console::get() {
            w.words(
                Kind::Console,
                [c.gfn.as_u64(), u64::from(c.port.0)].into_iter(),
            )?;
        }
        if let Some(ring) = xenstore::home() {
            w.words(
                Kind::Xenstore,
                [ring.gfn.as_u64(), u64::from(ring.port.0)].into_iter(),
            )?;
        }
        let frames = grant::table_frames();
        w.words(Kind::GrantTable, frames.iter().map(|g| g.as_u64()))?;
        w.words(Kind::Granted, granted.iter().copied().flat_map(words))?;
        let ports = events::open_ports();
        w.words(Kind::DevicePorts, ports.iter().map(|p| u64::from(p.0)))?;
        w.bytes(Kind::CommandLine, cmdline.as_str().as_bytes())?;
        w.words(Kind::Modules, modules.iter().flat_map(|m| [m.addr, m.len]))?;
        let f = machine.features;
        w.words(
            Kind::Features,
            [u64::from(f.xsave_size), f.xcr0, u64::from(f.x2apic)].into_iter(),
        )?;
        let [block, block_end] = words(park.block());
        w.words(
            Kind::Park,
            [
                block,
                block_end,
                park.sipi().as_u64(),
                u64::from(park::VERSION),
            ]
            .into_iter(),
        )?;
        let vcpu = u64::from(percpu::this().vcpu());
        w.words(
            Kind::Tables,
            [self.root.as_u64(), self.pool_used, vcpu].into_iter(),
        )?;
        let [start, end] = words(memory);
        w.words(
            Kind::Image,
            [start, end, self.segments, u64::from(workspace.vcpus())].into_iter(),
        )?;
        w.words(Kind::Handover, words(handover).into_iter())?;
        if options.faults().early_fault {
            w.bytes(Kind::Test, b"early-fault")?;
        }
        if let Some(id) = watchdog.0 {
            w.words(Kind::Watchdog, [u64::from(id)].into_iter())?;
        }
        w.words(Kind::Rsdp, [machine.rsdp.unwrap_or(0)].into_iter())?;
        core::mem::replace(w, Writer::new(&mut [])).finish()?;
        Ok(())
    }
}

/// Every other vCPU is parked; interrupts are off here.
struct Quiesced {
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
        let before = percpu::this().counters();
        let begin = self.stamp(Phase::Begin);
        let quiesced = Quiesced {
            prepared: self,
            interrupts,
            before,
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
    fn jump(self, token: Committed) -> (Ended, Self) {
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
                p.loaded.trial_root.addr().as_u64(),
                p.loaded.entry,
                stack,
                p.loaded.handover.0.addr().as_u64(),
            )
        };
        (ended, self)
    }

    /// **Resume**: everything is undone in the reverse order; says why.
    fn resume(self, token: Committed, ended: Ended) -> ReplaceError {
        let p = &self.quiesced.prepared;
        let base = p.loaded.memory.0.addr().as_u64();
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
            } if p.park.reason().is_empty() => String::from(
                "it could not read the handover: it speaks another version of record or park pages",
            ),
            Ended::Fault {
                vector: GIVE_UP, ..
            } => String::from(p.park.reason()),
            Ended::Fault {
                vector,
                error,
                rip,
                cr2,
                rsp,
            } => {
                let guard = p
                    .loaded
                    .workspace
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
        let console = String::from_utf8_lossy(p.park.text()).into_owned();
        if p.vcpus > 1 {
            // INIT resets the APIC; enabling it again does no harm otherwise.
            apic::enable(token);
        }
        drop(self);
        crate::xen::console::println!(
            "segue: resume generation={} reason=\"{}\"",
            boot::generation(),
            reason.escape_debug()
        );
        ReplaceError::Resumed { reason, console }
    }
}
