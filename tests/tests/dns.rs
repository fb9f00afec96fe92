//! DNS as containers see it, on real traffic and to the message. Without an engine, so that it runs on any kernel.

use std::{
    net::{SocketAddr, UdpSocket},
    time::Duration,
};

use netobs_tests::{
    bridged::Bridged,
    dns::{self, Server, TcpClient, TcpServer, WAIT, framed, latency, messages},
    http, kernel,
    pretend::Pretend,
    program::{Agent, LIMIT, Watch, container, number, signal},
    wait_for,
};
use nix::sys::signal::Signal;
use serde_json::Value;

const OPTIONS: [&str; 2] = ["--no-engine", "--grace=60s"];

/// Number n (from 0) has 10.53.0.(n + 10).
fn bridged(count: u8) -> Bridged {
    Bridged::new("br-dns", "10.53.0", (0..count).map(|n| n + 10))
}

fn start(world: &Bridged, options: &[&str]) -> Watch {
    world.watch(&[&OPTIONS, options].concat())
}

/// Waits until so many queries of a container have been seen, and what is looked for.
fn until(world: &Bridged, watch: &Watch, n: usize, role: &str, look: impl Fn(&Value) -> bool) -> Value {
    let mut last = Value::Null;
    wait_for(&format!("messages of {role} {n}"), LIMIT, || {
        last = container(&watch.fresh(), world.name(n)).ok_or("no container")?;
        let found = messages(&last, role, "wire").filter(&look);
        found.ok_or_else(|| last["dns"].to_string())
    })
}

fn server(n: usize) -> SocketAddr {
    format!("10.53.0.{}:53", n + 10).parse().expect("an address")
}

/// So many queries, and all have their answers: they are told of some at a time.
fn is_done(messages: &Value, queries: u64) -> bool {
    number(messages, "queries") == queries && number(messages, "pending") == 0
}

fn counts(messages: &Value) -> [u64; 6] {
    ["queries", "retransmitted", "unmatched", "unanswered", "untracked", "pending"]
        .map(|part| number(messages, part))
}

fn responses(messages: &Value) -> String {
    messages["responses"].to_string()
}

/// As the client itself measures it, and as long as the server waits at least; both ends, each in its role.
#[test]
fn latency_and_response_codes() {
    let world = bridged(2);
    let watch = start(&world, &[]);
    let _server = Server::start(world.netns(1), server(1));
    let mut measured = Duration::ZERO;
    for (name, times) in [("web.example", 10), ("nowhere.example", 3), ("sick.example", 2)] {
        measured += dns::ask(world.netns(0), server(1), name, times);
    }
    let client = until(&world, &watch, 0, "client", |messages| is_done(messages, 15));
    assert_eq!(counts(&client), [15, 0, 0, 0, 0, 0], "{client}");
    assert_eq!(responses(&client), r#"{"NOERROR":10,"NXDOMAIN":3,"SERVFAIL":2}"#);
    let (count, sum) = latency(&client);
    assert_eq!(count, 15, "{client}");
    assert!(sum >= 15 * WAIT && sum <= measured, "{sum:?}, the client itself {measured:?}");
    // Of 50 ms and less there is none, as it waits longer than that.
    let buckets = client["latency"]["buckets"].as_array().expect("buckets");
    assert_eq!(buckets[..9].iter().map(|bucket| bucket.as_u64().unwrap_or(1)).sum::<u64>(), 0, "{client}");

    let asked = until(&world, &watch, 1, "server", |messages| is_done(messages, 15));
    assert_eq!(counts(&asked), [15, 0, 0, 0, 0, 0], "{asked}");
    assert_eq!(responses(&asked), responses(&client));
    let (_, served) = latency(&asked);
    assert!(served >= 15 * WAIT && served <= sum, "{served:?} of {sum:?}");
    let both = container(&watch.fresh(), world.name(1)).expect("the server");
    assert!(messages(&both, "client", "wire").is_none(), "it asks nobody: {both}");
    assert_eq!((number(&both, "dns.malformed"), number(&both, "dns.other")), (0, 0));
}

#[test]
fn unanswered_sent_again_and_answered_twice() {
    let world = bridged(2);
    let watch = start(&world, &[]);
    let _server = Server::start(world.netns(1), server(1));
    // The same query three times, another once, and one whose answer comes twice.
    let silent = dns::query(7, "quiet.example");
    dns::send(world.netns(0), server(1), vec![silent.clone(), silent.clone(), silent, dns::query(8, "q")]);
    let waiting = until(&world, &watch, 0, "client", |messages| number(messages, "queries") == 4);
    assert_eq!(counts(&waiting), [4, 2, 0, 0, 0, 2], "{waiting}");
    dns::ask(world.netns(0), server(1), "double.example", 1);
    // Nobody listens there.
    let nobody: SocketAddr = "10.53.0.99:53".parse().expect("an address");
    world.netns(0).sh("ip neigh add 10.53.0.99 lladdr 02:00:00:00:00:99 dev eth0");
    dns::send(world.netns(0), nobody, vec![dns::query(9, "web")]);
    let done = until(&world, &watch, 0, "client", |messages| {
        number(messages, "queries") == 6 && number(messages, "pending") == 0
    });
    assert_eq!(counts(&done), [6, 2, 1, 3, 0, 0], "{done}");
    assert_eq!(responses(&done), r#"{"NOERROR":2}"#);
    assert_eq!(latency(&done).0, 1);
}

/// The same server, the same IDs and ports, at the same time.
#[test]
fn two_containers_are_not_mixed() {
    let world = bridged(3);
    let watch = start(&world, &[]);
    let _server = Server::start(world.netns(2), server(2));
    let ask = |n: usize, name: &'static str, times: u16| {
        world.netns(n).spawn(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:4053").expect("bind");
            socket.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
            socket.connect(server(2)).expect("connect");
            for id in 0..times {
                socket.send(&dns::query(id, name)).expect("ask");
                socket.recv(&mut [0; 512]).expect("an answer");
            }
        })
    };
    let (first, second) = (ask(0, "web.example", 8), ask(1, "nowhere.example", 5));
    first.join().expect("the first");
    second.join().expect("the second");
    let settled =
        |n: usize, queries| until(&world, &watch, n, "client", |messages| is_done(messages, queries));
    let (one, two) = (settled(0, 8), settled(1, 5));
    assert_eq!((counts(&one), responses(&one).as_str()), ([8, 0, 0, 0, 0, 0], r#"{"NOERROR":8}"#), "{one}");
    assert_eq!((counts(&two), responses(&two).as_str()), ([5, 0, 0, 0, 0, 0], r#"{"NXDOMAIN":5}"#), "{two}");
    let asked = until(&world, &watch, 2, "server", |messages| is_done(messages, 13));
    assert_eq!(counts(&asked), [13, 0, 0, 0, 0, 0], "{asked}");
}

#[test]
fn over_ipv6() {
    let world = bridged(2);
    for n in 0..2 {
        world.netns(n).sh(&format!(
            "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=0; ip addr add fd53::{:x}/64 dev eth0 nodad",
            n + 10
        ));
    }
    let watch = start(&world, &[]);
    let address: SocketAddr = "[fd53::b]:53".parse().expect("an address");
    let _server = Server::start(world.netns(1), address);
    let measured = dns::ask(world.netns(0), address, "web.example", 4);
    let client = until(&world, &watch, 0, "client", |messages| is_done(messages, 4));
    assert_eq!(counts(&client), [4, 0, 0, 0, 0, 0], "{client}");
    let (count, sum) = latency(&client);
    assert!(count == 4 && sum >= 4 * WAIT && sum <= measured, "{client}");
    let _server = TcpServer::start(world.netns(1), address);
    TcpClient::connect(world.netns(0), address).ask(&["instant", "just"]);
    let client = until(&world, &watch, 0, "client", |messages| is_done(messages, 6));
    assert_eq!(responses(&client), r#"{"NOERROR":5,"NXDOMAIN":1}"#);
    assert_eq!(by_tcp(&world, &watch, 0), (2, 0));
}

/// Whatever is sent to the port: it is no query, it is counted, and nothing breaks.
#[test]
fn garbage_is_no_query() {
    let world = bridged(2);
    let watch = start(&world, &["--dns-names"]);
    let sink = world.netns(1).run(|| std::net::UdpSocket::bind("0.0.0.0:53").expect("bind"));
    let mut garbage: Vec<Vec<u8>> = (0..12).map(|length| vec![0xff; length]).collect();
    garbage.extend([vec![0; 12], vec![0; 500], vec![0xff; 600], vec![0; 1400]]);
    let malformed = garbage.len() as u64;
    // A notification is a message, and no query.
    let mut notify = dns::query(3, "example");
    notify[2] = 0x20;
    garbage.push(notify);
    dns::send(world.netns(0), server(1), garbage);
    drop(sink);
    let _server = Server::start(world.netns(1), server(1));
    dns::ask(world.netns(0), server(1), "instant", 1);
    let client = until(&world, &watch, 0, "client", |messages| is_done(messages, 1));
    assert_eq!(counts(&client), [1, 0, 0, 0, 0, 0], "{client}");
    for n in 0..2 {
        let seen = container(&watch.fresh(), world.name(n)).expect("there");
        assert_eq!(
            (number(&seen, "dns.malformed"), number(&seen, "dns.other")),
            (malformed, 1),
            "{n}: {seen}"
        );
    }
}

/// Nobody reads the ring for a while: what did not fit is counted, and the sum is all that was sent.
#[test]
fn what_finds_the_ring_full_is_counted() {
    const SENT: u64 = 500;
    let world = bridged(2);
    let watch = start(&world, &["--event-buffer=4k", "--no-arp"]);
    let mac = netobs_tests::kernel::mac(world.netns(1), "eth0");
    world.netns(0).sh(&format!("ip neigh replace 10.53.0.11 lladdr {mac} dev eth0"));
    let sink = world.netns(1).run(|| std::net::UdpSocket::bind("0.0.0.0:53").expect("bind"));
    signal(watch.pid(), Signal::SIGSTOP);
    let queries = (0..SENT as u16).map(|id| dns::query(id, "web")).collect();
    dns::send(world.netns(0), server(1), queries);
    signal(watch.pid(), Signal::SIGCONT);
    let (seen, lost) = watch.until("all of them", |snapshot| {
        let seen = |n: usize, role: &str| {
            let container = container(snapshot, world.name(n))?;
            Some(messages(&container, role, "wire").map_or(0, |messages| number(&messages, "queries")))
        };
        let seen = seen(0, "client")? + seen(1, "server")?;
        let lost = number(snapshot, "agent.events.lost.dns");
        // Both ends are told of.
        (seen + lost == 2 * SENT).then_some((seen, lost))
    });
    assert!(seen > 20 && lost > 500, "seen {seen}, lost {lost}");
    drop(sink);
    // And afterwards all are seen again.
    let _server = Server::start(world.netns(1), server(1));
    dns::ask(world.netns(0), server(1), "instant", 5);
    let client = until(&world, &watch, 0, "client", |messages| {
        messages["responses"]["NOERROR"].as_u64().unwrap_or(0) == 5
    });
    assert_eq!(latency(&client).0, 5, "{client}");
    assert_eq!(number(&watch.fresh(), "agent.events.lost.dns"), lost);
}

#[test]
fn names_only_where_asked_for() {
    let world = bridged(2);
    let _server = Server::start(world.netns(1), server(1));
    let ask = || {
        for (name, times) in [("i.Example.com", 3), ("I.example.COM", 2), ("in\x1b\"space .x", 4), ("it", 1)]
        {
            dns::ask(world.netns(0), server(1), name, times);
        }
        // As many names as there is room for, and more.
        let many = (0..1100).map(|n| dns::query(n, &format!("q{n}"))).collect();
        dns::send(world.netns(0), server(1), many);
    };
    let agent =
        Agent::start_in(Some(&world.host), &[&OPTIONS[..], &["--dns-names", "--event-buffer=4M"]].concat());
    let get = |path: &'static str| {
        let port = agent.port;
        let (status, body) =
            world.host.run(move || http::get(port, path)).map_err(|error| error.to_string())?;
        if status == 200 { Ok(body) } else { Err(body) }
    };
    let of = |n: usize| -> Result<Value, String> {
        let snapshot = serde_json::from_str(&get("/api/v1/snapshot")?).map_err(|error| error.to_string())?;
        container(&snapshot, world.name(n)).ok_or_else(|| "no container".to_owned())
    };
    wait_for("its interface", LIMIT, || {
        if of(0)?["interfaces"].as_array().is_some_and(|all| all.len() == 1) {
            Ok(())
        } else {
            Err("no".into())
        }
    });
    ask();
    let seen = wait_for("all queries", LIMIT, || {
        let seen = of(0)?;
        let queries = messages(&seen, "client", "wire").map_or(0, |messages| number(&messages, "queries"));
        if queries == 1110 { Ok(seen) } else { Err(queries.to_string()) }
    });
    let names = seen["dns"]["names"].as_array().expect("names").clone();
    let first: Vec<String> =
        names[..3].iter().map(|name| format!("{} {}", name["name"], name["queries"])).collect();
    assert_eq!(first, [r#""i.example.com" 5"#, r#""in\\027\"space\\032.x" 4"#, r#""it" 1"#]);
    assert_eq!((names.len(), number(&seen, "dns.other_names")), (1000, 103));
    let metrics = get("/metrics").expect("metrics");
    let series = |name: &str| {
        metrics.lines().filter(|line| line.starts_with(&format!("{name}{{"))).collect::<Vec<_>>()
    };
    let named = series("netobs_container_dns_name_queries_total");
    assert_eq!(named.len(), 1001, "and one for the rest");
    assert!(named.iter().any(|line| line.contains(r#"name="i.example.com"} 5"#)), "{named:?}");
    assert!(named.iter().any(|line| line.contains(r#"name="other"} 103"#)), "{named:?}");
    let queries = series("netobs_container_dns_queries_total");
    let client = format!("container=\"{}\"", world.name(0));
    assert!(
        queries
            .iter()
            .any(|line| line.contains(&client) && line.contains(r#"role="client",via="wire"} 1110"#)),
        "{queries:?}"
    );
    drop(agent);

    let watch = start(&world, &[]);
    dns::ask(world.netns(0), server(1), "instant", 1);
    until(&world, &watch, 0, "client", |messages| number(messages, "queries") == 1);
    let seen = container(&watch.fresh(), world.name(0)).expect("there");
    assert!(seen["dns"]["names"].is_null(), "{seen}");
    drop(watch);
    let watch = start(&world, &["--no-dns"]);
    let seen = container(&watch.fresh(), world.name(0)).expect("there");
    assert!(seen["dns"].is_null(), "{seen}");
}

/// A container on the host's network is seen by its sockets, the host's own queries by nobody.
#[test]
fn a_container_on_the_hosts_network() {
    let world = bridged(1);
    world.host.sh("ip addr add 10.53.0.1/24 dev br-dns");
    let on_host = Pretend::on_host(&world.host);
    let watch = start(&world, &[]);
    watch.until("its cgroup", |snapshot| {
        (container(snapshot, on_host.name())?["interfaces"].as_array()?.len() == 1).then_some(())
    });
    let _server = Server::start(world.netns(0), server(0));
    // There is no address in the answer, which it does not like.
    on_host.sh(&world.host, "busybox nslookup instant 10.53.0.10 >/dev/null 2>&1 || true");
    // The same number at both ends, whatever it is.
    let (asked, client) = watch.until("its messages, at both ends", |snapshot| {
        let asked = messages(&container(snapshot, world.name(0))?, "server", "wire")?;
        let client = messages(&container(snapshot, on_host.name())?, "client", "wire")?;
        let queries = number(&asked, "queries");
        (queries >= 2 && is_done(&asked, queries) && is_done(&client, queries)).then_some((asked, client))
    });
    let queries = number(&asked, "queries");
    assert_eq!(counts(&client), [queries, 0, 0, 0, 0, 0], "{client}");
    assert_eq!(responses(&client), responses(&asked));
    dns::ask(&world.host, server(0), "instant", 3);
    until(&world, &watch, 0, "server", |messages| number(messages, "queries") == queries + 3);
    let seen = container(&watch.fresh(), on_host.name()).expect("there");
    let client = messages(&seen, "client", "wire").expect("its messages");
    assert_eq!(number(&client, "queries"), queries, "{client}");
    // By TCP.
    let _server = TcpServer::start(world.netns(0), server(0));
    let octal: String = framed(&[dns::query(7, "just")]).iter().map(|byte| format!("\\{byte:03o}")).collect();
    on_host
        .sh(&world.host, &format!("{{ printf '{octal}'; sleep 1; }} | busybox nc 10.53.0.10 53 >/dev/null"));
    let client = watch.until("what was asked by TCP", |snapshot| {
        let client = messages(&container(snapshot, on_host.name())?, "client", "wire")?;
        (number(&client, "tcp_queries") == 1 && number(&client, "pending") == 0).then_some(client)
    });
    assert_eq!(counts(&client), [queries + 1, 0, 0, 0, 0, 0], "{client}");
    assert_eq!(number(&client["responses"], "NXDOMAIN"), 1, "{client}");
}

const EMBEDDED: &str = "127.0.0.11:53";

/// A server at Docker's address in the container's own namespace: at `lo`, counted as DNS and as nothing else.
#[test]
fn the_server_inside_the_namespace() {
    let world = bridged(2);
    let address: SocketAddr = EMBEDDED.parse().expect("an address");
    let _server = Server::start(world.netns(0), address);
    let filters = |n: usize| world.netns(n).sh("tc filter show dev lo egress").matches(" netobs ").count();
    let mut watch = start(&world, &[]);
    watch.until("the filter", |_| (filters(0) == 1).then_some(()));
    assert_eq!(filters(1), 0, "it has no such server");
    let before = container(&watch.fresh(), world.name(0)).expect("there");
    let measured = dns::ask(world.netns(0), address, "web.example", 6);
    dns::ask(world.netns(0), address, "nowhere.example", 2);
    // Others at lo are nothing to it.
    world.netns(0).sh("busybox ping -q -c 2 127.0.0.1");
    let seen = watch.until("its messages", |snapshot| {
        let seen = container(snapshot, world.name(0))?;
        let messages = messages(&seen, "client", "embedded")?;
        is_done(&messages, 8).then_some(seen)
    });
    let inside = messages(&seen, "client", "embedded").expect("its messages");
    assert_eq!(counts(&inside), [8, 0, 0, 0, 0, 0], "{inside}");
    assert_eq!(responses(&inside), r#"{"NOERROR":6,"NXDOMAIN":2}"#);
    let (_, sum) = latency(&inside);
    assert!(sum >= 8 * WAIT && sum <= measured * 3, "{sum:?}, the client itself {measured:?} of six");
    assert!(messages(&seen, "client", "wire").is_none() && messages(&seen, "server", "wire").is_none());
    for direction in ["rx", "tx"] {
        let packets = format!("{direction}.packets");
        assert_eq!(number(&seen, &packets), number(&before, &packets), "lo is not counted: {seen}");
    }
    // By TCP as well.
    let _server = TcpServer::start(world.netns(0), address);
    TcpClient::connect(world.netns(0), address).ask(&["instant", "just", "web.example"]);
    let inside = watch.until("what was asked by TCP", |snapshot| {
        let inside = messages(&container(snapshot, world.name(0))?, "client", "embedded")?;
        is_done(&inside, 11).then_some(inside)
    });
    assert_eq!((counts(&inside), number(&inside, "tcp_queries")), ([11, 0, 0, 0, 0, 0], 3), "{inside}");
    assert_eq!(responses(&inside), r#"{"NOERROR":8,"NXDOMAIN":3}"#);
    assert_eq!(by_tcp(&world, &watch, 0), (3, 0));
    // What a killed run leaves is removed by the next, and at the end nothing is left.
    watch.kill();
    assert_eq!(filters(0), 1, "nobody to remove it");
    let mut watch = start(&world, &[]);
    dns::ask(world.netns(0), address, "instant", 3);
    watch.until("its messages, once each", |snapshot| {
        let messages = messages(&container(snapshot, world.name(0))?, "client", "embedded")?;
        is_done(&messages, 3).then_some(())
    });
    assert_eq!(filters(0), 1);
    watch.terminate();
    assert_eq!(filters(0), 0);
}

/// Of TCP: queries, and segments that were not read.
fn by_tcp(world: &Bridged, watch: &Watch, n: usize) -> (u64, u64) {
    let seen = container(&watch.fresh(), world.name(n)).expect("there");
    let messages = seen["dns"]["messages"].as_array().expect("messages");
    let queries = messages.iter().map(|messages| number(messages, "tcp_queries")).sum();
    (queries, number(&seen, "dns.unread_segments"))
}

/// Waits until so many queries of a client and its server have all their answers, and nothing is unread.
fn until_read(world: &Bridged, watch: &Watch, queries: u64) -> Value {
    let client = until(world, watch, 0, "client", |messages| is_done(messages, queries));
    let asked = until(world, watch, 1, "server", |messages| is_done(messages, queries));
    assert_eq!(counts(&client), [queries, 0, 0, 0, 0, 0], "{client}");
    assert_eq!((counts(&asked), responses(&asked)), (counts(&client), responses(&client)));
    assert_eq!([by_tcp(world, watch, 0), by_tcp(world, watch, 1)], [(queries, 0); 2]);
    client
}

/// Several on one connection, as the client itself measures it; and packets of it by flows, where there are any.
#[test]
fn over_tcp() {
    let world = bridged(3);
    let watch = start(&world, &["--flow-interval=200ms"]);
    let _server = TcpServer::start(world.netns(1), server(1));
    let mut client = TcpClient::connect(world.netns(0), server(1));
    let mut measured = client.ask(&["web.example", "nowhere.example", "web.example", "sick.example"]);
    drop(client);
    measured += TcpClient::connect(world.netns(0), server(1)).ask(&["web.example"]);
    let seen = until_read(&world, &watch, 5);
    assert_eq!(responses(&seen), r#"{"NOERROR":3,"NXDOMAIN":1,"SERVFAIL":1}"#);
    let (count, sum) = latency(&seen);
    assert!(count == 5 && sum >= 5 * WAIT && sum <= measured, "{seen}, the client itself {measured:?}");
    for n in 0..2 {
        watch.until("all of the connections", |snapshot| {
            let now = container(snapshot, world.name(n))?;
            let tcp = |unit: &str| {
                let of = |way: &str| number(&now, &format!("{way}.protocol.tcp.{unit}"));
                of("rx") + of("tx")
            };
            let over_tcp = ["packets", "bytes"].map(|unit| number(&now, &format!("dns.over_tcp.{unit}")));
            (over_tcp[0] >= 20 && over_tcp == ["packets", "bytes"].map(tcp)).then_some(())
        });
    }
    let other = container(&watch.fresh(), world.name(2)).expect("the third");
    assert_eq!(number(&other, "dns.over_tcp.packets"), 0, "{other}");
    let mut without = start(&world, &["--max-flows=0"]);
    let unknown = container(&without.fresh(), world.name(0)).expect("there");
    assert!(unknown["dns"]["over_tcp"].is_null(), "{unknown}");
    without.terminate();
}

/// However a stream is cut into segments: several messages in one, a message in several, its length apart.
#[test]
fn however_tcp_has_cut_it() {
    let world = bridged(2);
    let watch = start(&world, &[]);
    let _server = TcpServer::start(world.netns(1), server(1));
    let mut client = TcpClient::connect(world.netns(0), server(1));
    // As the C library asks for both kinds of addresses.
    client.send(&framed(&[dns::query(1, "instant"), dns::query(2, "instant")]));
    for _ in 0..2 {
        client.receive();
    }
    for ends in [&[2][..], &[1, 2], &[1, 9, 20], &[2, 13, 14, 15]] {
        let stream = framed(&[dns::query(3, "just")]);
        let mut from = 0;
        for &end in ends {
            client.send(&stream[from..end]);
            from = end;
        }
        client.send(&stream[from..]);
        client.receive();
    }
    until_read(&world, &watch, 6);
    // In super-packets, and without.
    let segments_less_packets = || {
        let now = container(&watch.fresh(), world.name(0)).expect("there");
        number(&now, "rx.wire_packets") - number(&now, "rx.packets")
    };
    client.ask(&["long", "instant"]);
    let in_super_packets = segments_less_packets();
    assert!(in_super_packets > 0, "a long answer is in one");
    for n in 0..2 {
        world.netns(n).sh("ip link set eth0 gso_max_segs 1");
    }
    let mut client = TcpClient::connect(world.netns(0), server(1));
    client.ask(&["long", "instant"]);
    assert_eq!(segments_less_packets(), in_super_packets, "each segment apart");
    client.ask(&["long"]);
    let seen = until_read(&world, &watch, 11);
    assert_eq!(responses(&seen), r#"{"NOERROR":7,"NXDOMAIN":4}"#);
}

/// What is sent again by TCP is asked once.
#[test]
fn retransmissions_of_tcp_count_once() {
    let world = bridged(2);
    let watch = start(&world, &[]);
    let _server = TcpServer::start(world.netns(1), server(1));
    let mut client = TcpClient::connect(world.netns(0), server(1));
    client.ask(&["instant"]);
    let again = |n: usize| kernel::snmp(world.netns(n), "Tcp", "RetransSegs");
    // What has passed the server's interface is dropped there, queries first, then what answers them.
    for (n, name) in [(1, "instant"), (0, "just"), (0, "long")] {
        world.netns(n).sh("iptables -A INPUT -i eth0 -j DROP");
        let before = again(1 - n);
        client.send(&framed(&[dns::query(9, name)]));
        wait_for("what is sent again", LIMIT, || {
            if again(1 - n) >= before + 2 { Ok(()) } else { Err(again(1 - n).to_string()) }
        });
        world.netns(n).sh("iptables -F INPUT");
        client.receive();
    }
    until_read(&world, &watch, 4);
}

/// Nobody's word for where its messages begin: said to be unread, to the segment. The next connection is read.
#[test]
fn what_of_tcp_cannot_be_followed_is_unread() {
    let world = bridged(2);
    let _server = TcpServer::start(world.netns(1), server(1));
    let mut early = TcpClient::connect(world.netns(0), server(1));
    early.ask(&["instant"]);
    let watch = start(&world, &[]);
    early.ask(&["instant", "just", "instant"]);
    let unread = |n: usize, segments: u64| {
        wait_for("what is unread", LIMIT, || {
            let now = by_tcp(&world, &watch, n);
            if now.1 == segments { Ok(now.0) } else { Err(format!("{now:?}")) }
        })
    };
    assert_eq!([unread(0, 6), unread(1, 6)], [0; 2]);
    let mut client = TcpClient::connect(world.netns(0), server(1));
    client.ask(&["instant"]);
    // More than is told of: headers of TCP and the beginnings of messages are in 512 bytes.
    let many: Vec<_> = (100..140).map(|id| dns::query(id, "quiet")).collect();
    client.send(&framed(&many));
    assert_eq!([unread(0, 7), unread(1, 7)], [1 + 19; 2]);
    client.ask(&["instant"]);
    // The query is unread, too; what answers it is followed, and nobody has asked for it.
    assert_eq!([unread(0, 8), unread(1, 8)], [20; 2]);
    let seen = until(&world, &watch, 0, "client", |messages| number(messages, "unmatched") == 1);
    assert_eq!(responses(&seen), r#"{"NOERROR":2}"#);
    // What is no DNS.
    TcpClient::connect(world.netns(0), server(1)).send(b"\0\x20GET / HTTP/1.0 and so on, some more");
    watch.until("what is none of DNS", |snapshot| {
        let seen = container(snapshot, world.name(1))?;
        (number(&seen, "dns.malformed") == 1).then_some(())
    });
}

/// The same ends, ports and ID.
#[test]
fn tcp_and_udp_do_not_answer_each_other() {
    let world = bridged(2);
    let watch = start(&world, &["--dns-names"]);
    let _servers = (Server::start(world.netns(1), server(1)), TcpServer::start(world.netns(1), server(1)));
    let mut client = TcpClient::connect(world.netns(0), server(1));
    let port = client.port();
    let socket = world.netns(0).run(move || UdpSocket::bind(("0.0.0.0", port)).expect("bind"));
    socket.send_to(&dns::query(0, "quiet.udp"), server(1)).expect("ask");
    client.ask(&["instant.tcp"]);
    let seen = until(&world, &watch, 0, "client", |messages| {
        number(messages, "queries") == 2 && number(messages, "pending") == 0
    });
    assert_eq!((counts(&seen), number(&seen, "tcp_queries")), ([2, 0, 0, 1, 0, 0], 1), "{seen}");
    assert_eq!(latency(&seen).0, 1);
    let seen = container(&watch.fresh(), world.name(0)).expect("there");
    assert_eq!(
        seen["dns"]["names"],
        serde_json::json!([{"name": "instant.tcp", "queries": 1}, {"name": "quiet.udp", "queries": 1}])
    );
}

/// Containers with such a server come and go, and nothing of them stays.
#[test]
fn gone_with_the_container() {
    let world = bridged(1);
    let watch = start(&world, &[]);
    let open = || {
        let count =
            |what: &str| std::fs::read_dir(format!("/proc/{}/{what}", watch.pid())).expect("it").count();
        (count("fd"), count("task"))
    };
    let before = open();
    for round in 0..3 {
        let container = Pretend::new();
        let address: SocketAddr = EMBEDDED.parse().expect("an address");
        let server = Server::start(container.netns(), address);
        world.host.sh(&format!(
            "ip link add vethx type veth peer name eth0 netns {}; ip link set vethx master br-dns up",
            container.netns().pid()
        ));
        container.netns().sh("ip addr add 10.53.0.99/24 dev eth0; ip link set eth0 up");
        let filter = || container.netns().sh("tc filter show dev lo egress").contains(" netobs ");
        watch.until("the filter", |_| filter().then_some(()));
        dns::ask(container.netns(), address, "instant", round + 1);
        // The last are told of when it has gone already.
        let name = container.name().to_owned();
        drop((server, container));
        let ended = watch.until("its end", |snapshot| {
            let ended = self::container(snapshot, &name).filter(|now| now["state"] == "removed")?;
            let inside = messages(&ended, "client", "embedded")?;
            is_done(&inside, u64::from(round) + 1).then_some(inside)
        });
        assert_eq!(counts(&ended), [u64::from(round) + 1, 0, 0, 0, 0, 0], "{ended}");
        watch.until("its interface is gone", |snapshot| {
            netobs_tests::program::interface(snapshot, "vethx").is_none().then_some(())
        });
    }
    wait_for("nothing that stays", LIMIT, || {
        let now = open();
        if now == before { Ok(()) } else { Err(format!("{now:?}, before {before:?}")) }
    });
}

/// Without the privilege to enter namespaces, that is said, and the rest goes on.
#[test]
fn without_the_privilege_to_enter() {
    let world = bridged(1);
    let _server = Server::start(world.netns(0), EMBEDDED.parse().expect("an address"));
    let output = world
        .host
        .command("setpriv")
        .args(["--bounding-set", "-sys_admin", "--"])
        .arg(netobs_tests::program::binary())
        .args(["watch", "--count", "3", "--interval", "200ms", "-o", "json", "--no-engine"])
        .output()
        .expect("run setpriv");
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().last().unwrap_or_else(|| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let snapshot: Value = serde_json::from_str(last).expect("JSON");
    let seen = container(&snapshot, world.name(0)).expect("the container");
    let why = seen["dns"]["embedded_unobserved"].as_str().unwrap_or_default();
    assert!(why.contains("CAP_SYS_ADMIN"), "{seen}");
    let degraded = snapshot["agent"]["degraded"].to_string();
    assert!(degraded.contains("embedded DNS"), "{degraded}");
    assert_eq!(seen["interfaces"].as_array().map(Vec::len), Some(1), "the rest goes on: {seen}");
}
