//! Packets that the kernel dropped: whose they were, added up.
//!
//! An event has what the packet itself and the device say. Whose that is, is decided here, and stays open
//! where more than one answer fits.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use serde::{Serialize, Serializer};

use super::{
    fold::display_name,
    published::contains,
    snapshot::{Subnet, unix_seconds},
    state::{State, is_live, network_of, shares_namespace},
    update::{InterfaceKind, Place},
};

/// Rows that are told apart; packets of others are in [`DropReport::unlisted`].
const MAX_ROWS: usize = 4096;

/// Containers' pairs and reasons that are told apart in [`DropReport::edges`]; others become one for each
/// reason, in which nobody is named.
const MAX_EDGES: usize = 1000;

/// Events of one kind, as the kernel tells of them. None is what is not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropEvent {
    /// The kernel's name or number.
    pub reason: String,
    /// Function and offset.
    pub place: Option<String>,
    pub netfilter: Option<Netfilter>,
    /// Inode number of the network namespace.
    pub netns: Option<u64>,
    /// As numbered there.
    pub ifindex: Option<u32>,
    /// The device that it was to leave by.
    pub out_ifindex: Option<u32>,
    pub source_mac: Option<String>,
    pub ethertype: u16,
    pub addresses: Option<(IpAddr, IpAddr)>,
    /// IANA number.
    pub protocol: Option<u8>,
    /// Of the destination; of ICMP, type (high byte) and code.
    pub port: Option<u16>,
    /// An ordinary end of a packet's life.
    pub ordinary: bool,
    pub packets: u64,
}

/// What is known of netfilter's part from who called whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Netfilter {
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub hook: Option<&'static str>,
    /// What decided: `nf_tables` (which iptables may be a face of), `ip_tables`, or the function's name.
    pub by: Option<String>,
    /// The table, where each has a function of its own (iptables before 5.16).
    pub table: Option<&'static str>,
    /// The function that asked netfilter.
    pub caller: String,
}

impl Netfilter {
    /// By the functions that called the hook and that the hook called.
    pub fn of(caller: &str, called: Option<&str>) -> Self {
        let hook = match caller {
            "ip_rcv" | "ipv6_rcv" | "ip_list_rcv" | "ipv6_list_rcv" => Some("prerouting"),
            "ip_local_deliver" | "ip6_input" => Some("input"),
            "ip_forward" | "ip6_forward" => Some("forward"),
            "__ip_local_out" | "ip_local_out" | "__ip6_local_out" | "ip6_local_out" | "ip6_xmit" => {
                Some("output")
            }
            "ip_output" | "ip6_output" | "ip_mc_output" => Some("postrouting"),
            "br_nf_pre_routing" | "br_nf_pre_routing_ipv6" | "br_nf_hook_thresh" => None,
            "br_nf_forward_ip" | "br_nf_forward" | "br_nf_forward_arp" => Some("forward"),
            "br_nf_post_routing" => Some("postrouting"),
            _ => None,
        };
        let (by, table) = match called {
            Some(function) if function.starts_with("nft_do_chain") => (Some("nf_tables"), None),
            Some("ipt_do_table") => (Some("ip_tables"), None),
            Some("ip6t_do_table") => (Some("ip6_tables"), None),
            Some("ebt_do_table" | "ebt_broute" | "ebt_filter_in") => (Some("ebtables"), None),
            Some("iptable_filter_hook") => (Some("ip_tables"), Some("filter")),
            Some("iptable_mangle_hook") => (Some("ip_tables"), Some("mangle")),
            Some("iptable_raw_hook") => (Some("ip_tables"), Some("raw")),
            Some("iptable_security_hook") => (Some("ip_tables"), Some("security")),
            Some("ip6table_filter_hook") => (Some("ip6_tables"), Some("filter")),
            Some("ip6table_mangle_hook") => (Some("ip6_tables"), Some("mangle")),
            Some("ip6table_raw_hook") => (Some("ip6_tables"), Some("raw")),
            Some("ip6table_security_hook") => (Some("ip6_tables"), Some("security")),
            other => (other, None),
        };
        Self { hook, by: by.map(str::to_owned), table, caller: caller.to_owned() }
    }
}

/// All events of one reason since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReasonTotal {
    pub reason: String,
    pub events: u64,
    /// Of these, ordinary ends that are not told of any further.
    pub ordinary: u64,
}

/// What was read of the kernel's events at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DropSample {
    /// Since the last sample.
    pub events: Vec<DropEvent>,
    /// Since the start.
    pub by_reason: Vec<ReasonTotal>,
    /// Since the start, by cause.
    pub lost: BTreeMap<&'static str, u64>,
    /// Inode number of the host's network namespace.
    pub host_netns: Option<u64>,
    /// Names of the host's interfaces by ifindex.
    pub host_links: BTreeMap<u32, String>,
}

/// Where a packet came from or was to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Party {
    pub address: Option<IpAddr>,
    pub container: Option<String>,
    pub container_id: Option<String>,
    pub network: Option<String>,
    /// It is the host itself.
    pub host: bool,
    /// Names of the containers that it may be, if more than one fits.
    pub ambiguous: Vec<String>,
}

/// Where a packet was when it was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// `net:[INODE]`, as `readlink /proc/PID/ns/net` has it.
    pub namespace: Option<String>,
    /// It is the host's.
    pub host: bool,
    /// Whose it is.
    pub container: Option<String>,
    pub container_id: Option<String>,
    /// The device, by its name there.
    pub interface: Option<String>,
    pub ifindex: Option<u32>,
    /// The device that it was to leave by.
    pub out_interface: Option<String>,
}

/// What rows are told apart by.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct DropKind {
    pub reason: String,
    pub ordinary: bool,
    pub source: Party,
    pub destination: Party,
    pub ethertype: u16,
    /// IANA number.
    pub protocol: Option<u8>,
    /// Of the destination.
    pub port: Option<u16>,
    pub icmp_type: Option<u8>,
    pub icmp_code: Option<u8>,
    /// Function and offset in the kernel.
    pub place: Option<String>,
    pub netfilter: Option<Netfilter>,
    pub at: Location,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DropRow {
    #[serde(flatten)]
    pub kind: DropKind,
    /// Since netobs looked, or since the row began.
    pub packets: u64,
    /// Seconds since the epoch, with fraction: when it was read, which is up to a second later than it was.
    #[serde(serialize_with = "unix_seconds")]
    pub first: SystemTime,
    #[serde(serialize_with = "unix_seconds")]
    pub last: SystemTime,
}

/// Who dropped packets were between, without what makes for many of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct DropEdge {
    pub reason: String,
    pub source: EdgeEnd,
    pub destination: EdgeEnd,
}

/// One end, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum EdgeEnd {
    Container {
        name: String,
        id: String,
        network: Option<String>,
    },
    Host,
    /// No container, or none that is known; on a network, or not.
    #[default]
    Unknown,
    Network(String),
    /// Over the budget.
    Other,
}

/// All that is known of drops. Events are `packets` of the rows, and `forgotten`, `unlisted`, `ordinary`,
/// what was lost, and what is `pending`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DropReport {
    /// Those with the most packets first.
    pub rows: Vec<DropRow>,
    #[serde(serialize_with = "reasons")]
    pub reasons: BTreeMap<String, ReasonTotal>,
    /// All that the tracepoint has told.
    pub events: u64,
    /// Ordinary ends that are in no row.
    pub ordinary: u64,
    /// In no row, because the kernel's map of them was full (`full`) or could not be written (`busy`). Not
    /// even among the events are those for which the kernel left the program out (`recursion`).
    pub lost: BTreeMap<&'static str, u64>,
    /// In no row, because there were too many.
    pub unlisted: u64,
    /// In rows that are no longer shown.
    pub forgotten: u64,
    /// Counted and not read yet.
    pub pending: u64,
    #[serde(skip)]
    pub edges: BTreeMap<DropEdge, u64>,
}

fn reasons<S: Serializer>(reasons: &BTreeMap<String, ReasonTotal>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(reasons.values())
}

/// What the state keeps.
#[derive(Debug, Default)]
pub(super) struct DropState {
    rows: BTreeMap<DropKind, Entry>,
    edges: BTreeMap<DropEdge, u64>,
    unlisted: u64,
    forgotten: u64,
    by_reason: Vec<ReasonTotal>,
    lost: BTreeMap<&'static str, u64>,
    /// When events were read last: what has ended since may have had a part in those that are read now.
    read: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    packets: u64,
    first: Instant,
    last: Instant,
}

/// An address of a container, where it may be met.
struct Candidate<'a> {
    id: &'a str,
    name: &'a str,
    address: Option<IpAddr>,
    mac: Option<&'a str>,
    network: Option<String>,
    netns: Option<u64>,
    /// As numbered in its namespace.
    ifindex: Option<u32>,
    interface: Option<&'a str>,
}

/// Containers' addresses, and the host's names, while one sample is taken in.
struct Directory<'a> {
    state: &'a State,
    sample: &'a DropSample,
    candidates: Vec<Candidate<'a>>,
}

/// Where an event was, as far as it tells whose it is.
struct Scene<'a> {
    at: Location,
    /// The container's whose namespace it was in.
    inside: Option<&'a str>,
    /// Networks of the device that it was at and of the one that it was to leave by.
    near: Option<String>,
    out: Option<String>,
}

impl State {
    pub(super) fn dropped(&mut self, sample: DropSample, now: Instant) {
        let mut drops = self.drops.take().unwrap_or_default();
        let kinds: Vec<(DropKind, u64)> = {
            let directory = Directory::new(self, &sample, drops.read, now);
            sample.events.iter().map(|event| (directory.kind(event), event.packets)).collect()
        };
        for (kind, packets) in kinds {
            drops.add(kind, packets, now);
        }
        drops.by_reason = sample.by_reason;
        drops.lost = sample.lost;
        drops.read = Some(now);
        self.drops = Some(drops);
    }

    /// None if nobody looks for drops.
    pub(super) fn drop_report(&self, now: Instant, time: SystemTime) -> Option<DropReport> {
        let drops = self.drops.as_ref()?;
        let wall = |at: Instant| time.checked_sub(now.saturating_duration_since(at)).unwrap_or(time);
        let mut rows: Vec<DropRow> = drops
            .rows
            .iter()
            .map(|(kind, entry)| DropRow {
                kind: kind.clone(),
                packets: entry.packets,
                first: wall(entry.first),
                last: wall(entry.last),
            })
            .collect();
        rows.sort_by(|a, b| b.packets.cmp(&a.packets).then_with(|| a.kind.cmp(&b.kind)));
        let mut reasons: BTreeMap<String, ReasonTotal> = BTreeMap::new();
        for total in &drops.by_reason {
            let sum = reasons
                .entry(total.reason.clone())
                .or_insert_with(|| ReasonTotal { reason: total.reason.clone(), ..ReasonTotal::default() });
            sum.events += total.events;
            sum.ordinary += total.ordinary;
        }
        let events = reasons.values().map(|total| total.events).sum();
        let ordinary = reasons.values().map(|total| total.ordinary).sum();
        let lost: u64 = LOST_EVENTS.iter().filter_map(|cause| drops.lost.get(cause)).sum();
        let listed: u64 = rows.iter().map(|row| row.packets).sum();
        let accounted = listed + drops.forgotten + drops.unlisted + ordinary + lost;
        Some(DropReport {
            rows,
            reasons,
            events,
            ordinary,
            lost: drops.lost.clone(),
            unlisted: drops.unlisted,
            forgotten: drops.forgotten,
            pending: u64::saturating_sub(events, accounted),
            edges: drops.edges.clone(),
        })
    }

    /// Forgets rows that nothing was added to for the grace period, and edges of containers that are gone.
    pub(super) fn expire_drops(&mut self, now: Instant, grace: Duration) {
        let Some(drops) = self.drops.as_mut() else { return };
        let forgotten = &mut drops.forgotten;
        drops.rows.retain(|_, entry| {
            let keep = now.saturating_duration_since(entry.last) < grace;
            *forgotten += if keep { 0 } else { entry.packets };
            keep
        });
        let containers = &self.containers;
        let known = |end: &EdgeEnd| match end {
            EdgeEnd::Container { id, .. } => containers.contains_key(id),
            _ => true,
        };
        drops.edges.retain(|edge, _| known(&edge.source) && known(&edge.destination));
    }
}

/// Causes of what is among the events and in no row.
const LOST_EVENTS: [&str; 2] = ["full", "busy"];

impl DropState {
    fn add(&mut self, kind: DropKind, packets: u64, now: Instant) {
        if !kind.ordinary {
            self.add_edge(&kind, packets);
        }
        if let Some(entry) = self.rows.get_mut(&kind) {
            entry.packets += packets;
            entry.last = now;
        } else if self.rows.len() < MAX_ROWS {
            self.rows.insert(kind, Entry { packets, first: now, last: now });
        } else {
            self.unlisted += packets;
        }
    }

    fn add_edge(&mut self, kind: &DropKind, packets: u64) {
        let mut edge = DropEdge {
            reason: kind.reason.clone(),
            source: EdgeEnd::of(&kind.source),
            destination: EdgeEnd::of(&kind.destination),
        };
        // Without addresses it is at least known where it was.
        if edge.source == EdgeEnd::Unknown
            && edge.destination == EdgeEnd::Unknown
            && kind.source.address.is_none()
            && let (Some(name), Some(id)) = (&kind.at.container, &kind.at.container_id)
        {
            edge.destination = EdgeEnd::Container { name: name.clone(), id: id.clone(), network: None };
        }
        if !self.edges.contains_key(&edge) && self.edges.len() >= MAX_EDGES {
            edge = DropEdge { source: EdgeEnd::Other, destination: EdgeEnd::Other, ..edge };
        }
        *self.edges.entry(edge).or_default() += packets;
    }
}

impl EdgeEnd {
    fn of(party: &Party) -> Self {
        match (&party.container, &party.container_id, &party.network) {
            (Some(name), Some(id), network) => {
                Self::Container { name: name.clone(), id: id.clone(), network: network.clone() }
            }
            _ if party.host => Self::Host,
            (_, _, Some(network)) => Self::Network(network.clone()),
            _ => Self::Unknown,
        }
    }
}

impl<'a> Directory<'a> {
    fn new(state: &'a State, sample: &'a DropSample, read: Option<Instant>, now: Instant) -> Self {
        let mut directory = Self { state, sample, candidates: Vec::new() };
        if sample.events.is_empty() {
            return directory;
        }
        // Whoever was there at any time since the last reading.
        let since = read.unwrap_or(now);
        for (id, entry) in &state.containers {
            let was_there = is_live(&entry.info) || entry.ended.is_some_and(|at| at >= since);
            if was_there && !shares_namespace(&entry.info) {
                directory.enter(id, entry);
            }
        }
        directory
    }

    fn enter(&mut self, id: &'a str, entry: &'a super::state::ContainerEntry) {
        let name = entry.info.name.as_str();
        let Some(namespace) = entry.namespace.as_ref().filter(|namespace| !namespace.host) else {
            let endpoints = entry.info.endpoints.iter().filter(|_| entry.namespace.is_none());
            for endpoint in endpoints {
                self.candidates.extend(endpoint.addresses.iter().map(|address| Candidate {
                    id,
                    name,
                    address: Some(*address),
                    mac: endpoint.mac.as_deref(),
                    network: Some(endpoint.network.clone()),
                    netns: None,
                    ifindex: None,
                    interface: None,
                }));
            }
            return;
        };
        for link in &namespace.links {
            let attached = self.state.interfaces.values().find(|interface| {
                let owner = interface.owner.as_ref();
                owner.is_some_and(|owner| owner.container == id && owner.inner.ifindex == link.ifindex)
            });
            let network = attached
                .and_then(|interface| interface.network(&entry.info))
                .or_else(|| network_of(link, &entry.info.endpoints).map(str::to_owned));
            let addresses = link.addresses.iter().copied().map(Some);
            // One without addresses is known by its namespace and MAC address.
            let addresses = addresses.chain(link.addresses.is_empty().then_some(None));
            self.candidates.extend(addresses.map(|address| Candidate {
                id,
                name,
                address,
                mac: Some(link.mac.as_str()).filter(|mac| *mac != NO_MAC),
                network: network.clone(),
                netns: Some(namespace.identity.1),
                ifindex: Some(link.ifindex),
                interface: Some(&link.name),
            }));
        }
    }

    fn kind(&self, event: &DropEvent) -> DropKind {
        let scene = self.scene(event);
        let addresses = event.addresses.unzip();
        let is_icmp = matches!(event.protocol, Some(ICMP | ICMPV6));
        let icmp = event.port.filter(|_| is_icmp).map(u16::to_be_bytes);
        DropKind {
            reason: event.reason.clone(),
            ordinary: event.ordinary,
            source: self.party(addresses.0, event.source_mac.as_deref(), &scene, [&scene.near, &None]),
            destination: self.party(addresses.1, None, &scene, [&scene.out, &scene.near]),
            ethertype: event.ethertype,
            protocol: event.protocol,
            port: event.port.filter(|_| !is_icmp),
            icmp_type: icmp.map(|[message, _]| message),
            icmp_code: icmp.map(|[_, code]| code),
            place: event.place.clone(),
            netfilter: event.netfilter.clone(),
            at: scene.at,
        }
    }

    fn scene(&self, event: &DropEvent) -> Scene<'a> {
        let host = event.netns.is_some() && event.netns == self.sample.host_netns;
        let mut at = Location {
            namespace: event.netns.map(|inode| format!("net:[{inode}]")),
            host,
            ifindex: event.ifindex,
            ..Location::default()
        };
        if host {
            at.interface = self.host_link(event.ifindex);
            at.out_interface = self.host_link(event.out_ifindex);
            let (near, out) = (self.host_network(event.ifindex), self.host_network(event.out_ifindex));
            return Scene { at, inside: None, near, out };
        }
        let inside: Vec<&Candidate<'_>> = self
            .candidates
            .iter()
            .filter(|candidate| event.netns.is_some() && candidate.netns == event.netns)
            .collect();
        let Some(owner) = inside.first().copied() else {
            return Scene { at, inside: None, near: None, out: None };
        };
        let link = |ifindex: Option<u32>| {
            inside.iter().find(|candidate| ifindex.is_some() && candidate.ifindex == ifindex).copied()
        };
        let (device, out) = (link(event.ifindex), link(event.out_ifindex));
        at.container = Some(display_name(owner.id, owner.name));
        at.container_id = Some(owner.id.to_owned());
        at.interface = device.and_then(|device| device.interface.map(str::to_owned));
        at.out_interface = out.and_then(|out| out.interface.map(str::to_owned));
        let network = |of: Option<&Candidate<'_>>| of.and_then(|of| of.network.clone());
        let id = self.state.containers.get_key_value(owner.id).map(|(id, _)| id.as_str());
        Scene { at, inside: id, near: network(device), out: network(out) }
    }

    /// Who has an address (or sent from a MAC address), `on` one of these networks if any has it there.
    fn party(
        &self,
        address: Option<IpAddr>,
        mac: Option<&str>,
        scene: &Scene<'_>,
        on: [&Option<String>; 2],
    ) -> Party {
        let mut party = Party { address, ..Party::default() };
        if !scene.at.host && scene.inside.is_none() {
            // In a namespace of nobody's, addresses may be anybody's.
            return party;
        }
        let mut fitting = self.by_mac(mac, scene);
        if fitting.is_empty()
            && let Some(address) = address
        {
            fitting = self.by_address(address, scene, on);
        }
        let mut ids: Vec<&str> = fitting.iter().map(|candidate| candidate.id).collect();
        ids.dedup();
        match (ids.as_slice(), fitting.first()) {
            ([_], Some(found)) => {
                party.container = Some(display_name(found.id, found.name));
                party.container_id = Some(found.id.to_owned());
                party.network = same(fitting.iter().map(|candidate| candidate.network.as_ref())).cloned();
            }
            ([], _) => {
                party.host = address.is_some_and(|address| self.is_hosts(address, scene));
                party.network = address.and_then(|address| {
                    on.into_iter().flatten().find(|network| self.has_subnet(network, address)).cloned()
                });
            }
            _ => {
                party.ambiguous =
                    fitting.iter().map(|candidate| display_name(candidate.id, candidate.name)).collect();
                party.ambiguous.dedup();
            }
        }
        party
    }

    /// Nothing if more than one container has it.
    fn by_mac(&self, mac: Option<&str>, scene: &Scene<'_>) -> Vec<&Candidate<'a>> {
        let Some(mac) = mac else { return Vec::new() };
        let found: Vec<_> = self
            .candidates
            .iter()
            .filter(|candidate| candidate.mac == Some(mac))
            .filter(|candidate| scene.inside.is_none() || candidate.network == scene.near)
            .collect();
        if same(found.iter().map(|candidate| Some(&candidate.id))).is_some() { found } else { Vec::new() }
    }

    fn by_address(
        &self,
        address: IpAddr,
        scene: &Scene<'_>,
        on: [&Option<String>; 2],
    ) -> Vec<&Candidate<'a>> {
        let all: Vec<_> =
            self.candidates.iter().filter(|candidate| candidate.address == Some(address)).collect();
        let own: Vec<_> =
            all.iter().copied().filter(|candidate| scene.inside == Some(candidate.id)).collect();
        if !own.is_empty() {
            return own;
        }
        if address.is_loopback() {
            return Vec::new();
        }
        for network in on.into_iter().flatten() {
            let there: Vec<_> =
                all.iter().copied().filter(|candidate| candidate.network.as_ref() == Some(network)).collect();
            if !there.is_empty() {
                return there;
            }
        }
        // A container sees others by the networks that it is on; what else it sees may be its own world.
        if scene.inside.is_some() { Vec::new() } else { all }
    }

    fn is_hosts(&self, address: IpAddr, scene: &Scene<'_>) -> bool {
        if address.is_loopback() { scene.at.host } else { self.state.host_addresses.contains(&address) }
    }

    fn has_subnet(&self, network: &str, address: IpAddr) -> bool {
        let has = |subnet: &Subnet| contains(&subnet.subnet, address);
        self.state.networks.values().any(|known| known.name == network && known.subnets.iter().any(has))
    }

    fn host_link(&self, ifindex: Option<u32>) -> Option<String> {
        self.sample.host_links.get(&ifindex?).cloned()
    }

    /// The network of a bridge, or of a veth.
    fn host_network(&self, ifindex: Option<u32>) -> Option<String> {
        let ifindex = ifindex?;
        let found = self.state.interfaces.values().find(|entry| {
            entry.info.place == Place::Host && entry.ended.is_none() && entry.info.ifindex == ifindex
        })?;
        matches!(found.info.kind, InterfaceKind::Bridge | InterfaceKind::Veth)
            .then(|| found.network.clone())
            .flatten()
    }
}

const NO_MAC: &str = "00:00:00:00:00:00";
/// IANA numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What all of them are; none if they differ, or there are none.
fn same<T: PartialEq>(mut all: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = all.next()??;
    all.all(|other| other.as_ref() == Some(&first)).then_some(first)
}
