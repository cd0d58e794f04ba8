//! An image in its place: loaded, with its page tables, and told what it has to know.

use crate::boot::cmdline::CommandLine;
use crate::boot::{self, Module};
use crate::cpu::{percpu, smp};
use crate::devices::handed::Device;
use crate::image::{Digest, Image, LoadError};
use crate::memory::paging::{AddressSpace, Perms};
use crate::memory::vm::{self, Surroundings, TablePool};
use crate::memory::workspace::Workspace;
use crate::memory::{Extent, ExtentSet, Gfn, PAGE_SIZE};
use crate::replace::ReplaceError;
use crate::replace::adopt::{self, Devices};
use crate::replace::park::{self, Park};
use crate::replace::record::{Kind, MAX_KEPT, Writer};
use crate::xen::{Committed, console, events, grant, hypercall, xenstore};
use arrayvec::ArrayVec;

/// Frames for the record. All entries at their longest take less: what the app hands over is not in
/// it.
const RECORD_FRAMES: u64 = 4;
/// Frames for the trial's page tables, without those for what the app hands over.
const TRIAL_TABLES: u64 = 32;
/// Frames for page tables of what is handed over after a crash, when none can be taken.
const SPARE_TABLES: u64 = 32;

/// Frames from the allocator, given back when dropped.
#[derive(Debug)]
pub(super) struct Frames(pub Extent, HeldCode);

/// Whether somebody has executed what is in them.
type HeldCode = bool;

impl Frames {
    /// Frames that came otherwise.
    ///
    /// # Safety
    /// They are nobody else's, and the allocator's to take.
    pub unsafe fn adopt(extent: Extent) -> Self {
        Self(extent, false)
    }

    pub fn alloc(frames: u64) -> Result<Self, ReplaceError> {
        vm::alloc_frames(frames, 1)
            .map(|extent| Self(extent, false))
            .ok_or(ReplaceError::NoMemory { frames })
    }

    pub fn alloc_low(frames: u64) -> Result<Self, ReplaceError> {
        vm::alloc_frames_low(frames, 1)
            .map(|extent| Self(extent, false))
            .ok_or(ReplaceError::NoMemory { frames })
    }

    /// What is in them is going to be executed.
    pub fn hold_code(&mut self) {
        self.1 = true;
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the frames are this value's alone, mapped writable as all RAM is.
        unsafe { core::slice::from_raw_parts_mut(self.0.addr().as_ptr(), self.0.bytes() as usize) }
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        // SAFETY: they came from the allocator; who borrowed them is gone with the value. All RAM
        // is mapped writable.
        unsafe {
            if self.1 {
                vm::free_code(self.0);
            } else {
                vm::free_frames(self.0);
            }
        }
    }
}

/// Where an image stands and how it is entered: numbers that another image can be told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Placed {
    /// Its memory: segments, then the workspace.
    pub memory: Extent,
    /// For the trial only: the record, the trial's page tables, spare ones.
    pub handover: Extent,
    /// Frames of its segments.
    pub segments: u64,
    /// Root of its page tables, and how many frames of the workspace's pool they take.
    pub root: Gfn,
    /// See `root`.
    pub pool_used: u64,
    /// Root of the trial's page tables.
    pub trial_root: Gfn,
    /// Address of its entry.
    pub entry: u64,
}

impl Placed {
    /// Number of words.
    pub const WORDS: usize = 9;

    /// As words, for the record.
    pub fn words(&self) -> [u64; Self::WORDS] {
        [
            self.memory.start().as_u64(),
            self.memory.end(),
            self.handover.start().as_u64(),
            self.handover.end(),
            self.segments,
            self.root.as_u64(),
            self.pool_used,
            self.trial_root.as_u64(),
            self.entry,
        ]
    }

    /// From [`words`](Self::words); `None` if they make no sense.
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [
            start,
            end,
            handover,
            handover_end,
            segments,
            root,
            pool_used,
            trial,
            entry,
        ] = words;
        let placed = Self {
            memory: Extent::from_bounds(start, end)?,
            handover: Extent::from_bounds(handover, handover_end)?,
            segments,
            root: Gfn::new(root)?,
            pool_used,
            trial_root: Gfn::new(trial)?,
            entry,
        };
        let frame = |addr: u64| Extent::touching(addr, 1);
        let inside = |outer: Extent, inner: Extent| {
            outer.start() <= inner.start() && inner.end() <= outer.end()
        };
        let sound = placed.handover.frames() == RECORD_FRAMES + TRIAL_TABLES + SPARE_TABLES
            && inside(placed.memory, placed.root.extent())
            && inside(placed.handover, placed.trial_root.extent())
            && inside(placed.memory, frame(entry)?);
        sound.then_some(placed)
    }

    /// The plan of its workspace.
    pub fn workspace(&self) -> Option<Workspace> {
        let frames = self.memory.frames().checked_sub(self.segments)?;
        let extent = self.memory.part(self.segments, frames)?;
        let shared = smp::shared()?;
        Workspace::plan(extent, shared.workspace.vcpus(), boot::machine().ram.end())
    }

    /// The record's frames.
    pub fn record(&self) -> Option<Extent> {
        self.handover.part(0, RECORD_FRAMES)
    }

    /// Spare frames for page tables.
    pub fn spare_tables(&self) -> Option<Extent> {
        self.handover
            .part(RECORD_FRAMES + TRIAL_TABLES, SPARE_TABLES)
    }

    /// Writes the record.
    ///
    /// Takes no lock and allocates nothing: a crashed image does it, too.
    ///
    /// # Safety
    /// The record's frames are the caller's, mapped writable.
    pub unsafe fn write_record(&self, told: &Told<'_>) -> Result<(), ReplaceError> {
        let record = self.record().ok_or(ReplaceError::TooMuch("the record"))?;
        // SAFETY: the caller's promise.
        let bytes = unsafe {
            core::slice::from_raw_parts_mut(record.addr().as_ptr(), record.bytes() as usize)
        };
        self.fill(bytes, told)
    }

    /// Changes a byte that the digest is about: a test.
    pub fn damage_record(&self) {
        if let Some(record) = self.record() {
            let ptr = record.addr().as_ptr::<u8>();
            // SAFETY: the record's frames, mapped writable and ours until the jump.
            unsafe { *ptr.add(40) ^= 1 };
        }
    }

    fn fill(&self, bytes: &mut [u8], told: &Told<'_>) -> Result<(), ReplaceError> {
        let park = park::get().ok_or(ReplaceError::NoApic)?;
        // A hole that Xen would not refill stays one, and the next image tries again.
        let left = adopt::not_adopted();
        let hole = told.hole.or_else(boot::open_hole);
        let hole = hole.or_else(|| left.and_then(|l| l.hole));
        let machine = boot::machine();
        let modules = boot::modules();
        let granted = left.map_or_else(grant::blocks, |l| l.granted.clone());
        let mut kept = ExtentSet::<MAX_KEPT>::new();
        let module_extents = modules.iter().filter_map(Module::extent);
        let all = [
            self.memory,
            self.handover,
            park.block(),
            park.sipi().extent(),
        ];
        let fallback = told.fallback.iter().flat_map(|f| [f.memory, f.handover]);
        let values = told.values.iter().map(|(extent, _)| *extent);
        for extent in all
            .into_iter()
            .chain(module_extents)
            .chain(hole.map(Gfn::extent))
            .chain(granted.iter().copied())
            .chain(told.regions.iter().copied())
            .chain(told.network)
            .chain(values)
            .chain(fallback)
        {
            kept.insert(extent)
                .map_err(|_| ReplaceError::TooMuch("modules, devices and regions"))?;
        }
        let words = |e: Extent| [e.start().as_u64(), e.end()];
        let mut w = Writer::new(bytes);
        w.words(Kind::Generation, [boot::generation() + 1].into_iter())?;
        w.words(Kind::Ram, machine.ram.iter().flat_map(words))?;
        w.words(Kind::Kept, kept.iter().flat_map(words))?;
        let version = u64::from(machine.xen.0) << 16 | u64::from(machine.xen.1);
        let vmmcall = u64::from(hypercall::uses_vmmcall());
        w.words(
            Kind::Platform,
            [version, vmmcall, machine.hvm as u64].into_iter(),
        )?;
        let [start, end] = words(machine.carve.range());
        let hole = hole.map_or(0, Gfn::as_u64);
        w.words(
            Kind::SharedInfo,
            [told.home.as_u64(), hole, start, end, boot::carved()].into_iter(),
        )?;
        if let Some(ports) = boot::ports() {
            let each = ports.vcpus.iter().flat_map(|(t, i)| [t.0, i.0]);
            w.words(
                Kind::Ports,
                [ports.park.0].into_iter().chain(each).map(u64::from),
            )?;
        }
        let vcpus = smp::shared().map_or(1, |shared| shared.workspace.vcpus());
        let ids = (0..vcpus).map(|v| smp::apic_id(v).map_or(0, u64::from));
        w.words(Kind::ApicIds, ids)?;
        if let Some(c) = console::get() {
            w.words(
                Kind::Console,
                [c.gfn.as_u64(), u64::from(c.port.0)].into_iter(),
            )?;
        }
        let ring = left.map_or_else(xenstore::home, |l| l.xenstore);
        if let Some(ring) = ring {
            w.words(
                Kind::Xenstore,
                [ring.gfn.as_u64(), u64::from(ring.port.0)].into_iter(),
            )?;
            if told.crashed.is_some() {
                let torn = left.map_or_else(|| ring.torn(), Devices::torn);
                w.words(
                    Kind::XenstoreTorn,
                    [torn.request, torn.reply].into_iter().map(u64::from),
                )?;
            } else {
                let open = told.transactions.iter().copied().map(u64::from);
                w.words(Kind::Transactions, open)?;
            }
        }
        let frames = left.map_or_else(grant::table_frames, |l| l.grant_table.clone());
        w.words(Kind::GrantTable, frames.iter().map(|g| g.as_u64()))?;
        w.words(Kind::Granted, granted.iter().copied().flat_map(words))?;
        let ports = left.map_or_else(events::open_ports, |l| l.ports.clone());
        w.words(Kind::DevicePorts, ports.iter().map(|p| u64::from(p.0)))?;
        w.words(Kind::Devices, told.devices.iter().flat_map(Device::words))?;
        if let Some(network) = told.network {
            w.words(Kind::Network, words(network).into_iter())?;
        }
        w.bytes(Kind::CommandLine, told.cmdline.as_str().as_bytes())?;
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
        let [start, end] = words(self.memory);
        w.words(
            Kind::Image,
            [start, end, self.segments, u64::from(vcpus)].into_iter(),
        )?;
        w.words(Kind::Handover, words(self.handover).into_iter())?;
        let own = boot::image_base();
        if let Some(code) = Extent::touching(own, boot::image_data() - own) {
            w.words(Kind::Code, words(code).into_iter())?;
        }
        w.words(Kind::Regions, told.regions.iter().copied().flat_map(words))?;
        if let Some((extent, len)) = told.values {
            let [start, end] = words(extent);
            w.words(Kind::Values, [start, end, len as u64].into_iter())?;
        }
        if let Some(room) = told.room {
            w.words(Kind::Room, words(room).into_iter())?;
        }
        if let Some(fallback) = told.fallback {
            w.words(Kind::Fallback, fallback.words().into_iter())?;
            w.words(
                Kind::Probation,
                [told.probation_ns, u64::from(told.must_confirm)].into_iter(),
            )?;
            w.bytes(
                Kind::FallbackCommandLine,
                machine.cmdline.as_str().as_bytes(),
            )?;
        }
        if let Some(reason) = told.crashed {
            w.bytes(Kind::Crashed, reason.as_bytes())?;
        }
        if let Some(place) = told.fault_at {
            w.words(Kind::Test, [place as u64].into_iter())?;
        }
        if let Some(id) = told.watchdog {
            w.words(Kind::Watchdog, [u64::from(id)].into_iter())?;
        }
        w.words(Kind::Rsdp, [machine.rsdp.unwrap_or(0)].into_iter())?;
        w.finish()?;
        Ok(())
    }
}

/// What the record says besides what is known anyway.
#[derive(Debug)]
pub(super) struct Told<'a> {
    /// Arguments and settings.
    pub cmdline: &'a CommandLine,
    /// Where shared_info is when the image starts.
    pub home: Gfn,
    /// The frame that it was moved from.
    pub hole: Option<Gfn>,
    /// Preserved regions.
    pub regions: &'a [Extent],
    /// The block of named values, and its length in bytes.
    pub values: Option<(Extent, usize)>,
    /// What the trial may take for its heap.
    pub room: Option<Extent>,
    /// The network's state, which goes on in place.
    pub network: Option<Extent>,
    /// Devices that go on as they are.
    pub devices: &'a [Device],
    /// What is open in xenstore, whose connection goes on, unless this image has crashed.
    pub transactions: &'a [u32],
    /// Xen's watchdog that is running.
    pub watchdog: Option<u32>,
    /// The way back, if it is kept: this image.
    pub fallback: Option<Placed>,
    /// How long it is kept, in ns.
    pub probation_ns: u64,
    /// After that time the way back is taken, unless somebody has confirmed the new image.
    pub must_confirm: bool,
    /// This image has crashed, and why.
    pub crashed: Option<&'a str>,
    /// A fault to inject.
    pub fault_at: Option<Place>,
}

/// Where a new image can be made to run into a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Place {
    /// In its first lines, before its own IDT.
    Early = 1,
    /// At the commit, before the verdict.
    Commit = 2,
    /// After the verdict, while all other vCPUs are parked and no device is adopted.
    Committed = 3,
    /// When all vCPUs run, before the app goes on.
    Adopted = 4,
    /// When grants and ports are adopted, before the network goes on.
    Adopting = 5,
}

/// An image in its place, in frames of ours.
pub(super) struct Loaded {
    /// Its memory.
    pub memory: Frames,
    /// For its trial.
    pub handover: Frames,
    /// Where all is.
    pub placed: Placed,
    /// The plan of its workspace.
    pub workspace: Workspace,
}

impl Loaded {
    /// Loads an image, each segment of which has to be as its digest says; `home` is where it will
    /// find shared_info.
    pub fn new(
        token: Committed,
        image: &Image<'_>,
        digests: &[Digest],
        home: Gfn,
    ) -> Result<Self, ReplaceError> {
        let map = boot::machine();
        let vcpus = smp::vcpus();
        let segments = image.span() / PAGE_SIZE;
        let mut memory = Frames::alloc_low(segments + Workspace::frames(vcpus, map.ram.end()))?;
        let mut handover = Frames::alloc_low(RECORD_FRAMES + TRIAL_TABLES + SPARE_TABLES)?;
        let extent = memory.0;
        let base = extent.addr().as_u64();
        let span = image.span() as usize;
        let dest = memory
            .bytes_mut()
            .get_mut(..span)
            .ok_or(ReplaceError::TooMuch("segments"))?;
        // Each segment is held against its digest where it will run.
        image
            .load(base, dest, digests)
            .map_err(|error| match error {
                LoadError::Segment { .. } | LoadError::Digests { .. } => {
                    ReplaceError::Verify(error.into())
                }
                LoadError::Length { .. } | LoadError::Base { .. } => {
                    ReplaceError::TooMuch("segments")
                }
            })?;
        let workspace = extent
            .part(segments, extent.frames() - segments)
            .and_then(|e| Workspace::plan(e, vcpus, map.ram.end()))
            .ok_or(ReplaceError::TooMuch("workspace"))?;

        let parts: ArrayVec<(Extent, Perms), 8> = image
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
        let trial = trial_space(&mut trial_pool, park, &parts, &workspace, &handover, home)?;
        let placed = Placed {
            memory: extent,
            handover: handover.0,
            segments,
            root: space.root().gfn(),
            pool_used: pool.used(),
            trial_root: trial.root().gfn(),
            entry: base + image.entry_offset(),
        };
        Ok(Self {
            memory,
            handover,
            placed,
            workspace,
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
