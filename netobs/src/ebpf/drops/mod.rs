//! Packets that the kernel drops: an object of its own, loaded where drops are asked for.

mod layout;
mod ordinary;
mod places;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd as _, AsRawFd as _},
    path::PathBuf,
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData},
    programs::{ProgramError, RawTracePoint},
};
use netobs_common::drops::{DropCount, DropKey, DropTotals, KernelLayout, MAX_PLACES, REASONS, flag};

use self::{
    layout::Reasons,
    places::{Place, Places},
};
use super::{
    attach::bpf,
    btf::{Btf, BtfError},
    mapping::Mapping,
    table::{Amount, Key, Table},
};
use crate::model::drops::{DropEvent, DropSample, Netfilter, ReasonTotal};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/drops.bpf.o");

/// Where a kernel has its type information.
pub const BTF_FILE: &str = "/sys/kernel/btf/vmlinux";

#[derive(Clone, Debug)]
pub struct DropOptions {
    /// Tell of ordinary ends of packets, too.
    pub all: bool,
    /// Kinds of events between two readings that can be told apart; each takes some 300 bytes of kernel memory.
    pub max_keys: u32,
    /// See [`BTF_FILE`].
    pub btf: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum DropsError {
    #[error("the kernel's type information, {}: {error}", path.display())]
    BtfFile { path: PathBuf, error: io::Error },
    #[error("the kernel's type information, {}: {error}", path.display())]
    Btf { path: PathBuf, error: BtfError },
    #[error("load the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("attach to the tracepoint skb:kfree_skb: {0}")]
    Program(#[from] ProgramError),
    #[error("the eBPF object has no {0}; it was not built from these sources")]
    Missing(&'static str),
    #[error("map the counters into memory: {0}")]
    Mapping(io::Error),
    #[error("number of CPUs: {0}")]
    Cpus(io::Error),
}

/// The attached program; detached when dropped.
pub struct Drops {
    table: Table<DropKey, DropCount>,
    totals: Mapping,
    cpus: usize,
    reasons: Reasons,
    has_reasons: bool,
    places: Places,
    /// Why places are not known.
    pub degraded: Option<String>,
    ebpf: Ebpf,
}

const PROGRAM: &str = "netobs_drops";
/// Who calls netfilter's hooks.
const HOOK_CALLER: &str = "nf_hook_slow";

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Layout(KernelLayout);
// SAFETY: plain integers without padding.
unsafe impl Pod for Layout {}

// SAFETY: integers that leave no padding between them.
unsafe impl Key for DropKey {}
// SAFETY: as above.
unsafe impl Amount for DropCount {
    fn since(self, told: Self) -> Option<Self> {
        let packets = self.packets.saturating_sub(told.packets);
        (packets > 0).then_some(Self { packets, ..self })
    }
}

impl Drops {
    /// # Errors
    /// See [`DropsError`]; nothing is attached then.
    pub fn load(options: &DropOptions) -> Result<Self, DropsError> {
        let path = &options.btf;
        let bytes = fs::read(path).map_err(|error| DropsError::BtfFile { path: path.clone(), error })?;
        let (layout, reasons) = Btf::parse(&bytes)
            .and_then(|btf| Ok((layout::layout(&btf)?, layout::reasons(&btf))))
            .map_err(|error| DropsError::Btf { path: path.clone(), error })?;
        drop(bytes);
        let (places, degraded) = match places::ranges(&[ordinary::places(&reasons), &[HOOK_CALLER]].concat())
        {
            Ok(places) => (places, None),
            Err(error) => {
                (Vec::new(), Some(format!("places in the kernel have no names: /proc/kallsyms: {error}")))
            }
        };
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| DropsError::Cpus(error))?;
        let has_reasons = layout.has_reason != 0;
        let mut ebpf = load_object(options, layout, &reasons, &places, cpus)?;
        let program: &mut RawTracePoint =
            ebpf.program_mut(PROGRAM).ok_or(DropsError::Missing(PROGRAM))?.try_into()?;
        program.load()?;
        let totals = map_array(&mut ebpf, "TOTALS", cpus * DropTotals::WORDS)?;
        let active = map_array(&mut ebpf, "ACTIVE", 1)?;
        let maps = [hash(&mut ebpf, "EVENTS_0")?, hash(&mut ebpf, "EVENTS_1")?];
        let table = Table::new(maps, active, options.max_keys);
        let program: &mut RawTracePoint =
            ebpf.program_mut(PROGRAM).ok_or(DropsError::Missing(PROGRAM))?.try_into()?;
        program.attach("kfree_skb")?;
        Ok(Self { table, totals, cpus, reasons, has_reasons, places: Places::default(), degraded, ebpf })
    }

    /// What happened since the last call, and totals since the start.
    ///
    /// # Errors
    /// What `bpf(2)` says.
    pub fn read(&mut self) -> io::Result<DropSample> {
        let events = self.table.drain()?;
        let addresses: BTreeSet<u64> = events
            .iter()
            .flat_map(|(key, count)| [key.location, count.hook, count.hook_function])
            .filter(|address| *address != 0)
            .collect();
        if self.degraded.is_none() {
            self.places.learn(&addresses);
        }
        let events = events.iter().map(|(key, count)| self.event(key, count)).collect();
        // After the events: totals are never behind them.
        let (by_reason, mut lost) = self.read_totals();
        lost.insert("recursion", self.recursion_misses());
        Ok(DropSample { events, by_reason, lost, ..DropSample::default() })
    }

    fn read_totals(&self) -> (Vec<ReasonTotal>, BTreeMap<&'static str, u64>) {
        let mut sum = vec![0u64; DropTotals::WORDS];
        for cpu in 0..self.cpus {
            for (sum, word) in
                sum.iter_mut().zip(self.totals.words(cpu * DropTotals::WORDS, DropTotals::WORDS))
            {
                *sum += word.load(Ordering::Relaxed);
            }
        }
        let (by_reason, lost) = sum.split_at(2 * REASONS);
        let (seen, hidden) = by_reason.split_at(REASONS);
        let totals = seen.iter().zip(hidden).enumerate().filter(|(_, (seen, _))| **seen > 0);
        let by_reason = totals
            .map(|(number, (seen, hidden))| {
                let reason =
                    if number == REASONS - 1 { "other".to_owned() } else { self.reason(number as u32) };
                ReasonTotal { reason, events: *seen, ordinary: *hidden }
            })
            .collect();
        let lost = ["full", "busy"].into_iter().zip(lost.iter().copied()).collect();
        (by_reason, lost)
    }

    fn event(&self, key: &DropKey, count: &DropCount) -> DropEvent {
        let has = |bit: u8| key.flags & bit != 0;
        let some = |number: u32| (number != 0).then_some(number);
        let address = |bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
        DropEvent {
            reason: self.reason(key.reason),
            place: self.places.get(key.location).map(text),
            netfilter: self.netfilter(count),
            netns: some(key.netns).map(u64::from),
            ifindex: some(key.ifindex),
            out_ifindex: some(key.out_ifindex),
            source_mac: (key.source_mac != [0; 6]).then(|| mac(key.source_mac)),
            ethertype: key.ethertype,
            addresses: has(flag::ADDRESSES).then(|| (address(key.source), address(key.destination))),
            protocol: has(flag::ADDRESSES).then_some(key.protocol),
            port: has(flag::PORT).then_some(key.port),
            ordinary: has(flag::ORDINARY),
            packets: count.packets,
        }
    }

    fn netfilter(&self, count: &DropCount) -> Option<Netfilter> {
        let caller = self.places.get(count.hook)?;
        let function = self.places.get(count.hook_function);
        Some(Netfilter::of(&caller.function, function.map(|place| place.function.as_str())))
    }

    fn reason(&self, number: u32) -> String {
        match self.reasons.get(&number) {
            _ if !self.has_reasons => "not told by this kernel".to_owned(),
            Some(name) => name.clone(),
            // Of a subsystem (upper half), whose names are elsewhere.
            None if number > 0xffff => format!("{}:{}", number >> 16, number & 0xffff),
            None => number.to_string(),
        }
    }

    /// Times that the kernel left the program out because it ran already on that CPU (since 6.1).
    fn recursion_misses(&self) -> u64 {
        /// Of `struct bpf_prog_info`.
        const RECURSION_MISSES: usize = 208 / 8;
        const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
        #[repr(C)]
        struct GetInfo {
            fd: u32,
            len: u32,
            info: u64,
        }
        let Some(fd) = self.ebpf.program(PROGRAM).and_then(|program| program.fd().ok()) else { return 0 };
        let mut info = [0u64; RECURSION_MISSES + 1];
        let mut get = GetInfo {
            fd: fd.as_fd().as_raw_fd().cast_unsigned(),
            len: u32::try_from(size_of_val(&info)).unwrap_or_default(),
            info: info.as_mut_ptr() as u64,
        };
        // A kernel that does not tell leaves it 0.
        let _ = bpf(BPF_OBJ_GET_INFO_BY_FD, &mut get);
        info[RECURSION_MISSES]
    }
}

fn load_object(
    options: &DropOptions,
    layout: KernelLayout,
    reasons: &Reasons,
    places: &[(String, [u64; 2])],
    cpus: usize,
) -> Result<Ebpf, DropsError> {
    let is_hook_caller = |place: &&(String, [u64; 2])| place.0 == HOOK_CALLER;
    let hook_caller = places.iter().find(is_hook_caller).map_or([0; 2], |(_, range)| *range);
    let mut ranges = [0u64; 2 * MAX_PLACES];
    let ordinary = places.iter().filter(|place| !is_hook_caller(place)).take(MAX_PLACES);
    let mut ranges_len = 0u32;
    for ((_, range), at) in ordinary.zip(ranges.chunks_exact_mut(2)) {
        at.copy_from_slice(range);
        ranges_len += 1;
    }
    let netfilter = reasons.iter().find(|(_, name)| *name == "NETFILTER_DROP");
    // Without reasons any packet may be netfilter's, and then the stack tells.
    let netfilter = netfilter.map_or(0, |(number, _)| *number);
    let ebpf = EbpfLoader::new()
        .btf(None)
        .override_global("LAYOUT", &Layout(layout), true)
        .override_global("RULES", &ordinary::rules(reasons)[..], true)
        .override_global("ALL", &u32::from(options.all), true)
        .override_global("NETFILTER_DROP", &netfilter, true)
        .override_global("PLACES", &ranges[..], true)
        .override_global("PLACES_LEN", &ranges_len, true)
        .override_global("HOOK_CALLER", &hook_caller[..], true)
        .map_max_entries("TOTALS", u32::try_from(cpus).unwrap_or(u32::MAX))
        .map_max_entries("EVENTS_0", options.max_keys)
        .map_max_entries("EVENTS_1", options.max_keys)
        .load(OBJECT)?;
    Ok(ebpf)
}

fn map_array(ebpf: &mut Ebpf, name: &'static str, words: usize) -> Result<Mapping, DropsError> {
    let Some(Map::Array(map)) = ebpf.map(name) else { return Err(DropsError::Missing(name)) };
    Mapping::new(map.fd().as_fd(), words).map_err(DropsError::Mapping)
}

fn hash(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, DropsError> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(map)) => Ok(map),
        _ => Err(DropsError::Missing(name)),
    }
}

/// As the kernel writes it: `nf_hook_slow+0xa6`, `br_nf_forward_ip+0x23 [br_netfilter]`.
fn text(place: &Place) -> String {
    let module = place.module.as_ref().map(|module| format!(" [{module}]")).unwrap_or_default();
    format!("{}+{:#x}{module}", place.function, place.offset)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
