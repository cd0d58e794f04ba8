//! `segue allow-downgrade`: a signed statement.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use segue_image::keys;
use segue_kernel::image::{
    Bundle, Manifest, Name, Policy, PublicKey, Scope, Statement, is_semantic,
};
use serde::Serialize;

use crate::output::{outln, print_json};

/// Longest time that a statement may be good for.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Allow one image to be replaced by an older one, for some time, in some place.
///
/// An image with trusted keys refuses a bundle that is older than itself. The statement that this
/// writes, signed with a key that the running image trusts, is handed to it along with the older
/// bundle (`Replace::downgrade`), which has to be signed as well.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  segue allow-downgrade --key release --from kv-2.bundle --to kv-1.bundle \\\n      --domain 0b4cd9b1-7a9e-4a6c-9d0e-3a4f6f6f6f01 --for 2h -o back.statement\n  segue allow-downgrade --key release --from kv-2.bundle --to kv-1.bundle \\\n      --fleet eu-west --for 1day -o back.statement\n\nThe UUID is in `xl list -v` or `xl vm-list`; a fleet is what segue.fleet=NAME on a domain's\ncommand line says."
)]
pub struct Arguments {
    /// The private key, as `segue keygen` writes it.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The bundle of the image that runs.
    #[arg(long, value_name = "BUNDLE")]
    from: PathBuf,
    /// The older bundle.
    #[arg(long, value_name = "BUNDLE")]
    to: PathBuf,
    /// The UUID of the domain that it is for.
    #[arg(long, value_name = "UUID", required_unless_present = "fleet")]
    domain: Option<uuid::Uuid>,
    /// The name of the fleet that it is for.
    #[arg(long, value_name = "NAME", conflicts_with = "domain")]
    fleet: Option<String>,
    /// How long it is good, from now on: 30min, 2h, 1day.
    #[arg(long = "for", value_name = "TIME")]
    valid: humantime::Duration,
    /// Where the statement goes.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// What was written.
#[derive(Serialize)]
struct Written<'a> {
    file: &'a Path,
    expires: u64,
    key: String,
}

pub fn run(arguments: &Arguments, json: bool) -> anyhow::Result<ExitCode> {
    let out = &arguments.output;
    let statement = statement(arguments).context("no statement was written")?;
    let key = keys::read_private(&arguments.key).context("no statement was written")?;
    segue_image::write(out, &statement.sign(&key)).context("no statement was written")?;
    let key = PublicKey::of(&key).id();
    if json {
        print_json(&Written {
            file: out,
            expires: statement.expires,
            key: key.to_string(),
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(statement.expires);
    outln!(
        "{}: good until {}, signed with key {key}",
        out.display(),
        humantime::format_rfc3339_seconds(end)
    )?;
    Ok(ExitCode::SUCCESS)
}

fn statement(arguments: &Arguments) -> anyhow::Result<Statement> {
    let from = manifest(&arguments.from)?;
    let to = manifest(&arguments.to)?;
    if from.name != to.name {
        bail!(
            "{} is of app {} and {} of app {}: versions of two apps are not compared, and need no \
             statement",
            arguments.from.display(),
            from.name,
            arguments.to.display(),
            to.name
        );
    }
    if from.build == to.build {
        bail!("both bundles have the same image");
    }
    for version in [&from.version, &to.version] {
        if !is_semantic(version) {
            eprintln!("segue: note: '{version}' is no semantic version");
        }
    }
    let scope = match (&arguments.domain, &arguments.fleet) {
        (Some(uuid), _) => Scope::Domain(*uuid.as_bytes()),
        (None, Some(name)) => match Name::new(name) {
            Some(name) => Scope::Fleet(name),
            None => bail!("'{name}' is no fleet's name: 1 to 32 of a-z, 0-9 and '-'"),
        },
        (None, None) => bail!("say where: --domain UUID or --fleet NAME"),
    };
    let valid: Duration = arguments.valid.into();
    if valid.is_zero() || valid > LONGEST {
        bail!("a statement is good for up to a year, and not for no time");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(Statement {
        from: from.build,
        to: to.build,
        scope,
        expires: (now + valid).as_secs(),
    })
}

/// What the one bundle in a file says.
fn manifest(path: &Path) -> anyhow::Result<Manifest> {
    let name = || path.display().to_string();
    let bytes = std::fs::read(path).with_context(name)?;
    let bundle = Bundle::parse(&bytes).with_context(name)?;
    Ok(bundle.verify(&Policy::OPEN).with_context(name)?.manifest)
}
