//! The grant table, version 1 (public/grant_table.h): who else may use which of our frames.
//!
//! Frames for the table are carved, never RAM (I2). A frame is granted whole and zeroed, and holds
//! nothing else (XSA-403). A grant is revoked by compare-and-exchange, and where the other domain
//! still has the frame mapped the frame is kept until it hasn't (I9, XSA-396). Entries 0 to 7 are
//! the toolstack's.

use crate::memory::{Extent, Gfn};
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU16, AtomicU32, Ordering};

/// Entries in a frame of the table.
pub const PER_FRAME: usize = 512;
/// `GNTTAB_NR_RESERVED_ENTRIES`
const RESERVED: u32 = 8;
/// `GTF_permit_access`
const PERMIT_ACCESS: u16 = 1;
/// `GTF_readonly`
const READONLY: u16 = 1 << 2;
/// `GTF_reading | GTF_writing`: set by Xen while the other domain has the frame mapped.
const IN_USE: u16 = 1 << 3 | 1 << 4;

/// `grant_ref_t`
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct GrantRef(pub u32);

/// A domain's number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DomId(pub u16);

/// What the other domain may do with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Read it.
    Read,
    /// Read and write it.
    Write,
}

/// `grant_entry_v1_t`
#[repr(C)]
#[derive(Debug, Default)]
pub struct Entry {
    flags: AtomicU16,
    domid: AtomicU16,
    frame: AtomicU32,
}

const _: () = assert!(size_of::<Entry>() * PER_FRAME == 4096);

/// Why a frame was not granted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GrantError {
    /// All entries are taken, or Xen gives no more frames for the table.
    Full,
    /// A version 1 entry cannot name this frame.
    Frame(Gfn),
    /// No memory for the frames themselves.
    NoMemory,
}

impl fmt::Display for GrantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the grant table is full"),
            Self::Frame(gfn) => write!(f, "frame {gfn:?} is too high to be granted"),
            Self::NoMemory => f.write_str("too little memory in one piece to share with a backend"),
        }
    }
}

/// The other domain still uses the frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InUse;

/// The table's frames, and which entries are free.
#[derive(Debug, Default)]
pub struct Table<'a> {
    frames: Vec<&'a [Entry; PER_FRAME]>,
    free: Vec<u32>,
}

impl<'a> Table<'a> {
    /// Without frames.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            frames: Vec::new(),
            free: Vec::new(),
        }
    }

    /// Adds the next frame; entries that are in use in it stay so.
    pub fn add_frame(&mut self, frame: &'a [Entry; PER_FRAME]) {
        let first = (self.frames.len() * PER_FRAME) as u32;
        self.frames.push(frame);
        // Room for all, so that a revoke never allocates.
        self.free.reserve(PER_FRAME * self.frames.len());
        for (offset, entry) in frame.iter().enumerate().rev() {
            let number = first + offset as u32;
            if number >= RESERVED && entry.flags.load(Ordering::Acquire) == 0 {
                self.free.push(number);
            }
        }
    }

    /// Number of frames.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Number of free entries.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Number of entries that grant something.
    #[must_use]
    pub fn used(&self) -> usize {
        let usable = (self.frames.len() * PER_FRAME).saturating_sub(RESERVED as usize);
        usable.saturating_sub(self.free.len())
    }

    fn entry(&self, gref: GrantRef) -> Option<&'a Entry> {
        let number = gref.0 as usize;
        self.frames.get(number / PER_FRAME)?.get(number % PER_FRAME)
    }

    /// Lets `domid` use a frame.
    ///
    /// # Errors
    /// See [`GrantError`].
    pub fn grant(
        &mut self,
        gfn: Gfn,
        domid: DomId,
        access: Access,
    ) -> Result<GrantRef, GrantError> {
        let frame = u32::try_from(gfn.as_u64()).map_err(|_| GrantError::Frame(gfn))?;
        let gref = GrantRef(self.free.pop().ok_or(GrantError::Full)?);
        let entry = self.entry(gref).ok_or(GrantError::Full)?;
        entry.domid.store(domid.0, Ordering::Relaxed);
        entry.frame.store(frame, Ordering::Relaxed);
        let readonly = match access {
            Access::Read => READONLY,
            Access::Write => 0,
        };
        entry
            .flags
            .store(PERMIT_ACCESS | readonly, Ordering::Release);
        Ok(gref)
    }

    /// Whether this is what an entry grants.
    #[must_use]
    pub fn is_granted(&self, gref: GrantRef, gfn: Gfn, domid: DomId, access: Access) -> bool {
        let readonly = match access {
            Access::Read => READONLY,
            Access::Write => 0,
        };
        self.entry(gref)
            .filter(|_| gref.0 >= RESERVED)
            .is_some_and(|e| {
                e.flags.load(Ordering::Acquire) & !IN_USE == PERMIT_ACCESS | readonly
                    && e.domid.load(Ordering::Relaxed) == domid.0
                    && u64::from(e.frame.load(Ordering::Relaxed)) == gfn.as_u64()
            })
    }

    /// Takes a grant back.
    ///
    /// # Errors
    /// The other domain has the frame mapped: nothing has changed.
    pub fn revoke(&mut self, gref: GrantRef) -> Result<(), InUse> {
        let Some(entry) = self.entry(gref).filter(|_| gref.0 >= RESERVED) else {
            return Ok(());
        };
        let mut flags = entry.flags.load(Ordering::Acquire);
        loop {
            if flags == 0 {
                return Ok(());
            }
            if flags & IN_USE != 0 {
                return Err(InUse);
            }
            match entry
                .flags
                .compare_exchange(flags, 0, Ordering::AcqRel, Ordering::Acquire)
            {
                Ok(_) => break,
                Err(now) => flags = now,
            }
        }
        self.free.push(gref.0);
        Ok(())
    }

    /// Takes back every grant of a frame in `extent`; returns how many are still in use.
    pub fn revoke_all(&mut self, extent: Extent) -> usize {
        let mut in_use = 0;
        for number in RESERVED..(self.frames.len() * PER_FRAME) as u32 {
            let gref = GrantRef(number);
            let inside = self.entry(gref).is_some_and(|e| {
                let frame = u64::from(e.frame.load(Ordering::Relaxed));
                e.flags.load(Ordering::Acquire) != 0
                    && Gfn::new(frame).is_some_and(|g| extent.contains(g.extent()))
            });
            if inside {
                in_use += usize::from(self.revoke(gref).is_err());
            }
        }
        in_use
    }
}

#[cfg(target_os = "hermit")]
pub use shared::{
    Granted, MAX_BLOCKS, MAX_FRAMES, SharedPages, abandon, adopt, audit, blocks, check, reap,
    table_frames,
};

#[cfg(target_os = "hermit")]
mod shared {
    use super::{Access, DomId, Entry, GrantError, GrantRef, PER_FRAME, Table};
    use crate::boot;
    use crate::memory::paging::Perms;
    use crate::memory::{Extent, Gfn, vm};
    use crate::sync::{Lock, Noted};
    use crate::xen::{Committed, hypercall};
    use alloc::vec::Vec;
    use arrayvec::ArrayVec;

    /// Most frames of the table; each has room for 512 grants.
    pub const MAX_FRAMES: usize = 16;
    /// Most blocks that are granted at a time: a device has one.
    pub const MAX_BLOCKS: usize = 16;

    struct State {
        table: Table<'static>,
        homes: ArrayVec<Gfn, MAX_FRAMES>,
        /// Every block that a grant may stand for.
        blocks: ArrayVec<Block, MAX_BLOCKS>,
    }

    #[derive(Clone, Copy)]
    struct Block {
        extent: Extent,
        owner: Owner,
    }

    /// Whose a block is.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Owner {
        /// Its [`SharedPages`]'.
        Here,
        /// It came with a device that nobody has taken yet.
        Offered,
        /// Nobody's here any more.
        Gone,
    }

    static STATE: Lock<State> = Lock::new(State {
        table: Table::new(),
        homes: ArrayVec::new_const(),
        blocks: ArrayVec::new_const(),
    });

    /// Frames of the table and blocks, for whoever can't wait for the lock.
    static FRAMES: Noted<MAX_FRAMES> = Noted::new();
    static BLOCKS: Noted<MAX_BLOCKS> = Noted::new();

    /// Bits of a word in [`BLOCKS`] for the number of frames; the rest is the first one.
    const COUNT_BITS: u32 = 24;

    impl State {
        /// Tells of what has changed.
        fn note(&self) {
            FRAMES.set(self.homes.iter().map(|gfn| gfn.as_u64()));
            let blocks = self.blocks.iter().map(|block| block.extent);
            BLOCKS.set(blocks.map(|e| e.start().as_u64() << COUNT_BITS | e.frames()));
        }

        fn add_frame(&mut self, gfn: Gfn) {
            if self.homes.try_push(gfn).is_ok() {
                // SAFETY: the frame is one of the grant table's, mapped for ever at its carved
                // address; entries are atomics.
                self.table
                    .add_frame(unsafe { &*gfn.addr().as_ptr::<[Entry; PER_FRAME]>() });
                self.note();
            }
        }

        /// Another frame for the table.
        fn grow(&mut self, token: Committed) -> Result<(), GrantError> {
            if self.homes.is_full() {
                return Err(GrantError::Full);
            }
            let gfn = boot::carve_frame().ok_or(GrantError::Full)?;
            vm::map(gfn.extent(), Perms::Write).map_err(|_| GrantError::Full)?;
            // SAFETY: a carved frame holds nothing.
            unsafe { hypercall::map_grant_frame(token, self.homes.len() as u64, gfn) }
                .map_err(|_| GrantError::Full)?;
            self.add_frame(gfn);
            Ok(())
        }

        /// Gives the frames of orphans back that nobody has mapped any more.
        fn reap(&mut self) -> usize {
            let table = &mut self.table;
            self.blocks.retain(|block| {
                if block.owner != Owner::Gone || table.revoke_all(block.extent) != 0 {
                    return true;
                }
                // SAFETY: no grant is left, and the block's owner is gone.
                unsafe { vm::free_frames(block.extent) };
                false
            });
            self.note();
            self.orphans()
        }

        fn orphans(&self) -> usize {
            let gone = |b: &&Block| b.owner == Owner::Gone;
            self.blocks.iter().filter(gone).count()
        }

        /// Makes a block somebody else's; false if it is not `from`'s.
        fn pass(&mut self, extent: Extent, from: Owner, to: Owner) -> bool {
            let mut blocks = self.blocks.iter_mut();
            let block = blocks.find(|b| b.extent == extent && b.owner == from);
            block.map(|b| b.owner = to).is_some()
        }
    }

    /// Frames in a row that another domain may use. When dropped they are free again as soon as
    /// that domain has none of them mapped.
    #[derive(Debug)]
    pub struct SharedPages {
        extent: Extent,
        grefs: Vec<GrantRef>,
    }

    impl SharedPages {
        /// Takes `granted` zeroed frames and grants each to `domid`, as `access` says; and `private`
        /// ones behind them, which are granted to nobody.
        ///
        /// # Errors
        /// See [`GrantError`].
        pub fn new(
            token: Committed,
            (granted, private): (u64, u64),
            domid: DomId,
            access: impl Fn(u64) -> Access,
        ) -> Result<Self, GrantError> {
            let mut grefs = Vec::with_capacity(granted as usize);
            reap(token);
            let frames = granted.saturating_add(private);
            let extent = vm::alloc_frames(frames, 1).ok_or(GrantError::NoMemory)?;
            // SAFETY: fresh frames, mapped writable, nobody else's.
            unsafe {
                extent
                    .addr()
                    .as_ptr::<u8>()
                    .write_bytes(0, extent.bytes() as usize);
            }
            let mut state = STATE.lock();
            let block = Block {
                extent,
                owner: Owner::Here,
            };
            if frames >> COUNT_BITS != 0 || state.blocks.try_push(block).is_err() {
                // SAFETY: just taken.
                unsafe { vm::free_frames(extent) };
                return Err(GrantError::Full);
            }
            state.note();
            drop(state);
            for n in 0..granted {
                let Some(page) = extent.part(n, 1) else { break };
                let mut state = STATE.lock();
                let mut result = state.table.grant(page.start(), domid, access(n));
                if result == Err(GrantError::Full) {
                    result = state
                        .grow(token)
                        .and_then(|()| state.table.grant(page.start(), domid, access(n)));
                }
                drop(state);
                match result {
                    Ok(gref) => grefs.push(gref),
                    Err(e) => {
                        drop(Self { extent, grefs });
                        return Err(e);
                    }
                }
            }
            Ok(Self { extent, grefs })
        }

        /// Takes a block that came with a device; its frames are granted by these. `None` if it is
        /// not offered.
        pub fn adopt(_: Committed, extent: Extent, grefs: Vec<GrantRef>) -> Option<Self> {
            let taken = STATE.lock().pass(extent, Owner::Offered, Owner::Here);
            taken.then_some(Self { extent, grefs })
        }

        /// The frames.
        #[must_use]
        pub fn extent(&self) -> Extent {
            self.extent
        }

        /// The grant of the `n`th frame, of those that are granted.
        #[must_use]
        pub fn gref(&self, n: usize) -> Option<GrantRef> {
            self.grefs.get(n).copied()
        }
    }

    impl Drop for SharedPages {
        fn drop(&mut self) {
            let mut state = STATE.lock();
            state.pass(self.extent, Owner::Here, Owner::Gone);
            state.reap();
        }
    }

    /// Gives back frames whose users are gone; returns how many blocks some domain still has mapped.
    pub fn reap(_: Committed) -> usize {
        STATE.lock().reap()
    }

    /// Takes over the table of the image before: its frames, and the blocks it had granted. Those of
    /// devices that are `offered` wait for whoever adopts these, the others are free as soon as the
    /// devices they belong to are closed.
    ///
    /// # Safety
    /// `frames` are the table's, in order, mapped writable for as long as this image runs; `blocks`
    /// are kept, and nobody's but the other domain's.
    pub unsafe fn adopt(frames: &[Gfn], blocks: &[Extent], offered: impl Fn(Extent) -> bool) {
        let mut state = STATE.lock();
        for gfn in frames {
            state.add_frame(*gfn);
        }
        state
            .blocks
            .extend(blocks.iter().take(MAX_BLOCKS).map(|extent| Block {
                extent: *extent,
                owner: match offered(*extent) {
                    true => Owner::Offered,
                    false => Owner::Gone,
                },
            }));
        state.note();
    }

    /// Nobody adopts the device that this block came with.
    pub fn abandon(_: Committed, extent: Extent) {
        STATE.lock().pass(extent, Owner::Offered, Owner::Gone);
    }

    /// Whether the first frames of a block are granted to `domid` by these entries, as `access` says.
    pub fn check(
        extent: Extent,
        grefs: impl IntoIterator<Item = GrantRef>,
        domid: DomId,
        access: impl Fn(u64) -> Access,
    ) -> bool {
        let state = STATE.lock();
        (0..).zip(grefs).all(|(n, gref)| {
            let page = extent.part(n, 1);
            page.is_some_and(|p| state.table.is_granted(gref, p.start(), domid, access(n)))
        })
    }

    /// Frames of the table, for the next image and its page tables. Takes no lock.
    #[must_use]
    pub fn table_frames() -> ArrayVec<Gfn, MAX_FRAMES> {
        FRAMES.get().into_iter().filter_map(Gfn::new).collect()
    }

    /// Every block that a grant may stand for. Takes no lock.
    #[must_use]
    pub fn blocks() -> ArrayVec<Extent, MAX_BLOCKS> {
        let extent = |word: u64| {
            let frames = word & ((1 << COUNT_BITS) - 1);
            Extent::new(Gfn::new(word >> COUNT_BITS)?, frames)
        };
        BLOCKS.get().into_iter().filter_map(extent).collect()
    }

    /// What is granted at the moment.
    #[derive(Clone, Copy, Debug)]
    pub struct Granted {
        /// Entries in use.
        pub grants: usize,
        /// Blocks of frames kept for them.
        pub blocks: usize,
        /// Those of them that nobody here uses any more.
        pub orphans: usize,
    }

    /// Counts what is granted.
    #[must_use]
    pub fn audit() -> Granted {
        let state = STATE.lock();
        Granted {
            grants: state.table.used(),
            blocks: state.blocks.len(),
            orphans: state.orphans(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame() -> [Entry; PER_FRAME] {
        core::array::from_fn(|_| Entry::default())
    }

    fn gfn(n: u64) -> Gfn {
        Gfn::new(n).unwrap()
    }

    #[test]
    fn a_grant_in_use_stays_and_its_entry_is_not_used_again() {
        let memory = frame();
        let mut table = Table::new();
        table.add_frame(&memory);
        let all = table.free();
        let gref = table.grant(gfn(0x1234), DomId(7), Access::Read).unwrap();
        assert!(gref.0 >= RESERVED);
        let entry = &memory[gref.0 as usize];
        assert_eq!(
            entry.flags.load(Ordering::Relaxed),
            PERMIT_ACCESS | READONLY
        );
        assert_eq!(entry.frame.load(Ordering::Relaxed), 0x1234);
        assert_eq!(entry.domid.load(Ordering::Relaxed), 7);
        let is = |n, domid, access| table.is_granted(gref, gfn(n), DomId(domid), access);
        assert!(is(0x1234, 7, Access::Read));
        assert!(!is(0x1235, 7, Access::Read) && !is(0x1234, 8, Access::Read));
        assert!(!is(0x1234, 7, Access::Write));
        assert!(!table.is_granted(GrantRef(9999), gfn(0x1234), DomId(7), Access::Read));
        for bit in [1 << 3, 1 << 4] {
            entry.flags.fetch_or(bit, Ordering::Relaxed);
            assert_eq!(table.revoke(gref), Err(InUse));
            assert!(table.is_granted(gref, gfn(0x1234), DomId(7), Access::Read));
            assert_ne!(entry.flags.load(Ordering::Relaxed) & PERMIT_ACCESS, 0);
            while let Ok(other) = table.grant(gfn(1), DomId(0), Access::Write) {
                assert_ne!(other, gref);
            }
            table.revoke_all(Extent::new(gfn(1), 1).unwrap());
            entry.flags.fetch_and(!bit, Ordering::Relaxed);
        }
        assert_eq!(table.revoke(gref), Ok(()));
        assert_eq!(table.free(), all);
    }

    #[test]
    fn frames_that_an_entry_cannot_name_are_refused() {
        let memory = frame();
        let mut table = Table::new();
        table.add_frame(&memory);
        let high = gfn(1 << 32);
        assert_eq!(
            table.grant(high, DomId(0), Access::Read),
            Err(GrantError::Frame(high))
        );
        assert_eq!(
            Table::new().grant(gfn(1), DomId(0), Access::Read),
            Err(GrantError::Full)
        );
    }

    proptest! {
        /// Grants are distinct, never a reserved entry, and after all are revoked every entry is
        /// free; a table that is taken over knows what is in use in it.
        #[test]
        fn nothing_is_granted_twice_or_lost(ops in proptest::collection::vec((any::<bool>(), any::<proptest::sample::Index>()), 1..1500)) {
            let memory = [frame(), frame()];
            let mut table = Table::new();
            memory.iter().for_each(|f| table.add_frame(f));
            let mut held = Vec::new();
            for (give, which) in ops {
                if give {
                    let n = 100 + held.len() as u64;
                    match table.grant(gfn(n), DomId(0), Access::Write) {
                        Ok(gref) => {
                            prop_assert!(gref.0 >= RESERVED && !held.contains(&gref));
                            held.push(gref);
                        }
                        Err(e) => prop_assert!(e == GrantError::Full && held.len() == 1024 - 8),
                    }
                } else if !held.is_empty() {
                    prop_assert_eq!(table.revoke(held.swap_remove(which.index(held.len()))), Ok(()));
                }
                prop_assert_eq!(table.used(), held.len());
            }
            let mut other = Table::new();
            memory.iter().for_each(|f| other.add_frame(f));
            prop_assert_eq!(other.used(), held.len());
            prop_assert_eq!(other.revoke_all(Extent::new(gfn(100), 2000).unwrap()), 0);
            prop_assert_eq!(other.free(), 1024 - 8);
        }
    }
}
