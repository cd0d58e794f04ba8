//! The upgrade service of a domain: by the command that people use, and against what comes over a
//! network that nobody watches.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use segue_image::keys;
use segue_lab::Forward;
use serde_json::Value;

use crate::guest::{Guest, Kind, Running, tail};
use crate::images::{Image, OPERATOR};
use crate::live::{beside, look, number, read, told};
use crate::test::{Case, Shared, case};

/// The command.
const SEGUE: &str = "target/release/segue";
/// Where the service listens.
pub const PORT: u16 = 7433;
/// The attacks.
const HOSTILE: (&str, &str) = ("tools/suite/dom0/hostile.py", "/tmp/segue/hostile.py");

/// What `segue upgrade` and the like end with.
mod end {
    pub const DONE: i32 = 0;
    pub const REFUSED: i32 = 3;
    pub const RESUMED: i32 = 4;
    pub const ROLLED_BACK: i32 = 5;
}

/// All tests of this file.
pub fn cases() -> Vec<Case> {
    vec![
        case("upgrade::hvm_2_is_not_had", |s| {
            with_service(s, Kind::Hvm, "10.0.0.51", stands_attacks)
        })
        .with_memory(128),
        case("upgrade::pvh_2_ends_well", |s| {
            with_service(s, Kind::Pvh, "10.0.0.52", ends_well)
        })
        .with_memory(128)
        .on_request(),
    ]
}

/// What the apps are told, to have the service for the operator whose key the command uses.
pub fn arguments() -> Result<String> {
    let public = format!("{OPERATOR}.pub");
    let text = std::fs::read_to_string(&public).with_context(|| public.clone())?;
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let key = lines.find_map(|line| line.split_whitespace().next());
    let key = key.with_context(|| format!("no key in {public}"))?;
    Ok(format!("--upgrade 0.0.0.0:{PORT} --operator-key {key}"))
}

/// A web server with the service.
struct Service<'a> {
    domain: Running<'a>,
    address: &'static str,
    forward: Forward,
    http: Forward,
}

fn with_service(
    s: &Shared,
    kind: Kind,
    address: &'static str,
    body: fn(&Shared, &mut Service<'_>) -> Result<()>,
) -> Result<()> {
    let image = &s.images.served()?.httpd;
    let mut domain = Guest::new(image, kind, 2)
        .network(address)
        .memory(96)
        .cmdline(format!("-- {}", arguments()?))
        .start_serving(&s.xen)?;
    domain.wait_until_said(&["httpd: "])?;
    let host = s.xen.host();
    let mut service = Service {
        domain,
        address,
        forward: host.forward(address, PORT)?,
        http: host.forward(address, 80)?,
    };
    let result = body(s, &mut service);
    let lines = service.domain.stop()?;
    result.with_context(|| format!("the domain's last lines:\n{}", tail(&lines)))
}

impl Service<'_> {
    fn target(&self) -> String {
        format!("127.0.0.1:{}", self.forward.port())
    }

    /// Who runs there.
    fn runs(&self) -> Result<(u64, String)> {
        let said = segue(&["status", "--json", &self.target()], end::DONE)?;
        let status: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        let generation = status.get("generation").and_then(Value::as_u64);
        let version = status.get("version").and_then(Value::as_str);
        let both = generation.zip(version).with_context(|| said.clone())?;
        Ok((both.0, both.1.to_owned()))
    }

    fn is(&self, generation: u64, version: &str) -> Result<()> {
        let runs = self.runs()?;
        ensure!(
            runs == (generation, version.to_owned()),
            "{runs:?} runs, not {version}"
        );
        Ok(())
    }

    fn wait_for_generation(&self, wanted: u64) -> Result<()> {
        let start = Instant::now();
        // There is nobody to ask for a moment, now and then.
        while self.runs().map_or(0, |(generation, _)| generation) < wanted {
            ensure!(
                start.elapsed() < Duration::from_secs(90),
                "generation {wanted} did not come"
            );
            thread::sleep(Duration::from_millis(500));
        }
        Ok(())
    }

    fn upgrade(&self, port: u16, image: &Image, more: &[&str], wanted: i32) -> Result<String> {
        let target = format!("127.0.0.1:{port}");
        let bundle = image.bundle.display().to_string();
        let words = ["upgrade", "--key", OPERATOR, "--probation", "20s"];
        segue(&[&words[..], more, &[&target, &bundle]].concat(), wanted)
    }

    fn free_memory(&self, s: &Shared) -> Result<f64> {
        let url = format!("http://{}/metrics", self.address);
        let page = s
            .xen
            .host()
            .exec(&format!("curl -sSf -m 30 {url}"))?
            .check()?
            .stdout;
        let value = page
            .lines()
            .find_map(|l| l.strip_prefix("segue_memory_free_bytes "));
        Ok(value.with_context(|| page.clone())?.parse()?)
    }
}

/// Runs the command, which has to end so; gives what it printed.
fn segue(words: &[&str], wanted: i32) -> Result<String> {
    let output = Command::new(SEGUE).args(words).output().context(SEGUE)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.code() == Some(wanted),
        "segue {} ended with {} instead of {wanted}:\n{said}{}",
        words.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said)
}

/// Garbage, slow senders, many connections, strangers, replays: nothing changes, the app serves on,
/// and afterwards the operator gets in.
fn stands_attacks(s: &Shared, service: &mut Service<'_>) -> Result<()> {
    let host = s.xen.host();
    host.put(Path::new(HOSTILE.0), HOSTILE.1)?;
    let images = s.images.served()?;
    service.is(1, "0.1.0")?;
    let before = service.free_memory(s)?;
    let watch = [look("probe", service.address, 80, "http 20")];
    let mut notes = Vec::new();
    let said = beside(&s.xen, service.address, &watch, |_| {
        for attack in ["garbage", "slow", "parallel"] {
            let (script, address) = (HOSTILE.1, service.address);
            let command = format!("python3 {script} {address} {PORT} {attack}");
            let output = host.exec_for(&command, Duration::from_secs(200))?.check()?;
            notes.push(output.stdout.trim().to_owned());
            service.is(1, "0.1.0").context(attack)?;
        }
        // Signed, but by somebody else; by nobody.
        let stranger = PathBuf::from(format!("{OPERATOR}.stranger"));
        if !stranger.exists() {
            keys::generate(&stranger)?;
        }
        let stranger = stranger.display().to_string();
        let target = service.target();
        let bundle = images.httpd_next.bundle.display().to_string();
        for words in [
            &["upgrade", "--key", &stranger, &target, &bundle][..],
            &["upgrade", &target, &bundle],
            &["rollback", "--key", &stranger, &target],
            &["rollback", &target],
            &["confirm", &target],
        ] {
            segue(words, end::REFUSED)?;
        }
        service.is(1, "0.1.0").context("strangers")
    })?;
    let probe = read(said.first().context("no client")?)?;
    ensure!(
        number(&probe, "answers")? > 100.0,
        "hardly an answer: {}",
        told(&probe)
    );
    let after = service.free_memory(s)?;
    ensure!(
        after + f64::from(1 << 20) > before,
        "{before} bytes were free, {after} are"
    );

    // What an operator has said works once, whoever says it again.
    let proxy = Proxy::start(service.forward.port(), None)?;
    service.upgrade(proxy.port, &images.httpd_next, &[], end::DONE)?;
    service.is(2, "0.2.0")?;
    let recorded = proxy.recorded();
    ensure!(!recorded.is_empty(), "nothing was recorded");
    let count = recorded.len();
    for bytes in recorded {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, service.forward.port()))?;
        stream.set_read_timeout(Some(Duration::from_secs(40)))?;
        // It may be closed before all is said.
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = io::copy(&mut stream, &mut io::sink());
    }
    service.is(2, "0.2.0").context("a replay")?;
    s.note(format!(
        "upgrade service: {}; {count} connections replayed; a client meanwhile:{}",
        notes.join("; "),
        told(&probe)
    ));
    Ok(())
}

/// Upgrades that go well, break off, panic, are not healthy, or that nobody confirms.
fn ends_well(s: &Shared, service: &mut Service<'_>) -> Result<()> {
    let images = s.images.served()?;
    let url = format!("http://127.0.0.1:{}/health", service.http.port());
    let healthy = ["--healthy", &url, "--healthy-timeout", "8s"];

    // Cut in the middle: the rest is sent over another connection, and only the rest.
    let length = usize::try_from(std::fs::metadata(&images.httpd_next.bundle)?.len())?;
    let proxy = Proxy::start(service.forward.port(), Some(length / 2))?;
    service.upgrade(proxy.port, &images.httpd_next, &healthy, end::DONE)?;
    service.is(2, "0.2.0")?;
    let sent: usize = proxy.recorded().iter().map(Vec::len).sum();
    ensure!(
        proxy.recorded().len() > 1 && sent < length + length / 4,
        "{sent} bytes were sent over {} connections for a bundle of {length}",
        proxy.recorded().len()
    );
    // Once more is nothing.
    service.upgrade(
        service.forward.port(),
        &images.httpd_next,
        &healthy,
        end::DONE,
    )?;
    service.is(2, "0.2.0")?;

    let port = service.forward.port();
    let said = service.upgrade(port, &images.httpd_panics, &healthy, end::RESUMED);
    said.context("an image that panics on trial")?;
    service.is(2, "0.2.0")?;

    // It commits, and says that it is not healthy: taken back. Its state comes along, so that is a
    // generation of its own.
    let said = service.upgrade(port, &images.httpd_unhealthy, &healthy, end::ROLLED_BACK);
    said.context("an image that is not healthy")?;
    service.is(4, "0.2.0")?;

    // Nobody is there to confirm: the one before comes back by itself.
    let mut command = Command::new(SEGUE);
    command
        .args(["upgrade", "--key", OPERATOR, "--probation", "8s"])
        .args([
            "--healthy",
            "http://127.0.0.1:1/",
            "--healthy-timeout",
            "3s",
        ])
        .arg(service.target())
        .arg(&images.httpd_unhealthy.bundle)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut operator = Killed(command.spawn().context(SEGUE)?);
    service.wait_for_generation(5)?;
    operator.kill()?;
    let came_back = service.wait_for_generation(6);
    came_back.context("an image that nobody confirmed stays")?;
    service.is(6, "0.2.0")?;
    let url = format!("http://{}/", service.address);
    s.xen
        .host()
        .exec(&format!("curl -sSf -m 30 {url}"))?
        .check()?;
    Ok(())
}

/// Ends a process.
struct Killed(Child);

impl Killed {
    fn kill(&mut self) -> io::Result<()> {
        self.0.kill()?;
        self.0.wait().map(drop)
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.kill();
    }
}

/// Stands between the command and the service, and keeps what the command says.
struct Proxy {
    port: u16,
    said: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Proxy {
    /// With `cut`, the first connection over which so much has come breaks off.
    fn start(to: u16, cut: Option<usize>) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = listener.local_addr()?.port();
        let said: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let all = Arc::clone(&said);
        let left = Arc::new(AtomicUsize::new(cut.unwrap_or(usize::MAX)));
        // It ends with the process.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else {
                    continue;
                };
                let number = {
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.push(Vec::new());
                    all.len() - 1
                };
                let (all, left) = (Arc::clone(&all), Arc::clone(&left));
                thread::spawn(move || pass(&client, &server, &all, number, &left));
            }
        });
        Ok(Proxy { port, said })
    }

    /// What came over each connection.
    fn recorded(&self) -> Vec<Vec<u8>> {
        self.said
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Passes bytes both ways until either side closes.
fn pass(
    client: &TcpStream,
    server: &TcpStream,
    said: &Mutex<Vec<Vec<u8>>>,
    number: usize,
    left: &AtomicUsize,
) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let (mut from, mut to) = (server, client);
            // Its end is the end, whatever the reason.
            let _ = io::copy(&mut from, &mut to);
            let _ = client.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 8192];
        let (mut from, mut to) = (client, server);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let bytes = &buffer[..count];
            if let Some(all) = said
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get_mut(number)
            {
                all.extend_from_slice(bytes);
            }
            let before = left.load(Ordering::Acquire);
            if before != usize::MAX && before <= count {
                // Once.
                left.store(usize::MAX, Ordering::Release);
                break;
            }
            if before != usize::MAX {
                left.store(before - count, Ordering::Release);
            }
            if to.write_all(bytes).is_err() {
                break;
            }
        }
        for side in [client, server] {
            // It may be closed already.
            let _ = side.shutdown(Shutdown::Both);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proxy_keeps_what_is_said_and_cuts_once() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = server.local_addr().unwrap().port();
        thread::spawn(move || {
            for mut stream in server.incoming().flatten() {
                let mut all = Vec::new();
                let _ = stream.read_to_end(&mut all);
            }
        });
        let proxy = Proxy::start(port, Some(10)).unwrap();
        let mut ended = Vec::new();
        for _ in 0..2 {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).unwrap();
            stream.write_all(b"twelve bytes").unwrap();
            stream
                .set_read_timeout(Some(Duration::from_millis(300)))
                .unwrap();
            ended.push(matches!(stream.read(&mut [0]), Ok(0)));
        }
        assert_eq!(ended, [true, false]);
        assert_eq!(proxy.recorded(), [b"twelve bytes", b"twelve bytes"]);
    }
}
