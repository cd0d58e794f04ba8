//! One thread of a server: waits, reads, calls the service, writes.

use crate::handover::Carried;
use crate::output::Output;
use crate::timers::{Deadline, Timers};
use crate::{Arrival, Next, Seat, Service, Shared, Step};
use polling::{Event, Events, PollMode};
use serde::{Deserialize, Serialize};
use std::io::{self, Read};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// What is read at once.
const READ: usize = 64 * 1024;
/// Connections accepted at once, before others get their turn.
const ACCEPT: usize = 64;
/// What is sent on one connection at once, before others get their turn.
const SEND: usize = 1 << 20;
/// How long and how much input is thrown away before a close.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 16 << 20;
/// How long accepting rests when the system has no descriptor or memory for a connection.
const REST: Duration = Duration::from_millis(100);
/// The listener's key; a connection's is its index.
const LISTENER: usize = usize::MAX - 1;

/// What a connection is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// Waits for input.
    Reading,
    /// Waits until its output is taken.
    Sending,
    /// As above, and it is closed then.
    LastSending,
    /// All is sent; so many bytes of input may still be thrown away.
    Lingering(usize),
}

/// A connection, and what is known of it.
pub struct Connection<D> {
    pub stream: TcpStream,
    serial: u64,
    pub state: State,
    pub session: D,
    pub deadline: Deadline,
    /// Input that was not consumed.
    pub pending: Vec<u8>,
    /// Output that was not taken.
    pub output: Output,
}

/// What is left of a connection after it had its turn.
enum After {
    Keep,
    Close,
}

/// The connections of one thread.
pub struct Held<D> {
    connections: Vec<Option<Connection<D>>>,
    free: Vec<usize>,
    serial: u64,
    timers: Timers,
}

impl<D> Default for Held<D> {
    fn default() -> Self {
        Self {
            connections: Vec::new(),
            free: Vec::new(),
            serial: 0,
            timers: Timers::default(),
        }
    }
}

impl<D> Held<D> {
    /// All of them.
    pub fn connections(&self) -> impl Iterator<Item = &Connection<D>> {
        self.connections.iter().flatten()
    }
}

struct Worker<'a, S: Service> {
    shared: &'a Shared<S>,
    seat: &'a Seat<S::Session>,
    /// Empty while it waits: then they are in its seat.
    held: Held<S::Session>,
    input: Box<[u8]>,
    output: Output,
    now: Instant,
    /// No connection is waited with for its next request.
    draining: bool,
}

/// Runs thread `index` until the server is stopped. One of them has the listener.
pub fn run<S: Service>(
    shared: &Shared<S>,
    index: usize,
    listener: Option<&TcpListener>,
) -> io::Result<()> {
    let Some(seat) = shared.seats.get(index) else {
        return Ok(());
    };
    let mut worker = Worker {
        shared,
        seat,
        held: Held::default(),
        input: vec![0; READ].into_boxed_slice(),
        output: Output::default(),
        now: Instant::now(),
        draining: false,
    };
    let mut acceptor = listener.map(|listener| Acceptor {
        listener,
        next: 0,
        rests_until: None,
    });
    if let Some(acceptor) = &acceptor {
        acceptor.watch(seat)?;
    }
    let mut events = Events::new();
    loop {
        // While the server is paused it waits here. What it waits for outside is known again then,
        // as events are told until somebody has done something about them.
        let mut place = shared.enter(seat);
        std::mem::swap(&mut *place, &mut worker.held);
        worker.now = Instant::now();
        let ended = worker.round(&events, &mut acceptor)?;
        let rest = acceptor.as_ref().and_then(|a| a.rests_until);
        let wake = [worker.held.timers.next(), rest];
        std::mem::swap(&mut *place, &mut worker.held);
        drop(place);
        if ended {
            return Ok(());
        }
        events.clear();
        match wake.into_iter().flatten().min() {
            Some(wake) => seat.poller.wait_deadline(&mut events, wake)?,
            None => seat.poller.wait(&mut events, None)?,
        };
    }
}

/// Accepts, and deals connections out to the threads in turn.
struct Acceptor<'a> {
    listener: &'a TcpListener,
    next: usize,
    rests_until: Option<Instant>,
}

impl Acceptor<'_> {
    fn watch<D>(&self, seat: &Seat<D>) -> io::Result<()> {
        let event = Event::readable(LISTENER);
        // SAFETY: `run` deletes the listener before it returns, and borrows it until then; on an
        // error return the poller is not waited on again.
        unsafe {
            seat.poller
                .add_with_mode(self.listener, event, PollMode::Level)
        }
    }

    fn turn<S: Service>(&mut self, worker: &mut Worker<'_, S>, incoming: bool) -> io::Result<()> {
        if let Some(until) = self.rests_until {
            if worker.now < until {
                return Ok(());
            }
            self.rests_until = None;
            let event = Event::readable(LISTENER);
            let poller = &worker.seat.poller;
            return poller.modify_with_mode(self.listener, event, PollMode::Level);
        }
        if !incoming {
            return Ok(());
        }
        for _ in 0..ACCEPT {
            match self.listener.accept() {
                Ok((stream, _)) => self.deal(worker, stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if is_of_connection(&error) => {}
                // The connection waits in the backlog; without a rest this thread would spin.
                Err(_) => {
                    self.rests_until = Some(worker.now + REST);
                    let poller = &worker.seat.poller;
                    let event = Event::none(LISTENER);
                    return poller.modify_with_mode(self.listener, event, PollMode::Level);
                }
            }
        }
        Ok(())
    }

    fn deal<S: Service>(&mut self, worker: &mut Worker<'_, S>, stream: TcpStream) {
        let shared = worker.shared;
        if shared.open.load(Ordering::Relaxed) >= shared.config.connections {
            worker.seat.counters.refused.add(1);
            return;
        }
        shared.open.fetch_add(1, Ordering::Relaxed);
        let index = self.next % shared.seats.len();
        self.next = self.next.wrapping_add(1);
        match shared.seats.get(index) {
            Some(seat) if !std::ptr::eq(seat, worker.seat) => {
                if seat.hand_over(Arrival::New(stream)).is_err() {
                    shared.open.fetch_sub(1, Ordering::Relaxed);
                }
            }
            _ => worker.arrive(Arrival::New(stream)),
        }
    }
}

/// Whether `accept` failed because of the connection, not of the system.
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset, Interrupted, PermissionDenied};
    matches!(
        error.kind(),
        ConnectionAborted | ConnectionReset | Interrupted | PermissionDenied
    )
}

impl<S: Service> Worker<'_, S> {
    /// Does what there is to do; true when that was the last.
    fn round(&mut self, events: &Events, acceptor: &mut Option<Acceptor<'_>>) -> io::Result<bool> {
        if self.shared.stop.load(Ordering::Acquire) {
            // Before anything else: after a pause they may be another server's.
            self.end(acceptor)?;
            return Ok(true);
        }
        let mut incoming = false;
        for event in events.iter() {
            if self.shared.is_paused() {
                return Ok(false);
            }
            match event.key {
                LISTENER => incoming = true,
                index => self.turn(index),
            }
        }
        // Only now: an index freed above is not used again while its events may be in the list.
        self.take_queue();
        if let Some(acceptor) = acceptor {
            acceptor.turn(self, incoming)?;
        }
        self.expire();
        let shared = self.shared;
        if !shared.drain.load(Ordering::Acquire) {
            return Ok(false);
        }
        if let Some(acceptor) = acceptor.take() {
            self.seat.poller.delete(acceptor.listener)?;
            shared.accepting.store(false, Ordering::Release);
            shared.wake();
        }
        // Before the queue is looked at: nothing is put there any more.
        let last = !shared.accepting.load(Ordering::Acquire);
        self.take_queue();
        self.drain();
        Ok(last && self.is_empty())
    }

    /// Closes what is open.
    fn end(&mut self, acceptor: &mut Option<Acceptor<'_>>) -> io::Result<()> {
        if let Some(acceptor) = acceptor.take() {
            self.seat.poller.delete(acceptor.listener)?;
        }
        self.close_all();
        Ok(())
    }

    fn take_queue(&mut self) {
        for arrival in std::mem::take(&mut *self.seat.queue()) {
            self.arrive(arrival);
        }
    }

    /// Takes a connection on.
    fn arrive(&mut self, arrival: Arrival<S::Session>) {
        let index = self.held.free.pop().unwrap_or_else(|| {
            self.held.connections.push(None);
            self.held.connections.len() - 1
        });
        self.held.serial += 1;
        let serial = self.held.serial;
        let is_new = matches!(arrival, Arrival::New(_));
        let Carried {
            stream,
            state,
            session,
            left,
            pending,
            output,
        } = match arrival {
            Arrival::New(stream) => {
                let session = S::Session::default();
                let patience = self.shared.service.patience(&session, 0);
                Carried::new(stream, session, patience)
            }
            Arrival::Before(carried) => carried,
        };
        if self.watch(&stream, index, state).is_err() {
            // Gone already, or no memory.
            self.held.free.push(index);
            self.shared.open.fetch_sub(1, Ordering::Relaxed);
            if !is_new {
                self.seat.counters.closed.add(1);
            }
            return;
        }
        let deadline = self.held.timers.start(index, serial, self.now + left);
        let mut connection = Connection {
            stream,
            serial,
            state,
            session,
            deadline,
            pending,
            output,
        };
        if !is_new {
            // Whether there is something to do for it will be told.
            return self.put_back(index, connection);
        }
        self.seat.counters.accepted.add(1);
        if S::SPEAKS_FIRST {
            let after = self.serve_pending(index, &mut connection);
            return self.conclude(index, connection, after);
        }
        self.put_back(index, connection);
        // What it sent with its handshake is read at once: one wait less.
        self.turn(index);
    }

    fn watch(&self, stream: &TcpStream, index: usize, state: State) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        // Answers are whole when they are written: nothing is won by waiting for more.
        stream.set_nodelay(true)?;
        let event = match state {
            State::Reading | State::Lingering(_) => Event::readable(index),
            State::Sending | State::LastSending => Event::writable(index),
        };
        // SAFETY: `close` deletes it, and nobody else drops a connection.
        unsafe { (self.seat.poller).add_with_mode(stream, event, PollMode::Level) }
    }

    /// Takes no more requests but those that are here: idle connections are closed, others when
    /// they become idle.
    fn drain(&mut self) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        for index in 0..self.held.connections.len() {
            // What it has sent is still answered, and closes it.
            self.turn(index);
            let Some(mut c) = self.held.connections.get_mut(index).and_then(Option::take) else {
                continue;
            };
            if c.state == State::Reading
                && c.pending.is_empty()
                && self.start_linger(index, &mut c).is_err()
            {
                self.close(index, c);
                continue;
            }
            self.put_back(index, c);
        }
    }

    fn is_empty(&self) -> bool {
        self.held.free.len() == self.held.connections.len()
    }

    /// Lets a connection do what it can.
    fn turn(&mut self, index: usize) {
        let Some(mut connection) = self.held.connections.get_mut(index).and_then(Option::take)
        else {
            return;
        };
        let after = match connection.state {
            State::Reading => self.read(index, &mut connection),
            State::Sending | State::LastSending => self.send(index, &mut connection),
            State::Lingering(left) => self.linger(&mut connection, left),
        };
        self.conclude(index, connection, after);
    }

    fn conclude(
        &mut self,
        index: usize,
        connection: Connection<S::Session>,
        after: io::Result<After>,
    ) {
        match after {
            Ok(After::Keep) => self.put_back(index, connection),
            Ok(After::Close) | Err(_) => self.close(index, connection),
        }
    }

    fn put_back(&mut self, index: usize, connection: Connection<S::Session>) {
        if let Some(slot) = self.held.connections.get_mut(index) {
            *slot = Some(connection);
        }
    }

    fn read(&mut self, index: usize, c: &mut Connection<S::Session>) -> io::Result<After> {
        let n = match c.stream.read(&mut self.input) {
            // What was complete has been answered before.
            Ok(0) => return self.ended(index, c),
            Ok(n) => n,
            Err(error) if would_wait(&error) => return Ok(After::Keep),
            Err(error) => return Err(error),
        };
        self.seat.counters.received.add(n);
        if c.pending.is_empty() {
            // Borrowed in place: usually all of it is consumed and none is copied.
            let input = std::mem::take(&mut self.input);
            let after = self.serve(index, c, input.get(..n).unwrap_or_default());
            self.input = input;
            after
        } else {
            c.pending
                .extend_from_slice(self.input.get(..n).unwrap_or_default());
            self.serve_pending(index, c)
        }
    }

    /// The peer has sent all.
    fn ended(&mut self, index: usize, c: &mut Connection<S::Session>) -> io::Result<After> {
        let service = &self.shared.service;
        service.ended(&mut c.session, &mut self.output);
        if self.output.is_empty() {
            return Ok(After::Close);
        }
        self.flush(index, c, true)?;
        Ok(match c.state {
            State::LastSending => After::Keep,
            _ => After::Close,
        })
    }

    /// Sends what the service has said. What the peer does not take now becomes the connection's.
    fn flush(
        &mut self,
        index: usize,
        c: &mut Connection<S::Session>,
        last: bool,
    ) -> io::Result<usize> {
        let sent = self.output.send(&mut c.stream);
        self.seat.counters.sent.add(sent.as_ref().map_or(0, |n| *n));
        if sent.is_err() {
            self.output.clear();
        }
        let sent = sent?;
        if !self.output.is_empty() {
            c.output = std::mem::take(&mut self.output);
            self.wait_to_send(index, c, last)?;
        }
        Ok(sent)
    }

    fn wait_to_send(
        &mut self,
        index: usize,
        c: &mut Connection<S::Session>,
        last: bool,
    ) -> io::Result<()> {
        c.state = if last {
            State::LastSending
        } else {
            State::Sending
        };
        self.interest(c, Event::writable(index))?;
        self.until(index, c, self.shared.config.send_timeout);
        Ok(())
    }

    fn serve_pending(&mut self, index: usize, c: &mut Connection<S::Session>) -> io::Result<After> {
        let input = std::mem::take(&mut c.pending);
        let (consumed, after) = self.feed(index, c, &input)?;
        c.pending = input;
        c.pending.drain(..consumed.min(c.pending.len()));
        if c.pending.is_empty() {
            c.pending = Vec::new();
        }
        Ok(after)
    }

    fn serve(
        &mut self,
        index: usize,
        c: &mut Connection<S::Session>,
        input: &[u8],
    ) -> io::Result<After> {
        let (consumed, after) = self.feed(index, c, input)?;
        let rest = input.get(consumed..).unwrap_or_default();
        if !rest.is_empty() {
            c.pending = rest.to_vec();
        }
        Ok(after)
    }

    /// Calls the service until it waits for more, the peer takes no more, or the connection ends.
    fn feed(
        &mut self,
        index: usize,
        c: &mut Connection<S::Session>,
        input: &[u8],
    ) -> io::Result<(usize, After)> {
        let mut consumed = 0;
        let mut sent = 0;
        loop {
            let rest = input.get(consumed..).unwrap_or_default();
            let step: Step = self
                .shared
                .service
                .input(&mut c.session, rest, &mut self.output);
            consumed = (consumed + step.consumed).min(input.len());
            sent += self.flush(index, c, step.next == Next::Close)?;
            if !c.output.is_empty() {
                return Ok((consumed, After::Keep));
            }
            match step.next {
                Next::Flush if sent >= SEND => {
                    self.wait_to_send(index, c, false)?;
                    return Ok((consumed, After::Keep));
                }
                Next::Flush => {}
                Next::Close => return Ok((consumed, self.start_linger(index, c)?)),
                Next::Wait if self.draining && consumed == input.len() => {
                    return Ok((consumed, self.start_linger(index, c)?));
                }
                Next::Wait => {
                    let pending = input.len() - consumed;
                    let patience = self.shared.service.patience(&c.session, pending);
                    self.until(index, c, patience);
                    return Ok((consumed, After::Keep));
                }
            }
        }
    }

    /// Goes on with output that was not taken before.
    fn send(&mut self, index: usize, c: &mut Connection<S::Session>) -> io::Result<After> {
        let sent = c.output.send(&mut c.stream)?;
        self.seat.counters.sent.add(sent);
        if !c.output.is_empty() {
            if sent > 0 {
                self.until(index, c, self.shared.config.send_timeout);
            }
            return Ok(After::Keep);
        }
        c.output = Output::default();
        if c.state == State::LastSending {
            self.interest(c, Event::readable(index))?;
            return self.start_linger(index, c);
        }
        c.state = State::Reading;
        self.interest(c, Event::readable(index))?;
        self.serve_pending(index, c)
    }

    fn start_linger(&mut self, index: usize, c: &mut Connection<S::Session>) -> io::Result<After> {
        c.stream.shutdown(Shutdown::Write)?;
        c.pending = Vec::new();
        c.state = State::Lingering(LINGER_BYTES);
        self.until(index, c, LINGER);
        Ok(After::Keep)
    }

    fn linger(&mut self, c: &mut Connection<S::Session>, left: usize) -> io::Result<After> {
        match c.stream.read(&mut self.input) {
            Ok(0) => Ok(After::Close),
            Ok(n) if n >= left => Ok(After::Close),
            Ok(n) => {
                c.state = State::Lingering(left - n);
                Ok(After::Keep)
            }
            Err(error) if would_wait(&error) => Ok(After::Keep),
            Err(error) => Err(error),
        }
    }

    fn interest(&self, c: &Connection<S::Session>, event: Event) -> io::Result<()> {
        (self.seat.poller).modify_with_mode(&c.stream, event, PollMode::Level)
    }

    fn until(&mut self, index: usize, c: &mut Connection<S::Session>, patience: Duration) {
        let at = self.now + patience;
        self.held.timers.set(&mut c.deadline, index, c.serial, at);
    }

    /// Ends connections whose time is over.
    fn expire(&mut self) {
        while let Some(due) = self.held.timers.due(self.now) {
            let (index, serial, _) = due;
            let Some(mut c) = self.held.connections.get_mut(index).and_then(Option::take) else {
                continue;
            };
            if c.serial != serial || !self.held.timers.is_over(&mut c.deadline, due, self.now) {
                self.put_back(index, c);
                continue;
            }
            if matches!(c.state, State::Reading) {
                self.seat.counters.timeouts.add(1);
                let service = &self.shared.service;
                service.timed_out(&mut c.session, c.pending.len(), &mut self.output);
                let sent = self.output.send(&mut c.stream);
                self.output.clear();
                let lingers = sent.and_then(|sent| {
                    self.seat.counters.sent.add(sent);
                    if sent == 0 {
                        return Ok(After::Close);
                    }
                    self.start_linger(index, &mut c)
                });
                if let Ok(After::Keep) = lingers {
                    // Its entry in the heap was taken.
                    c.deadline = self.held.timers.start(index, c.serial, self.now + LINGER);
                    self.put_back(index, c);
                    continue;
                }
            } else if !matches!(c.state, State::Lingering(_)) {
                self.seat.counters.timeouts.add(1);
            }
            self.close(index, c);
        }
    }

    fn close(&mut self, index: usize, connection: Connection<S::Session>) {
        // It fails only if it was not added, and then there is nothing to delete.
        let _ = self.seat.poller.delete(&connection.stream);
        self.held.free.push(index);
        self.seat.counters.closed.add(1);
        self.shared.open.fetch_sub(1, Ordering::Relaxed);
    }

    fn close_all(&mut self) {
        for index in 0..self.held.connections.len() {
            if let Some(connection) = self.held.connections.get_mut(index).and_then(Option::take) {
                self.close(index, connection);
            }
        }
    }
}

fn would_wait(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
