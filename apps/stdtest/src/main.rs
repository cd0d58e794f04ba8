//! Test app: std's threads, locks, clocks, files, sockets and the rest, by their public interface.
//!
//! Prints `stdtest: name=… outcome=ok` for each check and `stdtest: done failed=0` at the end.
//! Arguments: `--times N`, then names of checks to run; all without. `--fault overflow` and `--fault panic` end the
//! image in a thread that has a name; `--exit N` ends it with a status; `--switch` replaces the
//! image by itself from a thread, over and over, as often as there are generations left to
//! `--until N`; `--fail` has main return an error; `--stdin` repeats what is typed; `--tick` tells
//! the time until it is ended; `--heed` and `--heed-not` are asked to end, and do or don't;
//! `--switch-every MS --until N [--unasked]` replaces as a server with a network device, and
//! `--fail ROUNDS` fails to; `--step commit|fail` takes its time over a switch; `--state --until N` hands over values and regions.

mod cells;
mod clocks;
mod control;
mod devices;
mod faults;
mod files;
mod locks;
mod sockets;
mod state;
mod threads;

use std::time::{Duration, Instant};

/// A check: an error says what was wrong.
type Check = fn() -> Result<String, String>;

/// How long anything may take here, on a host as busy as may be: what takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// All checks by name.
const CHECKS: &[(&str, Check)] = &[
    ("spawn", threads::spawn),
    ("builder", threads::builder),
    ("scoped", threads::scoped),
    ("parallelism", threads::parallelism),
    ("park", threads::park),
    ("yield", threads::yields),
    ("thread-ids", threads::ids),
    ("thread-locals", cells::thread_locals),
    ("thread-local-destructors", cells::destructors),
    ("mutex", locks::mutex),
    ("try-lock", locks::try_lock),
    ("condvar", locks::condvar),
    ("condvar-timeout", locks::condvar_timeout),
    ("rwlock", locks::rwlock),
    ("barrier", locks::barrier),
    ("once", locks::once),
    ("channel", locks::channel),
    ("bounded-channel", locks::bounded_channel),
    ("channel-timeout", locks::channel_timeout),
    ("priorities", threads::priorities),
    ("spinners", threads::spinners),
    ("floating-point", threads::floating_point),
    ("many-threads", threads::many),
    ("churn", threads::churn),
    ("memory", threads::memory),
    ("sleep", clocks::sleep),
    ("many-sleepers", clocks::many_sleepers),
    ("instant", clocks::instant),
    ("system-time", clocks::system_time),
    ("environment", cells::environment),
    ("random", cells::random),
    ("out-of-memory-spawn", threads::out_of_memory),
    ("errors", cells::errors),
    ("tree", files::tree),
    ("tmp", files::tmp),
    ("streams", sockets::streams),
    ("socket-options", sockets::options),
    ("refusals", sockets::refusals),
    ("many-connections", sockets::many),
    ("datagrams", sockets::datagrams),
    ("logs", cells::logs),
];

fn main() -> Result<(), String> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["--fault", kind] => {
            faults::run(kind);
            return Ok(());
        }
        ["--fail"] => return Err("it was told to".into()),
        ["--stdin"] => return control::stdin().map_err(|e| e.to_string()),
        ["--tick"] => control::tick(),
        ["--heed"] => {
            control::heed(true);
            return Ok(());
        }
        ["--heed-not"] => {
            control::heed(false);
            return Ok(());
        }
        ["--exit", status] => std::process::exit(status.parse().unwrap_or(1)),
        ["--switch", "--until", generation] => {
            threads::switch(generation.parse().unwrap_or(0));
            return Ok(());
        }
        ["--switch-every", ms, "--until", generation, ref rest @ ..] => {
            let every = Duration::from_millis(ms.parse().unwrap_or(0));
            let until = generation.parse().unwrap_or(0);
            devices::switch(every, until, rest == ["--unasked"]);
            return Ok(());
        }
        ["--state", "--until", generation] => {
            state::run(generation.parse().unwrap_or(0));
            return Ok(());
        }
        ["--step", outcome] => {
            devices::step(outcome);
            return Ok(());
        }
        ["--fail", rounds] => {
            devices::fail(rounds.parse().unwrap_or(1));
            return Ok(());
        }
        _ => {}
    }
    // Some count memory.
    segue::wait_for_vcpus();
    let (times, names) = match args[..] {
        ["--times", n, ref names @ ..] => (n.parse().map_err(|_| "--times N")?, names),
        ref names => (1, names),
    };
    let chosen = |name| names.is_empty() || names.contains(&name);
    let checks: Vec<_> = CHECKS.iter().filter(|(name, _)| chosen(*name)).collect();
    let mut failed = 0;
    for (name, check) in checks.iter().cycle().take(checks.len() * times) {
        let start = Instant::now();
        let outcome = check();
        let us = start.elapsed().as_micros();
        match outcome {
            Ok(note) => println!("stdtest: name={name} outcome=ok us={us} {note}"),
            Err(why) => {
                failed += 1;
                println!("stdtest: name={name} outcome=bad us={us} why=\"{why}\"");
            }
        }
    }
    let repeated = segue::kernel::xen::events::repeated();
    println!("stdtest: done failed={failed} repeated_interrupts={repeated}");
    Ok(())
}

/// An error with a text unless `good`.
fn ensure(good: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if good { Ok(()) } else { Err(why()) }
}
