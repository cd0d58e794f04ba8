//! The service: connections, the upload, and what operators may have done.
//!
//! It knows the domain by a trait only, so that it runs on a host, too. What holds, whoever
//! connects:
//! - Threads, their stacks, their buffers and the room for a bundle are there from the start, and
//!   do not grow. Who connects when all seats are taken gets the one of whoever has been there
//!   longest without having proved that he is an operator; but nobody loses it in his first second.
//! - A connection has some seconds until its first signed command; an upload has to keep up a rate.
//! - Until a command's signature is checked, 512 bytes at a time are read of what is sent, and
//!   parsed into [`Request`]; of a bundle its head is all that is parsed until it is complete.

use super::protocol::{
    Answer, Command, Hello, MAX_DATA_REQUEST, MAX_REQUEST, Nonce, Occasion, Opening, Refused,
    Request, Signed, Status, Stays, Upload, VERSION,
};
use super::wire::{self, WireError};
use crate::kernel::image::{BuildId, Bundle, Digest, Head, Policy, PublicKey, Verified};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a connection keeps its seat in any case.
const SEATED: Duration = Duration::from_secs(1);
/// How long an operator's connection may be silent.
const SILENT: Duration = Duration::from_secs(60);
/// How long an answer may take until it is sent.
const SEND: Duration = Duration::from_secs(10);
/// How long what a closed connection still sends is thrown away, and how many parts of a bundle.
const DRAIN: Duration = Duration::from_millis(500);
const MOST_DRAINED: usize = 32;
/// How long an upload is not held to its rate.
const HEAD_START: Duration = Duration::from_secs(5);
/// Longest probation that can be asked for: a week.
const LONGEST_PROBATION: Duration = Duration::from_secs(7 * 24 * 3600);
/// Bytes of a connection's stack.
const STACK: usize = 128 * 1024;

/// What the service does in a domain. On a host, tests do as if.
pub trait Domain: Send + Sync + 'static {
    /// The domain's UUID.
    fn id(&self) -> [u8; 16];
    /// The generation that runs.
    fn generation(&self) -> u64;
    /// The image that runs.
    fn build(&self) -> BuildId;
    /// What a bundle is judged by.
    fn policy<'a>(&'a self, downgrade: Option<&'a [u8]>) -> Policy<'a>;
    /// Memory that is free, bytes.
    fn memory_free(&self) -> u64;
    /// A clock that goes on over a switch, ns.
    fn now_ns(&self) -> u64;
    /// How it is, as far as the domain knows.
    fn status(&self) -> Status;
    /// Replaces the image.
    ///
    /// # Errors
    /// It did not come about. In a domain it comes back only then.
    fn switch(&self, bundle: &[u8], how: &How) -> Result<(), Stays>;
    /// Ends the probation; false if there is none.
    fn confirm(&self) -> bool;
    /// Whether there is an image to go back to.
    fn has_way_back(&self) -> bool;
    /// Puts the image before in this one's place.
    ///
    /// # Errors
    /// As [`switch`](Self::switch).
    fn roll_back(&self) -> Result<(), Stays>;
}

/// How to switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct How {
    /// How long the image before is kept.
    pub probation: Duration,
    /// It comes back, unless somebody confirms the new one.
    pub must_confirm: bool,
    /// A statement that allows an older version.
    pub downgrade: Option<Vec<u8>>,
}

/// Limits of the service.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub operators: Vec<PublicKey>,
    /// Whoever connects is an operator.
    pub open: bool,
    pub status: bool,
    pub connections: usize,
    pub max_bundle: usize,
    pub min_rate: u64,
    pub first_command: Duration,
    pub upload: Duration,
    pub burst: u32,
    pub every: Duration,
}

/// Lets so many switches through at once, and after that one each so often.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Bucket {
    left: u32,
    /// When the last one was added, by the clock that goes on over a switch.
    since_ns: u64,
}

impl Bucket {
    pub fn full(burst: u32, now_ns: u64) -> Self {
        Self {
            left: burst,
            since_ns: now_ns,
        }
    }

    /// Takes one; or says how long there is none, in ns.
    pub fn take(&mut self, burst: u32, every: Duration, now_ns: u64) -> Result<(), u64> {
        let every = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
        let passed = now_ns.saturating_sub(self.since_ns);
        let more = passed / every;
        self.since_ns = self.since_ns.saturating_add(more.saturating_mul(every));
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(more).min(burst);
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(every.saturating_sub(passed % every)),
        }
    }
}

/// What the service tells the one in the next image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Carried {
    /// The image that the domain was booted with.
    pub booted: Option<BuildId>,
    /// When the first image of the domain began to serve, by the clock that goes on over a switch.
    pub since_ns: Option<u64>,
    pub bucket: Bucket,
}

/// A bundle that is there, or on its way.
#[derive(Debug)]
struct Pending {
    bundle: Digest,
    len: usize,
    received: usize,
    began: Instant,
    /// The connection that may add to it.
    holder: Option<u64>,
    /// It was checked as far as it is there.
    judged: bool,
}

impl Pending {
    fn is_complete(&self) -> bool {
        self.received == self.len
    }
}

/// The room for a bundle, and what is in it.
#[derive(Debug)]
struct Store {
    room: Vec<u8>,
    pending: Option<Pending>,
}

/// A place for a connection.
#[derive(Debug, Default)]
enum Seat {
    #[default]
    Free,
    /// For its thread to take.
    Given(Arc<TcpStream>, Begin),
    Taken {
        stream: Arc<TcpStream>,
        since: Instant,
        operator: bool,
    },
}

/// How a connection begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Begin {
    /// With an opening.
    New,
    /// It asked the image before for the switch to this one, and waits to hear of it.
    Switched,
}

/// What all threads share.
pub(super) struct Shared<D> {
    domain: D,
    limits: Limits,
    store: Mutex<Store>,
    seats: Mutex<Vec<Seat>>,
    changed: Condvar,
    carried: Mutex<Carried>,
    stayed: Mutex<Option<String>>,
    /// The connection that has asked for the switch that is under way.
    asker: Mutex<Option<Arc<TcpStream>>>,
    since: Instant,
    listener: TcpListener,
    /// Where it listens.
    address: SocketAddr,
}

impl<D> fmt::Debug for Shared<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Room for a bundle, taken from the allocator once.
fn reserve(len: usize) -> io::Result<Vec<u8>> {
    let mut room = Vec::new();
    room.try_reserve_exact(len)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    room.resize(len, 0);
    Ok(room)
}

impl<D: Domain> Shared<D> {
    /// Reserves what the service needs, and starts its threads.
    pub fn start(
        domain: D,
        limits: Limits,
        carried: Option<Carried>,
        listener: TcpListener,
        asker: Option<TcpStream>,
    ) -> io::Result<Arc<Self>> {
        let now = domain.now_ns();
        let first = domain.generation() == 1;
        let carried = carried.unwrap_or_else(|| Carried {
            booted: first.then(|| domain.build()),
            since_ns: first.then_some(now),
            bucket: Bucket::full(limits.burst, now),
        });
        let connections = limits.connections.max(1);
        let mut seats: Vec<_> = (0..connections).map(|_| Seat::Free).collect();
        if let (Some(seat), Some(asker)) = (seats.first_mut(), asker) {
            *seat = Seat::Given(Arc::new(asker), Begin::Switched);
        }
        let shared = Arc::new(Self {
            domain,
            store: Mutex::new(Store {
                room: reserve(limits.max_bundle)?,
                pending: None,
            }),
            seats: Mutex::new(seats),
            changed: Condvar::new(),
            carried: Mutex::new(carried),
            stayed: Mutex::new(None),
            asker: Mutex::new(None),
            since: Instant::now(),
            address: listener.local_addr()?,
            listener,
            limits,
        });
        for seat in 0..connections {
            let mut buffer = reserve(MAX_DATA_REQUEST)?;
            let shared = Arc::clone(&shared);
            thread::Builder::new()
                .name(format!("upgrade {seat}"))
                // A host's test builds are not as thrifty.
                .stack_size(STACK * if cfg!(target_os = "hermit") { 1 } else { 8 })
                .spawn(move || shared.work(seat, &mut buffer))?;
        }
        let acceptor = Arc::clone(&shared);
        thread::Builder::new()
            .name("upgrade".into())
            .stack_size(STACK)
            .spawn(move || acceptor.accept())?;
        Ok(shared)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// For the service in the next image.
    #[cfg(any(test, target_os = "hermit"))]
    pub fn carried(&self) -> Carried {
        lock(&self.carried).clone()
    }

    /// Its listener, and the connection that asked for the switch that is under way, if one did: they
    /// go on in the next image.
    #[cfg(any(test, target_os = "hermit"))]
    pub fn sockets(&self) -> (&TcpListener, Option<Arc<TcpStream>>) {
        (&self.listener, lock(&self.asker).clone())
    }

    fn accept(&self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => self.seat(stream),
                // Out of descriptors, or a connection that was gone at once.
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Gives a connection a seat, or closes it.
    fn seat(&self, stream: TcpStream) {
        let mut seats = lock(&self.seats);
        if !seats.iter().any(|seat| matches!(seat, Seat::Free)) {
            let oldest = seats
                .iter()
                .filter_map(|seat| match seat {
                    Seat::Taken {
                        stream,
                        since,
                        operator: false,
                    } if since.elapsed() > SEATED => Some((since, stream)),
                    _ => None,
                })
                .min_by_key(|(since, _)| **since);
            let Some((_, oldest)) = oldest else {
                return;
            };
            // It is closed already, if that fails.
            let _ = oldest.shutdown(Shutdown::Both);
            let full = |seats: &mut Vec<Seat>| !seats.iter().any(|s| matches!(s, Seat::Free));
            let waited = self
                .changed
                .wait_timeout_while(seats, Duration::from_millis(500), full);
            seats = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if let Some(seat) = seats.iter_mut().find(|seat| matches!(seat, Seat::Free)) {
            *seat = Seat::Given(Arc::new(stream), Begin::New);
            self.changed.notify_all();
        }
    }

    /// One seat's connections, one after the other.
    fn work(&self, seat: usize, buffer: &mut [u8]) {
        let mut served: u64 = 0;
        let count = self.limits.connections.max(1) as u64;
        loop {
            let mut seats = lock(&self.seats);
            let (stream, begin) = loop {
                match seats.get(seat) {
                    Some(Seat::Given(stream, begin)) => break (Arc::clone(stream), *begin),
                    Some(_) => {}
                    None => return,
                }
                let waited = self.changed.wait(seats);
                seats = waited.unwrap_or_else(PoisonError::into_inner);
            };
            if let Some(place) = seats.get_mut(seat) {
                *place = Seat::Taken {
                    stream: Arc::clone(&stream),
                    since: Instant::now(),
                    operator: begin == Begin::Switched,
                };
            }
            drop(seats);
            // Never the same for two connections.
            let id = served.wrapping_mul(count).wrapping_add(seat as u64);
            served = served.wrapping_add(1);
            Connection::serve(self, (seat, id), &stream, begin, buffer);
            self.let_go(id);
            let mut seats = lock(&self.seats);
            if let Some(place) = seats.get_mut(seat) {
                *place = Seat::Free;
            }
            drop(seats);
            drop(stream);
            self.changed.notify_all();
        }
    }

    /// A connection is over: somebody else may upload.
    fn let_go(&self, id: u64) {
        if let Some(pending) = &mut lock(&self.store).pending
            && pending.holder == Some(id)
        {
            pending.holder = None;
        }
    }

    fn is_operator(&self, seat: usize) {
        if let Some(Seat::Taken { operator, .. }) = lock(&self.seats).get_mut(seat) {
            *operator = true;
        }
    }

    /// The store, unless somebody works with it for longer: a switch is under way then.
    fn store(&self) -> Result<MutexGuard<'_, Store>, Refused> {
        match self.store.try_lock() {
            Ok(store) => Ok(store),
            Err(TryLockError::Poisoned(store)) => Ok(store.into_inner()),
            Err(TryLockError::WouldBlock) => {
                // It may be only somebody's next part.
                thread::sleep(Duration::from_millis(20));
                self.store.try_lock().map_err(|_| Refused::Busy)
            }
        }
    }

    fn status(&self) -> Status {
        let upload = self.store().ok().and_then(|store| {
            let pending = store.pending.as_ref()?;
            Some(Upload {
                received: pending.received as u64,
                len: pending.len as u64,
            })
        });
        let carried = lock(&self.carried).clone();
        let now = self.domain.now_ns();
        Status {
            booted: carried.booted,
            uptime_ms: carried
                .since_ns
                .map(|since| now.saturating_sub(since) / 1_000_000),
            running_ms: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            stayed: lock(&self.stayed).clone(),
            upload,
            ..self.domain.status()
        }
    }

    /// Checks a bundle as far as it is there: bytes that are not are zero.
    fn judge(&self, bytes: &[u8], downgrade: Option<&[u8]>) -> Result<Fate, Refused> {
        let refused = |why: &dyn fmt::Display| Refused::Bundle {
            why: why.to_string(),
        };
        let bundle = Bundle::parse(bytes).map_err(|e| refused(&e))?;
        let policy = self.domain.policy(downgrade);
        let authentic = bundle.authenticate(&policy.keys).map_err(|e| refused(&e))?;
        let manifest = &authentic.manifest;
        if manifest.build == self.domain.build() {
            return Ok(Fate::Runs);
        }
        policy
            .judge(manifest, authentic.authority)
            .map_err(|e| refused(&e))?;
        // Both the image and the switch's own copy of the bundle.
        let need = manifest.min_memory.saturating_add(bytes.len() as u64);
        let free = self.domain.memory_free();
        if need > free {
            return Err(Refused::Memory { need, free });
        }
        Ok(Fate::Good)
    }

    /// Checks all of a bundle.
    fn judge_all(
        &self,
        bytes: &[u8],
        bundle: &Digest,
        downgrade: Option<&[u8]>,
    ) -> Result<(), Refused> {
        if Digest::of(&[bytes]) != *bundle {
            return Err(Refused::Digest);
        }
        let policy = self.domain.policy(downgrade);
        let verified = crate::kernel::image::verify(bytes, &policy);
        verified
            .map(|_: Verified<'_>| ())
            .map_err(|e| Refused::Bundle { why: e.to_string() })
    }
}

/// What a bundle that is in order is good for.
enum Fate {
    /// A switch.
    Good,
    /// Nothing: its image runs.
    Runs,
}

/// What a connection's upload is held to.
struct Claim {
    began: Instant,
    /// Bytes that came over this connection.
    received: u64,
    downgrade: Option<Vec<u8>>,
}

/// Why a connection ends.
enum End {
    /// It has been told, or is gone.
    Silent,
    /// It is to be told.
    Told(Refused),
}

impl From<Refused> for End {
    fn from(refused: Refused) -> Self {
        Self::Told(refused)
    }
}

impl From<WireError> for End {
    fn from(error: WireError) -> Self {
        match error {
            WireError::Late => Self::Told(Refused::TooSlow),
            WireError::Length { .. } => Self::Told(Refused::Garbled),
            WireError::Closed | WireError::Io(_) => Self::Silent,
        }
    }
}

/// One connection.
struct Connection<'a, D> {
    shared: &'a Shared<D>,
    seat: usize,
    id: u64,
    stream: &'a Arc<TcpStream>,
    began: Instant,
    nonce: Nonce,
    operator: bool,
    claim: Option<Claim>,
}

impl<'a, D: Domain> Connection<'a, D> {
    fn serve(
        shared: &'a Shared<D>,
        (seat, id): (usize, u64),
        stream: &'a Arc<TcpStream>,
        begin: Begin,
        buffer: &mut [u8],
    ) {
        // Answers are small, and waited for.
        let _ = stream.set_nodelay(true);
        let mut connection = Self {
            shared,
            seat,
            id,
            stream,
            began: Instant::now(),
            nonce: Nonce::default(),
            operator: begin == Begin::Switched,
            claim: None,
        };
        let end = connection.talk(begin, buffer);
        if let Err(End::Told(refused)) = end {
            let _ = connection.say(&Answer::Refused(refused));
        }
        // So that the other side can read the last answer, whatever it has sent meanwhile.
        let _ = stream.shutdown(Shutdown::Write);
        let deadline = Instant::now() + DRAIN;
        for _ in 0..MOST_DRAINED {
            if wire::read(stream, buffer, deadline).is_err() {
                break;
            }
        }
    }

    fn say(&self, answer: &Answer) -> Result<(), WireError> {
        match answer.encode() {
            Some(frame) => wire::write(self.stream, &frame, Instant::now() + SEND),
            None => Err(WireError::Closed),
        }
    }

    /// A nonce for the next command.
    fn renew(&mut self) -> Result<Nonce, End> {
        // Without randomness nothing is signed.
        getrandom::fill(&mut self.nonce).map_err(|_| End::Silent)?;
        Ok(self.nonce)
    }

    fn talk(&mut self, begin: Begin, buffer: &mut [u8]) -> Result<(), End> {
        let shared = self.shared;
        let first = self.began + shared.limits.first_command;
        let version = match begin {
            Begin::Switched => VERSION,
            Begin::New => {
                let mut opening = [0; Opening::LEN];
                wire::read(self.stream, &mut opening, first).map_err(|_| End::Silent)?;
                // Of another protocol: nothing that is said would be understood.
                let opening = Opening::decode(&opening).ok_or(End::Silent)?;
                opening.version().ok_or(Refused::Version {
                    min: VERSION,
                    max: VERSION,
                })?
            }
        };
        let hello = Hello {
            version,
            domain: shared.domain.id(),
            generation: shared.domain.generation(),
            nonce: self.renew()?,
            build: shared.domain.build(),
            most: shared.limits.max_bundle as u64,
        };
        self.say(&Answer::Hello(hello))?;
        loop {
            let (most, deadline) = match &self.claim {
                Some(claim) => (MAX_DATA_REQUEST, self.upload_deadline(claim)),
                None if self.operator => (MAX_REQUEST, Instant::now() + SILENT),
                None => (MAX_REQUEST, first),
            };
            let frame = wire::read_frame(self.stream, buffer, most, deadline)?;
            let request = Request::decode(frame).map_err(|_| Refused::Garbled)?;
            match request {
                Request::Status if shared.limits.status || self.operator => {
                    self.say(&Answer::Status(Box::new(shared.status())))?;
                }
                Request::Status => return Err(Refused::NoStatus.into()),
                Request::Signed(signed) => self.command(*signed)?,
                Request::Data { offset, bytes } => self.data(offset, bytes)?,
            }
        }
    }

    /// When the next part of the upload has to be there.
    fn upload_deadline(&self, claim: &Claim) -> Instant {
        let limits = &self.shared.limits;
        let ms = claim.received.saturating_mul(1000) / limits.min_rate.max(1);
        let by_rate = claim.began + HEAD_START + Duration::from_millis(ms).min(limits.upload);
        let by_now = Instant::now() + SILENT;
        by_rate.min(by_now)
    }

    fn command(&mut self, signed: Signed) -> Result<(), End> {
        let shared = self.shared;
        let occasion = Occasion {
            domain: shared.domain.id(),
            generation: shared.domain.generation(),
            nonce: self.nonce,
        };
        let operators = &shared.limits.operators;
        if !shared.limits.open && !signed.is_of(operators, &occasion) {
            return Err(End::Told(Refused::Signature {
                key: signed.key,
                known: operators.iter().any(|key| key.id() == signed.key),
            }));
        }
        // Used up, whatever comes of it.
        self.renew()?;
        if !self.operator {
            self.operator = true;
            shared.is_operator(self.seat);
        }
        match signed.command {
            Command::Upload {
                bundle,
                len,
                downgrade,
            } => self.upload(bundle, len, downgrade.map(|s| s.to_vec())),
            Command::Switch {
                bundle,
                probation_ms,
                must_confirm,
                downgrade,
            } => {
                let how = How {
                    probation: Duration::from_millis(probation_ms).min(LONGEST_PROBATION),
                    must_confirm,
                    downgrade: downgrade.map(|s| s.to_vec()),
                };
                self.switch(&bundle, &how)
            }
            Command::Confirm { build } => {
                self.expect_running(build)?;
                let ended = shared.domain.confirm();
                let nonce = self.nonce;
                Ok(self.say(&Answer::Confirmed { ended, nonce })?)
            }
            Command::RollBack { build } => {
                self.expect_running(build)?;
                if !shared.domain.has_way_back() {
                    return Err(Refused::NoWayBack.into());
                }
                // Nobody uploads meanwhile.
                let _store = shared.store()?;
                self.say(&Answer::Switching)?;
                self.go(|| shared.domain.roll_back())
            }
        }
    }

    fn expect_running(&self, build: BuildId) -> Result<(), Refused> {
        let running = self.shared.domain.build();
        match build == running {
            true => Ok(()),
            false => Err(Refused::OtherImage { running }),
        }
    }

    fn upload(&mut self, bundle: Digest, len: u64, downgrade: Option<Vec<u8>>) -> Result<(), End> {
        let shared = self.shared;
        let limits = &shared.limits;
        let too_large = Refused::TooLarge {
            len,
            most: limits.max_bundle as u64,
        };
        let fits = usize::try_from(len)
            .ok()
            .filter(|len| *len <= limits.max_bundle);
        let len = fits.ok_or(too_large)?;
        let mut store = shared.store()?;
        let Store { room, pending } = &mut *store;
        let expired = |p: &Pending| !p.is_complete() && p.began.elapsed() > limits.upload;
        let same = |p: &Pending| p.bundle == bundle && p.len == len && !expired(p);
        let busy = |p: &Pending| p.holder.is_some_and(|id| id != self.id) && !p.is_complete();
        match pending {
            // The same once more: its connection was cut, and it may be that nobody has noticed.
            Some(p) if same(p) => p.holder = Some(self.id),
            Some(p) if busy(p) && !expired(p) => return Err(Refused::Busy.into()),
            _ => {
                room.get_mut(..len).unwrap_or_default().fill(0);
                *pending = Some(Pending {
                    bundle,
                    len,
                    received: 0,
                    began: Instant::now(),
                    holder: Some(self.id),
                    judged: false,
                });
            }
        }
        let received = pending.as_ref().map_or(0, |p| p.received);
        self.claim = Some(Claim {
            began: Instant::now(),
            received: 0,
            downgrade,
        });
        // What came before may not be taken by now, or with this statement.
        if let Some(p) = pending {
            p.judged = false;
        }
        match self.progress(&mut store)? {
            Progress::Runs => {
                drop(store);
                Ok(self.say(&Answer::Runs)?)
            }
            Progress::Complete => {
                drop(store);
                let nonce = self.nonce;
                Ok(self.say(&Answer::Complete { nonce })?)
            }
            Progress::More => {
                drop(store);
                let (offset, nonce) = (received as u64, self.nonce);
                Ok(self.say(&Answer::Receive { offset, nonce })?)
            }
        }
    }

    fn data(&mut self, offset: u64, bytes: &[u8]) -> Result<(), End> {
        let shared = self.shared;
        let claim = self.claim.as_mut().ok_or(Refused::NotUploaded)?;
        let mut store = shared.store()?;
        let Store { room, pending } = &mut *store;
        let ours = pending.as_mut().filter(|p| p.holder == Some(self.id));
        // Another connection goes on with it, or has begun another.
        let p = ours.ok_or(Refused::Busy)?;
        if p.began.elapsed() > shared.limits.upload {
            return Err(Refused::TooSlow.into());
        }
        let expected = p.received as u64;
        let wrong = Refused::OutOfOrder { expected };
        let end = p.received.checked_add(bytes.len());
        let end = end.filter(|end| *end <= p.len && offset == expected && !bytes.is_empty());
        let end = end.ok_or(wrong.clone())?;
        let place = room.get_mut(p.received..end).ok_or(wrong)?;
        place.copy_from_slice(bytes);
        p.received = end;
        claim.received = claim.received.saturating_add(bytes.len() as u64);
        let answer = match self.progress(&mut store)? {
            Progress::Runs => {
                self.say(&Answer::Runs)?;
                // More of it may be on its way.
                return Err(End::Silent);
            }
            Progress::Complete => Answer::Complete { nonce: self.nonce },
            Progress::More => Answer::Received { offset: end as u64 },
        };
        drop(store);
        Ok(self.say(&answer)?)
    }

    /// Looks at what is there of the bundle, as soon as there is enough. Nothing is left of one
    /// that is not taken.
    fn progress(&mut self, store: &mut Store) -> Result<Progress, Refused> {
        let Store { room, pending } = store;
        let Some(p) = pending else {
            return Err(Refused::NotUploaded);
        };
        let bytes = room.get(..p.len).unwrap_or_default();
        let downgrade = self.claim.as_ref().and_then(|c| c.downgrade.as_deref());
        let enough = p.received >= p.len.min(Head::new().capacity());
        let outcome = if enough && !p.judged {
            p.judged = true;
            self.shared.judge(bytes, downgrade)
        } else {
            Ok(Fate::Good)
        };
        let outcome = match outcome {
            Ok(Fate::Runs) => Ok(Progress::Runs),
            Ok(Fate::Good) if p.is_complete() => self
                .shared
                .judge_all(bytes, &p.bundle, downgrade)
                .map(|()| Progress::Complete),
            Ok(Fate::Good) => Ok(Progress::More),
            Err(refused) => Err(refused),
        };
        match outcome {
            Ok(Progress::More) => {}
            Ok(Progress::Complete) => {
                p.holder = None;
                self.claim = None;
            }
            Ok(Progress::Runs) | Err(_) => {
                *pending = None;
                self.claim = None;
            }
        }
        outcome
    }

    fn switch(&mut self, bundle: &Digest, how: &How) -> Result<(), End> {
        let shared = self.shared;
        let store = shared.store()?;
        let there = store.pending.as_ref();
        let there = there.filter(|p| p.bundle == *bundle && p.is_complete());
        let len = there.ok_or(Refused::NotUploaded)?.len;
        let bytes = store.room.get(..len).unwrap_or_default();
        if let Fate::Runs = shared.judge(bytes, how.downgrade.as_deref())? {
            return Ok(self.say(&Answer::Runs)?);
        }
        let limits = &shared.limits;
        let now = shared.domain.now_ns();
        let mut carried = lock(&shared.carried);
        let taken = carried.bucket.take(limits.burst, limits.every, now);
        drop(carried);
        taken.map_err(|wait_ns| Refused::TooOften {
            wait_ms: wait_ns.div_ceil(1_000_000),
        })?;
        self.say(&Answer::Switching)?;
        self.go(|| shared.domain.switch(bytes, how))
    }

    /// Switches. In a domain it comes back only if that did not come about.
    fn go(&self, switch: impl FnOnce() -> Result<(), Stays>) -> Result<(), End> {
        *lock(&self.shared.asker) = Some(Arc::clone(self.stream));
        let outcome = switch();
        *lock(&self.shared.asker) = None;
        if let Err(stays) = outcome {
            let (Stays::Refused { why } | Stays::Resumed { why, .. }) = &stays;
            *lock(&self.shared.stayed) = Some(why.clone());
            self.say(&Answer::Stays(stays))?;
        }
        Err(End::Silent)
    }
}

/// How far an upload is.
enum Progress {
    More,
    Complete,
    Runs,
}
