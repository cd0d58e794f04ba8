//! `segue image`: from a linked app to the files that start it.

use anyhow::{Context, bail};
use segue_image::{Options, Report, build};
use segue_kernel::image::{Name, Version};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::output::{outln, print_json};

/// Make the files that start a linked app.
///
/// Writes NAME.img (for `xl`, type hvm), NAME.elf (type pvh) and NAME.bundle (for upgrades).
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue image --elf target/x86_64-unknown-hermit/image/hello \\\n      --name hello --version 0.1.0 --out target/images"
)]
pub struct Arguments {
    /// The linked app.
    #[arg(long)]
    elf: PathBuf,
    /// Its name: a-z, 0-9 and '-', at most 31 characters.
    #[arg(long)]
    name: String,
    /// Its version, at most 31 visible ASCII characters.
    #[arg(long)]
    version: String,
    /// Where to put the files.
    #[arg(long, default_value = "target/images")]
    out: PathBuf,
}

pub fn run(arguments: Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let Some(name) = Name::new(&arguments.name) else {
        bail!(
            "'{}' is no image name: a-z, 0-9 and '-', at most 31 characters",
            arguments.name
        );
    };
    let Some(version) = Version::new(&arguments.version) else {
        bail!(
            "'{}' is no version: at most 31 visible ASCII characters",
            arguments.version
        );
    };
    let options = Options {
        elf: arguments.elf,
        name,
        version,
        out_dir: arguments.out,
        trust: None,
    };
    let report = build(&options).context("the image was not built")?;
    match json {
        true => print_json(&Shown::of(&report))?,
        false => print(&report)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What was made.
#[derive(Serialize)]
pub struct Shown {
    name: String,
    version: String,
    build: String,
    min_memory: u64,
    trusts: Vec<String>,
    img: File,
    elf: File,
    bundle: File,
    /// xl configurations.
    configs: Vec<PathBuf>,
}

#[derive(Serialize)]
struct File {
    path: PathBuf,
    bytes: u64,
}

impl Shown {
    /// What a build reports.
    pub fn of(report: &Report) -> Shown {
        let manifest = &report.manifest;
        let file = |output: &segue_image::Output| File {
            path: output.path.clone(),
            bytes: output.len,
        };
        Shown {
            name: manifest.name.to_string(),
            version: manifest.version.to_string(),
            build: manifest.build.to_string(),
            min_memory: manifest.min_memory,
            trusts: manifest.trusts.iter().map(ToString::to_string).collect(),
            img: file(&report.img),
            elf: file(&report.elf),
            bundle: file(&report.bundle),
            configs: Vec::new(),
        }
    }

    /// With configurations.
    pub fn with_configs(self, configs: impl IntoIterator<Item = PathBuf>) -> Shown {
        let configs = configs.into_iter().collect();
        Shown { configs, ..self }
    }
}

/// Prints what was made, with sizes.
pub fn print(report: &Report) -> std::io::Result<()> {
    for output in [&report.img, &report.elf, &report.bundle] {
        outln!("{:>9} bytes  {}", output.len, output.path.display())?;
    }
    outln!(
        "{:>9} bytes  in memory, without stacks and heap",
        report.manifest.min_memory
    )?;
    outln!("{:>15}  {}", "build", report.manifest.build)?;
    let trusts = &report.manifest.trusts;
    if trusts.is_empty() {
        // On standard error, where it is seen: an image like this is not for production.
        eprintln!(
            "segue: warning: this image is OPEN: it trusts no key, so it will run any bundle it is \
             given\nsegue: (segue keygen makes a key, segue build --trust FILE builds its public \
             half in)"
        );
        return outln!("{:>15}  open: any bundle is taken", "trust");
    }
    for id in trusts {
        outln!("{:>15}  key {id}", "trust")?;
    }
    Ok(())
}
