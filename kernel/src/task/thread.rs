//! One thread: its stack, its thread-local variables, and what the scheduler knows of it.

use crate::abi::errno::Errno;
use crate::entry::Tls;
use crate::memory::{Extent, PAGE_SIZE, vm};
use crate::sync::Lock;
use crate::task::token::Token;
use crate::task::wait::WaitQueue;
use alloc::boxed::Box;
use alloc::sync::Arc;
use arrayvec::ArrayString;
use core::cell::UnsafeCell;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU8, AtomicU32, AtomicU64, Ordering};
use intrusive_collections::{
    KeyAdapter, LinkedListAtomicLink, RBTreeAtomicLink, UnsafeRef, intrusive_adapter,
};
use x86_64::VirtAddr;

/// A thread's number; 0 is none.
pub type Tid = hermit_abi::Tid;

/// The thread that `main` runs in.
pub const MAIN: Tid = 1;

/// No vCPU.
pub(super) const NOWHERE: u32 = u32::MAX;

/// What runs before what. A lower one gets a turn now and then all the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum Priority {
    /// `LOW_PRIO`.
    Low = 0,
    /// `NORMAL_PRIO`: std's threads.
    Normal = 1,
    /// `HIGH_PRIO`.
    High = 2,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 3;

    /// From the ABI's number: 1 to 3, what is outside counts as the nearest.
    #[must_use]
    pub const fn from_abi(number: u8) -> Self {
        match number {
            0 | 1 => Self::Low,
            2 => Self::Normal,
            _ => Self::High,
        }
    }

    /// The ABI's number.
    #[must_use]
    pub const fn to_abi(self) -> u8 {
        self as u8 + 1
    }
}

/// A stack from the frame allocator, an unmapped page below it.
#[derive(Debug)]
pub struct Stack {
    extent: Extent,
}

impl Stack {
    /// With at least `bytes` bytes.
    ///
    /// # Errors
    /// `ENOMEM`: not as many frames in a row are free.
    pub fn new(bytes: usize) -> Result<Self, Errno> {
        let frames = (bytes as u64).div_ceil(PAGE_SIZE).max(4) + 1;
        let extent = vm::alloc_frames(frames, 1).ok_or(Errno::ENOMEM)?;
        let stack = Self { extent };
        vm::unmap(stack.guard()).map_err(|_| Errno::ENOMEM)?;
        Ok(stack)
    }

    /// The page that must not be touched.
    #[must_use]
    pub fn guard(&self) -> Extent {
        self.extent.start().extent()
    }

    /// Address after the last byte.
    fn top(&self) -> u64 {
        self.extent.end_addr()
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // Without the page's mapping the frames cannot be used again: better to lose them.
        if vm::map(self.guard(), crate::memory::paging::Perms::Write).is_ok() {
            // SAFETY: from the allocator; the thread that ran on it is gone.
            unsafe { vm::free_frames(self.extent) };
        }
    }
}

/// What a thread is there for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Runs `main`.
    Main,
    /// Started by std.
    App,
    /// Started by the kernel.
    Kernel,
    /// Runs when nothing else does.
    Idle,
}

pub(super) type Start = Box<dyn FnOnce() + Send>;

/// A thread.
pub struct Thread {
    /// In a run queue. A counted reference is in the queue with it.
    pub(super) run_link: LinkedListAtomicLink,
    /// In a timer queue: only between the begin and the end of a park, so the thread is alive.
    pub(super) timer_link: RBTreeAtomicLink,
    /// When its timer is due, in ns; unchanged while in a timer queue.
    pub(super) deadline: AtomicU64,
    /// Whose timer queue it was put in.
    pub(super) timer_vcpu: AtomicU32,
    pub(super) token: Token,
    priority: AtomicU8,
    /// The only vCPU it may run on, or [`NOWHERE`].
    pub(super) pinned: AtomicU32,
    /// The vCPU it runs on, or ran on last.
    pub(super) vcpu: AtomicU32,
    /// A vCPU runs it, or has not yet saved it.
    pub(super) on_cpu: AtomicBool,
    /// Stack pointer while it does not run.
    pub(super) rsp: UnsafeCell<u64>,
    /// FS.base while it runs.
    pub(super) fs: AtomicU64,
    pub(super) errno: AtomicI32,
    tid: Tid,
    kind: Kind,
    name: ArrayString<32>,
    tls: Lock<Option<Tls>>,
    stack: Lock<Option<Stack>>,
    guard: Option<Extent>,
    pub(super) start: Lock<Option<Start>>,
    dead: AtomicBool,
    /// Those that join it.
    pub(super) joiners: WaitQueue,
}

// SAFETY: `rsp` is written by the vCPU that leaves the thread and read by the one that goes on with
// it, which is told by `on_cpu` (release, acquire) or by a lock.
unsafe impl Sync for Thread {}

impl fmt::Debug for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Thread({}, {:?})", self.tid, self.kind)
    }
}

/// How to start a thread.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Its stack's size in bytes.
    pub stack: usize,
    /// See [`Priority`].
    pub priority: Priority,
    /// The only vCPU it may run on; `None` for any.
    pub vcpu: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            stack: 64 * 1024,
            priority: Priority::Normal,
            vcpu: None,
        }
    }
}

impl Thread {
    fn new(tid: Tid, kind: Kind, name: &str, options: Options) -> Self {
        let mut short = ArrayString::new();
        for c in name.chars() {
            if short.try_push(c).is_err() {
                break;
            }
        }
        Self {
            run_link: LinkedListAtomicLink::new(),
            timer_link: RBTreeAtomicLink::new(),
            deadline: AtomicU64::new(0),
            timer_vcpu: AtomicU32::new(NOWHERE),
            token: Token::new(),
            priority: AtomicU8::new(options.priority as u8),
            pinned: AtomicU32::new(options.vcpu.unwrap_or(NOWHERE)),
            vcpu: AtomicU32::new(NOWHERE),
            on_cpu: AtomicBool::new(false),
            rsp: UnsafeCell::new(0),
            fs: AtomicU64::new(0),
            errno: AtomicI32::new(0),
            tid,
            kind,
            name: short,
            tls: Lock::new(None),
            stack: Lock::new(None),
            guard: None,
            start: Lock::new(None),
            dead: AtomicBool::new(false),
            joiners: WaitQueue::new(),
        }
    }

    /// The thread of a vCPU that has nothing to run. `stack_top` is where it will run if the vCPU
    /// runs something else now.
    pub(super) fn idle(vcpu: u32, stack_top: u64) -> Self {
        let options = Options {
            priority: Priority::Low,
            vcpu: Some(vcpu),
            ..Options::default()
        };
        let thread = Self::new(0, Kind::Idle, "idle", options);
        thread.vcpu.store(vcpu, Ordering::Relaxed);
        // SAFETY: the stack is the vCPU's, and unused as the caller says.
        unsafe { thread.rsp.get().write(first_frame(stack_top)) };
        thread
    }

    /// The thread that runs already, on the main stack, and will run `main`.
    pub(super) fn main(tls: Tls, vcpu: u32) -> Self {
        let mut thread = Self::new(MAIN, Kind::Main, "main", Options::default());
        *thread.fs.get_mut() = tls.pointer();
        *thread.vcpu.get_mut() = vcpu;
        *thread.on_cpu.get_mut() = true;
        thread.tls = Lock::new(Some(tls));
        thread
    }

    /// A thread that will run `start`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub(super) fn with_stack(
        tid: Tid,
        kind: Kind,
        name: &str,
        options: Options,
        start: Start,
    ) -> Result<Arc<Self>, Errno> {
        let stack = Stack::new(options.stack)?;
        let tls = Tls::new().ok_or(Errno::ENOMEM)?;
        let mut thread = Self::new(tid, kind, name, options);
        // SAFETY: the stack is new.
        *thread.rsp.get_mut() = unsafe { first_frame(stack.top()) };
        *thread.fs.get_mut() = tls.pointer();
        thread.guard = Some(stack.guard());
        thread.tls = Lock::new(Some(tls));
        thread.stack = Lock::new(Some(stack));
        thread.start = Lock::new(Some(start));
        Ok(Arc::new(thread))
    }

    /// Its number.
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// What it is there for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name, as far as the kernel knows it: std does not tell.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// See [`Priority`].
    pub fn priority(&self) -> Priority {
        Priority::from_abi(self.priority.load(Ordering::Relaxed) + 1)
    }

    pub(super) fn set_priority(&self, priority: Priority) {
        self.priority.store(priority as u8, Ordering::Relaxed);
    }

    /// The page below its stack; `None` where the workspace has the stack.
    pub fn guard(&self) -> Option<Extent> {
        self.guard
    }

    /// Whether it has ended and given everything back.
    pub(super) fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Gives back what it had and tells those that wait for that. It runs no more.
    pub(super) fn bury(&self) {
        drop(self.stack.lock().take());
        drop(self.tls.lock().take());
        self.dead.store(true, Ordering::Release);
        self.joiners.wake_all();
    }

    /// Drops what this vCPU may remember of the page below the stack from before it was unmapped.
    pub(super) fn forget_guard(&self) {
        if let Some(guard) = self.guard {
            x86_64::instructions::tlb::flush(VirtAddr::new(guard.addr().as_u64()));
        }
    }
}

intrusive_adapter!(pub(super) RunAdapter = Arc<Thread>: Thread { run_link: LinkedListAtomicLink });
intrusive_adapter!(pub(super) TimerAdapter = UnsafeRef<Thread>: Thread { timer_link: RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for TimerAdapter {
    type Key = u64;
    fn get_key(&self, thread: &'a Thread) -> u64 {
        thread.deadline.load(Ordering::Relaxed)
    }
}

/// Puts on a new stack what [`segue_switch`] takes from it; gives the stack pointer.
///
/// # Safety
/// The 4 KiB below `top` are mapped writable and nobody's.
unsafe fn first_frame(top: u64) -> u64 {
    // As `segue_switch` leaves it: MXCSR and x87 control word, six registers, return address; then,
    // so that the stack is aligned as before a call, two words.
    let frame: [u64; 10] = [
        0x1f80 | 0x37f << 32,
        0,
        0,
        0,
        0,
        0,
        0,
        segue_thread_start as *const () as u64,
        0,
        0,
    ];
    let rsp = top - size_of_val(&frame) as u64;
    // SAFETY: the caller's promise.
    unsafe { core::ptr::with_exposed_provenance_mut::<[u64; 10]>(rsp as usize).write(frame) };
    rsp
}

unsafe extern "C" {
    /// Saves the calling context at `*save` and goes on with the one that was saved as `load`.
    ///
    /// All that the System V ABI has a function preserve: six registers, MXCSR's and the x87's
    /// control bits. The rest of the extended state is the caller's to lose; an interrupted thread
    /// has it on its stack (`vectors.S`).
    pub(super) fn segue_switch(save: *mut u64, load: u64);
    fn segue_thread_start();
}

core::arch::global_asm!(
    ".section .text.segue_switch, \"ax\", @progbits",
    ".globl segue_switch",
    "segue_switch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "sub rsp, 8",
    "stmxcsr [rsp]",
    "fnstcw [rsp + 4]",
    "mov [rdi], rsp",
    "mov rsp, rsi",
    "ldmxcsr [rsp]",
    "fldcw [rsp + 4]",
    "add rsp, 8",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    "segue_thread_start:",
    "xor ebp, ebp",
    "call {begin}",
    "ud2",
    begin = sym super::sched::begin,
);
