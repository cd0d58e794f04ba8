//! What clients see of a switch, and what connections cost it.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Bench;
use super::blackout::numbers;
use super::row::{Row, quantile};
use crate::guest::{Guest, Kind, Running, events};
use crate::live::{Client, beside, late, look, pauses, read};

const ADDRESS: &str = "10.0.0.34";
/// Connections that are open, and idle but for a line now and then.
const CONNECTIONS: [u32; 2] = [100, 1000];
/// Time from switch to switch, ms: long enough to tell which switch a pause is of.
const EVERY: u64 = 1000;

/// The echo server replaces itself while one client asks it 100 times a second; then the same with
/// many connections beside.
pub fn live(bench: &Bench) -> Result<Vec<Row>> {
    let switches = bench.pick(100, 20) as usize;
    let ask = || look("probe", ADDRESS, 7, "echo 100");
    let quiet = quiet(bench, bench.pick(30, 10), &ask())?;
    let (pauses, alone) = measure(bench, switches, &[ask()])?;
    let few = bench.pick(40, 10) as usize;
    let (_, idle) = measure(bench, few, &[])?;
    let pause = |share| quantile(&pauses, share);
    let ms = |us: &[f64]| -> Vec<f64> { us.iter().map(|us| us / 1000.0).collect() };
    let live = |name: &str, value: f64| Row::new("live", name, value, "ms").runs(switches);
    let mut rows = vec![
        live("longest pause of a client, p99 of switches", pause(0.99)).at_most(50.0),
        live(
            "the same without switches, p99 of as long times",
            quantile(&quiet, 0.99),
        )
        .runs(quiet.len()),
        live("longest pause of a client, median of switches", pause(0.5)),
        Row::median("blackout", "0 connections, p50", &ms(&idle), "ms"),
        Row::median("blackout", "1 connection, p50", &ms(&alone), "ms"),
    ];
    let alone = quantile(&ms(&alone), 0.5);
    for count in CONNECTIONS {
        let lines = look("lines", ADDRESS, 7, &format!("{count} 20"));
        let (_, crowded) = measure(bench, few, &[lines])?;
        let name = format!("{count} connections, p50");
        rows.push(
            Row::median("blackout", name, &ms(&crowded), "ms")
                .peer("1 connection", alone)
                .at_most(2.0),
        );
    }
    Ok(rows)
}

/// The longest answers of each [`EVERY`] without any switch: what the machine has of its own.
fn quiet(bench: &Bench, times: u64, ask: &Client) -> Result<Vec<f64>> {
    let mut domain = Guest::new(&bench.images.echo, Kind::Pvh, 2)
        .network(ADDRESS)
        .memory(96)
        .start_serving(&bench.xen)?;
    domain.wait_until_said(&["echo: "])?;
    let begin = domain.started_at()? + domain.elapsed().as_secs_f64();
    let every = Duration::from_millis(EVERY);
    let said = beside(&bench.xen, ADDRESS, std::slice::from_ref(ask), |_| {
        thread::sleep(every * u32::try_from(times)?);
        Ok(())
    })?;
    let at: Vec<f64> = (0..times)
        .map(|n| begin + (n as f64 + 0.5) * every.as_secs_f64())
        .collect();
    let answers = read(said.first().context("no client")?)?;
    Ok(pauses(&at, &late(&answers)))
}

/// The pauses, in ms, and the blackouts, in µs, of so many switches.
fn measure(bench: &Bench, count: usize, clients: &[Client]) -> Result<(Vec<f64>, Vec<f64>)> {
    let image = &bench.images.echo;
    let mut domain = Guest::new(image, Kind::Pvh, 2)
        .network(ADDRESS)
        .memory(96)
        .module(Path::new(&image.bundle))
        .cmdline(format!("-- --replace-every {EVERY}"))
        .start_serving(&bench.xen)?;
    domain.wait_until_said(&["echo: "])?;
    let mut first = 0;
    let said = beside(&bench.xen, ADDRESS, clients, |_| {
        domain.skip();
        first = domain.lines().len();
        for _ in 0..count {
            domain.wait_for("segue: switch ")?;
        }
        Ok(())
    })?;
    let started = domain.started_at()?;
    let lines = domain.lines();
    let seen = lines.get(first..).context("lines")?;
    let blackouts = numbers(events(seen, "segue: switch "), "blackout_us")?;
    let at: Vec<f64> = switch_times(&domain, started, first);
    let pauses = match said.first() {
        Some(said) => pauses(&at, &late(&read(said)?)),
        None => Vec::new(),
    };
    Ok((pauses, blackouts))
}

/// When the switches behind the line of that number were, by dom0's clock.
fn switch_times(domain: &Running<'_>, started: f64, first: usize) -> Vec<f64> {
    let lines = domain.lines();
    let behind = lines.iter().skip(first);
    behind
        .filter(|line| line.text.starts_with("segue: switch "))
        .map(|line| started + line.at.as_secs_f64())
        .collect()
}
