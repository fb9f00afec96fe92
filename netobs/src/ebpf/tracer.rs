//! `netobs trace` in the kernel: attached to what is selected, and what became of the packets there.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::IpAddr,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData, RingBuf},
};
use netobs_common::{
    DIRECTIONS, Hook,
    trace::{TraceCounts, TraceHeader},
};

use super::{
    attach::AttachMode,
    attachments::{Attach, AttachError, Attachments, Counted},
    directory::Directory,
    hooks::{Hooks, InterfaceNames, Names},
    mapping::Mapping,
    object::{LoadError, map_array, take},
    slots::Slots,
    survey::Survey,
};
use crate::{
    model::InterfaceKey,
    netlink::{Entrance, Netlink},
};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/trace.bpf.o");

const NAMES: Names = Names {
    interface: InterfaceNames { filter: "trace_filter", tcx: ["trace_tcx_ingress", "trace_tcx_egress"] },
    bridge: None,
    cgroup: ["trace_cgroup_in", "trace_cgroup_out"],
};

/// Smallest ring: one record of the largest packet fits, and the kernel wants a power of two.
pub const MIN_RING_BYTES: u32 = 128 * 1024;

/// Packets that are asked for: those that have all of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PacketFilter {
    /// Of a VLAN tag or of what is behind it.
    pub ethertype: Option<u16>,
    /// IP protocol number.
    pub protocol: Option<u8>,
    /// TCP, UDP or SCTP, of either side.
    pub port: Option<u16>,
    /// An address and how many of its bits count; of either side, of ARP sender or target.
    pub host: Option<(IpAddr, u8)>,
}

#[derive(Clone, Copy, Debug)]
pub struct TraceOptions {
    /// Interfaces and cgroups that can be attached at a time.
    pub max_interfaces: u32,
    pub mode: AttachMode,
    pub filter: PacketFilter,
    /// Bytes of each packet that are captured.
    pub snaplen: u32,
    /// Packets a second at most; 0: no limit.
    pub rate: u32,
    /// A power of two, [`MIN_RING_BYTES`] at least.
    pub ring_bytes: u32,
}

/// A place that was found, and how to attach there.
#[derive(Debug)]
enum Candidate {
    Host { ifindex: u32 },
    Inside { entrance: Entrance, ifindex: u32 },
    Cgroup(File),
}

/// Owner of all that `netobs trace` has in the kernel. Dropping it detaches all.
pub struct Tracer {
    attachments: Attachments,
    counts: Mapping,
    candidates: BTreeMap<InterfaceKey, Candidate>,
    /// None: every place that is found, as soon as it is.
    selected: Option<BTreeSet<InterfaceKey>>,
    /// Who has a slot, or had it last: its counts are in it until it is used again.
    by_slot: BTreeMap<u32, InterfaceKey>,
    /// Of attachments whose slot is another's by now.
    former: TraceCounts,
}

impl Tracer {
    /// Loads the object; attaches nothing yet. With `everywhere`, each place is attached to as soon as it
    /// is found; otherwise when it is selected.
    ///
    /// # Errors
    /// Without the privileges, on kernels without ring buffers, or when the verifier refuses.
    pub fn load(options: &TraceOptions, everywhere: bool) -> Result<(Self, Ring), LoadError> {
        let survey = Survey::begin(options.mode);
        let mut ebpf = load_object(options)?;
        let directory = Directory::new(None, HashMap::try_from(take(&mut ebpf, "SLOTS")?)?);
        let hooks = Hooks::load(&mut ebpf, &NAMES, directory)?;
        let words = (options.max_interfaces * DIRECTIONS) as usize * TraceCounts::WORDS;
        let counts = map_array(&ebpf, "COUNTS", words)?;
        let ring = Ring(RingBuf::try_from(take(&mut ebpf, "EVENTS")?)?);
        let slots = Slots::in_turn(options.max_interfaces);
        let attachments = Attachments::new(hooks, survey, slots, None).map_err(LoadError::Netlink)?;
        let tracer = Self {
            attachments,
            counts,
            candidates: BTreeMap::new(),
            selected: (!everywhere).then(BTreeSet::new),
            by_slot: BTreeMap::new(),
            former: TraceCounts::ZERO,
        };
        Ok((tracer, ring))
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.attachments.hooks().programs(false, ingress).tcx
    }

    /// Attaches to these places and to no others, if it is not attached everywhere; what could not be.
    pub fn select(&mut self, wanted: &BTreeSet<InterfaceKey>) -> Vec<(InterfaceKey, AttachError)> {
        let Some(selected) = &self.selected else { return Vec::new() };
        let added: Vec<_> = wanted.difference(selected).copied().collect();
        let removed: Vec<_> = selected.difference(wanted).copied().collect();
        self.selected = Some(wanted.clone());
        for key in removed {
            self.let_go(key);
        }
        if !added.is_empty()
            && let Err(error) = self.survey()
        {
            tracing::warn!(%error, "look at what others have on the interfaces");
        }
        added.into_iter().filter_map(|key| Some((key, self.attach_candidate(key, None).err()?))).collect()
    }

    /// Whose the packets of a slot are, or were last.
    pub fn by_slot(&self) -> &BTreeMap<u32, InterfaceKey> {
        &self.by_slot
    }

    /// What became of the packets of each attachment, as far as its slot is not another's by now.
    pub fn counts(&self) -> BTreeMap<InterfaceKey, TraceCounts> {
        self.by_slot.iter().map(|(slot, key)| (*key, self.read_slot(*slot))).collect()
    }

    /// What became of all packets.
    pub fn total(&self) -> TraceCounts {
        self.by_slot.keys().fold(self.former, |sum, slot| add(sum, self.read_slot(*slot)))
    }

    /// Detaches everything, and attaches nothing any more.
    pub fn detach_all(&mut self) {
        self.selected = Some(BTreeSet::new());
        let keys: Vec<_> = self.candidates.keys().copied().collect();
        for key in keys {
            self.let_go(key);
        }
        self.candidates.clear();
    }

    fn find(
        &mut self,
        key: InterfaceKey,
        candidate: Candidate,
        inside: Option<&mut Netlink>,
    ) -> Result<(), AttachError> {
        self.candidates.insert(key, candidate);
        if self.selected.as_ref().is_some_and(|selected| !selected.contains(&key)) {
            return Ok(());
        }
        let attached = self.attach_candidate(key, inside);
        if attached.is_err() {
            self.candidates.remove(&key);
        }
        attached
    }

    fn attach_candidate(
        &mut self,
        key: InterfaceKey,
        inside: Option<&mut Netlink>,
    ) -> Result<(), AttachError> {
        let Some(candidate) = self.candidates.get(&key) else { return Err(AttachError::Gone) };
        let slot = self.attachments.take()?;
        if self.by_slot.remove(&slot).is_some() {
            self.former = add(self.former, read_slot(&self.counts, slot));
        }
        clear_slot(&self.counts, slot);
        let attachments = &mut self.attachments;
        let attached = match candidate {
            Candidate::Host { ifindex } => attachments.attach(key, slot, *ifindex, false),
            Candidate::Cgroup(cgroup) => attachments.attach_cgroup(key, slot, cgroup),
            Candidate::Inside { entrance, ifindex } => match inside {
                Some(netlink) => attachments.attach_inside(key, slot, entrance.clone(), netlink, *ifindex),
                None => entrance.connect().map_err(|_| AttachError::Gone).and_then(|mut netlink| {
                    attachments.attach_inside(key, slot, entrance.clone(), &mut netlink, *ifindex)
                }),
            },
        };
        // Also if it failed: one direction may have been attached for a moment.
        self.by_slot.insert(slot, key);
        if attached.is_err() {
            self.attachments.release(slot);
        }
        attached
    }

    fn let_go(&mut self, key: InterfaceKey) {
        if let Some(slot) = self.attachments.detach(key) {
            self.attachments.release(slot);
        }
    }

    fn read_slot(&self, slot: u32) -> TraceCounts {
        read_slot(&self.counts, slot)
    }
}

/// A place is a candidate as long as it is there. Nothing is counted but what became of matching packets,
/// which [`Tracer::counts`] tells.
impl Attach for Tracer {
    fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    fn attachments_mut(&mut self) -> &mut Attachments {
        &mut self.attachments
    }

    fn attach(&mut self, key: InterfaceKey, ifindex: u32, _bridge: bool) -> Result<(), AttachError> {
        self.find(key, Candidate::Host { ifindex }, None)
    }

    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        self.find(key, Candidate::Inside { entrance, ifindex }, Some(netlink))
    }

    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError> {
        let cgroup = cgroup.try_clone().map_err(AttachError::Cgroup)?;
        self.find(key, Candidate::Cgroup(cgroup), None)
    }

    fn detach(&mut self, key: InterfaceKey) -> Option<Counted> {
        self.candidates.remove(&key)?;
        self.let_go(key);
        Some(Counted::ZERO)
    }

    fn read(&self, key: InterfaceKey) -> Option<Counted> {
        self.candidates.contains_key(&key).then_some(Counted::ZERO)
    }

    fn read_all(&self) -> Vec<(InterfaceKey, Counted)> {
        Vec::new()
    }
}

fn load_object(options: &TraceOptions) -> Result<Ebpf, LoadError> {
    let filter = &options.filter;
    let ethertype = u32::from(filter.ethertype.unwrap_or(0));
    let protocol = filter.protocol.map_or(0, |protocol| u32::from(protocol) + 1);
    let port = u32::from(filter.port.unwrap_or(0));
    let (family, address, mask) = host(filter.host);
    let loaded = EbpfLoader::new()
        .btf(None)
        .override_global("ETHERTYPE", &ethertype, true)
        .override_global("PROTOCOL", &protocol, true)
        .override_global("PORT", &port, true)
        .override_global("HOST_FAMILY", &family, true)
        .override_global("HOST_ADDRESS", &address, true)
        .override_global("HOST_MASK", &mask, true)
        .override_global("SNAPLEN", &options.snaplen, true)
        .override_global("MAX_RATE", &options.rate, true)
        .map_max_entries("SLOTS", options.max_interfaces)
        .map_max_entries("COUNTS", options.max_interfaces * DIRECTIONS)
        .map_max_entries("EVENTS", options.ring_bytes)
        .load(OBJECT)?;
    Ok(loaded)
}

/// Family, address and mask as the programs compare them.
fn host(host: Option<(IpAddr, u8)>) -> (u32, [u16; 8], [u16; 8]) {
    let Some((address, prefix)) = host else { return (0, [0; 8], [0; 8]) };
    let (family, bits, words) = match address {
        IpAddr::V4(address) => {
            let [a, b, c, d] = address.octets().map(u16::from);
            (4, 32, [a << 8 | b, c << 8 | d, 0, 0, 0, 0, 0, 0])
        }
        IpAddr::V6(address) => (6, 128, address.segments()),
    };
    let mask: [u16; 8] = std::array::from_fn(|word| {
        let ones = u32::from(prefix.min(bits)).saturating_sub(16 * u32::try_from(word).unwrap_or(8)).min(16);
        u16::try_from(0xffff_u32 << (16 - ones) & 0xffff).unwrap_or(0)
    });
    (family, std::array::from_fn(|word| words[word] & mask[word]), mask)
}

fn words(counts: &Mapping, slot: u32, direction: u32) -> &[std::sync::atomic::AtomicU64] {
    counts.words(Hook::new(slot, direction).index() as usize * TraceCounts::WORDS, TraceCounts::WORDS)
}

fn clear_slot(counts: &Mapping, slot: u32) {
    for direction in 0..DIRECTIONS {
        for word in words(counts, slot, direction) {
            word.store(0, Ordering::Relaxed);
        }
    }
}

fn read_slot(counts: &Mapping, slot: u32) -> TraceCounts {
    (0..DIRECTIONS).fold(TraceCounts::ZERO, |sum, direction| {
        // `matched` is the first: what passes meanwhile is matched and not yet more.
        let mut read = words(counts, slot, direction).iter().map(|word| word.load(Ordering::Acquire));
        let mut next = || read.next().unwrap_or(0);
        let (matched, delivered, lost, limited) = (next(), next(), next(), next());
        add(sum, TraceCounts { matched, delivered, lost, limited, reserved: [0; 4] })
    })
}

const fn add(one: TraceCounts, other: TraceCounts) -> TraceCounts {
    TraceCounts {
        matched: one.matched + other.matched,
        delivered: one.delivered + other.delivered,
        lost: one.lost + other.lost,
        limited: one.limited + other.limited,
        reserved: [0; 4],
    }
}

/// What the programs have captured.
pub struct Ring(RingBuf<MapData>);

impl Ring {
    /// To poll for readability.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// The next packet's header and bytes, handed to `each`; false if there is none.
    pub fn next(&mut self, each: impl FnOnce(&TraceHeader, &[u8])) -> bool {
        let Some(record) = self.0.next() else { return false };
        if let Some((header, bytes)) = Self::parts(&record) {
            each(&header, bytes);
        }
        true
    }

    /// A record's header, and what there is of the packet.
    pub(crate) fn parts(record: &[u8]) -> Option<(TraceHeader, &[u8])> {
        let (header, room) = record.split_at_checked(size_of::<TraceHeader>())?;
        // SAFETY: as many bytes as the header has, of plain integers; read unaligned.
        let header = unsafe { header.as_ptr().cast::<TraceHeader>().read_unaligned() };
        Some((header, room.get(..header.captured as usize).unwrap_or(room)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_networks_as_words() {
        assert_eq!(host(None).0, 0);
        let of = |address: &str, prefix| host(Some((address.parse().expect("an address"), prefix)));
        assert_eq!(
            of("10.1.2.3", 32),
            (4, [0x0a01, 0x0203, 0, 0, 0, 0, 0, 0], [0xffff, 0xffff, 0, 0, 0, 0, 0, 0])
        );
        assert_eq!(
            of("10.1.2.3", 20),
            (4, [0x0a01, 0, 0, 0, 0, 0, 0, 0], [0xffff, 0xf000, 0, 0, 0, 0, 0, 0])
        );
        assert_eq!(of("10.1.2.3", 0), (4, [0; 8], [0; 8]));
        assert_eq!(
            of("fd77:1:2::b", 40),
            (6, [0xfd77, 1, 0, 0, 0, 0, 0, 0], [0xffff, 0xffff, 0xff00, 0, 0, 0, 0, 0])
        );
        assert_eq!(of("::1", 128).2, [0xffff; 8]);
    }
}
