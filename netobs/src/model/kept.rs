//! Flows as they are kept: 80 bytes each, and as little around them as can be. There may be hundreds of thousands.

use std::{
    hash::BuildHasher as _,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashSet, fast::RandomState};
use hashbrown::HashTable;
use netobs_common::FIRST;

use super::{
    flow::{Flow, FlowId, Known, Standing},
    update::{FlowCount, FlowEnd, FlowRecord, InterfaceKey},
};

/// Each at a place that stays its own until any is dropped.
#[derive(Debug, Default)]
pub struct Kept {
    entries: Vec<Entry>,
    /// Places of `entries`, by hash of what they are of.
    index: HashTable<u32>,
    hasher: RandomState,
    spots: Spots,
    /// What super-packets add when unfolded, received and sent, by place: few flows have any.
    unfolded: HashMap<u32, [Unfolded; 2]>,
    /// TCP windows of 0, received and sent, by place: hardly a flow has any.
    zero_windows: HashMap<u32, [u64; 2]>,
    /// What flows are known to be; few are different.
    known: HashSet<Arc<Known>>,
    /// Of times of entries.
    epoch: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Unfolded {
    packets: u64,
    bytes: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    /// Packets and bytes.
    rx: [u64; 2],
    tx: [u64; 2],
    known: Option<Arc<Known>>,
    remote: [u8; 16],
    spot: u32,
    local_port: u16,
    remote_port: u16,
    first: Micros,
    last: Micros,
    protocol: u8,
    rx_flags: u8,
    tx_flags: u8,
    /// [`CLIENT`], [`PUBLISHED`]
    is: u8,
}

const _: () = assert!(size_of::<Entry>() == 80);

const CLIENT: u8 = 1;
const PUBLISHED: u8 = 2;

/// Microseconds since the epoch of a table: nine years. Who was first is told by less than a millisecond.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Micros([u8; 6]);

impl Micros {
    const LAST: Self = Self([0xff; 6]);

    fn of(time: Duration) -> Self {
        let [a, b, c, d, e, f, ..] = (time.as_micros() as u64).to_le_bytes();
        Self([a, b, c, d, e, f])
    }

    const fn number(self) -> u64 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
    }
}

/// Times before the first that is told of, which flows may have begun at.
const BEFORE: Duration = Duration::from_secs(365 * 86_400);

/// An attachment, and an address of its container's: most flows of an attachment have the same.
type Spot = (InterfaceKey, [u8; 16]);

#[derive(Debug, Default)]
struct Spots {
    /// With the number of flows that are there.
    spots: Vec<(Spot, u32)>,
    index: HashMap<Spot, u32>,
    free: Vec<u32>,
}

impl Spots {
    fn get(&self, spot: &Spot) -> Option<u32> {
        self.index.get(spot).copied()
    }

    fn hold(&mut self, spot: Spot) -> u32 {
        if let Some(at) = self.get(&spot) {
            self.spots[at as usize].1 += 1;
            return at;
        }
        let at = self.free.pop().unwrap_or_else(|| {
            self.spots.push((spot, 0));
            self.spots.len() as u32 - 1
        });
        self.spots[at as usize] = (spot, 1);
        self.index.insert(spot, at);
        at
    }

    fn release(&mut self, at: u32) {
        let (spot, flows) = &mut self.spots[at as usize];
        *flows -= 1;
        if *flows == 0 {
            self.index.remove(spot);
            self.free.push(at);
        }
    }
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

impl Kept {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Where a flow is.
    pub fn find(&self, id: &FlowId) -> Option<u32> {
        let spot = self.spots.get(&(id.interface, bytes(id.local.address)))?;
        let remote = bytes(id.remote.address);
        let hash = self.hash(spot, id, &remote);
        self.index.find(hash, |at| self.entries[*at as usize].is(spot, id, &remote)).copied()
    }

    /// Where a flow is put that is not yet there.
    pub fn insert(&mut self, record: &FlowRecord) -> u32 {
        let id = record.id();
        let spot = self.spots.hold((id.interface, bytes(id.local.address)));
        let remote = bytes(id.remote.address);
        let at = self.entries.len() as u32;
        let hash = self.hash(spot, &id, &remote);
        let (entries, hasher) = (&self.entries, &self.hasher);
        self.index.insert_unique(hash, at, |at| entries[*at as usize].hash(hasher));
        let last = self.micros(record.last);
        self.entries.push(Entry {
            rx: [0; 2],
            tx: [0; 2],
            known: None,
            remote,
            spot,
            local_port: id.local.port,
            remote_port: id.remote.port,
            first: Micros::LAST,
            last,
            protocol: id.protocol,
            rx_flags: 0,
            tx_flags: 0,
            is: 0,
        });
        at
    }

    /// Adds what is new.
    pub fn add(&mut self, at: u32, record: &FlowRecord) {
        let (first, last) = (self.micros(record.first), self.micros(record.last));
        let entry = &mut self.entries[at as usize];
        for (sum, count) in [(&mut entry.rx, record.rx), (&mut entry.tx, record.tx)] {
            sum[0] += count.packets;
            sum[1] += count.bytes;
        }
        let unfolded = [record.rx, record.tx].map(|count| Unfolded {
            packets: count.wire_packets - count.packets,
            bytes: count.wire_bytes - count.bytes,
        });
        if unfolded.iter().any(|unfolded| unfolded.bytes != 0 || unfolded.packets != 0) {
            for (sum, new) in self.unfolded.entry(at).or_default().iter_mut().zip(unfolded) {
                sum.packets += new.packets;
                sum.bytes += new.bytes;
            }
        }
        let zero_windows = [record.rx_zero_windows, record.tx_zero_windows];
        if zero_windows != [0; 2] {
            for (sum, new) in self.zero_windows.entry(at).or_default().iter_mut().zip(zero_windows) {
                *sum += new;
            }
        }
        entry.seen(first, last, record);
    }

    pub fn get(&self, at: u32) -> (FlowId, Flow<'_>) {
        let entry = &self.entries[at as usize];
        let ((interface, local), _) = self.spots.spots[entry.spot as usize];
        let unfolded = self.unfolded.get(&at).copied().unwrap_or_default();
        let [rx, tx] =
            [(entry.rx, unfolded[0]), (entry.tx, unfolded[1])].map(|([packets, bytes], unfolded)| {
                FlowCount {
                    packets,
                    bytes,
                    wire_packets: packets + unfolded.packets,
                    wire_bytes: bytes + unfolded.bytes,
                }
            });
        let [rx_zero_windows, tx_zero_windows] = self.zero_windows.get(&at).copied().unwrap_or_default();
        let id = FlowId {
            interface,
            local: FlowEnd { address: address(local), port: entry.local_port },
            remote: FlowEnd { address: address(entry.remote), port: entry.remote_port },
            protocol: entry.protocol,
        };
        let flow = Flow {
            rx,
            tx,
            rx_flags: entry.rx_flags,
            tx_flags: entry.tx_flags,
            rx_zero_windows,
            tx_zero_windows,
            first: self.time(entry.first),
            last: self.time(entry.last),
            known: entry.known.as_ref(),
            client: entry.is & CLIENT != 0,
        };
        (id, flow)
    }

    /// None until it is known whose it is.
    pub fn standing(&self, at: u32) -> Option<Standing<'_>> {
        let entry = &self.entries[at as usize];
        let known = entry.known.as_ref()?;
        Some(Standing { known, client: entry.is & CLIENT != 0, published: entry.is & PUBLISHED != 0 })
    }

    pub fn iter(&self) -> impl Iterator<Item = (FlowId, Flow<'_>)> {
        (0..self.entries.len() as u32).map(|at| self.get(at))
    }

    /// What a flow turns out to be.
    pub fn tell(&mut self, at: u32, known: Known, client: bool, published: bool) {
        let known = match self.known.get(&known) {
            Some(known) => Arc::clone(known),
            None => {
                let known = Arc::new(known);
                self.known.insert(Arc::clone(&known));
                known
            }
        };
        let entry = &mut self.entries[at as usize];
        entry.known = Some(known);
        entry.is = if client { CLIENT } else { 0 } | if published { PUBLISHED } else { 0 };
    }

    /// Drops a flow. The one in the last place is in its place then.
    pub fn remove(&mut self, at: u32) {
        let last = self.entries.len() as u32 - 1;
        let hash = self.entries[at as usize].hash(&self.hasher);
        if let Ok(found) = self.index.find_entry(hash, |place| *place == at) {
            found.remove();
        }
        self.unfolded.remove(&at);
        self.zero_windows.remove(&at);
        let removed = self.entries.swap_remove(at as usize);
        self.spots.release(removed.spot);
        if at != last {
            let hash = self.entries[at as usize].hash(&self.hasher);
            if let Some(place) = self.index.find_mut(hash, |place| *place == last) {
                *place = at;
            }
            if let Some(unfolded) = self.unfolded.remove(&last) {
                self.unfolded.insert(at, unfolded);
            }
            if let Some(zero_windows) = self.zero_windows.remove(&last) {
                self.zero_windows.insert(at, zero_windows);
            }
        }
    }

    /// Gives back memory of as many flows as there may once have been.
    pub fn shrink(&mut self) {
        self.known.retain(|known| Arc::strong_count(known) > 1);
        if self.entries.capacity() / 4 > self.entries.len() {
            self.entries.shrink_to_fit();
            let (entries, hasher) = (&self.entries, &self.hasher);
            self.index.shrink_to_fit(|at| entries[*at as usize].hash(hasher));
            self.unfolded.shrink_to_fit();
            self.zero_windows.shrink_to_fit();
        }
    }

    fn hash(&self, spot: u32, id: &FlowId, remote: &[u8; 16]) -> u64 {
        self.hasher.hash_one((spot, id.local.port, id.remote.port, id.protocol, remote))
    }

    fn micros(&mut self, time: Instant) -> Micros {
        let epoch = *self.epoch.get_or_insert_with(|| time.checked_sub(BEFORE).unwrap_or(time));
        Micros::of(time.saturating_duration_since(epoch))
    }

    fn time(&self, micros: Micros) -> Instant {
        let Some(epoch) = self.epoch else { unreachable!("an entry has brought its time") };
        epoch + Duration::from_micros(micros.number())
    }
}

impl Entry {
    fn is(&self, spot: u32, id: &FlowId, remote: &[u8; 16]) -> bool {
        self.spot == spot
            && self.remote == *remote
            && (self.local_port, self.remote_port, self.protocol)
                == (id.local.port, id.remote.port, id.protocol)
    }

    /// As [`Kept::hash`].
    fn hash(&self, hasher: &RandomState) -> u64 {
        hasher.hash_one((self.spot, self.local_port, self.remote_port, self.protocol, &self.remote))
    }

    fn seen(&mut self, first: Micros, last: Micros, record: &FlowRecord) {
        // Who was first is told by the CPU that was.
        if first.number() < self.first.number() {
            self.first = first;
            self.rx_flags = self.rx_flags & !FIRST | record.rx_flags & FIRST;
            self.tx_flags = self.tx_flags & !FIRST | record.tx_flags & FIRST;
        }
        self.rx_flags |= record.rx_flags & !FIRST;
        self.tx_flags |= record.tx_flags & !FIRST;
        if last.number() > self.last.number() {
            self.last = last;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::class::{Class, Peer};

    fn record(n: u32, start: Instant) -> FlowRecord {
        let end =
            |last: u32, port| FlowEnd { address: std::net::Ipv4Addr::from(0x0a00_0000 + last).into(), port };
        let count = |n: u64| FlowCount { packets: n, bytes: 100 * n, wire_packets: n, wire_bytes: 100 * n };
        FlowRecord {
            interface: InterfaceKey(u64::from(n % 3)),
            local: end(n % 5, 80),
            remote: end(1000 + n / 7, n as u16),
            protocol: 17,
            rx: count(u64::from(n)),
            tx: count(1),
            rx_flags: FIRST,
            tx_flags: 0,
            rx_zero_windows: 0,
            tx_zero_windows: 0,
            first: start + Duration::from_micros(u64::from(n)),
            last: start + Duration::from_millis(u64::from(n)),
        }
    }

    fn known(container: &str) -> Known {
        let (class, peer) = (Class::External, Peer::Elsewhere(Class::External));
        Known { class, container: container.to_owned(), network: None, peer, own: true }
    }

    /// Whatever is dropped in between, each is found where it is, as it was told of.
    #[test]
    fn each_is_found_again() {
        let start = Instant::now();
        let mut kept = Kept::default();
        for n in 0..1000 {
            let mut record = record(n, start);
            if n % 4 == 0 {
                record.rx.wire_packets += 2;
                record.rx.wire_bytes += 132;
            }
            if n % 5 == 0 {
                (record.rx_zero_windows, record.tx_zero_windows) = (u64::from(n), 2);
            }
            let at = kept.insert(&record);
            kept.add(at, &record);
            kept.tell(at, known(if n % 2 == 0 { "even" } else { "odd" }), n % 2 == 0, false);
        }
        assert_eq!(kept.known.len(), 2, "what is the same is there once");
        for n in (0..1000).filter(|n| n % 3 != 0) {
            let at = kept.find(&record(n, start).id()).expect("there");
            kept.remove(at);
        }
        kept.shrink();
        assert_eq!(kept.len(), 334);
        for n in 0..1000 {
            let record = record(n, start);
            let Some(at) = kept.find(&record.id()) else {
                assert_ne!(n % 3, 0, "{n} is gone");
                continue;
            };
            let (id, flow) = kept.get(at);
            assert_eq!(id, record.id());
            let unfolded = if n % 4 == 0 { (2, 132) } else { (0, 0) };
            assert_eq!((flow.rx.packets, flow.rx.bytes), (u64::from(n), 100 * u64::from(n)));
            assert_eq!(flow.rx.wire_packets - flow.rx.packets, unfolded.0, "{n}");
            assert_eq!(flow.rx.wire_bytes - flow.rx.bytes, unfolded.1, "{n}");
            let zero_windows = if n % 5 == 0 { (u64::from(n), 2) } else { (0, 0) };
            assert_eq!((flow.rx_zero_windows, flow.tx_zero_windows), zero_windows, "{n}");
            assert_eq!(flow.last - flow.first, Duration::from_micros(u64::from(n) * 999), "{n}");
            let standing = kept.standing(at).expect("known");
            assert_eq!((standing.known.container == "even", standing.client), (n % 2 == 0, n % 2 == 0));
        }
        while kept.len() > 0 {
            kept.remove(0);
        }
        kept.shrink();
        assert!(kept.known.is_empty() && kept.unfolded.is_empty() && kept.spots.index.is_empty());
        assert!(kept.index.is_empty() && kept.zero_windows.is_empty());
    }

    /// The end whose packet was earlier was first, whichever CPU's is told of first.
    #[test]
    fn who_was_first_is_told_by_the_earlier() {
        let start = Instant::now();
        let reply = record(100, start);
        let mut request = FlowRecord { rx_flags: 0, tx_flags: FIRST, ..reply };
        request.first = start + Duration::from_micros(50);
        for records in [[&reply, &request], [&request, &reply]] {
            let mut kept = Kept::default();
            let at = kept.insert(records[0]);
            records.iter().for_each(|record| kept.add(at, record));
            let (_, flow) = kept.get(at);
            assert_eq!((flow.rx_flags, flow.tx_flags), (0, FIRST));
        }
    }
}
