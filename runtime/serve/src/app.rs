//! What programs around servers have in common: their options, what becomes of errors, the end of
//! the domain, and replacing themselves on demand, for tests.

use crate::{Config, Server, Service};
use segue::handover::Incoming;
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// What all of them understand.
pub const USAGE: &str = "--listen ADDRESS:PORT, --threads N, --replace-every MS, --until GENERATION, \
     --upgrade ADDRESS:PORT, --operator-key KEY";

/// What the command line says.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--listen`.
    pub listen: SocketAddr,
    /// Of the server; `--threads`.
    pub config: Config,
    /// `--until`: no switch from this generation on.
    pub until: Option<u64>,
    /// `--replace-every`.
    pub replace_every: Option<Duration>,
    /// `--upgrade`: where the upgrade service is.
    pub upgrade: Option<SocketAddr>,
    /// `--operator-key`: the public key of its operator, in place of those in
    /// `/etc/segue/operators.pub`.
    pub operator: Option<String>,
}

/// The value of an option.
///
/// # Errors
/// When it is no `what`.
pub fn value<T: std::str::FromStr>(option: &str, value: &str, what: &str) -> Result<T, String> {
    let parsed = value.parse();
    parsed.map_err(|_| format!("{option}: '{value}' is no {what}"))
}

impl Options {
    /// Reads the command line. `other` is given the options of the program's own, with their
    /// values, and says whether there is such a one; `usage` says which there are.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(
        listen: SocketAddr,
        usage: &str,
        mut other: impl FnMut(&str, &str) -> Result<bool, String>,
    ) -> Result<Self, String> {
        let mut options = Self {
            listen,
            config: Config::default(),
            until: None,
            replace_every: None,
            upgrade: None,
            operator: None,
        };
        let mut words = std::env::args().skip(1);
        while let Some(option) = words.next() {
            let Some(word) = words.next() else {
                return Err(format!("{option} needs a value"));
            };
            match &option[..] {
                "--listen" => options.listen = value(&option, &word, "ADDRESS:PORT")?,
                "--threads" => options.config.threads = value(&option, &word, "number")?,
                "--until" => options.until = Some(value(&option, &word, "number")?),
                "--replace-every" => {
                    let ms = value(&option, &word, "number of ms")?;
                    options.replace_every = Some(Duration::from_millis(ms));
                }
                "--upgrade" => {
                    options.upgrade = Some(value(&option, &word, "ADDRESS:PORT")?);
                }
                "--operator-key" => options.operator = Some(word),
                _ if other(&option, &word)? => {}
                _ => {
                    return Err(format!("unknown option {option}; there are {usage}{USAGE}"));
                }
            }
        }
        Ok(options)
    }

    /// Whether this image is one that still replaces itself.
    #[must_use]
    pub fn replaces(&self) -> bool {
        self.until
            .is_none_or(|until| platform::generation() < until)
    }

    /// Starts what `--replace-every` asks for: after that time, and again if that fails, the image
    /// is replaced by a bundle it was started with; each generation and each failure takes the next
    /// one, from the start after the last.
    ///
    /// # Errors
    /// When there is no memory for a thread.
    pub fn start_replacing(&self, name: &'static str) -> Result<(), String> {
        let Some(every) = self.replace_every.filter(|_| self.replaces()) else {
            return Ok(());
        };
        in_thread("replace", move || {
            for failures in 0.. {
                thread::sleep(every);
                replace(name, failures);
            }
        })
    }
}

impl Options {
    /// Has the upgrade service, if `--upgrade` says so. After the commit, and before `before` is
    /// dropped.
    ///
    /// # Errors
    /// When it can't be had.
    pub fn have_upgrades(&self, before: Option<&mut Incoming>) -> Result<(), String> {
        let Some(address) = self.upgrade else {
            return Ok(());
        };
        platform::have_upgrades(address, self.operator.as_deref(), before)
    }
}

/// Runs `f` in a thread of this name.
///
/// # Errors
/// When there is no memory for it.
pub fn in_thread(name: &str, f: impl FnOnce() + Send + 'static) -> Result<(), String> {
    let thread = thread::Builder::new().name(name.into()).spawn(f);
    thread.map(drop).map_err(|e| format!("{name}: {e}"))
}

/// Replaces the image by one of the bundles it was started with, and says so if that fails. The
/// first image takes the first of them, each later one the next; `failures` are passed over.
pub fn replace(name: &str, failures: u64) {
    platform::replace(name, failures);
}

/// Ends `main`: says what went wrong. On trial the image before goes on, and is told why.
#[must_use]
pub fn exit(name: &str, result: Result<(), String>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("{name}: {error}");
    platform::refuse(&error);
    ExitCode::FAILURE
}

/// What is wanted of the image before is taken: the trial is over.
pub fn commit() {
    platform::commit();
}

/// The listener of the image before, or a new one.
///
/// # Errors
/// When the address can't be bound.
pub fn listener(
    before: Option<TcpListener>,
    address: SocketAddr,
) -> Result<Arc<TcpListener>, String> {
    let listener = before.map_or_else(|| TcpListener::bind(address), Ok);
    let listener = listener.map_err(|error| format!("{address}: {error}"))?;
    Ok(Arc::new(listener))
}

/// When the domain is asked to end, the server answers what was asked before.
///
/// # Errors
/// When there is no memory for a thread.
pub fn drain_at_the_end<S: Service>(server: &Server<S>) -> Result<(), String> {
    let server = server.clone();
    at_the_end(move || server.drain())
}

/// Calls `f` when the domain is asked to end.
///
/// # Errors
/// When there is no memory for a thread.
pub fn at_the_end(f: impl FnOnce() + Send + 'static) -> Result<(), String> {
    platform::at_the_end(f)
}

#[cfg(target_os = "hermit")]
mod platform {
    use super::{Incoming, SocketAddr};
    use segue::upgrade::Config;
    pub use segue::{commit, generation};

    pub fn have_upgrades(
        address: SocketAddr,
        operator: Option<&str>,
        before: Option<&mut Incoming>,
    ) -> Result<(), String> {
        let config = Config::new(address);
        let config = match operator {
            Some(key) => config.operators(key),
            None => config.image_operators(),
        };
        let config = config.map_err(|error| error.to_string())?;
        segue::upgrade::listen(config, before).map_err(|error| error.to_string())
    }

    pub fn refuse(why: &str) {
        if segue::on_trial() {
            segue::refuse(why);
        }
    }

    pub fn replace(name: &str, failures: u64) {
        let bundles = segue::bundles().count();
        let turn = (generation() - 1).wrapping_add(failures);
        let next = usize::try_from(turn)
            .ok()
            .and_then(|turn| turn.checked_rem(bundles));
        let Some(bundle) = next.and_then(|next| segue::bundles().nth(next)) else {
            return println!("{name}: it came with no bundle");
        };
        let error = segue::replace_image(bundle).unwrap_err();
        println!("{name}: stays: {error}");
    }

    pub fn at_the_end(f: impl FnOnce() + Send + 'static) -> Result<(), String> {
        segue::shutdown::on_request(|_| f()).map_err(|error| error.to_string())
    }
}

/// On a host, for trying out.
#[cfg(not(target_os = "hermit"))]
mod platform {
    pub const fn commit() {}

    pub const fn generation() -> u64 {
        1
    }

    pub const fn refuse(_: &str) {}

    pub fn have_upgrades(
        _: super::SocketAddr,
        _: Option<&str>,
        _: Option<&mut super::Incoming>,
    ) -> Result<(), String> {
        Err("--upgrade: only in a domain".into())
    }

    pub fn replace(name: &str, _: u64) {
        println!("{name}: only in a domain");
    }

    pub fn at_the_end(_: impl FnOnce() + Send + 'static) -> Result<(), String> {
        Ok(())
    }
}
