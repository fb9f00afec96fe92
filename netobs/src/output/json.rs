//! A snapshot as one line of JSON, described by `docs/snapshot.schema.json`.

use serde::Serialize;

use super::format::escape_json;
use crate::model::Snapshot;

/// Without the line's end.
pub fn line(snapshot: &Snapshot) -> serde_json::Result<String> {
    document(snapshot)
}

/// One line without its end, of whatever it is, safe for a terminal.
pub fn document(of: &impl Serialize) -> serde_json::Result<String> {
    Ok(escape_json(serde_json::to_string(of)?))
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
    fn what_is_written_can_be_read() {
        let snapshot = fixture::snapshot();
        let read: Snapshot = serde_json::from_str(&line(&snapshot).expect("line")).expect("a snapshot");
        assert_eq!(read, snapshot);
    }

    #[test]
    fn every_part_of_the_schema_says_what_it_is() {
        schema::check_descriptions(SCHEMA);
    }
}
