//! Dropped packets: as they come, as a table or CSV; all of them as JSON.

mod csv;
mod json;
mod table;
pub(super) mod words;

use std::collections::{BTreeMap, BTreeSet};

pub use self::{
    csv::{header as csv_header, rows as csv_rows},
    json::document as json,
    table::table,
};
use super::filter::Filter;
use crate::model::{
    Snapshot,
    drops::{DropKind, DropReport, DropRow},
};

/// What has been shown of each row, so that only what is new is shown next.
#[derive(Debug, Default)]
pub struct Seen {
    shown: BTreeMap<DropKind, u64>,
    new: BTreeMap<DropKind, u64>,
    in_no_row: u64,
    pub(self) new_in_no_row: u64,
}

impl Seen {
    /// Takes in a snapshot; whether anything is new.
    pub fn update(&mut self, snapshot: &Snapshot) -> bool {
        let Some(report) = &snapshot.drops else { return false };
        let new_of = |row: &DropRow| {
            let shown = self.shown.get(&row.kind).copied().unwrap_or_default();
            // A row that was forgotten begins anew.
            let new = if row.packets < shown { row.packets } else { row.packets - shown };
            (new > 0).then(|| (row.kind.clone(), new))
        };
        self.new = report.rows.iter().filter_map(new_of).collect();
        self.shown = report.rows.iter().map(|row| (row.kind.clone(), row.packets)).collect();
        let in_no_row = in_no_row(report);
        self.new_in_no_row = in_no_row.saturating_sub(self.in_no_row);
        self.in_no_row = in_no_row;
        !self.new.is_empty() || self.new_in_no_row > 0
    }

    /// Rows to which packets were added, with how many, in the report's order.
    fn rows<'a>(&'a self, report: &'a DropReport) -> impl Iterator<Item = (&'a DropRow, u64)> {
        report.rows.iter().filter_map(|row| Some((row, *self.new.get(&row.kind)?)))
    }
}

/// Dropped, and not ordinary as far as is known, and yet in no row.
fn in_no_row(report: &DropReport) -> u64 {
    report.unlisted + report.lost.values().sum::<u64>()
}

/// What is from, to or at a container that matches.
pub fn select(mut snapshot: Snapshot, filter: &Filter) -> Snapshot {
    if filter.is_empty() {
        return snapshot;
    }
    let matching = snapshot.containers.iter().filter(|container| filter.matches(container));
    let matching: BTreeSet<&str> = matching.map(|container| container.id.as_str()).collect();
    let matches = |id: &Option<String>| id.as_deref().is_some_and(|id| matching.contains(id));
    if let Some(report) = &mut snapshot.drops {
        report.rows.retain(|row| {
            let kind = &row.kind;
            matches(&kind.source.container_id)
                || matches(&kind.destination.container_id)
                || matches(&kind.at.container_id)
        });
    }
    snapshot
}

#[cfg(test)]
pub mod tests;
