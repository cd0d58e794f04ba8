//! What can go wrong, in words that say what to do.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::domain::EndReason;

/// Result of a lab operation.
pub type Result<T, E = LabError> = std::result::Result<T, E>;

/// Why a lab operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LabError {
    /// A file could not be read, written or locked.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A host program could not be started.
    #[error("cannot start `{program}`: {source}")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },

    /// Host packages are missing and cannot be installed from here.
    #[error("the lab needs host packages that are not installed; as root, run:\n    {command}")]
    MissingPackages {
        /// The command that installs them.
        command: String,
    },

    /// A host command failed.
    #[error("`{command}` failed ({status}); its last lines:\n{tail}")]
    HostCommand {
        /// The command.
        command: String,
        /// Exit status or signal.
        status: String,
        /// End of its output.
        tail: String,
    },

    /// The host's apt configuration has no Debian source for the suite.
    #[error(
        "apt on this machine has no Debian {suite} source; the lab takes its mirror from there \
         (add one to /etc/apt, then `apt-get update`)"
    )]
    NoAptSource {
        /// The suite the lab needs.
        suite: String,
    },

    /// Too little memory to start the lab.
    #[error(
        "the lab needs {needed_mib} MiB of memory and {available_mib} MiB are available: \
         {} MiB are missing (dom0 takes {dom0_mib}, the domains {domains_mib})",
        needed_mib - available_mib
    )]
    Memory {
        /// What QEMU would take.
        needed_mib: u64,
        /// `MemAvailable` on the host.
        available_mib: u64,
        /// dom0's share.
        dom0_mib: u64,
        /// The domains' share.
        domains_mib: u64,
    },

    /// Xen or dom0 did not come up.
    #[error("the lab did not start: {reason}\nlog: {log}; its last lines:\n{tail}", log = log.display())]
    Start {
        /// What happened.
        reason: String,
        /// Xen's and dom0's console.
        log: PathBuf,
        /// End of that log.
        tail: String,
    },

    /// A lab is already held by another `segue lab up`.
    #[error("a lab session is already up (process {pid}); end it, or just use it")]
    SessionUp {
        /// Its holder.
        pid: u32,
    },

    /// The connection to the Xen host failed.
    #[error("no connection to the Xen host {host}: {detail}")]
    Connection {
        /// The host.
        host: String,
        /// What ssh said.
        detail: String,
    },

    /// A command on the Xen host failed.
    #[error("on the Xen host, `{command}` ended with {status}:\n{output}")]
    Remote {
        /// The command.
        command: String,
        /// Exit status.
        status: i32,
        /// What it printed.
        output: String,
    },

    /// A command on the Xen host took too long.
    #[error("on the Xen host, `{command}` did not end within {}", seconds(timeout))]
    RemoteTimeout {
        /// The command.
        command: String,
        /// The limit.
        timeout: Duration,
    },

    /// A command on the Xen host was given up because what it was for had ended.
    #[error("on the Xen host, `{command}` was given up: what it was for has ended")]
    RemoteGivenUp {
        /// The command.
        command: String,
    },

    /// A value cannot be written into an xl configuration.
    #[error("{what} cannot be written into an xl configuration: {value:?} ({why})")]
    Config {
        /// Which value.
        what: &'static str,
        /// The value.
        value: String,
        /// Why.
        why: &'static str,
    },

    /// A domain of that name is there already.
    #[error(
        "a domain called {name} is on {host} already (number {domid}); upgrade it (`segue upgrade`), \
         or end it first (`xl shutdown {name}` there), or choose another --name"
    )]
    DomainIsThere {
        /// Its name.
        name: String,
        /// Its number in Xen.
        domid: u32,
        /// Where.
        host: String,
    },

    /// Files of an earlier deployment are in the way.
    #[error(
        "{config} is on {host} already, from an earlier deployment; --replace writes it and its \
         image anew, `xl create {config}` there starts it as it is"
    )]
    Deployed {
        /// The xl configuration on the host.
        config: String,
        /// Where.
        host: String,
    },

    /// There is no log of a domain's console.
    #[error(
        "there is no {log} on {host}: either no domain {name} ever ran there, or its xenconsoled \
         keeps no logs (XENCONSOLED_TRACE=guest in /etc/default/xencommons or \
         /etc/default/xen, then restart xenconsoled); a domain that runs can be followed with -f"
    )]
    NoConsoleLog {
        /// The domain.
        name: String,
        /// Where it would be.
        log: String,
        /// The host.
        host: String,
    },

    /// A domain did not do what was waited for.
    #[error(
        "domain {name}: {what} within {}; its last lines:\n{tail}",
        seconds(timeout)
    )]
    DomainTimeout {
        /// The domain.
        name: String,
        /// What did not happen.
        what: &'static str,
        /// The limit.
        timeout: Duration,
        /// Its last console lines.
        tail: String,
    },

    /// A domain ended before it did what was waited for.
    #[error("domain {name} ended ({reason}) before the expected line; its last lines:\n{tail}")]
    DomainEnded {
        /// The domain.
        name: String,
        /// How.
        reason: EndReason,
        /// Its last console lines.
        tail: String,
    },
}

impl LabError {
    /// Makes an error about a file from what the system said.
    pub(crate) fn file(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> LabError {
        let path = path.into();
        move |source| LabError::File { path, source }
    }
}

fn seconds(duration: &Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}
