//! Families about how the TCP connections of containers fare.

use netobs_common::tcp::TCP_BOUNDS_US;
use prometheus::{
    Error,
    proto::{Bucket, Histogram, Metric, MetricType},
};

use super::exposition::{Exposition, Labels, float, merge};
use crate::{
    model::{
        Snapshot,
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
    let of_containers: Vec<([&str; 2], &TcpHealth)> = snapshot
        .containers
        .iter()
        .filter_map(|container| {
            Some(([container.name.as_str(), short_id(&container.id)], container.tcp.as_ref()?))
        })
        .collect();
    let connections: Vec<([&str; 2], &TcpConnections)> =
        of_containers.iter().filter_map(|(of, tcp)| Some((*of, tcp.connections.as_ref()?))).collect();
    write_durations(&connections, out)?;
    let results = connections.iter().flat_map(|(of, connections)| {
        RESULTS.map(|(result, count)| (with(*of, "result", result), count(connections)))
    });
    let help = "TCP connections that the container tried to open, by what came of it";
    counters("netobs_container_tcp_connects_total", help, results, out)?;
    let accepts = connections.iter().map(|(of, c)| (labels(*of), c.server_handshake.all()));
    let help = "TCP connections that were opened to the container";
    counters("netobs_container_tcp_accepts_total", help, accepts, out)?;
    let retransmits =
        of_containers.iter().filter_map(|(of, tcp)| Some((labels(*of), tcp.retransmitted_segments?)));
    let help = "TCP segments that the container sent again, SYN and SYN-ACK among them";
    counters("netobs_container_tcp_retransmitted_segments_total", help, retransmits, out)?;
    let resets =
        of_containers.iter().filter_map(|(of, tcp)| Some((of, tcp.resets?))).flat_map(|(of, resets)| {
            [("receive", resets.received), ("transmit", resets.sent)]
                .map(|(direction, count)| (with(*of, "direction", direction), count))
        });
    let help = "TCP resets that the container's sockets received and that it sent";
    counters("netobs_container_tcp_resets_total", help, resets, out)?;
    let lost = snapshot.agent.tcp.iter().flat_map(|tcp| &tcp.lost);
    let lost = lost.map(|(cause, events)| (Labels::new(["cause"], [cause]), *events));
    let help = "What was seen of TCP connections and could not be told of, by cause";
    counters("netobs_tcp_events_lost_total", help, lost, out)
}

/// Histograms, each once there is anything in it.
fn write_durations(
    connections: &[([&str; 2], &TcpConnections)],
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let handshakes = connections.iter().flat_map(|(of, connections)| {
        let role = |role, handshake| (with(*of, "role", role), handshake);
        [role("client", connections.client_handshake), role("server", connections.server_handshake)]
    });
    let help = "How long TCP handshakes took: of a client from its first SYN to the SYN-ACK, of a server from \
                its SYN-ACK to the ACK";
    histograms("netobs_container_tcp_handshake_seconds", help, handshakes, out)?;
    let rtts = connections.iter().map(|(of, connections)| (labels(*of), connections.rtt));
    let help =
        "Round-trip times of TCP connections, the kernel's smoothed figure when they begin and when they end";
    histograms("netobs_container_tcp_rtt_seconds", help, rtts, out)
}

fn labels(of: [&str; 2]) -> Labels {
    Labels::new(["container", "id"], of)
}

fn with([container, id]: [&str; 2], name: &str, value: &str) -> Labels {
    Labels::new(["container", "id", name], [container, id, value])
}

fn counters(
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (Labels, u64)>,
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let samples = merge(samples, |sum, more| *sum += more);
    let (mut metrics, values): (Vec<Metric>, Vec<u64>) =
        samples.into_iter().map(|(labels, value)| (labels.metric(), value)).unzip();
    out.counters(name.to_owned(), help.to_owned(), &mut metrics, |at| values[at])
}

fn histograms(
    name: &str,
    help: &str,
    samples: impl Iterator<Item = (Labels, Distribution)>,
    out: &mut Exposition<'_>,
) -> Result<(), Error> {
    let known = samples.filter(|(_, distribution)| distribution.measured() > 0);
    let merged = merge(known, |sum, more| *sum += &more);
    let mut metrics = Vec::with_capacity(merged.len());
    for (labels, distribution) in merged {
        let mut metric = labels.metric();
        metric.set_histogram(histogram(&distribution));
        metrics.push(metric);
    }
    out.family(name.to_owned(), help.to_owned(), MetricType::HISTOGRAM, &mut metrics)
}

fn histogram(distribution: &Distribution) -> Histogram {
    let mut below = 0;
    let buckets = TCP_BOUNDS_US.iter().zip(distribution.buckets).map(|(bound, count)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(f64::from(*bound) / 1e6);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(distribution.measured());
    histogram.set_sample_sum(float(distribution.sum_us) / 1e6);
    histogram
}
