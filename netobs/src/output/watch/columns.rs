//! A table of which the last columns are left out where there is no room for them.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    text::Line,
    widgets::{Cell, Row, Table, TableState},
};

use super::draw::{BOLD, SELECTED};

/// Heading, width, and where the text is.
pub type Column = (&'static str, u16, Alignment);

/// The first column takes what the others leave; the widths of those are fixed.
pub fn draw<const N: usize>(
    frame: &mut Frame,
    area: Rect,
    columns: &[Column; N],
    rows: &[[String; N]],
    selected: Option<usize>,
) {
    let mut left = area.width;
    let fitting = columns.iter().take_while(|(_, width, _)| {
        let fits = left > *width;
        left = left.saturating_sub(width + 1);
        fits
    });
    let shown = fitting.count();
    let widths = columns[..shown].iter().enumerate().map(|(at, (_, width, _))| match at {
        0 => Constraint::Min(*width),
        _ => Constraint::Length(*width),
    });
    let line = |texts: [String; N]| {
        let cells = texts.into_iter().zip(columns).take(shown);
        Row::new(
            cells
                .map(|(text, (_, _, alignment))| Cell::from(Line::from(text).alignment(*alignment)))
                .collect::<Vec<_>>(),
        )
    };
    let header = line(columns.map(|(name, _, _)| name.to_owned())).style(BOLD);
    let widget =
        Table::new(rows.iter().cloned().map(line), widths).header(header).row_highlight_style(SELECTED);
    let mut state = TableState::default().with_selected(selected);
    frame.render_stateful_widget(widget, area, &mut state);
}
