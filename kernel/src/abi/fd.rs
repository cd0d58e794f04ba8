//! Descriptors: small numbers for objects that are read, written and waited for.
//!
//! 0, 1 and 2 are the console. A number is free again as soon as it is closed; the object lives as
//! long as a descriptor, or somebody who is just using it, has it.

use crate::abi::errno::Errno;
use crate::abi::socket::Socket;
use crate::sync::Lock;
use crate::task::wait::WaitQueue;
use alloc::sync::Arc;
use alloc::vec::Vec;

/// `struct stat`.
pub use hermit_abi::stat as Stat;

/// Most descriptors there can be at a time.
pub const MAX: usize = 65_536;

/// What an object is ready for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Ready(u8);

impl Ready {
    /// Nothing.
    pub const NONE: Self = Self(0);
    /// Reading gives bytes, the end, a connection or an error at once.
    pub const READ: Self = Self(1);
    /// Writing takes bytes or gives an error at once.
    pub const WRITE: Self = Self(2);
    /// There is an error to be fetched.
    pub const ERROR: Self = Self(4);
    /// The other side has closed both directions.
    pub const HANGUP: Self = Self(8);
    /// Reading and writing never wait.
    pub const ALWAYS: Self = Self(3);

    /// Whether all of `other` is in here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether anything of `other` is in here.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl core::ops::BitOr for Ready {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        self.union(other)
    }
}

impl core::ops::BitOrAssign for Ready {
    fn bitor_assign(&mut self, other: Self) {
        *self = self.union(other);
    }
}

/// What a descriptor stands for.
pub trait Object: Send + Sync {
    /// Reads into `buf`; 0 at the end.
    ///
    /// # Errors
    /// As `read(2)` has them.
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let _ = buf;
        Err(Errno::EINVAL)
    }

    /// Writes from `buf`.
    ///
    /// # Errors
    /// As `write(2)` has them.
    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        let _ = buf;
        Err(Errno::EINVAL)
    }

    /// Moves the position; gives the new one.
    ///
    /// # Errors
    /// As `lseek(2)` has them.
    fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        let _ = (offset, whence);
        Err(Errno::ESPIPE)
    }

    /// What kind of thing it is, and how large.
    ///
    /// # Errors
    /// As `fstat(2)` has them.
    fn stat(&self) -> Result<Stat, Errno> {
        Err(Errno::EINVAL)
    }

    /// Sets the length in bytes.
    ///
    /// # Errors
    /// As `ftruncate(2)` has them.
    fn truncate(&self, len: u64) -> Result<(), Errno> {
        let _ = len;
        Err(Errno::EINVAL)
    }

    /// Fills `buf` with directory entries as `getdents64(2)` does; 0 at the end.
    ///
    /// # Errors
    /// As `getdents64(2)` has them: `EINVAL` if the buffer is too small.
    fn read_dir(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let _ = buf;
        Err(Errno::ENOTDIR)
    }

    /// Has calls that would wait fail with `EAGAIN`, or wait again.
    ///
    /// # Errors
    /// `EINVAL` for what never waits.
    fn set_nonblocking(&self, on: bool) -> Result<(), Errno> {
        let _ = on;
        Err(Errno::EINVAL)
    }

    /// What it is ready for now.
    fn readiness(&self) -> Ready {
        Ready::ALWAYS
    }

    /// Woken when readiness may have changed; `None` if it never does.
    fn waiters(&self) -> Option<&WaitQueue> {
        None
    }

    /// The socket it is, if it is one.
    fn socket(&self) -> Option<&dyn Socket> {
        None
    }
}

/// A descriptor's object and its flags.
struct Slot {
    object: Arc<dyn Object>,
    /// `O_NONBLOCK` was set through this descriptor.
    nonblocking: bool,
}

/// All descriptors. Numbers are taken from the free ones, last freed first: no scan.
struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<i32>,
}

impl Table {
    const fn new() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    fn slot(&mut self, fd: i32) -> Result<&mut Slot, Errno> {
        usize::try_from(fd)
            .ok()
            .and_then(|i| self.slots.get_mut(i)?.as_mut())
            .ok_or(Errno::EBADF)
    }

    fn insert(&mut self, slot: Slot) -> Result<i32, Errno> {
        if let Some(fd) = self.free.pop() {
            if let Some(place) = self.slots.get_mut(fd as usize) {
                *place = Some(slot);
            }
            return Ok(fd);
        }
        let fd = self.slots.len();
        if fd >= MAX {
            return Err(Errno::EMFILE);
        }
        self.slots.push(Some(slot));
        Ok(fd as i32)
    }

    /// The slot has to be dropped without the table's lock: its object may do anything then.
    fn remove(&mut self, fd: i32) -> Result<Slot, Errno> {
        self.slot(fd)?;
        let slot = self.slots.get_mut(fd as usize).and_then(Option::take);
        self.free.push(fd);
        slot.ok_or(Errno::EBADF)
    }
}

static TABLE: Lock<Table> = Lock::new(Table::new());

/// Gives `object` a descriptor.
///
/// # Errors
/// `EMFILE` when there are [`MAX`].
pub fn insert(object: Arc<dyn Object>) -> Result<i32, Errno> {
    TABLE.lock().insert(Slot {
        object,
        nonblocking: false,
    })
}

/// The object behind a descriptor.
///
/// # Errors
/// `EBADF` if there is none.
pub fn get(fd: i32) -> Result<Arc<dyn Object>, Errno> {
    TABLE.lock().slot(fd).map(|s| Arc::clone(&s.object))
}

/// Frees a descriptor.
///
/// # Errors
/// `EBADF` if there is none.
pub fn close(fd: i32) -> Result<(), Errno> {
    let slot = TABLE.lock().remove(fd)?;
    drop(slot);
    Ok(())
}

/// Another descriptor for the same object.
///
/// # Errors
/// `EBADF` if there is none, `EMFILE` when there are [`MAX`].
pub fn dup(fd: i32) -> Result<i32, Errno> {
    let mut table = TABLE.lock();
    let slot = table.slot(fd)?;
    let copy = Slot {
        object: Arc::clone(&slot.object),
        nonblocking: slot.nonblocking,
    };
    table.insert(copy)
}

/// Sets `O_NONBLOCK`.
///
/// # Errors
/// `EBADF` if there is no such descriptor; as [`Object::set_nonblocking`].
pub fn set_nonblocking(fd: i32, on: bool) -> Result<(), Errno> {
    get(fd)?.set_nonblocking(on)?;
    TABLE.lock().slot(fd).map(|slot| slot.nonblocking = on)
}

/// Whether `O_NONBLOCK` is set.
///
/// # Errors
/// `EBADF` if there is no such descriptor.
pub fn is_nonblocking(fd: i32) -> Result<bool, Errno> {
    TABLE.lock().slot(fd).map(|slot| slot.nonblocking)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Number(u64);

    impl Object for Number {
        fn seek(&self, _: i64, _: i32) -> Result<u64, Errno> {
            Ok(self.0)
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert,
        Close(i32),
        Dup(i32),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            Just(Op::Insert),
            (-2i32..30).prop_map(Op::Close),
            (-2i32..30).prop_map(Op::Dup),
        ]
    }

    proptest! {
        /// A descriptor names what it was made for until it is closed, and no number is in use
        /// twice.
        #[test]
        fn behaves_like_a_map(ops in proptest::collection::vec(op(), 0..100)) {
            let mut table = Table::new();
            let mut model = BTreeMap::new();
            let mut next = 0;
            for op in ops {
                match op {
                    Op::Insert => {
                        next += 1;
                        let slot = Slot { object: Arc::new(Number(next)), nonblocking: false };
                        let fd = table.insert(slot).unwrap();
                        prop_assert_eq!(model.insert(fd, next), None);
                    }
                    Op::Close(fd) => {
                        let closed = table.remove(fd).map(|s| s.object.seek(0, 0).unwrap());
                        prop_assert_eq!(closed.ok(), model.remove(&fd));
                    }
                    Op::Dup(fd) => {
                        let found = table.slot(fd).map(|s| Arc::clone(&s.object));
                        prop_assert_eq!(found.is_ok(), model.contains_key(&fd));
                        if let Ok(object) = found {
                            let new = table.insert(Slot { object, nonblocking: false }).unwrap();
                            let value = model[&fd];
                            prop_assert_eq!(model.insert(new, value), None);
                        }
                    }
                }
                for (fd, value) in &model {
                    let object = &table.slot(*fd).unwrap().object;
                    prop_assert_eq!(object.seek(0, 0), Ok(*value));
                }
            }
        }
    }

    #[test]
    fn a_full_table_is_an_error() {
        let mut table = Table::new();
        let object: Arc<dyn Object> = Arc::new(Number(0));
        let slot = || Slot {
            object: Arc::clone(&object),
            nonblocking: false,
        };
        for _ in 0..MAX {
            table.insert(slot()).unwrap();
        }
        assert_eq!(table.insert(slot()), Err(Errno::EMFILE));
        table.remove(77).map(drop).unwrap();
        assert_eq!(table.insert(slot()), Ok(77));
    }
}
