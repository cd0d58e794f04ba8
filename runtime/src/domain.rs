//! What there is only in a domain: the image, its vCPUs, and replacing it.

use crate::handover::{self, Part, Unready};
use crate::kernel;
pub use kernel::replace::ReplaceError;
use kernel::replace::values::Values;
use kernel::replace::{Options, adopt, trial};
use kernel::{boot, cpu, memory};
use std::convert::Infallible;
use std::time::Duration;

/// Called by the kernel before `main`.
#[unsafe(no_mangle)]
fn segue_runtime_start() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let message = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("(no message)");
        kernel::end::panic(info.location(), &message)
    }));
}

/// Called by the kernel for reports, in a thread that std has started.
#[unsafe(no_mangle)]
fn segue_thread_name(use_name: &mut dyn FnMut(&str)) {
    if let Some(name) = std::thread::current().name() {
        use_name(name);
    }
}

/// 1 for the image the domain booted, one more for each committed switch.
#[must_use]
pub fn generation() -> u64 {
    boot::generation()
}

/// Name and version of this image.
#[must_use]
pub fn image() -> (String, String) {
    boot::ident().map_or_else(
        || ("unnamed".into(), "0".into()),
        |i| (i.name.as_str().into(), i.version.as_str().into()),
    )
}

/// Number of vCPUs.
#[must_use]
pub fn vcpus() -> u32 {
    cpu::smp::vcpus()
}

/// Waits until all vCPUs run. After the first boot main begins while the others still start: one
/// that measures, or counts memory, waits for them.
pub fn wait_for_vcpus() {
    let _ = cpu::smp::wait_for_all();
}

/// What the network has done so far.
#[must_use]
pub fn network() -> kernel::net::stats::Stats {
    kernel::net::stats()
}

/// Free frames of 4 KiB.
#[must_use]
pub fn free_frames() -> u64 {
    memory::vm::free_count()
}

/// What has to be the same after any number of switches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Audit {
    /// Free frames of 4 KiB.
    pub free_frames: u64,
    /// Event channel ports that are bound, by Xen's own word.
    pub ports: u32,
    /// Frames carved for what Xen writes.
    pub carved: u64,
    /// Frames of RAM the domain has, by Xen's own word.
    pub reservation: u64,
    /// Frames that other domains may use.
    pub grants: usize,
}

impl std::fmt::Display for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "free_frames={} ports={} carved={} reservation={} grants={}",
            self.free_frames, self.ports, self.carved, self.reservation, self.grants
        )
    }
}

/// Counts what this image holds. `None` in a trial, which may not ask Xen, or if Xen won't say.
#[must_use]
pub fn audit() -> Option<Audit> {
    let token = kernel::xen::Committed::get()?;
    Some(Audit {
        free_frames: free_frames(),
        ports: kernel::xen::events::bound_ports(token),
        carved: boot::carved(),
        reservation: kernel::xen::hypercall::current_reservation(token).ok()?,
        grants: kernel::xen::grant::audit().grants,
    })
}

/// Xen's system time in ns since the domain started: what `Instant` counts, as a number that can
/// be passed on.
#[must_use]
pub fn system_time() -> u64 {
    kernel::xen::shared_info::now()
}

/// The ramdisk or PVH modules the domain was started with. They pass from image to image.
#[must_use]
pub fn modules() -> Vec<&'static [u8]> {
    boot::modules()
        .iter()
        .filter_map(|m| {
            let ptr = memory::PhysAddr::new(m.addr)?.as_ptr::<u8>();
            // SAFETY: the loader put these bytes there; their frames are kept for them, mapped,
            // and written by nobody.
            Some(unsafe { std::slice::from_raw_parts(ptr, usize::try_from(m.len).ok()?) })
        })
        .collect()
}

/// The bundles in the modules, one after the other; what is no bundle is passed over.
pub fn bundles() -> impl Iterator<Item = &'static [u8]> {
    modules().into_iter().flat_map(|module| {
        let mut rest = module;
        std::iter::from_fn(move || {
            let before = rest;
            let (_, after) = kernel::image::Bundle::split_first(before)?.ok()?;
            rest = after;
            before.get(..before.len() - after.len())
        })
    })
}

/// The content of a file that came with the image or its ramdisk, where it lies: no copy is made.
/// `None` if there is none, or if it is below `/tmp`.
#[must_use]
pub fn file(path: &str) -> Option<&'static [u8]> {
    kernel::fs::content(path.as_bytes())
}

/// Name and version that a bundle carries; `None` if it is damaged, or not signed with a key that
/// this image trusts, if it trusts any. The image in it is not looked at.
#[must_use]
pub fn bundle_ident(bundle: &[u8]) -> Option<(String, String)> {
    let (bundle, _) = kernel::image::Bundle::split_first(bundle)?.ok()?;
    let bundle = bundle.authenticate(&boot::trusted_keys()).ok()?;
    Some((
        bundle.manifest.name.as_str().into(),
        bundle.manifest.version.as_str().into(),
    ))
}

/// Replaces this image by the one in `bundle`. Returns only if that did not come about.
///
/// # Errors
/// See [`ReplaceError`]: this image goes on as before.
pub fn replace_image(bundle: &[u8]) -> Result<Infallible, ReplaceError> {
    Replace::new(bundle).start()
}

/// A switch with options.
#[derive(Debug)]
pub struct Replace<'a> {
    bundle: &'a [u8],
    options: Options,
    ready_limit: Duration,
}

impl<'a> Replace<'a> {
    /// A switch to the image in `bundle`.
    #[must_use]
    pub fn new(bundle: &'a [u8]) -> Self {
        Self {
            bundle,
            options: Options::default(),
            ready_limit: Duration::from_secs(5),
        }
    }

    /// Gives the new image other arguments than this one's, separated by white space.
    #[must_use]
    pub fn args(mut self, args: &str) -> Self {
        self.options.args = Some(args.into());
        self
    }

    /// How long what was given to [`on_replace`](crate::on_replace) may take (default 5 s), in which
    /// everything goes on.
    #[must_use]
    pub fn ready_limit(mut self, limit: Duration) -> Self {
        self.ready_limit = limit;
        self
    }

    /// How long the new image may take until it commits (default 2 s).
    #[must_use]
    pub fn trial_limit(mut self, limit: Duration) -> Self {
        self.options.trial_limit_ns = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// How long this image is kept as the way back from the new one (default 60 s): if that crashes
    /// meanwhile, this one starts again.
    #[must_use]
    pub fn probation(mut self, time: Duration) -> Self {
        self.options.probation_ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self
    }

    /// After that time this image comes back, unless the new one has called [`confirm`].
    #[must_use]
    pub fn must_be_confirmed(mut self) -> Self {
        self.options.must_confirm = true;
        self
    }

    /// Keeps no way back: this image's memory is free at the commit.
    #[must_use]
    pub fn without_way_back(mut self) -> Self {
        self.options.keep = false;
        self
    }

    /// Lets an image of another name take this one's place (an image without trusted keys lets any).
    #[must_use]
    pub fn allow_other_app(mut self) -> Self {
        self.options.other_app = true;
        self
    }

    /// Lets an older version take this one's place, if that is what `statement` says, which
    /// `segue allow-downgrade` makes.
    #[must_use]
    pub fn downgrade(mut self, statement: &[u8]) -> Self {
        self.options.downgrade = Some(statement.into());
        self
    }

    /// The options themselves, for tests.
    #[must_use]
    pub fn options(mut self, change: impl FnOnce(&mut Options)) -> Self {
        change(&mut self.options);
        self
    }

    /// Switches. Returns only if that did not come about.
    ///
    /// # Errors
    /// See [`ReplaceError`]: this image goes on as before.
    pub fn start(self) -> Result<Infallible, ReplaceError> {
        // Dropped when nothing has come of it: then the app is told.
        let mut part = None;
        kernel::replace::replace_image(self.bundle, &self.options, &mut || {
            collected(self.ready_limit, &mut part)
        })
    }
}

/// What the app hands over.
fn collected(limit: Duration, part: &mut Option<Part>) -> Result<Values, ReplaceError> {
    let (values, taken) = handover::collect(limit).map_err(|unready| match unready {
        Unready::Refused(why) => ReplaceError::Refused { why },
        Unready::Busy => ReplaceError::Busy,
        Unready::Late => ReplaceError::Late {
            limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        },
    })?;
    *part = Some(taken);
    Ok(values)
}

/// What the time after a commit is like, in which the image before can come back.
pub use kernel::replace::fallback::Probation;

/// The probation that this image is on; `None` if there is none, or it is over.
#[must_use]
pub fn probation() -> Option<Probation> {
    kernel::replace::fallback::probation()
}

/// Says that this image is good: its probation is over, and the image before is gone. False if it
/// was over before.
pub fn confirm() -> bool {
    kernel::xen::Committed::get()
        .is_some_and(|token| kernel::replace::fallback::end(token, "confirmed"))
}

/// Puts the image before in this one's place again, with the state that this one hands over, while
/// it is on probation. Returns only if that did not come about.
///
/// # Errors
/// See [`ReplaceError`]: this image goes on. Once the other one has been tried, without a way back.
pub fn roll_back() -> Result<Infallible, ReplaceError> {
    let options = Options {
        keep: false,
        ..Options::default()
    };
    let mut part = None;
    kernel::replace::roll_back(&options, &mut || {
        collected(Duration::from_secs(5), &mut part)
    })
}

/// Called by the kernel after the commit of an image that is on probation.
#[unsafe(no_mangle)]
fn segue_runtime_probation() {
    let Some(probation) = probation() else { return };
    let deadline = system_time().saturating_add(probation.length_ns);
    let thread = std::thread::Builder::new()
        .name("probation".into())
        .stack_size(64 * 1024);
    let started = thread.spawn(move || {
        if kernel::replace::fallback::wait(deadline) {
            return;
        }
        if probation.must_confirm {
            nobody_confirmed();
        }
        if let Some(token) = kernel::xen::Committed::get() {
            kernel::replace::fallback::end(token, "time");
        }
    });
    if let Err(error) = started {
        println!("segue: probation without a limit: {error}");
    }
}

/// How often an image that nobody has confirmed is asked to go in order, and how long it has between.
const ROLL_BACKS: u32 = 3;
const BETWEEN_ROLL_BACKS: Duration = Duration::from_secs(2);

/// Brings the image before back: in order, with the state that this one hands over; if it does not
/// let itself be taken back, as after a crash. Returns if it was confirmed meanwhile, or the other one
/// was tried and did not start.
fn nobody_confirmed() {
    for _ in 0..ROLL_BACKS {
        let Err(error) = roll_back();
        println!("segue: rollback failed: {error}");
        let next = system_time().saturating_add(BETWEEN_ROLL_BACKS.as_nanos() as u64);
        if kernel::replace::fallback::wait(next) {
            return;
        }
    }
    kernel::end::crash(format_args!(
        "nobody has confirmed this image, and it cannot be taken back in order"
    ))
}

/// Ends the trial: this image takes the domain, the one before is gone. Does nothing when there is
/// no trial.
pub fn commit() {
    adopt::commit();
}

/// Whether this image is on trial.
#[must_use]
pub fn on_trial() -> bool {
    adopt::on_trial()
}

/// Gives up the trial: the image before goes on, and its `replace_image` returns `why`.
///
/// # Panics
/// Without a trial, which ends the image like any panic.
pub fn refuse(why: &str) -> ! {
    assert!(on_trial(), "refuse() without a trial: {why}");
    trial::give_up(format_args!("refused: {why}"))
}

/// What the toolstack asks of the domain: `xl shutdown`, `xl reboot`.
///
/// An app that uses nothing of this ends at once when it is asked to. One that does gets the grace
/// time (`segue.grace=SECONDS` on the command line, 10 without) to end by itself, by returning from
/// `main` or by `exit`; the domain's reason is the one asked for in any case.
///
/// ```no_run,ignore-linux
/// segue::shutdown::on_request(|kind| {
///     println!("{kind:?}: saving");
///     std::process::exit(0);
/// })?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub mod shutdown {
    use crate::kernel::devices::control;
    pub use control::Request as Kind;
    use std::time::Duration;
    use std::{io, thread};

    /// What was asked for last; `None` if nothing was. From the first call on, the app has the
    /// grace time.
    #[must_use]
    pub fn requested() -> Option<Kind> {
        control::heed();
        control::requested()
    }

    /// Waits until the domain is asked to end.
    #[must_use]
    pub fn wait() -> Kind {
        loop {
            if let Some(kind) = control::wait(None) {
                return kind;
            }
            // On trial, where nothing blocks and nothing is asked.
            thread::yield_now();
        }
    }

    /// As [`wait`], no longer than `limit`.
    #[must_use]
    pub fn wait_timeout(limit: Duration) -> Option<Kind> {
        let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
        control::wait(Some(crate::system_time().saturating_add(limit)))
    }

    /// Calls `f` in a thread of its own when the domain is asked to end.
    ///
    /// # Errors
    /// When there is no memory for the thread; on trial, where there are none.
    pub fn on_request(f: impl FnOnce(Kind) + Send + 'static) -> io::Result<()> {
        control::heed();
        let thread = thread::Builder::new().name("shutdown".into());
        thread.spawn(|| f(wait())).map(drop)
    }
}

/// Threads that stay on one vCPU.
pub mod vcpu {
    use crate::kernel::cpu::smp;
    pub use smp::{Job, RunError};

    /// Runs `job(argument)` on a vCPU, one job at a time on each. After the first boot the job may
    /// have to wait until its vCPU has come up.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn start(vcpu: u32, job: fn(u64), argument: u64) -> Result<Job, RunError> {
        smp::run_on(vcpu, job, argument)
    }

    /// The calling vCPU's number.
    #[must_use]
    pub fn current() -> u32 {
        crate::kernel::cpu::percpu::this().vcpu()
    }
}
