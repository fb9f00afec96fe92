//! What an interface is told by: not by its name, its number or its bridge, all of which change hands while it
//! is counted.

use netobs_tests::{
    kernel::{self, assert_exact, attach_modes},
    netns::{BRIDGE, World},
    pretend::Pretend,
    program::{self, Watch, container, number},
};
use serde_json::Value;

/// Bridge beside [`BRIDGE`], with the same address range.
const OTHER: &str = "br-other";

/// A world with another bridge, and a container found by `/proc` on [`BRIDGE`] by `moving0`.
fn two_bridges() -> (World, Pretend) {
    let world = World::new(2);
    let container = Pretend::new();
    world.host.sh(&format!(
        "ip link add {OTHER} type bridge; ip link set {OTHER} up; ip link set veth1 master {OTHER}; \
         ip link add moving0 type veth peer name eth0 netns {}; ip link set moving0 master {BRIDGE} up",
        container.netns().pid()
    ));
    container.netns().sh("ip addr add 10.77.0.99/24 dev eth0; ip link set eth0 up");
    (world, container)
}

/// ICMP packets that a container has received and sent on a network; none if it never was there.
fn on_network(container: &Value, network: &str) -> Option<(u64, u64)> {
    let interface = container["interfaces"].as_array()?.iter().find(|one| one["network"] == network)?;
    let icmp = |direction: &str| number(interface, &format!("{direction}.protocol.icmp.packets"));
    Some((icmp("rx"), icmp("tx")))
}

#[test]
fn moved_to_another_bridge() {
    for mode in attach_modes("moved_to_another_bridge") {
        let (world, moving) = two_bridges();
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
        watch.until("the container", |snapshot| on_network(&container(snapshot, moving.name())?, BRIDGE));
        moving.netns().sh("busybox ping -q -c 5 -i 0.05 10.77.0.10");
        assert_exact(&world.host, &watch, &["moving0", "veth0", BRIDGE]);

        world.host.sh(&format!("ip link set moving0 master {OTHER}"));
        let moved = watch.until("the other network", |snapshot| {
            container(snapshot, moving.name()).filter(|now| now["networks"] == serde_json::json!([OTHER]))
        });
        assert_eq!(on_network(&moved, OTHER), Some((0, 0)), "nothing was counted there: {moved}");
        let veth = watch.interface("moving0");
        assert_eq!((&veth["network"], &veth["bridge"]), (&OTHER.into(), &OTHER.into()));
        // Who is there now answers, and who is where it was hears nothing.
        moving.netns().sh("ip neigh flush dev eth0; busybox ping -q -c 7 -i 0.05 10.77.0.11");
        assert_exact(&world.host, &watch, &["moving0", "veth0", "veth1", BRIDGE, OTHER]);
        let now = watch.container(moving.name());
        assert_eq!(on_network(&now, BRIDGE), Some((5, 5)), "{mode}: what was counted there stays: {now}");
        assert_eq!(on_network(&now, OTHER), Some((7, 7)), "{mode}: {now}");
        assert_eq!(number(&now, "rx.protocol.icmp.packets"), 12, "{mode}: each once: {now}");

        // Back, by way of none, and to its end.
        world.host.sh(&format!("ip link set moving0 nomaster; ip link set moving0 master {BRIDGE}"));
        watch.until("the first network again", |snapshot| {
            (program::interface(snapshot, "moving0")?["network"] == BRIDGE).then_some(())
        });
        moving.netns().sh("ip neigh flush dev eth0; busybox ping -q -c 3 -i 0.05 10.77.0.10");
        assert_exact(&world.host, &watch, &["moving0", "veth0", "veth1", BRIDGE, OTHER]);
        let last = kernel::link(&world.host, "moving0");
        world.host.sh("ip link del moving0");
        let ended = watch.until("the end of moving0", |snapshot| {
            let now = container(snapshot, moving.name())?;
            now["interfaces"].as_array()?.iter().all(|one| one["host_interface"].is_null()).then_some(now)
        });
        assert_eq!(on_network(&ended, BRIDGE), Some((8, 8)), "{mode}: {ended}");
        assert_eq!(on_network(&ended, OTHER), Some((7, 7)), "{mode}: {ended}");
        let of =
            |unit: &str| number(&ended, &format!("before.rx_{unit}")) + number(&ended, &format!("rx.{unit}"));
        assert_eq!((of("packets"), of("bytes")), (last.tx_packets, last.tx_bytes), "{mode}: {ended}");
        assert_eq!(watch.fresh()["agent"]["unattached"], serde_json::json!([]));
    }
}

/// Traffic runs while it is moved to and fro: each packet is on one network.
#[test]
fn moved_while_it_is_used() {
    const PINGS: u64 = 300;
    let (world, moving) = two_bridges();
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    watch.until("the container", |snapshot| on_network(&container(snapshot, moving.name())?, BRIDGE));
    // Both answer, with one MAC address, so that nobody has to look for the other.
    let mac = kernel::mac(&world.containers[0], "eth0");
    world.containers[1].sh(&format!(
        "ip link set eth0 down; ip link set eth0 address {mac}; ip addr add 10.77.0.10/24 dev eth0; ip link set eth0 up"
    ));
    moving.netns().sh(&format!("ip neigh replace 10.77.0.10 lladdr {mac} dev eth0"));
    std::thread::scope(|scope| {
        let ping = scope.spawn(|| {
            let script = format!("busybox ping -q -c {PINGS} -i 0.01 10.77.0.10 > /dev/null || true");
            moving.netns().sh(&script);
        });
        for n in 0.. {
            if ping.is_finished() {
                break;
            }
            world.host.sh(&format!("ip link set moving0 master {}", [OTHER, BRIDGE][n % 2]));
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
    });
    assert_exact(&world.host, &watch, &["moving0", "veth0", "veth1"]);
    let now = watch.container(moving.name());
    let (here, there) = (on_network(&now, BRIDGE).expect("there"), on_network(&now, OTHER).expect("there"));
    assert!(here.1 > 0 && there.1 > 0, "on both: {now}");
    assert_eq!(here.1 + there.1, PINGS, "each once: {now}");
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), PINGS);
}

#[test]
fn renamed_while_it_is_counted() {
    let world = World::new(2);
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    world.containers[0].sh("busybox ping -q -c 4 -i 0.05 10.77.0.11");
    let key = number(&watch.interface("veth0"), "ifindex");
    // Its name goes to another, new one.
    world.host.sh("ip link set veth0 name renamed; ip link add veth0 type veth peer name veth0x");
    let renamed = watch.interface("renamed");
    assert_eq!(number(&renamed, "ifindex"), key);
    let named_so_now = watch.until("the new veth0", |snapshot| {
        program::interface(snapshot, "veth0").filter(|veth| number(veth, "ifindex") != key)
    });
    assert_eq!(number(&named_so_now, "rx.protocol.icmp.packets"), 0);
    world.containers[0].sh("busybox ping -q -c 6 -i 0.05 10.77.0.11");
    assert_exact(&world.host, &watch, &["renamed", "veth0", "veth1", BRIDGE]);
    assert_eq!(number(&watch.interface("renamed"), "rx.protocol.icmp.packets"), 10);
    assert_eq!(number(&watch.interface("veth0"), "rx.packets"), 0);
    // So does a bridge's.
    world.host.sh(&format!("ip link set {BRIDGE} name br-renamed"));
    watch.until("its ports on the renamed bridge", |snapshot| {
        let veth = program::interface(snapshot, "renamed")?;
        (veth["network"] == "br-renamed" && veth["bridge"] == "br-renamed").then_some(())
    });
    assert_exact(&world.host, &watch, &["renamed", "br-renamed"]);
}

/// An ifindex goes from one interface to the next faster than anybody can look.
#[test]
fn an_ifindex_that_is_used_again_at_once() {
    const INDEX: u32 = 100_777;
    for mode in attach_modes("an_ifindex_that_is_used_again_at_once") {
        let world = World::new(1);
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
        world.host.sh(&format!(
            "for i in $(seq 60); do echo link add again$i index {INDEX} type veth peer name other$i; \
             echo link del again$i; done | ip -batch -; \
             ip link add last0 index {INDEX} type veth peer name eth1 netns {}; \
             ip link set last0 master {BRIDGE} up",
            world.containers[0].pid()
        ));
        world.containers[0].sh("ip addr add 10.77.1.1/24 dev eth1; ip link set eth1 up; \
             ip neigh add 10.77.1.2 lladdr 02:00:00:00:00:02 dev eth1");
        let last = watch.interface("last0");
        assert_eq!(number(&last, "ifindex"), u64::from(INDEX));
        world.containers[0].try_sh("busybox ping -q -c 5 -i 0.05 -W 1 10.77.1.2");
        assert_exact(&world.host, &watch, &["last0", "veth0"]);
        assert_eq!(number(&watch.interface("last0"), "rx.protocol.icmp.packets"), 5, "{mode}");
        let snapshot = watch.fresh();
        let names: Vec<&str> = snapshot["interfaces"]
            .as_array()
            .expect("interfaces")
            .iter()
            .filter_map(|one| one["name"].as_str())
            .collect();
        assert_eq!(names, [BRIDGE, "last0", "veth0"], "{mode}");
        if *mode == "clsact" {
            let filters = world.host.sh("tc filter show dev last0 ingress; tc filter show dev last0 egress");
            assert_eq!(filters.matches(" netobs ").count(), 2, "one each: {filters}");
        }
    }
}

/// The same numbers on the host, in a container and in another one: three interfaces.
#[test]
fn one_ifindex_in_three_namespaces() {
    const INDEX: u32 = 100_500;
    let world = World::new(0);
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    let (first, second) = (Pretend::new(), Pretend::new());
    // The first's veth on the host has the number of both ends inside.
    for (n, (container, index)) in [(&first, INDEX), (&second, INDEX + 1)].into_iter().enumerate() {
        world.host.sh(&format!(
            "ip link add veth{n} index {index} type veth peer name eth0 index {INDEX} netns {}; \
             ip link set veth{n} master {BRIDGE} up",
            container.netns().pid()
        ));
        container.netns().sh(&format!("ip addr add 10.77.0.{}/24 dev eth0; ip link set eth0 up", n + 10));
    }
    for container_of in [&first, &second] {
        watch.until("the container", |snapshot| {
            on_network(&container(snapshot, container_of.name())?, BRIDGE)
        });
    }
    first.netns().sh("busybox ping -q -c 6 -i 0.05 10.77.0.11");
    second.netns().sh("busybox ping -q -c 3 -i 0.05 10.77.0.1");
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    for (container, host, packets) in [(&first, INDEX, 6), (&second, INDEX + 1, 9)] {
        let now = watch.container(container.name());
        let interface = &now["interfaces"][0];
        assert_eq!(
            (number(interface, "ifindex"), number(interface, "host_ifindex")),
            (INDEX.into(), host.into())
        );
        assert_eq!(on_network(&now, BRIDGE), Some((packets, packets)), "{now}");
    }
}
