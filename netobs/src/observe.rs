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
    cli::{DropsArgs, EventsArgs, FindArgs, ObserveArgs, TcpArgs},
    demo::World,
    discovery::engine::{self, EngineTask},
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

/// The wish that the process ends, by SIGTERM or SIGINT. To be made before anything is attached: without it
/// they end the process at once, and filters stay behind.
pub struct Ending {
    terminate: Signal,
    interrupt: Signal,
}

impl Ending {
    /// Inside a runtime.
    ///
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns when it is wished, or has been since [`Self::new`].
    pub async fn wished(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Starts observing; DNS and ARP packets where `events` are given. Inside a runtime.
///
/// # Errors
/// Without the privileges, or when the kernel refuses the programs.
pub fn start(
    args: &ObserveArgs,
    demo: Option<World>,
    drops: Option<DropOptions>,
    events: Option<&EventsArgs>,
) -> anyhow::Result<Agent> {
    require()?;
    let events =
        events.map_or(EventOptions { dns: false, arp: false, ..EventOptions::default() }, event_options);
    let mut observer = Observer::load(Options {
        max_interfaces: args.find.max_interfaces,
        mode: args.find.attach,
        max_flows: args.max_flows,
        events,
        log: args.log_programs,
    })?;
    let config = Config {
        flows: FlowOptions {
            max_flows: args.max_flows as usize,
            idle: args.flow_idle,
            max_edges: args.max_edges,
            cluster: args.cluster_cidrs.clone(),
        },
        flow_interval: (args.max_flows > 0).then_some(args.flow_interval),
        known: demo.map(|world| (world.containers, world.networks)),
        drops,
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

/// Finds what there is and what comes, and has it attached to. Inside a runtime.
///
/// # Errors
/// For a wrong engine, or when netlink is not to be had.
pub fn follow(args: &FindArgs, mut config: Config, observer: Shared) -> anyhow::Result<Agent> {
    if !args.no_engine && config.known.is_none() {
        config.engines = engines(&args.engines)?;
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

/// The engines named, or else the usual ones.
///
/// # Errors
/// For an address that is not a local socket.
pub fn engines(named: &[String]) -> anyhow::Result<Vec<EngineTask>> {
    if named.is_empty() {
        return Ok(engine::default_tasks());
    }
    let sockets = named.iter().map(|address| {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        anyhow::ensure!(
            path.starts_with('/'),
            "engine {address}: only local sockets are supported, like unix:///var/run/docker.sock"
        );
        Ok(PathBuf::from(path))
    });
    Ok(engine::tasks(sockets.collect::<anyhow::Result<Vec<_>>>()?))
}

/// Whether nobody reads our pipe any more: as long as there is nothing to write (CSV without containers, a
/// topology that stays), nothing else would tell.
pub fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}
