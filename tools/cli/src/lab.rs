//! `segue lab`: the lab for people.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use segue_lab::{HOST_PACKAGES, Lab, LabConfig, Session, ensure_host_tools};
use serde::Serialize;

use crate::host::{
    DomainOptions, connect, exit_code, run_domain, stopped, watch_for_interrupts, watch_stop,
};
use crate::output::{outln, print_json};

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
    #[command(after_help = "Examples:\n  segue lab setup")]
    Setup,
    /// Make what the lab boots: Xen, dom0's kernel and disk. Once; cached.
    #[command(after_help = "Examples:\n  segue lab prepare")]
    Prepare,
    /// Start a lab and hold it until Ctrl-C; other commands use it.
    #[command(after_help = "Examples:\n  segue lab up\n  segue lab up --domains-memory 2048")]
    Up(Up),
    /// Open a shell in dom0.
    #[command(after_help = "Examples:\n  segue lab shell")]
    Shell,
    /// Run a command in dom0 and end with its exit code.
    #[command(
        after_help = "Examples:\n  segue lab exec -- xl list\n  segue lab exec -- 'xl dmesg | tail'"
    )]
    Exec {
        /// The command and its arguments.
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Copy a file into dom0.
    #[command(after_help = "Examples:\n  segue lab put ./new.bundle /tmp/new.bundle")]
    Put {
        /// File of this machine.
        local: PathBuf,
        /// Path in dom0.
        remote: String,
    },
    /// Copy a file out of dom0.
    #[command(after_help = "Examples:\n  segue lab get /var/log/xen/console/guest-web.log web.log")]
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
  segue lab run --image k.img --vif bridge=xenbr0 --ip 10.0.0.2/24")]
    Run(Run),
    /// Say whether the lab is prepared and a session is up.
    #[command(after_help = "Examples:\n  segue lab status\n  segue lab status --json")]
    Status,
    /// Remove everything the lab keeps on this machine.
    #[command(after_help = "Examples:\n  segue lab clean")]
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
    #[command(flatten)]
    domain: DomainOptions,
    /// Seconds after which the domain is destroyed.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
}

/// Runs `segue lab`.
pub fn run(arguments: Arguments, json: bool) -> Result<ExitCode> {
    let config = LabConfig::from_env();
    watch_for_interrupts()?;
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
        Command::Run(run) => run_image(config, &run),
        Command::Status => status(&config, json),
        Command::Clean => clean(&config),
    }
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

fn run_image(config: LabConfig, run: &Run) -> Result<ExitCode> {
    let domain = run.domain.domain(&run.image, &[])?;
    run_domain(config, &domain, Some(Duration::from_secs(run.timeout)))
}

/// What `segue lab status --json` prints.
#[derive(Serialize)]
struct Shown<'a> {
    host: Option<&'a str>,
    folder: Option<&'a Path>,
    session: Option<ShownSession>,
}

#[derive(Serialize)]
struct ShownSession {
    pid: u32,
    domains_mib: u64,
    log: PathBuf,
}

fn status(config: &LabConfig, json: bool) -> Result<ExitCode> {
    if json {
        let host = config.xen_host.as_deref();
        let session = Session::find(config).filter(|_| host.is_none());
        let up = host.is_some() || session.is_some();
        print_json(&Shown {
            host,
            folder: host.is_none().then_some(&*config.dir),
            session: session.map(|session| ShownSession {
                pid: session.pid,
                domains_mib: session.domains_mib,
                log: session.run_dir.join("xen.log"),
            }),
        })?;
        return Ok(if up {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        });
    }
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
