//! Test app: everything that can go wrong with a switch, and faults in a running image. Its own
//! bundle is its ramdisk. One argument says what to do; see `main`.

mod bundles;
mod cost;
mod faults;
mod probation;
mod trials;
mod trust;

segue::trial!();

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if segue::on_trial() {
        match args[..] {
            ["--probation" | "--probationer", ..] => {
                probation::keep();
                segue::commit();
            }
            _ => return trials::behave(&args),
        }
    }
    segue::wait_for_vcpus();
    match args[..] {
        ["--probation", what, rounds] => probation::run(what, rounds),
        ["--probationer", what, rounds] => probation::new(what, rounds),
        ["--trials"] => trials::run(),
        ["--resume", times] => trials::resume(times),
        ["--hang"] => trials::hang(),
        ["--as", "commit", ..] => {
            println!("gauntlet: committed generation={}", segue::generation())
        }
        ["--bundles"] => bundles::run(),
        ["--trust"] => trust::run(),
        ["--fault", kind] => faults::run(kind),
        ["--memory"] => faults::memory(),
        ["--clockcost"] => cost::clock(),
        ["--padded", rest, bytes] => cost::padded(rest, bytes),
        _ => println!(
            "gauntlet: one of --trials, --resume N, --hang, --bundles, --trust, --probation WHAT ROUNDS, --fault KIND, --memory, --clockcost, --padded N BYTES"
        ),
    }
}

/// Our own bundle.
fn own_bundle() -> &'static [u8] {
    segue::bundles()
        .next()
        .expect("gauntlet's own bundle as ramdisk or module")
}
