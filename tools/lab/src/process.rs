//! Child processes that cannot outlive us.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use shared_child::SharedChild;

use crate::error::{LabError, Result};

/// A child that is killed when this is dropped, and by the kernel when the
/// process dies without dropping it (`setpriv --pdeathsig`, util-linux).
///
/// The kernel's signal is tied to the *thread* that made the child
/// (`PR_SET_PDEATHSIG`, prctl(2)), and tests start labs from threads that end
/// early; so each child has a thread of its own that starts it and waits.
#[derive(Debug)]
pub(crate) struct Guarded {
    child: Arc<SharedChild>,
    waiter: Option<JoinHandle<()>>,
}

impl Guarded {
    /// Starts `program` with `args`; `configure` sets its streams.
    pub(crate) fn spawn(
        program: &str,
        args: Vec<String>,
        configure: impl FnOnce(&mut Command) + Send + 'static,
    ) -> Result<Guarded> {
        let (sender, receiver) = mpsc::channel();
        let name = program.to_owned();
        let waiter = thread::spawn(move || {
            let mut command = Command::new("setpriv");
            command
                .args(["--pdeathsig", "KILL", "--", &name])
                .args(args)
                .stdin(Stdio::null());
            // A Ctrl-C is for us: we end our children in order.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            configure(&mut command);
            match SharedChild::spawn(&mut command) {
                Ok(child) => {
                    let child = Arc::new(child);
                    // The receiver waits for exactly this.
                    let _ = sender.send(Ok(Arc::clone(&child)));
                    let _ = child.wait();
                }
                Err(error) => {
                    let _ = sender.send(Err(error));
                }
            }
        });
        let spawned = receiver
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("its thread died")));
        match spawned {
            Ok(child) => Ok(Guarded {
                child,
                waiter: Some(waiter),
            }),
            Err(source) => Err(LabError::Spawn {
                program: program.to_owned(),
                source,
            }),
        }
    }

    pub(crate) fn child(&self) -> &SharedChild {
        &self.child
    }

    /// How it ended, if it did.
    pub(crate) fn ended(&self) -> Option<String> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(status.to_string()),
            Ok(None) => None,
            Err(error) => Some(error.to_string()),
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // Fails only if it has already ended.
        let _ = self.child.kill();
        if let Some(waiter) = self.waiter.take() {
            let _ = waiter.join();
        }
    }
}

/// The last `count` lines of a text.
pub(crate) fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_takes_the_end() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "b\nc");
        assert_eq!(last_lines("a", 2), "a");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn drop_kills() {
        let guarded = Guarded::spawn("sleep", vec!["1000".into()], |_| ()).unwrap();
        let pid = guarded.child().id();
        assert!(guarded.ended().is_none());
        drop(guarded);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
