//! Paths, as POSIX resolves them (Base Definitions, 4.16).

use crate::abi::errno::Errno;

/// Longest path, without the NUL: Linux's `PATH_MAX` less one.
pub const MAX_PATH: usize = 4095;
/// Longest name: what `struct dirent64` has room for.
pub const MAX_NAME: usize = 255;

/// A path that is neither empty nor too long.
#[derive(Clone, Copy, Debug)]
pub struct Path<'a> {
    bytes: &'a [u8],
    must_be_folder: bool,
}

impl<'a> Path<'a> {
    /// Parses one.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Errno> {
        if bytes.is_empty() {
            return Err(Errno::ENOENT);
        }
        if bytes.len() > MAX_PATH {
            return Err(Errno::ENAMETOOLONG);
        }
        Ok(Self {
            bytes,
            must_be_folder: bytes.ends_with(b"/"),
        })
    }

    /// Its names, `.` and `..` among them.
    pub fn names(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        self.bytes.split(|b| *b == b'/').filter(|n| !n.is_empty())
    }

    /// The last of them; `None` for `/`.
    pub fn last(&self) -> Option<&'a [u8]> {
        self.names().next_back()
    }

    /// Whether it ends in a slash, and so can lead to a folder only.
    pub fn must_be_folder(&self) -> bool {
        self.must_be_folder
    }

    /// The same path whatever it ends in: for making a folder.
    pub fn any_end(self) -> Self {
        Self {
            must_be_folder: false,
            ..self
        }
    }

    /// Whether it starts at `/`.
    pub fn is_absolute(&self) -> bool {
        self.bytes.starts_with(b"/")
    }
}
