//! What goes wrong says so, with what to do, and ends with a code that is not zero.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    net::TcpListener,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use netobs_tests::{
    http,
    netns::Netns,
    program::{Agent, LIMIT, binary, netobs, run},
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

#[test]
fn an_ordinary_user_with_the_capabilities_can_watch() {
    let folder = std::env::temp_dir().join(unique("caps"));
    std::fs::create_dir(&folder).expect("a folder");
    let copy = folder.join("netobs");
    std::fs::copy(binary(), &copy).expect("copy the program");
    let shell = |script: &str| Command::new("sh").args(["-c", script]).output().expect("run sh");
    let path = copy.display();
    let output = shell(&format!(
        "chmod 755 {} && PATH=$PATH:/usr/sbin:/sbin setcap cap_bpf,cap_perfmon,cap_net_admin,cap_sys_ptrace+ep {path} && \
         setpriv --reuid 65534 --regid 65534 --clear-groups {path} watch --once --no-engine -o json",
        folder.display()
    ));
    std::fs::remove_dir_all(&folder).expect("remove the folder");
    let snapshot: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", stderr(&output)));
    assert_eq!(snapshot["version"], 1);
}

#[test]
fn a_port_that_is_taken() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("address").to_string();
    fails_with(&run(&["agent", "--no-engine", "--listen", &address]), &[&address, "in use", "--listen"]);
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for output in ["table", "json", "csv"] {
        let mut child = netobs(None)
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
    assert!(time < Duration::from_secs(1), "{time:?}");
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

/// A server of its own, which ends with it, and all that runs there.
struct Tmux(String);

impl Tmux {
    fn run(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux").args(["-L", &self.0]).args(arguments).output().expect("run tmux");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        self.run(&["kill-server"]);
    }
}

/// The full-screen view in a terminal that tmux plays.
#[test]
fn full_screen() {
    let session = Tmux(unique("screen"));
    let tmux = |arguments: &[&str]| session.run(arguments);
    let shows = |what: &str| {
        wait_for(what, LIMIT, || {
            let screen = tmux(&["capture-pane", "-p", "-t", "0"]);
            if screen.contains(what) { Ok(screen) } else { Err(screen) }
        })
    };
    tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "120", "-y", "35", "sh"]);
    tmux(&[
        "send-keys",
        &format!("PS1='prom''pt> '; {} watch --demo; echo code=$?", binary().display()),
        "Enter",
    ]);
    shows("database");
    let screen = shows("shop");
    assert!(screen.contains("web") && screen.contains("outsider"), "{screen}");
    tmux(&["send-keys", "2"]);
    shows("10.88.1.0/24");
    tmux(&["send-keys", "3"]);
    let screen = shows("web:8080");
    assert!(screen.contains("client:") && screen.contains("closed"), "{screen}");
    // The outsider's attempts end in the host's forwarding.
    tmux(&["send-keys", "4"]);
    let screen = shows("outsider 10.88.2.10");
    assert!(screen.contains("database 10.88.1.20"), "{screen}");
    tmux(&["send-keys", "1"]);
    shows("outsider");
    tmux(&["send-keys", "/"]);
    tmux(&["send-keys", "data", "Enter"]);
    wait_for("only the database", LIMIT, || {
        let screen = tmux(&["capture-pane", "-p", "-t", "0"]);
        if screen.contains("database") && !screen.contains("outsider") { Ok(()) } else { Err(screen) }
    });
    tmux(&["send-keys", "Enter"]);
    shows("eth0");
    tmux(&["resize-window", "-x", "40", "-y", "8"]);
    shows("60");
    tmux(&["resize-window", "-x", "120", "-y", "35"]);
    shows("eth0");
    tmux(&["send-keys", "q"]);
    shows("code=0");
    // Ended by a signal, it gives the terminal back as well.
    tmux(&["send-keys", &format!("clear; {} watch --demo; echo then=$?", binary().display()), "Enter"]);
    shows("database");
    let pids = Command::new("pgrep").args(["-f", &format!("^{} watch --demo$", binary().display())]).output();
    let pids = String::from_utf8(pids.expect("run pgrep").stdout).expect("UTF-8");
    let screens: Vec<u32> = pids
        .lines()
        .filter_map(|pid| pid.parse().ok())
        .filter(|pid| below(*pid, &tmux(&["display-message", "-p", "#{pane_pid}"])))
        .collect();
    assert_eq!(screens.len(), 1, "{pids}");
    netobs_tests::program::signal(screens[0], nix::sys::signal::Signal::SIGTERM);
    let screen = shows("then=0");
    assert!(!screen.contains("database"), "the view is gone: {screen}");
}
