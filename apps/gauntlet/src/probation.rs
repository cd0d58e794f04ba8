//! The time after a commit: what the new image may do in it, and who has the domain then.
//!
//! `--probation WHAT ROUNDS` is the image that switches. The new one gets `--probationer WHAT
//! ROUNDS`, commits, and does it; who has the domain after that tells, and goes on to the next round.
//! WHAT may be several with commas between: they take turns.

use crate::{faults, own_bundle};
use segue::handover::Refusal;
use segue::kernel::replace::Place;
use segue::preserved::Region;
use std::net::UdpSocket;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Whose turn it is: each switch and what comes of it are two generations.
fn turn(all: &str) -> &str {
    let round = (segue::generation() - 1) / 2;
    let count = all.split(',').count() as u64;
    all.split(',').nth((round % count) as usize).unwrap_or(all)
}

/// Counts what new images there were; until one crashes while it changes it.
static REGION: Mutex<Option<Region<[u64]>>> = Mutex::new(None);
const REGION_WORDS: usize = 10_000;

/// Takes the region, on trial; it is freed at the commit if nobody does.
pub fn keep() {
    match Region::take("probation", 1) {
        Ok(region) => *REGION.lock().unwrap_or_else(PoisonError::into_inner) = Some(region),
        Err(error) => println!("gauntlet: no region: {error}"),
    }
}

/// Runs `f` on the region, which is made if there is none; says how it came.
fn with_region<R>(f: impl FnOnce(&mut Region<[u64]>) -> R) -> (&'static str, R) {
    let mut region = REGION.lock().unwrap_or_else(PoisonError::into_inner);
    let came = if region.is_some() { "kept" } else { "new" };
    let region = region.get_or_insert_with(|| {
        Region::create("probation", 1, REGION_WORDS).expect("memory for a region")
    });
    (came, f(region))
}

/// The image that switches, and is back.
pub fn run(all: &str, rounds: &str) {
    let (what, generation) = (turn(all), segue::generation());
    // Not a word of it may be another.
    let (came, count) = with_region(|r| {
        let first = r.get()[0];
        r.get().iter().all(|word| *word == first).then_some(first)
    });
    let audit = segue::audit().expect("an audit");
    println!(
        "gauntlet: has={} generation={generation} rounds={rounds} region={came} count={} time={} {audit}",
        if generation == 1 { "first" } else { "old" },
        count.map_or(-1, |count| count as i64),
        segue::system_time(),
    );
    // The command line is the same each time it is back: generations tell the rounds.
    let rounds: u64 = rounds.parse().unwrap_or(0);
    if generation > 2 * rounds {
        println!("gauntlet: probation done");
        return;
    }
    if what == "twice" && generation > 1 {
        panic!("gauntlet panics without a way back");
    }
    let args = format!("--probationer {all} {rounds}");
    let mut replace = segue::Replace::new(own_bundle()).args(&args);
    if matches!(what, "time" | "unconfirmed" | "stubborn") {
        replace = replace.probation(Duration::from_secs(2));
    }
    if matches!(what, "unconfirmed" | "stubborn") {
        replace = replace.must_be_confirmed();
    }
    let place = match what {
        "committed" => Some(Place::Committed),
        "adopting" => Some(Place::Adopting),
        "adopted" => Some(Place::Adopted),
        _ => None,
    };
    replace = replace.options(|o| o.faults.at = place);
    if what == "without" {
        replace = replace.without_way_back();
    }
    let error = replace.start().unwrap_err();
    println!("gauntlet: no switch: {error}");
}

/// The new image, on probation.
pub fn new(all: &str, rounds: &str) {
    let what = turn(all);
    println!(
        "gauntlet: has=new generation={} probation={}",
        segue::generation(),
        segue::probation().is_some()
    );
    with_region(|r| r.update(|words| words.iter_mut().for_each(|word| *word += 1)))
        .1
        .expect("not on trial");
    match what {
        "torn" => {
            with_region(|r| {
                let mut words = r.edit().expect("not on trial");
                words[0] += 1;
                panic!("gauntlet panics while it changes a region");
            })
            .1
        }
        "confirm" => println!("gauntlet: confirmed={}", segue::confirm()),
        "time" => {
            while segue::probation().is_some() {
                thread::sleep(Duration::from_millis(50));
            }
        }
        "unconfirmed" => thread::sleep(Duration::from_secs(60)),
        // It will not be taken back in order.
        "stubborn" => {
            segue::on_replace(|_| Err(Refusal::new("gauntlet stays")));
            thread::sleep(Duration::from_secs(60));
        }
        // With a device that the image before has never seen.
        "network" => {
            let socket = UdpSocket::bind("0.0.0.0:7");
            println!("gauntlet: network={}", socket.is_ok());
            let Err(error) = segue::roll_back();
            println!("gauntlet: no rollback: {error}");
        }
        "rollback" => {
            let Err(error) = segue::roll_back();
            println!("gauntlet: no rollback: {error}");
        }
        "exit" => std::process::exit(3),
        // In a thread, while all others are busy and some hold locks.
        "busy" | "twice" | "without" => {
            for _ in 0..2 * segue::vcpus() {
                thread::spawn(|| {
                    loop {
                        drop(vec![0u8; 10_000]);
                        println!("gauntlet: busy");
                    }
                });
            }
            thread::sleep(Duration::from_millis(300));
            panic!("gauntlet panics on probation");
        }
        "late" => {
            thread::sleep(Duration::from_secs(1));
            faults::run("null");
        }
        kind => faults::run(kind),
    }
    let audit = segue::audit().expect("an audit");
    println!("gauntlet: has=new rounds={rounds} goes on {audit}");
}
