//! The demo's second part: the switch from near.

use anyhow::{Context, Result, ensure};
use segue_lab::{EndReason, Line};

use super::{align, table_with};
use crate::PARTS;
use crate::guest::{Event, Guest, Kind, Run, Xen};
use crate::images::DemoImages;

/// Generation at which the clock stops.
const UNTIL: u64 = 5;

/// Runs the clock up to some generation, and images that fail on trial; shows what it cost.
pub fn run(xen: &Xen, images: &DemoImages) -> Result<()> {
    let clock = Guest::new(&images.clock, Kind::Hvm, 2)
        .module(&images.clock_bundles)
        .cmdline(format!(
            "segue.shared_info=ram -- --every 300 --ticks 2 --until {UNTIL}"
        ))
        .start(xen)?
        .finish(show)?;
    clock.ended(EndReason::PowerOff)?;
    switches(&clock)?;
    let audits: Vec<Event> = clock.events("clock: audit ").collect();
    let frames = |audit: Option<&Event>| audit.context("no audit")?.number("free_frames");
    let second = audits
        .iter()
        .find(|audit| audit.is("generation", 2).is_ok());
    let (first, last) = (frames(second)?, frames(audits.last())?);
    println!(
        "Free frames at generation 2: {first}, at generation {UNTIL}: {last}. \
         Readings of the clock that went backward: {}.",
        audits.last().context("no audit")?.number("backward")?
    );
    ensure!(first == last, "frames were lost");
    Ok(())
}

/// Prints a console line with the time since the domain was let run.
fn show(line: &Line) {
    const WIDTH: usize = 120;
    let text = shortened(&line.text).unwrap_or_else(|| line.text.clone());
    let mut short: String = text.chars().take(WIDTH).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    println!("  {:8.3} s │ {short}", line.at.as_secs_f64());
}

/// A line without what is shown elsewhere.
fn shortened(text: &str) -> Option<String> {
    let (head, tail) = if text.starts_with("segue: switch ") {
        // The parts come in the table.
        (text.find(" quiesce_us=")?, text.find(" image=")?)
    } else {
        return None;
    };
    Some(format!("{} …{}", text.get(..head)?, text.get(tail..)?))
}

/// The table of switches, one a column; returns their number.
fn switches(run: &Run) -> Result<usize> {
    let events: Vec<Event> = run.events("segue: switch ").collect();
    let count = events.len();
    ensure!(count as u64 + 1 == UNTIL, "{count} switches");
    let mut header = vec!["switch".to_owned()];
    let mut rows = vec![vec!["to image".to_owned()], vec!["blackout".to_owned()]];
    rows.extend(PARTS.map(|part| vec![format!("  {part}")]));
    let counts = ["p2m_updates", "hypercalls", "exits"];
    rows.extend(counts.map(|key| vec![key.replace('_', " ")]));
    for event in events {
        header.push(format!("{} → {}", event.get("from")?, event.get("to")?));
        let mut cells = vec![event.get("image")?.to_owned()];
        for part in ["blackout"].into_iter().chain(PARTS) {
            cells.push(ms(event, part)?);
        }
        for key in counts {
            cells.push(event.get(key)?.to_owned());
        }
        for (row, cell) in rows.iter_mut().zip(cells) {
            row.push(cell);
        }
    }
    let mut table = table_with(&header);
    table.add_rows(rows);
    align(&mut table, 1);
    println!("Blackout and its parts, ms of emulated time; what Xen had to do\n{table}\n");
    Ok(count)
}

fn ms(event: Event, part: &str) -> Result<String> {
    let us = event.number(&format!("{part}_us"))?;
    Ok(format!("{:.2}", us as f64 / 1000.0))
}
