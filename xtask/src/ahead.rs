//! What later steps need and takes minutes to build, built while others run: by a process of its own, on processors that
//! nobody else wants.

use std::{
    fs::File,
    process::{Child, Command},
};

use anyhow::Context as _;

use crate::{
    dist, fuzz,
    process::{root, target},
    setup,
};

/// `cargo xtask ahead`
pub fn build() -> anyhow::Result<()> {
    setup::cargo_deb()?;
    dist::build()?;
    fuzz::build()
}

/// That, going on. Waited for when dropped.
pub struct Ahead(Option<Child>);

impl Ahead {
    pub fn start() -> anyhow::Result<Self> {
        let log = target().join("ahead.log");
        let file = File::create(&log).with_context(|| format!("make {}", log.display()))?;
        let child = Command::new("chrt")
            .args(["--idle", "0"])
            .arg(std::env::current_exe()?)
            .arg("ahead")
            .stdout(file.try_clone()?)
            .stderr(file)
            .current_dir(root())
            .spawn()
            .context("start chrt")?;
        Ok(Self(Some(child)))
    }

    /// What could not be built is built again by who needs it, and tells why it cannot.
    pub fn wait(&mut self) {
        if let Some(mut child) = self.0.take() {
            match child.wait() {
                Ok(status) if status.success() => {}
                other => println!("ahead: {other:?}, see {}", target().join("ahead.log").display()),
            }
        }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.wait();
    }
}
