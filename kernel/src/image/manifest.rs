//! The manifest: what is said of an image before its ELF file is looked at.
//!
//! It stands behind the bundle's header, as `postcard` writes these fields one after the other
//! (integers as LEB128, texts and lists after their length, arrays of bytes as they are):
//!
//! | field | type |
//! |---|---|
//! | name | text |
//! | version | text |
//! | lowest handover ABI version the image speaks | u32 |
//! | highest | u32 |
//! | memory the image needs at least, bytes | u64 |
//! | revokes previous: the bundle before must not be kept to fall back on | bool |
//! | build id | 32 bytes |
//! | SHA-256 of the image, all of it | 32 bytes |
//! | SHA-256 of each segment that is loaded (PT_LOAD), of the bytes in the file | list of 32 bytes |
//! | ids of the keys that the image trusts; it is open if there are none | list of 8 bytes |
//!
//! What follows these fields is skipped: that is how later ones are added which may be ignored.
//! One that may not comes with a new format version of the bundle.

use core::fmt;

use arrayvec::ArrayVec;
use serde::{Deserialize, Serialize};

use super::digest::{BuildId, Digest};
use super::elf::{Image, ImageError, MAX_SEGMENTS};
use super::ident::{AbiRange, Name, Version};
use super::trust::{KeyId, MAX_KEYS};

/// Most bytes in a manifest.
pub const MAX_MANIFEST: usize = 1024;

/// What is said of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image's name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Handover ABI versions it speaks.
    pub abi: AbiRange,
    /// Memory it needs at least, bytes.
    pub min_memory: u64,
    /// The bundle before must not be kept to fall back on.
    pub revokes_previous: bool,
    /// Its build id.
    pub build: BuildId,
    /// The digest of the image: its ELF file.
    pub image: Digest,
    /// The digest of each loaded segment, as it lies in the file.
    pub segments: ArrayVec<Digest, MAX_SEGMENTS>,
    /// Keys that it trusts: those that rule after the commit. It is open if there are none.
    pub trusts: ArrayVec<KeyId, MAX_KEYS>,
}

/// The same as it is written, nothing checked.
#[derive(Serialize, Deserialize)]
struct Fields<'a> {
    name: &'a str,
    version: &'a str,
    abi_min: u32,
    abi_max: u32,
    min_memory: u64,
    revokes_previous: bool,
    build: BuildId,
    image: Digest,
    segments: ArrayVec<Digest, MAX_SEGMENTS>,
    trusts: ArrayVec<KeyId, MAX_KEYS>,
}

impl Manifest {
    /// What is to be said of an image: an ELF file that [`Image::parse`] accepts. It revokes
    /// nothing; which keys it trusts is for the caller to say.
    ///
    /// # Errors
    /// As [`Image::parse`].
    pub fn describe(file: &[u8]) -> Result<Self, ImageError> {
        let image = Image::parse(file)?;
        let ident = image.ident();
        Ok(Self {
            name: ident.name,
            version: ident.version,
            abi: ident.abi,
            min_memory: image.span(),
            revokes_previous: false,
            build: ident.build,
            image: Digest::of(&[file]),
            segments: image
                .segment_files()
                .map(|data| Digest::of(&[data]))
                .collect(),
            trusts: ArrayVec::new(),
        })
    }

    /// Reads it.
    ///
    /// # Errors
    /// It is cut off, or says what can't be.
    pub fn decode(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST {
            return Err(ManifestError::Malformed);
        }
        let fields = postcard::take_from_bytes::<Fields<'_>>(bytes);
        let (fields, _) = fields.map_err(|_| ManifestError::Malformed)?;
        let (min, max) = (fields.abi_min, fields.abi_max);
        Ok(Self {
            name: Name::new(fields.name).ok_or(ManifestError::Name)?,
            version: Version::new(fields.version).ok_or(ManifestError::Version)?,
            abi: AbiRange::new(min, max).ok_or(ManifestError::Abi { min, max })?,
            min_memory: fields.min_memory,
            revokes_previous: fields.revokes_previous,
            build: fields.build,
            image: fields.image,
            segments: fields.segments,
            trusts: fields.trusts,
        })
    }

    /// Writes it down.
    #[must_use]
    pub fn encode(&self) -> ArrayVec<u8, MAX_MANIFEST> {
        let fields = Fields {
            name: self.name.as_str(),
            version: self.version.as_str(),
            abi_min: self.abi.min(),
            abi_max: self.abi.max(),
            min_memory: self.min_memory,
            revokes_previous: self.revokes_previous,
            build: self.build,
            image: self.image,
            segments: self.segments.clone(),
            trusts: self.trusts.clone(),
        };
        let mut room = [0; MAX_MANIFEST];
        // All parts are bounded, to some 600 bytes together.
        let written = postcard::to_slice(&fields, &mut room);
        written
            .iter()
            .flat_map(|bytes| bytes.iter().copied())
            .collect()
    }
}

/// Makes the digests in a manifest those of `image` again, as far as they can be; for tests.
#[cfg(any(test, feature = "test-util"))]
pub(super) fn redigest(manifest: &mut [u8], image: &[u8]) {
    let copy: ArrayVec<u8, MAX_MANIFEST> = manifest.iter().copied().take(MAX_MANIFEST).collect();
    let Ok((mut fields, _)) = postcard::take_from_bytes::<Fields<'_>>(&copy) else {
        return;
    };
    fields.image = Digest::of(&[image]);
    if let Ok(image) = Image::parse(image) {
        for (digest, data) in fields.segments.iter_mut().zip(image.segment_files()) {
            *digest = Digest::of(&[data]);
        }
    }
    // Of the same length, unless integers were written longer than they have to be.
    let _ = postcard::to_slice(&fields, manifest);
}

/// Why bytes were refused as a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ManifestError {
    /// Cut off, too long, or not what `postcard` writes.
    Malformed,
    /// Not a name.
    Name,
    /// Not a version.
    Version,
    /// No handover ABI version is in the range.
    Abi {
        /// Lowest version.
        min: u32,
        /// Highest version.
        max: u32,
    },
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("the bundle's manifest is cut off or garbled"),
            Self::Name => f.write_str("the manifest's name is not 1 to 32 of a-z, 0-9 and -"),
            Self::Version => {
                f.write_str("the manifest's version is not 1 to 32 visible ASCII characters")
            }
            Self::Abi { min, max } => {
                write!(f, "the manifest's handover ABI range {min}..{max} is empty")
            }
        }
    }
}

impl core::error::Error for ManifestError {}
