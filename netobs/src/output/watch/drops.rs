//! The drops view: packets that the kernel threw away, since netobs began to look: since the view was first opened, or
//! the agent that runs was started.

use ratatui::{
    Frame,
    layout::{
        HorizontalAlignment::{Left, Right},
        Rect,
    },
    widgets::{Paragraph, Wrap},
};

use super::{
    columns::{self, Column},
    view::{Shown, View},
};
use crate::{
    model::drops::DropRow,
    output::{
        drops::words,
        format::{escape, grouped},
    },
};

const COLUMNS: [Column; 7] = [
    ("FROM", 22, Left),
    ("PACKETS", 10, Right),
    ("REASON", 18, Left),
    ("TO", 26, Left),
    ("WHAT", 17, Left),
    ("AT", 18, Left),
    ("IN THE KERNEL", 40, Left),
];

pub fn draw(frame: &mut Frame, area: Rect, view: &View, shown: &Shown) {
    if shown.snapshot.drops.is_none() {
        let degraded = shown.snapshot.agent.degraded.iter().find(|(feature, _)| feature == "drops");
        let text = match degraded {
            Some((_, why)) => format!("drops cannot be looked for: {}", escape(why)),
            None => "looking for drops …".to_owned(),
        };
        return frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
    }
    let rows: Vec<_> = view.drops().into_iter().map(cells).collect();
    if rows.is_empty() {
        return frame.render_widget("nothing was dropped since netobs began to look", area);
    }
    columns::draw(frame, area, &COLUMNS, &rows, view.selected_row());
}

fn cells(row: &DropRow) -> [String; COLUMNS.len()] {
    let kind = &row.kind;
    [
        words::party(&kind.source),
        grouped(row.packets),
        escape(&kind.reason),
        words::party(&kind.destination),
        words::what(kind),
        words::at(&kind.at),
        words::place(kind),
    ]
}
