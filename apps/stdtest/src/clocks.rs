//! Sleeping and telling the time.

use crate::ensure;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Never shorter than asked for.
pub fn sleep() -> Result<String, String> {
    let mut late = Duration::ZERO;
    for us in [0, 1, 50, 500, 1_000, 5_000, 20_000, 100_000] {
        let asked = Duration::from_micros(us);
        let start = Instant::now();
        thread::sleep(asked);
        let took = start.elapsed();
        ensure(took >= asked, || format!("{took:?} in place of {asked:?}"))?;
        late = late.max(took - asked);
    }
    ensure(late < crate::PATIENCE, || format!("late by {late:?}"))?;
    Ok(format!("late_us={}", late.as_micros()))
}

/// Each is woken at its time, in their order but for what the host's load does.
pub fn many_sleepers() -> Result<String, String> {
    let start = Instant::now();
    let woken = Mutex::new(Vec::new());
    thread::scope(|s| {
        for i in 0..40u64 {
            let woken = &woken;
            thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn_scoped(s, move || {
                    let asked = Duration::from_millis(10 + i * 37 % 40 * 5);
                    let until = start + asked;
                    thread::sleep(until.saturating_duration_since(Instant::now()));
                    let now = Instant::now();
                    woken.lock().unwrap().push((until, now));
                })
                .unwrap();
        }
    });
    let woken = woken.into_inner().unwrap();
    ensure(woken.len() == 40, || format!("{} of 40 woken", woken.len()))?;
    ensure(woken.iter().all(|(until, now)| now >= until), || {
        "one was early".into()
    })?;
    let late = woken
        .iter()
        .map(|(until, now)| *now - *until)
        .max()
        .unwrap_or_default();
    ensure(late < crate::PATIENCE, || format!("late by {late:?}"))?;
    Ok(format!("late_us={}", late.as_micros()))
}

/// Never backward, also from thread to thread.
pub fn instant() -> Result<String, String> {
    let last = Mutex::new(Instant::now());
    let backward = Mutex::new(0);
    thread::scope(|s| {
        for _ in 0..2 * segue::vcpus() {
            s.spawn(|| {
                for _ in 0..2000 {
                    let mut last = last.lock().unwrap();
                    let now = Instant::now();
                    if now < *last {
                        *backward.lock().unwrap() += 1;
                    }
                    *last = now;
                }
            });
        }
    });
    let backward = backward.into_inner().unwrap();
    ensure(backward == 0, || format!("{backward} times backward"))?;
    Ok(String::new())
}

pub fn system_time() -> Result<String, String> {
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).map_err(|e| e.to_string())?;
    ensure(since > Duration::from_secs(1_600_000_000), || {
        format!("{since:?}")
    })?;
    thread::sleep(Duration::from_millis(5));
    let passed = now.elapsed().map_err(|e| e.to_string())?;
    ensure(passed >= Duration::from_millis(5), || {
        format!("{passed:?} in 5 ms")
    })?;
    Ok(format!("unix={}", since.as_secs()))
}
