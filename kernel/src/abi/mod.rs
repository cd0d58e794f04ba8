//! The system ABI that Rust's std for `x86_64-unknown-hermit` calls (crate `hermit-abi` declares
//! it), implemented for Xen. What std does not reach in an app is dropped by the linker.

pub mod errno;
pub mod fd;
#[cfg(target_os = "hermit")]
mod files;
pub mod socket;

#[cfg(target_os = "hermit")]
mod old;
