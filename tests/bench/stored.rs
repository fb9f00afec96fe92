//! What a real Prometheus needs for the series of nodes, which rules make them fewer, and what that is in clusters.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use netobs_tests::{
    node::Node,
    program::{Agent, resident_kib},
    prometheus::{Server, fewer_series},
    wait_for,
};
use serde_json::Value;

use crate::{
    Effort,
    agent::sum,
    document::{Spread, Table},
    nodes::{Figures, thousands},
    scrape::INTERVAL,
};

/// The same agent, scraped as so many nodes.
const INSTANCES: usize = 2;
/// How long it scrapes: a chunk has up to 120 samples.
const TIME: Duration = Duration::from_secs(130);
/// Seconds between two scrapes.
const PAUSE: u64 = 2;
/// Rules that one server tries at a time, which bounds its memory.
const AT_ONCE: usize = 5;

const NODES: [usize; 3] = [10, 1000, 10_000];
const DAY: f64 = 86_400.0;
/// Prometheus makes a block of two hours, and puts several together later.
const BLOCKS_A_DAY: f64 = 12.0;

/// How long one scrape of [`left`] may take.
const SCRAPE: &str = "scrape_interval: 10s, scrape_timeout: 10s";
const LIMIT: Duration = Duration::from_secs(90);

pub fn is_there() -> bool {
    Command::new("prometheus").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Series that are left by the first so many rules of `fewer-series.yml`, from none to all, as Prometheus counts them.
pub fn left(node: &Node, agent: &Agent) -> Vec<usize> {
    let rules: Vec<String> = fewer_series().into_iter().map(|rule| rule.rule).collect();
    let counts: Vec<usize> = (0..=rules.len()).collect();
    node.serve(agent, |port| {
        let some = |counts: &[usize]| -> Vec<usize> {
            let job = |count: &usize| {
                let (target, rules) = (target(port, ""), rules[..*count].join(", "));
                format!(
                    "- {{job_name: rules-{count}, {SCRAPE}, static_configs: [{target}], \
                     metric_relabel_configs: [{rules}]}}\n"
                )
            };
            let server = Server::start(&counts.iter().map(job).collect::<String>());
            counts.iter().map(|count| kept(&server, *count)).collect()
        };
        counts.chunks(AT_ONCE).flat_map(some).collect()
    })
}

fn kept(server: &Server, count: usize) -> usize {
    let query =
        format!("scrape_samples_post_metric_relabeling{{job=\"rules-{count}\"}} and on (job) up == 1");
    wait_for("a scrape by each rule", LIMIT, || match server.query(&query)?.as_slice() {
        [samples] => Ok(*samples as usize),
        other => Err(format!("{other:?}")),
    })
}

fn target(port: u16, labels: &str) -> String {
    format!("{{targets: ['127.0.0.1:{port}'], labels: {{{labels}}}}}")
}

/// What Prometheus took.
pub struct Costs {
    version: String,
    series: f64,
    samples_a_second: f64,
    base_bytes: f64,
    resident: Spread,
    wal_bytes_a_sample: f64,
    chunk_bytes_a_sample: f64,
    index_bytes_a_series: f64,
    samples_a_series: f64,
}

impl Costs {
    fn memory_a_series(&self) -> f64 {
        (self.resident.median - self.base_bytes) / self.series
    }

    pub fn table(&self) -> Table {
        let about = format!(
            "{} scrapes the node with 110 pods every {PAUSE} s, as {INSTANCES} nodes, while the pods do what they do. \
             Resident memory (`VmRSS`): of a server that scrapes nothing, and in the last quarter of {} s; the median of \
             these less the former by series is what a series takes. The write-ahead log (WAL) by how it grew, and a \
             block that Prometheus made of all at the end, by its `meta.json` and files.",
            self.version,
            TIME.as_secs()
        );
        let mut table = Table::named("prometheus", &about, &["", "measured"]);
        let mut row = |what: &str, value: String| table.row(&[what.to_owned(), value]);
        row("series", thousands(self.series));
        row("samples a second", thousands(self.samples_a_second));
        row("resident MB, nothing scraped", format!("{:.0}", self.base_bytes / 1e6));
        let mb = Spread {
            least: self.resident.least / 1e6,
            median: self.resident.median / 1e6,
            most: self.resident.most / 1e6,
        };
        row("resident MB", mb.show(0));
        row("resident bytes a series", thousands(self.memory_a_series()));
        row("bytes of WAL a sample", format!("{:.2}", self.wal_bytes_a_sample));
        row(
            &format!("bytes of chunks a sample, {:.0} a series", self.samples_a_series),
            format!("{:.2}", self.chunk_bytes_a_sample),
        );
        row("bytes of index a series and block", format!("{:.0}", self.index_bytes_a_series));
        table
    }
}

pub fn costs(node: &Node, agent: &Agent, effort: Effort) -> Costs {
    let busy = node.go_on();
    let time = effort.time(TIME);
    let version = version();
    let costs = node.serve(agent, |port| {
        let targets: Vec<String> =
            (0..INSTANCES).map(|n| target(port, &format!("instance: node-{n}"))).collect();
        let jobs = format!(
            "- {{job_name: netobs, scrape_interval: {PAUSE}s, scrape_timeout: {PAUSE}s, static_configs: [{}]}}\n",
            targets.join(", ")
        );
        let base_bytes = {
            let server = Server::start("");
            wait_for("Prometheus", LIMIT, || server.metrics());
            std::thread::sleep(effort.time(Duration::from_secs(10)));
            resident(server.pid())
        };
        let server = Server::start(&jobs);
        server.until("count(up == 1)", |up| up == INSTANCES as f64);
        std::thread::sleep(time / 4);
        let (start, wal, appended) = (Instant::now(), size(&server.data().join("wal")), appended(&server));
        std::thread::sleep(time / 2);
        let last = Instant::now();
        let mut memory = Vec::new();
        while last.elapsed() < time / 4 {
            memory.push(resident(server.pid()));
            std::thread::sleep(Duration::from_secs(1));
        }
        let more = self::appended(&server) - appended;
        let wal = size(&server.data().join("wal")) - wal;
        let samples_a_second = more / start.elapsed().as_secs_f64();
        let up = server.query("min(avg_over_time(up[2m]))").expect("an answer");
        assert!(up.first().is_some_and(|up| *up > 0.95), "scrapes have failed: {up:?}");
        let series = sum(&server.metrics().expect("its metrics"), "prometheus_tsdb_head_series ");
        let block = server.block();
        let meta = std::fs::read_to_string(block.join("meta.json")).expect("meta.json");
        let meta: Value = serde_json::from_str(&meta).expect("JSON");
        let stat = |name: &str| meta["stats"][name].as_f64().expect(name);
        Costs {
            version,
            series,
            samples_a_second,
            base_bytes,
            resident: Spread::of(memory),
            wal_bytes_a_sample: wal / more,
            chunk_bytes_a_sample: size(&block.join("chunks")) / stat("numSamples"),
            index_bytes_a_series: size(&block.join("index")) / stat("numSeries"),
            samples_a_series: stat("numSamples") / stat("numSeries"),
        }
    });
    drop(busy);
    costs
}

/// `Prometheus 2.42.0`, of `prometheus, version 2.42.0+ds (…`.
fn version() -> String {
    let output = Command::new("prometheus").arg("--version").output().expect("prometheus");
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    let number = text.split_whitespace().nth(2).unwrap_or_default();
    format!("Prometheus {number}")
}

fn resident(pid: u32) -> f64 {
    resident_kib(pid) as f64 * 1024.0
}

fn appended(server: &Server) -> f64 {
    sum(&server.metrics().expect("its metrics"), "prometheus_tsdb_head_samples_appended_total")
}

/// Bytes of a file, or of all files in a folder.
fn size(path: &Path) -> f64 {
    if path.is_dir() {
        let files = std::fs::read_dir(path).expect("a folder");
        return files.flatten().map(|file| size(&file.path())).sum();
    }
    path.metadata().map_or(0.0, |file| file.len() as f64)
}

pub fn of_rules(nodes: &[Figures], left: &[Vec<usize>]) -> Table {
    let about = "Rules of [fewer-series.yml](../deploy/prometheus/fewer-series.yml), each with all before it: how many \
                 series fewer Prometheus keeps for each rule (its own `scrape_samples_post_metric_relabeling`), and what \
                 share is left.";
    let head: Vec<String> =
        nodes.iter().flat_map(|node| [format!("{} pods: fewer", node.pods), "left".to_owned()]).collect();
    let head: Vec<&str> =
        ["", "what is dropped"].into_iter().chain(head.iter().map(String::as_str)).collect();
    let mut table = Table::named("rules", about, &head);
    for (at, rule) in fewer_series().iter().enumerate() {
        let cells = left.iter().flat_map(|left| {
            let share = left[at + 1] as f64 * 100.0 / left[0] as f64;
            [thousands((left[at] - left[at + 1]) as f64), format!("{share:.0}%")]
        });
        let cells: Vec<String> = [(at + 1).to_string(), rule.what.clone()].into_iter().chain(cells).collect();
        table.row(&cells);
    }
    table
}

pub fn of_clusters(nodes: &[Figures], left: &[Vec<usize>], costs: &Costs) -> Table {
    let about = format!(
        "Computed of the tables above. Series: those of a node × nodes; by all rules: the share that they leave. Samples \
         a second: series / {INTERVAL:.0} s. Scraped: bytes of a node's `/metrics` × nodes / {INTERVAL:.0} s. Memory: \
         {:.0} MB + {} bytes × series. Disk a day: samples × {:.2} bytes + series × {:.0} bytes × {BLOCKS_A_DAY:.0} \
         blocks.",
        costs.base_bytes / 1e6,
        thousands(costs.memory_a_series()),
        costs.chunk_bytes_a_sample,
        costs.index_bytes_a_series,
    );
    let head = [
        "nodes",
        "pods a node",
        "series",
        "by all rules",
        "samples/s",
        "scraped MB/s",
        "memory GB",
        "disk GB a day",
    ];
    let mut table = Table::named("clusters", &about, &head);
    for count in NODES {
        for (node, left) in nodes.iter().zip(left) {
            let series = (node.series * count) as f64;
            let share = left.last().copied().unwrap_or_default() as f64 / left[0] as f64;
            let a_second = series / INTERVAL;
            let memory = costs.base_bytes + costs.memory_a_series() * series;
            let disk = a_second * DAY * costs.chunk_bytes_a_sample
                + series * costs.index_bytes_a_series * BLOCKS_A_DAY;
            table.row(&[
                thousands(count as f64),
                node.pods.to_string(),
                thousands(series),
                thousands(series * share),
                thousands(a_second),
                format!("{:.1}", (node.text.len() * count) as f64 / INTERVAL / 1e6),
                format!("{:.1}", memory / 1e9),
                format!("{:.1}", disk / 1e9),
            ]);
        }
    }
    table
}
