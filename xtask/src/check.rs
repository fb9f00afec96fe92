//! `cargo xtask check`: what a maintainer wants to be true before anything lands.

use std::process::Command;

use anyhow::Context as _;

use crate::{
    ebpf, imports,
    process::{root, run as run_command},
    setup,
};

pub fn run() -> anyhow::Result<()> {
    let root = root();
    run_command(Command::new("cargo").args(["fmt", "--all", "--check"]).current_dir(&root))
        .context("`cargo fmt --all` mends it")?;
    run_command(Command::new("cargo").args(["fmt", "--check"]).current_dir(setup::ebpf_folder()))
        .context("`cargo fmt` in netobs-ebpf mends it")?;
    imports::check()?;
    run_command(
        Command::new("cargo")
            .args(["clippy", "--quiet", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"])
            .current_dir(&root),
    )?;
    let tools = setup::run(false)?;
    ebpf::clippy(&tools)?;
    ebpf::run(true)?;
    dependencies()
}

/// Bans, licences and sources of all dependencies. Not the advisories: they are a database on the network.
fn dependencies() -> anyhow::Result<()> {
    let deny = setup::cargo_deny()?;
    for manifest in ["Cargo.toml", "netobs-ebpf/Cargo.toml"] {
        run_command(
            Command::new(&deny)
                .args(["--manifest-path", manifest, "--locked", "--config", "deny.toml", "check"])
                .args(["--hide-inclusion-graph", "bans", "licenses", "sources"])
                .current_dir(root()),
        )?;
    }
    Ok(())
}
