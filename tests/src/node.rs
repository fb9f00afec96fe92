//! A node of a cluster as netobs sees it: pods on a bridge that a runtime tells of, a name server, something outside,
//! and what pods do all day. No engine and no other kernel is needed.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsFd as _,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{
    background::Background,
    dns, http,
    netns::{Netns, enter},
    pretend::Pretend,
    program::{Agent, LIMIT},
    runtime::{self, Runtime},
    wait_for,
};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 79, 0, 1);
/// Of a service of the cluster, on another node: [`CLUSTER`].
const NAME_SERVER: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// The host's routes throw away what goes there.
const NOWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// For the agent's `--cluster-cidr`.
pub const CLUSTER: &str = "10.96.0.0/16";

const PORT: u16 = 8080;
const OUTSIDE_PORT: u16 = 443;

/// The pods that each is a client of: so many places behind it.
const PEERS: [usize; 2] = [1, 7];
/// Each so manieth pod also asks somebody outside.
const EACH_OUTSIDE: usize = 3;
/// Each so manieth also sends where its packets are dropped.
const EACH_DROPPED: usize = 10;

/// What pods are called for.
const SERVICES: [&str; 8] =
    ["cart", "catalog", "checkout", "payment", "search", "session", "shipping", "web"];

const REQUEST: [u8; 200] = [b'q'; 200];
const ANSWER: [u8; 2000] = [b'a'; 2000];

struct Pod {
    sandbox: Pretend,
    number: usize,
}

impl Pod {
    fn new(number: usize) -> Self {
        Self { sandbox: Pretend::new(), number }
    }

    fn address(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::from(Ipv4Addr::new(10, 79, 1, 0)) + self.number as u32)
    }

    fn mac(&self) -> String {
        let [.., high, low] = self.address().octets();
        format!("02:4e:00:00:{high:02x}:{low:02x}")
    }

    /// As a deployment's pods are called.
    fn name(&self) -> String {
        // Different for each, and as long.
        let mixed = (self.number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let service = SERVICES[self.number % SERVICES.len()];
        format!("{service}-{:09x}-{:05x}", mixed >> 28, mixed & 0xf_ffff)
    }

    fn told(&self) -> runtime::Pod {
        let id = self.sandbox.id.clone();
        runtime::Pod {
            pid: self.sandbox.netns().pid(),
            namespace: "shop".to_owned(),
            name: self.name(),
            address: self.address().to_string(),
            container_id: format!("f{}", &id[1..]),
            container: SERVICES[self.number % SERVICES.len()].to_owned(),
            id,
        }
    }
}

/// The node; ends with the value.
pub struct Node {
    // Before the namespaces, which a socket would keep.
    servers: Option<Background>,
    _names: dns::Server,
    runtime: Runtime,
    pods: Vec<Pod>,
    next: usize,
    /// As netobs shortens them, of all pods that there were, and of their containers.
    ids: BTreeSet<String>,
    pub host: Netns,
    outside: Netns,
    _folder: tempfile::TempDir,
}

impl Node {
    /// # Panics
    /// Without root.
    pub fn new(pods: usize) -> Self {
        let (host, outside) = (Netns::new(), Netns::new());
        // The host's end is neither a veth nor a bridge, as the card of a node is none.
        outside.sh(&format!(
            "ip link add p0 type veth peer name p1; ip link set p0 up; ip link set p1 up; \
             ip link add link p0 name eth0 type macvlan mode bridge; \
             ip link add link p0 name uplink netns {} type macvlan mode bridge; \
             ip addr add {OUTSIDE}/24 dev eth0; ip link set eth0 up; ip addr add {NAME_SERVER}/32 dev lo; \
             ip route add default via 203.0.113.1",
            host.pid()
        ));
        host.sh(&format!(
            "sysctl -qw net.ipv4.ip_forward=1; ip addr add 203.0.113.1/24 dev uplink; ip link set uplink up; \
             ip link add cni0 type bridge mcast_snooping 0; ip addr add {HOST}/16 dev cni0; ip link set cni0 up; \
             ip route add {CLUSTER} via {OUTSIDE}; ip route add blackhole {NOWHERE}/32"
        ));
        let names = dns::Server::start(&outside, SocketAddr::from((NAME_SERVER, 53)));
        let folder = tempfile::tempdir().expect("a folder");
        let mut node = Self {
            servers: None,
            _names: names,
            runtime: Runtime::start(folder.path()),
            pods: Vec::new(),
            next: 0,
            ids: BTreeSet::new(),
            host,
            outside,
            _folder: folder,
        };
        node.change(0, pods);
        node
    }

    /// The first so many pods end, and as many others start.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn replace(&mut self, pods: usize) {
        self.change(pods, pods);
    }

    fn change(&mut self, fewer: usize, more: usize) {
        // Their sockets would keep namespaces.
        self.servers = None;
        self.pods.drain(..fewer);
        let first = self.pods.len();
        self.pods.extend((self.next..self.next + more).map(Pod::new));
        self.next += more;
        let new = &self.pods[first..];
        let links: String = new
            .iter()
            .map(|pod| {
                format!(
                    "link add veth{n} type veth peer name eth0 address {mac} netns {pid}\n\
                     link set veth{n} master cni0 up\n\
                     neigh replace {address} lladdr {mac} dev cni0 nud permanent\n",
                    n = pod.number,
                    mac = pod.mac(),
                    pid = pod.sandbox.netns().pid(),
                    address = pod.address(),
                )
            })
            .collect();
        batch(&self.host, &links);
        for pod in new {
            let address = pod.address();
            batch(
                pod.sandbox.netns(),
                &format!(
                    "addr add {address}/16 dev eth0\nlink set eth0 up\nroute add default via {HOST} dev eth0\n"
                ),
            );
        }
        // All hosts' neighbours are in one table of the kernel, which is too small for all of these; permanent ones
        // do not count. The host's address is found by ARP.
        for (at, pod) in self.pods.iter().enumerate() {
            let count = self.pods.len();
            let both =
                PEERS.iter().flat_map(|peer| [(at + peer) % count, (at + count - peer % count) % count]);
            let neighbours: String = both
                .map(|at| &self.pods[at])
                .map(|peer| {
                    format!("neigh replace {} lladdr {} dev eth0 nud permanent\n", peer.address(), peer.mac())
                })
                .collect();
            batch(pod.sandbox.netns(), &neighbours);
        }
        let told: Vec<runtime::Pod> = self.pods.iter().map(Pod::told).collect();
        let ids = told.iter().flat_map(|pod| [&pod.id, &pod.container_id]);
        self.ids.extend(ids.map(|id| id[..12].to_owned()));
        self.runtime.tell(told);
        self.servers = Some(serve(&self.pods, &self.outside));
    }

    /// An agent that knows all pods.
    ///
    /// # Panics
    /// If it does not find them.
    pub fn agent(&self, options: &[&str]) -> Agent {
        let socket = format!("--cri={}", self.runtime.socket.display());
        let cluster = format!("--cluster-cidr={CLUSTER}");
        let agent = Agent::start_in(Some(&self.host), &[&[&*socket, &*cluster], options].concat());
        self.until_known(&agent);
        agent
    }

    /// Waits until all pods are known by name, with their interfaces.
    ///
    /// # Panics
    /// If they are not.
    pub fn until_known(&self, agent: &Agent) {
        wait_for("all pods", LIMIT * 6, || {
            let text = self.metrics(agent)?;
            let lines =
                text.lines().filter(|line| line.starts_with("netobs_container_receive_packets_total{"));
            let known: BTreeSet<&str> = lines.filter_map(|line| label(line, "pod")).collect();
            let missing = self.pods.iter().filter(|pod| !known.contains(&*pod.name())).count();
            if missing == 0 { Ok(()) } else { Err(format!("{missing} are missing")) }
        });
    }

    /// What the agent serves now, of the node alone.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn metrics(&self, agent: &Agent) -> Result<String, String> {
        self.host.inside(|| self.filtered(agent.port))
    }

    /// Serves the same to a Prometheus in the host's namespace.
    ///
    /// # Panics
    /// If it cannot listen.
    pub fn serve<T: Send>(&self, agent: &Agent, scraped: impl FnOnce(u16) -> T + Send) -> T {
        self.host.inside(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
            listener.set_nonblocking(true).expect("non-blocking");
            let port = listener.local_addr().expect("its address").port();
            let done = AtomicBool::new(false);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let mut fds = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
                        if poll(&mut fds, PollTimeout::from(50u8)).is_ok()
                            && let Ok((stream, _)) = listener.accept()
                        {
                            scope.spawn(|| self.pass_on(stream, agent.port));
                        }
                    }
                });
                // It ends with the other thread, whatever happens in here.
                let scraped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| scraped(port)));
                done.store(true, Ordering::Relaxed);
                scraped.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })
        })
    }

    /// One scrape.
    fn pass_on(&self, mut stream: TcpStream, port: u16) {
        let _ = stream.set_nonblocking(false);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && stream.read_exact(&mut byte).is_ok() {
            head.extend(byte);
        }
        let answer = match self.filtered(port) {
            Ok(text) => format!(
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4\r\nConnection: close\r\n\
                 Content-Length: {}\r\n\r\n{text}",
                text.len()
            ),
            Err(_) => "HTTP/1.1 503 No answer\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned(),
        };
        // Who has gone meanwhile needs no answer.
        let _ = stream.write_all(answer.as_bytes());
    }

    /// Without what is of containers that are not the node's: what else runs on this machine may have some, and
    /// `/proc` tells of all.
    fn filtered(&self, port: u16) -> Result<String, String> {
        let (status, text) = http::get(port, "/metrics").map_err(|error| error.to_string())?;
        if status != 200 {
            return Err(text);
        }
        let is_own = |line: &str| {
            let ids = ["id", "source_id", "destination_id"].map(|name| label(line, name).unwrap_or_default());
            ids.into_iter().all(|id| id.is_empty() || self.ids.contains(id))
        };
        Ok(text.lines().filter(|line| is_own(line)).flat_map(|line| [line, "\n"]).collect())
    }

    /// Lets all pods do what they do, until no series are new.
    ///
    /// # Panics
    /// If there are always new ones.
    pub fn live(&self, agent: &Agent) {
        // Longer than flows take to be read.
        const STEADY: Duration = Duration::from_secs(11);
        // An agent that comes later sees ARP, too.
        for pod in &self.pods {
            batch(pod.sandbox.netns(), "neigh flush dev eth0\n");
        }
        let visits = self.visits();
        let (mut since, mut before) = (Instant::now(), 0);
        wait_for("no new series", LIMIT * 6, || {
            visits.round();
            std::thread::sleep(Duration::from_millis(500));
            let text = self.metrics(agent)?;
            let now = text
                .lines()
                .filter(|line| line.starts_with("netobs_container_") || line.starts_with("netobs_edge_"))
                .count();
            if now != before {
                (since, before) = (Instant::now(), now);
            }
            if since.elapsed() > STEADY { Ok(()) } else { Err(format!("{now} series")) }
        });
    }

    /// The same once a second, as long as the value.
    pub fn go_on(&self) -> Busy {
        let visits = self.visits();
        Busy(Background::repeat(move || {
            let start = Instant::now();
            visits.round();
            std::thread::sleep(Duration::from_secs(1).saturating_sub(start.elapsed()));
        }))
    }

    fn visits(&self) -> Visits {
        let address = |at: usize| self.pods[at % self.pods.len()].address();
        let each = self.pods.iter().enumerate().map(|(at, pod)| Visit {
            pid: pod.sandbox.netns().pid(),
            number: pod.number,
            address: pod.address(),
            peers: PEERS.map(|peer| address(at + peer)),
        });
        Visits { host: self.host.pid(), each: each.collect() }
    }
}

/// The value of a label in a line of the text format, as it is written.
pub fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let begin = [format!("{{{name}=\""), format!(",{name}=\"")];
    let rest = begin.iter().find_map(|begin| Some(line.split_once(begin.as_str())?.1))?;
    Some(rest.split_once('"')?.0)
}

fn batch(netns: &Netns, lines: &str) {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), lines).expect("write");
    netns.sh(&format!("ip -batch {}", file.path().display()));
}

/// Does what pods do, until it is dropped.
pub struct Busy(Background);

impl Drop for Busy {
    fn drop(&mut self) {
        let done = self.0.end();
        assert!(done.is_ok() || std::thread::panicking(), "pods could not do what they do");
    }
}

/// What one pod does: where it is, and with whom.
struct Visit {
    pid: u32,
    number: usize,
    address: Ipv4Addr,
    peers: [Ipv4Addr; PEERS.len()],
}

struct Visits {
    host: u32,
    each: Vec<Visit>,
}

impl Visits {
    /// Each pod once.
    fn round(&self) {
        std::thread::scope(|scope| {
            // A thread of its own: it stays in the last namespace that it has entered.
            scope.spawn(|| {
                self.each.iter().for_each(Visit::pay);
                enter(self.host);
                self.each.iter().for_each(|visit| request((visit.address, PORT).into()));
            });
        });
    }
}

impl Visit {
    fn pay(&self) {
        enter(self.pid);
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a limit");
        // A search domain is tried first, as resolvers do.
        for (id, name) in [(1, "jstore.shop.svc.cluster.local"), (2, "istore.example.com")] {
            socket.send_to(&dns::query(id, name), (NAME_SERVER, 53)).expect("ask");
            // What is lost is lost.
            let _ = socket.recv(&mut [0; 512]);
        }
        self.peers.iter().for_each(|peer| request((*peer, PORT).into()));
        if self.number.is_multiple_of(EACH_OUTSIDE) {
            request((OUTSIDE, OUTSIDE_PORT).into());
        }
        if self.number.is_multiple_of(EACH_DROPPED) {
            let _ = socket.send_to(&REQUEST, (NOWHERE, 9));
        }
    }
}

/// A connection, a request and its answer.
fn request(to: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5)).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a limit");
    stream.write_all(&REQUEST).expect("ask");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer");
    assert_eq!(answer.len(), ANSWER.len());
}

/// Answers in all pods, and outside.
fn serve(pods: &[Pod], outside: &Netns) -> Background {
    let mut places: Vec<(u32, u16)> = pods.iter().map(|pod| (pod.sandbox.netns().pid(), PORT)).collect();
    places.push((outside.pid(), OUTSIDE_PORT));
    // A thread of its own: it stays in the last namespace that it has entered.
    let listening = std::thread::spawn(move || -> Vec<TcpListener> {
        let listen = |(pid, port): (u32, u16)| {
            enter(pid);
            let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("listen");
            listener.set_nonblocking(true).expect("non-blocking");
            listener
        };
        places.into_iter().map(listen).collect()
    });
    let listeners = listening.join().expect("servers");
    Background::repeat(move || answer_some(&listeners))
}

fn answer_some(listeners: &[TcpListener]) {
    let mut fds: Vec<PollFd> =
        listeners.iter().map(|listener| PollFd::new(listener.as_fd(), PollFlags::POLLIN)).collect();
    if poll(&mut fds, PollTimeout::from(50u8)).is_err() {
        return;
    }
    for (listener, fd) in listeners.iter().zip(&fds) {
        if !fd.any().unwrap_or_default() {
            continue;
        }
        while let Ok((mut stream, _)) = listener.accept() {
            // Who has gone meanwhile needs no answer.
            let _ = stream.set_nonblocking(false);
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = stream.read_exact(&mut [0; REQUEST.len()]);
            let _ = stream.write_all(&ANSWER);
        }
    }
}
