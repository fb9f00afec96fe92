//! The detail pane: all that is known of one container. Directions are the container's.

use netobs_common::SIZE_BOUNDS;
use ratatui::{Frame, layout::Rect, text::Line, widgets::Paragraph};

use super::{
    draw::{BOLD, framed},
    view::View,
};
use crate::{
    model::{Container, Count, Place, Published, Traffic, snapshot::ContainerInterface},
    output::format::{bit_rate, bytes, escape, grouped, packet_rate, percent, short_id},
};

const BAR: usize = 16;

pub fn draw(frame: &mut Frame, area: Rect, view: &View) {
    let Some(container) = view.detailed() else {
        let gone = Paragraph::new("this container has ended and its time is over (Esc)");
        return frame.render_widget(gone.block(framed("gone".into())), area);
    };
    let lines = lines(container);
    let room = usize::from(area.height.saturating_sub(2));
    let last = u16::try_from(lines.len().saturating_sub(room)).unwrap_or(u16::MAX);
    view.scroll_end.set(last);
    let text = Paragraph::new(lines).scroll((view.scroll.min(last), 0));
    frame.render_widget(text.block(framed(escape(&container.name))), area);
}

fn lines(container: &Container) -> Vec<Line<'static>> {
    let mut lines = identity(container);
    for interface in &container.interfaces {
        lines.extend(interface_lines(interface));
    }
    lines.extend(container.published.iter().map(published_line));
    let (rx, tx) = (&container.rx, &container.tx);
    lines.push(Line::default());
    lines.push(heading("", ["RX PACKETS", "RX BYTES", "TX PACKETS", "TX BYTES"]));
    let stack = |t: &Traffic| Count { packets: t.packets, bytes: t.bytes };
    let wire = |t: &Traffic| Count { packets: t.wire_packets, bytes: t.wire_bytes };
    lines.push(counts("stack", stack(rx), stack(tx)));
    lines.push(counts("wire", wire(rx), wire(tx)));
    lines.extend(breakdown("ethertype", rx.ethertype.each(), tx.ethertype.each()));
    lines.extend(breakdown("cast", rx.cast.each(), tx.cast.each()));
    lines.extend(breakdown("protocol", rx.protocol.each(), tx.protocol.each()));
    lines.push(Line::default());
    lines.push(heading("", ["RX PACKETS", "", "TX PACKETS", ""]));
    for ((flag, rx), (_, tx)) in rx.tcp_flags.each().into_iter().zip(tx.tcp_flags.each()) {
        lines.push(row(&format!("tcp {flag}"), [grouped(rx), String::new(), grouped(tx), String::new()]));
    }
    lines
        .push(row("truncated", [grouped(rx.truncated), String::new(), grouped(tx.truncated), String::new()]));
    if let Some(drops) = container.drops {
        let cells = |rx: u64, tx: u64| [grouped(rx), String::new(), grouped(tx), String::new()];
        lines.push(row("dropped", cells(drops.rx_dropped, drops.tx_dropped)));
        lines.push(row("errors", cells(drops.rx_errors, drops.tx_errors)));
    }
    lines.push(Line::default());
    lines.extend(sizes(rx, tx));
    lines
}

fn identity(container: &Container) -> Vec<Line<'static>> {
    let field = |name: &str, value: String| Line::from(format!("{name:<10}{value}"));
    let known = |value: Option<&str>| value.map_or_else(|| "-".into(), escape);
    let mut lines = vec![
        field(
            "id",
            format!(
                "{}  {} ({})",
                escape(short_id(&container.id)),
                container.state,
                escape(&container.engine)
            ),
        ),
        field("image", known(container.image.as_deref())),
        field(
            "network",
            format!(
                "{}  mode {}",
                escape(&container.networks.join(", ")),
                known(container.network_mode.as_deref())
            ),
        ),
    ];
    if let Some(compose) = &container.compose {
        lines.push(field("compose", format!("{} / {}", escape(&compose.project), escape(&compose.service))));
    }
    if let Some(pod) = &container.pod {
        let name = format!("{} in {}", escape(&pod.name), escape(&pod.namespace));
        lines.push(field("pod", format!("{name}  uid {}", escape(&pod.uid))));
        let owner =
            pod.owner.as_ref().map(|owner| format!("{} {}", escape(&owner.kind), escape(&owner.name)));
        let node = pod.node.as_ref().map(|node| format!("on node {}", escape(node)));
        if owner.is_some() || node.is_some() {
            lines.push(field("workload", owner.into_iter().chain(node).collect::<Vec<_>>().join("  ")));
        }
    }
    if !container.members.is_empty() {
        lines.push(field("shared by", escape(&container.members.join(", "))));
    }
    if let Some(why) = &container.unobserved {
        lines.push(Line::styled(format!("no counts: {}", escape(why)), BOLD));
    }
    if let Some(rates) = &container.rates {
        let side = |bits, packets| format!("{} {} p/s", bit_rate(bits), packet_rate(packets));
        let rx = side(rates.rx_bits_per_second, rates.rx_packets_per_second);
        lines.push(field(
            "now",
            format!("rx {rx}   tx {}", side(rates.tx_bits_per_second, rates.tx_packets_per_second)),
        ));
    }
    lines
}

fn interface_lines(interface: &ContainerInterface) -> Vec<Line<'static>> {
    let known = |value: Option<&str>| value.map_or_else(|| "-".into(), escape);
    let name = interface.name.as_deref().map_or_else(|| "unknown".into(), escape);
    let seen = match (&interface.host_interface, interface.host_ifindex, interface.observed) {
        (Some(host), Some(ifindex), _) => format!("host {} (ifindex {ifindex})", escape(host)),
        (Some(host), None, _) => format!("host {}", escape(host)),
        (None, _, Some(Place::Cgroup)) => "its sockets, by its cgroup, from the IP header on".into(),
        (None, _, Some(Place::Inside)) if interface.ifindex.is_some() => "observed inside".into(),
        _ => "gone".into(),
    };
    let network = match &interface.driver {
        Some(driver) => format!("{} ({})", known(interface.network.as_deref()), escape(driver)),
        None => known(interface.network.as_deref()),
    };
    let addresses: Vec<_> = interface.addresses.iter().map(ToString::to_string).collect();
    vec![
        Line::from(format!("{name:<10}{network}  {seen}  {}", known(interface.mac.as_deref()))),
        Line::from(format!("{:<10}{}", "", addresses.join(" "))),
    ]
}

fn published_line(published: &Published) -> Line<'static> {
    let on: Vec<String> = published
        .bindings
        .iter()
        .map(|binding| match binding.address {
            Some(address) => std::net::SocketAddr::new(address, binding.port).to_string(),
            None => binding.port.to_string(),
        })
        .collect();
    let ways: Vec<String> = published
        .traffic
        .iter()
        .flat_map(|traffic| &traffic.via)
        .map(|(via, count)| {
            format!("{} rx {} tx {}", via.name(), bytes(count.rx_bytes), bytes(count.tx_bytes))
        })
        .collect();
    let (port, protocol) = (published.container_port, published.protocol.name());
    Line::from(format!("{:<10}{} to {port}/{protocol}  {}", "published", on.join(" "), ways.join("; ")))
}

/// Parts that are zero in both directions are left out, the whole property stays.
fn breakdown<const N: usize>(
    property: &str,
    rx: [(&'static str, Count); N],
    tx: [(&'static str, Count); N],
) -> Vec<Line<'static>> {
    let parts = rx.into_iter().zip(tx).filter(|((_, rx), (_, tx))| rx.packets + tx.packets > 0);
    parts.map(|((part, rx), (_, tx))| counts(&format!("{property} {part}"), rx, tx)).collect()
}

fn counts(name: &str, rx: Count, tx: Count) -> Line<'static> {
    row(name, [grouped(rx.packets), bytes(rx.bytes), grouped(tx.packets), bytes(tx.bytes)])
}

fn heading(name: &str, cells: [&str; 4]) -> Line<'static> {
    row(name, cells.map(str::to_owned)).style(BOLD)
}

fn row(name: &str, [a, b, c, d]: [String; 4]) -> Line<'static> {
    Line::from(format!("{name:<20}{a:>14} {b:>10} {c:>14} {d:>10}").trim_end().to_owned())
}

/// Wire packets by size, each direction against its own highest bar.
fn sizes(rx: &Traffic, tx: &Traffic) -> Vec<Line<'static>> {
    let mut lines = vec![Line::styled(format!("{:<12}{:<30}TX", "SIZE (wire)", "RX"), BOLD)];
    let bounds = SIZE_BOUNDS.iter().map(|bound| format!("≤ {bound} B"));
    let last = format!("> {} B", SIZE_BOUNDS[SIZE_BOUNDS.len() - 1]);
    for ((label, rx_packets), tx_packets) in bounds.chain([last]).zip(rx.size).zip(tx.size) {
        let side = |packets, all: &[u64]| format!("{} {}", bar(packets, all), share(packets, all));
        let (rx, tx) = (side(rx_packets, &rx.size), side(tx_packets, &tx.size));
        lines.push(Line::from(format!("{label:<12}{rx:<30}{tx}").trim_end().to_owned()));
    }
    lines
}

fn share(packets: u64, all: &[u64]) -> String {
    if packets == 0 { String::new() } else { percent(packets, all.iter().sum()) }
}

/// Any packets at all are at least one block.
fn bar(packets: u64, all: &[u64]) -> String {
    let highest = all.iter().copied().max().unwrap_or_default().max(1);
    let blocks = (u128::from(packets) * BAR as u128).div_ceil(u128::from(highest));
    "█".repeat(usize::try_from(blocks).unwrap_or(BAR))
}
