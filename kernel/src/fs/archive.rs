//! cpio archives in the new ASCII format (cpio(5), "newc"), read by crate `cpio_reader`.

use crate::fs::tree::{Meta, Tree};
use alloc::vec::Vec;
use core::fmt;
use hermit_abi::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};

/// What an archive starts with.
const MAGIC: &[u8] = b"070701";
/// Length of an entry's header, after which its name stands.
const HEADER_LEN: usize = 110;
/// The name that ends an archive.
const TRAILER: &[u8] = b"TRAILER!!!\0";

/// Why an archive was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveError {
    /// An entry or the trailer is damaged or missing, at this offset or behind it.
    Damaged(usize),
    /// An entry's name leads out of the tree, or is too long.
    Name(usize),
}

impl fmt::Display for ArchiveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(at) => write!(f, "the archive is damaged behind byte {at}"),
            Self::Name(at) => write!(f, "an entry before byte {at} has a name that can't be used"),
        }
    }
}

impl core::error::Error for ArchiveError {}

/// Whether these bytes call themselves an archive.
#[must_use]
pub fn is_one(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Adds an archive's folders, files and symbolic links to a tree, over what is there; devices and
/// the like are passed over. On an error the tree is as before. Of a file with several names only
/// the name that carries its content has it, usually the last one.
///
/// # Errors
/// See [`ArchiveError`].
pub fn add(tree: &mut Tree, archive: &'static [u8]) -> Result<(), ArchiveError> {
    let mut end = 0;
    let mut entries = Vec::new();
    for entry in cpio_reader::iter_files(archive) {
        // The reader does not say how far it came, but what it gives are parts of the archive:
        // all but an empty file whose padding would lie behind the end.
        let start = entry
            .file()
            .as_ptr()
            .addr()
            .checked_sub(archive.as_ptr().addr());
        end = start
            .filter(|start| *start <= archive.len())
            .map(|start| (start + entry.file().len()).next_multiple_of(4))
            .ok_or(ArchiveError::Damaged(end))?;
        let names = names(entry.name().as_bytes()).ok_or(ArchiveError::Name(end))?;
        entries.push((names, entry));
    }
    let rest = archive.get(end..).unwrap_or_default();
    let name = rest.get(HEADER_LEN..HEADER_LEN + TRAILER.len());
    if !is_one(rest) || name != Some(TRAILER) {
        return Err(ArchiveError::Damaged(end));
    }
    for (names, entry) in entries {
        let mode = entry.mode().bits();
        let meta = Meta {
            permissions: mode & 0o7777,
            modified: entry.mtime(),
        };
        match mode & S_IFMT {
            S_IFDIR => tree.set_folder(&names, meta),
            S_IFREG => tree.set_file(&names, meta, entry.file()),
            S_IFLNK => tree.set_link(&names, meta, entry.file()),
            _ => {}
        }
    }
    Ok(())
}

/// The names on an entry's path; `None` if it leads out of the tree.
fn names(path: &'static [u8]) -> Option<Vec<&'static [u8]>> {
    path.split(|b| *b == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
        .map(|name| {
            let usable = name != b".." && name.len() <= super::path::MAX_NAME && !name.contains(&0);
            usable.then_some(name)
        })
        .collect()
}
