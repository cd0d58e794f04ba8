//! Random bytes: ChaCha20 (crate `chacha20`), seeded by the processor (RDSEED, else RDRAND).
//!
//! The key is replaced by fresh output after every request, so that nobody who reads this memory
//! later learns what was given before; and by fresh seed after so many bytes, so many seconds, and
//! in every image: nothing of it is handed over (I11). Without a source there are no bytes.

use crate::abi::answer;
use crate::abi::errno::Errno;
use crate::sync::Lock;
use crate::task;
use chacha20::ChaCha20Rng;
use chacha20::rand_core::{Rng, SeedableRng};
use core::arch::x86_64::{__cpuid_count, _rdrand64_step, _rdseed64_step};
use core::sync::atomic::{AtomicU8, Ordering};

/// Bytes after which there is a new seed.
const RESEED_BYTES: usize = 1 << 20;
/// Time after which there is one, in ns.
const RESEED_NS: u64 = 60_000_000_000;
/// Tries at one word: RDSEED may have none for a while (Intel SDM 1 §7.3.17).
const TRIES: u32 = 1000;

struct State {
    key: [u8; 32],
    /// Bytes given since the seed.
    given: usize,
    /// When to seed again, in ns; 0 is at once.
    until: u64,
}

static STATE: Lock<State> = Lock::new(State {
    key: [0; 32],
    given: 0,
    until: 0,
});

/// What the processor has; found once, as asking exits to the hypervisor.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Source {
    Unknown,
    None,
    Rdrand,
    Rdseed,
}

fn source() -> Source {
    static FOUND: AtomicU8 = AtomicU8::new(Source::Unknown as u8);
    match FOUND.load(Ordering::Relaxed) {
        n if n == Source::None as u8 => Source::None,
        n if n == Source::Rdrand as u8 => Source::Rdrand,
        n if n == Source::Rdseed as u8 => Source::Rdseed,
        _ => {
            let leaf = |n: u32| (__cpuid_count(0, 0).eax >= n).then(|| __cpuid_count(n, 0));
            let found = if leaf(7).is_some_and(|r| r.ebx >> 18 & 1 == 1) {
                Source::Rdseed
            } else if leaf(1).is_some_and(|r| r.ecx >> 30 & 1 == 1) {
                Source::Rdrand
            } else {
                Source::None
            };
            FOUND.store(found as u8, Ordering::Relaxed);
            found
        }
    }
}

fn word(source: Source) -> Option<u64> {
    #[target_feature(enable = "rdseed")]
    fn rdseed(out: &mut u64) -> i32 {
        _rdseed64_step(out)
    }
    #[target_feature(enable = "rdrand")]
    fn rdrand(out: &mut u64) -> i32 {
        _rdrand64_step(out)
    }
    for _ in 0..TRIES {
        let mut value = 0;
        let good = match source {
            // SAFETY: CPUID says that the processor has the instruction.
            Source::Rdseed => unsafe { rdseed(&mut value) },
            // SAFETY: as above.
            Source::Rdrand => unsafe { rdrand(&mut value) },
            Source::None | Source::Unknown => return None,
        };
        // All zeros or all ones is what broken ones gave for ever.
        if good == 1 && value != 0 && value != u64::MAX {
            return Some(value);
        }
        core::hint::spin_loop();
    }
    None
}

impl State {
    /// Mixes 256 bits of the processor's into the key.
    fn seed(&mut self) -> Result<(), Errno> {
        let source = source();
        for part in self.key.as_chunks_mut::<8>().0 {
            let fresh = word(source)
                // One that is only slow leaves the other.
                .or_else(|| {
                    (source == Source::Rdseed)
                        .then(|| word(Source::Rdrand))
                        .flatten()
                })
                .ok_or(Errno::ENOSYS)?;
            *part = (u64::from_ne_bytes(*part) ^ fresh).to_ne_bytes();
        }
        self.given = 0;
        self.until = task::now().saturating_add(RESEED_NS);
        Ok(())
    }
}

/// Fills `out` with random bytes.
///
/// # Errors
/// `ENOSYS`: the processor gives none, and so there are none.
pub fn fill(out: &mut [u8]) -> Result<(), Errno> {
    // The generator is taken with the lock, the bytes are made without it.
    let mut rng = {
        let mut state = STATE.lock();
        if state.given >= RESEED_BYTES || task::now() >= state.until {
            state.seed()?;
        }
        state.given = state.given.saturating_add(out.len());
        let mut rng = ChaCha20Rng::from_seed(state.key);
        rng.fill_bytes(&mut state.key);
        rng
    };
    rng.fill_bytes(out);
    Ok(())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_read_entropy(buf: *mut u8, len: usize, flags: u32) -> isize {
    let result = if flags != 0 || buf.is_null() || isize::try_from(len).is_err() {
        Err(Errno::EINVAL)
    } else {
        // SAFETY: the caller passes a buffer of `len` bytes; it is only written.
        fill(unsafe { core::slice::from_raw_parts_mut(buf, len) })
    };
    if result == Err(Errno::ENOSYS) {
        ::log::error!(
            "no random numbers: the processor has neither RDSEED nor RDRAND (see xl's cpuid)"
        );
    }
    answer(result.map(|()| len))
}
