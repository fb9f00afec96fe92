//! A virtual machine: one boot of a kernel with an initramfs, to its power-off.

use std::{
    fs::{self, File},
    path::Path,
    process::{Child, Command, Stdio},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// Whether the guest ended by itself. What became of it is in its log: QEMU's own exit code is 0 after a
/// kernel panic, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Itself,
    TimeOver,
}

/// QEMU, for as long as the value.
struct Machine(Child);

/// Boots without hardware virtualisation, which CI machines do not have, and writes the console to `log`.
pub fn boot(image: &Path, initramfs: &Path, log: &Path, limit: Duration) -> anyhow::Result<End> {
    let console = File::create(log).with_context(|| format!("create {}", log.display()))?;
    let mut command = Command::new("qemu-system-x86_64");
    command
        // One thread for all of its processors: with more, one of them may still meet the breakpoint by which another
        // has patched the kernel under it, which then panics (Oops: int3), as where packets pass while the first
        // filter is attached. Kernels from 6.12 on use cmpxchg16b in their allocator, and fault in it when it is
        // emulated.
        .args(["-accel", "tcg,thread=single", "-cpu", "max,-cx16", "-smp", "2", "-m", "1024"])
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .stdin(Stdio::null())
        .stdout(console.try_clone()?)
        .stderr(console);
    let mut machine = Machine(command.spawn().context("start qemu-system-x86_64")?);
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if machine.0.try_wait()?.is_some() {
            return Ok(End::Itself);
        }
        sleep(Duration::from_millis(100));
    }
    Ok(End::TimeOver)
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Has ended, as a rule; if not, it is ours to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the console showed, line by line, without what a terminal would do with it.
pub fn read_log(log: &Path) -> anyhow::Result<Vec<String>> {
    let text = fs::read(log).with_context(|| format!("read {}", log.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().map(|line| line.replace('\r', "")).collect())
}
