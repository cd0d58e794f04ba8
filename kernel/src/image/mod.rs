//! Images and bundles: from bytes nobody vouches for to an image that can be loaded.
//!
//! - [`Bundle`]: the file format that carries one image (`bundle.rs`).
//! - [`Image`]: a linked image, an ELF file, checked and ready to be placed (`elf.rs`).
//! - [`verify`]: both at once, and that they speak of the same image.
//!
//! Contract: nothing here allocates, touches hardware or panics, whatever the bytes are. What
//! [`verify`] accepts can be loaded at any page-aligned address without further checks, so
//! [`Image::load`] can't stop halfway. The bytes must not change meanwhile: callers hand in a
//! private copy.
#![deny(
    unsafe_code,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod bundle;
mod elf;
mod ident;
#[cfg(any(test, feature = "test-util"))]
pub mod testing;
#[cfg(test)]
mod tests;

use core::fmt;

pub use bundle::{Bundle, BundleError, BundleHeader, Bundles, bundles};
pub use elf::{Image, ImageError, LoadError, PAGE_SIZE, Perms, Segment, Tls, ident_range};
pub use ident::{AbiRange, Ident, Name, Version};

/// Checks one bundle and the image in it, completely.
pub fn verify(bytes: &[u8]) -> Result<(Bundle<'_>, Image<'_>), VerifyError> {
    let bundle = Bundle::parse(bytes)?;
    let image = verify_image(&bundle)?;
    Ok((bundle, image))
}

/// Checks the image in a bundle: for bundles that come from [`bundles`].
pub fn verify_image<'a>(bundle: &Bundle<'a>) -> Result<Image<'a>, VerifyError> {
    let image = Image::parse(bundle.image)?;
    let (header, ident) = (&bundle.header, image.ident());
    if header.name != ident.name {
        return Err(VerifyError::Name {
            bundle: header.name,
            image: ident.name,
        });
    }
    if header.version != ident.version {
        return Err(VerifyError::Version {
            bundle: header.version,
            image: ident.version,
        });
    }
    if header.abi != ident.abi {
        return Err(VerifyError::Abi {
            bundle: header.abi,
            image: ident.abi,
        });
    }
    Ok(image)
}

/// Why a bundle was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VerifyError {
    /// The bundle itself is not in order.
    Bundle(BundleError),
    /// The image in it is not in order.
    Image(ImageError),
    /// Header and image disagree on the image's name.
    Name {
        /// What the bundle's header says.
        bundle: Name,
        /// What the image says.
        image: Name,
    },
    /// Header and image disagree on the image's version.
    Version {
        /// What the bundle's header says.
        bundle: Version,
        /// What the image says.
        image: Version,
    },
    /// Header and image disagree on the handover ABI.
    Abi {
        /// What the bundle's header says.
        bundle: AbiRange,
        /// What the image says.
        image: AbiRange,
    },
}

impl From<BundleError> for VerifyError {
    fn from(error: BundleError) -> Self {
        Self::Bundle(error)
    }
}

impl From<ImageError> for VerifyError {
    fn from(error: ImageError) -> Self {
        Self::Image(error)
    }
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bundle(error) => error.fmt(f),
            Self::Image(error) => error.fmt(f),
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
        }
    }
}

impl core::error::Error for VerifyError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        match self {
            Self::Bundle(error) => Some(error),
            Self::Image(error) => Some(error),
            Self::Name { .. } | Self::Version { .. } | Self::Abi { .. } => None,
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
