//! `segue logs`: what a domain has printed.

use std::io;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use segue_lab::LabError;

use crate::host::HostOption;

/// Show what a domain has printed on its console.
///
/// By the log that the host's xenconsoled keeps. A host that keeps none (XENCONSOLED_TRACE=guest in
/// its configuration has it do so) can show what is printed from now on, with -f.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  segue logs web
  segue logs web -f                       # and go on, until Ctrl-C
  segue logs web --xen-host root@xen1 | grep 'segue: switch'

Exit codes: 0 shown; 1 there is no such log, or no connection; 130 Ctrl-C.")]
pub struct Arguments {
    /// The domain.
    name: String,
    /// Go on with what it prints from now on.
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    host: HostOption,
}

pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let lab = arguments.host.lasting()?;
    let mut out = io::stdout().lock();
    match lab
        .host()
        .show_console_log(&arguments.name, arguments.follow, &mut out)
    {
        // Whoever read it has enough.
        Err(LabError::File { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {}
        result => result?,
    }
    Ok(ExitCode::SUCCESS)
}
