//! Packets that the kernel dropped: whose they were, added up.
//!
//! An event has what the packet itself and the device say. Whose that is, is decided here, and stays open
//! where more than one answer fits.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    fold::display_name,
    published::contains,
    snapshot::{ByName, Subnet, unix_seconds},
    state::NO_MAC,
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub struct Netfilter {
    /// `prerouting`, `input`, `forward`, `output` or `postrouting`.
    pub hook: Option<Cow<'static, str>>,
    /// What decided: `nf_tables` (which iptables may be a face of), `ip_tables`, or the function's name.
    pub by: Option<String>,
    /// The table, where each has a function of its own (iptables before 5.16).
    pub table: Option<Cow<'static, str>>,
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
            "br_nf_forward_ip" | "br_nf_forward" | "br_nf_forward_arp" => Some("forward"),
            "br_nf_post_routing" => Some("postrouting"),
            _ => None,
        };
        let (by, table) = match called {
            Some(function) if function.starts_with("nft_do_chain") => (Some("nf_tables"), None),
            Some("ipt_do_table") => (Some("ip_tables"), None),
            Some("ip6t_do_table") => (Some("ip6_tables"), None),
            Some("ebt_do_table") => (Some("ebtables"), None),
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
        Self {
            hook: hook.map(Cow::Borrowed),
            by: by.map(str::to_owned),
            table: table.map(Cow::Borrowed),
            caller: caller.to_owned(),
        }
    }
}

/// All events of one reason since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
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
    pub lost: ByName,
    pub host: HostNames,
}

/// Where a packet came from or was to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
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

impl Party {
    /// The container, those that it may be, or the host.
    pub fn name(&self) -> Option<String> {
        match (&self.container, self.ambiguous.as_slice()) {
            (Some(name), _) => Some(name.clone()),
            (None, []) => self.host.then(|| "host".to_owned()),
            (None, names) => Some(names.join(" or ")),
        }
    }
}

/// Where a packet was when it was dropped.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
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

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct DropRow {
    #[serde(flatten)]
    pub kind: DropKind,
    /// Since netobs looked, or since the row began.
    pub packets: u64,
    /// Seconds since the epoch, with fraction: when it was read, which is up to a second later than it was.
    #[serde(with = "unix_seconds")]
    pub first: SystemTime,
    #[serde(with = "unix_seconds")]
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
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct DropReport {
    /// Those with the most packets first.
    pub rows: Vec<DropRow>,
    #[serde(with = "reasons")]
    pub reasons: BTreeMap<String, ReasonTotal>,
    /// All that the tracepoint has told.
    pub events: u64,
    /// Ordinary ends that are in no row.
    pub ordinary: u64,
    /// In no row, because the kernel's map of them was full (`full`) or could not be written (`busy`). Not
    /// even among the events are those for which the kernel left the program out (`recursion`).
    pub lost: ByName,
    /// In no row, because there were too many.
    pub unlisted: u64,
    /// In rows that are no longer shown.
    pub forgotten: u64,
    /// Counted and not read yet.
    pub pending: u64,
    #[serde(skip)]
    pub edges: BTreeMap<DropEdge, u64>,
}

/// As a list: each says its name.
mod reasons {
    use std::collections::BTreeMap;

    use serde::{Deserialize as _, Deserializer, Serializer};

    use super::ReasonTotal;

    pub fn serialize<S: Serializer>(
        reasons: &BTreeMap<String, ReasonTotal>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(reasons.values())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, ReasonTotal>, D::Error> {
        let all = Vec::<ReasonTotal>::deserialize(deserializer)?;
        Ok(all.into_iter().map(|one| (one.reason.clone(), one)).collect())
    }
}

/// What the state keeps.
#[derive(Debug, Default)]
pub(super) struct DropState {
    rows: BTreeMap<DropKind, Entry>,
    edges: BTreeMap<DropEdge, u64>,
    unlisted: u64,
    forgotten: u64,
    by_reason: Vec<ReasonTotal>,
    lost: ByName,
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
#[derive(Clone, Debug)]
struct Candidate {
    id: String,
    name: String,
    address: Option<IpAddr>,
    mac: Option<String>,
    network: Option<String>,
    netns: Option<u64>,
    /// As numbered in its namespace.
    ifindex: Option<u32>,
    interface: Option<String>,
}

/// Containers' addresses and the host's names at one time: by these it is told whose a packet was.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    candidates: Vec<Candidate>,
    host: HostNames,
    host_addresses: BTreeSet<IpAddr>,
    /// Networks of the host's bridges and veths, by ifindex.
    host_networks: BTreeMap<u32, String>,
    /// By network.
    subnets: Vec<(String, Vec<Subnet>)>,
}

/// What the host calls its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNames {
    /// Inode number of its network namespace.
    pub netns: Option<u64>,
    /// Names of its interfaces by ifindex.
    pub links: BTreeMap<u32, String>,
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
            let directory = match sample.events.as_slice() {
                [] => Directory::default(),
                // Whoever was there at any time since the last reading.
                _ => self.directory(sample.host, drops.read.unwrap_or(now)),
            };
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
        let lost: u64 = LOST_EVENTS.iter().filter_map(|cause| drops.lost.get(*cause)).sum();
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

impl State {
    /// Of whoever was there at any time since then.
    pub fn directory(&self, host: HostNames, since: Instant) -> Directory {
        let mut host_networks: BTreeMap<u32, Option<String>> = BTreeMap::new();
        let of_host =
            self.interfaces.values().filter(|entry| entry.info.place == Place::Host && entry.ended.is_none());
        for entry in of_host {
            let has_network = matches!(entry.info.kind, InterfaceKind::Bridge | InterfaceKind::Veth);
            host_networks
                .entry(entry.info.ifindex)
                .or_insert_with(|| entry.network.clone().filter(|_| has_network));
        }
        let mut directory = Directory {
            candidates: Vec::new(),
            host,
            host_addresses: self.host_addresses.clone(),
            host_networks: host_networks
                .into_iter()
                .filter_map(|(ifindex, network)| Some((ifindex, network?)))
                .collect(),
            subnets: self
                .networks
                .values()
                .map(|network| (network.name.clone(), network.subnets.clone()))
                .collect(),
        };
        for (id, entry) in &self.containers {
            let was_there = is_live(&entry.info) || entry.ended.is_some_and(|at| at >= since);
            if was_there && !shares_namespace(&entry.info) {
                directory.enter(id, entry, self);
            }
        }
        directory
    }
}

impl Directory {
    fn enter(&mut self, id: &str, entry: &super::state::ContainerEntry, state: &State) {
        let name = &entry.info.name;
        let Some(namespace) = entry.namespace.as_ref().filter(|namespace| !namespace.host) else {
            let endpoints = entry.info.endpoints.iter().filter(|_| entry.namespace.is_none());
            for endpoint in endpoints {
                self.candidates.extend(endpoint.addresses.iter().map(|address| Candidate {
                    id: id.to_owned(),
                    name: name.clone(),
                    address: Some(*address),
                    mac: endpoint.mac.clone(),
                    network: Some(endpoint.network.clone()),
                    netns: None,
                    ifindex: None,
                    interface: None,
                }));
            }
            return;
        };
        for link in &namespace.links {
            let attached = state.interfaces.values().find(|interface| {
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
                id: id.to_owned(),
                name: name.clone(),
                address,
                mac: Some(link.mac.clone()).filter(|mac| mac != NO_MAC),
                network: network.clone(),
                netns: Some(namespace.identity.1),
                ifindex: Some(link.ifindex),
                interface: Some(link.name.clone()),
            }));
        }
    }

    /// Whose the packets of an event were.
    pub fn kind(&self, event: &DropEvent) -> DropKind {
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

    fn scene(&self, event: &DropEvent) -> Scene<'_> {
        let host = event.netns.is_some() && event.netns == self.host.netns;
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
        let inside: Vec<&Candidate> = self
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
        at.container = Some(display_name(&owner.id, &owner.name));
        at.container_id = Some(owner.id.clone());
        at.interface = device.and_then(|device| device.interface.clone());
        at.out_interface = out.and_then(|out| out.interface.clone());
        let network = |of: Option<&Candidate>| of.and_then(|of| of.network.clone());
        Scene { at, inside: Some(&owner.id), near: network(device), out: network(out) }
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
        let mut ids: Vec<&str> = fitting.iter().map(|candidate| candidate.id.as_str()).collect();
        ids.dedup();
        match (ids.as_slice(), fitting.first()) {
            ([_], Some(found)) => {
                party.container = Some(display_name(&found.id, &found.name));
                party.container_id = Some(found.id.clone());
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
                    fitting.iter().map(|candidate| display_name(&candidate.id, &candidate.name)).collect();
                party.ambiguous.dedup();
            }
        }
        party
    }

    /// Nothing if more than one container has it.
    fn by_mac(&self, mac: Option<&str>, scene: &Scene<'_>) -> Vec<&Candidate> {
        let Some(mac) = mac else { return Vec::new() };
        let found: Vec<_> = self
            .candidates
            .iter()
            .filter(|candidate| candidate.mac.as_deref() == Some(mac))
            .filter(|candidate| scene.inside.is_none() || candidate.network == scene.near)
            .collect();
        if same(found.iter().map(|candidate| Some(&candidate.id))).is_some() { found } else { Vec::new() }
    }

    fn by_address(&self, address: IpAddr, scene: &Scene<'_>, on: [&Option<String>; 2]) -> Vec<&Candidate> {
        let all: Vec<_> =
            self.candidates.iter().filter(|candidate| candidate.address == Some(address)).collect();
        let own: Vec<_> =
            all.iter().copied().filter(|candidate| scene.inside == Some(candidate.id.as_str())).collect();
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
        if address.is_loopback() { scene.at.host } else { self.host_addresses.contains(&address) }
    }

    fn has_subnet(&self, network: &str, address: IpAddr) -> bool {
        let has = |subnet: &Subnet| contains(&subnet.subnet, address);
        self.subnets.iter().any(|(name, subnets)| name == network && subnets.iter().any(has))
    }

    fn host_link(&self, ifindex: Option<u32>) -> Option<String> {
        self.host.links.get(&ifindex?).cloned()
    }

    /// The network of a bridge, or of a veth.
    fn host_network(&self, ifindex: Option<u32>) -> Option<String> {
        self.host_networks.get(&ifindex?).cloned()
    }
}
/// IANA numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What all of them are; none if they differ, or there are none.
fn same<T: PartialEq>(mut all: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = all.next()??;
    all.all(|other| other.as_ref() == Some(&first)).then_some(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        ContainerInfo, ContainerState, Endpoint, InnerLink, InterfaceInfo, InterfaceKey, KernelStats,
        Namespace, NetworkInfo, Update,
    };

    const HOST: u64 = 1;
    const GRACE: Duration = Duration::from_secs(60);

    struct Model {
        state: State,
        now: Instant,
    }

    /// Two networks, `front` (bridge 3) and `back` (bridge 4), and the host, which is 172.18.0.1 and 172.19.0.1.
    fn model() -> Model {
        let mut model = Model { state: State::new("auto", GRACE), now: Instant::now() };
        for (index, name, subnet) in [(3, "front", "172.18.0.0/16"), (4, "back", "172.19.0.0/16")] {
            let interface = InterfaceInfo {
                key: InterfaceKey(index),
                ifindex: index as u32,
                name: format!("br-{name}"),
                kind: InterfaceKind::Bridge,
                place: Place::Host,
                master: None,
                peer_ifindex: None,
                peer_nsid: None,
            };
            let kernel = KernelStats::default();
            model.apply(Update::Attached { interface, owner: None, baseline: None, kernel, latency: None });
            let network = NetworkInfo {
                id: name.into(),
                name: name.into(),
                engine: name.into(),
                bridge: Some(format!("br-{name}")),
                subnets: vec![Subnet { subnet: subnet.into(), gateway: None }],
                ..NetworkInfo::default()
            };
            model.apply(Update::Networks { engine: name.into(), networks: vec![network] });
        }
        let addresses = ["172.18.0.1", "172.19.0.1"].map(|address| address.parse().expect("address"));
        model.apply(Update::HostAddresses(addresses.into()));
        model
    }

    impl Model {
        fn apply(&mut self, update: Update) {
            self.state.apply(update, self.now);
        }

        /// Its namespace's inode number is 100 and its number; so is its MAC address.
        fn container(&mut self, number: u8, name: &str, network: &str, address: &str) {
            let addresses: Vec<IpAddr> = vec![address.parse().expect("address")];
            let mac = format!("02:00:00:00:00:{number:02}");
            self.apply(Update::Container(ContainerInfo {
                id: format!("{number:064}"),
                name: name.into(),
                engine: "docker".into(),
                state: ContainerState::Running,
                pid: Some(number.into()),
                endpoints: vec![Endpoint {
                    network: network.into(),
                    network_id: network.into(),
                    addresses: addresses.clone(),
                    mac: Some(mac.clone()),
                }],
                ..ContainerInfo::default()
            }));
            let eth0 = InnerLink { ifindex: 7, name: "eth0".into(), mac, addresses, inside: None };
            let namespace = Namespace {
                identity: (4, 100 + u64::from(number)),
                nsid: Some(number.into()),
                links: vec![eth0],
                ..Namespace::default()
            };
            self.apply(Update::Namespace { id: format!("{number:064}"), namespace });
        }

        fn drops(&mut self, events: Vec<DropEvent>) -> DropReport {
            let packets = events.iter().map(|event| event.packets).sum();
            let by_reason = vec![ReasonTotal { reason: "R".into(), events: packets, ordinary: 0 }];
            let links = [(3, "br-front".to_owned()), (4, "br-back".to_owned())].into();
            let host = HostNames { netns: Some(HOST), links };
            let sample = DropSample { events, by_reason, host, ..DropSample::default() };
            self.apply(Update::Drops(Box::new(sample)));
            self.state.drop_report(self.now, SystemTime::UNIX_EPOCH).expect("a report")
        }

        fn drop(&mut self, event: DropEvent) -> DropKind {
            if let Some(drops) = &mut self.state.drops {
                drops.rows.clear();
            }
            self.drops(vec![event]).rows[0].kind.clone()
        }
    }

    /// On its way through the host, from `front` to `back`.
    fn forwarded(from: &str, to: &str) -> DropEvent {
        DropEvent {
            reason: "R".into(),
            netns: Some(HOST),
            ifindex: Some(3),
            out_ifindex: Some(4),
            ethertype: 0x0800,
            addresses: Some((from.parse().expect("address"), to.parse().expect("address"))),
            protocol: Some(17),
            port: Some(53),
            packets: 1,
            ..DropEvent::default()
        }
    }

    fn who(party: &Party) -> (Option<&str>, Option<&str>, bool) {
        (party.container.as_deref(), party.network.as_deref(), party.host)
    }

    #[test]
    fn from_one_network_to_the_other() {
        let mut model = model();
        model.container(1, "web", "front", "172.18.0.2");
        model.container(2, "db", "back", "172.19.0.2");
        let kind = model.drop(forwarded("172.18.0.2", "172.19.0.2"));
        assert_eq!(who(&kind.source), (Some("web"), Some("front"), false));
        assert_eq!(who(&kind.destination), (Some("db"), Some("back"), false));
        assert_eq!(
            (kind.at.interface.as_deref(), kind.at.out_interface.as_deref()),
            (Some("br-front"), Some("br-back"))
        );
        assert!(kind.at.host && kind.at.container.is_none());
        // Nobody has the address: the network is known by device and subnet.
        let kind = model.drop(forwarded("172.18.0.1", "172.19.0.9"));
        assert_eq!(who(&kind.source), (None, Some("front"), true));
        assert_eq!(who(&kind.destination), (None, Some("back"), false));
        let kind = model.drop(forwarded("192.0.2.1", "192.0.2.2"));
        assert_eq!((who(&kind.source), who(&kind.destination)), ((None, None, false), (None, None, false)));
    }

    #[test]
    fn an_address_that_two_have_is_told_by_network_or_stays_open() {
        let mut model = model();
        model.container(1, "web", "front", "10.0.0.2");
        model.container(2, "db", "back", "10.0.0.2");
        let kind = model.drop(forwarded("10.0.0.2", "10.0.0.2"));
        assert_eq!(who(&kind.source), (Some("web"), Some("front"), false));
        assert_eq!(who(&kind.destination), (Some("db"), Some("back"), false));
        let kind =
            model.drop(DropEvent { ifindex: None, out_ifindex: None, ..forwarded("10.0.0.2", "10.0.0.2") });
        assert_eq!(who(&kind.source), (None, None, false));
        assert_eq!(kind.source.ambiguous, ["web", "db"]);
    }

    #[test]
    fn who_sent_it_is_told_by_the_mac_address_first() {
        let mut model = model();
        model.container(1, "web", "front", "172.18.0.2");
        model.container(2, "liar", "front", "172.18.0.3");
        let mac = Some("02:00:00:00:00:02".to_owned());
        let kind = model.drop(DropEvent { source_mac: mac.clone(), ..forwarded("172.18.0.2", "192.0.2.1") });
        assert_eq!(who(&kind.source), (Some("liar"), Some("front"), false));
        let kind = model.drop(DropEvent {
            source_mac: mac,
            addresses: None,
            ..forwarded("172.18.0.2", "192.0.2.1")
        });
        assert_eq!(who(&kind.source), (Some("liar"), Some("front"), false));
    }

    #[test]
    fn inside_a_container_only_its_networks_count() {
        let mut model = model();
        model.container(1, "web", "front", "172.18.0.2");
        model.container(2, "db", "front", "172.18.0.3");
        model.container(3, "far", "back", "172.19.0.2");
        let inside = |from: &str, netns| DropEvent {
            netns: Some(netns),
            ifindex: Some(7),
            out_ifindex: None,
            ..forwarded(from, "172.18.0.2")
        };
        let kind = model.drop(inside("172.18.0.3", 101));
        assert_eq!(who(&kind.source), (Some("db"), Some("front"), false));
        assert_eq!(who(&kind.destination), (Some("web"), Some("front"), false));
        assert_eq!((kind.at.container.as_deref(), kind.at.interface.as_deref()), (Some("web"), Some("eth0")));
        // What has that address in there may be of a world of its own.
        let kind = model.drop(inside("172.19.0.2", 101));
        assert_eq!(who(&kind.source), (None, None, false));
        // In a namespace of nobody's all addresses are.
        let kind = model.drop(inside("172.18.0.3", 999));
        assert_eq!((who(&kind.source), who(&kind.destination)), ((None, None, false), (None, None, false)));
        assert_eq!(kind.at.namespace.as_deref(), Some("net:[999]"));
        let kind = model.drop(DropEvent { netns: None, ..inside("172.18.0.3", 0) });
        assert_eq!((who(&kind.source), kind.at.namespace), ((None, None, false), None));
    }

    #[test]
    fn an_address_that_was_anothers_since_the_last_reading_stays_open() {
        let mut model = model();
        model.container(1, "old", "front", "172.18.0.2");
        model.drops(Vec::new());
        model.now += Duration::from_millis(500);
        model.apply(Update::Removed { id: format!("{:064}", 1) });
        model.container(2, "new", "front", "172.18.0.2");
        let kind = model.drop(forwarded("172.18.0.2", "192.0.2.1"));
        assert_eq!(kind.source.ambiguous, ["old", "new"]);
        model.now += Duration::from_secs(1);
        model.drops(Vec::new());
        let report = model.drops(vec![forwarded("172.18.0.2", "192.0.2.1")]);
        assert!(report.rows.iter().any(|row| who(&row.kind.source) == (Some("new"), Some("front"), false)));
    }

    #[test]
    fn rows_and_edges_are_bounded_and_add_up() {
        let mut model = model();
        model.container(1, "web", "front", "172.18.0.2");
        let ports = u16::try_from(MAX_ROWS).expect("a port") + 10;
        let events: Vec<DropEvent> = (0..ports)
            .map(|port| DropEvent { port: Some(port), packets: 2, ..forwarded("172.18.0.2", "172.19.0.2") })
            .collect();
        let report = model.drops(events);
        let listed = |report: &DropReport| report.rows.iter().map(|row| row.packets).sum::<u64>();
        assert_eq!((report.rows.len(), report.unlisted, report.pending), (MAX_ROWS, 20, 0));
        assert_eq!(listed(&report) + report.unlisted, report.events);
        assert_eq!(report.edges.values().copied().collect::<Vec<_>>(), [2 * u64::from(ports)]);
        model.now += GRACE;
        model.state.expire(model.now);
        let report = model.state.drop_report(model.now, SystemTime::UNIX_EPOCH).expect("a report");
        assert!(report.rows.is_empty());
        assert_eq!((report.forgotten + report.unlisted, report.pending), (report.events, 0));
        let mut many = DropState::default();
        for number in 0..MAX_EDGES + 5 {
            let source = Party { network: Some(number.to_string()), ..Party::default() };
            many.add(DropKind { source, ..kind_of_nothing() }, 3, model.now);
        }
        assert_eq!(many.edges.len(), MAX_EDGES + 1);
        let other =
            many.edges.iter().find(|(edge, _)| edge.source == EdgeEnd::Other).map(|(_, packets)| *packets);
        assert_eq!(other, Some(15));
    }

    fn kind_of_nothing() -> DropKind {
        DropKind {
            reason: "R".into(),
            ordinary: false,
            source: Party::default(),
            destination: Party::default(),
            ethertype: 0,
            protocol: None,
            port: None,
            icmp_type: None,
            icmp_code: None,
            place: None,
            netfilter: None,
            at: Location::default(),
        }
    }

    #[test]
    fn netfilter_by_who_called_whom() {
        let forward = Netfilter::of("ip_forward", Some("nft_do_chain_ipv4"));
        assert_eq!(
            (forward.hook.as_deref(), forward.by.as_deref(), forward.table.as_deref()),
            (Some("forward"), Some("nf_tables"), None)
        );
        let input = Netfilter::of("ip_local_deliver", Some("iptable_filter_hook"));
        assert_eq!(
            (input.hook.as_deref(), input.by.as_deref(), input.table.as_deref()),
            (Some("input"), Some("ip_tables"), Some("filter"))
        );
        let other = Netfilter::of("something_new", None);
        assert_eq!((other.hook, other.by, other.caller.as_str()), (None, None, "something_new"));
    }
}
