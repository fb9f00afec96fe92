//! Families about how the TCP connections of containers fare.

use netobs_common::tcp::TCP_BOUNDS_US;
use prometheus::{Error, proto::Histogram};

use super::exposition::{Exposition, Labels, US_PER_SECOND, float, histogram, merge, name_of};
use crate::{
    model::{
        Container, Snapshot,
        tcp::{Distribution, TcpConnections, TcpHealth},
    },
    output::format::short_id,
};

/// Value of a label, and how many there are.
type Outcome = (&'static str, fn(&TcpConnections) -> u64);
const RESULTS: [Outcome; 5] = [
    ("established", |c| c.client_handshake.all()),
    ("refused", |c| c.refused),
    ("timed_out", |c| c.timed_out),
    ("given_up", |c| c.given_up),
    ("other", |c| c.failed),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let of_containers: Vec<(&Container, &TcpHealth)> = snapshot
        .containers
        .iter()
        .filter_map(|container| Some((container, container.tcp.as_ref()?)))
        .collect();
    let connections: Vec<(&Container, &TcpConnections)> =
        of_containers.iter().filter_map(|(of, tcp)| Some((*of, tcp.connections.as_ref()?))).collect();
    write_durations(&connections, out)?;
    let results = connections.iter().flat_map(|(of, connections)| {
        RESULTS.map(|(result, count)| (with(of, "result", result), count(connections)))
    });
    let help = "TCP connections that the container tried to open, by what came of it";
    out.sums("netobs_container_tcp_connects_total", help, results)?;
    let accepts = connections.iter().map(|(of, c)| (labels(of), c.server_handshake.all()));
    let help = "TCP connections that were opened to the container";
    out.sums("netobs_container_tcp_accepts_total", help, accepts)?;
    let retransmits =
        of_containers.iter().filter_map(|(of, tcp)| Some((labels(of), tcp.retransmitted_segments?)));
    let help = "TCP segments that the container sent again, SYN and SYN-ACK among them";
    out.sums("netobs_container_tcp_retransmitted_segments_total", help, retransmits)?;
    let resets =
        of_containers.iter().filter_map(|(of, tcp)| Some((of, tcp.resets?))).flat_map(|(of, resets)| {
            [("receive", resets.received), ("transmit", resets.sent)]
                .map(|(direction, count)| (with(of, "direction", direction), count))
        });
    let help = "TCP resets that the container's sockets received and that it sent";
    out.sums("netobs_container_tcp_resets_total", help, resets)?;
    let lost = snapshot.agent.tcp.iter().flat_map(|tcp| &tcp.lost);
    let lost = lost.map(|(cause, events)| (Labels::new(["cause"], [cause]), *events));
    let help = "What was seen of TCP connections and could not be told of, by cause";
    out.sums("netobs_tcp_events_lost_total", help, lost)
}

/// Histograms, each once there is anything in it.
fn write_durations(
    connections: &[(&Container, &TcpConnections)],
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let handshakes = connections.iter().flat_map(|(of, connections)| {
        let role = |role, handshake| (with(of, "role", role), handshake);
        [role("client", connections.client_handshake), role("server", connections.server_handshake)]
    });
    let help = "How long TCP handshakes took: of a client from its first SYN to the SYN-ACK, of a server from \
                its SYN-ACK to the ACK";
    histograms("netobs_container_tcp_handshake_seconds", help, handshakes, out)?;
    let rtts = connections.iter().map(|(of, connections)| (labels(of), connections.rtt));
    let help =
        "Round-trip times of TCP connections, the kernel's smoothed figure when they begin and when they end";
    histograms("netobs_container_tcp_rtt_seconds", help, rtts, out)
}

fn labels(of: &Container) -> Labels {
    Labels::new(["container", "id"], [name_of(of), short_id(&of.id)]).in_pod(of)
}

fn with(of: &Container, name: &str, value: &str) -> Labels {
    Labels::new(["container", "id", name], [name_of(of), short_id(&of.id), value]).in_pod(of)
}

fn histograms(
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (Labels, Distribution)>,
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let known = samples.filter(|(_, distribution)| distribution.measured() > 0);
    let merged = merge(known, |sum, more| *sum += &more);
    out.histograms(name, help, merged.into_iter().map(|(labels, known)| (labels, durations(&known))))
}

fn durations(distribution: &Distribution) -> Histogram {
    let bounds = TCP_BOUNDS_US.map(|bound| f64::from(bound) / US_PER_SECOND);
    let sum = float(distribution.sum_us) / US_PER_SECOND;
    histogram(bounds, distribution.buckets, distribution.measured(), sum)
}
