//! The scheduler: a run queue on each vCPU, and the switch from thread to thread.
//!
//! A thread that becomes runnable goes to an idle vCPU if there is one; a vCPU that runs out of
//! work takes some from the others before it sleeps. A timer ends a thread's slice, only while
//! another one waits on the same vCPU. All here runs with interrupts off; a thread that does not
//! run is either in one run queue, or parked, and then whoever gets `true` from its
//! [`Token::unpark`](super::token::Token::unpark) puts it in one.

use crate::abi::errno::Errno;
use crate::cpu::{percpu, smp, tables};
use crate::entry::Tls;
use crate::memory::scrub;
use crate::memory::workspace::Workspace;
use crate::sync::Lock;
use crate::task::idle::{Idle, IdleSet, State};
use crate::task::thread::{
    self, Kind, NOWHERE, Options, Priority, RunAdapter, Thread, Tid, TimerAdapter,
};
use crate::xen::hypercall;
use crate::xen::{Committed, shared_info};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
use hermit_sync::OnceCell;
use intrusive_collections::{LinkedList, RBTree, UnsafeRef};
use x86_64::VirtAddr;
use x86_64::instructions::interrupts;
use x86_64::registers::model_specific::FsBase;

/// How long a thread runs while another one waits for the vCPU, in ns.
const SLICE_NS: u64 = 10_000_000;
/// How long an idle vCPU looks for work before it sleeps, in ns: less than going to sleep and being
/// woken costs.
const POLL_NS: u64 = 20_000;
/// One pick in so many does not look for the highest priority.
const FAIR: u32 = 16;
/// No time.
const NEVER: u64 = u64::MAX;

/// Threads that can run, by priority.
struct Queue {
    lists: [LinkedList<RunAdapter>; Priority::COUNT],
    picks: u32,
}

/// What a vCPU schedules with.
struct Vcpu {
    number: u32,
    queue: Lock<Queue>,
    /// Threads in the queue.
    length: AtomicUsize,
    /// Those among them that may run elsewhere.
    movable: AtomicUsize,
    /// Parked threads with a deadline.
    timers: Lock<RBTree<TimerAdapter>>,
    /// The first of these deadlines.
    first_timer: AtomicU64,
    idle: Idle,
    idle_thread: Arc<Thread>,
    /// Priority of the running thread.
    running: AtomicU8,
    /// The slice's end is watched: no interrupt is needed to tell of a second thread.
    slice_on: AtomicBool,
    /// A thread of a higher priority waits.
    preempt: AtomicBool,
    /// When the slice ends. This and the next: the vCPU's own.
    slice_end: AtomicU64,
    /// What Xen's timer is set to.
    armed: AtomicU64,
}

static VCPUS: OnceCell<Vec<Vcpu>> = OnceCell::new();
/// vCPUs that look for work or sleep.
static IDLE: IdleSet = IdleSet::with(AtomicU32::new(0));
/// All threads but the idle ones, until they have ended.
static THREADS: Lock<BTreeMap<Tid, Arc<Thread>>> = Lock::new(BTreeMap::new());
static NEXT_TID: AtomicU32 = AtomicU32::new(thread::MAIN + 1);

/// Makes what `workspace`'s vCPUs schedule with. Before any of them gets here.
pub(crate) fn init(workspace: &Workspace) {
    let vcpu = |number: u32| {
        let top = workspace.vcpu(number).map_or(0, |a| a.stack.end_addr());
        Some(Vcpu {
            number,
            queue: Lock::new(Queue {
                lists: core::array::from_fn(|_| LinkedList::new(RunAdapter::new())),
                picks: 0,
            }),
            length: AtomicUsize::new(0),
            movable: AtomicUsize::new(0),
            timers: Lock::new(RBTree::new(TimerAdapter::new())),
            first_timer: AtomicU64::new(NEVER),
            idle: Idle::with(AtomicU8::new(State::Busy as u8)),
            idle_thread: Arc::new(Thread::idle(number, top)),
            running: AtomicU8::new(Priority::High as u8),
            slice_on: AtomicBool::new(false),
            preempt: AtomicBool::new(false),
            slice_end: AtomicU64::new(NEVER),
            armed: AtomicU64::new(NEVER),
        })
    };
    VCPUS.get_or_init(|| (0..workspace.vcpus()).filter_map(vcpu).collect());
}

fn vcpu(number: u32) -> Option<&'static Vcpu> {
    VCPUS.get()?.get(number as usize)
}

/// The calling vCPU's. Interrupts are off, or the answer may be out of date.
fn here() -> Option<&'static Vcpu> {
    vcpu(percpu::this().vcpu())
}

/// The running thread; `None` before there is one. Not to be kept beyond the call: what is borrowed
/// lives as long as the calling thread.
#[inline]
pub(super) fn this_thread() -> Option<&'static Thread> {
    // SAFETY: a running thread has a counted reference in its vCPU's data.
    unsafe { percpu::current_thread().as_ref() }
}

/// A counted reference to the calling thread.
pub(super) fn this_handle() -> Option<Arc<Thread>> {
    let ptr = percpu::current_thread();
    if ptr.is_null() {
        return None;
    }
    // SAFETY: the pointer is that of the reference in the vCPU's data, which stays.
    unsafe {
        Arc::increment_strong_count(ptr);
        Some(Arc::from_raw(ptr))
    }
}

/// Makes what runs now the main thread.
pub(crate) fn become_main(tls: Tls) {
    let cpu = percpu::this();
    let main = Arc::new(Thread::main(tls, cpu.vcpu()));
    FsBase::write(VirtAddr::new(main.fs.load(Ordering::Relaxed)));
    THREADS.lock().insert(main.tid(), Arc::clone(&main));
    cpu.set_current(Arc::into_raw(main));
    if let Some(vcpu) = vcpu(cpu.vcpu()) {
        vcpu.running
            .store(Priority::Normal as u8, Ordering::Relaxed);
    }
}

/// What a vCPU does that has come up: run threads, for ever.
pub(crate) fn run(number: u32) -> ! {
    if let Some(vcpu) = vcpu(number) {
        let idle = Arc::clone(&vcpu.idle_thread);
        idle.on_cpu.store(true, Ordering::Relaxed);
        percpu::this().set_current(Arc::into_raw(idle));
    }
    idle_loop()
}

impl Vcpu {
    fn length(&self) -> usize {
        self.length.load(Ordering::Acquire)
    }

    fn push(&self, thread: Arc<Thread>) {
        let movable = thread.pinned.load(Ordering::Relaxed) == NOWHERE;
        let mut queue = self.queue.lock();
        queue.lists[thread.priority() as usize].push_back(thread);
        self.length.fetch_add(1, Ordering::Release);
        self.movable
            .fetch_add(usize::from(movable), Ordering::Release);
    }

    fn took(&self, thread: &Thread) {
        let movable = thread.pinned.load(Ordering::Relaxed) == NOWHERE;
        self.length.fetch_sub(1, Ordering::Release);
        self.movable
            .fetch_sub(usize::from(movable), Ordering::Release);
    }

    /// The next thread of at least this priority; now and then one of any priority.
    fn pop(&self, least: Priority) -> Option<Arc<Thread>> {
        if self.length() == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        queue.picks = queue.picks.wrapping_add(1);
        let thread = if queue.picks.is_multiple_of(FAIR) {
            // Each priority comes first in turn, so that none keeps another from running for ever.
            let first = (queue.picks / FAIR) as usize % Priority::COUNT;
            let (before, from) = queue.lists.split_at_mut(first);
            let mut lists = from.iter_mut().chain(before);
            lists.find_map(LinkedList::pop_front)
        } else {
            let lists = queue.lists.iter_mut().skip(least as usize);
            lists.rev().find_map(LinkedList::pop_front)
        };
        if let Some(thread) = &thread {
            self.took(thread);
        }
        thread
    }

    /// A thread for another vCPU.
    fn give(&self) -> Option<Arc<Thread>> {
        if self.movable.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut queue = self.queue.lock();
        for list in queue.lists.iter_mut().rev() {
            let mut cursor = list.front_mut();
            while let Some(thread) = cursor.get() {
                let free = thread.pinned.load(Ordering::Relaxed) == NOWHERE
                    && !thread.on_cpu.load(Ordering::Acquire);
                if free {
                    let thread = cursor.remove();
                    if let Some(thread) = &thread {
                        self.took(thread);
                    }
                    return thread;
                }
                cursor.move_next();
            }
        }
        None
    }

    /// Sets Xen's timer of this vCPU, which is the calling one, if it is not set as early as
    /// needed. One that is set too early is not taken back: it costs an upcall, not a hypercall.
    fn arm(&self, token: Committed) {
        let slice = self.slice_end.load(Ordering::Relaxed);
        let wanted = slice.min(self.first_timer.load(Ordering::Acquire));
        if wanted < self.armed.load(Ordering::Relaxed) {
            // Xen's times are signed. A refusal (it has none for a time that is not negative)
            // would be a hang: set the shortest there is.
            let at = wanted.min(i64::MAX as u64);
            if hypercall::set_singleshot_timer(token, at).is_ok() {
                self.armed.store(wanted, Ordering::Relaxed);
            }
        }
    }

    /// Starts or ends the watch over the running thread's slice, and sees to the timer. This vCPU
    /// is the calling one.
    fn watch_slice(&self, token: Committed, new: bool) {
        if self.length() == 0 {
            self.slice_on.store(false, Ordering::Release);
            // Whoever adds a thread looks at `slice_on` after that.
            fence(Ordering::SeqCst);
            if self.length() == 0 {
                self.slice_end.store(NEVER, Ordering::Relaxed);
                return self.arm(token);
            }
        }
        if new || self.slice_end.load(Ordering::Relaxed) == NEVER {
            let end = shared_info::now().saturating_add(SLICE_NS);
            self.slice_end.store(end, Ordering::Relaxed);
        }
        self.slice_on.store(true, Ordering::Release);
        self.arm(token);
    }

    /// Takes a thread off this vCPU's timers, if it is still there.
    fn cancel(&self, thread: &Thread) {
        let mut timers = self.timers.lock();
        if thread.timer_link.is_linked() {
            // SAFETY: a thread is linked in no timer queue but that of its `timer_vcpu`, this one.
            unsafe { timers.cursor_mut_from_ptr(thread) }.remove();
            self.note_first(&timers);
        }
    }

    fn note_first(&self, timers: &RBTree<TimerAdapter>) {
        let first = timers.front().get();
        let at = first.map_or(NEVER, |t| t.deadline.load(Ordering::Relaxed));
        self.first_timer.store(at, Ordering::Release);
    }

    /// Wakes the threads whose deadline is over.
    fn expire(&self, now: u64) {
        while self.first_timer.load(Ordering::Acquire) <= now {
            let mut timers = self.timers.lock();
            let mut first = timers.front_mut();
            let due = first
                .get()
                .is_some_and(|t| t.deadline.load(Ordering::Relaxed) <= now);
            let Some(thread) = due.then(|| first.remove()).flatten() else {
                self.note_first(&timers);
                return;
            };
            self.note_first(&timers);
            // SAFETY: a thread stays until it has ended its park, for which it takes this lock.
            let handle = unsafe {
                let ptr = UnsafeRef::into_raw(thread).cast_const();
                Arc::increment_strong_count(ptr);
                Arc::from_raw(ptr)
            };
            drop(timers);
            unpark(&handle);
        }
    }
}

/// Takes a thread from another vCPU.
fn steal(thief: u32) -> Option<Arc<Thread>> {
    let all = VCPUS.get()?;
    let (before, after) = all.split_at((thief as usize).min(all.len()));
    let others = after.iter().skip(1).chain(before);
    others.into_iter().find_map(Vcpu::give)
}

/// Where a thread that can run should: where it has to, where nothing runs, where less waits.
fn place(thread: &Thread, own: u32) -> u32 {
    let pinned = thread.pinned.load(Ordering::Relaxed);
    if pinned != NOWHERE {
        return pinned;
    }
    let last = thread.vcpu.load(Ordering::Relaxed);
    // Its state is still on that vCPU, which saves it any moment.
    if thread.on_cpu.load(Ordering::Acquire) {
        return last;
    }
    let idle_here = this_thread().is_some_and(|t| t.kind() == Kind::Idle);
    if idle_here {
        return own;
    }
    if last != NOWHERE && IDLE.claim(last) {
        return last;
    }
    if let Some(idle) = IDLE.claim_any() {
        return idle;
    }
    match (vcpu(last), vcpu(own)) {
        (Some(l), Some(o)) if l.length() < o.length() => last,
        _ => own,
    }
}

/// Puts a thread that can run in a run queue, and sees to it that it is noticed.
fn enqueue(thread: Arc<Thread>) {
    let Some(token) = Committed::get() else {
        return;
    };
    let own = percpu::this().vcpu();
    let number = place(&thread, own);
    let Some(target) = vcpu(number).or_else(|| vcpu(own)) else {
        return;
    };
    let movable = thread.pinned.load(Ordering::Relaxed) == NOWHERE;
    let priority = thread.priority() as u8;
    target.push(thread);
    if target.number == own {
        if this_thread().is_some_and(|t| t.kind() != Kind::Idle) {
            if priority > target.running.load(Ordering::Relaxed) {
                // Now: an interrupt as soon as they are on.
                target.preempt.store(true, Ordering::Release);
                target.slice_end.store(0, Ordering::Relaxed);
            }
            target.watch_slice(token, false);
        }
    } else if target.idle.must_interrupt() {
        smp::wake(token, target.number);
    } else if target.idle.is_busy() {
        let higher = priority > target.running.load(Ordering::Acquire);
        if higher {
            target.preempt.store(true, Ordering::Release);
        }
        if higher || !target.slice_on.load(Ordering::Acquire) {
            smp::wake(token, target.number);
        }
    }
    // One that became idle meanwhile did not see the thread, or is seen here.
    fence(Ordering::SeqCst);
    if movable
        && target.idle.is_busy()
        && target.length() > 0
        && let Some(number) = IDLE.claim_any()
        && number != own
        && let Some(idle) = vcpu(number)
        && idle.idle.must_interrupt()
    {
        smp::wake(token, number);
    }
}

/// Ends a thread's park, or has its next one end at once.
pub(super) fn unpark(thread: &Arc<Thread>) {
    if thread.token.unpark() {
        interrupts::without_interrupts(|| enqueue(Arc::clone(thread)));
    }
}

/// Why a thread leaves its vCPU.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Leave {
    /// It waits for an unpark. The idle thread leaves so, too.
    Parked = 0,
    /// It could go on.
    Yield = 1,
    /// It has ended.
    Ended = 2,
}

/// Leaves the vCPU to the next thread; returns when the calling one has its turn again. Interrupts
/// are off, no lock is held.
fn schedule(leave: Leave) {
    let (Some(token), Some(vcpu), Some(me)) = (Committed::get(), here(), this_thread()) else {
        return;
    };
    vcpu.preempt.store(false, Ordering::Relaxed);
    let next = if leave == Leave::Yield {
        vcpu.pop(me.priority())
    } else {
        let next = vcpu.pop(Priority::Low).or_else(|| steal(vcpu.number));
        Some(next.unwrap_or_else(|| Arc::clone(&vcpu.idle_thread)))
    };
    match next {
        Some(next) if !core::ptr::eq(&*next, me) => switch_to(token, vcpu, me, next, leave),
        // Woken before it was gone, or nobody else is there.
        _ => vcpu.watch_slice(token, true),
    }
}

fn switch_to(token: Committed, vcpu: &Vcpu, me: &Thread, next: Arc<Thread>, leave: Leave) {
    let cpu = percpu::this();
    let idle = next.kind() == Kind::Idle;
    if next.vcpu.swap(vcpu.number, Ordering::Relaxed) != vcpu.number {
        next.forget_guard();
    }
    next.on_cpu.store(true, Ordering::Relaxed);
    cpu.next_turn();
    vcpu.running.store(next.priority() as u8, Ordering::Relaxed);
    let fs = next.fs.load(Ordering::Relaxed);
    if fs != 0 {
        FsBase::write(VirtAddr::new(fs));
    }
    if idle {
        vcpu.slice_on.store(false, Ordering::Relaxed);
        vcpu.slice_end.store(NEVER, Ordering::Relaxed);
    } else {
        vcpu.watch_slice(token, true);
    }
    // SAFETY: the other context was saved by `segue_switch` or is a first frame, and its vCPU has
    // left it (`on_cpu` was false, or it is in this vCPU's own queue and left here).
    let load = unsafe { next.rsp.get().read() };
    cpu.set_left(percpu::current_thread(), leave);
    cpu.set_current(Arc::into_raw(next));
    // SAFETY: as above; what is saved is this context, on its own stack.
    unsafe { thread::segue_switch(me.rsp.get(), load) };
    arrive();
}

/// The first thing in a context that was switched to: looks after the one that was left.
fn arrive() {
    // Anew: this may be another vCPU than the one that this context was left on.
    let (ptr, leave) = percpu::this().take_left();
    if ptr.is_null() {
        return;
    }
    // SAFETY: the reference that was the vCPU's while the thread ran.
    let left = unsafe { Arc::from_raw(ptr) };
    left.on_cpu.store(false, Ordering::Release);
    match leave {
        Leave::Parked => {}
        Leave::Yield => requeue(left),
        Leave::Ended => {
            // In this order: who does not find a thread any more takes its memory for free.
            left.bury();
            THREADS.lock().remove(&left.tid());
        }
    }
}

/// Puts a thread whose turn is over where it waits least.
fn requeue(thread: Arc<Thread>) {
    let (Some(token), Some(own)) = (Committed::get(), here()) else {
        return;
    };
    let pinned = thread.pinned.load(Ordering::Relaxed) != NOWHERE;
    let shorter = || {
        let all = VCPUS.get().into_iter().flatten();
        // After the first boot the others come up in this order.
        all.take(smp::online() as usize)
            .filter(|v| v.length() < own.length())
            .min_by_key(|v| v.length())
    };
    let other = if pinned {
        None
    } else {
        IDLE.claim_any().and_then(vcpu).or_else(shorter)
    };
    match other {
        Some(other) if other.number != own.number => {
            other.push(thread);
            if other.idle.must_interrupt()
                || other.idle.is_busy() && !other.slice_on.load(Ordering::Acquire)
            {
                smp::wake(token, other.number);
            }
        }
        _ => {
            own.push(thread);
            if this_thread().is_some_and(|t| t.kind() != Kind::Idle) {
                own.watch_slice(token, false);
            }
        }
    }
}

/// Where a new thread begins: on its own stack, interrupts off.
pub(super) extern "C" fn begin() -> ! {
    arrive();
    let start = this_thread().and_then(|t| t.start.lock().take());
    match start {
        Some(start) => {
            interrupts::enable();
            start();
        }
        // The idle thread of the vCPU that came up with the main thread.
        None => idle_loop(),
    }
    interrupts::disable();
    loop {
        schedule(Leave::Ended);
    }
}

/// Blocks the calling thread until an unpark or until `deadline` (system time, in ns). May return
/// early.
pub(super) fn park(deadline: Option<u64>) {
    interrupts::without_interrupts(|| {
        let (Some(token), Some(vcpu), Some(me)) = (Committed::get(), here(), this_thread()) else {
            return;
        };
        if deadline.is_some_and(|d| d <= shared_info::now()) || !me.token.park() {
            return;
        }
        if let Some(deadline) = deadline {
            me.deadline.store(deadline, Ordering::Relaxed);
            me.timer_vcpu.store(vcpu.number, Ordering::Relaxed);
            let mut timers = vcpu.timers.lock();
            // SAFETY: the thread stays until it has taken itself off, below.
            timers.insert(unsafe { UnsafeRef::from_raw(me) });
            vcpu.note_first(&timers);
            drop(timers);
            vcpu.arm(token);
        }
        schedule(Leave::Parked);
        me.token.resumed();
        if deadline.is_some() {
            let number = me.timer_vcpu.swap(NOWHERE, Ordering::Relaxed);
            if let Some(vcpu) = self::vcpu(number) {
                vcpu.cancel(me);
            }
        }
    });
}

/// Gives others a turn.
pub(super) fn yield_now() {
    let alone = interrupts::without_interrupts(|| {
        let waiting = here().is_some_and(|v| v.length() > 0);
        if waiting {
            schedule(Leave::Yield);
        }
        !waiting
    });
    // Whoever is waited for may run on a vCPU that has no processor.
    if alone && let Some(token) = Committed::get() {
        hypercall::sched_yield(token);
    }
}

/// At the end of every upcall, interrupts off: what time has brought, and whose turn it is.
pub(crate) fn after_upcall(timer: bool) {
    let (Some(token), Some(vcpu), Some(me)) = (Committed::get(), here(), this_thread()) else {
        return;
    };
    if timer {
        vcpu.armed.store(NEVER, Ordering::Relaxed);
    }
    let now = if vcpu.armed.load(Ordering::Relaxed) == NEVER || vcpu.length() > 0 {
        shared_info::now()
    } else {
        0
    };
    vcpu.expire(now);
    if me.kind() == Kind::Idle {
        vcpu.arm(token);
        return;
    }
    let over =
        vcpu.preempt.load(Ordering::Acquire) || now >= vcpu.slice_end.load(Ordering::Relaxed);
    if over && vcpu.length() > 0 {
        schedule(Leave::Yield);
    } else {
        vcpu.watch_slice(token, false);
    }
}

/// Looks for work; sleeps in the hypervisor when there is none.
fn idle_loop() -> ! {
    loop {
        interrupts::disable();
        let (Some(token), Some(vcpu)) = (Committed::get(), here()) else {
            x86_64::instructions::hlt();
            continue;
        };
        look_for_work(token, vcpu);
    }
}

fn look_for_work(token: Committed, vcpu: &Vcpu) {
    let has_work = || {
        vcpu.length() > 0
            || VCPUS
                .get()
                .into_iter()
                .flatten()
                .any(|v| v.movable.load(Ordering::Acquire) > 0)
    };
    let busy = || {
        vcpu.idle.set(State::Busy);
        IDLE.claim(vcpu.number);
    };
    if has_work() {
        busy();
        let me = this_thread();
        let next = vcpu.pop(Priority::Low).or_else(|| steal(vcpu.number));
        if let (Some(next), Some(me)) = (next, me) {
            switch_to(token, vcpu, me, next, Leave::Parked);
        } else {
            core::hint::spin_loop();
        }
        return;
    }
    // With a look at what has come after each frame: an emulator takes long for one.
    if scrub::idle_step() {
        interrupts::enable();
        x86_64::instructions::nop();
        return;
    }
    vcpu.idle.set(State::Polling);
    IDLE.add(vcpu.number);
    interrupts::enable();
    let end = shared_info::rdtsc().wrapping_add(shared_info::cycles(POLL_NS));
    while !has_work() && shared_info::rdtsc() < end {
        core::hint::spin_loop();
    }
    interrupts::disable();
    vcpu.idle.set(State::Halted);
    IDLE.add(vcpu.number);
    if !has_work() {
        vcpu.arm(token);
        percpu::this().count_exit();
        tables::sleep();
    }
    busy();
}

/// Starts a thread.
///
/// # Errors
/// `EAGAIN` on trial, `EINVAL` for a vCPU that is not there, `ENOMEM`.
pub(super) fn spawn(
    kind: Kind,
    name: Option<&str>,
    options: Options,
    start: Box<dyn FnOnce() + Send>,
) -> Result<Tid, Errno> {
    Committed::get().ok_or(Errno::EAGAIN)?;
    if options.vcpu.is_some_and(|v| v >= smp::vcpus()) {
        return Err(Errno::EINVAL);
    }
    let tid = loop {
        let tid = NEXT_TID.fetch_add(1, Ordering::Relaxed);
        if tid > thread::MAIN && !THREADS.lock().contains_key(&tid) {
            break tid;
        }
    };
    let mut default_name = arrayvec::ArrayString::<24>::new();
    let name = name.unwrap_or_else(|| {
        let _ = core::fmt::Write::write_fmt(&mut default_name, format_args!("thread-{tid}"));
        &default_name
    });
    let thread = Thread::with_stack(tid, kind, name, options, start)?;
    THREADS.lock().insert(tid, Arc::clone(&thread));
    interrupts::without_interrupts(|| enqueue(thread));
    Ok(tid)
}

/// The thread with this number, while it has not ended.
pub(super) fn find(tid: Tid) -> Option<Arc<Thread>> {
    THREADS.lock().get(&tid).cloned()
}

/// Number of threads that have not ended.
pub fn threads() -> usize {
    THREADS.lock().len()
}
