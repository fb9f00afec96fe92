//! The exact layer: attached, read, let go.

use std::{collections::BTreeMap, fs::File, io, os::fd::BorrowedFd, sync::atomic::Ordering};

use netobs_common::{Counters, DIRECTIONS, EGRESS, INGRESS, counter_index};

use super::{
    attach::AttachMode,
    attachments::{Attach, AttachError, Attachments, Last},
    object::{LoadError, Object, Options},
    ports::Port,
    slots::Slots,
};
use crate::{
    model::{InterfaceKey, PortTraffic},
    netlink::{Entrance, Netlink},
};

/// Owner of everything that netobs counts with in the kernel. Dropping it detaches all. It works in the
/// network namespace of the thread that loaded it.
pub struct Observer {
    object: Object,
    attachments: Attachments,
    /// Published ports that are counted apart.
    ports: BTreeMap<InterfaceKey, Vec<Port>>,
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
        Ok(Self { object, attachments, ports: BTreeMap::new() })
    }

    /// The loaded program that finds its slot by ifindex, for `BPF_PROG_TEST_RUN`, which has no filter.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        self.attachments.hooks().programs(ingress).tcx
    }

    /// Takes a slot for what `attach` attaches; gives it back if it could not.
    fn hold(
        &mut self,
        attach: impl FnOnce(&mut Attachments, u32) -> Result<(), AttachError>,
    ) -> Result<(), AttachError> {
        let slot = self.attachments.take()?;
        let attached = attach(&mut self.attachments, slot);
        if attached.is_err() {
            self.clear(slot);
        }
        attached
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
    fn mode(&self) -> AttachMode {
        self.attachments.mode()
    }

    fn attached(&self) -> usize {
        self.attachments.attached()
    }

    fn survey(&mut self) -> io::Result<()> {
        self.attachments.survey()
    }

    fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        self.attachments.remove_leftovers(ifindex)
    }

    fn attach(&mut self, key: InterfaceKey, ifindex: u32) -> Result<(), AttachError> {
        self.hold(|attachments, slot| attachments.attach(key, slot, ifindex))
    }

    fn attach_inside(
        &mut self,
        key: InterfaceKey,
        entrance: Entrance,
        netlink: &mut Netlink,
        ifindex: u32,
    ) -> Result<(), AttachError> {
        self.hold(|attachments, slot| attachments.attach_inside(key, slot, entrance, netlink, ifindex))
    }

    fn attach_cgroup(&mut self, key: InterfaceKey, cgroup: &File) -> Result<(), AttachError> {
        self.hold(|attachments, slot| attachments.attach_cgroup(key, slot, cgroup))
    }

    fn detach(&mut self, key: InterfaceKey) -> Option<Last> {
        let slot = self.attachments.detach(key)?;
        let ports = self.ports.remove(&key).unwrap_or_default();
        let last = (self.read_slot(slot), self.object.ports.read(slot, &ports));
        self.object.ports.remove(slot, &ports);
        self.clear(slot);
        Some(last)
    }

    fn read(&self, key: InterfaceKey) -> Option<[Counters; 2]> {
        self.attachments.slot(key).map(|slot| self.read_slot(slot))
    }

    /// Memory reads only, no system call.
    fn read_all(&self) -> Vec<(InterfaceKey, [Counters; 2])> {
        self.attachments.slots().map(|(key, slot)| (key, self.read_slot(slot))).collect()
    }

    fn publish(&mut self, key: InterfaceKey, ports: Vec<Port>) -> Result<(), aya::maps::MapError> {
        let Some(slot) = self.attachments.slot(key) else { return Ok(()) };
        let counted = self.ports.entry(key).or_default();
        let (old, added): (Vec<Port>, Vec<Port>) = ports.iter().partition(|port| counted.contains(port));
        let ended: Vec<Port> = counted.iter().filter(|port| !ports.contains(port)).copied().collect();
        self.object.ports.remove(slot, &ended);
        *counted = old;
        let mut result = Ok(());
        for port in added {
            match self.object.ports.add(slot, port) {
                Ok(()) => counted.push(port),
                Err(error) => result = Err(error),
            }
        }
        let any = u64::from(!counted.is_empty());
        if counted.is_empty() {
            self.ports.remove(&key);
        }
        for cpu in 0..self.object.cpus {
            for direction in 0..DIRECTIONS {
                if let [published, ..] = self.block(cpu, slot, direction) {
                    published.store(any, Ordering::Relaxed);
                }
            }
        }
        result
    }

    fn read_ports(&self) -> Vec<(InterfaceKey, Vec<PortTraffic>)> {
        let read = |(key, ports): (&InterfaceKey, &Vec<Port>)| {
            Some((*key, self.object.ports.read(self.attachments.slot(*key)?, ports)))
        };
        self.ports.iter().filter_map(read).collect()
    }
}
