//! Sockets on a host, for tests: a table in the process. Each thread plays for itself.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};

/// What a socket is found by.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ticket {
    number: u64,
}

struct Table {
    last: u64,
    offered: Vec<(u64, ThreadId, OwnedFd)>,
}

static TABLE: Mutex<Table> = Mutex::new(Table {
    last: 0,
    offered: Vec::new(),
});

fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

pub fn offer(fd: BorrowedFd<'_>) -> io::Result<Ticket> {
    let fd = fd.try_clone_to_owned()?;
    let mut table = table();
    table.last += 1;
    let number = table.last;
    table.offered.push((number, thread::current().id(), fd));
    Ok(Ticket { number })
}

pub fn claim(ticket: &Ticket) -> io::Result<OwnedFd> {
    let mut table = table();
    let at = table.offered.iter().position(|o| o.0 == ticket.number);
    let at = at.ok_or_else(|| io::Error::other("it was taken before"))?;
    Ok(table.offered.swap_remove(at).2)
}

/// What this thread has offered and nobody has taken is closed.
pub fn finish() {
    let me = thread::current().id();
    table().offered.retain(|o| o.1 != me);
}
