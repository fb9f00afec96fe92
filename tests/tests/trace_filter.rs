//! The programs of `netobs trace` on frames built by hand and at random, by `BPF_PROG_TEST_RUN`: what matches,
//! against a filter written a second time here, and what is captured.

use std::{net::IpAddr, os::fd::AsFd as _};

use netobs::{
    ebpf::{Attach as _, AttachMode, PacketFilter, TraceOptions, Tracer},
    model::InterfaceKey,
};
use netobs_tests::{
    frames::{arp, ethernet, ipv4, ipv6, ports, tag, tcp},
    netns::Netns,
    test_run::{Gso, empty_program, test_run},
};

/// `lo`, whose packets `BPF_PROG_TEST_RUN` pretends to have.
const LO: u32 = 1;

fn options(filter: PacketFilter) -> TraceOptions {
    TraceOptions {
        max_interfaces: 4,
        mode: AttachMode::Auto,
        filter,
        snaplen: 128,
        rate: 0,
        ring_bytes: 8 << 20,
    }
}

/// Numbers that are the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// A frame of a kind that somebody may send, changed in a few bytes, and cut somewhere.
fn frame(random: &mut Random) -> Vec<u8> {
    let addresses = [[10, 1, 0, 1], [10, 1, 0, 2], [192, 0, 2, 1]];
    let (from, to) = (addresses[random.below(3)], addresses[random.below(3)]);
    let numbers = [53, 80, 443];
    let (source, destination) = (numbers[random.below(3)], numbers[random.below(3)]);
    let protocol = [1, 6, 17, 58, 132, 47][random.below(6)];
    let payload = if protocol == 6 { tcp(source, destination, 2, 20) } else { ports(source, destination, 8) };
    let fragment = [0, 0, 0x2000, 0x0001][random.below(4)];
    let mut frame = match random.below(5) {
        0 | 1 => ethernet(0x0800, &ipv4(protocol, from, to, fragment, &payload)),
        2 => ethernet(0x86dd, &ipv6(protocol, random.below(3) as u8, random.below(3) as u8, &payload)),
        3 => {
            // Hop-by-hop options, a fragment, then what it is.
            let mut rest =
                vec![44, 0, 1, 4, 0, 0, 0, 0, protocol, 0, 0, (random.below(2) * 8) as u8, 0, 0, 0, 1];
            rest.extend(payload);
            ethernet(0x86dd, &ipv6(0, 1, 2, &rest))
        }
        _ => ethernet([0x0806, 0x88cc][random.below(2)], &arp(from, to)),
    };
    for _ in 0..random.below(4).saturating_sub(1) {
        frame = tag([0x8100, 0x88a8][random.below(2)], 5, frame);
    }
    for _ in 0..random.below(4).saturating_sub(2) {
        let at = random.below(frame.len());
        frame[at] = random.next() as u8;
    }
    if random.below(3) == 0 {
        frame.truncate(14 + random.below(frame.len() - 13));
    }
    frame
}

/// The filter once more, over a slice. None: it ends before it can be told.
fn matches(filter: &PacketFilter, frame: &[u8]) -> bool {
    *filter == PacketFilter::default() || told(filter, frame).unwrap_or(false)
}

fn told(filter: &PacketFilter, frame: &[u8]) -> Option<bool> {
    let be16 = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let mut types = vec![be16(12)?];
    let mut at = 14;
    while types.len() < 3 && matches!(types.last(), Some(0x8100 | 0x88a8)) {
        types.push(be16(at + 2)?);
        at += 4;
    }
    if filter.ethertype.is_some_and(|wanted| !types.contains(&wanted)) {
        return Some(false);
    }
    let ethertype = types[types.len() - 1];
    if let Some((address, prefix)) = filter.host {
        let (places, octets) = match (address, ethertype) {
            (IpAddr::V4(address), 0x0800) => ([12, 16], address.octets().to_vec()),
            (IpAddr::V4(address), 0x0806) => ([14, 24], address.octets().to_vec()),
            (IpAddr::V6(address), 0x86dd) => ([8, 24], address.octets().to_vec()),
            _ => return Some(false),
        };
        let is = |place: usize| {
            let there = frame.get(at + place..at + place + octets.len())?;
            Some(
                (0..usize::from(prefix))
                    .all(|bit| (there[bit / 8] ^ octets[bit / 8]) & (0x80 >> (bit % 8)) == 0),
            )
        };
        if !is(places[0])? && !is(places[1])? {
            return Some(false);
        }
    }
    if filter.protocol.is_none() && filter.port.is_none() {
        return Some(true);
    }
    let (protocol, transport, is_first) = match ethertype {
        0x0800 => {
            let length = usize::from(frame.get(at)? & 0x0f) * 4;
            let (fragment, protocol) = (be16(at + 6)? & 0x1fff, *frame.get(at + 9)?);
            if length < 20 {
                return Some(false);
            }
            (protocol, at + length, fragment == 0)
        }
        0x86dd => extensions(frame, at)?,
        _ => return Some(false),
    };
    if filter.protocol.is_some_and(|wanted| wanted != protocol) {
        return Some(false);
    }
    let Some(port) = filter.port else { return Some(true) };
    if !is_first || !matches!(protocol, 6 | 17 | 132) {
        return Some(false);
    }
    Some(be16(transport)? == port || be16(transport + 2)? == port)
}

/// Up to eight headers are followed.
fn extensions(frame: &[u8], at: usize) -> Option<(u8, usize, bool)> {
    let (mut next, mut at) = (*frame.get(at + 6)?, at + 40);
    for _ in 0..8 {
        let unit = match next {
            0 | 43 | 60 | 135 => 8,
            51 => 4,
            44 => 0,
            _ => break,
        };
        let header = frame.get(at..at + 4)?;
        let is_later = next == 44 && (u16::from_be_bytes([header[2], header[3]]) & 0xfff8) != 0;
        next = header[0];
        at += 8 + usize::from(header[1]) * unit;
        if is_later {
            return Some((next, at, false));
        }
    }
    Some((next, at, true))
}

fn host(address: &str, prefix: u8) -> Option<(IpAddr, u8)> {
    Some((address.parse().expect("an address"), prefix))
}

fn filters() -> Vec<PacketFilter> {
    let any = PacketFilter::default();
    vec![
        any,
        PacketFilter { ethertype: Some(0x0800), ..any },
        PacketFilter { ethertype: Some(0x8100), ..any },
        PacketFilter { protocol: Some(6), ..any },
        PacketFilter { protocol: Some(0), ..any },
        PacketFilter { port: Some(53), ..any },
        PacketFilter { host: host("10.1.0.2", 32), ..any },
        PacketFilter { host: host("10.1.0.0", 31), ..any },
        PacketFilter { host: host("fd77::1", 128), ..any },
        PacketFilter { host: host("fd77::", 127), port: Some(80), ..any },
        PacketFilter { host: host("0.0.0.0", 0), ..any },
        PacketFilter {
            ethertype: Some(0x88a8),
            protocol: Some(17),
            port: Some(53),
            host: host("10.1.0.1", 32),
        },
        PacketFilter { ethertype: Some(0x86dd), protocol: Some(132), port: Some(443), ..any },
    ]
}

#[test]
fn what_matches_is_what_a_second_filter_says() {
    const FRAMES: usize = 20_000;
    for (number, filter) in filters().into_iter().enumerate() {
        Netns::new().run(move || {
            let (mut tracer, mut ring) = Tracer::load(&options(filter), true).expect("load");
            tracer.attach(InterfaceKey(0), LO, false).expect("attach to lo");
            let mut random = Random(0x9e37_79b9_7f4a_7c15 + number as u64);
            let (mut refused, mut matched) = (0, 0);
            for _ in 0..FRAMES {
                let frame = frame(&mut random);
                let before = tracer.total();
                let Ok((verdict, _)) = test_run(tracer.program(true), &frame, Gso::default(), 1) else {
                    // The kernel wants a whole fixed IP header here.
                    refused += 1;
                    continue;
                };
                assert_eq!(verdict, -1, "netobs only looks: TC_ACT_UNSPEC");
                let now = tracer.total();
                let expected = matches(&filter, &frame);
                assert_eq!(now.matched - before.matched, u64::from(expected), "{filter:?}: {frame:02x?}");
                assert_eq!((now.matched, now.lost, now.limited), (now.delivered, 0, 0));
                let mut captured = None;
                let there = ring.next(|header, bytes| captured = Some((*header, bytes.to_vec())));
                assert_eq!(there, expected);
                if let Some((header, bytes)) = captured {
                    matched += 1;
                    assert_eq!((header.len as usize, header.slot, header.link), (frame.len(), 0, 1));
                    assert_eq!(bytes, frame[..frame.len().min(128)], "{filter:?}");
                }
            }
            println!("{filter:?}: {matched} of {FRAMES} match, {refused} refused by the kernel");
            assert!(refused < FRAMES / 2);
            assert!(matched > 0 || filter.protocol == Some(0) || filter.ethertype == Some(0x86dd));
        });
    }
}

#[test]
fn captured_at_every_length() {
    Netns::new().run(|| {
        for snaplen in [1, 64, 127, 128, 129, 512, 600, 2048, 2049, 16_384, 40_000, 65_535] {
            let options = TraceOptions { snaplen, ..options(PacketFilter::default()) };
            let (mut tracer, mut ring) = Tracer::load(&options, true).expect("load");
            tracer.attach(InterfaceKey(0), LO, false).expect("attach to lo");
            for length in (14..140).chain([511, 512, 513, 1000, 1500, 2047, 2048, 2049, 3000]) {
                let mut frame = ethernet(0x88cc, &[]);
                frame.extend((14..length).map(|n| n as u8));
                test_run(tracer.program(true), &frame, Gso::default(), 1).expect("test run");
                let mut captured = Vec::new();
                assert!(ring.next(|header, bytes| {
                    assert_eq!((header.len, header.captured), (length as u32, (length as u32).min(snaplen)));
                    captured = bytes.to_vec();
                }));
                assert_eq!(captured, frame[..length.min(snaplen as usize)], "{snaplen}, {length}");
            }
        }
    });
}

#[test]
fn a_full_ring_loses_and_counts() {
    Netns::new().run(|| {
        let options = TraceOptions { ring_bytes: 128 << 10, ..options(PacketFilter::default()) };
        let (mut tracer, mut ring) = Tracer::load(&options, true).expect("load");
        tracer.attach(InterfaceKey(0), LO, false).expect("attach to lo");
        let frame = ethernet(0x88cc, &[0; 50]);
        test_run(tracer.program(true), &frame, Gso::default(), 10_000).expect("test run");
        let total = tracer.total();
        assert_eq!((total.matched, total.delivered + total.lost, total.limited), (10_000, 10_000, 0));
        // A record is 160 bytes and a header of eight.
        assert_eq!(total.delivered, (128 << 10) / 168);
        let mut read = 0;
        while ring.next(|_, _| {}) {
            read += 1;
        }
        assert_eq!(read, total.delivered);
        // What was detached is still counted, also when its slot is another's.
        for number in 0..9 {
            assert!(tracer.detach(InterfaceKey(number)).is_some());
            tracer.attach(InterfaceKey(number + 1), LO, false).expect("attach to lo");
            test_run(tracer.program(true), &frame, Gso::default(), 10).expect("test run");
        }
        let total = tracer.total();
        assert_eq!((total.matched, total.matched - total.delivered), (10_090, total.lost));
    });
}

/// Printed beside a program that does nothing, in turns; the same frame, hot cache.
#[test]
fn nanoseconds_of_a_frame_that_is_not_asked_for() {
    const REPEAT: u32 = 200_000;
    const ROUNDS: usize = 5;
    let any = PacketFilter::default();
    for filter in [
        PacketFilter { ethertype: Some(0x88cc), ..any },
        PacketFilter { protocol: Some(6), ..any },
        PacketFilter { host: host("192.0.2.1", 32), ..any },
        PacketFilter { host: host("fd77::1", 128), ..any },
        PacketFilter { port: Some(4789), ..any },
    ] {
        let (empty, trace) = Netns::new().run(move || {
            let (mut tracer, _ring) = Tracer::load(&options(filter), true).expect("load");
            tracer.attach(InterfaceKey(0), LO, false).expect("attach to lo");
            let empty = empty_program().expect("load an empty program");
            let frame = ethernet(0x0800, &ipv4(17, [10, 1, 0, 1], [10, 1, 0, 2], 0, &ports(1, 53, 30)));
            let run = |program| test_run(program, &frame, Gso::default(), REPEAT).expect("test run").1;
            let (mut of_empty, mut of_trace) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                of_empty.push(run(empty.as_fd()));
                of_trace.push(run(tracer.program(true)));
            }
            assert_eq!(tracer.total().matched, 0);
            of_empty.sort_unstable();
            of_trace.sort_unstable();
            (of_empty[ROUNDS / 2], of_trace[ROUNDS / 2])
        });
        println!("{filter:?}: {trace} ns, empty program {empty} ns (medians of {ROUNDS})");
    }
}
