//! What goes wrong says so, with what to do, and ends with a code that is not zero.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _},
    net::{TcpListener, UdpSocket},
    process::{Command, Output, Stdio},
    time::Instant,
};

use caps::{CapSet, Capability};
use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options},
    model::InterfaceKey,
};
use netobs_tests::{
    bpffs::Bpffs,
    bridged::Bridged,
    http,
    netns::Netns,
    pretend::Pretend,
    program::{self, Agent, LIMIT, LOADED, binary, netobs, run},
    terminal::Terminal,
    unique, wait_for,
};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn fails_with(output: &Output, words: &[&str]) {
    let message = stderr(output);
    assert!(!output.status.success(), "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in: {message}");
    }
    assert!(!message.contains("panicked"), "{message}");
}

/// Runs the program without one capability.
fn without(capabilities: &str, arguments: &[&str]) -> Output {
    Command::new("setpriv")
        .args(["--bounding-set", capabilities, "--"])
        .arg(binary())
        .args(arguments)
        .output()
        .expect("run setpriv")
}

#[test]
fn wrong_arguments() {
    fails_with(&run(&["watch", "--interval", "0"]), &["--interval", "at least"]);
    fails_with(&run(&["watch", "--interval", "soon"]), &["--interval", "500ms"]);
    fails_with(&run(&["watch", "--count", "0"]), &["--count"]);
    fails_with(&run(&["watch", "--once", "--filter", "colour=red"]), &["colour", "name"]);
    fails_with(&run(&["watch", "--once", "--engine", "tcp://127.0.0.1:1"]), &["unix:///"]);
    fails_with(&run(&["wach"]), &["watch"]);
    fails_with(&run(&["watch", "--max-interfaces", "0"]), &["--max-interfaces"]);
}

#[test]
fn missing_capabilities_are_named() {
    let watch = ["watch", "--once", "--no-engine"];
    fails_with(&without("-net_admin", &watch), &["CAP_NET_ADMIN", "setcap", "root"]);
    fails_with(&without("-bpf,-sys_admin", &watch), &["CAP_BPF", "setcap"]);
    fails_with(&without("-perfmon,-sys_admin", &watch), &["CAP_PERFMON", "setcap"]);
    fails_with(&without("-net_admin", &["agent", "--listen", "127.0.0.1:0"]), &["CAP_NET_ADMIN"]);
    fails_with(&without("-sys_admin", &["watch", "--demo", "--once"]), &["CAP_SYS_ADMIN", "demo"]);
}

/// It is the kernel that refuses: nothing is asked for that it does not want, and what is said to include another does.
#[test]
fn the_kernel_wants_each_capability() {
    use Capability::{CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON, CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYSLOG};
    const LO: u32 = 1;
    // On a thread of its own, and each has its own capabilities.
    let observe = |without: &'static [Capability]| {
        Netns::new().run(move || {
            for capability in without {
                caps::drop(None, CapSet::Effective, *capability).expect("give it up");
            }
            let options = Options {
                max_interfaces: 4,
                mode: AttachMode::Clsact,
                max_flows: 4096,
                events: EventOptions::default(),
                log: false,
            };
            let mut observer = Observer::load(options).map_err(|error| error.to_string())?;
            observer.attach(InterfaceKey(0), LO, false).map_err(|error| error.to_string())
        })
    };
    let enough: [&[Capability]; 3] =
        [&[CAP_BPF], &[CAP_PERFMON], &[CAP_SYS_ADMIN, CAP_SYS_PTRACE, CAP_SYSLOG]];
    for without in enough {
        assert_eq!(observe(without), Ok(()), "{without:?}");
    }
    let missing: [&[Capability]; 3] =
        [&[CAP_BPF, CAP_SYS_ADMIN], &[CAP_PERFMON, CAP_SYS_ADMIN], &[CAP_NET_ADMIN]];
    for without in missing {
        assert!(observe(without).is_err(), "{without:?}");
    }
}

/// What only less can be shown without is said with what it is for.
#[test]
fn what_is_less_without_a_capability_is_named() {
    for (capability, purpose) in [
        ("sys_ptrace", "which network namespace a container's process is in"),
        ("syslog", "the places in the kernel where packets are dropped"),
    ] {
        let output = without(&format!("-{capability}"), &["doctor"]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let named = format!("CAP_{} is missing, to", capability.to_uppercase());
        assert!(output.status.success() && text.contains(&named) && text.contains(purpose), "{text}");
        assert!(text.contains("setcap"), "{text}");
    }
}

/// Calls by which a file or folder is made, changed or removed; opening is looked at by itself.
const CHANGING: [&str; 20] = [
    "creat",
    "mkdir",
    "mkdirat",
    "mknod",
    "mknodat",
    "rmdir",
    "unlink",
    "unlinkat",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "chmod",
    "fchmodat",
    "chown",
    "fchownat",
    "truncate",
];

/// All that the kernel was asked for, as `strace` has it: whoever else runs, and whatever may go unnoticed.
#[test]
fn nothing_is_written_elsewhere_executed_or_entered_without_need() {
    let (world, bpffs) = (Bridged::new("br-strace", "10.84.0", [10, 11]), Bpffs::new());
    // Nothing on the host leads to this one.
    let on_macvlan = Pretend::new();
    world.host.sh(&format!(
        "ip link add p0 type veth peer name p1; ip link set p0 up; ip link add m0 link p0 type macvlan mode bridge; \
         ip link set m0 name eth0 netns {}",
        on_macvlan.netns().pid()
    ));
    // As Docker's own in a container on a network with a name.
    let _server = world.netns(1).run(|| UdpSocket::bind("127.0.0.11:53").expect("a name server"));
    let folder = bpffs.folder().display().to_string();
    let looked_at = |more: &[&str]| {
        let log = tempfile::NamedTempFile::new().expect("a file");
        let mut command = world.host.command("strace");
        // With -D it is the agent that is our child.
        command
            .args(["-D", "-f", "-qq", "-y", "-s", "500", "-e", "trace=%process,%file,setns", "-o"])
            .arg(log.path());
        command.arg(binary()).args(["agent", "--no-engine", "--pin", "--pin-folder", &folder]).args(more);
        let mut agent = Agent::spawn(command.env("NETOBS_LOG", "error").stdin(Stdio::null()), 9810);
        wait_for("the containers", LOADED, || {
            let snapshot = agent.snapshot(&world.host)?;
            let interfaces =
                |name| program::container(&snapshot, name)?["interfaces"].as_array().map(Vec::len);
            let known = [world.name(0), world.name(1), on_macvlan.name()].map(interfaces);
            if known == [Some(1); 3] { Ok(()) } else { Err(snapshot.to_string()) }
        });
        // What asks for names inside is attached some time after that.
        wait_for("what is at lo", LOADED, || {
            let at_lo = world.netns(1).sh("tc filter show dev lo egress");
            let is_done = more.contains(&"--no-dns") || at_lo.contains(" netobs ");
            if is_done { Ok(()) } else { Err(at_lo) }
        });
        for path in ["/metrics", "/metrics/cadvisor", "/api/v1/flows", "/api/v1/drops", "/api/v1/topology"] {
            let (status, _) = world.host.run(move || http::get(9810, path)).expect("an answer");
            assert_eq!(status, 200, "{path}");
        }
        assert!(agent.terminate().0.success());
        let text = wait_for("the end of the log", LIMIT, || {
            let text = std::fs::read_to_string(log.path()).expect("the log");
            if text.contains(" exit_group(0)") { Ok(text) } else { Err(text.lines().count().to_string()) }
        });
        bpffs.cleanup(&world.host, &[]);
        Calls(text)
    };
    let with = looked_at(&[]);
    let without = looked_at(&["--no-dns"]);
    for calls in [&with, &without] {
        let executed = calls.of(&["execve", "execveat"]);
        assert_eq!(executed.len(), 1, "itself: {executed:#?}");
        let processes = calls.of(&["fork", "vfork", "clone", "clone3"]);
        assert!(processes.iter().all(|call| call.contains("CLONE_THREAD")), "{processes:#?}");
        let opened = calls.of(&["open", "openat", "openat2"]);
        assert!(opened.len() > 50, "it was looked at: {}", opened.len());
        let writing = opened
            .into_iter()
            .filter(|call| ["O_WRONLY", "O_RDWR", "O_CREAT"].iter().any(|how| call.contains(how)));
        let elsewhere: Vec<&str> = writing
            .chain(calls.of(&CHANGING))
            .filter(|call| !call.contains(&format!("\"{folder}")))
            .collect();
        assert!(elsewhere.is_empty(), "{elsewhere:#?}");
        assert!(calls.enters(on_macvlan.netns()), "{:#?}", calls.of(&["setns"]));
        assert!(!calls.enters(world.netns(0)), "it is counted at the host's veth");
    }
    assert!(with.enters(world.netns(1)), "there is a name server in it: {:#?}", with.of(&["setns"]));
    assert!(!without.enters(world.netns(1)), "nobody asked for it: {:#?}", without.of(&["setns"]));
}

/// What `strace -y` has written, a line for each system call.
struct Calls(String);

impl Calls {
    fn of(&self, names: &[&str]) -> Vec<&str> {
        let is = |line: &&str| names.iter().any(|name| line.contains(&format!(" {name}(")));
        self.0.lines().filter(is).collect()
    }

    fn enters(&self, netns: &Netns) -> bool {
        let link = std::fs::read_link(format!("/proc/{}/ns/net", netns.pid())).expect("a namespace");
        self.of(&["setns"]).iter().any(|call| call.contains(&*link.to_string_lossy()))
    }
}

/// Whoever may ask for health learns of no container.
#[test]
fn health_tells_of_no_container() {
    let world = Bridged::new("br-health", "10.85.0", [10]);
    let agent = Agent::start_in(Some(&world.host), &["--no-engine"]);
    wait_for("the container", LOADED, || {
        let snapshot = agent.snapshot(&world.host)?;
        program::container(&snapshot, world.name(0)).ok_or_else(|| snapshot.to_string())
    });
    for (path, said) in [("/healthz", "ok\n"), ("/readyz", "ready\n")] {
        let answer = world.host.run(move || http::get(9810, path)).expect("an answer");
        assert_eq!(answer, (200, said.to_owned()), "{path}");
    }
}

/// With what the README says, word by word, an ordinary user's agent counts as root's does.
#[test]
fn an_ordinary_user_with_the_capabilities_can_observe() {
    const README: &str = include_str!("../../README.md");
    let line = README.lines().find_map(|line| line.split_once("Without root: `sudo ")).expect("the line").1;
    let setcap = line.split_once('`').expect("its end").0.strip_suffix(" netobs").expect("of netobs");
    let world = Bridged::new("br-user", "10.87.0", [10, 11]);
    let folder = tempfile::tempdir().expect("a folder");
    let copy = folder.path().join("netobs");
    std::fs::copy(binary(), &copy).expect("copy the program");
    let grant = |setcap: &str| {
        let (folder, copy) = (folder.path().display(), copy.display());
        let script = format!("chmod 755 {folder} && PATH=$PATH:/usr/sbin:/sbin {setcap} {copy}");
        assert!(Command::new("sh").args(["-c", &script]).status().expect("run sh").success());
    };
    grant(setcap);
    let as_user = || {
        let mut command = world.host.command("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&copy);
        command
    };
    let agent = Agent::start_by(as_user(), 9810, &["--no-engine"]);
    let icmp = |snapshot: &serde_json::Value, n: usize| {
        let found = program::container(snapshot, world.name(n))?;
        (found["interfaces"].as_array()?.len() == 1)
            .then(|| ["rx", "tx"].map(|way| program::number(&found, &format!("{way}.protocol.icmp.packets"))))
    };
    let until = |wanted: [u64; 2]| {
        wait_for(&format!("{wanted:?}"), LOADED, || {
            let snapshot = agent.snapshot(&world.host)?;
            let found = [0, 1].map(|n| icmp(&snapshot, n));
            if found == [Some(wanted); 2] { Ok(snapshot) } else { Err(format!("{found:?} in {snapshot}")) }
        })
    };
    until([0, 0]);
    world.netns(0).sh("busybox ping -q -c 5 -i 0.02 10.87.0.11");
    let snapshot = until([5, 5]);
    // What is optional in the README is named, where a container on this machine would need it, and nothing else is
    // missing.
    let degraded = snapshot["agent"]["degraded"].as_array().expect("what is degraded");
    let is_optional =
        |one: &serde_json::Value| one[0] == "embedded DNS" && one[1].to_string().contains("CAP_SYS_ADMIN");
    assert!(degraded.iter().all(is_optional), "{degraded:?}");
    let output = as_user().args(["watch", "--standalone", "--once", "-o", "json", "--no-engine"]).output();
    let snapshot = json(&output.expect("run netobs watch"));
    assert_eq!(icmp(&snapshot, 0), Some([0, 0]), "{snapshot}");

    // Without what tells the kernel's addresses, it does not name places in it.
    drop(agent);
    grant(&setcap.replace(",cap_syslog", ""));
    let agent = Agent::start_by(as_user(), 9810, &["--no-engine"]);
    let snapshot = wait_for("a snapshot", LOADED, || agent.snapshot(&world.host));
    let degraded = snapshot["agent"]["degraded"].to_string();
    assert!(degraded.contains("[\"drop places\",") && degraded.contains("CAP_SYSLOG"), "{degraded}");
    drop(agent);

    // Without what only tells whose it is, it counts, and says what it cannot tell.
    grant(&setcap.replace("cap_sys_ptrace,", ""));
    let output = as_user().args(["watch", "--standalone", "--once", "-o", "json", "--no-engine"]).output();
    let snapshot = json(&output.expect("run netobs watch"));
    let degraded = &snapshot["agent"]["degraded"];
    assert!(
        degraded.to_string().contains("[\"namespaces\",") && degraded.to_string().contains("CAP_SYS_PTRACE")
    );
    for n in 0..2 {
        let found = program::container(&snapshot, world.name(n)).expect("by its cgroup");
        assert_eq!(found["interfaces"], serde_json::json!([]), "{found}");
        assert!(found["unobserved"].as_str().is_some_and(|why| why.contains("CAP_SYS_PTRACE")), "{found}");
    }
    assert_eq!(snapshot["agent"]["unattributed_interfaces"], 2, "{snapshot}");
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(output)))
}

/// What stands in the status of each thread of a process.
fn statuses(pid: u32) -> Vec<HashMap<String, String>> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    let status = |thread: std::io::Result<std::fs::DirEntry>| {
        let text =
            std::fs::read_to_string(thread.expect("a thread").path().join("status")).expect("its status");
        let fields = text.lines().filter_map(|line| line.split_once(":\t"));
        fields.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    };
    threads.map(status).collect()
}

/// Bits of these capabilities as in `/proc/PID/status`.
fn bits(capabilities: &[u32]) -> String {
    format!("{:016x}", capabilities.iter().fold(0u64, |bits, number| bits | 1 << number))
}

/// As root it keeps what the README lists, in every thread, and nothing that it executed would get more.
#[test]
fn what_is_not_needed_is_given_up() {
    const DAC_OVERRIDE: u32 = 1;
    const DAC_READ_SEARCH: u32 = 2;
    // NET_ADMIN, SYS_PTRACE, SYS_ADMIN, SYSLOG, PERFMON, BPF of <linux/capability.h>.
    const NEEDED: [u32; 6] = [12, 19, 21, 34, 38, 39];
    let folder = std::env::temp_dir().join(unique("others"));
    std::fs::create_dir(&folder).expect("a folder");
    let _socket = std::os::unix::net::UnixListener::bind(folder.join("engine.sock")).expect("a socket");
    let engine = format!("unix://{}/engine.sock", folder.display());
    let given_up = |options: &[&str], kept: &[u32]| {
        let agent = Agent::start(options);
        wait_for("the agent", LIMIT, || http::get(agent.port, "/metrics").map_err(|error| error.to_string()));
        let statuses = statuses(agent.pid());
        assert!(statuses.len() > 1, "threads: {statuses:?}");
        for status in statuses {
            for set in ["CapPrm", "CapEff", "CapBnd"] {
                assert_eq!(status[set], bits(kept), "{set} of {}", status["Name"]);
            }
            assert_eq!((status["CapInh"].as_str(), status["NoNewPrivs"].as_str()), (&*bits(&[]), "1"));
        }
    };
    given_up(&["--no-engine"], &NEEDED);
    for command in
        ["watch --standalone --output json", "flows --output json", "drops", "topology --watch", "trace"]
    {
        let mut process = program::netobs(None);
        process.args(command.split(' ')).arg("--no-engine").stdin(Stdio::null()).stdout(Stdio::null());
        let mut child = netobs_tests::netns::die_with_parent(&mut process).spawn().expect("start netobs");
        let kept = bits(&NEEDED);
        wait_for(command, LOADED, || {
            let statuses = statuses(child.id());
            let sets = |status: &HashMap<String, String>| {
                ["CapPrm", "CapEff", "CapBnd"].iter().all(|set| status[*set] == kept)
                    && status["NoNewPrivs"] == "1"
            };
            if statuses.iter().all(sets) { Ok(()) } else { Err(format!("{statuses:?}")) }
        });
        program::signal(child.id(), nix::sys::signal::Signal::SIGTERM);
        child.wait().expect("its end");
    }
    let file = std::env::temp_dir().join(unique("web.yml"));
    std::fs::write(&file, "{}").expect("write");
    let path = file.to_str().expect("UTF-8");
    given_up(&["--no-engine", "--web-config-file", path], &NEEDED);
    let shell = |script: String| {
        assert!(Command::new("sh").args(["-c", &script]).status().expect("run sh").success());
    };
    shell(format!("chown 65534:65534 {path} && chmod 600 {path}"));
    given_up(&["--no-engine", "--web-config-file", path], &[&NEEDED[..], &[DAC_READ_SEARCH]].concat());
    std::fs::remove_file(&file).expect("remove the file");
    given_up(&["--engine", &engine], &NEEDED);
    // Of a user who lets nobody in.
    shell(format!("chown 65534:65534 {0} && chmod 700 {0}", folder.display()));
    given_up(&["--engine", &engine], &[&NEEDED[..], &[DAC_OVERRIDE]].concat());
    std::fs::remove_dir_all(&folder).expect("remove the folder");
}

#[test]
fn a_port_that_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    fails_with(&run(&["agent", "--no-engine", "--listen", &address]), &[&address, "in use", "--listen"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    // Where nobody's leftovers are told of.
    let host = Netns::new();
    for output in ["table", "json", "csv"] {
        let mut child = netobs(Some(&host))
            .args(["watch", "--no-engine", "--interval", "50ms", "--output", output])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert!(!line.is_empty());
        // The reader is gone; the next line finds that out.
        let start = Instant::now();
        let status = child.wait().expect("its end");
        let mut message = String::new();
        child.stderr.take().expect("a pipe").read_to_string(&mut message).expect("read");
        assert!(status.success(), "{output}: {status}: {message}");
        assert_eq!(message, "", "{output}");
        assert!(start.elapsed() < LIMIT);
    }
}

#[test]
fn formats_when_piped() {
    let host = Netns::new();
    let output = |arguments: &[&str]| {
        let output = netobs(Some(&host)).args(["watch", "--demo"]).args(arguments).output().expect("run");
        assert!(output.status.success(), "{}", stderr(&output));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let table = output(&["--once"]);
    assert!(table.starts_with("NAME"), "{table}");
    assert!(table.contains("database"), "{table}");
    let json = output(&["--count", "3", "--interval", "100ms", "--output", "json"]);
    let lines: Vec<serde_json::Value> =
        json.lines().map(|line| serde_json::from_str(line).expect("an object a line")).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines.iter().all(|line| line["version"] == 1));
    let csv = output(&["--count", "2", "--interval", "100ms", "--output", "csv"]);
    assert_eq!(csv.lines().filter(|line| line.starts_with("time,")).count(), 1, "{csv}");
    assert_eq!(csv.lines().count(), 1 + 2 * 4, "four containers twice: {csv}");
    let filtered = output(&["--once", "--filter", "name=web", "--output", "json"]);
    let filtered: serde_json::Value = serde_json::from_str(&filtered).expect("JSON");
    assert_eq!(filtered["containers"].as_array().map(Vec::len), Some(1));
}

#[test]
fn doctor_says_what_is_missing() {
    let fine = run(&["doctor"]);
    let text = String::from_utf8_lossy(&fine.stdout).into_owned();
    assert!(fine.status.success(), "{text}");
    for subject in ["kernel", "BTF", "CAP_NET_ADMIN", "programs", "engine"] {
        assert!(text.contains(subject), "{text}");
    }
    let poor = without("-net_admin", &["doctor"]);
    let text = String::from_utf8_lossy(&poor.stdout).into_owned();
    assert!(!poor.status.success(), "{text}");
    assert!(text.contains("FAIL") && text.contains("setcap"), "{text}");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir_all(folder.path().join("sys/kernel")).expect("a folder");
    std::fs::write(folder.path().join("sys/kernel/osrelease"), "4.19.0-amd64\n").expect("a file");
    let old = run(&["doctor", "--proc-root", &folder.path().to_string_lossy()]);
    let text = String::from_utf8_lossy(&old.stdout).into_owned();
    assert!(!old.status.success() && text.contains("5.10"), "{text}");
    let absent = run(&["doctor", "--engine", "unix:///nowhere/docker.sock"]);
    assert!(String::from_utf8_lossy(&absent.stdout).contains("/nowhere/docker.sock"));
}

#[test]
fn the_agent_serves_and_ends_when_asked() {
    let mut agent = Agent::start(&["--no-engine"]);
    let port = agent.port;
    wait_for("ready", LIMIT, || match http::get(port, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(http::get(port, "/healthz").expect("health"), (200, "ok\n".to_owned()));
    let (status, body) = http::get(port, "/api/v1/snapshot").expect("snapshot");
    let snapshot: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &snapshot["version"]), (200, &serde_json::json!(1)));
    assert_eq!(http::get(port, "/nothing/here").expect("an answer").0, 404);
    let (status, time) = agent.terminate();
    assert!(status.success());
    assert!(time < LIMIT, "{time:?}");
    assert!(http::get(port, "/healthz").is_err(), "nobody listens any more");
}

#[test]
fn the_agent_waits_for_an_engine_and_says_so() {
    let mut agent = Agent::start(&["--engine", "unix:///nowhere/docker.sock"]);
    let port = agent.port;
    // An engine that is not there is no reason not to be ready.
    wait_for("ready", LIMIT, || match http::get(port, "/readyz") {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (_, body) = http::get(port, "/api/v1/snapshot").expect("snapshot");
    assert!(body.contains("no socket at /nowhere/docker.sock"), "{body}");
    agent.kill();
}

/// Whether a process is the child of another.
fn below(pid: u32, parent: &str) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.strip_prefix("PPid:").is_some_and(|ppid| ppid.trim() == parent.trim()))
}

/// The full-screen view in a terminal that tmux plays.
#[test]
fn full_screen() {
    let terminal = Terminal::new();
    let (keys, shows) = (|keys: &[&str]| terminal.keys(keys), |what: &str| terminal.shows(what));
    keys(&[&format!("PS1='prom''pt> '; {} watch --demo; echo code=$?", binary().display()), "Enter"]);
    shows("database");
    let screen = shows("shop");
    assert!(screen.contains("web") && screen.contains("outsider"), "{screen}");
    keys(&["2"]);
    shows("10.88.1.0/24");
    keys(&["3"]);
    let screen = shows("web:8080");
    assert!(screen.contains("client:") && screen.contains("closed"), "{screen}");
    // The outsider's attempts end in the host's forwarding.
    keys(&["4"]);
    let screen = shows("outsider 10.88.2.10");
    assert!(screen.contains("database 10.88.1.20"), "{screen}");
    keys(&["1"]);
    shows("outsider");
    keys(&["/"]);
    keys(&["data", "Enter"]);
    wait_for("only the database", LIMIT, || {
        let screen = terminal.screen();
        if screen.contains("database") && !screen.contains("outsider") { Ok(()) } else { Err(screen) }
    });
    keys(&["Enter"]);
    shows("eth0");
    terminal.tmux(&["resize-window", "-x", "40", "-y", "8"]);
    shows("60");
    terminal.tmux(&["resize-window", "-x", "120", "-y", "35"]);
    shows("eth0");
    keys(&["q"]);
    shows("code=0");
    // Ended by a signal, it gives the terminal back as well.
    keys(&[&format!("clear; {} watch --demo; echo then=$?", binary().display()), "Enter"]);
    shows("database");
    let pids = Command::new("pgrep").args(["-f", &format!("^{} watch --demo$", binary().display())]).output();
    let pids = String::from_utf8(pids.expect("run pgrep").stdout).expect("UTF-8");
    let screens: Vec<u32> = pids
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| below(*pid, &terminal.tmux(&["display-message", "-p", "#{pane_pid}"])))
        .collect();
    assert_eq!(screens.len(), 1, "{pids}");
    netobs_tests::program::signal(screens[0], nix::sys::signal::Signal::SIGTERM);
    let screen = shows("then=0");
    assert!(!screen.contains("database"), "the view is gone: {screen}");
}
