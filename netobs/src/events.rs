//! A thread that takes what the programs tell of single packets out of their ring, whatever the rest is busy
//! with.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::{fd::AsFd as _, unix::net::UnixStream},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use netobs_common::{
    INGRESS,
    events::{EventHeader, IP_BYTES, kind},
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use crate::{
    attacher::{Shared, lock},
    ebpf::{EventRing, monotonic_ns},
    model::{
        FlowEnd, InterfaceKey, Update, Way,
        dns::{Path, Transport},
        event::{Datagram, Event, EventBatch, What},
    },
};

/// Events that are told at a time.
const BATCH: usize = 1024;

/// How long the first event waits for others: that takes fewer awakenings than one each.
const GATHER_MS: u16 = 50;

/// How often it is told that nothing came, as long as anything may wait for an answer.
const QUIET_MS: u16 = 500;
const WAITING: Duration = Duration::from_secs(10);

/// Docker's name server inside a container.
const EMBEDDED_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 11));

/// The running thread; ends when dropped.
pub struct EventThread {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl EventThread {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(ring: EventRing, observer: Shared, updates: mpsc::Sender<Update>) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let reader = Reader { ring, observer, updates, strays: 0, told: None };
        let thread = std::thread::Builder::new()
            .name("netobs-events".to_owned())
            .spawn(move || reader.run(&stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for EventThread {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

struct Reader {
    ring: EventRing,
    observer: Shared,
    updates: mpsc::Sender<Update>,
    strays: u64,
    /// When an event was told of last.
    told: Option<Instant>,
}

impl Reader {
    fn run(mut self, stopped: &UnixStream) {
        loop {
            let waits = self.told.is_some_and(|told| told.elapsed() < WAITING);
            let limit = if waits { PollTimeout::from(QUIET_MS) } else { PollTimeout::NONE };
            let mut fds = [
                PollFd::new(self.ring.fd(), PollFlags::POLLIN),
                PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
            ];
            // An interrupted or empty wait is as good as any.
            let _ = poll(&mut fds, limit);
            let has_events = fds[0].revents().is_some_and(|flags| !flags.is_empty());
            if fds[1].revents().is_some_and(|flags| !flags.is_empty()) {
                return;
            }
            if has_events {
                let mut fds = [PollFd::new(stopped.as_fd(), PollFlags::POLLIN)];
                let _ = poll(&mut fds, PollTimeout::from(GATHER_MS));
            }
            self.drain();
        }
    }

    /// Tells all that there is.
    fn drain(&mut self) {
        loop {
            let read_ns = monotonic_ns();
            let mut records = Vec::new();
            while records.len() < BATCH
                && self.ring.next(|header, bytes| records.push((*header, bytes.to_vec())))
            {}
            let is_all = records.len() < BATCH;
            let last_ns = records.last().map_or(read_ns, |(header, _)| header.time_ns);
            let events = self.named(records);
            if !events.is_empty() {
                self.told = Some(Instant::now());
            }
            let read_ns = if is_all { read_ns } else { last_ns };
            let batch = EventBatch { events, read_ns, lost: self.ring.lost(), strays: self.strays };
            // Nobody listens any more only when the process is ending.
            if self.updates.blocking_send(Update::Events(batch)).is_err() || is_all {
                return;
            }
        }
    }

    fn named(&mut self, records: Vec<(EventHeader, Vec<u8>)>) -> Vec<Event> {
        if records.is_empty() {
            return Vec::new();
        }
        let observer = lock(&self.observer);
        let mut events = Vec::with_capacity(records.len());
        for (header, bytes) in records {
            match observer.holder(header.kind, header.slot, header.time_ns) {
                Some((interface, of_host)) => {
                    events.push(event(&header, bytes, interface, of_host));
                }
                None => self.strays += 1,
            }
        }
        events
    }
}

/// What a record says of an interface.
pub(crate) fn event(header: &EventHeader, bytes: Vec<u8>, interface: InterfaceKey, of_host: bool) -> Event {
    let way = way(header, of_host);
    Event { interface, way, time_ns: header.time_ns, what: what(header, way, bytes) }
}

/// From the container's side. At `lo` each packet is seen once, on its way to the server or from it.
fn way(header: &EventHeader, of_host: bool) -> Way {
    let is_received = if u32::from(header.kind) == kind::EMBEDDED {
        addresses(&header.network).is_none_or(|[_, destination]| destination != EMBEDDED_SERVER)
    } else {
        (u32::from(header.direction) == INGRESS) != of_host
    };
    if is_received { Way::Rx } else { Way::Tx }
}

fn what(header: &EventHeader, way: Way, bytes: Vec<u8>) -> What {
    let path = match u32::from(header.kind) {
        kind::ARP => return What::Arp(bytes),
        kind::EMBEDDED => Path::Embedded,
        _ => Path::Wire,
    };
    // Too short for DNS: its ends do not matter.
    let [from, to] = addresses(&header.network).unwrap_or([Ipv4Addr::UNSPECIFIED.into(); 2]);
    let source = FlowEnd { address: from, port: header.source_port };
    let destination = FlowEnd { address: to, port: header.destination_port };
    let (local, remote) = if way == Way::Tx { (source, destination) } else { (destination, source) };
    let is_tcp = i32::from(header.protocol) == libc::IPPROTO_TCP;
    let transport = if is_tcp { Transport::Tcp } else { Transport::Udp };
    What::Dns(path, transport, Datagram { local, remote, payload_len: header.payload_len, bytes })
}

/// Source and destination in an IP header.
fn addresses(header: &[u8; IP_BYTES]) -> Option<[IpAddr; 2]> {
    match header[0] >> 4 {
        4 => Some([12, 16].map(|at| {
            let bytes: [u8; 4] = std::array::from_fn(|n| header[at + n]);
            Ipv4Addr::from(bytes).into()
        })),
        6 => Some([8, 24].map(|at| {
            let bytes: [u8; 16] = std::array::from_fn(|n| header[at + n]);
            Ipv6Addr::from(bytes).into()
        })),
        _ => None,
    }
}
