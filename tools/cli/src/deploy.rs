//! `segue deploy`: starts a domain that stays.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use segue_lab::{AfterEnd, XenHost};
use serde::Serialize;

use crate::host::{DomainOptions, HostOption, find_image};
use crate::output::{outln, print_json};

/// Start a domain that stays, on a Xen host or in the lab.
///
/// Copies the image to the host, as /var/lib/segue/NAME.kernel, writes NAME.cfg beside it, and has
/// xl start it. It is started anew when it reboots or crashes, and removed after a power-off.
/// Nothing is replaced silently: where a domain of that name runs, nothing is done; files of an
/// earlier deployment are only overwritten with --replace.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  segue deploy httpd --xen-host root@xen1 --name web --vcpus 2 --vif bridge=xenbr0 \\
      --ip 10.0.0.2/24 --gateway 10.0.0.1
  segue deploy httpd --memory 128 --vif bridge=xenbr0 --ip 10.0.0.2/24 \\
      -- --upgrade 0.0.0.0:7433 --operator-key WORD    # the first word in operator.pub
  segue deploy target/images/kv.elf --memory 256 --vif bridge=xenbr0 -- --memory 128
  segue deploy httpd --vif bridge=xenbr0 --ip 10.0.0.2/24 --dry-run    # only show the configuration

Then: segue logs web -f; with an upgrade service, as in the second one,
segue upgrade --key operator 10.0.0.2 new/httpd.bundle.
Exit codes: 0 it was started; 1 it was not.")]
pub struct Arguments {
    /// The image: NAME.img (hvm), NAME.elf (pvh), or the name of an app that was built.
    image: PathBuf,
    #[command(flatten)]
    domain: DomainOptions,
    #[command(flatten)]
    host: HostOption,
    /// Overwrite the files of an earlier deployment of that name.
    #[arg(long)]
    replace: bool,
    /// Only print the xl configuration.
    #[arg(long)]
    dry_run: bool,
    /// Arguments for the app.
    #[arg(last = true)]
    words: Vec<String>,
}

/// What was done.
#[derive(Serialize)]
struct Done {
    name: String,
    domid: u32,
    host: Option<String>,
    config: String,
    image: String,
}

pub fn run(arguments: &Arguments, json: bool) -> Result<ExitCode> {
    let options = &arguments.domain;
    let image = find_image(&arguments.image, options.wants_pvh())?;
    let mut domain = options.domain(&image, &arguments.words)?;
    domain.after_end = AfterEnd::Restart;
    if options.name().is_none() {
        // One that says what it is, and that the next command can be given.
        domain.name = image
            .file_stem()
            .map_or(domain.name, |stem| stem.to_string_lossy().into_owned());
    }
    if arguments.dry_run {
        let text = XenHost::deployment(&domain)?;
        outln!("{}", text.trim_end())?;
        return Ok(ExitCode::SUCCESS);
    }
    let lab = arguments.host.lasting()?;
    let deployed = lab.host().deploy(&domain, arguments.replace)?;
    let done = Done {
        name: domain.name,
        domid: deployed.domid,
        host: arguments.host.config().xen_host,
        config: deployed.config,
        image: deployed.kernel,
    };
    if json {
        return print_json(&done).map(|()| ExitCode::SUCCESS);
    }
    let host = done.host.as_deref().unwrap_or("the lab");
    outln!("{} runs on {host}, domain {}", done.name, done.domid)?;
    outln!("  configuration  {}", done.config)?;
    outln!("  image          {}", done.image)?;
    outln!("its console: segue logs {} -f", done.name)?;
    Ok(ExitCode::SUCCESS)
}
