//! Tests of the whole engine: scripts of segments, two engines over a bad network, hostile input.

mod hostile;
mod network;
mod script;

use std::collections::BTreeMap;

use super::*;

/// The byte of a stream at this place.
fn pattern(at: usize) -> u8 {
    (at * 31 + (at >> 8) * 7 + (at >> 16)) as u8
}
