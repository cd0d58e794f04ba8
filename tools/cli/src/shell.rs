//! `segue completion` and `segue man`: the command, for shells and for man(1).

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use clap_complete::Shell;

use crate::output::outln;

/// Print a script with which a shell completes this command.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  segue completion bash >~/.local/share/bash-completion/completions/segue
  segue completion zsh >~/.zfunc/_segue
  segue completion fish >~/.config/fish/completions/segue.fish")]
pub struct Completion {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write man pages: this command's, and one for each of its commands.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  segue man | man -l -                    # this command's page
  segue man --out ~/.local/share/man/man1")]
pub struct Man {
    /// The folder for the pages; without, the first one is printed.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

pub fn completion(arguments: &Completion) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut crate::command(), "segue", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub fn man(arguments: &Man) -> Result<ExitCode> {
    let Some(folder) = &arguments.out else {
        let mut page = Vec::new();
        clap_mangen::Man::new(crate::command()).render(&mut page)?;
        io::stdout().write_all(&page)?;
        return Ok(ExitCode::SUCCESS);
    };
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(crate::command(), folder))
        .with_context(|| folder.display().to_string())?;
    outln!(
        "man pages are in {}: man -l {}/segue.1",
        folder.display(),
        folder.display()
    )?;
    Ok(ExitCode::SUCCESS)
}
