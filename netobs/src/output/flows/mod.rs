//! Conversations: as a table, CSV and JSON.

mod csv;
mod table;

pub use self::{
    csv::csv,
    table::{HEADER, row, table},
};
use crate::model::conversation::Conversations;

/// One line of JSON without its end, described by `docs/flows.schema.json`.
pub fn json(conversations: &Conversations) -> serde_json::Result<String> {
    super::json::document(conversations)
}

#[cfg(test)]
pub(super) mod tests;
