//! A lab that one process holds and others use.
//!
//! The holder keeps a lock on `session.lock`; a session file without a held
//! lock is a leftover of a process that died.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::LabConfig;
use crate::error::{LabError, Result};
use crate::xen_host::Connection;

/// What `session.json` says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The process that holds the lab.
    pub pid: u32,
    /// Its folder with Xen's log.
    pub run_dir: PathBuf,
    /// Memory for domains.
    pub domains_mib: u64,
    /// How to reach dom0.
    pub connection: Connection,
}

impl Session {
    /// The session that is up, if there is one.
    #[must_use]
    pub fn find(config: &LabConfig) -> Option<Session> {
        let lock = File::open(lock_path(&config.dir)).ok()?;
        match lock.try_lock_shared() {
            // Nobody holds it: what the file says is stale.
            Ok(()) => None,
            Err(_) => read(&file_path(&config.dir)),
        }
    }
}

/// Keeps a session on offer; withdraws it when dropped.
#[derive(Debug)]
pub struct Offer {
    file: PathBuf,
    _lock: File,
}

impl Offer {
    /// Takes the lock, so that one process at a time offers a session.
    pub(crate) fn claim(config: &LabConfig) -> Result<Offer> {
        fs::create_dir_all(&config.dir).map_err(LabError::file(&config.dir))?;
        let path = lock_path(&config.dir);
        let lock = File::create(&path).map_err(LabError::file(&path))?;
        let file = file_path(&config.dir);
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = read(&file).map_or(0, |session| session.pid);
                return Err(LabError::SessionUp { pid });
            }
            Err(TryLockError::Error(error)) => return Err(LabError::file(path)(error)),
        }
        // A leftover must not be taken for ours while we start.
        let _ = fs::remove_file(&file);
        Ok(Offer { file, _lock: lock })
    }

    /// Publishes the session.
    pub(crate) fn publish(&self, session: &Session) -> Result<()> {
        let text = serde_json::to_string_pretty(session)
            .map_err(|error| LabError::file(&self.file)(error.into()))?;
        let part = self.file.with_extension("part");
        fs::write(&part, text)
            .and_then(|()| fs::rename(&part, &self.file))
            .map_err(LabError::file(&self.file))
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        // A leftover is harmless: its lock is free.
        let _ = fs::remove_file(&self.file);
    }
}

fn lock_path(dir: &Path) -> PathBuf {
    dir.join("session.lock")
}

fn file_path(dir: &Path) -> PathBuf {
    dir.join("session.json")
}

fn read(path: &Path) -> Option<Session> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_found_while_it_is_held() {
        let dir = tempfile::tempdir().unwrap();
        let config = LabConfig {
            dir: dir.path().into(),
            ..LabConfig::from_env()
        };
        let session = Session {
            pid: 7,
            run_dir: "/run".into(),
            domains_mib: 1,
            connection: Connection {
                target: "root@x".into(),
                options: vec!["-4".into()],
                control: "/sock".into(),
            },
        };
        assert!(Session::find(&config).is_none());
        let offer = Offer::claim(&config).unwrap();
        assert!(Session::find(&config).is_none());
        offer.publish(&session).unwrap();
        assert_eq!(Session::find(&config).unwrap().pid, 7);
        assert!(matches!(
            Offer::claim(&config),
            Err(LabError::SessionUp { pid: 7 })
        ));
        let json = fs::read_to_string(file_path(&config.dir)).unwrap();
        drop(offer);
        assert!(Session::find(&config).is_none());
        // A process that died leaves the file and frees the lock.
        fs::write(file_path(&config.dir), json).unwrap();
        assert!(Session::find(&config).is_none());
    }
}
