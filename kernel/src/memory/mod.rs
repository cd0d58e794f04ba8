//! Memory: one address space, virtual = physical (invariant I1).
//!
//! [`addr`] has the types, [`extents`] the arithmetic of memory maps, [`frames`] the frame
//! allocator, [`paging`] the page tables; all of that is plain code that runs on the host too.
//! `heap` (image only) puts talc on top.

pub mod addr;
pub mod extents;
pub mod frames;
pub mod paging;
pub mod workspace;

#[cfg(target_os = "hermit")]
pub mod heap;
#[cfg(target_os = "hermit")]
pub(crate) mod scrub;
#[cfg(target_os = "hermit")]
pub mod vm;

pub use addr::{Extent, Gfn, PAGE_SIZE, PhysAddr};
pub use extents::ExtentSet;
