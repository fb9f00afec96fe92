//! The exact layer: attached, read, let go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    net::{IpAddr, Ipv6Addr},
    os::fd::BorrowedFd,
    sync::atomic::Ordering,
};

use netobs_common::{Counters, EGRESS, INGRESS, counter_index, events::kind};

use super::{
    attachments::{Attach, AttachError, Attachments},
    events::{EventRing, Holders, monotonic_ns},
    flows::{self, Flow},
    object::{LoadError, Object, Options},
    slots::Slots,
};
use crate::{
    model::{FlowCount, FlowEnd, FlowRecord, InterfaceKey},
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
}

impl Observer {
    /// Loads the object; attaches nothing yet.
    ///
    /// # Errors
    /// Without the privileges, on kernels without BPF, or when the verifier refuses.
    pub fn load(options: Options) -> Result<Self, LoadError> {
        let (object, hooks) = Object::load(&options)?;
        let attachments = Attachments::new(hooks, options.mode, Slots::new(options.max_interfaces))
            .map_err(LoadError::Netlink)?;
        let (leaving, gone, flows) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        Ok(Self { object, attachments, leaving, gone, holders: Holders::default(), flows })
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.attachments.hooks().programs(false, ingress).tcx
    }

    /// What is told of packets one by one, for one reader. None where nothing is, or it is taken already.
    pub fn take_events(&mut self) -> Option<EventRing> {
        self.object.events.take()
    }

    /// Takes a slot for what `attach` attaches; gives it back if it could not.
    fn hold(
        &mut self,
        key: InterfaceKey,
        of_host: bool,
        attach: impl FnOnce(&mut Attachments, u32) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let slot = self.take_slot()?;
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
            self.flows = self.finish_flows();
        }
        self.attachments.take()
    }

    fn interfaces_by_slot(&self) -> BySlot {
        let attached =
            self.attachments.slots().map(|(key, slot)| (slot, (key, self.attachments.is_of_host(key))));
        let leaving = self.leaving.iter().map(|(slot, leaving)| (*slot, (leaving.key, leaving.of_host)));
        BySlot(attached.chain(leaving).collect())
    }

    /// Zeroes a slot for whoever has it next.
    fn clear(&mut self, slot: u32) {
        for cpu in 0..self.object.cpus {
            for direction in [INGRESS, EGRESS] {
                for word in self.block(cpu, slot, direction) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
        self.attachments.release(slot);
    }

    fn block(&self, cpu: u32, slot: u32, direction: u32) -> &[std::sync::atomic::AtomicU64] {
        let index = counter_index(cpu, self.attachments.capacity(), slot, direction) as usize;
        self.object.counters.words(index * Counters::WORDS, Counters::WORDS)
    }

    fn read_slot(&self, slot: u32) -> [Counters; 2] {
        [INGRESS, EGRESS].map(|direction| {
            let mut sum = [0u64; Counters::WORDS];
            for cpu in 0..self.object.cpus {
                for (sum, word) in sum.iter_mut().zip(self.block(cpu, slot, direction)) {
                    *sum += word.load(Ordering::Relaxed);
                }
            }
            // SAFETY: Counters is u64s only, in repr(C), and as many words long.
            unsafe { std::mem::transmute::<[u64; Counters::WORDS], Counters>(sum) }
        })
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
        self.hold(key, true, |attachments, slot| attachments.attach(key, slot, ifindex, bridge))
    }

    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        self.hold(key, false, |attachments, slot| {
            attachments.attach_inside(key, slot, entrance, netlink, ifindex)
        })
    }

    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError> {
        self.hold(key, false, |attachments, slot| attachments.attach_cgroup(key, slot, cgroup))
    }

    fn detach(&mut self, key: InterfaceKey) -> Option<[Counters; 2]> {
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

    fn read(&self, key: InterfaceKey) -> Option<[Counters; 2]> {
        self.attachments.slot(key).map(|slot| self.read_slot(slot))
    }

    /// Memory reads only, no system call.
    fn read_all(&self) -> Vec<(InterfaceKey, [Counters; 2])> {
        self.attachments.slots().map(|(key, slot)| (key, self.read_slot(slot))).collect()
    }

    fn begin_flows(&mut self) {
        self.gone = self.leaving.keys().copied().collect();
        if let Some(flows) = &mut self.object.flows {
            flows.begin();
        }
    }

    fn finish_flows(&mut self) -> Vec<FlowRecord> {
        let mut records = std::mem::take(&mut self.flows);
        let interfaces = self.interfaces_by_slot();
        let Some(flows) = &mut self.object.flows else { return records };
        let read = flows.finish(&self.gone, |flow| records.extend(interfaces.record(&flow)));
        if let Err(error) = read {
            tracing::warn!(%error, "read the flows that found no cell");
        }
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
        records
    }

    /// What flows in cells have counted.
    fn peek_flows(&mut self) -> Vec<FlowRecord> {
        let mut records = std::mem::take(&mut self.flows);
        let interfaces = self.interfaces_by_slot();
        if let Some(flows) = &mut self.object.flows {
            flows.peek(|flow| records.extend(interfaces.record(&flow)));
        }
        records
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

    fn holder(&self, kind: u8, slot: u32, time_ns: u64) -> Option<(InterfaceKey, bool)> {
        if u32::from(kind) == kind::EMBEDDED {
            return self.object.resolvers.as_ref()?.holder(slot, time_ns).map(|key| (key, false));
        }
        self.holders.at(slot, time_ns)
    }
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
    let (mut local, mut remote, rx, tx, rx_flags, tx_flags) = if of_host {
        (a, b, egress, ingress, egress_flags, ingress_flags)
    } else {
        (b, a, ingress, egress, ingress_flags, egress_flags)
    };
    if is_icmp {
        // Not the ends' but the message's, whichever way it goes.
        (local.port, remote.port) = (key.a_port, key.b_port);
    }
    let (first, last) = (flow.first, flow.last);
    FlowRecord { interface, local, remote, protocol: key.protocol, rx, tx, rx_flags, tx_flags, first, last }
}

/// IANA protocol numbers.
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// IPv4 from its form in IPv6.
fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}
