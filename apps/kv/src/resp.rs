//! RESP2: requests in, replies out.
//!
//! A request is an array of bulk strings, or a line of words ("inline", for people with telnet).
//! Its parser is ours: those on crates.io build an owned tree for each frame, know no inline
//! requests, and start anew when a frame is incomplete. This one yields slices of the input, goes
//! on where it stopped, and holds its peer to limits. The specification is
//! <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use std::ops::Range;

/// Longest line of an inline request, and longest count.
const MAX_LINE: usize = 64 * 1024;
/// Most arguments of a request.
const MAX_ARGUMENTS: usize = 1024 * 1024;

/// The arguments of a request, the command's name first.
#[derive(Clone, Copy, Debug)]
pub struct Arguments<'a> {
    bytes: &'a [u8],
    parts: &'a [Range<usize>],
}

impl<'a> Arguments<'a> {
    /// Number of arguments, the name among them.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.len()
    }

    /// Whether there is not even a name.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// An argument; empty if there is none.
    #[must_use]
    pub fn get(&self, index: usize) -> &'a [u8] {
        let part = self.parts.get(index).cloned().unwrap_or_default();
        self.bytes.get(part).unwrap_or_default()
    }

    /// Those from `start` on.
    pub fn from(self, start: usize) -> impl ExactSizeIterator<Item = &'a [u8]> + Clone {
        let parts = self.parts.get(start..).unwrap_or_default();
        let bytes = self.bytes;
        parts
            .iter()
            .map(move |part| bytes.get(part.clone()).unwrap_or_default())
    }
}

/// Why bytes are no request. The connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The number of arguments is none, or too high.
    Count,
    /// The length of an argument is none, or too high.
    Length,
    /// Something else is where an argument's `$` should be.
    Expected(u8),
    /// A line is too long.
    Line,
    /// A count's line is too long.
    CountLine,
    /// A length's line is too long.
    LengthLine,
    /// A quotation mark without its other.
    Quotes,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ERR Protocol error: ")?;
        match self {
            Self::Count => f.write_str("invalid multibulk length"),
            Self::Length => f.write_str("invalid bulk length"),
            Self::Expected(byte) => {
                write!(
                    f,
                    "expected '$', got '{}'",
                    char::from(*byte).escape_default()
                )
            }
            Self::Line => f.write_str("too big inline request"),
            Self::CountLine => f.write_str("too big mbulk count string"),
            Self::LengthLine => f.write_str("too big bulk count string"),
            Self::Quotes => f.write_str("unbalanced quotes in request"),
        }
    }
}

/// Where the parser is in a request that is not complete. Offsets count from its first byte.
#[derive(Debug, Default)]
pub struct Parser {
    /// Arguments found so far.
    parts: Vec<Range<usize>>,
    /// Number of arguments, once it is known.
    count: Option<usize>,
    /// Where to go on.
    position: usize,
    /// Of an inline request with quotation marks: its words, unquoted.
    words: Vec<u8>,
}

/// What a parser found.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// A request, and how long it is. It may have no arguments: then there is nothing to answer.
    Request(Arguments<'a>, usize),
    /// More is needed.
    Incomplete,
}

impl Parser {
    /// Takes the request that `input` starts with. If it is incomplete, the next call's input has
    /// to start with the same bytes.
    ///
    /// # Errors
    /// See [`Error`]; nothing can be parsed after it. `max_length` bounds each argument.
    pub fn parse<'a>(
        &'a mut self,
        input: &'a [u8],
        max_length: usize,
    ) -> Result<Parsed<'a>, Error> {
        if self.position == 0 {
            match input.first() {
                None => return Ok(Parsed::Incomplete),
                Some(b'*') => {}
                Some(_) => return self.inline(input),
            }
        }
        let count = match self.count {
            Some(count) => count,
            None => {
                let Some((number, end)) = number(input, 1).map_err(|_| Error::CountLine)? else {
                    return Ok(Parsed::Incomplete);
                };
                // Below 1: an empty request, as Redis takes it.
                let count = number.ok_or(Error::Count)?.max(0);
                let count = usize::try_from(count).map_err(|_| Error::Count)?;
                if count > MAX_ARGUMENTS {
                    return Err(Error::Count);
                }
                self.parts.clear();
                self.position = end;
                *self.count.insert(count)
            }
        };
        while self.parts.len() < count {
            match input.get(self.position) {
                None => return Ok(Parsed::Incomplete),
                Some(b'$') => {}
                Some(other) => return Err(Error::Expected(*other)),
            }
            let line = number(input, self.position + 1).map_err(|_| Error::LengthLine)?;
            let Some((length, start)) = line else {
                return Ok(Parsed::Incomplete);
            };
            let length = length.and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|length| *length <= max_length);
            let end = start + length.ok_or(Error::Length)?;
            // What stands where the line's end should be is not looked at, as in Redis.
            if input.len() < end + 2 {
                return Ok(Parsed::Incomplete);
            }
            self.parts.push(start..end);
            self.position = end + 2;
        }
        let len = self.position;
        (self.position, self.count) = (0, None);
        let parts = &self.parts;
        Ok(Parsed::Request(
            Arguments {
                bytes: input,
                parts,
            },
            len,
        ))
    }

    fn inline<'a>(&'a mut self, input: &'a [u8]) -> Result<Parsed<'a>, Error> {
        let searched = input.get(..MAX_LINE).unwrap_or(input);
        let Some(end) = memchr::memchr(b'\n', searched) else {
            return if input.len() >= MAX_LINE {
                Err(Error::Line)
            } else {
                Ok(Parsed::Incomplete)
            };
        };
        let line = input.get(..end).unwrap_or_default();
        self.parts.clear();
        self.words.clear();
        split(line, &mut self.words, &mut self.parts)?;
        let (bytes, parts) = (&self.words, &self.parts);
        Ok(Parsed::Request(Arguments { bytes, parts }, end + 1))
    }

    /// Gives back memory that a large request has left.
    pub fn shrink(&mut self) {
        if self.position == 0 && self.parts.capacity() > 64 {
            self.parts = Vec::new();
        }
        if self.words.capacity() > 1024 {
            self.words = Vec::new();
        }
    }
}

/// A line with a number in it, from `start` on: the number, if it is one, and where the line
/// ends. `None`: it is not all there. An error: it is too long.
fn number(input: &[u8], start: usize) -> Result<Option<(Option<i64>, usize)>, ()> {
    let rest = input.get(start..).unwrap_or_default();
    let searched = rest.get(..MAX_LINE).unwrap_or(rest);
    let Some(end) = memchr::memchr(b'\r', searched) else {
        return if rest.len() >= MAX_LINE {
            Err(())
        } else {
            Ok(None)
        };
    };
    if rest.len() < end + 2 {
        return Ok(None);
    }
    let digits = rest.get(..end).unwrap_or_default();
    Ok(Some((integer(digits), start + end + 2)))
}

/// An integer as Redis takes it: digits, `-` before them, no `+`, no space, no needless 0.
#[must_use]
pub fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    match digits {
        [b'0'] => return (!negative).then_some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let mut value = 0_i64;
    for digit in digits {
        let digit = i64::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
        // Downwards, where there is room for one more.
        value = value.checked_mul(10)?.checked_sub(digit)?;
    }
    if negative {
        Some(value)
    } else {
        value.checked_neg()
    }
}

/// Splits a line into words; quotation marks as in Redis's `sdssplitargs`.
fn split(line: &[u8], words: &mut Vec<u8>, parts: &mut Vec<Range<usize>>) -> Result<(), Error> {
    let mut bytes = line.iter().copied().peekable();
    loop {
        while bytes.next_if(u8::is_ascii_whitespace).is_some() {}
        if bytes.peek().is_none() {
            return Ok(());
        }
        let start = words.len();
        loop {
            match bytes.next() {
                None => break,
                Some(byte) if byte.is_ascii_whitespace() => break,
                Some(quote @ (b'"' | b'\'')) => {
                    loop {
                        let byte = bytes.next().ok_or(Error::Quotes)?;
                        if byte == quote {
                            break;
                        }
                        let next = bytes.peek().copied();
                        match (quote, byte, next) {
                            (b'\'', b'\\', Some(b'\'')) => words.push(b'\''),
                            (b'"', b'\\', Some(escape)) => {
                                bytes.next();
                                words.push(unescaped(escape, &mut bytes));
                                continue;
                            }
                            _ => {
                                words.push(byte);
                                continue;
                            }
                        }
                        bytes.next();
                    }
                    // A word ends where its quotation does.
                    if bytes.peek().is_some_and(|next| !next.is_ascii_whitespace()) {
                        return Err(Error::Quotes);
                    }
                    break;
                }
                Some(byte) => words.push(byte),
            }
        }
        parts.push(start..words.len());
    }
}

fn unescaped(escape: u8, bytes: &mut (impl Iterator<Item = u8> + Clone)) -> u8 {
    match escape {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 8,
        b'a' => 7,
        b'x' => {
            let mut ahead = bytes.clone();
            let mut digit = || char::from(ahead.next()?).to_digit(16);
            match (digit(), digit()) {
                (Some(high), Some(low)) => {
                    *bytes = ahead;
                    (high * 16 + low) as u8
                }
                _ => b'x',
            }
        }
        other => other,
    }
}

/// Replies, written one after the other.
pub trait Reply {
    /// `+text`.
    fn simple(&mut self, text: &str);
    /// `-text`; line ends in it become spaces.
    fn error(&mut self, text: &[u8]);
    /// `:number`.
    fn integer(&mut self, number: i64);
    /// A bulk string.
    fn bulk(&mut self, bytes: &[u8]);
    /// The null bulk string.
    fn null(&mut self);
    /// The head of an array of so many replies.
    fn array(&mut self, len: usize);
}

impl Reply for Vec<u8> {
    fn simple(&mut self, text: &str) {
        self.push(b'+');
        self.extend_from_slice(text.as_bytes());
        self.extend_from_slice(b"\r\n");
    }

    fn error(&mut self, text: &[u8]) {
        self.push(b'-');
        self.extend(text.iter().map(|byte| match byte {
            b'\r' | b'\n' => b' ',
            byte => *byte,
        }));
        self.extend_from_slice(b"\r\n");
    }

    fn integer(&mut self, number: i64) {
        self.push(b':');
        self.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        self.extend_from_slice(b"\r\n");
    }

    fn bulk(&mut self, bytes: &[u8]) {
        self.push(b'$');
        self.extend_from_slice(itoa::Buffer::new().format(bytes.len()).as_bytes());
        self.extend_from_slice(b"\r\n");
        self.extend_from_slice(bytes);
        self.extend_from_slice(b"\r\n");
    }

    fn null(&mut self) {
        self.extend_from_slice(b"$-1\r\n");
    }

    fn array(&mut self, len: usize) {
        self.push(b'*');
        self.extend_from_slice(itoa::Buffer::new().format(len).as_bytes());
        self.extend_from_slice(b"\r\n");
    }
}
