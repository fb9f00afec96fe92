//! Many interfaces: how fast they are attached, and what stays behind. Prints what it measures; asserts only what must
//! hold on any machine. What all that costs, `cargo xtask bench` measures.

use std::time::Instant;

use netobs_tests::{
    http,
    netns::Netns,
    program::{self, Agent, LIMIT, number},
    wait_for,
};
use serde_json::Value;

/// Runs `count` commands of `ip` at once; `{}` in the line is the number.
fn batch(host: &Netns, count: usize, line: &str) {
    let lines: String = (0..count).map(|n| line.replace("{}", &n.to_string()) + "\n").collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("write");
    host.sh(&format!("ip -batch {}", file.path().display()));
}

/// The agent's own view, asked inside its namespace.
fn snapshot(host: &Netns, port: u16) -> Result<Value, String> {
    let (_, body) =
        host.run(move || http::get(port, "/api/v1/snapshot")).map_err(|error| error.to_string())?;
    serde_json::from_str(&body).map_err(|error| error.to_string())
}

/// Waits until so many are attached, and nothing has failed.
fn attached(host: &Netns, agent: &Agent, count: u64) -> Value {
    wait_for("all attached", LIMIT * 3, || {
        let now = snapshot(host, agent.port)?;
        let health = &now["agent"];
        if health["unattached"].as_array().is_some_and(|unattached| !unattached.is_empty()) {
            panic!("{health}");
        }
        if number(health, "attached_interfaces") == count { Ok(now) } else { Err(health.to_string()) }
    })
}

/// The upper bound (microseconds) of the bucket that has the share of observations below it.
fn quantile(latency: &Value, share: f64) -> u64 {
    let bounds = netobs::model::snapshot::LATENCY_BOUNDS_US;
    let buckets: Vec<u64> = (0..=bounds.len()).map(|n| number(latency, &format!("buckets.{n}"))).collect();
    let wanted = (buckets.iter().sum::<u64>() as f64 * share).ceil() as u64;
    let mut below = 0;
    for (bucket, bound) in buckets.iter().zip(bounds) {
        below += bucket;
        if below >= wanted {
            return bound;
        }
    }
    u64::MAX
}

#[test]
fn five_hundred_at_start() {
    let host = Netns::new();
    batch(&host, 250, "link add v{} type veth peer name w{}");
    let start = Instant::now();
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    let now = attached(&host, &agent, 500);
    println!("500 veths at start: serving after {:?} from exec", start.elapsed());
    let slowest = quantile(&now["agent"]["attach_latency"], 1.0);
    println!("500 veths at start: all attached within {slowest} us (bucket's bound) of being listed");
}

#[test]
fn five_hundred_one_after_the_other() {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    attached(&host, &agent, 0);
    for n in 0..250 {
        host.sh(&format!("ip link add v{n} type veth peer name w{n}"));
    }
    let now = attached(&host, &agent, 500);
    let latency = &now["agent"]["attach_latency"];
    println!(
        "500 new veths: attached within {} us (median), {} us (99th percentile) of netlink's message; buckets {}",
        quantile(latency, 0.5),
        quantile(latency, 0.99),
        latency["buckets"],
    );
    let total: u64 = (0..12).map(|n| number(latency, &format!("buckets.{n}"))).sum();
    assert_eq!(total, 500, "each is attached once");
}

#[test]
fn a_thousand_interfaces() {
    let host = Netns::new();
    batch(&host, 500, "link add v{} type veth peer name w{}");
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--max-interfaces", "1024"]);
    attached(&host, &agent, 1000);
    let port = agent.port;
    let (status, body) = host.run(move || http::get(port, "/metrics")).expect("a scrape");
    assert_eq!(status, 200);
    let is_series = |line: &&str| line.starts_with("netobs_interface_receive_packets_total{");
    assert_eq!(body.lines().filter(is_series).count(), 1000);
}

#[test]
fn churn_leaves_nothing() {
    let host = Netns::new();
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--grace", "0s"]);
    attached(&host, &agent, 0);
    let pid = agent.pid();
    let round = || {
        batch(&host, 100, "link add v{} type veth peer name w{}");
        attached(&host, &agent, 200);
        batch(&host, 100, "link del v{}");
        attached(&host, &agent, 0);
    };
    round();
    let (before, resident) = (program::open(pid), agent.resident_kib());
    for _ in 0..4 {
        round();
    }
    // The last connection may still be on its way out.
    wait_for("descriptors and threads as before", LIMIT, || match program::open(pid) {
        now if now == before => Ok(()),
        now => Err(format!("{now:?}, {before:?} before")),
    });
    let after = agent.resident_kib();
    println!("churn of 800 interfaces: {resident} KiB resident before, {after} KiB after");
    assert!(after < resident + resident / 10 + 1024, "{resident} KiB before, {after} KiB after");
}
