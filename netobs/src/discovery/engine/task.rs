//! One engine, for as long as the program runs: connect, list, follow the events, and again.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use bollard::{
    API_DEFAULT_VERSION, ClientVersion, Docker,
    errors::Error,
    models::{ContainerInspectResponse, EventMessage, EventMessageTypeEnum},
    query_parameters::{EventsOptions, InspectContainerOptions, ListContainersOptions, ListNetworksOptions},
};
use futures_util::{
    StreamExt as _,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use tokio::{
    net::UnixStream,
    sync::mpsc,
    time::{Instant, interval_at},
};

use super::{
    convert, cri,
    libpod::Libpod,
    names::{Api, Kind, Names},
    reporter::{Closed, Follow, Reporter, again_and_again},
};
use crate::model::{ContainerInfo, ContainerState, NetworkInfo, Update};

/// An answer that takes longer is none.
pub const REQUEST_TIMEOUT_SECONDS: u64 = 10;

/// How often it is looked whether the socket is still the same one.
pub(super) const SOCKET_PAUSE: Duration = Duration::from_secs(2);

/// Containers that are inspected at a time.
pub(super) const INSPECT_AT_ONCE: usize = 8;

/// How often Podman is asked for its networks: it has no events for those that are made and removed.
const NETWORKS_PAUSE: Duration = Duration::from_secs(5);

/// An engine to follow.
#[derive(Clone, Debug)]
pub struct EngineTask {
    /// What containers and status lines are labelled with: its kind, as its socket's path has it until it
    /// answers.
    pub name: String,
    pub socket: PathBuf,
    pub(super) api: Api,
    /// Nobody has named it: that who listens there has no such API is no problem.
    pub(super) found: bool,
    pub(super) names: Names,
}

impl EngineTask {
    /// Tells it from other engines, whatever it is called.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket.display())
    }

    /// Follows the engine until nobody listens. It may come, go and restart at any time.
    pub async fn run(self, updates: mpsc::Sender<Update>) {
        match self.api {
            Api::Docker => again_and_again(Follower::new(self, updates)).await,
            Api::Cri => cri::run(self, updates).await,
        }
    }
}

struct Follower {
    reporter: Reporter,
    /// Podman's own API, where the engine has it.
    libpod: Option<Libpod>,
    /// Containers as last told; bounded by what the engine has.
    known: BTreeMap<String, ContainerInfo>,
    /// As last told.
    networks: Vec<NetworkInfo>,
}

impl Follow for Follower {
    async fn follow(&mut self) -> Result<bool, Closed> {
        let socket = identity(&self.reporter.task.socket);
        let (docker, version) = match self.connect().await {
            Ok(connected) => connected,
            Err(problem) => return self.reporter.disconnected(problem).await.map(|()| false),
        };
        // Before listing, so that nothing falls between. The request is sent at the first poll.
        let mut events = Box::pin(docker.events(Some(EventsOptions::default())));
        let mut early = Vec::new();
        let (engine, libpod) = (self.reporter.task.name.clone(), self.libpod.clone());
        let mut listing = Box::pin(list(&engine, &docker, libpod.as_ref()));
        let listed = loop {
            tokio::select! {
                biased;
                event = events.next() => match event {
                    Some(Ok(event)) => early.push(event),
                    Some(Err(error)) => break Err(error.to_string()),
                    None => break Err("the engine ended the stream of events".to_owned()),
                },
                listed = &mut listing => break listed,
            }
        };
        drop(listing);
        let Listing { networks, containers, unanswered } = match listed {
            Ok(listed) => listed,
            Err(problem) => return self.reporter.disconnected(problem).await.map(|()| false),
        };
        self.reporter.connected(version).await?;
        let mut inspections = Inspections::new(docker.clone());
        let mut known: BTreeMap<_, _> = containers.into_iter().map(|info| (info.id.clone(), info)).collect();
        for summary in unanswered {
            inspections.failed.push_back(summary.id.clone());
            let known_before = self.known.remove(&summary.id);
            let info = convert::listed(summary, known_before);
            known.insert(info.id.clone(), info);
        }
        self.known = known;
        self.networks.clone_from(&networks);
        self.reporter.tell(Update::Networks { engine: engine.clone(), networks }).await?;
        let containers = self.known.values().cloned().collect();
        self.reporter.tell(Update::Containers { engine, containers }).await?;
        let mut look_again = interval_at(Instant::now() + NETWORKS_PAUSE, NETWORKS_PAUSE);
        for event in early {
            self.event(&docker, event, &mut inspections).await?;
        }
        let mut socket_checks = tokio::time::interval(SOCKET_PAUSE);
        loop {
            tokio::select! {
                _ = socket_checks.tick() => {
                    if identity(&self.reporter.task.socket) != socket {
                        self.reporter.disconnected("its socket was replaced".to_owned()).await?;
                        return Ok(true);
                    }
                    inspections.ask_again();
                }
                Some((id, answer)) = inspections.next() => self.inspected(&docker, &id, answer).await?,
                _ = look_again.tick(), if self.libpod.is_some() => self.list_networks(&docker).await?,
                event = events.next() => match event {
                    Some(Ok(event)) => self.event(&docker, event, &mut inspections).await?,
                    Some(Err(error)) => {
                        self.reporter.disconnected(error.to_string()).await?;
                        return Ok(true);
                    }
                    None => {
                        self.reporter.disconnected("the engine ended the stream of events".to_owned()).await?;
                        return Ok(true);
                    }
                },
                () = self.reporter.closed() => return Err(Closed),
            }
        }
    }
}

impl Follower {
    const fn new(task: EngineTask, updates: mpsc::Sender<Update>) -> Self {
        let reporter = Reporter::new(task, updates);
        Self { reporter, libpod: None, known: BTreeMap::new(), networks: Vec::new() }
    }

    /// A client for an engine that is there and its version, or what to do.
    async fn connect(&mut self) -> Result<(Docker, Option<String>), String> {
        let socket = &self.reporter.task.socket;
        // The client would only say that it could not; the system says why.
        UnixStream::connect(socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => format!("no socket at {}", socket.display()),
            io::ErrorKind::PermissionDenied => {
                format!("{}: permission denied; run as root or join the group that owns it", socket.display())
            }
            _ => format!("{}: {error}", socket.display()),
        })?;
        let path = socket.to_str().ok_or_else(|| "the socket's path is not UTF-8".to_owned())?;
        self.libpod = Libpod::find(socket).await.map_err(|error| format!("{}: {error}", socket.display()))?;
        let kind = if self.libpod.is_some() { Kind::Podman } else { Kind::Docker };
        self.reporter.task.name = self.reporter.task.names.of(socket, kind);
        let client = |version: &ClientVersion| {
            Docker::connect_with_unix(path, REQUEST_TIMEOUT_SECONDS, version)
                .map_err(|error| error.to_string())
        };
        if let Some(libpod) = &self.libpod {
            let docker = client(libpod.docker_api.as_ref().unwrap_or(API_DEFAULT_VERSION))?;
            return Ok((docker, Some(libpod.version.clone())));
        }
        let docker = client(API_DEFAULT_VERSION)?.negotiate_version().await;
        let docker = docker.map_err(|error| format!("{}: {error}", socket.display()))?;
        let version = docker.version().await.map_err(|error| error.to_string())?.version;
        Ok((docker, version))
    }

    /// Tells what the event itself says, and has the container asked for beside further events: a hundred
    /// containers that start at once don't wait for each other's answers.
    async fn event(
        &mut self,
        docker: &Docker,
        event: EventMessage,
        inspections: &mut Inspections,
    ) -> Result<(), Closed> {
        let actor = event.actor.unwrap_or_default();
        let (Some(id), Some(action)) = (actor.id, event.action) else { return Ok(()) };
        let attributes = actor.attributes.unwrap_or_default();
        match event.typ {
            Some(EventMessageTypeEnum::CONTAINER) => match action.as_str() {
                "destroy" | "remove" => {
                    inspections.forget(&id);
                    self.known.remove(&id);
                    self.reporter.tell(Update::Removed { id }).await
                }
                "create" | "start" | "restart" | "unpause" | "pause" | "die" | "died" | "stop" | "rename" => {
                    if !self.known.contains_key(&id) {
                        // It may be gone before it can be asked.
                        let info = convert::from_event(&self.reporter.task.name, &id, &attributes);
                        self.know(info).await?;
                    }
                    if matches!(action.as_str(), "die" | "died" | "stop") {
                        self.ended(&id).await?;
                    }
                    inspections.ask(id);
                    Ok(())
                }
                _ => Ok(()),
            },
            Some(EventMessageTypeEnum::NETWORK) => match action.as_str() {
                "create" | "destroy" | "remove" => self.list_networks(docker).await,
                "connect" | "disconnect" => {
                    // With Docker the network is who acts, with Podman the container.
                    let container = attributes.get("container").unwrap_or(&id).clone();
                    if !self.known.contains_key(&container) {
                        return Ok(());
                    }
                    inspections.ask(container.clone());
                    if action == "connect" && container != id {
                        let at = when(event.time_nano);
                        return self.reporter.tell(Update::Connected { container, network: id, at }).await;
                    }
                    Ok(())
                }
                _ => Ok(()),
            },
            _ => Ok(()),
        }
    }

    /// Takes in what the engine says of one container; if it is gone, what was known must do.
    async fn inspected(
        &mut self,
        docker: &Docker,
        id: &str,
        answer: Option<ContainerInspectResponse>,
    ) -> Result<(), Closed> {
        match answer.and_then(|answer| convert::container(&self.reporter.task.name, answer)) {
            Some(mut info) if self.known.contains_key(id) => {
                if self.libpod.is_some() && !convert::find_networks(&mut info, &self.networks) {
                    self.list_networks(docker).await?;
                    convert::find_networks(&mut info, &self.networks);
                }
                self.know(info).await
            }
            _ => Ok(()),
        }
    }

    /// Its process is gone, whatever the engine still has to say.
    async fn ended(&mut self, id: &str) -> Result<(), Closed> {
        let Some(known) = self.known.get(id) else { return Ok(()) };
        let info = ContainerInfo { state: ContainerState::Exited, pid: None, ..known.clone() };
        self.know(info).await
    }

    async fn know(&mut self, info: ContainerInfo) -> Result<(), Closed> {
        if self.known.get(&info.id) == Some(&info) {
            return Ok(());
        }
        self.known.insert(info.id.clone(), info.clone());
        self.reporter.tell(Update::Container(info)).await
    }

    async fn list_networks(&mut self, docker: &Docker) -> Result<(), Closed> {
        let engine = self.reporter.task.name.clone();
        // A failure shows in the event stream too, and everything is listed anew then.
        let Ok(networks) = networks(&engine, docker, self.libpod.as_ref()).await else { return Ok(()) };
        if networks == self.networks {
            return Ok(());
        }
        self.networks.clone_from(&networks);
        self.reporter.tell(Update::Networks { engine, networks }).await
    }
}

/// Containers that the engine is being asked for: each by one request at a time, and again if something
/// happened to it meanwhile, so that no older answer comes after a newer one. Bounded by what the engine has.
struct Inspections {
    docker: Docker,
    running: FuturesUnordered<BoxFuture<'static, (String, Answer)>>,
    asked: BTreeSet<String>,
    again: BTreeSet<String>,
    waiting: VecDeque<String>,
    /// Could not be answered for, those of longest ago first.
    failed: VecDeque<String>,
}

impl Inspections {
    fn new(docker: Docker) -> Self {
        Self {
            docker,
            running: FuturesUnordered::new(),
            asked: BTreeSet::new(),
            again: BTreeSet::new(),
            waiting: VecDeque::new(),
            failed: VecDeque::new(),
        }
    }

    fn ask(&mut self, id: String) {
        if self.asked.contains(&id) {
            self.again.insert(id);
        } else if !self.waiting.contains(&id) {
            self.waiting.push_back(id);
        }
        self.start();
    }

    /// Its answer is not wanted any more.
    fn forget(&mut self, id: &str) {
        self.again.remove(id);
        self.failed.retain(|failed| failed != id);
        self.waiting.retain(|waiting| waiting != id);
    }

    /// For some of those that could not be answered for; there is room for others beside them.
    fn ask_again(&mut self) {
        while self.running.len() < INSPECT_AT_ONCE / 2
            && let Some(id) = self.failed.pop_front()
        {
            self.ask(id);
        }
    }

    fn start(&mut self) {
        while self.running.len() < INSPECT_AT_ONCE
            && let Some(id) = self.waiting.pop_front()
        {
            self.asked.insert(id.clone());
            let docker = self.docker.clone();
            self.running.push(Box::pin(async move {
                let answer = inspect(&docker, &id).await;
                (id, answer)
            }));
        }
    }

    /// The next answer; none if it could not be had. Without requests there is none to wait for.
    async fn next(&mut self) -> Option<(String, Option<ContainerInspectResponse>)> {
        let (id, answer) = self.running.next().await?;
        self.asked.remove(&id);
        if self.again.remove(&id) {
            self.waiting.push_back(id.clone());
        } else if matches!(answer, Answer::Failed) {
            self.failed.push_back(id.clone());
        }
        self.start();
        let Answer::Is(answer) = answer else { return Some((id, None)) };
        Some((id, Some(*answer)))
    }
}

/// When something happened by the engine's clock, which is ours.
fn when(time_ns: Option<i64>) -> std::time::Instant {
    let now = std::time::Instant::now();
    let since_epoch = time_ns.and_then(|ns| u64::try_from(ns).ok()).map(Duration::from_nanos);
    let at = since_epoch.and_then(|duration| SystemTime::UNIX_EPOCH.checked_add(duration));
    let age = at.and_then(|at| SystemTime::now().duration_since(at).ok()).unwrap_or_default();
    now.checked_sub(age).unwrap_or(now)
}

/// What tells a socket from another that is put at its path: who listens there may be another engine, while
/// the one that we are connected with lives on. An inode may be used again, but not at the same time.
pub(super) fn identity(socket: &Path) -> Option<(u64, u64, SystemTime)> {
    let metadata = std::fs::metadata(socket).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.modified().ok()?))
}

/// What an engine says of a container.
enum Answer {
    Is(Box<ContainerInspectResponse>),
    /// There is none any more.
    Gone,
    /// It did not answer, or could not: the container may be there.
    Failed,
}

async fn inspect(docker: &Docker, id: &str) -> Answer {
    match docker.inspect_container(id, None::<InspectContainerOptions>).await {
        Ok(answer) => Answer::Is(Box::new(answer)),
        Err(Error::DockerResponseServerError { status_code: 404, .. }) => Answer::Gone,
        Err(error) => {
            tracing::debug!(%error, id, "inspect a container");
            Answer::Failed
        }
    }
}

/// What an engine has, stopped containers included.
struct Listing {
    networks: Vec<NetworkInfo>,
    containers: Vec<ContainerInfo>,
    /// Could not be asked for by themselves; as the list has them.
    unanswered: Vec<ContainerInfo>,
}

async fn list(engine: &str, docker: &Docker, libpod: Option<&Libpod>) -> Result<Listing, String> {
    let networks = networks(engine, docker, libpod).await?;
    let all = ListContainersOptions { all: true, ..ListContainersOptions::default() };
    let all = docker.list_containers(Some(all)).await.map_err(|error| error.to_string())?;
    let summaries = all.into_iter().filter_map(|container| convert::from_summary(engine, container));
    let is_podman = libpod.is_some();
    let mut answers = stream::iter(summaries)
        .map(|summary| async move { (inspect(docker, &summary.id).await, summary) })
        .buffer_unordered(INSPECT_AT_ONCE);
    let (mut containers, mut unanswered) = (Vec::new(), Vec::new());
    while let Some((answer, summary)) = answers.next().await {
        match answer {
            Answer::Is(answer) => containers.extend(convert::container(engine, *answer)),
            // Removed since it was listed.
            Answer::Gone => {}
            Answer::Failed if is_podman => {
                // Its list does not say whose network a container shares, nor the networks' IDs.
                unanswered.push(ContainerInfo { endpoints: Vec::new(), ..summary });
            }
            Answer::Failed => unanswered.push(summary),
        }
    }
    drop(answers);
    if !unanswered.is_empty() {
        tracing::warn!(engine, containers = unanswered.len(), "could not be asked for single containers");
    }
    for info in &mut containers {
        convert::find_networks(info, &networks);
    }
    Ok(Listing { networks, containers, unanswered })
}

async fn networks(
    engine: &str,
    docker: &Docker,
    libpod: Option<&Libpod>,
) -> Result<Vec<NetworkInfo>, String> {
    if let Some(libpod) = libpod.filter(|libpod| libpod.has_networks()) {
        return libpod.networks(engine).await;
    }
    let answer = docker.list_networks(None::<ListNetworksOptions>).await;
    let networks = answer.map_err(|error| error.to_string())?.into_iter();
    Ok(networks.filter_map(|network| convert::network(engine, network)).collect())
}
