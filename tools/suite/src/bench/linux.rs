//! The peer: a Debian Linux domain of the same shape, with all it runs in its initrd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use segue_image::pack;
use segue_lab::{Domain, DomainConfig, DomainType, Lab, LabConfig};

use crate::guest::{VIF, Xen};

/// A folder for what is made here.
const WORK: &str = "target/bench/network";
/// What our programs are built for, for Linux.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const LINUX_TARGET: &str = "target/bench/linux";
/// And where they are.
pub const LINUX_PROGRAMS: &str = "target/bench/linux/x86_64-unknown-linux-gnu/release";
/// How long a domain may take to start.
pub const START: Duration = Duration::from_secs(240);
/// Where the one is that serves for all figures of servers.
pub const ADDRESS: &str = "10.0.0.30";
/// What both sides have.
pub const VCPUS: u32 = 2;
/// What both sides have.
pub const MEMORY_MIB: u64 = 512;

/// Files of a domain, on this machine.
pub struct Programs {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Programs {
    /// Where they will be.
    pub fn place() -> Result<Programs> {
        Ok(Programs {
            kernel: Lab::prepare(&LabConfig::from_env())?.kernel(),
            initrd: Path::new(WORK).join("linux.cpio.gz"),
        })
    }

    /// Those of the lab, and our `echo` and `measure`, built for Linux as one file each.
    pub fn build() -> Result<Programs> {
        let programs = Programs::place()?;
        let lab = Lab::prepare(&LabConfig::from_env())?;
        let status = Command::new("cargo")
            .args(["build", "-q", "--release", "-p", "echo", "-p", "measure"])
            .args(["--target", TARGET, "--target-dir", LINUX_TARGET])
            .env("RUSTFLAGS", "-C target-feature=+crt-static")
            .status()
            .context("cargo")?;
        ensure!(
            status.success(),
            "cargo cannot build our programs for Linux"
        );
        let program = |name: &str| {
            let path = format!("{LINUX_PROGRAMS}/{name}");
            fs::read(&path).context(path)
        };
        let (echo, measure) = (program("echo")?, program("measure")?);
        let extra = pack_files(
            "linux-extra",
            &[("extra/echo", &echo), ("measure", &measure)],
        )?;
        // The kernel takes archives one after the other, each at a multiple of 4 bytes.
        let initrd = lab.linux_initrd();
        let mut both = fs::read(&initrd).with_context(|| initrd.display().to_string())?;
        both.resize(both.len().next_multiple_of(4), 0);
        both.extend(fs::read(extra)?);
        let plain = Path::new(WORK).join("linux.cpio");
        fs::write(&plain, both)?;
        // HVM domains read it through an emulated port.
        let status = Command::new("gzip")
            .arg("-9kf")
            .arg(&plain)
            .status()
            .context("gzip")?;
        ensure!(status.success(), "gzip cannot pack {}", plain.display());
        Ok(programs)
    }

    /// A domain of this kind with that address.
    pub fn domain(&self, kind: DomainType, address: &str) -> DomainConfig {
        let mut config = DomainConfig::new(kind, &self.kernel);
        config.ramdisk = Some(self.initrd.clone());
        config.cmdline = format!("console=hvc0 quiet address={address}/24");
        config.memory_mib = MEMORY_MIB;
        config.vcpus = VCPUS;
        config.extra.push(format!("vif=['{VIF}']"));
        config
    }

    /// Starts one without a device model, and waits until it serves.
    pub fn serve(&self, xen: &Xen) -> Result<Domain> {
        xen.prepare_network()?;
        let domain = xen.host().create(&self.domain(DomainType::Pvh, ADDRESS))?;
        domain
            .wait_line(|line| line.text.contains("linux: serving"), START)
            .context("the Linux domain does not serve")?;
        Ok(domain)
    }
}

/// A cpio archive of files.
pub fn pack_files(name: &str, files: &[(&str, &[u8])]) -> Result<PathBuf> {
    let work = Path::new(WORK);
    let root = work.join("root");
    if root.exists() {
        fs::remove_dir_all(&root)?;
    }
    for (name, content) in files {
        let file = root.join(name);
        fs::create_dir_all(file.parent().unwrap_or(&root))?;
        fs::write(&file, content)?;
    }
    let archive = work.join(format!("{name}.cpio"));
    fs::write(&archive, pack(&root, 0)?)?;
    Ok(archive)
}
