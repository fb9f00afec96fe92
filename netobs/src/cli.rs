//! The command line.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use netobs_common::Hook;

use crate::ebpf::{AttachMode, pins::PIN_FOLDER};

/// Where `netobs agent` serves if not told otherwise.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9810);

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
    /// Who talks to whom: containers, addresses, ports, packets and bytes both ways
    Flows(FlowsArgs),
    /// Engines, networks, interfaces, namespaces, containers and ports, and how they hang together
    Topology(TopologyArgs),
    /// Packets as they pass, with container names: text, JSON lines or pcapng
    Trace(TraceArgs),
    /// Packets that the kernel drops: why, where, from which container to which; until interrupted
    Drops(DropsCommand),
    /// Check kernel, privileges and engines, and say what to do
    Doctor(DoctorArgs),
    /// Remove what killed runs have left on this host, and nothing else
    Cleanup(CleanupArgs),
    /// Shell completions and man pages, for packages
    #[command(hide = true)]
    Generate(GenerateArgs),
}

/// Where containers are found, and how their interfaces are attached to.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Observing")]
pub struct FindArgs {
    /// Container engine socket (unix:///path); may be repeated [default, without --cri: $DOCKER_HOST, Docker, Podman]
    #[arg(long = "engine", value_name = "SOCKET", global = false)]
    pub engines: Vec<String>,
    /// Socket of a Kubernetes container runtime, containerd or CRI-O; may be repeated [default, without --engine: those
    /// that are found]
    #[arg(long = "cri", value_name = "SOCKET", global = false)]
    pub runtimes: Vec<String>,
    /// Ask no engine; names come from /proc alone
    #[arg(long, conflicts_with_all = ["engines", "runtimes"])]
    pub no_engine: bool,
    /// How to attach to interfaces
    #[arg(long, value_enum, default_value_t)]
    pub attach: AttachMode,
    /// Interfaces and cgroups that can be observed at a time; each takes 1 KiB of kernel memory per CPU
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=i64::from(Hook::SLOTS)))]
    pub max_interfaces: u32,
}

/// What to observe and how.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Observing")]
pub struct ObserveArgs {
    #[command(flatten)]
    pub find: FindArgs,
    /// Flows that are counted apart at a time, about; each takes 150 bytes of kernel memory; 0: no flows
    #[arg(long, value_name = "N", default_value_t = 131_072, value_parser = clap::value_parser!(u32).range(..=16_777_216))]
    pub max_flows: u32,
    /// How often flows are read from the kernel and those without packets taken back
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = interval)]
    pub flow_interval: Duration,
    /// A flow without a packet for so long is over
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = interval)]
    pub flow_idle: Duration,
    /// Edges between containers that are kept apart; what is over is added up as other
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub max_edges: usize,
    /// Addresses (CIDR) that are the cluster's; may be repeated
    #[arg(long = "cluster-cidr", value_name = "CIDR", value_parser = cidr)]
    pub cluster_cidrs: Vec<String>,
    /// Let the kernel programs log what is odd about packets (NETOBS_LOG=debug shows it)
    #[arg(long)]
    pub log_programs: bool,
    /// How long an ended container is still shown
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub grace: Duration,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
}

/// What is asked of the API of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct KubernetesArgs {
    /// Do not ask the API of Kubernetes, which is asked in pods: for owners of this node's pods, and for services
    #[arg(long)]
    pub no_kubernetes: bool,
    /// The node's name in Kubernetes
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Ask the API by the current context of this file, and not as a pod does
    #[arg(long, value_name = "FILE", conflicts_with = "no_kubernetes")]
    pub kubeconfig: Option<PathBuf>,
}

/// How TCP connections are looked at.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "Observing")]
pub struct TcpArgs {
    /// Do not look how TCP connections fare
    #[arg(long)]
    pub no_tcp: bool,
}

/// What is told of single packets.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
#[command(next_help_heading = "DNS and ARP")]
pub struct EventsArgs {
    /// Do not look at DNS messages
    #[arg(long)]
    pub no_dns: bool,
    /// Keep the names that containers ask for: 1,000 of all containers together
    #[arg(long, conflicts_with = "no_dns")]
    pub dns_names: bool,
    /// Do not look at ARP packets
    #[arg(long)]
    pub no_arp: bool,
    /// Memory for DNS and ARP packets on their way from the kernel: 4k to 64M, rounded up to a power of two
    #[arg(long, value_name = "SIZE", default_value = "512k", value_parser = packet::event_ring_size)]
    pub event_buffer: u32,
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
    /// Observe even where an agent runs; any option on how to observe does so too
    #[arg(long)]
    pub standalone: bool,
    /// Time between two samples
    #[arg(short, long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Print so many times and end
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Show what matches: name=, id=, network=, state=, project=, service=, namespace=, pod=,
    /// or a word; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub drops: DropsArgs,
    #[command(flatten)]
    pub tcp: TcpArgs,
    #[command(flatten)]
    pub events: EventsArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum FlowsOutput {
    #[default]
    Table,
    Json,
    Csv,
}

#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Only flows of these containers, by name or ID
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// How to print them
    #[arg(short, long, value_enum, default_value_t)]
    pub output: FlowsOutput,
    /// How long is counted before they are printed, and between two times
    #[arg(short, long, value_name = "DURATION", default_value = "2s", value_parser = interval)]
    pub interval: Duration,
    /// Print so many times and end; each time all since the start that are not over long ago
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Flows that are printed at most, those with the most bytes
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub limit: usize,
    #[command(flatten)]
    pub tcp: TcpArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Debug, Args)]
pub struct AgentArgs {
    /// Address to serve on
    #[arg(long, value_name = "ADDRESS", default_value_t = LISTEN, env = "NETOBS_LISTEN")]
    pub listen: SocketAddr,
    /// TLS and basic authentication, in the form of Prometheus's exporters (which call it --web.config.file)
    #[arg(long, alias = "web.config.file", value_name = "FILE", env = "NETOBS_WEB_CONFIG_FILE")]
    pub web_config_file: Option<PathBuf>,
    /// Go on counting when the agent ends, by whatever means, and with what an earlier one has counted
    #[arg(long)]
    pub pin: bool,
    /// Where in a BPF filesystem what goes on is kept
    #[arg(long, value_name = "FOLDER", default_value = PIN_FOLDER)]
    pub pin_folder: PathBuf,
    /// Do not look for dropped packets
    #[arg(long)]
    pub no_drops: bool,
    #[command(flatten)]
    pub otlp: OtlpArgs,
    #[command(flatten)]
    pub drops: DropsArgs,
    #[command(flatten)]
    pub tcp: TcpArgs,
    #[command(flatten)]
    pub events: EventsArgs,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

/// What is sent to an OpenTelemetry collector.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "OTLP")]
pub struct OtlpArgs {
    /// Send metrics to this collector, by HTTP (/v1/metrics is added) [default: $OTEL_EXPORTER_OTLP_ENDPOINT, else none]
    #[arg(long, value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Send flows, too, as log records (/v1/logs)
    #[arg(long)]
    pub otlp_flows: bool,
    /// How often metrics are sent [default: $OTEL_METRIC_EXPORT_INTERVAL in ms, else 60s]
    #[arg(long, value_name = "DURATION", value_parser = interval)]
    pub otlp_interval: Option<Duration>,
}

/// How dropped packets are looked for.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
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
    /// Show what is from or to a matching container: name=, id=, network=, state=, project=, service=,
    /// namespace=, pod=, or a word; may be repeated
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
    /// Show what matches: name=, id=, network=, state=, project=, service=, namespace=, pod=,
    /// or a word; may be repeated
    #[arg(short, long, value_name = "FILTER")]
    pub filter: Vec<String>,
    #[command(flatten)]
    pub observe: ObserveArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceOutput {
    Text,
    /// An object a line
    Json,
    /// For Wireshark and tshark
    Pcapng,
}

#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Only these containers, by name or ID; waits for those that there are not yet
    #[arg(value_name = "CONTAINER")]
    pub containers: Vec<String>,
    /// Only containers and bridges of this network; may be repeated
    #[arg(long, value_name = "NETWORK")]
    pub network: Vec<String>,
    /// Only packets from or to this address or network (10.0.0.0/8), of ARP sender or target
    #[arg(long, value_name = "ADDRESS", value_parser = packet::host)]
    pub host: Option<packet::Host>,
    /// Only packets of this protocol: tcp, udp, icmp, icmpv6, sctp or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = packet::protocol)]
    pub proto: Option<u8>,
    /// Only packets from or to this TCP, UDP or SCTP port
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    pub port: Option<u16>,
    /// Only frames of this type, or with a tag of it: ipv4, ipv6, arp, vlan, qinq or a number like 0x88cc
    #[arg(long, value_name = "TYPE", value_parser = packet::ethertype)]
    pub ethertype: Option<u16>,
    /// Packets that the kernel drops, too: why, where, and whose
    #[arg(long)]
    pub drops: bool,
    /// With --drops, ordinary ends of a packet's life, too
    #[arg(long, requires = "drops")]
    pub all_drops: bool,
    /// How to print them [default: text; pcapng with --write]
    #[arg(short, long, value_enum)]
    pub output: Option<TraceOutput>,
    /// Write to this file, or to the standard output (-), as pcapng unless told otherwise
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,
    /// Bytes of each packet to capture, up to 65535 [default: 128; 65535 for pcapng]
    #[arg(short, long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=65535))]
    pub snaplen: Option<u32>,
    /// Show addresses without the names of containers
    #[arg(short, long)]
    pub numeric: bool,
    /// End after so many packets
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// End after this time
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub duration: Option<Duration>,
    /// End before the output would be larger: 500k, 10M, 2G
    #[arg(long, value_name = "SIZE", value_parser = packet::size)]
    pub max_bytes: Option<u64>,
    /// Capture so many packets a second at most; the rest is counted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: Option<u32>,
    /// Memory for packets on their way from the kernel: 128k to 1G, rounded up to a power of two
    #[arg(long, value_name = "SIZE", default_value = "8M", value_parser = packet::ring_size)]
    pub buffer_size: u32,
    /// The kernel's type information
    #[arg(long, value_name = "FILE", default_value = crate::ebpf::drops::BTF_FILE, hide = true)]
    pub btf: PathBuf,
    #[command(flatten)]
    pub find: FindArgs,
}

/// Values that say something of packets.
pub mod packet {
    use std::net::IpAddr;

    use crate::ebpf::{MIN_EVENT_BYTES, MIN_RING_BYTES};

    /// An address, and how many of its bits count.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Host {
        pub address: IpAddr,
        pub prefix: u8,
    }

    const MAX_RING_BYTES: u64 = 1 << 30;
    const MAX_EVENT_BYTES: u64 = 64 << 20;

    pub fn host(text: &str) -> Result<Host, String> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| "not an IP address".to_owned())?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("the prefix is a number up to {bits}"))?,
        };
        Ok(Host { address, prefix })
    }

    pub fn protocol(text: &str) -> Result<u8, String> {
        match text.to_ascii_lowercase().as_str() {
            "icmp" => Ok(1),
            "tcp" => Ok(6),
            "udp" => Ok(17),
            "icmpv6" | "icmp6" => Ok(58),
            "sctp" => Ok(132),
            number => {
                number.parse().map_err(|_| "tcp, udp, icmp, icmpv6, sctp or a number up to 255".to_owned())
            }
        }
    }

    pub fn ethertype(text: &str) -> Result<u16, String> {
        let wrong = || "ipv4, ipv6, arp, vlan, qinq or a number from 0x0600 on, like 0x88cc".to_owned();
        let text = text.to_ascii_lowercase();
        let number = match text.as_str() {
            "ipv4" | "ip" => 0x0800,
            "arp" => 0x0806,
            "vlan" => 0x8100,
            "ipv6" | "ip6" => 0x86dd,
            "qinq" => 0x88a8,
            other => match other.strip_prefix("0x") {
                Some(digits) => u16::from_str_radix(digits, 16).map_err(|_| wrong())?,
                None => other.parse().map_err(|_| wrong())?,
            },
        };
        if number >= 0x0600 { Ok(number) } else { Err(wrong()) }
    }

    /// Bytes: a number, with k, M or G times 1024, its square or its cube.
    pub fn size(text: &str) -> Result<u64, String> {
        let wrong = || "a number of bytes, or like 500k, 10M, 2G".to_owned();
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let factor: u64 = match text[digits.len()..].to_ascii_lowercase().trim_end_matches("ib") {
            "" => 1,
            "k" => 1 << 10,
            "m" => 1 << 20,
            "g" => 1 << 30,
            _ => return Err(wrong()),
        };
        digits
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(factor))
            .filter(|size| *size > 0)
            .ok_or_else(wrong)
    }

    pub fn ring_size(text: &str) -> Result<u32, String> {
        let size = size(text)?;
        if !(u64::from(MIN_RING_BYTES)..=MAX_RING_BYTES).contains(&size) {
            return Err("from 128k to 1G".to_owned());
        }
        u32::try_from(size.next_power_of_two()).map_err(|error| error.to_string())
    }

    pub fn event_ring_size(text: &str) -> Result<u32, String> {
        let size = size(text)?;
        if !(u64::from(MIN_EVENT_BYTES)..=MAX_EVENT_BYTES).contains(&size) {
            return Err("from 4k to 64M".to_owned());
        }
        u32::try_from(size.next_power_of_two()).map_err(|error| error.to_string())
    }
}

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Say what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Where `netobs agent --pin` keeps what goes on
    #[arg(long, value_name = "FOLDER", default_value = PIN_FOLDER)]
    pub pin_folder: PathBuf,
    /// Where the host's /proc is
    #[arg(long, value_name = "DIR", default_value = "/proc", hide = true)]
    pub proc_root: PathBuf,
}

#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(subcommand)]
    pub what: Generate,
}

#[derive(Debug, Subcommand)]
pub enum Generate {
    /// Print completions for a shell
    Completions { shell: Shell },
    /// Write a man page of each command into a folder
    Man { folder: PathBuf },
}

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Where a `netobs agent` serves without TLS and passwords, which is asked how it fares [default: the one that runs
    /// here, by its local socket; else 127.0.0.1:9810]
    #[arg(long, value_name = "ADDRESS")]
    pub agent: Option<SocketAddr>,
    /// Container engine socket (unix:///path); may be repeated
    #[arg(long = "engine", value_name = "SOCKET")]
    pub engines: Vec<String>,
    /// Socket of a Kubernetes container runtime, containerd or CRI-O; may be repeated
    #[arg(long = "cri", value_name = "SOCKET")]
    pub runtimes: Vec<String>,
    #[command(flatten)]
    pub kubernetes: KubernetesArgs,
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

/// `10.0.0.0/8`, `fd00::/8`.
fn cidr(text: &str) -> Result<String, String> {
    let valid = text.split_once('/').is_some_and(|(address, length)| {
        let bits = match address.parse() {
            Ok(std::net::IpAddr::V4(_)) => 32,
            Ok(std::net::IpAddr::V6(_)) => 128,
            Err(_) => return false,
        };
        length.parse::<u32>().is_ok_and(|length| length <= bits)
    });
    if valid { Ok(text.to_owned()) } else { Err("not a CIDR like 10.0.0.0/8 or fd00::/8".to_owned()) }
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
    fn as_many_interfaces_as_class_ids() {
        let parsed = |most: u32| {
            Cli::try_parse_from(["netobs", "agent", "--max-interfaces", &most.to_string()]).is_ok()
        };
        assert!(parsed(1) && parsed(Hook::SLOTS) && !parsed(0) && !parsed(Hook::SLOTS + 1));
    }

    #[test]
    fn what_is_said_of_packets() {
        let host = |text| packet::host(text).map(|host| (host.address.to_string(), host.prefix));
        assert_eq!(host("10.0.0.1"), Ok(("10.0.0.1".to_owned(), 32)));
        assert_eq!(host("fd77::/16"), Ok(("fd77::".to_owned(), 16)));
        for wrong in ["10.0.0", "10.0.0.0/33", "web", "::/129", "10.0.0.0/", ""] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["TCP", "icmp6", "47"].map(packet::protocol), [Ok(6), Ok(58), Ok(47)]);
        assert_eq!(["arp", "0x88CC", "2048"].map(packet::ethertype), [Ok(0x806), Ok(0x88cc), Ok(0x800)]);
        assert!(packet::protocol("256").is_err() && packet::ethertype("0x5ff").is_err());
        assert_eq!(
            ["1", "500k", "10M", "2GiB"].map(packet::size),
            [Ok(1), Ok(512_000), Ok(10 << 20), Ok(2 << 30)]
        );
        for wrong in ["", "0", "k", "1x", "-1", "1 k", "99999999999G"] {
            assert!(packet::size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(
            ["128k", "200k", "1G"].map(packet::ring_size),
            [Ok(128 << 10), Ok(256 << 10), Ok(1 << 30)]
        );
        assert!(packet::ring_size("127k").is_err() && packet::ring_size("2G").is_err());
    }

    #[test]
    fn arguments_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}
