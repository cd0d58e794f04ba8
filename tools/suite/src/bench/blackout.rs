//! The switch, by what the domain's console says of it.

use std::fs;

use anyhow::{Context, Result, ensure};
use segue_lab::EndReason;

use super::Bench;
use super::row::{Row, max, quantile};
use super::stolen::stolen;
use crate::PARTS;
use crate::guest::{Event, Guest, Kind, Run};

impl Bench {
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

/// The values behind a key.
pub fn numbers<'a>(events: impl Iterator<Item = Event<'a>>, key: &str) -> Result<Vec<f64>> {
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

pub fn blackout(bench: &Bench) -> Result<Vec<Row>> {
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

pub fn moved(bench: &Bench) -> Result<Vec<Row>> {
    let run = bench.clock(2, "ram", 3)?;
    let updates: f64 = of_switches(&run, "p2m_updates")?.iter().sum();
    let name = "p2m updates, shared_info in RAM, all switches together";
    Ok(vec![
        Row::new("switch", name, updates, "count")
            .runs(3)
            .at_most(1.0),
    ])
}

pub fn vcpus(bench: &Bench) -> Result<Vec<Row>> {
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
pub fn before(bench: &Bench) -> Result<Vec<Row>> {
    let bundle = fs::metadata(&bench.images.gauntlet.bundle)?.len() as usize;
    let more = (2usize << 20).checked_sub(bundle);
    let more = more.context("gauntlet's own bundle has more than 2 MiB")?;
    let ([plain], [larger]) = alternate(bench, more, ["before_us"])?;
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

/// Values of some keys.
pub type Values<const N: usize> = [Vec<f64>; N];

/// Switches to gauntlet and to a larger gauntlet in turn; gives what the switches to each say of
/// some keys.
pub fn alternate<const N: usize>(
    bench: &Bench,
    padding: usize,
    keys: [&str; N],
) -> Result<(Values<N>, Values<N>)> {
    let image = &bench.images.gauntlet;
    let count = bench.pick(20, 8);
    let run = Guest::new(image, Kind::Hvm, 2)
        .memory(256)
        .module(&image.bundle)
        .cmdline(format!("-- --padded {count} {padding}"))
        .run(&bench.xen)?;
    run.one("gauntlet: done padded")?;
    let (mut plain, mut padded) = (keys.map(|_| Vec::new()), keys.map(|_| Vec::new()));
    let mut to = None;
    for line in run.lines() {
        if let Some(next) = line.text.strip_prefix("gauntlet: next=") {
            to = Some(next == "padded");
        } else if line.text.starts_with("segue: switch ")
            && let Some(is_padded) = to.take()
        {
            let values = if is_padded { &mut padded } else { &mut plain };
            for (key, values) in keys.iter().zip(values) {
                values.push(Event { text: &line.text }.number(key)? as f64);
            }
        }
    }
    let some = |values: &[Vec<f64>]| values.iter().all(|values| !values.is_empty());
    ensure!(some(&plain) && some(&padded), "no switches");
    Ok((plain, padded))
}

pub fn padded(bench: &Bench) -> Result<Vec<Row>> {
    let ([plain], [padded]) = alternate(bench, PADDING, ["blackout_us"])?;
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
