//! How things hang together, on a real container engine.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
};

use netobs_tests::{
    docker::{self, Container, Network, docker},
    http,
    netns::die_with_parent,
    program::{self, Agent, LIMIT, netobs, run},
    wait_for,
};
use serde_json::Value;

/// Tries to break out of strings, labels and lines. Networks may be named so, and Compose's labels.
const HOSTILE: &str = "\"];\nend\\<script>;\u{202e}\x1b[2J";

/// Two networks with a container on each and one on both, and one of each other way to be connected.
/// (Networks last: they are dropped in this order, and an engine keeps one that is used.)
struct World {
    one: Container,
    two: Container,
    both: Container,
    side: Container,
    published: Container,
    on_host: Container,
    alone: Container,
    first: Network,
    second: Network,
}

impl World {
    fn new() -> Self {
        let first = Network::new(&format!("first{HOSTILE}"), &[]);
        let second = Network::new("second", &["--internal"]);
        let project = format!("com.docker.compose.project={HOSTILE}");
        let one = Container::run("one", &["--network", &first.name, "--label", &project]);
        let two = Container::run("two", &["--network", &second.name]);
        let both = Container::run("both", &["--network", &first.name]);
        docker(&["network", "connect", &second.name, &both.name]);
        let side = Container::run("side", &["--network", &format!("container:{}", one.name)]);
        let published = Container::run("published", &["-p", "127.0.0.1::80"]);
        let on_host = Container::run("onhost", &["--network", "host"]);
        let alone = Container::run("alone", &["--network", "none"]);
        Self { one, two, both, side, published, on_host, alone, first, second }
    }

    /// As the tree has it.
    fn first_name(&self) -> String {
        self.first.name.replace(HOSTILE, "\"];\\nend\\<script>;\\u{202e}\\x1b[2J")
    }
}

fn topology(arguments: &[&str]) -> String {
    let output = run(&[&["topology"], arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn topology_json() -> Value {
    serde_json::from_str(&topology(&["--output", "json"])).expect("JSON")
}

/// Waits for a tree that is complete: names and namespaces may come a moment after the first look.
fn complete_tree(world: &World) -> String {
    wait_for("a complete tree", LIMIT, || {
        let tree = topology(&[]);
        let named = below(&tree, &format!("container {} ", world.both.name)).len() == 2;
        let host = tree.contains(&format!("{} by its sockets", world.on_host.name));
        if named && host { Ok(tree) } else { Err(tree) }
    })
}

/// Lines of a tree below the one that begins so.
fn below<'a>(tree: &'a str, begin: &str) -> Vec<&'a str> {
    let parts = |line: &'a str| {
        let text = line.trim_start_matches(['│', '├', '└', '─', ' ', '\u{a0}']);
        (line.chars().count() - text.chars().count(), text)
    };
    let mut lines = tree.lines().map(parts).skip_while(|(_, text)| !text.starts_with(begin));
    let Some((depth, _)) = lines.next() else { return Vec::new() };
    lines.take_while(|(of, _)| *of > depth).map(|(_, text)| text).collect()
}

fn has(lines: &[&str], parts: &[&str]) -> bool {
    lines.iter().any(|line| parts.iter().all(|part| line.contains(part)))
}

#[test]
fn everything_is_at_its_place() {
    if !docker::available("topology") {
        return;
    }
    let world = World::new();
    let tree = complete_tree(&world);
    assert!(!tree.contains(['\x1b', '\u{202e}']), "{tree}");

    let (first, second) = (world.first_name(), &world.second.name);
    let on_first = below(&tree, &format!("network {first} (bridge)"));
    assert!(has(&on_first, &["bridge br-"]), "{tree}");
    for container in [&world.one, &world.both] {
        let address = container.inspect(&format!(
            "{{{{range $name, $of := .NetworkSettings.Networks}}}}{{{{if ne $name \"{second}\"}}}}\
             {{{{$of.IPAddress}}}}{{{{end}}}}{{{{end}}}}"
        ));
        assert!(has(&on_first, &["veth", &format!("→ {} eth0 {address}", container.name)]), "{tree}");
    }
    assert!(!has(&on_first, &[&world.two.name]), "{tree}");
    assert!(has(&on_first, &["isolated from: ", "bridge", "by the engine's rule"]), "{tree}");
    assert!(has(&on_first, &["shares container", &world.both.name, "with:", second]), "{tree}");
    let on_second = below(&tree, &format!("network {second} (bridge)"));
    assert!(has(&on_second, &["internal: no way out"]), "{tree}");
    assert!(
        has(&on_second, &[&format!("→ {} eth0 {}", world.two.name, world.two.address(second))]),
        "{tree}"
    );
    assert!(
        has(&on_second, &[&format!("→ {} eth1 {}", world.both.name, world.both.address(second))]),
        "{tree}"
    );
    assert!(has(&below(&tree, "network host (host)"), &[&world.on_host.name]), "{tree}");
    assert!(has(&below(&tree, "network none (null)"), &[&world.alone.name]), "{tree}");

    let namespace = world.one.exec(&["sh", "-c", "busybox readlink /proc/self/ns/net"]);
    let together = below(&tree, &format!("namespace {namespace}"));
    assert!(has(&together, &[&format!("container {} ", world.one.name)]), "{tree}");
    assert!(has(&together, &[&format!("container {} ", world.side.name)]), "{tree}");
    assert!(has(&together, &[&format!("shares the network of {}", world.one.name)]), "{tree}");
    assert!(has(
        &below(&tree, &format!("container {} ", world.published.name)),
        &["port 80/tcp", "127.0.0.1:"]
    ));
    let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
    let hosts = below(&tree, &format!("namespace {}, the host's", own.display()));
    assert!(has(&hosts, &[&world.on_host.name]), "{tree}");

    relations(&world, &topology_json());
    pictures(&world);
    over_http();
}

/// The same by keys.
fn relations(world: &World, topology: &Value) {
    assert_eq!(topology["version"], 1);
    let relations = topology["relations"].as_array().expect("relations");
    let related = |kind: &str, from: &str, to: &str| {
        relations.iter().any(|one| one["kind"] == kind && one["from"] == from && one["to"] == to)
    };
    let network = |name: &str| {
        let all = topology["networks"].as_array().expect("networks");
        let found = all.iter().find(|one| one["name"] == name);
        found.unwrap_or_else(|| panic!("no {name:?} in {all:?}"))["key"].as_str().expect("a key").to_owned()
    };
    let container = |container: &Container| format!("container:{}", container.id);
    let (first, second) = (network(&world.first.name), network(&world.second.name));
    for (one, on) in [
        (&world.one, &first),
        (&world.both, &first),
        (&world.two, &second),
        (&world.both, &second),
        (&world.on_host, &network("host")),
        (&world.alone, &network("none")),
        (&world.published, &network("bridge")),
    ] {
        assert!(related("connected", &container(one), on), "{} on {on}: {topology}", one.name);
    }
    let port = format!("port:{}:tcp:80", world.published.id);
    assert!(related("publishes", &container(&world.published), &port));
    assert!(related("manages", "engine:docker", &first));
    let holding = |member: &Container| {
        let key = container(member);
        let found = relations.iter().find(|one| one["kind"] == "holds" && one["to"] == key.as_str());
        found.map(|one| one["from"].clone())
    };
    assert!(holding(&world.one).is_some());
    assert_eq!(holding(&world.one), holding(&world.side), "one namespace");
    let veth = relations
        .iter()
        .find(|one| one["kind"] == "leads-to" && one["to"] == container(&world.two).as_str())
        .expect("a veth");
    assert_eq!(veth["interface"], "eth0");
    let bridge = relations.iter().find(|one| one["kind"] == "port-of" && one["from"] == veth["from"]);
    let bridge = bridge.expect("its bridge")["to"].as_str().expect("a key");
    assert!(related("bridge", &second, bridge));
    let isolation = topology["isolation"].as_array().expect("isolation");
    let pair = |a: &str, b: &str| {
        let found =
            isolation.iter().find(|one| (one["a"] == a && one["b"] == b) || (one["a"] == b && one["b"] == a));
        found.expect("a pair").clone()
    };
    assert_eq!(pair(&first, &second)["isolated"], false);
    assert_eq!(pair(&first, &second)["joined_by"], serde_json::json!([container(&world.both)]));
    assert_eq!(pair(&first, &network("bridge"))["why"], "engine-rule");
}

/// Graphviz draws it, and Mermaid's text has no more lines than it should.
fn pictures(world: &World) {
    let mermaid = topology(&["--output", "mermaid"]);
    assert!(mermaid.starts_with("flowchart LR\n"), "{mermaid}");
    assert!(mermaid.contains(&world.both.name), "{mermaid}");
    let known = |line: &str| line == "end" || line.starts_with("subgraph s") || line.starts_with('n');
    assert!(mermaid.lines().skip(1).all(|line| known(line.trim())), "{mermaid}");
    let mut child = Command::new("dot")
        .arg("-Tsvg")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start dot");
    let text = topology(&["--output", "dot"]);
    child.stdin.take().expect("a pipe").write_all(text.as_bytes()).expect("write to dot");
    let output = child.wait_with_output().expect("dot");
    let (svg, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
    let name = world.both.name.replace('-', "&#45;");
    assert!(svg.contains(&name) && !svg.contains("<script"), "{svg}");
}

/// The agent says the same. Others may start containers meanwhile: it is asked until it does.
fn over_http() {
    let agent = Agent::start(&[]);
    let without_time = |mut topology: Value| {
        topology.as_object_mut().expect("an object").remove("time").expect("a time");
        topology
    };
    wait_for("the agent to be ready", LIMIT, || match http::get(agent.port, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (_, index) = http::get(agent.port, "/").expect("the index");
    assert!(index.lines().any(|line| line == "/api/v1/topology"), "{index}");
    wait_for("the agent and the command to agree", LIMIT, || {
        let (status, body) = http::get(agent.port, "/api/v1/topology").map_err(|error| error.to_string())?;
        let theirs = without_time(serde_json::from_str(&body).map_err(|error| error.to_string())?);
        let ours = without_time(topology_json());
        if status == 200 && theirs == ours { Ok(()) } else { Err(format!("{theirs}\n{ours}")) }
    });
}

/// `netobs topology --watch` with what it has printed.
struct Watch {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
}

impl Watch {
    fn start(arguments: &[&str]) -> Self {
        let mut command = netobs(None);
        command.args(["topology", "--watch", "--interval", "100ms"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = die_with_parent(&mut command).spawn().expect("start netobs topology");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let store = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                store.lock().expect("no panic elsewhere").push(line);
            }
        });
        Self { child, lines }
    }

    /// Waits for a line with all these parts.
    fn line(&self, parts: &[&str]) -> String {
        wait_for(&format!("{parts:?}"), LIMIT, || {
            let lines = self.lines.lock().expect("no panic elsewhere");
            let found = lines.iter().find(|line| parts.iter().all(|part| line.contains(part)));
            found.cloned().ok_or_else(|| lines.join("\n"))
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        program::signal(self.child.id(), nix::sys::signal::Signal::SIGTERM);
        let status = self.child.wait().expect("wait for netobs");
        assert!(status.success() || std::thread::panicking(), "{status}");
    }
}

#[test]
fn what_changes_is_printed() {
    if !docker::available("topology --watch") {
        return;
    }
    let (first, second) = (Network::new("watched", &[]), Network::new("other", &[]));
    let watch = Watch::start(&[]);
    let documents = Watch::start(&["--output", "json"]);
    watch.line(&["network", &first.name]);
    documents.line(&[&first.name]);
    let container = Container::run("comes", &["--network", &first.name, "-p", "127.0.0.1::80"]);
    let name = container.name.clone();
    let line = watch.line(&[" + container ", &format!("{name} on network {} (eth0 ", first.name), ", veth"]);
    assert!(line.contains(&container.address(&first.name)), "{line}");
    let (time, _) = line.split_once(" + ").expect("a time");
    assert!(time.len() == "2026-01-01T00:00:00Z".len() && time.ends_with('Z'), "{line}");
    watch.line(&[" + port 80/tcp of ", &name, "(127.0.0.1:"]);
    docker(&["network", "connect", &second.name, &name]);
    watch.line(&[" + container ", &format!("{name} on network {} (eth1 ", second.name)]);
    watch.line(&[" ~ network ", &format!("shares container {name} with: ")]);
    docker(&["network", "disconnect", &second.name, &name]);
    watch.line(&[" - container ", &format!("{name} on network {} (eth1 ", second.name)]);
    docker(&["pause", &name]);
    watch.line(&[" ~ container ", &name, "state paused (was running)"]);
    docker(&["unpause", &name]);
    docker(&["rename", &name, &format!("{name}-new")]);
    watch.line(&[" ~ container ", &format!("{name}-new: was {name}")]);
    docker(&["rename", &format!("{name}-new"), &name]);
    watch.line(&[" ~ container ", &format!("{name}: was {name}-new")]);
    drop(container);
    watch.line(&[" - container ", &format!("{name} on network {} (eth0 ", first.name)]);
    let gone = second.name.clone();
    drop(second);
    watch.line(&[" - network ", &gone]);
    let lines = documents.lines.lock().expect("no panic elsewhere").clone();
    let parsed: Vec<Value> =
        lines.iter().map(|line| serde_json::from_str(line).expect("a document a line")).collect();
    assert!(parsed.len() > 5, "one for each change: {}", parsed.len());
    assert!(parsed.windows(2).all(|two| two[0] != two[1]));
}

#[test]
fn wrong_arguments_and_a_reader_that_leaves() {
    for output in ["dot", "mermaid"] {
        let output = run(&["topology", "--watch", "--output", output]);
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("--output tree"), "{output:?}");
    }
    for output in ["tree", "json"] {
        let mut child = netobs(None)
            .args(["topology", "--no-engine", "--watch", "--interval", "50ms", "--output", output])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        drop(child.stdout.take());
        let status = wait_for("its end", LIMIT, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        assert!(status.success(), "{output}: {status}");
    }
}
