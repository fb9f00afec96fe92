//! What the kernel makes of each program: instructions that its verifier walks, and bytes that they are translated to.
//! They are held to `programs.txt`, so that none grows unnoticed; after a change that is meant, write what this prints
//! into it. Bytes of machine code are told too; they also depend on the processor.

use std::{collections::BTreeSet, fs, path::Path};

use netobs::ebpf::{
    AttachMode, EventOptions, Observer, Options,
    drops::{BTF_FILE, DropOptions, Drops},
    tcp::{Tcp, TcpOptions},
};

use netobs_tests::bpf;

const KEPT: &str = include_str!("programs.txt");

/// Numbers of this process's programs.
fn ours() -> BTreeSet<u32> {
    let texts = fs::read_dir("/proc/self/fdinfo").expect("our descriptors");
    let texts = texts.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    let id = |text: String| text.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok());
    texts.filter_map(id).collect()
}

fn observer(max_flows: u32, dns_and_arp: bool) -> Observer {
    observer_of(max_flows, EventOptions { dns: dns_and_arp, arp: dns_and_arp, ..EventOptions::default() })
}

fn observer_of(max_flows: u32, events: EventOptions) -> Observer {
    let options = Options { max_interfaces: 1024, mode: AttachMode::Auto, max_flows, events, log: false };
    Observer::load(options).expect("load")
}

/// A line a program of this process: name, instructions walked, bytes translated.
fn programs(what: &str) -> String {
    let ours = ours();
    // Of names the kernel keeps 15 characters, which two may have in common.
    let mut lines = BTreeSet::new();
    for program in aya::programs::loaded_programs() {
        let program = program.expect("a program");
        if !ours.contains(&program.id()) {
            continue;
        }
        let name = program.name_as_str().expect("a name").to_owned();
        let walked = program.verified_instruction_count().expect("kernel 5.16");
        let translated = program.size_translated().expect("root");
        println!("{what} {name}: {} bytes of machine code", program.size_jitted());
        lines.insert(format!("{what} {name} {walked} {translated}\n"));
    }
    assert!(!lines.is_empty(), "programs are loaded");
    lines.into_iter().collect()
}

#[test]
fn none_grows_unnoticed() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").expect("a release");
    let kernel: String = kernel.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut text = format!("kernel {kernel}\n");
    let sets = [("exact", 0, false), ("exact+flows", 131_072, false), ("exact+flows+events", 131_072, true)];
    for (what, max_flows, events) in sets {
        let _loaded = observer(max_flows, events);
        text += &programs(what);
    }
    {
        let options = DropOptions { all: false, max_keys: 8192, btf: Path::new(BTF_FILE).to_owned() };
        let _loaded = Drops::load(&options).expect("load");
        text += &programs("drops");
    }
    {
        let options = TcpOptions { flows: true, btf: Path::new(BTF_FILE).to_owned() };
        let _loaded = Tcp::load(&options).expect("load");
        text += &programs("tcp");
    }
    print!("{text}");
    // Another kernel translates and walks otherwise: there the numbers are told, and what they are is not known.
    if KEPT.starts_with(&format!("kernel {kernel}\n")) {
        assert_eq!(text, KEPT, "programs have changed: is it meant?");
    } else {
        netobs_tests::skip("programs", &format!("numbers are kept of {:?} only", KEPT.lines().next()));
    }
}

/// What a feature counts in, or tells by, is in no instruction of a program without it: there is nothing left of it but
/// the load of the constant that says that it is off.
#[test]
fn what_is_off_is_not_in_the_program() {
    const FLOWS: [&str; 5] = ["FLOW_CELLS", "FLOW_OWNERS", "OVERFLOW_EVEN", "OVERFLOW_ODD", "OVERFLOW_EPOCH"];
    const EVENTS: [&str; 2] = ["EVENTS", "EVENTS_LOST"];
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut sizes = Vec::new();
    for (max_flows, events) in [(0, false), (131_072, false), (131_072, true)] {
        let _loaded = observer(max_flows, events);
        let ours = ours();
        let (mut maps, mut size) = (BTreeSet::new(), 0);
        for program in aya::programs::loaded_programs().filter_map(Result::ok) {
            let name = program.name_as_str().expect("a name").to_owned();
            if ours.contains(&program.id()) && name != "netobs_lo" {
                maps.extend(bpf::maps_in_instructions(program.id()));
                size += program.size_translated().expect("root");
            }
        }
        assert!(maps.contains("COUNTERS"), "instructions are shown: {maps:?}");
        for (feature, is_on) in [(&FLOWS[..], max_flows > 0), (&EVENTS[..], events)] {
            for map in feature {
                assert_eq!(
                    maps.contains(*map),
                    is_on,
                    "{map} with {max_flows} flows, events {events}: {maps:?}"
                );
            }
        }
        sizes.push(size);
    }
    assert!(sizes.is_sorted() && sizes[0] < sizes[1] && sizes[1] < sizes[2], "{sizes:?}");
}

/// With ARP alone, nothing of what DNS takes: that is more than ARP does.
#[test]
fn without_dns_only_arp_is_in_the_program() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let [none, arp, all] = [(false, false), (false, true), (true, true)].map(|(dns, arp)| {
        let _loaded = observer_of(0, EventOptions { dns, arp, ..EventOptions::default() });
        let ours = ours();
        let programs = aya::programs::loaded_programs().filter_map(Result::ok);
        let mut sizes = programs
            .filter(|program| ours.contains(&program.id()) && program.name_as_str() == Some("netobs_filter"))
            .map(|program| program.size_translated().expect("root"));
        sizes.next().expect("it is loaded")
    });
    assert!(none < arp && arp - none < all - arp, "{none}, {arp}, {all} bytes");
    println!("netobs_filter: {none} bytes without events, {arp} with ARP, {all} with DNS, too");
}

/// Programs of this process are told apart from none of its own.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
