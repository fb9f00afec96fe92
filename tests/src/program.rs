//! The program under test, as a user starts it.

use std::{
    cell::Cell,
    fs,
    io::{BufRead as _, BufReader},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    http,
    netns::{Netns, die_with_parent},
    wait_for,
};

/// How long the program gets to show what a test waits for.
pub const LIMIT: Duration = Duration::from_secs(20);

/// How long it gets until its programs are in the kernel: no second, but where every instruction is emulated, of the
/// verifier too.
pub const LOADED: Duration = Duration::from_secs(90);

/// The binary that the test command has built.
pub fn binary() -> PathBuf {
    std::env::var_os("NETOBS_BIN").map_or_else(
        || {
            let mut path = std::env::current_exe().expect("own path");
            path.pop();
            path.pop();
            path.push("netobs");
            path
        },
        PathBuf::from,
    )
}

/// The program's command, in a namespace or in ours.
pub fn netobs(host: Option<&Netns>) -> Command {
    let binary = binary();
    match host {
        Some(host) => host.command(&binary.to_string_lossy()),
        None => Command::new(binary),
    }
}

/// Runs the program to its end.
pub fn run(arguments: &[&str]) -> Output {
    netobs(None).args(arguments).stdin(Stdio::null()).output().expect("run netobs")
}

thread_local! {
    /// See [`unless_left_out`].
    static LEFT_OUT: Cell<u64> = const { Cell::new(0) };
}

/// Descriptors and threads that a process has open: the least of a second, as a connection may be on its way out.
///
/// # Panics
/// If it is gone.
pub fn open(pid: u32) -> (usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).expect("a process").count();
    let readings = (0..20).map(|_| {
        std::thread::sleep(Duration::from_millis(50));
        (count("fd"), count("task"))
    });
    readings.reduce(|(files, threads), now| (files.min(now.0), threads.min(now.1))).expect("twenty")
}

/// Runs a test of exact figures of TCP again where it fails and netobs has stated that the kernel has left out runs of its
/// programs ([adr/0009](../../docs/adr/0009-tcp.md#cost)). What is lost and not stated fails.
///
/// # Panics
/// As the test does.
pub fn unless_left_out(test: impl Fn()) {
    for _ in 0..3 {
        LEFT_OUT.set(0);
        let Err(failed) = catch_unwind(AssertUnwindSafe(&test)) else { return };
        if LEFT_OUT.get() == 0 {
            resume_unwind(failed);
        }
        println!("the kernel has left out {} runs, as is stated: once more", LEFT_OUT.get());
    }
    panic!("runs were left out each time");
}

/// Notes what a snapshot states.
fn note_left_out(snapshot: &Value) {
    let left_out = snapshot["agent"]["tcp"]["lost"]["recursion"].as_u64().unwrap_or_default();
    LEFT_OUT.set(left_out.max(LEFT_OUT.get()));
}

/// `netobs watch --output json`, with its latest snapshot.
pub struct Watch {
    child: Child,
    pid: u32,
    latest: Arc<Mutex<Option<(Instant, Value)>>>,
}

impl Watch {
    /// Starts it and waits for the first snapshot.
    pub fn start(host: Option<&Netns>, arguments: &[&str]) -> Self {
        Self::start_by(netobs(host), arguments)
    }

    /// The same as the first process of a PID namespace of its own, where it sees no process but itself.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_alone(arguments: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]).arg(binary());
        let mut watch = Self::start_by(command, arguments);
        let output = Command::new("pgrep").args(["-P", &watch.child.id().to_string()]).output();
        let output = String::from_utf8(output.expect("run pgrep").stdout).expect("text");
        watch.pid = output.trim().parse().expect("the process that it has forked");
        watch
    }

    /// By a command of [`netobs`], or one that becomes it.
    pub fn start_by(mut command: Command, arguments: &[&str]) -> Self {
        command.args(["watch", "--output", "json", "--interval", "100ms"]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = die_with_parent(&mut command).spawn().expect("start netobs watch");
        let out = BufReader::new(child.stdout.take().expect("a pipe"));
        let latest = Arc::new(Mutex::new(None));
        let store = Arc::clone(&latest);
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let snapshot = serde_json::from_str(&line).expect("each line is JSON");
                *store.lock().expect("no panic elsewhere") = Some((Instant::now(), snapshot));
            }
        });
        let watch = Self { pid: child.id(), child, latest };
        wait_for("the first snapshot", LOADED, || {
            let latest = watch.latest.lock().expect("no panic elsewhere");
            if latest.is_some() { Ok(()) } else { Err("none".to_owned()) }
        });
        watch
    }

    /// A snapshot that was taken after this call.
    pub fn fresh(&self) -> Value {
        // One may be on its way that was taken just before.
        let asked = Instant::now() + Duration::from_millis(60);
        wait_for("a fresh snapshot", LIMIT, || {
            let latest = self.latest.lock().expect("no panic elsewhere");
            match &*latest {
                Some((at, snapshot)) if *at > asked => {
                    note_left_out(snapshot);
                    Ok(snapshot.clone())
                }
                _ => Err("none".to_owned()),
            }
        })
    }

    /// Waits until a snapshot has what is looked for.
    pub fn until<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        wait_for(what, LIMIT, || {
            let snapshot = self.fresh();
            look(&snapshot).ok_or_else(|| summary(&snapshot))
        })
    }

    /// An attached interface by its name on the host.
    pub fn interface(&self, name: &str) -> Value {
        self.until(&format!("interface {name}"), |snapshot| interface(snapshot, name))
    }

    /// A container that is known by name.
    pub fn container(&self, name: &str) -> Value {
        self.until(&format!("container {name}"), |snapshot| container(snapshot, name))
    }

    pub const fn pid(&self) -> u32 {
        self.pid
    }

    /// Ends it as a service manager does; how it ended and how long that took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        self.end_by(Signal::SIGTERM)
    }

    /// The same by a signal.
    pub fn end_by(&mut self, by: Signal) -> (ExitStatus, Duration) {
        let start = Instant::now();
        signal(self.pid(), by);
        (end(&mut self.child), start.elapsed())
    }

    /// Ends it without a chance to clean up.
    pub fn kill(&mut self) {
        self.child.kill().expect("kill netobs");
        self.child.wait().expect("wait for netobs");
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}

/// How a process ended that was told to.
///
/// # Panics
/// If it does not; it is killed then.
fn end(child: &mut Child) -> ExitStatus {
    let latest = Instant::now() + LOADED;
    while Instant::now() < latest {
        if let Some(status) = child.try_wait().expect("wait for netobs") {
            return status;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().expect("kill netobs");
    child.wait().expect("wait for netobs");
    panic!("it did not end within {LOADED:?}");
}

/// # Panics
/// If there is no such process.
pub fn signal(pid: u32, signal: Signal) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, signal).expect("signal a process");
}

pub fn interface(snapshot: &Value, name: &str) -> Option<Value> {
    find(snapshot, "interfaces", name)
}

pub fn container(snapshot: &Value, name: &str) -> Option<Value> {
    find(snapshot, "containers", name)
}

pub fn network(snapshot: &Value, name: &str) -> Option<Value> {
    find(snapshot, "networks", name)
}

fn find(snapshot: &Value, kind: &str, name: &str) -> Option<Value> {
    snapshot[kind].as_array()?.iter().find(|item| item["name"] == name).cloned()
}

/// Names and packets, for messages of failed waits.
fn summary(snapshot: &Value) -> String {
    let names = |kind: &str| -> Vec<String> {
        snapshot[kind]
            .as_array()
            .map(|items| {
                items
                    .iter()
                    .map(|item| {
                        format!("{} rx {} tx {}", item["name"], item["rx"]["packets"], item["tx"]["packets"])
                    })
                    .collect()
            })
            .unwrap_or_default()
    };
    format!(
        "containers {:?}, interfaces {:?}, {}",
        names("containers"),
        names("interfaces"),
        snapshot["agent"]
    )
}

/// A counter in a snapshot, like `rx.protocol.icmp.packets`.
///
/// # Panics
/// If there is none.
pub fn number(value: &Value, path: &str) -> u64 {
    let pointer = format!("/{}", path.replace('.', "/"));
    value.pointer(&pointer).and_then(Value::as_u64).unwrap_or_else(|| panic!("no number {path} in {value}"))
}

/// `netobs agent` with its HTTP server.
pub struct Agent {
    child: Child,
    pub port: u16,
}

impl Agent {
    /// Starts it on a free port of the loopback interface of our own namespace.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(None, arguments)
    }

    pub fn start_in(host: Option<&Netns>, arguments: &[&str]) -> Self {
        let port = match host {
            Some(_) => 9810,
            None => free_port(),
        };
        Self::start_by(netobs(host), port, arguments)
    }

    /// By a command of [`netobs`], which may have an environment, or one that becomes it.
    pub fn start_by(mut command: Command, port: u16, arguments: &[&str]) -> Self {
        command
            .args(["agent", "--listen", &format!("127.0.0.1:{port}")])
            .args(arguments)
            .stdin(Stdio::null());
        Self::spawn(&mut command, port)
    }

    /// Starts a command that is to be an agent at this port.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn spawn(command: &mut Command, port: u16) -> Self {
        let child = die_with_parent(command).spawn().expect("start netobs agent");
        Self { child, port }
    }

    /// What it shows, asked in the namespace that it serves in.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn snapshot(&self, host: &Netns) -> Result<Value, String> {
        let port = self.port;
        match host.run(move || http::get(port, "/api/v1/snapshot")) {
            Ok((200, body)) => {
                let snapshot = serde_json::from_str(&body).map_err(|error| error.to_string())?;
                note_left_out(&snapshot);
                Ok(snapshot)
            }
            other => Err(format!("{other:?}")),
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a service manager does; how it ended and how long that took.
    pub fn terminate(&mut self) -> (ExitStatus, Duration) {
        let start = Instant::now();
        signal(self.pid(), Signal::SIGTERM);
        (end(&mut self.child), start.elapsed())
    }

    pub fn kill(&mut self) {
        self.child.kill().expect("kill netobs");
        self.child.wait().expect("wait for netobs");
    }

    /// Resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        resident_kib(self.pid())
    }
}

/// Resident memory of a process in KiB.
///
/// # Panics
/// If there is none.
pub fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.terminate();
        }
    }
}

/// Free a moment ago.
///
/// # Panics
/// If there is none.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}
