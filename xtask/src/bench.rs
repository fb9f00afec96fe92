//! `cargo xtask bench`: what netobs costs, beside an empty program in the same run (tests/bench).

use std::process::Command;

use anyhow::ensure;

use crate::{
    dist,
    process::{is_root, root, run as run_command, target},
};

pub fn run(parts: &[String], quick: bool, print: bool) -> anyhow::Result<()> {
    ensure!(is_root(), "namespaces and kernel programs need root");
    let cargo = |arguments: &[&str]| run_command(Command::new("cargo").args(arguments).current_dir(root()));
    cargo(&["build", "--locked", "--release", "--package", "netobs-tests", "--bins"])?;
    if parts.is_empty() || parts.iter().any(|part| part == "userspace") {
        let hot = ["bench", "--locked", "--package", "netobs", "--bench", "hot", "--", "--noplot"];
        let few: &[&str] = if quick { &["--quick"] } else { &[] };
        cargo(&[&hot[..], few].concat())?;
    }
    // What users run is measured: the program as it is handed to others.
    let program = dist::build()?;
    let mut bench = Command::new(target().join("release/netobs-bench"));
    bench.env("NETOBS_BIN", program).arg("--root").arg(root());
    for part in parts {
        bench.args(["--part", part]);
    }
    bench.args(quick.then_some("--quick")).args(print.then_some("--print"));
    run_command(&mut bench)
}
