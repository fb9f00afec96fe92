//! The exact layer: attached, read, let go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::{IpAddr, Ipv6Addr},
    os::fd::BorrowedFd,
    path::Path,
    sync::atomic::Ordering,
};

use netobs_common::{Counters, EGRESS, Hook, INGRESS, counter_index, events::kind};

use super::{
    attachments::{Attach, AttachError, Attachments, Counted},
    events::{EventRing, Holders, monotonic_ns},
    flows::{self, Flow},
    object::{self, LoadError, Object, Options},
    pins::{Pins, Record},
    resolvers::Resolvers,
    slots::Slots,
    survey::Survey,
};
use crate::{
    model::{Baseline, FlowCount, FlowEnd, FlowRecord, InterfaceKey, Judged, KernelStats, Removal},
    netlink::{Entrance, Netlink},
};

/// An attachment that was let go, whose flows have yet to be read.
#[derive(Debug)]
struct Leaving {
    key: InterfaceKey,
    of_host: bool,
    /// It was there when the last draining began: a program that was late may have counted until then.
    drained: bool,
}

/// Owner of everything that netobs counts with in the kernel. Dropping it detaches all. It works in the
/// network namespace of the thread that loaded it.
pub struct Observer {
    object: Object,
    attachments: Attachments,
    /// By slot, which nobody else gets until then.
    leaving: BTreeMap<u32, Leaving>,
    /// Those of `leaving` that were there when the draining began.
    gone: BTreeSet<u32>,
    holders: Holders,
    /// Read while there was nobody to tell.
    flows: Vec<FlowRecord>,
    /// All of them, since the draining began, and in this peeking.
    flows_are_read: bool,
    flows_are_peeked: bool,
}

impl Observer {
    /// Loads the object; attaches nothing yet.
    ///
    /// # Errors
    /// Without the privileges, on kernels without BPF, or when the verifier refuses.
    pub fn load(options: Options) -> Result<Self, LoadError> {
        Self::load_with(options, None)
    }

    /// The same; what is attached to interfaces of the host outlives the process by pins in this folder, and what
    /// an earlier one has pinned there goes on.
    ///
    /// # Errors
    /// As [`Self::load`]; and if the folder is not to be had.
    pub fn load_pinned(options: Options, folder: &Path) -> Result<Self, LoadError> {
        let pins = Pins::open(folder, options.max_interfaces, object::cpus()?)?;
        let observer = Self::load_with(options, Some(pins))?;
        if let Some(pins) = observer.attachments.pins() {
            pins.finish();
        }
        Ok(observer)
    }

    fn load_with(options: Options, pins: Option<Pins>) -> Result<Self, LoadError> {
        let survey = Survey::begin(options.mode);
        let (object, hooks) = Object::load(&options, pins.as_ref())?;
        let attachments = Attachments::new(hooks, survey, Slots::new(options.max_interfaces), pins)
            .map_err(LoadError::Netlink)?;
        let (leaving, gone, flows) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let holders = Holders::default();
        let (flows_are_read, flows_are_peeked) = (true, false);
        Ok(Self { object, attachments, leaving, gone, holders, flows, flows_are_read, flows_are_peeked })
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.attachments.hooks().programs(false, ingress).tcx
    }

    /// What is told of packets one by one, for one reader. None where nothing is, or it is taken already.
    pub fn take_events(&mut self) -> Option<EventRing> {
        self.object.events.take()
    }

    /// Takes a slot for what `attach` attaches; gives it back if it could not. `senders` is the direction in which
    /// the container sends, where source MAC addresses are compared.
    fn hold(
        &mut self,
        key: InterfaceKey,
        of_host: bool,
        senders: Option<u32>,
        attach: impl FnOnce(&mut Attachments, u32) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let slot = self.take_slot()?;
        if self.attachments.pins().is_some() {
            // A process that was killed may have left it in any state.
            self.zero(slot);
        }
        self.object.senders.begin(slot, senders);
        self.holders.enter(slot, key, of_host, monotonic_ns());
        let attached = attach(&mut self.attachments, slot);
        if attached.is_err() {
            self.clear(slot);
        }
        attached
    }

    /// A free slot; if all that is left waits for its flows to be read, they are read now.
    fn take_slot(&mut self) -> Result<u32, AttachError> {
        for _ in 0..2 {
            match self.attachments.take() {
                Err(AttachError::Full(_)) if !self.leaving.is_empty() => {}
                taken => return taken,
            }
            self.begin_flows();
            flows::wait_for_programs();
            let mut read = std::mem::take(&mut self.flows);
            while let Some(records) = self.finish_flows() {
                read.extend(records);
            }
            self.flows = read;
        }
        self.attachments.take()
    }

    fn interfaces_by_slot(&self) -> BySlot {
        let attached =
            self.attachments.slots().map(|(key, slot)| (slot, (key, self.attachments.is_of_host(key))));
        let leaving = self.leaving.iter().map(|(slot, leaving)| (*slot, (leaving.key, leaving.of_host)));
        BySlot(attached.chain(leaving).collect())
    }

    /// Slots whose flows have been read twice since they were let go are free.
    fn clear_drained(&mut self) {
        let mut over = Vec::new();
        for slot in std::mem::take(&mut self.gone) {
            match self.leaving.get_mut(&slot) {
                Some(leaving) if leaving.drained => over.push(slot),
                Some(leaving) => leaving.drained = true,
                None => {}
            }
        }
        for slot in over {
            self.leaving.remove(&slot);
            self.clear(slot);
        }
    }

    /// Changes what is kept of an attachment for a later process, where something is.
    fn rewrite(&self, key: InterfaceKey, change: impl FnOnce(Record) -> Record) {
        if let (Some(slot), Some(pins)) = (self.attachments.slot(key), self.attachments.pins())
            && let Some(record) = pins.record(slot)
        {
            pins.write(slot, &change(record));
        }
    }

    /// Zeroes a slot for whoever has it next.
    fn clear(&mut self, slot: u32) {
        self.zero(slot);
        self.attachments.release(slot);
    }

    fn zero(&self, slot: u32) {
        self.object.senders.end(slot);
        for cpu in 0..self.object.cpus {
            for direction in [INGRESS, EGRESS] {
                for word in self.block(cpu, slot, direction) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
    }

    fn block(&self, cpu: u32, slot: u32, direction: u32) -> &[std::sync::atomic::AtomicU64] {
        let index = counter_index(cpu, self.attachments.capacity(), Hook::new(slot, direction)) as usize;
        self.object.counters.words(index * Counters::WORDS, Counters::WORDS)
    }

    fn read_slot(&self, slot: u32) -> Counted {
        let [ingress, egress] = [INGRESS, EGRESS].map(|direction| self.read_counters(slot, direction));
        Counted { ingress, egress, senders: self.object.senders.read(slot) }
    }

    fn read_counters(&self, slot: u32, direction: u32) -> Counters {
        let mut sum = [0u64; Counters::WORDS];
        for cpu in 0..self.object.cpus {
            for (sum, word) in sum.iter_mut().zip(self.block(cpu, slot, direction)) {
                *sum += word.load(Ordering::Relaxed);
            }
        }
        // SAFETY: Counters is u64s only, in repr(C), and as many words long.
        unsafe { std::mem::transmute::<[u64; Counters::WORDS], Counters>(sum) }
    }
}

impl Attach for Observer {
    fn attachments(&self) -> &Attachments {
        &self.attachments
    }

    fn attachments_mut(&mut self) -> &mut Attachments {
        &mut self.attachments
    }

    fn attach(&mut self, key: InterfaceKey, ifindex: u32, bridge: bool) -> Result<(), AttachError> {
        let senders = (!bridge).then_some(INGRESS);
        self.hold(key, true, senders, |attachments, slot| attachments.attach(key, slot, ifindex, bridge))
    }

    fn adopt(&mut self, key: InterfaceKey, ifindex: u32, mac: &[u8]) -> Option<Record> {
        let is_it = |record: &Record| record.ifindex == ifindex && record.mac == padded(mac);
        let pins = self.attachments.pins()?;
        let mut records =
            self.attachments.reserved().iter().filter_map(|slot| Some((*slot, pins.record(*slot)?)));
        let (slot, record) = records.find(|(_, record)| is_it(record))?;
        if let Err(error) = self.attachments.adopt(key, slot, &record) {
            tracing::warn!(%error, ifindex, "go on with what is pinned");
            return None;
        }
        self.holders.enter(slot, key, true, monotonic_ns());
        Some(record)
    }

    fn remember(&mut self, key: InterfaceKey, mac: &[u8], baseline: Baseline, kernel: &KernelStats) {
        if let (Some(slot), Some((ifindex, bridge)), Some(pins)) =
            (self.attachments.slot(key), self.attachments.on_host(key), self.attachments.pins())
        {
            pins.write(slot, &Record { ifindex, bridge, mac: padded(mac), baseline, kernel: *kernel });
        }
    }

    fn remember_baseline(&mut self, key: InterfaceKey, baseline: Baseline) {
        self.rewrite(key, |record| Record { baseline, ..record });
    }

    fn remember_mac(&mut self, key: InterfaceKey, mac: &[u8]) {
        self.rewrite(key, |record| Record { mac: padded(mac), ..record });
    }

    fn forget_others(&mut self) {
        for slot in self.attachments.take_reserved() {
            if let Some(pins) = self.attachments.pins() {
                pins.clear(slot);
            }
            self.clear(slot);
        }
        if let Some(pins) = self.attachments.pins() {
            pins.remove_links_but(&pins.records());
            self.attachments.retain_in_directory();
            // Who was killed before it had written a record, or given a slot back, has left them.
            self.attachments.free().for_each(|slot| self.object.senders.end(slot));
        }
    }

    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        self.hold(key, false, Some(EGRESS), |attachments, slot| {
            attachments.attach_inside(key, slot, entrance, netlink, ifindex)
        })
    }

    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError> {
        self.hold(key, false, None, |attachments, slot| attachments.attach_cgroup(key, slot, cgroup))
    }

    fn detach(&mut self, key: InterfaceKey) -> Option<Counted> {
        let of_host = self.attachments.is_of_host(key);
        let slot = self.attachments.detach(key)?;
        let last = self.read_slot(slot);
        if self.object.flows.is_some() {
            self.leaving.insert(slot, Leaving { key, of_host, drained: false });
        } else {
            self.clear(slot);
        }
        Some(last)
    }

    fn read(&self, key: InterfaceKey) -> Option<Counted> {
        self.attachments.slot(key).map(|slot| self.read_slot(slot))
    }

    /// Memory reads only, no system call.
    fn read_all(&self) -> Vec<(InterfaceKey, Counted)> {
        self.attachments.slots().map(|(key, slot)| (key, self.read_slot(slot))).collect()
    }

    fn correct_sender(&mut self, key: InterfaceKey, mac: [u8; 6], judged: Judged) {
        let Some(slot) = self.attachments.slot(key) else { return };
        let passed =
            |direction| self.read_counters(slot, direction).class.iter().map(|count| count.packets).sum();
        self.object.senders.correct(slot, mac, judged, passed);
    }

    fn begin_flows(&mut self) {
        self.gone = self.leaving.keys().copied().collect();
        self.flows_are_read = false;
        if let Some(flows) = &mut self.object.flows {
            flows.begin();
        }
    }

    fn finish_flows(&mut self) -> Option<Vec<FlowRecord>> {
        if self.flows_are_read {
            return None;
        }
        let mut records = std::mem::take(&mut self.flows);
        let interfaces = self.interfaces_by_slot();
        let read = match &mut self.object.flows {
            Some(flows) => flows.finish(&self.gone, |flow| records.extend(interfaces.record(&flow))),
            None => Ok(true),
        };
        self.flows_are_read = read.unwrap_or_else(|error| {
            tracing::warn!(%error, "read the flows that found no cell");
            true
        });
        if self.flows_are_read {
            self.clear_drained();
        }
        Some(records)
    }

    fn peek_flows(&mut self) -> Option<Vec<FlowRecord>> {
        if std::mem::take(&mut self.flows_are_peeked) {
            return None;
        }
        let mut records = std::mem::take(&mut self.flows);
        let interfaces = self.interfaces_by_slot();
        self.flows_are_peeked = match &mut self.object.flows {
            Some(flows) => flows.peek(|flow| records.extend(interfaces.record(&flow))),
            None => true,
        };
        Some(records)
    }

    fn observes_resolvers(&self) -> bool {
        self.object.resolvers.is_some()
    }

    fn attach_resolver(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
    ) -> Result<(), AttachError> {
        match &mut self.object.resolvers {
            Some(resolvers) => resolvers.attach(key, entrance, netlink),
            None => Err(AttachError::Gone),
        }
    }

    fn detach_resolver(&mut self, key: InterfaceKey) {
        if let Some(resolvers) = &mut self.object.resolvers {
            resolvers.detach(key);
        }
    }

    fn resolvers(&self) -> Vec<InterfaceKey> {
        self.object.resolvers.as_ref().map(Resolvers::keys).unwrap_or_default()
    }

    fn look_after_resolver(&mut self, key: InterfaceKey) -> Option<Removal> {
        self.object.resolvers.as_mut()?.look_after(key)
    }

    fn holder(&self, kind: u8, slot: u32, time_ns: u64) -> Option<(InterfaceKey, bool)> {
        if u32::from(kind) == kind::EMBEDDED {
            return self.object.resolvers.as_ref()?.holder(slot, time_ns).map(|key| (key, false));
        }
        self.holders.at(slot, time_ns)
    }
}

/// A MAC address as records have it.
fn padded(mac: &[u8]) -> [u8; 8] {
    let mut padded = [0; 8];
    for (to, from) in padded.iter_mut().zip(mac) {
        *to = *from;
    }
    padded
}

/// Attachments by slot, and whether they are to interfaces of the host.
struct BySlot(BTreeMap<u32, (InterfaceKey, bool)>);

impl BySlot {
    fn record(&self, flow: &Flow) -> Option<FlowRecord> {
        let (key, of_host) = self.0.get(&u32::from(flow.key.slot))?;
        Some(record(*key, *of_host, flow))
    }
}

/// A flow from the container's side. On the host's end of a pair, what it receives the container has sent.
fn record(interface: InterfaceKey, of_host: bool, flow: &Flow) -> FlowRecord {
    let key = &flow.key;
    let is_icmp = matches!(key.protocol, ICMP | ICMPV6);
    let a = FlowEnd { address: address(key.a), port: key.a_port };
    let b = FlowEnd { address: address(key.b), port: key.b_port };
    let [ingress, egress] = flow.counts.map(|count| FlowCount {
        packets: count.packets,
        bytes: count.bytes,
        wire_packets: count.packets + count.unfolded,
        wire_bytes: count.bytes + count.unfolded_bytes,
    });
    let [ingress_flags, egress_flags] = flow.flags;
    let [ingress_windows, egress_windows] = flow.counts.map(|count| count.zero_windows);
    let (mut local, mut remote, rx, tx, rx_flags, tx_flags, rx_zero_windows, tx_zero_windows) = if of_host {
        (a, b, egress, ingress, egress_flags, ingress_flags, egress_windows, ingress_windows)
    } else {
        (b, a, ingress, egress, ingress_flags, egress_flags, ingress_windows, egress_windows)
    };
    if is_icmp {
        // Not the ends' but the message's, whichever way it goes.
        (local.port, remote.port) = (key.a_port, key.b_port);
    }
    let (first, last) = (flow.first, flow.last);
    FlowRecord {
        interface,
        local,
        remote,
        protocol: key.protocol,
        rx,
        tx,
        rx_flags,
        tx_flags,
        rx_zero_windows,
        tx_zero_windows,
        first,
        last,
    }
}

/// IANA protocol numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// IPv4 from its form in IPv6.
fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
