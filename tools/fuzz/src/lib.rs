//! Fuzz targets: what reads bytes that come from outside, fed with anything.
//!
//! A [`Target`] is a function of bytes that panics when something does not hold, with seeds that it
//! makes itself, out of the same builders that tests use. `segue-fuzz` (`main.rs`) runs targets
//! under libFuzzer, guided by coverage; `cargo test` runs each target's seeds, cut and damaged.
//!
//! Most inputs are scripts: a byte says what the other side does next, the bytes behind it how
//! ([`Input`]). So a target is hostile where it matters, with the right ids, sequence numbers and
//! checksums about it, and models what has to hold, instead of hoping that a mutation gets that far.
//!
//! Memory is bounded for each target: an allocator counts.

mod input;
mod peer;
mod targets;

pub use input::Input;
pub use targets::TARGETS;

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Something to be fed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, for the command line.
    pub name: &'static str,
    /// What is fed.
    pub what: &'static str,
    /// Longest input, in bytes.
    pub longest: usize,
    /// Most heap that it may take, in bytes, whatever the input.
    pub memory: usize,
    /// Inputs that get far.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Feeds it. Panics when something does not hold.
    pub run: fn(&[u8]),
}

impl Target {
    /// The target with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        TARGETS.iter().find(|target| target.name == name)
    }

    /// Feeds it one input; gives the most bytes of heap that it took.
    ///
    /// # Panics
    /// Something does not hold.
    pub fn check(&self, input: &[u8]) -> usize {
        let input = input.get(..self.longest).unwrap_or(input);
        HEAP.reset_peak_usage();
        let before = HEAP.current_usage();
        (self.run)(input);
        let most = HEAP.peak_usage().saturating_sub(before);
        assert!(
            most <= self.memory,
            "{} took {most} bytes of heap",
            self.name
        );
        most
    }
}

#[cfg(test)]
mod tests {
    use super::TARGETS;

    /// One test for all of them: memory is counted for the whole process.
    #[test]
    fn seeds_and_damaged_seeds_are_survived() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            assert!(!seeds.is_empty());
            target.check(&[]);
            for (n, seed) in seeds.iter().enumerate() {
                assert!(
                    seed.len() <= target.longest,
                    "seed {n} of {} is {} bytes long",
                    target.name,
                    seed.len()
                );
                target.check(seed);
                // A few of each: finding more is what the fuzzer is for.
                let mut damaged = seed.clone();
                for round in 1..20usize {
                    let at = (round * 7919 + n * 31) % seed.len().max(1);
                    if let Some(byte) = damaged.get_mut(at) {
                        *byte = byte.wrapping_add(round as u8);
                    }
                    target.check(&damaged);
                    target.check(&seed[..at]);
                }
            }
        }
    }
}
