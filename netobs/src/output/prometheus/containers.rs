//! Families about containers; directions are the container's, one series per interface inside.

use std::collections::BTreeMap;

use netobs_common::SIZE_BOUNDS;
use prometheus::{
    Error,
    proto::{Histogram, Metric, MetricType},
};

use super::exposition::{Exposition, Labels, UNKNOWN, float, histogram, merge, name_of, with_label};
use crate::{
    model::{Container, Count, Drops, InterfaceKind, Place, Pod, Snapshot, Traffic},
    output::format::short_id,
};

const LABELS: [&str; 4] = ["container", "id", "interface", "network"];

const CONTAINER_LABELS: [&str; 8] =
    ["id", "container", "image", "state", "engine", "compose_project", "compose_service", "network_mode"];
const POD_LABELS: [&str; 6] = ["namespace", "pod", "pod_uid", "owner_kind", "owner_name", "node"];
const INTERFACE_LABELS: [&str; 11] = [
    "id",
    "container",
    "interface",
    "network",
    "driver",
    "kind",
    "observed",
    "host_interface",
    "ifindex",
    "mac",
    "address",
];

/// What is counted under one label set.
#[derive(Clone)]
struct Series {
    rx: Traffic,
    tx: Traffic,
    drops: Option<Drops>,
}

/// Word in the metric's name, word in its help, and where the numbers are.
struct Direction {
    name: &'static str,
    verb: &'static str,
    of: fn(&Series) -> &Traffic,
}

const DIRECTIONS: [Direction; 2] = [
    Direction { name: "receive", verb: "received", of: |series| &series.rx },
    Direction { name: "transmit", verb: "sent", of: |series| &series.tx },
];

type TrafficField = (&'static str, &'static str, fn(&Traffic) -> u64);
const FIELDS: [TrafficField; 8] = [
    ("packets", "Packets {} by the container, as the network stack counts them", |t| t.packets),
    (
        "bytes",
        "Bytes {} by the container, with Ethernet headers (from the IP header on where the interface is \
         cgroup), as the network stack counts them",
        |t| t.bytes,
    ),
    ("wire_packets", "Packets {} by the container as on a wire: super-packets unfolded", |t| t.wire_packets),
    ("wire_bytes", "Bytes {} by the container as on a wire: each segment with its headers", |t| t.wire_bytes),
    ("truncated_packets", "Packets {} by the container that ended inside a header that was needed", |t| {
        t.truncated
    }),
    ("unflowed_packets", "IP packets {} by the container that are in no flow", |t| t.unflowed.packets),
    ("unflowed_bytes", "Bytes of IP packets {} by the container that are in no flow", |t| t.unflowed.bytes),
    (
        "tcp_zero_window_packets",
        "Packets {} by the container whose TCP window is 0: their sender takes nothing more for now",
        |t| t.tcp_zero_window,
    ),
];

type DropsField = (&'static str, &'static str, fn(&Drops) -> u64);
const DROPS: [DropsField; 4] = [
    ("receive_packets_dropped", "Packets to the container that its interface dropped", |d| d.rx_dropped),
    ("transmit_packets_dropped", "Packets from the container that its interface dropped", |d| d.tx_dropped),
    ("receive_errors", "Errors of the container's interface on receiving", |d| d.rx_errors),
    ("transmit_errors", "Errors of the container's interface on sending", |d| d.tx_errors),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let series = series(snapshot);
    let (mut metrics, series): (Vec<Metric>, Vec<Series>) =
        series.into_iter().map(|(labels, series)| (labels.metric(), series)).unzip();
    for (field, help, value) in FIELDS {
        for direction in &DIRECTIONS {
            let name = format!("netobs_container_{}_{field}_total", direction.name);
            let help = help.replace("{}", direction.verb);
            out.counters(name, help, &mut metrics, |at| value((direction.of)(&series[at])))?;
        }
    }
    write_drops(&metrics, &series, out)?;
    write_breakdown("ethertype", "by EtherType", &metrics, &series, |t| t.ethertype.each(), out)?;
    write_breakdown("cast", "by kind of destination MAC address", &metrics, &series, |t| t.cast.each(), out)?;
    write_breakdown("protocol", "by L4 protocol", &metrics, &series, |t| t.protocol.each(), out)?;
    FLAGS.write(&metrics, &series, out)?;
    UNFLOWED.write(&metrics, &series, out)?;
    write_sizes(&mut metrics, &series, out)?;
    write_info(snapshot, out)
}

fn series(snapshot: &Snapshot) -> Vec<(Labels, Series)> {
    let each = snapshot.containers.iter().flat_map(|container| {
        container.interfaces.iter().map(|interface| {
            let name = interface.name.as_deref().unwrap_or(UNKNOWN);
            let network = interface.network.as_deref().unwrap_or(UNKNOWN);
            let labels = Labels::new(LABELS, [name_of(container), short_id(&container.id), name, network])
                .in_pod(container);
            (labels, Series { rx: interface.rx, tx: interface.tx, drops: interface.drops })
        })
    });
    merge(each, |sum, more| {
        sum.rx += &more.rx;
        sum.tx += &more.tx;
        sum.drops = add_drops(sum.drops, more.drops);
    })
}

/// What is known of either.
pub fn add_drops(sum: Option<Drops>, more: Option<Drops>) -> Option<Drops> {
    let (Some(sum), Some(more)) = (sum, more) else { return sum.or(more) };
    Some(Drops {
        rx_dropped: sum.rx_dropped + more.rx_dropped,
        tx_dropped: sum.tx_dropped + more.tx_dropped,
        rx_errors: sum.rx_errors + more.rx_errors,
        tx_errors: sum.tx_errors + more.tx_errors,
    })
}

fn write_drops(metrics: &[Metric], series: &[Series], out: &mut Exposition<'_>) -> Result<(), Error> {
    let known =
        metrics.iter().zip(series).filter_map(|(metric, series)| Some((metric.clone(), series.drops?)));
    let (mut metrics, drops): (Vec<Metric>, Vec<Drops>) = known.unzip();
    for (field, help, value) in DROPS {
        let name = format!("netobs_container_{field}_total");
        out.counters(name, help.into(), &mut metrics, |at| value(&drops[at]))?;
    }
    Ok(())
}

/// The parts of the traffic by one property. A part appears once it is not zero in either direction.
fn write_breakdown<const N: usize>(
    property: &str,
    help: &str,
    metrics: &[Metric],
    series: &[Series],
    parts: fn(&Traffic) -> [(&'static str, Count); N],
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let mut labelled = Vec::with_capacity(N * metrics.len());
    let mut counts = Vec::with_capacity(N * metrics.len());
    for (metric, series) in metrics.iter().zip(series) {
        for ((part, rx), (_, tx)) in parts(&series.rx).into_iter().zip(parts(&series.tx)) {
            if rx.packets + tx.packets > 0 {
                labelled.push(with_label(metric, property, part));
                counts.push([rx, tx]);
            }
        }
    }
    for (at_direction, Direction { name, verb, .. }) in DIRECTIONS.iter().enumerate() {
        let family = |unit| format!("netobs_container_{property}_{name}_{unit}_total");
        let text = |unit| format!("{unit} {verb} by the container, {help}");
        out.counters(family("packets"), text("Packets"), &mut labelled, |at| {
            counts[at][at_direction].packets
        })?;
        out.counters(family("bytes"), text("Bytes"), &mut labelled, |at| counts[at][at_direction].bytes)?;
    }
    Ok(())
}

/// Packets that have something in common, with one more label. A part appears once it is not zero in either direction.
struct Parts<const N: usize> {
    family: &'static str,
    label: &'static str,
    help: &'static str,
    of: fn(&Traffic) -> [(&'static str, u64); N],
}

const FLAGS: Parts<3> = Parts {
    family: "tcp_flags",
    label: "flag",
    help: "Packets {} by the container whose TCP header has the flag",
    of: |traffic| traffic.tcp_flags.each(),
};

const UNFLOWED: Parts<2> = Parts {
    family: "unflowed_cause",
    label: "cause",
    help: "IP packets {} by the container that are in no flow, by why: no room for one more, or a cut header",
    of: |traffic| {
        let truncated = traffic.unflowed_truncated;
        [("no_room", traffic.unflowed.packets.saturating_sub(truncated)), ("truncated", truncated)]
    },
};

impl<const N: usize> Parts<N> {
    fn write(&self, metrics: &[Metric], series: &[Series], out: &mut Exposition<'_>) -> Result<(), Error> {
        let mut labelled = Vec::new();
        let mut counts = Vec::new();
        for (metric, series) in metrics.iter().zip(series) {
            for ((part, rx), (_, tx)) in (self.of)(&series.rx).into_iter().zip((self.of)(&series.tx)) {
                if rx + tx > 0 {
                    labelled.push(with_label(metric, self.label, part));
                    counts.push([rx, tx]);
                }
            }
        }
        for (at_direction, Direction { name, verb, .. }) in DIRECTIONS.iter().enumerate() {
            let name = format!("netobs_container_{}_{name}_packets_total", self.family);
            out.counters(name, self.help.replace("{}", verb), &mut labelled, |at| counts[at][at_direction])?;
        }
        Ok(())
    }
}

fn write_sizes(metrics: &mut Vec<Metric>, series: &[Series], out: &mut Exposition<'_>) -> Result<(), Error> {
    for direction in &DIRECTIONS {
        for (metric, series) in metrics.iter_mut().zip(series) {
            metric.set_histogram(sizes((direction.of)(series)));
        }
        let name = format!("netobs_container_{}_packet_size_bytes", direction.name);
        let help = format!("Sizes of the packets {} by the container, as on a wire", direction.verb);
        out.family(name, help, MetricType::HISTOGRAM, metrics)?;
    }
    Ok(())
}

fn sizes(traffic: &Traffic) -> Histogram {
    let bounds = SIZE_BOUNDS.map(f64::from);
    histogram(bounds, traffic.size, traffic.wire_packets, float(traffic.wire_bytes))
}

fn write_info(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let containers = snapshot.containers.iter().map(|container| {
        let compose = container.compose.as_ref();
        let labels = Labels::new(
            CONTAINER_LABELS,
            [
                short_id(&container.id),
                name_of(container),
                container.image.as_deref().unwrap_or_default(),
                &container.state.to_string(),
                &container.engine,
                compose.map(|compose| compose.project.as_str()).unwrap_or_default(),
                compose.map(|compose| compose.service.as_str()).unwrap_or_default(),
                container.network_mode.as_deref().unwrap_or_default(),
            ],
        );
        (pod_info(container, labels), 1)
    });
    let help = "What is known of a container, for joins on id; always 1";
    out.gauges("netobs_container_info", help, merge(containers, |_, _| ()))?;
    write_pods(snapshot, out)?;
    let interfaces = snapshot.containers.iter().flat_map(|container| {
        container.interfaces.iter().map(|interface| {
            let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
            let labels = Labels::new(
                INTERFACE_LABELS,
                [
                    short_id(&container.id),
                    name_of(container),
                    interface.name.as_deref().unwrap_or(UNKNOWN),
                    interface.network.as_deref().unwrap_or(UNKNOWN),
                    interface.driver.as_deref().unwrap_or_default(),
                    interface.kind.map(InterfaceKind::name).unwrap_or_default(),
                    interface.observed.map(Place::name).unwrap_or_default(),
                    interface.host_interface.as_deref().unwrap_or_default(),
                    &interface.host_ifindex.map(|ifindex| ifindex.to_string()).unwrap_or_default(),
                    interface.mac.as_deref().unwrap_or_default(),
                    &addresses.join(","),
                ],
            );
            (labels.in_pod(container), 1)
        })
    });
    let help = "What is known of a container's interface, for joins on id and interface; always 1. \
                ifindex is the host interface's; addresses are separated by commas";
    out.gauges("netobs_interface_info", help, merge(interfaces, |_, _| ()))
}

/// One series a pod: its sandbox and its containers say the same.
fn write_pods(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let mut pods: BTreeMap<[&str; 3], &Pod> = BTreeMap::new();
    for pod in snapshot.containers.iter().filter_map(|container| container.pod.as_ref()) {
        let known = pods.entry([&pod.namespace, &pod.name, &pod.uid]).or_insert(pod);
        // A container whose sandbox is not known says less.
        if known.owner.is_none() {
            *known = pod;
        }
    }
    let pods = pods.into_values().map(|pod| {
        let (kind, name) =
            pod.owner.as_ref().map_or(("", ""), |owner| (owner.kind.as_str(), owner.name.as_str()));
        let node = pod.node.as_deref().unwrap_or_default();
        (Labels::new(POD_LABELS, [&pod.namespace, &pod.name, &pod.uid, kind, name, node]), 1)
    });
    let help = "What has made a pod and which node it is on, for joins on namespace and pod; always 1";
    out.gauges("netobs_pod_info", help, merge(pods, |_, _| ()))
}

/// With all that is known of its pod, if it is in one.
fn pod_info(container: &Container, labels: Labels) -> Labels {
    match &container.pod {
        Some(pod) => {
            let values = [&pod.namespace, &pod.name, &pod.uid].map(String::as_str);
            labels.after(Labels::new(["namespace", "pod", "pod_uid"], values))
        }
        None => labels,
    }
}
