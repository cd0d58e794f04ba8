//! Starting, stopping and sharing vCPUs.

use crate::ensure;
use std::collections::HashSet;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

pub fn spawn() -> Result<String, String> {
    let handles: Vec<_> = (0..8u64)
        .map(|i| thread::spawn(move || (0..=i).sum::<u64>()))
        .collect();
    for (i, handle) in (0..8u64).zip(handles) {
        let sum = handle.join().map_err(|_| "a panic")?;
        ensure(sum == i * (i + 1) / 2, || format!("thread {i} gave {sum}"))?;
    }
    Ok(String::new())
}

pub fn builder() -> Result<String, String> {
    let named = thread::Builder::new()
        .name("a name".into())
        .stack_size(512 * 1024)
        .spawn(|| {
            // As much as the stack is said to have, less what std and this take.
            let block = black_box([7u8; 400 * 1024]);
            (
                thread::current().name().map(String::from),
                block.iter().map(|b| u64::from(*b)).sum::<u64>(),
            )
        })
        .map_err(|e| e.to_string())?;
    let (name, sum) = named.join().map_err(|_| "a panic")?;
    ensure(name.as_deref() == Some("a name"), || format!("{name:?}"))?;
    ensure(sum == 7 * 400 * 1024, || format!("sum {sum}"))?;
    Ok(String::new())
}

pub fn scoped() -> Result<String, String> {
    let mut numbers = vec![1u64; 1000];
    let total = AtomicU64::new(0);
    thread::scope(|s| {
        for part in numbers.chunks_mut(250) {
            let total = &total;
            s.spawn(move || {
                for n in part.iter_mut() {
                    *n *= 3;
                }
                total.fetch_add(part.iter().sum(), Ordering::Relaxed);
            });
        }
    });
    let sum: u64 = numbers.iter().sum();
    ensure(sum == 3000 && total.into_inner() == 3000, || {
        format!("sum {sum}")
    })?;
    Ok(String::new())
}

pub fn parallelism() -> Result<String, String> {
    let n = thread::available_parallelism().map_err(|e| e.to_string())?;
    let vcpus = segue::vcpus() as usize;
    ensure(n.get() == vcpus, || format!("{n} of {vcpus}"))?;
    // As many threads as vCPUs get to run at the same time, each on its own.
    let barrier = Barrier::new(vcpus);
    let seen = std::sync::Mutex::new(HashSet::new());
    let deadline = Instant::now() + crate::PATIENCE;
    thread::scope(|s| {
        for _ in 0..vcpus {
            s.spawn(|| {
                barrier.wait();
                while Instant::now() < deadline {
                    let count = {
                        let mut seen = seen.lock().unwrap();
                        seen.insert(segue::vcpu::current());
                        seen.len()
                    };
                    if count == vcpus {
                        break;
                    }
                    for _ in 0..1000 {
                        spin_loop();
                    }
                }
            });
        }
    });
    let seen = seen.into_inner().unwrap().len();
    ensure(seen == vcpus, || format!("{seen} of {vcpus} vCPUs used"))?;
    Ok(format!("vcpus={vcpus}"))
}

pub fn park() -> Result<String, String> {
    let flag = Arc::new(AtomicU32::new(0));
    let parked = thread::spawn({
        let flag = Arc::clone(&flag);
        move || {
            for round in 1..=200 {
                while flag.load(Ordering::Acquire) < round {
                    thread::park();
                }
            }
        }
    });
    for round in 1..=200 {
        flag.store(round, Ordering::Release);
        parked.thread().unpark();
        if round % 16 == 0 {
            thread::sleep(Duration::from_micros(200));
        }
    }
    parked.join().map_err(|_| "a panic")?;
    // An unpark before the park is not lost; a time-out ends a park.
    thread::current().unpark();
    thread::park();
    let start = Instant::now();
    thread::park_timeout(Duration::from_millis(20));
    let took = start.elapsed();
    ensure(took >= Duration::from_millis(19), || {
        format!("parked {took:?}")
    })?;
    Ok(String::new())
}

pub fn yields() -> Result<String, String> {
    // More than there are vCPUs, each waiting for the one before.
    let turn = AtomicU32::new(0);
    thread::scope(|s| {
        for me in 0..8 {
            let turn = &turn;
            s.spawn(move || {
                for round in 0..5 {
                    while turn.load(Ordering::Acquire) != round * 8 + me {
                        thread::yield_now();
                    }
                    turn.fetch_add(1, Ordering::AcqRel);
                }
            });
        }
    });
    ensure(turn.into_inner() == 40, || "not all had their turn".into())?;
    Ok(String::new())
}

pub fn ids() -> Result<String, String> {
    let handles: Vec<_> = (0..20)
        .map(|_| thread::spawn(|| thread::current().id()))
        .collect();
    let ids: HashSet<_> = handles.into_iter().map(|h| h.join().unwrap()).collect();
    ensure(ids.len() == 20, || format!("{} ids", ids.len()))?;
    ensure(thread::current().name() == Some("main"), || {
        "main has another name".into()
    })?;
    Ok(String::new())
}

/// Spinners on every vCPU, twice as many as there are, and work that has to get on.
pub fn spinners() -> Result<String, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let count = 2 * segue::vcpus();
    let turns: Arc<Vec<AtomicU64>> = Arc::new((0..count).map(|_| AtomicU64::new(0)).collect());
    let handles: Vec<_> = (0..count as usize)
        .map(|i| {
            let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    turns[i].fetch_add(1, Ordering::Relaxed);
                    spin_loop();
                }
            })
        })
        .collect();
    let (sender, receiver) = std::sync::mpsc::channel();
    let worker = thread::spawn(move || {
        for i in 0..20 {
            thread::sleep(Duration::from_millis(1));
            sender.send(i).unwrap();
        }
    });
    let start = Instant::now();
    let got: Vec<u32> = receiver.iter().collect();
    let took = start.elapsed();
    worker.join().map_err(|_| "a panic")?;
    // Every spinner has had a turn, too.
    let deadline = Instant::now() + crate::PATIENCE;
    let waits = || {
        turns
            .iter()
            .filter(|t| t.load(Ordering::Relaxed) == 0)
            .count()
    };
    while waits() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let starved = waits();
    stop.store(true, Ordering::Relaxed);
    for handle in handles {
        handle.join().map_err(|_| "a panic")?;
    }
    ensure(got == (0..20).collect::<Vec<_>>(), || format!("{got:?}"))?;
    ensure(starved == 0, || {
        format!("{starved} of {count} spinners had no turn")
    })?;
    ensure(took < crate::PATIENCE, || format!("took {took:?}"))?;
    Ok(format!("spinners={count} worker_us={}", took.as_micros()))
}

/// One computation in floating point, the same in all threads: preempted in the middle.
fn compute(seed: f64, rounds: u64) -> (f64, f64) {
    let (mut a, mut b, mut sum) = (seed, seed * 0.5, [0.0f64; 8]);
    for i in 0..rounds {
        a = (a * 1.000_1 + b).sqrt();
        b = b * 0.999_9 + 1.0 / (a + 1.0);
        sum[(i % 8) as usize] += a - b;
    }
    (black_box(a), black_box(sum.iter().sum()))
}

pub fn floating_point() -> Result<String, String> {
    const ROUNDS: u64 = 300_000;
    let threads = 3 * segue::vcpus() as usize;
    let handles: Vec<_> = (0..threads)
        .map(|i| thread::spawn(move || compute(i as f64 + 1.0, ROUNDS)))
        .collect();
    let results: Vec<_> = handles.into_iter().map(|h| h.join().unwrap()).collect();
    for (i, result) in results.iter().enumerate() {
        let expected = compute(i as f64 + 1.0, ROUNDS);
        ensure(
            result.0.to_bits() == expected.0.to_bits()
                && result.1.to_bits() == expected.1.to_bits(),
            || format!("thread {i}: {result:?}, alone {expected:?}"),
        )?;
    }
    Ok(format!("threads={threads}"))
}

/// 200 threads alive at once.
pub fn many() -> Result<String, String> {
    const THREADS: usize = 200;
    let barrier = Arc::new(Barrier::new(THREADS + 1));
    let handles: Result<Vec<_>, _> = (0..THREADS)
        .map(|i| {
            let barrier = Arc::clone(&barrier);
            thread::Builder::new().stack_size(32 * 1024).spawn(move || {
                barrier.wait();
                i
            })
        })
        .collect();
    let handles = handles.map_err(|e| e.to_string())?;
    barrier.wait();
    let sum: usize = handles.into_iter().map(|h| h.join().unwrap()).sum();
    ensure(sum == THREADS * (THREADS - 1) / 2, || format!("sum {sum}"))?;
    Ok(format!("threads={THREADS}"))
}

/// Threads come and go, and leave nothing.
pub fn churn() -> Result<String, String> {
    const ROUNDS: u64 = 2000;
    let round = || {
        thread::Builder::new()
            .stack_size(64 * 1024)
            .spawn(|| black_box(vec![1u8; 100]).len())
            .map_err(|e| e.to_string())
            .and_then(|h| h.join().map_err(|_| "a panic".into()))
    };
    // The first ones may take page tables and heap that stay.
    for _ in 0..50 {
        round()?;
    }
    let before = segue::free_frames();
    let start = Instant::now();
    for _ in 0..ROUNDS {
        round()?;
    }
    let each = start.elapsed().as_micros() / u128::from(ROUNDS);
    let after = segue::free_frames();
    ensure(before == after, || {
        format!("{before} frames were free, now {after}")
    })?;
    // Nobody joins these: they go by themselves.
    for _ in 0..100 {
        drop(thread::Builder::new().stack_size(64 * 1024).spawn(|| ()));
    }
    let deadline = Instant::now() + crate::PATIENCE;
    while segue::free_frames() != before && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
    }
    let after = segue::free_frames();
    ensure(before == after, || {
        format!("detached: {before} frames were free, now {after}")
    })?;
    Ok(format!("rounds={ROUNDS} each_us={each}"))
}

/// Threads that allocate and free, also what another one has allocated.
pub fn memory() -> Result<String, String> {
    let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
    let makers: Vec<_> = (0..4u8)
        .map(|i| {
            let sender = sender.clone();
            thread::spawn(move || {
                for n in 0..200usize {
                    sender.send(vec![i; 1 + n * 37 % 5000]).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let mut bytes = [0usize; 4];
    for block in receiver {
        let first = usize::from(block[0]);
        ensure(block.iter().all(|b| usize::from(*b) == first), || {
            "a block was written to".into()
        })?;
        bytes[first] += block.len();
    }
    for maker in makers {
        maker.join().map_err(|_| "a panic")?;
    }
    ensure(bytes.iter().all(|b| *b == bytes[0]), || {
        format!("{bytes:?}")
    })?;
    Ok(String::new())
}

/// A busy thread of a low priority does not keep the others from running, nor they it for ever.
pub fn priorities() -> Result<String, String> {
    use segue::kernel::task::{self, Priority};
    let stop = Arc::new(AtomicBool::new(false));
    let turns = Arc::new([const { AtomicU64::new(0) }; 3]);
    let all = [Priority::Low, Priority::Normal, Priority::High];
    let handles: Vec<_> = (0..segue::vcpus())
        .flat_map(|_| all)
        .map(|priority| {
            let (stop, turns) = (Arc::clone(&stop), Arc::clone(&turns));
            thread::spawn(move || {
                let tid = task::current_tid();
                task::set_priority(tid, priority).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    turns[priority as usize].fetch_add(1, Ordering::Relaxed);
                    spin_loop();
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_millis(300));
    let deadline = Instant::now() + crate::PATIENCE;
    let starved = || {
        turns
            .iter()
            .filter(|t| t.load(Ordering::Relaxed) == 0)
            .count()
    };
    while starved() > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    let left = starved();
    stop.store(true, Ordering::Relaxed);
    for handle in handles {
        handle.join().map_err(|_| "a panic")?;
    }
    ensure(left == 0, || format!("{left} priorities had no turn"))?;
    Ok(String::new())
}

/// More stack than there is: an error, and nothing is lost.
pub fn out_of_memory() -> Result<String, String> {
    let before = segue::free_frames();
    for _ in 0..3 {
        let result = thread::Builder::new().stack_size(1 << 40).spawn(|| ());
        ensure(result.is_err(), || "a thread with a stack of 1 TiB".into())?;
    }
    let after = segue::free_frames();
    ensure(before == after, || {
        format!("{before} frames were free, now {after}")
    })?;
    Ok(String::new())
}

/// Replaces this image by itself from a thread, while others compute, sleep and wait.
pub fn switch(until: u64) {
    let generation = segue::generation();
    println!("stdtest: switch generation={generation} threads of the image before are gone");
    if generation >= until {
        println!("stdtest: done failed=0");
        return;
    }
    for i in 0..2 * segue::vcpus() {
        thread::spawn(move || compute(f64::from(i), u64::MAX));
        thread::spawn(|| thread::sleep(Duration::from_secs(3600)));
        thread::spawn(thread::park);
        thread::spawn(|| {
            loop {
                thread::sleep(Duration::from_micros(300));
            }
        });
    }
    let switcher = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        let bundle = segue::bundles().next().expect("stdtest's own bundle");
        segue::replace_image(bundle).unwrap_err().to_string()
    });
    let error = switcher.join().unwrap();
    println!("stdtest: done failed=1 error=\"{error}\"");
}
