//! A preserved region's header: its first frame. Plain code over bytes.
//!
//! ```text
//! 0   magic "SEGUERGN"   8   version u32        12  consistent u32: 1 or 0
//! 16  layout u64         24  app's version u32  28  length of the name u32
//! 32  size of an element in bytes u64           40  elements u64
//! 48  name, 64 bytes     112 CRC-64 of all before it but 12..16
//! ```
//! Little-endian. The data begin at the next frame. Part of the handover ABI (I12): the image that
//! made the region may be an older or a newer one, or, after a crash, not there to ask.

use crate::memory::PAGE_SIZE;
use crate::replace::record::DIGEST;
use arrayvec::ArrayString;
use core::fmt;

const MAGIC: [u8; 8] = *b"SEGUERGN";
const VERSION: u32 = 1;
/// Bytes of the header that mean something.
pub const LEN: usize = 120;

/// Bytes before the data.
pub const DATA: u64 = PAGE_SIZE;
/// Where the mark is that says whether the data are consistent, in bytes; a word of 32 bits.
pub const CONSISTENT: usize = 12;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// Most regions.
pub const MAX_REGIONS: usize = 32;

/// What a header says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Hash of the type's layout.
    pub layout: u64,
    /// The app's number for what the data mean.
    pub version: u32,
    /// Bytes of an element.
    pub size: u64,
    /// Number of elements.
    pub count: u64,
    /// The region's name.
    pub name: ArrayString<MAX_NAME>,
    /// Nobody was changing the data.
    pub consistent: bool,
}

/// Why bytes are no region's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HeaderError {
    /// No magic number.
    BadMagic,
    /// A layout of the header that this image does not know.
    Version(u32),
    /// The digest does not match.
    Digest,
    /// The data would be larger than the region, or the name is none.
    Bad,
}

impl fmt::Display for HeaderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadMagic => f.write_str("no header"),
            Self::Version(v) => write!(f, "a header of version {v}, this image has {VERSION}"),
            Self::Digest => f.write_str("a header with a bad digest"),
            Self::Bad => f.write_str("a header that makes no sense"),
        }
    }
}

/// The digest leaves out the mark, which changes by itself.
fn digest(bytes: &[u8; LEN]) -> u64 {
    let mut digest = DIGEST.digest();
    digest.update(&bytes[..CONSISTENT]);
    digest.update(&bytes[CONSISTENT + 4..LEN - 8]);
    digest.finalize()
}

fn word(bytes: &[u8; LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn half(bytes: &[u8; LEN], at: usize) -> u32 {
    let mut half = [0; 4];
    half.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(half)
}

impl Header {
    /// Reads the header of a region with room for `room` bytes of data.
    ///
    /// # Errors
    /// See [`HeaderError`].
    pub fn parse(bytes: &[u8], room: u64) -> Result<Self, HeaderError> {
        let bytes = bytes.first_chunk::<LEN>().ok_or(HeaderError::BadMagic)?;
        if bytes[..8] != MAGIC {
            return Err(HeaderError::BadMagic);
        }
        if half(bytes, 8) != VERSION {
            return Err(HeaderError::Version(half(bytes, 8)));
        }
        if digest(bytes) != word(bytes, LEN - 8) {
            return Err(HeaderError::Digest);
        }
        let name = usize::try_from(half(bytes, 28)).ok();
        let name = name
            .and_then(|len| bytes[48..48 + MAX_NAME].get(..len))
            .and_then(|name| core::str::from_utf8(name).ok())
            .filter(|name| !name.is_empty())
            .and_then(|name| ArrayString::from(name).ok());
        let header = Self {
            layout: word(bytes, 16),
            version: half(bytes, 24),
            size: word(bytes, 32),
            count: word(bytes, 40),
            name: name.ok_or(HeaderError::Bad)?,
            consistent: match half(bytes, CONSISTENT) {
                0 => false,
                1 => true,
                _ => return Err(HeaderError::Bad),
            },
        };
        match header.size.checked_mul(header.count) {
            Some(len) if len <= room && header.size > 0 => Ok(header),
            _ => Err(HeaderError::Bad),
        }
    }

    /// The digest that these bytes should have.
    ///
    /// # Panics
    /// They are too short.
    #[cfg(feature = "fuzzing")]
    #[must_use]
    pub fn digest_of(bytes: &[u8]) -> u64 {
        digest(bytes.first_chunk().expect("a header's bytes"))
    }

    /// The header as bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[CONSISTENT..16].copy_from_slice(&u32::from(self.consistent).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.layout.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.version.to_le_bytes());
        bytes[28..32].copy_from_slice(&(self.name.len() as u32).to_le_bytes());
        bytes[32..40].copy_from_slice(&self.size.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.count.to_le_bytes());
        bytes[48..48 + self.name.len()].copy_from_slice(self.name.as_bytes());
        let digest = digest(&bytes);
        bytes[LEN - 8..].copy_from_slice(&digest.to_le_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn header() -> impl Strategy<Value = Header> {
        (
            any::<[u64; 2]>(),
            any::<u32>(),
            1u64..1 << 31,
            0u64..1 << 31,
            "[a-z]{1,64}",
            any::<bool>(),
        )
            .prop_map(
                |([layout, _], version, size, count, name, consistent)| Header {
                    layout,
                    version,
                    size,
                    count,
                    name: ArrayString::from(&name).unwrap(),
                    consistent,
                },
            )
    }

    proptest! {
        #[test]
        fn reads_back_equal(header in header()) {
            let bytes = header.to_bytes();
            let len = header.size * header.count;
            prop_assert_eq!(Header::parse(&bytes, len), Ok(header));
            if len > 0 {
                prop_assert_eq!(Header::parse(&bytes, len - 1), Err(HeaderError::Bad));
            }
        }

        #[test]
        fn a_flipped_bit_is_refused_or_is_the_mark(header in header(), at in 0..LEN, bit in 0u8..8) {
            let mut bytes = header.to_bytes();
            bytes[at] ^= 1 << bit;
            match Header::parse(&bytes, u64::MAX) {
                Err(_) => {}
                Ok(read) => {
                    prop_assert_eq!((at, bit), (CONSISTENT, 0));
                    prop_assert_eq!(read.consistent, !header.consistent);
                }
            }
        }

        /// Whatever stands there, with a right digest: no panic, and what is accepted makes sense.
        #[test]
        fn hostile_bytes_are_read_without_panic(mut bytes in vec(any::<u8>(), LEN), room: u64, sized: bool) {
            let _ = Header::parse(&bytes, room);
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            if sized {
                bytes[28..32].copy_from_slice(&5u32.to_le_bytes());
                bytes[48..53].copy_from_slice(b"table");
                bytes[12..16].copy_from_slice(&1u32.to_le_bytes());
            }
            let array: [u8; LEN] = bytes.clone().try_into().unwrap();
            bytes[LEN - 8..].copy_from_slice(&digest(&array).to_le_bytes());
            if let Ok(header) = Header::parse(&bytes, room) {
                prop_assert!(header.size.checked_mul(header.count).is_some_and(|len| len <= room));
                prop_assert!(!header.name.is_empty());
            }
        }
    }
}
