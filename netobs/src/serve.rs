//! `netobs agent`: the counters over HTTP.

use std::{io::Write as _, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::{BufMut as _, BytesMut, buf::Writer};
use serde::Deserialize;
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use crate::{
    cli::AgentArgs,
    model::{
        Snapshot,
        conversation::{Conversation, Conversations},
    },
    observe,
    output::{
        self, json, prometheus,
        topology::{self, Topology},
    },
};

/// Requests that may wait for a sample; more are turned away.
const REQUEST_QUEUE: usize = 64;

/// How long open connections may still take after the signal to end.
const LINGER: Duration = Duration::from_millis(200);

/// Asks the loop that owns the agent for a fresh snapshot.
#[derive(Clone)]
struct Asker(mpsc::Sender<Request>);

enum Request {
    Snapshot(oneshot::Sender<Arc<Snapshot>>),
    Flows { container: Option<String>, limit: usize, answer: oneshot::Sender<Conversations> },
    Ready(oneshot::Sender<bool>),
}

/// What `/api/v1/flows` may be asked.
#[derive(Deserialize)]
struct FlowsQuery {
    /// Only flows of this container, by name or the beginning of its ID.
    container: Option<String>,
    limit: Option<usize>,
}

/// Flows in one answer, if not asked otherwise.
const FLOWS: usize = 1000;

/// # Errors
/// Without privileges, or when the address is taken.
pub fn run(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    observe::runtime()?.block_on(async {
        // First, so that two agents don't both attach before one finds that it is not alone.
        let listener = TcpListener::bind(args.listen)
            .await
            .with_context(|| format!("listen on {}; --listen takes another address", args.listen))?;
        let mut ending = observe::Ending::new()?;
        let drops = (!args.no_drops).then(|| observe::drop_options(&args.drops, false));
        let mut agent = observe::start(&args.observe, None, drops, Some(&args.events))?;
        observe::look_at_tcp(&mut agent, &args.tcp, &args.observe, &args.drops.btf);
        let address = listener.local_addr()?;
        tracing::info!(%address, interfaces = agent.attached(), "serving");
        let (asker, mut requests) = mpsc::channel(REQUEST_QUEUE);
        let (stop, stopped) = oneshot::channel::<()>();
        let server = tokio::spawn(serve(listener, Asker(asker), stopped));
        loop {
            tokio::select! {
                () = agent.changed() => {}
                request = requests.recv() => match request {
                    // The asker may have gone away meanwhile.
                    Some(Request::Snapshot(answer)) => drop(answer.send(Arc::new(agent.sample()))),
                    Some(Request::Flows { container, limit, answer }) => {
                        let keep = |flow: &Conversation| {
                            container.as_ref().is_none_or(|container| flow.is_of(container))
                        };
                        drop(answer.send(agent.flows(keep, limit)));
                    }
                    Some(Request::Ready(answer)) => drop(answer.send(agent.settled())),
                    None => break,
                },
                () = ending.wished() => break,
            }
        }
        // The programs first: that is what must not be left behind.
        drop(agent);
        let _ = stop.send(());
        let _ = tokio::time::timeout(LINGER, server).await;
        Ok(ExitCode::SUCCESS)
    })
}

async fn serve(listener: TcpListener, asker: Asker, stopped: oneshot::Receiver<()>) {
    let served = axum::serve(listener, router(asker)).with_graceful_shutdown(async {
        let _ = stopped.await;
    });
    if let Err(error) = served.await {
        tracing::error!(%error, "the HTTP server ended");
    }
}

fn router(asker: Asker) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(metrics))
        .route("/metrics/cadvisor", get(cadvisor))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/snapshot", get(snapshot))
        .route("/api/v1/flows", get(flows))
        .route("/api/v1/topology", get(topology))
        .route("/api/v1/drops", get(drops))
        .with_state(asker)
}

async fn index() -> &'static str {
    "netobs\n\n/metrics\n/metrics/cadvisor\n/healthz\n/readyz\n/api/v1/snapshot\n/api/v1/flows\n/api/v1/topology\n/api/v1/drops\n"
}

async fn metrics(State(asker): State<Asker>) -> Response {
    with_snapshot(asker, prometheus::CONTENT_TYPE, prometheus::write).await
}

async fn cadvisor(State(asker): State<Asker>) -> Response {
    with_snapshot(asker, prometheus::CONTENT_TYPE, prometheus::write_cadvisor).await
}

async fn snapshot(State(asker): State<Asker>) -> Response {
    with_snapshot(asker, "application/json", |snapshot, to| -> anyhow::Result<()> {
        Ok(to.write_all(json::line(snapshot)?.as_bytes())?)
    })
    .await
}

async fn topology(State(asker): State<Asker>) -> Response {
    with_snapshot(asker, "application/json", |snapshot, to| -> anyhow::Result<()> {
        Ok(to.write_all(topology::json(&Topology::of(snapshot))?.as_bytes())?)
    })
    .await
}

async fn flows(State(asker): State<Asker>, Query(query): Query<FlowsQuery>) -> Response {
    let (answer, answered) = oneshot::channel();
    let limit = query.limit.unwrap_or(FLOWS);
    if asker.0.try_send(Request::Flows { container: query.container, limit, answer }).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting\n").into_response();
    }
    let Ok(conversations) = answered.await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    match output::flows::json(&conversations) {
        Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode flows");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

async fn drops(State(asker): State<Asker>) -> Response {
    with_snapshot(asker, "application/json", |snapshot, to| -> anyhow::Result<()> {
        Ok(to.write_all(output::drops::json(snapshot)?.as_bytes())?)
    })
    .await
}

async fn ready(State(asker): State<Asker>) -> Response {
    let (answer, answered) = oneshot::channel();
    if asker.0.try_send(Request::Ready(answer)).is_err() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    match answered.await {
        Ok(true) => "ready\n".into_response(),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the container engines\n").into_response(),
    }
}

async fn with_snapshot<E: std::fmt::Display>(
    asker: Asker,
    content_type: &'static str,
    encode: impl FnOnce(&Snapshot, &mut Writer<BytesMut>) -> Result<(), E>,
) -> Response {
    let (answer, answered) = oneshot::channel();
    if asker.0.try_send(Request::Snapshot(answer)).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting\n").into_response();
    }
    let Ok(snapshot) = answered.await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut body = BytesMut::new().writer();
    match encode(&snapshot, &mut body) {
        Ok(()) => ([(header::CONTENT_TYPE, content_type)], body.into_inner().freeze()).into_response(),
        Err(error) => {
            tracing::error!(%error, "encode a snapshot");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_full_queue_turns_requests_away() {
        let (sender, _receiver) = mpsc::channel(1);
        let asker = Asker(sender);
        let (waiting, _answer) = oneshot::channel();
        assert!(asker.0.try_send(Request::Snapshot(waiting)).is_ok());
        let response = snapshot(State(asker)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
