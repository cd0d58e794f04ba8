//! `segue build`: from an app's package to the files that start it.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use segue_image::{App, build_app, keys};

use crate::image::Shown;
use crate::output::{outln, print_json};

/// Build an app: its image, bundle and xl configurations.
///
/// Runs cargo for the image target, then writes APP.img (for `xl`, type hvm), APP.elf (type pvh),
/// APP.bundle (for upgrades), APP.cfg and APP.pvh.cfg (configurations for `xl create`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue build hello\n  segue build clock --feature date --image-version 0.2.0 --out target/images/new\n  segue build kv --trust release.pub && segue sign --key release target/images/kv.bundle"
)]
pub struct Arguments {
    /// The app's package in this workspace.
    app: String,
    /// Turn on a feature of the app; may be repeated.
    #[arg(long = "feature", value_name = "FEATURE", value_delimiter = ',')]
    features: Vec<String>,
    /// Optimise app, runtime and kernel so: 0 to 3, s or z; for size (s) by default.
    #[arg(long, value_name = "LEVEL", value_parser = ["0", "1", "2", "3", "s", "z"])]
    opt_level: Option<String>,
    /// The image's version; the package's by default.
    #[arg(long, value_name = "VERSION")]
    image_version: Option<String>,
    /// Build in public keys: the image takes only bundles that one of them has signed. A file as
    /// `segue keygen` writes it, or several of them one after the other.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// Where to put the files.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
}

pub fn run(arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let trust = match &arguments.trust {
        Some(path) => keys::read_trust(path).context("nothing was built")?,
        None => Vec::new(),
    };
    let report = build_app(&App {
        name: arguments.app,
        version: arguments.image_version,
        features: arguments.features,
        opt_level: arguments.opt_level,
        trust,
        out_dir: arguments.out,
        folder: ".".into(),
    })?;
    if json {
        let configs = [report.hvm_config.path, report.pvh_config.path];
        print_json(&Shown::of(&report.files).with_configs(configs))?;
        return Ok(ExitCode::SUCCESS);
    }
    let manifest = &report.files.manifest;
    outln!("{} {}:", manifest.name, manifest.version)?;
    crate::image::print(&report.files)?;
    for config in [&report.hvm_config, &report.pvh_config] {
        outln!("{:>15}  {}", "xl create", config.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
