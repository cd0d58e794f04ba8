//! `segue upgrade`: a new image for a domain that runs.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use segue::upgrade::client::{Client, ClientError, Uploaded};
use segue::upgrade::protocol::{Answer, Command, Hello, Status};
use segue_kernel::image::{Bundle, Digest, Manifest, Policy, SigningKey};
use segue_lab::Forward;
use serde::Serialize;

use crate::boot_image;
use crate::output::outln;
use crate::remote::{
    self, ANSWER, EXIT_CODES, End, Failed, Key, LOOK, PAUSE, Reach, Switched, Target, failed,
};
use crate::status::ShownSwitch;

/// How long it may take from the begin of a switch until the new image answers.
const SWITCH: Duration = Duration::from_secs(60);
/// What is left of a probation to confirm in.
const MARGIN: Duration = Duration::from_secs(5);

/// Replace the image of a domain that runs, by the one in a bundle.
///
/// Uploads the bundle, has the domain switch, and looks whether the new image is healthy: it
/// answers, and `--healthy URL` does. Only then is it confirmed; without that the image before comes
/// back when the probation is over, and is asked back at once if the new one is not healthy.
#[derive(Debug, clap::Args)]
#[command(after_help = format!("\
Examples:
  segue upgrade --key ~/keys/operator 10.0.0.2 httpd-0.2.bundle
  segue upgrade --key ~/keys/operator --healthy http://10.0.0.2/ 10.0.0.2 httpd-0.2.bundle
  segue upgrade --key ~/keys/operator --via lab --healthy http://10.0.0.2/ \\
      10.0.0.2 httpd-0.2.bundle
  segue upgrade --key ~/keys/operator --xen-host root@xen1 10.0.0.2 target/images/httpd.bundle

The bundle is signed with a key that the running image trusts (segue sign), the commands with an
operator's key, which need not be the same.

{EXIT_CODES}"))]
pub struct Arguments {
    #[command(flatten)]
    key: Key,
    /// Confirm the new image only if this address (http://…) answers with a 2xx status. It is asked
    /// from here, or with --via from that host.
    #[arg(long, value_name = "URL")]
    healthy: Option<String>,
    /// How long it may take until it does.
    #[arg(long, value_name = "TIME", default_value = "20s")]
    healthy_timeout: humantime::Duration,
    /// How long the image before is kept.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    probation: humantime::Duration,
    /// The new image need not be confirmed: the one before comes back only if it crashes.
    #[arg(long)]
    no_confirm: bool,
    /// A statement that allows an older version (segue allow-downgrade).
    #[arg(long, value_name = "FILE")]
    downgrade: Option<PathBuf>,
    /// Also replace the image that the domain boots, on its Xen host, by ssh, once the new one is
    /// confirmed; `lab` is the laboratory's.
    #[arg(long, value_name = "USER@HOST")]
    xen_host: Option<String>,
    /// The image for that, if it is not beside the bundle: NAME.img (type hvm). A PVH domain boots
    /// what is in the bundle.
    #[arg(long, value_name = "FILE", requires = "xen_host")]
    boot_image: Option<PathBuf>,
    /// How long the upload may take, with all interruptions.
    #[arg(long, value_name = "TIME", default_value = "5min")]
    timeout: humantime::Duration,
    #[command(flatten)]
    reach: Reach,
    /// The bundle.
    bundle: PathBuf,
}

/// What happened.
#[derive(Debug)]
enum Outcome {
    /// The image runs already.
    Runs { generation: u64 },
    /// It runs now.
    Upgraded(Box<Upgraded>),
}

#[derive(Debug)]
struct Upgraded {
    from: u64,
    hello: Hello,
    /// Unless the domain does not tell it.
    status: Option<Status>,
    confirmed: Confirmed,
    boot_image: Option<String>,
    seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Confirmed {
    Yes,
    /// It was not to be.
    Unasked,
    /// There was no probation: the image before had not been kept.
    NoProbation,
}

/// The same as JSON.
#[derive(Default, Serialize)]
struct Shown<'a> {
    outcome: &'a str,
    error: Option<String>,
    image: Option<String>,
    build: Option<String>,
    from: Option<u64>,
    generation: Option<u64>,
    confirmed: Option<bool>,
    boot_image: Option<&'a str>,
    switch: Option<ShownSwitch>,
    seconds: Option<f64>,
}

/// Set while the domain may be about to switch: Ctrl-C is heeded, then, but not at once.
static SWITCHING: AtomicBool = AtomicBool::new(false);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn on_interrupt() {
    if !SWITCHING.load(Ordering::SeqCst) || INTERRUPTED.swap(true, Ordering::SeqCst) {
        std::process::exit(130);
    }
    eprintln!("segue: interrupted: the new image will not be confirmed");
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let result = Upgrade::new(arguments).and_then(|upgrade| {
        let outcome = upgrade.run()?;
        Ok((upgrade.host, upgrade.manifest, outcome))
    });
    match result {
        Ok((host, manifest, outcome)) => {
            match json {
                true => print_json(&manifest, &outcome)?,
                false => print(&host, &manifest, &outcome)?,
            }
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            if json {
                let end = error.downcast_ref::<Failed>().map_or(End::Error, |f| f.end);
                let shown = Shown {
                    outcome: end.word(),
                    error: Some(format!("{error:#}")),
                    ..Shown::default()
                };
                outln!("{}", serde_json::to_string_pretty(&shown)?)?;
            }
            Err(error)
        }
    }
}

fn image(manifest: &Manifest) -> String {
    format!("{} {}", manifest.name, manifest.version)
}

fn print_json(manifest: &Manifest, outcome: &Outcome) -> anyhow::Result<()> {
    let mut shown = Shown {
        image: Some(image(manifest)),
        build: Some(manifest.build.to_string()),
        ..Shown::default()
    };
    match outcome {
        Outcome::Runs { generation } => {
            shown.outcome = "runs";
            shown.generation = Some(*generation);
        }
        Outcome::Upgraded(upgraded) => {
            shown.outcome = "upgraded";
            shown.from = Some(upgraded.from);
            shown.generation = Some(upgraded.hello.generation);
            shown.confirmed = Some(upgraded.confirmed == Confirmed::Yes);
            shown.boot_image = upgraded.boot_image.as_deref();
            let status = upgraded.status.as_ref();
            shown.switch = status.and_then(|s| s.switch.as_ref()).map(ShownSwitch::new);
            shown.seconds = Some(upgraded.seconds);
        }
    }
    Ok(outln!("{}", serde_json::to_string_pretty(&shown)?)?)
}

fn print(host: &Target, manifest: &Manifest, outcome: &Outcome) -> anyhow::Result<()> {
    let image = image(manifest);
    let upgraded = match outcome {
        Outcome::Runs { generation } => {
            return Ok(outln!(
                "{host}: {image} runs already, as generation {generation}; nothing to do"
            )?);
        }
        Outcome::Upgraded(upgraded) => upgraded,
    };
    let generation = upgraded.hello.generation;
    outln!(
        "{host}: {image} runs, as generation {generation}, {:.1} s after the begin",
        upgraded.seconds
    )?;
    if let Some(switch) = upgraded.status.as_ref().and_then(|s| s.switch.as_ref()) {
        outln!("  {}", remote::describe(switch))?;
        outln!("  handed over: {}", remote::handed(switch))?;
    }
    match upgraded.confirmed {
        Confirmed::Yes => outln!("  healthy, and confirmed")?,
        Confirmed::NoProbation => outln!("  healthy; no way back had been kept")?,
        Confirmed::Unasked => {
            outln!("  healthy; until its probation is over: segue rollback {host}")?
        }
    }
    if let Some(path) = &upgraded.boot_image {
        outln!("  {path} is the new image, too: the domain boots it")?;
    }
    Ok(())
}

/// An upgrade that is to be.
struct Upgrade<'a> {
    arguments: &'a Arguments,
    host: Target,
    /// What `--healthy` says, as it is got from here, and the way there.
    healthy: Option<(String, Option<Forward>)>,
    key: SigningKey,
    bytes: Vec<u8>,
    digest: Digest,
    manifest: Manifest,
    downgrade: Option<Vec<u8>>,
}

impl<'a> Upgrade<'a> {
    /// Looks at all that can be looked at here.
    fn new(arguments: &'a Arguments) -> anyhow::Result<Self> {
        let path = &arguments.bundle;
        let name = || path.display().to_string();
        let bytes = std::fs::read(path).with_context(name)?;
        let bundle = Bundle::parse(&bytes).with_context(name)?;
        let manifest = bundle.verify(&Policy::OPEN).with_context(name)?.manifest;
        let read = |path: &PathBuf| std::fs::read(path).with_context(|| path.display().to_string());
        let downgrade = arguments.downgrade.as_ref().map(read).transpose()?;
        let (healthy, probation) = (*arguments.healthy_timeout, *arguments.probation);
        if arguments.healthy.is_some() && !arguments.no_confirm && healthy + MARGIN > probation {
            bail!(
                "--healthy-timeout has to be {} s shorter than --probation, or the image before \
                 would be back before the new one can be confirmed",
                MARGIN.as_secs()
            );
        }
        let host = arguments.reach.open()?;
        let url = arguments.healthy.as_ref();
        let healthy = url.map(|url| host.way_to(url).context("--healthy"));
        Ok(Self {
            arguments,
            key: arguments.key.read()?,
            host,
            healthy: healthy.transpose()?,
            digest: Digest::of(&[&bytes]),
            manifest,
            bytes,
            downgrade,
        })
    }

    fn run(&self) -> anyhow::Result<Outcome> {
        ctrlc::set_handler(on_interrupt).context("cannot watch for Ctrl-C")?;
        let start = Instant::now();
        let host = &self.host;
        // Before anything is changed there.
        let boot = match &self.arguments.xen_host {
            None => None,
            Some(xen_host) => {
                let client = host.connect(start + LOOK)?;
                Some(boot_image::find(
                    xen_host,
                    client.hello().domain,
                    &self.arguments.bundle,
                    self.arguments.boot_image.as_deref(),
                    &self.manifest.build,
                )?)
            }
        };
        let mut client = match self.upload(start + *self.arguments.timeout)? {
            Some(client) => client,
            None => {
                let generation = host.connect(Instant::now() + LOOK)?.hello().generation;
                if let Some(boot) = &boot {
                    boot.replace(&self.bytes)?;
                }
                return Ok(Outcome::Runs { generation });
            }
        };
        let before = client.hello().clone();
        let switch = Command::Switch {
            bundle: self.digest,
            probation_ms: u64::try_from(self.arguments.probation.as_millis())
                .context("--probation is too long")?,
            must_confirm: !self.arguments.no_confirm,
            downgrade: self.statement()?,
        };
        SWITCHING.store(true, Ordering::SeqCst);
        match client.command(switch, &self.key) {
            Ok(Answer::Switching) => {}
            Ok(_) => return Err(host.wrong(ClientError::Garbled)),
            Err(error) => return Err(host.wrong(error)),
        }
        // If the new image never answers, the one before does in the end.
        let limit = SWITCH + *self.arguments.probation;
        let client = match remote::wait_for_switch(host, client, limit)? {
            Switched::Gone(client) => client,
            Switched::Stays(stays) => return Err(host.stays(&stays)),
            Switched::Silent => {
                return Err(failed(
                    End::Unreachable,
                    format!(
                        "{host}: nobody answers since the switch began, {} s ago; nothing was \
                         confirmed{}; look at its console (xl console)",
                        limit.as_secs(),
                        self.then()
                    ),
                ));
            }
        };
        let (hello, status) = self.settle(&before, client)?;
        let confirmed = match self.arguments.no_confirm {
            true => Confirmed::Unasked,
            false => self.confirm(&hello)?,
        };
        let boot_image = match boot {
            Some(boot) => Some(boot.replace(&self.bytes).with_context(|| {
                format!("{host}: the new image runs, but the domain still boots the old one")
            })?),
            None => None,
        };
        Ok(Outcome::Upgraded(Box::new(Upgraded {
            from: before.generation,
            hello,
            status,
            confirmed,
            boot_image,
            seconds: start.elapsed().as_secs_f64(),
        })))
    }

    fn statement(&self) -> anyhow::Result<Option<segue::upgrade::protocol::StatementBytes>> {
        match &self.downgrade {
            None => Ok(None),
            Some(bytes) => {
                let bytes = bytes.as_slice().try_into().ok();
                Ok(Some(bytes.context("--downgrade: that is no statement")?))
            }
        }
    }

    /// What happens if nobody does anything.
    fn then(&self) -> String {
        match self.arguments.no_confirm {
            true => String::new(),
            false => format!(
                "; the image before comes back {} after the switch",
                self.arguments.probation
            ),
        }
    }

    /// Uploads the bundle, over as many connections as it takes. `None` if it runs already.
    fn upload(&self, deadline: Instant) -> anyhow::Result<Option<Client>> {
        let host = &self.host;
        let len = self.bytes.len() as u64;
        let bar = ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr());
        let style = "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}";
        bar.set_style(ProgressStyle::with_template(style)?.progress_chars("=> "));
        bar.set_prefix("upload");
        let mut look = Instant::now() + LOOK;
        loop {
            let mut client = host.connect(look)?;
            if client.hello().build == self.manifest.build {
                bar.finish_and_clear();
                return Ok(None);
            }
            let statement = self.downgrade.as_deref();
            let mut progress = |there| bar.set_position(there);
            match client.upload(&self.bytes, statement, &self.key, &mut progress) {
                Ok(Uploaded::Complete) => {
                    bar.finish_and_clear();
                    return Ok(Some(client));
                }
                Ok(Uploaded::Runs) => {
                    bar.finish_and_clear();
                    return Ok(None);
                }
                Err(ClientError::Connection(error)) if Instant::now() < deadline => {
                    bar.println(format!("segue: {error}; going on where it was"));
                    look = deadline;
                    thread::sleep(PAUSE);
                }
                Err(error) => {
                    bar.finish_and_clear();
                    return Err(host.wrong(error));
                }
            }
        }
    }

    /// Another generation answers: is it the new image, and is it healthy?
    fn settle(
        &self,
        before: &Hello,
        mut client: Client,
    ) -> anyhow::Result<(Hello, Option<Status>)> {
        let host = &self.host;
        let hello = client.hello().clone();
        self.expect(before, &hello)?;
        let status = remote::status(host, &mut client)?;
        // An operator's connections may live, but not for ever.
        drop(client);
        let healthy = match &self.healthy {
            None => Ok(()),
            Some((url, _)) => self.wait_healthy(before, url)?,
        };
        let interrupted = INTERRUPTED.load(Ordering::SeqCst);
        let why = match healthy {
            _ if interrupted => "interrupted".to_owned(),
            Ok(()) => return Ok((hello, status)),
            Err(why) => why,
        };
        let back = host.connect(Instant::now() + LOOK).and_then(|client| {
            self.expect(before, client.hello())?;
            remote::roll_back(host, client, &self.key, SWITCH)
        });
        Err(match back {
            Ok(client) => failed(
                End::RolledBack,
                format!(
                    "{host}: {why}: the image before is back, as generation {}",
                    client.hello().generation
                ),
            ),
            Err(error) => failed(
                End::RolledBack,
                format!(
                    "{host}: {why}; it was not confirmed, and could not be asked back: {error:#}{}",
                    self.then()
                ),
            ),
        })
    }

    /// Whether the image that answers is the one that was sent.
    fn expect(&self, before: &Hello, hello: &Hello) -> anyhow::Result<()> {
        let host = &self.host;
        let generation = hello.generation;
        if hello.domain != before.domain {
            return Err(failed(
                End::Error,
                format!("{host}: another domain answers there now"),
            ));
        }
        if hello.build == self.manifest.build {
            return Ok(());
        }
        if hello.build == before.build && generation > before.generation {
            return Err(failed(
                End::RolledBack,
                format!(
                    "{host}: the new image ended after its commit, and the one before is back, as \
                     generation {generation}: segue status {host} says why"
                ),
            ));
        }
        Err(failed(
            End::Error,
            format!(
                "{host}: generation {generation} runs build {}, which is neither image: somebody \
                 else has upgraded it, or the domain was rebooted",
                hello.build
            ),
        ))
    }

    /// Waits until the address answers well. The inner error is why it does not.
    fn wait_healthy(&self, before: &Hello, url: &str) -> anyhow::Result<Result<(), String>> {
        let host = &self.host;
        let timeout = *self.arguments.healthy_timeout;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let agent: ureq::Agent = ureq::Agent::config_builder()
                .timeout_global(Some(left.clamp(PAUSE, ANSWER)))
                .max_redirects(0)
                .http_status_as_error(false)
                .build()
                .into();
            let why = match agent.get(url).call() {
                Ok(response) if response.status().is_success() => return Ok(Ok(())),
                Ok(response) => format!("status {}", response.status()),
                Err(error) => error.to_string(),
            };
            if INTERRUPTED.load(Ordering::SeqCst) {
                return Ok(Err("interrupted".into()));
            }
            if Instant::now() + PAUSE > deadline {
                return Ok(Err(format!(
                    "the new image is not healthy: {} does not answer well within {}: {why}",
                    self.arguments.healthy.as_deref().unwrap_or(url),
                    self.arguments.healthy_timeout
                )));
            }
            // It may be back at the image before.
            if let Ok(client) = host.try_connect(ANSWER) {
                self.expect(before, client.hello())?;
            }
            thread::sleep(PAUSE);
        }
    }

    fn confirm(&self, hello: &Hello) -> anyhow::Result<Confirmed> {
        let host = &self.host;
        let deadline = Instant::now() + MARGIN;
        loop {
            let mut client = host.connect(deadline)?;
            self.expect(hello, client.hello())?;
            let build = hello.build;
            match client.command(Command::Confirm { build }, &self.key) {
                Ok(Answer::Confirmed { ended: true, .. }) => return Ok(Confirmed::Yes),
                Ok(Answer::Confirmed { .. }) => return Ok(Confirmed::NoProbation),
                Ok(_) => return Err(host.wrong(ClientError::Garbled)),
                Err(ClientError::Connection(_)) if Instant::now() < deadline => {}
                Err(error) => return Err(host.wrong(error)),
            }
        }
    }
}

/// The image that a bundle's domain of type hvm boots, if nothing else is said: beside the bundle.
pub fn beside(bundle: &Path) -> PathBuf {
    bundle.with_extension("img")
}
