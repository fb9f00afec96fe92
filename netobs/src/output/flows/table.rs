//! A plain table, a conversation a line.

use std::time::SystemTime;

use crate::{
    model::{
        conversation::{Conversation, ConversationEnd, Conversations, ResetBy},
        flow::End,
        tcp::{TcpEnd, TcpOutcome},
    },
    output::format::{bytes, escape, grouped, pad, width},
};

pub const HEADER: [&str; 16] = [
    "CLIENT",
    "SERVER",
    "PROTO",
    "CLASS",
    "NETWORK",
    "STATE",
    "AGE",
    "PKTS →",
    "BYTES →",
    "PKTS ←",
    "BYTES ←",
    "LOST",
    "HANDSHAKE",
    "RTT",
    "RETRANS",
    "0-WIN",
];
/// Columns with text, on the left.
const TEXT_COLUMNS: usize = 6;
const GAP: &str = "  ";

/// Lines end in `\n`.
pub fn table(conversations: &Conversations) -> String {
    let header = HEADER.map(str::to_owned);
    let rows: Vec<_> = std::iter::once(header)
        .chain(conversations.flows.iter().map(|flow| row(flow, conversations.time)))
        .collect();
    let widths: [usize; HEADER.len()] =
        std::array::from_fn(|at| rows.iter().map(|row| width(&row[at])).max().unwrap_or_default());
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().enumerate().map(|(at, cell)| pad(cell, widths[at], at >= TEXT_COLUMNS)).collect();
        text.push_str(cells.join(GAP).trim_end());
        text.push('\n');
    }
    if conversations.more > 0 {
        text.push_str(&format!("and {} more; --limit shows them\n", grouped(conversations.more as u64)));
    }
    if conversations.unlisted > 0 {
        let unlisted = grouped(conversations.unlisted);
        text.push_str(&format!("! {unlisted} flows could not be listed; raise --max-flows\n"));
    }
    text
}

pub fn row(flow: &Conversation, now: SystemTime) -> [String; HEADER.len()] {
    let (to_server, to_client) = (flow.to_server.once(), flow.to_client.once());
    let age = now.duration_since(flow.first).unwrap_or_default();
    [
        end(&flow.client),
        end(&flow.server),
        match flow.icmp {
            Some(icmp) => format!("{} {}/{}", flow.protocol, icmp.kind, icmp.code),
            None => flow.protocol.clone(),
        },
        flow.class.map_or("-", |class| class.name()).to_owned(),
        flow.network.as_deref().map_or_else(|| "-".to_owned(), escape),
        state(flow).to_owned(),
        format!("{:.1} s", age.as_secs_f64()),
        grouped(to_server.packets),
        bytes(to_server.bytes),
        grouped(to_client.packets),
        bytes(to_client.bytes),
        flow.lost().map_or_else(|| "-".to_owned(), grouped),
        // As the client has them, where it is observed.
        of_tcp(flow, |tcp| milliseconds(tcp.handshake_seconds?)),
        of_tcp(flow, |tcp| milliseconds(tcp.rtt_seconds?)),
        retransmitted(flow).map_or_else(|| "-".to_owned(), grouped),
        zero_windows(flow).map_or_else(|| "-".to_owned(), grouped),
    ]
}

/// Of a connection that never came to be, why; of one that was reset, which way, as packets and bytes have theirs.
fn state(flow: &Conversation) -> &'static str {
    match (flow.outcome(), flow.state, flow.reset_by) {
        (Some(failed), ..) if failed != TcpOutcome::Established => failed.name(),
        (_, End::Reset, Some(ResetBy::Client)) => "reset →",
        (_, End::Reset, Some(ResetBy::Server)) => "reset ←",
        (_, End::Reset, Some(ResetBy::Both)) => "reset ↔",
        (_, state, _) => state.name(),
    }
}

/// Of one end, if there is anything to tell.
fn of_tcp(flow: &Conversation, part: fn(TcpEnd) -> Option<String>) -> String {
    let mut ends = [flow.client_tcp, flow.server_tcp].into_iter().flatten();
    ends.find_map(part).unwrap_or_else(|| "-".to_owned())
}

fn milliseconds(seconds: f64) -> Option<String> {
    Some(format!("{:.2} ms", seconds * 1000.0))
}

/// By both ends, as far as they are observed.
fn retransmitted(flow: &Conversation) -> Option<u64> {
    let ends = [flow.client_tcp, flow.server_tcp];
    let known = ends.into_iter().flatten().map(|tcp| tcp.retransmitted_segments);
    known.reduce(|sum, more| sum + more)
}

/// By both ends.
fn zero_windows(flow: &Conversation) -> Option<u64> {
    Some(flow.client_zero_windows? + flow.server_zero_windows?)
}

/// The name, its own or the service's, or else the address; with the port where there is one.
fn end(end: &ConversationEnd) -> String {
    let name = match (end.container.as_ref().or(end.service.as_ref()), end.address) {
        (Some(name), _) => escape(name),
        (None, std::net::IpAddr::V6(address)) if end.port.is_some() => format!("[{address}]"),
        (None, address) => address.to_string(),
    };
    match end.port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}
