//! Sequence numbers (RFC 9293, section 3.4): 32 bits that wrap. Two can be compared as long as they
//! are less than 2^31 apart, which windows (at most 2^30, RFC 7323) see to.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};

/// A sequence or acknowledgement number.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Seq(pub u32);

impl Seq {
    /// Whether this one comes before `other`.
    pub const fn lt(self, other: Seq) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// Whether this one is `other` or comes before it.
    pub const fn le(self, other: Seq) -> bool {
        !other.lt(self)
    }

    /// Whether this one comes after `other`.
    pub const fn gt(self, other: Seq) -> bool {
        other.lt(self)
    }

    /// Whether this one is `other` or comes after it.
    pub const fn ge(self, other: Seq) -> bool {
        !self.lt(other)
    }

    /// The later of two.
    pub const fn max(self, other: Seq) -> Seq {
        if self.lt(other) { other } else { self }
    }

    /// The earlier of two.
    pub const fn min(self, other: Seq) -> Seq {
        if other.lt(self) { other } else { self }
    }

    /// How far this one is after `other`; 0 if it is not.
    pub const fn beyond(self, other: Seq) -> u32 {
        if self.gt(other) {
            self.0.wrapping_sub(other.0)
        } else {
            0
        }
    }
}

impl Add<u32> for Seq {
    type Output = Seq;
    fn add(self, by: u32) -> Seq {
        Seq(self.0.wrapping_add(by))
    }
}

impl AddAssign<u32> for Seq {
    fn add_assign(&mut self, by: u32) {
        *self = *self + by;
    }
}

impl Sub<u32> for Seq {
    type Output = Seq;
    fn sub(self, by: u32) -> Seq {
        Seq(self.0.wrapping_sub(by))
    }
}

/// The distance from `other` up to this one, which must not be before it.
impl Sub<Seq> for Seq {
    type Output = u32;
    fn sub(self, other: Seq) -> u32 {
        self.0.wrapping_sub(other.0)
    }
}

impl fmt::Debug for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
