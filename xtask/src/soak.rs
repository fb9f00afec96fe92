//! `cargo xtask soak`: everything that happens to a host with containers, at random and all at once (tests/soak).

use std::process::Command;

use anyhow::{bail, ensure};

use crate::{
    apt,
    process::{is_root, root, run as run_command, target},
};

/// Programs that are used, and the distribution's packages that have them.
const PROGRAMS: [(&str, &str); 7] = [
    ("dockerd", "docker.io"),
    ("docker", "docker.io"),
    ("iptables", "iptables"),
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("busybox", "busybox-static"),
    ("nsenter", "util-linux"),
];

#[derive(clap::Args)]
pub struct Options {
    /// For so long; what is before and after comes on top
    #[arg(long, value_name = "N", default_value_t = 3600)]
    pub seconds: u64,
    /// What happens, and when, follows from it; printed at the start [default: another each time]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How the agent that is killed attaches: tcx, clsact, auto [default: tcx where the kernel has it]
    #[arg(long, value_name = "MODE")]
    pub attach: Option<String>,
}

impl Options {
    /// What is run with all tests.
    pub const fn short() -> Self {
        Self { seconds: 120, seed: None, attach: None }
    }
}

pub fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(is_root(), "containers, namespaces and kernel programs need root");
    let missing = apt::install_missing(&PROGRAMS);
    if !missing.is_empty() {
        bail!("not installed and not to be had: {}", missing.join(", "));
    }
    // As the tests are built: with the checks of a debug build.
    run_command(
        Command::new("cargo")
            .args(["build", "--locked", "--package", "netobs", "--package", "netobs-tests", "--bins"])
            .current_dir(root()),
    )?;
    let built = target().join("debug");
    let mut soak = Command::new(built.join("netobs-soak"));
    soak.env("NETOBS_BIN", built.join("netobs")).args(["--seconds", &options.seconds.to_string()]);
    if let Some(seed) = options.seed {
        soak.args(["--seed", &seed.to_string()]);
    }
    if let Some(attach) = &options.attach {
        soak.args(["--attach", attach]);
    }
    run_command(&mut soak)
}
