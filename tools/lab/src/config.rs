//! What a lab is made of.

use std::env;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Settings of a lab.
#[derive(Debug, Clone)]
pub struct LabConfig {
    /// Everything the lab keeps on the host: images, sessions, logs.
    pub dir: PathBuf,
    /// Memory of dom0.
    pub dom0_mib: u64,
    /// Memory for all domains that run at the same time.
    pub domains_mib: u64,
    /// Emulated processors; the first one is not for domains.
    pub cpus: u32,
    /// How long Xen and dom0 may take to come up.
    pub start_timeout: Duration,
    /// `user@host` of a real Xen host to use in place of the emulated one.
    pub xen_host: Option<String>,
}

impl LabConfig {
    /// The settings of this checkout: the lab's directory is `$SEGUE_LAB_DIR`,
    /// or `lab` in cargo's target directory; a real Xen host is taken from
    /// `$SEGUE_XEN_HOST`.
    #[must_use]
    pub fn from_env() -> LabConfig {
        LabConfig {
            dir: lab_dir(),
            dom0_mib: 1024,
            domains_mib: 1536,
            cpus: 3,
            start_timeout: Duration::from_secs(180),
            xen_host: env::var("SEGUE_XEN_HOST")
                .ok()
                .filter(|host| !host.is_empty()),
        }
    }

    /// The same with room for `mib` of domain memory.
    #[must_use]
    pub fn with_domains_mib(mut self, mib: u64) -> LabConfig {
        self.domains_mib = mib;
        self
    }

    /// What QEMU gets: dom0, the domains, and Xen's own share (its heap, the
    /// frame table, shadow and p2m pools of the domains).
    #[must_use]
    pub fn machine_mib(&self) -> u64 {
        let domains = self.domains_mib + self.domains_mib / 32;
        self.dom0_mib + domains + 256
    }
}

impl Default for LabConfig {
    fn default() -> Self {
        LabConfig::from_env()
    }
}

fn lab_dir() -> PathBuf {
    if let Some(dir) = env::var_os("SEGUE_LAB_DIR") {
        return dir.into();
    }
    if let Some(target) = env::var_os("CARGO_TARGET_DIR") {
        return Path::new(&target).join("lab");
    }
    let here = env::current_dir().unwrap_or_else(|_| ".".into());
    here.ancestors()
        .find(|dir| dir.join("tools/lab/Cargo.toml").is_file())
        .unwrap_or(&here)
        .join("target/lab")
}
