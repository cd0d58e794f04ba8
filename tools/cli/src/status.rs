//! `segue status`: how a domain is.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Instant;

use segue::upgrade::protocol::{Hello, Status, Switch};
use serde::Serialize;

use crate::output::outln;
use crate::remote::{self, EXIT_CODES, End, LOOK, Reach, Target, clean, failed, time};

/// Show what runs in a domain: image, generation, last switch, probation.
///
/// Nobody has to sign that, unless the image tells it to operators only. Warns if the image that
/// runs is not the one that the domain was booted with: then a reboot brings the older one back.
#[derive(Debug, clap::Args)]
#[command(
    after_help = format!("Examples:\n  segue status 10.0.0.2\n  segue status --json web.example:7433 | jq .generation\n\n{EXIT_CODES}")
)]
pub struct Arguments {
    #[command(flatten)]
    reach: Reach,
}

/// What is shown.
#[derive(Serialize)]
struct Shown<'a> {
    domain: String,
    generation: u64,
    name: &'a str,
    version: &'a str,
    build: String,
    booted: Option<String>,
    boots_another: Option<bool>,
    uptime_ms: Option<u64>,
    running_ms: u64,
    vcpus: u32,
    memory_free: u64,
    probation: Option<ShownProbation>,
    switch: Option<ShownSwitch>,
    stayed: Option<&'a str>,
    upload: Option<[u64; 2]>,
}

#[derive(Serialize)]
struct ShownProbation {
    left_ms: u64,
    must_confirm: bool,
}

/// A switch, as JSON.
#[derive(Serialize)]
pub struct ShownSwitch {
    from: u64,
    to: u64,
    blackout_us: u64,
    parts_us: BTreeMap<String, u64>,
    before_us: u64,
    hypercalls: u64,
    handed: BTreeMap<String, u64>,
    crashed: Option<String>,
}

impl ShownSwitch {
    pub fn new(switch: &Switch) -> Self {
        Self {
            from: switch.from,
            to: switch.to,
            blackout_us: switch.blackout_us,
            parts_us: switch.parts.iter().cloned().collect(),
            before_us: switch.before_us,
            hypercalls: switch.hypercalls,
            handed: switch.handed.iter().cloned().collect(),
            crashed: switch.crashed.clone(),
        }
    }
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let host = &arguments.reach.open()?;
    let mut client = host.connect(Instant::now() + LOOK)?;
    let hello = client.hello().clone();
    let Some(status) = remote::status(host, &mut client)? else {
        return Err(failed(
            End::Refused,
            format!(
                "{host}: it does not tell its status; generation {} runs, build {}",
                hello.generation, hello.build
            ),
        ));
    };
    let boots_another = status.booted.map(|booted| booted != status.build);
    if json {
        let shown = Shown {
            domain: uuid::Uuid::from_bytes(hello.domain).to_string(),
            generation: status.generation,
            name: &status.name,
            version: &status.version,
            build: status.build.to_string(),
            booted: status.booted.map(|build| build.to_string()),
            boots_another,
            uptime_ms: status.uptime_ms,
            running_ms: status.running_ms,
            vcpus: status.vcpus,
            memory_free: status.memory_free,
            probation: status.probation.map(|p| ShownProbation {
                left_ms: p.left_ms,
                must_confirm: p.must_confirm,
            }),
            switch: status.switch.as_ref().map(ShownSwitch::new),
            stayed: status.stayed.as_deref(),
            upload: status.upload.map(|u| [u.received, u.len]),
        };
        outln!("{}", serde_json::to_string_pretty(&shown)?)?;
    } else {
        print(host, &hello, &status)?;
    }
    if boots_another == Some(true) && status.probation.is_none() {
        eprintln!(
            "segue: warning: the domain was booted with another image than the one that runs: a reboot \
             brings that back, unless its file was replaced since\nsegue: (segue upgrade --xen-host \
             does that; or copy the new one there)"
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn print(host: &Target, hello: &Hello, status: &Status) -> anyhow::Result<()> {
    let (name, version) = (clean(&status.name), clean(&status.version));
    outln!("{host}: {name} {version}, generation {}", status.generation)?;
    outln!("  {:<10} {}", "build", status.build)?;
    match status.booted {
        Some(booted) if booted == status.build => outln!("  {:<10} this image", "booted")?,
        Some(booted) => outln!("  {:<10} another image, build {booted}", "booted")?,
        None => outln!("  {:<10} unknown", "booted")?,
    }
    let domain = uuid::Uuid::from_bytes(hello.domain);
    outln!("  {:<10} {domain}", "domain")?;
    let up = status.uptime_ms.map_or("unknown".into(), time);
    let running = time(status.running_ms);
    outln!("  {:<10} {up}; this image for {running}", "up")?;
    let mib = status.memory_free >> 20;
    outln!("  {:<10} {mib} MiB free; {} vCPUs", "memory", status.vcpus)?;
    if let Some(probation) = status.probation {
        let left = time(probation.left_ms);
        let then = match probation.must_confirm {
            true => format!("then the image before comes back, unless: segue confirm {host}"),
            false => format!("if it crashes the image before comes back; segue rollback {host}"),
        };
        outln!("  {:<10} {left} left; {then}", "probation")?;
    }
    if let Some(switch) = &status.switch {
        let (from, to) = (switch.from, switch.to);
        let figures = remote::describe(switch);
        outln!("  {:<10} from {from} to {to}: {figures}", "switch")?;
        outln!("  {:<10} {}", "handed", remote::handed(switch))?;
        if let Some(why) = &switch.crashed {
            outln!(
                "  {:<10} the image before crashed: {}",
                "fallback",
                clean(why)
            )?;
        }
    }
    if let Some(why) = &status.stayed {
        outln!(
            "  {:<10} the last switch did not come about: {}",
            "stayed",
            clean(why)
        )?;
    }
    if let Some(upload) = status.upload {
        let (received, len) = (upload.received, upload.len);
        outln!("  {:<10} {received} of {len} bytes", "upload")?;
    }
    Ok(())
}
