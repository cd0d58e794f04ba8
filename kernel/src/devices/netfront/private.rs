//! What the next image has to know of a network device and is not in its rings. It lies in the last
//! frame of the device's block, which is never granted (I9, XSA-403): the backend cannot read it,
//! let alone change it. Part of the handover ABI (I12).
//!
//! ```text
//! 0    magic "SEGUENIC"   8   version u32   12   0 u32   16   CRC-64 of the fixed part
//! 24   CRC-64 of the moving part
//! 32   fixed part, written when the device is connected: vif u32, backend u16, mtu u16,
//!      MAC 6 bytes, features u16, tx port u32, rx port u32, grant of each frame u32
//! 2112 moving part, written when the device comes to rest: at rest u32, flags u32, tx ring: written,
//!      published, consumed, extras u32, pages out 32 bytes, errors u64, rx ring: written, published,
//!      consumed, partial u32, errors u64
//! ```
//! Little-endian. Plain code over bytes.

use super::ring::{PAGE, RxState, SLOTS, TxFeatures, TxState};
use crate::replace::record::DIGEST;
use core::fmt;

/// Version of the layout.
pub const VERSION: u32 = 1;
/// Frames of a block that are granted: two rings, and a page for each slot of either.
pub const GRANTED: usize = 2 + 2 * SLOTS as usize;

const MAGIC: u64 = u64::from_le_bytes(*b"SEGUENIC");
const FIXED_AT: usize = 32;
const FIXED_LEN: usize = 24 + 4 * GRANTED;
/// Where the moving part begins.
pub const MOVING_AT: usize = FIXED_AT + FIXED_LEN;
const MOVING_LEN: usize = 8 + 16 + SLOTS as usize / 8 + 8 + 16 + 8;

const _: () = assert!(MOVING_AT == 2112 && MOVING_AT + MOVING_LEN <= PAGE);

/// What says in the moving part that the device is at rest.
const AT_REST: u32 = 1;

const SG: u16 = 1;
const GSO4: u16 = 2;
const GSO6: u16 = 4;
const CSUM4: u16 = 8;
const CSUM6: u16 = 16;
const SPLIT: u16 = 32;

const BLOCKED: u32 = 1;
const FAILED: u32 = 2;

/// The frame.
pub type Frame = [u8; PAGE];

/// What stays as long as a device is connected.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fixed {
    /// Number of the device: N of `device/vif/N`.
    pub vif: u32,
    /// The domain it lives in.
    pub backend: u16,
    /// Longest IP packet, in bytes.
    pub mtu: u16,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// What it does for frames to send.
    pub tx: TxFeatures,
    /// Checksums may be left blank over IPv4.
    pub csum4: bool,
    /// Checksums may be left blank over IPv6.
    pub csum6: bool,
    /// The port of the tx ring.
    pub tx_port: u32,
    /// The port of the rx ring: the same, unless the device has one for each.
    pub rx_port: u32,
    /// The grant of each frame.
    pub grefs: [u32; GRANTED],
}

/// What changes with each frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Moving {
    /// Our side of the tx ring.
    pub tx: TxState,
    /// Our side of the rx ring.
    pub rx: RxState,
    /// Somebody waits for room to send.
    pub blocked: bool,
    /// The device is not to be used any more.
    pub failed: bool,
}

/// Why a frame can't be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Damage {
    /// It is none of these.
    Magic,
    /// A layout that this image does not know.
    Version(u32),
    /// The digest of the fixed part does not match.
    Fixed,
    /// The device is in use: it was not brought to rest.
    InUse,
    /// The digest of the moving part does not match.
    Moving,
    /// The rings can't be so.
    Rings,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("no data of a network device"),
            Self::Version(v) => {
                write!(f, "data of version {v}, this image has {VERSION}")
            }
            Self::Fixed | Self::Moving => f.write_str("its data has a bad digest"),
            Self::InUse => f.write_str("it was not brought to rest"),
            Self::Rings => f.write_str("its rings can't be as its data says"),
        }
    }
}

struct Writer<'a>(&'a mut [u8]);

impl Writer<'_> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        if let Some((to, rest)) = core::mem::take(&mut self.0).split_first_chunk_mut() {
            *to = bytes;
            self.0 = rest;
        }
    }

    fn words(&mut self, words: impl IntoIterator<Item = u32>) {
        words.into_iter().for_each(|w| self.put(w.to_le_bytes()));
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((bytes, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }
}

fn header(frame: &Frame, at: usize) -> u64 {
    Reader(frame.get(at..).unwrap_or_default()).u64()
}

/// A part of the frame, and where its digest is.
const FIXED: (usize, usize, usize) = (FIXED_AT, FIXED_LEN, 16);
const MOVING: (usize, usize, usize) = (MOVING_AT, MOVING_LEN, 24);

fn write(frame: &mut Frame, (at, len, digest): (usize, usize, usize), f: impl FnOnce(Writer<'_>)) {
    let Some(part) = frame.get_mut(at..at + len) else {
        return;
    };
    part.fill(0);
    f(Writer(part));
    let crc = DIGEST.checksum(part);
    Writer(&mut frame[digest..]).put(crc.to_le_bytes());
}

fn part(frame: &Frame, (at, len, digest): (usize, usize, usize)) -> Option<Reader<'_>> {
    let part = frame.get(at..at + len)?;
    (DIGEST.checksum(part) == header(frame, digest)).then_some(Reader(part))
}

/// Begins a frame: the device is connected.
pub fn connect(frame: &mut Frame, fixed: &Fixed) {
    frame.fill(0);
    let mut w = Writer(frame);
    w.put(MAGIC.to_le_bytes());
    w.words([VERSION]);
    write(frame, FIXED, |mut w| {
        let features = [
            (fixed.tx.sg, SG),
            (fixed.tx.gso4, GSO4),
            (fixed.tx.gso6, GSO6),
            (fixed.csum4, CSUM4),
            (fixed.csum6, CSUM6),
            (fixed.tx_port != fixed.rx_port, SPLIT),
        ];
        let features = features.iter().filter(|(has, _)| *has);
        w.words([fixed.vif]);
        w.put(fixed.backend.to_le_bytes());
        w.put(fixed.mtu.to_le_bytes());
        w.put(fixed.mac);
        w.put(features.fold(0, |all, (_, bit)| all | bit).to_le_bytes());
        w.words([fixed.tx_port, fixed.rx_port]);
        w.words(fixed.grefs);
    });
}

/// The device is at rest.
pub fn rest(frame: &mut Frame, moving: &Moving) {
    write(frame, MOVING, |mut w| {
        let flags = [(moving.blocked, BLOCKED), (moving.failed, FAILED)];
        let flags = flags.iter().filter(|(is, _)| *is);
        let flags = flags.fold(0, |all, (_, bit)| all | bit);
        let (tx, rx) = (&moving.tx, &moving.rx);
        let at = tx.indices;
        w.words([
            AT_REST,
            flags,
            at.written,
            at.published,
            at.consumed,
            tx.extras,
        ]);
        tx.out.iter().for_each(|word| w.put(word.to_le_bytes()));
        w.put(tx.errors.to_le_bytes());
        let at = rx.indices;
        w.words([at.written, at.published, at.consumed, rx.partial]);
        w.put(rx.errors.to_le_bytes());
    });
}

/// The device is in use again: what the moving part says is not so any more.
pub fn wake(frame: &mut Frame) {
    Writer(&mut frame[MOVING_AT..]).words([0]);
}

/// What stays as long as the device is connected.
///
/// # Errors
/// See [`Damage`].
pub fn fixed(frame: &Frame) -> Result<Fixed, Damage> {
    if header(frame, 0) != MAGIC {
        return Err(Damage::Magic);
    }
    // With the reserved word.
    match header(frame, 8) {
        v if v == u64::from(VERSION) => {}
        v => return Err(Damage::Version(v as u32)),
    }
    let mut r = part(frame, FIXED).ok_or(Damage::Fixed)?;
    let (vif, backend, mtu, mac) = (r.u32(), r.u16(), r.u16(), r.take());
    let features = r.u16();
    let has = |bit| features & bit != 0;
    Ok(Fixed {
        vif,
        backend,
        mtu,
        mac,
        tx: TxFeatures {
            sg: has(SG),
            gso4: has(GSO4),
            gso6: has(GSO6),
        },
        csum4: has(CSUM4),
        csum6: has(CSUM6),
        tx_port: r.u32(),
        rx_port: r.u32(),
        grefs: core::array::from_fn(|_| r.u32()),
    })
}

/// How the device stands, at rest.
///
/// # Errors
/// See [`Damage`].
pub fn moving(frame: &Frame) -> Result<Moving, Damage> {
    let at_rest = Reader(frame.get(MOVING_AT..).unwrap_or_default()).u32();
    if at_rest != AT_REST {
        return Err(Damage::InUse);
    }
    let mut r = part(frame, MOVING).ok_or(Damage::Moving)?;
    let _ = r.u32();
    let mut moving = Moving::default();
    let flags = r.u32();
    moving.blocked = flags & BLOCKED != 0;
    moving.failed = flags & FAILED != 0;
    let (tx, rx) = (&mut moving.tx, &mut moving.rx);
    tx.indices.written = r.u32();
    tx.indices.published = r.u32();
    tx.indices.consumed = r.u32();
    tx.extras = r.u32();
    tx.out = core::array::from_fn(|_| r.u64());
    tx.errors = r.u64();
    rx.indices.written = r.u32();
    rx.indices.published = r.u32();
    rx.indices.consumed = r.u32();
    rx.partial = r.u32();
    rx.errors = r.u64();
    if !tx.is_sound() || !rx.is_sound() {
        return Err(Damage::Rings);
    }
    Ok(moving)
}

#[cfg(test)]
mod tests {
    use super::super::ring::Indices;
    use super::*;
    use proptest::prelude::*;

    fn a_device() -> impl Strategy<Value = (Fixed, Moving)> {
        let fixed = (
            any::<(u32, u16, u16, [u8; 6], u32)>(),
            any::<[bool; 6]>(),
            any::<u32>(),
        );
        let moving = (
            any::<[u64; 4]>(),
            any::<(u32, u64)>(),
            any::<(u32, u64, u32)>(),
            any::<[bool; 2]>(),
        );
        (fixed, moving).prop_map(|((a, has, port), (out, tx, rx, flags))| {
            let (vif, backend, mtu, mac, seed) = a;
            let fixed = Fixed {
                vif,
                backend,
                mtu,
                mac,
                tx: TxFeatures {
                    sg: has[0],
                    gso4: has[1],
                    gso6: has[2],
                },
                csum4: has[3],
                csum6: has[4],
                tx_port: port,
                rx_port: if has[5] { port ^ 1 } else { port },
                grefs: core::array::from_fn(|n| seed.wrapping_add(n as u32)),
            };
            let used: u32 = out.iter().map(|w| w.count_ones()).sum();
            let moving = Moving {
                tx: TxState {
                    indices: Indices {
                        written: tx.0.wrapping_add(used),
                        published: tx.0.wrapping_add(used / 2),
                        consumed: tx.0,
                    },
                    out,
                    extras: 0,
                    errors: tx.1,
                },
                rx: RxState {
                    indices: Indices {
                        written: rx.0.wrapping_add(SLOTS),
                        published: rx.0.wrapping_add(rx.2 % (SLOTS + 1)),
                        consumed: rx.0,
                    },
                    partial: rx.2 % (SLOTS + 1),
                    errors: rx.1,
                },
                blocked: flags[0],
                failed: flags[1],
            };
            (fixed, moving)
        })
    }

    proptest! {
        /// What is written is read again, and any damage to it is found.
        #[test]
        fn damage_is_found((f, m) in a_device(), at in 0usize..MOVING_AT + MOVING_LEN, bit in 0u8..8) {
            let mut frame = [0xa5; PAGE];
            connect(&mut frame, &f);
            prop_assert_eq!(moving(&frame), Err(Damage::InUse));
            rest(&mut frame, &m);
            prop_assert_eq!((fixed(&frame), moving(&frame)), (Ok(f.clone()), Ok(m)));
            frame[at] ^= 1 << bit;
            prop_assert!(fixed(&frame).is_err() || moving(&frame).is_err());
            frame[at] ^= 1 << bit;
            wake(&mut frame);
            prop_assert_eq!((fixed(&frame), moving(&frame)), (Ok(f), Err(Damage::InUse)));
        }

        /// Whatever stands there behind right digests is read without a panic, and makes sense or is
        /// refused.
        #[test]
        fn anything_is_read(bytes in proptest::collection::vec(any::<u8>(), FIXED_LEN + MOVING_LEN)) {
            let mut frame = [0; PAGE];
            prop_assert_eq!(fixed(&frame), Err(Damage::Magic));
            let mut w = Writer(&mut frame);
            w.put(MAGIC.to_le_bytes());
            w.words([VERSION]);
            let (one, other) = bytes.split_at(FIXED_LEN);
            write(&mut frame, FIXED, |w| w.0.copy_from_slice(one));
            write(&mut frame, MOVING, |mut w| {
                w.0.copy_from_slice(other);
                w.words([AT_REST]);
            });
            prop_assert!(fixed(&frame).is_ok());
            if let Ok(m) = moving(&frame) {
                prop_assert!(m.tx.is_sound() && m.rx.is_sound());
            }
        }
    }

    #[test]
    fn another_version_is_said_to_be_one() {
        let mut frame = [0; PAGE];
        let mut w = Writer(&mut frame);
        w.put(MAGIC.to_le_bytes());
        w.words([VERSION + 1]);
        assert_eq!(fixed(&frame), Err(Damage::Version(VERSION + 1)));
    }
}
