//! The loaded object: attach to an interface, read its counters, let it go.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, BorrowedFd},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, MapData},
    programs::{ProgramError, ProgramFd, SchedClassifier},
};
use netobs_common::{Counters, DIRECTIONS, EGRESS, IFACE_CELLS, INGRESS, counter_index, iface_cell};

use super::{
    attach::{self, AttachMode, Attached},
    clsact,
    log::{self, LogThread},
    mapping::Mapping,
    slots::{Slots, cell_of},
};
use crate::{model::InterfaceKey, netlink::Netlink};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/netobs.bpf.o");

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Interfaces that can be attached at a time; each takes 1 KiB of kernel memory per possible CPU.
    pub max_interfaces: u32,
    pub mode: AttachMode,
    /// Programs log what is odd about packets, for diagnosing them; costs when on.
    pub log: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("load the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("load eBPF program {name}: {source}")]
    Program { name: &'static str, source: ProgramError },
    #[error("the eBPF object has no {0}; it was not built from these sources")]
    Missing(&'static str),
    #[error("map the counters into memory: {0}")]
    Mapping(io::Error),
    #[error("number of CPUs: {0}")]
    Cpus(io::Error),
    #[error("read the programs' log: {0}")]
    Log(io::Error),
    #[error("open a netlink socket: {0}")]
    Netlink(io::Error),
    #[error("an eBPF map: {0}")]
    Map(#[from] aya::maps::MapError),
}

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
}

#[derive(Debug)]
struct Attachment {
    ifindex: u32,
    slot: u32,
    /// Its directory cell is another interface's; it is in the hash instead.
    crowded: bool,
    ingress: Attached,
    egress: Attached,
}

/// Owner of everything that netobs has in the kernel. Dropping it detaches all. It works in the network
/// namespace of the thread that loaded it.
pub struct Observer {
    ingress: ProgramFd,
    egress: ProgramFd,
    netlink: Netlink,
    crowded: HashMap<MapData, u32, u32>,
    cells: Mapping,
    counters: Mapping,
    cpus: u32,
    max_interfaces: u32,
    mode: AttachMode,
    slots: Slots,
    attachments: BTreeMap<InterfaceKey, Attachment>,
    _log: Option<LogThread>,
    /// Interfaces where clsact has no room, by the last survey.
    without_clsact: BTreeSet<u32>,
}

impl Observer {
    /// Loads the object; attaches nothing yet.
    ///
    /// # Errors
    /// Without the privileges, on kernels without BPF, or when the verifier refuses.
    pub fn load(options: Options) -> Result<Self, LoadError> {
        let cpus = u32::try_from(aya::util::nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))?)
            .unwrap_or(u32::MAX);
        let max_interfaces = options.max_interfaces;
        let log_level = log::level(options.log);
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .override_global("MAX_INTERFACES", &max_interfaces, true)
            .map_max_entries("COUNTERS", cpus * max_interfaces * DIRECTIONS)
            .map_max_entries("CROWDED", max_interfaces)
            .load(OBJECT)?;
        let ingress = load_program(&mut ebpf, "netobs_ingress")?;
        let egress = load_program(&mut ebpf, "netobs_egress")?;
        let log = if options.log { Some(LogThread::start(&mut ebpf).map_err(LoadError::Log)?) } else { None };
        let array_words = (cpus * max_interfaces * DIRECTIONS) as usize * Counters::WORDS;
        let counters = map_array(&ebpf, "COUNTERS", array_words)?;
        let cells = map_array(&ebpf, "IFACES", IFACE_CELLS as usize)?;
        let crowded = HashMap::try_from(ebpf.take_map("CROWDED").ok_or(LoadError::Missing("CROWDED"))?)?;
        Ok(Self {
            ingress,
            egress,
            netlink: Netlink::connect().map_err(LoadError::Netlink)?,
            crowded,
            cells,
            counters,
            cpus,
            max_interfaces,
            mode: options.mode,
            slots: Slots::new(max_interfaces),
            attachments: BTreeMap::new(),
            _log: log,
            without_clsact: BTreeSet::new(),
        })
    }

    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// The loaded program of a direction, for `BPF_PROG_TEST_RUN`.
    pub fn program(&self, ingress: bool) -> BorrowedFd<'_> {
        if ingress { self.ingress.as_fd() } else { self.egress.as_fd() }
    }

    pub fn attached(&self) -> usize {
        self.attachments.len()
    }

    /// Counts on an interface from now on, under a key that was not used before.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing stays attached then.
    pub fn attach(&mut self, key: InterfaceKey, ifindex: u32) -> Result<(), AttachError> {
        let slot = self.slots.take().ok_or(AttachError::Full(self.max_interfaces))?;
        let crowded = match self.enter(ifindex, slot) {
            Ok(crowded) => crowded,
            Err(error) => {
                self.slots.release(slot);
                return Err(error.into());
            }
        };
        match self.attach_both(ifindex) {
            Ok((ingress, egress)) => {
                self.attachments.insert(key, Attachment { ifindex, slot, crowded, ingress, egress });
                Ok(())
            }
            Err(error) => {
                self.leave(ifindex, slot, crowded);
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

    /// Removes filters that a killed netobs left on an interface. Others' stay.
    ///
    /// # Errors
    /// What netlink says.
    pub fn remove_leftovers(&mut self, ifindex: u32) -> io::Result<usize> {
        clsact::remove_leftovers(&mut self.netlink, ifindex)
    }

    /// Lets an interface go: its counters, ingress then egress, as they were at the end. None if the
    /// key is not attached.
    pub fn detach(&mut self, key: InterfaceKey) -> Option<[Counters; 2]> {
        let attachment = self.attachments.remove(&key)?;
        let Attachment { ifindex, slot, crowded, ingress, egress } = attachment;
        attach::detach(&mut self.netlink, ingress);
        attach::detach(&mut self.netlink, egress);
        let last = self.read_slot(slot);
        self.leave(ifindex, slot, crowded);
        Some(last)
    }

    /// Counters of one attachment, ingress then egress, summed over CPUs.
    pub fn read(&self, key: InterfaceKey) -> Option<[Counters; 2]> {
        self.attachments.get(&key).map(|attachment| self.read_slot(attachment.slot))
    }

    /// Counters of all attachments with their ifindexes. Memory reads only, no system call.
    pub fn read_all(&self) -> impl Iterator<Item = (InterfaceKey, u32, [Counters; 2])> + '_ {
        self.attachments
            .iter()
            .map(|(key, attachment)| (*key, attachment.ifindex, self.read_slot(attachment.slot)))
    }

    fn attach_both(&mut self, ifindex: u32) -> Result<(Attached, Attached), AttachError> {
        let ingress = self.attach_one(ifindex, true)?;
        match self.attach_one(ifindex, false) {
            Ok(egress) => Ok((ingress, egress)),
            Err(error) => {
                attach::detach(&mut self.netlink, ingress);
                Err(error)
            }
        }
    }

    fn attach_one(&mut self, ifindex: u32, ingress: bool) -> Result<Attached, AttachError> {
        let program = if ingress { self.ingress.as_fd() } else { self.egress.as_fd() };
        let mode = match self.mode {
            AttachMode::Auto if self.without_clsact.contains(&ifindex) => AttachMode::Tcx,
            mode => mode,
        };
        attach::attach(&mut self.netlink, program, mode, ifindex, ingress).map_err(|source| {
            if nix::net::if_::if_indextoname(ifindex).is_err() {
                AttachError::Gone
            } else {
                AttachError::Attach { direction: if ingress { "ingress" } else { "egress" }, source }
            }
        })
    }

    /// Makes the programs find the slot by ifindex. True if it had to go into the hash.
    fn enter(&mut self, ifindex: u32, slot: u32) -> Result<bool, aya::maps::MapError> {
        let cell = cell_of(ifindex);
        if self.cells.load(cell) == Some(0) {
            self.cells.store(cell, iface_cell(ifindex, slot));
            return Ok(false);
        }
        self.crowded.insert(ifindex, slot, 0).map(|()| true)
    }

    /// Undoes [`Self::enter`], then zeroes the slot for whoever has it next.
    fn leave(&mut self, ifindex: u32, slot: u32, crowded: bool) {
        if crowded {
            if let Err(error) = self.crowded.remove(&ifindex) {
                tracing::warn!(%error, ifindex, "remove from the directory of interfaces");
            }
        } else {
            self.cells.store(cell_of(ifindex), 0);
        }
        for cpu in 0..self.cpus {
            for direction in [INGRESS, EGRESS] {
                for word in self.block(cpu, slot, direction) {
                    word.store(0, Ordering::Relaxed);
                }
            }
        }
        self.slots.release(slot);
    }

    fn block(&self, cpu: u32, slot: u32, direction: u32) -> &[std::sync::atomic::AtomicU64] {
        let index = counter_index(cpu, self.max_interfaces, slot, direction) as usize;
        self.counters.words(index * Counters::WORDS, Counters::WORDS)
    }

    fn read_slot(&self, slot: u32) -> [Counters; 2] {
        [INGRESS, EGRESS].map(|direction| {
            let mut sum = [0u64; Counters::WORDS];
            for cpu in 0..self.cpus {
                for (sum, word) in sum.iter_mut().zip(self.block(cpu, slot, direction)) {
                    *sum += word.load(Ordering::Relaxed);
                }
            }
            // SAFETY: Counters is u64s only, in repr(C), and as many words long.
            unsafe { std::mem::transmute::<[u64; Counters::WORDS], Counters>(sum) }
        })
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

fn load_program(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let fail = |source| LoadError::Program { name, source };
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(fail)?;
    program.load().map_err(fail)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(fail)
}

fn map_array(ebpf: &Ebpf, name: &'static str, words: usize) -> Result<Mapping, LoadError> {
    let Some(aya::maps::Map::Array(map)) = ebpf.map(name) else {
        return Err(LoadError::Missing(name));
    };
    Mapping::new(map.fd().as_fd(), words).map_err(LoadError::Mapping)
}
