//! The classifier on packets built by hand, by `BPF_PROG_TEST_RUN`: what each is counted as.

use netobs::{
    ebpf::{Attach as _, AttachMode, Counted, EventOptions, Observer, Options},
    model::{InterfaceKey, Traffic},
};
use netobs_tests::{
    netns::Netns,
    test_run::{Gso, test_run},
};

const KEY: InterfaceKey = InterfaceKey(0);
/// `lo`, whose packets `BPF_PROG_TEST_RUN` pretends to have.
const LO: u32 = 1;

const UNICAST: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];
const BROADCAST: [u8; 6] = [0xff; 6];

/// What packets of one kind are counted as.
fn count(packets: impl FnOnce(&dyn Fn(&[u8], Gso)) + Send + 'static) -> Traffic {
    Netns::new().run(move || {
        let mut observer = Observer::load(Options {
            max_interfaces: 4,
            mode: AttachMode::Auto,
            max_flows: 1024,
            events: EventOptions::default(),
            log: false,
        })
        .expect("load");
        observer.attach(KEY, LO, false).expect("attach to lo");
        packets(&|packet, gso| {
            let (verdict, _) = test_run(observer.program(true), packet, gso, 1).expect("test run");
            assert_eq!(verdict, -1, "netobs only looks: TC_ACT_UNSPEC");
        });
        let Counted { ingress, egress, .. } = observer.read(KEY).expect("attached");
        assert_eq!(Traffic::from(&egress), Traffic::default());
        Traffic::from(&ingress)
    })
}

fn one(packet: Vec<u8>) -> Traffic {
    count(move |run| run(&packet, Gso::default()))
}

fn ethernet(destination: [u8; 6], ethertype: u16) -> Vec<u8> {
    let mut frame = destination.to_vec();
    frame.extend([2, 0, 0, 0, 0, 2]);
    frame.extend(ethertype.to_be_bytes());
    frame
}

fn ipv4(protocol: u8, options: usize, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let header_len = 20 + options;
    let mut header = vec![0u8; header_len];
    header[0] = 0x40 | (header_len / 4) as u8;
    header[2..4].copy_from_slice(&((header_len + payload.len()) as u16).to_be_bytes());
    header[6..8].copy_from_slice(&fragment.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..20].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
    header.extend(payload);
    header
}

fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = vec![0u8; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&(payload.len() as u16).to_be_bytes());
    header[6] = next;
    header[7] = 64;
    header.extend(payload);
    header
}

fn tcp(flags: u8, payload: usize) -> Vec<u8> {
    let mut header = vec![0u8; 20];
    header[12] = 5 << 4;
    header[13] = flags;
    header.resize(20 + payload, 0);
    header
}

fn frame(destination: [u8; 6], ethertype: u16, rest: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(destination, ethertype);
    frame.extend(rest);
    frame
}

#[test]
fn ipv4_by_protocol() {
    for (number, name) in [(6, "tcp"), (17, "udp"), (1, "icmp"), (58, "icmpv6"), (132, "sctp"), (47, "other")]
    {
        let packet = frame(UNICAST, 0x0800, &ipv4(number, 0, 0, &[0; 40]));
        let length = packet.len() as u64;
        let traffic = one(packet);
        assert_eq!((traffic.packets, traffic.bytes), (1, length));
        assert_eq!((traffic.wire_packets, traffic.wire_bytes), (1, length));
        assert_eq!(traffic.ethertype.ipv4.packets, 1);
        assert_eq!(traffic.cast.unicast.bytes, length);
        for (other, counted) in traffic.protocol.each() {
            assert_eq!(counted.packets, u64::from(other == name), "{name} counted as {other}");
        }
        assert_eq!(traffic.truncated, 0, "{name}");
    }
}

#[test]
fn tcp_flags_behind_ip_options() {
    let traffic = count(|run| {
        for flags in [0x02, 0x12, 0x10, 0x11, 0x04, 0x14] {
            run(&frame(UNICAST, 0x0800, &ipv4(6, 24, 0, &tcp(flags, 0))), Gso::default());
            run(&frame(UNICAST, 0x86dd, &ipv6(6, &tcp(flags, 0))), Gso::default());
        }
    });
    assert_eq!(traffic.packets, 12);
    assert_eq!((traffic.tcp_flags.syn, traffic.tcp_flags.fin, traffic.tcp_flags.rst), (4, 2, 4));
}

#[test]
fn zero_windows_but_of_syn_and_rst() {
    let traffic = count(|run| {
        for flags in [0x10, 0x11, 0x18, 0x02, 0x12, 0x04, 0x14] {
            for window in [[0, 0], [0, 1], [1, 0]] {
                let mut segment = tcp(flags, 0);
                segment[14..16].copy_from_slice(&window);
                run(&frame(UNICAST, 0x0800, &ipv4(6, 12, 0, &segment)), Gso::default());
                run(&frame(UNICAST, 0x86dd, &ipv6(6, &segment)), Gso::default());
            }
        }
        // No TCP header.
        run(&frame(UNICAST, 0x0800, &ipv4(17, 0, 0, &[0; 20])), Gso::default());
        run(&frame(UNICAST, 0x0800, &ipv4(6, 0, 0x2001, &[0; 40])), Gso::default());
    });
    assert_eq!(traffic.packets, 7 * 3 * 2 + 2);
    assert_eq!(traffic.tcp_zero_window, 3 * 2, "ACK, FIN and ACK, PSH and ACK");
}

#[test]
fn later_fragments_have_a_protocol_and_no_flags() {
    let traffic = count(|run| {
        // Looks like SYN, FIN and RST at once where a TCP header would be.
        run(&frame(UNICAST, 0x0800, &ipv4(6, 0, 0x2001, &[0xff; 40])), Gso::default());
        // IPv6 fragment header: next TCP, offset 8.
        let mut fragment = vec![6, 0, 0, 8 << 3 | 1, 0, 0, 0, 1];
        fragment.extend([0xff; 40]);
        run(&frame(UNICAST, 0x86dd, &ipv6(44, &fragment)), Gso::default());
    });
    assert_eq!(traffic.protocol.tcp.packets, 2);
    assert_eq!(traffic.tcp_flags.syn + traffic.tcp_flags.fin + traffic.tcp_flags.rst, 0);
    assert_eq!(traffic.truncated, 0);
}

/// Each by its own header: what a receiver would put together of them is not looked at.
#[test]
fn overlapping_fragments_are_each_counted_once() {
    const MORE: u16 = 0x2000;
    let traffic = count(|run| {
        let syn = tcp(0x02, 28);
        // The first one; the second 8 bytes on, with other flags where the first has its own (RFC 1858 section 3);
        // one that begins before the end of the first and ends before it; the first one again, as a reset.
        for (fragment, payload) in
            [(MORE, syn.clone()), (1, vec![0xff; 40]), (MORE | 2, vec![0xff; 8]), (MORE, tcp(0x04, 4))]
        {
            run(&frame(UNICAST, 0x0800, &ipv4(6, 0, fragment, &payload)), Gso::default());
            let offset = (fragment & 0x1fff) << 3 | fragment >> 13;
            let mut of_ipv6 = vec![6, 0];
            of_ipv6.extend(offset.to_be_bytes());
            of_ipv6.extend([0, 0, 0, 1]);
            of_ipv6.extend(payload);
            run(&frame(UNICAST, 0x86dd, &ipv6(44, &of_ipv6)), Gso::default());
        }
    });
    assert_eq!((traffic.ethertype.ipv4.packets, traffic.ethertype.ipv6.packets), (4, 4));
    assert_eq!((traffic.packets, traffic.protocol.tcp.packets), (8, 8));
    assert_eq!((traffic.tcp_flags.syn, traffic.tcp_flags.rst, traffic.tcp_flags.fin), (2, 2, 0));
    assert_eq!((traffic.truncated, traffic.unflowed.packets), (0, 0));
}

#[test]
fn ipv6_extension_headers() {
    let traffic = count(|run| {
        // Hop-by-hop (8 bytes), destination options (16), authentication (16), then a SYN.
        let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0];
        chain.extend([51, 1]);
        chain.extend([0; 14]);
        chain.extend([6, 2]);
        chain.extend([0; 14]);
        chain.extend(tcp(2, 0));
        run(&frame(UNICAST, 0x86dd, &ipv6(0, &chain)), Gso::default());
        // A chain that does not end.
        let endless: Vec<u8> = std::iter::repeat_n([0, 0, 0, 0, 0, 0, 0, 0], 64).flatten().collect();
        run(&frame(UNICAST, 0x86dd, &ipv6(0, &endless)), Gso::default());
    });
    assert_eq!((traffic.protocol.tcp.packets, traffic.tcp_flags.syn), (1, 1));
    assert_eq!(traffic.protocol.other.packets, 1);
    assert_eq!(traffic.ethertype.ipv6.packets, 2);
}

#[test]
fn vlan_and_qinq() {
    let ip = ipv4(17, 0, 0, &[0; 8]);
    let traffic = count(move |run| {
        let mut single = ethernet(UNICAST, 0x8100);
        single.extend([0, 5, 0x08, 0x00]);
        single.extend(&ip);
        run(&single, Gso::default());
        let mut double = ethernet(UNICAST, 0x88a8);
        double.extend([0, 5, 0x81, 0x00, 0, 6, 0x08, 0x00]);
        double.extend(&ip);
        run(&double, Gso::default());
        let mut arp = ethernet(BROADCAST, 0x8100);
        arp.extend([0, 5, 0x08, 0x06]);
        arp.extend([0; 28]);
        run(&arp, Gso::default());
    });
    assert_eq!(traffic.packets, 3);
    assert_eq!(traffic.ethertype.vlan.packets, 3);
    assert_eq!(traffic.protocol.udp.packets, 2);
    assert_eq!((traffic.cast.unicast.packets, traffic.cast.broadcast.packets), (2, 1));
}

#[test]
fn casts_and_other_ethertypes() {
    let traffic = count(|run| {
        run(&frame(BROADCAST, 0x0806, &[0; 28]), Gso::default());
        run(&frame(MULTICAST, 0x86dd, &ipv6(58, &[0; 24])), Gso::default());
        run(&frame(UNICAST, 0x88cc, &[0; 46]), Gso::default());
    });
    assert_eq!(traffic.ethertype.arp.packets, 1);
    assert_eq!(traffic.ethertype.other.packets, 1);
    assert_eq!(traffic.protocol.icmpv6.packets, 1);
    assert_eq!(traffic.cast.broadcast.bytes, 42);
    assert_eq!((traffic.cast.multicast.packets, traffic.cast.unicast.packets), (1, 1));
    let by_protocol: u64 = traffic.protocol.each().iter().map(|(_, count)| count.packets).sum();
    assert_eq!(by_protocol, 1, "frames that are not IP have no L4 protocol");
}

#[test]
fn super_packets_are_unfolded() {
    let packet = frame(UNICAST, 0x0800, &ipv4(6, 0, 0, &tcp(0x10, 3_400)));
    let length = packet.len() as u64;
    let headers = 14 + 20 + 20;
    let traffic = count(move |run| run(&packet, Gso { segments: 3, size: 1448 }));
    assert_eq!((traffic.packets, traffic.bytes), (1, length));
    assert_eq!((traffic.wire_packets, traffic.wire_bytes), (3, length + 2 * headers));
    // Two of 1502 bytes, and one of 3,400 - 2 * 1448 and its headers.
    assert_eq!(traffic.size, [0, 0, 0, 0, 1, 2, 0, 0, 0]);
}

#[test]
fn sizes() {
    let traffic = count(|run| {
        for length in [60usize, 64, 65, 128, 129, 256, 512, 1024, 1025, 1518, 1519, 3000] {
            let mut packet = frame(UNICAST, 0x88cc, &[]);
            packet.resize(length, 0);
            run(&packet, Gso::default());
        }
    });
    assert_eq!(traffic.size, [2, 2, 2, 1, 1, 2, 2, 0, 0]);
}

#[test]
fn truncated_at_every_byte() {
    let mut chain = vec![60, 0, 0, 0, 0, 0, 0, 0];
    chain.extend([6, 0, 0, 0, 0, 0, 0, 0]);
    chain.extend(tcp(2, 0));
    let mut tagged = vec![0, 5, 0x08, 0x00];
    tagged.extend(ipv4(6, 8, 0, &tcp(2, 0)));
    let mut twice = vec![0, 5, 0x81, 0x00];
    twice.extend(&tagged);
    // The first of several.
    let mut fragment = vec![6, 0, 0, 1, 0, 0, 0, 1];
    fragment.extend(tcp(2, 0));
    // The kernel refuses to test-run an IP packet without its fixed header; netns.rs has those.
    for (shortest, whole) in [
        (34, frame(UNICAST, 0x0800, &ipv4(6, 12, 0, &tcp(2, 0)))),
        (54, frame(MULTICAST, 0x86dd, &ipv6(0, &chain))),
        (54, frame(UNICAST, 0x86dd, &ipv6(44, &fragment))),
        (34, frame(UNICAST, 0x0800, &ipv4(6, 0, 0x2000, &tcp(2, 0)))),
        (14, frame(BROADCAST, 0x8100, &tagged)),
        (14, frame(UNICAST, 0x88a8, &twice)),
    ] {
        let lengths = shortest..=whole.len();
        let expected = lengths.clone().count() as u64;
        let bytes: u64 = lengths.clone().map(|length| length as u64).sum();
        let traffic = count(move |run| {
            for length in lengths {
                run(&whole[..length], Gso::default());
            }
        });
        assert_eq!((traffic.packets, traffic.bytes), (expected, bytes));
        assert_eq!(traffic.wire_packets, expected);
        // Only where the window is there, which is read with the flags: its last byte and the four that follow it.
        assert_eq!(traffic.tcp_flags.syn, 5);
        assert_eq!(traffic.truncated, expected - 5);
        assert_eq!(traffic.tcp_zero_window, 0, "a SYN's is none");
    }
}

/// Of a fragment that is not the first nothing is needed behind what says so: of IPv6 the first four bytes of the
/// fragment header.
#[test]
fn later_fragments_truncated_at_every_byte() {
    let mut fragment = vec![6, 0, 0, 8 << 3, 0, 0, 0, 1];
    fragment.extend(tcp(2, 0));
    for (shortest, needed, whole) in [
        (34, 34, frame(UNICAST, 0x0800, &ipv4(6, 0, 1, &tcp(2, 0)))),
        (54, 58, frame(UNICAST, 0x86dd, &ipv6(44, &fragment))),
    ] {
        let lengths = shortest..=whole.len();
        let expected = lengths.clone().count() as u64;
        let traffic = count(move |run| {
            for length in lengths {
                run(&whole[..length], Gso::default());
            }
        });
        assert_eq!((traffic.packets, traffic.truncated), (expected, needed - shortest as u64));
        assert_eq!(traffic.tcp_flags.syn, 0);
    }
}

#[test]
fn random_frames_are_all_counted() {
    const FRAMES: u64 = 200_000;
    let traffic = count(|run| {
        // xorshift64, so that a failure can be repeated.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let ethertypes: [u16; 6] = [0x0800, 0x86dd, 0x8100, 0x88a8, 0x0806, 0x1234];
        for _ in 0..FRAMES {
            let length = 54 + (next() % 200) as usize;
            let mut packet = vec![0; length];
            for chunk in packet.chunks_mut(8) {
                let bytes = next().to_le_bytes();
                chunk.copy_from_slice(&bytes[..chunk.len()]);
            }
            let ethertype = ethertypes[(next() % 6) as usize];
            packet[12..14].copy_from_slice(&ethertype.to_be_bytes());
            run(&packet, Gso::default());
        }
    });
    assert_eq!(traffic.packets, FRAMES);
    let by_ethertype: u64 = traffic.ethertype.each().iter().map(|(_, count)| count.packets).sum();
    let by_cast: u64 = traffic.cast.each().iter().map(|(_, count)| count.packets).sum();
    let by_size: u64 = traffic.size.iter().sum();
    assert_eq!((by_ethertype, by_cast, by_size), (FRAMES, FRAMES, FRAMES));
}

#[test]
fn interfaces_that_share_a_directory_cell_are_told_apart() {
    use netobs_common::IFACE_CELLS;
    let host = Netns::new();
    let apart = IFACE_CELLS + 100;
    host.sh(&format!(
        "ip link add name near0 index 100 type veth peer name near1; \
         ip link add name far0 index {apart} type veth peer name far1; \
         for name in near0 near1 far0 far1; do ip link set $name up; done; \
         ip addr add 10.1.0.1/24 dev near0; ip addr add 10.2.0.1/24 dev far0; \
         ip neigh add 10.1.0.2 lladdr 02:00:00:00:00:01 dev near0; \
         ip neigh add 10.2.0.2 lladdr 02:00:00:00:00:02 dev far0"
    ));
    let counts = host.run(move || {
        let mut observer = Observer::load(Options {
            max_interfaces: 4,
            mode: AttachMode::Auto,
            max_flows: 1024,
            events: EventOptions::default(),
            log: false,
        })
        .expect("load");
        let (first, second) = (InterfaceKey(1), InterfaceKey(2));
        observer.attach(first, 100, false).expect("attach near0");
        observer.attach(second, apart, false).expect("attach far0");
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bind");
        let send = |address: &str, times: usize| {
            for _ in 0..times {
                socket.send_to(b"x", (address, 9)).expect("send");
            }
        };
        send("10.1.0.2", 3);
        send("10.2.0.2", 5);
        let sent = |observer: &Observer, key| {
            observer.read(key).map(|counted| Traffic::from(&counted.egress).protocol.udp.packets)
        };
        let both = (sent(&observer, first), sent(&observer, second));
        // The cell's holder goes; the other stays where it is.
        observer.detach(first);
        send("10.2.0.2", 2);
        (both, sent(&observer, first), sent(&observer, second))
    });
    assert_eq!(counts, ((Some(3), Some(5)), None, Some(7)));
}
