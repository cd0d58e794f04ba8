//! `segue build`: from an app's package to the files that start it.

use std::path::PathBuf;
use std::process::ExitCode;

use segue_image::{App, build_app};

use crate::output::outln;

/// Build an app: its image, bundle and xl configurations.
///
/// Runs cargo for the image target, then writes APP.img (for `xl`, type hvm), APP.elf (type pvh),
/// APP.bundle (for upgrades), APP.cfg and APP.pvh.cfg (configurations for `xl create`).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue build hello\n  segue build clock --feature date --image-version 0.2.0 --out target/images/new"
)]
pub struct Arguments {
    /// The app's package in this workspace.
    app: String,
    /// Turn on a feature of the app; may be repeated.
    #[arg(long = "feature", value_name = "FEATURE", value_delimiter = ',')]
    features: Vec<String>,
    /// The image's version; the package's by default.
    #[arg(long, value_name = "VERSION")]
    image_version: Option<String>,
    /// Where to put the files.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
}

pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let report = build_app(&App {
        name: arguments.app,
        version: arguments.image_version,
        features: arguments.features,
        out_dir: arguments.out,
        folder: ".".into(),
    })?;
    let ident = report.files.ident;
    outln!("{} {}:", ident.name, ident.version)?;
    crate::image::print(&report.files)?;
    for config in [&report.hvm_config, &report.pvh_config] {
        outln!("{:>15}  {}", "xl create", config.path.display())?;
    }
    Ok(ExitCode::SUCCESS)
}
