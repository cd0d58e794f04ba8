//! Switches that go wrong before the commit: the old image goes on each time.

use segue::ReplaceError;
use segue::kernel::devices::netfront;
use segue::kernel::memory::{PhysAddr, vm};
use segue::kernel::replace::{Faults, Place, Step, park};
use segue::kernel::xen::shared_info;
use segue::kernel::{boot, cpu};
use segue::preserved::Region;
use std::arch::asm;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// One row: what goes wrong, and what the reason has to say of it.
#[derive(Clone, Copy)]
struct Trial {
    name: &'static str,
    /// It does not come to a trial: the old image runs on.
    runs: bool,
    /// Needs another vCPU to take it back.
    hangs: bool,
    faults: Faults,
    reason: &'static str,
}

const NONE: Faults = Faults::NONE;

const fn trial(name: &'static str, reason: &'static str) -> Trial {
    Trial {
        name,
        runs: false,
        hangs: false,
        faults: NONE,
        reason,
    }
}

/// The new image runs into a fault of the kernel's, at this place.
const fn fault_at(name: &'static str, place: Place) -> Trial {
    Trial {
        faults: Faults {
            at: Some(place),
            ..NONE
        },
        ..trial(name, "invalid-opcode")
    }
}

/// A step fails before the trial.
const fn fails(name: &'static str, faults: Faults, reason: &'static str) -> Trial {
    Trial {
        runs: true,
        faults,
        ..trial(name, reason)
    }
}

const fn step(step: Step) -> Faults {
    Faults {
        step: Some(step),
        ..NONE
    }
}

const fn hang_trial(name: &'static str) -> Trial {
    Trial {
        hangs: true,
        ..trial(name, "hang")
    }
}

const TRIALS: &[Trial] = &[
    fails("verify", NONE, "the bundle was refused"),
    fails("load", step(Step::Load), "an injected fault"),
    fails("prepare", step(Step::Prepare), "an injected fault"),
    fails(
        "relocate",
        Faults {
            refuse_relocation: true,
            ..NONE
        },
        "Xen did not move shared_info",
    ),
    Trial {
        faults: Faults {
            damage_record: true,
            ..NONE
        },
        ..trial("record", "could not read the handover")
    },
    trial("panic", "panic at="),
    trial("refuse", "refused: not today"),
    trial("exit", "exit without commit"),
    trial("null", "page-fault"),
    trial("undefined", "invalid-opcode"),
    trial("divide", "divide-error"),
    fault_at("early", Place::Early),
    fault_at("commit", Place::Commit),
    trial("overflow", "stack-overflow"),
    trial("memory", "exit without commit"),
    trial("write-own-text", "page-fault"),
    trial("scribble", "gave up after scribbling"),
    hang_trial("spin"),
    Trial {
        faults: Faults {
            lose_nmi: true,
            ..NONE
        },
        ..hang_trial("spin-lost-nmi")
    },
    hang_trial("scribble-spin"),
    hang_trial("halt"),
];

/// What a trial is told to write to, of the old image and what it shares: all of it faults.
fn forbidden(region: &Region<[u64]>) -> Vec<(&'static str, u64)> {
    static TARGET: AtomicU64 = AtomicU64::new(7);
    let heap = Box::leak(Box::new(7u64));
    let local = 7u64;
    let park = park::get().map_or(0, |p| p.block().addr().as_u64());
    vec![
        ("write-old-text", boot::image_base()),
        ("write-old-data", (&raw const TARGET).addr() as u64),
        ("write-old-heap", (&raw const *heap).addr() as u64),
        ("write-old-stack", (&raw const local).addr() as u64),
        ("write-region", region.get().as_ptr().addr() as u64),
        (
            "write-region-header",
            region.get().as_ptr().addr() as u64 - 0x1000,
        ),
        ("write-old-tables", vm::root().unwrap_or(0)),
        ("write-shared-info", boot::home().gfn().addr().as_u64()),
        ("write-park-code", park),
        ("write-park-tables", park + 0x1000),
        ("write-park-control", park + 0x5000),
        (
            "write-free-frame",
            vm::free_extent(0).map_or(0, |e| e.addr().as_u64()),
        ),
        (
            "write-module",
            boot::modules().first().map_or(0, |m| m.addr),
        ),
        ("read-old-data", (&raw const TARGET).addr() as u64),
    ]
}

/// Counts of the loops on the other vCPUs: they go on over trials without a skip or a repeat.
static COUNTS: [AtomicU64; cpu::percpu::MAX] = [const { AtomicU64::new(0) }; cpu::percpu::MAX];
static WRONG: AtomicU64 = AtomicU64::new(0);
/// What the first mismatch was: memory, register, floating-point register.
static FIRST: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static STOP: AtomicBool = AtomicBool::new(false);
/// A bundle with one bit changed.
static ALTERED: OnceLock<Vec<u8>> = OnceLock::new();

/// Counts in memory, in a register and in a floating-point register, and compares.
fn count(vcpu: u64) {
    let memory = &COUNTS[vcpu as usize];
    let (mut register, mut float) = (0u64, 0f64);
    while !STOP.load(Ordering::Relaxed) {
        let before = memory.fetch_add(1, Ordering::Relaxed);
        if (before != register || float != register as f64)
            && WRONG.fetch_add(1, Ordering::Relaxed) == 0
        {
            FIRST[0].store(before, Ordering::Relaxed);
            FIRST[1].store(register, Ordering::Relaxed);
            FIRST[2].store(float.to_bits(), Ordering::Relaxed);
        }
        register += 1;
        float += 1.0;
    }
}

/// FNV-1a of what a trial must not change: our text and constants, page tables, a block of heap.
fn digest(block: &[u8]) -> u64 {
    let text = (boot::image_base(), boot::image_data() - boot::image_base());
    let tables = vm::workspace().map(|w| (w.tables().addr().as_u64(), w.tables().bytes()));
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |bytes: &[u8]| {
        for b in bytes {
            hash = (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3);
        }
    };
    for (addr, len) in [Some(text), tables].into_iter().flatten() {
        if let Some(addr) = PhysAddr::new(addr) {
            // SAFETY: mapped readable; nobody writes it while this runs.
            add(unsafe { std::slice::from_raw_parts(addr.as_ptr::<u8>(), len as usize) });
        }
    }
    add(block);
    hash
}

/// Has every vCPU but this one count; gives how many there are, and a block of heap to look after.
fn begin() -> (u32, Vec<u8>) {
    let me = segue::vcpu::current();
    let vcpus = segue::vcpus();
    for vcpu in (0..vcpus).filter(|v| *v != me) {
        segue::vcpu::start(vcpu, count, u64::from(vcpu)).expect("an idle vCPU");
    }
    let block = (0..64 * 1024u32).map(|i| (i * 31) as u8).collect();
    ALTERED.get_or_init(|| {
        let mut bundle = crate::own_bundle().to_vec();
        let middle = bundle.len() / 2;
        bundle[middle] ^= 1;
        bundle
    });
    (vcpus, block)
}

/// Runs trials one after the other, `times` in all, that end without a time-out.
pub fn resume(times: &str) {
    let times = times.parse().unwrap_or(0);
    let (vcpus, block) = begin();
    let _ = attempt(&FIRST_TRIAL, "");
    let trials = TRIALS.iter().filter(|t| !t.hangs && !t.runs);
    let failed = trials
        .cycle()
        .take(times)
        .filter(|t| !check(t, "", &block, vcpus))
        .count();
    println!("gauntlet: done trials={times} failed={failed}");
    STOP.store(true, Ordering::Relaxed);
}

/// Runs all trials, then one that commits.
pub fn run() {
    let (vcpus, block) = begin();
    // What the trials see, and can't write to; the last one does not take it.
    let region = Region::<[u64]>::create("gauntlet", 1, 100_000).expect("a region");
    // The first failure may make the heap grow; from then on nothing may be lost.
    let _ = attempt(&FIRST_TRIAL, "");
    let (mut done, mut failed) = (0, 0);
    for t in TRIALS.iter().filter(|t| vcpus > 1 || !t.hangs) {
        done += 1;
        failed += u32::from(!check(t, "", &block, vcpus));
    }
    // Each vCPU's park.
    for vcpu in (0..vcpus).filter(|v| *v != segue::vcpu::current()) {
        done += 1;
        let name = format!("park-vcpu-{vcpu}").leak();
        let deaf = Faults {
            deaf: Some(vcpu),
            ..NONE
        };
        let reason = format!("vCPU {vcpu} did not park").leak();
        failed += u32::from(!check(&fails(name, deaf, reason), "", &block, vcpus));
    }
    for (name, address) in forbidden(&region) {
        done += 1;
        assert_ne!(address, 0, "{name} has no address");
        // The fault has to be at this very address.
        let reason = format!("address={address:#x} image");
        let t = trial(name, reason.leak());
        failed += u32::from(!check(&t, &format!("{address:#x}"), &block, vcpus));
    }
    if WRONG.load(Ordering::Relaxed) > 0 {
        let [memory, register, float] = FIRST.each_ref().map(|f| f.load(Ordering::Relaxed));
        let float = f64::from_bits(float);
        println!("gauntlet: loops memory={memory} register={register} float={float}");
    }
    println!("gauntlet: done trials={done} failed={failed}");
    STOP.store(true, Ordering::Relaxed);
    segue::on_replace(|next| Ok(next.put("long", &long())?));
    let error = segue::Replace::new(crate::own_bundle())
        .args("--as commit")
        .start()
        .unwrap_err();
    println!("gauntlet: not committed: {error}");
}

/// A value that is longer than the heap is with which a trial begins.
fn long() -> String {
    "long".repeat(80 << 10)
}

/// A first failure.
const FIRST_TRIAL: Trial = trial("panic", "");

/// One trial and everything that has to hold after it.
fn check(t: &Trial, arg: &str, block: &[u8], vcpus: u32) -> bool {
    let (frames, sum, time) = (segue::free_frames(), digest(block), segue::system_time());
    let counts = || {
        COUNTS
            .iter()
            .take(vcpus as usize)
            .map(|c| c.load(Ordering::Relaxed))
    };
    let (reason, outcome) = match attempt(t, arg) {
        ReplaceError::Resumed { reason, .. } => (reason, "resumed"),
        error => (error.to_string(), "runs"),
    };
    let expected = (outcome == "runs") == t.runs && reason.contains(t.reason);
    // The loops go on: each of them, by itself, soon.
    let me = segue::vcpu::current() as usize;
    let deadline = segue::system_time() + 5_000_000_000;
    let moved = |from: &[u64]| {
        counts()
            .zip(from)
            .enumerate()
            .all(|(v, (n, f))| v == me || n > *f)
    };
    let after: Vec<u64> = counts().collect();
    while !moved(&after) && segue::system_time() < deadline {
        std::hint::spin_loop();
    }
    let loops = moved(&after) && WRONG.load(Ordering::Relaxed) == 0;
    let memory = digest(block) == sum;
    let same = segue::free_frames() == frames;
    // Behind the clamp, too; clocks of vCPUs may differ by less than this.
    let forward = shared_info::unclamped() + 1_000_000 >= time;
    let good = expected && loops && memory && same && forward;
    let ok = |good: bool| if good { "ok" } else { "bad" };
    println!(
        "gauntlet: trial={} outcome={} reason=\"{reason}\" loops={} memory={} frames={} time={}",
        t.name,
        if good { outcome } else { "bad" },
        ok(loops),
        ok(memory),
        ok(same),
        ok(forward)
    );
    good
}

fn attempt(t: &Trial, arg: &str) -> ReplaceError {
    let args = format!("--as {} {arg}", t.name);
    let bundle = match t.name {
        "verify" => ALTERED.get().expect("begun"),
        _ => crate::own_bundle(),
    };
    segue::Replace::new(bundle)
        .args(&args)
        .trial_limit(Duration::from_millis(800))
        .options(|o| o.faults = t.faults)
        .start()
        .unwrap_err()
}

/// A trial that hangs, whatever the number of vCPUs.
pub fn hang() {
    let error = attempt(&hang_trial("spin"), "");
    println!("gauntlet: hang ended: {error}");
}

/// What an image on trial does that was started with `--as BEHAVIOUR`.
pub fn behave(args: &[&str]) {
    println!("gauntlet: on trial with {args:?}");
    match *args {
        ["--as", "panic", ..] => panic!("gauntlet panics on trial"),
        ["--as", "refuse", ..] => segue::refuse("not today"),
        ["--as", "exit", ..] => {}
        // What an image does that wants the network.
        ["--as", "device", ..] => match netfront::check_offered() {
            Ok(()) => segue::refuse("all devices can go on"),
            Err(why) => segue::refuse(&why.to_string()),
        },
        // SAFETY: none: the fault is the point.
        ["--as", "null", ..] => unsafe {
            std::ptr::null::<u8>().read_volatile();
        },
        // SAFETY: as above.
        ["--as", "undefined", ..] => unsafe { asm!("ud2") },
        // SAFETY: as above.
        ["--as", "divide", ..] => unsafe {
            asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
        },
        ["--as", "overflow", ..] => println!("{}", deep(1)),
        ["--as", "memory", ..] => {
            let mut all = Vec::new();
            loop {
                all.push(vec![1u8; 16 * 1024]);
            }
        }
        ["--as", "write-own-text", ..] => poke(boot::image_base()),
        ["--as", "scribble", ..] => {
            scribble();
            segue::refuse("gave up after scribbling")
        }
        ["--as", "scribble-spin", ..] => {
            scribble();
            spin()
        }
        ["--as", "spin" | "spin-lost-nmi", ..] => spin(),
        // SAFETY: as above: with interrupts off, Xen takes the vCPU for gone.
        ["--as", "halt", ..] => unsafe {
            loop {
                asm!("cli", "hlt");
            }
        },
        ["--as", "read-old-data", address] => {
            let ptr = PhysAddr::new(number(address))
                .expect("an address")
                .as_ptr::<u64>();
            // SAFETY: as above.
            println!("read {}", unsafe { ptr.read_volatile() });
        }
        ["--as", name, address] if name.starts_with("write-") => poke(number(address)),
        ["--as", "commit", ..] => {
            let mut handed = segue::handover();
            let came: Option<String> = handed.as_mut().and_then(|h| h.take("long").ok());
            let long_came = came.is_some_and(|came| came == long());
            let regions = || handed.as_ref().map_or(0, |h| h.regions().len());
            let offered = regions();
            // Taken and dropped, it is there until the commit.
            drop(Region::<[u64]>::take("gauntlet", 1));
            let dropped = regions();
            segue::commit();
            println!(
                "gauntlet: committed generation={} offered={offered} dropped={dropped} left={} \
                 long={}",
                segue::generation(),
                regions(),
                u8::from(long_came)
            );
        }
        ["--padded", rest, bytes] => {
            segue::commit();
            crate::cost::padded(rest, bytes);
        }
        _ => segue::refuse("no such behaviour"),
    }
}

fn number(text: &str) -> u64 {
    u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0)
}

fn spin() -> ! {
    loop {
        std::hint::spin_loop();
    }
}

fn poke(address: u64) {
    let ptr = PhysAddr::new(address).expect("an address").as_ptr::<u64>();
    // SAFETY: none: the fault is the point.
    unsafe { ptr.write_volatile(0xdead_beef) };
}

/// Overflows the stack.
#[inline(never)]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    if n == u64::MAX {
        n
    } else {
        deep(n + 1) + block[n as usize % 64]
    }
}

/// Writes to everything a trial can write to but its own stack, code and variables: its part of
/// the park pages, its workspace's unused memory.
fn scribble() {
    let writable = park::get().into_iter().flat_map(|p| p.trial_view());
    for (extent, perms) in writable {
        if perms == segue::kernel::memory::paging::Perms::Write {
            let ptr = extent.addr().as_ptr::<u8>();
            // SAFETY: mapped writable; who relies on the contents is what is tested.
            unsafe { ptr.write_bytes(0xa5, extent.bytes() as usize) };
        }
    }
    let block = vec![0xa5u8; 100 * 1024];
    std::hint::black_box(&block);
}
