//! A containerd of a test's own, with its CRI and the distribution's CNI plugins: pods are made as the kubelet makes
//! them. Its data, its socket and its network and mount namespaces are in no other's way, and all of it ends with
//! the value.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use netobs::discovery::engine::cri::{
    Client,
    messages::{ContainerMetadata, Everything, ImageSpec, NamespaceOption, PodSandboxMetadata},
};
use nix::sys::signal::Signal;
use prost::Message;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    http,
    netns::{Netns, die_with_parent},
    wait_for,
};

/// How long the runtime gets to answer, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// Where the distribution has its CNI plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// Where it says what it was asked, on its host.
const METRICS: u16 = 9811;

/// Of the sandbox and of the containers: containerd has it by this name, and pulls nothing.
const IMAGE: &str = "localhost/netobs-test:1";

/// Whether there is a runtime to start; if not, the test is noted as skipped.
pub fn available(test: &str) -> bool {
    let programs = "command -v containerd && command -v ctr && command -v runc && command -v busybox";
    let mut command = Command::new("sh");
    let there = command.args(["-c", programs]).stdout(Stdio::null()).status().is_ok_and(|it| it.success());
    if !there {
        crate::skip(test, "no containerd, ctr and runc to start a runtime with");
        return false;
    }
    let there = ["bridge", "ptp", "macvlan", "host-local", "loopback"]
        .iter()
        .all(|plugin| Path::new(PLUGINS).join(plugin).exists());
    if !there {
        crate::skip(test, "no CNI plugins (containernetworking-plugins)");
    }
    there
}

/// A runtime, whether it runs or not.
pub struct Containerd {
    /// Its own host, if it has one.
    host: Option<Netns>,
    host_pid: u32,
    folder: TempDir,
    daemon: Option<Child>,
    runtime: Runtime,
}

/// A pod, as it was made.
pub struct Pod {
    pub sandbox: String,
    config: PodSandboxConfig,
}

impl Containerd {
    /// Starts it, with one network and what is a host to its pods.
    ///
    /// # Panics
    /// Without root, or if it does not start.
    pub fn start(network: &str) -> Self {
        let host = Netns::with_mounts();
        let pid = host.pid();
        Self::start_on(Some(host), pid, network)
    }

    /// Starts it on another's host, which has namespaces of network and mounts.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_beside(host: &Netns, network: &str) -> Self {
        Self::start_on(None, host.pid(), network)
    }

    fn start_on(host: Option<Netns>, host_pid: u32, network: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("nbtcri").tempdir().expect("a folder");
        for part in ["cni", "root", "state", "opt", "logs"] {
            fs::create_dir(folder.path().join(part)).expect("a folder");
        }
        // Not what other runtimes of the machine have there: names of namespaces, addresses that are taken, sockets.
        let own = if host.is_some() { "/run/containerd" } else { "" };
        let folders = format!("/run/netns /var/lib/cni {own}");
        host_mounts(
            host_pid,
            &format!("set -e; for one in {folders}; do mkdir -p $one; mount -t tmpfs nbtcri $one; done"),
        );
        fs::write(folder.path().join("config.toml"), configuration(folder.path())).expect("write");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let mut containerd = Self { host, host_pid, folder, daemon: None, runtime };
        containerd.network(network);
        containerd.start_daemon();
        containerd.import_image();
        containerd
    }

    /// What is a host to its pods.
    ///
    /// # Panics
    /// If that is another's.
    pub fn host(&self) -> &Netns {
        self.host.as_ref().expect("a host of its own")
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("containerd.sock")
    }

    /// As `--cri` has it.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// From now on pods are connected with this network: `name:plugin:first three bytes of its addresses`, and
    /// `:parent` for macvlan.
    ///
    /// # Panics
    /// If it is not taken up.
    pub fn network(&self, network: &str) {
        let parts: Vec<&str> = network.split(':').collect();
        let (name, plugin, prefix) = (parts[0], parts[1], parts[2]);
        let more = match plugin {
            "bridge" => format!("\"bridge\": \"{name}0\", \"isGateway\": true,"),
            "macvlan" => format!("\"master\": \"{}\", \"mode\": \"bridge\",", parts[3]),
            _ => String::new(),
        };
        let json = format!(
            "{{\"cniVersion\": \"0.4.0\", \"name\": \"{name}\", \"plugins\": [{{\"type\": \"{plugin}\", {more} \
             \"ipam\": {{\"type\": \"host-local\", \"ranges\": [[{{\"subnet\": \"{prefix}.0/24\"}}]], \
             \"routes\": [{{\"dst\": \"0.0.0.0/0\"}}]}}}}]}}"
        );
        // A file that is put into its place is not noticed; one that is written is.
        fs::write(self.folder.path().join("cni/10.conflist"), json).expect("write a network");
        if self.daemon.is_some() {
            wait_for("the network", LIMIT, || {
                let status = self.runtime.block_on(async { self.client().await?.status().await });
                let status = status.map_err(|error| error.to_string())?;
                let config = status.info.get("cniconfig").cloned().unwrap_or_default();
                if config.contains(&format!("\"{name}\"")) { Ok(()) } else { Err(config) }
            });
        }
    }

    /// # Panics
    /// If it does not start.
    pub fn start_daemon(&mut self) {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log"));
        let log = log.expect("open a log");
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "-t", &self.host_pid.to_string(), "containerd", "--config"]);
        command.arg(self.folder.path().join("config.toml"));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log);
        self.daemon = Some(die_with_parent(&mut command).spawn().expect("start containerd"));
        wait_for("containerd's CRI", LIMIT, || {
            let answer = self.runtime.block_on(async { self.client().await?.version().await });
            answer.map(drop).map_err(|error| format!("{error}\n{}", self.log()))
        });
    }

    /// Ends it as a service manager does: its pods live on.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(daemon.id().cast_signed()),
                Signal::SIGTERM,
            );
            wait_for("containerd's end", LIMIT, || match daemon.try_wait() {
                Ok(Some(_)) => Ok(()),
                other => Err(format!("{other:?}")),
            });
        }
    }

    /// A pod in a namespace, without containers yet; on the host's network, if so wished.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn pod(&self, namespace: &str, name: &str, on_host: bool) -> Pod {
        self.pod_with(namespace, name, on_host, &[("app", name)])
    }

    /// The same with these labels.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn pod_with(&self, namespace: &str, name: &str, on_host: bool, labels: &[(&str, &str)]) -> Pod {
        let uid = format!("uid-{name}");
        let kubelets = [("io.kubernetes.pod.name", name), ("io.kubernetes.pod.namespace", namespace)];
        let labels = kubelets.iter().chain(labels);
        let options = NamespaceOption { network: if on_host { 2 } else { 0 } };
        let config = PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: namespace.into(),
                attempt: 0,
            }),
            hostname: if on_host { String::new() } else { name.into() },
            log_directory: self.folder.path().join("logs").join(name).display().to_string(),
            labels: labels.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/nbtcri-{}/pod{uid}", std::process::id()),
                security_context: Some(SecurityContext { namespace_options: Some(options) }),
            }),
        };
        let request = RunPodSandboxRequest { config: Some(config.clone()) };
        let answer: PodSandboxId = self.ask("/runtime.v1.RuntimeService/RunPodSandbox", request);
        Pod { sandbox: answer.id, config }
    }

    /// A container of a pod, started; its ID.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn container(&self, pod: &Pod, name: &str, command: &[&str]) -> String {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(ImageSpec { image: IMAGE.into() }),
            command: command.iter().map(|&part| part.to_owned()).collect(),
            labels: HashMap::from([("io.kubernetes.container.name".into(), name.into())]),
            log_path: format!("{name}.log"),
            linux: Some(Everything {}),
        };
        let request = CreateContainerRequest {
            sandbox: pod.sandbox.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let ContainerId { id } = self.ask("/runtime.v1.RuntimeService/CreateContainer", request);
        let request = ContainerId { id: id.clone() };
        let _: Everything = self.ask("/runtime.v1.RuntimeService/StartContainer", request);
        id
    }

    /// Runs a command in a container; what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn exec(&self, container: &str, command: &[&str]) -> String {
        let command: Vec<String> = command.iter().map(|&part| part.to_owned()).collect();
        let request = ExecRequest { container: container.to_owned(), command, timeout_seconds: 30 };
        let answer: ExecResponse = self.ask("/runtime.v1.RuntimeService/ExecSync", request);
        let (out, err) = (String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
        assert_eq!(answer.exit_code, 0, "{out}{err}");
        out.into_owned()
    }

    /// Ends a pod with all its containers.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&self, pod: &Pod) {
        let request = PodSandboxId { id: pod.sandbox.clone() };
        let _: Everything = self.ask("/runtime.v1.RuntimeService/StopPodSandbox", request);
    }

    /// # Panics
    /// If it cannot be removed.
    pub fn remove(&self, pod: &Pod) {
        let request = PodSandboxId { id: pod.sandbox.clone() };
        let _: Everything = self.ask("/runtime.v1.RuntimeService/RemovePodSandbox", request);
    }

    /// Of all its sandboxes and containers.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn ids(&self) -> Vec<String> {
        let listed = self.runtime.block_on(async {
            let client = self.client().await?;
            Ok::<_, tonic::Status>((client.sandboxes().await?.items, client.containers().await?.containers))
        });
        let (sandboxes, containers) = listed.expect("a list");
        sandboxes.into_iter().map(|one| one.id).chain(containers.into_iter().map(|one| one.id)).collect()
    }

    /// Its first address, by the runtime's word.
    ///
    /// # Panics
    /// If it has none.
    pub fn address(&self, pod: &Pod) -> String {
        let status = self.runtime.block_on(async { self.client().await?.sandbox(pod.sandbox.clone()).await });
        let network = status.expect("a status").status.expect("a status").network.expect("a network");
        assert!(!network.ip.is_empty(), "an address");
        network.ip
    }

    /// One request, over a connection of its own.
    fn ask<Q: Message + 'static, A: Message + Default + 'static>(&self, path: &'static str, request: Q) -> A {
        let answer = self.runtime.block_on(async { self.client().await?.ask(path, request).await });
        answer.unwrap_or_else(|error| panic!("{path}: {error}\n{}", self.log()))
    }

    async fn client(&self) -> Result<Client, tonic::Status> {
        Client::connect(&self.socket()).await.map_err(|error| tonic::Status::unavailable(error.to_string()))
    }

    /// As an archive of Docker's, made by hand: no engine is needed.
    fn import_image(&self) {
        let script = "set -e; cd $(mktemp -d); trap 'rm -rf $PWD' EXIT; mkdir -p root/bin root/tmp; \
             cp $(command -v busybox) root/bin/busybox; \
             for applet in sh ping sleep httpd wget nc true cat dd; do ln -s busybox root/bin/$applet; done; \
             tar -C root -cf layer.tar .; sum=$(sha256sum layer.tar); \
             printf '{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/bin\"],\"Cmd\":[\"sleep\",\"2000000\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:%s\"]}}' \"${sum%% *}\" > config.json; \
             printf '[{\"Config\":\"config.json\",\"RepoTags\":[\"%s\"],\"Layers\":[\"layer.tar\"]}]' \"$2\" > manifest.json; \
             tar -cf image.tar config.json manifest.json layer.tar; \
             ctr -a \"$1\" -n k8s.io images import image.tar";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh"]).arg(self.socket()).arg(IMAGE);
        let output = command.output().expect("run sh");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "import the image: {said}\n{}", self.log());
        // Its CRI hears of it a moment later.
        wait_for("the image", LIMIT, || {
            let path = "/runtime.v1.ImageService/ListImages";
            let listed: Result<ListImagesResponse, _> =
                self.runtime.block_on(async { self.client().await?.ask(path, Everything {}).await });
            let images = listed.map_err(|error| error.to_string())?.images;
            if images.iter().any(|image| image.tags.iter().any(|tag| tag == IMAGE)) {
                Ok(())
            } else {
                Err(format!("{images:?}"))
            }
        });
    }

    /// What its CRI was asked since it started, and how often, by its own metrics.
    ///
    /// # Panics
    /// If it does not say.
    pub fn asked(&self) -> BTreeMap<String, f64> {
        let (status, text) = self.host().run(|| http::get(METRICS, "/v1/metrics")).expect("its metrics");
        assert_eq!(status, 200, "{text}");
        let of_cri = |line: &str| {
            let line = line.strip_prefix("grpc_server_started_total{")?;
            let method = line.split_once("grpc_method=\"")?.1.split_once('"')?.0;
            let times = line.rsplit_once(' ')?.1.parse().ok()?;
            line.contains("grpc_service=\"runtime.v1.").then(|| (method.to_owned(), times))
        };
        text.lines().filter_map(of_cri).collect()
    }

    /// The last lines of its log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Processes that the runtime has left: those in its mount namespace.
    fn left(&self) -> Vec<u32> {
        let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
        // On another's host others live, too.
        let Some(holder) = self.host.as_ref().map(Netns::pid) else { return Vec::new() };
        let ours = namespace(holder);
        let all = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.filter(|&pid| pid != holder && namespace(pid).is_some_and(|of| Some(of) == ours)).collect()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        if UnixStream::connect(self.socket()).is_ok() {
            let listed = self.runtime.block_on(async { self.client().await?.sandboxes().await });
            for sandbox in listed.map(|answer| answer.items).unwrap_or_default() {
                for path in [
                    "/runtime.v1.RuntimeService/StopPodSandbox",
                    "/runtime.v1.RuntimeService/RemovePodSandbox",
                ] {
                    let request = PodSandboxId { id: sandbox.id.clone() };
                    let _: Result<Everything, _> =
                        self.runtime.block_on(async { self.client().await?.ask(path, request).await });
                }
            }
        }
        if let Some(mut daemon) = self.daemon.take() {
            let pid = nix::unistd::Pid::from_raw(daemon.id().cast_signed());
            let _ = nix::sys::signal::kill(pid, Signal::SIGTERM);
            let end = std::time::Instant::now() + LIMIT / 3;
            while matches!(daemon.try_wait(), Ok(None)) && std::time::Instant::now() < end {
                std::thread::sleep(Duration::from_millis(20));
            }
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Nothing, as a rule: what a test that failed has left.
        for pid in self.left() {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // The pods' cgroups are the runtime's to make, and nobody's to remove.
        let own = format!("nbtcri-{}", std::process::id());
        let script =
            format!("find /sys/fs/cgroup -depth -type d -path '*/{own}*' -exec rmdir {{}} + 2>/dev/null");
        let _ = Command::new("sh").args(["-c", &script]).status();
    }
}

fn host_mounts(pid: u32, script: &str) {
    let mut command = Command::new("nsenter");
    command.args(["--mount", "-t", &pid.to_string(), "sh", "-c", script]);
    assert!(command.status().is_ok_and(|status| status.success()), "{script}");
}

/// Negative OOM scores take a capability that not every test machine has, AppArmor's profiles a loader.
fn configuration(folder: &Path) -> String {
    let state = folder.display();
    format!(
        "version = 2\nroot = \"{state}/root\"\nstate = \"{state}/state\"\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.btrfs\", \"io.containerd.snapshotter.v1.zfs\", \
         \"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.devmapper\"]\n\
         [grpc]\naddress = \"{state}/containerd.sock\"\n\
         [metrics]\naddress = \"127.0.0.1:{METRICS}\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{state}/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{IMAGE}\"\ndisable_apparmor = true\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"native\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{PLUGINS}\"\nconf_dir = \"{state}/cni\"\n"
    )
}

/// What the program under test never asks for; numbers of the fields as in `runtime.v1`.
#[derive(Clone, PartialEq, Message)]
struct PodSandboxConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<PodSandboxMetadata>,
    #[prost(string, tag = "2")]
    hostname: String,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(map = "string, string", tag = "6")]
    labels: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxPodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ListImagesResponse {
    #[prost(message, repeated, tag = "1")]
    images: Vec<Image>,
}

#[derive(Clone, PartialEq, Message)]
struct Image {
    #[prost(string, repeated, tag = "2")]
    tags: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct LinuxPodSandboxConfig {
    #[prost(string, tag = "1")]
    cgroup_parent: String,
    #[prost(message, optional, tag = "2")]
    security_context: Option<SecurityContext>,
}

#[derive(Clone, PartialEq, Message)]
struct SecurityContext {
    #[prost(message, optional, tag = "1")]
    namespace_options: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, Message)]
struct RunPodSandboxRequest {
    #[prost(message, optional, tag = "1")]
    config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct PodSandboxId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerConfig {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerMetadata>,
    #[prost(message, optional, tag = "2")]
    image: Option<ImageSpec>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(map = "string, string", tag = "9")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<Everything>,
}

#[derive(Clone, PartialEq, Message)]
struct CreateContainerRequest {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<ContainerConfig>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<PodSandboxConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct ContainerId {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExecRequest {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
    #[prost(int64, tag = "3")]
    timeout_seconds: i64,
}

#[derive(Clone, PartialEq, Message)]
struct ExecResponse {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    stderr: Vec<u8>,
    #[prost(int32, tag = "3")]
    exit_code: i32,
}
