//! What netobs costs, measured beside an empty program in the same run. `cargo xtask bench` builds and runs it.

mod agent;
mod attach;
mod document;
mod live;
mod load;
mod nodes;
mod program;
mod rate;
mod scrape;
mod start;
mod stored;
mod userspace;

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd as _, OwnedFd},
    path::PathBuf,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use document::{Machine, Part, Parts};
use netobs_tests::{
    bridged::Bridged,
    http, kernel,
    program::{Agent, LIMIT},
    test_run::{attach_tcx, empty_program},
    wait_for,
};

#[derive(Parser)]
#[command(name = "netobs-bench", about = "Measures what netobs costs")]
struct Cli {
    /// Only these parts
    #[arg(long = "part", value_enum)]
    parts: Vec<Name>,
    /// Few and short rounds: whether it works, not what it costs. Prints, and changes no file
    #[arg(long)]
    quick: bool,
    /// Change no file
    #[arg(long)]
    print: bool,
    /// The repository
    #[arg(long, default_value = ".")]
    root: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// ns a run of the programs by BPF_PROG_TEST_RUN
    Program,
    /// ns a run on live traffic, by the kernel's run statistics
    Live,
    /// Packets and bytes a second with and without
    Rate,
    /// CPU time and memory of the agent
    Agent,
    /// Scrapes of /metrics
    Scrape,
    /// Attaching to interfaces
    Attach,
    /// From the start to the first answer
    Start,
    /// Series, bytes and memory of nodes with 30, 110 and 500 pods, and what Prometheus needs for them
    Nodes,
    /// What `cargo bench --package netobs` has measured
    Userspace,
}

/// How often, and how long, is measured.
#[derive(Clone, Copy, Debug)]
struct Effort {
    quick: bool,
}

impl Effort {
    const fn rounds(self, full: usize) -> usize {
        if self.quick { 1 } else { full }
    }

    fn time(self, full: Duration) -> Duration {
        if self.quick { full / 5 } else { full }
    }
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    let effort = Effort { quick: cli.quick };
    let names = if cli.parts.is_empty() { Name::value_variants() } else { &cli.parts };
    let mut measured = Parts::new();
    for &name in names {
        let busy = document::busy()?;
        let start = Instant::now();
        let (tables, targets) = match name {
            Name::Program => program::measure(effort),
            Name::Live => live::measure(effort),
            Name::Rate => rate::measure(effort),
            Name::Agent => agent::measure(effort),
            Name::Scrape => scrape::measure(effort),
            Name::Attach => attach::measure(effort),
            Name::Start => start::measure(effort),
            Name::Nodes => nodes::measure(effort)?,
            Name::Userspace => userspace::measure(&cli.root)?,
        };
        let part = Part { machine: Machine::this()?, busy, tables, targets };
        println!("## {}\n\n{}", text(name), part.markdown());
        for target in &part.targets {
            let met = if target.is_met { "met" } else { "missed" };
            println!("{}: {}, target {}: {met}", target.what, target.measured, target.target);
        }
        println!("({:.0} s)\n", start.elapsed().as_secs_f64());
        measured.insert(text(name), part);
    }
    if !cli.quick && !cli.print {
        let order: Vec<String> = Name::value_variants().iter().map(|name| text(*name)).collect();
        document::write(&cli.root, measured, &order)?;
    }
    Ok(())
}

fn text(name: Name) -> String {
    name.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// Two containers on a bridge; all loads go from the first to the second.
fn world() -> Bridged {
    let world = Bridged::new("br-bench", "10.78.0", [10, 11]);
    for (n, other) in [(0, 1), (1, 0)] {
        // Nothing but the load passes.
        let mac = kernel::mac(world.netns(other), "eth0");
        world
            .netns(n)
            .sh(&format!("ip neigh replace {} lladdr {mac} dev eth0 nud permanent", ADDRESSES[other]));
    }
    world
}

/// The same beside it, which no agent finds: for what is measured in turns with one.
fn unseen() -> Bridged {
    let world = world();
    world.containers.iter().for_each(netobs_tests::pretend::Pretend::hide);
    world
}

/// An empty program at both hooks of both veths.
fn attach_empty(world: &Bridged) -> Vec<OwnedFd> {
    let program = empty_program().expect("load an empty program");
    world.host.run(move || {
        let mut links = Vec::new();
        for name in ["veth0", "veth1"] {
            let index = nix::net::if_::if_nametoindex(name).expect("its index");
            for ingress in [true, false] {
                links.push(attach_tcx(program.as_fd(), index, ingress).expect("attach"));
            }
        }
        links.push(program);
        links
    })
}

const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 78, 0, 10), Ipv4Addr::new(10, 78, 0, 11)];

const fn datagrams(flows: u32, a_second: Option<u32>) -> load::Datagrams {
    load::Datagrams { from: ADDRESSES[0], to: ADDRESSES[1], flows, first: 0, a_second }
}

/// An agent that has found both containers.
fn agent(world: &Bridged, options: &[&str]) -> Agent {
    let agent = Agent::start_in(Some(&world.host), &[&["--no-engine"], options].concat());
    wait_for("both containers", LIMIT, || {
        let text = metrics(world, &agent)?;
        let known = |name: &str| text.contains(&format!("netobs_container_info{{id=\"{name}\""));
        if known(world.name(0)) && known(world.name(1)) { Ok(()) } else { Err("not yet".to_owned()) }
    });
    agent
}

fn metrics(world: &Bridged, agent: &Agent) -> Result<String, String> {
    let port = agent.port;
    let answer = world.host.run(move || http::get(port, "/metrics"));
    answer.map(|(_, body)| body).map_err(|error| error.to_string())
}
