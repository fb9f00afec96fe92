//! `netobs trace` with the names that a real engine gives.

use std::{path::Path, process::Command};

use netobs_tests::{
    docker::{self, Container, Network},
    program::LIMIT,
    trace::Trace,
    wait_for,
};
use serde_json::Value;

/// Waits for the first packet of a ping that goes on.
fn shows(trace: &Trace, from: &Container, to: &str) {
    wait_for("a packet", LIMIT, || {
        from.exec(&["ping", "-q", "-c", "1", to]);
        if trace.lines_so_far() > 0 { Ok(()) } else { Err("none".to_owned()) }
    });
}

fn of<'a>(lines: &'a [Value], container: &Container, direction: &str, length: u64) -> Vec<&'a Value> {
    lines
        .iter()
        .filter(|line| {
            line["container"] == container.name && line["direction"] == direction && line["length"] == length
        })
        .collect()
}

#[test]
fn containers_and_networks_by_name() {
    if !docker::available("containers_and_networks_by_name") {
        return;
    }
    let network = Network::new("trace", &[]);
    let option = format!("--network={}", network.name);
    let web = Container::run("web", &[&option]);
    let client = Container::run("client", &[&option]);
    let outsider = Container::run("outsider", &[]);
    let address = web.address(&network.name);
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("packets.pcapng");

    let arguments = ["--network", &network.name, "--proto", "icmp", "--output", "json"];
    let by_network = Trace::start(None, &arguments);
    let by_name = Trace::start(None, &[&web.name, "--proto", "icmp", "--output", "json"]);
    let by_id = Trace::start(None, &[&client.id[..12], "--host", &address]);
    let written = ["--proto", "icmp", "--write", file.to_str().expect("UTF-8")];
    let to_file = Trace::start(None, &[&[web.name.as_str(), client.name.as_str()], &written[..]].concat());
    for trace in [&by_network, &by_name, &by_id] {
        shows(trace, &client, &address);
    }
    wait_for("packets in the file", LIMIT, || {
        client.exec(&["ping", "-q", "-c", "1", &address]);
        let size = std::fs::metadata(&file).map_or(0, |file| file.len());
        if size > 500 { Ok(()) } else { Err(format!("{size} bytes")) }
    });

    // Comes while it is traced.
    let late = Container::run("late", &[&option]);
    wait_for("the late one", LIMIT, || {
        late.exec(&["ping", "-q", "-c", "1", &address]);
        let there = by_network.text_so_far().contains(&late.name);
        if there { Ok(()) } else { Err("not traced".to_owned()) }
    });

    client.exec(&["ping", "-q", "-c", "7", "-s", "300", &address]);
    late.exec(&["ping", "-q", "-c", "3", "-s", "400", &address]);
    outsider.exec(&["ping", "-q", "-c", "2", "-s", "500", "127.0.0.1"]);

    let lines = by_network.terminate().json();
    for (container, direction, length, count) in [
        (&client, "tx", 342, 7),
        (&web, "rx", 342, 7),
        (&web, "tx", 342, 7),
        (&client, "rx", 342, 7),
        (&late, "tx", 442, 3),
        (&web, "rx", 442, 3),
        (&outsider, "tx", 542, 0),
    ] {
        let found = of(&lines, container, direction, length);
        assert_eq!(found.len(), count, "{} {direction} {length}", container.name);
    }
    let request = of(&lines, &client, "tx", 342)[0];
    assert_eq!(
        (&request["network"], &request["source_container"], &request["destination_container"]),
        (&network.name.clone().into(), &client.name.clone().into(), &web.name.clone().into())
    );
    assert_eq!(request["container_id"], client.id);
    let lines = by_name.terminate().json();
    assert!(lines.iter().all(|line| line["container"] == web.name), "{lines:?}");
    assert_eq!(of(&lines, &web, "rx", 342).len(), 7);
    let text = by_id.terminate();
    let beginning = format!(" {}/eth0@veth", client.name);
    assert!(text.lines().iter().all(|line| line.contains(&beginning)), "{:?}", text.lines());
    let counts = to_file.terminate().counts();
    assert_eq!(counts.shown, counts.matched);
    assert_file(&file, &web, &client);
}

fn assert_file(file: &Path, web: &Container, client: &Container) {
    let output = Command::new("tshark")
        .args(["-n", "-r", file.to_str().expect("UTF-8"), "-Y", "frame.len == 342", "-T", "fields"])
        .args(["-e", "frame.interface_name", "-e", "frame.comment"])
        .output()
        .expect("run tshark");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let told = String::from_utf8_lossy(&output.stdout);
    for (interface, from, to) in
        [(client, client, web), (web, client, web), (web, web, client), (client, web, client)]
    {
        let line = format!("{}/eth0\t{} > {}", interface.name, from.name, to.name);
        assert_eq!(told.lines().filter(|told| *told == line).count(), 7, "{line}: {told}");
    }
}

/// It is the owner's interfaces that are traced.
#[test]
fn by_the_name_of_one_that_shares_a_network() {
    if !docker::available("by_the_name_of_one_that_shares_a_network") {
        return;
    }
    let owner = Container::run("owner", &[]);
    let member = Container::run("member", &["--network", &format!("container:{}", owner.name)]);
    let gateway = owner.inspect("{{.NetworkSettings.Gateway}}");
    let trace = Trace::start(None, &[&member.name, "--proto", "icmp", "--output", "json"]);
    shows(&trace, &member, &gateway);
    member.exec(&["ping", "-q", "-c", "5", "-s", "300", &gateway]);
    let lines = trace.terminate().json();
    assert_eq!(
        (of(&lines, &owner, "tx", 342).len(), of(&lines, &owner, "rx", 342).len()),
        (5, 5),
        "{lines:?}"
    );
}
