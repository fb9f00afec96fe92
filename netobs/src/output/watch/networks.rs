//! The networks view: what passes between each network and the host, and between its containers.

use ratatui::{
    Frame,
    layout::{
        HorizontalAlignment::{Left, Right},
        Rect,
    },
};

use super::{
    columns::{self, Column},
    view::View,
};
use crate::{
    model::{Network, Rates},
    output::format::{bit_rate, escape},
};

/// Directions: the host's for `HOST`, the containers' for `CONT`.
const COLUMNS: [Column; 9] = [
    ("NETWORK", 14, Left),
    ("HOST RX/s", 10, Right),
    ("HOST TX/s", 10, Right),
    ("CONT RX/s", 10, Right),
    ("CONT TX/s", 10, Right),
    ("CONT", 4, Right),
    ("DRIVER", 9, Left),
    ("BRIDGE", 15, Left),
    ("SUBNETS", 20, Left),
];

pub fn draw(frame: &mut Frame, area: Rect, view: &View) {
    let networks = view.networks();
    if networks.is_empty() {
        return frame.render_widget("no networks", area);
    }
    let rows: Vec<_> = networks.into_iter().map(cells).collect();
    columns::draw(frame, area, &COLUMNS, &rows, view.selected_row());
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
