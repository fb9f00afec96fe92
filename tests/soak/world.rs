//! An engine with its networks and containers, and what is done to them.

use std::{collections::BTreeMap, fs};

use netobs_tests::{dockerd::Dockerd, program::number, random_frames::Random};
use serde_json::Value;
use tempfile::TempDir;

/// Networks that stay; each has a server and a client that stay, too.
pub const NETWORKS: [&str; 2] = ["front", "back"];

/// Containers that come and go, at a time.
const MOST: usize = 6;

/// Asks for the server's name, pings the gateway, and fetches 2 MiB, again and again; rests while it is told to. (Not by
/// `wget`: where libc looks names up itself, a static one falls for want of its files.)
const CLIENT: &str = "while :; do
    while [ -e /soak/quiet ]; do sleep 0.2; done
    gateway=$(busybox ip route | busybox sed -n 's/^default via \\([0-9.]*\\).*/\\1/p')
    busybox nslookup $NAME
    busybox ping -q -c 20 -i 0.01 $gateway
    printf 'GET /blob HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 3 $SERVER 80
done >/dev/null 2>&1";

const SERVER: &str = "busybox mkdir -p /www; busybox dd if=/dev/zero of=/www/blob bs=1M count=2 2>/dev/null
    exec busybox httpd -f -h /www";

/// A veth of a container: its end on the host, and its end inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Veth {
    pub host: u32,
    pub inside: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    Ended,
}

pub struct Container {
    pub id: String,
    pub name: String,
    state: State,
    /// On both networks.
    is_on_both: bool,
    home: &'static str,
    /// All that it has had.
    pub veths: Vec<Veth>,
    /// What was done to it, for who looks into a difference.
    history: Vec<&'static str>,
}

impl Container {
    /// Who it is, and what was done to it.
    pub fn label(&self) -> String {
        format!("{} ({}; {})", self.name, &self.id[..12], self.history.join(", "))
    }

    pub fn has_ended(&self) -> bool {
        self.state == State::Ended
    }
}

/// What has been done, and what is to be looked at therefore.
pub enum Step {
    Done,
    /// This one of those that come and go.
    Ended(usize),
    /// To be removed, which [`World::remove`] does.
    Taken(Container),
}

/// What is done, by name; how often, is counted.
pub type Done = BTreeMap<&'static str, u64>;

pub struct World {
    pub engine: Dockerd,
    pub staying: Vec<Container>,
    pub churning: Vec<Container>,
    pub done: Done,
    shared: TempDir,
    next: u32,
}

impl World {
    pub fn new() -> Self {
        let mut engine = Dockerd::new(&["--live-restore"]);
        engine.start();
        let shared = tempfile::Builder::new().prefix("nbtsoak").tempdir().expect("a folder");
        let (staying, churning, done) = (Vec::new(), Vec::new(), Done::new());
        let mut world = Self { engine, staying, churning, done, shared, next: 0 };
        world.rest(true);
        for network in NETWORKS {
            world.engine.docker(&["network", "create", network]);
            for (role, script) in [("server", SERVER), ("client", CLIENT)] {
                let container = world.run(&format!("{role}-{network}"), network, script);
                world.staying.push(container);
            }
        }
        world
    }

    /// Tells all clients to rest, or to go on.
    pub fn rest(&self, quiet: bool) {
        let flag = self.shared.path().join("quiet");
        if quiet {
            fs::write(flag, "").expect("write a flag");
        } else {
            fs::remove_file(flag).expect("remove a flag");
        }
    }

    fn run(&mut self, name: &str, home: &'static str, script: &str) -> Container {
        let folder = format!("{}:/soak:ro", self.shared.path().display());
        let mut arguments = vec!["run", "-d", "--stop-signal", "SIGKILL", "--name", name, "--network", home];
        let (server, name_of_server) =
            (format!("SERVER={}", self.server(home)), format!("NAME=server-{home}"));
        arguments.extend(["-v", &folder, "-e", &server, "-e", &name_of_server]);
        arguments.extend([netobs_tests::docker::IMAGE, "/bin/busybox", "sh"]);
        let id = self.engine.docker(&[&arguments[..], &["-c", script]].concat());
        let state = State::Running;
        let mut container = Container {
            id,
            name: name.to_owned(),
            state,
            is_on_both: false,
            home,
            veths: Vec::new(),
            history: vec!["run"],
        };
        self.learn(&mut container);
        container
    }

    /// The address of a network's server; empty before there is one.
    fn server(&self, network: &str) -> String {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
        let output = self.engine.try_docker(&["inspect", "-f", &format, &format!("server-{network}")]);
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Which veths it has now, as its own namespace says.
    fn learn(&self, container: &mut Container) {
        let pid = self.engine.pid_of(&container.id).to_string();
        let mut command = std::process::Command::new("nsenter");
        let script = "PATH=$PATH:/sbin:/usr/sbin exec ip -j link show type veth";
        let output = command.args(["--net", "-t", &pid, "sh", "-c", script]).output().expect("run ip");
        let links: Value = serde_json::from_slice(&output.stdout).expect("JSON of ip");
        let index = |link: &Value, field: &str| u32::try_from(number(link, field)).expect("an ifindex");
        for link in links.as_array().expect("interfaces") {
            let veth = Veth { host: index(link, "link_index"), inside: index(link, "ifindex") };
            if !container.veths.contains(&veth) {
                container.veths.push(veth);
            }
        }
    }

    /// Does one thing.
    pub fn step(&mut self, random: &mut Random) -> Step {
        let done = match random.below(100) {
            0..30 if self.churning.len() < MOST => self.start(random),
            0..30 => return self.take(random),
            30..38 => return self.end(random),
            38..48 => self.again(random),
            48..60 => self.connect_or_disconnect(random),
            60..68 => self.rename(random),
            68..76 => self.pause_or_unpause(random),
            76..80 => self.network(),
            80..84 => self.engine_anew(random),
            _ => return self.take(random),
        };
        if let Some(done) = done {
            *self.done.entry(done).or_default() += 1;
        }
        Step::Done
    }

    fn pick(&self, random: &mut Random, wanted: impl Fn(&Container) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = (0..self.churning.len()).filter(|n| wanted(&self.churning[*n])).collect();
        (!fitting.is_empty()).then(|| random.pick(&fitting))
    }

    fn start(&mut self, random: &mut Random) -> Option<&'static str> {
        self.next += 1;
        let container = self.run(&format!("c{}", self.next), random.pick(&NETWORKS), CLIENT);
        self.churning.push(container);
        Some("containers started")
    }

    fn take(&mut self, random: &mut Random) -> Step {
        let picked = self.pick(random, |_| true);
        picked.map_or(Step::Done, |n| Step::Taken(self.churning.swap_remove(n)))
    }

    pub fn remove(&mut self, container: &Container) {
        self.engine.docker(&["rm", "-f", &container.id]);
        *self.done.entry("containers removed").or_default() += 1;
    }

    fn end(&mut self, random: &mut Random) -> Step {
        let Some(n) = self.pick(random, |container| container.state == State::Running) else {
            return Step::Done;
        };
        let command = if random.percent(50) { "kill" } else { "stop" };
        self.engine.docker(&[command, &self.churning[n].id]);
        self.churning[n].state = State::Ended;
        self.churning[n].history.push(command);
        *self.done.entry("containers stopped or killed").or_default() += 1;
        Step::Ended(n)
    }

    /// Starts one that has ended, or restarts one.
    fn again(&mut self, random: &mut Random) -> Option<&'static str> {
        let n = self.pick(random, |container| container.state != State::Paused)?;
        let command = if self.churning[n].state == State::Ended { "start" } else { "restart" };
        self.engine.docker(&[command, &self.churning[n].id]);
        let mut container = self.churning.swap_remove(n);
        container.state = State::Running;
        container.history.push(command);
        self.learn(&mut container);
        self.churning.push(container);
        Some("containers started again")
    }

    fn connect_or_disconnect(&mut self, random: &mut Random) -> Option<&'static str> {
        let n = self.pick(random, |container| container.state == State::Running)?;
        let mut container = self.churning.swap_remove(n);
        let other = NETWORKS.into_iter().find(|network| *network != container.home)?;
        let command = if container.is_on_both { "disconnect" } else { "connect" };
        self.engine.docker(&["network", command, other, &container.id]);
        container.is_on_both = !container.is_on_both;
        container.history.push(command);
        self.learn(&mut container);
        let is_on_both = container.is_on_both;
        self.churning.push(container);
        Some(if is_on_both { "connected to a second network" } else { "disconnected from it" })
    }

    fn rename(&mut self, random: &mut Random) -> Option<&'static str> {
        let n = self.pick(random, |_| true)?;
        self.next += 1;
        let name = format!("r{}", self.next);
        self.engine.docker(&["rename", &self.churning[n].id, &name]);
        self.churning[n].name = name;
        Some("renamed")
    }

    fn pause_or_unpause(&mut self, random: &mut Random) -> Option<&'static str> {
        let n = self.pick(random, |container| container.state != State::Ended)?;
        let container = &mut self.churning[n];
        let (command, state) = match container.state {
            State::Paused => ("unpause", State::Running),
            _ => ("pause", State::Paused),
        };
        let output = self.engine.try_docker(&[command, &container.id]);
        let said = String::from_utf8_lossy(&output.stderr);
        if said.contains("unable to freeze") {
            // By cgroups of version 1, runc gives up when processes are made faster than it looks.
            return Some("pauses that runc gave up");
        }
        assert!(output.status.success(), "{command} {}: {said}", container.label());
        container.state = state;
        container.history.push(command);
        Some("paused or unpaused")
    }

    fn network(&mut self) -> Option<&'static str> {
        self.engine.docker(&["network", "create", "passing"]);
        self.engine.docker(&["network", "rm", "passing"]);
        Some("networks made and removed")
    }

    fn engine_anew(&mut self, random: &mut Random) -> Option<&'static str> {
        if random.percent(50) {
            self.engine.stop();
        } else {
            self.engine.kill();
        }
        self.engine.start();
        self.churning.iter_mut().for_each(|container| container.history.push("engine anew"));
        Some("engine stopped or killed, and started")
    }
}
