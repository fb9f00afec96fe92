//! What it takes to answer Prometheus.

use std::time::{Duration, Instant};

use netobs_tests::{
    http,
    netns::Netns,
    program::{Agent, LIMIT},
    wait_for,
};

use crate::{
    Effort,
    agent::{Memory, cpu, grouped},
    document::{Spread, Table, Target},
};

/// Between two scrapes, for the share of a CPU.
pub const INTERVAL: f64 = 15.0;

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let rounds = effort.rounds(15);
    let about = format!(
        "`/metrics` over HTTP, with interfaces (veths without containers), {rounds} scrapes, 0.1 s apart. CPU \
         time is the agent's for a scrape, and what it takes in between on an idle host, added up for a second at an \
         interval of 15 s."
    );
    let head =
        ["interfaces", "ms a scrape", "kB", "CPU ms a scrape", "CPU ms a second", "resident MB beside maps"];
    let mut table = Table::new(&about, &head);
    let mut targets = Vec::new();
    for interfaces in [100, 1000, 5000] {
        if effort.quick && interfaces > 1000 {
            continue;
        }
        let (time, bytes, for_one, idle, memory) =
            one(interfaces, rounds, effort.time(Duration::from_secs(10)));
        let a_second = for_one / INTERVAL + idle;
        table.row(&[
            grouped(interfaces),
            time.show(1),
            format!("{:.0}", bytes as f64 / 1e3),
            format!("{for_one:.1}"),
            format!("{a_second:.1}"),
            format!("{:.1}", memory.beside as f64 / 1e6),
        ]);
        if interfaces == 1000 {
            targets.push(Target {
                what: "scrape at 1,000 interfaces".to_owned(),
                target: "≤ 20 ms".to_owned(),
                measured: format!("{:.1} ms", time.median),
                is_met: time.median <= 20.0,
            });
            targets.push(Target {
                what: "its CPU time a second, at a 15 s interval".to_owned(),
                target: "≤ 5 ms".to_owned(),
                measured: format!("{a_second:.1} ms"),
                is_met: a_second <= 5.0,
            });
        }
    }
    (vec![table], targets)
}

/// Longer than the agent makes no other sample.
pub const REST: Duration = Duration::from_millis(100);

/// Of a scrape: ms, bytes, and CPU ms; CPU ms a second without; memory after all.
fn one(interfaces: u32, rounds: usize, idle: Duration) -> (Spread, usize, f64, f64, Memory) {
    let host = Netns::new();
    veths(&host, interfaces / 2);
    let agent = Agent::start_in(Some(&host), &["--no-engine", "--max-interfaces", "8192"]);
    attached(&host, &agent, interfaces);
    let port = agent.port;
    let get = move || http::get(port, "/metrics").expect("a scrape");
    host.run(get);
    let before = cpu(agent.pid());
    let (times, bytes) = host.run(move || {
        let mut times = Vec::new();
        let mut bytes = 0;
        for _ in 0..rounds {
            // Who asks at once again waits for the next sample: nobody scrapes so.
            std::thread::sleep(REST);
            let start = Instant::now();
            let (status, body) = get();
            times.push(start.elapsed().as_secs_f64() * 1e3);
            assert_eq!(status, 200);
            bytes = body.len();
            let is_series = |line: &&str| line.starts_with("netobs_interface_receive_packets_total{");
            assert_eq!(body.lines().filter(is_series).count(), interfaces as usize);
        }
        (times, bytes)
    });
    let for_one = ms(cpu(agent.pid()) - before) / rounds as f64;
    let before = cpu(agent.pid());
    std::thread::sleep(idle);
    let idle = ms(cpu(agent.pid()) - before) / idle.as_secs_f64();
    (Spread::of(times), bytes, for_one, idle, Memory::of(&agent))
}

pub fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Pairs with both ends in the namespace.
pub fn veths(host: &Netns, pairs: u32) {
    let lines: String = (0..pairs).map(|n| format!("link add v{n} type veth peer name w{n}\n")).collect();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("write");
    host.sh(&format!("ip -batch {}", file.path().display()));
}

/// Waits until so many are attached.
pub fn attached(host: &Netns, agent: &Agent, count: u32) {
    let port = agent.port;
    wait_for("all attached", LIMIT * 3, || {
        let answer = host.run(move || http::get(port, "/metrics")).map_err(|error| error.to_string())?;
        let lines = answer
            .1
            .lines()
            .filter(|line| line.starts_with("netobs_interface_receive_packets_total{"))
            .count();
        if lines == count as usize { Ok(()) } else { Err(format!("{lines} of {count}")) }
    });
}
