//! The families of `/metrics` as cumulative sums, gauges and histograms.

use std::collections::HashSet;

use bytes::Bytes;
use opentelemetry_proto::tonic::{
    collector::metrics::v1::ExportMetricsServiceRequest,
    common::v1::KeyValue,
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value,
    },
};
use prometheus::proto::{self, MetricFamily, MetricType};
use prost::Message as _;

use super::{
    MOST_ITEMS, Message, Source, Starts,
    names::{Ids, Name, attributes},
    scope,
    starts::goes_on,
    text, unix_nanos,
};
use crate::{
    model::{Place, Snapshot},
    output::{format::short_id, prometheus as families},
};

/// All metrics of a snapshot, in as many messages as it takes.
///
/// # Errors
/// None that a snapshot could be the cause of.
pub fn metrics(
    snapshot: &Snapshot,
    source: &Source,
    starts: &mut Starts,
) -> Result<Vec<Message>, prometheus::Error> {
    starts.next();
    let mut batch = Batch { source, metrics: Vec::new(), items: 0, messages: Vec::new() };
    let ids = Ids::of(snapshot);
    let anew = Anew::of(snapshot);
    families::each_family(snapshot, &mut |family| {
        let name = Name::of(family.name());
        let may_go_on = goes_on(family.name());
        for metric in family.get_metric() {
            let labels = families::labels(metric);
            let is_pinned = may_go_on && !anew.has(&labels);
            let mut attributes = attributes(&labels, &ids);
            attributes.extend(name.direction.map(|one| text("network.io.direction", one.to_owned())));
            let mut start = |attributes: &[KeyValue], value| {
                unix_nanos(starts.of(family.name(), is_pinned, attributes, value, snapshot.time))
            };
            let point = point(family, metric, attributes, unix_nanos(snapshot.time), &mut start);
            batch.add(family, &name, point);
        }
    })?;
    batch.end();
    Ok(batch.messages)
}

/// Interfaces that are not the host's, by their container's short ID: what they count is not pinned.
struct Anew<'a>(HashSet<(&'a str, &'a str)>);

impl<'a> Anew<'a> {
    fn of(snapshot: &'a Snapshot) -> Self {
        let each = snapshot.containers.iter().flat_map(|container| {
            let anew = |place| matches!(place, Place::Inside | Place::Cgroup);
            let interfaces = container.interfaces.iter().filter(move |one| one.observed.is_some_and(anew));
            let names = interfaces.map(|one| one.name.as_deref().unwrap_or(families::UNKNOWN));
            // Without a name: series of all of the container's interfaces.
            names.flat_map(|name| [name, ""]).map(|name| (short_id(&container.id), name))
        });
        Self(each.collect())
    }

    fn has(&self, labels: &[(String, String)]) -> bool {
        let of = |name: &str| labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value);
        self.0.contains(&(of("id"), of("interface")))
    }
}

enum Point {
    Sum(NumberDataPoint),
    Gauge(NumberDataPoint),
    Histogram(HistogramDataPoint),
}

fn point(
    family: &MetricFamily,
    metric: &proto::Metric,
    attributes: Vec<KeyValue>,
    time_unix_nano: u64,
    start: &mut impl FnMut(&[KeyValue], f64) -> u64,
) -> Point {
    match family.get_field_type() {
        MetricType::COUNTER => {
            let value = metric.get_counter().get_value();
            let start_time_unix_nano = start(&attributes, value);
            let value = Some(number(value));
            Point::Sum(NumberDataPoint {
                attributes,
                start_time_unix_nano,
                time_unix_nano,
                value,
                ..Default::default()
            })
        }
        MetricType::HISTOGRAM => {
            let histogram = metric.get_histogram();
            let count = histogram.get_sample_count();
            let start_time_unix_nano = start(&attributes, count as f64);
            let buckets = histogram.get_bucket();
            let mut below = 0;
            let mut bucket_counts: Vec<u64> = Vec::with_capacity(buckets.len() + 1);
            for bucket in buckets {
                bucket_counts.push(bucket.cumulative_count() - below);
                below = bucket.cumulative_count();
            }
            bucket_counts.push(count.saturating_sub(below));
            Point::Histogram(HistogramDataPoint {
                attributes,
                start_time_unix_nano,
                time_unix_nano,
                count,
                sum: Some(histogram.get_sample_sum()),
                bucket_counts,
                explicit_bounds: buckets.iter().map(proto::Bucket::upper_bound).collect(),
                ..Default::default()
            })
        }
        _ => Point::Gauge(NumberDataPoint {
            attributes,
            time_unix_nano,
            value: Some(number(metric.get_gauge().get_value())),
            ..Default::default()
        }),
    }
}

/// An integer where it is one: all counts are.
fn number(value: f64) -> Value {
    /// Up to here a float is exact.
    const EXACT: f64 = (1_u64 << 53) as f64;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        Value::AsInt(value as i64)
    } else {
        Value::AsDouble(value)
    }
}

/// What goes into the next message.
struct Batch<'a> {
    source: &'a Source,
    metrics: Vec<Metric>,
    items: usize,
    messages: Vec<Message>,
}

impl Batch<'_> {
    fn add(&mut self, family: &MetricFamily, name: &Name, point: Point) {
        if self.items >= MOST_ITEMS {
            self.end();
        }
        self.items += 1;
        // Both directions are of one name; most often it is the last one's.
        let last = self.metrics.iter_mut().rev().find(|metric| metric.name == name.name);
        let data = match (last.and_then(|metric| metric.data.as_mut()), point) {
            (Some(Data::Sum(sum)), Point::Sum(point)) => return sum.data_points.push(point),
            (Some(Data::Gauge(gauge)), Point::Gauge(point)) => return gauge.data_points.push(point),
            (Some(Data::Histogram(all)), Point::Histogram(point)) => return all.data_points.push(point),
            (_, point) => first(point),
        };
        self.metrics.push(Metric {
            name: name.name.clone(),
            description: match name.direction {
                // The other direction's family follows, under the same name.
                Some(_) => family.help().replacen("received", "received or sent", 1),
                None => family.help().to_owned(),
            },
            unit: name.unit.to_owned(),
            data: Some(data),
            ..Metric::default()
        });
    }

    fn end(&mut self) {
        if self.items == 0 {
            return;
        }
        let scope_metrics = ScopeMetrics {
            scope: Some(scope()),
            metrics: std::mem::take(&mut self.metrics),
            ..ScopeMetrics::default()
        };
        let request = ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.source.resource()),
                scope_metrics: vec![scope_metrics],
                ..ResourceMetrics::default()
            }],
        };
        let body = Bytes::from(request.encode_to_vec());
        self.messages.push(Message { body, items: std::mem::take(&mut self.items) as u64 });
    }
}

fn first(point: Point) -> Data {
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    match point {
        Point::Sum(point) => {
            Data::Sum(Sum { data_points: vec![point], aggregation_temporality, is_monotonic: true })
        }
        Point::Gauge(point) => Data::Gauge(Gauge { data_points: vec![point] }),
        Point::Histogram(point) => {
            Data::Histogram(Histogram { data_points: vec![point], aggregation_temporality })
        }
    }
}
