//! Keys: files that hold them, and what is signed with them.
//!
//! A private key is a PKCS #8 file as OpenSSL writes it (`openssl genpkey -algorithm ed25519` makes
//! one, too). Public keys stand in text files, one a line: 32 bytes in base64, then a comment if
//! there is one. Empty lines and those that begin with `#` mean nothing.

use std::fmt;
use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, KeypairBytes};
use elf::ElfBytes;
use elf::endian::LittleEndian;
use segue_kernel::image::{
    Bundle, BundleError, Ident, MAX_KEYS, Policy, PublicKey, SigningKey, VerifyError, assemble,
};

use crate::{Error, write};

/// The linker script knows lists of keys by it.
pub(crate) const EXTENSION: &str = ".trust.keys";
/// Where they are in a linked image.
const SECTION: &str = ".segue.trust";

/// What is wrong with a key or its file.
#[derive(Debug)]
#[non_exhaustive]
pub enum KeyError {
    /// The file can't be read or written.
    Io(Error),
    /// There is a file already, which may be the only copy of a key.
    Exists(PathBuf),
    /// A line holds no public key.
    Line {
        /// The file.
        path: PathBuf,
        /// The line's number, from 1.
        line: usize,
        /// What it should hold.
        why: &'static str,
    },
    /// The file names no key at all.
    Empty(PathBuf),
    /// The file names more keys than an image may trust.
    TooMany(PathBuf),
    /// Not a private key.
    Private(PathBuf),
    /// There is no randomness to make a key of.
    Random(getrandom::Error),
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Exists(path) => write!(
                f,
                "{} exists and was left as it is: it may be the only copy of a key; move it away \
                 or choose another name",
                path.display()
            ),
            Self::Line { path, line, why } => write!(f, "{}, line {line}: {why}", path.display()),
            Self::Empty(path) => write!(
                f,
                "{}: no public key in it; an image that trusts nobody takes any bundle, and is \
                 built without --trust",
                path.display()
            ),
            Self::TooMany(path) => write!(
                f,
                "{}: more than {MAX_KEYS} public keys in it, which is the most an image trusts",
                path.display()
            ),
            Self::Private(path) => write!(
                f,
                "{}: no Ed25519 private key in it (PKCS #8 in PEM, as segue keygen writes it)",
                path.display()
            ),
            Self::Random(error) => write!(f, "no randomness to make a key of: {error}"),
        }
    }
}

impl std::error::Error for KeyError {}

/// A new pair of keys in two files, of which neither was there.
#[derive(Debug)]
pub struct KeyFiles {
    /// The private key; nobody but its owner may read the file.
    pub private: PathBuf,
    /// The public one.
    pub public: PathBuf,
    /// The public key itself.
    pub key: PublicKey,
}

/// Makes a pair of keys: the private one in `private`, the public one in the same with `.pub`
/// behind it.
///
/// # Errors
/// There is one of the files, or they can't be written. What was there is as it was.
pub fn generate(private: &Path) -> Result<KeyFiles, KeyError> {
    let mut public = private.as_os_str().to_owned();
    public.push(".pub");
    let public = PathBuf::from(public);
    for path in [private, &public] {
        // A link to nowhere is something, too.
        if fs::symlink_metadata(path).is_ok() {
            return Err(KeyError::Exists(path.to_owned()));
        }
    }
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(KeyError::Random)?;
    let signing = SigningKey::from_bytes(&seed);
    let key = PublicKey::of(&signing);
    // With the public key in it, it would be of a version that OpenSSL 3.0 can't read.
    let pair = KeypairBytes {
        secret_key: seed,
        public_key: None,
    };
    let pem = pair.to_pkcs8_pem(LineEnding::LF);
    let pem = pem.map_err(|_| KeyError::Private(private.to_owned()))?;
    create(private, pem.as_bytes(), 0o600)?;
    if let Err(error) = create(&public, public_text(&key).as_bytes(), 0o666) {
        // It is of no use alone, and nobody has used it.
        let _ = fs::remove_file(private);
        return Err(error);
    }
    Ok(KeyFiles {
        private: private.to_owned(),
        public,
        key,
    })
}

/// Writes a file that is not there yet, all of it or nothing.
fn create(path: &Path, bytes: &[u8], mode: u32) -> Result<(), KeyError> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let failed = |error| KeyError::Io(Error::io(path, error));
    let mut file = tempfile::Builder::new()
        .permissions(Permissions::from_mode(mode))
        .tempfile_in(folder)
        .map_err(failed)?;
    file.write_all(bytes).map_err(failed)?;
    file.as_file().sync_all().map_err(failed)?;
    let placed = file.persist_noclobber(path);
    placed.map(drop).map_err(|e| match e.error.kind() {
        io::ErrorKind::AlreadyExists => KeyError::Exists(path.to_owned()),
        _ => failed(e.error),
    })
}

/// What a file with this one public key says.
fn public_text(key: &PublicKey) -> String {
    format!(
        "# Segue public key {}\n{}\n",
        key.id(),
        STANDARD.encode(key.0)
    )
}

/// Reads a private key.
///
/// # Errors
/// There is none.
pub fn read_private(path: &Path) -> Result<SigningKey, KeyError> {
    let text = fs::read_to_string(path).map_err(|e| KeyError::Io(Error::io(path, e)))?;
    SigningKey::from_pkcs8_pem(&text).map_err(|_| KeyError::Private(path.to_owned()))
}

/// Reads a file of public keys, each once.
///
/// # Errors
/// It has none, too many, or a line that is none.
pub fn read_trust(path: &Path) -> Result<Vec<PublicKey>, KeyError> {
    let text = fs::read_to_string(path).map_err(|e| KeyError::Io(Error::io(path, e)))?;
    let mut keys = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let Some(word) = line.split_whitespace().next() else {
            continue;
        };
        if word.starts_with('#') {
            continue;
        }
        let wrong = |why| KeyError::Line {
            path: path.to_owned(),
            line: n + 1,
            why,
        };
        if word.starts_with("-----BEGIN") {
            return Err(wrong(
                "that is a file in PEM; wanted are the lines of a .pub file, as segue keygen \
                 writes it",
            ));
        }
        let bytes = STANDARD.decode(word).ok();
        let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let key = bytes.map(PublicKey);
        let key = key.ok_or_else(|| wrong("no public key: 32 bytes in base64"))?;
        if !key.is_sound() {
            return Err(wrong(
                "these 32 bytes are no Ed25519 public key, or one that signs anything",
            ));
        }
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    match keys.len() {
        0 => Err(KeyError::Empty(path.to_owned())),
        n if n > MAX_KEYS => Err(KeyError::TooMany(path.to_owned())),
        _ => Ok(keys),
    }
}

/// The keys that a linked image trusts.
pub(crate) fn of_linked(linked: &[u8]) -> Result<Vec<PublicKey>, Error> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(linked)?;
    if file.section_headers().is_none() {
        return Ok(Vec::new());
    }
    let Some(section) = file.section_header_by_name(SECTION)? else {
        return Ok(Vec::new());
    };
    let (bytes, _) = file.section_data(&section)?;
    let (keys, rest) = bytes.as_chunks();
    if !rest.is_empty() || keys.len() > MAX_KEYS {
        return Err(Error::BadTrust { len: bytes.len() });
    }
    Ok(keys.iter().map(|key| PublicKey(*key)).collect())
}

/// Why bundles were not signed.
#[derive(Debug)]
#[non_exhaustive]
pub enum SignError {
    /// The file can't be read or written.
    Io(Error),
    /// A bundle is not in order.
    Bundle {
        /// Its number in the file, from 1.
        number: usize,
        /// What is wrong with it.
        error: VerifyError,
    },
    /// A bundle's build id is not that of its image.
    Build {
        /// Its number in the file, from 1.
        number: usize,
    },
    /// There is no bundle in the file.
    None,
}

impl fmt::Display for SignError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => error.fmt(f),
            Self::Bundle { number, error } => write!(f, "bundle {number}: {error}"),
            Self::Build { number } => write!(
                f,
                "bundle {number}: its build id is not the digest of its image: it was changed after \
                 its build"
            ),
            Self::None => f.write_str("there is no bundle in it"),
        }
    }
}

impl std::error::Error for SignError {}

/// Signs all bundles in `bytes`, which has nothing else. `revoke_previous` says of each that the
/// bundle before it must not be kept to fall back on; what says so already stays as it is.
///
/// # Errors
/// One of them is not in order: nobody signs what is not.
pub fn sign(bytes: &[u8], key: &SigningKey, revoke_previous: bool) -> Result<Vec<u8>, SignError> {
    let mut signed = Vec::new();
    let mut rest = bytes;
    let mut number = 0;
    while let Some(next) = Bundle::split_first(rest) {
        number += 1;
        let refused = |error: VerifyError| SignError::Bundle { number, error };
        let (bundle, after) = next.map_err(|error| refused(error.into()))?;
        let mut manifest = checked(&bundle, number)?;
        manifest.revokes_previous |= revoke_previous;
        let one = assemble(&manifest, bundle.image(), Some(key));
        signed.extend(one.map_err(|error: BundleError| refused(error.into()))?);
        rest = after;
    }
    match number {
        0 => Err(SignError::None),
        _ => Ok(signed),
    }
}

/// Checks a bundle as far as that can be done without knowing whom to trust.
fn checked(bundle: &Bundle<'_>, number: usize) -> Result<segue_kernel::image::Manifest, SignError> {
    let verified = bundle.verify(&Policy::OPEN);
    let verified = verified.map_err(|error| SignError::Bundle { number, error })?;
    let mut image = bundle.image().to_vec();
    match Ident::stamp_build(&mut image) {
        Ok(build) if build == verified.manifest.build => Ok(verified.manifest),
        _ => Err(SignError::Build { number }),
    }
}

/// Signs all bundles in the file `from`, into `to`, which is replaced if it is there. They may be
/// the same file. On errors `to` is as it was. Gives the number of bytes written.
///
/// # Errors
/// See [`sign`].
pub fn sign_file(
    from: &Path,
    to: &Path,
    key: &SigningKey,
    revoke_previous: bool,
) -> Result<u64, SignError> {
    let bytes = fs::read(from).map_err(|error| SignError::Io(Error::io(from, error)))?;
    let signed = sign(&bytes, key, revoke_previous)?;
    Ok(write(to, &signed).map_err(SignError::Io)?.len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use segue_kernel::image::testing::{TestImage, key};
    use segue_kernel::image::{Authority, TrustedKeys, bundles};

    fn pub_file(text: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys");
        fs::write(&path, text).unwrap();
        (folder, path)
    }

    #[test]
    fn a_pair_of_keys_is_made_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("release");
        let made = generate(&path).unwrap();
        let mode = fs::metadata(&made.private).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(PublicKey::of(&read_private(&path).unwrap()), made.key);
        // Version 1 of PKCS #8, as all tools read it (RFC 8410, section 7).
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEI"));
        assert_eq!(read_trust(&made.public).unwrap(), [made.key]);
        let before = [&made.private, &made.public].map(|path| fs::read(path).unwrap());

        assert!(matches!(generate(&path), Err(KeyError::Exists(found)) if found == path));
        let after = [&made.private, &made.public].map(|path| fs::read(path).unwrap());
        assert_eq!(before, after);
        // Neither is made where one of the two is there.
        let other = folder.path().join("other");
        fs::write(folder.path().join("other.pub"), "mine").unwrap();
        assert!(matches!(generate(&other), Err(KeyError::Exists(_))));
        assert!(!other.exists());
        assert_ne!(
            generate(&folder.path().join("third")).unwrap().key,
            made.key
        );
        // No temporary files stay.
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 5);
    }

    #[test]
    fn files_of_public_keys() {
        let of = |n| PublicKey::of(&key(n));
        let line = |n| STANDARD.encode(of(n).0);
        let text = format!(
            "# ours\n\n{} alice\n  {}\tbob\r\n{}\n",
            line(1),
            line(2),
            line(1)
        );
        let (_folder, path) = pub_file(&text);
        assert_eq!(read_trust(&path).unwrap(), [of(1), of(2)]);
        // The lines' form is fixed for ever.
        assert_eq!(line(1), "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=");

        for (text, wanted) in [
            ("not-base64!", 1),
            ("\nAAAA", 2),
            // The points of order 1 and 4.
            ("AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1),
            ("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", 1),
            ("# ours\n-----BEGIN PUBLIC KEY-----", 2),
        ] {
            let (_folder, path) = pub_file(text);
            let found = read_trust(&path).unwrap_err();
            assert!(
                matches!(found, KeyError::Line { line, .. } if line == wanted),
                "{text}"
            );
        }
        let (_folder, path) = pub_file("# none\n");
        assert!(matches!(read_trust(&path), Err(KeyError::Empty(_))));
        let many: Vec<_> = (1..=17).map(line).collect();
        let (_folder, path) = pub_file(&many.join("\n"));
        assert!(matches!(read_trust(&path), Err(KeyError::TooMany(_))));
        let (_folder, path) = pub_file(&line(1));
        assert!(matches!(read_private(&path), Err(KeyError::Private(_))));
    }

    #[test]
    fn all_bundles_in_a_file_are_signed() {
        let one = TestImage::default().bundle();
        let both = [&one[..], &one].concat();
        let signed = sign(&both, &key(1), false).unwrap();
        let again = sign(&signed, &key(2), true).unwrap();
        for (bytes, n, revokes) in [(signed, 1, false), (again, 2, true)] {
            let public = PublicKey::of(&key(n));
            let policy = Policy {
                keys: TrustedKeys::new(&public.0),
                ..Policy::OPEN
            };
            let found: Vec<_> = bundles(&bytes)
                .map(|bundle| bundle.unwrap().verify(&policy).unwrap())
                .collect();
            assert_eq!(found.len(), 2);
            for bundle in found {
                assert_eq!(bundle.authority, Authority::Key(public.id()));
                assert_eq!(bundle.manifest.revokes_previous, revokes);
            }
        }
    }

    #[test]
    fn what_is_not_in_order_is_not_signed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bundle");
        let good = TestImage::default().bundle();
        let mut bad = good.clone();
        let end = bad.len() - 100;
        bad[end] ^= 1;
        let two = [&good[..], &bad].concat();
        fs::write(&path, &two).unwrap();
        let found = sign_file(&path, &path, &key(1), false).unwrap_err();
        assert!(matches!(found, SignError::Bundle { number: 2, .. }));
        assert_eq!(fs::read(&path).unwrap(), two);
        assert!(matches!(sign(&[], &key(1), false), Err(SignError::None)));
        // Digests that are right, of an image that is not the one that was built.
        let image = TestImage {
            ident: segue_kernel::image::testing::ident().map(|ident| Ident {
                build: segue_kernel::image::BuildId([1; 32]),
                ..ident
            }),
            ..TestImage::default()
        };
        let found = sign(&image.bundle(), &key(1), false).unwrap_err();
        assert!(matches!(found, SignError::Build { number: 1 }));
    }
}
