//! Docker's name server inside containers' namespaces, at 127.0.0.11: its messages pass `lo` there, which
//! nothing on the host leads to. What should be observed is worked out as in `inside.rs`.

use std::{
    collections::BTreeMap,
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::{
    attacher::{Shared, lock},
    ebpf::{self, LOOPBACK},
    model::{InterfaceKey, State, Update},
    netlink::Entrance,
};

/// How soon what could not be attached is tried again, and how that grows.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LAST: Duration = Duration::from_secs(60);

/// Keys from here on are of this module; those below are the attacher's and those of `inside.rs`.
const FIRST_KEY: u64 = 3 << 62;

/// Name of the feature, where it cannot be had.
const FEATURE: &str = "embedded DNS";

struct Held {
    key: InterfaceKey,
    container: String,
    entrance: Entrance,
}

struct Failed {
    /// For want of a privilege.
    is_refused: bool,
    again: Instant,
    pause: Duration,
}

/// All that are observed, by namespace.
pub struct Resolvers {
    observer: Shared,
    proc_root: PathBuf,
    is_on: bool,
    held: BTreeMap<(u64, u64), Held>,
    failed: BTreeMap<(u64, u64), Failed>,
    next_key: u64,
}

impl Resolvers {
    pub fn new(observer: Shared, proc_root: PathBuf) -> Self {
        let is_on = lock(&observer).observes_resolvers();
        let (held, failed) = (BTreeMap::new(), BTreeMap::new());
        Self { observer, proc_root, is_on, held, failed, next_key: FIRST_KEY }
    }

    /// Attaches what should be and is not, lets go what should not be and is.
    pub fn reconcile(&mut self, state: &mut State, now: Instant) {
        if !self.is_on {
            return;
        }
        let wanted = wanted(state);
        self.release(state, now, |identity, held, state| {
            let wanted = wanted.get(identity).map(|(container, _)| container.as_str());
            state.lets_go(&held.container, wanted)
        });
        let refused = |failed: &BTreeMap<_, Failed>| failed.values().any(|failed| failed.is_refused);
        let was_refused = refused(&self.failed);
        self.failed.retain(|identity, _| wanted.contains_key(identity));
        for (identity, (container, pid)) in wanted {
            let waits = self.failed.get(&identity).is_some_and(|failed| now < failed.again);
            if !waits && !self.held.contains_key(&identity) {
                self.hold(identity, container, pid, state, now);
            }
        }
        if was_refused && !refused(&self.failed) {
            state.apply(Update::Works { feature: FEATURE }, now);
        }
    }

    /// Lets go those whose namespace is found to be gone.
    pub fn look(&mut self, state: &mut State, now: Instant) {
        self.release(state, now, |_, held, _| !held.entrance.is_open());
    }

    /// When something that failed is to be tried again.
    pub fn next_try(&self) -> Option<Instant> {
        self.failed.values().map(|failed| failed.again).min()
    }

    fn hold(&mut self, identity: (u64, u64), container: String, pid: u32, state: &mut State, now: Instant) {
        let path = self.proc_root.join(pid.to_string()).join("ns/net");
        let entrance = Entrance { path, identity };
        let key = InterfaceKey(self.next_key);
        self.next_key += 1;
        match self.attach(key, &entrance) {
            Ok(()) => {
                self.failed.remove(&identity);
                state.apply(Update::Resolver { container: container.clone(), observed: Ok(key) }, now);
                self.held.insert(identity, Held { key, container, entrance });
            }
            Err(error) => {
                let pause = self.failed.get(&identity).map_or(RETRY_FIRST, |failed| failed.pause * 2);
                let pause = pause.min(RETRY_LAST);
                let is_refused = error.kind() == io::ErrorKind::PermissionDenied;
                self.failed.insert(identity, Failed { is_refused, again: now + pause, pause });
                // It, or its process, is gone: soon that will be known, or another process found.
                if error.kind() == io::ErrorKind::NotFound {
                    return;
                }
                let why = if is_refused {
                    let why = "the container's network namespace could not be entered (CAP_SYS_ADMIN and \
                               CAP_SYS_PTRACE)";
                    state.apply(Update::Degraded { feature: FEATURE, why: why.to_owned() }, now);
                    why.to_owned()
                } else {
                    error.to_string()
                };
                state.apply(Update::Resolver { container, observed: Err(why) }, now);
            }
        }
    }

    fn attach(&self, key: InterfaceKey, entrance: &Entrance) -> io::Result<()> {
        let mut inside = entrance.connect()?;
        // What a killed run left behind.
        if let Err(error) = ebpf::remove_leftovers(&mut inside, LOOPBACK, Some(entrance)) {
            tracing::warn!(%error, ?entrance, "remove leftover filters");
        }
        let attached = lock(&self.observer).attach_resolver(key, entrance.clone(), &mut inside);
        attached.map_err(|error| match error {
            ebpf::AttachError::Gone => io::ErrorKind::NotFound.into(),
            error => io::Error::other(error.to_string()),
        })
    }

    fn release(
        &mut self,
        state: &mut State,
        now: Instant,
        is_over: impl Fn(&(u64, u64), &Held, &State) -> bool,
    ) {
        let over: Vec<_> = self
            .held
            .iter()
            .filter(|(identity, held)| is_over(identity, held, state))
            .map(|(identity, _)| *identity)
            .collect();
        for identity in over {
            if let Some(Held { key, .. }) = self.held.remove(&identity) {
                lock(&self.observer).detach_resolver(key);
                state.apply(Update::ResolverGone { key }, now);
            }
        }
    }
}

/// By namespace: the container that has it, and a process in it.
fn wanted(state: &State) -> BTreeMap<(u64, u64), (String, u32)> {
    let mut wanted = BTreeMap::new();
    for (container, pid, namespace) in state.looked_into() {
        if namespace.embedded_dns {
            wanted.entry(namespace.identity).or_insert_with(|| (container.id.clone(), pid));
        }
    }
    wanted
}
