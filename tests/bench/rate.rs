//! What gets through with and without.

use std::time::Duration;

use netobs_tests::{bridged::Bridged, kernel};

use crate::{
    ADDRESSES, Effort, agent, attach_empty, datagrams,
    document::{Spread, Table, Target},
    load::{self, Sink},
    unseen, world,
};

const SETS: [&str; 3] = ["nothing attached", "empty program", "netobs agent, all as by default"];

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let (rounds, turns) = (effort.rounds(5), effort.rounds(6));
    let mut rates = [const { (Vec::new(), Vec::new()) }; SETS.len()];
    for _ in 0..rounds {
        let worlds = [unseen(), unseen(), world()];
        let _sinks = worlds.each_ref().map(|world| Sink::new(world.netns(1)));
        let _empty = attach_empty(&worlds[1]);
        let _agent = agent(&worlds[2], &[]);
        for _ in 0..turns {
            for (world, (udp, _)) in worlds.iter().zip(&mut rates) {
                udp.push(packets(world, effort.time(Duration::from_millis(500))));
            }
            for (world, (_, tcp)) in worlds.iter().zip(&mut rates) {
                let time = effort.time(Duration::from_millis(500));
                tcp.push(load::bulk(world.netns(0), world.netns(1), (ADDRESSES[1], 5201).into(), time));
            }
        }
    }
    let about = format!(
        "Rate, from one container to another on a bridge: UDP frames of 64 bytes of one flow as fast as one CPU sends \
         (thousands a second that arrive), and one TCP connection (Gbit/s). Each has a bridge with two containers of its \
         own; the load passes one after the other in turns of half a second, {turns} times in each of {rounds} rounds, \
         all of it made anew for each. Median, least and most, and the median of the ratios to nothing in the same turn."
    );
    let mut table = Table::new(&about, &["", "UDP", "", "TCP", ""]);
    let ratio = |values: &[f64], nothing: &[f64]| {
        Spread::of(values.iter().zip(nothing).map(|(value, nothing)| value / nothing)).median
    };
    for (what, (udp, tcp)) in SETS.iter().zip(&rates) {
        table.row(&[
            (*what).to_owned(),
            Spread::of(udp.iter().map(|rate| rate / 1e3)).show(0),
            format!("{:.2}", ratio(udp, &rates[0].0)),
            Spread::of(tcp.iter().map(|rate| rate * 8.0 / 1e9)).show(1),
            format!("{:.2}", ratio(tcp, &rates[0].1)),
        ]);
    }
    let measured = ratio(&rates[2].0, &rates[0].0);
    let empty = ratio(&rates[1].0, &rates[0].0);
    let target = Target {
        what: "64-byte UDP rate, with over without".to_owned(),
        target: "≥ 0.95".to_owned(),
        measured: format!("{measured:.2} (empty program: {empty:.2})"),
        is_met: measured >= 0.95,
    };
    (vec![table], vec![target])
}

/// Packets a second that reach the other container.
fn packets(world: &Bridged, time: Duration) -> f64 {
    let arrived = || kernel::link(world.netns(1), "eth0").rx_packets;
    let before = arrived();
    load::datagrams(world.netns(0), datagrams(1, None), time);
    (arrived() - before) as f64 / time.as_secs_f64()
}
