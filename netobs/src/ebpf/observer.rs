//! What is attached: to interfaces of the host, to those inside containers, to cgroups. Attach, read, let go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{IpAddr, Ipv6Addr},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    sync::atomic::Ordering,
};

use netobs_common::{Counters, EGRESS, INGRESS, counter_index};

use super::{
    attach::{self, AttachMode, Attached},
    clsact,
    directory::Directory,
    flows::{self, Flow},
    object::{LoadError, Object, Options},
    slots::Slots,
};
use crate::{
    model::{FlowCount, FlowEnd, FlowRecord, InterfaceKey},
    netlink::{Entrance, Netlink},
};

#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The interface went away meanwhile. Nothing is attached; not worth a word.
    #[error("the interface is gone")]
    Gone,
    #[error("all {0} counter slots are in use; raise --max-interfaces")]
    Full(u32),
    #[error("attach {direction} program: {source}")]
    Attach { direction: &'static str, source: io::Error },
    #[error("directory of interfaces: {0}")]
    Directory(#[from] aya::maps::MapError),
    #[error("tell the programs of the cgroup: {0}")]
    Cgroup(io::Error),
}

#[derive(Debug)]
struct Attachment {
    place: Place,
    slot: u32,
    ingress: Attached,
    egress: Attached,
}

#[derive(Debug)]
enum Place {
    /// An interface of the observer's own namespace.
    Host {
        ifindex: u32,
    },
    /// An interface of a container's namespace, and the way in.
    Inside(Entrance),
    Cgroup,
}

/// An attachment that was let go, whose flows have yet to be read.
#[derive(Debug)]
struct Leaving {
    key: InterfaceKey,
    of_host: bool,
    /// It was there when the last draining began: a program that was late may have counted until then.
    drained: bool,
}

/// Owner of everything that netobs has in the kernel. Dropping it detaches all. It works in the network
/// namespace of the thread that loaded it.
pub struct Observer {
    object: Object,
    netlink: Netlink,
    directory: Directory,
    mode: AttachMode,
    slots: Slots,
    attachments: BTreeMap<InterfaceKey, Attachment>,
    /// By slot, which nobody else gets until then.
    leaving: BTreeMap<u32, Leaving>,
    /// Those of `leaving` that were there when the draining began.
    gone: BTreeSet<u32>,
    /// Read while there was nobody to tell.
    flows: Vec<FlowRecord>,
    /// Interfaces where clsact has no room, by the last survey.
    without_clsact: BTreeSet<u32>,
}

impl Observer {
    /// Loads the object; attaches nothing yet.
    ///
    /// # Errors
    /// Without the privileges, on kernels without BPF, or when the verifier refuses.
    pub fn load(options: Options) -> Result<Self, LoadError> {
        let (object, directory) = Object::load(&options)?;
        Ok(Self {
            object,
            netlink: Netlink::connect().map_err(LoadError::Netlink)?,
            directory,
            mode: options.mode,
            slots: Slots::new(options.max_interfaces),
            attachments: BTreeMap::new(),
            leaving: BTreeMap::new(),
            gone: BTreeSet::new(),
            flows: Vec::new(),
            without_clsact: BTreeSet::new(),
        })
    }

    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.object.programs(false, ingress).tcx
    }

    pub fn attached(&self) -> usize {
        self.attachments.len()
    }

    /// Counts on an interface of the host from now on, under a key that was not used before. Of a `bridge`
    /// there are no flows: its packets are in those of the containers.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached then.
    pub fn attach(&mut self, key: InterfaceKey, ifindex: u32, bridge: bool) -> Result<(), AttachError> {
        let mode = match self.mode {
            AttachMode::Auto if self.without_clsact.contains(&ifindex) => AttachMode::Tcx,
            mode => mode,
        };
        self.hold(key, |observer, slot| {
            observer.directory.enter(ifindex, slot)?;
            let Self { netlink, object, .. } = observer;
            let attached = both(
                netlink,
                |netlink, ingress| {
                    attach::attach(netlink, object.programs(bridge, ingress), mode, ifindex, ingress, slot)
                },
                attach::detach,
            );
            if attached.is_err() {
                observer.directory.leave(ifindex);
            }
            Ok((Place::Host { ifindex }, attached?))
        })
    }

    /// Counts on an interface of another namespace, which `netlink` is a client of and `entrance` leads to.
    /// Always by filters: TCX links are made in the caller's own namespace.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        self.hold(key, |observer, slot| {
            let attached = both(
                netlink,
                |netlink, ingress| {
                    let programs = observer.object.programs(false, ingress);
                    attach::add_filter(netlink, programs, ifindex, ingress, slot)
                },
                attach::detach,
            )?;
            Ok((Place::Inside(entrance), attached))
        })
    }

    /// Counts what the sockets of a cgroup (its directory in a cgroup2 tree) receive and send.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError> {
        self.hold(key, |observer, slot| {
            let attached = both(
                &mut observer.netlink,
                |_, ingress| {
                    let program = observer.object.cgroup_program(ingress);
                    attach::cgroup_link(program, cgroup.as_fd(), ingress)
                },
                |_, attached| drop(attached),
            )?;
            // On 64-bit systems the inode number is the cgroup's ID.
            let id = cgroup.metadata().map_err(AttachError::Cgroup)?.ino();
            observer.object.enter_cgroup(id, slot)?;
            Ok((Place::Cgroup, attached))
        })
    }

    /// Takes a slot for what `attach` attaches; gives it back if it could not.
    fn hold(
        &mut self,
        key: InterfaceKey,
        attach: impl FnOnce(&mut Self, u32) -> Result<(Place, [Attached; 2]), AttachError>,
    ) -> Result<(), AttachError> {
        let slot = self.take_slot().ok_or_else(|| AttachError::Full(self.slots.capacity()))?;
        match attach(self, slot) {
            Ok((place, [ingress, egress])) => {
                self.attachments.insert(key, Attachment { place, slot, ingress, egress });
                Ok(())
            }
            Err(error) => {
                self.clear(slot);
                Err(error)
            }
        }
    }

    /// A free slot; if all that is left waits for its flows to be read, they are read now.
    fn take_slot(&mut self) -> Option<u32> {
        for _ in 0..2 {
            if let Some(slot) = self.slots.take() {
                return Some(slot);
            }
            if self.leaving.is_empty() {
                return None;
            }
            self.begin_flows();
            flows::wait_for_programs();
            self.flows = self.finish_flows();
        }
        self.slots.take()
    }

    /// Looks at what others have on the interfaces, before a number of them are attached.
    ///
    /// # Errors
    /// What netlink says.
    pub fn survey(&mut self) -> io::Result<()> {
        self.without_clsact = clsact::with_ingress_qdisc(&mut self.netlink)?;
        Ok(())
    }

    /// Removes filters that a killed netobs left on an interface of the host. Others' stay.
    ///
    /// # Errors
    /// What netlink says.
    pub fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        clsact::remove_leftovers(&mut self.netlink, ifindex)
    }

    /// Lets an attachment go: its counters, ingress then egress, as they were at the end. Its flows are told
    /// of when they are next read. None if the key is not attached.
    pub fn detach(&mut self, key: InterfaceKey) -> Option<[Counters; 2]> {
        let Attachment { place, slot, ingress, egress } = self.attachments.remove(&key)?;
        let of_host = matches!(place, Place::Host { .. });
        match place {
            Place::Host { ifindex } => {
                attach::detach(&mut self.netlink, ingress);
                attach::detach(&mut self.netlink, egress);
                self.directory.leave(ifindex);
            }
            // If there is no way in any more, the namespace is gone with all that was in it.
            Place::Inside(entrance) => {
                if let Ok(mut netlink) = entrance.connect() {
                    attach::detach(&mut netlink, ingress);
                    attach::detach(&mut netlink, egress);
                }
            }
            Place::Cgroup => drop((ingress, egress)),
        }
        let last = self.read_slot(slot);
        if self.object.flows.is_some() {
            self.leaving.insert(slot, Leaving { key, of_host, drained: false });
        } else {
            self.clear(slot);
        }
        Some(last)
    }

    /// Counters of one attachment, ingress then egress, summed over CPUs.
    pub fn read(&self, key: InterfaceKey) -> Option<[Counters; 2]> {
        self.attachments.get(&key).map(|attachment| self.read_slot(attachment.slot))
    }

    /// Counters of all attachments. Memory reads only, no system call.
    pub fn read_all(&self) -> impl Iterator<Item = (InterfaceKey, [Counters; 2])> + '_ {
        self.attachments.iter().map(|(key, attachment)| (*key, self.read_slot(attachment.slot)))
    }

    /// Begins to read flows. Then [`flows::wait_for_programs`], for which the observer need not be held, and
    /// then [`Self::finish_flows`].
    pub fn begin_flows(&mut self) {
        self.gone = self.leaving.keys().copied().collect();
        if let Some(flows) = &mut self.object.flows {
            flows.begin();
        }
    }

    /// What flows in cells have counted since they were last read; without any waiting.
    pub fn peek_flows(&mut self) -> Vec<FlowRecord> {
        let mut records = std::mem::take(&mut self.flows);
        let interfaces = self.interfaces_by_slot();
        if let Some(flows) = &mut self.object.flows {
            flows.peek(|flow| records.extend(interfaces.record(&flow)));
        }
        records
    }

    /// What flows have counted since they were last read.
    pub fn finish_flows(&mut self) -> Vec<FlowRecord> {
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

    fn interfaces_by_slot(&self) -> BySlot {
        let attached = self.attachments.iter().map(|(key, attachment)| {
            (attachment.slot, (*key, matches!(attachment.place, Place::Host { .. })))
        });
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
        self.slots.release(slot);
    }

    fn block(&self, cpu: u32, slot: u32, direction: u32) -> &[std::sync::atomic::AtomicU64] {
        let index = counter_index(cpu, self.slots.capacity(), slot, direction) as usize;
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

/// Attaches ingress, then egress; if the second cannot be, the first is taken back.
fn both(
    netlink: &mut Netlink,
    mut attach: impl FnMut(&mut Netlink, bool) -> io::Result<Attached>,
    detach: impl FnOnce(&mut Netlink, Attached),
) -> Result<[Attached; 2], AttachError> {
    let failed = |direction, source: io::Error| match source.raw_os_error() {
        Some(libc::ENODEV) => AttachError::Gone,
        _ => AttachError::Attach { direction, source },
    };
    let ingress = attach(netlink, true).map_err(|error| failed("ingress", error))?;
    match attach(netlink, false) {
        Ok(egress) => Ok([ingress, egress]),
        Err(error) => {
            detach(netlink, ingress);
            Err(failed("egress", error))
        }
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

impl Drop for Observer {
    fn drop(&mut self) {
        let keys: Vec<_> = self.attachments.keys().copied().collect();
        for key in keys {
            self.detach(key);
        }
    }
}
