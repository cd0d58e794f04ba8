//! Public keys in a text, as `segue keygen` writes them: 32 bytes in base64 a line, then a comment
//! if there is one. Empty lines and those that begin with `#` mean nothing.

use crate::kernel::image::{MAX_KEYS, PublicKey};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;

/// What is wrong with a text of public keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeysError {
    /// A line is no public key.
    Line {
        /// Its number, from 1.
        line: usize,
    },
    /// There is no key in it.
    None,
    /// There are more than [`MAX_KEYS`].
    TooMany,
}

impl fmt::Display for KeysError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { line } => write!(
                f,
                "operators' keys, line {line}: no Ed25519 public key (32 bytes in base64)"
            ),
            Self::None => f.write_str("operators' keys: there is none"),
            Self::TooMany => write!(f, "operators' keys: more than {MAX_KEYS}"),
        }
    }
}

impl std::error::Error for KeysError {}

/// The keys in a text.
///
/// # Errors
/// See [`KeysError`].
pub fn parse_keys(text: &str) -> Result<Vec<PublicKey>, KeysError> {
    let mut keys = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let word = line.split_whitespace().next().unwrap_or_default();
        if word.is_empty() || word.starts_with('#') {
            continue;
        }
        let wrong = KeysError::Line {
            line: n.saturating_add(1),
        };
        let bytes = STANDARD.decode(word).map_err(|_| wrong)?;
        let key = PublicKey(bytes.try_into().map_err(|_| wrong)?);
        if !key.is_sound() {
            return Err(wrong);
        }
        if !keys.contains(&key) {
            keys.push(key);
        }
    }
    match keys.len() {
        0 => Err(KeysError::None),
        n if n > MAX_KEYS => Err(KeysError::TooMany),
        _ => Ok(keys),
    }
}
