//! The new image's side of the switch: start on trial, then commit.
//!
//! On entry (`segue_handover_entry`): 64-bit mode with the features of the image before, the
//! trial's page tables, the main stack of this image's workspace, the park pages' GDT, IDT and
//! TSS, interrupts off, all other vCPUs parked, image relocated and zeroed. RDI = the record.

use crate::boot::cmdline::CommandLine;
use crate::boot::info::{EntryKind, Module};
use crate::boot::start::{ImageName, mebibytes};
use crate::boot::{self, Machine};
use crate::cpu::{Features, percpu, smp, tables};
use crate::devices::control;
use crate::devices::handed::{self, Device};
use crate::entry;
use crate::memory::paging::{AddressSpace, Perms};
use crate::memory::vm::{self, TablePool};
use crate::memory::workspace::Workspace;
use crate::memory::{Extent, ExtentSet, Gfn, PAGE_SIZE, PhysAddr, heap, scrub};
use crate::replace::figures::{self, Figures, MAX_REASON};
use crate::replace::park::{self, Park, Phase};
use crate::replace::placed::Place;
use crate::replace::record::{Kind, MAX_KEPT, Record, RecordError};
use crate::replace::region::MAX_REGIONS;
use crate::replace::{fallback, live, state, trial};
use crate::sync::Lock;
use crate::task::sched;
use crate::xen::carve::Carve;
use crate::xen::console::{self, Console, println};
use crate::xen::events::Ports;
use crate::xen::hypercall::{self, Port};
use crate::xen::xenstore::{self, Before, SharedRing, Torn};
use crate::xen::{Committed, events, grant, shared_info};
use alloc::string::String;
use arrayvec::{ArrayString, ArrayVec};
use core::sync::atomic::{AtomicBool, Ordering};
use hermit_sync::OnceCell;

/// What the commit needs of the record.
struct Pending {
    kept: ExtentSet<MAX_KEPT>,
    handover: Extent,
    /// Where the image before has its text.
    code: Option<Extent>,
    console: Option<Console>,
    ports: Ports,
    workspace: Workspace,
    root: PhysAddr,
    pool_used: u64,
    watchdog: Option<u32>,
    devices: Devices,
    /// The image before has crashed, and why.
    crashed: Option<ArrayString<MAX_REASON>>,
    /// A fault to run into.
    #[cfg(feature = "fault-injection")]
    fault_at: u64,
}

impl Pending {
    /// Runs into a fault here, if this is the place.
    fn stumble(&self, _here: Place) {
        #[cfg(feature = "fault-injection")]
        stumble(self.fault_at, _here);
    }
}

#[cfg(feature = "fault-injection")]
fn stumble(at: u64, here: Place) {
    if at == here as u64 {
        // SAFETY: an undefined instruction; the gates are somebody's at each of the places.
        unsafe { core::arch::asm!("ud2") };
    }
}

/// What the image before had of other domains.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// xenstore's ring.
    pub xenstore: Option<SharedRing>,
    /// How the image before left it; nothing if it does not say so.
    before: Option<Before>,
    /// The grant table's frames.
    pub grant_table: ArrayVec<Gfn, { grant::MAX_FRAMES }>,
    /// What may be granted.
    pub granted: ArrayVec<Extent, { grant::MAX_BLOCKS }>,
    /// Open ports.
    pub ports: ArrayVec<Port, { events::MAX_OPEN }>,
    /// Devices that go on as they are. All others are closed after the commit, then connected anew.
    going_on: ArrayVec<Device, { grant::MAX_BLOCKS }>,
    /// The frame that shared_info was moved from, to be refilled.
    pub hole: Option<Gfn>,
}

/// Of a committed image: what it has not adopted yet, for the way back if it crashes here.
static LEFT: OnceCell<Devices> = OnceCell::new();
/// All of it is adopted.
static ADOPTED: AtomicBool = AtomicBool::new(false);

/// What came with the record and is not this image's yet; `None` when all is. Takes no lock.
pub(super) fn not_adopted() -> Option<&'static Devices> {
    LEFT.get().filter(|_| !ADOPTED.load(Ordering::Acquire))
}

impl Devices {
    /// An image that knows of none says nothing of them.
    fn parse(record: &Record<'_>, hole: Option<Gfn>) -> Result<Self, RecordError> {
        let xenstore = match record.array::<2>(Kind::Xenstore) {
            Ok([frame, port]) => Some(SharedRing {
                gfn: gfn(Kind::Xenstore, frame)?,
                port: Port(port as u32),
            }),
            Err(_) => None,
        };
        let torn = record.array::<2>(Kind::XenstoreTorn);
        let open = record.words(Kind::Transactions);
        let before = match (torn, open) {
            (Ok([request, reply]), _) => Some(Before::Crashed(Torn {
                request: request as u32,
                reply: reply as u32,
            })),
            (Err(_), Ok(open)) => Some(Before::AtRest(open.map(|t| t as u32).collect())),
            (Err(_), Err(_)) => None,
        };
        let mut devices = Self {
            xenstore,
            before,
            grant_table: ArrayVec::new(),
            granted: ArrayVec::new(),
            ports: ArrayVec::new(),
            going_on: ArrayVec::new(),
            hole,
        };
        for frame in record.words(Kind::GrantTable).into_iter().flatten() {
            let frame = gfn(Kind::GrantTable, frame)?;
            let fits = devices.grant_table.try_push(frame);
            fits.map_err(|_| RecordError::Bad(Kind::GrantTable))?;
        }
        let mut words = record.words(Kind::Granted).into_iter().flatten();
        while let (Some(start), Some(end)) = (words.next(), words.next()) {
            let fits = devices.granted.try_push(extent(Kind::Granted, start, end)?);
            fits.map_err(|_| RecordError::Bad(Kind::Granted))?;
        }
        for port in record.words(Kind::DevicePorts).into_iter().flatten() {
            let fits = devices.ports.try_push(Port(port as u32));
            fits.map_err(|_| RecordError::Bad(Kind::DevicePorts))?;
        }
        let bytes = record.bytes(Kind::Devices).unwrap_or_default();
        for words in bytes.as_chunks::<8>().0.chunks_exact(Device::WORDS) {
            let words = core::array::from_fn(|n| u64::from_le_bytes(words[n]));
            let device = Device::from_words(words)
                .filter(|d| devices.granted.contains(&d.block))
                .filter(|d| d.ports().all(|p| devices.ports.contains(&Port(p))));
            let fits = device.map(|device| devices.going_on.try_push(device));
            let fits = fits.and_then(Result::ok);
            fits.ok_or(RecordError::Bad(Kind::Devices))?;
        }
        Ok(devices)
    }

    /// What was under way in xenstore's ring, of an image that has crashed before.
    pub fn torn(&self) -> Torn {
        match self.before {
            Some(Before::Crashed(torn)) => torn,
            _ => Torn::default(),
        }
    }

    /// Makes grants, ports and xenstore this image's, without a hypercall; devices that go on wait
    /// for their drivers.
    ///
    /// # Safety
    /// All of it came with the record of an image that is gone, and this is done once.
    unsafe fn adopt(&self, token: Committed, generation: u64) {
        let goes_on = |block| self.going_on.iter().any(|d| d.block == block);
        // SAFETY: the caller's promise; the image's tables map the frames.
        unsafe { grant::adopt(&self.grant_table, &self.granted, goes_on) };
        events::adopt_open(self.ports.iter().copied());
        if let Some(ring) = self.xenstore {
            let unknown = Before::Unknown;
            let before = self.before.as_ref().unwrap_or(&unknown);
            // SAFETY: as above.
            unsafe { xenstore::adopt(token, ring, generation, before) };
        }
    }

    /// Closes ports of devices that don't go on.
    fn close_ports(&self, token: Committed) {
        let stays = |port: &Port| {
            let mut all = self.going_on.iter().flat_map(Device::ports);
            all.any(|p| p == port.0)
        };
        for port in self.ports.iter().filter(|port| !stays(port)) {
            events::close(token, *port);
        }
    }
}

static PENDING: Lock<Option<Pending>> = Lock::new(None);

/// Called by `entry.S`.
pub(crate) extern "C" fn handover(record: u64) -> ! {
    let tsc = shared_info::rdtsc();
    smp::reset_registers();
    // SAFETY: the image before mapped the record readable at this address.
    let parsed = unsafe { record_bytes(record) }
        .and_then(Record::parse)
        .and_then(|r| take_over(&r));
    match parsed {
        Ok(()) => entry::main(tsc),
        // Without a record there is no vCPU data and no console: only the gate is sure.
        Err(e) => trial::give_up(format_args!("{e}")),
    }
}

/// # Safety
/// The record is mapped readable at `addr`, a frame at least.
unsafe fn record_bytes(addr: u64) -> Result<&'static [u8], RecordError> {
    let addr = PhysAddr::new(addr).ok_or(RecordError::Length)?;
    let ptr = addr.as_ptr::<u8>();
    // SAFETY: the caller's promise: the record begins with its length, and all of it is mapped.
    unsafe {
        let start = core::slice::from_raw_parts(ptr, PAGE_SIZE as usize);
        let len = Record::len_of(start)?;
        Ok(core::slice::from_raw_parts(ptr, len))
    }
}

/// The app's state. An image that knows of none says nothing of it.
fn adopt_state<const N: usize>(record: &Record<'_>, ram: &ExtentSet<N>) -> Result<(), RecordError> {
    let in_ram = |kind, start, end| {
        extent(kind, start, end).and_then(|extent| {
            let inside = ram.contains(extent).then_some(extent);
            inside.ok_or(RecordError::Bad(kind))
        })
    };
    let mut regions = ArrayVec::<Extent, MAX_REGIONS>::new();
    let mut words = record.words(Kind::Regions).into_iter().flatten();
    while let (Some(start), Some(end)) = (words.next(), words.next()) {
        let fits = regions.try_push(in_ram(Kind::Regions, start, end)?);
        fits.map_err(|_| RecordError::Bad(Kind::Regions))?;
    }
    let values = match record.array::<3>(Kind::Values) {
        Ok([start, end, len]) => {
            let extent = in_ram(Kind::Values, start, end)?;
            if len > extent.bytes() {
                return Err(RecordError::Bad(Kind::Values));
            }
            Some((extent, len as usize))
        }
        Err(_) => None,
    };
    state::adopt(regions, values);
    if let Ok([start, end]) = record.array::<2>(Kind::Network) {
        live::offer(in_ram(Kind::Network, start, end)?);
    }
    Ok(())
}

fn gfn(kind: Kind, n: u64) -> Result<Gfn, RecordError> {
    Gfn::new(n).ok_or(RecordError::Bad(kind))
}

fn extent(kind: Kind, start: u64, end: u64) -> Result<Extent, RecordError> {
    Extent::from_bounds(start, end).ok_or(RecordError::Bad(kind))
}

fn extents<const N: usize>(record: &Record<'_>, kind: Kind) -> Result<ExtentSet<N>, RecordError> {
    let mut set = ExtentSet::new();
    let mut words = record.words(kind)?;
    while let (Some(start), Some(end)) = (words.next(), words.next()) {
        set.insert(extent(kind, start, end)?)
            .map_err(|_| RecordError::Bad(kind))?;
    }
    Ok(set)
}

/// Parses the record into types and sets up what a trial needs: this vCPU's data, the clock, the
/// heap. Touches no memory that isn't this image's.
fn take_over(record: &Record<'_>) -> Result<(), RecordError> {
    #[cfg(feature = "fault-injection")]
    let fault_at = record.array::<1>(Kind::Test).map_or(0, |[at]| at);
    #[cfg(feature = "fault-injection")]
    stumble(fault_at, Place::Early);
    let [block, block_end, sipi, version] = record.array(Kind::Park)?;
    if version != u64::from(park::VERSION) {
        return Err(RecordError::Bad(Kind::Park));
    }
    let park = Park::adopt(
        extent(Kind::Park, block, block_end)?,
        gfn(Kind::Park, sipi)?,
    )
    .ok_or(RecordError::Bad(Kind::Park))?;
    park::set(park);

    let ram: ExtentSet<64> = extents(record, Kind::Ram)?;
    let [start, end, segments, vcpus] = record.array(Kind::Image)?;
    let memory = extent(Kind::Image, start, end)?;
    let workspace = memory
        .part(segments, memory.frames().saturating_sub(segments))
        .and_then(|e| Workspace::plan(e, u32::try_from(vcpus).ok()?, ram.end()))
        .ok_or(RecordError::Bad(Kind::Image))?;
    let [root, pool_used, vcpu] = record.array(Kind::Tables)?;
    let vcpu = u32::try_from(vcpu).map_err(|_| RecordError::Bad(Kind::Tables))?;
    let [home, hole, carve_start, carve_end, carve_used] = record.array(Kind::SharedInfo)?;
    let carve = extent(Kind::SharedInfo, carve_start, carve_end)?;
    let carve = Carve::resume(carve, carve_used).ok_or(RecordError::Bad(Kind::SharedInfo))?;
    let [xen, vmmcall, hvm] = record.array(Kind::Platform)?;
    let [xsave_size, xcr0, x2apic] = record.array(Kind::Features)?;
    let features = Features {
        xsave_size: xsave_size as u32,
        xcr0,
        x2apic: x2apic != 0,
    };

    // SAFETY: the workspace is mapped writable and is this image's; interrupts are off.
    unsafe {
        for v in 0..workspace.vcpus() {
            vm::prepare_vcpu(&workspace, v);
        }
        vm::vcpu_data(&workspace, vcpu)
            .ok_or(RecordError::Bad(Kind::Tables))?
            .install(vcpu);
        // Mapped readable in the trial, writable after the commit, which is when events matter.
        shared_info::set_home(gfn(Kind::SharedInfo, home)?);
        tables::init_idt(features);
        heap::init(workspace.heap());
    }
    if let Ok([start, end]) = record.array(Kind::Room) {
        // SAFETY: set aside for this and mapped writable, as the record says; it keeps them for
        // nobody.
        unsafe { vm::make_room(extent(Kind::Room, start, end)?) };
    }
    // Here, where there is time and memory for it: after the commit every vCPU schedules at once.
    sched::init(&workspace);
    hypercall::init(vmmcall != 0);
    shared_info::set_vcpus(workspace.vcpus());
    smp::promise(workspace.vcpus());
    shared_info::continue_after(park.baton().clock.load(Ordering::Relaxed));
    stamp(&park, Phase::Jump);

    let mut words = record.words(Kind::Ports)?.map(|p| Port(p as u32));
    let mut ports = Ports {
        park: words.next().ok_or(RecordError::Missing(Kind::Ports))?,
        vcpus: ArrayVec::new(),
    };
    while let (Some(timer), Some(ipi)) = (words.next(), words.next()) {
        ports
            .vcpus
            .try_push((timer, ipi))
            .map_err(|_| RecordError::Bad(Kind::Ports))?;
    }
    let mut modules = ArrayVec::new();
    let mut words = record.words(Kind::Modules)?;
    while let (Some(addr), Some(len)) = (words.next(), words.next()) {
        modules
            .try_push(Module { addr, len })
            .map_err(|_| RecordError::Bad(Kind::Modules))?;
    }
    smp::set_apic_ids(record.words(Kind::ApicIds)?.map(|id| id as u32));
    let console = match record.array::<2>(Kind::Console) {
        Ok([frame, port]) => Some(Console {
            gfn: gfn(Kind::Console, frame)?,
            port: Port(port as u32),
        }),
        Err(_) => None,
    };
    adopt_state(record, &ram)?;
    fallback::adopt(record)?;
    let crashed = record.bytes(Kind::Crashed).ok().map(|reason| {
        let mut text = ArrayString::new();
        for c in String::from_utf8_lossy(reason).chars() {
            if text.try_push(c).is_err() {
                break;
            }
        }
        text
    });
    let devices = Devices::parse(
        record,
        gfn(Kind::SharedInfo, hole).ok().filter(|g| g.as_u64() != 0),
    )?;
    handed::offer(devices.going_on.clone());
    let [generation] = record.array(Kind::Generation)?;
    let [rsdp] = record.array(Kind::Rsdp)?;
    let [start, end] = record.array(Kind::Handover)?;
    let handover = extent(Kind::Handover, start, end)?;
    *PENDING.lock() = Some(Pending {
        kept: extents(record, Kind::Kept)?,
        // An image that does not tell it leaves it as it is.
        code: (record.array(Kind::Code).ok())
            .and_then(|[start, end]| Extent::from_bounds(start, end)),
        handover,
        console,
        ports,
        workspace,
        root: gfn(Kind::Tables, root)?.addr(),
        pool_used,
        watchdog: record.array::<1>(Kind::Watchdog).ok().map(|[id]| id as u32),
        devices,
        crashed,
        #[cfg(feature = "fault-injection")]
        fault_at,
    });
    boot::set_machine(Machine {
        entry: EntryKind::Handover,
        generation,
        ram,
        cmdline: CommandLine::from_bytes(record.bytes(Kind::CommandLine)?),
        modules,
        rsdp: (rsdp != 0).then_some(rsdp),
        hvm: hvm != 0,
        xen: ((xen >> 16) as u16, xen as u16),
        features,
        carve,
    });
    Ok(())
}

fn stamp(park: &Park, phase: Phase) {
    park.baton().times[phase as usize].store(shared_info::now(), Ordering::Relaxed);
}

/// Step 8, **commit**. Before: this image runs on trial. After: the domain is this image's, with
/// all vCPUs; the old image's frames are free. Returns at once when there is nothing to commit.
pub fn commit() {
    let (Some(park), Some(mut p)) = (park::get(), PENDING.lock().take()) else {
        return;
    };
    stamp(park, Phase::Restore);
    // SAFETY: tables that the image before built for this one: same code, data and stack, and all
    // RAM besides; nothing that runs notices.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) p.root.as_u64(), options(nostack));
    }
    // What is only this image's own comes before the verdict: if it fails, the old image is there.
    let cpu = percpu::this();
    let machine = boot::machine();
    let (workspace, root) = (p.workspace, p.root.as_u64());
    let vcpus = workspace.vcpus();
    smp::set_shared(smp::Shared {
        workspace,
        root,
        features: machine.features,
    });
    cpu.adopt_apic_id(smp::apic_id(cpu.vcpu()));
    p.ports.adopt_on(cpu);
    boot::set_ports(p.ports.clone());
    let devices = LEFT.get_or_init(|| core::mem::take(&mut p.devices));
    p.stumble(Place::Commit);
    // SAFETY: the control page is mapped now.
    let Some(token) = (unsafe { park.decide_commit() }) else {
        // The time was over first: the old image takes this vCPU back any moment.
        loop {
            core::hint::spin_loop();
        }
    };
    if let Some(stacks) = vm::fault_stacks(&workspace, cpu.vcpu()) {
        // SAFETY: interrupts are off; the stacks are this vCPU's, which runs on the main stack.
        unsafe { tables::load(cpu, stacks) };
    }
    // From here on a crash goes the way back.
    if let Some(console) = p.console {
        // SAFETY: the record says so; the tables map it.
        unsafe { console::set(console) };
    }
    stamp(park, Phase::Commit);
    p.stumble(Place::Committed);
    scrub::hold(true);
    if p.crashed.is_some() {
        start_others(token, park);
    } else {
        // SAFETY: the verdict is ours; the tables map the entry, and each vCPU has its own stack.
        unsafe {
            park.release_others(token, root, smp::released, |v| {
                Some(workspace.vcpu(v)?.stack.end_addr())
            });
        }
    }
    // While they come up.
    // SAFETY: no vCPU runs the old image any more, so its frames are nobody's. The record listed all
    // that is in use; the pool's tables are where the record says.
    unsafe {
        let pool = TablePool::resume(workspace.tables(), p.pool_used);
        let space = AddressSpace::from_root(p.root.gfn());
        vm::init(&machine.ram, &p.kept, p.code, space, pool, workspace);
        // The grant table may have grown since these tables were made, by far if they were kept for
        // the way back.
        for frame in &devices.grant_table {
            let _ = vm::map(frame.extent(), Perms::Write);
        }
        devices.adopt(token, machine.generation);
    }
    p.stumble(Place::Adopting);
    live::committed(token);
    while smp::online() < vcpus {
        core::hint::spin_loop();
    }
    stamp(park, Phase::Adopt);
    scrub::hold(false);
    let after = cpu.counters();
    // The blackout is over: what follows takes whatever time it takes.
    if let Some(id) = p.watchdog {
        let _ = hypercall::watchdog(token, id, 0);
    }
    devices.close_ports(token);
    // Before those are freed that nobody has taken.
    let came = (state::all_regions().len(), state::torn_regions());
    state::committed(boot::wants_trial());
    // SAFETY: the record and the trial's tables, which nobody reads any more.
    unsafe { vm::free_frames(p.handover) };
    if let Some(gfn) = devices.hole {
        boot::refill_hole(token, gfn);
    }
    ADOPTED.store(true, Ordering::Release);
    p.stumble(Place::Adopted);
    report(park, after, p.crashed.as_deref(), came);
    fallback::begin();
    x86_64::instructions::interrupts::enable();
    control::start(token);
    if fallback::probation().is_some() {
        entry::segue_runtime_probation();
    }
}

/// After a crash the other vCPUs are not parked but reset.
fn start_others(token: Committed, park: &Park) {
    // SAFETY: the frame was kept for this, below 1 MiB and mapped writable; workspace and shared
    // data are set; interrupts are off.
    if let Err(error) = unsafe { smp::start_others(token, park.sipi(), core::hint::spin_loop) } {
        console::emergency_println!("segue: vCPU {} did not start", error.vcpu);
        crate::end::end(hypercall::ShutdownReason::Crash);
    }
}

/// Prints what happened, the trial's own lines first. `came`: how many regions the record had, and
/// how many of them were not consistent.
fn report(
    park: &Park,
    after: percpu::Counters,
    crashed: Option<&str>,
    (came, torn): (usize, usize),
) {
    if !park.text().is_empty() {
        console::write(park.text());
    }
    let machine = boot::machine();
    let baton = park.baton();
    let time = |phase: Phase| baton.times[phase as usize].load(Ordering::Relaxed);
    let us = |from: Phase, to: Phase| time(to).saturating_sub(time(from)) / 1000;
    // An image that does not tell leaves what another one said in an earlier switch.
    let stopped = match baton.stopped.load(Ordering::Relaxed) {
        at if at < time(Phase::Call) => 0,
        at => time(Phase::Begin).saturating_sub(at),
    };
    let count = |i: usize| baton.counters[i].load(Ordering::Relaxed);
    let figures = figures::note(Figures {
        from: machine.generation - 1,
        to: machine.generation,
        at_ns: time(Phase::Adopt),
        blackout_us: us(Phase::Begin, Phase::Adopt),
        parts: [
            ("quiesce", us(Phase::Begin, Phase::Quiesce)),
            ("relocate", us(Phase::Quiesce, Phase::Relocate)),
            ("jump", us(Phase::Relocate, Phase::Jump)),
            ("start", us(Phase::Jump, Phase::Start)),
            ("restore", us(Phase::Start, Phase::Restore)),
            ("commit", us(Phase::Restore, Phase::Commit)),
            ("adopt", us(Phase::Commit, Phase::Adopt)),
        ],
        before_us: us(Phase::Call, Phase::Begin),
        stopped_us: stopped / 1000,
        hypercalls: count(0) + after.hypercalls,
        regions: came,
        crashed: crashed.and_then(|reason| ArrayString::from(reason).ok()),
    });
    let [quiesce, relocate, jump, start, restore, commit, adopt] = figures.parts.map(|(_, us)| us);
    println!(
        "segue: switch from={} to={} blackout_us={} quiesce_us={quiesce} relocate_us={relocate} jump_us={jump} start_us={start} restore_us={restore} commit_us={commit} adopt_us={adopt} p2m_updates={} hypercalls={} exits={} vcpus={} before_us={} stopped_us={} image={}",
        figures.from,
        figures.to,
        figures.blackout_us,
        count(2) + after.p2m_updates,
        figures.hypercalls,
        count(1) + after.exits,
        smp::online(),
        figures.before_us,
        figures.stopped_us,
        ImageName,
    );
    if let Some(reason) = crashed {
        // One that is not consistent can't be taken.
        let kept = state::all_regions().len() - state::torn_regions();
        println!(
            "segue: fallback from={} to={} image={} reason=\"{}\" kept_regions={kept} torn_regions={torn} \
             unknown_regions={} devices=anew lost=values,connections",
            machine.generation - 1,
            machine.generation,
            ImageName,
            console::Escaped(&reason),
            came - torn - kept,
        );
    }
    println!("segue: commit generation={}", machine.generation);
    println!(
        "segue: boot generation={} entry={} vcpus={} memory_mib={} xen={}.{} image={}",
        machine.generation,
        machine.entry.name(),
        smp::online(),
        mebibytes(&machine.ram),
        machine.xen.0,
        machine.xen.1,
        ImageName,
    );
    boot::report_trust();
}

/// Whether this image is on trial.
#[must_use]
pub fn on_trial() -> bool {
    Committed::get().is_none()
}

/// The app has been entered: the trial's start is over.
pub(crate) fn started() {
    if let Some(park) = park::get() {
        stamp(park, Phase::Start);
    }
}
