//! Dropped packets between the containers of a real engine.

use netobs_tests::{
    docker::{self, Container, Network},
    drops::{Drops, Looking, packets, rows},
    http,
    program::{LIMIT, container, number},
    wait_for,
};
use serde_json::Value;

/// Tries to break out of strings, labels and lines. Networks may be named so.
const HOSTILE: &str = "\"];\nend,\\<script>;\u{202e}\x1b[2J";

fn forwarded_drop(report: &Value, from: &Container, to: &Container) -> Vec<Value> {
    rows(report, |row| {
        row["source"]["container_id"] == from.id.as_str()
            && row["destination"]["container_id"] == to.id.as_str()
    })
}

#[test]
fn scenario_3_the_isolation_of_two_networks() {
    if !docker::available("scenario 3") {
        return;
    }
    let first = Network::new(&format!("first{HOSTILE}"), &[]);
    let second = Network::new("second", &[]);
    let from = Container::run("from", &["--network", &first.name]);
    let to = Container::run("to", &["--network", &second.name]);
    let address = to.address(&second.name);
    let looking = Looking::start(&[]);
    let command = |output: &'static str| {
        let mut drops = Drops::start(
            None,
            &["--for", "8s", "--output", output, "--filter", &format!("name={}", from.name)],
        );
        drops.looking();
        drops
    };
    let (table, csv, json) = (command("table"), command("csv"), command("json"));
    let pinged =
        docker::try_docker(&["exec", &from.name, "ping", "-q", "-c", "5", "-i", "0.2", "-W", "1", &address]);
    assert!(
        String::from_utf8_lossy(&pinged.stdout).contains("5 packets transmitted, 0 packets received"),
        "{pinged:?}"
    );

    // Nor is it known by its name there.
    let by_name = docker::try_docker(&["exec", &from.name, "ping", "-q", "-c", "1", "-W", "1", &to.name]);
    let told = String::from_utf8_lossy(&by_name.stderr);
    assert!(!by_name.status.success() && told.contains("bad address"), "{by_name:?}");
    // What was sent shows at the one, and that none arrived at the other.
    let echoes = |name: &str, way: &str| {
        let (_, body) = http::get(looking.agent.port, "/api/v1/snapshot").expect("a snapshot");
        let snapshot: Value = serde_json::from_str(&body).expect("JSON");
        let of = container(&snapshot, name).expect("the container");
        number(&of, &format!("{way}.protocol.icmp.packets"))
    };
    assert_eq!((echoes(&from.name, "tx"), echoes(&to.name, "rx")), (5, 0));

    let row = looking.until("the drop", |report| {
        let found = forwarded_drop(report, &from, &to);
        (packets(&found) >= 5).then(|| found[0].clone())
    });
    check(&row, &first, &second, &from, &to);
    let report: Value = serde_json::from_str(&json.output()).expect("JSON");
    let found = forwarded_drop(&report, &from, &to);
    assert_eq!(found.len(), 1, "{report}");
    check(&found[0], &first, &second, &from, &to);

    let table = table.output();
    assert!(!table.contains(['\x1b', '\u{202e}']), "{table}");
    let shown = first.name.replace(HOSTILE, "\"];\\nend,\\<script>;\\u{202e}\\x1b[2J");
    let line = table.lines().find(|line| line.contains(&to.name)).unwrap_or_else(|| panic!("{table}"));
    for part in [
        "NETFILTER_DROP",
        &format!(
            "{} {} on {shown}",
            from.name,
            from.inspect("{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
        ),
        &format!("{} {address} on {}", to.name, second.name),
        "icmp echo-request",
        "at forward",
    ] {
        assert!(line.contains(part), "no {part:?} in {line}");
    }
    assert_eq!(line.split_whitespace().next(), Some("5"), "{line}");
    let csv = csv.output();
    assert!(csv.contains(",NETFILTER_DROP,false,") && csv.contains(&to.name), "{csv}");

    let metrics = wait_for("the metric", LIMIT, || match http::get(looking.agent.port, "/metrics") {
        Ok((200, body)) if body.contains("netobs_drops_total{") => Ok(body),
        other => Err(format!("{other:?}")),
    });
    let series = metrics
        .lines()
        .find(|line| {
            line.starts_with("netobs_drops_total{reason=\"NETFILTER_DROP\"")
                && line.contains(&format!("source=\"{}\",source_id=\"{}\"", from.name, &from.id[..12]))
                && line.contains(&format!("destination=\"{}\",destination_id=\"{}\"", to.name, &to.id[..12]))
        })
        .unwrap_or_else(|| panic!("{metrics}"));
    assert!(series.ends_with(" 5"), "{series}");
    assert!(series.contains(&format!("destination_network=\"{}\"", second.name)), "{series}");
    assert!(metrics.contains("netobs_drops_lost_total{cause=\"full\"} 0"), "{metrics}");
}

/// Five pings, from this container to that, and which networks they are on.
fn check(row: &Value, first: &Network, second: &Network, from: &Container, to: &Container) {
    assert_eq!(row["packets"], 5, "{row}");
    assert_eq!(row["reason"], "NETFILTER_DROP");
    assert_eq!(
        (&row["source"]["container"], &row["source"]["network"]),
        (&from.name.as_str().into(), &first.name.as_str().into())
    );
    assert_eq!(
        (&row["destination"]["container"], &row["destination"]["network"]),
        (&to.name.as_str().into(), &second.name.as_str().into())
    );
    assert_eq!((&row["protocol"], &row["icmp_type"], &row["icmp_code"]), (&1.into(), &8.into(), &0.into()));
    assert_eq!(row["netfilter"]["hook"], "forward");
    let iptables = std::process::Command::new("iptables").arg("--version").output().expect("run iptables");
    let is_nft = String::from_utf8_lossy(&iptables.stdout).contains("nf_tables");
    assert_eq!(row["netfilter"]["by"], if is_nft { "nf_tables" } else { "ip_tables" }, "{row}");
    let (function, offset) =
        row["place"].as_str().and_then(|place| place.split_once("+0x")).expect("a place");
    assert!(function.starts_with("nf") && u32::from_str_radix(offset, 16).is_ok(), "{row}");
    assert_eq!((&row["at"]["host"], &row["at"]["container"]), (&true.into(), &Value::Null));
    let bridge = |network: &Network| format!("br-{}", &network.id[..12]);
    assert_eq!(
        (&row["at"]["interface"], &row["at"]["out_interface"]),
        (&bridge(first).into(), &bridge(second).into())
    );
}

/// Two networks with the same addresses cannot be on one engine, but a container may have another's: then
/// the MAC address and the bridge tell whose packet it was.
#[test]
fn an_address_that_two_containers_have() {
    if !docker::available("the same address twice") {
        return;
    }
    let (first, second) = (Network::new("one", &[]), Network::new("other", &[]));
    let honest = Container::run("honest", &["--network", &first.name]);
    let liar = Container::run("liar", &["--network", &second.name, "--cap-add", "NET_ADMIN"]);
    let target = Container::run("target", &["--network", &second.name]);
    let address = honest.address(&first.name);
    let (gateway, target_address) = (
        liar.inspect("{{range .NetworkSettings.Networks}}{{.Gateway}}{{end}}"),
        target.address(&second.name),
    );
    docker::docker(&[
        "exec",
        &liar.name,
        "busybox",
        "ip",
        "addr",
        "add",
        &format!("{address}/32"),
        "dev",
        "eth0",
    ]);
    let looking = Looking::start(&[]);
    // From the other's address to a closed port: dropped in the target, whose answer goes nowhere.
    let pid = liar.inspect("{{.State.Pid}}");
    let script = format!(
        "ip route add {target_address} dev eth0 src {address} 2>/dev/null || true; exec 3<>/dev/udp/{target_address}/9997; for n in 1 2 3; do echo x >&3; sleep 0.1; done || true"
    );
    let output = std::process::Command::new("nsenter")
        .args(["--net", "-t", &pid, "bash", "-c", &script])
        .output()
        .expect("nsenter");
    assert!(output.status.success(), "{gateway} {output:?}");
    let found = looking.until("its packets", |report| {
        let found = rows(report, |row| {
            row["destination"]["container_id"] == target.id.as_str() && row["port"] == 9997
        });
        (packets(&found) == 3).then_some(found)
    });
    // With br_netfilter the engine's masquerading has given them the bridge's address by then.
    for row in found {
        assert_eq!(row["source"]["container_id"], liar.id.as_str(), "{row}");
        assert_eq!(row["source"]["network"], second.name.as_str(), "{row}");
    }
}
