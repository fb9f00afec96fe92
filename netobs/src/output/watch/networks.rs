//! The networks view: what passes between each network and the host, and between its containers.

use ratatui::{
    Frame,
    layout::{Alignment, Constraint, Rect},
    text::Line,
    widgets::{Cell, Row, Table, TableState},
};

use super::{
    draw::{BOLD, SELECTED},
    view::View,
};
use crate::{
    model::{Network, Rates},
    output::format::{bit_rate, escape},
};

/// Directions: the host's for `HOST`, the containers' for `CONT`. The width of the last ones is fixed,
/// the first one takes what is left.
const COLUMNS: [(&str, u16); 9] = [
    ("NETWORK", 14),
    ("HOST RX/s", 10),
    ("HOST TX/s", 10),
    ("CONT RX/s", 10),
    ("CONT TX/s", 10),
    ("CONT", 4),
    ("DRIVER", 9),
    ("BRIDGE", 15),
    ("SUBNETS", 20),
];
const TEXT: [usize; 4] = [0, 6, 7, 8];

pub fn draw(frame: &mut Frame, area: Rect, view: &View) {
    let networks = view.networks();
    if networks.is_empty() {
        return frame.render_widget("no networks", area);
    }
    let mut left = area.width;
    let fitting = COLUMNS.iter().take_while(|(_, width)| {
        let fits = left > *width;
        left = left.saturating_sub(width + 1);
        fits
    });
    let shown = fitting.count();
    let widths = COLUMNS[..shown].iter().enumerate().map(|(column, (_, width))| match column {
        0 => Constraint::Min(*width),
        _ => Constraint::Length(*width),
    });
    let aligned = |column: usize, text: String| {
        let alignment = if TEXT.contains(&column) { Alignment::Left } else { Alignment::Right };
        Cell::from(Line::from(text).alignment(alignment))
    };
    let rows = networks.iter().map(|network| {
        let cells = cells(network).into_iter().take(shown).enumerate();
        Row::new(cells.map(|(column, text)| aligned(column, text)).collect::<Vec<_>>())
    });
    let header =
        COLUMNS[..shown].iter().enumerate().map(|(column, (name, _))| aligned(column, (*name).into()));
    let widget = Table::new(rows, widths).header(Row::new(header).style(BOLD)).row_highlight_style(SELECTED);
    let mut state = TableState::default().with_selected(view.selected_row());
    frame.render_stateful_widget(widget, area, &mut state);
}

fn cells(network: &Network) -> [String; COLUMNS.len()] {
    let rate = |rates: Option<Rates>, of: fn(&Rates) -> f64| {
        rates.map_or_else(|| "-".into(), |rates| bit_rate(of(&rates)))
    };
    let subnets: Vec<_> = network.subnets.iter().map(|subnet| escape(&subnet.subnet)).collect();
    [
        escape(&network.name),
        rate(network.rates, |rates| rates.rx_bits_per_second),
        rate(network.rates, |rates| rates.tx_bits_per_second),
        rate(network.containers_rates, |rates| rates.rx_bits_per_second),
        rate(network.containers_rates, |rates| rates.tx_bits_per_second),
        network.containers.len().to_string(),
        escape(&network.driver),
        network.bridge.as_deref().map_or_else(|| "-".into(), escape),
        subnets.join(" "),
    ]
}
