//! The Prometheus text format. `docs/metrics.md` lists the families.
//!
//! Families are built and written one after the other, so that memory is bounded by the largest.

mod cadvisor;
mod containers;
mod exposition;
mod host;

use std::io::Write;

use prometheus::Error;

use self::exposition::Exposition;
use crate::model::Snapshot;

/// Content type of all that is written here.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What `/metrics` serves, one write per family.
pub fn write(snapshot: &Snapshot, to: &mut impl Write) -> Result<(), Error> {
    let mut out = Exposition::new(to);
    containers::write(snapshot, &mut out)?;
    host::write(snapshot, &mut out)
}

/// [`write`] into one string.
pub fn encode(snapshot: &Snapshot) -> Result<String, Error> {
    let mut text = Vec::new();
    write(snapshot, &mut text)?;
    into_string(text)
}

/// What `/metrics/cadvisor` serves: cAdvisor's names and labels. A path of its own, because beside the
/// kubelet's own metrics each sum would double.
pub fn write_cadvisor(snapshot: &Snapshot, to: &mut impl Write) -> Result<(), Error> {
    cadvisor::write(snapshot, &mut Exposition::new(to))
}

/// [`write_cadvisor`] into one string.
pub fn encode_cadvisor(snapshot: &Snapshot) -> Result<String, Error> {
    let mut text = Vec::new();
    write_cadvisor(snapshot, &mut text)?;
    into_string(text)
}

fn into_string(text: Vec<u8>) -> Result<String, Error> {
    String::from_utf8(text).map_err(|error| Error::Msg(error.to_string()))
}

#[cfg(test)]
mod tests;
