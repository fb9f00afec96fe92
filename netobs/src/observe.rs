//! From the command line's options to a running [`Agent`], and what the commands that print share.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    agent::{Agent, Config},
    attacher::Shared,
    cli::{DropsArgs, EventsArgs, FindArgs, KubernetesArgs, ObserveArgs, TcpArgs},
    demo::World,
    discovery::{
        engine::{self, Api, EngineTask},
        kubernetes,
    },
    doctor,
    ebpf::{EventOptions, Observer, Options, drops::DropOptions, tcp::TcpOptions},
    model::{Looked, flow::FlowOptions},
    privileges,
};

/// How long a single answer waits for the engines to tell their containers.
pub const SETTLE: Duration = Duration::from_millis(300);

/// Where the host's processes are.
pub const PROC: &str = "/proc";

/// A runtime of one thread: the work is little and mostly waiting.
///
/// # Errors
/// When the process is out of descriptors.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the async runtime")
}

/// The wish that the process ends, by SIGTERM, SIGINT or SIGHUP (its terminal has gone). To be made before anything is
/// attached: without it they end the process at once, and filters stay behind.
pub struct Ending {
    terminate: Signal,
    interrupt: Signal,
    /// None where it is ignored, as by `nohup`, and is to be.
    hangup: Option<Signal>,
}

impl Ending {
    /// Inside a runtime.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
        })
    }

    /// Returns when it is wished, or has been since [`Self::new`].
    pub async fn wished(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            Some(()) = async { self.hangup.as_mut()?.recv().await } => {}
        }
    }
}

fn is_hangup_ignored() -> bool {
    // SAFETY: all zero is a valid sigaction; without a new one the kernel only tells the one that there is.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
            && action.sa_sigaction == libc::SIG_IGN
    }
}

/// Starts observing; DNS and ARP packets where `events` are given. What goes on after the process is pinned in the
/// folder, if one is given. Inside a runtime.
///
/// # Errors
/// Without the privileges, or when the kernel refuses the programs.
pub fn start(
    args: &ObserveArgs,
    demo: Option<World>,
    drops: Option<DropOptions>,
    events: Option<&EventsArgs>,
    pin_folder: Option<&Path>,
) -> anyhow::Result<Agent> {
    require()?;
    let events =
        events.map_or(EventOptions { dns: false, arp: false, ..EventOptions::default() }, event_options);
    let options = Options {
        max_interfaces: args.find.max_interfaces,
        mode: args.find.attach,
        max_flows: args.max_flows,
        events,
        log: args.log_programs,
    };
    let mut observer = match pin_folder {
        Some(folder) => Observer::load_pinned(options, folder)?,
        None => Observer::load(options)?,
    };
    let config = Config {
        flows: FlowOptions {
            max_flows: args.max_flows as usize,
            idle: args.flow_idle,
            max_edges: args.max_edges,
            cluster: args.cluster_cidrs.clone(),
        },
        flow_interval: (args.max_flows > 0).then_some(args.flow_interval),
        node: node(&args.kubernetes),
        kubernetes: if demo.is_some() { None } else { kubernetes(&args.kubernetes)? },
        known: demo.map(|world| (world.containers, world.networks)),
        drops,
        reconcile: true,
        events: observer
            .take_events()
            .map(|ring| (ring, Looked { dns: events.dns, names: events.names, arp: events.arp })),
        ..Config::new(args.grace)
    };
    follow(&args.find, config, Arc::new(Mutex::new(observer)))
}

/// Kernel and privileges.
///
/// # Errors
/// Says what is missing.
pub fn require() -> anyhow::Result<()> {
    doctor::require_kernel(Path::new(PROC))?;
    privileges::require()
}

/// The API of Kubernetes, where it is to be asked.
///
/// # Errors
/// For a kubeconfig that cannot be used.
pub fn kubernetes(args: &KubernetesArgs) -> anyhow::Result<Option<kubernetes::Api>> {
    if args.no_kubernetes {
        return Ok(None);
    }
    let access = kubernetes::Access::of(args.kubeconfig.as_deref(), |name| std::env::var(name).ok())?;
    Ok(access.map(|access| kubernetes::Api { access, node: node(args) }))
}

/// The node's name, where one is given that may be one.
pub fn node(args: &KubernetesArgs) -> Option<String> {
    args.node_name.clone().filter(|name| kubernetes::valid_node(name))
}

/// As [`give_up_privileges`], and keeps what it takes to read what the API of Kubernetes is asked with.
///
/// # Errors
/// As there, and for a kubeconfig that cannot be used.
pub fn keep_needed_privileges(args: &ObserveArgs, files: &[PathBuf]) -> anyhow::Result<()> {
    let account = kubernetes(&args.kubernetes)?.map(|api| api.access.files()).unwrap_or_default();
    give_up_privileges(&args.find, &[files, &account].concat())
}

/// Keeps no privileges but those that observing needs, and reading these files; in this thread and those that it
/// starts.
///
/// # Errors
/// For a wrong engine, or when the kernel refuses.
pub fn give_up_privileges(args: &FindArgs, files: &[PathBuf]) -> anyhow::Result<()> {
    let engines = if args.no_engine { Vec::new() } else { engines(&args.engines, &args.runtimes)? };
    let sockets: Vec<_> = engines.into_iter().map(|engine| engine.socket).collect();
    privileges::give_up_others(&sockets, files).context("give up privileges that are not needed")
}

/// Finds what there is and what comes, and has it attached to. Inside a runtime.
///
/// # Errors
/// For a wrong engine, or when netlink is not to be had.
pub fn follow(args: &FindArgs, mut config: Config, observer: Shared) -> anyhow::Result<Agent> {
    if !args.no_engine && config.known.is_none() {
        config.engines = engines(&args.engines, &args.runtimes)?;
    }
    Agent::start(config, observer).context("follow the host's interfaces by netlink")
}

/// Which packets are told of one by one.
const fn event_options(args: &EventsArgs) -> EventOptions {
    EventOptions {
        dns: !args.no_dns,
        names: args.dns_names,
        arp: !args.no_arp,
        ring_bytes: args.event_buffer,
    }
}

/// How dropped packets are looked for.
pub fn drop_options(args: &DropsArgs, all: bool) -> DropOptions {
    DropOptions { all, max_keys: args.max_drop_kinds, btf: args.btf.clone() }
}

/// Looks how TCP connections fare, unless that is not wanted. `btf` is the kernel's type information.
pub fn look_at_tcp(agent: &mut Agent, args: &TcpArgs, observe: &ObserveArgs, btf: &Path) {
    if !args.no_tcp {
        agent.look_at_tcp(&TcpOptions { flows: observe.max_flows > 0, btf: btf.to_owned() });
    }
}

/// The engines and runtimes named, or else, where none is, the usual ones.
///
/// # Errors
/// For an address that is not a local socket.
pub fn engines(named: &[String], runtimes: &[String]) -> anyhow::Result<Vec<EngineTask>> {
    if named.is_empty() && runtimes.is_empty() {
        return Ok(engine::default_tasks());
    }
    let engines = named.iter().map(|address| Ok((Api::Docker, local(address)?)));
    let runtimes = runtimes.iter().map(|address| Ok((Api::Cri, local(address)?)));
    Ok(engine::tasks(engines.chain(runtimes).collect::<anyhow::Result<Vec<_>>>()?))
}

fn local(address: &str) -> anyhow::Result<PathBuf> {
    let path = address.strip_prefix("unix://").unwrap_or(address);
    anyhow::ensure!(
        path.starts_with('/'),
        "engine {address}: only local sockets are supported, like unix:///var/run/docker.sock"
    );
    Ok(PathBuf::from(path))
}

/// Whether nobody reads our pipe any more: as long as there is nothing to write (CSV without containers, a
/// topology that stays), nothing else would tell.
pub fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}
