//! Domains with an upgrade service, over the network: what the commands that talk to them share.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use segue::upgrade::client::{Client, ClientError};
use segue::upgrade::protocol::{Answer, Command, PORT, Refused, Status, Stays, Switch};
use segue_image::keys;
use segue_kernel::image::{PublicKey, SigningKey};
use segue_lab::{Forward, Lab};

use crate::host::HostOption;

/// What the exit codes of these commands mean; for their help.
pub const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something on this side is wrong
  2  the command line is wrong
  3  the domain refused; nothing has changed there
  4  the new image gave up on trial; the old one runs on
  5  the new image was given up after its commit; the old one runs again
  6  nobody answers there";

/// How it ended, where that was not well; and what to do next.
#[derive(Debug)]
pub struct Failed {
    pub end: End,
    pub message: String,
}

/// Why it did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Error = 1,
    Refused = 3,
    Resumed = 4,
    RolledBack = 5,
    Unreachable = 6,
}

impl End {
    /// For `--json`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Refused => "refused",
            Self::Resumed => "resumed",
            Self::RolledBack => "rolled-back",
            Self::Unreachable => "unreachable",
        }
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failed {}

/// An error of this kind.
pub fn failed(end: End, message: impl Into<String>) -> anyhow::Error {
    let message = message.into();
    Failed { end, message }.into()
}

/// Where a domain is: `HOST` or `HOST:PORT`.
#[derive(Clone, Debug)]
pub struct Target {
    text: String,
    host: String,
    port: u16,
    /// What leads there; nothing if it is a host of its own.
    through: Option<Arc<(Forward, Lab)>>,
}

/// Which domain, and the way to it.
#[derive(Debug, clap::Args)]
pub struct Reach {
    /// Reach the domain through its Xen host, by ssh; `lab` is the laboratory's, whose domains are
    /// reachable from there only.
    #[arg(long, value_name = "USER@HOST")]
    via: Option<String>,
    /// The domain: HOST or HOST:PORT.
    host: Target,
}

impl Reach {
    /// Opens the way.
    pub fn open(&self) -> anyhow::Result<Target> {
        let mut target = self.host.clone();
        if let Some(via) = &self.via {
            let lab = HostOption::named(via).lasting()?;
            let forward = lab.host().forward(&target.host, target.port)?;
            target.host = Ipv4Addr::LOCALHOST.to_string();
            target.port = forward.port();
            target.through = Some(Arc::new((forward, lab)));
        }
        Ok(target)
    }
}

impl Target {
    /// Where a URL is got from here, and what leads there: through the Xen host, if that is the way
    /// to the domain.
    pub fn way_to(&self, url: &str) -> anyhow::Result<(String, Option<Forward>)> {
        let wrong = || format!("{url}: that is no http:// address");
        let uri: ureq::http::Uri = url.parse().with_context(wrong)?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("http"));
        let host = host.with_context(wrong)?;
        let Some(through) = &self.through else {
            return Ok((url.to_owned(), None));
        };
        let forward = through
            .1
            .host()
            .forward(host, uri.port_u16().unwrap_or(80))?;
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let here = format!("http://{}:{}{path}", Ipv4Addr::LOCALHOST, forward.port());
        Ok((here, Some(forward)))
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let make = |host: &str, port| Self {
            text: text.into(),
            host: host.into(),
            port,
            through: None,
        };
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(make(&address.to_string(), PORT));
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(make(&address.ip().to_string(), address.port()));
        }
        let (host, port) = match text.rsplit_once(':') {
            None => (text, PORT),
            Some((host, port)) => (host, port.parse().map_err(|_| "no such port")?),
        };
        if host.is_empty() || host.contains([':', '/']) {
            return Err("it is HOST or HOST:PORT".into());
        }
        Ok(make(host, port))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Target {
    /// Tries once.
    pub fn try_connect(&self, limit: Duration) -> Result<Client, ClientError> {
        let io = |error| ClientError::Connection(segue::upgrade::wire::WireError::Io(error));
        let addresses = (self.host.as_str(), self.port).to_socket_addrs();
        let mut last = io(std::io::ErrorKind::NotFound.into());
        for address in addresses.map_err(io)? {
            match Client::connect(address, limit) {
                Err(error @ ClientError::Connection(_)) => last = error,
                result => return result,
            }
        }
        Err(last)
    }

    /// Tries until `deadline`.
    pub fn connect(&self, deadline: Instant) -> anyhow::Result<Client> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.try_connect(left.clamp(TRY, ANSWER)) {
                Ok(client) => return Ok(client),
                Err(ClientError::Connection(error)) if Instant::now() + PAUSE > deadline => {
                    return Err(failed(
                        End::Unreachable,
                        format!(
                            "{self}: nobody answers on port {}: {error}; does the domain run, with \
                             an image that calls segue::upgrade::listen?",
                            self.port
                        ),
                    ));
                }
                Err(ClientError::Connection(_)) => thread::sleep(PAUSE),
                Err(error) => return Err(self.wrong(error)),
            }
        }
    }

    /// An error in what was said, by its kind.
    pub fn wrong(&self, error: ClientError) -> anyhow::Error {
        match error {
            ClientError::Refused(refused) => self.refused(&refused),
            ClientError::Garbled => failed(End::Error, format!("{self}: {error}")),
            ClientError::Connection(error) => failed(
                End::Unreachable,
                format!("{self}: the connection is lost: {error}; try again"),
            ),
        }
    }

    /// The domain has refused.
    pub fn refused(&self, refused: &Refused) -> anyhow::Error {
        let nobody = PublicKey::of(&nobodys_key()).id();
        let text = match refused {
            Refused::Signature { key, .. } if *key == nobody => {
                format!("{self}: an operator has to sign that: give your key with --key FILE")
            }
            refused => clean(&format!("{self}: {refused}")),
        };
        failed(End::Refused, text)
    }
}

/// How long one try may take at least.
const TRY: Duration = Duration::from_millis(500);
/// How long an answer may take.
pub const ANSWER: Duration = Duration::from_secs(20);
/// Between two tries.
pub const PAUSE: Duration = Duration::from_millis(250);
/// How long the connection that asked for a switch is waited for before another is tried.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long a domain is looked for at first.
pub const LOOK: Duration = Duration::from_secs(5);

/// The operator's key.
#[derive(Debug, clap::Args)]
pub struct Key {
    /// Your private key, as `segue keygen` writes it; the image has its public half.
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
}

impl Key {
    /// Reads it. Without one a command is signed with a key that everybody has: a laboratory's
    /// domain does not look at it.
    pub fn read(&self) -> anyhow::Result<SigningKey> {
        match &self.key {
            Some(path) => keys::read_private(path).context("no command was signed"),
            None => Ok(nobodys_key()),
        }
    }
}

/// A key that everybody has.
fn nobodys_key() -> SigningKey {
    SigningKey::from_bytes(&[0; 32])
}

/// How a domain is; `None` if it tells nobody.
pub fn status(target: &Target, client: &mut Client) -> anyhow::Result<Option<Status>> {
    match client.status() {
        Ok(status) => Ok(Some(status)),
        Err(ClientError::Refused(Refused::NoStatus)) => Ok(None),
        Err(error) => Err(target.wrong(error)),
    }
}

/// What became of a switch that has begun.
pub enum Switched {
    /// Another generation answers.
    Gone(Client),
    /// This one goes on.
    Stays(Stays),
    /// Nobody has answered in time.
    Silent,
}

/// Waits until a switch that `old` has begun is over: until another generation answers, or the same
/// says why it stays.
pub fn wait_for_switch(target: &Target, old: Client, limit: Duration) -> anyhow::Result<Switched> {
    let from = old.hello().generation;
    let deadline = Instant::now() + limit;
    let patience = Instant::now() + PATIENCE;
    let mut old = Some(old);
    while Instant::now() < deadline {
        match old.take() {
            None => thread::sleep(PAUSE),
            Some(mut client) => match client.poll(PAUSE) {
                Ok(None) => old = Some(client),
                Ok(Some(Answer::Stays(stays))) => return Ok(Switched::Stays(stays)),
                // The new image goes on with it.
                Ok(Some(Answer::Hello(_))) => return Ok(Switched::Gone(client)),
                // It is over with this connection: its image may be gone.
                Ok(Some(_)) | Err(_) => {}
            },
        }
        if old.is_some() && Instant::now() < patience {
            continue;
        }
        if let Ok(client) = target.try_connect(Duration::from_secs(3))
            && client.hello().generation != from
        {
            return Ok(Switched::Gone(client));
        }
    }
    Ok(Switched::Silent)
}

/// Asks for the image before, and waits until it is back.
pub fn roll_back(
    target: &Target,
    mut client: Client,
    key: &SigningKey,
    limit: Duration,
) -> anyhow::Result<Client> {
    let build = client.hello().build;
    let answer = client.command(Command::RollBack { build }, key);
    match answer.map_err(|error| target.wrong(error))? {
        Answer::Switching => {}
        _ => return Err(target.wrong(ClientError::Garbled)),
    }
    match wait_for_switch(target, client, limit)? {
        Switched::Gone(client) => Ok(client),
        Switched::Stays(stays) => Err(target.stays(&stays)),
        Switched::Silent => Err(failed(
            End::Unreachable,
            format!("{target}: nobody answers since the rollback began; look at its console"),
        )),
    }
}

impl Target {
    /// The image stays, and that was not the wish.
    pub fn stays(&self, stays: &Stays) -> anyhow::Error {
        match stays {
            Stays::Refused { why } => failed(
                End::Refused,
                format!("{self}: {}; nothing has changed there", clean(why)),
            ),
            Stays::Resumed { why, console } => {
                let mut text = format!(
                    "{self}: the new image gave up on trial, and the old one runs on: {}",
                    clean(why)
                );
                for line in console.lines() {
                    text.push_str("\n  it printed: ");
                    text.push_str(&clean(line));
                }
                failed(End::Resumed, text)
            }
        }
    }
}

/// Text from elsewhere, without what moves a terminal's cursor.
pub fn clean(text: &str) -> String {
    let shown = |c: char| match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    text.chars().map(shown).collect()
}

/// The figures of a switch, for people.
pub fn describe(switch: &Switch) -> String {
    let parts: Vec<_> = switch
        .parts
        .iter()
        .map(|(name, us)| format!("{} {us}", clean(name)))
        .collect();
    let mut text = format!("blackout {} µs", switch.blackout_us);
    if !parts.is_empty() {
        text.push_str(&format!(" ({})", parts.join(", ")));
    }
    if switch.before_us > 0 {
        let ms = switch.before_us.div_ceil(1000);
        text.push_str(&format!(", {ms} ms before it while everybody ran"));
    }
    text
}

/// What was handed over, for people.
pub fn handed(switch: &Switch) -> String {
    let all: Vec<_> = switch
        .handed
        .iter()
        .map(|(name, count)| format!("{count} {}", clean(name)))
        .collect();
    match all.is_empty() {
        true => "nothing".into(),
        false => all.join(", "),
    }
}

/// A time, for people: in whole seconds.
pub fn time(ms: u64) -> String {
    humantime::format_duration(Duration::from_secs(ms / 1000)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read() {
        for (text, host, port) in [
            ("10.0.0.2", "10.0.0.2", PORT),
            ("10.0.0.2:80", "10.0.0.2", 80),
            ("fd00::2", "fd00::2", PORT),
            ("[fd00::2]:80", "fd00::2", 80),
            ("web.example", "web.example", PORT),
            ("web.example:80", "web.example", 80),
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!((target.host.as_str(), target.port), (host, port));
            assert_eq!(target.to_string(), text);
        }
        for bad in ["", ":80", "a:b", "http://a", "a:70000", "a:1:2"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn text_from_elsewhere_moves_no_cursor() {
        assert_eq!(clean("a\x1b[2Jb\r\n"), "a\u{fffd}[2Jb\u{fffd}\u{fffd}");
    }
}
