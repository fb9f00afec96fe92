//! Attaching to interfaces: by filters and by links, and by an agent as they come.

use std::time::Instant;

use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options},
    model::InterfaceKey,
};
use netobs_tests::{
    http, kernel,
    netns::{Netns, World},
    program::Agent,
    traffic, wait_for,
};

use crate::{
    Effort,
    document::{Spread, Table, Target},
    scrape::{attached, veths},
};

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let interfaces = if effort.quick { 10 } else { 40 };
    let mut table = Table::new(
        &format!(
            "Both directions of one interface, {interfaces} one after the other (docs/adr/0002-clsact-before-tcx.md)."
        ),
        &["by", "ms"],
    );
    for (what, mode) in [("clsact filters", AttachMode::Clsact), ("TCX links", AttachMode::Tcx)] {
        let host = Netns::new();
        veths(&host, interfaces / 2);
        let times = host.run(move || times(interfaces, mode));
        table.row(&[what.to_owned(), Spread::of(times).show(2)]);
    }
    let pairs = if effort.quick { 25 } else { 250 };
    let mut come = Table::new(
        &format!(
            "By an agent, {} new veths one after the other: from netlink's message until both programs are attached. The \
             least bound of the histogram `netobs_attach_latency_seconds` that so many are below.",
            2 * pairs
        ),
        &["share", "ms"],
    );
    for (share, ms) in as_they_come(pairs) {
        come.row(&[format!("{share}%"), ms]);
    }
    (vec![table, lost(if effort.quick { 4 } else { 20 }), come], Vec::new())
}

/// What the kernel drops of a load that comes out of an interface while it is attached to.
fn lost(rounds: usize) -> Table {
    let mut table = Table::new(
        &format!(
            "Packets that the kernel drops (`tx_dropped`) of datagrams sent through a new veth without a pause, while both \
             directions are attached to; {rounds} veths."
        ),
        &["by", "packets dropped", "packets sent in a second"],
    );
    let ways = [
        ("clsact filters", AttachMode::Clsact),
        ("TCX links", AttachMode::Tcx),
        ("what is chosen by default where there is traffic", AttachMode::Auto),
    ];
    for (what, mode) in ways {
        let (dropped, rates): (Vec<_>, Vec<_>) = (0..rounds).map(|_| lost_once(mode)).unzip();
        table.row(&[what.to_owned(), Spread::of(dropped).show(0), Spread::of(rates).show(0)]);
    }
    table
}

/// Packets dropped, and packets a second.
fn lost_once(mode: AttachMode) -> (f64, f64) {
    let world = World::new(1);
    world.host.sh("busybox ping -q -c 1 10.77.0.10");
    let counters =
        || (kernel::tx_dropped(&world.host, "veth0"), kernel::link(&world.host, "veth0").tx_packets);
    let (mut observer, ifindex) =
        world.host.run(move || (observer(mode), nix::net::if_::if_nametoindex("veth0").expect("its index")));
    let load = traffic::flood(&world.host, "10.77.0.10:4000".parse().expect("an address"));
    let (start, (dropped_before, sent_before)) = (Instant::now(), counters());
    let attached = world.host.run(move || {
        observer.survey().expect("a look at the interfaces");
        observer.attach(InterfaceKey(0), ifindex, false).expect("attach");
        observer
    });
    let ((dropped, sent), elapsed) = (counters(), start.elapsed().as_secs_f64());
    drop((load, attached));
    ((dropped - dropped_before) as f64, (sent - sent_before) as f64 / elapsed)
}

fn observer(mode: AttachMode) -> Observer {
    let events = EventOptions::default();
    Observer::load(Options { max_interfaces: 64, mode, max_flows: 0, events, log: false }).expect("load")
}

/// ms each.
fn times(interfaces: u32, mode: AttachMode) -> Vec<f64> {
    let mut observer = observer(mode);
    (0..interfaces)
        .map(|n| {
            let name = format!("{}{}", if n % 2 == 0 { 'v' } else { 'w' }, n / 2);
            let ifindex = nix::net::if_::if_nametoindex(name.as_str()).expect("its index");
            let start = Instant::now();
            observer.attach(InterfaceKey(u64::from(n)), ifindex, false).expect("attach");
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect()
}

/// Percentages, and the bucket's bound in ms.
fn as_they_come(pairs: u32) -> Vec<(u32, String)> {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    let port = agent.port;
    wait_for("an answer", netobs_tests::program::LIMIT, || {
        host.run(move || http::get(port, "/healthz")).map_err(|error| error.to_string())
    });
    for n in 0..pairs {
        host.sh(&format!("ip link add v{n} type veth peer name w{n}"));
    }
    attached(&host, &agent, 2 * pairs);
    let (_, text) = host.run(move || http::get(port, "/metrics")).expect("a scrape");
    let buckets: Vec<(String, f64)> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("netobs_attach_latency_seconds_bucket{le=\"")?.split_once("\"} ")
        })
        .map(|(bound, count)| (bound.to_owned(), count.parse().expect("a count")))
        .collect();
    let all = f64::from(2 * pairs);
    let bound = |share: u32| {
        let is_enough = |(_, count): &&(String, f64)| *count >= all * f64::from(share) / 100.0;
        let (bound, _) = buckets.iter().find(is_enough).expect("all are in the last bucket");
        bound.parse::<f64>().map_or_else(|_| bound.clone(), |seconds| format!("{}", seconds * 1e3))
    };
    [50, 90, 99, 100].map(|share| (share, bound(share))).into()
}
