//! Pods of a real containerd, made through its CRI and connected by real CNI plugins: netobs says whose everything
//! is, and counts as the kernel does.

use netobs_tests::{
    containerd::{self, Containerd, Pod},
    dockerd::{self, Dockerd},
    http, kernel,
    netns::Netns,
    program::{Agent, LIMIT, Watch, container, number},
    prometheus::promtool_check,
    row, wait_for,
};
use serde_json::Value;

const SLEEP: [&str; 2] = ["sleep", "1000"];

/// A pod of the namespace `shop` with a container `app`, and the container's ID.
fn pod(containerd: &Containerd, name: &str) -> (Pod, String) {
    let pod = containerd.pod("shop", name, false);
    let app = containerd.container(&pod, "app", &SLEEP);
    (pod, app)
}

/// The only interface of a pod, once it has what is wanted.
fn interface(watch: &Watch, pod: &str, enough: impl Fn(&Value) -> bool) -> Value {
    watch.until(&format!("the interface of {pod}"), |snapshot| {
        let now = container(snapshot, pod)?;
        let [one] = now["interfaces"].as_array()?.as_slice() else { return None };
        enough(one).then(|| one.clone())
    })
}

fn has_ten(interface: &Value) -> bool {
    ["rx", "tx"]
        .iter()
        .all(|direction| number(interface, &format!("{direction}.protocol.icmp.packets")) >= 10)
}

fn ten_pings(containerd: &Containerd, from: &str, to: &Pod) {
    let address = containerd.address(to);
    containerd.exec(from, &["ping", "-q", "-c", "10", "-i", "0.05", &address]);
}

/// Ten echo requests of 98 bytes, and their answers.
fn assert_ten(interface: &Value) {
    for direction in ["rx", "tx"] {
        let of = |unit: &str| number(interface, &format!("{direction}.protocol.icmp.{unit}"));
        assert_eq!((of("packets"), of("bytes")), (10, 980), "{direction}: {interface}");
    }
}

/// Of what the runtime has. On a machine with other engines there may be containers of theirs, found by `/proc`
/// before the runtime has answered.
fn assert_nothing_unknown(containerd: &Containerd, snapshot: &Value) {
    assert_eq!(number(&snapshot["agent"], "unattributed_interfaces"), 0, "{}", snapshot["agent"]);
    let ids = containerd.ids();
    for container in snapshot["containers"].as_array().expect("containers") {
        if container["engine"] == "proc" {
            assert!(!ids.iter().any(|id| container["id"] == id.as_str()), "{container}");
            continue;
        }
        assert!(container["pod"]["name"].is_string(), "{container}");
        for one in container["interfaces"].as_array().expect("interfaces") {
            assert!(one["name"].is_string() && one["network"].is_string(), "{container}");
        }
    }
}

/// And never told to do anything, by what it says itself that it was asked.
#[test]
fn the_runtime_is_only_asked() {
    if !containerd::available("the runtime is only asked") {
        return;
    }
    let containerd = Containerd::start("asked:bridge:10.66.9");
    let _pod = pod(&containerd, "web-1");
    let before = containerd.asked();
    assert!(before.get("RunPodSandbox").is_some_and(|times| *times > 0.0), "by us: {before:?}");
    let watch = Watch::start(Some(containerd.host()), &["--cri", &containerd.endpoint()]);
    watch.container("shop/web-1/app");
    interface(&watch, "shop/web-1", |_| true);
    drop(watch);
    let after = containerd.asked();
    let asked: Vec<&String> = after
        .iter()
        .filter(|(method, times)| before.get(*method) != Some(*times))
        .map(|(it, _)| it)
        .collect();
    assert!(asked.iter().any(|method| *method == "ListPodSandbox"), "{asked:?}");
    let reads = |method: &str| {
        ["Version", "Status", "GetContainerEvents"].contains(&method)
            || method.starts_with("List")
            || method.ends_with("Status")
    };
    assert!(asked.iter().all(|method| reads(method)), "{asked:?}");
}

#[test]
fn pods_on_a_bridge() {
    if !containerd::available("pods on a bridge") {
        return;
    }
    let containerd = Containerd::start("shopnet:bridge:10.66.1");
    let host = containerd.host();
    // One is there before netobs is, one comes later.
    let (web, app) = pod(&containerd, "web-1");
    let watch = Watch::start(Some(host), &["--cri", &containerd.endpoint()]);
    let (api, _) = pod(&containerd, "api-1");
    for name in ["shop/web-1", "shop/api-1"] {
        interface(&watch, name, |_| true);
    }
    ten_pings(&containerd, &app, &api);
    let veths = ["shop/web-1", "shop/api-1"].map(|name| {
        let one = interface(&watch, name, has_ten);
        assert_ten(&one);
        assert_eq!((&one["name"], &one["network"]), (&"eth0".into(), &"shopnet".into()), "{one}");
        assert_eq!((&one["driver"], &one["observed"]), (&"bridge".into(), &"host".into()), "{one}");
        one["host_interface"].as_str().expect("a veth").to_owned()
    });
    kernel::assert_exact(host, &watch, &[&veths[0], &veths[1], "shopnet0"]);

    let sandbox = watch.container("shop/web-1");
    assert_eq!((&sandbox["id"], &sandbox["state"]), (&web.sandbox.as_str().into(), &"running".into()));
    let identity = serde_json::json!({
        "namespace": "shop", "name": "web-1", "uid": "uid-web-1", "container": null, "labels": {"app": "web-1"},
        "owner": null, "node": null
    });
    assert_eq!(sandbox["pod"], identity, "the kubelet's labels are left out");
    assert_eq!(
        (&sandbox["engine"], &sandbox["members"][0]),
        (&"containerd".into(), &"shop/web-1/app".into())
    );
    assert_eq!(sandbox["endpoints"][0]["addresses"][0], containerd.address(&web));
    let member = watch.container("shop/web-1/app");
    assert_eq!((&member["id"], &member["pod"]["container"]), (&app.as_str().into(), &"app".into()));
    assert_eq!(member["namespace"], sandbox["namespace"], "the pod's");
    assert!(sandbox["namespace"].as_str().is_some_and(|name| name.starts_with("net:[")), "{sandbox}");
    let edge = watch.until("an edge", |snapshot| {
        let edges = snapshot["edges"].as_array()?;
        edges
            .iter()
            .find(|edge| edge["source"]["pod"] == "web-1" && edge["destination"]["pod"] == "api-1")
            .cloned()
    });
    assert_eq!(edge["source"]["container"], "shop/web-1");
    assert_eq!(edge["destination"]["namespace"], "shop");
    assert_nothing_unknown(&containerd, &watch.fresh());

    let totals = number(&watch.container("shop/api-1"), "tx.packets");
    containerd.stop(&api);
    let stopped = watch.until("the end of a pod", |snapshot| {
        container(snapshot, "shop/api-1").filter(|now| now["state"] == "exited")
    });
    assert!(number(&stopped, "tx.packets") >= totals, "{stopped}");
    containerd.remove(&api);
    watch.until("its removal", |snapshot| {
        container(snapshot, "shop/api-1").filter(|now| now["state"] == "removed")
    });
    assert_nothing_unknown(&containerd, &watch.fresh());
    row("CNI bridge", "10 pings both ways between pods of containerd, by namespace, pod and container");
}

#[test]
fn pods_without_a_bridge() {
    if !containerd::available("pods without a bridge") {
        return;
    }
    let containerd = Containerd::start("routed:ptp:10.66.2");
    let host = containerd.host();
    host.sh("ip link add nbpar type veth peer name nbparx; ip link set nbpar up; ip link set nbparx up");
    let watch = Watch::start(Some(host), &["--cri", &containerd.endpoint()]);
    let ((_one, from), (to, _)) = (pod(&containerd, "ptp-1"), pod(&containerd, "ptp-2"));
    for name in ["shop/ptp-1", "shop/ptp-2"] {
        interface(&watch, name, |one| one["network"] == "routed");
    }
    ten_pings(&containerd, &from, &to);
    let veths = ["shop/ptp-1", "shop/ptp-2"].map(|name| {
        let one = interface(&watch, name, has_ten);
        assert_ten(&one);
        assert_eq!((&one["network"], &one["driver"]), (&"routed".into(), &"ptp".into()), "{one}");
        one["host_interface"].as_str().expect("a veth").to_owned()
    });
    kernel::assert_exact(host, &watch, &[&veths[0], &veths[1]]);

    containerd.network("flat:macvlan:10.66.3:nbpar");
    let ((_one, from), (to, _)) = (pod(&containerd, "mac-1"), pod(&containerd, "mac-2"));
    for name in ["shop/mac-1", "shop/mac-2"] {
        interface(&watch, name, |one| one["observed"] == "inside");
    }
    ten_pings(&containerd, &from, &to);
    for name in ["shop/mac-1", "shop/mac-2"] {
        let one = interface(&watch, name, has_ten);
        assert_ten(&one);
        assert_eq!((&one["kind"], &one["driver"]), (&"macvlan".into(), &"macvlan".into()), "{one}");
        assert_eq!(one["network"], "flat", "{one}");
    }
    let before = interface(&watch, "shop/ptp-1", |_| true);
    assert_eq!(before["network"], "routed", "those that were there stay on theirs");
    assert_nothing_unknown(&containerd, &watch.fresh());
    row(
        "CNI without a bridge",
        "10 pings both ways between pods by ptp, on the host, and by macvlan, inside",
    );
}

#[test]
fn pods_on_the_hosts_network() {
    if !containerd::available("pods on the host's network") {
        return;
    }
    let containerd = Containerd::start("shopnet:bridge:10.66.4");
    let watch = Watch::start(Some(containerd.host()), &["--cri", &containerd.endpoint()]);
    let pod = containerd.pod("kube-system", "proxy", true);
    let app = containerd.container(&pod, "proxy", &SLEEP);
    let one = watch.until("its sockets", |snapshot| {
        let now = container(snapshot, "kube-system/proxy/proxy")?;
        Some(now["interfaces"].as_array()?.first()?.clone())
    });
    assert_eq!((&one["observed"], &one["network"]), (&"cgroup".into(), &"host".into()), "{one}");
    containerd.exec(&app, &["ping", "-q", "-c", "3", "-i", "0.05", "127.0.0.1"]);
    watch.until("its packets", |snapshot| {
        let now = container(snapshot, "kube-system/proxy/proxy")?;
        (number(&now, "tx.protocol.icmp.packets") >= 3).then_some(())
    });
    assert_nothing_unknown(&containerd, &watch.fresh());
}

fn scrape(host: &Netns) -> String {
    wait_for("a scrape", LIMIT, || {
        match host.run(|| http::get(9810, "/metrics").map_err(|error| error.to_string()))? {
            (200, text) => Ok(text),
            (status, _) => Err(status.to_string()),
        }
    })
}

#[test]
fn every_series_says_whose_it_is() {
    if !containerd::available("every series says whose it is") {
        return;
    }
    let containerd = Containerd::start("shopnet:bridge:10.66.5");
    let host = containerd.host();
    let _agent = Agent::start_in(Some(host), &["--cri", &containerd.endpoint()]);
    let ((web, app), (api, _)) = (pod(&containerd, "web-1"), pod(&containerd, "api-1"));
    wait_for("their interfaces", LIMIT, || {
        let text = scrape(host);
        let of = |pod: &str| {
            let labels = format!("netobs_interface_info{{namespace=\"shop\",pod=\"{pod}\"");
            text.lines().any(|line| line.starts_with(&labels) && line.contains("address=\"10.66.5."))
        };
        if of("web-1") && of("api-1") { Ok(()) } else { Err(text) }
    });
    ten_pings(&containerd, &app, &api);
    let edge = "source_namespace=\"shop\",source_pod=\"web-1\",destination_namespace=\"shop\",destination_pod=\"api-1\"";
    let text = wait_for("all names", LIMIT, || {
        let text = scrape(host);
        let is_there = |parts: &[&str]| text.lines().any(|line| parts.iter().all(|part| line.contains(part)));
        let all = is_there(&["netobs_edge_packets_total", edge, "source=\"shop/web-1\""])
            && is_there(&[
                "netobs_container_info",
                "pod=\"web-1\"",
                "container=\"app\"",
                "pod_uid=\"uid-web-1\"",
            ])
            && is_there(&["netobs_container_info", "pod=\"api-1\"", "container=\"app\""]);
        if all { Ok(text) } else { Err(text) }
    });
    let ids = containerd.ids();
    let is_ours = |line: &&str| ids.iter().any(|id| line.contains(&format!(",id=\"{}\"", &id[..12])));
    let own = text
        .lines()
        .filter(is_ours)
        .filter(|line| line.starts_with("netobs_container_") || line.starts_with("netobs_interface_info"));
    let mut series = 0;
    for line in own {
        assert!(line.contains("namespace=\"shop\"") && line.contains("pod=\""), "{line}");
        assert!(!line.contains("unknown"), "{line}");
        series += 1;
    }
    assert!(series > 50, "{text}");
    // On this host there are no others' interfaces.
    let on_host =
        |line: &&str| line.contains("host_interface=\"veth") && line.starts_with("netobs_interface_info");
    assert_eq!(text.lines().filter(on_host).filter(|line| line.contains("namespace=\"shop\"")).count(), 2);
    assert_eq!(text.lines().filter(on_host).count(), 2, "{text}");
    for name in ["web-1", "api-1"] {
        let labels = format!("namespace=\"shop\",pod=\"{name}\",container=\"POD\"");
        let protocol = text.lines().find(|line| {
            line.starts_with("netobs_container_protocol_receive_packets_total")
                && line.contains(&labels)
                && line.contains("protocol=\"icmp\"")
        });
        assert!(protocol.is_some_and(|line| line.ends_with(" 10")), "{protocol:?}\n{text}");
    }
    promtool_check(&text);
    containerd.stop(&web);
    containerd.remove(&web);
    wait_for("word of its end", LIMIT, || {
        let text = scrape(host);
        let info = "netobs_container_info{namespace=\"shop\",pod=\"web-1\"";
        let ended = text.lines().any(|line| line.starts_with(info) && line.contains("state=\"removed\""));
        if ended { Ok(()) } else { Err(text) }
    });
}

#[test]
fn a_runtime_comes_and_goes() {
    if !containerd::available("a runtime comes and goes") {
        return;
    }
    let mut containerd = Containerd::start("shopnet:bridge:10.66.6");
    let (_web, app) = pod(&containerd, "web-1");
    let watch = Watch::start(Some(containerd.host()), &["--cri", &containerd.endpoint()]);
    interface(&watch, "shop/web-1", |_| true);
    containerd.stop_daemon();
    watch.until("word that it is gone", |snapshot| {
        (snapshot["engines"][0]["connected"] == false && snapshot["engines"][0]["problem"].is_string())
            .then_some(())
    });
    assert_eq!(watch.container("shop/web-1")["state"], "running", "its pods live on");
    containerd.start_daemon();
    watch.until("word that it is back", |snapshot| {
        (snapshot["engines"][0]["connected"] == true).then_some(())
    });
    let (api, _) = pod(&containerd, "api-1");
    interface(&watch, "shop/api-1", |_| true);
    ten_pings(&containerd, &app, &api);
    for name in ["shop/web-1", "shop/api-1"] {
        assert_ten(&interface(&watch, name, has_ten));
    }
    assert_nothing_unknown(&containerd, &watch.fresh());
}

#[test]
fn beside_docker() {
    if !containerd::available("pods beside Docker's containers")
        || !dockerd::available("pods beside Docker's containers")
    {
        return;
    }
    let mut docker = Dockerd::new(&[]);
    docker.start();
    docker.host.sh("iptables -P FORWARD ACCEPT");
    let containerd = Containerd::start_beside(&docker.host, "shopnet:bridge:10.66.7");
    let endpoints = [docker.endpoint(), containerd.endpoint()];
    let watch = Watch::start(Some(&docker.host), &["--engine", &endpoints[0], "--cri", &endpoints[1]]);
    let id = docker.run("shop-db", &[]);
    let ((_web, app), (api, _)) = (pod(&containerd, "web-1"), pod(&containerd, "api-1"));
    for name in ["shop-db", "shop/web-1", "shop/api-1"] {
        interface(&watch, name, |_| true);
    }
    ten_pings(&containerd, &app, &api);
    let address = docker.docker(&["inspect", "--format", "{{.NetworkSettings.IPAddress}}", &id]);
    containerd.exec(&app, &["ping", "-q", "-c", "10", "-i", "0.05", &address]);
    let database = interface(&watch, "shop-db", has_ten);
    assert_ten(&database);
    assert_eq!((&database["network"], &database["driver"]), (&"bridge".into(), &"bridge".into()));
    assert_ten(&interface(&watch, "shop/api-1", has_ten));
    watch.until("an edge from a pod to a container", |snapshot| {
        let edges = snapshot["edges"].as_array()?;
        let is_it =
            |edge: &&Value| edge["source"]["pod"] == "web-1" && edge["destination"]["container"] == "shop-db";
        edges.iter().find(is_it).map(|edge| assert!(edge["destination"]["pod"].is_null(), "{edge}"))
    });
    let snapshot = watch.fresh();
    assert_eq!(number(&snapshot["agent"], "unattributed_interfaces"), 0, "{snapshot}");
    for (name, engine) in
        [("shop-db", "docker"), ("shop/web-1", "containerd"), ("shop/web-1/app", "containerd")]
    {
        assert_eq!(container(&snapshot, name).expect(name)["engine"], engine);
    }
}
