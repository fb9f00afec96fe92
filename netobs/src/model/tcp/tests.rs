use std::{
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant, SystemTime},
};

use super::*;
use crate::model::{ContainerInfo, ContainerState, Namespace, State, Update};

const INODE: u64 = 4_026_532_000;

fn connects(inode: u64, cookie: u64, count: u64) -> TcpAmount {
    TcpAmount {
        namespace: TcpNamespace { inode, cookie },
        subject: TcpSubject::Connected,
        bucket: Some(3),
        count,
        sum_us: 700 * count,
    }
}

struct World {
    state: State,
    start: Instant,
}

impl World {
    fn new() -> Self {
        Self { state: State::new("tcx", Duration::from_secs(60)), start: Instant::now() }
    }

    fn at(&self, second: u64) -> Instant {
        self.start + Duration::from_secs(second)
    }

    fn container(&mut self, second: u64, id: &str, network_mode: &str, namespace: Option<(u64, bool)>) {
        let info = ContainerInfo {
            id: id.to_owned(),
            state: ContainerState::Running,
            engine: "docker".to_owned(),
            pid: Some(1),
            network_mode: network_mode.to_owned(),
            ..ContainerInfo::default()
        };
        let now = self.at(second);
        self.state.apply(Update::Container(info), now);
        if let Some((inode, host)) = namespace {
            let namespace = Namespace { identity: (4, inode), host, ..Namespace::default() };
            self.state.apply(Update::Namespace { id: id.to_owned(), namespace }, now);
        }
    }

    fn ends(&mut self, second: u64, id: &str) {
        let now = self.at(second);
        self.state.apply(Update::Ended { id: id.to_owned() }, now);
    }

    fn tell(&mut self, second: u64, amounts: &[TcpAmount]) {
        let sample = TcpSample { amounts: amounts.to_vec(), ..TcpSample::default() };
        let now = self.at(second);
        self.state.apply(Update::Tcp(Box::new(sample)), now);
    }

    /// Connects by container; none where it is not known.
    fn connects(&mut self, second: u64) -> Vec<Option<u64>> {
        let now = self.at(second);
        self.state.expire(now);
        let snapshot = self.state.snapshot(now, SystemTime::UNIX_EPOCH);
        let of = |tcp: TcpHealth| tcp.connections.map(|connections| connections.client_handshake.all());
        snapshot.containers.iter().map(|container| container.tcp.and_then(of)).collect()
    }
}

#[test]
fn what_was_counted_waits_for_its_container() {
    let mut world = World::new();
    world.tell(0, &[connects(INODE, 7, 2), connects(INODE + 1, 8, 100)]);
    world.container(1, "a", "", None);
    assert_eq!(world.connects(1), [None]);
    world.container(2, "a", "", Some((INODE, false)));
    world.tell(3, &[connects(INODE, 7, 3)]);
    assert_eq!(world.connects(3), [Some(5)]);
}

fn ambiguous(state: &State) -> u64 {
    state.tcp_status().expect("a status").lost["ambiguous"]
}

#[test]
fn of_two_that_had_the_same_inode_number_each_has_its_own() {
    let mut world = World::new();
    world.container(0, "a", "", Some((INODE, false)));
    world.tell(1, &[connects(INODE, 7, 2)]);
    world.ends(2, "a");
    world.container(2, "b", "", Some((INODE, false)));
    // The end of the one and the beginning of the other.
    world.tell(3, &[connects(INODE, 7, 4), connects(INODE, 9, 100)]);
    assert_eq!(world.connects(3), [Some(6), Some(100)]);
    assert_eq!(ambiguous(&world.state), 0);
}

/// One that nothing was known of when it ended: only what comes later tells which of the two is there.
#[test]
fn what_may_be_anothers_waits_until_that_is_known() {
    let mut world = World::new();
    world.tell(1, &[]);
    world.container(1, "a", "", Some((INODE, false)));
    world.ends(2, "a");
    world.container(2, "b", "", Some((INODE, false)));
    world.tell(3, &[connects(INODE, 7, 4), connects(INODE, 9, 100)]);
    world.tell(4, &[]);
    assert_eq!(world.connects(4), [Some(0), Some(0)]);
    world.tell(5, &[connects(INODE, 9, 1)]);
    assert_eq!(world.connects(5), [Some(0), Some(101)]);
    assert_eq!(ambiguous(&world.state), 0);
    world.connects(63);
    assert_eq!(ambiguous(&world.state), 4, "the first's, of which that is not known");
}

/// Of kernels without cookies.
#[test]
fn without_cookies_nobody_has_what_may_be_anothers() {
    let mut world = World::new();
    world.container(0, "a", "", Some((INODE, false)));
    world.tell(1, &[connects(INODE, 0, 2)]);
    world.ends(2, "a");
    world.container(2, "b", "", Some((INODE, false)));
    world.tell(3, &[connects(INODE, 0, 4)]);
    assert_eq!((world.connects(3), ambiguous(&world.state)), (vec![Some(2), Some(0)], 4));
    world.tell(4, &[connects(INODE, 0, 5)]);
    assert_eq!((world.connects(4), ambiguous(&world.state)), (vec![Some(2), Some(5)], 4));
}

#[test]
fn on_the_hosts_network_and_on_anothers_it_is_not_known() {
    let mut world = World::new();
    world.container(0, "a", "", Some((INODE, false)));
    world.container(0, "b", "host", Some((INODE + 1, true)));
    world.container(0, "c", "container:a", Some((INODE, false)));
    world.tell(1, &[connects(INODE, 7, 2), connects(INODE + 1, 8, 3)]);
    assert_eq!(world.connects(1), [Some(2), None, None]);
    let degraded = Update::Degraded { feature: feature::CONNECTIONS, why: "no struct".to_owned() };
    let now = world.at(2);
    world.state.apply(degraded, now);
    assert_eq!(world.connects(2), [None, None, None]);
}

/// One that is started again and again, each time in a namespace of its own.
#[test]
fn namespaces_that_a_container_had_are_forgotten() {
    let mut world = World::new();
    for n in 0..1000 {
        // Numbers come again, and others.
        let inode = INODE + n % 7 * (n % 11);
        world.container(n, "a", "", Some((inode, false)));
        world.tell(n, &[connects(inode, 6000 - n, 1)]);
        assert_eq!(world.connects(n), [Some(n + 1)]);
        world.ends(n, "a");
    }
    let kept = |world: &World| world.state.tcp.as_ref().map(|tcp| tcp.owners.len());
    assert!(kept(&world).is_some_and(|kept| kept <= 61), "those of the last minute: {:?}", kept(&world));
    world.container(1000, "a", "", Some((INODE, false)));
    world.tell(1000, &[connects(INODE, 5000, 1)]);
    assert_eq!(world.connects(1100), [Some(1001)]);
    assert_eq!(kept(&world), Some(1), "the one that it has");
    world.tell(1101, &[connects(INODE, 5000, 1)]);
    assert_eq!(world.connects(1101), [Some(1002)]);
}

#[test]
fn what_nobody_owns_is_forgotten() {
    let mut world = World::new();
    world.tell(0, &[connects(INODE, 7, 2)]);
    world.state.expire(world.start + Duration::from_secs(61));
    world.container(62, "a", "", Some((INODE, false)));
    world.tell(63, &[]);
    assert_eq!(world.connects(63), [Some(0)]);
}

const fn end(port: u16) -> FlowEnd {
    FlowEnd { address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), port }
}

/// Of a connection, without anything that is told.
const NOTHING: TcpConnection = TcpConnection {
    namespace: TcpNamespace { inode: INODE, cookie: 7 },
    local: end(1),
    remote: end(2),
    begins: false,
    ends: false,
    handshake_us: None,
    rtt_us: None,
    retransmitted: 0,
    outcome: None,
    reset_sent: false,
    reset_received: false,
};

#[test]
fn the_newest_of_a_connection_counts() {
    let told = |begins, ends, handshake_us, retransmitted| TcpConnection {
        begins,
        ends,
        handshake_us,
        retransmitted,
        ..NOTHING
    };
    let mut world = World::new();
    world.container(0, "a", "", Some((INODE, false)));
    world.tell(0, &[connects(INODE, 7, 1)]);
    let mut apply = |second, told: TcpConnection| {
        let sample = TcpSample { connections: vec![told], ..TcpSample::default() };
        let now = world.at(second);
        world.state.apply(Update::Tcp(Box::new(sample)), now);
        let end = world.state.tcp_ends().get("a", end(1), end(2)).expect("an end");
        (end.handshake_seconds, end.retransmitted_segments)
    };
    assert_eq!(apply(1, told(true, false, Some(1500), 1)), (Some(0.0015), 1));
    assert_eq!(apply(2, told(false, false, None, 4)), (Some(0.0015), 4), "the handshake stays");
    assert_eq!(apply(3, told(false, true, None, 5)), (Some(0.0015), 5));
    assert_eq!(apply(4, told(false, false, None, 1)), (None, 1), "another one of the same ends");
    world.state.expire(world.at(4) + Duration::from_secs(29));
    assert!(world.state.tcp_ends().get("a", end(1), end(2)).is_some());
    world.state.expire(world.at(4) + Duration::from_secs(30));
    assert!(world.state.tcp_ends().get("a", end(1), end(2)).is_none(), "there is no such flow");
}

/// In the order in which the kernel does it; each is told after another connection of the same ends.
#[test]
fn how_it_went_and_its_resets_are_its_own() {
    const SENT: TcpResets = TcpResets { sent: 1, received: 0 };
    const RECEIVED: TcpResets = TcpResets { sent: 0, received: 1 };
    const NONE: TcpResets = TcpResets { sent: 0, received: 0 };
    let begins = |outcome| TcpConnection { begins: true, outcome: Some(outcome), ..NOTHING };
    let fails = |outcome| TcpConnection { ends: true, ..begins(outcome) };
    let ends = TcpConnection { ends: true, ..NOTHING };
    let sent = TcpConnection { reset_sent: true, ..ends };
    let received = TcpConnection { reset_received: true, ..NOTHING };
    let answered = TcpConnection { begins: true, ..received };
    let again = TcpConnection { retransmitted: 1, ..NOTHING };
    let established = begins(TcpOutcome::Established);
    let mut world = World::new();
    world.container(0, "a", "", Some((INODE, false)));
    world.tell(0, &[connects(INODE, 7, 1)]);
    let mut second = 0;
    for (told, outcome, resets) in [
        (vec![established], TcpOutcome::Established, NONE),
        // Closed, then reset.
        (vec![ends, sent], TcpOutcome::Established, SENT),
        (vec![established, received, ends], TcpOutcome::Established, RECEIVED),
        (vec![answered, fails(TcpOutcome::Refused)], TcpOutcome::Refused, RECEIVED),
        (vec![again, answered, fails(TcpOutcome::Refused)], TcpOutcome::Refused, RECEIVED),
        (vec![again, fails(TcpOutcome::TimedOut)], TcpOutcome::TimedOut, NONE),
        (vec![fails(TcpOutcome::GivenUp)], TcpOutcome::GivenUp, NONE),
        (vec![again, established, ends], TcpOutcome::Established, NONE),
        (vec![established, ends, sent], TcpOutcome::Established, SENT),
        // One that was told of in part: its end is missing.
        (vec![established], TcpOutcome::Established, NONE),
        (vec![fails(TcpOutcome::Failed)], TcpOutcome::Failed, NONE),
    ] {
        second += 1;
        let now = world.at(second);
        let sample = TcpSample { connections: told.clone(), ..TcpSample::default() };
        world.state.apply(Update::Tcp(Box::new(sample)), now);
        let end = world.state.tcp_ends().get("a", end(1), end(2)).expect("an end");
        assert_eq!((end.outcome, end.resets), (Some(outcome), Some(resets)), "{told:?}");
    }
    let degraded = Update::Degraded { feature: feature::RESETS, why: "no tracepoint".to_owned() };
    let now = world.at(second + 1);
    world.state.apply(degraded, now);
    let end = world.state.tcp_ends().get("a", end(1), end(2)).expect("an end");
    assert_eq!((end.outcome, end.resets), (Some(TcpOutcome::Failed), None));
}
