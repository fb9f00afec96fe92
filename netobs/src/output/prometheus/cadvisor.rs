//! cAdvisor's names and labels, for dashboards that exist. Directions are the container's.

use prometheus::{Error, proto::Metric};

use super::{
    containers::add_drops,
    exposition::{Exposition, Labels, UNKNOWN, merge},
};
use crate::model::{Drops, Snapshot};

/// In cAdvisor's order, which is the alphabet's.
const LABELS: [&str; 4] = ["id", "image", "interface", "name"];

type Values = ([u64; 4], Option<Drops>);
type Field = (&'static str, &'static str);
const COUNTS: [Field; 4] = [
    ("receive_bytes", "Cumulative count of bytes received"),
    ("receive_packets", "Cumulative count of packets received"),
    ("transmit_bytes", "Cumulative count of bytes transmitted"),
    ("transmit_packets", "Cumulative count of packets transmitted"),
];
type DropsField = (Field, fn(&Drops) -> u64);
const DROPS: [DropsField; 4] = [
    (("receive_errors", "Cumulative count of errors encountered while receiving"), |d| d.rx_errors),
    (("receive_packets_dropped", "Cumulative count of packets dropped while receiving"), |d| d.rx_dropped),
    (("transmit_errors", "Cumulative count of errors encountered while transmitting"), |d| d.tx_errors),
    (("transmit_packets_dropped", "Cumulative count of packets dropped while transmitting"), |d| {
        d.tx_dropped
    }),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let samples = snapshot.containers.iter().flat_map(|container| {
        let id = format!("/{}/{}", container.engine, container.id);
        container.interfaces.iter().map(move |interface| {
            let name = interface.name.as_deref().unwrap_or(UNKNOWN);
            let image = container.image.as_deref().unwrap_or_default();
            let labels = Labels::new(LABELS, [&id, image, name, &container.name]).in_pod(container);
            let (rx, tx) = (&interface.rx, &interface.tx);
            (labels, ([rx.bytes, rx.packets, tx.bytes, tx.packets], interface.drops))
        })
    });
    let samples: Vec<(Labels, Values)> = merge(samples, |sum, more| {
        for (sum, more) in sum.0.iter_mut().zip(more.0) {
            *sum += more;
        }
        sum.1 = add_drops(sum.1, more.1);
    });
    let (mut metrics, samples): (Vec<Metric>, Vec<Values>) =
        samples.into_iter().map(|(labels, values)| (labels.metric(), values)).unzip();
    for (field, (name, help)) in COUNTS.into_iter().enumerate() {
        out.counters(family(name), help.into(), &mut metrics, |at| samples[at].0[field])?;
    }
    let known =
        metrics.into_iter().zip(&samples).filter_map(|(metric, (_, drops))| Some((metric, (*drops)?)));
    let (mut metrics, drops): (Vec<Metric>, Vec<Drops>) = known.unzip();
    for ((name, help), value) in DROPS {
        out.counters(family(name), help.into(), &mut metrics, |at| value(&drops[at]))?;
    }
    Ok(())
}

fn family(field: &str) -> String {
    format!("container_network_{field}_total")
}
