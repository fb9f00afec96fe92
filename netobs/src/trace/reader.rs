//! The thread that takes packets out of the ring and writes them, whatever the rest is busy with.

use std::{
    collections::BTreeMap,
    io::{self, Write},
    os::{fd::AsFd as _, unix::net::UnixStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    time::{ClockId, clock_gettime},
};

use super::{
    dropped::Wanted,
    order::{Captured, Order},
};
use crate::{
    ebpf::{DropCounts, DropRing, Ring},
    model::{Book, Dropped, InterfaceKey, Packet, TraceCounts, Way, drops::DropEvent},
    output::trace::Writer,
};

/// Packets taken out of the ring before some are written.
const BATCH: usize = 1024;

/// What was taken out of the rings at a time.
struct Batch {
    /// Of the ring that had more.
    taken: usize,
    /// See [`read_until`].
    until_ns: u64,
}

/// How long it waits for packets, and how soon those that are held are looked at again.
const IDLE_MS: u16 = 200;
const HELD_MS: u16 = 5;

/// Between 802.3's addresses and the ethertype: where a VLAN tag is.
const TAG_OFFSET: usize = 12;

/// EtherTypes.
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Where the book of names is put, and looked up for each batch.
#[derive(Clone, Default)]
pub struct Names(Arc<Mutex<Arc<Book>>>);

impl Names {
    pub fn put(&self, book: Book) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(book);
    }

    pub fn get(&self) -> Arc<Book> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// When enough has been written.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub packets: Option<u64>,
    pub bytes: Option<u64>,
    pub snaplen: u32,
}

/// What the end needs to know: how many packets are, or have been, in the ring, and what became of all.
pub struct Final {
    pub delivered: u64,
    pub counts: BTreeMap<InterfaceKey, TraceCounts>,
    pub dropped: DropCounts,
}

/// What has been done so far, for whoever waits for the end.
#[derive(Debug, Default)]
pub struct Written {
    /// Packets that passed.
    packets: AtomicU64,
    /// Packets that were dropped.
    drops: AtomicU64,
    /// Packets that were dropped and not asked for.
    others: AtomicU64,
}

impl Written {
    pub fn packets(&self) -> u64 {
        self.packets.load(Ordering::Relaxed)
    }

    pub fn drops(&self) -> u64 {
        self.drops.load(Ordering::Relaxed)
    }

    pub fn others(&self) -> u64 {
        self.others.load(Ordering::Relaxed)
    }
}

/// Where dropped packets come from, and which are asked for.
pub struct Drops {
    pub ring: DropRing,
    pub wanted: Wanted,
}

pub struct Reader<W> {
    ring: Ring,
    drops: Option<Drops>,
    writer: Writer,
    out: W,
    names: Names,
    limits: Limits,
    order: Order,
    /// From the packets' clock to the epoch: taken once, so that times never step.
    epoch_ns: u64,
    start_ns: u64,
    written_bytes: u64,
    /// Packets taken out of the ring, and out of the one of dropped packets.
    read: u64,
    read_drops: u64,
    written: Arc<Written>,
    is_full: bool,
}

impl<W: Write> Reader<W> {
    pub fn new(
        (ring, drops): (Ring, Option<Drops>),
        writer: Writer,
        out: W,
        names: Names,
        limits: Limits,
    ) -> io::Result<Self> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_err(io::Error::other)?;
        let start_ns = nanoseconds(now);
        let mut reader = Self {
            ring,
            drops,
            writer,
            out,
            names,
            limits,
            order: Order::default(),
            epoch_ns: start_ns.saturating_sub(now_ns()?),
            start_ns,
            written_bytes: 0,
            read: 0,
            read_drops: 0,
            written: Arc::default(),
            is_full: false,
        };
        let mut begin = Vec::new();
        reader.writer.begin(&mut begin);
        reader.write(&begin)?;
        reader.out.flush()?;
        Ok(reader)
    }

    /// Writes packets until enough have been, or the other end of `stop` is closed.
    pub fn run(&mut self, stop: &UnixStream) -> io::Result<()> {
        while !self.is_full {
            let wait = if self.order.is_empty() { IDLE_MS } else { HELD_MS };
            let drops = self.drops.as_ref().map(|drops| drops.ring.fd());
            let rings = [self.ring.fd()].into_iter().chain(drops);
            let mut fds: Vec<_> = [stop.as_fd()]
                .into_iter()
                .chain(rings)
                .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
                .collect();
            match poll(&mut fds, PollTimeout::from(wait)) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if fds[0].revents().is_some_and(|flags| !flags.is_empty()) {
                return Ok(());
            }
            loop {
                let batch = self.take_batch()?;
                self.write_due(&batch)?;
                if batch.taken < BATCH || self.is_full {
                    break;
                }
            }
            self.out.flush()?;
        }
        Ok(())
    }

    /// Writes what is left, after all has been detached.
    pub fn finish(&mut self, last: &Final, patience: Duration) -> io::Result<()> {
        let end = std::time::Instant::now() + patience;
        let is_behind = |reader: &Self| {
            reader.read < last.delivered
                || reader.read_drops < last.dropped.delivered && reader.drops.is_some()
        };
        while is_behind(self) && std::time::Instant::now() < end {
            let batch = self.take_batch()?;
            if batch.taken == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.write_due(&batch)?;
        }
        let book = self.names.get();
        while !self.is_full
            && let Some(captured) = self.order.take()
        {
            self.write_packet(captured, &book)?;
        }
        let mut end = Vec::new();
        let DropCounts { events: matched, delivered, lost, .. } = last.dropped;
        let dropped = TraceCounts { matched, delivered, lost, ..TraceCounts::ZERO };
        self.writer.end(&last.counts, dropped, [self.start_ns, self.epoch_ns + now_ns()?], &mut end);
        self.write(&end)?;
        self.out.flush()
    }

    pub fn written(&self) -> Arc<Written> {
        Arc::clone(&self.written)
    }

    fn take_batch(&mut self) -> io::Result<Batch> {
        // Before both: what is captured while one is read may be in the other already.
        let began_ns = now_ns()?;
        let Self { ring, drops, order, is_full, .. } = self;
        let (mut taken, mut last_ns) = (0, 0);
        while taken < BATCH
            && ring.next(|header, bytes| {
                last_ns = header.time_ns;
                if !*is_full {
                    order.push(Captured { header: *header, bytes: bytes.to_vec(), dropped: None });
                }
            })
        {
            taken += 1;
        }
        self.read += taken as u64;
        let dropped = drops.as_mut().map(|drops| drops.ring.take(BATCH)).unwrap_or_default();
        self.read_drops += dropped.len() as u64;
        let last_drop_ns = dropped.last().map_or(0, |record| record.time_ns);
        let until_ns = read_until(began_ns, [(taken, last_ns), (dropped.len(), last_drop_ns)]);
        let taken = taken.max(dropped.len());
        if !*is_full {
            dropped.into_iter().for_each(|record| order.push(Captured::of_drop(record)));
        }
        Ok(Batch { taken, until_ns })
    }

    fn write_due(&mut self, batch: &Batch) -> io::Result<()> {
        let book = self.names.get();
        let is_named = |slot: u32| book.by_slot.get(&slot).is_some_and(|(_, is_settled)| *is_settled);
        while !self.is_full
            && let Some(captured) = self.order.pop(batch.until_ns, is_named)
        {
            self.write_packet(captured, &book)?;
        }
        Ok(())
    }

    fn write_packet(&mut self, captured: Captured, book: &Book) -> io::Result<()> {
        let mut captured = captured;
        let event = captured.dropped.take();
        let packet = packet(captured, book, self.epoch_ns, self.limits.snaplen);
        let mut record = Vec::with_capacity(256);
        let written = match event {
            Some(event) => match self.wanted(packet, &event, book) {
                Some(dropped) => {
                    self.writer.dropped(dropped, &mut record).map_err(io::Error::other)?;
                    &self.written.drops
                }
                None => {
                    self.written.others.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
            },
            None => {
                self.writer.packet(&packet, book, &mut record).map_err(io::Error::other)?;
                &self.written.packets
            }
        };
        let after = self.written_bytes + (record.len() + self.writer.end_bytes()) as u64;
        if self.limits.bytes.is_some_and(|limit| after > limit) {
            self.is_full = true;
            return Ok(());
        }
        self.written_bytes += record.len() as u64;
        self.out.write_all(&record)?;
        written.fetch_add(1, Ordering::Relaxed);
        self.is_full = self.limits.packets == Some(self.written.packets() + self.written.drops());
        Ok(())
    }

    /// If it is asked for.
    fn wanted(&self, packet: Packet, event: &DropEvent, book: &Book) -> Option<Dropped> {
        let packet = Packet { point: None, ..packet };
        let mut dropped = Dropped { packet, kind: book.directory.kind(event) };
        if !dropped.packet.link && !matches!(event.ethertype, IPV4 | IPV6) {
            // What begins with a header of neither cannot be told from what does.
            dropped.packet.bytes.clear();
        }
        let is_wanted = self.drops.as_ref()?.wanted.has(&dropped, &book.chosen);
        dropped.packet.bytes.truncate(self.limits.snaplen as usize);
        is_wanted.then_some(dropped)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.written_bytes += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// With the VLAN tag that the kernel keeps outside the frame in its place.
pub(crate) fn packet(captured: Captured, book: &Book, epoch_ns: u64, snaplen: u32) -> Packet {
    let Captured { header, mut bytes, .. } = captured;
    let mut length = header.len;
    if header.vlan_protocol != 0 && bytes.len() >= TAG_OFFSET {
        let [a, b] = header.vlan_protocol.to_be_bytes();
        let [c, d] = header.vlan_tci.to_be_bytes();
        bytes.splice(TAG_OFFSET..TAG_OFFSET, [a, b, c, d]);
        bytes.truncate(snaplen as usize);
        length = length.saturating_add(4);
    }
    let point = book.by_slot.get(&header.slot).map(|(point, _)| Arc::clone(point));
    let ingress = u32::from(header.direction) == netobs_common::INGRESS;
    let way = match &point {
        Some(point) => point.way(ingress),
        None if ingress => Way::Rx,
        None => Way::Tx,
    };
    Packet {
        time_ns: epoch_ns.saturating_add(header.time_ns),
        point,
        slot: header.slot,
        way,
        length,
        segments: header.segments,
        link: header.link != 0,
        bytes,
    }
}

/// Until when all is read that had come out of a program, of reading that began then: of each ring how many were taken,
/// and the last one's time. One that was not read to its end has more of about that time.
fn read_until(began_ns: u64, rings: [(usize, u64); 2]) -> u64 {
    let unread = rings.into_iter().filter(|(taken, _)| *taken == BATCH).map(|(_, last_ns)| last_ns);
    unread.fold(began_ns, u64::min)
}

/// By the packets' clock.
fn now_ns() -> io::Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
    Ok(nanoseconds(Duration::from(now)))
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netobs_common::trace::TraceHeader;

    #[test]
    fn a_ring_that_has_more_holds_back_the_other() {
        assert_eq!(read_until(1000, [(3, 990), (0, 0)]), 1000, "both are empty");
        assert_eq!(read_until(1000, [(BATCH, 700), (3, 990)]), 700);
        assert_eq!(read_until(1000, [(BATCH, 700), (BATCH, 600)]), 600);
        assert_eq!(read_until(1000, [(BATCH, 1010), (0, 0)]), 1000, "captured while it was read");
    }

    #[test]
    fn a_tag_outside_the_frame_is_put_into_it() {
        let bytes: Vec<u8> = (0..20).collect();
        let header = TraceHeader {
            len: 60,
            captured: 20,
            vlan_protocol: 0x8100,
            vlan_tci: 0x2005,
            link: 1,
            ..TraceHeader::default()
        };
        let told = packet(Captured { header, bytes: bytes.clone(), dropped: None }, &Book::default(), 1, 100);
        assert_eq!(told.length, 64);
        assert_eq!(told.bytes[..16], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x81, 0, 0x20, 5]);
        assert_eq!(told.bytes[16..], bytes[12..]);
        let cut = packet(Captured { header, bytes, dropped: None }, &Book::default(), 1, 20);
        assert_eq!((cut.bytes.len(), cut.length), (20, 64));
    }
}
