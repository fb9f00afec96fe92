//! A place to pin at, and the commands that have to do with it.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::mount::{MsFlags, mount, umount};

use crate::{
    netns::Netns,
    program::{self, Agent},
};

/// A BPF filesystem of a test's own; unmounted with the value.
pub struct Bpffs(tempfile::TempDir);

impl Bpffs {
    /// # Panics
    /// Without root.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        mount(Some("bpffs"), folder.path(), Some("bpf"), MsFlags::empty(), None::<&str>)
            .expect("mount bpffs");
        Self(folder)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// As `--pin-folder` has it.
    pub fn folder(&self) -> PathBuf {
        self.0.path().join("netobs")
    }

    fn arguments(&self, mode: &str) -> Vec<String> {
        let folder = self.folder().display().to_string();
        ["--no-engine", "--attach", mode, "--pin", "--pin-folder", &folder].map(str::to_owned).into()
    }

    /// An agent that pins in here, and asks no engine.
    pub fn agent(&self, host: &Netns, mode: &str) -> Agent {
        let arguments = self.arguments(mode);
        Agent::start_in(Some(host), &arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What an agent says that does not start.
    ///
    /// # Panics
    /// If it does.
    pub fn refused(&self, host: &Netns, more: &[&str]) -> String {
        let mut command: Command = program::netobs(Some(host));
        command.args(["agent", "--listen", "127.0.0.1:9811"]).args(self.arguments("auto")).args(more);
        let output = command.stdin(Stdio::null()).output().expect("run netobs");
        assert!(!output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// What `netobs cleanup` says.
    ///
    /// # Panics
    /// If it fails.
    pub fn cleanup(&self, host: &Netns, more: &[&str]) -> String {
        let mut command: Command = program::netobs(Some(host));
        command.arg("cleanup").arg("--pin-folder").arg(self.folder()).args(more);
        let output = command.output().expect("run netobs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
        // Not what it finds in containers of other tests.
        text.lines().filter(|line| !line.contains("/ns/net")).collect::<Vec<_>>().join("\n")
    }

    /// What is left is an ordinary folder.
    ///
    /// # Panics
    /// If it is none of its own any more.
    pub fn unmount(&self) {
        umount(self.0.path()).expect("unmount");
    }
}

impl Default for Bpffs {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount(self.0.path());
    }
}
