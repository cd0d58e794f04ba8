//! The host command of Segue.

#![forbid(unsafe_code)]

mod boot_image;
mod build;
mod confirm;
mod deploy;
mod downgrade;
mod host;
mod image;
mod inspect;
mod keygen;
mod lab;
mod logs;
mod new;
mod output;
mod remote;
mod run;
mod shell;
mod sign;
mod status;
mod upgrade;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Build, run and upgrade Segue images.
#[derive(Debug, Parser)]
#[command(
    name = "segue",
    version,
    after_help = "\
Examples:
  segue new site --files && segue run site
  segue build httpd
  segue deploy httpd --xen-host root@xen1 --name web --vif bridge=xenbr0 --ip 10.0.0.2/24
  segue upgrade --key operator --healthy http://10.0.0.2/ 10.0.0.2 httpd-0.2.bundle
  segue logs web --xen-host root@xen1 -f

Exit codes: 0 it is done; 1 it is not, standard error says why and what to do; 2 the
command line is wrong; 124 a time is up; 130 Ctrl-C. Commands that have others say so.
Results are on standard output, all else is on standard error. Colours are off where
output is no terminal, or NO_COLOR is set."
)]
struct Arguments {
    /// Print results as JSON, where they are data.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an app: its image, bundle and xl configurations.
    Build(build::Arguments),
    /// Build an app, run it as a domain, and show its console until it ends.
    Run(run::Arguments),
    /// Start a domain that stays, on a Xen host or in the lab.
    Deploy(deploy::Arguments),
    /// Show what a domain has printed on its console.
    Logs(logs::Arguments),
    /// Make the files that start a linked app.
    Image(image::Arguments),
    /// Make a new app that builds at once.
    New(new::Arguments),
    /// Make a key that bundles are signed with.
    Keygen(keygen::Arguments),
    /// Sign bundles.
    Sign(sign::Arguments),
    /// Check bundles as an image that trusts certain keys would.
    Verify(verify::Arguments),
    /// Show what bundles and downgrade statements say.
    Inspect(inspect::Arguments),
    /// Allow one image to be replaced by an older one, for some time, in some place.
    AllowDowngrade(downgrade::Arguments),
    /// Replace the image of a domain that runs, by the one in a bundle.
    Upgrade(upgrade::Arguments),
    /// Show what runs in a domain: image, generation, last switch, probation.
    Status(status::Arguments),
    /// End a new image's probation: it is good, and stays.
    Confirm(confirm::Confirm),
    /// Put the image before back, while the new one is on probation.
    Rollback(confirm::Rollback),
    /// A real Xen on this machine: prepare it, start it, run domains.
    Lab(lab::Arguments),
    /// Print a script with which a shell completes this command.
    Completion(shell::Completion),
    /// Write man pages.
    Man(shell::Man),
}

/// The command, for what describes it.
fn command() -> clap::Command {
    Arguments::command()
}

fn main() -> ExitCode {
    let Arguments { json, command } = Arguments::parse();
    let result = match command {
        Command::Build(arguments) => build::run(arguments, json),
        Command::Run(arguments) => run::run(&arguments),
        Command::Deploy(arguments) => deploy::run(&arguments, json),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Image(arguments) => image::run(arguments, json),
        Command::New(arguments) => new::run(&arguments),
        Command::Keygen(arguments) => keygen::run(&arguments, json),
        Command::Sign(arguments) => sign::run(&arguments, json),
        Command::Verify(arguments) => verify::run(&arguments, json),
        Command::Inspect(arguments) => inspect::run(&arguments, json),
        Command::AllowDowngrade(arguments) => downgrade::run(&arguments, json),
        Command::Upgrade(arguments) => upgrade::run(&arguments, json),
        Command::Status(arguments) => status::run(&arguments, json),
        Command::Confirm(arguments) => confirm::confirm(&arguments),
        Command::Rollback(arguments) => confirm::rollback(&arguments),
        Command::Lab(arguments) => lab::run(arguments, json),
        Command::Completion(arguments) => shell::completion(&arguments),
        Command::Man(arguments) => shell::man(&arguments),
    };
    result.unwrap_or_else(|error| {
        if output::is_closed(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("segue: {error:#}");
        error
            .downcast_ref::<remote::Failed>()
            .map_or(ExitCode::FAILURE, |failed| ExitCode::from(failed.end as u8))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_examples_in_its_help() {
        fn check(command: &clap::Command, path: &str) {
            for below in command.get_subcommands().filter(|c| c.get_name() != "help") {
                let path = format!("{path} {}", below.get_name());
                let help = below.get_after_help().map(ToString::to_string);
                assert!(
                    help.is_some_and(|help| help.contains("Example")),
                    "{path} has no examples"
                );
                check(below, &path);
            }
        }
        let mut command = command();
        command.build();
        check(&command, "segue");
        command.debug_assert();
    }
}
