//! Many interfaces: how fast they are attached, what a scrape costs, what stays behind. Prints what it
//! measures; asserts only what must hold on any machine.
//!
//! The figures in `docs/benchmarks.md` are from `cargo test --release --package netobs-tests --test scale
//! -- --nocapture --test-threads=1`.

use std::{
    os::fd::{AsFd as _, BorrowedFd},
    time::Instant,
};

use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options},
    model::InterfaceKey,
};
use netobs_tests::{
    http,
    netns::Netns,
    program::{Agent, LIMIT, Watch, number},
    test_run::{Gso, empty_program, test_run},
    traffic, wait_for,
};
use serde_json::Value;

/// Runs `count` commands of `ip` at once; `{}` in the line is the number.
fn batch(host: &Netns, count: usize, line: &str) {
    let lines: String = (0..count).map(|n| line.replace("{}", &n.to_string()) + "\n").collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("write");
    host.sh(&format!("ip -batch {}", file.path().display()));
}

/// The agent's own view, asked inside its namespace.
fn snapshot(host: &Netns, port: u16) -> Result<Value, String> {
    let (_, body) =
        host.run(move || http::get(port, "/api/v1/snapshot")).map_err(|error| error.to_string())?;
    serde_json::from_str(&body).map_err(|error| error.to_string())
}

/// Waits until so many are attached, and nothing has failed.
fn attached(host: &Netns, agent: &Agent, count: u64) -> Value {
    wait_for("all attached", LIMIT * 3, || {
        let now = snapshot(host, agent.port)?;
        let health = &now["agent"];
        if health["unattached"].as_array().is_some_and(|unattached| !unattached.is_empty()) {
            panic!("{health}");
        }
        if number(health, "attached_interfaces") == count { Ok(now) } else { Err(health.to_string()) }
    })
}

/// The upper bound (microseconds) of the bucket that has the share of observations below it.
fn quantile(latency: &Value, share: f64) -> u64 {
    let bounds = netobs::model::snapshot::LATENCY_BOUNDS_US;
    let buckets: Vec<u64> = (0..=bounds.len()).map(|n| number(latency, &format!("buckets.{n}"))).collect();
    let wanted = (buckets.iter().sum::<u64>() as f64 * share).ceil() as u64;
    let mut below = 0;
    for (bucket, bound) in buckets.iter().zip(bounds) {
        below += bucket;
        if below >= wanted {
            return bound;
        }
    }
    u64::MAX
}

/// What one run of the program costs, hot, beside one that does nothing, in turns.
#[test]
fn nanoseconds_a_packet() {
    const REPEAT: u32 = 1_000_000;
    const ROUNDS: usize = 9;
    let mut udp = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17];
    udp.resize(64, 0);
    let mut tcp = udp.clone();
    (tcp[23], tcp[46], tcp[47]) = (6, 5 << 4, 0x10);
    let times = Netns::new().run(move || {
        let observer = |max_flows, dns_and_arp: bool| {
            let events = EventOptions { dns: dns_and_arp, arp: dns_and_arp, ..EventOptions::default() };
            let mut observer = Observer::load(Options {
                max_interfaces: 4,
                mode: AttachMode::Auto,
                max_flows,
                events,
                log: false,
            })
            .expect("load");
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
        for _ in 0..ROUNDS {
            for ((_, program, packet), (_, times)) in loads.iter().zip(&mut times) {
                times.push(test_run(*program, packet, Gso::default(), REPEAT).expect("test run").1);
            }
        }
        for observer in [&exact, &flows, &all] {
            let [counted, _] = observer.read(InterfaceKey(0)).expect("attached");
            let counted: u64 = counted.class.iter().map(|count| count.packets).sum();
            assert_eq!(counted, 2 * ROUNDS as u64 * u64::from(REPEAT), "each run is counted");
        }
        times
    });
    println!("ns a packet: least, median, most");
    for (what, mut times) in times {
        times.sort_unstable();
        println!("{what}: {}, {}, {}", times[0], times[times.len() / 2], times[times.len() - 1]);
    }
}

/// On live traffic, by the kernel's own statistics: with the programs attached as they are by default.
#[test]
fn nanoseconds_a_live_packet() {
    const PACKETS: u64 = 200_000;
    const ROUNDS: usize = 5;
    let world = netobs_tests::netns::World::new(2);
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    watch.interface("veth0");
    let statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("run statistics");
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let before = run_statistics(watch.pid());
        traffic::udp(
            &world.containers[0],
            &world.containers[1],
            "10.77.0.11:9".parse().expect("an address"),
            PACKETS,
            18,
        );
        let after = run_statistics(watch.pid());
        assert!(after.0 - before.0 >= 2 * PACKETS, "each frame passes two hooks");
        rounds.push((after.1 - before.1) as f64 / (after.0 - before.0) as f64);
    }
    drop(statistics);
    rounds.sort_by(f64::total_cmp);
    println!(
        "ns a run, live, 60-byte UDP (least, median, most): {:.1}, {:.1}, {:.1}",
        rounds[0],
        rounds[ROUNDS / 2],
        rounds[ROUNDS - 1]
    );
}

/// Runs, and nanoseconds spent in them, of the filters' programs that a process has loaded.
fn run_statistics(pid: u32) -> (u64, u64) {
    let mut ids = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("a process") {
        let text = std::fs::read_to_string(entry.expect("an entry").path()).unwrap_or_default();
        ids.extend(text.lines().filter_map(|line| line.strip_prefix("prog_id:")?.trim().parse::<u32>().ok()));
    }
    aya::programs::loaded_programs()
        .filter_map(Result::ok)
        .filter(|program| ids.contains(&program.id()))
        .filter(|program| matches!(program.name_as_str(), Some("netobs_ingress" | "netobs_egress")))
        .fold((0, 0), |(runs, ns), program| {
            (
                runs + program.run_count(),
                ns + u64::try_from(program.run_time().as_nanos()).unwrap_or(u64::MAX),
            )
        })
}

#[test]
fn five_hundred_at_start() {
    let host = Netns::new();
    batch(&host, 250, "link add v{} type veth peer name w{}");
    let start = Instant::now();
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    let now = attached(&host, &agent, 500);
    println!("500 veths at start: serving after {:?} from exec", start.elapsed());
    let slowest = quantile(&now["agent"]["attach_latency"], 1.0);
    println!("500 veths at start: all attached within {slowest} us (bucket's bound) of being listed");
}

#[test]
fn five_hundred_one_after_the_other() {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    attached(&host, &agent, 0);
    for n in 0..250 {
        host.sh(&format!("ip link add v{n} type veth peer name w{n}"));
    }
    let now = attached(&host, &agent, 500);
    let latency = &now["agent"]["attach_latency"];
    println!(
        "500 new veths: attached within {} us (median), {} us (99th percentile) of netlink's message; buckets {}",
        quantile(latency, 0.5),
        quantile(latency, 0.99),
        latency["buckets"],
    );
    let total: u64 = (0..12).map(|n| number(latency, &format!("buckets.{n}"))).sum();
    assert_eq!(total, 500, "each is attached once");
}

/// Why filters are the rule (docs/adr/0002-clsact-before-tcx.md).
#[test]
fn links_beside_filters() {
    const INTERFACES: u32 = 20;
    let host = Netns::new();
    batch(&host, INTERFACES as usize / 2, "link add v{} type veth peer name w{}");
    let time = |mode| {
        host.run(move || {
            let mut observer = Observer::load(Options {
                max_interfaces: 64,
                mode,
                max_flows: 0,
                events: EventOptions::default(),
                log: false,
            })
            .expect("load");
            let mut times: Vec<_> = (0..INTERFACES)
                .map(|n| {
                    let name = format!("{}{}", if n % 2 == 0 { 'v' } else { 'w' }, n / 2);
                    let ifindex = nix::net::if_::if_nametoindex(name.as_str()).expect("its index");
                    let start = Instant::now();
                    observer.attach(InterfaceKey(u64::from(n)), ifindex, false).expect("attach");
                    start.elapsed()
                })
                .collect();
            times.sort();
            times[times.len() / 2]
        })
    };
    println!(
        "attach one interface, median of {INTERFACES}: clsact {:?}, TCX {:?}",
        time(AttachMode::Clsact),
        time(AttachMode::Tcx)
    );
}

#[test]
fn a_thousand_interfaces() {
    let host = Netns::new();
    batch(&host, 500, "link add v{} type veth peer name w{}");
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--max-interfaces", "1024"]);
    attached(&host, &agent, 1000);
    let port = agent.port;
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..9 {
        let start = Instant::now();
        let (status, body) = host.run(move || http::get(port, "/metrics")).expect("a scrape");
        times.push(start.elapsed());
        assert_eq!(status, 200);
        bytes = body.len();
        let series =
            body.lines().filter(|line| line.starts_with("netobs_interface_receive_packets_total{")).count();
        assert_eq!(series, 1000);
    }
    times.sort();
    println!(
        "1,000 interfaces: scrape {:?} (median of {}; {:?} to {:?}), {bytes} bytes; agent {} KiB resident",
        times[times.len() / 2],
        times.len(),
        times[0],
        times[times.len() - 1],
        agent.resident_kib()
    );
}

#[test]
fn churn_leaves_nothing() {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--grace", "0s"]);
    attached(&host, &agent, 0);
    let pid = agent.pid();
    let traces = || {
        let count = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("proc").count();
        (count("fd"), count("task"))
    };
    let round = || {
        batch(&host, 100, "link add v{} type veth peer name w{}");
        attached(&host, &agent, 200);
        batch(&host, 100, "link del v{}");
        attached(&host, &agent, 0);
    };
    round();
    let (before, resident) = (traces(), agent.resident_kib());
    for _ in 0..4 {
        round();
    }
    assert_eq!(traces(), before, "descriptors and threads");
    let after = agent.resident_kib();
    println!("churn of 800 interfaces: {resident} KiB resident before, {after} KiB after");
    assert!(after < resident + resident / 10 + 1024, "{resident} KiB before, {after} KiB after");
}
