//! Podman by its Docker-compatible socket: bridge networks and pods, exact counts.

use std::{fs, path::PathBuf, process::Command};

use netobs_tests::{
    docker, kernel,
    netns::Netns,
    podman::{self, Container, Podman},
    program::{self, LIMIT, Watch, container, network, number},
    proxy::Proxy,
    row, unique, wait_for,
};
use serde_json::{Value, json};

fn watch(podman: &Podman) -> Watch {
    Watch::start(None, &["--engine", &podman.endpoint()])
}

fn ping(from: &Container, count: u64, address: &str) {
    from.exec(&["ping", "-q", "-c", &count.to_string(), "-i", "0.05", address]);
}

/// A container's interface on a network, as soon as that many pings of 98 bytes passed it each way; more are
/// an error.
fn pinged(watch: &Watch, name: &str, network: &str, count: u64) -> Value {
    let interface = watch.until(&format!("{count} pings of {name} on {network}"), |snapshot| {
        let now = container(snapshot, name)?;
        let interface = now["interfaces"].as_array()?.iter().find(|one| one["network"] == network)?.clone();
        let packets = |direction: &str| number(&interface, &format!("{direction}.protocol.icmp.packets"));
        (packets("rx") >= count && packets("tx") >= count).then_some(interface)
    });
    for direction in ["rx", "tx"] {
        let of = |unit: &str| number(&interface, &format!("{direction}.protocol.icmp.{unit}"));
        assert_eq!((of("packets"), of("bytes")), (count, 98 * count), "{name} {direction}: {interface}");
    }
    interface
}

/// Waits until a container is shown on a network.
fn on_network(watch: &Watch, name: &str, network: &str) {
    pinged(watch, name, network, 0);
}

/// What the kernel counted at an interface's host end is what netobs counted.
fn equals_the_kernels(watch: &Watch, interface: &Value) {
    let veth = interface["host_interface"].as_str().expect("a veth");
    wait_for("the kernel's counters", LIMIT, || {
        let before = kernel::own_link(veth);
        let ours = kernel::expected(&watch.interface(veth));
        if ours == before { Ok(()) } else { Err(format!("netobs {ours:?}, kernel {before:?}")) }
    });
}

fn in_state(watch: &Watch, name: &str, state: &str) -> Value {
    watch.until(&format!("{name} to be {state}"), |snapshot| {
        container(snapshot, name).filter(|now| now["state"] == state)
    })
}

#[test]
fn bridge_networks() {
    if !podman::available("podman bridge") {
        return;
    }
    let podman = Podman::start();
    let own = podman.network("own", &[]);
    let on_own = ["--network", own.as_str()];
    let pairs = [
        ("podman", podman.run("default1", &[]), podman.run("default2", &[])),
        (own.as_str(), podman.run("own1", &on_own), podman.run("own2", &on_own)),
    ];
    let both = podman.run("both", &["--network", "podman", "--network", &own]);
    let watch = watch(&podman);
    for (network, one, two) in &pairs {
        on_network(&watch, &one.name, network);
        ping(one, 10, &two.address(network));
        for container in [one, two] {
            let interface = pinged(&watch, &container.name, network, 10);
            assert_eq!(interface["driver"], "bridge", "{interface}");
            assert_eq!((&interface["observed"], &interface["kind"]), (&"host".into(), &"veth".into()));
            assert!(interface["addresses"].to_string().contains(&container.address(network)), "{interface}");
            let veth = watch.interface(interface["host_interface"].as_str().expect("a veth"));
            assert_eq!(veth["bridge"], podman.bridge(network).as_str(), "{veth}");
            equals_the_kernels(&watch, &interface);
        }
    }
    for (at, (network, one, _)) in pairs.iter().enumerate() {
        let count = 3 + at as u64;
        ping(&both, count, &one.address(network));
        pinged(&watch, &both.name, network, count);
        pinged(&watch, &one.name, network, 10 + count);
    }
    assert_eq!(watch.container(&both.name)["networks"], json!([own, "podman"]));
    networks_by_name(&watch, &podman, &pairs.each_ref().map(|(network, ..)| *network));
    row(
        "podman bridge",
        "10 pings both ways on the default and an own network, equal to the kernel's; a container on both",
    );
}

/// Networks have Podman's names, bridges and subnets.
fn networks_by_name(watch: &Watch, podman: &Podman, names: &[&str]) {
    let snapshot = watch.fresh();
    assert_eq!((&snapshot["engines"][0]["name"], &snapshot["engines"][1]), (&"podman".into(), &Value::Null));
    assert!(snapshot["engines"][0]["version"].is_string(), "{snapshot}");
    for name in names {
        let now = network(&snapshot, name).unwrap_or_else(|| panic!("no {name} in {snapshot}"));
        assert_eq!(now["bridge"], podman.bridge(name).as_str(), "{now}");
        assert_eq!((&now["driver"], &now["engine"]), (&"bridge".into(), &"podman".into()));
        assert_eq!(now["containers"].as_array().map(Vec::len), Some(3), "{now}");
        assert!(
            now["subnets"][0]["subnet"].as_str().is_some_and(|subnet| subnet.starts_with("10.")),
            "{now}"
        );
        // Between two containers nothing passes the bridge device.
        assert_eq!(number(&now, "rx.protocol.icmp.packets"), 0, "{now}");
    }
    assert_eq!(snapshot["networks"].as_array().map(Vec::len), Some(names.len()), "{snapshot}");
}

/// A pod of two members and its infrastructure container, which owns the namespace.
struct Pod<'a> {
    id: String,
    infra: String,
    members: [Container<'a>; 2],
}

impl<'a> Pod<'a> {
    fn new(podman: &'a Podman) -> Self {
        let (name, infra) = (unique("pod"), unique("infra"));
        let options = ["--publish", "127.0.0.1::80", "--infra-image", docker::IMAGE];
        let named = ["--infra-command", "sleep 1000", "--infra-name", &infra, &name];
        let id = podman.podman(&[&["pod", "create"], &options[..], &named].concat());
        let members = ["member1", "member2"].map(|member| podman.run(member, &["--pod", &name]));
        Self { id, infra, members }
    }
}

#[test]
fn a_pod_is_counted_once() {
    if !podman::available("podman pod") {
        return;
    }
    let podman = Podman::start();
    let pod = Pod::new(&podman);
    let target = podman.run("target", &[]);
    let watch = watch(&podman);
    on_network(&watch, &pod.infra, "podman");
    for member in &pod.members {
        watch.container(&member.name);
        ping(member, 10, &target.address("podman"));
    }
    let interface = pinged(&watch, &pod.infra, "podman", 20);
    equals_the_kernels(&watch, &interface);
    pinged(&watch, &target.name, "podman", 20);
    let snapshot = watch.fresh();
    let of = |name: &str| container(&snapshot, name).unwrap_or_else(|| panic!("no {name} in {snapshot}"));
    let owner = of(&pod.infra);
    let names = pod.members.each_ref().map(|member| member.name.as_str());
    assert_eq!(owner["members"], json!(names), "{owner}");
    assert_eq!(owner["published"][0]["container_port"], 80, "{owner}");
    for name in names {
        let member = of(name);
        assert_eq!(member["namespace"], owner["namespace"], "{member}");
        assert_eq!((&member["interfaces"], &member["published"]), (&json!([]), &json!([])), "{member}");
        let why = member["unobserved"].as_str().unwrap_or_default();
        assert!(why.contains(&format!("counted with container {}", pod.infra)), "{member}");
    }
    let bridge = network(&snapshot, "podman").expect("podman");
    assert_eq!(bridge["containers"], json!([pod.infra, target.name]), "{bridge}");
    // Requests and answers of both ends.
    assert_eq!(number(&bridge, "containers_rx.protocol.icmp.packets"), 40, "{bridge}");
    together_in_the_tree(&podman, &pod);
    by_proc(&podman, &pod);
    row("podman pod", "10 pings of each of two members, 20 on the owner of the namespace, with their names");
}

fn topology(arguments: &[&str]) -> String {
    let output = program::run(&[&["topology"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn together_in_the_tree(podman: &Podman, pod: &Pod) {
    wait_for("a namespace with three containers", LIMIT, || {
        let tree = topology(&["--engine", &podman.endpoint()]);
        let lines: Vec<&str> = tree.lines().collect();
        let at = |text: &str| lines.iter().position(|line| line.contains(text)).ok_or(tree.clone());
        let owner = at(&format!("container {} ", pod.infra))?;
        let last = pod.members.iter().map(|member| at(&format!("container {} ", member.name)));
        let last = last.collect::<Result<Vec<_>, _>>()?.into_iter().max().unwrap_or_default();
        let together = owner < last && !lines[owner..last].iter().any(|line| line.contains("namespace "));
        let shares = format!("shares the network of {}", pod.infra);
        let said = lines.iter().filter(|line| line.contains(&shares)).count();
        if together && said == 2 { Ok(()) } else { Err(tree) }
    });
}

/// The pod's cgroup is above those of its containers, and is none of them.
fn by_proc(podman: &Podman, pod: &Pod) {
    let watch = Watch::start(None, &["--no-engine"]);
    let infra = podman.podman(&["inspect", "--format", "{{.Id}}", &pod.infra]);
    let ids = [&infra, &pod.members[0].id, &pod.members[1].id];
    let found = watch.until("one of them by /proc", |snapshot| {
        let mut all = snapshot["containers"].as_array()?.iter();
        all.find(|one| ids.iter().any(|id| one["id"] == id.as_str()) && one["interfaces"] != json!([]))
            .cloned()
    });
    let snapshot = watch.fresh();
    let all = snapshot["containers"].as_array().expect("containers");
    assert!(all.iter().all(|one| one["id"] != pod.id.as_str()), "a pod is no container: {snapshot}");
    assert_eq!(found["interfaces"][0]["network"], podman.bridge("podman").as_str(), "{found}");
}

#[test]
fn life() {
    if !podman::available("podman life") {
        return;
    }
    let podman = Podman::start();
    let (target, life) = (podman.run("target", &[]), podman.run("life", &[]));
    let watch = Watch::start(None, &["--engine", &podman.endpoint(), "--grace", "2s"]);
    on_network(&watch, &life.name, "podman");
    let address = target.address("podman");
    ping(&life, 3, &address);
    pinged(&watch, &life.name, "podman", 3);
    podman.podman(&["pause", &life.name]);
    assert_eq!(in_state(&watch, &life.name, "paused")["id"], life.id.as_str());
    podman.podman(&["unpause", &life.name]);
    podman.podman(&["stop", "--time", "0", &life.name]);
    podman.podman(&["start", &life.name]);
    ping(&life, 4, &address);
    pinged(&watch, &life.name, "podman", 7);
    podman.podman(&["restart", "--time", "0", &life.name]);
    ping(&life, 5, &address);
    let interface = pinged(&watch, &life.name, "podman", 12);
    assert_eq!(interface["name"], "eth0");
    let now = in_state(&watch, &life.name, "running");
    assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "one eth0: {now}");
    connect_and_disconnect(&podman, &watch, &life);
    podman.podman(&["rm", "--force", "--time", "0", &life.name]);
    let ended = in_state(&watch, &life.name, "removed");
    assert_eq!(number(&ended, "tx.protocol.icmp.packets"), 18, "final totals: {ended}");
    assert_eq!(number(&ended, "rx.protocol.icmp.packets"), 18, "final totals: {ended}");
    watch.until("the end of the grace period", |snapshot| {
        container(snapshot, &life.name).is_none().then_some(())
    });
}

/// A network that is made while netobs runs, of which Podman tells nobody.
fn connect_and_disconnect(podman: &Podman, watch: &Watch, life: &Container) {
    let later = podman.network("later", &[]);
    let peer = podman.run("peer", &["--network", &later]);
    podman.podman(&["network", "connect", &later, &life.name]);
    ping(life, 6, &peer.address(&later));
    let interface = pinged(watch, &life.name, &later, 6);
    assert_eq!((&interface["name"], &interface["driver"]), (&"eth1".into(), &"bridge".into()));
    podman.podman(&["network", "disconnect", &later, &life.name]);
    watch.until("the end of eth1", |snapshot| {
        let now = container(snapshot, &life.name)?;
        let interfaces = now["interfaces"].as_array()?;
        let eth1 = interfaces.iter().find(|one| one["network"] == later.as_str())?;
        (eth1["host_interface"].is_null() && number(eth1, "tx.protocol.icmp.packets") == 6).then_some(())
    });
    podman.podman(&["network", "rm", "--force", "--time", "0", &later]);
    watch.until("the network's end", |snapshot| network(snapshot, &later).is_none().then_some(()));
}

/// An interface between the host and a namespace that it routes for, gone with the value.
struct Elsewhere {
    namespace: Netns,
    veth: String,
}

impl Elsewhere {
    const HOST: &str = "10.77.11.1";
    const CLIENT: &str = "10.77.11.2";

    fn new() -> Self {
        let namespace = Netns::new();
        let elsewhere = Self { veth: format!("nbe{}", std::process::id()), namespace };
        let (veth, pid) = (&elsewhere.veth, elsewhere.namespace.pid());
        sh(&format!(
            "ip link add {veth} type veth peer name eth0 netns {pid}; ip addr add {}/24 dev {veth}; ip link set {veth} up",
            Self::HOST
        ));
        // Docker on the same host drops what nobody lets through; netavark lets in only what is answered.
        sh(&format!("iptables -I FORWARD -i {veth} -j ACCEPT"));
        elsewhere.namespace.sh(&format!("ip addr add {}/24 dev eth0; ip link set eth0 up", Self::CLIENT));
        elsewhere
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let veth = &self.veth;
        let script = format!(
            "PATH=$PATH:/sbin:/usr/sbin; iptables -D FORWARD -i {veth} -j ACCEPT; ip link del {veth}"
        );
        let _ = Command::new("sh").args(["-c", &script]).status();
    }
}

/// On the host; what it prints.
fn sh(script: &str) -> String {
    let script = format!("PATH=$PATH:/sbin:/usr/sbin; set -e; {script}");
    let output = Command::new("sh").args(["-c", &script]).output().expect("run sh");
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_published_port() {
    if !podman::available("podman's published ports") {
        return;
    }
    let podman = Podman::start();
    let serve = ["sh", "-c", "echo page > /www/index.html; httpd -f -p 80 -h /www"];
    let server = podman.run_command("published", &["--publish", "80"], &serve);
    let watch = watch(&podman);
    let port =
        |snapshot: &Value| container(snapshot, &server.name)?["published"].as_array()?.first().cloned();
    let published =
        watch.until("the published port", |snapshot| port(snapshot).filter(|one| !one["traffic"].is_null()));
    assert_eq!((&published["container_port"], &published["protocol"]), (&80.into(), &"tcp".into()));
    let number_on_host = number(&published, "bindings.0.port");

    let elsewhere = Elsewhere::new();
    let fetch = |address: &str| format!("busybox wget -q -O - http://{address}:{number_on_host}/");
    assert_eq!(elsewhere.namespace.sh(&fetch(Elsewhere::HOST)), "page\n");
    assert_eq!(sh(&fetch(Elsewhere::HOST)), "page\n");
    assert_eq!(sh(&fetch("127.0.0.1")), "page\n");
    let gateway = server.inspect("{{(index .NetworkSettings.Networks \"podman\").Gateway}}");
    for (via, address) in [("client", Elsewhere::CLIENT), ("host", Elsewhere::HOST), ("gateway", &gateway)] {
        let client = watch.until(via, |snapshot| {
            let port = port(snapshot)?;
            let clients = port["traffic"]["clients"].as_array()?;
            clients.iter().find(|one| one["address"] == address && number(one, "tx_bytes") > 0).cloned()
        });
        assert_eq!(client["via"], via, "{client}");
    }
    // All TCP of this container is on that port: not one packet more or less.
    wait_for("all of it", LIMIT, || {
        let snapshot = watch.fresh();
        let now = container(&snapshot, &server.name).ok_or("gone")?;
        let via = now["published"][0]["traffic"]["via"].as_object().ok_or("no traffic")?.clone();
        let ways = ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"]
            .map(|field| via.values().map(|way| number(way, field)).sum::<u64>());
        let all = ["rx", "tx"].map(|direction| {
            ["packets", "bytes"].map(|unit| number(&now, &format!("{direction}.protocol.tcp.{unit}")))
        });
        if ways == *all.as_flattened() && via.len() == 3 {
            Ok(())
        } else {
            Err(format!("{via:?} of {all:?}"))
        }
    });
}

/// A network and the container on it.
struct Place<'a> {
    network: String,
    container: Container<'a>,
}

/// Started by the service after netobs has asked it for its networks.
fn places(podman: &Podman) -> Vec<Place<'_>> {
    let isolate = ["--opt", "isolate=true"];
    let networks = [
        ("open", &[][..]),
        ("free", &[]),
        ("apart", &isolate),
        ("alone", &isolate),
        ("inside", &["--internal"]),
        ("within", &["--internal", "--opt", "isolate=true"]),
    ]
    .map(|(name, options)| podman.network(name, options));
    let watch = watch(podman);
    for name in &networks {
        watch.until("network", |snapshot| network(snapshot, name));
    }
    let place = |network: String| {
        let container = podman.run_by_service("at", &["--network", &network]);
        Place { network, container }
    };
    let places: Vec<Place> = networks.into_iter().map(place).collect();
    for place in &places[4..] {
        // So that it is not for want of a route.
        let gateway = podman.podman(&[
            "network",
            "inspect",
            "--format",
            "{{range .Subnets}}{{.Gateway}}{{end}}",
            &place.network,
        ]);
        place.container.in_namespace(&["ip", "route", "add", "default", "via", &gateway]);
    }
    places
}

/// Pings sent at a time.
const PINGS: u64 = 2;

/// What of the pings from one place arrives at another, and whether answers come back.
fn traffic(watch: &Watch, from: &Place, to: &Place) -> (u64, bool) {
    let arrived = || {
        let now = container(&watch.fresh(), &to.container.name).expect("a container");
        number(&now, "rx.protocol.icmp.packets")
    };
    let before = arrived();
    let (count, address) = (PINGS.to_string(), to.container.address(&to.network));
    let ping = ["ping", "-q", "-c", &count, "-i", "0.05", "-W", "1", &address];
    let answered = from.container.try_exec(&ping).status.success();
    (arrived() - before, answered)
}

#[test]
fn isolation_as_traffic_shows_it() {
    if !podman::available("podman isolation") {
        return;
    }
    let podman = Podman::start();
    let places = places(&podman);
    let watch = watch(&podman);
    for place in &places {
        on_network(&watch, &place.container.name, &place.network);
    }
    let topology: Value =
        serde_json::from_str(&topology(&["-o", "json", "--engine", &podman.endpoint()])).expect("JSON");
    let mut seen: Vec<(&str, u32)> = Vec::new();
    for (at, a) in places.iter().enumerate() {
        for b in &places[at + 1..] {
            let said = between(&topology, &a.network, &b.network);
            let there_and_back = (traffic(&watch, a, b), traffic(&watch, b, a));
            let is_internal = |place: &Place| network_node(&topology, &place.network)["internal"] == true;
            let (isolated, why, expected) = match (is_internal(a), is_internal(b)) {
                (true, true) => (true, "internal", ((0, false), (0, false))),
                (false, true) => (false, "into-internal", ((PINGS, false), (0, false))),
                _ if both_isolate(&topology, a, b) => (true, "engine-rule", ((0, false), (0, false))),
                _ => (false, "not-asked-for", ((PINGS, true), (PINGS, true))),
            };
            assert_eq!(there_and_back, expected, "{} and {}: {said}", a.network, b.network);
            assert_eq!((&said["isolated"], &said["why"]), (&isolated.into(), &why.into()), "{said}");
            match seen.iter_mut().find(|(of, _)| *of == why) {
                Some((_, count)) => *count += 1,
                None => seen.push((why, 1)),
            }
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [("engine-rule", 1), ("internal", 1), ("into-internal", 8), ("not-asked-for", 5)]);
    in_the_tree(&podman, &places);
}

fn network_node<'a>(topology: &'a Value, name: &str) -> &'a Value {
    let networks = topology["networks"].as_array().expect("networks");
    networks.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {topology}"))
}

fn between(topology: &Value, a: &str, b: &str) -> Value {
    let keys = [a, b].map(|name| &network_node(topology, name)["key"]);
    let mut pairs = topology["isolation"].as_array().expect("isolation").iter();
    let pair = pairs.find(|pair| keys.contains(&&pair["a"]) && keys.contains(&&pair["b"]));
    pair.unwrap_or_else(|| panic!("nothing of {a} and {b} in {topology}")).clone()
}

fn both_isolate(topology: &Value, a: &Place, b: &Place) -> bool {
    [a, b].iter().all(|place| network_node(topology, &place.network)["options"]["isolate"] == "true")
}

fn in_the_tree(podman: &Podman, places: &[Place]) {
    let tree = topology(&["--engine", &podman.endpoint()]);
    for place in places {
        assert!(tree.contains(&format!("network {} (bridge)", place.network)), "{tree}");
        assert!(tree.contains(&format!("bridge {} (ifindex", podman.bridge(&place.network))), "{tree}");
        let address = place.container.address(&place.network);
        assert!(tree.contains(&format!("→ {} eth0 {address}", place.container.name)), "{tree}");
    }
    for how in [
        "isolated from: ",
        "(by the engine's rule)",
        "(the option isolate is not set on both)",
        "(packets get into the internal one, none come out)",
    ] {
        assert!(tree.contains(how), "{how}: {tree}");
    }
}

#[test]
fn beside_docker_with_the_same_names() {
    if !podman::available("podman beside docker") || !docker::available("podman beside docker") {
        return;
    }
    let podman = Podman::start();
    let of_docker = docker::Network::new("twin", &[]);
    let name = of_docker.name.as_str();
    podman.podman(&["network", "create", name]);
    let one = docker::Container::run("twin1", &["--network", name]);
    let two = docker::Container::run("twin2", &["--network", name]);
    let run = |name: &str, network: &str| {
        podman.podman(&["run", "-d", "--name", name, "--network", network, docker::IMAGE, "sleep", "1000"])
    };
    let ids = [run(&one.name, name), run(&two.name, name)];
    let proxies = [docker::socket(), podman.socket()].map(|socket| Proxy::start(&socket));
    let endpoints = proxies.each_ref().map(Proxy::endpoint);
    let engines = ["--engine", &endpoints[0], "--engine", &endpoints[1]];
    let watch = Watch::start(None, &engines);
    let by_id = |snapshot: &Value, id: &str| {
        snapshot["containers"].as_array()?.iter().find(|one| one["id"] == id).cloned()
    };
    for id in [&one.id, &two.id, &ids[0], &ids[1]] {
        watch.until("each on its network", |snapshot| {
            by_id(snapshot, id).filter(|one| one["interfaces"][0]["network"] == name)
        });
    }
    one.exec(&["ping", "-q", "-c", "5", "-i", "0.05", &two.address(name)]);
    let address = format!("{{{{(index .NetworkSettings.Networks \"{name}\").IPAddress}}}}");
    let address = podman.podman(&["inspect", "--format", &address, &ids[1]]);
    podman.podman(&["exec", &ids[0], "ping", "-q", "-c", "9", "-i", "0.05", &address]);
    for (engine, id, count) in
        [("docker", &one.id, 5), ("docker", &two.id, 5), ("podman", &ids[0], 9), ("podman", &ids[1], 9)]
    {
        let now = watch.until("the pings", |snapshot| {
            by_id(snapshot, id).filter(|now| number(now, "rx.protocol.icmp.packets") >= count)
        });
        assert_eq!(now["engine"], engine, "{now}");
        for direction in ["rx", "tx"] {
            assert_eq!(number(&now, &format!("{direction}.protocol.icmp.packets")), count, "{now}");
        }
    }
    twin_networks(&watch.fresh(), &podman, &of_docker);
    let topology: Value =
        serde_json::from_str(&topology(&[&["-o", "json"], &engines[..]].concat())).expect("JSON");
    let pairs = topology["isolation"].as_array().expect("isolation");
    let engine_of = |key: &Value| key.as_str().and_then(|key| key.split(':').nth(1)).map(str::to_owned);
    assert!(pairs.iter().all(|pair| engine_of(&pair["a"]) == engine_of(&pair["b"])), "{pairs:?}");
    for proxy in proxies {
        proxy.assert_only_asked();
    }
}

fn twin_networks(snapshot: &Value, podman: &Podman, of_docker: &docker::Network) {
    let twins = snapshot["networks"].as_array().expect("networks").iter();
    let twins: Vec<&Value> = twins.filter(|one| one["name"] == of_docker.name.as_str()).collect();
    assert_eq!(twins.len(), 2, "{snapshot}");
    let bridges =
        [("docker", format!("br-{}", &of_docker.id[..12])), ("podman", podman.bridge(&of_docker.name))];
    for (engine, bridge) in bridges {
        let twin = twins.iter().find(|one| one["engine"] == engine).expect("a network of each engine");
        assert_eq!(twin["bridge"], bridge.as_str(), "{twin}");
        // Requests and answers of both ends.
        let packets = if engine == "docker" { 10 } else { 18 };
        assert_eq!(number(twin, "containers_rx.protocol.icmp.packets"), packets, "{twin}");
    }
    let names: Vec<&Value> =
        snapshot["engines"].as_array().expect("engines").iter().map(|one| &one["name"]).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.contains(&&"docker".into()) && names.contains(&&"podman".into()), "{names:?}");
}

#[test]
fn a_service_that_goes_and_comes_again() {
    if !podman::available("podman service restart") {
        return;
    }
    let mut podman = Podman::start();
    let names = ["target", "stays", "goes"].map(|name| {
        let container = podman.run(name, &[]);
        (container.name.clone(), container.address("podman"))
    });
    let [(_, address), (stays, _), (goes, _)] = &names;
    let watch = watch(&podman);
    for (name, _) in &names {
        on_network(&watch, name, "podman");
    }
    let connected = |yes: bool| {
        watch.until("the connection", |snapshot| {
            (snapshot["engines"][0]["connected"] == yes && snapshot["engines"][0]["name"] == "podman")
                .then_some(())
        });
    };
    connected(true);
    let ping = |podman: &Podman, name: &str, count: &str| {
        podman.podman(&["exec", name, "ping", "-q", "-c", count, "-i", "0.05", address]);
    };
    ping(&podman, stays, "3");
    podman.stop_service();
    connected(false);
    ping(&podman, stays, "4");
    pinged(&watch, stays, "podman", 7);
    podman.podman(&["rm", "--force", "--time", "0", goes]);
    let (newcomer, id) = {
        let newcomer = podman.run("newcomer", &[]);
        (newcomer.name.clone(), newcomer.id.clone())
    };
    ping(&podman, &newcomer, "5");
    let unnamed = pinged(&watch, &id[..12], "podman", 5);
    assert!(unnamed["host_interface"].is_string(), "{unnamed}");
    assert_eq!(watch.container(&id[..12])["engine"], "proc");
    podman.start_service();
    connected(true);
    assert_eq!(watch.container(&newcomer)["engine"], "podman");
    in_state(&watch, goes, "removed");
    ping(&podman, &newcomer, "6");
    pinged(&watch, &newcomer, "podman", 11);
    pinged(&watch, stays, "podman", 7);
}

/// By what it is known what a test that fails had.
struct Left {
    folder: PathBuf,
    bridge: String,
    namespace: PathBuf,
    pod: String,
}

#[test]
fn nothing_stays_behind_when_a_test_fails() {
    if !podman::available("the end of podman") {
        return;
    }
    let failed = std::panic::catch_unwind(|| {
        let podman = Podman::start();
        let network = podman.network("left", &[]);
        let bridge = podman.bridge(&network);
        let left = podman.run("left", &["--network", &network]);
        let pod = Pod::new(&podman).id;
        assert!(fs::exists(PathBuf::from("/sys/class/net").join(&bridge)).expect("sysfs"));
        let namespace = left.inspect("{{.NetworkSettings.SandboxKey}}");
        let folder = podman.folder().to_owned();
        std::panic::panic_any(Left { folder, bridge, namespace: PathBuf::from(namespace), pod });
    });
    let Left { folder, bridge, namespace, pod } =
        *failed.expect_err("it fails").downcast::<Left>().expect("what it left");
    assert!(!folder.exists() && !namespace.exists());
    assert_eq!(podman::cgroups_of(&pod), Vec::<PathBuf>::new());
    assert!(!fs::exists(PathBuf::from("/sys/class/net").join(&bridge)).expect("sysfs"), "{bridge}");
    wait_for("no traces", LIMIT, || {
        let traces = Podman::traces(&folder);
        if traces.is_empty() { Ok(()) } else { Err(format!("{traces:?}")) }
    });
}
