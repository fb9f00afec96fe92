//! A stand-in for the API server of Kubernetes: HTTP/1.1 over TLS, lists and watches of pods and services as a real one
//! answers them, and the troubles that there are with real ones. A list of pods without the node's field selector is
//! refused and remembered.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{background::Background, netns::Netns, wait_for};

pub const PORT: u16 = 6443;
pub const NODE: &str = "node-1";

/// In the form that `kubectl get --raw` shows, with all that a real server puts into it.
const PODS: &str = include_str!("../data/kubernetes/pods.json");
const SERVICES: &str = include_str!("../data/kubernetes/services.json");

/// What it does with requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    #[default]
    Answers,
    /// Reads them, and says nothing.
    Silent,
    /// Waits before an answer, and between two parts of it.
    Slow(Duration),
    /// Refuses this resource by status 403.
    Forbids(&'static str),
}

/// How it says that a version is too old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// By the status of its answer.
    Status,
    /// By an event.
    Event,
}

#[derive(Default)]
pub struct World {
    /// Of pods and of services.
    kinds: [Kind; 2],
    version: u64,
    mood: Mood,
    /// Watches that begin before this version are told that it is gone.
    forgotten: u64,
    gone: Option<Gone>,
    token: String,
    /// Connections of before are cut.
    generation: u64,
    /// All that was asked for: path and query.
    pub requests: Vec<String>,
    /// Lists and watches of pods that were not of this node alone, and requests without the right token.
    pub refused: Vec<String>,
}

#[derive(Default)]
struct Kind {
    items: Vec<Value>,
    /// With the versions that they made.
    events: Vec<(u64, String)>,
}

impl World {
    /// Requests that have all of these parts.
    pub fn asked(&self, parts: &[&str]) -> usize {
        self.requests.iter().filter(|request| parts.iter().all(|part| request.contains(part))).count()
    }

    /// Requests for all that there is.
    pub fn lists(&self) -> usize {
        self.requests.iter().filter(|request| !request.contains("watch=1")).count()
    }
}

/// Also after a test has failed while it looked: that failure is the one to show.
fn lock(world: &Mutex<World>) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the stand-in serves, and where its clients find it.
pub struct ApiServer {
    world: Arc<Mutex<World>>,
    tls: Arc<ServerConfig>,
    folder: TempDir,
    listening: Option<Background>,
}

impl ApiServer {
    /// On the loopback interface of a namespace, with the recorded pods and services.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn start(host: &Netns) -> Self {
        let folder = tempfile::Builder::new().prefix("nbtk8s").tempdir().expect("a folder");
        let tls = certificates(folder.path());
        let items = |text: &str| -> Vec<Value> {
            let list: Value = serde_json::from_str(text).expect("a list");
            list["items"].as_array().expect("items").clone()
        };
        let kinds = [PODS, SERVICES].map(|text| Kind { items: items(text), events: Vec::new() });
        let world = World { kinds, version: 1000, forgotten: 1000, ..World::default() };
        let mut server =
            Self { world: Arc::new(Mutex::new(world)), tls: Arc::new(tls), folder, listening: None };
        server.new_token("first");
        let context = format!(
            "{{current-context: test, contexts: [{{name: test, context: {{cluster: test, user: test}}}}], \
             clusters: [{{name: test, cluster: {{server: 'https://127.0.0.1:{PORT}', certificate-authority: ca.crt}}}}], \
             users: [{{name: test, user: {{tokenFile: token}}}}]}}"
        );
        fs::write(server.folder.path().join("kubeconfig"), context).expect("write");
        server.up(host);
        server
    }

    /// A folder with `ca.crt` and `token`, as a pod has it; and `kubeconfig`.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    /// From the next request on.
    pub fn is(&self, mood: Mood) {
        self.world().mood = mood;
    }

    /// Another token is the right one, and in the file.
    ///
    /// # Panics
    /// If it cannot be written.
    pub fn new_token(&self, token: &str) {
        token.clone_into(&mut self.world().token);
        fs::write(self.folder.path().join("token"), format!("{token}\n")).expect("write a token");
    }

    /// Ends all connections, in the middle of whatever they say.
    pub fn cut(&self) {
        self.world().generation += 1;
    }

    /// Nobody listens any more, and all connections are cut.
    ///
    /// # Panics
    /// If its thread has.
    pub fn down(&mut self) {
        if let Some(mut listening) = self.listening.take() {
            listening.end().expect("no panic elsewhere");
        }
        self.cut();
    }

    /// # Panics
    /// If the port is taken.
    pub fn up(&mut self, host: &Netns) {
        let listener = host.run(|| {
            wait_for("the port", Duration::from_secs(5), || {
                TcpListener::bind((Ipv4Addr::LOCALHOST, PORT)).map_err(|error| error.to_string())
            })
        });
        listener.set_nonblocking(true).expect("non-blocking");
        let (world, tls) = (Arc::clone(&self.world), Arc::clone(&self.tls));
        self.listening = Some(Background::repeat(move || match listener.accept() {
            Ok((stream, _)) => {
                let (world, tls) = (Arc::clone(&world), Arc::clone(&tls));
                std::thread::spawn(move || drop(converse(stream, tls, &world)));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }));
    }

    /// Something happens: `ADDED`, `MODIFIED` or `DELETED`.
    ///
    /// # Panics
    /// If the object has no name.
    pub fn happens(&self, kind: &str, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let version = world.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let at = usize::from(object["kind"] == "Service");
        let name =
            |one: &Value| [&one["metadata"]["namespace"], &one["metadata"]["name"]].map(ToString::to_string);
        let this = name(&object);
        world.kinds[at].items.retain(|one| name(one) != this);
        if kind != "DELETED" {
            world.kinds[at].items.push(object.clone());
        }
        world.kinds[at].events.push((version, json!({"type": kind, "object": object}).to_string()));
    }

    /// A recorded stream of events, a line each, happens: each with a version of its own.
    ///
    /// # Panics
    /// If a line is no event.
    pub fn replay(&self, lines: &str) {
        for line in lines.lines() {
            let event: Value = serde_json::from_str(line).expect("an event");
            let kind = event["type"].as_str().expect("a type");
            if kind == "BOOKMARK" {
                let mut world = self.world();
                world.version += 1;
                let version = world.version;
                let mut event = event.clone();
                event["object"]["metadata"]["resourceVersion"] = version.to_string().into();
                let at = usize::from(event["object"]["kind"] == "Service");
                world.kinds[at].events.push((version, event.to_string()));
            } else {
                self.happens(kind, event["object"].clone());
            }
        }
    }

    /// All that has happened is forgotten, and whoever wants to go on from there is told so.
    pub fn forget(&self, how: Gone) {
        let mut world = self.world();
        world.version += 100;
        world.forgotten = world.version;
        world.gone = Some(how);
        world.generation += 1;
        for kind in &mut world.kinds {
            kind.events.clear();
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.down();
    }
}

/// A service as the API has it.
pub fn service(name: &str, address: &str) -> Value {
    json!({
        "kind": "Service", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "shop", "uid": format!("service-{name}")},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address],
            "ports": [{"port": 80, "targetPort": 8080}], "ipFamilies": ["IPv4"]},
        "status": {"loadBalancer": {}}
    })
}

/// A pod's metadata as the API has it, with its controller.
pub fn pod(name: &str, uid: &str, owner: Option<(&str, &str)>) -> Value {
    let owners: Vec<Value> = owner
        .iter()
        .map(|(kind, name)| json!({"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "1", "controller": true}))
        .collect();
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "ownerReferences": owners}
    })
}

/// An authority's certificate, and the server's own.
fn certificates(folder: &Path) -> ServerConfig {
    let script = "set -e
        new='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 $new -days 2 -subj /CN=kubernetes -keyout ca.key -out ca.crt
        printf 'subjectAltName=DNS:kubernetes.default,IP:127.0.0.1\n' > server.ext
        openssl req $new -subj /CN=kube-apiserver -keyout server.key -out server.csr
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out server.crt";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("run sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let certificate = CertificateDer::from_pem_file(folder.join("server.crt")).expect("a certificate");
    let key = PrivateKeyDer::from_pem_file(folder.join("server.key")).expect("a key");
    ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a certificate with its key")
}

/// One connection, to its end.
fn converse(stream: TcpStream, tls: Arc<ServerConfig>, world: &Mutex<World>) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_millis(50)))?;
    let generation = lock(world).generation;
    let is_cut = || lock(world).generation != generation;
    let socket = stream.try_clone()?;
    let connection = ServerConnection::new(tls).map_err(io::Error::other)?;
    let mut reader = BufReader::new(Patient { inner: StreamOwned::new(connection, stream), is_cut: &is_cut });
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let mut exchange = Exchange { to: &mut reader.get_mut().inner, world, is_cut: &is_cut };
        if let Err(error) = exchange.answer(&head) {
            // As when it is killed: without the end of what it was saying.
            let _ = socket.shutdown(std::net::Shutdown::Both);
            return Err(error);
        }
    }
}

/// Waits for the next bytes until it is cut.
struct Patient<'a, S> {
    inner: S,
    is_cut: &'a dyn Fn() -> bool,
}

impl<S: Read> Read for Patient<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.inner.read(buffer) {
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                    if (self.is_cut)() {
                        return Err(error);
                    }
                }
                other => return other,
            }
        }
    }
}

struct Exchange<'a, S> {
    to: &'a mut S,
    world: &'a Mutex<World>,
    is_cut: &'a dyn Fn() -> bool,
}

impl<S: Write> Exchange<'_, S> {
    fn answer(&mut self, head: &str) -> io::Result<()> {
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        let (mood, refusal) = {
            let mut world = lock(self.world);
            world.requests.push(target.clone());
            let right = format!("authorization: bearer {}\r\n", world.token);
            let is_known = head.to_ascii_lowercase().contains(&right.to_ascii_lowercase());
            let selector = format!("fieldSelector=spec%2EnodeName%3D{}", NODE.replace('-', "%2D"));
            let is_narrow = path != "/api/v1/pods" || query.split('&').any(|part| part == selector);
            if !is_known || !is_narrow {
                world.refused.push(target.clone());
            }
            (
                world.mood,
                if !is_known {
                    Some(401)
                } else if is_narrow {
                    None
                } else {
                    Some(403)
                },
            )
        };
        let kind = match path {
            "/api/v1/pods" => 0,
            "/api/v1/services" => 1,
            _ => return self.status(404, "the server could not find the requested resource"),
        };
        let word = ["pods", "services"][kind];
        if let Some(status) = refusal {
            return self.status(status, "not so");
        }
        match mood {
            Mood::Silent => return self.until_cut(),
            Mood::Slow(pause) => self.wait(pause)?,
            Mood::Forbids(what) if what == word => {
                let user = "system:serviceaccount:netobs:netobs";
                let why = format!(
                    "{word} is forbidden: User \"{user}\" cannot list resource \"{word}\" in API group \"\" at the cluster scope"
                );
                return self.status(403, &why);
            }
            _ => {}
        }
        let is_watch = query.split('&').any(|part| part == "watch=1");
        if is_watch { self.watch(kind, query) } else { self.list(kind, mood) }
    }

    fn list(&mut self, kind: usize, mood: Mood) -> io::Result<()> {
        let list = {
            let world = lock(self.world);
            let (name, of) = [("PartialObjectMetadataList", "meta.k8s.io/v1"), ("ServiceList", "v1")][kind];
            json!({
                "kind": name, "apiVersion": of, "metadata": {"resourceVersion": world.version.to_string()},
                "items": world.kinds[kind].items
            })
        };
        let body = list.to_string();
        self.head(200, &format!("Content-Length: {}", body.len()))?;
        let parts: Vec<&[u8]> = body.as_bytes().chunks(body.len().div_ceil(4)).collect();
        for part in parts {
            if let Mood::Slow(pause) = mood {
                self.wait(pause)?;
            }
            self.to.write_all(part)?;
            self.to.flush()?;
        }
        Ok(())
    }

    fn watch(&mut self, kind: usize, query: &str) -> io::Result<()> {
        let from = query.split('&').find_map(|part| part.strip_prefix("resourceVersion="));
        let mut from: u64 = from.and_then(|from| from.parse().ok()).unwrap_or(0);
        let gone = {
            let world = lock(self.world);
            world.gone.filter(|_| from < world.forgotten)
        };
        if gone == Some(Gone::Status) {
            return self.status(410, "too old resource version");
        }
        self.head(200, "Transfer-Encoding: chunked")?;
        if gone == Some(Gone::Event) {
            let status = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {},
                "status": "Failure", "message": "too old resource version", "reason": "Expired", "code": 410}});
            self.chunk(&format!("{status}\n"))?;
            return self.chunk("");
        }
        while !(self.is_cut)() {
            let next: Vec<(u64, String)> = {
                let world = lock(self.world);
                world.kinds[kind].events.iter().filter(|(version, _)| *version > from).cloned().collect()
            };
            for (version, line) in next {
                // In two parts, as they may come.
                let (one, two) = line.split_at(line.len() / 2);
                self.chunk(one)?;
                self.chunk(&format!("{two}\n"))?;
                from = version;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }

    fn status(&mut self, code: u16, message: &str) -> io::Result<()> {
        let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "code": code})
        .to_string();
        self.head(code, &format!("Content-Length: {}", body.len()))?;
        self.to.write_all(body.as_bytes())?;
        self.to.flush()
    }

    fn head(&mut self, code: u16, length: &str) -> io::Result<()> {
        write!(self.to, "HTTP/1.1 {code} as told\r\nContent-Type: application/json\r\n{length}\r\n\r\n")?;
        self.to.flush()
    }

    fn chunk(&mut self, text: &str) -> io::Result<()> {
        write!(self.to, "{:x}\r\n{text}\r\n", text.len())?;
        self.to.flush()
    }

    fn until_cut(&self) -> io::Result<()> {
        while !(self.is_cut)() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(io::ErrorKind::ConnectionReset.into())
    }

    fn wait(&self, pause: Duration) -> io::Result<()> {
        let end = std::time::Instant::now() + pause;
        while std::time::Instant::now() < end {
            if (self.is_cut)() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}
