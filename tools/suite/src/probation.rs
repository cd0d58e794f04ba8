//! Tests of the time after a commit: who has the domain when the new image goes wrong, and what is
//! left.

use anyhow::{Context, Result};

use crate::devices::same;
use crate::guest::{Guest, Kind, Run};
use crate::test::{Case, Shared, case, powered_off};
use segue_lab::EndReason;

/// What the new image does on probation, and what the fallback says of it.
const CRASHES: [(&str, &str); 13] = [
    // The kernel itself: right after the verdict, before the network goes on, and before all of its
    // devices are its own.
    ("committed", "invalid-opcode"),
    ("adopting", "invalid-opcode"),
    ("adopted", "invalid-opcode"),
    ("panic", "gauntlet panics with"),
    ("null", "page-fault"),
    ("text", "page-fault"),
    ("data", "page-fault"),
    ("stack", "stack-overflow"),
    ("divide", "divide-error"),
    ("late", "page-fault"),
    ("busy", "gauntlet panics on probation"),
    ("exit", "exit status=3"),
    // Not kept: it is not consistent.
    (TORN, "gauntlet panics while it changes a region"),
];

const TORN: &str = "torn";

/// How often all of them, in turn; and how often the image before comes back in another way.
const TIMES: u64 = 2;
const ROUNDS: u64 = 3;

/// All tests of this file.
pub fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (kind, vcpus) in [
        (Kind::Hvm, 1),
        (Kind::Hvm, 2),
        (Kind::Pvh, 2),
        (Kind::Pvh, 4),
    ] {
        all.push(case(
            format!("probation::{kind}_{vcpus}_crashes"),
            move |s| crashes(s, kind, vcpus),
        ));
    }
    for (kind, vcpus) in [(Kind::Hvm, 2), (Kind::Pvh, 4)] {
        all.push(case(format!("probation::{kind}_{vcpus}_lives"), move |s| {
            lives(s, kind, vcpus)
        }));
    }
    for (kind, address) in [(Kind::Hvm, "10.0.0.61"), (Kind::Pvh, "10.0.0.62")] {
        all.push(case(
            format!("probation::{kind}_2_rolls_back_with_a_device"),
            move |s| with_device(s, kind, address),
        ));
    }
    all
}

/// The image before had no device when it was put aside: what has come since is made known to it.
fn with_device(s: &Shared, kind: Kind, address: &str) -> Result<()> {
    let image = &s.images.gauntlet;
    let run = Guest::new(image, kind, 2)
        .module(&image.bundle)
        .network(address)
        .cmdline("-- --probation network 1".to_owned())
        .run(&s.xen)?;
    run.one("gauntlet: network=true")?;
    run.one("segue: vif=0 connected")?;
    let switches = run.events("segue: switch ").count();
    run.check(switches == 2, || format!("{switches} switches"))?;
    run.one("gauntlet: has=old generation=3 ")?;
    powered_off(&run)
}

fn run(s: &Shared, kind: Kind, vcpus: u32, what: &str, rounds: u64) -> Result<Run> {
    let image = &s.images.gauntlet;
    let guest = Guest::new(image, kind, vcpus).module(&image.bundle);
    guest
        .cmdline(format!("-- --probation {what} {rounds}"))
        .run(&s.xen)
}

/// The image before has the domain again, over and over, and nothing is lost on the way.
fn crashes(s: &Shared, kind: Kind, vcpus: u32) -> Result<()> {
    let all: Vec<&str> = CRASHES.iter().map(|(what, _)| *what).collect();
    let rounds = TIMES * CRASHES.len() as u64;
    let run = run(s, kind, vcpus, &all.join(","), rounds)?;
    let mut from = 2;
    let mut expected = CRASHES.iter().cycle();
    // What the region has to say: a new image counts itself, those that the kernel ended at once
    // did not come to it.
    let mut count = 0;
    for fallback in run.events("segue: fallback ") {
        let (what, why) = expected.next().context("the rows are repeated")?;
        let torn = *what == TORN;
        count = match *what {
            "committed" | "adopting" | "adopted" => count,
            TORN => 0,
            _ => count + 1,
        };
        let check = || {
            fallback.is("from", from)?;
            fallback.is("to", from + 1)?;
            fallback.is("image", &s.images.gauntlet.ident)?;
            // What it says of state, and what the image finds.
            fallback.is("kept_regions", u64::from(!torn))?;
            fallback.is("torn_regions", u64::from(torn))?;
            fallback.is("lost", "values,connections")?;
            let back = run.one(&format!("gauntlet: has=old generation={} ", from + 1))?;
            back.is("region", if torn { "new" } else { "kept" })?;
            back.is("count", count)
        };
        run.explain(check().with_context(|| format!("after {what}")))?;
        run.check(fallback.text.contains(why), || {
            format!("{what}: '{why}' is not in: {}", fallback.text)
        })?;
        from += 2;
    }
    run.check(from == 2 + 2 * rounds, || {
        format!("{} fallbacks instead of {rounds}", from / 2 - 1)
    })?;
    let second = run.one("gauntlet: has=old generation=3 ")?;
    let last = run.one(&format!("gauntlet: has=old generation={} ", 1 + 2 * rounds))?;
    run.explain(same(&second, &last))?;
    run.one("gauntlet: probation done")?;
    powered_off(&run)
}

/// Everything but a crash of the new image.
fn lives(s: &Shared, kind: Kind, vcpus: u32) -> Result<()> {
    // Nobody has anything against it.
    for (what, over) in [("confirm", "over=confirmed"), ("time", "over=time")] {
        let run = run(s, kind, vcpus, what, 1)?;
        let line = run.one("segue: probation generation=2 over=")?;
        run.check(line.text.ends_with(over), || {
            format!("{what}: {}", line.text)
        })?;
        run.one("gauntlet: has=new rounds=1 goes on")?;
        powered_off(&run)?;
    }
    // It is taken back: a switch like any other.
    for what in ["unconfirmed", "rollback"] {
        let run = run(s, kind, vcpus, what, ROUNDS)?;
        let switches = run.events("segue: switch ").count() as u64;
        run.check(switches == 2 * ROUNDS, || format!("{switches} switches"))?;
        let second = run.one("gauntlet: has=old generation=3 ")?;
        let last = run.one(&format!("gauntlet: has=old generation={} ", 1 + 2 * ROUNDS))?;
        run.explain(same(&second, &last))?;
        powered_off(&run)?;
    }
    // It refuses to be taken back, and is not asked any more in the end.
    let stubborn = run(s, kind, vcpus, "stubborn", 1)?;
    let refused = stubborn.events("segue: rollback failed: ").count();
    stubborn.check(refused == 3, || format!("asked {refused} times"))?;
    stubborn.one("segue: fallback from=2 to=3 ")?;
    stubborn.one("gauntlet: has=old generation=3 ")?;
    powered_off(&stubborn)?;
    // There is a way back once, and only if it was kept.
    let twice = run(s, kind, vcpus, "twice", 2)?;
    twice.one("segue: fallback from=2 to=3 ")?;
    twice.ended(EndReason::Crash)?;
    let without = run(s, kind, vcpus, "without", 1)?;
    let fallbacks = without.events("segue: fallback ").count();
    without.check(fallbacks == 0, || "a fallback to nothing".into())?;
    without.ended(EndReason::Crash)
}
