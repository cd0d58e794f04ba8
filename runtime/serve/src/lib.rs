//! A TCP server's connections on a few threads: each thread waits for many connections at once.
//!
//! An app writes a [`Service`], which turns bytes received into bytes to send and knows neither
//! sockets nor threads, and calls [`Server::run`]. It runs in an image and on a host. With
//! [`Server::take`] and [`Server::hand_over`] its connections live on when the image is replaced;
//! [`app`] has what else the programs around servers have in common.
//!
//! What holds:
//! - An idle connection owns no buffer: input is read into, and output written from, buffers of
//!   its thread; what is incomplete moves to the connection until it is complete.
//! - A connection whose peer does not read is not read from: its memory is bounded by one output
//!   and one incomplete request.
//! - Connections are known to one thread each, which alone changes what it polls for. Other
//!   threads only notify it.
//! - Before a connection is closed by the server, its peer gets a chance to read the last answer:
//!   the write half is shut down, input is thrown away for a while (RFC 9112, section 9.6).
//! - No thread holds anything of a connection while it waits. So a server is paused as soon as none
//!   is at work, idle threads are not woken for it, and nothing has to be put back afterwards.

pub mod app;
mod handover;
mod output;
mod timers;
mod worker;

pub use handover::{AdoptError, Handover, Paused};
pub use output::{Output, offset_in};

use handover::Carried;

use polling::Poller;
use serde::{Deserialize, Serialize};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;
use worker::Held;

/// What a server does with the bytes of its connections.
pub trait Service: Send + Sync + 'static {
    /// What is known of one connection between two calls.
    type Session: Default + Send;

    /// Takes requests from `input`, which starts where the last call stopped consuming and may be
    /// empty, and adds the answers to `output`. It should stop when `output` [is full](Output::is_full).
    fn input(&self, session: &mut Self::Session, input: &[u8], output: &mut Output) -> Step;

    /// How long the connection may stay silent now. Asked after each [`Service::input`] that said
    /// [`Next::Wait`]; `pending` is the number of bytes that were not consumed.
    fn patience(&self, session: &Self::Session, pending: usize) -> Duration;

    /// The peer was silent for too long: says what to send before the connection is closed.
    fn timed_out(&self, session: &mut Self::Session, pending: usize, output: &mut Output);

    /// The server has the first word: [`Service::input`] is called as soon as there is a connection,
    /// with no input.
    const SPEAKS_FIRST: bool = false;

    /// The peer has sent all: says what to send before the connection is closed. What it sent and
    /// was not consumed is incomplete for ever.
    fn ended(&self, _session: &mut Self::Session, _output: &mut Output) {}

    /// The name by which the next image finds what `slice` is a part of, and where in that it lies
    /// ([`offset_in`]). Asked for what is left of an [`Output::push_static`] when the image is
    /// replaced in the middle of it; without a name it is copied.
    fn name_of(&self, _slice: &'static [u8]) -> Option<(String, usize)> {
        None
    }

    /// What is called so; `None` if this image has not got just that.
    fn named(&self, _name: &str) -> Option<&'static [u8]> {
        None
    }
}

/// What a [`Service`] did with its input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input that are done with.
    pub consumed: usize,
    /// What to do next.
    pub next: Next,
}

/// What to do after a [`Step`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the output, then wait for more input.
    Wait,
    /// Send the output, then call again with the rest of the input.
    Flush,
    /// Send the output, then close.
    Close,
}

/// How a server runs.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Threads; at least one is used.
    pub threads: usize,
    /// Connections open at once; more are closed as they come.
    pub connections: usize,
    /// How long a peer may take none of the output.
    pub send_timeout: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            threads: thread::available_parallelism().map_or(1, usize::from),
            connections: 16 * 1024,
            send_timeout: Duration::from_secs(30),
        }
    }
}

/// A number that one thread counts up and others read.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    fn add(&self, n: usize) {
        // Its own thread alone writes it: no read-modify-write is needed.
        let value = self.0.load(Ordering::Relaxed).wrapping_add(n as u64);
        self.0.store(value, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one thread counts; on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Counters {
    accepted: Counter,
    closed: Counter,
    refused: Counter,
    timeouts: Counter,
    received: Counter,
    sent: Counter,
}

/// What a server has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stats {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections open now.
    pub open: u64,
    /// Connections closed at once, because there were too many.
    pub refused: u64,
    /// Connections closed because their peer was silent or did not read for too long.
    pub timeouts: u64,
    /// Bytes received.
    pub received: u64,
    /// Bytes sent.
    pub sent: u64,
}

/// A connection on its way to a thread.
enum Arrival<D> {
    New(TcpStream),
    /// The image before had it.
    Before(Carried<D>),
}

/// One thread, as the others see it.
struct Seat<D> {
    poller: Poller,
    /// Accepted for it, not yet taken.
    queue: Mutex<Vec<Arrival<D>>>,
    /// Its connections. It has the lock while it works, and only then.
    held: Mutex<Held<D>>,
    resumed: Condvar,
    counters: Counters,
}

/// What all threads share.
struct Shared<S: Service> {
    service: S,
    config: Config,
    seats: Box<[Seat<S::Session>]>,
    open: AtomicUsize,
    stop: AtomicBool,
    drain: AtomicBool,
    paused: AtomicBool,
    /// Connections may still be dealt out.
    accepting: AtomicBool,
    /// What the images before have done; `open` is 0.
    before: Mutex<Before>,
}

/// What the images before have done.
#[derive(Clone, Copy, Debug, Default)]
struct Before {
    stats: Stats,
    closed: u64,
}

impl<S: Service> Shared<S> {
    /// Has all threads look at the flags.
    fn wake(&self) {
        for seat in &self.seats {
            // It fails only when the poller is broken: then its thread has ended already.
            let _ = seat.poller.notify();
        }
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Acquire)
    }

    /// Begins a thread's work, unless the server is paused: then when it is no more.
    fn enter<'a>(&self, seat: &'a Seat<S::Session>) -> MutexGuard<'a, Held<S::Session>> {
        let stays = |_: &mut _| self.is_paused() && !self.stop.load(Ordering::Acquire);
        let waited = seat.resumed.wait_while(seat.held(), stays);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn before(&self) -> MutexGuard<'_, Before> {
        self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets threads go on that wait in [`Shared::enter`].
    fn let_in(&self) {
        for seat in &self.seats {
            // With the lock: a thread that has looked at the flags does wait.
            let _held = seat.held();
            seat.resumed.notify_all();
        }
    }
}

/// A server; a clone is the same one.
pub struct Server<S: Service>(Arc<Shared<S>>);

impl<S: Service> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Service + std::fmt::Debug> std::fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("service", &self.0.service)
            .field("config", &self.0.config)
            .finish_non_exhaustive()
    }
}

impl<S: Service> Server<S> {
    /// A server that does not run yet.
    ///
    /// # Errors
    /// When the system has no way to wait for many connections, or no memory for one.
    pub fn new(service: S, config: Config) -> io::Result<Self> {
        let seat = |_| {
            Ok(Seat {
                poller: Poller::new()?,
                queue: Mutex::default(),
                held: Mutex::default(),
                resumed: Condvar::new(),
                counters: Counters::default(),
            })
        };
        let seats = (0..config.threads.max(1))
            .map(seat)
            .collect::<io::Result<_>>()?;
        Ok(Self(Arc::new(Shared {
            service,
            config,
            seats,
            open: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            drain: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            accepting: AtomicBool::new(true),
            before: Mutex::default(),
        })))
    }

    /// A way to ask for what it has done that does not keep it alive.
    #[must_use]
    pub fn downgrade(&self) -> Observer<S> {
        Observer(Arc::downgrade(&self.0))
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &S {
        &self.0.service
    }

    /// What it has done so far, over all threads, and the images before.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Before {
            mut stats,
            mut closed,
        } = *self.0.before();
        for Seat { counters, .. } in &self.0.seats {
            stats.accepted += counters.accepted.get();
            closed += counters.closed.get();
            stats.refused += counters.refused.get();
            stats.timeouts += counters.timeouts.get();
            stats.received += counters.received.get();
            stats.sent += counters.sent.get();
        }
        stats.open = stats.accepted.saturating_sub(closed);
        stats
    }

    /// Binds and serves; returns after [`Server::stop`] or [`Server::drain`]. The calling thread is one of the
    /// server's.
    ///
    /// # Errors
    /// When the address can't be bound, a thread not be started, or waiting fails.
    pub fn listen(&self, address: SocketAddr) -> io::Result<()> {
        self.run(&TcpListener::bind(address)?)
    }

    /// Serves a listener's connections; returns after [`Server::stop`] or [`Server::drain`]. The
    /// calling thread is one of the server's.
    ///
    /// # Errors
    /// When a thread can't be started, or waiting fails.
    pub fn run(&self, listener: &TcpListener) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        thread::scope(|scope| {
            let mut threads = Vec::new();
            let mut started = Ok(());
            for index in 1..self.0.seats.len() {
                let run = move || self.ending_all(|shared| worker::run(shared, index, None));
                let builder = thread::Builder::new().name(format!("serve{index}"));
                match builder.spawn_scoped(scope, run) {
                    Ok(thread) => threads.push(thread),
                    Err(error) => started = Err(error),
                }
            }
            let result = started
                .and_then(|()| self.ending_all(|shared| worker::run(shared, 0, Some(listener))));
            self.stop();
            threads.into_iter().fold(result, |result, thread| {
                // A thread that panicked has said so.
                result.and(thread.join().unwrap_or(Ok(())))
            })
        })
    }

    /// Runs a thread's work; when it fails, the others end too.
    fn ending_all(&self, run: impl FnOnce(&Shared<S>) -> io::Result<()>) -> io::Result<()> {
        run(&self.0).inspect_err(|_| self.stop())
    }

    /// Ends [`Server::run`]: connections are closed where they are.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.let_in();
        self.0.wake();
    }

    /// Ends [`Server::run`] in good order: no connection is accepted any more, what was asked is
    /// answered, and a connection is closed as soon as it waits for its next request. How long that
    /// takes is up to the peers; [`Server::stop`] ends it.
    pub fn drain(&self) {
        self.0.drain.store(true, Ordering::Release);
        self.0.wake();
    }
}

/// Tells what a server has done, as long as there is one.
pub struct Observer<S: Service>(Weak<Shared<S>>);

impl<S: Service> Observer<S> {
    /// See [`Server::stats`].
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        self.0.upgrade().map(|shared| Server(shared).stats())
    }
}

impl<S: Service> std::fmt::Debug for Observer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl<D> Seat<D> {
    fn queue(&self) -> MutexGuard<'_, Vec<Arrival<D>>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn held(&self) -> MutexGuard<'_, Held<D>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_over(&self, arrival: Arrival<D>) -> io::Result<()> {
        self.queue().push(arrival);
        self.poller.notify()
    }
}

#[cfg(test)]
mod tests;
