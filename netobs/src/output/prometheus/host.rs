//! Families about networks, host interfaces and netobs itself; directions are the host's.

use prometheus::{Error, proto::Metric};

use super::exposition::{Exposition, Labels, US_PER_SECOND, float, histogram, merge};
use crate::{
    model::{Interface, InterfaceKind, Latency, Snapshot, Traffic, snapshot::LATENCY_BOUNDS_US},
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
    let orphans = snapshot.interfaces.iter().filter(|interface| match interface.kind {
        InterfaceKind::Bridge => interface.network.is_none(),
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
        let help = format!("{what} that the kernel had counted on the interface before netobs was attached");
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
    let version = [(Labels::new(["version"], [env!("CARGO_PKG_VERSION")]), 1)];
    out.gauges("netobs_build_info", "Version of netobs; always 1", version)
}

fn write_attach_latency(latency: &Latency, out: &mut Exposition<'_>) -> Result<(), Error> {
    let bounds = LATENCY_BOUNDS_US.map(|bound| float(bound) / US_PER_SECOND);
    let count = latency.buckets.iter().sum();
    let latencies = histogram(bounds, latency.buckets, count, float(latency.sum_us) / US_PER_SECOND);
    let help = "Time from netlink's message about an interface to both programs attached";
    out.histograms("netobs_attach_latency_seconds", help, [(Labels::default(), latencies)])
}
