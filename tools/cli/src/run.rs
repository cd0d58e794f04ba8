//! `segue run`: builds an app and runs it in the foreground.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use segue_image::{App, build_app};

use crate::host::{DomainOptions, HostOption, run_domain, watch_for_interrupts};

/// Build an app, run it as a domain, and show its console until it ends.
///
/// In the lab that is up, or one of its own (about 20 s), or on a Xen host. The domain ends with
/// the command. An image's file in place of an app's name is run as it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Lines show the seconds since the domain was let run; `uart:` marks the emulated
serial port.

Examples:
  segue run hello
  segue run clock --vcpus 2 -- --every 500 --ticks 2
  segue run httpd --type pvh --vif bridge=xenbr0 --ip 10.0.0.2/24
  segue run target/images/hello.img --xen-host root@xen1

Exit codes: 0 it powered off; 1 it ended otherwise, or did not start; 124 --timeout
is over; 130 Ctrl-C.")]
pub struct Arguments {
    /// The app, or the file of an image.
    app: PathBuf,
    /// Turn on a feature of the app; may be repeated.
    #[arg(long = "feature", value_name = "FEATURE", value_delimiter = ',')]
    features: Vec<String>,
    #[command(flatten)]
    domain: DomainOptions,
    #[command(flatten)]
    host: HostOption,
    /// Seconds after which the domain is destroyed.
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Arguments for the app.
    #[arg(last = true)]
    words: Vec<String>,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    watch_for_interrupts()?;
    let options = &arguments.domain;
    let image = if arguments.app.is_file() {
        arguments.app.clone()
    } else {
        let files = build_app(&App {
            name: arguments.app.to_string_lossy().into_owned(),
            version: None,
            features: arguments.features.clone(),
            opt_level: None,
            trust: Vec::new(),
            out_dir: "target/images".into(),
            folder: ".".into(),
        })?
        .files;
        match options.wants_pvh() {
            true => files.elf.path,
            false => files.img.path,
        }
    };
    let domain = options.domain(&image, &arguments.words)?;
    let limit = arguments.timeout.map(Duration::from_secs);
    run_domain(arguments.host.config(), &domain, limit)
}
