//! `/tmp`: folders and files in memory, within a bound.
//!
//! A folder has a lock of its own; who takes two takes the upper one first. A read or write is
//! atomic: it is done under the file's lock, and so, because nobody is interrupted who holds one,
//! moves a limited number of bytes each time ([`MOST`]). std's `write_all` and `read_to_end` call
//! again for the rest.

use super::tree::moved;
use super::{Access, dirent};
use crate::abi::errno::Errno;
use crate::abi::fd::{Object, Stat};
use crate::sync::Lock;
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hermit_abi::{DT_DIR, DT_REG, S_IFDIR, S_IFREG, timespec};

/// Its number as a file system.
const DEVICE: u64 = 2;
/// Files are kept in blocks of this size.
const BLOCK: u64 = 4096;
/// What a file or folder is reckoned to cost without its content, name included.
const NODE: u64 = 512;
/// Most bytes of one read or write.
pub const MOST: usize = 64 * 1024;

/// The bound, and what is used of it.
#[derive(Debug)]
struct Space {
    limit: u64,
    used: AtomicU64,
    next_inode: AtomicU64,
}

impl Space {
    fn take(&self, bytes: u64) -> Result<(), Errno> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= self.limit)
            })
            .map(drop)
            .map_err(|_| Errno::ENOSPC)
    }

    fn give_back(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// A writable tree.
#[derive(Debug)]
pub struct Tmp {
    space: Arc<Space>,
    root: Arc<Folder>,
}

impl Tmp {
    /// An empty one that takes at most so many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        let space = Arc::new(Space {
            limit,
            used: AtomicU64::new(NODE),
            next_inode: AtomicU64::new(1),
        });
        let root = Arc::new(Folder::new(&space, 0o777));
        Self { space, root }
    }

    /// Its topmost folder.
    #[must_use]
    pub fn root(&self) -> &Arc<Folder> {
        &self.root
    }

    /// Bytes used, as they are reckoned.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.space.used.load(Ordering::Relaxed)
    }
}

/// What a name in a folder stands for.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A folder.
    Folder(Arc<Folder>),
    /// A file.
    File(Arc<File>),
}

/// What files and folders have in common.
#[derive(Debug)]
struct Inode {
    number: u64,
    permissions: u32,
    space: Arc<Space>,
}

impl Inode {
    /// Its [`NODE`] bytes have been taken.
    fn new(space: &Arc<Space>, mode: u32) -> Self {
        Self {
            number: space.next_inode.fetch_add(1, Ordering::Relaxed),
            permissions: mode & 0o7777,
            space: Arc::clone(space),
        }
    }

    fn stat(&self, kind: u32, size: u64, blocks: u64, modified: timespec) -> Stat {
        Stat {
            st_dev: DEVICE,
            st_ino: self.number,
            st_nlink: if kind == S_IFDIR { 2 } else { 1 },
            st_mode: kind | self.permissions,
            st_size: size as i64,
            st_blksize: BLOCK as i64,
            st_blocks: (blocks * BLOCK / 512) as i64,
            st_atim: modified,
            st_mtim: modified,
            st_ctim: modified,
            ..Stat::default()
        }
    }
}

impl Drop for Inode {
    fn drop(&mut self) {
        self.space.give_back(NODE);
    }
}

/// A folder.
#[derive(Debug)]
pub struct Folder {
    inode: Inode,
    state: Lock<FolderState>,
}

#[derive(Debug)]
struct FolderState {
    entries: BTreeMap<Box<[u8]>, Entry>,
    /// It has no name any more: nothing can be made in it.
    removed: bool,
    modified: timespec,
}

impl Folder {
    fn new(space: &Arc<Space>, mode: u32) -> Self {
        Self {
            inode: Inode::new(space, mode),
            state: Lock::new(FolderState {
                entries: BTreeMap::new(),
                removed: false,
                modified: now(),
            }),
        }
    }

    /// What is in it by this name.
    pub fn child(&self, name: &[u8]) -> Option<Entry> {
        self.state.lock().entries.get(name).cloned()
    }

    /// Makes a file, or gives what has the name already.
    ///
    /// # Errors
    /// `EEXIST` if it has to be new and isn't; `ENOSPC`; `ENOENT` if the folder is gone.
    pub fn create_file(
        &self,
        tmp: &Tmp,
        name: &[u8],
        mode: u32,
        exclusive: bool,
    ) -> Result<Entry, Errno> {
        self.create(tmp, name, |space| {
            Entry::File(Arc::new(File::new(space, mode)))
        })
        .or_else(|entry| match entry {
            Ok(entry) if !exclusive => Ok(entry),
            Ok(_) => Err(Errno::EEXIST),
            Err(error) => Err(error),
        })
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// `EEXIST`, `ENOSPC`; `ENOENT` if this folder is gone.
    pub fn create_folder(&self, tmp: &Tmp, name: &[u8], mode: u32) -> Result<(), Errno> {
        self.create(tmp, name, |space| {
            Entry::Folder(Arc::new(Self::new(space, mode)))
        })
        .map(drop)
        .map_err(|entry| entry.err().unwrap_or(Errno::EEXIST))
    }

    /// Makes an entry; on an error gives what is in the way, or why there is no new one.
    fn create(
        &self,
        tmp: &Tmp,
        name: &[u8],
        make: impl FnOnce(&Arc<Space>) -> Entry,
    ) -> Result<Entry, Result<Entry, Errno>> {
        let mut state = self.state.lock();
        if let Some(entry) = state.entries.get(name) {
            return Err(Ok(entry.clone()));
        }
        if state.removed {
            return Err(Err(Errno::ENOENT));
        }
        tmp.space.take(NODE).map_err(Err)?;
        let entry = make(&tmp.space);
        state.entries.insert(name.into(), entry.clone());
        state.modified = now();
        Ok(entry)
    }

    /// Removes a file's name.
    ///
    /// # Errors
    /// `ENOENT`, `EISDIR`.
    pub fn unlink(&self, name: &[u8]) -> Result<(), Errno> {
        let mut state = self.state.lock();
        match state.entries.get(name) {
            None => return Err(Errno::ENOENT),
            Some(Entry::Folder(_)) => return Err(Errno::EISDIR),
            Some(Entry::File(_)) => {}
        }
        let file = state.entries.remove(name);
        state.modified = now();
        drop(state);
        // All its blocks may go now: not under the lock.
        drop(file);
        Ok(())
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// `ENOENT`, `ENOTDIR`, `ENOTEMPTY`.
    pub fn rmdir(&self, name: &[u8]) -> Result<(), Errno> {
        let mut state = self.state.lock();
        let folder = match state.entries.get(name) {
            None => return Err(Errno::ENOENT),
            Some(Entry::File(_)) => return Err(Errno::ENOTDIR),
            Some(Entry::Folder(folder)) => folder,
        };
        let mut inner = folder.state.lock();
        if !inner.entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        inner.removed = true;
        drop(inner);
        state.entries.remove(name);
        state.modified = now();
        Ok(())
    }

    /// What `stat(2)` says of it.
    pub fn stat(&self) -> Stat {
        let modified = self.state.lock().modified;
        self.inode.stat(S_IFDIR, 0, 0, modified)
    }

    fn records(&self) -> Result<Vec<u8>, Errno> {
        let state = self.state.lock();
        dirent::encode(state.entries.iter().map(|(name, entry)| match entry {
            Entry::Folder(folder) => (&**name, folder.inode.number, DT_DIR),
            Entry::File(file) => (&**name, file.inode.number, DT_REG),
        }))
    }
}

/// A file.
#[derive(Debug)]
pub struct File {
    inode: Inode,
    state: Lock<FileState>,
}

#[derive(Debug)]
struct FileState {
    len: u64,
    /// Blocks by number, each [`BLOCK`] bytes; one that is missing is all zeros. Bytes behind the
    /// end are 0.
    blocks: BTreeMap<u64, Box<[u8]>>,
    modified: timespec,
}

/// The part of each block that lies in a range of bytes: block, offset in it, length.
fn parts(mut position: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut left = len;
    core::iter::from_fn(move || {
        let offset = (position % BLOCK) as usize;
        let part = left.min(BLOCK as usize - offset);
        let block = position / BLOCK;
        position += part as u64;
        left -= part;
        (part > 0).then_some((block, offset, part))
    })
}

impl FileState {
    fn read(&self, position: u64, buf: &mut [u8]) -> usize {
        let there = usize::try_from(self.len.saturating_sub(position)).unwrap_or(usize::MAX);
        let total = buf.len().min(MOST).min(there);
        let mut rest = buf;
        for (block, offset, len) in parts(position, total) {
            let Some((part, after)) = rest.split_at_mut_checked(len) else {
                break;
            };
            match self
                .blocks
                .get(&block)
                .and_then(|b| b.get(offset..offset + len))
            {
                Some(bytes) => part.copy_from_slice(bytes),
                None => part.fill(0),
            }
            rest = after;
        }
        total
    }

    fn write(&mut self, space: &Space, position: u64, buf: &[u8]) -> Result<usize, Errno> {
        if buf.is_empty() {
            return Ok(0);
        }
        // A file can't be longer than all files together may be.
        let room = space.limit.checked_sub(position).filter(|room| *room > 0);
        let room = usize::try_from(room.ok_or(Errno::EFBIG)?).unwrap_or(usize::MAX);
        let total = buf.len().min(MOST).min(room);
        let (mut done, mut rest) = (0, buf);
        for (block, offset, len) in parts(position, total) {
            let Some((part, after)) = rest.split_at_checked(len) else {
                break;
            };
            let target = match self.block(space, block) {
                Ok(bytes) => bytes.get_mut(offset..offset + len),
                // What has been written is told.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            };
            if let Some(target) = target {
                target.copy_from_slice(part);
            }
            done += len;
            rest = after;
        }
        self.len = self.len.max(position + done as u64);
        self.modified = now();
        Ok(done)
    }

    fn block(&mut self, space: &Space, number: u64) -> Result<&mut [u8], Errno> {
        use alloc::collections::btree_map::Entry::{Occupied, Vacant};
        match self.blocks.entry(number) {
            Occupied(entry) => Ok(entry.into_mut()),
            Vacant(entry) => {
                space.take(BLOCK)?;
                let mut bytes = Vec::new();
                if bytes.try_reserve_exact(BLOCK as usize).is_err() {
                    space.give_back(BLOCK);
                    return Err(Errno::ENOSPC);
                }
                bytes.resize(BLOCK as usize, 0);
                Ok(entry.insert(bytes.into_boxed_slice()))
            }
        }
    }

    /// Sets the length; gives the blocks that are no longer needed, for the caller to drop.
    fn truncate(&mut self, len: u64) -> BTreeMap<u64, Box<[u8]>> {
        let gone = self.blocks.split_off(&len.div_ceil(BLOCK));
        let (last, offset) = (len / BLOCK, (len % BLOCK) as usize);
        if let Some(bytes) = self.blocks.get_mut(&last).and_then(|b| b.get_mut(offset..)) {
            bytes.fill(0);
        }
        self.len = len;
        self.modified = now();
        gone
    }
}

impl File {
    fn new(space: &Arc<Space>, mode: u32) -> Self {
        Self {
            inode: Inode::new(space, mode),
            state: Lock::new(FileState {
                len: 0,
                blocks: BTreeMap::new(),
                modified: now(),
            }),
        }
    }

    /// Sets the length in bytes.
    ///
    /// # Errors
    /// `EFBIG` if it is more than all files together may have.
    pub fn truncate(&self, len: u64) -> Result<(), Errno> {
        if len > self.inode.space.limit {
            return Err(Errno::EFBIG);
        }
        let gone = self.state.lock().truncate(len);
        self.inode.space.give_back(gone.len() as u64 * BLOCK);
        Ok(())
    }

    /// What `stat(2)` says of it.
    pub fn stat(&self) -> Stat {
        let state = self.state.lock();
        let blocks = state.blocks.len() as u64;
        self.inode.stat(S_IFREG, state.len, blocks, state.modified)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let blocks = self.state.lock().blocks.len() as u64;
        self.inode.space.give_back(blocks * BLOCK);
    }
}

/// A file, opened.
#[derive(Debug)]
pub(super) struct OpenFile {
    file: Arc<File>,
    access: Access,
    /// Taken before the file's own lock.
    position: Lock<u64>,
}

impl OpenFile {
    pub fn new(file: Arc<File>, access: Access) -> Self {
        Self {
            file,
            access,
            position: Lock::new(0),
        }
    }
}

impl Object for OpenFile {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if !self.access.read {
            return Err(Errno::EBADF);
        }
        let mut position = self.position.lock();
        let len = self.file.state.lock().read(*position, buf);
        *position += len as u64;
        Ok(len)
    }

    fn write(&self, buf: &[u8]) -> Result<usize, Errno> {
        if !self.access.write {
            return Err(Errno::EBADF);
        }
        let mut position = self.position.lock();
        let mut state = self.file.state.lock();
        if self.access.append && !buf.is_empty() {
            *position = state.len;
        }
        let len = state.write(&self.file.inode.space, *position, buf)?;
        *position += len as u64;
        Ok(len)
    }

    fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        let mut position = self.position.lock();
        let len = self.file.state.lock().len;
        *position = moved(*position, len, offset, whence)?;
        Ok(*position)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(self.file.stat())
    }

    fn truncate(&self, len: u64) -> Result<(), Errno> {
        if !self.access.write {
            return Err(Errno::EINVAL);
        }
        self.file.truncate(len)
    }
}

/// A folder, opened.
#[derive(Debug)]
pub(super) struct OpenFolder {
    folder: Arc<Folder>,
    done: AtomicBool,
}

impl OpenFolder {
    pub fn new(folder: Arc<Folder>) -> Self {
        Self {
            folder,
            done: AtomicBool::new(false),
        }
    }
}

impl Object for OpenFolder {
    fn read(&self, _: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EISDIR)
    }

    fn write(&self, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(self.folder.stat())
    }

    fn read_dir(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.done.load(Ordering::Acquire) {
            return Ok(0);
        }
        let len = dirent::fill(&self.folder.records()?, buf)?;
        self.done.store(true, Ordering::Release);
        Ok(len)
    }
}

/// The time of day.
fn now() -> timespec {
    #[cfg(target_os = "hermit")]
    let (sec, nsec) = crate::xen::shared_info::wall_clock();
    #[cfg(not(target_os = "hermit"))]
    let (sec, nsec) = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or((0, 0), |t| (t.as_secs(), t.subsec_nanos()));
    timespec {
        tv_sec: sec as i64,
        tv_nsec: nsec as i32,
    }
}
