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

/// Numbers of the TCX links that a process has at an interface.
///
/// # Panics
/// If there is no such process.
pub fn tcx_links(pid: u32, ifindex: u32) -> Vec<u32> {
    links(pid, "tcx", "ifindex:", u64::from(ifindex)).into_keys().collect()
}

/// As [`tcx_links`], each with the number of the program that it has now.
///
/// # Panics
/// If there is no such process.
pub fn tcx_programs(pid: u32, ifindex: u32) -> BTreeMap<u32, u32> {
    links(pid, "tcx", "ifindex:", u64::from(ifindex))
}

/// Numbers of the links that a process has to a cgroup, by its inode number.
///
/// # Panics
/// If there is no such process.
pub fn cgroup_links(pid: u32, cgroup: u64) -> Vec<u32> {
    links(pid, "cgroup", "cgroup_id:", cgroup).into_keys().collect()
}

/// Numbers of links, and of their programs.
fn links(pid: u32, kind: &str, target: &str, id: u64) -> BTreeMap<u32, u32> {
    let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process").flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    let of_link = |text: String| {
        let value =
            |name: &str| text.lines().find_map(|line| Some(line.strip_prefix(name)?.trim().to_owned()));
        let is_it = value("link_type:")? == kind && value(target)? == id.to_string();
        is_it.then(|| Some((value("link_id:")?.parse().ok()?, value("prog_id:")?.parse().ok()?)))?
    };
    texts.filter_map(of_link).collect()
}

/// What the kernel's statistics have of a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// Whether it is one of those at interfaces.
    pub is_classifier: bool,
    pub runs: u64,
    pub ns: u64,
}

/// All programs that a process holds, by their number in the kernel.
///
/// # Panics
/// If there is no such process.
pub fn program_runs(pid: u32) -> BTreeMap<u32, Runs> {
    const BPF_PROG_TYPE_SCHED_CLS: u64 = 3;
    let mut programs = BTreeMap::new();
    for file in fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process").flatten() {
        let text = fs::read_to_string(file.path()).unwrap_or_default();
        let value = |name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line?.trim().parse().ok()
        };
        // A link has the number of its program, too, and no statistics.
        let (Some(id), Some(runs), Some(ns)) = (value("prog_id"), value("run_cnt"), value("run_time_ns"))
        else {
            continue;
        };
        let is_classifier = value("prog_type") == Some(BPF_PROG_TYPE_SCHED_CLS);
        programs.insert(id as u32, Runs { is_classifier, runs, ns });
    }
    programs
}

/// Maps that instructions of a loaded program refer to, by name, as the verifier has left them: what it found to be
/// never reached is not in it.
///
/// # Panics
/// Without root, or where the kernel does not show instructions.
pub fn maps_in_instructions(program: u32) -> BTreeSet<String> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    /// The beginning of `struct bpf_prog_info` of linux/bpf.h.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        kind: u32,
        id: u32,
        tag: u64,
        machine_code_len: u32,
        translated_len: u32,
        machine_code: u64,
        translated: u64,
    }
    #[repr(C)]
    struct GetInfo {
        fd: u32,
        info_len: u32,
        info: u64,
    }
    let mut id = [program, 0, 0];
    let fd = bpf(BPF_PROG_GET_FD_BY_ID, &mut id).expect("the program");
    // SAFETY: the kernel has just given it to us, and nobody else has it.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) };
    let get = |info: &mut Info| {
        let mut attribute = GetInfo {
            fd: fd.as_raw_fd().cast_unsigned(),
            info_len: size_of::<Info>() as u32,
            info: std::ptr::from_mut(info) as u64,
        };
        bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attribute).expect("the program's information");
    };
    let mut info = Info::default();
    get(&mut info);
    let mut instructions = vec![[0u8; 8]; info.translated_len as usize / 8];
    info = Info {
        translated_len: info.translated_len,
        translated: instructions.as_mut_ptr() as u64,
        ..Info::default()
    };
    get(&mut info);
    /// The address of a map, or of its value: linux/bpf.h `BPF_LD | BPF_IMM | BPF_DW` with `BPF_PSEUDO_MAP_FD` or
    /// `BPF_PSEUDO_MAP_VALUE` as its source register.
    const LOAD_ADDRESS: u8 = 0x18;
    let ids: BTreeSet<u32> = instructions
        .iter()
        .filter(|[code, registers, ..]| *code == LOAD_ADDRESS && matches!(registers >> 4, 1 | 2))
        .map(|&[_, _, _, _, a, b, c, d]| u32::from_le_bytes([a, b, c, d]))
        .collect();
    let name = |id| MapInfo::from_id(id).expect("a map").name_as_str().unwrap_or_default().to_owned();
    ids.into_iter().map(name).collect()
}

/// What processes have had in the kernel, by numbers that are not used again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub programs: BTreeSet<u32>,
    pub maps: BTreeSet<u32>,
    pub links: BTreeSet<u32>,
}

impl Objects {
    /// Adds what a process has now, by its descriptors, and the maps of its programs.
    pub fn add(&mut self, pid: u32) {
        let files = fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten();
        for text in files.filter_map(|file| fs::read_to_string(file.path()).ok()) {
            let value = |name: &str| {
                text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok())
            };
            self.programs.extend(value("prog_id:"));
            self.maps.extend(value("map_id:"));
            self.links.extend(value("link_id:"));
        }
        let used = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| self.programs.contains(&program.id()))
            .filter_map(|program| program.map_ids().ok().flatten());
        self.maps.extend(used.flatten());
    }

    /// Those that the kernel still has.
    pub fn that_live(&self) -> Self {
        const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
        const BPF_MAP_GET_FD_BY_ID: libc::c_int = 14;
        const BPF_LINK_GET_FD_BY_ID: libc::c_int = 30;
        let that_live = |command, ids: &BTreeSet<u32>| -> BTreeSet<u32> {
            let lives = |id: &&u32| {
                let mut attribute = [**id, 0, 0];
                let fd = bpf(command, &mut attribute).ok().and_then(|fd| i32::try_from(fd).ok());
                // SAFETY: the kernel has just given it to us, and nobody else has it.
                fd.map(|fd| drop(unsafe { OwnedFd::from_raw_fd(fd) })).is_some()
            };
            ids.iter().filter(lives).copied().collect()
        };
        Self {
            programs: that_live(BPF_PROG_GET_FD_BY_ID, &self.programs),
            maps: that_live(BPF_MAP_GET_FD_BY_ID, &self.maps),
            links: that_live(BPF_LINK_GET_FD_BY_ID, &self.links),
        }
    }

    pub fn len(&self) -> usize {
        self.programs.len() + self.maps.len() + self.links.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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
/// are taken anew, which of two maps is written, and what is counted of dropped packets and of TCP, wherever on the
/// host, until it is read.
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

const NOT_ENTRIES: [&str; 10] = [
    "COUNTERS",
    "FLOW_CELLS",
    "FLOW_OWNERS",
    "OVERFLOW_EPOCH",
    "ACTIVE",
    "EVENTS_0",
    "EVENTS_1",
    "COUNTS_0",
    "COUNTS_1",
    "TOTALS",
];

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
