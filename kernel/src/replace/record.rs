//! The handover record: what the old image tells the new one. Part of the handover ABI (I12).
//!
//! ```text
//! 0   magic "SEGUEREC"   8   version u32   12   length in bytes u32   16   CRC-64 of what follows
//! 24  entries: kind u32, length in bytes u32, payload, padding to 8
//! ```
//! Little-endian. A reader skips kinds it does not know; a kind it needs and does not find is an
//! error. Plain code over bytes: the host tests it. The digest is against damage, not against
//! malice: who can write the record can do anything; and it is computed in the blackout. So the
//! record is small whatever the app hands over: it only says where named values (`values.rs`, with
//! digests of their own) and preserved regions (`region.rs`) are.

use crc::{CRC_64_XZ, Crc};

const MAGIC: [u8; 8] = *b"SEGUEREC";
/// Version of the layout; entries may be added without a new one.
pub const VERSION: u32 = 1;
const HEADER: usize = 24;
/// Longest record, in bytes.
pub const MAX_LEN: usize = 16 << 20;
/// Extents in the map of what is kept.
pub const MAX_KEPT: usize = 64;
/// Of all that is handed over.
pub(crate) static DIGEST: Crc<u64> = Crc::<u64>::new(&CRC_64_XZ);

/// What an entry is about. Numbers are never used again for something else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Words: the new image's generation.
    Generation = 1,
    /// Words: start and end frame of each extent of RAM.
    Ram = 2,
    /// Words: start and end frame of each extent that stays in use, the new image's included.
    Kept = 3,
    /// Words: Xen's version, VMMCALL used, an HVM machine's devices are there.
    Platform = 4,
    /// Words: shared_info's frame, the hole's frame or 0, carve range (start, end), frames used.
    SharedInfo = 5,
    /// Words: the park port, then timer and wake-up port of each vCPU.
    Ports = 6,
    /// Words: APIC id of each vCPU.
    ApicIds = 7,
    /// Words: frame and port of the console.
    Console = 8,
    /// Bytes: the command line.
    CommandLine = 9,
    /// Words: address and length in bytes of each module.
    Modules = 10,
    /// Words: bytes for XSAVE, XCR0, x2APIC.
    Features = 11,
    /// Words: start and end frame of the park block, the SIPI frame, version of the layout.
    Park = 12,
    /// Words: root of the page tables after commit, frames of the pool in use, the vCPU that
    /// runs the trial.
    Tables = 13,
    /// Words: start and end frame of the image's own memory, frames of its segments, vCPUs.
    Image = 14,
    /// Words: start and end frame of what is only for the trial (this record, its tables).
    Handover = 15,
    /// Words: address of the RSDP or 0.
    Rsdp = 16,
    /// Words: the id of Xen's watchdog, to be switched off after the commit.
    Watchdog = 18,
    /// Words: each frame of the grant table, in order.
    GrantTable = 19,
    /// Words: start and end frame of each extent that other domains may use.
    Granted = 20,
    /// Words: frame and port of xenstore's ring, which is between two messages.
    Xenstore = 21,
    /// Words: ports of devices, to be closed after the commit.
    DevicePorts = 22,
    /// Words: start and end frame of the block of named values, its length in bytes.
    Values = 23,
    /// Words: start and end frame of each preserved region.
    Regions = 24,
    /// Words: the schema of named values, set by the app. In their block only.
    Schema = 25,
    /// Bytes: a named value's offset, length and digest, then its name. In their block only.
    Value = 26,
    /// Words: where the way back stands (`placed.rs`).
    Fallback = 27,
    /// Words: how long the way back is kept, in ns; whether the new image has to be confirmed.
    Probation = 28,
    /// Bytes: the command line of the way back.
    FallbackCommandLine = 29,
    /// Bytes: the image before has crashed, and why.
    Crashed = 30,
    /// Words, after a crash: bytes that are missing of the request that was being sent to xenstore,
    /// and of the reply that was being read.
    XenstoreTorn = 31,
    /// Words: start and end frame of the network's state, which goes on in place.
    Network = 32,
    /// Words, seven for each device that goes on: start and end frame of its block, how many frames
    /// at the block's end are never granted, what kind of device it is, the version of what is in
    /// them, its ports or 0 (`devices/handed.rs`). Their blocks and ports are in `Granted` and
    /// `DevicePorts`, too, for images that close them.
    Devices = 33,
    /// Words: each transaction that is open in xenstore. If this is there, the connection goes on
    /// with its watches.
    Transactions = 34,
    /// Words: start and end frame of the text and constants of the image before, which are free
    /// after the commit.
    Code = 35,
    /// Words: start and end frame of what the trial may take for its heap: free otherwise.
    Room = 36,
    /// Words: where to run into a fault; only test builds write it or look at it.
    Test = 17,
}

/// Why a record cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordError {
    /// No magic number: not a record.
    BadMagic,
    /// A layout this image does not know.
    Version(u32),
    /// It says it is longer than there is room.
    Length,
    /// The digest does not match.
    Digest,
    /// An entry that is needed is not there, or too short.
    Missing(Kind),
    /// An entry's numbers make no sense.
    Bad(Kind),
}

impl core::fmt::Display for RecordError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::BadMagic => f.write_str("no handover record"),
            Self::Version(v) => write!(
                f,
                "handover record of version {v}, this image has {VERSION}"
            ),
            Self::Length => f.write_str("handover record with a bad length"),
            Self::Digest => f.write_str("handover record with a bad digest"),
            Self::Missing(k) => write!(f, "handover record without {k:?}"),
            Self::Bad(k) => write!(f, "handover record with a bad {k:?}"),
        }
    }
}

/// The record has no room for an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NoRoom;

/// Writes a record.
#[derive(Debug)]
pub struct Writer<'a> {
    bytes: &'a mut [u8],
    len: usize,
}

impl<'a> Writer<'a> {
    /// Into `bytes`.
    #[must_use]
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, len: HEADER }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), NoRoom> {
        let end = self.len.checked_add(bytes.len()).ok_or(NoRoom)?;
        self.bytes
            .get_mut(self.len..end)
            .ok_or(NoRoom)?
            .copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }

    /// A record of these very bytes, whatever they are; gives its length.
    ///
    /// # Errors
    /// No room.
    #[cfg(feature = "fuzzing")]
    pub fn raw(mut self, entries: &[u8]) -> Result<usize, NoRoom> {
        self.put(entries)?;
        self.finish()
    }

    /// Adds an entry of bytes.
    ///
    /// # Errors
    /// No room.
    pub fn bytes(&mut self, kind: Kind, payload: &[u8]) -> Result<(), NoRoom> {
        let len = u32::try_from(payload.len()).map_err(|_| NoRoom)?;
        self.put(&(kind as u32).to_le_bytes())?;
        self.put(&len.to_le_bytes())?;
        self.put(payload)?;
        let padding = payload.len().next_multiple_of(8) - payload.len();
        self.put(&[0; 8][..padding])
    }

    /// Adds an entry of words.
    ///
    /// # Errors
    /// No room.
    pub fn words(&mut self, kind: Kind, words: impl Iterator<Item = u64>) -> Result<(), NoRoom> {
        let start = self.len;
        self.put(&(kind as u32).to_le_bytes())?;
        self.put(&[0; 4])?;
        for word in words {
            self.put(&word.to_le_bytes())?;
        }
        let len = u32::try_from(self.len - start - 8).map_err(|_| NoRoom)?;
        self.bytes[start + 4..start + 8].copy_from_slice(&len.to_le_bytes());
        Ok(())
    }

    /// Writes the header; gives the record's length.
    ///
    /// # Errors
    /// No room.
    pub fn finish(self) -> Result<usize, NoRoom> {
        let len = u32::try_from(self.len).map_err(|_| NoRoom)?;
        let digest = DIGEST.checksum(self.bytes.get(HEADER..self.len).ok_or(NoRoom)?);
        self.bytes[..8].copy_from_slice(&MAGIC);
        self.bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        self.bytes[12..16].copy_from_slice(&len.to_le_bytes());
        self.bytes[16..24].copy_from_slice(&digest.to_le_bytes());
        Ok(self.len)
    }
}

/// A record whose digest is right.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    entries: &'a [u8],
}

/// What a record takes with these payloads, in bytes.
#[must_use]
pub fn len_with(payloads: impl Iterator<Item = usize>) -> usize {
    payloads.fold(HEADER, |sum, len| {
        sum.saturating_add(8)
            .saturating_add(len.checked_next_multiple_of(8).unwrap_or(usize::MAX))
    })
}

impl<'a> Record<'a> {
    /// How long the record is that begins so, in bytes.
    ///
    /// # Errors
    /// There is no such record.
    pub fn len_of(start: &[u8]) -> Result<usize, RecordError> {
        let header = start.first_chunk::<HEADER>().ok_or(RecordError::Length)?;
        if header[..8] != MAGIC {
            return Err(RecordError::BadMagic);
        }
        let [.., a, b, c, d, _, _, _, _, _, _, _, _] = *header;
        let len = u32::from_le_bytes([a, b, c, d]) as usize;
        if (HEADER..=MAX_LEN).contains(&len) {
            Ok(len)
        } else {
            Err(RecordError::Length)
        }
    }

    /// Its length, in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it has a header")]
    pub const fn len(&self) -> usize {
        HEADER + self.entries.len()
    }

    /// Checks header and digest.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let header = bytes.first_chunk::<HEADER>().ok_or(RecordError::Length)?;
        if header[..8] != MAGIC {
            return Err(RecordError::BadMagic);
        }
        let word = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        if word(8) != VERSION {
            return Err(RecordError::Version(word(8)));
        }
        let entries = bytes
            .get(HEADER..word(12) as usize)
            .ok_or(RecordError::Length)?;
        if DIGEST.checksum(entries).to_le_bytes() != header[16..24] {
            return Err(RecordError::Digest);
        }
        Ok(Self { entries })
    }

    /// The payload of the first entry of a kind.
    ///
    /// # Errors
    /// There is none.
    #[inline(never)]
    pub fn bytes(&self, kind: Kind) -> Result<&'a [u8], RecordError> {
        self.all(kind).next().ok_or(RecordError::Missing(kind))
    }

    /// The payloads of all entries of a kind, in order.
    pub fn all(&self, kind: Kind) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut rest = self.entries;
        core::iter::from_fn(move || {
            loop {
                let (head, tail) = rest.split_first_chunk::<8>()?;
                let [k0, k1, k2, k3, l0, l1, l2, l3] = *head;
                let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
                let payload = tail.get(..len);
                rest = tail.get(len.next_multiple_of(8)..).unwrap_or_default();
                if u32::from_le_bytes([k0, k1, k2, k3]) == kind as u32 {
                    return payload;
                }
            }
        })
    }

    /// The words of an entry.
    ///
    /// # Errors
    /// There is none.
    pub fn words(&self, kind: Kind) -> Result<impl Iterator<Item = u64> + use<'a>, RecordError> {
        let (words, _) = self.bytes(kind)?.as_chunks::<8>();
        Ok(words.iter().map(|w| u64::from_le_bytes(*w)))
    }

    /// The first `N` words of an entry; a newer writer may have added some.
    ///
    /// # Errors
    /// There are not as many.
    pub fn array<const N: usize>(&self, kind: Kind) -> Result<[u64; N], RecordError> {
        let mut out = [0; N];
        self.fill(kind, &mut out)?;
        Ok(out)
    }

    /// Once for all lengths: in the blackout all code is run for the first time, so less is better.
    #[inline(never)]
    fn fill(&self, kind: Kind, out: &mut [u64]) -> Result<(), RecordError> {
        let (words, _) = self.bytes(kind)?.as_chunks::<8>();
        let words = words.get(..out.len()).ok_or(RecordError::Missing(kind))?;
        for (to, word) in out.iter_mut().zip(words) {
            *to = u64::from_le_bytes(*word);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut bytes = vec![0; 512];
        let mut w = Writer::new(&mut bytes);
        w.words(Kind::Ram, [1, 2, 3, 4].into_iter()).unwrap();
        w.bytes(Kind::CommandLine, b"a -- b").unwrap();
        w.words(Kind::Generation, [7].into_iter()).unwrap();
        w.finish().unwrap();
        bytes
    }

    #[test]
    fn reads_back_equal() {
        let bytes = sample();
        let r = Record::parse(&bytes).unwrap();
        assert_eq!(
            r.words(Kind::Ram).unwrap().collect::<Vec<_>>(),
            [1, 2, 3, 4]
        );
        assert_eq!(r.bytes(Kind::CommandLine).unwrap(), b"a -- b");
        assert_eq!(r.array::<1>(Kind::Generation).unwrap(), [7]);
        assert_eq!(
            r.array::<2>(Kind::Generation),
            Err(RecordError::Missing(Kind::Generation))
        );
        assert_eq!(r.bytes(Kind::Park), Err(RecordError::Missing(Kind::Park)));
    }

    /// An entry of a kind that no reader knows, written before the others and between them.
    #[test]
    fn unknown_entries_are_skipped() {
        let mut bytes = vec![0; 512];
        let mut w = Writer::new(&mut bytes);
        for (n, word) in [7u64, 8].into_iter().enumerate() {
            let at = w.len;
            w.bytes(Kind::Test, b"of another time").unwrap();
            w.bytes[at..at + 4].copy_from_slice(&(9000 + n as u32).to_le_bytes());
            w.words(Kind::Generation, [word].into_iter()).unwrap();
        }
        let len = w.finish().unwrap();
        let r = Record::parse(&bytes).unwrap();
        assert_eq!((len, r.len()), (Record::len_of(&bytes).unwrap(), len));
        assert_eq!(len, len_with([15, 8, 15, 8].into_iter()));
        assert_eq!(r.array::<1>(Kind::Generation).unwrap(), [7]);
        assert_eq!(r.all(Kind::Generation).count(), 2);
        assert_eq!(r.bytes(Kind::Test), Err(RecordError::Missing(Kind::Test)));
    }

    #[test]
    fn a_full_record_is_an_error() {
        let mut bytes = [0; 60];
        let mut w = Writer::new(&mut bytes);
        assert_eq!(w.words(Kind::Ram, 0..9), Err(NoRoom));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(at in 0usize..512, bit in 0u8..8) {
            let mut bytes = sample();
            let used = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
            bytes[at % used] ^= 1 << bit;
            prop_assert!(Record::parse(&bytes).is_err());
        }

        #[test]
        fn any_bytes_behind_a_right_digest_are_read_without_panic(
            entries in proptest::collection::vec(any::<u8>(), 0..300)
        ) {
            let mut bytes = vec![0; HEADER];
            bytes.extend(&entries);
            let len = bytes.len();
            let w = Writer { bytes: &mut bytes, len };
            w.finish().unwrap();
            let r = Record::parse(&bytes).unwrap();
            for kind in [Kind::Generation, Kind::Ram, Kind::CommandLine, Kind::Modules] {
                let _ = (r.bytes(kind), r.array::<3>(kind), r.all(kind).count());
            }
        }
    }
}
