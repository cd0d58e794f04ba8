//! The tests: a table of domains to run and what has to hold of them.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::{Arguments, Trial};
use segue_lab::EndReason;

use crate::guest::{Event, Guest, Kind, Run, Xen, forget_started};
use crate::images::Images;

/// What tests share.
pub struct Shared {
    /// The Xen they run on.
    pub xen: Xen,
    /// What they run.
    pub images: Images,
    start: Instant,
    total: usize,
    progress: Mutex<Progress>,
    /// Facts worth telling at the end.
    notes: Mutex<Vec<String>>,
    /// What failed, and why.
    failures: Mutex<Vec<String>>,
}

impl Shared {
    /// Keeps a fact for the end.
    pub fn note(&self, text: String) {
        let notes = self.notes.lock();
        notes.unwrap_or_else(PoisonError::into_inner).push(text);
    }
}

/// Which tests run, and how many have ended.
#[derive(Default)]
struct Progress {
    running: Vec<(String, Instant)>,
    done: usize,
    /// How long each took, with what it waited for.
    took: Vec<(Duration, String)>,
}

/// How many of the longest tests are told.
const LONGEST: usize = 15;

/// How often the progress is told.
const TELL: Duration = Duration::from_secs(20);

impl Shared {
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a test, and lets it be seen that it runs. One that fails with a domain that TCG lost
    /// runs again, twice at most.
    fn watch(&self, case: &Case) -> Result<()> {
        let start = Instant::now();
        self.progress()
            .running
            .push((case.name.clone(), Instant::now()));
        let mut again = 0;
        let result = loop {
            forget_started();
            let result = (case.body)(self);
            match &result {
                Err(error) if again < 2 && self.xen.lost_one() => {
                    eprintln!("suite: {}: TCG lost its domain: {error:#}", case.name);
                    eprintln!("suite: {}: again", case.name);
                    again += 1;
                }
                _ => break result,
            }
        };
        if let Err(error) = &result {
            // Now, too: the summary is far.
            eprintln!("suite: {} failed: {error:#}", case.name);
            let failure = format!("{} failed: {error:#}", case.name);
            self.failures
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(failure);
        }
        let mut progress = self.progress();
        progress.running.retain(|(name, _)| *name != case.name);
        progress.done += 1;
        progress.took.push((start.elapsed(), case.name.clone()));
        result
    }

    /// Tells the progress while the tests run.
    fn tell(&self) {
        loop {
            thread::sleep(TELL);
            if let Some(how) = self.xen.lab_ended() {
                eprintln!(
                    "suite: the lab's QEMU ended ({how}): no test can go on; see qemu.log in the \
                     newest folder below target/lab/run, and run again"
                );
                std::process::exit(1);
            }
            let progress = self.progress();
            let running: Vec<String> = progress
                .running
                .iter()
                .map(|(name, since)| format!("{name} ({} s)", since.elapsed().as_secs()))
                .collect();
            let seconds = self.start.elapsed().as_secs();
            let line = format!(
                "suite: {seconds} s, {} of {} done; running: {}\n",
                progress.done,
                self.total,
                running.join(", ")
            );
            // In one piece, because others write too.
            eprint!("{line}");
        }
    }
}

type Body = Box<dyn Fn(&Shared) -> Result<()> + Send>;

/// One test.
pub struct Case {
    name: String,
    /// Memory of its domain.
    mib: u64,
    /// Only run when it is named.
    on_request: bool,
    body: Body,
}

impl Case {
    /// Too long to be run each time: only when it is named.
    pub fn on_request(self) -> Case {
        Case {
            on_request: true,
            ..self
        }
    }

    /// With a domain of so much memory.
    pub fn with_memory(self, mib: u64) -> Case {
        Case { mib, ..self }
    }
}

/// A test of this name, with a small domain.
pub fn case(
    name: impl Into<String>,
    body: impl Fn(&Shared) -> Result<()> + Send + 'static,
) -> Case {
    Case {
        name: name.into(),
        mib: 64,
        on_request: false,
        body: Box::new(body),
    }
}

/// Runs the tests whose names contain one of the words, in full; without words, or if `brief`,
/// without those on request, and some with less load.
pub fn run(filter: &[String], brief: bool, list: bool) -> Result<ExitCode> {
    let brief = brief || filter.is_empty() && !list;
    let mut cases = cases(brief);
    let all = cases.len();
    let chosen = |name: &str| filter.is_empty() || filter.iter().any(|word| name.contains(word));
    cases.retain(|case| chosen(&case.name) && !(brief && case.on_request));
    let left_out = all - cases.len();
    let arguments = Arguments {
        list,
        // More would be more than the emulated machine has processors for.
        test_threads: Some(2),
        ..Arguments::default()
    };
    if list || cases.is_empty() {
        let nothing = |case: Case| Trial::test(case.name, || Ok(()));
        let trials = cases.into_iter().map(nothing).collect();
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    let images = Images::build()?;
    let wants =
        |case: &Case| case.name.starts_with("upgrade::") || case.name.contains("resumed_under");
    if cases.iter().any(wants) {
        // Not while others run.
        images.served()?;
    }
    let largest = cases.iter().map(|case| case.mib).max().unwrap_or(0);
    let shared = Arc::new(Shared {
        xen: crate::xen(largest + 512)?,
        images,
        start: Instant::now(),
        total: cases.len(),
        progress: Mutex::default(),
        notes: Mutex::default(),
        failures: Mutex::default(),
    });
    let trial = |case: Case| {
        let shared = Arc::clone(&shared);
        Trial::test(case.name.clone(), move || {
            let result = shared.watch(&case);
            result.map_err(|error| format!("{error:#}").into())
        })
    };
    let trials = cases.into_iter().map(trial).collect();
    let teller = Arc::clone(&shared);
    // Ends with the process.
    thread::spawn(move || teller.tell());
    let conclusion = libtest_mimic::run(&arguments, trials);
    let notes = shared.notes.lock();
    for note in notes.unwrap_or_else(PoisonError::into_inner).iter() {
        println!("suite: {note}");
    }
    let mut took = std::mem::take(&mut shared.progress().took);
    took.sort_unstable_by_key(|(time, _)| std::cmp::Reverse(*time));
    let longest: Vec<String> = took
        .iter()
        .take(LONGEST)
        .map(|(time, name)| format!("{name} {} s", time.as_secs()))
        .collect();
    println!("suite: the longest: {}", longest.join(", "));
    let mut groups: BTreeMap<&str, (usize, Duration)> = BTreeMap::new();
    for (time, name) in &took {
        let group = name.split_once("::").map_or(&**name, |(group, _)| group);
        let (count, sum) = groups.entry(group).or_default();
        *count += 1;
        *sum += *time;
    }
    let groups: Vec<String> = groups
        .iter()
        .map(|(group, (count, sum))| format!("{group} {count} in {} s", sum.as_secs()))
        .collect();
    println!("suite: two at a time: {}", groups.join(", "));
    println!(
        "suite: {} tests on a real Xen in {:.0} s",
        conclusion.num_passed + conclusion.num_failed,
        shared.start.elapsed().as_secs_f64()
    );
    if filter.is_empty() {
        println!(
            "suite: {left_out} more run on request, and live:: and devices:: in full: make live"
        );
    }
    // Each line as one of ours: who reads only the end of a long log has the reasons, too.
    let failures = shared.failures.lock();
    for line in failures
        .unwrap_or_else(PoisonError::into_inner)
        .iter()
        .flat_map(|f| f.lines())
    {
        println!("suite: {line}");
    }
    Ok(conclusion.exit_code())
}

/// vCPUs that domains are tried with.
const VCPUS: [u32; 5] = [1, 2, 4, 8, 32];

/// All tests, the long ones first; if `brief`, those that can be shorter are.
fn cases(brief: bool) -> Vec<Case> {
    let mut all = vec![
        case("switch::a_thousand_times", thousand),
        case("switch::keeps_a_clock_set_forward", |s| {
            // 300 ms, which no image can have lost in the blackout by itself.
            let run = clock(
                s,
                Kind::Hvm,
                2,
                Home::Mmio,
                "--every 20 --ticks 1 --ahead 300",
                4,
            )?;
            checked_switches(s, &run, 2, Home::Mmio, 4).map(drop)
        }),
        case("check::switch", |s| {
            switches(s, Kind::Hvm, 2, Home::Ram, 5).map(drop)
        }),
    ];
    for (kind, vcpus) in [(Kind::Hvm, 1), (Kind::Hvm, 4), (Kind::Pvh, 2)] {
        all.push(case(format!("trials::{kind}_{vcpus}"), move |s| {
            trials(s, kind, vcpus)
        }));
    }
    all.push(case("trials::pvh_4_resumed_200_times", |s| {
        resumed(s, Kind::Pvh, 4)
    }));
    for kind in Kind::ALL {
        all.push(case(format!("bundles::{kind}"), move |s| bundles(s, kind)));
        all.push(case(format!("trust::{kind}"), move |s| trust(s, kind)));
        all.push(case(
            format!("watchdog::{kind}_hang_with_one_vcpu"),
            move |s| hang(s, kind),
        ));
        for vcpus in [2, 4] {
            all.push(case(format!("sentinel::{kind}_{vcpus}"), move |s| {
                sentinel(s, kind, vcpus, true)
            }));
        }
        all.push(case(
            format!("sentinel::{kind}_2_without_relocation_fails"),
            move |s| sentinel(s, kind, 2, false),
        ));
        // Between these, what switches checks its start as well.
        for vcpus in [1, 32] {
            all.push(case(format!("boot::{kind}_{vcpus}_vcpus"), move |s| {
                boot(s, kind, vcpus, 64)
            }));
        }
        for vcpus in VCPUS {
            for home in [Home::Mmio, Home::Ram] {
                let name = format!("switch::{kind}_{vcpus}_{}", home.name());
                all.push(case(name, move |s| {
                    switches(s, kind, vcpus, home, 5).map(drop)
                }));
            }
        }
        all.push(Case {
            mib: 512,
            ..case(format!("boot::{kind}_512_mib"), move |s| {
                boot(s, kind, 2, 512)
            })
        });
        all.push(Case {
            mib: 5120,
            ..case(format!("boot::{kind}_5_gib"), move |s| all_memory(s, kind))
        });
        // With both kinds, all that differs is where the report goes.
        let faults = match kind {
            Kind::Hvm => &FAULTS[3..],
            Kind::Pvh => &FAULTS[..],
        };
        for &fault in faults {
            all.push(case(format!("fault::{kind}_{}", fault.0), move |s| {
                fails_by(s, kind, fault)
            }));
        }
    }
    for (kind, vcpus, times) in [(Kind::Hvm, 2, 3), (Kind::Pvh, 1, 20), (Kind::Pvh, 4, 20)] {
        all.push(case(format!("std::{kind}_{vcpus}"), move |s| {
            std_app(s, kind, vcpus, times)
        }));
    }
    all.extend(crate::live::cases(brief));
    all.extend(crate::upgrade::cases());
    all.extend(crate::net::cases());
    for (name, test, kind) in crate::control::tests() {
        all.push(case(name, move |s| test(&s.xen, &s.images, kind)));
    }
    all.extend(crate::devices::cases(brief));
    all.extend(crate::state::cases());
    all.extend(crate::probation::cases());
    all.extend([
        case(
            "switch::hypercalls_are_the_same_for_2_and_8_vcpus",
            hypercalls,
        ),
        case("start::in_8_mib", in_8_mib),
        case("start::too_little_memory", too_little_memory),
        case("start::too_many_vcpus", too_many_vcpus),
        case("start::not_on_xen", not_on_xen),
    ]);
    all
}

/// What a running image says when it starts.
fn started(run: &Run, kind: Kind, vcpus: u32, mib: u64, ident: &str) -> Result<()> {
    let boot = run.one("segue: boot generation=1 ")?;
    run.explain(
        boot.is("entry", kind.entry())
            .and_then(|()| boot.is("vcpus", vcpus))
            .and_then(|()| boot.is("image", ident))
            .and_then(|()| {
                let memory = boot.number("memory_mib")?;
                let right = memory <= mib && memory + 2 + mib / 50 >= mib;
                ensure!(right, "memory_mib={memory} of {mib}");
                boot.get("xen").map(drop)
            }),
    )?;
    run.one("segue: main start_us=")?;
    run.one("segue: shared_info home=").map(drop)
}

pub fn powered_off(run: &Run) -> Result<()> {
    run.one("segue: shutdown reason=poweroff")?;
    run.ended(EndReason::PowerOff)
}

fn boot(s: &Shared, kind: Kind, vcpus: u32, mib: u64) -> Result<()> {
    let image = &s.images.hello;
    let run = Guest::new(image, kind, vcpus).memory(mib).run(&s.xen)?;
    started(&run, kind, vcpus, mib, &image.ident)?;
    run.explain(run.one("segue: shared_info ")?.is("home", "mmio"))?;
    run.one("hello from a unikernel")?;
    powered_off(&run)
}

fn all_memory(s: &Shared, kind: Kind) -> Result<()> {
    let image = &s.images.gauntlet;
    let guest = Guest::new(image, kind, 2).memory(5120);
    let run = guest.cmdline("-- --memory").run(&s.xen)?;
    started(&run, kind, 2, 5120, &image.ident)?;
    let memory = run.one("gauntlet: memory ")?;
    run.explain(memory.is("outcome", "ok"))?;
    let high = run.explain(memory.number("high_frames"))?;
    // 5 GiB less what fits below 4 GiB, which Xen's devices and the PVH hole cut short.
    run.check(high > (1 << 30 >> 12), || {
        format!("only {high} frames above 4 GiB")
    })?;
    powered_off(&run)
}

/// Where shared_info is when the domain starts.
#[derive(Clone, Copy, PartialEq)]
enum Home {
    Mmio,
    Ram,
}

impl Home {
    fn name(self) -> &'static str {
        match self {
            Home::Mmio => "mmio",
            Home::Ram => "ram",
        }
    }
}

/// Switches up to a generation, and checks each switch; returns the hypercalls of each.
fn switches(s: &Shared, kind: Kind, vcpus: u32, home: Home, until: u64) -> Result<Vec<u64>> {
    let run = clock(s, kind, vcpus, home, "--every 20 --ticks 1", until)?;
    let images = [&s.images.clock, &s.images.clock_next];
    for generation in 1..=until {
        // Each generation lives: it has printed its tick, by the right image.
        let image = images[(generation as usize + 1) % 2];
        let (name, version) = image.ident.split_once('-').context("an ident")?;
        let tick = format!("{name} {version} generation={generation} tick=1 ");
        // One tick each, and all are counted.
        run.explain(run.one(&tick)?.is("total", generation))?;
    }
    checked_switches(s, &run, vcpus, home, until)
}

fn clock(
    s: &Shared,
    kind: Kind,
    vcpus: u32,
    home: Home,
    arguments: &str,
    until: u64,
) -> Result<Run> {
    let image = &s.images.clock;
    let run = Guest::new(image, kind, vcpus)
        .module(&s.images.clock_bundles)
        .cmdline(format!(
            "segue.shared_info={} -- {arguments} --until {until}",
            home.name()
        ))
        .run(&s.xen)?;
    started(&run, kind, vcpus, 64, &image.ident)?;
    run.explain(run.one("segue: shared_info ")?.is("home", home.name()))?;
    if vcpus > 1 {
        run.explain(run.one("segue: vcpus ")?.is("online", vcpus))?;
    }
    powered_off(&run)?;
    Ok(run)
}

fn checked_switches(s: &Shared, run: &Run, vcpus: u32, home: Home, until: u64) -> Result<Vec<u64>> {
    let images = [&s.images.clock, &s.images.clock_next];
    let mut hypercalls = Vec::new();
    let mut from = 1;
    for switch in run.events("segue: switch ") {
        let check = || -> Result<u64> {
            switch.is("from", from)?;
            switch.is("to", from + 1)?;
            switch.is("vcpus", vcpus)?;
            switch.is("image", &images[from as usize % 2].ident)?;
            // Only the first has anything to move.
            let moves = u64::from(home == Home::Ram && from == 1);
            switch.is("p2m_updates", moves)?;
            parts_add_up(&switch)?;
            switch.number("hypercalls")
        };
        hypercalls.push(run.explain(check())?);
        from += 1;
    }
    run.check(from == until, || {
        format!("{} switches instead of {}", from - 1, until - 1)
    })?;
    let commits = run.events("segue: commit generation=").count() as u64;
    run.check(commits == until - 1, || format!("{commits} commits"))?;
    let first = run.one("clock: audit generation=2 ")?;
    let last = run.one(&format!("clock: audit generation={until} "))?;
    for key in ["free_frames", "ports", "carved", "reservation"] {
        run.explain(first.get(key).and_then(|value| last.is(key, value)))?;
    }
    // Where Xen had put shared_info over a frame of RAM there is RAM again.
    let hole = u64::from(home == Home::Ram);
    let booted = run.one("clock: audit generation=1 ")?;
    run.explain(
        booted
            .number("reservation")
            .and_then(|frames| last.is("reservation", frames + hole)),
    )?;
    run.explain(last.is("backward", 0))?;
    Ok(hypercalls)
}

/// The blackout is the sum of its parts, but for rounding.
pub fn parts_add_up(switch: &Event) -> Result<()> {
    let whole = switch.number("blackout_us")?;
    let mut sum = 0;
    for part in crate::PARTS {
        sum += switch.number(&format!("{part}_us"))?;
    }
    ensure!(
        sum.abs_diff(whole) <= 10,
        "the parts' sum is {sum}: {}",
        switch.text
    );
    Ok(())
}

fn thousand(s: &Shared) -> Result<()> {
    let until = 1001;
    let run = clock(s, Kind::Hvm, 2, Home::Mmio, "--every 0 --ticks 0", until)?;
    let hypercalls = checked_switches(s, &run, 2, Home::Mmio, until)?;
    let same = hypercalls.iter().all(|h| *h == hypercalls[0]);
    run.check(same, || {
        let (min, max) = (hypercalls.iter().min(), hypercalls.iter().max());
        format!("hypercalls differ from switch to switch: {min:?} to {max:?}")
    })
}

fn hypercalls(s: &Shared) -> Result<()> {
    let count = |vcpus| switches(s, Kind::Hvm, vcpus, Home::Mmio, 6);
    let (two, eight) = (count(2)?, count(8)?);
    ensure!(
        two == eight,
        "hypercalls of each switch with 2 vCPUs: {two:?}, with 8: {eight:?}"
    );
    s.note(format!("hypercalls a switch: {:?}", two[0]));
    Ok(())
}

fn sentinel(s: &Shared, kind: Kind, vcpus: u32, relocated: bool) -> Result<()> {
    let image = &s.images.sentinel;
    let run = Guest::new(image, kind, vcpus)
        .module(&image.bundle)
        .cmdline(if relocated {
            "segue.shared_info=ram --"
        } else {
            "segue.shared_info=ram -- --norelocate"
        })
        .run(&s.xen)?;
    started(&run, kind, vcpus, 64, &image.ident)?;
    run.explain(run.one("segue: shared_info ")?.is("home", "ram"))?;
    let readers = run.one("sentinel: readers ")?;
    run.explain(readers.is("bad", 0))?;
    let result = run.one("sentinel: result=")?;
    let frames = run.explain(result.number("frames"))?;
    run.check(frames > 10_000, || {
        format!("only {frames} frames were filled")
    })?;
    if relocated {
        run.explain(result.is("result", "clean"))?;
        let code = run.one("sentinel: code ")?;
        let frames = run.explain(code.number("frames"))?;
        run.check(frames > 50, || {
            format!("only {frames} frames had the first image's text")
        })?;
        run.explain(code.is("words_left", 0))?;
        powered_off(&run)
    } else {
        // What Xen did to it is as it may be; that it did is the point.
        run.explain(result.is("result", "damaged"))
    }
}

fn trials(s: &Shared, kind: Kind, vcpus: u32) -> Result<()> {
    let (run, count) = all_resumed(s, kind, vcpus, "--trials")?;
    run.check(count >= 30, || format!("only {count} trials"))?;
    // And a good image still takes over.
    let committed = run.one("gauntlet: committed generation=2")?;
    let regions = || {
        committed.is("offered", 1)?;
        committed.is("dropped", 1)?;
        committed.is("long", 1)?;
        committed.is("left", 0)
    };
    run.explain(regions())?;
    powered_off(&run)
}

fn resumed(s: &Shared, kind: Kind, vcpus: u32) -> Result<()> {
    let (run, count) = all_resumed(s, kind, vcpus, "--resume 200")?;
    run.check(count == 200, || format!("only {count} trials"))?;
    powered_off(&run)
}

/// The old image resumed after each trial, as it was; gives how many there were.
fn all_resumed(s: &Shared, kind: Kind, vcpus: u32, what: &str) -> Result<(Run, u64)> {
    let image = &s.images.gauntlet;
    let guest = Guest::new(image, kind, vcpus).module(&image.bundle);
    let run = guest.cmdline(format!("-- {what}")).run(&s.xen)?;
    let mut count = 0;
    for trial in run.events("gauntlet: trial=") {
        let check = || {
            let outcome = trial.text.contains(" outcome=resumed ");
            ensure!(
                outcome || trial.text.contains(" outcome=runs "),
                "an outcome that is not allowed: {}",
                trial.text
            );
            for key in ["loops", "memory", "frames", "time"] {
                trial.is(key, "ok")?;
            }
            Ok(())
        };
        run.explain(check())?;
        count += 1;
    }
    let done = run.one("gauntlet: done ")?;
    run.explain(done.is("failed", 0).and_then(|()| done.is("trials", count)))?;
    Ok((run, count))
}

fn bundles(s: &Shared, kind: Kind) -> Result<()> {
    let image = &s.images.gauntlet;
    let guest = Guest::new(image, kind, 2).module(&image.bundle);
    let run = guest.cmdline("-- --bundles").run(&s.xen)?;
    let mut count = 0;
    for bundle in run.events("gauntlet: bundle=") {
        run.explain(bundle.is("outcome", "ok"))?;
        count += 1;
    }
    let done = run.one("gauntlet: done ")?;
    run.explain(
        done.is("failed", 0)
            .and_then(|()| done.is("bundles", count)),
    )?;
    run.check(count >= 40, || format!("only {count} bad bundles"))?;
    powered_off(&run)
}

/// An image that trusts a key refuses each bundle for its own reason, and goes on.
fn trust(s: &Shared, kind: Kind) -> Result<()> {
    let image = &s.images.gauntlet_trusting;
    let guest = Guest::new(image, kind, 2).module(&image.bundle);
    let run = guest.cmdline("segue.fleet=blue -- --trust").run(&s.xen)?;
    run.explain(run.one("segue: trust ")?.is("keys", 1))?;
    let mut count = 0;
    for bundle in run.events("gauntlet: trust=") {
        run.explain(bundle.is("outcome", "ok"))?;
        count += 1;
    }
    let done = run.one("gauntlet: done ")?;
    run.explain(done.is("failed", 0).and_then(|()| done.is("trust", count)))?;
    run.check(count >= 40, || format!("only {count} bundles"))?;
    powered_off(&run)
}

fn hang(s: &Shared, kind: Kind) -> Result<()> {
    let image = &s.images.gauntlet;
    let guest = Guest::new(image, kind, 1).module(&image.bundle);
    let run = guest.cmdline("-- --hang").run(&s.xen)?;
    run.ended(EndReason::Watchdog)
}

/// std's threads, locks, clocks and the rest, over and over.
fn std_app(s: &Shared, kind: Kind, vcpus: u32, times: u32) -> Result<()> {
    let guest = Guest::new(&s.images.stdtest, kind, vcpus).cmdline(format!("-- --times {times}"));
    let run = guest.run(&s.xen)?;
    let mut count = 0;
    for check in run.events("stdtest: name=") {
        run.explain(check.is("outcome", "ok"))?;
        count += 1;
    }
    run.explain(run.one("stdtest: done ")?.is("failed", 0))?;
    run.check(count >= 41 * times, || format!("only {count} checks"))?;
    powered_off(&run)
}

/// What to do, and what the report calls it.
const FAULTS: [(&str, &str); 6] = [
    ("null", "page-fault"),
    ("text", "page-fault"),
    ("data", "page-fault"),
    ("stack", "stack-overflow"),
    ("divide", "divide-error"),
    ("panic", ""),
];

fn fails_by(s: &Shared, kind: Kind, (fault, name): (&str, &str)) -> Result<()> {
    let guest = Guest::new(&s.images.gauntlet, kind, 1);
    let run = guest.cmdline(format!("-- --fault {fault}")).run(&s.xen)?;
    if fault == "panic" {
        let panic = run.one("segue: panic generation=1 at=")?;
        run.check(panic.text.contains("gauntlet panics"), || {
            "the panic's message is missing".into()
        })?;
    } else {
        let report = run.one("segue: fault generation=1 ")?;
        run.explain(report.is("name", name))?;
        let backtrace = run.lines().iter().any(|l| l.text.contains("backtrace"));
        run.check(backtrace, || "no backtrace".into())?;
    }
    run.ended(EndReason::Crash)
}

/// With how much less it starts is told by `make bench`.
fn in_8_mib(s: &Shared) -> Result<()> {
    for kind in Kind::ALL {
        boot(s, kind, 1, 8)?;
    }
    Ok(())
}

/// The least memory with which `hello` runs, in MiB.
pub fn least_mib(xen: &Xen, images: &Images, kind: Kind) -> Result<u64> {
    for mib in 2..=16 {
        let guest = Guest::new(&images.hello, kind, 1).memory(mib);
        // Below some size xl itself refuses.
        let Ok(run) = guest.run(xen) else { continue };
        if run.one("hello from a unikernel").is_ok() {
            powered_off(&run)?;
            return Ok(mib);
        }
    }
    anyhow::bail!("{kind}: hello does not start with 16 MiB")
}

fn start_failed(run: &Run, why: &str) -> Result<()> {
    let failed = run.one("segue: start failed: ")?;
    run.check(failed.text.contains(why), || {
        format!("the reason does not say '{why}'")
    })?;
    powered_off(run)
}

fn too_little_memory(s: &Shared) -> Result<()> {
    // Each vCPU takes stacks.
    let run = Guest::new(&s.images.hello, Kind::Hvm, 32)
        .memory(3)
        .run(&s.xen)?;
    start_failed(&run, "too little memory")
}

fn too_many_vcpus(s: &Shared) -> Result<()> {
    let run = Guest::new(&s.images.hello, Kind::Pvh, 33).run(&s.xen)?;
    start_failed(&run, "33 vCPUs; at most 32")
}

fn not_on_xen(s: &Shared) -> Result<()> {
    let said = crate::qemu::console(&s.images.hello.img, "start failed", s.xen.patience())?;
    ensure!(
        said.contains("segue: start failed: this is not a Xen domain"),
        "under QEMU without Xen it said:\n{said}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut names: Vec<String> = cases(false).into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
        assert!(count > 50);
    }
}
