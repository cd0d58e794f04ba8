//! Named values: what an app tells the next image, as bytes the kernel does not look into.
//!
//! They lie in a block of frames of its own, one after the other, behind a directory in the form of
//! a [`Record`]: the schema, and of each value its place, length, digest and name. The old image
//! makes the block in prepare. The new one checks the directory when the app first asks, and a
//! value's digest when it is taken: nobody who does not ask pays, and nothing of it is work for the
//! blackout but what the app itself takes in its trial (I4).

use crate::replace::record::{DIGEST, Kind, NoRoom, Record, RecordError, Writer, len_with};
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

/// Most values.
pub const MAX_VALUES: usize = 1024;
/// Longest name, in bytes.
pub const MAX_NAME: usize = 64;
/// Most bytes of a block, its directory among them.
pub const MAX_BYTES: usize = 16 << 20;

/// In a directory's entry, before the name: offset, length, digest.
const PLACE: usize = 24;

/// Why a value can't be handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutError {
    /// The name is empty or longer than [`MAX_NAME`].
    Name,
    /// There is a value of this name.
    Twice,
    /// More than [`MAX_VALUES`] values or [`MAX_BYTES`] bytes.
    TooMuch,
}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name => write!(f, "a value's name has 1 to {MAX_NAME} bytes"),
            Self::Twice => f.write_str("two values of one name"),
            Self::TooMuch => write!(
                f,
                "more than {MAX_VALUES} values or {} MiB; preserved regions are for that",
                MAX_BYTES >> 20
            ),
        }
    }
}

impl core::error::Error for PutError {}

/// Values on their way out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    schema: u32,
    values: Vec<(String, Vec<u8>)>,
    too_much: bool,
}

impl Values {
    /// Sets the schema: the app's number for what its values mean.
    pub fn set_schema(&mut self, schema: u32) {
        self.schema = schema;
    }

    /// Adds a value.
    ///
    /// # Errors
    /// See [`PutError`]: it is not added.
    pub fn put(&mut self, name: &str, bytes: Vec<u8>) -> Result<(), PutError> {
        if !(1..=MAX_NAME).contains(&name.len()) {
            return Err(PutError::Name);
        }
        if self.values.iter().any(|(n, _)| n == name) {
            return Err(PutError::Twice);
        }
        self.values.push((name.into(), bytes));
        if self.values.len() > MAX_VALUES || self.len() > MAX_BYTES {
            self.values.pop();
            self.too_much = true;
            return Err(PutError::TooMuch);
        }
        Ok(())
    }

    /// Whether there is nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.values.is_empty() && self.schema == 0
    }

    /// Whether something did not fit.
    #[must_use]
    pub const fn overflowed(&self) -> bool {
        self.too_much
    }

    fn directory_len(&self) -> usize {
        let entries = self.values.iter().map(|(name, _)| PLACE + name.len());
        len_with([8].into_iter().chain(entries))
    }

    /// Bytes that the block takes.
    #[must_use]
    pub fn len(&self) -> usize {
        let values = self.values.iter().map(|(_, bytes)| bytes.len());
        values.fold(self.directory_len(), |sum, len| {
            sum.saturating_add(len.checked_next_multiple_of(8).unwrap_or(usize::MAX))
        })
    }

    /// Writes the block, of [`len`](Self::len) bytes.
    ///
    /// # Errors
    /// It is shorter.
    pub fn write(&self, block: &mut [u8]) -> Result<(), NoRoom> {
        let split = block.split_at_mut_checked(self.directory_len());
        let (directory, mut rest) = split.ok_or(NoRoom)?;
        let mut offset = directory.len() as u64;
        let mut w = Writer::new(directory);
        w.words(Kind::Schema, [u64::from(self.schema)].into_iter())?;
        for (name, bytes) in &self.values {
            let mut entry = [0; PLACE + MAX_NAME];
            let words = [offset, bytes.len() as u64, DIGEST.checksum(bytes)];
            for (to, word) in entry.as_chunks_mut::<8>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
            let end = PLACE + name.len();
            let to = entry.get_mut(PLACE..end).ok_or(NoRoom)?;
            to.copy_from_slice(name.as_bytes());
            w.bytes(Kind::Value, entry.get(..end).ok_or(NoRoom)?)?;
            let padded = bytes.len().checked_next_multiple_of(8).ok_or(NoRoom)?;
            let (to, behind) = rest.split_at_mut_checked(padded).ok_or(NoRoom)?;
            let (to, padding) = to.split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            padding.fill(0);
            rest = behind;
            offset += padded as u64;
        }
        w.finish().map(drop)
    }
}

/// Why a value can't be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ValueError {
    /// There is none of this name.
    Missing,
    /// Its digest does not match, or it lies outside the block.
    Damaged,
}

/// Values that have come: a directory whose digest is right.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    directory: Record<'a>,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// Checks the directory.
    ///
    /// # Errors
    /// See [`RecordError`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, RecordError> {
        let directory = Record::parse(bytes)?;
        Ok(Self { directory, bytes })
    }

    /// The schema that the app before has set; 0 if it has set none.
    #[must_use]
    pub fn schema(&self) -> u32 {
        let words = self.directory.array::<1>(Kind::Schema);
        words.map_or(0, |[schema]| schema as u32)
    }

    fn entries(&self) -> impl Iterator<Item = ([u64; 3], &'a str)> + use<'a> {
        self.directory.all(Kind::Value).filter_map(|entry| {
            let (place, name) = entry.split_first_chunk::<PLACE>()?;
            let mut words = [0; 3];
            for (word, bytes) in words.iter_mut().zip(place.as_chunks::<8>().0) {
                *word = u64::from_le_bytes(*bytes);
            }
            Some((words, core::str::from_utf8(name).ok()?))
        })
    }

    /// The names, in the order they were put.
    pub fn names(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.entries().map(|(_, name)| name)
    }

    /// A value's bytes. Its digest is made anew: that takes as long as it is large.
    ///
    /// # Errors
    /// See [`ValueError`].
    pub fn get(&self, name: &str) -> Result<&'a [u8], ValueError> {
        let mut entries = self.entries();
        let found = entries.find(|(_, n)| *n == name);
        let ([offset, len, digest], _) = found.ok_or(ValueError::Missing)?;
        let range = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(len).ok()?)?;
            self.bytes.get(start..end)
        });
        range
            .filter(|bytes| DIGEST.checksum(bytes) == digest)
            .ok_or(ValueError::Damaged)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;

    fn block(values: &Values) -> Vec<u8> {
        let mut bytes = vec![0xee; values.len()];
        values.write(&mut bytes).unwrap();
        bytes
    }

    fn values(schema: u32, of: &std::collections::BTreeMap<String, Vec<u8>>) -> Values {
        let mut values = Values::default();
        values.set_schema(schema);
        for (name, bytes) in of {
            values.put(name, bytes.clone()).unwrap();
        }
        values
    }

    proptest! {
        #[test]
        fn what_is_put_is_found_again(
            schema: u32,
            of in btree_map("[a-zé/ -]{1,30}", vec(any::<u8>(), 0..200), 0..20),
        ) {
            let bytes = block(&values(schema, &of));
            let block = Block::parse(&bytes).unwrap();
            prop_assert_eq!(block.schema(), schema);
            prop_assert!(block.names().eq(of.keys()));
            for (name, value) in &of {
                prop_assert_eq!(block.get(name), Ok(&value[..]));
            }
            prop_assert_eq!(block.get("NONE"), Err(ValueError::Missing));
        }

        /// Somewhere the change is seen: by the directory's digest or by a value's.
        #[test]
        fn a_flipped_bit_is_refused(
            of in btree_map("[a-z]{1,9}", vec(any::<u8>(), 0..40), 1..5),
            at: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let good = block(&values(3, &of));
            let mut bad = good.clone();
            let at = at.index(bad.len());
            bad[at] ^= 1 << bit;
            if let Ok(block) = Block::parse(&bad) {
                let same = of.iter().all(|(name, value)| block.get(name) == Ok(&value[..]));
                let damaged = of.keys().any(|name| block.get(name) == Err(ValueError::Damaged));
                // Padding behind a value is nobody's.
                prop_assert!(same != damaged);
                let directory = Record::len_of(&good).unwrap();
                prop_assert!(at >= directory);
            }
        }

        #[test]
        fn places_outside_the_block_are_refused(offset: u64, len: u64) {
            let mut bytes = vec![0; 256];
            let mut w = Writer::new(&mut bytes);
            let mut entry = Vec::new();
            for word in [offset, len, DIGEST.checksum(b"")] {
                entry.extend(word.to_le_bytes());
            }
            entry.extend(b"name");
            w.bytes(Kind::Value, &entry).unwrap();
            w.finish().unwrap();
            let got = Block::parse(&bytes).unwrap().get("name");
            let empty = len == 0 && offset <= 256;
            prop_assert_eq!(got, if empty { Ok(&[][..]) } else { Err(ValueError::Damaged) });
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_remembered() {
        let mut values = Values::default();
        assert_eq!(values.put("", vec![]), Err(PutError::Name));
        assert_eq!(values.put(&"n".repeat(65), vec![]), Err(PutError::Name));
        values.put("a", vec![1]).unwrap();
        assert_eq!(values.put("a", vec![2]), Err(PutError::Twice));
        assert!(!values.overflowed());
        assert_eq!(values.put("b", vec![0; MAX_BYTES]), Err(PutError::TooMuch));
        assert!(values.overflowed());
        let bytes = block(&values);
        assert!(Block::parse(&bytes).unwrap().names().eq(["a"]));
    }
}
