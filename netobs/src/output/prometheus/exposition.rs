//! Families to text, with the label sets of one family kept apart from each other.

use std::{collections::HashMap, io::Write};

use prometheus::{
    Error, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::output::format::visible;

/// Value of a label whose content could not be learned; empty would be no label at all.
pub const UNKNOWN: &str = "unknown";

/// Prometheus's unit of time is the second.
pub const US_PER_SECOND: f64 = 1e6;

/// Where families go: one by one to a writer, or all into one text.
#[derive(Default)]
pub struct Exposition<'a> {
    to: Option<&'a mut dyn Write>,
    /// Not written yet.
    text: String,
}

impl<'a> Exposition<'a> {
    pub fn new(to: &'a mut dyn Write) -> Self {
        Self { to: Some(to), text: String::new() }
    }

    /// What has not been written: without a writer, all.
    pub fn into_text(self) -> String {
        self.text
    }

    /// Counters of which the labels are there already; they stay for the next family. None: no family.
    pub fn counters(
        &mut self,
        name: String,
        help: String,
        metrics: &mut Vec<Metric>,
        value: impl Fn(usize) -> u64,
    ) -> Result<(), Error> {
        for (at, metric) in metrics.iter_mut().enumerate() {
            let mut counter = Counter::default();
            counter.set_value(float(value(at)));
            metric.set_counter(counter);
        }
        self.family(name, help, MetricType::COUNTER, metrics)
    }

    /// Counters, each with its labels and its value; those with equal labels are added up.
    pub fn sums(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Result<(), Error> {
        let samples = merge(samples, |sum, more| *sum += more);
        let (mut metrics, values): (Vec<Metric>, Vec<u64>) =
            samples.into_iter().map(|(labels, value)| (labels.metric(), value)).unzip();
        self.counters(name.to_owned(), help.to_owned(), &mut metrics, |at| values[at])
    }

    /// Histograms, each with its labels.
    pub fn histograms(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, Histogram)>,
    ) -> Result<(), Error> {
        let mut metrics = Vec::new();
        for (labels, histogram) in samples {
            let mut metric = labels.metric();
            metric.set_histogram(histogram);
            metrics.push(metric);
        }
        self.family(name.to_owned(), help.to_owned(), MetricType::HISTOGRAM, &mut metrics)
    }

    /// Gauges, each with its labels and its value.
    pub fn gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, u64)>,
    ) -> Result<(), Error> {
        let mut metrics = Vec::new();
        for (labels, value) in samples {
            let mut metric = labels.metric();
            let mut gauge = Gauge::default();
            gauge.set_value(float(value));
            metric.set_gauge(gauge);
            metrics.push(metric);
        }
        self.family(name.into(), help.into(), MetricType::GAUGE, &mut metrics)
    }

    /// Any kind; writes nothing without metrics, because there is no family without one.
    pub fn family(
        &mut self,
        name: String,
        help: String,
        kind: MetricType,
        metrics: &mut Vec<Metric>,
    ) -> Result<(), Error> {
        if metrics.is_empty() {
            return Ok(());
        }
        let mut family = MetricFamily::default();
        family.set_name(name);
        family.set_help(help);
        family.set_field_type(kind);
        family.set_metric(std::mem::take(metrics));
        let families = [family];
        let encoded = TextEncoder::new().encode_utf8(&families, &mut self.text);
        let [mut family] = families;
        *metrics = family.take_metric();
        encoded?;
        if let Some(to) = &mut self.to {
            to.write_all(self.text.as_bytes())?;
            self.text.clear();
        }
        Ok(())
    }
}

/// Samples with equal labels become one, in the order in which they first came: Prometheus takes a second
/// sample of a series for an error of the whole scrape.
pub fn merge<V>(samples: impl IntoIterator<Item = (Labels, V)>, add: impl Fn(&mut V, V)) -> Vec<(Labels, V)> {
    let mut places: HashMap<Labels, usize> = HashMap::new();
    let mut merged: Vec<(Labels, V)> = Vec::new();
    for (labels, value) in samples {
        match places.get(&labels) {
            Some(&place) => add(&mut merged[place].1, value),
            None => {
                places.insert(labels.clone(), merged.len());
                merged.push((labels, value));
            }
        }
    }
    merged
}

/// From what was observed in each bucket by itself; `bounds` are upper ones, in the family's unit. Whatever is over
/// the last bound is in `count` alone.
pub fn histogram(
    bounds: impl IntoIterator<Item = f64>,
    observed: impl IntoIterator<Item = u64>,
    count: u64,
    sum: f64,
) -> Histogram {
    let mut below = 0;
    let buckets = bounds.into_iter().zip(observed).map(|(bound, observed)| {
        below += observed;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(bound);
        bucket.set_cumulative_count(below);
        bucket
    });
    let mut histogram = Histogram::default();
    histogram.set_bucket(buckets.collect());
    histogram.set_sample_count(count);
    histogram.set_sample_sum(sum);
    histogram
}

/// A label set, all but its last value written as the format has it.
///
/// It becomes one pair: the encoder puts a pair's name where it belongs without looking at it (documented
/// at `prometheus::Encoder::encode`), and a scrape of a large host is mostly the writing of the same labels
/// again and again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Labels {
    written: String,
    last_value: String,
}

impl Labels {
    /// What a value could do to a terminal or a page is made visible.
    pub fn new<const N: usize>(names: [&str; N], values: [&str; N]) -> Self {
        let mut pairs = names.into_iter().zip(values);
        let Some((last, last_value)) = pairs.next_back() else { return Self::default() };
        let mut written = String::with_capacity(names.iter().chain(&values).map(|text| text.len() + 2).sum());
        for (name, value) in pairs {
            written.push_str(name);
            written.push_str("=\"");
            // The format's escapes; line ends are gone already, by `visible`.
            for character in visible(value).chars() {
                if matches!(character, '\\' | '"') {
                    written.push('\\');
                }
                written.push(character);
            }
            written.push_str("\",");
        }
        written.push_str(last);
        Self { written, last_value: visible(last_value).into_owned() }
    }

    pub fn metric(self) -> Metric {
        if self.written.is_empty() {
            return Metric::default();
        }
        Metric::from_label(vec![pair(self.written, self.last_value)])
    }
}

/// `metric` with one label more.
pub fn with_label(metric: &Metric, name: &str, value: &str) -> Metric {
    let labels = metric.get_label().iter().cloned();
    Metric::from_label(labels.chain([pair(name.to_owned(), value.to_owned())]).collect())
}

fn pair(name: String, value: String) -> LabelPair {
    let mut pair = LabelPair::default();
    pair.set_name(name);
    pair.set_value(value);
    pair
}

/// Prometheus knows no other number; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the format's own number type")]
pub fn float(value: u64) -> f64 {
    value as f64
}
