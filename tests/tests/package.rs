//! The Debian package, by the real dpkg, and its service, by the real systemd.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use netobs_tests::{
    booted::{self, Booted},
    http,
    netns::Netns,
    program::{Agent, LIMIT, LOADED},
    prometheus::sample,
    wait_for,
};

/// bpf, perfmon, net_admin, sys_ptrace, syslog, sys_admin: what README lists.
const CAPABILITIES: u64 = 1 << 39 | 1 << 38 | 1 << 12 | 1 << 19 | 1 << 34 | 1 << 21;

/// By `systemd-analyze security`, times ten; without the lines for hardening it is 93.
const MOST_EXPOSED: &str = "40";

/// The package that the test command has built; if there is none, the test is noted as skipped.
fn package(test: &str) -> Option<PathBuf> {
    let file = std::env::var_os("NETOBS_DEB").map(PathBuf::from);
    if file.is_none() {
        netobs_tests::skip(test, "no package: `cargo xtask deb` builds it, NETOBS_DEB names it");
    }
    file
}

fn metrics(host: &Netns) -> Result<String, String> {
    match host.run(|| http::get(9810, "/metrics")) {
        Ok((200, body)) => Ok(body),
        other => Err(format!("{other:?}")),
    }
}

/// What cannot work, by its metric.
fn degraded(exposition: &str) -> Vec<String> {
    exposition.lines().filter(|line| line.starts_with("netobs_degraded{")).map(str::to_owned).collect()
}

/// What netobs has counted at an interface is what the kernel has.
fn counted(host: &Netns, least: f64) -> f64 {
    wait_for("netobs's packets equal the kernel's", LOADED, || {
        let exposition = metrics(host)?;
        let value = |metric| {
            sample(&exposition, metric, &["host_interface=\"veth0\"", "direction=\"receive\""])
                .or_else(|| sample(&exposition, metric, &["host_interface=\"veth0\""]))
        };
        let ours = value("netobs_interface_receive_packets_total").ok_or("no series")?;
        let before = value("netobs_interface_unobserved_packets").unwrap_or_default();
        let kernel: f64 = host
            .sh("ip -s -j link show veth0 | tr ',{' '\\n\\n' | grep -m1 '\"packets\"' | cut -d: -f2")
            .trim()
            .parse()
            .map_err(|_| "no number")?;
        if ours + before == kernel && ours >= least {
            Ok(ours)
        } else {
            Err(format!("{ours} and {before} before, kernel's {kernel}"))
        }
    })
}

#[test]
fn is_installed_started_upgraded_and_removed() {
    let Some(package) = package("package").filter(|_| booted::available("package")) else { return };
    let machine = Booted::new();
    let host = &machine.host;
    let container = Netns::new();
    host.sh(&format!(
        "ip link add veth0 type veth peer name eth0 netns {}; ip addr add 10.78.0.1/24 dev veth0; ip link set veth0 up",
        container.pid()
    ));
    container.sh("ip addr add 10.78.0.2/24 dev eth0; ip link set eth0 up");
    let ping = || container.sh("busybox ping -q -c 5 -i 0.05 10.78.0.1");
    machine.put(&package, "/run/netobs.deb");
    let install = "DEBIAN_FRONTEND=noninteractive dpkg --no-triggers -i /run/netobs.deb";
    machine.sh(install);
    assert_eq!(machine.sh("systemctl is-active netobs; systemctl is-enabled netobs"), "active\nenabled");
    let exposition = wait_for("the service's metrics", LOADED, || metrics(host));
    ping();
    let first = counted(host, 5.0);

    // Confined as the unit says, and nothing is missed for it.
    let pid = machine.sh("systemctl show --value -p MainPID netobs");
    let status = machine.sh(&format!("cat /proc/{pid}/status"));
    for line in ["Seccomp:\t2", "NoNewPrivs:\t1", &format!("CapBnd:\t{CAPABILITIES:016x}")] {
        assert!(status.contains(line), "no {line:?} in {status}");
    }
    for folder in ["/usr", "/etc", "/var", "/root"] {
        let written = machine.try_sh(&format!("nsenter -m -t {pid} touch {folder}/x"));
        assert!(!written.status.success(), "{folder} can be written to");
    }
    let plain = Netns::new();
    let agent = Agent::start_in(Some(&plain), &["--no-engine"]);
    let beside = wait_for("metrics", LOADED, || metrics(&plain));
    assert_eq!(degraded(&exposition), degraded(&beside));
    drop(agent);

    // Killed, it starts again; and an upgrade starts the new one. Counters go on.
    machine.sh("systemctl kill -s KILL netobs");
    wait_for("another process", LIMIT, || {
        let now = machine.sh("systemctl show --value -p MainPID netobs");
        if now != pid && now != "0" { Ok(()) } else { Err(now) }
    });
    ping();
    let second = counted(host, first + 5.0);
    let pid = machine.sh("systemctl show --value -p MainPID netobs");
    machine.sh(install);
    assert_ne!(machine.sh("systemctl show --value -p MainPID netobs"), pid);
    ping();
    counted(host, second + 5.0);

    man_pages_and_completions(&machine);
    machine.sh("systemd-analyze verify /lib/systemd/system/netobs.service");
    machine.sh(&format!("systemd-analyze security --threshold={MOST_EXPOSED} netobs.service"));

    // Removed, it leaves nothing: neither a program at the interface nor a pin.
    let filters = "tc filter show dev veth0 ingress";
    assert_ne!(machine.sh(filters), "");
    machine.sh("test -d /sys/fs/bpf/netobs");
    machine.sh("dpkg --no-triggers --purge netobs");
    assert_eq!(machine.sh(filters), "");
    machine.sh("test ! -e /sys/fs/bpf/netobs");
    let left = machine.sh(
        "ls -d /usr/bin/netobs /etc/default/netobs /etc/systemd/system/*/netobs.service 2>/dev/null || true",
    );
    assert_eq!(left, "");
    assert!(metrics(host).is_err());
}

fn man_pages_and_completions(machine: &Booted) {
    for page in ["netobs", "netobs-agent", "netobs-watch", "netobs-trace", "netobs-doctor"] {
        let text = machine.sh(&format!("MANWIDTH=100 man -P cat {page}"));
        assert!(text.contains("SYNOPSIS") && text.contains("netobs"), "{text}");
    }
    assert!(machine.sh("man -P cat netobs-agent").contains("--pin"));
    let completed = machine.sh(
        "bash -c '. /usr/share/bash-completion/completions/netobs; COMP_WORDS=(netobs agent --pi); COMP_CWORD=2; \
         _netobs netobs --pi agent; echo ${COMPREPLY[@]}'",
    );
    assert_eq!(completed, "--pin --pin-folder");
    machine.sh("head -1 /usr/share/zsh/vendor-completions/_netobs | grep -qx '#compdef netobs'");
    machine.sh("grep -q '^complete -c netobs' /usr/share/fish/vendor_completions.d/netobs.fish");
}

#[test]
fn the_unit_is_right_without_the_package() {
    if !Path::new("/usr/bin/systemd-analyze").exists() {
        netobs_tests::skip("unit", "there is no systemd-analyze");
        return;
    }
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/systemd/netobs.service");
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", &format!("--threshold={MOST_EXPOSED}")])
        .arg(&unit)
        .output()
        .expect("run systemd-analyze");
    assert!(security.status.success(), "{}", String::from_utf8_lossy(&security.stdout));
    let unit = std::fs::read_to_string(unit).expect("the unit");
    let readme = include_str!("../../README.md");
    let table: BTreeSet<&str> =
        readme.lines().filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next()).collect();
    assert_eq!(table.len(), 6);
    for set in ["CapabilityBoundingSet=", "AmbientCapabilities="] {
        let line = unit.lines().find_map(|line| line.strip_prefix(set)).expect(set);
        let names: BTreeSet<&str> = line.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
        assert_eq!(names, table, "{set}");
    }
}
