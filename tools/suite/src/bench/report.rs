//! The report: one page with all figures, plots, and what they were measured with.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::compare::moved;
use super::estimate::{ASSUMED, Estimate};
use super::plot::{Bar, bars};
use super::row::Row;
use super::setting::Setting;
use super::table::{cells, number};

/// What all figures from the lab are to be read with.
pub const EMULATED: &str = "emulated: ratios count, times do not";

const STYLE: &str = "body{font:15px sans-serif;max-width:1040px;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;font-size:13px}td,th{border:1px solid #ccc;padding:2px 8px;\
    text-align:left}td.n{text-align:right}tr.missed{background:#fdd}tr.moved{background:#ffd}\
    pre{background:#f4f4f4;padding:8px;overflow:auto;font-size:12px}svg{max-width:100%}";

/// Writes it.
pub fn write(path: &Path, rows: &[Row], setting: &Setting, last: &[Row]) -> Result<()> {
    let page = page(rows, setting, last)?.into_string();
    fs::write(path, page).with_context(|| path.display().to_string())
}

fn page(rows: &[Row], setting: &Setting, last: &[Row]) -> Result<Markup> {
    let plots = plots(rows)?;
    Ok(html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                title { "Segue, measured" }
                style { (STYLE) }
            }
            body {
                h1 { "Segue, measured" }
                p {
                    (setting.date) @if setting.quick { ", a quick run" }
                    @if !setting.only.is_empty() { ", only: " (setting.only.join(", ")) }
                    "; " (number(setting.seconds)) " s. "
                    strong { (EMULATED) } "."
                }
                p {
                    "All domains ran on a real Xen, but on an emulated processor, where an exit of \
                     a guest costs a hundred times what it does on hardware. Both sides pay it. \
                     Other work took " (number(setting.stolen_percent)) " % of this machine's CPU \
                     time meanwhile."
                }
                @for plot in &plots { (PreEscaped(plot)) }
                @if let Some(estimate) = Estimate::new(rows) { (estimated(&estimate)) }
                h2 { "All figures" }
                (figures(rows, last))
                h2 { "What took part" }
                table {
                    @for (name, version) in &setting.versions {
                        tr { td { (name) } td { (version) } }
                    }
                }
                @for (name, text) in &setting.configurations {
                    h3 { (name) }
                    pre { (text) }
                }
            }
        }
    })
}

fn figures(rows: &[Row], last: &[Row]) -> Markup {
    html! {
        table {
            tr {
                @for name in ["what", "Segue", "unit", "peer", "ratio", "goal", "met"] {
                    th { (name) }
                }
                th { "measured" }
                th { "since the last run" }
            }
            @for row in rows {
                @let moved = moved(row, last);
                @let beyond = moved.as_ref().is_some_and(|moved| moved.beyond_noise);
                @let class = match row.met {
                    Some(false) => "missed",
                    _ if beyond => "moved",
                    _ => "",
                };
                tr class=(class) {
                    @for cell in cells(row) { td { (cell) } }
                    td.n { (row.runs) "×" }
                    td.n {
                        @if let Some(moved) = moved {
                            (format!("{:+.0} %", moved.percent))
                            @if moved.beyond_noise { " ◆" }
                        }
                    }
                }
            }
        }
        p { "◆ moved by more than the noise of the two runs; red: a goal that is missed." }
    }
}

fn estimated(estimate: &Estimate) -> Markup {
    html! {
        h2 { "The blackout on hardware, estimated" }
        p {
            "Here it takes " (number(estimate.here)) " µs. Counts are the same on hardware; what \
             each takes there is assumed:"
        }
        table {
            tr { th { "what" } th { "how often" } th { "µs each, assumed" } th { "why" } th { "µs" } }
            @for ((name, count, us), (_, _, why)) in estimate.terms.iter().zip(ASSUMED) {
                tr {
                    td { (name) } td.n { (number(*count)) } td.n { (number(*us)) }
                    td { (why) } td.n { (number(count * us)) }
                }
            }
            tr {
                td { "computing" } td {} td {}
                td {
                    (number(estimate.computing_here())) " µs here, that is all but "
                    (number(estimate.exit_here)) " µs for each exit, measured; computing is "
                    (number(estimate.slower)) " times slower here, measured"
                }
                td.n { (number(estimate.computing_here() / estimate.slower)) }
            }
            tr { th { "together" } th {} th {} th {} th { (number(estimate.on_hardware())) } }
        }
    }
}

fn plots(rows: &[Row]) -> Result<Vec<String>> {
    let of = |area: &'static str| rows.iter().filter(move |row| row.area == area);
    let ours = |row: &Row| {
        row.segue.map(|value| Bar {
            name: row.name.clone(),
            value,
            ours: true,
        })
    };
    let mut plots = Vec::new();
    let mut plot = |title: &str, unit: &str, all: Vec<Bar>, log, mark| -> Result<()> {
        if !all.is_empty() {
            plots.push(bars(title, unit, &all, log, mark)?);
        }
        Ok(())
    };

    let mut switches = Vec::new();
    for row in of("image switch") {
        switches.extend(ours(row));
        if let (Some(value), Some(name)) = (row.peer, &row.peer_name)
            // Our switch stands beside kexec, which has a row of its own.
            && (row.segue.is_none() || name == "Linux xl reboot")
        {
            switches.push(Bar {
                name: format!("Linux: {}", row.name),
                value,
                ours: false,
            });
        }
    }
    plot("Longest time without service", "ms", switches, true, None)?;
    let parts = of("switch").filter(|row| row.name.starts_with("of it "));
    plot(
        "Parts of the blackout",
        "ms",
        parts.filter_map(ours).collect(),
        false,
        None,
    )?;
    let times = of("blackout").filter(|row| row.unit == "ms");
    plot(
        "Blackout",
        "ms",
        times.filter_map(ours).collect(),
        false,
        None,
    )?;
    let exits = of("blackout").filter(|row| row.name.contains("hypercalls"));
    plot(
        "Hypercalls in the blackout",
        "",
        exits.filter_map(ours).collect(),
        false,
        None,
    )?;
    let ratios = rows
        .iter()
        .filter(|row| row.peer_name.as_deref() == Some("Linux"));
    let ratios: Vec<Bar> = ratios
        .filter_map(|row| {
            Some(Bar {
                name: format!("{}: {}", row.area, row.name),
                value: row.ratio.filter(|ratio| *ratio > 0.0)?,
                ours: true,
            })
        })
        .collect();
    plot(
        "Segue by Linux; the line is Linux",
        "times",
        ratios,
        true,
        Some(1.0),
    )?;
    Ok(plots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_all_figures_and_what_they_were_measured_with() {
        let setting = Setting {
            date: "today".into(),
            quick: false,
            only: Vec::new(),
            seconds: 1.0,
            stolen_percent: 2.0,
            versions: vec![("Xen".into(), "4.17 <&>".into())],
            configurations: vec![("Linux".into(), "vcpus=2".into())],
        };
        let rows = [
            Row::new("network", "bulk", 10.0, "MB/s")
                .peer("Linux", 5.0)
                .at_least(3.0),
            Row::of_peer("image switch", "kexec: ping", "Linux", 20_000.0, "ms"),
        ];
        let text = page(&rows, &setting, &[]).unwrap().into_string();
        for part in [
            "bulk",
            "Linux: kexec: ping",
            "4.17 &lt;&amp;&gt;",
            "vcpus=2",
            EMULATED,
            "<svg",
        ] {
            assert!(text.contains(part), "no {part}");
        }
        assert!(text.contains("missed") && !text.contains("on hardware, estimated"));
    }
}
