//! A real Prometheus server scrapes a real agent; the metrics are what the kernel and the engine say.

use std::process::Command;

use netobs_tests::{
    docker::{self, Container},
    http,
    program::{Agent, LIMIT},
    prometheus::{Server, promtool_check, sample},
    wait_for,
};

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

#[test]
fn a_prometheus_server_scrapes() {
    if !docker::available("scrape") || !installed("scrape", "prometheus") {
        return;
    }
    let b = Container::run("scraped", &[]);
    let agent = Agent::start(&[]);
    let target = format!("static_configs: [{{targets: ['127.0.0.1:{}']}}]", agent.port);
    let server = Server::start(&format!(
        "- {{job_name: netobs, {target}}}\n- {{job_name: cadvisor, metrics_path: /metrics/cadvisor, {target}}}\n"
    ));
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
