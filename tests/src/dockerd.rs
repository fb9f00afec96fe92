//! A Docker engine of a test's own, which can be started, stopped and killed: its data, its socket and its
//! network and mount namespaces are in no other's way, and all of it ends with the value.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    docker,
    netns::{Netns, die_with_parent},
    program::signal,
    wait_for,
};

/// How long the engine gets to answer, or to end its containers and itself.
const LIMIT: Duration = Duration::from_secs(60);

const CONTAINERD_SOCKET: &str = "containerd.sock";

/// Whether there is an engine to start; if not, the test is noted as skipped.
pub fn available(test: &str) -> bool {
    let mut command = Command::new("sh");
    command.args(["-c", "command -v dockerd && command -v containerd && command -v docker"]);
    let there = command.stdout(Stdio::null()).status().is_ok_and(|status| status.success());
    if !there {
        crate::skip(test, "no dockerd, containerd and docker to start an engine with");
    }
    there
}

/// An engine, whether it runs or not.
pub struct Dockerd {
    /// What is a host to its containers.
    pub host: Netns,
    folder: TempDir,
    options: Vec<String>,
    daemon: Option<Child>,
    /// A service of its own, which outlives the engine, as distributions have it.
    containerd: Child,
}

impl Dockerd {
    /// Not started yet. The options are added to each start.
    ///
    /// # Panics
    /// Without root.
    pub fn new(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("nbtdockerd").tempdir().expect("a folder");
        // The machine's own configuration is for its own engine.
        fs::write(folder.path().join("daemon.json"), "{}").expect("write a configuration");
        let containerd = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        fs::write(folder.path().join("containerd.toml"), containerd).expect("write a configuration");
        let options = options.iter().map(|&option| option.to_owned()).collect();
        let host = Netns::with_mounts();
        let mut command = service(&host, &folder, "containerd");
        command.args([
            in_folder(&folder, "config", "containerd.toml"),
            in_folder(&folder, "root", "containerd-data"),
            in_folder(&folder, "state", "containerd-state"),
            in_folder(&folder, "address", CONTAINERD_SOCKET),
        ]);
        let containerd = die_with_parent(&mut command).spawn().expect("start containerd");
        let socket = folder.path().join(CONTAINERD_SOCKET);
        wait_for("containerd", LIMIT, || {
            UnixStream::connect(&socket).map(drop).map_err(|error| error.to_string())
        });
        Self { host, folder, options, daemon: None, containerd }
    }

    /// As netobs and `$DOCKER_HOST` have it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// What tells a socket from another at the same path.
    ///
    /// # Panics
    /// If there is none.
    pub fn socket_inode(&self) -> u64 {
        fs::metadata(self.socket()).expect("a socket").ino()
    }

    /// Starts it and waits until it answers.
    ///
    /// # Panics
    /// If it does not.
    pub fn start(&mut self) {
        assert!(self.daemon.is_none(), "it runs");
        let mut command = service(&self.host, &self.folder, "dockerd");
        command.arg(format!("--host={}", self.endpoint())).args(&self.options);
        command.args([
            in_folder(&self.folder, "config-file", "daemon.json"),
            in_folder(&self.folder, "data-root", "data"),
            in_folder(&self.folder, "exec-root", "exec"),
            in_folder(&self.folder, "pidfile", "pid"),
            in_folder(&self.folder, "containerd", CONTAINERD_SOCKET),
            "--storage-driver=vfs".to_owned(),
        ]);
        self.daemon = Some(die_with_parent(&mut command).spawn().expect("start dockerd"));
        wait_for("dockerd", LIMIT, || {
            let answer = self.try_docker(&["version"]);
            if answer.status.success() { Ok(()) } else { Err(self.log()) }
        });
        if !self.try_docker(&["image", "inspect", docker::IMAGE]).status.success() {
            docker::import_image(self.command());
        }
    }

    /// Ends it as a service manager does, and waits for its end.
    ///
    /// # Panics
    /// If it does not run, or does not end.
    pub fn stop(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        signal(daemon.id(), Signal::SIGTERM);
        let ended = wait_for("dockerd's end", LIMIT, || match daemon.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        assert!(ended.success(), "{ended}: {}", self.log());
    }

    /// Ends it without a chance to clean up: its socket's file stays.
    ///
    /// # Panics
    /// If it does not run.
    pub fn kill(&mut self) {
        let mut daemon = self.daemon.take().expect("it runs");
        daemon.kill().expect("kill dockerd");
        daemon.wait().expect("dockerd's end");
    }

    /// Its command line.
    pub fn command(&self) -> Command {
        let mut command = Command::new("docker");
        command.env("DOCKER_HOST", self.endpoint());
        command
    }

    /// Runs `docker` and returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn docker(&self, arguments: &[&str]) -> String {
        let output = self.try_docker(arguments);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "docker {arguments:?}: {}\n{out}{err}", output.status);
        out.trim().to_owned()
    }

    /// # Panics
    /// If there is no `docker`.
    pub fn try_docker(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("run docker")
    }

    /// `docker run -d` with these options, then `sleep`; its ID. A signal that cannot be ignored ends it.
    ///
    /// # Panics
    /// If it fails.
    pub fn run(&self, name: &str, options: &[&str]) -> String {
        let first = ["run", "-d", "--stop-signal", "SIGKILL", "--name", name];
        self.docker(&[&first[..], options, &[docker::IMAGE, "sleep", "1000"]].concat())
    }

    /// The first process of a container.
    ///
    /// # Panics
    /// If there is none.
    pub fn pid_of(&self, container: &str) -> u32 {
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", container]);
        pid.parse().ok().filter(|pid| *pid > 0).expect("a process")
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Processes that the engine has left: those in its mount namespace, and their children.
    fn left(&self) -> Vec<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        let (ours, holder) = (namespace(self.host.pid()), self.host.pid());
        let is_ours = |pid: u32| pid != holder && namespace(pid).is_some_and(|of| Some(of) == ours);
        let all = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|&pid| is_ours(pid) || parent(pid).is_some_and(is_ours)).collect()
    }
}

/// A program in the namespaces of an engine, with its log in the engine's folder.
fn service(host: &Netns, folder: &TempDir, program: &str) -> Command {
    let log = fs::OpenOptions::new().create(true).append(true).open(folder.path().join("log"));
    let log = log.expect("open a log");
    let mut command = Command::new("nsenter");
    command.args(["--net", "--mount", "-t", &host.pid().to_string(), program]);
    command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
    command
}

fn in_folder(folder: &TempDir, option: &str, name: &str) -> String {
    format!("--{option}={}", folder.path().join(name).display())
}

/// The fourth field of `/proc/PID/stat`, counted from behind the name, which is in brackets.
fn parent(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let containers = self.try_docker(&["ps", "-aq"]);
            let containers = String::from_utf8_lossy(&containers.stdout).into_owned();
            let containers: Vec<&str> = containers.split_whitespace().collect();
            if !containers.is_empty() {
                self.try_docker(&[&["rm", "-f"], containers.as_slice()].concat());
            }
            end(&mut daemon);
        }
        end(&mut self.containerd);
        // Nothing, as a rule: what a test that failed has left.
        for pid in self.left() {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
        }
    }
}

/// Asks a process to end, and ends it if it takes too long.
fn end(process: &mut Child) {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM);
    let end = std::time::Instant::now() + LIMIT / 3;
    while matches!(process.try_wait(), Ok(None)) && std::time::Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = process.kill();
    let _ = process.wait();
}
