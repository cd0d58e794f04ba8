//! The first boot: from the stub in `entry.S` to the app's main, in one function.
//!
//! On entry: 64-bit mode, the low 4 GiB identity-mapped writable and executable by the boot
//! tables in .bss, the boot stack in .bss, interrupts off, relocations applied, one vCPU.

use crate::boot::info::{BootError, BootInfo, EntryKind, Module, Read};
use crate::boot::{self, Machine};
use crate::cpu::tables::FaultStacks;
use crate::cpu::{Features, apic, percpu, smp, tables};
use crate::devices::{pci, pic, uart, unplug};
use crate::memory::paging::{NoTableFrame, Perms};
use crate::memory::vm::{self, Surroundings, TablePool};
use crate::memory::workspace::Workspace;
use crate::memory::{Extent, ExtentSet, Gfn, PhysAddr, heap};
use crate::replace::park::{self, Park};
use crate::task::sched;
use crate::xen::carve::Carve;
use crate::xen::console::{self, Console, println};
use crate::xen::events::{self, Ports};
use crate::xen::hypercall::{self, ShutdownReason, XenError};
use crate::xen::shared_info;
use crate::xen::xenstore;
use crate::xen::{Committed, cpuid};
use crate::{acpi, end};
use arrayvec::ArrayVec;
use core::fmt;

const BOOT_STACK: usize = 64 * 1024;

core::arch::global_asm!(include_str!("setup.S"), options(att_syntax));
core::arch::global_asm!(include_str!("entry.S"), options(att_syntax),
    bp_scratch = const 0x1e4,
    kind_linux = const EntryKind::Linux as u32,
    kind_pvh = const EntryKind::Pvh as u32,
    cr0_boot = const smp::CR0_BOOT,
    cr4_boot = const smp::CR4_BOOT,
    efer_boot = const smp::EFER_BOOT,
    link_base = const 0x20_0000,
    boot_stack_size = const BOOT_STACK,
    first_boot = sym first_boot,
    handover = sym crate::replace::adopt::handover,
);

unsafe extern "C" {
    static segue_entry_tsc: u64;
}

/// Why the domain cannot be used.
#[derive(Debug)]
enum StartError {
    NotXen,
    Boot(BootError),
    NoHome,
    Xen(&'static str, XenError),
    NoClock,
    NoMemory { need: u64, have: u64 },
    Tables,
    NoLowPage,
    TooManyVcpus(u32),
    NoX2apic,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotXen => f.write_str("this is not a Xen domain"),
            Self::Boot(e) => write!(f, "{e}"),
            Self::NoHome => f.write_str(
                "no place for shared_info outside RAM: no xen-platform device, and the hole below 4 GiB is taken",
            ),
            Self::Xen(what, e) => write!(f, "Xen refused {what}: {e}"),
            Self::NoClock => f.write_str("the Xen clock does not run"),
            Self::NoMemory { need, have } => {
                write!(f, "too little memory: {need} KiB in one piece needed, {have} KiB there")
            }
            Self::Tables => f.write_str("too little memory for page tables"),
            Self::NoLowPage => f.write_str("no RAM below 1 MiB to start the other vCPUs in"),
            Self::TooManyVcpus(n) => write!(f, "{n} vCPUs; at most {} are supported", percpu::MAX),
            Self::NoX2apic => f.write_str("no x2APIC, which more than one vCPU needs; set x2apic=1 in cpuid"),
        }
    }
}

impl From<NoTableFrame> for StartError {
    fn from(_: NoTableFrame) -> Self {
        Self::Tables
    }
}

/// Reads boot data through the boot tables: anything below 4 GiB.
struct LowMemory;

impl Read for LowMemory {
    fn bytes<const N: usize>(&self, addr: u64) -> Option<[u8; N]> {
        if addr == 0 || addr.checked_add(N as u64)? > 1 << 32 {
            return None;
        }
        // SAFETY: mapped by the boot tables; bytes that no Rust object lives in.
        Some(unsafe { PhysAddr::new(addr)?.as_ptr::<[u8; N]>().read_unaligned() })
    }
}

/// Stacks for faults until there is memory.
#[repr(C, align(16))]
struct EarlyStacks {
    fault: [u8; 8192],
    critical: [u8; 4096],
}

static mut EARLY_STACKS: EarlyStacks = EarlyStacks {
    fault: [0; 8192],
    critical: [0; 4096],
};

/// Called by `entry.S`.
extern "C" fn first_boot(kind: u32, data: u64) -> ! {
    // SAFETY: the first Rust code on this vCPU, and the only one that uses this data.
    unsafe { percpu::BOOT.install(0) };
    // SAFETY: the domain was booted into this image.
    let token = unsafe { Committed::declare() };
    uart::set_present(kind == EntryKind::Linux as u32);
    match start(token, kind, data) {
        Ok(never) => match never {},
        Err(e) => {
            println!("segue: start failed: {e}");
            if matches!(e, StartError::NotXen) {
                loop {
                    x86_64::instructions::hlt();
                }
            }
            end::end(ShutdownReason::Poweroff)
        }
    }
}

/// Extents that may not be handed out.
type Kept = ExtentSet<32>;

fn start(token: Committed, kind: u32, data: u64) -> Result<core::convert::Infallible, StartError> {
    // 1. Xen, hypercalls, faults.
    let xen = cpuid::detect().ok_or(StartError::NotXen)?;
    hypercall::init(xen.vmmcall);
    let features = Features::detect();
    features.enable();
    // SAFETY: one vCPU; the early stacks are nobody else's.
    unsafe {
        tables::init_idt(features);
        tables::load(
            &percpu::BOOT,
            FaultStacks {
                fault: (&raw const EARLY_STACKS.fault).addr() as u64 + 8192,
                critical: (&raw const EARLY_STACKS.critical).addr() as u64 + 4096,
            },
        );
    }

    // 2. What the loader says.
    let info = match kind {
        k if k == EntryKind::Pvh as u32 => BootInfo::from_pvh(&LowMemory, data),
        _ => BootInfo::from_linux(&LowMemory, data),
    }
    .map_err(StartError::Boot)?;
    let in_ram = info.cmdline.option("shared_info") == Some("ram");

    // 3. A home for shared_info, before the first clock read and before any heap.
    let hvm = info.entry == EntryKind::Linux;
    if hvm {
        pic::mask_all(token);
    }
    let bar = if hvm {
        pci::platform_bar(token, &info.ram)
    } else {
        None
    };
    if hvm {
        unplug::unplug_all(token);
    }
    let mut carve = bar
        .or_else(|| Carve::from_hole(&info.claimed))
        .ok_or(StartError::NoHome)?;
    let home = carve.take().ok_or(StartError::NoHome)?;
    let mut kept = Kept::new();
    let keep = |kept: &mut Kept, extent: Extent| {
        kept.insert(extent).map_err(|e| StartError::Boot(e.into()))
    };
    let image_end = boot::image_end();
    let image = Extent::touching(boot::image_base(), image_end - boot::image_base())
        .ok_or(StartError::Tables)?;
    keep(&mut kept, image)?;
    keep(&mut kept, Extent::touching(0, 1).ok_or(StartError::Tables)?)?;
    for extent in info.modules.iter().filter_map(Module::extent) {
        keep(&mut kept, extent)?;
    }
    let first_home = if in_ram {
        let page = find(&info.ram, &kept, 1, 1 << 20)?;
        keep(&mut kept, page)?;
        page.start()
    } else {
        home
    };
    // The callback latches the 64-bit layout of shared_info: first of all.
    hypercall::set_callback_vector(token, tables::VECTOR_UPCALL)
        .map_err(|e| StartError::Xen("the callback vector", e))?;
    // With a device model this takes long: Xen has it drop all it has mapped of the domain, because
    // hvmloader had shared_info elsewhere (`ioreq_request_mapcache_invalidate` in Xen).
    let before = shared_info::rdtsc();
    // SAFETY: nobody reads the clock yet; the frame is carved, or RAM that is kept for it.
    unsafe {
        hypercall::map_shared_info(token, first_home)
            .map_err(|e| StartError::Xen("a place for shared_info", e))?;
        shared_info::set_home(first_home);
    }
    events::mask_all(token);
    if !shared_info::clock_works() {
        return Err(StartError::NoClock);
    }
    let map_us = shared_info::elapsed_since(before) / 1000;

    // 4. The console.
    let pv = Console::find(token);
    if let Some(pv) = pv {
        // SAFETY: Xen says that the ring is there; the boot tables map it, and ours will.
        unsafe { console::set(pv) };
    }

    // 5. Memory: a workspace, page tables, the park pages, the frame allocator, the heap.
    let low = find_low(&info.ram, &kept)?;
    keep(&mut kept, low.extent())?;
    let park_block = find(&info.ram, &kept, park::FRAMES, 1 << 20)?;
    keep(&mut kept, park_block)?;
    // SAFETY: the frames are RAM that nobody has, mapped by the boot tables.
    let park = unsafe { Park::create(park_block, low)? };
    park::set(park);
    let rsdp = info
        .rsdp
        .or_else(|| if hvm { acpi::scan_bios_area() } else { None });
    // SAFETY: the boot tables map all below 4 GiB; ACPI tables are not written by anyone.
    let apic_ids = unsafe { acpi::apic_ids(rsdp) };
    let vcpus = apic_ids.len().max(1) as u32;
    if vcpus as usize > percpu::MAX {
        return Err(StartError::TooManyVcpus(vcpus));
    }
    if vcpus > 1 && !features.x2apic {
        return Err(StartError::NoX2apic);
    }
    let ram_end = info.ram.end();
    let extent = find(&info.ram, &kept, Workspace::frames(vcpus, ram_end), 1 << 20)?;
    keep(&mut kept, extent)?;
    let workspace = Workspace::plan(extent, vcpus, ram_end).ok_or(StartError::Tables)?;
    let store = xenstore::find(token);
    let devices: ArrayVec<Gfn, 4> = [home]
        .into_iter()
        .chain(pv.map(|c| c.gfn))
        .chain(store.map(|s| s.gfn))
        .collect();
    let around = Surroundings {
        ram: &info.ram,
        devices: &devices,
        park_code: park.code(),
    };
    // SAFETY: the workspace is RAM that nobody has; the tables map this code, the stack and all
    // data where they are; the kept set has all that is in use.
    unsafe {
        let mut pool = TablePool::new(workspace.tables());
        let space = vm::build_space(&mut pool, &around, segments(), &workspace)?;
        core::arch::asm!("mov cr3, {}", in(reg) space.root().as_u64(), options(nostack));
        vm::init(&info.ram, &kept, None, space, pool, workspace);
        heap::init(workspace.heap());
        vm::prepare_vcpu(&workspace, 0);
        let cpu = vm::vcpu_data(&workspace, 0).ok_or(StartError::Tables)?;
        cpu.install(0);
        let stacks = vm::fault_stacks(&workspace, 0).ok_or(StartError::Tables)?;
        tables::load(cpu, stacks);
        let root = space.root().as_u64();
        smp::set_shared(smp::Shared {
            workspace,
            root,
            features,
        });
    }
    if in_ram {
        boot::set_home_in_ram(first_home);
    }
    let machine = boot::set_machine(Machine {
        entry: info.entry,
        generation: 1,
        ram: info.ram,
        cmdline: info.cmdline,
        modules: info.modules,
        rsdp,
        hvm,
        xen: xen.version,
        features,
        carve,
    });

    // 6. Events. The other vCPUs start while the app does.
    shared_info::set_vcpus(vcpus);
    smp::set_apic_ids(apic_ids.into_iter());
    let ports = Ports::bind(token, vcpus).map_err(|e| StartError::Xen("event channels", e))?;
    boot::set_ports(ports);
    sched::init(&workspace);
    if features.x2apic {
        apic::enable(token);
    }
    if let Some(ports) = boot::ports() {
        ports.enable_on(token, percpu::this());
    }
    if let Some(store) = store {
        // SAFETY: Xen says that the ring is there, and our tables map it; nobody has used it yet.
        unsafe { xenstore::adopt(token, store, 1, &xenstore::Before::Unknown) };
    }
    println!(
        "segue: boot generation=1 entry={} vcpus={vcpus} memory_mib={} xen={}.{} image={}",
        machine.entry.name(),
        mebibytes(&machine.ram),
        xen.version.0,
        xen.version.1,
        ImageName,
    );
    println!(
        "segue: shared_info home={} gfn={:?} map_us={map_us}",
        boot::home().name(),
        boot::home().gfn(),
    );
    boot::report_trust();
    // SAFETY: written by entry.S before any Rust code.
    let entry_tsc = unsafe { (&raw const segue_entry_tsc).read() };
    // SAFETY: the main stack is mapped, and nobody's yet; what is on the boot stack is done with.
    unsafe { crate::entry::on_main_stack(&workspace, entry_tsc) }
}

/// RAM in MiB, rounded: the legacy hole and what Xen keeps don't count.
pub(crate) fn mebibytes<const N: usize>(ram: &ExtentSet<N>) -> u64 {
    ram.frames().div_ceil(256)
}

/// `NAME-VERSION` of this image.
pub(crate) struct ImageName;

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match boot::ident() {
            Some(i) => write!(f, "{}-{}", i.name.as_str(), i.version.as_str()),
            None => f.write_str("unnamed-0"),
        }
    }
}

/// The segments of this image, from the linker script.
fn segments() -> impl Iterator<Item = (Extent, Perms)> {
    unsafe extern "C" {
        static __image_start: u8;
        static __rodata_start: u8;
        static __data_start: u8;
        static __image_end: u8;
    }
    let at = |symbol: *const u8| symbol.addr() as u64;
    let (text, rodata) = (at(&raw const __image_start), at(&raw const __rodata_start));
    let (data, end) = (at(&raw const __data_start), at(&raw const __image_end));
    [
        (text, rodata, Perms::Execute),
        (rodata, data, Perms::Read),
        (data, end, Perms::Write),
    ]
    .into_iter()
    .filter_map(|(from, to, perms)| Some((Extent::touching(from, to.checked_sub(from)?)?, perms)))
}

/// Frames in a row that are RAM below frame `limit` and not kept; not below 1 MiB.
fn find(ram: &ExtentSet<64>, kept: &Kept, frames: u64, limit: u64) -> Result<Extent, StartError> {
    let mut best = 0;
    let mut free = ram.clone();
    for extent in kept.iter() {
        free.remove(extent)
            .map_err(|e| StartError::Boot(e.into()))?;
    }
    for extent in free.iter() {
        let start = extent.start().as_u64().max(0x100);
        let end = extent.end().min(limit);
        best = best.max(end.saturating_sub(start));
        if start + frames <= end
            && let Some(found) = Gfn::new(start).and_then(|s| Extent::new(s, frames))
        {
            return Ok(found);
        }
    }
    Err(StartError::NoMemory {
        need: frames * 4,
        have: best * 4,
    })
}

/// A frame below 1 MiB that is RAM and not kept, for vCPUs that start in real mode.
fn find_low(ram: &ExtentSet<64>, kept: &Kept) -> Result<Gfn, StartError> {
    (1..0x90)
        .rev()
        .filter_map(Gfn::new)
        .find(|g| ram.contains(g.extent()) && !kept.overlaps(g.extent()))
        .ok_or(StartError::NoLowPage)
}
