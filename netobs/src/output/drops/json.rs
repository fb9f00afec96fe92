//! All that is known of drops as one line of JSON, described by `docs/drops.schema.json`.

use serde::Serialize;

use crate::{
    model::{Snapshot, drops::DropReport, snapshot::unix_seconds},
    output::json::document as document_of,
};

/// Version of the form: raised when a field is removed or changes its meaning.
const VERSION: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    /// Seconds since the epoch, with fraction.
    #[serde(serialize_with = "unix_seconds::serialize")]
    time: std::time::SystemTime,
    /// Why nothing is told; none if it is.
    problem: Option<&'a str>,
    #[serde(flatten)]
    report: &'a DropReport,
}

/// Without the line's end.
pub fn document(snapshot: &Snapshot) -> serde_json::Result<String> {
    let nothing = DropReport::default();
    let degraded = snapshot.agent.degraded.iter().find(|(feature, _)| feature == "drops");
    let problem = match (&snapshot.drops, degraded) {
        (_, Some((_, why))) => Some(why.as_str()),
        (None, None) => Some("not looked for"),
        (Some(_), None) => None,
    };
    let report = snapshot.drops.as_ref().unwrap_or(&nothing);
    document_of(&Document { version: VERSION, time: snapshot.time, problem, report })
}
