//! A thousand containers that come and go, and what is left of them: nothing, neither in the agent nor in the
//! kernel nor on the host.

use std::{collections::BTreeMap, time::Duration};

use netobs_tests::{
    http,
    kernel::attach_modes,
    netns::Netns,
    pretend::Pretend,
    program::{Agent, number},
    traces::{Traces, namespaces},
    wait_for,
};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(60);

/// Interfaces of the host that stay: `br0`, `parent` and its other end.
const STAYING: usize = 3;

/// Containers in the test that CI runs; `NETOBS_TEST_CONTAINERS` takes another number.
const CONTAINERS: usize = 1000;

/// How many containers of each kind there are at a time.
#[derive(Clone, Copy)]
struct Batch {
    /// With a veth on the bridge.
    veth: usize,
    /// With a macvlan, which is observed inside.
    macvlan: usize,
    /// On the host's network, observed by their cgroup.
    host: usize,
}

fn host() -> Netns {
    let host = Netns::new();
    host.sh("ip link add br0 type bridge; ip addr add 10.79.0.1/16 dev br0; ip link set br0 up; \
             ip link add parent type veth peer name other; ip link set parent up; ip link set other up; \
             ip addr add 10.80.0.1/16 dev other");
    host
}

impl Batch {
    /// Brings it up: each of its containers has sent one ping, but for those on the host's network.
    fn start(self, host: &Netns) -> Vec<Pretend> {
        let bridged: Vec<Pretend> = (0..self.veth).map(|_| Pretend::new()).collect();
        let on_parent: Vec<Pretend> = (0..self.macvlan).map(|_| Pretend::new()).collect();
        let mut lines = String::new();
        for (n, container) in bridged.iter().enumerate() {
            // The first two share a cell of the directory of interfaces.
            let index = match n {
                0 => "index 200000".to_owned(),
                1 => format!("index {}", 200_000 + 65_536),
                _ => String::new(),
            };
            let pid = container.netns().pid();
            lines += &format!("link add v{n} {index} type veth peer name eth0 netns {pid}\n");
            lines += &format!("link set v{n} master br0 up\n");
        }
        for (n, container) in on_parent.iter().enumerate() {
            lines += &format!("link add m{n} link parent type macvlan mode bridge\n");
            lines += &format!("link set m{n} name eth0 netns {}\n", container.netns().pid());
        }
        host.sh(&format!("ip -batch - <<E\n{lines}E"));
        for (net, containers, gateway) in [(79, &bridged, "10.79.0.1"), (80, &on_parent, "10.80.0.1")] {
            for (n, container) in containers.iter().enumerate() {
                container.netns().sh(&format!(
                    "ip addr add 10.{net}.1.{}/16 dev eth0; ip link set eth0 up; \
                     for i in 1 2 3; do busybox ping -q -c 1 -W 2 {gateway} && exit; done; exit 1",
                    n + 1
                ));
            }
        }
        let on_host = (0..self.host).map(|_| Pretend::on_host(host));
        bridged.into_iter().chain(on_parent).chain(on_host).collect()
    }

    fn len(self) -> usize {
        self.veth + self.macvlan + self.host
    }
}

/// The agent's own view, asked inside its namespace.
fn snapshot(host: &Netns, port: u16) -> Result<Value, String> {
    let (_, body) =
        host.run(move || http::get(port, "/api/v1/snapshot")).map_err(|error| error.to_string())?;
    serde_json::from_str(&body).map_err(|error| error.to_string())
}

/// Containers of this test, by ID: the machine may have others.
fn ours(snapshot: &Value) -> BTreeMap<String, Value> {
    let prefix = format!("{:08x}", std::process::id());
    let all = snapshot["containers"].as_array().expect("containers").iter();
    let named = all.map(|container| (container["id"].as_str().expect("an ID").to_owned(), container.clone()));
    named.filter(|(id, _)| id.starts_with(&prefix)).collect()
}

/// Waits until all of a batch are observed, and each ping is with the container that sent it.
fn all_observed(host: &Netns, agent: &Agent, containers: &[Pretend], batch: Batch) {
    wait_for("all observed", LIMIT, || {
        let now = snapshot(host, agent.port)?;
        let known = ours(&now);
        let interface =
            |one: &Pretend| known.get(&one.id).map(|container| container["interfaces"][0].clone());
        let kinds = containers.iter().filter_map(interface).filter(|interface| {
            let before =
                interface["before"].as_object().map_or(0, |_| number(interface, "before.tx_packets"));
            let is_cgroup = interface["kind"] == "cgroup";
            is_cgroup || (!interface["ifindex"].is_null() && number(interface, "tx.packets") + before >= 1)
        });
        let mut found = BTreeMap::new();
        for interface in kinds {
            *found.entry(interface["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
        }
        let wanted: BTreeMap<String, usize> =
            [("veth", batch.veth), ("macvlan", batch.macvlan), ("cgroup", batch.host)]
                .into_iter()
                .filter(|(_, count)| *count > 0)
                .map(|(kind, count)| (kind.to_owned(), count))
                .collect();
        let unattached = now["agent"]["unattached"].to_string();
        assert!(!unattached.contains("--max-interfaces"), "a slot was not given back: {unattached}");
        if found == wanted { Ok(()) } else { Err(format!("{found:?}; {}", now["agent"])) }
    });
}

/// Waits until the agent knows no container and no interface that was there for a batch.
fn all_forgotten(host: &Netns, agent: &Agent) {
    wait_for("all forgotten", LIMIT, || {
        let now = snapshot(host, agent.port)?;
        let interfaces = now["interfaces"].as_array().map_or(0, Vec::len);
        let containers = ours(&now).len();
        // The kernel takes a namespace down after its last process.
        let namespaces = namespaces(host);
        if (containers, interfaces, namespaces) == (0, STAYING, 0) {
            Ok(())
        } else {
            Err(format!(
                "{containers} containers, {interfaces} interfaces, {namespaces} namespaces; {}",
                now["agent"]
            ))
        }
    });
}

/// Runs batch after batch; what there was before, and what there is after.
fn churn(mode: &str, batch: Batch, batches: usize) {
    let host = host();
    // Hardly more slots than are needed at a time: one that is not given back is missed.
    let slots = (batch.len() + 30).to_string();
    let agent = Agent::start_in(
        Some(&host),
        &[
            "--no-engine",
            "--grace",
            "500ms",
            // What is kept of flows that are over is no leak; so short a time that it does not count.
            "--flow-interval",
            "500ms",
            "--flow-idle",
            "1s",
            // Nor is what is kept of cells, which is taken page by page as they are used: few, so that all soon are.
            "--max-flows",
            "4096",
            "--attach",
            mode,
            "--max-interfaces",
            &slots,
        ],
    );
    wait_for("the agent", LIMIT, || snapshot(&host, agent.port).map(drop));
    let round = |check: bool, before: Option<&Traces>| {
        let containers = batch.start(&host);
        all_observed(&host, &agent, &containers, batch);
        if let Some(before) = before.filter(|_| check) {
            assert_there(&Traces::of(&host, agent.pid()), before, batch, mode);
        }
        drop(containers);
        all_forgotten(&host, &agent);
    };
    // Allocators, caches and the runtime have taken what they keep after that.
    round(false, None);
    round(false, None);
    // Slots are given back when their flows have been read, some time after the interfaces went.
    wait_for("free slots", LIMIT, || match Traces::of(&host, agent.pid()).maps["SENDERS"] {
        now if now <= 2 * STAYING => Ok(()),
        other => Err(format!("{other} senders")),
    });
    let before = Traces::settled(&host, agent.pid());
    assert_eq!(before.namespaces, 0, "{before:?}");
    let resident = agent.resident_kib();
    for n in 0..batches {
        round(n == 0, Some(&before));
    }
    // What may still be read by a program is given back a moment after it was let go.
    wait_for("what there was before", LIMIT, || {
        let now = Traces::of(&host, agent.pid());
        if now == before { Ok(()) } else { Err(format!("{now:?}, not {before:?}")) }
    });
    let after = agent.resident_kib();
    println!(
        "{} containers by {mode}: {resident} KiB resident before, {after} KiB after; {} descriptors",
        batches * batch.len(),
        before.descriptors.values().sum::<usize>()
    );
    assert!(after * 10 <= resident * 11, "{resident} KiB resident before, {after} KiB after");
}

/// While a batch is there, there is more of everything: what is compared can differ.
fn assert_there(now: &Traces, before: &Traces, batch: Batch, mode: &str) {
    let cells = |traces: &Traces, map: &str| traces.maps[map];
    assert_eq!(now.namespaces, before.namespaces + batch.veth + batch.macvlan, "{now:?}");
    assert_eq!(now.host_interfaces, before.host_interfaces + batch.veth, "{now:?}");
    let by_directory = cells(now, "IFACES") + cells(now, "CROWDED");
    assert_eq!(by_directory, STAYING + batch.veth, "{now:?}");
    assert_eq!(cells(now, "CROWDED"), usize::from(batch.veth > 1), "{now:?}");
    assert_eq!(cells(now, "CGROUPS"), 2 * batch.host, "{now:?}");
    let (links, filters) = if mode == "tcx" { (2 * batch.veth, 0) } else { (0, 2 * (STAYING + batch.veth)) };
    assert_eq!(now.links(), before.links() + links + 2 * batch.host, "{now:?}");
    assert_eq!(now.filters, filters, "{now:?}");
}

#[test]
fn a_thousand_containers() {
    let batch = Batch { veth: 45, macvlan: 5, host: 0 };
    let containers = std::env::var("NETOBS_TEST_CONTAINERS")
        .map_or(CONTAINERS, |containers| containers.parse().expect("a number"));
    churn("clsact", batch, containers.div_ceil(batch.len()));
}

#[test]
fn containers_on_the_hosts_network() {
    churn("clsact", Batch { veth: 2, macvlan: 0, host: 10 }, 3);
}

#[test]
fn links_and_not_filters() {
    let modes = attach_modes("links_and_not_filters");
    if modes.contains(&"tcx") {
        churn("tcx", Batch { veth: 15, macvlan: 1, host: 0 }, 4);
    }
}
