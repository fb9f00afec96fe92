//! Network namespaces without names: each is held by a child process that dies with the test.

use std::{
    os::unix::process::CommandExt as _,
    process::{Child, Command, Output, Stdio},
    time::Duration,
};

use nix::sched::{CloneFlags, setns};

use crate::wait_for;

/// A network namespace, as long as the value.
pub struct Netns {
    holder: Child,
}

impl Netns {
    /// With `lo` up, and without IPv6, whose own packets would come in between counts.
    ///
    /// # Panics
    /// Without root.
    pub fn new() -> Self {
        Self::with_ipv6().without_ipv6()
    }

    /// With `lo` up.
    ///
    /// # Panics
    /// Without root.
    pub fn with_ipv6() -> Self {
        Self::hold(&["--net"])
    }

    /// As [`Self::new`], with a mount namespace beside it.
    ///
    /// # Panics
    /// Without root.
    pub fn with_mounts() -> Self {
        Self::hold(&["--net", "--mount"]).without_ipv6()
    }

    fn hold(namespaces: &[&str]) -> Self {
        let mut command = Command::new("unshare");
        command.args(namespaces).args(["sleep", "1000000"]).stdin(Stdio::null());
        let holder = die_with_parent(&mut command).spawn().expect("start unshare");
        let namespace = Self { holder };
        let own = std::fs::read_link("/proc/self/ns/net").expect("own namespace");
        wait_for("a namespace of its own", Duration::from_secs(10), || {
            match std::fs::read_link(format!("/proc/{}/ns/net", namespace.pid())) {
                Ok(theirs) if theirs != own => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        namespace.sh("ip link set lo up");
        namespace
    }

    fn without_ipv6(self) -> Self {
        self.sh("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        self
    }

    pub fn pid(&self) -> u32 {
        self.holder.id()
    }

    /// A command that runs inside.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &self.pid().to_string(), program]);
        command
    }

    /// Runs a shell script inside; what it prints.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, script: &str) -> String {
        let output = self.try_sh(script);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{script}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    /// # Panics
    /// If there is no shell.
    pub fn try_sh(&self, script: &str) -> Output {
        let script = format!("PATH=$PATH:/usr/sbin:/sbin; set -e; {script}");
        self.command("sh").args(["-c", &script]).output().expect("run a script in a namespace")
    }

    /// Runs a function on a thread that has entered the namespace.
    ///
    /// # Panics
    /// If the function does.
    pub fn run<T: Send + 'static>(&self, inside: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(inside).join().expect("a thread in a namespace")
    }

    /// As [`Self::run`], for what borrows.
    ///
    /// # Panics
    /// If the function does.
    pub fn inside<T: Send>(&self, run: impl FnOnce() -> T + Send) -> T {
        let pid = self.pid();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                enter(pid);
                run()
            });
            thread.join().expect("a thread in a namespace")
        })
    }

    /// Starts a function on a thread that has entered the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        inside: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let file = namespace(self.pid());
        std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).expect("enter a namespace");
            inside()
        })
    }
}

/// The calling thread is in the network namespace of a process from now on, and so is what it starts.
///
/// # Panics
/// If there is no such process.
pub fn enter(pid: u32) {
    setns(namespace(pid), CloneFlags::CLONE_NEWNET).expect("enter a namespace");
}

fn namespace(pid: u32) -> std::fs::File {
    std::fs::File::open(format!("/proc/{pid}/ns/net")).expect("open a namespace")
}

impl Default for Netns {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// The child gets SIGKILL when the thread that starts it ends, so that a killed test leaves nothing.
pub fn die_with_parent(command: &mut Command) -> &mut Command {
    // SAFETY: prctl is async-signal-safe and changes the child only.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    }
}

/// A host with a bridge and containers on it, all of them namespaces.
pub struct World {
    pub host: Netns,
    pub containers: Vec<Netns>,
}

/// Name of [`World`]'s bridge.
pub const BRIDGE: &str = "br-world";

impl World {
    /// `count` containers; number n (from 0) has 10.77.0.(n+10), and `vethN` on the host.
    pub fn new(count: usize) -> Self {
        Self::build(count, Netns::new)
    }

    /// With IPv6 as well: fd77::(n+10 in hex), the host fd77::1.
    pub fn with_ipv6(count: usize) -> Self {
        let world = Self::build(count, Netns::with_ipv6);
        world.host.sh(&format!("ip addr add fd77::1/64 dev {BRIDGE} nodad"));
        for (n, container) in world.containers.iter().enumerate() {
            container.sh(&format!("ip addr add fd77::{:x}/64 dev eth0 nodad", n + 10));
        }
        world
    }

    fn build(count: usize, netns: impl Fn() -> Netns) -> Self {
        let host = netns();
        // A bridge that snoops joins and leaves a multicast group of its own, at times of its own.
        host.sh(&format!(
            "ip link add {BRIDGE} type bridge mcast_snooping 0; ip addr add 10.77.0.1/24 dev {BRIDGE}; \
             ip link set {BRIDGE} up"
        ));
        let mut world = Self { host, containers: Vec::new() };
        for _ in 0..count {
            world.add(netns());
        }
        world
    }

    /// Connects one more container.
    pub fn add(&mut self, container: Netns) {
        let n = self.containers.len();
        self.host.sh(&format!(
            "ip link add veth{n} type veth peer name eth0 netns {}; ip link set veth{n} master {BRIDGE} up",
            container.pid()
        ));
        container.sh(&format!(
            "ip addr add 10.77.0.{}/24 dev eth0; ip link set eth0 up; ip route add default via 10.77.0.1",
            n + 10
        ));
        self.containers.push(container);
    }
}
