//! Others at the same interfaces: what they have goes on working, and what they do to netobs's programs is
//! noticed, repaired and said.

use std::{
    net::UdpSocket,
    os::fd::{AsFd as _, OwnedFd},
    time::{Duration, Instant},
};

use netobs_tests::{
    background::Background,
    bpf,
    bpffs::Bpffs,
    filters::Filter,
    kernel::{self, assert_exact, attach_modes, ifindex},
    netns::{BRIDGE, Netns, World},
    pretend::Pretend,
    program::{self, LIMIT, Watch, number},
    test_run, traffic, wait_for,
};

/// How soon it is to be noticed.
const NOTICED: Duration = Duration::from_secs(10);

/// Waits until so often something was attached again, for each reason.
fn reattached(watch: &Watch, wanted: &[(&str, u64)]) {
    let start = Instant::now();
    watch.until(&format!("attached again: {wanted:?}"), |snapshot| {
        let counts = &snapshot["agent"]["reattached"];
        let is = |(reason, count): &(&str, u64)| number(counts, reason) == *count;
        wanted.iter().all(is).then_some(())
    });
    assert!(start.elapsed() < NOTICED, "{:?}", start.elapsed());
}

/// Programs of another at both TCX hooks of an interface, as long as they live.
struct Tcx {
    programs: [OwnedFd; 2],
    _links: Vec<OwnedFd>,
}

type MakeProgram = fn() -> std::io::Result<OwnedFd>;
type AttachTcx = fn(std::os::fd::BorrowedFd<'_>, u32, bool) -> std::io::Result<OwnedFd>;

impl Tcx {
    fn attach(host: &Netns, name: &str, make: MakeProgram, attach: AttachTcx) -> Self {
        let ifindex = ifindex(host, name);
        host.run(move || {
            let programs = [make().expect("load"), make().expect("load")];
            let links = [true, false].into_iter().zip(&programs);
            let links = links.map(|(ingress, program)| attach(program.as_fd(), ifindex, ingress));
            let _links = links.map(|link| link.expect("attach")).collect();
            Self { programs, _links }
        })
    }

    /// Runs of both.
    fn runs(&self) -> Vec<u64> {
        self.programs.iter().map(|program| test_run::run_count(program.as_fd())).collect()
    }
}

/// Each container pings the host.
fn ping(world: &World) {
    for container in &world.containers {
        container.sh("busybox ping -q -c 4 -i 0.02 10.77.0.1");
    }
}

#[test]
fn what_others_remove_is_attached_again() {
    let has_tcx = attach_modes("a link that others detach").contains(&"tcx");
    let mut world = World::new(2);
    let mut names = vec!["veth0", "veth1", BRIDGE];
    let mut reasons = vec!["filter_removed", "qdisc_removed"];
    let mut tcx = None;
    if has_tcx {
        world.add(Netns::new());
        tcx = Some(Tcx::attach(&world.host, "veth2", test_run::empty_program, test_run::attach_tcx));
        names.push("veth2");
        reasons.push("link_detached");
    }
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    ping(&world);
    assert_exact(&world.host, &watch, &names);
    // The second time it is known when it is looked for next: all that passes before then is missed.
    for time in 1..=2 {
        world.host.sh("tc filter del dev veth0 ingress; tc qdisc del dev veth1 clsact");
        if has_tcx {
            let links = bpf::tcx_links(watch.pid(), ifindex(&world.host, "veth2"));
            assert_eq!(links.len(), 2, "both by TCX");
            for link in links {
                test_run::detach_link(link).expect("detach");
            }
        }
        if time == 2 {
            ping(&world);
        }
        let wanted: Vec<_> = reasons.iter().map(|reason| (*reason, time)).collect();
        reattached(&watch, &wanted);
    }
    assert_exact(&world.host, &watch, &names);
    // Of four pings and what belongs to them.
    for (name, directions) in [("veth0", &["rx"][..]), ("veth1", &["rx", "tx"]), ("veth2", &["rx", "tx"])] {
        if !names.contains(&name) {
            continue;
        }
        let interface = watch.interface(name);
        assert_eq!(number(&interface, "reattached"), 2, "{interface}");
        for direction in directions {
            let missed = number(&interface, &format!("missed.{direction}_packets"));
            assert!((4..10).contains(&missed), "{name} {direction}: {interface}");
            let bytes = number(&interface, &format!("missed.{direction}_bytes"));
            assert!((4 * 98..4 * 98 + 6 * 98).contains(&bytes), "{name} {direction}: {interface}");
        }
    }
    assert_eq!(number(&watch.interface("veth0"), "missed.tx_packets"), 0, "that filter was there");
    assert_eq!(number(&watch.interface(BRIDGE), "reattached"), 0);
    // And it counts again.
    let before = number(&watch.interface("veth1"), "rx.protocol.icmp.packets");
    ping(&world);
    assert_exact(&world.host, &watch, &names);
    assert_eq!(number(&watch.interface("veth1"), "rx.protocol.icmp.packets"), before + 4);
    assert_eq!(watch.fresh()["agent"]["unattached"], serde_json::json!([]));
    drop(tcx);
}

/// The kernel drops what comes out of an interface while a clsact qdisc is made for it; nothing else that is attached
/// or detached costs a packet. Where there is traffic none is made, if the kernel has TCX and nobody asks for it.
#[test]
fn nothing_is_lost_by_attaching() {
    let counted = |host: &Netns| {
        let dropped = ["veth0", BRIDGE].map(|name| kernel::tx_dropped(host, name)).iter().sum::<u64>();
        (dropped, kernel::link(host, "veth0").tx_packets)
    };
    let mut modes = attach_modes("nothing_is_lost_by_attaching").to_vec();
    if modes.contains(&"tcx") {
        modes.push("auto");
    }
    for mode in modes {
        let world = World::new(2);
        if mode == "clsact" {
            world.host.sh(&format!("tc qdisc add dev veth0 clsact; tc qdisc add dev {BRIDGE} clsact"));
        }
        ping(&world);
        let load = traffic::flood(&world.host, "10.77.0.10:4000".parse().expect("an address"));
        let (dropped_before, passed_before) = counted(&world.host);
        for round in 0..5 {
            let mut watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
            watch.until("the load", |snapshot| {
                let veth = program::interface(snapshot, "veth0")?;
                (number(&veth, "tx.protocol.udp.packets") > 1000).then_some(())
            });
            if mode == "auto" {
                let links = |name| bpf::tcx_links(watch.pid(), ifindex(&world.host, name)).len();
                assert_eq!((links("veth0"), links("veth1")), (2, 0), "the second has no traffic");
                if round == 0 {
                    for link in bpf::tcx_links(watch.pid(), ifindex(&world.host, "veth0")) {
                        test_run::detach_link(link).expect("detach");
                    }
                    reattached(&watch, &[("link_detached", 1)]);
                    assert_eq!(links("veth0"), 2, "by links again");
                }
            }
            watch.terminate();
        }
        drop(load);
        let (dropped, passed) = counted(&world.host);
        assert!(passed - passed_before > 100_000, "{mode}: {passed} packets");
        assert_eq!(dropped - dropped_before, 0, "{mode}, of {passed}");
    }
}

/// Links take so long that only some of many interfaces with traffic have them: those that would lose the most.
#[test]
fn where_many_are_busy_the_busiest_lose_nothing() {
    const OTHERS: usize = 150;
    if !attach_modes("many interfaces with traffic").contains(&"tcx") {
        return;
    }
    let mut world = World::new(0);
    let others: String = (0..OTHERS)
        .map(|n| {
            format!(
                "link add o{n} type veth peer name p{n}\nlink set p{n} up\nlink set o{n} master {BRIDGE} up\n"
            )
        })
        .collect();
    world.host.sh(&format!("ip -batch - <<'END'\n{others}END"));
    // The kernel lists it last.
    world.add(Netns::new());
    world.host.sh("busybox ping -q -c 1 10.77.0.10");
    let to_all = world.host.run(|| {
        let socket = UdpSocket::bind("10.77.0.1:0").expect("bind");
        socket.set_broadcast(true).expect("may send to all");
        socket
    });
    let _to_all = Background::repeat(move || {
        to_all.send_to(&[0; 18], "10.77.0.255:4000").expect("send to all");
        std::thread::sleep(Duration::from_millis(4));
    });
    let _load = traffic::flood(&world.host, "10.77.0.10:4000".parse().expect("an address"));
    let dropped = || kernel::tx_dropped(&world.host, "veth0");
    let before = dropped();
    let mut watch = Watch::start(Some(&world.host), &["--no-engine"]);
    let links = |name: &str| bpf::tcx_links(watch.pid(), ifindex(&world.host, name)).len();
    watch.interface("veth0");
    assert_eq!([links("veth0"), links(BRIDGE)], [2, 2]);
    let linked = (0..OTHERS).filter(|n| links(&format!("o{n}")) == 2).count();
    assert!(linked > 0 && linked < OTHERS, "as many as there is time for: {linked}");
    watch.terminate();
    assert_eq!(dropped(), before);
}

/// Where there is no interface of the host: filters inside a container, links to a cgroup.
#[test]
fn inside_a_container_and_at_a_cgroup_too() {
    let (host, engine) = (Netns::new(), Netns::new());
    let (inside, on_host) = (Pretend::new(), Pretend::on_host(&host));
    host.sh(&format!(
        "ip link add a0 type veth peer name b0; ip link set a0 netns {}; ip link set b0 netns {}",
        inside.netns().pid(),
        engine.pid()
    ));
    engine.sh("ip addr add 10.78.0.9/24 dev b0; ip link set b0 up");
    inside.netns().sh("ip link set a0 name eth0; ip addr add 10.78.0.1/24 dev eth0; ip link set eth0 up");
    let watch = Watch::start(Some(&host), &["--no-engine"]);
    let one = |name: &str| {
        watch.until(&format!("the interface of {name}"), |snapshot| {
            let interfaces = program::container(snapshot, name)?["interfaces"].as_array()?.clone();
            interfaces.into_iter().find(|one| one["observed"] != "host")
        })
    };
    let ping_inside = || inside.netns().sh("busybox ping -q -c 4 -i 0.02 10.78.0.9");
    let ping_on_host = || on_host.sh(&host, "busybox ping -q -c 4 -i 0.02 127.0.0.1");
    one(inside.name());
    one(on_host.name());
    inside.netns().sh("tc filter del dev eth0 ingress; tc filter del dev eth0 egress");
    let links = bpf::cgroup_links(watch.pid(), on_host.cgroup_id());
    assert_eq!(links.len(), 2);
    for link in links {
        test_run::detach_link(link).expect("detach");
    }
    ping_inside();
    ping_on_host();
    // There may be containers of other tests, too.
    watch.until("both attached again", |snapshot| {
        let counts = &snapshot["agent"]["reattached"];
        (number(counts, "filter_removed") >= 1 && number(counts, "link_detached") >= 1).then_some(())
    });
    ping_inside();
    ping_on_host();
    let now = watch.until("the packets since", |snapshot| {
        let interfaces = program::container(snapshot, inside.name())?["interfaces"].as_array()?.clone();
        let now = interfaces.into_iter().find(|one| one["observed"] == "inside")?;
        let kernel = kernel::link(inside.netns(), "eth0");
        let all = |direction: &str| {
            let of = |what: &str| number(&now, &format!("{what}{direction}"));
            of("before.tx_") + of("tx.")
        };
        // An ARP packet may pass at any time.
        ((all("packets"), all("bytes")) == (kernel.tx_packets, kernel.tx_bytes)).then_some(now)
    });
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), 4, "those before were missed: {now}");
    let at_cgroup = one(on_host.name());
    // The replies are sent by no socket.
    assert_eq!(number(&at_cgroup, "tx.protocol.icmp.packets"), 4, "those before were missed: {at_cgroup}");
    assert!(at_cgroup["before"].is_null(), "how many is not known: {at_cgroup}");
}

#[test]
fn who_gets_before_ours_and_ends_the_chain() {
    let has_tcx = attach_modes("a TCX program that ends the chain").contains(&"tcx");
    let stats = bpf::enable_stats();
    let world = World::new(2);
    let watch = Watch::start(Some(&world.host), &["--no-engine"]);
    // Of our own priority: the kernel puts the newest first. One that matches all, and passes it at once.
    world.host.sh("tc filter add dev veth0 ingress prio 1 protocol all handle 7 bpf da bytecode '1,6 0 0 0'");
    let tcx =
        has_tcx.then(|| Tcx::attach(&world.host, "veth1", test_run::ending_program, test_run::attach_tcx));
    reattached(&watch, &[("displaced", 1 + u64::from(has_tcx))]);
    let before = number(&watch.interface("veth0"), "rx.protocol.icmp.packets");
    ping(&world);
    assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
    assert_eq!(number(&watch.interface("veth0"), "rx.protocol.icmp.packets"), before + 4, "ours is first");
    let filters = world.host.sh("tc filter show dev veth0 ingress");
    assert!(filters.find(" netobs ") < filters.find("handle 0x7 "), "theirs is still there: {filters}");
    if let Some(tcx) = &tcx {
        assert!(tcx.runs().iter().all(|runs| *runs >= 4), "{:?}", tcx.runs());
    }
    // They may want to be first as well: no quarrel.
    world.host.sh(
        "tc filter add dev veth0 ingress prio 1 protocol all handle 8 bpf da bytecode '1,6 0 0 4294967295'",
    );
    std::thread::sleep(NOTICED);
    reattached(&watch, &[("displaced", 1 + u64::from(has_tcx))]);
    drop((tcx, stats));
}

/// What others have in each place.
struct Others {
    world: World,
    filters: Vec<(&'static str, Filter)>,
    first: Tcx,
    last: Option<Tcx>,
    xdp: OwnedFd,
    _links: OwnedFd,
}

impl Others {
    fn new() -> Self {
        let world = World::new(4);
        for name in ["veth0", "veth1", BRIDGE] {
            world.host.sh(&format!("tc qdisc add dev {name} clsact"));
        }
        let filter =
            |name, ingress, priority| Filter::add(&world.host, ifindex(&world.host, name), ingress, priority);
        let filters = vec![
            ("filter after ours, ingress", filter("veth0", true, 5)),
            ("filter after ours, egress", filter("veth0", false, 6)),
            ("filter of our priority, ingress", filter("veth1", true, 1)),
            ("filter of our priority, egress", filter("veth1", false, 1)),
        ];
        let first = Tcx::attach(&world.host, "veth2", test_run::empty_program, test_run::attach_tcx);
        let xdp = test_run::xdp_program().expect("load");
        let (program, veth3) = (xdp.try_clone().expect("a descriptor"), ifindex(&world.host, "veth3"));
        let _links =
            world.host.run(move || test_run::attach_xdp(program.as_fd(), veth3)).expect("attach by XDP");
        Self { world, filters, first, last: None, xdp, _links }
    }

    /// How often each ran, by name.
    fn runs(&self) -> Vec<(&'static str, u64)> {
        let mut runs = vec![("XDP", test_run::run_count(self.xdp.as_fd()))];
        runs.extend(self.filters.iter().map(|(name, filter)| (*name, filter.runs())));
        runs.extend(
            ["TCX, there first, ingress", "TCX, there first, egress"].into_iter().zip(self.first.runs()),
        );
        if let Some(last) = &self.last {
            runs.extend(
                ["TCX, before ours, ingress", "TCX, before ours, egress"].into_iter().zip(last.runs()),
            );
        }
        runs
    }

    /// Everything of theirs still runs, for each packet.
    fn go_on(&self, when: &str) {
        let before = self.runs();
        ping(&self.world);
        for ((name, before), (_, now)) in before.into_iter().zip(self.runs()) {
            assert!(now >= before + 4, "{when}: {name}: {before}, then {now}");
        }
    }

    /// As `tc` and `ip` list it, without counters; ours left out.
    fn listed(&self) -> String {
        let mut listed = String::new();
        for name in ["veth0", "veth1", "veth2", "veth3", BRIDGE] {
            listed += &self.world.host.sh(&format!(
                "tc qdisc show dev {name}; tc filter show dev {name} ingress; tc filter show dev {name} egress; \
                 ip -d link show dev {name} | grep -o 'prog/xdp.*' || true"
            ));
        }
        listed
    }
}

#[test]
fn what_others_have_goes_on() {
    if !attach_modes("others' TCX programs").contains(&"tcx") {
        return;
    }
    let stats = bpf::enable_stats();
    let mut others = Others::new();
    let names = ["veth0", "veth1", "veth2", "veth3", BRIDGE];
    others.go_on("without netobs");
    // Where there was no clsact, it stays; our own filters go.
    let mut watch = Watch::start(Some(&others.world.host), &["--no-engine"]);
    let with_ours = others.listed();
    assert!(with_ours.contains(" netobs "), "{with_ours}");
    others.go_on("attached");
    assert_exact(&others.world.host, &watch, &names);
    // One more, before ours; it lets packets go on.
    others.last =
        Some(Tcx::attach(&others.world.host, "veth2", test_run::empty_program, test_run::attach_tcx_first));
    others.go_on("behind another");
    assert_exact(&others.world.host, &watch, &names);
    watch.kill();
    others.go_on("after SIGKILL");
    let mut watch = Watch::start(Some(&others.world.host), &["--no-engine"]);
    others.go_on("after a restart");
    assert_exact(&others.world.host, &watch, &names);
    assert!(watch.terminate().0.success());
    others.go_on("after the end");
    let left = others.listed();
    assert!(!left.contains("netobs"), "{left}");
    for theirs in ["pref 5 bpf", "pref 6 bpf", "pref 1 bpf", "prog/xdp"] {
        assert!(left.contains(theirs), "{theirs}: {left}");
    }
    assert_eq!(left.matches("qdisc clsact").count(), 4, "ours stay too, empty: {left}");

    // Pinned, and killed: the links and filters stay, until they are given up.
    for mode in ["tcx", "clsact"] {
        let bpffs = Bpffs::new();
        let host = &others.world.host;
        let mut agent = bpffs.agent(host, mode);
        wait_for("the agent", LIMIT, || agent.snapshot(host).map(drop));
        others.go_on(&format!("beside what is pinned, {mode}"));
        agent.kill();
        others.go_on(&format!("beside what a killed agent has pinned, {mode}"));
        let said = bpffs.cleanup(host, &[]);
        assert!(said.contains("removed pin "), "{said}");
        others.go_on(&format!("after cleanup, {mode}"));
    }
    let mut watch = Watch::start(Some(&others.world.host), &["--no-engine"]);
    watch.kill();
    let said = Bpffs::new().cleanup(&others.world.host, &[]);
    assert!(said.contains("filter of netobs"), "{said}");
    others.go_on("after cleanup of filters");
    let left = others.listed();
    assert!(!left.contains("netobs"), "{left}");
    drop(stats);
}
