//! What figures were measured with: versions, and both sides' configuration.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use segue_lab::{DomainConfig, DomainType, XenHost};
use serde::{Deserialize, Serialize};

use super::Bench;
use super::linux::{ADDRESS, Programs};
use super::network::ours;

/// Debian's packages of the peer and of the clients.
const PACKAGES: &str = "nginx redis-server kexec-tools wrk redis-tools iputils-ping";

/// What a run was made with.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setting {
    /// When it began.
    pub date: String,
    pub quick: bool,
    /// Only what has one of these words in its name; all if there is none.
    pub only: Vec<String>,
    pub seconds: f64,
    /// CPU time that this machine's processors were not given meanwhile, of all.
    pub stolen_percent: f64,
    /// What took part, and its version.
    pub versions: Vec<(String, String)>,
    /// A domain, and its configuration as `xl` has it.
    pub configurations: Vec<(String, String)>,
}

impl Setting {
    /// As it is at the start of a run.
    pub fn new(bench: &Bench, only: &[String]) -> Result<Setting> {
        let programs = Programs::place()?;
        let render = |mut config: DomainConfig| -> Result<String> {
            config.name = "figures".into();
            Ok(XenHost::deployment(&config)?)
        };
        let configurations = vec![
            (
                "Segue (httpd; kv and echo alike)".to_owned(),
                render(ours(&bench.images.httpd, "10.0.0.31", None))?,
            ),
            (
                "Linux (nginx, redis, echo)".to_owned(),
                render(programs.domain(DomainType::Pvh, ADDRESS))?,
            ),
            (
                "Linux, for kexec".to_owned(),
                render(programs.domain(DomainType::Hvm, "10.0.0.37"))?,
            ),
            (
                "what Linux runs: tools/lab/dom0/linux-init".to_owned(),
                include_str!("../../../lab/dom0/linux-init").to_owned(),
            ),
        ];
        Ok(Setting {
            date: said("date", &["-u", "+%Y-%m-%d %H:%M UTC"])?,
            quick: bench.quick,
            only: only.to_vec(),
            seconds: 0.0,
            stolen_percent: 0.0,
            versions: versions(bench)?,
            configurations,
        })
    }
}

fn versions(bench: &Bench) -> Result<Vec<(String, String)>> {
    let dom0 = |command: &str| -> Result<String> {
        Ok(bench
            .xen
            .host()
            .exec(command)?
            .check()?
            .stdout
            .trim()
            .to_owned())
    };
    let mut all = vec![
        ("Segue", said("git", &["describe", "--always", "--dirty"])?),
        ("Rust", said("rustc", &["-V"])?),
        ("Xen", dom0("xl info xen_version")?),
        ("dom0 and Linux", dom0("uname -rv")?),
        (
            "QEMU, which emulates the machine",
            first_line(&said("qemu-system-x86_64", &["--version"])?),
        ),
        ("this machine", machine()?),
    ]
    .into_iter()
    .map(|(name, version)| (name.to_owned(), version))
    .collect::<Vec<_>>();
    let packages = dom0(&format!(
        "dpkg-query -W -f '${{Package}} ${{Version}}\\n' {PACKAGES}"
    ))?;
    for line in packages.lines() {
        if let Some((name, version)) = line.split_once(' ') {
            all.push((name.to_owned(), version.to_owned()));
        }
    }
    Ok(all)
}

fn machine() -> Result<String> {
    let text = fs::read_to_string("/proc/cpuinfo").context("/proc/cpuinfo")?;
    let model = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let count = std::thread::available_parallelism()?;
    Ok(format!("{count} × {}", model.unwrap_or_default()))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// What a program prints.
fn said(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| program.to_owned())?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
