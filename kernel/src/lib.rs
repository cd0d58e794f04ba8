//! The Segue kernel: everything between Xen and Rust's std in one image.
//!
//! What needs no hardware is plain code, compiled and tested on the host as well; the rest exists
//! for the image's target only. Read `boot/start.rs` for the start and `replace/switch.rs` for the
//! switch.
#![cfg_attr(target_os = "hermit", no_std)]
#![warn(missing_docs)]
#![deny(unsafe_op_in_unsafe_fn)]

extern crate alloc;

pub mod abi;
#[cfg(target_os = "hermit")]
mod acpi;
pub mod boot;
#[cfg(target_os = "hermit")]
pub mod cpu;
pub mod devices;
#[cfg(target_os = "hermit")]
pub mod end;
#[cfg(target_os = "hermit")]
pub mod entry;
pub mod fs;
pub mod image;
#[cfg(target_os = "hermit")]
mod log;
pub mod memory;
pub mod net;
pub mod replace;
pub mod sync;
pub mod task;
pub mod xen;
