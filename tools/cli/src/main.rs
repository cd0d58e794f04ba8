//! The host command of Segue.

#![forbid(unsafe_code)]

mod build;
mod image;
mod lab;
mod new;
mod output;

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
    /// A real Xen on this machine: prepare it, start it, run domains.
    Lab(lab::Arguments),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Build(arguments) => build::run(arguments),
        Command::Image(arguments) => image::run(arguments),
        Command::New(arguments) => new::run(&arguments),
        Command::Lab(arguments) => lab::run(arguments),
    };
    result.unwrap_or_else(|error| {
        if output::is_closed(&error) {
            return ExitCode::SUCCESS;
        }
        eprintln!("segue: {error:#}");
        ExitCode::FAILURE
    })
}
