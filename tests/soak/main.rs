//! Everything that happens to a host with containers, at random and all at once, for as long as it is wanted; then
//! every counter is held against the kernel's, and what is left is looked for. `cargo xtask soak` builds and runs it.

mod agents;
mod held;
mod ledger;
mod world;

use std::{
    sync::{Mutex, atomic::AtomicBool, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use netobs_tests::{
    bpf::Objects,
    bpffs::Bpffs,
    kernel,
    program::{self, Agent, number},
    random_frames::Random,
    traces::{self, Traces},
    wait_for,
};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde_json::Value;

use crate::{
    agents::Agents,
    held::Held,
    ledger::Ledger,
    world::{Container, Step, World},
};

/// How long an agent gets to show what is looked for: shorter than what is over is kept.
const LIMIT: Duration = Duration::from_secs(12);

/// Allocators, caches and the runtime have taken what they keep after a time like this.
const WARM_UP: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(
    name = "netobs-soak",
    about = "Lets everything happen at once, and holds all counters against the kernel's"
)]
struct Cli {
    /// For so long; what is before and after comes on top
    #[arg(long, value_name = "N", default_value_t = 3600)]
    seconds: u64,
    /// What happens, and when, follows from it [default: another each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How the agent that is killed attaches: tcx, clsact, auto [default: tcx where the kernel has it]
    #[arg(long, value_name = "MODE")]
    attach: Option<String>,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let clock = SystemTime::UNIX_EPOCH.elapsed().context("a clock")?;
    let seed = cli.seed.unwrap_or_else(|| u64::from(clock.subsec_nanos()));
    let attach = cli.attach.as_deref().unwrap_or(if kernel::release() >= (6, 6) { "tcx" } else { "clsact" });
    println!("seed {seed}, {} s, the agent that pins attaches by {attach}", cli.seconds);
    own_mounts()?;
    let report = soak(Duration::from_secs(cli.seconds), seed, attach);
    report.print();
    ensure!(report.wrong.is_empty(), "{} are not as they should be (seed {seed})", report.wrong.len());
    Ok(())
}

/// What is mounted here goes with the process, whatever ends it.
fn own_mounts() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("a mount namespace needs root")?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)
        .context("keep mounts to ourselves")
}

#[derive(Default)]
struct Report {
    rows: Vec<(String, String)>,
    wrong: Vec<String>,
}

impl Report {
    fn row(&mut self, what: &str, value: impl ToString) {
        self.rows.push((what.to_owned(), value.to_string()));
    }

    fn print(&self) {
        println!("\n| what | |\n|---|---|");
        for (what, value) in &self.rows {
            println!("| {what} | {value} |");
        }
        println!();
        for wrong in &self.wrong {
            println!("wrong: {wrong}");
        }
    }
}

/// What there is of both agents while nothing happens.
struct Lull {
    steady: Traces,
    pinning: Traces,
    resident_kib: u64,
    /// Interfaces inside containers of other tests that either observes.
    elsewhere: usize,
}

struct Soak<'a> {
    world: World,
    agents: Agents<'a>,
    ledger: Ledger,
    steady: Agent,
    pinning: Option<Agent>,
    /// Of the interfaces that stay, as the agent that pins had them first: name and baseline.
    begun: Vec<(String, Value)>,
    random: Random,
    held: Held,
    objects: Mutex<Objects>,
    kills: u64,
}

fn soak(time: Duration, seed: u64, attach: &str) -> Report {
    let start = Instant::now();
    let bpffs = Bpffs::new();
    let mut soak = Soak::start(Agents { bpffs: &bpffs, attach }, seed);
    soak.churn(WARM_UP);
    let before = soak.lull();
    soak.world.done.clear();
    let (gone, kills) = (soak.ledger.len(), soak.kills);
    soak.churn(time);
    let after = soak.lull();

    let elsewhere = before.elsewhere.max(after.elsewhere);
    let mut report = Report::default();
    report.row("seconds, with what is before and after", start.elapsed().as_secs());
    for (what, count) in &soak.world.done {
        report.row(what, count);
    }
    report.row("interfaces of the host that went", soak.ledger.len() - gone);
    report.row("agents killed", soak.kills - kills);
    for (what, before, after) in [
        ("the agent that stays", &before.steady, &after.steady),
        ("the one that pins", &before.pinning, &after.pinning),
    ] {
        report.row(
            &format!("{what}: descriptors, links among them, threads, entries of maps"),
            format!(
                "{}, {}, {}, {}",
                after.descriptors.values().sum::<usize>(),
                after.links(),
                after.threads,
                after.maps.values().sum::<usize>()
            ),
        );
        if !is_all_given_back(before, after, elsewhere) {
            report.wrong.push(format!("{what} has left something: {before:?}, then {after:?}"));
        }
    }
    let (resident, then) = (before.resident_kib, after.resident_kib);
    report.row("the agent that stays: KiB resident before and after", format!("{resident}, {then}"));
    if then * 10 > resident * 11 {
        report.wrong.push(format!("resident memory: {resident} KiB, then {then} KiB"));
    }
    soak.end(&mut report);
    report
}

/// Connections to the engine are kept for a while, as many as it is asked by at a time.
const ENGINE_CONNECTIONS: usize = 8;

/// `elsewhere`: see [`Lull`]; each of these may have a sender in both directions.
fn is_all_given_back(before: &Traces, after: &Traces, elsewhere: usize) -> bool {
    let apart = |traces: &Traces| {
        let mut rest = traces.clone();
        let sockets = rest.descriptors.remove("socket").unwrap_or_default();
        let senders = rest.maps.remove("SENDERS").unwrap_or_default();
        (rest, sockets, senders)
    };
    let ((before, few, senders), (after, many, more_senders)) = (apart(before), apart(after));
    before == after && many <= few + ENGINE_CONNECTIONS && more_senders <= senders + 2 * elsewhere
}

impl<'a> Soak<'a> {
    fn start(agents: Agents<'a>, seed: u64) -> Self {
        let world = World::new();
        let ledger = Ledger::start(&world.engine.host);
        let steady = Agents::steady(&world.engine);
        let pinning = agents.pinning(&world.engine);
        let mut soak = Self {
            world,
            agents,
            ledger,
            steady,
            pinning: None,
            begun: Vec::new(),
            random: Random::new(seed),
            held: Held::default(),
            objects: Mutex::default(),
            kills: 0,
        };
        for agent in [&soak.steady, &pinning] {
            held::forgotten(&soak.world.engine.host, agent, &soak.world.staying);
        }
        let snapshot = pinning.snapshot(&soak.world.engine.host).expect("an answer");
        let staying = snapshot["interfaces"].as_array().expect("interfaces").iter();
        soak.begun = staying
            .map(|one| (one["name"].as_str().unwrap_or_default().to_owned(), one["baseline"].clone()))
            .collect();
        soak.pinning = Some(pinning);
        soak
    }

    /// Lets everything happen for so long.
    fn churn(&mut self, time: Duration) {
        let agent = self.pinning.take().expect("it runs");
        let (stop, mut random) = (AtomicBool::new(false), Random::new(self.random.number()));
        self.world.rest(false);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let starter = self.agents.starter(&self.world.engine);
            let (objects, stop_asked) = (&self.objects, &stop);
            let killer =
                scope.spawn(move || agents::kill_at_random(agent, starter, &mut random, stop_asked, objects));
            let _stop = StopOnDrop(&stop);
            while start.elapsed() < time {
                let Self { world, held, steady, ledger, .. } = self;
                match world.step(&mut self.random) {
                    Step::Done => {}
                    Step::Ended(n) => {
                        held.hold_container(&world.engine.host, steady, ledger, &world.churning[n]);
                    }
                    Step::Taken(container) => remove(world, held, steady, ledger, &container),
                }
                held.find(&world.engine.host, steady, &world.churning);
            }
            stop.store(true, Ordering::Relaxed);
            self.kills += killer.join().expect("who kills agents");
        });
        self.pinning = Some(self.agents.pinning(&self.world.engine));
    }

    /// Lets nothing happen, holds what there is against the kernel's counters, and removes what does not stay.
    fn lull(&mut self) -> Lull {
        self.world.rest(true);
        let host = &self.world.engine.host;
        let pinning = self.pinning.as_ref().expect("it runs");
        wait_for("the agent that pins", program::LOADED, || pinning.snapshot(host));
        self.held.hold_interfaces("the agent that stays", host, &self.steady);
        self.held.hold_interfaces("the agent that pins", host, pinning);
        let running = self.world.churning.iter().filter(|container| !container.has_ended());
        for container in self.world.staying.iter().chain(running) {
            self.held.hold_container(host, &self.steady, &self.ledger, container);
        }
        for container in std::mem::take(&mut self.world.churning) {
            remove(&mut self.world, &mut self.held, &self.steady, &self.ledger, &container);
        }
        let host = &self.world.engine.host;
        let snapshot = pinning.snapshot(host).expect("an answer");
        for (name, baseline) in &self.begun {
            let now = program::interface(&snapshot, name).unwrap_or_default();
            if now["baseline"] != *baseline || number(&now, "reattached") != 0 {
                self.held.differences.push(format!("{name} has a gap: {baseline} at first, then {now}"));
            }
        }
        for agent in [&self.steady, pinning] {
            held::forgotten(host, agent, &self.world.staying);
        }
        Lull {
            steady: Traces::settled(host, self.steady.pid()),
            pinning: Traces::settled(host, pinning.pid()),
            resident_kib: self.steady.resident_kib(),
            elsewhere: held::elsewhere(host, &self.steady).max(held::elsewhere(host, pinning)),
        }
    }

    /// Ends the agents, gives up what is pinned, and looks for what the kernel still has of them.
    fn end(mut self, report: &mut Report) {
        let host = &self.world.engine.host;
        let mut objects = self.objects.into_inner().expect("no panic elsewhere");
        for agent in [Some(&mut self.steady), self.pinning.as_mut()].into_iter().flatten() {
            objects.add(agent.pid());
            let (status, _) = agent.terminate();
            if !status.success() {
                report.wrong.push(format!("an agent ended with {status}"));
            }
        }
        let said = self.agents.bpffs.cleanup(host, &[]);
        if self.agents.bpffs.folder().exists() {
            report.wrong.push(format!("pins are left: {said}"));
        }
        let filters = traces::filters(host);
        if filters != 0 {
            report.wrong.push(format!("{filters} filters are left: {said}"));
        }
        report.row("programs, maps and links that agents were seen to have", objects.len());
        // The kernel frees them a moment later.
        let end = Instant::now() + LIMIT;
        while !objects.that_live().is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(100));
        }
        let left = objects.that_live();
        report.row("of these left in the kernel", left.len());
        if !left.is_empty() {
            report.wrong.push(format!("left in the kernel: {left:?}"));
        }
        let held = self.held;
        report.row(
            "comparisons with the kernel: interfaces, containers",
            format!("{}, {}", held.interfaces, held.containers),
        );
        report.row("packets in them", held.packets);
        report.row("packets that passed during an attach, stated as uncertain", held.uncertain);
        report.row("packets to ends that were down, dropped by the kernel behind the count", held.dropped);
        report.row("differences", held.differences.len());
        report.wrong.extend(held.differences);
    }
}

/// Removes a container and holds its counters. Those of one that had ended were held then: what is over is shown for a
/// while since its end, not since it was removed.
fn remove(world: &mut World, held: &mut Held, agent: &Agent, ledger: &Ledger, container: &Container) {
    world.remove(container);
    if !container.has_ended() {
        held.hold_container(&world.engine.host, agent, ledger, container);
    }
}

/// Who kills agents stops, too, when something else has failed.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
