//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::ebpf::AttachMode;

#[derive(Debug, Parser)]
#[command(name = "netobs", version, about = "See what each container does on the network")]
#[command(propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Live view of containers and networks; a table, JSON or CSV when piped or asked
    Watch(WatchArgs),
    /// Run in the background: Prometheus endpoint, JSON snapshot, health
    Agent(AgentArgs),
    /// Engines, networks, interfaces, namespaces, containers and ports, and how they hang together
    Topology(TopologyArgs),
    /// Packets that the kernel drops: why, where, from which container to which; until interrupted
    Drops(DropsCommand),
    /// Check kernel, privileges and engines, and say what to do
    Doctor(DoctorArgs),
}

/// What to observe and how.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Observing")]
pub struct ObserveArgs {
    /// Container engine socket (unix:///path); may be repeated [default: $DOCKER_HOST, Docker, Podman]
    #[arg(long = "engine", value_name = "SOCKET", global = false)]
    pub engines: Vec<String>,
    /// Ask no engine; names come from /proc alone
    #[arg(long, conflicts_with = "engines")]
    pub no_engine: bool,
    /// How to attach to interfaces
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
    /// Interfaces and cgroups that can be observed at a time; each takes 1 KiB of kernel memory per CPU
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub max_interfaces: u32,
    /// Let the kernel programs log what is odd about packets (NETOBS_LOG=debug shows it)
    #[arg(long)]
    pub log_programs: bool,
    /// How long an ended container is still shown
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub grace: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    /// A table with image, project, network driver, interfaces and published ports
    Wide,
    Json,
    Csv,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Only these containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// Make a small world with real traffic and watch that; needs no container
    #[arg(long)]
    pub demo: bool,
    /// Print instead of showing the full-screen view [default when piped: table]
    #[arg(short, long, value_enum)]
    pub output: Option<Output>,
    /// Print once and end
    #[arg(long, conflicts_with = "count")]
    pub once: bool,
    /// Time between two samples
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Print so many times and end
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Show what matches: name=, id=, network=, state=, project=, service=, or a word; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Address to serve on
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9810", env = "NETOBS_LISTEN")]
    pub listen: SocketAddr,
    /// Do not look for dropped packets
    #[arg(long)]
    pub no_drops: bool,
    #[command(flatten)]
    pub drops: DropsArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// How dropped packets are looked for.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Dropped packets")]
pub struct DropsArgs {
    /// Kinds of dropped packets that can be told apart between two readings; each takes some 300 bytes of kernel
    /// memory
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub max_drop_kinds: u32,
    /// The kernel's type information
    #[arg(long, value_name = "FILE", default_value = crate::ebpf::drops::BTF_FILE, hide = true)]
    pub btf: PathBuf,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum DropsOutput {
    #[default]
    Table,
    Json,
    Csv,
}

#[derive(Debug, Args)]
pub struct DropsCommand {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: DropsOutput,
    /// Collect for so long, print once and end
    #[arg(long = "for", value_name = "DURATION", value_parser = interval, conflicts_with_all = ["interval", "count"])]
    pub period: Option<Duration>,
    /// Time between two looks; printed is what was dropped in between
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Print so many times and end
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Ordinary ends of a packet's life, too
    #[arg(long)]
    pub all: bool,
    /// Show what is from or to a matching container: name=, id=, network=, state=, project=, service=, or a
    /// word; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub drops: DropsArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum TopologyOutput {
    #[default]
    Tree,
    /// For Graphviz: `| dot -Tsvg`
    Dot,
    /// For Markdown that draws flowcharts
    Mermaid,
    Json,
}

#[derive(Debug, Args)]
pub struct TopologyArgs {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: TopologyOutput,
    /// Print it, then what changes: lines after a tree, a document a line as JSON
    #[arg(long)]
    pub watch: bool,
    /// Time between two looks
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = interval, requires = "watch")]
    pub interval: Duration,
    /// Show what matches: name=, id=, network=, state=, project=, service=, or a word; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Container engine socket (unix:///path); may be repeated
    #[arg(long = "engine", value_name = "SOCKET")]
    pub engines: Vec<String>,
    /// Where the host's /proc is
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    pub proc_root: PathBuf,
}

/// `500ms`, `2s`, `5m`, `1h`, or a number of seconds.
fn duration(text: &str) -> Result<Duration, String> {
    if let Ok(seconds) = text.parse::<f64>() {
        return Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string());
    }
    humantime::parse_duration(text).map_err(|error| format!("{error}; examples: 500ms, 2s, 5m"))
}

/// A duration that can be waited for: nothing is shown more often than 20 times a second.
fn interval(text: &str) -> Result<Duration, String> {
    const SHORTEST: Duration = Duration::from_millis(50);
    match duration(text)? {
        interval if interval < SHORTEST => Err("must be at least 50ms".to_owned()),
        interval => Ok(interval),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals() {
        assert_eq!(interval("2"), Ok(Duration::from_secs(2)));
        assert_eq!(interval("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["0", "0s", "49ms", "-1", "abc", ""] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
