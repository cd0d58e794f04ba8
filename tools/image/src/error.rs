//! Why no image was built.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use segue_kernel::image::origin::OriginError;
use segue_kernel::image::{BundleError, ImageError, VerifyError};

use crate::bzimage::{HEADER_END, MAX_SECTORS, SECTOR};

/// Why no image was built.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A file can't be read or written.
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The linked ELF file is broken.
    Elf(elf::ParseError),
    /// The linked ELF file has no section `.setup`.
    NoSetup,
    /// Section `.setup` is not setup code of the Linux boot protocol.
    BadSetup {
        /// Its length, bytes.
        len: usize,
    },
    /// A segment is not inside the linked ELF file.
    Segment {
        /// File offset.
        offset: u64,
        /// Its length in the file, bytes.
        len: u64,
    },
    /// A part that the image needs at run time is in no loaded segment.
    NotLoaded {
        /// The program header's type (p_type).
        kind: u32,
        /// Its address.
        address: u64,
    },
    /// The image could not put its own file together.
    Origin(OriginError),
    /// Section `.segue.trust` is no list of public keys.
    BadTrust {
        /// Its length, bytes.
        len: usize,
    },
    /// The image does not trust the keys that it was to.
    Untrusting {
        /// How many it trusts.
        found: usize,
        /// How many it was to.
        wanted: usize,
    },
    /// What was made of it is no image.
    Image(VerifyError),
}

impl Error {
    pub(crate) fn io(path: &Path, error: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            error,
        }
    }
}

impl From<OriginError> for Error {
    fn from(error: OriginError) -> Self {
        Self::Origin(error)
    }
}

impl From<elf::ParseError> for Error {
    fn from(error: elf::ParseError) -> Self {
        Self::Elf(error)
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        Self::Image(error)
    }
}

impl From<BundleError> for Error {
    fn from(error: BundleError) -> Self {
        Self::Image(error.into())
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        Self::Image(error.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { path, error } => write!(f, "{}: {error}", path.display()),
            Self::Elf(error) => write!(f, "the linked file is no ELF file: {error}"),
            Self::NoSetup => write!(
                f,
                "the linked file has no section .setup (the boot code for .img): was it linked \
                 with linker/image.ld, and not stripped?"
            ),
            Self::BadSetup { len } => write!(
                f,
                "section .setup ({len} bytes) does not hold a Linux boot header, or is not {} to \
                 {} bytes long",
                HEADER_END,
                MAX_SECTORS * SECTOR
            ),
            Self::Segment { offset, len } => write!(
                f,
                "the linked file has a segment of {len:#x} bytes at file offset {offset:#x}, \
                 beyond its end"
            ),
            Self::NotLoaded { kind, address } => write!(
                f,
                "the linked file's program header of type {kind} at {address:#x} is in no loaded \
                 segment"
            ),
            Self::BadTrust { len } => write!(
                f,
                "section .segue.trust ({len} bytes) of the linked file is no list of public keys"
            ),
            Self::Untrusting { found, wanted } => write!(
                f,
                "the linked file trusts {found} keys instead of {wanted}: was it linked with \
                 linker/image.ld?"
            ),
            Self::Image(error) => write!(f, "the linked file makes no image: {error}"),
            Self::Origin(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { error, .. } => Some(error),
            Self::Elf(error) => Some(error),
            Self::Image(error) => Some(error),
            _ => None,
        }
    }
}
