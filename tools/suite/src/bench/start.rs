//! From the start to main, the clock, and sizes.

use anyhow::Result;

use super::Bench;
use super::row::{Row, quantile};
use crate::guest::{Guest, Kind};
use crate::test::least_mib;

pub fn start(bench: &Bench) -> Result<Vec<Row>> {
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

pub fn clock(bench: &Bench) -> Result<Vec<Row>> {
    let guest = Guest::new(&bench.images.gauntlet, Kind::Hvm, 1);
    let run = guest.cmdline("-- --clockcost").run(&bench.xen)?;
    let cost = run.one("gauntlet: clock ")?;
    let cycles = |key| -> Result<f64> { Ok(cost.number(key)? as f64) };
    let row = Row::new("clock", "pvclock read", cycles("pvclock_cycles")?, "cycles");
    let row = row.peer("ordered rdtsc", cycles("rdtsc_cycles")?);
    Ok(vec![row.runs(50 * 10_000).at_most(2.0)])
}
