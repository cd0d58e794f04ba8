//! Descriptors 0, 1 and 2.

use crate::abi::errno::Errno;
use crate::abi::fd::{self, Object, Ready, Stat};
use crate::task::wait::WaitQueue;
use crate::xen::console;
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, Ordering};
use hermit_abi::S_IFCHR;

fn character_device() -> Stat {
    Stat {
        st_mode: S_IFCHR | 0o600,
        ..Stat::default()
    }
}

/// What is typed.
struct Input {
    nonblocking: AtomicBool,
}

impl Object for Input {
    /// Where there is no console to type on (on trial, or Xen has none) the input has ended.
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.nonblocking.load(Ordering::Relaxed) {
            if console::listen().is_none() || buf.is_empty() {
                return Ok(0);
            }
            return console::read(buf).ok_or(Errno::EAGAIN);
        }
        Ok(console::read_until(None, buf).unwrap_or(0))
    }

    /// It is the same console.
    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        Output.write(buf)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(character_device())
    }

    fn set_nonblocking(&self, on: bool) -> Result<(), Errno> {
        self.nonblocking.store(on, Ordering::Relaxed);
        Ok(())
    }

    fn readiness(&self) -> Ready {
        if console::listen().is_none() || console::has_input() {
            Ready::ALWAYS
        } else {
            Ready::WRITE
        }
    }

    fn waiters(&self) -> Option<&WaitQueue> {
        console::listen().map(|()| &console::INPUT)
    }
}

/// What is printed.
struct Output;

impl Object for Output {
    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        console::write(buf);
        Ok(buf.len())
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(character_device())
    }

    /// Output never waits for long.
    fn set_nonblocking(&self, _: bool) -> Result<(), Errno> {
        Ok(())
    }
}

/// Opens them: before anything else has a descriptor.
pub(crate) fn open() {
    let input = Input {
        nonblocking: AtomicBool::new(false),
    };
    let output: Arc<dyn Object> = Arc::new(Output);
    let _ = fd::insert(Arc::new(input));
    for _ in 1..3 {
        let _ = fd::insert(Arc::clone(&output));
    }
}
