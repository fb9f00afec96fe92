//! netobs's counters held against the kernel's own while it runs: what is missing is seen, and nothing else.

use std::time::{Duration, Instant};

use netobs_tests::{
    http,
    kernel::{assert_exact, attach_modes},
    netns::{BRIDGE, Netns, World},
    program::{self, Agent, LIMIT, Watch, number},
    traffic, wait_for,
};
use serde_json::Value;

fn get(host: &Netns, path: &'static str) -> Result<String, String> {
    match host.run(move || http::get(9810, path)) {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    }
}

/// An agent's interface.
fn interface(host: &Netns, name: &str) -> Result<Value, String> {
    let snapshot: Value =
        serde_json::from_str(&get(host, "/api/v1/snapshot")?).map_err(|error| error.to_string())?;
    program::interface(&snapshot, name).ok_or_else(|| format!("no {name}"))
}

fn difference(interface: &Value, field: &str) -> Option<i64> {
    interface["difference"][field].as_i64()
}

/// The value of a series whose labels begin so.
fn metric(host: &Netns, series: &str) -> Option<f64> {
    let text = get(host, "/metrics").ok()?;
    let line = text.lines().find(|line| line.starts_with(series))?;
    line.split(' ').next_back()?.parse().ok()
}

fn doctor(host: &Netns) -> String {
    let output = program::netobs(Some(host)).arg("doctor").output().expect("run netobs doctor");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Asked locally: no password is in the way.
#[test]
fn doctor_says_what_is_degraded() {
    let world = World::new(1);
    let host = &world.host;
    let file = std::env::temp_dir().join(netobs_tests::unique("web.yml"));
    let users = format!("basic_auth_users: {{alice: {}}}\n", bcrypt::hash("secret", 4).expect("hash"));
    std::fs::write(&file, users).expect("write");
    let path = file.to_str().expect("UTF-8");
    let agent = Agent::start_in(Some(host), &["--no-engine", "--btf", "/nowhere", "--web-config-file", path]);
    let text = wait_for("an agent", LIMIT, || {
        let text = doctor(host);
        if text.contains("attached 2 times, not 0") { Ok(text) } else { Err(text) }
    });
    let degraded: Vec<&str> = text.lines().filter(|line| line.contains("degraded: ")).collect();
    let says = |feature: &str| {
        degraded
            .iter()
            .any(|line| line.starts_with("less  agent") && line.contains(&format!("degraded: {feature}: ")))
    };
    assert!(says("drops") && degraded.iter().all(|line| line.contains("/nowhere")), "{text}");
    // By HTTP it is asked where that is wanted, and gives nothing away.
    let asked =
        program::netobs(Some(host)).args(["doctor", "--agent", "127.0.0.1:9810"]).output().expect("run");
    let text = String::from_utf8_lossy(&asked.stdout);
    assert!(text.contains("it answers 401") && !text.contains("degraded"), "{text}");
    drop(agent);
    std::fs::remove_file(&file).expect("remove the file");
}

#[test]
fn a_program_that_is_detached_behind_our_back() {
    let world = World::new(1);
    let host = &world.host;
    assert!(doctor(host).contains("none runs at 127.0.0.1:9810"), "{}", doctor(host));
    let agent = Agent::start_in(Some(host), &["--no-engine"]);
    wait_for("a comparison", LIMIT, || {
        let veth = interface(host, "veth0")?;
        if difference(&veth, "rx_packets") == Some(0) { Ok(()) } else { Err(veth.to_string()) }
    });
    assert!(doctor(host).contains("held against the kernel's: they agree"), "{}", doctor(host));
    // When it has just been repaired, the next repair is some seconds away.
    let remove = || host.sh("tc filter del dev veth0 ingress");
    let repaired = |times| {
        wait_for("the repair", LIMIT, || {
            let veth = interface(host, "veth0")?;
            if number(&veth, "reattached") == times { Ok(veth) } else { Err(veth.to_string()) }
        })
    };
    remove();
    repaired(1);
    remove();
    world.containers[0].sh("busybox ping -q -c 5 -i 0.02 10.77.0.1");
    let veth = wait_for("the difference", LIMIT, || {
        let veth = interface(host, "veth0")?;
        if difference(&veth, "rx_packets") > Some(0) { Ok(veth) } else { Err(veth.to_string()) }
    });
    assert_eq!(number(&veth, "reattached"), 1, "seen before it was repaired: {veth}");
    let (packets, bytes) = (difference(&veth, "rx_packets"), difference(&veth, "rx_bytes"));
    assert!((Some(5)..Some(9)).contains(&packets) && bytes >= Some(5 * 98), "{veth}");
    assert_eq!(difference(&veth, "tx_packets"), Some(0), "that program is there: {veth}");
    let series = "netobs_reconciliation_difference_packets{host_interface=\"veth0\",container=\"\",\
                  interface=\"\",direction=\"receive\"}";
    assert_eq!(metric(host, series), packets.map(|packets| packets as f64));
    let said = doctor(host);
    assert!(
        said.contains(&format!("differ from the kernel's by {} packets: veth0", packets.unwrap_or(0))),
        "{said}"
    );
    let veth = repaired(2);
    assert_eq!(difference(&veth, "rx_packets"), Some(0), "{veth}");
    assert!(number(&veth, "missed.rx_packets") >= 5, "it is stated now: {veth}");
    assert_eq!(metric(host, "netobs_reattached_total{reason=\"filter_removed\"}"), Some(2.0));
    drop(agent);
}

#[test]
fn whatever_passes_nothing_differs() {
    /// As long as some rounds take.
    const TIME: Duration = Duration::from_secs(17);
    for mode in attach_modes("whatever_passes_nothing_differs") {
        let world = World::new(3);
        let watch = Watch::start(Some(&world.host), &["--no-engine", "--attach", mode]);
        let end = Instant::now() + TIME;
        let mut compared = 0;
        std::thread::scope(|scope| {
            let tcp = || {
                while Instant::now() < end {
                    let to = "10.77.0.11:9000".parse().expect("an address");
                    traffic::tcp(&world.containers[0], &world.containers[1], to, 200_000_000);
                }
            };
            let udp = || {
                while Instant::now() < end {
                    let to = "10.77.0.1:9001".parse().expect("an address");
                    traffic::udp(&world.containers[2], &world.host, to, 20_000, 300);
                }
            };
            let tagged = || {
                while Instant::now() < end {
                    let mut frame = vec![2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8, 0x81, 0, 0, 5, 8, 0, 0x45];
                    frame.resize(60, 17);
                    traffic::raw(&world.containers[2], "eth0", vec![frame; 50]);
                    std::thread::sleep(Duration::from_millis(50));
                }
            };
            scope.spawn(tcp);
            scope.spawn(udp);
            scope.spawn(tagged);
            while Instant::now() < end {
                let snapshot = watch.fresh();
                for interface in snapshot["interfaces"].as_array().expect("interfaces") {
                    for field in ["rx_packets", "rx_bytes", "tx_packets", "tx_bytes"] {
                        if let Some(difference) = difference(interface, field) {
                            assert_eq!(difference, 0, "{mode}: {field}: {interface}");
                            compared += 1;
                        }
                    }
                }
            }
        });
        assert!(compared > 100, "{mode}: {compared}");
        assert_exact(&world.host, &watch, &["veth0", "veth1", BRIDGE]);
        let veth = watch.interface("veth2");
        assert!(number(&veth, "rx.ethertype.vlan.packets") > 50, "{mode}: {veth}");
    }
}
