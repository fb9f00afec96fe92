//! DNS messages and ARP packets as the programs tell of them: the ring, and whose the records in it are.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    os::fd::{AsFd as _, BorrowedFd},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use netobs_common::{
    class,
    events::{EventHeader, kind},
    l4,
};

use super::{
    mapping::Mapping,
    object::{LoadError, map_array, take},
};
use crate::model::InterfaceKey;

/// Smallest ring: what the kernel wants is a power of two, and whole pages.
pub const MIN_EVENT_BYTES: u32 = 4096;

/// Which packets are told of one by one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventOptions {
    pub dns: bool,
    /// The names that are asked for, too.
    pub names: bool,
    pub arp: bool,
    /// A power of two, [`MIN_EVENT_BYTES`] at least.
    pub ring_bytes: u32,
}

impl EventOptions {
    pub const fn is_on(self) -> bool {
        self.dns || self.arp
    }

    /// Bit by [`class`].
    pub(super) const fn classes(self) -> u32 {
        let l4 = 1 << l4::UDP | 1 << l4::TCP;
        let dns = l4 << class::IPV4 | l4 << class::IPV6 | l4 << class::VLAN;
        (if self.dns { dns } else { 0 }) | if self.arp { 1 << class::ARP } else { 0 }
    }
}

/// What the programs have told, in the order in which it happened.
pub struct EventRing {
    ring: RingBuf<MapData>,
    lost: Mapping,
}

impl fmt::Debug for EventRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRing").finish_non_exhaustive()
    }
}

impl EventRing {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let lost = map_array(ebpf, "EVENTS_LOST", kind::COUNT)?;
        Ok(Self { ring: RingBuf::try_from(take(ebpf, "EVENTS")?)?, lost })
    }

    /// To poll for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }

    /// The next record, handed to `each`; false if there is none.
    pub fn next(&mut self, each: impl FnOnce(&EventHeader, &[u8])) -> bool {
        let Some(record) = self.ring.next() else { return false };
        if let Some((header, bytes)) = Self::parts(&record) {
            each(&header, bytes);
        }
        true
    }

    /// A record's header, and what there is of the packet.
    pub(crate) fn parts(record: &[u8]) -> Option<(EventHeader, &[u8])> {
        let (header, room) = record.split_at_checked(size_of::<EventHeader>())?;
        // SAFETY: as many bytes as the header has, of plain integers; read unaligned.
        let header = unsafe { header.as_ptr().cast::<EventHeader>().read_unaligned() };
        Some((header, room.get(..usize::from(header.captured)).unwrap_or(room)))
    }

    /// What found the ring full, by [`kind`].
    pub fn lost(&self) -> [u64; kind::COUNT] {
        std::array::from_fn(|kind| self.lost.load(kind).unwrap_or(0))
    }
}

/// Holders of one slot that are remembered.
const REMEMBERED: usize = 4;

/// Whose slots are and were: a record may still be in the ring when its slot is another's. So its time tells.
#[derive(Debug, Default)]
pub struct Holders(BTreeMap<u32, VecDeque<Holder>>);

#[derive(Clone, Copy, Debug)]
struct Holder {
    since_ns: u64,
    key: InterfaceKey,
    of_host: bool,
}

impl Holders {
    /// To be told before anything is attached with the slot.
    pub fn enter(&mut self, slot: u32, key: InterfaceKey, of_host: bool, now_ns: u64) {
        let holders = self.0.entry(slot).or_default();
        holders.push_back(Holder { since_ns: now_ns, key, of_host });
        if holders.len() > REMEMBERED {
            holders.pop_front();
        }
    }

    /// Who had a slot at a time, and whether that is an interface of the host. None: it is too long ago.
    pub fn at(&self, slot: u32, time_ns: u64) -> Option<(InterfaceKey, bool)> {
        let holder = self.0.get(&slot)?.iter().rev().find(|holder| holder.since_ns <= time_ns)?;
        Some((holder.key, holder.of_host))
    }
}

/// `CLOCK_MONOTONIC` in ns, the programs' clock.
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the timespec; this clock always is.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_belongs_to_who_had_the_slot_then() {
        let mut holders = Holders::default();
        for n in 0..6 {
            holders.enter(7, InterfaceKey(n), n % 2 == 0, 100 * n);
        }
        let at = |time| holders.at(7, time).map(|(key, of_host)| (key.0, of_host));
        assert_eq!((at(250), at(300), at(599)), (Some((2, true)), Some((3, false)), Some((5, false))));
        assert_eq!(at(199), None, "forgotten");
        assert_eq!(holders.at(8, 500), None);
    }
}
