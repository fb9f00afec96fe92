//! The one place that knows all parts: kernel, discovery and model, and lets them meet.
//!
//! [`Agent`] owns the state. Updates come over one bounded channel from the attaching thread and the
//! engines' tasks; counters are read when somebody asks for a sample.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;

use crate::{
    attacher::{Attacher, Shared, lock},
    discovery::{
        engine::EngineTask,
        kubernetes, namespace,
        netlink::{self, Changes},
        procfs,
    },
    drain::Drain,
    ebpf::{
        Counted, EventRing,
        drops::{DropOptions, Drops},
        first_line,
        tcp::{Tcp, TcpOptions},
    },
    events::EventThread,
    inside::Inside,
    model::{
        ContainerInfo, ContainerState, InterfaceKey, KernelStats, Looked, NetworkInfo, Point, PublishedPort,
        Snapshot, State, Update,
        conversation::{Conversation, Conversations},
        drops::{Directory, HostNames},
        flow::FlowOptions,
        reconcile::Reading,
        state::{NAMESPACES, PROC, Process},
    },
    netlink::{Netlink, stats},
    resolvers::Resolvers,
};

/// Updates that may wait to be applied; who has more waits.
const UPDATE_QUEUE: usize = 16 * 1024;

/// How soon a namespace that nobody is known to own is looked up again, and how that grows.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// How often interfaces that have ended are brought together with containers, at most.
const ADOPT_PAUSE: Duration = Duration::from_millis(500);

/// How often what has ended is looked through, whether or not anybody asks for samples.
const CLEANUP_PAUSE: Duration = Duration::from_secs(10);

/// How often dropped packets are read, whether or not anybody asks for samples: the kernel's map of them is
/// bounded.
const DROPS_PAUSE: Duration = Duration::from_secs(1);

/// How long the first reading of dropped packets waits for the engines to tell whose addresses are whose.
const DROPS_PATIENCE: Duration = Duration::from_secs(3);

/// How often it is read how connections fare, whether or not anybody asks for samples: the kernel's maps are
/// bounded.
const TCP_PAUSE: Duration = Duration::from_secs(1);

/// How often our counters are held against the kernel's own, and again if they differ.
const RECONCILE_PAUSE: Duration = Duration::from_secs(5);
const RECONCILE_AGAIN: Duration = Duration::from_millis(500);

/// The pause is at least so many times the CPU time that a comparison takes: 2 ms a second, whatever there is to compare.
const RECONCILE_REST: u32 = 500;

/// Between the kernel's counters and ours: by then a packet that the kernel has counted has passed our program.
const RECONCILE_BOUND: Duration = Duration::from_millis(50);

/// Names of features, where they cannot be had.
const DROPS: &str = "drops";
const TCP: &str = "tcp";

/// A scan of `/proc` for containers is not repeated sooner.
const SCAN_PAUSE: Duration = Duration::from_millis(10);

/// How often `/proc` is scanned where no engine tells of containers: those that no interface of the host
/// leads to (on the host's network, on macvlan) show up in no other way.
const SCAN_WITHOUT_ENGINE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Config {
    pub flows: FlowOptions,
    /// How often flows are read and what is idle is taken back. None: the observer counts none.
    pub flow_interval: Option<Duration>,
    /// How long what has ended is still told of.
    pub grace: Duration,
    /// None: dropped packets are not looked for.
    pub drops: Option<DropOptions>,
    /// Whether counters are held against the kernel's own: the observer counts all that passes.
    pub reconcile: bool,
    /// What is told of packets one by one, and which. None: nothing.
    pub events: Option<(EventRing, Looked)>,
    pub engines: Vec<EngineTask>,
    /// Name of the node in Kubernetes, where it is known.
    pub node: Option<String>,
    /// None: its API is not asked.
    pub kubernetes: Option<kubernetes::Api>,
    /// Where `/proc` of the host is.
    pub proc_root: PathBuf,
    /// Containers and networks that are known without any engine: the demo's. None: find them.
    pub known: Option<(Vec<ContainerInfo>, Vec<NetworkInfo>)>,
}

impl Config {
    /// For an observer that counts no flows, without any engine.
    pub fn new(grace: Duration) -> Self {
        Self {
            flows: FlowOptions { max_flows: 0, ..FlowOptions::default() },
            flow_interval: None,
            grace,
            drops: None,
            reconcile: false,
            events: None,
            engines: Vec::new(),
            node: None,
            kubernetes: None,
            proc_root: PathBuf::from("/proc"),
            known: None,
        }
    }
}

pub struct Agent {
    state: State,
    observer: Shared,
    netlink: Netlink,
    /// Of the addresses in the state.
    address_changes: Changes,
    /// Of `host_names`.
    link_changes: Changes,
    host_names: HostNames,
    updates: mpsc::Receiver<Update>,
    proc_root: PathBuf,
    /// Endpoints of the engines that are asked.
    engines: Vec<String>,
    /// Namespaces without a known container: when to look again, and the pause after that.
    retries: BTreeMap<i32, Retry>,
    /// Namespaces that interfaces of the host were moved into, until somebody is found there.
    moved_into: BTreeSet<i32>,
    last_scan: Option<Instant>,
    next_adopt: Instant,
    /// None: everything is known.
    next_scan_without_engine: Option<Instant>,
    last_cleanup: Instant,
    inside: Inside,
    resolvers: Resolvers,
    /// None: not looked for, or not to be had.
    drops: Option<Drops>,
    next_drops: Instant,
    /// None: not looked at, or not to be had.
    tcp: Option<Tcp>,
    next_tcp: Instant,
    /// When counters are held against the kernel's, if they are at all.
    next_reconcile: Option<Instant>,
    /// The kernel's a moment ago, and the CPU time that it took to read them.
    reconcile_from: Option<(KernelCounters, Duration)>,
    started: Instant,
    /// Published ports by container, as they were when the host was last looked at.
    published: BTreeMap<String, Vec<PublishedPort>>,
    _drain: Option<Drain>,
    _events: Option<EventThread>,
    /// Its thread shares the observer: when that has ended, the observer goes and everything is detached.
    _attacher: Attacher,
}

impl Agent {
    /// Attaches to all that is there, and starts following what comes. Must be called inside a tokio
    /// runtime, which runs the engines' tasks.
    ///
    /// # Errors
    /// When netlink or a thread is not to be had; nothing stays attached then.
    pub fn start(config: Config, observer: Shared) -> io::Result<Self> {
        let mut state = State::new(lock(&observer).mode().to_string(), config.grace)
            .with_flows(config.flows)
            .on_node(config.node, config.kubernetes.is_some());
        if let Some((_, looked)) = &config.events {
            state = state.with_events(*looked);
        }
        let (sender, updates) = mpsc::channel(UPDATE_QUEUE);
        let attacher = {
            // The first listing of a host with more interfaces than the queue holds would wait for us.
            let (observer, sender) = (Arc::clone(&observer), sender.clone());
            let proc_root = config.proc_root.clone();
            std::thread::spawn(move || Attacher::start(observer, sender, &proc_root))
        };
        let now = Instant::now();
        let drops = config.drops.and_then(|options| load_drops(&options, &mut state, now));
        let finds_containers = config.known.is_none();
        let (containers, networks) = config.known.unwrap_or_default();
        for info in containers {
            state.apply(Update::Container(info), now);
        }
        if let Some(engine) = networks.first().map(|network| network.engine.clone()) {
            state.apply(Update::Networks { engine, networks }, now);
        }
        let mut agent_updates = updates;
        while !attacher.is_finished() {
            match agent_updates.try_recv() {
                Ok(update) => state.apply(update, Instant::now()),
                Err(_) => std::thread::sleep(Duration::from_micros(200)),
            }
        }
        let attacher = attacher.join().map_err(|_| io::Error::other("the attaching thread failed"))??;
        let engines = config.engines.iter().map(EngineTask::endpoint).collect();
        for engine in config.engines {
            tokio::spawn(engine.run(sender.clone()));
        }
        if let Some(api) = config.kubernetes {
            api.follow(&sender);
        }
        let drain = config
            .flow_interval
            .map(|interval| Drain::start(Arc::clone(&observer), sender.clone(), interval))
            .transpose()?;
        let events = config
            .events
            .map(|(ring, _)| EventThread::start(ring, Arc::clone(&observer), sender.clone()))
            .transpose()?;
        let inside = Inside::new(Arc::clone(&observer), config.proc_root.clone());
        let resolvers = Resolvers::new(Arc::clone(&observer), config.proc_root.clone());
        let mut agent = Self {
            state,
            observer,
            inside,
            resolvers,
            drops,
            next_drops: now,
            tcp: None,
            next_tcp: now,
            next_reconcile: config.reconcile.then_some(now + RECONCILE_AGAIN),
            reconcile_from: None,
            started: now,
            published: BTreeMap::new(),
            _drain: drain,
            _events: events,
            netlink: Netlink::connect()?,
            address_changes: Changes::of_addresses()?,
            link_changes: Changes::of_links()?,
            host_names: HostNames::default(),
            updates: agent_updates,
            proc_root: config.proc_root,
            engines,
            retries: BTreeMap::new(),
            moved_into: BTreeSet::new(),
            last_scan: None,
            next_adopt: Instant::now(),
            next_scan_without_engine: finds_containers.then_some(now),
            last_cleanup: now,
            _attacher: attacher,
        };
        agent.look_at_host(now);
        agent.apply_waiting();
        Ok(agent)
    }

    /// Waits for something to change and takes it in. Cancel-safe.
    pub async fn changed(&mut self) {
        let cleanup = self.last_cleanup + CLEANUP_PAUSE;
        let scan = self.next_scan_without_engine.filter(|_| !self.state.any_engine());
        let drops = self.drops.is_some().then_some(self.next_drops);
        let tcp = self.tcp.is_some().then_some(self.next_tcp);
        let retries = self.retries.values().map(|retry| retry.at);
        let retry = retries
            .chain(self.inside.next_try())
            .chain(self.resolvers.next_try())
            .chain(scan)
            .chain(drops)
            .chain(tcp)
            .chain(self.next_reconcile)
            .min();
        let wait = tokio::time::sleep_until(retry.map_or(cleanup, |at| at.min(cleanup)).into());
        tokio::select! {
            update = self.updates.recv() => match update {
                Some(update) => self.apply(update, Instant::now()),
                None => std::future::pending().await,
            },
            () = wait => {}
        }
        self.apply_waiting();
        if self.next_drops <= Instant::now() {
            self.read_drops();
        }
        if self.next_tcp <= Instant::now() {
            self.read_tcp();
        }
        if self.next_reconcile.is_some_and(|at| at <= Instant::now()) {
            self.reconcile();
        }
        if self.last_cleanup.elapsed() >= CLEANUP_PAUSE {
            self.forget();
        }
    }

    /// Waits until every engine has told its containers or why it cannot, and the API of Kubernetes its services, or
    /// for `limit`.
    pub async fn settle(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.settled() || self.state.awaits_services() {
            if tokio::time::timeout_at(end.into(), self.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Whether every engine has told its containers, or why it cannot.
    pub fn settled(&self) -> bool {
        self.state.settled(&self.engines)
    }

    /// Looks for dropped packets from now on, if it does not yet and has not found out that it cannot.
    pub fn look_for_drops(&mut self, options: &DropOptions) {
        if self.drops.is_none() && !self.state.is_degraded(DROPS) {
            self.drops = load_drops(options, &mut self.state, Instant::now());
        }
    }

    /// Whether dropped packets are looked for.
    pub fn looks_for_drops(&self) -> bool {
        self.drops.is_some()
    }

    /// Interfaces that are observed.
    pub fn attached(&self) -> usize {
        lock(&self.observer).attached()
    }

    /// Every place that is attached to or could be, and whose it is as far as that is known by now.
    pub fn points(&self) -> Vec<Point> {
        self.state.points()
    }

    /// Reads all counters, netobs's and the kernel's own, and tells what is known by now.
    pub fn sample(&mut self) -> Snapshot {
        self.apply_waiting();
        self.read_drops();
        self.read_tcp();
        self.forget();
        let now = Instant::now();
        self.resolvers.look(&mut self.state, now);
        let inside = self.inside.kernel_stats(&mut self.netlink, &mut self.state, now);
        // Flows first: what they have is in the counters already.
        self.peek_flows();
        let counters = lock(&self.observer).read_all();
        let kernel = KernelCounters { host: self.kernel_stats(), inside };
        let samples = counters
            .into_iter()
            .map(|(key, counted)| counted.sample(key, kernel.of(key, self.state.ifindex_on_host(key))))
            .collect();
        let now = Instant::now();
        self.state.apply(Update::Samples(samples), now);
        for (key, mac, judged) in self.state.misjudged_senders() {
            lock(&self.observer).correct_sender(key, mac, judged);
        }
        self.state.snapshot(now, SystemTime::now())
    }

    /// Reads the kernel's counters; the next time ours, and the kernel's again.
    fn reconcile(&mut self) {
        let began = cpu_time();
        let took = || cpu_time().saturating_sub(began);
        let Some((from, took_before)) = self.reconcile_from.take() else {
            self.reconcile_from = Some((self.kernel_counters(), took()));
            self.next_reconcile = Some(Instant::now() + RECONCILE_BOUND);
            return;
        };
        let counters = lock(&self.observer).read_all();
        let to = self.kernel_counters();
        let reading = |(key, Counted { ingress, egress, .. }): (InterfaceKey, Counted)| {
            let ifindex = self.state.ifindex_on_host(key);
            let (before, after) = (from.of(key, ifindex)?, to.of(key, ifindex)?);
            Some(Reading { key, before, ingress, egress, after })
        };
        let readings = counters.into_iter().filter_map(reading).collect();
        self.state.apply(Update::Reconciled(readings), Instant::now());
        let rest = (took_before + took()) * RECONCILE_REST;
        let pause = if self.state.has_suspects() { RECONCILE_AGAIN } else { RECONCILE_PAUSE };
        self.next_reconcile = Some(Instant::now() + pause.max(rest));
    }

    fn kernel_counters(&mut self) -> KernelCounters {
        KernelCounters { host: self.kernel_stats(), inside: self.inside.counters(&mut self.netlink) }
    }

    /// The conversations that now are, those that `keep` keeps, at most `limit`.
    pub fn flows(&mut self, keep: impl Fn(&Conversation) -> bool, limit: usize) -> Conversations {
        self.apply_waiting();
        self.read_tcp();
        self.peek_flows();
        let now = Instant::now();
        self.state.conversations(now, SystemTime::now(), keep, limit)
    }

    /// Takes in what flows have counted as far as that can be read without waiting.
    fn peek_flows(&mut self) {
        self.look_at_addresses(Instant::now());
        loop {
            let records = lock(&self.observer).peek_flows();
            let Some(records) = records else { break };
            self.state.apply(Update::Flows(records), Instant::now());
        }
    }

    /// Reads what was dropped since the last time. Not before it can be told whose it was.
    fn read_drops(&mut self) {
        let now = Instant::now();
        self.next_drops = now + DROPS_PAUSE;
        let Some(drops) = &mut self.drops else { return };
        if !self.state.settled(&self.engines) && now.duration_since(self.started) < DROPS_PATIENCE {
            return;
        }
        match drops.read() {
            Ok(mut sample) => {
                if !sample.events.is_empty() {
                    sample.host = self.host_names();
                }
                self.state.apply(Update::Works { feature: DROPS }, now);
                self.state.apply(Update::Drops(Box::new(sample)), now);
            }
            Err(error) => {
                self.state.apply(Update::Degraded { feature: DROPS, why: error.to_string() }, now);
            }
        }
    }

    /// What the host calls its own, now.
    pub fn host_names(&mut self) -> HostNames {
        if self.link_changes.to_list() {
            let links = netlink::links(&mut self.netlink, None);
            match &links {
                Ok(_) => self.link_changes.listed(),
                Err(error) => tracing::warn!(%error, "list the host's interfaces"),
            }
            let own = procfs::netns_identity(&self.proc_root, std::process::id());
            self.host_names = HostNames {
                netns: own.ok().map(|(_, inode)| inode),
                links: links.unwrap_or_default().into_iter().map(|link| (link.ifindex, link.name)).collect(),
            };
        }
        self.host_names.clone()
    }

    /// By what it can be told now whose a packet is.
    pub fn directory(&self, host: HostNames, since: Instant) -> Directory {
        self.state.directory(host, since)
    }

    /// Looks from now on how TCP connections fare. What cannot be had of it is degraded, and nothing else suffers.
    pub fn look_at_tcp(&mut self, options: &TcpOptions) {
        let now = Instant::now();
        match Tcp::load(options) {
            Ok(tcp) => {
                for (feature, why) in &tcp.degraded {
                    self.state.apply(Update::Degraded { feature: feature.name(), why: why.clone() }, now);
                }
                self.tcp = Some(tcp);
            }
            Err(error) => {
                tracing::debug!(%error, "load the programs for TCP");
                self.state.apply(Update::Degraded { feature: TCP, why: first_line(&error) }, now);
            }
        }
    }

    /// Reads how connections have fared since the last time.
    fn read_tcp(&mut self) {
        let now = Instant::now();
        self.next_tcp = now + TCP_PAUSE;
        let Some(tcp) = &mut self.tcp else { return };
        match tcp.read() {
            Ok(sample) => {
                self.state.apply(Update::Works { feature: TCP }, now);
                self.state.apply(Update::Tcp(Box::new(sample)), now);
            }
            Err(error) => self.state.apply(Update::Degraded { feature: TCP, why: error.to_string() }, now),
        }
    }

    /// Takes in what is waiting, then finds out whose the new namespaces are.
    fn apply_waiting(&mut self) {
        let now = Instant::now();
        while let Ok(update) = self.updates.try_recv() {
            self.apply(update, now);
        }
        for (id, pid) in self.state.wanting_namespace() {
            self.look_into(id, pid);
        }
        self.scan_without_engine(now);
        self.attribute(now);
        if self.next_adopt <= now {
            self.next_adopt = now + ADOPT_PAUSE;
            self.state.adopt(now);
        }
        self.inside.reconcile(&mut self.state, now);
        self.resolvers.reconcile(&mut self.state, now);
        if !self.state.has_published(&self.published) {
            self.published = self.state.published();
            self.look_at_host(now);
        }
    }

    fn apply(&mut self, update: Update, now: Instant) {
        if matches!(update, Update::Flows(_)) {
            self.look_at_addresses(now);
        }
        self.state.apply(update, now);
    }

    /// What tells one way to a container from another.
    fn look_at_host(&mut self, now: Instant) {
        self.look_at_addresses(now);
        let proxies = if self.published.is_empty() {
            BTreeSet::new()
        } else {
            procfs::proxies(&self.proc_root).unwrap_or_default()
        };
        self.state.apply(Update::Proxies(proxies), now);
    }

    fn look_at_addresses(&mut self, now: Instant) {
        if !self.address_changes.to_list() {
            return;
        }
        match namespace::own_addresses(&mut self.netlink) {
            Ok(addresses) => {
                self.address_changes.listed();
                self.state.apply(Update::HostAddresses(addresses), now);
            }
            Err(error) => tracing::warn!(%error, "list the host's addresses"),
        }
    }

    /// Finds containers for veths that lead into a namespace of nobody's, and for namespaces that
    /// interfaces were moved into.
    fn attribute(&mut self, now: Instant) {
        // Another namespace, whatever was done for the one that had its number.
        for nsid in self.state.take_moved_into() {
            self.retries.remove(&nsid);
            self.moved_into.insert(nsid);
        }
        let unbound = self.state.unbound_namespaces();
        let mut wanted: BTreeSet<i32> = unbound.keys().copied().collect();
        wanted.extend(&self.moved_into);
        self.retries.retain(|nsid, retry| {
            wanted.contains(nsid) && unbound.get(nsid).is_none_or(|veth| retry.veth == Some(*veth))
        });
        let due: Vec<i32> = wanted
            .into_iter()
            .filter(|nsid| self.retries.get(nsid).is_none_or(|retry| retry.at <= now))
            .collect();
        if due.is_empty() {
            return;
        }
        for (id, pid) in self.state.processes() {
            if let Ok(Some(nsid)) = namespace::nsid(&mut self.netlink, pid)
                && due.contains(&nsid)
            {
                self.look_into(id, pid);
                self.moved_into.remove(&nsid);
            }
        }
        let unknown = self.unknown_namespaces();
        if unknown.iter().any(|nsid| due.contains(nsid)) {
            self.scan_processes(Some(&due), now);
        }
        let still = self.unknown_namespaces();
        for nsid in due {
            if still.contains(&nsid) {
                let pause =
                    self.retries.get(&nsid).map_or(RETRY_FIRST, |retry| (retry.pause * 2).min(RETRY_LAST));
                let veth = unbound.get(&nsid).copied();
                self.retries.insert(nsid, Retry { veth, at: now + pause, pause });
                // Not a container's, as it seems; if it is, its engine will say so.
                if pause == RETRY_LAST {
                    self.moved_into.remove(&nsid);
                }
            } else {
                self.retries.remove(&nsid);
            }
        }
    }

    /// Namespaces whose container has yet to be found.
    fn unknown_namespaces(&self) -> BTreeSet<i32> {
        let unbound = self.state.unbound_namespaces().into_keys();
        unbound.chain(self.moved_into.iter().copied()).collect()
    }

    /// Containers by the cgroup paths of their processes: where no engine answers, or not yet. Those in
    /// certain namespaces, or all that are not known.
    fn scan_processes(&mut self, wanted: Option<&[i32]>, now: Instant) {
        if self.last_scan.is_some_and(|last| now.duration_since(last) < SCAN_PAUSE) {
            return;
        }
        self.last_scan = Some(now);
        let processes = match procfs::containers(&self.proc_root) {
            Ok(processes) => {
                self.state.apply(Update::Works { feature: "processes" }, now);
                processes
            }
            Err(error) => {
                let why = format!("{}: {error}", self.proc_root.display());
                return self.state.apply(Update::Degraded { feature: "processes", why }, now);
            }
        };
        for process in processes {
            let known = self.state.knows_container(&process.container_id);
            match wanted {
                Some(wanted) => {
                    let Ok(Some(nsid)) = namespace::nsid(&mut self.netlink, process.pid) else { continue };
                    if !wanted.contains(&nsid) {
                        continue;
                    }
                    self.moved_into.remove(&nsid);
                }
                None if known => continue,
                None => {}
            }
            let id = process.container_id.clone();
            if !known {
                self.state.apply(Update::Container(unnamed(&id, process.pid)), now);
            }
            self.look_into(id, process.pid);
        }
    }

    /// Without an engine, containers are looked for from time to time.
    fn scan_without_engine(&mut self, now: Instant) {
        if !self.state.any_engine() && self.next_scan_without_engine.is_some_and(|at| at <= now) {
            self.next_scan_without_engine = Some(now + SCAN_WITHOUT_ENGINE);
            self.scan_processes(None, now);
        }
    }

    fn look_into(&mut self, id: String, pid: u32) {
        match namespace::of_process(&mut self.netlink, &self.proc_root, pid) {
            Ok(namespace) => self.state.apply(Update::Namespace { id, namespace }, Instant::now()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let why =
                    "it may not be told which network namespace a container's process is in (CAP_SYS_PTRACE)";
                let degraded = Update::Degraded { feature: NAMESPACES, why: why.to_owned() };
                self.state.apply(degraded, Instant::now());
            }
            // It has ended meanwhile.
            Err(error) => tracing::debug!(%error, pid, "look into the namespace of a process"),
        }
    }

    /// Drops what has ended long enough ago, and finds what no engine reports the end of.
    fn forget(&mut self) {
        self.last_cleanup = Instant::now();
        self.state.expire(self.last_cleanup);
        for Process { container, pid, namespace } in self.state.processes_without_engine() {
            let now_there = procfs::netns_identity(&self.proc_root, pid).ok();
            // In another namespace it is another process with the same number.
            if now_there.is_none() || namespace.is_some_and(|namespace| Some(namespace) != now_there) {
                match self.another_process(&container) {
                    Some(pid) => {
                        self.state.apply(Update::Container(unnamed(&container, pid)), Instant::now());
                        self.look_into(container, pid);
                    }
                    None => self.state.apply(Update::Ended { id: container }, Instant::now()),
                }
            } else if self.state.lacks_addresses(&container) {
                // Seen while it was set up; there is no engine to tell when that is done.
                self.look_into(container, pid);
            }
        }
        self.look_at_host(Instant::now());
    }

    /// A container goes on without the process that it was found by, as long as there is another.
    fn another_process(&self, container: &str) -> Option<u32> {
        let processes = procfs::containers(&self.proc_root).ok()?;
        processes.into_iter().find(|process| process.container_id == container).map(|process| process.pid)
    }

    fn kernel_stats(&mut self) -> BTreeMap<u32, KernelStats> {
        match stats(&mut self.netlink, |stats| stats.into()) {
            Ok(stats) => {
                self.state.apply(Update::Works { feature: "kernel counters" }, Instant::now());
                stats
            }
            Err(error) => {
                let why = error.to_string();
                self.state.apply(Update::Degraded { feature: "kernel counters", why }, Instant::now());
                BTreeMap::new()
            }
        }
    }
}

/// When to look again whose a namespace is.
struct Retry {
    /// That leads there; none if none did when it was looked.
    veth: Option<InterfaceKey>,
    at: Instant,
    pause: Duration,
}

/// The kernel's counters at one time.
struct KernelCounters {
    /// By ifindex.
    host: BTreeMap<u32, KernelStats>,
    inside: BTreeMap<InterfaceKey, KernelStats>,
}

impl KernelCounters {
    fn of(&self, key: InterfaceKey, ifindex_on_host: Option<u32>) -> Option<KernelStats> {
        ifindex_on_host.map_or_else(|| self.inside.get(&key), |ifindex| self.host.get(&ifindex)).copied()
    }
}

/// What this thread has used; nothing where that is not to be had.
fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// None, and a degradation with its reason, where it cannot be had: nothing else suffers.
fn load_drops(options: &DropOptions, state: &mut State, now: Instant) -> Option<Drops> {
    match Drops::load(options) {
        Ok(drops) => {
            if let Some(why) = drops.degraded.clone() {
                state.apply(Update::Degraded { feature: "drop places", why }, now);
            }
            Some(drops)
        }
        Err(error) => {
            tracing::debug!(%error, "load the program for dropped packets");
            state.apply(Update::Degraded { feature: DROPS, why: first_line(&error) }, now);
            None
        }
    }
}

fn unnamed(id: &str, pid: u32) -> ContainerInfo {
    ContainerInfo {
        id: id.to_owned(),
        state: ContainerState::Unknown,
        engine: PROC.to_owned(),
        pid: Some(pid),
        ..ContainerInfo::default()
    }
}
