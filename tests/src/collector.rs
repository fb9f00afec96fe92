//! A stand-in for an OpenTelemetry collector: real HTTP, real protobuf, and the troubles that collectors have.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::{
        logs::v1::ExportLogsServiceRequest,
        metrics::v1::{
            ExportMetricsPartialSuccess, ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        },
    },
    common::v1::{KeyValue, any_value::Value},
    metrics::v1::{metric::Data, number_data_point},
};
use prost::Message as _;

use crate::netns::Netns;

pub const PORT: u16 = 4318;

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Takes,
    /// Says that it does, and does not look.
    Blind,
    /// Answers with this status, and takes nothing.
    Answers(u16),
    /// Takes all but so many of a request's items.
    Rejects(u64),
    /// Reads it, and says nothing.
    Silent,
    /// Closes the connection after some of the body.
    Cuts,
}

/// Attributes with their values as text.
pub type Attributes = BTreeMap<String, String>;

/// A number of a sum or a gauge.
#[derive(Clone, Debug)]
pub struct Point {
    pub metric: String,
    pub attributes: Attributes,
    pub start: u64,
    pub time: u64,
    pub value: i64,
    /// Of a cumulative sum that only grows.
    pub is_counter: bool,
}

#[derive(Clone, Debug)]
pub struct Record {
    pub event: String,
    pub body: String,
    pub attributes: Attributes,
}

/// What it has taken, and been asked to take.
#[derive(Default)]
pub struct Taken {
    pub points: Vec<Point>,
    /// All kinds, histograms too.
    pub data_points: u64,
    pub records: Vec<Record>,
    pub resource: Attributes,
    /// Head of the last request, in lower case.
    pub head: String,
    pub requests: u64,
    /// Items of requests that it has answered with a status that says never to come again.
    pub refused: u64,
    pub rejected: u64,
}

pub struct Collector {
    taken: Arc<Mutex<Taken>>,
    mood: Arc<Mutex<Mood>>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Collector {
    /// On the loopback interface of a namespace.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn start(host: &Netns) -> Self {
        let listener = host.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).expect("listen"));
        listener.set_nonblocking(true).expect("non-blocking");
        let (taken, mood) = (Arc::<Mutex<Taken>>::default(), Arc::new(Mutex::new(Mood::Takes)));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (taken, mood, stop) = (Arc::clone(&taken), Arc::clone(&mood), Arc::clone(&stop));
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            let (taken, mood, stop) =
                                (Arc::clone(&taken), Arc::clone(&mood), Arc::clone(&stop));
                            std::thread::spawn(move || converse(&stream, &taken, &mood, &stop));
                        }
                        Err(_) => std::thread::sleep(Duration::from_millis(5)),
                    }
                }
            })
        };
        Self { taken, mood, stop, listener: Some(thread) }
    }

    /// From the next request on.
    ///
    /// # Panics
    /// If a thread has.
    pub fn is(&self, mood: Mood) {
        *self.mood.lock().expect("no panic elsewhere") = mood;
    }

    /// # Panics
    /// If a thread has.
    pub fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().expect("no panic elsewhere")
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Taken {
    /// The newest point of a metric whose attributes have all of these.
    pub fn newest(&self, metric: &str, attributes: &[(&str, &str)]) -> Option<&Point> {
        self.points.iter().rev().find(|point| {
            let has =
                |(key, value): &(&str, &str)| point.attributes.get(*key).is_some_and(|found| found == value);
            point.metric == metric && attributes.iter().all(has)
        })
    }
}

/// One connection, to its end.
fn converse(stream: &TcpStream, taken: &Mutex<Taken>, mood: &Mutex<Mood>, stop: &AtomicBool) {
    let _ = stream.set_nonblocking(false);
    let mut reader = BufReader::new(stream);
    while let Some((head, length)) = head(&mut reader) {
        let mood = *mood.lock().expect("no panic elsewhere");
        if mood == Mood::Cuts {
            let mut some = vec![0; length / 2];
            let _ = reader.read_exact(&mut some);
            let _ = stream.shutdown(std::net::Shutdown::Both);
            return;
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        if head.contains("content-encoding: gzip") {
            let mut plain = Vec::new();
            flate2::read::GzDecoder::new(&body[..]).read_to_end(&mut plain).expect("gzip");
            body = plain;
        }
        if mood == Mood::Silent {
            while !stop.load(Ordering::Relaxed) && stream.peek(&mut [0]).is_ok_and(|bytes| bytes > 0) {
                std::thread::sleep(Duration::from_millis(10));
            }
            return;
        }
        let mut taken = taken.lock().expect("no panic elsewhere");
        taken.requests += 1;
        let items = if mood == Mood::Blind {
            0
        } else {
            take(&mut taken, &head, &body, matches!(mood, Mood::Takes | Mood::Rejects(_)))
        };
        let (status, answer) = match mood {
            Mood::Answers(status) => {
                // Others are tried again.
                if ![429, 502, 503, 504].contains(&status) {
                    taken.refused += items;
                }
                (status, Vec::new())
            }
            Mood::Rejects(count) => {
                taken.rejected += count;
                let partial = ExportMetricsPartialSuccess {
                    rejected_data_points: count as i64,
                    error_message: "too old".to_owned(),
                };
                (200, ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec())
            }
            _ => (200, Vec::new()),
        };
        drop(taken);
        let mut writer = stream;
        let head = format!("HTTP/1.1 {status} as told\r\nContent-Length: {}\r\n\r\n", answer.len());
        if writer.write_all(&[head.as_bytes(), &answer].concat()).is_err() {
            return;
        }
    }
}

/// In lower case, and how long the body is.
fn head(reader: &mut impl BufRead) -> Option<(String, usize)> {
    let mut head = String::new();
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        if head[before..].trim().is_empty() {
            break;
        }
    }
    let head = head.to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    Some((head, length.unwrap_or(0)))
}

/// How many items there are in it.
fn take(taken: &mut Taken, head: &str, body: &[u8], keep: bool) -> u64 {
    taken.head = head.to_owned();
    if head.starts_with("post /v1/logs ") {
        let request = ExportLogsServiceRequest::decode(body).expect("protobuf of logs");
        let mut items = 0;
        for resource in request.resource_logs {
            for record in resource.scope_logs.into_iter().flat_map(|scope| scope.log_records) {
                items += 1;
                if keep {
                    let body = record.body.and_then(|body| body.value);
                    taken.records.push(Record {
                        event: record.event_name,
                        body: body.map(|body| shown(&body)).unwrap_or_default(),
                        attributes: attributes(&record.attributes),
                    });
                }
            }
        }
        return items;
    }
    assert!(head.starts_with("post /v1/metrics "), "{head}");
    let request = ExportMetricsServiceRequest::decode(body).expect("protobuf of metrics");
    let mut items = 0;
    for resource in request.resource_metrics {
        taken.resource = attributes(&resource.resource.expect("a resource").attributes);
        for metric in resource.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            let (points, is_counter) = match metric.data.expect("data") {
                Data::Sum(sum) => (sum.data_points, sum.is_monotonic && sum.aggregation_temporality == 2),
                Data::Gauge(gauge) => (gauge.data_points, false),
                Data::Histogram(histogram) => {
                    items += histogram.data_points.len() as u64;
                    continue;
                }
                other => panic!("{other:?}"),
            };
            items += points.len() as u64;
            if !keep {
                continue;
            }
            for point in points {
                let Some(number_data_point::Value::AsInt(value)) = point.value else { panic!("{point:?}") };
                taken.points.push(Point {
                    metric: metric.name.clone(),
                    attributes: attributes(&point.attributes),
                    start: point.start_time_unix_nano,
                    time: point.time_unix_nano,
                    value,
                    is_counter,
                });
            }
        }
    }
    taken.data_points += if keep { items } else { 0 };
    items
}

fn attributes(attributes: &[KeyValue]) -> Attributes {
    let value = |one: &KeyValue| one.value.as_ref().and_then(|value| value.value.as_ref()).map(shown);
    attributes.iter().map(|one| (one.key.clone(), value(one).unwrap_or_default())).collect()
}

fn shown(value: &Value) -> String {
    match value {
        Value::StringValue(text) => text.clone(),
        Value::IntValue(number) => number.to_string(),
        other => panic!("{other:?}"),
    }
}
