//! One resource, for as long as the program runs: list, watch from there, go on where a watch has ended, and list
//! again when the API has forgotten that (410).

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    time::Duration,
};

use anyhow::Context as _;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use super::{
    Resource,
    access::Access,
    client::{Connection, Failure},
    messages::{Event, EventKind, Item, List},
};
use crate::{discovery::engine::convert::text, model::Update};

/// Before the next try, after the first failure and at most.
const AGAIN_FIRST: Duration = Duration::from_secs(1);
const AGAIN_LAST: Duration = Duration::from_secs(30);

/// The API works if a watch goes on for so long.
const STEADY: Duration = Duration::from_secs(10);

/// The API ends a watch after so long; one in which there is nothing for longer, not even a bookmark, is broken.
const WATCH_SECONDS: u64 = 240;
const SILENCE: Duration = Duration::from_secs(WATCH_SECONDS + 30);

/// What is kept of each resource: a kubelet has 110 pods if it is not told otherwise.
const MOST_PODS: usize = 4096;
const MOST_SERVICES: usize = 16_384;

/// Nobody listens any more.
struct Closed;

/// Why a watch has ended, or there was none.
enum End {
    /// What it was to go on from is forgotten.
    Gone,
    /// In the middle.
    Broken(anyhow::Error),
    /// There was none.
    Failed(anyhow::Error),
    Closed,
}

impl From<Closed> for End {
    fn from(_: Closed) -> Self {
        Self::Closed
    }
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Gone => Self::Gone,
            Failure::Other(error) => Self::Failed(error),
        }
    }
}

impl Resource {
    /// With what is asked for it.
    fn path(&self, more: &[(&str, &str)]) -> String {
        let (path, selector) = match self {
            Self::Pods(node) => ("/api/v1/pods", Some(format!("spec.nodeName={node}"))),
            Self::Services => ("/api/v1/services", None),
        };
        let selector = selector.as_deref().map(|selector| ("fieldSelector", selector));
        let query = selector.into_iter().chain(more.iter().copied());
        let query =
            query.map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
        format!("{path}?{}", query.collect::<Vec<_>>().join("&"))
    }

    /// Of pods, nothing but metadata is needed.
    const fn accept_list(&self) -> &'static str {
        match self {
            Self::Pods(_) => {
                "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1, application/json"
            }
            Self::Services => "application/json",
        }
    }

    const fn accept_watch(&self) -> &'static str {
        match self {
            Self::Pods(_) => "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1, application/json",
            Self::Services => "application/json",
        }
    }

    const fn most(&self) -> usize {
        match self {
            Self::Pods(_) => MOST_PODS,
            Self::Services => MOST_SERVICES,
        }
    }

    const fn word(&self) -> &'static str {
        match self {
            Self::Pods(_) => "pods",
            Self::Services => "services",
        }
    }
}

pub struct Follower {
    access: Access,
    resource: Resource,
    updates: mpsc::Sender<Update>,
    /// As last told, by key; at most [`Resource::most`].
    known: BTreeMap<String, Item>,
    /// Some were left out, as there were too many.
    is_over: bool,
    /// To go on from; none: to be listed.
    version: Option<String>,
    /// Nothing has come since it was listed.
    is_fresh: bool,
    /// A list as any server has it was too old to go on from: the next is asked for as it is now.
    was_stale: bool,
    /// When the watch began that there is, or was.
    since: Option<Instant>,
    /// Last said: that it works, or why not.
    said: Option<Option<String>>,
}

impl Follower {
    pub const fn new(access: Access, resource: Resource, updates: mpsc::Sender<Update>) -> Self {
        Self {
            access,
            resource,
            updates,
            known: BTreeMap::new(),
            is_over: false,
            version: None,
            is_fresh: false,
            was_stale: false,
            since: None,
            said: None,
        }
    }

    /// Until nobody listens.
    pub async fn run(mut self) {
        let updates = self.updates.clone();
        tokio::select! {
            Closed = self.follow() => {}
            () = updates.closed() => {}
        }
    }

    async fn follow(&mut self) -> Closed {
        let mut pause = AGAIN_FIRST;
        loop {
            self.since = None;
            let end = self.list_and_watch().await;
            let lasted = self.since.map(|since| since.elapsed()).unwrap_or_default();
            if lasted >= STEADY {
                pause = AGAIN_FIRST;
            }
            let resource = self.resource.word();
            match end {
                // The API ends it when its time is over, and as it ends itself; not at once, or it would be asked
                // without a pause.
                Ok(()) if lasted >= AGAIN_FIRST => continue,
                Ok(()) => {}
                Err(End::Gone) => {
                    tracing::debug!(
                        resource,
                        "the API of Kubernetes has forgotten what there was: all is listed"
                    );
                    self.was_stale = self.is_fresh;
                    self.version = None;
                }
                // If it is more than that, the next try tells.
                Err(End::Broken(error)) => {
                    tracing::debug!(resource, error = format!("{error:#}"), "a watch of the API has broken");
                }
                Err(End::Failed(error)) => {
                    if let Err(closed) = self.say(Some(text(&format!("{error:#}")))).await {
                        return closed;
                    }
                }
                Err(End::Closed) => return Closed,
            }
            sleep(jittered(pause)).await;
            pause = (pause * 2).min(AGAIN_LAST);
        }
    }

    /// One connection, from beginning to end.
    async fn list_and_watch(&mut self) -> Result<(), End> {
        let mut connection = Connection::open(&self.access).await.map_err(End::Failed)?;
        if self.version.is_none() {
            self.list(&mut connection).await?;
        }
        let (seconds, version) = (WATCH_SECONDS.to_string(), self.version.clone().unwrap_or_default());
        let path = self.resource.path(&[
            ("watch", "1"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", &version),
        ]);
        let mut lines = connection.lines(&self.access, &path, self.resource.accept_watch()).await?;
        self.since = Some(Instant::now());
        self.say(self.excess()).await?;
        loop {
            let line = timeout(SILENCE, lines.next()).await;
            let line = line.unwrap_or_else(|_| Err(anyhow::anyhow!("nothing for {SILENCE:?}")));
            match line.map_err(End::Broken)? {
                Some(line) => self.event(&line).await?,
                None => return Ok(()),
            }
        }
    }

    async fn list(&mut self, connection: &mut Connection) -> Result<(), End> {
        // As the server has it, without asking the store behind it: there may be thousands of nodes that list.
        let version: &[_] = if self.was_stale { &[] } else { &[("resourceVersion", "0")] };
        let path = self.resource.path(version);
        let answer = connection.whole(&self.access, &path, self.resource.accept_list()).await;
        let answer = answer.map_err(|failure| match failure {
            // There is nothing older to begin with.
            Failure::Gone => End::Failed(anyhow::anyhow!("410 Gone, of a list")),
            Failure::Other(error) => End::Failed(error),
        })?;
        let list: List = serde_json::from_slice(&answer).context("a list").map_err(End::Failed)?;
        self.known.clear();
        self.is_over = false;
        for object in list.items.iter().flatten() {
            if let Some(item) = object.item(&self.resource).filter(Item::is_of_use) {
                self.keep(item);
            }
        }
        self.version = Some(list.metadata.resource_version);
        (self.is_fresh, self.was_stale) = (true, false);
        let items = self.known.values().cloned();
        let all = match self.resource {
            Resource::Pods(_) => Update::Pods(items.filter_map(Item::into_pod).collect()),
            Resource::Services => Update::Services(items.filter_map(Item::into_service).collect()),
        };
        Ok(self.tell(all).await?)
    }

    /// Whether it is new.
    fn keep(&mut self, item: Item) -> bool {
        let key = item.key();
        if self.known.len() >= self.resource.most() && !self.known.contains_key(key) {
            self.is_over = true;
            return false;
        }
        self.known.insert(key.to_owned(), item.clone()).is_none_or(|before| before != item)
    }

    async fn event(&mut self, line: &[u8]) -> Result<(), End> {
        let event: Event = match serde_json::from_slice(line) {
            Ok(event) => event,
            Err(error) => {
                self.version = None;
                return Err(End::Broken(anyhow::Error::new(error).context("an event")));
            }
        };
        if event.kind == EventKind::Error {
            if event.object.code == Some(GONE) {
                return Err(End::Gone);
            }
            self.version = None;
            let why = event.object.message.unwrap_or_default();
            return Err(End::Broken(anyhow::anyhow!("an error: {why}")));
        }
        let version = &event.object.metadata.resource_version;
        if !version.is_empty() {
            self.version = Some(version.clone());
            self.is_fresh = false;
        }
        let Some(item) = event.object.item(&self.resource) else { return Ok(()) };
        match event.kind {
            EventKind::Added | EventKind::Modified if item.is_of_use() => {
                let was_over = self.is_over;
                if self.keep(item.clone()) {
                    self.tell(item.into_update()).await?;
                }
                if self.is_over != was_over {
                    self.say(self.excess()).await?;
                }
            }
            EventKind::Added | EventKind::Modified | EventKind::Deleted => {
                if self.known.remove(item.key()).is_some() {
                    self.tell(item.into_removal()).await?;
                }
            }
            EventKind::Bookmark | EventKind::Error | EventKind::Unknown => {}
        }
        Ok(())
    }

    fn excess(&self) -> Option<String> {
        let (most, word) = (self.resource.most(), self.resource.word());
        self.is_over.then(|| format!("more than {most} {word}: nothing is known of the others"))
    }

    /// That it works, or why not.
    async fn say(&mut self, problem: Option<String>) -> Result<(), Closed> {
        if self.said.as_ref() == Some(&problem) {
            return Ok(());
        }
        let (feature, resource) = (self.resource.feature(), self.resource.word());
        match &problem {
            Some(why) => tracing::warn!(resource, why, "ask the API of Kubernetes"),
            None => tracing::info!(resource, "the API of Kubernetes answers"),
        }
        self.said = Some(problem.clone());
        self.tell(match problem {
            Some(why) => Update::Degraded { feature, why },
            None => Update::Works { feature },
        })
        .await
    }

    async fn tell(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }
}

/// `code` of a `Status`.
const GONE: u16 = 410;

/// Between a half and all of it: many that begin at once do not all ask at once.
fn jittered(pause: Duration) -> Duration {
    let share = RandomState::new().build_hasher().finish() % 512;
    pause / 2 + pause * share as u32 / 1024
}

/// Whether one of it can be listed.
pub async fn ask_once(access: &Access, resource: &Resource) -> Result<(), String> {
    let ask = async {
        let mut connection = Connection::open(access).await?;
        let path = resource.path(&[("limit", "1")]);
        connection.whole(access, &path, resource.accept_list()).await
    };
    match ask.await {
        Ok(_) => Ok(()),
        Err(Failure::Gone) => Err("410 Gone".to_owned()),
        Err(Failure::Other(error)) => Err(text(&format!("{error:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceInfo, state::SERVICES};

    fn services() -> (Follower, mpsc::Receiver<Update>) {
        let access = Access { host: String::new(), port: 0, prefix: String::new(), tls: None, token: None };
        let (updates, told) = mpsc::channel(MOST_SERVICES + 10);
        (Follower::new(access, Resource::Services, updates), told)
    }

    fn event(kind: &str, name: &str, version: u32, address: &str) -> String {
        format!(
            r#"{{"type": "{kind}", "object": {{"metadata": {{"name": "{name}", "namespace": "shop",
            "resourceVersion": "{version}"}}, "spec": {{"clusterIP": "{address}"}}}}}}"#
        )
    }

    fn told(updates: &mut mpsc::Receiver<Update>) -> Vec<String> {
        std::iter::from_fn(|| updates.try_recv().ok())
            .map(|update| match update {
                Update::Service(ServiceInfo { name, addresses }) => format!("{name} {addresses:?}"),
                Update::ServiceRemoved { name } => format!("no {name}"),
                Update::Degraded { feature, why } => format!("{feature}: {why}"),
                other => format!("{other:?}"),
            })
            .collect()
    }

    #[tokio::test]
    async fn only_what_is_new_is_told() {
        let (mut follower, mut updates) = services();
        for line in [
            event("ADDED", "web", 2, "10.96.0.1"),
            event("MODIFIED", "web", 3, "10.96.0.1"),
            event("MODIFIED", "web", 4, "10.96.0.2"),
            event("ADDED", "headless", 5, "None"),
            event("DELETED", "headless", 6, "None"),
            event("MODIFIED", "web", 7, "None"),
            event("DELETED", "web", 8, "None"),
            r#"{"type": "NEW", "object": {"metadata": {}}}"#.to_owned(),
            r#"{"type": "BOOKMARK", "object": {"kind": "Service", "metadata": {"resourceVersion": "9"}}}"#
                .to_owned(),
        ] {
            assert!(follower.event(line.as_bytes()).await.is_ok(), "{line}");
        }
        assert_eq!(told(&mut updates), ["shop/web [10.96.0.1]", "shop/web [10.96.0.2]", "no shop/web"]);
        assert_eq!(follower.version.as_deref(), Some("9"), "to go on from");
    }

    #[tokio::test]
    async fn what_ends_a_watch() {
        let (mut follower, _updates) = services();
        follower.version = Some("1".to_owned());
        let gone = br#"{"type": "ERROR", "object": {"kind": "Status", "metadata": {}, "code": 410, "reason": "Expired"}}"#;
        assert!(matches!(follower.event(gone).await, Err(End::Gone)));
        for line in [
            r#"{"type": "ERROR", "object": {"code": 500, "message": "no"}}"#,
            r#"{"type": "ADDED", "obj"#,
            "[]",
        ] {
            follower.version = Some("1".to_owned());
            assert!(matches!(follower.event(line.as_bytes()).await, Err(End::Broken(_))), "{line}");
            assert_eq!(follower.version, None, "all is listed: {line}");
        }
    }

    #[tokio::test]
    async fn there_is_a_bound() {
        let (mut follower, mut updates) = services();
        for n in 0..MOST_SERVICES as u32 + 5 {
            let line = event("ADDED", &format!("s{n}"), n, "10.96.0.1");
            assert!(follower.event(line.as_bytes()).await.is_ok());
        }
        let all = told(&mut updates);
        assert_eq!(all.iter().filter(|one| one.starts_with("shop/")).count(), MOST_SERVICES);
        assert_eq!(all.iter().filter(|one| one.starts_with(SERVICES)).count(), 1, "said once");
    }

    #[test]
    fn pods_are_those_of_the_node() {
        let path = Resource::Pods("node-1".to_owned()).path(&[("watch", "1")]);
        assert_eq!(path, "/api/v1/pods?fieldSelector=spec%2EnodeName%3Dnode%2D1&watch=1");
        assert_eq!(Resource::Services.path(&[("limit", "1")]), "/api/v1/services?limit=1");
    }
}
