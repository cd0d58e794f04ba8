//! Congestion control: CUBIC (RFC 9438) or Reno (RFC 5681), with the initial window of RFC 6928.

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RFC 9438.
    Cubic,
    /// RFC 5681.
    Reno,
}

/// No window grows beyond it, bytes.
const MAX_WINDOW: u32 = 1 << 30;
const MS: u64 = 1_000_000;
/// Where the cubic curve is cut off, ms from its middle; keeps the arithmetic in 64 bits.
const MAX_DISTANCE: u64 = 250_000;

/// A connection's congestion window. Bytes, ns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Window {
    /// When the curve of now was started; 0: not yet.
    epoch: u64,
    /// From the epoch to the curve's middle, ms.
    k: u64,
    /// The congestion window.
    pub cwnd: u32,
    /// Slow start ends here.
    pub ssthresh: u32,
    /// Where the last loss was met.
    w_max: u32,
    /// What Reno would have now.
    w_est: u32,
    /// The window before the last loss.
    prior: u32,
    /// Bytes acknowledged towards Reno's next step.
    acked: u32,
}

/// RFC 6928: ten segments, but not more than 14600 bytes of large ones.
pub fn initial_window(mss: u32) -> u32 {
    (10 * mss).min(14_600.max(2 * mss))
}

impl Window {
    /// No connection's.
    pub const NONE: Self = Self {
        epoch: 0,
        k: 0,
        cwnd: 0,
        ssthresh: 0,
        w_max: 0,
        w_est: 0,
        prior: 0,
        acked: 0,
    };

    /// The first one.
    pub fn new(mss: u32) -> Self {
        Self {
            cwnd: initial_window(mss),
            ssthresh: MAX_WINDOW,
            ..Self::NONE
        }
    }

    /// Whether it can be a connection's in which data may be sent: another image says so.
    pub fn is_sane(&self) -> bool {
        let most = [self.ssthresh, self.w_max, self.w_est, self.prior];
        // Two segments of any size are allowed beyond it.
        let limit = MAX_WINDOW + (1 << 20);
        (1..=limit).contains(&self.cwnd) && most.into_iter().all(|window| window <= limit)
    }

    /// `acked` new bytes have arrived, in order, and the window was what held us back.
    pub fn grow(&mut self, algorithm: Algorithm, now: u64, acked: u32, mss: u32, rtt: u64) {
        let mut acked = acked;
        if self.cwnd < self.ssthresh {
            let slow = acked.min(self.ssthresh - self.cwnd);
            self.cwnd += slow;
            acked -= slow;
            if acked == 0 {
                self.cwnd = self.cwnd.min(MAX_WINDOW);
                return;
            }
        }
        match algorithm {
            Algorithm::Cubic => self.grow_cubic(now, acked, mss, rtt),
            Algorithm::Reno => {
                self.acked = self.acked.saturating_add(acked);
                if self.acked >= self.cwnd {
                    self.acked -= self.cwnd;
                    self.cwnd += mss;
                }
            }
        }
        self.cwnd = self.cwnd.min(MAX_WINDOW);
    }

    fn grow_cubic(&mut self, now: u64, acked: u32, mss: u32, rtt: u64) {
        if self.epoch == 0 {
            self.epoch = now.max(1);
            self.w_est = self.cwnd;
            self.w_max = self.w_max.max(self.cwnd);
            // K = cbrt((W_max - cwnd) / C) in seconds, C = 0.4 segments a second cubed.
            let below = u64::from(self.w_max - self.cwnd);
            self.k = cube_root(below * 2_500_000_000 / u64::from(mss));
        }
        let elapsed = now.saturating_sub(self.epoch) / MS;
        let (cwnd, acked) = (u64::from(self.cwnd), u64::from(acked));

        // Section 4.3: what Reno would have, with alpha 0.53 until it is where the loss was.
        let step = acked * u64::from(mss) / cwnd;
        let step = if self.w_est < self.prior {
            step * 9 / 17
        } else {
            step
        };
        self.w_est = (u64::from(self.w_est) + step).min(u64::from(MAX_WINDOW)) as u32;

        if self.curve(elapsed, mss) < u64::from(self.w_est) {
            self.cwnd = self.cwnd.max(self.w_est);
            return;
        }
        // Sections 4.4 and 4.5: towards where the curve is one round trip on.
        let target = self
            .curve(elapsed + rtt / MS, mss)
            .clamp(cwnd, cwnd * 3 / 2);
        self.cwnd += ((target - cwnd) * acked.min(cwnd) / cwnd) as u32;
    }

    /// W_cubic at `at` ms after the epoch, bytes.
    fn curve(&self, at: u64, mss: u32) -> u64 {
        let distance = at.abs_diff(self.k).min(MAX_DISTANCE);
        // 0.4 * mss * (distance / 1000)^3; 2^10 is taken out of both sides for room.
        let rise = (distance.pow(3) >> 10) * 4 * u64::from(mss) / (10_000_000_000 >> 10);
        let w_max = u64::from(self.w_max);
        if at >= self.k {
            w_max + rise
        } else {
            w_max.saturating_sub(rise)
        }
    }

    /// A loss with `flight` bytes on their way.
    pub fn lost(&mut self, algorithm: Algorithm, flight: u32, mss: u32) {
        self.epoch = 0;
        self.prior = self.cwnd;
        let left = match algorithm {
            Algorithm::Reno => flight / 2,
            Algorithm::Cubic => {
                // Fast convergence, section 4.7.
                let shrinking = self.cwnd < self.w_max;
                self.w_max = if shrinking {
                    self.cwnd / 20 * 17
                } else {
                    self.cwnd
                };
                (u64::from(flight) * 7 / 10) as u32
            }
        };
        self.ssthresh = left.max(2 * mss);
    }

    /// The connection stood idle: the curve must not have run on (RFC 9438, section 5.8).
    pub fn idle(&mut self) {
        self.epoch = 0;
    }
}

/// The cube root, rounded down.
fn cube_root(of: u64) -> u64 {
    let mut root: u64 = 0;
    for bit in (0..22).rev() {
        let more = root | 1 << bit;
        if more.checked_pow(3).is_some_and(|cube| cube <= of) {
            root = more;
        }
    }
    root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn cube_roots(of: u64) {
            let root = u128::from(cube_root(of));
            prop_assert!(root.pow(3) <= u128::from(of) && u128::from(of) < (root + 1).pow(3));
        }

        /// Whatever comes, the window stays between two segments and its bound, and growth never
        /// shrinks it.
        #[test]
        fn stays_in_bounds(
            mss in 48u32..65_000,
            cubic: bool,
            steps in prop::collection::vec((0u64..10_000_000_000, 1u32..1 << 30, any::<bool>()), 1..200),
        ) {
            let algorithm = if cubic { Algorithm::Cubic } else { Algorithm::Reno };
            let mut window = Window::new(mss);
            let mut now = 0;
            for (later, acked, loss) in steps {
                now += later;
                if loss {
                    window.lost(algorithm, acked, mss);
                    window.cwnd = window.ssthresh.min(MAX_WINDOW);
                } else {
                    let before = window.cwnd;
                    window.grow(algorithm, now, acked, mss, 50_000_000);
                    prop_assert!(window.cwnd >= before);
                }
                prop_assert!(window.cwnd >= 2 * mss && window.cwnd <= MAX_WINDOW.max(2 * mss));
            }
        }
    }

    /// RFC 9438: after a loss at W the curve is back at W after K = cbrt(0.3 W / 0.4) seconds.
    #[test]
    fn cubic_is_back_where_it_lost_after_k() {
        let mss = 1000;
        let mut window = Window::new(mss);
        window.cwnd = 1_000_000;
        window.lost(Algorithm::Cubic, 1_000_000, mss);
        window.cwnd = window.ssthresh;
        assert_eq!(window.cwnd, 700_000);
        let rtt = 100_000_000;
        let k = 9_085_000_000; // cbrt(300 / 0.4) s
        let mut now = 1;
        while now < k {
            window.grow(Algorithm::Cubic, now, window.cwnd, mss, rtt);
            assert!(window.cwnd <= 1_010_000);
            now += rtt;
        }
        assert!(window.cwnd > 990_000, "{}", window.cwnd);
    }
}
