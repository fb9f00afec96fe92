use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    model::{
        drops::{DropReport, Location, Netfilter, Party, ReasonTotal},
        snapshot::by_name,
    },
    output::{fixture, format::visible, schema},
};

const SCHEMA: &str = include_str!("../../../../docs/drops.schema.json");

pub fn row(packets: u64) -> DropRow {
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    DropRow {
        kind: DropKind {
            reason: "NETFILTER_DROP".into(),
            ordinary: false,
            source: Party {
                address: "172.18.0.2".parse().ok(),
                container: Some(fixture::HOSTILE.into()),
                container_id: Some(fixture::id('f')),
                network: Some(fixture::HOSTILE.into()),
                host: false,
                ambiguous: vec![],
            },
            destination: Party {
                address: "172.19.0.2".parse().ok(),
                ambiguous: vec!["a".into(), fixture::HOSTILE.into()],
                ..Party::default()
            },
            ethertype: 0x0800,
            protocol: Some(1),
            port: None,
            icmp_type: Some(8),
            icmp_code: Some(0),
            place: Some("nft_do_chain+0x3e8".into()),
            netfilter: Some(Netfilter::of("ip_forward", Some("nft_do_chain_ipv4"))),
            at: Location {
                namespace: Some("net:[4026531840]".into()),
                host: true,
                interface: Some("br-front".into()),
                ifindex: Some(3),
                out_interface: Some("br-back".into()),
                ..Location::default()
            },
        },
        packets,
        first: at,
        last: at,
    }
}

pub fn snapshot(rows: Vec<DropRow>) -> Snapshot {
    let total = ReasonTotal { reason: "NETFILTER_DROP".into(), events: 9, ordinary: 1 };
    let report = DropReport {
        rows,
        reasons: [(total.reason.clone(), total)].into(),
        events: 9,
        ordinary: 1,
        lost: by_name([("full", 3), ("busy", 0), ("recursion", 0)]),
        ..DropReport::default()
    };
    Snapshot { drops: Some(report), ..fixture::snapshot() }
}

#[test]
fn a_table_of_what_is_new() {
    let mut seen = Seen::default();
    assert!(seen.update(&snapshot(vec![row(5)])));
    let text = table(&snapshot(vec![row(5)]), &seen, None);
    assert!(!text.contains(['\x1b', '\u{202e}']), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[0].starts_with("NEW  TOTAL  REASON"), "{text}");
    for part in [
        "NETFILTER_DROP",
        "172.18.0.2 on evil\\x1b",
        "(a or evil",
        "icmp echo-request",
        "br-front",
        "nft_do_chain+0x3e8 (nf_tables at forward)",
    ] {
        assert!(lines[1].contains(part), "no {part}: {text}");
    }
    assert!(lines[2].starts_with("! 3 more were dropped"), "{text}");
    assert!(!seen.update(&snapshot(vec![row(5)])), "nothing is new");
    assert!(seen.update(&snapshot(vec![row(7)])));
    let text = table(&snapshot(vec![row(7)]), &seen, None);
    assert_eq!(
        text.lines().nth(1).map(|line| line.split_whitespace().take(2).collect()),
        Some(vec!["2", "7"])
    );
    // A row that was forgotten and comes again.
    assert!(seen.update(&snapshot(vec![row(1)])));
    assert!(table(&snapshot(vec![row(1)]), &seen, Some(40)).lines().all(|line| line.chars().count() <= 40));
}

#[test]
fn csv_reads_back_under_its_header() {
    let (mut seen, mut text) = (Seen::default(), Vec::new());
    seen.update(&snapshot(vec![row(5)]));
    csv_header(&mut text).expect("header");
    csv_rows(&mut text, &snapshot(vec![row(5)]), &seen).expect("rows");
    let mut reader = ::csv::Reader::from_reader(text.as_slice());
    let header = reader.headers().expect("header").clone();
    let rows: Vec<_> = reader.records().map(|row| row.expect("row")).collect();
    assert_eq!(rows.len(), 1);
    let cell =
        |name: &str| rows[0][header.iter().position(|column| column == name).expect("column")].to_owned();
    assert_eq!(
        (cell("new"), cell("packets"), cell("source")),
        ("5".into(), "5".into(), visible(fixture::HOSTILE).into_owned())
    );
    assert_eq!(
        (cell("destination"), cell("netfilter_hook"), cell("at")),
        (String::new(), "forward".into(), "host".into())
    );
    assert_eq!(cell("time"), "1700000000.250");
}

#[test]
fn the_schema_describes_all_of_it() {
    for snapshot in [snapshot(vec![row(5)]), snapshot(vec![]), fixture::snapshot()] {
        let text = json(&snapshot).expect("JSON");
        assert!(!text.contains(['\n', '\x1b']));
        schema::check_document(&text, SCHEMA);
    }
    schema::check_descriptions(SCHEMA);
}

#[test]
fn why_there_is_nothing() {
    let mut snapshot = fixture::snapshot();
    assert!(json(&snapshot).expect("JSON").contains("\"problem\":\"not looked for\""));
    snapshot.agent.degraded = vec![("drops".into(), "no BTF".into())];
    assert!(json(&snapshot).expect("JSON").contains("\"problem\":\"no BTF\""));
}

#[test]
fn a_filter_keeps_what_a_container_has_a_part_in() {
    let filter = |text: &str| Filter::parse(&[text.to_owned()]).expect("filter");
    let rows = |text: &str| select(snapshot(vec![row(5)]), &filter(text)).drops.expect("drops").rows.len();
    assert_eq!((rows("name=evil"), rows("name=web-1")), (1, 0));
}

#[test]
fn what_is_written_can_be_read() {
    let report = snapshot(vec![row(7)]).drops.expect("drops");
    let text = serde_json::to_string(&report).expect("JSON");
    let read: DropReport = serde_json::from_str(&text).expect("a report");
    // For metrics alone.
    let edges = report.edges.clone();
    assert_eq!(DropReport { edges, ..read }, report);
}
