//! What is handed over: values and preserved regions, from generation to generation, between two
//! versions of this app that have their state in different shapes.
//!
//! Each generation checks what came, fails to switch in all ways that concern state, and hands on.

use segue::ReplaceError;
use segue::handover::{Incoming, Outgoing, Refusal, TakeError};
use segue::preserved::{self, Region};
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// Elements of the table: 8 MiB.
const ROWS: usize = 512 * 1024;
/// Its version.
const VERSION: u32 = 7;
/// The schema of the values.
const SCHEMA: u32 = 3;
/// Frames that a region takes which the next image does not want: 1 MiB and a header.
const LEFT_FRAMES: u64 = 257;

/// A row of the table. The first two are counters, written together over and over.
#[derive(Clone, Copy, segue::Plain)]
#[repr(C)]
struct Row {
    value: u64,
    generation: u32,
    spare: u32,
}

/// A row as nobody has it.
#[derive(Clone, Copy, segue::Plain)]
#[repr(C)]
struct OtherRow {
    value: u64,
    spare: u32,
    generation: u32,
}

#[cfg(not(feature = "next"))]
#[derive(Serialize, Deserialize)]
struct State {
    count: u32,
    names: Vec<String>,
    #[serde(default)]
    note: Option<String>,
}

#[cfg(not(feature = "next"))]
impl State {
    fn new(count: u64) -> Self {
        Self {
            count: count as u32,
            names: vec!["one".into(), "two".into()],
            note: Some("of the older version only".into()),
        }
    }

    fn count(&self) -> u64 {
        self.count.into()
    }
}

/// Version 0.2.0 has dropped a field, has got one, and counts further.
#[cfg(feature = "next")]
#[derive(Serialize, Deserialize)]
struct State {
    #[serde(default)]
    factor: f64,
    names: Vec<String>,
    count: u64,
}

#[cfg(feature = "next")]
impl State {
    fn new(count: u64) -> Self {
        Self {
            factor: 1.5,
            names: vec!["one".into(), "two".into()],
            count,
        }
    }

    fn count(&self) -> u64 {
        self.count
    }
}

type Table = Region<[Row]>;

static TABLE: Mutex<Option<Table>> = Mutex::new(None);
/// What the handler does: nothing special, refuse, take long, hand over too much.
static REFUSE: AtomicBool = AtomicBool::new(false);
static SLOW: AtomicBool = AtomicBool::new(false);
static LARGE: AtomicBool = AtomicBool::new(false);
/// The table's sum and address, as they are handed over.
static SUM: AtomicU64 = AtomicU64::new(0);
static ADDRESS: AtomicU64 = AtomicU64::new(0);

fn table() -> MutexGuard<'static, Option<Table>> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Passes on from generation to generation, up to `until`.
pub fn run(until: u64) {
    let generation = segue::generation();
    let outcome = restore(generation).and_then(|()| {
        if let Some(audit) = segue::audit() {
            println!("stdtest: audit=state generation={generation} {audit}");
        }
        keep_writing();
        segue::on_replace(hand_over);
        attempts(generation == 1)
    });
    match outcome {
        Ok(count) => {
            println!("stdtest: state generation={generation} outcome=ok attempts={count}");
        }
        Err(why) => {
            println!("stdtest: state generation={generation} outcome=bad why=\"{why}\"");
            return;
        }
    }
    if generation >= until {
        return;
    }
    let (_, version) = segue::image();
    let Some(bundle) = bundle(|name, v| name == "stdtest" && v != version) else {
        return println!("stdtest: state outcome=bad why=\"no other version\"");
    };
    let error = segue::replace_image(bundle).unwrap_err();
    println!("stdtest: state outcome=bad why=\"{error}\"");
}

fn bundle(wanted: impl Fn(&str, &str) -> bool) -> Option<&'static [u8]> {
    segue::bundles().find(|b| segue::bundle_ident(b).is_some_and(|(n, v)| wanted(&n, &v)))
}

fn hand_over(next: &mut Outgoing) -> Result<(), Refusal> {
    if REFUSE.load(Ordering::Relaxed) {
        return Err(Refusal::new("not today"));
    }
    while SLOW.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(5));
    }
    if LARGE.load(Ordering::Relaxed) {
        // It may not notice.
        let _ = next.put("large", &"x".repeat(17 << 20));
    }
    let generation = segue::generation();
    next.schema(SCHEMA);
    next.put("state", &State::new(generation))?;
    next.put("generation", &generation)?;
    next.put("sum", &SUM.load(Ordering::Relaxed))?;
    next.put("address", &ADDRESS.load(Ordering::Relaxed))?;
    next.put("unwanted", "value")?;
    Ok(())
}

fn value(i: usize) -> u64 {
    (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5e6e
}

/// Of all rows but the counters.
fn sum(rows: &[Row]) -> u64 {
    rows[2..].iter().fold(0, |sum: u64, row| {
        sum.rotate_left(5)
            .wrapping_add(row.value ^ u64::from(row.generation))
    })
}

fn text(e: impl std::fmt::Display) -> String {
    e.to_string()
}

fn ensure(good: bool, why: &str) -> Result<(), String> {
    crate::ensure(good, || why.to_owned())
}

/// Takes what came, or makes it in the first generation.
fn restore(generation: u64) -> Result<(), String> {
    let mut rows = match segue::handover() {
        None => {
            ensure(generation == 1, "nothing was handed over")?;
            let mut rows = Table::create("table", VERSION, ROWS).map_err(text)?;
            let fill = |rows: &mut [Row]| {
                for (i, row) in rows.iter_mut().enumerate().skip(2) {
                    row.value = value(i);
                }
            };
            rows.update(fill).map_err(text)?;
            rows
        }
        Some(mut before) => {
            ensure(generation > 1, "something was handed over")?;
            let rows = taken(&mut before, generation)?;
            leave(before)?;
            rows
        }
    };
    // Some change in each generation, all over the table.
    let change = |rows: &mut [Row]| {
        for row in rows.iter_mut().skip(2).step_by(1000) {
            row.generation = generation as u32;
        }
        sum(rows)
    };
    SUM.store(rows.update(change).map_err(text)?, Ordering::Relaxed);
    ADDRESS.store(rows.get().as_ptr().addr() as u64, Ordering::Relaxed);
    *table() = Some(rows);
    let left = Region::<[u64]>::create("left", 1, 1 << 17).map_err(text)?;
    std::mem::forget(left);
    Ok(())
}

fn taken(before: &mut Incoming, generation: u64) -> Result<Table, String> {
    ensure(before.schema() == SCHEMA, "another schema")?;
    before.understand(SCHEMA - 1);
    let newer = before.take::<u64>("generation");
    ensure(
        matches!(newer, Err(TakeError::Newer { schema: SCHEMA, .. })),
        "a newer schema was taken",
    )?;
    before.understand(SCHEMA);
    let missing = before.take::<u64>("nothing");
    ensure(
        matches!(missing, Err(TakeError::Missing { .. })),
        "a value that is not there was taken",
    )?;
    let wrong = before.take::<String>("generation");
    ensure(
        matches!(wrong, Err(TakeError::WrongType { .. })),
        "a value of another type was taken",
    )?;
    let last: u64 = before.take("generation").map_err(text)?;
    let state: State = before.take("state").map_err(text)?;
    ensure(
        last + 1 == generation && state.count() == last && state.names == ["one", "two"],
        "another state",
    )?;

    let absent = Table::take("tables", VERSION).err();
    ensure(
        absent == Some(preserved::TakeError::Missing),
        "a region that is not there was taken",
    )?;
    let others = [
        Table::take("table", VERSION + 1).err(),
        Region::<[OtherRow]>::take("table", VERSION).err(),
        Region::<Row>::take("table", VERSION).err(),
    ];
    ensure(
        others
            .iter()
            .all(|e| matches!(e, Some(preserved::TakeError::Other { .. }))),
        "a region of another layout or version was taken",
    )?;
    let table = Table::take("table", VERSION).map_err(text)?;
    let rows = table.get();
    let (before_sum, address): (u64, u64) = (
        before.take("sum").map_err(text)?,
        before.take("address").map_err(text)?,
    );
    ensure(
        rows.as_ptr().addr() as u64 == address,
        "the region has moved",
    )?;
    ensure(
        rows.len() == ROWS && sum(rows) == before_sum,
        "the region has changed",
    )?;
    ensure(
        rows[0].value == rows[1].value && rows[0].value > 0,
        "the region was handed over in the middle of a change",
    )?;
    Ok(table)
}

/// What is not wanted is known, and its frames come back.
fn leave(before: Incoming) -> Result<(), String> {
    ensure(before.names().eq(["unwanted"]), "other values are left")?;
    let left = before.regions();
    ensure(
        left.len() == 1 && left[0].name == "left" && left[0].bytes == 1 << 20,
        "other regions are left",
    )?;
    let frames = segue::free_frames();
    drop(before);
    drop(left);
    ensure(
        segue::free_frames() >= frames + LEFT_FRAMES,
        "the frames of what was left are not free",
    )?;
    let again = Region::<[u64]>::take("left", 1).err();
    ensure(
        again == Some(preserved::TakeError::Missing),
        "a region that is gone was taken",
    )
}

/// Two counters, always the same but while they are changed.
fn keep_writing() {
    thread::spawn(|| {
        loop {
            if let Some(table) = table().as_mut() {
                let _ = table.update(|rows| {
                    rows[0].value += 1;
                    thread::yield_now();
                    rows[1].value += 1;
                });
            }
            thread::yield_now();
        }
    });
}

/// Switches that fail: the app has its state, and goes on. Gives how many.
fn attempts(all: bool) -> Result<u32, String> {
    let gauntlet = bundle(|name, _| name == "gauntlet").ok_or("no bundle of gauntlet")?;
    let write = format!("write-region {:#x}", ADDRESS.load(Ordering::Relaxed));
    let address = format!("address={:#x} ", ADDRESS.load(Ordering::Relaxed));
    let switch = |args: &str, limit| {
        segue::Replace::new(gauntlet)
            .args(&format!("--as {args}"))
            .ready_limit(limit)
            .start()
            .unwrap_err()
    };
    let long = Duration::from_secs(5);
    let mut count = 0;
    let mut check = |what: &str, error: ReplaceError, wanted: &str| {
        count += 1;
        let said = error.to_string();
        crate::ensure(said.contains(wanted), || format!("{what}: {said}"))?;
        let mut guard = table();
        let table = guard.as_mut().ok_or("no table")?;
        ensure(
            sum(table.get()) == SUM.load(Ordering::Relaxed),
            "a switch that failed has changed the region",
        )?;
        let written = table.update(|rows| rows[0].value == rows[1].value);
        ensure(written == Ok(true), "the region can't be changed")
    };
    let set = |flag: &AtomicBool, to| flag.store(to, Ordering::Relaxed);

    set(&REFUSE, true);
    let error = switch("commit", long);
    set(&REFUSE, false);
    check("refusal", error, "refused to be replaced: not today")?;
    check("trial", switch("refuse", long), "refused: not today")?;
    check("panic", switch("panic", long), "panic at=")?;
    check("write", switch(&write, long), &address)?;
    if all {
        set(&SLOW, true);
        let error = switch("commit", Duration::from_millis(50));
        check("late", error, "not ready to be replaced within 50 ms")?;
        let error = switch("commit", long);
        check("busy", error, "another switch")?;
        set(&SLOW, false);
        // The handler comes to its end.
        thread::sleep(Duration::from_millis(500));
        set(&LARGE, true);
        let error = switch("commit", long);
        set(&LARGE, false);
        check("large", error, "too much to hand over: named values")?;
        let mut other = Region::<u64>::create_one("changing", 1).map_err(text)?;
        let edit = other.edit().map_err(text)?;
        let error = switch("commit", long);
        drop(edit);
        check("changing", error, "was being changed")?;
    }
    Ok(count)
}
