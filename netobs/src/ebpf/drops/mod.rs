//! Packets that the kernel drops: an object of its own, loaded where drops are asked for.

mod each;
pub(crate) mod layout;
pub(crate) mod names;
mod ordinary;
mod places;

use std::{
    fs, io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData},
    programs::{ProgramError, RawTracePoint},
};
use netobs_common::drops::{DropCount, DropKey, DropTotals, KernelLayout, MAX_PLACES, REASONS};

pub use self::each::{DropCounts, DropRecord, DropRing, EachDrop, EachOptions};
use self::{layout::Reasons, names::Names};
use super::{
    batch::Plain,
    btf::{Btf, BtfError},
    left_out,
    mapping::Mapping,
    table::{Amount, Table},
};
use crate::model::{
    drops::{DropSample, ReasonTotal},
    snapshot::by_name,
};

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
    #[error("functions of the kernel, /proc/kallsyms: {0}")]
    Places(io::Error),
    #[error("the ring: {0}")]
    Ring(#[from] aya::maps::MapError),
}

/// The attached program; detached when dropped.
pub struct Drops {
    table: Table<DropKey, DropCount>,
    totals: Totals,
    names: Names,
    /// Why places are not known.
    pub degraded: Option<String>,
    ebpf: Ebpf,
}

const PROGRAM: &str = "netobs_drops";
const TRACEPOINT: &str = "kfree_skb";
/// Who calls netfilter's hooks.
const HOOK_CALLER: &str = "nf_hook_slow";

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Layout(KernelLayout);
// SAFETY: plain integers without padding.
unsafe impl Pod for Layout {}

// SAFETY: integers that leave no padding between them.
unsafe impl Plain for DropKey {}
// SAFETY: as above.
unsafe impl Plain for DropCount {}

impl Amount for DropCount {
    fn since(self, told: Self) -> Option<Self> {
        let packets = self.packets.saturating_sub(told.packets);
        (packets > 0).then_some(Self { packets, ..self })
    }
}

impl Drops {
    /// # Errors
    /// See [`DropsError`]; nothing is attached then.
    pub fn load(options: &DropOptions) -> Result<Self, DropsError> {
        let sizes = Sizes { keys: options.max_keys, ..Sizes::default() };
        let Loaded { mut ebpf, totals, names, degraded } = load(&options.btf, options.all, sizes, PROGRAM)?;
        let active = map_array(&mut ebpf, "ACTIVE", 1)?;
        let maps = [hash(&mut ebpf, "EVENTS_0")?, hash(&mut ebpf, "EVENTS_1")?];
        let table = Table::new(maps, active, options.max_keys);
        program(&mut ebpf, PROGRAM)?.attach(TRACEPOINT)?;
        Ok(Self { table, totals, names, degraded, ebpf })
    }

    /// What happened since the last call, and totals since the start.
    ///
    /// # Errors
    /// What `bpf(2)` says.
    pub fn read(&mut self) -> io::Result<DropSample> {
        let events = self.table.drain()?;
        self.names
            .learn(events.iter().flat_map(|(key, count)| [key.location, count.hook, count.hook_function]));
        let events = events.iter().map(|(key, count)| self.names.event(key, count)).collect();
        // After the events: totals are never behind them.
        let sum = self.totals.read();
        let by_reason = self.by_reason(&sum);
        let [full, busy] = sum.lost;
        let lost =
            by_name([("full", full), ("busy", busy), ("recursion", left_out::runs(&self.ebpf, PROGRAM))]);
        Ok(DropSample { events, by_reason, lost, ..DropSample::default() })
    }

    fn by_reason(&self, sum: &Sum) -> Vec<ReasonTotal> {
        let totals = sum.seen.iter().zip(&sum.hidden).enumerate().filter(|(_, (seen, _))| **seen > 0);
        totals
            .map(|(number, (seen, hidden))| {
                let reason = if number == REASONS - 1 {
                    "other".to_owned()
                } else {
                    self.names.reason(u32::try_from(number).unwrap_or(u32::MAX))
                };
                ReasonTotal { reason, events: *seen, ordinary: *hidden }
            })
            .collect()
    }
}

/// What each CPU has counted, in shared memory.
struct Totals {
    words: Mapping,
    cpus: usize,
}

/// All CPUs' added up, see [`DropTotals`].
struct Sum {
    seen: Vec<u64>,
    hidden: Vec<u64>,
    /// Full, busy.
    lost: [u64; 2],
}

impl Totals {
    fn read(&self) -> Sum {
        let mut sum = vec![0u64; DropTotals::WORDS];
        for cpu in 0..self.cpus {
            for (sum, word) in
                sum.iter_mut().zip(self.words.words(cpu * DropTotals::WORDS, DropTotals::WORDS))
            {
                *sum += word.load(Ordering::Relaxed);
            }
        }
        let (by_reason, lost) = sum.split_at(2 * REASONS);
        let (seen, hidden) = by_reason.split_at(REASONS);
        Sum { seen: seen.to_vec(), hidden: hidden.to_vec(), lost: std::array::from_fn(|cause| lost[cause]) }
    }
}

/// What the object's maps and globals are made for: counting by kind, or telling of each.
#[derive(Clone, Copy)]
struct Sizes {
    keys: u32,
    ring_bytes: u32,
    snaplen: u32,
}

impl Default for Sizes {
    /// As small as the kernel takes it.
    fn default() -> Self {
        Self { keys: 1, ring_bytes: 4096, snaplen: 0 }
    }
}

/// The object with one of its programs verified, not attached yet.
struct Loaded {
    ebpf: Ebpf,
    totals: Totals,
    names: Names,
    degraded: Option<String>,
}

fn load(path: &Path, all: bool, sizes: Sizes, name: &'static str) -> Result<Loaded, DropsError> {
    let bytes = fs::read(path).map_err(|error| DropsError::BtfFile { path: path.to_owned(), error })?;
    let (layout, reasons) = Btf::parse(&bytes)
        .and_then(|btf| Ok((layout::layout(&btf)?, layout::reasons(&btf))))
        .map_err(|error| DropsError::Btf { path: path.to_owned(), error })?;
    drop(bytes);
    let (places, degraded) = match places::ranges(&[ordinary::places(&reasons), &[HOOK_CALLER]].concat()) {
        Ok(places) => (places, None),
        Err(error) => {
            (Vec::new(), Some(format!("places in the kernel have no names: /proc/kallsyms: {error}")))
        }
    };
    let cpus = aya::util::nr_cpus().map_err(|(_, error)| DropsError::Cpus(error))?;
    let has_reasons = layout.has_reason != 0;
    let mut ebpf = load_object(all, sizes, layout, &reasons, &places, cpus)?;
    program(&mut ebpf, name)?.load()?;
    let totals = Totals { words: map_array(&mut ebpf, "TOTALS", cpus * DropTotals::WORDS)?, cpus };
    let names = Names::new(reasons, has_reasons, degraded.is_none());
    Ok(Loaded { ebpf, totals, names, degraded })
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut RawTracePoint, DropsError> {
    Ok(ebpf.program_mut(name).ok_or(DropsError::Missing(name))?.try_into()?)
}

fn load_object(
    all: bool,
    sizes: Sizes,
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
        .override_global("ALL", &u32::from(all), true)
        .override_global("NETFILTER_DROP", &netfilter, true)
        .override_global("SNAPLEN", &sizes.snaplen, true)
        .override_global("PLACES", &ranges[..], true)
        .override_global("PLACES_LEN", &ranges_len, true)
        .override_global("HOOK_CALLER", &hook_caller[..], true)
        .map_max_entries("TOTALS", u32::try_from(cpus).unwrap_or(u32::MAX))
        .map_max_entries("EVENTS_0", sizes.keys)
        .map_max_entries("EVENTS_1", sizes.keys)
        .map_max_entries("RING", sizes.ring_bytes)
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
