//! A host of its own as far as namespaces go, with the distribution's real systemd as its first process and no unit of
//! the machine's: changes to `/usr`, `/etc`, `/var`, `/run` and `/tmp` are in memory, and all of it ends with the value.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use crate::{
    netns::{Netns, die_with_parent},
    unique, wait_for,
};

const LIMIT: Duration = Duration::from_secs(60);
const SYSTEMD: &str = "/lib/systemd/systemd";

/// Targets that every unit is ordered by, with nothing in them.
const TARGETS: [&str; 8] =
    ["sysinit", "basic", "network", "multi-user", "shutdown", "umount", "final", "exit"];

/// Whether it can be had here; if not, the test is noted as skipped.
pub fn available(test: &str) -> bool {
    for program in [SYSTEMD, "/usr/bin/systemctl", "/usr/bin/dpkg", "/usr/bin/deb-systemd-invoke"] {
        if !Path::new(program).exists() {
            crate::skip(test, &format!("there is no {program}"));
            return false;
        }
    }
    true
}

pub struct Booted {
    pub host: Netns,
    outer: Child,
    /// systemd, as our own PID namespace has it.
    init: u32,
    cgroup: PathBuf,
}

impl Booted {
    /// # Panics
    /// Without root, or if systemd does not come up.
    pub fn new() -> Self {
        let host = Netns::with_mounts();
        let cgroup = unified().join(unique("systemd"));
        fs::create_dir(&cgroup).expect("make a cgroup");
        let targets: String = TARGETS
            .iter()
            .map(|name| {
                format!("printf '[Unit]\\nDefaultDependencies=no\\n' >/lib/systemd/system/{name}.target; ")
            })
            .collect();
        // The machine's own units are hidden, all of them: they would do to /tmp, /dev and the kernel's settings what
        // they do when a machine starts.
        let script = format!(
            "set -e; echo $$ >{cgroup}/cgroup.procs
             mount --make-rprivate /
             mount -t tmpfs tmpfs /mnt
             for folder in usr etc var; do
                 mkdir -p /mnt/$folder/upper /mnt/$folder/work
                 mount -t overlay -o lowerdir=/$folder,upperdir=/mnt/$folder/upper,workdir=/mnt/$folder/work overlay /$folder
             done
             rm -f /usr/sbin/policy-rc.d /etc/dpkg/dpkg.cfg.d/*
             for folder in /run /tmp /etc/systemd/system /lib/systemd/system /lib/systemd/system-generators; do
                 mount -t tmpfs tmpfs $folder
             done
             mount -t bpf bpffs /sys/fs/bpf
             {targets}
             exec unshare --fork --pid --cgroup --kill-child --mount-proc sh -ec '
                 mount --bind /proc/sys /proc/sys; mount -o remount,bind,ro /proc/sys
                 mount -t cgroup2 cgroup2 /sys/fs/cgroup
                 export container=netobs-test SYSTEMD_UNIT_PATH=/etc/systemd/system:/lib/systemd/system
                 exec {SYSTEMD} --system --unit=multi-user.target --show-status=no'",
            cgroup = cgroup.display(),
        );
        let mut command = Command::new("nsenter");
        command.args(["--net", "--mount", "-t", &host.pid().to_string(), "sh", "-c", &script]);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let outer = die_with_parent(&mut command).spawn().expect("start nsenter");
        let mut booted = Self { host, outer, init: 0, cgroup };
        booted.init = wait_for("the first process", LIMIT, || booted.first_process());
        wait_for("systemd", LIMIT, || {
            let output = booted.try_sh("systemctl is-active multi-user.target");
            if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
        });
        booted
    }

    /// The child of `unshare`, once it is systemd.
    fn first_process(&self) -> Result<u32, String> {
        let pid = self.outer.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.map_err(|error| error.to_string())?;
        let child: u32 = children.trim().parse().map_err(|_| format!("children {children:?}"))?;
        let program = fs::read_link(format!("/proc/{child}/exe")).map_err(|error| error.to_string())?;
        if program.ends_with("systemd") { Ok(child) } else { Err(format!("{}", program.display())) }
    }

    /// Runs a shell script there; what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{out}{err}", output.status);
        out.trim().to_owned()
    }

    /// Copies a file to where it can be seen there.
    ///
    /// # Panics
    /// If it cannot be copied.
    pub fn put(&self, file: &Path, to: &str) {
        let mut command = self.shell(&format!("cat >{to}"));
        let file = fs::File::open(file).expect("open a file");
        assert!(command.stdin(file).status().expect("run a shell").success(), "copy to {to}");
    }

    /// # Panics
    /// If there is no shell.
    pub fn try_sh(&self, script: &str) -> Output {
        self.shell(script).stdin(Stdio::null()).output().expect("run a script beside systemd")
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--all", "-t", &self.init.to_string(), "sh", "-c"]);
        command.arg(format!("PATH=$PATH:/usr/sbin:/sbin; set -e; {script}"));
        command
    }
}

impl Default for Booted {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Booted {
    fn drop(&mut self) {
        // Its PID namespace ends with the first process, and that one with `unshare`.
        let _ = self.outer.kill();
        let _ = self.outer.wait();
        let end = std::time::Instant::now() + LIMIT / 6;
        while remove(&self.cgroup).is_err() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where cgroups v2 are, beside v1 or alone.
fn unified() -> PathBuf {
    let hybrid = PathBuf::from("/sys/fs/cgroup/unified");
    if hybrid.is_dir() { hybrid } else { PathBuf::from("/sys/fs/cgroup") }
}

/// A cgroup and those below it.
fn remove(cgroup: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(cgroup)? {
        let path = entry?.path();
        if path.is_dir() {
            remove(&path)?;
        }
    }
    fs::remove_dir(cgroup)
}
