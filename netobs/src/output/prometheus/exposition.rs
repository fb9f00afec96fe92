//! Families to text, with the label sets of one family kept apart from each other.

use std::{collections::HashMap, io::Write};

use prometheus::{
    Error, TextEncoder,
    proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType},
};

use crate::{model::Container, output::format::visible};

/// Value of a label whose content could not be learned; empty would be no label at all.
pub const UNKNOWN: &str = "unknown";

/// Prometheus's unit of time is the second.
pub const US_PER_SECOND: f64 = 1e6;

/// Where families go: as text, one by one to a writer or all into one; or as they are.
#[derive(Default)]
pub struct Exposition<'a> {
    to: Sink<'a>,
    /// Not written yet.
    text: String,
}

#[derive(Default)]
enum Sink<'a> {
    #[default]
    Text,
    Writer(&'a mut dyn Write),
    Families(&'a mut dyn FnMut(&MetricFamily)),
}

impl<'a> Exposition<'a> {
    pub fn new(to: &'a mut dyn Write) -> Self {
        Self { to: Sink::Writer(to), text: String::new() }
    }

    /// Of these [`labels`] tells the labels.
    pub fn families(to: &'a mut dyn FnMut(&MetricFamily)) -> Self {
        Self { to: Sink::Families(to), text: String::new() }
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
        self.gauges_of(name, help, samples.into_iter().map(|(labels, value)| (labels, float(value))))
    }

    /// Gauges that may be less than 0, each with its labels and its value.
    pub fn signed_gauges(
        &mut self,
        name: &str,
        help: &str,
        samples: impl IntoIterator<Item = (Labels, i64)>,
    ) -> Result<(), Error> {
        let signed = |(labels, value): (Labels, i64)| {
            let sign = if value < 0 { -1.0 } else { 1.0 };
            (labels, sign * float(value.unsigned_abs()))
        };
        self.gauges_of(name, help, samples.into_iter().map(signed))
    }

    fn gauges_of(
        &mut self,
        name: &str,
        help: &str,
        samples: impl Iterator<Item = (Labels, f64)>,
    ) -> Result<(), Error> {
        let gauge = |(labels, value): (Labels, f64)| {
            let mut metric = labels.metric();
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
            metric
        };
        let mut metrics = samples.map(gauge).collect();
        self.family(name.to_owned(), help.to_owned(), MetricType::GAUGE, &mut metrics)
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
        if let Sink::Families(to) = &mut self.to {
            to(&family);
            *metrics = family.take_metric();
            return Ok(());
        }
        let families = [family];
        let encoded = TextEncoder::new().encode_utf8(&families, &mut self.text);
        let [mut family] = families;
        *metrics = family.take_metric();
        encoded?;
        if let Sink::Writer(to) = &mut self.to {
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
            write_value(&mut written, &visible(value));
        }
        written.push_str(last);
        Self { written, last_value: visible(last_value).into_owned() }
    }

    /// With others before them.
    #[must_use]
    pub fn after(self, others: Self) -> Self {
        let mut written = others.written;
        write_value(&mut written, &others.last_value);
        written.push_str(&self.written);
        Self { written, last_value: self.last_value }
    }

    /// With the namespace and the name of the container's pod, if it is in one.
    #[must_use]
    pub fn in_pod(self, container: &Container) -> Self {
        match &container.pod {
            Some(pod) => self.after(Self::new(["namespace", "pod"], [&pod.namespace, &pod.name])),
            None => self,
        }
    }

    pub fn metric(self) -> Metric {
        if self.written.is_empty() {
            return Metric::default();
        }
        Metric::from_label(vec![pair(self.written, self.last_value)])
    }
}

/// A value and what ends it, with the format's escapes; line ends are gone already, by `visible`.
fn write_value(written: &mut String, value: &str) {
    written.push_str("=\"");
    for character in value.chars() {
        if matches!(character, '\\' | '"') {
            written.push('\\');
        }
        written.push(character);
    }
    written.push_str("\",");
}

/// What a sandbox is called, which owns a pod's network and is none of its containers: cAdvisor's word.
const SANDBOX: &str = "POD";

/// The label `container`: the name, in a pod that which it has there.
pub fn name_of(container: &Container) -> &str {
    match &container.pod {
        Some(pod) => pod.container.as_deref().unwrap_or(SANDBOX),
        None => &container.name,
    }
}

/// The labels of a metric that [`Labels`] and [`with_label`] have made: names and values, in their order.
pub fn labels(metric: &Metric) -> Vec<(String, String)> {
    let mut labels = Vec::new();
    for pair in metric.get_label() {
        let mut rest = pair.name();
        // All but the last are in the name, as [`Labels::new`] has written them.
        while let Some((name, quoted)) = rest.split_once("=\"") {
            let (value, after) = unescape(quoted);
            labels.push((name.to_owned(), value));
            rest = after.strip_prefix(',').unwrap_or(after);
        }
        labels.push((rest.to_owned(), pair.value().to_owned()));
    }
    labels
}

/// Up to the quote that ends it, and what is behind that.
fn unescape(quoted: &str) -> (String, &str) {
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            _ => value.push(character),
        }
    }
    (value, "")
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_read_back_as_they_were() {
        for odd in ["", "a\"b", "a\\", "\\\"", "x=\"y\",z=\"", "ü,=", "a\",b=\"c"] {
            let metric = Labels::new(["one", "two", "three"], [odd, "2", odd]).metric();
            let metric = with_label(&metric, "four", odd);
            let wanted = [("one", odd), ("two", "2"), ("three", odd), ("four", odd)];
            assert_eq!(
                labels(&metric),
                wanted.map(|(name, value)| (name.to_owned(), value.to_owned())),
                "{odd}"
            );
        }
        assert!(labels(&Labels::default().metric()).is_empty());
    }
}
