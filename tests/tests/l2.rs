//! ARP and addresses of containers, on real traffic and to the packet. Without an engine, so that it runs on any
//! kernel.

use netobs_tests::{
    bridged::Bridged,
    frames, kernel,
    pretend::Pretend,
    program::{Watch, container, number},
    traffic,
};
use serde_json::Value;

const OPTIONS: [&str; 2] = ["--no-engine", "--grace=60s"];
const BRIDGE: &str = "br-l2";

/// Number n (from 0) has 10.54.0.(last[n]).
fn bridged(last: &[u8]) -> Bridged {
    Bridged::new(BRIDGE, "10.54.0", last.iter().copied())
}

fn start(world: &Bridged, options: &[&str]) -> Watch {
    world.watch(&[&OPTIONS, options].concat())
}

/// What is said of a container's ARP, once it has sent so many requests and none waits any more.
fn settled(world: &Bridged, watch: &Watch, n: usize, requests: u64, done: impl Fn(&Value) -> bool) -> Value {
    watch.until(&format!("{requests} requests of {n}"), |snapshot| {
        let arp = container(snapshot, world.name(n))?["arp"].clone();
        (number(&arp, "requests_tx") == requests && done(&arp)).then_some(arp)
    })
}

fn parts<const N: usize>(arp: &Value, parts: [&str; N]) -> [u64; N] {
    parts.map(|part| number(arp, part))
}

const REQUESTS_AND_REPLIES: [&str; 4] = ["requests_tx", "replies_rx", "requests_rx", "replies_tx"];
const REST: [&str; 5] = ["announcements", "unanswered", "untracked", "duplicates", "other"];

/// `arping` asks once a second, and each is answered: to the packet, as the exact layer counts them.
#[test]
fn requests_and_replies() {
    let world = bridged(&[10, 11]);
    let watch = start(&world, &[]);
    world.netns(0).sh("busybox arping -q -c 4 -I eth0 10.54.0.11");
    let asks = settled(&world, &watch, 0, 4, |arp| number(arp, "replies_rx") == 4);
    assert_eq!(parts(&asks, REQUESTS_AND_REPLIES), [4, 4, 0, 0], "{asks}");
    assert_eq!(parts(&asks, REST), [0; 5], "{asks}");
    let answers = settled(&world, &watch, 1, 0, |arp| number(arp, "replies_tx") == 4);
    assert_eq!(parts(&answers, REQUESTS_AND_REPLIES), [0, 0, 4, 4], "{answers}");
    assert_eq!(parts(&answers, REST), [0; 5], "{answers}");
    for n in 0..2 {
        let seen = container(&watch.fresh(), world.name(n)).expect("there");
        let arp = |direction: &str| number(&seen, &format!("{direction}.ethertype.arp.packets"));
        assert_eq!((arp("rx"), arp("tx")), (4, 4), "{seen}");
    }
}

#[test]
fn requests_that_nobody_answers() {
    let world = bridged(&[10, 11]);
    let watch = start(&world, &[]);
    // The kernel's own: three, a second apart, and then it gives up.
    world.netns(0).try_sh("busybox ping -q -c 1 -W 4 10.54.0.77");
    let unanswered = settled(&world, &watch, 0, 3, |arp| number(arp, "unanswered") == 3);
    assert_eq!(parts(&unanswered, REQUESTS_AND_REPLIES), [3, 0, 0, 0], "{unanswered}");
    // What tells an address, or looks whether anybody has one, asks nobody.
    world.netns(0).try_sh("busybox arping -q -U -c 2 -I eth0 10.54.0.10");
    world.netns(0).try_sh("busybox arping -q -D -c 2 -w 3 -I eth0 10.54.0.78");
    // One that is answered, after all.
    world.netns(0).sh("busybox arping -q -c 1 -I eth0 10.54.0.11");
    let done = settled(&world, &watch, 0, 8, |arp| number(arp, "replies_rx") == 1);
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let later = settled(&world, &watch, 0, 8, |_| true);
    assert_eq!(parts(&later, REST), [4, 3, 0, 0, 0], "{later}, before {done}");
    // Neither a request nor a reply.
    let mut reverse = frames::arp([10, 54, 0, 10], [10, 54, 0, 11]);
    reverse[7] = 3;
    traffic::raw(world.netns(0), "eth0", vec![frames::ethernet(0x0806, &reverse); 3]);
    let other = settled(&world, &watch, 0, 8, |arp| number(arp, "other") == 3);
    assert_eq!(parts(&other, REQUESTS_AND_REPLIES), [8, 1, 0, 0], "{other}");
}

/// Two containers have the same address, a third asks for it: both are told of, once.
#[test]
fn an_address_that_two_have() {
    let world = bridged(&[10, 11, 11]);
    let watch = start(&world, &[]);
    world.netns(0).sh("busybox arping -b -q -c 2 -I eth0 10.54.0.11");
    let asks = settled(&world, &watch, 0, 2, |arp| number(arp, "replies_rx") == 4);
    assert_eq!(parts(&asks, REST), [0; 5], "it has no part in it: {asks}");
    assert_eq!(asks["conflicts"].as_array().map(Vec::len), Some(0), "{asks}");
    let mut macs = [1, 2].map(|n| kernel::mac(world.netns(n), "eth0"));
    macs.sort();
    let mut names = [world.name(1), world.name(2)];
    names.sort_unstable();
    for n in [1, 2] {
        let arp = settled(&world, &watch, n, 0, |arp| number(arp, "duplicates") == 1);
        assert_eq!(parts(&arp, REQUESTS_AND_REPLIES), [0, 0, 2, 2], "{arp}");
        let [conflict] = arp["conflicts"].as_array().expect("conflicts").as_slice() else { panic!("{arp}") };
        assert_eq!((&conflict["address"], &conflict["network"]), (&"10.54.0.11".into(), &BRIDGE.into()));
        assert_eq!(conflict["macs"].to_string(), format!("{macs:?}").replace(' ', ""));
        assert_eq!(conflict["containers"].to_string(), format!("{names:?}").replace(' ', ""));
    }
}

/// The next container gets the address of one that has gone, with another MAC address: no conflict.
#[test]
fn an_heir_is_no_duplicate() {
    let mut world = bridged(&[10, 11]);
    let watch = start(&world, &[]);
    world.netns(0).sh("busybox arping -q -c 1 -I eth0 10.54.0.11");
    settled(&world, &watch, 1, 0, |arp| number(arp, "replies_tx") == 1);
    drop(world.containers.pop());
    watch.until("its end", |snapshot| {
        netobs_tests::program::interface(snapshot, "veth1").is_none().then_some(())
    });
    world.put(Pretend::new(), "ip addr add 10.54.0.11/24 dev eth0; ip link set eth0 up");
    world.until_known(&watch, 1);
    world.netns(0).sh("busybox arping -q -c 2 -I eth0 10.54.0.11");
    let arp = settled(&world, &watch, 1, 0, |arp| number(arp, "replies_tx") == 2);
    assert_eq!(
        (number(&arp, "duplicates"), arp["conflicts"].as_array().map(Vec::len)),
        (0, Some(0)),
        "{arp}"
    );
}

/// Packets that a container sends from an address that is not its own.
#[test]
fn from_an_address_of_others() {
    let world = bridged(&[10, 11]);
    let watch = start(&world, &[]);
    let datagram = |from: [u8; 4]| {
        let payload = frames::ports(4000, 9, 8);
        frames::ethernet(0x0800, &frames::ipv4(17, from, [10, 54, 0, 11], 0, &payload))
    };
    let mut sent = vec![datagram([10, 54, 0, 10]); 5];
    sent.extend(vec![datagram([192, 0, 2, 1]); 7]);
    // As DHCP has it: nobody has an address yet.
    sent.extend(vec![datagram([0, 0, 0, 0]); 2]);
    traffic::raw(world.netns(0), "eth0", sent);
    let foreign = watch.until("its packets", |snapshot| {
        let seen = container(snapshot, world.name(0))?;
        (number(&seen, "foreign_address.packets") == 7).then_some(seen)
    });
    assert_eq!(number(&foreign, "foreign_address.bytes"), 7 * (14 + 20 + 8), "{foreign}");
    assert_eq!(number(&foreign, "tx.protocol.udp.packets"), 14, "{foreign}");
    let other = container(&watch.fresh(), world.name(1)).expect("there");
    assert_eq!(number(&other, "foreign_address.packets"), 0, "{other}");
}

/// Frames that a container sends from a MAC address that is not its interface's: IP, ARP and anything else.
#[test]
fn from_a_mac_address_of_others() {
    let world = bridged(&[10, 11]);
    let watch = start(&world, &[]);
    let own = kernel::mac(world.netns(0), "eth0");
    let own: Vec<u8> =
        own.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC address")).collect();
    let from = |mac: &[u8], ethertype: u16, payload: &[u8]| {
        let mut frame = frames::ethernet(ethertype, payload);
        frame[6..12].copy_from_slice(mac);
        frame
    };
    let datagram = frames::ipv4(17, [10, 54, 0, 10], [10, 54, 0, 11], 0, &frames::ports(4000, 9, 8));
    let arp = frames::arp([10, 54, 0, 10], [10, 54, 0, 11]);
    let mut sent = vec![from(&own, 0x0800, &datagram); 3];
    sent.extend(vec![from(&[2, 0, 0, 0, 0, 1], 0x0800, &datagram); 5]);
    sent.extend(vec![from(&[2, 0, 0, 0, 0, 2], 0x0806, &arp); 4]);
    // As long as it takes to be a frame, and no header beyond; and from nobody.
    sent.extend(vec![from(&[0; 6], 0x88b5, &[]); 2]);
    traffic::raw(world.netns(0), "eth0", sent);
    let bytes = 5 * (14 + datagram.len()) + 4 * (14 + arp.len()) + 2 * 14;
    let seen = watch.until("its frames", |snapshot| {
        let seen = container(snapshot, world.name(0))?;
        (number(&seen, "foreign_mac.packets") == 11).then_some(seen)
    });
    assert_eq!(number(&seen, "foreign_mac.bytes"), bytes as u64, "{seen}");
    assert_eq!(number(&seen, "foreign_mac.unjudged_packets"), 0, "{seen}");
    // What it receives is from others, of course.
    let other = container(&watch.fresh(), world.name(1)).expect("there");
    assert!(number(&other, "rx.packets") > 0, "{other}");
    assert_eq!(parts(&other, ["foreign_mac.packets", "foreign_mac.unjudged_packets"]), [0, 0], "{other}");
}

/// The first frame is not from the interface's own address: what passes before that is known is stated as unknown.
#[test]
fn the_first_frame_from_a_mac_address_of_others() {
    let mut world = bridged(&[10]);
    let watch = start(&world, &[]);
    let late = Pretend::new();
    // Nothing is sent by itself.
    late.netns().sh("echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6");
    world.put(late, "ip link set eth0 arp off up");
    world.until_known(&watch, 1);
    let mut frame = frames::ethernet(0x88b5, &[0; 46]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    traffic::raw(world.netns(1), "eth0", vec![frame.clone(); 3]);
    let sent = |snapshot: &Value, packets: u64| {
        let seen = container(snapshot, world.name(1))?;
        (number(&seen, "tx.packets") == packets).then_some(seen)
    };
    let first = watch.until("the first", |snapshot| sent(snapshot, 3));
    let figures = ["foreign_mac.packets", "foreign_mac.unjudged_packets"];
    assert_eq!(parts(&first, figures), [0, 3], "{first}");
    traffic::raw(world.netns(1), "eth0", vec![frame; 2]);
    let later = watch.until("the others", |snapshot| sent(snapshot, 5));
    assert_eq!(parts(&later, figures), [2, 3], "{later}");
}

#[test]
fn not_looked_at() {
    let world = bridged(&[10, 11]);
    let watch = start(&world, &["--no-arp", "--no-dns"]);
    world.netns(0).sh("busybox arping -q -c 1 -I eth0 10.54.0.11");
    let seen = watch.until("the request", |snapshot| {
        let seen = container(snapshot, world.name(0))?;
        (number(&seen, "tx.ethertype.arp.packets") == 1).then_some(seen)
    });
    assert!(seen["arp"].is_null() && seen["dns"].is_null(), "{seen}");
    assert!(watch.fresh()["agent"]["events"].is_null());
}
