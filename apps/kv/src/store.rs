//! Keys, values, and when they expire.
//!
//! An expired value is gone for whoever asks, at once; [`Store::expire`] frees what nobody asks
//! for. The time is in ms since some start and given by the caller.

use indexmap::IndexMap;
use std::collections::BTreeMap;

/// What an entry is reckoned to cost beside its bytes.
const ENTRY: usize = 96;
/// What an expiry is reckoned to cost beside its key.
const EXPIRY: usize = 64;

/// A value. Integers are kept as such: counters are counted without text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Its decimal text is the value.
    Integer(i64),
    /// Any bytes.
    Bytes(Vec<u8>),
}

impl Value {
    /// From the bytes a client sends.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        crate::resp::integer(bytes).map_or_else(|| Self::Bytes(bytes.to_vec()), Self::Integer)
    }

    /// Its bytes.
    pub fn with_bytes<R>(&self, use_them: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Self::Integer(number) => use_them(itoa::Buffer::new().format(*number).as_bytes()),
            Self::Bytes(bytes) => use_them(bytes),
        }
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with_bytes(<[u8]>::len)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn cost(&self) -> usize {
        match self {
            Self::Integer(_) => 0,
            Self::Bytes(bytes) => bytes.capacity(),
        }
    }
}

/// When a value expires, and the number that makes it one of many at the same time.
type Expiry = (u64, u64);

#[derive(Debug)]
struct Entry {
    value: Value,
    expiry: Option<Expiry>,
}

/// All keys.
#[derive(Debug, Default)]
pub struct Store {
    /// In an order that changes only by moving the last into a place that gets free: [`Store::scan`]
    /// relies on that.
    entries: IndexMap<Box<[u8]>, Entry>,
    expiries: BTreeMap<Expiry, Box<[u8]>>,
    serial: u64,
    used: usize,
    expired: u64,
    now: u64,
}

impl Store {
    /// Sets the time, which must not go back.
    pub fn set_now(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// The time, in ms.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Number of keys, those expired but not freed among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of keys that expire.
    #[must_use]
    pub fn expiring(&self) -> usize {
        self.expiries.len()
    }

    /// Number of keys that have expired so far.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// Bytes used, as they are reckoned.
    #[must_use]
    pub fn used(&self) -> usize {
        self.used
    }

    /// The value of a key.
    pub fn get(&mut self, key: &[u8]) -> Option<&Value> {
        self.fresh(key)?;
        self.entries.get(key).map(|entry| &entry.value)
    }

    /// Frees the key if it has expired; `None` if there is no such key (any more).
    fn fresh(&mut self, key: &[u8]) -> Option<Option<u64>> {
        let expiry = self.entries.get(key)?.expiry;
        if expiry.is_some_and(|(at, _)| at <= self.now) {
            self.remove(key);
            self.expired += 1;
            return None;
        }
        Some(expiry.map(|(at, _)| at))
    }

    /// When a key expires: `None` if there is no such key, `Some(None)` if it does not expire.
    pub fn expiry(&mut self, key: &[u8]) -> Option<Option<u64>> {
        self.fresh(key)
    }

    /// Sets a key's value, and when it expires.
    pub fn set(&mut self, key: &[u8], value: Value, expires: Option<u64>) {
        self.used += value.cost();
        let old = match self.entries.get_mut(key) {
            Some(entry) => {
                self.used -= entry.value.cost();
                entry.value = value;
                entry.expiry
            }
            None => {
                self.used += ENTRY + key.len();
                let expiry = None;
                self.entries.insert(key.into(), Entry { value, expiry });
                None
            }
        };
        if old.map(|(at, _)| at) != expires {
            self.set_expiry(key, expires);
        }
    }

    /// Changes a key's value and leaves its expiry; says whether there is such a key.
    pub fn replace(&mut self, key: &[u8], value: Value) -> bool {
        let Some(expires) = self.fresh(key) else {
            return false;
        };
        self.set(key, value, expires);
        true
    }

    /// Adds to the end of a key's value, which is made if there is none; gives the new length.
    pub fn append(&mut self, key: &[u8], tail: &[u8]) -> usize {
        if self.fresh(key).is_none() {
            self.set(key, Value::new(tail), None);
            return tail.len();
        }
        let Some(entry) = self.entries.get_mut(key) else {
            return 0;
        };
        let before = entry.value.cost();
        let mut bytes = match std::mem::replace(&mut entry.value, Value::Integer(0)) {
            Value::Bytes(bytes) => bytes,
            number => number.with_bytes(<[u8]>::to_vec),
        };
        bytes.extend_from_slice(tail);
        let len = bytes.len();
        entry.value = Value::Bytes(bytes);
        self.used = self.used - before + entry.value.cost();
        len
    }

    /// Sets when a key expires, or that it does not; says whether there is such a key.
    pub fn set_expiry(&mut self, key: &[u8], expires: Option<u64>) -> bool {
        let Some((_, stored, entry)) = self.entries.get_full_mut(key) else {
            return false;
        };
        if let Some(old) = entry.expiry.take()
            && let Some(key) = self.expiries.remove(&old)
        {
            self.used -= EXPIRY + key.len();
        }
        if let Some(at) = expires {
            self.serial += 1;
            let expiry = (at, self.serial);
            entry.expiry = Some(expiry);
            self.expiries.insert(expiry, stored.clone());
            self.used += EXPIRY + stored.len();
        }
        true
    }

    /// Removes a key; says whether there was one.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        self.fresh(key).is_some() && self.remove(key).is_some()
    }

    /// Removes a key and gives its value.
    pub fn take(&mut self, key: &[u8]) -> Option<Value> {
        self.fresh(key)?;
        self.remove(key)
    }

    fn remove(&mut self, key: &[u8]) -> Option<Value> {
        let (stored, entry) = self.entries.swap_remove_entry(key)?;
        self.used -= ENTRY + stored.len() + entry.value.cost();
        if let Some(expiry) = entry.expiry
            && let Some(key) = self.expiries.remove(&expiry)
        {
            self.used -= EXPIRY + key.len();
        }
        Some(entry.value)
    }

    /// Frees at most `most` expired keys; gives when the next one expires.
    pub fn expire(&mut self, most: usize) -> Option<u64> {
        for _ in 0..most {
            let (&(at, _), key) = self.expiries.first_key_value()?;
            if at > self.now {
                return Some(at);
            }
            let key = key.clone();
            self.remove(&key);
            self.expired += 1;
        }
        self.expiries.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes all.
    pub fn clear(&mut self) {
        let (serial, expired, now) = (self.serial, self.expired, self.now);
        *self = Self {
            serial,
            expired,
            now,
            ..Self::default()
        };
    }

    /// All keys that have not expired.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let now = self.now;
        self.entries
            .iter()
            .filter(move |(_, entry)| entry.expiry.is_none_or(|(at, _)| at > now))
            .map(|(key, _)| &**key)
    }

    /// Some keys, and where to go on; 0 at the start and the end. A key that is there from the
    /// first call to the last is given, maybe more than once: entries are passed from the last to
    /// the first, and one that is moved is moved towards the first.
    pub fn scan(&self, cursor: u64, count: usize) -> (impl Iterator<Item = &[u8]>, u64) {
        let len = self.entries.len();
        let end = match usize::try_from(cursor) {
            Ok(0) => len,
            Ok(cursor) => cursor.min(len),
            Err(_) => len,
        };
        let start = end.saturating_sub(count.max(1));
        let now = self.now;
        let keys = self
            .entries
            .get_range(start..end)
            .into_iter()
            .flat_map(|range| range.iter().rev())
            .filter(move |(_, entry)| entry.expiry.is_none_or(|(at, _)| at > now))
            .map(|(key, _)| &**key);
        (keys, start as u64)
    }
}
