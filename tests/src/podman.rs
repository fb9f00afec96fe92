//! A Podman of our own: store, networks, socket and service are in a folder that goes with the value, and so
//! do its containers.

use std::{
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use tempfile::TempDir;

use crate::{docker, netns::die_with_parent, program::LIMIT, unique, wait_for};

/// Whether there is a Podman; if not, the test is noted as skipped.
pub fn available(test: &str) -> bool {
    let there = Command::new("podman").arg("--version").output().is_ok_and(|output| output.status.success());
    if !there {
        crate::skip(test, "no podman");
    }
    there
}

/// A private instance with its service.
pub struct Podman {
    service: Option<Child>,
    /// Its mount namespace, as long as the process.
    mounts: Child,
    /// The file is held until all else is gone: two instances would give one bridge's name to two networks.
    _alone: Flock<fs::File>,
    folder: TempDir,
}

impl Podman {
    /// # Panics
    /// If it does not start.
    pub fn start() -> Self {
        let lock = fs::File::create(std::env::temp_dir().join("netobs-test-podman.lock")).expect("a lock");
        let alone = Flock::lock(lock, FlockArg::LockExclusive).expect("to be alone");
        let folder = tempfile::Builder::new().prefix("nbtpod").tempdir().expect("a folder");
        for part in ["root", "run", "tmp", "networks"] {
            fs::create_dir(folder.path().join(part)).expect("a folder");
        }
        // Raising its own limits is more than every test machine lets it.
        let configuration = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n";
        fs::write(folder.path().join("containers.conf"), configuration).expect("write a configuration");
        let mut podman = Self { service: None, mounts: own_mounts(), _alone: alone, folder };
        docker::import_image(podman.command());
        podman.start_service();
        podman
    }

    /// The socket of the service, as netobs has it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Not called after Podman: what it is, it has to say itself.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("engine.sock")
    }

    /// # Panics
    /// If it does not answer.
    pub fn start_service(&mut self) {
        let mut command = self.command();
        command.args(["system", "service", "--time=0", &self.endpoint()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.service = Some(die_with_parent(&mut command).spawn().expect("start podman's service"));
        wait_for("podman's service", LIMIT, || {
            UnixStream::connect(self.socket()).map(drop).map_err(|error| error.to_string())
        });
    }

    /// Its containers run on.
    pub fn stop_service(&mut self) {
        if let Some(mut service) = self.service.take() {
            service.kill().expect("end podman's service");
            service.wait().expect("podman's service ends");
        }
    }

    /// `podman`, in the mount namespace of this instance.
    fn inside(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--mount", "-t", &self.mounts.id().to_string(), "podman"]);
        command
    }

    /// `podman` with what makes it ours.
    fn command(&self) -> Command {
        let of = |part: &str| self.folder.path().join(part);
        let mut command = self.inside();
        command.env("CONTAINERS_CONF", of("containers.conf")).env_remove("CONTAINER_HOST");
        command.arg("--root").arg(of("root")).arg("--runroot").arg(of("run")).arg("--tmpdir").arg(of("tmp"));
        command.arg("--network-config-dir").arg(of("networks"));
        command.args([
            "--network-backend",
            "netavark",
            "--storage-driver",
            "vfs",
            "--events-backend",
            "file",
        ]);
        // What of crun does not go with cgroups of both versions does with runc.
        command.args(["--cgroup-manager", "cgroupfs", "--runtime", "runc"]);
        command
    }

    /// Runs `podman` and returns what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn podman(&self, arguments: &[&str]) -> String {
        printed(arguments, &self.try_podman(arguments))
    }

    /// # Panics
    /// If there is no `podman`.
    pub fn try_podman(&self, arguments: &[&str]) -> Output {
        self.command().args(arguments).output().expect("run podman")
    }

    /// Has the service run a command: what it knows by then is what it goes by.
    ///
    /// # Panics
    /// If it fails.
    pub fn by_service(&self, arguments: &[&str]) -> String {
        let output = self.inside().args(["--url", &self.endpoint()]).args(arguments).output();
        printed(arguments, &output.expect("run podman"))
    }

    /// Makes a network; its name.
    pub fn network(&self, name: &str, options: &[&str]) -> String {
        let name = unique(name);
        self.podman(&[&["network", "create"], options, &[&name]].concat());
        name
    }

    /// The bridge of a network, by its own word.
    pub fn bridge(&self, network: &str) -> String {
        let answer: Value =
            serde_json::from_str(&self.podman(&["network", "inspect", network])).expect("JSON");
        answer[0]["network_interface"].as_str().expect("a bridge").to_owned()
    }

    /// `podman run -d` with these options, then `sleep`.
    pub fn run(&self, name: &str, options: &[&str]) -> Container<'_> {
        self.run_command(name, options, &["sleep", "1000"])
    }

    pub fn run_command(&self, name: &str, options: &[&str], command: &[&str]) -> Container<'_> {
        let name = unique(name);
        let id = self.podman(&run_arguments(&name, options, command));
        Container { podman: self, name, id }
    }

    /// As [`Self::run`], by the service.
    pub fn run_by_service(&self, name: &str, options: &[&str]) -> Container<'_> {
        let name = unique(name);
        let id = self.by_service(&run_arguments(&name, options, &["sleep", "1000"]));
        Container { podman: self, name, id }
    }

    /// What is left of it: processes, mounts.
    pub fn traces(folder: &Path) -> Vec<String> {
        let folder = folder.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let mounts = mounts.lines().filter(|line| line.contains(&folder)).map(str::to_owned);
        mounts.chain(processes_of(&folder).into_iter().map(|pid| format!("process {pid}"))).collect()
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let pods = self.try_podman(&["pod", "ls", "--quiet", "--no-trunc"]).stdout;
        self.try_podman(&["pod", "rm", "--all", "--force", "--time", "0"]);
        self.try_podman(&["rm", "--all", "--force", "--time", "0"]);
        if let Some(mut service) = self.service.take() {
            let _ = service.kill();
            let _ = service.wait();
        }
        for pod in String::from_utf8_lossy(&pods).lines() {
            cgroups_of(pod).iter().for_each(|cgroup| drop(fs::remove_dir(cgroup)));
        }
        let _ = self.mounts.kill();
        let _ = self.mounts.wait();
        // What Podman could not end. A command line with our folder in it is ours.
        for pid in processes_of(&self.folder.path().to_string_lossy()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid.cast_signed()),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

/// A process in a mount namespace where folders can be made beside the hierarchies of cgroups v1. Podman makes one for
/// each controller that the kernel has, mounted or not, and there are machines where that place is read-only.
fn own_mounts() -> Child {
    let script = "set -e
        if [ -e /sys/fs/cgroup/cgroup.procs ]; then exec sleep 1000000; fi
        new=$(mktemp -d); mount -t tmpfs tmpfs $new
        for tree in /sys/fs/cgroup/*; do
            mkdir $new/${tree##*/}; mount --bind $tree $new/${tree##*/}
        done
        mount --move $new /sys/fs/cgroup; rmdir $new
        exec sleep 1000000";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).stdin(Stdio::null());
    let holder = die_with_parent(&mut command).spawn().expect("start unshare");
    wait_for("a mount namespace of its own", LIMIT, || {
        match fs::read_link(format!("/proc/{}/exe", holder.id())) {
            Ok(program) if program.ends_with("sleep") => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    holder
}

fn run_arguments<'a>(name: &'a str, options: &[&'a str], command: &[&'a str]) -> Vec<&'a str> {
    [&["run", "--detach", "--name", name], options, &[docker::IMAGE], command].concat()
}

fn printed(arguments: &[&str], output: &Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "podman {arguments:?}: {}\n{out}{err}", output.status);
    out.trim().to_owned()
}

/// A pod's cgroups, those within first. Podman leaves empty ones where both versions of cgroups are.
pub fn cgroups_of(pod: &str) -> Vec<PathBuf> {
    let trees = fs::read_dir("/sys/fs/cgroup").expect("cgroups").filter_map(Result::ok);
    let trees = trees.map(|tree| tree.path().join("libpod_parent").join(pod));
    let all = trees.chain([PathBuf::from("/sys/fs/cgroup/libpod_parent").join(pod)]);
    all.flat_map(|cgroup| [cgroup.join("conmon"), cgroup]).filter(|cgroup| cgroup.exists()).collect()
}

/// Processes with this text in their command line.
fn processes_of(text: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").expect("/proc").filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let named = |pid: &u32| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
    };
    pids.filter(named).collect()
}

/// A container, removed with its Podman.
pub struct Container<'a> {
    podman: &'a Podman,
    pub name: String,
    pub id: String,
}

impl Container<'_> {
    /// Runs a command inside; what it prints.
    pub fn exec(&self, command: &[&str]) -> String {
        printed(command, &self.try_exec(command))
    }

    pub fn try_exec(&self, command: &[&str]) -> Output {
        self.podman.try_podman(&[&["exec", self.name.as_str()], command].concat())
    }

    pub fn inspect(&self, format: &str) -> String {
        self.podman.podman(&["inspect", "--type", "container", "--format", format, &self.name])
    }

    /// Its address on a network.
    pub fn address(&self, network: &str) -> String {
        self.inspect(&format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}"))
    }

    /// Runs a command in its network namespace, with the host's privileges.
    ///
    /// # Panics
    /// If it fails.
    pub fn in_namespace(&self, command: &[&str]) {
        let pid = self.inspect("{{.State.Pid}}");
        let output = Command::new("nsenter").args(["--net", "-t", &pid]).args(command).output();
        printed(command, &output.expect("run nsenter"));
    }

    /// Waits until its process has ended.
    pub fn wait(&self) {
        self.podman.podman(&["wait", &self.name]);
    }
}
