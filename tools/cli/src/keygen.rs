//! `segue keygen`: a pair of keys.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use segue_image::keys;
use serde::Serialize;

use crate::output::{outln, print_json};

/// Make a key that bundles, or commands to domains, are signed with.
///
/// Writes the private key to FILE, which nobody else may read (PKCS #8 in PEM, Ed25519), and the
/// public one to FILE.pub, for `segue build --trust`. Files that are there are never overwritten.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue keygen ~/keys/release\n  segue build kv --trust ~/keys/release.pub\n  cat ~/keys/*.pub > all.pub    # an image may trust several"
)]
pub struct Arguments {
    /// Where the private key goes.
    file: PathBuf,
}

/// What was made.
#[derive(Serialize)]
struct Made {
    key: String,
    private: PathBuf,
    public: PathBuf,
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let made = keys::generate(&arguments.file).context("no key was made")?;
    if json {
        print_json(&Made {
            key: made.key.id().to_string(),
            private: made.private,
            public: made.public,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    outln!("key {}", made.key.id())?;
    outln!(
        "private  {}  (signs: keep it, and keep it secret)",
        made.private.display()
    )?;
    outln!(
        "public   {}  (for segue build --trust; an operator's for the image's etc/segue/operators.pub)",
        made.public.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
