//! The read-only tree: names in memory, contents where they lie.

use super::dirent;
use crate::abi::errno::Errno;
use crate::abi::fd::{Object, Stat};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use hermit_abi::{DT_DIR, DT_LNK, DT_REG, S_IFDIR, S_IFLNK, S_IFREG, SEEK_CUR, SEEK_END, SEEK_SET};

/// The tree's number as a file system.
const DEVICE: u64 = 1;

/// A folder, file or link of a [`Tree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeId(u32);

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It has entries.
    Folder,
    /// It has bytes.
    File,
    /// Its bytes are a path.
    Link,
}

/// What an archive says of an entry.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Permission bits.
    pub permissions: u32,
    /// When it was changed, in s since 1970.
    pub modified: u64,
}

impl Default for Meta {
    /// Of folders that an archive only implies.
    fn default() -> Self {
        Self {
            permissions: 0o755,
            modified: 0,
        }
    }
}

#[derive(Debug)]
struct Node {
    name: &'static [u8],
    meta: Meta,
    kind: Kind,
    /// Of a file or link.
    content: &'static [u8],
    /// Of a folder, by name.
    entries: Vec<NodeId>,
}

/// Folders, files and symbolic links that do not change once they are in use.
#[derive(Debug)]
pub struct Tree {
    /// The first is the root. Node `i` has inode number `i + 1`.
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    /// The root's number.
    pub const ROOT: NodeId = NodeId(0);

    /// An empty root.
    #[must_use]
    pub fn new() -> Self {
        let root = Node {
            name: b"",
            meta: Meta::default(),
            kind: Kind::Folder,
            content: b"",
            entries: Vec::new(),
        };
        Self {
            nodes: alloc::vec![root],
        }
    }

    fn node(&self, id: NodeId) -> &Node {
        // Numbers come from this tree only, and nodes are never removed.
        &self.nodes[id.0 as usize]
    }

    fn position(&self, folder: NodeId, name: &[u8]) -> Result<usize, usize> {
        let entries = &self.node(folder).entries;
        entries.binary_search_by(|id| self.node(*id).name.cmp(name))
    }

    /// Makes a node, or makes another thing of it, with all folders above it. `None` for the root.
    fn put(&mut self, names: &[&'static [u8]], kind: Kind) -> Option<&mut Node> {
        let mut here = Self::ROOT;
        let mut left = names.len();
        for name in names {
            left -= 1;
            let kind = if left == 0 { kind } else { Kind::Folder };
            here = match self.position(here, name) {
                Ok(at) => {
                    let id = self.node(here).entries.get(at).copied()?;
                    let node = self.nodes.get_mut(id.0 as usize)?;
                    if node.kind != kind {
                        node.kind = kind;
                        node.content = b"";
                        node.entries = Vec::new();
                    }
                    id
                }
                Err(at) => {
                    let id = NodeId(u32::try_from(self.nodes.len()).ok()?);
                    self.nodes.push(Node {
                        name,
                        meta: Meta::default(),
                        kind,
                        content: b"",
                        entries: Vec::new(),
                    });
                    let folder = self.nodes.get_mut(here.0 as usize)?;
                    folder.entries.insert(at, id);
                    id
                }
            };
        }
        self.nodes
            .get_mut(here.0 as usize)
            .filter(|_| !names.is_empty())
    }

    /// Has a folder there, as it is if there is one.
    pub fn add_folder(&mut self, names: &[&'static [u8]]) {
        self.put(names, Kind::Folder);
    }

    /// Has a folder there.
    pub fn set_folder(&mut self, names: &[&'static [u8]], meta: Meta) {
        if let Some(node) = self.put(names, Kind::Folder) {
            node.meta = meta;
        }
    }

    /// Has a file there.
    pub fn set_file(&mut self, names: &[&'static [u8]], meta: Meta, content: &'static [u8]) {
        if let Some(node) = self.put(names, Kind::File) {
            (node.meta, node.content) = (meta, content);
        }
    }

    /// Has a symbolic link there.
    pub fn set_link(&mut self, names: &[&'static [u8]], meta: Meta, target: &'static [u8]) {
        if let Some(node) = self.put(names, Kind::Link) {
            (node.meta, node.content) = (meta, target);
        }
    }

    /// A folder's entry of this name.
    #[must_use]
    pub fn child(&self, folder: NodeId, name: &[u8]) -> Option<NodeId> {
        let at = self.position(folder, name).ok()?;
        self.node(folder).entries.get(at).copied()
    }

    /// A folder's entries by name: name, inode number, `DT_*`.
    pub fn entries(&self, folder: NodeId) -> impl Iterator<Item = (&[u8], u64, u8)> {
        self.node(folder).entries.iter().map(|id| {
            let node = self.node(*id);
            let kind = match node.kind {
                Kind::Folder => DT_DIR,
                Kind::File => DT_REG,
                Kind::Link => DT_LNK,
            };
            (node.name, inode(*id), kind)
        })
    }

    /// What a node is.
    #[must_use]
    pub fn kind(&self, id: NodeId) -> Kind {
        self.node(id).kind
    }

    /// A file's bytes, or where a link leads.
    #[must_use]
    pub fn content(&self, id: NodeId) -> &'static [u8] {
        self.node(id).content
    }

    /// What `stat(2)` says of a node.
    #[must_use]
    pub fn stat(&self, id: NodeId) -> Stat {
        let node = self.node(id);
        let kind = match node.kind {
            Kind::Folder => S_IFDIR,
            Kind::File => S_IFREG,
            Kind::Link => S_IFLNK,
        };
        // Nobody can write.
        let permissions = match node.kind {
            Kind::Link => 0o777,
            _ => node.meta.permissions & !0o222,
        };
        let time = hermit_abi::timespec {
            tv_sec: i64::try_from(node.meta.modified).unwrap_or(0),
            tv_nsec: 0,
        };
        Stat {
            st_dev: DEVICE,
            st_ino: inode(id),
            st_nlink: if node.kind == Kind::Folder { 2 } else { 1 },
            st_mode: kind | permissions,
            st_size: node.content.len() as i64,
            st_blksize: 4096,
            st_blocks: node.content.len().div_ceil(512) as i64,
            st_atim: time,
            st_mtim: time,
            st_ctim: time,
            ..Stat::default()
        }
    }
}

fn inode(id: NodeId) -> u64 {
    u64::from(id.0) + 1
}

/// A position in a file of this length, moved. Past the end is allowed, before the start is not.
pub(super) fn moved(position: u64, len: u64, offset: i64, whence: i32) -> Result<u64, Errno> {
    let from = match whence {
        SEEK_SET => 0,
        SEEK_CUR => position,
        SEEK_END => len,
        _ => return Err(Errno::EINVAL),
    };
    let to = from.checked_add_signed(offset).ok_or(match offset {
        ..0 => Errno::EINVAL,
        _ => Errno::EOVERFLOW,
    })?;
    match i64::try_from(to) {
        Ok(_) => Ok(to),
        Err(_) => Err(Errno::EOVERFLOW),
    }
}

/// A file, opened for reading.
#[derive(Debug)]
pub(super) struct OpenFile {
    content: &'static [u8],
    stat: Stat,
    position: AtomicU64,
}

impl OpenFile {
    pub fn new(content: &'static [u8], stat: Stat) -> Self {
        Self {
            content,
            stat,
            position: AtomicU64::new(0),
        }
    }
}

impl Object for OpenFile {
    fn read(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        let mut part = &[][..];
        // Two who read at once read two parts.
        let taken = self
            .position
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |position| {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                let rest = self.content.get(start..).unwrap_or_default();
                part = rest.get(..buf.len()).unwrap_or(rest);
                Some(position + part.len() as u64)
            });
        debug_assert!(taken.is_ok());
        if let Some(buf) = buf.get_mut(..part.len()) {
            buf.copy_from_slice(part);
        }
        Ok(part.len())
    }

    fn write(&self, _: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EBADF)
    }

    fn seek(&self, offset: i64, whence: i32) -> Result<u64, Errno> {
        let len = self.content.len() as u64;
        let mut result = Err(Errno::EINVAL);
        let _ = self
            .position
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |position| {
                result = moved(position, len, offset, whence);
                result.ok()
            });
        result
    }

    fn stat(&self) -> Result<Stat, Errno> {
        Ok(self.stat)
    }
}

/// A folder, opened.
#[derive(Debug)]
pub(super) struct OpenFolder {
    stat: Stat,
    records: Vec<u8>,
    done: AtomicBool,
}

impl OpenFolder {
    pub fn new(stat: Stat, records: Vec<u8>) -> Self {
        Self {
            stat,
            records,
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
        Ok(self.stat)
    }

    fn read_dir(&self, buf: &mut [u8]) -> Result<usize, Errno> {
        if self.done.load(Ordering::Acquire) {
            return Ok(0);
        }
        let len = dirent::fill(&self.records, buf)?;
        self.done.store(true, Ordering::Release);
        Ok(len)
    }
}
