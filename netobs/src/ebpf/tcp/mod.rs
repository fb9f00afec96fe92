//! How TCP connections fare: an object of its own, loaded where that is asked for.

pub(crate) mod layout;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::{IpAddr, Ipv6Addr},
    os::{fd::AsFd as _, unix::fs::MetadataExt as _},
    path::PathBuf,
    sync::atomic::Ordering,
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Map, MapData, MapError, RingBuf},
    programs::{ProgramError, RawTracePoint},
};
use netobs_common::tcp::{TcpCount, TcpEvent, TcpKey, TcpLayout, TcpTotals, cell, event_flag};

use super::{
    batch::Plain,
    btf::{Btf, BtfError},
    first_line, left_out,
    mapping::Mapping,
    table::{Amount, Table},
};
use crate::model::{
    FlowEnd,
    snapshot::by_name,
    tcp::{TcpAmount, TcpConnection, TcpNamespace, TcpOutcome, TcpSample, TcpSubject, feature},
};

/// Built from `netobs-ebpf` by `cargo xtask ebpf` and committed; `cargo xtask ebpf --check` proves it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/tcp.bpf.o");

/// What is counted apart between two readings: some twenty for each namespace that has connections then.
const MAX_COUNTS: u32 = 8192;

/// Connects that wait for an answer at a time.
const MAX_STARTS: u32 = 8192;

/// Room for 14,000 events of single connections between two readings; a power of two pages.
const RING_BYTES: u32 = 1 << 20;

#[derive(Clone, Debug)]
pub struct TcpOptions {
    /// Tell of single connections, too.
    pub flows: bool,
    /// The kernel's type information.
    pub btf: PathBuf,
}

/// What can be had or not, each by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Handshakes, round-trip times, connects that fail.
    Connections,
    Retransmits,
    Resets,
}

impl Feature {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => feature::CONNECTIONS,
            Self::Retransmits => feature::RETRANSMITS,
            Self::Resets => feature::RESETS,
        }
    }
}

/// Each program, its tracepoint, and what needs it.
const PROGRAMS: [(&str, &str, Feature); 5] = [
    ("netobs_tcp_state", "inet_sock_set_state", Feature::Connections),
    ("netobs_tcp_retransmit", "tcp_retransmit_skb", Feature::Retransmits),
    ("netobs_tcp_retransmit_synack", "tcp_retransmit_synack", Feature::Retransmits),
    ("netobs_tcp_send_reset", "tcp_send_reset", Feature::Resets),
    ("netobs_tcp_receive_reset", "tcp_receive_reset", Feature::Resets),
];

#[derive(Debug, thiserror::Error)]
pub enum TcpError {
    #[error("the kernel's type information, {}: {error}", path.display())]
    BtfFile { path: PathBuf, error: io::Error },
    #[error("the kernel's type information, {}: {error}", path.display())]
    Btf { path: PathBuf, error: BtfError },
    #[error("the own network namespace: {0}")]
    Namespace(io::Error),
    #[error("load the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error("attach to the tracepoint {tracepoint}: {error}")]
    Program { tracepoint: &'static str, error: ProgramError },
    #[error("the eBPF object has no {0}; it was not built from these sources")]
    Missing(&'static str),
    #[error("map the counters into memory: {0}")]
    Mapping(io::Error),
    #[error("the ring of events: {0}")]
    Ring(#[from] MapError),
    #[error("number of CPUs: {0}")]
    Cpus(io::Error),
}

#[repr(transparent)]
#[derive(Clone, Copy)]
struct Layout(TcpLayout);
// SAFETY: plain integers without padding.
unsafe impl Pod for Layout {}

// SAFETY: integers that leave no padding between them.
unsafe impl Plain for TcpKey {}
// SAFETY: as above.
unsafe impl Plain for TcpCount {}

impl Amount for TcpCount {
    fn since(self, told: Self) -> Option<Self> {
        let count = self.count.saturating_sub(told.count);
        let sum_us = self.sum_us.saturating_sub(told.sum_us);
        (count > 0 || sum_us > 0).then_some(Self { count, sum_us })
    }
}

/// The attached programs; detached when dropped.
pub struct Tcp {
    table: Table<TcpKey, TcpCount>,
    totals: Mapping,
    cpus: usize,
    ring: RingBuf<MapData>,
    /// Counted by the programs when the table was last emptied.
    seen: u64,
    /// What cannot be had, and why.
    pub degraded: BTreeMap<Feature, String>,
    ebpf: Ebpf,
}

impl Tcp {
    /// Works in the network namespace of the calling thread: that is the host's.
    ///
    /// # Errors
    /// See [`TcpError`]; nothing is attached then.
    pub fn load(options: &TcpOptions) -> Result<Self, TcpError> {
        let path = &options.btf;
        let bytes = fs::read(path).map_err(|error| TcpError::BtfFile { path: path.clone(), error })?;
        let (layout, missing) = Btf::parse(&bytes)
            .and_then(|btf| layout::layout(&btf))
            .map_err(|error| TcpError::Btf { path: path.clone(), error })?;
        drop(bytes);
        let mut degraded: BTreeMap<Feature, String> =
            missing.into_iter().map(|(feature, error)| (feature, error.to_string())).collect();
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| TcpError::Cpus(error))?;
        let flows = options.flows && !degraded.contains_key(&Feature::Connections);
        let mut ebpf = load_object(layout, flows, cpus)?;
        let totals = map_array(&ebpf, "TOTALS", cpus * TcpTotals::WORDS)?;
        let active = map_array(&ebpf, "ACTIVE", 1)?;
        let table =
            Table::new([hash(&mut ebpf, "COUNTS_0")?, hash(&mut ebpf, "COUNTS_1")?], active, MAX_COUNTS);
        let ring = RingBuf::try_from(ebpf.take_map("EVENTS").ok_or(TcpError::Missing("EVENTS"))?)?;
        let mut first_error = None;
        for (program, tracepoint, feature) in PROGRAMS {
            if degraded.contains_key(&feature) {
                continue;
            }
            if let Err(error) = attach(&mut ebpf, program, tracepoint) {
                tracing::debug!(%error, "attach to a tracepoint of TCP");
                degraded.insert(feature, first_line(&error));
                first_error.get_or_insert(error);
            }
        }
        let features: BTreeSet<Feature> = PROGRAMS.iter().map(|(_, _, feature)| *feature).collect();
        match first_error {
            Some(error) if degraded.len() == features.len() => Err(error),
            _ => Ok(Self { table, totals, cpus, ring, seen: 0, degraded, ebpf }),
        }
    }

    /// What happened since the last call, and what was lost since the start.
    ///
    /// # Errors
    /// What `bpf(2)` says.
    pub fn read(&mut self) -> io::Result<TcpSample> {
        let [events, lost_full, lost_busy, lost_start, lost_flow, ..] = self.read_totals();
        let mut amounts = Vec::new();
        if self.table.is_due() && (events != self.seen || self.table.may_have_more()) {
            amounts = self.table.drain()?;
            self.seen = events;
        }
        let recursion = PROGRAMS.iter().map(|(program, ..)| left_out::runs(&self.ebpf, program)).sum();
        let mut connections = Vec::new();
        while let Some(event) = self.ring.next() {
            connections.extend(connection(&event));
        }
        Ok(TcpSample {
            amounts: amounts.iter().filter_map(|(key, amount)| self::amount(key, amount)).collect(),
            connections,
            lost: by_name([
                ("full", lost_full),
                ("busy", lost_busy),
                ("start", lost_start),
                ("flow", lost_flow),
                ("recursion", recursion),
            ]),
        })
    }

    fn read_totals(&self) -> [u64; TcpTotals::WORDS] {
        let mut sum = [0; TcpTotals::WORDS];
        for cpu in 0..self.cpus {
            for (sum, word) in sum.iter_mut().zip(self.totals.words(cpu * TcpTotals::WORDS, TcpTotals::WORDS))
            {
                *sum += word.load(Ordering::Relaxed);
            }
        }
        sum
    }
}

fn load_object(layout: TcpLayout, flows: bool, cpus: usize) -> Result<Ebpf, TcpError> {
    let own = fs::metadata("/proc/thread-self/ns/net").map_err(TcpError::Namespace)?.ino();
    let host_netns = u32::try_from(own).map_err(|error| TcpError::Namespace(io::Error::other(error)))?;
    let ebpf = EbpfLoader::new()
        .btf(None)
        .override_global("LAYOUT", &Layout(layout), true)
        .override_global("HOST_NETNS", &host_netns, true)
        .override_global("FLOWS", &u32::from(flows), true)
        .map_max_entries("TOTALS", u32::try_from(cpus).unwrap_or(u32::MAX))
        .map_max_entries("COUNTS_0", MAX_COUNTS)
        .map_max_entries("COUNTS_1", MAX_COUNTS)
        .map_max_entries("STARTS", MAX_STARTS)
        .map_max_entries("EVENTS", RING_BYTES)
        .load(OBJECT)?;
    Ok(ebpf)
}

fn attach(ebpf: &mut Ebpf, name: &'static str, tracepoint: &'static str) -> Result<(), TcpError> {
    let failed = |error: ProgramError| TcpError::Program { tracepoint, error };
    let program: &mut RawTracePoint =
        ebpf.program_mut(name).ok_or(TcpError::Missing(name))?.try_into().map_err(failed)?;
    program.load().map_err(failed)?;
    program.attach(tracepoint).map_err(failed)?;
    Ok(())
}

fn map_array(ebpf: &Ebpf, name: &'static str, words: usize) -> Result<Mapping, TcpError> {
    let Some(Map::Array(map)) = ebpf.map(name) else { return Err(TcpError::Missing(name)) };
    Mapping::new(map.fd().as_fd(), words).map_err(TcpError::Mapping)
}

fn hash(ebpf: &mut Ebpf, name: &'static str) -> Result<MapData, TcpError> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(map)) => Ok(map),
        _ => Err(TcpError::Missing(name)),
    }
}

fn amount(key: &TcpKey, amount: &TcpCount) -> Option<TcpAmount> {
    let (subject, bucket) = cell::parts(key.cell);
    let subject = match subject {
        cell::CONNECTED => TcpSubject::Connected,
        cell::ACCEPTED => TcpSubject::Accepted,
        cell::RTT => TcpSubject::RoundTrip,
        cell::REFUSED => TcpSubject::Refused,
        cell::TIMED_OUT => TcpSubject::TimedOut,
        cell::FAILED => TcpSubject::Failed,
        cell::GIVEN_UP => TcpSubject::GivenUp,
        cell::RETRANSMITTED => TcpSubject::Retransmitted,
        cell::RESET_SENT => TcpSubject::ResetSent,
        cell::RESET_RECEIVED => TcpSubject::ResetReceived,
        _ => return None,
    };
    Some(TcpAmount {
        namespace: TcpNamespace { inode: u64::from(key.netns), cookie: key.cookie },
        subject,
        bucket: (bucket != cell::NO_BUCKET).then_some(bucket as usize),
        count: amount.count,
        sum_us: amount.sum_us,
    })
}

/// What a record of the ring says.
pub(crate) fn connection(bytes: &[u8]) -> Option<TcpConnection> {
    if bytes.len() < size_of::<TcpEvent>() {
        return None;
    }
    // SAFETY: as many bytes as it has, of plain integers; read unaligned.
    let event = unsafe { bytes.as_ptr().cast::<TcpEvent>().read_unaligned() };
    let address = |bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
    Some(TcpConnection {
        namespace: TcpNamespace { inode: u64::from(event.netns), cookie: event.cookie },
        local: FlowEnd { address: address(event.local), port: event.local_port },
        remote: FlowEnd { address: address(event.remote), port: event.remote_port },
        begins: event.flags & event_flag::BEGINS != 0,
        ends: event.flags & event_flag::ENDS != 0,
        handshake_us: (event.handshake_us != 0).then_some(event.handshake_us),
        rtt_us: (event.rtt_us != 0).then_some(event.rtt_us),
        retransmitted: u64::from(event.retransmitted),
        outcome: outcome(event.flags),
        reset_sent: event.flags & event_flag::RESET_SENT != 0,
        reset_received: event.flags & event_flag::RESET_RECEIVED != 0,
    })
}

fn outcome(flags: u32) -> Option<TcpOutcome> {
    let outcomes = [
        (event_flag::ESTABLISHED, TcpOutcome::Established),
        (event_flag::REFUSED, TcpOutcome::Refused),
        (event_flag::TIMED_OUT, TcpOutcome::TimedOut),
        (event_flag::GIVEN_UP, TcpOutcome::GivenUp),
        (event_flag::FAILED, TcpOutcome::Failed),
    ];
    outcomes.into_iter().find(|(flag, _)| flags & flag != 0).map(|(_, outcome)| outcome)
}
