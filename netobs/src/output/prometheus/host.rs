//! Families about networks, host interfaces and netobs itself; directions are the host's.

use std::collections::HashSet;

use prometheus::{Error, proto::Metric};

use super::exposition::{Exposition, Labels, UNKNOWN, US_PER_SECOND, float, histogram, merge, name_of};
use crate::{
    model::{
        Interface, InterfaceKind, Latency, Snapshot, Traffic,
        reconcile::Difference,
        snapshot::{LATENCY_BOUNDS_US, OtlpHealth},
    },
    output::format::short_id,
};

/// Receive, transmit.
type Both = [Traffic; 2];
const DIRECTIONS: [&str; 2] = ["receive", "transmit"];

type Field = (&'static str, fn(&Traffic) -> u64);
const STACK: [Field; 2] = [("packets", |traffic| traffic.packets), ("bytes", |traffic| traffic.bytes)];
const WIRE: [Field; 2] =
    [("wire_packets", |traffic| traffic.wire_packets), ("wire_bytes", |traffic| traffic.wire_bytes)];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    write_networks(snapshot, out)?;
    write_interfaces(snapshot, out)?;
    write_unobserved(snapshot, out)?;
    write_differences(snapshot, out)?;
    write_agent(snapshot, out)?;
    write_attach_latency(&snapshot.agent.attach_latency, out)
}

fn write_networks(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let networks = snapshot.networks.iter().filter_map(|network| {
        let bridge = network.bridge.as_deref()?;
        let values = [&network.name, short_id(&network.id), &network.driver, bridge];
        Some((Labels::new(["network", "network_id", "driver", "bridge"], values), [network.rx, network.tx]))
    });
    let helps = [
        "that the host received from the network, by its bridge device; between containers not included",
        "that the host sent into the network, by its bridge device; between containers not included",
    ];
    write_traffic("netobs_network", helps, networks, &[STACK, WIRE].concat(), out)
}

/// What is counted and belongs to no container or network, so that nothing observed is missing.
fn write_interfaces(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let bridges: HashSet<&str> =
        snapshot.networks.iter().filter_map(|network| network.bridge.as_deref()).collect();
    let orphans = snapshot.interfaces.iter().filter(|interface| match interface.kind {
        InterfaceKind::Bridge => !bridges.contains(interface.name.as_str()),
        _ => interface.container_id.is_none(),
    });
    let orphans = orphans.map(|interface| {
        let labels = Labels::new(["host_interface", "kind"], [&interface.name, interface.kind.name()]);
        (labels, [interface.rx, interface.tx])
    });
    let helps = [
        "received by a host interface of no known container or network; the interface's own direction",
        "sent by a host interface of no known container or network; the interface's own direction",
    ];
    write_traffic("netobs_interface", helps, orphans, &STACK, out)
}

fn write_traffic(
    prefix: &str,
    helps: [&str; 2],
    samples: impl Iterator<Item = (Labels, Both)>,
    fields: &[Field],
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let samples = merge(samples, |sum, more| {
        for (sum, more) in sum.iter_mut().zip(&more) {
            *sum += more;
        }
    });
    let (mut metrics, samples): (Vec<Metric>, Vec<Both>) =
        samples.into_iter().map(|(labels, both)| (labels.metric(), both)).unzip();
    for (field, value) in fields {
        for (at_direction, (direction, help)) in DIRECTIONS.into_iter().zip(helps).enumerate() {
            let name = format!("{prefix}_{direction}_{field}_total");
            let what = if field.ends_with("bytes") { "Bytes" } else { "Packets" };
            let wire = if field.starts_with("wire") { ", as on a wire" } else { "" };
            let help = format!("{what} {help}{wire}");
            out.counters(name, help, &mut metrics, |at| value(&samples[at][at_direction]))?;
        }
    }
    Ok(())
}

fn write_unobserved(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    type Baselines = [(&'static str, fn(&Interface) -> u64); 2];
    let mut write = |name: &str, what: &str, baselines: Baselines| {
        let samples = snapshot.interfaces.iter().flat_map(|interface| {
            baselines.map(|(direction, value)| {
                (Labels::new(["host_interface", "direction"], [&interface.name, direction]), value(interface))
            })
        });
        let help = format!(
            "{what} that the kernel counted on the interface and netobs did not: before it was attached, and while \
             others had removed its programs"
        );
        out.gauges(name, &help, merge(samples, |sum, more| *sum += more))
    };
    write(
        "netobs_interface_unobserved_packets",
        "Packets",
        [("receive", |i| i.baseline.rx_packets), ("transmit", |i| i.baseline.tx_packets)],
    )?;
    write(
        "netobs_interface_unobserved_bytes",
        "Bytes",
        [("receive", |i| i.baseline.rx_bytes), ("transmit", |i| i.baseline.tx_bytes)],
    )
}

fn write_differences(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    type Differences = [(&'static str, fn(&Difference) -> i64); 2];
    const NAMES: [&str; 4] = ["host_interface", "container", "interface", "direction"];
    let host = snapshot.interfaces.iter().map(|one| ([one.name.as_str(), "", ""], None, one.difference));
    let inside = snapshot.containers.iter().flat_map(|container| {
        container.interfaces.iter().map(move |one| {
            (
                ["", name_of(container), one.name.as_deref().unwrap_or(UNKNOWN)],
                Some(container),
                one.difference,
            )
        })
    });
    let all: Vec<_> =
        host.chain(inside).filter_map(|(place, of, difference)| Some((place, of, difference?))).collect();
    let mut write = |name: &str, what: &str, fields: Differences| {
        let samples = all.iter().flat_map(|([host_interface, container, interface], of, difference)| {
            fields.map(|(direction, value)| {
                let labels = [*host_interface, container, interface, direction];
                let labels = Labels::new(NAMES, labels);
                let labels = match of {
                    Some(container) => labels.in_pod(container),
                    None => labels,
                };
                (labels, value(difference))
            })
        });
        let help = format!(
            "{what} that the kernel has counted on the interface, less those that netobs has counted and those \
             stated as unobserved"
        );
        out.signed_gauges(name, &help, merge(samples, |sum, more| *sum += more))
    };
    write(
        "netobs_reconciliation_difference_packets",
        "Packets",
        [("receive", |one| one.rx_packets), ("transmit", |one| one.tx_packets)],
    )?;
    write(
        "netobs_reconciliation_difference_bytes",
        "Bytes",
        [("receive", |one| one.rx_bytes), ("transmit", |one| one.tx_bytes)],
    )
}

fn write_agent(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let agent = &snapshot.agent;
    let mut one = |name: &str, help: &str, count: usize| {
        out.gauges(name, help, [(Labels::default(), u64::try_from(count).unwrap_or(u64::MAX))])
    };
    one("netobs_attached_interfaces", "Interfaces that netobs counts on", agent.attached_interfaces)?;
    one(
        "netobs_unattached_interfaces",
        "Interfaces that netobs should count on and does not",
        agent.unattached.len(),
    )?;
    one(
        "netobs_unattributed_interfaces",
        "Interfaces that netobs counts on and whose container it does not know",
        agent.unattributed_interfaces,
    )?;
    out.counters(
        "netobs_interface_event_overruns_total".to_owned(),
        "Times that the kernel's events about interfaces were lost and all were listed anew".to_owned(),
        &mut vec![Labels::new([], []).metric()],
        |_| agent.event_overruns,
    )?;
    let (mut removals, counts): (Vec<Metric>, Vec<u64>) = agent
        .reattached
        .iter()
        .map(|(reason, count)| (Labels::new(["reason"], [reason]).metric(), *count))
        .unzip();
    out.counters(
        "netobs_reattached_total".to_owned(),
        "Times that others had removed or displaced netobs's programs and they were attached again"
            .to_owned(),
        &mut removals,
        |at| counts[at],
    )?;
    // Two endpoints of one engine: it is up if either answers.
    let engines = snapshot
        .engines
        .iter()
        .map(|engine| (Labels::new(["engine"], [&engine.name]), u64::from(engine.connected)));
    let engines = merge(engines, |up, other| *up |= other);
    out.gauges("netobs_engine_up", "1 if the container engine answers", engines)?;
    let degraded = agent.degraded.iter().map(|(feature, _)| (Labels::new(["feature"], [feature]), 1));
    let degraded = merge(degraded, |_, _| ());
    out.gauges("netobs_degraded", "1 for each feature that cannot work here", degraded)?;
    if let Some(http) = &agent.http {
        let connections = u64::try_from(http.connections).unwrap_or(u64::MAX);
        out.gauges("netobs_http_connections", "Connections to netobs", [(Labels::default(), connections)])?;
        let closed = [("crowded", http.closed_crowded), ("slow", http.closed_slow)];
        out.sums(
            "netobs_http_connections_closed_total",
            "Connections that netobs closed: too many of them, or a client that took too long",
            closed.map(|(reason, closed)| (Labels::new(["reason"], [reason]), closed)),
        )?;
    }
    if let Some(otlp) = &agent.otlp {
        write_otlp(otlp, out)?;
    }
    let version = [(Labels::new(["version"], [env!("CARGO_PKG_VERSION")]), 1)];
    out.gauges("netobs_build_info", "Version of netobs; always 1", version)
}

fn write_otlp(otlp: &OtlpHealth, out: &mut Exposition<'_>) -> Result<(), Error> {
    let signals = || [("metrics", Some(&otlp.metrics)), ("logs", otlp.logs.as_ref())].into_iter();
    let signals = || signals().filter_map(|(signal, sent)| Some((signal, sent?)));
    let one = |signal: &str| Labels::new(["signal"], [signal]);
    let sent = signals().map(|(signal, sent)| (one(signal), sent.sent));
    out.sums("netobs_otlp_sent_total", "Data points and log records that the collector has taken", sent)?;
    let lost = signals().flat_map(|(signal, sent)| {
        let lost = sent.lost.iter();
        lost.map(move |(cause, lost)| (Labels::new(["signal", "cause"], [signal, cause]), *lost))
    });
    let help = "Data points and log records that were made and that the collector has not taken, by cause";
    out.sums("netobs_otlp_lost_total", help, lost)?;
    let waiting = signals().map(|(signal, sent)| (one(signal), sent.waiting));
    out.gauges("netobs_otlp_waiting", "Data points and log records that wait to be sent", waiting)?;
    let bytes = [(Labels::default(), otlp.waiting_bytes)];
    out.gauges("netobs_otlp_waiting_bytes", "Bytes of what waits to be sent", bytes)?;
    let failed = [(Labels::default(), otlp.failed_requests)];
    let help = "Requests to the collector that came to nothing, or to a refusal";
    out.sums("netobs_otlp_failed_requests_total", help, failed)
}

fn write_attach_latency(latency: &Latency, out: &mut Exposition<'_>) -> Result<(), Error> {
    let bounds = LATENCY_BOUNDS_US.map(|bound| float(bound) / US_PER_SECOND);
    let count = latency.buckets.iter().sum();
    let latencies = histogram(bounds, latency.buckets, count, float(latency.sum_us) / US_PER_SECOND);
    let help = "Time from netlink's message about an interface to both programs attached";
    out.histograms("netobs_attach_latency_seconds", help, [(Labels::default(), latencies)])
}
