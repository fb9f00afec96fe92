//! What is done to the endpoint does not keep it from its work: while it is done, another connection scrapes, and the
//! counts are the kernel's; afterwards descriptors and memory are as before. TLS and users are as exporters have them.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, Output},
    time::{Duration, Instant},
};

use netobs_tests::{
    http,
    kernel::link,
    netns::World,
    program::{Agent, LIMIT, run},
    prometheus::{Server, sample},
    traffic, wait_for,
};
use nix::sys::socket::{setsockopt, sockopt::RcvBuf};

const PORT: u16 = 9810;
const ADDRESS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), PORT);
/// Of the agent, `serve/connections.rs`.
const MOST: usize = 256;

/// A scrape has to be answered within this, whatever else is going on: Prometheus's usual patience.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent on a host with one container, and what it used before anybody did anything to it.
struct Scene {
    world: World,
    agent: Agent,
    files: usize,
    resident_kib: u64,
}

impl Scene {
    fn new() -> Self {
        let world = World::new(1);
        let agent = Agent::start_in(Some(&world.host), &["--no-engine"]);
        let mut scene = Self { world, agent, files: 0, resident_kib: 0 };
        wait_for("ready", LIMIT, || match scene.get("/readyz") {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
        for _ in 0..5 {
            scene.scrape();
        }
        scene.files = scene.open_files();
        scene.resident_kib = scene.agent.resident_kib();
        scene
    }

    fn get(&self, path: &'static str) -> std::io::Result<(u16, String)> {
        self.world.host.run(move || http::get(PORT, path))
    }

    fn open_files(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.agent.pid())).expect("its descriptors").count()
    }

    /// Metrics, in time and whole.
    fn scrape(&self) -> String {
        let start = Instant::now();
        let (status, text) = self.get("/metrics").expect("an answer");
        assert_eq!(status, 200, "{text}");
        assert!(text.contains("\nnetobs_build_info{"), "{} bytes", text.len());
        assert!(start.elapsed() < PATIENCE, "{:?}", start.elapsed());
        text
    }

    fn closed(&self, reason: &str) -> f64 {
        let name = "netobs_http_connections_closed_total";
        sample(&self.scrape(), name, &[&format!("reason=\"{reason}\"")]).expect("the metric")
    }

    /// Traffic is counted, exactly, and that is scraped, so many times.
    fn counts(&self, times: usize) {
        for _ in 0..times {
            let address = "10.77.0.1:9".parse().expect("an address");
            traffic::udp(&self.world.containers[0], &self.world.host, address, 50, 100);
            let before = link(&self.world.host, "veth0").rx_packets as f64;
            let text = self.scrape();
            let ours = |name: &str, direction: &[&str]| {
                let labels = [&["host_interface=\"veth0\""], direction].concat();
                sample(&text, name, &labels).expect(name)
            };
            let counted = ours("netobs_interface_receive_packets_total", &[])
                + ours("netobs_interface_unobserved_packets", &["direction=\"receive\""]);
            // A neighbour may be asked for in between.
            let after = link(&self.world.host, "veth0").rx_packets as f64;
            assert!(
                (before..=after).contains(&counted) && after - before <= 2.0,
                "{before} {counted} {after}"
            );
        }
    }

    /// After all of it: as before.
    fn is_as_before(&self) {
        self.counts(1);
        wait_for("descriptors given back", LIMIT, || match self.open_files() {
            files if files <= self.files => Ok(()),
            files => Err(format!("{files}, before {}", self.files)),
        });
        let now = self.agent.resident_kib();
        assert!(now < self.resident_kib + 16 * 1024, "{now} KiB, before {}", self.resident_kib);
        let open = self
            .scrape()
            .lines()
            .find_map(|line| line.strip_prefix("netobs_http_connections ").map(str::to_owned));
        assert_eq!(open.as_deref(), Some("1"), "only the one that asks");
    }

    /// Runs a client in the host's namespace.
    fn client<T: Send + 'static>(
        &self,
        client: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        self.world.host.spawn(client)
    }
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&ADDRESS, PATIENCE).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("a time limit");
    stream.set_write_timeout(Some(PATIENCE)).expect("a time limit");
    stream
}

/// What comes back for some bytes, until the server closes or has nothing more to say.
fn talk(bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect();
    // It may have closed while we are still talking.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    rest(stream)
}

/// The same, and goes on listening as one that may say more: who has said all is not answered twice, at times.
fn talk_on(bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect();
    // It may have closed while we are still talking.
    let _ = stream.write_all(bytes);
    rest(stream)
}

/// What comes until the server closes.
fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

/// The status codes of all answers in it.
fn statuses(answer: &[u8]) -> Vec<u16> {
    let text = String::from_utf8_lossy(answer);
    text.match_indices("HTTP/1.").filter_map(|(at, _)| text.get(at + 9..at + 12)?.parse().ok()).collect()
}

/// Whether the other side has closed.
fn is_closed(stream: &mut TcpStream) -> bool {
    stream.set_nonblocking(true).expect("nonblocking");
    let closed = match stream.read(&mut [0; 4096]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    };
    stream.set_nonblocking(false).expect("blocking");
    closed
}

#[test]
fn slow_heads() {
    let scene = Scene::new();
    let clients = scene.client(|| {
        let mut streams: Vec<TcpStream> = (0..200).map(|_| connect()).collect();
        let start = Instant::now();
        for byte in b"GET /metrics HTTP/1.1\r\nHost: a\r\nX-Slow: ".iter().chain([b'a'; 200].iter()) {
            for stream in &mut streams {
                let _ = stream.write_all(&[*byte]);
            }
            std::thread::sleep(Duration::from_millis(100));
            if start.elapsed() > Duration::from_secs(13) {
                break;
            }
        }
        streams.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count()
    });
    while !clients.is_finished() {
        scene.counts(1);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(clients.join().expect("the clients"), 200, "all were closed after ten seconds");
    assert_eq!((scene.closed("slow"), scene.closed("crowded")), (200.0, 0.0));
    scene.is_as_before();
}

#[test]
fn answers_that_nobody_reads() {
    let scene = Scene::new();
    let clients = scene.client(|| {
        let mut streams: Vec<TcpStream> = (0..100).map(|_| connect()).collect();
        let asked = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n".repeat(2000);
        let start = Instant::now();
        for stream in &mut streams {
            setsockopt(&*stream, RcvBuf, &(64 << 10)).expect("a small buffer");
            stream.set_nonblocking(true).expect("nonblocking");
            let _ = stream.write(asked.as_bytes());
        }
        // A byte now and then is no progress that buys time.
        while start.elapsed() < Duration::from_secs(90) {
            for stream in &mut streams {
                let _ = stream.read(&mut [0]);
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    let mut most = 0;
    while !clients.is_finished() {
        scene.counts(1);
        most = most.max(scene.agent.resident_kib());
        std::thread::sleep(Duration::from_millis(500));
    }
    clients.join().expect("the clients");
    assert!(most < scene.resident_kib + 64 * 1024, "{most} KiB, before {}", scene.resident_kib);
    assert!(scene.closed("slow") >= 100.0, "{}", scene.closed("slow"));
    scene.is_as_before();
}

#[test]
fn ten_thousand_connections() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    const COUNT: usize = 10_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit of open files");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("as many as we may");
    if hard < COUNT as u64 + 200 {
        return netobs_tests::skip("ten thousand connections", &format!("{hard} open files at most"));
    }
    let scene = Scene::new();
    let clients = scene.client(|| {
        let mut streams: Vec<TcpStream> = (0..COUNT).map(|_| connect()).collect();
        // Those that wait in the kernel are connected, too.
        std::thread::sleep(Duration::from_secs(2));
        streams.iter_mut().filter_map(|stream| (!is_closed(stream)).then_some(())).count()
    });
    let mut most = 0;
    while !clients.is_finished() {
        scene.counts(1);
        most = most.max(scene.open_files());
    }
    let left = clients.join().expect("the clients");
    assert!(left <= MOST, "{left} of them were still open");
    assert!(most <= scene.files + MOST + 130, "{most} descriptors, before {}", scene.files);
    assert!(scene.closed("crowded") >= (COUNT - MOST) as f64, "{}", scene.closed("crowded"));
    println!("10,000 connections: {most} descriptors at most, {} before", scene.files);
    scene.is_as_before();
}

#[test]
fn with_few_files_to_open() {
    let scene = Scene::new();
    let limit = format!("--nofile={}", scene.files + 20);
    let status = Command::new("prlimit").args(["--pid", &scene.agent.pid().to_string(), &limit]).status();
    assert!(status.expect("run prlimit").success());
    let clients = scene.client(|| {
        let streams: Vec<TcpStream> = (0..500).map(|_| connect()).collect();
        std::thread::sleep(Duration::from_secs(2));
        drop(streams);
    });
    while !clients.is_finished() {
        scene.counts(1);
    }
    clients.join().expect("the clients");
    assert!(scene.closed("crowded") > 100.0, "{}", scene.closed("crowded"));
    scene.is_as_before();
}

#[test]
fn garbage() {
    let scene = Scene::new();
    let clients = scene.client(|| {
        let mut answers = Vec::new();
        // Xorshift: the same each time.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..1500 {
            let length = random() % 600;
            let mut bytes: Vec<u8> = (0..length).map(|_| random() as u8).collect();
            // A part of them begins as a request does.
            if random() % 2 == 0 {
                bytes.splice(0..0, *b"GET /");
            }
            bytes.extend(b"\r\n\r\n");
            answers.push((statuses(&talk(&bytes)), bytes));
        }
        let headers = |count: usize| format!("GET /metrics HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(count));
        for request in [
            headers(100),
            headers(10_000),
            format!("GET /metrics HTTP/1.1\r\nA: {}\r\n\r\n", "b".repeat(1 << 20)),
            format!("GET /{} HTTP/1.1\r\n\r\n", "b".repeat(1 << 20)),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
            "GET /metrics HTTP/9.9\r\n\r\n".to_owned(),
            "GET /metrics\r\n\r\n".to_owned(),
            "GET /metrics HTTP/1.1\r\nA\0: b\r\n\r\n".to_owned(),
            "GET /met\x1b[2Jrics HTTP/1.1\r\n\r\n".to_owned(),
            "\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}\x03\x03".to_owned(),
        ] {
            answers.push((statuses(&talk(request.as_bytes())), request.into_bytes()));
        }
        answers
    });
    while !clients.is_finished() {
        scene.counts(1);
    }
    for (statuses, bytes) in clients.join().expect("the clients") {
        let fine = statuses.len() <= 1 && statuses.iter().all(|status| (400..500).contains(status));
        assert!(fine, "{statuses:?} for {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
    }
    scene.is_as_before();
}

/// Two servers in a row may not see different requests in the same bytes: what could be read in two ways is refused,
/// and nothing after it is read.
#[test]
fn smuggled_requests() {
    let scene = Scene::new();
    let inner = "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
    let requests: Vec<String> = [
        "Content-Length: 35\r\n",
        "Content-Length: 35\r\nContent-Length: 0\r\n",
        "Content-Length: 0\r\nContent-Length: 35\r\n",
        "Content-Length: 0, 35\r\n",
        "Content-Length: +35\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x23\r\n",
        "Content-Length: 99999999999999999999\r\n",
        "Content-Length : 35\r\n",
        " Content-Length: 35\r\n",
        "Transfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding:\r\n chunked\r\n",
        "Transfer-Encoding:\x0bchunked\r\n",
        "X: y\rTransfer-Encoding: chunked\r\n",
    ]
    .iter()
    .flat_map(|header| {
        ["", "0\r\n\r\n", "1\r\nZ\r\n0\r\n\r\n"]
            .map(|before| format!("GET /healthz HTTP/1.1\r\nHost: a\r\n{header}\r\n{before}{inner}"))
    })
    .collect();
    let answers = scene.client(move || {
        requests
            .into_iter()
            .map(|request| (statuses(&talk_on(request.as_bytes())), request))
            .collect::<Vec<_>>()
    });
    for (statuses, request) in answers.join().expect("the client") {
        assert!(matches!(statuses[..], [400..=499]), "{statuses:?} for {request:?}");
    }
    // The measure: two requests in a row are two answers.
    let twice = scene.client(move || statuses(&talk_on(inner.repeat(2).as_bytes()))).join();
    assert_eq!(twice.expect("the client"), [200, 200]);
    scene.is_as_before();
}

#[test]
fn odd_paths() {
    let scene = Scene::new();
    let ask = |line: &str| {
        let request = format!("{line} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let answer = scene.client(move || {
            let mut stream = connect();
            stream.write_all(request.as_bytes()).expect("ask");
            rest(stream)
        });
        let answer = answer.join().expect("the client");
        match statuses(&answer)[..] {
            [status] => status,
            ref other => panic!("{other:?} for {line:?}"),
        }
    };
    for path in [
        "//metrics",
        "/metrics/",
        "/metrics//",
        "/./metrics",
        "/x/../metrics",
        "/%6detrics",
        "/metrics%00",
        "/metrics%2f",
        "/metrics;a=b",
        "/METRICS",
        "/metrics/..",
        "/..%2f..%2fetc/passwd",
        "/../../etc/passwd",
        "/healthz/../metrics",
        "/healthz%2e%2e/metrics",
        "/api/v1",
        "/api/v1/",
        "/api//v1/snapshot",
        "/api/v1/snapshot/x",
        "\\metrics",
        "/metrics\\",
        "/%",
    ] {
        let status = ask(&format!("GET {path}"));
        assert!(status == 404 || status == 400, "{status} for {path}");
    }
    for (line, status) in [
        ("GET /metrics?x=%00&y", 200),
        ("GET http://elsewhere/healthz", 200),
        ("HEAD /metrics", 200),
        ("GET metrics", 404),
        ("POST /metrics", 405),
        ("DELETE /api/v1/snapshot", 405),
        ("TRACE /metrics", 405),
        ("OPTIONS *", 404),
        ("CONNECT elsewhere:80", 404),
        ("GET /api/v1/flows?limit=-1", 400),
        ("GET /api/v1/flows?limit=99999999999999999999", 400),
        ("GET /api/v1/flows?limit=1&limit=2", 400),
        ("GET /api/v1/flows?limit=18446744073709551615", 200),
        ("GET /api/v1/flows?container=%00%ff%1b", 200),
    ] {
        assert_eq!(ask(line), status, "{line}");
    }
    scene.is_as_before();
}

/// A certificate for localhost, and one for a client, of an authority of their own.
fn certificates(folder: &Path) {
    let script = "set -e
        ca='-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes'
        openssl req -x509 $ca -days 2 -subj /CN=authority -keyout ca.key -out ca.crt
        printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\n' > server.ext
        for name in server other client; do
            openssl req $ca -subj /CN=$name -keyout $name.key -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile server.ext -out $name.crt
        done";
    let output = Command::new("sh").args(["-c", script]).current_dir(folder).output().expect("run sh");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// An agent with a web configuration in a folder with certificates.
struct Protected {
    folder: tempfile::TempDir,
    agent: Agent,
}

impl Protected {
    fn start(configuration: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        certificates(folder.path());
        let file = folder.path().join("web.yml");
        fs::write(&file, configuration).expect("write the configuration");
        // As exporters call it.
        let agent = Agent::start(&["--no-engine", &format!("--web.config.file={}", file.display())]);
        Self { folder, agent }
    }

    fn replace(&self, file: &str, by: &str) {
        let path = |name: &str| self.folder.path().join(name);
        fs::copy(path(by), path("new")).expect("copy");
        fs::rename(path("new"), path(file)).expect("rename");
    }

    fn write(&self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).expect("write");
    }

    /// What curl says, with these arguments: the status code last, on a line of its own.
    fn curl(&self, path: &str, arguments: &[&str]) -> Output {
        Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "10", "--write-out", "\n%{http_code}"])
            .args(["--cacert", "ca.crt"])
            .args(arguments)
            .arg(format!("https://localhost:{}{path}", self.agent.port))
            .current_dir(self.folder.path())
            .output()
            .expect("run curl")
    }

    /// Status and body.
    fn get(&self, path: &str, arguments: &[&str]) -> Result<(u16, String), String> {
        let output = self.curl(path, arguments);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, status) = text.rsplit_once('\n').unwrap_or_default();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok((status.parse().map_err(|_| text.clone())?, body.to_owned()))
    }

    fn until_ready(&self, arguments: &[&str]) {
        wait_for("ready", LIMIT, || match self.get("/readyz", arguments) {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// The name in the certificate that is served.
    fn served(&self) -> String {
        let script = format!(
            "openssl s_client -connect 127.0.0.1:{} </dev/null 2>/dev/null | openssl x509 -noout -subject",
            self.agent.port
        );
        let output = Command::new("sh").args(["-c", &script]).output().expect("run sh");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

const TLS: &str = "tls_server_config: {cert_file: server.crt, key_file: server.key}\n";

/// A line for a user whose password is `right`.
fn user(name: &str, cost: u32) -> String {
    format!("basic_auth_users: {{{name}: {}}}\n", bcrypt::hash("right", cost).expect("hash"))
}

const PATHS: [&str; 11] = [
    "/",
    "/metrics",
    "/metrics/cadvisor",
    "/healthz",
    "/readyz",
    "/api/v1/snapshot",
    "/api/v1/flows",
    "/api/v1/topology",
    "/api/v1/drops",
    "/nothing/here",
    "/metrics?x=y",
];

#[test]
fn only_users_are_answered() {
    let headers = "http_server_config: {headers: {X-Content-Type-Options: nosniff}}\n";
    let protected = Protected::start(&format!("{TLS}{}{headers}", user("alice", 5)));
    protected.until_ready(&["--user", "alice:right"]);
    for path in PATHS {
        for wrong in [
            &[][..],
            &["--user", "alice:wrong"],
            &["--user", "alice:"],
            &["--user", "bob:right"],
            &["--user", ":"],
            &["--header", "Authorization: Bearer right"],
            &["--header", "Authorization: Basic ????"],
            &["--request", "POST", "--data", "x=y"],
            &["--request", "OPTIONS"],
        ] {
            let (status, body) = protected.get(path, wrong).expect("an answer");
            assert_eq!((status, body.as_str()), (401, "unauthorized\n"), "{path} {wrong:?}");
        }
        let wanted = if path.starts_with("/nothing") { 404 } else { 200 };
        let (status, body) = protected.get(path, &["--user", "alice:right"]).expect("an answer");
        assert_eq!(status, wanted, "{path}: {body}");
    }
    let output = protected.curl("/healthz", &["--include"]);
    let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
    assert!(
        text.contains("www-authenticate: basic") && text.contains("x-content-type-options: nosniff"),
        "{text}"
    );
    // Another password, without a restart.
    protected.write("web.yml", &format!("{TLS}{}", user("carol", 5)));
    assert_eq!(protected.get("/metrics", &["--user", "alice:right"]).expect("an answer").0, 401);
    assert_eq!(protected.get("/metrics", &["--user", "carol:right"]).expect("an answer").0, 200);
    protected.write("web.yml", TLS);
    assert_eq!(protected.get("/metrics", &[]).expect("an answer").0, 401, "it does not go off");
}

#[test]
fn guessing_passwords_costs_others_nothing() {
    let protected = Protected::start(&user("alice", 9));
    let port = protected.agent.port;
    let ask = move |password: &str| {
        let output = Command::new("curl")
            .args(["--silent", "--max-time", "60", "--output", "/dev/null", "--write-out", "%{http_code}"])
            .args(["--user", &format!("alice:{password}"), &format!("http://127.0.0.1:{port}/metrics")])
            .output()
            .expect("run curl");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    wait_for("an answer", LIMIT, || if ask("right") == "200" { Ok(()) } else { Err(ask("right")) });
    let guesses: Vec<_> = (0..30).map(|n| std::thread::spawn(move || ask(&format!("guess {n}")))).collect();
    let mut slowest = Duration::ZERO;
    while !guesses.iter().all(std::thread::JoinHandle::is_finished) {
        let start = Instant::now();
        assert_eq!(ask("right"), "200");
        slowest = slowest.max(start.elapsed());
    }
    println!("a scrape while others guess: {slowest:?} at most");
    assert!(slowest < Duration::from_secs(3), "{slowest:?}");
    for guess in guesses {
        assert_eq!(guess.join().expect("a guess"), "401");
    }
}

#[test]
fn tls_as_configured() {
    let protected = Protected::start(TLS);
    protected.until_ready(&[]);
    assert_eq!(protected.get("/healthz", &[]).expect("an answer"), (200, "ok\n".to_owned()));
    assert!(http::get(protected.agent.port, "/metrics").is_err(), "nothing without TLS");
    assert!(protected.get("/healthz", &["--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0"]).is_err());
    assert!(protected.get("/healthz", &["--tls-max", "1.2"]).is_ok());
    assert!(protected.get("/healthz", &["--tlsv1.3", "--http2"]).is_ok(), "HTTP/2 is not insisted on");
    // A new certificate is served from the next connection on; half of one is not.
    assert!(protected.served().ends_with("server"), "{}", protected.served());
    protected.write("server.crt", "-----BEGIN CERTIFICATE-----\nMIIB");
    assert!(protected.served().ends_with("server"), "{}", protected.served());
    protected.replace("server.crt", "other.crt");
    protected.replace("server.key", "other.key");
    assert!(protected.served().ends_with("other"), "{}", protected.served());
    // Only TLS 1.3 and only with a client's certificate; then without TLS, which is not to be had by an edit.
    let strict = "tls_server_config: {cert_file: other.crt, key_file: other.key, min_version: TLS13, \
                  client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.crt}\n";
    protected.write("web.yml", strict);
    let own = ["--cert", "client.crt", "--key", "client.key"];
    assert!(protected.get("/healthz", &[]).is_err());
    assert!(protected.get("/healthz", &[&own[..], &["--tls-max", "1.2"]].concat()).is_err());
    assert_eq!(protected.get("/healthz", &own).expect("an answer").0, 200);
    protected.write("web.yml", "");
    assert!(http::get(protected.agent.port, "/metrics").is_err());
    assert_eq!(protected.get("/healthz", &own).expect("an answer").0, 200);
}

#[test]
fn handshakes_that_are_not_finished() {
    let protected = Protected::start(TLS);
    protected.until_ready(&[]);
    let port = protected.agent.port;
    let mut streams: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(("127.0.0.1", port)).expect("connect")).collect();
    for stream in &mut streams[..50] {
        stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01").expect("write");
    }
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(13) {
        assert_eq!(protected.get("/healthz", &[]).expect("an answer").0, 200);
        std::thread::sleep(Duration::from_millis(500));
    }
    assert!(streams.iter_mut().all(is_closed));
}

#[test]
fn a_prometheus_server_scrapes_with_a_password() {
    let protected = Protected::start(&format!("{TLS}{}", user("alice", 10)));
    protected.until_ready(&["--user", "alice:right"]);
    let job = |name: &str, password: &str| {
        format!(
            "- {{job_name: {name}, scheme: https, tls_config: {{ca_file: {}/ca.crt}}, basic_auth: {{username: alice, \
             password: {password}}}, static_configs: [{{targets: ['localhost:{}']}}]}}\n",
            protected.folder.path().display(),
            protected.agent.port
        )
    };
    let server = Server::start(&format!("{}{}", job("right", "right"), job("wrong", "wrong")));
    server.until("up{job=\"right\"}", |up| up == 1.0);
    server.until("up{job=\"wrong\"}", |up| up == 0.0);
    server.until("netobs_build_info{job=\"right\"}", |one| one == 1.0);
    assert!(server.query("netobs_build_info{job=\"wrong\"}").expect("an answer").is_empty());
}

#[test]
fn a_wrong_configuration_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.yml");
    for (text, words) in [
        ("basic_auth_user: {}\n", &["basic_auth_user"][..]),
        ("basic_auth_users: {alice: secret}\n", &["alice", "bcrypt"]),
        ("tls_server_config: {cert_file: none.crt, key_file: none.key}\n", &["none.crt", "No such file"]),
        ("tls_server_config: {min_version: TLS12}\n", &["cert_file"]),
    ] {
        fs::write(&file, text).expect("write");
        let path = file.to_string_lossy();
        let output = run(&["agent", "--no-engine", "--listen", "127.0.0.1:0", "--web-config-file", &path]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{said}");
        for word in words.iter().chain([&&*path]) {
            assert!(said.contains(*word), "no {word:?} in {said}");
        }
        assert!(!said.contains("secret"), "{said}");
    }
}
