//! The screen: header, one of the views, footer.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Cell, Paragraph, Row, Table, TableState},
};

use super::{
    detail, drops, flows, help, networks,
    view::{Shown, Tab, View},
};
use crate::{
    model::{Container, ContainerState, Snapshot},
    output::{
        format::{bit_rate, escape, packet_rate},
        problems::problems,
        table,
    },
};

pub const MIN_WIDTH: u16 = 60;
pub const MIN_HEIGHT: u16 = 12;
/// Of a sparkline that is worth having.
const SPARK_MIN: u16 = 10;
const NUMBER_WIDTHS: [u16; 8] = [10, 10, 7, 7, 9, 9, 7, 7];

pub const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
pub const DIM: Style = Style::new().add_modifier(Modifier::DIM);
pub const SELECTED: Style = Style::new().add_modifier(Modifier::REVERSED);

pub fn draw(frame: &mut Frame, view: &View) {
    let area = frame.area();
    if area.width < MIN_WIDTH || area.height < MIN_HEIGHT {
        let text = format!(
            "terminal too small: {}x{}, needs {MIN_WIDTH}x{MIN_HEIGHT} (q quits)",
            area.width, area.height
        );
        let message = Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true });
        return frame.render_widget(message, area);
    }
    let [header, body, footer] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(1)]).areas(area);
    let Some(shown) = view.shown() else {
        frame.render_widget(Line::styled("netobs", BOLD), header);
        return frame.render_widget("waiting for the first sample …", body);
    };
    frame.render_widget(Paragraph::new(header_lines(shown, view)), header);
    if view.help {
        help::draw(frame, body, view, &shown.snapshot);
    } else if view.detail.is_some() {
        detail::draw(frame, body, view);
    } else {
        match view.tab {
            Tab::Containers => containers(frame, body, view, shown),
            Tab::Networks => networks::draw(frame, body, view),
            Tab::Flows => flows::draw(frame, body, view, shown),
            Tab::Drops => drops::draw(frame, body, view, shown),
        }
    }
    frame.render_widget(footer_line(view), footer);
}

fn header_lines(shown: &Shown, view: &View) -> Vec<Line<'static>> {
    let snapshot = &shown.snapshot;
    let running = snapshot.containers.iter().filter(|c| c.state == ContainerState::Running).count();
    let rates = || snapshot.containers.iter().filter_map(|container| container.rates);
    let mut first = vec![
        Span::styled("netobs", BOLD),
        Span::raw(format!("  {} containers ({running} running)", snapshot.containers.len())),
        Span::raw(format!("  rx {}", bit_rate(rates().map(|r| r.rx_bits_per_second).sum()))),
        Span::raw(format!(" {} p/s", packet_rate(rates().map(|r| r.rx_packets_per_second).sum()))),
        Span::raw(format!("  tx {}", bit_rate(rates().map(|r| r.tx_bits_per_second).sum()))),
        Span::raw(format!(" {} p/s", packet_rate(rates().map(|r| r.tx_packets_per_second).sum()))),
    ];
    // On the left of what may be cut off.
    if view.is_paused() {
        first.insert(1, Span::raw(" "));
        first.insert(2, Span::styled(" PAUSED ", SELECTED));
    } else if let Some(why) = &view.stale {
        first.insert(1, Span::raw(" "));
        first.insert(2, Span::styled(format!(" OLD: {} ", escape(why)), SELECTED));
    }
    vec![Line::from(first), Line::from(state_spans(snapshot, view))]
}

fn state_spans(snapshot: &Snapshot, view: &View) -> Vec<Span<'static>> {
    let mut spans = Vec::new();
    match problems(snapshot).len() {
        0 => {}
        1 => spans.push(Span::styled("1 problem (?)  ", BOLD)),
        count => spans.push(Span::styled(format!("{count} problems (?)  "), BOLD)),
    }
    if !view.filter_text.is_empty() {
        spans.push(Span::styled(format!("filter: {}  ", escape(&view.filter_text)), BOLD));
    }
    let mode = if snapshot.agent.attach_mode.is_empty() { "none" } else { &snapshot.agent.attach_mode };
    if view.tab == Tab::Flows {
        let order = if view.reverse { ", reversed" } else { "" };
        spans.push(Span::raw(format!("by {}{order}  ", view.flow_sort.name())));
    }
    spans.push(Span::raw(format!("{} interfaces by {}", snapshot.agent.attached_interfaces, escape(mode))));
    for engine in &snapshot.engines {
        let state = match (engine.connected, engine.version.as_deref()) {
            (true, Some(version)) => escape(version),
            (true, None) => "connected".into(),
            (false, _) => "not connected".into(),
        };
        let style = if engine.connected { Style::new() } else { BOLD };
        spans.push(Span::styled(format!("  {}: {state}", escape(&engine.name)), style));
    }
    spans
}

fn footer_line(view: &View) -> Line<'static> {
    if let Some(typed) = &view.typed {
        return Line::from(format!("filter: {}▏ (Enter: take, Esc: leave)", escape(typed)));
    }
    if let Some(error) = &view.filter_error {
        return Line::styled(escape(error), BOLD);
    }
    let keys = if view.help {
        "any key: back   j/k scroll   q quit"
    } else if view.detail.is_some() {
        "Esc back   j/k scroll   p pause   ? help   q quit"
    } else {
        match view.tab {
            Tab::Containers => {
                "Enter detail  s sort  r reverse  / filter  p pause  Tab networks  ? help  q quit"
            }
            Tab::Networks => "Enter containers  / filter  p pause  Tab flows  ? help  q quit",
            Tab::Flows => "Enter detail  s sort  r reverse  / filter  p pause  Tab drops  ? help  q quit",
            Tab::Drops => "Enter detail  / filter  p pause  Tab containers  ? help  q quit",
        }
    };
    Line::styled(keys, DIM)
}

fn containers(frame: &mut Frame, area: Rect, view: &View, shown: &Shown) {
    let rows = view.containers();
    if rows.is_empty() {
        return frame.render_widget(nothing(&shown.snapshot), area);
    }
    let plan = Plan::of(area.width);
    let header = plan.columns.iter().map(|&column| {
        let arrow = match (column == view.sort.column(), view.reverse) {
            (false, _) => "",
            (true, false) => "▾",
            (true, true) => "▴",
        };
        aligned(format!("{}{arrow}", table::HEADER[column]), column)
    });
    let header = header.chain((plan.spark > 0).then(|| Cell::from("RX+TX")));
    let lines = rows.iter().map(|container| {
        let cells = cells(container);
        let line = plan.columns.iter().map(|&column| aligned(cells[column].clone(), column));
        let spark = shown.history.sparkline(&container.id, usize::from(plan.spark));
        let spark = (plan.spark > 0).then(|| Cell::from(spark));
        Row::new(line.chain(spark)).style(if is_over(container) { DIM } else { Style::new() })
    });
    let widget = Table::new(lines, plan.widths.clone())
        .header(Row::new(header).style(BOLD))
        .row_highlight_style(SELECTED);
    let mut state = TableState::default().with_selected(view.selected_row());
    frame.render_stateful_widget(widget, area, &mut state);
}

/// Which columns fit, how wide they are, and what is left for the sparkline.
struct Plan {
    columns: Vec<usize>,
    widths: Vec<Constraint>,
    spark: u16,
}

impl Plan {
    /// Those that are missed least go first: packets per second, then the share of non-TCP, totals, drops.
    fn of(width: u16) -> Self {
        const LEAVE: [&[usize]; 5] = [&[4, 5], &[8], &[6, 7], &[9], &[1]];
        let mut columns: Vec<usize> = (0..table::HEADER.len()).collect();
        let text = |column: usize| if column == 0 { 16 } else { 14 };
        let of = |column: usize| if column < 2 { text(column) } else { NUMBER_WIDTHS[column - 2] };
        let total = |columns: &[usize]| columns.iter().map(|&column| of(column) + 1).sum::<u16>();
        for leave in LEAVE {
            if total(&columns) <= width {
                break;
            }
            columns.retain(|column| !leave.contains(column));
        }
        let rest = width.saturating_sub(total(&columns));
        // Names get a part of what is left, the sparkline the rest.
        let spark = if rest > SPARK_MIN { (rest / 2).max(SPARK_MIN) } else { 0 };
        let more = rest.saturating_sub(spark);
        let named = if columns.contains(&1) { more / 2 } else { more };
        let mut widths: Vec<Constraint> = columns
            .iter()
            .map(|&column| Constraint::Length(of(column) + if column < 2 { named } else { 0 }))
            .collect();
        if spark > 0 {
            widths.push(Constraint::Length(spark));
        }
        Self { columns, widths, spark }
    }
}

fn cells(container: &Container) -> Vec<String> {
    let networks = if container.networks.is_empty() {
        container.network_mode.clone().unwrap_or_else(|| "-".into())
    } else {
        container.networks.join(",")
    };
    // There are no numbers to hide, so the reason may stand in the place of the network.
    let networks = match &container.unobserved {
        Some(why) => format!("({why})"),
        None => networks,
    };
    let mut cells = vec![escape(&container.name), escape(&networks)];
    if container.unobserved.is_some() {
        cells.resize(table::HEADER.len(), "-".into());
    } else {
        cells.extend(table::numbers(container));
    }
    cells
}

fn aligned(text: String, column: usize) -> Cell<'static> {
    let alignment = if column < 2 { Alignment::Left } else { Alignment::Right };
    Cell::from(Line::from(text).alignment(alignment))
}

fn nothing(snapshot: &Snapshot) -> Paragraph<'static> {
    let text = if snapshot.containers.is_empty() {
        "no containers; they are shown as soon as they start (netobs watch --demo makes some)"
    } else {
        "no container matches the filter (Esc clears it)"
    };
    Paragraph::new(text).wrap(ratatui::widgets::Wrap { trim: true })
}

/// It has ended; its totals stay for a while.
pub fn is_over(container: &Container) -> bool {
    matches!(container.state, ContainerState::Exited | ContainerState::Dead | ContainerState::Removed)
}

/// A box with a title around a part of the screen.
pub fn framed(title: String) -> Block<'static> {
    Block::bordered().title(Span::styled(format!(" {title} "), BOLD))
}
