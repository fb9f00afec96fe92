//! The state at one time, complete and immutable: all that an output may read.
//!
//! Its JSON form is documented in `docs/snapshot.schema.json`.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    arp::ArpReport,
    class::Class,
    drops::DropReport,
    edge::EdgeCount,
    event::{DnsReport, EventHealth},
    reconcile::Difference,
    sender::ForeignMac,
    tcp::TcpHealth,
    traffic::{Count, Traffic},
    update::{ContainerState, FlowCount, InterfaceKind, Place, Protocol},
    workload::Workload,
};

/// Numbers by the name of what they are of: a cause, a reason, a code.
pub type ByName = BTreeMap<Cow<'static, str>, u64>;

pub fn by_name(numbers: impl IntoIterator<Item = (&'static str, u64)>) -> ByName {
    numbers.into_iter().map(|(name, number)| (Cow::Borrowed(name), number)).collect()
}

/// Version of the JSON form: raised when a field is removed or changes its meaning.
pub const SCHEMA_VERSION: u32 = 1;

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Snapshot {
    /// [`SCHEMA_VERSION`].
    pub version: u32,
    /// Seconds since the epoch, with fraction.
    #[serde(rename = "time", with = "unix_seconds")]
    pub time: SystemTime,
    /// Since the sample that rates are taken from; none before there are two.
    pub interval_seconds: Option<f64>,
    /// Sorted by name, then ID.
    pub containers: Vec<Container>,
    /// Sorted by name, then ID.
    pub networks: Vec<Network>,
    /// Every attached interface of the host, sorted by name.
    pub interfaces: Vec<Interface>,
    /// Sorted by ends, protocol and port.
    pub edges: Vec<Edge>,
    pub engines: Vec<EngineStatus>,
    pub agent: AgentHealth,
    /// Dropped packets, a document of its own; none if nobody looks for them.
    #[serde(skip)]
    pub drops: Option<DropReport>,
}

/// A container. Directions are its own: `rx` is what it receives.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Container {
    /// Full ID.
    pub id: String,
    /// The name, or the first 12 digits of the ID where the name is not known.
    pub name: String,
    pub image: Option<String>,
    pub state: ContainerState,
    pub engine: String,
    pub compose: Option<Compose>,
    /// The pod that it is of, or the sandbox of.
    pub pod: Option<Pod>,
    /// `bridge`, `host`, `none`, `container:ID`, a network's name; none: not known.
    pub network_mode: Option<String>,
    /// Its network namespace, as `readlink /proc/PID/ns/net` shows it: the same for all that share it.
    pub namespace: Option<String>,
    /// Names of the containers that use its network (`container:NAME`), sorted.
    pub members: Vec<String>,
    /// Why there are no counts, where there cannot be any: isolated, shared, no way to observe.
    pub unobserved: Option<String>,
    /// Names of its networks, sorted; what it is connected to now, or was when it ended.
    pub networks: Vec<String>,
    pub endpoints: Vec<Endpoint>,
    /// Keys into [`Snapshot::interfaces`] are the host names; here are those inside.
    pub interfaces: Vec<ContainerInterface>,
    /// Observed, over all its interfaces, those that are gone included.
    pub rx: Traffic,
    pub tx: Traffic,
    /// What its interfaces had passed before netobs attached, and while others had removed its programs; all told is this and `rx`, `tx`. None: not
    /// known.
    pub before: Option<Baseline>,
    /// None before two samples, and for what has ended.
    pub rates: Option<Rates>,
    pub drops: Option<Drops>,
    /// Ports that are reached through the host.
    pub published: Vec<Published>,
    /// What its flows have counted, by network and by where they go; those of interfaces that are gone
    /// included. Packets as the stack counts them.
    pub classes: Vec<ClassTraffic>,
    /// How its TCP connections fared. None: not known.
    pub tcp: Option<TcpHealth>,
    /// IP packets that it sent from an address that is not its own: it passes them on, or lies. Of flows; none
    /// where these are off.
    pub foreign_address: Option<Count>,
    /// Frames that it sent from a MAC address that is not its interface's. None where there is none, or none is
    /// observed.
    pub foreign_mac: Option<ForeignMac>,
    /// None where it is not looked at.
    pub dns: Option<DnsReport>,
    /// None where it is not looked at.
    pub arp: Option<ArpReport>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct ClassTraffic {
    /// The container's network that they pass; none: not known.
    pub network: Option<String>,
    pub class: Class,
    pub rx: Count,
    pub tx: Count,
}

/// What one end sends another, of one service.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Edge {
    pub source: EdgeEnd,
    pub destination: EdgeEnd,
    /// `tcp`, `udp`, `icmp`, …, or the IANA number.
    pub protocol: String,
    /// The service's, whichever end that is; none where the protocol has no ports.
    pub port: Option<u16>,
    #[serde(flatten)]
    pub count: EdgeCount,
    /// Each packet once: at its source while that was observed, else at its destination.
    pub once: FlowCount,
}

/// A container, or what else there is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EdgeEnd {
    pub container: Option<String>,
    pub id: Option<String>,
    /// Of its pod.
    pub namespace: Option<String>,
    pub pod: Option<String>,
    /// `NAMESPACE/NAME`, where it is the address of a service of Kubernetes.
    pub service: Option<String>,
    /// Of what is no container, where it is.
    pub class: Option<Class>,
}

/// A port of a container that is reached through the host, and what passed it since netobs attached. The
/// container's side: `rx` is what it received. Packets as the stack counts them; later fragments, which
/// have no ports, and what is in no flow are not in it.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Published {
    pub protocol: Protocol,
    pub container_port: u16,
    /// Where it is reached on the host.
    pub bindings: Vec<Binding>,
    /// None where it is not counted: flows are off, or no interface of the container is observed.
    pub traffic: Option<PublishedTraffic>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Binding {
    pub address: Option<IpAddr>,
    pub port: u16,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PublishedTraffic {
    /// What came each way; a packet is in exactly one of these.
    pub via: BTreeMap<Via, PortCount>,
    /// Those with the most bytes first, at most [`SHOWN_CLIENTS`].
    pub clients: Vec<Client>,
}

/// Clients of one port that a snapshot lists.
pub const SHOWN_CLIENTS: usize = 100;

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Client {
    pub address: IpAddr,
    pub via: Via,
    #[serde(flatten)]
    pub count: PortCount,
}

/// How a packet got to a published port, by the address that the container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Via {
    /// By address translation: the real client.
    Client,
    /// The engine's proxy process: the container sees the network's gateway, the client is not known.
    /// (What else on the host connects to the container's own address looks the same.)
    DockerProxy,
    /// The host itself.
    Host,
    /// The network's gateway: the host itself, or what it passes on as if it were its own (masquerading).
    Gateway,
    /// A container on the same network, to the container's own address: not through the host's port.
    Network,
    /// Clients that there was no room for: known is how much, not from where.
    Unknown,
}

impl Via {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::DockerProxy => "docker-proxy",
            Self::Host => "host",
            Self::Gateway => "gateway",
            Self::Network => "network",
            Self::Unknown => "unknown",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PortCount {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

/// One interface as the container sees it, over its whole life (restarts included).
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct ContainerInterface {
    /// Inside the container, like `eth0`; none where it could not be learned in time. `cgroup` where it is
    /// the container's sockets in the host's namespace.
    pub name: Option<String>,
    /// As numbered inside; none for a cgroup, and when gone.
    pub ifindex: Option<u32>,
    /// From where it is, or was last, observed.
    pub observed: Option<Place>,
    pub kind: Option<InterfaceKind>,
    pub network: Option<String>,
    /// The network's.
    pub driver: Option<String>,
    /// The veth on the host now; none when gone.
    pub host_interface: Option<String>,
    pub host_ifindex: Option<u32>,
    pub mac: Option<String>,
    pub addresses: Vec<IpAddr>,
    pub rx: Traffic,
    pub tx: Traffic,
    /// What passed before netobs attached, and while others had removed its programs; none: not known.
    pub before: Option<Baseline>,
    /// Of one that is observed inside, in its own directions; others are in [`Snapshot::interfaces`]. None: not
    /// compared.
    pub difference: Option<Difference>,
    pub rates: Option<Rates>,
    pub drops: Option<Drops>,
}

/// A container network. Directions are the bridge device's: `rx` is what the host receives from it.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Network {
    pub id: String,
    pub name: String,
    pub driver: String,
    pub engine: String,
    pub bridge: Option<String>,
    pub internal: bool,
    pub subnets: Vec<Subnet>,
    /// The driver's, as given when the network was made.
    pub options: BTreeMap<String, String>,
    /// Names of the containers on it, sorted.
    pub containers: Vec<String>,
    /// The bridge device's own traffic: what passes between the host and the network. Frames from one
    /// container to another on the same network are not in it.
    pub rx: Traffic,
    pub tx: Traffic,
    pub rates: Option<Rates>,
    /// What its containers receive and send on it, added up (their side). Traffic between two of them
    /// is in both sums.
    pub containers_rx: Traffic,
    pub containers_tx: Traffic,
    pub containers_rates: Option<Rates>,
}

/// An attached interface of the host. Directions are the interface's own, as in `ip -s link`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Interface {
    pub name: String,
    pub ifindex: u32,
    pub kind: InterfaceKind,
    /// Name of the bridge that it is a port of.
    pub bridge: Option<String>,
    pub network: Option<String>,
    /// Name of the container behind a veth.
    pub container: Option<String>,
    pub container_id: Option<String>,
    pub rx: Traffic,
    pub tx: Traffic,
    pub baseline: Baseline,
    /// Times that others removed or displaced netobs's programs and they were attached again.
    pub reattached: u64,
    /// Of the baseline: what passed meanwhile.
    pub missed: Baseline,
    /// None: not compared yet.
    pub difference: Option<Difference>,
    pub drops: Option<Drops>,
}

/// What an interface had counted before netobs was attached, and while others had removed its programs: not
/// observed, and known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Baseline {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
    /// Packets (both directions) that passed while attaching: how far off the baseline may be.
    pub uncertain_packets: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Rates {
    pub rx_packets_per_second: f64,
    pub rx_bits_per_second: f64,
    pub tx_packets_per_second: f64,
    pub tx_bits_per_second: f64,
}

/// Packets that the kernel counted as dropped or in error since netobs attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Drops {
    pub rx_dropped: u64,
    pub tx_dropped: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Compose {
    pub project: String,
    pub service: String,
}

/// The pod that a container is of, or whose sandbox it is: the sandbox owns the pod's network, and its containers
/// are members of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Its name in the pod; none: it is the sandbox.
    pub container: Option<String>,
    /// The pod's, but for those that the kubelet sets; of the sandbox only.
    pub labels: BTreeMap<String, String>,
    /// What has made it; none: nothing, or not known.
    pub owner: Option<Workload>,
    /// That it is on; none: not known.
    pub node: Option<String>,
}

impl Pod {
    /// `NAMESPACE/POD`, of a container `NAMESPACE/POD/CONTAINER`; empty where nothing is known.
    pub fn path(&self) -> String {
        let container = self.container.as_deref().filter(|container| !container.is_empty());
        let parts = [self.namespace.as_str(), &self.name].into_iter().chain(container);
        parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/")
    }
}

/// A container's place on a network, as its engine says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Endpoint {
    pub network: String,
    pub network_id: String,
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Subnet {
    /// CIDR.
    pub subnet: String,
    pub gateway: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct EngineStatus {
    /// `docker`, `podman`, `containerd`, `cri-o`, `proc`, `demo`.
    pub name: String,
    pub endpoint: String,
    pub connected: bool,
    pub version: Option<String>,
    /// Why it is not connected, or what to do about it.
    pub problem: Option<String>,
}

/// netobs on itself.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct AgentHealth {
    /// As asked for: `auto`, `tcx` or `clsact`.
    pub attach_mode: String,
    /// Those of the host, those inside containers, and cgroups.
    pub attached_interfaces: usize,
    /// What should be observed and is not: name and reason.
    pub unattached: Vec<(String, String)>,
    /// Veths with a process behind them that belongs to no known container.
    pub unattributed_interfaces: usize,
    /// Feature and reason.
    pub degraded: Vec<(String, String)>,
    /// From netlink's message about an interface to both programs attached.
    pub attach_latency: Latency,
    /// Times that netlink lost events and all interfaces were listed anew.
    pub event_overruns: u64,
    /// Times that what others had removed or displaced was attached again, by what they had done.
    pub reattached: ByName,
    /// None where flows are off.
    pub flows: Option<FlowHealth>,
    /// None where nobody looks how TCP connections fare.
    pub tcp: Option<TcpStatus>,
    /// None where no packets are told of one by one.
    pub events: Option<EventHealth>,
    /// None where nothing is served.
    pub http: Option<HttpHealth>,
    /// None where nothing is sent to a collector.
    pub otlp: Option<OtlpHealth>,
}

/// The endpoint's connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct HttpHealth {
    /// Open ones.
    pub connections: usize,
    /// Closed because there were too many, or too many bytes of answers that nobody took.
    pub closed_crowded: u64,
    /// Closed because the client took too long.
    pub closed_slow: u64,
}

/// What is sent to a collector: made are what is sent, lost and waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct OtlpHealth {
    /// Data points.
    pub metrics: Sent,
    /// Log records. None: flows are not sent.
    pub logs: Option<Sent>,
    /// Of what waits, as it would be sent.
    pub waiting_bytes: u64,
    /// Requests that came to nothing, or to a refusal.
    pub failed_requests: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Sent {
    /// The collector has taken them.
    pub sent: u64,
    pub waiting: u64,
    /// By cause.
    pub lost: ByName,
}

/// How well it is known how TCP connections fare.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TcpStatus {
    /// What was seen and is not told of, by cause.
    pub lost: ByName,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct FlowHealth {
    /// Flows that can be listed now.
    pub listed: usize,
    /// Flows that were not listed, as there were too many; they are in all sums.
    pub unlisted: u64,
    /// What flows have counted of which it never became known whose they were.
    pub unclassified_rx: Count,
    pub unclassified_tx: Count,
    /// Edges over the budget, added up.
    pub other_edges: EdgeCount,
    /// Of these, each packet once: at its source, where that is observed.
    pub other_edges_once: FlowCount,
}

/// Upper bounds (inclusive, microseconds) of [`Latency::buckets`]; the last bucket has no bound.
pub const LATENCY_BOUNDS_US: [u64; 11] =
    [100, 200, 500, 1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 1_000_000];

/// A distribution of durations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Latency {
    /// Observations by [`LATENCY_BOUNDS_US`], not cumulative.
    pub buckets: [u64; LATENCY_BOUNDS_US.len() + 1],
    pub sum_us: u64,
}

impl Latency {
    pub fn observe(&mut self, duration: Duration) {
        let us = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket] += 1;
        self.sum_us = self.sum_us.saturating_add(us);
    }
}

/// Times as seconds since the epoch, with three decimals.
pub mod unix_seconds {
    use std::time::{Duration, SystemTime};

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        serializer.serialize_f64((since.as_secs_f64() * 1000.0).round() / 1000.0)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let since = Duration::try_from_secs_f64(f64::deserialize(deserializer)?).map_err(D::Error::custom)?;
        SystemTime::UNIX_EPOCH.checked_add(since).ok_or_else(|| D::Error::custom("a time that is none"))
    }
}

impl Snapshot {
    /// Of nothing, at `time`.
    pub fn empty(time: SystemTime) -> Self {
        Self {
            version: SCHEMA_VERSION,
            time,
            interval_seconds: None,
            containers: Vec::new(),
            networks: Vec::new(),
            interfaces: Vec::new(),
            edges: Vec::new(),
            engines: Vec::new(),
            agent: AgentHealth::default(),
            drops: None,
        }
    }
}
