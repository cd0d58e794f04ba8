//! A running lab: QEMU, Xen and dom0, or a link to one that runs elsewhere.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::config::LabConfig;
use crate::error::{LabError, Result};
use crate::prepare::{self, HOST_KEY_ALIAS, Image};
use crate::process::{Guarded, last_lines};
use crate::progress::Progress;
use crate::session::{Offer, Session};
use crate::xen_host::{Connection, XenHost};

/// A Xen host to work with, and what keeps it running.
///
/// Dropping it stops what it started.
#[derive(Debug)]
pub struct Lab {
    // Dropped in this order: offer withdrawn, connection closed, QEMU ended.
    offer: Option<Offer>,
    host: XenHost,
    machine: Option<Machine>,
}

/// The emulated machine.
#[derive(Debug)]
struct Machine {
    qemu: Guarded,
    run_dir: RunDir,
    domains_mib: u64,
    _image: Image,
}

/// Folder of one run, locked while it is in use.
#[derive(Debug)]
struct RunDir {
    path: PathBuf,
    _lock: File,
}

/// Folders of earlier runs that are kept, for their logs.
const KEPT_RUNS: usize = 8;

impl Lab {
    /// Makes what a lab boots, if it is not there yet. Safe to call from
    /// several processes at once.
    ///
    /// # Errors
    /// When host packages are missing or the build fails.
    pub fn prepare(config: &LabConfig) -> Result<Image> {
        prepare::prepare(config)
    }

    /// The way for tests and commands: a real host if one is configured, a
    /// session that is up if there is one with enough memory, else a lab of
    /// one's own.
    ///
    /// # Errors
    /// When none of them can be had.
    pub fn connect(config: &LabConfig) -> Result<Lab> {
        if let Some(target) = &config.xen_host {
            return Ok(Lab::over(XenHost::connect(target)?));
        }
        if let Some(session) = Session::find(config) {
            if session.domains_mib < config.domains_mib {
                eprintln!(
                    "lab: the session that is up has {} MiB for domains and {} are needed: \
                     starting another lab",
                    session.domains_mib, config.domains_mib
                );
                return Lab::start(config);
            }
            return Ok(Lab::over(XenHost::attach(session.connection)));
        }
        Lab::start(config)
    }

    fn over(host: XenHost) -> Lab {
        Lab {
            offer: None,
            host,
            machine: None,
        }
    }

    /// Starts an emulated Xen of one's own.
    ///
    /// # Errors
    /// When memory is short, or dom0 does not come up in time.
    pub fn start(config: &LabConfig) -> Result<Lab> {
        let image = prepare::prepare(config)?;
        check_memory(config)?;
        let progress = Progress::start("starting Xen and dom0");
        // The port is free when chosen; should another take it first, choose anew.
        let mut tries = 3;
        let (run_dir, qemu, port) = loop {
            let run_dir = RunDir::create(config)?;
            let port = free_port()?;
            let qemu = start_qemu(config, &image, &run_dir.path, port)?;
            tries -= 1;
            thread::sleep(Duration::from_millis(200));
            let lost_port = qemu.ended().is_some()
                && read_log(&run_dir.path.join("qemu.log")).contains("host forwarding rule");
            if !lost_port || tries == 0 {
                break (run_dir, qemu, port);
            }
        };
        let deadline = Instant::now() + config.start_timeout;
        wait_ready(&qemu, &run_dir.path, deadline, &progress)?;
        progress.detail("connecting");
        let connection = connection(&image, port)?;
        let left = deadline.saturating_duration_since(Instant::now());
        let log = run_dir.log();
        let failed = |error: LabError| LabError::Start {
            reason: error.to_string(),
            tail: last_lines(&read_log(&log), 20),
            log: log.clone(),
        };
        let (connection, socket_dir) = connection;
        let ended = || qemu.ended().map(|status| format!("QEMU ended: {status}"));
        let host = XenHost::open(connection, Some(socket_dir), left, ended).map_err(failed)?;
        host.exec("xl info")
            .and_then(|output| output.check())
            .map_err(failed)?;
        progress.done();
        Ok(Lab {
            offer: None,
            host,
            machine: Some(Machine {
                qemu,
                run_dir,
                domains_mib: config.domains_mib,
                _image: image,
            }),
        })
    }

    /// Starts a lab and offers it to other processes until it is dropped.
    ///
    /// # Errors
    /// As [`start`](Self::start), and when another process offers one already.
    pub fn start_shared(config: &LabConfig) -> Result<Lab> {
        let offer = Offer::claim(config)?;
        let mut lab = Lab::start(config)?;
        lab.publish(&offer, config)?;
        lab.offer = Some(offer);
        Ok(lab)
    }

    /// Offers this lab, whosever it is, to processes that look for one in the folder of `config`,
    /// until what is returned is dropped.
    ///
    /// # Errors
    /// When another process offers one there already, and when the folder cannot be written to.
    pub fn offer(&self, config: &LabConfig) -> Result<Offer> {
        let offer = Offer::claim(config)?;
        self.publish(&offer, config)?;
        Ok(offer)
    }

    fn publish(&self, offer: &Offer, config: &LabConfig) -> Result<()> {
        let machine = self.machine.as_ref();
        offer.publish(&Session {
            pid: std::process::id(),
            run_dir: machine.map_or_else(|| config.dir.clone(), |m| m.run_dir.path.clone()),
            domains_mib: machine.map_or(config.domains_mib, |m| m.domains_mib),
            connection: self.host.connection().clone(),
        })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &XenHost {
        &self.host
    }

    /// Xen's and dom0's console log, if this process started them.
    #[must_use]
    pub fn log(&self) -> Option<PathBuf> {
        self.machine.as_ref().map(|machine| machine.run_dir.log())
    }

    /// True if other processes can use this lab.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        self.offer.is_some()
    }

    /// How the emulated machine ended, if it did.
    #[must_use]
    pub fn ended(&self) -> Option<String> {
        self.machine
            .as_ref()
            .and_then(|machine| machine.qemu.ended())
    }
}

impl RunDir {
    fn create(config: &LabConfig) -> Result<RunDir> {
        let runs = std::path::absolute(config.dir.join("run")).map_err(LabError::file("run"))?;
        fs::create_dir_all(&runs).map_err(LabError::file(&runs))?;
        remove_old_runs(&runs);
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        let path = tempfile::Builder::new()
            .prefix(&format!("{seconds}-"))
            .tempdir_in(&runs)
            .map_err(LabError::file(&runs))?
            .keep();
        let lock_path = path.join("in-use");
        let lock = File::create(&lock_path).map_err(LabError::file(&lock_path))?;
        lock.lock().map_err(LabError::file(&lock_path))?;
        Ok(RunDir { path, _lock: lock })
    }

    fn log(&self) -> PathBuf {
        self.path.join("xen.log")
    }
}

/// Removes the oldest runs; those in use stay.
fn remove_old_runs(runs: &Path) {
    let Ok(entries) = fs::read_dir(runs) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths.iter().rev().skip(KEPT_RUNS) {
        let in_use = File::open(path.join("in-use")).is_ok_and(|file| file.try_lock().is_err());
        if !in_use {
            // What remains is tried again next time.
            let _ = fs::remove_dir_all(path);
        }
    }
}

fn check_memory(config: &LabConfig) -> Result<()> {
    let path = "/proc/meminfo";
    let text = fs::read_to_string(path).map_err(LabError::file(path))?;
    let Some(available_mib) = available_mib(&text) else {
        return Ok(());
    };
    let needed_mib = config.machine_mib();
    if needed_mib > available_mib {
        return Err(LabError::Memory {
            needed_mib,
            available_mib,
            dom0_mib: config.dom0_mib,
            domains_mib: config.domains_mib,
        });
    }
    Ok(())
}

/// `MemAvailable` of a `/proc/meminfo` text.
fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib / 1024)
}

fn free_port() -> Result<u16> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(LabError::file("127.0.0.1"))
}

fn start_qemu(config: &LabConfig, image: &Image, run_dir: &Path, port: u16) -> Result<Guarded> {
    let dom0_mib = config.dom0_mib;
    // A comma in a value of QEMU's is written twice.
    let value = |path: PathBuf| path.display().to_string().replace(',', ",,");
    // Credit has a run queue, and a lock, for each CPU. Credit2 has one for both: when this machine
    // preempts one of the emulated CPUs, the other waits for that lock, for seconds on end with many
    // vCPUs.
    let xen = format!(
        "console=com1 com1=115200,8n1 loglvl=info guest_loglvl=all/all noreboot=1 sched=credit \
         dom0_mem={dom0_mib}M,max:{dom0_mib}M dom0_max_vcpus={}",
        config.cpus.min(2)
    );
    let initrd = format!(
        "{} console=hvc0 loglevel=4 mitigations=off nokaslr,{}",
        value(image.kernel()),
        value(image.initrd())
    );
    let words: [&[&str]; 4] = [
        &["-name", "segue-lab", "-nodefaults", "-no-user-config"],
        &["-display", "none", "-monitor", "none", "-no-reboot"],
        // Never KVM: what is tested must not depend on the machine.
        &["-machine", "q35", "-accel", "tcg,thread=multi"],
        &["-cpu", "max,-smap,-la57,-xsave"],
    ];
    let mut args: Vec<String> = words.concat().into_iter().map(str::to_owned).collect();
    let valued = [
        ("-smp", config.cpus.to_string()),
        ("-m", config.machine_mib().to_string()),
        ("-kernel", image.xen().display().to_string()),
        ("-append", xen),
        ("-initrd", initrd),
        (
            "-drive",
            format!(
                "file={},format=raw,if=virtio,snapshot=on",
                value(image.root_disk())
            ),
        ),
        (
            "-netdev",
            format!("user,id=net0,hostfwd=tcp:127.0.0.1:{port}-:22"),
        ),
        ("-device", "virtio-net-pci,netdev=net0,romfile=".to_owned()),
        (
            "-serial",
            format!("file:{}", value(run_dir.join("xen.log"))),
        ),
    ];
    for (name, value) in valued {
        args.push(name.to_owned());
        args.push(value);
    }
    let log_path = run_dir.join("qemu.log");
    let log = File::create(&log_path).map_err(LabError::file(&log_path))?;
    let errors = log.try_clone().map_err(LabError::file(&log_path))?;
    Guarded::spawn("qemu-system-x86_64", args, move |command| {
        command.stdout(Stdio::from(log)).stderr(Stdio::from(errors));
    })
}

/// Waits until dom0's start script says so on the console.
fn wait_ready(
    qemu: &Guarded,
    run_dir: &Path,
    deadline: Instant,
    progress: &Progress,
) -> Result<()> {
    let log = run_dir.join("xen.log");
    let mut shown = String::new();
    loop {
        let text = read_log(&log);
        let state = boot_state(&text);
        if state == BootState::Ready {
            return Ok(());
        }
        let reason = if let BootState::Failed(line) = state {
            Some(line.to_owned())
        } else if let Some(status) = qemu.ended() {
            let said = last_lines(&read_log(&run_dir.join("qemu.log")), 5);
            Some(format!("QEMU ended: {status} {said}"))
        } else if Instant::now() >= deadline {
            Some("dom0 was not ready in time".to_owned())
        } else {
            None
        };
        if let Some(reason) = reason {
            return Err(LabError::Start {
                reason,
                tail: last_lines(&text, 20),
                log,
            });
        }
        if let BootState::Step(step) = state
            && step != shown
        {
            progress.detail(step);
            step.clone_into(&mut shown);
        }
        thread::sleep(Duration::from_millis(100));
    }
}

#[derive(Debug, PartialEq, Eq)]
enum BootState<'a> {
    Step(&'a str),
    Ready,
    Failed(&'a str),
}

/// Reads from Xen's console how far dom0 is.
fn boot_state(log: &str) -> BootState<'_> {
    let mut state = BootState::Step("Xen and dom0's kernel");
    for line in log.lines() {
        if let Some((_, step)) = line.split_once("segue-lab: ") {
            state = if step.trim_end().ends_with(" ready") {
                BootState::Ready
            } else {
                BootState::Step(step.trim_end())
            };
        } else if line.contains("Panic on CPU") || line.contains("Kernel panic") {
            return BootState::Failed(line.trim_end());
        }
    }
    state
}

fn connection(image: &Image, port: u16) -> Result<(Connection, tempfile::TempDir)> {
    // Not in the run's folder: a socket's path is limited to 108 bytes.
    let dir = tempfile::Builder::new()
        .prefix("segue-lab-")
        .tempdir()
        .map_err(LabError::file(std::env::temp_dir()))?;
    let mut options: Vec<String> = ["-F", "none", "-i"].map(str::to_owned).into();
    options.push(image.private_key().display().to_string());
    options.extend(["-p".to_owned(), port.to_string()]);
    for option in [
        "IdentitiesOnly=yes".to_owned(),
        "IdentityAgent=none".to_owned(),
        format!("UserKnownHostsFile=\"{}\"", image.known_hosts().display()),
        "GlobalKnownHostsFile=none".to_owned(),
        format!("HostKeyAlias={HOST_KEY_ALIAS}"),
        "StrictHostKeyChecking=yes".to_owned(),
        // The cheapest for an emulated processor.
        "KexAlgorithms=curve25519-sha256".to_owned(),
        "LogLevel=ERROR".to_owned(),
    ] {
        options.extend(["-o".to_owned(), option]);
    }
    let connection = Connection {
        target: "root@127.0.0.1".to_owned(),
        options,
        control: dir.path().join("control"),
    };
    Ok((connection, dir))
}

/// A log that may not be there yet and may hold any bytes.
fn read_log(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn meminfo_is_read() {
        let text = "MemTotal:  100 kB\nMemAvailable:    2097152 kB\n";
        assert_eq!(available_mib(text), Some(2048));
        assert_eq!(available_mib("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn boot_states_are_told_apart() {
        assert!(matches!(boot_state("(XEN) x\n"), BootState::Step(_)));
        assert_eq!(
            boot_state("segue-lab: 9.8s modules\r\n"),
            BootState::Step("9.8s modules")
        );
        assert_eq!(
            boot_state("segue-lab: 9.8s modules\nsegue-lab: 12.1s ready\r\n"),
            BootState::Ready
        );
        assert!(matches!(
            boot_state("(XEN) Panic on CPU 0:\n"),
            BootState::Failed(_)
        ));
    }
}
