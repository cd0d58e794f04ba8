//! What an image says of itself: name, version, handover ABI, wishes.
//!
//! It stands in an ELF note (owner `Segue`, type 1), so it is in the image's memory too, and in
//! the bundle's header, where tools find it without parsing ELF. Fields are little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | lowest handover ABI version the image speaks |
//! | 4 | 4 | highest |
//! | 8 | 4 | flags: bit 0 = the app asks for a trial |
//! | 12 | 32 | name, NUL-padded |
//! | 44 | 32 | version, NUL-padded |
//! | 76 | 32 | build id: SHA-256 of the ELF file with zeroes here |

use core::fmt;

use super::digest::{BuildId, Digest};
use super::{ImageError, Reader, Writer, ident_range};

/// Bytes of a name or version field.
pub(super) const LABEL_LEN: usize = 32;

/// A field without its padding; for messages.
pub(super) fn trimmed(field: &[u8]) -> &[u8] {
    let len = field.iter().rposition(|&byte| byte != 0);
    let end = len.map_or(0, |last| last.saturating_add(1));
    field.get(..end).unwrap_or_default()
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $type([u8; LABEL_LEN]);

        impl $type {
            /// Takes a text of 1 to 32 bytes; `None` if it is no such text or holds other bytes.
            pub fn new(text: &str) -> Option<Self> {
                let mut field = [0; LABEL_LEN];
                field.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
                Self::from_field(field)
            }

            /// Takes a NUL-padded field; `None` if it is empty, holds other bytes, or goes on
            /// after a NUL.
            pub fn from_field(field: [u8; LABEL_LEN]) -> Option<Self> {
                let text = field.split(|&byte| byte == 0).next()?;
                let padding = field.get(text.len()..)?;
                let allowed: fn(&u8) -> bool = $allowed;
                let good = !text.is_empty()
                    && text.iter().all(allowed)
                    && padding.iter().all(|&byte| byte == 0);
                good.then_some(Self(field))
            }

            /// The field, NUL-padded.
            pub fn field(&self) -> &[u8; LABEL_LEN] {
                &self.0
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                let text = self.0.split(|&byte| byte == 0).next();
                // ASCII, by construction.
                text.and_then(|text| core::str::from_utf8(text).ok()).unwrap_or_default()
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
    };
}

label!(
    /// An image's name: 1 to 32 of `a-z`, `0-9` and `-`.
    Name,
    |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')
);
label!(
    /// An image's version: 1 to 32 visible ASCII characters.
    Version,
    u8::is_ascii_graphic
);

impl Name {
    /// Of an image that the build has not finished.
    pub const UNNAMED: Self = Self(*b"unnamed\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

impl Version {
    /// Of an image that the build has not finished.
    pub const NONE: Self =
        Self(*b"0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

/// A range of handover ABI versions, both ends included; versions start at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbiRange {
    min: u32,
    max: u32,
}

impl AbiRange {
    /// `None` if there is no version in the range, or version 0 is.
    pub const fn new(min: u32, max: u32) -> Option<Self> {
        if min >= 1 && min <= max {
            Some(Self { min, max })
        } else {
            None
        }
    }

    /// The lowest version.
    pub const fn min(&self) -> u32 {
        self.min
    }

    /// The highest version.
    pub const fn max(&self) -> u32 {
        self.max
    }

    /// The highest version that both speak.
    pub fn common(&self, other: &Self) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

impl fmt::Display for AbiRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.min, self.max)
    }
}

/// What an image says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ident {
    /// Handover ABI versions it speaks.
    pub abi: AbiRange,
    /// Whether the app asks for a trial.
    pub trial: bool,
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Its build id.
    pub build: BuildId,
}

impl Ident {
    /// Owner of the ELF note.
    pub const NOTE_OWNER: &[u8] = b"Segue\0";
    /// Type of the ELF note.
    pub const NOTE_TYPE: u32 = 1;
    /// Bytes in the note's descriptor.
    pub const DESC_LEN: usize = 108;
    const FLAG_TRIAL: u32 = 1;
    const LABELS_AT: usize = 12;
    const BUILD_AT: usize = 76;

    /// Reads the note's descriptor. Flags nobody knows are refused: what they ask for can't be
    /// given; one that may be ignored comes with a newer ABI version instead.
    pub fn parse(desc: &[u8]) -> Result<Self, ImageError> {
        let short = ImageError::IdentLength { len: desc.len() };
        if desc.len() != Self::DESC_LEN {
            return Err(short);
        }
        let mut fields = Reader(desc);
        let (min, max) = fields.u32().zip(fields.u32()).ok_or(short)?;
        let flags = fields.u32().ok_or(short)?;
        let name = fields.array().ok_or(short)?;
        let version = fields.array().ok_or(short)?;
        let build = BuildId(fields.array().ok_or(short)?);
        if flags & !Self::FLAG_TRIAL != 0 {
            return Err(ImageError::IdentFlags { flags });
        }
        Ok(Self {
            abi: AbiRange::new(min, max).ok_or(ImageError::IdentAbi { min, max })?,
            trial: flags & Self::FLAG_TRIAL != 0,
            name: Name::from_field(name).ok_or(ImageError::IdentName(name))?,
            version: Version::from_field(version).ok_or(ImageError::IdentVersion(version))?,
            build,
        })
    }

    /// The note's descriptor.
    pub fn encode(&self) -> [u8; Self::DESC_LEN] {
        let mut desc = [0; Self::DESC_LEN];
        let mut fields = Writer(&mut desc);
        fields.put(&self.abi.min.to_le_bytes());
        fields.put(&self.abi.max.to_le_bytes());
        fields.put(&u32::from(self.trial).to_le_bytes());
        fields.put(self.name.field());
        fields.put(self.version.field());
        fields.put(&self.build.0);
        desc
    }

    /// Writes name and version into a descriptor that the linker left them empty in.
    pub fn stamp(desc: &mut [u8], name: &Name, version: &Version) {
        if let Some(labels) = desc.get_mut(Self::LABELS_AT..) {
            let mut fields = Writer(labels);
            fields.put(name.field());
            fields.put(version.field());
        }
    }

    /// Writes the build id into an ELF file that is complete otherwise.
    ///
    /// # Errors
    /// It has no identity note.
    pub fn stamp_build(file: &mut [u8]) -> Result<BuildId, ImageError> {
        let desc = ident_range(file)?;
        let len = desc.len();
        let start = desc.start.saturating_add(Self::BUILD_AT);
        let field = |file: &mut [u8], id: &BuildId| {
            let field = file.get_mut(start..desc.end)?.first_chunk_mut()?;
            *field = id.0;
            Some(())
        };
        let short = ImageError::IdentLength { len };
        field(file, &BuildId::default()).ok_or(short)?;
        let id = BuildId(Digest::of(&[file]).0);
        field(file, &id).ok_or(short)?;
        Ok(id)
    }
}
