//! A key-value store in memory that speaks Redis's protocol.
//!
//! `kv [--listen ADDRESS:PORT] [--memory MIB] [--threads N]`
use kv::{Kv, Limits};
use segue_serve::{Config, Server};
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;
use std::thread;

struct Arguments {
    listen: SocketAddr,
    memory: usize,
    config: Config,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        listen: platform::LISTEN,
        memory: platform::memory(),
        config: Config::default(),
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
                arguments.memory = mib
                    .checked_mul(1 << 20)
                    .ok_or_else(|| bad("number of MiB"))?;
            }
            "--threads" => arguments.config.threads = value.parse().map_err(|_| bad("number"))?,
            _ => {
                return Err(format!(
                    "unknown option {word}; there are --listen ADDRESS:PORT, --memory MIB, \
                     --threads N"
                ));
            }
        }
    }
    Ok(arguments)
}

fn serve() -> Result<(), String> {
    let Arguments {
        listen,
        memory,
        config,
    } = arguments()?;
    let service = Kv::new(Limits::new(memory)).on_platform(platform::info);
    let server = Server::new(service, config).map_err(|error| error.to_string())?;
    Kv::observe(&server);
    println!(
        "kv: listen={listen} memory_mib={} threads={}",
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
    server
        .listen(listen)
        .map_err(|error| format!("{listen}: {error}"))
}

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kv: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In an image: half of what is free is for keys and values.
#[cfg(target_os = "hermit")]
mod platform {
    use super::{IpAddr, Kv, Server, SocketAddr};
    use std::net::Ipv6Addr;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 6379);

    pub fn memory() -> usize {
        usize::try_from(segue::free_frames() * 4096 / 2).unwrap_or(usize::MAX)
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

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6379);

    pub fn memory() -> usize {
        256 << 20
    }

    pub fn info() -> String {
        String::new()
    }

    pub fn end_with_the_domain(_: &Server<Kv>) -> Result<(), String> {
        Ok(())
    }
}
