//! What commands about domains share: the host they are on, and options that describe one.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use segue_lab::{Domain, DomainConfig, DomainType, Lab, LabConfig, Session};

use crate::output::outln;

/// Where domains are.
#[derive(Debug, Args)]
pub struct HostOption {
    /// A Xen host to reach by ssh; `lab`, or without: the lab that `segue lab up` holds.
    #[arg(long, value_name = "USER@HOST", env = "SEGUE_XEN_HOST")]
    xen_host: Option<String>,
}

impl HostOption {
    /// The lab's settings with this host.
    pub fn config(&self) -> LabConfig {
        let mut config = LabConfig::from_env();
        let named = |host: &String| !host.is_empty() && host != "lab";
        config.xen_host = self.xen_host.clone().filter(named);
        config
    }

    /// This one: `user@host`, or `lab`.
    pub fn named(name: &str) -> Self {
        Self {
            xen_host: Some(name.to_owned()),
        }
    }

    /// A host that is there when we are gone: no lab of one's own.
    pub fn lasting(&self) -> Result<Lab> {
        let config = self.config();
        ensure!(
            config.xen_host.is_some() || Session::find(&config).is_some(),
            "no Xen host: name one (--xen-host user@host, or SEGUE_XEN_HOST), or start a lab in \
             another terminal (segue lab up)"
        );
        connect(&config)
    }
}

/// The session that is up, whatever its size, or a lab of one's own.
pub fn connect(config: &LabConfig) -> Result<Lab> {
    let mib = Session::find(config).map_or(config.domains_mib, |session| session.domains_mib);
    Ok(Lab::connect(&config.clone().with_domains_mib(mib))?)
}

/// How a domain is virtualised.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Kind {
    Hvm,
    Pvh,
}

/// A domain to be.
#[derive(Debug, Args)]
pub struct DomainOptions {
    /// How the domain is virtualised; by default what the image is for.
    #[arg(long = "type", value_enum)]
    kind: Option<Kind>,
    /// Virtual CPUs, up to 32.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=32))]
    vcpus: u32,
    /// Memory in MiB.
    #[arg(long, default_value_t = 64)]
    memory: u64,
    /// A network card, as xl-network-configuration(5) has it: bridge=xenbr0; may be repeated.
    #[arg(long, value_name = "SPEC")]
    vif: Vec<String>,
    /// Address and prefix length of the network card: 10.0.0.2/24. Without, it asks by DHCP.
    #[arg(long, value_name = "ADDR/LEN")]
    ip: Option<String>,
    /// Address of the gateway.
    #[arg(long, value_name = "ADDR")]
    gateway: Option<String>,
    /// Command line: segue.KEY=VALUE, then -- and the app's arguments.
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Ramdisk (module for pvh): bundles, or a cpio archive.
    #[arg(long, value_name = "FILE")]
    ramdisk: Option<PathBuf>,
    /// Domain name; by default the image's (deploy), or one that is made up.
    #[arg(long)]
    name: Option<String>,
    /// A further line for the xl configuration; may be repeated.
    #[arg(long, value_name = "LINE")]
    xl_extra: Vec<String>,
}

impl DomainOptions {
    /// The domain that runs an image. `words` are arguments for the app.
    pub fn domain(&self, image: &Path, words: &[String]) -> Result<DomainConfig> {
        // Before a lab is started for nothing.
        for file in std::iter::once(image).chain(self.ramdisk.as_deref()) {
            ensure!(file.is_file(), "{}: no such file", file.display());
        }
        let kind = match self.kind {
            Some(Kind::Hvm) => DomainType::Hvm,
            Some(Kind::Pvh) => DomainType::Pvh,
            None => made_for(image)?,
        };
        let mut domain = DomainConfig::new(kind, image);
        if let Some(name) = &self.name {
            domain.name.clone_from(name);
        }
        domain.ramdisk.clone_from(&self.ramdisk);
        domain.cmdline = self.command_line(words)?;
        domain.memory_mib = self.memory;
        domain.vcpus = self.vcpus;
        if !self.vif.is_empty() {
            let cards: Vec<String> = self.vif.iter().map(|v| card(v)).collect::<Result<_>>()?;
            domain.extra.push(format!("vif=[{}]", cards.join(", ")));
        }
        domain.extra.extend(self.xl_extra.iter().cloned());
        Ok(domain)
    }

    /// Whether it is PVH that is asked for.
    pub fn wants_pvh(&self) -> bool {
        matches!(self.kind, Some(Kind::Pvh))
    }

    /// The name asked for.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    fn command_line(&self, words: &[String]) -> Result<String> {
        ensure!(
            self.vif.len() + self.xl_extra.len() > 0
                || (self.ip.is_none() && self.gateway.is_none()),
            "an address is for a network card, and there is none: add --vif bridge=xenbr0 (the \
             name of the host's bridge)"
        );
        let mut all = Vec::new();
        all.extend(self.ip.as_ref().map(|ip| format!("segue.ip={ip}")));
        all.extend(self.gateway.as_ref().map(|g| format!("segue.gateway={g}")));
        all.extend((!self.cmdline.is_empty()).then(|| self.cmdline.clone()));
        if !words.is_empty() {
            ensure!(
                !self.cmdline.split_whitespace().any(|word| word == "--"),
                "the app's arguments are in --cmdline and behind -- : put them in one place"
            );
            all.push("--".to_owned());
            for word in words {
                ensure!(
                    !word.is_empty()
                        && !word.contains(['"', '\''])
                        && !word.chars().any(|c| c.is_whitespace() || c.is_control()),
                    "the argument {word:?} cannot be on a domain's command line, which is split at \
                     white space and knows no quotes"
                );
                all.push(word.clone());
            }
        }
        Ok(all.join(" "))
    }
}

/// A network card in an xl configuration.
fn card(spec: &str) -> Result<String> {
    ensure!(
        !spec.is_empty()
            && !spec
                .chars()
                .any(|c| c.is_control() || "'\"\\[]".contains(c)),
        "--vif {spec:?}: a list like bridge=xenbr0,mac=00:16:3e:01:02:03 is meant"
    );
    // Without a type, an HVM domain gets an emulated card beside.
    Ok(
        match spec.split(',').any(|part| part.starts_with("type=")) {
            true => format!("'{spec}'"),
            false => format!("'type=vif,{spec}'"),
        },
    )
}

/// The type of domain that a file is for.
fn made_for(image: &Path) -> Result<DomainType> {
    use std::io::Read;
    let mut start = [0; 4];
    let file = std::fs::File::open(image).and_then(|mut file| file.read_exact(&mut start));
    file.with_context(|| image.display().to_string())?;
    Ok(match &start {
        b"\x7fELF" => DomainType::Pvh,
        _ => DomainType::Hvm,
    })
}

/// Set once Ctrl-C was pressed.
static STOP: AtomicBool = AtomicBool::new(false);
/// Set while someone looks at [`STOP`] and will clean up.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Has Ctrl-C end us in order.
pub fn watch_for_interrupts() -> Result<()> {
    ctrlc::set_handler(interrupted).context("cannot watch for Ctrl-C")
}

fn interrupted() {
    if !WATCHED.load(Ordering::Acquire) || STOP.swap(true, Ordering::AcqRel) {
        // Our children die with us: see segue_lab's module documentation.
        std::process::exit(130);
    }
}

/// From now on the caller looks at [`stopped`].
pub fn watch_stop() {
    WATCHED.store(true, Ordering::Release);
}

/// Whether Ctrl-C was pressed.
pub fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// The status of a command as ours.
pub fn exit_code(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(255))
}

/// Runs a domain and shows its console until it ends, or the time is up.
pub fn run_domain(
    config: LabConfig,
    domain: &DomainConfig,
    limit: Option<Duration>,
) -> Result<ExitCode> {
    let lab = Lab::connect(&config.with_domains_mib(domain.memory_mib.saturating_add(64)))?;
    watch_stop();
    let start = Instant::now();
    let domain = lab.host().create(domain)?;
    eprintln!(
        "segue: domain {} ({}) runs, {:.1} s after it was asked for",
        domain.name(),
        domain.domid(),
        start.elapsed().as_secs_f64()
    );
    show(&domain, limit)
}

/// Prints a domain's lines until it ends.
fn show(domain: &Domain, limit: Option<Duration>) -> Result<ExitCode> {
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
                "segue: domain {} ended: {reason}, after {seconds:.1} s",
                domain.name()
            );
            return Ok(if reason.is_clean() {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        if stopped() {
            eprintln!("segue: interrupted; domain {} is destroyed", domain.name());
            return Ok(ExitCode::from(130));
        }
        if limit.is_some_and(|limit| elapsed > limit) {
            eprintln!(
                "segue: domain {} still ran after {seconds:.1} s and is destroyed",
                domain.name()
            );
            return Ok(ExitCode::from(124));
        }
    }
}

/// An app's image by its path, or by the app's name where the build puts it.
pub fn find_image(given: &Path, pvh: bool) -> Result<PathBuf> {
    if given.is_file() {
        return Ok(given.to_owned());
    }
    let name = given.to_string_lossy();
    if !name.contains(['/', '.']) {
        let extension = if pvh { "elf" } else { "img" };
        let built = Path::new("target/images").join(format!("{name}.{extension}"));
        if built.is_file() {
            return Ok(built);
        }
        bail!(
            "no file {name} and no {}: segue build {name} makes it",
            built.display()
        );
    }
    bail!("{name}: no such file");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        domain: DomainOptions,
        #[arg(last = true)]
        words: Vec<String>,
    }

    fn domain(words: &[&str]) -> Result<DomainConfig> {
        let folder = tempfile::tempdir()?;
        let image = folder.path().join("a.elf");
        std::fs::write(&image, b"\x7fELF and more")?;
        let line = Line::try_parse_from([&["x"], words].concat())?;
        line.domain.domain(&image, &line.words)
    }

    #[test]
    fn options_become_a_domain() {
        let words = "--vcpus 2 --memory 96 --vif bridge=br0 --vif type=vif,bridge=br1 \
                     --ip 10.0.0.2/24 --gateway 10.0.0.1 --cmdline segue.log=debug --name web \
                     -- --threads 4";
        let words: Vec<&str> = words.split_whitespace().collect();
        let config = domain(&words).unwrap();
        assert_eq!(config.kind, DomainType::Pvh);
        assert_eq!((config.vcpus, config.memory_mib), (2, 96));
        assert_eq!(config.name, "web");
        assert_eq!(
            config.cmdline,
            "segue.ip=10.0.0.2/24 segue.gateway=10.0.0.1 segue.log=debug -- --threads 4"
        );
        assert_eq!(
            config.extra,
            ["vif=['type=vif,bridge=br0', 'type=vif,bridge=br1']"]
        );
    }

    #[test]
    fn what_xl_would_misread_is_refused() {
        for words in [
            &["--ip", "10.0.0.2/24"][..],
            &["--vif", "bridge=a','script=x"],
            &["--cmdline", "-- a", "--", "b"],
            &["--", "a\"b"],
            &["--", "a b"],
            &["--", ""],
        ] {
            assert!(domain(words).is_err(), "{words:?}");
        }
    }
}
