//! The other vCPUs: started by INIT-SIPI at first boot, while the app already runs, released from
//! the park pages after a switch; then they run threads (`task/sched.rs`).

use crate::abi::errno::Errno;
use crate::cpu::percpu;
use crate::cpu::{Features, apic, tables};
use crate::memory::workspace::Workspace;
use crate::memory::{Gfn, vm};
use crate::replace::park;
use crate::task::{self, sched};
use crate::xen::console::{emergency_println, println};
use crate::xen::hypercall;
use crate::xen::{Committed, shared_info};
use arrayvec::ArrayVec;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, Ordering};
use hermit_sync::OnceCell;
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::FsBase;

/// Offset of the parameters in the SIPI page.
pub const SIPI_PARAMS: usize = 0xfc0;
/// CR0: PG, WP, NE, ET, MP, PE.
pub const CR0_BOOT: u32 = 0x8001_0033;
/// CR4: OSXMMEXCPT, OSFXSR, PAE.
pub const CR4_BOOT: u32 = 0x620;
/// EFER: NXE, LME.
pub const EFER_BOOT: u32 = 0x900;

/// What a vCPU that starts in the SIPI page is given.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct SipiParams {
    /// Root of the page tables, below 4 GiB; they map the page executable.
    pub cr3: u32,
    /// Where to go in 64-bit mode.
    pub entry: u64,
    /// RDI there.
    pub arg: u64,
    /// RSP there.
    pub stack: u64,
}

core::arch::global_asm!(include_str!("sipi.S"), options(att_syntax),
    params = const SIPI_PARAMS,
    params_cr3 = const offset_of!(SipiParams, cr3),
    params_entry = const offset_of!(SipiParams, entry),
    params_arg = const offset_of!(SipiParams, arg),
    params_stack = const offset_of!(SipiParams, stack),
    cr0_boot = const CR0_BOOT,
    cr4_boot = const CR4_BOOT,
    efer_boot = const EFER_BOOT,
);

unsafe extern "C" {
    static __sipi_start: u8;
    static __sipi_end: u8;
    static segue_boot_tables: u8;
}

/// Writes the SIPI page.
///
/// # Safety
/// The frame is mapped writable, below 1 MiB, and no vCPU starts in it now.
pub unsafe fn write_sipi_page(page: Gfn, params: SipiParams) {
    let to = page.addr().as_ptr::<u8>();
    // SAFETY: the caller's promise; the linker script asserts that the code ends before the
    // parameters.
    unsafe {
        let from = &raw const __sipi_start;
        let len = (&raw const __sipi_end).addr() - from.addr();
        core::ptr::copy_nonoverlapping(from, to, len);
        to.add(SIPI_PARAMS)
            .cast::<SipiParams>()
            .write_unaligned(params);
    }
}

/// What the vCPUs share; set before the second one runs.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// This image's workspace.
    pub workspace: Workspace,
    /// Root of its page tables.
    pub root: u64,
    /// What to enable on each.
    pub features: Features,
}

static SHARED: OnceCell<Shared> = OnceCell::new();
/// vCPUs that run this image.
static ONLINE: AtomicU32 = AtomicU32::new(1);

/// Sets what the vCPUs share.
pub fn set_shared(shared: Shared) {
    let _ = SHARED.set(shared);
}

/// What the vCPUs share.
pub fn shared() -> Option<&'static Shared> {
    SHARED.get()
}

/// Number of vCPUs that run this image by now; see [`vcpus`].
pub fn online() -> u32 {
    ONLINE.load(Ordering::Acquire)
}

/// Number of vCPUs that are this image's: after the first boot some may still be starting. On trial
/// there is one.
pub fn vcpus() -> u32 {
    shared().map_or(1, |shared| shared.workspace.vcpus())
}

/// The thread that starts the other vCPUs.
static STARTER: OnceCell<task::Tid> = OnceCell::new();

/// Waits until all vCPUs run, and who started them is gone. If one does not come up, the domain
/// ends. False where the caller can't wait, with interrupts off, and they don't run yet.
pub fn wait_for_all() -> bool {
    if let Some(starter) = STARTER.get() {
        let _ = task::join(*starter);
    }
    online() >= vcpus()
}

/// The local APICs' ids, by vCPU.
static APIC_IDS: OnceCell<ArrayVec<u32, { percpu::MAX }>> = OnceCell::new();

/// Sets the ids of all local APICs, by vCPU.
pub(crate) fn set_apic_ids(ids: impl Iterator<Item = u32>) {
    let _ = APIC_IDS.set(ids.take(percpu::MAX).collect());
}

/// The id of a vCPU's local APIC, as ACPI or the image before had it.
pub fn apic_id(vcpu: u32) -> Option<u32> {
    APIC_IDS.get()?.get(vcpu as usize).copied()
}

/// Of how many vCPUs a trial is told that it will have; 0: there is none.
static PROMISED: AtomicU32 = AtomicU32::new(0);

/// The image is on trial, on one vCPU, and gets so many with the commit.
pub(crate) fn promise(vcpus: u32) {
    PROMISED.store(vcpus, Ordering::Release);
}

/// On how many vCPUs threads run that are started now; on trial: after the commit.
pub(crate) fn parallelism() -> u32 {
    if crate::replace::adopt::on_trial() {
        PROMISED.load(Ordering::Acquire).max(1)
    } else {
        vcpus()
    }
}

/// Why a vCPU could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StartError {
    /// The one.
    pub vcpu: u32,
}

/// How long a vCPU may take to start, in ns, in one attempt after the other. What Xen was about to
/// deliver to one that is reset while it runs, it delivers after its start, which that does not
/// survive: the second attempt has nothing of that.
const START_LIMITS_NS: [u64; 3] = [300_000_000, 700_000_000, 2_000_000_000];
/// How long a reset takes at most, in ns.
const RESET_NS: u64 = 10_000_000;

/// How long who starts the others [in a thread](start_others_beside) sleeps between two looks, in
/// ns.
const LOOK_NS: u64 = 500_000;

/// Has a thread start the other vCPUs while the app runs: each takes Xen, and this vCPU's patience,
/// milliseconds. If one does not come up the domain ends. `entry_tsc`: when this image got control.
pub(crate) fn start_others_beside(token: Committed, entry_tsc: u64) {
    let Some(park) = park::get().filter(|_| vcpus() > 1) else {
        return;
    };
    let options = task::Options {
        priority: task::Priority::High,
        // The one that runs already.
        vcpu: Some(percpu::this().vcpu()),
        ..task::Options::default()
    };
    fn start_all(token: Committed, page: Gfn, entry_tsc: u64, pause: impl Fn()) {
        // SAFETY: the page is kept for this, and mapped writable; all else is set at the start, and
        // both callers stay on this vCPU.
        if let Err(StartError { vcpu }) = unsafe { start_others(token, page, pause) } {
            println!("segue: start failed: vCPU {vcpu} did not start");
            crate::end::end(hypercall::ShutdownReason::Poweroff);
        }
        println!(
            "segue: vcpus online={} start_us={}",
            online(),
            shared_info::elapsed_since(entry_tsc) / 1000
        );
    }
    let page = park.sipi();
    let thread = move || {
        start_all(token, page, entry_tsc, || {
            let _ = task::sleep_until(shared_info::now() + LOOK_NS);
        });
    };
    // The thread preempts this one as soon as it is there.
    let starter = interrupts::without_interrupts(|| {
        let starter = task::spawn_with("vcpus", options, thread);
        starter.map(|tid| STARTER.get_or_init(|| tid))
    });
    if starter.is_err() {
        // There is no memory for a thread: at once, then, on this one, which runs alone so far.
        interrupts::without_interrupts(|| {
            start_all(token, page, entry_tsc, core::hint::spin_loop);
        });
    }
}

/// The vCPU that is being started, until it is decided whether it has come up.
static STARTING: AtomicU32 = AtomicU32::new(NOBODY);
const NOBODY: u32 = u32::MAX;

/// Decides it, by the vCPU itself: it has, or by who starts it: it has not, and may be reset. False
/// if the other one was first: a vCPU that runs threads is never reset.
fn decide(vcpu: u32) -> bool {
    let decided = STARTING.compare_exchange(vcpu, NOBODY, Ordering::AcqRel, Ordering::Acquire);
    decided.is_ok()
}

/// Starts all other vCPUs, one after the other. `pause` is how to wait for one.
///
/// # Errors
/// One did not come up in three seconds.
///
/// # Safety
/// `page` is a frame below 1 MiB that is mapped writable and nobody else's; the workspace and
/// [`set_shared`] are done; the calling thread stays on this vCPU.
pub unsafe fn start_others(
    token: Committed,
    page: Gfn,
    pause: impl Fn(),
) -> Result<(), StartError> {
    let Some(shared) = shared() else {
        return Ok(());
    };
    // SAFETY: nobody is on these tables any more, or they are filled already.
    unsafe { fill_boot_tables() };
    for vcpu in 0..vcpus() {
        if vcpu == percpu::this().vcpu() {
            continue;
        }
        let (Some(area), Some(apic_id)) = (shared.workspace.vcpu(vcpu), apic_id(vcpu)) else {
            return Err(StartError { vcpu });
        };
        let before = online();
        // Whether it has come.
        let start = |limit_ns| {
            apic::init(token, apic_id);
            if limit_ns != START_LIMITS_NS[0] {
                let reset = shared_info::now() + RESET_NS;
                while shared_info::now() < reset {
                    pause();
                }
                emergency_println!("segue: vCPU {vcpu} is started again");
            }
            // SAFETY: the vCPU does not run; its data is nobody's; the boot tables map all below
            // 4 GiB, and the image is there (or the Linux and PVH entries could not have run).
            unsafe {
                vm::prepare_vcpu(&shared.workspace, vcpu);
                write_sipi_page(
                    page,
                    SipiParams {
                        cr3: (&raw const segue_boot_tables).addr() as u32,
                        entry: started as *const () as u64,
                        arg: u64::from(vcpu),
                        stack: area.stack.end_addr() - 8,
                    },
                );
            }
            STARTING.store(vcpu, Ordering::Release);
            apic::startup(token, apic_id, page.as_u64() as u8);
            let deadline = shared_info::now() + limit_ns;
            while online() == before {
                if shared_info::now() >= deadline && decide(vcpu) {
                    return false;
                }
                pause();
            }
            true
        };
        if !START_LIMITS_NS.into_iter().any(start) {
            return Err(StartError { vcpu });
        }
    }
    Ok(())
}

/// Fills the boot tables as `boot/entry.S` does, for an image that was not entered there: the first
/// 4 GiB in pages of 2 MiB.
///
/// # Safety
/// No vCPU is on them, unless they are filled.
unsafe fn fill_boot_tables() {
    const PRESENT_WRITABLE: u64 = 0x3;
    const LARGE: u64 = 0x80;
    let tables = (&raw const segue_boot_tables).cast::<u64>().cast_mut();
    let base = tables.addr() as u64;
    // SAFETY: six frames of this image's, zeroed at its start.
    unsafe {
        tables.write((base + 0x1000) | PRESENT_WRITABLE);
        for n in 0..4 {
            let directory = base + 0x2000 + n * 0x1000;
            tables
                .add(512 + n as usize)
                .write(directory | PRESENT_WRITABLE);
        }
        for n in 0..2048u64 {
            let page = n << 21 | PRESENT_WRITABLE | LARGE;
            tables.add(1024 + n as usize).write(page);
        }
    }
}

/// Resets every other vCPU, whatever it does, for good: [`start_others`] of another image starts
/// them again.
pub fn stop_others(token: Committed) {
    let Some(shared) = shared() else { return };
    for vcpu in 0..shared.workspace.vcpus() {
        if vcpu == percpu::this().vcpu() {
            continue;
        }
        if let Some(apic_id) = apic_id(vcpu) {
            apic::init(token, apic_id);
        }
    }
}

/// A vCPU comes here from the SIPI page, on the boot tables and its own stack.
extern "C" fn started(vcpu: u64) -> ! {
    let Some(shared) = SHARED.get() else { halt() };
    // SAFETY: the tables were built for this image, map all this code and the stack as they are.
    unsafe {
        core::arch::asm!("mov cr3, {}", in(reg) shared.root, options(nostack));
    }
    // SAFETY: `start_others` prepared this vCPU's data.
    unsafe { come_up(shared, vcpu as u32) };
    shared.features.enable();
    let Some(token) = Committed::get() else {
        halt()
    };
    apic::enable(token);
    if let Some(ports) = crate::boot::ports() {
        ports.enable_on(token, percpu::this());
    }
    if !decide(vcpu as u32) {
        // Too late: it is started again.
        halt()
    }
    ONLINE.fetch_add(1, Ordering::AcqRel);
    sched::run(vcpu as u32)
}

/// A vCPU comes here from the park pages after the commit: on this image's tables and its own
/// stack, the features enabled by the image before, the park interrupt still in service (I12).
pub(crate) extern "C" fn released(vcpu: u64) -> ! {
    let Some(shared) = SHARED.get() else { halt() };
    // SAFETY: the commit prepared this vCPU's data.
    unsafe { come_up(shared, vcpu as u32) };
    if let Some(ports) = crate::boot::ports() {
        ports.adopt_on(percpu::this());
    }
    percpu::this().adopt_apic_id(apic_id(vcpu as u32));
    let Some(token) = Committed::get() else {
        halt()
    };
    ONLINE.fetch_add(1, Ordering::AcqRel);
    apic::eoi(token);
    sched::run(vcpu as u32)
}

/// GS, descriptor tables.
///
/// # Safety
/// Called once on vCPU `vcpu`, whose data is prepared; interrupts are off.
unsafe fn come_up(shared: &Shared, vcpu: u32) {
    // SAFETY: the caller's promise.
    unsafe {
        reset_registers();
        let Some(cpu) = vm::vcpu_data(&shared.workspace, vcpu) else {
            halt()
        };
        cpu.install(vcpu);
        let Some(stacks) = vm::fault_stacks(&shared.workspace, vcpu) else {
            halt()
        };
        tables::load(cpu, stacks);
    }
}

/// Gives FS and the floating-point control registers the values that code starts with (System V
/// ABI, x86-64 supplement §3.4.1); another image may have left others.
pub(crate) fn reset_registers() {
    FsBase::write(VirtAddr::zero());
    let mxcsr = 0x1f80u32;
    // SAFETY: the ABI's initial values; nothing here has set others.
    unsafe {
        core::arch::asm!("fninit", "ldmxcsr [{}]", in(reg) &raw const mxcsr, options(nostack));
    }
}

/// Stops this vCPU for good.
fn halt() -> ! {
    loop {
        x86_64::instructions::interrupts::disable();
        x86_64::instructions::hlt();
    }
}

/// vCPUs that have a job.
static JOBS: AtomicU32 = AtomicU32::new(0);

/// A job on a vCPU ([`run_on`]). It goes on if this is dropped.
#[derive(Debug)]
pub struct Job(task::Tid);

impl Job {
    /// Waits until the job has ended and its memory is free again.
    pub fn join(self) {
        // A job that joins itself has no end to wait for.
        let _ = task::join(self.0);
    }
}

/// Has a vCPU run `job(argument)`, in a thread that stays there.
///
/// # Errors
/// See [`RunError`].
pub fn run_on(vcpu: u32, job: fn(u64), argument: u64) -> Result<Job, RunError> {
    if vcpu >= vcpus() {
        return Err(RunError::NoVcpu);
    }
    let bit = 1 << vcpu;
    if JOBS.fetch_or(bit, Ordering::AcqRel) & bit != 0 {
        return Err(RunError::Busy);
    }
    let options = task::Options {
        vcpu: Some(vcpu),
        ..task::Options::default()
    };
    let run = move || {
        job(argument);
        JOBS.fetch_and(!bit, Ordering::AcqRel);
    };
    task::spawn_with("job", options, run).map(Job).map_err(|e| {
        JOBS.fetch_and(!bit, Ordering::AcqRel);
        match e {
            Errno::ENOMEM => RunError::NoMemory,
            _ => RunError::NoVcpu,
        }
    })
}

/// Why a job was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RunError {
    /// It is not there (on trial: none is).
    NoVcpu,
    /// It has a job.
    Busy,
    /// There is no memory for a thread.
    NoMemory,
}

/// Interrupts a vCPU, or wakes it.
pub(crate) fn wake(token: Committed, vcpu: u32) {
    if let Some((_, port)) = crate::boot::ports().and_then(|p| p.vcpus.get(vcpu as usize)) {
        let _ = hypercall::send(token, *port);
    }
}
