//! `make demo`: what Segue does, in a minute or two.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use segue_lab::{EndReason, Line};

use crate::PARTS;
use crate::guest::{Event, Guest, Kind, Run, Xen};
use crate::images::Images;

/// Generation at which the clock stops.
const UNTIL: u64 = 5;

/// Runs the demo.
pub fn run() -> Result<ExitCode> {
    let begin = Instant::now();
    println!(
        "\
Segue: a domain on a real Xen replaces its own image while it runs.

What comes, in under three minutes:
  1. A domain with 2 vCPUs boots clock 0.1.0, which replaces itself by clock 0.2.0 (that one
     tells the date too), and on, up to generation {UNTIL}. shared_info, which Xen writes
     the time to, starts in RAM, where a kexec would leave it: the first switch moves it away.
  2. A running image is offered bad bundles: it refuses them and goes on.
  3. New images fail on trial, one by a panic, one by spinning: the old one resumes.
  4. What it cost.
"
    );
    let images = Images::build()?;
    let xen = crate::xen(256)?;

    println!("\n1. clock 0.1.0 and 0.2.0, HVM, 2 vCPUs, 64 MiB");
    let clock = Guest::new(&images.clock, Kind::Hvm, 2)
        .module(&images.clock_bundles)
        .cmdline(format!(
            "segue.shared_info=ram -- --every 300 --ticks 2 --until {UNTIL}"
        ))
        .start(&xen)?
        .finish(show)?;
    clock.ended(EndReason::PowerOff)?;

    println!("\n2. Bad bundles");
    let refused = until(&xen, &images, "--bundles", "bundle=", 5)?;
    println!("\n3. Images that fail on trial");
    let resumed = until(&xen, &images, "--trials", "trial=spin ", 1)?;

    println!("\n4. What it cost\n");
    let switches = switches(&clock)?;
    clocks(&clock)?;
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
    println!(
        "Each exit of the guest is dear here, because the processor is emulated: \
         counts say more than times."
    );
    println!(
        "\nSegue demo: {switches} switches, {refused} bad bundles refused, {resumed} failed trials \
         taken back, no reboot; {:.0} s.",
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// Runs gauntlet until it has said `wanted` often enough; returns the number of good outcomes.
fn until(xen: &Xen, images: &Images, argument: &str, wanted: &str, times: usize) -> Result<usize> {
    let image = &images.gauntlet;
    let mut domain = Guest::new(image, Kind::Hvm, 2)
        .module(&image.bundle)
        .cmdline(format!("-- {argument}"))
        .start(xen)?;
    let (mut good, mut found) = (0, 0);
    while found < times {
        let Some(line) = domain.next_line()? else {
            break;
        };
        show(&line);
        if let Some(text) = line.text.strip_prefix("gauntlet: ") {
            found += usize::from(text.starts_with(wanted));
            let outcome = Event { text }.get("outcome").unwrap_or("");
            good += usize::from(matches!(outcome, "ok" | "resumed"));
        }
    }
    domain.stop()?;
    ensure!(
        found == times && good >= times,
        "the domain did not do what it should"
    );
    Ok(good)
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
    } else if text.starts_with("gauntlet: trial=") {
        // The reason stands in the line before.
        (text.find(" reason=")?, text.find(" loops=")?)
    } else if text.starts_with("gauntlet: bundle=") {
        // The message says it in words.
        (text.find(" error=")?, text.find(" outcome=")?)
    } else {
        return None;
    };
    Some(format!("{} …{}", text.get(..head)?, text.get(tail..)?))
}

fn table<T: ToString>(header: &[T]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.iter().map(ToString::to_string));
    table
}

/// Right-aligns all columns but the first few.
fn align(table: &mut Table, from: usize) {
    for column in table.column_iter_mut().skip(from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
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
    let mut table = table(&header);
    table.add_rows(rows);
    align(&mut table, 1);
    println!("Blackout and its parts, ms of emulated time; what Xen had to do\n{table}\n");
    Ok(count)
}

fn ms(event: Event, part: &str) -> Result<String> {
    let us = event.number(&format!("{part}_us"))?;
    Ok(format!("{:.2}", us as f64 / 1000.0))
}

/// The table of what the clock said before and after each switch.
fn clocks(run: &Run) -> Result<()> {
    let mut table = table(&["switch", "last tick before", "first tick after", "between"]);
    let generation = |event: &Event| event.number("generation").ok();
    let ticks: Vec<Event> = run
        .events("clock ")
        .filter(|event| event.get("tick").is_ok())
        .collect();
    for pair in ticks.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        let (from, to) = (generation(&before), generation(&after));
        let (Some(from), Some(to)) = (from, to) else {
            continue;
        };
        if from == to {
            continue;
        }
        let between = time_of_day(&after)?.saturating_sub(time_of_day(&before)?);
        table.add_row([
            format!("{from} → {to}"),
            said(&before).to_owned(),
            said(&after).to_owned(),
            format!("{:.0} ms", between.as_secs_f64() * 1000.0),
        ]);
    }
    align(&mut table, 3);
    println!("What the clock told (300 ms of each interval are its own wait)\n{table}\n");
    Ok(())
}

/// What a tick line ends with: the time, with or without a date.
fn said<'a>(tick: &Event<'a>) -> &'a str {
    let (_, rest) = tick.text.split_once("total=").unwrap_or(("", tick.text));
    rest.split_once(' ').map_or(rest, |(_, said)| said)
}

fn time_of_day(tick: &Event) -> Result<Duration> {
    let time = said(tick).split(' ').next_back().unwrap_or_default();
    let mut seconds = 0.0;
    for part in time.split(':') {
        let part: f64 = part
            .parse()
            .with_context(|| format!("no time in: {}", tick.text))?;
        seconds = seconds * 60.0 + part;
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_read() {
        let tick = Event {
            text: "clock 0.2.0 generation=2 tick=1 total=4 2026-11-23 01:50:16.594",
        };
        assert_eq!(said(&tick), "2026-11-23 01:50:16.594");
        let wanted = Duration::from_millis((3600 + 50 * 60 + 16) * 1000 + 594);
        assert_eq!(time_of_day(&tick).unwrap(), wanted);
    }
}
