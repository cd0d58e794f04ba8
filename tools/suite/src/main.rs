//! Segue's tests, demo and benchmarks on a real Xen. `make test`, `check`, `demo`, `bench` call it.

#![forbid(unsafe_code)]

mod bench;
mod control;
mod demo;
mod devices;
mod guest;
mod images;
mod live;
mod net;
mod probation;
mod qemu;
mod soak;
mod state;
mod test;
mod upgrade;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use segue_lab::{Lab, LabConfig};

use crate::guest::Xen;
use crate::images::Images;

/// The parts of a blackout, in their order, as the switch line calls them.
const PARTS: [&str; 7] = [
    "quiesce", "relocate", "jump", "start", "restore", "commit", "adopt",
];

/// Segue's tests, demo and benchmarks on a real Xen.
#[derive(Debug, Parser)]
#[command(
    name = "segue-suite",
    after_help = "\
A session that `segue lab up` holds is used if its memory suffices; with
SEGUE_XEN_HOST=user@host, that Xen host. Else a lab is started for the run."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build the images that the tests use.
    Images,
    /// Run the tests on a real Xen.
    Test {
        /// Run only tests whose names contain one of these words.
        filter: Vec<String>,
        /// As in a run of all: without those on request, and some with less load.
        #[arg(long)]
        brief: bool,
        /// Only list the tests.
        #[arg(long)]
        list: bool,
    },
    /// Boot one domain and let it replace its image.
    Check,
    /// Measure, and write the figures to target/bench/results.json.
    Bench {
        /// Measure less often.
        #[arg(long)]
        quick: bool,
        /// Write the figures of this run into README, too.
        #[arg(long)]
        readme: bool,
        /// Measure nothing: show the last run, and make its report anew.
        #[arg(long)]
        last: bool,
        /// Measure only what has one of these words in its name.
        filter: Vec<String>,
    },
    /// Upgrade two servers under load, in under four minutes.
    Demo,
    /// Mixed load on three domains at once: what they hold has to stay the same.
    Soak {
        /// For so long.
        #[arg(default_value_t = 60)]
        minutes: u64,
    },
}

fn main() -> ExitCode {
    // Ends the lab too: its processes die with us.
    let handler = ctrlc::set_handler(|| std::process::exit(130));
    let result = handler
        .context("cannot watch for Ctrl-C")
        .and_then(|()| run(Arguments::parse().command));
    result.unwrap_or_else(|error| {
        eprintln!("segue-suite: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    go_to_root()?;
    match command {
        Command::Images => {
            let images = Images::build()?;
            for image in images.all().into_iter().chain(images.served()?.all()) {
                println!("{:>9} bytes  {}", image.img_len, image.img.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Test {
            filter,
            brief,
            list,
        } => test::run(&filter, brief, list),
        Command::Bench {
            quick,
            readme,
            last,
            filter,
        } => bench::run(&bench::Wanted {
            quick,
            readme,
            last,
            only: filter,
        }),
        Command::Demo => demo::run(),
        Command::Soak { minutes } => soak::run(minutes),
        Command::Check => test::run(&["check::".to_owned()], false, false),
    }
}

/// All paths here are relative to the top folder of the checkout.
fn go_to_root() -> Result<()> {
    let here = std::env::current_dir()?;
    let root = here
        .ancestors()
        .find(|dir| dir.join("tools/suite/Cargo.toml").is_file())
        .unwrap_or(Path::new("."));
    std::env::set_current_dir(root).with_context(|| root.display().to_string())
}

/// A Xen with room for domains of `mib` together.
fn xen(mib: u64) -> Result<Xen> {
    let lab = Lab::connect(&LabConfig::from_env().with_domains_mib(mib))?;
    Xen::new(lab)
}
