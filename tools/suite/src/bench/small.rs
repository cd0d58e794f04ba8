//! Small things: the same program in an image of ours and on Linux.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::Bench;
use super::linux::LINUX_PROGRAMS;
use super::row::{Row, quantile};
use crate::guest::{Event, Guest, Kind};

const AREA: &str = "small things";
/// How long the program may take.
const LIMIT: Duration = Duration::from_secs(120);

/// What is measured with one vCPU, which is the same for both; whether Linux has it.
const ONE: [(&str, &str, bool); 7] = [
    ("a million steps of computing", "work_ns", true),
    ("reading the time stamp counter", "rdtsc_ns", true),
    ("reading the clock", "clock_ns", true),
    ("yield to another thread, 1 vCPU", "yield_ns", true),
    ("waking another thread, 1 vCPU", "wake_ns", true),
    ("a hypercall that does nothing", "hypercall_ns", false),
    (
        "an event to the own vCPU, until its handler runs",
        "event_ns",
        false,
    ),
];
/// And with two.
const TWO: [(&str, &str, bool); 1] = [("waking another thread, 2 vCPUs", "wake_ns", true)];

/// Measures all.
pub fn small(bench: &Bench) -> Result<Vec<Row>> {
    let linux = bench.linux()?;
    let runs = bench.pick(5, 1) as usize;
    let mut rows = Vec::new();
    for (vcpus, what) in [(1, &ONE[..]), (2, &TWO[..])] {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            let run = Guest::new(&bench.measure, Kind::Pvh, vcpus)
                .beside()
                .run(&bench.xen)?;
            ours.push(run.one("measure: ")?.text.to_owned());
            // With one processor as taskset has it.
            let mask = (1 << vcpus) - 1;
            linux.type_bytes(format!("chmod +x /measure; taskset {mask} /measure\r").as_bytes())?;
            let line = linux
                .wait_line(|line| line.text.starts_with("measure: "), LIMIT)
                .context("Linux does not run `measure`")?;
            theirs.push(line.text);
        }
        for (name, key, both) in what {
            let values = of(&ours, key)?;
            let row = Row::median(AREA, *name, &values, "ns");
            rows.push(match both {
                true => row.peer("Linux", quantile(&of(&theirs, key)?, 0.5)),
                false => row,
            });
        }
    }
    let beneath = Command::new(format!("{LINUX_PROGRAMS}/measure")).output();
    let beneath = beneath.context("`measure` on this machine")?;
    let said = String::from_utf8_lossy(&beneath.stdout);
    let work: f64 = Event { text: said.trim() }.get("work_ns")?.parse()?;
    if let Some(ours) = rows.first().and_then(|row| row.segue) {
        rows.push(Row::new(AREA, BENEATH, ours, "ns").peer("this machine itself", work));
    }
    Ok(rows)
}

/// How much slower computing is than without emulation.
pub const BENEATH: &str = "a million steps of computing, beneath";

fn of(lines: &[String], key: &str) -> Result<Vec<f64>> {
    let values = lines.iter().map(|text| {
        let value = Event { text }.get(key)?;
        value.parse().with_context(|| text.clone())
    });
    values.collect()
}
