//! A request's head: from bytes to what it asks for.

use httpdate::HttpDate;
use std::borrow::Cow;
use std::mem::MaybeUninit;

/// Header fields a request may have.
const FIELDS: usize = 64;

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// The content.
    Get,
    /// Its headers.
    Head,
    /// What may be asked for.
    Options,
    /// A method of RFC 9110 or 5789 that this server does not offer for any file.
    Refused,
    /// One it has not heard of.
    Unknown,
}

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Body {
    /// So many bytes, often none.
    Length(u64),
    /// As many as a transfer coding says: this server does not decode any.
    Coded,
}

/// A whole head. Fields are named as in RFC 9110.
#[derive(Debug)]
pub struct Head<'a> {
    /// What is asked for.
    pub method: Method,
    /// The path, decoded, without the query; `*` by itself is possible.
    pub path: Cow<'a, [u8]>,
    /// Whether the connection goes on after the answer.
    pub keep_alive: bool,
    /// Whether the request is HTTP/1.0.
    pub old: bool,
    /// What follows.
    pub body: Body,
    /// Whether the peer waits for a word before it sends the body.
    pub expects_continue: bool,
    /// `Range`.
    pub range: Option<&'a [u8]>,
    /// `If-Range`.
    pub if_range: Option<&'a [u8]>,
    /// `If-Match`; of several lines, all.
    pub if_match: Option<Cow<'a, [u8]>>,
    /// `If-None-Match`; of several lines, all.
    pub if_none_match: Option<Cow<'a, [u8]>>,
    /// `If-Modified-Since`, if it is a date.
    pub if_modified_since: Option<HttpDate>,
    /// `If-Unmodified-Since`, if it is a date.
    pub if_unmodified_since: Option<HttpDate>,
}

/// Why a head is none. Each is a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// 400: not as RFC 9112 has it, or ambiguous.
    Bad,
    /// 431: too many fields.
    Fields,
    /// 501: a transfer coding other than chunked.
    Coding,
    /// 505: not HTTP/1.0 or 1.1.
    Version,
}

/// Parses the head that `input` starts with, and says how long it is. `None`: it is not all there.
///
/// # Errors
/// See [`Error`]; the connection can't be used any further.
pub fn parse(input: &[u8]) -> Result<Option<(Head<'_>, usize)>, Error> {
    let mut fields = [const { MaybeUninit::uninit() }; FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let len = match request.parse_with_uninit_headers(input, &mut fields) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Error::Fields),
        Err(httparse::Error::Version) => return Err(version_error(input)),
        Err(_) => return Err(Error::Bad),
    };
    let (Some(method), Some(target), Some(minor)) = (request.method, request.path, request.version)
    else {
        return Err(Error::Bad);
    };
    let old = minor == 0;
    let mut head = Head {
        method: match method {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "OPTIONS" => Method::Options,
            "POST" | "PUT" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" => Method::Refused,
            _ => Method::Unknown,
        },
        path: path(target)?,
        keep_alive: !old,
        old,
        body: Body::Length(0),
        expects_continue: false,
        range: None,
        if_range: None,
        if_match: None,
        if_none_match: None,
        if_modified_since: None,
        if_unmodified_since: None,
    };
    let (mut hosts, mut length, mut coded, mut close) = (0, None, false, false);
    for httparse::Header { name, value } in request.headers.iter() {
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        // By length first: most names need no comparison.
        match name.len() {
            4 if is("host") => hosts += 1,
            5 if is("range") => head.range = Some(value),
            6 if is("expect") => head.expects_continue = true,
            8 if is("if-range") => head.if_range = Some(value),
            8 if is("if-match") => append(&mut head.if_match, value),
            10 if is("connection") => {
                for option in value.split(|b| *b == b',').map(<[u8]>::trim_ascii) {
                    close |= option.eq_ignore_ascii_case(b"close");
                    head.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            13 if is("if-none-match") => append(&mut head.if_none_match, value),
            14 if is("content-length") => {
                let new = decimal(value).ok_or(Error::Bad)?;
                if length.is_some_and(|old| old != new) {
                    return Err(Error::Bad);
                }
                length = Some(new);
            }
            17 if is("if-modified-since") => head.if_modified_since = date(value),
            17 if is("transfer-encoding") => {
                // RFC 9112, section 6.1: not in HTTP/1.0, and chunked is the last coding.
                if old || coded {
                    return Err(Error::Bad);
                }
                if !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Error::Coding);
                }
                coded = true;
            }
            19 if is("if-unmodified-since") => head.if_unmodified_since = date(value),
            _ => {}
        }
    }
    // RFC 9112, sections 3.2 and 6.3: what two readers might read in two ways is refused.
    if hosts > 1 || (hosts == 0 && !old) || (coded && length.is_some()) {
        return Err(Error::Bad);
    }
    head.keep_alive &= !close;
    head.body = match coded {
        true => Body::Coded,
        false => Body::Length(length.unwrap_or(0)),
    };
    Ok(Some((head, len)))
}

/// httparse calls anything in the version's place a wrong version.
fn version_error(input: &[u8]) -> Error {
    let line = input
        .split(|b| *b == b'\n')
        .find(|l| !l.trim_ascii().is_empty());
    let version = line.and_then(|l| l.trim_ascii_end().rsplit(|b| *b == b' ').next());
    match version.and_then(|v| v.strip_prefix(b"HTTP/")) {
        Some([major, b'.', minor]) if major.is_ascii_digit() && minor.is_ascii_digit() => {
            Error::Version
        }
        _ => Error::Bad,
    }
}

fn append<'a>(list: &mut Option<Cow<'a, [u8]>>, value: &'a [u8]) {
    match list {
        None => *list = Some(Cow::Borrowed(value)),
        Some(list) => {
            let list = list.to_mut();
            list.extend_from_slice(b", ");
            list.extend_from_slice(value);
        }
    }
}

fn date(value: &[u8]) -> Option<HttpDate> {
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// Digits and nothing else.
pub fn decimal(value: &[u8]) -> Option<u64> {
    let all_digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    all_digits.then(|| std::str::from_utf8(value).ok()?.parse().ok())?
}

/// The path of a request target (RFC 9112, section 3.2).
fn path(target: &str) -> Result<Cow<'_, [u8]>, Error> {
    let mut path = target;
    if !path.starts_with('/') && path != "*" {
        let (scheme, rest) = path.split_once("://").ok_or(Error::Bad)?;
        if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
            return Err(Error::Bad);
        }
        path = rest.find(['/', '?']).map_or("/", |at| &rest[at..]);
        if path.starts_with('?') {
            path = "/";
        }
    }
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.contains('%') {
        return Ok(Cow::Borrowed(path.as_bytes()));
    }
    let mut decoded = Vec::with_capacity(path.len());
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Err(Error::Bad);
        };
        decoded.push((high * 16 + low) as u8);
    }
    Ok(Cow::Owned(decoded))
}
