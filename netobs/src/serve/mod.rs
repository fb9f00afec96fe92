//! `netobs agent`: the counters over HTTP.

mod auth;
mod connections;
mod local;
mod otlp;
mod tls;
pub mod web;

use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    process::ExitCode,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::{Query, State},
    http::{HeaderMap, HeaderValue, Request as HttpRequest, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::{BufMut as _, Bytes, BytesMut};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::sys::socket::{setsockopt, sockopt::SndBuf};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tower::ServiceExt as _;

use self::{
    auth::Guard,
    connections::{Admitted, Connections, MAX_CONNECTIONS, Watched, most_connections},
    otlp::{Export, Times},
    web::{Settings, Web},
};
use crate::{
    agent::Agent,
    cli::AgentArgs,
    ebpf::pins,
    model::{
        Snapshot,
        conversation::{Conversation, Conversations},
        snapshot::{HttpHealth, OtlpHealth},
    },
    observe,
    output::{
        self, json,
        otlp::FlowLog,
        prometheus,
        topology::{self, Topology},
    },
};

/// Requests that may wait for a sample: one for each connection. More are turned away.
const REQUEST_QUEUE: usize = MAX_CONNECTIONS;
/// Time between two samples: who asks meanwhile gets the next one, together with all others who do.
const REST: Duration = Duration::from_millis(50);

/// How long open connections may still take after the signal to end.
const LINGER: Duration = Duration::from_millis(200);

/// A request's head: bytes and lines.
const MAX_HEAD_BYTES: usize = 16 << 10;
const MAX_HEADERS: usize = 64;

/// What the kernel keeps of an answer that is not taken; by itself it would let it grow to some MiB a connection.
const SEND_BUFFER_BYTES: usize = 256 << 10;

/// How often connections are looked at for those that take too long.
const SWEEP: Duration = Duration::from_secs(1);
/// Before another try when a connection could not be accepted.
const ACCEPT_AGAIN: Duration = Duration::from_millis(20);

/// Asks the loop that owns the agent for a fresh snapshot.
#[derive(Clone)]
struct Asker(mpsc::Sender<Request>);

enum Request {
    Snapshot(oneshot::Sender<Arc<Sample>>),
    Flows(FlowsRequest),
    NewFlows(NewFlows),
    Ready(oneshot::Sender<bool>),
}

/// Which flows are asked for.
enum Whose {
    All,
    /// A container's, by name or the beginning of its ID.
    Of(String),
    /// By whole IDs.
    Ids(BTreeSet<String>),
}

impl Whose {
    fn includes(&self, flow: &Conversation) -> bool {
        match self {
            Self::All => true,
            Self::Of(container) => flow.is_of(container),
            Self::Ids(ids) => flow.is_of_any(ids),
        }
    }
}

struct FlowsRequest {
    whose: Whose,
    limit: usize,
    answer: oneshot::Sender<Conversations>,
}

/// Asks for conversations that have something to tell that is not told yet.
struct NewFlows {
    told: FlowLog,
    limit: usize,
    /// With the time when they were taken.
    answer: oneshot::Sender<(FlowLog, Conversations, std::time::Instant)>,
}

/// A snapshot, and what was made of it for those who asked at the same time.
struct Sample {
    snapshot: Snapshot,
    documents: [OnceLock<Bytes>; Document::COUNT],
}

/// What is made of a snapshot.
#[derive(Clone, Copy)]
enum Document {
    Metrics,
    Cadvisor,
    Snapshot,
    Topology,
    Drops,
}

impl Document {
    const COUNT: usize = Self::Drops as usize + 1;

    const fn content_type(self) -> &'static str {
        match self {
            Self::Metrics | Self::Cadvisor => prometheus::CONTENT_TYPE,
            Self::Snapshot | Self::Topology | Self::Drops => "application/json",
        }
    }

    fn of(self, snapshot: &Snapshot) -> anyhow::Result<Bytes> {
        let mut text = BytesMut::new().writer();
        match self {
            Self::Metrics => prometheus::write(snapshot, &mut text)?,
            Self::Cadvisor => prometheus::write_cadvisor(snapshot, &mut text)?,
            Self::Snapshot => return Ok(json::line(snapshot)?.into()),
            Self::Topology => return Ok(topology::json(&Topology::of(snapshot))?.into()),
            Self::Drops => return Ok(output::drops::json(snapshot)?.into()),
        }
        Ok(text.into_inner().freeze())
    }
}

/// Who waits for a sample.
#[derive(Default)]
struct Waiting {
    snapshots: Vec<oneshot::Sender<Arc<Sample>>>,
    /// Each wants other flows: one with each sample.
    flows: VecDeque<FlowsRequest>,
    new_flows: Option<NewFlows>,
}

impl Waiting {
    fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.flows.is_empty() && self.new_flows.is_none()
    }

    fn answer(&mut self, agent: &mut Agent, http: HttpHealth, otlp: Option<OtlpHealth>) {
        // Whose connection is gone needs no sample.
        self.snapshots.retain(|asker| !asker.is_closed());
        if !self.snapshots.is_empty() {
            let mut snapshot = agent.sample();
            snapshot.agent.http = Some(http);
            snapshot.agent.otlp = otlp;
            let sample = Arc::new(Sample { snapshot, documents: Default::default() });
            for asker in self.snapshots.drain(..) {
                drop(asker.send(Arc::clone(&sample)));
            }
        }
        self.flows.retain(|asker| !asker.answer.is_closed());
        if let Some(FlowsRequest { whose, limit, answer }) = self.flows.pop_front() {
            drop(answer.send(agent.flows(|flow| whose.includes(flow), limit)));
        }
        if let Some(NewFlows { told, limit, answer }) = self.new_flows.take() {
            let (now, time) = (std::time::Instant::now(), SystemTime::now());
            let conversations = agent.flows(|flow| told.is_new(flow, time, now), limit);
            drop(answer.send((told, conversations, now)));
        }
    }
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

/// And at most, whoever asks: each takes about a kilobyte here, and as much in the answer.
const MOST_FLOWS: usize = 10_000;

/// # Errors
/// Without privileges, when the address is taken, or for a web configuration that cannot be used.
pub fn run(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    let runtime = observe::runtime()?;
    let ended = runtime.block_on(run_inside(args));
    // A look-up of the collector's name may take longer than anybody wants to wait.
    runtime.shutdown_background();
    ended
}

async fn run_inside(args: &AgentArgs) -> anyhow::Result<ExitCode> {
    let web = Web::load(args.web_config_file.clone())?;
    let otlp = otlp::Config::of(&args.otlp, &|name| std::env::var(name).ok()).context("OTLP")?;
    let otlp = otlp.map(|config| config.on_node(observe::node(&args.observe.kubernetes)));
    // First, so that two agents don't both attach before one finds that it is not alone.
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("listen on {}; --listen takes another address", args.listen))?;
    let mut ending = observe::Ending::new()?;
    let drops = (!args.no_drops).then(|| observe::drop_options(&args.drops, false));
    observe::keep_needed_privileges(&args.observe, &web.files())?;
    let pin_folder = args.pin.then_some(args.pin_folder.as_path());
    let started = SystemTime::now();
    let mut agent = observe::start(&args.observe, None, drops, Some(&args.events), pin_folder)?;
    observe::look_at_tcp(&mut agent, &args.tcp, &args.observe, &args.drops.btf);
    let address = listener.local_addr()?;
    let settings = web.settings();
    tracing::info!(%address, tls = settings.tls.is_some(), authentication = settings.users.is_some(),
        interfaces = agent.attached(), "serving");
    let (asker, mut requests) = mpsc::channel(REQUEST_QUEUE);
    let connections = Arc::new(Connections::default());
    let times =
        Times { pinned: pin_folder.and_then(pinned_since), started, flow_idle: args.observe.flow_idle };
    match local::listen() {
        Ok(listener) => drop(tokio::spawn(local::serve(listener, Asker(asker.clone())))),
        Err(error) => tracing::warn!(%error, "`netobs watch` will not read from this agent"),
    }
    let mut export = otlp.map(|config| Export::start(config, Asker(asker.clone()), times));
    let endpoint = Endpoint {
        router: router(Asker(asker)),
        web,
        guard: Guard::new()?,
        connections: Arc::clone(&connections),
    };
    let (stop, stopped) = watch::channel(false);
    let server = tokio::spawn(serve(listener, Arc::new(endpoint), stopped));
    let (mut waiting, mut rested) = (Waiting::default(), Instant::now());
    // When the last is made for the collector, if not sooner.
    let mut leave_at: Option<Instant> = None;
    loop {
        tokio::select! {
            () = agent.changed() => {}
            request = requests.recv() => match request {
                Some(Request::Snapshot(answer)) => waiting.snapshots.push(answer),
                Some(Request::Flows(request)) => waiting.flows.push_back(request),
                Some(Request::NewFlows(request)) => waiting.new_flows = Some(request),
                // The asker may have gone away meanwhile.
                Some(Request::Ready(answer)) => drop(answer.send(agent.settled())),
                None => break,
            },
            () = sleep_until(rested), if !waiting.is_empty() => {
                waiting.answer(&mut agent, connections.health(), export.as_ref().map(Export::health));
                rested = Instant::now() + REST;
            }
            () = ending.wished(), if leave_at.is_none() => match &export {
                Some(export) => {
                    export.stop();
                    leave_at = Some(Instant::now() + otlp::FLUSH);
                }
                None => break,
            },
            () = made(&mut export), if leave_at.is_some() => break,
            () = sleep_until(leave_at.unwrap_or(rested)), if leave_at.is_some() => break,
        }
    }
    // The programs first: that is what must not be left behind.
    drop(agent);
    let _ = stop.send(true);
    let _ = tokio::time::timeout(LINGER, server).await;
    if let (Some(export), Some(leave_at)) = (&export, leave_at) {
        let _ = tokio::time::timeout_at(leave_at, export.sent()).await;
    }
    Ok(ExitCode::SUCCESS)
}

async fn made(export: &mut Option<Export>) {
    if let Some(export) = export {
        export.made().await;
    }
}

/// Since when the counters count that an agent with `--pin` goes on with: the map's file is made with them.
fn pinned_since(folder: &std::path::Path) -> Option<SystemTime> {
    let [(_, counters), ..] = pins::KEPT_MAPS;
    std::fs::metadata(folder.join(counters)).and_then(|file| file.modified()).ok()
}

/// What all connections share.
struct Endpoint {
    router: Router,
    web: Web,
    guard: Guard,
    connections: Arc<Connections>,
}

/// Accepts and answers until it is stopped, and then until the last answer is given.
async fn serve(listener: TcpListener, endpoint: Arc<Endpoint>, mut stopped: watch::Receiver<bool>) {
    let most = most_connections();
    let mut tasks = JoinSet::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, address)) => {
                    let admitted = endpoint.connections.admit(address.ip(), most);
                    tasks.spawn(converse(Arc::clone(&endpoint), socket, admitted, stopped.clone()));
                }
                Err(error) => {
                    // Most likely out of descriptors: one that is closed gives one back.
                    tracing::debug!(%error, "accept a connection");
                    endpoint.connections.make_room();
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            },
            _ = tasks.join_next(), if !tasks.is_empty() => {}
            _ = sweep.tick() => endpoint.connections.sweep(std::time::Instant::now()),
            _ = stopped.changed() => break,
        }
    }
    drop(listener);
    while tasks.join_next().await.is_some() {}
}

/// One connection, from its handshake to its end.
async fn converse(
    endpoint: Arc<Endpoint>,
    socket: TcpStream,
    admitted: Admitted,
    stopped: watch::Receiver<bool>,
) {
    let connection = Arc::clone(&admitted.connection);
    let tls = endpoint.web.settings().tls.clone();
    // An answer is written at once: there is nothing to wait for.
    let _ = socket.set_nodelay(true);
    let _ = setsockopt(&socket, SndBuf, &SEND_BUFFER_BYTES);
    let socket = Watched { socket, connection: Arc::clone(&connection) };
    let talk = async {
        match tls {
            None => answer_all(endpoint, socket, admitted, stopped).await,
            Some(tls) => match tls.accept(socket).await {
                Ok(socket) => answer_all(endpoint, socket, admitted, stopped).await,
                Err(error) => tracing::debug!(%error, "TLS handshake"),
            },
        }
    };
    tokio::select! {
        () = talk => {}
        () = connection.closed() => {}
    }
}

async fn answer_all(
    endpoint: Arc<Endpoint>,
    socket: impl AsyncRead + AsyncWrite + Unpin,
    admitted: Admitted,
    mut stopped: watch::Receiver<bool>,
) {
    admitted.connection.ready();
    let service = service_fn(|request| {
        let (endpoint, admitted) = (&endpoint, &admitted);
        async move {
            admitted.connection.is_taken().await;
            admitted.connection.asked();
            let response = endpoint.answer(request, admitted.connection.network()).await;
            admitted.answered(usize::try_from(response.body().size_hint().lower()).unwrap_or(usize::MAX));
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    let conversation = http1::Builder::new()
        .timer(TokioTimer::new())
        // `Connections` has other limits for a head and between two.
        .header_read_timeout(None)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(conversation);
    let ended = tokio::select! {
        ended = conversation.as_mut() => ended,
        _ = stopped.changed() => {
            conversation.as_mut().graceful_shutdown();
            conversation.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "HTTP");
    }
}

impl Endpoint {
    async fn answer(&self, request: HttpRequest<Incoming>, from: IpAddr) -> Response {
        let settings = self.web.settings();
        // Nothing here takes one; so nothing that follows it is taken for a request.
        let body = has_body(request.headers());
        let mut response = match self.refuse(&settings, request.headers(), from).await {
            Some(refusal) => refusal,
            None if body => (StatusCode::PAYLOAD_TOO_LARGE, "no body is wanted\n").into_response(),
            None => match self.router.clone().oneshot(request.map(Body::new)).await {
                Ok(response) => response,
                Err(never) => match never {},
            },
        };
        if body {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.headers_mut().extend(settings.headers.clone());
        response
    }

    /// Why a request is not answered, before it is looked at what it asks for.
    async fn refuse(&self, settings: &Settings, headers: &HeaderMap, from: IpAddr) -> Option<Response> {
        if !self.web.within_rate(settings, std::time::Instant::now()) {
            return Some((StatusCode::TOO_MANY_REQUESTS, "too many requests\n").into_response());
        }
        let users = settings.users.as_ref()?;
        if self.guard.admits(users, headers, from).await {
            return None;
        }
        let challenge = [(header::WWW_AUTHENTICATE, "Basic realm=\"netobs\", charset=\"UTF-8\"")];
        Some((StatusCode::UNAUTHORIZED, challenge, "unauthorized\n").into_response())
    }
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::TRANSFER_ENCODING)
        || headers.get_all(header::CONTENT_LENGTH).iter().any(|length| length != "0")
}

fn router(asker: Asker) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/metrics", get(|asker| document(asker, Document::Metrics)))
        .route("/metrics/cadvisor", get(|asker| document(asker, Document::Cadvisor)))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/api/v1/snapshot", get(|asker| document(asker, Document::Snapshot)))
        .route("/api/v1/flows", get(flows))
        .route("/api/v1/topology", get(|asker| document(asker, Document::Topology)))
        .route("/api/v1/drops", get(|asker| document(asker, Document::Drops)))
        .with_state(asker)
}

async fn index() -> &'static str {
    "netobs\n\n/metrics\n/metrics/cadvisor\n/healthz\n/readyz\n/api/v1/snapshot\n/api/v1/flows\n/api/v1/topology\n/api/v1/drops\n"
}

async fn flows(State(asker): State<Asker>, Query(query): Query<FlowsQuery>) -> Response {
    let (answer, answered) = oneshot::channel();
    let limit = query.limit.unwrap_or(FLOWS).min(MOST_FLOWS);
    let whose = query.container.map_or(Whose::All, Whose::Of);
    if asker.0.try_send(Request::Flows(FlowsRequest { whose, limit, answer })).is_err() {
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

async fn document(State(asker): State<Asker>, document: Document) -> Response {
    let (answer, answered) = oneshot::channel();
    if asker.0.try_send(Request::Snapshot(answer)).is_err() {
        return (StatusCode::SERVICE_UNAVAILABLE, "too many requests are waiting\n").into_response();
    }
    let Ok(sample) = answered.await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let made = &sample.documents[document as usize];
    let text = match made.get() {
        Some(text) => Ok(text),
        None => document.of(&sample.snapshot).map(|text| made.get_or_init(|| text)),
    };
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, document.content_type())], text.clone()).into_response(),
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "encode a snapshot");
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
        let response = document(State(asker), Document::Snapshot).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
