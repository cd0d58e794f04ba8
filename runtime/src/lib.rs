//! What a Segue app uses beyond Rust's std.
//!
//! An app is an ordinary crate with `fn main()`; it depends on this one (`use segue as _;` if it
//! uses nothing of it) and is built into an image by `make image APP=name`.
//!
//! ```no_run,ignore-linux
//! for bundle in segue::bundles() {
//!     // Comes back only if the image in the bundle was refused or gave up.
//!     let error = segue::replace_image(bundle).unwrap_err();
//!     println!("still here: {error}");
//! }
//! ```
//!
//! What an app knows goes to the next image by name, and large tables stay where they are. Here a
//! counter, and a table of a million rows that no switch copies or walks over:
//!
//! ```
//! use segue::preserved::{Region, TakeError};
//!
//! #[derive(Clone, Copy, segue::Plain)]
//! #[repr(C)]
//! struct Row { key: u64, hits: u32, flags: u32 }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // None in a domain's first image. After a crash there are regions, but no values.
//! let mut before = segue::handover();
//! let count = match &mut before {
//!     Some(before) => before.take_if_any("count")?.unwrap_or(0u64),
//!     None => 0,
//! };
//! let mut table = match Region::<[Row]>::take("table", 1) {
//!     Err(TakeError::Missing) => Region::create("table", 1, 1_000_000)?,
//!     taken => taken?,
//! };
//! drop(before); // What was not taken by now is freed.
//! table.update(|rows| rows[0].hits += 1)?;
//! segue::on_replace(move |next| Ok(next.put("count", &(count + 1))?));
//! # Ok(())
//! # }
//! ```
//!
//! [`handover`](mod@handover) and [`preserved`] are there on a host, too, where nothing is ever
//! replaced: so apps can be tested there. All else needs a domain.
#![warn(missing_docs)]

// The derived code names it so.
extern crate self as segue;

pub use segue_kernel as kernel;

#[cfg(target_os = "hermit")]
mod domain;
pub mod handover;
pub mod preserved;
pub mod upgrade;

#[cfg(target_os = "hermit")]
pub use domain::*;
pub use handover::{handover, on_replace, on_resume};
pub use preserved::Plain;
pub use segue_derive::Plain;

#[cfg(doctest)]
mod readme {
    /// The example in README.md.
    #[doc = include_str!("../../README.md")]
    struct _Readme;
}

/// Asks for a trial: the app calls `commit` when it is satisfied, or `refuse`s. Without this an
/// image commits as soon as its `main` starts. Write it once, outside functions.
#[macro_export]
macro_rules! trial {
    () => {
        #[cfg(target_os = "hermit")]
        const _: () = {
            #[used]
            #[unsafe(link_section = ".segue.flags")]
            static TRIAL: u8 = 1;
        };
    };
}
