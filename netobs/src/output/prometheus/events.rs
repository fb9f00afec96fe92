//! Families about DNS messages and ARP, and what of them was lost.

use prometheus::{Error, proto::Histogram};

use super::exposition::{Exposition, Labels, US_PER_SECOND, float, histogram, merge, name_of};
use crate::{
    model::{
        Container, Count, Snapshot,
        arp::ArpCounts,
        dns::{DNS_BOUNDS_US, DnsCounts, DnsLatency},
        event::DnsMessages,
    },
    output::format::short_id,
};

const NS_PER_SECOND: f64 = 1e9;

type DnsField = (&'static str, &'static str, fn(&DnsCounts) -> u64);
const DNS: [DnsField; 7] = [
    ("queries", "DNS queries, those that were sent again included", |dns| dns.queries),
    ("tcp_queries", "DNS queries by TCP, of all queries", |dns| dns.tcp_queries),
    ("retransmitted", "DNS queries that were sent again while the first was waited for", |dns| {
        dns.retransmitted
    }),
    ("unanswered", "DNS queries without a response within 5 seconds", |dns| dns.unanswered),
    (
        "unmatched_responses",
        "DNS responses that nobody waited for: too late, twice, never asked for",
        |dns| dns.unmatched,
    ),
    ("truncated_responses", "DNS responses that are only part of the answer", |dns| dns.truncated),
    ("untracked", "DNS queries that there was no room to wait for", |dns| dns.untracked),
];

type ArpField = (&'static str, &'static str, fn(&ArpCounts) -> u64);
const ARP: [ArpField; 9] = [
    ("receive_requests", "ARP requests received by the container", |arp| arp.requests_rx),
    ("transmit_requests", "ARP requests sent by the container", |arp| arp.requests_tx),
    ("receive_replies", "ARP replies received by the container", |arp| arp.replies_rx),
    ("transmit_replies", "ARP replies sent by the container", |arp| arp.replies_tx),
    (
        "announcements",
        "ARP requests sent by the container that ask nobody: gratuitous ones and probes",
        |arp| arp.announcements,
    ),
    ("unanswered", "ARP requests sent by the container without a reply within a second", |arp| {
        arp.unanswered
    }),
    ("untracked", "ARP requests sent by the container that there was no room to wait for", |arp| {
        arp.untracked
    }),
    (
        "duplicate_address",
        "Times that another MAC address was found to claim an IPv4 address that the container claims",
        |arp| arp.duplicates,
    ),
    ("other", "ARP packets that are neither requests nor replies of IPv4 over Ethernet", |arp| arp.other),
];

pub fn write(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    write_messages(snapshot, out)?;
    write_responses(snapshot, out)?;
    write_latency(snapshot, out)?;
    write_rest(snapshot, out)?;
    write_arp(snapshot, out)?;
    write_foreign(snapshot, out)?;
    let Some(health) = &snapshot.agent.events else { return Ok(()) };
    let lost = health.lost.each().map(|(kind, lost)| (Labels::new(["kind"], [kind]), lost));
    out.sums(
        "netobs_events_lost_total",
        "DNS and ARP packets of containers that were not looked at, since the ring was full",
        lost,
    )
}

fn messages(snapshot: &Snapshot) -> impl Iterator<Item = (&Container, &DnsMessages)> {
    snapshot.containers.iter().flat_map(|container| {
        let reports = container.dns.iter();
        reports.flat_map(|report| &report.messages).map(move |messages| (container, messages))
    })
}

fn of_container(container: &Container) -> Labels {
    Labels::new(["container", "id"], [name_of(container), short_id(&container.id)]).in_pod(container)
}

fn labels((container, messages): (&Container, &DnsMessages)) -> Labels {
    let values = [name_of(container), short_id(&container.id), messages.role.name(), messages.via.name()];
    Labels::new(["container", "id", "role", "via"], values).in_pod(container)
}

fn write_messages(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    for (field, help, value) in DNS {
        let samples = messages(snapshot).map(|of| (labels(of), value(&of.1.counts)));
        out.sums(&format!("netobs_container_dns_{field}_total"), help, samples)?;
    }
    Ok(())
}

fn write_responses(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let samples = messages(snapshot).flat_map(|(container, messages)| {
        messages.counts.responses.iter().map(move |(code, count)| {
            let values = [
                name_of(container),
                short_id(&container.id),
                messages.role.name(),
                messages.via.name(),
                code,
            ];
            (Labels::new(["container", "id", "role", "via", "rcode"], values).in_pod(container), *count)
        })
    });
    out.sums("netobs_container_dns_responses_total", "DNS responses by their code", samples)
}

fn write_latency(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let samples = merge(messages(snapshot).map(|of| (labels(of), of.1.counts.latency)), |sum, more| {
        for (sum, more) in sum.buckets.iter_mut().zip(more.buckets) {
            *sum += more;
        }
        sum.sum_ns += more.sum_ns;
    });
    let help = "Time from a DNS query to its first response, where the container is attached to";
    let samples = samples.into_iter().map(|(labels, latency)| (labels, latencies(&latency)));
    out.histograms("netobs_container_dns_latency_seconds", help, samples)
}

fn latencies(latency: &DnsLatency) -> Histogram {
    let bounds = DNS_BOUNDS_US.map(|bound| float(bound) / US_PER_SECOND);
    histogram(bounds, latency.buckets, latency.count(), float(latency.sum_ns) / NS_PER_SECOND)
}

/// What is no query or response, and names where these are asked for.
fn write_rest(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    let reports =
        || snapshot.containers.iter().filter_map(|container| Some((container, container.dns.as_ref()?)));
    out.sums(
        "netobs_container_dns_malformed_total",
        "Datagrams from or to port 53, and what TCP has there as messages, that are none of DNS",
        reports().map(|(container, report)| (of_container(container), report.malformed)),
    )?;
    out.sums(
        "netobs_container_dns_other_total",
        "DNS messages that are neither queries nor their responses",
        reports().map(|(container, report)| (of_container(container), report.other)),
    )?;
    out.sums(
        "netobs_container_dns_tcp_packets_total",
        "Packets, both ways, of TCP connections from or to port 53",
        reports().filter_map(|(container, report)| Some((of_container(container), report.over_tcp?.packets))),
    )?;
    out.sums(
        "netobs_container_dns_tcp_unread_segments_total",
        "TCP segments with a payload from or to port 53 whose DNS messages could not be read, or not all of them",
        reports().map(|(container, report)| (of_container(container), report.unread_segments)),
    )?;
    let names = reports().flat_map(|(container, report)| {
        let named = report.names.iter().flatten().map(|name| (name.name.as_str(), name.queries));
        let other = (report.other_names > 0).then_some(("other", report.other_names));
        named.chain(other).map(move |(name, queries)| {
            let values = [name_of(container), short_id(&container.id), name];
            (Labels::new(["container", "id", "name"], values).in_pod(container), queries)
        })
    });
    let help =
        "DNS queries of the container by name; other: no room for one more, or not all of the name is there";
    out.sums("netobs_container_dns_name_queries_total", help, names)
}

fn write_arp(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    for (field, help, value) in ARP {
        let samples = snapshot
            .containers
            .iter()
            .filter_map(|container| Some((of_container(container), value(&container.arp.as_ref()?.counts))));
        out.sums(&format!("netobs_container_arp_{field}_total"), help, samples)?;
    }
    Ok(())
}

fn write_foreign(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    type Field = (&'static str, fn(&Count) -> u64);
    type Of = fn(&Container) -> Option<&Count>;
    let fields: [Field; 2] = [("packets", |count| count.packets), ("bytes", |count| count.bytes)];
    let kinds: [(&str, &str, Of); 2] = [
        ("address", "IP {unit} sent by the container from an address that is not its own", |container| {
            container.foreign_address.as_ref()
        }),
        ("mac", "{unit} sent by the container from a MAC address that is not its interface's", |container| {
            container.foreign_mac.as_ref().map(|foreign| &foreign.count)
        }),
    ];
    for (kind, help, of) in kinds {
        for (unit, value) in fields {
            let samples = snapshot
                .containers
                .iter()
                .filter_map(|container| Some((of_container(container), value(of(container)?))));
            let name = format!("netobs_container_foreign_{kind}_transmit_{unit}_total");
            out.sums(&name, &help.replace("{unit}", unit), samples)?;
        }
    }
    let unjudged = snapshot
        .containers
        .iter()
        .filter_map(|container| Some((of_container(container), container.foreign_mac?.unjudged_packets)));
    let help = "packets sent by the container of which it is not known whether their MAC address was its interface's";
    out.sums("netobs_container_unjudged_mac_transmit_packets_total", help, unjudged)
}
