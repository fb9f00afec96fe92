//! `cargo xtask test`: everything there is to test here, and word of what had to be left out.

use std::{fs, path::PathBuf, process::Command};

use anyhow::bail;

use crate::{
    apt,
    engine::Engine,
    process::{is_root, root, run as run_command, target},
    rows, vm,
};

/// Programs that tests use, and the distribution's packages that have them.
const PROGRAMS: [(&str, &str); 18] = [
    ("ip", "iproute2"),
    ("tc", "iproute2"),
    ("busybox", "busybox-static"),
    ("prometheus", "prometheus"),
    ("promtool", "prometheus"),
    ("tmux", "tmux"),
    ("tshark", "tshark"),
    ("capinfos", "wireshark-common"),
    ("dot", "graphviz"),
    ("setcap", "libcap2-bin"),
    ("setpriv", "util-linux"),
    ("pgrep", "procps"),
    ("podman", "podman"),
    ("netavark", "netavark"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("docker-compose", "docker-compose"),
];

/// Test binaries of the package `netobs-tests`: name, whether its tests may run at the same time, and
/// whether they need an engine.
const AREAS: [(&str, bool, bool); 28] = [
    ("cli", true, false),
    ("classifier", true, false),
    ("programs", true, false),
    ("random_frames", false, false),
    ("netns", true, false),
    ("interfaces", false, false),
    ("inside", false, false),
    ("flows", false, false),
    ("tcp", false, false),
    ("trace_filter", true, false),
    ("trace", false, false),
    ("trace_drops", false, false),
    ("trace_docker", false, true),
    ("demo", false, false),
    ("engine", false, true),
    ("lifecycle", false, true),
    ("compose", false, true),
    ("drivers", false, true),
    ("podman", false, false),
    ("topology", false, true),
    ("drops", false, false),
    ("drops_engine", false, true),
    ("dns", false, false),
    ("dns_engine", false, true),
    ("l2", false, false),
    ("prometheus", false, true),
    ("scale", false, false),
    ("churn", false, false),
];

pub fn run(ci: bool, filter: &[String]) -> anyhow::Result<()> {
    let ci = ci || std::env::var_os("CI").is_some();
    let mut left_out: Vec<String> = Vec::new();
    let mut failed: Vec<&str> = Vec::new();
    let root = root();

    cargo_test(&["--workspace", "--exclude", "netobs-tests"], filter, &[], true)
        .unwrap_or_else(|_| failed.push("unit tests"));

    if !is_root() {
        left_out.push("tests with network namespaces, containers and Prometheus: they need root".to_owned());
        return finish(ci, &left_out, &failed);
    }
    for missing in apt::install_missing(&PROGRAMS) {
        left_out.push(format!("tests that need {missing}: not installed and not to be had"));
    }
    run_command(Command::new("cargo").args(["build", "--locked", "--package", "netobs"]).current_dir(&root))?;
    let skips = target().join("netobs-test-skips");
    fs::write(&skips, "")?;
    rows::clear()?;
    let binary = target().join("debug/netobs");
    let mut environment: Vec<(&str, PathBuf)> = vec![
        ("NETOBS_BIN", binary),
        ("NETOBS_TEST_SKIPS", skips.clone()),
        ("NETOBS_TEST_ROWS", rows::file()),
    ];
    let engine = match Engine::get() {
        Ok(engine) => {
            environment.push(("DOCKER_HOST", PathBuf::from(&engine.host)));
            Some(engine)
        }
        Err(error) => {
            left_out.push(format!("tests with containers: {error:#}"));
            None
        }
    };
    for (area, parallel, needs_engine) in AREAS {
        if needs_engine && engine.is_none() {
            continue;
        }
        cargo_test(&["--package", "netobs-tests", "--test", area], filter, &environment, parallel)
            .unwrap_or_else(|_| failed.push(area));
    }
    // What this machine's kernel may not have. Otherwise only when asked for, by `cargo xtask vm`.
    if ci {
        vm::run(&vm::Options::usual()).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            failed.push("vm");
        });
    }
    rows::print()?;
    left_out.extend(fs::read_to_string(&skips)?.lines().map(str::to_owned));
    finish(ci, &left_out, &failed)
}

fn finish(ci: bool, left_out: &[String], failed: &[&str]) -> anyhow::Result<()> {
    for reason in left_out {
        println!("left out: {reason}");
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    if ci && !left_out.is_empty() {
        bail!("here nothing may be left out");
    }
    println!("all tests passed{}", if left_out.is_empty() { "" } else { ", but for those left out" });
    Ok(())
}

fn cargo_test(
    what: &[&str],
    filter: &[String],
    environment: &[(&str, PathBuf)],
    parallel: bool,
) -> anyhow::Result<()> {
    let mut command = Command::new("cargo");
    command.args(["test", "--locked"]).args(what).arg("--").args(filter).current_dir(root());
    if !parallel {
        command.arg("--test-threads=1");
    }
    for (name, value) in environment {
        command.env(name, value);
    }
    run_command(&mut command)
}
