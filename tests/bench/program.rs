//! One run of each program, hot, beside one that does nothing, in turns.

use std::os::fd::{AsFd as _, BorrowedFd};

use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options},
    model::InterfaceKey,
};
use netobs_tests::{
    netns::Netns,
    test_run::{Gso, empty_program, test_run},
};

use crate::{
    Effort,
    document::{Spread, Table, Target},
};

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let (repeat, rounds) = (if effort.quick { 100_000 } else { 1_000_000 }, effort.rounds(15));
    let times = Netns::new().run(move || times(repeat, rounds));
    let about = format!(
        "One run on a frame of 64 bytes, hot cache, `BPF_PROG_TEST_RUN` with {repeat} repeats, {rounds} rounds in turns. \
         Median, least and most; net is the median of the differences to the empty program in the same round."
    );
    let mut table = Table::new(&about, &["program", "ns a run", "net"]);
    let empty = times[0].1.clone();
    let mut nets = Vec::new();
    for (what, times) in &times {
        let net = Spread::of(times.iter().zip(&empty).map(|(time, empty)| time - empty));
        nets.push(net);
        let shown = if *what == "empty" { String::new() } else { net.show(0) };
        table.row(&[(*what).to_owned(), Spread::of(times.iter().copied()).show(0), shown]);
    }
    let target = |what: &str, udp: Spread, tcp: Spread, most: f64| Target {
        what: what.to_owned(),
        target: format!("≤ {most} ns"),
        measured: format!("UDP {:.0}, TCP {:.0} ns", udp.median, tcp.median),
        is_met: udp.median <= most && tcp.median <= most,
    };
    let targets = vec![
        target("exact layer with all its counters, hot, net", nets[1], nets[2], 12.0),
        target("exact layer, flows and classes, one flow, hot, net", nets[3], nets[4], 25.0),
    ];
    (vec![table], targets)
}

fn times(repeat: u32, rounds: usize) -> Vec<(&'static str, Vec<f64>)> {
    let mut udp = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17];
    udp.resize(64, 0);
    let mut tcp = udp.clone();
    // An ACK with a window, as nearly all have.
    (tcp[23], tcp[46], tcp[47], tcp[48]) = (6, 5 << 4, 0x10, 1);
    let observer = |max_flows, dns_and_arp: bool| {
        let events = EventOptions { dns: dns_and_arp, arp: dns_and_arp, ..EventOptions::default() };
        let options = Options { max_interfaces: 4, mode: AttachMode::Auto, max_flows, events, log: false };
        let mut observer = Observer::load(options).expect("load");
        observer.attach(InterfaceKey(0), 1, false).expect("attach to lo");
        observer
    };
    let (exact, flows, all) = (observer(0, false), observer(1024, false), observer(1024, true));
    let empty = empty_program().expect("load an empty program");
    let loads: [(&str, BorrowedFd<'_>, &[u8]); 7] = [
        ("empty", empty.as_fd(), &udp),
        ("exact layer, UDP", exact.program(true), &udp),
        ("exact layer, TCP", exact.program(true), &tcp),
        ("exact layer and flows, UDP", flows.program(true), &udp),
        ("exact layer and flows, TCP", flows.program(true), &tcp),
        ("with DNS and ARP, UDP", all.program(true), &udp),
        ("with DNS and ARP, TCP", all.program(true), &tcp),
    ];
    let mut times = loads.map(|(what, _, _)| (what, Vec::new()));
    for _ in 0..rounds {
        for ((_, program, packet), (_, times)) in loads.iter().zip(&mut times) {
            let (_, ns) = test_run(*program, packet, Gso::default(), repeat).expect("test run");
            times.push(f64::from(ns));
        }
    }
    for observer in [&exact, &flows, &all] {
        let counted = observer.read(InterfaceKey(0)).expect("attached").ingress;
        let counted: u64 = counted.class.iter().map(|count| count.packets).sum();
        assert_eq!(counted, 2 * rounds as u64 * u64::from(repeat), "each run is counted");
    }
    times.into()
}
