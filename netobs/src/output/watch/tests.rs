use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::{Terminal, backend::TestBackend};

use super::{history::POINTS, *};
use crate::output::{drops, fixture, flows};

fn press(view: &mut View, code: KeyCode) -> Flow {
    view.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn type_keys(view: &mut View, keys: &str) {
    for key in keys.chars() {
        press(view, KeyCode::Char(key));
    }
}

fn fed() -> View {
    let mut view = View::new(None);
    view.update(fixture::snapshot(), None);
    view
}

fn screen(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("terminal");
    terminal.draw(|frame| draw(frame, view)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let row = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| row(y).trim_end().to_owned()).collect()
}

fn names(view: &View) -> Vec<&str> {
    view.containers().iter().map(|container| container.name.as_str()).collect()
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[test]
fn containers_are_shown_with_rates_and_totals() {
    let mut view = fed();
    view.update(fixture::snapshot(), None);
    let lines = screen(&view, 140, 20);
    assert_eq!(lines[0], "netobs  5 containers (3 running)  rx 7.50 Mb/s 600 p/s  tx 120 kb/s 300 p/s");
    assert!(
        lines[1].starts_with("5 problems (?)  3 interfaces by tcx  docker: 27.1.1  podman: not connected")
    );
    assert!(lines[2].starts_with("NAME▾"), "{}", lines[2]);
    assert!(lines[2].ends_with("RX+TX"), "{}", lines[2]);
    assert_eq!(
        words(&lines[3]),
        [
            "db",
            "shop_default",
            "5.00",
            "Mb/s",
            "80.0",
            "kb/s",
            "400",
            "200",
            "7.86",
            "MiB",
            "15.7",
            "MiB",
            "27.3%",
            "4",
            "██"
        ]
    );
    assert_eq!(words(&lines[5])[..3], ["host-net", "(host", "networking)"]);
    assert!(lines[19].contains("Enter detail"));
}

#[test]
fn every_width_shows_names_and_rates() {
    for width in [60, 72, 80, 100, 120, 200] {
        let lines = screen(&fed(), width, 12);
        assert!(lines[3].starts_with("db "), "{width}: {}", lines[3]);
        assert!(lines[2].contains("RX/s") && lines[2].contains("TX/s"), "{width}: {}", lines[2]);
        assert!(
            lines[3].contains("5.00 Mb/s 80.0") || lines[3].contains("5.00 Mb/s  80.0"),
            "{width}: {}",
            lines[3]
        );
    }
}

#[test]
fn too_small_says_what_it_needs() {
    let text = screen(&fed(), 50, 5).concat();
    assert!(text.contains("needs 60x12"), "{text}");
    screen(&fed(), 1, 1);
}

#[test]
fn waits_for_the_first_snapshot() {
    let view = View::new(None);
    assert!(screen(&view, 80, 12)[2].starts_with("waiting"));
    let mut view = view;
    for code in [KeyCode::Enter, KeyCode::Down, KeyCode::Char('p'), KeyCode::Tab, KeyCode::Esc] {
        assert_eq!(press(&mut view, code), Flow::Continue);
    }
}

#[test]
fn sorts_by_columns_and_reverses() {
    let mut view = fed();
    assert_eq!(names(&view)[0], "db");
    press(&mut view, KeyCode::Char('r'));
    assert_eq!(names(&view)[0], "web-1");
    type_keys(&mut view, "rss");
    assert_eq!((view.sort, names(&view)[0]), (Sort::RxRate, "db"));
    assert_eq!(names(&view)[4], "job", "what has no rate comes last");
    type_keys(&mut view, "<<<");
    assert_eq!(view.sort, Sort::Drops);
}

#[test]
fn the_selection_stays_with_its_container() {
    let mut view = fed();
    assert_eq!(view.selected_row(), Some(0));
    press(&mut view, KeyCode::End);
    assert_eq!(view.selected_row(), Some(4));
    press(&mut view, KeyCode::Char('r'));
    assert_eq!(view.selected_row(), Some(0), "web-1 is the first now");
    let mut fewer = fixture::snapshot();
    fewer.containers.pop();
    view.update(fewer, None);
    assert_eq!(view.selected_row(), Some(0), "gone: its row stays");
}

#[test]
fn filters_as_typed() {
    let mut view = fed();
    type_keys(&mut view, "/webx");
    assert!(screen(&view, 80, 12)[11].starts_with("filter: webx"));
    press(&mut view, KeyCode::Backspace);
    assert_eq!(names(&view).len(), 5, "not before Enter");
    press(&mut view, KeyCode::Enter);
    assert_eq!(names(&view), ["web-1"]);
    assert!(screen(&view, 80, 12)[1].contains("filter: web"));
    type_keys(&mut view, "/ colour=red");
    press(&mut view, KeyCode::Enter);
    assert_eq!(names(&view), ["web-1"], "a wrong filter changes nothing");
    assert!(screen(&view, 100, 12)[11].contains("unknown filter `colour`"));
    type_keys(&mut view, "/q");
    press(&mut view, KeyCode::Esc);
    assert_eq!(names(&view), ["web-1"]);
    press(&mut view, KeyCode::Esc);
    assert_eq!(names(&view).len(), 5);
    assert_eq!(View::new(Some("state=running".into())).filter_text, "state=running");
}

#[test]
fn pausing_keeps_what_is_seen_and_forgets_nothing() {
    let mut view = fed();
    press(&mut view, KeyCode::Char(' '));
    view.update(crate::model::Snapshot::empty(std::time::SystemTime::UNIX_EPOCH), None);
    assert_eq!(names(&view).len(), 5);
    assert!(screen(&view, 80, 12)[0].contains("PAUSED"));
    press(&mut view, KeyCode::Char('p'));
    assert_eq!(names(&view).len(), 0);
    assert!(screen(&view, 80, 12)[2].contains("no containers"));
}

#[test]
fn networks_are_a_second_view() {
    let mut view = fed();
    press(&mut view, KeyCode::Tab);
    let lines = screen(&view, 140, 12);
    assert!(lines[2].starts_with("NETWORK"));
    assert_eq!(
        words(&lines[4]),
        [
            "shop_default",
            "625",
            "kb/s",
            "10.0",
            "kb/s",
            "6.25",
            "Mb/s",
            "100",
            "kb/s",
            "2",
            "bridge",
            "br-eeeeeeeeeeee",
            "172.18.0.0/16"
        ]
    );
    press(&mut view, KeyCode::Down);
    press(&mut view, KeyCode::Enter);
    assert_eq!(view.filter_text, "network=shop_default");
    assert_eq!(names(&view), ["db", "job", "web-1"]);
}

#[test]
fn detail_shows_every_part() {
    let mut view = fed();
    press(&mut view, KeyCode::End);
    press(&mut view, KeyCode::Enter);
    let lines = screen(&view, 100, 60);
    let text = lines.join("\n");
    for part in [
        "web-1",
        "aaaaaaaaaaaa",
        "nginx:1.27",
        "shop / web",
        "vetha (ifindex 17)",
        "172.18.0.2 fd00::2",
        "02:42:ac:12:00:02",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let row = |name: &str| lines.iter().find(|line| line.contains(name)).map(|line| words(line)).expect(name);
    let stack = row("stack");
    assert_eq!(stack[1..], ["1,100", "805", "KiB", "2,200", "1.57", "MiB", "│"]);
    assert_eq!(row("wire  ")[1], "1,400");
    assert_eq!(row("ethertype arp")[2], "100");
    assert_eq!(row("cast broadcast")[5], "200");
    assert_eq!(row("protocol udp")[2], "200");
    assert_eq!(row("tcp syn")[2..4], ["100", "200"]);
    assert!(row("≤ 1024 B").contains(&"████████████████"));
    assert!(row("> 9018 B").contains(&"21.4%"));
    assert!(!text.contains("sctp"));
    assert!(screen(&view, 60, 12).iter().any(|line| line.contains("image")));
    press(&mut view, KeyCode::PageDown);
    assert!(!screen(&view, 60, 12).iter().any(|line| line.contains("image")));
    press(&mut view, KeyCode::Esc);
    assert!(view.detail.is_none());
}

#[test]
fn a_container_that_goes_leaves_its_pane_empty() {
    let mut view = fed();
    press(&mut view, KeyCode::Enter);
    view.update(crate::model::Snapshot::empty(std::time::SystemTime::UNIX_EPOCH), None);
    assert!(screen(&view, 80, 12).concat().contains("has ended"));
}

#[test]
fn help_lists_keys_and_problems() {
    let mut view = fed();
    press(&mut view, KeyCode::Char('?'));
    let text = screen(&view, 110, 40).join("\n");
    assert!(text.contains("not observed: vethx: no such device") && text.contains("reverse the order"));
    press(&mut view, KeyCode::Char('x'));
    assert!(view.help, "a key that means nothing changes nothing");
    press(&mut view, KeyCode::Esc);
    assert!(!view.help);
}

#[test]
fn hostile_names_reach_no_cell() {
    let mut view = fed();
    press(&mut view, KeyCode::Down);
    for code in [KeyCode::Esc, KeyCode::Enter, KeyCode::Char('2'), KeyCode::Char('?')] {
        press(&mut view, code);
        let text = screen(&view, 120, 40).join("\n");
        assert!(!text.contains(|c: char| c != '\n' && c.is_control()) && !text.contains('\u{202e}'));
    }
    press(&mut view, KeyCode::Esc);
    press(&mut view, KeyCode::Char('1'));
    assert!(screen(&view, 200, 20).join("\n").contains("evil\\x1b[2J\\u{202e}"));
}

#[test]
fn ended_containers_are_dimmed() {
    let view = fed();
    let mut terminal = Terminal::new(TestBackend::new(120, 20)).expect("terminal");
    terminal.draw(|frame| draw(frame, &view)).expect("drawn");
    let buffer = terminal.backend().buffer();
    let dim = |y| buffer[(0, y)].modifier.contains(ratatui::style::Modifier::DIM);
    assert_eq!((3..8).map(dim).collect::<Vec<_>>(), [false, false, false, true, false]);
}

#[test]
fn history_is_bounded_and_pruned() {
    let mut view = fed();
    for _ in 0..POINTS + 10 {
        view.update(fixture::snapshot(), None);
    }
    assert_eq!(view.shown().expect("shown").history.points(&fixture::id('a')), POINTS);
    view.update(crate::model::Snapshot::empty(std::time::SystemTime::UNIX_EPOCH), None);
    assert_eq!(view.shown().expect("shown").history.points(&fixture::id('a')), 0);
}

#[test]
fn quits_and_ignores_releases() {
    let mut view = fed();
    assert_eq!(press(&mut view, KeyCode::Char('q')), Flow::Quit);
    assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Flow::Quit);
    type_keys(&mut view, "/q");
    assert_eq!(view.typed.as_deref(), Some("q"), "typed, not obeyed");
    assert_eq!(view.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Flow::Quit);
    let release =
        KeyEvent { kind: KeyEventKind::Release, ..KeyEvent::new(KeyCode::Char('q'), KeyModifiers::NONE) };
    assert_eq!(action(release, false), None);
}

#[test]
fn tabs_go_round() {
    let mut view = fed();
    for tab in [Tab::Networks, Tab::Flows, Tab::Drops, Tab::Containers] {
        press(&mut view, KeyCode::Tab);
        assert_eq!(view.tab, tab);
    }
    press(&mut view, KeyCode::BackTab);
    assert_eq!(view.tab, Tab::Drops);
    for (typed, tab) in [("1", Tab::Containers), ("2", Tab::Networks), ("3", Tab::Flows), ("4", Tab::Drops)] {
        type_keys(&mut view, typed);
        assert_eq!(view.tab, tab);
    }
}

#[test]
fn flows_are_a_view_of_their_own() {
    let mut view = View::new(None);
    view.update(fixture::snapshot(), Some(flows::tests::conversations()));
    type_keys(&mut view, "3");
    let lines = screen(&view, 160, 12);
    assert!(lines[2].starts_with("CLIENT"), "{}", lines[2]);
    assert!(lines[3].contains("db:5432") && lines[3].contains("closed"), "{}", lines[3]);
    assert!(lines[10].starts_with("4 more, with fewer bytes; 2 could not be listed"), "{}", lines[10]);
    assert!(lines[11].contains("Tab drops"));
    // Of the fixture's five containers none is in a flow.
    type_keys(&mut view, "/db");
    press(&mut view, KeyCode::Enter);
    assert!(view.flows().is_empty());
    assert!(screen(&view, 160, 12)[2].starts_with("no flows"));
    press(&mut view, KeyCode::Esc);
    assert_eq!(view.flows().len(), 3);
    for width in [60, 80, 100, 200] {
        let line = &screen(&view, width, 12)[2];
        assert!(line.contains("SERVER") && line.contains("BYTES →") == (width > 60), "{width}: {line}");
    }
    let without = fed();
    let mut view = without;
    type_keys(&mut view, "3");
    assert!(screen(&view, 80, 12)[2].contains("--max-flows 0"));
}

#[test]
fn flows_are_sorted_by_what_there_is_most_of() {
    let mut view = View::new(None);
    view.update(fixture::snapshot(), Some(flows::tests::conversations()));
    type_keys(&mut view, "3");
    let first = |view: &View| view.flows()[0].protocol.clone();
    assert_eq!((view.flow_sort.name(), first(&view).as_str()), ("bytes", "tcp"));
    type_keys(&mut view, "r");
    assert_eq!(first(&view), "icmpv6");
    type_keys(&mut view, "rss");
    assert_eq!((view.flow_sort.name(), view.flows()[0].lost()), ("lost", Some(3)));
    type_keys(&mut view, "s");
    assert_eq!(view.flow_sort.name(), "newest");
    assert!(screen(&view, 80, 12)[1].contains("by newest"), "{}", screen(&view, 80, 12)[1]);
}

#[test]
fn what_is_old_is_called_old() {
    let mut view = fed();
    view.stale = Some("the agent that runs does not answer\x1b[2J".into());
    let first = &screen(&view, 100, 12)[0];
    assert!(first.starts_with(r"netobs  OLD: the agent that runs does not answer\x1b[2J"), "{first}");
    view.update(fixture::snapshot(), None);
    assert!(!screen(&view, 100, 12)[0].contains("OLD"));
}

#[test]
fn drops_are_a_view_of_their_own() {
    let mut view = fed();
    type_keys(&mut view, "4");
    assert!(screen(&view, 80, 12)[2].starts_with("looking for drops"));
    view.update(drops::tests::snapshot(vec![]), None);
    assert!(screen(&view, 80, 12)[2].starts_with("nothing was dropped"));
    view.update(drops::tests::snapshot(vec![drops::tests::row(1234)]), None);
    let lines = screen(&view, 170, 12);
    assert!(lines[2].starts_with("FROM"), "{}", lines[2]);
    for part in ["1,234", "NETFILTER_DROP", "icmp echo-request", "br-front", "nft_do_chain+0x3e8"] {
        assert!(lines[3].contains(part), "{part}: {}", lines[3]);
    }
    assert!(lines[3].contains(r"evil\x1b[2J"), "escaped: {}", lines[3]);
    let mut unable = fixture::snapshot();
    unable.agent.degraded = vec![("drops".into(), "no BTF".into())];
    view.update(unable, None);
    assert!(screen(&view, 80, 12)[2].contains("cannot be looked for: no BTF"));
}
