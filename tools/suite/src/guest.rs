//! One domain from its start to its end, and what it printed.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use segue_lab::{Domain, DomainConfig, DomainType, EndReason, Lab, Line, XenHost};

use crate::images::Image;

/// A Xen to run domains on, shared by all tests.
pub struct Xen {
    lab: Lab,
    slots: Slots,
    patience: Duration,
    /// The script for network devices is there.
    has_script: Mutex<bool>,
}

/// Domains at a time: the emulated machine has two processors.
const SLOTS: u32 = 2;

/// How long a domain may print nothing on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// How long any domain may take, times the load.
const LIMIT: u32 = 8;

impl Xen {
    /// Takes the lab over and finds out how slow it is.
    pub fn new(lab: Lab) -> Result<Xen> {
        let factor = load_factor(lab.host())?;
        Ok(Xen {
            lab,
            slots: Slots::default(),
            patience: PATIENCE.mul_f64(factor),
            has_script: Mutex::new(false),
        })
    }

    /// Copies what network devices need to the host, once.
    pub fn prepare_network(&self) -> Result<()> {
        let there = self.has_script.lock();
        let mut there = there.unwrap_or_else(PoisonError::into_inner);
        if !*there {
            let (local, remote) = VIF_SCRIPT;
            self.host().exec("mkdir -p /tmp/segue")?.check()?;
            self.host().put(Path::new(local), remote)?;
            self.host().exec(&format!("chmod +x {remote}"))?.check()?;
            *there = true;
        }
        Ok(())
    }

    /// The lab that it is.
    pub fn lab(&self) -> &Lab {
        &self.lab
    }

    /// How the lab's machine ended, if it did.
    pub fn lab_ended(&self) -> Option<String> {
        self.lab.ended()
    }

    /// The host.
    pub fn host(&self) -> &XenHost {
        self.lab.host()
    }

    /// Whether TCG lost one of the domains that this thread started since [`forget_started`]. Such a
    /// domain says nothing about us.
    ///
    /// TCG now and then does a domain's exit twice, and the second time Xen's own registers become
    /// the domain's: Xen's log has them then, in Xen's code segment.
    pub fn lost_one(&self) -> bool {
        let log = self.host().exec("xl dmesg");
        let log = log.map_or(String::new(), |output| output.stdout);
        STARTED.with_borrow(|domids| domids.iter().any(|id| is_lost(&log, *id)))
    }

    /// How many times slower it is than where the times in tests were chosen; at least 1.
    pub fn slowness(&self) -> f64 {
        self.patience.as_secs_f64() / PATIENCE.as_secs_f64()
    }

    /// How long a domain may print nothing before it is given up.
    pub fn patience(&self) -> Duration {
        self.patience
    }
}

thread_local! {
    static STARTED: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

/// See [`Xen::lost_one`].
pub fn forget_started() {
    STARTED.take();
}

/// Whether, by Xen's log, a domain ended in Xen's code segment.
fn is_lost(log: &str, domid: u32) -> bool {
    let start = format!("*** Dumping Dom{domid} vcpu#");
    let dumps = log.split(&start).skip(1);
    dumps
        .map(|dump| dump.split("*** Dumping").next().unwrap_or(dump))
        .any(|dump| dump.contains("cs: e008"))
}

/// How much slower dom0 is than on the machine where the times here were chosen.
fn load_factor(host: &XenHost) -> Result<f64> {
    /// What the loop takes there, unloaded.
    const USUAL: Duration = Duration::from_millis(700);
    let start = Instant::now();
    host.exec("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done")?
        .check()?;
    let factor = start.elapsed().as_secs_f64() / USUAL.as_secs_f64();
    Ok(factor.clamp(1.0, 6.0))
}

/// Lets a few domains run at a time; heavy ones run alone.
#[derive(Default)]
struct Slots {
    taken: Mutex<u32>,
    freed: Condvar,
    /// Held while waiting, so that a heavy domain's turn comes.
    door: Mutex<()>,
}

struct Slot<'a> {
    slots: &'a Slots,
    count: u32,
}

impl Slots {
    fn take(&self, count: u32) -> Slot<'_> {
        let _door = self.door.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = self
            .freed
            .wait_while(taken, |taken| *taken + count > SLOTS)
            .unwrap_or_else(PoisonError::into_inner);
        *taken += count;
        Slot { slots: self, count }
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        let taken = self.slots.taken.lock();
        *taken.unwrap_or_else(PoisonError::into_inner) -= self.count;
        self.slots.freed.notify_all();
    }
}

/// How a domain is virtualised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// HVM.
    Hvm,
    /// PVH.
    Pvh,
}

impl Kind {
    /// Both.
    pub const ALL: [Kind; 2] = [Kind::Hvm, Kind::Pvh];

    /// As the lab calls it.
    pub fn domain_type(self) -> DomainType {
        match self {
            Kind::Hvm => DomainType::Hvm,
            Kind::Pvh => DomainType::Pvh,
        }
    }

    /// What the boot line calls the way in.
    pub fn entry(self) -> &'static str {
        match self {
            Kind::Hvm => "linux",
            Kind::Pvh => "pvh",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Hvm => "hvm",
            Kind::Pvh => "pvh",
        })
    }
}

/// A network device on the lab's bridge, as `xl` is told.
pub const VIF: &str = "type=vif,bridge=xenbr0,script=/tmp/segue/vif";

/// The lab's bridge.
const BRIDGE: &str = "xenbr0";

/// Its script, and where it goes.
const VIF_SCRIPT: (&str, &str) = ("tools/suite/dom0/vif", "/tmp/segue/vif");

/// What an image says when its first network device is there.
const NETWORK: &str = "segue: net interface=0 mac=";

/// A domain to be.
pub struct Guest {
    kind: Kind,
    vcpus: u32,
    memory_mib: u64,
    kernel: PathBuf,
    module: Option<PathBuf>,
    cmdline: String,
    /// Address on the lab's bridge.
    address: Option<String>,
    /// Network devices.
    vifs: usize,
    second: Option<(String, String)>,
    beside: bool,
    alone: bool,
}

impl Guest {
    /// With 64 MiB and no module.
    pub fn new(image: &Image, kind: Kind, vcpus: u32) -> Guest {
        Guest {
            kind,
            vcpus,
            memory_mib: 64,
            kernel: match kind {
                Kind::Hvm => image.img.clone(),
                Kind::Pvh => image.elf.clone(),
            },
            module: None,
            cmdline: String::new(),
            address: None,
            vifs: 0,
            second: None,
            beside: false,
            alone: vcpus > 4,
        }
    }

    /// With this much memory.
    pub fn memory(mut self, mib: u64) -> Guest {
        self.memory_mib = mib;
        self.alone |= mib > 1024;
        self
    }

    /// With a ramdisk or module.
    pub fn module(mut self, path: &Path) -> Guest {
        self.module = Some(path.to_owned());
        self
    }

    /// With a command line.
    pub fn cmdline(mut self, text: impl Into<String>) -> Guest {
        self.cmdline = text.into();
        self
    }

    /// With a network device on the lab's bridge (10.0.0.0/24), and this address.
    pub fn network(self, address: &str) -> Guest {
        self.networks(address, 1)
    }

    /// With as many network devices; the first has this address.
    pub fn networks(mut self, address: &str, count: usize) -> Guest {
        self.address = Some(address.into());
        self.vifs = count;
        self
    }

    /// With one more, on another bridge, and its address there.
    pub fn also_on(mut self, bridge: &str, address: &str) -> Guest {
        self.second = Some((bridge.into(), address.into()));
        self
    }

    /// Beside any others.
    pub fn beside(mut self) -> Guest {
        self.beside = true;
        self
    }

    /// While no other domain runs.
    pub fn alone(mut self) -> Guest {
        self.alone = true;
        self
    }

    /// Starts it; it is destroyed when the result is dropped.
    pub fn start<'a>(&self, xen: &'a Xen) -> Result<Running<'a>> {
        let slot = xen.slots.take(match (self.beside, self.alone) {
            (true, _) => 0,
            (_, true) => SLOTS,
            _ => 1,
        });
        let mut config = DomainConfig::new(self.kind.domain_type(), &self.kernel);
        config.ramdisk.clone_from(&self.module);
        config.cmdline.clone_from(&self.cmdline);
        config.memory_mib = self.memory_mib;
        config.vcpus = self.vcpus;
        if let Some(address) = &self.address {
            // Without `type` an HVM domain gets an emulated device too, for which dom0 has no tap.
            xen.prepare_network()?;
            let mut devices = vec![format!("'{VIF}'"); self.vifs];
            config.cmdline = format!("segue.ip={address}/24 {}", self.cmdline);
            if let Some((bridge, address)) = &self.second {
                let ip = format!("segue.ip={address}/24%{}", devices.len());
                devices.push(format!("'{}'", VIF.replace(BRIDGE, bridge)));
                config.cmdline = format!("{ip} {}", config.cmdline);
            }
            config.extra.push(format!("vif=[{}]", devices.join(", ")));
        }
        let domain = xen.host().create(&config)?;
        STARTED.with_borrow_mut(|domids| domids.push(domain.domid()));
        Ok(Running {
            domain,
            patience: xen.patience,
            seen: 0,
            host: xen.host(),
            _slot: slot,
        })
    }

    /// Starts it and waits until it says that its network is there.
    pub fn start_serving<'a>(&self, xen: &'a Xen) -> Result<Running<'a>> {
        self.start_until(xen, NETWORK)
    }

    /// Starts it and waits for a line that begins so; again if TCG lost it, see [`Xen::lost_one`].
    pub fn start_until<'a>(&self, xen: &'a Xen, line: &str) -> Result<Running<'a>> {
        for last in [false, true] {
            let mut domain = self.start(xen)?;
            match domain.wait_for(line) {
                Ok(_) => return Ok(domain),
                Err(_) if !last && domain.is_lost() => tell_lost(),
                Err(error) => return Err(error),
            }
        }
        bail!("the domain did not start")
    }

    /// Runs it to its end.
    ///
    /// One that TCG loses, see [`Xen::lost_one`], is started again, twice at most, and that is told.
    pub fn run(&self, xen: &Xen) -> Result<Run> {
        for _ in 0..2 {
            let run = self.start(xen)?.finish(|_| ())?;
            if !run.lost {
                return Ok(run);
            }
            tell_lost();
        }
        self.start(xen)?.finish(|_| ())
    }
}

fn tell_lost() {
    eprintln!("suite: TCG lost a domain, with Xen's registers in its state; started again");
}

/// A domain that runs.
pub struct Running<'a> {
    // Destroyed before its slot is given to another.
    domain: Domain,
    patience: Duration,
    seen: usize,
    host: &'a XenHost,
    _slot: Slot<'a>,
}

impl Running<'_> {
    /// The next line; `None` after the end.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        let start = Instant::now();
        // In steps, to notice an end without a line.
        while !self.domain.wait_more(self.seen, Duration::from_secs(1)) {
            if self.domain.end().is_some() {
                self.domain.wait_end(self.patience)?;
                if self.domain.lines_from(self.seen).is_empty() {
                    return Ok(None);
                }
                break;
            }
            if start.elapsed() > self.patience {
                bail!(
                    "the domain printed nothing for {:.0} s and did not end; its last lines:\n{}",
                    self.patience.as_secs_f64(),
                    tail(&self.domain.lines())
                );
            }
        }
        let line = self.domain.lines_from(self.seen).into_iter().next();
        self.seen += usize::from(line.is_some());
        Ok(line)
    }

    /// Its number in Xen.
    pub fn domid(&self) -> u32 {
        self.domain.domid()
    }

    /// The time since it was let run, by which its lines are told.
    pub fn elapsed(&self) -> Duration {
        self.domain.elapsed()
    }

    /// What dom0's time of day was when the domain was let run, in seconds, to some milliseconds:
    /// its lines are told from there.
    pub fn started_at(&self) -> Result<f64> {
        let before = self.domain.elapsed();
        let said = self.host.exec("date +%s.%N")?.check()?.stdout;
        let now: f64 = said.trim().parse().context(said)?;
        let elapsed = (before + self.domain.elapsed()) / 2;
        Ok(now - elapsed.as_secs_f64())
    }

    /// Types on its console; `\r` is the key Enter.
    pub fn type_text(&self, text: &str) -> Result<()> {
        Ok(self.domain.type_bytes(text.as_bytes())?)
    }

    /// Passes over the lines that are there.
    pub fn skip(&mut self) {
        self.seen = self.domain.lines().len();
    }

    /// The last line so far that begins so.
    pub fn last_line(&self, start: &str) -> Result<Line> {
        let mut lines = self.domain.lines().into_iter().rev();
        lines
            .find(|line| line.text.starts_with(start))
            .with_context(|| format!("no line '{start}…'"))
    }

    /// Waits for a line that begins so and is not behind us yet.
    pub fn wait_for(&mut self, start: &str) -> Result<Line> {
        self.wait_for_one_of(&[start])
    }

    fn wait_for_one_of(&mut self, starts: &[&str]) -> Result<Line> {
        let limit = self.patience * LIMIT;
        let since = Instant::now();
        while let Some(line) = self.next_line()? {
            if starts.iter().any(|start| line.text.starts_with(start)) {
                return Ok(line);
            }
            ensure!(
                since.elapsed() < limit,
                "no line '{}…'; the domain's last lines:\n{}",
                starts.join("…' or '"),
                tail(&self.domain.lines())
            );
        }
        bail!(
            "the domain ended without a line '{}…'; its last lines:\n{}",
            starts.join("…' or '"),
            tail(&self.domain.lines())
        )
    }

    /// Waits for a line that begins with one of these, if there was none before: which of two
    /// threads has said something first is not known.
    pub fn wait_until_said(&mut self, starts: &[&str]) -> Result<()> {
        let says = |line: &Line| starts.iter().any(|start| line.text.starts_with(start));
        if !self.lines().iter().any(says) {
            self.wait_for_one_of(starts)?;
        }
        Ok(())
    }

    /// Waits until it says that its first network device is there; gives the line, with the
    /// addresses.
    pub fn wait_for_network(&mut self) -> Result<Line> {
        self.wait_for(NETWORK)
    }

    /// Whether it ended because TCG lost it, see [`Xen::lost_one`].
    fn is_lost(&self) -> bool {
        self.domain.end() == Some(EndReason::Reboot)
            && self
                .host
                .exec("xl dmesg")
                .is_ok_and(|log| is_lost(&log.stdout, self.domid()))
    }

    /// Whether it still runs.
    pub fn runs(&self) -> bool {
        self.domain.end().is_none()
    }

    /// All it printed so far.
    pub fn lines(&self) -> Vec<Line> {
        self.domain.lines()
    }

    /// Follows it to its end.
    pub fn finish(mut self, mut each: impl FnMut(&Line)) -> Result<Run> {
        let limit = self.patience * LIMIT;
        let start = Instant::now();
        while let Some(line) = self.next_line()? {
            each(&line);
            if start.elapsed() > limit {
                bail!(
                    "the domain still ran after {:.0} s; its last lines:\n{}",
                    limit.as_secs_f64(),
                    tail(&self.domain.lines())
                );
            }
        }
        let end = self.domain.wait_end(self.patience)?;
        Ok(Run {
            lines: self.domain.lines(),
            lost: self.is_lost(),
            end,
        })
    }

    /// What xl calls it.
    pub fn name(&self) -> &str {
        self.domain.name()
    }

    /// Removes it and returns what it printed so far.
    pub fn stop(self) -> Result<Vec<Line>> {
        self.domain.destroy()?;
        Ok(self.domain.lines())
    }
}

/// What a domain printed, and how it ended.
pub struct Run {
    lines: Vec<Line>,
    end: EndReason,
    /// TCG lost it.
    lost: bool,
}

impl Run {
    /// How it ended has to be this.
    pub fn ended(&self, wanted: EndReason) -> Result<()> {
        self.check(self.end == wanted, || {
            format!("the domain ended with {}, not {wanted}", self.end)
        })
    }

    /// The lines that begin so, as events.
    pub fn events<'a, 'b>(
        &'a self,
        start: &'b str,
    ) -> impl Iterator<Item = Event<'a>> + use<'a, 'b> {
        events(&self.lines, start)
    }

    /// The one line that begins so.
    pub fn one(&self, start: &str) -> Result<Event<'_>> {
        let mut events = self.events(start);
        match (events.next(), events.next()) {
            (Some(event), None) => Ok(event),
            (None, _) => Err(self.failure(&format!("no line '{start}…'"))),
            _ => Err(self.failure(&format!("more than one line '{start}…'"))),
        }
    }

    /// A condition; if it fails, the last lines are shown too.
    pub fn check(&self, good: bool, what: impl FnOnce() -> String) -> Result<()> {
        if good {
            Ok(())
        } else {
            Err(self.failure(&what()))
        }
    }

    fn failure(&self, what: &str) -> anyhow::Error {
        anyhow!("{what}; the domain's last lines:\n{}", tail(&self.lines))
    }

    /// Adds the last lines to an error.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| self.failure(&format!("{error:#}")))
    }

    /// All lines.
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }
}

/// The lines that begin so, as events.
pub fn events<'a, 'b>(
    lines: &'a [Line],
    start: &'b str,
) -> impl Iterator<Item = Event<'a>> + use<'a, 'b> {
    lines
        .iter()
        .filter(move |line| line.text.starts_with(start))
        .map(|line| Event { text: &line.text })
}

/// The last lines, for a message.
pub fn tail(lines: &[Line]) -> String {
    if lines.is_empty() {
        return "(it printed nothing)".into();
    }
    let last = &lines[lines.len().saturating_sub(40)..];
    let text: Vec<String> = last.iter().map(Line::to_string).collect();
    text.join("\n")
}

/// A line with `key=value` words; a value with blanks stands in double quotes.
#[derive(Clone, Copy, Debug)]
pub struct Event<'a> {
    /// The line.
    pub text: &'a str,
}

impl<'a> Event<'a> {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Result<&'a str> {
        let missing = || format!("no {key}= in the line: {}", self.text);
        let found = self.text.match_indices(key).find(|(at, _)| {
            let before = self.text[..*at].chars().next_back();
            before.is_none_or(char::is_whitespace) && self.text[at + key.len()..].starts_with('=')
        });
        let (at, _) = found.with_context(missing)?;
        let value = &self.text[at + key.len() + 1..];
        Ok(match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next().unwrap_or(quoted),
            None => value.split_whitespace().next().unwrap_or(""),
        })
    }

    /// The value as a number.
    pub fn number(&self, key: &str) -> Result<u64> {
        let value = self.get(key)?;
        value
            .parse()
            .with_context(|| format!("{key}={value} is no number in: {}", self.text))
    }

    /// The value has to be this.
    pub fn is(&self, key: &str, wanted: impl fmt::Display) -> Result<()> {
        let (value, wanted) = (self.get(key)?, wanted.to_string());
        ensure!(value == wanted, "{key} is not {wanted} in: {}", self.text);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read() {
        let event = Event {
            text: "x: trial=a-b reason=\"page fault at=3\" at=12 vcpus=2",
        };
        assert_eq!(event.get("trial").unwrap(), "a-b");
        assert_eq!(event.get("reason").unwrap(), "page fault at=3");
        assert_eq!(event.number("vcpus").unwrap(), 2);
        assert!(event.get("cpus").is_err());
        assert!(event.is("vcpus", 3).is_err());
    }

    #[test]
    fn a_lost_domain_is_told_by_its_number() {
        let log = "(XEN) *** Dumping Dom12 vcpu#0 state: ***\n(XEN) RIP: e008 cs: e008\n\
                   (XEN) *** Dumping Dom1 vcpu#0 state: ***\n(XEN) cs: 0010\n";
        assert!(is_lost(log, 12));
        assert!(!is_lost(log, 1));
        assert!(!is_lost(log, 2));
    }

    #[test]
    fn a_heavy_domain_waits_for_its_turn() {
        let slots = Slots::default();
        let first = slots.take(1);
        std::thread::scope(|scope| {
            let heavy = scope.spawn(|| drop(slots.take(SLOTS)));
            assert!(!heavy.is_finished());
            drop(first);
        });
        drop(slots.take(SLOTS));
    }
}
