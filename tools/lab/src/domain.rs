//! Domains: their configuration, console and end.

use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::console::{Line, Log, Source, Waited};
use crate::error::{LabError, Result};
use crate::process::Guarded;
use crate::xen_host::{COMMAND_TIMEOUT, REMOTE_DIR, XenHost};

/// How a domain is virtualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainType {
    /// With a device model. Its kernel must speak the Linux boot protocol.
    Hvm,
    /// Without. Its kernel is an ELF file with a PVH note, or a Linux bzImage.
    Pvh,
}

/// What Xen does with a domain that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterEnd {
    /// Keeps it, so that the reason can be read.
    Keep,
    /// Removes it after a power-off, else starts it anew, as services want it.
    Restart,
}

/// What to run as a domain.
#[derive(Debug, Clone)]
pub struct DomainConfig {
    /// Its name; unique in the lab.
    pub name: String,
    /// How it is virtualised.
    pub kind: DomainType,
    /// Kernel, a file of this machine.
    pub kernel: PathBuf,
    /// Ramdisk or module, a file of this machine.
    pub ramdisk: Option<PathBuf>,
    /// Command line.
    pub cmdline: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Virtual CPUs.
    pub vcpus: u32,
    /// What follows its end.
    pub after_end: AfterEnd,
    /// More lines for the xl configuration, see xl.cfg(5).
    pub extra: Vec<String>,
}

impl DomainConfig {
    /// A domain with one vCPU, 64 MiB, and a name of its own.
    #[must_use]
    pub fn new(kind: DomainType, kernel: impl Into<PathBuf>) -> DomainConfig {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        DomainConfig {
            name: format!("segue-{}-{number}", std::process::id()),
            kind,
            kernel: kernel.into(),
            ramdisk: None,
            cmdline: String::new(),
            memory_mib: 64,
            vcpus: 1,
            after_end: AfterEnd::Keep,
            extra: Vec::new(),
        }
    }

    /// The xl configuration, with the files at their places on the host.
    pub(crate) fn render(&self, kernel: &str, ramdisk: Option<&str>) -> Result<String> {
        let named = !self.name.is_empty()
            && self
                .name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        if !named {
            return Err(LabError::Config {
                what: "the domain's name",
                value: self.name.clone(),
                why: "letters, digits, - _ . only",
            });
        }
        let mut lines = vec![
            format!("name=\"{}\"", self.name),
            format!(
                "type=\"{}\"",
                match self.kind {
                    DomainType::Hvm => "hvm",
                    DomainType::Pvh => "pvh",
                }
            ),
            format!("kernel={}", quote("the kernel's path", kernel)?),
            format!("memory={}", self.memory_mib),
            format!("vcpus={}", self.vcpus),
            // RDTSCP is intercepted otherwise, and traps wrongly under TCG.
            "tsc_mode=\"native\"".to_owned(),
        ];
        if let Some(ramdisk) = ramdisk {
            lines.push(format!("ramdisk={}", quote("the ramdisk's path", ramdisk)?));
        }
        if !self.cmdline.is_empty() {
            lines.push(format!(
                "cmdline={}",
                quote("the command line", &self.cmdline)?
            ));
        }
        for event in ["poweroff", "reboot", "crash", "watchdog"] {
            let action = match (self.after_end, event) {
                (AfterEnd::Keep, _) => "preserve",
                (AfterEnd::Restart, "poweroff") => "destroy",
                (AfterEnd::Restart, _) => "restart",
            };
            lines.push(format!("on_{event}=\"{action}\""));
        }
        if self.kind == DomainType::Hvm {
            lines.push("vga=\"none\"".to_owned());
            lines.push("nographic=1".to_owned());
            lines.push(match self.after_end {
                AfterEnd::Keep => format!("serial=\"file:{}\"", self.uart_file()),
                AfterEnd::Restart => "serial=\"pty\"".to_owned(),
            });
        }
        lines.extend(self.extra.iter().cloned());
        Ok(lines.join("\n") + "\n")
    }

    fn uart_file(&self) -> String {
        format!("{REMOTE_DIR}/{}.uart", self.name)
    }
}

/// Quotes a string for an xl configuration, where a string ends at the next
/// quote of its kind and a backslash escapes (libxlu's `xlu__cfgl_dequote`).
fn quote(what: &'static str, value: &str) -> Result<String> {
    let refuse = |why| LabError::Config {
        what,
        value: value.to_owned(),
        why,
    };
    if value.chars().any(char::is_control) {
        return Err(refuse("it has control characters"));
    }
    let mark = match (value.contains('"'), value.contains('\'')) {
        (false, _) => '"',
        (true, false) => '\'',
        (true, true) => return Err(refuse("it has both kinds of quotes")),
    };
    Ok(format!("{mark}{}{mark}", value.replace('\\', "\\\\")))
}

/// How a domain ended. The numbers are `SHUTDOWN_*` of Xen's `public/sched.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// 0: it powered itself off.
    PowerOff,
    /// 1: it rebooted; a triple fault counts as this too.
    Reboot,
    /// 2: it suspended.
    Suspend,
    /// 3: it reported a crash, or Xen crashed it.
    Crash,
    /// 4: its watchdog fired.
    Watchdog,
    /// 5: it asked for a soft reset.
    SoftReset,
    /// Any other number.
    Other(u32),
    /// It was destroyed from outside.
    Destroyed,
}

impl EndReason {
    /// True if the domain wanted to end and did: a power-off.
    #[must_use]
    pub fn is_clean(self) -> bool {
        self == EndReason::PowerOff
    }

    fn from_code(code: u32) -> EndReason {
        match code {
            0 => EndReason::PowerOff,
            1 => EndReason::Reboot,
            2 => EndReason::Suspend,
            3 => EndReason::Crash,
            4 => EndReason::Watchdog,
            5 => EndReason::SoftReset,
            other => EndReason::Other(other),
        }
    }

    /// Reads a line that the watcher in dom0 printed; `None` while it runs.
    fn from_watcher(line: &str) -> Option<EndReason> {
        if line == "gone" {
            return Some(EndReason::Destroyed);
        }
        // Name ID Mem VCPUs State Time(s) UUID Reason-Code …
        let reason = line.strip_prefix("row ")?.split_whitespace().nth(7)?;
        reason.parse().ok().map(EndReason::from_code)
    }
}

impl fmt::Display for EndReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EndReason::PowerOff => f.write_str("poweroff"),
            EndReason::Reboot => f.write_str("reboot"),
            EndReason::Suspend => f.write_str("suspend"),
            EndReason::Crash => f.write_str("crash"),
            EndReason::Watchdog => f.write_str("watchdog"),
            EndReason::SoftReset => f.write_str("soft reset"),
            EndReason::Other(code) => write!(f, "reason {code}"),
            EndReason::Destroyed => f.write_str("destroyed"),
        }
    }
}

/// A domain. Dropping it destroys it; so does the end of this process.
#[derive(Debug)]
pub struct Domain {
    host: XenHost,
    name: String,
    domid: u32,
    log: Arc<Log>,
    cursor: AtomicUsize,
    channels: Mutex<Option<Channels>>,
}

/// The ssh sessions that follow a domain.
#[derive(Debug)]
struct Channels {
    watcher: Guarded,
    _consoles: Vec<Guarded>,
}

const WATCH: &str = include_str!("../dom0/watch.sh");

/// Console lines in an error message.
const TAIL_LINES: usize = 30;

impl XenHost {
    /// Creates a domain and lets it run.
    ///
    /// It is created paused and its consoles are attached before it runs, so no
    /// byte is lost.
    ///
    /// # Errors
    /// When a file cannot be copied or `xl` refuses; the error holds what `xl`
    /// and the device model said.
    pub fn create(&self, config: &DomainConfig) -> Result<Domain> {
        let kernel = self.upload(&config.kernel)?;
        let ramdisk = config.ramdisk.as_deref().map(|path| self.upload(path));
        let ramdisk = ramdisk.transpose()?;
        let text = config.render(&kernel, ramdisk.as_deref())?;
        let domid = self.create_paused(config, &text)?;
        let domain = Domain {
            host: self.clone(),
            name: config.name.clone(),
            domid,
            log: Arc::new(Log::new()),
            cursor: AtomicUsize::new(0),
            channels: Mutex::new(None),
        };
        domain.follow(config)?;
        domain.log.start_now();
        self.exec(&format!("xl unpause {domid}"))?.check()?;
        Ok(domain)
    }

    fn create_paused(&self, config: &DomainConfig, text: &str) -> Result<u32> {
        let name = &config.name;
        let script = format!(
            "mkdir -p {REMOTE_DIR}; cd {REMOTE_DIR} || exit 1\n\
             cat >{name}.cfg <<'SEGUE_END'\n{text}SEGUE_END\n\
             : >{uart}\n\
             if ! xl -f create -p -q {name}.cfg >{name}.xl 2>&1; then\n\
             cat {name}.xl; tail -n 20 /var/log/xen/qemu-dm-{name}.log 2>/dev/null; exit 1\n\
             fi\n\
             xl domid {name}\n",
            uart = config.uart_file(),
        );
        let output = self.script(&script, COMMAND_TIMEOUT)?;
        let command = format!("xl create {name}.cfg");
        let failed = |output: &crate::Output, status| LabError::Remote {
            command: command.clone(),
            status,
            output: format!("{}{}\nconfiguration:\n{text}", output.stdout, output.stderr),
        };
        if !output.success() {
            return Err(failed(&output, output.status));
        }
        output
            .stdout
            .trim()
            .parse()
            .map_err(|_| failed(&output, output.status))
    }
}

impl Domain {
    /// Attaches consoles and the watcher.
    fn follow(&self, config: &DomainConfig) -> Result<()> {
        let domid = self.domid;
        let mut consoles = Vec::new();
        let mut commands = vec![(Source::Pv, format!("exec xl console -t pv {domid}"))];
        if config.kind == DomainType::Hvm {
            let file = config.uart_file();
            commands.push((Source::Uart, format!("exec tail -c +1 -F {file}")));
        }
        for (source, command) in commands {
            let channel = self.host.stream(&command)?;
            if let Some(stdout) = channel.child().take_stdout() {
                let log = Arc::clone(&self.log);
                thread::spawn(move || log.follow(source, stdout));
            }
            consoles.push(channel);
        }
        let watcher = self.host.stream(&format!("id={domid}\n{WATCH}"))?;
        if let Some(stdout) = watcher.child().take_stdout() {
            let log = Arc::clone(&self.log);
            thread::spawn(move || {
                for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
                    if let Some(reason) = EndReason::from_watcher(&line) {
                        log.set_end(reason);
                    }
                }
            });
        }
        *self.channels() = Some(Channels {
            watcher,
            _consoles: consoles,
        });
        Ok(())
    }

    fn channels(&self) -> std::sync::MutexGuard<'_, Option<Channels>> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number in Xen.
    #[must_use]
    pub fn domid(&self) -> u32 {
        self.domid
    }

    /// The time since it was let run, by which its lines are told.
    #[must_use]
    pub fn elapsed(&self) -> Duration {
        self.log.elapsed()
    }

    /// All lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<Line> {
        self.log.lines_from(0)
    }

    /// The lines from the given number on.
    #[must_use]
    pub fn lines_from(&self, first: usize) -> Vec<Line> {
        self.log.lines_from(first)
    }

    /// Waits for the next line that satisfies `wanted`: the search starts after
    /// the line that the last call found.
    ///
    /// # Errors
    /// When the time is up, or the domain ended without such a line.
    pub fn wait_line(&self, wanted: impl FnMut(&Line) -> bool, timeout: Duration) -> Result<Line> {
        let first = self.cursor.load(Ordering::Acquire);
        match self.log.wait_line(first, wanted, timeout) {
            Waited::Found((number, line)) => {
                self.cursor.store(number + 1, Ordering::Release);
                Ok(line)
            }
            Waited::Ended(reason) => Err(LabError::DomainEnded {
                name: self.name.clone(),
                reason,
                tail: self.log.tail(TAIL_LINES),
            }),
            Waited::TimedOut => Err(self.timed_out("it did not print the expected line", timeout)),
        }
    }

    /// Waits for any line after the first `known` ones, or for the end; true if
    /// there is one.
    #[must_use]
    pub fn wait_more(&self, known: usize, timeout: Duration) -> bool {
        let waited = self.log.wait_line(known, |_| true, timeout);
        matches!(waited, Waited::Found(_))
    }

    /// Types on the PV console, byte for byte; the key Enter is a carriage return.
    ///
    /// By the console's terminal: `xl console` takes nothing that is typed where its input is none.
    ///
    /// # Errors
    /// When the domain or the connection is gone.
    pub fn type_bytes(&self, bytes: &[u8]) -> Result<()> {
        let escaped: String = bytes.iter().map(|byte| format!("\\0{byte:03o}")).collect();
        let tty = format!("$(xenstore-read /local/domain/{}/console/tty)", self.domid);
        let command = format!("tty={tty} && printf %b '{escaped}' >\"$tty\"");
        self.host.exec(&command)?.check()?;
        Ok(())
    }

    /// Waits for the domain's end, and for what it printed to arrive. The
    /// domain is kept by Xen, dead, until [`destroy`](Self::destroy).
    ///
    /// # Errors
    /// When the time is up.
    pub fn wait_end(&self, timeout: Duration) -> Result<EndReason> {
        self.log
            .wait_end(timeout)
            .ok_or_else(|| self.timed_out("it did not end", timeout))
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn end(&self) -> Option<EndReason> {
        self.log.end()
    }

    /// Removes it from Xen.
    ///
    /// # Errors
    /// When `xl destroy` fails for another reason than its absence.
    pub fn destroy(&self) -> Result<()> {
        let Some(channels) = self.channels().take() else {
            return Ok(());
        };
        let domid = self.domid;
        let result = self.host.exec(&format!(
            "xl destroy {domid} 2>&1; rm -f {REMOTE_DIR}/{name}.*; ! xl domname {domid} 2>/dev/null",
            name = self.name
        ));
        if let Some(mut stdin) = channels.watcher.child().take_stdin() {
            // Tells the watcher that there is nothing left to do.
            let _ = stdin.write_all(b"done\n");
        }
        self.log.set_end(EndReason::Destroyed);
        result?.check()?;
        Ok(())
    }

    fn timed_out(&self, what: &'static str, timeout: Duration) -> LabError {
        LabError::DomainTimeout {
            name: self.name.clone(),
            what,
            timeout,
            tail: self.log.tail(TAIL_LINES),
        }
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            eprintln!("lab: domain {}: {error}", self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hvm_configuration_is_complete() {
        let mut config = DomainConfig::new(DomainType::Hvm, "k.img");
        config.name = "t1".into();
        config.cmdline = "segue.log=debug -- \"a b\"".into();
        config.extra = vec!["vif=['bridge=xenbr0']".into()];
        let text = config.render("/k", None).unwrap();
        for line in [
            "name=\"t1\"",
            "type=\"hvm\"",
            "kernel=\"/k\"",
            "cmdline='segue.log=debug -- \"a b\"'",
            "tsc_mode=\"native\"",
            "on_crash=\"preserve\"",
            "vga=\"none\"",
            "serial=\"file:/tmp/segue/t1.uart\"",
            "vif=['bridge=xenbr0']",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        assert!(!text.contains("ramdisk"));
    }

    #[test]
    fn a_service_is_started_anew_but_after_a_power_off() {
        let mut config = DomainConfig::new(DomainType::Hvm, "k.img");
        config.after_end = AfterEnd::Restart;
        let text = config.render("/k", None).unwrap();
        for line in [
            "on_poweroff=\"destroy\"",
            "on_reboot=\"restart\"",
            "on_crash=\"restart\"",
            "serial=\"pty\"",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        assert!(!text.contains("preserve"));
    }

    #[test]
    fn a_pvh_configuration_has_no_device_model() {
        let config = DomainConfig::new(DomainType::Pvh, "k.elf");
        let text = config.render("/k", Some("/r")).unwrap();
        assert!(text.contains("type=\"pvh\"\n"));
        assert!(text.contains("ramdisk=\"/r\"\n"));
        assert!(!text.contains("serial"));
    }

    #[test]
    fn names_and_values_that_xl_cannot_take_are_refused() {
        let mut config = DomainConfig::new(DomainType::Pvh, "k");
        config.name = "a b".into();
        assert!(config.render("/k", None).is_err());
        assert!(quote("x", "line\nbreak").is_err());
        assert!(quote("x", "\"'").is_err());
        assert_eq!(quote("x", "a\\b").unwrap(), "\"a\\\\b\"");
    }

    #[test]
    fn the_watcher_is_understood() {
        let row = |reason: &str| {
            format!(
                "row t1  1  128  0  ---s--  9.6 fb05b304-2f17-45db-a679-a6f622716d1c  {reason}  -"
            )
        };
        assert_eq!(EndReason::from_watcher(&row("-")), None);
        assert_eq!(
            EndReason::from_watcher(&row("0")),
            Some(EndReason::PowerOff)
        );
        assert_eq!(EndReason::from_watcher(&row("3")), Some(EndReason::Crash));
        assert_eq!(
            EndReason::from_watcher(&row("9")),
            Some(EndReason::Other(9))
        );
        assert_eq!(EndReason::from_watcher("gone"), Some(EndReason::Destroyed));
        assert_eq!(EndReason::from_watcher("rubbish"), None);
    }
}
