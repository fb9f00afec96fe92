//! Userspace's hot code alone: `cargo bench --package netobs`. With privileges also reading what the programs have
//! counted, which needs their maps.

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant, SystemTime},
};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use netobs::{
    ebpf::{Attach as _, AttachMode, EventOptions, Observer, Options},
    model::{
        ContainerInfo, ContainerState, FlowCount, FlowEnd, FlowRecord, InnerLink, InterfaceInfo,
        InterfaceKey, InterfaceKind, KernelStats, Owner, Place, Sample, State, Update, flow::FlowOptions,
    },
    output::prometheus,
};
use netobs_common::Counters;

const CONTAINERS: u32 = 1000;
const FLOWS: u32 = 100_000;

/// So many containers with an interface each, and flows of theirs.
struct World {
    state: State,
    now: Instant,
}

fn key(n: u32) -> InterfaceKey {
    InterfaceKey(u64::from(n))
}

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a4e_0000 + n).into()
}

impl World {
    fn new() -> Self {
        let options = FlowOptions { max_flows: FLOWS as usize * 2, ..FlowOptions::default() };
        let mut state = State::new("auto", Duration::from_secs(300)).with_flows(options);
        let now = Instant::now();
        for n in 0..CONTAINERS {
            let id = format!("{n:064x}");
            let info = ContainerInfo {
                id: id.clone(),
                name: format!("container-{n}"),
                state: ContainerState::Running,
                engine: "docker".to_owned(),
                ..ContainerInfo::default()
            };
            state.apply(Update::Container(info), now);
            let inner = InnerLink { ifindex: 2, addresses: vec![address(n)], ..InnerLink::default() };
            let interface = InterfaceInfo {
                key: key(n),
                ifindex: n + 10,
                name: format!("veth{n}"),
                kind: InterfaceKind::Veth,
                place: Place::Host,
                master: None,
                peer_ifindex: Some(2),
                peer_nsid: Some(n.cast_signed()),
            };
            let (owner, kernel) = (Some(Owner { container: id, inner }), KernelStats::default());
            state.apply(Update::Attached { interface, owner, baseline: None, kernel, latency: None }, now);
        }
        Self { state, now }
    }

    fn samples(&self) -> Update {
        let mut counters = Counters::ZERO;
        (counters.class[0].packets, counters.class[0].bytes) = (1000, 64_000);
        let sample =
            |n| Sample { key: key(n), ingress: counters, egress: counters, senders: None, kernel: None };
        Update::Samples((0..CONTAINERS).map(sample).collect())
    }

    /// One record of each flow, from one container to another.
    fn flows(&self) -> Vec<FlowRecord> {
        let count = FlowCount { packets: 10, bytes: 640, wire_packets: 10, wire_bytes: 640 };
        let record = |n| FlowRecord {
            interface: key(n % CONTAINERS),
            local: FlowEnd { address: address(n % CONTAINERS), port: (1024 + n / CONTAINERS) as u16 },
            remote: FlowEnd { address: address((n + 1) % CONTAINERS), port: 80 },
            protocol: 17,
            rx: FlowCount::default(),
            tx: count,
            rx_flags: 0,
            tx_flags: 0,
            rx_zero_windows: 0,
            tx_zero_windows: 0,
            first: self.now,
            last: self.now,
        };
        (0..FLOWS).map(record).collect()
    }
}

fn drain(criterion: &mut Criterion) {
    let options = Options {
        max_interfaces: 1024,
        mode: AttachMode::Auto,
        max_flows: 131_072,
        events: EventOptions { dns: false, arp: false, ..EventOptions::default() },
        log: false,
    };
    let mut observer = match Observer::load(options) {
        Ok(observer) => observer,
        Err(error) => return eprintln!("SKIP drain: {error}"),
    };
    // No flow: what looking through all cells takes.
    criterion.bench_function("drain/131,072 free cells", |bencher| {
        bencher.iter(|| {
            observer.begin_flows();
            while let Some(records) = observer.finish_flows() {
                black_box(records);
            }
        });
    });
}

fn apply(criterion: &mut Criterion) {
    let mut world = World::new();
    let now = world.now;
    criterion.bench_function("apply/counters of 1,000 interfaces", |bencher| {
        let samples = world.samples();
        bencher.iter_batched(
            || samples.clone(),
            |samples| world.state.apply(samples, now),
            BatchSize::LargeInput,
        );
    });
    criterion.bench_function("apply/100,000 new flows", |bencher| {
        bencher.iter_batched(
            || {
                let world = World::new();
                let flows = Update::Flows(world.flows());
                (world, flows)
            },
            |(mut world, flows)| {
                world.state.apply(flows, now);
                world
            },
            BatchSize::PerIteration,
        );
    });
    let flows = world.flows();
    world.state.apply(Update::Flows(flows.clone()), now);
    criterion.bench_function("apply/100,000 known flows", |bencher| {
        bencher.iter_batched(
            || Update::Flows(flows.clone()),
            |flows| world.state.apply(flows, now),
            BatchSize::PerIteration,
        );
    });
}

fn snapshot(criterion: &mut Criterion) {
    let mut world = World::new();
    let now = world.now;
    world.state.apply(world.samples(), now);
    world.state.apply(Update::Flows(world.flows()), now);
    let time = SystemTime::UNIX_EPOCH;
    criterion.bench_function("snapshot/1,000 containers, 100,000 flows", |bencher| {
        bencher.iter(|| world.state.snapshot(now, time));
    });
    let snapshot = world.state.snapshot(now, time);
    criterion.bench_function("encode/metrics of 1,000 containers", |bencher| {
        bencher.iter(|| prometheus::encode(&snapshot).expect("text"));
    });
    criterion.bench_function("snapshot/conversations of 100,000 flows", |bencher| {
        bencher.iter(|| world.state.conversations(now, time, |_| true, 1000));
    });
}

criterion_group! {
    name = hot;
    config = Criterion::default().sample_size(10).measurement_time(Duration::from_secs(3));
    targets = drain, apply, snapshot
}
criterion_main!(hot);
