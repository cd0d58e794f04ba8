//! Requests on a connection.

use crate::command::{Client, Context, execute};
use crate::resp::{Parsed, Parser, Reply};
use crate::store::{Store, Table};
use segue_serve::{Next, Observer, Output, Server, Service, Stats, Step};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Expired keys freed at a time.
const SWEEP: usize = 200;
/// How often expired keys are looked for when there may be some.
const SWEEP_EVERY: Duration = Duration::from_millis(100);
/// And when there are none.
const SWEEP_IDLE: Duration = Duration::from_secs(1);

/// What clients may do.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a key or value.
    pub value: usize,
    /// Bytes of a reply of several values.
    pub reply: usize,
    /// Bytes of all keys and values.
    pub memory: usize,
    /// How long a client may be silent between requests.
    pub idle: Duration,
    /// How long it may be silent inside of one.
    pub request: Duration,
}

impl Limits {
    /// For so many bytes of keys and values.
    #[must_use]
    pub fn new(memory: usize) -> Self {
        Self {
            value: (memory / 8).min(512 << 20),
            reply: memory / 4,
            memory,
            idle: Duration::from_secs(365 * 24 * 3600),
            request: Duration::from_secs(60),
        }
    }
}

/// The server's side of RESP.
#[derive(Debug)]
pub struct Kv {
    table: Mutex<Table>,
    limits: Limits,
    started: Instant,
    /// How long the images before have run.
    before: Duration,
    now: fn() -> u64,
    clients: AtomicU64,
    commands: AtomicU64,
    observer: OnceLock<Observer<Kv>>,
    platform: fn() -> String,
}

/// What is known of a connection.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Session {
    /// The next image has the bytes of an incomplete request, and reads them anew.
    #[serde(skip)]
    parser: Parser,
    client: Client,
}

/// What was counted, for the next image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counted {
    clients: u64,
    commands: u64,
    up_ms: u64,
}

impl Kv {
    /// For the keys of a table. `now` is the time in ms that they expire by: it goes on from image
    /// to image.
    #[must_use]
    pub fn new(table: Table, limits: Limits, now: fn() -> u64) -> Self {
        Self {
            table: Mutex::new(table),
            limits,
            started: Instant::now(),
            before: Duration::ZERO,
            now,
            clients: AtomicU64::new(0),
            commands: AtomicU64::new(0),
            observer: OnceLock::new(),
            platform: String::new,
        }
    }

    /// Lets `INFO` say what it runs on: whole lines.
    #[must_use]
    pub fn on_platform(self, platform: fn() -> String) -> Self {
        Self { platform, ..self }
    }

    /// What the next image counts on from.
    #[must_use]
    pub fn counted(&self) -> Counted {
        Counted {
            clients: self.clients.load(Ordering::Relaxed),
            commands: self.commands.load(Ordering::Relaxed),
            up_ms: u64::try_from(self.up().as_millis()).unwrap_or(u64::MAX),
        }
    }

    /// Counts on from where the image before was.
    pub fn go_on(&mut self, counted: Counted) {
        let Counted {
            clients,
            commands,
            up_ms,
        } = counted;
        (self.clients, self.commands) = (clients.into(), commands.into());
        self.before = Duration::from_millis(up_ms);
    }

    fn up(&self) -> Duration {
        self.before.saturating_add(self.started.elapsed())
    }

    /// Lets `INFO` tell of a server's connections, which has to be the one that runs this.
    pub fn observe(server: &Server<Self>) {
        let _ = server.service().observer.set(server.downgrade());
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens the table at the time it is.
    fn open<'a>(&self, table: &'a mut Table) -> Store<'a> {
        let mut store = table.open();
        store.set_now((self.now)());
        store
    }

    /// Frees keys that have expired; says when to call it again.
    pub fn sweep(&self) -> Duration {
        let mut table = self.lock();
        let mut store = self.open(&mut table);
        match store.expire(SWEEP) {
            // More than are freed at a time have expired.
            Some(at) if at <= store.now() => Duration::from_millis(1),
            Some(_) => SWEEP_EVERY,
            None => SWEEP_IDLE,
        }
    }

    /// Number of keys, expired ones that are not freed among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().open().len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn info(&self, expired: u64) -> String {
        let stats = self.observer.get().and_then(Observer::stats);
        let Stats {
            accepted,
            open,
            refused,
            received,
            sent,
            ..
        } = stats.unwrap_or_default();
        let mut text = String::new();
        let up = self.up().as_secs();
        let commands = self.commands.load(Ordering::Relaxed);
        let _ = write!(
            text,
            "uptime_in_seconds:{up}\r\n\
             \r\n# Clients\r\nconnected_clients:{open}\r\n\
             \r\n# Stats\r\ntotal_connections_received:{accepted}\r\n\
             rejected_connections:{refused}\r\ntotal_commands_processed:{commands}\r\n\
             total_net_input_bytes:{received}\r\ntotal_net_output_bytes:{sent}\r\n\
             expired_keys:{expired}\r\nevicted_keys:0\r\n"
        );
        text + &(self.platform)()
    }

    /// Does what `input` asks for; the lock is taken once for all of it.
    fn requests(&self, session: &mut Session, input: &[u8], output: &mut Output) -> Step {
        let Session { parser, client } = session;
        if client.id == 0 {
            client.id = self.clients.fetch_add(1, Ordering::Relaxed) + 1;
        }
        let mut consumed = 0;
        let mut commands = 0;
        // What arrived together is done together: no switch happens in the middle either.
        let mut table = self.lock();
        let mut store = self.open(&mut table);
        let wall_ms = wall_ms();
        let next = loop {
            if output.is_full() {
                break Next::Flush;
            }
            let rest = input.get(consumed..).unwrap_or_default();
            let arguments = match parser.parse(rest, self.limits.value) {
                Ok(Parsed::Incomplete) => break Next::Wait,
                Ok(Parsed::Request(arguments, len)) => {
                    consumed += len;
                    arguments
                }
                Err(error) => {
                    output.bytes().error(error.to_string().as_bytes());
                    consumed = input.len();
                    break Next::Close;
                }
            };
            if arguments.is_empty() {
                continue;
            }
            let expired = store.expired();
            commands += 1;
            let mut context = Context {
                store: &mut store,
                client,
                limits: &self.limits,
                wall_ms,
                info: &|| self.info(expired),
                out: output.bytes(),
            };
            execute(&mut context, arguments);
            if client.quits {
                consumed = input.len();
                break Next::Close;
            }
        };
        drop(store);
        drop(table);
        self.commands.fetch_add(commands, Ordering::Relaxed);
        parser.shrink();
        Step { consumed, next }
    }
}

impl Service for Kv {
    type Session = Session;

    fn input(&self, session: &mut Session, input: &[u8], output: &mut Output) -> Step {
        self.requests(session, input, output)
    }

    fn patience(&self, _: &Session, pending: usize) -> Duration {
        if pending > 0 {
            self.limits.request
        } else {
            self.limits.idle
        }
    }

    fn timed_out(&self, _: &mut Session, _: usize, _: &mut Output) {
        // Redis closes without a word.
    }
}

/// The time of day, in ms since 1970.
fn wall_ms() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |time| {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
    })
}
