//! The kernel programs under millions of random frames, against [`netobs_tests::reference`]: every counter of
//! every batch, and every flow. `NETOBS_RANDOM_FRAMES` is how many (ten million unless told otherwise),
//! `NETOBS_RANDOM_SEED` makes others of them.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::Write as _,
    net::IpAddr,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use netobs::{
    ebpf::{self, Attach as _, AttachMode, EventOptions, Observer, Options, wait_for_programs},
    model::{Count, FlowRecord, InterfaceKey, Judged},
};
use netobs_common::{Counters, FIRST, OPENED, class};
use netobs_tests::{
    frames,
    netns::Netns,
    random_frames::{Batch, Case},
    reference::{Expected, Flow, Key, OWN_MAC},
    test_run::{Gso, test_run},
    traffic::RawSocket,
};
use nix::{
    net::if_::if_nametoindex,
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

const KEY: InterfaceKey = InterfaceKey(0);
/// `lo`, whose packets `BPF_PROG_TEST_RUN` pretends to have.
const LO: u32 = 1;
const MAX_FLOWS: u32 = 1 << 17;
const BATCH: usize = 50_000;
/// How many are shown that are wrong only together.
const SHOWN: usize = 8;
/// How long frames may take from one end of a pair to the other.
const ARRIVAL: Duration = Duration::from_secs(5);

/// How frames get to the programs.
enum Road {
    /// `BPF_PROG_TEST_RUN`.
    TestRun,
    /// Out of the other end of the interface that is attached to.
    Socket(RawSocket),
}

struct Bench {
    observer: Observer,
    road: Road,
    /// What had been counted before.
    before: ebpf::Counted,
}

/// What was counted of some frames.
struct Counted {
    counters: [Counters; 2],
    foreign: Count,
    flows: HashMap<Key, Flow>,
}

impl Bench {
    /// In the network namespace of this thread.
    fn new(ifindex: u32, road: Road) -> Self {
        Self::with(ifindex, road, MAX_FLOWS, false, Some(OWN_MAC))
    }

    /// `sender`: who the frames' sender is known to be; none: the first is.
    fn with(ifindex: u32, road: Road, max_flows: u32, dns_and_arp: bool, sender: Option<[u8; 6]>) -> Self {
        let mut observer = Observer::load(Options {
            max_interfaces: 4,
            mode: AttachMode::Auto,
            max_flows,
            events: EventOptions { dns: dns_and_arp, arp: dns_and_arp, ..EventOptions::default() },
            log: false,
        })
        .expect("load");
        observer.attach(KEY, ifindex, false).expect("attach");
        if let Some(mac) = sender {
            observer.correct_sender(KEY, mac, Judged::default());
        }
        let before = observer.read(KEY).expect("attached");
        Self { observer, road, before }
    }

    fn send(&self, case: Case<'_>) {
        match &self.road {
            Road::TestRun => {
                let program = self.observer.program(case.ingress);
                let (verdict, _) = test_run(program, case.frame, case.gso, 1)
                    .unwrap_or_else(|error| panic!("test run of {}: {error}", hex(case.frame)));
                assert_eq!(verdict, -1, "netobs only looks: TC_ACT_UNSPEC");
            }
            Road::Socket(socket) => socket.send(case.frame),
        }
    }

    fn packets(&self) -> u64 {
        let counters = self.observer.read(KEY).expect("attached");
        [counters.ingress, counters.egress]
            .iter()
            .flat_map(|counters| counters.class)
            .map(|count| count.packets)
            .sum()
    }

    /// So many that the receiver's queue holds them; then they are waited for.
    fn send_received(&self, batch: &Batch, cases: Range<usize>) {
        const CHUNK: usize = 500;
        let mut expected = self.packets();
        for first in cases.clone().step_by(CHUNK) {
            for number in first..(first + CHUNK).min(cases.end) {
                self.send(batch.case(number));
                expected += u64::from(received(batch.case(number), &mut Vec::new()).is_some());
            }
            let deadline = Instant::now() + ARRIVAL;
            while self.packets() < expected && Instant::now() < deadline {
                std::thread::yield_now();
            }
        }
    }

    fn count(&mut self, batch: &Batch, cases: Range<usize>) -> Counted {
        match self.road {
            Road::TestRun => cases.for_each(|number| self.send(batch.case(number))),
            Road::Socket(_) => self.send_received(batch, cases),
        }
        let now = self.observer.read(KEY).expect("attached");
        let before = std::mem::replace(&mut self.before, now);
        let counters = [since(&now.ingress, &before.ingress), since(&now.egress, &before.egress)];
        let other = |counted: &ebpf::Counted| counted.senders.expect("compared").other;
        let foreign = Count {
            packets: other(&now).packets - other(&before).packets,
            bytes: other(&now).bytes - other(&before).bytes,
        };
        // The second time takes all cells back, so that the next frames find none of these flows.
        let mut records = Vec::new();
        for _ in 0..2 {
            self.observer.begin_flows();
            wait_for_programs();
            while let Some(some) = self.observer.finish_flows() {
                records.extend(some);
            }
        }
        Counted { counters, foreign, flows: flows(&records) }
    }

    /// What is not as expected, and the first frame with which it is not.
    fn check(
        &mut self,
        batch: &Batch,
        expect: &impl Fn(&Batch, Range<usize>) -> Expected,
    ) -> Result<(), String> {
        let all = 0..batch.len();
        let Err(error) = compare(&self.count(batch, all.clone()), &expect(batch, all.clone())) else {
            return Ok(());
        };
        let (mut cases, mut error) = (all, error);
        while cases.len() > 1 {
            let middle = cases.start + cases.len() / 2;
            let halves = [cases.start..middle, middle..cases.end];
            let wrong = halves.into_iter().find_map(|half| {
                let compared = compare(&self.count(batch, half.clone()), &expect(batch, half.clone()));
                Some((half, compared.err()?))
            });
            match wrong {
                Some((half, why)) => (cases, error) = (half, why),
                // Only together.
                None => break,
            }
        }
        let mut text = format!("frames {cases:?} of the batch: {error}");
        for number in cases.take(SHOWN) {
            let Case { frame, ingress, gso, .. } = batch.case(number);
            let (frame, Gso { segments, size }) = (hex(frame), gso);
            let _ = write!(text, "\n{number}: {frame}, ingress {ingress}, gso {segments} x {size}");
        }
        Err(text)
    }
}

fn expected(batch: &Batch, cases: Range<usize>) -> Expected {
    let mut expected = Expected::default();
    for number in cases {
        expected.add(batch.case(number));
    }
    expected
}

fn expected_without_flows(batch: &Batch, cases: Range<usize>) -> Expected {
    let mut expected = expected(batch, cases);
    expected.flows.clear();
    for counters in &mut expected.counters {
        (counters.unflowed, counters.unflowed_truncated) = (netobs_common::Count::default(), 0);
    }
    expected
}

/// As the programs see what came in by an interface, with room for a frame. The kernel takes the outer tag out of
/// it (`skb_vlan_untag`), and drops what is too short for that.
fn received<'a>(case: Case<'a>, room: &'a mut Vec<u8>) -> Option<Case<'a>> {
    match case.frame {
        frame if !matches!(frame[12..14], [0x81, 0x00] | [0x88, 0xa8]) => Some(case),
        frame if frame.len() < 20 => None,
        frame => {
            room.extend(&frame[..12]);
            room.extend(&frame[16..]);
            Some(Case { frame: room, tag_outside: true, ..case })
        }
    }
}

fn expected_received(batch: &Batch, cases: Range<usize>) -> Expected {
    let mut expected = Expected::default();
    for number in cases {
        if let Some(case) = received(batch.case(number), &mut Vec::new()) {
            expected.add(case);
        }
    }
    expected
}

fn compare(counted: &Counted, expected: &Expected) -> Result<(), String> {
    let mut wrong = String::new();
    for (direction, name) in ["ingress", "egress"].into_iter().enumerate() {
        let (is, should) = (&counted.counters[direction], &expected.counters[direction]);
        if is != should {
            let _ = write!(wrong, "\n{name} is       {is:?}\n{name} should be {should:?}");
        }
    }
    let (is, should) = (counted.foreign, Count::from(expected.foreign));
    if is != should {
        let _ = write!(wrong, "\nfrom other MAC addresses: is {is:?}, should be {should:?}");
    }
    let keys: BTreeSet<&Key> = counted.flows.keys().chain(expected.flows.keys()).collect();
    let of = |flows: &HashMap<Key, Flow>, key| flows.get(key).copied().unwrap_or_default();
    let differ = keys.into_iter().filter(|key| !is_same(&of(&counted.flows, key), &of(&expected.flows, key)));
    for key in differ.take(3) {
        let (is, should) = (of(&counted.flows, key), of(&expected.flows, key));
        let _ = write!(wrong, "\n{key:?}\n  is        {is:?}\n  should be {should:?}");
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong) }
}

/// A flow may be in a cell and in the overflow map, each with a first packet of its own.
fn is_same(is: &Flow, should: &Flow) -> bool {
    let without_first = |flags: [u8; 2]| flags.map(|flags| flags & !FIRST);
    let has_first = (0..2).all(|direction| is.flags[direction] & FIRST >= should.flags[direction] & FIRST);
    is.stack == should.stack
        && is.wire == should.wire
        && is.zero_windows == should.zero_windows
        && without_first(is.flags) == without_first(should.flags)
        && has_first
}

fn since(now: &Counters, before: &Counters) -> Counters {
    // SAFETY: Counters is u64s only, in repr(C), and as many words long.
    let words =
        |counters: &Counters| unsafe { std::mem::transmute_copy::<_, [u64; Counters::WORDS]>(counters) };
    let (now, before) = (words(now), words(before));
    let words: [u64; Counters::WORDS] = std::array::from_fn(|word| now[word] - before[word]);
    // SAFETY: as above.
    unsafe { std::mem::transmute(words) }
}

/// Records are from the side of a container whose veth this would be: what it sends is received here.
fn flows(records: &[FlowRecord]) -> HashMap<Key, Flow> {
    let mut flows: HashMap<Key, Flow> = HashMap::new();
    for record in records {
        let key = Key {
            a: bytes(record.local.address),
            b: bytes(record.remote.address),
            a_port: record.local.port,
            b_port: record.remote.port,
            protocol: record.protocol,
        };
        let flow = flows.entry(key).or_default();
        for (direction, (count, flags)) in
            [(record.tx, record.tx_flags), (record.rx, record.rx_flags)].into_iter().enumerate()
        {
            let (stack, wire) = (&mut flow.stack[direction], &mut flow.wire[direction]);
            stack.packets += count.packets;
            stack.bytes += count.bytes;
            wire.packets += count.wire_packets;
            wire.bytes += count.wire_bytes;
            flow.flags[direction] |= flags;
        }
        flow.zero_windows[0] += record.tx_zero_windows;
        flow.zero_windows[1] += record.rx_zero_windows;
    }
    flows
}

fn bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn hex(frame: &[u8]) -> String {
    frame.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn number(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| text.parse().expect("a number"))
}

/// CPUs that this process may use.
fn cpus() -> Vec<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).expect("affinity");
    (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap_or(false)).collect()
}

/// Flows have cells of each CPU: on one, the first packet of a flow is known.
fn stay_on(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU");
    sched_setaffinity(Pid::from_raw(0), &set).expect("stay on a CPU");
}

#[test]
fn millions_of_random_frames_are_counted_right() {
    let (frames, seed) = (number("NETOBS_RANDOM_FRAMES", 10_000_000), number("NETOBS_RANDOM_SEED", 0));
    let batches = frames.div_ceil(BATCH as u64);
    let begin = Instant::now();
    let next = Arc::new(AtomicU64::new(0));
    let threads: Vec<_> = cpus()
        .into_iter()
        .take(4)
        .map(|cpu| {
            let (netns, next) = (Netns::new(), Arc::clone(&next));
            let thread = netns.spawn(move || {
                stay_on(cpu);
                let mut bench = Bench::new(LO, Road::TestRun);
                loop {
                    let batch = next.fetch_add(1, Ordering::Relaxed);
                    if batch >= batches {
                        return;
                    }
                    let frames = Batch::for_test_run(seed << 32 | batch, BATCH);
                    if let Err(error) = bench.check(&frames, &expected) {
                        panic!("seed {seed}, batch {batch}, {error}");
                    }
                }
            });
            (netns, thread)
        })
        .collect();
    for (_netns, thread) in threads {
        thread.join().expect("as expected");
    }
    println!("{} random frames in {:.1?}", batches * BATCH as u64, begin.elapsed());
}

/// With the checks that the fast path has then.
#[test]
fn they_are_whatever_else_is_asked_for() {
    const BATCHES: u64 = 8;
    let seed = number("NETOBS_RANDOM_SEED", 0);
    for (max_flows, dns_and_arp) in [(0, false), (0, true), (MAX_FLOWS, true)] {
        Netns::new().run(move || {
            stay_on(cpus()[0]);
            let mut bench = Bench::with(LO, Road::TestRun, max_flows, dns_and_arp, Some(OWN_MAC));
            for number in 0..BATCHES {
                let batch = Batch::for_test_run(!seed << 32 | number, BATCH);
                let checked = if max_flows == 0 {
                    bench.check(&batch, &expected_without_flows)
                } else {
                    bench.check(&batch, &expected)
                };
                assert_eq!(checked, Ok(()), "{max_flows} flows, DNS and ARP {dns_and_arp}, batch {number}");
            }
        });
    }
}

/// Addresses that no sender has look like what [`netobs_common::Sender::mac`] has where no sender is known.
#[test]
fn what_is_not_ip_is_not_whoever_sends_it() {
    for (ingress, source, ethertype) in [(false, [0xff; 6], 0x0600), (true, [0; 6], 0x0700)] {
        Netns::new().run(move || {
            let mut bench = Bench::with(LO, Road::TestRun, 0, false, None);
            let datagram = frames::ipv4(17, [10, 0, 0, 1], [10, 0, 0, 2], 0, &frames::ports(40_000, 80, 30));
            let mut frame = frames::ethernet(ethertype, &datagram);
            frame[6..12].copy_from_slice(&source);
            let mut batch = Batch::default();
            batch.push(&frame, ingress);
            let counted = bench.count(&batch, 0..1).counters[usize::from(!ingress)];
            assert_eq!(counted.class[class::OTHER as usize].packets, 1, "{ethertype:#x}: {counted:?}");
            assert_eq!(counted.class.iter().map(|count| count.packets).sum::<u64>(), 1);
        });
    }
}

/// What `BPF_PROG_TEST_RUN` has not: IP headers that are cut, tags outside the frame, headers that are not in the
/// linear part of the skb.
#[test]
fn random_frames_of_a_raw_socket_are_counted_right() {
    const BATCHES: u64 = 10;
    let seed = number("NETOBS_RANDOM_SEED", 0);
    let host = Netns::new();
    // Long frames; and nobody answers.
    host.sh("ip link add out0 mtu 16000 type veth peer name in0 mtu 16000; \
             ip link set in0 arp off up; ip link set out0 arp off up");
    host.run(move || {
        stay_on(cpus()[0]);
        let index = if_nametoindex("in0").expect("its index");
        let mut bench = Bench::new(index, Road::Socket(RawSocket::open("out0")));
        for number in 0..BATCHES {
            let batch = Batch::for_socket(!seed << 32 | number, 20_000);
            if let Err(error) = bench.check(&batch, &expected_received) {
                panic!("seed {seed}, batch {number}, {error}");
            }
        }
    });
}

/// The test itself: one frame that is counted as another is found among thousands.
#[test]
fn one_wrong_frame_is_found() {
    const WRONG: usize = 3_210;
    Netns::new().run(|| {
        let mut bench = Bench::new(LO, Road::TestRun);
        let batch = Batch::for_test_run(1, 5_000);
        let other = |batch: &Batch, cases: Range<usize>| {
            let mut expected = Expected::default();
            for number in cases {
                let case = batch.case(number);
                expected.add(if number == WRONG { Case { ingress: !case.ingress, ..case } } else { case });
            }
            expected
        };
        let error = bench.check(&batch, &other).expect_err("one is wrong");
        assert!(error.starts_with(&format!("frames {WRONG}..{}", WRONG + 1)), "{error}");
        assert!(error.contains(&hex(batch.case(WRONG).frame)), "{error}");
        assert_eq!(bench.check(&batch, &expected), Ok(()));
    });
}

/// The end that opens a connection may have answered one before.
#[test]
fn a_syn_after_an_answer_is_an_opening() {
    Netns::new().run(|| {
        let mut bench = Bench::new(LO, Road::TestRun);
        let mut batch = Batch::default();
        for flags in [0x12, 0x02] {
            let segment = frames::tcp(40_000, 80, flags, 20);
            batch.push(
                &frames::ethernet(0x0800, &frames::ipv4(6, [10, 0, 0, 1], [10, 0, 0, 2], 0, &segment)),
                true,
            );
        }
        let counted = bench.count(&batch, 0..2);
        let flags: Vec<_> = counted.flows.values().map(|flow| flow.flags).collect();
        assert_eq!(flags, [[FIRST | OPENED | 0x12, 0]]);
    });
}
