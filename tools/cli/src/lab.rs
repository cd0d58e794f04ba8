//! `segue lab`: the lab for people.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand, ValueEnum};
use segue_lab::{
    Domain, DomainConfig, DomainType, HOST_PACKAGES, Lab, LabConfig, Session, ensure_host_tools,
};

use crate::output::outln;

/// Arguments of `segue lab`.
#[derive(Debug, Args)]
#[command(after_help = "\
Commands use the session that `segue lab up` holds, if there is one, and else
start a lab of their own and stop it afterwards. With SEGUE_XEN_HOST=user@host
they use that real Xen host instead.

Examples:
  segue lab up                                    # keep a Xen running (Ctrl-C ends it)
  segue lab run --image target/images/hello.img   # run one HVM domain in it
  segue lab run --type pvh --image target/images/hello.elf --memory 128
  segue lab exec -- xl list
  segue lab shell")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install the host packages the lab needs (as root).
    Setup,
    /// Make what the lab boots: Xen, dom0's kernel and disk. Once; cached.
    Prepare,
    /// Start a lab and hold it until Ctrl-C; other commands use it.
    Up(Up),
    /// Open a shell in dom0.
    Shell,
    /// Run a command in dom0 and end with its exit code.
    Exec {
        /// The command and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Copy a file into dom0.
    Put {
        /// File of this machine.
        local: PathBuf,
        /// Path in dom0.
        remote: String,
    },
    /// Copy a file out of dom0.
    Get {
        /// Path in dom0.
        remote: String,
        /// File of this machine.
        local: PathBuf,
    },
    /// Run one domain and show its console until it ends.
    #[command(after_help = "\
The exit code is 0 after a power-off, 1 after any other end, 124 when the time
is up. Lines show the seconds since the domain was let run; `uart:` marks the
emulated serial port.

Examples:
  segue lab run --image target/images/hello.img
  segue lab run --image k.img --vcpus 2 --memory 128 --cmdline 'segue.log=debug -- a b'
  segue lab run --image k.img --xl-extra \"vif=['bridge=xenbr0']\"")]
    Run(Run),
    /// Say whether the lab is prepared and a session is up.
    Status,
    /// Remove everything the lab keeps on this machine.
    Clean,
}

#[derive(Debug, Args)]
struct Up {
    /// Memory in MiB for all domains together.
    #[arg(long, default_value_t = LabConfig::default().domains_mib)]
    domains_memory: u64,
}

#[derive(Debug, Args)]
struct Run {
    /// Kernel: a bzImage for hvm, an ELF file with a PVH note for pvh.
    #[arg(long)]
    image: PathBuf,
    /// How the domain is virtualised.
    #[arg(long = "type", value_enum, default_value_t = Kind::Hvm)]
    kind: Kind,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    vcpus: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 64)]
    memory: u64,
    /// Ramdisk (module for pvh).
    #[arg(long)]
    ramdisk: Option<PathBuf>,
    /// Command line.
    #[arg(long, default_value = "")]
    cmdline: String,
    /// Seconds after which the domain is destroyed.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Domain name; one is made up otherwise.
    #[arg(long)]
    name: Option<String>,
    /// A further line for the xl configuration; may be repeated.
    #[arg(long, value_name = "LINE")]
    xl_extra: Vec<String>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Hvm,
    Pvh,
}

/// Runs `segue lab`.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let config = LabConfig::from_env();
    ctrlc::set_handler(interrupted).context("cannot watch for Ctrl-C")?;
    match arguments.command {
        Command::Setup => setup(),
        Command::Prepare => {
            Lab::prepare(&config)?;
            eprintln!("lab: prepared in {}", config.dir.display());
            Ok(ExitCode::SUCCESS)
        }
        Command::Up(up) => hold(&config.with_domains_mib(up.domains_memory)),
        Command::Shell => {
            let lab = connect(&config)?;
            Ok(exit_code(lab.host().interactive(None)?))
        }
        Command::Exec { command } => {
            let lab = connect(&config)?;
            let line = match &command[..] {
                // One word is a shell line; several are a program and its words.
                [line] => line.clone(),
                words => quoted(words),
            };
            let output = lab.host().exec_for(&line, Duration::from_secs(3600))?;
            eprint!("{}", output.stderr);
            std::io::stdout().write_all(output.stdout.as_bytes())?;
            Ok(exit_code(output.status))
        }
        Command::Put { local, remote } => {
            connect(&config)?.host().put(&local, &remote)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Get { remote, local } => {
            connect(&config)?.host().get(&remote, &local)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Run(run) => run_domain(config, run),
        Command::Status => status(&config),
        Command::Clean => clean(&config),
    }
}

/// The session that is up, whatever its size, or a lab of one's own.
fn connect(config: &LabConfig) -> Result<Lab> {
    let mib = Session::find(config).map_or(config.domains_mib, |session| session.domains_mib);
    Ok(Lab::connect(&config.clone().with_domains_mib(mib))?)
}

/// Set once Ctrl-C was pressed.
static STOP: AtomicBool = AtomicBool::new(false);
/// Set while someone looks at [`STOP`] and will clean up.
static WATCHED: AtomicBool = AtomicBool::new(false);

fn interrupted() {
    if !WATCHED.load(Ordering::Acquire) || STOP.swap(true, Ordering::AcqRel) {
        // Our children die with us: see segue_lab's module documentation.
        std::process::exit(130);
    }
}

fn watch_stop() {
    WATCHED.store(true, Ordering::Release);
}

fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(255))
}

fn quoted(words: &[String]) -> String {
    words
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect::<Vec<_>>()
        .join(" ")
}

fn setup() -> Result<ExitCode> {
    ensure_host_tools()?;
    let names: Vec<&str> = HOST_PACKAGES.iter().map(|package| package.name).collect();
    eprintln!("lab: host packages are there: {}", names.join(" "));
    Ok(ExitCode::SUCCESS)
}

fn hold(config: &LabConfig) -> Result<ExitCode> {
    if let Some(host) = &config.xen_host {
        bail!("SEGUE_XEN_HOST={host} is set: that host is up by itself, nothing to hold");
    }
    let lab = Lab::start_shared(config)?;
    if let Some(log) = lab.log() {
        eprintln!("lab: up; Xen's and dom0's log: {}", log.display());
    }
    eprintln!("lab: in another terminal: segue lab run --image FILE, segue lab shell; Ctrl-C ends");
    watch_stop();
    while !stopped() {
        if let Some(status) = lab.ended() {
            bail!("the emulated machine ended by itself: {status}");
        }
        thread::sleep(Duration::from_millis(200));
    }
    eprintln!("lab: stopping");
    Ok(ExitCode::SUCCESS)
}

fn run_domain(config: LabConfig, run: Run) -> Result<ExitCode> {
    let kind = match run.kind {
        Kind::Hvm => DomainType::Hvm,
        Kind::Pvh => DomainType::Pvh,
    };
    // Before a lab is started for nothing.
    for file in std::iter::once(&run.image).chain(&run.ramdisk) {
        if !file.is_file() {
            bail!("{}: no such file", file.display());
        }
    }
    let lab = Lab::connect(&config.with_domains_mib(run.memory + 64))?;
    let mut domain = DomainConfig::new(kind, run.image);
    domain.name = run.name.unwrap_or(domain.name);
    domain.ramdisk = run.ramdisk;
    domain.cmdline = run.cmdline;
    domain.memory_mib = run.memory;
    domain.vcpus = run.vcpus;
    domain.extra = run.xl_extra;
    watch_stop();
    let start = Instant::now();
    let domain = lab.host().create(&domain)?;
    eprintln!(
        "lab: domain {} ({}) runs, {:.1} s after it was asked for",
        domain.name(),
        domain.domid(),
        start.elapsed().as_secs_f64()
    );
    show(&domain, Duration::from_secs(run.timeout))
}

/// Prints a domain's lines until it ends.
fn show(domain: &Domain, timeout: Duration) -> Result<ExitCode> {
    let start = Instant::now();
    let mut known = 0;
    loop {
        let more = domain.wait_more(known, Duration::from_millis(200));
        for line in domain.lines_from(known) {
            outln!("{line}")?;
            known += 1;
        }
        if more {
            continue;
        }
        let elapsed = start.elapsed();
        let seconds = elapsed.as_secs_f64();
        if let Some(reason) = domain.end()
            && domain.wait_end(Duration::ZERO).is_ok()
            && domain.lines_from(known).is_empty()
        {
            eprintln!(
                "lab: domain {} ended: {reason}, after {seconds:.1} s",
                domain.name()
            );
            return Ok(if reason.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        if stopped() {
            eprintln!("lab: interrupted; domain {} is destroyed", domain.name());
            return Ok(ExitCode::from(130));
        }
        if elapsed > timeout {
            eprintln!(
                "lab: domain {} still ran after {seconds:.1} s and is destroyed",
                domain.name()
            );
            return Ok(ExitCode::from(124));
        }
    }
}

fn status(config: &LabConfig) -> Result<ExitCode> {
    if let Some(host) = &config.xen_host {
        outln!("host: {host} (SEGUE_XEN_HOST)")?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("folder: {}", config.dir.display())?;
    match Session::find(config) {
        Some(session) => {
            outln!("session: up, process {}", session.pid)?;
            outln!("memory for domains: {} MiB", session.domains_mib)?;
            outln!("log: {}", session.run_dir.join("xen.log").display())?;
            Ok(ExitCode::SUCCESS)
        }
        None => {
            outln!("session: none (start one with `segue lab up`)")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

fn clean(config: &LabConfig) -> Result<ExitCode> {
    if let Some(session) = Session::find(config) {
        bail!(
            "a session is up (process {}); end it before cleaning",
            session.pid
        );
    }
    match std::fs::remove_dir_all(&config.dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| config.dir.display().to_string())
        }
        _ => {
            eprintln!("lab: removed {}", config.dir.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}
