//! What one object is attached to: interfaces of the host, those inside containers, cgroups.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
};

use netobs_common::Counters;

use super::{
    attach::{self, AttachMode, Attached},
    clsact,
    hooks::Hooks,
    slots::Slots,
};
use crate::{
    model::{FlowRecord, InterfaceKey},
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

/// Who attaches to the places that are found. What it does not count, it has no counters of, nor flows.
pub trait Attach: Send {
    fn attachments(&self) -> &Attachments;

    fn attachments_mut(&mut self) -> &mut Attachments;

    fn mode(&self) -> AttachMode {
        self.attachments().mode()
    }

    /// Places that are attached to.
    fn attached(&self) -> usize {
        self.attachments().attached()
    }

    /// Looks at what others have on the interfaces, before a number of them are attached.
    ///
    /// # Errors
    /// What netlink says.
    fn survey(&mut self) -> io::Result<()> {
        self.attachments_mut().survey()
    }

    /// Removes filters that a killed netobs left on an interface of the host. Others' stay.
    ///
    /// # Errors
    /// What netlink says.
    fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        self.attachments_mut().remove_leftovers(ifindex)
    }

    /// An interface of the host, under a key that was not used before. Of a `bridge` there are no flows: its
    /// packets are in those of the containers.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached then.
    fn attach(&mut self, key: InterfaceKey, ifindex: u32, bridge: bool) -> Result<(), AttachError>;

    /// An interface of another namespace, which `netlink` is a client of and `entrance` leads to.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError>;

    /// What the sockets of a cgroup (its directory in a cgroup2 tree) receive and send.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError>;

    /// Lets a place go: its counters, ingress then egress, as they were at the end. Its flows are told of
    /// when they are next read. None if the key is not known.
    fn detach(&mut self, key: InterfaceKey) -> Option<[Counters; 2]>;

    /// Counters of one attachment, ingress then egress, summed over CPUs.
    fn read(&self, key: InterfaceKey) -> Option<[Counters; 2]>;

    /// Counters of all attachments.
    fn read_all(&self) -> Vec<(InterfaceKey, [Counters; 2])>;

    /// Begins to read flows. Then [`super::wait_for_programs`], for which the observer need not be held, and
    /// then [`Self::finish_flows`].
    fn begin_flows(&mut self) {}

    /// What flows have counted since they were last read.
    fn finish_flows(&mut self) -> Vec<FlowRecord> {
        Vec::new()
    }

    /// The same as far as it can be told without any waiting.
    fn peek_flows(&mut self) -> Vec<FlowRecord> {
        Vec::new()
    }

    /// Whether name servers inside containers are observed.
    fn observes_resolvers(&self) -> bool {
        false
    }

    /// The name server inside the namespace that `netlink` is a client of and `entrance` leads to.
    ///
    /// # Errors
    /// As [`Self::attach`].
    fn attach_resolver(
        &mut self,
        _key: InterfaceKey,
        _entrance: Entrance,
        _netlink: &mut Netlink,
    ) -> Result<(), AttachError> {
        Err(AttachError::Gone)
    }

    fn detach_resolver(&mut self, _key: InterfaceKey) {}

    /// Who had the slot of an event at a time, by its [`netobs_common::events::kind`]; and whether that is an
    /// interface of the host.
    fn holder(&self, _kind: u8, _slot: u32, _time_ns: u64) -> Option<(InterfaceKey, bool)> {
        None
    }
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
    /// An interface of the namespace that the attachments are made in.
    Host {
        ifindex: u32,
    },
    /// An interface of a container's namespace, and the way in.
    Inside(Entrance),
    Cgroup,
}

/// Owner of all attachments of one object. Dropping it detaches all. It works in the network namespace of
/// the thread that made it.
pub struct Attachments {
    hooks: Hooks,
    netlink: Netlink,
    mode: AttachMode,
    slots: Slots,
    held: BTreeMap<InterfaceKey, Attachment>,
    /// Interfaces where clsact has no room, by the last survey.
    without_clsact: BTreeSet<u32>,
}

impl Attachments {
    pub fn new(hooks: Hooks, mode: AttachMode, slots: Slots) -> io::Result<Self> {
        let (held, without_clsact) = (BTreeMap::new(), BTreeSet::new());
        Ok(Self { hooks, netlink: Netlink::connect()?, mode, slots, held, without_clsact })
    }

    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    pub const fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    pub fn capacity(&self) -> u32 {
        self.slots.capacity()
    }

    pub fn attached(&self) -> usize {
        self.held.len()
    }

    /// Each attachment and its slot.
    pub fn slots(&self) -> impl Iterator<Item = (InterfaceKey, u32)> + '_ {
        self.held.iter().map(|(key, attachment)| (*key, attachment.slot))
    }

    /// Whether it is an interface of the host that is attached to.
    pub fn is_of_host(&self, key: InterfaceKey) -> bool {
        self.held.get(&key).is_some_and(|attachment| matches!(attachment.place, Place::Host { .. }))
    }

    pub fn slot(&self, key: InterfaceKey) -> Option<u32> {
        self.held.get(&key).map(|attachment| attachment.slot)
    }

    /// A slot to attach with. Who could not has to release it.
    pub fn take(&mut self) -> Result<u32, AttachError> {
        self.slots.take().ok_or_else(|| AttachError::Full(self.slots.capacity()))
    }

    pub fn release(&mut self, slot: u32) {
        self.slots.release(slot);
    }

    pub fn survey(&mut self) -> io::Result<()> {
        self.without_clsact = clsact::with_ingress_qdisc(&mut self.netlink)?;
        Ok(())
    }

    pub fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        clsact::remove_leftovers(&mut self.netlink, ifindex)
    }

    /// Attaches to an interface of the host.
    pub fn attach(
        &mut self,
        key: InterfaceKey,
        slot: u32,
        ifindex: u32,
        bridge: bool,
    ) -> Result<(), AttachError> {
        let mode = match self.mode {
            AttachMode::Auto if self.without_clsact.contains(&ifindex) => AttachMode::Tcx,
            mode => mode,
        };
        self.hooks.directory.enter(ifindex, slot)?;
        let Self { netlink, hooks, .. } = self;
        let attached = both(
            netlink,
            |netlink, ingress| {
                attach::attach(netlink, hooks.programs(bridge, ingress), mode, ifindex, ingress, slot)
            },
            attach::detach,
        );
        if attached.is_err() {
            self.hooks.directory.leave(ifindex);
        }
        self.hold(key, slot, Place::Host { ifindex }, attached?);
        Ok(())
    }

    /// Always by filters: TCX links are made in the caller's own namespace.
    pub fn attach_inside(
        &mut self,
        key: InterfaceKey,
        slot: u32,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        let attached = both(
            netlink,
            |netlink, ingress| {
                attach::add_filter(netlink, self.hooks.programs(false, ingress), ifindex, ingress, slot)
            },
            attach::detach,
        )?;
        self.hold(key, slot, Place::Inside(entrance), attached);
        Ok(())
    }

    pub fn attach_cgroup(&mut self, key: InterfaceKey, slot: u32, cgroup: &File) -> Result<(), AttachError> {
        let Self { netlink, hooks, .. } = self;
        let attached = both(
            netlink,
            |_, ingress| attach::cgroup_link(hooks.cgroup_program(ingress), cgroup.as_fd(), ingress),
            |_, attached| drop(attached),
        )?;
        // On 64-bit systems the inode number is the cgroup's ID.
        let id = cgroup.metadata().map_err(AttachError::Cgroup)?.ino();
        self.hooks.enter_cgroup(id, slot)?;
        self.hold(key, slot, Place::Cgroup, attached);
        Ok(())
    }

    fn hold(&mut self, key: InterfaceKey, slot: u32, place: Place, [ingress, egress]: [Attached; 2]) {
        self.held.insert(key, Attachment { place, slot, ingress, egress });
    }

    /// Detaches. The slot is not released: what it has counted may be read first.
    pub fn detach(&mut self, key: InterfaceKey) -> Option<u32> {
        let Attachment { place, slot, ingress, egress } = self.held.remove(&key)?;
        match place {
            Place::Host { ifindex } => {
                attach::detach(&mut self.netlink, ingress);
                attach::detach(&mut self.netlink, egress);
                self.hooks.directory.leave(ifindex);
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
        Some(slot)
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

impl Drop for Attachments {
    fn drop(&mut self) {
        let keys: Vec<_> = self.held.keys().copied().collect();
        for key in keys {
            self.detach(key);
        }
    }
}
