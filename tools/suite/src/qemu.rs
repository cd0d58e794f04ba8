//! The emulator by itself, without a Xen.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Ends the emulator when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // Fails only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Boots a bzImage and returns what its serial port said up to the line that contains `until`, or
/// all of it when the time is up.
pub fn console(kernel: &Path, until: &str, limit: Duration) -> Result<String> {
    let log = kernel.with_extension("qemu.log");
    fs::write(&log, "").with_context(|| log.display().to_string())?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-accel", "tcg", "-cpu", "max", "-m", "64", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-serial")
        .arg(format!("file:{}", log.display()))
        .stdin(Stdio::null());
    let _qemu = Qemu(command.spawn().context("qemu-system-x86_64")?);
    let start = Instant::now();
    loop {
        let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        let complete = text.find(until).is_some_and(|at| text[at..].contains('\n'));
        if complete || start.elapsed() > limit {
            return Ok(text);
        }
        thread::sleep(Duration::from_millis(100));
    }
}
