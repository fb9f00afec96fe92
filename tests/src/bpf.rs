//! What a process has in the kernel: descriptors by kind, BPF maps and what is in them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::maps::{MapInfo, MapType};

use crate::test_run::bpf;

/// The kernel measures all programs for as long as this lives.
///
/// # Panics
/// Without root.
pub fn enable_stats() -> OwnedFd {
    const BPF_ENABLE_STATS: libc::c_int = 32;
    // `BPF_STATS_RUN_TIME`
    let mut kind = 0u32;
    let fd = bpf(BPF_ENABLE_STATS, &mut kind).expect("enable statistics");
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) }
}

/// Of each program that a process has at a raw tracepoint: the tracepoint, how often it ran, and how many nanoseconds
/// it took in all.
///
/// # Panics
/// If there is no such process.
pub fn runs(pid: u32) -> Vec<(String, u64, u64)> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process").flatten();
    let texts: Vec<String> = files.filter_map(|file| fs::read_to_string(file.path()).ok()).collect();
    let value = |text: &str, name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map(|value| value.trim().to_owned())
    };
    let of_link = |link: &String| {
        let (tracepoint, id) = (value(link, "tp_name")?, value(link, "prog_id")?);
        let is_program =
            |text: &&String| value(text, "run_cnt").is_some() && value(text, "prog_id") == Some(id.clone());
        let program = texts.iter().find(is_program)?;
        let number = |name: &str| value(program, name)?.parse().ok();
        Some((tracepoint, number("run_cnt")?, number("run_time_ns")?))
    };
    texts.iter().filter_map(of_link).collect()
}

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;

/// Open descriptors of a process by what they are: `socket`, `anon_inode`, `/dev/null`, and those of BPF apart.
///
/// # Panics
/// If there is no such process.
pub fn descriptors(pid: u32) -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).expect("a process") {
        // It may have been closed meanwhile.
        let Ok(target) = fs::read_link(entry.expect("an entry").path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        // `socket:[4711]`
        let kind = target.split(":[").next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

/// Entries of a process's BPF maps, by the maps' names; of an array, those that are not all zero. Left out are the
/// blocks of counters (which are in use, userspace knows), the cells of flows, which keep what they had until they
/// are taken anew, which of two maps is written, and what is counted of dropped packets, wherever on the host.
///
/// # Panics
/// Without root, or if there is no such process.
pub fn map_entries(pid: u32) -> BTreeMap<String, usize> {
    let mut entries = BTreeMap::new();
    for id in map_ids(pid) {
        let info = MapInfo::from_id(id).expect("a map");
        let name = info.name_as_str().unwrap_or_default().to_owned();
        let count = match info.map_type().expect("a type") {
            _ if NOT_ENTRIES.contains(&name.as_str()) => continue,
            MapType::Array => array_entries(&info),
            MapType::Hash | MapType::PerCpuHash | MapType::CgroupStorage => keys(&info),
            _ => continue,
        };
        *entries.entry(name).or_default() += count;
    }
    entries
}

const NOT_ENTRIES: [&str; 8] =
    ["COUNTERS", "FLOW_CELLS", "FLOW_OWNERS", "OVERFLOW_EPOCH", "ACTIVE", "EVENTS_0", "EVENTS_1", "TOTALS"];

/// Of the maps that its programs use: it need not keep a descriptor of each.
fn map_ids(pid: u32) -> BTreeSet<u32> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process");
    let texts = infos.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let programs: BTreeSet<u32> = texts
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()))
        .collect();
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| programs.contains(&program.id()))
        .flat_map(|program| program.map_ids().expect("the kernel tells").unwrap_or_default())
        .collect()
}

/// `union bpf_attr` of linux/bpf.h, for commands on a map's elements.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    reserved: u32,
    key: u64,
    /// Or the next key.
    value: u64,
    flags: u64,
}

fn element(command: libc::c_int, map: BorrowedFd<'_>, key: Option<&[u8]>, value: &mut [u8]) -> bool {
    let mut attribute = Element {
        map_fd: map.as_raw_fd().cast_unsigned(),
        key: key.map_or(0, |key| key.as_ptr() as u64),
        value: value.as_mut_ptr() as u64,
        ..Element::default()
    };
    bpf(command, &mut attribute).is_ok()
}

fn array_entries(info: &MapInfo) -> usize {
    let fd = info.fd().expect("the map");
    let mut value = vec![0; info.value_size() as usize];
    let mut is_used = |index: u32| {
        let found = element(BPF_MAP_LOOKUP_ELEM, fd.as_fd(), Some(&index.to_ne_bytes()), &mut value);
        found && value.iter().any(|byte| *byte != 0)
    };
    (0..info.max_entries()).filter(|index| is_used(*index)).count()
}

fn keys(info: &MapInfo) -> usize {
    let fd = info.fd().expect("the map");
    let mut count = 0;
    let mut key: Option<Vec<u8>> = None;
    loop {
        let mut next = vec![0; info.key_size() as usize];
        if !element(BPF_MAP_GET_NEXT_KEY, fd.as_fd(), key.as_deref(), &mut next) {
            return count;
        }
        count += 1;
        key = Some(next);
    }
}
