//! Faults in a running image, and its memory.

use segue::kernel::memory::vm;
use std::arch::asm;

/// Runs into a fault.
pub fn run(kind: &str) {
    match kind {
        // SAFETY: none: the fault is the point.
        "null" => unsafe {
            std::ptr::null::<u8>().read_volatile();
        },
        // SAFETY: none, as above.
        "text" => unsafe { (run as *const () as *mut u8).write_volatile(0) },
        "data" => {
            static CODE: [u8; 2] = [0xc3; 2];
            // SAFETY: none, as above.
            let f: extern "C" fn() = unsafe { std::mem::transmute(&raw const CODE) };
            f();
        }
        "stack" => println!("{}", deep(1)),
        // SAFETY: none, as above.
        "divide" => unsafe {
            asm!("xor edx, edx", "xor ecx, ecx", "div ecx", out("eax") _, out("ecx") _, out("edx") _);
        },
        "panic" => panic!("gauntlet panics with \"quotes\""),
        _ => println!("gauntlet: no fault {kind}"),
    }
}

#[inline(never)]
fn deep(n: u64) -> u64 {
    let block = std::hint::black_box([n; 64]);
    if n == u64::MAX {
        n
    } else {
        deep(n + 1) + block[n as usize % 64]
    }
}

/// Takes all frames, writes each, reads each back, gives them back.
pub fn memory() {
    let before = segue::free_frames();
    let mut extents = Vec::with_capacity(256);
    while extents.len() < extents.capacity()
        && let Some(free) = vm::free_extent(0)
        && let Some(extent) = vm::alloc_frames(free.frames(), 1)
    {
        extents.push(extent);
    }
    let words = || {
        extents.iter().flat_map(|e| {
            // One word a frame shows whether frames are there and all different.
            let first = e.addr().as_ptr::<u64>();
            // SAFETY: inside the extent, which is ours.
            (0..e.frames() as usize).map(move |i| unsafe { first.add(i * 512) })
        })
    };
    // SAFETY: frames of ours.
    words().for_each(|w| unsafe { w.write_volatile(w.addr() as u64 ^ 0x5a5a) });
    // SAFETY: as above.
    let wrong = words()
        .filter(|w| unsafe { w.read_volatile() } != w.addr() as u64 ^ 0x5a5a)
        .count();
    let high = words().filter(|w| w.addr() >= 1 << 32).count();
    for extent in extents {
        // SAFETY: from the allocator, not used any more.
        unsafe { vm::free_frames(extent) };
    }
    let outcome = if wrong == 0 && segue::free_frames() == before {
        "ok"
    } else {
        "bad"
    };
    println!("gauntlet: memory frames={before} high_frames={high} wrong={wrong} outcome={outcome}");
}
