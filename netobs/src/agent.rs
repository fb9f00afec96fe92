//! The one place that knows all parts: kernel, discovery and model, and lets them meet.
//!
//! [`Agent`] owns the state. Updates come over one bounded channel from the attaching thread and the
//! engines' tasks; counters are read when somebody asks for a sample.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime},
};

use tokio::sync::mpsc;

use crate::{
    attacher::{Attacher, Shared, lock},
    discovery::{engine::EngineTask, namespace, netlink, procfs},
    ebpf::{AttachMode, LoadError, Observer, Options},
    model::{
        ContainerInfo, ContainerState, KernelStats, NetworkInfo, Sample, Snapshot, State, Update, state::PROC,
    },
    netlink::Netlink,
};

/// Updates that may wait to be applied; who has more waits.
const UPDATE_QUEUE: usize = 16 * 1024;

/// How soon a namespace that nobody is known to own is looked up again, and how that grows.
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// How often what has ended is looked through, whether or not anybody asks for samples.
const CLEANUP_PAUSE: Duration = Duration::from_secs(10);

/// A scan of `/proc` for containers is not repeated sooner.
const SCAN_PAUSE: Duration = Duration::from_millis(10);

#[derive(Debug)]
pub struct Config {
    pub max_interfaces: u32,
    pub mode: AttachMode,
    /// See [`Options::log`].
    pub log_programs: bool,
    /// How long what has ended is still told of.
    pub grace: Duration,
    pub engines: Vec<EngineTask>,
    /// Where `/proc` of the host is.
    pub proc_root: PathBuf,
    /// Containers and networks that are known without any engine: the demo's.
    pub known: (Vec<ContainerInfo>, Vec<NetworkInfo>),
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("follow the host's interfaces by netlink: {0}")]
    Netlink(#[from] io::Error),
}

pub struct Agent {
    state: State,
    observer: Shared,
    netlink: Netlink,
    updates: mpsc::Receiver<Update>,
    proc_root: PathBuf,
    /// Names of the engines that are asked.
    engines: Vec<String>,
    /// Namespaces without a known container: when to look again, and the pause after that.
    retries: BTreeMap<i32, (Instant, Duration)>,
    last_scan: Option<Instant>,
    last_cleanup: Instant,
    /// Its thread shares the observer: when that has ended, the observer goes and everything is detached.
    _attacher: Attacher,
}

impl Agent {
    /// Loads the programs, attaches to all that is there, and starts following what comes. Must be
    /// called inside a tokio runtime, which runs the engines' tasks.
    ///
    /// # Errors
    /// See [`StartError`]; nothing stays attached then.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let options =
            Options { max_interfaces: config.max_interfaces, mode: config.mode, log: config.log_programs };
        let observer = Observer::load(options)?;
        let mut state = State::new(observer.mode().to_string(), config.grace);
        let observer: Shared = Arc::new(Mutex::new(observer));
        let (sender, updates) = mpsc::channel(UPDATE_QUEUE);
        let attacher = {
            // The first listing of a host with more interfaces than the queue holds would wait for us.
            let (observer, sender) = (Arc::clone(&observer), sender.clone());
            std::thread::spawn(move || Attacher::start(observer, sender))
        };
        let now = Instant::now();
        let (containers, networks) = config.known;
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
        let engines = config.engines.iter().map(|engine| engine.name.clone()).collect();
        for engine in config.engines {
            tokio::spawn(engine.run(sender.clone()));
        }
        let mut agent = Self {
            state,
            observer,
            netlink: Netlink::connect()?,
            updates: agent_updates,
            proc_root: config.proc_root,
            engines,
            retries: BTreeMap::new(),
            last_scan: None,
            last_cleanup: now,
            _attacher: attacher,
        };
        agent.apply_waiting();
        Ok(agent)
    }

    /// Waits for something to change and takes it in. Cancel-safe.
    pub async fn changed(&mut self) {
        let cleanup = self.last_cleanup + CLEANUP_PAUSE;
        let retry = self.retries.values().map(|(at, _)| *at).min();
        let wait = tokio::time::sleep_until(retry.map_or(cleanup, |at| at.min(cleanup)).into());
        tokio::select! {
            update = self.updates.recv() => match update {
                Some(update) => self.state.apply(update, Instant::now()),
                None => std::future::pending().await,
            },
            () = wait => {}
        }
        self.apply_waiting();
        if self.last_cleanup.elapsed() >= CLEANUP_PAUSE {
            self.forget();
        }
    }

    /// Waits until every engine has told its containers or why it cannot, or for `limit`.
    pub async fn settle(&mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while !self.settled() {
            if tokio::time::timeout_at(end.into(), self.changed()).await.is_err() {
                return;
            }
        }
    }

    /// Whether every engine has told its containers, or why it cannot.
    pub fn settled(&self) -> bool {
        self.state.settled(&self.engines)
    }

    /// Interfaces that are observed.
    pub fn attached(&self) -> usize {
        lock(&self.observer).attached()
    }

    /// Reads all counters, netobs's and the kernel's own, and tells what is known by now.
    pub fn sample(&mut self) -> Snapshot {
        self.apply_waiting();
        self.forget();
        let counters: Vec<_> = lock(&self.observer).read_all().collect();
        let kernel = self.kernel_stats();
        let samples = counters
            .into_iter()
            .map(|(key, ifindex, [ingress, egress])| Sample {
                key,
                ingress,
                egress,
                kernel: kernel.get(&ifindex).copied(),
            })
            .collect();
        let now = Instant::now();
        self.state.apply(Update::Samples(samples), now);
        self.state.snapshot(now, SystemTime::now())
    }

    /// Takes in what is waiting, then finds out whose the new namespaces are.
    fn apply_waiting(&mut self) {
        let now = Instant::now();
        while let Ok(update) = self.updates.try_recv() {
            self.state.apply(update, now);
        }
        for (id, pid) in self.state.processes() {
            if self.state.wants_namespace(&id) {
                self.look_into(id, pid);
            }
        }
        self.attribute(now);
    }

    /// Finds containers for veths that lead into a namespace of nobody's.
    fn attribute(&mut self, now: Instant) {
        let unbound = self.state.unbound_namespaces();
        self.retries.retain(|nsid, _| unbound.contains(nsid));
        let due: Vec<i32> = unbound
            .into_iter()
            .filter(|nsid| self.retries.get(nsid).is_none_or(|(at, _)| *at <= now))
            .collect();
        if due.is_empty() {
            return;
        }
        for (id, pid) in self.state.processes() {
            if let Ok(Some(nsid)) = namespace::nsid(&mut self.netlink, pid)
                && due.contains(&nsid)
            {
                self.look_into(id, pid);
            }
        }
        if self.state.unbound_namespaces().iter().any(|nsid| due.contains(nsid)) {
            self.scan_processes(&due, now);
        }
        let still = self.state.unbound_namespaces();
        for nsid in due {
            if still.contains(&nsid) {
                let pause =
                    self.retries.get(&nsid).map_or(RETRY_FIRST, |(_, pause)| (*pause * 2).min(RETRY_LAST));
                self.retries.insert(nsid, (now + pause, pause));
            } else {
                self.retries.remove(&nsid);
            }
        }
    }

    /// Containers by the cgroup paths of their processes: where no engine answers, or not yet.
    fn scan_processes(&mut self, wanted: &[i32], now: Instant) {
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
            let Ok(Some(nsid)) = namespace::nsid(&mut self.netlink, process.pid) else { continue };
            if !wanted.contains(&nsid) {
                continue;
            }
            let id = process.container_id.clone();
            if !self.state.knows_container(&id) {
                self.state.apply(Update::Container(unnamed(&process.container_id, process.pid)), now);
            }
            self.look_into(id, process.pid);
        }
    }

    fn look_into(&mut self, id: String, pid: u32) {
        match namespace::of_process(&mut self.netlink, &self.proc_root, pid) {
            Ok(namespace) => self.state.apply(Update::Namespace { id, namespace }, Instant::now()),
            // It has ended meanwhile; if not, there is no privilege, and `doctor` tells.
            Err(error) => tracing::debug!(%error, pid, "look into the namespace of a process"),
        }
    }

    /// Drops what has ended long enough ago, and what no engine reports the end of.
    fn forget(&mut self) {
        self.last_cleanup = Instant::now();
        self.state.expire(self.last_cleanup);
        for (id, pid) in self.state.processes_of(PROC) {
            let alive = procfs::netns_identity(&self.proc_root, pid).is_ok();
            if !alive {
                self.state.apply(Update::Removed { id }, Instant::now());
            }
        }
    }

    fn kernel_stats(&mut self) -> BTreeMap<u32, KernelStats> {
        match netlink::links(&mut self.netlink, None) {
            Ok(links) => {
                self.state.apply(Update::Works { feature: "kernel counters" }, Instant::now());
                links.into_iter().map(|link| (link.ifindex, link.stats)).collect()
            }
            Err(error) => {
                let why = error.to_string();
                self.state.apply(Update::Degraded { feature: "kernel counters", why }, Instant::now());
                BTreeMap::new()
            }
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
