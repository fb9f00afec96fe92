//! What is observed inside containers' namespaces and by cgroup: found, counted to the packet by (namespace,
//! ifindex), and gone with the container. Without an engine, so that it runs on any kernel.

use std::{fs, path::Path, process::Command};

use netobs_tests::{
    frames, kernel,
    netns::Netns,
    pretend::Pretend,
    program::{self, Watch, container, number},
    row, traffic, wait_for,
};
use nix::mount::{MsFlags, mount, umount};
use serde_json::Value;

const OPTIONS: [&str; 2] = ["--no-engine", "--grace=60s"];

/// A host with an interface that others can be put on top of.
fn host_with_parent() -> Netns {
    let host = Netns::new();
    host.sh("ip link add parent type veth peer name other; ip link set parent up; ip link set other up");
    host
}

/// Gives a container an interface on top of the parent, as engines do: made on the host, moved, renamed.
fn connect(host: &Netns, container: &Pretend, kind: &str, ifindex: Option<u32>, number: u32) {
    let index = ifindex.map(|ifindex| format!("index {ifindex}")).unwrap_or_default();
    host.sh(&format!(
        "ip link add new0 {index} link parent type {kind}; ip link set new0 netns {}",
        container.netns().pid()
    ));
    container.netns().sh(&format!(
        "ip link set new0 name eth0; ip addr add 10.78.0.{number}/24 dev eth0; ip link set eth0 up"
    ));
}

/// Tells two containers each other's MAC addresses. Of a broadcast between two macvlans on one parent the
/// kernel's byte counter counts the Ethernet header twice (`macvlan_broadcast_one`), so none is wanted where
/// bytes are compared.
fn introduce(containers: [(&Pretend, u32); 2]) {
    for ((one, _), (other, number)) in [(containers[0], containers[1]), (containers[1], containers[0])] {
        let mac = kernel::mac(other.netns(), "eth0");
        one.netns().sh(&format!("ip neigh replace 10.78.0.{number} lladdr {mac} dev eth0"));
    }
}

/// The one interface of a container in a snapshot, once it is there.
fn interface(watch: &Watch, container_name: &str) -> Value {
    watch.until(&format!("the interface of {container_name}"), |snapshot| {
        let interfaces = container(snapshot, container_name)?["interfaces"].as_array()?.clone();
        interfaces.into_iter().find(|interface| !interface["ifindex"].is_null())
    })
}

/// Ours and the kernel's own counters of a container's interface, when nothing passes.
fn assert_exact(watch: &Watch, container: &Pretend) -> Value {
    assert_equal(watch, container, false)
}

/// Of a packet from one ipvlan to another on the same parent the kernel's own receive counter counts the
/// Ethernet header twice (`ipvlan_rcv_frame`): 14 bytes too many for each, not one more and not one less.
fn assert_equal(watch: &Watch, container: &Pretend, header_twice: bool) -> Value {
    netobs_tests::wait_for("quiet", program::LIMIT, || {
        let before = kernel::link(container.netns(), "eth0");
        let ours = interface(watch, container.name());
        if kernel::link(container.netns(), "eth0") != before {
            return Err("packets still pass".to_owned());
        }
        let of = |direction: &str, unit: &str| {
            number(&ours, &format!("before.{direction}_{unit}"))
                + number(&ours, &format!("{direction}.{unit}"))
        };
        let twice = if header_twice { 14 * number(&ours, "rx.packets") } else { 0 };
        let expected = kernel::Link {
            rx_packets: of("rx", "packets"),
            rx_bytes: of("rx", "bytes") + twice,
            tx_packets: of("tx", "packets"),
            tx_bytes: of("tx", "bytes"),
        };
        if expected == before { Ok(ours) } else { Err(format!("netobs {expected:?}, kernel {before:?}")) }
    })
}

/// Two containers, one there before netobs and one after, ping each other.
fn pings(kind: &str, name: &str) {
    let host = host_with_parent();
    let (first, second) = (Pretend::new(), Pretend::new());
    connect(&host, &first, kind, None, 1);
    let watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, first.name());
    connect(&host, &second, kind, None, 2);
    interface(&watch, second.name());
    introduce([(&first, 1), (&second, 2)]);
    first.netns().sh("busybox ping -q -c 10 -i 0.05 10.78.0.2");
    for container in [&first, &second] {
        let ours = assert_equal(&watch, container, name == "ipvlan");
        assert_eq!(
            (&ours["name"], &ours["kind"], &ours["observed"]),
            (&"eth0".into(), &name.into(), &"inside".into())
        );
        assert!(ours["host_interface"].is_null(), "{ours}");
        for direction in ["rx", "tx"] {
            assert_eq!(
                number(&ours, &format!("{direction}.protocol.icmp.packets")),
                10,
                "{direction}: {ours}"
            );
            assert_eq!(
                number(&ours, &format!("{direction}.protocol.icmp.bytes")),
                980,
                "{direction}: {ours}"
            );
        }
        assert!(ours["addresses"].to_string().contains("10.78.0."), "{ours}");
        assert_eq!(foreign_mac(&watch, container), 0, "all were from the interface's own");
    }
    if name == "macvlan" {
        let frame = frames::ethernet(0x88b5, &[0; 46]);
        traffic::raw(first.netns(), "eth0", vec![frame; 3]);
        watch.until("them", |_| (foreign_mac(&watch, &first) == 3).then_some(()));
    }
    let but = if name == "ipvlan" { " (bytes but for the header that it counts twice)" } else { "" };
    row(
        kind,
        &format!("10 pings both ways, equal to the kernel's counters in the container's namespace{but}"),
    );
}

/// Frames that it sent from a MAC address that is not its interface's.
fn foreign_mac(watch: &Watch, of: &Pretend) -> u64 {
    let seen = container(&watch.fresh(), of.name()).expect("there");
    assert_eq!(number(&seen, "foreign_mac.unjudged_packets"), 0, "{seen}");
    number(&seen, "foreign_mac.packets")
}

#[test]
fn macvlan() {
    pings("macvlan mode bridge", "macvlan");
}

#[test]
#[ignore = "needs a kernel with ipvlan: cargo xtask vm"]
fn ipvlan_l2() {
    pings("ipvlan mode l2", "ipvlan");
}

#[test]
#[ignore = "needs a kernel with ipvlan: cargo xtask vm"]
fn ipvlan_l3() {
    pings("ipvlan mode l3", "ipvlan");
}

#[test]
#[ignore = "needs a kernel with ipvlan: cargo xtask vm"]
fn ipvlan_l3s() {
    pings("ipvlan mode l3s", "ipvlan");
}

/// The end of a pair whose other end is neither on the host nor in the container, as overlay networks have.
#[test]
fn a_pair_that_leads_elsewhere() {
    let (host, engine) = (Netns::new(), Netns::new());
    let container = Pretend::new();
    let watch = Watch::start(Some(&host), &OPTIONS);
    host.sh(&format!(
        "ip link add a0 type veth peer name b0; ip link set a0 netns {}; ip link set b0 netns {}",
        container.netns().pid(),
        engine.pid()
    ));
    engine.sh("ip addr add 10.78.0.9/24 dev b0; ip link set b0 up");
    container.netns().sh("ip link set a0 name eth0; ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up");
    interface(&watch, container.name());
    container.netns().sh("busybox ping -q -c 10 -i 0.05 10.78.0.9");
    let ours = assert_exact(&watch, &container);
    assert_eq!((&ours["kind"], &ours["observed"]), (&"veth".into(), &"inside".into()));
    assert_eq!(number(&ours, "tx.protocol.icmp.packets"), 10);
}

/// What a container's own containers send is the container's, and counted once: at its way out, not also at the pair that
/// leads to them without a bridge, as in a node of a cluster that is a container.
#[test]
fn a_pair_that_leads_to_a_container_within() {
    let host = Netns::new();
    let node = Pretend::new();
    let pod = node.within();
    let (node_pid, pod_pid) = (node.netns().pid(), pod.netns().pid());
    host.sh(&format!(
        "ip link add v0 type veth peer name eth0 netns {node_pid}; ip addr add 10.78.0.9/24 dev v0; ip link set v0 up; \
         ip route add 10.79.0.0/24 via 10.78.0.1"
    ));
    node.netns().sh(&format!(
        "ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up; sysctl -qw net.ipv4.ip_forward=1; \
         ip link add v1 type veth peer name eth0 netns {pod_pid}; ip link set v1 up; \
         ip addr add 10.79.0.1/32 dev v1; ip route add 10.79.0.2/32 dev v1"
    ));
    pod.netns()
        .sh("ip addr add 10.79.0.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.79.0.1");
    let watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, node.name());
    pod.netns().sh("busybox ping -q -c 10 -i 0.05 10.78.0.9");
    let ours = assert_exact(&watch, &node);
    assert_eq!(number(&ours, "tx.protocol.icmp.packets"), 10);
    let now = watch.until("the container", |snapshot| container_of(snapshot, node.name()));
    assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "{now}");
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 10, "{now}");
    let all = watch.until("the others", |snapshot| Some(snapshot["containers"].clone()));
    let within = all.as_array().expect("a list").iter().filter(|one| one["id"] == pod.id.as_str());
    assert_eq!(within.count(), 0, "{all}");
}

/// A pair with its other end on the host is observed there, and only there.
#[test]
fn a_pair_that_leads_to_the_host() {
    let host = Netns::new();
    let container = Pretend::new();
    let watch = Watch::start(Some(&host), &OPTIONS);
    host.sh(&format!(
        "ip link add v0 type veth peer name eth0 netns {}; ip addr add 10.78.0.9/24 dev v0; ip link set v0 up",
        container.netns().pid()
    ));
    container.netns().sh("ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up");
    interface(&watch, container.name());
    container.netns().sh("busybox ping -q -c 10 -i 0.05 10.78.0.9");
    let ours = assert_exact(&watch, &container);
    assert_eq!((&ours["observed"], &ours["host_interface"]), (&"host".into(), &"v0".into()));
    assert_eq!(number(&ours, "tx.protocol.icmp.packets"), 10);
    let now = watch.until("the container", |snapshot| container_of(snapshot, container.name()));
    assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "{now}");
}

#[test]
fn the_same_ifindex_in_two_namespaces() {
    let host = host_with_parent();
    let (first, second) = (Pretend::new(), Pretend::new());
    let watch = Watch::start(Some(&host), &OPTIONS);
    connect(&host, &first, "macvlan mode bridge", Some(100_050), 1);
    connect(&host, &second, "macvlan mode bridge", Some(100_050), 2);
    for container in [&first, &second] {
        assert_eq!(interface(&watch, container.name())["ifindex"], 100_050);
    }
    introduce([(&first, 1), (&second, 2)]);
    // One talks, the other is talked to: five and five, and three more that nobody answers.
    first.netns().sh("busybox ping -q -c 5 -i 0.05 10.78.0.2");
    first.netns().sh("ip neigh add 10.78.0.77 lladdr 02:00:00:00:00:77 dev eth0");
    first.netns().try_sh("busybox ping -q -c 3 -i 0.05 -W 1 10.78.0.77");
    let (one, two) = (assert_exact(&watch, &first), assert_exact(&watch, &second));
    assert_eq!(number(&one, "tx.protocol.icmp.packets"), 8);
    assert_eq!(number(&one, "rx.protocol.icmp.packets"), 5);
    assert_eq!(number(&two, "rx.protocol.icmp.packets"), 5);
    assert_eq!(number(&two, "tx.protocol.icmp.packets"), 5);
}

#[test]
fn gone_with_the_interface_and_with_the_container() {
    let host = host_with_parent();
    let peer = Pretend::new();
    connect(&host, &peer, "macvlan mode bridge", None, 9);
    let mut first = Some(Pretend::new());
    let name = first.as_ref().expect("there").name().to_owned();
    let watch = Watch::start(Some(&host), &OPTIONS);
    let pid = watch.pid();
    interface(&watch, peer.name());
    let at_first = program::open(pid);
    for (packets, after) in [(4, 4), (6, 10)] {
        let container = first.as_ref().expect("there");
        // The second has the ifindex of the first, which is gone.
        connect(&host, container, "macvlan mode bridge", Some(777), 1);
        interface(&watch, &name);
        container.netns().sh(&format!("busybox ping -q -c {packets} -i 0.05 10.78.0.9"));
        assert_eq!(
            watch.fresh()["agent"]["attached_interfaces"],
            4,
            "parent, its other end, peer's and this"
        );
        container.netns().sh("ip link del eth0");
        let ended = watch.until("the end of eth0", |snapshot| {
            let ended = container_of(snapshot, &name)?;
            (ended["interfaces"][0]["ifindex"].is_null()).then_some(ended)
        });
        assert_eq!(number(&ended, "tx.protocol.icmp.packets"), after, "{ended}");
        assert_eq!(number(&ended, "rx.protocol.icmp.packets"), after, "{ended}");
    }
    let container = first.as_ref().expect("there");
    connect(&host, container, "macvlan mode bridge", Some(777), 1);
    interface(&watch, &name);
    container.netns().sh("busybox ping -q -c 2 -i 0.05 10.78.0.9");
    drop(first.take());
    let ended = watch.until("the end of the container", |snapshot| {
        container_of(snapshot, &name).filter(|now| now["state"] == "removed")
    });
    assert_eq!(number(&ended, "tx.protocol.icmp.packets"), 12, "{ended}");
    watch.until("nothing of it left", |snapshot| {
        (snapshot["agent"]["attached_interfaces"] == 3).then_some(())
    });
    assert_eq!(program::open(pid), at_first, "descriptors and threads");
}

fn container_of(snapshot: &Value, name: &str) -> Option<Value> {
    container(snapshot, name)
}

#[test]
fn filters_of_a_killed_run_are_removed_inside_too() {
    let host = host_with_parent();
    let container = Pretend::new();
    connect(&host, &container, "macvlan mode bridge", None, 1);
    let filters = || container.netns().sh("tc filter show dev eth0 ingress; tc filter show dev eth0 egress");
    let ours = || filters().matches(" netobs ").count();
    let mut watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, container.name());
    assert_eq!(ours(), 2, "{}", filters());
    watch.kill();
    assert_eq!(ours(), 2, "nobody to remove them");
    let mut watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, container.name());
    assert_eq!(ours(), 2, "the new ones: {}", filters());
    watch.terminate();
    assert_eq!(ours(), 0, "{}", filters());
}

/// A container goes on without the process that it was found by, and is counted without a gap. When nobody of it is
/// left, its namespace is entered by whoever else is in there, so that no filters stay and count for the next that gets
/// their slot.
#[test]
fn the_process_that_it_was_found_by_ends() {
    let host = host_with_parent();
    let (first, second) = (Pretend::new(), Pretend::new());
    connect(&host, &first, "macvlan mode bridge", None, 1);
    connect(&host, &second, "macvlan mode bridge", None, 2);
    introduce([(&first, 1), (&second, 2)]);
    let filters = || first.netns().sh("tc filter show dev eth0 ingress; tc filter show dev eth0 egress");
    let ours = || filters().matches(" netobs ").count();
    for goes_on in [true, false] {
        let mut stand_in = first.stand_in();
        let mut watch = Watch::start(Some(&host), &OPTIONS);
        interface(&watch, first.name());
        assert_eq!(ours(), 2, "{}", filters());
        if goes_on {
            first.put_back();
        }
        stand_in.kill().expect("end it");
        stand_in.wait().expect("its end");
        if goes_on {
            for _ in 0..3 {
                first.netns().sh("busybox ping -q -c 5 -i 0.05 10.78.0.2");
                watch.fresh();
            }
            assert_eq!(number(&assert_exact(&watch, &first), "tx.protocol.icmp.packets"), 15);
        } else {
            wait_for("no filters", program::LIMIT, || if ours() == 0 { Ok(()) } else { Err(filters()) });
        }
        watch.terminate();
        assert_eq!(ours(), 0, "{}", filters());
    }
}

/// Of a namespace that somebody keeps without a process in it: nothing goes on counting there for whoever has the slot
/// next.
#[test]
fn a_namespace_that_outlives_its_container() {
    let host = host_with_parent();
    let container = Pretend::new();
    connect(&host, &container, "macvlan mode bridge", None, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let kept = folder.path().join("a namespace");
    fs::write(&kept, "").expect("a place to mount at");
    let namespace = format!("/proc/{}/ns/net", container.netns().pid());
    mount(Some(namespace.as_str()), &kept, None::<&str>, MsFlags::MS_BIND, None::<&str>).expect("mount it");
    let _mounted = Mounted(&kept);
    let filters = || {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", kept.display())).args(["sh", "-c"]);
        command.arg("tc filter show dev eth0 ingress; tc filter show dev eth0 egress");
        let output = command.output().expect("run nsenter");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let ours = || filters().matches(" netobs ").count();
    let mut watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, container.name());
    assert_eq!(ours(), 2, "{}", filters());
    drop(container);
    wait_for("no filters", program::LIMIT, || if ours() == 0 { Ok(()) } else { Err(filters()) });
    watch.terminate();
}

/// Unmounted with the value.
struct Mounted<'a>(&'a Path);

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = umount(self.0);
    }
}

#[test]
fn containers_on_the_hosts_network_are_counted_by_their_cgroups() {
    let (host, peer) = (Netns::new(), Netns::new());
    host.sh(&format!(
        "ip link add v0 type veth peer name eth0 netns {}; ip addr add 10.78.0.9/24 dev v0; ip link set v0 up",
        peer.pid()
    ));
    peer.sh("ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up");
    let (first, second) = (Pretend::on_host(&host), Pretend::on_host(&host));
    let watch = Watch::start(Some(&host), &OPTIONS);
    for container in [&first, &second] {
        let found = interface_of_cgroup(&watch, container.name());
        assert_eq!(
            (&found["name"], &found["kind"], &found["network"]),
            (&"cgroup".into(), &"cgroup".into(), &"host".into())
        );
        assert!(found["before"].is_null(), "nobody knows: {found}");
    }
    first.sh(&host, "busybox ping -q -c 5 -i 0.05 10.78.0.1");
    second.sh(&host, "busybox ping -q -c 8 -i 0.05 -s 100 10.78.0.1");
    // Of the host itself, and in nobody's count.
    host.sh("busybox ping -q -c 3 -i 0.05 10.78.0.1");
    let of = |container: &Pretend| interface_of_cgroup(&watch, container.name());
    for direction in ["rx", "tx"] {
        let icmp = format!("{direction}.protocol.icmp");
        let (one, two) = (of(&first), of(&second));
        assert_eq!(number(&one, &format!("{icmp}.packets")), 5, "{direction}: {one}");
        assert_eq!(number(&one, &format!("{icmp}.bytes")), 5 * 84, "from the IP header on");
        assert_eq!(number(&two, &format!("{icmp}.packets")), 8, "{direction}: {two}");
        assert_eq!(number(&two, &format!("{icmp}.bytes")), 8 * 128);
        let all = watch.interface("v0");
        let other = if direction == "rx" { "rx" } else { "tx" };
        assert_eq!(
            number(&all, &format!("{other}.protocol.icmp.packets")),
            5 + 8 + 3,
            "both and the host's own: {all}"
        );
    }
    let seen = container(&watch.fresh(), first.name()).expect("there");
    assert!(seen["foreign_mac"].is_null(), "there are none to look at: {seen}");
    let name = first.name().to_owned();
    drop(first);
    let ended =
        watch.until("its end", |snapshot| container(snapshot, &name).filter(|now| now["state"] == "removed"));
    assert_eq!(number(&ended, "tx.protocol.icmp.packets"), 5);
    row("host", "5 and 8 pings of two containers by cgroup_skb; the host's own three are in neither");
}

fn interface_of_cgroup(watch: &Watch, name: &str) -> Value {
    watch.until(&format!("the cgroup of {name}"), |snapshot| {
        container(snapshot, name)?["interfaces"].as_array()?.first().cloned()
    })
}

/// Made inside from the beginning, so that the host has no number for the namespace, as CNI plugins do.
#[test]
fn made_in_the_namespace() {
    let host = host_with_parent();
    let container = Pretend::new();
    host.sh(&format!(
        "ip link add eth0 link parent netns {} type macvlan mode bridge",
        container.netns().pid()
    ));
    container.netns().sh("ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up; ip neigh add 10.78.0.7 lladdr 02:00:00:00:00:07 dev eth0");
    let watch = Watch::start(Some(&host), &OPTIONS);
    interface(&watch, container.name());
    container.netns().try_sh("busybox ping -q -c 3 -i 0.05 -W 1 10.78.0.7");
    let ours = assert_exact(&watch, &container);
    assert_eq!(number(&ours, "tx.protocol.icmp.packets"), 3, "{ours}");
}

/// Without the privilege to enter namespaces, that is said of the container, and the rest goes on.
#[test]
fn without_the_privilege_to_enter() {
    let host = host_with_parent();
    let container = Pretend::new();
    connect(&host, &container, "macvlan mode bridge", None, 1);
    let output = host
        .command("setpriv")
        .args(["--bounding-set", "-sys_admin", "--"])
        .arg(program::binary())
        .args(["watch", "--once", "-o", "json", "--no-engine"])
        .output()
        .expect("run setpriv");
    let snapshot: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
    let now = program::container(&snapshot, container.name()).expect("the container");
    let why = now["unobserved"].as_str().unwrap_or_default().to_owned();
    assert!(why.contains("CAP_SYS_ADMIN"), "{now}");
    assert_eq!(snapshot["agent"]["unattached"].as_array().map(Vec::len), Some(1), "{}", snapshot["agent"]);
    assert!(program::interface(&snapshot, "parent").is_some(), "the rest goes on");
}
