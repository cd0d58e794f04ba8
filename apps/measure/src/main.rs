//! What small things cost, for `make bench`: the same program in an image and on Linux.
//!
//! Prints one line: `measure: clock_ns=… …`. Each is the median of a few runs: clocks may stand still
//! for a moment where the processor is emulated, so the least says nothing. In an image there is
//! more to it: a hypercall, and an event channel; and `--switch COUNT --state MIB` replaces it by
//! itself so often, with a preserved region of that size.

use std::arch::x86_64::{_mm_lfence, _rdtsc};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Thread};
use std::time::Instant;

/// Runs of which the one in the middle counts.
const RUNS: usize = 7;

#[cfg(target_os = "hermit")]
segue::trial!();

fn main() {
    #[cfg(target_os = "hermit")]
    if of_xen::switches() {
        return;
    }
    println!(
        "measure: work_ns={:.0} rdtsc_ns={:.1} clock_ns={:.1} yield_ns={:.0} wake_ns={:.0}{}",
        median(work),
        median(|| each(20_000, || {
            // SAFETY: SSE2, as any x86-64 processor has it.
            black_box(unsafe {
                _mm_lfence();
                _rdtsc()
            });
        })),
        median(|| each(20_000, || {
            black_box(Instant::now());
        })),
        median(switches),
        median(wakes),
        of_xen::measure()
    );
}

/// The median of a few.
fn median(measure: impl Fn() -> f64) -> f64 {
    let mut values = [0.0; RUNS];
    values.fill_with(measure);
    values.sort_by(f64::total_cmp);
    values[RUNS / 2]
}

/// Nanoseconds of one of many.
fn each(times: u32, mut what: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..times {
        what();
    }
    start.elapsed().as_nanos() as f64 / f64::from(times)
}

/// A million steps of computing with some memory, which waits for nothing: how fast the processor is.
fn work() -> f64 {
    let mut table = vec![0_u64; 8192];
    let mut state = black_box(0x9e37_79b9_7f4a_7c15_u64);
    let start = Instant::now();
    for _ in 0..1_000_000 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let at = state as usize % table.len();
        table[at] = table[at].wrapping_add(state);
    }
    black_box(table);
    start.elapsed().as_nanos() as f64
}

/// Two threads yield to each other: one switch. With one vCPU; with more there is nobody to yield to.
fn switches() -> f64 {
    const TIMES: u32 = 2000;
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..TIMES).for_each(|_| thread::yield_now()));
        }
    });
    start.elapsed().as_nanos() as f64 / f64::from(2 * TIMES)
}

/// Two threads wake each other in turn: from one to the other.
fn wakes() -> f64 {
    const TIMES: u32 = 1000;
    static MINE: AtomicBool = AtomicBool::new(false);
    // The run before has left it to the other: who begins too soon would take a turn too many.
    MINE.store(false, Ordering::Release);
    let turn = |other: &Thread, mine: bool| {
        while MINE.load(Ordering::Acquire) != mine {
            thread::park();
        }
        MINE.store(!mine, Ordering::Release);
        other.unpark();
    };
    let here = thread::current();
    let there = thread::spawn(move || (0..TIMES).for_each(|_| turn(&here, true)));
    let other = there.thread().clone();
    MINE.store(true, Ordering::Release);
    other.unpark();
    let start = Instant::now();
    (0..TIMES).for_each(|_| turn(&other, false));
    let took = start.elapsed().as_nanos() as f64;
    // A panic of the other would have ended us.
    let _ = there.join();
    took / f64::from(2 * TIMES)
}

#[cfg(target_os = "hermit")]
mod of_xen {
    use std::hint::{black_box, spin_loop};
    use std::sync::atomic::{AtomicU32, Ordering};

    use segue::kernel::xen::{Committed, events, hypercall};
    use segue::preserved::Region;

    static CAME: AtomicU32 = AtomicU32::new(0);

    /// The name of what is preserved.
    const STATE: &str = "state";

    /// Does what `--switch COUNT --state MIB` asks for; whether it does.
    pub fn switches() -> bool {
        let args: Vec<String> = std::env::args().skip(1).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let ["--switch", count, "--state", mib] = args[..] else {
            segue::commit();
            return false;
        };
        let count: u64 = count.parse().unwrap_or(0);
        let bytes = mib.parse::<usize>().unwrap_or(0) << 20;
        let taken = Region::<[u8]>::take(STATE, 1);
        segue::commit();
        let region = match taken {
            Ok(region) => Some(region),
            Err(_) if bytes == 0 => None,
            Err(error) if segue::generation() > 1 => panic!("no state: {error}"),
            Err(_) => Some(Region::create(STATE, 1, bytes).expect("memory for the state")),
        };
        if segue::generation() > count {
            let kept = region.map_or(0, |region| region.get().len());
            println!("measure: switched {count} state={kept}");
            return true;
        }
        let bundle = segue::bundles().next().expect("a bundle as ramdisk");
        let error = segue::replace_image(bundle).expect_err("came back");
        println!("measure: not switched: {error}");
        true
    }

    /// A hypercall that does nothing, and an event that a vCPU sends itself, until its handler runs.
    pub fn measure() -> String {
        let Some(token) = Committed::get() else {
            return String::new();
        };
        let call = super::median(|| {
            super::each(500, || {
                let _ = black_box(hypercall::current_reservation(token));
            })
        });
        let port = match hypercall::bind_ipi(token, 0) {
            Ok(port) => port,
            Err(error) => return format!(" hypercall_ns={call:.0} error=\"{error:?}\""),
        };
        events::handle(token, port, |_| {
            CAME.fetch_add(1, Ordering::Release);
        });
        let event = super::median(|| {
            super::each(300, || {
                let before = CAME.load(Ordering::Acquire);
                if hypercall::send(token, port).is_ok() {
                    while CAME.load(Ordering::Acquire) == before {
                        spin_loop();
                    }
                }
            })
        });
        let _ = hypercall::close(token, port);
        format!(" hypercall_ns={call:.0} event_ns={event:.0}")
    }
}

#[cfg(not(target_os = "hermit"))]
mod of_xen {
    /// A program on Linux makes none.
    pub fn measure() -> String {
        String::new()
    }
}
