//! Flows as log records: for each direction of a conversation one record with what is new since the last.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
};
use prost::Message as _;

use super::{MOST_ITEMS, Message, Source, names, number, scope, text, unix_nanos};
use crate::{
    model::{
        class::Class,
        conversation::{Conversation, ConversationEnd, Conversations},
    },
    output::format::visible,
};

/// The event's name.
const EVENT: &str = "netobs.flow";

/// What was told of each conversation: some 100 bytes each, of as many as the state lists.
#[derive(Debug)]
pub struct FlowLog {
    told: HashMap<u64, Told>,
    /// A conversation without a packet for so long is over.
    idle: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    last: Instant,
    /// Of both ways, by [`Ways`].
    counts: [[u64; 2]; 2],
}

/// Packets and bytes both ways, from the lesser end first: who is the client may turn out later.
type Ways = [[u64; 2]; 2];

fn is_lesser(flow: &Conversation) -> bool {
    (flow.client.address, flow.client.port) <= (flow.server.address, flow.server.port)
}

/// Each packet once.
fn ways(flow: &Conversation) -> Ways {
    let [a, b] = [flow.to_server, flow.to_client].map(|count| [count.once().packets, count.once().bytes]);
    if is_lesser(flow) { [a, b] } else { [b, a] }
}

/// With its network, and as it was before that was known.
fn identities(flow: &Conversation) -> [u64; 2] {
    let mut ends = [(flow.client.address, flow.client.port), (flow.server.address, flow.server.port)];
    ends.sort_unstable();
    let icmp = flow.icmp.map(|icmp| (icmp.kind, icmp.code, icmp.id));
    [flow.network.as_ref(), None].map(|network| {
        let mut hasher = DefaultHasher::new();
        (ends, &flow.protocol, icmp, network).hash(&mut hasher);
        hasher.finish()
    })
}

impl FlowLog {
    /// Of conversations that are over without a packet for so long.
    pub fn new(idle: Duration) -> Self {
        Self { told: HashMap::new(), idle }
    }

    /// What was told of one, if that was this one and not an earlier one between the same ends: there is at least
    /// the idle time between them.
    fn told(&self, flow: &Conversation, first: Instant) -> Option<&Told> {
        let told = identities(flow).into_iter().find_map(|identity| self.told.get(&identity));
        told.filter(|told| first <= told.last + self.idle / 2)
    }

    /// Whether there is something new to tell of one that is not over, at `now`.
    pub fn is_new(&self, flow: &Conversation, time: SystemTime, now: Instant) -> bool {
        // What is over was told: it is looked at twice while it is idle.
        let [first, last] = [flow.first, flow.last].map(|at| before(now, time, at));
        now.saturating_duration_since(last) < self.idle
            && self
                .told(flow, first)
                .is_none_or(|told| ways(flow).iter().zip(told.counts).any(|(now, told)| now[0] > told[0]))
    }

    /// Takes what is new for told.
    fn tell(&mut self, flow: &Conversation, first: Instant, last: Instant) -> Ways {
        let now = ways(flow);
        let before = self.told(flow, first).map_or_else(Ways::default, |told| told.counts);
        let each =
            |of: fn(u64, u64) -> u64| [0, 1].map(|n| [0, 1].map(|unit| of(now[n][unit], before[n][unit])));
        let (new, counts) = (each(u64::saturating_sub), each(u64::max));
        let [identity, anonymous] = identities(flow);
        self.told.remove(&anonymous);
        self.told.insert(identity, Told { last, counts });
        new
    }

    /// Forgets conversations that are over.
    pub fn forget(&mut self, now: Instant) {
        let idle = self.idle;
        self.told.retain(|_, told| now.saturating_duration_since(told.last) < idle * 2);
        self.told.shrink_to(self.told.len() * 2);
    }
}

/// A time, of which it is known how long before `time` it was, which is `now`.
fn before(now: Instant, time: SystemTime, at: SystemTime) -> Instant {
    now.checked_sub(time.duration_since(at).unwrap_or_default()).unwrap_or(now)
}

/// Records of what is new in these conversations, which were taken at `now`.
pub fn flows(
    conversations: &Conversations,
    now: Instant,
    source: &Source,
    log: &mut FlowLog,
) -> Vec<Message> {
    let mut records = Vec::new();
    for flow in &conversations.flows {
        let [first, last] = [flow.first, flow.last].map(|at| before(now, conversations.time, at));
        let [mut to_server, mut to_client] = log.tell(flow, first, last);
        if !is_lesser(flow) {
            std::mem::swap(&mut to_server, &mut to_client);
        }
        let ways = [(to_server, &flow.client, &flow.server), (to_client, &flow.server, &flow.client)];
        for ([packets, bytes], from, to) in ways {
            if packets > 0 {
                records.push(record(conversations, flow, from, to, [packets, bytes]));
            }
        }
    }
    let messages = records.chunks(MOST_ITEMS).map(|records| message(records, source));
    messages.collect()
}

fn message(records: &[LogRecord], source: &Source) -> Message {
    let scope_logs =
        ScopeLogs { scope: Some(scope()), log_records: records.to_vec(), ..ScopeLogs::default() };
    let request = ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(source.resource()),
            scope_logs: vec![scope_logs],
            ..ResourceLogs::default()
        }],
    };
    Message { body: Bytes::from(request.encode_to_vec()), items: records.len() as u64 }
}

fn record(
    conversations: &Conversations,
    flow: &Conversation,
    from: &ConversationEnd,
    to: &ConversationEnd,
    [packets, bytes]: [u64; 2],
) -> LogRecord {
    let mut attributes = Vec::with_capacity(20);
    for (end, what) in [(from, "source"), (to, "destination")] {
        attributes.push(text(&format!("{what}.address"), end.address.to_string()));
        attributes.extend(end.port.map(|port| number(&format!("{what}.port"), port.into())));
        attributes.extend(end.id.clone().map(|id| text(&format!("{what}.container.id"), id)));
        let name = end.container.as_deref().map(|name| visible(name).into_owned());
        attributes.extend(name.map(|name| text(&format!("{what}.container.name"), name)));
        let service = end.service.as_deref().map(|name| visible(name).into_owned());
        attributes.extend(service.iter().flat_map(|name| names::service(what, name)));
    }
    let kind = if from.address.is_ipv4() { "ipv4" } else { "ipv6" };
    attributes.push(text("network.type", kind.to_owned()));
    attributes.push(text("network.transport", flow.protocol.clone()));
    // The container's side; where both ends are containers, the sender's.
    let direction = if from.id.is_some() || to.id.is_none() { "transmit" } else { "receive" };
    attributes.push(text("network.io.direction", direction.to_owned()));
    let client = if std::ptr::eq(from, &raw const flow.client) { "source" } else { "destination" };
    attributes.push(text("netobs.flow.client", client.to_owned()));
    attributes.push(number("netobs.flow.packets", packets));
    attributes.push(number("netobs.flow.bytes", bytes));
    attributes.push(text("netobs.flow.state", flow.state.name().to_owned()));
    attributes.extend(flow.reset_by.map(|by| text("netobs.flow.reset_by", by.name().to_owned())));
    attributes.extend(flow.outcome().map(|outcome| text("netobs.flow.outcome", outcome.name().to_owned())));
    attributes.push(number("netobs.flow.first_unix_nano", unix_nanos(flow.first)));
    attributes.push(number("netobs.flow.last_unix_nano", unix_nanos(flow.last)));
    attributes.extend(flow.class.map(Class::name).map(|class| text("netobs.class", class.to_owned())));
    let network = flow.network.as_deref().map(|name| visible(name).into_owned());
    attributes.extend(network.map(|network| text("netobs.network.name", network)));
    if let Some(icmp) = flow.icmp {
        attributes.push(number("netobs.icmp.type", icmp.kind.into()));
        attributes.push(number("netobs.icmp.code", icmp.code.into()));
    }
    let sentence =
        format!("{} {} -> {}: {packets} packets, {bytes} bytes", flow.protocol, shown(from), shown(to));
    LogRecord {
        time_unix_nano: unix_nanos(flow.last),
        observed_time_unix_nano: unix_nanos(conversations.time),
        severity_number: SeverityNumber::Info.into(),
        severity_text: "INFO".to_owned(),
        body: Some(AnyValue { value: Some(Value::StringValue(sentence)) }),
        attributes,
        event_name: EVENT.to_owned(),
        ..LogRecord::default()
    }
}

fn shown(end: &ConversationEnd) -> String {
    let name = end.container.as_deref().or(end.service.as_deref());
    let name = name.map_or_else(|| end.address.to_string(), |name| visible(name).into_owned());
    match end.port {
        Some(port) => format!("{name}:{port}"),
        None => name,
    }
}
