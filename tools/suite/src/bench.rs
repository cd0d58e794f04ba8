//! `make bench`: figures, as counts and ratios, with the goals they are held to.

mod live;
mod network;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use segue_lab::EndReason;
use serde::Serialize;

use crate::PARTS;
use crate::guest::{Event, Guest, Kind, Run, Xen};
use crate::images::Images;
use crate::test::least_mib;

/// Where the figures go.
const RESULTS: &str = "target/bench/results.json";

/// A figure.
#[derive(Debug, Serialize)]
struct Row {
    /// What part of Segue it is about.
    area: &'static str,
    /// What was measured.
    name: String,
    /// What Segue has.
    segue: f64,
    /// What the peer has.
    peer: Option<f64>,
    /// What it is compared to.
    peer_name: Option<&'static str>,
    unit: &'static str,
    /// Segue's by the peer's.
    ratio: Option<f64>,
    /// The ratio if there is a peer, else Segue's value, should be that: at most, or at least.
    goal: Option<f64>,
    at_least: bool,
    met: Option<bool>,
    /// How often it was measured.
    runs: usize,
}

impl Row {
    fn new(area: &'static str, name: impl Into<String>, value: f64, unit: &'static str) -> Row {
        Row {
            area,
            name: name.into(),
            segue: value,
            peer: None,
            peer_name: None,
            unit,
            ratio: None,
            goal: None,
            at_least: false,
            met: None,
            runs: 1,
        }
    }

    fn peer(mut self, name: &'static str, value: f64) -> Row {
        self.peer = Some(value);
        self.peer_name = Some(name);
        self.ratio = Some(self.segue / value);
        self
    }

    fn runs(mut self, runs: usize) -> Row {
        self.runs = runs;
        self
    }

    fn at_most(mut self, goal: f64) -> Row {
        self.goal = Some(goal);
        self.met = Some(self.ratio.unwrap_or(self.segue) <= goal);
        self
    }

    fn at_least(mut self, goal: f64) -> Row {
        self.goal = Some(goal);
        self.at_least = true;
        self.met = Some(self.ratio.unwrap_or(self.segue) >= goal);
        self
    }
}

/// Measures everything, or what has one of the words in its name; with `quick`, less often.
pub fn run(quick: bool, only: &[String]) -> Result<ExitCode> {
    let begin = Instant::now();
    let images = Images::build()?;
    let xen = crate::xen(1024)?;
    let bench = Bench {
        xen,
        clock: images.clock_alike()?,
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
    println!("{}", table(&rows));
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
    quick: bool,
}

type Measure = fn(&Bench) -> Result<Vec<Row>>;

const MEASURES: [(&str, Measure); 9] = [
    ("switches", blackout),
    ("switches with shared_info in RAM", moved),
    ("switches with 2 and with 8 vCPUs", vcpus),
    ("switches to a padded image", padded),
    ("what comes before the blackout", before),
    ("start", start),
    ("the clock", clock),
    ("what clients see of a switch", live::live),
    ("the network, beside Linux", network::network),
];

impl Bench {
    fn pick(&self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }

    /// Runs clock for a number of switches.
    fn clock(&self, vcpus: u32, home: &str, switches: u64) -> Result<Run> {
        let arguments = format!("--every 0 --ticks 0 --until {}", switches + 1);
        let run = Guest::new(&self.images.clock, Kind::Hvm, vcpus)
            .module(&self.clock)
            .cmdline(format!("segue.shared_info={home} -- {arguments}"))
            .run(&self.xen)?;
        run.ended(EndReason::PowerOff)?;
        let count = run.events("segue: switch ").count() as u64;
        run.check(count == switches, || format!("{count} switches"))?;
        Ok(run)
    }
}

fn numbers<'a>(events: impl Iterator<Item = Event<'a>>, key: &str) -> Result<Vec<f64>> {
    let mut values = Vec::new();
    for event in events {
        values.push(event.number(key)? as f64);
    }
    ensure!(!values.is_empty(), "nothing was measured");
    Ok(values)
}

fn of_switches(run: &Run, key: &str) -> Result<Vec<f64>> {
    numbers(run.events("segue: switch "), key)
}

/// The value that the given share of all values does not exceed (nearest rank).
fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

fn max(values: &[f64]) -> f64 {
    quantile(values, 1.0)
}

/// Time that the processors of this machine were not given by the one below it, and all their time
/// (proc(5), `steal` of /proc/stat), in ticks.
fn stolen() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_stolen(&stat).context("/proc/stat has another form")
}

fn parse_stolen(stat: &str) -> Option<(f64, f64)> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let ticks: Vec<f64> = numbers
        .split_whitespace()
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    Some((*ticks.get(7)?, ticks.iter().sum()))
}

fn blackout(bench: &Bench) -> Result<Vec<Row>> {
    let count = bench.pick(200, 40);
    // Of a few runs the one in which the machine was disturbed least.
    let mut best: Option<(f64, Run)> = None;
    for _ in 0..bench.pick(3, 1) {
        let before = stolen()?;
        let run = bench.clock(2, "mmio", count)?;
        let after = stolen()?;
        let share = 100.0 * (after.0 - before.0) / (after.1 - before.1).max(1.0);
        if best.as_ref().is_none_or(|(least, _)| share < *least) {
            best = Some((share, run));
        }
    }
    let (share, run) = best.context("no run")?;
    let ms = |key: &str, share: f64| -> Result<f64> {
        Ok(quantile(&of_switches(&run, key)?, share) / 1000.0)
    };
    let runs = count as usize;
    let row = |name: &str, value: f64| Row::new("switch", name, value, "ms").runs(runs);
    let mut rows = vec![
        row("blackout p50, 2 vCPUs", ms("blackout_us", 0.5)?),
        row("blackout p99, 2 vCPUs", ms("blackout_us", 0.99)?).at_most(20.0),
        Row::new(
            "switch",
            "CPU time stolen from this machine meanwhile",
            share,
            "%",
        )
        .runs(runs),
    ];
    for part in PARTS {
        let value = ms(&format!("{part}_us"), 0.5)?;
        rows.push(row(&format!("of it {part}, p50"), value));
    }
    for (key, name) in [
        ("p2m_updates", "p2m updates, shared_info in MMIO, most"),
        ("hypercalls", "hypercalls in the blackout, most"),
        ("exits", "exits in the blackout, most"),
    ] {
        let value = max(&of_switches(&run, key)?);
        let row = Row::new("switch", name, value, "count").runs(runs);
        rows.push(if key == "p2m_updates" {
            row.at_most(0.0)
        } else {
            row
        });
    }
    Ok(rows)
}

fn moved(bench: &Bench) -> Result<Vec<Row>> {
    let run = bench.clock(2, "ram", 3)?;
    let updates: f64 = of_switches(&run, "p2m_updates")?.iter().sum();
    let name = "p2m updates, shared_info in RAM, all switches together";
    Ok(vec![
        Row::new("switch", name, updates, "count")
            .runs(3)
            .at_most(1.0),
    ])
}

fn vcpus(bench: &Bench) -> Result<Vec<Row>> {
    let most = |vcpus| max_hypercalls(bench, vcpus);
    let (two, eight) = (most(2)?, most(8)?);
    let row = Row::new("switch", "hypercalls, 8 vCPUs", eight, "count");
    Ok(vec![row.peer("2 vCPUs", two).runs(10).at_most(1.0)])
}

fn max_hypercalls(bench: &Bench, vcpus: u32) -> Result<f64> {
    Ok(max(&of_switches(
        &bench.clock(vcpus, "mmio", 10)?,
        "hypercalls",
    )?))
}

/// Bytes that make gauntlet's image larger.
const PADDING: usize = 32 << 20;

/// What a bundle of 2 MiB takes before anything stops: copied, verified, loaded, its record written,
/// and the running image loaded once more as the way back.
fn before(bench: &Bench) -> Result<Vec<Row>> {
    let bundle = fs::metadata(&bench.images.gauntlet.bundle)?.len() as usize;
    let more = (2usize << 20).checked_sub(bundle);
    let more = more.context("gauntlet's own bundle has more than 2 MiB")?;
    let (plain, larger) = alternate(bench, more, "before_us")?;
    let row = |name: &str, us: &[f64]| {
        let ms = quantile(us, 0.5) / 1000.0;
        Row::new("switch", name, ms, "ms").runs(us.len())
    };
    let own = format!("from replace_image to the blackout, {} kB", bundle / 1000);
    Ok(vec![
        row("from replace_image to the blackout, 2 MiB", &larger),
        row(&own, &plain),
    ])
}

/// Switches to gauntlet and to a larger gauntlet in turn; gives what the switches to each say.
fn alternate(bench: &Bench, padding: usize, key: &str) -> Result<(Vec<f64>, Vec<f64>)> {
    let image = &bench.images.gauntlet;
    let count = bench.pick(20, 8);
    let run = Guest::new(image, Kind::Hvm, 2)
        .memory(256)
        .module(&image.bundle)
        .cmdline(format!("-- --padded {count} {padding}"))
        .run(&bench.xen)?;
    run.one("gauntlet: done padded")?;
    let (mut plain, mut padded) = (Vec::new(), Vec::new());
    let mut to = None;
    for line in run.lines() {
        if let Some(next) = line.text.strip_prefix("gauntlet: next=") {
            to = Some(next == "padded");
        } else if line.text.starts_with("segue: switch ")
            && let Some(is_padded) = to.take()
        {
            let us = Event { text: &line.text }.number(key)? as f64;
            if is_padded { &mut padded } else { &mut plain }.push(us);
        }
    }
    ensure!(!plain.is_empty() && !padded.is_empty(), "no switches");
    Ok((plain, padded))
}

fn padded(bench: &Bench) -> Result<Vec<Row>> {
    let (plain, padded) = alternate(bench, PADDING, "blackout_us")?;
    // The least of many is what the work itself takes; the rest is the machine's.
    let least = |values: &[f64]| quantile(values, 0.0) / 1000.0;
    let half = |values: &[f64]| quantile(values, 0.5) / 1000.0;
    let row = |name: &str, segue, peer| {
        Row::new("switch", name, segue, "ms")
            .peer("the same image without", peer)
            .runs(padded.len())
    };
    Ok(vec![
        row(
            "blackout with 32 MiB padding, p50",
            half(&padded),
            half(&plain),
        )
        .at_most(1.1),
        row(
            "blackout with 32 MiB padding, least",
            least(&padded),
            least(&plain),
        ),
    ])
}

fn start(bench: &Bench) -> Result<Vec<Row>> {
    let image = &bench.images.hello;
    let count = bench.pick(7, 3) as usize;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let mut times = Vec::new();
        for _ in 0..count {
            let run = Guest::new(image, kind, 2).alone().run(&bench.xen)?;
            times.push(run.one("segue: main ")?.number("start_us")? as f64 / 1000.0);
        }
        let name = format!("entry to main, {kind}, 2 vCPUs, 64 MiB, p50");
        let row = Row::new("start", name, quantile(&times, 0.5), "ms").runs(count);
        rows.push(if kind == Kind::Hvm {
            row.at_most(60.0)
        } else {
            row
        });
        let name = format!("entry to main, {kind}, least of the runs");
        rows.push(Row::new("start", name, quantile(&times, 0.0), "ms").runs(count));
        let least = least_mib(&bench.xen, &bench.images, kind)?;
        let name = format!("least memory that boots hello, {kind}");
        rows.push(Row::new("start", name, least as f64, "MiB"));
    }
    let size = image.img_len as f64 / 1000.0;
    rows.push(Row::new("start", "hello.img", size, "kB").at_most(400.0));
    Ok(rows)
}

fn clock(bench: &Bench) -> Result<Vec<Row>> {
    let guest = Guest::new(&bench.images.gauntlet, Kind::Hvm, 1);
    let run = guest.cmdline("-- --clockcost").run(&bench.xen)?;
    let cost = run.one("gauntlet: clock ")?;
    let cycles = |key| -> Result<f64> { Ok(cost.number(key)? as f64) };
    let row = Row::new("clock", "pvclock read", cycles("pvclock_cycles")?, "cycles");
    let row = row.peer("ordered rdtsc", cycles("rdtsc_cycles")?);
    Ok(vec![row.runs(50 * 10_000).at_most(2.0)])
}

fn table(rows: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(["what", "Segue", "unit", "peer", "ratio", "goal", "met"]);
    let number = |value: f64| {
        if value.fract() == 0.0 {
            format!("{value:.0}")
        } else {
            format!("{value:.2}")
        }
    };
    for row in rows {
        table.add_row([
            format!("{}: {}", row.area, row.name),
            number(row.segue),
            row.unit.to_owned(),
            match (row.peer, row.peer_name) {
                (Some(value), Some(name)) => format!("{} ({name})", number(value)),
                _ => String::new(),
            },
            row.ratio
                .map_or(String::new(), |ratio| format!("{ratio:.2}×")),
            row.goal.map_or(String::new(), |goal| {
                let sign = if row.at_least { '≥' } else { '≤' };
                format!("{sign} {}", number(goal))
            }),
            row.met
                .map_or("", |met| if met { "yes" } else { "NO" })
                .to_owned(),
        ]);
    }
    for column in [1, 4, 5] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert_eq!(quantile(&values, 0.5), 100.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(max(&[3.0]), 3.0);
    }

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let stat = "cpu  10 0 20 60 0 0 0 10 5 0\ncpu0 1\n";
        assert_eq!(parse_stolen(stat), Some((10.0, 100.0)));
        assert_eq!(parse_stolen("cpu 1 2"), None);
    }

    #[test]
    fn a_goal_is_held_against_the_ratio_if_there_is_one() {
        let row = Row::new("a", "b", 30.0, "ms");
        assert_eq!(row.at_most(20.0).met, Some(false));
        let row = || Row::new("a", "b", 30.0, "ms").peer("p", 29.0);
        assert_eq!(row().at_most(1.1).met, Some(true));
        assert_eq!(row().at_least(1.1).met, Some(false));
    }
}
