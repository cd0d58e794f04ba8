//! The host command of Segue.

#![forbid(unsafe_code)]

mod boot_image;
mod build;
mod confirm;
mod downgrade;
mod image;
mod inspect;
mod keygen;
mod lab;
mod new;
mod output;
mod remote;
mod sign;
mod status;
mod upgrade;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Build, run and upgrade Segue images.
#[derive(Debug, Parser)]
#[command(name = "segue", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Build an app: its image, bundle and xl configurations.
    Build(build::Arguments),
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
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build(arguments) => build::run(arguments),
        Command::Image(arguments) => image::run(arguments),
        Command::New(arguments) => new::run(&arguments),
        Command::Keygen(arguments) => keygen::run(&arguments),
        Command::Sign(arguments) => sign::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::AllowDowngrade(arguments) => downgrade::run(&arguments),
        Command::Upgrade(arguments) => upgrade::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Confirm(arguments) => confirm::confirm(&arguments),
        Command::Rollback(arguments) => confirm::rollback(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
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
