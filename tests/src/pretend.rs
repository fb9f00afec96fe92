//! Containers as the kernel sees them, made without an engine: a process in a namespace and in a cgroup whose
//! path has a container's ID. Netobs finds them by `/proc`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use crate::netns::{Netns, die_with_parent};

/// A container's process, and its namespace where it has one of its own. Ends with the value.
pub struct Pretend {
    /// 64 hex digits.
    pub id: String,
    cgroup: PathBuf,
    /// Its own, or none: it is in the host's.
    netns: Option<Netns>,
    process: Option<Child>,
}

impl Pretend {
    /// In a namespace of its own, with nothing but `lo`.
    ///
    /// # Panics
    /// Without root.
    pub fn new() -> Self {
        let netns = Netns::new();
        let (id, cgroup) = make_cgroup();
        enter(&cgroup, netns.pid());
        Self { id, cgroup, netns: Some(netns), process: None }
    }

    /// A process of a container within this one: in a cgroup below its own, in a namespace of its own.
    ///
    /// # Panics
    /// Without root.
    pub fn within(&self) -> Self {
        let netns = Netns::new();
        let id = next_id();
        let cgroup = self.cgroup.join(WITHIN).join(&id);
        fs::create_dir_all(&cgroup).expect("make a cgroup");
        enter(&cgroup, netns.pid());
        Self { id, cgroup, netns: Some(netns), process: None }
    }

    /// In a host's namespace.
    ///
    /// # Panics
    /// Without root.
    pub fn on_host(host: &Netns) -> Self {
        let (id, cgroup) = make_cgroup();
        let mut command = host.command("sleep");
        command.arg("1000").stdin(Stdio::null());
        let process = die_with_parent(&mut command).spawn().expect("start sleep");
        enter(&cgroup, process.id());
        Self { id, cgroup, netns: None, process: Some(process) }
    }

    /// A process by which alone it is found until [`Self::put_back`].
    ///
    /// # Panics
    /// If it is in the host's namespace.
    pub fn stand_in(&self) -> Child {
        let mut command = self.netns().command("sleep");
        command.arg("1000").stdin(Stdio::null());
        let process = die_with_parent(&mut command).spawn().expect("start sleep");
        enter(&self.cgroup, process.id());
        self.hide();
        process
    }

    /// Nobody finds it from now on, until [`Self::put_back`].
    ///
    /// # Panics
    /// If it is in the host's namespace.
    pub fn hide(&self) {
        enter(&v2_root(), self.netns().pid());
    }

    /// Its first process is found again.
    ///
    /// # Panics
    /// If it is in the host's namespace.
    pub fn put_back(&self) {
        enter(&self.cgroup, self.netns().pid());
    }

    /// The inode number of its cgroup.
    ///
    /// # Panics
    /// If it is gone.
    pub fn cgroup_id(&self) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        fs::metadata(&self.cgroup).expect("its cgroup").ino()
    }

    /// What netobs calls it, where nobody told a name.
    pub fn name(&self) -> &str {
        &self.id[..12]
    }

    /// # Panics
    /// If it is in the host's.
    pub fn netns(&self) -> &Netns {
        self.netns.as_ref().expect("a namespace of its own")
    }

    /// Runs a script as the container's process: in its cgroup, in the namespace of `host` if it has none.
    ///
    /// # Panics
    /// If it fails.
    pub fn sh(&self, host: &Netns, script: &str) -> String {
        let netns = self.netns.as_ref().unwrap_or(host);
        // The shell moves itself; what it starts is where it is.
        netns.sh(&format!("echo $$ > {}/cgroup.procs; {script}", self.cgroup.display()))
    }
}

impl Default for Pretend {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Pretend {
    fn drop(&mut self) {
        drop(self.netns.take());
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
        // A process that has ended stays in its cgroup for a moment.
        for _ in 0..100 {
            if fs::remove_dir(&self.cgroup).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        // That of those within the container goes with the last of them.
        let _ = self.cgroup.parent().filter(|parent| parent.ends_with(WITHIN)).map(fs::remove_dir);
    }
}

/// The cgroup of all that is within a container.
const WITHIN: &str = "kubelet";

/// The v2 tree, alone or beside the older hierarchies.
fn v2_root() -> PathBuf {
    let alone = Path::new("/sys/fs/cgroup");
    if alone.join("cgroup.procs").exists() { alone.to_path_buf() } else { alone.join("unified") }
}

fn next_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    // The short ID differs too.
    format!("{:08x}{number:04x}{:0>52}", std::process::id(), "")
}

fn make_cgroup() -> (String, PathBuf) {
    let id = next_id();
    let cgroup = v2_root().join("netobs-test").join(&id);
    fs::create_dir_all(&cgroup).expect("make a cgroup");
    (id, cgroup)
}

fn enter(cgroup: &Path, pid: u32) {
    fs::write(cgroup.join("cgroup.procs"), pid.to_string()).expect("move a process into a cgroup");
}
