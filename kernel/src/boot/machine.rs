//! What an image knows of the machine it runs on, however it came to run.

use crate::boot::cmdline::CommandLine;
use crate::boot::info::{EntryKind, MAX_EXTENTS, MAX_MODULES, Module};
use crate::cpu::Features;
use crate::image::{AbiRange, BuildId, Ident, Name, Place, TrustedKeys, Version};
use crate::memory::{ExtentSet, Gfn, vm};
use crate::xen::carve::Carve;
use crate::xen::events::Ports;
use crate::xen::hypercall::{self, XenError};
use crate::xen::shared_info::{self, Home};
use crate::xen::{Committed, console, grant, xenstore};
use arrayvec::ArrayVec;
use core::sync::atomic::{AtomicU64, Ordering};
use hermit_sync::OnceCell;

/// Handover ABI versions that this kernel speaks (I12).
pub const ABI: AbiRange = match AbiRange::new(1, 1) {
    Some(range) => range,
    None => panic!("1..=1 is a range"),
};

/// What does not change while an image runs.
#[derive(Debug)]
pub struct Machine {
    /// How this image came to run.
    pub entry: EntryKind,
    /// 1 for the image the domain booted, one more for each commit.
    pub generation: u64,
    /// RAM, in whole frames.
    pub ram: ExtentSet<MAX_EXTENTS>,
    /// The command line.
    pub cmdline: CommandLine,
    /// Ramdisk or modules.
    pub modules: ArrayVec<Module, MAX_MODULES>,
    /// ACPI's RSDP.
    pub rsdp: Option<u64>,
    /// The domain has an HVM machine's devices (a UART).
    pub hvm: bool,
    /// Xen's version.
    pub xen: (u16, u16),
    /// The processor.
    pub features: Features,
    /// Frames for what Xen writes; the first is shared_info's. How many are out is [`carved`]'s to
    /// say.
    pub carve: Carve,
}

impl Machine {
    /// The carved frame that shared_info is in, or moves to in a switch.
    #[must_use]
    pub fn final_home(&self) -> Gfn {
        self.carve.range().start()
    }
}

static MACHINE: OnceCell<Machine> = OnceCell::new();
static PORTS: OnceCell<Ports> = OnceCell::new();
/// shared_info is in RAM at this frame; 0 when it is in its carved frame.
static HOME_IN_RAM: AtomicU64 = AtomicU64::new(0);

/// The frame that shared_info was moved from, while it is a hole; else 0.
static OPEN_HOLE: AtomicU64 = AtomicU64::new(0);

/// The frame of RAM that is a hole, if there is one.
pub(crate) fn open_hole() -> Option<Gfn> {
    Gfn::new(OPEN_HOLE.load(Ordering::Acquire)).filter(|g| g.as_u64() != 0)
}

/// Carved frames that are out.
static CARVED: AtomicU64 = AtomicU64::new(0);

/// Number of frames carved for what Xen writes: shared_info's, then the grant table's.
#[must_use]
pub fn carved() -> u64 {
    CARVED.load(Ordering::Acquire)
}

/// The next carved frame; `None` at the end of the range.
pub(crate) fn carve_frame() -> Option<Gfn> {
    let range = machine().carve.range();
    let next = |used| (used < range.frames()).then_some(used + 1);
    let used = CARVED.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    Some(range.part(used.ok()?, 1)?.start())
}

/// Sets the machine, once.
pub(crate) fn set_machine(machine: Machine) -> &'static Machine {
    CARVED.store(machine.carve.used(), Ordering::Release);
    MACHINE.get_or_init(|| machine)
}

/// The machine. Only after the start has found it: before, there is no clock and no memory.
#[must_use]
pub fn machine() -> &'static Machine {
    match MACHINE.get() {
        Some(machine) => machine,
        None => unreachable!("the machine is set before anything asks for it"),
    }
}

/// This image's generation, 1 before it is known.
#[must_use]
pub fn generation() -> u64 {
    MACHINE.get().map_or(1, |m| m.generation)
}

/// The modules that came with the image.
#[must_use]
pub fn modules() -> &'static [Module] {
    MACHINE.get().map_or(&[], |m| &m.modules)
}

pub(crate) fn set_ports(ports: Ports) {
    ports.note();
    let _ = PORTS.set(ports);
}

/// The event channel ports.
#[must_use]
pub fn ports() -> Option<&'static Ports> {
    PORTS.get()
}

/// Where shared_info is.
#[must_use]
pub fn home() -> Home {
    match Gfn::new(HOME_IN_RAM.load(Ordering::Acquire)) {
        Some(gfn) if gfn.as_u64() != 0 => Home::Ram(gfn),
        _ => Home::Mmio(machine().final_home()),
    }
}

pub(crate) fn set_home_in_ram(gfn: Gfn) {
    HOME_IN_RAM.store(gfn.as_u64(), Ordering::Release);
}

/// Frames outside RAM that every image maps: shared_info's, the rings of console and xenstore, the
/// grant table's.
#[must_use]
pub fn device_frames(_: Committed) -> ArrayVec<Gfn, MAX_DEVICE_FRAMES> {
    let mut frames = ArrayVec::new();
    frames.push(machine().final_home());
    frames.extend(console::get().map(|c| c.gfn));
    frames.extend(xenstore::home().map(|r| r.gfn));
    frames.extend(grant::table_frames());
    frames
}

/// Most frames in [`device_frames`].
const MAX_DEVICE_FRAMES: usize = 3 + grant::MAX_FRAMES;

/// Moves shared_info to `to` and reads the clock there from now on.
///
/// # Safety
/// No other vCPU runs (I6), and `to` is the carved frame.
///
/// # Errors
/// As Xen says; nothing has changed.
pub unsafe fn move_shared_info(token: Committed, to: Gfn) -> Result<(), XenError> {
    let from = HOME_IN_RAM.load(Ordering::Acquire);
    // SAFETY: the caller's promise; the frame is mapped in this image's tables.
    unsafe {
        hypercall::map_shared_info(token, to)?;
        shared_info::set_home(to);
    }
    HOME_IN_RAM.store(0, Ordering::Release);
    OPEN_HOLE.store(from, Ordering::Release);
    Ok(())
}

/// Makes the hole that shared_info left RAM again, and gives it to the frame allocator.
pub fn refill_hole(token: Committed, gfn: Gfn) {
    match hypercall::populate_hole(token, gfn) {
        Ok(()) => {
            OPEN_HOLE.store(0, Ordering::Release);
            // SAFETY: the frame was this image's (or the old one's) and is empty RAM now.
            unsafe { vm::free_frames(gfn.extent()) }
        }
        // Without the frame the domain is 4 KiB smaller; the next switch hands the hole on.
        Err(e) => {
            OPEN_HOLE.store(gfn.as_u64(), Ordering::Release);
            console::println!("segue: hole gfn={gfn:?} stays: {e}");
        }
    }
}

unsafe extern "C" {
    static __image_start: u8;
    static __data_start: u8;
    static __image_end: u8;
}

/// Address of the image's first byte.
#[must_use]
pub fn image_base() -> u64 {
    (&raw const __image_start).addr() as u64
}

/// Address of the first byte of the image that may change: text and constants are before it.
#[must_use]
pub fn image_data() -> u64 {
    (&raw const __data_start).addr() as u64
}

/// Address after the image's last byte.
#[must_use]
pub fn image_end() -> u64 {
    (&raw const __image_end).addr() as u64
}

/// The note that says who this image is; the image builder writes name and version into it.
#[repr(C)]
struct IdentNote {
    header: [u32; 3],
    owner: [u8; 8],
    desc: [u8; Ident::DESC_LEN],
}

#[used]
#[unsafe(link_section = ".note.segue")]
static IDENT: IdentNote = IdentNote {
    header: [
        Ident::NOTE_OWNER.len() as u32,
        Ident::DESC_LEN as u32,
        Ident::NOTE_TYPE,
    ],
    owner: *b"Segue\0\0\0",
    desc: ident_desc(),
};

const fn ident_desc() -> [u8; Ident::DESC_LEN] {
    let mut desc = [0; Ident::DESC_LEN];
    desc[0] = ABI.min() as u8;
    desc[4] = ABI.max() as u8;
    desc
}

/// Who this image is.
#[must_use]
pub fn ident() -> Option<Ident> {
    // SAFETY: a plain array; volatile because the builder changes it after the compiler has seen it.
    let desc = unsafe { (&raw const IDENT.desc).read_volatile() };
    Ident::parse(&desc).ok()
}

/// The same, with a name and a version for an image that was not finished by the build.
#[must_use]
pub fn identity() -> Ident {
    ident().unwrap_or(Ident {
        abi: ABI,
        trial: false,
        name: Name::UNNAMED,
        version: Version::NONE,
        build: BuildId::default(),
    })
}

/// The keys that this image trusts, from its build on. They are among its constants: no code of
/// its own can change them.
#[must_use]
pub fn trusted_keys() -> TrustedKeys<'static> {
    unsafe extern "C" {
        // Of size 0: when the section is empty, both are at the same address.
        static __trust_start: [u8; 0];
        static __trust_end: [u8; 0];
    }
    let start = (&raw const __trust_start).cast::<u8>();
    let len = (&raw const __trust_end).addr() - start.addr();
    // SAFETY: the section's bytes are initialised data of this image, read-only and for ever.
    TrustedKeys::new(unsafe { core::slice::from_raw_parts(start, len) })
}

/// Where this image runs, for statements that count in one place only. The toolstack says both.
#[must_use]
pub fn place(token: Committed) -> Place {
    Place {
        domain: hypercall::guest_handle(token).ok(),
        fleet: machine().cmdline.option("fleet").and_then(Name::new),
    }
}

/// Says on the console whether bundles have to be signed.
pub fn report_trust() {
    let keys = trusted_keys();
    if keys.is_open() {
        console::println!(
            "segue: trust open keys=0 warning=\"this image runs any bundle it is given: built without --trust\""
        );
    } else {
        console::println!("segue: trust keys={}", keys.iter().count());
    }
}

/// Whether the app commits by itself (`segue::trial!()`), rather than when its main starts.
#[must_use]
pub fn wants_trial() -> bool {
    unsafe extern "C" {
        // Of no size: the compiler may think that two bytes have different addresses.
        static __flags_start: [u8; 0];
        static __flags_end: [u8; 0];
    }
    let len = (&raw const __flags_end).addr() - (&raw const __flags_start).addr();
    len > 0
}
