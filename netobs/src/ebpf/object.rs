//! The loaded object: its programs and maps.

use std::{
    hash::{BuildHasher as _, RandomState},
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{HashMap, Map, MapError},
    programs::ProgramError,
};
use netobs_common::{Counters, DIRECTIONS, FlowCell, FlowOwner, IFACE_CELLS, Sender};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{
    attach::AttachMode,
    directory::Directory,
    events::{EventOptions, EventRing, MIN_EVENT_BYTES},
    flows::{self, Flows, Size},
    hooks::{Hooks, InterfaceNames, Names, classifier},
    log::{self, LogThread},
    mapping::Mapping,
    pins::{KEPT_MAPS, PinError, Pins},
    resolvers::Resolvers,
    senders::Senders,
};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../bpf/netobs.bpf.o");

const NAMES: Names = Names {
    interface: InterfaceNames { filter: "netobs_filter", tcx: ["netobs_tcx_ingress", "netobs_tcx_egress"] },
    bridge: Some(InterfaceNames {
        filter: "netobs_br_filter",
        tcx: ["netobs_br_tcx_in", "netobs_br_tcx_out"],
    }),
    cgroup: ["netobs_cgroup_in", "netobs_cgroup_out"],
};

#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Interfaces and cgroups that can be attached at a time; each takes 1 KiB of kernel memory per
    /// possible CPU. At most [`netobs_common::Hook::SLOTS`].
    pub max_interfaces: u32,
    pub mode: AttachMode,
    /// Flows that can be counted apart at a time, about; 0: no flows, and nothing of them in the programs.
    pub max_flows: u32,
    pub events: EventOptions,
    /// Programs log what is odd about packets, for diagnosing them; costs when on.
    pub log: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("load the eBPF object: {0}{remedy}", remedy = memory_remedy(.0))]
    Object(#[from] EbpfError),
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
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error("an eBPF map: {0}")]
    Map(#[from] aya::maps::MapError),
}

/// What to do where a map was refused, perhaps for a limit; else nothing.
fn memory_remedy(error: &EbpfError) -> &'static str {
    let EbpfError::MapError(MapError::CreateError { io_error, .. }) = error else { return "" };
    let is_limited = getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(soft, _)| soft != RLIM_INFINITY);
    if io_error.kind() != io::ErrorKind::PermissionDenied || !is_limited {
        return "";
    }
    "; before Linux 5.11 maps count as locked memory, which is limited here: `ulimit -l unlimited`, or CAP_SYS_RESOURCE"
}

/// Maps as they are in the kernel; gone when dropped.
pub struct Object {
    pub counters: Mapping,
    pub senders: Senders,
    /// None where they are not asked for.
    pub flows: Option<Flows>,
    /// None where they are not asked for, or taken.
    pub events: Option<EventRing>,
    pub resolvers: Option<Resolvers>,
    pub cpus: u32,
    _log: Option<LogThread>,
}

impl Object {
    /// With those of its maps that are pinned, if there are any.
    pub fn load(options: &Options, pins: Option<&Pins>) -> Result<(Self, Hooks), LoadError> {
        let cpus = cpus()?;
        let max_interfaces = options.max_interfaces;
        let log_level = log::level(options.log);
        let size = Size::new(options.max_flows, cpus);
        let flow_mask = size.map_or(0, |size| size.cells_per_cpu - 1);
        let flow_seed = RandomState::new().hash_one(max_interfaces);
        let (event_classes, names) = (options.events.classes(), u32::from(options.events.names));
        let mut loader = EbpfLoader::new();
        loader
            .btf(None)
            .override_global("AYA_LOG_LEVEL", &log_level, true)
            .override_global("MAX_INTERFACES", &max_interfaces, true)
            .override_global("FLOW_MASK", &flow_mask, true)
            .override_global("FLOW_SEED", &flow_seed, true)
            .override_global("EVENT_CLASSES", &event_classes, true)
            .override_global("NAMES", &names, true)
            .map_max_entries("EVENTS", options.events.ring_bytes.max(MIN_EVENT_BYTES))
            .map_max_entries("COUNTERS", cpus * max_interfaces * DIRECTIONS)
            .map_max_entries("SENDERS", max_interfaces * DIRECTIONS)
            .map_max_entries("CROWDED", max_interfaces);
        if let Some(size) = size {
            for (map, entries) in [
                ("FLOW_CELLS", size.cells()),
                ("FLOW_OWNERS", size.cells()),
                ("OVERFLOW_EVEN", size.overflow),
                ("OVERFLOW_ODD", size.overflow),
            ] {
                loader.map_max_entries(map, entries);
            }
        }
        for (map, file) in
            pins.iter().flat_map(|pins| KEPT_MAPS.map(|(map, file)| (map, pins.map_path(file))))
        {
            loader.map_pin_path(map, file);
        }
        let mut ebpf = loader.load(OBJECT)?;
        let log = if options.log { Some(LogThread::start(&mut ebpf).map_err(LoadError::Log)?) } else { None };
        let words = (cpus * max_interfaces * DIRECTIONS) as usize * Counters::WORDS;
        let counters = map_array(&ebpf, "COUNTERS", words)?;
        let words = (max_interfaces * DIRECTIONS) as usize * size_of::<Sender>() / 8;
        let senders = Senders::new(map_array(&ebpf, "SENDERS", words)?);
        let cells = map_array(&ebpf, "IFACES", IFACE_CELLS as usize)?;
        let directory = Directory::new(Some(cells), HashMap::try_from(take(&mut ebpf, "CROWDED")?)?);
        let hooks = Hooks::load(&mut ebpf, &NAMES, directory)?;
        let flows = size.map(|size| flows(&ebpf, size)).transpose()?;
        let resolvers = options.events.dns.then(|| classifier(&mut ebpf, "netobs_lo")).transpose()?;
        let resolvers = resolvers.map(|program| Resolvers::new(program, max_interfaces));
        let events = options.events.is_on().then(|| EventRing::of(&mut ebpf)).transpose()?;
        Ok((Self { counters, senders, flows, events, resolvers, cpus, _log: log }, hooks))
    }
}

/// That there may ever be.
pub fn cpus() -> Result<u32, LoadError> {
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| LoadError::Cpus(error))?;
    Ok(u32::try_from(cpus).unwrap_or(u32::MAX))
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

fn flows(ebpf: &Ebpf, size: Size) -> Result<Flows, LoadError> {
    let cells = size.cells() as usize;
    let maps = flows::Maps {
        cells: map_array(ebpf, "FLOW_CELLS", cells * size_of::<FlowCell>() / 8)?,
        owners: map_array(ebpf, "FLOW_OWNERS", cells * size_of::<FlowOwner>() / 8)?,
        overflow: [hash_fd(ebpf, "OVERFLOW_EVEN")?, hash_fd(ebpf, "OVERFLOW_ODD")?],
        epoch: map_array(ebpf, "OVERFLOW_EPOCH", 1)?,
    };
    Ok(Flows::new(size, maps))
}

fn hash_fd(ebpf: &Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let Some(Map::HashMap(map)) = ebpf.map(name) else {
        return Err(LoadError::Missing(name));
    };
    map.fd().as_fd().try_clone_to_owned().map_err(LoadError::Mapping)
}
