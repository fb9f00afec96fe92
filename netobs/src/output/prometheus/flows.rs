//! Families made of flows: classes and edges.

use prometheus::{Error, proto::Metric};

use super::exposition::{Exposition, Labels, UNKNOWN, merge, name_of};
use crate::{
    model::{
        Snapshot,
        class::Class,
        snapshot::{ClassTraffic, Edge, EdgeEnd},
    },
    output::format::short_id,
};

const CLASS_LABELS: [&str; 4] = ["container", "id", "network", "class"];
const EDGE_LABELS: [&str; 6] = ["source", "source_id", "destination", "destination_id", "protocol", "port"];

const POD_LABELS: [&str; 4] = ["source_namespace", "source_pod", "destination_namespace", "destination_pod"];

const SERVICE_LABELS: [&str; 2] = ["source_service", "destination_service"];

/// In the labels of an edge, what is over the budget.
const OTHER: &str = "other";

type Field = (&'static str, &'static str, fn(&ClassTraffic) -> u64);
const FIELDS: [Field; 4] = [
    ("receive_packets", "Packets received by the container, by where its flows go", |c| c.rx.packets),
    ("receive_bytes", "Bytes received by the container, by where its flows go", |c| c.rx.bytes),
    ("transmit_packets", "Packets sent by the container, by where its flows go", |c| c.tx.packets),
    ("transmit_bytes", "Bytes sent by the container, by where its flows go", |c| c.tx.bytes),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    classes(snapshot, out)?;
    edges(snapshot, out)?;
    health(snapshot, out)
}

fn classes(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let each = snapshot.containers.iter().flat_map(|container| {
        container.classes.iter().map(|part| {
            let network = part.network.as_deref().unwrap_or(UNKNOWN);
            let values = [name_of(container), short_id(&container.id), network, part.class.name()];
            (Labels::new(CLASS_LABELS, values).in_pod(container), part.clone())
        })
    });
    let merged = merge(each, |sum, more| {
        sum.rx += more.rx;
        sum.tx += more.tx;
    });
    let (mut metrics, parts): (Vec<Metric>, Vec<ClassTraffic>) =
        merged.into_iter().map(|(labels, part)| (labels.metric(), part)).unzip();
    for (field, help, value) in FIELDS {
        let name = format!("netobs_container_class_{field}_total");
        out.counters(name, help.into(), &mut metrics, |at| value(&parts[at]))?;
    }
    Ok(())
}

fn edges(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let each = snapshot.edges.iter().map(|edge| {
        let port = edge.port.map(|port| port.to_string()).unwrap_or_default();
        let (source, destination) = (&edge.source, &edge.destination);
        let values =
            [name(source), id(source), name(destination), id(destination), edge.protocol.as_str(), &port];
        let once = edge.once;
        (services(edge, pods(edge, Labels::new(EDGE_LABELS, values))), [once.packets, once.bytes])
    });
    let other = snapshot.agent.flows.iter().map(|flows| {
        let once = flows.other_edges_once;
        (Labels::new(EDGE_LABELS, [OTHER, "", OTHER, "", OTHER, ""]), [once.packets, once.bytes])
    });
    let merged = merge(each.chain(other), |sum, more| {
        for (sum, more) in sum.iter_mut().zip(more) {
            *sum += more;
        }
    });
    let (mut metrics, counts): (Vec<Metric>, Vec<[u64; 2]>) =
        merged.into_iter().map(|(labels, count)| (labels.metric(), count)).unzip();
    let help =
        "from source to destination, each once: as sent while the source is observed, else as received";
    for (at, unit, title) in [(0, "packets", "Packets"), (1, "bytes", "Bytes")] {
        let name = format!("netobs_edge_{unit}_total");
        out.counters(name, format!("{title} {help}"), &mut metrics, |metric| counts[metric][at])?;
    }
    Ok(())
}

/// With the pods of both ends, if any is in one.
fn pods(edge: &Edge, labels: Labels) -> Labels {
    let (source, destination) = (&edge.source, &edge.destination);
    if source.pod.is_none() && destination.pod.is_none() {
        return labels;
    }
    let all = [&source.namespace, &source.pod, &destination.namespace, &destination.pod];
    labels.after(Labels::new(POD_LABELS, all.map(|one| one.as_deref().unwrap_or_default())))
}

/// With the services that the ends are, if any is one.
fn services(edge: &Edge, labels: Labels) -> Labels {
    let ends = [&edge.source.service, &edge.destination.service];
    if ends.iter().all(|end| end.is_none()) {
        return labels;
    }
    labels.after(Labels::new(SERVICE_LABELS, ends.map(|one| one.as_deref().unwrap_or_default())))
}

/// A container's name, else the class.
fn name(end: &EdgeEnd) -> &str {
    match (&end.container, end.class) {
        (Some(name), _) => name,
        (None, class) => class.map_or(UNKNOWN, Class::name),
    }
}

fn id(end: &EdgeEnd) -> &str {
    end.id.as_deref().map(short_id).unwrap_or_default()
}

fn health(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let Some(flows) = &snapshot.agent.flows else { return Ok(()) };
    let help = "Flows that are listed now";
    out.gauges("netobs_flows", help, [(Labels::default(), flows.listed as u64)])?;
    let mut one = vec![Metric::default()];
    let help = "Flows that were not listed, as there were too many; they are in all sums";
    out.counters("netobs_flows_unlisted_total".into(), help.into(), &mut one, |_| flows.unlisted)?;
    let help = "Packets of flows of which it never became known whose they were";
    let unclassified = flows.unclassified_rx.packets + flows.unclassified_tx.packets;
    out.counters("netobs_flows_unclassified_packets_total".into(), help.into(), &mut one, |_| unclassified)
}
