//! Which types may stay in place, and how their layout is told.

/// A type whose bytes mean the same in any image that agrees on its layout.
///
/// Derived, for structs: `#[derive(segue::Plain)]` with `#[repr(C)]`. Integers, floats, arrays and
/// [`Offset`](super::Offset) are `Plain`. What is not: references, pointers and functions, which
/// the next image has elsewhere; `Box`, `String` and collections, whose heap is gone; `bool`, `char`
/// and enums, of which not every bit pattern is a value.
///
/// Rust's own zero-copy crates have such a trait, but none of them can say from one image to the
/// other which layout it is: that is what [`LAYOUT`](Self::LAYOUT) is for.
///
/// # Safety
/// 1. Every bit pattern is a value.
/// 2. There is no padding.
/// 3. There is nothing in it that is an address, and nothing that changes behind a shared
///    reference.
/// 4. Types of the same `LAYOUT` have the same layout.
pub unsafe trait Plain: Sized + Send + Sync + 'static {
    /// Hash of the layout: size, alignment, and of each field the name, the place and its type's
    /// layout. The type's own name is not in it, nor the crate it is in.
    const LAYOUT: u64;
}

/// A hash of a layout that is being made: FNV-1a of 64 bits, by which nobody has to be convinced,
/// only mistakes found.
#[derive(Clone, Copy, Debug)]
pub struct Layout(u64);

impl Layout {
    const fn new(kind: &str) -> Self {
        Self(0xcbf2_9ce4_8422_2325).text(kind)
    }

    const fn byte(self, byte: u8) -> Self {
        Self((self.0 ^ byte as u64).wrapping_mul(0x100_0000_01b3))
    }

    const fn word(self, word: u64) -> Self {
        let bytes = word.to_le_bytes();
        let (mut hash, mut i) = (self, 0);
        while i < bytes.len() {
            hash = hash.byte(bytes[i]);
            i += 1;
        }
        hash
    }

    /// With its length, so that no two lists of texts are the same bytes.
    const fn text(self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let (mut hash, mut i) = (self.word(bytes.len() as u64), 0);
        while i < bytes.len() {
            hash = hash.byte(bytes[i]);
            i += 1;
        }
        hash
    }

    /// Of a type that has no parts.
    pub(super) const fn of_primitive(name: &str) -> Self {
        Self::new("primitive").text(name)
    }

    /// Of `count` elements; of any number, if it is 0.
    pub(super) const fn of_elements(element: u64, count: u64) -> Self {
        Self::new("elements").word(element).word(count)
    }

    /// Of a struct: its fields follow in order.
    #[must_use]
    pub const fn of_struct(size: usize, align: usize) -> Self {
        Self::new("struct").word(size as u64).word(align as u64)
    }

    /// With a field.
    #[must_use]
    pub const fn field(self, name: &str, offset: usize, layout: u64) -> Self {
        self.text(name).word(offset as u64).word(layout)
    }

    /// The hash.
    #[must_use]
    pub const fn hash(self) -> u64 {
        self.0
    }
}

macro_rules! primitives {
    ($($name:ident)*) => {$(
        // SAFETY: any bits are a value; no padding, no address.
        unsafe impl Plain for $name {
            const LAYOUT: u64 = Layout::of_primitive(stringify!($name)).hash();
        }
    )*};
}

primitives!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

// SAFETY: elements have no padding between them.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {
    const LAYOUT: u64 = {
        assert!(N > 0, "an array without elements is not Plain");
        Layout::of_elements(T::LAYOUT, N as u64).hash()
    };
}
