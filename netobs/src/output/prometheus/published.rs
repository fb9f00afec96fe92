//! Families about published ports; directions are the container's.

use prometheus::{Error, proto::Metric};

use super::exposition::{Exposition, Labels, merge, name_of};
use crate::{
    model::{Container, Published, Snapshot, snapshot::PortCount},
    output::format::short_id,
};

const LABELS: [&str; 5] = ["container", "id", "port", "protocol", "via"];
const INFO_LABELS: [&str; 6] = ["container", "id", "port", "protocol", "host_address", "host_port"];

type Field = (&'static str, &'static str, fn(&PortCount) -> u64);
const FIELDS: [Field; 4] = [
    ("receive_packets", "Packets received by the container on a published port, by the way they came", |c| {
        c.rx_packets
    }),
    ("receive_bytes", "Bytes received by the container on a published port, by the way they came", |c| {
        c.rx_bytes
    }),
    ("transmit_packets", "Packets sent by the container from a published port, by the way they go", |c| {
        c.tx_packets
    }),
    ("transmit_bytes", "Bytes sent by the container from a published port, by the way they go", |c| {
        c.tx_bytes
    }),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let traffic = each(snapshot).flat_map(|(container, published)| {
        published.traffic.iter().flat_map(|traffic| &traffic.via).map(move |(via, count)| {
            let port = published.container_port.to_string();
            let values =
                [name_of(container), short_id(&container.id), &port, published.protocol.name(), via.name()];
            (Labels::new(LABELS, values).in_pod(container), *count)
        })
    });
    let (mut metrics, counts): (Vec<Metric>, Vec<PortCount>) = merge(traffic, |sum, more| *sum += more)
        .into_iter()
        .map(|(labels, count)| (labels.metric(), count))
        .unzip();
    for (field, help, value) in FIELDS {
        let name = format!("netobs_container_published_{field}_total");
        out.counters(name, help.into(), &mut metrics, |at| value(&counts[at]))?;
    }
    let bindings = each(snapshot).flat_map(|(container, published)| {
        published.bindings.iter().map(move |binding| {
            let (port, host_port) = (published.container_port.to_string(), binding.port.to_string());
            let address = binding.address.map(|address| address.to_string()).unwrap_or_default();
            let values = [
                name_of(container),
                short_id(&container.id),
                &port,
                published.protocol.name(),
                &address,
                &host_port,
            ];
            (Labels::new(INFO_LABELS, values).in_pod(container), 1)
        })
    });
    let help = "Where a published port of a container is reached on the host; always 1";
    out.gauges("netobs_container_published_info", help, merge(bindings, |_, _| ()))
}

fn each(snapshot: &Snapshot) -> impl Iterator<Item = (&Container, &Published)> {
    snapshot
        .containers
        .iter()
        .flat_map(|container| container.published.iter().map(move |published| (container, published)))
}
