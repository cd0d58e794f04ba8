//! `segue confirm` and `segue rollback`: the end of a probation, one way or the other.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use segue::upgrade::client::ClientError;
use segue::upgrade::protocol::{Answer, Command};

use crate::output::outln;
use crate::remote::{self, EXIT_CODES, Key, LOOK, Reach};

/// How long the image before may take to be back.
const BACK: Duration = Duration::from_secs(60);

/// End a new image's probation: it is good, and stays.
#[derive(Debug, clap::Args)]
#[command(
    after_help = format!("Examples:\n  segue confirm --key ~/keys/operator 10.0.0.2\n\n{EXIT_CODES}")
)]
pub struct Confirm {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    reach: Reach,
}

pub fn confirm(arguments: &Confirm) -> anyhow::Result<ExitCode> {
    let host = &arguments.reach.open()?;
    let key = arguments.key.read()?;
    let mut client = host.connect(Instant::now() + LOOK)?;
    let (build, generation) = (client.hello().build, client.hello().generation);
    let answer = client.command(Command::Confirm { build }, &key);
    match answer.map_err(|error| host.wrong(error))? {
        Answer::Confirmed { ended: true, .. } => {
            outln!("{host}: generation {generation} is confirmed")?;
        }
        Answer::Confirmed { ended: false, .. } => {
            outln!("{host}: generation {generation} was on no probation; nothing to do")?;
        }
        _ => return Err(host.wrong(ClientError::Garbled)),
    }
    Ok(ExitCode::SUCCESS)
}

/// Put the image before back, while the new one is on probation.
///
/// It is a switch like any other: the app's state goes along.
#[derive(Debug, clap::Args)]
#[command(
    after_help = format!("Examples:\n  segue rollback --key ~/keys/operator 10.0.0.2\n\n{EXIT_CODES}")
)]
pub struct Rollback {
    #[command(flatten)]
    key: Key,
    #[command(flatten)]
    reach: Reach,
}

pub fn rollback(arguments: &Rollback) -> anyhow::Result<ExitCode> {
    let host = &arguments.reach.open()?;
    let key = arguments.key.read()?;
    let client = host.connect(Instant::now() + LOOK)?;
    let mut client = remote::roll_back(host, client, &key, BACK)?;
    let hello = client.hello().clone();
    outln!(
        "{host}: the image before is back, as generation {}, build {}",
        hello.generation,
        hello.build
    )?;
    if let Ok(Some(status)) = remote::status(host, &mut client)
        && let Some(switch) = &status.switch
    {
        outln!("  {}", remote::describe(switch))?;
    }
    Ok(ExitCode::SUCCESS)
}
