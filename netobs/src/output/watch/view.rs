//! What is on the screen: the snapshot shown, and how to look at it.

use std::{borrow::Cow, cell::Cell, cmp::Ordering, collections::BTreeSet};

use crossterm::event::KeyEvent;

use super::{
    history::History,
    input::{Action, action},
};
use crate::{
    model::{
        Container, Network, Rates, Snapshot,
        conversation::{Conversation, Conversations},
        drops::{DropKind, DropRow},
    },
    output::{filter::Filter, format},
};

const PAGE: usize = 10;
/// Typed characters; a filter is a few words.
const FILTER_MAX: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    Quit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tab {
    Containers,
    Networks,
    Flows,
    Drops,
}

impl Tab {
    const ALL: [Self; 4] = [Self::Containers, Self::Networks, Self::Flows, Self::Drops];

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|tab| *tab == self).unwrap_or_default();
        Self::ALL[(at + by) % Self::ALL.len()]
    }
}

/// Flows to be told of at most: more than anybody scrolls through.
pub const FLOWS_MAX: usize = 1_000;

/// What flows are ordered by, from the highest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlowSort {
    Bytes,
    Packets,
    Lost,
    Newest,
}

impl FlowSort {
    const ALL: [Self; 4] = [Self::Bytes, Self::Packets, Self::Lost, Self::Newest];

    fn step(self, by: usize) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(at + by) % Self::ALL.len()]
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Packets => "packets",
            Self::Lost => "lost",
            Self::Newest => "newest",
        }
    }

    fn compare(self, a: &Conversation, b: &Conversation) -> Ordering {
        match self {
            Self::Bytes => b.bytes().cmp(&a.bytes()),
            Self::Packets => b.packets().cmp(&a.packets()),
            Self::Lost => b.lost().cmp(&a.lost()),
            Self::Newest => b.first.cmp(&a.first),
        }
    }
}

/// The column that containers are sorted by, in the table's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Name,
    Network,
    RxRate,
    TxRate,
    RxPackets,
    TxPackets,
    RxTotal,
    TxTotal,
    NonTcp,
    Drops,
}

impl Sort {
    const ALL: [Self; 10] = [
        Self::Name,
        Self::Network,
        Self::RxRate,
        Self::TxRate,
        Self::RxPackets,
        Self::TxPackets,
        Self::RxTotal,
        Self::TxTotal,
        Self::NonTcp,
        Self::Drops,
    ];

    /// Its place in the table.
    pub fn column(self) -> usize {
        Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default()
    }

    fn step(self, by: usize) -> Self {
        Self::ALL[(self.column() + by) % Self::ALL.len()]
    }

    /// Names from A, numbers from the highest; what is not known last.
    fn compare(self, a: &Container, b: &Container) -> Ordering {
        let rate = |of: fn(&Rates) -> f64| {
            let value = |container: &Container| container.rates.as_ref().map_or(-1.0, of);
            value(b).total_cmp(&value(a))
        };
        match self {
            Self::Name => a.name.cmp(&b.name),
            Self::Network => a.networks.cmp(&b.networks),
            Self::RxRate => rate(|rates| rates.rx_bits_per_second),
            Self::TxRate => rate(|rates| rates.tx_bits_per_second),
            Self::RxPackets => rate(|rates| rates.rx_packets_per_second),
            Self::TxPackets => rate(|rates| rates.tx_packets_per_second),
            Self::RxTotal => b.rx.bytes.cmp(&a.rx.bytes),
            Self::TxTotal => b.tx.bytes.cmp(&a.tx.bytes),
            Self::NonTcp => share(b).total_cmp(&share(a)),
            Self::Drops => dropped(b).cmp(&dropped(a)),
        }
    }
}

/// A snapshot and what led to it.
#[derive(Clone, Debug)]
pub struct Shown {
    pub snapshot: Snapshot,
    /// None where they are not counted, or were not asked for.
    pub flows: Option<Conversations>,
    pub history: History,
}

#[derive(Debug)]
pub struct View {
    live: Option<Shown>,
    /// What was shown when it was paused.
    paused: Option<Shown>,
    pub tab: Tab,
    pub sort: Sort,
    pub flow_sort: FlowSort,
    pub reverse: bool,
    /// As last accepted, words apart by blanks.
    pub filter_text: String,
    filter: Filter,
    /// While it is typed.
    pub typed: Option<String>,
    /// Why there is nothing newer than what is shown.
    pub stale: Option<String>,
    /// Why the last filter was not taken.
    pub filter_error: Option<String>,
    /// Of the container or network; kept while the rows move.
    selected: Option<String>,
    /// Its row, for when it is gone.
    row: usize,
    /// ID of the container in the detail pane.
    pub detail: Option<String>,
    /// First line of the detail pane or help that is shown.
    pub scroll: u16,
    /// Furthest that there is to scroll; known when it has been drawn.
    pub scroll_end: Cell<u16>,
    pub help: bool,
}

impl View {
    /// With a filter as it would be typed.
    pub fn new(filter: Option<String>) -> Self {
        let mut view = Self {
            live: None,
            paused: None,
            tab: Tab::Containers,
            sort: Sort::Name,
            flow_sort: FlowSort::Bytes,
            reverse: false,
            filter_text: String::new(),
            filter: Filter::default(),
            typed: None,
            stale: None,
            filter_error: None,
            selected: None,
            row: 0,
            detail: None,
            scroll: 0,
            scroll_end: Cell::new(u16::MAX),
            help: false,
        };
        view.set_filter(filter.unwrap_or_default());
        view
    }

    /// The newest snapshot, and the flows for their view ([`Tab::Flows`]); shown at once unless paused.
    pub fn update(&mut self, snapshot: Snapshot, flows: Option<Conversations>) {
        let mut history = self.live.take().map(|live| live.history).unwrap_or_default();
        history.push(&snapshot);
        self.live = Some(Shown { snapshot, flows, history });
        self.stale = None;
        self.keep_selection();
    }

    pub fn key(&mut self, key: KeyEvent) -> Flow {
        let Some(action) = action(key, self.typed.is_some()) else { return Flow::Continue };
        if action == Action::Quit {
            return Flow::Quit;
        }
        match (self.help, self.detail.is_some()) {
            (true, _) | (_, true) if self.scrolled(action) => {}
            (true, _) => self.help = false,
            _ => self.act(action),
        }
        self.keep_selection();
        Flow::Continue
    }

    pub fn shown(&self) -> Option<&Shown> {
        self.paused.as_ref().or(self.live.as_ref())
    }

    pub fn is_paused(&self) -> bool {
        self.paused.is_some()
    }

    /// Containers as filtered and sorted; equals stay sorted by name.
    pub fn containers(&self) -> Vec<&Container> {
        let Some(shown) = self.shown() else { return Vec::new() };
        let mut rows: Vec<_> = shown.snapshot.containers.iter().filter(|c| self.filter.matches(c)).collect();
        rows.sort_by(|a, b| {
            let order = self.sort.compare(a, b);
            if self.reverse { order.reverse() } else { order }
        });
        rows
    }

    /// Networks that are named by the filter or that a container shown is on.
    pub fn networks(&self) -> Vec<&Network> {
        let Some(shown) = self.shown() else { return Vec::new() };
        let containers = self.containers();
        let used = |network: &Network| containers.iter().any(|c| c.networks.contains(&network.name));
        let networks = shown.snapshot.networks.iter();
        networks.filter(|n| self.filter.is_empty() || self.filter.names_network(n) || used(n)).collect()
    }

    /// Conversations of containers that the filter matches, as sorted.
    pub fn flows(&self) -> Vec<&Conversation> {
        let Some(flows) = self.shown().and_then(|shown| shown.flows.as_ref()) else { return Vec::new() };
        let ids = self.matching();
        let is_shown = |flow: &&Conversation| {
            let ends = [&flow.client, &flow.server].map(|end| end.id.as_deref());
            self.filter.is_empty() || ends.into_iter().flatten().any(|id| ids.contains(id))
        };
        let mut rows: Vec<_> = flows.flows.iter().filter(is_shown).collect();
        rows.sort_by(|a, b| {
            let order = self.flow_sort.compare(a, b);
            if self.reverse { order.reverse() } else { order }
        });
        rows
    }

    /// Drops from, to or at containers that the filter matches.
    pub fn drops(&self) -> Vec<&DropRow> {
        let Some(drops) = self.shown().and_then(|shown| shown.snapshot.drops.as_ref()) else {
            return Vec::new();
        };
        let ids = self.matching();
        let is_shown = |row: &&DropRow| self.filter.is_empty() || parties(row).any(|id| ids.contains(id));
        drops.rows.iter().filter(is_shown).collect()
    }

    /// IDs of containers that the filter matches.
    fn matching(&self) -> BTreeSet<&str> {
        self.containers().into_iter().map(|container| container.id.as_str()).collect()
    }

    /// The container in the detail pane; none when closed or when it has ended and its time is over.
    pub fn detailed(&self) -> Option<&Container> {
        let id = self.detail.as_deref()?;
        self.shown()?.snapshot.containers.iter().find(|container| container.id == id)
    }

    pub fn selected_row(&self) -> Option<usize> {
        let ids = self.ids();
        let found = self.selected.as_ref().and_then(|id| ids.iter().position(|other| other == id));
        found.or_else(|| (!ids.is_empty()).then(|| self.row.min(ids.len() - 1)))
    }

    /// By what the rows of the view are known, while they move.
    fn ids(&self) -> Vec<Cow<'_, str>> {
        match self.tab {
            Tab::Containers => self.containers().iter().map(|c| Cow::Borrowed(c.id.as_str())).collect(),
            Tab::Networks => self.networks().iter().map(|n| Cow::Borrowed(n.id.as_str())).collect(),
            Tab::Flows => {
                let of = |flow: &&Conversation| {
                    format!("{:?} {:?} {} {:?}", flow.client, flow.server, flow.protocol, flow.icmp)
                };
                self.flows().iter().map(|flow| Cow::Owned(of(flow))).collect()
            }
            Tab::Drops => self.drops().iter().map(|row| Cow::Owned(format!("{:?}", row.kind))).collect(),
        }
    }

    fn keep_selection(&mut self) {
        let row = self.selected_row();
        self.selected = row.and_then(|row| self.ids().get(row).map(|id| id.clone().into_owned()));
        self.row = row.unwrap_or_default();
    }

    fn select(&mut self, row: usize) {
        let last = self.ids().len().saturating_sub(1);
        self.row = row.min(last);
        self.selected = None;
    }

    /// Moves the text of a pane; what is not a move is left to others.
    fn scrolled(&mut self, action: Action) -> bool {
        let page = u16::try_from(PAGE).unwrap_or(u16::MAX);
        self.scroll = match action {
            Action::Up => self.scroll.saturating_sub(1),
            Action::Down => self.scroll.saturating_add(1),
            Action::PageUp => self.scroll.saturating_sub(page),
            Action::PageDown => self.scroll.saturating_add(page),
            Action::First => 0,
            Action::Last => u16::MAX,
            _ => return false,
        }
        .min(self.scroll_end.get());
        true
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Up => self.select(self.row.saturating_sub(1)),
            Action::Down => self.select(self.row.saturating_add(1)),
            Action::PageUp => self.select(self.row.saturating_sub(PAGE)),
            Action::PageDown => self.select(self.row.saturating_add(PAGE)),
            Action::First => self.select(0),
            Action::Last => self.select(usize::MAX),
            Action::Open => self.open(),
            Action::Back => self.back(),
            Action::NextSort if self.tab == Tab::Flows => self.flow_sort = self.flow_sort.step(1),
            Action::PreviousSort if self.tab == Tab::Flows => {
                self.flow_sort = self.flow_sort.step(FlowSort::ALL.len() - 1);
            }
            Action::NextSort => self.sort = self.sort.step(1),
            Action::PreviousSort => self.sort = self.sort.step(Sort::ALL.len() - 1),
            Action::Reverse => self.reverse = !self.reverse,
            Action::Pause => self.paused = if self.is_paused() { None } else { self.live.clone() },
            Action::Help => (self.help, self.scroll) = (true, 0),
            Action::Containers => self.show(Tab::Containers),
            Action::Networks => self.show(Tab::Networks),
            Action::Flows => self.show(Tab::Flows),
            Action::Drops => self.show(Tab::Drops),
            Action::NextTab => self.show(self.tab.step(1)),
            Action::PreviousTab => self.show(self.tab.step(Tab::ALL.len() - 1)),
            Action::EditFilter => self.typed = Some(self.filter_text.clone()),
            Action::Type(character) => {
                if let Some(typed) = self.typed.as_mut().filter(|typed| typed.len() < FILTER_MAX) {
                    typed.push(character);
                }
            }
            Action::Erase => {
                self.typed.as_mut().map(String::pop);
            }
            Action::EraseAll => self.typed = Some(String::new()),
            Action::Accept => {
                let typed = self.typed.take().unwrap_or_default();
                self.set_filter(typed);
            }
            Action::Cancel => self.typed = None,
            Action::Quit => {}
        }
    }

    fn open(&mut self) {
        let Some(row) = self.selected_row() else { return };
        match self.tab {
            Tab::Containers => {
                self.detail = self.containers().get(row).map(|container| container.id.clone());
                self.scroll = 0;
            }
            // Words are apart by blanks, which a network's name may have; its ID has none.
            Tab::Networks => {
                let network = self.networks().get(row).map(|network| match network.name.contains(' ') {
                    true => format::short_id(&network.id).to_owned(),
                    false => network.name.clone(),
                });
                self.set_filter(network.map(|network| format!("network={network}")).unwrap_or_default());
                self.show(Tab::Containers);
            }
            Tab::Flows => {
                let flows = self.flows();
                let ends = flows.get(row).map(|flow| [&flow.client, &flow.server]);
                let id = ends.into_iter().flatten().find_map(|end| end.id.clone());
                (self.detail, self.scroll) = (id, 0);
            }
            Tab::Drops => {
                let id = self.drops().get(row).and_then(|row| parties(row).next().map(str::to_owned));
                (self.detail, self.scroll) = (id, 0);
            }
        }
    }

    /// One thing less: the pane, else the filter.
    fn back(&mut self) {
        if self.detail.take().is_none() {
            self.set_filter(String::new());
        }
    }

    fn show(&mut self, tab: Tab) {
        (self.tab, self.detail, self.selected, self.row) = (tab, None, None, 0);
    }

    fn set_filter(&mut self, text: String) {
        let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        match Filter::parse(&words) {
            Ok(filter) => {
                (self.filter, self.filter_text, self.filter_error) = (filter, text.trim().to_owned(), None);
            }
            Err(error) => self.filter_error = Some(error.to_string()),
        }
    }
}

/// IDs of the containers that had a part in a drop.
fn parties(row: &DropRow) -> impl Iterator<Item = &str> {
    let DropKind { source, destination, at, .. } = &row.kind;
    [&source.container_id, &destination.container_id, &at.container_id]
        .into_iter()
        .filter_map(|id| id.as_deref())
}

#[expect(clippy::cast_precision_loss, reason = "an order is all that is needed")]
fn share(container: &Container) -> f64 {
    let (part, all) = format::non_tcp(&container.rx, &container.tx);
    if all == 0 { -1.0 } else { part as f64 / all as f64 }
}

fn dropped(container: &Container) -> Option<u64> {
    container.drops.map(|drops| drops.rx_dropped + drops.tx_dropped)
}
