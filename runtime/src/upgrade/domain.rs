//! The domain, as the service sees it.

use super::protocol::{Probation, Status, Stays, Switch};
use super::server::{Domain, How};
use crate::domain as image;
use crate::domain::{Replace, ReplaceError};
use crate::kernel::boot;
use crate::kernel::image::{BuildId, Ident, Place, Policy, Running as Judged};
use crate::kernel::replace::figures::last_switch;
use crate::kernel::xen::{Committed, shared_info};
use std::io;

/// Most bytes of a trial's output that are told.
const CONSOLE: usize = 4096;

/// The image that runs, and where.
#[derive(Debug)]
pub(super) struct Running {
    ident: Ident,
    place: Place,
    id: [u8; 16],
    /// Named values that came from the image before.
    values: usize,
}

impl Running {
    pub fn new(values: usize) -> io::Result<Self> {
        let token = Committed::get().ok_or(io::ErrorKind::Unsupported)?;
        let place = boot::place(token);
        let no_id = || io::Error::other("Xen does not say the domain's UUID");
        Ok(Self {
            ident: boot::identity(),
            id: place.domain.ok_or_else(no_id)?,
            place,
            values,
        })
    }
}

fn stays(error: ReplaceError) -> Stays {
    match error {
        ReplaceError::Resumed { reason, console } => {
            let from = console.len().saturating_sub(CONSOLE);
            let from = (from..=console.len()).find(|at| console.is_char_boundary(*at));
            Stays::Resumed {
                why: reason,
                console: from
                    .and_then(|at| console.get(at..))
                    .unwrap_or_default()
                    .into(),
            }
        }
        error => Stays::Refused {
            why: error.to_string(),
        },
    }
}

impl Domain for Running {
    fn id(&self) -> [u8; 16] {
        self.id
    }

    fn generation(&self) -> u64 {
        image::generation()
    }

    fn build(&self) -> BuildId {
        self.ident.build
    }

    fn policy<'a>(&'a self, downgrade: Option<&'a [u8]>) -> Policy<'a> {
        Policy {
            keys: boot::trusted_keys(),
            running: Some(Judged {
                name: self.ident.name,
                version: self.ident.version,
                build: self.ident.build,
                abi: boot::ABI,
                other_app: false,
                downgrade,
                place: self.place,
                now: shared_info::wall_clock().0,
            }),
        }
    }

    fn memory_free(&self) -> u64 {
        image::free_frames().saturating_mul(4096)
    }

    fn now_ns(&self) -> u64 {
        image::system_time()
    }

    fn status(&self) -> Status {
        let now = image::system_time();
        let switch = last_switch().map(|figures| {
            let mut handed = vec![
                ("regions".into(), figures.regions as u64),
                ("values".into(), self.values as u64),
            ];
            handed.retain(|(_, count)| *count > 0);
            Switch {
                from: figures.from,
                to: figures.to,
                blackout_us: figures.blackout_us,
                parts: figures
                    .parts
                    .iter()
                    .map(|(name, us)| ((*name).into(), *us))
                    .collect(),
                before_us: figures.before_us,
                hypercalls: figures.hypercalls,
                handed,
                crashed: figures.crashed.as_ref().map(ToString::to_string),
            }
        });
        Status {
            generation: image::generation(),
            name: self.ident.name.to_string(),
            version: self.ident.version.to_string(),
            build: self.ident.build,
            vcpus: image::vcpus(),
            memory_free: self.memory_free(),
            probation: image::probation().map(|probation| Probation {
                left_ms: last_switch()
                    .map_or(now, |figures| figures.at_ns)
                    .saturating_add(probation.length_ns)
                    .saturating_sub(now)
                    / 1_000_000,
                must_confirm: probation.must_confirm,
            }),
            switch,
            ..Status::default()
        }
    }

    fn switch(&self, bundle: &[u8], how: &How) -> Result<(), Stays> {
        let mut replace = Replace::new(bundle).probation(how.probation);
        if how.probation.is_zero() {
            replace = replace.without_way_back();
        }
        if how.must_confirm {
            replace = replace.must_be_confirmed();
        }
        if let Some(statement) = &how.downgrade {
            replace = replace.downgrade(statement);
        }
        match replace.start() {
            Ok(never) => match never {},
            Err(error) => Err(stays(error)),
        }
    }

    fn confirm(&self) -> bool {
        image::confirm()
    }

    fn has_way_back(&self) -> bool {
        image::probation().is_some()
    }

    fn roll_back(&self) -> Result<(), Stays> {
        match image::roll_back() {
            Ok(never) => match never {},
            Err(error) => Err(stays(error)),
        }
    }
}
