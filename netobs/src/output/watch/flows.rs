//! The flows view: who talks to whom, a conversation a line.

use ratatui::{
    Frame,
    layout::{
        Constraint,
        HorizontalAlignment::{Left, Right},
        Layout, Rect,
    },
    text::Line,
};

use super::{
    columns::{self, Column},
    draw::DIM,
    view::{Shown, View},
};
use crate::output::{flows, format::grouped};

/// As `netobs flows` has them, those that are missed least last.
const COLUMNS: [Column; flows::HEADER.len()] = [
    ("CLIENT", 20, Left),
    ("SERVER", 22, Left),
    ("PROTO", 10, Left),
    ("BYTES →", 9, Right),
    ("BYTES ←", 9, Right),
    ("PKTS →", 9, Right),
    ("PKTS ←", 9, Right),
    ("STATE", 9, Left),
    ("LOST", 6, Right),
    ("RTT", 10, Right),
    ("RETRANS", 7, Right),
    ("0-WIN", 6, Right),
    ("CLASS", 14, Left),
    ("AGE", 9, Right),
    ("HANDSHAKE", 10, Right),
    ("NETWORK", 16, Left),
];

pub fn draw(frame: &mut Frame, area: Rect, view: &View, shown: &Shown) {
    let conversations = view.flows();
    let Some(all) = &shown.flows else {
        return frame.render_widget("flows are not counted (--max-flows 0)", area);
    };
    let [table, note] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(area);
    let rows: Vec<_> = conversations.iter().map(|flow| ordered(flows::row(flow, all.time))).collect();
    if rows.is_empty() {
        frame.render_widget("no flows", table);
    } else {
        columns::draw(frame, table, &COLUMNS, &rows, view.selected_row());
    }
    let mut notes = Vec::new();
    if all.more > 0 {
        notes.push(format!("{} more, with fewer bytes", grouped(all.more as u64)));
    }
    if all.unlisted > 0 {
        notes.push(format!("{} could not be listed (--max-flows)", grouped(all.unlisted)));
    }
    frame.render_widget(Line::styled(notes.join("; "), DIM), note);
}

/// From the order of `netobs flows` to that of [`COLUMNS`].
fn ordered(row: [String; COLUMNS.len()]) -> [String; COLUMNS.len()] {
    COLUMNS.map(|(name, _, _)| {
        let at = flows::HEADER.iter().position(|other| *other == name).unwrap_or_default();
        row[at].clone()
    })
}
