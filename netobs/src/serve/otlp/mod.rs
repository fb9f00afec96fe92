//! What is sent to an OpenTelemetry collector: asked for like by any client of the endpoint, made into messages on a
//! thread beside the agent's, and sent by a task for each signal. A collector that is away, slow or refuses costs
//! what waits for it, and nobody else's time.

mod client;
mod config;
mod queue;

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::Write as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use flate2::{Compression, write::GzEncoder};
use tokio::{
    sync::{oneshot, watch},
    task::{JoinHandle, spawn_blocking},
    time::{Interval, MissedTickBehavior, interval_at},
};

pub use self::config::Config;
use self::{
    client::{Client, Outcome},
    config::Target,
    queue::{MOST_BYTES, Queue},
};
use super::{Asker, NewFlows, Request};
use crate::{
    model::snapshot::OtlpHealth,
    output::otlp::{self, FlowLog, Message, Since, Source, Starts},
};

/// Before the next try, after the first failure and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(30);
/// A collector that wishes for a longer pause does not get it.
const AGAIN_WISHED: Duration = Duration::from_secs(300);

/// Conversations of one portion of flow records.
const PORTION: usize = 5000;

/// How long what is left may take at the end.
pub const FLUSH: Duration = Duration::from_secs(1);

/// Since when what is sent has been counted, and how long a flow without packets is one.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub pinned: Option<SystemTime>,
    pub started: SystemTime,
    pub flow_idle: Duration,
}

/// The running export; ends with the runtime.
pub struct Export {
    metrics: Arc<Queue>,
    logs: Option<Arc<Queue>>,
    stop: watch::Sender<bool>,
    maker: JoinHandle<()>,
}

impl Export {
    /// Inside a runtime.
    pub(super) fn start(config: Config, asker: Asker, times: Times) -> Self {
        let start = |target: Target, signal| {
            let queue = Arc::new(Queue::new(MOST_BYTES));
            tokio::spawn(send(Arc::clone(&queue), target, signal));
            queue
        };
        let gzip = (config.metrics.gzip, config.logs.as_ref().is_some_and(|logs| logs.gzip));
        let metrics = start(config.metrics, "metrics");
        let logs = config.logs.map(|logs| start(logs, "logs"));
        let since = Since { pinned: times.pinned.unwrap_or(times.started), started: times.started };
        let maker = Maker {
            asker,
            source: Arc::new(config.source),
            metrics: (Arc::clone(&metrics), gzip.0),
            logs: logs.clone().map(|logs| (logs, gzip.1)),
            starts: Some(Starts::new(since)),
            told: Some(FlowLog::new(times.flow_idle)),
        };
        let (stop, stopped) = watch::channel(false);
        // Each flow is looked at twice, at least, while it is idle: so none goes untold.
        let flows = config.interval.min(times.flow_idle / 2);
        let maker = tokio::spawn(maker.run(config.interval, flows, stopped));
        Self { metrics, logs, stop, maker }
    }

    pub fn health(&self) -> OtlpHealth {
        queue::health(&self.metrics, self.logs.as_deref())
    }

    /// Once more all that there is, and then no more.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
    }

    /// After [`Self::stop`]: all is made.
    pub async fn made(&mut self) {
        if !self.maker.is_finished() {
            let _ = (&mut self.maker).await;
        }
    }

    /// Nothing waits any more.
    pub async fn sent(&self) {
        while !self.metrics.is_empty() || self.logs.as_ref().is_some_and(|logs| !logs.is_empty()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Makes messages.
struct Maker {
    asker: Asker,
    source: Arc<Source>,
    /// With whether messages are compressed.
    metrics: (Arc<Queue>, bool),
    logs: Option<(Arc<Queue>, bool)>,
    /// None: a thread has it.
    starts: Option<Starts>,
    told: Option<FlowLog>,
}

impl Maker {
    async fn run(mut self, metrics: Duration, flows: Duration, mut stopped: watch::Receiver<bool>) {
        let (mut metrics, mut flows) = (every(metrics), every(flows));
        loop {
            let made = tokio::select! {
                _ = metrics.tick() => self.make_metrics().await,
                _ = flows.tick(), if self.logs.is_some() => self.make_flows().await,
                _ = stopped.changed() => break,
            };
            if let Err(error) = made {
                tracing::error!(error = format!("{error:#}"), "make OTLP messages");
            }
        }
        for made in [self.make_metrics().await, self.make_flows().await] {
            if let Err(error) = made {
                tracing::debug!(error = format!("{error:#}"), "make the last OTLP messages");
            }
        }
    }

    async fn make_metrics(&mut self) -> anyhow::Result<()> {
        let (answer, answered) = oneshot::channel();
        self.asker.0.send(Request::Snapshot(answer)).await.context("the agent is ending")?;
        let sample = answered.await.context("the agent is ending")?;
        let mut starts = self.starts.take().context("series are with a thread that has ended")?;
        let (source, gzip) = (Arc::clone(&self.source), self.metrics.1);
        let (starts, messages) = spawn_blocking(move || {
            let messages = otlp::metrics(&sample.snapshot, &source, &mut starts);
            (starts, messages.map_err(anyhow::Error::from).and_then(|messages| packed(messages, gzip)))
        })
        .await?;
        self.starts = Some(starts);
        self.metrics.0.add(messages?);
        Ok(())
    }

    async fn make_flows(&mut self) -> anyhow::Result<()> {
        let Some((queue, gzip)) = self.logs.clone() else { return Ok(()) };
        loop {
            let told = self.told.take().context("flows are with a thread that has ended")?;
            let (answer, answered) = oneshot::channel();
            let request = Request::NewFlows(NewFlows { told, limit: PORTION, answer });
            self.asker.0.send(request).await.context("the agent is ending")?;
            let (mut told, conversations, now) = answered.await.context("the agent is ending")?;
            let more = conversations.more;
            let source = Arc::clone(&self.source);
            let (told, messages) = spawn_blocking(move || {
                let messages = otlp::flows(&conversations, now, &source, &mut told);
                if more == 0 {
                    told.forget(now);
                }
                (told, packed(messages, gzip))
            })
            .await?;
            self.told = Some(told);
            queue.add(messages?);
            if more == 0 {
                return Ok(());
            }
        }
    }
}

/// The first after one period.
fn every(period: Duration) -> Interval {
    let mut every = interval_at(tokio::time::Instant::now() + period, period);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    every
}

fn packed(mut messages: Vec<Message>, gzip: bool) -> anyhow::Result<Vec<Message>> {
    for message in messages.iter_mut().filter(|_| gzip) {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&message.body)?;
        message.body = encoder.finish()?.into();
    }
    Ok(messages)
}

/// Sends what waits, one after the other.
async fn send(queue: Arc<Queue>, target: Target, signal: &'static str) {
    let mut client = Client::default();
    let mut pause = AGAIN_FIRST;
    let mut trouble = false;
    loop {
        let message = queue.next().await;
        let outcome = client.post(&target, message.body.clone()).await;
        // The same again is not said again.
        let say = |why: &str, what| {
            if !trouble {
                tracing::warn!(endpoint = %target.uri, signal, why, "{what}");
            }
        };
        match outcome {
            Outcome::Taken { rejected, why } => {
                queue.backlog().taken(rejected);
                if rejected > 0 {
                    say(&why, "the OTLP collector rejects a part; it is counted in netobs_otlp_lost_total");
                } else if trouble {
                    let lost = queue.backlog().lost();
                    tracing::info!(endpoint = %target.uri, signal, lost, "the OTLP collector takes all again");
                }
                (trouble, pause) = (rejected > 0, AGAIN_FIRST);
                if queue.is_empty() {
                    client.rest();
                }
            }
            Outcome::Refused(why) => {
                queue.backlog().refused();
                say(&why, "the OTLP collector refuses; what is lost is counted in netobs_otlp_lost_total");
                trouble = true;
            }
            Outcome::Failed { why, after } => {
                queue.backlog().failed(message);
                say(
                    &why,
                    "the OTLP collector does not take what is sent; 16 MiB wait, and what is lost is counted",
                );
                trouble = true;
                let wished = after.unwrap_or_default().min(AGAIN_WISHED);
                tokio::time::sleep(wished.max(jittered(pause))).await;
                pause = (pause * 2).min(AGAIN_LAST);
            }
        }
    }
}

/// Half to all of it, so that the agents of a cluster do not come back all at once.
fn jittered(pause: Duration) -> Duration {
    let share = RandomState::new().build_hasher().finish() % 512;
    pause / 2 + pause * share as u32 / 1024
}
