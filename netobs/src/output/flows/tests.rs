use std::time::{Duration, SystemTime};

use super::*;
use crate::{
    model::{
        FlowCount,
        class::Class,
        conversation::{Conversation, ConversationEnd, Icmp, ResetBy, VERSION},
        edge::EdgeCount,
        flow::End,
        tcp::{TcpEnd, TcpOutcome, TcpResets},
    },
    output::{fixture::HOSTILE, format::visible, schema},
};

const SCHEMA: &str = include_str!("../../../../docs/flows.schema.json");

pub fn conversations() -> Conversations {
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250);
    let end = |container: Option<&str>, address: &str, port| ConversationEnd {
        container: container.map(str::to_owned),
        id: container.map(|_| "f".repeat(64)),
        service: None,
        address: address.parse().expect("address"),
        port,
    };
    let count = |n| Some(FlowCount { packets: n, bytes: 100 * n, wire_packets: n, wire_bytes: 100 * n });
    let tcp = Conversation {
        client: end(Some(HOSTILE), "172.18.0.2", Some(40_000)),
        server: end(Some("db"), "172.18.0.3", Some(5432)),
        protocol: "tcp".into(),
        icmp: None,
        class: Some(Class::SameNetwork),
        network: Some(HOSTILE.into()),
        state: End::Closed,
        reset_by: None,
        first: time - Duration::from_millis(1500),
        last: time - Duration::from_secs(1),
        client_flags: "FIN,SYN,ACK".into(),
        server_flags: "FIN,SYN,ACK".into(),
        to_server: EdgeCount { sent: count(12), received: count(10) },
        to_client: EdgeCount { sent: count(7), received: count(6) },
        client_zero_windows: Some(5),
        server_zero_windows: Some(6),
        client_tcp: Some(TcpEnd {
            outcome: Some(TcpOutcome::Established),
            handshake_seconds: Some(0.0015),
            rtt_seconds: Some(0.002_25),
            retransmitted_segments: 3,
            resets: Some(TcpResets { sent: 0, received: 2 }),
        }),
        server_tcp: Some(TcpEnd {
            outcome: None,
            handshake_seconds: None,
            rtt_seconds: None,
            retransmitted_segments: 1,
            resets: None,
        }),
    };
    let ping = Conversation {
        client: end(Some("web"), "fd00::2", None),
        server: end(None, "fd00::9", None),
        protocol: "icmpv6".into(),
        icmp: Some(Icmp { kind: 128, code: 0, id: 7 }),
        class: None,
        network: None,
        state: End::Open,
        to_server: EdgeCount { sent: count(3), received: None },
        to_client: EdgeCount { sent: None, received: count(3) },
        client_zero_windows: None,
        server_zero_windows: None,
        client_tcp: None,
        server_tcp: None,
        ..tcp.clone()
    };
    let mut outside = tcp.clone();
    outside.client = end(None, "2001:db8::1", Some(50_000));
    Conversations { version: VERSION, time, flows: vec![tcp, ping, outside], more: 4, unlisted: 2 }
}

#[test]
fn a_line_a_conversation() {
    let text = table(&conversations());
    assert!(!text.contains('\x1b') && !text.contains('\u{202e}'), "{text}");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 6, "{text}");
    for word in ["db:5432", "tcp", "same_network", "closed", "1.5 s", "12", "7", "1.50 ms", "2.25 ms"] {
        assert!(lines[1].contains(word), "{word}: {text}");
    }
    let words: Vec<&str> = lines[1].split_whitespace().rev().collect();
    assert_eq!((words[1], words[6]), ("4", "3"), "three and one sent again, two and one lost: {text}");
    assert_eq!(words[0], "11", "of both: {text}");
    assert!(lines[2].contains("icmpv6 128/0") && lines[2].trim_end().ends_with('-'), "{text}");
    assert!(lines[3].contains("[2001:db8::1]:50000"), "{text}");
    assert!(lines[4].contains('4') && lines[5].contains('2'), "{text}");
}

/// What the state of the first is.
fn state(all: &Conversations) -> String {
    let text = table(all);
    let (header, line) = (text.lines().next().expect("a header"), text.lines().nth(1).expect("a line"));
    let at = header.find("STATE").expect("a column");
    // Columns are apart by two blanks.
    line.chars().skip(at).collect::<String>().split("  ").next().expect("a cell").to_owned()
}

#[test]
fn the_state_says_why_there_is_no_connection_and_who_has_reset_it() {
    let mut all = conversations();
    all.flows.truncate(1);
    all.flows[0].client.container = Some("web".to_owned());
    all.flows[0].network = None;
    assert_eq!(state(&all), "closed");
    all.flows[0].state = End::Reset;
    for (by, shown) in
        [(ResetBy::Client, "reset →"), (ResetBy::Server, "reset ←"), (ResetBy::Both, "reset ↔")]
    {
        all.flows[0].reset_by = Some(by);
        assert_eq!(state(&all), shown);
    }
    for (outcome, shown) in [
        (TcpOutcome::Refused, "refused"),
        (TcpOutcome::TimedOut, "timed_out"),
        (TcpOutcome::GivenUp, "given_up"),
        (TcpOutcome::Failed, "failed"),
    ] {
        all.flows[0].client_tcp.as_mut().expect("its end").outcome = Some(outcome);
        assert_eq!(state(&all), shown);
    }
}

#[test]
fn a_service_has_its_name() {
    let mut all = conversations();
    all.flows[2].client.service = Some("shop/web".to_owned());
    let text = table(&all);
    assert!(text.contains("shop/web:50000"), "{text}");
    let mut bytes = Vec::new();
    csv(&mut bytes, &all).expect("CSV");
    let text = String::from_utf8(bytes).expect("UTF-8");
    let last: Vec<&str> = text.lines().last().expect("a row").rsplit(',').collect();
    let header: Vec<&str> = text.lines().next().expect("a header").rsplit(',').collect();
    let cell = |name: &str| last[header.iter().position(|column| *column == name).expect(name)];
    assert_eq!((cell("client_service"), cell("server_service")), ("shop/web", ""), "{text}");
}

#[test]
fn the_schema_describes_all_of_it() {
    let mut conversations = conversations();
    conversations.flows[2].client.service = Some("shop/web".to_owned());
    let text = json(&conversations).expect("JSON");
    assert!(!text.contains(['\n', '\x1b']));
    schema::check_document(&text, SCHEMA);
    schema::check_descriptions(SCHEMA);
}

#[test]
fn csv_has_a_row_for_each() {
    let mut bytes = Vec::new();
    csv(&mut bytes, &conversations()).expect("CSV");
    let mut reader = ::csv::Reader::from_reader(bytes.as_slice());
    let header = reader.headers().expect("header").clone();
    let rows: Vec<_> = reader.records().map(|row| row.expect("row")).collect();
    let cell = |row: usize, name: &str| {
        let at = header.iter().position(|column| column == name).expect(name);
        rows[row][at].to_owned()
    };
    assert_eq!(rows.len(), 3);
    assert_eq!(
        (cell(0, "client"), cell(0, "to_server_sent_packets")),
        (visible(HOSTILE).into_owned(), "12".to_owned())
    );
    assert_eq!(
        (cell(1, "to_server_received_packets"), cell(1, "icmp_type")),
        (String::new(), "128".to_owned())
    );
    assert_eq!(
        (cell(0, "client_zero_windows"), cell(0, "server_zero_windows")),
        ("5".to_owned(), "6".to_owned())
    );
    assert_eq!(cell(1, "client_zero_windows"), "", "it is no TCP");
    assert_eq!(cell(2, "client_address"), "2001:db8::1");
    assert_eq!(
        (cell(0, "client_outcome"), cell(0, "server_outcome")),
        ("established".to_owned(), String::new())
    );
    assert_eq!(
        (cell(0, "client_resets_received"), cell(0, "server_resets_sent")),
        ("2".to_owned(), String::new())
    );
}
