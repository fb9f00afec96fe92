//! The agents: one that lives through all of it, and one that pins and is killed.

use std::{
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use netobs_tests::{
    bpf::Objects,
    bpffs::Bpffs,
    dockerd::Dockerd,
    program::{self, Agent},
    random_frames::Random,
};

/// The longest time that an agent gets before it is killed: as often while it starts as while it runs.
const LONGEST: Duration = Duration::from_secs(4);

pub struct Agents<'a> {
    pub bpffs: &'a Bpffs,
    /// How the one that pins attaches.
    pub attach: &'a str,
}

impl Agents<'_> {
    pub fn steady(engine: &Dockerd) -> Agent {
        starter(engine, 9810, Vec::new())()
    }

    pub fn pinning(&self, engine: &Dockerd) -> Agent {
        self.starter(engine)()
    }

    /// For another thread, while the engine is stopped and started.
    pub fn starter(&self, engine: &Dockerd) -> impl Fn() -> Agent + use<> {
        let folder = self.bpffs.folder().display().to_string();
        let more = ["--pin", "--pin-folder", &folder, "--attach", self.attach].map(str::to_owned);
        starter(engine, 9811, more.into())
    }
}

fn starter(engine: &Dockerd, port: u16, more: Vec<String>) -> impl Fn() -> Agent + use<> {
    let (host, endpoint) = (engine.host.pid().to_string(), engine.endpoint());
    move || {
        let mut command = Command::new("nsenter");
        command.args(["--net", "-t", &host]).arg(program::binary());
        command.args(["agent", "--listen", &format!("127.0.0.1:{port}"), "--engine", &endpoint]);
        // What is kept of what is over is no leak; so short a time that it does not count, and long enough to compare.
        command.args(["--grace", "15s", "--flow-interval", "500ms", "--flow-idle", "2s"]).args(&more);
        Agent::spawn(command.env("NETOBS_LOG", "error").stdin(Stdio::null()), port)
    }
}

/// Kills agents at random moments, each followed by the next at once, until it is told to stop: how many.
pub fn kill_at_random(
    mut agent: Agent,
    start: impl Fn() -> Agent,
    random: &mut Random,
    stop: &AtomicBool,
    objects: &Mutex<Objects>,
) -> u64 {
    let mut kills = 0;
    loop {
        let end = Instant::now() + Duration::from_millis(random.below(LONGEST.as_millis() as usize) as u64);
        while Instant::now() < end && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(5));
        }
        objects.lock().expect("no panic elsewhere").add(agent.pid());
        agent.kill();
        kills += 1;
        if stop.load(Ordering::Relaxed) {
            return kills;
        }
        agent = start();
    }
}
