//! Real interfaces, real traffic: netobs's counters against the kernel's own, to the packet.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use netobs::{
    ebpf::{Attach as _, AttachMode, Counted, EventOptions, Observer, Options},
    model::InterfaceKey,
};
use netobs_common::{Counters, class, l4};
use netobs_tests::{
    http,
    kernel::{self, assert_exact, attach_modes},
    netns::{BRIDGE, Netns, World},
    program::{Agent, LIMIT, Watch, binary, netobs, number, signal},
    terminal::Terminal,
    traffic, wait_for,
};
use nix::sys::signal::Signal;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn watch(world: &World) -> Watch {
    Watch::start(Some(&world.host), &["--no-engine"])
}

#[test]
fn ping_between_containers() {
    let world = World::new(2);
    let watch = watch(&world);
    world.containers[0].sh("busybox ping -q -c 10 -i 0.05 10.77.0.11");
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    let snapshot = watch.fresh();
    let veth = |name| netobs_tests::program::interface(&snapshot, name).expect("attached");
    for (name, direction) in [("veth0", "rx"), ("veth0", "tx"), ("veth1", "rx"), ("veth1", "tx")] {
        let veth = veth(name);
        assert_eq!(number(&veth, &format!("{direction}.protocol.icmp.packets")), 10);
        assert_eq!(number(&veth, &format!("{direction}.protocol.icmp.bytes")), 980);
    }
    assert_eq!(number(&veth(BRIDGE), "rx.protocol.icmp.packets"), 0, "bridged, not through the host");
    assert_eq!(number(&veth(BRIDGE), "rx.ethertype.arp.packets"), 1, "the broadcast ARP request");
}

#[test]
fn ping_between_container_and_host() {
    let world = World::new(1);
    let watch = watch(&world);
    world.containers[0].sh("busybox ping -q -c 10 -i 0.05 10.77.0.1");
    assert_exact(&world.host, &watch, &["veth0", BRIDGE]);
    let bridge = watch.interface(BRIDGE);
    assert_eq!(number(&bridge, "rx.protocol.icmp.bytes"), 980, "with the Ethernet header");
}

#[test]
fn a_million_small_packets() {
    let world = World::new(2);
    let watch = watch(&world);
    let to = address("10.77.0.11:9000");
    traffic::udp(&world.containers[0], &world.containers[1], to, 1_000_000, 22);
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    let sent = watch.interface("veth0");
    assert!(number(&sent, "rx.protocol.udp.packets") > 900_000, "{sent}");
    assert_eq!(number(&sent, "rx.size.0"), number(&sent, "rx.packets"), "all are of 64 bytes or less");
}

#[test]
fn ten_gigabytes_of_tcp() {
    const BYTES: u64 = 10_000_000_000;
    /// Payload of a full segment at an MTU of 1500, with time stamps.
    const SEGMENT: u64 = 1448;
    let world = World::new(2);
    let watch = watch(&world);
    traffic::tcp(&world.containers[0], &world.containers[1], address("10.77.0.11:9000"), BYTES);
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    // What is sent again is not among the segments that the kernel has sent out.
    let sent = ["OutSegs", "RetransSegs"].map(|name| kernel::snmp(&world.containers[0], "Tcp", name));
    let segments: u64 = sent.iter().sum();
    assert!(segments >= BYTES / SEGMENT, "{sent:?}");
    for (name, direction) in [("veth0", "rx"), ("veth1", "tx")] {
        let veth = watch.interface(name);
        let wire = number(&veth, &format!("{direction}.wire_packets"));
        let arp = number(&veth, &format!("{direction}.ethertype.arp.packets"));
        assert_eq!(wire - arp, segments, "{name}: {sent:?}");
        let stack = number(&veth, &format!("{direction}.packets"));
        assert!(stack * 5 < wire, "{name}: {stack} packets of the stack: offloads are on");
    }
}

#[test]
fn ipv6() {
    let world = World::with_ipv6(2);
    let watch = watch(&world);
    world.containers[0].sh("busybox ping -q -c 10 -i 0.05 fd77::b");
    traffic::tcp(&world.containers[0], &world.containers[1], address("[fd77::b]:9000"), 50_000_000);
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    let veth = watch.interface("veth0");
    assert!(number(&veth, "rx.protocol.icmpv6.packets") >= 10);
    assert!(number(&veth, "rx.ethertype.ipv6.bytes") > 50_000_000);
    assert_eq!(number(&veth, "rx.tcp_flags.syn"), 1);
}

#[test]
fn eight_streams_at_a_time() {
    let world = World::new(4);
    let watch = watch(&world);
    std::thread::scope(|scope| {
        for stream in 0..8u16 {
            let world = &world;
            scope.spawn(move || {
                let (from, to) = (usize::from(stream) % 4, (usize::from(stream) + 1) % 4);
                let to_address = address(&format!("10.77.0.{}:{}", to + 10, 9000 + stream));
                if stream < 4 {
                    traffic::tcp(&world.containers[from], &world.containers[to], to_address, 100_000_000);
                } else {
                    traffic::udp(&world.containers[from], &world.containers[to], to_address, 50_000, 900);
                }
            });
        }
    });
    assert_exact(&world.host, &watch, &["veth0", "veth1", "veth2", "veth3", BRIDGE]);
}

/// What is read while eight threads send through one interface never goes back, has no half of a number, and is at the
/// end what the kernel has.
#[test]
fn eight_senders_while_counters_are_read() {
    const SENDERS: u16 = 8;
    const EACH: u64 = 100_000;
    // Ethernet, IPv4, UDP, payload.
    const FRAME: u64 = 14 + 20 + 8 + 22;
    let world = World::new(2);
    // Nothing but the datagrams passes.
    for (n, other) in [(0, 1), (1, 0)] {
        let mac = kernel::mac(&world.containers[other], "eth0");
        let address = format!("10.77.0.{}", other + 10);
        world.containers[n].sh(&format!("ip neigh replace {address} lladdr {mac} dev eth0 nud permanent"));
    }
    let is_over = Arc::new(AtomicBool::new(false));
    let (attached, is_attached) = std::sync::mpsc::channel();
    let reader = world.host.spawn({
        let is_over = Arc::clone(&is_over);
        move || {
            let mut observer = observer();
            for (key, name) in [(0, "veth0"), (1, "veth1")] {
                let index = nix::net::if_::if_nametoindex(name).expect("its index");
                observer.attach(InterfaceKey(key), index, false).expect("attach");
            }
            attached.send(()).expect("the test waits");
            let mut reads = 0u64;
            let mut flows = [0; 2];
            let mut last = [0, 1].map(|key| observer.read(InterfaceKey(key)).expect("attached"));
            loop {
                // Asked first: what is read then is the end.
                let over = is_over.load(Ordering::SeqCst);
                // Of flows there is much more to read.
                while (over || reads.is_multiple_of(100))
                    && let Some(records) = observer.peek_flows()
                {
                    for record in records {
                        flows[record.interface.0 as usize] += record.rx.packets + record.tx.packets;
                    }
                }
                let now = [0, 1].map(|key| observer.read(InterfaceKey(key)).expect("attached"));
                for (before, now) in last.iter().zip(&now) {
                    assert_reads(&before.ingress, &now.ingress, FRAME);
                    assert_reads(&before.egress, &now.egress, FRAME);
                }
                (last, reads) = (now, reads + 1);
                if over {
                    return (last, flows, reads);
                }
            }
        }
    });
    is_attached.recv().expect("attached");
    let before = ["veth0", "veth1"].map(|name| kernel::link(&world.host, name));
    let sink = world.containers[1].run(|| std::net::UdpSocket::bind("0.0.0.0:9000").expect("bind"));
    let senders: Vec<_> = (0..SENDERS)
        .map(|n| {
            world.containers[0].spawn(move || {
                let socket = std::net::UdpSocket::bind(("0.0.0.0", 4000 + n)).expect("bind");
                socket.connect("10.77.0.11:9000").expect("connect");
                for _ in 0..EACH {
                    // A full queue on the way is no reason to stop; what was not sent is not counted by anybody.
                    let _ = socket.send(&[0; 22]);
                }
            })
        })
        .collect();
    for sender in senders {
        sender.join().expect("a sender");
    }
    let after = wait_for("quiet", LIMIT, || {
        let links = || ["veth0", "veth1"].map(|name| kernel::link(&world.host, name));
        let now = links();
        std::thread::sleep(Duration::from_millis(50));
        if now == links() { Ok(now) } else { Err("packets still pass".to_owned()) }
    });
    is_over.store(true, Ordering::SeqCst);
    let (last, flows, reads) = reader.join().expect("never back, never half");
    drop(sink);
    for (n, Counted { ingress, egress, .. }) in last.iter().enumerate() {
        let sum = |counters: &Counters| {
            let classes = counters.class.iter();
            classes.fold((0, 0), |sum, class| (sum.0 + class.packets, sum.1 + class.bytes))
        };
        let (received, sent) = (sum(ingress), sum(egress));
        assert_eq!(received.0, after[n].rx_packets - before[n].rx_packets, "veth{n} received");
        assert_eq!(received.1, after[n].rx_bytes - before[n].rx_bytes, "veth{n} received");
        assert_eq!(sent.0, after[n].tx_packets - before[n].tx_packets, "veth{n} sent");
        assert_eq!(sent.1, after[n].tx_bytes - before[n].tx_bytes, "veth{n} sent");
        assert_eq!(
            flows[n] + ingress.unflowed.packets + egress.unflowed.packets,
            received.0 + sent.0,
            "veth{n}"
        );
    }
    assert!(after[0].rx_packets - before[0].rx_packets > u64::from(SENDERS) * EACH * 9 / 10, "{after:?}");
    assert!(reads > 200, "read {reads} times meanwhile");
}

fn observer() -> Observer {
    let events = EventOptions { dns: false, arp: false, ..EventOptions::default() };
    let options =
        Options { max_interfaces: 4, mode: AttachMode::Auto, max_flows: 65_536, events, log: false };
    Observer::load(options).expect("load")
}

/// Of one direction, in which only UDP frames of one length pass, between two readings.
fn assert_reads(before: &Counters, now: &Counters, frame: u64) {
    let words = |counters: &Counters| -> Vec<u64> {
        let classes = counters.class.iter().flat_map(|class| [class.packets, class.bytes]);
        classes.chain(counters.size).collect()
    };
    for (word, (before, now)) in words(before).into_iter().zip(words(now)).enumerate() {
        assert!(before <= now, "word {word} went back from {before} to {now}");
    }
    let udp = (class::IPV4 + l4::UDP) as usize;
    let (earlier, now) = (before.class[udp], now.class[udp]);
    assert_eq!(now.bytes % frame, 0, "whole frames: {now:?}");
    // Packets are counted and read before bytes: each CPU may be between the two.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    assert!(now.bytes / frame + cpus >= now.packets, "{now:?}");
    assert!(earlier.bytes / frame <= now.packets, "{earlier:?}, then {now:?}");
}

#[test]
fn jumbo_frames() {
    let world = World::new(2);
    let watch = watch(&world);
    for (n, container) in world.containers.iter().enumerate() {
        world.host.sh(&format!("ip link set veth{n} mtu 9000"));
        container.sh("ip link set eth0 mtu 9000");
    }
    world.host.sh(&format!("ip link set {BRIDGE} mtu 9000"));
    world.containers[0].sh("busybox ping -q -c 3 -i 0.05 -s 8000 10.77.0.11");
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    assert_eq!(number(&watch.interface("veth0"), "rx.size.7"), 3, "8,042 bytes");
}

#[test]
fn frames_of_a_raw_socket() {
    let world = World::new(2);
    let watch = watch(&world);
    let ethernet = |ethertype: u16| {
        let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8];
        frame.extend(ethertype.to_be_bytes());
        frame
    };
    let mut frames = Vec::new();
    // Tagged: the kernel takes the tag out of the frame on its way in.
    for _ in 0..4 {
        let mut tagged = ethernet(0x8100);
        tagged.extend([0, 5, 0x08, 0x00, 0x45]);
        tagged.resize(60, 17);
        frames.push(tagged);
    }
    // IPv4 and IPv6 that end anywhere in their headers.
    for length in 14..40usize {
        for (ethertype, first) in [(0x0800, 0x45), (0x86dd, 0x60)] {
            let mut short = ethernet(ethertype);
            short.push(first);
            short.resize(length.max(15), 6);
            short.truncate(length);
            frames.push(short);
        }
    }
    let sent = frames.len() as u64;
    let bytes: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
    traffic::raw(&world.containers[0], "eth0", frames);
    // The sender's interface says what was sent, whatever becomes of it.
    let inside = netobs_tests::kernel::link(&world.containers[0], "eth0");
    assert_eq!((inside.tx_packets, inside.tx_bytes), (sent, bytes));
    let veth = watch.until("all frames", |snapshot| {
        netobs_tests::program::interface(snapshot, "veth0").filter(|veth| number(veth, "rx.packets") >= sent)
    });
    assert_eq!(number(&veth, "rx.packets"), sent);
    assert_eq!(number(&veth, "rx.ethertype.vlan.packets"), 4, "{veth}");
    let of_ip = number(&veth, "rx.ethertype.ipv4.packets") + number(&veth, "rx.ethertype.ipv6.packets");
    assert_eq!(of_ip, sent - 4);
    assert!(number(&veth, "rx.truncated") > of_ip / 2, "{veth}");
    netobs_tests::kernel::assert_adds_up(&veth["rx"], "raw frames");
}

#[test]
fn the_programs_log_when_asked_and_only_then() {
    for (arguments, expected) in [(&["--log-programs"][..], true), (&[], false)] {
        let world = World::new(1);
        let mut command = netobs(Some(&world.host));
        command.args(["watch", "--no-engine", "--interval", "100ms", "--output", "json"]).args(arguments);
        command
            // Loading the object says more than a pipe holds that nobody reads.
            .env("NETOBS_LOG", "debug,aya=info,aya_obj=info")
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        let mut child = netobs_tests::netns::die_with_parent(&mut command).spawn().expect("start");
        let mut lines =
            std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().expect("a pipe")));
        assert!(lines.next().is_some());
        // An IPv4 header that ends after six bytes.
        let mut short = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 8, 0, 0x45];
        short.resize(20, 0);
        traffic::raw(&world.containers[0], "eth0", vec![short]);
        for _ in 0..5 {
            assert!(lines.next().is_some());
        }
        signal(
            // nsenter has become the program.
            child.id(),
            Signal::SIGTERM,
        );
        drop(lines);
        let output = child.wait_with_output().expect("its end");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(said.contains("packet of 20 bytes ends inside a header"), expected, "{said}");
    }
}

#[test]
fn what_passed_before_is_the_baseline() {
    let world = World::new(2);
    world.containers[0].sh("busybox ping -q -c 10 -i 0.05 10.77.0.11");
    let watch = watch(&world);
    world.containers[0].sh("busybox ping -q -c 5 -i 0.05 10.77.0.11");
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    let veth = watch.interface("veth0");
    assert_eq!(number(&veth, "rx.protocol.icmp.packets"), 5);
    assert!(number(&veth, "baseline.rx_packets") >= 10);
}

#[test]
fn the_end_that_moves_away_is_let_go() {
    for mode in attach_modes("the_end_that_moves_away_is_let_go") {
        let mut world = World::new(1);
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
        world.host.sh("ip link add moving0 type veth peer name moving1");
        watch.interface("moving0");
        watch.interface("moving1");
        let container = Netns::new();
        world.host.sh(&format!(
            "ip link set moving1 netns {}; ip link set moving0 master {BRIDGE} up",
            container.pid()
        ));
        container
            .sh("ip link set moving1 name eth0; ip addr add 10.77.0.99/24 dev eth0; ip link set eth0 up");
        watch.until("the moved end to be gone", |snapshot| {
            netobs_tests::program::interface(snapshot, "moving1").is_none().then_some(())
        });
        let left = container.sh("tc filter show dev eth0 ingress; tc filter show dev eth0 egress");
        assert_eq!(left, "", "filters on the end that moved");
        container.sh("busybox ping -q -c 5 -i 0.05 10.77.0.10");
        assert_exact(&world.host, &watch, &["moving0", "veth0", BRIDGE]);
        assert_eq!(number(&watch.interface("moving0"), "rx.protocol.icmp.packets"), 5, "{mode}");
        world.containers.push(container);
    }
}

#[test]
fn interfaces_come_and_go() {
    let mut world = World::new(1);
    let watch = watch(&world);
    world.add(Netns::new());
    watch.interface("veth1");
    world.containers[1].sh("busybox ping -q -c 3 -i 0.05 10.77.0.10");
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    // The same ifindex again, for another interface: it starts at nothing.
    let ifindex = number(&watch.interface("veth1"), "ifindex");
    world.host.sh("ip link del veth1");
    watch.until("veth1 to be gone", |snapshot| {
        netobs_tests::program::interface(snapshot, "veth1").is_none().then_some(())
    });
    world.host.sh(&format!("ip link add name again index {ifindex} type veth peer name other"));
    let again = watch.interface("again");
    assert_eq!((number(&again, "ifindex"), number(&again, "rx.packets")), (ifindex, 0));
    world.host.sh("ip link set again name renamed");
    watch.interface("renamed");
}

#[test]
fn ifindexes_above_a_hundred_thousand() {
    let world = World::new(1);
    let watch = watch(&world);
    let container = Netns::new();
    world.host.sh(&format!(
        "ip link add name far0 index 123456 type veth peer name eth0 netns {}; ip link set far0 master {BRIDGE} up",
        container.pid()
    ));
    container.sh("ip addr add 10.77.0.50/24 dev eth0; ip link set eth0 up");
    watch.interface("far0");
    container.sh("busybox ping -q -c 3 -i 0.05 10.77.0.10");
    assert_exact(&world.host, &watch, &["far0", "veth0"]);
}

#[test]
fn both_ways_of_attaching_count_the_same() {
    for mode in attach_modes("both_ways_of_attaching_count_the_same") {
        let world = World::new(2);
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
        world.containers[0].sh("busybox ping -q -c 5 -i 0.05 10.77.0.11");
        assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
        assert_eq!(number(&watch.interface("veth0"), "rx.protocol.icmp.packets"), 5, "{mode}");
    }
}

/// Filters of an interface, without the counters in them.
fn filters(host: &Netns, name: &str) -> String {
    host.sh(&format!(
        "tc qdisc show dev {name}; tc filter show dev {name} ingress; tc filter show dev {name} egress"
    ))
}

#[test]
fn others_filters_and_qdiscs_stay() {
    let world = World::new(2);
    // Our priority taken, and an ingress qdisc: no room for clsact. TCX it is, and it counts.
    let has_tcx = attach_modes("others_filters_and_qdiscs_stay").contains(&"tcx");
    let (priority, qdisc) = if has_tcx { (1, "ingress") } else { (2, "clsact") };
    world.host.sh(&format!(
        "tc qdisc add dev veth0 clsact; tc filter add dev veth0 ingress prio 5 u32 match u32 0 0 flowid 1:1; \
         tc filter add dev veth0 egress prio {priority} protocol ip u32 match u32 0 0 flowid 1:1; \
         tc qdisc add dev veth1 {qdisc}; tc filter add dev veth1 ingress prio 7 u32 match u32 0 0 flowid 1:1",
    ));
    let before = ["veth0", "veth1"].map(|name| filters(&world.host, name));
    let mut first = watch(&world);
    world.containers[0].sh("busybox ping -q -c 4 -i 0.05 10.77.0.11");
    assert_exact(&world.host, &first, &["veth0", "veth1", BRIDGE]);
    let (status, _) = first.terminate();
    assert!(status.success());
    assert_eq!(["veth0", "veth1"].map(|name| filters(&world.host, name)), before, "after SIGTERM");
    let mut second = watch(&world);
    second.kill();
    let mut third = watch(&world);
    world.containers[0].sh("busybox ping -q -c 4 -i 0.05 10.77.0.11");
    assert_exact(&world.host, &third, &["veth0", "veth1", BRIDGE]);
    third.terminate();
    assert_eq!(
        ["veth0", "veth1"].map(|name| filters(&world.host, name)),
        before,
        "after SIGKILL, a new start and its end"
    );
}

/// A host with two hundred and three interfaces to attach to.
fn crowded_world() -> World {
    let world = World::new(2);
    world.host.sh(
        "ip -batch - <<E\n$(for i in $(seq 100); do echo \"link add x$i type veth peer name y$i\"; done)\nE",
    );
    world
}

fn assert_nothing_is_left(host: &Netns) {
    let left = host.sh("for name in $(ip -o link | cut -d: -f2 | cut -d@ -f1); do
             tc filter show dev $name ingress; tc filter show dev $name egress; done");
    assert!(!left.contains("netobs"), "{left}");
}

#[test]
fn sigterm_detaches_everything_within_a_second() {
    let world = crowded_world();
    let mut agent = Agent::start_in(Some(&world.host), &["--no-engine"]);
    let port = agent.port;
    wait_for("an answer", LIMIT, || {
        world.host.run(move || http::get(port, "/healthz")).map_err(|error| error.to_string())
    });
    let (status, time) = agent.terminate();
    assert!(status.success(), "{status}");
    println!("detached in {time:?}");
    if kernel::release() >= (5, 16) {
        assert!(time < Duration::from_secs(1), "took {time:?}");
    } else {
        netobs_tests::skip(
            "sigterm_detaches_everything_within_a_second",
            "within a second: before 5.16 the kernel waits for RCU at each filter (mini_qdisc_pair_swap)",
        );
    }
    assert_nothing_is_left(&world.host);
}

#[test]
fn sigterm_while_it_starts_leaves_nothing() {
    let world = crowded_world();
    let mut agent = Agent::start_in(Some(&world.host), &["--no-engine"]);
    // The first of many.
    wait_for("a filter", LIMIT, || {
        let there = filters(&world.host, BRIDGE);
        if there.contains("netobs") { Ok(()) } else { Err(there) }
    });
    let (status, _) = agent.terminate();
    assert!(status.success(), "{status}");
    assert_nothing_is_left(&world.host);
}

/// As when its terminal is closed; but not where that is to be ignored.
#[test]
fn sighup_detaches_everything_too() {
    let world = World::new(2);
    let attached = || {
        wait_for("filters", LIMIT, || {
            let there = filters(&world.host, "veth1");
            if there.contains("netobs") { Ok(()) } else { Err(there) }
        });
    };
    // What these tests run under may ignore it itself.
    let command = |disposition: &str| {
        let mut command = world.host.command("env");
        command.arg(format!("--{disposition}-signal=HUP")).arg(binary());
        command
    };
    let mut watch = Watch::start_by(command("default"), &["--no-engine"]);
    attached();
    assert!(watch.end_by(Signal::SIGHUP).0.success());
    assert_nothing_is_left(&world.host);
    let mut agent = Agent::start_by(command("ignore"), 9810, &["--no-engine"]);
    attached();
    signal(agent.pid(), Signal::SIGHUP);
    wait_for("an answer", LIMIT, || {
        world.host.run(move || http::get(9810, "/healthz")).map_err(|error| error.to_string())
    });
    assert!(agent.terminate().0.success());
    assert_nothing_is_left(&world.host);
}

/// As when its reader has what it wanted, or its user.
#[test]
fn whoever_leaves_first_nothing_is_left() {
    let world = World::new(2);
    let is_there = || {
        let there = filters(&world.host, "veth1");
        if there.contains("netobs") { Ok(()) } else { Err(there) }
    };
    let mut command = netobs(Some(&world.host));
    command.args(["watch", "--no-engine", "--output", "csv", "--interval", "50ms"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start netobs watch");
    let mut reader = BufReader::new(child.stdout.take().expect("a pipe"));
    reader.read_line(&mut String::new()).expect("a line");
    wait_for("filters", LIMIT, is_there);
    drop(reader);
    assert!(child.wait().expect("its end").success());
    assert_nothing_is_left(&world.host);

    let terminal = Terminal::new();
    let command = format!(
        "PS1='prom''pt> '; nsenter --net -t {} {} watch --no-engine; echo code=$?",
        world.host.pid(),
        binary().display()
    );
    terminal.keys(&[&command, "Enter"]);
    terminal.shows("Enter detail");
    wait_for("filters", LIMIT, is_there);
    terminal.keys(&["q"]);
    terminal.shows("code=0");
    assert_nothing_is_left(&world.host);
}

#[test]
fn an_interface_that_vanishes_while_it_is_attached_harms_nothing() {
    let world = World::new(1);
    let watch = watch(&world);
    // Each is gone before or while it is attached to.
    world.host.sh(
        "for i in $(seq 100); do ip link add flash$i type veth peer name hsalf$i; ip link del flash$i; done",
    );
    world.containers[0].sh("busybox ping -q -c 3 -i 0.05 10.77.0.1");
    assert_exact(&world.host, &watch, &["veth0", BRIDGE]);
    let snapshot = watch.until("only what is there", |snapshot| {
        let names = snapshot["interfaces"].as_array()?;
        (names.len() == 2).then(|| snapshot.clone())
    });
    assert_eq!(snapshot["agent"]["unattached"].as_array().map(Vec::len), Some(0), "{}", snapshot["agent"]);
}

#[test]
fn more_interfaces_than_slots_are_named() {
    let world = World::new(3);
    let watch = Watch::start(Some(&world.host), &["--no-engine", "--max-interfaces", "2"]);
    let unattached = watch.fresh()["agent"]["unattached"].clone();
    assert_eq!(unattached.as_array().map(Vec::len), Some(2), "{unattached}");
    assert!(unattached.to_string().contains("--max-interfaces"), "{unattached}");
}
