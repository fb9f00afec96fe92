use std::collections::{BTreeMap, HashSet};

use super::*;
use crate::{
    model::{Pod, Workload},
    output::fixture,
};

/// Series (as written) and value; panics on a series that comes twice.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut series = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').expect("sample");
        let value = value.parse().expect("value");
        assert!(series.insert(name.to_owned(), value).is_none(), "twice: {name}");
    }
    series
}

fn labels(container: &str, digit: char, interface: &str, network: &str) -> String {
    let id = digit.to_string().repeat(12);
    format!("container=\"{container}\",id=\"{id}\",interface=\"{interface}\",network=\"{network}\"")
}

#[test]
fn values_read_back() {
    let series = parse(&encode(&fixture::snapshot()).expect("text"));
    let (rx, tx) = (fixture::traffic(100), fixture::traffic(200));
    let web = labels("web-1", 'a', "eth0", "shop_default");
    let value = |name: &str| *series.get(name).unwrap_or_else(|| panic!("{name} is missing"));
    let of = |name: &str| value(&format!("netobs_container_{name}{{{web}}}")) as u64;
    assert_eq!(of("receive_packets_total"), rx.packets);
    assert_eq!(of("transmit_bytes_total"), tx.bytes);
    assert_eq!(of("receive_wire_packets_total"), rx.wire_packets);
    assert_eq!(of("transmit_wire_bytes_total"), tx.wire_bytes);
    assert_eq!(of("receive_truncated_packets_total"), rx.truncated);
    assert_eq!(of("receive_packets_dropped_total"), 3);
    assert_eq!(of("transmit_errors_total"), 2);
    assert_eq!(of("receive_packet_size_bytes_count"), rx.wire_packets);
    assert_eq!(of("receive_packet_size_bytes_sum"), rx.wire_bytes);
    let labelled =
        |name: &str, label: &str| value(&format!("netobs_container_{name}{{{web},{label}}}")) as u64;
    assert_eq!(labelled("ethertype_receive_packets_total", "ethertype=\"arp\""), 100);
    assert_eq!(labelled("cast_transmit_bytes_total", "cast=\"broadcast\""), 200 * 42);
    assert_eq!(labelled("protocol_receive_bytes_total", "protocol=\"tcp\""), 100 * 8000);
    assert_eq!(labelled("tcp_flags_receive_packets_total", "flag=\"syn\""), 100);
    assert_eq!(
        labelled("unflowed_cause_receive_packets_total", "cause=\"no_room\""),
        rx.unflowed.packets - rx.unflowed_truncated
    );
    assert_eq!(labelled("receive_packet_size_bytes_bucket", "le=\"128\""), 300);
    assert_eq!(labelled("receive_packet_size_bytes_bucket", "le=\"+Inf\""), rx.wire_packets);
    assert!(!series.keys().any(|name| name.contains("sctp")), "zero parts are left out");
    let network =
        "network=\"shop_default\",network_id=\"eeeeeeeeeeee\",driver=\"bridge\",bridge=\"br-eeeeeeeeeeee\"";
    assert_eq!(value(&format!("netobs_network_receive_packets_total{{{network}}}")) as u64, 55);
    assert_eq!(
        value("netobs_interface_receive_packets_total{host_interface=\"vethlost\",kind=\"veth\"}"),
        22.0
    );
    assert_eq!(
        value("netobs_interface_unobserved_bytes{host_interface=\"vetha\",direction=\"transmit\"}"),
        800.0
    );
    let difference = |unit: &str, host: &str, direction: &str| {
        value(&format!(
            "netobs_reconciliation_difference_{unit}{{host_interface=\"{host}\",container=\"\",interface=\"\",\
             direction=\"{direction}\"}}"
        ))
    };
    assert_eq!(difference("packets", "vetha", "receive"), 3.0);
    assert_eq!(difference("bytes", "vetha", "transmit"), -60.0);
    assert_eq!(difference("bytes", "vethlost", "transmit"), 0.0);
    assert_eq!(value("netobs_reattached_total{reason=\"displaced\"}"), 1.0);
    assert_eq!(value("netobs_reattached_total{reason=\"link_detached\"}"), 0.0);
    assert_eq!(value("netobs_engine_up{engine=\"podman\"}"), 0.0);
    assert_eq!(value("netobs_degraded{feature=\"btf\"}"), 1.0);
    assert_eq!(value("netobs_unattached_interfaces"), 1.0);
    assert_eq!(value("netobs_attach_latency_seconds_bucket{le=\"0.0005\"}"), 3.0);
    assert_eq!(value("netobs_attach_latency_seconds_count"), 4.0);
    assert_eq!(of("receive_tcp_zero_window_packets_total"), 100);
    assert!(!series.keys().any(|name| name.contains("_packets_total{container=\"host-net\"")));
    assert!(series.keys().any(|name| name.contains("container_info") && name.contains("\"host-net\"")));
}

#[test]
fn connections_read_back() {
    let mut snapshot = fixture::snapshot();
    let text = encode(&snapshot).expect("text");
    let series = parse(&text);
    let web = format!("container=\"web-1\",id=\"{}\"", "a".repeat(12));
    let value = |name: &str, label: &str| series[&format!("netobs_container_tcp_{name}{{{web}{label}}}")];
    for (result, count) in
        [("established", 4.0), ("refused", 5.0), ("timed_out", 6.0), ("other", 7.0), ("given_up", 8.0)]
    {
        assert_eq!(value("connects_total", &format!(",result=\"{result}\"")), count, "{result}");
    }
    let bucket = |le: &str| value("handshake_seconds_bucket", &format!(",role=\"client\",le=\"{le}\""));
    assert_eq!([bucket("0.0001"), bucket("0.0005"), bucket("10"), bucket("+Inf")], [1.0, 2.0, 2.0, 3.0]);
    // One was not measured: it is in no bucket, and not in the count that the mean is taken with.
    assert_eq!(value("handshake_seconds_count", ",role=\"client\""), 3.0);
    assert!((value("handshake_seconds_sum", ",role=\"client\"") - 20.000_39).abs() < 1e-9);
    assert!(
        !text.contains("role=\"server\"") && !text.contains("tcp_rtt_seconds"),
        "nothing to tell yet: {text}"
    );
    assert_eq!(value("accepts_total", ""), 0.0);
    assert_eq!(value("retransmitted_segments_total", ""), 9.0);
    assert_eq!(value("resets_total", ",direction=\"transmit\""), 10.0);
    assert_eq!(value("resets_total", ",direction=\"receive\""), 11.0);
    assert_eq!(series["netobs_tcp_events_lost_total{cause=\"flow\"}"], 2.0);
    assert_eq!(text.matches("netobs_container_tcp_accepts_total{").count(), 1, "of others it is not known");
    for tcp in snapshot.containers.iter_mut().filter_map(|container| container.tcp.as_mut()) {
        (tcp.connections, tcp.resets) = (None, None);
    }
    let text = encode(&snapshot).expect("text");
    assert!(
        !text.contains("tcp_connects") && !text.contains("tcp_accepts") && !text.contains("tcp_resets"),
        "{text}"
    );
    assert!(text.contains("tcp_retransmitted_segments"), "{text}");
}

#[test]
fn pods_have_their_labels() {
    let mut snapshot = fixture::snapshot();
    let pod = Pod {
        namespace: "shop".into(),
        name: "web-1".into(),
        uid: "1-2".into(),
        owner: Some(Workload { kind: "Deployment".into(), name: "web".into() }),
        node: Some("node-1".into()),
        ..Pod::default()
    };
    let web = snapshot.containers.iter_mut().find(|container| container.name == "web-1").expect("web-1");
    (web.name, web.pod) = (pod.path(), Some(pod.clone()));
    let database = snapshot.containers.iter_mut().find(|container| container.name == "db").expect("db");
    database.pod = Some(Pod { name: "db-0".into(), container: Some("postgres".into()), ..pod.clone() });
    // A container of the first, whose sandbox is not known yet.
    let job = snapshot.containers.iter_mut().find(|container| container.name == "job").expect("job");
    job.pod = Some(Pod { container: Some("app".into()), owner: None, ..pod });
    for edge in &mut snapshot.edges {
        for end in [&mut edge.source, &mut edge.destination] {
            if end.container.as_deref() == Some("web-1") {
                (end.namespace, end.pod) = (Some("shop".into()), Some("web-1".into()));
            }
        }
    }
    let text = encode(&snapshot).expect("text");
    let series = parse(&text);
    let of_pod = "namespace=\"shop\",pod=\"web-1\",";
    let sandbox = format!("{of_pod}{}", labels("POD", 'a', "eth0", "shop_default"));
    assert_eq!(
        series[&format!("netobs_container_receive_packets_total{{{sandbox}}}")] as u64,
        fixture::traffic(100).packets
    );
    let postgres =
        format!("namespace=\"shop\",pod=\"db-0\",{}", labels("postgres", 'c', "eth0", "shop_default"));
    assert!(series.contains_key(&format!("netobs_container_receive_packets_total{{{postgres}}}")), "{text}");
    for line in
        text.lines().filter(|line| line.contains("id=\"aaaaaaaaaaaa\"") && !line.contains("source_id"))
    {
        assert!(line.contains(of_pod) && line.contains("container=\"POD\""), "{line}");
    }
    assert!(text.contains("pod_uid=\"1-2\""), "{text}");
    let infos: Vec<_> = text.lines().filter(|line| line.starts_with("netobs_pod_info")).collect();
    let made = "owner_kind=\"Deployment\",owner_name=\"web\",node=\"node-1\"} 1";
    assert_eq!(infos[1], format!("netobs_pod_info{{{of_pod}pod_uid=\"1-2\",{made}"));
    assert_eq!(infos.len(), 2, "one a pod: {infos:?}");
    let edges: Vec<_> = text.lines().filter(|line| line.starts_with("netobs_edge_packets_total")).collect();
    assert!(
        edges.iter().any(|line| line.contains("_namespace=\"shop\"") && line.contains("_pod=\"web-1\"")),
        "{edges:?}"
    );
    let to_service: Vec<_> = edges.iter().filter(|line| line.contains("_service=")).collect();
    assert_eq!(to_service.len(), 1, "where none is a service, it has no label: {edges:?}");
    for label in [
        "source_service=\"\"",
        "destination_service=\"shop/db\"",
        "destination=\"cluster\"",
        "source_pod=\"web-1\"",
    ] {
        assert!(to_service[0].contains(label), "{label}: {to_service:?}");
    }
    let cadvisor = encode_cadvisor(&snapshot).expect("text");
    assert!(cadvisor.contains(&format!("{of_pod}id=\"/docker/{}\"", fixture::id('a'))), "{cadvisor}");
}

#[test]
fn a_bridge_is_in_its_network_or_by_itself() {
    let mut snapshot = fixture::snapshot();
    let is_by_itself = |snapshot: &Snapshot| {
        let series = parse(&encode(snapshot).expect("text"));
        let bridge =
            "netobs_interface_receive_packets_total{host_interface=\"br-eeeeeeeeeeee\",kind=\"bridge\"}";
        series.contains_key(bridge)
    };
    assert!(!is_by_itself(&snapshot));
    // No engine tells of it: it goes by its own name.
    snapshot.networks.clear();
    for interface in &mut snapshot.interfaces {
        interface.network = Some(interface.name.clone());
    }
    assert!(is_by_itself(&snapshot));
}

#[test]
fn interfaces_without_a_name_are_one_series() {
    let series = parse(&encode(&fixture::snapshot()).expect("text"));
    let unknown = labels("db", 'c', "unknown", "shop_default");
    assert_eq!(series[&format!("netobs_container_receive_packets_total{{{unknown}}}")], 22_000.0);
    assert_eq!(series[&format!("netobs_container_receive_packets_dropped_total{{{unknown}}}")], 6.0);
}

#[test]
fn hostile_names_stay_inside_their_label() {
    for text in [encode(&fixture::snapshot()), encode_cadvisor(&fixture::snapshot())] {
        let text = text.expect("text");
        assert!(!text.contains(['\x1b', '\u{202e}', '\r']));
        assert!(text.contains(r#"evil\\x1b[2J\\u{202e}\\n\"q\",\\end""#), "{text}");
        parse(&text);
    }
}

#[test]
fn families_come_once_with_help_and_type() {
    let text = encode(&fixture::snapshot()).expect("text");
    let families: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert_eq!(families.len(), families.iter().collect::<HashSet<_>>().len());
    assert_eq!(families.len(), text.lines().filter(|line| line.starts_with("# HELP ")).count());
}

#[test]
fn nothing_to_tell_is_still_an_answer() {
    let empty = Snapshot::empty(std::time::SystemTime::UNIX_EPOCH);
    let series = parse(&encode(&empty).expect("text"));
    let own = series.keys().filter(|name| !name.contains("latency")).count();
    assert_eq!(own, 5, "of the agent itself: {series:?}");
    assert_eq!(encode_cadvisor(&empty).expect("text"), "");
}

#[test]
fn cadvisor_has_its_names_and_labels() {
    let series = parse(&encode_cadvisor(&fixture::snapshot()).expect("text"));
    let labels =
        format!("id=\"/docker/{}\",image=\"nginx:1.27\",interface=\"eth0\",name=\"web-1\"", fixture::id('a'));
    let value = |name: &str| series[&format!("container_network_{name}_total{{{labels}}}")] as u64;
    assert_eq!(value("receive_bytes"), fixture::traffic(100).bytes);
    assert_eq!(value("transmit_packets"), fixture::traffic(200).packets);
    assert_eq!(value("receive_packets_dropped"), 3);
    assert_eq!(value("transmit_errors"), 2);
}

#[test]
fn drops_that_are_not_known_are_left_out() {
    let mut snapshot = fixture::snapshot();
    for interface in snapshot.containers.iter_mut().flat_map(|container| &mut container.interfaces) {
        interface.drops = None;
    }
    assert!(!encode(&snapshot).expect("text").contains("netobs_container_receive_errors"));
    assert!(!encode_cadvisor(&snapshot).expect("text").contains("dropped"));
}
