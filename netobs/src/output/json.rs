//! A snapshot as one line of JSON, described by `docs/snapshot.schema.json`.

use crate::model::Snapshot;

/// Without the line's end.
pub fn line(snapshot: &Snapshot) -> serde_json::Result<String> {
    serde_json::to_string(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::{fixture, schema};

    const SCHEMA: &str = include_str!("../../../docs/snapshot.schema.json");

    #[test]
    fn the_schema_describes_all_of_it() {
        for snapshot in [fixture::snapshot(), Snapshot::empty(std::time::SystemTime::UNIX_EPOCH)] {
            let text = line(&snapshot).expect("line");
            assert!(!text.contains(['\n', '\x1b']));
            schema::check_document(&text, SCHEMA);
        }
    }

    #[test]
    fn every_part_of_the_schema_says_what_it_is() {
        schema::check_descriptions(SCHEMA);
    }
}
