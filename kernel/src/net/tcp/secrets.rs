//! What an attacker beside the path must not be able to guess: initial sequence numbers (RFC 6528),
//! SYN cookies (RFC 4987), timestamps' offsets (RFC 7323, section 5.4), ports (RFC 6056) and where
//! a connection stands in the hash table. All are SipHash of the connection's addresses under keys
//! made from the secret.

use core::hash::Hasher;

use siphasher::sip::{SipHasher13, SipHasher24};

use super::addr::Tuple;
use super::seq::Seq;

/// Initial sequence numbers go up by one each 4 µs (RFC 6528, section 3).
const ISN_TICK: u64 = 4_000;
/// How long a cookie's clock stands still, ns. A cookie is good in its period and the next.
pub const COOKIE_PERIOD: u64 = 64_000_000_000;
/// Segment sizes a cookie can tell, ascending.
const COOKIE_MSS: [u16; 8] = [216, 536, 1220, 1340, 1400, 1440, 1460, 8960];

#[derive(Clone, Copy)]
enum Use {
    Isn,
    Cookie,
    Clock,
    Port,
}

/// The keys.
pub struct Secrets {
    table: [u8; 16],
    other: [u8; 16],
}

impl Secrets {
    /// From random bytes.
    pub fn new(secret: [u8; 32]) -> Self {
        let (table, other) = secret.split_at(16);
        let key = |half: &[u8]| half.first_chunk().copied().unwrap_or_default();
        Self {
            table: key(table),
            other: key(other),
        }
    }

    /// The random bytes again, for the image that goes on with these connections.
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (table, other) = bytes.split_at_mut(16);
        table.copy_from_slice(&self.table);
        other.copy_from_slice(&self.other);
        bytes
    }

    /// Where a connection stands in the table.
    pub fn place(&self, tuple: &Tuple) -> u32 {
        let mut hasher = SipHasher13::new_with_key(&self.table);
        tuple.feed(&mut hasher);
        hasher.finish() as u32
    }

    /// Where listeners of a port stand in theirs.
    pub fn place_of_port(&self, port: u16) -> u32 {
        let mut hasher = SipHasher13::new_with_key(&self.table);
        hasher.write_u16(port);
        hasher.finish() as u32
    }

    fn hash(&self, purpose: Use, tuple: &Tuple, more: u64) -> u32 {
        let mut hasher = SipHasher24::new_with_key(&self.other);
        hasher.write_u8(purpose as u8);
        tuple.feed(&mut hasher);
        hasher.write_u64(more);
        hasher.finish() as u32
    }

    /// An initial sequence number.
    pub fn isn(&self, now: u64, tuple: &Tuple) -> Seq {
        Seq(self.hash(Use::Isn, tuple, 0)) + (now / ISN_TICK) as u32
    }

    /// What is added to the clock for this connection's timestamps.
    pub fn clock_offset(&self, tuple: &Tuple) -> u32 {
        self.hash(Use::Clock, tuple, 0)
    }

    /// Where the search for a port starts. The tuple's local port does not count.
    pub fn port_offset(&self, tuple: &Tuple) -> u32 {
        self.hash(
            Use::Port,
            &Tuple {
                local_port: 0,
                ..*tuple
            },
            0,
        )
    }

    fn cookie_of(&self, period: u64, tuple: &Tuple, irs: Seq, size: u32) -> u32 {
        let more = period << 35 | u64::from(size) << 32 | u64::from(irs.0);
        let mac = self.hash(Use::Cookie, tuple, more) & 0x00ff_ffff;
        (period as u32 & 31) << 27 | size << 24 | mac
    }

    /// The initial sequence number that holds all that a SYN's answer must remember but for its
    /// options: 5 bits of the clock, 3 of the segment size, 24 that only we can know.
    pub fn cookie(&self, now: u64, tuple: &Tuple, irs: Seq, mss: u16) -> Seq {
        let size = COOKIE_MSS
            .iter()
            .rposition(|&known| known <= mss)
            .unwrap_or(0);
        Seq(self.cookie_of(now / COOKIE_PERIOD, tuple, irs, size as u32))
    }

    /// The segment size a cookie of ours tells, if it is one and not too old.
    pub fn open_cookie(&self, now: u64, tuple: &Tuple, irs: Seq, cookie: Seq) -> Option<u16> {
        let size = cookie.0 >> 24 & 7;
        let period = now / COOKIE_PERIOD;
        let good = [period, period.wrapping_sub(1)]
            .iter()
            .any(|&period| self.cookie_of(period, tuple, irs, size) == cookie.0);
        good.then(|| {
            COOKIE_MSS
                .get(size as usize)
                .copied()
                .unwrap_or(COOKIE_MSS[0])
        })
    }
}

impl core::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Secrets")
    }
}

/// The options a SYN cookie can't hold ride in the low bits of the answer's timestamp.
const CLOCK_BITS: u32 = 5;
const NO_SCALE: u32 = 15;

/// Lays window scale and SACK in the low bits of a timestamp, which does not get later by it.
pub fn mark_clock(clock: u32, scale: Option<u8>, sack: bool) -> u32 {
    let bits = scale.map_or(NO_SCALE, u32::from).min(NO_SCALE) << 1 | u32::from(sack);
    let marked = clock & !((1 << CLOCK_BITS) - 1) | bits;
    if marked.wrapping_sub(clock) as i32 > 0 {
        marked.wrapping_sub(1 << CLOCK_BITS)
    } else {
        marked
    }
}

/// What [`mark_clock`] laid there.
pub fn read_clock(echo: u32) -> (Option<u8>, bool) {
    let scale = echo >> 1 & NO_SCALE;
    ((scale != NO_SCALE).then_some(scale as u8), echo & 1 != 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tuple(remote: u128, port: u16) -> Tuple {
        Tuple {
            local: 1,
            remote,
            local_port: 80,
            remote_port: port,
        }
    }

    proptest! {
        #[test]
        fn cookies_open_for_their_connection_only(
            now in 0u64..1 << 50, irs: u32, mss: u16, remote: u128, port: u16, bit in 0u32..32,
        ) {
            let secrets = Secrets::new([7; 32]);
            let at = tuple(remote, port);
            let cookie = secrets.cookie(now, &at, Seq(irs), mss);
            let told = secrets.open_cookie(now + COOKIE_PERIOD, &at, Seq(irs), cookie).unwrap();
            prop_assert!(told <= mss.max(COOKIE_MSS[0]));
            let open = |irs, cookie| secrets.open_cookie(now, &at, Seq(irs), cookie);
            let late = secrets.open_cookie(now + 3 * COOKIE_PERIOD, &at, Seq(irs), cookie);
            prop_assert_eq!(late, None);
            prop_assert_eq!(open(irs, Seq(cookie.0 ^ 1 << bit)), None);
            prop_assert_eq!(open(irs ^ 1 << bit, cookie), None);
        }

        #[test]
        fn clock_bits(clock: u32, scale in prop::option::of(0u8..15), sack: bool) {
            let marked = mark_clock(clock, scale, sack);
            prop_assert_eq!(read_clock(marked), (scale, sack));
            prop_assert!(clock.wrapping_sub(marked) < 64);
        }
    }

    #[test]
    fn isn_rises_by_250_000_a_second() {
        let secrets = Secrets::new([7; 32]);
        let at = tuple(5, 6);
        assert_eq!(
            secrets.isn(3_000_000_000, &at) - secrets.isn(2_000_000_000, &at),
            250_000
        );
        assert_ne!(secrets.isn(0, &at), secrets.isn(0, &tuple(5, 7)));
    }
}
