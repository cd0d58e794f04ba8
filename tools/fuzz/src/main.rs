//! Runs the fuzz targets under libFuzzer: builds them with coverage, gives each its seeds and what
//! earlier runs found, and tells what came of it.
//!
//! Everything lies in `target/fuzz`: the build (its own target folder: other builds are not
//! disturbed), a corpus for each target, logs, and inputs that failed.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use segue_fuzz::{TARGETS, Target};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

/// What is run here is built for, and instrumented: build scripts are not.
const HOST: &str = "x86_64-unknown-linux-gnu";
/// LLVM's pass for libFuzzer: counters for edges, comparisons traced.
const RUSTFLAGS: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";
/// An input that takes longer than this, in s, is a failure.
const PATIENCE: u32 = 10;

/// Fuzz targets for what reads bytes from outside.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists the targets.
    List,
    /// Runs targets, all that are named, or all.
    Run {
        /// How long each is run, in s.
        #[arg(long, default_value_t = 600)]
        seconds: u64,
        /// How many are run at a time.
        #[arg(long, default_value_t = 2)]
        jobs: usize,
        /// Names of targets.
        names: Vec<String>,
    },
    /// Feeds a target with inputs, without libFuzzer: for those that failed.
    Replay {
        /// Its name.
        target: String,
        /// The inputs.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
}

fn main() -> Result<()> {
    match Args::parse().command {
        Action::List => {
            for target in TARGETS {
                println!("{:10} {}", target.name, target.what);
            }
            Ok(())
        }
        Action::Run {
            seconds,
            jobs,
            names,
        } => run(seconds, jobs, &names),
        Action::Replay { target, files } => {
            let target = named(&target)?;
            let mut most = 0;
            for file in &files {
                let input =
                    fs::read(file).with_context(|| format!("reading {}", file.display()))?;
                most = most.max(target.check(&input));
            }
            let name = target.name;
            println!("{name}: nothing wrong, {most} bytes of heap at the most");
            Ok(())
        }
    }
}

fn named(name: &str) -> Result<&'static Target> {
    Target::named(name).with_context(|| format!("there is no target {name}: see `list`"))
}

/// The workspace, from where this was built.
fn workspace() -> Result<&'static Path> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).context("no workspace")
}

fn run(seconds: u64, jobs: usize, names: &[String]) -> Result<()> {
    let targets: Vec<&Target> = match names {
        [] => TARGETS.iter().collect(),
        names => names.iter().map(|n| named(n)).collect::<Result<_>>()?,
    };
    let home = workspace()?.join("target/fuzz");
    let engine = build(&home)?;
    println!(
        "fuzz: {} targets, {seconds} s each, {jobs} at a time",
        targets.len()
    );
    let next = AtomicUsize::new(0);
    let failures = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, targets.len()) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match fuzz(&engine, &home, target, seconds) {
                        Ok(line) => println!("  {:10} {line}", target.name),
                        Err(error) => {
                            println!("  {:10} FAILED\n{error:#}", target.name);
                            if let Ok(mut failures) = failures.lock() {
                                failures.push(target.name);
                            }
                        }
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_default();
    ensure!(failures.is_empty(), "failed: {}", failures.join(", "));
    println!("fuzz: nothing found");
    Ok(())
}

/// Builds the targets with coverage; gives the program.
fn build(home: &Path) -> Result<PathBuf> {
    println!("fuzz: building");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .current_dir(workspace()?)
        .args(["build", "--quiet", "--profile", "fuzz", "--target", HOST])
        .args(["--package", "segue-fuzz", "--bin", "segue-fuzz-engine"])
        .args(["--features", "libfuzzer", "--target-dir"])
        .arg(home.join("build"))
        .env("RUSTFLAGS", RUSTFLAGS)
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the targets were not built");
    Ok(home.join(format!("build/{HOST}/fuzz/segue-fuzz-engine")))
}

/// Runs one target; gives a line about it.
fn fuzz(engine: &Path, home: &Path, target: &Target, seconds: u64) -> Result<String> {
    let corpus = home.join("corpus").join(target.name);
    let crashes = home.join("crashes");
    let logs = home.join("logs");
    for folder in [&corpus, &crashes, &logs] {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    for (n, seed) in (target.seeds)().iter().enumerate() {
        fs::write(corpus.join(format!("seed-{n:03}")), seed)?;
    }
    let log = logs.join(format!("{}.log", target.name));
    let prefix = crashes.join(format!("{}-", target.name));
    let status = Command::new(engine)
        .env("SEGUE_FUZZ_TARGET", target.name)
        .env("RUST_BACKTRACE", "1")
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={}", target.longest))
        .arg(format!("-timeout={PATIENCE}"))
        .arg(format!("-artifact_prefix={}", prefix.display()))
        .args(["-rss_limit_mb=2048", "-print_final_stats=1", "-reload=0"])
        .arg(&corpus)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(&log)?)
        .status()
        .with_context(|| format!("starting {}", engine.display()))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    if !status.success() {
        let lines: Vec<&str> = text.lines().collect();
        let panic = lines.iter().position(|line| line.contains("panicked at"));
        let from = panic.unwrap_or(lines.len().saturating_sub(30));
        let shown = lines[from..].iter().take(30).copied().collect::<Vec<_>>();
        let input = text
            .lines()
            .find_map(|line| line.split("Test unit written to ").nth(1));
        bail!(
            "{}\n(all of it in {})\nto see it again: cargo run -p segue-fuzz -- replay {} {}",
            shown.join("\n"),
            log.display(),
            target.name,
            input.unwrap_or("INPUT")
        );
    }
    Ok(summary(&text))
}

/// What libFuzzer tells at its end, in one line.
fn summary(log: &str) -> String {
    let stat = |name: &str| {
        let mut lines = log.lines().filter_map(|line| line.strip_prefix(name));
        lines.next().map_or("?", str::trim).to_owned()
    };
    // `#123 DONE cov: 456 ft: 789 corp: 12/34Kb …`
    let done = log.lines().rev().find(|line| line.contains(" cov: "));
    let word = |name: &str| {
        let mut words = done.unwrap_or_default().split_whitespace();
        words.find(|word| *word == name);
        words.next().unwrap_or("?").to_owned()
    };
    format!(
        "{} inputs, {} each second, {} edges, corpus {}",
        stat("stat::number_of_executed_units:"),
        stat("stat::average_exec_per_sec:"),
        word("cov:"),
        word("corp:"),
    )
}

#[cfg(test)]
mod tests {
    use super::summary;

    #[test]
    fn a_log_is_summed_up() {
        let log = "INFO: Seed: 1\n#2\tINITED cov: 5 ft: 6 corp: 1/1b exec/s: 0 rss: 30Mb\n\
            #900\tDONE   cov: 41 ft: 77 corp: 12/340b lim: 99 exec/s: 450 rss: 31Mb\n\
            Done 900 runs in 2 second(s)\nstat::number_of_executed_units: 900\n\
            stat::average_exec_per_sec:     450\n";
        assert_eq!(
            summary(log),
            "900 inputs, 450 each second, 41 edges, corpus 12/340b"
        );
    }
}
