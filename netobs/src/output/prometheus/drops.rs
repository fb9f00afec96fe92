//! Families about packets that the kernel dropped.

use prometheus::Error;

use super::exposition::{Exposition, Labels, UNKNOWN};
use crate::{
    model::{
        Snapshot,
        drops::{DropReport, EdgeEnd},
    },
    output::format::short_id,
};

const LABELS: [&str; 7] = [
    "reason",
    "source",
    "source_id",
    "source_network",
    "destination",
    "destination_id",
    "destination_network",
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let Some(report) = &snapshot.drops else { return Ok(()) };
    let edges = report.edges.iter().map(|(edge, packets)| {
        let ([source, source_id, source_network], [to, to_id, to_network]) =
            (end(&edge.source), end(&edge.destination));
        let values = [edge.reason.as_str(), source, source_id, source_network, to, to_id, to_network];
        (Labels::new(LABELS, values), *packets)
    });
    let help = "Packets that the kernel dropped, by its reason and by whose they were; ordinary ends of a \
                packet's life are not among them";
    out.sums("netobs_drops_total", help, edges)?;
    let events =
        report.reasons.values().map(|total| (Labels::new(["reason"], [&total.reason]), total.events));
    let help = "All events of the kernel's tracepoint kfree_skb, by its reason";
    out.sums("netobs_drops_events_total", help, events)?;
    let ordinary =
        report.reasons.values().map(|total| (Labels::new(["reason"], [&total.reason]), total.ordinary));
    let help = "Events of the kernel's tracepoint kfree_skb that are ordinary ends of a packet's life";
    out.sums("netobs_drops_ordinary_total", help, ordinary)?;
    out.sums(
        "netobs_drops_lost_total",
        "Events that are in no series of netobs_drops_total, by cause",
        lost(report),
    )
}

fn lost(report: &DropReport) -> impl Iterator<Item = (Labels, u64)> {
    report.lost.iter().map(|(cause, packets)| (Labels::new(["cause"], [cause]), *packets))
}

/// Name, ID and network.
fn end(end: &EdgeEnd) -> [&str; 3] {
    match end {
        EdgeEnd::Container { name, id, network } => {
            [name, short_id(id), network.as_deref().unwrap_or(UNKNOWN)]
        }
        EdgeEnd::Host => ["host", "", ""],
        EdgeEnd::Network(network) => [UNKNOWN, "", network],
        EdgeEnd::Unknown => [UNKNOWN, "", UNKNOWN],
        EdgeEnd::Other => ["other", "", "other"],
    }
}
