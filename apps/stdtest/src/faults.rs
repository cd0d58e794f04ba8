//! Ends of the image in a thread: the report has to name it.

use std::hint::black_box;
use std::thread;
use std::time::Duration;

/// Ends in a thread called `culprit`, while others run.
pub fn run(kind: &str) {
    for _ in 0..2 * segue::vcpus() {
        thread::spawn(|| {
            loop {
                std::hint::spin_loop();
            }
        });
    }
    let fault: fn() = match kind {
        "overflow" => || println!("{}", deep(1)),
        "panic" => || panic!("stdtest panics"),
        _ => || println!("stdtest: no fault of that kind"),
    };
    let culprit = thread::Builder::new()
        .name("culprit".into())
        .spawn(move || {
            thread::sleep(Duration::from_millis(5));
            fault();
        });
    let _ = culprit.unwrap().join();
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let block = black_box([n; 64]);
    if n == u64::MAX {
        n
    } else {
        deep(n + 1) + block[n as usize % 64]
    }
}
