//! Host packages the lab needs.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{LabError, Result};
use crate::process::last_lines;
use crate::progress::Progress;

/// A Debian package and what shows that it is there.
#[derive(Debug, Clone, Copy)]
pub struct HostPackage {
    /// Package name.
    pub name: &'static str,
    /// A program on the PATH, or an absolute path of a file.
    pub provides: &'static str,
}

/// What must be installed on the host.
pub const HOST_PACKAGES: &[HostPackage] = &[
    package("qemu-system-x86", "qemu-system-x86_64"),
    package("seabios", "/usr/share/seabios/bios-256k.bin"),
    package("mmdebstrap", "mmdebstrap"),
    package("openssh-client", "ssh"),
    package("e2fsprogs", "mkfs.ext4"),
    package("util-linux", "setpriv"),
];

const fn package(name: &'static str, provides: &'static str) -> HostPackage {
    HostPackage { name, provides }
}

/// The packages of [`HOST_PACKAGES`] that are not installed.
#[must_use]
pub fn missing_packages() -> Vec<HostPackage> {
    HOST_PACKAGES
        .iter()
        .copied()
        .filter(|package| !is_there(package.provides))
        .collect()
}

fn is_there(provides: &str) -> bool {
    if provides.starts_with('/') {
        return Path::new(provides).exists();
    }
    // mkfs.ext4 and setpriv may be in sbin, which a user's PATH often lacks.
    which::which(provides).is_ok()
        || ["/usr/sbin", "/sbin"]
            .iter()
            .any(|dir| Path::new(dir).join(provides).exists())
}

/// Installs what is missing when root, else says which command does.
///
/// # Errors
/// When packages are missing and cannot be installed.
pub fn ensure_host_tools() -> Result<()> {
    let missing = missing_packages();
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|package| package.name).collect();
    let install = [
        &["apt-get", "install", "-y", "--no-install-recommends"],
        &names[..],
    ]
    .concat();
    if !rustix::process::geteuid().is_root() {
        return Err(LabError::MissingPackages {
            command: format!("apt-get update && {}", install.join(" ")),
        });
    }
    let progress = Progress::start(format!("installing {}", names.join(", ")));
    progress.detail("apt-get update");
    host_command(&["apt-get", "update"])?;
    progress.detail(&install.join(" "));
    host_command(&install)?;
    progress.done();
    Ok(())
}

/// Runs a host command to its end and returns what it printed.
pub(crate) fn host_command(words: &[&str]) -> Result<String> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| LabError::Spawn {
            program: words[0].to_owned(),
            source,
        })?;
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(stdout);
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(LabError::HostCommand {
        command: words.join(" "),
        status: output.status.to_string(),
        tail: last_lines(&format!("{stdout}{stderr}"), 15),
    })
}
