//! What a request is answered by: preconditions and ranges (RFC 9110, sections 13 and 14).

use crate::request::{Head, Method, decimal};
use crate::site::Page;
use std::ops::Range;

/// What of a page is sent, and as what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// 200, with all of it.
    Whole,
    /// 206, with a part of it.
    Part(Range<usize>),
    /// 304: the peer has it.
    NotModified,
    /// 412: it is not what the peer thinks it is.
    PreconditionFailed,
    /// 416: it has no such part.
    NotSatisfiable,
}

/// Decides on a GET or HEAD of a page, in the order of RFC 9110, section 13.2.2.
#[must_use]
pub fn decide(head: &Head<'_>, page: &Page) -> Answer {
    if let Some(list) = &head.if_match {
        if !matches_any(list, page.etag(), Comparison::Strong) {
            return Answer::PreconditionFailed;
        }
    } else if let (Some(since), Some(modified)) = (head.if_unmodified_since, page.modified)
        && modified > since
    {
        return Answer::PreconditionFailed;
    }
    if let Some(list) = &head.if_none_match {
        if matches_any(list, page.etag(), Comparison::Weak) {
            return Answer::NotModified;
        }
    } else if let (Some(since), Some(modified)) = (head.if_modified_since, page.modified)
        && modified <= since
    {
        return Answer::NotModified;
    }
    let Some(range) = head.range.filter(|_| head.method == Method::Get) else {
        return Answer::Whole;
    };
    if let Some(condition) = head.if_range {
        let same = match condition.first() {
            Some(b'"') => condition == page.etag().as_bytes(),
            _ => page
                .modified
                .is_some_and(|modified| condition == modified.to_string().as_bytes()),
        };
        if !same {
            return Answer::Whole;
        }
    }
    part(range, page.body.len())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Strong,
    Weak,
}

/// Whether a list of entity tags, or `*`, has this one.
fn matches_any(list: &[u8], etag: &str, how: Comparison) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    // Our tags hold no comma: splitting at commas inside foreign tags can't make one of ours.
    list.split(|b| *b == b',')
        .map(<[u8]>::trim_ascii)
        .any(|tag| {
            let tag = match how {
                Comparison::Strong => tag,
                Comparison::Weak => tag.strip_prefix(b"W/").unwrap_or(tag),
            };
            tag == etag.as_bytes()
        })
}

/// The part that `Range` names. What is not one range of bytes is passed over, as RFC 9110,
/// section 14.2, allows.
fn part(range: &[u8], len: usize) -> Answer {
    let Some((unit, set)) = range
        .iter()
        .position(|b| *b == b'=')
        .map(|at| (&range[..at], &range[at + 1..]))
    else {
        return Answer::Whole;
    };
    if !unit.trim_ascii().eq_ignore_ascii_case(b"bytes") {
        return Answer::Whole;
    }
    let set = set.trim_ascii();
    let Some(dash) = set.iter().position(|b| *b == b'-') else {
        return Answer::Whole;
    };
    let (first, last) = (&set[..dash], &set[dash + 1..]);
    // Beyond what a number holds is beyond any file.
    let number = |digits: &[u8]| match decimal(digits) {
        Some(n) => Some(usize::try_from(n).unwrap_or(usize::MAX)),
        None if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) => Some(usize::MAX),
        None => None,
    };
    match (first.is_empty(), number(first), number(last)) {
        // The last so many bytes.
        (true, _, Some(suffix)) if suffix > 0 && len > 0 => {
            Answer::Part(len.saturating_sub(suffix)..len)
        }
        (true, _, Some(_)) => Answer::NotSatisfiable,
        (false, Some(first), last) if last.is_some() || set.len() == dash + 1 => {
            let last = last.unwrap_or(usize::MAX);
            if last < first {
                Answer::Whole
            } else if first >= len {
                Answer::NotSatisfiable
            } else {
                Answer::Part(first..last.saturating_add(1).min(len))
            }
        }
        _ => Answer::Whole,
    }
}
