//! Where something is in a region: what is there instead of a pointer.

use super::plain::{Layout, Plain};
use std::fmt;
use std::marker::PhantomData;

/// The place of a `T` in the bytes of a region, or none. 64 bits, and zeroed memory is none.
///
/// It means the same wherever the region is, and whoever wrote it: whether there can be a `T` at
/// that place is looked at each time. Which one is there is up to the app.
#[repr(transparent)]
pub struct Offset<T> {
    /// The offset plus one.
    raw: u64,
    of: PhantomData<fn() -> T>,
}

// SAFETY: a number.
unsafe impl<T: 'static> Plain for Offset<T> {
    // Not T's layout: a node of a list has an offset of its own type.
    const LAYOUT: u64 = Layout::of_primitive("offset").hash();
}

impl<T> Clone for Offset<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Offset<T> {}

impl<T> PartialEq for Offset<T> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl<T> Eq for Offset<T> {}

impl<T> fmt::Debug for Offset<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.byte() {
            Some(byte) => write!(f, "Offset({byte:#x})"),
            None => f.write_str("Offset(none)"),
        }
    }
}

impl<T> Default for Offset<T> {
    fn default() -> Self {
        Self::NONE
    }
}

impl<T> Offset<T> {
    /// No place.
    pub const NONE: Self = Self {
        raw: 0,
        of: PhantomData,
    };

    /// The place `byte` bytes from the start; `None` for the last number that there is.
    #[must_use]
    pub const fn at(byte: u64) -> Option<Self> {
        match byte.checked_add(1) {
            Some(raw) => Some(Self {
                raw,
                of: PhantomData,
            }),
            None => None,
        }
    }

    /// Bytes from the start; `None` if it is no place.
    #[must_use]
    pub const fn byte(self) -> Option<u64> {
        self.raw.checked_sub(1)
    }

    /// Whether it is no place.
    #[must_use]
    pub const fn is_none(self) -> bool {
        self.raw == 0
    }
}

impl<T: Plain> Offset<T> {
    /// The bytes of `count` elements, if they are all in `bytes` and lie where a `T` may.
    fn range(self, bytes: &[u8], count: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(self.byte()?).ok()?;
        let end = start.checked_add(size_of::<T>().checked_mul(count)?)?;
        let first = bytes.get(start..end)?.as_ptr();
        first.cast::<T>().is_aligned().then_some(start..end)
    }

    /// The `count` elements from there on; `None` if they are not all in `bytes`, or not aligned.
    #[must_use]
    pub fn slice(self, bytes: &[u8], count: usize) -> Option<&[T]> {
        let range = self.range(bytes, count)?;
        let ptr = bytes.get(range)?.as_ptr().cast::<T>();
        // SAFETY: as many bytes are borrowed, aligned; any bit pattern is a T, and T has nothing
        // that changes behind a shared reference.
        Some(unsafe { std::slice::from_raw_parts(ptr, count) })
    }

    /// As [`slice`](Self::slice), to write.
    #[must_use]
    pub fn slice_mut(self, bytes: &mut [u8], count: usize) -> Option<&mut [T]> {
        let range = self.range(bytes, count)?;
        let ptr = bytes.get_mut(range)?.as_mut_ptr().cast::<T>();
        // SAFETY: as many bytes are borrowed exclusively, aligned; any bit pattern is a T, and a
        // T has no padding: all that is written are bytes again.
        Some(unsafe { std::slice::from_raw_parts_mut(ptr, count) })
    }

    /// What is there; `None` if it is no place, or there is no room for a `T`.
    #[must_use]
    pub fn resolve(self, bytes: &[u8]) -> Option<&T> {
        self.slice(bytes, 1)?.first()
    }

    /// As [`resolve`](Self::resolve), to write.
    #[must_use]
    pub fn resolve_mut(self, bytes: &mut [u8]) -> Option<&mut T> {
        self.slice_mut(bytes, 1)?.first_mut()
    }
}
