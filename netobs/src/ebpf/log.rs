//! What the kernel programs log, for diagnosing them. Off by default: the verifier then removes it.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Weak},
    thread,
};

use aya::Ebpf;
use aya_log::EbpfLogger;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Value of the programs' global `AYA_LOG_LEVEL`: nothing, or up to debug.
pub const fn level(on: bool) -> u8 {
    if on { aya_log::Level::Debug as u8 } else { 0 }
}

/// How soon the thread notices that it is no longer wanted.
const PATIENCE_MS: u16 = 200;

/// Passes log records on to this process's log, as long as the value lives. What does not fit the ring
/// buffer (128 KiB) is lost: this is no counter.
#[derive(Debug)]
pub struct LogThread(#[expect(dead_code, reason = "the thread ends when it is dropped")] Arc<()>);

impl LogThread {
    /// Of an object that was loaded with logging on.
    pub fn start(ebpf: &mut Ebpf) -> std::io::Result<Self> {
        let mut logger = EbpfLogger::init(ebpf).map_err(std::io::Error::other)?;
        let wanted = Arc::new(());
        let alive: Weak<()> = Arc::downgrade(&wanted);
        thread::Builder::new().name("netobs-log".to_owned()).spawn(move || {
            while alive.strong_count() > 0 {
                let mut fds = [PollFd::new(logger.as_fd(), PollFlags::POLLIN)];
                // An interrupted or empty wait is as good as any.
                let _ = poll(&mut fds, PollTimeout::from(PATIENCE_MS));
                logger.flush();
            }
        })?;
        Ok(Self(wanted))
    }
}
