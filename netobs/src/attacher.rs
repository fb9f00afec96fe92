//! A thread that turns "interface appeared" into an attach, whatever else the process is busy with.
//!
//! It hears netlink's link events, attaches and detaches, and tells the model. What an interface is for
//! is found out later and elsewhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use crate::{
    discovery::{
        namespace,
        netlink::{self, Batch, Event, Events, Link, TcEvents},
    },
    ebpf::{Attach, AttachError, Repaired, pins::Record, remove_leftovers},
    model::{
        Baseline, InterfaceInfo, InterfaceKey, InterfaceKind, KernelStats, Place, Update,
        reconcile::kernel_rx_bytes,
    },
    netlink::{Entrance, Netlink},
};

/// Times that the kernel's counters are read anew while packets pass during the attach.
const BASELINE_TRIES: usize = 3;

/// How often it is looked whether others have removed or displaced what is attached: with the time that it takes
/// for a thousand interfaces, within ten seconds.
const LOOK_AFTER_PAUSE: Duration = Duration::from_secs(8);

/// How long after interfaces could not be listed it is tried again.
const RESYNC_PAUSE: Duration = Duration::from_secs(2);

/// Name of the feature, where interfaces cannot be listed.
const LISTING: &str = "listing interfaces";

/// Each so many times, filters are looked at whether or not the kernel has told that somebody has touched them.
const LOOK_CLOSELY: u32 = 8;

/// The observer, shared with who reads counters.
pub type Shared = Arc<Mutex<dyn Attach>>;

/// Nothing that can panic happens under the lock; if it did, the counters are still good.
pub fn lock(observer: &Shared) -> MutexGuard<'_, dyn Attach + 'static> {
    observer.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The running thread; dropping it ends the thread and leaves the attachments to the observer.
pub struct Attacher {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Attacher {
    /// Attaches to all that is there, and then starts the thread that follows what comes.
    ///
    /// # Errors
    /// When netlink is not to be had, or a thread. A single interface that cannot be attached is an
    /// update, not an error.
    pub fn start(observer: Shared, updates: mpsc::Sender<Update>, proc_root: &Path) -> io::Result<Self> {
        let (events, tc_events) = (Events::subscribe()?, TcEvents::subscribe()?);
        let mut worker = Worker {
            observer,
            updates,
            netlink: Netlink::connect()?,
            known: BTreeMap::new(),
            lost: BTreeSet::new(),
            next_key: 0,
            next_look: Instant::now() + LOOK_AFTER_PAUSE,
            next_resync: None,
            tc_events,
            looks: 0,
        };
        worker.remove_leftovers()?;
        if lock(&worker.observer).attachments().goes_on() {
            worker.remove_leftovers_inside(proc_root)?;
        }
        // After subscribing: what appears meanwhile is in one of the two, or in both.
        worker.resync()?;
        lock(&worker.observer).forget_others();
        let (stop, stopped) = UnixStream::pair()?;
        let thread = std::thread::Builder::new()
            .name("netobs-attach".to_owned())
            .spawn(move || worker.run(events, stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Attacher {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Worker {
    observer: Shared,
    updates: mpsc::Sender<Update>,
    netlink: Netlink,
    /// Attached interfaces by ifindex, as last told.
    known: BTreeMap<u32, Known>,
    /// What could not be attached again.
    lost: BTreeSet<InterfaceKey>,
    next_key: u64,
    next_look: Instant,
    /// When all interfaces are to be listed again, since they could not be.
    next_resync: Option<Instant>,
    tc_events: TcEvents,
    /// Times that it was looked after all.
    looks: u32,
}

struct Known {
    /// None: could not be attached.
    key: Option<InterfaceKey>,
    link: Link,
}

impl Worker {
    fn run(mut self, mut events: Events, mut stopped: UnixStream) {
        loop {
            let mut fds = [
                PollFd::new(events.fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            let next = self.next_resync.map_or(self.next_look, |resync| resync.min(self.next_look));
            let wait = next.saturating_duration_since(Instant::now());
            // Not a moment too early: it would be asked again and again.
            let wait = PollTimeout::try_from(wait + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
            match poll(&mut fds, wait) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return self.give_up(&error),
            }
            let stop = fds[1].revents().is_some_and(|flags| !flags.is_empty());
            if stop && matches!(stopped.read(&mut [0]), Ok(0)) {
                return;
            }
            match self.drain(&mut events) {
                Ok(()) => {}
                Err(error) => return self.give_up(&error),
            }
            if self.next_resync.is_some_and(|at| at <= Instant::now()) {
                self.try_resync();
            }
            if self.next_look <= Instant::now() {
                self.look_after();
                self.next_look = Instant::now() + LOOK_AFTER_PAUSE;
            }
        }
    }

    /// Attaches again what others have removed or displaced, and tells what passed meanwhile.
    fn look_after(&mut self) {
        let touched = self.tc_events.changed();
        self.looks = self.looks.wrapping_add(1);
        let touched = touched.filter(|_| !self.looks.is_multiple_of(LOOK_CLOSELY));
        let keys = lock(&self.observer).attachments().keys();
        for key in keys {
            self.look_after_one(key, touched.as_ref());
        }
        let resolvers = lock(&self.observer).resolvers();
        for key in resolvers {
            let repaired = lock(&self.observer).look_after_resolver(key);
            if let Some(why) = repaired {
                self.tell(Update::Reattached { interface: None, why, baseline: None });
            }
        }
        let attached: BTreeSet<_> = lock(&self.observer).attachments().keys().into_iter().collect();
        for key in std::mem::take(&mut self.lost) {
            if attached.contains(&key) {
                self.lost.insert(key);
            } else {
                self.tell(Update::Vanished { what: format!("again {}", key.0) });
            }
        }
    }

    fn look_after_one(&mut self, key: InterfaceKey, touched: Option<&BTreeSet<u32>>) {
        // Not for longer than one takes: others read counters meanwhile.
        let repaired = lock(&self.observer).look_after(key, touched);
        let what = format!("again {}", key.0);
        match repaired {
            Ok(None) => {}
            Ok(Some(Repaired { why, interface })) => {
                let interface_name = self.name_of_key(key);
                tracing::warn!(interface = interface_name, reason = why.name(), "attached again");
                let baseline = interface.and_then(|interface| self.baseline_again(key, interface));
                if let Some(baseline) = baseline {
                    lock(&self.observer).remember_baseline(key, baseline);
                }
                self.tell(Update::Reattached { interface: Some(key), why, baseline });
            }
            Err(error) => {
                let name = self.name_of_key(key);
                let reason = format!("others have removed netobs's programs: {error}");
                self.tell(Update::AttachFailed { what, name, reason });
                self.lost.insert(key);
                return;
            }
        }
        if self.lost.remove(&key) {
            self.tell(Update::Vanished { what });
        }
    }

    /// What the kernel has counted of an interface and netobs has not.
    fn baseline_again(
        &mut self,
        key: InterfaceKey,
        (ifindex, entrance): (u32, Option<Entrance>),
    ) -> Option<Baseline> {
        let mut inside = match entrance {
            Some(entrance) => Some(entrance.connect().ok()?),
            None => None,
        };
        let netlink = inside.as_mut().unwrap_or(&mut self.netlink);
        let link = netlink::link(netlink, ifindex).ok()?;
        Some(baseline(netlink, &self.observer, key, link.kind?, &link).0)
    }

    fn name_of_key(&self, key: InterfaceKey) -> String {
        let known = self.known.values().find(|known| known.key == Some(key));
        known.map_or_else(|| "inside a container".to_owned(), |known| known.link.name.clone())
    }

    /// Handles all that is waiting.
    fn drain(&mut self, events: &mut Events) -> io::Result<()> {
        while let Some(batch) = events.read()? {
            match batch {
                Batch::Overrun => {
                    self.tell(Update::EventsLost);
                    self.try_resync();
                }
                Batch::Events(events, told) => {
                    for event in events {
                        match event {
                            Event::Link(link) => self.link(link, told),
                            Event::Gone(link) => {
                                self.gone(link.ifindex, Some(link.stats));
                                if let Some(nsid) = link.moved_to {
                                    self.tell(Update::MovedInto { nsid });
                                }
                            }
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Without events nothing new is attached: that must not pass unseen.
    fn give_up(&self, error: &dyn std::fmt::Display) {
        self.tell(Update::Degraded { feature: "interface events", why: error.to_string() });
    }

    /// What a killed run left behind.
    fn remove_leftovers(&mut self) -> io::Result<()> {
        for link in netlink::links(&mut self.netlink, None)? {
            if !link.is_observed_on_host() {
                continue;
            }
            match lock(&self.observer).remove_leftovers(link.ifindex) {
                Ok(0) => {}
                Ok(count) => tracing::info!(interface = link.name, count, "removed leftover filters"),
                Err(error) => tracing::warn!(interface = link.name, %error, "remove leftover filters"),
            }
        }
        Ok(())
    }

    /// What a killed run left inside containers counts into the maps that go on, in slots that others get.
    fn remove_leftovers_inside(&self, proc_root: &Path) -> io::Result<()> {
        for entrance in namespace::others(proc_root)? {
            let removed = entrance.connect().and_then(|mut inside| {
                let links = netlink::links(&mut inside, None)?.into_iter();
                links
                    .map(|link| remove_leftovers(&mut inside, link.ifindex, Some(&entrance)))
                    .sum::<io::Result<usize>>()
            });
            let namespace = entrance.path.display();
            match removed {
                Ok(0) => {}
                Ok(count) => tracing::info!(%namespace, count, "removed leftover filters"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%namespace, %error, "remove leftover filters"),
            }
        }
        Ok(())
    }

    /// As [`Self::resync`]; if it fails all stays as it is, and it is tried again.
    fn try_resync(&mut self) {
        match self.resync() {
            Ok(()) if self.next_resync.take().is_some() => self.tell(Update::Works { feature: LISTING }),
            Ok(()) => {}
            Err(error) => {
                self.next_resync = Some(Instant::now() + RESYNC_PAUSE);
                self.tell(Update::Degraded { feature: LISTING, why: error.to_string() });
            }
        }
    }

    /// Compares what is there with what is known.
    fn resync(&mut self) -> io::Result<()> {
        let told = Instant::now();
        let traffic = lock(&self.observer).survey()?;
        let mut links = netlink::links(&mut self.netlink, None)?;
        // First what takes no time. Those with traffic may not all be attached without loss: those that would lose the
        // most come first.
        let rate = |link: &Link| traffic.get(&link.ifindex).copied().unwrap_or(f64::INFINITY);
        links.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        let known: Vec<u32> = self.known.keys().copied().collect();
        for ifindex in known {
            let now = links.iter().find(|link| link.ifindex == ifindex);
            // An ifindex may have been used again while events were lost.
            let same = now.is_some_and(|now| self.known[&ifindex].link.mac == now.mac);
            if !same {
                self.gone(ifindex, None);
            }
        }
        for link in links {
            self.link(link, told);
        }
        Ok(())
    }

    fn link(&mut self, link: Link, told: Instant) {
        let Some(kind) = link.kind.filter(|_| link.is_observed_on_host()) else { return };
        let attached = |known: &Known| known.key.is_some();
        if let Some(known) = self.known.get_mut(&link.ifindex).filter(|known| attached(known)) {
            let info = known.key.map(|key| (info(key, kind, &known.link), info(key, kind, &link)));
            let kernel = Some(link.stats);
            if known.link.mac != link.mac
                && let Some(key) = known.key
            {
                lock(&self.observer).remember_mac(key, &link.mac);
            }
            known.link = link;
            if let Some((before, now)) = info
                && before != now
            {
                // Nothing is told under the lock: who takes it in may be waiting for that.
                let counted = lock(&self.observer).read(now.key);
                if let Some(sample) = counted.map(|counted| counted.sample(now.key, kernel)) {
                    self.tell(Update::Changed(now, Box::new(sample)));
                }
            }
            return;
        }
        let key = InterfaceKey(self.next_key);
        self.next_key += 1;
        let adopted = lock(&self.observer).adopt(key, link.ifindex, &link.mac);
        if let Some(Record { baseline, kernel, .. }) = adopted {
            let interface = info(key, kind, &link);
            let baseline = Some(baseline);
            self.tell(Update::Attached { interface, owner: None, baseline, kernel, latency: None });
            self.known.insert(link.ifindex, Known { key: Some(key), link });
            // What others have removed since is not there to go on with.
            return self.look_after_one(key, None);
        }
        let done = lock(&self.observer).attach(key, link.ifindex, kind == InterfaceKind::Bridge);
        match done {
            Ok(()) => {}
            Err(AttachError::Gone) => return,
            Err(error) => {
                let (name, ifindex) = (link.name.clone(), link.ifindex);
                self.known.insert(ifindex, Known { key: None, link });
                let what = ifindex.to_string();
                return self.tell(Update::AttachFailed { what, name, reason: error.to_string() });
            }
        }
        let latency = Some(told.elapsed());
        let (baseline, kernel) = baseline(&mut self.netlink, &self.observer, key, kind, &link);
        lock(&self.observer).remember(key, &link.mac, baseline, &kernel);
        let failed_before = self.known.contains_key(&link.ifindex);
        let interface = info(key, kind, &link);
        self.tell(Update::Attached { interface, owner: None, baseline: Some(baseline), kernel, latency });
        if failed_before {
            self.tell(Update::Vanished { what: link.ifindex.to_string() });
        }
        self.known.insert(link.ifindex, Known { key: Some(key), link });
    }

    fn gone(&mut self, ifindex: u32, kernel: Option<KernelStats>) {
        let Some(known) = self.known.remove(&ifindex) else { return };
        let Some(key) = known.key else {
            return self.tell(Update::Vanished { what: ifindex.to_string() });
        };
        let last = lock(&self.observer).detach(key);
        if let Some(last) = last {
            self.tell(Update::Detached(Box::new(last.sample(key, kernel))));
        }
        self.retry();
    }

    /// There is room again: for those that found none.
    fn retry(&mut self) {
        let failed: Vec<Link> =
            self.known.values().filter(|known| known.key.is_none()).map(|known| known.link.clone()).collect();
        if !failed.is_empty()
            && let Err(error) = lock(&self.observer).survey()
        {
            tracing::warn!(%error, "look at what others have on the interfaces");
        }
        for link in failed {
            self.link(link, Instant::now());
        }
    }

    fn tell(&self, update: Update) {
        // Nobody listens any more only when the process is ending.
        let _ = self.updates.blocking_send(update);
    }
}

/// What the kernel had counted when the programs began to: its counters now, less ours. Exact if no
/// packet passes between two readings; else how many did is said.
pub fn baseline(
    client: &mut Netlink,
    observer: &Shared,
    key: InterfaceKey,
    kind: InterfaceKind,
    link: &Link,
) -> (Baseline, KernelStats) {
    let mut before = link.stats;
    let mut uncertain_packets = 0;
    let mut ours = Default::default();
    for _ in 0..BASELINE_TRIES {
        let read = netlink::link(client, link.ifindex).map(|link| link.stats);
        let counted = lock(observer).read(key);
        let after = netlink::link(client, link.ifindex).map(|link| link.stats);
        // Gone again: its first message is all there is.
        let (Ok(read), Ok(after), Some(counted)) = (read, after, counted) else { break };
        before = read;
        ours = [&counted.ingress, &counted.egress].map(crate::model::Traffic::from);
        uncertain_packets = after.rx_packets.saturating_sub(read.rx_packets)
            + after.tx_packets.saturating_sub(read.tx_packets);
        if uncertain_packets == 0 {
            break;
        }
    }
    let [rx, tx] = ours;
    let baseline = Baseline {
        rx_packets: before.rx_packets.saturating_sub(rx.packets),
        rx_bytes: before.rx_bytes.saturating_sub(kernel_rx_bytes(kind, rx.packets, rx.bytes)),
        tx_packets: before.tx_packets.saturating_sub(tx.packets),
        tx_bytes: before.tx_bytes.saturating_sub(tx.bytes),
        uncertain_packets,
    };
    (baseline, before)
}

fn info(key: InterfaceKey, kind: InterfaceKind, link: &Link) -> InterfaceInfo {
    InterfaceInfo {
        key,
        ifindex: link.ifindex,
        name: link.name.clone(),
        kind,
        place: Place::Host,
        master: link.master,
        peer_ifindex: link.peer_ifindex,
        peer_nsid: link.peer_nsid,
    }
}
