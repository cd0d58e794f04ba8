//! `make bench`: figures, as counts and ratios, with the goals they are held to.

mod blackout;
mod linux;
mod live;
mod network;
mod matrix;
mod row;
mod small;
mod start;
mod staying;
mod stolen;
mod switching;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::guest::Xen;
use crate::images::{Image, Images};
use row::Row;

/// Where the figures go.
const RESULTS: &str = "target/bench/results.json";

/// Measures everything, or what has one of the words in its name; with `quick`, less often.
pub fn run(quick: bool, only: &[String]) -> Result<ExitCode> {
    let begin = Instant::now();
    let images = Images::build()?;
    // Linux and three of ours stand by at the same time.
    let xen = crate::xen(2560)?;
    let bench = Bench {
        xen,
        clock: images.clock_alike()?,
        measure: images.measure()?,
        images,
        quick,
    };
    let mut rows = Vec::new();
    for (name, measure) in MEASURES {
        if !only.is_empty() && !only.iter().any(|word| name.contains(word.as_str())) {
            continue;
        }
        let start = Instant::now();
        eprintln!("bench: {name} …");
        rows.extend(measure(&bench).with_context(|| format!("measuring {name}"))?);
        eprintln!("bench: {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    let results = Path::new(RESULTS);
    if let Some(folder) = results.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(results, serde_json::to_string_pretty(&rows)? + "\n").context(RESULTS)?;
    println!("{}", table::table(&rows));
    println!(
        "The lab's processor is emulated: an exit of the guest costs 0.1 to 1 ms there, and other \
         work on the machine shows in the times. Counts and ratios carry over."
    );
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| row.met == Some(false))
        .map(|row| row.name.as_str())
        .collect();
    println!(
        "bench: {} figures in {RESULTS}, {} with a goal, missed: {}; {:.0} s",
        rows.len(),
        rows.iter().filter(|row| row.goal.is_some()).count(),
        if missed.is_empty() {
            "none".to_owned()
        } else {
            missed.join(", ")
        },
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

struct Bench {
    xen: Xen,
    images: Images,
    /// Bundles of two versions of clock, optimised alike.
    clock: PathBuf,
    /// Tells what small things cost, and replaces itself.
    measure: Image,
    quick: bool,
}

type Measure = fn(&Bench) -> Result<Vec<Row>>;

const MEASURES: [(&str, Measure); 11] = [
    ("switches", blackout::blackout),
    ("switches with shared_info in RAM", blackout::moved),
    ("switches with 2 and with 8 vCPUs", blackout::vcpus),
    ("switches to a padded image", blackout::padded),
    ("what comes before the blackout", blackout::before),
    ("the blackout against sizes", matrix::matrix),
    ("start", start::start),
    ("the clock", start::clock),
    ("what clients see of a switch", live::live),
    ("the network and small things, beside Linux", network::network),
    ("the image switch, beside Linux", switching::switching),
];

impl Bench {
    fn pick(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }
}
