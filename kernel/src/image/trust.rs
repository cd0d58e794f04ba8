//! Whom an image believes, and what it lets take its place.
//!
//! An image carries the public keys that it trusts ([`TrustedKeys`]) since its build. With keys it
//! takes a bundle only if one of them has signed it, it is of the same app (unless the app allows
//! another), and not older than the running version (unless a signed [`Statement`] allows it).
//! Without keys it is **open**: whoever can hand it a bundle has the domain, and names and versions
//! would protect nobody, so they are not looked at. The handover ABI is looked at in any case.
//!
//! What "older" means is [Semantic Versioning](https://semver.org)'s precedence, which leaves build
//! metadata out: 1.2.0-rc.1 is older than 1.2.0, 1.2.0+b is not older than 1.2.0+a. The same
//! version with another digest is allowed: a build that is signed is meant to run, and a rebuild of
//! the running version is an ordinary thing to do. Of two versions of which one is no semantic
//! version nobody can tell which is older: unless they are the same text, that is refused like an
//! older one, and may be allowed like one.
//!
//! The bundle that is kept to fall back on is exempt from all that by its digest, for as long as
//! the caller names it: in the probation time. It ran before, and was judged by an image that ran
//! before this one.
//!
//! Signatures are Ed25519 (RFC 8032) in the strict sense of `verify_strict`: keys and points of
//! small order are refused, and S is in its range, so nobody but the signer can make another
//! signature out of one.

use core::fmt;

use ed25519_dalek::{Signature, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use super::digest::{BuildId, Digest, Hex};
use super::ident::{AbiRange, Name, Version};
use super::manifest::Manifest;
use super::statement::{Place, Statement, StatementError};

/// Most keys that an image trusts.
pub const MAX_KEYS: usize = 16;
/// Bytes in a public key.
pub const PUBLIC_KEY_LEN: usize = 32;
/// Bytes in a signature.
pub const SIGNATURE_LEN: usize = 64;

/// What a key is called: the first 8 bytes of its SHA-256. It finds a key, and proves nothing.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KeyId(pub [u8; 8]);

impl KeyId {
    /// In place of an id where there is no key.
    pub const NONE: Self = Self([0; 8]);

    /// Whether it stands for no key.
    #[must_use]
    pub fn is_none(self) -> bool {
        self == Self::NONE
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(&self.0), f)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&Hex(&self.0), f)
    }
}

/// An Ed25519 public key, as RFC 8032 section 5.1.2 writes it. It need not be a point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey(pub [u8; PUBLIC_KEY_LEN]);

impl PublicKey {
    /// The public half of a key.
    #[must_use]
    pub fn of(key: &SigningKey) -> Self {
        Self(key.verifying_key().to_bytes())
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let Digest(digest) = Digest::of(&[&self.0]);
        KeyId(digest.first_chunk().copied().unwrap_or_default())
    }

    /// Whether it is one that signatures can be made for: a point, and not of small order.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| !key.is_weak())
    }

    /// Whether the owner of this key has signed `message`.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
        let signature = Signature::from_bytes(signature);
        VerifyingKey::from_bytes(&self.0)
            .is_ok_and(|key| key.verify_strict(message, &signature).is_ok())
    }
}

/// The keys that an image trusts, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct TrustedKeys<'a>(&'a [u8]);

impl<'a> TrustedKeys<'a> {
    /// None: an open image's.
    pub const NONE: TrustedKeys<'static> = TrustedKeys(&[]);

    /// Public keys of 32 bytes each. Something that is no key is one that nobody has: it does not
    /// make an image open.
    #[must_use]
    pub const fn new(keys: &'a [u8]) -> Self {
        Self(keys)
    }

    /// Whether anything is taken, whoever made it.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.0.is_empty()
    }

    /// The keys.
    pub fn iter(&self) -> impl Iterator<Item = PublicKey> + 'a {
        let (keys, _) = self.0.as_chunks::<PUBLIC_KEY_LEN>();
        keys.iter().map(|key| PublicKey(*key))
    }

    /// Whether the key with this id is one of them, and has signed `message`.
    pub(super) fn check(
        &self,
        id: KeyId,
        message: &[u8],
        signature: &[u8; SIGNATURE_LEN],
    ) -> Result<(), Refusal> {
        let mut refusal = Refusal::UnknownKey { id };
        for key in self.iter().filter(|key| key.id() == id) {
            if key.verify(message, signature) {
                return Ok(());
            }
            refusal = Refusal::BadSignature { id };
        }
        Err(refusal)
    }
}

/// Who vouches for a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Nobody: there are no trusted keys.
    Nobody,
    /// The owner of a trusted key.
    Key(KeyId),
}

/// What a bundle is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Policy<'a> {
    /// Whose signatures count.
    pub keys: TrustedKeys<'a>,
    /// What is to be replaced; `None` where nothing is: only signature and soundness count then.
    pub running: Option<Running<'a>>,
}

impl Policy<'static> {
    /// Nobody is asked, and nothing is to be replaced.
    pub const OPEN: Self = Self {
        keys: TrustedKeys::NONE,
        running: None,
    };
}

/// The image that is to be replaced, and what it allows.
#[derive(Clone, Copy, Debug)]
pub struct Running<'a> {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// Its build id.
    pub build: BuildId,
    /// Handover ABI versions it speaks.
    pub abi: AbiRange,
    /// An image of another name may take its place.
    pub other_app: bool,
    /// A [`Statement`] that allows an older version.
    pub downgrade: Option<&'a [u8]>,
    /// Where it runs.
    pub place: Place,
    /// Seconds since 1970 (UTC); 0 when nobody knows.
    pub now: u64,
}

impl Policy<'_> {
    /// Judges a manifest that somebody vouches for.
    ///
    /// # Errors
    /// Its image may not take the running one's place.
    pub fn judge(&self, manifest: &Manifest, authority: Authority) -> Result<(), Refusal> {
        let Some(running) = &self.running else {
            return Ok(());
        };
        if manifest.abi.common(&running.abi).is_none() {
            return Err(Refusal::Abi {
                bundle: manifest.abi,
                running: running.abi,
            });
        }
        match authority {
            Authority::Nobody => return Ok(()),
            Authority::Key(_) => {}
        }
        if manifest.name != running.name && !running.other_app {
            return Err(Refusal::OtherApp {
                bundle: manifest.name,
                running: running.name,
            });
        }
        // Versions of two apps say nothing of each other.
        if manifest.name != running.name {
            return Ok(());
        }
        let (bundle, version) = (manifest.version, running.version);
        let refusal = |statement| match is_older(&bundle, &version) {
            Some(false) => Ok(()),
            Some(true) => Err(Refusal::Older {
                bundle,
                running: version,
                statement,
            }),
            None => Err(Refusal::Unordered {
                bundle,
                running: version,
                statement,
            }),
        };
        let Err(without) = refusal(None) else {
            return Ok(());
        };
        let bytes = running.downgrade.ok_or(without)?;
        let allowed = Statement::open(bytes, &self.keys).and_then(|statement| {
            statement.allows(running.build, manifest.build, &running.place, running.now)
        });
        allowed.or_else(|error| refusal(Some(error)))
    }
}

/// Whether `bundle` comes before `running`; `None` if nobody can tell.
fn is_older(bundle: &Version, running: &Version) -> Option<bool> {
    if bundle == running {
        return Some(false);
    }
    let parse = |version: &Version| semver::Version::parse(version.as_str()).ok();
    Some(parse(bundle)?.cmp_precedence(&parse(running)?).is_lt())
}

/// Whether versions like this one can be told apart by age.
#[must_use]
pub fn is_semantic(version: &Version) -> bool {
    semver::Version::parse(version.as_str()).is_ok()
}

/// Why a bundle may not take the running image's place, sound as it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody has signed it.
    Unsigned,
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
    /// It is of another app.
    OtherApp {
        /// The bundle's.
        bundle: Name,
        /// The running one.
        running: Name,
    },
    /// It is older than the running version.
    Older {
        /// The bundle's version.
        bundle: Version,
        /// The running one.
        running: Version,
        /// Why the statement does not allow it, if there is one.
        statement: Option<StatementError>,
    },
    /// Nobody can tell whether it is older than the running version.
    Unordered {
        /// The bundle's version.
        bundle: Version,
        /// The running one.
        running: Version,
        /// Why the statement does not allow it, if there is one.
        statement: Option<StatementError>,
    },
    /// There is no handover ABI version that both speak.
    Abi {
        /// What the bundle's image speaks.
        bundle: AbiRange,
        /// What the running one does.
        running: AbiRange,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = |f: &mut fmt::Formatter<'_>, statement: &Option<StatementError>| match statement {
            None => f.write_str("; a signed statement may allow it (segue allow-downgrade)"),
            Some(error) => write!(f, ", and the statement does not allow it: {error}"),
        };
        match self {
            Self::Unsigned => f.write_str(
                "it is not signed, and the running image takes signed ones only (segue sign)",
            ),
            Self::UnknownKey { id } => write!(
                f,
                "it is signed with key {id}, which the running image does not trust"
            ),
            Self::BadSignature { id } => write!(
                f,
                "its signature is not of key {id}: it was altered, or not signed with that key"
            ),
            Self::OtherApp { bundle, running } => write!(
                f,
                "it is of app {bundle}, and {running} runs and does not allow another"
            ),
            Self::Older {
                bundle,
                running,
                statement,
            } => {
                write!(f, "version {bundle} is older than the running {running}")?;
                why(f, statement)
            }
            Self::Unordered {
                bundle,
                running,
                statement,
            } => {
                write!(
                    f,
                    "nobody can tell whether version {bundle} is older than the running {running}: \
                     they are not both semantic versions"
                )?;
                why(f, statement)
            }
            Self::Abi { bundle, running } => write!(
                f,
                "it speaks handover ABI {bundle} and the running image {running}: build it again"
            ),
        }
    }
}

impl core::error::Error for Refusal {}
