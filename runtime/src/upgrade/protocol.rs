//! What the upgrade service and `segue` say to each other, over TCP.
//!
//! The client begins with an [`Opening`]: 12 bytes that stay the same for ever. From then on both
//! send frames: a length (u32, little-endian), and so many bytes. A client's frame is a [`Request`]
//! as `postcard` writes it; a server's is an [`Answer`] as MessagePack with the names of fields, so
//! that a newer image can say more to an older `segue`, and the other way round. The server's first
//! answer is [`Answer::Hello`].
//!
//! What changes anything is a [`Command`] that an operator has signed: see [`message`]. The nonce is
//! the server's, new for each connection and after each command, so that no signature works twice.
//! After [`Answer::Refused`] the server closes the connection.

use crate::kernel::image::{BuildId, Digest, KeyId, MAX_STATEMENT, PublicKey, SIGNATURE_LEN};
use arrayvec::ArrayVec;
use ed25519_dalek::{Signer, SigningKey};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The version of the protocol that this code speaks.
pub const VERSION: u16 = 1;
/// The port, if nothing else is said.
pub const PORT: u16 = 7433;

/// Most bytes of a bundle in one [`Request::Data`].
pub const MAX_DATA: usize = 16 * 1024;
/// Longest frame from a client that has not begun an upload.
pub const MAX_REQUEST: usize = 512;
/// Longest frame from a client that has: data, and what stands before it.
pub const MAX_DATA_REQUEST: usize = MAX_DATA + 16;
/// Longest frame from a server.
pub const MAX_ANSWER: usize = 64 * 1024;

/// What a signature of a command begins with: nothing else that a key signs begins like that.
const CONTEXT: &[u8] = b"Segue upgrade command, protocol 1\0";

/// What only the server knows beforehand, and says to one client.
pub type Nonce = [u8; 32];

/// How a client begins: `SEGUEUPG`, then the lowest and the highest version that it speaks (u16,
/// little-endian).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Lowest version.
    pub min: u16,
    /// Highest version.
    pub max: u16,
}

impl Opening {
    /// Bytes of it.
    pub const LEN: usize = 12;
    const MAGIC: [u8; 8] = *b"SEGUEUPG";

    /// What this code says.
    pub const OURS: Self = Self {
        min: VERSION,
        max: VERSION,
    };

    /// Writes it down.
    #[must_use]
    pub fn encode(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (magic, versions) = bytes.split_at_mut(Self::MAGIC.len());
        magic.copy_from_slice(&Self::MAGIC);
        let (min, max) = versions.split_at_mut(2);
        min.copy_from_slice(&self.min.to_le_bytes());
        max.copy_from_slice(&self.max.to_le_bytes());
        bytes
    }

    /// Reads it; `None` if the bytes are something else.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::LEN]) -> Option<Self> {
        let [magic @ .., a, b, c, d] = bytes;
        let opening = Self {
            min: u16::from_le_bytes([*a, *b]),
            max: u16::from_le_bytes([*c, *d]),
        };
        (*magic == Self::MAGIC && opening.min <= opening.max).then_some(opening)
    }

    /// The version to speak; `None` if there is none.
    #[must_use]
    pub fn version(self) -> Option<u16> {
        (self.min..=self.max).contains(&VERSION).then_some(VERSION)
    }
}

/// A downgrade statement; see `segue allow-downgrade`.
pub type StatementBytes = ArrayVec<u8, MAX_STATEMENT>;

/// What is asked of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// How is it? Nobody has to sign that.
    Status,
    /// To change something.
    Signed(Box<Signed>),
    /// A part of the bundle, the next one, after [`Answer::Receive`].
    Data {
        /// Where it begins.
        offset: u64,
        /// Its bytes.
        #[serde(borrow)]
        bytes: &'a [u8],
    },
}

/// A command and who stands for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The operator's key.
    pub key: KeyId,
    /// What is to be done.
    pub command: Command,
    /// The signature, in halves: serde knows no arrays of this length.
    signature: [[u8; SIGNATURE_LEN / 2]; 2],
}

/// What changes something. All of it is signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// Begin the upload of a bundle, or go on with it.
    Upload {
        /// SHA-256 of the bundle, all of it.
        bundle: Digest,
        /// Its length, bytes.
        len: u64,
        /// A statement that allows an older version.
        downgrade: Option<StatementBytes>,
    },
    /// Replace the image by the one in the bundle that was uploaded.
    Switch {
        /// SHA-256 of the bundle, all of it.
        bundle: Digest,
        /// How long the image before is kept, ms; 0: not at all.
        probation_ms: u64,
        /// Without [`Command::Confirm`] in that time it comes back.
        must_confirm: bool,
        /// A statement that allows an older version.
        downgrade: Option<StatementBytes>,
    },
    /// This image is good: its probation is over.
    Confirm {
        /// The image.
        build: BuildId,
    },
    /// Put the image before in this one's place again.
    RollBack {
        /// The image to be replaced.
        build: BuildId,
    },
}

/// Where and when a command counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occasion {
    /// The domain's UUID.
    pub domain: [u8; 16],
    /// The generation that runs.
    pub generation: u64,
    /// The server's nonce.
    pub nonce: Nonce,
}

/// What is signed: a text that says what it is for, version of the protocol, UUID of the domain,
/// generation, nonce, and the command with all its options, as `postcard` writes it.
#[must_use]
pub fn message(occasion: &Occasion, command: &Command) -> Vec<u8> {
    let mut message = CONTEXT.to_vec();
    message.extend(VERSION.to_le_bytes());
    message.extend(occasion.domain);
    message.extend(occasion.generation.to_le_bytes());
    message.extend(occasion.nonce);
    let mut room = [0; MAX_REQUEST];
    // At most some 300 bytes.
    if let Ok(command) = postcard::to_slice(command, &mut room) {
        message.extend_from_slice(command);
    }
    message
}

impl Signed {
    /// Signs a command.
    #[must_use]
    pub fn new(command: Command, occasion: &Occasion, key: &SigningKey) -> Self {
        let signature = key.sign(&message(occasion, &command));
        let (r, s) = (signature.r_bytes(), signature.s_bytes());
        Self {
            key: PublicKey::of(key).id(),
            command,
            signature: [*r, *s],
        }
    }

    /// Whether one of these operators has signed it, for this occasion.
    #[must_use]
    pub fn is_of(&self, operators: &[PublicKey], occasion: &Occasion) -> bool {
        let mut signature = [0; SIGNATURE_LEN];
        let halves = self.signature.iter().flatten();
        signature
            .iter_mut()
            .zip(halves)
            .for_each(|(to, from)| *to = *from);
        let mut named = operators.iter().filter(|key| key.id() == self.key);
        named.any(|key| key.verify(&message(occasion, &self.command), &signature))
    }
}

impl<'a> Request<'a> {
    /// Reads a frame.
    ///
    /// # Errors
    /// It is no request, or bytes follow it.
    pub fn decode(frame: &'a [u8]) -> Result<Self, Garbled> {
        match postcard::take_from_bytes(frame) {
            Ok((request, [])) => Ok(request),
            _ => Err(Garbled),
        }
    }

    /// Writes the frame, its length before it, into `room`, which has [`MAX_DATA_REQUEST`] + 4
    /// bytes; `None` if that is too little.
    #[must_use]
    pub fn encode<'b>(&self, room: &'b mut [u8]) -> Option<&'b [u8]> {
        let (head, body) = room.split_first_chunk_mut::<4>()?;
        let len = postcard::to_slice(self, body).ok()?.len();
        *head = u32::try_from(len).ok()?.to_le_bytes();
        room.get(..len.checked_add(4)?)
    }
}

/// A frame that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Garbled;

impl fmt::Display for Garbled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a frame is garbled")
    }
}

impl std::error::Error for Garbled {}

/// What the server says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// At first.
    Hello(Hello),
    /// How it is.
    Status(Box<Status>),
    /// To [`Command::Upload`]: send the bundle from there on.
    Receive {
        /// So many bytes are there.
        offset: u64,
        /// For the next command.
        nonce: Nonce,
    },
    /// To each part of a bundle.
    Received {
        /// So many bytes are there.
        offset: u64,
    },
    /// To the last part, or to [`Command::Upload`] when all is there: the bundle is complete, and
    /// has the digest that was signed.
    Complete {
        /// For the next command.
        nonce: Nonce,
    },
    /// To [`Command::Upload`] or its first part, and to [`Command::Switch`]: the image that runs is
    /// the one in the bundle. Nothing is done.
    Runs,
    /// To [`Command::Switch`] and [`Command::RollBack`]: it begins now. If it comes about, the next
    /// image goes on with the connection and says [`Answer::Hello`]; or it does not know of it.
    Switching,
    /// After that: it did not come about.
    Stays(Stays),
    /// To [`Command::Confirm`].
    Confirmed {
        /// There was a probation.
        ended: bool,
        /// For the next command.
        nonce: Nonce,
    },
    /// No.
    Refused(Refused),
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// The version of the protocol that is spoken.
    pub version: u16,
    /// The domain's UUID.
    pub domain: [u8; 16],
    /// The generation that runs.
    pub generation: u64,
    /// For the first command.
    pub nonce: Nonce,
    /// The image that runs.
    pub build: BuildId,
    /// Longest bundle that is taken, bytes.
    pub most: u64,
}

/// How it is with a domain.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The generation that runs.
    pub generation: u64,
    /// The image's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its build id.
    pub build: BuildId,
    /// The build id of the image that the domain was booted with, if that is known.
    pub booted: Option<BuildId>,
    /// Since the first image of the domain serves, ms, if that is known.
    pub uptime_ms: Option<u64>,
    /// Since this image serves, ms.
    pub running_ms: u64,
    /// vCPUs.
    pub vcpus: u32,
    /// Memory that is free, bytes.
    pub memory_free: u64,
    /// The probation that the image is on.
    pub probation: Option<Probation>,
    /// The switch to this image.
    pub switch: Option<Switch>,
    /// Why the last switch from this image did not come about.
    pub stayed: Option<String>,
    /// An upload that is under way.
    pub upload: Option<Upload>,
}

/// The time in which the image before can come back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Probation {
    /// What is left of it, ms.
    pub left_ms: u64,
    /// The image before comes back if nobody confirms this one.
    pub must_confirm: bool,
}

/// An upload that is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Upload {
    /// Bytes that are there.
    pub received: u64,
    /// Bytes there will be.
    pub len: u64,
}

/// Figures of a switch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Switch {
    /// From this generation.
    pub from: u64,
    /// To that.
    pub to: u64,
    /// How long nobody ran, µs.
    pub blackout_us: u64,
    /// Its parts, in their order, µs.
    pub parts: Vec<(String, u64)>,
    /// What came before it, while everybody ran, µs.
    pub before_us: u64,
    /// Hypercalls in it.
    pub hypercalls: u64,
    /// What was handed over, and how much of it.
    pub handed: Vec<(String, u64)>,
    /// It was no switch but the way back from an image that crashed: why.
    pub crashed: Option<String>,
}

/// Why an image was not replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stays {
    /// It was not stopped.
    Refused {
        /// Why.
        why: String,
    },
    /// The new image ran on trial, and gave up.
    Resumed {
        /// Why.
        why: String,
        /// What it printed.
        console: String,
    },
}

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// The server speaks other versions.
    Version {
        /// Lowest.
        min: u16,
        /// Highest.
        max: u16,
    },
    /// Not what is expected there.
    Garbled,
    /// No operator has signed it for this occasion.
    Signature {
        /// The key it is said to be signed with.
        key: KeyId,
        /// It is an operator's.
        known: bool,
    },
    /// Status is not for everybody.
    NoStatus,
    /// Another upload or switch is under way.
    Busy,
    /// There is no room for a bundle of that length.
    TooLarge {
        /// Its length, bytes.
        len: u64,
        /// Most, bytes.
        most: u64,
    },
    /// The bundle is not sound, or may not take the image's place.
    Bundle {
        /// Why.
        why: String,
    },
    /// There is not enough free memory for the image.
    Memory {
        /// What it needs, bytes.
        need: u64,
        /// What is free, bytes.
        free: u64,
    },
    /// The data is not what comes next.
    OutOfOrder {
        /// So many bytes are there.
        expected: u64,
    },
    /// Nothing, or something else, was uploaded, or not all of it.
    NotUploaded,
    /// What was uploaded has another digest.
    Digest,
    /// There were too many switches lately.
    TooOften {
        /// Until the next one, ms.
        wait_ms: u64,
    },
    /// Another image runs than the one that was named.
    OtherImage {
        /// That one.
        running: BuildId,
    },
    /// There is no image to go back to.
    NoWayBack,
    /// It took too long.
    TooSlow,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Version { min, max } => write!(
                f,
                "the domain speaks versions {min} to {max} of the protocol, this segue {VERSION}: \
                 use the segue that its image was built with"
            ),
            Self::Garbled => f.write_str("the domain did not understand what it was sent"),
            Self::Signature { key, known: false } => write!(
                f,
                "key {key} is no operator's there: sign with one that is, or build its public key \
                 into the image"
            ),
            Self::Signature { key, known: true } => write!(
                f,
                "the signature of operator {key} is not good for this domain, generation and nonce: \
                 try again"
            ),
            Self::NoStatus => f.write_str("the domain does not tell its status"),
            Self::Busy => {
                f.write_str("another upload or switch is under way there; try again later")
            }
            Self::TooLarge { len, most } => write!(
                f,
                "the bundle has {len} bytes, and the image has reserved {most} for one \
                 (Config::max_bundle)"
            ),
            Self::Bundle { why } => write!(f, "the bundle is not taken: {why}"),
            Self::Memory { need, free } => write!(
                f,
                "the new image needs {} KiB and {} KiB are free: give the domain more memory",
                need / 1024,
                free / 1024
            ),
            Self::OutOfOrder { expected } => {
                write!(
                    f,
                    "the domain expects the bundle's bytes from {expected} on"
                )
            }
            Self::NotUploaded => f.write_str("the bundle is not there, or not all of it"),
            Self::Digest => f.write_str("what arrived is not what was signed: send it again"),
            Self::TooOften { wait_ms } => write!(
                f,
                "too many switches lately; try again in {} s",
                wait_ms.div_ceil(1000)
            ),
            Self::OtherImage { running } => write!(f, "the domain runs build {running}"),
            Self::NoWayBack => f.write_str(
                "there is no image to go back to: the probation is over, or none was kept",
            ),
            Self::TooSlow => f.write_str("it took too long, and the domain has given up waiting"),
        }
    }
}

impl std::error::Error for Refused {}

impl Answer {
    /// Reads a frame.
    ///
    /// # Errors
    /// It is no answer.
    pub fn decode(frame: &[u8]) -> Result<Self, Garbled> {
        rmp_serde::from_slice(frame).map_err(|_| Garbled)
    }

    /// The frame, its length before it; `None` if it were too long.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 4];
        rmp_serde::encode::write_named(&mut frame, self).ok()?;
        let (head, body) = frame.split_first_chunk_mut::<4>()?;
        if body.len() > MAX_ANSWER {
            return None;
        }
        *head = u32::try_from(body.len()).ok()?.to_le_bytes();
        Some(frame)
    }
}
