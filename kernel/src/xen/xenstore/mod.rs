//! xenstore: the toolstack's tree of names and values (docs/misc/xenstore.txt, io/xs_wire.h).
//!
//! What comes from there is not trusted: lengths, ids and strings are checked, and a breach of the
//! protocol closes the client: every call is an error from then on, and nothing panics.

mod connection;
pub mod wire;

pub use connection::{Connection, RequestId};
pub use wire::{Ring, Torn, Violation};

use crate::sync::Lock;
use crate::xen::wait::WaitQueue;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use wire::Op;

/// Longest path, in bytes (`XENSTORE_ABS_PATH_MAX`).
pub const PATH_MAX: usize = 3072;
/// How long a reply may take, in ns; after that the caller gets [`Error::TimedOut`].
const PATIENCE_NS: u64 = 30_000_000_000;
/// How often a transaction, or a directory that changes, is tried again.
const TRIES: u32 = 100;

/// Why xenstored refused (`xsd_errors` of io/xs_wire.h).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// `ENOENT`
    NotFound,
    /// `EACCES` or `EPERM`
    AccessDenied,
    /// `EEXIST`
    Exists,
    /// `EINVAL`
    Invalid,
    /// `EAGAIN`: a transaction met another's changes.
    Again,
    /// `E2BIG`
    TooBig,
    /// `ENOSPC`, a quota
    NoSpace,
    /// `ENOSYS`
    Unsupported,
    /// `EBUSY`
    Busy,
    /// Any other.
    Other,
}

impl Refusal {
    fn parse(payload: &[u8]) -> Self {
        match payload.strip_suffix(b"\0").unwrap_or(payload) {
            b"ENOENT" => Self::NotFound,
            b"EACCES" | b"EPERM" => Self::AccessDenied,
            b"EEXIST" => Self::Exists,
            b"EINVAL" => Self::Invalid,
            b"EAGAIN" => Self::Again,
            b"E2BIG" => Self::TooBig,
            b"ENOSPC" => Self::NoSpace,
            b"ENOSYS" => Self::Unsupported,
            b"EBUSY" => Self::Busy,
            _ => Self::Other,
        }
    }
}

/// Why a call failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// xenstored said no.
    Refused(Refusal),
    /// The other side broke the protocol, and nothing is asked any more.
    Closed(Violation),
    /// There is no xenstore, or not yet.
    Absent,
    /// No reply came.
    TimedOut,
    /// A path or value is too long, or a path has a NUL in it.
    TooLong,
    /// A value is not what it should be.
    Value,
}

impl Error {
    /// Whether the node is just not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        *self == Self::Refused(Refusal::NotFound)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(r) => write!(f, "xenstore refused: {r:?}"),
            Self::Closed(v) => write!(f, "xenstore broke the protocol: {v}"),
            Self::Absent => f.write_str("no xenstore"),
            Self::TimedOut => f.write_str("xenstore did not answer"),
            Self::TooLong => f.write_str("a xenstore path or value is too long"),
            Self::Value => f.write_str("a xenstore value makes no sense"),
        }
    }
}

impl From<Violation> for Error {
    fn from(v: Violation) -> Self {
        Self::Closed(v)
    }
}

/// Something under a watched path has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchEvent {
    /// What changed.
    pub path: String,
    /// What the watch was given.
    pub token: String,
}

/// A transaction's number; 0 for none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction(u32);

impl Transaction {
    /// Each call by itself.
    pub const NONE: Self = Self(0);
}

struct Inner<R> {
    connection: Connection,
    ring: R,
    frozen: bool,
}

impl<R: Ring> Inner<R> {
    fn pump(&mut self) {
        // What comes after that is the next image's, if there is one: it begins with a message.
        if self.frozen && self.connection.is_quiet() {
            return;
        }
        if self.connection.pump(&mut self.ring) {
            self.ring.notify();
        }
    }
}

/// Calls that wait for the reply; any thread may make them.
pub struct Client<R> {
    inner: Lock<Inner<R>>,
    waiters: WaitQueue,
}

impl<R> fmt::Debug for Client<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl<R: Ring> Client<R> {
    /// Over a ring on which no message is under way; requests are numbered from `first_id` on.
    pub const fn new(ring: R, first_id: u32) -> Self {
        Self::over(ring, Connection::new(first_id))
    }

    /// Over a ring and what is known of the messages on it.
    pub const fn over(ring: R, connection: Connection) -> Self {
        Self {
            inner: Lock::new(Inner {
                connection,
                ring,
                frozen: false,
            }),
            waiters: WaitQueue::new(),
        }
    }

    /// Who waits for replies or events; to be woken when the ring has moved.
    pub fn waiters(&self) -> &WaitQueue {
        &self.waiters
    }

    fn call(&self, op: Op, t: Transaction, parts: &[&[u8]]) -> Result<Vec<u8>, Error> {
        let deadline = crate::xen::wait::now().saturating_add(PATIENCE_NS);
        let id = self
            .waiters
            .wait_until(Some(deadline), || {
                let mut inner = self.inner.lock();
                (!inner.frozen).then(|| inner.connection.request(op, t.0, parts))
            })
            .unwrap_or(Err(Error::TimedOut))?;
        let reply = self.waiters.wait_until(Some(deadline), || {
            let mut inner = self.inner.lock();
            inner.pump();
            inner.connection.take(id)
        });
        // One thread's look takes all threads' replies off the ring.
        self.waiters.wake_all();
        reply.unwrap_or_else(|| {
            self.inner.lock().connection.abandon(id);
            Err(Error::TimedOut)
        })
    }

    fn call_path(
        &self,
        op: Op,
        t: Transaction,
        path: &str,
        rest: &[&[u8]],
    ) -> Result<Vec<u8>, Error> {
        if path.len() > PATH_MAX || path.bytes().any(|b| b == 0) {
            return Err(Error::TooLong);
        }
        let mut parts = arrayvec::ArrayVec::<&[u8], 4>::new();
        parts.extend([path.as_bytes(), &[0]]);
        parts.extend(rest.iter().copied().take(2));
        self.call(op, t, &parts)
    }

    /// A node's value (`XS_READ`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read(&self, t: Transaction, path: &str) -> Result<Vec<u8>, Error> {
        self.call_path(Op::Read, t, path, &[])
    }

    /// A node's value as text.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read_text(&self, t: Transaction, path: &str) -> Result<String, Error> {
        String::from_utf8(self.read(t, path)?).map_err(|_| Error::Value)
    }

    /// A node's value as a decimal number; `None` when the node is not there.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn read_number<N: core::str::FromStr>(
        &self,
        t: Transaction,
        path: &str,
    ) -> Result<Option<N>, Error> {
        match self.read_text(t, path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|_| Error::Value),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Sets a node's value, making it where it isn't there (`XS_WRITE`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn write(&self, t: Transaction, path: &str, value: &[u8]) -> Result<(), Error> {
        self.call_path(Op::Write, t, path, &[value]).map(drop)
    }

    /// Removes a node and what is under it (`XS_RM`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn remove(&self, t: Transaction, path: &str) -> Result<(), Error> {
        self.call_path(Op::Rm, t, path, &[]).map(drop)
    }

    /// Makes a node, empty if it isn't there (`XS_MKDIR`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn mkdir(&self, t: Transaction, path: &str) -> Result<(), Error> {
        self.call_path(Op::Mkdir, t, path, &[]).map(drop)
    }

    /// The names under a node (`XS_DIRECTORY`, and in parts where they are many).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn directory(&self, t: Transaction, path: &str) -> Result<Vec<String>, Error> {
        match self.call_path(Op::Directory, t, path, &[]) {
            Ok(payload) => names(&payload),
            Err(Error::Refused(Refusal::TooBig)) => self.directory_in_parts(t, path),
            Err(e) => Err(e),
        }
    }

    fn directory_in_parts(&self, t: Transaction, path: &str) -> Result<Vec<String>, Error> {
        let mut all = Vec::new();
        let mut generation = Vec::new();
        for _ in 0..TRIES {
            let offset = alloc::format!("{}\0", all.len());
            let payload = self.call_path(Op::DirectoryPart, t, path, &[offset.as_bytes()])?;
            let end = payload.iter().position(|b| *b == 0).ok_or(Error::Value)?;
            let (count, rest) = payload.split_at(end);
            let rest = rest.get(1..).ok_or(Error::Value)?;
            if generation != count {
                // Changed while it was read: again from the start.
                let first = generation.is_empty();
                generation = count.to_vec();
                if !first {
                    all.clear();
                    continue;
                }
            }
            // The last part ends with an empty name.
            if rest == b"\0" {
                return names(&all);
            }
            let last = rest.ends_with(b"\0\0");
            all.extend_from_slice(rest.strip_suffix(b"\0").filter(|_| last).unwrap_or(rest));
            if last {
                return names(&all);
            }
            if rest.is_empty() {
                return Err(Error::Value);
            }
        }
        Err(Error::Refused(Refusal::Again))
    }

    /// Has changes of a node, and under it, told as events with `token`; one comes at once
    /// (`XS_WATCH`), also where there is such a watch already, of an image before: what it was told
    /// of last it may not have looked at.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn watch(&self, path: &str, token: &str) -> Result<(), Error> {
        let token_parts = [token.as_bytes(), &[0]];
        match self.call_path(Op::Watch, Transaction::NONE, path, &token_parts) {
            Err(Error::Refused(Refusal::Exists)) => {
                let event = WatchEvent {
                    path: path.into(),
                    token: token.into(),
                };
                let mut inner = self.inner.lock();
                inner.connection.add_event(event)?;
                drop(inner);
                self.waiters.wake_all();
                Ok(())
            }
            other => other.map(drop),
        }
    }

    /// Ends a watch (`XS_UNWATCH`); an event that is under way may still come.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn unwatch(&self, path: &str, token: &str) -> Result<(), Error> {
        self.call_path(
            Op::Unwatch,
            Transaction::NONE,
            path,
            &[token.as_bytes(), &[0]],
        )
        .map(drop)
    }

    /// Ends all watches and transactions of this domain, those of an image before included
    /// (`XS_RESET_WATCHES`).
    ///
    /// # Errors
    /// See [`Error`].
    pub fn reset_watches(&self) -> Result<(), Error> {
        self.call(Op::ResetWatches, Transaction::NONE, &[&[0]])
            .map(drop)
    }

    /// Transactions that are open.
    pub fn open_transactions(&self) -> Vec<u32> {
        self.inner.lock().connection.open().into()
    }

    /// Ends transactions that nobody here has begun.
    ///
    /// # Errors
    /// See [`Error`]; that one was not there is none.
    pub fn end_transactions(&self, open: &[u32]) -> Result<(), Error> {
        for t in open {
            match self.call(Op::TransactionEnd, Transaction(*t), &[b"F\0"]) {
                Ok(_) | Err(Error::Refused(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Runs `f` in a transaction, again when another one came in between. An error of `f` ends the
    /// transaction without effect.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn transaction<T>(
        &self,
        mut f: impl FnMut(Transaction) -> Result<T, Error>,
    ) -> Result<T, Error> {
        for _ in 0..TRIES {
            let start = self.call(Op::TransactionStart, Transaction::NONE, &[&[0]])?;
            let t = Transaction(connection::number(&start).ok_or(Error::Value)?);
            let result = f(t);
            let end: &[u8] = if result.is_ok() { b"T\0" } else { b"F\0" };
            match self.call(Op::TransactionEnd, t, &[end]) {
                Err(Error::Refused(Refusal::Again)) if result.is_ok() => {}
                Err(e) if result.is_ok() => return Err(e),
                _ => return result,
            }
        }
        Err(Error::Refused(Refusal::Again))
    }

    /// The next watch event; `None` when `deadline` (system time, in ns) is over or `stop` says so.
    ///
    /// # Errors
    /// The client is closed.
    pub fn next_event(
        &self,
        deadline: Option<u64>,
        mut stop: impl FnMut() -> bool,
    ) -> Result<Option<WatchEvent>, Error> {
        self.waiters
            .wait_until(deadline, || {
                let mut inner = self.inner.lock();
                if !inner.frozen {
                    inner.pump();
                    match inner.connection.next_event() {
                        Ok(None) => {}
                        other => return Some(other),
                    }
                }
                drop(inner);
                stop().then_some(Ok(None))
            })
            .unwrap_or(Ok(None))
    }

    /// Takes no more requests, and waits until all are answered and no message is half read: then
    /// another image can go on with the ring.
    ///
    /// # Errors
    /// [`Error::TimedOut`]; the client goes on as before.
    pub fn freeze(&self, deadline: u64) -> Result<(), Error> {
        self.inner.lock().frozen = true;
        let quiet = self.waiters.wait_until(Some(deadline), || {
            let mut inner = self.inner.lock();
            inner.pump();
            inner.connection.is_quiet().then_some(())
        });
        self.waiters.wake_all();
        quiet.ok_or_else(|| {
            self.thaw();
            Error::TimedOut
        })
    }

    /// Takes requests again.
    pub fn thaw(&self) {
        self.inner.lock().frozen = false;
        self.waiters.wake_all();
    }
}

/// Names that each end with NUL.
fn names(payload: &[u8]) -> Result<Vec<String>, Error> {
    let Some(payload) = payload.strip_suffix(b"\0") else {
        return if payload.is_empty() {
            Ok(Vec::new())
        } else {
            Err(Error::Value)
        };
    };
    payload
        .split(|b| *b == 0)
        .map(|name| match core::str::from_utf8(name) {
            Ok(name) if !name.is_empty() && !name.contains('/') => Ok(String::from(name)),
            _ => Err(Error::Value),
        })
        .collect()
}

#[cfg(target_os = "hermit")]
pub use shared::{Before, SharedRing, adopt, before, client, find, home};

#[cfg(target_os = "hermit")]
mod shared {
    use super::wire::{Interface, Marks, Ring, Torn, Violation};
    use super::{Client, Connection, Error};
    use crate::memory::Gfn;
    use crate::xen::hypercall::{self, Port};
    use crate::xen::{Committed, events};
    use alloc::vec::Vec;
    use hermit_sync::OnceCell;

    /// The ring page and its port: `HVM_PARAM_STORE_PFN` and `HVM_PARAM_STORE_EVTCHN`.
    #[derive(Clone, Copy, Debug)]
    pub struct SharedRing {
        /// The ring's frame.
        pub gfn: Gfn,
        /// The port to xenstored.
        pub port: Port,
    }

    impl SharedRing {
        fn interface(&self) -> &'static Interface {
            // SAFETY: `adopt`'s promise: the frame is the ring, mapped; all fields are atomics.
            unsafe { &*self.gfn.addr().as_ptr::<Interface>() }
        }

        /// What is on the way: for a crash, so it takes no lock.
        pub fn torn(&self) -> Torn {
            self.interface().torn(&MARKS)
        }
    }

    /// Of the one ring there is.
    static MARKS: Marks = Marks::new();

    impl Ring for SharedRing {
        fn look(&mut self, buf: &mut [u8]) -> Result<usize, Violation> {
            self.interface().look(buf)
        }

        fn take(&mut self, count: usize) {
            self.interface().take(count);
        }

        fn reply_begins(&mut self, len: u32) {
            self.interface().mark_reply(&MARKS, len);
        }

        fn request_begins(&mut self, len: u32) {
            self.interface().mark_request(&MARKS, len);
        }

        fn room(&self) -> Result<usize, Violation> {
            self.interface().room()
        }

        fn send(&mut self, bytes: &[u8]) -> Result<usize, Violation> {
            self.interface().send(bytes)
        }

        fn notify(&mut self) {
            if let Some(token) = Committed::get() {
                let _ = hypercall::send(token, self.port);
            }
        }
    }

    static CLIENT: OnceCell<(SharedRing, Client<SharedRing>)> = OnceCell::new();
    static BEFORE: OnceCell<Before> = OnceCell::new();

    /// What the connection has gone through before this image.
    #[derive(Clone, PartialEq, Eq, Debug)]
    pub enum Before {
        /// Whoever used it has left nothing that this image knows of.
        Unknown,
        /// An image has crashed and left this on its way.
        Crashed(Torn),
        /// An image has come to rest, and this one goes on with its watches; these transactions of
        /// its are open.
        AtRest(Vec<u32>),
    }

    /// What the connection has gone through, once it is adopted.
    pub fn before() -> Option<&'static Before> {
        BEFORE.get()
    }

    /// Asks Xen where the ring is.
    #[must_use]
    pub fn find(token: Committed) -> Option<SharedRing> {
        let get = |index| {
            hypercall::hvm_get_param(token, index)
                .ok()
                .filter(|v| *v != 0)
        };
        Some(SharedRing {
            gfn: Gfn::new(get(hypercall::HVM_PARAM_STORE_PFN)?)?,
            port: Port(u32::try_from(get(hypercall::HVM_PARAM_STORE_EVTCHN)?).ok()?),
        })
    }

    /// Makes `ring` the connection to xenstored; events are handled from here on. Makes no hypercall
    /// where an image has come to rest: its port is open.
    ///
    /// # Safety
    /// Its frame is the xenstore ring, mapped writable for as long as this image runs, and no
    /// message is under way in it but what `before` says.
    pub unsafe fn adopt(token: Committed, ring: SharedRing, generation: u64, before: &Before) {
        let first_id = (generation as u32) << 24 | 1;
        let connection = match before {
            Before::Unknown => Connection::new(first_id),
            Before::Crashed(torn) => Connection::after_crash(first_id, *torn),
            Before::AtRest(open) => Connection::going_on(first_id, open.clone()),
        };
        ring.interface().mark_nothing(&MARKS);
        CLIENT.get_or_init(|| (ring, Client::over(ring, connection)));
        BEFORE.get_or_init(|| before.clone());
        let handler = |_| {
            if let Some((_, client)) = CLIENT.get() {
                client.waiters().wake_all();
            }
        };
        match before {
            Before::AtRest(_) => events::adopt(ring.port, handler),
            _ => events::handle(token, ring.port, handler),
        }
    }

    /// The client.
    ///
    /// # Errors
    /// There is no xenstore, or it is not adopted yet.
    pub fn client() -> Result<&'static Client<SharedRing>, Error> {
        CLIENT.get().map(|(_, client)| client).ok_or(Error::Absent)
    }

    /// Where the ring is, for the next image.
    pub fn home() -> Option<SharedRing> {
        CLIENT.get().map(|(ring, _)| *ring)
    }
}

#[cfg(test)]
mod tests;
