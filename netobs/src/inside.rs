//! What the host has no interface of its own for: macvlan, ipvlan, overlay and moved-in interfaces are
//! observed in the container's namespace, containers in the host's namespace by the sockets of their cgroup.
//!
//! Nothing tells of changes in other namespaces. So what should be attached is worked out again from what
//! is known of the containers whenever something is new, and compared with what is.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    attacher::{Shared, baseline, lock},
    discovery::{netlink, procfs},
    ebpf::{self, AttachError},
    model::{
        InnerLink, InterfaceInfo, InterfaceKey, InterfaceKind, KernelStats, Owner, Place, State, Update,
    },
    netlink::{Entrance, Netlink},
};

/// How soon what could not be attached is tried again, and how that grows.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Keys from here on are of this module; those below are the attacher's.
const FIRST_KEY: u64 = 1 << 63;

/// Name that a container's cgroup goes by where others have an interface's.
const CGROUP: &str = "cgroup";

/// What can be attached on account of a container, told apart from everything else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Interface { namespace: (u64, u64), ifindex: u32 },
    Cgroup { container: String },
}

/// A target, and what is needed to attach to it.
struct Wanted {
    owner: Owner,
    kind: InterfaceKind,
    pid: u32,
    nsid: Option<i32>,
}

#[derive(Debug)]
struct Held {
    key: InterfaceKey,
    container: String,
    /// For an interface: the way in, and how the host numbers the namespace.
    interface: Option<(Entrance, Option<i32>)>,
    ifindex: u32,
    /// The kernel's counters, as last read.
    last: KernelStats,
}

#[derive(Debug)]
struct Failed {
    what: String,
    again: Instant,
    pause: Duration,
}

/// Everything that is attached on account of a container.
pub struct Inside {
    observer: Shared,
    proc_root: PathBuf,
    held: BTreeMap<Target, Held>,
    failed: BTreeMap<Target, Failed>,
    next_key: u64,
}

impl Inside {
    pub const fn new(observer: Shared, proc_root: PathBuf) -> Self {
        Self { observer, proc_root, held: BTreeMap::new(), failed: BTreeMap::new(), next_key: FIRST_KEY }
    }

    /// Attaches what should be and is not, lets go what should not be and is.
    pub fn reconcile(&mut self, state: &mut State, now: Instant) {
        let wanted = wanted(state);
        let gone: Vec<Target> = self
            .held
            .iter()
            .filter(|(target, held)| {
                let wanted = wanted.get(target).map(|wanted| wanted.owner.container.as_str());
                state.lets_go(&held.container, wanted)
            })
            .map(|(target, _)| target.clone())
            .collect();
        for target in gone {
            self.release(&target, state, now);
        }
        self.failed.retain(|target, failed| {
            let still = wanted.contains_key(target);
            if !still {
                state.apply(Update::Vanished { what: failed.what.clone() }, now);
            }
            still
        });
        for (target, wanted) in wanted {
            let waits = self.failed.get(&target).is_some_and(|failed| now < failed.again);
            if !waits && !self.held.contains_key(&target) {
                self.hold(target, wanted, state, now);
            }
        }
    }

    /// The kernel's own counters of what is held, by key. What is found to be gone, or to be another
    /// interface by now, is let go.
    pub fn kernel_stats(
        &mut self,
        netlink: &mut Netlink,
        state: &mut State,
        now: Instant,
    ) -> BTreeMap<InterfaceKey, KernelStats> {
        let mut stats = self.counters(netlink);
        let mut gone = Vec::new();
        for (target, held) in &mut self.held {
            if held.interface.is_none() {
                continue;
            }
            match stats.get(&held.key) {
                Some(now_there) if !is_less(now_there, &held.last) => held.last = *now_there,
                _ => {
                    stats.remove(&held.key);
                    gone.push(target.clone());
                }
            }
        }
        for target in gone {
            self.release(&target, state, now);
        }
        stats
    }

    /// The kernel's own counters of what is held and still there, by key.
    pub fn counters(&self, netlink: &mut Netlink) -> BTreeMap<InterfaceKey, KernelStats> {
        let mut stats = BTreeMap::new();
        let mut namespaces: BTreeMap<i32, BTreeMap<u32, KernelStats>> = BTreeMap::new();
        for held in self.held.values() {
            let Some((entrance, nsid)) = &held.interface else { continue };
            if !entrance.is_open() {
                continue;
            }
            // Without a number it can only be asked for inside.
            let now_there = match nsid {
                Some(nsid) => {
                    let all = namespaces.entry(*nsid).or_insert_with(|| stats_of(netlink, Some(*nsid)));
                    all.get(&held.ifindex).copied()
                }
                None => entrance
                    .connect()
                    .ok()
                    .and_then(|mut inside| stats_of(&mut inside, None).get(&held.ifindex).copied()),
            };
            stats.extend(now_there.map(|now_there| (held.key, now_there)));
        }
        stats
    }

    /// When something that failed is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.again).min()
    }

    fn hold(&mut self, target: Target, wanted: Wanted, state: &mut State, now: Instant) {
        let key = InterfaceKey(self.next_key);
        self.next_key += 1;
        let what = format!("{}/{}", wanted.owner.container, wanted.owner.inner.name);
        let attached = match &target {
            Target::Interface { namespace, .. } => self.attach_interface(key, *namespace, &wanted),
            Target::Cgroup { container } => self.attach_cgroup(key, container, wanted.pid),
        };
        match attached {
            Ok((held, update)) => {
                state.apply(update, now);
                if self.failed.remove(&target).is_some() {
                    state.apply(Update::Vanished { what }, now);
                }
                self.held.insert(target, held);
            }
            // It, or its process, is gone: soon that will be known, or another process found.
            Err(Failure::Gone) => self.fail(target, what, now),
            Err(Failure::Because(reason)) => {
                let name = format!("{} of container {}", wanted.owner.inner.name, wanted.owner.container);
                state.apply(Update::AttachFailed { what: what.clone(), name, reason }, now);
                self.fail(target, what, now);
            }
        }
    }

    fn fail(&mut self, target: Target, what: String, now: Instant) {
        let pause = self.failed.get(&target).map_or(RETRY_FIRST, |failed| (failed.pause * 2).min(RETRY_LAST));
        self.failed.insert(target, Failed { what, again: now + pause, pause });
    }

    fn attach_interface(
        &self,
        key: InterfaceKey,
        identity: (u64, u64),
        wanted: &Wanted,
    ) -> Result<(Held, Update), Failure> {
        let Wanted { owner, kind, pid, nsid } = wanted;
        let ifindex = owner.inner.ifindex;
        let path = self.proc_root.join(pid.to_string()).join("ns/net");
        let entrance = Entrance { path, identity };
        let mut inside = entrance.connect().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::Gone,
            io::ErrorKind::PermissionDenied => Failure::Because(format!(
                "observed inside the container, whose network namespace could not be entered: {error} \
                 (CAP_SYS_ADMIN and CAP_SYS_PTRACE)"
            )),
            _ => Failure::Because(format!("enter the container's network namespace: {error}")),
        })?;
        // What a killed run left behind.
        if let Err(error) = ebpf::remove_leftovers(&mut inside, ifindex, Some(&entrance)) {
            tracing::warn!(%error, container = owner.container, ifindex, "remove leftover filters");
        }
        lock(&self.observer).attach_inside(key, entrance.clone(), &mut inside, ifindex)?;
        let link = netlink::link(&mut inside, ifindex).map_err(|_| self.undo(key))?;
        let (baseline, kernel) = baseline(&mut inside, &self.observer, key, *kind, &link);
        let update = Update::Attached {
            interface: InterfaceInfo {
                key,
                ifindex,
                name: owner.inner.name.clone(),
                kind: *kind,
                place: Place::Inside,
                master: None,
                peer_ifindex: None,
                peer_nsid: None,
            },
            owner: Some(owner.clone()),
            baseline: Some(baseline),
            kernel,
            latency: None,
        };
        let container = owner.container.clone();
        Ok((Held { key, container, interface: Some((entrance, *nsid)), ifindex, last: kernel }, update))
    }

    /// Lets go what turned out to be gone right after it was attached.
    fn undo(&self, key: InterfaceKey) -> Failure {
        lock(&self.observer).detach(key);
        Failure::Gone
    }

    fn attach_cgroup(&self, key: InterfaceKey, id: &str, pid: u32) -> Result<(Held, Update), Failure> {
        let path = procfs::v2_cgroup(&self.proc_root, pid, id).map_err(|error| match error.kind() {
            io::ErrorKind::Unsupported => Failure::Because(format!("shares the host's network, and {error}")),
            _ => Failure::Gone,
        })?;
        let cgroup = File::open(&path).map_err(|error| of_file(&path, &error))?;
        lock(&self.observer).attach_cgroup(key, &cgroup)?;
        let update = Update::Attached {
            interface: InterfaceInfo {
                key,
                ifindex: 0,
                name: CGROUP.to_owned(),
                kind: InterfaceKind::Cgroup,
                place: Place::Cgroup,
                master: None,
                peer_ifindex: None,
                peer_nsid: None,
            },
            owner: Some(Owner { container: id.to_owned(), inner: of_cgroup() }),
            baseline: None,
            kernel: KernelStats::default(),
            latency: None,
        };
        let container = id.to_owned();
        Ok((Held { key, container, interface: None, ifindex: 0, last: KernelStats::default() }, update))
    }

    fn release(&mut self, target: &Target, state: &mut State, now: Instant) {
        let Some(held) = self.held.remove(target) else { return };
        let last = lock(&self.observer).detach(held.key);
        if let Some(last) = last {
            let kernel = held.interface.is_some().then_some(held.last);
            state.apply(Update::Detached(Box::new(last.sample(held.key, kernel))), now);
        }
    }
}

enum Failure {
    Gone,
    Because(String),
}

impl From<AttachError> for Failure {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::Gone => Self::Gone,
            error => Self::Because(error.to_string()),
        }
    }
}

fn of_file(path: &Path, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::Gone,
        _ => Failure::Because(format!("open {}: {error}", path.display())),
    }
}

/// Stands for the interface that there is none of.
fn of_cgroup() -> InnerLink {
    InnerLink { name: CGROUP.to_owned(), ..InnerLink::default() }
}

/// Of those that share a namespace the first has its interfaces.
fn wanted(state: &State) -> BTreeMap<Target, Wanted> {
    let mut wanted = BTreeMap::new();
    let mut namespaces = BTreeSet::new();
    for (container, pid, namespace) in state.looked_into() {
        let want = |inner: InnerLink, kind| Wanted {
            owner: Owner { container: container.id.clone(), inner },
            kind,
            pid,
            nsid: namespace.nsid,
        };
        if namespace.host {
            let target = Target::Cgroup { container: container.id.clone() };
            wanted.insert(target, want(of_cgroup(), InterfaceKind::Cgroup));
        } else if namespaces.insert(namespace.identity) {
            for link in &namespace.links {
                let Some(kind) = link.inside else { continue };
                let target = Target::Interface { namespace: namespace.identity, ifindex: link.ifindex };
                wanted.insert(target, want(link.clone(), kind));
            }
        }
    }
    wanted
}

/// Nothing, if the namespace is gone.
fn stats_of(netlink: &mut Netlink, nsid: Option<i32>) -> BTreeMap<u32, KernelStats> {
    let links = netlink::links(netlink, nsid).unwrap_or_default();
    links.into_iter().map(|link| (link.ifindex, link.stats)).collect()
}

/// Counters of one interface only grow.
const fn is_less(now: &KernelStats, before: &KernelStats) -> bool {
    now.rx_packets < before.rx_packets || now.tx_packets < before.tx_packets
}
