//! The targets, each in a file of its own.

mod arena;
mod boot;
mod bundle;
mod console;
mod cpio;
mod dhcp;
mod dns;
mod frames;
mod manifest;
mod netring;
mod record;
mod resp;
mod statement;
mod tcp;
mod upgrade;
mod xenstore;

use crate::Target;

/// All of them, in the order of their names.
pub static TARGETS: &[Target] = &[
    arena::TARGET,
    boot::TARGET,
    bundle::TARGET,
    console::TARGET,
    cpio::TARGET,
    dhcp::TARGET,
    dns::TARGET,
    frames::TARGET,
    manifest::TARGET,
    netring::TARGET,
    record::TARGET,
    resp::TARGET,
    statement::TARGET,
    tcp::TARGET,
    upgrade::TARGET,
    xenstore::TARGET,
];
