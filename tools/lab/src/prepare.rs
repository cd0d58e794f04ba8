//! Makes what the lab boots: hypervisor, dom0 kernel, initrd, root disk.
//!
//! The result is one directory named after a hash of everything that goes into
//! it. It is built beside and renamed into place, so it is there whole or not
//! at all. Packages come from the mirror that the host's own apt uses.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::config::LabConfig;
use crate::error::{LabError, Result};
use crate::process::last_lines;
use crate::progress::Progress;
use crate::setup::{ensure_host_tools, host_command};

/// Debian's release the lab is made from.
const SUITE: &str = "bookworm";

/// Packages installed in dom0: what runs domains, the clients that tests and benchmarks talk to
/// them with, and the servers of the Linux domain that ours are compared with.
const DOM0_PACKAGES: &[&str] = &[
    "bridge-utils",
    "busybox-static",
    "iproute2",
    "kmod",
    "openssh-server",
    "qemu-system-xen",
    "xen-utils-4.17",
    "xenstore-utils",
    // Clients.
    "curl",
    "hping3",
    "iperf3",
    "iputils-ping",
    "redis-tools",
    "tcpdump",
    "wrk",
    // For the Linux domain: servers, and how it replaces its kernel.
    "kexec-tools",
    "nginx",
    "redis-server",
];

/// Packages only unpacked; the kernel that `linux-image-amd64` names is added.
const UNPACKED_PACKAGES: &[&str] = &["xen-hypervisor-4.17-amd64"];

/// Modules that reach the root disk.
const INITRD_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

/// Folders of kernel modules kept in dom0 (shell patterns below `kernel/`).
const MODULES: &[&str] = &[
    "arch",
    "crypto",
    "drivers/block",
    "drivers/char/hw_random",
    "drivers/md",
    "drivers/net/*.ko",
    "drivers/net/xen-netback",
    "drivers/virtio",
    "drivers/xen",
    "fs/*.ko",
    "fs/9p",
    "fs/ext4",
    "fs/fscache",
    "fs/jbd2",
    "fs/netfs",
    "lib",
    "mm",
    "net",
];

/// Modules that the Linux domU needs.
const LINUX_MODULES: &[&str] = &["xen-netfront"];

/// Programs that the Linux domU has, besides busybox.
const LINUX_PROGRAMS: &[&str] = &[
    "/usr/sbin/nginx",
    "/usr/bin/redis-server",
    "/usr/bin/iperf3",
    "/usr/sbin/kexec",
];

/// Size of the root disk; the file is sparse.
const ROOT_MIB: u64 = 2048;

/// Files of the lab's own that go into the build, by name.
const PARTS: &[(&str, &str)] = &[
    ("build.sh", include_str!("../dom0/build.sh")),
    ("boot", include_str!("../dom0/boot")),
    ("initrd-init", include_str!("../dom0/initrd-init")),
    ("linux-init", include_str!("../dom0/linux-init")),
    ("inittab", include_str!("../dom0/inittab")),
    ("sshd_config", include_str!("../dom0/sshd_config")),
];

/// Name under which dom0's ssh key is known, whatever port it is on.
pub(crate) const HOST_KEY_ALIAS: &str = "segue-lab-dom0";

/// What a lab boots. As long as it is held, the files stay.
#[derive(Debug)]
pub struct Image {
    dir: PathBuf,
    _in_use: File,
}

impl Image {
    /// The hypervisor, an ELF multiboot file.
    #[must_use]
    pub fn xen(&self) -> PathBuf {
        self.dir.join("xen")
    }

    /// The dom0 kernel; as a bzImage it also serves as a Linux domU.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// dom0's initrd.
    #[must_use]
    pub fn initrd(&self) -> PathBuf {
        self.dir.join("initrd.img")
    }

    /// The initrd of the Linux domU that images are compared with: all it runs is in there.
    #[must_use]
    pub fn linux_initrd(&self) -> PathBuf {
        self.dir.join("linux.img")
    }

    /// dom0's root disk.
    #[must_use]
    pub fn root_disk(&self) -> PathBuf {
        self.dir.join("root.ext4")
    }

    pub(crate) fn private_key(&self) -> PathBuf {
        self.dir.join("id")
    }

    pub(crate) fn known_hosts(&self) -> PathBuf {
        self.dir.join("known_hosts")
    }

    fn open(dir: PathBuf) -> Result<Image> {
        let lock = dir.join("in-use");
        let file = File::open(&lock).map_err(LabError::file(&lock))?;
        file.lock_shared().map_err(LabError::file(&lock))?;
        Ok(Image { dir, _in_use: file })
    }
}

/// Everything the result depends on, as one text.
fn recipe() -> String {
    let mut text = format!(
        "suite {SUITE}\ninstalled {}\nunpacked {}\ninitrd {}\nmodules {}\nroot {ROOT_MIB}\n\
         linux {} {}\n",
        DOM0_PACKAGES.join(" "),
        UNPACKED_PACKAGES.join(" "),
        INITRD_MODULES.join(" "),
        MODULES.join(" "),
        LINUX_MODULES.join(" "),
        LINUX_PROGRAMS.join(" "),
    );
    for (name, content) in PARTS {
        text.push_str(&format!("file {name} {}\n{content}", content.len()));
    }
    text
}

/// Short name of a recipe.
fn cache_key(recipe: &str) -> String {
    let digest = Sha256::digest(recipe.as_bytes());
    digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Returns the image, making it first if it is not there.
pub(crate) fn prepare(config: &LabConfig) -> Result<Image> {
    let dir = absolute(&config.dir)?;
    fs::create_dir_all(&dir).map_err(LabError::file(&dir))?;
    let lock_path = dir.join("prepare.lock");
    let lock = File::create(&lock_path).map_err(LabError::file(&lock_path))?;
    if lock.try_lock().is_err() {
        let progress = Progress::start("waiting for another process that prepares the lab");
        lock.lock().map_err(LabError::file(&lock_path))?;
        progress.done();
    }
    ensure_host_tools()?;
    let image = dir.join(format!("image-{}", cache_key(&recipe())));
    if !image.join("in-use").is_file() {
        build(&dir, &image)?;
    }
    let image = Image::open(image)?;
    remove_old(&dir, &image.dir);
    Ok(image)
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(LabError::file(path))
}

fn build(lab: &Path, image: &Path) -> Result<()> {
    let progress = Progress::start("preparing Xen and dom0 (once; a minute or two)");
    let work = tempfile::Builder::new()
        .prefix("build-")
        .tempdir_in(lab)
        .map_err(LabError::file(lab))?;
    let work = work.path();
    let (out, parts) = (work.join("out"), work.join("parts"));
    for dir in [&out, &parts] {
        fs::create_dir(dir).map_err(LabError::file(dir))?;
    }
    // Without root, mmdebstrap's hook runs under another user id.
    for (path, mode) in [(work, 0o755), (&out, 0o777)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode))
            .map_err(LabError::file(path))?;
    }
    write_parts(&parts)?;
    for (name, comment) in [
        ("id", "segue-lab"),
        ("ssh_host_ed25519_key", HOST_KEY_ALIAS),
    ] {
        let path = parts.join(name).display().to_string();
        host_command(&[
            "ssh-keygen",
            "-q",
            "-t",
            "ed25519",
            "-N",
            "",
            "-C",
            comment,
            "-f",
            &path,
        ])?;
    }

    mmdebstrap(lab, &out, &parts, &progress)?;

    for name in ["id", "id.pub"] {
        let to = out.join(name);
        fs::rename(parts.join(name), &to).map_err(LabError::file(&to))?;
    }
    let host_key = parts.join("ssh_host_ed25519_key.pub");
    let host_key = fs::read_to_string(&host_key).map_err(LabError::file(&host_key))?;
    write(
        &out.join("known_hosts"),
        &format!("{HOST_KEY_ALIAS} {host_key}"),
    )?;
    write(&out.join("in-use"), "")?;
    fs::set_permissions(&out, fs::Permissions::from_mode(0o755)).map_err(LabError::file(&out))?;
    fs::rename(&out, image).map_err(LabError::file(image))?;
    progress.done();
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(LabError::file(path))
}

fn write_parts(parts: &Path) -> Result<()> {
    for (name, content) in PARTS {
        write(&parts.join(name), content)?;
    }
    let lines = |words: &[&str]| words.join("\n") + "\n";
    write(&parts.join("packages.download"), &lines(UNPACKED_PACKAGES))?;
    write(&parts.join("modules.initrd"), &lines(INITRD_MODULES))?;
    write(&parts.join("modules.keep"), &lines(MODULES))?;
    write(&parts.join("modules.linux"), &lines(LINUX_MODULES))?;
    write(&parts.join("programs.linux"), &lines(LINUX_PROGRAMS))?;
    write(&parts.join("image.mib"), &ROOT_MIB.to_string())
}

fn mmdebstrap(lab: &Path, out: &Path, parts: &Path, progress: &Progress) -> Result<()> {
    let sources = apt_sources()?;
    let quoted = |path: &Path| shell_words::quote(&path.display().to_string()).into_owned();
    let hook = format!(
        "sh {} \"$1\" {} {}",
        quoted(&parts.join("build.sh")),
        quoted(out),
        quoted(parts)
    );
    let log_path = lab.join("prepare.log");
    let mut log = File::create(&log_path).map_err(LabError::file(&log_path))?;
    let mut command = Command::new("mmdebstrap");
    command
        .args(["--variant=essential", "--format=null"])
        .arg(format!("--include={}", DOM0_PACKAGES.join(",")))
        .args(
            apt_options()?
                .iter()
                .map(|option| format!("--aptopt={option}")),
        )
        .args(
            ["doc", "man", "locale"]
                .map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*")),
        )
        .arg(format!("--customize-hook={hook}"))
        .args([SUITE, "-", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let spawn_error = |source| LabError::Spawn {
        program: "mmdebstrap".into(),
        source,
    };
    let mut child = command.spawn().map_err(spawn_error)?;
    if let Some(mut stdin) = child.stdin.take() {
        // If mmdebstrap ended early, its status and log say why.
        let _ = stdin.write_all(sources.as_bytes());
    }
    if let Some(stderr) = child.stderr.take() {
        for line in BufReader::new(stderr)
            .split(b'\n')
            .map_while(|line| line.ok())
        {
            let line = String::from_utf8_lossy(&line);
            writeln!(log, "{line}").map_err(LabError::file(&log_path))?;
            if let Some(step) = line.strip_prefix("I: ") {
                progress.detail(step.split(" in shell:").next().unwrap_or(step));
            }
        }
    }
    let status = child.wait().map_err(spawn_error)?;
    if status.success() {
        return Ok(());
    }
    let text = fs::read_to_string(&log_path).unwrap_or_default();
    Err(LabError::HostCommand {
        command: format!("mmdebstrap … (log: {})", log_path.display()),
        status: status.to_string(),
        tail: last_lines(&text, 20),
    })
}

/// The host's Debian sources for the suite, as lines of a sources.list.
fn apt_sources() -> Result<String> {
    let query = || {
        host_command(&[
            "apt-get",
            "indextargets",
            "--format",
            "$(REPO_URI) $(RELEASE) $(COMPONENT)",
            "Created-By: Packages",
            "Origin: Debian",
        ])
    };
    let mut sources = sources_list(&query()?);
    if sources.is_empty() && rustix::process::geteuid().is_root() {
        // apt knows a source's origin only once it has its index.
        host_command(&["apt-get", "update"])?;
        sources = sources_list(&query()?);
    }
    if sources.is_empty() {
        return Err(LabError::NoAptSource {
            suite: SUITE.to_owned(),
        });
    }
    Ok(sources)
}

/// Makes sources.list lines from `URI RELEASE COMPONENT` lines.
fn sources_list(targets: &str) -> String {
    const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let options = if Path::new(KEYRING).exists() {
        format!("[signed-by={KEYRING}] ")
    } else {
        String::new()
    };
    targets
        .lines()
        .filter(|line| {
            line.split_whitespace().nth(1).is_some_and(|release| {
                release == SUITE || release.starts_with(&format!("{SUITE}-"))
            })
        })
        .map(|line| format!("deb {options}{line}\n"))
        .collect()
}

/// The host apt's settings about reaching and checking its sources: proxies,
/// certificates, dates.
fn apt_options() -> Result<Vec<String>> {
    Ok(relevant_options(&host_command(&["apt-config", "dump"])?))
}

fn relevant_options(dump: &str) -> Vec<String> {
    const PREFIXES: &[&str] = &[
        "Acquire::http::",
        "Acquire::https::",
        "Acquire::Check-",
        "Acquire::Retries",
        "Acquire::ForceIPv",
    ];
    dump.lines()
        .filter(|line| PREFIXES.iter().any(|prefix| line.starts_with(prefix)))
        .filter(|line| !line.contains("::User-Agent"))
        .map(str::to_owned)
        .collect()
}

/// Removes images of older recipes that no session uses.
fn remove_old(lab: &Path, keep: &Path) {
    let Ok(entries) = fs::read_dir(lab) else {
        return;
    };
    for path in entries.flatten().map(|entry| entry.path()) {
        let is_image = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("image-"));
        if is_image && path != keep {
            let unused = File::open(path.join("in-use")).is_ok_and(|file| file.try_lock().is_ok());
            if unused {
                // What remains is tried again next time.
                let _ = fs::remove_dir_all(&path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_follows_the_recipe() {
        assert_eq!(cache_key("a"), cache_key("a"));
        assert_ne!(cache_key("a"), cache_key("b"));
        assert_eq!(cache_key(&recipe()).len(), 16);
        assert!(recipe().contains("xen-utils-4.17"));
    }

    #[test]
    fn only_sources_of_the_suite_are_taken() {
        let list = sources_list(
            "http://m/debian/ bookworm main\nhttp://m/debian/ bookworm-updates main\n\
             http://m/debian/ trixie main\nnonsense\n",
        );
        let lines: Vec<&str> = list.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].starts_with("deb "));
        assert!(lines[0].ends_with("http://m/debian/ bookworm main"));
    }

    #[test]
    fn only_settings_about_access_are_taken() {
        let dump = "APT::Architecture \"amd64\";\nAcquire::http::Proxy \"http://p\";\n\
                    Acquire::Check-Date \"false\";\nAcquire::Languages \"none\";\n";
        assert_eq!(
            relevant_options(dump),
            [
                "Acquire::http::Proxy \"http://p\";",
                "Acquire::Check-Date \"false\";"
            ]
        );
    }
}
