//! Test app: everything that can go wrong with a switch, and faults in a running image. Its own
//! bundle is its ramdisk. One argument says what to do; see `main`.

mod bundles;
mod cost;
mod faults;
mod trials;

segue::trial!();

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    if segue::on_trial() {
        return trials::behave(&args);
    }
    match args[..] {
        ["--trials"] => trials::run(),
        ["--hang"] => trials::hang(),
        ["--as", "commit", ..] => {
            println!("gauntlet: committed generation={}", segue::generation())
        }
        ["--bundles"] => bundles::run(),
        ["--fault", kind] => faults::run(kind),
        ["--memory"] => faults::memory(),
        ["--clockcost"] => cost::clock(),
        ["--padded", rest] => cost::padded(rest),
        _ => println!(
            "gauntlet: one of --trials, --hang, --bundles, --fault KIND, --memory, --clockcost, --padded N"
        ),
    }
}

/// Our own bundle.
fn own_bundle() -> &'static [u8] {
    segue::bundles()
        .next()
        .expect("gauntlet's own bundle as ramdisk or module")
}
