//! The loaded object: its programs and maps.

use std::{io, os::fd::AsFd as _};

#[expect(deprecated, reason = "the newer map needs the task's cgroup, and kernel 6.2")]
use aya::maps::{CgroupStorage, CgroupStorageKey};
use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map, MapData},
    programs::{CgroupSkb, ProgramError, ProgramFd, SchedClassifier},
};
use netobs_common::{Counters, DIRECTIONS, IFACE_CELLS};

use super::{
    attach::{AttachMode, Programs, cgroup_hook},
    directory::Directory,
    log::{self, LogThread},
    mapping::Mapping,
    ports::Ports,
};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/netobs.bpf.o");

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Interfaces and cgroups that can be attached at a time; each takes 1 KiB of kernel memory per
    /// possible CPU. At most 65,535: filters carry the slot in 16 bits.
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

/// Programs and maps as they are in the kernel; gone when dropped.
pub struct Object {
    ingress: Direction,
    egress: Direction,
    #[expect(deprecated, reason = "as above")]
    cgroups: CgroupStorage<MapData, u64>,
    pub counters: Mapping,
    pub ports: Ports,
    pub cpus: u32,
    _log: Option<LogThread>,
}

struct Direction {
    filter: ProgramFd,
    tcx: ProgramFd,
    cgroup: ProgramFd,
}

impl Object {
    pub fn load(options: &Options) -> Result<(Self, Directory), LoadError> {
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
        let ingress = Direction {
            filter: classifier(&mut ebpf, "netobs_ingress")?,
            tcx: classifier(&mut ebpf, "netobs_tcx_ingress")?,
            cgroup: cgroup_skb(&mut ebpf, "netobs_cgroup_in")?,
        };
        let egress = Direction {
            filter: classifier(&mut ebpf, "netobs_egress")?,
            tcx: classifier(&mut ebpf, "netobs_tcx_egress")?,
            cgroup: cgroup_skb(&mut ebpf, "netobs_cgroup_out")?,
        };
        let log = if options.log { Some(LogThread::start(&mut ebpf).map_err(LoadError::Log)?) } else { None };
        let words = (cpus * max_interfaces * DIRECTIONS) as usize * Counters::WORDS;
        let counters = map_array(&ebpf, "COUNTERS", words)?;
        let cells = map_array(&ebpf, "IFACES", IFACE_CELLS as usize)?;
        let directory = Directory::new(cells, HashMap::try_from(take(&mut ebpf, "CROWDED")?)?);
        let ports = Ports::new(take(&mut ebpf, "PORTS")?, take(&mut ebpf, "CLIENTS")?)?;
        #[expect(deprecated, reason = "as above")]
        let cgroups = CgroupStorage::try_from(take(&mut ebpf, "CGROUPS")?)?;
        Ok((Self { ingress, egress, cgroups, counters, ports, cpus, _log: log }, directory))
    }

    pub fn programs(&self, ingress: bool) -> Programs<'_> {
        let Direction { filter, tcx, cgroup } = if ingress { &self.ingress } else { &self.egress };
        Programs { filter: filter.as_fd(), tcx: tcx.as_fd(), cgroup: cgroup.as_fd() }
    }

    /// Tells the programs attached to a cgroup their slot.
    pub fn enter_cgroup(&mut self, id: u64, slot: u32) -> Result<(), aya::maps::MapError> {
        for ingress in [true, false] {
            self.cgroups.insert(CgroupStorageKey::new(id, cgroup_hook(ingress)), u64::from(slot) + 1, 0)?;
        }
        Ok(())
    }
}

fn classifier(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let fail = |source| LoadError::Program { name, source };
    let program: &mut SchedClassifier =
        ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(fail)?;
    program.load().map_err(fail)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(fail)
}

fn cgroup_skb(ebpf: &mut Ebpf, name: &'static str) -> Result<ProgramFd, LoadError> {
    let fail = |source| LoadError::Program { name, source };
    let program: &mut CgroupSkb =
        ebpf.program_mut(name).ok_or(LoadError::Missing(name))?.try_into().map_err(fail)?;
    program.load().map_err(fail)?;
    program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(fail)
}

fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

fn map_array(ebpf: &Ebpf, name: &'static str, words: usize) -> Result<Mapping, LoadError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(LoadError::Missing(name));
    };
    Mapping::new(map.fd().as_fd(), words).map_err(LoadError::Mapping)
}
