//! The downgrade statement: somebody who is trusted allows one image to be replaced by an older one.
//!
//! Format 1, little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic `SEGUEDGR` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | body length, bytes |
//! | 16 | 8 | key id, as in a bundle |
//! | 24 | 64 | Ed25519 signature |
//! | 88 | | body |
//!
//! The body, as `postcard` writes it: build id of the image that runs (32 bytes), build id of the
//! one that may take its place (32 bytes), where (u32: 0 and the domain's UUID, 16 bytes; or 1 and
//! the fleet's name, a text), until when (u64, seconds since 1970, UTC). What follows is refused: a
//! limit that nobody knows of must not be passed over.
//!
//! What is signed is `Segue downgrade statement, format 1`, a zero byte, bytes 0 to 23 and the body.
//!
//! It is no secret and works as often as it is shown, until it expires, but only in that place and
//! from that one image to that other.

use alloc::vec::Vec;
use core::fmt;

use arrayvec::ArrayVec;
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};

use super::digest::{BuildId, Hex};
use super::ident::Name;
use super::trust::{KeyId, PublicKey, Refusal, SIGNATURE_LEN, TrustedKeys};
use super::{Reader, Writer};

const MAGIC: [u8; 8] = *b"SEGUEDGR";
const FORMAT: u32 = 1;
const CONTEXT: &[u8] = b"Segue downgrade statement, format 1\0";
const HEADER_LEN: usize = 88;
const SIGNATURE_AT: usize = 24;
const MAX_BODY: usize = 128;
/// Most bytes in a statement.
pub const MAX_STATEMENT: usize = HEADER_LEN + MAX_BODY;

type Message = ArrayVec<u8, { CONTEXT.len() + SIGNATURE_AT + MAX_BODY }>;

/// Where a statement counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the domain with this UUID (`xl list -v`, or `uuid` in its configuration).
    Domain([u8; 16]),
    /// In domains that are said to be of this fleet (`segue.fleet` on their command line).
    Fleet(Name),
}

/// Where an image runs, as far as it knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The domain's UUID.
    pub domain: Option<[u8; 16]>,
    /// The fleet it is said to be of.
    pub fleet: Option<Name>,
}

/// What is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The image that runs.
    pub from: BuildId,
    /// The image that may take its place.
    pub to: BuildId,
    /// Where.
    pub scope: Scope,
    /// From then on no more: seconds since 1970 (UTC).
    pub expires: u64,
}

#[derive(Serialize, Deserialize)]
enum ScopeField<'a> {
    Domain([u8; 16]),
    Fleet(&'a str),
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    from: BuildId,
    to: BuildId,
    #[serde(borrow)]
    scope: ScopeField<'a>,
    expires: u64,
}

impl Statement {
    /// Reads a statement that one of the keys has signed. Nothing behind its header is read before
    /// that is known.
    ///
    /// # Errors
    /// It is none, or nobody trusted has signed it.
    pub fn open(bytes: &[u8], keys: &TrustedKeys<'_>) -> Result<Self, StatementError> {
        let framed = Framed::parse(bytes)?;
        let message = message(framed.header, framed.body);
        keys.check(framed.key, &message, &framed.signature)
            .map_err(|refusal| match refusal {
                Refusal::UnknownKey { id } => StatementError::UnknownKey { id },
                _ => StatementError::BadSignature { id: framed.key },
            })?;
        framed.read()
    }

    /// Reads a statement whoever made it: to be shown. Says with which key it is said to be signed.
    ///
    /// # Errors
    /// It is none.
    pub fn peek(bytes: &[u8]) -> Result<(Self, KeyId), StatementError> {
        let framed = Framed::parse(bytes)?;
        Ok((framed.read()?, framed.key))
    }

    /// Whether it allows this.
    ///
    /// # Errors
    /// It does not.
    pub fn allows(
        &self,
        from: BuildId,
        to: BuildId,
        place: &Place,
        now: u64,
    ) -> Result<(), StatementError> {
        if self.from != from {
            return Err(StatementError::From {
                statement: self.from,
            });
        }
        if self.to != to {
            return Err(StatementError::To { statement: self.to });
        }
        match self.scope {
            Scope::Domain(wanted) if place.domain != Some(wanted) => {
                return Err(StatementError::Domain {
                    statement: wanted,
                    here: place.domain,
                });
            }
            Scope::Fleet(wanted) if place.fleet != Some(wanted) => {
                return Err(StatementError::Fleet { statement: wanted });
            }
            Scope::Domain(_) | Scope::Fleet(_) => {}
        }
        if now == 0 {
            return Err(StatementError::NoClock);
        }
        if now >= self.expires {
            return Err(StatementError::Expired {
                expires: self.expires,
                now,
            });
        }
        Ok(())
    }

    /// Signs it.
    #[must_use]
    pub fn sign(&self, key: &SigningKey) -> Vec<u8> {
        let body = Body {
            from: self.from,
            to: self.to,
            scope: match &self.scope {
                Scope::Domain(uuid) => ScopeField::Domain(*uuid),
                Scope::Fleet(name) => ScopeField::Fleet(name.as_str()),
            },
            expires: self.expires,
        };
        let mut room = [0; MAX_BODY];
        // At most 32 + 32 + 1 + 33 + 10 bytes.
        let body = postcard::to_slice(&body, &mut room)
            .map(|body| &*body)
            .unwrap_or_default();
        let mut header = [0; HEADER_LEN];
        let mut fields = Writer(&mut header);
        fields.put(&MAGIC);
        fields.put(&FORMAT.to_le_bytes());
        fields.put(&(body.len() as u32).to_le_bytes());
        fields.put(&PublicKey::of(key).id().0);
        let signature = key.sign(&message(&header, body)).to_bytes();
        Writer(header.get_mut(SIGNATURE_AT..).unwrap_or_default()).put(&signature);
        [&header, body].concat()
    }
}

/// A statement whose header is in order.
struct Framed<'a> {
    header: &'a [u8; HEADER_LEN],
    key: KeyId,
    signature: [u8; SIGNATURE_LEN],
    body: &'a [u8],
}

impl<'a> Framed<'a> {
    fn parse(bytes: &'a [u8]) -> Result<Self, StatementError> {
        let short = StatementError::Length { have: bytes.len() };
        let (header, body) = bytes.split_first_chunk::<HEADER_LEN>().ok_or(short)?;
        let mut fields = Reader(header);
        let magic: [u8; 8] = fields.array().ok_or(short)?;
        if magic != MAGIC {
            return Err(StatementError::Magic);
        }
        let version = fields.u32().ok_or(short)?;
        if version != FORMAT {
            return Err(StatementError::FormatVersion { version });
        }
        let len = fields.u32().ok_or(short)?;
        if body.len() > MAX_BODY || body.len() != len as usize {
            return Err(short);
        }
        Ok(Self {
            header,
            key: KeyId(fields.array().ok_or(short)?),
            signature: fields.array().ok_or(short)?,
            body,
        })
    }

    fn read(&self) -> Result<Statement, StatementError> {
        let body = postcard::take_from_bytes::<Body<'_>>(self.body);
        let Ok((body, [])) = body else {
            return Err(StatementError::Malformed);
        };
        let scope = match body.scope {
            ScopeField::Domain(uuid) => Scope::Domain(uuid),
            ScopeField::Fleet(name) => {
                Scope::Fleet(Name::new(name).ok_or(StatementError::Malformed)?)
            }
        };
        Ok(Statement {
            from: body.from,
            to: body.to,
            scope,
            expires: body.expires,
        })
    }
}

/// What is signed. `body` is at most as long as one may be.
fn message(header: &[u8; HEADER_LEN], body: &[u8]) -> Message {
    let header = header.get(..SIGNATURE_AT).unwrap_or_default();
    let parts = [CONTEXT, header, body];
    parts.into_iter().flatten().copied().collect()
}

/// Why a statement allows nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StatementError {
    /// Cut off, or longer than it says or may be.
    Length {
        /// Bytes there.
        have: usize,
    },
    /// Does not begin like a statement.
    Magic,
    /// A format that this code does not know.
    FormatVersion {
        /// The format version.
        version: u32,
    },
    /// Signed with a key that is not trusted.
    UnknownKey {
        /// The key's id.
        id: KeyId,
    },
    /// The signature is not that key's, or not for these bytes.
    BadSignature {
        /// The key's id.
        id: KeyId,
    },
    /// The body is not what `postcard` writes.
    Malformed,
    /// It is about another running image.
    From {
        /// The image it is about.
        statement: BuildId,
    },
    /// It allows another image.
    To {
        /// The image it allows.
        statement: BuildId,
    },
    /// It counts in another domain.
    Domain {
        /// The UUID of the domain it counts in.
        statement: [u8; 16],
        /// This one's.
        here: Option<[u8; 16]>,
    },
    /// It counts in another fleet.
    Fleet {
        /// The fleet it counts in.
        statement: Name,
    },
    /// Nobody knows what time it is.
    NoClock,
    /// Its time is over.
    Expired {
        /// When it was, seconds since 1970.
        expires: u64,
        /// What time it is.
        now: u64,
    },
}

impl fmt::Display for StatementError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { have } => write!(f, "{have} bytes are no statement's length"),
            Self::Magic => write!(
                f,
                "not a downgrade statement: it does not begin with \"{}\"",
                MAGIC.escape_ascii()
            ),
            Self::FormatVersion { version } => write!(
                f,
                "it has format version {version}; this reads version {FORMAT}"
            ),
            Self::UnknownKey { id } => {
                write!(f, "it is signed with key {id}, which is not trusted")
            }
            Self::BadSignature { id } => write!(
                f,
                "its signature is not of key {id}: it was altered, or not signed with that key"
            ),
            Self::Malformed => f.write_str("it is garbled"),
            Self::From { statement } => {
                write!(
                    f,
                    "it is about build {statement}, which is not the running one"
                )
            }
            Self::To { statement } => {
                write!(f, "it allows build {statement}, which is not the bundle's")
            }
            Self::Domain { statement, here } => {
                write!(f, "it is for domain {}, and this is ", Uuid(statement))?;
                match here {
                    Some(here) => Uuid(here).fmt(f),
                    None => f.write_str("unknown"),
                }
            }
            Self::Fleet { statement } => write!(
                f,
                "it is for fleet {statement}, which this domain's command line does not say \
                 (segue.fleet={statement})"
            ),
            Self::NoClock => f.write_str("nobody knows what time it is"),
            Self::Expired { expires, now } => write!(
                f,
                "it was good until {expires} s after 1970, and it is {now} s"
            ),
        }
    }
}

impl core::error::Error for StatementError {}

/// A UUID as RFC 9562 writes it.
struct Uuid<'a>(&'a [u8; 16]);

impl fmt::Display for Uuid<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = self.0.as_slice();
        for (n, len) in [4, 2, 2, 2, 6].into_iter().enumerate() {
            let (part, after) = rest.split_at_checked(len).unwrap_or_default();
            let dash = if n == 0 { "" } else { "-" };
            write!(f, "{dash}{}", Hex(part))?;
            rest = after;
        }
        Ok(())
    }
}
