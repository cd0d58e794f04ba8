//! The bundle: one image with its manifest, signed or not.
//!
//! Format 2, little-endian. The total length is a multiple of 8, so that bundles can stand one
//! after the other in a ramdisk; see [`bundles`].
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SEGUEBDL` |
//! | 8 | 4 | format version, 2 |
//! | 12 | 4 | header length, 192 |
//! | 16 | 8 | total length, bytes |
//! | 24 | 8 | image offset from the bundle's start |
//! | 32 | 8 | image length, bytes |
//! | 40 | 4 | manifest length, bytes, 1 to 1024 |
//! | 44 | 4 | zero |
//! | 48 | 8 | key id: the first 8 bytes of the SHA-256 of the signer's public key; or zero |
//! | 56 | 32 | SHA-256 of bytes 0 to 55 and of the manifest |
//! | 88 | 40 | zero |
//! | 128 | 64 | Ed25519 signature; or zero, as the key id is then, too |
//! | 192 | | the manifest (`manifest.rs`) |
//! | | | zero bytes up to a multiple of 8, the image offset |
//! | | | the image, an ELF file |
//! | | | zero bytes up to a multiple of 8, the bundle's end |
//!
//! What is signed is `Segue bundle, format 2`, a zero byte, bytes 0 to 127 and the manifest. The
//! manifest has the digest of the image, so the signature binds all of the bundle; nothing of it
//! can be changed that the layout above leaves open.
//!
//! The digest at 56 finds damage where nobody checks signatures, and names the bundle: the one that
//! is kept to fall back on is known by it.
//!
//! Who reads a bundle takes it in steps: [`Bundle`] has seen the header only, which is all that is
//! needed to find the next one. [`Bundle::authenticate`] says who stands for it, and reads the
//! manifest not before it knows. [`Bundle::verify`] then looks at the image.

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;
use ed25519_dalek::{Signer, SigningKey};

use super::digest::{DIGEST_LEN, Digest};
use super::manifest::{MAX_MANIFEST, Manifest, ManifestError};
use super::trust::{Authority, KeyId, PublicKey, Refusal, SIGNATURE_LEN, TrustedKeys};
use super::{Reader, VerifyError, Writer, slice_at};

const MAGIC: [u8; 8] = *b"SEGUEBDL";
const FORMAT: u32 = 2;
/// What a signature of a bundle begins with: nothing else that a key signs begins like that.
const CONTEXT: &[u8] = b"Segue bundle, format 2\0";
const HEADER_LEN: usize = 192;
const DIGEST_AT: usize = 56;
const SIGNATURE_AT: usize = 128;
/// Zero bytes between the digest and the signature.
const RESERVED_LEN: usize = SIGNATURE_AT - DIGEST_AT - DIGEST_LEN;
const ALIGN: u64 = 8;

/// All that stands before an image in a bundle.
pub type Head = ArrayVec<u8, { HEADER_LEN + MAX_MANIFEST }>;

/// The message that is signed.
type Message = ArrayVec<u8, { CONTEXT.len() + SIGNATURE_AT + MAX_MANIFEST }>;

/// A bundle whose lengths are in order. Of what it holds nothing was looked at but the header, and
/// nobody vouches for that.
#[derive(Clone, Copy, Debug)]
pub struct Bundle<'a> {
    header: &'a [u8; HEADER_LEN],
    key: KeyId,
    digest: Digest,
    signature: [u8; SIGNATURE_LEN],
    manifest: &'a [u8],
    image: &'a [u8],
    /// What lies between and behind.
    padding: [&'a [u8]; 2],
}

/// A bundle that somebody vouches for: its header and manifest are as they were made. The image is
/// not looked at yet.
#[derive(Clone, Debug)]
pub struct Authentic<'a> {
    /// The bundle.
    pub bundle: Bundle<'a>,
    /// Who vouches for it.
    pub authority: Authority,
    /// Its manifest.
    pub manifest: Manifest,
}

impl<'a> Bundle<'a> {
    /// Takes a bundle that takes up all of `bytes`.
    ///
    /// # Errors
    /// It is none.
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
        let manifest_len = fields.u32().ok_or(short)?;
        let gap = fields.u32().ok_or(short)?;
        let key = KeyId(fields.array().ok_or(short)?);
        let digest = Digest(fields.array().ok_or(short)?);
        let reserved = fields.bytes(RESERVED_LEN).ok_or(short)?;
        let signature = fields.array().ok_or(short)?;
        if header_len != HEADER_LEN as u32 {
            return Err(BundleError::HeaderLength { len: header_len });
        }
        if !total.is_multiple_of(ALIGN) || total < HEADER_LEN as u64 {
            return Err(BundleError::TotalLength { len: total });
        }
        if manifest_len == 0 || manifest_len > MAX_MANIFEST as u32 {
            return Err(BundleError::ManifestLength { len: manifest_len });
        }
        let whole = slice_at(bytes, 0, total).ok_or(truncated(total))?;
        let rest = bytes.get(whole.len()..).unwrap_or_default();

        // Each part begins where the one before ends, but for what aligns it.
        let range = BundleError::ImageRange { offset, len, total };
        let mut parts = Reader(whole);
        let parted = parts.bytes(HEADER_LEN).and_then(|_| {
            let manifest = parts.bytes(manifest_len as usize)?;
            let before = parts.bytes(padding(manifest_len.into()).len())?;
            let image = parts.bytes(usize::try_from(len).ok()?)?;
            let behind = parts.bytes(padding(len).len())?;
            Some((manifest, image, [before, behind]))
        });
        let (manifest, image, padding) = parted.filter(|_| parts.0.is_empty()).ok_or(range)?;
        let [before, _] = padding;
        let before = [header.as_slice(), manifest, before].map(<[u8]>::len);
        if before.into_iter().fold(0, usize::saturating_add) as u64 != offset {
            return Err(range);
        }
        if gap != 0 || reserved.iter().any(|&byte| byte != 0) {
            return Err(BundleError::Reserved);
        }
        if key.is_none() != (signature == [0; SIGNATURE_LEN]) {
            return Err(BundleError::HalfSigned);
        }
        let bundle = Self {
            header,
            key,
            digest,
            signature,
            manifest,
            image,
            padding,
        };
        Ok((bundle, rest))
    }

    /// Who has signed it, as it says itself; `None` if nobody has.
    #[must_use]
    pub fn key(&self) -> Option<KeyId> {
        (!self.key.is_none()).then_some(self.key)
    }

    /// The digest of header and manifest, as the header has it: what the bundle is known by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The image, an ELF file that nobody has looked at.
    #[must_use]
    pub fn image(&self) -> &'a [u8] {
        self.image
    }

    /// Its length, bytes.
    #[must_use]
    pub fn total_len(&self) -> u64 {
        let parts = [self.header, self.manifest, self.image];
        let parts = parts.into_iter().chain(self.padding);
        // Parts of one slice: no overflow.
        parts.fold(0, |all, part: &[u8]| all.wrapping_add(part.len() as u64))
    }

    /// Finds out who vouches for it, then reads the manifest. Without keys that is nobody.
    ///
    /// # Errors
    /// Nobody does, or header and manifest are not as they were made.
    pub fn authenticate(&self, keys: &TrustedKeys<'_>) -> Result<Authentic<'a>, VerifyError> {
        let authority = if keys.is_open() {
            Authority::Nobody
        } else {
            let id = self.key().ok_or(Refusal::Unsigned)?;
            let message = message(self.header, self.manifest);
            keys.check(id, &message, &self.signature)?;
            Authority::Key(id)
        };
        let actual = digest(self.header, self.manifest);
        if actual != self.digest {
            let altered = BundleError::Altered {
                part: Part::Manifest,
                stored: self.digest,
                actual,
            };
            return Err(altered.into());
        }
        if self
            .padding
            .iter()
            .any(|part| part.iter().any(|&byte| byte != 0))
        {
            return Err(BundleError::Padding.into());
        }
        let manifest = Manifest::decode(self.manifest).map_err(BundleError::Manifest)?;
        Ok(Authentic {
            bundle: *self,
            authority,
            manifest,
        })
    }
}

impl<'a> Authentic<'a> {
    /// The image, as it was when the manifest was made.
    ///
    /// # Errors
    /// It was altered since.
    pub fn image(&self) -> Result<&'a [u8], BundleError> {
        let actual = Digest::of(&[self.bundle.image]);
        if actual != self.manifest.image {
            return Err(BundleError::Altered {
                part: Part::Image,
                stored: self.manifest.image,
                actual,
            });
        }
        Ok(self.bundle.image)
    }
}

/// Makes all that stands before an image of `image_len` bytes in a bundle; after the image comes
/// its [`padding`].
///
/// # Errors
/// A bundle can't be that long.
pub fn head(
    manifest: &Manifest,
    image_len: u64,
    key: Option<&SigningKey>,
) -> Result<Head, BundleError> {
    let encoded = manifest.encode();
    let manifest_len = encoded.len();
    // Both are small.
    let offset = HEADER_LEN.saturating_add(manifest_len) as u64;
    let offset = offset.saturating_add(padding(manifest_len as u64).len() as u64);
    let end = offset.checked_add(image_len);
    let total = end.and_then(|end| end.checked_next_multiple_of(ALIGN));
    let total = total.ok_or(BundleError::TotalLength { len: image_len })?;
    let id = key.map_or(KeyId::NONE, |key| PublicKey::of(key).id());

    let mut header = [0; HEADER_LEN];
    let mut fields = Writer(&mut header);
    fields.put(&MAGIC);
    fields.put(&FORMAT.to_le_bytes());
    fields.put(&(HEADER_LEN as u32).to_le_bytes());
    fields.put(&total.to_le_bytes());
    fields.put(&offset.to_le_bytes());
    fields.put(&image_len.to_le_bytes());
    fields.put(&(manifest_len as u32).to_le_bytes());
    fields.put(&[0; 4]);
    fields.put(&id.0);
    let digest = digest(&header, &encoded);
    Writer(header.get_mut(DIGEST_AT..).unwrap_or_default()).put(&digest.0);
    if let Some(key) = key {
        let signature = key.sign(&message(&header, &encoded)).to_bytes();
        Writer(header.get_mut(SIGNATURE_AT..).unwrap_or_default()).put(&signature);
    }
    let parts = [&header, &*encoded, padding(manifest_len as u64)];
    Ok(parts.into_iter().flatten().copied().collect())
}

/// Makes a bundle, signed if there is a key.
///
/// # Errors
/// A bundle can't be that long.
pub fn assemble(
    manifest: &Manifest,
    image: &[u8],
    key: Option<&SigningKey>,
) -> Result<Vec<u8>, BundleError> {
    let head = head(manifest, image.len() as u64, key)?;
    Ok([&head, image, padding(image.len() as u64)].concat())
}

/// The zero bytes that follow `len` bytes in a bundle.
#[must_use]
pub fn padding(len: u64) -> &'static [u8] {
    slice_at(&[0; ALIGN as usize], 0, len.wrapping_neg() % ALIGN).unwrap_or_default()
}

/// The bundles that stand one after the other in `bytes`, up to its end, zero bytes to the end,
/// or the first error.
#[must_use]
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

/// SHA-256 over the header up to the digest, and the manifest.
fn digest(header: &[u8; HEADER_LEN], manifest: &[u8]) -> Digest {
    Digest::of(&[header.get(..DIGEST_AT).unwrap_or_default(), manifest])
}

/// What is signed. `manifest` is at most as long as one may be.
fn message(header: &[u8; HEADER_LEN], manifest: &[u8]) -> Message {
    let header = header.get(..SIGNATURE_AT).unwrap_or_default();
    let parts = [CONTEXT, header, manifest];
    parts.into_iter().flatten().copied().collect()
}

/// Makes the digests in a bundle that was changed right again; for tests.
#[cfg(any(test, feature = "test-util"))]
pub(super) fn reseal(bytes: &mut [u8]) {
    let Some((manifest, image)) = Bundle::parse_first(bytes)
        .ok()
        .map(|(bundle, _)| (bundle.manifest.len(), bundle.image.to_vec()))
    else {
        return;
    };
    let Some((header, rest)) = bytes.split_first_chunk_mut::<HEADER_LEN>() else {
        return;
    };
    let manifest = rest.get_mut(..manifest).unwrap_or_default();
    super::manifest::redigest(manifest, &image);
    let digest = digest(header, manifest);
    Writer(header.get_mut(DIGEST_AT..).unwrap_or_default()).put(&digest.0);
}

/// Signs a bundle that was changed; for tests.
#[cfg(any(test, feature = "test-util"))]
pub(super) fn resign(bytes: &mut [u8], key: &SigningKey) {
    let id = PublicKey::of(key).id();
    let signed = Bundle::parse_first(bytes).map(|(bundle, _)| bundle.manifest.to_vec());
    let (Ok(manifest), Some((header, _))) = (signed, bytes.split_first_chunk_mut::<HEADER_LEN>())
    else {
        return;
    };
    Writer(header.get_mut(48..).unwrap_or_default()).put(&id.0);
    let digest = digest(header, &manifest);
    Writer(header.get_mut(DIGEST_AT..).unwrap_or_default()).put(&digest.0);
    let signature = key.sign(&message(header, &manifest)).to_bytes();
    Writer(header.get_mut(SIGNATURE_AT..).unwrap_or_default()).put(&signature);
}

/// What was altered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Header or manifest.
    Manifest,
    /// The image.
    Image,
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
    /// A manifest can't be that long.
    ManifestLength {
        /// Its length, bytes.
        len: u32,
    },
    /// The image is not where it has to be: after header and manifest, up to the bundle's end.
    ImageRange {
        /// Image offset.
        offset: u64,
        /// Image length.
        len: u64,
        /// Total length.
        total: u64,
    },
    /// Reserved bytes are not zero.
    Reserved,
    /// A key id without a signature, or the other way round.
    HalfSigned,
    /// Bytes were changed since the digest was made.
    Altered {
        /// Where.
        part: Part,
        /// The digest in the bundle.
        stored: Digest,
        /// The digest of what is there.
        actual: Digest,
    },
    /// Bytes between manifest and image, or behind it, are not zero.
    Padding,
    /// The manifest is not in order.
    Manifest(ManifestError),
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
                "the bundle has format version {version}; this reads version {FORMAT}: build it \
                 again"
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
            Self::ManifestLength { len } => write!(
                f,
                "the bundle's manifest is {len} bytes long, which is not 1 to {MAX_MANIFEST}"
            ),
            Self::ImageRange { offset, len, total } => write!(
                f,
                "the bundle's image ({len} bytes at offset {offset}) does not begin after the \
                 manifest and end with the bundle's {total} bytes"
            ),
            Self::Reserved => {
                write!(
                    f,
                    "the bundle's header has reserved bytes that are not zero"
                )
            }
            Self::HalfSigned => {
                write!(
                    f,
                    "the bundle has a key id without a signature, or a signature without"
                )
            }
            Self::Altered {
                part,
                stored,
                actual,
            } => {
                let part = match part {
                    Part::Manifest => "header or manifest",
                    Part::Image => "image",
                };
                write!(
                    f,
                    "the bundle is damaged or was altered: the SHA-256 of its {part} is {actual}, \
                     it should be {stored}"
                )
            }
            Self::Padding => write!(
                f,
                "the bundle has bytes that are not zero before or behind its image"
            ),
            Self::Manifest(error) => error.fmt(f),
            Self::TrailingBytes { extra } => {
                write!(f, "{extra} bytes follow the bundle, which must stand alone")
            }
        }
    }
}

impl core::error::Error for BundleError {}
