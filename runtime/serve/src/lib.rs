//! A TCP server's connections on a few threads: each thread waits for many connections at once.
//!
//! An app writes a [`Service`], which turns bytes received into bytes to send and knows neither
//! sockets nor threads, and calls [`Server::run`]. It is std and the `polling` crate only, so it
//! runs in an image and on a host.
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

mod output;
mod timers;
mod worker;

pub use output::Output;

use polling::Poller;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;
use std::time::Duration;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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

/// One thread, as the others see it.
struct Seat {
    poller: Poller,
    /// Accepted for it, not yet taken.
    queue: Mutex<Vec<std::net::TcpStream>>,
    counters: Counters,
}

/// What all threads share.
struct Shared<S> {
    service: S,
    config: Config,
    seats: Box<[Seat]>,
    open: AtomicUsize,
    stop: AtomicBool,
    drain: AtomicBool,
    /// Connections may still be dealt out.
    accepting: AtomicBool,
}

impl<S> Shared<S> {
    /// Has all threads look at the flags.
    fn wake(&self) {
        for seat in &self.seats {
            // It fails only when the poller is broken: then its thread has ended already.
            let _ = seat.poller.notify();
        }
    }
}

/// A server; a clone is the same one.
pub struct Server<S>(Arc<Shared<S>>);

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for Server<S> {
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
            accepting: AtomicBool::new(true),
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

    /// What it has done so far, over all threads.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats::default();
        let mut closed = 0;
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
pub struct Observer<S>(Weak<Shared<S>>);

impl<S: Service> Observer<S> {
    /// See [`Server::stats`].
    #[must_use]
    pub fn stats(&self) -> Option<Stats> {
        self.0.upgrade().map(|shared| Server(shared).stats())
    }
}

impl<S> std::fmt::Debug for Observer<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

impl Seat {
    fn take_queue(&self) -> Vec<std::net::TcpStream> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut queue)
    }

    fn hand_over(&self, stream: std::net::TcpStream) -> io::Result<()> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push(stream);
        drop(queue);
        self.poller.notify()
    }
}

#[cfg(test)]
mod tests;
