//! Names that try to break out, made for real: interfaces of the kernel's, labels of an engine's, names on the wire.
//! They are counted like any others, and every reader of netobs's output reads it.

use std::{
    ffi::OsStr,
    fs,
    io::Write as _,
    os::unix::ffi::OsStrExt as _,
    process::{Command, Output, Stdio},
};

use netobs_tests::{
    dns,
    docker::{self, Container},
    http,
    netns::Netns,
    pretend::Pretend,
    program::{Agent, LIMIT, free_port, netobs, run},
    prometheus::{Server, promtool_check, sample},
    wait_for,
};
use serde_json::Value;

/// What the kernel takes for an interface's name: up to 15 bytes without blanks, `/` and `:`. The second of each is how
/// it is written for people; bytes that are no UTF-8 are not known further.
const INTERFACES: [(&[u8], &str); 14] = [
    (b"a\"b", "a\"b"),
    (b"a\\b", "a\\b"),
    (b"a\\", "a\\"),
    (b"\x1b[2Jb", "\\x1b[2Jb"),
    (b"\x1b]0;x\x07", "\\x1b]0;x\\x07"),
    (b"\xc2\x9b31m", "\\u{9b}31m"),
    (b"x\xe2\x80\xaey", "x\\u{202e}y"),
    (b"\xe2\x80\x8b", "\\u{200b}"),
    (b"\x01\x7f", "\\x01\\x7f"),
    (b"\xff\xfex", "??x"),
    (b"ok\xe2\x80", "ok??"),
    (b"=1+1", "=1+1"),
    (b"a,b;c'd", "a,b;c'd"),
    (b"{x}$(y)#", "{x}$(y)#"),
];

/// Controls and bidi marks, but for line ends.
fn harmful(character: char) -> bool {
    (character.is_control() && character != '\n')
        || matches!(character, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn harmless(what: &str, bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(!text.contains(harmful), "{what}: {text:?}");
    text.to_owned()
}

fn ok(output: Output) -> Vec<u8> {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn ip(host: &Netns, arguments: &[&[u8]]) {
    let mut command = host.command("ip");
    ok(command.args(arguments.iter().map(|one| OsStr::from_bytes(one))).output().expect("run ip"));
}

/// What a program makes of what it is given.
fn through(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect(program);
    child.stdin.take().expect("a pipe").write_all(input).expect("write");
    ok(child.wait_with_output().expect(program))
}

/// Everything that can be printed of what there is now, each read by who is to read it.
fn outputs_are_read(host: Option<&Netns>, arguments: &[&str]) {
    let print = |command: &[&str]| {
        let mut netobs = netobs(host);
        netobs.env("NO_COLOR", "1").env("NETOBS_LOG", "debug");
        let output = netobs.args(command).args(arguments).stdin(Stdio::null()).output().expect("run netobs");
        harmless(&format!("log of {command:?}"), &output.stderr);
        harmless(&format!("{command:?}"), &ok(output))
    };
    for output in ["table", "wide"] {
        print(&["watch", "--once", "--output", output]);
    }
    let json = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
    json(&print(&["watch", "--once", "--output", "json"]));
    json(&print(&["topology", "--output", "json"]));
    json(&print(&["flows", "--count", "1", "--interval", "100ms", "--output", "json"]));
    json(&print(&["drops", "--for", "100ms", "--output", "json"]));
    let csv = print(&["watch", "--once", "--output", "csv"]);
    assert!(!csv.split([',', '\n', '"']).any(|cell| cell.starts_with(['=', '+', '@'])), "{csv}");
    print(&["flows", "--count", "1", "--interval", "100ms"]);
    print(&["drops", "--for", "100ms"]);
    print(&["topology"]);
    let mermaid = print(&["topology", "--output", "mermaid"]);
    assert!(!mermaid.replace("<br/>", "").contains(['<', '&', '`', '\\', '%']), "{mermaid}");
    let dot = print(&["topology", "--output", "dot"]);
    let picture = through("dot", &["-Tsvg"], dot.as_bytes());
    assert!(String::from_utf8_lossy(&picture).contains("</svg>"));
}

#[test]
fn interfaces() {
    let host = Netns::new();
    let container = Pretend::new();
    let peer = container.netns().pid().to_string();
    // The first leads to a container, in which it is called as badly.
    for (n, (name, _)) in INTERFACES.iter().enumerate() {
        ip(&host, &[b"link", b"add", b"name", name, b"type", b"bridge"]);
        ip(&host, &[b"link", b"del", name]);
        let there = if n == 0 { b"\xff\x1b\"".to_vec() } else { format!("eth{n}").into_bytes() };
        let pair: [&[u8]; 9] = [b"link", b"add", b"name", name, b"type", b"veth", b"peer", b"name", &there];
        ip(&host, &[&pair[..], &[b"netns", peer.as_bytes()]].concat());
        ip(&host, &[b"link", b"set", name, b"up"]);
        ip(container.netns(), &[b"link", b"set", &there, b"up"]);
        let address = |last: u8| format!("10.66.{n}.{last}/24").into_bytes();
        ip(&host, &[b"addr", b"add", &address(1), b"dev", name]);
        ip(container.netns(), &[b"addr", b"add", &address(2), b"dev", &there]);
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("capture.pcapng");
    let mut trace = netobs(Some(&host))
        .args(["trace", "--no-engine", "--proto", "icmp", "--duration", "300s"])
        .args(["--count", &(6 * INTERFACES.len()).to_string(), "--write"])
        .arg(&file)
        .stdin(Stdio::null())
        .spawn()
        .expect("start netobs trace");
    let agent = Agent::start_in(Some(&host), &["--no-engine"]);
    let get = |path: &'static str| {
        wait_for(path, LIMIT, || match host.run(move || http::get(9810, path)) {
            Ok((200, body)) => Ok(body),
            other => Err(format!("{other:?}")),
        })
    };
    let attached = format!("netobs_attached_interfaces {}\n", INTERFACES.len());
    wait_for("all are attached", LIMIT, || {
        let text = get("/metrics");
        if text.contains(&attached) && text.contains("interface=\"??") { Ok(()) } else { Err(text) }
    });
    let ping = || {
        let last = INTERFACES.len() - 1;
        host.sh(&format!(
            "for n in $(seq 0 {last}); do busybox ping -q -c 3 -i 0.05 10.66.$n.2 >/dev/null; done"
        ));
    };
    ping();
    // By what each interface counted: three packets of ICMP each way, whatever it is called.
    let snapshot: Value = serde_json::from_str(&get("/api/v1/snapshot")).expect("JSON");
    let interfaces = snapshot["interfaces"].as_array().expect("interfaces");
    for (bytes, written) in INTERFACES {
        let text = String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| written.to_owned());
        let found =
            interfaces.iter().find(|one| one["name"] == *text).unwrap_or_else(|| panic!("no {text:?}"));
        assert_eq!(found["rx"]["protocol"]["icmp"]["packets"], 3, "{found}");
        assert_eq!(found["container_id"], *container.id, "{found}");
    }
    let metrics = get("/metrics");
    harmless("metrics", metrics.as_bytes());
    promtool_check(&metrics);
    for (_, written) in INTERFACES {
        let escaped = written.replace('\\', "\\\\").replace('"', "\\\"");
        let label = format!("host_interface=\"{escaped}\"");
        assert!(sample(&metrics, "netobs_interface_unobserved_packets", &[&label]).is_some(), "no {label}");
    }
    drop(agent);
    outputs_are_read(Some(&host), &["--no-engine"]);
    // Wireshark's own reader takes what was traced.
    // It may have begun after the first of them.
    wait_for("the trace has as many as it is to have", LIMIT, || {
        if trace.try_wait().expect("its state").is_some() {
            return Ok(());
        }
        ping();
        Err("it goes on".to_owned())
    });
    assert!(trace.wait().expect("its end").success());
    let packets = ok(Command::new("tshark")
        .args(["-r", &file.to_string_lossy(), "-T", "fields", "-e", "frame.interface_name"])
        .output()
        .expect("run tshark"));
    let packets = String::from_utf8_lossy(&packets).into_owned();
    assert!(packets.lines().count() == 6 * INTERFACES.len(), "{packets}");
    ok(Command::new("capinfos").arg(&file).output().expect("run capinfos"));
}

#[test]
fn labels_of_an_engine() {
    if !docker::available("hostile labels") {
        return;
    }
    let project = "a\"\n\x1b[2J\u{9b}31m\u{202e}\\} 1\nevil 2";
    let service = "=cmd|'/c calc'!A1";
    let long = "\u{4e00}".repeat(3000);
    let label = |name: &str, value: &str| format!("com.docker.compose.{name}={value}");
    let container = Container::run(
        "hostile",
        &["--label", &label("project", project), "--label", &label("service", service)],
    );
    let second =
        Container::run("long", &["--label", &label("project", &long), "--label", &label("service", "\t=1")]);
    let agent = Agent::start(&[]);
    let scrape = || match http::get(agent.port, "/metrics") {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    };
    let metrics = wait_for("both are known", LIMIT, || {
        let text = scrape()?;
        let known = [&container, &second].iter().all(|one| text.contains(&one.name));
        if known { Ok(text) } else { Err(text) }
    });
    harmless("metrics", metrics.as_bytes());
    promtool_check(&metrics);
    let (_, text) = http::get(agent.port, "/api/v1/snapshot").expect("a snapshot");
    harmless("snapshot", text.as_bytes());
    let snapshot: Value = serde_json::from_str(&text).expect("JSON");
    let found = netobs_tests::program::container(&snapshot, &container.name).expect("the container");
    assert_eq!(found["compose"]["project"], *project, "as it is");
    assert_eq!(found["compose"]["service"], *service);
    // A real server takes it, with the label as it is written.
    let target = format!("static_configs: [{{targets: ['127.0.0.1:{}']}}]", agent.port);
    let server = Server::start(&format!("- {{job_name: netobs, {target}}}\n"));
    server.until("up", |up| up == 1.0);
    let id = &container.id[..12];
    server.until(&format!("netobs_container_info{{id=\"{id}\",compose_project=~\".*x1b.2J.*\"}}"), |one| {
        one == 1.0
    });
    drop(agent);
    outputs_are_read(None, &[]);
    let csv = ok(run(&["watch", "--once", "--output", "csv"]));
    let csv = String::from_utf8(csv).expect("UTF-8");
    assert!(csv.contains(",'=cmd|'/c calc'!A1,"), "{csv}");
}

#[test]
fn names_on_the_wire() {
    let host = Netns::new();
    let container = Pretend::new();
    host.sh(&format!(
        "ip link add veth0 type veth peer name eth0 netns {}; ip link set veth0 up; ip addr add 10.66.0.1/24 dev veth0",
        container.netns().pid()
    ));
    container.netns().sh("ip addr add 10.66.0.2/24 dev eth0; ip link set eth0 up");
    let _agent = Agent::start_in(Some(&host), &["--no-engine", "--dns-names"]);
    let get = |path: &'static str| host.run(move || http::get(9810, path));
    wait_for("the container", LIMIT, || match get("/metrics") {
        Ok((200, text)) if text.contains("interface=\"eth0\"") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let server = "10.66.0.1:53".parse().expect("an address");
    let _server = dns::Server::start(&host, server);
    let labels: [&[u8]; 9] = [
        b"i\"q\"",
        b"i\x1b[2J\x07",
        b"i\n} 1",
        b"i\\",
        b"i\xff\xfe\xc2",
        b"i\xc2\x9b31m",
        b"i\xe2\x80\xae",
        b"i.dot",
        b"i\0=1",
    ];
    let queries = labels.iter().enumerate().map(|(n, label)| {
        let mut message = vec![0, n as u8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, label.len() as u8];
        message.extend(*label);
        message.extend([4, b'e', b'v', b'i', b'l', 0, 0, 1, 0, 1]);
        message
    });
    dns::send(container.netns(), server, queries.collect());
    let of = format!("container=\"{}\"", container.name());
    let metrics = wait_for("all names", LIMIT, || {
        let (_, text) = get("/metrics").map_err(|error| error.to_string())?;
        let names =
            |line: &&str| line.starts_with("netobs_container_dns_name_queries_total{") && line.contains(&of);
        if text.lines().filter(names).count() == labels.len() { Ok(text) } else { Err(text) }
    });
    harmless("metrics", metrics.as_bytes());
    promtool_check(&metrics);
    let (_, text) = get("/api/v1/snapshot").expect("a snapshot");
    harmless("snapshot", text.as_bytes());
    let snapshot: Value = serde_json::from_str(&text).expect("JSON");
    let found = netobs_tests::program::container(&snapshot, container.name()).expect("the container");
    assert_eq!(found["dns"]["names"].as_array().map(Vec::len), Some(labels.len()));
}

#[test]
fn what_is_said_on_errors() {
    for arguments in [
        &["watch", "--once", "--filter", "\x1b[2J\n=x"][..],
        &["watch", "--once", "--engine", "tcp://\x1b[2J\nfake"],
        &["agent", "--web-config-file", "/nowhere/\x1b[2J\nfake"],
    ] {
        let output = run(arguments);
        assert!(!output.status.success());
        let said = harmless(&format!("{arguments:?}"), &output.stderr);
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("web.yml");
    fs::write(&file, "\"\\e[2J\\nfake\": 1\n").expect("write");
    let address = format!("127.0.0.1:{}", free_port());
    let output = run(&["agent", "--listen", &address, "--web-config-file", &file.to_string_lossy()]);
    assert!(!output.status.success());
    harmless("web configuration", &output.stderr);
}
