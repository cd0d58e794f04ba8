//! Serves the files of its image over HTTP.
//!
//! `httpd [--listen ADDRESS:PORT] [--root FOLDER] [--threads N] [--replace-every MS [--until
//! GENERATION]]`
//!
//! In an image the root is `/www` of its file tree (`apps/httpd/files/www`); on a host, where it
//! is for trying out, it is `apps/httpd/files/www` itself. Clients stay when the image is replaced,
//! in the middle of a file, too, if the next image has the same. `--upgrade ADDRESS:PORT` has the
//! upgrade service there, for the operators in `/etc/segue/operators.pub`, or the one whose public
//! key is `--operator-key KEY`.
use httpd::{Gauge, Http, Limits, Site};
use segue_serve::Server;
use segue_serve::app::{self, Options};
use std::path::PathBuf;
use std::process::ExitCode;

segue::trial!();

/// What is handed over: the clients, and what else is known.
const CLIENTS: &str = "clients";
const KNOWN: &str = "known";

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn serve() -> Result<(), String> {
    let mut root = PathBuf::from(platform::ROOT);
    let options = Options::read(platform::LISTEN, "--root FOLDER, ", |option, value| {
        let known = option == "--root";
        if known {
            root = value.into();
        }
        Ok(known)
    })?;
    let mut site = Site::load(&root, platform::content).map_err(said)?;
    site.keep(platform::kept());
    let (files, bytes) = (site.len(), site.bytes());
    let http = Http::new(site, Limits::default(), platform::gauges());

    // On trial: what was handed over and can't be used is an error, and the image before goes on.
    let mut before = segue::handover();
    if let Some(before) = &mut before {
        let known = before.take_if_any(KNOWN).map_err(said)?;
        http.go_on(known.unwrap_or_default());
    }
    let server = Server::new(http, options.config).map_err(said)?;
    Http::observe(&server);
    let listener = server.take(&mut before, CLIENTS).map_err(said)?;
    app::commit();
    options.have_upgrades(before.as_mut())?;
    drop(before);

    let listener = app::listener(listener, options.listen)?;
    server.hand_over(CLIENTS, &listener);
    let knows = server.clone();
    segue::on_replace(move |next| Ok(next.put(KNOWN, &knows.service().known())?));
    println!(
        "httpd: files={files} bytes={bytes} listen={} threads={}",
        options.listen, options.config.threads
    );
    app::drain_at_the_end(&server)?;
    options.start_replacing("httpd")?;
    server.run(&listener).map_err(said)
}

fn main() -> ExitCode {
    // For tests: an image that does not get through its trial.
    #[cfg(all(feature = "panics", target_os = "hermit"))]
    assert!(!segue::on_trial(), "this image is no good");
    app::exit("httpd", serve())
}

/// In an image: files lie in it and are sent from there.
#[cfg(target_os = "hermit")]
mod platform {
    use super::Gauge;
    use httpd::metrics::Kind;
    use std::io;
    use std::net::{IpAddr, Ipv6Addr, SocketAddr};
    use std::path::Path;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 80);
    pub const ROOT: &str = "/www";

    pub fn content(path: &Path) -> io::Result<&'static [u8]> {
        match path.to_str().and_then(segue::file) {
            Some(bytes) => Ok(bytes),
            // Not of the tree: a file of /tmp.
            None => std::fs::read(path).map(|bytes| &*bytes.leak()),
        }
    }

    /// The ramdisk, where files may lie, passes from image to image.
    pub fn kept() -> Vec<&'static [u8]> {
        segue::modules()
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
}

/// On a host, for trying out.
#[cfg(not(target_os = "hermit"))]
mod platform {
    use super::Gauge;
    use std::io;
    use std::net::{IpAddr, Ipv4Addr, SocketAddr};
    use std::path::Path;

    pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
    pub const ROOT: &str = "apps/httpd/files/www";

    pub fn content(path: &Path) -> io::Result<&'static [u8]> {
        // Read once, served until the end.
        std::fs::read(path).map(|bytes| &*bytes.leak())
    }

    pub const fn kept() -> Vec<&'static [u8]> {
        Vec::new()
    }

    pub const fn gauges() -> Vec<Gauge> {
        Vec::new()
    }
}
