//! Preserved regions: large plain data that stays where it is while the image is replaced.
//!
//! A region has a name, a version set by the app, and a type; the next image takes it by the same
//! three, and gets the same bytes at the same address. Nothing is copied or walked over, whatever
//! its size. What goes in is [`Plain`]: no pointers, but [`Offset`]s or indices.
//!
//! - Reading is possible always. On trial a region can't be written: the image before may need it
//!   as it was. Methods that write say so, as an error.
//! - **Consistent** is a mark in the region's header. [`Region::update`] and [`Region::edit`] clear
//!   it while something is changed and set it when all is. A switch waits for changes to end; a
//!   region is found without the mark only after a crash, and then not taken.
//! - A region that is not taken is freed at the commit, or later: see
//!   [`handover`](crate::handover()).
//! - Dropping a region frees it.

mod offset;
mod plain;

#[cfg(not(target_os = "hermit"))]
#[path = "on_host.rs"]
pub(crate) mod platform;
#[cfg(target_os = "hermit")]
#[path = "on_xen.rs"]
pub(crate) mod platform;

#[cfg(not(target_os = "hermit"))]
pub use platform::play;

pub use crate::kernel::replace::region::HeaderError;
pub use offset::Offset;
pub use plain::{Layout, Plain};

use crate::kernel::replace::region::{CONSISTENT, DATA, Header, LEN, MAX_NAME};
use arrayvec::ArrayString;
use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};

#[cfg(test)]
mod tests;

mod sealed {
    pub trait Sealed {}
}

/// What a region is of: a [`Plain`] type, or any number of one.
pub trait Shape: sealed::Sealed + Send + Sync + 'static {
    /// What one element is.
    type Element: Plain;
    /// Hash of the layout.
    const SHAPE: u64;

    /// All of it.
    ///
    /// # Safety
    /// `count` elements are at `first`, for as long as the pointer is used. A type that is no slice
    /// is one element.
    #[doc(hidden)]
    unsafe fn of(first: NonNull<Self::Element>, count: usize) -> NonNull<Self>;
}

impl<T: Plain> sealed::Sealed for T {}

impl<T: Plain> Shape for T {
    type Element = T;
    const SHAPE: u64 = T::LAYOUT;

    unsafe fn of(first: NonNull<T>, _: usize) -> NonNull<T> {
        first
    }
}

impl<T: Plain> sealed::Sealed for [T] {}

impl<T: Plain> Shape for [T] {
    type Element = T;
    const SHAPE: u64 = Layout::of_elements(T::LAYOUT, 0).hash();

    unsafe fn of(first: NonNull<T>, count: usize) -> NonNull<[T]> {
        NonNull::slice_from_raw_parts(first, count)
    }
}

/// This image is on trial: nothing that is handed over can be changed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnTrial;

impl fmt::Display for OnTrial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("on trial a preserved region can only be read; commit first")
    }
}

impl std::error::Error for OnTrial {}

/// Why there is no new region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CreateError {
    /// This image is on trial.
    OnTrial,
    /// The name is empty or longer than 64 bytes.
    Name,
    /// There is a region of this name; maybe one that was handed over, and not taken yet.
    Exists,
    /// There are 32 regions already.
    TooMany,
    /// There are not as many free frames in a row.
    NoMemory {
        /// Bytes that are needed.
        bytes: usize,
    },
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnTrial => write!(f, "{OnTrial}"),
            Self::Name => write!(f, "a region's name has 1 to {MAX_NAME} bytes"),
            Self::Exists => f.write_str("there is a region of this name; take or drop that first"),
            Self::TooMany => f.write_str("there are too many preserved regions"),
            Self::NoMemory { bytes } => {
                write!(f, "there are no {bytes} bytes of free memory in one piece")
            }
        }
    }
}

impl std::error::Error for CreateError {}

/// A region's layout and version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Hash of its type's layout.
    pub layout: u64,
    /// The app's own number for what the data mean.
    pub version: u32,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "version {} with layout {:016x}",
            self.version, self.layout
        )
    }
}

/// Why a region can't be taken. It is still there then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TakeError {
    /// The image before has handed over no region of this name, or it was taken already.
    Missing,
    /// It is of another layout or version.
    Other {
        /// What it is.
        found: Kind,
        /// What was asked for.
        wanted: Kind,
    },
    /// Somebody was changing it and did not come to an end.
    NotConsistent,
    /// A region's header is damaged, so it may be this one's.
    Damaged(HeaderError),
}

impl fmt::Display for TakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no region of this name was handed over"),
            Self::Other { found, wanted } => {
                write!(f, "the region has {found}, this image wants {wanted}")
            }
            Self::NotConsistent => f.write_str("the region was left half changed"),
            Self::Damaged(e) => write!(f, "a region is damaged: it has {e}"),
        }
    }
}

impl std::error::Error for TakeError {}

/// Why a region can't be migrated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrateError {
    /// This image is on trial.
    OnTrial,
    /// The new elements need more room than the region has.
    TooLarge,
}

impl fmt::Display for MigrateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnTrial => write!(f, "{OnTrial}"),
            Self::TooLarge => f.write_str("the region has no room for the new elements"),
        }
    }
}

impl std::error::Error for MigrateError {}

/// A region that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// Its name.
    pub name: String,
    /// Its layout and version.
    pub kind: Kind,
    /// Bytes of data.
    pub bytes: u64,
    /// Nobody was changing it.
    pub consistent: bool,
}

/// The regions that were handed over and not taken.
pub(crate) fn offered() -> Vec<Info> {
    let blocks = platform::offered().into_iter();
    let headers = blocks.filter_map(|block| block.header().ok());
    headers
        .map(|h| Info {
            name: h.name.as_str().into(),
            kind: kind(&h),
            bytes: h.size * h.count,
            consistent: h.consistent,
        })
        .collect()
}

const fn kind(header: &Header) -> Kind {
    Kind {
        layout: header.layout,
        version: header.version,
    }
}

/// A region's memory: a header, then `room` bytes of data. Not owned.
#[derive(Debug)]
pub(crate) struct Block {
    at: NonNull<u8>,
    room: usize,
}

/// Held while a region is made: no two of one name.
static MAKING: Mutex<()> = Mutex::new(());
/// Held while a header is read or written; its mark changes without.
static HEADERS: Mutex<()> = Mutex::new(());

impl Block {
    fn header(&self) -> Result<Header, HeaderError> {
        let _lock = HEADERS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = [0; LEN];
        let mark = CONSISTENT..CONSISTENT + size_of::<AtomicU32>();
        for part in [0..mark.start, mark.end..LEN] {
            let to = &mut bytes[part.clone()];
            // SAFETY: the header is mapped readable and stays while the block is known; what is
            // read here is written under the lock.
            unsafe {
                let from = self.at.as_ptr().add(part.start);
                to.as_mut_ptr().copy_from_nonoverlapping(from, to.len());
            }
        }
        let consistent = self.consistent().load(Ordering::Acquire);
        bytes[mark].copy_from_slice(&consistent.to_le_bytes());
        Header::parse(&bytes, self.room as u64)
    }

    /// Writes the header, and the mark last.
    fn set_header(&self, header: &Header) {
        let _lock = HEADERS.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = header.to_bytes();
        let mark = CONSISTENT..CONSISTENT + size_of::<AtomicU32>();
        for part in [0..mark.start, mark.end..LEN] {
            let from = &bytes[part.clone()];
            // SAFETY: mapped writable, as callers have made sure of; readers take the lock.
            unsafe {
                let to = self.at.as_ptr().add(part.start);
                to.copy_from_nonoverlapping(from.as_ptr(), from.len());
            }
        }
        let consistent = u32::from(header.consistent);
        self.consistent().store(consistent, Ordering::Release);
    }

    /// The mark.
    fn consistent(&self) -> &AtomicU32 {
        // SAFETY: inside the header's frame, aligned as the block is.
        unsafe { AtomicU32::from_ptr(self.at.as_ptr().add(CONSISTENT).cast()) }
    }

    fn data(&self) -> NonNull<u8> {
        // SAFETY: the data lie behind the header in the same block.
        unsafe { self.at.add(DATA as usize) }
    }
}

/// Data that stay in place while the image is replaced: one `T`, or with `[T]` any number. See the
/// [module](self).
pub struct Region<T: Shape + ?Sized> {
    block: Block,
    count: usize,
    of: PhantomData<T>,
}

// SAFETY: owns its data, which are Send and Sync.
unsafe impl<T: Shape + ?Sized> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T: Shape + ?Sized> Sync for Region<T> {}

impl<T: Shape + ?Sized> fmt::Debug for Region<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("at", &self.block.at)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl<T: Shape + ?Sized> Drop for Region<T> {
    fn drop(&mut self) {
        platform::give_up(&self.block);
    }
}

impl<T: Plain> Region<T> {
    /// Makes a region with a zeroed `T`.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create_one(name: &str, version: u32) -> Result<Self, CreateError> {
        Self::make(name, version, 1)
    }

    /// Makes it a region of another type, in place: `f` gets what is there and gives what will be.
    /// The region is not consistent meanwhile.
    ///
    /// # Errors
    /// See [`MigrateError`]; the region is as it was.
    pub fn migrate<N: Plain>(
        self,
        version: u32,
        f: impl FnMut(T) -> N,
    ) -> Result<Region<N>, (Self, MigrateError)> {
        self.rewrite(version, f)
    }
}

impl<T: Plain> Region<[T]> {
    /// Makes a region with `count` zeroed `T`s.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn create(name: &str, version: u32, count: usize) -> Result<Self, CreateError> {
        Self::make(name, version, count)
    }

    /// Makes it a region of another type, in place: `f` gets each element and gives what will be
    /// there. The region is not consistent meanwhile. Elements may grow as far as there is room.
    ///
    /// # Errors
    /// See [`MigrateError`]; the region is as it was.
    pub fn migrate<N: Plain>(
        self,
        version: u32,
        f: impl FnMut(T) -> N,
    ) -> Result<Region<[N]>, (Self, MigrateError)> {
        self.rewrite(version, f)
    }
}

impl<T: Shape + ?Sized> Region<T> {
    const SIZE: usize = {
        assert!(size_of::<T::Element>() > 0, "elements have a size");
        assert!(
            align_of::<T::Element>() <= DATA as usize,
            "data begin with a frame"
        );
        size_of::<T::Element>()
    };

    fn make(name: &str, version: u32, count: usize) -> Result<Self, CreateError> {
        let name = ArrayString::from(name).map_err(|_| CreateError::Name)?;
        if name.is_empty() {
            return Err(CreateError::Name);
        }
        let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let known = platform::live().into_iter().chain(platform::offered());
        if known
            .flat_map(|block| block.header())
            .any(|h| h.name == name)
        {
            return Err(CreateError::Exists);
        }
        let none = CreateError::NoMemory { bytes: usize::MAX };
        let bytes = Self::SIZE.checked_mul(count).ok_or(none)?;
        let header = Header {
            layout: T::SHAPE,
            version,
            size: Self::SIZE as u64,
            count: count as u64,
            name,
            consistent: true,
        };
        let block = platform::create(bytes, &header)?;
        Ok(Self::from_parts(block, count))
    }

    fn from_parts(block: Block, count: usize) -> Self {
        Self {
            block,
            count,
            of: PhantomData,
        }
    }

    pub(crate) fn into_block(self) -> Block {
        let this = ManuallyDrop::new(self);
        Block { ..this.block }
    }

    /// Takes the region of this name, version and type from the image before.
    ///
    /// # Errors
    /// See [`TakeError`].
    pub fn take(name: &str, version: u32) -> Result<Self, TakeError> {
        let mut missing = TakeError::Missing;
        for block in platform::offered() {
            let header = match block.header() {
                Ok(header) if header.name.as_str() == name => header,
                Ok(_) => continue,
                Err(e) => {
                    missing = TakeError::Damaged(e);
                    continue;
                }
            };
            let (found, layout) = (kind(&header), T::SHAPE);
            let wanted = Kind { layout, version };
            if found != wanted || header.size != Self::SIZE as u64 {
                return Err(TakeError::Other { found, wanted });
            }
            if !header.consistent {
                return Err(TakeError::NotConsistent);
            }
            let count = usize::try_from(header.count).map_err(|_| TakeError::Missing)?;
            if !platform::take(&block) {
                return Err(TakeError::Missing);
            }
            return Ok(Self::from_parts(block, count));
        }
        Err(missing)
    }

    fn pointer(&self) -> NonNull<T> {
        // SAFETY: `make` and the header's check have seen to it that as many elements are there.
        unsafe { T::of(self.block.data().cast(), self.count) }
    }

    /// The data.
    #[must_use]
    pub fn get(&self) -> &T {
        // SAFETY: the data are this region's, mapped readable, aligned; any bit pattern is a T.
        unsafe { self.pointer().as_ref() }
    }

    /// The data, to write. Unlike [`edit`](Self::edit) this holds no switch up, and says nothing of
    /// consistency: for single stores that are right by themselves.
    ///
    /// # Errors
    /// On trial.
    pub fn get_mut(&mut self) -> Result<&mut T, OnTrial> {
        if platform::writable() {
            // SAFETY: as in `get`, mapped writable, and borrowed exclusively.
            Ok(unsafe { self.pointer().as_mut() })
        } else {
            Err(OnTrial)
        }
    }

    /// The data, to change several things at once: until the guard is dropped the region is not
    /// consistent, and a switch waits (1 s; then it is an error of `replace_image`).
    ///
    /// # Errors
    /// On trial.
    pub fn edit(&mut self) -> Result<Edit<'_, T>, OnTrial> {
        if !platform::writable() {
            return Err(OnTrial);
        }
        let change = platform::change();
        self.block.consistent().store(0, Ordering::Release);
        Ok(Edit {
            region: self,
            _change: change,
        })
    }

    /// Changes the data, as with [`edit`](Self::edit).
    ///
    /// # Errors
    /// On trial; `f` is not called.
    pub fn update<R>(&mut self, f: impl FnOnce(&mut T) -> R) -> Result<R, OnTrial> {
        Ok(f(&mut *self.edit()?))
    }

    fn rewrite<N: Shape + ?Sized>(
        self,
        version: u32,
        mut f: impl FnMut(T::Element) -> N::Element,
    ) -> Result<Region<N>, (Self, MigrateError)> {
        let (old, new) = (Self::SIZE, Region::<N>::SIZE);
        let fits = new
            .checked_mul(self.count)
            .is_some_and(|n| n <= self.block.room);
        let why = match (platform::writable(), fits) {
            (false, _) => Some(MigrateError::OnTrial),
            (_, false) => Some(MigrateError::TooLarge),
            _ => None,
        };
        if let Some(why) = why {
            return Err((self, why));
        }
        let Ok(header) = self.block.header() else {
            unreachable!("the header of a region that is in use is whole");
        };
        let _change = platform::change();
        let (mut i, count) = (0, self.count);
        self.block.consistent().store(0, Ordering::Release);
        let data = self.block.data();
        while i < count {
            // Growing elements from the last to the first: none is written over that is not read.
            let at = if new > old { count - 1 - i } else { i };
            // SAFETY: both places are inside the data, aligned to their types as the data begin
            // with a frame; any bits are a value of either type, and neither is dropped.
            unsafe {
                let value = f(data.add(at * old).cast::<T::Element>().read());
                data.add(at * new).cast::<N::Element>().write(value);
            }
            i += 1;
        }
        let block = self.into_block();
        block.set_header(&Header {
            layout: N::SHAPE,
            version,
            size: new as u64,
            consistent: true,
            ..header
        });
        Ok(Region::from_parts(block, count))
    }
}

/// A region being changed; see [`Region::edit`].
#[derive(Debug)]
pub struct Edit<'a, T: Shape + ?Sized> {
    region: &'a mut Region<T>,
    _change: platform::Change,
}

impl<T: Shape + ?Sized> Deref for Edit<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.region.get()
    }
}

impl<T: Shape + ?Sized> DerefMut for Edit<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `Region::get_mut`: `edit` has seen that it can be written.
        unsafe { self.region.pointer().as_mut() }
    }
}

impl<T: Shape + ?Sized> Drop for Edit<'_, T> {
    fn drop(&mut self) {
        // Whoever panics in the middle has not come to an end.
        if !std::thread::panicking() {
            self.region.block.consistent().store(1, Ordering::Release);
        }
    }
}
