//! The loaded object: its programs and maps.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf, EbpfLoader,
    maps::{HashMap, Map},
    programs::ProgramError,
};
use netobs_common::{Counters, DIRECTIONS, IFACE_CELLS};

use super::{
    attach::AttachMode,
    directory::Directory,
    hooks::{Hooks, Names},
    log::{self, LogThread},
    mapping::Mapping,
    ports::Ports,
};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/netobs.bpf.o");

const NAMES: Names = Names {
    filter: ["netobs_ingress", "netobs_egress"],
    tcx: ["netobs_tcx_ingress", "netobs_tcx_egress"],
    cgroup: ["netobs_cgroup_in", "netobs_cgroup_out"],
};

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

/// Maps as they are in the kernel; gone when dropped.
pub struct Object {
    pub counters: Mapping,
    pub ports: Ports,
    pub cpus: u32,
    _log: Option<LogThread>,
}

impl Object {
    pub fn load(options: &Options) -> Result<(Self, Hooks), LoadError> {
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
        let log = if options.log { Some(LogThread::start(&mut ebpf).map_err(LoadError::Log)?) } else { None };
        let words = (cpus * max_interfaces * DIRECTIONS) as usize * Counters::WORDS;
        let counters = map_array(&ebpf, "COUNTERS", words)?;
        let cells = map_array(&ebpf, "IFACES", IFACE_CELLS as usize)?;
        let directory = Directory::new(Some(cells), HashMap::try_from(take(&mut ebpf, "CROWDED")?)?);
        let hooks = Hooks::load(&mut ebpf, &NAMES, directory)?;
        let ports = Ports::new(take(&mut ebpf, "PORTS")?, take(&mut ebpf, "CLIENTS")?)?;
        Ok((Self { counters, ports, cpus, _log: log }, hooks))
    }
}

pub fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::Missing(name))
}

pub fn map_array(ebpf: &Ebpf, name: &'static str, words: usize) -> Result<Mapping, LoadError> {
    let Some(Map::Array(map)) = ebpf.map(name) else {
        return Err(LoadError::Missing(name));
    };
    Mapping::new(map.fd().as_fd(), words).map_err(LoadError::Mapping)
}
