//! A thread that turns "interface appeared" into an attach, whatever else the process is busy with.
//!
//! It hears netlink's link events, attaches and detaches, and tells the model. What an interface is for
//! is found out later and elsewhere.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::Instant,
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use crate::{
    discovery::netlink::{self, Batch, Event, Events, Link},
    ebpf::{Attach, AttachError},
    model::{Baseline, InterfaceInfo, InterfaceKey, InterfaceKind, KernelStats, Place, Sample, Update},
    netlink::Netlink,
};

/// Bytes that a bridge device's own receive counter leaves out of each frame.
const ETHERNET_HEADER_BYTES: u64 = 14;

/// Times that the kernel's counters are read anew while packets pass during the attach.
const BASELINE_TRIES: usize = 3;

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
    pub fn start(observer: Shared, updates: mpsc::Sender<Update>) -> io::Result<Self> {
        let events = Events::subscribe()?;
        let mut worker =
            Worker { observer, updates, netlink: Netlink::connect()?, known: BTreeMap::new(), next_key: 0 };
        worker.remove_leftovers()?;
        // After subscribing: what appears meanwhile is in one of the two, or in both.
        worker.resync()?;
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
    next_key: u64,
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
            match poll(&mut fds, PollTimeout::NONE) {
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
        }
    }

    /// Handles all that is waiting.
    fn drain(&mut self, events: &mut Events) -> io::Result<()> {
        while let Some(batch) = events.read()? {
            match batch {
                Batch::Overrun => {
                    self.tell(Update::EventsLost);
                    self.resync()?;
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

    /// Compares what is there with what is known.
    fn resync(&mut self) -> io::Result<()> {
        let told = Instant::now();
        lock(&self.observer).survey()?;
        let links = netlink::links(&mut self.netlink, None)?;
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
            known.link = link;
            if let Some((before, now)) = info
                && before != now
                && let Some([ingress, egress]) = lock(&self.observer).read(now.key)
            {
                let sample = Sample { key: now.key, ingress, egress, kernel };
                self.tell(Update::Changed(now, Box::new(sample)));
            }
            return;
        }
        let key = InterfaceKey(self.next_key);
        self.next_key += 1;
        match lock(&self.observer).attach(key, link.ifindex, kind == InterfaceKind::Bridge) {
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
        if let Some([ingress, egress]) = last {
            self.tell(Update::Detached(Box::new(Sample { key, ingress, egress, kernel })));
        }
        self.retry();
    }

    /// There is room again: for those that found none.
    fn retry(&mut self) {
        let failed: Vec<Link> =
            self.known.values().filter(|known| known.key.is_none()).map(|known| known.link.clone()).collect();
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
        ours = counted.map(|counters| crate::model::Traffic::from(&counters));
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

/// What the device's own receive counter says of packets that we count with their Ethernet header.
pub const fn kernel_rx_bytes(kind: InterfaceKind, packets: u64, bytes: u64) -> u64 {
    match kind {
        InterfaceKind::Bridge => bytes.saturating_sub(packets * ETHERNET_HEADER_BYTES),
        _ => bytes,
    }
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
