//! OTLP: a snapshot as OpenTelemetry's messages. `docs/otlp.md` lists names and attributes.
//!
//! Metrics are those of `/metrics`, each with OpenTelemetry's name and attributes: what is to be seen by one way is by
//! the other. Flows are log records.

mod flows;
mod metrics;
mod names;
mod starts;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    resource::v1::Resource,
};

pub use self::{
    flows::{FlowLog, flows},
    metrics::metrics,
    starts::{Since, Starts},
};

/// An encoded request, and how many data points or log records are in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub body: Bytes,
    pub items: u64,
}

/// Data points or log records of one message: with all their attributes some MB, and collectors take 20 MiB.
pub const MOST_ITEMS: usize = 5000;

/// Of whom all that is sent tells: one agent.
#[derive(Clone, Debug, Default)]
pub struct Source(Vec<KeyValue>);

impl Source {
    pub fn new(attributes: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(attributes.into_iter().map(|(key, value)| text(&key, value)).collect())
    }

    /// If there is none of that name.
    pub fn add(&mut self, key: &str, value: String) {
        if !self.0.iter().any(|known| known.key == key) {
            self.0.push(text(key, value));
        }
    }

    fn resource(&self) -> Resource {
        Resource { attributes: self.0.clone(), ..Resource::default() }
    }
}

fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: "netobs".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

fn text(key: &str, value: String) -> KeyValue {
    attribute(key, Value::StringValue(value))
}

fn number(key: &str, value: u64) -> KeyValue {
    attribute(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}

/// Since the epoch.
fn unix_nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}
