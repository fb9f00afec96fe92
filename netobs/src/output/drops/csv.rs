//! One row for each kind of dropped packet to which packets were added, in the columns of [`COLUMNS`].

use std::{
    io::Write,
    time::{Duration, SystemTime},
};

use super::{Seen, words};
use crate::{
    model::{
        Snapshot,
        drops::{DropRow, Party},
    },
    output::csv::write_cells,
};

type Cell = fn(&DropRow) -> String;

/// Name and content of each column after the time and the packets that are new. Only ever appended to. What
/// is not known is empty.
const COLUMNS: &[(&str, Cell)] = &[
    ("packets", |row| row.packets.to_string()),
    ("reason", |row| row.kind.reason.clone()),
    ("ordinary", |row| row.kind.ordinary.to_string()),
    ("source_address", |row| text(row.kind.source.address)),
    ("source", |row| name(&row.kind.source)),
    ("source_id", |row| text(row.kind.source.container_id.as_deref())),
    ("source_network", |row| text(row.kind.source.network.as_deref())),
    ("destination_address", |row| text(row.kind.destination.address)),
    ("destination", |row| name(&row.kind.destination)),
    ("destination_id", |row| text(row.kind.destination.container_id.as_deref())),
    ("destination_network", |row| text(row.kind.destination.network.as_deref())),
    ("ethertype", |row| format!("{:#06x}", row.kind.ethertype)),
    ("protocol", |row| text(row.kind.protocol.map(words::protocol_name))),
    ("port", |row| text(row.kind.port)),
    ("icmp_type", |row| text(row.kind.icmp_type)),
    ("icmp_code", |row| text(row.kind.icmp_code)),
    ("place", |row| text(row.kind.place.as_deref())),
    ("netfilter_hook", |row| text(row.kind.netfilter.as_ref().and_then(|netfilter| netfilter.hook.clone()))),
    ("netfilter_by", |row| text(row.kind.netfilter.as_ref().and_then(|netfilter| netfilter.by.clone()))),
    ("netfilter_table", |row| {
        text(row.kind.netfilter.as_ref().and_then(|netfilter| netfilter.table.clone()))
    }),
    ("namespace", |row| text(row.kind.at.namespace.as_deref())),
    ("at", |row| if row.kind.at.host { "host".to_owned() } else { text(row.kind.at.container.as_deref()) }),
    ("at_id", |row| text(row.kind.at.container_id.as_deref())),
    ("interface", |row| text(row.kind.at.interface.as_deref())),
    ("out_interface", |row| text(row.kind.at.out_interface.as_deref())),
    ("first", |row| seconds(row.first)),
    ("last", |row| seconds(row.last)),
];

pub fn header(to: &mut impl Write) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_writer(to);
    writer.write_record(["time", "new"].into_iter().chain(COLUMNS.iter().map(|(name, _)| *name)))?;
    Ok(writer.flush()?)
}

pub fn rows(to: &mut impl Write, snapshot: &Snapshot, seen: &Seen) -> Result<(), csv::Error> {
    let Some(report) = &snapshot.drops else { return Ok(()) };
    let mut writer = csv::Writer::from_writer(to);
    for (row, new) in seen.rows(report) {
        let cells = COLUMNS.iter().map(|(_, cell)| cell(row));
        let cells = [seconds(snapshot.time), new.to_string()].into_iter().chain(cells);
        write_cells(&mut writer, cells)?;
    }
    Ok(writer.flush()?)
}

/// The container's; `host` for the host, which has no ID.
fn name(party: &Party) -> String {
    if party.host { "host".to_owned() } else { text(party.container.as_deref()) }
}

fn text(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn seconds(time: SystemTime) -> String {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    format!("{}.{:03}", since.as_secs(), since.subsec_millis())
}
