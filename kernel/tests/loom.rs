//! Loom models: the files that threads block with, run in every order of their steps.
//!
//! The files are taken in as they are, over loom's threads and locks in place of the kernel's. A
//! wake that gets lost is a deadlock, which loom reports. Deadlines come at any time, as they may.

extern crate alloc;

#[allow(dead_code, reason = "the models use a part of each file")]
#[path = "."]
mod task {
    #[path = "../src/task/futex.rs"]
    pub mod futex;
    #[path = "../src/task/idle.rs"]
    pub mod idle;
    #[path = "../src/task/token.rs"]
    pub mod token;
    #[path = "../src/task/wait.rs"]
    pub mod wait;

    /// Loom's threads and locks.
    pub mod sys {
        pub use loom::sync::atomic::{AtomicU8, AtomicU32, fence};
        use std::sync::{Mutex, OnceLock};

        /// A lock that can be made in a const, as the kernel's can: loom's is made when it is first
        /// taken.
        #[derive(Debug)]
        pub struct Lock<T> {
            first: Mutex<Option<T>>,
            lock: OnceLock<loom::sync::Mutex<T>>,
        }

        impl<T> Lock<T> {
            pub const fn new(value: T) -> Self {
                Self {
                    first: Mutex::new(Some(value)),
                    lock: OnceLock::new(),
                }
            }

            pub fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
                let make = || {
                    let value = self.first.lock().unwrap().take();
                    loom::sync::Mutex::new(value.expect("made once"))
                };
                self.lock.get_or_init(make).lock().unwrap()
            }
        }

        #[derive(Clone, Debug)]
        pub struct Handle(loom::thread::Thread);

        impl Handle {
            pub fn unpark(&self) {
                self.0.unpark();
            }
        }

        #[allow(
            clippy::unnecessary_wraps,
            reason = "the kernel has moments without threads"
        )]
        pub fn current() -> Option<Handle> {
            Some(Handle(loom::thread::current()))
        }

        /// A deadline of [`now`] is over as soon as it is waited for.
        pub fn park(deadline: Option<u64>) {
            match deadline {
                None => loom::thread::park(),
                Some(_) => loom::thread::yield_now(),
            }
        }

        pub fn now() -> u64 {
            0
        }
    }
}

#[allow(dead_code, reason = "the models use a part of each file")]
#[path = "."]
mod replace {
    #[path = "../src/replace/gate.rs"]
    pub mod gate;
    #[path = "../src/replace/protocol.rs"]
    pub mod protocol;
}

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use loom::thread;
use replace::gate::Gate;
use replace::protocol::{self, place, release, taken, verdict};
use task::futex::{NotWoken, Table};
use task::idle::{Idle, IdleSet, State};
use task::token::Token;
use task::wait::WaitQueue;

/// Takes one of `n` things; what threads wait for in these models.
fn take(n: &AtomicU32) -> Option<()> {
    let less = |n: u32| n.checked_sub(1);
    n.fetch_update(Ordering::AcqRel, Ordering::Acquire, less)
        .ok()
        .map(drop)
}

#[test]
fn futex_wake_is_never_lost() {
    loom::model(|| {
        let table = Arc::new(Table::<1>::new());
        let word = Arc::new(AtomicU32::new(0));
        let waker = thread::spawn({
            let (table, word) = (table.clone(), word.clone());
            move || {
                word.store(1, Ordering::Release);
                table.wake(4, 1);
            }
        });
        while word.load(Ordering::Acquire) == 0 {
            let me = task::sys::current().unwrap();
            let _ = table.wait(4, None, me, || word.load(Ordering::Acquire) == 0);
        }
        waker.join().unwrap();
    });
}

#[test]
fn a_futex_wake_of_one_reaches_a_thread_that_still_waits() {
    loom::model(|| {
        let table = Arc::new(Table::<1>::new());
        let word = Arc::new(AtomicU32::new(0));
        // One gives up by its deadline; a wake that was counted for it was needed by nobody else.
        let impatient = thread::spawn({
            let (table, word) = (table.clone(), word.clone());
            move || {
                let me = task::sys::current().unwrap();
                table.wait(4, Some(0), me, || word.load(Ordering::Acquire) == 0)
            }
        });
        let waker = thread::spawn({
            let (table, word) = (table.clone(), word.clone());
            move || {
                word.store(1, Ordering::Release);
                table.wake(4, 1)
            }
        });
        let outcome = impatient.join().unwrap();
        let woken = waker.join().unwrap();
        match outcome {
            Ok(()) => assert_eq!(woken, 1),
            Err(NotWoken::TimedOut | NotWoken::Changed) => assert_eq!(woken, 0),
        }
    });
}

#[test]
fn a_wait_queue_loses_no_wake() {
    loom::model(|| {
        let queue = Arc::new(WaitQueue::new());
        let things = Arc::new(AtomicU32::new(0));
        let waker = thread::spawn({
            let (queue, things) = (queue.clone(), things.clone());
            move || {
                things.fetch_add(1, Ordering::AcqRel);
                queue.wake_one();
            }
        });
        assert_eq!(queue.wait_until(None, || take(&things)), Some(()));
        waker.join().unwrap();
    });
}

#[test]
fn a_wake_of_one_is_passed_on_by_who_does_not_need_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let queue = Arc::new(WaitQueue::new());
        let things = Arc::new(AtomicU32::new(0));
        let taker = thread::spawn({
            let (queue, things) = (queue.clone(), things.clone());
            move || queue.wait_until(None, || take(&things))
        });
        let waker = thread::spawn({
            let (queue, things) = (queue.clone(), things.clone());
            move || {
                for _ in 0..2 {
                    things.fetch_add(1, Ordering::AcqRel);
                    queue.wake_one();
                }
            }
        });
        assert_eq!(queue.wait_until(None, || take(&things)), Some(()));
        assert_eq!(taker.join().unwrap(), Some(()));
        waker.join().unwrap();
    });
}

#[test]
fn a_wait_that_times_out_takes_no_wake_with_it() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let queue = Arc::new(WaitQueue::new());
        let things = Arc::new(AtomicU32::new(0));
        let impatient = thread::spawn({
            let (queue, things) = (queue.clone(), things.clone());
            move || queue.wait_until(Some(0), || take(&things))
        });
        let waker = thread::spawn({
            let (queue, things) = (queue.clone(), things.clone());
            move || {
                // One for each, one after the other.
                for _ in 0..2 {
                    things.fetch_add(1, Ordering::AcqRel);
                    queue.wake_one();
                }
            }
        });
        assert_eq!(queue.wait_until(None, || take(&things)), Some(()));
        impatient.join().unwrap();
        waker.join().unwrap();
    });
}

#[test]
fn several_wakes_make_a_parked_thread_runnable_once() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let token = Arc::new(Token::new());
        // What the scheduler does: a thread is run by whoever is told to make it runnable.
        let runnable = Arc::new(AtomicU32::new(0));
        let happened = Arc::new(AtomicBool::new(false));
        let wakers: Vec<_> = (0..2)
            .map(|_| {
                let (token, runnable, happened) =
                    (token.clone(), runnable.clone(), happened.clone());
                thread::spawn(move || {
                    happened.store(true, Ordering::Relaxed);
                    if token.unpark() {
                        runnable.fetch_add(1, Ordering::Release);
                    }
                })
            })
            .collect();
        let left = token.park();
        if left {
            while runnable.load(Ordering::Acquire) == 0 {
                thread::yield_now();
            }
            token.resumed();
        }
        assert!(happened.load(Ordering::Relaxed), "went on without a wake");
        for waker in wakers {
            waker.join().unwrap();
        }
        assert_eq!(runnable.load(Ordering::Acquire), u32::from(left));
    });
}

#[test]
fn work_for_an_idle_vcpu_is_seen_or_an_interrupt_is_sent() {
    loom::model(|| {
        let idle = Arc::new(Idle::with(task::sys::AtomicU8::new(State::Busy as u8)));
        let length = Arc::new(AtomicU32::new(0));
        let interrupt = Arc::new(AtomicBool::new(false));
        let giver = thread::spawn({
            let (idle, length, interrupt) = (idle.clone(), length.clone(), interrupt.clone());
            move || {
                length.store(1, Ordering::Release);
                if idle.must_interrupt() {
                    interrupt.store(true, Ordering::Release);
                }
            }
        });
        idle.set(State::Polling);
        if length.load(Ordering::Acquire) == 0 {
            idle.set(State::Halted);
            // HLT with interrupts on ends when one is pending: it must be, or come.
            if length.load(Ordering::Acquire) == 0 {
                while !interrupt.load(Ordering::Acquire) {
                    thread::yield_now();
                }
            }
        }
        idle.set(State::Busy);
        assert_eq!(length.load(Ordering::Acquire), 1);
        giver.join().unwrap();
    });
}

#[test]
fn a_vcpu_whose_work_was_stolen_can_be_claimed_again() {
    loom::model(|| {
        let idle = Arc::new(Idle::with(task::sys::AtomicU8::new(State::Busy as u8)));
        let set = Arc::new(IdleSet::with(task::sys::AtomicU32::new(0)));
        let length = Arc::new(AtomicU32::new(0));
        let interrupt = Arc::new(AtomicBool::new(false));
        let others = thread::spawn({
            let (idle, set) = (idle.clone(), set.clone());
            let (length, interrupt) = (length.clone(), interrupt.clone());
            move || {
                if set.claim_any() == Some(0) {
                    length.fetch_add(1, Ordering::Release);
                    if idle.must_interrupt() {
                        interrupt.store(true, Ordering::Release);
                    }
                    take(&length);
                }
            }
        });
        idle.set(State::Polling);
        set.add(0);
        let mut sleeps = false;
        if length.load(Ordering::Acquire) == 0 {
            idle.set(State::Halted);
            set.add(0);
            sleeps = length.load(Ordering::Acquire) == 0;
        }
        others.join().unwrap();
        // Asleep for good only where the next one finds it.
        if sleeps && !interrupt.load(Ordering::Acquire) {
            assert_eq!(set.claim_any(), Some(0));
        }
    });
}

/// The words of the park pages, one vCPU that parks, and the pages themselves.
struct Pages {
    release: AtomicU32,
    place: AtomicU32,
    /// The port that parked vCPUs poll on is pending: it stays so, nobody takes it.
    event: AtomicBool,
    /// What parked vCPUs run on. Loom sees who looks at it while another writes it.
    code: UnsafeCell<u32>,
}

impl Pages {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            release: AtomicU32::new(release::RESUME),
            place: AtomicU32::new(place::ELSEWHERE),
            event: AtomicBool::new(false),
            code: UnsafeCell::new(0),
        })
    }

    /// A switch has begun, and the park interrupt is on its way to the other vCPU.
    fn held() -> (Arc<Self>, thread::JoinHandle<Option<u32>>) {
        let pages = Self::new();
        assert!(pages.write());
        protocol::hold(&pages.release);
        let parks = thread::spawn({
            let pages = pages.clone();
            move || pages.interrupt()
        });
        (pages, parks)
    }

    /// The park interrupt, with `park` of park.S written out. Says where it was sent.
    fn interrupt(&self) -> Option<u32> {
        let mut to = None;
        if protocol::enter(&self.place, &self.release) {
            self.code.with(|_| ());
            self.place.store(place::PARKED, Ordering::SeqCst);
            to = loop {
                match self.release.load(Ordering::SeqCst) {
                    // SCHEDOP_poll: until the port is pending.
                    release::HOLD => {
                        while !self.event.load(Ordering::Acquire) {
                            thread::yield_now();
                        }
                    }
                    to => break Some(to),
                }
            };
            self.code.with(|_| ());
            if to == Some(release::COMMIT) {
                // It is the new image's now, and does not come back.
                return to;
            }
        }
        protocol::leave(&self.place);
        to
    }

    /// `arm`: writes the pages, unless a vCPU is near them.
    fn write(&self) -> bool {
        let free = protocol::is_elsewhere(&self.place);
        if free {
            // SAFETY: loom looks whether anybody else is there.
            self.code.with_mut(|code| unsafe { *code += 1 });
        }
        free
    }

    fn send_on(&self, to: u32) {
        protocol::send_on(&self.release, to);
        self.event.store(true, Ordering::Release);
    }
}

#[test]
fn park_pages_are_not_written_while_a_late_vcpu_is_in_them() {
    loom::model(|| {
        let (pages, parks) = Pages::held();
        // It did not park in time, or it did: resume.
        pages.send_on(release::RESUME);
        while protocol::is_parked(&pages.place) {
            thread::yield_now();
        }
        // The next switch, for which the interrupt of this one may come.
        if pages.write() {
            pages.event.store(false, Ordering::Release);
            protocol::hold(&pages.release);
            pages.send_on(release::RESUME);
        }
        assert!(matches!(
            parks.join().unwrap(),
            None | Some(release::RESUME)
        ));
    });
}

#[test]
fn a_parked_vcpu_goes_on_where_it_is_sent() {
    for to in [release::RESUME, release::COMMIT] {
        loom::model(move || {
            let (pages, parks) = Pages::held();
            while !protocol::is_parked(&pages.place) {
                thread::yield_now();
            }
            if to == release::COMMIT {
                protocol::forget(&pages.place);
            }
            pages.send_on(to);
            assert_eq!(parks.join().unwrap(), Some(to));
            assert!(!protocol::is_parked(&pages.place));
        });
    }
}

#[test]
fn one_decides_about_a_trial_and_one_takes_its_vcpu_back() {
    loom::model(|| {
        let word = |value| Arc::new(AtomicU32::new(value));
        let (decision, taker) = (word(verdict::PENDING), word(taken::OPEN));
        let nmi = Arc::new(AtomicBool::new(false));
        // The watcher of park.S: its time is over.
        let watcher = thread::spawn({
            let (decision, taker, nmi) = (decision.clone(), taker.clone(), nmi.clone());
            move || {
                if !protocol::decide(&decision, verdict::HUNG) {
                    return false;
                }
                nmi.store(true, Ordering::Release);
                // The NMI is not taken soon: then by INIT, unless it comes after all.
                taker
                    .compare_exchange(taken::OPEN, taken::INIT, Ordering::SeqCst, Ordering::SeqCst)
                    .is_ok()
            }
        });
        // The trial commits at the last moment, and may be hit by the NMI wherever it is.
        let committed = protocol::decide(&decision, verdict::COMMITTED);
        let by_nmi = nmi.load(Ordering::Acquire)
            && taker
                .compare_exchange(taken::OPEN, taken::OURS, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok();
        let by_init = watcher.join().unwrap();
        assert!(!(by_nmi && by_init), "taken back twice");
        assert!(!(committed && (by_nmi || by_init)), "committed and resumed");
        let hung = decision.load(Ordering::SeqCst) == verdict::HUNG;
        assert_eq!(committed, !hung);
    });
}

#[test]
fn a_switch_finds_no_region_half_changed() {
    loom::model(|| {
        let gate = Arc::new(Gate::with(AtomicU32::new(0)));
        let region = Arc::new(UnsafeCell::new(0));
        let changes = thread::spawn({
            let (gate, region) = (gate.clone(), region.clone());
            move || {
                let inside = gate.enter();
                // SAFETY: loom looks whether anybody else is there.
                region.with_mut(|value| unsafe { *value += 1 });
                drop(inside);
            }
        });
        // The switch, at once or after a wait that may run out.
        if gate.try_close() || gate.close(0) {
            region.with(|_| ());
            gate.open();
        }
        changes.join().unwrap();
    });
}
