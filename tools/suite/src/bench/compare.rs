//! A run beside the last one.

use super::row::Row;

/// What a figure may differ by if nothing is known of its noise: one measurement on an emulated
/// machine.
const UNKNOWN: f64 = 0.25;
/// Less is not worth a mark, whatever the noise.
const LITTLE: f64 = 0.1;
/// Counts are the same each time, but for timers.
const OF_COUNTS: f64 = 0.05;

/// How a figure differs from the last run's.
#[derive(Debug, PartialEq)]
pub struct Moved {
    /// In percent of what it was.
    pub percent: f64,
    /// By more than the noise of the two.
    pub beyond_noise: bool,
}

/// Compares a row to the same of another run, if that has it.
pub fn moved(row: &Row, last: &[Row]) -> Option<Moved> {
    let same = |other: &&Row| other.area == row.area && other.name == row.name;
    let other = last.iter().find(same)?;
    let (now, before) = (row.value()?, other.value()?);
    let scale = before.abs().max(f64::MIN_POSITIVE);
    let change = (now - before) / scale;
    let width = |row: &Row| row.quartiles.map(|(low, high)| (high - low) / scale);
    let noise = match (row.unit.as_str(), width(row), width(other)) {
        ("count", _, _) => OF_COUNTS,
        (_, Some(one), Some(two)) => one.max(two).max(LITTLE),
        _ => UNKNOWN,
    };
    Some(Moved {
        percent: change * 100.0,
        beyond_noise: now != before && change.abs() > noise,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[f64]) -> Row {
        Row::median("area", "name", values, "ms")
    }

    #[test]
    fn what_is_within_the_noise_is_not_marked() {
        let last = [row(&[10.0, 12.0, 14.0, 16.0])];
        let beyond = |values: &[f64]| moved(&row(values), &last).unwrap().beyond_noise;
        assert!(!beyond(&[12.0, 13.0, 14.0, 15.0]));
        assert!(beyond(&[22.0, 23.0, 24.0, 25.0]));
        assert!(beyond(&[2.0, 3.0, 4.0, 5.0]));
    }

    #[test]
    fn counts_have_no_noise_and_single_times_have_much() {
        let one = |value, unit| Row::new("area", "name", value, unit);
        let beyond = |now, before, unit| {
            moved(&one(now, unit), &[one(before, unit)])
                .unwrap()
                .beyond_noise
        };
        assert!(beyond(11.0, 10.0, "count"));
        assert!(!beyond(11.0, 10.0, "ms"));
        assert!(beyond(14.0, 10.0, "ms"));
        assert!(beyond(1.0, 0.0, "count"));
        assert!(!beyond(0.0, 0.0, "count"));
        assert_eq!(moved(&one(1.0, "ms"), &[]), None);
    }
}
