//! Images and bundles: from bytes nobody vouches for to an image that can be loaded.
//!
//! - [`Bundle`]: the file format that carries one image (`bundle.rs`), with a [`Manifest`]
//!   (`manifest.rs`).
//! - [`Policy`]: whom an image believes, and what may take its place (`trust.rs`); a signed
//!   [`Statement`] allows an older version (`statement.rs`).
//! - [`Image`]: a linked image, an ELF file, checked and ready to be placed (`elf.rs`).
//! - [`origin`]: an image's own file, from its memory (`origin.rs`).
//! - [`verify`]: all at once, and that they speak of the same image.
//!
//! Contract: nothing here that reads bytes from outside touches hardware or panics, whatever the
//! bytes are, nor allocates (but for a version's pre-release text, 32 bytes at most). What
//! [`verify`] accepts can be loaded at any page-aligned address, so [`Image::load`] stops halfway
//! only where a segment is not what its digest says. The bytes must not change meanwhile: callers
//! hand in a private copy.
//!
//! Order, so that as little as possible is read of what a stranger made: the header's fixed fields;
//! who has signed, and whether that is true; the manifest; whether this image may take the running
//! one's place; the image's digest; only then its ELF file.
#![deny(
    unsafe_code,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod bundle;
mod digest;
mod elf;
mod ident;
mod manifest;
pub mod origin;
mod statement;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
#[cfg(test)]
mod tests;
mod trust;
#[cfg(test)]
mod trust_tests;

use core::fmt;

pub use bundle::{
    Authentic, Bundle, BundleError, Bundles, Head, Part, assemble, bundles, head, padding,
};
pub use digest::{BuildId, Digest};
pub use ed25519_dalek::SigningKey;
pub use elf::{Image, ImageError, LoadError, PAGE_SIZE, Perms, Segment, Tls, ident_range};
pub use ident::{AbiRange, Ident, Name, Version};
pub use manifest::{MAX_MANIFEST, Manifest, ManifestError};
pub use statement::{MAX_STATEMENT, Place, Scope, Statement, StatementError};
pub use trust::{
    Authority, KeyId, MAX_KEYS, PUBLIC_KEY_LEN, Policy, PublicKey, Refusal, Running, SIGNATURE_LEN,
    TrustedKeys, is_semantic,
};

/// A bundle that may take the running image's place, and can be loaded.
#[derive(Clone, Debug)]
pub struct Verified<'a> {
    /// The digest that the bundle is known by.
    pub digest: Digest,
    /// Who vouches for it.
    pub authority: Authority,
    /// What is said of the image.
    pub manifest: Manifest,
    /// The image.
    pub image: Image<'a>,
}

impl Verified<'_> {
    /// Loads the image as its manifest says: see [`Image::load`].
    ///
    /// # Errors
    /// A segment is not what the manifest says, or the caller's memory is not what it has to be.
    pub fn place(&self, base: u64, dest: &mut [u8]) -> Result<(), LoadError> {
        self.image.load(base, dest, &self.manifest.segments)
    }
}

/// Checks one bundle and the image in it, completely.
///
/// # Errors
/// See [`VerifyError`].
pub fn verify<'a>(bytes: &'a [u8], policy: &Policy<'_>) -> Result<Verified<'a>, VerifyError> {
    Bundle::parse(bytes)?.verify(policy)
}

impl<'a> Bundle<'a> {
    /// As [`verify`]: for bundles that come from [`bundles`].
    ///
    /// # Errors
    /// See [`VerifyError`].
    pub fn verify(&self, policy: &Policy<'_>) -> Result<Verified<'a>, VerifyError> {
        let authentic = self.authenticate(&policy.keys)?;
        policy.judge(&authentic.manifest, authentic.authority)?;
        let image = Image::parse(authentic.image()?)?;
        let manifest = authentic.manifest;
        let ident = image.ident();
        if manifest.name != ident.name {
            return Err(VerifyError::Name {
                bundle: manifest.name,
                image: ident.name,
            });
        }
        if manifest.version != ident.version {
            return Err(VerifyError::Version {
                bundle: manifest.version,
                image: ident.version,
            });
        }
        if manifest.abi != ident.abi {
            return Err(VerifyError::Abi {
                bundle: manifest.abi,
                image: ident.abi,
            });
        }
        if manifest.build != ident.build {
            return Err(VerifyError::Build {
                bundle: manifest.build,
                image: ident.build,
            });
        }
        let (digested, segments) = (manifest.segments.len(), image.segments().count());
        if digested != segments {
            return Err(LoadError::Digests { segments, digested }.into());
        }
        Ok(Verified {
            digest: self.digest(),
            authority: authentic.authority,
            manifest,
            image,
        })
    }
}

/// Why a bundle was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The bundle itself is not in order.
    Bundle(BundleError),
    /// It may not take the running image's place.
    Refused(Refusal),
    /// The image in it is not in order.
    Image(ImageError),
    /// The image can't be loaded as the manifest says.
    Load(LoadError),
    /// Manifest and image disagree on the image's name.
    Name {
        /// What the manifest says.
        bundle: Name,
        /// What the image says.
        image: Name,
    },
    /// Manifest and image disagree on the image's version.
    Version {
        /// What the manifest says.
        bundle: Version,
        /// What the image says.
        image: Version,
    },
    /// Manifest and image disagree on the handover ABI.
    Abi {
        /// What the manifest says.
        bundle: AbiRange,
        /// What the image says.
        image: AbiRange,
    },
    /// Manifest and image disagree on the build id.
    Build {
        /// What the manifest says.
        bundle: BuildId,
        /// What the image says.
        image: BuildId,
    },
}

impl From<BundleError> for VerifyError {
    fn from(error: BundleError) -> Self {
        Self::Bundle(error)
    }
}

impl From<Refusal> for VerifyError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ImageError> for VerifyError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl From<LoadError> for VerifyError {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) => error.fmt(f),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Image(error) => error.fmt(f),
            Self::Load(error) => error.fmt(f),
            Self::Name { bundle, image } => write!(
                f,
                "the bundle is labelled {bundle} but the image in it is {image}"
            ),
            Self::Version { bundle, image } => write!(
                f,
                "the bundle is labelled version {bundle} but the image in it is version {image}"
            ),
            Self::Abi { bundle, image } => write!(
                f,
                "the bundle is labelled handover ABI {bundle} but the image in it speaks {image}"
            ),
            Self::Build { bundle, image } => write!(
                f,
                "the bundle is labelled build {bundle} but the image in it is build {image}"
            ),
        }
    }
}

impl core::error::Error for VerifyError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Bundle(error) => Some(error),
            Self::Refused(refusal) => Some(refusal),
            Self::Image(error) => Some(error),
            Self::Load(error) => Some(error),
            Self::Name { .. } | Self::Version { .. } | Self::Abi { .. } | Self::Build { .. } => {
                None
            }
        }
    }
}

/// The `len` bytes at `offset`, or `None` if they are not all there.
fn slice_at(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    bytes.get(start..end)
}

/// Reads little-endian fields one after the other.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (field, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(field)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

/// Writes fields one after the other; what has no room is left out.
struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) {
        if let Some((field, rest)) = core::mem::take(&mut self.0).split_at_mut_checked(bytes.len())
        {
            field.copy_from_slice(bytes);
            self.0 = rest;
        }
    }
}
