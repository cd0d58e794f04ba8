//! `segue verify`: what an image with certain keys would say of bundles.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use segue_image::keys;
use segue_kernel::image::{Bundle, Policy, TrustedKeys};
use serde::Serialize;

use crate::output::{outln, print_json};

/// Check bundles as an image that trusts certain keys would.
///
/// Checks signature, digests, the ELF file and all its relocations. Whether a bundle is of the right
/// app and new enough depends on the image that runs, and is checked there. Ends with status 0 if
/// all bundles in the file are good, with 1 if one is not.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue verify --trust release.pub target/images/kv.bundle\n  segue verify --json --trust release.pub kv.bundle | jq -r '.[].version'"
)]
pub struct Arguments {
    /// The public keys that are trusted.
    #[arg(long, value_name = "FILE")]
    trust: PathBuf,
    /// The bundles, one or several one after the other.
    bundle: PathBuf,
}

/// A bundle that is good.
#[derive(Serialize)]
struct Good {
    name: String,
    version: String,
    build: String,
    signed_by: Option<String>,
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let keys = keys::read_trust(&arguments.trust).context("nothing was verified")?;
    let keys: Vec<u8> = keys.iter().flat_map(|key| key.0).collect();
    let policy = Policy {
        keys: TrustedKeys::new(&keys),
        ..Policy::OPEN
    };
    let path = &arguments.bundle;
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).with_context(name)?;
    let mut rest = bytes.as_slice();
    let mut number = 0;
    let mut good = Vec::new();
    while let Some(next) = Bundle::split_first(rest) {
        number += 1;
        let which = || format!("{}: bundle {number} is refused", path.display());
        let (bundle, after) = next.with_context(which)?;
        let verified = bundle.verify(&policy).with_context(which)?;
        // The loader checks these where the image will run; here is as good.
        let mut memory = vec![0; usize::try_from(verified.image.span())?];
        verified.place(0, &mut memory).with_context(which)?;
        let manifest = &verified.manifest;
        let key = bundle.key().map(|id| id.to_string());
        if !json {
            outln!(
                "{} {}: good, signed with key {}",
                manifest.name,
                manifest.version,
                key.as_deref().unwrap_or("none")
            )?;
        }
        good.push(Good {
            name: manifest.name.to_string(),
            version: manifest.version.to_string(),
            build: manifest.build.to_string(),
            signed_by: key,
        });
        rest = after;
    }
    if number == 0 {
        bail!("{}: there is no bundle in it", path.display());
    }
    if json {
        print_json(&good)?;
    }
    Ok(ExitCode::SUCCESS)
}
