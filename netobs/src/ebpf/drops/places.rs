//! Places in the kernel by name, from `/proc/kallsyms`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{self, BufRead, BufReader},
    path::Path,
};

/// A function and how far into it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Without what the compiler appended (`.isra.0`, `.part.1`, `.cold`).
    pub function: String,
    pub offset: u64,
    pub module: Option<String>,
}

/// No function is longer; an address further from any symbol is in none.
const FUNCTION_MAX: u64 = 256 * 1024;

/// Functions and their addresses. The file is read anew for what is not known yet: kept whole, it would be
/// several megabytes.
#[derive(Debug, Default)]
pub struct Places {
    /// None: in no function that the file has.
    known: BTreeMap<u64, Option<Place>>,
    /// In place of the file.
    functions: Option<Functions>,
}

/// All of the file, for who must not wait for it: some 4 MiB. Modules that are loaded later are not in it.
#[derive(Debug, Default)]
struct Functions {
    /// Address, where in `names` the name begins and ends, and number of the module, 0 for none; by address.
    symbols: Vec<(u64, [u32; 2], u16)>,
    names: String,
    modules: Vec<String>,
}

/// Places that are kept; beyond, all are asked for again.
const KEPT: usize = 4096;

const FILE: &str = "/proc/kallsyms";

impl Places {
    /// Reads the file now, and never again.
    pub fn read_all() -> io::Result<Self> {
        Ok(Self { known: BTreeMap::new(), functions: Some(Functions::read(open()?)?) })
    }

    /// Learns all these addresses at once.
    pub fn learn(&mut self, addresses: &BTreeSet<u64>) {
        let new: Vec<u64> =
            addresses.iter().copied().filter(|address| !self.known.contains_key(address)).collect();
        if new.is_empty() {
            return;
        }
        if self.known.len() + new.len() > KEPT {
            self.known.clear();
        }
        let found = match &self.functions {
            Some(functions) => new.iter().filter_map(|at| Some((*at, functions.at(*at)?))).collect(),
            None => open().and_then(|file| resolve(file, &new)).unwrap_or_default(),
        };
        self.known.extend(new.iter().map(|address| (*address, found.get(address).cloned())));
    }

    /// Of an address that was learned.
    pub fn get(&self, address: u64) -> Option<&Place> {
        self.known.get(&address)?.as_ref()
    }
}

impl Functions {
    fn read(file: impl BufRead) -> io::Result<Self> {
        let mut all = Self::default();
        each(file, |start, symbol, module| {
            let name = function(symbol);
            let begin = all.names.len() as u32;
            all.names += name;
            let module = module.map_or(0, |module| {
                // A module's symbols follow each other.
                if all.modules.last().is_none_or(|last| last != module) {
                    all.modules.push(module.to_owned());
                }
                u16::try_from(all.modules.len()).unwrap_or(0)
            });
            all.symbols.push((start, [begin, all.names.len() as u32], module));
        })?;
        all.symbols.sort_by_key(|(start, ..)| *start);
        // Of several names the first one.
        all.symbols.dedup_by_key(|(start, ..)| *start);
        Ok(all)
    }

    fn at(&self, address: u64) -> Option<Place> {
        let after = self.symbols.partition_point(|(start, ..)| *start <= address);
        let (start, [begin, end], module) = *self.symbols.get(after.checked_sub(1)?)?;
        let offset = address - start;
        (start != 0 && offset < FUNCTION_MAX).then(|| Place {
            function: self.names.get(begin as usize..end as usize).unwrap_or_default().to_owned(),
            offset,
            module: usize::from(module).checked_sub(1).and_then(|module| self.modules.get(module).cloned()),
        })
    }
}

/// Where functions begin and what comes after them, of those that the kernel has.
///
/// # Errors
/// If the file cannot be read, or does not tell addresses (`kernel.kptr_restrict`, `CAP_SYSLOG`).
pub fn ranges(functions: &[&str]) -> io::Result<Vec<(String, [u64; 2])>> {
    ranges_in(open()?, functions)
}

fn open() -> io::Result<BufReader<File>> {
    Ok(BufReader::with_capacity(1 << 16, File::open(Path::new(FILE))?))
}

fn ranges_in(file: impl BufRead, functions: &[&str]) -> io::Result<Vec<(String, [u64; 2])>> {
    let mut all = Vec::new();
    let mut wanted = Vec::new();
    each(file, |address, name, _| {
        all.push(address);
        if functions.contains(&function(name)) {
            wanted.push((function(name).to_owned(), address));
        }
    })?;
    if all.iter().all(|address| *address == 0) {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "it tells no addresses (CAP_SYSLOG, and kernel.kptr_restrict below 2)",
        ));
    }
    all.sort_unstable();
    let end = |start: u64| all.get(all.partition_point(|address| *address <= start)).copied();
    Ok(wanted.into_iter().filter_map(|(name, start)| Some((name, [start, end(start)?]))).collect())
}

/// The nearest symbol at or before each address.
fn resolve(file: impl BufRead, addresses: &[u64]) -> io::Result<BTreeMap<u64, Place>> {
    let mut nearest: BTreeMap<u64, (u64, Place)> = BTreeMap::new();
    each(file, |start, name, module| {
        for address in addresses {
            let is_nearer = nearest.get(address).is_none_or(|(nearest, _)| *nearest < start);
            if start != 0 && start <= *address && *address - start < FUNCTION_MAX && is_nearer {
                let place = Place {
                    function: function(name).to_owned(),
                    offset: *address - start,
                    module: module.map(str::to_owned),
                };
                nearest.insert(*address, (start, place));
            }
        }
    })?;
    Ok(nearest.into_iter().map(|(address, (_, place))| (address, place)).collect())
}

/// Each symbol of code: address, name, module. `ffffffff81e44f40 T sk_skb_reason_drop`, with a tab and
/// `[module]` behind it in one. What does not look so is passed over.
fn each(mut file: impl BufRead, mut symbol: impl FnMut(u64, &str, Option<&str>)) -> io::Result<()> {
    let mut line = String::new();
    loop {
        line.clear();
        if file.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split_ascii_whitespace();
        let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        let Ok(address) = u64::from_str_radix(address, 16) else { continue };
        if matches!(kind, "t" | "T" | "w" | "W") {
            symbol(address, name, words.next().map(|module| module.trim_matches(['[', ']'])));
        }
    }
}

/// A symbol's name without what the compiler appended.
fn function(symbol: &str) -> &str {
    symbol.split_once('.').map_or(symbol, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "\
ffffffff81000000 T _stext
ffffffff81001000 t tcp_v4_rcv.isra.0
ffffffff81001100 D not_code
ffffffff81002000 T nf_hook_slow
what is this
ffffffffc0000100 t br_nf_forward_ip\t[br_netfilter]
";

    #[test]
    fn addresses_become_functions() {
        let place = |function: &str, offset, module: Option<&str>| Place {
            function: function.into(),
            offset,
            module: module.map(str::to_owned),
        };
        let addresses =
            [0, 0x1000, 0xffff_ffff_8100_1fff, 0xffff_ffff_8100_2000, 0xffff_ffff_c000_0123, u64::MAX];
        let found = resolve(FILE.as_bytes(), &addresses).expect("places");
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [
                (addresses[2], place("tcp_v4_rcv", 0xfff, None)),
                (addresses[3], place("nf_hook_slow", 0, None)),
                (addresses[4], place("br_nf_forward_ip", 0x23, Some("br_netfilter"))),
            ]
        );
        let functions = Functions::read(FILE.as_bytes()).expect("functions");
        for address in addresses {
            let of_file = resolve(FILE.as_bytes(), &[address]).expect("places").remove(&address);
            assert_eq!(functions.at(address), of_file, "{address:#x}");
        }
    }

    #[test]
    fn functions_become_ranges() {
        let found = ranges_in(FILE.as_bytes(), &["tcp_v4_rcv", "missing"]).expect("ranges");
        assert_eq!(found, [("tcp_v4_rcv".to_owned(), [0xffff_ffff_8100_1000, 0xffff_ffff_8100_2000])]);
        let hidden = FILE.replace("ffffffff81", "0000000000").replace("ffffffffc0", "0000000000");
        let hidden: String = hidden
            .lines()
            .map(|line| {
                line.split_once(' ').map_or(String::new(), |(_, rest)| format!("0000000000000000 {rest}\n"))
            })
            .collect();
        let error = ranges_in(hidden.as_bytes(), &["tcp_v4_rcv"]).expect_err("no addresses");
        assert!(error.to_string().contains("CAP_SYSLOG"), "{error}");
    }
}
