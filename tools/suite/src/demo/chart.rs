//! The demo's picture: rates over time, with the upgrades marked.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use plotters::prelude::*;

/// Over how long a rate is taken, seconds.
const WINDOW: f64 = 1.0;

/// What is drawn. Times are in seconds, from anywhere.
pub struct Chart {
    /// Name and points.
    pub series: Vec<(&'static str, Vec<(f64, f64)>)>,
    /// Upgrades.
    pub marks: Vec<Mark>,
}

/// An upgrade, from the command to its end.
pub struct Mark {
    pub from: f64,
    pub to: f64,
    pub text: String,
    /// The new image stayed.
    pub good: bool,
}

/// Rates from counts over time. A count that gets smaller has begun anew.
pub fn rates(counts: impl Iterator<Item = (f64, f64)>) -> Vec<(f64, f64)> {
    let (mut total, mut last) = (0.0, None);
    let totals: Vec<(f64, f64)> = counts
        .map(|(at, count)| {
            let before = last.replace(count).unwrap_or(count);
            total += if count < before {
                count
            } else {
                count - before
            };
            (at, total)
        })
        .collect();
    let mut first = 0;
    let mut rates = Vec::new();
    for (at, total) in &totals {
        while first + 1 < totals.len() && totals[first + 1].0 <= at - WINDOW {
            first += 1;
        }
        let (since, before) = totals[first];
        if at - since >= WINDOW / 2.0 {
            rates.push((*at, (total - before) / (at - since)));
        }
    }
    rates
}

impl Chart {
    /// Writes it as SVG.
    pub fn draw(&self, path: &Path) -> Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        let points = || self.series.iter().flat_map(|(_, points)| points);
        let start = points().map(|p| p.0).fold(f64::INFINITY, f64::min);
        let end = points().map(|p| p.0 - start).fold(1.0, f64::max);
        let top = points().map(|p| p.1).fold(1.0, f64::max) * 1.25;
        self.on(path, start, end, top)
            .map_err(|error| anyhow!("{error}"))
            .with_context(|| path.display().to_string())
    }

    fn on(
        &self,
        path: &Path,
        start: f64,
        end: f64,
        top: f64,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::new(path, (1100, 480)).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption("Live upgrades under load", ("sans-serif", 22))
            .margin(12)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(0.0..end, 0.0..top)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("seconds")
            .y_desc("per second")
            .draw()?;
        for (number, mark) in self.marks.iter().enumerate() {
            let (from, to) = (mark.from - start, mark.to - start);
            let color = if mark.good { &GREEN } else { &RED };
            chart.draw_series([Rectangle::new(
                [(from, 0.0), (to.min(end), top)],
                color.mix(0.15).filled(),
            )])?;
            // By turns at two heights, as names are longer than some upgrades.
            let height = top * if number % 2 == 0 { 0.98 } else { 0.92 };
            chart.draw_series([Text::new(
                mark.text.clone(),
                (from, height),
                ("sans-serif", 13).into_font().color(color),
            )])?;
        }
        for ((name, points), color) in self.series.iter().zip([BLUE, MAGENTA]) {
            let line = points.iter().map(|(at, rate)| (at - start, *rate));
            chart
                .draw_series(LineSeries::new(line, color.stroke_width(2)))?
                .label(*name)
                .legend(move |(x, y)| {
                    PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2))
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK)
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_go_on_when_a_count_begins_anew() {
        let counts = (0..40).map(|n| {
            (
                f64::from(n) * 0.25,
                f64::from(if n < 20 { n } else { n - 20 }) * 10.0,
            )
        });
        let rates = rates(counts);
        assert!(rates.len() > 30);
        for (at, rate) in rates {
            assert!((30.0..=41.0).contains(&rate), "{rate} at {at}");
        }
    }

    #[test]
    fn a_picture_is_drawn() {
        let folder = std::env::temp_dir().join(format!("segue-chart-{}", std::process::id()));
        let path = folder.join("a.svg");
        let chart = Chart {
            series: vec![
                ("a", vec![(100.0, 5.0), (101.0, 7.0), (102.0, 6.0)]),
                ("b", Vec::new()),
            ],
            marks: vec![Mark {
                from: 100.5,
                to: 101.0,
                text: "httpd 0.2.0".into(),
                good: true,
            }],
        };
        chart.draw(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(
            text.starts_with("<svg") && text.contains("httpd 0.2.0") && text.contains("polyline")
        );
        std::fs::remove_dir_all(folder).unwrap();
    }
}
