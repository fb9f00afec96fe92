//! A real Prometheus server scrapes a real agent; the metrics are what the kernel and the engine say.

use std::{
    io::Write as _,
    process::{Child, Command, Stdio},
};

use netobs_tests::{
    docker::{self, Container},
    http,
    netns::die_with_parent,
    program::{Agent, LIMIT, free_port},
    wait_for,
};
use serde_json::Value;

fn installed(test: &str, program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        netobs_tests::skip(test, &format!("there is no {program}"));
    }
    there
}

fn scrape(port: u16, path: &str) -> String {
    wait_for(path, LIMIT, || match http::get(port, path) {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    })
}

/// What promtool has to say against an exposition.
fn promtool_check(exposition: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start promtool");
    promtool.stdin.take().expect("a pipe").write_all(exposition.as_bytes()).expect("write to promtool");
    let output = promtool.wait_with_output().expect("wait for promtool");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}

/// The value of the first sample of a metric whose labels have all of these parts.
fn sample(exposition: &str, metric: &str, labels: &[&str]) -> Option<f64> {
    exposition.lines().find_map(|line| {
        let rest = line.strip_prefix(metric)?;
        let (found, value) = rest.strip_prefix('{')?.rsplit_once("} ")?;
        labels.iter().all(|label| found.contains(label)).then(|| value.parse().ok()).flatten()
    })
}

#[test]
fn metrics_of_a_container() {
    if !docker::available("metrics") || !installed("metrics", "promtool") {
        return;
    }
    let b = Container::run("metered", &[]);
    let agent = Agent::start(&[]);
    let id = &b.id[..12];
    let labels = [&*format!("id=\"{id}\""), "interface=\"eth0\"", "network=\"bridge\""].map(str::to_owned);
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    wait_for("the container's series", LIMIT, || {
        sample(&scrape(agent.port, "/metrics"), "netobs_container_receive_packets_total", &labels)
            .ok_or_else(|| "none".to_owned())
    });
    b.exec(&["ping", "-q", "-c", "6", "-i", "0.05", &b.inspect("{{.NetworkSettings.Gateway}}")]);
    let exposition = scrape(agent.port, "/metrics");
    let name = format!("container=\"{}\"", b.name);
    let of_icmp = [&labels[..], &[&name, "protocol=\"icmp\""]].concat();
    for (metric, value) in [
        ("netobs_container_protocol_transmit_packets_total", 6.0),
        ("netobs_container_protocol_transmit_bytes_total", 588.0),
        ("netobs_container_protocol_receive_packets_total", 6.0),
    ] {
        assert_eq!(sample(&exposition, metric, &of_icmp), Some(value), "{metric}");
    }
    assert_eq!(
        sample(
            &exposition,
            "netobs_container_info",
            &[&name, "image=\"netobs-test:1\"", "state=\"running\""]
        ),
        Some(1.0)
    );
    promtool_check(&exposition);
    let cadvisor = scrape(agent.port, "/metrics/cadvisor");
    let name = format!("name=\"{}\"", b.name);
    let id = format!("id=\"/docker/{}\"", b.id);
    let image = format!("image=\"{}\"", docker::IMAGE);
    for metric in [
        "container_network_receive_bytes_total",
        "container_network_transmit_bytes_total",
        "container_network_receive_packets_total",
        "container_network_transmit_packets_total",
        "container_network_receive_packets_dropped_total",
        "container_network_receive_errors_total",
    ] {
        let value = sample(&cadvisor, metric, &[&name, &id, &image, "interface=\"eth0\""]);
        assert!(value.is_some(), "no {metric} in {cadvisor}");
    }
    promtool_check(&cadvisor);
}

struct Server {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(target: u16) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let port = free_port();
        let configuration = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s}}\nscrape_configs:\n\
             - {{job_name: netobs, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n\
             - {{job_name: cadvisor, metrics_path: /metrics/cadvisor, static_configs: [{{targets: ['127.0.0.1:{target}']}}]}}\n"
        );
        let file = folder.path().join("prometheus.yml");
        std::fs::write(&file, configuration).expect("write the configuration");
        let mut command = Command::new("prometheus");
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = die_with_parent(&mut command).spawn().expect("start prometheus");
        Self { child, port, _folder: folder }
    }

    /// The values that a query gives now.
    fn query(&self, query: &str) -> Result<Vec<f64>, String> {
        let encoded: String = query
            .bytes()
            .map(|byte| {
                if byte.is_ascii_alphanumeric() { (byte as char).to_string() } else { format!("%{byte:02X}") }
            })
            .collect();
        let (status, body) = http::get(self.port, &format!("/api/v1/query?query={encoded}"))
            .map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(body);
        }
        let answer: Value = serde_json::from_str(&body).map_err(|error| error.to_string())?;
        let results = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        Ok(results.iter().filter_map(|result| result["value"][1].as_str()?.parse().ok()).collect())
    }

    /// Waits until a query gives exactly one value that is as wanted.
    fn until(&self, query: &str, wanted: impl Fn(f64) -> bool) -> f64 {
        wait_for(query, LIMIT, || match self.query(query)?.as_slice() {
            [value] if wanted(*value) => Ok(*value),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_prometheus_server_scrapes() {
    if !docker::available("scrape") || !installed("scrape", "prometheus") {
        return;
    }
    let b = Container::run("scraped", &[]);
    let agent = Agent::start(&[]);
    let server = Server::start(agent.port);
    server.until("up{job=\"netobs\"}", |up| up == 1.0);
    server.until("up{job=\"cadvisor\"}", |up| up == 1.0);
    b.exec(&["ping", "-q", "-c", "9", "-i", "0.05", &b.inspect("{{.NetworkSettings.Gateway}}")]);
    let of = format!("container=\"{}\"", b.name);
    server.until(
        &format!("netobs_container_protocol_transmit_packets_total{{{of},protocol=\"icmp\"}}"),
        |packets| packets == 9.0,
    );
    // Joins with the information about the container, as dashboards do.
    server.until(
        &format!(
            "netobs_container_receive_bytes_total{{{of}}} * on(id) group_left(image) netobs_container_info{{image=\"netobs-test:1\"}}"
        ),
        |bytes| bytes > 0.0,
    );
    server.until(&format!("container_network_transmit_packets_total{{name=\"{}\"}}", b.name), |packets| {
        packets >= 9.0
    });
    server.until(&format!("netobs_container_transmit_packet_size_bytes_count{{{of}}}"), |count| count >= 9.0);
    server.until(&format!("rate(netobs_container_transmit_packets_total{{{of}}}[30s])"), |rate| rate >= 0.0);
}
