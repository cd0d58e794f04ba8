//! `segue inspect`: shows what bundles and statements say of themselves.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use segue_kernel::image::{Bundle, Manifest, Policy, Scope, Statement, TrustedKeys, VerifyError};
use serde::Serialize;

use crate::output::{outln, print_json};

/// Show what bundles and downgrade statements say.
///
/// Nothing is believed or refused here but damage: whether a signature is good is for `segue
/// verify`, which knows whom to trust. With --json: a list, with an object for each of them.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue inspect target/images/kv.bundle\n  segue inspect --json kv.bundle | jq -r '.[0].build'"
)]
pub struct Arguments {
    /// Bundles, one or several one after the other, or a statement.
    #[arg(value_name = "BUNDLE")]
    file: PathBuf,
}

/// What is shown of a bundle.
#[derive(Serialize)]
struct Shown {
    kind: &'static str,
    name: String,
    version: String,
    build: String,
    abi: [u32; 2],
    min_memory: u64,
    revokes_previous: bool,
    signed_by: Option<String>,
    trusts: Vec<String>,
    bundle_digest: String,
    bundle_bytes: u64,
    image_digest: String,
    image_bytes: usize,
    segments: Vec<ShownSegment>,
}

#[derive(Serialize)]
struct ShownSegment {
    offset: u64,
    memory_bytes: u64,
    access: String,
    digest: String,
}

/// What is shown of a statement.
#[derive(Serialize)]
struct ShownStatement {
    kind: &'static str,
    from: String,
    to: String,
    domain: Option<String>,
    fleet: Option<String>,
    expires: u64,
    signed_by: String,
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let path = &arguments.file;
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    if let Ok((statement, key)) = Statement::peek(&bytes) {
        let shown = ShownStatement {
            kind: "downgrade",
            from: statement.from.to_string(),
            to: statement.to.to_string(),
            domain: match statement.scope {
                Scope::Domain(id) => Some(uuid::Uuid::from_bytes(id).to_string()),
                Scope::Fleet(_) => None,
            },
            fleet: match statement.scope {
                Scope::Domain(_) => None,
                Scope::Fleet(name) => Some(name.to_string()),
            },
            expires: statement.expires,
            signed_by: key.to_string(),
        };
        match json {
            true => print_json(&[&shown])?,
            false => print_statement(&shown)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let shown = bundles(path, &bytes)?;
    if json {
        print_json(&shown)?;
    } else {
        for bundle in &shown {
            print_bundle(bundle)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn bundles(path: &Path, bytes: &[u8]) -> anyhow::Result<Vec<Shown>> {
    let mut all = Vec::new();
    let mut rest = bytes;
    while let Some(next) = Bundle::split_first(rest) {
        let number = all.len() + 1;
        let which = || format!("{}, bundle {number}", path.display());
        let (bundle, after) = next.with_context(which)?;
        all.push(show(&bundle).with_context(which)?);
        rest = after;
    }
    if all.is_empty() {
        bail!("{}: there is no bundle in it", path.display());
    }
    Ok(all)
}

fn show(bundle: &Bundle<'_>) -> Result<Shown, VerifyError> {
    // Nothing runs here, so the manifest may be read whoever made it.
    let manifest: Manifest = bundle.authenticate(&TrustedKeys::NONE)?.manifest;
    let verified = bundle.verify(&Policy::OPEN)?;
    let segments = verified.image.segments().zip(&manifest.segments);
    let segments = segments.map(|(segment, digest)| {
        let flag = |on, letter| if on { letter } else { '-' };
        let perms = segment.perms;
        ShownSegment {
            offset: segment.offset,
            memory_bytes: segment.mem_len,
            access: [
                flag(perms.read, 'r'),
                flag(perms.write, 'w'),
                flag(perms.execute, 'x'),
            ]
            .iter()
            .collect(),
            digest: digest.to_string(),
        }
    });
    Ok(Shown {
        kind: "bundle",
        name: manifest.name.to_string(),
        version: manifest.version.to_string(),
        build: manifest.build.to_string(),
        abi: [manifest.abi.min(), manifest.abi.max()],
        min_memory: manifest.min_memory,
        revokes_previous: manifest.revokes_previous,
        signed_by: bundle.key().map(|id| id.to_string()),
        trusts: manifest.trusts.iter().map(ToString::to_string).collect(),
        bundle_digest: bundle.digest().to_string(),
        bundle_bytes: bundle.total_len(),
        image_digest: manifest.image.to_string(),
        image_bytes: bundle.image().len(),
        segments: segments.collect(),
    })
}

fn print_bundle(b: &Shown) -> std::io::Result<()> {
    let [min, max] = b.abi;
    let signed = b.signed_by.as_deref();
    outln!("{} {}", b.name, b.version)?;
    outln!("  build          {}", b.build)?;
    outln!("  handover ABI   {min} to {max}")?;
    outln!("  memory         {} KiB at least", b.min_memory / 1024)?;
    outln!("  signed by      {}", signed.unwrap_or("nobody"))?;
    match b.trusts.as_slice() {
        [] => outln!("  trusts         nobody: it is open, and takes any bundle")?,
        keys => outln!("  trusts         {}", keys.join(", "))?,
    }
    let revokes = if b.revokes_previous { "yes" } else { "no" };
    outln!("  revokes the one before   {revokes}")?;
    outln!(
        "  bundle         {}  {} bytes",
        b.bundle_digest,
        b.bundle_bytes
    )?;
    outln!(
        "  image          {}  {} bytes",
        b.image_digest,
        b.image_bytes
    )?;
    for s in &b.segments {
        let (offset, bytes) = (s.offset, s.memory_bytes);
        outln!(
            "  segment {}    {}  {bytes} bytes at {offset:#x}",
            s.access,
            s.digest
        )?;
    }
    Ok(())
}

fn print_statement(s: &ShownStatement) -> std::io::Result<()> {
    outln!("downgrade statement")?;
    outln!("  from build     {}", s.from)?;
    outln!("  to build       {}", s.to)?;
    if let Some(domain) = &s.domain {
        outln!("  in domain      {domain}")?;
    }
    if let Some(fleet) = &s.fleet {
        outln!("  in fleet       {fleet}")?;
    }
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(s.expires));
    match end.filter(|_| s.expires < 253_402_300_800) {
        // The year 10000 is more than the form has room for.
        Some(end) => outln!(
            "  until          {}",
            humantime::format_rfc3339_seconds(end)
        )?,
        None => outln!("  until          {} s after 1970", s.expires)?,
    }
    outln!("  signed by      {}", s.signed_by)
}
