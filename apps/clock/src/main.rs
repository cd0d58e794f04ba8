//! Tells Xen's time, and replaces itself by the bundles it was started with (ramdisk or PVH
//! module), in turn, for ever. Arguments: `--every MS` between ticks, `--ticks N` before each
//! switch, `--until GENERATION` to stop at.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

fn main() {
    let every = Duration::from_millis(argument("--every").unwrap_or(1000));
    let ticks = argument("--ticks").unwrap_or(3);
    let until = argument("--until").unwrap_or(u64::MAX);
    let (name, version) = segue::image();

    let mut last = Instant::now();
    for tick in 1..=ticks {
        std::thread::sleep(every);
        let now = Instant::now();
        assert!(now >= last, "time went backward");
        last = now;
        println!("{name} {version} generation={} tick={tick} {}", segue::generation(), wall_clock());
    }
    if segue::generation() >= until {
        println!("{name} {version} done free_frames={}", segue::free_frames());
        return;
    }
    // Of the bundles we came with, the one after ours: the first that is not this version.
    let next = segue::bundles().find(|b| !is(b, &version));
    match next {
        Some(bundle) => {
            let error = segue::replace_image(bundle).unwrap_err();
            println!("{name} {version} stays: {error}");
        }
        None => println!("{name} {version} has no other version to go to"),
    }
}

fn is(bundle: &[u8], version: &str) -> bool {
    segue::bundle_ident(bundle).is_some_and(|(_, v)| v == version)
}

/// The value behind a word of the command line.
fn argument(name: &str) -> Option<u64> {
    std::env::args().skip_while(|a| a != name).nth(1)?.parse().ok()
}

fn wall_clock() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let (s, ms) = (now.as_secs(), now.subsec_millis());
    let time = format!("{:02}:{:02}:{:02}.{ms:03}", s / 3600 % 24, s / 60 % 60, s % 60);
    if cfg!(feature = "date") { format!("{} {time}", date(s / 86400)) } else { time }
}

/// The date `days` after 1970-01-01 (Howard Hinnant's civil_from_days).
fn date(days: u64) -> String {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
