//! How long it takes from the start to the first answer.

use std::{
    process::Stdio,
    time::{Duration, Instant},
};

use netobs_tests::{
    http,
    netns::Netns,
    program::{Agent, netobs},
};

use crate::{
    Effort,
    document::{Spread, Table, Target},
    scrape::veths,
};

/// What is started with it, and how.
const SETS: [(&str, &[&str]); 4] = [
    ("agent, all as by default", &[]),
    ("without drops and TCP", &["--no-drops", "--no-tcp"]),
    ("without DNS and ARP either", &["--no-drops", "--no-tcp", "--no-dns", "--no-arp"]),
    ("without flows either", &["--no-drops", "--no-tcp", "--no-dns", "--no-arp", "--max-flows=0"]),
];

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let rounds = effort.rounds(7);
    let about = format!(
        "From exec until `/metrics` is answered, and with `netobs watch --once` until it has ended, of which 100 ms are \
         the pause between the two samples that rates need. ms, {rounds} rounds in turns."
    );
    let mut table = Table::new(&about, &["", "no interface", "500 interfaces"]);
    let hosts = [Netns::new(), Netns::new()];
    veths(&hosts[1], 250);
    let mut times = vec![[Vec::new(), Vec::new()]; SETS.len() + 1];
    for _ in 0..rounds {
        for (at, times) in times.iter_mut().enumerate() {
            for (host, times) in hosts.iter().zip(times) {
                times.push(SETS.get(at).map_or_else(|| once(host), |(_, options)| answer(host, options)));
            }
        }
    }
    let names = SETS.iter().map(|(what, _)| *what).chain(["`netobs watch --once --output json`"]);
    for (what, times) in names.zip(times) {
        let [none, many] = times.map(|times| Spread::of(times).show(0));
        table.row(&[what.to_owned(), none, many]);
    }
    (vec![table], Vec::new())
}

fn answer(host: &Netns, options: &[&str]) -> f64 {
    let start = Instant::now();
    let agent = Agent::start_in(Some(host), &[&["--no-engine"], options].concat());
    let port = agent.port;
    host.run(move || {
        while !http::get(port, "/metrics").is_ok_and(|(status, _)| status == 200) {
            assert!(start.elapsed() < Duration::from_secs(30), "no answer");
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    start.elapsed().as_secs_f64() * 1e3
}

fn once(host: &Netns) -> f64 {
    let start = Instant::now();
    let mut command = netobs(Some(host));
    command.args(["watch", "--once", "--output", "json", "--no-engine"]);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status().expect("run netobs");
    assert!(status.success(), "{status}");
    start.elapsed().as_secs_f64() * 1e3
}
