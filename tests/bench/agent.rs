//! The agent at a fixed rate: CPU time, and memory beside its maps.

use std::time::{Duration, Instant};

use netobs_tests::program::Agent;

use crate::{
    Effort, agent, datagrams,
    document::{Table, Target},
    load::{self, Sink},
    metrics, world,
};

const RATE: u32 = 50_000;

/// Flows; the agent's options; the most CPU seconds in ten, and the most MB beside the maps, that are wanted.
const CASES: [(u32, &[&str], f64, Option<f64>); 4] = [
    (1, &[], 0.02, Some(16.0)),
    (10_000, &[], 0.06, None),
    (100_000, &[], 0.40, Some(32.0)),
    // Room for all of them at both containers, on one CPU.
    (100_000, &["--max-flows=524288"], 0.40, Some(32.0)),
];

pub fn measure(effort: Effort) -> (Vec<Table>, Vec<Target>) {
    let time = effort.time(Duration::from_secs(10));
    let about = format!(
        "The agent with all that is on by default, scraped every 5 s, at {RATE} packets a second from one container to \
         another: each packet of another flow than the one before, each flow at both containers' interfaces. CPU time \
         is user and system of all its threads (`/proc/PID/task/*/schedstat`). Memory is what is resident (`Rss` in \
         `/proc/PID/smaps`) without mapped BPF maps, the most that was seen; the maps' own memory is beside it."
    );
    let head =
        ["flows", "options", "CPU s in 10 s", "resident MB", "resident in maps, MB", "packets in no flow"];
    let mut table = Table::new(&about, &head);
    let mut targets = Vec::new();
    for (flows, options, most_cpu, most_resident) in CASES {
        let (cpu, memory, unflowed) = one(flows, options, time);
        let resident = memory.beside as f64 / 1e6;
        table.row(&[
            grouped(flows),
            options.first().map_or_else(|| "–".to_owned(), |option| format!("`{option}`")),
            format!("{cpu:.3}"),
            format!("{resident:.1}"),
            format!("{:.1}", memory.maps as f64 / 1e6),
            format!("{:.0}%", unflowed * 100.0),
        ]);
        let what = format!("{} flow{}", grouped(flows), if flows == 1 { "" } else { "s" });
        let what = if options.is_empty() { what } else { format!("{what}, room for all") };
        targets.push(Target {
            what: format!("agent's CPU time at 50,000 packets/s, {what}, s in 10 s"),
            target: format!("≤ {most_cpu}"),
            measured: format!("{cpu:.3}"),
            is_met: cpu <= most_cpu,
        });
        if let Some(most) = most_resident {
            targets.push(Target {
                what: format!("agent's resident memory beside the maps, {what}"),
                target: format!("≤ {most} MB"),
                measured: format!("{resident:.1} MB"),
                is_met: resident <= most,
            });
        }
    }
    (vec![table], targets)
}

fn one(flows: u32, options: &[&str], time: Duration) -> (f64, Memory, f64) {
    let world = world();
    let _sink = Sink::new(world.netns(1));
    let agent = agent(&world, options);
    let load = datagrams(flows, Some(RATE));
    // As long as all flows need to have come twice, and been read.
    let warm = Duration::from_secs(6);
    let mut memory = Memory::default();
    std::thread::scope(|scope| {
        let world = &world;
        let sender =
            scope.spawn(move || load::datagrams(world.netns(0), load, warm + time + Duration::from_secs(1)));
        std::thread::sleep(warm);
        let (start, before) = (Instant::now(), cpu(agent.pid()));
        let mut scraped = None;
        while start.elapsed() < time {
            if scraped.is_none_or(|at: Instant| at.elapsed() >= Duration::from_secs(5)) {
                scraped = Some(Instant::now());
                metrics(world, &agent).expect("a scrape");
            }
            memory = memory.most(Memory::of(&agent));
            std::thread::sleep(Duration::from_millis(100));
        }
        let spent = (cpu(agent.pid()) - before).as_secs_f64() * 10.0 / start.elapsed().as_secs_f64();
        sender.join().expect("the sender");
        let text = metrics(world, &agent).expect("a scrape");
        let all = sum(&text, "netobs_container_receive_packets_total{");
        let unflowed = sum(&text, "netobs_container_receive_unflowed_packets_total{");
        assert!(all > time.as_secs_f64() * f64::from(RATE) / 2.0, "{all} packets came");
        (spent, memory, unflowed / all)
    })
}

/// CPU time of all threads that a process has now.
pub fn cpu(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("a process").flatten();
    let of = |task: std::fs::DirEntry| -> Option<u64> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse().ok()
    };
    Duration::from_nanos(tasks.filter_map(of).sum())
}

/// Bytes that are resident.
#[derive(Clone, Copy, Default)]
pub struct Memory {
    pub maps: u64,
    pub beside: u64,
}

impl Memory {
    pub fn of(agent: &Agent) -> Self {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps", agent.pid())).expect("smaps");
        let (mut memory, mut is_map) = (Self::default(), false);
        for line in text.lines() {
            let Some((first, rest)) = line.split_once(' ') else { continue };
            if !first.ends_with(':') {
                is_map = line.contains("anon_inode:bpf-map");
            } else if first == "Rss:" {
                let kib: u64 =
                    rest.split_whitespace().next().and_then(|kib| kib.parse().ok()).expect("a number");
                *(if is_map { &mut memory.maps } else { &mut memory.beside }) += kib * 1024;
            }
        }
        memory
    }

    fn most(self, other: Self) -> Self {
        Self { maps: self.maps.max(other.maps), beside: self.beside.max(other.beside) }
    }
}

/// Of all series that begin so.
pub fn sum(text: &str, name: &str) -> f64 {
    let values = text.lines().filter(|line| line.starts_with(name));
    values.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// 10,000
pub fn grouped(number: u32) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", number / 1000, number % 1000) }
}
