//! What the API of Kubernetes says of pods and services is where names are; without it, slow, broken or refusing, all
//! else goes on. The API is a stand-in's, its pods are a real containerd's.

use std::{
    net::UdpSocket,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use netobs_tests::{
    bridged::Bridged,
    collector::Collector,
    containerd::{self, Containerd},
    http,
    kubernetes::{ApiServer, Gone, Mood, NODE, PORT, pod, service},
    netns::Netns,
    program::{Agent, LIMIT, binary, container, number, run},
    prometheus::promtool_check,
    wait_for,
};
use serde_json::{Value, json};

/// What the stand-in has from the start, and what others are given.
const WEB: &str = "10.96.0.7";
const NEW: &str = "10.96.0.20";

const EVENTS: &str = include_str!("../data/kubernetes/pods.watch");

/// On the machine there may be many other containers, whose edges are none of ours.
const ROOM: &str = "--max-edges=100000";

/// How soon a scrape is answered, whatever the API does.
const PATIENCE: Duration = Duration::from_secs(5);

/// The agent as the DaemonSet runs it, in its own pod: it finds the API by the environment and a service account.
struct InPod {
    agent: Agent,
    /// After the agent: what was mounted there was in its mount namespace alone.
    _secrets: Secrets,
}

impl std::ops::Deref for InPod {
    type Target = Agent;

    fn deref(&self) -> &Agent {
        &self.agent
    }
}

/// The folder in which pods have their service accounts, on this machine; removed with the value if it was made by it.
struct Secrets {
    is_ours: bool,
}

const SECRETS: &str = "/run/secrets";

impl Secrets {
    fn folder() -> Self {
        Self { is_ours: std::fs::create_dir(SECRETS).is_ok() }
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        if self.is_ours {
            let _ = std::fs::remove_dir(SECRETS);
        }
    }
}

fn agent_in_pod(host: &Netns, account: &Path, options: &[&str]) -> InPod {
    let _secrets = Secrets::folder();
    let script = format!(
        "set -e; mount -t tmpfs nbtk8s {SECRETS}; mkdir -p {SECRETS}/kubernetes.io/serviceaccount; \
         mount --bind {} {SECRETS}/kubernetes.io/serviceaccount",
        account.display()
    );
    let pid = host.pid().to_string();
    let mut command = Command::new("nsenter");
    command.args(["--mount", "-t", &pid, "sh", "-c", &script]);
    assert!(command.status().is_ok_and(|status| status.success()), "{script}");
    let mut command = Command::new("nsenter");
    command.args(["--net", "--mount", "-t", &pid]).arg(binary());
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", PORT.to_string());
    command.env("NODE_NAME", NODE);
    InPod { agent: Agent::start_by(command, 9810, &[options, &[ROOM]].concat()), _secrets }
}

/// A host with one container that can send to every ClusterIP, and nobody there.
fn world() -> Bridged {
    let world = Bridged::new("br-k8s", "10.82.0", [10]);
    world.netns(0).sh("ip route add 10.96.0.0/16 dev eth0");
    world
}

fn agent(world: &Bridged, api: &ApiServer, more: &[&str]) -> Agent {
    let kubeconfig = api.kubeconfig().display().to_string();
    let options = ["--no-engine", "--no-drops", "--kubeconfig", &kubeconfig, "--node-name", NODE, ROOM];
    let agent = Agent::start_in(Some(&world.host), &[&options[..], more].concat());
    until(&agent, &world.host, "the container", |snapshot| {
        container(snapshot, world.name(0)).filter(|one| one["interfaces"][0]["name"] == "eth0")
    });
    agent
}

/// Some packets to a service's address; who has the address is of no interest to who sends.
fn send(world: &Bridged, address: &'static str, port: u16) {
    world.netns(0).sh(&format!("ip neigh replace {address} lladdr 02:00:00:00:00:99 dev eth0 nud permanent"));
    world.netns(0).run(move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        for _ in 0..3 {
            socket.send_to(b"hello", (address, port)).expect("send");
        }
    });
}

fn until<T>(agent: &Agent, host: &Netns, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
    wait_for(what, LIMIT * 2, || {
        let snapshot = agent.snapshot(host)?;
        look(&snapshot).ok_or_else(|| format!("{} {}", snapshot["edges"], snapshot["agent"]["degraded"]))
    })
}

fn edge_to(snapshot: &Value, port: u16) -> Option<Value> {
    let edges = snapshot["edges"].as_array()?;
    edges.iter().find(|edge| edge["port"] == port && edge["source"]["container"].is_string()).cloned()
}

/// Whose packets to a new port turn out to be going where.
fn service_of(world: &Bridged, agent: &Agent, address: &'static str, port: u16) -> Value {
    send(world, address, port);
    let edge = until(agent, &world.host, "an edge", |snapshot| edge_to(snapshot, port));
    assert_eq!(edge["sent"]["packets"], 3, "{edge}");
    edge["destination"]["service"].clone()
}

/// Asks again, with packets to other ports from this one on: a flow keeps the name that its address had when it began.
fn until_service(world: &Bridged, agent: &Agent, address: &'static str, mut port: u16, wanted: &Value) {
    wait_for(&format!("{wanted}"), LIMIT * 2, || {
        port += 1;
        let service = service_of(world, agent, address, port);
        if service == *wanted { Ok(()) } else { Err(service.to_string()) }
    });
}

/// A feature that does not work, and why.
fn degraded(snapshot: &Value, feature: &str) -> Option<String> {
    let all = snapshot["agent"]["degraded"].as_array()?;
    all.iter().find(|one| one[0] == feature).and_then(|one| Some(one[1].as_str()?.to_owned()))
}

fn until_it_works(agent: &Agent, host: &Netns) {
    until(agent, host, "that it works", |snapshot| {
        (snapshot["agent"]["degraded"].as_array()?.is_empty()).then_some(())
    });
}

fn metrics(host: &Netns) -> String {
    let start = Instant::now();
    let (status, text) = host.run(|| http::get(9810, "/metrics")).expect("an answer");
    assert!(status == 200 && start.elapsed() < PATIENCE, "{status} after {:?}", start.elapsed());
    text
}

fn has(text: &str, parts: &[&str]) -> bool {
    text.lines().any(|line| parts.iter().all(|part| line.contains(part)))
}

fn assert_narrow(api: &ApiServer) {
    let world = api.world();
    assert_eq!(world.refused, Vec::<String>::new(), "only pods of the node, and with a token");
    assert!(world.asked(&["/api/v1/pods?"]) > 0, "pods are asked for");
    let others = world
        .requests
        .iter()
        .find(|one| !one.starts_with("/api/v1/pods?") && !one.starts_with("/api/v1/services?"));
    assert_eq!(others, None, "nothing else is");
}

#[test]
fn pods_have_what_has_made_them() {
    if !containerd::available("pods have what has made them") {
        return;
    }
    let containerd = Containerd::start("routed:ptp:10.68.1");
    let host = containerd.host();
    let api = ApiServer::start(host);
    let web = containerd.pod("shop", "web-1", false);
    let app = containerd.container(&web, "app", &["sleep", "1000"]);
    let db = containerd.pod("shop", "db-0", false);
    let postgres =
        containerd.container(&db, "postgres", &["sh", "-c", "mkdir /tmp/w; httpd -f -p 8080 -h /tmp/w"]);
    let collector = Collector::start(host);
    let otlp = ["--otlp-endpoint=http://127.0.0.1:4318", "--otlp-interval=300ms"];
    let endpoint = containerd.endpoint();
    let options = [&["--cri", &endpoint, "--no-drops"][..], &otlp].concat();
    let agent = agent_in_pod(host, api.folder(), &options);
    let is = |kind: &str, name: &str| json!({"kind": kind, "name": name});
    let owner = |name: &str, owner: Value| {
        until(&agent, host, name, |snapshot| {
            let pod = &container(snapshot, name)?["pod"];
            (pod["owner"] == owner && pod["node"] == NODE).then_some(())
        });
    };
    owner("shop/web-1", is("Deployment", "web"));
    owner("shop/web-1/app", is("Deployment", "web"));
    owner("shop/db-0", is("StatefulSet", "db"));
    // What comes later: by the runtime first, by the API first.
    for name in ["backup-29381-hj2kq", "bare"] {
        containerd.pod("shop", name, false);
    }
    owner("shop/bare", Value::Null);
    api.replay(EVENTS);
    owner("shop/backup-29381-hj2kq", is("Job", "backup-29381"));
    containerd.pod("shop", "proxy-x7k2p", false);
    owner("shop/proxy-x7k2p", is("DaemonSet", "proxy"));

    // A service is as kube-proxy makes it: its address is translated on the host.
    let target = format!("{}:8080", containerd.address(&db));
    host.sh(&format!(
        "iptables -P FORWARD ACCEPT; iptables -t nat -A PREROUTING -d {WEB} -p tcp --dport 80 -j DNAT --to {target}"
    ));
    containerd.exec(&postgres, &["sh", "-c", "echo hello > /tmp/w/index.html"]);
    containerd.exec(&app, &["wget", "-q", "-O", "/dev/null", &format!("http://{WEB}/")]);
    let edge = until(&agent, host, "the edge to the service", |snapshot| {
        let edges = snapshot["edges"].as_array()?;
        edges.iter().find(|edge| edge["destination"]["service"] == "shop/web").cloned()
    });
    assert_eq!(edge["source"]["pod"], "web-1", "{edge}");
    assert_eq!((&edge["port"], &edge["destination"]["class"]), (&80.into(), &"cluster".into()), "{edge}");
    until(&agent, host, "the answers", |snapshot| {
        let edges = snapshot["edges"].as_array()?;
        edges.iter().find(|edge| edge["source"]["service"] == "shop/web").map(drop)
    });

    let (_, flows) = host.run(|| http::get(9810, "/api/v1/flows?container=shop/web-1")).expect("an answer");
    let flows: Value = serde_json::from_str(&flows).expect("JSON");
    let to_service =
        flows["flows"].as_array().expect("flows").iter().find(|flow| flow["server"]["service"] == "shop/web");
    let flow = to_service.unwrap_or_else(|| panic!("{flows}"));
    assert_eq!(
        (&flow["client"]["container"], &flow["server"]["address"]),
        (&"shop/web-1".into(), &WEB.into())
    );

    let text = metrics(host);
    promtool_check(&text);
    let edge = [
        "netobs_edge_packets_total",
        "destination_service=\"shop/web\"",
        "source_pod=\"web-1\"",
        "port=\"80\"",
    ];
    assert!(has(&text, &edge), "{text}");
    let pods: Vec<&str> = text.lines().filter(|line| line.starts_with("netobs_pod_info{")).collect();
    assert_eq!(pods.len(), 5, "one each: {pods:?}");
    for labels in [
        "namespace=\"shop\",pod=\"web-1\",pod_uid=\"uid-web-1\",owner_kind=\"Deployment\",owner_name=\"web\",node=\"node-1\"",
        "pod=\"bare\",pod_uid=\"uid-bare\",owner_kind=\"\",owner_name=\"\",node=\"node-1\"",
    ] {
        assert!(has(&text, &["netobs_pod_info", labels]), "{pods:?}");
    }
    assert!(!has(&text, &["netobs_degraded"]), "{text}");
    wait_for("attributes", LIMIT, || {
        let taken = collector.taken();
        let edge = [
            ("source.k8s.deployment.name", "web"),
            ("destination.k8s.namespace.name", "shop"),
            ("destination.k8s.service.name", "web"),
        ];
        taken.newest("netobs.edge.packets", &edge).ok_or("no edge")?;
        let own = [("k8s.statefulset.name", "db"), ("k8s.pod.name", "db-0")];
        taken.newest("container.network.io", &own).ok_or("no container")?;
        let info = [("k8s.job.name", "backup-29381"), ("k8s.node.name", NODE)];
        taken.newest("netobs.pod.info", &info).ok_or("no pod")?;
        if taken.resource.get("k8s.node.name").is_some_and(|node| node == NODE) {
            Ok(())
        } else {
            Err("no node".to_owned())
        }
    });
    assert_narrow(&api);
}

#[test]
fn without_the_api_labels_say_it() {
    if !containerd::available("without the API labels say it") {
        return;
    }
    let containerd = Containerd::start("routed:ptp:10.68.2");
    let host = containerd.host();
    let mut api = ApiServer::start(host);
    api.down();
    let pods = [
        (
            "web-6d4cf56db6-x7k2p",
            &[("pod-template-hash", "6d4cf56db6")][..],
            json!({"kind": "Deployment", "name": "web"}),
        ),
        (
            "db-0",
            &[("statefulset.kubernetes.io/pod-name", "db-0")],
            json!({"kind": "StatefulSet", "name": "db"}),
        ),
        (
            "proxy-x7k2p",
            &[("controller-revision-hash", "6b7d5c9f4")],
            json!({"kind": "DaemonSet", "name": "proxy"}),
        ),
        ("once-x7k2p", &[("batch.kubernetes.io/job-name", "once")], json!({"kind": "Job", "name": "once"})),
        ("by-hand", &[("app", "web")], Value::Null),
    ];
    for (name, labels, _) in &pods {
        containerd.pod_with("shop", name, false, labels);
    }
    let endpoint = containerd.endpoint();
    let agent = agent_in_pod(host, api.folder(), &["--cri", &endpoint, "--no-drops"]);
    for (name, _, owner) in &pods {
        until(&agent, host, name, |snapshot| {
            let pod = &container(snapshot, &format!("shop/{name}"))?["pod"];
            (pod["owner"] == *owner && pod["node"] == NODE).then_some(())
        });
    }
    for feature in ["kubernetes pods", "kubernetes services"] {
        let why = until(&agent, host, feature, |snapshot| degraded(snapshot, feature));
        assert!(why.starts_with("127.0.0.1:6443: connect: "), "{why}");
        assert!(has(&metrics(host), &[&format!("netobs_degraded{{feature=\"{feature}\"}} 1")]));
    }
    // The API knows better than labels.
    api.happens("ADDED", pod("db-0", "uid-db-0", Some(("OtherSet", "db"))));
    api.up(host);
    until(&agent, host, "the API's word", |snapshot| {
        let pod = &container(snapshot, "shop/db-0")?["pod"];
        (pod["owner"]["kind"] == "OtherSet").then_some(())
    });
    until_it_works(&agent, host);
    assert_narrow(&api);
}

#[test]
fn nobody_is_asked_who_need_not_be() {
    let world = world();
    let api = ApiServer::start(&world.host);
    let on = agent(&world, &api, &[]);
    until(&on, &world.host, "an answer", |_| (api.world().requests.len() >= 4).then_some(()));
    drop(on);
    // In a pod, and told not to; and outside of any.
    for (host, more) in [("127.0.0.1", "--no-kubernetes"), ("", "--no-drops")] {
        api.cut();
        std::thread::sleep(Duration::from_millis(100));
        api.world().requests.clear();
        let mut command = netobs_tests::program::netobs(Some(&world.host));
        command.env("KUBERNETES_SERVICE_HOST", host).env("KUBERNETES_SERVICE_PORT", PORT.to_string());
        let options = ["--no-engine", "--node-name", NODE, ROOM, more];
        let agent = Agent::start_by(command, 9810, &options);
        until(&agent, &world.host, "the container", |snapshot| container(snapshot, world.name(0)));
        assert_eq!(service_of(&world, &agent, WEB, 80), Value::Null, "{more}");
        let snapshot = agent.snapshot(&world.host).expect("a snapshot");
        assert_eq!(degraded(&snapshot, "kubernetes services"), None, "{more}: nothing is missing");
        assert_eq!(api.world().requests, Vec::<String>::new(), "{more}");
    }
}

#[test]
fn without_the_nodes_name_pods_are_not_asked_for() {
    let world = world();
    let api = ApiServer::start(&world.host);
    let kubeconfig = api.kubeconfig().display().to_string();
    for node in ["", "node-1,spec.nodeName!=node-2"] {
        let mut command = netobs_tests::program::netobs(Some(&world.host));
        command.env("NODE_NAME", node);
        let agent =
            Agent::start_by(command, 9810, &["--no-engine", "--no-drops", ROOM, "--kubeconfig", &kubeconfig]);
        let why = until(&agent, &world.host, "why", |snapshot| degraded(snapshot, "kubernetes pods"));
        assert!(why.contains("NODE_NAME"), "{why}");
        until(&agent, &world.host, "the container", |snapshot| container(snapshot, world.name(0)));
        assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web", "services need no node");
        assert_eq!(api.world().asked(&["/api/v1/pods"]), 0);
    }
}

#[test]
fn the_api_goes_away_and_comes_back() {
    let world = world();
    let mut api = ApiServer::start(&world.host);
    let agent = agent(&world, &api, &[]);
    assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web");
    api.down();
    until(&agent, &world.host, "word of it", |snapshot| degraded(snapshot, "kubernetes services"));
    assert_eq!(service_of(&world, &agent, WEB, 81), "shop/web", "what was known is");
    assert_eq!(service_of(&world, &agent, NEW, 83), Value::Null);
    api.happens("ADDED", service("new", NEW));
    api.happens("DELETED", service("web", WEB));
    let before = api.world().lists();
    api.up(&world.host);
    until_it_works(&agent, &world.host);
    // It goes on from where it was.
    until_service(&world, &agent, NEW, 1000, &"shop/new".into());
    until_service(&world, &agent, WEB, 2000, &Value::Null);
    assert_eq!(api.world().lists(), before, "nothing is listed again: {:?}", api.world().requests);
    assert!(api.world().asked(&["/api/v1/services?watch=1", "resourceVersion=1000"]) >= 2);
    // In the middle of a watch, without being away.
    api.cut();
    api.happens("ADDED", service("web", WEB));
    until_service(&world, &agent, WEB, 3000, &"shop/web".into());
    assert_narrow(&api);
}

#[test]
fn what_the_api_has_forgotten_is_listed_anew() {
    let world = world();
    let api = ApiServer::start(&world.host);
    let agent = agent(&world, &api, &[]);
    assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web");
    for (how, gone, there, port) in
        [(Gone::Event, ("web", WEB), ("new", NEW), 1000), (Gone::Status, ("new", NEW), ("web", WEB), 3000)]
    {
        // Nobody is told: it happens and is forgotten.
        api.is(Mood::Silent);
        api.cut();
        std::thread::sleep(Duration::from_millis(100));
        api.happens("DELETED", service(gone.0, gone.1));
        api.happens("ADDED", service(there.0, there.1));
        api.forget(how);
        api.is(Mood::Answers);
        let lists = api.world().lists();
        until_service(&world, &agent, there.1, port, &format!("shop/{}", there.0).into());
        let gone = service_of(&world, &agent, gone.1, port + 1000);
        assert_eq!(gone, Value::Null, "its deletion is noticed: {how:?}");
        assert!(api.world().lists() > lists, "{how:?}: all was listed");
    }
    assert_narrow(&api);
}

#[test]
fn a_slow_api_keeps_nobody_waiting() {
    let world = world();
    let api = ApiServer::start(&world.host);
    api.is(Mood::Silent);
    let agent = agent(&world, &api, &[]);
    send(&world, WEB, 80);
    wait_for("a scrape with the container", LIMIT, || {
        let text = metrics(&world.host);
        if has(&text, &["netobs_container_transmit_packets_total", world.name(0)]) {
            Ok(())
        } else {
            Err(text)
        }
    });
    let why = until(&agent, &world.host, "word of it", |snapshot| degraded(snapshot, "kubernetes services"));
    assert!(why.contains("no answer within 10s"), "{why}");
    // Flows wait no longer for names that do not come.
    let edge = until(&agent, &world.host, "an edge", |snapshot| edge_to(snapshot, 80));
    assert_eq!(edge["destination"]["service"], Value::Null);
    api.is(Mood::Slow(Duration::from_millis(700)));
    api.cut();
    until(&agent, &world.host, "that it works", |snapshot| {
        metrics(&world.host);
        (snapshot["agent"]["degraded"].as_array()?.is_empty()).then_some(())
    });
    assert_eq!(service_of(&world, &agent, WEB, 81), "shop/web");
    assert_narrow(&api);
}

#[test]
fn flows_wait_for_the_first_list() {
    let world = world();
    let api = ApiServer::start(&world.host);
    api.is(Mood::Slow(Duration::from_millis(500)));
    let agent = agent(&world, &api, &[]);
    // The list is there after two seconds and more: all of these packets are in its edge nevertheless.
    assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web");
    assert_narrow(&api);
}

#[test]
fn a_refusal_is_said() {
    let world = world();
    let api = ApiServer::start(&world.host);
    api.is(Mood::Forbids("pods"));
    let agent = agent(&world, &api, &[]);
    let why = until(&agent, &world.host, "word of it", |snapshot| degraded(snapshot, "kubernetes pods"));
    assert!(why.contains("403 Forbidden: pods is forbidden: User"), "{why}");
    assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web", "services are not refused");
    let snapshot = agent.snapshot(&world.host).expect("a snapshot");
    assert_eq!(degraded(&snapshot, "kubernetes services"), None);
    let kubeconfig = api.kubeconfig().display().to_string();
    let doctor = world.host.run(move || run(&["doctor", "--kubeconfig", &kubeconfig, "--node-name", NODE]));
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("the API does not tell of pods: 403 Forbidden"), "{said}");
    assert!(said.contains("the API tells of services"), "{said}");
    api.is(Mood::Answers);
    until_it_works(&agent, &world.host);
    assert_narrow(&api);
}

#[test]
fn a_token_is_read_again() {
    let world = world();
    let api = ApiServer::start(&world.host);
    let agent = agent(&world, &api, &[]);
    assert_eq!(service_of(&world, &agent, WEB, 80), "shop/web");
    // A request that is on its way would still have the first one.
    wait_for("both watches", LIMIT, || {
        let watched =
            ["/api/v1/pods?", "/api/v1/services?"].map(|what| api.world().asked(&[what, "watch=1"]));
        if watched == [1, 1] { Ok(()) } else { Err(format!("{watched:?}")) }
    });
    api.new_token("second");
    api.cut();
    api.happens("ADDED", service("new", NEW));
    until_service(&world, &agent, NEW, 1000, &"shop/new".into());
    assert_narrow(&api);
}

#[test]
fn names_from_the_api_are_data() {
    let world = world();
    let api = ApiServer::start(&world.host);
    let evil = "x\u{1b}[2J\"} 1\nevil_total{a=\"b\"} 2\u{202e}";
    api.happens("ADDED", service(evil, NEW));
    // What is no event ends a watch, and nothing else.
    let agent = agent(&world, &api, &[]);
    assert_eq!(service_of(&world, &agent, NEW, 80), format!("shop/{evil}").as_str());
    let text = metrics(&world.host);
    promtool_check(&text);
    assert!(!text.contains(['\u{1b}', '\u{202e}']) && !text.contains("\nevil_total"), "{text}");
    assert!(has(&text, &["netobs_edge_packets_total", "destination_service=\"shop/x\\\\x1b[2J"]), "{text}");
    let snapshot = agent.snapshot(&world.host).expect("a snapshot");
    assert!(number(&snapshot["agent"], "attached_interfaces") > 0);
    let (_, raw) = world.host.run(|| http::get(9810, "/api/v1/snapshot")).expect("an answer");
    assert!(!raw.contains(['\u{1b}', '\u{202e}']));
}
