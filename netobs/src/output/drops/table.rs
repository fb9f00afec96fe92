//! Rows to which packets were added since the last time, under a header.

use super::{Seen, words};
use crate::{
    model::{Snapshot, drops::DropRow},
    output::{
        format::{clip, escape, grouped, pad, width},
        problems::problems,
    },
};

const HEADER: [&str; 8] = ["NEW", "TOTAL", "REASON", "FROM", "TO", "WHAT", "AT", "IN THE KERNEL"];
/// Columns at the beginning that are numbers.
const NUMBERS: usize = 2;
const GAP: &str = "  ";

/// Lines end in `\n`; a width cuts them, none leaves them as long as they are.
pub fn table(snapshot: &Snapshot, seen: &Seen, max_width: Option<u16>) -> String {
    let max_width = max_width.map_or(usize::MAX, usize::from);
    let mut rows = vec![HEADER.map(str::to_owned)];
    if let Some(report) = &snapshot.drops {
        rows.extend(seen.rows(report).map(|(row, new)| cells(row, new)));
    }
    let mut text = String::new();
    if rows.len() == 1 {
        text.push_str("nothing was dropped\n");
    } else {
        let widths: [usize; HEADER.len()] =
            std::array::from_fn(|at| rows.iter().map(|row| width(&row[at])).max().unwrap_or_default());
        for row in rows {
            let cells: Vec<String> =
                row.iter().enumerate().map(|(at, cell)| pad(cell, widths[at], at < NUMBERS)).collect();
            text.push_str(&clip(cells.join(GAP).trim_end(), max_width));
            text.push('\n');
        }
    }
    let unshown = (seen.new_in_no_row > 0).then(|| {
        format!(
            "{} more were dropped and are in no line: too many kinds at a time",
            grouped(seen.new_in_no_row)
        )
    });
    for problem in unshown.into_iter().chain(problems(snapshot)) {
        text.push_str(&clip(&format!("! {problem}"), max_width));
        text.push('\n');
    }
    text
}

fn cells(row: &DropRow, new: u64) -> [String; HEADER.len()] {
    let kind = &row.kind;
    let ordinary = if kind.ordinary { " (ordinary)" } else { "" };
    [
        grouped(new),
        grouped(row.packets),
        escape(&kind.reason) + ordinary,
        words::party(&kind.source),
        words::party(&kind.destination),
        words::what(kind),
        words::at(&kind.at),
        words::place(kind),
    ]
}
