//! `cargo xtask test`: everything there is to test here, and word of what had to be left out.

use std::{fs, path::PathBuf, process::Command, time::Instant};

use anyhow::bail;

use crate::{
    ahead::Ahead,
    apt, dist,
    engine::Engine,
    kubernetes,
    process::{is_root, root, run as run_command, target},
    rows, soak, vm,
};

/// Programs that tests use, and the distribution's packages that have them.
const PROGRAMS: [(&str, &str); 31] = [
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
    ("strace", "strace"),
    ("setpriv", "util-linux"),
    ("pgrep", "procps"),
    ("podman", "podman"),
    ("netavark", "netavark"),
    ("runc", "runc"),
    ("iptables", "iptables"),
    ("nsenter", "util-linux"),
    ("docker-compose", "docker-compose"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("prlimit", "util-linux"),
    ("bash", "bash"),
    ("man", "man-db"),
    ("systemctl", "systemd"),
    ("systemd-analyze", "systemd"),
    ("deb-systemd-invoke", "init-system-helpers"),
    ("pip", "python3-pip"),
    ("containerd", "containerd"),
    ("ctr", "containerd"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
];

/// Test binaries of the package `netobs-tests`: name, whether its tests may run at the same time, and
/// whether they need an engine. Those of [`RELEASED`] come after all others.
const AREAS: &[(&str, bool, bool)] = &[
    ("cli", true, false),
    ("kernel", false, false),
    ("classifier", true, false),
    ("programs", true, false),
    ("random_frames", false, false),
    ("netns", true, false),
    ("interfaces", false, false),
    ("citizen", false, false),
    ("reconcile", false, false),
    ("cleanup", false, false),
    ("pin", false, false),
    ("running", false, false),
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
    ("cri", false, false),
    ("kubernetes", false, false),
    ("topology", false, true),
    ("drops", false, false),
    ("drops_engine", false, true),
    ("dns", false, false),
    ("dns_engine", false, true),
    ("l2", false, false),
    ("prometheus", false, true),
    ("dashboards", false, true),
    ("fewer_series", false, false),
    ("manifests", true, false),
    ("endpoint", false, false),
    ("otlp", false, false),
    ("hostile", false, true),
    ("scale", false, false),
    ("churn", false, false),
    ("package", false, false),
    ("image", false, true),
];

/// Areas of what is handed to others.
const RELEASED: [&str; 2] = ["package", "image"];

/// What the image of the tests is called.
const IMAGE: &str = "netobs-test-release:1";

pub fn run(ci: bool, filter: &[String]) -> anyhow::Result<()> {
    let ci = ci || std::env::var_os("CI").is_some();
    let mut left_out: Vec<String> = Vec::new();
    let mut failed: Vec<String> = Vec::new();
    let root = root();

    cargo_test(&["--workspace", "--exclude", "netobs-tests"], filter, &[], true)
        .unwrap_or_else(|_| failed.push("unit tests".to_owned()));

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
    let started = Instant::now();
    run_command(
        Command::new("cargo")
            .args(["test", "--locked", "--no-run", "--package", "netobs-tests"])
            .current_dir(&root),
    )?;
    println!("== built: {} s", started.elapsed().as_secs());
    let mut ahead = (ci && filter.is_empty()).then(Ahead::start).transpose()?;
    match kubernetes::tools() {
        Ok(tools) => environment.extend([("NETOBS_KUBECTL", tools.kubectl), ("NETOBS_HELM", tools.helm)]),
        Err(error) => left_out.push(format!("tests of kustomizations and the chart: {error:#}")),
    }
    let run_areas = |of_release: bool, environment: &[(&str, PathBuf)]| {
        let mut failed = Vec::new();
        for &(area, parallel, needs_engine) in AREAS {
            if RELEASED.contains(&area) != of_release || needs_engine && engine.is_none() {
                continue;
            }
            cargo_test(&["--package", "netobs-tests", "--test", area], filter, environment, parallel)
                .unwrap_or_else(|_| failed.push(area.to_owned()));
        }
        failed
    };
    failed.extend(run_areas(false, &environment));
    // What this machine's kernel may not have. Otherwise only when asked for, by `cargo xtask vm`.
    if ci {
        let started = Instant::now();
        if let Err(error) = vm::run_usual() {
            failed.push(format!("virtual machines: {error:#}"));
        }
        println!("== virtual machines: {} s", started.elapsed().as_secs());
    }
    if let Some(ahead) = &mut ahead {
        let started = Instant::now();
        ahead.wait();
        println!("== waited for what is built ahead: {} s", started.elapsed().as_secs());
    }
    // Not for a single test: the release takes minutes to build.
    if filter.is_empty() {
        match dist::deb() {
            Ok(file) => environment.push(("NETOBS_DEB", file)),
            Err(error) => left_out.push(format!("tests of the Debian package: {error:#}")),
        }
        if engine.is_some() {
            match dist::image(IMAGE) {
                Ok(()) => environment.push(("NETOBS_IMAGE", PathBuf::from(IMAGE))),
                Err(error) => left_out.push(format!("tests of the image: {error:#}")),
            }
        }
    }
    failed.extend(run_areas(true, &environment));
    let missing = rows::print()?;
    if ci && filter.is_empty() {
        if !missing.is_empty() {
            println!("no test has seen: {}", missing.join("; "));
            failed.push("rows".to_owned());
        }
        if let Err(error) = soak::run(&soak::Options::short()) {
            failed.push(format!("soak: {error:#}"));
        }
    }
    left_out.extend(fs::read_to_string(&skips)?.lines().map(str::to_owned));
    finish(ci, &left_out, &failed)
}

fn finish(ci: bool, left_out: &[String], failed: &[String]) -> anyhow::Result<()> {
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
    // What each program has come to is told whether or not it is as it was.
    if what.contains(&"programs") {
        command.arg("--nocapture");
    }
    for (name, value) in environment {
        command.env(name, value);
    }
    let started = Instant::now();
    let ended = run_command(&mut command);
    println!("== {}: {} s", what.last().unwrap_or(&"tests"), started.elapsed().as_secs());
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_area_is_run() {
        let files = fs::read_dir(root().join("tests/tests"))
            .expect("the tests")
            .map(|file| file.expect("a file").path());
        let rust = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        let mut there: Vec<String> =
            rust.map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
        let mut run: Vec<&str> = AREAS.iter().map(|(area, ..)| *area).collect();
        there.sort_unstable();
        run.sort_unstable();
        assert_eq!(there, run);
    }
}
