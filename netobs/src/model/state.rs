//! Everything that is known now: updates go in, snapshots come out.
//!
//! Bounds: interfaces by what can be attached (`--max-interfaces`) plus those that ended within the grace
//! period; containers and networks by what the engines have plus what ended within the grace period.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

use super::{
    drops::DropState,
    event::{EventTable, Seen},
    flow::{ByClass, FlowOptions, Table},
    fold::sum_some,
    published::PortTotals,
    reconcile::{Reading, Reconciled, is_comparable},
    sender::{Comparison, ForeignMac},
    snapshot::{Baseline, Drops, Endpoint, EngineStatus, Latency, Rates},
    tcp::{TcpCounts, TcpState},
    traffic::{Count, Traffic},
    update::{
        ContainerInfo, ContainerState, InnerLink, InterfaceInfo, InterfaceKey, InterfaceKind, KernelStats,
        Namespace, NetworkInfo, Owner, Place, Proxy, PublishedPort, Removal, Sample, Update,
    },
    workload::Cluster,
};

/// Engine name of what was found by `/proc` alone; any engine knows better.
pub const PROC: &str = "proc";

/// What is degraded where a process of a container may not be looked into.
pub const NAMESPACES: &str = "namespaces";

/// Features that the API of Kubernetes is asked for.
pub const PODS: &str = "kubernetes pods";
pub const SERVICES: &str = "kubernetes services";

pub(super) const NO_MAC: &str = "00:00:00:00:00:00";

/// The first process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub container: String,
    pub pid: u32,
    /// Its network namespace; none if that is not known yet.
    pub namespace: Option<(u64, u64)>,
}

#[derive(Debug)]
pub struct State {
    pub(super) grace: Duration,
    pub(super) attach_mode: String,
    pub(super) interfaces: BTreeMap<InterfaceKey, InterfaceEntry>,
    pub(super) containers: BTreeMap<String, ContainerEntry>,
    /// By engine and ID.
    pub(super) networks: BTreeMap<(String, String), NetworkInfo>,
    /// By endpoint: what an engine is called is known when it answers.
    pub(super) engines: BTreeMap<String, EngineStatus>,
    /// Endpoints where there is no engine.
    absent: BTreeSet<String>,
    /// Names of engines that have told all their containers.
    listed: BTreeSet<String>,
    /// By what it is: name and reason.
    pub(super) unattached: BTreeMap<String, (String, String)>,
    /// Namespaces that interfaces of the host were moved into, since they were last looked into.
    moved_into: BTreeSet<i32>,
    pub(super) host_addresses: BTreeSet<IpAddr>,
    pub(super) proxies: BTreeSet<Proxy>,
    pub(super) flows: Table,
    /// CIDRs of the cluster.
    pub(super) cluster: Vec<String>,
    /// Received and sent by flows of which it never became known whose they were.
    pub(super) unclassified: [Count; 2],
    pub(super) degraded: BTreeMap<&'static str, String>,
    pub(super) attach_latency: Latency,
    pub(super) event_overruns: u64,
    /// Times that something was attached again.
    pub(super) reattached: BTreeMap<Removal, u64>,
    pub(super) last_sample: Option<Instant>,
    pub(super) interval: Option<Duration>,
    /// None if nobody looks for them.
    pub(super) drops: Option<DropState>,
    /// None if nobody looks how TCP connections fare.
    pub(super) tcp: Option<TcpState>,
    pub(super) events: EventTable,
    pub(super) kubernetes: Cluster,
}

#[derive(Debug)]
pub(super) struct InterfaceEntry {
    pub info: InterfaceInfo,
    /// None where the kernel keeps no counters.
    pub baseline: Option<Baseline>,
    /// Of the baseline: what passed while others had removed netobs's programs; and how often they had.
    pub missed: Baseline,
    pub reattached: u64,
    /// Against the kernel's own.
    pub reconciled: Reconciled,
    /// At attach; what came after is netobs's to explain.
    pub kernel_start: KernelStats,
    pub kernel: Option<KernelStats>,
    pub ingress: Traffic,
    pub egress: Traffic,
    pub(super) comparison: Comparison,
    sampled: Option<Instant>,
    pub rates: Option<Rates>,
    pub owner: Option<Owner>,
    /// Last network that it was seen on: a veth loses its bridge a moment before it goes.
    pub network: Option<String>,
    /// Last bridge that it was a port of, by ifindex.
    master: Option<u32>,
    /// When it was attached, if that was after an engine had told its containers.
    pub since: Option<Instant>,
    /// Networks that it was on before, one entry for each.
    earlier: Vec<Earlier>,
    pub ended: Option<Instant>,
}

/// A network that an interface has left, by being moved to another bridge.
#[derive(Debug)]
struct Earlier {
    /// The bridge's name, by which an engine may yet name the network.
    bridge: Option<String>,
    network: Option<String>,
    share: Share,
}

/// What an interface has counted on one network, in its own directions.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    ingress: Traffic,
    egress: Traffic,
    baseline: Option<Baseline>,
    drops: Option<Drops>,
}

#[derive(Debug, Default)]
pub(super) struct ContainerEntry {
    pub info: ContainerInfo,
    pub namespace: Option<Namespace>,
    /// What interfaces that are gone have counted, by name inside and network.
    pub retired: BTreeMap<(String, Option<String>), Retired>,
    /// What its flows have counted, by where they go.
    pub classes: ByClass,
    /// What passed its published ports.
    pub ports: PortTotals,
    /// How the connections of its sockets fared.
    pub tcp: TcpCounts,
    /// Sent by flows whose source address is not its own.
    pub foreign: Count,
    /// TCP from and to port 53, both ways: DNS that nobody reads.
    pub dns_over_tcp: Count,
    /// Sent from MAC addresses that are not its own, by interfaces that are gone. None: there were none that had
    /// any.
    pub foreign_mac: Option<ForeignMac>,
    /// Its packets that are told of one by one, but for those of attachments that go on.
    pub seen: Seen,
    /// It was seen alive by this run; one that had exited before is not shown.
    pub lived: bool,
    pub ended: Option<Instant>,
    /// Its namespace has been looked into, at least once.
    pub looked_into: bool,
    /// As long as it has not: networks (by ID) that its engine has connected it with, since when.
    pub connected: BTreeMap<String, Instant>,
    /// When it became known that it has run and does not any more, whether it was seen alive or not.
    pub process_over: Option<Instant>,
}

/// The container's side: `rx` is what it received.
#[derive(Clone, Debug, Default)]
pub(super) struct Retired {
    pub rx: Traffic,
    pub tx: Traffic,
    /// None: not known.
    pub before: Option<Baseline>,
    pub drops: Option<Drops>,
    pub inner: InnerLink,
    pub kind: Option<InterfaceKind>,
    pub place: Option<Place>,
}

impl State {
    /// `attach_mode` is only passed on to snapshots.
    pub fn new(attach_mode: impl Into<String>, grace: Duration) -> Self {
        Self {
            grace,
            attach_mode: attach_mode.into(),
            interfaces: BTreeMap::new(),
            containers: BTreeMap::new(),
            networks: BTreeMap::new(),
            engines: BTreeMap::new(),
            absent: BTreeSet::new(),
            listed: BTreeSet::new(),
            unattached: BTreeMap::new(),
            moved_into: BTreeSet::new(),
            host_addresses: BTreeSet::new(),
            proxies: BTreeSet::new(),
            flows: Table::new(FlowOptions::default()),
            cluster: Vec::new(),
            unclassified: Default::default(),
            degraded: BTreeMap::new(),
            attach_latency: Latency::default(),
            event_overruns: 0,
            reattached: BTreeMap::new(),
            last_sample: None,
            interval: None,
            drops: None,
            tcp: None,
            events: EventTable::default(),
            kubernetes: Cluster::default(),
        }
    }

    /// The same with other bounds of what is kept of flows.
    #[must_use]
    pub fn with_flows(mut self, options: FlowOptions) -> Self {
        self.cluster.clone_from(&options.cluster);
        self.flows = Table::new(options);
        self
    }

    /// The same on a node of Kubernetes; `asked`: its API will be, and flows wait for what it says of services.
    #[must_use]
    pub fn on_node(mut self, node: Option<String>, asked: bool) -> Self {
        self.kubernetes.node = node;
        self.kubernetes.awaited = asked;
        self
    }

    pub fn apply(&mut self, update: Update, now: Instant) {
        match update {
            Update::Attached { interface, owner, baseline, kernel, latency } => {
                if let Some(latency) = latency {
                    self.attach_latency.observe(latency);
                }
                let since = (!self.listed.is_empty()).then_some(now);
                let mut entry = InterfaceEntry::new(interface, baseline, kernel, since);
                entry.owner = owner;
                self.interfaces.insert(entry.info.key, entry);
                self.refresh_networks();
            }
            Update::Reattached { interface, why, baseline } => {
                *self.reattached.entry(why).or_default() += 1;
                if let Some(entry) = interface.and_then(|key| self.interfaces.get_mut(&key)) {
                    entry.reattached(baseline);
                }
            }
            Update::Vanished { what } => {
                self.unattached.remove(&what);
            }
            Update::Changed(info, sample) => {
                if let Some(entry) = self.interfaces.get_mut(&info.key) {
                    entry.sample(&sample, now);
                    entry.info = info;
                }
                self.refresh_networks();
            }
            Update::Detached(sample) => self.detached(&sample, now),
            Update::AttachFailed { what, name, reason } => {
                self.unattached.insert(what, (name, reason));
            }
            Update::MovedInto { nsid } => {
                self.moved_into.insert(nsid);
            }
            Update::Samples(samples) => {
                for sample in &samples {
                    if let Some(entry) = self.interfaces.get_mut(&sample.key) {
                        entry.sample(sample, now);
                    }
                }
                self.interval = self.last_sample.replace(now).map(|last| now.duration_since(last));
            }
            Update::Reconciled(readings) => {
                for reading in &readings {
                    if let Some(entry) = self.interfaces.get_mut(&reading.key) {
                        entry.reconcile(reading);
                    }
                }
            }
            Update::Flows(records) => self.flows(&records),
            Update::HostAddresses(addresses) => self.host_addresses = addresses,
            Update::Proxies(proxies) => self.proxies = proxies,
            Update::NoEngine { endpoint } => {
                self.engines.remove(&endpoint);
                self.absent.insert(endpoint);
            }
            Update::Engine(status) => {
                self.absent.remove(&status.endpoint);
                self.engines.insert(status.endpoint.clone(), status);
            }
            Update::Containers { engine, containers } => {
                self.all_containers(&engine, containers, now);
                self.learn_bridges();
            }
            Update::Container(info) => {
                self.container(info, now);
                self.learn_bridges();
            }
            Update::Connected { container, network, at } => self.connected(&container, network, at),
            Update::Removed { id } => {
                if let Some(entry) = self.containers.get_mut(&id) {
                    entry.removed(now);
                }
            }
            Update::Ended { id } => {
                if let Some(entry) = self.containers.get_mut(&id) {
                    entry.process_ended(now);
                }
            }
            Update::Namespace { id, namespace } => {
                self.namespace(&id, namespace);
                self.learn_bridges();
            }
            Update::Networks { engine, networks } => {
                self.networks.retain(|(of, _), _| *of != engine);
                for network in networks {
                    self.networks.insert((engine.clone(), network.id.clone()), network);
                }
                self.learn_bridges();
                self.refresh_networks();
            }
            Update::Events(batch) => self.events(batch),
            Update::Resolver { container, observed } => self.resolver(container, observed),
            Update::ResolverGone { key } => self.end_events(key, now),
            Update::Drops(sample) => self.dropped(*sample, now),
            Update::Tcp(sample) => self.tcp(*sample, now),
            Update::Pods(pods) => self.kubernetes.all_pods(pods),
            Update::Pod(pod) => self.kubernetes.pod(pod),
            Update::PodRemoved { uid } => self.kubernetes.pod_removed(&uid),
            Update::Services(services) => {
                self.kubernetes.all_services(services);
                self.kubernetes.awaited = false;
            }
            Update::Service(service) => self.kubernetes.service(service),
            Update::ServiceRemoved { name } => self.kubernetes.service_removed(&name),
            Update::EventsLost => self.event_overruns += 1,
            Update::Works { feature } => {
                self.degraded.remove(feature);
            }
            Update::Degraded { feature, why } => {
                self.kubernetes.awaited &= feature != SERVICES;
                self.degraded.insert(feature, why);
            }
        }
    }

    /// Forgets what ended longer than the grace period ago.
    pub fn expire(&mut self, now: Instant) {
        let grace = self.grace;
        let over = |ended: Option<Instant>| ended.is_some_and(|at| now.duration_since(at) >= grace);
        self.expire_flows(now);
        self.interfaces.retain(|_, entry| !over(entry.ended));
        self.expire_drops(now, grace);
        self.expire_tcp(now);
        self.expire_events(now, grace);
        self.containers.retain(|_, entry| {
            // One that still exists may be started again, and its counters go on then.
            !(entry.info.state == ContainerState::Removed && over(entry.ended))
        });
        let pods = self.containers.values().filter_map(|entry| entry.info.pod.as_ref());
        self.kubernetes.expire(&pods.map(|pod| pod.uid.as_str()).collect());
    }

    /// Whether the API of Kubernetes has yet to tell its services, or why it does not.
    pub const fn awaits_services(&self) -> bool {
        self.kubernetes.awaited
    }

    /// Whether counters differ from the kernel's that have to be read again to be believed.
    pub fn has_suspects(&self) -> bool {
        self.interfaces.values().any(|entry| entry.ended.is_none() && entry.reconciled.is_suspect())
    }

    /// Whether a feature is known not to work here.
    pub fn is_degraded(&self, feature: &str) -> bool {
        self.degraded.contains_key(feature)
    }

    /// Namespaces (as the host numbers them) that attached veths lead to and of which no container is known; each
    /// with the newest of these veths: a number is another's as soon as its namespace is gone.
    pub fn unbound_namespaces(&self) -> BTreeMap<i32, InterfaceKey> {
        self.interfaces
            .values()
            .filter(|entry| entry.owner.is_none() && entry.ended.is_none())
            .filter_map(|entry| Some((entry.info.peer_nsid?, entry.info.key)))
            .collect()
    }

    /// Namespaces that interfaces were moved into since the last call.
    pub fn take_moved_into(&mut self) -> BTreeSet<i32> {
        std::mem::take(&mut self.moved_into)
    }

    /// First processes of the containers that run, with their IDs. Members of another container's
    /// namespace are not among them: interfaces belong to the namespace's owner.
    pub fn processes(&self) -> Vec<(String, u32)> {
        self.containers
            .iter()
            .filter(|(_, entry)| !shares_namespace(&entry.info))
            .filter_map(|(id, entry)| Some((id.clone(), entry.info.pid?)))
            .collect()
    }

    /// Containers that run and whose namespace is known, with their process: what may have to be observed
    /// inside or by cgroup.
    pub fn looked_into(&self) -> impl Iterator<Item = (&ContainerInfo, u32, &Namespace)> {
        self.containers.values().filter_map(|entry| {
            let namespace = entry.namespace.as_ref()?;
            (is_live(&entry.info) && (namespace.host || !shares_namespace(&entry.info))).then_some(())?;
            Some((&entry.info, entry.info.pid?, namespace))
        })
    }

    /// Published ports of the containers that run, by container.
    pub fn published(&self) -> BTreeMap<String, Vec<PublishedPort>> {
        self.publishing().map(|(id, ports)| (id.to_owned(), ports.to_vec())).collect()
    }

    /// Whether these are the published ports.
    pub fn has_published(&self, ports: &BTreeMap<String, Vec<PublishedPort>>) -> bool {
        self.publishing().eq(ports.iter().map(|(id, ports)| (id.as_str(), ports.as_slice())))
    }

    fn publishing(&self) -> impl Iterator<Item = (&str, &[PublishedPort])> {
        self.containers
            .iter()
            .filter(|(_, entry)| is_live(&entry.info) && !entry.info.published.is_empty())
            .map(|(id, entry)| (id.as_str(), entry.info.published.as_slice()))
    }

    /// First processes of the containers whose end no engine would tell: no engine has told of them, or theirs
    /// does not answer. A process that an engine told of and
    /// that was never found is not among them: nothing can be said of its end.
    pub fn processes_without_engine(&self) -> Vec<Process> {
        let answers =
            |name: &str| self.engines.values().any(|engine| engine.name == name && engine.connected);
        self.containers
            .iter()
            .filter(|(_, entry)| !answers(&entry.info.engine))
            .filter_map(|(id, entry)| {
                let namespace = entry.namespace.as_ref().map(|namespace| namespace.identity);
                let was_found = namespace.is_some() || entry.info.engine == PROC;
                was_found.then_some(Process { container: id.clone(), pid: entry.info.pid?, namespace })
            })
            .collect()
    }

    /// Containers whose namespace has not been looked at since their process started, or since they were
    /// connected with another network; with their process.
    pub fn wanting_namespace(&self) -> Vec<(String, u32)> {
        self.containers
            .iter()
            .filter(|(_, entry)| entry.namespace.is_none())
            .filter_map(|(id, entry)| Some((id.clone(), entry.info.pid?)))
            .collect()
    }

    /// Whether a container runs whose namespace is about to be looked at again.
    pub fn is_to_be_looked_into(&self, id: &str) -> bool {
        self.containers.get(id).is_some_and(|entry| {
            entry.namespace.is_none() && entry.info.pid.is_some() && is_live(&entry.info)
        })
    }

    /// Whether any interface of a container was without an address when it was looked at.
    pub fn lacks_addresses(&self, id: &str) -> bool {
        let namespace = self.containers.get(id).and_then(|entry| entry.namespace.as_ref());
        namespace.is_some_and(|namespace| namespace.links.iter().any(|link| link.addresses.is_empty()))
    }

    /// The ifindex of an attachment to an interface of the host.
    pub fn ifindex_on_host(&self, key: InterfaceKey) -> Option<u32> {
        let info = &self.interfaces.get(&key)?.info;
        (info.place == Place::Host).then_some(info.ifindex)
    }

    /// Whether the engine at each of these endpoints has told its containers, or why it cannot.
    pub fn settled(&self, endpoints: &[String]) -> bool {
        endpoints.iter().all(|endpoint| {
            let status = self.engines.get(endpoint);
            self.absent.contains(endpoint)
                || status.is_some_and(|status| !status.connected || self.listed.contains(&status.name))
        })
    }

    /// Whether any engine is connected at the moment.
    pub fn any_engine(&self) -> bool {
        self.engines.values().any(|status| status.connected)
    }

    /// Whether what is attached on account of a container is to be let go; `wanted` is the container on whose account it
    /// is to be there now. That may be another's: a namespace that goes on, or whose number is used again.
    pub fn lets_go(&self, held: &str, wanted: Option<&str>) -> bool {
        match wanted {
            None => !self.is_to_be_looked_into(held),
            Some(wanted) => {
                wanted != held && !self.containers.get(held).is_some_and(|entry| is_live(&entry.info))
            }
        }
    }

    pub fn knows_container(&self, id: &str) -> bool {
        self.containers.contains_key(id)
    }

    fn detached(&mut self, sample: &Sample, now: Instant) {
        if let Some(entry) = self.interfaces.get_mut(&sample.key) {
            entry.sample(sample, now);
            entry.rates = None;
            entry.ended = Some(now);
        }
        self.hand_over(sample.key, now);
    }

    /// Gives what an interface that is gone has counted to its container. If that is not known, it may yet become
    /// so.
    pub(super) fn hand_over(&mut self, key: InterfaceKey, now: Instant) {
        if let Some(point) = self.point(key) {
            self.flows.end(key, point, now);
        }
        self.end_events(key, now);
        let Some(entry) = self.interfaces.remove(&key) else { return };
        if let Some(owner) = &entry.owner
            && let Some(container) = self.containers.get_mut(&owner.container)
        {
            container.retire(&entry, owner);
        } else {
            self.interfaces.insert(key, entry);
        }
    }

    fn all_containers(&mut self, engine: &str, containers: Vec<ContainerInfo>, now: Instant) {
        let listed: BTreeSet<String> = containers.iter().map(|info| info.id.clone()).collect();
        for (id, entry) in &mut self.containers {
            if entry.info.engine == engine && !listed.contains(id) {
                entry.removed(now);
            }
        }
        for info in containers {
            self.container(info, now);
        }
        self.listed.insert(engine.to_owned());
    }

    fn container(&mut self, info: ContainerInfo, now: Instant) {
        if info.engine == PROC
            && let Some(known) = self.containers.get(&info.id)
            && known.info.engine != PROC
        {
            return;
        }
        if shares_namespace(&info) {
            // Found by `/proc` it looked like the owner; the real one is bound next.
            for interface in self.interfaces.values_mut() {
                if interface.owner.as_ref().is_some_and(|owner| owner.container == info.id) {
                    interface.owner = None;
                }
            }
        }
        let entry = self.containers.entry(info.id.clone()).or_default();
        // What an interface has counted stays with the network that it was on when it is disconnected.
        for interface in self.interfaces.values_mut() {
            if interface.network.is_none()
                && let Some(owner) = interface.owner.as_ref().filter(|owner| owner.container == info.id)
                && network_of(&owner.inner, &info.endpoints).is_none()
            {
                interface.network = network_of(&owner.inner, &entry.info.endpoints).map(str::to_owned);
            }
        }
        // Another process, or networks connected or disconnected: what is inside may be new.
        if entry.info.pid != info.pid || places(&entry.info) != places(&info) {
            entry.namespace = None;
        }
        if is_live(&info) {
            entry.lived = true;
            entry.ended = None;
        } else if entry.ended.is_none() && entry.lived {
            entry.ended = Some(now);
        }
        if matches!(info.state, ContainerState::Exited | ContainerState::Dead) {
            entry.process_over.get_or_insert(now);
        } else {
            entry.process_over = None;
        }
        // What an engine says after the end has no endpoints any more; what it was on is still of use.
        let (endpoints, published) =
            (std::mem::take(&mut entry.info.endpoints), std::mem::take(&mut entry.info.published));
        entry.info = info;
        if !is_live(&entry.info) && entry.info.endpoints.iter().all(|endpoint| endpoint.addresses.is_empty())
        {
            entry.info.endpoints = endpoints;
            if entry.info.published.is_empty() {
                entry.info.published = published;
            }
        }
    }

    fn namespace(&mut self, id: &str, namespace: Namespace) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.looked_into = true;
        container.connected.clear();
        if shares_namespace(&container.info) {
            container.namespace = Some(namespace);
            return;
        }
        container.lived = true;
        for entry in self.interfaces.values_mut().filter(|entry| entry.ended.is_none()) {
            if entry.info.place != Place::Host {
                // It may have been given its name and addresses meanwhile.
                if let Some(owner) = entry.owner.as_mut().filter(|owner| owner.container == id)
                    && let Some(inner) =
                        namespace.links.iter().find(|link| link.ifindex == owner.inner.ifindex)
                {
                    owner.inner = inner.clone();
                }
                continue;
            }
            if entry.info.peer_nsid.is_none() || entry.info.peer_nsid != namespace.nsid {
                continue;
            }
            let ours = entry.owner.as_ref().is_none_or(|owner| owner.container == id);
            let inner = namespace.links.iter().find(|link| Some(link.ifindex) == entry.info.peer_ifindex);
            if let (true, Some(inner)) = (ours, inner) {
                entry.owner = Some(Owner { container: id.to_owned(), inner: inner.clone() });
            }
        }
        container.namespace = Some(namespace);
    }

    /// Bridges of networks whose engine does not name them: that which the veth of a container is a port of,
    /// if its address inside is the one that the container has on the network.
    fn learn_bridges(&mut self) {
        let is_unnamed = |network: &NetworkInfo| network.driver == "bridge" && network.bridge.is_none();
        if !self.networks.values().any(is_unnamed) {
            return;
        }
        let bridges = self.bridges();
        let mut learned = Vec::new();
        for entry in self.interfaces.values().filter(|entry| entry.ended.is_none()) {
            if let Some(owner) = &entry.owner
                && let Some(bridge) = entry.info.master.and_then(|master| bridges.get(&master))
                && let Some(container) = self.containers.get(&owner.container)
                && let Some(network) = network_of(&owner.inner, &container.info.endpoints)
            {
                learned.push((container.info.engine.clone(), network.to_owned(), bridge.clone()));
            }
        }
        for (engine, name, bridge) in learned {
            let network = self
                .networks
                .values_mut()
                .find(|network| network.engine == engine && network.name == name && is_unnamed(network));
            if let Some(network) = network {
                network.bridge = Some(bridge);
                self.refresh_networks();
            }
        }
    }

    /// Names of the host's bridges, by ifindex.
    pub(super) fn bridges(&self) -> BTreeMap<u32, String> {
        self.interfaces
            .values()
            .filter(|entry| entry.info.kind == InterfaceKind::Bridge && entry.ended.is_none())
            .map(|entry| (entry.info.ifindex, entry.info.name.clone()))
            .collect()
    }

    /// Finds the network of each port by its bridge, as far as there is a bridge and it is known.
    fn refresh_networks(&mut self) {
        let bridges = self.bridges();
        let names: BTreeMap<&str, &str> = self
            .networks
            .values()
            .filter_map(|network| Some((network.bridge.as_deref()?, network.name.as_str())))
            .collect();
        let network_of =
            |bridge: &String| names.get(bridge.as_str()).copied().unwrap_or(bridge.as_str()).to_owned();
        for entry in self.interfaces.values_mut().filter(|entry| entry.ended.is_none()) {
            for earlier in &mut entry.earlier {
                if let Some(name) = earlier.bridge.as_ref().and_then(|bridge| names.get(bridge.as_str())) {
                    earlier.network = Some((*name).to_owned());
                }
            }
            if entry.info.place != Place::Host {
                continue;
            }
            if entry.info.kind == InterfaceKind::Bridge {
                entry.network = Some(network_of(&entry.info.name));
            } else if let Some(master) = entry.info.master {
                if let Some(last) = entry.master.replace(master)
                    && last != master
                {
                    entry.leave(bridges.get(&last));
                }
                entry.network = bridges.get(&master).map(network_of);
            }
        }
    }
}

pub(super) fn is_live(info: &ContainerInfo) -> bool {
    matches!(info.state, ContainerState::Running | ContainerState::Paused | ContainerState::Restarting)
        || (info.state == ContainerState::Unknown && info.pid.is_some())
}

pub(super) fn shares_namespace(info: &ContainerInfo) -> bool {
    info.network_mode.starts_with("container:")
}

/// Where an engine says that a container is connected.
fn places(info: &ContainerInfo) -> Vec<(&str, &[IpAddr])> {
    info.endpoints
        .iter()
        .map(|endpoint| (endpoint.network_id.as_str(), endpoint.addresses.as_slice()))
        .collect()
}

/// The network that an interface inside a container is on, by its address there.
pub(super) fn network_of<'a>(inner: &InnerLink, endpoints: &'a [Endpoint]) -> Option<&'a str> {
    let shares_address =
        |endpoint: &&Endpoint| endpoint.addresses.iter().any(|address| inner.addresses.contains(address));
    let same_mac = |endpoint: &&Endpoint| endpoint.mac.as_ref().is_some_and(|mac| *mac == inner.mac);
    let found = endpoints.iter().find(shares_address).or_else(|| endpoints.iter().find(same_mac))?;
    Some(found.network.as_str())
}

impl InterfaceEntry {
    fn new(
        info: InterfaceInfo,
        baseline: Option<Baseline>,
        kernel: KernelStats,
        since: Option<Instant>,
    ) -> Self {
        Self {
            info,
            baseline,
            missed: Baseline::default(),
            reattached: 0,
            reconciled: Reconciled::default(),
            kernel_start: kernel,
            kernel: None,
            ingress: Traffic::default(),
            egress: Traffic::default(),
            comparison: Comparison::default(),
            sampled: None,
            rates: None,
            owner: None,
            network: None,
            master: None,
            since,
            earlier: Vec::new(),
            ended: None,
        }
    }

    /// What the container behind it has received and sent on the network that it is on now: the other end's
    /// view of a host's interface.
    pub fn of_container(&self) -> Side {
        self.side(self.share(), self.rates)
    }

    /// The same of the networks that it was on before.
    pub fn of_container_earlier(&self) -> impl Iterator<Item = (Option<&str>, Side)> {
        self.earlier.iter().map(|earlier| (earlier.network.as_deref(), self.side(earlier.share, None)))
    }

    fn side(&self, share: Share, rates: Option<Rates>) -> Side {
        let Share { ingress, egress, baseline, drops } = share;
        let side = Side { rx: ingress, tx: egress, before: baseline, rates, drops };
        if self.info.place == Place::Host { side.swapped() } else { side }
    }

    /// What it has counted on the network that it is on now.
    fn share(&self) -> Share {
        let mut share = Share {
            ingress: self.ingress,
            egress: self.egress,
            baseline: self.baseline,
            drops: self.drops(),
        };
        for Earlier { share: earlier, .. } in &self.earlier {
            share.ingress = share.ingress.since(&earlier.ingress);
            share.egress = share.egress.since(&earlier.egress);
            // All that was before netobs was on the first; what it missed later, where it was then.
            share.baseline = share.baseline.zip(earlier.baseline).map(|(all, then)| all.since(then));
            share.drops = share.drops.map(|drops| drops.since(earlier.drops.unwrap_or_default()));
        }
        share
    }

    /// Leaves the network of a bridge: what was counted so far was counted there.
    fn leave(&mut self, bridge: Option<&String>) {
        let share = self.share();
        let network = self.network.take();
        let bridge = bridge.cloned().or_else(|| network.clone());
        if let Some(again) = self.earlier.iter_mut().find(|earlier| earlier.bridge == bridge) {
            again.share += share;
        } else {
            self.earlier.push(Earlier { bridge, network, share });
        }
    }

    /// The bridge that it is a port of, or was last, by ifindex.
    pub fn last_master(&self) -> Option<u32> {
        self.info.master.or(self.master)
    }

    /// The network, where it is known: of a host's interface by its bridge, else by the address inside.
    pub fn network(&self, container: &ContainerInfo) -> Option<String> {
        match (&self.owner, self.info.place) {
            (_, Place::Cgroup) => Some("host".to_owned()),
            (Some(owner), _) if self.network.is_none() => {
                network_of(&owner.inner, &container.endpoints).map(str::to_owned)
            }
            _ => self.network.clone(),
        }
    }

    fn sample(&mut self, sample: &Sample, now: Instant) {
        let (ingress, egress) = (Traffic::from(&sample.ingress), Traffic::from(&sample.egress));
        if ingress.packets < self.ingress.packets || egress.packets < self.egress.packets {
            // Read before the last one, by another thread, and told of after it.
            return;
        }
        let (ingress, egress) = (ingress.after(&self.ingress), egress.after(&self.egress));
        if let Some(elapsed) = self.sampled.map(|last| now.duration_since(last).as_secs_f64())
            && elapsed > 0.0
        {
            let per_second = |new: u64, old: u64| new.saturating_sub(old) as f64 / elapsed;
            self.rates = Some(Rates {
                rx_packets_per_second: per_second(ingress.packets, self.ingress.packets),
                rx_bits_per_second: 8.0 * per_second(ingress.bytes, self.ingress.bytes),
                tx_packets_per_second: per_second(egress.packets, self.egress.packets),
                tx_bits_per_second: 8.0 * per_second(egress.bytes, self.egress.bytes),
            });
        }
        self.sampled = Some(now);
        self.ingress = ingress;
        self.egress = egress;
        self.compare(sample.senders);
        if sample.kernel.is_some() {
            self.kernel = sample.kernel;
        }
    }

    fn reconcile(&mut self, reading: &Reading) {
        let kind = self.info.kind;
        if let Some(baseline) = self.baseline.filter(|_| is_comparable(kind)) {
            self.reconciled.read(reading, kind, baseline, &self.kernel_start);
        }
    }

    /// Attached again: what it has not counted by now, others have seen to.
    fn reattached(&mut self, baseline: Option<Baseline>) {
        self.reattached += 1;
        self.reconciled.reset();
        if let Some((before, now)) = self.baseline.zip(baseline) {
            // Never less than was said: a packet on its way when it was read may be counted later.
            let uncertain_packets = now.uncertain_packets;
            let missed = Baseline { uncertain_packets, ..now.since(before) };
            self.missed = self.missed + missed;
            self.baseline = Some(before + missed);
        }
    }

    /// Since attach, in the interface's own directions.
    pub fn drops(&self) -> Option<Drops> {
        let (kernel, start) = (self.kernel?, self.kernel_start);
        self.baseline?;
        Some(Drops {
            rx_dropped: kernel.rx_dropped.saturating_sub(start.rx_dropped),
            tx_dropped: kernel.tx_dropped.saturating_sub(start.tx_dropped),
            rx_errors: kernel.rx_errors.saturating_sub(start.rx_errors),
            tx_errors: kernel.tx_errors.saturating_sub(start.tx_errors),
        })
    }
}

impl ContainerEntry {
    fn removed(&mut self, now: Instant) {
        self.info.state = ContainerState::Removed;
        self.info.pid = None;
        self.process_over.get_or_insert(now);
        self.ended.get_or_insert(now);
    }

    /// One that an engine has told of may be started again by it.
    fn process_ended(&mut self, now: Instant) {
        if self.info.engine == PROC {
            return self.removed(now);
        }
        self.info.state = ContainerState::Exited;
        self.info.pid = None;
        self.process_over.get_or_insert(now);
        self.ended.get_or_insert(now);
    }

    /// Takes over the totals of an interface of it that is gone.
    fn retire(&mut self, entry: &InterfaceEntry, owner: &Owner) {
        for (network, side) in entry.of_container_earlier() {
            self.retire_side(entry, owner, network.map(str::to_owned), side);
        }
        self.retire_side(entry, owner, entry.network(&self.info), entry.of_container());
        self.foreign_mac = sum_some(self.foreign_mac, entry.foreign_mac());
    }

    fn retire_side(&mut self, entry: &InterfaceEntry, owner: &Owner, network: Option<String>, side: Side) {
        let key = (owner.inner.name.clone(), network);
        let is_new = !self.retired.contains_key(&key);
        let retired = self.retired.entry(key).or_default();
        retired.rx += &side.rx;
        retired.tx += &side.tx;
        retired.before = if is_new {
            side.before
        } else {
            retired.before.zip(side.before).map(|(before, more)| before + more)
        };
        if let Some(drops) = side.drops {
            retired.drops = Some(retired.drops.unwrap_or_default() + drops);
        }
        retired.inner = owner.inner.clone();
        retired.kind = Some(entry.info.kind);
        retired.place = Some(entry.info.place);
    }
}

impl std::ops::AddAssign for Share {
    fn add_assign(&mut self, other: Self) {
        self.ingress += &other.ingress;
        self.egress += &other.egress;
        self.baseline = self.baseline.zip(other.baseline).map(|(sum, more)| sum + more);
        self.drops = self.drops.zip(other.drops).map(|(sum, more)| sum + more);
    }
}

/// One interface's figures, from one side.
pub(super) struct Side {
    pub rx: Traffic,
    pub tx: Traffic,
    pub before: Option<Baseline>,
    pub rates: Option<Rates>,
    pub drops: Option<Drops>,
}

impl Side {
    /// The other end's: what one end sends, the other receives.
    fn swapped(self) -> Self {
        Self {
            rx: self.tx,
            tx: self.rx,
            before: self.before.map(Baseline::swapped),
            rates: self.rates.map(Rates::swapped),
            drops: self.drops.map(Drops::swapped),
        }
    }
}
