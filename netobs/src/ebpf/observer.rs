//! What is attached: to interfaces of the host, to those inside containers, to cgroups. Attach, read, let go.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    sync::atomic::Ordering,
};

use netobs_common::{Counters, DIRECTIONS, EGRESS, INGRESS, counter_index};

use super::{
    attach::{self, AttachMode, Attached},
    clsact,
    directory::Directory,
    object::{LoadError, Object, Options},
    ports::Port,
    slots::Slots,
};
use crate::{
    model::{InterfaceKey, PortTraffic},
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
    /// Published ports that are counted apart.
    ports: Vec<Port>,
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

/// Owner of everything that netobs has in the kernel. Dropping it detaches all. It works in the network
/// namespace of the thread that loaded it.
pub struct Observer {
    object: Object,
    netlink: Netlink,
    directory: Directory,
    mode: AttachMode,
    slots: Slots,
    attachments: BTreeMap<InterfaceKey, Attachment>,
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
            without_clsact: BTreeSet::new(),
        })
    }

    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.object.programs(ingress).tcx
    }

    pub fn attached(&self) -> usize {
        self.attachments.len()
    }

    /// Counts on an interface of the host from now on, under a key that was not used before.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached then.
    pub fn attach(&mut self, key: InterfaceKey, ifindex: u32) -> Result<(), AttachError> {
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
                    attach::attach(netlink, object.programs(ingress), mode, ifindex, ingress, slot)
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
                    let programs = observer.object.programs(ingress);
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
                    let program = observer.object.programs(ingress).cgroup;
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
        let slot = self.slots.take().ok_or_else(|| AttachError::Full(self.slots.capacity()))?;
        match attach(self, slot) {
            Ok((place, [ingress, egress])) => {
                let attachment = Attachment { place, slot, ingress, egress, ports: Vec::new() };
                self.attachments.insert(key, attachment);
                Ok(())
            }
            Err(error) => {
                self.clear(slot);
                Err(error)
            }
        }
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

    /// Lets an attachment go: its counters, ingress then egress, and those of its published ports, as they
    /// were at the end. None if the key is not attached.
    pub fn detach(&mut self, key: InterfaceKey) -> Option<([Counters; 2], Vec<PortTraffic>)> {
        let Attachment { place, slot, ingress, egress, ports } = self.attachments.remove(&key)?;
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
        let last = (self.read_slot(slot), self.object.ports.read(slot, &ports));
        self.object.ports.remove(slot, &ports);
        self.clear(slot);
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

    /// From now on counts these ports of the container behind a host's interface apart, and no others.
    /// What was counted of those that stay goes on.
    ///
    /// # Errors
    /// When there is no room for so many ports; those there was room for are counted.
    pub fn publish(&mut self, key: InterfaceKey, ports: Vec<Port>) -> Result<(), aya::maps::MapError> {
        let Some(attachment) = self.attachments.get_mut(&key) else { return Ok(()) };
        let slot = attachment.slot;
        let (old, added): (Vec<Port>, Vec<Port>) =
            ports.iter().partition(|port| attachment.ports.contains(port));
        let ended: Vec<Port> =
            attachment.ports.iter().filter(|port| !ports.contains(port)).copied().collect();
        self.object.ports.remove(slot, &ended);
        attachment.ports = old;
        let mut result = Ok(());
        for port in added {
            match self.object.ports.add(slot, port) {
                Ok(()) => attachment.ports.push(port),
                Err(error) => result = Err(error),
            }
        }
        let any = u64::from(!attachment.ports.is_empty());
        for cpu in 0..self.object.cpus {
            for direction in 0..DIRECTIONS {
                if let [published, ..] = self.block(cpu, slot, direction) {
                    published.store(any, Ordering::Relaxed);
                }
            }
        }
        result
    }

    /// What passed published ports since they were, by attachment.
    pub fn read_ports(&self) -> Vec<(InterfaceKey, Vec<PortTraffic>)> {
        self.attachments
            .iter()
            .filter(|(_, attachment)| !attachment.ports.is_empty())
            .map(|(key, attachment)| (*key, self.object.ports.read(attachment.slot, &attachment.ports)))
            .collect()
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

impl Drop for Observer {
    fn drop(&mut self) {
        let keys: Vec<_> = self.attachments.keys().copied().collect();
        for key in keys {
            self.detach(key);
        }
    }
}
