//! What other work on this machine takes of its processors.

use std::fs;

use anyhow::{Context, Result};

/// Time that the processors of this machine were not given by the one below it, and all their time
/// (proc(5), `steal` of /proc/stat), in ticks.
pub fn stolen() -> Result<(f64, f64)> {
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    parse_stolen(&stat).context("/proc/stat has another form")
}

fn parse_stolen(stat: &str) -> Option<(f64, f64)> {
    let numbers = stat.lines().next()?.strip_prefix("cpu ")?;
    // user nice system idle iowait irq softirq steal; guest time is in user.
    let ticks: Vec<f64> = numbers
        .split_whitespace()
        .take(8)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .ok()?;
    Some((*ticks.get(7)?, ticks.iter().sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_number() {
        let stat = "cpu  10 0 20 60 0 0 0 10 5 0\ncpu0 1\n";
        assert_eq!(parse_stolen(stat), Some((10.0, 100.0)));
        assert_eq!(parse_stolen("cpu 1 2"), None);
    }
}
