//! From the start to main, the clock, and sizes.

use std::time::Duration;

use anyhow::{Result, bail};
use segue_lab::DomainType;

use super::Bench;
use super::linux::Programs;
use super::network::ours;
use super::row::{Row, quantile};
use super::staying::Staying;
use crate::guest::{Guest, Kind};
use crate::test::least_mib;

pub fn start(bench: &Bench) -> Result<Vec<Row>> {
    let image = &bench.images.hello;
    let count = bench.pick(7, 2) as usize;
    let mut rows = Vec::new();
    for kind in Kind::ALL {
        let (mut times, mut maps) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let run = Guest::new(image, kind, 2).alone().run(&bench.xen)?;
            let ms = |line, key| -> Result<f64> { Ok(run.one(line)?.number(key)? as f64 / 1000.0) };
            times.push(ms("segue: main ", "start_us")?);
            maps.push(ms("segue: shared_info ", "map_us")?);
        }
        let name = format!("entry to main, {kind}, 2 vCPUs, 64 MiB, p50");
        let row = Row::new("start", name, quantile(&times, 0.5), "ms").runs(count);
        rows.push(row.at_most(30.0));
        let name = format!("entry to main, {kind}, least of the runs");
        rows.push(Row::new("start", name, quantile(&times, 0.0), "ms").runs(count));
        let name = format!("of it Xen maps shared_info, {kind}, p50");
        rows.push(Row::new("start", name, quantile(&maps, 0.5), "ms").runs(count));
        // By many starts.
        if !bench.quick {
            let least = least_mib(&bench.xen, &bench.images, kind)?;
            let name = format!("least memory that boots hello, {kind}");
            rows.push(Row::new("start", name, least as f64, "MiB"));
        }
    }
    let size = image.img_len as f64 / 1000.0;
    rows.push(Row::new("start", "hello.img", size, "kB").at_most(300.0));
    Ok(rows)
}

pub fn clock(bench: &Bench) -> Result<Vec<Row>> {
    let guest = Guest::new(&bench.images.gauntlet, Kind::Hvm, 1);
    let run = guest.cmdline("-- --clockcost").run(&bench.xen)?;
    let cost = run.one("gauntlet: clock ")?;
    let cycles = |key| -> Result<f64> { Ok(cost.number(key)? as f64) };
    let row = Row::new("clock", "pvclock read", cycles("pvclock_cycles")?, "cycles");
    let row = row.peer("ordered rdtsc", cycles("rdtsc_cycles")?);
    Ok(vec![row.runs(50 * 10_000).at_most(2.0)])
}

/// How long wrk may take.
const MEASURE: Duration = Duration::from_secs(60);

/// How long a domain may take until it says that it has a network.
const UP: Duration = Duration::from_secs(15);

/// From `xl create` to the first answer over HTTP, both without a device model.
pub fn to_first_answer(bench: &Bench) -> Result<Vec<Row>> {
    const OURS: &str = "10.0.0.40";
    const LINUX: &str = "10.0.0.41";
    const LIMIT: Duration = Duration::from_secs(300);
    let serves =
        |address: &str, path: &str| format!("curl -sf -m 1 -o /dev/null http://{address}/{path}");
    let linux = Programs::build()?.domain(DomainType::Pvh, LINUX);
    let sides = [
        (ours(&bench.images.httpd, OURS, None), serves(OURS, "")),
        (linux, serves(LINUX, "1k")),
    ];
    let count = bench.pick(3, 1);
    let mut medians = Vec::new();
    bench.xen.prepare_network()?;
    for (config, serves) in sides {
        let domain = Staying::start(bench.xen.host(), config, serves, LIMIT)?;
        let mut times = Vec::new();
        for _ in 0..count {
            times.push(domain.create_anew(LIMIT)? * 1000.0);
        }
        medians.push(times);
    }
    let [ours, theirs] = &medians[..] else {
        return Ok(Vec::new());
    };
    let row = Row::median("start", "xl create to first HTTP answer", ours, "ms");
    let least = least_that_serves(bench)?;
    let least = Row::new(
        "start",
        "least memory that serves HTTP, pvh, 2 vCPUs",
        least as f64,
        "MiB",
    );
    Ok(vec![row.peer("Linux", quantile(theirs, 0.5)), least])
}

/// The least memory with which `httpd` answers 32 clients at a time for a while, in MiB.
fn least_that_serves(bench: &Bench) -> Result<u64> {
    const ADDRESS: &str = "10.0.0.42";
    let host = bench.xen.host();
    let load = format!("wrk -t 1 -c 32 -d 3 --timeout 5s http://{ADDRESS}:80/");
    for mib in 3..=32 {
        bench.xen.prepare_network()?;
        let mut config = ours(&bench.images.httpd, ADDRESS, None);
        config.memory_mib = mib;
        // Below some size xl itself refuses, then the image does.
        let Ok(domain) = host.create(&config) else {
            continue;
        };
        let serves = domain.wait_line(|line| line.text.starts_with("segue: net "), UP);
        if serves.is_ok() {
            // wrk itself failing is no answer.
            let said = host.exec_for(&load, MEASURE)?.check()?.stdout;
            let answered = said.contains(" requests in") && !said.contains(" 0 requests in");
            if answered && !said.contains("Socket errors") && domain.end().is_none() {
                return Ok(mib);
            }
        }
    }
    bail!("httpd does not serve with 32 MiB")
}
