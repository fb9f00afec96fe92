//! Flows as people talk of them: one line for a conversation, whichever ends of it are observed.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    time::{Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    class::{Class, Peer},
    edge::EdgeCount,
    flow::{End, Flow, FlowId, Observed},
    fold::protocol_name,
    named::is_named,
    snapshot::unix_seconds,
    state::State,
    tcp::{TcpEnd, TcpEnds, TcpOutcome},
    update::{FlowCount, FlowEnd},
};

/// Version of the JSON form: raised when a field is removed or changes its meaning.
pub const VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Conversations {
    pub version: u32,
    /// Seconds since the epoch.
    #[serde(with = "unix_seconds")]
    pub time: SystemTime,
    /// Most bytes first.
    pub flows: Vec<Conversation>,
    /// How many there are beside these.
    pub more: usize,
    /// Flows that were not listed since the start, as there were too many at a time.
    pub unlisted: u64,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Conversation {
    /// Who began it: sent the SYN, or the first packet that was seen.
    pub client: ConversationEnd,
    pub server: ConversationEnd,
    /// `tcp`, `udp`, `icmp`, …, or the IANA number.
    pub protocol: String,
    /// Of ICMP and ICMPv6: type (of an echo: the request's), code, identifier of an echo.
    pub icmp: Option<Icmp>,
    /// Of the container that is observed, the client's where both are. None: not known yet.
    pub class: Option<Class>,
    pub network: Option<String>,
    pub state: End,
    /// Of TCP: who has sent a RST.
    pub reset_by: Option<ResetBy>,
    /// Seconds since the epoch, good to some milliseconds.
    #[serde(with = "unix_seconds")]
    pub first: SystemTime,
    #[serde(with = "unix_seconds")]
    pub last: SystemTime,
    /// TCP flags seen from each end, like `SYN,ACK,FIN`.
    pub client_flags: String,
    pub server_flags: String,
    pub to_server: EdgeCount,
    pub to_client: EdgeCount,
    /// Packets of TCP with a window of 0, and neither SYN nor RST, that each end sent, by its own interface or else the
    /// other's: it takes nothing more for now. None of other protocols.
    pub client_zero_windows: Option<u64>,
    pub server_zero_windows: Option<u64>,
    /// How the connection fares, by each end's own socket; none where that is not known.
    pub client_tcp: Option<TcpEnd>,
    pub server_tcp: Option<TcpEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetBy {
    Client,
    Server,
    Both,
}

impl ResetBy {
    /// By the flags of TCP seen from either end.
    const fn of(client: u8, server: u8) -> Option<Self> {
        match (client & RST != 0, server & RST != 0) {
            (true, true) => Some(Self::Both),
            (true, false) => Some(Self::Client),
            (false, true) => Some(Self::Server),
            (false, false) => None,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Server => "server",
            Self::Both => "both",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ConversationEnd {
    /// Name and ID where it is a container.
    pub container: Option<String>,
    pub id: Option<String>,
    /// `NAMESPACE/NAME`, where it is the address of a service of Kubernetes.
    pub service: Option<String>,
    pub address: IpAddr,
    /// None where the protocol has no ports.
    pub port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Icmp {
    #[serde(rename = "type")]
    pub kind: u8,
    pub code: u8,
    pub id: u16,
}

impl Conversation {
    /// Whether one of the ends is a container, by name or the beginning of its ID.
    pub fn is_of(&self, container: &str) -> bool {
        [&self.client, &self.server].into_iter().any(|end| {
            end.container
                .as_ref()
                .zip(end.id.as_ref())
                .is_some_and(|(name, id)| is_named(container, name, id))
        })
    }

    /// Whether an end is a container of these, by whole IDs.
    pub fn is_of_any(&self, ids: &BTreeSet<String>) -> bool {
        [&self.client.id, &self.server.id].into_iter().flatten().any(|id| ids.contains(id))
    }

    /// Both ways, each packet once.
    pub fn bytes(&self) -> u64 {
        self.to_server.once().bytes + self.to_client.once().bytes
    }

    /// As [`Self::bytes`].
    pub fn packets(&self) -> u64 {
        self.to_server.once().packets + self.to_client.once().packets
    }

    /// How its beginning went: as the client's socket has it, or else the server's.
    pub fn outcome(&self) -> Option<TcpOutcome> {
        [self.client_tcp, self.server_tcp].into_iter().flatten().find_map(|tcp| tcp.outcome)
    }

    /// Packets that one end sent and the other did not receive; none where not both are observed.
    pub fn lost(&self) -> Option<u64> {
        let of = |count: &EdgeCount| {
            count
                .sent
                .zip(count.received)
                .map(|(sent, received)| sent.packets.saturating_sub(received.packets))
        };
        Some(of(&self.to_server)? + of(&self.to_client)?)
    }
}

/// Conversations that may be held beyond those that are wanted.
const SPARE: usize = 256;

impl State {
    /// The conversations that now are, and those that ended within the idle time. Of those that `keep` keeps,
    /// at most `limit`.
    pub fn conversations(
        &self,
        now: Instant,
        time: SystemTime,
        keep: impl Fn(&Conversation) -> bool,
        limit: usize,
    ) -> Conversations {
        let kept = &self.flows.flows;
        let by_container: HashMap<_, u32> = (0..)
            .zip(kept.iter())
            .filter_map(|(at, (id, flow))| {
                let container = flow.known?.container.as_str();
                Some(((container, id.local, id.remote, id.protocol), at))
            })
            .collect();
        let (tcp, observed) = (self.tcp_ends(), Observed::of(&self.interfaces, &self.flows.ended));
        let order = |a: &Conversation, b: &Conversation| {
            b.bytes().cmp(&a.bytes()).then_with(|| a.first.cmp(&b.first))
        };
        let (mut flows, mut found) = (Vec::new(), 0usize);
        for (id, flow) in kept.iter() {
            let other = flow.known.and_then(|known| {
                let Peer::Container(peer) = &known.peer else { return None };
                let (local, remote) =
                    if is_icmp(id.protocol) { icmp_ends(&id) } else { (id.remote, id.local) };
                let at = by_container.get(&(peer.as_str(), local, remote, id.protocol))?;
                let (other, found) = kept.get(*at);
                let is_back = matches!(&found.known?.peer, Peer::Container(back) if *back == known.container);
                is_back.then_some((other, found))
            });
            // Told by its client's end, where both are there.
            if other.is_some() && !is_first((&id, &flow), other) {
                continue;
            }
            let conversation = self.conversation((&id, &flow), other, &tcp, &observed, now, time);
            if keep(&conversation) {
                found += 1;
                flows.push(conversation);
            }
            // Never many more than are wanted: there may be hundreds of thousands.
            if flows.len() > limit.saturating_mul(2).max(SPARE) {
                flows.select_nth_unstable_by(limit, order);
                flows.truncate(limit);
            }
        }
        flows.sort_by(order);
        flows.truncate(limit);
        let more = found - flows.len();
        Conversations { version: VERSION, time, flows, more, unlisted: self.flows.unlisted }
    }

    /// As one end has it, with the counts of the other where that is observed.
    fn conversation(
        &self,
        (id, flow): (&FlowId, &Flow<'_>),
        other: Option<(FlowId, Flow<'_>)>,
        tcp: &TcpEnds<'_>,
        observed: &Observed<'_>,
        now: Instant,
        time: SystemTime,
    ) -> Conversation {
        let known = flow.known;
        let of_other = other.map(|(_, flow)| flow);
        // An end that is observed and has no such flow has neither sent nor received any of it.
        let none = || known.filter(|known| observed.has(&known.peer)).map(|_| FlowCount::default());
        let received = of_other.map(|other| other.rx).or_else(none);
        let sent = of_other.map(|other| other.tx).or_else(none);
        let from_here = EdgeCount { sent: Some(flow.tx), received };
        let to_here = EdgeCount { sent, received: Some(flow.rx) };
        let is_client = known.map_or_else(|| flow.tx.packets >= flow.rx.packets, |_| flow.client);
        let here = self.end(known.map(|known| known.container.as_str()), id.protocol, id.local);
        let service = known.and_then(|known| match &known.peer {
            Peer::Service(name) => Some(name.to_string()),
            Peer::Container(_) | Peer::Elsewhere(_) => None,
        });
        let there = self.end(known.and_then(|known| known.peer()), id.protocol, id.remote);
        let there = ConversationEnd { service, ..there };
        let (here_flags, there_flags) = (flags(flow.tx_flags), flags(flow.rx_flags));
        let (client_flags, server_flags) =
            if is_client { (flow.tx_flags, flow.rx_flags) } else { (flow.rx_flags, flow.tx_flags) };
        let reset_by = (id.protocol == TCP).then(|| ResetBy::of(client_flags, server_flags)).flatten();
        let wall = |at: Instant| time.checked_sub(now.saturating_duration_since(at)).unwrap_or(time);
        let tcp_end = |container: &str, local, remote| {
            (id.protocol == TCP).then(|| tcp.get(container, local, remote)).flatten()
        };
        let here_tcp = known.and_then(|known| tcp_end(&known.container, id.local, id.remote));
        let there_tcp =
            known.and_then(|known| known.peer()).and_then(|peer| tcp_end(peer, id.remote, id.local));
        let zero_windows = |count: u64| (id.protocol == TCP).then_some(count);
        let [kind, code] = id.remote.port.to_be_bytes();
        let mut conversation = Conversation {
            client: here,
            server: there,
            protocol: protocol_name(id.protocol),
            icmp: is_icmp(id.protocol).then_some(Icmp { kind, code, id: id.local.port }),
            class: known.map(|known| known.class),
            network: known.and_then(|known| known.network.clone()),
            state: flow.ended(id, now, self.flows.idle()),
            reset_by,
            first: wall(of_other.map_or(flow.first, |other| other.first.min(flow.first))),
            last: wall(of_other.map_or(flow.last, |other| other.last.max(flow.last))),
            client_flags: here_flags,
            server_flags: there_flags,
            to_server: from_here,
            to_client: to_here,
            client_zero_windows: zero_windows(flow.tx_zero_windows),
            server_zero_windows: zero_windows(
                of_other.map_or(flow.rx_zero_windows, |other| other.tx_zero_windows),
            ),
            client_tcp: here_tcp,
            server_tcp: there_tcp,
        };
        if !is_client {
            let it = &mut conversation;
            std::mem::swap(&mut it.client, &mut it.server);
            std::mem::swap(&mut it.client_flags, &mut it.server_flags);
            std::mem::swap(&mut it.to_server, &mut it.to_client);
            std::mem::swap(&mut it.client_zero_windows, &mut it.server_zero_windows);
            std::mem::swap(&mut it.client_tcp, &mut it.server_tcp);
        }
        conversation
    }

    fn end(&self, container: Option<&str>, protocol: u8, end: FlowEnd) -> ConversationEnd {
        ConversationEnd {
            container: container.map(|id| self.container_name(id)),
            id: container.map(str::to_owned),
            service: None,
            address: end.address,
            port: matches!(protocol, 6 | 17 | 132).then_some(end.port),
        }
    }
}

/// Of two ends that are observed, which tells of both: the client; the lesser key if both or neither are.
fn is_first((one, flow): (&FlowId, &Flow<'_>), other: Option<(FlowId, Flow<'_>)>) -> bool {
    let Some((other, back)) = other else { return true };
    match (flow.client, back.client) {
        (true, false) => true,
        (false, true) => false,
        _ => *one < other,
    }
}

/// IANA protocol number.
const TCP: u8 = 6;
/// A flag of TCP.
const RST: u8 = 0x04;

const fn is_icmp(protocol: u8) -> bool {
    matches!(protocol, 1 | 58)
}

/// The ends as the other end has them: the addresses change places, the message's identifier and type don't.
const fn icmp_ends(id: &FlowId) -> (FlowEnd, FlowEnd) {
    (
        FlowEnd { address: id.remote.address, port: id.local.port },
        FlowEnd { address: id.local.address, port: id.remote.port },
    )
}

fn flags(seen: u8) -> String {
    const NAMES: [&str; 6] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG"];
    let set = NAMES.iter().enumerate().filter(|(bit, _)| seen >> bit & 1 != 0);
    set.map(|(_, name)| *name).collect::<Vec<_>>().join(",")
}
