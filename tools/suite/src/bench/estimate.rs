//! What a blackout would take on hardware, from what was counted.
//!
//! Here an exit costs a hundred times what it does on hardware, and computing is slow, but counts
//! are the same. So: counts times what each takes on hardware, and what is left of the time by how
//! much slower computing is here, which is measured.

use super::row::Row;
use super::small::BENEATH;

/// What is assumed of hardware, in µs, and where from. A processor of the last ten years, without
/// a host's other load.
pub const ASSUMED: [(&str, f64, &str); 3] = [
    (
        "hypercalls",
        1.0,
        "a round trip of 0.4 µs, and what Xen does",
    ),
    (
        "other exits",
        15.0,
        "each answered by the device model, in another process",
    ),
    (
        "p2m updates",
        5.0,
        "with the flush of all vCPUs' translations",
    ),
];

/// What it comes to.
pub struct Estimate {
    /// What is counted, how often, and µs for each on hardware.
    pub terms: Vec<(&'static str, f64, f64)>,
    /// The blackout here, in µs.
    pub here: f64,
    /// What an exit takes here, in µs.
    pub exit_here: f64,
    /// How much slower computing is here.
    pub slower: f64,
}

impl Estimate {
    /// From a run's rows; none if it has not measured what is needed.
    pub fn new(rows: &[Row]) -> Option<Estimate> {
        let row = |area: &str, name: &str| {
            rows.iter()
                .find(|row| row.area == area && row.name.starts_with(name))
        };
        let counts = [
            row("switch", "hypercalls in the blackout")?.segue?,
            row("switch", "exits in the blackout")?.segue?,
            row("switch", "p2m updates, shared_info in MMIO")?.segue?,
        ];
        let work = row("small things", BENEATH)?;
        Some(Estimate {
            terms: ASSUMED
                .iter()
                .zip(counts)
                .map(|((name, us, _), count)| (*name, count, *us))
                .collect(),
            here: row("switch", "blackout p50")?.segue? * 1000.0,
            exit_here: row("small things", "a hypercall that does nothing")?.segue? / 1000.0,
            slower: work.ratio?,
        })
    }

    /// Time here that no exit explains, µs.
    pub fn computing_here(&self) -> f64 {
        let exits: f64 = self.terms.iter().map(|(_, count, _)| count).sum();
        (self.here - exits * self.exit_here).max(0.0)
    }

    /// Both together on hardware, µs.
    pub fn on_hardware(&self) -> f64 {
        let exits: f64 = self.terms.iter().map(|(_, count, us)| count * us).sum();
        exits + self.computing_here() / self.slower
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_and_computing_are_added_up() {
        let rows = [
            Row::new("switch", "blackout p50, 2 vCPUs", 5.0, "ms"),
            Row::new("switch", "hypercalls in the blackout, most", 10.0, "count"),
            Row::new("switch", "exits in the blackout, most", 2.0, "count"),
            Row::new(
                "switch",
                "p2m updates, shared_info in MMIO, most",
                0.0,
                "count",
            ),
            Row::new(
                "small things",
                "a hypercall that does nothing",
                100_000.0,
                "ns",
            ),
            Row::new(
                "small things",
                "a million steps of computing, beneath",
                20e6,
                "ns",
            )
            .peer("this machine", 1e6),
        ];
        let estimate = Estimate::new(&rows).unwrap();
        assert_eq!(estimate.computing_here(), 3800.0);
        assert_eq!(estimate.on_hardware(), 10.0 + 30.0 + 190.0);
        assert!(Estimate::new(&rows[1..]).is_none());
    }
}
