//! Counters held against the kernel's.

use std::collections::{BTreeMap, BTreeSet};

use netobs::{
    discovery::netlink::{self, Link},
    model::KernelStats,
    netlink::Netlink,
};
use netobs_tests::{
    kernel,
    netns::Netns,
    program::{self, Agent, number},
    wait_for,
};
use serde_json::Value;

use crate::{LIMIT, ledger::Ledger, world::Container};

/// One frame is no longer, headers and all.
const LONGEST_FRAME: u64 = 65_536 + 18;

/// What was compared, and what came of it.
#[derive(Default)]
pub struct Held {
    pub interfaces: u64,
    pub containers: u64,
    pub packets: u64,
    /// Packets that passed during an attach: stated, and not known to one side or the other.
    pub uncertain: u64,
    /// Packets that netobs saw leave the host for a container whose end was down: the kernel counts them as dropped.
    pub dropped: u64,
    pub differences: Vec<String>,
}

/// The kernel's counters of an interface or several, as they are in the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    link: kernel::Link,
    tx_dropped: u64,
}

impl Counted {
    fn add(&mut self, received: KernelStats, sent: KernelStats) {
        self.link.rx_packets += received.rx_packets;
        self.link.rx_bytes += received.rx_bytes;
        self.link.tx_packets += sent.tx_packets;
        self.link.tx_bytes += sent.tx_bytes;
        self.tx_dropped += sent.tx_dropped;
    }
}

/// All interfaces of the host.
pub fn links(host: &Netns) -> BTreeMap<u32, Link> {
    let all =
        host.run(|| netlink::links(&mut Netlink::connect().expect("netlink"), None).expect("interfaces"));
    all.into_iter().map(|link| (link.ifindex, link)).collect()
}

impl Held {
    /// Each interface of the host that is there, when nothing passes.
    pub fn hold_interfaces(&mut self, who: &str, host: &Netns, agent: &Agent) {
        let held = attempt(&format!("{who}: interfaces"), || {
            let before = links(host);
            let snapshot = agent.snapshot(host)?;
            let after = links(host);
            let observed = || after.values().filter(|link| link.is_observed_on_host());
            for link in observed() {
                let is_quiet = before.get(&link.ifindex).is_some_and(|before| before.stats == link.stats);
                if !is_quiet {
                    return Err(format!("packets still pass {}", link.name));
                }
            }
            observed().map(|link| interface(&snapshot, link)).collect::<Result<Vec<_>, _>>()
        });
        match held {
            Ok(remainders) => {
                self.interfaces += remainders.len() as u64;
                remainders.into_iter().for_each(|remainder| self.note(remainder));
            }
            Err(difference) => self.differences.push(difference),
        }
    }

    /// Waits until an agent knows whose the interfaces of these containers are: of one that ends before, nobody may know.
    pub fn find(&mut self, host: &Netns, agent: &Agent, containers: &[Container]) {
        for container in containers.iter().filter(|container| !container.has_ended()) {
            let found = attempt(&format!("interfaces of container {}", container.label()), || {
                let here = links(host);
                let snapshot = agent.snapshot(host)?;
                let ours = of(&snapshot, container)?;
                let known: BTreeSet<u64> = ours["interfaces"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(|interface| interface["host_ifindex"].as_u64())
                    .collect();
                let mut hosts = container.veths.iter().map(|veth| veth.host);
                match hosts.find(|host| here.contains_key(host) && !known.contains(&u64::from(*host))) {
                    Some(host) => Err(format!("interface {host} is not known to be its")),
                    None => Ok(()),
                }
            });
            self.differences.extend(found.err());
        }
    }

    /// All that a container's interfaces have had, those that are gone included.
    pub fn hold_container(&mut self, host: &Netns, agent: &Agent, ledger: &Ledger, container: &Container) {
        let held = attempt(&format!("container {}", container.label()), || {
            let kernel = of_container(host, ledger, container)?;
            let snapshot = agent.snapshot(host)?;
            let ours = of(&snapshot, container)?;
            flows_are_all(ours)?;
            differs(counted(ours), optional(ours, "before.uncertain_packets"), kernel)
        });
        match held {
            Ok(remainder) => {
                self.containers += 1;
                self.note(remainder);
            }
            Err(difference) => self.differences.push(difference),
        }
    }

    fn note(&mut self, remainder: Remainder) {
        self.packets += remainder.packets;
        self.uncertain += remainder.uncertain;
        self.dropped += remainder.dropped;
    }
}

/// As [`wait_for`], but what does not come is an answer: the run goes on.
fn attempt<T>(what: &str, ask: impl FnMut() -> Result<T, String>) -> Result<T, String> {
    let mut ask = ask;
    let end = std::time::Instant::now() + LIMIT;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(reason) if std::time::Instant::now() > end => return Err(format!("{what}: {reason}")),
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(100)),
        }
    }
}

fn of<'a>(snapshot: &'a Value, container: &Container) -> Result<&'a Value, String> {
    let all = snapshot["containers"].as_array().ok_or("no containers")?;
    all.iter().find(|one| one["id"] == *container.id).ok_or_else(|| "not known".to_owned())
}

/// What is not equal and may be.
#[derive(Clone, Copy, Default)]
struct Remainder {
    packets: u64,
    uncertain: u64,
    dropped: u64,
}

fn interface(snapshot: &Value, link: &Link) -> Result<Remainder, String> {
    let ours = program::interface(snapshot, &link.name).ok_or_else(|| format!("no {}", link.name))?;
    let mut kernel = Counted::default();
    kernel.add(link.stats, link.stats);
    differs(kernel::expected(&ours), number(&ours, "baseline.uncertain_packets"), kernel)
        .map_err(|difference| format!("{}: {difference}", link.name))
}

/// Of each end what it has sent: a veth that has lost its other end no longer says what it has received.
fn of_container(host: &Netns, ledger: &Ledger, container: &Container) -> Result<Counted, String> {
    let here = links(host);
    let mut counted = Counted::default();
    for veth in &container.veths {
        if let Some(link) = here.get(&veth.host) {
            counted.add(link.stats, link.stats);
            continue;
        }
        let last = |ifindex| ledger.last(ifindex).ok_or(format!("interface {ifindex} was not seen to go"));
        let (outside, inside) = (last(veth.host)?, last(veth.inside)?);
        let received = KernelStats {
            rx_packets: inside.tx_packets,
            rx_bytes: inside.tx_bytes,
            ..KernelStats::default()
        };
        counted.add(received, outside);
    }
    Ok(counted)
}

fn optional(value: &Value, path: &str) -> u64 {
    value.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_u64).unwrap_or_default()
}

/// What netobs says that the host's ends have passed, before it attached and since.
fn counted(container: &Value) -> kernel::Link {
    let of = |direction: &str, unit: &str| {
        optional(container, &format!("before.{direction}_{unit}"))
            + number(container, &format!("{direction}.{unit}"))
    };
    kernel::Link {
        rx_packets: of("tx", "packets"),
        rx_bytes: of("tx", "bytes"),
        tx_packets: of("rx", "packets"),
        tx_bytes: of("rx", "bytes"),
    }
}

/// Flows by class and what found no room are all IP packets.
fn flows_are_all(container: &Value) -> Result<(), String> {
    for direction in ["rx", "tx"] {
        let classes = container["classes"].as_array().map(Vec::as_slice).unwrap_or_default();
        let by_class: u64 = classes.iter().map(|class| number(class, &format!("{direction}.packets"))).sum();
        let of = |what: &str| number(container, &format!("{direction}.{what}.packets"));
        let (flows, ip) = (by_class + of("unflowed"), of("ethertype.ipv4") + of("ethertype.ipv6"));
        if flows != ip {
            return Err(format!("{direction}: {flows} packets in flows and beside, {ip} of IP"));
        }
    }
    Ok(())
}

fn differs(ours: kernel::Link, uncertain: u64, kernel: Counted) -> Result<Remainder, String> {
    let Counted { link, tx_dropped } = kernel;
    let within =
        |ours: u64, kernel: u64, less: u64, more: u64| ours + less >= kernel && ours <= kernel + more;
    let (less, more) = (uncertain, uncertain + tx_dropped);
    let equal = within(ours.rx_packets, link.rx_packets, less, uncertain)
        && within(ours.tx_packets, link.tx_packets, less, more)
        && within(ours.rx_bytes, link.rx_bytes, less * LONGEST_FRAME, uncertain * LONGEST_FRAME)
        && within(ours.tx_bytes, link.tx_bytes, less * LONGEST_FRAME, more * LONGEST_FRAME);
    if !equal {
        return Err(format!(
            "netobs {ours:?}, kernel {link:?}, {tx_dropped} of them dropped, {uncertain} uncertain"
        ));
    }
    let packets = link.rx_packets + link.tx_packets;
    Ok(Remainder { packets, uncertain, dropped: ours.tx_packets.saturating_sub(link.tx_packets) })
}

/// Interfaces inside containers that are none of this engine's.
pub fn elsewhere(host: &Netns, agent: &Agent) -> usize {
    let snapshot = agent.snapshot(host).expect("an answer");
    let of_others =
        snapshot["containers"].as_array().into_iter().flatten().filter(|one| one["engine"] == "proc");
    of_others.map(|one| one["interfaces"].as_array().map_or(0, Vec::len)).sum()
}

/// Waits until an agent knows nothing but what stays.
pub fn forgotten(host: &Netns, agent: &Agent, staying: &[Container]) {
    wait_for("what is gone to be forgotten", LIMIT * 4, || {
        let snapshot = agent.snapshot(host)?;
        let all = |kind: &str| snapshot[kind].as_array().cloned().unwrap_or_default();
        // Other containers of this machine are none of this engine's.
        let of_engine =
            |one: &Value| Some(one["id"].as_str().filter(|_| one["engine"] != "proc")?.to_owned());
        let containers: Vec<String> = all("containers").iter().filter_map(of_engine).collect();
        let interfaces = all("interfaces");
        let there = links(host).values().filter(|link| link.is_observed_on_host()).count();
        let only = containers.len() == staying.len()
            && staying.iter().all(|one| containers.contains(&one.id))
            && interfaces.len() == there;
        if only { Ok(()) } else { Err(format!("{containers:?}, {} of {there} interfaces", interfaces.len())) }
    });
}
