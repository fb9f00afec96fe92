//! `netobs agent --pin`: whatever ends the agent, counting goes on, and the next one goes on with it.

use std::{
    net::UdpSocket,
    os::{fd::AsFd as _, unix::fs::PermissionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime},
};

use aya::maps::{Array, Map, MapData};
use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options, pins},
    model::InterfaceKey,
};
use netobs_tests::{
    bpf,
    bpffs::Bpffs,
    http,
    kernel::{self, attach_modes},
    netns::{BRIDGE, Netns, World},
    pretend::Pretend,
    program::{self, LIMIT, number},
    test_run, wait_for,
};
use nix::net::if_::if_nametoindex;
use serde_json::Value;

/// Kills in the tests that CI runs; `NETOBS_TEST_KILLS` takes another number.
const KILLS: u32 = 20;

fn snapshot(host: &Netns) -> Result<Value, String> {
    match host.run(|| http::get(9810, "/api/v1/snapshot")) {
        Ok((200, body)) => serde_json::from_str(&body).map_err(|error| error.to_string()),
        other => Err(format!("{other:?}")),
    }
}

/// An interface as the agent has it, once it answers.
fn interface(host: &Netns, name: &str) -> Value {
    wait_for(name, LIMIT, || {
        let snapshot = snapshot(host)?;
        program::interface(&snapshot, name).ok_or_else(|| format!("no {name}"))
    })
}

/// Waits until nothing passes, and wants the kernel's counters to be what was counted and what is stated.
fn assert_exact(host: &Netns, names: &[&str]) {
    for name in names {
        let (kernel, ours) = wait_for("quiet", LIMIT, || {
            let before = kernel::link(host, name);
            let ours = interface(host, name);
            let is_quiet = before == kernel::link(host, name);
            if is_quiet { Ok((before, ours)) } else { Err("packets still pass".to_owned()) }
        });
        assert_eq!(kernel::expected(&ours), kernel, "{name}: netobs (left) and kernel differ: {ours}");
    }
}

/// Numbers of netobs's programs at filters of an interface.
fn programs(host: &Netns, name: &str) -> Vec<String> {
    let shown = host.sh(&format!("tc filter show dev {name} ingress; tc filter show dev {name} egress"));
    let ours = shown.lines().filter(|line| line.contains(" netobs "));
    let id = |line: &str| Some(line.split(" id ").nth(1)?.split(' ').next()?.to_owned());
    ours.filter_map(id).collect()
}

/// Datagrams from one container to the other, and from that to the host, until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    senders: Vec<JoinHandle<()>>,
    /// Bound and unread: what comes is dropped silently.
    _sinks: [UdpSocket; 2],
}

impl Load {
    fn start(world: &World) -> Self {
        let bind = |netns: &Netns, address: &'static str| {
            netns.run(move || UdpSocket::bind(address).expect("bind a sink"))
        };
        let [first, second] = world.containers.as_slice() else { panic!("two containers") };
        let _sinks = [bind(second, "10.77.0.11:9000"), bind(&world.host, "10.77.0.1:9000")];
        let stop = Arc::new(AtomicBool::new(false));
        let send = |from: &Netns, to: &'static str| {
            let stop = Arc::clone(&stop);
            from.spawn(move || {
                let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
                socket.connect(to).expect("connect");
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..100 {
                        // What was not sent is not counted by anybody.
                        let _ = socket.send(&[0; 200]);
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            })
        };
        let senders = vec![send(first, "10.77.0.11:9000"), send(second, "10.77.0.1:9000")];
        Self { stop, senders, _sinks }
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for sender in self.senders {
            sender.join().expect("a sender");
        }
    }
}

#[test]
fn kills_at_any_moment_lose_nothing_by_filters() {
    kill_and_compare("clsact");
}

#[test]
fn kills_at_any_moment_lose_nothing_by_links() {
    if attach_modes("kills_at_any_moment_lose_nothing_by_links").contains(&"tcx") {
        kill_and_compare("tcx");
    }
}

fn kill_and_compare(mode: &str) {
    const NAMES: [&str; 3] = ["veth0", "veth1", BRIDGE];
    let kills = std::env::var("NETOBS_TEST_KILLS").map_or(KILLS, |kills| kills.parse().expect("a number"));
    let (world, bpffs) = (World::new(2), Bpffs::new());
    let host = &world.host;
    let start = Instant::now();
    let mut agent = bpffs.agent(host, mode);
    let begun = NAMES.map(|name| interface(host, name));
    let longest = 2 * u64::try_from(start.elapsed().as_millis().min(1500)).expect("not long");
    let seed = SystemTime::UNIX_EPOCH.elapsed().expect("a clock").subsec_nanos();
    println!("{mode}: seed {seed}, up to {longest} ms");
    let mut random = u64::from(seed);
    let load = Load::start(&world);
    for kill in 0..kills {
        // As many while it runs as while it starts, however long that takes here.
        if kill % 2 == 0 {
            interface(host, NAMES[0]);
        }
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_millis((random >> 33) % longest));
        agent.kill();
        agent = bpffs.agent(host, mode);
    }
    load.stop();
    assert_exact(host, &NAMES);
    for (name, begun) in NAMES.into_iter().zip(begun) {
        let now = interface(host, name);
        assert_eq!(now["baseline"], begun["baseline"], "{mode}: nothing more is unobserved: {now}");
        assert_eq!((number(&now, "reattached"), number(&now, "missed.rx_packets")), (0, 0), "{mode}: {now}");
        assert!(number(&now, "rx.packets") + number(&now, "tx.packets") > 20_000, "{mode}: a load: {now}");
    }
    drop(agent);
    bpffs.cleanup(host, &[]);
}

/// A killed run's filters inside a container count into maps that go on, in a slot that is an interface's of the host
/// next. They are gone before it has it, though nobody knows the container any more.
#[test]
fn what_is_left_inside_counts_for_nobody() {
    let (mut world, bpffs) = (World::new(1), Bpffs::new());
    world
        .host
        .sh("ip link add parent type veth peer name other; ip link set parent up; ip link set other up");
    let containers = [Pretend::new(), Pretend::new()];
    for (n, container) in containers.iter().enumerate() {
        let pid = container.netns().pid();
        world.host.sh(&format!(
            "ip link add new0 link parent type macvlan mode bridge; ip link set new0 netns {pid}"
        ));
        container.netns().sh(&format!("ip addr add 10.79.0.{}/24 dev new0; ip link set new0 up", n + 1));
    }
    let [first, second] = &containers;
    let stand_ins = [first.stand_in(), second.stand_in()];
    let filters = || first.netns().sh("tc filter show dev new0 ingress; tc filter show dev new0 egress");
    let ours = || filters().matches(" netobs ").count();
    let mut agent = bpffs.agent(&world.host, "clsact");
    wait_for("filters inside", LIMIT, || if ours() == 2 { Ok(()) } else { Err(filters()) });
    let pings = || first.netns().sh("busybox ping -q -c 20 -i 0.02 10.79.0.2");
    pings();
    agent.kill();
    assert_eq!(ours(), 2, "nobody to remove them");
    for mut stand_in in stand_ins {
        stand_in.kill().expect("end it");
        stand_in.wait().expect("its end");
    }
    world.add(Netns::new());
    let agent = bpffs.agent(&world.host, "clsact");
    interface(&world.host, "veth1");
    pings();
    assert_exact(&world.host, &["veth0", "veth1", BRIDGE]);
    assert_eq!(ours(), 0, "{}", filters());
    drop(agent);
    bpffs.cleanup(&world.host, &[]);
}

#[test]
fn what_happens_while_no_agent_runs() {
    for mode in attach_modes("what_happens_while_no_agent_runs") {
        let (mut world, bpffs) = (World::new(2), Bpffs::new());
        // Of its own, else it is that of one of its ports, which come and go.
        world.host.sh(&format!("ip link set {BRIDGE} address 02:00:00:00:00:77"));
        let mut agent = bpffs.agent(&world.host, mode);
        interface(&world.host, "veth1");
        // As udev does with what has just been made.
        world.host.sh("ip link set veth0 address 02:00:00:00:00:78");
        assert_eq!(std::fs::metadata(bpffs.folder()).expect("it").permissions().mode() & 0o777, 0o700);
        world.containers[0].sh("busybox ping -q -c 5 -i 0.02 10.77.0.1");
        assert_exact(&world.host, &["veth0", BRIDGE]);
        let before = interface(&world.host, "veth0");
        let first = programs(&world.host, "veth0");
        let ifindex = u32::try_from(number(&before, "ifindex")).expect("an ifindex");
        let first_links = bpf::tcx_programs(agent.pid(), ifindex);
        // A clean end keeps it, too.
        let (status, _) = agent.terminate();
        assert!(status.success());
        world.containers[0].sh("busybox ping -q -c 7 -i 0.02 10.77.0.1");
        world.host.sh("ip link del veth1");
        world.containers.pop();
        world.add(Netns::new());
        world.containers[1].sh("busybox ping -q -c 3 -i 0.02 10.77.0.1");

        let mut agent = bpffs.agent(&world.host, mode);
        let now = interface(&world.host, "veth0");
        assert_eq!(number(&now, "rx.protocol.icmp.packets"), 12, "{mode}: {now}");
        assert_eq!(now["baseline"], before["baseline"], "{mode}: {now}");
        let came = interface(&world.host, "veth1");
        assert_eq!(number(&came, "rx.packets"), 0, "{mode}: {came}");
        assert!(number(&came, "baseline.rx_packets") >= 3, "{mode}: stated as unobserved: {came}");
        assert_exact(&world.host, &["veth0", "veth1", BRIDGE]);
        world.containers[1].sh("busybox ping -q -c 2 -i 0.02 10.77.0.1");
        assert_exact(&world.host, &["veth0", "veth1", BRIDGE]);
        if *mode == "clsact" {
            let second = programs(&world.host, "veth0");
            assert_eq!((first.len(), second.len()), (2, 2), "replaced, not added: {second:?}");
            assert!(second.iter().all(|program| !first.contains(program)), "{first:?} {second:?}");
        } else {
            let links = bpf::tcx_programs(agent.pid(), ifindex);
            assert_eq!(links.len(), 2, "{links:?}");
            assert!(links.keys().eq(first_links.keys()), "the same links: {first_links:?} {links:?}");
            let replaced = |link: &u32| links[link] != first_links[link];
            assert!(links.keys().all(replaced), "with other programs: {first_links:?} {links:?}");
        }

        // Removed by others meanwhile: it goes on, and what is missing is said.
        agent.kill();
        if *mode == "clsact" {
            world.host.sh("tc filter del dev veth0 ingress; tc filter del dev veth0 egress");
        } else {
            for direction in ["ingress", "egress"] {
                let link = bpffs.folder().join(format!("links/{}_{direction}", number(&now, "ifindex")));
                test_run::detach_pinned(&link).expect("detach");
            }
        }
        world.containers[0].sh("busybox ping -q -c 4 -i 0.02 10.77.0.1");
        let agent = bpffs.agent(&world.host, mode);
        let now = interface(&world.host, "veth0");
        assert_eq!(number(&now, "rx.protocol.icmp.packets"), 12, "{mode}: {now}");
        assert!(number(&now, "missed.rx_packets") >= 4 && number(&now, "reattached") == 1, "{mode}: {now}");
        assert_exact(&world.host, &["veth0", "veth1", BRIDGE]);
        drop(agent);
        bpffs.cleanup(&world.host, &[]);
    }
}

/// One that is killed while it attaches has written no record of it yet.
#[test]
fn what_was_attached_without_a_record_leaves_nothing() {
    // Far more than there are in containers of other tests, whose interfaces the agent takes slots for.
    const GONE: u32 = 60;
    for mode in attach_modes("what_was_attached_without_a_record_leaves_nothing") {
        let (world, bpffs) = (World::new(1), Bpffs::new());
        let (host, folder) = (&world.host, bpffs.folder());
        host.sh(&format!("for n in $(seq 0 {}); do ip link add gone$n type veth; done", GONE - 1));
        world.containers[0].sh("busybox ping -q -c 1 10.77.0.1");
        let attach_mode = if *mode == "tcx" { AttachMode::Tcx } else { AttachMode::Clsact };
        host.run(move || {
            let events = EventOptions::default();
            // As many interfaces as the agent has room for.
            let options =
                Options { max_interfaces: 1024, mode: attach_mode, max_flows: 1024, events, log: false };
            let mut observer = Observer::load_pinned(options, &folder).expect("load");
            let gone: Vec<String> = (0..GONE).map(|n| format!("gone{n}")).collect();
            // Last in slots that the agent has no reason to give to the same.
            for (key, name) in (0..).zip(gone.iter().map(String::as_str).chain(["veth0", BRIDGE])) {
                let ifindex = if_nametoindex(name).expect("an interface");
                observer.attach(InterfaceKey(key), ifindex, name == BRIDGE).expect("attach");
            }
        });
        host.sh(&format!("for n in $(seq 0 {}); do ip link del gone$n; done", GONE - 1));

        let agent = bpffs.agent(host, mode);
        let veth = interface(host, "veth0");
        assert!(
            number(&veth, "baseline.rx_packets") > 0,
            "{mode}: what nobody has a record of is not gone on with"
        );
        world.containers[0].sh("busybox ping -q -c 1 10.77.0.1");
        assert_exact(host, &["veth0", BRIDGE]);
        // Up to four of these, and others in containers of other tests.
        let senders = bpf::map_entries(agent.pid())["SENDERS"];
        assert!((1..GONE as usize).contains(&senders), "{mode}: {senders}");
        drop(agent);
        bpffs.cleanup(host, &[]);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let (world, bpffs) = (World::new(1), Bpffs::new());
    let host = &world.host;
    let mut agent = bpffs.agent(host, "auto");
    interface(host, "veth0");
    let said = bpffs.refused(host, &[]);
    assert!(said.contains("another netobs agent runs with --pin"), "{said}");
    // In another folder as well: they would have each other's filters.
    let other = Bpffs::new();
    let said = other.refused(host, &[]);
    assert!(said.contains("@netobs/filters/") && said.contains("agents with --pin"), "{said}");
    let said = other.cleanup(host, &[]);
    assert!(said.contains("left: what is pinned in") && !said.contains("removed filter"), "{said}");
    let before = number(&interface(host, "veth0"), "rx.packets");
    agent.kill();
    let said = bpffs.refused(host, &["--max-interfaces", "7"]);
    assert!(said.contains("--max-interfaces 1024") && said.contains("netobs cleanup"), "{said}");
    let said = bpffs.refused(&Netns::new(), &[]);
    assert!(said.contains("another network namespace"), "{said}");
    // As others have made it: word 1 is the ABI, word 4 the version.
    let state = MapData::from_pin(bpffs.folder().join("state")).expect("the state");
    let mut state: Array<_, u64> = Map::Array(state).try_into().expect("an array");
    for (word, value, expected) in [
        (1, 9999, "is of another form (ABI 9999"),
        (4, 7 << 32 | 3 << 16 | 2, "by netobs 7.3.2, which is newer"),
    ] {
        let good = state.get(&word, 0).expect("a word");
        state.set(word, value, 0).expect("set");
        let said = bpffs.refused(host, &[]);
        assert!(said.contains(expected) && said.contains("netobs cleanup"), "{said}");
        state.set(word, good, 0).expect("set");
    }
    world.containers[0].sh("busybox ping -q -c 5 -i 0.02 10.77.0.1");
    let agent = bpffs.agent(host, "auto");
    assert!(number(&interface(host, "veth0"), "rx.packets") >= before + 5, "none of this has hurt it");
    assert_exact(host, &["veth0", BRIDGE]);
    drop(agent);
    bpffs.cleanup(host, &[]);
    // No BPF filesystem.
    let plain = Bpffs::new();
    plain.unmount();
    let said = plain.refused(host, &[]);
    assert!(said.contains("mount -t bpf bpffs /sys/fs/bpf"), "{said}");
}

#[test]
fn a_folder_with_something_of_others_is_left_alone() {
    let (world, bpffs) = (World::new(1), Bpffs::new());
    let folder = bpffs.folder();
    let theirs = folder.join("a_program_of_theirs");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::set_permissions(&folder, PermissionsExt::from_mode(0o755)).expect("set");
    pins::pin(test_run::empty_program().expect("load").as_fd(), &theirs).expect("pin");
    let is_as_before = |said: &str| {
        assert!(said.contains("a_program_of_theirs is not netobs's"), "{said}");
        pins::get(&theirs).expect("it is there");
        let mode = std::fs::metadata(&folder).expect("a folder").permissions().mode();
        assert_eq!(mode & 0o777, 0o755);
    };
    let cleanup_fails = |folder: &Path| {
        let mut command = program::netobs(Some(&world.host));
        let cleaned = command.arg("cleanup").arg("--pin-folder").arg(folder).output().expect("run netobs");
        assert!(!cleaned.status.success());
        String::from_utf8_lossy(&cleaned.stdout).into_owned()
    };
    is_as_before(&bpffs.refused(&world.host, &[]));
    is_as_before(&cleanup_fails(&folder));
    // Nor any other folder.
    let plain = tempfile::tempdir().expect("a folder");
    std::fs::write(plain.path().join("counters"), "mine").expect("write");
    let said = cleanup_fails(plain.path());
    assert!(plain.path().join("counters").exists(), "{said}");
}

#[test]
fn cleanup_gives_it_up_and_nobody_elses() {
    for mode in attach_modes("cleanup_gives_it_up_and_nobody_elses") {
        let (world, bpffs) = (World::new(1), Bpffs::new());
        let host = &world.host;
        let mut agent = bpffs.agent(host, mode);
        interface(host, "veth0");
        let said = bpffs.cleanup(host, &[]);
        assert!(said.contains("left: what the agent that runs has pinned"), "{said}");
        assert!(!said.contains("removed pin") && !said.contains("removed filter"), "{said}");
        agent.kill();
        // One that does not pin neither takes nor removes it.
        drop(program::Watch::start(Some(host), &["--no-engine"]));
        let would = bpffs.cleanup(host, &["--dry-run"]);
        assert!(would.contains("would remove pin ") && would.contains("counters"), "{would}");
        let of = |what: &str, said: &str| said.lines().filter(|line| line.contains(what)).count();
        let expected = if *mode == "tcx" { (4, 0) } else { (0, 4) };
        assert_eq!((of("/links/", &would), of("filter of netobs", &would)), expected, "{mode}: {would}");
        world.containers[0].sh("busybox ping -q -c 5 -i 0.02 10.77.0.1");
        let mut agent = bpffs.agent(host, mode);
        assert_exact(host, &["veth0", BRIDGE]);
        assert_eq!(number(&interface(host, "veth0"), "rx.protocol.icmp.packets"), 5, "{mode}: all is there");
        agent.kill();
        let said = bpffs.cleanup(host, &[]);
        assert_eq!((of("/links/", &said), of("filter of netobs", &said)), expected, "{mode}: {said}");
        assert!(!bpffs.folder().exists() && programs(host, "veth0").is_empty(), "{mode}: {said}");
        let again = bpffs.cleanup(host, &[]);
        assert!(!again.contains("pin ") && !again.contains("filter of netobs"), "{mode}: {again}");
    }
}
