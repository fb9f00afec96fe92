//! What a run takes on live traffic, by the kernel's run statistics: each feature on and off, beside an empty program.

use std::{collections::BTreeMap, time::Duration};

use netobs_tests::{bpf, bridged::Bridged};

use crate::{
    ADDRESSES, Effort, agent, attach_empty, datagrams,
    document::{Spread, Table, Target},
    load::{self, Sink},
    unseen, world,
};

/// What is counted, and the options of the agent.
const SETS: [(&str, &[&str]); 5] = [
    (EXACT, &["--max-flows=0", "--no-dns", "--no-arp", "--no-tcp", "--no-drops"]),
    (FLOWS, &["--no-dns", "--no-arp", "--no-tcp", "--no-drops"]),
    ("with DNS and ARP", &["--no-tcp", "--no-drops"]),
    (TCP_HEALTH, &["--no-drops"]),
    ("with drops: all, as by default", &[]),
];
const EXACT: &str = "exact layer";
const FLOWS: &str = "exact layer and flows";
const TCP_HEALTH: &str = "with TCP health";

/// In this order. An agent keeps flows until they have been idle for a while, and one that begins when its cells are
/// taken is counted by helper calls: the load that takes them all comes last.
const LOADS: [&str; 4] = [UDP_1, TCP_BULK, UDP_10_000, UDP_100_000];
const UDP_1: &str = "UDP, 1 flow";
const TCP_BULK: &str = "TCP bulk";
const UDP_10_000: &str = "UDP, 10,000 flows";
const UDP_100_000: &str = "UDP, 100,000 flows";

/// For each load and set: ns a run of the empty program and of netobs, right after each other.
type Times = Vec<Vec<Vec<[f64; 2]>>>;

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let (beside, world) = (unseen(), world());
    let _sinks = [&beside, &world].map(|world| Sink::new(world.netns(1)));
    let _empty = attach_empty(&beside);
    let _statistics = bpf::enable_stats();
    let (rounds, turns) = (effort.rounds(4), effort.rounds(5));
    let (warm, time) = (effort.time(Duration::from_millis(400)), effort.time(Duration::from_millis(300)));
    let mut times: Times = vec![vec![Vec::new(); SETS.len()]; LOADS.len()];
    for _ in 0..rounds {
        for (set, (_, options)) in SETS.iter().enumerate() {
            let agent = agent(&world, options);
            for (load, times) in LOADS.iter().zip(&mut times) {
                let mut lanes = [(&beside, std::process::id()), (&world, agent.pid())]
                    .map(|(world, pid)| Lane::new(world, pid));
                for lane in &mut lanes {
                    lane.send(load, warm);
                }
                for _ in 0..turns {
                    times[set].push(lanes.each_mut().map(|lane| lane.one(load, time)));
                }
            }
        }
    }
    let about = format!(
        "Live: ns in the programs a packet and hook, by the kernel's run statistics (which are part of each figure). \
         Netobs and an empty program have a bridge with two containers each; the load passes one and the other in turns \
         of {} ms, {turns} times in each of {rounds} rounds, the agent started anew for each. UDP is frames of 64 bytes \
         as fast as one CPU sends, of many flows each packet of another than the one before; TCP is one connection with \
         super-packets. The loads come one after the other, from left to right, so that a flow finds the cells that \
         those before it have left. All of the agent's programs are in it, also those at tracepoints. Median, least and \
         most, and the median of the ratios to the empty program's turn right before.",
        time.as_millis(),
    );
    let mut table = Table::new(&about, &["", LOADS[0], "", LOADS[1], "", LOADS[2], "", LOADS[3], ""]);
    let mut row = vec!["empty".to_owned()];
    for times in &times {
        row.push(Spread::of(times.iter().flatten().map(|[empty, _]| *empty)).show(0));
        row.push("1.00 ×".to_owned());
    }
    table.row(&row);
    for (set, (what, _)) in SETS.iter().enumerate() {
        let mut row = vec![(*what).to_owned()];
        for times in &times {
            row.push(Spread::of(times[set].iter().map(|[_, ours]| *ours)).show(0));
            row.push(format!("{:.2} ×", ratio(&times[set])));
        }
        table.row(&row);
    }
    let target = |what: &str, load: &str, set: &str, most: f64| {
        let load = LOADS.iter().position(|one| *one == load).expect("a load");
        let set = SETS.iter().position(|(one, _)| *one == set).expect("a set");
        let measured = ratio(&times[load][set]);
        Target {
            what: what.to_owned(),
            target: format!("≤ {most} × empty"),
            measured: format!("{measured:.2} × ({:.0} ns more)", more(&times[load][set])),
            is_met: measured <= most,
        }
    };
    let targets = vec![
        target("exact layer and flows, live, one flow", UDP_1, FLOWS, 1.35),
        target("exact layer and flows, live, 10,000 flows in turn", UDP_10_000, FLOWS, 3.8),
        target("TCP health and DNS as well, live, TCP bulk", TCP_BULK, TCP_HEALTH, 1.6),
    ];
    (vec![table], targets)
}

fn ratio(times: &[[f64; 2]]) -> f64 {
    Spread::of(times.iter().map(|[empty, ours]| ours / empty)).median
}

/// ns
fn more(times: &[[f64; 2]]) -> f64 {
    Spread::of(times.iter().map(|[empty, ours]| ours - empty)).median
}

/// Where a load passes, and whose programs count it there.
struct Lane<'a> {
    world: &'a Bridged,
    pid: u32,
    /// The flow whose turn it is.
    flow: u32,
}

impl<'a> Lane<'a> {
    const fn new(world: &'a Bridged, pid: u32) -> Self {
        Self { world, pid, flow: 0 }
    }

    /// ns in all programs for each run at a hook.
    fn one(&mut self, load: &str, time: Duration) -> f64 {
        let before = total(&bpf::program_runs(self.pid));
        self.send(load, time);
        let after = total(&bpf::program_runs(self.pid));
        assert!(after.0 > before.0 + 100, "packets have passed: {before:?}, {after:?}");
        (after.1 - before.1) as f64 / (after.0 - before.0) as f64
    }

    fn send(&mut self, load: &str, time: Duration) {
        let flows = match load {
            UDP_1 => 1,
            UDP_10_000 => 10_000,
            UDP_100_000 => 100_000,
            _ => {
                let ends = [0, 1].map(|n| self.world.netns(n));
                load::bulk(ends[0], ends[1], (ADDRESSES[1], 5201).into(), time);
                return;
            }
        };
        let load = load::Datagrams { first: self.flow, ..datagrams(flows, None) };
        self.flow = load::datagrams(self.world.netns(0), load, time);
    }
}

/// Runs at hooks, and nanoseconds of all.
fn total(programs: &BTreeMap<u32, bpf::Runs>) -> (u64, u64) {
    let at_hooks = programs.values().filter(|program| program.is_classifier).map(|program| program.runs);
    (at_hooks.sum(), programs.values().map(|program| program.ns).sum())
}
