//! What an app tells the next image, by name.
//!
//! The old image: [`on_replace`] is called before anything stops, and says what is handed over. The
//! new one: [`handover()`] gives it, on trial too, so that an app can refuse what it can't use. If
//! nothing comes of it the old one is told so: [`on_resume`].
//!
//! Values are MessagePack with the names of fields, which says of each value what it is. So a
//! struct may get fields (with `#[serde(default)]`) and lose some, and another type is an error:
//! the two images may be of different versions, compiled differently. A [`Socket`] is a value like
//! others: connections live through the switch, alone or inside of what is known of them.

mod socket;

pub use socket::{Kind, Socket};

use crate::kernel::replace::record::RecordError;
use crate::kernel::replace::values::{self, Block, ValueError, Values};
use crate::preserved;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::convert::Infallible;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

/// Why a value can't be handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PutError {
    /// Its name is empty, too long, or there already; or there is no room.
    Value(values::PutError),
    /// It says itself that it can't be written, or is of a kind that the format lacks.
    Encode(String),
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(e) => write!(f, "{e}"),
            Self::Encode(why) => write!(f, "a value can't be written: {why}"),
        }
    }
}

impl std::error::Error for PutError {}

/// Why the app does not want to be replaced now. Any error becomes one by `?`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal(String);

impl Refusal {
    /// With a reason, which `replace_image` gives to its caller.
    pub fn new(why: impl fmt::Display) -> Self {
        Self(why.to_string())
    }
}

impl<E: std::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self::new(error)
    }
}

/// What goes to the next image.
#[derive(Debug, Default)]
pub struct Outgoing {
    values: Values,
}

impl Outgoing {
    /// Hands `value` over by `name`.
    ///
    /// # Errors
    /// See [`PutError`]: it is not handed over. All values together may have 16 MiB; what is larger
    /// belongs into a [`preserved`] region.
    pub fn put<T: Serialize + ?Sized>(&mut self, name: &str, value: &T) -> Result<(), PutError> {
        let bytes = rmp_serde::to_vec_named(value).map_err(|e| PutError::Encode(e.to_string()))?;
        self.values.put(name, bytes).map_err(PutError::Value)
    }

    /// Hands a socket over by `name`: a `TcpListener` with the connections that wait in it, a
    /// `TcpStream` with what is on its way in both directions, a `UdpSocket` with what it has
    /// received. It goes on working here, until the switch, and after it if that fails.
    ///
    /// # Errors
    /// As [`Outgoing::put`]; also if it can't be handed over.
    pub fn put_socket<T: Kind>(&mut self, name: &str, socket: &T) -> Result<(), PutError> {
        self.put(name, &Socket::new(socket))
    }

    /// Sets the number of the schema: what the values mean. 0 without.
    pub fn schema(&mut self, schema: u32) {
        self.values.set_schema(schema);
    }

    /// The values as the next image finds them; `None` if there are none.
    #[cfg(not(target_os = "hermit"))]
    pub(crate) fn block(&self) -> Option<Vec<u8>> {
        let mut block = vec![0; self.values.len()];
        self.values.write(&mut block).ok()?;
        (!self.values.is_empty()).then_some(block)
    }
}

type Handler = Box<dyn FnMut(&mut Outgoing) -> Result<(), Refusal> + Send>;
type Resumed = Box<dyn FnMut() + Send>;

static HANDLERS: Mutex<Vec<Handler>> = Mutex::new(Vec::new());
static RESUMED: Mutex<Vec<Resumed>> = Mutex::new(Vec::new());
/// Handlers run, or a switch is on that they take part in; after a time-out still those of the
/// switch before.
static RUNNING: AtomicBool = AtomicBool::new(false);
/// Set with the first handler, so that an app without any has nothing of this in its image.
static COLLECT: OnceLock<Collect> = OnceLock::new();

type Collect = fn(Duration) -> Result<(Values, Part), Unready>;

fn locked<T>(list: &'static Mutex<T>) -> MutexGuard<'static, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls all, in order. Those that are registered meanwhile come after, and are not called.
fn call_all<F, E>(
    list: &'static Mutex<Vec<F>>,
    call: impl FnMut(&mut F) -> Result<(), E>,
) -> Result<(), E> {
    let mut running = std::mem::take(&mut *locked(list));
    let outcome = running.iter_mut().try_for_each(call);
    let mut list = locked(list);
    running.append(&mut list);
    *list = running;
    outcome
}

/// Has `f` called when this image is about to be replaced: to bring what is under way to a point
/// where another image can go on with it, and to say what is handed over. It may refuse; then
/// `replace_image` returns why.
///
/// It is the last thing before everything stops: the new image is loaded, and what `f` stops
/// (accepting requests, say) stands still from there until the new image has committed. So it
/// should take as long as it must, and no longer: clients wait.
///
/// It runs in a thread of its own while everything goes on, so that a time limit can hold
/// (`Replace::ready_limit`): after that `replace_image` returns an error, the app goes on, and there
/// is no other switch until `f` has returned. Several are called in the order they were registered.
///
/// After it this image is gone, or what was given to [`on_resume`] is called.
pub fn on_replace(f: impl FnMut(&mut Outgoing) -> Result<(), Refusal> + Send + 'static) {
    locked(&HANDLERS).push(Box::new(f));
    let _ = COLLECT.set(run_handlers);
}

/// Has `f` called when a switch has not come about for which [`on_replace`]'s handlers had been
/// called, so that what they stopped goes on: the new image gave up, one of them refused or was
/// late, or the kernel could not switch.
///
/// All are called, in the order they were registered, also when the handler that refused came
/// before the one that belongs to this: `f` has to be right then, too. It is called before
/// `replace_image` returns, or when the late handler has; until then there is no other switch.
pub fn on_resume(f: impl FnMut() + Send + 'static) {
    locked(&RESUMED).push(Box::new(f));
}

/// Handlers have been called for a switch. Dropped when that has not come about.
#[derive(Debug, Default)]
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "nothing is replaced on a host but in tests")
)]
pub(crate) struct Part(bool);

impl Drop for Part {
    fn drop(&mut self) {
        if self.0 {
            let never: Result<(), Infallible> = call_all(&RESUMED, |f| {
                f();
                Ok(())
            });
            let Ok(()) = never;
            RUNNING.store(false, Ordering::Release);
        }
    }
}

/// Why there are no values.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "nothing is replaced on a host but in tests")
)]
pub(crate) enum Unready {
    /// A handler said no, or there was no thread for it.
    Refused(String),
    /// The time was over.
    Late,
    /// The handlers of a switch before run still.
    Busy,
}

/// Calls the handlers and gives what they hand over. If nothing comes of the switch the other half
/// is dropped.
#[cfg_attr(
    not(target_os = "hermit"),
    allow(dead_code, reason = "nothing is replaced on a host but in tests")
)]
pub(crate) fn collect(limit: Duration) -> Result<(Values, Part), Unready> {
    COLLECT
        .get()
        .map_or_else(|| Ok(<_>::default()), |run| run(limit))
}

fn run_handlers(limit: Duration) -> Result<(Values, Part), Unready> {
    if RUNNING.swap(true, Ordering::AcqRel) {
        return Err(Unready::Busy);
    }
    let (sender, receiver) = mpsc::sync_channel(1);
    let part = Part(true);
    let run = move || {
        let mut outgoing = Outgoing::default();
        let outcome = call_all(&HANDLERS, |f| f(&mut outgoing));
        // Nobody takes it when the time is over: it is dropped, here or with the channel.
        let _ = sender.send((outcome.map(|()| outgoing.values), part));
    };
    let thread = thread::Builder::new().name("on_replace".into()).spawn(run);
    // Without a thread what it would have had is dropped: nothing was stopped, and all is told so.
    let thread =
        thread.map_err(|e| Unready::Refused(format!("there is no thread for on_replace: {e}")))?;
    let (outcome, part) = receiver.recv_timeout(limit).map_err(|_| Unready::Late)?;
    // Its memory is free before the record says what is.
    let _ = thread.join();
    match outcome {
        Ok(values) => Ok((values, part)),
        Err(Refusal(why)) => Err(Unready::Refused(why)),
    }
}

/// Why a value can't be taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// The image before handed over nothing of this name, or it was taken already.
    Missing {
        /// The name.
        name: String,
    },
    /// It is of another type.
    WrongType {
        /// The name.
        name: String,
        /// What does not fit.
        why: String,
    },
    /// The image before used a newer schema than this one [understands](Incoming::understand).
    Newer {
        /// Its schema.
        schema: u32,
        /// The newest that this one understands.
        known: u32,
    },
    /// A digest does not match.
    Damaged,
}

impl fmt::Display for TakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name } => write!(f, "no value '{name}' was handed over"),
            Self::WrongType { name, why } => {
                write!(f, "the value '{name}' is of another type: {why}")
            }
            Self::Newer { schema, known } => write!(
                f,
                "the values have schema {schema}, and this image knows {known} at most"
            ),
            Self::Damaged => f.write_str("what was handed over is damaged"),
        }
    }
}

impl std::error::Error for TakeError {}

/// What the image before has handed over, once: `None` when it was asked for before, when this is
/// the first image of the domain, and when the one before handed over nothing.
///
/// Dropping it says that all is taken that is wanted: values and regions that were not are freed
/// then, and sockets closed, or with the commit if this image is on trial. They never pass to the image after this one.
/// An app that says `segue::trial!()` has lost the regions it has not taken when it commits; one
/// that does not is committed before its first line, and has time until it drops this.
#[must_use]
pub fn handover() -> Option<Incoming> {
    let came = preserved::platform::came()?;
    Some(Incoming::new(came))
}

/// What the image before has handed over.
#[derive(Debug)]
pub struct Incoming {
    block: Option<Result<Block<'static>, RecordError>>,
    taken: Vec<String>,
    known: u32,
}

impl Incoming {
    /// With the block of values, if there is one.
    pub(crate) fn new(values: Option<&'static [u8]>) -> Self {
        Self {
            block: values.map(Block::parse),
            taken: Vec::new(),
            known: u32::MAX,
        }
    }

    fn block(&self) -> Option<&Block<'static>> {
        self.block.as_ref()?.as_ref().ok()
    }

    /// How many values came, those that were taken among them.
    #[cfg_attr(
        not(target_os = "hermit"),
        allow(dead_code, reason = "the upgrade service tells it, in a domain")
    )]
    pub(crate) fn values(&self) -> usize {
        self.block().map_or(0, |block| block.names().count())
    }

    /// The schema that the image before has set; 0 if it has set none.
    #[must_use]
    pub fn schema(&self) -> u32 {
        self.block().map_or(0, Block::schema)
    }

    /// Says which schemas this image understands: up to `newest`. Without, any.
    pub fn understand(&mut self, newest: u32) {
        self.known = newest;
    }

    /// Takes the value of this name. Its digest is checked here, and that it is what `T` expects.
    ///
    /// # Errors
    /// See [`TakeError`]; the value is still there then.
    pub fn take<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, TakeError> {
        let missing = || TakeError::Missing { name: name.into() };
        let block = match &self.block {
            Some(Ok(block)) => *block,
            Some(Err(_)) => return Err(TakeError::Damaged),
            None => return Err(missing()),
        };
        if self.taken.iter().any(|taken| taken == name) {
            return Err(missing());
        }
        if block.schema() > self.known {
            return Err(TakeError::Newer {
                schema: block.schema(),
                known: self.known,
            });
        }
        let bytes = block.get(name).map_err(|e| match e {
            ValueError::Missing => missing(),
            ValueError::Damaged => TakeError::Damaged,
        })?;
        let value = rmp_serde::from_slice(bytes).map_err(|e| TakeError::WrongType {
            name: name.into(),
            why: e.to_string(),
        })?;
        self.taken.push(name.into());
        Ok(value)
    }

    /// Takes the value of this name, if there is one: an image that crashed has handed over none.
    ///
    /// # Errors
    /// As [`Incoming::take`].
    pub fn take_if_any<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, TakeError> {
        match self.take(name) {
            Ok(value) => Ok(Some(value)),
            Err(TakeError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the socket of this name, which is bound, listens or is connected as it was.
    ///
    /// # Errors
    /// As [`Incoming::take`]; also if it is of another kind, or is there no more.
    pub fn take_socket<T: Kind>(&mut self, name: &str) -> Result<T, TakeError> {
        self.take(name).map(Socket::into_inner)
    }

    /// The names of values that were not taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let names = self.block().into_iter().flat_map(Block::names);
        names.filter(|name| !self.taken.iter().any(|taken| taken == name))
    }

    /// The preserved regions that were not taken.
    #[must_use]
    pub fn regions(&self) -> Vec<preserved::Info> {
        preserved::offered()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.block = None;
        // SAFETY: the only references to the values' bytes were in here; those that `names` gives
        // don't outlive this.
        unsafe { preserved::platform::finish() };
        // An image without sockets gets nothing of the network by this.
        socket::finish();
    }
}

#[cfg(test)]
mod tests;
