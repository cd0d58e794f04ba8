//! `make demo`: two servers under load are upgraded while they serve, and nobody notices.

mod chart;
mod clock;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};
use segue_lab::{Forward, Line};
use serde_json::Value;

use crate::guest::{Event, Guest, Kind, Running, Xen, tail};
use crate::images::{DemoImages, Image, OPERATOR};
use crate::live::{self, Resets, beside, look, read};
use crate::upgrade::{self, PORT};
use chart::{Chart, Mark};

/// The command that upgrades, as people have it.
const SEGUE: &str = "target/release/segue";
/// The picture.
const PICTURE: &str = "target/demo/requests.svg";

const WEB: &str = "10.0.0.21";
const STORE: &str = "10.0.0.22";

/// Load before the first upgrade, between two, and after the last.
const BETWEEN: Duration = Duration::from_secs(5);

/// How an upgrade is to end: the exit code of `segue upgrade`, and what it is called here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Upgraded = 0,
    Resumed = 4,
    RolledBack = 5,
}

impl End {
    fn words(self) -> &'static str {
        match self {
            End::Upgraded => "upgraded, healthy, confirmed",
            End::Resumed => "panicked on trial: old image resumed",
            End::RolledBack => "not healthy: rolled back",
        }
    }
}

/// One upgrade.
struct Step {
    server: &'static str,
    bundle: PathBuf,
    version: &'static str,
    end: End,
    /// What is to answer with 200 before it is confirmed.
    healthy: Option<&'static str>,
}

/// Runs the demo.
pub fn run() -> Result<ExitCode> {
    let begin = Instant::now();
    println!(
        "\
Segue: two domains on a real Xen are upgraded while they serve, and no client notices.

httpd (HVM, 2 vCPUs) and kv (PVH, 2 vCPUs) serve wrk and redis-benchmark. Five upgrades come over
the network, by `segue upgrade`, signed: three good ones; one image that panics on trial; one that
commits, but fails its health check and is rolled back.
"
    );
    let images = DemoImages::build()?;
    let xen = crate::xen(512)?;
    let outcome = upgrades(&xen, &images)?;

    println!("\nWhat happened, by the domains' own words and a client's watch\n");
    println!("{}\n", outcome.table);
    println!("{}\n", outcome.totals);
    println!("requests per second over time: {PICTURE}");
    println!(
        "Each exit of the guest is dear here, because the processor is emulated: counts say more \
         than times."
    );

    println!("\nThe switch from near: a clock that replaces itself, HVM, 2 vCPUs\n");
    clock::run(&xen, &images)?;
    println!(
        "\nSegue demo: 5 upgrades under load, {} failed requests, {} resets, no reboot; {:.0} s.",
        outcome.failed,
        outcome.resets,
        begin.elapsed().as_secs_f64()
    );
    Ok(ExitCode::SUCCESS)
}

/// What is shown at the end.
struct Outcome {
    table: Table,
    totals: Table,
    failed: u64,
    resets: u64,
}

/// One upgrade as it went.
struct Done {
    step: Step,
    /// By dom0's clock: from the command on until it was back.
    from: f64,
    to: f64,
}

fn steps(images: &DemoImages) -> [Step; 5] {
    let step = |server, image: &Image, version, end, healthy| Step {
        server,
        bundle: image.bundle.clone(),
        version,
        end,
        healthy,
    };
    [
        step(
            WEB,
            &images.served.httpd_next,
            "0.2.0",
            End::Upgraded,
            Some("/health"),
        ),
        step(STORE, &images.kv_next, "0.2.0", End::Upgraded, None),
        step(
            WEB,
            &images.served.httpd_panics,
            "0.3.0",
            End::Resumed,
            Some("/health"),
        ),
        step(
            WEB,
            &images.served.httpd_unhealthy,
            "0.4.0",
            End::RolledBack,
            Some("/health"),
        ),
        step(
            WEB,
            &images.httpd_last,
            "0.5.0",
            End::Upgraded,
            Some("/health"),
        ),
    ]
}

/// Starts the servers and their load, upgrades, and counts.
fn upgrades(xen: &Xen, images: &DemoImages) -> Result<Outcome> {
    let service = upgrade::arguments()?;
    let serve = |image, kind, address: &str, says: &str| -> Result<Running<'_>> {
        let mut domain = Guest::new(image, kind, 2)
            .network(address)
            .memory(128)
            .beside()
            .cmdline(format!("-- {service}"))
            .start_serving(xen)?;
        domain.wait_until_said(&[says])?;
        Ok(domain)
    };
    let web = serve(&images.served.httpd, Kind::Hvm, WEB, "httpd: ")?;
    let store = serve(&images.kv, Kind::Pvh, STORE, "kv: ")?;
    let host = xen.host();
    // The servers are on dom0's bridge only.
    let forward = |address, port| host.forward(address, port);
    let (web_port, store_port) = (forward(WEB, PORT)?, forward(STORE, PORT)?);
    let http = forward(WEB, 80)?;

    let clients = [
        live::wrk(WEB),
        live::redis_benchmark(STORE),
        look("sample", WEB, 80, STORE),
        look("probe", WEB, 80, "http 20"),
        look("ping", WEB, 0, "0.05"),
    ];
    let started = web.started_at()?;
    let now = || started + web.elapsed().as_secs_f64();
    let resets = Resets::watch(host, &[WEB, STORE])?;
    let mut all = Vec::new();
    let said = beside(xen, WEB, &clients, |failed| {
        thread::sleep(BETWEEN);
        for step in steps(images) {
            ensure!(
                !failed.load(std::sync::atomic::Ordering::Acquire),
                "a client failed"
            );
            let port = if step.server == WEB {
                &web_port
            } else {
                &store_port
            };
            let from = now();
            upgrade_by(&step, port, &http)?;
            all.push(Done {
                step,
                from,
                to: now(),
            });
            thread::sleep(BETWEEN);
        }
        Ok(())
    })
    .with_context(|| format!("httpd's last lines:\n{}", tail(&web.lines())))
    .with_context(|| format!("kv's last lines:\n{}", tail(&store.lines())))?;
    let resets = resets.count()?;
    let [wrk, runs, sample, probe, ping] = &said[..] else {
        anyhow::bail!("{} clients", said.len());
    };
    let (sample, probe, ping) = (read(sample)?, read(probe)?, read(ping)?);
    let requests = live::wrk_is_content(wrk)?;
    let commands = runs.trim().parse::<u64>()? * live::REQUESTS;
    let counter = host
        .exec(&format!("redis-cli -h {STORE} get counter:__rand_int__"))?
        .check()?
        .stdout;
    let counted: u64 = counter.trim().parse()?;

    let switches = |lines: &[Line], started: f64| -> Result<Vec<(f64, f64)>> {
        let found = lines
            .iter()
            .filter(|l| l.text.starts_with("segue: switch "));
        found
            .map(|line| {
                let us = Event { text: &line.text }.number("blackout_us")?;
                Ok((started + line.at.as_secs_f64(), us as f64 / 1000.0))
            })
            .collect()
    };
    let by_server = [
        (WEB, switches(&web.lines(), started)?),
        (STORE, switches(&store.lines(), store.started_at()?)?),
    ];
    let table = table_of(&all, &by_server, &live::late(&probe));
    let mut totals = table_with(&["client", "done", "failed", "longest pause, ms"]);
    let longest = |value: &Value, key| live::number(value, key);
    totals.add_row([
        "wrk, 32 connections".to_owned(),
        format!("{requests} requests"),
        "0".into(),
        String::new(),
    ]);
    totals.add_row([
        "redis-benchmark, 32 clients".to_owned(),
        format!("{commands} INCR"),
        commands.abs_diff(counted).to_string(),
        String::new(),
    ]);
    totals.add_row([
        "one more connection, 20 requests/s".to_owned(),
        format!("{} requests", longest(&probe, "answers")?),
        "0".into(),
        format!("{:.1}", longest(&probe, "longest_ms")?),
    ]);
    totals.add_row([
        "ping, 20/s".to_owned(),
        format!("{} packets", longest(&ping, "sent")?),
        format!("{} lost", longest(&ping, "lost")?),
        format!("{:.1}", longest(&ping, "longest_gap_ms")?),
    ]);
    totals.add_row([
        "tcpdump on the bridge".to_owned(),
        format!("{resets} resets"),
        String::new(),
        String::new(),
    ]);
    align(&mut totals, 1);
    ensure!(
        counted == commands,
        "INCR counted {counted}, not {commands}"
    );
    ensure!(resets == 0, "{resets} connections were reset");
    draw(&sample, &all)?;
    web.stop()?;
    store.stop()?;
    Ok(Outcome {
        table,
        totals,
        failed: commands.abs_diff(counted),
        resets,
    })
}

/// Upgrades by the command, which has to end as expected. Says what it does as people would see it.
fn upgrade_by(step: &Step, port: &Forward, http: &Forward) -> Result<()> {
    let mut command = Command::new(SEGUE);
    command.args(["upgrade", "--key", OPERATOR, "--probation", "30s"]);
    let mut shown = "segue upgrade --key operator".to_owned();
    if let Some(path) = step.healthy {
        let url = format!("http://127.0.0.1:{}{path}", http.port());
        command.args(["--healthy", &url, "--healthy-timeout", "8s"]);
        shown += &format!(" --healthy http://{}{path}", step.server);
    }
    command.arg(format!("127.0.0.1:{}", port.port()));
    command.arg(&step.bundle);
    println!("$ {shown} {} {}", step.server, step.bundle.display());
    let output = command.output().context(SEGUE)?;
    for text in [&output.stdout, &output.stderr] {
        for line in String::from_utf8_lossy(text).lines() {
            println!("    {line}");
        }
    }
    let code = output.status.code();
    ensure!(
        code == Some(step.end as i32),
        "it ended with {code:?} instead of {}",
        step.end as i32
    );
    Ok(())
}

/// What became of each upgrade.
fn table_of(all: &[Done], switches: &[(&str, Vec<(f64, f64)>)], late: &[(f64, f64)]) -> Table {
    let mut table = table_with(&[
        "upgrade of",
        "to",
        "outcome",
        "blackout, ms",
        "longest answer, ms",
    ]);
    for done in all {
        // A second more: lines take some time to get here.
        let within = |at: f64| at >= done.from && at <= done.to + 1.0;
        let blackouts: Vec<String> = switches
            .iter()
            .filter(|(server, _)| *server == done.step.server)
            .flat_map(|(_, switches)| switches)
            .filter(|(at, _)| within(*at))
            .map(|(_, ms)| format!("{ms:.2}"))
            .collect();
        let longest = late
            .iter()
            .filter(|(at, _)| within(*at))
            .fold(0.0f64, |longest, (_, ms)| longest.max(*ms));
        table.add_row([
            name_of(done.step.server).to_owned(),
            done.step.version.to_owned(),
            done.step.end.words().to_owned(),
            if blackouts.is_empty() {
                "–".to_owned()
            } else {
                blackouts.join(", ")
            },
            format!("{longest:.1}"),
        ]);
    }
    align(&mut table, 3);
    table
}

fn name_of(server: &str) -> &'static str {
    if server == WEB { "httpd" } else { "kv" }
}

/// The picture.
fn draw(sample: &Value, all: &[Done]) -> Result<()> {
    let counts = sample.get("counts").and_then(Value::as_array);
    let counts: Vec<[f64; 3]> = counts
        .context("no samples")?
        .iter()
        .filter_map(|row| {
            let at = |n| row.get(n).and_then(Value::as_f64);
            Some([at(0)?, at(1)?, at(2)?])
        })
        .collect();
    let marks = all.iter().map(|done| Mark {
        from: done.from,
        to: done.to,
        text: format!("{} {}", name_of(done.step.server), done.step.version),
        good: done.step.end == End::Upgraded,
    });
    let chart = Chart {
        series: [("httpd, requests/s", 1), ("kv, commands/s", 2)]
            .map(|(name, column)| {
                (
                    name,
                    chart::rates(counts.iter().map(|row| (row[0], row[column]))),
                )
            })
            .to_vec(),
        marks: marks.collect(),
    };
    chart.draw(Path::new(PICTURE))
}

fn table_with<T: ToString>(header: &[T]) -> Table {
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
