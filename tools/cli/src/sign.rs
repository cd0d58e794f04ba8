//! `segue sign`: puts signatures on bundles.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use segue_image::keys;
use segue_kernel::image::{Bundle, PublicKey, TrustedKeys, is_semantic};
use serde::Serialize;

use crate::output::{outln, print_json};

/// Sign bundles.
///
/// Signs all bundles in a file, in place of signatures they may have. Each is checked first, as far
/// as an image would: what is damaged is not signed, and the file stays as it was.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue sign --key release target/images/kv.bundle\n  segue sign --key release kv.bundle -o kv-signed.bundle\n  segue sign --key release --revoke-previous kv.bundle    # never fall back behind this one"
)]
pub struct Arguments {
    /// The private key, as `segue keygen` writes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Say of each bundle that the one before it must not be kept to fall back on.
    #[arg(long)]
    revoke_previous: bool,
    /// Where the signed bundles go; by default they replace the unsigned.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// The bundles, one or several one after the other.
    bundle: PathBuf,
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let from = &arguments.bundle;
    let to = arguments.output.as_ref().unwrap_or(from);
    let unchanged = || match to.exists() {
        true => format!("nothing was signed, {} is as it was", to.display()),
        false => "nothing was signed".to_owned(),
    };
    let key = keys::read_private(&arguments.key).with_context(unchanged)?;
    keys::sign_file(from, to, &key, arguments.revoke_previous)
        .with_context(|| from.display().to_string())
        .with_context(unchanged)?;
    let bytes = std::fs::read(to).with_context(|| to.display().to_string())?;
    let mut signed = Vec::new();
    for bundle in segue_kernel::image::bundles(&bytes) {
        signed.push(signed_one(&bundle?, &PublicKey::of(&key))?);
    }
    if json {
        print_json(&signed)?;
        return Ok(ExitCode::SUCCESS);
    }
    for bundle in &signed {
        let revokes = match bundle.revokes_previous {
            true => ", revokes the one before",
            false => "",
        };
        outln!(
            "{} {}: signed with key {}{revokes}",
            bundle.name,
            bundle.version,
            bundle.key
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A bundle that was signed.
#[derive(Serialize)]
struct Signed {
    name: String,
    version: String,
    build: String,
    key: String,
    revokes_previous: bool,
}

/// Warns of what is not as it should be, too.
fn signed_one(bundle: &Bundle<'_>, key: &PublicKey) -> anyhow::Result<Signed> {
    // Read back with the key: what is said here is what an image will see.
    let found = bundle.authenticate(&TrustedKeys::new(&key.0))?;
    let manifest = found.manifest;
    let (name, version) = (manifest.name, manifest.version);
    if !is_semantic(&version) {
        eprintln!(
            "segue: warning: '{version}' is no semantic version (MAJOR.MINOR.PATCH): an image of \
             another version can't tell which is older, and refuses it"
        );
    }
    if manifest.trusts.is_empty() {
        eprintln!(
            "segue: warning: {name} {version} itself trusts no key: once it runs, it takes any \
             bundle (segue build --trust)"
        );
    }
    Ok(Signed {
        name: name.to_string(),
        version: version.to_string(),
        build: manifest.build.to_string(),
        key: key.id().to_string(),
        revokes_previous: manifest.revokes_previous,
    })
}
