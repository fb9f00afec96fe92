//! What a run takes on live traffic, by the kernel's run statistics: each feature on and off, beside an empty program.

use std::{collections::BTreeMap, os::fd::AsFd as _, time::Duration};

use netobs_tests::{
    bpf,
    bridged::Bridged,
    test_run::{attach_tcx, empty_program},
};

use crate::{
    ADDRESSES, Effort, agent, datagrams,
    document::{Spread, Table, Target},
    load::{self, Sink},
    world,
};

/// What is attached, and the options of the agent; none: an empty program.
const SETS: [(&str, Option<&[&str]>); 6] = [
    ("empty", None),
    ("exact layer", Some(&["--max-flows=0", "--no-dns", "--no-arp", "--no-tcp", "--no-drops"])),
    ("exact layer and flows", Some(&["--no-dns", "--no-arp", "--no-tcp", "--no-drops"])),
    ("with DNS and ARP", Some(&["--no-tcp", "--no-drops"])),
    ("with TCP health", Some(&["--no-drops"])),
    ("with drops: all, as by default", Some(&[])),
];

/// In this order. An agent keeps flows until they have been idle for a while, and one that begins when its cells are
/// taken is counted by helper calls: the load that takes them all comes last.
const LOADS: [&str; 4] = [UDP_1, TCP_BULK, UDP_10_000, UDP_100_000];
const UDP_1: &str = "UDP, 1 flow";
const TCP_BULK: &str = "TCP bulk";
const UDP_10_000: &str = "UDP, 10,000 flows";
const UDP_100_000: &str = "UDP, 100,000 flows";

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let world = world();
    let _sink = Sink::new(world.netns(1));
    let _statistics = bpf::enable_stats();
    let rounds = effort.rounds(5);
    // By load and set: a value a round.
    let mut times = vec![vec![Vec::new(); SETS.len()]; LOADS.len()];
    for _ in 0..rounds {
        for (set, (_, options)) in SETS.iter().enumerate() {
            let round = with(&world, *options, |pid| LOADS.map(|load| one(&world, load, pid, effort)));
            for (times, time) in times.iter_mut().zip(round) {
                times[set].push(time);
            }
        }
    }
    let about = format!(
        "Live: ns in the programs a packet and hook, by the kernel's run statistics (which are part of each figure), \
         {rounds} rounds in turns, the agent started anew for each. UDP is frames of 64 bytes as fast as one CPU sends, \
         of many flows each packet of another than the one before; TCP is one connection with super-packets. The loads \
         come one after the other, from left to right, so that a flow finds the cells that those before it have left. \
         All of the agent's programs are in it, also those at tracepoints. Median, least and most, and the median of \
         the ratios to the empty program in the same round."
    );
    let mut table = Table::new(&about, &["", LOADS[0], "", LOADS[1], "", LOADS[2], "", LOADS[3], ""]);
    let ratio = |load: usize, set: usize| {
        let pairs = times[load][set].iter().zip(&times[load][0]);
        Spread::of(pairs.map(|(time, empty)| time / empty)).median
    };
    for (set, (what, _)) in SETS.iter().enumerate() {
        let mut row = vec![(*what).to_owned()];
        for (load, times) in times.iter().enumerate() {
            row.push(Spread::of(times[set].iter().copied()).show(0));
            row.push(format!("{:.2} ×", ratio(load, set)));
        }
        table.row(&row);
    }
    let target = |what: &str, load: &str, set, most: f64| {
        let load = LOADS.iter().position(|one| *one == load).expect("a load");
        let measured = ratio(load, set);
        Target {
            what: what.to_owned(),
            target: format!("≤ {most} × empty"),
            measured: format!("{measured:.2} ×"),
            is_met: measured <= most,
        }
    };
    let targets = vec![
        target("exact layer and flows, live, one flow", UDP_1, 2, 1.35),
        target("exact layer and flows, live, 10,000 flows in turn", UDP_10_000, 2, 3.8),
        target("TCP health and DNS as well, live, TCP bulk", TCP_BULK, 4, 1.6),
    ];
    (vec![table], targets)
}

/// With an agent, or an empty program at the same hooks of our own.
fn with<T>(world: &Bridged, options: Option<&[&str]>, measure: impl Fn(u32) -> T) -> T {
    let Some(options) = options else {
        let program = empty_program().expect("load an empty program");
        let links = attach_empty(world, program.as_fd());
        let measured = measure(std::process::id());
        drop(links);
        return measured;
    };
    let agent = agent(world, options);
    measure(agent.pid())
}

/// To all hooks of both veths and of the bridge, which the loads do not pass.
pub fn attach_empty(world: &Bridged, program: std::os::fd::BorrowedFd<'_>) -> Vec<std::os::fd::OwnedFd> {
    let program = program.try_clone_to_owned().expect("a descriptor");
    world.host.run(move || {
        let mut links = Vec::new();
        for name in ["veth0", "veth1"] {
            let index = nix::net::if_::if_nametoindex(name).expect("its index");
            for ingress in [true, false] {
                links.push(attach_tcx(program.as_fd(), index, ingress).expect("attach"));
            }
        }
        links
    })
}

/// ns in all programs of a process for each run at a hook.
fn one(world: &Bridged, load: &str, pid: u32, effort: Effort) -> f64 {
    send(world, load, effort.time(Duration::from_millis(400)));
    let before = total(&bpf::program_runs(pid));
    send(world, load, effort.time(Duration::from_millis(1000)));
    let after = total(&bpf::program_runs(pid));
    assert!(after.0 > before.0 + 100, "packets have passed: {before:?}, {after:?}");
    (after.1 - before.1) as f64 / (after.0 - before.0) as f64
}

fn send(world: &Bridged, load: &str, time: Duration) {
    let flows = match load {
        UDP_1 => 1,
        UDP_10_000 => 10_000,
        UDP_100_000 => 100_000,
        _ => {
            load::bulk(world.netns(0), world.netns(1), (ADDRESSES[1], 5201).into(), time);
            return;
        }
    };
    load::datagrams(world.netns(0), datagrams(flows, None), time);
}

/// Runs at hooks, and nanoseconds of all.
fn total(programs: &BTreeMap<u32, bpf::Runs>) -> (u64, u64) {
    let at_hooks = programs.values().filter(|program| program.is_classifier).map(|program| program.runs);
    (at_hooks.sum(), programs.values().map(|program| program.ns).sum())
}
