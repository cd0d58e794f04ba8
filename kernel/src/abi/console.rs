//! Descriptors 0, 1 and 2.

use crate::abi::errno::Errno;
use crate::abi::fd::{self, Object, Stat};
use crate::xen::console;
use alloc::sync::Arc;
use hermit_abi::S_IFCHR;

struct Console;

impl Object for Console {
    /// There is no input: it has ended.
    fn read(&self, _: &mut [u8]) -> Result<usize, Errno> {
        Ok(0)
    }

    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        console::write(buf);
        Ok(buf.len())
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(Stat {
            st_mode: S_IFCHR | 0o600,
            ..Stat::default()
        })
    }

    /// Output never waits for long, and what is typed is not waited for.
    fn set_nonblocking(&self, _: bool) -> Result<(), Errno> {
        Ok(())
    }
}

/// Opens them: before anything else has a descriptor.
pub(crate) fn open() {
    let console: Arc<dyn Object> = Arc::new(Console);
    for _ in 0..3 {
        let _ = fd::insert(Arc::clone(&console));
    }
}
