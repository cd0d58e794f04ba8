//! A Xen host reachable by ssh: the emulated one or a real one.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use wait_timeout::ChildExt;

use crate::error::{LabError, Result};
use crate::process::Guarded;

/// How to reach the host: what `ssh` is called with. All calls share one
/// connection through its control socket.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Connection {
    pub(crate) target: String,
    pub(crate) options: Vec<String>,
    pub(crate) control: PathBuf,
}

impl Connection {
    /// Arguments of `ssh` up to the remote command.
    pub(crate) fn arguments(&self, extra: &[&str]) -> Vec<String> {
        let mut words = self.options.clone();
        words.extend([
            "-o".into(),
            format!("ControlPath={}", self.control.display()),
            "-o".into(),
            "BatchMode=yes".into(),
        ]);
        words.extend(extra.iter().map(|&word| word.to_owned()));
        words.push(self.target.clone());
        words
    }
}

/// What a command on the host printed and how it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Exit status.
    pub status: i32,
    command: String,
}

impl Output {
    /// True if it ended with 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == 0
    }

    /// The output, if the command succeeded.
    ///
    /// # Errors
    /// [`LabError::Remote`] if it did not.
    pub fn check(self) -> Result<Output> {
        if self.success() {
            return Ok(self);
        }
        Err(LabError::Remote {
            command: self.command,
            status: self.status,
            output: format!("{}{}", self.stdout, self.stderr)
                .trim_end()
                .to_owned(),
        })
    }
}

/// A host that runs Xen, where `xl` is called as root.
///
/// Cheap to clone; the connection closes with the last clone. On a real host
/// each running domain takes three ssh sessions of one connection, so raise
/// sshd's `MaxSessions` (10 by default) for more than two domains at once.
#[derive(Debug, Clone)]
pub struct XenHost {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    connection: Connection,
    /// The process that holds the connection, if it is ours.
    _master: Option<Guarded>,
    _socket_dir: Option<tempfile::TempDir>,
    uploaded: Mutex<HashMap<String, String>>,
}

/// Where uploaded kernels and configurations go on the host.
pub(crate) const REMOTE_DIR: &str = "/tmp/segue";

/// Limit of a command without one of its own.
pub(crate) const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);

impl XenHost {
    /// Uses a real Xen host with the user's own ssh configuration.
    ///
    /// # Errors
    /// When the host cannot be reached, or `xl info` fails there.
    pub fn connect(target: &str) -> Result<XenHost> {
        let dir = tempfile::Builder::new()
            .prefix("segue-ssh-")
            .tempdir()
            .map_err(LabError::file(std::env::temp_dir()))?;
        let connection = Connection {
            target: target.to_owned(),
            options: Vec::new(),
            control: dir.path().join("control"),
        };
        let host = XenHost::open(connection, Some(dir), Duration::from_secs(30), || None)?;
        host.exec("xl info")?.check()?;
        Ok(host)
    }

    /// Uses a connection that another process holds.
    pub(crate) fn attach(connection: Connection) -> XenHost {
        XenHost::from_parts(connection, None, None)
    }

    fn from_parts(
        connection: Connection,
        master: Option<Guarded>,
        socket_dir: Option<tempfile::TempDir>,
    ) -> XenHost {
        XenHost {
            inner: Arc::new(Inner {
                connection,
                _master: master,
                _socket_dir: socket_dir,
                uploaded: Mutex::default(),
            }),
        }
    }

    /// Opens a connection and holds it. Tries until `timeout`, because dom0's
    /// sshd may not listen yet; `given_up` says why to stop earlier.
    pub(crate) fn open(
        connection: Connection,
        socket_dir: Option<tempfile::TempDir>,
        timeout: Duration,
        given_up: impl Fn() -> Option<String>,
    ) -> Result<XenHost> {
        let deadline = Instant::now() + timeout;
        let failed = |detail: String| LabError::Connection {
            host: connection.target.clone(),
            detail,
        };
        loop {
            let extra = [
                "-N",
                "-T",
                "-o",
                "ControlMaster=yes",
                "-o",
                "ConnectTimeout=30",
            ];
            let master = Guarded::spawn("ssh", connection.arguments(&extra), |command| {
                command.stdout(Stdio::null()).stderr(Stdio::piped());
            })?;
            let ended = loop {
                if connection.control.exists() {
                    return Ok(XenHost::from_parts(connection, Some(master), socket_dir));
                }
                if let Some(status) = master.ended() {
                    break status;
                }
                if let Some(reason) = given_up() {
                    return Err(failed(reason));
                }
                if Instant::now() >= deadline {
                    return Err(failed(format!("none within {} s", timeout.as_secs())));
                }
                thread::sleep(Duration::from_millis(50));
            };
            let mut said = String::new();
            if let Some(mut stderr) = master.child().take_stderr() {
                // Only to explain the failure.
                let _ = stderr.read_to_string(&mut said);
            }
            let final_word =
                said.contains("Permission denied") || said.contains("verification failed");
            if Instant::now() >= deadline || final_word {
                return Err(failed(format!(
                    "ssh ended with {ended}: {}",
                    said.trim_end()
                )));
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// How to reach this host.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.inner.connection
    }

    /// Runs a shell command and waits for its end, two minutes at most.
    ///
    /// # Errors
    /// When the connection fails or the time is up; a command that ends with
    /// something other than 0 is no error here, see [`Output::check`].
    pub fn exec(&self, command: &str) -> Result<Output> {
        self.exec_for(command, COMMAND_TIMEOUT)
    }

    /// Runs a shell command and waits for its end, `timeout` at most.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn exec_for(&self, command: &str, timeout: Duration) -> Result<Output> {
        self.run(command, Stdio::null(), None, timeout, || true)
    }

    /// Runs a shell command as long as `go_on` says so, which is asked about once a second.
    ///
    /// # Errors
    /// As [`exec`](Self::exec), and [`LabError::RemoteGivenUp`].
    pub fn exec_while(
        &self,
        command: &str,
        timeout: Duration,
        go_on: impl Fn() -> bool,
    ) -> Result<Output> {
        self.run(command, Stdio::null(), None, timeout, go_on)
    }

    /// Runs a shell script of any length.
    ///
    /// # Errors
    /// As [`exec`](Self::exec).
    pub fn script(&self, text: &str, timeout: Duration) -> Result<Output> {
        let mut file = tempfile::tempfile().map_err(LabError::file(std::env::temp_dir()))?;
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| std::io::Seek::rewind(&mut file));
        written.map_err(LabError::file(std::env::temp_dir()))?;
        let mut output = self.run("sh -s", file.into(), None, timeout, || true)?;
        output.command = text.lines().next().unwrap_or_default().to_owned();
        Ok(output)
    }

    /// Copies a file of this machine to the host.
    ///
    /// # Errors
    /// When the file cannot be read, or the copy fails.
    pub fn put(&self, local: &Path, remote: &str) -> Result<()> {
        let file = File::open(local).map_err(LabError::file(local))?;
        let size = file.metadata().map_err(LabError::file(local))?.len();
        // Several may copy the same file at once, and a copy may break off: each
        // writes a part of its own, and only a whole one gets the name.
        let command = format!(
            "part={remote}.$$.part; cat >\"$part\" && \
             test \"$(stat -c %s \"$part\")\" = {size} && mv \"$part\" {remote} || \
             {{ rm -f \"$part\"; echo 'the copy broke off' >&2; exit 1; }}",
            remote = shell_words::quote(remote)
        );
        let limit = transfer_timeout(size);
        self.run(&command, file.into(), None, limit, || true)?
            .check()?;
        Ok(())
    }

    /// Copies a file of the host to this machine.
    ///
    /// # Errors
    /// When the copy fails or the local file cannot be written.
    pub fn get(&self, remote: &str, local: &Path) -> Result<()> {
        let file = File::create(local).map_err(LabError::file(local))?;
        let command = format!("cat {}", shell_words::quote(remote));
        self.run(
            &command,
            Stdio::null(),
            Some(file.into()),
            transfer_timeout(1 << 30),
            || true,
        )?
        .check()?;
        Ok(())
    }

    /// Makes a file available on the host under a name made of its content, once
    /// per session, and returns that name.
    pub(crate) fn upload(&self, local: &Path) -> Result<String> {
        let content = fs::read(local).map_err(LabError::file(local))?;
        let digest = Sha256::digest(&content);
        let name: String = digest[..12]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let mut uploaded = self
            .inner
            .uploaded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(remote) = uploaded.get(&name) {
            return Ok(remote.clone());
        }
        let remote = format!("{REMOTE_DIR}/{name}");
        let there = self.exec(&format!("mkdir -p {REMOTE_DIR} && test -f {remote}"))?;
        if !there.success() {
            self.put(local, &remote)?;
        }
        uploaded.insert(name, remote.clone());
        Ok(remote)
    }

    /// Starts a command whose output is read as it comes, and which is given
    /// up when the result is dropped.
    pub(crate) fn stream(&self, command: &str) -> Result<Guarded> {
        let mut words = self
            .connection()
            .arguments(&["-T", "-o", "ControlMaster=no"]);
        words.push(command.to_owned());
        Guarded::spawn("ssh", words, |command| {
            command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null());
        })
    }

    /// Has a port of this machine lead to an address and port that the host can reach; until the
    /// result is dropped, or the connection closes.
    ///
    /// # Errors
    /// When ssh does not do it.
    pub fn forward(&self, address: &str, port: u16) -> Result<Forward> {
        let local = std::net::TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0))
            .and_then(|listener| listener.local_addr())
            .map_err(LabError::file("127.0.0.1"))?
            .port();
        let what = format!("127.0.0.1:{local}:{address}:{port}");
        let forward = Forward {
            host: self.clone(),
            what,
            port: local,
        };
        forward.ask("forward")?;
        Ok(forward)
    }

    /// An interactive shell, or a command on a terminal, in the foreground.
    ///
    /// # Errors
    /// When ssh cannot be started.
    pub fn interactive(&self, command: Option<&str>) -> Result<i32> {
        let mut words = self
            .connection()
            .arguments(&["-t", "-o", "ControlMaster=no"]);
        words.extend(command.map(str::to_owned));
        let status =
            Command::new("ssh")
                .args(words)
                .status()
                .map_err(|source| LabError::Spawn {
                    program: "ssh".into(),
                    source,
                })?;
        Ok(status.code().unwrap_or(255))
    }

    fn run(
        &self,
        command: &str,
        stdin: Stdio,
        stdout: Option<Stdio>,
        timeout: Duration,
        go_on: impl Fn() -> bool,
    ) -> Result<Output> {
        let spawn_error = |source| LabError::Spawn {
            program: "ssh".into(),
            source,
        };
        let mut child = Command::new("ssh")
            .args(
                self.connection()
                    .arguments(&["-T", "-o", "ControlMaster=no"]),
            )
            .arg(command)
            .stdin(stdin)
            .stdout(stdout.unwrap_or_else(Stdio::piped))
            .stderr(Stdio::piped())
            .spawn()
            .map_err(spawn_error)?;
        let stdout = child.stdout.take().map(read_all);
        let stderr = child.stderr.take().map(read_all);
        let start = Instant::now();
        let mut given_up = false;
        let status = loop {
            let left = timeout.saturating_sub(start.elapsed());
            let status = child.wait_timeout(left.min(Duration::from_secs(1)));
            let status = status.map_err(spawn_error)?;
            if status.is_some() || left.is_zero() {
                break status;
            }
            if !go_on() {
                given_up = true;
                break None;
            }
        };
        if status.is_none() {
            // Fails only if it ended just now.
            let _ = child.kill();
            let _ = child.wait();
        }
        let text = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            let bytes = reader.and_then(|reader| reader.join().ok());
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        let Some(status) = status else {
            let command = command.to_owned();
            return Err(match given_up {
                true => LabError::RemoteGivenUp { command },
                false => LabError::RemoteTimeout { command, timeout },
            });
        };
        let output = Output {
            stdout: text(stdout),
            stderr: text(stderr),
            status: status.code().unwrap_or(255),
            command: command.to_owned(),
        };
        // ssh's own failures end with 255 too (ssh(1), EXIT STATUS).
        if output.status == 255 {
            return Err(LabError::Connection {
                host: self.connection().target.clone(),
                detail: format!("`{command}`: {}", output.stderr.trim_end()),
            });
        }
        Ok(output)
    }
}

/// A port of this machine that leads to somewhere behind the host, see [`XenHost::forward`].
#[derive(Debug)]
pub struct Forward {
    host: XenHost,
    what: String,
    port: u16,
}

impl Forward {
    /// The port, at 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Asks the process that holds the connection.
    fn ask(&self, request: &str) -> Result<()> {
        let extra = ["-O", request, "-L", &self.what];
        let output = Command::new("ssh")
            .args(self.host.connection().arguments(&extra))
            .stdin(Stdio::null())
            .output()
            .map_err(|source| LabError::Spawn {
                program: "ssh".into(),
                source,
            })?;
        if output.status.success() {
            return Ok(());
        }
        Err(LabError::Connection {
            host: self.host.connection().target.clone(),
            detail: String::from_utf8_lossy(&output.stderr)
                .trim_end()
                .to_owned(),
        })
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // With the connection it is gone, too.
        let _ = self.ask("cancel");
    }
}

/// The emulated host takes about 1 MB/s.
fn transfer_timeout(size: u64) -> Duration {
    Duration::from_secs(60 + size / 200_000)
}

fn read_all(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What came before an error is all there is.
        let _ = stream.read_to_end(&mut bytes);
        bytes
    })
}
