//! One runtime, for as long as the program runs: connect, list, list again when something has happened.

use std::{collections::BTreeMap, io, time::Duration};

use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::mpsc,
    time::{Instant, interval, sleep_until},
};
use tonic::Code;

use super::{
    Client, convert,
    convert::Detail,
    messages::{Container, PodSandbox},
};
use crate::{
    discovery::engine::{
        names::Kind,
        reporter::{Closed, Follow, Reporter, again_and_again},
        task::{EngineTask, INSPECT_AT_ONCE, SOCKET_PAUSE, identity},
    },
    model::{ContainerInfo, NetworkInfo, Update},
};

/// How often a runtime without events is asked what there is.
const POLL: Duration = Duration::from_millis(500);

/// How often one with events is, all the same: some tell of less than happens.
const POLL_WITH_EVENTS: Duration = Duration::from_secs(10);

/// Events that come within that time are answered by one listing.
const EVENTS_TOGETHER: Duration = Duration::from_millis(50);

/// Follows the runtime until nobody listens. It may come, go and restart at any time.
pub async fn run(task: EngineTask, updates: mpsc::Sender<Update>) {
    again_and_again(Follower {
        reporter: Reporter::new(task, updates),
        known: BTreeMap::new(),
        details: BTreeMap::new(),
        networks: BTreeMap::new(),
        network: None,
    })
    .await;
}

/// All maps are bounded by what the runtime has.
struct Follower {
    reporter: Reporter,
    /// As last told, by ID.
    known: BTreeMap<String, ContainerInfo>,
    /// By ID, with the state that it was listed in.
    details: BTreeMap<String, (i32, Detail)>,
    /// By name: that of today, and those that pods are on.
    networks: BTreeMap<String, NetworkInfo>,
    /// The one that pods are connected with when they start.
    network: Option<String>,
}

/// What there is, as listed.
struct Listing {
    sandboxes: Vec<PodSandbox>,
    containers: Vec<Container>,
}

impl Follow for Follower {
    async fn follow(&mut self) -> Result<bool, Closed> {
        let socket = identity(&self.reporter.task.socket);
        let (client, version) = match self.connect().await {
            Ok(connected) => connected,
            Err(Some(problem)) => return self.reporter.disconnected(problem).await.map(|()| false),
            Err(None) => {
                let endpoint = self.reporter.task.endpoint();
                return self.reporter.tell(Update::NoEngine { endpoint }).await.map(|()| false);
            }
        };
        // Before listing, so that nothing falls between.
        let mut events = client.events();
        let mut has_events = true;
        let infos = match self.list(&client).await {
            Ok(infos) => infos,
            Err(problem) => return self.reporter.disconnected(problem).await.map(|()| false),
        };
        self.reporter.connected(Some(version)).await?;
        self.tell_networks().await?;
        self.known = infos.iter().map(|info| (info.id.clone(), info.clone())).collect();
        let engine = self.reporter.task.name.clone();
        self.reporter.tell(Update::Containers { engine, containers: infos }).await?;
        let mut socket_checks = interval(SOCKET_PAUSE);
        // It has no events until the first says otherwise: whether it will tell, it need not say before.
        let mut next = Instant::now() + POLL;
        let mut pause = POLL;
        loop {
            tokio::select! {
                _ = socket_checks.tick() => if identity(&self.reporter.task.socket) != socket {
                    self.reporter.disconnected("its socket was replaced".to_owned()).await?;
                    return Ok(true);
                },
                event = events.next(), if has_events => match event {
                    Some(Ok(_)) => {
                        pause = POLL_WITH_EVENTS;
                        next = next.min(Instant::now() + EVENTS_TOGETHER);
                    }
                    // The next listing tells if there is more to it.
                    Some(Err(_)) | None => {
                        has_events = false;
                        pause = POLL;
                        next = next.min(Instant::now() + POLL);
                    }
                },
                () = sleep_until(next) => {
                    if let Err(problem) = self.look_again(&client).await? {
                        self.reporter.disconnected(problem).await?;
                        return Ok(true);
                    }
                    next = Instant::now() + pause;
                }
                () = self.reporter.closed() => return Err(Closed),
            }
        }
    }
}

impl Follower {
    /// A client for a runtime that is there and its version, or what to do. None: who listens at a usual socket has
    /// no such interface, as containerd with Docker often has not.
    async fn connect(&mut self) -> Result<(Client, String), Option<String>> {
        let socket = self.reporter.task.socket.clone();
        // One that has been there is missed when it is not.
        let may_be_none = self.reporter.task.found && !self.reporter.has_told();
        let client = Client::connect(&socket).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound if may_be_none => None,
            io::ErrorKind::NotFound => Some(format!("no socket at {}", socket.display())),
            io::ErrorKind::PermissionDenied => {
                Some(format!("{}: permission denied; run as root", socket.display()))
            }
            _ => Some(format!("{}: {error}", socket.display())),
        })?;
        let version = client.version().await.map_err(|status| match status.code() {
            Code::Unimplemented if may_be_none => None,
            Code::Unimplemented => Some(format!("{}: it does not have the CRI", socket.display())),
            _ => Some(format!("{}: {}", socket.display(), status.message())),
        })?;
        self.reporter.task.name =
            self.reporter.task.names.of(&self.reporter.task.socket, Kind::of_runtime(&version.runtime_name));
        Ok((client, convert::version(&version.runtime_version)))
    }

    /// Lists, and tells what is new.
    async fn look_again(&mut self, client: &Client) -> Result<Result<(), String>, Closed> {
        let before = self.networks.clone();
        let infos = match self.list(client).await {
            Ok(infos) => infos,
            Err(problem) => return Ok(Err(problem)),
        };
        if self.networks != before {
            self.tell_networks().await?;
        }
        let known = std::mem::take(&mut self.known);
        self.known = infos.iter().map(|info| (info.id.clone(), info.clone())).collect();
        for info in infos {
            if known.get(&info.id) != Some(&info) {
                self.reporter.tell(Update::Container(info)).await?;
            }
        }
        for id in known.into_keys().filter(|id| !self.known.contains_key(id)).collect::<Vec<_>>() {
            self.reporter.tell(Update::Removed { id }).await?;
        }
        Ok(Ok(()))
    }

    /// Everything there is, sandboxes first. Of what is new or in another state than before, the runtime is asked
    /// for more.
    async fn list(&mut self, client: &Client) -> Result<Vec<ContainerInfo>, String> {
        let sandboxes = client.sandboxes().await.map_err(|status| status.message().to_owned())?.items;
        let containers = client.containers().await.map_err(|status| status.message().to_owned())?.containers;
        let listing = Listing { sandboxes, containers };
        self.ask_for_details(client, &listing).await;
        let detail = |id: &str| self.details.get(id).map(|(_, detail)| detail.clone()).unwrap_or_default();
        let mut pods: BTreeMap<&str, (&PodSandbox, Detail)> = listing
            .sandboxes
            .iter()
            .map(|sandbox| (sandbox.id.as_str(), (sandbox, detail(&sandbox.id))))
            .collect();
        // CRI-O makes no process for a sandbox that needs none: any other of the pod is in the same namespace.
        for container in listing.containers.iter().filter(|container| container.state == 1) {
            if let Some((_, of_pod)) = pods.get_mut(container.pod_sandbox_id.as_str()) {
                of_pod.pid = of_pod.pid.or(detail(&container.id).pid);
            }
        }
        let engine = &self.reporter.task.name;
        let of_today = self.network.as_deref().unwrap_or(convert::UNNAMED_NETWORK);
        let sandboxes = pods.values().map(|(sandbox, detail)| {
            // A pod stays on the network that it was connected with.
            let before = self.known.get(&sandbox.id).and_then(|known| known.endpoints.first());
            let network = before.map_or(of_today, |endpoint| endpoint.network.as_str());
            convert::sandbox(engine, sandbox, detail, network)
        });
        let containers = listing.containers.iter().map(|container| {
            let pod = pods.get(container.pod_sandbox_id.as_str());
            let pod = pod.map(|(sandbox, detail)| (*sandbox, detail));
            convert::container(engine, container, &detail(&container.id), pod)
        });
        let infos: Vec<ContainerInfo> = sandboxes.chain(containers).collect();
        let networks: Vec<&str> =
            infos.iter().flat_map(|info| &info.endpoints).map(|one| one.network.as_str()).collect();
        self.networks
            .retain(|name, _| self.network.as_ref() == Some(name) || networks.contains(&name.as_str()));
        Ok(infos)
    }

    async fn ask_for_details(&mut self, client: &Client, listing: &Listing) {
        let sandboxes = listing.sandboxes.iter().map(|one| (one.id.clone(), one.state, true));
        let containers = listing.containers.iter().map(|one| (one.id.clone(), one.state, false));
        let all: BTreeMap<String, (i32, bool)> =
            sandboxes.chain(containers).map(|(id, state, is_sandbox)| (id, (state, is_sandbox))).collect();
        self.details.retain(|id, _| all.contains_key(id));
        let wanted: Vec<(String, i32, bool)> = all
            .into_iter()
            .filter(|(id, (state, _))| self.details.get(id).is_none_or(|(then, _)| then != state))
            .map(|(id, (state, is_sandbox))| (id, state, is_sandbox))
            .collect();
        if wanted.iter().any(|(_, _, is_sandbox)| *is_sandbox) || !self.reporter.has_told() {
            // Before the pods: they may be on a network that is new.
            if let Some(network) = client
                .status()
                .await
                .ok()
                .and_then(|answer| convert::network(&self.reporter.task.name, &answer.info))
            {
                self.network = Some(network.name.clone());
                self.networks.insert(network.name.clone(), network);
            }
        }
        let answers: Vec<(String, i32, Option<Detail>)> = stream::iter(wanted)
            .map(|(id, state, is_sandbox)| async move {
                let detail = if is_sandbox {
                    client.sandbox(id.clone()).await.ok().map(Detail::of_sandbox)
                } else {
                    client.container(id.clone()).await.ok().map(Detail::of_container)
                };
                (id, state, detail)
            })
            .buffer_unordered(INSPECT_AT_ONCE)
            .collect()
            .await;
        // One that could not be had, as it is gone perhaps, is asked for again if it is listed again.
        for (id, state, detail) in answers {
            if let Some(mut detail) = detail {
                if detail.addresses.is_empty()
                    && let Some((_, before)) = self.details.remove(&id)
                {
                    // What it had when it was there is not told any more.
                    detail.addresses = before.addresses;
                    detail.mac = before.mac;
                }
                self.details.insert(id, (state, detail));
            }
        }
    }

    async fn tell_networks(&self) -> Result<(), Closed> {
        let networks = self.networks.values().cloned().collect();
        self.reporter.tell(Update::Networks { engine: self.reporter.task.name.clone(), networks }).await
    }
}
