//! One row per container and snapshot, in the columns of [`COLUMNS`]; directions are the container's.

use std::{io::Write, time::SystemTime};

use super::format::cell;
use crate::model::{Container, Drops, Rates, Snapshot, Workload, snapshot::ContainerInterface};

type Cell = fn(&Snapshot, &Container) -> String;

/// Name and content of each column. Only ever appended to. What is not known is empty.
const COLUMNS: &[(&str, Cell)] = &[
    // Seconds since the epoch, as in JSON.
    ("time", |snapshot, _| seconds(snapshot.time)),
    ("id", |_, container| container.id.clone()),
    ("name", |_, container| container.name.clone()),
    ("image", |_, container| container.image.clone().unwrap_or_default()),
    ("state", |_, container| container.state.to_string()),
    ("project", |_, c| c.compose.as_ref().map(|compose| compose.project.clone()).unwrap_or_default()),
    ("service", |_, c| c.compose.as_ref().map(|compose| compose.service.clone()).unwrap_or_default()),
    ("networks", |_, container| container.networks.join(";")),
    ("rx_packets", |_, container| container.rx.packets.to_string()),
    ("rx_bytes", |_, container| container.rx.bytes.to_string()),
    ("tx_packets", |_, container| container.tx.packets.to_string()),
    ("tx_bytes", |_, container| container.tx.bytes.to_string()),
    ("rx_wire_packets", |_, container| container.rx.wire_packets.to_string()),
    ("rx_wire_bytes", |_, container| container.rx.wire_bytes.to_string()),
    ("tx_wire_packets", |_, container| container.tx.wire_packets.to_string()),
    ("tx_wire_bytes", |_, container| container.tx.wire_bytes.to_string()),
    ("rx_tcp_packets", |_, container| container.rx.protocol.tcp.packets.to_string()),
    ("rx_udp_packets", |_, container| container.rx.protocol.udp.packets.to_string()),
    ("tx_tcp_packets", |_, container| container.tx.protocol.tcp.packets.to_string()),
    ("tx_udp_packets", |_, container| container.tx.protocol.udp.packets.to_string()),
    ("rx_dropped", |_, container| dropped(container, |drops| drops.rx_dropped)),
    ("tx_dropped", |_, container| dropped(container, |drops| drops.tx_dropped)),
    ("rx_errors", |_, container| dropped(container, |drops| drops.rx_errors)),
    ("tx_errors", |_, container| dropped(container, |drops| drops.tx_errors)),
    // Bits per second.
    ("rx_bps", |_, container| rate(container, |rates| rates.rx_bits_per_second)),
    ("tx_bps", |_, container| rate(container, |rates| rates.tx_bits_per_second)),
    // Packets per second.
    ("rx_pps", |_, container| rate(container, |rates| rates.rx_packets_per_second)),
    ("tx_pps", |_, container| rate(container, |rates| rates.tx_packets_per_second)),
    ("unobserved", |_, container| container.unobserved.clone().unwrap_or_default()),
    ("drivers", |_, container| list(container, |interface| interface.driver.clone())),
    ("interfaces", |_, container| list(container, |interface| interface.name.clone())),
    ("host_interfaces", |_, container| list(container, |interface| interface.host_interface.clone())),
    ("namespace", |_, c| c.pod.as_ref().map(|pod| pod.namespace.clone()).unwrap_or_default()),
    ("pod", |_, c| c.pod.as_ref().map(|pod| pod.name.clone()).unwrap_or_default()),
    ("owner_kind", |_, c| owner(c, |owner| &owner.kind)),
    ("owner_name", |_, c| owner(c, |owner| &owner.name)),
    ("node", |_, c| c.pod.as_ref().and_then(|pod| pod.node.clone()).unwrap_or_default()),
];

pub fn write_header(to: &mut impl Write) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_writer(to);
    writer.write_record(COLUMNS.iter().map(|(name, _)| name))?;
    Ok(writer.flush()?)
}

pub fn write_rows(to: &mut impl Write, snapshot: &Snapshot) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_writer(to);
    for container in &snapshot.containers {
        write_cells(&mut writer, COLUMNS.iter().map(|(_, cell)| cell(snapshot, container)))?;
    }
    Ok(writer.flush()?)
}

/// A row, safe for terminals and spreadsheets.
pub fn write_cells<W: Write>(
    writer: &mut csv::Writer<W>,
    cells: impl Iterator<Item = String>,
) -> Result<(), csv::Error> {
    for text in cells {
        writer.write_field(cell(&text).as_bytes())?;
    }
    writer.write_record(None::<&[u8]>)
}

/// Of what has made its pod.
fn owner(container: &Container, of: fn(&Workload) -> &String) -> String {
    let owner = container.pod.as_ref().and_then(|pod| pod.owner.as_ref());
    owner.map(|owner| of(owner).clone()).unwrap_or_default()
}

/// One of each interface, in the same order in each column.
fn list(container: &Container, of: fn(&ContainerInterface) -> Option<String>) -> String {
    let each: Vec<String> =
        container.interfaces.iter().map(|interface| of(interface).unwrap_or_default()).collect();
    each.join(";")
}

fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}", since.as_secs(), since.subsec_millis())
}

fn rate(container: &Container, of: fn(&Rates) -> f64) -> String {
    container.rates.as_ref().map(|rates| format!("{:.1}", of(rates))).unwrap_or_default()
}

fn dropped(container: &Container, of: fn(&Drops) -> u64) -> String {
    container.drops.as_ref().map(|drops| of(drops).to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{fixture, format::visible};

    #[test]
    fn rows_read_back_under_their_header() {
        let mut text = Vec::new();
        write_header(&mut text).expect("header");
        write_rows(&mut text, &fixture::snapshot()).expect("rows");
        let mut reader = csv::Reader::from_reader(text.as_slice());
        let header = reader.headers().expect("header").clone();
        let column = |name: &str| header.iter().position(|column| column == name).expect("column");
        let rows: Vec<_> = reader.records().map(|row| row.expect("row")).collect();
        assert_eq!(rows.len(), 5);
        let cell = |row: usize, name: &str| rows[row][column(name)].to_owned();
        assert_eq!(cell(0, "time"), "1700000000.250");
        assert_eq!(cell(0, "name"), "db");
        assert_eq!(cell(0, "rx_packets"), "11000");
        assert_eq!(cell(0, "rx_wire_packets"), "14000");
        assert_eq!(cell(0, "tx_tcp_packets"), "16000");
        assert_eq!(cell(0, "rx_bps"), "5000000.0");
        assert_eq!(cell(1, "name"), visible(fixture::HOSTILE));
        assert_eq!((cell(2, "rx_bps"), cell(2, "rx_dropped")), (String::new(), String::new()));
        assert_eq!(cell(2, "unobserved"), "host networking");
        assert_eq!(cell(3, "tx_bps"), "");
    }
}
