//! `netobs watch --demo`: a world that talks, and that leaves nothing behind.

use netobs_tests::{
    netns::Netns,
    program::{Watch, container, network, number},
};

/// Interfaces of our own namespace, and the number of all network namespaces that processes are in.
fn traces() -> (String, usize) {
    let links = std::process::Command::new("ip").args(["-br", "link"]).output().expect("run ip");
    let namespaces = std::process::Command::new("sh")
        .args(["-c", "readlink /proc/[0-9]*/task/[0-9]*/ns/net 2>/dev/null | sort -u | wc -l"])
        .output()
        .expect("run sh");
    let count = String::from_utf8_lossy(&namespaces.stdout).trim().parse().expect("a number");
    (String::from_utf8_lossy(&links.stdout).into_owned(), count)
}

#[test]
fn the_demo_talks_and_leaves_nothing() {
    // In a namespace of its own, so that other tests' interfaces don't come and go in it.
    let host = Netns::new();
    let (links, namespaces) = (host.sh("ip -br link"), traces().1);
    for end in ["kill", "terminate"] {
        let mut watch = Watch::start(Some(&host), &["--demo"]);
        let (web, outsider) = watch.until("traffic of all", |snapshot| {
            let web = container(snapshot, "web")?;
            let outsider = container(snapshot, "outsider")?;
            let database = container(snapshot, "database")?;
            let client = container(snapshot, "client")?;
            (number(&web, "tx.protocol.tcp.packets") > 100
                && number(&database, "rx.protocol.udp.packets") > 5
                && number(&client, "rx.bytes") > 100_000
                && number(&outsider, "tx.tcp_flags.syn") >= 2)
                .then_some((web, outsider))
        });
        assert_eq!(web["networks"], serde_json::json!(["shop"]));
        assert!(number(&web, "tx.wire_packets") > number(&web, "tx.packets"), "offloads are on");
        assert_eq!(number(&outsider, "rx.protocol.tcp.packets"), 0, "nobody answers the outsider");
        let shop = watch.until("the network", |snapshot| network(snapshot, "shop"));
        assert_eq!(shop["containers"], serde_json::json!(["client", "database", "web"]));
        assert_eq!(host.sh("ip -br link"), links, "nothing of it is seen from outside");
        match end {
            "kill" => watch.kill(),
            _ => assert!(watch.terminate().0.success()),
        }
        netobs_tests::wait_for("nothing left", netobs_tests::program::LIMIT, || match traces().1 {
            left if left <= namespaces => Ok(()),
            left => Err(format!("{left} namespaces, {namespaces} before")),
        });
        assert_eq!(host.sh("ip -br link"), links);
    }
}
