//! Every network driver of a real engine: a test for each row of the table in `docs/networks.md`, exact counts.

use std::time::Duration;

use netobs_tests::{
    docker::{self, Container, Network, docker},
    kernel,
    netns::Netns,
    program::{LIMIT, Watch, container, number},
    row, traffic, unique, wait_for,
};
use serde_json::Value;

/// An interface of a container, by its network.
fn on_network(watch: &Watch, name: &str, network: &str, mut enough: impl FnMut(&Value) -> bool) -> Value {
    watch.until(&format!("{name} on {network}"), |snapshot| {
        let now = container(snapshot, name)?;
        let interfaces = now["interfaces"].as_array()?;
        interfaces.iter().find(|one| one["network"] == network && enough(one)).cloned()
    })
}

/// `ping` from one container to an address: ten of 98 bytes, and as many answers.
fn ten_pings(from: &Container, address: &str) {
    from.exec(&["ping", "-q", "-c", "10", "-i", "0.05", address]);
}

fn assert_ten(interface: &Value) {
    for direction in ["rx", "tx"] {
        assert_eq!(
            number(interface, &format!("{direction}.protocol.icmp.packets")),
            10,
            "{direction}: {interface}"
        );
        assert_eq!(
            number(interface, &format!("{direction}.protocol.icmp.bytes")),
            980,
            "{direction}: {interface}"
        );
    }
}

fn has_ten(interface: &Value) -> bool {
    number(interface, "rx.protocol.icmp.packets") >= 10 && number(interface, "tx.protocol.icmp.packets") >= 10
}

/// Two containers on a network made with these options ping each other.
fn pair(network: &Network, options: &[&str], observed: &str, kind: &str, driver: &str) {
    let mut arguments = vec!["--network", network.name.as_str()];
    arguments.extend(options);
    let (one, two) = (Container::run("one", &arguments), Container::run("two", &arguments));
    let watch = Watch::start(None, &[]);
    for container in [&one, &two] {
        on_network(&watch, &container.name, &network.name, |_| true);
    }
    ten_pings(&one, &two.address(&network.name));
    for container in [&one, &two] {
        let interface = on_network(&watch, &container.name, &network.name, has_ten);
        assert_ten(&interface);
        assert_eq!(interface["observed"], observed, "{interface}");
        assert_eq!(interface["kind"], kind, "{interface}");
        assert_eq!(interface["driver"], driver, "{interface}");
    }
}

#[test]
fn bridge_user_defined() {
    if !docker::available("bridge, user-defined") {
        return;
    }
    let plain = Network::new("plain", &[]);
    pair(&plain, &[], "host", "veth", "bridge");
    let bridge = format!("nbt{}", std::process::id());
    let name = format!("com.docker.network.bridge.name={bridge}");
    let options = ["--internal", "-o", name.as_str(), "-o", "com.docker.network.driver.mtu=1400"];
    let named = Network::new("named", &options);
    pair(&named, &[], "host", "veth", "bridge");
    row("bridge, user-defined", "10 pings both ways; a bridge of another name, internal, MTU 1400, too");
}

#[test]
fn bridge_with_ipv6() {
    if !docker::available("bridge with IPv6") {
        return;
    }
    let network = Network::new("six", &["--ipv6", "--subnet", "fd00:77::/64"]);
    let options = ["--network", network.name.as_str()];
    let (one, two) = (Container::run("six1", &options), Container::run("six2", &options));
    let watch = Watch::start(None, &[]);
    let address = two.inspect(&format!(
        "{{{{(index .NetworkSettings.Networks \"{}\").GlobalIPv6Address}}}}",
        network.name
    ));
    let interface = on_network(&watch, &one.name, &network.name, |_| true);
    assert!(interface["addresses"].to_string().contains("fd00:77::"), "{interface}");
    let before = number(&interface, "tx.ethertype.ipv6.packets");
    one.exec(&["ping", "-q", "-c", "5", "-i", "0.05", &address]);
    on_network(&watch, &two.name, &network.name, |now| number(now, "rx.protocol.icmpv6.packets") >= 5);
    let now = on_network(&watch, &one.name, &network.name, |now| {
        number(now, "tx.ethertype.ipv6.packets") >= before + 5
    });
    assert!(number(&now, "tx.protocol.icmpv6.bytes") >= 5 * 118, "{now}");
    row("bridge with IPv6", "pings over the network's IPv6 addresses");
}

/// The packets that each has sent and received add up to what the other container counted.
#[test]
fn host_network() {
    if !docker::available("host") {
        return;
    }
    let target = Container::run("target", &[]);
    let (one, two) =
        (Container::run("host1", &["--network", "host"]), Container::run("host2", &["--network", "host"]));
    let watch = Watch::start(None, &[]);
    for container in [&one, &two] {
        on_network(&watch, &container.name, "host", |now| now["observed"] == "cgroup");
    }
    let address = target.address("bridge");
    one.exec(&["ping", "-q", "-c", "5", "-i", "0.05", &address]);
    two.exec(&["ping", "-q", "-c", "9", "-i", "0.05", &address]);
    // The host's own.
    let own = std::process::Command::new("busybox")
        .args(["ping", "-q", "-c", "3", "-i", "0.05", &address])
        .output();
    assert!(own.expect("busybox").status.success());
    for (container, packets) in [(&one, 5), (&two, 9)] {
        let now = on_network(&watch, &container.name, "host", |now| {
            number(now, "rx.protocol.icmp.packets") >= packets
        });
        for direction in ["rx", "tx"] {
            assert_eq!(number(&now, &format!("{direction}.protocol.icmp.packets")), packets, "{now}");
            assert_eq!(
                number(&now, &format!("{direction}.bytes")),
                packets * 84,
                "from the IP header on: {now}"
            );
        }
        assert!(now["before"].is_null(), "what was before is not known: {now}");
    }
    let all = on_network(&watch, &target.name, "bridge", |now| number(now, "rx.protocol.icmp.packets") >= 17);
    assert_eq!(number(&all, "rx.protocol.icmp.packets"), 5 + 9 + 3, "both, and the host's own");
    row("host", "two containers by cgroup: 5 and 9 of the 17 that arrived, the host's own 3 in neither");
}

#[test]
fn none_and_shared() {
    if !docker::available("none") {
        return;
    }
    let isolated = Container::run("isolated", &["--network", "none"]);
    let owner = Container::run("owner", &[]);
    let sharing = Container::run("sharing", &["--network", &format!("container:{}", owner.name)]);
    let target = Container::run("shared-target", &[]);
    let watch = Watch::start(None, &[]);
    let now = watch.container(&isolated.name);
    assert_eq!(now["interfaces"], serde_json::json!([]), "{now}");
    assert!(now["unobserved"].as_str().is_some_and(|why| why.contains("isolated")), "{now}");
    row("none", "a row that says isolated, no interfaces");
    watch.container(&sharing.name);
    on_network(&watch, &owner.name, "bridge", |_| true);
    ten_pings(&sharing, &target.address("bridge"));
    assert_ten(&on_network(&watch, &owner.name, "bridge", has_ten));
    let shared = watch.container(&sharing.name);
    assert_eq!(shared["interfaces"], serde_json::json!([]), "counted once: {shared}");
    let owner_now = watch.container(&owner.name);
    assert_eq!(owner_now["members"], serde_json::json!([sharing.name]));
    assert_eq!(owner_now["namespace"], shared["namespace"]);
    row("container:NAME", "10 pings of the member, once, on the owner, with the member's name");
}

/// An interface of the host that macvlan networks can be on, gone with the value.
struct Parent(String);

impl Parent {
    fn new() -> Self {
        let name = format!("nbp{}", std::process::id());
        host(&format!(
            "ip link add {name} type veth peer name {name}x; ip link set {name} up; ip link set {name}x up"
        ));
        Self(name)
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        let _ = std::process::Command::new("sh")
            .args(["-c", &format!("PATH=$PATH:/sbin:/usr/sbin ip link del {}", self.0)])
            .status();
    }
}

fn host(script: &str) {
    let script = format!("PATH=$PATH:/sbin:/usr/sbin; set -e; {script}");
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().expect("sh").success());
}

#[test]
fn macvlan() {
    if !docker::available("macvlan") {
        return;
    }
    let parent = Parent::new();
    let on = format!("parent={}", parent.0);
    let network = Network::new("mac", &["-d", "macvlan", "--subnet", "10.199.7.0/24", "-o", on.as_str()]);
    pair(&network, &[], "inside", "macvlan", "macvlan");
    // Short-lived ones are found by the move of their interface, before any engine says a word.
    let target = Container::run("mactarget", &["--network", &network.name]);
    let watch = Watch::start(None, &[]);
    on_network(&watch, &target.name, &network.name, |_| true);
    let name = unique("macshort");
    docker(&[
        "run",
        "--rm",
        "--name",
        &name,
        "--network",
        &network.name,
        docker::IMAGE,
        "ping",
        "-q",
        "-c",
        "10",
        "-i",
        "0.02",
        &target.address(&network.name),
    ]);
    let ended = watch.until("the end of a short life", |snapshot| {
        container(snapshot, &name).filter(|now| now["state"] == "removed" && !now["interfaces"][0].is_null())
    });
    let interface = &ended["interfaces"][0];
    let before = number(interface, "before.tx_packets");
    assert!(number(interface, "tx.packets") + before >= 10, "all of it is told: {ended}");
    row("macvlan", "10 pings both ways inside the containers' namespaces; a container of 200 ms");
}

/// A swarm that the engine is in: the one that it is in anyway, or one of one node, left when the value goes.
struct Swarm {
    own: bool,
}

impl Swarm {
    fn new() -> Self {
        let own = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]) != "active";
        if own {
            let pool = "--default-addr-pool=10.201.0.0/16";
            docker(&["swarm", "init", "--advertise-addr", "127.0.0.1", pool]);
        }
        Self { own }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        if self.own {
            docker::try_docker(&["swarm", "leave", "--force"]);
            docker::try_docker(&["network", "rm", "docker_gwbridge"]);
        }
    }
}

#[test]
fn overlay() {
    if !docker::available("overlay") {
        return;
    }
    let _swarm = Swarm::new();
    let network = Network::new("over", &["-d", "overlay", "--attachable"]);
    let options = ["--network", network.name.as_str()];
    let (one, two) = (Container::run("over1", &options), Container::run("over2", &options));
    let watch = Watch::start(None, &[]);
    for container in [&one, &two] {
        on_network(&watch, &container.name, &network.name, |_| true);
    }
    ten_pings(&one, &two.address(&network.name));
    for container in [&one, &two] {
        let overlay = on_network(&watch, &container.name, &network.name, has_ten);
        assert_ten(&overlay);
        assert_eq!(
            (&overlay["observed"], &overlay["driver"]),
            (&"inside".into(), &"overlay".into()),
            "{overlay}"
        );
        let gateway = on_network(&watch, &container.name, "docker_gwbridge", |_| true);
        assert_eq!(
            (&gateway["observed"], &gateway["driver"]),
            (&"host".into(), &"bridge".into()),
            "{gateway}"
        );
        assert_eq!(number(&gateway, "tx.protocol.icmp.packets"), 0, "{gateway}");
    }
    // Out of the overlay, by the other leg alone.
    let gateway =
        docker(&["network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "docker_gwbridge"]);
    ten_pings(&one, &gateway);
    assert_ten(&on_network(&watch, &one.name, "docker_gwbridge", has_ten));
    assert_ten(&on_network(&watch, &one.name, &network.name, has_ten));
    row(
        "overlay",
        "10 pings on the overlay's interface, observed inside; 10 on its docker_gwbridge leg, from the host",
    );
    drop((one, two));
}

#[test]
fn published_ports() {
    if !docker::available("published ports") {
        return;
    }
    let server = Container::run_command(
        "published",
        &["-p", "127.0.0.1::80", "-p", "0.0.0.0::80"],
        &["sh", "-c", "echo page > /www/index.html; httpd -f -p 80 -h /www"],
    );
    let watch = Watch::start(None, &[]);
    let port =
        |snapshot: &Value| container(snapshot, &server.name)?["published"].as_array()?.first().cloned();
    let first =
        watch.until("the published port", |snapshot| port(snapshot).filter(|one| !one["traffic"].is_null()));
    assert_eq!((&first["container_port"], &first["protocol"]), (&80.into(), &"tcp".into()));
    let bindings = first["bindings"].as_array().expect("bindings").clone();
    let on_loopback = bindings.iter().find(|one| one["address"] == "127.0.0.1").expect("a binding");
    let on_any = bindings.iter().find(|one| one["address"] == "0.0.0.0").expect("a binding");

    // From elsewhere: a namespace that the host routes for. Docker translates the address, the client stays.
    let client = Netns::new();
    let veth = format!("nbc{}", std::process::id());
    host(&format!(
        "ip link add {veth} type veth peer name eth0 netns {}; ip addr add 10.77.9.1/24 dev {veth}; ip link set {veth} up",
        client.pid()
    ));
    client.sh("ip addr add 10.77.9.2/24 dev eth0; ip link set eth0 up");
    let fetched = client.sh(&format!("busybox wget -q -O - http://10.77.9.1:{}/", on_any["port"]));
    assert_eq!(fetched, "page\n");
    let by_client = watch.until("the client", |snapshot| {
        let port = port(snapshot)?;
        let clients = port["traffic"]["clients"].as_array()?;
        clients.iter().find(|one| one["address"] == "10.77.9.2" && number(one, "tx_bytes") > 0).cloned()
    });
    assert_eq!(by_client["via"], "client", "{by_client}");

    // From the host by loopback: by the engine's proxy, where the engine runs one.
    let url = format!("http://127.0.0.1:{}/", on_loopback["port"]);
    let output = std::process::Command::new("busybox")
        .args(["wget", "-q", "-O", "-", &url])
        .output()
        .expect("busybox");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "page\n");
    let by_proxy = watch.until("docker-proxy", |snapshot| {
        let via = port(snapshot)?["traffic"]["via"]["docker-proxy"].clone();
        (via.is_object() && number(&via, "tx_bytes") > 0).then_some(via)
    });
    assert!(number(&by_proxy, "rx_packets") >= 3, "{by_proxy}");

    // From the host by its own address: translated as well, and the host is who it is.
    let url = format!("http://10.77.9.1:{}/", on_any["port"]);
    let output = std::process::Command::new("busybox").args(["wget", "-q", "-O", "-", &url]).output();
    assert_eq!(String::from_utf8_lossy(&output.expect("busybox").stdout), "page\n");
    let by_host = watch.until("the host", |snapshot| {
        let via = port(snapshot)?["traffic"]["via"]["host"].clone();
        (via.is_object() && number(&via, "tx_bytes") > 0).then_some(via)
    });
    assert!(number(&by_host, "rx_packets") >= 3, "{by_host}");

    // All TCP of this container is on that port: not one packet more or less.
    let (ways, all) = wait_for("quiet", LIMIT, || {
        let snapshot = watch.fresh();
        let now = container(&snapshot, &server.name).ok_or("gone")?;
        let via = now["published"][0]["traffic"]["via"].as_object().ok_or("no traffic")?.clone();
        let sum = |field: &str| via.values().map(|way| number(way, field)).sum::<u64>();
        let ways = [sum("rx_packets"), sum("rx_bytes"), sum("tx_packets"), sum("tx_bytes")];
        let all = [
            "rx.protocol.tcp.packets",
            "rx.protocol.tcp.bytes",
            "tx.protocol.tcp.packets",
            "tx.protocol.tcp.bytes",
        ]
        .map(|field| number(&now, field));
        if ways == all { Ok((ways, all)) } else { Err(format!("{ways:?} of {all:?}")) }
    });
    assert_eq!(ways, all);
    let now = watch.container(&server.name);
    let classes = now["classes"].as_array().expect("classes").iter();
    let by_class = |part: &&Value| part["class"] == "published_port";
    let published: Vec<u64> = classes.filter(by_class).map(|part| number(part, "rx.packets")).collect();
    assert_eq!(published.iter().sum::<u64>(), all[0], "and of one class: {now}");
    row(
        "published ports",
        "the real client by address, docker-proxy by name; together all TCP of the container",
    );
}

#[test]
fn published_udp_ports() {
    if !docker::available("published UDP ports") {
        return;
    }
    const CLIENTS: u64 = 7;
    const PROXIED: u64 = 5;
    const PAYLOAD: usize = 100;
    let server = Container::run(
        "published-udp",
        &["-p", "127.0.0.1::80/udp", "-p", "0.0.0.0::80/udp", "-p", "127.0.0.1::80/tcp"],
    );
    let pid: u32 = server.inspect("{{.State.Pid}}").parse().expect("a process");
    let _echo = traffic::Echo::start(pid, "0.0.0.0:80".parse().expect("an address"));
    let watch = Watch::start(None, &[]);
    // The same number is a port of its own for each protocol.
    let port = |snapshot: &Value, protocol: &str| {
        let all = container(snapshot, &server.name)?["published"].as_array()?.clone();
        all.into_iter().find(|one| one["protocol"] == protocol && !one["traffic"].is_null())
    };
    let first = watch.until("the published port", |snapshot| port(snapshot, "udp"));
    assert_eq!(first["container_port"], 80);
    let host_port = |address: &str| {
        let bindings = first["bindings"].as_array().expect("bindings");
        let binding = bindings.iter().find(|one| one["address"] == address).expect("a binding");
        u16::try_from(number(binding, "port")).expect("a port")
    };
    let (on_any, on_loopback) = (host_port("0.0.0.0"), host_port("127.0.0.1"));

    // From elsewhere, by address translation; from the host's loopback, by the engine's proxy.
    let client = Netns::new();
    let veth = format!("nbu{}", std::process::id());
    host(&format!(
        "ip link add {veth} type veth peer name eth0 netns {}; ip addr add 10.77.8.1/24 dev {veth}; ip link set {veth} up",
        client.pid()
    ));
    client.sh("ip addr add 10.77.8.2/24 dev eth0; ip link set eth0 up");
    client.run(move || traffic::echoed(([10, 77, 8, 1], on_any).into(), CLIENTS, PAYLOAD));
    traffic::echoed(([127, 0, 0, 1], on_loopback).into(), PROXIED, PAYLOAD);

    let fields = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"];
    let told = |of: &Value| fields.map(|field| number(of, field));
    // Ethernet, IPv4 and UDP headers.
    let expected = |count: u64| [count, count * (PAYLOAD as u64 + 42), count, count * (PAYLOAD as u64 + 42)];
    let now = wait_for("all of it", LIMIT, || {
        let snapshot = watch.fresh();
        let udp = port(&snapshot, "udp").ok_or("no port")?;
        let via = &udp["traffic"]["via"];
        let ways = ["client", "docker-proxy"].map(|way| told(&via[way]));
        if ways == [expected(CLIENTS), expected(PROXIED)] { Ok(snapshot) } else { Err(format!("{udp}")) }
    });
    let udp = port(&now, "udp").expect("the port");
    assert_eq!(udp["traffic"]["via"].as_object().expect("ways").len(), 2, "{udp}");
    let clients = udp["traffic"]["clients"].as_array().expect("clients");
    let from_elsewhere = clients.iter().find(|one| one["address"] == "10.77.8.2").expect("the client");
    assert_eq!((told(from_elsewhere), &from_elsewhere["via"]), (expected(CLIENTS), &"client".into()));
    let tcp = port(&now, "tcp").expect("the other port");
    assert!(tcp["traffic"]["via"].as_object().expect("ways").is_empty(), "{tcp}");
    let of = container(&now, &server.name).expect("the container");
    assert_eq!(number(&of, "rx.protocol.udp.packets"), CLIENTS + PROXIED, "{of}");
    row("published UDP ports", "datagram by datagram: the real client by address, docker-proxy by name");
}

#[test]
fn a_hundred_short_lived_containers_in_a_row() {
    if !docker::available("short-lived") {
        return;
    }
    const CONTAINERS: u64 = 100;
    let target = Container::run("target", &[]);
    let watch = Watch::start(None, &[]);
    watch.container(&target.name);
    let address = target.address("bridge");
    let prefix = unique("short");
    for n in 0..CONTAINERS {
        let name = format!("{prefix}-{n}");
        docker(&[
            "run",
            "--rm",
            "--name",
            &name,
            docker::IMAGE,
            "ping",
            "-q",
            "-c",
            "10",
            "-i",
            "0.02",
            &address,
        ]);
    }
    let (containers, sent, received) = wait_for("all of them", Duration::from_secs(30), || {
        let snapshot = watch.fresh();
        let empty = Vec::new();
        let all = snapshot["containers"].as_array().unwrap_or(&empty);
        let ours: Vec<&Value> = all
            .iter()
            .filter(|one| one["name"].as_str().is_some_and(|name| name.starts_with(&prefix)))
            .collect();
        let sum = |field: &str| ours.iter().map(|one| number(one, field)).sum::<u64>();
        let now = (ours.len() as u64, sum("tx.protocol.icmp.packets"), sum("rx.protocol.icmp.packets"));
        let late = ours.iter().filter(|one| number(one, "tx.protocol.icmp.packets") != 10).map(|one| {
            let before = &one["interfaces"][0]["before"];
            format!("{} sent {}, before {before}", one["name"], one["tx"]["protocol"]["icmp"]["packets"])
        });
        if now == (CONTAINERS, 10 * CONTAINERS, 10 * CONTAINERS) {
            Ok(now)
        } else {
            Err(format!("{now:?} {:?}", late.collect::<Vec<_>>()))
        }
    });
    assert_eq!((containers, sent, received), (CONTAINERS, 1000, 1000));
    row("short-lived", "a hundred containers of ten packets each: 1,000 of 1,000");
}

#[test]
fn pause_kill_and_the_same_name_again() {
    if !docker::available("lifecycle") {
        return;
    }
    let target = Container::run("life-target", &[]);
    let first = Container::run("life", &[]);
    let watch = Watch::start(None, &[]);
    let state = |name: &str, state: &str| {
        watch.until(&format!("{name} to be {state}"), |snapshot| {
            container(snapshot, name).filter(|now| now["state"] == state)
        })
    };
    state(&first.name, "running");
    let address = target.address("bridge");
    ten_pings(&first, &address);
    docker(&["pause", &first.name]);
    assert_eq!(state(&first.name, "paused")["id"], first.id.as_str());
    docker(&["unpause", &first.name]);
    state(&first.name, "running");
    assert_ten(&on_network(&watch, &first.name, "bridge", has_ten));
    docker(&["kill", &first.name]);
    let killed = state(&first.name, "exited");
    assert_eq!(number(&killed, "tx.protocol.icmp.packets"), 10, "{killed}");
    docker(&["rm", &first.name]);
    docker(&["run", "-d", "--name", &first.name, docker::IMAGE, "sleep", "1000"]);
    let again = watch.until("the new one beside the old", |snapshot| {
        let both: Vec<Value> = snapshot["containers"]
            .as_array()?
            .iter()
            .filter(|one| one["name"] == first.name.as_str())
            .cloned()
            .collect();
        let new =
            both.iter().find(|one| one["id"] != first.id.as_str() && one["state"] == "running")?.clone();
        (both.len() == 2).then_some(new)
    });
    assert_eq!(number(&again, "tx.protocol.icmp.packets"), 0, "another container, other counters: {again}");
    row("lifecycle", "pause, unpause, kill, rm, and the same name again: each container its own counters");
}

/// What the kernel counts on the host's ends is what netobs says, over all drivers that have one.
#[test]
fn bridge_default() {
    if !docker::available("bridge") {
        return;
    }
    let (one, two) = (Container::run("default1", &[]), Container::run("default2", &[]));
    let watch = Watch::start(None, &[]);
    on_network(&watch, &two.name, "bridge", |_| true);
    let veth = on_network(&watch, &one.name, "bridge", |_| true)["host_interface"]
        .as_str()
        .expect("a veth")
        .to_owned();
    ten_pings(&one, &two.address("bridge"));
    assert_ten(&on_network(&watch, &one.name, "bridge", has_ten));
    wait_for("quiet", LIMIT, || {
        let before = kernel::own_link(&veth);
        let ours = kernel::expected(&watch.interface(&veth));
        if ours == before { Ok(()) } else { Err(format!("netobs {ours:?}, kernel {before:?}")) }
    });
    row("bridge (default)", "10 pings both ways, equal to the kernel's counters of the veth");
}

/// Scenario 9: IPv6, a tagged frame, jumbo frames, and packets of which the kernel makes many at the end; each as the
/// kernel counts it at the veth.
#[test]
fn scenario_9_what_else_passes() {
    if !docker::available("scenario 9") {
        return;
    }
    let options = ["--ipv6", "--subnet", "fd00:79::/64", "-o", "com.docker.network.driver.mtu=9000"];
    let network = Network::new("nine", &options);
    let on = ["--network", network.name.as_str()];
    let script = "dd if=/dev/zero of=/www/index.html bs=1000000 count=20 && httpd -f -p 80 -h /www";
    let server = Container::run_command("nine1", &on, &["sh", "-c", script]);
    let client = Container::run("nine2", &on);
    let watch = Watch::start(None, &[]);
    let veth_of = |container: &Container| {
        let now = on_network(&watch, &container.name, &network.name, |_| true);
        now["host_interface"].as_str().expect("a veth").to_owned()
    };
    let veths = [veth_of(&server), veth_of(&client)];
    let of_client = |enough: &dyn Fn(&Value) -> bool| on_network(&watch, &client.name, &network.name, enough);
    let before = of_client(&|_| true);
    let more = |now: &Value, field: &str| number(now, field) - number(&before, field);

    let six = server.inspect(&format!(
        "{{{{(index .NetworkSettings.Networks \"{}\").GlobalIPv6Address}}}}",
        network.name
    ));
    client.exec(&["ping", "-q", "-c", "5", "-i", "0.05", "-s", "1000", &six]);
    client.exec(&["ping", "-q", "-c", "3", "-i", "0.05", "-s", "8000", &server.address(&network.name)]);
    let pid: u32 = client.inspect("{{.State.Pid}}").trim().parse().expect("a process");
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("a namespace");
        nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET).expect("enter it");
        let mut tagged = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x81, 0, 0, 5];
        tagged.extend([0x88, 0xb5]);
        tagged.resize(60, 0);
        traffic::raw_here("eth0", &vec![tagged; 4]);
    })
    .join()
    .expect("the sender");
    let address = server.address(&network.name);
    wait_for("the file", LIMIT, || {
        let url = format!("http://{address}/");
        let output = docker::try_docker(&["exec", &client.name, "wget", "-q", "-O", "/dev/null", &url]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    // To the packet and the byte, both directions, at both ends. The sender's veth counts a frame with its tag, which
    // is no longer in it when the programs see it.
    for (veth, tags) in veths.iter().zip([0, 4]) {
        wait_for("what the kernel has", LIMIT, || {
            let kernel = kernel::own_link(veth);
            let mut ours = kernel::expected(&watch.interface(veth));
            ours.rx_bytes += 4 * tags;
            if ours == kernel { Ok(()) } else { Err(format!("netobs {ours:?}, kernel {kernel:?}")) }
        });
    }
    let now = of_client(&|now| number(now, "rx.protocol.tcp.bytes") > 20_000_000);
    assert_eq!(more(&now, "tx.ethertype.vlan.packets"), 4, "{now}");
    // Ethernet, IPv6, ICMPv6 and what it carries; and of 8,042 bytes the echo requests.
    let large = |field: &str| number(&now, field);
    assert_eq!(more(&now, "tx.size.5"), 5, "1,062 bytes: {now}");
    assert_eq!(more(&now, "tx.protocol.icmp.packets"), 3, "{now}");
    assert_eq!(more(&now, "tx.protocol.icmp.bytes"), 3 * 8042, "{now}");
    assert!(large("rx.wire_packets") > large("rx.packets"), "super-packets: {now}");
    let sum: u64 = (0..9).map(|size| large(&format!("rx.size.{size}"))).sum();
    assert_eq!(sum, large("rx.wire_packets"), "{now}");
    row(
        "scenario 9",
        "IPv6, a tagged frame, jumbo and super-packets, equal to the kernel's counters of both veths",
    );
}
