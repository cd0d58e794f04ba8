//! Keys, values, and when they expire.
//!
//! All of it is in a preserved region, so the next image has it as it is: entries and values in
//! blocks of an [`arena`](crate::arena), found by a table of buckets; the order of entries, and a
//! heap of those that expire, in arrays.
//!
//! An expired value is gone for whoever asks, at once; [`Store::expire`] frees what nobody asks
//! for. The time is in ms since some start and given by the caller.

use crate::arena::{Arena, Array, Full, Header, size_for};
use segue::Plain;
use segue::preserved::{CreateError, Edit, OnTrial, Region, TakeError};
use siphasher::sip::SipHasher13;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher as _, Hasher as _};

/// What an entry is reckoned to cost beside its bytes.
const ENTRY: usize = 96;
/// What an expiry is reckoned to cost beside its key.
const EXPIRY: usize = 64;

/// The region's name, and the version of what is in it.
const NAME: &str = "kv";
const VERSION: u32 = 1;

/// A value. Integers are kept as such: counters are counted without text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    /// Its decimal text is the value.
    Integer(i64),
    /// Any bytes.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// From the bytes a client sends.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        crate::resp::integer(bytes).map_or(Self::Bytes(bytes), Self::Integer)
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
}

/// An entry's begin; its key is behind it.
#[derive(Clone, Copy, Plain)]
#[repr(C)]
struct Entry {
    hash: u64,
    /// When it expires, in ms; only if it is in the heap.
    expires: u64,
    /// An integer, or the block of the value.
    value: u64,
    /// Length of the value, or [`INTEGER`].
    len: u64,
    /// The next entry of the bucket; 0 for none.
    next: u32,
    /// Place in the order.
    order: u32,
    /// Place in the heap, plus one; 0 if it does not expire.
    heap: u32,
    key_len: u32,
}

/// Length of a value that is an integer.
const INTEGER: u64 = u64::MAX;
const KEY: usize = size_of::<Entry>();

/// All keys, in their region.
#[derive(Debug)]
pub struct Table {
    region: Region<[u8]>,
}

/// Why there is no table.
#[derive(Debug)]
pub enum TableError {
    /// There is no room for one.
    Create(CreateError),
    /// The one that was handed over can't be used.
    Take(TakeError),
    /// What is in it makes no sense.
    Damaged,
}

impl fmt::Display for TableError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create(e) => write!(f, "no table: {e}"),
            Self::Take(e) => write!(f, "the table that was handed over can't be used: {e}"),
            Self::Damaged => f.write_str("the table that was handed over is damaged"),
        }
    }
}

impl std::error::Error for TableError {}

impl Table {
    /// An empty table for `memory` bytes of keys and values. It takes a quarter more.
    ///
    /// # Errors
    /// See [`CreateError`].
    pub fn new(memory: usize) -> Result<Self, TableError> {
        let size = size_for(memory, ENTRY);
        let mut region = Region::create(NAME, VERSION, size).map_err(TableError::Create)?;
        let seed = [(); 2].map(|()| RandomState::new().build_hasher().finish());
        let edit = region.edit();
        let edit = edit.map_err(|OnTrial| TableError::Create(CreateError::OnTrial))?;
        Arena::new(edit).init(memory, ENTRY, seed);
        Ok(Self { region })
    }

    /// The table of the image before; `None` if it has handed over none. Takes no longer for a
    /// large one.
    ///
    /// # Errors
    /// There is one, and it can't be used.
    pub fn take() -> Result<Option<Self>, TableError> {
        let region = match Region::<[u8]>::take(NAME, VERSION) {
            Ok(region) => region,
            Err(TakeError::Missing) => return Ok(None),
            Err(e) => return Err(TableError::Take(e)),
        };
        if !Arena::<Edit<'_, [u8]>>::is_sound(region.get(), ENTRY) {
            return Err(TableError::Damaged);
        }
        Ok(Some(Self { region }))
    }

    /// Memory for keys and values, in bytes, and the number of keys: known on trial, too.
    #[must_use]
    pub fn size(&self) -> (usize, usize) {
        let books = Arena::<Edit<'_, [u8]>>::books(self.region.get());
        books.map_or((0, 0), |h| (h.memory as usize, h.len as usize))
    }

    /// The table to be read and changed: until the result is dropped no switch happens.
    ///
    /// # Panics
    /// On trial.
    pub fn open(&mut self) -> Store<'_> {
        match self.region.edit() {
            Ok(edit) => Store {
                arena: Arena::new(edit),
            },
            Err(OnTrial) => panic!("kv: the table is opened on trial"),
        }
    }

    /// The region, for tests that hand it over.
    #[must_use]
    pub fn into_region(self) -> Region<[u8]> {
        self.region
    }
}

/// The table, open.
#[derive(Debug)]
pub struct Store<'a> {
    arena: Arena<Edit<'a, [u8]>>,
}

impl Store<'_> {
    fn books(&self) -> &Header {
        self.arena.header()
    }

    fn books_mut(&mut self) -> &mut Header {
        self.arena.header_mut()
    }

    /// Sets the time, which must not go back.
    pub fn set_now(&mut self, now: u64) {
        let books = self.books_mut();
        books.now = books.now.max(now);
    }

    /// The time, in ms.
    #[must_use]
    pub fn now(&self) -> u64 {
        self.books().now
    }

    /// Number of keys, those expired but not freed among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.books().len as usize
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of keys that expire.
    #[must_use]
    pub fn expiring(&self) -> usize {
        self.books().expiring as usize
    }

    /// Number of keys that have expired so far.
    #[must_use]
    pub fn expired(&self) -> u64 {
        self.books().expired
    }

    /// Bytes used, as they are reckoned.
    #[must_use]
    pub fn used(&self) -> usize {
        self.books().used as usize
    }

    /// Bytes of keys and values that there is room for.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.books().memory as usize
    }

    fn entry(&self, at: u32) -> &Entry {
        self.arena.content(at)
    }

    fn entry_mut(&mut self, at: u32) -> &mut Entry {
        self.arena.content_mut(at)
    }

    fn key(&self, at: u32) -> &[u8] {
        let len = self.entry(at).key_len as usize;
        self.arena.read(at, KEY, len)
    }

    fn value(&self, at: u32) -> Value<'_> {
        let entry = self.entry(at);
        match entry.len {
            INTEGER => Value::Integer(entry.value.cast_signed()),
            len => Value::Bytes(self.arena.read(entry.value as u32, 0, len as usize)),
        }
    }

    /// What the value of an entry is reckoned to cost.
    fn cost(&self, at: u32) -> u64 {
        let entry = self.entry(at);
        match entry.len {
            INTEGER => 0,
            _ => self.arena.capacity(entry.value as u32) as u64,
        }
    }

    fn hash(&self, key: &[u8]) -> u64 {
        let [a, b] = self.books().seed;
        let mut hasher = SipHasher13::new_with_keys(a, b);
        hasher.write(key);
        hasher.finish()
    }

    fn bucket(&self, hash: u64) -> usize {
        (hash & (self.books().buckets - 1)) as usize
    }

    /// The entry of a key, expired or not.
    fn find(&self, key: &[u8]) -> Option<u32> {
        let hash = self.hash(key);
        let mut at = self.arena.array(Array::Buckets)[self.bucket(hash)];
        while at != 0 {
            let entry = self.entry(at);
            if entry.hash == hash && self.key(at) == key {
                return Some(at);
            }
            at = entry.next;
        }
        None
    }

    fn expires(&self, at: u32) -> Option<u64> {
        let entry = self.entry(at);
        (entry.heap != 0).then_some(entry.expires)
    }

    /// The entry of a key; frees it if it has expired.
    fn fresh(&mut self, key: &[u8]) -> Option<u32> {
        let at = self.find(key)?;
        if self
            .expires(at)
            .is_some_and(|expires| expires <= self.now())
        {
            self.remove(at);
            self.books_mut().expired += 1;
            return None;
        }
        Some(at)
    }

    /// The value of a key.
    pub fn get(&mut self, key: &[u8]) -> Option<Value<'_>> {
        let at = self.fresh(key)?;
        Some(self.value(at))
    }

    /// When a key expires: `None` if there is no such key, `Some(None)` if it does not expire.
    pub fn expiry(&mut self, key: &[u8]) -> Option<Option<u64>> {
        let at = self.fresh(key)?;
        Some(self.expires(at))
    }

    /// Sets a key's value, and when it expires.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn set(&mut self, key: &[u8], value: Value<'_>, expires: Option<u64>) -> Result<(), Full> {
        let (word, len) = self.store(value)?;
        let at = match self.find(key) {
            Some(at) => {
                self.free_value(at);
                at
            }
            None => match self.insert(key) {
                Ok(at) => at,
                Err(full) => {
                    if len != INTEGER {
                        self.arena.free(word as u32);
                    }
                    return Err(full);
                }
            },
        };
        self.put_value(at, word, len);
        self.set_expires(at, expires);
        Ok(())
    }

    /// A value as an entry has it.
    fn store(&mut self, value: Value<'_>) -> Result<(u64, u64), Full> {
        let bytes = match value {
            Value::Integer(number) => return Ok((number.cast_unsigned(), INTEGER)),
            Value::Bytes(bytes) => bytes,
        };
        let block = self.arena.alloc(bytes.len())?;
        self.arena
            .write(block, 0, bytes.len())
            .copy_from_slice(bytes);
        Ok((u64::from(block), bytes.len() as u64))
    }

    fn put_value(&mut self, at: u32, word: u64, len: u64) {
        let entry = self.entry_mut(at);
        (entry.value, entry.len) = (word, len);
        self.books_mut().used += self.cost(at);
    }

    fn free_value(&mut self, at: u32) {
        self.books_mut().used -= self.cost(at);
        let Entry { value, len, .. } = *self.entry(at);
        if len != INTEGER {
            self.arena.free(value as u32);
        }
    }

    /// A new entry, without a value.
    fn insert(&mut self, key: &[u8]) -> Result<u32, Full> {
        let (order, most) = (self.books().len, self.books().most);
        let key_len = u32::try_from(key.len()).map_err(|_| Full)?;
        if order >= most {
            return Err(Full);
        }
        let at = self.arena.alloc(KEY + key.len())?;
        let hash = self.hash(key);
        let bucket = self.bucket(hash);
        let first = &mut self.arena.array_mut(Array::Buckets)[bucket];
        let next = std::mem::replace(first, at);
        *self.entry_mut(at) = Entry {
            hash,
            expires: 0,
            value: 0,
            len: INTEGER,
            next,
            order: order as u32,
            heap: 0,
            key_len,
        };
        self.arena.write(at, KEY, key.len()).copy_from_slice(key);
        self.arena.array_mut(Array::Order)[order as usize] = at;
        let books = self.books_mut();
        books.len += 1;
        books.used += (ENTRY + key.len()) as u64;
        Ok(at)
    }

    /// Changes a key's value and leaves its expiry; says whether there is such a key.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn replace(&mut self, key: &[u8], value: Value<'_>) -> Result<bool, Full> {
        let Some(at) = self.fresh(key) else {
            return Ok(false);
        };
        let expires = self.expires(at);
        self.set(key, value, expires).map(|()| true)
    }

    /// Adds to the end of a key's value, which is made if there is none; gives the new length.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn append(&mut self, key: &[u8], tail: &[u8]) -> Result<usize, Full> {
        let Some(at) = self.fresh(key) else {
            self.set(key, Value::new(tail), None)?;
            return Ok(tail.len());
        };
        self.write(at, None, tail)
    }

    /// Writes over a key's value from a byte on, with zeros up to there if the value is shorter;
    /// the value is made if there is none. Gives its length after that.
    ///
    /// # Errors
    /// There is no room; nothing has changed.
    pub fn set_range(&mut self, key: &[u8], from: usize, bytes: &[u8]) -> Result<usize, Full> {
        if let Some(at) = self.fresh(key) {
            return self.write(at, Some(from), bytes);
        }
        let (empty, len) = self.store(Value::Bytes(b""))?;
        let made = self.insert(key).inspect_err(|Full| {
            self.arena.free(empty as u32);
        })?;
        self.put_value(made, empty, len);
        self.write(made, Some(from), bytes).inspect_err(|Full| {
            self.delete(key);
        })
    }

    /// Writes into an entry's value, at its end if not `from` a byte on.
    fn write(&mut self, at: u32, from: Option<usize>, bytes: &[u8]) -> Result<usize, Full> {
        let Entry { value, len, .. } = *self.entry(at);
        let mut text = itoa::Buffer::new();
        let (old, len) = match len {
            INTEGER => (None, text.format(value.cast_signed()).len()),
            len => (Some(value as u32), len as usize),
        };
        let from = from.unwrap_or(len);
        let new = from.checked_add(bytes.len()).ok_or(Full)?.max(len);
        let to = match old {
            Some(block) if self.arena.capacity(block) >= new => block,
            _ => {
                // Half as much again, so that many small ones don't copy it each time.
                let spare = if len == 0 { 0 } else { new / 2 };
                let larger = self.arena.alloc(new.saturating_add(spare));
                larger.or_else(|Full| self.arena.alloc(new))?
            }
        };
        match old {
            Some(block) if block == to => {}
            Some(block) => self.arena.copy(block, to, len),
            None => {
                let text = text.format(value.cast_signed()).as_bytes();
                self.arena.write(to, 0, len).copy_from_slice(text);
            }
        }
        if from > len {
            self.arena.write(to, len, from - len).fill(0);
        }
        let part = self.arena.write(to, from, bytes.len());
        part.copy_from_slice(bytes);
        let before = self.cost(at);
        if let Some(block) = old
            && block != to
        {
            self.arena.free(block);
        }
        self.books_mut().used -= before;
        self.put_value(at, u64::from(to), new as u64);
        Ok(new)
    }

    /// Sets when a key expires, or that it does not; says whether there is such a key.
    pub fn set_expiry(&mut self, key: &[u8], expires: Option<u64>) -> bool {
        let Some(at) = self.find(key) else {
            return false;
        };
        self.set_expires(at, expires);
        true
    }

    fn set_expires(&mut self, at: u32, expires: Option<u64>) {
        let cost = EXPIRY as u64 + u64::from(self.entry(at).key_len);
        let place = self.entry(at).heap;
        match (expires, place) {
            (None, 0) => {}
            (None, place) => {
                self.heap_remove(place - 1);
                self.books_mut().used -= cost;
            }
            (Some(expires), 0) => {
                let last = self.books().expiring as u32;
                self.entry_mut(at).expires = expires;
                self.books_mut().expiring += 1;
                self.books_mut().used += cost;
                self.heap_put(last, at);
                self.heap_up(last);
            }
            (Some(expires), place) => {
                self.entry_mut(at).expires = expires;
                let place = self.heap_up(place - 1);
                self.heap_down(place);
            }
        }
    }

    fn heap_at(&self, place: u32) -> u32 {
        self.arena.array(Array::Heap)[place as usize]
    }

    fn heap_put(&mut self, place: u32, at: u32) {
        self.arena.array_mut(Array::Heap)[place as usize] = at;
        self.entry_mut(at).heap = place + 1;
    }

    fn heap_swap(&mut self, a: u32, b: u32) {
        let (at_a, at_b) = (self.heap_at(a), self.heap_at(b));
        self.heap_put(a, at_b);
        self.heap_put(b, at_a);
    }

    fn heap_key(&self, place: u32) -> u64 {
        self.entry(self.heap_at(place)).expires
    }

    /// Moves an entry to where no later one is above it.
    fn heap_up(&mut self, mut place: u32) -> u32 {
        while place > 0 {
            let above = (place - 1) / 2;
            if self.heap_key(above) <= self.heap_key(place) {
                break;
            }
            self.heap_swap(above, place);
            place = above;
        }
        place
    }

    /// Moves an entry to where no earlier one is below it.
    fn heap_down(&mut self, mut place: u32) {
        let len = self.books().expiring as u32;
        loop {
            let below = [2 * place + 1, 2 * place + 2].into_iter();
            let first = below.filter(|b| *b < len).min_by_key(|b| self.heap_key(*b));
            match first {
                Some(below) if self.heap_key(below) < self.heap_key(place) => {
                    self.heap_swap(below, place);
                    place = below;
                }
                _ => break,
            }
        }
    }

    fn heap_remove(&mut self, place: u32) {
        let at = self.heap_at(place);
        let last = self.books().expiring as u32 - 1;
        self.heap_swap(place, last);
        self.books_mut().expiring -= 1;
        self.entry_mut(at).heap = 0;
        if place < last {
            let place = self.heap_up(place);
            self.heap_down(place);
        }
    }

    /// Removes a key; says whether there was one.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let found = self.fresh(key);
        if let Some(at) = found {
            self.remove(at);
        }
        found.is_some()
    }

    fn remove(&mut self, at: u32) {
        self.set_expires(at, None);
        self.free_value(at);
        let Entry {
            hash,
            next,
            order,
            key_len,
            ..
        } = *self.entry(at);
        // Out of its bucket.
        let bucket = self.bucket(hash);
        let mut other = self.arena.array(Array::Buckets)[bucket];
        if other == at {
            self.arena.array_mut(Array::Buckets)[bucket] = next;
        } else {
            while self.entry(other).next != at {
                other = self.entry(other).next;
            }
            self.entry_mut(other).next = next;
        }
        // The last of the order takes its place.
        let last = self.books().len as usize - 1;
        let moved = self.arena.array(Array::Order)[last];
        self.arena.array_mut(Array::Order)[order as usize] = moved;
        self.entry_mut(moved).order = order;
        let books = self.books_mut();
        books.len -= 1;
        books.used -= ENTRY as u64 + u64::from(key_len);
        self.arena.free(at);
    }

    /// Frees at most `most` expired keys; gives when the next one expires.
    pub fn expire(&mut self, most: usize) -> Option<u64> {
        for _ in 0..most {
            if self.expiring() == 0 {
                return None;
            }
            let expires = self.heap_key(0);
            if expires > self.now() {
                return Some(expires);
            }
            self.remove(self.heap_at(0));
            self.books_mut().expired += 1;
        }
        (self.expiring() > 0).then(|| self.heap_key(0))
    }

    /// Removes all.
    pub fn clear(&mut self) {
        self.arena.clear();
    }

    fn order(&self) -> &[u32] {
        let order = self.arena.array(Array::Order);
        order.get(..self.len()).unwrap_or_default()
    }

    fn is_there(&self, at: u32) -> bool {
        self.expires(at).is_none_or(|expires| expires > self.now())
    }

    /// All keys that have not expired.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        let order = self.order().iter().copied();
        order.filter(|at| self.is_there(*at)).map(|at| self.key(at))
    }

    /// Some keys, and where to go on; 0 at the start and the end. A key that is there from the
    /// first call to the last is given, maybe more than once: entries are passed from the last to
    /// the first, and one that is moved is moved towards the first.
    pub fn scan(&self, cursor: u64, count: usize) -> (impl Iterator<Item = &[u8]>, u64) {
        let order = self.order();
        let len = order.len();
        let end = match usize::try_from(cursor) {
            Ok(0) => len,
            Ok(cursor) => cursor.min(len),
            Err(_) => len,
        };
        let start = end.saturating_sub(count.max(1));
        let range = order.get(start..end).unwrap_or_default();
        let there = range.iter().rev().copied();
        let there = there.filter(|at| self.is_there(*at));
        (there.map(|at| self.key(at)), start as u64)
    }

    /// Checks the books against the blocks.
    #[cfg(test)]
    pub fn audit(&self) {
        self.arena.audit();
        for (n, at) in self.order().iter().enumerate() {
            assert_eq!(self.entry(*at).order as usize, n);
            assert_eq!(self.find(self.key(*at)), Some(*at));
        }
        for place in 0..self.expiring() as u32 {
            assert_eq!(self.entry(self.heap_at(place)).heap, place + 1);
            assert!(place == 0 || self.heap_key((place - 1) / 2) <= self.heap_key(place));
        }
    }
}
