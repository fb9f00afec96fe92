//! What nodes of a cluster cost: series, bytes and memory at 30, 110 and 500 pods. What that is to Prometheus, and in a
//! cluster, is in `stored`.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write as _,
    time::Duration,
};

use anyhow::ensure;
use netobs_tests::{http, node::Node, program::Agent};

use crate::{
    Effort,
    agent::{Memory, cpu, sum},
    document::{Spread, Table, Target},
    scrape::{INTERVAL, REST, ms},
    stored,
};

const PODS: [usize; 3] = [30, 110, 500];
/// The kubelet's own most: here is looked what options and pods that come and go change.
const USUAL: usize = 110;
/// Few enough that no edge is over the bound.
const CHURNED_NODE: usize = 30;
const CHURNED: usize = 10;

/// Groups of families by how their names begin; the first that fits.
const GROUPS: [(&str, &[&str]); 15] = [
    (
        "TCP: times of handshakes and round trips",
        &["netobs_container_tcp_handshake_", "netobs_container_tcp_rtt_"],
    ),
    (
        "by ethertype, cast, protocol, TCP flag",
        &[
            "netobs_container_ethertype_",
            "netobs_container_cast_",
            "netobs_container_protocol_",
            "netobs_container_tcp_flags_",
        ],
    ),
    ("TCP: connections, retransmits, resets", &["netobs_container_tcp_"]),
    ("DNS: times", &["netobs_container_dns_latency_"]),
    ("DNS: messages", &["netobs_container_dns_"]),
    (
        "ARP, foreign addresses",
        &["netobs_container_arp_", "netobs_container_foreign_", "netobs_container_unjudged_"],
    ),
    (
        "sizes of packets",
        &["netobs_container_receive_packet_size_", "netobs_container_transmit_packet_size_"],
    ),
    ("classes, published ports", &["netobs_container_class_", "netobs_container_published_"]),
    ("what is known of containers and interfaces", &["netobs_container_info", "netobs_interface_info"]),
    (
        "containers: packets, bytes, drops, errors",
        &["netobs_container_receive_", "netobs_container_transmit_"],
    ),
    ("edges", &["netobs_edge_"]),
    ("drops", &["netobs_drops_"]),
    (
        "interfaces: not observed, differences",
        &["netobs_interface_unobserved_", "netobs_reconciliation_difference_"],
    ),
    (
        "networks, interfaces of no container",
        &["netobs_network_", "netobs_interface_receive_", "netobs_interface_transmit_"],
    ),
    ("the agent itself", &["netobs_"]),
];

/// Options that there are fewer series with.
const OPTIONS: [&str; 7] = [
    "--no-tcp",
    "--no-dns",
    "--no-arp",
    "--no-drops",
    "--max-edges=0",
    "--max-flows=0",
    "--no-tcp --no-dns --no-arp --no-drops --max-flows=0",
];

/// What a node was found to have.
pub struct Figures {
    pub pods: usize,
    /// Of `/metrics`.
    pub text: String,
    pub series: usize,
    compressed: usize,
    is_compressed: bool,
    time: Spread,
    cpu_ms: f64,
    idle_ms: f64,
    memory: Memory,
    /// The kernel's figure.
    map_bytes: u64,
}

pub fn measure(effort: Effort) -> anyhow::Result<(Vec<Table>, Vec<Target>)> {
    ensure!(stored::is_there(), "this part needs prometheus (Debian: apt-get install prometheus)");
    let pods = if effort.quick { &[10][..] } else { &PODS[..] };
    let (mut nodes, mut left) = (Vec::new(), Vec::new());
    let (mut options, mut churn, mut costs) = (None, None, None);
    for &pods in pods {
        let mut node = Node::new(pods);
        let agent = node.agent(&[]);
        node.live(&agent);
        nodes.push(figures(pods, &node, &agent, effort));
        left.push(stored::left(&node, &agent));
        if pods == USUAL || effort.quick {
            costs = Some(stored::costs(&node, &agent, effort));
        }
        if pods == CHURNED_NODE || effort.quick {
            churn = Some(churned(&mut node, &agent, CHURNED.min(pods)));
        }
        drop(agent);
        if pods == USUAL || effort.quick {
            options = Some(with_options(&node, nodes.last().map_or(0, |node| node.series), effort));
        }
    }
    let mut tables = vec![of_nodes(&nodes, effort), of_families(&nodes)];
    tables.extend(options);
    tables.push(stored::of_rules(&nodes, &left));
    if let Some(costs) = costs {
        tables.push(costs.table());
        tables.push(stored::of_clusters(&nodes, &left, &costs));
    }
    tables.extend(churn);
    Ok((tables, Vec::new()))
}

/// Lines that are no comments.
pub fn series(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.starts_with('#'))
}

fn figures(pods: usize, node: &Node, agent: &Agent, effort: Effort) -> Figures {
    let text = node.metrics(agent).expect("a scrape");
    let rounds = effort.rounds(15);
    let port = agent.port;
    let before = cpu(agent.pid());
    let times = node.host.inside(|| {
        let mut times = Vec::new();
        for _ in 0..rounds {
            std::thread::sleep(REST);
            let start = std::time::Instant::now();
            let (status, _) = http::get(port, "/metrics").expect("a scrape");
            times.push(ms(start.elapsed()));
            assert_eq!(status, 200);
        }
        times
    });
    let cpu_ms = ms(cpu(agent.pid()) - before) / rounds as f64;
    let idle = effort.time(Duration::from_secs(10));
    let before = cpu(agent.pid());
    std::thread::sleep(idle);
    let idle_ms = ms(cpu(agent.pid()) - before) / idle.as_secs_f64();
    let (head, body) = node
        .host
        .inside(|| http::ask(port, "GET", "/metrics", "Accept-Encoding: gzip\r\n").expect("a scrape"));
    let is_compressed = head.to_lowercase().contains("content-encoding: gzip");
    Figures {
        pods,
        series: series(&text).count(),
        compressed: if is_compressed { body.len() } else { gzip(&text) },
        is_compressed,
        text,
        time: Spread::of(times),
        cpu_ms,
        idle_ms,
        memory: Memory::of(agent),
        map_bytes: map_bytes(agent.pid()),
    }
}

fn gzip(text: &str) -> usize {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).expect("compress");
    encoder.finish().expect("compress").len()
}

/// What the kernel accounts for the maps that a process holds (`memlock` in `/proc/PID/fdinfo`; before 6.4 an
/// estimate).
fn map_bytes(pid: u32) -> u64 {
    let mut maps: BTreeMap<u64, u64> = BTreeMap::new();
    for file in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process").flatten() {
        // One may be closed meanwhile.
        let text = std::fs::read_to_string(file.path()).unwrap_or_default();
        let field = |name: &str| -> Option<u64> {
            text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
        };
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    maps.values().sum()
}

fn of_nodes(nodes: &[Figures], effort: Effort) -> Table {
    let about = format!(
        "One agent with all that is on by default. Scrapes: {}, 0.1 s apart, and CPU time as in \
         [benchmarks.md](benchmarks.md#scrapes), while the pods rest. Resident memory is beside the maps; that of the \
         maps is what the kernel accounts for them (`memlock` in `/proc/PID/fdinfo`).",
        effort.rounds(15)
    );
    let head: Vec<String> = nodes.iter().map(|node| format!("{} pods", node.pods)).collect();
    let head: Vec<&str> = [""].into_iter().chain(head.iter().map(String::as_str)).collect();
    let mut table = Table::named("nodes", &about, &head);
    let mut row = |what: &str, cell: &dyn Fn(&Figures) -> String| {
        let cells: Vec<String> = [what.to_owned()].into_iter().chain(nodes.iter().map(cell)).collect();
        table.row(&cells);
    };
    row("series", &|node| thousands(node.series as f64));
    row("series a pod", &|node| format!("{:.0}", node.series as f64 / node.pods as f64));
    row("kB a scrape", &|node| thousands(node.text.len() as f64 / 1e3));
    row("bytes a series", &|node| format!("{:.0}", node.text.len() as f64 / node.series as f64));
    let compressed = if nodes.iter().all(|node| node.is_compressed) {
        "kB a scrape, gzip"
    } else {
        "kB if it were gzip, which the agent does not serve"
    };
    row(compressed, &|node| thousands(node.compressed as f64 / 1e3));
    row("ms a scrape", &|node| node.time.show(1));
    row("CPU ms a scrape", &|node| format!("{:.1}", node.cpu_ms));
    row("CPU ms a second, scraped every 15 s", &|node| {
        format!("{:.1}", node.cpu_ms / INTERVAL + node.idle_ms)
    });
    row("resident MB beside maps", &|node| format!("{:.1}", node.memory.beside as f64 / 1e6));
    row("MB of maps", &|node| format!("{:.1}", node.map_bytes as f64 / 1e6));
    row("edges kept apart", &|node| {
        let edges = series(&node.text).filter(|line| line.starts_with("netobs_edge_packets_total{"));
        thousands(edges.filter(|line| !line.contains(OTHER_EDGE)).count() as f64)
    });
    row("packets of edges that are not: `other`", &|node| {
        let all = sum(&node.text, "netobs_edge_packets_total{");
        let other = series(&node.text)
            .filter(|line| line.starts_with("netobs_edge_packets_total{") && line.contains(OTHER_EDGE));
        let other: f64 = other.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum();
        format!("{:.0}%", other * 100.0 / all.max(1.0))
    });
    table
}

/// Label of the edge that has all that are over the bound.
const OTHER_EDGE: &str = "source=\"other\"";

/// Series and bytes by [`GROUPS`], in their order.
fn by_group(text: &str) -> Vec<(usize, usize)> {
    let mut groups = vec![(0, 0); GROUPS.len()];
    for line in text.lines() {
        let name = match line.strip_prefix("# ") {
            Some(comment) => comment.split(' ').nth(1).unwrap_or_default(),
            None => line.split(['{', ' ']).next().unwrap_or_default(),
        };
        let is = |(_, begins): &(&str, &[&str])| begins.iter().any(|begin| name.starts_with(begin));
        let at = GROUPS.iter().position(is).unwrap_or(GROUPS.len() - 1);
        groups[at].0 += usize::from(!line.starts_with('#'));
        groups[at].1 += line.len() + 1;
    }
    groups
}

fn of_families(nodes: &[Figures]) -> Table {
    let about = "The same by groups of families: series, and kB of a scrape.";
    let head: Vec<String> =
        nodes.iter().flat_map(|node| [format!("{} pods: series", node.pods), "kB".to_owned()]).collect();
    let head: Vec<&str> = ["families"].into_iter().chain(head.iter().map(String::as_str)).collect();
    let mut table = Table::named("families", about, &head);
    let groups: Vec<Vec<(usize, usize)>> = nodes.iter().map(|node| by_group(&node.text)).collect();
    let mut order: Vec<usize> = (0..GROUPS.len()).collect();
    order.sort_by_key(|&at| std::cmp::Reverse(groups.last().map_or(0, |node| node[at].0)));
    for at in order {
        let cells = groups.iter().flat_map(|node| {
            let (series, bytes) = node[at];
            [thousands(series as f64), thousands(bytes as f64 / 1e3)]
        });
        let cells: Vec<String> = [GROUPS[at].0.to_owned()].into_iter().chain(cells).collect();
        table.row(&cells);
    }
    table
}

fn with_options(node: &Node, all: usize, effort: Effort) -> Table {
    let about = "Series with these options of the agent, each a run of its own on the node with 110 pods.";
    let mut table = Table::named("options", about, &["options", "series", "fewer"]);
    table.row(&["–".to_owned(), thousands(all as f64), String::new()]);
    for options in OPTIONS.iter().take(effort.rounds(OPTIONS.len())) {
        let split: Vec<&str> = options.split(' ').collect();
        let agent = node.agent(&split);
        node.live(&agent);
        let series = series(&node.metrics(&agent).expect("a scrape")).count();
        let fewer = (all as f64 - series as f64) * 100.0 / all as f64;
        table.row(&[format!("`{options}`"), thousands(series as f64), format!("{fewer:.0}%")]);
    }
    table
}

/// Some pods end and others come: which series are new, and how many there are meanwhile.
fn churned(node: &mut Node, agent: &Agent, pods: usize) -> Table {
    let keys = |text: &str| -> BTreeSet<String> {
        series(text).filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned())).collect()
    };
    let text = node.metrics(agent).expect("a scrape");
    let before = keys(&text);
    node.replace(pods);
    node.until_known(agent);
    node.live(agent);
    let after = keys(&node.metrics(agent).expect("a scrape"));
    let about = format!(
        "On the node with {CHURNED_NODE} pods, {pods} end and {pods} others start and do the same: series by their \
         labels before, and when there were no new ones any more, within the grace period of those that had ended."
    );
    let mut table = Table::named("churn", &about, &["", "series"]);
    let new = after.difference(&before).count();
    table.row(&["in `/metrics` before".to_owned(), thousands(before.len() as f64)]);
    table.row(&["in `/metrics` within the grace period".to_owned(), thousands(after.len() as f64)]);
    table.row(&[
        "new to Prometheus, for each pod that came".to_owned(),
        format!("{:.0}", new as f64 / pods as f64),
    ]);
    table
}

/// 1,234,567
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_set_apart() {
        assert_eq!(
            [0.0, 999.4, 1000.0, 12_345.6, 1_234_567.0].map(thousands),
            ["0", "999", "1,000", "12,346", "1,234,567"]
        );
    }

    #[test]
    fn each_line_is_in_one_group() {
        let text = "# HELP netobs_edge_bytes_total Bytes\n# TYPE netobs_edge_bytes_total counter\n\
                    netobs_edge_bytes_total{source=\"a\"} 1\nnetobs_container_tcp_flags_receive_packets_total{} 1\n\
                    netobs_container_tcp_rtt_seconds_bucket{} 1\nnetobs_container_tcp_accepts_total{} 1\n\
                    netobs_interface_event_overruns_total 1\nnetobs_flows 1\n";
        let groups = by_group(text);
        let of = |name: &str| groups[GROUPS.iter().position(|group| group.0 == name).expect(name)];
        assert_eq!(of("edges").0, 1);
        assert_eq!(of("by ethertype, cast, protocol, TCP flag").0, 1);
        assert_eq!(of("TCP: times of handshakes and round trips").0, 1);
        assert_eq!(of("TCP: connections, retransmits, resets").0, 1);
        assert_eq!(of("the agent itself").0, 2);
        assert_eq!(groups.iter().map(|group| group.1).sum::<usize>(), text.len());
    }
}
