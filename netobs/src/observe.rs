//! From the command line's options to a running [`Agent`], and what the commands that print share.

use std::{
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    agent::{Agent, Config},
    cli::{DropsArgs, ObserveArgs},
    demo::World,
    discovery::engine::{self, EngineTask},
    doctor,
    ebpf::drops::DropOptions,
    privileges,
};

/// How long a single answer waits for the engines to tell their containers.
pub const SETTLE: Duration = Duration::from_millis(300);

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

/// Starts observing. Inside a runtime.
///
/// # Errors
/// Without the privileges, or when the kernel refuses the programs.
pub fn start(args: &ObserveArgs, demo: Option<World>, drops: Option<DropOptions>) -> anyhow::Result<Agent> {
    doctor::require_kernel(Path::new("/proc"))?;
    privileges::require()?;
    let engines = if args.no_engine || demo.is_some() { Vec::new() } else { engines(&args.engines)? };
    let agent = Agent::start(Config {
        max_interfaces: args.max_interfaces,
        mode: args.attach,
        log_programs: args.log_programs,
        grace: args.grace,
        drops,
        engines,
        proc_root: PathBuf::from("/proc"),
        known: demo.map(|world| (world.containers, world.networks)),
    })?;
    Ok(agent)
}

/// How dropped packets are looked for.
pub fn drop_options(args: &DropsArgs, all: bool) -> DropOptions {
    DropOptions { all, max_keys: args.max_drop_kinds, btf: args.btf.clone() }
}

/// The engines named, or else the usual ones.
///
/// # Errors
/// For an address that is not a local socket.
pub fn engines(named: &[String]) -> anyhow::Result<Vec<EngineTask>> {
    if named.is_empty() {
        return Ok(engine::default_sockets());
    }
    named
        .iter()
        .map(|address| {
            let path = address.strip_prefix("unix://").unwrap_or(address);
            anyhow::ensure!(
                path.starts_with('/'),
                "engine {address}: only local sockets are supported, like unix:///var/run/docker.sock"
            );
            let name = if path.contains("podman") { "podman" } else { "docker" };
            Ok(EngineTask { name: name.to_owned(), socket: PathBuf::from(path) })
        })
        .collect()
}

/// Whether nobody reads our pipe any more: as long as there is nothing to write (CSV without containers, a
/// topology that stays), nothing else would tell.
pub fn reader_is_gone() -> bool {
    let stdout = io::stdout();
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok()
        && fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}
