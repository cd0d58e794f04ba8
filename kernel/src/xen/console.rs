//! The paravirtual console (public/io/console.h), for HVM and PVH, and what stands in for it: the
//! UART before it is up and in a panic (HVM), the park pages' buffer in a trial.
//!
//! Output never blocks for good and never takes memory: a piece goes to the ring in one go; when
//! the backend does not make room for it within [`PATIENCE_NS`] it is dropped, and so is all that
//! follows until there is room, when a line says how much was lost. Who waits for room holds no
//! lock and sleeps, if it can.
//!
//! Input waits in the ring until somebody reads it, so it takes no memory; the port has no handler
//! before that.

use crate::abi::typed::Typed;
use crate::devices::uart;
use crate::memory::Gfn;
use crate::replace::trial;
use crate::sync::Lock;
use crate::task;
use crate::xen::console_ring::{OUT_SIZE, Ring};
use crate::xen::hypercall::{self, Port};
use crate::xen::wait::WaitQueue;
use crate::xen::{Committed, events, shared_info};
use core::fmt::{self, Write};
use core::sync::atomic::{AtomicBool, Ordering};
use hermit_sync::OnceCell;

/// How long a writer waits for room, in ns.
const PATIENCE_NS: u64 = 1_000_000_000;

/// How long who waits for room sleeps between two looks, in ns.
const RETRY_NS: u64 = 1_000_000;

/// The ring and its port: from `HVM_PARAM_CONSOLE_PFN` and `HVM_PARAM_CONSOLE_EVTCHN`.
#[derive(Clone, Copy, Debug)]
pub struct Console {
    /// The ring's frame (shared with the backend).
    pub gfn: Gfn,
    /// The port that tells the backend.
    pub port: Port,
}

/// The console and what was not printed on it.
struct State {
    console: Option<Console>,
    /// Bytes dropped and not told of.
    dropped: u64,
    /// The backend made no room in time: nobody waits for it until it does.
    stuck: bool,
    typed: Typed,
}

static STATE: Lock<State> = Lock::new(State {
    console: None,
    dropped: 0,
    stuck: false,
    typed: Typed::new(),
});

/// Where the console is, for whoever can't wait for the lock.
static HOME: OnceCell<Console> = OnceCell::new();

impl Console {
    /// Asks Xen where the ring is.
    #[must_use]
    pub fn find(token: Committed) -> Option<Self> {
        let get = |index| {
            hypercall::hvm_get_param(token, index)
                .ok()
                .filter(|v| *v != 0)
        };
        let gfn = Gfn::new(get(hypercall::HVM_PARAM_CONSOLE_PFN)?)?;
        let port = u32::try_from(get(hypercall::HVM_PARAM_CONSOLE_EVTCHN)?).ok()?;
        Some(Self {
            gfn,
            port: Port(port),
        })
    }

    fn ring(&self) -> &'static Ring {
        // SAFETY: `set`'s promise: the frame is the console's ring and mapped for as long as this
        // image runs; a ring is atomics all through, so the backend may write to it.
        unsafe { &*self.gfn.addr().as_ptr() }
    }

    fn notify(&self, token: Committed) {
        let _ = hypercall::send(token, self.port);
    }
}

/// What came of a piece.
enum Put {
    Done(Console),
    Full(Console),
    Dropped,
    NoConsole,
}

impl State {
    /// Puts a piece, all or nothing.
    fn put(&mut self, piece: &[u8]) -> Put {
        let Some(console) = self.console else {
            return Put::NoConsole;
        };
        let note = (self.dropped > 0).then(|| {
            let dropped = self.dropped;
            Line::format(format_args!("segue: console dropped_bytes={dropped}"))
        });
        let note = note.as_ref().map_or(&[][..], Line::as_bytes);
        let room = (OUT_SIZE - console.ring().used()) as usize;
        if room >= note.len() + piece.len() {
            console.ring().put(note);
            console.ring().put(piece);
            self.dropped = 0;
            self.stuck = false;
            Put::Done(console)
        } else if self.stuck {
            self.drop_piece(piece);
            Put::Dropped
        } else {
            Put::Full(console)
        }
    }

    fn drop_piece(&mut self, piece: &[u8]) {
        self.dropped = self.dropped.saturating_add(piece.len() as u64);
    }
}

/// Makes `console` the console.
///
/// # Safety
/// Its frame is the console ring, mapped writable for as long as this image runs.
pub unsafe fn set(console: Console) {
    STATE.lock().console = Some(console);
    let _ = HOME.set(console);
}

/// The console, if there is one. Takes no lock.
pub fn get() -> Option<Console> {
    HOME.get().copied()
}

/// Writes to wherever output goes now.
pub fn write(bytes: &[u8]) {
    let Some(token) = Committed::get() else {
        trial::buffer(bytes);
        return;
    };
    // A piece is small enough for the ring, with the line about what was dropped.
    for piece in bytes.chunks(OUT_SIZE as usize / 2) {
        write_piece(token, piece);
    }
}

fn write_piece(token: Committed, piece: &[u8]) {
    let mut deadline = None;
    loop {
        let put = STATE.lock().put(piece);
        match put {
            Put::Done(console) => return console.notify(token),
            Put::Dropped => return,
            Put::NoConsole => return uart::write(token, piece),
            Put::Full(console) => {
                let now = shared_info::now();
                if now >= *deadline.get_or_insert(now + PATIENCE_NS) {
                    let mut state = STATE.lock();
                    state.stuck = true;
                    state.drop_piece(piece);
                    return;
                }
                console.notify(token);
                if !task::sleep_until(now + RETRY_NS) {
                    hypercall::sched_yield(token);
                }
            }
        }
    }
}

/// Woken when there may be input.
pub static INPUT: WaitQueue = WaitQueue::new();

/// The console's port is being listened to.
static LISTENING: AtomicBool = AtomicBool::new(false);

impl Console {
    /// Bytes in the input ring.
    fn typed(&self) -> u32 {
        self.ring().typed()
    }

    /// Takes the byte that was typed first.
    fn take(&self) -> Option<u8> {
        let mut byte = [0];
        (self.ring().take(&mut byte) == 1).then_some(byte[0])
    }
}

/// Reads what was typed, without waiting (see `abi/typed.rs` for what becomes of it); 0 is the end
/// of the input, `None` that there is nothing yet. Nothing comes in a trial, or without a
/// paravirtual console.
pub fn read(buf: &mut [u8]) -> Option<usize> {
    let token = Committed::get()?;
    let mut state = STATE.lock();
    let console = state.console?;
    let mut taken = false;
    let count = state.typed.read(buf, || {
        let byte = console.take();
        taken |= byte.is_some();
        byte
    });
    drop(state);
    if taken {
        console.notify(token);
    }
    count
}

/// Whether [`read`] has something to give.
pub fn has_input() -> bool {
    let state = STATE.lock();
    Committed::get().is_some()
        && state
            .console
            .is_some_and(|console| state.typed.is_end() || console.typed() != 0)
}

/// Reads what was typed, waiting until `deadline` (system time, in ns); `None` when it is over, or
/// where there is no paravirtual console.
pub fn read_until(deadline: Option<u64>, buf: &mut [u8]) -> Option<usize> {
    listen()?;
    if buf.is_empty() {
        return Some(0);
    }
    INPUT.wait_until(deadline, || read(buf))
}

/// Has [`INPUT`] woken when there is input; `None` where there is no paravirtual console.
pub fn listen() -> Option<()> {
    let (token, console) = (Committed::get()?, get()?);
    if !LISTENING.swap(true, Ordering::AcqRel) {
        events::handle(token, console.port, |_| INPUT.wake_all());
    }
    Some(())
}

/// Waits until the backend has taken everything, a second at most.
pub fn flush() {
    let Some(token) = Committed::get() else {
        return;
    };
    let Some(console) = get() else {
        return;
    };
    let deadline = shared_info::now() + PATIENCE_NS;
    while console.ring().used() != 0 && shared_info::now() < deadline {
        hypercall::sched_yield(token);
    }
}

/// How long [`emergency_write`] waits for the lock, in ns: longer than a vCPU that holds it may have
/// no processor.
const LOCK_NS: u64 = 200_000_000;

/// Writes without waiting for long for a lock that the failed code may hold, or a vCPU that has been
/// stopped.
pub fn emergency_write(bytes: &[u8]) {
    let Some(token) = Committed::get() else {
        trial::buffer(bytes);
        return;
    };
    let Some(console) = get() else {
        return uart::write(token, bytes);
    };
    let given_up = shared_info::now() + LOCK_NS;
    let _state = loop {
        match STATE.try_lock() {
            None if shared_info::now() < given_up => hypercall::sched_yield(token),
            state => break state,
        }
    };
    let deadline = shared_info::now() + PATIENCE_NS;
    let mut rest = bytes;
    while !rest.is_empty() && shared_info::now() < deadline {
        rest = &rest[console.ring().put(rest)..];
        console.notify(token);
        if !rest.is_empty() {
            hypercall::sched_yield(token);
        }
    }
}

/// A line put together on the stack: one write, no allocation.
pub struct Line {
    buf: arrayvec::ArrayString<512>,
}

impl Line {
    /// Formats a line; what does not fit 511 bytes is cut off.
    #[must_use]
    pub fn format(args: fmt::Arguments<'_>) -> Self {
        let mut line = Self {
            buf: arrayvec::ArrayString::new(),
        };
        let _ = line.write_fmt(args);
        let end = line.buf.len().min(line.buf.capacity() - 1);
        while line.buf.len() > end {
            line.buf.pop();
        }
        line.buf.push('\n');
        line
    }

    /// The bytes with the newline.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        self.buf.as_bytes()
    }
}

impl Write for Line {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            self.buf.try_push(c).map_err(|_| fmt::Error)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.buf)
    }
}

/// A message inside quotes: quotes, backslashes and control characters are escaped.
#[derive(Debug)]
pub struct Escaped<'a, T: ?Sized>(pub &'a T);

impl<T: fmt::Display + ?Sized> fmt::Display for Escaped<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);
        impl Write for Escape<'_, '_> {
            fn write_str(&mut self, s: &str) -> fmt::Result {
                s.chars()
                    .flat_map(char::escape_debug)
                    .try_for_each(|c| self.0.write_char(c))
            }
        }
        write!(Escape(f), "{}", self.0)
    }
}

/// Prints a line on the console.
macro_rules! println {
    ($($arg:tt)*) => {
        $crate::xen::console::write(
            $crate::xen::console::Line::format(format_args!($($arg)*)).as_bytes())
    };
}
pub(crate) use println;

/// Prints a line from a fault or panic.
macro_rules! emergency_println {
    ($($arg:tt)*) => {
        $crate::xen::console::emergency_write(
            $crate::xen::console::Line::format(format_args!($($arg)*)).as_bytes())
    };
}
pub(crate) use emergency_println;
