//! The bundle: one image with what must be known of it before its ELF is looked at.
//!
//! Format 1, little-endian. The total length is a multiple of 8, so that bundles can stand one
//! after the other in a ramdisk; see [`bundles`].
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SEGUEBDL` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | header length, 256 |
//! | 16 | 8 | total length, bytes |
//! | 24 | 8 | image offset from the bundle's start, multiple of 8 |
//! | 32 | 8 | image length, bytes |
//! | 40 | 4 | lowest handover ABI version the image speaks |
//! | 44 | 4 | highest |
//! | 48 | 8 | memory the image needs at least, bytes |
//! | 56 | 32 | name, NUL-padded |
//! | 88 | 32 | version, NUL-padded |
//! | 120 | 104 | zero |
//! | 224 | 32 | SHA-256 of the bundle without this field |
//!
//! The digest finds damage, not malice: it is not a signature.

use core::fmt;

use sha2::{Digest, Sha256};

use super::ident::{LABEL_LEN, trimmed};
use super::{AbiRange, Name, Reader, Version, Writer, slice_at};

const MAGIC: [u8; 8] = *b"SEGUEBDL";
const FORMAT: u32 = 1;
const HEADER_LEN: usize = 256;
const DIGEST_AT: usize = 224;
const DIGEST_LEN: usize = 32;
const RESERVED_LEN: usize = 104;
const ALIGN: u64 = 8;

/// What a bundle's header says of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BundleHeader {
    /// The image's name.
    pub name: Name,
    /// The image's version.
    pub version: Version,
    /// Handover ABI versions the image speaks.
    pub abi: AbiRange,
    /// Memory the image needs at least, bytes.
    pub min_memory: u64,
}

impl BundleHeader {
    /// The header for a bundle that consists of it, `image`, and [`Self::padding`].
    pub fn encode(&self, image: &[u8]) -> [u8; HEADER_LEN] {
        // Slices are shorter than 2^63 bytes: nothing saturates.
        let image_len = image.len() as u64;
        let total = (HEADER_LEN as u64)
            .saturating_add(image_len)
            .saturating_add(Self::padding(image).len() as u64);

        let mut header = [0; HEADER_LEN];
        let mut fields = Writer(&mut header);
        fields.put(&MAGIC);
        fields.put(&FORMAT.to_le_bytes());
        fields.put(&(HEADER_LEN as u32).to_le_bytes());
        fields.put(&total.to_le_bytes());
        fields.put(&(HEADER_LEN as u64).to_le_bytes());
        fields.put(&image_len.to_le_bytes());
        fields.put(&self.abi.min().to_le_bytes());
        fields.put(&self.abi.max().to_le_bytes());
        fields.put(&self.min_memory.to_le_bytes());
        fields.put(self.name.field());
        fields.put(self.version.field());
        fields.put(&[0; RESERVED_LEN]);

        let digest = digest(&header, &[image, Self::padding(image)]);
        Writer(header.get_mut(DIGEST_AT..).unwrap_or_default()).put(&digest);
        header
    }

    /// The zero bytes that follow the image.
    pub fn padding(image: &[u8]) -> &'static [u8] {
        let len = (image.len() as u64).wrapping_neg() % ALIGN;
        slice_at(&[0; ALIGN as usize], 0, len).unwrap_or_default()
    }
}

/// A bundle whose lengths, digest and fields are in order. The image in it is not checked yet.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    /// What the header says.
    pub header: BundleHeader,
    /// The image, an ELF file.
    pub image: &'a [u8],
    /// SHA-256 of the bundle without the digest itself.
    pub digest: [u8; DIGEST_LEN],
}

impl<'a> Bundle<'a> {
    /// Checks a bundle that takes up all of `bytes`.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, BundleError> {
        let (bundle, rest) = Self::parse_first(bytes)?;
        if !rest.is_empty() {
            return Err(BundleError::TrailingBytes { extra: rest.len() });
        }
        Ok(bundle)
    }

    /// Takes the first of several bundles. `None` where there is none: `bytes` is empty or zero
    /// to its end.
    pub fn split_first(bytes: &'a [u8]) -> Option<Result<(Self, &'a [u8]), BundleError>> {
        let padding = bytes.iter().all(|&byte| byte == 0);
        (!padding).then(|| Self::parse_first(bytes))
    }

    fn parse_first(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), BundleError> {
        let have = bytes.len() as u64;
        let truncated = |need| BundleError::Truncated { need, have };
        let short = truncated(HEADER_LEN as u64);

        let mut fields = Reader(bytes);
        let magic = fields.array().ok_or(short)?;
        if magic != MAGIC {
            return Err(BundleError::Magic(magic));
        }
        let format = fields.u32().ok_or(short)?;
        if format != FORMAT {
            return Err(BundleError::FormatVersion { version: format });
        }
        let header = bytes.first_chunk::<HEADER_LEN>().ok_or(short)?;
        let header_len = fields.u32().ok_or(short)?;
        let total = fields.u64().ok_or(short)?;
        let offset = fields.u64().ok_or(short)?;
        let len = fields.u64().ok_or(short)?;
        if header_len != HEADER_LEN as u32 {
            return Err(BundleError::HeaderLength { len: header_len });
        }
        if !total.is_multiple_of(ALIGN) || total < HEADER_LEN as u64 {
            return Err(BundleError::TotalLength { len: total });
        }
        let whole = slice_at(bytes, 0, total).ok_or(truncated(total))?;
        let rest = bytes.get(whole.len()..).unwrap_or_default();
        let body = whole.get(HEADER_LEN..).unwrap_or_default();
        let image = slice_at(whole, offset, len)
            .filter(|_| offset >= HEADER_LEN as u64 && offset.is_multiple_of(ALIGN))
            .ok_or(BundleError::ImageRange { offset, len, total })?;

        let actual = digest(header, &[body]);
        let mut stored = Reader(header.get(DIGEST_AT..).unwrap_or_default());
        let stored = stored.array().ok_or(short)?;
        if actual != stored {
            return Err(BundleError::Digest { stored, actual });
        }

        let (min, max) = fields.u32().zip(fields.u32()).ok_or(short)?;
        let min_memory = fields.u64().ok_or(short)?;
        let name = fields.array().ok_or(short)?;
        let version = fields.array().ok_or(short)?;
        if fields.bytes(RESERVED_LEN).ok_or(short)? != [0; RESERVED_LEN] {
            return Err(BundleError::Reserved);
        }
        let header = BundleHeader {
            name: Name::from_field(name).ok_or(BundleError::Name(name))?,
            version: Version::from_field(version).ok_or(BundleError::Version(version))?,
            abi: AbiRange::new(min, max).ok_or(BundleError::Abi { min, max })?,
            min_memory,
        };
        let bundle = Self {
            header,
            image,
            digest: actual,
        };
        Ok((bundle, rest))
    }
}

/// The bundles that stand one after the other in `bytes`, up to its end, zero bytes to the end,
/// or the first error.
pub fn bundles(bytes: &[u8]) -> Bundles<'_> {
    Bundles(bytes)
}

/// Iterator made by [`bundles`].
#[derive(Clone, Debug)]
pub struct Bundles<'a>(&'a [u8]);

impl<'a> Iterator for Bundles<'a> {
    type Item = Result<Bundle<'a>, BundleError>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = Bundle::split_first(core::mem::take(&mut self.0))?;
        Some(first.map(|(bundle, rest)| {
            self.0 = rest;
            bundle
        }))
    }
}

/// SHA-256 over header without its digest field, then the parts of the body.
fn digest(header: &[u8; HEADER_LEN], body: &[&[u8]]) -> [u8; DIGEST_LEN] {
    let mut hash = Sha256::new();
    hash.update(header.get(..DIGEST_AT).unwrap_or_default());
    for part in body {
        hash.update(part);
    }
    hash.finalize().into()
}

/// Puts the right digest into a bundle that was changed; for tests.
#[cfg(any(test, feature = "test-util"))]
pub(super) fn reseal(bundle: &mut [u8]) {
    if let Some((header, body)) = bundle.split_first_chunk_mut::<HEADER_LEN>() {
        let digest = digest(header, &[body]);
        Writer(header.get_mut(DIGEST_AT..).unwrap_or_default()).put(&digest);
    }
}

/// Why bytes were refused as a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleError {
    /// Fewer bytes than the header, or what it says.
    Truncated {
        /// Bytes needed.
        need: u64,
        /// Bytes there.
        have: u64,
    },
    /// Does not begin like a bundle.
    Magic([u8; 8]),
    /// A bundle format that this code does not know.
    FormatVersion {
        /// The format version.
        version: u32,
    },
    /// Not the header length of this format.
    HeaderLength {
        /// The header length, bytes.
        len: u32,
    },
    /// The total length is not a multiple of 8, or shorter than the header.
    TotalLength {
        /// The total length, bytes.
        len: u64,
    },
    /// The image is not inside the bundle, after the header, at a multiple of 8.
    ImageRange {
        /// Image offset.
        offset: u64,
        /// Image length.
        len: u64,
        /// Total length.
        total: u64,
    },
    /// Bytes were changed since the digest was made.
    Digest {
        /// The digest in the header.
        stored: [u8; DIGEST_LEN],
        /// The digest of what is there.
        actual: [u8; DIGEST_LEN],
    },
    /// Reserved bytes are not zero.
    Reserved,
    /// No handover ABI version is in the range.
    Abi {
        /// Lowest version.
        min: u32,
        /// Highest version.
        max: u32,
    },
    /// Not a name.
    Name([u8; LABEL_LEN]),
    /// Not a version.
    Version([u8; LABEL_LEN]),
    /// More bytes after a single bundle.
    TrailingBytes {
        /// How many.
        extra: usize,
    },
}

impl fmt::Display for BundleError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { need, have } => write!(
                f,
                "the bundle is cut off: it needs {need} bytes and there are {have}"
            ),
            Self::Magic(magic) => write!(
                f,
                "not a Segue bundle: it begins with \"{}\" instead of \"{}\"",
                magic.escape_ascii(),
                MAGIC.escape_ascii()
            ),
            Self::FormatVersion { version } => write!(
                f,
                "the bundle has format version {version}; this image reads version {FORMAT}"
            ),
            Self::HeaderLength { len } => write!(
                f,
                "the bundle's header is {len} bytes long; format version {FORMAT} has {HEADER_LEN}"
            ),
            Self::TotalLength { len } => write!(
                f,
                "the bundle says it is {len} bytes long, which is not a multiple of {ALIGN} of at \
                 least {HEADER_LEN}"
            ),
            Self::ImageRange { offset, len, total } => write!(
                f,
                "the bundle's image ({len} bytes at offset {offset}) is not inside the bundle's \
                 {total} bytes, after the header, at a multiple of {ALIGN}"
            ),
            Self::Digest { stored, actual } => write!(
                f,
                "the bundle is damaged: its SHA-256 is {}, its header says {}",
                Hex(actual),
                Hex(stored)
            ),
            Self::Reserved => {
                write!(
                    f,
                    "the bundle's header has reserved bytes that are not zero"
                )
            }
            Self::Abi { min, max } => {
                write!(f, "the bundle's handover ABI range {min}..{max} is empty")
            }
            Self::Name(field) => write!(
                f,
                "the bundle's name field \"{}\" is not 1 to {LABEL_LEN} of a-z, 0-9 and -",
                trimmed(field).escape_ascii()
            ),
            Self::Version(field) => write!(
                f,
                "the bundle's version field \"{}\" is not 1 to {LABEL_LEN} visible ASCII \
                 characters",
                trimmed(field).escape_ascii()
            ),
            Self::TrailingBytes { extra } => {
                write!(f, "{extra} bytes follow the bundle, which must stand alone")
            }
        }
    }
}

impl core::error::Error for BundleError {}

struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
