//! `--output wide`: all that identifies a container, a line for each of its interfaces; then its published
//! ports, a line for each way that traffic took to them.

use super::{
    format::{bytes, escape, grouped, pad, short_id, width},
    problems::problems,
};
use crate::model::{Container, Published, Snapshot, snapshot::ContainerInterface};

const HEADER: [&str; 16] = [
    "NAME",
    "ID",
    "IMAGE",
    "PROJECT",
    "SERVICE",
    OWNER,
    NODE,
    "NETWORK",
    "DRIVER",
    "INTERFACE",
    "HOST",
    "ADDRESS",
    "RX PACKETS",
    "RX BYTES",
    "TX PACKETS",
    "TX BYTES",
];
const PORT_HEADER: [&str; 8] =
    ["PUBLISHED BY", "ON", "PORT", "VIA", "RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES"];
/// Columns that are there in clusters only.
const OWNER: &str = "OWNER";
const NODE: &str = "NODE";
/// Columns at the end that are numbers.
const NUMBERS: usize = 4;
const GAP: &str = "  ";

/// Lines end in `\n` and are as long as they are.
pub fn table(snapshot: &Snapshot) -> String {
    let mut rows = vec![HEADER.map(str::to_owned)];
    let mut ports = vec![PORT_HEADER.map(str::to_owned)];
    for container in &snapshot.containers {
        rows.extend(container.interfaces.iter().map(|interface| row(container, Some(interface))));
        if container.interfaces.is_empty() {
            rows.push(row(container, None));
        }
        ports.extend(container.published.iter().flat_map(|published| port_rows(container, published)));
    }
    let in_cluster = snapshot.containers.iter().any(|container| container.pod.is_some());
    let is_shown = |column: usize| in_cluster || ![OWNER, NODE].contains(&HEADER[column]);
    let mut text = align(&rows, is_shown);
    if ports.len() > 1 {
        text.push('\n');
        text.push_str(&align(&ports, |_| true));
    }
    for problem in problems(snapshot) {
        text.push_str(&format!("! {problem}\n"));
    }
    text
}

fn row(container: &Container, interface: Option<&ContainerInterface>) -> [String; HEADER.len()] {
    let (compose, pod) = (container.compose.as_ref(), container.pod.as_ref());
    let owner = pod.and_then(|pod| pod.owner.as_ref()).map(|owner| format!("{}/{}", owner.kind, owner.name));
    let of = |field: fn(&ContainerInterface) -> Option<String>| known(interface.and_then(field).as_deref());
    let numbers = interface.map(|interface| {
        let (rx, tx) = (&interface.rx, &interface.tx);
        [grouped(rx.packets), bytes(rx.bytes), grouped(tx.packets), bytes(tx.bytes)]
    });
    let why = || container.unobserved.as_deref().map(|why| format!("({})", escape(why)));
    let [rx_packets, rx_bytes, tx_packets, tx_bytes] =
        numbers.unwrap_or_else(|| ["-"; NUMBERS].map(str::to_owned));
    [
        escape(&container.name),
        escape(short_id(&container.id)),
        known(container.image.as_deref()),
        known(compose.map(|compose| compose.project.as_str())),
        known(compose.map(|compose| compose.service.as_str())),
        known(owner.as_deref()),
        known(pod.and_then(|pod| pod.node.as_deref())),
        of(|interface| interface.network.clone()),
        of(|interface| interface.driver.clone()),
        of(|interface| interface.name.clone()),
        interface.map_or_else(
            || why().unwrap_or_else(|| "-".to_owned()),
            |interface| known(interface.host_interface.as_deref()),
        ),
        of(|interface| {
            interface
                .addresses
                .iter()
                .find(|address| address.is_ipv4())
                .or(interface.addresses.first())
                .map(ToString::to_string)
        }),
        rx_packets,
        rx_bytes,
        tx_packets,
        tx_bytes,
    ]
}

fn port_rows(container: &Container, published: &Published) -> Vec<[String; PORT_HEADER.len()]> {
    let on: Vec<String> = published
        .bindings
        .iter()
        .map(|binding| match binding.address {
            Some(address) => std::net::SocketAddr::new(address, binding.port).to_string(),
            None => binding.port.to_string(),
        })
        .collect();
    let row = |via: &str, numbers: [String; NUMBERS]| {
        let [a, b, c, d] = numbers;
        let port = format!("{}/{}", published.container_port, published.protocol.name());
        [escape(&container.name), on.join(","), port, via.to_owned(), a, b, c, d]
    };
    match &published.traffic {
        None => vec![row("not counted", ["-"; NUMBERS].map(str::to_owned))],
        Some(traffic) if traffic.via.is_empty() => {
            vec![row("-", ["0", "0 B", "0", "0 B"].map(str::to_owned))]
        }
        Some(traffic) => traffic
            .via
            .iter()
            .map(|(via, count)| {
                let numbers = [
                    grouped(count.rx_packets),
                    bytes(count.rx_bytes),
                    grouped(count.tx_packets),
                    bytes(count.tx_bytes),
                ];
                row(via.name(), numbers)
            })
            .collect(),
    }
}

fn known(text: Option<&str>) -> String {
    text.map_or_else(|| "-".to_owned(), escape)
}

fn align<const N: usize>(rows: &[[String; N]], is_shown: impl Fn(usize) -> bool) -> String {
    let widths: [usize; N] =
        std::array::from_fn(|column| rows.iter().map(|row| width(&row[column])).max().unwrap_or_default());
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().enumerate().filter(|(at, _)| is_shown(*at));
        let cells: Vec<String> = cells.map(|(at, cell)| pad(cell, widths[at], at >= N - NUMBERS)).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::{Pod, Workload},
        output::fixture,
    };

    #[test]
    fn pods_have_owner_and_node() {
        let mut snapshot = fixture::snapshot();
        assert!(!table(&snapshot).contains(OWNER), "nobody is in a pod");
        let owner = Workload { kind: "Deployment".into(), name: "web".into() };
        let pod = Pod { owner: Some(owner), node: Some("node-1".into()), ..Pod::default() };
        snapshot.containers.last_mut().expect("web-1").pod = Some(pod);
        let text = table(&snapshot);
        let lines: Vec<&str> = text.lines().collect();
        let at = |word: &str| lines[0].find(word).expect("a column");
        let web = lines.iter().find(|line| line.starts_with("web-1")).expect("web-1");
        assert!(web[at(OWNER)..].starts_with("Deployment/web "), "{text}");
        assert!(web[at(NODE)..].starts_with("node-1 "), "{text}");
    }

    #[test]
    fn a_line_for_each_interface_and_each_way() {
        let text = table(&fixture::snapshot());
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].starts_with("NAME"), "{text}");
        let cells = |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
        let web = lines.iter().find(|line| line.starts_with("web-1")).expect("web-1");
        assert_eq!(
            cells(web)[1..10],
            [
                "aaaaaaaaaaaa",
                "nginx:1.27",
                "shop",
                "web",
                "shop_default",
                "bridge",
                "eth0",
                "vetha",
                "172.18.0.2"
            ]
        );
        assert_eq!(
            lines.iter().filter(|line| line.starts_with("db ")).count(),
            3,
            "three interfaces: {text}"
        );
        assert!(text.contains("(host networking)"), "{text}");
        let ports: Vec<Vec<String>> =
            lines.iter().filter(|line| line.contains("8080")).map(|line| cells(line)).collect();
        assert_eq!(ports.len(), 2, "{text}");
        assert_eq!(ports[0][..5], ["web-1", "0.0.0.0:8080,[::]:8080", "80/tcp", "client", "4"]);
        assert_eq!(ports[1][3], "docker-proxy");
    }
}
