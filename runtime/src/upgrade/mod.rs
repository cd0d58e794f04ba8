//! The upgrade service: takes a new image over the network, from operators only.
//!
//! It is there if an app asks for it, and not otherwise:
//!
//! ```no_run,ignore-linux
//! use segue::upgrade::Config;
//!
//! let mut before = segue::handover();
//! // Their keys are in /etc/segue/operators.pub, which is in the image.
//! let config = Config::new("0.0.0.0:7433".parse()?).image_operators()?;
//! segue::upgrade::listen(config, before.as_mut())?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `segue upgrade`, `status`, `confirm` and `rollback` talk to it (`client.rs`), in a protocol of
//! its own (`protocol.rs`). What it stands is said in `server.rs`; SECURITY.md says against whom.

pub mod client;
#[cfg(target_os = "hermit")]
mod domain;
mod keys;
pub mod protocol;
mod server;
#[cfg(test)]
mod tests;
pub mod wire;

pub use keys::{KeysError, parse_keys};
pub use server::{Domain, How};

use crate::handover::{Incoming, TakeError};
#[cfg(any(test, target_os = "hermit"))]
use crate::handover::{Outgoing, PutError};
use crate::kernel::image::PublicKey;
use server::{Carried, Limits, Shared};
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// The file of operators' public keys in an image, one or several `.pub` files as `segue keygen` writes
/// them.
pub const OPERATORS: &str = "/etc/segue/operators.pub";

/// What the service in the next image takes over.
const CARRIED: &str = "segue.upgrade";
const LISTENER: &str = "segue.upgrade.listener";
const ASKER: &str = "segue.upgrade.asker";

/// How the service is to be.
#[derive(Clone, Debug)]
pub struct Config {
    address: SocketAddr,
    limits: Limits,
}

impl Config {
    /// On this address and port ([`protocol::PORT`] is where `segue` looks), without an operator.
    #[must_use]
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            limits: Limits {
                operators: Vec::new(),
                open: false,
                status: true,
                connections: 8,
                max_bundle: 4 << 20,
                min_rate: 8 << 10,
                first_command: Duration::from_secs(10),
                upload: Duration::from_secs(600),
                burst: 8,
                every: Duration::from_secs(10),
            },
        }
    }

    /// With one more operator, by the 32 bytes of his public key.
    #[must_use]
    pub fn operator(mut self, key: PublicKey) -> Self {
        self.limits.operators.push(key);
        self
    }

    /// With the operators whose public keys are in a text: one or several `.pub` files as `segue
    /// keygen` writes them.
    ///
    /// # Errors
    /// There is something else in it.
    pub fn operators(mut self, text: &str) -> Result<Self, KeysError> {
        self.limits.operators.extend(parse_keys(text)?);
        Ok(self)
    }

    /// With the operators that the image says, or a ramdisk that lies over it: in [`OPERATORS`]. Without
    /// such a file, with those there are already.
    ///
    /// # Errors
    /// There is something else in it.
    pub fn image_operators(self) -> Result<Self, KeysError> {
        match std::fs::read_to_string(OPERATORS) {
            Ok(text) => self.operators(&text),
            Err(_) => Ok(self),
        }
    }

    /// Without operators: **whoever can connect can replace the image**, if it is open as well, or
    /// by any bundle that it takes. For laboratories; the console says so.
    #[must_use]
    pub fn unsafe_open(mut self) -> Self {
        self.limits.open = true;
        self
    }

    /// Tells nobody the status but who has signed a command.
    #[must_use]
    pub fn hide_status(mut self) -> Self {
        self.limits.status = false;
        self
    }

    /// Longest bundle, in bytes (4 MiB): so much memory is reserved.
    #[must_use]
    pub fn max_bundle(mut self, bytes: usize) -> Self {
        self.limits.max_bundle = bytes;
        self
    }

    /// Most connections (8): so many threads are started.
    #[must_use]
    pub fn connections(mut self, most: usize) -> Self {
        self.limits.connections = most;
        self
    }

    /// How long a connection may take until its first signed command (10 s).
    #[must_use]
    pub fn first_command(mut self, limit: Duration) -> Self {
        self.limits.first_command = limit;
        self
    }

    /// Bytes a second that an upload has to come at (8 KiB), after its first seconds.
    #[must_use]
    pub fn min_rate(mut self, bytes: u64) -> Self {
        self.limits.min_rate = bytes;
        self
    }

    /// How long an upload may take altogether (10 min), with all its interruptions.
    #[must_use]
    pub fn upload_limit(mut self, limit: Duration) -> Self {
        self.limits.upload = limit;
        self
    }

    /// Lets `burst` switches through at once (8), and after that one each `every` (10 s).
    #[must_use]
    pub fn switches(mut self, burst: u32, every: Duration) -> Self {
        self.limits.burst = burst;
        self.limits.every = every;
        self
    }
}

/// Why there is no service.
#[derive(Debug)]
pub enum ListenError {
    /// There is no operator, and nothing says that there need not be.
    NoOperators,
    /// A key that nobody can sign with.
    Key(PublicKey),
    /// On trial: it can begin after the commit.
    OnTrial,
    /// The address can't be had, or memory or threads.
    Io(io::Error),
    /// What the service in the image before handed over can't be taken.
    Carried(TakeError),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoOperators => f.write_str(
                "the upgrade service needs an operator's public key (segue keygen makes one; it \
                 belongs to /etc/segue/operators.pub in the image)",
            ),
            Self::Key(key) => write!(f, "key {} is none that anybody can sign with", key.id()),
            Self::OnTrial => f.write_str("the upgrade service can't begin on trial: commit first"),
            Self::Io(error) => write!(f, "the upgrade service can't begin: {error}"),
            Self::Carried(error) => write!(f, "the upgrade service can't go on: {error}"),
        }
    }
}

impl std::error::Error for ListenError {}

/// Starts the service in threads of its own. `before` is what [`handover`](crate::handover())
/// gives: the service in the image before hands something over to this one.
///
/// # Errors
/// See [`ListenError`].
#[cfg(target_os = "hermit")]
pub fn listen(config: Config, before: Option<&mut Incoming>) -> Result<(), ListenError> {
    if crate::on_trial() {
        return Err(ListenError::OnTrial);
    }
    let values = before.as_ref().map_or(0, |incoming| incoming.values());
    let domain = domain::Running::new(values).map_err(ListenError::Io)?;
    let max = config.limits.max_bundle;
    let (open, operators) = (config.limits.open, config.limits.operators.len());
    let service = serve(domain, config, before)?;
    let address = service.address();
    crate::on_replace(move |next| {
        service.hand_over(next)?;
        Ok(())
    });
    println!("segue: upgrade listen={address} operators={operators} max_bundle={max}");
    if open {
        println!(
            "segue: upgrade open operators=0 warning=\"whoever connects can replace this image: unsafe_open\""
        );
    }
    Ok(())
}

/// A service that runs.
#[derive(Debug)]
pub struct Service<D>(Arc<Shared<D>>);

impl<D: Domain> Service<D> {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.address()
    }

    /// Says what the service in the next image goes on with.
    #[cfg(any(test, target_os = "hermit"))]
    fn hand_over(&self, next: &mut Outgoing) -> Result<(), PutError> {
        next.put(CARRIED, &self.0.carried())?;
        let (listener, asker) = self.0.sockets();
        // Those that can't go along are made anew there.
        let _ = next.put_socket(LISTENER, listener);
        if let Some(asker) = asker {
            let _ = next.put_socket(ASKER, &*asker);
        }
        Ok(())
    }
}

/// As `listen`, for something else than a domain: so tests can have a service on a host.
///
/// # Errors
/// See [`ListenError`].
pub fn serve<D: Domain>(
    domain: D,
    config: Config,
    before: Option<&mut Incoming>,
) -> Result<Service<D>, ListenError> {
    let Config { address, limits } = config;
    if limits.operators.is_empty() && !limits.open {
        return Err(ListenError::NoOperators);
    }
    if let Some(key) = limits.operators.iter().find(|key| !key.is_sound()) {
        return Err(ListenError::Key(*key));
    }
    let (mut carried, mut listener, mut asker) = (None, None, None);
    if let Some(before) = before {
        carried = match before.take::<Carried>(CARRIED) {
            Ok(carried) => Some(carried),
            Err(TakeError::Missing { .. }) => None,
            Err(error) => return Err(ListenError::Carried(error)),
        };
        listener = before.take_socket::<TcpListener>(LISTENER).ok();
        asker = before.take_socket::<TcpStream>(ASKER).ok();
    }
    // The new image may be told another address.
    let is_there = |listener: &TcpListener| listener.local_addr().is_ok_and(|a| a == address);
    let listener = match listener.filter(is_there) {
        Some(listener) => listener,
        None => TcpListener::bind(address).map_err(ListenError::Io)?,
    };
    let shared = Shared::start(domain, limits, carried, listener, asker);
    shared.map(Service).map_err(ListenError::Io)
}
