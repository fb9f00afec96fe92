//! What the kernel says of interfaces that are gone: their counters, as they were at the end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use netobs::{
    discovery::netlink::{Batch, Event, Events},
    model::KernelStats,
};
use netobs_tests::netns::Netns;

/// Follows the host's interfaces from its start on. A number is not used twice in one namespace.
pub struct Ledger {
    gone: Arc<Mutex<BTreeMap<u32, KernelStats>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ledger {
    pub fn start(host: &Netns) -> Self {
        let (gone, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (to, until) = (Arc::clone(&gone), Arc::clone(&stop));
        let thread = Some(host.spawn(move || follow(&to, &until)));
        Self { gone, stop, thread }
    }

    /// Of an interface that is gone.
    pub fn last(&self, ifindex: u32) -> Option<KernelStats> {
        self.gone.lock().expect("no panic elsewhere").get(&ifindex).copied()
    }

    pub fn len(&self) -> usize {
        self.gone.lock().expect("no panic elsewhere").len()
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn follow(gone: &Mutex<BTreeMap<u32, KernelStats>>, stop: &AtomicBool) {
    let mut events = Events::subscribe().expect("the kernel tells of interfaces");
    while !stop.load(Ordering::Relaxed) {
        match events.read().expect("events") {
            None => std::thread::sleep(Duration::from_millis(5)),
            Some(Batch::Overrun) => panic!("the kernel had more to tell than was read"),
            Some(Batch::Events(events, _)) => {
                for event in events {
                    // One that has only moved away is not at its end.
                    if let Event::Gone(link) = event
                        && link.moved_to.is_none()
                    {
                        gone.lock().expect("no panic elsewhere").insert(link.ifindex, link.stats);
                    }
                }
            }
        }
    }
}
