//! `make bench`: figures, as counts and ratios, with the goals they are held to.

mod blackout;
mod compare;
mod estimate;
mod linux;
mod live;
mod matrix;
mod network;
mod plot;
mod readme;
mod report;
mod row;
mod setting;
mod small;
mod start;
mod staying;
mod stolen;
mod switching;
mod table;

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use segue_lab::Domain;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::guest::Xen;
use crate::images::{Image, Images};
use row::Row;
use setting::Setting;

/// Where the figures go.
const RESULTS: &str = "target/bench/results.json";

/// And what they were measured with.
const SETTING: &str = "target/bench/setting.json";
/// The page for people.
const REPORT: &str = "target/bench/report.html";

/// What is asked for.
pub struct Wanted {
    /// Measure less often, and leave out what takes minutes.
    pub quick: bool,
    /// Write README's section, too.
    pub readme: bool,
    /// Measure nothing: show the last run again.
    pub last: bool,
    /// Only what has one of these words in its name; all if there is none.
    pub only: Vec<String>,
}

/// Measures, or shows what was measured last.
pub fn run(wanted: &Wanted) -> Result<ExitCode> {
    let last: Vec<Row> = read(RESULTS).unwrap_or_default();
    let (rows, setting, last) = if wanted.last {
        (read(RESULTS)?, read(SETTING)?, Vec::new())
    } else {
        let (rows, setting) = measure(wanted.quick, &wanted.only)?;
        write(RESULTS, &rows)?;
        write(SETTING, &setting)?;
        (rows, setting, last)
    };
    report::write(Path::new(REPORT), &rows, &setting, &last)?;
    println!("{}", table::table(&rows, &last));
    println!(
        "The lab's processor is emulated: an exit of the guest costs 0.1 to 1 ms there, and other \
         work on the machine shows in the times. Counts and ratios carry over."
    );
    if let Some(estimate) = estimate::Estimate::new(&rows) {
        println!(
            "The blackout on hardware, estimated: {:.0} µs; {REPORT} shows from what.",
            estimate.on_hardware()
        );
    }
    let missed: Vec<&str> = rows
        .iter()
        .filter(|row| row.met == Some(false))
        .map(|row| row.name.as_str())
        .collect();
    println!(
        "bench: {} figures in {RESULTS}, {} with a goal, missed: {}; {:.0} s; report: {REPORT}",
        rows.len(),
        rows.iter().filter(|row| row.goal.is_some()).count(),
        if missed.is_empty() {
            "none".to_owned()
        } else {
            missed.join(", ")
        },
        setting.seconds
    );
    if wanted.readme {
        readme::write(&rows, &setting)?;
        println!(
            "bench: README's figures are of this run; {} keeps it",
            readme::ROWS
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn read<T: DeserializeOwned>(path: &str) -> Result<T> {
    let text =
        fs::read_to_string(path).with_context(|| format!("{path}: run `make bench` first"))?;
    serde_json::from_str(&text).with_context(|| format!("{path} is of another version"))
}

fn write(path: &str, what: &impl Serialize) -> Result<()> {
    if let Some(folder) = Path::new(path).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, serde_json::to_string_pretty(what)? + "\n").with_context(|| path.to_owned())
}

/// Measures everything, or what has one of the words in its name; with `quick`, less often.
fn measure(quick: bool, only: &[String]) -> Result<(Vec<Row>, Setting)> {
    let wanted = |name: &str, in_quick| match only.is_empty() {
        true => in_quick || !quick,
        false => only.iter().any(|word| name.contains(&**word)),
    };
    ensure!(
        MEASURES.iter().any(|(name, ..)| wanted(name, true)),
        "nothing of that name; there are: {}",
        MEASURES.map(|(name, ..)| name).join("; ")
    );
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
        linux: OnceCell::new(),
    };
    let mut setting = Setting::new(&bench, only)?;
    let before = stolen::stolen()?;
    let mut rows = Vec::new();
    for (name, in_quick, measure) in MEASURES {
        if !wanted(name, in_quick) {
            continue;
        }
        let start = Instant::now();
        eprintln!("bench: {name} …");
        match measure(&bench) {
            Ok(more) => rows.extend(more),
            Err(error) => {
                // What there is was dear; but it is no run, and is not kept.
                println!("{}", table::table(&rows, &[]));
                return Err(error.context(format!("measuring {name}")));
            }
        }
        eprintln!("bench: {name}: {:.0} s", start.elapsed().as_secs_f64());
    }
    switching::beside_kexec(&mut rows);
    let after = stolen::stolen()?;
    setting.stolen_percent = 100.0 * (after.0 - before.0) / (after.1 - before.1).max(1.0);
    setting.seconds = begin.elapsed().as_secs_f64();
    Ok((rows, setting))
}

struct Bench {
    xen: Xen,
    images: Images,
    /// Bundles of two versions of clock, optimised alike.
    clock: PathBuf,
    /// Tells what small things cost, and replaces itself.
    measure: Image,
    quick: bool,
    /// The peer that serves, started when it is first wanted.
    linux: OnceCell<Domain>,
}

type Measure = fn(&Bench) -> Result<Vec<Row>>;

/// What there is: its name, whether a quick run has it unasked, and how it is measured.
const MEASURES: [(&str, bool, Measure); 14] = [
    ("switches", true, blackout::blackout),
    ("switches with shared_info in RAM", false, blackout::moved),
    ("switches with 2 and with 8 vCPUs", false, blackout::vcpus),
    ("switches to a padded image", false, blackout::padded),
    ("what comes before the blackout", false, blackout::before),
    ("the blackout against sizes", false, matrix::matrix),
    ("start", true, start::start),
    ("first answer, beside Linux", false, start::to_first_answer),
    ("the clock", true, start::clock),
    ("what clients see of a switch", false, live::live),
    ("the network, beside Linux", true, network::network),
    ("small things, beside Linux", true, small::small),
    ("the image switch, beside Linux", true, switching::switching),
    // An HVM domain of Linux takes minutes to start here.
    ("kexec of Linux", false, switching::kexec),
];

impl Bench {
    fn pick(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    /// The Linux domain that serves, at [`linux::ADDRESS`].
    fn linux(&self) -> Result<&Domain> {
        if let Some(domain) = self.linux.get() {
            return Ok(domain);
        }
        let domain = linux::Programs::build()?.serve(&self.xen)?;
        Ok(self.linux.get_or_init(|| domain))
    }
}
