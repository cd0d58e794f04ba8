//! Thread-locals, environment, random numbers, errors, logs.

use crate::ensure;
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

thread_local! {
    static PLAIN: Cell<u64> = const { Cell::new(17) };
    static LAZY: RefCell<Vec<u64>> = RefCell::new(vec![1, 2, 3]);
}

pub fn thread_locals() -> Result<String, String> {
    PLAIN.set(1);
    LAZY.with_borrow_mut(Vec::clear);
    let handles: Vec<_> = (0..6u64)
        .map(|i| {
            thread::spawn(move || {
                let fresh = PLAIN.get() == 17 && LAZY.with_borrow(|l| l[..] == [1, 2, 3]);
                PLAIN.set(i);
                LAZY.with_borrow_mut(|l| l.push(i));
                thread::sleep(Duration::from_millis(2));
                let kept = PLAIN.get() == i && LAZY.with_borrow(|l| l[..] == [1, 2, 3, i]);
                fresh && kept
            })
        })
        .collect();
    for handle in handles {
        ensure(handle.join().unwrap(), || "another thread's value".into())?;
    }
    ensure(PLAIN.get() == 1 && LAZY.with_borrow(Vec::is_empty), || {
        "main's value".into()
    })?;
    Ok(String::new())
}

pub fn destructors() -> Result<String, String> {
    static DROPPED: AtomicU32 = AtomicU32::new(0);
    struct Counted;
    impl Drop for Counted {
        fn drop(&mut self) {
            // A destructor may use another thread-local.
            PLAIN.set(PLAIN.get() + 1);
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }
    DROPPED.store(0, Ordering::Relaxed);
    thread_local!(static COUNTED: Counted = const { Counted });
    let handles: Vec<_> = (0..10)
        .map(|_| thread::spawn(|| COUNTED.with(|_| ())))
        .collect();
    for handle in handles {
        handle.join().map_err(|_| "a panic")?;
    }
    let dropped = DROPPED.load(Ordering::Relaxed);
    ensure(dropped == 10, || format!("{dropped} of 10 dropped"))?;
    Ok(String::new())
}

pub fn environment() -> Result<String, String> {
    let stack = std::env::var("RUST_MIN_STACK").map_err(|e| e.to_string())?;
    // SAFETY: no other thread looks at the environment now.
    unsafe { std::env::set_var("STDTEST", "a b") };
    ensure(std::env::var("STDTEST").as_deref() == Ok("a b"), || {
        "not set".into()
    })?;
    // SAFETY: as above.
    unsafe { std::env::remove_var("STDTEST") };
    ensure(std::env::var("STDTEST").is_err(), || "not removed".into())?;
    ensure(std::process::id() == 1, || "another process".into())?;
    // What `segue.env.GREETING=…` says, if it does.
    let greeting = std::env::var("GREETING").unwrap_or_default();
    Ok(format!("min_stack={stack} greeting={greeting}"))
}

/// Differ within a run; the line shows one, which differs from run to run.
pub fn random() -> Result<String, String> {
    let in_threads: Vec<_> = (0..8)
        .map(|_| thread::spawn(|| RandomState::new().hash_one(0u8)))
        .collect();
    let hashes: HashSet<u64> = in_threads.into_iter().map(|h| h.join().unwrap()).collect();
    ensure(hashes.len() == 8, || {
        format!("{} different of 8", hashes.len())
    })?;
    let mut block = vec![0u8; 100_000];
    segue::kernel::abi::random::fill(&mut block).map_err(|e| e.to_string())?;
    let ones: u32 = block.iter().map(|b| b.count_ones()).sum();
    // Six standard deviations of 800,000 coins.
    ensure(ones.abs_diff(400_000) < 2_700, || {
        format!("{ones} ones in 800,000 bits")
    })?;
    let mut empty: [u8; 0] = [];
    segue::kernel::abi::random::fill(&mut empty).map_err(|e| e.to_string())?;
    Ok(format!("seed={:016x}", hashes.iter().fold(0, |a, b| a ^ b)))
}

pub fn errors() -> Result<String, String> {
    use std::io::{ErrorKind, Write};
    use std::os::fd::FromRawFd;
    // SAFETY: there is no such descriptor, which is the point; it is not closed.
    let mut nothing = std::mem::ManuallyDrop::new(unsafe { std::fs::File::from_raw_fd(4000) });
    let error = nothing.write(&[1]).map(drop).unwrap_err();
    ensure(error.raw_os_error() == Some(9), || format!("{error:?}"))?;
    let kinds = [
        (11, ErrorKind::WouldBlock),
        (110, ErrorKind::TimedOut),
        (111, ErrorKind::ConnectionRefused),
        (104, ErrorKind::ConnectionReset),
        (32, ErrorKind::BrokenPipe),
        (2, ErrorKind::NotFound),
    ];
    for (errno, kind) in kinds {
        let error = std::io::Error::from_raw_os_error(errno);
        ensure(error.kind() == kind, || format!("{error:?}"))?;
    }
    Ok(String::new())
}

pub fn logs() -> Result<String, String> {
    log::info!("a record with \"quotes\"");
    log::debug!("printed with segue.log=debug only");
    Ok(format!("level={}", log::max_level()))
}
