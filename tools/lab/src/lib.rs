//! The lab: a real Xen, driven from host tests and from the `segue lab` command.
//!
//! # What it is
//!
//! QEMU's software CPU (TCG) emulates AMD SVM with nested paging, so Debian's
//! own Xen 4.17 runs HVM and PVH domains under it on any x86-64 Linux machine,
//! without KVM. The lab prepares that Xen and a small Debian dom0 once
//! ([`Lab::prepare`]), starts them in about 20 s ([`Lab::start`]) and then sees
//! nothing but *a Xen host reachable by ssh* ([`XenHost`]). A real Xen host
//! serves just as well: set `SEGUE_XEN_HOST=user@host` and [`Lab::connect`]
//! gives the same type, using the user's own ssh configuration.
//!
//! ```no_run
//! use segue_lab::{DomainConfig, DomainType, Lab, LabConfig};
//! use std::time::Duration;
//!
//! let lab = Lab::connect(&LabConfig::from_env())?;
//! let config = DomainConfig::new(DomainType::Hvm, "target/images/hello.img");
//! let domain = lab.host().create(&config)?;
//! domain.wait_line(|line| line.text.starts_with("segue: boot"), Duration::from_secs(60))?;
//! assert!(domain.wait_end(Duration::from_secs(60))?.is_clean());
//! # Ok::<(), segue_lab::LabError>(())
//! ```
//!
//! # What holds
//!
//! - Nothing outlives the process that started it: QEMU and every ssh client
//!   are started under `setpriv --pdeathsig KILL` ([`Lab`] also kills them when
//!   dropped), and a domain whose creator vanishes is destroyed by a watcher in
//!   dom0 that sees the connection close.
//! - No console byte is lost: a domain is created paused, its console is
//!   attached, and only then is it unpaused.
//! - A session starts clean: the root disk is a snapshot.
//!
//! # Facts it rests on
//!
//! - QEMU's multiboot loader takes Xen as `-kernel` and the dom0 kernel and
//!   initrd as the comma-separated `-initrd` (QEMU documentation, "Direct Linux
//!   Boot", multiboot). With SMAP the PV dom0 crashes at its first exception
//!   and with LA57 it does not start, hence `-cpu max,-smap,-la57`; measured.
//! - TCG (QEMU 7.2) does not intercept XSETBV for SVM: Xen never learns what a guest puts into XCR0
//!   and sets its own value at the next switch of vCPUs, so XSAVE leaves registers out and they get
//!   lost. Hence no XSAVE here, `-xsave`: kernels use FXSAVE. Seen with a loop that counts in an
//!   XMM register: its count became 0 with AVX on, and without AVX after an INIT.
//! - `xl list -v` shows the shutdown reason as the number in Xen's
//!   `public/sched.h` (`SHUTDOWN_poweroff` 0 … `SHUTDOWN_soft_reset` 5) when the
//!   domain is kept by `on_*="preserve"` (xl.cfg(5)).
//! - xenstored fires `@releaseDomain` when a domain shuts down or dies
//!   (`docs/misc/xenstore.txt`), and once when the watch is set.

#![forbid(unsafe_code)]

mod config;
mod console;
mod deploy;
mod domain;
mod error;
mod lab;
mod prepare;
mod process;
mod progress;
mod session;
mod setup;
mod xen_host;

pub use config::LabConfig;
pub use console::{Line, Source};
pub use deploy::{DEPLOYED_DIR, Deployed};
pub use domain::{AfterEnd, Domain, DomainConfig, DomainType, EndReason};
pub use error::{LabError, Result};
pub use lab::Lab;
pub use prepare::Image;
pub use session::{Offer, Session};
pub use setup::{HOST_PACKAGES, HostPackage, ensure_host_tools, missing_packages};
pub use xen_host::{Connection, Forward, Output, XenHost};
