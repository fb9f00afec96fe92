//! An engine that comes, goes and comes again, and what becomes of the counts: exact, by name, without a gap.
//! Each test has an engine of its own.

use std::{fs, process::Child};

use netobs_tests::{
    dockerd::{self, Dockerd},
    kernel::{self, Link},
    netns::die_with_parent,
    program::{self, LIMIT, Watch, container, number},
    wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

/// The engine's address on its default bridge.
const GATEWAY: &str = "172.17.0.1";

fn watch(engine: &Dockerd) -> Watch {
    Watch::start(Some(&engine.host), &["--engine", &engine.endpoint()])
}

/// Waits until the engine is followed, or is not; what is said of it.
fn connected(watch: &Watch, wanted: bool) -> Value {
    watch.until(&format!("connected: {wanted}"), |snapshot| {
        let engine = snapshot["engines"][0].clone();
        (engine["connected"] == wanted).then_some(engine)
    })
}

/// Waits for a state of a container.
fn state(watch: &Watch, name: &str, state: &str) -> Value {
    watch.until(&format!("{name} to be {state}"), |snapshot| {
        container(snapshot, name).filter(|now| now["state"] == state)
    })
}

/// The host's end of a container's only interface.
fn veth(watch: &Watch, name: &str) -> String {
    watch.until(&format!("the veth of {name}"), |snapshot| {
        container(snapshot, name)?["interfaces"][0]["host_interface"].as_str().map(str::to_owned)
    })
}

/// Pings from a container's namespace, without the engine: it need not run.
fn ping(pid: u32, count: u32) -> Child {
    let mut command = std::process::Command::new("nsenter");
    command.args(["--net", "-t", &pid.to_string(), "busybox", "ping", "-q", "-i", "0.02"]);
    command.args(["-c", &count.to_string(), GATEWAY]).stdout(std::process::Stdio::null());
    die_with_parent(&mut command).spawn().expect("start ping")
}

/// The same, to its end.
fn pings(pid: u32, count: u32) {
    assert!(ping(pid, count).wait().expect("ping").success());
}

/// What the kernel should have counted at the host's ends of all interfaces that a container has had.
fn counted(container: &Value) -> Link {
    let of = |direction: &str, unit: &str| {
        number(container, &format!("before.{direction}_{unit}"))
            + number(container, &format!("{direction}.{unit}"))
    };
    Link {
        rx_packets: of("tx", "packets"),
        rx_bytes: of("tx", "bytes"),
        tx_packets: of("rx", "packets"),
        tx_bytes: of("rx", "bytes"),
    }
}

/// Waits until netobs and the kernel agree about a container with `earlier` counted at interfaces that are
/// gone; the kernel's counters of the present one.
fn assert_exact(engine: &Dockerd, watch: &Watch, name: &str, earlier: Link) -> Link {
    let veth = veth(watch, name);
    wait_for("netobs and kernel to agree", LIMIT, || {
        let kernel = kernel::link(&engine.host, &veth);
        let now = container(&watch.fresh(), name).ok_or("gone")?;
        let ours = counted(&now);
        if ours == kernel + earlier { Ok(kernel) } else { Err(format!("netobs {ours:?}, kernel {kernel:?}")) }
    })
}

fn assert_pings(container: &Value, count: u64) {
    for direction in ["tx", "rx"] {
        let icmp = format!("{direction}.protocol.icmp");
        assert_eq!(number(container, &format!("{icmp}.packets")), count, "{direction}: {container}");
        assert_eq!(number(container, &format!("{icmp}.bytes")), count * 98, "{direction}: {container}");
    }
}

#[test]
fn an_engine_that_comes_after_netobs() {
    if !dockerd::available("an engine that comes later") {
        return;
    }
    let mut engine = Dockerd::new(&["--live-restore"]);
    let first = watch(&engine);
    let problem = connected(&first, false)["problem"].as_str().unwrap_or_default().to_owned();
    assert_eq!(problem, format!("no socket at {}", engine.socket().display()));
    engine.start();
    connected(&first, true);
    let id = engine.run("early", &[]);
    assert_eq!(first.container("early")["id"], id.as_str());
    let pid = engine.pid_of("early");
    pings(pid, 10);
    assert_exact(&engine, &first, "early", Link::default());
    assert_pings(&first.container("early"), 10);

    // One that runs before netobs and before its engine is known by `/proc`, then by name.
    engine.stop();
    let second = watch(&engine);
    let nameless = second.container(&id[..12]);
    assert_eq!((&nameless["engine"], &nameless["id"]), (&"proc".into(), &id.as_str().into()));
    pings(pid, 5);
    assert_exact(&engine, &second, &id[..12], Link::default());
    engine.start();
    let named = second.container("early");
    assert_eq!((&named["engine"], &named["id"]), (&"docker".into(), &id.as_str().into()));
    assert_eq!(container(&second.fresh(), &id[..12]), None, "one container, not two");
    assert_exact(&engine, &second, "early", Link::default());
    assert_pings(&second.container("early"), 5);
    // And for the first it is what it was all the time.
    assert_exact(&engine, &first, "early", Link::default());
    assert_pings(&first.container("early"), 15);
}

#[test]
fn an_engine_that_is_stopped_and_started() {
    if !dockerd::available("engine stop and start") {
        return;
    }
    let mut engine = Dockerd::new(&[]);
    engine.start();
    let watch = watch(&engine);
    let again = engine.run("again", &["--restart", "always"]);
    engine.run("ends", &[]);
    engine.run("leaves", &["--rm"]);
    for (name, count) in [("again", 10), ("ends", 7), ("leaves", 4)] {
        watch.container(name);
        pings(engine.pid_of(name), count);
    }
    let kernel = ["again", "ends", "leaves"].map(|name| assert_exact(&engine, &watch, name, Link::default()));
    let [first_life, ends, leaves] = kernel;

    engine.stop();
    connected(&watch, false);
    for (name, count, kernel) in [("again", 10, first_life), ("ends", 7, ends), ("leaves", 4, leaves)] {
        let now = watch.until(&format!("the end of {name}"), |snapshot| {
            let now = container(snapshot, name)?;
            matches!(now["state"].as_str(), Some("exited" | "removed")).then_some(now)
        });
        assert_pings(&now, count);
        assert_eq!(counted(&now), kernel, "{now}");
        assert!(now["interfaces"][0]["host_interface"].is_null(), "{now}");
    }
    let attached = watch.fresh()["interfaces"].as_array().map(Vec::len);
    assert_eq!(attached, Some(1), "docker0");

    engine.start();
    connected(&watch, true);
    let now = state(&watch, "again", "running");
    assert_eq!(now["id"], again.as_str());
    assert_exact(&engine, &watch, "again", first_life);
    pings(engine.pid_of("again"), 6);
    let second_life = assert_exact(&engine, &watch, "again", first_life);
    assert!(second_life.rx_packets >= 6, "{second_life:?}");
    let now = watch.container("again");
    assert_pings(&now, 16);
    assert_eq!(now["interfaces"].as_array().map(Vec::len), Some(1), "one eth0: {now}");
    for (name, end, count, kernel) in [("ends", "exited", 7, ends), ("leaves", "removed", 4, leaves)] {
        let now = state(&watch, name, end);
        assert_pings(&now, count);
        assert_eq!(counted(&now), kernel, "{now}");
    }
    // Started again by hand, it goes on as well.
    engine.docker(&["start", "ends"]);
    state(&watch, "ends", "running");
    pings(engine.pid_of("ends"), 3);
    assert_exact(&engine, &watch, "ends", ends);
    assert_pings(&watch.container("ends"), 10);
}

#[test]
fn containers_that_live_on_without_their_engine() {
    if !dockerd::available("live-restore") {
        return;
    }
    const PINGS: u64 = 400;
    let mut engine = Dockerd::new(&["--live-restore"]);
    engine.start();
    let watch = watch(&engine);
    let id = engine.run("lives", &[]);
    watch.container("lives");
    let mut traffic = ping(engine.pid_of("lives"), PINGS as u32);
    let mut last = 0;
    let mut look = |what: &str| {
        let now = watch.until(&format!("{what}: counts that go on"), |snapshot| {
            let now = container(snapshot, "lives").expect("its name stays");
            assert_eq!(
                (&now["id"], &now["state"]),
                (&id.as_str().into(), &"running".into()),
                "{what}: {now}"
            );
            assert_eq!(now["networks"], serde_json::json!(["bridge"]), "{what}: {now}");
            (number(&now, "tx.protocol.icmp.packets") > last).then_some(now)
        });
        last = number(&now, "tx.protocol.icmp.packets");
    };
    look("before");
    for _ in 0..2 {
        engine.stop();
        connected(&watch, false);
        look("without an engine");
        let inode = fs::metadata(engine.socket()).map(drop);
        assert!(inode.is_err(), "the socket goes with the engine");
        engine.start();
        connected(&watch, true);
        look("with the engine again");
    }
    let ended = matches!(traffic.try_wait(), Ok(Some(_)));
    assert!(!ended, "it was there all the time");
    // It answers itself whether it got all the answers.
    assert!(traffic.wait().expect("ping").success());
    assert_exact(&engine, &watch, "lives", Link::default());
    let now = watch.container("lives");
    assert_eq!(number(&now, "tx.protocol.icmp.packets"), PINGS, "{now}");
    assert_eq!(number(&now, "tx.protocol.icmp.bytes"), PINGS * 98, "{now}");
}

/// Nobody tells of the end of a container while its engine is away.
#[test]
fn a_container_that_ends_while_its_engine_is_away() {
    if !dockerd::available("an end without an engine") {
        return;
    }
    let mut engine = Dockerd::new(&["--live-restore"]);
    engine.start();
    let watch = watch(&engine);
    for name in ["ends", "again"] {
        engine.run(name, if name == "again" { &["--restart", "always"] } else { &[] });
        watch.container(name);
        pings(engine.pid_of(name), 5);
    }
    let pids = ["ends", "again"].map(|name| engine.pid_of(name));
    let [ends, again] = ["ends", "again"].map(|name| assert_exact(&engine, &watch, name, Link::default()));
    engine.kill();
    connected(&watch, false);
    for pid in pids {
        program::signal(pid, Signal::SIGKILL);
    }
    for (name, kernel) in [("ends", ends), ("again", again)] {
        let now = state(&watch, name, "exited");
        assert_eq!(counted(&now), kernel, "{now}");
    }
    engine.start();
    connected(&watch, true);
    state(&watch, "again", "running");
    pings(engine.pid_of("again"), 5);
    assert_exact(&engine, &watch, "again", again);
    assert_pings(&watch.container("again"), 10);
    let now = state(&watch, "ends", "exited");
    assert_eq!(counted(&now), ends, "{now}");
}

/// A new process at a new socket of the same path, as an upgrade leaves it.
#[test]
fn a_socket_that_is_another() {
    if !dockerd::available("another socket") {
        return;
    }
    let mut engine = Dockerd::new(&["--live-restore"]);
    engine.start();
    let watch = watch(&engine);
    engine.run("old", &[]);
    watch.container("old");
    pings(engine.pid_of("old"), 5);
    let pid = engine.pid_of("old");
    engine.kill();
    let (before, path) = (engine.socket_inode(), engine.socket());
    let problem = connected(&watch, false)["problem"].as_str().unwrap_or_default().to_owned();
    assert!(!problem.is_empty());
    // Kept under another name, so that the new one cannot have the same inode.
    fs::rename(&path, path.with_extension("old")).expect("move the socket away");
    pings(pid, 5);
    engine.start();
    assert_ne!(engine.socket_inode(), before);
    connected(&watch, true);
    let id = engine.run("new", &[]);
    assert_eq!(watch.container("new")["id"], id.as_str());
    pings(engine.pid_of("new"), 5);
    assert_exact(&engine, &watch, "new", Link::default());
    assert_exact(&engine, &watch, "old", Link::default());
    assert_pings(&watch.container("old"), 10);
    assert_pings(&watch.container("new"), 5);
}
