//! A plain table in the manner of `docker stats`, for terminals without the full screen and for pipes.

use super::{
    format::{bit_rate, bytes, clip, escape, grouped, non_tcp, packet_rate, pad, percent, width},
    problems::problems,
};
use crate::model::{Container, Snapshot};

pub const HEADER: [&str; 10] =
    ["NAME", "NETWORK", "RX/s", "TX/s", "RX PPS", "TX PPS", "RX TOTAL", "TX TOTAL", "NON-TCP", "DROPS"];
/// Columns with text, on the left; they give way when the table is too wide.
const TEXT_COLUMNS: usize = 2;
const TEXT_MIN: usize = 12;
const GAP: usize = 2;

/// Lines end in `\n`. A width cuts names first, then lines; none leaves them as long as they are.
pub fn table(snapshot: &Snapshot, max_width: Option<u16>) -> String {
    let max_width = max_width.map_or(usize::MAX, usize::from);
    let rows: Vec<Row> = snapshot.containers.iter().map(Row::of).collect();
    let widths = widths(&rows, max_width);
    let header = Row { names: [HEADER[0].into(), HEADER[1].into()], numbers: Ok(numbers_header()) };
    let mut text = String::new();
    for row in std::iter::once(&header).chain(&rows) {
        text.push_str(&clip(row.line(&widths).trim_end(), max_width));
        text.push('\n');
    }
    for problem in problems(snapshot) {
        text.push_str(&clip(&format!("! {problem}"), max_width));
        text.push('\n');
    }
    text
}

struct Row {
    names: [String; TEXT_COLUMNS],
    /// Or why there are none.
    numbers: Result<[String; HEADER.len() - TEXT_COLUMNS], String>,
}

impl Row {
    fn of(container: &Container) -> Self {
        let networks = if container.networks.is_empty() {
            container.network_mode.as_deref().map_or_else(|| "-".into(), escape)
        } else {
            escape(&container.networks.join(","))
        };
        let numbers = match &container.unobserved {
            Some(why) => Err(escape(why)),
            None => Ok(numbers(container)),
        };
        Self { names: [escape(&container.name), networks], numbers }
    }

    fn line(&self, widths: &[usize; HEADER.len()]) -> String {
        let mut line = String::new();
        for (name, width) in self.names.iter().zip(widths) {
            line.push_str(&pad(&clip(name, *width), *width, false));
            line.push_str(&" ".repeat(GAP));
        }
        match &self.numbers {
            Ok(numbers) => {
                for (number, width) in numbers.iter().zip(&widths[TEXT_COLUMNS..]) {
                    line.push_str(&pad(number, *width, true));
                    line.push_str(&" ".repeat(GAP));
                }
            }
            Err(why) => line.push_str(&format!("({why})")),
        }
        line
    }
}

/// The cells of a container after its names, in the order of [`HEADER`]; `-` where not known.
pub fn numbers(container: &Container) -> [String; HEADER.len() - TEXT_COLUMNS] {
    let rate = |text: fn(f64) -> String, value: Option<f64>| value.map_or_else(|| "-".into(), text);
    let rates = container.rates.as_ref();
    let (non_tcp, all) = non_tcp(&container.rx, &container.tx);
    [
        rate(bit_rate, rates.map(|rates| rates.rx_bits_per_second)),
        rate(bit_rate, rates.map(|rates| rates.tx_bits_per_second)),
        rate(packet_rate, rates.map(|rates| rates.rx_packets_per_second)),
        rate(packet_rate, rates.map(|rates| rates.tx_packets_per_second)),
        total(container.rx.bytes, container.before.map(|before| before.rx_bytes)),
        total(container.tx.bytes, container.before.map(|before| before.tx_bytes)),
        percent(non_tcp, all),
        container.drops.map_or_else(|| "-".into(), |drops| grouped(drops.rx_dropped + drops.tx_dropped)),
    ]
}

/// What was observed and what passed before; at least what was observed where that is not known.
fn total(observed: u64, before: Option<u64>) -> String {
    match before {
        Some(before) => bytes(observed + before),
        None => format!("≥{}", bytes(observed)),
    }
}

fn numbers_header() -> [String; HEADER.len() - TEXT_COLUMNS] {
    std::array::from_fn(|at| HEADER[at + TEXT_COLUMNS].to_owned())
}

fn widths(rows: &[Row], max_width: usize) -> [usize; HEADER.len()] {
    let mut widths = HEADER.map(width);
    for row in rows {
        let numbers = row.numbers.iter().flatten();
        for (widest, cell) in widths.iter_mut().zip(row.names.iter().chain(numbers)) {
            *widest = width(cell).max(*widest);
        }
    }
    let total: usize = widths.iter().sum::<usize>() + GAP * (HEADER.len() - 1);
    let mut excess = total.saturating_sub(max_width);
    for width in widths[..TEXT_COLUMNS].iter_mut().rev() {
        let given = excess.min(width.saturating_sub(TEXT_MIN));
        *width -= given;
        excess -= given;
    }
    widths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    #[test]
    fn shows_numbers_or_why_there_are_none() {
        let text = table(&fixture::snapshot(), None);
        let lines: Vec<_> = text.lines().collect();
        let cells = |line: &str| {
            line.split("  ").filter(|c| !c.is_empty()).map(|c| c.trim().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(cells(lines[0]), HEADER);
        assert_eq!(
            cells(lines[1]),
            [
                "db",
                "shop_default",
                "5.00 Mb/s",
                "80.0 kb/s",
                "400",
                "200",
                "7.86 MiB",
                "15.7 MiB",
                "27.3%",
                "4"
            ]
        );
        assert_eq!(cells(lines[3]), ["host-net", "host", "(host networking)"]);
        assert!(cells(lines[4])[2..6].iter().all(|cell| cell == "-"), "{}", lines[4]);
        assert_eq!(lines[6], "! not observed: vethx: no such device");
        assert_eq!(
            lines[7],
            "! counts differ from the kernel's: vetha: rx +3 packets +0 bytes, tx +0 packets -60 bytes"
        );
        assert!(lines[8].starts_with("! podman not connected (unix:///run/podman/podman.sock): permission"));
        assert!(lines[9].starts_with("! degraded: btf"));
        assert!(lines[10].starts_with("! 1 observed interface"));
    }

    #[test]
    fn stays_within_the_width_and_emits_no_escapes() {
        for max in [40_u16, 80, 100, 200] {
            let text = table(&fixture::snapshot(), Some(max));
            assert!(text.lines().all(|line| width(line) <= usize::from(max)), "{text}");
            assert!(!text.contains(['\x1b', '\u{202e}']));
            assert_eq!(text.lines().count(), 11);
        }
    }
}
