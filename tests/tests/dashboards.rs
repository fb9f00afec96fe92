//! Dashboards and rules: each query, run on a real Prometheus that has scraped a real agent, says something.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use netobs_tests::{
    docker::{self, Container, Network, try_docker},
    http,
    program::{Agent, LIMIT, LOADED, free_port},
    prometheus::Server,
    wait_for,
};
use serde_json::Value;

/// What only exists where something is wrong, which here it is not: that alert's unit test has to do.
const ABSENT: [&str; 1] = ["netobs_degraded"];

/// What Grafana would put in.
const VARIABLES: [(&str, &str); 6] = [
    ("$__rate_interval", "30s"),
    ("$__range", "1m"),
    ("$instance", ".*"),
    ("$pod", ".*"),
    ("$container", ".*"),
    ("$network", ".*"),
];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn available(test: &str) -> bool {
    let there = ["prometheus", "promtool"]
        .iter()
        .all(|program| Command::new(program).arg("--version").output().is_ok());
    if !there {
        netobs_tests::skip(test, "there is no prometheus with promtool");
    }
    there
}

fn promtool(arguments: &[&str], file: &str) {
    let output = Command::new("promtool")
        .args(arguments)
        .arg(deploy().join("prometheus").join(file))
        .output()
        .expect("run promtool");
    let said =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "promtool {arguments:?}: {said}");
}

/// What a dashboard asks: where, and in PromQL.
struct Asked {
    place: String,
    query: String,
}

fn dashboards() -> Vec<(String, Value)> {
    let files = std::fs::read_dir(deploy().join("grafana")).expect("dashboards");
    let mut found: Vec<(String, Value)> = files
        .map(|file| {
            let path = file.expect("a file").path();
            let text = std::fs::read_to_string(&path).expect("a dashboard");
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            (name, serde_json::from_str(&text).expect("JSON"))
        })
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Queries of its panels and of its variables.
fn asked(name: &str, dashboard: &Value) -> Vec<Asked> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let of_panels = panels.flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let place = format!("{name}, {}", panel["title"]);
        targets.into_iter().map(move |target| Asked {
            place: place.clone(),
            query: target["expr"].as_str().expect("a query").to_owned(),
        })
    });
    let variables = dashboard["templating"]["list"].as_array().expect("variables").iter();
    let of_variables = variables.filter(|variable| variable["type"] == "query").map(|variable| {
        let query = variable["query"]["query"].as_str().expect("a query");
        let parts = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (selector, label) = parts.and_then(|parts| parts.rsplit_once(", ")).expect("label_values");
        Asked {
            place: format!("{name}, variable {}", variable["name"]),
            query: format!("count by ({label}) ({selector})"),
        }
    });
    let mut all: Vec<Asked> = of_panels.chain(of_variables).collect();
    for asked in &mut all {
        for (variable, value) in VARIABLES {
            asked.query = asked.query.replace(variable, value);
        }
        assert!(!asked.query.contains('$'), "{}: {}", asked.place, asked.query);
    }
    all
}

/// Metrics of netobs that an expression names, rules' own among them.
fn metrics(expression: &str) -> BTreeSet<&str> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with("netobs_") || word.contains(":netobs_"))
        .collect()
}

#[test]
fn dashboards_are_whole() {
    let all = dashboards();
    let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["netobs-agent", "netobs-container", "netobs-drops", "netobs-host", "netobs-network"]);
    for (name, dashboard) in &all {
        assert_eq!(dashboard["uid"], name.as_str());
        let panels = dashboard["panels"].as_array().expect("panels");
        let ids: BTreeSet<u64> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
        assert_eq!(ids.len(), panels.len(), "{name}");
        let places: Vec<[u64; 4]> = panels
            .iter()
            .map(|panel| ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().expect(side)))
            .collect();
        for (n, a) in places.iter().enumerate() {
            assert!(a[0] + a[2] <= 24, "{name}: {a:?}");
            for b in &places[..n] {
                let apart =
                    a[0] >= b[0] + b[2] || b[0] >= a[0] + a[2] || a[1] >= b[1] + b[3] || b[1] >= a[1] + a[3];
                assert!(apart, "{name}: {a:?} and {b:?}");
            }
        }
        for panel in panels.iter().filter(|panel| panel["type"] != "row") {
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{name}, {}", panel["title"]);
            assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{name}, {}", panel["title"]);
        }
    }
}

#[test]
fn rules_fire_when_they_should() {
    if available("rules") {
        promtool(&["check", "rules"], "netobs.rules.yml");
        promtool(&["test", "rules"], "netobs.rules.test.yml");
        let file = |name: &str| std::fs::read_to_string(deploy().join("prometheus").join(name)).expect(name);
        let tests = file("netobs.rules.test.yml");
        for line in file("netobs.rules.yml").lines() {
            if let Some(alert) = line.trim().strip_prefix("- alert: ") {
                let name = format!("alertname: {alert}\n");
                assert!(tests.matches(&name).count() >= 2, "{alert} is not tested both ways");
            }
        }
    }
}

#[test]
fn every_query_says_something() {
    if !docker::available("dashboards") || !available("dashboards") {
        return;
    }
    let agent = Agent::start(&[]);
    wait_for("readiness", LOADED, || match http::get(agent.port, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let server = Server::start_with_rules(
        &format!("- {{job_name: netobs, static_configs: [{{targets: ['127.0.0.1:{}']}}]}}\n", agent.port),
        &deploy().join("prometheus/netobs.rules.yml").display().to_string(),
    );
    server.until("up{job=\"netobs\"}", |up| up == 1.0);

    // Started while it is scraped, so that attaching is seen.
    let (front, back) = (Network::new("front", &[]), Network::new("back", &[]));
    let published = free_port();
    let publish = format!("127.0.0.1:{published}:80");
    let web = Container::run_command(
        "web",
        &["--network", &front.name, "--publish", &publish],
        &["httpd", "-f", "-p", "80", "-h", "/www"],
    );
    let client = Container::run("client", &["--network", &front.name]);
    let outsider = Container::run("outsider", &["--network", &back.name]);
    let script = format!(
        "ping -q -c 1 -W 1 {}; wget -q -O /dev/null http://{}/; ping -q -c 1 {}",
        outsider.address(&back.name),
        web.name,
        web.name
    );

    let mut silent: Vec<Asked> =
        dashboards().iter().flat_map(|(name, dashboard)| asked(name, dashboard)).collect();
    assert!(silent.len() > 90, "{}", silent.len());
    // Traffic goes on until all that shows rates has some.
    wait_for("an answer to every query", LIMIT * 3, || {
        try_docker(&["exec", &client.name, "sh", "-c", &script]);
        let _ = http::get(published, "/");
        silent.retain(|asked| {
            let values =
                server.query(&asked.query).unwrap_or_else(|error| panic!("{}: {error}", asked.place));
            values.iter().all(|value| value.is_nan())
        });
        if silent.is_empty() {
            return Ok(());
        }
        Err(silent.iter().map(|asked| format!("\n{}: {}", asked.place, asked.query)).collect())
    });

    let rules = server.rules();
    let of = |kind: &str| rules.iter().filter(|rule| rule["type"] == kind).collect::<Vec<_>>();
    for rule in of("recording") {
        let name = rule["name"].as_str().expect("a name");
        wait_for(name, LIMIT, || match server.query(name)?.len() {
            0 => Err("no value".to_owned()),
            _ => Ok(()),
        });
    }
    let alerts = of("alerting");
    assert!(alerts.len() >= 10);
    for alert in alerts {
        let expression = alert["query"].as_str().expect("a query");
        for metric in metrics(expression).iter().filter(|metric| !ABSENT.contains(*metric)) {
            let found = server.query(&format!("count({metric})")).expect("an answer");
            assert!(!found.is_empty(), "{}: no {metric}", alert["name"]);
        }
    }
}
