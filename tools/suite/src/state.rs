//! Tests of what is handed over: values and preserved regions, between two versions of an app.

use anyhow::{Context, Result, bail, ensure};

use crate::devices::{same, switched};
use crate::guest::{Guest, Kind, events, tail};
use crate::test::{Case, Shared, case, powered_off};

/// Generations: even, so that the last is of the same version as the second.
const UNTIL: u64 = 12;
/// Switches that fail in the first generation, and in each.
const ATTEMPTS: [u64; 2] = [8, 4];

/// All tests of this file.
pub fn cases() -> Vec<Case> {
    let domains = [(Kind::Hvm, 1), (Kind::Pvh, 2), (Kind::Pvh, 4)];
    let cases = domains.into_iter().map(|(kind, vcpus)| {
        case(format!("state::{kind}_{vcpus}"), move |s| {
            handed_over(s, kind, vcpus)
        })
    });
    let kv = [
        case("state::kv_keeps_its_keys", kv),
        case("state::a_large_table_costs_nothing", large).with_memory(LARGE_MIB),
    ];
    cases.chain(kv).collect()
}

/// Keys that `kv` gets.
const KEYS: u64 = 500;

/// A client's keys are there after the switch, with their times; then it goes on.
fn kv(s: &Shared) -> Result<()> {
    const ADDRESS: &str = "10.0.0.46";
    let guest = Guest::new(&s.images.kv, Kind::Pvh, 2)
        .module(&s.images.kv.bundle)
        .network(ADDRESS)
        .cmdline(format!("-- --replace-at {}", KEYS + 3));
    let cli = format!("redis-cli -h {ADDRESS}");
    let run = |command: String| {
        let done = s.xen.host().exec(&command)?;
        Ok::<_, anyhow::Error>(done.check()?.stdout)
    };
    let mut domain = guest.start_until(&s.xen, "kv: listen=")?;
    if !events(&domain.lines(), "segue: net interface=0 mac=").any(|_| true) {
        domain.wait_for_network()?;
    }
    let mut talk = || {
        run(format!(
            "seq 1 {KEYS} | sed 's/.*/SET key:& value-&/' | {cli} >/dev/null; \
             {cli} set count 41; {cli} set lasting x ex 5000; {cli} set text abc"
        ))?;
        domain.wait_for("segue: switch from=1 to=2 ")?;
        let line = domain.wait_for("kv: listen=")?;
        ensure!(
            line.text.ends_with(&format!(" keys={}", KEYS + 3)),
            "other keys: {}",
            line.text
        );
        let networks = events(&domain.lines(), "segue: net interface=0 mac=").count();
        if networks < 2 {
            domain.wait_for_network()?;
        }
        let said = run(format!(
            "{cli} dbsize; {cli} incr count; {cli} append text def; {cli} get key:{KEYS}; \
             {cli} get key:1; {cli} keys 'key:*' | wc -l; {cli} del key:7; {cli} ttl lasting"
        ))?;
        let mut lines: Vec<&str> = said.lines().collect();
        let ttl: i64 = lines.pop().unwrap_or_default().parse()?;
        let (last, all) = (format!("value-{KEYS}"), KEYS.to_string());
        let count = (KEYS + 3).to_string();
        let wanted = [&*count, "42", "6", &*last, "value-1", &*all, "1"];
        ensure!(lines == wanted, "not {wanted:?}: {said}");
        ensure!((3000..5000).contains(&ttl), "lasting expires in {ttl} s");
        Ok(())
    };
    let result = talk();
    let lines = domain.stop()?;
    result.map_err(|e: anyhow::Error| e.context(tail(&lines)))
}

/// Memory of a domain with a large table, and the table's, in MiB.
const LARGE_MIB: u64 = 2048;
const LARGE_TABLE_MIB: u64 = 1024;
/// Switches of each table, and how often both are tried.
const SWITCHES: u64 = 10;
const ROUNDS: usize = 4;

/// The blackout with a table of a GiB is at most 1.2 times that with one of a MiB.
///
/// The shortest of each counts, and more are made while those differ too much: what else this
/// machine does makes some switches longer, but what the table costs it costs every one.
fn large(s: &Shared) -> Result<()> {
    let blackout = |mib: u64| {
        let address = "10.0.0.47";
        let guest = Guest::new(&s.images.kv, Kind::Pvh, 2)
            .memory(LARGE_MIB)
            .module(&s.images.kv.bundle)
            .network(address)
            .cmdline(format!(
                "-- --memory {mib} --replace-at 9 --until {}",
                SWITCHES + 1
            ));
        let mut domain = guest.start_until(&s.xen, "kv: listen=")?;
        if !events(&domain.lines(), "segue: net interface=0 mac=").any(|_| true) {
            domain.wait_for_network()?;
        }
        // Eight values of a ninth of it, and a small one: then it replaces itself.
        let bytes = (mib << 20) / 9;
        let filled = s.xen.host().exec_for(
            &format!(
                "for i in 1 2 3 4 5 6 7 8; do \
                 redis-cli -h {address} setrange k$i {bytes} x; \
                 done; redis-cli -h {address} set small x"
            ),
            FILL_LIMIT.mul_f64(s.xen.slowness()),
        );
        let last = format!("segue: switch from={SWITCHES} ");
        let waited = filled
            .and_then(|f| f.check())
            .map_err(anyhow::Error::from)
            .and_then(|_| domain.wait_for(&last));
        let lines = domain.stop()?;
        waited.map_err(|e| e.context(tail(&lines)))?;
        let switches = events(&lines, "segue: switch ");
        let us = switches.map(|e| e.number("blackout_us"));
        let us = us.collect::<Result<Vec<_>>>()?;
        ensure!(us.len() as u64 == SWITCHES, "{} switches", us.len());
        us.into_iter().min().context("no switch")
    };
    let (mut small, mut large) = (u64::MAX, u64::MAX);
    for _ in 0..ROUNDS {
        small = small.min(blackout(1)?);
        large = large.min(blackout(LARGE_TABLE_MIB)?);
        s.note(format!(
            "kv's blackout with a table of 1 MiB: {small} us, of {LARGE_TABLE_MIB} MiB: {large} us (shortest)"
        ));
        if large * 10 <= small * 12 {
            return Ok(());
        }
    }
    bail!("blackout {small} us with a small table, {large} us with a large one")
}

/// How long filling the large table may take.
const FILL_LIMIT: std::time::Duration = std::time::Duration::from_secs(600);

fn handed_over(s: &Shared, kind: Kind, vcpus: u32) -> Result<()> {
    let images = [&s.images.stdtest, &s.images.stdtest_next];
    let run = Guest::new(images[0], kind, vcpus)
        // For a value that is too large, twice, beside the table.
        .memory(128)
        .module(&s.images.stdtest_bundles)
        .cmdline(format!("-- --state --until {UNTIL}"))
        .run(&s.xen)?;
    powered_off(&run)?;
    switched(&run, UNTIL, |from| &images[from as usize % 2].ident)?;
    for generation in 1..=UNTIL {
        let line = run.one(&format!("stdtest: state generation={generation} "))?;
        let attempts = ATTEMPTS[usize::from(generation > 1)];
        run.explain(
            line.is("outcome", "ok")
                .and_then(|()| line.is("attempts", attempts)),
        )?;
    }
    let second = run.one("stdtest: audit=state generation=2 ")?;
    let last = run.one(&format!("stdtest: audit=state generation={UNTIL} "))?;
    run.explain(same(&second, &last))
}
