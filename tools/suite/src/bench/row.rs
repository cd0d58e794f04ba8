//! A figure, and what many measurements come to.

use serde::{Deserialize, Serialize};

/// A figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// What part of Segue it is about.
    pub area: String,
    /// What was measured.
    pub name: String,
    /// What Segue has.
    pub segue: Option<f64>,
    /// What the peer has.
    pub peer: Option<f64>,
    /// What it is compared to.
    pub peer_name: Option<String>,
    pub unit: String,
    /// Segue's by the peer's.
    pub ratio: Option<f64>,
    /// The ratio if there is a peer, else Segue's value, should be that: at most, or at least.
    pub goal: Option<f64>,
    pub at_least: bool,
    pub met: Option<bool>,
    /// How often it was measured.
    pub runs: usize,
    /// The quartiles of Segue's values, where they are kept: what is between them is noise.
    #[serde(default)]
    pub quartiles: Option<(f64, f64)>,
}

impl Row {
    /// One value.
    pub fn new(area: &str, name: impl Into<String>, value: f64, unit: &str) -> Row {
        Row {
            area: area.into(),
            name: name.into(),
            segue: Some(value),
            peer: None,
            peer_name: None,
            unit: unit.into(),
            ratio: None,
            goal: None,
            at_least: false,
            met: None,
            runs: 1,
            quartiles: None,
        }
    }

    /// Something that only the peer has.
    pub fn of_peer(
        area: &str,
        name: impl Into<String>,
        peer_name: &str,
        value: f64,
        unit: &str,
    ) -> Row {
        let mut row = Row::new(area, name, value, unit);
        row.segue = None;
        row.peer(peer_name, value)
    }

    /// The median of many.
    pub fn median(area: &str, name: impl Into<String>, values: &[f64], unit: &str) -> Row {
        let mut row = Row::new(area, name, quantile(values, 0.5), unit).runs(values.len());
        if values.len() > 1 {
            row.quartiles = Some((quantile(values, 0.25), quantile(values, 0.75)));
        }
        row
    }

    /// Beside something else's.
    pub fn peer(mut self, name: &str, value: f64) -> Row {
        self.peer = Some(value);
        self.peer_name = Some(name.into());
        // Nothing is so many times nothing.
        let ratio = self.segue.map(|segue| segue / value);
        self.ratio = ratio.filter(|ratio| ratio.is_finite());
        self
    }

    /// What was measured, of ours or else of the peer.
    pub fn value(&self) -> Option<f64> {
        self.segue.or(self.peer)
    }

    /// Of so many measurements.
    pub fn runs(mut self, runs: usize) -> Row {
        self.runs = runs;
        self
    }

    /// Has a goal.
    pub fn at_most(mut self, goal: f64) -> Row {
        self.goal = Some(goal);
        self.met = self.ratio.or(self.segue).map(|value| value <= goal);
        self
    }

    /// Has a goal.
    pub fn at_least(mut self, goal: f64) -> Row {
        self.goal = Some(goal);
        self.at_least = true;
        self.met = self.ratio.or(self.segue).map(|value| value >= goal);
        self
    }
}

/// The value that the given share of all values does not exceed (nearest rank).
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// The largest.
pub fn max(values: &[f64]) -> f64 {
    quantile(values, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert_eq!(quantile(&values, 0.5), 100.0);
        assert_eq!(quantile(&values, 0.0), 1.0);
        assert_eq!(max(&[3.0]), 3.0);
    }

    #[test]
    fn a_goal_is_held_against_the_ratio_if_there_is_one() {
        let row = Row::new("a", "b", 30.0, "ms");
        assert_eq!(row.at_most(20.0).met, Some(false));
        let row = || Row::new("a", "b", 30.0, "ms").peer("p", 29.0);
        assert_eq!(row().at_most(1.1).met, Some(true));
        assert_eq!(row().at_least(1.1).met, Some(false));
    }
}
