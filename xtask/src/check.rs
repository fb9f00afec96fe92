//! `cargo xtask check`: what a maintainer wants to be true before anything lands.

use std::process::Command;

use anyhow::Context as _;

use crate::{
    ebpf, imports,
    process::{find, root, run as run_command},
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

/// cargo-deny where it is installed. The advisories need a database from the network.
fn dependencies() -> anyhow::Result<()> {
    if find("cargo-deny").is_none() {
        println!("dependencies: not checked, there is no cargo-deny (`cargo install cargo-deny`)");
        return Ok(());
    }
    run_command(
        Command::new("cargo")
            .args(["deny", "--locked", "check", "bans", "licenses", "sources"])
            .current_dir(root()),
    )
}
