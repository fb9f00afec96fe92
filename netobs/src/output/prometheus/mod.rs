//! The Prometheus text format. `docs/metrics.md` lists the families.
//!
//! Families are built and written one after the other, so that memory is bounded by the largest.

mod cadvisor;
mod containers;
mod drops;
mod events;
mod exposition;
mod flows;
mod host;
mod published;
mod tcp;

use std::io::Write;

use prometheus::{Error, proto::MetricFamily};

use self::exposition::Exposition;
pub use self::exposition::{UNKNOWN, labels};
use crate::model::Snapshot;

/// Content type of all that is written here.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// What `/metrics` serves, one write per family.
pub fn write(snapshot: &Snapshot, to: &mut impl Write) -> Result<(), Error> {
    families(snapshot, &mut Exposition::new(to))
}

/// [`write`] into one string.
pub fn encode(snapshot: &Snapshot) -> Result<String, Error> {
    let mut out = Exposition::default();
    families(snapshot, &mut out)?;
    Ok(out.into_text())
}

/// What `/metrics` serves, before it is text; of each metric [`labels`] tells the labels.
pub fn each_family(snapshot: &Snapshot, to: &mut dyn FnMut(&MetricFamily)) -> Result<(), Error> {
    families(snapshot, &mut Exposition::families(to))
}

/// What `/metrics/cadvisor` serves: cAdvisor's names and labels. A path of its own, because beside the
/// kubelet's own metrics each sum would double.
pub fn write_cadvisor(snapshot: &Snapshot, to: &mut impl Write) -> Result<(), Error> {
    cadvisor::write(snapshot, &mut Exposition::new(to))
}

/// [`write_cadvisor`] into one string.
pub fn encode_cadvisor(snapshot: &Snapshot) -> Result<String, Error> {
    let mut out = Exposition::default();
    cadvisor::write(snapshot, &mut out)?;
    Ok(out.into_text())
}

fn families(snapshot: &Snapshot, out: &mut Exposition<'_>) -> Result<(), Error> {
    containers::write(snapshot, out)?;
    published::write(snapshot, out)?;
    flows::write(snapshot, out)?;
    tcp::write(snapshot, out)?;
    drops::write(snapshot, out)?;
    events::write(snapshot, out)?;
    host::write(snapshot, out)
}

#[cfg(test)]
mod tests;
