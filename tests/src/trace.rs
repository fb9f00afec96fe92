//! `netobs trace` as a user runs it.

use std::{
    io::Read,
    process::{Child, ChildStdout, ExitStatus, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    netns::{Netns, die_with_parent},
    program::{self, LIMIT},
    wait_for,
};

pub struct Trace {
    child: Child,
    out: Option<JoinHandle<()>>,
    bytes: Arc<Mutex<Vec<u8>>>,
    err: Option<JoinHandle<()>>,
    messages: Arc<Mutex<Vec<u8>>>,
}

/// What a trace has printed.
#[derive(Debug)]
pub struct Traced {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: String,
}

/// What became of the packets, as told at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub shown: u64,
    pub matched: u64,
    pub delivered: u64,
    pub lost: u64,
    pub limited: u64,
}

impl Trace {
    /// # Panics
    /// If it cannot be started.
    pub fn start(host: Option<&Netns>, arguments: &[&str]) -> Self {
        let (mut trace, mut out) = Self::start_unread(host, arguments);
        let bytes = Arc::clone(&trace.bytes);
        trace.out = Some(std::thread::spawn(move || collect(&mut out, &bytes)));
        trace
    }

    /// With its output left to the caller.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_unread(host: Option<&Netns>, arguments: &[&str]) -> (Self, ChildStdout) {
        let mut command = program::netobs(host);
        command.arg("trace").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = die_with_parent(&mut command).spawn().expect("start netobs trace");
        let out = child.stdout.take().expect("a pipe");
        let mut pipe = child.stderr.take().expect("a pipe");
        let messages = Arc::<Mutex<Vec<u8>>>::default();
        let err = {
            let messages = Arc::clone(&messages);
            std::thread::spawn(move || collect(&mut pipe, &messages))
        };
        (Self { child, out: None, bytes: Arc::default(), err: Some(err), messages }, out)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until it is attached, by filters, to these interfaces of a namespace.
    pub fn attached(&self, netns: &Netns, interfaces: &[&str]) {
        wait_for("attached", LIMIT, || {
            let missing: Vec<_> =
                interfaces.iter().filter(|name| filters_of(netns, name, self.pid()) != 2).collect();
            if missing.is_empty() { Ok(()) } else { Err(format!("{missing:?}")) }
        });
    }

    /// Lines that it has printed by now.
    pub fn lines_so_far(&self) -> usize {
        lock(&self.bytes).iter().filter(|byte| **byte == b'\n').count()
    }

    /// What it has printed by now.
    ///
    /// # Panics
    /// If it is not UTF-8.
    pub fn text_so_far(&self) -> String {
        String::from_utf8(lock(&self.bytes).clone()).expect("UTF-8")
    }

    /// Waits until it has said this on its standard error.
    pub fn says(&self, what: &str) {
        wait_for(what, LIMIT, || {
            let text = String::from_utf8_lossy(&lock(&self.messages)).into_owned();
            if text.contains(what) { Ok(()) } else { Err(text) }
        });
    }

    pub fn signal(&self, signal: Signal) {
        program::signal(self.pid(), signal);
    }

    /// Ends it as a user or a service manager does.
    pub fn terminate(self) -> Traced {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// # Panics
    /// If it does not end by itself.
    pub fn wait(mut self) -> Traced {
        let status = wait_for("the end of netobs trace", LIMIT, || {
            self.child.try_wait().expect("wait").ok_or_else(|| "it runs".to_owned())
        });
        for reader in [self.out.take(), self.err.take()].into_iter().flatten() {
            reader.join().expect("the reader");
        }
        let out = std::mem::take(&mut *lock(&self.bytes));
        let err = String::from_utf8(std::mem::take(&mut *lock(&self.messages))).expect("UTF-8");
        Traced { status, out, err }
    }
}

/// Reads to the end.
fn collect(from: &mut impl Read, to: &Mutex<Vec<u8>>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer).expect("read what is printed") {
            0 => return,
            length => lock(to).extend(&buffer[..length]),
        }
    }
}

fn lock(bytes: &Mutex<Vec<u8>>) -> MutexGuard<'_, Vec<u8>> {
    bytes.lock().expect("no panic elsewhere")
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Filters of a process's on an interface; both directions are two.
pub fn filters_of(netns: &Netns, name: &str, pid: u32) -> usize {
    let listed =
        netns.sh(&format!("tc filter show dev {name} ingress; tc filter show dev {name} egress; true"));
    let handle = format!(" handle {pid:#x} ");
    listed.lines().filter(|line| line.contains(&handle) && line.contains(" netobs ")).count()
}

impl Traced {
    /// # Panics
    /// If it did not end well, or said nothing of the packets.
    pub fn counts(&self) -> Counts {
        assert!(self.status.success(), "{}: {}", self.status, self.err);
        let number = |after: &str| -> u64 {
            let text = self.err.split(after).next().expect("a part");
            text.split(' ')
                .next_back()
                .and_then(|word| word.parse().ok())
                .unwrap_or_else(|| panic!("{}", self.err))
        };
        let counts = Counts {
            shown: number(" packets shown"),
            matched: number(" matched = "),
            delivered: number(" delivered + "),
            lost: number(" lost (buffer full) + "),
            limited: number(" over the rate"),
        };
        assert_eq!(counts.matched, counts.delivered + counts.lost + counts.limited, "{}", self.err);
        counts
    }

    /// # Panics
    /// If a line is not JSON.
    pub fn json(&self) -> Vec<Value> {
        let text = std::str::from_utf8(&self.out).expect("UTF-8");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }

    /// # Panics
    /// If it is not UTF-8.
    pub fn lines(&self) -> Vec<&str> {
        std::str::from_utf8(&self.out).expect("UTF-8").lines().collect()
    }
}
