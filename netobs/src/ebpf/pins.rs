//! What outlives the process with `--pin` (docs/adr/0014-pins.md): counters, the directory of interfaces, TCX links
//! and a record of each attachment below one folder of a bpffs; filters by a handle of their own.
//!
//! A process that is killed at any moment leaves either a whole record, and its successor goes on with that, or
//! none, and the interface is attached anew.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
        unix::{
            ffi::OsStrExt as _,
            fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _},
        },
    },
    path::{Path, PathBuf},
};

use netobs_common::{ABI_VERSION, Counters};
use nix::{
    fcntl::{Flock, FlockArg},
    sys::statfs::{BPF_FS_MAGIC, statfs},
};

use super::{attach::bpf, mapping::Mapping, owner};
use crate::model::{Baseline, KernelStats};

/// Where pins are, if not told otherwise.
pub const PIN_FOLDER: &str = "/sys/fs/bpf/netobs";

/// Maps of the object that are kept, by their names in it and in the folder.
pub const KEPT_MAPS: [(&str, &str); 4] =
    [("COUNTERS", "counters"), ("SENDERS", "senders"), ("IFACES", "ifaces"), ("CROWDED", "crowded")];

const STATE: &str = "state";
const LINKS: &str = "links";

#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("{} is not in a BPF filesystem; mount one, like: mount -t bpf bpffs /sys/fs/bpf", .0.display())]
    NoBpffs(PathBuf),
    #[error("{} is not netobs's; --pin-folder takes a folder where nothing else is", .0.display())]
    Others(PathBuf),
    #[error("another netobs agent runs with --pin {0}; there can be one")]
    Locked(String),
    #[error(
        "another process has the name @{0} of this network namespace, by which agents with --pin know of each other; there can be one, and `ss --unix --listening --processes` may say who it is"
    )]
    Claimed(String),
    #[error("pinned in {} by netobs {by}, which is newer than this one; start that, or give its counters up by `netobs cleanup`", .folder.display())]
    Newer { folder: PathBuf, by: String },
    #[error("what is pinned in {} is of another form (ABI {found}, this netobs has {}); start the netobs that made it, or give its counters up by `netobs cleanup`", .folder.display(), ABI_VERSION)]
    OtherAbi { folder: PathBuf, found: u64 },
    #[error("pinned in {} with --max-interfaces {found}; start with the same, or give its counters up by `netobs cleanup`", .folder.display())]
    OtherSize { folder: PathBuf, found: u64 },
    #[error("pinned in {} by an agent of another network namespace; --pin-folder takes another folder", .0.display())]
    OtherNamespace(PathBuf),
    #[error("{}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// What is known of an attachment to an interface of the host, and goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    pub ifindex: u32,
    pub bridge: bool,
    /// An ifindex may be another interface's meanwhile.
    pub mac: [u8; 8],
    pub baseline: Baseline,
    /// At attach.
    pub kernel: KernelStats,
}

/// Words of the header: [`MAGIC`], ABI, interfaces, CPUs, version, the namespace's inode, whether it is whole.
mod header {
    pub const MAGIC: usize = 0;
    pub const ABI: usize = 1;
    pub const INTERFACES: usize = 2;
    pub const CPUS: usize = 3;
    pub const VERSION: usize = 4;
    pub const NETNS: usize = 5;
    pub const WHOLE: usize = 6;
    pub const WORDS: usize = 8;
}
/// `netobs` and the version of what is in the map of this name.
const MAGIC: u64 = u64::from_be_bytes(*b"netobs\x00\x01");

const RECORD_WORDS: usize = 16;
/// In a record's first word, beside the ifindex.
const IS_WHOLE: u64 = 1 << 63;
const IS_BRIDGE: u64 = 1 << 62;

/// The folder, held against others.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    state: Mapping,
    capacity: u32,
    goes_on: bool,
    _lock: Lock,
}

/// Nobody else has pins in this folder or in this network namespace at work.
#[derive(Debug)]
pub struct Lock {
    _folder: Flock<File>,
    _claim: OwnedFd,
}

impl Lock {
    fn take(folder: &Path) -> Result<Self, PinError> {
        let held = || PinError::Locked(folder.display().to_string());
        let file = File::open(folder).map_err(|source| failed(folder, source))?;
        let folder = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| held())?;
        let claim = owner::claim_pinned().map_err(|_| PinError::Claimed(owner::pinned_name()))?;
        Ok(Self { _folder: folder, _claim: claim })
    }
}

impl Pins {
    /// Opens the folder, or makes it. What a start that did not come to its end has left is removed.
    ///
    /// # Errors
    /// Says what is in the way, and what to do.
    pub fn open(folder: &Path, max_interfaces: u32, cpus: u32) -> Result<Self, PinError> {
        let parent = folder.parent().unwrap_or(folder);
        if !is_bpffs(folder) && !is_bpffs(parent) {
            return Err(PinError::NoBpffs(folder.to_owned()));
        }
        has_nothing_else(folder)?;
        make_folder(folder)?;
        let lock = Lock::take(folder)?;
        let path = folder.join(STATE);
        let mut found = match get(&path) {
            Ok(map) => Some(map),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(&path, source)),
        };
        if !found.as_ref().is_some_and(|map| is_whole(map.as_fd())) {
            found = None;
            remove_files(folder)?;
        }
        make_folder(&folder.join(LINKS))?;
        let words = header::WORDS + max_interfaces as usize * RECORD_WORDS;
        let netns = own_netns().map_err(|source| failed(folder, source))?;
        let goes_on = found.is_some();
        let state = match found {
            Some(map) => {
                check(folder, map.as_fd(), max_interfaces, netns)?;
                map
            }
            None => {
                let map = create_array(words).map_err(|source| failed(&path, source))?;
                pin(map.as_fd(), &path).map_err(|source| failed(&path, source))?;
                map
            }
        };
        let state = Mapping::new(state.as_fd(), words).map_err(|source| failed(&path, source))?;
        for (word, value) in [
            (header::MAGIC, MAGIC),
            (header::ABI, ABI_VERSION.into()),
            (header::INTERFACES, max_interfaces.into()),
            (header::CPUS, cpus.into()),
            (header::VERSION, own_version()),
            (header::NETNS, netns),
        ] {
            state.store(word, value);
        }
        Ok(Self { folder: folder.to_owned(), state, capacity: max_interfaces, goes_on, _lock: lock })
    }

    /// Whether an earlier process's maps go on.
    pub const fn goes_on(&self) -> bool {
        self.goes_on
    }

    /// All maps are there now.
    pub fn finish(&self) {
        self.state.store(header::WHOLE, 1);
    }

    pub fn map_path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn link_path(&self, ifindex: u32, ingress: bool) -> PathBuf {
        self.folder.join(LINKS).join(link_name(ifindex, ingress))
    }

    /// Whole records, with their slots.
    pub fn records(&self) -> Vec<(u32, Record)> {
        (0..self.capacity).filter_map(|slot| Some((slot, self.record(slot)?))).collect()
    }

    pub fn record(&self, slot: u32) -> Option<Record> {
        let word = |n: usize| self.state.load(at(slot) + n).unwrap_or(0);
        let first = word(0);
        (first & IS_WHOLE != 0).then(|| Record {
            ifindex: first as u32,
            bridge: first & IS_BRIDGE != 0,
            mac: word(1).to_ne_bytes(),
            baseline: Baseline {
                rx_packets: word(2),
                rx_bytes: word(3),
                tx_packets: word(4),
                tx_bytes: word(5),
                uncertain_packets: word(6),
            },
            kernel: KernelStats {
                rx_packets: word(7),
                rx_bytes: word(8),
                tx_packets: word(9),
                tx_bytes: word(10),
                rx_dropped: word(11),
                tx_dropped: word(12),
                rx_errors: word(13),
                tx_errors: word(14),
            },
        })
    }

    pub fn write(&self, slot: u32, record: &Record) {
        self.clear(slot);
        let Record { baseline, kernel, .. } = record;
        let words = [
            u64::from_ne_bytes(record.mac),
            baseline.rx_packets,
            baseline.rx_bytes,
            baseline.tx_packets,
            baseline.tx_bytes,
            baseline.uncertain_packets,
            kernel.rx_packets,
            kernel.rx_bytes,
            kernel.tx_packets,
            kernel.tx_bytes,
            kernel.rx_dropped,
            kernel.tx_dropped,
            kernel.rx_errors,
            kernel.tx_errors,
        ];
        for (n, word) in words.into_iter().enumerate() {
            self.state.store(at(slot) + 1 + n, word);
        }
        let bridge = if record.bridge { IS_BRIDGE } else { 0 };
        // Last: now it is whole.
        self.state.store(at(slot), IS_WHOLE | bridge | u64::from(record.ifindex));
    }

    pub fn clear(&self, slot: u32) {
        self.state.store(at(slot), 0);
    }

    /// Removes links of interfaces that have none of these records.
    pub fn remove_links_but(&self, kept: &[(u32, Record)]) {
        let is_kept = |name: &str| {
            kept.iter().any(|(_, record)| {
                [true, false].iter().any(|ingress| link_name(record.ifindex, *ingress) == name)
            })
        };
        for entry in fs::read_dir(self.folder.join(LINKS)).into_iter().flatten().flatten() {
            if !is_kept(&entry.file_name().to_string_lossy()) {
                remove_link(&entry.path());
            }
        }
    }
}

/// Gives up all that is pinned in a folder; what it was. None: nothing is there.
///
/// # Errors
/// [`PinError::Locked`] or [`PinError::Claimed`] while an agent has it; [`PinError::NoBpffs`] or [`PinError::Others`]
/// where it is not netobs's, and then nothing is removed.
pub fn remove(folder: &Path, dry_run: bool) -> Result<Option<(Lock, Vec<PathBuf>)>, PinError> {
    if !folder.exists() {
        return Ok(None);
    }
    if !is_bpffs(folder) {
        return Err(PinError::NoBpffs(folder.to_owned()));
    }
    has_nothing_else(folder)?;
    let lock = Lock::take(folder)?;
    let mut found = files(&folder.join(LINKS));
    found.extend(files(folder).into_iter().filter(|path| !path.ends_with(LINKS)));
    if !dry_run {
        remove_files(folder)?;
        fs::remove_dir(folder).map_err(|source| failed(folder, source))?;
    }
    Ok(Some((lock, found)))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// Whether a name in the folder is one that netobs gives there.
fn is_kept(name: &OsStr) -> bool {
    name == STATE || name == LINKS || KEPT_MAPS.iter().any(|(_, kept)| name == *kept)
}

/// The same of the folder of links.
fn is_link(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.split_once('_'));
    parts.and_then(|(ifindex, _)| ifindex.parse().ok()).is_some_and(|ifindex| {
        [true, false].iter().any(|ingress| name == OsStr::new(&link_name(ifindex, *ingress)))
    })
}

/// # Errors
/// [`PinError::Others`] if anything is in the folder that netobs does not put there.
fn has_nothing_else(folder: &Path) -> Result<(), PinError> {
    let is_named = |path: &Path, ours: fn(&OsStr) -> bool| path.file_name().is_some_and(ours);
    let mut others = files(folder).into_iter().filter(|path| !is_named(path, is_kept));
    let mut links = files(&folder.join(LINKS)).into_iter().filter(|path| !is_named(path, is_link));
    others.next().or_else(|| links.next()).map_or(Ok(()), |path| Err(PinError::Others(path)))
}

/// What netobs has put there, and nothing else: see [`has_nothing_else`].
fn remove_files(folder: &Path) -> Result<(), PinError> {
    for link in files(&folder.join(LINKS)) {
        remove_link(&link);
    }
    for path in files(folder) {
        let removed = if path.ends_with(LINKS) { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        removed.map_err(|source| failed(&path, source))?;
    }
    Ok(())
}

/// Detaches a pinned link and unpins it.
pub fn remove_link(path: &Path) {
    if let Ok(link) = get(path) {
        let _ = detach(link.as_fd());
    }
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "unpin a link");
    }
}

fn link_name(ifindex: u32, ingress: bool) -> String {
    format!("{ifindex}_{}", if ingress { "ingress" } else { "egress" })
}

const fn at(slot: u32) -> usize {
    header::WORDS + slot as usize * RECORD_WORDS
}

/// Whether a start has come to its end here. Nothing was attached before it had.
fn is_whole(map: BorrowedFd<'_>) -> bool {
    Mapping::new(map, header::WORDS).is_ok_and(|state| state.load(header::WHOLE) == Some(1))
}

fn check(folder: &Path, map: BorrowedFd<'_>, max_interfaces: u32, netns: u64) -> Result<(), PinError> {
    let state = Mapping::new(map, header::WORDS).map_err(|source| failed(folder, source))?;
    let word = |n| state.load(n).unwrap_or(0);
    let folder = folder.to_owned();
    if word(header::VERSION) > own_version() {
        return Err(PinError::Newer { folder, by: version_text(word(header::VERSION)) });
    }
    if word(header::MAGIC) != MAGIC || word(header::ABI) != u64::from(ABI_VERSION) {
        return Err(PinError::OtherAbi { folder, found: word(header::ABI) });
    }
    if word(header::INTERFACES) != u64::from(max_interfaces) {
        return Err(PinError::OtherSize { folder, found: word(header::INTERFACES) });
    }
    if word(header::NETNS) != netns {
        return Err(PinError::OtherNamespace(folder));
    }
    Ok(())
}

fn own_netns() -> io::Result<u64> {
    Ok(fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// Major, minor and patch, 16 bits each.
fn own_version() -> u64 {
    version(env!("CARGO_PKG_VERSION"))
}

fn version(text: &str) -> u64 {
    let parts = text.split(['.', '-', '+']).take(3);
    parts.fold(0, |version, part| version << 16 | part.parse::<u64>().unwrap_or(0))
}

fn version_text(version: u64) -> String {
    format!("{}.{}.{}", version >> 32, version >> 16 & 0xffff, version & 0xffff)
}

/// For its owner only.
fn make_folder(folder: &Path) -> Result<(), PinError> {
    match fs::DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(source) => return Err(failed(folder, source)),
    }
    fs::set_permissions(folder, fs::Permissions::from_mode(0o700)).map_err(|source| failed(folder, source))
}

fn failed(path: &Path, source: io::Error) -> PinError {
    PinError::Io { path: path.to_owned(), source }
}

/// linux/bpf.h
const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_DETACH: libc::c_int = 34;

/// An array of words that can be mapped into memory.
fn create_array(words: usize) -> io::Result<OwnedFd> {
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
        numa_node: u32,
        map_name: [u8; 16],
    }
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    const BPF_F_MMAPABLE: u32 = 1 << 10;
    let mut create = Create {
        map_type: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: 8,
        max_entries: u32::try_from(words).map_err(io::Error::other)?,
        map_flags: BPF_F_MMAPABLE,
        inner_map_fd: 0,
        numa_node: 0,
        map_name: *b"netobs_state\0\0\0\0",
    };
    owned(bpf(BPF_MAP_CREATE, &mut create)?)
}

#[repr(C)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Gives an object of BPF a name.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let fd = object.as_raw_fd().cast_unsigned();
    bpf(BPF_OBJ_PIN, &mut Object { path: path.as_ptr() as u64, fd, flags: 0 }).map(drop)
}

/// An object of BPF by its name.
pub fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    owned(bpf(BPF_OBJ_GET, &mut Object { path: path.as_ptr() as u64, fd: 0, flags: 0 })?)
}

/// Detaches a link, whoever else holds it.
fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd().cast_unsigned(), 0]).map(drop)
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

const _: () = assert!(Counters::WORDS == 64, "a change of what is pinned is a change of the ABI");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_order() {
        assert_eq!(version_text(own_version()), env!("CARGO_PKG_VERSION"));
        let texts = ["0.1.0", "0.1.12", "0.9.1", "0.10.0-rc.1", "1.0.0+build"];
        let versions = texts.map(version);
        assert!(versions.is_sorted() && versions.iter().all(|version| *version > 0), "{versions:?}");
    }

    #[test]
    fn only_what_netobs_has_put_there_is_its_own() {
        assert!(["12_ingress", "3_egress"].iter().all(|name| is_link(OsStr::new(name))));
        let others = ["12", "12_", "_ingress", "012_ingress", "12_ingress2", "x_egress", "state"];
        assert!(!others.iter().any(|name| is_link(OsStr::new(name))));
        let folder = tempfile::tempdir().expect("a folder");
        let kept = |name: &str| fs::write(folder.path().join(name), "").expect("write");
        fs::create_dir(folder.path().join(LINKS)).expect("make a folder");
        [STATE, "counters", "links/7_egress"].into_iter().for_each(kept);
        assert!(has_nothing_else(folder.path()).is_ok());
        for other in ["links/mine", "mine"] {
            kept(other);
            let found = has_nothing_else(folder.path()).map_err(|error| error.to_string());
            assert!(found.as_ref().is_err_and(|said| said.contains(other)), "{found:?}");
        }
        assert!(matches!(remove(folder.path(), false), Err(PinError::NoBpffs(_))));
        assert!(folder.path().join("links/7_egress").exists());
    }

    #[test]
    fn a_folder_elsewhere_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let refused = Pins::open(&folder.path().join("netobs"), 4, 1);
        let said = refused.map(drop).map_err(|error| error.to_string()).expect_err("no bpffs");
        assert!(said.contains("mount -t bpf bpffs /sys/fs/bpf"), "{said}");
    }
}
