//! The kernel's own counters, and ours held against them.

use serde_json::Value;

use crate::{
    netns::Netns,
    program::{self, LIMIT, Watch, number},
    wait_for,
};

/// Major and minor number of the kernel that runs.
///
/// # Panics
/// Without a kernel that says its version.
pub fn release() -> (u32, u32) {
    let system = nix::sys::utsname::uname().expect("uname");
    let text = system.release().to_string_lossy();
    let mut numbers = text.split(['.', '-']).map(|part| part.parse().expect("a number"));
    (numbers.next().expect("major"), numbers.next().expect("minor"))
}

/// The ways of attaching that this kernel has; notes that half of a test is left out without TCX, which came
/// with 6.6.
pub fn attach_modes(test: &str) -> &'static [&'static str] {
    if release() >= (6, 6) {
        return &["clsact", "tcx"];
    }
    crate::skip(test, "its half with TCX: this kernel has none");
    &["clsact"]
}

/// What a bridge device's own receive counter leaves out of each frame.
const ETHERNET_HEADER_BYTES: u64 = 14;

/// `ip -s -j link show dev NAME`
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    pub rx_packets: u64,
    pub rx_bytes: u64,
    pub tx_packets: u64,
    pub tx_bytes: u64,
}

impl std::ops::Add for Link {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets + other.rx_packets,
            rx_bytes: self.rx_bytes + other.rx_bytes,
            tx_packets: self.tx_packets + other.tx_packets,
            tx_bytes: self.tx_bytes + other.tx_bytes,
        }
    }
}

/// # Panics
/// If there is no such interface.
pub fn link(host: &Netns, name: &str) -> Link {
    of_listed(&listed(host, name))
}

/// Of the namespace that the test is in.
///
/// # Panics
/// If there is no such interface.
pub fn own_link(name: &str) -> Link {
    let output = std::process::Command::new("sh")
        .args(["-c", &format!("PATH=$PATH:/sbin:/usr/sbin ip -s -j link show dev {name}")])
        .output()
        .expect("run ip");
    of_listed(&one(&String::from_utf8_lossy(&output.stdout)))
}

/// An interface as `ip` lists it, with its counters.
fn listed(host: &Netns, name: &str) -> Value {
    one(&host.sh(&format!("ip -s -j link show dev {name}")))
}

fn one(listing: &str) -> Value {
    let [interface] = serde_json::from_str(listing).expect("one interface in JSON of ip");
    interface
}

fn of_listed(interface: &Value) -> Link {
    let stats = &interface["stats64"];
    Link {
        rx_packets: number(stats, "rx.packets"),
        rx_bytes: number(stats, "rx.bytes"),
        tx_packets: number(stats, "tx.packets"),
        tx_bytes: number(stats, "tx.bytes"),
    }
}

/// Packets that were to leave an interface and were dropped there.
///
/// # Panics
/// If there is no such interface.
pub fn tx_dropped(host: &Netns, name: &str) -> u64 {
    number(&listed(host, name), "stats64.tx.dropped")
}

/// # Panics
/// If there is no such interface.
pub fn ifindex(host: &Netns, name: &str) -> u32 {
    u32::try_from(number(&listed(host, name), "ifindex")).expect("an ifindex")
}

/// An interface's MAC address.
///
/// # Panics
/// If there is no such interface.
pub fn mac(host: &Netns, name: &str) -> String {
    listed(host, name)["address"].as_str().expect("an address").to_owned()
}

/// What the kernel should say by netobs's counters: the baseline and all that was counted since, by the
/// rule of the device's type.
pub fn expected(interface: &Value) -> Link {
    let mut expected = Link {
        rx_packets: number(interface, "baseline.rx_packets") + number(interface, "rx.packets"),
        rx_bytes: number(interface, "baseline.rx_bytes") + number(interface, "rx.bytes"),
        tx_packets: number(interface, "baseline.tx_packets") + number(interface, "tx.packets"),
        tx_bytes: number(interface, "baseline.tx_bytes") + number(interface, "tx.bytes"),
    };
    if interface["kind"] == "bridge" {
        expected.rx_bytes -= ETHERNET_HEADER_BYTES * number(interface, "rx.packets");
    }
    expected
}

/// Waits until traffic has stopped, then wants each interface's counters equal to the kernel's, and the
/// parts of each direction to add up.
///
/// # Panics
/// If they are not.
pub fn assert_exact(host: &Netns, watch: &Watch, interfaces: &[&str]) {
    for name in interfaces {
        let ours = wait_for(&format!("{name} to be equal"), LIMIT, || {
            let before = link(host, name);
            let snapshot = watch.fresh();
            let after = link(host, name);
            let ours = program::interface(&snapshot, name).ok_or("not attached")?;
            // A snapshot that was long on its way is older than it seems.
            match expected(&ours) {
                _ if before != after => Err("packets still pass".to_owned()),
                equal if equal == before => Ok(ours),
                other => Err(format!("netobs has {other:?}, the kernel {before:?}: {ours}")),
            }
        });
        assert_eq!(number(&ours, "baseline.uncertain_packets"), 0, "{name}: {ours}");
        for direction in ["rx", "tx"] {
            assert_adds_up(&ours[direction], &format!("{name} {direction}"));
        }
    }
}

/// # Panics
/// If the parts of a direction are not the whole.
pub fn assert_adds_up(traffic: &Value, what: &str) {
    for unit in ["packets", "bytes"] {
        let whole = number(traffic, unit);
        for (kind, parts) in [
            ("ethertype", &["ipv4", "ipv6", "arp", "vlan", "other"][..]),
            ("cast", &["unicast", "multicast", "broadcast"][..]),
        ] {
            let sum: u64 = parts.iter().map(|part| number(traffic, &format!("{kind}.{part}.{unit}"))).sum();
            assert_eq!(sum, whole, "{what}: {kind} {unit}: {traffic}");
        }
    }
    let sizes: u64 = (0..9).map(|bucket| number(traffic, &format!("size.{bucket}"))).sum();
    assert_eq!(sizes, number(traffic, "wire_packets"), "{what}: size histogram: {traffic}");
}

/// A counter of a namespace, as `nstat` shows it: of `TcpExt` and the like in `netstat`, of others in `snmp`.
///
/// # Panics
/// If there is none.
pub fn snmp(netns: &Netns, group: &str, name: &str) -> u64 {
    let file = if group.ends_with("Ext") { "netstat" } else { "snmp" };
    let text = std::fs::read_to_string(format!("/proc/{}/net/{file}", netns.pid())).expect("counters");
    let start = format!("{group}: ");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&start)).map(str::split_whitespace);
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let (_, value) = names.zip(values).find(|(of, _)| *of == name).expect("such a counter");
    value.parse().expect("a number")
}
