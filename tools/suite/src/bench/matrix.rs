//! The blackout against the size of the image, of the state, and the number of vCPUs.

use std::fs;

use anyhow::{Context, Result, ensure};
use segue_lab::EndReason;

use super::Bench;
use super::blackout::{Values, alternate, numbers};
use super::row::{Row, max, quantile};
use crate::guest::{Guest, Kind, Run};

const AREA: &str = "blackout";

/// Measures all.
pub fn matrix(bench: &Bench) -> Result<Vec<Row>> {
    let mut rows = sizes(bench)?;
    rows.extend(states(bench)?);
    rows.extend(vcpus(bench)?);
    Ok(rows)
}

/// What the console says of switches: the time, and what it is made of where nothing is emulated.
fn rows_of(name: &str, first: &mut Option<(String, f64)>, values: &Values<4>) -> Vec<Row> {
    let [us, hypercalls, exits, updates] = values;
    let ms: Vec<f64> = us.iter().map(|us| us / 1000.0).collect();
    let row = Row::median(AREA, format!("{name}, p50"), &ms, "ms");
    let row = match first {
        Some((peer, value)) => row.peer(peer, *value),
        None => row,
    };
    first.get_or_insert_with(|| (name.to_owned(), quantile(&ms, 0.5)));
    let count = |what: &str, values: &[f64]| {
        Row::new(AREA, format!("{name}, {what}"), max(values), "count").runs(values.len())
    };
    vec![
        row,
        count("hypercalls, most", hypercalls),
        count("other exits, most", exits),
        count("p2m updates, most", updates),
    ]
}

const KEYS: [&str; 4] = ["blackout_us", "hypercalls", "exits", "p2m_updates"];

fn sizes(bench: &Bench) -> Result<Vec<Row>> {
    let own = fs::metadata(&bench.images.gauntlet.bundle)?.len() as usize;
    let mut all = Vec::new();
    let mut plain = None;
    for mib in [1usize, 8, 32] {
        let more = (mib << 20).checked_sub(own);
        let more = more.context("gauntlet's own bundle is larger than 1 MiB")?;
        let (without, padded) = alternate(bench, more, KEYS)?;
        plain.get_or_insert(without);
        all.push((format!("image of {mib} MiB"), padded));
    }
    let mut first = None;
    let mut rows = Vec::new();
    if let Some(plain) = plain {
        rows.extend(rows_of(
            &format!("image of {} kB", own / 1000),
            &mut first,
            &plain,
        ));
    }
    for (name, values) in all {
        rows.extend(rows_of(&name, &mut first, &values));
    }
    Ok(rows)
}

/// `measure` replaces itself.
fn switches(bench: &Bench, vcpus: u32, mib: u64) -> Result<Values<4>> {
    let count = bench.pick(20, 6);
    let run = Guest::new(&bench.measure, Kind::Pvh, vcpus)
        .memory(64 + mib)
        .module(&bench.measure.bundle)
        .cmdline(format!("-- --switch {count} --state {mib}"))
        .run(&bench.xen)?;
    run.ended(EndReason::PowerOff)?;
    run.one(&format!("measure: switched {count} state={}", mib << 20))?;
    let values = of(&run)?;
    ensure!(values[0].len() as u64 == count, "not {count} switches");
    Ok(values)
}

fn of(run: &Run) -> Result<Values<4>> {
    let mut values = KEYS.map(|_| Vec::new());
    for (key, values) in KEYS.iter().zip(&mut values) {
        *values = numbers(run.events("segue: switch "), key)?;
    }
    Ok(values)
}

fn states(bench: &Bench) -> Result<Vec<Row>> {
    let mut first = None;
    let mut rows = Vec::new();
    for mib in [0, bench.pick(1024, 256)] {
        let values = switches(bench, 2, mib)?;
        rows.extend(rows_of(&format!("state of {mib} MiB"), &mut first, &values));
    }
    Ok(rows)
}

/// With more vCPUs than processors no goal holds for times: they wait for each other.
fn vcpus(bench: &Bench) -> Result<Vec<Row>> {
    let mut first = None;
    let mut rows = Vec::new();
    for vcpus in [1, 2, 4, 8] {
        let values = switches(bench, vcpus, 0)?;
        rows.extend(rows_of(&format!("{vcpus} vCPUs"), &mut first, &values));
    }
    Ok(rows)
}
