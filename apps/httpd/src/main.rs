//! Serves the files of its image over HTTP.
//!
//! `httpd [--listen ADDRESS:PORT] [--root FOLDER] [--threads N]
//! [--upgrade ADDRESS:PORT [--operator-key KEY]]`
//!
//! In an image the root is `/www` of its file tree (`apps/httpd/files/www`); on a host, where it
//! is for trying out, it is `apps/httpd/files/www` itself. With `--upgrade` it has the upgrade service
//! there, for the operators in `/etc/segue/operators.pub`, or the one with this public key.
use httpd::{Gauge, Http, Limits, Site};
use segue_serve::{Config, Server};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

struct Arguments {
    listen: SocketAddr,
    root: PathBuf,
    config: Config,
    upgrade: Option<SocketAddr>,
    operator: Option<String>,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = Arguments {
        listen: platform::LISTEN,
        root: platform::ROOT.into(),
        config: Config::default(),
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
            "--root" => arguments.root = value.into(),
            "--upgrade" => {
                arguments.upgrade = Some(value.parse().map_err(|_| bad("ADDRESS:PORT"))?)
            }
            "--operator-key" => arguments.operator = Some(value),
            "--threads" => arguments.config.threads = value.parse().map_err(|_| bad("number"))?,
            _ => {
                return Err(format!(
                    "unknown option {word}; there are --listen ADDRESS:PORT, --root FOLDER, \
                     --threads N, --upgrade ADDRESS:PORT, --operator-key KEY"
                ));
            }
        }
    }
    Ok(arguments)
}

fn serve() -> Result<(), String> {
    let Arguments {
        listen,
        root,
        config,
        upgrade,
        operator,
    } = arguments()?;
    let site = Site::load(&root, platform::content).map_err(|error| error.to_string())?;
    println!(
        "httpd: files={} bytes={} listen={listen} threads={}",
        site.len(),
        site.bytes(),
        config.threads
    );
    let http = Http::new(site, Limits::default(), platform::gauges());
    let server = Server::new(http, config).map_err(|error| error.to_string())?;
    Http::observe(&server);
    platform::end_with_the_domain(&server)?;
    if let Some(address) = upgrade {
        platform::upgrade(address, operator.as_deref())?;
    }
    server
        .listen(listen)
        .map_err(|error| format!("{listen}: {error}"))
}

/// An image that does not get through its trial, for tests.
#[cfg(all(feature = "panics", target_os = "hermit"))]
segue::trial!();

fn main() -> ExitCode {
    #[cfg(all(feature = "panics", target_os = "hermit"))]
    assert!(!segue::on_trial(), "this image is no good");
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("httpd: {error}");
            ExitCode::FAILURE
        }
    }
}

/// In an image: files lie in it and are sent from there.
#[cfg(target_os = "hermit")]
mod platform {
    use super::{Gauge, Http, Server, SocketAddr};
    use httpd::metrics::Kind;
    use segue::upgrade::Config;
    use std::io;
    use std::net::{IpAddr, Ipv6Addr};
    use std::path::Path;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);
    pub const ROOT: &str = if cfg!(feature = "unhealthy") {
        "/tmp"
    } else {
        "/www"
    };

    pub fn content(path: &Path) -> io::Result<&'static [u8]> {
        match path.to_str().and_then(segue::file) {
            Some(bytes) => Ok(bytes),
            // Not of the tree: a file of /tmp.
            None => std::fs::read(path).map(|bytes| &*bytes.leak()),
        }
    }

    pub fn gauges() -> Vec<Gauge> {
        use Kind::{Counter, Gauge};
        vec![
            metric(
                "segue_generation",
                "1 for the image the domain booted, one more for each committed switch.",
                Gauge,
                || segue::generation() as f64,
            ),
            metric(
                "segue_memory_free_bytes",
                "Memory in free frames.",
                Gauge,
                || segue::free_frames() as f64 * 4096.0,
            ),
            metric("segue_vcpus", "Virtual CPUs.", Gauge, || {
                f64::from(segue::vcpus())
            }),
            metric(
                "segue_net_receive_packets_total",
                "Frames received.",
                Counter,
                || segue::network().rx_frames as f64,
            ),
            metric(
                "segue_net_receive_bytes_total",
                "Bytes received.",
                Counter,
                || segue::network().rx_bytes as f64,
            ),
            metric(
                "segue_net_receive_drop_total",
                "Frames and packets received that were not used.",
                Counter,
                || segue::network().rx_dropped as f64,
            ),
            metric(
                "segue_net_transmit_packets_total",
                "Frames sent.",
                Counter,
                || segue::network().tx_frames as f64,
            ),
            metric(
                "segue_net_transmit_bytes_total",
                "Bytes sent.",
                Counter,
                || segue::network().tx_bytes as f64,
            ),
            metric(
                "segue_net_transmit_drop_total",
                "Frames and packets that could not be sent.",
                Counter,
                || segue::network().tx_dropped as f64,
            ),
        ]
    }

    const fn metric(
        name: &'static str,
        help: &'static str,
        kind: Kind,
        read: fn() -> f64,
    ) -> Gauge {
        Gauge {
            name,
            help,
            kind,
            read,
        }
    }

    /// Has the upgrade service.
    pub fn upgrade(address: SocketAddr, operator: Option<&str>) -> Result<(), String> {
        let config = Config::new(address);
        let config = match operator {
            Some(key) => config.operators(key),
            None => config.image_operators(),
        };
        let config = config.map_err(|error| error.to_string())?;
        let mut before = segue::handover();
        segue::upgrade::listen(config, before.as_mut()).map_err(|error| error.to_string())
    }

    /// Asked to end, it answers what was asked before.
    pub fn end_with_the_domain(server: &Server<Http>) -> Result<(), String> {
        let server = server.clone();
        segue::shutdown::on_request(move |_| server.drain()).map_err(|error| error.to_string())
    }
}

/// On a host, for trying out.
#[cfg(not(target_os = "hermit"))]
mod platform {
    use super::{Gauge, Http, Server, SocketAddr};
    use std::io;
    use std::net::{IpAddr, Ipv4Addr};
    use std::path::Path;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
    pub const ROOT: &str = "apps/httpd/files/www";

    pub fn content(path: &Path) -> io::Result<&'static [u8]> {
        // Read once, served until the end.
        std::fs::read(path).map(|bytes| &*bytes.leak())
    }

    pub fn gauges() -> Vec<Gauge> {
        Vec::new()
    }

    pub fn upgrade(_: SocketAddr, _: Option<&str>) -> Result<(), String> {
        Err("--upgrade: only in a domain".into())
    }

    pub fn end_with_the_domain(_: &Server<Http>) -> Result<(), String> {
        Ok(())
    }
}
