//! What things cost, for `make bench`.

use segue::kernel::image::{Bundle, Manifest, assemble};
use segue::kernel::xen::shared_info::{self, rdtsc};

/// Reading the clock against reading the time stamp counter, ordered: the least of many runs, in
/// turn.
pub fn clock() {
    let (mut pvclock, mut tsc) = (u64::MAX, u64::MAX);
    for _ in 0..50 {
        pvclock = pvclock.min(cycles(shared_info::now));
        tsc = tsc.min(cycles(rdtsc));
    }
    println!(
        "gauntlet: clock pvclock_cycles={pvclock} rdtsc_cycles={tsc} ratio={:.2}",
        pvclock as f64 / tsc as f64
    );
}

/// What a reading costs, on average over many.
fn cycles(read: impl Fn() -> u64) -> u64 {
    const READS: u64 = 10_000;
    let start = rdtsc();
    for _ in 0..READS {
        std::hint::black_box(read());
    }
    (rdtsc() - start) / READS
}

/// Switches `rest` more times, to the plain image and to one with `bytes` more in turn.
pub fn padded(rest: &str, bytes: &str) {
    let rest: u32 = rest.parse().unwrap_or(0);
    let padding: usize = bytes.parse().unwrap_or(0);
    if rest == 0 {
        println!("gauntlet: done padded");
        return;
    }
    let plain = crate::own_bundle();
    let args = format!("--padded {} {bytes}", rest - 1);
    let error = if rest.is_multiple_of(2) {
        println!("gauntlet: next=padded");
        segue::Replace::new(&with_padding(plain, padding))
            .args(&args)
            .start()
    } else {
        println!("gauntlet: next=plain");
        segue::Replace::new(plain).args(&args).start()
    };
    println!("gauntlet: not switched: {}", error.unwrap_err());
}

/// The same image with a read-only segment of non-zero bytes behind its end.
fn with_padding(bundle: &[u8], bytes: usize) -> Vec<u8> {
    const PHDRS: usize = 64;
    const PHDR: usize = 56;
    let (good, _) = Bundle::split_first(bundle)
        .expect("a bundle")
        .expect("a good one");
    let elf = good.image();
    let word = |at: usize| u64::from_le_bytes(elf[at..at + 8].try_into().expect("8 bytes"));
    let count = usize::from(elf[56]);
    let kind =
        |i: usize| u32::from_le_bytes(elf[PHDRS + i * PHDR..][..4].try_into().expect("4 bytes"));
    let end = (0..count)
        .filter(|i| kind(*i) == 1)
        .map(|i| word(PHDRS + i * PHDR + 16) + word(PHDRS + i * PHDR + 40))
        .max()
        .expect("a segment");
    // PT_GNU_STACK, which nobody reads, becomes the segment.
    let slot = (0..count)
        .find(|i| kind(*i) == 0x6474_e551)
        .expect("a free program header");
    let mut new = Vec::with_capacity(elf.len() + bytes + 8192);
    new.extend_from_slice(elf);
    new.resize(elf.len().next_multiple_of(4096), 0);
    let offset = new.len() as u64;
    new.resize(new.len() + bytes, 0xa7);
    let header: [u64; 7] = [
        1 | 4 << 32, // PT_LOAD, readable
        offset,
        end.next_multiple_of(4096),
        end.next_multiple_of(4096),
        bytes as u64,
        bytes as u64,
        4096,
    ];
    for (i, w) in header.iter().enumerate() {
        new[PHDRS + slot * PHDR + i * 8..][..8].copy_from_slice(&w.to_le_bytes());
    }
    // With the plain image's build id, which nobody compares here: making one takes time.
    let manifest = Manifest::describe(&new).expect("a good image");
    assemble(&manifest, &new, None).expect("a bundle")
}
