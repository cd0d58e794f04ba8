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
use segue_kernel::image::{Bundle, Digest};
use segue_lab::{DEPLOYED_DIR, Forward, LabConfig, Offer, XenHost};
use serde_json::Value;

use crate::guest::{Guest, Kind, Running, VIF, tail};
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
        .with_memory(128),
        case("upgrade::hvm_2_boot_image", |s| {
            boot_image(s, Kind::Hvm, "10.0.0.53")
        })
        .with_memory(128),
        case("upgrade::pvh_2_boot_image", |s| {
            boot_image(s, Kind::Pvh, "10.0.0.54")
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

/// What a command has printed.
struct Said {
    out: String,
    err: String,
}

/// Runs the command, which has to end so; gives what it printed.
fn segue(words: &[&str], wanted: i32) -> Result<String> {
    Ok(run(Command::new(SEGUE).args(words), wanted)?.out)
}

fn run(command: &mut Command, wanted: i32) -> Result<Said> {
    let output = command.output().context(SEGUE)?;
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(wanted),
        "{command:?} ended with {} instead of {wanted}:\n{out}{err}",
        output.status
    );
    Ok(Said { out, err })
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

/// A domain that `segue deploy` has started, removed with its files when this is dropped.
struct Deployed<'a> {
    host: &'a XenHost,
    name: String,
    /// Where the command finds the lab.
    folder: PathBuf,
    address: String,
    _offer: Offer,
}

impl Drop for Deployed<'_> {
    fn drop(&mut self) {
        let (name, files) = (&self.name, format!("{DEPLOYED_DIR}/{}", self.name));
        // It is gone with the lab at the latest.
        let _ = self
            .host
            .exec(&format!("xl destroy {name}; rm -f {files}.*"));
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl<'a> Deployed<'a> {
    fn start(s: &'a Shared, kind: Kind, address: &str) -> Result<Self> {
        s.xen.prepare_network()?;
        let host = s.xen.host();
        let name = format!("segue-{kind}-stays");
        let folder = Path::new("target/suite").join(&name);
        let config = LabConfig {
            dir: folder.clone(),
            ..LabConfig::from_env()
        };
        let deployed = Self {
            host,
            name,
            folder,
            address: address.to_owned(),
            _offer: s.xen.lab().offer(&config)?,
        };
        let image = file(&s.images.served()?.httpd, kind);
        let ip = format!("{address}/24");
        let (app, kind) = (arguments()?, kind.to_string());
        let words = [
            &["deploy", &image, "--type", &kind][..],
            &["--name", &deployed.name, "--vcpus", "2", "--memory", "96"],
            &["--vif", VIF, "--ip", &ip, "--replace", "--"],
            &app.split(' ').collect::<Vec<_>>(),
        ]
        .concat();
        deployed.segue(&words, end::DONE)?;
        // It runs: not even its files are touched.
        deployed.segue(&words, 1)?;
        Ok(deployed)
    }

    fn segue(&self, words: &[&str], wanted: i32) -> Result<Said> {
        let mut command = Command::new(SEGUE);
        command.env("SEGUE_LAB_DIR", &self.folder);
        // In place of what the environment says: it may be this very host.
        command.env("SEGUE_XEN_HOST", "lab");
        run(command.args(words), wanted)
    }

    /// Waits until this version runs, as this generation; gives what the command warns of.
    fn wait(&self, generation: u64, version: &str) -> Result<String> {
        let begin = format!(
            "{}: httpd {version}, generation {generation}\n",
            self.address
        );
        let start = Instant::now();
        loop {
            let said = self.segue(&["status", "--via", "lab", &self.address], end::DONE);
            match said {
                Ok(said) if said.out.starts_with(&begin) => return Ok(said.err),
                said => ensure!(
                    start.elapsed() < Duration::from_secs(120),
                    "httpd {version} does not run as generation {generation}: {:?}; its console:\n{}",
                    said.map(|said| said.out),
                    self.console()?
                ),
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    fn console(&self) -> Result<String> {
        Ok(self.segue(&["logs", &self.name], end::DONE)?.out)
    }

    /// What the domain boots, and what is left beside it.
    fn boots(&self) -> Result<String> {
        let kernel = format!("{DEPLOYED_DIR}/{}.kernel", self.name);
        let command = format!("ls {kernel}*; sha256sum <{kernel}");
        Ok(self.host.exec(&command)?.check()?.stdout)
    }
}

/// What `xl` starts.
fn file(image: &Image, kind: Kind) -> String {
    let file = match kind {
        Kind::Hvm => &image.img,
        Kind::Pvh => &image.elf,
    };
    file.display().to_string()
}

/// A domain that stays is upgraded, and boots the new image from then on; not if it is taken back.
fn boot_image(s: &Shared, kind: Kind, address: &str) -> Result<()> {
    let images = s.images.served()?;
    let domain = Deployed::start(s, kind, address)?;
    domain.wait(1, "0.1.0")?;
    let url = format!("http://{address}/health");
    let upgrade = |image: &Image, wanted| {
        let bundle = image.bundle.display().to_string();
        let words = [
            &["upgrade", "--key", OPERATOR, "--xen-host", "lab"][..],
            &["--probation", "20s", "--healthy-timeout", "8s"],
            &["--healthy", &url, "--via", "lab", address, &bundle],
        ];
        domain.segue(&words.concat(), wanted)
    };
    let before = domain.boots()?;
    upgrade(&images.httpd_unhealthy, end::ROLLED_BACK)?;
    domain.wait(3, "0.1.0")?;
    let after = domain.boots()?;
    ensure!(
        before == after,
        "an image that was taken back is booted: {before} became {after}"
    );

    let said = upgrade(&images.httpd_next, end::DONE)?.out;
    let path = format!("{DEPLOYED_DIR}/{}.kernel", domain.name);
    ensure!(said.contains(&path), "nothing of {path}: {said}");
    let bytes = match kind {
        Kind::Hvm => std::fs::read(&images.httpd_next.img)?,
        Kind::Pvh => {
            let bundle = std::fs::read(&images.httpd_next.bundle)?;
            Bundle::parse(&bundle)?.image().to_vec()
        }
    };
    let (wanted, boots) = (
        format!("{path}\n{}  -\n", Digest::of(&[&bytes])),
        domain.boots()?,
    );
    ensure!(boots == wanted, "{boots} is there, not {wanted}");
    let warned = domain.wait(4, "0.2.0")?;
    ensure!(warned.contains("warning"), "no warning: {warned}");
    domain
        .host
        .exec(&format!("xl reboot {}", domain.name))?
        .check()?;
    let warned = domain.wait(1, "0.2.0")?;
    ensure!(warned.is_empty(), "a warning: {warned}");
    let console = domain.console()?;
    let boots: Vec<&str> = console
        .lines()
        .filter_map(|line| line.split_once("segue: boot "))
        .filter(|(_, facts)| !facts.contains(" entry=handover "))
        .filter_map(|(_, facts)| facts.split_once("image="))
        .map(|(_, image)| image.trim_end())
        .collect();
    ensure!(
        boots == ["httpd-0.1.0", "httpd-0.2.0"],
        "booted {boots:?}:\n{console}"
    );
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
