//! What the toolstack asks of the domain: `control/shutdown` and `control/sysrq`
//! (docs/misc/xenstore-paths.pandoc), and the thread that hears of it.
//!
//! | value | what becomes of it |
//! |---|---|
//! | `poweroff`, `halt` | acknowledged; the domain ends with reason poweroff (Linux does so, too) |
//! | `reboot` | acknowledged; the domain ends with reason reboot |
//! | `suspend` | refused, see below |
//! | others, all of `sysrq` | acknowledged, told on the console, nothing else |
//!
//! An image that has asked for notices ([`heed`], [`wait`]) has the grace time to end by itself;
//! one that has not ends at once. Acknowledging is writing an empty string.
//!
//! **suspend** is refused, because what Xen would restore is not what the image was promised.
//! `control/feature-suspend` says so, but libxl (4.17 to 4.21) never reads it: it writes the request
//! and gives up only when it is not acknowledged for 60 s (`timeout_ms` in
//! `libxl__domain_pvcontrol`, tools/libs/light/libxl_domain.c). So a port is offered at
//! `device/suspend/event-channel` that nobody can bind to, port 0, which Xen reserves: then
//! `libxl__domain_suspend_init` fails before anything is asked ("Suspend event channel
//! initialization failed"). A toolstack that does not look there is refused by silence.

use crate::boot::cmdline::CommandLine;

/// What the domain was asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// `poweroff`: end, with that reason.
    Poweroff,
    /// `reboot`: end, with that reason.
    Reboot,
    /// `halt`: end like a power-off.
    Halt,
}

impl Request {
    /// As the node has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Reboot => "reboot",
            Self::Halt => "halt",
        }
    }
}

/// What `control/shutdown` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// A request.
    Request(Request),
    /// `suspend`, which is refused by not being acknowledged.
    Suspend,
    /// Something that is acknowledged and not done.
    Unknown,
    /// Nothing.
    Nothing,
}

impl Control {
    /// From the node's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"" => Self::Nothing,
            b"poweroff" => Self::Request(Request::Poweroff),
            b"reboot" => Self::Request(Request::Reboot),
            b"halt" => Self::Request(Request::Halt),
            b"suspend" => Self::Suspend,
            _ => Self::Unknown,
        }
    }

    /// Whether the node is to be emptied.
    #[must_use]
    pub fn is_acknowledged(self) -> bool {
        matches!(self, Self::Request(_) | Self::Unknown)
    }
}

/// Grace time without `segue.grace`, in s.
const GRACE_S: u64 = 10;

/// The grace time in s.
///
/// # Errors
/// The value of `segue.grace` where it is no number.
pub fn grace(cmdline: &CommandLine) -> Result<u64, &str> {
    let option = cmdline.option("grace");
    option.map_or(Ok(GRACE_S), |o| o.parse().map_err(|_| o))
}

#[cfg(target_os = "hermit")]
pub use shared::{Watcher, add, heed, requested, wait};

#[cfg(target_os = "hermit")]
pub(crate) use shared::start;

#[cfg(target_os = "hermit")]
mod shared {
    use super::{Control, GRACE_S, Request, grace};
    use crate::boot;
    use crate::devices::xenbus::GATE;
    use crate::end;
    use crate::sync::Lock;
    use crate::task;
    use crate::xen::Committed;
    use crate::xen::console::{Escaped, println};
    use crate::xen::hypercall::ShutdownReason;
    use crate::xen::wait::{self, WaitQueue};
    use crate::xen::xenstore::{self, Before, Client, Error, SharedRing, Transaction, WatchEvent};
    use alloc::boxed::Box;
    use alloc::string::String;
    use alloc::vec::Vec;
    use core::convert::Infallible;

    const NO: Transaction = Transaction::NONE;
    const SHUTDOWN: &str = "control/shutdown";
    const SYSRQ: &str = "control/sysrq";

    /// What an image writes once, where the toolstack has made the nodes; see the module's text.
    const ANNOUNCED: [(&str, &[u8]); 4] = [
        ("control/feature-poweroff", b"1"),
        ("control/feature-reboot", b"1"),
        ("control/feature-suspend", b"0"),
        ("device/suspend/event-channel", b"0"),
    ];

    /// Somebody else who watches nodes, by the same thread: its tokens are neither `shutdown` nor
    /// `sysrq`.
    pub trait Watcher: Send {
        /// Sets its watches. Nobody has any before.
        ///
        /// # Errors
        /// The client is closed.
        fn begin(&mut self) -> Result<(), Error>;

        /// What is to be done besides events; says until when it can wait (system time, in ns).
        fn due(&mut self) -> Option<u64>;

        /// One of its watches has fired.
        ///
        /// # Errors
        /// See [`Error`]; one that says that the client is closed ends the thread.
        fn event(&mut self, event: &WatchEvent) -> Result<(), Error>;

        /// There will be no more events.
        fn failed(&mut self);
    }

    /// Who comes to the thread.
    struct Door {
        new: Option<Box<dyn Watcher>>,
        /// The thread has ended, or was never started.
        closed: bool,
    }

    static DOOR: Lock<Door> = Lock::new(Door {
        new: None,
        closed: false,
    });

    /// Has the thread work for a watcher. There is one at most.
    pub fn add(mut watcher: Box<dyn Watcher>) {
        let mut door = DOOR.lock();
        if door.closed {
            drop(door);
            watcher.failed();
            return;
        }
        door.new = Some(watcher);
        drop(door);
        if let Ok(client) = xenstore::client() {
            client.waiters().wake_all();
        }
    }

    /// A request, and when the grace time is over (system time, in ns).
    struct State {
        request: Option<(Request, u64)>,
        heeded: bool,
    }

    static STATE: Lock<State> = Lock::new(State {
        request: None,
        heeded: false,
    });

    /// Woken when there is a request.
    static REQUESTED: WaitQueue = WaitQueue::new();

    impl Request {
        /// The reason to end with.
        #[must_use]
        pub fn reason(self) -> ShutdownReason {
            match self {
                Self::Poweroff | Self::Halt => ShutdownReason::Poweroff,
                Self::Reboot => ShutdownReason::Reboot,
            }
        }
    }

    /// The last request, if there was one.
    #[must_use]
    pub fn requested() -> Option<Request> {
        STATE.lock().request.map(|(request, _)| request)
    }

    /// The image looks for requests from now on: it is given the grace time.
    pub fn heed() {
        STATE.lock().heeded = true;
    }

    /// Waits for a request until `deadline` (system time, in ns); the image heeds requests.
    pub fn wait(deadline: Option<u64>) -> Option<Request> {
        heed();
        REQUESTED.wait_until(deadline, requested)
    }

    fn request(request: Request) {
        let grace = match grace(&boot::machine().cmdline) {
            Ok(seconds) => seconds,
            Err(bad) => {
                println!("segue: control ignored=\"segue.grace={bad}\"");
                GRACE_S
            }
        };
        let mut state = STATE.lock();
        let grace = if state.heeded { grace } else { 0 };
        let over = wait::now().saturating_add(grace.saturating_mul(1_000_000_000));
        // The first request's time counts for those that follow.
        let over = state.request.map_or(over, |(_, first)| first);
        state.request = Some((request, over));
        drop(state);
        println!("segue: control request={} grace_s={grace}", request.name());
        if grace == 0 {
            end::end(request.reason());
        }
        REQUESTED.wake_all();
    }

    /// Ends the domain when the grace time is over; says when that is.
    fn due() -> Option<u64> {
        let (request, over) = STATE.lock().request?;
        if wait::now() >= over {
            println!("segue: control grace_over request={}", request.name());
            end::end(request.reason());
        }
        Some(over)
    }

    /// Starts the thread: xenstore is looked at while the image's main runs, not before.
    pub(crate) fn start(token: Committed) {
        let thread = move || {
            let mut watcher = None;
            let result = watch(&mut watcher);
            let Err(e) = result;
            println!("segue: xenbus off reason=\"{e}\"");
            close(watcher);
        };
        // The token says that this is no trial: threads can be started.
        let _ = token;
        if task::spawn("xenbus", thread).is_err() {
            println!("segue: xenbus off reason=\"no memory for its thread\"");
            close(None);
        }
    }

    fn close(watcher: Option<Box<dyn Watcher>>) {
        let mut door = DOOR.lock();
        door.closed = true;
        let new = door.new.take();
        drop(door);
        for mut watcher in watcher.into_iter().chain(new) {
            watcher.failed();
        }
    }

    fn watch(watcher: &mut Option<Box<dyn Watcher>>) -> Result<Infallible, Error> {
        let client = xenstore::client()?;
        if let Some(Before::AtRest(open)) = xenstore::before() {
            client.end_transactions(open)?;
        } else {
            // Those of an image before; a xenstored that has no such request has no such watches.
            allowed(client.reset_watches())?;
            for (path, value) in ANNOUNCED {
                allowed(client.write(NO, path, value))?;
            }
        }
        // Where the watch is there already it fires all the same: what the image before was asked
        // and has not done is this one's to do.
        client.watch(SHUTDOWN, "shutdown")?;
        client.watch(SYSRQ, "sysrq")?;
        loop {
            if watcher.is_none() {
                *watcher = DOOR.lock().new.take();
                if let Some(watcher) = watcher {
                    watcher.begin()?;
                }
            }
            let times = [due(), watcher.as_mut().and_then(|w| w.due())];
            let until = times.into_iter().flatten().min();
            let somebody_came = || watcher.is_none() && DOOR.lock().new.is_some();
            let Some(event) = client.next_event(until, somebody_came)? else {
                continue;
            };
            let _entered = GATE.enter();
            allowed(match (&*event.token, &mut *watcher) {
                ("shutdown", _) => shutdown(client),
                ("sysrq", _) => sysrq(client),
                (_, Some(watcher)) => watcher.event(&event),
                (_, None) => Ok(()),
            })?;
        }
    }

    /// Passes over what is no failure of xenstore's: a node that went away in between, one that may
    /// not be touched.
    fn allowed(result: Result<(), Error>) -> Result<(), Error> {
        match result {
            Err(Error::Refused(_) | Error::Value | Error::TooLong) => Ok(()),
            other => other,
        }
    }

    /// Reads a node and empties it, if `acknowledge` says so.
    fn take(
        client: &Client<SharedRing>,
        path: &str,
        acknowledge: impl Fn(&[u8]) -> bool,
    ) -> Result<Vec<u8>, Error> {
        client.transaction(|t| {
            let value = match client.read(t, path) {
                Ok(value) => value,
                Err(Error::Refused(_)) => Vec::new(),
                Err(e) => return Err(e),
            };
            if acknowledge(&value) {
                client.write(t, path, b"")?;
            }
            Ok(value)
        })
    }

    fn shutdown(client: &Client<SharedRing>) -> Result<(), Error> {
        let value = take(client, SHUTDOWN, |v| Control::parse(v).is_acknowledged())?;
        match Control::parse(&value) {
            Control::Request(r) => request(r),
            Control::Suspend => println!("segue: control refused=suspend"),
            Control::Unknown => ignored("shutdown", &value),
            Control::Nothing => {}
        }
        Ok(())
    }

    fn sysrq(client: &Client<SharedRing>) -> Result<(), Error> {
        let value = take(client, SYSRQ, |v| !v.is_empty())?;
        if !value.is_empty() {
            ignored("sysrq", &value);
        }
        Ok(())
    }

    fn ignored(name: &str, value: &[u8]) {
        let value = String::from_utf8_lossy(value);
        println!("segue: control ignored=\"{name} {}\"", Escaped(&*value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_acknowledged_and_suspend_is_not() {
        for request in [Request::Poweroff, Request::Reboot, Request::Halt] {
            let control = Control::parse(request.name().as_bytes());
            assert_eq!(control, Control::Request(request));
            assert!(control.is_acknowledged());
        }
        for unknown in [&b"s3"[..], b"poweroff\0", b"\xff", b"crash"] {
            assert_eq!(Control::parse(unknown), Control::Unknown);
            assert!(Control::parse(unknown).is_acknowledged());
        }
        assert!(!Control::parse(b"suspend").is_acknowledged());
        // Emptying it again would have the watch fire for ever.
        assert!(!Control::parse(b"").is_acknowledged());
    }

    #[test]
    fn the_grace_time_is_a_number_of_seconds() {
        let with =
            |text: &str| grace(&CommandLine::from_bytes(text.as_bytes())).map_err(String::from);
        assert_eq!(with("-- segue.grace=3"), Ok(10));
        assert_eq!(with("segue.grace=3 --"), Ok(3));
        assert_eq!(with("segue.grace=0"), Ok(0));
        for bad in ["", "-1", "3s", "99999999999999999999"] {
            assert_eq!(with(&format!("segue.grace={bad}")), Err(bad.into()));
        }
    }
}
