//! A row for each conversation, in the columns of [`COLUMNS`].

use std::io::Write;

use crate::{
    model::{
        FlowCount,
        conversation::{Conversation, ConversationEnd, Conversations},
        tcp::{TcpEnd, TcpOutcome},
    },
    output::csv::write_cells,
};

type Cell = fn(&Conversation) -> String;

/// Name and content of each column. Only ever appended to. What is not known is empty.
const COLUMNS: &[(&str, Cell)] = &[
    ("protocol", |flow| flow.protocol.clone()),
    ("client", |flow| name(&flow.client)),
    ("client_id", |flow| flow.client.id.clone().unwrap_or_default()),
    ("client_address", |flow| flow.client.address.to_string()),
    ("client_port", |flow| port(&flow.client)),
    ("server", |flow| name(&flow.server)),
    ("server_id", |flow| flow.server.id.clone().unwrap_or_default()),
    ("server_address", |flow| flow.server.address.to_string()),
    ("server_port", |flow| port(&flow.server)),
    ("icmp_type", |flow| flow.icmp.map(|icmp| icmp.kind.to_string()).unwrap_or_default()),
    ("icmp_code", |flow| flow.icmp.map(|icmp| icmp.code.to_string()).unwrap_or_default()),
    ("class", |flow| flow.class.map_or("", |class| class.name()).to_owned()),
    ("network", |flow| flow.network.clone().unwrap_or_default()),
    ("state", |flow| flow.state.name().to_owned()),
    // Seconds since the epoch.
    ("first", |flow| seconds(flow.first)),
    ("last", |flow| seconds(flow.last)),
    ("to_server_sent_packets", |flow| count(flow.to_server.sent, |count| count.packets)),
    ("to_server_sent_bytes", |flow| count(flow.to_server.sent, |count| count.bytes)),
    ("to_server_received_packets", |flow| count(flow.to_server.received, |count| count.packets)),
    ("to_server_received_bytes", |flow| count(flow.to_server.received, |count| count.bytes)),
    ("to_client_sent_packets", |flow| count(flow.to_client.sent, |count| count.packets)),
    ("to_client_sent_bytes", |flow| count(flow.to_client.sent, |count| count.bytes)),
    ("to_client_received_packets", |flow| count(flow.to_client.received, |count| count.packets)),
    ("to_client_received_bytes", |flow| count(flow.to_client.received, |count| count.bytes)),
    ("client_handshake_seconds", |flow| of_tcp(flow.client_tcp, |tcp| tcp.handshake_seconds)),
    ("server_handshake_seconds", |flow| of_tcp(flow.server_tcp, |tcp| tcp.handshake_seconds)),
    ("client_rtt_seconds", |flow| of_tcp(flow.client_tcp, |tcp| tcp.rtt_seconds)),
    ("server_rtt_seconds", |flow| of_tcp(flow.server_tcp, |tcp| tcp.rtt_seconds)),
    ("client_retransmitted_segments", |flow| of_tcp(flow.client_tcp, |tcp| Some(tcp.retransmitted_segments))),
    ("server_retransmitted_segments", |flow| of_tcp(flow.server_tcp, |tcp| Some(tcp.retransmitted_segments))),
    ("client_service", |flow| flow.client.service.clone().unwrap_or_default()),
    ("server_service", |flow| flow.server.service.clone().unwrap_or_default()),
    ("reset_by", |flow| flow.reset_by.map_or("", |by| by.name()).to_owned()),
    ("client_outcome", |flow| of_tcp(flow.client_tcp, |tcp| tcp.outcome.map(TcpOutcome::name))),
    ("server_outcome", |flow| of_tcp(flow.server_tcp, |tcp| tcp.outcome.map(TcpOutcome::name))),
    ("client_resets_sent", |flow| of_tcp(flow.client_tcp, |tcp| Some(tcp.resets?.sent))),
    ("client_resets_received", |flow| of_tcp(flow.client_tcp, |tcp| Some(tcp.resets?.received))),
    ("server_resets_sent", |flow| of_tcp(flow.server_tcp, |tcp| Some(tcp.resets?.sent))),
    ("server_resets_received", |flow| of_tcp(flow.server_tcp, |tcp| Some(tcp.resets?.received))),
    ("client_zero_windows", |flow| known(flow.client_zero_windows)),
    ("server_zero_windows", |flow| known(flow.server_zero_windows)),
];

/// With a header.
pub fn csv(to: &mut impl Write, conversations: &Conversations) -> Result<(), csv::Error> {
    let mut writer = csv::Writer::from_writer(to);
    writer.write_record(COLUMNS.iter().map(|(name, _)| name))?;
    for flow in &conversations.flows {
        write_cells(&mut writer, COLUMNS.iter().map(|(_, cell)| cell(flow)))?;
    }
    Ok(writer.flush()?)
}

fn name(end: &ConversationEnd) -> String {
    end.container.clone().unwrap_or_default()
}

fn port(end: &ConversationEnd) -> String {
    end.port.map(|port| port.to_string()).unwrap_or_default()
}

fn of_tcp<T: ToString>(end: Option<TcpEnd>, part: fn(TcpEnd) -> Option<T>) -> String {
    known(end.and_then(part))
}

fn known<T: ToString>(part: Option<T>) -> String {
    part.map(|part| part.to_string()).unwrap_or_default()
}

fn count(count: Option<FlowCount>, part: fn(FlowCount) -> u64) -> String {
    count.map(|count| part(count).to_string()).unwrap_or_default()
}

fn seconds(time: std::time::SystemTime) -> String {
    let since = time.duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{:.3}", since.as_secs_f64())
}
