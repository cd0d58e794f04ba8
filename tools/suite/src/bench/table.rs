//! The figures as a table on a terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, Table};

use super::compare::moved;
use super::row::Row;

/// All of them; beside the last run, if there is one.
pub fn table(rows: &[Row], last: &[Row]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "what", "Segue", "unit", "peer", "ratio", "goal", "met", "since",
    ]);
    for row in rows {
        let since = moved(row, last).map_or(String::new(), |moved| {
            let mark = if moved.beyond_noise { " ◆" } else { "" };
            format!("{:+.0} %{mark}", moved.percent)
        });
        table.add_row(cells(row).into_iter().chain([since]));
    }
    for column in [1, 4, 5, 7] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// What the columns say of a row.
pub fn cells(row: &Row) -> [String; 7] {
    let peer = match (row.peer, &row.peer_name) {
        (Some(value), Some(name)) => format!("{} ({name})", number(value)),
        _ => String::new(),
    };
    let sign = if row.at_least { '≥' } else { '≤' };
    let goal = row.goal.map(|goal| match row.peer {
        Some(_) => format!("{sign} {}×", number(goal)),
        None => format!("{sign} {}", number(goal)),
    });
    let met = row.met.map(|met| if met { "yes" } else { "NO" });
    [
        format!("{}: {}", row.area, row.name),
        row.segue.map_or("–".to_owned(), number),
        row.unit.clone(),
        peer,
        row.ratio
            .map_or(String::new(), |ratio| format!("{}×", number(ratio))),
        goal.unwrap_or_default(),
        met.unwrap_or_default().to_owned(),
    ]
}

/// To three digits, or all of a whole number.
pub fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 100.0 {
        return format!("{value:.0}");
    }
    let before = value.abs().max(1e-9).log10().floor() as i32 + 1;
    let digits = usize::try_from(3 - before).unwrap_or(0).min(6);
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits() {
        let shown = [0.0, 7.0, 1234.5, 12.345, 1.5, 0.000_812, 0.05].map(number);
        assert_eq!(
            shown,
            ["0", "7", "1234", "12.3", "1.50", "0.000812", "0.0500"]
        );
    }
}
