//! Tells Xen's time, and replaces itself by the bundles it was started with (ramdisk or PVH
//! module), in turn, for ever. Arguments: `--every MS` between ticks, `--ticks N` before each
//! switch, `--until GENERATION` to stop at; `--ahead MS` sets the clock forward before each switch,
//! so that the next image has a past to keep. It counts its ticks, and hands the count over.

use segue::handover::TakeError;
use segue::kernel::xen::shared_info::{self, unclamped};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Readings that were before the last one of the image before, on any vCPU.
static BACKWARD: AtomicU64 = AtomicU64::new(0);
/// The most that a vCPU's own clock was behind what another had said, in ns: Xen's clocks of
/// different CPUs differ, the more the busier the host is.
static SKEW: AtomicU64 = AtomicU64::new(0);
/// More than that between CPUs, and a clock has stopped or was set back, in ns.
const MAX_SKEW: u64 = 500_000_000;
/// That, and what `--ahead` has set the clock forward.
static ALLOWED: AtomicU64 = AtomicU64::new(0);

/// What the clock has counted, by the name it is handed over by.
const TICKS: &str = "ticks";

/// The ticks of all images before this one.
fn ticks_before() -> Result<u64, TakeError> {
    match segue::handover() {
        Some(mut before) => before.take(TICKS),
        None => Ok(0),
    }
}

fn main() -> ExitCode {
    let total = match ticks_before() {
        Ok(ticks) => Arc::new(AtomicU64::new(ticks)),
        Err(e) => {
            eprintln!("clock: {e}");
            return ExitCode::FAILURE;
        }
    };
    let handed = Arc::clone(&total);
    segue::on_replace(move |next| Ok(next.put(TICKS, &handed.load(Ordering::Relaxed))?));
    run(&total);
    ExitCode::SUCCESS
}

fn run(total: &AtomicU64) {
    let every = Duration::from_millis(argument("--every").unwrap_or(1000));
    let ticks = argument("--ticks").unwrap_or(3);
    let until = argument("--until").unwrap_or(u64::MAX);
    let ahead = argument("--ahead").unwrap_or(0);
    let since = argument("--since").unwrap_or(0);
    let backward = argument("--backward").unwrap_or(0);
    let (name, version) = segue::image();
    let generation = segue::generation();

    ALLOWED.store(MAX_SKEW + ahead * 1_000_000 * generation, Ordering::Relaxed);
    // Every vCPU: not before the time that the image before passed on.
    let me = segue::vcpu::current();
    let jobs: Vec<_> = (0..segue::vcpus())
        .filter(|v| *v != me)
        .map(|v| segue::vcpu::start(v, compare, since).expect("an idle vCPU"))
        .collect();
    compare(since);
    for job in jobs {
        job.join();
    }
    let backward = backward + BACKWARD.load(Ordering::Relaxed);

    for tick in 1..=ticks {
        std::thread::sleep(every);
        let total = total.fetch_add(1, Ordering::Relaxed) + 1;
        println!(
            "{name} {version} generation={generation} tick={tick} total={total} {}",
            wall_clock()
        );
    }
    if (generation <= 2 || generation >= until)
        && let Some(audit) = segue::audit()
    {
        let skew = SKEW.load(Ordering::Relaxed) / 1000;
        println!("clock: audit generation={generation} {audit} backward={backward} skew_us={skew}");
    }
    if generation >= until {
        return;
    }
    // Of the bundles we came with, the first of another version.
    let Some(bundle) =
        segue::bundles().find(|b| segue::bundle_ident(b).is_some_and(|(_, v)| v != version))
    else {
        println!("{name} {version} came with no other version to go to");
        return;
    };
    if ahead > 0 {
        shared_info::continue_after(segue::system_time() + ahead * 1_000_000);
    }
    let args = format!(
        "--every {} --ticks {ticks} --until {until} --ahead {ahead} --backward {backward} --since {}",
        every.as_millis(),
        segue::system_time()
    );
    let error = segue::Replace::new(bundle).args(&args).start().unwrap_err();
    println!("{name} {version} stays: {error}");
}

/// Reads the clock for a while on the calling vCPU.
fn compare(since: u64) {
    let mut last = since;
    for _ in 0..100 {
        let now = segue::system_time();
        // `now` is made monotonic; a clock that fell behind that is seen by its own value.
        let skew = last.saturating_sub(unclamped());
        SKEW.fetch_max(skew, Ordering::Relaxed);
        if now < last || skew > ALLOWED.load(Ordering::Relaxed) {
            BACKWARD.fetch_add(1, Ordering::Relaxed);
        }
        last = now;
    }
}

/// The value behind a word of the command line.
fn argument(name: &str) -> Option<u64> {
    std::env::args()
        .skip_while(|a| a != name)
        .nth(1)?
        .parse()
        .ok()
}

fn wall_clock() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let (s, ms) = (now.as_secs(), now.subsec_millis());
    let time = format!(
        "{:02}:{:02}:{:02}.{ms:03}",
        s / 3600 % 24,
        s / 60 % 60,
        s % 60
    );
    if cfg!(feature = "date") {
        format!("{} {time}", date(s / 86400))
    } else {
        time
    }
}

/// The date `days` after 1970-01-01 (Howard Hinnant's civil_from_days).
fn date(days: u64) -> String {
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (
        doy - (153 * mp + 2) / 5 + 1,
        if mp < 10 { mp + 3 } else { mp - 9 },
    );
    let year = yoe + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}
