//! `netobs cleanup`, and what a start takes for left over: what nobody has any more, and nothing else.

use std::process::{Child, Stdio};

use netobs_tests::{
    bpf,
    filters::Filter,
    kernel::{assert_exact, attach_modes},
    netns::{BRIDGE, Netns, World, die_with_parent},
    pretend::Pretend,
    program::{self, LIMIT, Watch, number},
    wait_for,
};

fn cleanup(host: &Netns, arguments: &[&str]) -> String {
    let output = program::netobs(Some(host)).arg("cleanup").args(arguments).output().expect("run netobs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// What it says of the host itself: there may be containers of other tests.
fn of_host(said: &str) -> usize {
    said.lines().filter(|line| line.contains("filter of netobs") && !line.contains("/ns/net")).count()
}

fn filters(netns: &Netns, name: &str) -> String {
    netns.sh(&format!("tc filter show dev {name} ingress; tc filter show dev {name} egress"))
}

/// Handles of netobs's filters.
fn handles(netns: &Netns, name: &str) -> Vec<String> {
    let listed = filters(netns, name);
    let ours = listed.lines().filter(|line| line.contains(" netobs "));
    let handle = |line: &str| Some(line.split("handle ").nth(1)?.split(' ').next()?.to_owned());
    let mut handles: Vec<String> = ours.filter_map(handle).collect();
    handles.sort();
    handles
}

#[test]
fn only_what_is_left_over_and_only_ours() {
    let world = World::new(2);
    let host = &world.host;
    host.sh("tc qdisc add dev veth0 clsact");
    let index: serde_json::Value = serde_json::from_str(&host.sh("ip -j link show dev veth0")).expect("JSON");
    let ifindex = u32::try_from(number(&index[0], "ifindex")).expect("an ifindex");
    let theirs = Filter::add(host, ifindex, true, 1);
    let mut killed = Watch::start(Some(host), &["--no-engine"]);
    killed.kill();
    let left = handles(host, "veth0");
    assert_eq!(left.len(), 2, "{left:?}");
    let would = cleanup(host, &["--dry-run"]);
    // Two veths and the bridge, both directions.
    assert_eq!(of_host(&would), 6, "{would}");
    assert!(
        would.contains("at ingress of veth0 (ifindex ") && would.contains("nothing was removed"),
        "{would}"
    );
    assert_eq!(handles(host, "veth0"), left, "only said");

    // One that lives removes them at its start; its own stay.
    let alive = Watch::start(Some(host), &["--no-engine"]);
    let ours = handles(host, "veth0");
    assert!(ours.len() == 2 && ours != left, "{ours:?}");
    let said = cleanup(host, &[]);
    assert!(said.contains("left: ") && of_host(&said) == 0, "{said}");
    assert_eq!(handles(host, "veth0"), ours);
    world.containers[0].sh("busybox ping -q -c 3 -i 0.02 10.77.0.11");
    assert_exact(host, &alive, &["veth0", "veth1", BRIDGE]);
    assert_eq!(alive.fresh()["agent"]["reattached"]["filter_removed"], 0);
    let mut alive = alive;
    alive.kill();
    let said = cleanup(host, &[]);
    assert_eq!(of_host(&said), 6, "{said}");
    for name in ["veth0", "veth1", BRIDGE] {
        assert!(handles(host, name).is_empty(), "{name}: {}", filters(host, name));
    }
    let stats = bpf::enable_stats();
    world.containers[0].sh("busybox ping -q -c 3 -i 0.02 10.77.0.11");
    assert!(filters(host, "veth0").contains("theirs") && theirs.runs() >= 3, "{}", filters(host, "veth0"));
    drop(stats);
    assert_eq!(of_host(&cleanup(host, &[])), 0);
}

#[test]
fn inside_containers_and_links_of_a_killed_run() {
    for mode in attach_modes("links of a killed run") {
        let (world, engine, container) = (World::new(1), Netns::new(), Pretend::new());
        let host = &world.host;
        let mut watch = Watch::start(Some(host), &["--no-engine", "--attach", mode]);
        host.sh(&format!(
            "ip link add a0 type veth peer name b0; ip link set a0 netns {}; ip link set b0 netns {}",
            container.netns().pid(),
            engine.pid()
        ));
        container.netns().sh("ip link set a0 name eth0; ip link set eth0 up");
        wait_for("filters inside", LIMIT, || match handles(container.netns(), "eth0").len() {
            2 => Ok(()),
            other => Err(other.to_string()),
        });
        watch.kill();
        assert_eq!(handles(container.netns(), "eth0").len(), 2, "{mode}: they stay");
        let said = cleanup(host, &[]);
        assert!(
            said.lines().any(|line| line.contains("of eth0") && line.contains("/ns/net")),
            "{mode}: {said}"
        );
        for (netns, name) in [(container.netns(), "eth0"), (host, "veth0"), (host, BRIDGE)] {
            assert!(handles(netns, name).is_empty(), "{mode}: {name}");
        }
        if *mode == "tcx" {
            assert_eq!(of_host(&said), 0, "links go with the process: {said}");
        }
    }
}

/// An agent that is process 1 of a PID namespace.
fn first_process(host: &Netns) -> Child {
    let mut command = host.command("unshare");
    command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]).arg(program::binary());
    command.args(["watch", "--output", "json", "--no-engine"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    die_with_parent(&mut command).spawn().expect("start netobs as process 1")
}

#[test]
fn agents_in_pid_namespaces_of_their_own() {
    let world = World::new(1);
    let host = &world.host;
    let attached = |count: usize| {
        wait_for(&format!("{count} filters"), LIMIT, || {
            let found = handles(host, "veth0");
            if found.len() == count { Ok(found) } else { Err(format!("{found:?}")) }
        })
    };
    let mut first = first_process(host);
    assert_eq!(attached(2), ["0x1", "0x1"], "process 1");
    let mut second = first_process(host);
    let both = attached(4);
    assert!(both[..2] == ["0x1", "0x1"] && both[2] == both[3] && both[3] != "0x1", "{both:?}");
    // Neither is seen here by its number.
    let here = Watch::start(Some(host), &["--no-engine"]);
    assert_eq!(attached(6).iter().filter(|handle| both.contains(handle)).count(), 4);
    assert_eq!(of_host(&cleanup(host, &[])), 0);
    drop(here);
    // From another network namespace, by entering this one, neither is taken for left over.
    cleanup(&Netns::new(), &[]);
    assert_eq!(attached(4), both);
    assert_eq!(attached(4), both);
    first.kill().expect("kill");
    first.wait().expect("its end");
    // `unshare` takes it along, in its own time.
    wait_for("its filters to be left over", LIMIT, || {
        let said = cleanup(host, &[]);
        if said.contains("netobs 1 at") && of_host(&said) == 4 { Ok(()) } else { Err(said) }
    });
    assert_eq!(attached(2), &both[2..]);
    second.kill().expect("kill");
    second.wait().expect("its end");
}
