//! Shows the failure that Segue starts from, and its cure.
//!
//! Start it with `segue.shared_info=ram` and its own bundle as ramdisk. The first image has
//! shared_info in RAM and reads the clock on all vCPUs until the switch parks them. The second
//! fills all memory that the map calls free with a pattern, waits while clock and events tick, and
//! looks whether anything changed or reads all ones. With `--norelocate` the switch leaves
//! shared_info where it is, as a kexec of 2012 did: then Xen writes into the new image's memory.
//! Of the first image's text nothing may be left in free memory.

use segue::kernel::boot;
use segue::kernel::memory::{Extent, vm};
use segue::kernel::xen::{events, shared_info};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Readings of the clock, by all vCPUs, that were not behind the one before.
static READINGS: AtomicU64 = AtomicU64::new(0);
/// Those that were, or that read a hole.
static BAD: AtomicU64 = AtomicU64::new(0);
static STOP: AtomicBool = AtomicBool::new(false);

fn main() {
    let relocated = !std::env::args().any(|a| a == "--norelocate");
    if segue::generation() == 1 {
        first(relocated)
    } else {
        second(relocated)
    }
}

fn first(relocated: bool) {
    let me = segue::vcpu::current();
    for vcpu in (0..segue::vcpus()).filter(|v| *v != me) {
        segue::vcpu::start(vcpu, read_clock, 0).expect("an idle vCPU");
    }
    std::thread::sleep(Duration::from_millis(300));
    let (readings, bad) = (
        READINGS.load(Ordering::Relaxed),
        BAD.load(Ordering::Relaxed),
    );
    println!(
        "sentinel: readers vcpus={} readings={readings} bad={bad}",
        segue::vcpus()
    );
    assert!(
        bad == 0 && (readings > 0 || segue::vcpus() == 1),
        "the clock is not right"
    );
    let norelocate = if relocated { "" } else { "--norelocate" };
    let bundle = segue::bundles().next().expect("a bundle in the ramdisk");
    let error = segue::Replace::new(bundle)
        .args(&format!("--code {} {norelocate}", boot::image_base()))
        .options(|o| o.faults.skip_relocation = !relocated)
        .start()
        .unwrap_err();
    STOP.store(true, Ordering::Relaxed);
    println!("sentinel: result=stays {error}");
}

fn read_clock(_: u64) {
    let mut last = segue::system_time();
    while !STOP.load(Ordering::Relaxed) {
        let now = segue::system_time();
        let good = now >= last && now - last < 60_000_000_000;
        if good { &READINGS } else { &BAD }.fetch_add(1, Ordering::Relaxed);
        last = now;
    }
}

fn second(relocated: bool) {
    if !relocated {
        // Xen's flags are in the memory we are about to fill: no upcall would ever end.
        // SAFETY: interrupts off is what a kernel may do; nothing below waits for one.
        unsafe { std::arch::asm!("cli") };
    }
    let upcalls = events::upcalls();
    // More than there is: so all is free that is going to be.
    assert_eq!(vm::alloc_frames(1 << 40, 1), None);
    // All of it: nothing below allocates.
    let mut extents: Vec<Extent> = Vec::with_capacity(256);
    while extents.len() < extents.capacity()
        && let Some(free) = vm::free_extent(0)
        && let Some(extent) = vm::alloc_frames(free.frames(), 1)
    {
        extents.push(extent);
    }
    let code = code_before();
    let (mut code_frames, mut code_words) = (0, 0);
    for extent in &extents {
        let frames = (extent.start().as_u64()..extent.end()).zip(0..);
        for frame in frames.filter_map(|(_, n)| extent.part(n, 1)) {
            if code.is_some_and(|code| code.contains(frame)) {
                code_frames += 1;
                // SAFETY: frames of the allocator's, ours alone.
                let left = unsafe { words(frame) }.filter(|w| unsafe { w.read_volatile() } != 0);
                code_words += left.count();
            }
        }
        // SAFETY: frames of the allocator's, ours alone.
        unsafe { words(*extent) }.enumerate().for_each(|(i, w)| {
            // SAFETY: as above.
            unsafe { w.write_volatile(pattern(*extent, i)) }
        });
    }
    let frames: u64 = extents.iter().map(|e| e.frames()).sum();
    println!("sentinel: code frames={code_frames} words_left={code_words}");
    println!(
        "sentinel: filled frames={frames} free_frames={}",
        segue::free_frames()
    );

    if relocated {
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
    } else {
        // The clock is among what is broken: count cycles.
        let start = shared_info::rdtsc();
        while shared_info::rdtsc() - start < 4_000_000_000 {
            std::hint::spin_loop();
        }
    }

    let (mut changed, mut ones) = (0, 0);
    for extent in &extents {
        let mut all_ones = 0;
        for (i, w) in
            // SAFETY: as above.
            unsafe { words(*extent) }.enumerate()
        {
            // SAFETY: as above.
            let value = unsafe { w.read_volatile() };
            changed += u64::from(value != pattern(*extent, i));
            all_ones = if value == u64::MAX { all_ones + 1 } else { 0 };
            ones += u64::from(all_ones == 512);
        }
    }
    let result = if changed == 0 && ones == 0 {
        "clean"
    } else {
        "damaged"
    };
    println!(
        "sentinel: result={result} frames={frames} changed={changed} ones={ones} upcalls={}",
        events::upcalls() - upcalls
    );
}

/// Where the first image had its text: as long as this one's, which is the same image.
fn code_before() -> Option<Extent> {
    let mut args = std::env::args().skip_while(|a| a != "--code");
    let base: u64 = args.nth(1)?.parse().ok()?;
    Extent::touching(base, boot::image_data() - boot::image_base())
}

/// The words of an extent.
///
/// # Safety
/// The frames are the caller's.
unsafe fn words(extent: Extent) -> impl Iterator<Item = *mut u64> {
    let first = extent.addr().as_ptr::<u64>();
    // SAFETY: inside the extent.
    (0..(extent.bytes() / 8) as usize).map(move |i| unsafe { first.add(i) })
}

/// Different in every word; its low byte is 0, which as a flag of Xen's means "no event".
fn pattern(extent: Extent, word: usize) -> u64 {
    let address = extent.addr().as_u64() + word as u64 * 8;
    address.wrapping_mul(0x9e37_79b9_7f4a_7c15) & !0xff
}
