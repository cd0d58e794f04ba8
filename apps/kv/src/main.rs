//! A key-value store in memory that speaks Redis's protocol.
//!
//! `kv [--listen ADDRESS:PORT] [--memory MIB] [--threads N] [--replace-at KEYS | --replace-every MS]
//! [--until GENERATION]`
//!
//! Keys and clients stay when the image is replaced, the keys in the memory they have then:
//! `--memory` is for the first. With `--replace-at` it replaces itself when it has so many keys, up
//! to generation 2, if nothing else is said; with `--replace-every` again and again.
//! `--upgrade ADDRESS:PORT` has the upgrade service there, for the operators in
//! `/etc/segue/operators.pub`, or the one whose public key is `--operator-key KEY`.
use kv::store::{Table, TableError};
use kv::{Counted, Kv, Limits};
use segue::preserved::CreateError;
use segue_serve::Server;
use segue_serve::app::{self, Options};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

segue::trial!();

/// How often it is looked whether there are as many keys as are replaced at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// What is handed over: the clients, and what was counted. The table is a region.
const CLIENTS: &str = "clients";
const COUNTED: &str = "counted";

/// An empty table.
fn new_table(memory: Option<usize>) -> Result<Table, TableError> {
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

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn serve() -> Result<(), String> {
    let (mut memory, mut replace_at) = (None, None);
    let usage = "--memory MIB, --replace-at KEYS, ";
    let mut options = Options::read(platform::LISTEN, usage, |option, value| {
        match option {
            "--memory" => {
                let mib: usize = app::value(option, value, "number of MiB")?;
                let bytes = mib.checked_mul(1 << 20);
                memory = Some(bytes.ok_or_else(|| format!("{option}: {mib} MiB are too many"))?);
            }
            "--replace-at" => replace_at = Some(app::value(option, value, "number of keys")?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;

    // On trial: what was handed over and can't be used is an error, and the image before goes on
    // with its keys and clients.
    let mut before = segue::handover();
    let table = match Table::take().map_err(said)? {
        Some(table) => table,
        None => {
            app::commit();
            new_table(memory).map_err(said)?
        }
    };
    let (memory, keys) = table.size();
    let mut kv = Kv::new(table, Limits::new(memory), platform::now).on_platform(platform::info);
    if let Some(before) = &mut before {
        let counted = before.take_if_any(COUNTED).map_err(said)?;
        kv.go_on(counted.unwrap_or_default());
    }
    let server = Server::new(kv, options.config).map_err(said)?;
    Kv::observe(&server);
    let listener = server.take(&mut before, CLIENTS).map_err(said)?;
    app::commit();
    options.have_upgrades(before.as_mut())?;
    drop(before);

    let listener = app::listener(listener, options.listen)?;
    server.hand_over(CLIENTS, &listener);
    let counts = server.clone();
    segue::on_replace(move |next| {
        let counted: Counted = counts.service().counted();
        Ok(next.put(COUNTED, &counted)?)
    });
    println!(
        "kv: listen={} memory_mib={} threads={} keys={keys}",
        options.listen,
        memory >> 20,
        options.config.threads
    );
    let sweeper = server.clone();
    app::in_thread("sweep", move || {
        loop {
            thread::sleep(sweeper.service().sweep());
        }
    })?;
    app::drain_at_the_end(&server)?;
    options.start_replacing("kv")?;
    if let Some(keys) = replace_at {
        options.until = options.until.or(Some(2));
        replace_at_keys(keys, &options, &server)?;
    }
    server.run(&listener).map_err(said)
}

fn replace_at_keys(keys: usize, options: &Options, server: &Server<Kv>) -> Result<(), String> {
    if !options.replaces() {
        return Ok(());
    }
    let server = server.clone();
    app::in_thread("replace", move || {
        while server.service().len() < keys {
            thread::sleep(LOOK_EVERY);
        }
        app::replace("kv", 0);
    })
}

fn main() -> ExitCode {
    app::exit("kv", serve())
}

/// In an image: half of what is free is for keys and values.
#[cfg(target_os = "hermit")]
mod platform {
    use std::net::{IpAddr, Ipv6Addr, SocketAddr};

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 6379);

    pub fn memory() -> usize {
        usize::try_from(segue::free_frames() * 4096 / 2).unwrap_or(usize::MAX)
    }

    pub fn now() -> u64 {
        segue::system_time() / 1_000_000
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
}

/// On a host, for trying out.
#[cfg(not(target_os = "hermit"))]
mod platform {
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
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

    pub fn info() -> String {
        String::new()
    }
}
