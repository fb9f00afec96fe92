//! Scenarios on a real container engine: exact counts, right container, right network, right direction.

use std::{os::unix::net::UnixListener, process::Command, time::Duration};

use netobs_tests::{
    bridged::Bridged,
    docker::{self, Container, Network, docker},
    program::{Agent, LIMIT, Watch, container, network, number},
    proxy::Proxy,
    traffic, unique, wait_for,
};
use serde_json::Value;

/// The interface inside a container's entry of a snapshot.
fn inner<'a>(container: &'a Value, name: &str) -> &'a Value {
    container["interfaces"]
        .as_array()
        .and_then(|interfaces| interfaces.iter().find(|interface| interface["name"] == name))
        .unwrap_or_else(|| panic!("no {name} in {container}"))
}

/// Waits until two snapshots in a row have the same counters for a container.
fn settled(watch: &Watch, name: &str, mut enough: impl FnMut(&Value) -> bool) -> Value {
    let mut last = None;
    watch.until(&format!("{name} to be quiet"), |snapshot| {
        let now = container(snapshot, name)?;
        let counters = (now["rx"].clone(), now["tx"].clone());
        let same = last.as_ref() == Some(&counters);
        last = Some(counters);
        (same && enough(&now)).then_some(now)
    })
}

/// What one container sent to another, at both ends.
fn edge(snapshot: &Value, ends: [&Container; 2], protocol: &str, port: Option<u16>) -> Option<[Value; 2]> {
    let [from, to] = ends.map(|container| container.name.as_str());
    let is = |edge: &&Value| {
        edge["source"]["container"] == from
            && edge["destination"]["container"] == to
            && edge["protocol"] == protocol
            && edge["port"] == Value::from(port)
    };
    let edge = snapshot["edges"].as_array()?.iter().find(is)?;
    Some([edge["sent"].clone(), edge["received"].clone()])
}

#[test]
fn scenario_1_ping_on_the_default_bridge() {
    if !docker::available("scenario 1") {
        return;
    }
    let (b1, b2) = (Container::run("b1", &[]), Container::run("b2", &[]));
    let watch = Watch::start(None, &[]);
    let before = watch.container(&b1.name);
    assert_eq!(before["networks"], serde_json::json!(["bridge"]));
    watch.container(&b2.name);
    let bridge_before = watch.until("network bridge", |snapshot| network(snapshot, "bridge"));
    b1.exec(&["ping", "-q", "-c", "5", "-i", "0.1", &b2.address("bridge")]);
    for (name, requests, replies) in [(&b1.name, "tx", "rx"), (&b2.name, "rx", "tx")] {
        let now = settled(&watch, name, |now| number(now, "rx.protocol.icmp.packets") >= 5);
        for direction in [requests, replies] {
            assert_eq!(number(&now, &format!("{direction}.protocol.icmp.packets")), 5, "{name} {direction}");
            assert_eq!(
                number(&now, &format!("{direction}.protocol.icmp.bytes")),
                5 * 98,
                "{name} {direction}"
            );
            assert!(number(&now, &format!("{direction}.ethertype.arp.packets")) >= 1, "{name} {direction}");
        }
        let eth0 = inner(&now, "eth0");
        assert_eq!(eth0["network"], "bridge");
        assert_eq!(number(eth0, "rx.protocol.icmp.packets"), 5);
        assert!(eth0["host_interface"].as_str().is_some_and(|veth| veth.starts_with("veth")), "{eth0}");
    }
    for ends in [[&b1, &b2], [&b2, &b1]] {
        let counts = watch.until("the edge", |snapshot| edge(snapshot, ends, "icmp", None));
        for count in counts {
            assert_eq!((number(&count, "packets"), number(&count, "bytes")), (5, 5 * 98), "{count}");
        }
    }
    let addresses = inner(&watch.container(&b1.name), "eth0")["addresses"].to_string();
    assert!(addresses.contains(&b1.address("bridge")), "{addresses}");
    let bridge = watch.until("network bridge", |snapshot| network(snapshot, "bridge"));
    for direction in ["rx", "tx"] {
        let path = format!("{direction}.protocol.icmp.packets");
        assert_eq!(number(&bridge, &path), number(&bridge_before, &path), "bridged frames are not docker0's");
    }
    assert_eq!(bridge["bridge"], "docker0");
}

#[test]
fn scenario_2_a_web_server_on_a_network_by_name() {
    if !docker::available("scenario 2") {
        return;
    }
    const PAGE_BYTES: u64 = 100_000;
    let myapp = Network::new("myapp", &[]);
    let script = format!(
        "dd if=/dev/zero of=/www/index.html bs=1000 count={} && httpd -f -p 80 -h /www",
        PAGE_BYTES / 1000
    );
    let server = Container::run_command(
        "web",
        &["--network", &myapp.name, "--network-alias", "nginx"],
        &["sh", "-c", &script],
    );
    let client = Container::run("client", &["--network", &myapp.name]);
    let watch = Watch::start(None, &[]);
    watch.container(&client.name);
    wait_for("the web server", LIMIT, || {
        let output =
            docker::try_docker(&["exec", &client.name, "wget", "-q", "-O", "/dev/null", "http://nginx/"]);
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    let got = settled(&watch, &client.name, |now| number(now, "rx.protocol.tcp.bytes") > PAGE_BYTES);
    let sent = settled(&watch, &server.name, |now| number(now, "tx.protocol.tcp.bytes") > PAGE_BYTES);
    for now in [&got, &sent] {
        assert_eq!(now["networks"], serde_json::json!([myapp.name]));
        assert_eq!(inner(now, "eth0")["network"], myapp.name.as_str());
    }
    // What one sends the other receives, on the same network.
    for unit in ["wire_packets", "wire_bytes"] {
        assert!(number(&got, &format!("rx.{unit}")) > 0);
    }
    assert_eq!(number(&got, "rx.protocol.tcp.bytes"), number(&sent, "tx.protocol.tcp.bytes"));
    assert_eq!(number(&got, "tx.protocol.tcp.bytes"), number(&sent, "rx.protocol.tcp.bytes"));
    assert!(number(&got, "tx.tcp_flags.syn") >= 1);
    let snapshot = watch.fresh();
    for (ends, sender) in [([&client, &server], &got), ([&server, &client], &sent)] {
        let [sent, received] = edge(&snapshot, ends, "tcp", Some(80)).expect("an edge");
        assert_eq!(sent, received, "nothing was lost");
        assert_eq!(number(&sent, "bytes"), number(sender, "tx.protocol.tcp.bytes"));
    }
    // One connection, and how long it took to make it; both ends say so.
    let handshakes = |name: &str, role: &str| {
        let handshake = &container(&snapshot, name).expect("it runs")["tcp"]["connections"][role];
        let buckets = handshake["buckets"].as_array().expect("buckets").iter();
        (buckets.map(|one| one.as_u64().expect("a count")).sum::<u64>(), number(handshake, "sum_us"))
    };
    for (name, role) in [(&client.name, "client_handshake"), (&server.name, "server_handshake")] {
        let (count, sum_us) = handshakes(name, role);
        assert!(count == 1 && sum_us > 0, "{role}: {count} in {sum_us} us");
    }
    let myapp_now = watch.until("network", |snapshot| network(snapshot, &myapp.name));
    assert_eq!(myapp_now["driver"], "bridge");
    assert!(myapp_now["bridge"].as_str().is_some_and(|bridge| bridge.starts_with("br-")), "{myapp_now}");
    assert_eq!(myapp_now["containers"].as_array().map(Vec::len), Some(2));
    assert!(myapp_now["subnets"][0]["subnet"].is_string());
}

#[test]
fn scenario_4_connect_and_disconnect_while_traffic_runs() {
    if !docker::available("scenario 4") {
        return;
    }
    let (first, second) = (Network::new("n1", &[]), Network::new("n2", &[]));
    let mover = Container::run("mover", &["--network", &first.name]);
    let peer = Container::run("peer", &["--network", &second.name]);
    let watch = Watch::start(None, &[]);
    watch.container(&mover.name);
    let own_gateway =
        mover.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{}\").Gateway}}}}", first.name));
    docker(&["exec", "-d", &mover.name, "ping", "-q", "-i", "0.05", &own_gateway]);
    docker(&["network", "connect", &second.name, &mover.name]);
    mover.exec(&["ping", "-q", "-c", "10", "-i", "0.05", &peer.address(&second.name)]);
    let connected = watch.until("eth1 with all ten", |snapshot| {
        let now = container(snapshot, &mover.name)?;
        let eth1 =
            now["interfaces"].as_array()?.iter().find(|interface| interface["name"] == "eth1")?.clone();
        (number(&eth1, "rx.protocol.icmp.packets") >= 10).then_some((now, eth1))
    });
    let (now, eth1) = connected;
    assert_eq!(eth1["network"], second.name.as_str());
    assert_eq!(number(&eth1, "tx.protocol.icmp.packets"), 10, "from the first packet on");
    assert_eq!(number(&eth1, "tx.protocol.icmp.bytes"), 980);
    assert_eq!(inner(&now, "eth0")["network"], first.name.as_str());
    // Disconnected in the midst of it: what it had sent by then stays, to the last that arrived at the other end.
    docker(&["exec", "-d", &mover.name, "ping", "-q", "-i", "0.01", &peer.address(&second.name)]);
    watch.until("some more", |snapshot| {
        let now = container(snapshot, &mover.name)?;
        (number(inner(&now, "eth1"), "tx.protocol.icmp.packets") > 30).then_some(())
    });
    docker(&["network", "disconnect", &second.name, &mover.name]);
    let (after, sent) = watch.until("eth1 to be let go", |snapshot| {
        let now = container(snapshot, &mover.name)?;
        let sent = number(inner(&now, "eth1"), "tx.protocol.icmp.packets");
        inner(&now, "eth1")["host_interface"].is_null().then_some((now, sent))
    });
    let arrived = number(&watch.container(&peer.name), "rx.protocol.icmp.packets");
    assert!(
        arrived > 30 && (arrived..=arrived + 1).contains(&sent),
        "{sent} sent, {arrived} arrived: {after}"
    );
    let later = watch.container(&mover.name);
    assert_eq!(number(inner(&later, "eth1"), "tx.protocol.icmp.packets"), sent, "final totals stay: {later}");
    assert!(number(&after, "tx.protocol.icmp.packets") > 10, "and are part of the container's");
    watch.until("the end of being connected", |snapshot| {
        let now = container(snapshot, &mover.name)?;
        let members = network(snapshot, &second.name)?["containers"].clone();
        let gone = now["networks"] == serde_json::json!([first.name]);
        (gone && members == serde_json::json!([peer.name])).then_some(())
    });
}

/// Beside an engine's containers there may be others, which `/proc` alone tells of: their flows are theirs all the same.
#[test]
fn flows_of_a_container_that_no_engine_tells_of() {
    if !docker::available("no engine tells of it") {
        return;
    }
    let world = Bridged::new("br-nobodys", "10.89.0", [10, 11]);
    let agent = Agent::start_in(Some(&world.host), &["--flow-interval=200ms", "--flow-idle=10m"]);
    let mut sent = 0;
    let (snapshot, sent) = wait_for("its flow in its classes", Duration::from_secs(60), || {
        traffic::udp(world.netns(0), world.netns(1), "10.89.0.11:7001".parse().expect("an address"), 1, 100);
        sent += 1;
        std::thread::sleep(Duration::from_millis(300));
        let snapshot = agent.snapshot(&world.host)?;
        let now = container(&snapshot, world.name(0)).ok_or("no container")?;
        let classes = now["classes"].as_array().ok_or("no classes")?;
        let same = classes.iter().filter(|part| part["class"] == "same_network");
        match same.map(|part| number(part, "tx.packets")).sum::<u64>() {
            0 => Err(format!("{sent} sent: {now}")),
            _ => Ok((snapshot, sent)),
        }
    });
    assert!(
        sent > 1 && snapshot["engines"].to_string().contains("\"connected\":true"),
        "{}",
        snapshot["engines"]
    );
}

#[test]
fn scenario_8_short_lived_containers() {
    if !docker::available("scenario 8") {
        return;
    }
    const CONTAINERS: u64 = 10;
    let target = Container::run("target", &[]);
    let watch = Watch::start(None, &[]);
    watch.container(&target.name);
    let address = target.address("bridge");
    let names: Vec<String> = (0..CONTAINERS).map(|n| unique(&format!("short{n}"))).collect();
    for name in &names {
        docker(&[
            "run",
            "--rm",
            "--name",
            name,
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
    for name in &names {
        let ended = watch.until("the end of a short life", |snapshot| {
            container(snapshot, name).filter(|now| now["state"] == "removed")
        });
        assert_eq!(number(&ended, "tx.protocol.icmp.packets"), 10, "{ended}");
        assert_eq!(number(&ended, "rx.protocol.icmp.packets"), 10, "{ended}");
        assert_eq!(ended["networks"], serde_json::json!(["bridge"]));
        assert_eq!(ended["image"], docker::IMAGE);
    }
    let target = settled(&watch, &target.name, |_| true);
    assert_eq!(number(&target, "rx.protocol.icmp.packets"), CONTAINERS * 10);
}

/// Who sees no container's process knows whose the interfaces of those were that have ended, all the same: by what the
/// engine tells of networks.
#[test]
fn short_lived_containers_that_nobody_could_look_into() {
    if !docker::available("not looked into") {
        return;
    }
    let network = Network::new("unseen", &[]);
    let target = Container::run("unseen-target", &["--network", &network.name]);
    let address = target.address(&network.name);
    let watch = Watch::start_alone(&[]);
    watch.until("the target", |snapshot| container(snapshot, &target.name));
    let names: Vec<String> = (1..=5).map(|n| unique(&format!("unseen{n}"))).collect();
    for (name, packets) in names.iter().zip(3..) {
        let count = packets.to_string();
        let ping = ["ping", "-q", "-i", "0.02", "-c", &count, &address];
        let run = ["run", "--rm", "--name", name, "--network", &network.name, docker::IMAGE];
        docker(&[&run[..], &ping[..]].concat());
    }
    for (name, packets) in names.iter().zip(3..) {
        let ended = watch.until("the end of a short life", |snapshot| {
            let now = container(snapshot, name)?;
            (now["state"] == "removed" && now["interfaces"].as_array()?.len() == 1).then_some(now)
        });
        for direction in ["rx", "tx"] {
            let counted = number(&ended, &format!("{direction}.protocol.icmp.packets"));
            assert_eq!(counted, packets, "{ended}");
        }
        assert_eq!(ended["networks"], serde_json::json!([network.name]));
        assert_eq!(inner_network(&ended), network.name.as_str());
        assert!(ended["interfaces"][0]["name"].is_null(), "nobody has seen what it was called: {ended}");
    }
}

fn inner_network(container: &Value) -> &str {
    container["interfaces"][0]["network"].as_str().unwrap_or_default()
}

#[test]
fn restart_and_rename_keep_the_counters() {
    if !docker::available("restart") {
        return;
    }
    let mut b = Container::run("again", &[]);
    let watch = Watch::start(None, &["--grace", "2s"]);
    watch.container(&b.name);
    let gateway = b.inspect("{{.NetworkSettings.Gateway}}");
    b.exec(&["ping", "-q", "-c", "3", "-i", "0.05", &gateway]);
    docker(&["restart", "-t", "0", &b.name]);
    b.exec(&["ping", "-q", "-c", "4", "-i", "0.05", &gateway]);
    let name = unique("renamed");
    docker(&["rename", &b.name, &name]);
    b.name.clone_from(&name);
    let now = watch.until("both lives added up", |snapshot| {
        container(snapshot, &name).filter(|now| number(now, "tx.protocol.icmp.packets") >= 7)
    });
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 7);
    assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "one eth0: {now}");
    assert_eq!(now["id"], b.id.as_str());
    docker(&["rm", "-f", &name]);
    watch.until("removed", |snapshot| container(snapshot, &name).filter(|now| now["state"] == "removed"));
    watch.until("the end of the grace period", |snapshot| container(snapshot, &name).is_none().then_some(()));
}

#[test]
fn compose_labels_and_kinds_without_counts() {
    if !docker::available("labels") {
        return;
    }
    let labels =
        ["--label", "com.docker.compose.project=shop", "--label", "com.docker.compose.service=front"];
    let composed = Container::run("composed", &labels);
    let isolated = Container::run("isolated", &["--network", "none"]);
    let hosted = Container::run("hosted", &["--network", "host"]);
    let sharing = Container::run("sharing", &["--network", &format!("container:{}", composed.name)]);
    let watch = Watch::start(None, &[]);
    let composed_now = watch.container(&composed.name);
    assert_eq!(composed_now["compose"], serde_json::json!({"project": "shop", "service": "front"}));
    watch.until("the cgroup", |snapshot| {
        let hosted = container(snapshot, &hosted.name)?;
        (hosted["interfaces"][0]["observed"] == "cgroup" && hosted["unobserved"].is_null()).then_some(())
    });
    for (container, word) in [(&isolated, "isolated"), (&sharing, "counted with")] {
        let now = watch.container(&container.name);
        assert_eq!(now["interfaces"], serde_json::json!([]), "{now}");
        assert!(now["unobserved"].as_str().is_some_and(|why| why.contains(word)), "{now}");
    }
}

#[test]
fn without_an_engine_proc_knows_the_containers() {
    if !docker::available("without an engine") {
        return;
    }
    let b = Container::run("nameless", &[]);
    let watch = Watch::start(None, &["--no-engine"]);
    let short = &b.id[..12];
    let now = watch.container(short);
    assert_eq!(now["id"], b.id.as_str());
    assert_eq!(now["engine"], "proc");
    b.exec(&["ping", "-q", "-c", "3", "-i", "0.05", &b.inspect("{{.NetworkSettings.Gateway}}")]);
    let now = settled(&watch, short, |now| number(now, "tx.protocol.icmp.packets") >= 3);
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 3);
    assert_eq!(inner(&now, "eth0")["network"], "docker0", "the bridge stands for a network without a name");
    docker(&["rm", "-f", &b.name]);
    watch.until("its end", |snapshot| container(snapshot, short).filter(|now| now["state"] == "removed"));
}

#[test]
fn an_engine_that_goes_and_comes_again() {
    if !docker::available("engine restart") {
        return;
    }
    let proxy = Proxy::start(&docker::socket());
    let stays = Container::run("stays", &[]);
    let watch = Watch::start(None, &["--engine", &proxy.endpoint()]);
    watch.container(&stays.name);
    let connected = |snapshot: &Value| snapshot["engines"][0]["connected"].as_bool();
    watch.until("connected", |snapshot| (connected(snapshot) == Some(true)).then_some(()));
    proxy.stop();
    let problem = watch.until("not connected", |snapshot| {
        (connected(snapshot) == Some(false)).then(|| snapshot["engines"][0]["problem"].clone())
    });
    assert!(problem.is_string(), "{problem}");
    // Counting goes on, and what comes meanwhile is found without the engine.
    stays.exec(&["ping", "-q", "-c", "6", "-i", "0.05", &stays.inspect("{{.NetworkSettings.Gateway}}")]);
    let now = settled(&watch, &stays.name, |now| number(now, "tx.protocol.icmp.packets") >= 6);
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 6);
    let newcomer = Container::run("newcomer", &[]);
    let unnamed = watch.container(&newcomer.id[..12]);
    assert_eq!(unnamed["engine"], "proc");
    proxy.start_again();
    let named = watch.container(&newcomer.name);
    assert_eq!(named["id"], newcomer.id.as_str());
    assert_eq!(named["engine"], "docker");
    assert_eq!(number(&watch.container(&stays.name), "tx.protocol.icmp.packets"), 6);
    proxy.assert_only_asked();
}

/// An engine that is too busy to answer for each of its containers has them all the same.
#[test]
fn containers_that_the_engine_cannot_be_asked_for() {
    if !docker::available("refused inspections") {
        return;
    }
    let proxy = Proxy::start(&docker::socket());
    let stays = Container::run("stays", &["-p", "127.0.0.1::80"]);
    let watch = Watch::start(None, &["--engine", &proxy.endpoint()]);
    let before = watch.container(&stays.name);
    stays.exec(&["ping", "-q", "-c", "6", "-i", "0.05", &stays.inspect("{{.NetworkSettings.Gateway}}")]);
    settled(&watch, &stays.name, |now| number(now, "tx.protocol.icmp.packets") >= 6);
    proxy.refuse_inspections(true);
    proxy.stop();
    let listed = Container::run("listed", &["-p", "127.0.0.1::80"]);
    proxy.start_again();
    // Of this one the list is all that is known, of this one an event is, and this one was known before.
    let now = watch.container(&listed.name);
    assert_eq!((&now["engine"], &now["state"]), (&"docker".into(), &"running".into()));
    let told = Container::run("told", &["-p", "127.0.0.1::80"]);
    watch.container(&told.name);
    let now = watch.container(&stays.name);
    assert_eq!((&now["state"], &now["published"]), (&"running".into(), &before["published"]), "{now}");
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 6);
    let has_port = |snapshot: &Value, name: &str| {
        container(snapshot, name)
            .is_some_and(|now| now["published"].as_array().is_some_and(|p| !p.is_empty()))
    };
    let unknown = watch.fresh();
    assert!(!has_port(&unknown, &listed.name) && !has_port(&unknown, &told.name), "{unknown}");
    proxy.refuse_inspections(false);
    watch.until("their published ports", |snapshot| {
        (has_port(snapshot, &listed.name) && has_port(snapshot, &told.name)).then_some(())
    });
}

/// The engine that netobs is connected with is still there, and is not the one that others talk to.
#[test]
fn a_socket_that_is_replaced() {
    if !docker::available("a replaced socket") {
        return;
    }
    let mut proxy = Proxy::start(&docker::socket());
    let stays = Container::run("stays", &[]);
    let watch = Watch::start(None, &["--engine", &proxy.endpoint()]);
    watch.container(&stays.name);
    stays.exec(&["ping", "-q", "-c", "6", "-i", "0.05", &stays.inspect("{{.NetworkSettings.Gateway}}")]);
    proxy.replace();
    let newcomer = Container::run("newcomer", &[]);
    let named = watch.container(&newcomer.name);
    assert_eq!((&named["id"], &named["engine"]), (&newcomer.id.as_str().into(), &"docker".into()));
    let now = settled(&watch, &stays.name, |_| true);
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 6);
    assert_eq!(watch.fresh()["engines"].as_array().map(Vec::len), Some(1));
}

#[test]
fn one_answer_within_half_a_second() {
    if !docker::available("watch --once") {
        return;
    }
    let containers: Vec<_> = (0..20).map(|n| Container::run(&format!("many{n}"), &[])).collect();
    let mut times: Vec<Duration> = (0..3)
        .map(|_| {
            let start = std::time::Instant::now();
            let output = netobs_tests::program::run(&["watch", "--once", "--output", "json"]);
            let time = start.elapsed();
            let snapshot: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            for one in &containers {
                let now = container(&snapshot, &one.name)
                    .unwrap_or_else(|| panic!("no {} in {snapshot}", one.name));
                assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "{now}");
            }
            time
        })
        .collect();
    times.sort();
    println!("watch --once with {} containers: {:?} (median of {})", containers.len(), times[1], times.len());
    // Far above what is measured, so that only a broken program fails on a busy machine.
    assert!(times[1] < Duration::from_secs(5), "{times:?}");
}

#[test]
fn names_on_the_command_line() {
    if !docker::available("names") {
        return;
    }
    let b = Container::run("webserver", &[]);
    let output = netobs_tests::program::run(&["watch", "--once", "-o", "json", &b.name]);
    let snapshot: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(snapshot["containers"].as_array().map(Vec::len), Some(1));
    let wrong = b.name.replace("webserver", "webservr");
    let output = netobs_tests::program::run(&["watch", "--once", &wrong]);
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains(&format!("did you mean {}", b.name)), "{message}");
}

#[test]
fn an_unreadable_socket_is_said_and_proc_carries_on() {
    if !docker::available("unreadable socket") {
        return;
    }
    let b = Container::run("unreadable", &[]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("docker.sock");
    let _listener = UnixListener::bind(&path).expect("listen");
    let script = format!("chmod 0 {}", path.display());
    assert!(Command::new("sh").args(["-c", &script]).status().expect("sh").success());
    // Root without the capability that goes past file permissions is refused as others are.
    let output = Command::new("setpriv")
        .args(["--bounding-set", "-dac_override,-dac_read_search", "--"])
        .arg(netobs_tests::program::binary())
        .args(["watch", "--once", "-o", "json", "--engine", &format!("unix://{}", path.display())])
        .output()
        .expect("run setpriv");
    let snapshot: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let problem = snapshot["engines"][0]["problem"].as_str().unwrap_or_default().to_owned();
    assert!(problem.contains("permission denied"), "{snapshot}");
    assert!(container(&snapshot, &b.id[..12]).is_some(), "by /proc: {snapshot}");
}
