//! How TCP connections fare: by real connections through a relay that delays or loses what a test wants it to, and
//! held against the kernel's own counters of the same namespaces. Without an engine, so that it runs on any kernel.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use netobs_tests::{
    bpf, http, kernel,
    netns::Netns,
    pretend::Pretend,
    program::{Agent, Watch, container, number, unless_left_out},
    relay::{ACK, Frame, RST, Relay, SYN},
    wait_for,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

/// A host and two containers, whose interfaces there lead nowhere but to the relay.
struct World {
    host: Netns,
    containers: [Pretend; 2],
    _relay: Relay,
}

impl World {
    fn new(delay: Duration, passes: impl FnMut(&Frame<'_>) -> bool + Send + 'static) -> Self {
        let host = Netns::new();
        let containers = [Pretend::new(), Pretend::new()];
        for (n, container) in containers.iter().enumerate() {
            let pid = container.netns().pid();
            host.sh(&format!(
                "ip link add veth{n} type veth peer name eth0 netns {pid}; ip link set veth{n} up"
            ));
            container.netns().sh(&format!("ip addr add 10.81.0.{}/24 dev eth0; ip link set eth0 up", n + 10));
        }
        let relay = Relay::start(&host, ["veth0", "veth1"], delay, passes);
        Self { host, containers, _relay: relay }
    }

    fn netns(&self, n: usize) -> &Netns {
        self.containers[n].netns()
    }

    fn name(&self, n: usize) -> &str {
        self.containers[n].name()
    }

    fn watch(&self, arguments: &[&str]) -> Watch {
        let watch = Watch::start(Some(&self.host), &[&["--no-engine", "--grace=60s"], arguments].concat());
        self.until_known(&watch);
        watch
    }

    fn until_known(&self, watch: &Watch) {
        for n in 0..2 {
            watch.until("its namespace", |snapshot| {
                container(snapshot, self.name(n))?["namespace"].as_str().map(drop)
            });
        }
    }

    /// What the agent says of the only conversation with this port that a container has begun itself. (One that passes on
    /// what is another's has it, too.)
    fn conversation(&self, agent: &Agent, port: u16) -> Result<Value, String> {
        // That notes what was left out.
        agent.snapshot(&self.host)?;
        let text = get(&self.host, agent, "/api/v1/flows")?;
        let all: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        let flows = all["flows"].as_array().ok_or("no flows")?;
        let is_it =
            |flow: &&Value| flow["server"]["port"] == port && flow["to_server"]["sent"]["packets"] != 0;
        let found: Vec<&Value> = flows.iter().filter(is_it).collect();
        match found.as_slice() {
            [one] => Ok((*one).clone()),
            other => Err(format!("{other:?}")),
        }
    }

    fn agent(&self) -> Agent {
        let agent = Agent::start_in(Some(&self.host), &["--no-engine", "--grace=60s", "--no-drops"]);
        wait_for("both containers", LIMIT, || {
            let text = get(&self.host, &agent, "/metrics")?;
            let known =
                |n: usize| text.contains(&format!("tcp_accepts_total{{container=\"{}\"", self.name(n)));
            if known(0) && known(1) { Ok(()) } else { Err(text) }
        });
        agent
    }
}

fn get(host: &Netns, agent: &Agent, path: &'static str) -> Result<String, String> {
    let port = agent.port;
    let (status, body) = host.run(move || http::get(port, path)).map_err(|error| error.to_string())?;
    if status == 200 { Ok(body) } else { Err(format!("{status}: {body}")) }
}

fn address(n: usize, port: u16) -> SocketAddr {
    format!("10.81.0.{}:{port}", n + 10).parse().expect("an address")
}

/// What is known of a container's connections, once it is as wanted.
fn until(watch: &Watch, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        watch.until("its connections", |snapshot| {
            last = container(snapshot, name)?["tcp"].clone();
            wanted(&last).then(|| last.clone())
        })
    }));
    found.unwrap_or_else(|_| panic!("{name}: {last}"))
}

/// How many of a distribution, and their sum in microseconds.
fn measured(tcp: &Value, distribution: &str) -> (u64, u64) {
    let distribution = &tcp["connections"][distribution];
    let buckets = distribution["buckets"].as_array().expect("buckets");
    let all = buckets.iter().map(|bucket| bucket.as_u64().expect("a number")).sum();
    (all, number(distribution, "sum_us"))
}

fn established(tcp: &Value) -> u64 {
    measured(tcp, "client_handshake").0 + number(tcp, "connections.client_handshake.unmeasured")
}

fn accepted(tcp: &Value) -> u64 {
    measured(tcp, "server_handshake").0 + number(tcp, "connections.server_handshake.unmeasured")
}

/// An echo on a port of a container, for so many connections.
fn echo(netns: &Netns, address: SocketAddr, connections: usize) -> std::thread::JoinHandle<()> {
    let listener = netns.run(move || TcpListener::bind(address).expect("listen"));
    std::thread::spawn(move || {
        for _ in 0..connections {
            let (mut stream, _) = listener.accept().expect("accept");
            let mut buffer = [0; 4096];
            while let Ok(len @ 1..) = stream.read(&mut buffer) {
                stream.write_all(&buffer[..len]).expect("echo");
            }
        }
    })
}

/// One byte there and back.
fn exchange(stream: &mut TcpStream) {
    stream.write_all(b"x").expect("send");
    stream.read_exact(&mut [0]).expect("receive");
}

const DELAY: Duration = Duration::from_millis(40);
/// Once there and once back.
const ROUND_TRIP_US: u64 = 80_000;
/// What a busy machine may add.
const MOST_US: u64 = 10 * ROUND_TRIP_US;

#[test]
fn handshakes_and_round_trips_take_what_the_relay_takes() {
    unless_left_out(|| {
        let world = World::new(DELAY, |_| true);
        let watch = world.watch(&[]);
        let server = echo(world.netns(1), address(1, 5000), 3);
        world.netns(0).run(|| {
            for _ in 0..3 {
                exchange(&mut TcpStream::connect(address(1, 5000)).expect("connect"));
            }
        });
        server.join().expect("the server");

        let client = until(&watch, world.name(0), |tcp| measured(tcp, "rtt").0 == 6);
        let server = until(&watch, world.name(1), |tcp| measured(tcp, "rtt").0 == 6);
        let is_delay = |(count, sum_us): (u64, u64), expected: u64| {
            assert_eq!(count, expected);
            let range = expected * ROUND_TRIP_US..expected * MOST_US;
            assert!(range.contains(&sum_us), "{expected} round trips in {sum_us} us: {client} {server}");
        };
        is_delay(measured(&client, "client_handshake"), 3);
        is_delay(measured(&server, "server_handshake"), 3);
        // At the begin and at the end of each.
        is_delay(measured(&client, "rtt"), 6);
        is_delay(measured(&server, "rtt"), 6);
        // Bounds up to 50 ms are the first nine.
        for (tcp, distribution) in
            [(&client, "client_handshake"), (&server, "server_handshake"), (&client, "rtt")]
        {
            let buckets = tcp["connections"][distribution]["buckets"].as_array().expect("buckets");
            assert!(buckets[..9].iter().all(|bucket| *bucket == 0), "{distribution}: {buckets:?}");
        }
        assert_eq!((established(&client), accepted(&client)), (3, 0), "{client}");
        assert_eq!((established(&server), accepted(&server)), (0, 3), "{server}");
        for (n, tcp) in [(0, &client), (1, &server)] {
            assert_eq!(number(tcp, "connections.refused") + number(tcp, "connections.given_up"), 0, "{tcp}");
            let retransmitted = kernel::snmp(world.netns(n), "Tcp", "RetransSegs");
            assert_eq!(number(tcp, "retransmitted_segments"), retransmitted, "{tcp}");
        }
    });
}

/// A socket that connects to itself is the one case of two SYNs that meet which needs no luck: it has connected, and
/// nobody has accepted.
#[test]
fn both_ends_connect() {
    unless_left_out(|| {
        let world = World::new(DELAY, |_| true);
        let watch = world.watch(&[]);
        world.netns(0).sh("ip link set lo up");
        world.netns(0).run(|| {
            let itself: SockaddrIn = "10.81.0.10:7100".parse().expect("an address");
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None);
            let socket = socket.expect("a socket");
            bind(socket.as_raw_fd(), &itself).expect("bind");
            connect(socket.as_raw_fd(), &itself).expect("connect");
        });
        let tcp = until(&watch, world.name(0), |tcp| measured(tcp, "client_handshake").0 == 1);
        assert_eq!((established(&tcp), accepted(&tcp)), (1, 0), "{tcp}");
        // Accepting is told from that.
        let server = echo(world.netns(0), address(0, 5000), 1);
        world.netns(1).run(|| exchange(&mut TcpStream::connect(address(0, 5000)).expect("connect")));
        server.join().expect("the server");
        let tcp = until(&watch, world.name(0), |tcp| accepted(tcp) == 1);
        assert_eq!(established(&tcp), 1, "{tcp}");
    });
}

/// The same figure as the kernel's `TCP_INFO` (and `ss`) has, to the microsecond.
#[test]
fn a_flow_has_its_own_handshake_and_round_trip() {
    unless_left_out(|| {
        let world = World::new(DELAY, |_| true);
        let agent = world.agent();
        let listener = world.netns(1).run(|| TcpListener::bind(address(1, 5001)).expect("listen"));
        let mut client = world.netns(0).run(|| TcpStream::connect(address(1, 5001)).expect("connect"));
        let (mut server, _) = listener.accept().expect("accept");
        let is_known = |flow: &Value| flow["client_tcp"].is_object() && flow["server_tcp"].is_object();
        let open = wait_for("an open connection", LIMIT, || {
            let flow = world.conversation(&agent, 5001)?;
            if is_known(&flow) { Ok(flow) } else { Err(flow.to_string()) }
        });
        for (socket, end) in [(&client, "client_tcp"), (&server, "server_tcp")] {
            let rtt = open[end]["rtt_seconds"].as_f64().expect("a round-trip time");
            assert_eq!((rtt * 1e6).round() as u32, info(socket).tcpi_rtt, "as the kernel has it: {open}");
            let handshake = open[end]["handshake_seconds"].as_f64().expect("a handshake");
            let range = ROUND_TRIP_US as f64 / 1e6..MOST_US as f64 / 1e6;
            assert!(range.contains(&handshake), "{open}");
            assert_eq!(open[end]["retransmitted_segments"], 0, "{open}");
        }
        for _ in 0..5 {
            client.write_all(b"x").expect("send");
            server.read_exact(&mut [0]).expect("receive");
            server.write_all(b"y").expect("send");
            client.read_exact(&mut [0]).expect("receive");
        }
        drop(client);
        assert_eq!(server.read(&mut [0]).expect("the end"), 0);
        // Nothing more comes to this end that would change it.
        let last = info(&server).tcpi_rtt;
        drop(server);
        wait_for("the last figure", LIMIT, || {
            let flow = world.conversation(&agent, 5001)?;
            let rtt = flow["server_tcp"]["rtt_seconds"].as_f64().ok_or("none")? * 1e6;
            let is_near = (f64::from(last) * 0.8..f64::from(last) * 1.5).contains(&rtt);
            let changed = flow["server_tcp"] != open["server_tcp"];
            if flow["state"] == "closed" && changed && is_near {
                Ok(())
            } else {
                Err(format!("{last}: {flow}"))
            }
        });
        let text = get(&world.host, &agent, "/metrics").expect("metrics");
        let name = world.name(0);
        for series in [
            format!(
                "netobs_container_tcp_handshake_seconds_count{{container=\"{name}\",id=\"{name}\",role=\"client\"}} 1"
            ),
            format!(
                "netobs_container_tcp_connects_total{{container=\"{name}\",id=\"{name}\",result=\"established\"}} 1"
            ),
            "netobs_tcp_events_lost_total{cause=\"flow\"} 0".to_owned(),
        ] {
            assert!(text.lines().any(|line| line == series), "no {series} in {text}");
        }
    });
}

/// What the kernel says of a connection.
fn info(stream: &TcpStream) -> libc::tcp_info {
    // SAFETY: all zero is a valid tcp_info.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut len = size_of_val(&info) as u32;
    // SAFETY: there is as much room as is said.
    let got = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast(),
            &raw mut len,
        )
    };
    assert_eq!(got, 0, "{:?}", std::io::Error::last_os_error());
    info
}

#[test]
fn connects_that_fail_are_told_apart() {
    unless_left_out(|| {
        // What is sent to port 7 of the other container vanishes.
        let world = World::new(Duration::ZERO, |frame| {
            let of_tcp = &frame.bytes.get(14 + 20..14 + 24);
            !(frame.segment().is_some() && of_tcp.is_some_and(|ports| ports[2..] == [0, 7]))
        });
        let watch = world.watch(&[]);
        let client = world.netns(0);
        client.sh("sysctl -qw net.ipv4.tcp_syn_retries=1; ip route add 10.82.0.0/24 via 10.81.0.11");
        // It answers each that it cannot pass on.
        world.netns(1).sh(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0; ip route add unreachable 10.82.0.0/24",
    );
        client.run(|| {
            for _ in 0..5 {
                let error = TcpStream::connect(address(1, 6)).expect_err("nobody listens");
                assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            }
            for _ in 0..4 {
                let error = TcpStream::connect("10.82.0.1:8").expect_err("there is no such host");
                assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
            }
            for _ in 0..2 {
                TcpStream::connect_timeout(&address(1, 7), Duration::from_millis(100))
                    .expect_err("no answer");
            }
        });
        let waiting: Vec<_> = (0..3).map(|_| client.spawn(|| TcpStream::connect(address(1, 7)))).collect();
        for connect in waiting {
            let error = connect.join().expect("a client").expect_err("no answer");
            assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
        }
        let tcp = until(&watch, world.name(0), |tcp| tcp["connections"]["timed_out"] == 3);
        let of = |name: &str| number(&tcp, &format!("connections.{name}"));
        assert_eq!((of("refused"), of("failed"), of("given_up")), (5, 4, 2), "{tcp}");
        assert_eq!((established(&tcp), accepted(&tcp)), (0, 0), "{tcp}");
        let retransmitted = kernel::snmp(client, "Tcp", "RetransSegs");
        assert!(retransmitted >= 3, "each SYN that no answer came to: {retransmitted}");
        assert_eq!(number(&tcp, "retransmitted_segments"), retransmitted, "{tcp}");
        // Of those that the program gave up itself, the kernel has no count.
        assert_eq!(kernel::snmp(client, "Tcp", "AttemptFails"), 5 + 4 + 3, "the kernel's own");
        assert_eq!(number(&tcp, "resets.received"), 5, "{tcp}");

        let sent = kernel::snmp(world.netns(1), "Tcp", "OutRsts");
        assert!(sent >= 5, "each SYN to a port that nobody listens at: {sent}");
        // Those without a socket it tells of since 6.10.
        let told = if kernel::release() >= (6, 10) { sent } else { 0 };
        let server = until(&watch, world.name(1), |tcp| tcp["resets"]["sent"] == told);
        assert_eq!((established(&server), accepted(&server)), (0, 0), "{server}");
    });
}

/// Each connection that never came to be says why, and one that did says so.
#[test]
fn a_flow_says_how_its_connect_went() {
    unless_left_out(|| {
        // What is sent to ports 7 and 9 of the other container vanishes.
        let world = World::new(Duration::ZERO, |frame| {
            let ports = frame.bytes.get(14 + 20..14 + 24).filter(|_| frame.segment().is_some());
            !ports.is_some_and(|ports| matches!(ports[2..], [0, 7 | 9]))
        });
        let agent = world.agent();
        let client = world.netns(0);
        client.sh("sysctl -qw net.ipv4.tcp_syn_retries=1; ip route add 10.82.0.0/24 via 10.81.0.11");
        world.netns(1).sh(
        "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0; ip route add unreachable 10.82.0.0/24",
    );
        let server = echo(world.netns(1), address(1, 5008), 1);
        client.run(|| {
            let error = TcpStream::connect(address(1, 6)).expect_err("nobody listens");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED));
            let error = TcpStream::connect("10.82.0.1:8").expect_err("there is no such host");
            assert_eq!(error.raw_os_error(), Some(libc::EHOSTUNREACH));
            TcpStream::connect_timeout(&address(1, 9), Duration::from_millis(100)).expect_err("no answer");
            let error = TcpStream::connect(address(1, 7)).expect_err("no answer");
            assert_eq!(error.raw_os_error(), Some(libc::ETIMEDOUT));
            exchange(&mut TcpStream::connect(address(1, 5008)).expect("connect"));
        });
        server.join().expect("the server");
        let server = Value::from("server");
        let mut retransmitted = 0;
        for (port, outcome, received, reset_by) in [
            (6, "refused", 1, &server),
            (7, "timed_out", 0, &Value::Null),
            (8, "failed", 0, &Value::Null),
            (9, "given_up", 0, &Value::Null),
            (5008, "established", 0, &Value::Null),
        ] {
            let flow = wait_for("how it went", LIMIT, || {
                let flow = world.conversation(&agent, port)?;
                // All that it sent is SYN again. How often depends on the kernel: an error that finds the socket locked
                // is not acted on, and the next SYN gets another.
                let sent = number(&flow, "to_server.sent.packets");
                let is_whole = outcome == "established"
                    || flow["client_tcp"]["retransmitted_segments"].as_u64() == sent.checked_sub(1);
                let is_told = flow["client_tcp"]["outcome"] == outcome && is_whole;
                if is_told { Ok(flow) } else { Err(flow.to_string()) }
            });
            let client = &flow["client_tcp"];
            assert_eq!(client["resets"], serde_json::json!({ "sent": 0, "received": received }), "{flow}");
            assert_eq!(&flow["reset_by"], reset_by, "{flow}");
            assert!(outcome != "timed_out" || client["retransmitted_segments"] != 0, "{flow}");
            retransmitted += number(client, "retransmitted_segments");
            // No socket of the other end ever knew of the others.
            if outcome == "established" {
                assert_eq!(flow["server_tcp"]["outcome"], "established", "{flow}");
            } else {
                assert!(flow["server_tcp"].is_null() && client["handshake_seconds"].is_null(), "{flow}");
            }
        }
        assert_eq!(retransmitted, kernel::snmp(world.netns(0), "Tcp", "RetransSegs"), "of all five");
    });
}

/// Lost are the first SYN, the first SYN-ACK, and of both directions of data one frame in eight.
#[test]
fn retransmits_are_as_many_as_the_kernel_has() {
    unless_left_out(|| {
        let mut seen = [0u64; 4];
        let world = World::new(Duration::from_millis(1), move |frame| {
            let Some(segment) = frame.segment() else { return true };
            let kind = match segment.flags & (SYN | ACK) {
                SYN => 0,
                flags if flags == SYN | ACK => 1,
                _ if segment.payload > 0 => 2 + frame.from,
                _ => return true,
            };
            seen[kind] += 1;
            if kind < 2 { seen[kind] > 1 } else { seen[kind] % 8 != 0 }
        });
        let agent = world.agent();
        let watch = world.watch(&[]);
        // (The agent's own figures are of the same connections.)
        let server = echo(world.netns(1), address(1, 5002), 1);
        world.netns(0).run(|| {
            let mut stream = TcpStream::connect(address(1, 5002)).expect("connect");
            let mut reader = stream.try_clone().expect("another handle");
            let reader = std::thread::spawn(move || {
                let mut left = BYTES;
                let mut buffer = [0; 65536];
                while left > 0 {
                    left -= reader.read(&mut buffer).expect("receive");
                }
            });
            stream.write_all(&vec![7; BYTES]).expect("send");
            reader.join().expect("the reader");
        });
        server.join().expect("the server");
        for n in 0..2 {
            let (tcp, kernel) = wait_for("what the kernel has", LIMIT, || {
                let before = kernel::snmp(world.netns(n), "Tcp", "RetransSegs");
                let snapshot = watch.fresh();
                let tcp = container(&snapshot, world.name(n)).ok_or("no container")?["tcp"].clone();
                let quiet = before == kernel::snmp(world.netns(n), "Tcp", "RetransSegs");
                let ours = number(&tcp, "retransmitted_segments");
                let lost = &snapshot["agent"]["tcp"]["lost"];
                if quiet && ours == before {
                    Ok((tcp, before))
                } else {
                    Err(format!("{ours}, not {before}; {lost}"))
                }
            });
            println!("{n}: {kernel} segments sent again, as the kernel has it");
            assert!(kernel > 10, "so much was lost: {tcp}");
            let synchronizing = kernel::snmp(world.netns(n), "TcpExt", "TCPSynRetrans");
            assert!(synchronizing >= 1, "a SYN there, a SYN-ACK here");
            let end = ["client_tcp", "server_tcp"][n];
            wait_for("the flow's own count", LIMIT, || {
                let flow = world.conversation(&agent, 5002)?;
                let ours = flow[end]["retransmitted_segments"].as_u64();
                if ours == Some(kernel) { Ok(()) } else { Err(format!("{ours:?}, not {kernel}: {flow}")) }
            });
        }
        // From the first SYN on, which was sent again after a second, as was the SYN-ACK.
        let client = until(&watch, world.name(0), |tcp| established(tcp) == 1);
        assert!(measured(&client, "client_handshake").1 >= 1_000_000, "{client}");
    });
}

const BYTES: usize = 1 << 20;

#[test]
fn resets_are_counted_where_they_are_sent_and_where_they_arrive() {
    unless_left_out(|| {
        const RESETS: u64 = 7;
        let world = World::new(Duration::ZERO, |_| true);
        let watch = world.watch(&[]);
        let listener = world.netns(1).run(|| TcpListener::bind(address(1, 5003)).expect("listen"));
        let server = std::thread::spawn(move || {
            for _ in 0..RESETS {
                let (mut stream, _) = listener.accept().expect("accept");
                // Until the client is sure to have connected.
                stream.read_exact(&mut [0]).expect("receive");
                reset(stream);
            }
        });
        world.netns(0).run(|| {
            for _ in 0..RESETS {
                let mut stream = TcpStream::connect(address(1, 5003)).expect("connect");
                stream.write_all(b"x").expect("send");
                let error = stream.read(&mut [0]).expect_err("reset");
                assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
            }
        });
        server.join().expect("the server");
        let client = until(&watch, world.name(0), |tcp| tcp["resets"]["received"] == RESETS);
        let server = until(&watch, world.name(1), |tcp| tcp["resets"]["sent"] == RESETS);
        assert_eq!((number(&client, "resets.sent"), number(&server, "resets.received")), (0, 0));
        assert_eq!(kernel::snmp(world.netns(0), "Tcp", "EstabResets"), RESETS);
        assert_eq!(kernel::snmp(world.netns(1), "Tcp", "OutRsts"), RESETS);
        assert_eq!((established(&client), accepted(&server)), (RESETS, RESETS), "{client} {server}");
    });
}

/// By its packets, and by the sockets of both ends.
#[test]
fn a_flow_says_who_has_reset_it() {
    unless_left_out(|| {
        let world = World::new(Duration::ZERO, |_| true);
        let agent = world.agent();
        for (port, by) in [(5010, "client"), (5011, "server"), (5012, "nobody")] {
            let listener = world.netns(1).run(move || TcpListener::bind(address(1, port)).expect("listen"));
            let mut client =
                world.netns(0).run(move || TcpStream::connect(address(1, port)).expect("connect"));
            let (mut server, _) = listener.accept().expect("accept");
            client.write_all(b"x").expect("send");
            server.read_exact(&mut [0]).expect("receive");
            match by {
                "client" => {
                    reset(client);
                    server.read(&mut [0]).expect_err("reset");
                }
                "server" => {
                    reset(server);
                    client.read(&mut [0]).expect_err("reset");
                }
                _ => {
                    drop(client);
                    assert_eq!(server.read(&mut [0]).expect("the end"), 0);
                }
            }
        }
        for (port, by, state, client, server) in [
            (5010, Value::from("client"), "reset", (1, 0), (0, 1)),
            (5011, Value::from("server"), "reset", (0, 1), (1, 0)),
            (5012, Value::Null, "closed", (0, 0), (0, 0)),
        ] {
            let resets =
                |(sent, received): (u64, u64)| serde_json::json!({ "sent": sent, "received": received });
            wait_for("who has reset it", LIMIT, || {
                let flow = world.conversation(&agent, port)?;
                let ends = ["client_tcp", "server_tcp"].map(|end| &flow[end]);
                let is_told = (&flow["reset_by"], &flow["state"]) == (&by, &state.into())
                    && ends.each_ref().map(|end| &end["resets"]) == [&resets(client), &resets(server)]
                    && ends.iter().all(|end| end["outcome"] == "established");
                if is_told { Ok(()) } else { Err(flow.to_string()) }
            });
        }
    });
}

/// Closes a connection with a reset.
fn reset(stream: TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is as long as is said.
    let set = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of_val(&linger) as u32,
        )
    };
    assert_eq!(set, 0);
    drop(stream);
}

/// One that does not read, until its sender can send no more.
#[test]
fn zero_windows_are_counted_at_both_interfaces_and_in_the_flow() {
    let passed = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
    let counts = Arc::clone(&passed);
    let world = World::new(Duration::ZERO, move |frame| {
        if let Some(segment) = frame.segment()
            && segment.window == 0
            && segment.flags & (SYN | RST) == 0
        {
            counts[frame.from].fetch_add(1, Ordering::Relaxed);
        }
        true
    });
    let agent = world.agent();
    let watch = world.watch(&[]);
    world.netns(1).sh("sysctl -qw net.ipv4.tcp_rmem='4096 8192 8192'");
    let listener = world.netns(1).run(|| TcpListener::bind(address(1, 5004)).expect("listen"));
    let mut client = world.netns(0).run(|| TcpStream::connect(address(1, 5004)).expect("connect"));
    let (mut server, _) = listener.accept().expect("accept");
    client.set_nonblocking(true).expect("nonblocking");
    // Until there is no room on the way, and the other's window is shut.
    let chunk = [7; 1 << 14];
    let mut sent = 0;
    wait_for("a window of zero", LIMIT, || {
        while let Ok(len) = client.write(&chunk) {
            sent += len;
        }
        if passed[1].load(Ordering::Relaxed) >= 3 { Ok(()) } else { Err(format!("{sent} bytes sent")) }
    });
    // Read, so that nothing more is sent.
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        server.read_to_end(&mut all).expect("receive");
        all.len()
    });
    client.set_nonblocking(false).expect("blocking");
    drop(client);
    assert_eq!(reader.join().expect("the reader"), sent);
    let kernel = kernel::snmp(world.netns(1), "TcpExt", "TCPToZeroWindowAdv");
    assert!(kernel > 0, "the kernel saw it too");
    watch.until("as many as the relay has passed on", |snapshot| {
        let ours = |n: usize, direction: &str| {
            Some(number(&container(snapshot, world.name(n))?, &format!("{direction}.tcp_zero_window")))
        };
        let [from_client, from_server] = [0, 1].map(|n| passed[n].load(Ordering::Relaxed));
        assert!(from_server >= kernel && from_client == 0, "{from_server} {from_client} {kernel}");
        let all = (ours(1, "tx")?, ours(0, "rx")?, ours(0, "tx")?, ours(1, "rx")?);
        (all == (from_server, from_server, 0, 0)).then_some(())
    });
    let from_server = passed[1].load(Ordering::Relaxed);
    wait_for("the flow's own count", LIMIT, || {
        let flow = world.conversation(&agent, 5004)?;
        let ours = (&flow["client_zero_windows"], &flow["server_zero_windows"]);
        if ours == (&0.into(), &from_server.into()) { Ok(()) } else { Err(format!("{from_server}: {flow}")) }
    });
}

/// Containers come and go, and the kernel numbers the next one's namespace as the last one's.
#[test]
fn what_one_container_did_is_never_told_of_another() {
    unless_left_out(|| {
        let world = World::new(Duration::ZERO, |_| true);
        let watch = world.watch(&[]);
        let mut did = Vec::new();
        for connections in 1..=5u64 {
            let container = Pretend::new();
            let name = container.name().to_owned();
            let inode = watch.until("its namespace", |snapshot| {
                netobs_tests::program::container(snapshot, &name)?["namespace"].as_str().map(str::to_owned)
            });
            container.netns().run(move || {
                let listener = TcpListener::bind("127.0.0.1:5005").expect("listen");
                for _ in 0..connections {
                    let _client = TcpStream::connect("127.0.0.1:5005").expect("connect");
                    // Both at once, so that none stays behind in the namespace.
                    reset(listener.accept().expect("accept").0);
                }
            });
            // Gone before it has been read what it did.
            drop(container);
            did.push((name, inode, connections));
        }
        let inodes: std::collections::BTreeSet<&String> = did.iter().map(|(_, inode, _)| inode).collect();
        println!("{} namespaces with {} inode numbers", did.len(), inodes.len());
        for (name, _, connections) in &did {
            let tcp = until(&watch, name, |tcp| tcp.is_object() && established(tcp) == *connections);
            assert_eq!(accepted(&tcp), *connections, "{tcp}");
            assert_eq!(number(&tcp, "resets.sent"), *connections, "{tcp}");
            assert_eq!(number(&tcp, "resets.received"), *connections, "{tcp}");
        }
        for n in 0..2 {
            let tcp = container(&watch.fresh(), world.name(n)).expect("a container")["tcp"].clone();
            assert_eq!((established(&tcp), accepted(&tcp)), (0, 0), "{tcp}");
        }
    });
}

/// More connections than there is room for in the ring between two readings: the counts are exact all the same.
/// What a program's run takes is printed.
#[test]
fn ten_thousand_connections_are_all_counted() {
    unless_left_out(|| {
        const CONNECTIONS: u64 = 10_000;
        let world = World::new(Duration::ZERO, |_| true);
        let watch = world.watch(&[]);
        let _stats = bpf::enable_stats();
        world.netns(0).run(|| {
            let listener = TcpListener::bind("127.0.0.1:5007").expect("listen");
            for _ in 0..CONNECTIONS {
                let client = TcpStream::connect("127.0.0.1:5007").expect("connect");
                drop(listener.accept().expect("accept"));
                reset(client);
            }
        });
        let tcp = until(&watch, world.name(0), |tcp| established(tcp) >= CONNECTIONS);
        assert_eq!((established(&tcp), accepted(&tcp)), (CONNECTIONS, CONNECTIONS), "{tcp}");
        // A server's figure of 0 us is none: it is in the count, and in no bucket.
        assert!(measured(&tcp, "client_handshake").0 == CONNECTIONS, "{tcp}");
        let lost = watch.fresh()["agent"]["tcp"]["lost"].clone();
        for cause in ["full", "busy", "ambiguous", "start"] {
            assert_eq!(lost[cause], 0, "{lost}");
        }
        for (tracepoint, runs, nanoseconds) in bpf::runs(watch.pid()) {
            println!(
                "{tracepoint}: {runs} runs, {} ns each",
                nanoseconds.checked_div(runs).unwrap_or_default()
            );
        }
    });
}

/// Tracepoints that a process is attached to.
fn tracepoints(pid: u32) -> Vec<String> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fdinfo")).expect("fdinfo").flatten();
    let text = files.filter_map(|file| std::fs::read_to_string(file.path()).ok());
    let mut names: Vec<String> = text
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("tp_name:").map(|name| name.trim().to_owned()))
        })
        .collect();
    names.sort();
    names
}

#[test]
fn what_is_not_asked_for_is_not_there() {
    let world = World::new(Duration::ZERO, |_| true);
    let all = [
        "inet_sock_set_state",
        "tcp_receive_reset",
        "tcp_retransmit_skb",
        "tcp_retransmit_synack",
        "tcp_send_reset",
    ];
    let with = world.watch(&[]);
    assert_eq!(tracepoints(with.pid()), all);
    assert!(container(&with.fresh(), world.name(0)).expect("a container")["tcp"].is_object());
    let without = world.watch(&["--no-tcp"]);
    assert_eq!(tracepoints(without.pid()), [] as [&str; 0]);
    let snapshot = without.fresh();
    assert!(container(&snapshot, world.name(0)).expect("a container")["tcp"].is_null());
    assert!(snapshot["agent"]["tcp"].is_null() && snapshot["agent"]["degraded"] == serde_json::json!([]));
}

#[test]
fn without_the_kernels_type_information_it_is_degraded_and_all_else_works() {
    let world = World::new(Duration::ZERO, |_| true);
    let options = ["--no-engine", "--no-drops", "--btf=/nonexistent"];
    let agent = Agent::start_in(Some(&world.host), &options);
    let snapshot: Value = wait_for("the container", LIMIT, || {
        let text = get(&world.host, &agent, "/api/v1/snapshot")?;
        let snapshot: Value = serde_json::from_str(&text).map_err(|error| error.to_string())?;
        if container(&snapshot, world.name(0)).is_some() { Ok(snapshot) } else { Err(text) }
    });
    let degraded = &snapshot["agent"]["degraded"];
    assert_eq!(degraded[0][0], "tcp", "{degraded}");
    assert!(degraded[0][1].as_str().is_some_and(|why| why.contains("/nonexistent")), "{degraded}");
    assert!(container(&snapshot, world.name(0)).expect("a container")["tcp"].is_null());
    let text = get(&world.host, &agent, "/metrics").expect("metrics");
    assert!(text.contains("netobs_degraded{feature=\"tcp\"} 1"), "{text}");
    assert!(!text.contains("netobs_container_tcp_connects_total"), "not known is not zero: {text}");
}

/// Sockets on the host's network are not told apart by their namespace: nothing is said of them.
#[test]
fn on_the_hosts_network_it_is_not_known() {
    let world = World::new(Duration::ZERO, |_| true);
    let on_host = Pretend::on_host(&world.host);
    let watch = world.watch(&[]);
    world.host.run(|| {
        let listener = TcpListener::bind("127.0.0.1:5006").expect("listen");
        drop(TcpStream::connect("127.0.0.1:5006").expect("connect"));
        drop(listener);
    });
    let found = watch.container(on_host.name());
    assert!(found["tcp"].is_null(), "{found}");
}
