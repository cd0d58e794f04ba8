//! Trials that end badly: the old image resumes each time.

use segue::ReplaceError;
use segue::kernel::memory::{PhysAddr, vm};
use segue::kernel::replace::{Faults, park};
use segue::kernel::xen::shared_info;
use segue::kernel::{boot, cpu};
use std::arch::asm;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// One trial: what the new image does, and what the reason has to say of it.
struct Trial {
    name: &'static str,
    /// Needs another vCPU to take it back.
    hangs: bool,
    faults: Faults,
    reason: &'static str,
}

const NONE: Faults = Faults {
    skip_relocation: false,
    refuse_relocation: false,
    lose_nmi: false,
    early_fault: false,
};

const fn trial(name: &'static str, reason: &'static str) -> Trial {
    Trial {
        name,
        hangs: false,
        faults: NONE,
        reason,
    }
}

const fn hang_trial(name: &'static str) -> Trial {
    Trial {
        name,
        hangs: true,
        faults: NONE,
        reason: "hang",
    }
}

const TRIALS: &[Trial] = &[
    trial("panic", "panic at="),
    trial("refuse", "refused: not today"),
    trial("exit", "exit without commit"),
    trial("null", "page-fault"),
    trial("undefined", "invalid-opcode"),
    trial("divide", "divide-error"),
    Trial {
        name: "early",
        faults: Faults {
            early_fault: true,
            ..NONE
        },
        ..trial("", "invalid-opcode")
    },
    trial("overflow", "stack-overflow"),
    trial("memory", "exit without commit"),
    trial("write-own-text", "page-fault"),
    trial("scribble", "gave up after scribbling"),
    hang_trial("spin"),
    Trial {
        name: "spin-lost-nmi",
        faults: Faults {
            lose_nmi: true,
            ..NONE
        },
        ..hang_trial("")
    },
    hang_trial("scribble-spin"),
    hang_trial("halt"),
];

/// What a trial is told to write to, of the old image and what it shares: all of it faults.
fn forbidden() -> Vec<(&'static str, u64)> {
    static TARGET: AtomicU64 = AtomicU64::new(7);
    let heap = Box::leak(Box::new(7u64));
    let local = 7u64;
    let park = park::get().map_or(0, |p| p.block().addr().as_u64());
    vec![
        ("write-old-text", boot::image_base()),
        ("write-old-data", (&raw const TARGET).addr() as u64),
        ("write-old-heap", (&raw const *heap).addr() as u64),
        ("write-old-stack", (&raw const local).addr() as u64),
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

/// Runs all trials, then one that commits.
pub fn run() {
    let me = segue::vcpu::current();
    let vcpus = segue::vcpus();
    for vcpu in (0..vcpus).filter(|v| *v != me) {
        segue::vcpu::start(vcpu, count, u64::from(vcpu)).expect("an idle vCPU");
    }
    let block: Vec<u8> = (0..64 * 1024u32).map(|i| (i * 31) as u8).collect();
    // The first failure may make the heap grow; from then on nothing may be lost.
    let _ = attempt(&TRIALS[0], "");
    let (mut done, mut failed) = (0, 0);
    for t in TRIALS.iter().filter(|t| vcpus > 1 || !t.hangs) {
        done += 1;
        failed += u32::from(!check(t, t.name, "", &block, vcpus));
    }
    for (name, address) in forbidden() {
        done += 1;
        assert_ne!(address, 0, "{name} has no address");
        // The fault has to be at this very address.
        let reason = format!("address={address:#x} image");
        let t = Trial {
            reason: reason.leak(),
            ..trial("", "")
        };
        failed += u32::from(!check(&t, name, &format!("{address:#x}"), &block, vcpus));
    }
    if WRONG.load(Ordering::Relaxed) > 0 {
        let [memory, register, float] = FIRST.each_ref().map(|f| f.load(Ordering::Relaxed));
        let float = f64::from_bits(float);
        println!("gauntlet: loops memory={memory} register={register} float={float}");
    }
    println!("gauntlet: done trials={done} failed={failed}");
    STOP.store(true, Ordering::Relaxed);
    let error = segue::Replace::new(crate::own_bundle())
        .args("--as commit")
        .start()
        .unwrap_err();
    println!("gauntlet: not committed: {error}");
}

/// One trial and everything that has to hold after it.
fn check(t: &Trial, name: &str, arg: &str, block: &[u8], vcpus: u32) -> bool {
    let (frames, sum, time) = (segue::free_frames(), digest(block), segue::system_time());
    let counts = || {
        COUNTS
            .iter()
            .take(vcpus as usize)
            .map(|c| c.load(Ordering::Relaxed))
    };
    let outcome = attempt(&Trial { name: "", ..*t }, &format!("{name} {arg}"));
    let (resumed, reason) = match &outcome {
        ReplaceError::Resumed { reason, .. } => (true, reason.as_str()),
        _ => (false, ""),
    };
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
    let good = resumed && reason.contains(t.reason) && loops && memory && same && forward;
    let ok = |good: bool| if good { "ok" } else { "bad" };
    println!(
        "gauntlet: trial={name} outcome={} reason=\"{reason}\" loops={} memory={} frames={} time={}",
        if good { "resumed" } else { "bad" },
        ok(loops),
        ok(memory),
        ok(same),
        ok(forward)
    );
    if !resumed {
        println!("gauntlet: {outcome}");
    }
    good
}

fn attempt(t: &Trial, behaviour: &str) -> ReplaceError {
    let args = format!("--as {}{behaviour}", t.name);
    segue::Replace::new(crate::own_bundle())
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
            segue::commit();
            println!("gauntlet: committed generation={}", segue::generation());
        }
        ["--padded", rest] => {
            segue::commit();
            crate::cost::padded(rest);
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
