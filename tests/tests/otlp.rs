//! What a collector gets is what the kernel has counted; a collector in trouble costs no more than what waits for it.

use std::{
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use netobs_tests::{
    bpffs::Bpffs,
    bridged::Bridged,
    collector::{Collector, Mood, Point, Record},
    http,
    kernel::{self, link},
    pretend::Pretend,
    program::{Agent, LIMIT, number, run},
    prometheus::sample,
    traffic, wait_for,
};

/// How soon a scrape is answered, whatever the collector does: sooner than a silent one is given up. Prometheus waits
/// for ten seconds.
const PATIENCE: Duration = Duration::from_secs(5);

fn world(containers: u8) -> Bridged {
    let world = Bridged::new("br-otlp", "10.81.0", (0..containers).map(|n| n + 10));
    for n in 0..usize::from(containers.min(2)) {
        let other = 1 - n;
        let mac = kernel::mac(world.netns(other), "eth0");
        world
            .netns(n)
            .sh(&format!("ip neigh replace 10.81.0.{} lladdr {mac} dev eth0 nud permanent", other + 10));
    }
    world
}

fn address(n: usize, port: u16) -> SocketAddr {
    format!("10.81.0.{}:{port}", n + 10).parse().expect("an address")
}

fn agent(world: &Bridged, more: &[&str]) -> Agent {
    let options = ["--no-engine", "--no-drops", "--otlp-endpoint", "http://127.0.0.1:4318"];
    begun(world, Agent::start_in(Some(&world.host), &[&options[..], more].concat()))
}

/// One that answers: it listens before its programs are loaded, and what that takes is not the collector's doing.
fn begun(world: &Bridged, agent: Agent) -> Agent {
    let port = agent.port;
    wait_for("that it is ready", LIMIT, || match world.host.run(move || http::get(port, "/readyz")) {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    agent
}

/// `/metrics`, in time.
fn scrape(world: &Bridged, agent: &Agent) -> Result<String, String> {
    let (port, start) = (agent.port, Instant::now());
    let (status, text) =
        world.host.run(move || http::get(port, "/metrics")).map_err(|error| error.to_string())?;
    assert_eq!(status, 200, "{text}");
    assert!(start.elapsed() < PATIENCE, "a scrape took {:?}", start.elapsed());
    Ok(text)
}

/// A metric about what is sent.
fn otlp(text: &str, name: &str, labels: &[&str]) -> u64 {
    let name = format!("netobs_otlp_{name}");
    let unlabelled =
        || text.lines().find_map(|line| line.strip_prefix(&format!("{name} "))?.parse::<f64>().ok());
    let found = if labels.is_empty() { unlabelled() } else { sample(text, &name, labels) };
    found.unwrap_or_else(|| panic!("no {name} {labels:?}")) as u64
}

const METRICS: &str = "signal=\"metrics\"";

/// Waits until a scrape is as wanted.
fn until(world: &Bridged, agent: &Agent, what: &str, wanted: impl Fn(&str) -> bool) -> String {
    wait_for(what, LIMIT * 3, || {
        let text = scrape(world, agent)?;
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("netobs_otlp")).collect();
        if wanted(&text) { Ok(text) } else { Err(lines.join("\n")) }
    })
}

/// What the collector has is what the agent says that it has taken: when the last answer has come.
fn assert_all_told(world: &Bridged, agent: &Agent, collector: &Collector) -> String {
    wait_for("both to say the same", LIMIT, || {
        let text = scrape(world, agent)?;
        let taken = collector.taken();
        let sent = otlp(&text, "sent_total", &[METRICS]);
        let [refused, rejected] = ["refused", "rejected"]
            .map(|cause| otlp(&text, "lost_total", &[METRICS, &format!("cause=\"{cause}\"")]));
        let theirs = (taken.data_points - taken.rejected, taken.rejected);
        if (sent, rejected) == theirs && otlp(&text, "waiting", &[METRICS]) == 0 {
            Ok(text)
        } else {
            Err(format!("sent {sent}, refused {refused}, rejected {rejected}; taken and rejected {theirs:?}"))
        }
    })
}

#[test]
fn what_a_collector_gets_is_what_the_kernel_counts() {
    let world = world(2);
    let collector = Collector::start(&world.host);
    let agent = agent(&world, &["--otlp-interval=300ms"]);
    until(&world, &agent, "both containers", |text| {
        (0..2).all(|n| text.contains(&format!("netobs_container_info{{id=\"{}\"", world.name(n))))
    });
    traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 1000, 100);
    traffic::tcp(world.netns(0), world.netns(1), address(1, 5001), 5_000_000);
    let port = agent.port;
    let (_, snapshot) = world.host.run(move || http::get(port, "/api/v1/snapshot")).expect("a snapshot");
    let snapshot: serde_json::Value = serde_json::from_str(&snapshot).expect("JSON");
    for n in 0..2 {
        let name = format!("veth{n}");
        let interface = netobs_tests::program::interface(&snapshot, &name).expect("the veth");
        let before = |field: &str| number(&interface["baseline"], field);
        // The container's receive is what its veth on the host has sent.
        for (direction, host) in [("receive", "tx"), ("transmit", "rx")] {
            let of = |metric: &str| {
                let attributes = [
                    ("container.id", world.containers[n].id.as_str()),
                    ("container.name", world.name(n)),
                    ("network.interface.name", "eth0"),
                    ("network.io.direction", direction),
                ];
                collector.taken().newest(metric, &attributes).cloned()
            };
            wait_for(&format!("{name} {direction}"), LIMIT, || {
                let kernel = link(&world.host, &name);
                let (packets, bytes) = match host {
                    "tx" => (kernel.tx_packets, kernel.tx_bytes),
                    _ => (kernel.rx_packets, kernel.rx_bytes),
                };
                let wanted =
                    (packets - before(&format!("{host}_packets")), bytes - before(&format!("{host}_bytes")));
                // All of UDP goes from the first to the second; of TCP there are as few packets as the kernel likes.
                let least = if (n == 0) == (direction == "transmit") { 1000 } else { 1 };
                assert!(wanted.0 >= least, "traffic has passed: {wanted:?}");
                let packets = of("netobs.container.packets").ok_or("no packets")?;
                let bytes = of("container.network.io").ok_or("no bytes")?;
                assert!(packets.is_counter && bytes.is_counter);
                let found = (packets.value as u64, bytes.value as u64);
                if found == wanted { Ok(()) } else { Err(format!("{found:?}, the kernel has {wanted:?}")) }
            });
        }
    }
    let taken = collector.taken();
    let udp = [
        ("container.name", world.name(1)),
        ("network.transport", "udp"),
        ("network.io.direction", "receive"),
    ];
    assert_eq!(taken.newest("netobs.container.protocol_packets", &udp).expect("UDP").value, 1000);
    let edge = [
        ("source.container.name", world.name(0)),
        ("destination.container.id", world.containers[1].id.as_str()),
        ("network.transport", "udp"),
        ("server.port", "5000"),
    ];
    assert_eq!(taken.newest("netobs.edge.packets", &edge).expect("an edge").value, 1000);
    assert_eq!(taken.resource["service.name"], "netobs");
    assert!(taken.head.contains("content-type: application/x-protobuf"), "{}", taken.head);
    // All of one process's counters have begun with it, and no series goes back.
    for point in taken.points.iter().filter(|point| point.is_counter) {
        assert!(point.start > 0 && point.start < point.time, "{point:?}");
    }
}

fn sum(records: &[Record], key: &str, has: &[(&str, &str)]) -> u64 {
    let is = |record: &&Record| {
        has.iter().all(|(key, value)| record.attributes.get(*key).is_some_and(|v| v == value))
    };
    records.iter().filter(is).map(|record| record.attributes[key].parse::<u64>().expect("a number")).sum()
}

#[test]
fn records_of_flows_add_up() {
    let world = world(2);
    let collector = Collector::start(&world.host);
    let mut command = netobs_tests::program::netobs(Some(&world.host));
    command.env("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip").env("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=a%20b");
    let options = [
        "--no-engine",
        "--no-drops",
        "--flow-idle=4s",
        "--flow-interval=500ms",
        "--otlp-endpoint=http://127.0.0.1:4318/",
        "--otlp-interval=1s",
        "--otlp-flows",
    ];
    let mut agent = begun(&world, Agent::start_by(command, 9810, &options));
    until(&world, &agent, "both containers", |text| {
        (0..2).all(|n| text.contains(&format!("netobs_container_info{{id=\"{}\"", world.name(n))))
    });
    // Some that end soon, and one that goes on over several intervals.
    for port in 5000..5010 {
        traffic::udp(world.netns(0), world.netns(1), address(1, port), 20, 100);
    }
    world.netns(0).run(|| {
        let socket = UdpSocket::bind("0.0.0.0:6001").expect("bind");
        for _ in 0..60 {
            let _ = socket.send_to(&[0; 50], address(1, 6000));
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    traffic::tcp(world.netns(0), world.netns(1), address(1, 5200), 100_000);
    // The same ends again, after the first flow between them is over.
    traffic::udp(world.netns(1), world.netns(0), address(0, 7000), 5, 10);
    wait_for("records", LIMIT, || {
        let taken = collector.taken();
        let found = sum(&taken.records, "netobs.flow.packets", &[("destination.port", "6000")]);
        if found == 60 { Ok(()) } else { Err(format!("{found} of 60")) }
    });
    // What came last is told at the end.
    traffic::udp(world.netns(0), world.netns(1), address(1, 5300), 7, 100);
    let (status, took) = agent.terminate();
    assert!(status.success() && took < Duration::from_secs(5), "{status} {took:?}");
    let taken = collector.taken();
    let packets = |has: &[(&str, &str)]| sum(&taken.records, "netobs.flow.packets", has);
    for port in 5000..5010 {
        assert_eq!(
            packets(&[("destination.port", &port.to_string()), ("network.transport", "udp")]),
            20,
            "{port}"
        );
    }
    assert_eq!(packets(&[("destination.port", "5300")]), 7);
    let long: Vec<_> = taken
        .records
        .iter()
        .filter(|one| one.attributes.get("source.port").is_some_and(|p| p == "6001"))
        .collect();
    assert!(long.len() > 1, "several parts of one that goes on: {long:?}");
    let wanted = [
        ("source.address", "10.81.0.10"),
        ("destination.address", "10.81.0.11"),
        ("source.container.name", world.name(0)),
        ("destination.container.name", world.name(1)),
        ("source.container.id", world.containers[0].id.as_str()),
        ("network.transport", "udp"),
        ("network.type", "ipv4"),
        ("network.io.direction", "transmit"),
        ("netobs.class", "same_network"),
    ];
    assert_eq!(sum(&taken.records, "netobs.flow.bytes", &wanted), 207 * 142 + 60 * 92);
    assert!(taken.records.iter().all(|record| record.event == "netobs.flow" && record.body.contains(" -> ")));
    let closed =
        [("destination.port", "5200"), ("netobs.flow.state", "closed"), ("netobs.flow.client", "source")];
    assert!(sum(&taken.records, "netobs.flow.bytes", &closed) > 0, "how the connection ended");
    assert!(sum(&taken.records, "netobs.flow.bytes", &[("destination.port", "5200")]) > 100_000);
    assert!(
        taken.head.contains("x-scope: a b") && taken.head.contains("content-encoding: gzip"),
        "{}",
        taken.head
    );
}

/// Whatever the collector does, the endpoint answers; what is lost is counted exactly, and what is not lost arrives.
#[test]
fn a_collector_in_trouble() {
    let world = world(2);
    let mut command = netobs_tests::program::netobs(Some(&world.host));
    command.env("OTEL_EXPORTER_OTLP_TIMEOUT", "6000");
    let options =
        ["--no-engine", "--no-drops", "--otlp-endpoint=http://127.0.0.1:4318", "--otlp-interval=200ms"];
    let agent = begun(&world, Agent::start_by(command, 9810, &options));
    let failed = |text: &str| otlp(text, "failed_requests_total", &[]);
    let lost = |text: &str| {
        let of = |cause: &str| otlp(text, "lost_total", &[METRICS, &format!("cause=\"{cause}\"")]);
        [of("queue_full"), of("refused"), of("rejected")]
    };
    // Nobody is there.
    let text =
        until(&world, &agent, "a failure", |text| text.contains("netobs_otlp_failed") && failed(text) > 0);
    assert_eq!((otlp(&text, "sent_total", &[METRICS]), lost(&text)), (0, [0; 3]));
    assert!(otlp(&text, "waiting", &[METRICS]) > 0);
    // Somebody comes, and gets all that has waited.
    let collector = Collector::start(&world.host);
    let text = assert_all_told(&world, &agent, &collector);
    assert_eq!(lost(&text), [0; 3], "nothing was lost");
    for mood in [Mood::Answers(503), Mood::Silent, Mood::Cuts] {
        let before = failed(&assert_all_told(&world, &agent, &collector));
        collector.is(mood);
        until(&world, &agent, &format!("failures: {mood:?}"), |text| failed(text) >= before + 2);
        collector.is(Mood::Takes);
        let text = assert_all_told(&world, &agent, &collector);
        assert_eq!(lost(&text), [0; 3], "{mood:?}: nothing was lost");
    }
    // Each sample has arrived once, in order.
    {
        let taken = collector.taken();
        let of = |point: &&Point| point.metric == "netobs.attached.interfaces";
        let times: Vec<u64> = taken.points.iter().filter(of).map(|point| point.time).collect();
        assert!(times.len() > 10 && times.is_sorted_by(|a, b| a < b), "{times:?}");
        let most = times.windows(2).map(|pair| pair[1] - pair[0]).max().expect("some");
        assert!(
            Duration::from_nanos(most) < Duration::from_secs(3),
            "no gap where it was in trouble: {most} ns"
        );
    }
    collector.is(Mood::Answers(400));
    until(&world, &agent, "refusals", |text| lost(text)[1] > 0);
    collector.is(Mood::Rejects(3));
    until(&world, &agent, "rejections", |text| lost(text)[2] > 0);
    collector.is(Mood::Takes);
    let text = assert_all_told(&world, &agent, &collector);
    let taken = collector.taken();
    assert_eq!(lost(&text), [0, taken.refused, taken.rejected], "as many as it says");
}

/// Nobody takes anything for long: what waits is bounded, what is too much is counted, and the newest arrives.
#[test]
fn what_waits_is_bounded() {
    const MOST: u64 = 16 << 20;
    let world = world(20);
    let agent = agent(&world, &["--otlp-interval=100ms"]);
    until(&world, &agent, "all containers", |text| {
        (0..20).all(|n| text.contains(&format!("netobs_container_info{{id=\"{}\"", world.name(n))))
    });
    let before = agent.resident_kib();
    let lost = |text: &str| otlp(text, "lost_total", &[METRICS, "cause=\"queue_full\""]);
    let text = until(&world, &agent, "a full queue", |text| {
        assert!(otlp(text, "waiting_bytes", &[]) <= MOST);
        lost(text) > 0
    });
    assert!(otlp(&text, "waiting_bytes", &[]) > MOST / 2);
    // For some more rounds.
    let goal = lost(&text) * 2 + 50_000;
    until(&world, &agent, "more losses", |text| lost(text) > goal);
    let grown = agent.resident_kib().saturating_sub(before);
    assert!(grown < (MOST / 1024) * 3, "{grown} KiB more for 16 MiB that wait");
    let collector = Collector::start(&world.host);
    collector.is(Mood::Blind);
    until(&world, &agent, "that all is sent", |text| otlp(text, "waiting_bytes", &[]) < MOST / 8);
    let requests = collector.taken().requests;
    until(&world, &agent, "that more is sent", |_| collector.taken().requests > requests + 10);
}

/// Counters that begin again say since when; those that go on with `--pin`, that they do.
#[test]
fn since_when_a_counter_counts() {
    let world = world(2);
    // One whose interface is observed inside: nothing of that is pinned.
    let inside = Pretend::new();
    world.host.sh(&format!(
        "ip link add parent type veth peer name other; ip link set parent up; ip link set other up; \
         ip link add new0 link parent type macvlan mode bridge; ip link set new0 netns {}",
        inside.netns().pid()
    ));
    inside.netns().sh("ip link set new0 name eth0; ip addr add 10.82.0.1/24 dev eth0; ip link set eth0 up; \
         ip neigh replace 10.82.0.2 lladdr 02:00:00:00:00:02 dev eth0 nud permanent");
    let of_inside = [
        ("container.name", inside.name()),
        ("network.interface.name", "eth0"),
        ("network.transport", "udp"),
        ("network.io.direction", "transmit"),
    ];
    let collector = Collector::start(&world.host);
    let macvlan = || collector.taken().newest("netobs.container.protocol_packets", &of_inside).cloned();
    let bpffs = Bpffs::new();
    let folder = bpffs.folder().display().to_string();
    let attributes = [("container.name", world.name(1)), ("network.io.direction", "receive")];
    let exact = || collector.taken().newest("container.network.io", &attributes).cloned();
    let edges = || collector.taken().newest("netobs.edge.packets", &[("server.port", "5000")]).cloned();
    // After `time`, when they are all of the traffic.
    let after = |time: u64, bytes: i64, packets: i64| {
        wait_for("both counters", LIMIT, || match (exact(), edges()) {
            (Some(exact), Some(edge))
                if exact.time > time && edge.time > time && exact.value >= bytes && edge.value == packets =>
            {
                Ok((exact, edge))
            }
            other => Err(format!("{other:?}")),
        })
    };
    let mut starts = Vec::new();
    let mut inside_starts = Vec::new();
    let mut time = 0;
    for run in 1..=3 {
        // The last goes on with nothing.
        let pin: &[&str] = if run < 3 { &["--pin", "--pin-folder", &folder] } else { &[] };
        let mut agent = agent(&world, &[&["--otlp-interval=200ms"], pin].concat());
        until(&world, &agent, "both containers", |text| {
            let received = |name: &str| {
                let id = format!("id=\"{name}\"");
                sample(text, "netobs_container_receive_packets_total", &[&id, "interface=\"eth0\""]).is_some()
            };
            (0..2).all(|n| received(world.name(n))) && received(inside.name())
        });
        inside.netns().run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
            for _ in 0..10 {
                socket.send_to(&[0; 50], "10.82.0.2:6000").expect("send");
            }
        });
        traffic::udp(world.netns(0), world.netns(1), address(1, 5000), 100, 100);
        let all = if run == 2 { 2 * 100 * 142 } else { 100 * 142 };
        let (exact, edge) = after(time, all, 100);
        // Those of this run, and no others.
        let macvlan = wait_for("what is observed inside", LIMIT, || match macvlan() {
            Some(point) if point.time > time && point.value == 10 => Ok(point),
            other => Err(format!("{other:?}")),
        });
        starts.push((exact.start, edge.start));
        inside_starts.push(macvlan.start);
        time = exact.time.max(edge.time);
        agent.kill();
        if run == 2 {
            let options = ["cleanup", "--pin-folder", &folder];
            let output =
                netobs_tests::program::netobs(Some(&world.host)).args(options).output().expect("cleanup");
            assert!(output.status.success(), "{output:?}");
        }
    }
    let [(pinned, edge), (taken_over, new_edge), (unpinned, _)] = starts[..] else { panic!("{starts:?}") };
    assert_eq!(pinned, taken_over, "the pinned counter has gone on");
    assert!(new_edge > edge, "edges have begun again");
    assert!(
        inside_starts.is_sorted_by(|a, b| a < b),
        "what is observed inside has begun again each time: {inside_starts:?}"
    );
    assert!(unpinned > taken_over, "what is pinned no more has begun again");
    // Of one series no two periods overlap where the value went back.
    let taken = collector.taken();
    let mut last: std::collections::BTreeMap<String, &Point> = Default::default();
    for point in taken.points.iter().filter(|point| point.is_counter) {
        let key = format!("{} {:?}", point.metric, point.attributes);
        if let Some(before) = last.insert(key.clone(), point) {
            let went_on = point.value >= before.value && point.start == before.start;
            assert!(went_on || point.start > before.start, "{key}: {before:?}, then {point:?}");
        }
    }
}

#[test]
fn what_cannot_be_done_is_said_at_start() {
    for (endpoint, word) in [("localhost:4318", "http://"), ("http://u:p@c", "OTEL_EXPORTER_OTLP_HEADERS")] {
        let output = run(&["agent", "--listen=127.0.0.1:0", "--otlp-endpoint", endpoint]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(word), "{said}");
    }
    let output = run(&["agent", "--listen=127.0.0.1:0", "--otlp-flows"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("--otlp-endpoint"));
}
