//! Connections that go to the next image.
//!
//! A server is [paused](Server::pause), which gives a value that can be handed over; the next image
//! reads it as a [`Handover`] and [adopts](Server::adopt) what is in it. Connections that were not
//! accepted yet wait in the listener. A connection at rest is its ticket, its deadline and its
//! session, whatever else there is goes into a longer entry.

use crate::output::Output;
use crate::worker::{Connection, State};
use crate::{Arrival, Seat, Server, Service, Shared, Stats};
use segue::handover::{Incoming, Socket, TakeError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize, Serializer};
use std::borrow::Cow;
use std::fmt;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longer than that no deadline is told to be: what is added to a time has to stay one.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A connection without its place in a thread.
pub struct Carried<D> {
    pub stream: TcpStream,
    pub state: State,
    pub session: D,
    /// Until its deadline.
    pub left: Duration,
    pub pending: Vec<u8>,
    pub output: Output,
}

impl<D> Carried<D> {
    /// One at rest.
    pub fn new(stream: TcpStream, session: D, left: Duration) -> Self {
        Self {
            stream,
            state: State::Reading,
            session,
            left,
            pending: Vec::new(),
            output: Output::default(),
        }
    }
}

/// A connection at rest, as it is written: stream, milliseconds until its deadline, session.
#[derive(Serialize)]
struct IdleOut<'a, D>(Socket<&'a TcpStream>, u64, &'a D);

#[derive(Debug, Deserialize)]
struct IdleIn<D>(Socket<TcpStream>, u64, D);

/// Any other.
#[derive(Serialize)]
struct BusyOut<'a, D> {
    idle: IdleOut<'a, D>,
    state: State,
    #[serde(with = "serde_bytes")]
    pending: &'a [u8],
    #[serde(with = "serde_bytes")]
    output: Cow<'a, [u8]>,
    rest: Option<Rest>,
}

#[derive(Debug, Deserialize)]
struct BusyIn<D> {
    idle: IdleIn<D>,
    state: State,
    #[serde(with = "serde_bytes")]
    pending: Vec<u8>,
    #[serde(with = "serde_bytes")]
    output: Vec<u8>,
    rest: Option<Rest>,
}

/// What comes after the bytes of an output: a part of something that both images have.
#[derive(Debug, Serialize, Deserialize)]
struct Rest {
    name: String,
    offset: usize,
    len: usize,
}

/// A server that is [paused](Server::pause): a value to be handed over. The next image reads it as a
/// [`Handover`].
#[derive(Debug)]
pub struct Paused<'a, S: Service>(&'a Server<S>);

#[derive(Serialize)]
struct Out<'a, D> {
    stats: Stats,
    fresh: Vec<Socket<&'a TcpStream>>,
    idle: Vec<IdleOut<'a, D>>,
    busy: Vec<BusyOut<'a, D>>,
}

/// The connections of a server that the image before had paused.
#[derive(Deserialize)]
#[serde(bound = "D: Deserialize<'de>")]
pub struct Handover<D> {
    stats: Stats,
    fresh: Vec<Socket<TcpStream>>,
    idle: Vec<IdleIn<D>>,
    busy: Vec<BusyIn<D>>,
}

impl<D> fmt::Debug for Handover<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handover")
            .field("fresh", &self.fresh.len())
            .field("idle", &self.idle.len())
            .field("busy", &self.busy.len())
            .finish_non_exhaustive()
    }
}

/// Why a server can't go on with what the image before had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdoptError {
    /// What was handed over is nothing of a server's, or its sockets did not come.
    Take(TakeError),
    /// In the middle of something being sent: this image has not got just that.
    Unknown {
        /// Its name.
        name: String,
    },
}

impl fmt::Display for AdoptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Take(e) => write!(f, "{e}"),
            Self::Unknown { name } => write!(
                f,
                "{name} is being sent, and this image has it not, or not the same"
            ),
        }
    }
}

impl std::error::Error for AdoptError {}

impl From<TakeError> for AdoptError {
    fn from(error: TakeError) -> Self {
        Self::Take(error)
    }
}

/// What is written of a connection.
struct View<'a, D> {
    stream: &'a TcpStream,
    state: State,
    session: &'a D,
    left: Duration,
    pending: &'a [u8],
    output: &'a Output,
}

impl<'a, D> View<'a, D> {
    fn of(c: &'a Connection<D>, now: Instant) -> Self {
        Self {
            stream: &c.stream,
            state: c.state,
            session: &c.session,
            left: c.deadline.left(now),
            pending: &c.pending,
            output: &c.output,
        }
    }
}

impl<'a, D> From<&'a Carried<D>> for View<'a, D> {
    fn from(c: &'a Carried<D>) -> Self {
        Self {
            stream: &c.stream,
            state: c.state,
            session: &c.session,
            left: c.left,
            pending: &c.pending,
            output: &c.output,
        }
    }
}

impl<'a, D> Out<'a, D> {
    fn add(&mut self, service: &impl Service, view: View<'a, D>) {
        let View { state, pending, .. } = view;
        let left = u64::try_from(view.left.as_millis()).unwrap_or(u64::MAX);
        let idle = IdleOut(Socket::new(view.stream), left, view.session);
        if state == State::Reading && pending.is_empty() {
            return self.idle.push(idle);
        }
        let (bytes, tail) = view.output.parts();
        let mut output = Cow::Borrowed(bytes);
        let mut rest = None;
        if !tail.is_empty() {
            match service.name_of(tail) {
                Some((name, offset)) => {
                    let len = tail.len();
                    rest = Some(Rest { name, offset, len });
                }
                None => output.to_mut().extend_from_slice(tail),
            }
        }
        self.busy.push(BusyOut {
            idle,
            state,
            pending,
            output,
            rest,
        });
    }
}

impl<S: Service<Session: Serialize>> Serialize for Paused<'_, S> {
    fn serialize<T: Serializer>(&self, serializer: T) -> Result<T::Ok, T::Error> {
        let Self(server) = self;
        let Shared { service, seats, .. } = &*server.0;
        let held: Vec<_> = seats.iter().map(Seat::held).collect();
        let queues: Vec<_> = seats.iter().map(Seat::queue).collect();
        let now = Instant::now();
        let mut out = Out {
            stats: server.stats(),
            fresh: Vec::new(),
            idle: Vec::with_capacity(server.0.open.load(Ordering::Relaxed)),
            busy: Vec::new(),
        };
        for connection in held.iter().flat_map(|held| held.connections()) {
            out.add(service, View::of(connection, now));
        }
        for arrival in queues.iter().flat_map(|queue| queue.iter()) {
            match arrival {
                Arrival::New(stream) => out.fresh.push(Socket::new(stream)),
                Arrival::Before(carried) => out.add(service, carried.into()),
            }
        }
        out.serialize(serializer)
    }
}

impl<D> IdleIn<D> {
    fn carried(self) -> Carried<D> {
        let Self(stream, left, session) = self;
        let left = Duration::from_millis(left).min(LONGEST);
        Carried::new(stream.into_inner(), session, left)
    }
}

impl<S: Service> Server<S> {
    /// Holds all threads where no connection is being worked on, for a switch: as soon as each has
    /// done what it is just doing, without waiting for any peer. What comes is received later, what
    /// is not accepted waits in the listener. [`Server::resume`] lets them go on.
    ///
    /// What it gives is handed over by [`Outgoing::put`](segue::handover::Outgoing::put); the
    /// connections go on working here until the switch.
    pub fn pause(&self) -> Paused<'_, S> {
        self.0.paused.store(true, Ordering::Release);
        for seat in &self.0.seats {
            // Whoever is at work has looked before: it is waited for. Who comes later sees it.
            drop(seat.held());
        }
        Paused(self)
    }

    /// Ends a [pause](Server::pause): all goes on where it was.
    pub fn resume(&self) {
        self.0.paused.store(false, Ordering::Release);
        self.0.let_in();
    }

    /// Goes on with the connections of a server of the image before, before this one is run. What
    /// that had counted counts here, too.
    ///
    /// # Errors
    /// When the rest of something that was being sent is not [known](Service::named) here. The
    /// connections are closed then: on trial, where it has to be refused, that means nothing to
    /// them.
    pub fn adopt(&self, handover: Handover<S::Session>) -> Result<(), AdoptError> {
        let Handover {
            stats,
            fresh,
            idle,
            busy,
        } = handover;
        let mut arrivals = Vec::with_capacity(idle.len() + busy.len() + fresh.len());
        for connection in busy {
            let BusyIn {
                idle,
                state,
                pending,
                output,
                rest,
            } = connection;
            let tail = match rest {
                None => &[],
                Some(Rest { name, offset, len }) => {
                    let whole = self.0.service.named(&name);
                    let end = offset.saturating_add(len);
                    let tail = whole.and_then(|whole| whole.get(offset..end));
                    tail.ok_or(AdoptError::Unknown { name })?
                }
            };
            arrivals.push(Arrival::Before(Carried {
                state,
                pending,
                output: Output::from_parts(output, tail),
                ..idle.carried()
            }));
        }
        arrivals.extend(idle.into_iter().map(|idle| Arrival::Before(idle.carried())));
        {
            let mut before = self.0.before();
            let came = arrivals.len() as u64;
            before.closed += stats.accepted.saturating_sub(came);
            before.stats.accepted += stats.accepted;
            before.stats.refused += stats.refused;
            before.stats.timeouts += stats.timeouts;
            before.stats.received += stats.received;
            before.stats.sent += stats.sent;
        }
        let fresh = fresh.into_iter().map(Socket::into_inner);
        arrivals.extend(fresh.map(Arrival::New));
        self.0.open.fetch_add(arrivals.len(), Ordering::Relaxed);
        for (arrival, seat) in arrivals.into_iter().zip(self.0.seats.iter().cycle()) {
            seat.queue().push(arrival);
        }
        Ok(())
    }
}

impl<S: Service<Session: Serialize + DeserializeOwned>> Server<S> {
    /// Takes what the image before has [handed over](Server::hand_over) by `name`: the connections
    /// are this server's from then on, and the listener is to be [run](Server::run) with. `None` if
    /// there is nothing: this is the first image, or the one before crashed.
    ///
    /// # Errors
    /// See [`AdoptError`]; what came is lost then, so on trial it is to be refused.
    pub fn take(
        &self,
        before: &mut Option<Incoming>,
        name: &str,
    ) -> Result<Option<TcpListener>, AdoptError> {
        type Came<D> = (Socket<TcpListener>, Handover<D>);
        let Some(before) = before else {
            return Ok(None);
        };
        let Some((listener, handover)) = before.take_if_any::<Came<S::Session>>(name)? else {
            return Ok(None);
        };
        self.adopt(handover)?;
        Ok(Some(listener.into_inner()))
    }

    /// From here on, when the image is replaced, this server is paused and hands over by `name` its
    /// listener and its connections; it goes on if nothing comes of it.
    pub fn hand_over(&self, name: &'static str, listener: &Arc<TcpListener>) {
        let (server, listener) = (self.clone(), Arc::clone(listener));
        segue::on_replace(move |next| {
            Ok(next.put(name, &(Socket::new(&*listener), server.pause()))?)
        });
        let server = self.clone();
        segue::on_resume(move || server.resume());
    }
}
