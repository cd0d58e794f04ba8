//! Plots, as SVG to be put into a page.

use anyhow::{Result, anyhow};
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;

/// A bar: what it is called, its value, and whether it is of ours.
pub struct Bar {
    pub name: String,
    pub value: f64,
    pub ours: bool,
}

/// Width of a plot, of the names, and height of a bar, in pixels.
const WIDTH: u32 = 1000;
const NAMES: u32 = 430;
const HEIGHT: u32 = 22;

/// Bars beneath each other; `log` for values that are far apart. A line marks a value.
pub fn bars(title: &str, unit: &str, all: &[Bar], log: bool, mark: Option<f64>) -> Result<String> {
    let is_shown = |value: &f64| *value > 0.0 && value.is_finite();
    let values = || all.iter().map(|bar| bar.value).filter(is_shown);
    let most = values().chain(mark).fold(f64::MIN_POSITIVE, f64::max) * if log { 4.0 } else { 1.2 };
    let least = values().chain(mark).fold(most, f64::min);
    let mut text = String::new();
    let drawn = if log {
        // A bar needs some length.
        let least = least / 3.0;
        draw(
            &mut text,
            title,
            unit,
            all,
            (least..most).log_scale(),
            least,
            mark,
        )
    } else {
        draw(&mut text, title, unit, all, 0.0..most, 0.0, mark)
    };
    drawn.map_err(|error| anyhow!("{title}: {error}"))?;
    Ok(text)
}

fn draw<X>(
    to: &mut String,
    title: &str,
    unit: &str,
    all: &[Bar],
    range: X,
    least: f64,
    mark: Option<f64>,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: ValueFormatter<f64>,
{
    let rows = u32::try_from(all.len())?;
    let area = SVGBackend::with_string(to, (WIDTH, rows * HEIGHT + 90)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(8)
        .margin_right(30)
        .x_label_area_size(40)
        .y_label_area_size(NAMES)
        .build_cartesian_2d(range, 0.0..f64::from(rows))?;
    chart
        .configure_mesh()
        .disable_y_mesh()
        .disable_y_axis()
        .y_labels(0)
        .x_desc(unit)
        .draw()?;
    for (bar, at) in all.iter().zip(0..rows) {
        let top = f64::from(rows - at);
        let color = if bar.ours {
            BLUE
        } else {
            RGBColor(150, 150, 150)
        };
        let end = bar.value.max(least);
        chart.draw_series([Rectangle::new(
            [(least, top - 0.85), (end, top - 0.15)],
            color.mix(0.7).filled(),
        )])?;
        chart.draw_series([Text::new(
            super::table::number(bar.value),
            (end, top - 0.3),
            ("sans-serif", 12),
        )])?;
        // Beside the axis.
        let (_, y) = chart.backend_coord(&(least.max(f64::MIN_POSITIVE), top - 0.3));
        let style = ("sans-serif", 12).into_text_style(&area);
        area.draw_text(&bar.name, &style, (10, y))?;
    }
    if let Some(mark) = mark {
        chart.draw_series([PathElement::new(
            [(mark, 0.0), (mark, f64::from(rows))],
            RED.stroke_width(1),
        )])?;
    }
    area.present()?;
    drop(chart);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn() {
        let bar = |name: &str, value| Bar {
            name: name.into(),
            value,
            ours: true,
        };
        for log in [false, true] {
            let all = [bar("short", 1.0), bar("long", 20_000.0), bar("none", 0.0)];
            let text = bars("a title", "ms", &all, log, Some(2.0)).unwrap();
            assert!(text.starts_with("<svg") && text.trim_end().ends_with("</svg>"));
            assert!(text.contains("short") && text.contains("a title") && text.contains("20000"));
        }
    }
}
