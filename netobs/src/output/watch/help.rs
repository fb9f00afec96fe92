//! Keys, what the columns mean, and what is wrong now.

use ratatui::{
    Frame,
    layout::Rect,
    text::Line,
    widgets::{Paragraph, Wrap},
};

use super::{
    draw::{BOLD, framed},
    view::View,
};
use crate::{model::Snapshot, output::problems::problems};

const KEYS: [(&str, &str); 11] = [
    ("q, Ctrl-C", "quit"),
    ("↑ ↓, j k", "select or scroll; PgUp, PgDn, Home, End"),
    ("Enter", "a container's detail, also of a flow or drop; a network's containers"),
    ("Esc", "back; clear the filter"),
    ("1 2 3 4, Tab", "containers, networks, flows, drops"),
    ("s, < >", "sort by the next or previous column"),
    ("r", "reverse the order"),
    ("/", "filter: words, name= network= id= state= project= service= namespace= pod="),
    ("p, Space", "pause; nothing is missed meanwhile"),
    ("?, h", "this help"),
    ("Ctrl-U", "while typing: start over"),
];

const MEANINGS: [&str; 7] = [
    "RX is what the container receives, TX what it sends; b/s are bits, PPS packets per second.",
    "TOTAL is since netobs attached, in bytes with Ethernet headers, as the stack counts.",
    "NON-TCP is the share of packets that are not TCP. DROPS are the kernel's, of the interface.",
    "HOST RX is what the host receives from the network; CONT is the sum of the containers' sides.",
    "FLOWS: → is from the client to the server; LOST was sent by one container and not received by the other.",
    "DROPS: what the kernel threw away since that view was first opened (or the agent began), other than at a packet's usual end.",
    "Dimmed: ended; its totals stay for a while. '-': not known.",
];

pub fn draw(frame: &mut Frame, area: Rect, view: &View, snapshot: &Snapshot) {
    let problems = problems(snapshot);
    let mut lines = Vec::new();
    if !problems.is_empty() {
        lines.push(Line::styled("Problems now", BOLD));
        lines.extend(problems.into_iter().map(|problem| Line::from(format!("  {problem}"))));
        lines.push(Line::default());
    }
    lines.push(Line::styled("Keys", BOLD));
    lines.extend(KEYS.iter().map(|(key, what)| Line::from(format!("  {key:<12}{what}"))));
    lines.push(Line::default());
    lines.push(Line::styled("What is shown", BOLD));
    lines.extend(MEANINGS.iter().map(|meaning| Line::from(format!("  {meaning}"))));
    let last = u16::try_from(lines.len().saturating_sub(1)).unwrap_or(u16::MAX);
    view.scroll_end.set(last);
    let text = Paragraph::new(lines).wrap(Wrap { trim: false }).scroll((view.scroll.min(last), 0));
    frame.render_widget(text.block(framed("help".into())), area);
}
