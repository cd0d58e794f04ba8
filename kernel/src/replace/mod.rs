//! The switch: replacing the running image by another in the same domain.
//!
//! [`replace_image`] (`switch.rs`) reads as the steps of the design. Each step's type holds what it took; dropping
//! it undoes the step. Up to the jump an error leaves everything as it was.
//!
//! | step | what holds after it | its undo |
//! |---|---|---|
//! | `Verified` | a private copy of the bundle is sound; nothing has stopped | free the copy |
//! | `Loaded` | the new image stands in free frames, relocated, with its page tables | free the frames |
//! | `Prepared` | the app has said what it hands over, the record is written, the park pages are armed | free the record |
//! | `Quiesced` | every other vCPU is parked, interrupts are off | let them go on |
//! | relocate | shared_info is in a carved frame (I2, I6) | refill the hole |
//! | jump, trial | the new image runs, on tables that show it nothing of ours (I5) | take the vCPU back |
//! | commit | the new image has the domain; this code is gone | none |

pub mod gate;
#[cfg(test)]
mod gate_tests;
pub mod record;
pub mod region;
pub mod values;

#[cfg(target_os = "hermit")]
pub mod adopt;
#[cfg(target_os = "hermit")]
pub mod fallback;
#[cfg(target_os = "hermit")]
pub mod figures;
#[cfg(target_os = "hermit")]
pub mod live;
#[cfg(target_os = "hermit")]
pub mod park;
#[cfg(target_os = "hermit")]
mod placed;
pub mod protocol;
#[cfg(target_os = "hermit")]
pub mod state;
#[cfg(target_os = "hermit")]
pub mod switch;
#[cfg(target_os = "hermit")]
pub mod trial;

#[cfg(target_os = "hermit")]
pub use placed::Place;
#[cfg(target_os = "hermit")]
pub use switch::{Faults, Options, ReplaceError, Step, replace_image, roll_back};
