//! A key-value store in memory that speaks Redis's protocol.
//!
//! `kv [--listen ADDRESS:PORT] [--memory MIB] [--threads N] [--replace-at KEYS [--until GENERATION]]
//! [--upgrade ADDRESS:PORT [--operator-key KEY]]`
//!
//! The keys stay when the image is replaced, in the memory they have then: `--memory` is for the
//! first. With `--replace-at` it replaces itself by the first bundle that it came with, when it has
//! so many keys; up to generation 2, if nothing else is said. With `--upgrade` it has the upgrade
//! service there, for the operators in `/etc/segue/operators.pub`, or the one with this public key.
use kv::store::{Table, TableError};
use kv::{Kv, Limits};
use segue::preserved::CreateError;
use segue_serve::{Config, Server};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

segue::trial!();

/// How often it is looked whether there are as many keys as are replaced at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

struct Arguments {
    listen: SocketAddr,
    memory: Option<usize>,
    config: Config,
    replace_at: Option<usize>,
    until: u64,
    upgrade: Option<SocketAddr>,
    operator: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        listen: platform::LISTEN,
        memory: None,
        config: Config::default(),
        replace_at: None,
        until: 2,
        upgrade: None,
        operator: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("{word} needs a value"))?;
        let bad = |what| format!("{word}: '{value}' is no {what}");
        match &word[..] {
            "--listen" => arguments.listen = value.parse().map_err(|_| bad("ADDRESS:PORT"))?,
            "--memory" => {
                let mib: usize = value.parse().map_err(|_| bad("number of MiB"))?;
                let bytes = mib.checked_mul(1 << 20);
                arguments.memory = Some(bytes.ok_or_else(|| bad("number of MiB"))?);
            }
            "--replace-at" => {
                arguments.replace_at = Some(value.parse().map_err(|_| bad("number of keys"))?);
            }
            "--until" => arguments.until = value.parse().map_err(|_| bad("number"))?,
            "--upgrade" => {
                arguments.upgrade = Some(value.parse().map_err(|_| bad("ADDRESS:PORT"))?)
            }
            "--operator-key" => arguments.operator = Some(value),
            "--threads" => arguments.config.threads = value.parse().map_err(|_| bad("number"))?,
            _ => {
                return Err(format!(
                    "unknown option {word}; there are --listen ADDRESS:PORT, --memory MIB, \
                     --threads N, --replace-at KEYS, --until GENERATION, --upgrade ADDRESS:PORT, \
                     --operator-key KEY"
                ));
            }
        }
    }
    Ok(arguments)
}

/// The table of the image before, or an empty one. What was handed over and is no table we can use
/// is an error: on trial, where it lets the image before go on with its keys.
fn table(memory: Option<usize>) -> Result<Table, TableError> {
    let taken = Table::take()?;
    platform::commit();
    if let Some(table) = taken {
        return Ok(table);
    }
    if let Some(memory) = memory {
        return Table::new(memory);
    }
    // What is free may not be in one piece.
    let mut memory = platform::memory();
    loop {
        match Table::new(memory) {
            Err(TableError::Create(CreateError::NoMemory { .. })) if memory > 1 << 20 => {
                memory -= memory / 8;
            }
            result => return result,
        }
    }
}

fn serve() -> Result<(), String> {
    let Arguments {
        listen,
        memory,
        config,
        replace_at,
        until,
        upgrade,
        operator,
    } = arguments()?;
    let mut before = segue::handover();
    let mut table = table(memory).map_err(|error| error.to_string())?;
    let (memory, keys) = {
        let store = table.open();
        (store.memory(), store.len())
    };
    let service = Kv::new(table, Limits::new(memory), platform::now).on_platform(platform::info);
    let server = Server::new(service, config).map_err(|error| error.to_string())?;
    Kv::observe(&server);
    println!(
        "kv: listen={listen} memory_mib={} threads={} keys={keys}",
        memory >> 20,
        config.threads
    );
    let sweeper = server.clone();
    thread::Builder::new()
        .name("sweep".into())
        .spawn(move || {
            loop {
                thread::sleep(sweeper.service().sweep());
            }
        })
        .map_err(|error| error.to_string())?;
    platform::end_with_the_domain(&server)?;
    if let Some(address) = upgrade {
        platform::upgrade(address, operator.as_deref(), before.as_mut())?;
    }
    drop(before);
    if let Some(keys) = replace_at.filter(|_| platform::generation() < until) {
        let server = server.clone();
        thread::Builder::new()
            .name("replace".into())
            .spawn(move || {
                while server.service().len() < keys {
                    thread::sleep(LOOK_EVERY);
                }
                platform::replace();
            })
            .map_err(|error| error.to_string())?;
    }
    server
        .listen(listen)
        .map_err(|error| format!("{listen}: {error}"))
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv: {error}");
            platform::refuse(&error);
            ExitCode::FAILURE
        }
    }
}

/// In an image: half of what is free is for keys and values.
#[cfg(target_os = "hermit")]
mod platform {
    use super::{IpAddr, Kv, Server, SocketAddr};
    use segue::handover::Incoming;
    use segue::upgrade::Config;
    use std::net::Ipv6Addr;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 6379);

    pub fn memory() -> usize {
        usize::try_from(segue::free_frames() * 4096 / 2).unwrap_or(usize::MAX)
    }

    pub fn now() -> u64 {
        segue::system_time() / 1_000_000
    }

    pub fn commit() {
        segue::commit();
    }

    pub fn generation() -> u64 {
        segue::generation()
    }

    /// On trial: the image before goes on.
    pub fn refuse(why: &str) {
        if segue::on_trial() {
            segue::refuse(why);
        }
    }

    pub fn replace() {
        let Some(bundle) = segue::bundles().next() else {
            return println!("kv: it came with no bundle");
        };
        let error = segue::replace_image(bundle).unwrap_err();
        println!("kv: stays: {error}");
    }

    /// Has the upgrade service.
    pub fn upgrade(
        address: SocketAddr,
        operator: Option<&str>,
        before: Option<&mut Incoming>,
    ) -> Result<(), String> {
        let config = Config::new(address);
        let config = match operator {
            Some(key) => config.operators(key),
            None => config.image_operators(),
        };
        let config = config.map_err(|error| error.to_string())?;
        segue::upgrade::listen(config, before).map_err(|error| error.to_string())
    }

    /// A section of `INFO`.
    pub fn info() -> String {
        format!(
            "\r\n# Segue\r\ngeneration:{}\r\nmemory_free:{}\r\nvcpus:{}\r\n",
            segue::generation(),
            segue::free_frames() * 4096,
            segue::vcpus()
        )
    }

    /// Asked to end, it answers what was asked before.
    pub fn end_with_the_domain(server: &Server<Kv>) -> Result<(), String> {
        let server = server.clone();
        segue::shutdown::on_request(move |_| server.drain()).map_err(|error| error.to_string())
    }
}

/// On a host, for trying out.
#[cfg(not(target_os = "hermit"))]
mod platform {
    use super::{IpAddr, Kv, Server, SocketAddr};
    use std::net::Ipv4Addr;
    use std::sync::LazyLock;
    use std::time::Instant;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6379);

    pub fn memory() -> usize {
        256 << 20
    }

    pub fn now() -> u64 {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        u64::try_from(START.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub fn commit() {}

    pub fn generation() -> u64 {
        1
    }

    pub fn refuse(_: &str) {}

    pub fn replace() {
        println!("kv: only in a domain");
    }

    pub fn upgrade(
        _: SocketAddr,
        _: Option<&str>,
        _: Option<&mut segue::handover::Incoming>,
    ) -> Result<(), String> {
        Err("--upgrade: only in a domain".into())
    }

    pub fn info() -> String {
        String::new()
    }

    pub fn end_with_the_domain(_: &Server<Kv>) -> Result<(), String> {
        Ok(())
    }
}
