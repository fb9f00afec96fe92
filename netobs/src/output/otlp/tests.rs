use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime},
};

use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, metrics::v1::ExportMetricsServiceRequest},
    logs::v1::LogRecord,
    metrics::v1::{Metric, metric::Data, number_data_point},
};
use prost::Message as _;

use super::*;
use crate::{
    model::{Pod, Workload, conversation::Conversations},
    output::{fixture, flows::tests::conversations, format::is_hostile, prometheus},
};

fn started() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000)
}

fn starts() -> Starts {
    Starts::new(Since { pinned: started(), started: started() })
}

fn source() -> Source {
    Source::new([("service.name".to_owned(), "netobs".to_owned())])
}

fn decoded(messages: &[Message]) -> Vec<Metric> {
    let requests = messages
        .iter()
        .map(|message| ExportMetricsServiceRequest::decode(message.body.as_ref()).expect("a request"));
    let scopes = requests.flat_map(|request| request.resource_metrics).flat_map(|one| {
        assert_eq!(one.resource.expect("a resource").attributes.len(), 1);
        one.scope_metrics
    });
    scopes.flat_map(|scope| scope.metrics).collect()
}

fn shown(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let value = |value: &KeyValue| match value.value.clone().and_then(|value| value.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    };
    let shown: BTreeMap<_, _> = attributes.iter().map(|one| (one.key.clone(), value(one))).collect();
    assert_eq!(shown.len(), attributes.len(), "one comes twice: {attributes:?}");
    shown
}

/// Every sample of `/metrics` is a point of the same value, and there are no others; none comes twice.
#[test]
fn all_that_is_in_metrics() {
    let snapshot = fixture::snapshot();
    let metrics = decoded(&metrics(&snapshot, &source(), &mut starts()).expect("messages"));
    let mut points = Vec::new();
    let mut series = std::collections::HashSet::new();
    for metric in &metrics {
        assert!(
            metric.name.starts_with("netobs.") || metric.name == "container.network.io",
            "{}",
            metric.name
        );
        let mut once = |attributes: &[KeyValue]| {
            assert!(
                series.insert((metric.name.clone(), shown(attributes))),
                "{}: {attributes:?}",
                metric.name
            );
        };
        match metric.data.as_ref().expect("data") {
            Data::Sum(sum) => {
                assert!(sum.is_monotonic && sum.aggregation_temporality == 2, "{}", metric.name);
                for point in &sum.data_points {
                    once(&point.attributes);
                    assert_eq!(point.start_time_unix_nano, unix_nanos(started()));
                    assert_eq!(point.time_unix_nano, unix_nanos(snapshot.time));
                    let Some(number_data_point::Value::AsInt(value)) = point.value else {
                        panic!("a count is an integer: {point:?}")
                    };
                    points.push(value as f64);
                }
            }
            Data::Gauge(gauge) => {
                for point in &gauge.data_points {
                    once(&point.attributes);
                    let Some(number_data_point::Value::AsInt(value)) = point.value else {
                        panic!("{point:?}")
                    };
                    points.push(value as f64);
                }
            }
            Data::Histogram(histogram) => {
                for point in &histogram.data_points {
                    once(&point.attributes);
                    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
                    assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
                    points.extend([point.count as f64, point.sum.expect("a sum")]);
                }
            }
            other => panic!("{other:?}"),
        }
    }
    let text = prometheus::encode(&snapshot).expect("text");
    let samples = text.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket{"));
    let mut samples: Vec<f64> = samples
        .map(|line| line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a value"))
        .collect();
    samples.sort_by(f64::total_cmp);
    points.sort_by(f64::total_cmp);
    assert_eq!(points, samples);
}

#[test]
fn attributes_are_the_conventions() {
    let snapshot = fixture::snapshot();
    let metrics = decoded(&metrics(&snapshot, &source(), &mut starts()).expect("messages"));
    let points = |name: &str| {
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}"));
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{metric:?}") };
        sum.data_points.iter().map(|point| shown(&point.attributes)).collect::<Vec<_>>()
    };
    let has = |name: &str, wanted: &[(&str, &str)]| {
        let found = points(name);
        let matches = |one: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| one.get(*key).is_some_and(|found| found == value))
        };
        assert!(found.iter().any(matches), "{name} {wanted:?}: {found:#?}");
    };
    let id = "a".repeat(64);
    let web = [("container.name", "web-1"), ("container.id", id.as_str())];
    let eth0 = [("network.interface.name", "eth0"), ("network.io.direction", "receive")];
    has("container.network.io", &[&web[..], &eth0].concat());
    has("container.network.io", &[&web[..], &[("network.io.direction", "transmit")]].concat());
    has("netobs.container.protocol_bytes", &[&web[..], &[("network.transport", "tcp")]].concat());
    has("netobs.container.ethertype_packets", &[&web[..], &[("network.type", "arp")]].concat());
    for edge in points("netobs.edge.bytes") {
        for end in ["source", "destination"] {
            let keys = [format!("{end}.container.name"), format!("netobs.{end}.class")];
            assert_eq!(keys.iter().filter(|key| edge.contains_key(*key)).count(), 1, "{edge:?}");
        }
    }
}

#[test]
fn a_pods_points_say_what_has_made_it() {
    let made = |kind: &str, name: &str| Pod {
        namespace: "shop".into(),
        name: format!("{name}-1"),
        owner: Some(Workload { kind: kind.into(), name: name.into() }),
        node: Some("node-1".into()),
        ..Pod::default()
    };
    let mut snapshot = fixture::snapshot();
    for container in &mut snapshot.containers {
        container.pod = match container.name.as_str() {
            "web-1" => Some(made("Deployment", "web")),
            "db" => Some(made("OtherSet", "db")),
            _ => None,
        };
    }
    for end in snapshot.edges.iter_mut().flat_map(|edge| [&mut edge.source, &mut edge.destination]) {
        if end.container.as_deref() == Some("web-1") {
            (end.namespace, end.pod) = (Some("shop".into()), Some("web-1".into()));
        }
    }
    let metrics = decoded(&metrics(&snapshot, &source(), &mut starts()).expect("messages"));
    let points = |name: &str| -> Vec<BTreeMap<String, String>> {
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name}"));
        let points = match &metric.data {
            Some(Data::Sum(sum)) => &sum.data_points,
            Some(Data::Gauge(gauge)) => &gauge.data_points,
            other => panic!("{other:?}"),
        };
        points.iter().map(|point| shown(&point.attributes)).collect()
    };
    let has = |name: &str, wanted: &[(&str, &str)]| {
        let found = points(name);
        let matches = |one: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| one.get(*key).is_some_and(|found| found == value))
        };
        assert!(found.iter().any(matches), "{name} {wanted:?}: {found:#?}");
    };
    has("container.network.io", &[("k8s.pod.name", "web-1"), ("k8s.deployment.name", "web")]);
    has("container.network.io", &[("k8s.pod.name", "db-1"), ("netobs.owner.name", "db")]);
    has(
        "netobs.edge.packets",
        &[
            ("source.k8s.deployment.name", "web"),
            ("destination.k8s.namespace.name", "shop"),
            ("destination.k8s.service.name", "db"),
            ("netobs.destination.class", "cluster"),
        ],
    );
    has("netobs.pod.info", &[("k8s.deployment.name", "web"), ("k8s.node.name", "node-1")]);
    has("netobs.pod.info", &[("netobs.owner.kind", "OtherSet"), ("netobs.owner.name", "db")]);
}

/// However much there is, a message has a bounded part of it, and nothing is lost between two.
#[test]
fn messages_are_bounded() {
    let mut snapshot = fixture::snapshot();
    let one = snapshot.containers[0].clone();
    for n in 0..300 {
        let mut more = one.clone();
        more.id = format!("{n:064}").chars().rev().collect();
        snapshot.containers.push(more);
    }
    let messages = metrics(&snapshot, &source(), &mut starts()).expect("messages");
    assert!(messages.len() > 2, "{}", messages.len());
    for message in &messages {
        assert!(message.items <= MOST_ITEMS as u64 && message.body.len() < 5 << 20, "{}", message.body.len());
    }
    let mut points = 0;
    for metric in decoded(&messages) {
        points += match metric.data.expect("data") {
            Data::Sum(sum) => sum.data_points.len(),
            Data::Gauge(gauge) => gauge.data_points.len(),
            Data::Histogram(histogram) => histogram.data_points.len(),
            _ => 0,
        };
    }
    assert_eq!(points as u64, messages.iter().map(|message| message.items).sum::<u64>());
}

const IDLE: Duration = Duration::from_secs(30);

fn records(conversations: &Conversations, now: Instant, log: &mut FlowLog) -> Vec<LogRecord> {
    let messages = flows(conversations, now, &source(), log);
    let requests = messages
        .iter()
        .map(|message| ExportLogsServiceRequest::decode(message.body.as_ref()).expect("a request"));
    let logs = requests.flat_map(|request| request.resource_logs).flat_map(|one| one.scope_logs);
    logs.flat_map(|scope| scope.log_records).collect()
}

fn number_of(record: &LogRecord, key: &str) -> u64 {
    shown(&record.attributes)[key].parse().expect("a number")
}

/// What is told of a flow adds up to what it has counted, whatever becomes known of it meanwhile.
#[test]
fn records_add_up_to_the_flow() {
    let now = Instant::now() + Duration::from_secs(1000);
    let mut log = FlowLog::new(IDLE);
    let mut all = conversations();
    all.flows.truncate(2);
    let first = records(&all, now, &mut log);
    assert_eq!(first.len(), 4, "two of each, one a direction");
    let tcp = shown(&first[0].attributes);
    assert_eq!((tcp["source.address"].as_str(), tcp["source.port"].as_str()), ("172.18.0.2", "40000"));
    assert_eq!(
        (tcp["destination.address"].as_str(), tcp["destination.port"].as_str()),
        ("172.18.0.3", "5432")
    );
    assert_eq!((tcp["network.transport"].as_str(), tcp["network.type"].as_str()), ("tcp", "ipv4"));
    assert_eq!((tcp["netobs.flow.state"].as_str(), tcp["netobs.flow.client"].as_str()), ("closed", "source"));
    assert_eq!(tcp["netobs.flow.outcome"], "established");
    assert!(!tcp.contains_key("netobs.flow.reset_by"), "{tcp:?}");
    assert_eq!(number_of(&first[0], "netobs.flow.packets"), 12, "as sent");
    assert_eq!(number_of(&first[1], "netobs.flow.bytes"), 700);
    let ping = shown(&first[3].attributes);
    assert_eq!(
        (ping["network.io.direction"].as_str(), ping["destination.container.name"].as_str()),
        ("receive", "web")
    );
    let mut to_service = all.clone();
    to_service.flows.truncate(1);
    to_service.flows[0].server.container = None;
    to_service.flows[0].server.service = Some("shop/db".to_owned());
    let of_service = records(&to_service, now, &mut FlowLog::new(IDLE));
    let service = shown(&of_service[0].attributes);
    assert_eq!(service["destination.k8s.namespace.name"], "shop");
    assert_eq!(service["destination.k8s.service.name"], "db");
    assert!(!all.flows.iter().any(|flow| log.is_new(flow, all.time, now)));
    assert!(records(&all, now, &mut log).is_empty());

    // Five packets more, told with the ends the other way round, and a network that was not known.
    let mut later = all.clone();
    let ping = &mut later.flows[1];
    ping.to_server.sent.as_mut().expect("a count").packets += 5;
    ping.network = Some("net".to_owned());
    std::mem::swap(&mut ping.client, &mut ping.server);
    std::mem::swap(&mut ping.to_server, &mut ping.to_client);
    // The clock that `now` is of goes a little otherwise.
    let now = now + Duration::from_millis(20);
    assert!(log.is_new(&later.flows[1], later.time, now));
    let more = records(&later, now, &mut log);
    assert_eq!(more.len(), 1);
    assert_eq!(number_of(&more[0], "netobs.flow.packets"), 5);

    // Another flow between the same ends, long after.
    let now = now + IDLE * 4;
    later.time += IDLE * 4;
    for flow in &mut later.flows {
        (flow.first, flow.last) = (later.time, later.time);
    }
    let again = records(&later, now, &mut log);
    assert_eq!(number_of(&again[0], "netobs.flow.packets"), 12, "all of it");
    log.forget(now + IDLE * 3);
    assert!(!log.is_new(&later.flows[0], later.time + IDLE, now + IDLE), "what is over is not told again");
}

#[test]
fn hostile_names_are_data() {
    for name in fixture::hostile_names() {
        let snapshot = fixture::named(&name);
        for metric in decoded(&metrics(&snapshot, &source(), &mut starts()).expect("messages")) {
            let Some(Data::Sum(sum)) = metric.data else { continue };
            for point in sum.data_points {
                assert!(
                    !shown(&point.attributes).values().any(|value| value.chars().any(is_hostile)),
                    "{name:?}"
                );
            }
        }
    }
}
