//! What the running kernel has: netobs loads, attaches, counts exactly, and every feature works, or is not there for
//! a known reason. Without an engine; `cargo xtask vm --kernel all --test kernel` makes README's table of it.

use std::net::{SocketAddr, UdpSocket};

use netobs_tests::{
    bridged::Bridged,
    dns,
    drops::{self, Drops, packets, reason},
    frames, kernel,
    netns::Netns,
    pretend::Pretend,
    program::{self, LIMIT, Watch, binary, container, number, unless_left_out},
    row,
    trace::Trace,
    traffic, wait_for,
};
use serde_json::Value;

const OPTIONS: [&str; 2] = ["--no-engine", "--grace=60s"];
const BRIDGE: &str = "br-kernel";

fn address(port: u16) -> SocketAddr {
    format!("10.83.0.11:{port}").parse().expect("an address")
}

/// UDP, TCP with super-packets, ping: each interface equal to the kernel's counters.
fn counts_exactly(mode: &str) {
    let world = Bridged::new(BRIDGE, "10.83.0", [10, 11]);
    let watch = world.watch(&[&OPTIONS[..], &["--attach", mode]].concat());
    world.netns(0).sh("busybox ping -q -c 5 -i 0.05 10.83.0.11");
    traffic::udp(world.netns(0), world.netns(1), address(4000), 500, 64);
    traffic::tcp(world.netns(0), world.netns(1), address(4001), 4 << 20);
    kernel::assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    let sent = container(&watch.fresh(), world.name(0)).expect("there");
    assert_eq!(number(&sent, "tx.protocol.icmp.packets"), 5, "{sent}");
    assert_eq!(number(&sent, "tx.protocol.udp.packets"), 500, "{sent}");
    assert!(
        number(&sent, "tx.wire_packets") > number(&sent, "tx.packets"),
        "super-packets are unfolded: {sent}"
    );
    // All of it by its class, too, and nothing beside.
    let classes = sent["classes"].as_array().expect("classes");
    let by_class: u64 = classes.iter().map(|class| number(class, "tx.packets")).sum();
    assert_eq!(by_class, number(&sent, "tx.ethertype.ipv4.packets"), "{sent}");
}

/// What is chosen where there is traffic: a link, or what this kernel has instead.
fn attaches_where_there_is_traffic(has_tcx: bool) {
    let world = Bridged::new(BRIDGE, "10.83.0", [10, 11]);
    let load = traffic::flood(world.netns(0), address(4000));
    let watch = world.watch(&OPTIONS);
    watch.until("the load", |snapshot| {
        (number(&container(snapshot, world.name(1))?, "rx.protocol.udp.packets") > 1000).then_some(())
    });
    drop(load);
    // What passed while the kernel's counters were read is uncertain, and said to be; what the kernel dropped behind
    // the count, where more came than the receiver took, is no difference. From then on it is exact.
    let counted = || {
        wait_for("packets to stop", LIMIT, || {
            let kernel =
                || (kernel::link(&world.host, "veth1").tx_packets, kernel::tx_dropped(&world.host, "veth1"));
            let (sent, dropped) = kernel();
            let interface = program::interface(&watch.fresh(), "veth1").ok_or("not attached")?;
            if kernel() != (sent, dropped) {
                return Err("packets still pass".to_owned());
            }
            let [before, counted, udp, uncertain] = [
                "baseline.tx_packets",
                "tx.packets",
                "tx.protocol.udp.packets",
                "baseline.uncertain_packets",
            ]
            .map(|path| number(&interface, path));
            let uncounted = (sent + dropped).checked_sub(before + counted);
            let uncounted = uncounted.filter(|packets| *packets <= uncertain + dropped);
            Ok((uncounted.ok_or_else(|| format!("{sent} sent, {dropped} dropped: {interface}"))?, udp))
        })
    };
    let (uncounted, udp) = counted();
    traffic::udp(world.netns(0), world.netns(1), address(4001), 500, 64);
    assert_eq!(counted(), (uncounted, udp + 500));
    let filters = world.host.sh("tc filter show dev veth1 egress").contains(" netobs ");
    assert_eq!(filters, !has_tcx, "a filter");
}

/// By TCX, which this kernel has or has not: it is not attached then, and that is said.
fn by_tcx() -> bool {
    if kernel::release() >= (6, 6) {
        counts_exactly("tcx");
        return true;
    }
    let world = Bridged::new(BRIDGE, "10.83.0", []);
    let watch = Watch::start(Some(&world.host), &[&OPTIONS[..], &["--attach", "tcx"]].concat());
    watch.until("that it is not attached", |snapshot| {
        snapshot["agent"]["unattached"].to_string().contains(BRIDGE).then_some(())
    });
    false
}

/// DNS, ARP, TCP connections, source MAC addresses.
fn tells_of_messages_and_connections() {
    let world = Bridged::new(BRIDGE, "10.83.0", [10, 11]);
    let watch = world.watch(&OPTIONS);
    assert_eq!(watch.fresh()["agent"]["degraded"], serde_json::json!([]), "all of it works here");
    let _server = dns::Server::start(world.netns(1), address(53));
    world.netns(0).run(|| {
        let socket = UdpSocket::bind("10.83.0.10:0").expect("bind");
        socket.send_to(&dns::query(7, "a.example"), address(53)).expect("send");
    });
    let _tcp_server = dns::TcpServer::start(world.netns(1), address(53));
    dns::TcpClient::connect(world.netns(0), address(53)).ask(&["long", "nowhere"]);
    traffic::tcp(world.netns(0), world.netns(1), address(4001), 1000);
    let frame = frames::ethernet(0x88b5, &[0; 46]);
    traffic::raw(world.netns(0), "eth0", vec![frame; 3]);
    watch.until("all of it", |snapshot| {
        let (client, server) = (container(snapshot, world.name(0))?, container(snapshot, world.name(1))?);
        let connected = &client["tcp"]["connections"]["client_handshake"]["buckets"];
        let connected: u64 = connected.as_array()?.iter().filter_map(Value::as_u64).sum();
        let told = [
            number(&client, "arp.requests_tx") >= 1,
            dns::messages(&client, "client", "wire").is_some_and(|messages| {
                let queries = ["queries", "tcp_queries"].map(|part| number(&messages, part));
                let responses = serde_json::json!({"NOERROR": 2, "NXDOMAIN": 1});
                queries == [3, 2] && messages["responses"] == responses
            }),
            number(&client, "dns.unread_segments") == 0,
            connected + number(&client, "tcp.connections.client_handshake.unmeasured") == 2,
            number(&client, "foreign_mac.packets") == 3,
            number(&server, "rx.ethertype.other.packets") == 3,
        ];
        told.iter().all(|told| *told).then_some(())
    });
}

/// Macvlan inside, and a container on the host's network by its cgroup.
fn counts_where_the_host_has_no_interface() {
    let (host, peer) = (Netns::new(), Netns::new());
    host.sh(&format!(
        "ip link add parent type veth peer name eth0 netns {}; ip addr add 10.83.2.1/24 dev parent; ip link set parent up",
        peer.pid()
    ));
    peer.sh("ip addr add 10.83.2.2/24 dev eth0; ip link set eth0 up");
    let (inside, on_host) = (Pretend::new(), Pretend::on_host(&host));
    host.sh(&format!(
        "ip link add link parent name new0 type macvlan mode bridge; ip link set new0 netns {}",
        inside.netns().pid()
    ));
    inside.netns().sh("ip link set new0 name eth0; ip addr add 10.83.1.1/24 dev eth0; ip link set eth0 up");
    let watch = Watch::start(Some(&host), &OPTIONS);
    for container_name in [inside.name(), on_host.name()] {
        watch.until("its interface", |snapshot| {
            (container(snapshot, container_name)?["interfaces"].as_array()?.len() == 1).then_some(())
        });
    }
    traffic::raw(inside.netns(), "eth0", vec![frames::ethernet(0x88b5, &[0; 46]); 4]);
    on_host.sh(&host, "busybox ping -q -c 3 -i 0.05 10.83.2.2");
    watch.until("both", |snapshot| {
        let (one, two) = (container(snapshot, inside.name())?, container(snapshot, on_host.name())?);
        let counted = number(&one, "tx.ethertype.other.packets") == 4
            && number(&two, "tx.protocol.icmp.packets") == 3
            && number(&two, "rx.protocol.icmp.packets") == 3;
        counted.then_some(())
    });
}

/// A datagram that nobody takes, with the reason where the kernel gives any.
fn tells_of_drops() {
    let world = Bridged::new(BRIDGE, "10.83.0", [10, 11]);
    world.netns(0).sh("busybox ping -q -c 1 10.83.0.11");
    let mut dropped = Drops::start(Some(&world.host), &["--no-engine", "--output", "json", "--for", "6s"]);
    dropped.looking();
    world.netns(0).run(|| {
        let socket = UdpSocket::bind("10.83.0.10:0").expect("bind");
        for port in 5000..5007 {
            socket.send_to(b"drop me", address(port)).expect("send");
        }
    });
    let report: Value = serde_json::from_str(&dropped.output()).expect("JSON");
    let ours = drops::rows(&report, |row| {
        row["reason"] == reason("NO_SOCKET") && row["source"]["container_id"] == *world.containers[0].id
    });
    assert_eq!(packets(&ours), 7, "{report}");
}

fn traces() {
    let world = Bridged::new(BRIDGE, "10.83.0", [10, 11]);
    let only = ["--no-engine", "--output", "json", "--proto", "udp", "--port", "4000", world.name(0)];
    let trace = Trace::start(Some(&world.host), &only);
    trace.attached(&world.host, &["veth0"]);
    for port in [4000, 4001] {
        traffic::udp(world.netns(0), world.netns(1), address(port), 20, 64);
    }
    wait_for("its packets", LIMIT, || match trace.lines_so_far() {
        20 => Ok(()),
        other => Err(other.to_string()),
    });
    let traced = trace.terminate();
    assert_eq!((traced.counts().matched, traced.json().len()), (20, 20));
}

/// Before 5.11 maps count as locked memory: that it is limited is said, where the limit cannot be lifted.
fn has_memory_to_lock() {
    let world = Bridged::new(BRIDGE, "10.83.0", []);
    let watch = |bounding_set: &str, limit: &str| {
        let script = format!(
            "ulimit -l {limit} && exec setpriv --bounding-set {bounding_set} \"$0\" watch --once --no-engine"
        );
        let output = world.host.command("sh").args(["-c", &script]).arg(binary()).output().expect("run sh");
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (started, error) = watch("-sys_resource", "64");
    if kernel::release() >= (5, 11) {
        assert!(started, "{error}");
        return;
    }
    assert!(!started, "{error}");
    for part in ["locked memory", "ulimit -l unlimited", "CAP_SYS_RESOURCE"] {
        assert!(error.contains(part), "{error}");
    }
    for (bounding_set, limit) in [("-sys_resource", "unlimited"), ("-chown", "64")] {
        let (started, error) = watch(bounding_set, limit);
        assert!(started, "{bounding_set} {limit}: {error}");
    }
}

#[test]
fn what_this_kernel_has() {
    has_memory_to_lock();
    counts_exactly("clsact");
    counts_exactly("auto");
    let tcx = by_tcx();
    attaches_where_there_is_traffic(tcx);
    unless_left_out(tells_of_messages_and_connections);
    counts_where_the_host_has_no_interface();
    tells_of_drops();
    traces();
    let attach = if tcx { "clsact, TCX" } else { "clsact" };
    let drops = if drops::has_reasons() { "by reason" } else { "without reasons" };
    row("kernel", &format!("{attach} | yes | yes | yes | {drops} | yes"));
}
