//! The park pages: where vCPUs are while the domain belongs to neither image.
//!
//! One block of frames, made at first boot and passed on for ever, mapped at its address in the
//! tables of every image. The code page is copied anew by the image that starts a switch; the data
//! layout is part of the handover ABI (I12), because the new image releases the vCPUs through it.
//!
//! | frames | what | in the trial's tables |
//! |---|---|---|
//! | code | `park.S` | execute |
//! | tables | GDT, IDT, TSSs, the park pages' own CR3 | read |
//! | stacks | a small one for each vCPU | write (the processor pushes there) |
//! | control | who is where, the verdict, the old image's CPU state | not mapped |
//! | baton | console lines and times of the trial | write |
//! | pool | the park pages' own page tables | not mapped |

use crate::cpu::percpu::{self, MAX};
use crate::cpu::{apic, smp, tables};
use crate::memory::paging::{AddressSpace, NoTableFrame, Perms};
use crate::memory::vm::TablePool;
use crate::memory::{Extent, Gfn, PAGE_SIZE, vm};
use crate::replace::protocol::{self, place, release, taken, verdict};
use crate::xen::Committed;
use crate::xen::console::emergency_println;
use crate::xen::hypercall::{self, Port, ShutdownReason};
use crate::xen::shared_info;
use core::mem::offset_of;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use hermit_sync::OnceCell;
use x86_64::VirtAddr;

const CODE: u64 = 0;
const TABLES: u64 = 1;
const STACKS: u64 = 3;
const CONTROL: u64 = 5;
const BATON: u64 = 6;
const BATON_FRAMES: u64 = 2;
const POOL: u64 = 8;
const POOL_FRAMES: u64 = 10;
/// Frames of the block.
pub const FRAMES: u64 = POOL + POOL_FRAMES;

/// Offsets of the code's entries, behind 32 gates of 16 bytes.
const ENTRY_PARK: u64 = 512;
const ENTRY_TRY: u64 = 528;
const ENTRY_RESET: u64 = 544;

const SEL_CODE: u16 = 0x08;
const SEL_DATA: u16 = 0x10;
const SEL_TSS: u16 = 0x18;

const STACK_BYTES: u64 = 256;
const SLOT_SHIFT: u32 = 6;

/// Bits of [`Control::test`]: faults that tests inject into the take-back.
pub mod test {
    /// The watcher does not send the NMI, so that INIT has to do it.
    pub const NO_NMI: u32 = 1;

    /// This vCPU does not park.
    #[must_use]
    pub const fn deaf(vcpu: u32) -> u32 {
        (vcpu + 1) << 8
    }
}

/// `sched_poll` (public/sched.h).
#[repr(C)]
#[derive(Debug)]
struct SchedPoll {
    ports: u64,
    nr_ports: u32,
    timeout: u64,
}

/// One vCPU's place.
#[repr(C)]
#[derive(Debug)]
pub struct Slot {
    state: AtomicU32,
    /// TSS selector: which vCPU this is.
    selector: u32,
    rsp: u64,
    cr3: u64,
    stack: u64,
    new_stack: u64,
    poll: SchedPoll,
}

const _: () = assert!(size_of::<Slot>() == 64);

/// What the park code works on. Part of the handover ABI.
#[repr(C)]
#[derive(Debug)]
pub struct Control {
    magic: u64,
    version: u32,
    vcpus: u32,
    /// See [`verdict`].
    pub verdict: AtomicU32,
    taken: AtomicU32,
    /// See [`release`].
    pub release: AtomicU32,
    trial_vcpu: u32,
    /// TSS selector of the vCPU that watches; 0 for none.
    watcher: u32,
    /// The port that parked vCPUs poll on; `SchedPoll::ports` points here.
    poll_port: u32,
    use_vmmcall: u32,
    test: u32,
    trial_apic: u32,
    sipi_page: u32,
    crash_reason: u32,
    pad: u32,
    spin_tsc: u64,
    grace_tsc: u64,
    budget_tsc: u64,
    deadline_tsc: AtomicU64,
    new_entry: AtomicU64,
    new_cr3: AtomicU64,
    vector: AtomicU64,
    error: AtomicU64,
    rip: AtomicU64,
    cr2: AtomicU64,
    fault_rsp: AtomicU64,
    cr0: u64,
    cr4: u64,
    efer: u64,
    xcr0: u64,
    pat: u64,
    fs: u64,
    gs: u64,
    slots: [Slot; MAX],
}

const _: () = assert!(size_of::<Control>() as u64 <= PAGE_SIZE);

impl Control {
    /// Keeps what the calling vCPU has in its registers, to be there again when it is taken back.
    fn keep_state(&mut self) {
        use x86_64::registers::model_specific::{Efer, FsBase, GsBase, Msr};
        self.trial_apic = percpu::this().apic_id();
        self.efer = Efer::read_raw();
        self.xcr0 = smp::shared().map_or(0, |s| s.features.xcr0);
        // SAFETY: IA32_PAT exists on every x86-64.
        self.pat = unsafe { Msr::new(0x277).read() };
        self.fs = FsBase::read().as_u64();
        self.gs = GsBase::read().as_u64();
    }
}

const MAGIC: u64 = u64::from_le_bytes(*b"SEGUEPRK");
/// Version of the park pages' layout.
pub const VERSION: u32 = 2;

/// What the park code needs on page tables that don't map the control page.
#[repr(C)]
#[derive(Debug)]
struct ParkTables {
    gdt: [u64; 3 + 2 * MAX],
    idt: [[u64; 2]; 32],
    tss: [[u32; 26]; MAX],
    gdtr: [u16; 5],
    pad0: [u16; 3],
    idtr: [u16; 5],
    pad1: [u16; 3],
    cr3: u64,
}

const _: () = assert!(size_of::<ParkTables>() as u64 <= (STACKS - TABLES) * PAGE_SIZE);

core::arch::global_asm!(include_str!("park.S"), options(att_syntax),
    tables = const TABLES * PAGE_SIZE,
    control = const CONTROL * PAGE_SIZE,
    sel_code = const SEL_CODE,
    sel_data = const SEL_DATA,
    sel_tss = const SEL_TSS,
    slot_shift = const SLOT_SHIFT,
    x2apic_icr = const apic::X2APIC_ICR,
    state_parked = const place::PARKED,
    verdict_pending = const verdict::PENDING,
    verdict_fault = const verdict::FAULT,
    verdict_hung = const verdict::HUNG,
    release_commit = const release::COMMIT,
    fault_no_nmi = const test::NO_NMI,
    taken_open = const taken::OPEN,
    taken_ours = const taken::OURS,
    taken_init = const taken::INIT,
    t_gdt = const offset_of!(ParkTables, gdt),
    t_gdtr = const offset_of!(ParkTables, gdtr),
    t_idtr = const offset_of!(ParkTables, idtr),
    t_cr3 = const offset_of!(ParkTables, cr3),
    s_state = const offset_of!(Slot, state),
    s_selector = const offset_of!(Slot, selector),
    s_rsp = const offset_of!(Slot, rsp),
    s_cr3 = const offset_of!(Slot, cr3),
    s_stack = const offset_of!(Slot, stack),
    s_new_stack = const offset_of!(Slot, new_stack),
    s_poll = const offset_of!(Slot, poll),
    c_slots = const offset_of!(Control, slots),
    c_verdict = const offset_of!(Control, verdict),
    c_taken = const offset_of!(Control, taken),
    c_release = const offset_of!(Control, release),
    c_trial_vcpu = const offset_of!(Control, trial_vcpu),
    c_watcher = const offset_of!(Control, watcher),
    c_use_vmmcall = const offset_of!(Control, use_vmmcall),
    c_test = const offset_of!(Control, test),
    c_trial_apic = const offset_of!(Control, trial_apic),
    c_sipi_page = const offset_of!(Control, sipi_page),
    c_crash_reason = const offset_of!(Control, crash_reason),
    c_spin_tsc = const offset_of!(Control, spin_tsc),
    c_grace_tsc = const offset_of!(Control, grace_tsc),
    c_budget_tsc = const offset_of!(Control, budget_tsc),
    c_deadline_tsc = const offset_of!(Control, deadline_tsc),
    c_new_entry = const offset_of!(Control, new_entry),
    c_new_cr3 = const offset_of!(Control, new_cr3),
    c_vector = const offset_of!(Control, vector),
    c_error = const offset_of!(Control, error),
    c_rip = const offset_of!(Control, rip),
    c_cr2 = const offset_of!(Control, cr2),
    c_fault_rsp = const offset_of!(Control, fault_rsp),
    c_cr0 = const offset_of!(Control, cr0),
    c_cr4 = const offset_of!(Control, cr4),
    c_efer = const offset_of!(Control, efer),
    c_xcr0 = const offset_of!(Control, xcr0),
    c_pat = const offset_of!(Control, pat),
    c_fs = const offset_of!(Control, fs),
    c_gs = const offset_of!(Control, gs),
);

unsafe extern "C" {
    static __park_start: u8;
    static __park_end: u8;
}

/// Longest console text and reason of a trial, in bytes.
const TEXT: usize = (BATON_FRAMES * PAGE_SIZE) as usize - 640;
const REASON: usize = 400;

/// What the vCPU that switches carries from image to image: times and the trial's words. Writable
/// in the trial, so nothing in it is believed by the old image but text.
#[repr(C)]
#[derive(Debug)]
pub struct Baton {
    /// System time in ns at which each part ended; the first is the blackout's begin.
    pub times: [AtomicU64; Phase::COUNT],
    /// Hypercalls, exits and p2m updates of the switching vCPU in the blackout so far.
    pub counters: [AtomicU64; 3],
    /// Highest system time told, in ns.
    pub clock: AtomicU64,
    reason_len: AtomicU32,
    text_len: AtomicU32,
    reason: [u8; REASON],
    text: [u8; TEXT],
    /// System time in ns at which the app had said what it hands over; an image that knows nothing
    /// of it leaves what was there.
    pub stopped: AtomicU64,
}

const _: () = assert!(size_of::<Baton>() as u64 <= BATON_FRAMES * PAGE_SIZE);

impl Baton {
    /// A switch without a quiesce begins, at `now` (system time, in ns).
    pub fn begin_alone(&self, now: u64, last_told: u64) {
        for phase in [Phase::Call, Phase::Begin, Phase::Quiesce, Phase::Relocate] {
            self.times[phase as usize].store(now, Ordering::Relaxed);
        }
        for counter in &self.counters {
            counter.store(0, Ordering::Relaxed);
        }
        self.clock.store(last_told, Ordering::Relaxed);
    }
}

/// The blackout's parts, in order; each named by what has just ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(usize)]
pub enum Phase {
    /// The blackout begins.
    Begin,
    /// All other vCPUs are parked.
    Quiesce,
    /// shared_info is where it stays.
    Relocate,
    /// The new image's first instruction.
    Jump,
    /// The new image runs.
    Start,
    /// The app has its state.
    Restore,
    /// The new image has the domain.
    Commit,
    /// Devices and vCPUs are taken over: the blackout ends.
    Adopt,
    /// Before all of them: somebody has asked for the switch.
    Call,
}

impl Phase {
    /// Number of phases.
    pub const COUNT: usize = 9;
}

/// The block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Park {
    block: Extent,
    sipi: Gfn,
}

static PARK: OnceCell<Park> = OnceCell::new();

/// The park pages of this domain.
pub fn get() -> Option<&'static Park> {
    PARK.get()
}

/// Remembers them.
pub fn set(park: Park) {
    let _ = PARK.set(park);
}

impl Park {
    /// Makes the park pages, once in a domain's life. `sipi` is a frame below 1 MiB.
    ///
    /// # Errors
    /// The pool is too small.
    ///
    /// # Safety
    /// The frames are mapped writable, and nobody's.
    pub unsafe fn create(block: Extent, sipi: Gfn) -> Result<Self, NoTableFrame> {
        let park = Self { block, sipi };
        // SAFETY: the caller's promise.
        unsafe {
            block
                .addr()
                .as_ptr::<u8>()
                .write_bytes(0, block.bytes() as usize);
            let mut pool = TablePool::new(park.part(POOL, POOL_FRAMES));
            let space = AddressSpace::new(&mut pool)?;
            space.map(&mut pool, block, Perms::Write)?;
            space.map(&mut pool, park.code(), Perms::Execute)?;
            space.map(&mut pool, sipi.extent(), Perms::Execute)?;
            (*park.tables()).cr3 = space.root().as_u64();
        }
        Ok(park)
    }

    /// The park pages another image made; `None` if the block has another size.
    #[must_use]
    pub fn adopt(block: Extent, sipi: Gfn) -> Option<Self> {
        (block.frames() == FRAMES && sipi.as_u64() < 0x100).then_some(Self { block, sipi })
    }

    fn part(&self, offset: u64, frames: u64) -> Extent {
        self.block.part(offset, frames).unwrap_or(self.block)
    }

    /// All of it.
    #[must_use]
    pub const fn block(&self) -> Extent {
        self.block
    }

    /// The page that vCPUs start in after INIT.
    #[must_use]
    pub const fn sipi(&self) -> Gfn {
        self.sipi
    }

    /// The code page.
    #[must_use]
    pub fn code(&self) -> Extent {
        self.part(CODE, 1)
    }

    /// What a trial sees of the block.
    pub fn trial_view(&self) -> impl Iterator<Item = (Extent, Perms)> {
        [
            (self.code(), Perms::Execute),
            (self.part(TABLES, STACKS - TABLES), Perms::Read),
            (self.part(STACKS, CONTROL - STACKS), Perms::Write),
            (self.part(BATON, BATON_FRAMES), Perms::Write),
        ]
        .into_iter()
    }

    fn tables(&self) -> *mut ParkTables {
        self.part(TABLES, 1).addr().as_ptr()
    }

    fn control_ptr(&self) -> *mut Control {
        self.part(CONTROL, 1).addr().as_ptr()
    }

    /// The control page. Not in a trial: it isn't mapped there.
    pub fn control(&self, _: Committed) -> &Control {
        // SAFETY: mapped in every image's tables; what others write is atomic, or written only
        // while nobody is parked.
        unsafe { &*self.control_ptr() }
    }

    /// The baton.
    #[must_use]
    pub fn baton(&self) -> &Baton {
        // SAFETY: mapped in every image's tables and in the trial's; the numbers are atomics, the
        // texts are reached by pointer only.
        unsafe { &*self.baton_ptr() }
    }

    fn baton_ptr(&self) -> *mut Baton {
        self.part(BATON, 1).addr().as_ptr()
    }

    fn entry(&self, offset: u64) -> u64 {
        self.code().addr().as_u64() + offset
    }

    /// Writes this image's code and fresh data into the park pages, for a switch by the calling
    /// vCPU. Nobody is parked.
    ///
    /// # Errors
    /// A vCPU has not come back from the last switch, or there is no page table.
    pub fn arm(&self, _: Committed, plan: Plan) -> Result<(), ArmError> {
        let cpu = percpu::this();
        // SAFETY: the control page is mapped; states are atomics.
        let busy = unsafe { &(*self.control_ptr()).slots }
            .iter()
            .any(|s| !protocol::is_elsewhere(&s.state));
        if busy {
            return Err(ArmError::Busy);
        }
        vm::map(self.code(), Perms::Write).map_err(|_| ArmError::NoTable)?;
        // SAFETY: nobody runs park code or uses the park tables: nobody is parked, and the only
        // trial there can be is started by this vCPU. The linker script asserts the code's size.
        unsafe {
            let from = &raw const __park_start;
            let len = (&raw const __park_end).addr() - from.addr();
            let code = self.code().addr().as_ptr::<u8>();
            code.write_bytes(0xcc, PAGE_SIZE as usize);
            core::ptr::copy_nonoverlapping(from, code, len.min(PAGE_SIZE as usize));
            self.write_tables();
            self.write_control(cpu.vcpu(), plan);
            smp::write_sipi_page(
                self.sipi,
                smp::SipiParams {
                    cr3: (*self.tables()).cr3 as u32,
                    entry: self.entry(ENTRY_RESET),
                    arg: self.control_ptr().addr() as u64,
                    stack: self.stack_top(cpu.vcpu()),
                },
            );
            let baton = self.baton_ptr();
            (*baton).reason_len.store(0, Ordering::Relaxed);
            (*baton).text_len.store(0, Ordering::Relaxed);
        }
        vm::map(self.code(), Perms::Execute).map_err(|_| ArmError::NoTable)
    }

    fn stack_top(&self, vcpu: u32) -> u64 {
        self.part(STACKS, 1).addr().as_u64() + (u64::from(vcpu) + 1) * STACK_BYTES
    }

    /// GDT, IDT and TSSs.
    ///
    /// # Safety
    /// No vCPU has them loaded.
    unsafe fn write_tables(&self) {
        // SAFETY: mapped writable, and the caller's promise makes this the only reference.
        let t = unsafe { &mut *self.tables() };
        t.gdt = [0; 3 + 2 * MAX];
        t.gdt[1] = 0x00af_9b00_0000_ffff; // 64-bit code, accessed
        t.gdt[2] = 0x00cf_9300_0000_ffff; // data, accessed
        for vcpu in 0..MAX {
            t.tss[vcpu] = [0; 26];
            let top = self.stack_top(vcpu as u32);
            t.tss[vcpu][9] = top as u32; // IST1
            t.tss[vcpu][10] = (top >> 32) as u32;
            t.tss[vcpu][25] = 104 << 16; // no I/O bitmap
            let base = (&raw const t.tss[vcpu]).addr() as u64;
            t.gdt[3 + 2 * vcpu] =
                103 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
            t.gdt[4 + 2 * vcpu] = base >> 32;
        }
        for (gate, vector) in t.idt.iter_mut().zip(0u64..) {
            let entry = self.entry(vector * 16);
            // Interrupt gate, present, IST1.
            gate[0] = entry & 0xffff
                | u64::from(SEL_CODE) << 16
                | 1 << 32
                | 0x8e << 40
                | (entry >> 16 & 0xffff) << 48;
            gate[1] = entry >> 32;
        }
        t.gdtr = pseudo_descriptor((&raw const t.gdt).addr(), size_of_val(&t.gdt));
        t.idtr = pseudo_descriptor((&raw const t.idt).addr(), size_of_val(&t.idt));
    }

    /// # Safety
    /// Nobody is parked and no trial runs.
    unsafe fn write_control(&self, trial_vcpu: u32, plan: Plan) {
        let selector = |vcpu: u32| u32::from(SEL_TSS) + vcpu * 16;
        let watcher = (0..plan.vcpus).find(|v| *v != trial_vcpu);
        // SAFETY: mapped writable; the caller's promise makes this the only reference.
        let c = unsafe { &mut *self.control_ptr() };
        c.magic = MAGIC;
        c.version = VERSION;
        c.vcpus = plan.vcpus;
        *c.verdict.get_mut() = verdict::PENDING;
        *c.taken.get_mut() = 0;
        // Nobody parks before the quiesce: a park interrupt from before comes too late.
        *c.release.get_mut() = release::RESUME;
        for field in [
            &mut c.vector,
            &mut c.error,
            &mut c.rip,
            &mut c.cr2,
            &mut c.fault_rsp,
        ] {
            *field.get_mut() = 0;
        }
        c.trial_vcpu = trial_vcpu;
        c.watcher = watcher.map_or(0, selector);
        c.poll_port = plan.port.0;
        c.use_vmmcall = u32::from(hypercall::uses_vmmcall());
        c.test = plan.test;
        c.sipi_page = self.sipi.as_u64() as u32;
        c.crash_reason = ShutdownReason::Crash as u32;
        c.spin_tsc = shared_info::cycles(SPIN_NS);
        c.grace_tsc = shared_info::cycles(NMI_GRACE_NS);
        c.budget_tsc = shared_info::cycles(plan.limit_ns);
        *c.deadline_tsc.get_mut() = 0;
        c.keep_state();
        let ports = (&raw const c.poll_port).addr() as u64;
        for (slot, vcpu) in c.slots.iter_mut().zip(0u32..) {
            slot.selector = selector(vcpu);
            slot.stack = self.stack_top(vcpu);
            // The watcher wakes by itself shortly after the trial's time; the others don't.
            let timeout = if Some(vcpu) == watcher {
                plan.watch_ns
            } else {
                0
            };
            slot.poll = SchedPoll {
                ports,
                nr_ports: 1,
                timeout,
            };
        }
    }

    /// Gets the park pages, armed once before, ready for an image that is started after a crash: the
    /// other vCPUs are reset, and `vcpu` is the calling one. Allocates nothing and takes no lock.
    pub fn rearm_alone(&self, token: Committed, vcpu: u32) {
        let c = self.control(token);
        c.verdict.store(verdict::PENDING, Ordering::SeqCst);
        c.taken.store(taken::OPEN, Ordering::SeqCst);
        c.release.store(release::RESUME, Ordering::SeqCst);
        for slot in &c.slots {
            protocol::leave(&slot.state);
        }
        let control = self.control_ptr();
        // SAFETY: mapped writable; nobody else runs who could look at it.
        unsafe {
            (*control).trial_vcpu = vcpu;
            (*control).watcher = 0;
            (*control).test = 0;
            // What the image before has written there is not this one's.
            (*control).keep_state();
        }
        let baton = self.baton_ptr();
        // SAFETY: as above.
        unsafe {
            (*baton).reason_len.store(0, Ordering::Relaxed);
            (*baton).text_len.store(0, Ordering::Relaxed);
        }
    }

    /// From now on a park interrupt parks: called right before it is sent.
    pub fn hold(&self, token: Committed) {
        protocol::hold(&self.control(token).release);
    }

    /// Number of vCPUs that are parked now.
    pub fn parked(&self, token: Committed) -> u32 {
        let parked = |s: &&Slot| protocol::is_parked(&s.state);
        self.control(token).slots.iter().filter(parked).count() as u32
    }

    /// The first of `vcpus` vCPUs that is not parked, `but` one.
    pub fn missing(&self, token: Committed, vcpus: u32, but: u32) -> Option<u32> {
        (0u32..)
            .zip(&self.control(token).slots)
            .take(vcpus as usize)
            .find(|(v, s)| *v != but && !protocol::is_parked(&s.state))
            .map(|(v, _)| v)
    }

    /// Lets the parked vCPUs go on in the image that parked them, and waits until they have left.
    pub fn resume_others(&self, token: Committed) {
        let control = self.control(token);
        protocol::send_on(&control.release, release::RESUME);
        // Also when none seems parked: one may just be about to sleep.
        if control.vcpus > 1 {
            let _ = hypercall::send(token, Port(control.poll_port));
        }
        while self.parked(token) > 0 {
            core::hint::spin_loop();
        }
    }

    /// Sends the parked vCPUs to a new image.
    ///
    /// # Safety
    /// The calling vCPU has won the verdict; `root` maps `entry` and the stacks; each vCPU below
    /// `vcpus` but the caller may run `entry(vcpu)` on the stack that `stack` gives.
    pub unsafe fn release_others(
        &self,
        token: Committed,
        root: u64,
        entry: extern "C" fn(u64) -> !,
        stack: impl Fn(u32) -> Option<u64>,
    ) {
        let control = self.control_ptr();
        // SAFETY: the parked vCPUs read these fields after they see `release` change, below.
        unsafe {
            for (vcpu, slot) in (0u32..).zip(&mut (*control).slots) {
                if let Some(top) = stack(vcpu) {
                    slot.new_stack = top - 8; // as after a call
                }
                protocol::forget(&slot.state);
            }
            (*control).new_cr3.store(root, Ordering::Relaxed);
            (*control)
                .new_entry
                .store(entry as usize as u64, Ordering::Relaxed);
        }
        let control = self.control(token);
        protocol::send_on(&control.release, release::COMMIT);
        if control.vcpus > 1
            && let Err(e) = hypercall::send(token, Port(control.poll_port))
        {
            emergency_println!(
                "segue: the vCPUs cannot be woken, port {}: {e}",
                control.poll_port
            );
            crate::end::end(ShutdownReason::Crash);
        }
    }

    /// Makes the verdict "committed" and gives the token; `None` if the trial has been given up.
    ///
    /// # Safety
    /// The control page is mapped: the calling vCPU, which runs the trial, is on its image's own
    /// tables.
    #[must_use]
    pub unsafe fn decide_commit(&self) -> Option<Committed> {
        // SAFETY: the caller's promise; the verdict is atomic.
        let verdict = unsafe { &(*self.control_ptr()).verdict };
        // SAFETY: the verdict says so, and nobody changes it again.
        protocol::decide(verdict, verdict::COMMITTED).then(|| unsafe { Committed::declare() })
    }

    /// Runs a trial on the calling vCPU: returns only when it has ended without a commit.
    ///
    /// # Safety
    /// The park pages are armed, all other vCPUs are parked, interrupts are off. `root` maps the
    /// park pages as [`trial_view`](Self::trial_view) says, the code at `entry` and the stack
    /// below `stack`.
    pub unsafe fn try_image(
        &self,
        token: Committed,
        root: u64,
        entry: u64,
        stack: u64,
        argument: u64,
    ) -> Ended {
        type Try = unsafe extern "C" fn(*mut Control, *mut Slot, u64, u64, u64, u64) -> u32;
        // SAFETY: the code page holds park.S, whose entry has this signature.
        let try_ = unsafe { core::mem::transmute::<u64, Try>(self.entry(ENTRY_TRY)) };
        let control = self.control_ptr();
        let cpu = percpu::this();
        // SAFETY: the caller's promise; a vCPU number indexes the slots.
        let verdict = unsafe {
            let slot = (&raw mut (*control).slots)
                .cast::<Slot>()
                .add(cpu.vcpu() as usize);
            try_(control, slot, root, entry, stack, argument)
        };
        reload_tables();
        let c = self.control(token);
        if verdict == verdict::HUNG {
            Ended::Hung {
                rip: c.rip.load(Ordering::Relaxed),
            }
        } else {
            Ended::Fault {
                vector: c.vector.load(Ordering::Relaxed),
                error: c.error.load(Ordering::Relaxed),
                rip: c.rip.load(Ordering::Relaxed),
                cr2: c.cr2.load(Ordering::Relaxed),
                rsp: c.fault_rsp.load(Ordering::Relaxed),
            }
        }
    }

    /// Adds to the trial's console text; what finds no room is dropped.
    pub fn add_text(&self, bytes: &[u8]) {
        let baton = self.baton_ptr();
        // SAFETY: mapped writable in the trial; one vCPU runs, and the length is clamped.
        unsafe {
            let len = ((*baton).text_len.load(Ordering::Relaxed) as usize).min(TEXT);
            let n = bytes.len().min(TEXT - len);
            let to = (&raw mut (*baton).text).cast::<u8>().add(len);
            core::ptr::copy_nonoverlapping(bytes.as_ptr(), to, n);
            (*baton).text_len.store((len + n) as u32, Ordering::Relaxed);
        }
    }

    /// The trial's console text. Not while a trial runs.
    #[must_use]
    pub fn text(&self) -> &[u8] {
        let baton = self.baton();
        let len = baton.text_len.load(Ordering::Relaxed) as usize;
        baton.text.get(..len.min(TEXT)).unwrap_or_default()
    }

    /// Says why the trial gives up.
    pub fn set_reason(&self, reason: &str) {
        let baton = self.baton_ptr();
        let n = reason.len().min(REASON);
        // SAFETY: as in `add_text`.
        unsafe {
            let to = (&raw mut (*baton).reason).cast::<u8>();
            core::ptr::copy_nonoverlapping(reason.as_ptr(), to, n);
            (*baton).reason_len.store(n as u32, Ordering::Relaxed);
        }
    }

    /// What the trial said of why it gave up.
    #[must_use]
    pub fn reason(&self) -> &str {
        let baton = self.baton();
        let len = (baton.reason_len.load(Ordering::Relaxed) as usize).min(REASON);
        let bytes = baton.reason.get(..len).unwrap_or_default();
        match core::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => core::str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or_default(),
        }
    }
}

/// How long a parked vCPU spins before it sleeps, in ns.
const SPIN_NS: u64 = 50_000;
/// How long the watcher waits for its NMI to be taken, in ns.
const NMI_GRACE_NS: u64 = 100_000_000;

/// What a switch needs of the park pages.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// vCPUs that take part.
    pub vcpus: u32,
    /// The masked port to sleep on.
    pub port: Port,
    /// What the trial may take, in ns.
    pub limit_ns: u64,
    /// System time at which the watcher looks, in ns.
    pub watch_ns: u64,
    /// See [`mod@test`].
    pub test: u32,
}

/// Why the park pages could not be armed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ArmError {
    /// A vCPU has not left them.
    Busy,
    /// No frame for a page table.
    NoTable,
}

/// How a trial ended without a commit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// The watcher took the vCPU back.
    Hung {
        /// Where it was.
        rip: u64,
    },
    /// A fault, or the trial gave up (vector [`GIVE_UP`]).
    Fault {
        /// Vector.
        vector: u64,
        /// Error code, 0 where there is none.
        error: u64,
        /// Where it was.
        rip: u64,
        /// Address of a page fault.
        cr2: u64,
        /// Its stack pointer.
        rsp: u64,
    },
}

/// The vector by which a trial gives up.
pub const GIVE_UP: u64 = 31;

fn pseudo_descriptor(base: usize, len: usize) -> [u16; 5] {
    [
        (len - 1) as u16,
        base as u16,
        (base >> 16) as u16,
        (base >> 32) as u16,
        (base >> 48) as u16,
    ]
}

/// Loads the calling vCPU's own tables again after a stay in the park pages.
fn reload_tables() {
    let cpu = percpu::this();
    if let Some(stacks) = smp::shared().and_then(|s| vm::fault_stacks(&s.workspace, cpu.vcpu())) {
        // SAFETY: interrupts are off, the stacks are this vCPU's, which runs on none of them.
        unsafe { tables::load(cpu, stacks) };
    }
}

/// The interrupt that parks a vCPU. Returns when the switch has ended with a resume; after a
/// commit the vCPU never comes back here.
pub(crate) extern "C" fn park_interrupt() {
    type ParkFn = unsafe extern "C" fn(*mut Control, *mut Slot);
    let (Some(token), Some(park)) = (Committed::get(), get()) else {
        return;
    };
    let control = park.control(token);
    let cpu = percpu::this();
    #[cfg(feature = "fault-injection")]
    if control.test & !0xff == test::deaf(cpu.vcpu()) {
        return apic::eoi(token);
    }
    // While a vCPU is between 0 and 0 here nobody rewrites the park pages (`arm`).
    let Some(slot) = control.slots.get(cpu.vcpu() as usize) else {
        return;
    };
    if protocol::enter(&slot.state, &control.release) && control.magic == MAGIC {
        // The code page was writable while it was filled; a stale entry would forbid to run it.
        x86_64::instructions::tlb::flush(VirtAddr::new(park.entry(ENTRY_PARK)));
        let ptr = park.control_ptr();
        // SAFETY: a switch is on (only its vCPU sends this interrupt), so the code page holds
        // park.S, whose entry has this signature; the vCPU number indexes the slots.
        unsafe {
            let enter = core::mem::transmute::<u64, ParkFn>(park.entry(ENTRY_PARK));
            let slot = (&raw mut (*ptr).slots)
                .cast::<Slot>()
                .add(cpu.vcpu() as usize);
            enter(ptr, slot);
            reload_tables();
            // shared_info may have moved, there and back.
            cpu.next_turn();
        }
    }
    protocol::leave(&slot.state);
    apic::eoi(token);
}
