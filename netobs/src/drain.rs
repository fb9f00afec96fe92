//! A thread that reads flows from time to time and takes back what is idle, whatever else the process is
//! busy with.

use std::{
    io,
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread::JoinHandle,
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    attacher::{Shared, lock},
    ebpf,
    model::Update,
};

/// The running thread; ends when dropped.
pub struct Drain {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drain {
    /// # Errors
    /// When there is no thread to be had.
    pub fn start(observer: Shared, updates: mpsc::Sender<Update>, interval: Duration) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("netobs-flows".to_owned())
            .spawn(move || run(&observer, &updates, interval, &stopped))?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by the thread itself.
            let _ = thread.join();
        }
    }
}

fn run(observer: &Shared, updates: &mpsc::Sender<Update>, interval: Duration, stopped: &Receiver<()>) {
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        lock(observer).begin_flows();
        // Not under the lock: it takes some ten milliseconds.
        ebpf::wait_for_programs();
        // Some at a time, also under the lock, for which an interface may be waiting that is to be attached.
        loop {
            let records = lock(observer).finish_flows();
            let Some(records) = records else { break };
            // Nobody listens any more only when the process is ending.
            let _ = updates.blocking_send(Update::Flows(records));
            wait_until_taken(updates);
        }
    }
}

/// So that few wait at a time.
fn wait_until_taken(updates: &mpsc::Sender<Update>) {
    while !updates.is_closed() && updates.max_capacity() - updates.capacity() >= WAITING {
        std::thread::sleep(Duration::from_micros(500));
    }
}

/// Updates that may wait to be applied before more flows are read.
const WAITING: usize = 2;
