//! What gets through with and without.

use std::{os::fd::AsFd as _, time::Duration};

use netobs_tests::{bridged::Bridged, kernel, test_run::empty_program};

use crate::{
    ADDRESSES, Effort, agent, datagrams,
    document::{Spread, Table, Target},
    live::attach_empty,
    load::{self, Sink},
    world,
};

const SETS: [&str; 3] = ["nothing attached", "empty program", "netobs agent, all as by default"];

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let world = world();
    let _sink = Sink::new(world.netns(1));
    let rounds = effort.rounds(9);
    let mut rates = [const { (Vec::new(), Vec::new()) }; SETS.len()];
    for _ in 0..rounds {
        for (set, (udp, tcp)) in rates.iter_mut().enumerate() {
            let empty = empty_program().expect("load an empty program");
            let _links = (set == 1).then(|| attach_empty(&world, empty.as_fd()));
            let _agent = (set == 2).then(|| agent(&world, &[]));
            udp.push(packets(&world, effort.time(Duration::from_millis(1500))));
            let time = effort.time(Duration::from_millis(1000));
            tcp.push(load::bulk(world.netns(0), world.netns(1), (ADDRESSES[1], 5201).into(), time));
        }
    }
    let about = format!(
        "Rate, from one container to another on a bridge: UDP frames of 64 bytes of one flow as fast as one CPU sends \
         (thousands a second that arrive), and one TCP connection (Gbit/s), {rounds} rounds in turns. Median, least and \
         most, and the median of the ratios to nothing in the same round."
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
