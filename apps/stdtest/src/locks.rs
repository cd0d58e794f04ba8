//! What threads wait for each other with.

use crate::ensure;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Barrier, Condvar, LazyLock, Mutex, Once, OnceLock, RwLock};
use std::thread;
use std::time::{Duration, Instant};

pub fn mutex() -> Result<String, String> {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 2000;
    // Two words that only agree when nobody else is inside.
    let pair = Mutex::new((0u64, 0u64));
    let torn = AtomicU32::new(0);
    thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                for _ in 0..ROUNDS {
                    let mut pair = pair.lock().unwrap();
                    if pair.0 != pair.1 {
                        torn.fetch_add(1, Ordering::Relaxed);
                    }
                    pair.0 += 1;
                    std::hint::spin_loop();
                    pair.1 += 1;
                }
            });
        }
    });
    let pair = pair.into_inner().unwrap();
    let expected = THREADS * ROUNDS;
    ensure(
        pair == (expected, expected) && torn.into_inner() == 0,
        || format!("{pair:?}"),
    )?;
    Ok(String::new())
}

pub fn try_lock() -> Result<String, String> {
    let lock = Mutex::new(());
    let held = lock.lock().unwrap();
    let refused = thread::scope(|s| s.spawn(|| lock.try_lock().is_err()).join().unwrap());
    drop(held);
    let given = thread::scope(|s| s.spawn(|| lock.try_lock().is_ok()).join().unwrap());
    ensure(refused && given, || {
        format!("refused={refused} given={given}")
    })?;
    Ok(String::new())
}

pub fn condvar() -> Result<String, String> {
    // A queue of four places between makers and takers.
    let state = Mutex::new((Vec::new(), 0u32));
    let (room, things) = (Condvar::new(), Condvar::new());
    const EACH: u32 = 300;
    let taken = AtomicU32::new(0);
    thread::scope(|s| {
        for _ in 0..3 {
            s.spawn(|| {
                for i in 0..EACH {
                    let mut state = room
                        .wait_while(state.lock().unwrap(), |s| s.0.len() >= 4)
                        .unwrap();
                    state.0.push(i);
                    things.notify_one();
                }
            });
            s.spawn(|| {
                for _ in 0..EACH {
                    let mut state = things
                        .wait_while(state.lock().unwrap(), |s| s.0.is_empty())
                        .unwrap();
                    taken.fetch_add(state.0.pop().unwrap(), Ordering::Relaxed);
                    state.1 += 1;
                    room.notify_one();
                }
            });
        }
    });
    let count = state.into_inner().unwrap().1;
    let (sum, expected) = (taken.into_inner(), 3 * (EACH * (EACH - 1) / 2));
    ensure(count == 3 * EACH && sum == expected, || {
        format!("{count} things, sum {sum}")
    })?;
    // All at once.
    let (gate, opened) = (Mutex::new(false), Condvar::new());
    thread::scope(|s| {
        for _ in 0..10 {
            s.spawn(|| drop(opened.wait_while(gate.lock().unwrap(), |open| !*open)));
        }
        thread::sleep(Duration::from_millis(5));
        *gate.lock().unwrap() = true;
        opened.notify_all();
    });
    Ok(String::new())
}

pub fn condvar_timeout() -> Result<String, String> {
    let (lock, never) = (Mutex::new(()), Condvar::new());
    let limit = Duration::from_millis(30);
    let start = Instant::now();
    let (_guard, result) = never
        .wait_timeout_while(lock.lock().unwrap(), limit, |()| true)
        .unwrap();
    let took = start.elapsed();
    ensure(result.timed_out() && took >= limit, || {
        format!("after {took:?}")
    })?;
    Ok(String::new())
}

pub fn rwlock() -> Result<String, String> {
    let lock = RwLock::new((0u64, 0u64));
    let (inside, most, torn) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                for _ in 0..500 {
                    let mut pair = lock.write().unwrap();
                    pair.0 += 1;
                    thread::yield_now();
                    pair.1 += 1;
                }
            });
        }
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..500 {
                    let pair = lock.read().unwrap();
                    let n = inside.fetch_add(1, Ordering::AcqRel) + 1;
                    most.fetch_max(n, Ordering::Relaxed);
                    if pair.0 != pair.1 {
                        torn.fetch_add(1, Ordering::Relaxed);
                    }
                    inside.fetch_sub(1, Ordering::AcqRel);
                }
            });
        }
    });
    let pair = lock.into_inner().unwrap();
    let torn = torn.into_inner();
    ensure(pair == (1000, 1000) && torn == 0, || {
        format!("{pair:?}, {torn} torn")
    })?;
    Ok(format!("readers_at_once={}", most.into_inner()))
}

pub fn barrier() -> Result<String, String> {
    const THREADS: usize = 6;
    let barrier = Barrier::new(THREADS);
    let (arrived, leaders, early) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    thread::scope(|s| {
        for _ in 0..THREADS {
            s.spawn(|| {
                for round in 1..=50u32 {
                    arrived.fetch_add(1, Ordering::AcqRel);
                    if barrier.wait().is_leader() {
                        leaders.fetch_add(1, Ordering::Relaxed);
                    }
                    if arrived.load(Ordering::Acquire) < round * THREADS as u32 {
                        early.fetch_add(1, Ordering::Relaxed);
                    }
                    barrier.wait();
                }
            });
        }
    });
    let (leaders, early) = (leaders.into_inner(), early.into_inner());
    ensure(leaders == 50 && early == 0, || {
        format!("{leaders} leaders, {early} early")
    })?;
    Ok(String::new())
}

pub fn once() -> Result<String, String> {
    static ONCE: Once = Once::new();
    static CELL: OnceLock<u32> = OnceLock::new();
    static RUNS: AtomicU32 = AtomicU32::new(0);
    static LAZY: LazyLock<u32> = LazyLock::new(|| {
        thread::sleep(Duration::from_millis(3));
        RUNS.fetch_add(100, Ordering::Relaxed);
        5
    });
    thread::scope(|s| {
        for _ in 0..8 {
            s.spawn(|| {
                ONCE.call_once(|| {
                    thread::sleep(Duration::from_millis(3));
                    RUNS.fetch_add(1, Ordering::Relaxed);
                });
                CELL.get_or_init(|| RUNS.fetch_add(10, Ordering::Relaxed));
                assert_eq!(*LAZY, 5);
            });
        }
    });
    let runs = RUNS.load(Ordering::Relaxed);
    ensure(runs == 111, || format!("runs {runs}"))?;
    Ok(String::new())
}

pub fn channel() -> Result<String, String> {
    let (sender, receiver) = mpsc::channel();
    let senders: Vec<_> = (0..5u64)
        .map(|i| {
            let sender = sender.clone();
            thread::spawn(move || (0..200).for_each(|n| sender.send(i * 1000 + n).unwrap()))
        })
        .collect();
    drop(sender);
    // Each one's in order, all of them.
    let mut next = [0u64; 5];
    for n in receiver {
        let from = (n / 1000) as usize;
        ensure(n % 1000 == next[from], || {
            format!("{n} after {}", next[from])
        })?;
        next[from] += 1;
    }
    ensure(next == [200; 5], || format!("{next:?}"))?;
    for sender in senders {
        sender.join().map_err(|_| "a panic")?;
    }
    Ok(String::new())
}

pub fn bounded_channel() -> Result<String, String> {
    for bound in [0, 1, 3] {
        let (sender, receiver) = sync_channel(bound);
        let filler = thread::spawn(move || (0..100u32).for_each(|n| sender.send(n).unwrap()));
        let got: Vec<u32> = receiver.iter().collect();
        filler.join().map_err(|_| "a panic")?;
        ensure(got == (0..100).collect::<Vec<_>>(), || {
            format!("bound {bound}: {got:?}")
        })?;
    }
    Ok(String::new())
}

pub fn channel_timeout() -> Result<String, String> {
    let (sender, receiver) = mpsc::channel::<u32>();
    ensure(receiver.try_recv() == Err(TryRecvError::Empty), || {
        "not empty".into()
    })?;
    let limit = Duration::from_millis(20);
    let start = Instant::now();
    let got = receiver.recv_timeout(limit);
    let took = start.elapsed();
    ensure(
        got == Err(RecvTimeoutError::Timeout) && took >= limit,
        || format!("{got:?} {took:?}"),
    )?;
    let late = thread::spawn(move || {
        thread::sleep(Duration::from_millis(5));
        sender.send(9).unwrap();
    });
    let got = receiver.recv_timeout(crate::PATIENCE);
    ensure(got == Ok(9), || format!("{got:?}"))?;
    late.join().map_err(|_| "a panic")?;
    ensure(receiver.recv().is_err(), || "not closed".into())?;
    Ok(String::new())
}
