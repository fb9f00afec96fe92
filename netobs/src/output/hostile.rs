//! Tests only: every output over every hostile name. None takes over a terminal, makes a line, a cell, a label or a
//! document of its own, or is lost.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};

use super::{
    csv, drops,
    fixture::{hostile_names, named},
    flows,
    format::{NAME_MAX, cell, is_hostile, visible, width},
    json, prometheus, table, trace, watch, wide,
};
use crate::model::{Snapshot, conversation::Conversations, drops::DropRow};

/// Conversations with one name everywhere.
fn conversations(name: &str) -> Conversations {
    let mut conversations = flows::tests::conversations();
    for flow in &mut conversations.flows {
        for end in [&mut flow.client, &mut flow.server] {
            // Each end is a container or may be a service.
            end.service = end.container.is_none().then(|| name.to_owned());
            end.container = end.container.as_ref().map(|_| name.to_owned());
        }
        flow.network = flow.network.as_ref().map(|_| name.to_owned());
    }
    conversations
}

/// A dropped packet with one name everywhere.
fn dropped(name: &str) -> Snapshot {
    let mut row: DropRow = drops::tests::row(5);
    for party in [&mut row.kind.source, &mut row.kind.destination] {
        party.container = party.container.as_ref().map(|_| name.to_owned());
        party.network = party.network.as_ref().map(|_| name.to_owned());
        party.ambiguous.iter_mut().for_each(|one| *one = name.to_owned());
    }
    row.kind.at.interface = Some(name.to_owned());
    row.kind.at.out_interface = Some(name.to_owned());
    row.kind.at.container = row.kind.at.container.map(|_| name.to_owned());
    drops::tests::snapshot(vec![row])
}

fn seen(snapshot: &Snapshot) -> drops::Seen {
    let mut seen = drops::Seen::default();
    seen.update(snapshot);
    seen
}

/// A packet and a drop as text or JSON, from and to one name.
fn traced(name: &str) -> [Vec<u8>; 4] {
    use trace::fixture::{self, frame};
    let bytes = [frame::ethernet(0x0800), frame::ipv4(6, 0, &frame::tcp(2))].concat();
    let mut packet = fixture::packet(bytes.clone());
    let mut point = fixture::point(name, 7);
    point.interface = name.into();
    point.network = Some(name.into());
    point.owner.as_mut().expect("an owner").interface = name.into();
    packet.point = Some(std::sync::Arc::new(point));
    let mut book = fixture::book();
    book.by_address.values_mut().for_each(|one| *one = name.into());
    let mut dropped = fixture::dropped(bytes);
    dropped.kind.source.container = Some(name.into());
    dropped.kind.destination.container = Some(name.into());
    dropped.kind.at.container = Some(name.into());
    dropped.kind.at.interface = Some(name.into());
    let layers = trace::Layers::of(&packet);
    let mut texts = [const { Vec::new() }; 4];
    trace::text::line(&packet, &layers, &book, &mut texts[0]);
    trace::text::dropped(&dropped, &layers, &mut texts[1]);
    trace::json::line(&packet, &layers, &book, &mut texts[2]).expect("JSON");
    trace::json::dropped(&dropped, &layers, &mut texts[3]).expect("JSON");
    texts
}

/// Everything that is for a terminal, by lines.
fn texts(name: &str) -> Vec<String> {
    let snapshot = named(name);
    let dropped = dropped(name);
    let [packet, drop, ..] = traced(name).map(|text| String::from_utf8(text).expect("UTF-8"));
    vec![
        table::table(&snapshot, None),
        table::table(&snapshot, Some(80)),
        wide::table(&snapshot),
        flows::table(&conversations(name)),
        drops::table(&dropped, &seen(&dropped), None),
        packet,
        drop,
    ]
}

fn csvs(name: &str) -> [Vec<u8>; 3] {
    let mut texts = [const { Vec::new() }; 3];
    csv::write_header(&mut texts[0]).expect("CSV");
    csv::write_rows(&mut texts[0], &named(name)).expect("CSV");
    flows::csv(&mut texts[1], &conversations(name)).expect("CSV");
    let dropped = dropped(name);
    drops::csv_header(&mut texts[2]).expect("CSV");
    drops::csv_rows(&mut texts[2], &dropped, &seen(&dropped)).expect("CSV");
    texts
}

#[test]
fn texts_keep_their_lines() {
    let plain: Vec<usize> = texts("plain").iter().map(|text| text.lines().count()).collect();
    for name in hostile_names() {
        for (text, lines) in texts(&name).iter().zip(&plain) {
            assert!(text.chars().all(|c| c == '\n' || !is_hostile(c)), "{name:?}: {text}");
            assert_eq!(text.lines().count(), *lines, "{name:?}: {text}");
            let widest = text.lines().map(width).max().unwrap_or_default();
            assert!(widest < 20 * NAME_MAX, "{name:?} is cut");
        }
    }
}

#[test]
fn no_screen_is_taken_over() {
    for name in hostile_names() {
        let mut view = watch::View::new(None);
        let mut snapshot = named(&name);
        snapshot.drops = dropped(&name).drops;
        view.update(snapshot, Some(conversations(&name)));
        for keys in ["1", "2", "3", "4", "1\n", "?"] {
            for key in keys.chars() {
                let code = if key == '\n' { KeyCode::Enter } else { KeyCode::Char(key) };
                view.key(KeyEvent::new(code, KeyModifiers::NONE));
            }
            let mut terminal = Terminal::new(TestBackend::new(120, 24)).expect("a terminal");
            terminal.draw(|frame| watch::draw(frame, &view)).expect("drawn");
            for shown in terminal.backend().buffer().content() {
                assert!(!shown.symbol().contains(is_hostile), "{name:?} on {keys:?}: {:?}", shown.symbol());
            }
        }
    }
}

#[test]
fn csv_keeps_its_cells() {
    for name in hostile_names() {
        for text in csvs(&name) {
            let text = String::from_utf8(text).expect("UTF-8");
            assert!(text.chars().all(|c| c == '\n' || !is_hostile(c)), "{name:?}: {text}");
            let mut reader = ::csv::Reader::from_reader(text.as_bytes());
            let columns = reader.headers().expect("a header").len();
            let mut found = false;
            for row in reader.records() {
                let row = row.expect("a row");
                assert_eq!(row.len(), columns, "{name:?}");
                found |= row.iter().any(|one| one == cell(&name));
                assert!(!row.iter().any(|one| one.starts_with(['=', '+', '-', '@'])), "{row:?}");
            }
            assert!(found, "{name:?}: {text}");
        }
    }
}

#[test]
fn json_has_names_as_they_are() {
    for name in hostile_names() {
        let [.., packet, drop] = traced(&name).map(|text| String::from_utf8(text).expect("UTF-8"));
        let of_drops = drops::json(&dropped(&name)).expect("JSON");
        let documents = [
            (json::line(&named(&name)).expect("JSON"), "/interfaces/2/name"),
            (flows::json(&conversations(&name)).expect("JSON"), "/flows/0/client/container"),
            (of_drops, "/rows/0/source/container"),
            (packet, "/container"),
            (drop, "/source/container"),
        ];
        for (text, place) in documents {
            assert!(text.trim_end_matches('\n').chars().all(|c| !is_hostile(c)), "{name:?}: {text}");
            let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
            assert_eq!(value.pointer(place).and_then(|one| one.as_str()), Some(&*name), "{place} in {text}");
        }
    }
}

/// The labels of a sample, taken apart as the format says.
fn labels(line: &str) -> Vec<(String, String)> {
    let Some((_, mut rest)) = line.split_once('{') else { return Vec::new() };
    let mut labels = Vec::new();
    while !rest.starts_with('}') {
        let (name, behind) = rest.split_once("=\"").expect("a label");
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{name:?} in {line}");
        let (mut value, mut characters) = (String::new(), behind.char_indices());
        let end = loop {
            match characters.next().expect("the end of a value") {
                (at, '"') => break at + 1,
                (_, '\\') => match characters.next().expect("an escape").1 {
                    'n' => value.push('\n'),
                    other @ ('\\' | '"') => value.push(other),
                    other => panic!("\\{other} in {line}"),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
        rest = behind[end..].trim_start_matches(',');
    }
    assert!(rest[1..].trim().parse::<f64>().is_ok(), "{rest:?} in {line}");
    labels
}

#[test]
fn samples_keep_their_labels() {
    let samples = |name: &str| -> Vec<Vec<(String, String)>> {
        let snapshot = named(name);
        let texts = [prometheus::encode(&snapshot), prometheus::encode_cadvisor(&snapshot)];
        let text = texts.map(|text| text.expect("text")).concat();
        assert!(text.chars().all(|c| c == '\n' || !is_hostile(c)), "{name:?}: {text}");
        text.lines().filter(|line| !line.starts_with('#')).map(labels).collect()
    };
    let keys = |samples: &[Vec<(String, String)>]| -> Vec<Vec<String>> {
        let mut keys: Vec<Vec<String>> =
            samples.iter().map(|labels| labels.iter().map(|(key, _)| key.clone()).collect()).collect();
        // They are sorted by what is in them.
        keys.sort();
        keys
    };
    let plain = keys(&samples("plain"));
    for name in hostile_names() {
        let samples = samples(&name);
        assert_eq!(keys(&samples), plain, "{name:?}");
        let written = visible(&name);
        let mut values = samples.iter().flatten().filter(|(key, _)| key == "container");
        assert!(values.any(|(_, value)| *value == written), "{name:?}");
    }
}
