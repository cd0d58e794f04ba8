//! Files: a tree that came with the image and can't be changed, and `/tmp` in memory.
//!
//! | path | what | from |
//! |---|---|---|
//! | `/` | read-only ([`tree`]) | a cpio archive linked into the image, then those in the ramdisk |
//! | `/tmp` | writable, bounded, gone with the image ([`tmp`]) | |
//!
//! The archive is part of the image, in a section of its own (`linker/image.ld`), because what
//! `replace_image` replaces should be all of an app: program and files in one bundle, under one
//! digest. A ramdisk stays the same from image to image; files in it suit what is not the app's
//! own. `segue build` packs `apps/NAME/files` (`tools/image/src/files.rs`) and hands the archive
//! to the linker.
//!
//! What holds:
//! - A file of the tree is a slice of the image: opening it allocates its handle, reading it
//!   copies to the reader, [`content`] does not even do that.
//! - Semantics and error numbers are those of POSIX as Linux has them; the tests compare with
//!   Linux itself. Owners and permissions are told, not enforced: there is one user.
//! - `getdents64` gives a folder whole or says `EINVAL`: std asks once, with more room each time
//!   it hears that. (std can't be told of an empty folder: it takes the 0 for an error.)
//! - There are no current folders: a relative path starts at `/`.

pub mod archive;
mod dirent;
mod path;
pub mod tmp;
pub mod tree;

use crate::abi::errno::Errno;
use crate::abi::fd::{Object, Stat};
use alloc::sync::Arc;
use alloc::vec::Vec;
use hermit_abi::{O_APPEND, O_CREAT, O_DIRECTORY, O_EXCL, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY};
use path::Path;
use tmp::Tmp;
use tree::{Kind, NodeId, Tree};

/// Symbolic links that may be met on one path, as on Linux.
const MAX_LINKS: usize = 40;
/// Where the writable part is.
const TMP: &[u8] = b"tmp";

/// Something that a path leads to.
#[derive(Clone, Debug)]
enum Node {
    Tree(NodeId),
    TmpFolder(Arc<tmp::Folder>),
    TmpFile(Arc<tmp::File>),
}

/// The end of a path.
struct Found<'a> {
    /// The folder that the last name is in.
    parent: Node,
    /// The last name; `None` for `/`, and where the path ends in `.` or `..`.
    name: Option<&'a [u8]>,
    /// What is there.
    node: Option<Node>,
}

/// How a file is to be opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    /// It may be read.
    pub read: bool,
    /// It may be written.
    pub write: bool,
    /// Each write goes to its end.
    pub append: bool,
}

/// All files.
#[derive(Debug)]
pub struct Files {
    tree: Tree,
    tmp: Tmp,
}

impl Files {
    /// A tree, and an empty `/tmp`.
    #[must_use]
    pub fn new(mut tree: Tree, tmp: Tmp) -> Self {
        tree.add_folder(&[TMP]);
        Self { tree, tmp }
    }

    /// Opens a file or a folder, or makes a file. `flags` are `O_*`, `mode` its permissions then.
    ///
    /// # Errors
    /// As `open(2)` has them.
    pub fn open(&self, path: &[u8], flags: i32, mode: u32) -> Result<Arc<dyn Object>, Errno> {
        let has = |flag: i32| flags & flag == flag;
        let (read, write) = match flags & (O_WRONLY | O_RDWR) {
            O_RDONLY => (true, false),
            O_WRONLY => (false, true),
            O_RDWR => (true, true),
            _ => return Err(Errno::EINVAL),
        };
        let access = Access {
            read,
            write,
            append: has(O_APPEND),
        };
        if has(O_CREAT) && has(O_DIRECTORY) {
            return Err(Errno::EINVAL);
        }
        let path = Path::parse(path)?;
        let exclusive = has(O_CREAT) && has(O_EXCL);
        let found = match has(O_CREAT) {
            // A slash at the end is an error of its own then.
            true => self.walk(&path.any_end(), !exclusive)?,
            false => self.walk(&path, true)?,
        };
        if has(O_CREAT) && path.must_be_folder() && found.name.is_some() {
            return Err(Errno::EISDIR);
        }
        let node = match found.node {
            Some(_) if exclusive => return Err(Errno::EEXIST),
            Some(node) => node,
            None if has(O_CREAT) => {
                let name = found.name.ok_or(Errno::EISDIR)?;
                let Node::TmpFolder(folder) = &found.parent else {
                    return Err(Errno::EROFS);
                };
                let file = folder.create_file(&self.tmp, name, mode, exclusive)?;
                return match file {
                    tmp::Entry::File(file) => open_tmp(file, access, has(O_TRUNC)),
                    // Made by somebody else meanwhile.
                    tmp::Entry::Folder(_) => Err(Errno::EISDIR),
                };
            }
            None => return Err(Errno::ENOENT),
        };
        let changes = write || has(O_CREAT) || has(O_TRUNC);
        match node {
            Node::TmpFile(_) if has(O_DIRECTORY) => Err(Errno::ENOTDIR),
            Node::TmpFile(file) => open_tmp(file, access, has(O_TRUNC)),
            Node::TmpFolder(_) if changes => Err(Errno::EISDIR),
            Node::TmpFolder(folder) => Ok(Arc::new(tmp::OpenFolder::new(folder))),
            Node::Tree(id) => match self.tree.kind(id) {
                Kind::Folder if changes => Err(Errno::EISDIR),
                Kind::Folder => {
                    let entries = self.tree.entries(id).map(|e| {
                        // What is mounted there has a number of its own.
                        (e.0, self.mounted(id, e.0).unwrap_or(e.1), e.2)
                    });
                    let records = dirent::encode(entries)?;
                    Ok(Arc::new(tree::OpenFolder::new(self.tree.stat(id), records)))
                }
                // Only with O_EXCL, and then it has been refused.
                Kind::Link => Err(Errno::ELOOP),
                Kind::File if has(O_DIRECTORY) => Err(Errno::ENOTDIR),
                Kind::File if write || has(O_TRUNC) => Err(Errno::EROFS),
                Kind::File => Ok(Arc::new(tree::OpenFile::new(
                    self.tree.content(id),
                    self.tree.stat(id),
                ))),
            },
        }
    }

    /// Removes a file's name; the file goes when nobody has it open any more.
    ///
    /// # Errors
    /// As `unlink(2)` has them.
    pub fn unlink(&self, path: &[u8]) -> Result<(), Errno> {
        let path = Path::parse(path)?;
        let found = self.walk(&path, false)?;
        let (Some(name), Some(node)) = (found.name, found.node) else {
            return Err(match found.name {
                Some(_) => Errno::ENOENT,
                None => Errno::EISDIR,
            });
        };
        match (found.parent, node) {
            (_, Node::TmpFolder(_)) => Err(Errno::EISDIR),
            (Node::TmpFolder(folder), Node::TmpFile(_)) => folder.unlink(name),
            (_, Node::Tree(id)) if self.tree.kind(id) == Kind::Folder => Err(Errno::EISDIR),
            _ => Err(Errno::EROFS),
        }
    }

    /// Makes a folder.
    ///
    /// # Errors
    /// As `mkdir(2)` has them.
    pub fn mkdir(&self, path: &[u8], mode: u32) -> Result<(), Errno> {
        let path = Path::parse(path)?;
        let found = self.walk(&path.any_end(), false)?;
        match (found.node, found.name, found.parent) {
            (None, Some(name), Node::TmpFolder(folder)) => {
                folder.create_folder(&self.tmp, name, mode)
            }
            (None, Some(_), _) => Err(Errno::EROFS),
            _ => Err(Errno::EEXIST),
        }
    }

    /// Removes an empty folder.
    ///
    /// # Errors
    /// As `rmdir(2)` has them.
    pub fn rmdir(&self, path: &[u8]) -> Result<(), Errno> {
        let path = Path::parse(path)?;
        let found = self.walk(&path, false)?;
        let Some(name) = found.name else {
            return Err(match path.last() {
                Some(b".") => Errno::EINVAL,
                Some(_) => Errno::ENOTEMPTY,
                None => Errno::EBUSY,
            });
        };
        match (found.parent, found.node.ok_or(Errno::ENOENT)?) {
            (_, Node::TmpFile(_)) => Err(Errno::ENOTDIR),
            (Node::TmpFolder(parent), Node::TmpFolder(_)) => parent.rmdir(name),
            (_, Node::TmpFolder(_)) => Err(Errno::EBUSY),
            (_, Node::Tree(id)) if self.tree.kind(id) != Kind::Folder => Err(Errno::ENOTDIR),
            _ => Err(Errno::EROFS),
        }
    }

    /// What is at the end of a path, symbolic links followed.
    ///
    /// # Errors
    /// As `stat(2)` has them.
    pub fn stat(&self, path: &[u8]) -> Result<Stat, Errno> {
        self.stat_of(path, true)
    }

    /// What is at the end of a path; for a symbolic link, the link.
    ///
    /// # Errors
    /// As `lstat(2)` has them.
    pub fn lstat(&self, path: &[u8]) -> Result<Stat, Errno> {
        self.stat_of(path, false)
    }

    fn stat_of(&self, path: &[u8], follow: bool) -> Result<Stat, Errno> {
        let path = Path::parse(path)?;
        let node = self.walk(&path, follow)?.node.ok_or(Errno::ENOENT)?;
        Ok(match node {
            Node::Tree(id) => self.tree.stat(id),
            Node::TmpFolder(folder) => folder.stat(),
            Node::TmpFile(file) => file.stat(),
        })
    }

    /// The bytes of a file of the read-only tree, where they lie.
    #[must_use]
    pub fn content(&self, path: &[u8]) -> Option<&'static [u8]> {
        let path = Path::parse(path).ok()?;
        match self.walk(&path, true).ok()?.node? {
            Node::Tree(id) if self.tree.kind(id) == Kind::File => Some(self.tree.content(id)),
            _ => None,
        }
    }

    fn mounted(&self, folder: NodeId, name: &[u8]) -> Option<u64> {
        (folder == Tree::ROOT && name == TMP).then(|| self.tmp.root().stat().st_ino)
    }

    /// Follows a path. Fails where a name before the last is none of a folder.
    fn walk<'a>(&self, path: &Path<'a>, follow_last: bool) -> Result<Found<'a>, Errno> {
        // Names still to be followed, the next one last.
        let mut names: Vec<&'a [u8]> = path.names().rev().collect();
        let mut above: Vec<Node> = Vec::new();
        let mut here = Node::Tree(Tree::ROOT);
        let mut last = None;
        let mut links = 0;
        while let Some(name) = names.pop() {
            match name {
                b"." => {
                    self.expect_folder(&here)?;
                    last = None;
                    continue;
                }
                b".." => {
                    self.expect_folder(&here)?;
                    here = above.pop().unwrap_or(here);
                    last = None;
                    continue;
                }
                _ => {}
            }
            let next = self.child(&here, name)?;
            let is_last = names.is_empty();
            let Some(next) = next else {
                // A slash at the end asks for a folder that is there.
                return if is_last && !path.must_be_folder() {
                    Ok(Found {
                        parent: here,
                        name: Some(name),
                        node: None,
                    })
                } else {
                    Err(Errno::ENOENT)
                };
            };
            if let Node::Tree(id) = next
                && self.tree.kind(id) == Kind::Link
                && (!is_last || follow_last || path.must_be_folder())
            {
                links += 1;
                let target = Path::parse(self.tree.content(id))?;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP);
                }
                if target.is_absolute() {
                    above.clear();
                    here = Node::Tree(Tree::ROOT);
                }
                names.extend(target.names().rev());
                // What the link leads to has no name on this path.
                last = None;
                continue;
            }
            above.push(core::mem::replace(&mut here, next));
            last = Some(name);
        }
        if path.must_be_folder() {
            self.expect_folder(&here)?;
        }
        Ok(Found {
            parent: above.pop().unwrap_or(Node::Tree(Tree::ROOT)),
            name: last,
            node: Some(here),
        })
    }

    fn expect_folder(&self, node: &Node) -> Result<(), Errno> {
        match node {
            Node::TmpFolder(_) => Ok(()),
            Node::Tree(id) if self.tree.kind(*id) == Kind::Folder => Ok(()),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn child(&self, folder: &Node, name: &[u8]) -> Result<Option<Node>, Errno> {
        self.expect_folder(folder)?;
        if name.len() > path::MAX_NAME {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(match folder {
            Node::Tree(Tree::ROOT) if name == TMP => {
                Some(Node::TmpFolder(Arc::clone(self.tmp.root())))
            }
            Node::Tree(id) => self.tree.child(*id, name).map(Node::Tree),
            Node::TmpFolder(folder) => folder.child(name).map(|entry| match entry {
                tmp::Entry::Folder(folder) => Node::TmpFolder(folder),
                tmp::Entry::File(file) => Node::TmpFile(file),
            }),
            Node::TmpFile(_) => None,
        })
    }
}

fn open_tmp(
    file: Arc<tmp::File>,
    access: Access,
    truncate: bool,
) -> Result<Arc<dyn Object>, Errno> {
    if truncate {
        file.truncate(0)?;
    }
    Ok(Arc::new(tmp::OpenFile::new(file, access)))
}

#[cfg(target_os = "hermit")]
mod global {
    use super::{Arc, Errno, Files, Object, Stat, Tmp, Tree, Vec, archive};
    use crate::boot;
    use crate::image::Bundle;
    use crate::memory::{PAGE_SIZE, PhysAddr, vm};
    use crate::xen::console::println;
    use hermit_sync::OnceCell;

    static FILES: OnceCell<Files> = OnceCell::new();

    /// All files. The tree is made when somebody first asks for one: an image that has none and
    /// wants none pays nothing.
    fn files() -> &'static Files {
        FILES.get_or_init(|| {
            let mut tree = Tree::new();
            for (name, bytes) in archives() {
                if let Err(error) = archive::add(&mut tree, bytes) {
                    println!("segue: files from={name} error=\"{error}\"");
                }
            }
            // A quarter of what is free: files must not be what an app runs out of memory by.
            let limit = vm::free_count().saturating_mul(PAGE_SIZE) / 4;
            Files::new(tree, Tmp::new(limit))
        })
    }

    /// The archive in the image, then those in the modules, which may stand behind bundles.
    fn archives() -> Vec<(&'static str, &'static [u8])> {
        unsafe extern "C" {
            // Of size 0: when the section is empty, both are at the same address.
            static __files_start: [u8; 0];
            static __files_end: [u8; 0];
        }
        let start = (&raw const __files_start).cast::<u8>();
        let len = (&raw const __files_end).addr() - start.addr();
        // SAFETY: the section's bytes are initialised data of this image, read-only and for ever.
        let own = unsafe { core::slice::from_raw_parts(start, len) };
        let of_modules = boot::modules().iter().filter_map(|module| {
            let start = PhysAddr::new(module.addr)?.as_ptr::<u8>();
            let len = usize::try_from(module.len).ok()?;
            // SAFETY: the loader put these bytes there; their frames are kept for them, mapped,
            // and written by nobody.
            let mut rest = unsafe { core::slice::from_raw_parts(start, len) };
            while let Some(Ok((_, after))) = Bundle::split_first(rest) {
                rest = after;
            }
            Some(("ramdisk", rest))
        });
        [("image", own)]
            .into_iter()
            .chain(of_modules)
            .filter(|(_, bytes)| archive::is_one(bytes))
            .collect()
    }

    /// See [`Files::open`].
    ///
    /// # Errors
    /// As `open(2)` has them.
    pub fn open(path: &[u8], flags: i32, mode: u32) -> Result<Arc<dyn Object>, Errno> {
        files().open(path, flags, mode)
    }

    /// See [`Files::unlink`].
    ///
    /// # Errors
    /// As `unlink(2)` has them.
    pub fn unlink(path: &[u8]) -> Result<(), Errno> {
        files().unlink(path)
    }

    /// See [`Files::mkdir`].
    ///
    /// # Errors
    /// As `mkdir(2)` has them.
    pub fn mkdir(path: &[u8], mode: u32) -> Result<(), Errno> {
        files().mkdir(path, mode)
    }

    /// See [`Files::rmdir`].
    ///
    /// # Errors
    /// As `rmdir(2)` has them.
    pub fn rmdir(path: &[u8]) -> Result<(), Errno> {
        files().rmdir(path)
    }

    /// See [`Files::stat`].
    ///
    /// # Errors
    /// As `stat(2)` has them.
    pub fn stat(path: &[u8]) -> Result<Stat, Errno> {
        files().stat(path)
    }

    /// See [`Files::lstat`].
    ///
    /// # Errors
    /// As `lstat(2)` has them.
    pub fn lstat(path: &[u8]) -> Result<Stat, Errno> {
        files().lstat(path)
    }

    /// See [`Files::content`].
    #[must_use]
    pub fn content(path: &[u8]) -> Option<&'static [u8]> {
        files().content(path)
    }
}

#[cfg(target_os = "hermit")]
pub use global::{content, lstat, mkdir, open, rmdir, stat, unlink};

#[cfg(test)]
mod tests;
