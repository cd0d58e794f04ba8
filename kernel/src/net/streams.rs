//! What sockets add to TCP's engine: who is woken for which connection, and ports that are bound
//! before there is a listener or a connection.

use super::ports::Ports;
use super::tcp::{Engine, Id};
use crate::task::wait::WaitQueue;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;

/// The sockets behind TCP's connections and listeners.
#[derive(Debug, Default)]
pub struct Streams {
    waiters: BTreeMap<Id, Arc<WaitQueue>>,
    /// Ports that sockets have bound.
    pub ports: Ports,
}

impl Streams {
    /// From now on `waiters` are woken for `id`.
    pub fn watch(&mut self, id: Id, waiters: Arc<WaitQueue>) {
        self.waiters.insert(id, waiters);
    }

    /// Nobody is woken for `id` any more.
    pub fn forget(&mut self, id: Id) {
        self.waiters.remove(&id);
    }

    /// Wakes those whose readiness may have changed.
    pub fn wake(&self, engine: &mut Engine) {
        for id in engine.events() {
            if let Some(waiters) = self.waiters.get(&id) {
                waiters.wake_all();
            }
        }
    }
}
