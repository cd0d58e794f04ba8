//! What a test outside asks for: typed lines, the time, an end.

use polling::{Event, Events, Poller};
use std::io::{self, BufRead, Read};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Waits for input by poll, then repeats each line until the input ends; what follows is another
/// input.
pub fn stdin() -> io::Result<()> {
    let mut stdin = io::stdin().lock();
    let poller = Poller::new()?;
    let mut events = Events::new();
    // SAFETY: standard input is not closed, and is deleted below.
    unsafe { poller.add(&io::stdin(), Event::readable(0))? };
    let silent = poller.wait(&mut events, Some(Duration::from_millis(20)))?;
    println!("stdtest: stdin events={silent}");
    let typed = poller.wait(&mut events, Some(Duration::from_secs(60)))?;
    println!("stdtest: stdin events={typed}");
    poller.delete(io::stdin())?;
    for line in stdin.by_ref().lines() {
        println!("stdtest: line={:?}", line?);
    }
    println!("stdtest: end");
    let mut line = String::new();
    stdin.read_line(&mut line)?;
    println!("stdtest: after the end line={line:?}");
    Ok(())
}

/// Tells the time on both clocks, ten times a second.
pub fn tick() -> ! {
    let start = Instant::now();
    for tick in 1u64.. {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH);
        println!(
            "stdtest: tick={tick} up_ms={} wall_ms={}",
            start.elapsed().as_millis(),
            wall.map_or(0, |d| d.as_millis()),
        );
        thread::sleep(Duration::from_millis(100));
    }
    unreachable!("so many ticks take longer than the world has")
}

/// Waits to be asked to end, and ends or doesn't.
pub fn heed(ends: bool) {
    println!("stdtest: heeds");
    let kind = segue::shutdown::wait();
    println!("stdtest: asked={kind:?}");
    thread::sleep(Duration::from_millis(500));
    println!("stdtest: again={:?}", segue::shutdown::requested());
    if !ends {
        thread::sleep(Duration::from_secs(3600));
    }
}
