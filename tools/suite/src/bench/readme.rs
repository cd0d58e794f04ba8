//! README's section of figures: made from the files of a run that are kept with the source.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::report::EMULATED;
use super::row::Row;
use super::setting::Setting;
use super::table::{cells, number};

const README: &str = "README.md";
/// The files it is made from.
pub const ROWS: &str = "tools/suite/figures/results.json";
pub const SETTING: &str = "tools/suite/figures/setting.json";

const BEGIN: &str = "<!-- figures: written by `make bench README=1` -->\n";
const END: &str = "<!-- end of figures -->\n";

/// Keeps a run's files, and writes the section anew.
pub fn write(rows: &[Row], setting: &Setting) -> Result<()> {
    ensure!(
        setting.only.is_empty(),
        "README shows a whole run only: without words, `make bench README=1`"
    );
    if let Some(folder) = Path::new(ROWS).parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(ROWS, serde_json::to_string_pretty(rows)? + "\n").context(ROWS)?;
    fs::write(SETTING, serde_json::to_string_pretty(setting)? + "\n").context(SETTING)?;
    let text = fs::read_to_string(README).context(README)?;
    fs::write(README, with_section(&text, &section(rows, setting))?).context(README)?;
    Ok(())
}

/// The text with another section.
fn with_section(text: &str, section: &str) -> Result<String> {
    let missing = || format!("{README} has no lines {BEGIN}and {END}");
    let (before, rest) = text.split_once(BEGIN).with_context(missing)?;
    let (_, after) = rest.split_once(END).with_context(missing)?;
    Ok(format!("{before}{BEGIN}{section}{END}{after}"))
}

/// What has a goal, and switches beside what Linux has for that.
fn is_shown(row: &Row) -> bool {
    let beside_linux = || {
        row.peer_name
            .as_deref()
            .is_some_and(|name| name.starts_with("Linux"))
    };
    row.goal.is_some() || row.area == "image switch" && row.segue.is_some() && beside_linux()
}

/// What the figures come to, for who reads no tables; nothing if one of them is missing.
fn in_short(rows: &[Row]) -> Option<String> {
    let row = |area: &str, name: &str| rows.iter().find(|r| r.area == area && r.name == name);
    let ours = |area, name| Some(number(row(area, name)?.segue?));
    let seconds = |ms: f64| number(ms / 1000.0);
    let kexec = row("image switch", "switch, without service: ping, 100/s")?;
    let reboot = row("image switch", "xl reboot, without service: ping, 100/s")?;
    Some(format!(
        "In short: a domain without devices stands still for {} ms (p99), a server with 100 \
         connections for {} ms; clients under load wait {} ms (median; p99 {} ms, and {} ms where \
         nothing is switched). By ping, nobody is there for {} ms, for {} s with Linux's kexec, for \
         {} s with `xl reboot` of ours. Rows marked NO miss the goal that is set for them.\n\n",
        ours("switch", "blackout p99, 2 vCPUs")?,
        ours("blackout", "100 connections, p50")?,
        ours("live", "longest pause of a client, median of switches")?,
        ours("live", "longest pause of a client, p99 of switches")?,
        ours("live", "the same without switches, p99 of as long times")?,
        number(kexec.segue?),
        seconds(kexec.peer?),
        seconds(reboot.segue?),
    ))
}

fn section(rows: &[Row], setting: &Setting) -> String {
    let version = |name: &str| {
        let found = setting.versions.iter().find(|(known, _)| known == name);
        found.map_or("?", |(_, version)| version)
    };
    let mut text = format!(
        "\nFrom `{ROWS}`, measured {date}{quick} by `make bench README=1` ({EMULATED}): \
         Segue {segue}, Xen {xen}, Linux {linux}, nginx {nginx}, redis {redis}; {machine}.\n\n\
         {short}| what | Segue | peer | ratio | goal | met |\n|---|--:|--:|--:|--:|---|\n",
        date = setting.date,
        short = in_short(rows).unwrap_or_default(),
        quick = if setting.quick { ", a quick run," } else { "" },
        segue = version("Segue"),
        xen = version("Xen"),
        linux = version("dom0 and Linux"),
        nginx = version("nginx"),
        redis = version("redis-server"),
        machine = version("this machine"),
    );
    for row in rows.iter().filter(|row| is_shown(row)) {
        let [what, segue, unit, peer, ratio, goal, met] = cells(row);
        // Writing to a String can't fail.
        let _ = writeln!(
            text,
            "| {what} | {segue} {unit} | {peer} | {ratio} | {goal} | {met} |"
        );
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Relative to the top folder of the checkout.
    fn read(path: &str) -> Option<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        fs::read_to_string(root.join(path)).ok()
    }

    #[test]
    fn the_section_is_of_the_file_that_it_names() {
        let readme = read(README).expect(README);
        let (Some(rows), Some(setting)) = (read(ROWS), read(SETTING)) else {
            // No run was kept yet: then there is nothing between the markers.
            assert!(
                with_section(&readme, "").unwrap() == readme,
                "figures from nowhere"
            );
            return;
        };
        let rows: Vec<Row> = serde_json::from_str(&rows).unwrap();
        let setting: Setting = serde_json::from_str(&setting).unwrap();
        let made = with_section(&readme, &section(&rows, &setting)).unwrap();
        assert!(
            made == readme,
            "run `make bench README=1`: {README} is of another run"
        );
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("before\n{BEGIN}old\n{END}after\n");
        let new = with_section(&text, "new\n").unwrap();
        assert_eq!(new, format!("before\n{BEGIN}new\n{END}after\n"));
        assert!(with_section("nothing", "").is_err());
    }
}
