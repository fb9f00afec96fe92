//! Packets and names for tests; names that try to break out are among them.

use std::sync::Arc;

use crate::model::{
    Book, Dropped, InterfaceKey, InterfaceKind, Packet, Place, Point, PointOwner, Way,
    drops::{DropKind, Location, Netfilter, Party},
};

pub const HOSTILE: &str = "we\x1b[31mb\n\"\u{202e}";

/// 2026-11-21T10:40:40.123456789Z
pub const TIME_NS: u64 = 1_795_257_640_123_456_789;

pub fn point(name: &str, key: u64) -> Point {
    Point {
        key: InterfaceKey(key),
        interface: "veth1".into(),
        kind: InterfaceKind::Veth,
        place: Place::Host,
        network: Some("front".into()),
        is_named: true,
        owner: Some(PointOwner {
            id: "0123456789abcdef".into(),
            name: name.into(),
            members: Vec::new(),
            interface: "eth0".into(),
            addresses: vec!["10.0.0.2".parse().expect("an address")],
        }),
    }
}

pub fn packet(bytes: Vec<u8>) -> Packet {
    Packet {
        time_ns: TIME_NS,
        point: Some(Arc::new(point("web", 7))),
        slot: 0,
        way: Way::Rx,
        length: u32::try_from(bytes.len()).expect("short"),
        segments: 0,
        link: true,
        bytes,
    }
}

/// Dropped in a container's namespace, from one whose name tries to break out.
pub fn dropped(bytes: Vec<u8>) -> Dropped {
    let party = |address: &str, name: &str| Party {
        address: Some(address.parse().expect("an address")),
        container: Some(name.into()),
        container_id: Some("0123456789abcdef".into()),
        ..Party::default()
    };
    let at = Location {
        container: Some("web".into()),
        container_id: Some("0123456789abcdef".into()),
        interface: Some("eth0".into()),
        ifindex: Some(2),
        ..Location::default()
    };
    Dropped {
        packet: Packet { point: None, length: 54, ..packet(bytes) },
        kind: DropKind {
            reason: "NETFILTER_DROP".into(),
            ordinary: false,
            source: party("10.0.0.1", HOSTILE),
            destination: party("10.0.0.2", "web"),
            ethertype: 0x0800,
            protocol: Some(6),
            port: Some(80),
            icmp_type: None,
            icmp_code: None,
            place: Some("nft_do_chain+0x3e8".into()),
            netfilter: Some(Netfilter::of("ip_local_deliver", Some("nft_do_chain_ipv4"))),
            at,
        },
    }
}

pub fn book() -> Book {
    let mut book = Book::default();
    book.by_address.insert("10.0.0.1".parse().expect("an address"), HOSTILE.into());
    book.by_address.insert("10.0.0.2".parse().expect("an address"), "web".into());
    book
}

pub mod frame {
    pub fn ethernet(ethertype: u16) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
        frame.extend(ethertype.to_be_bytes());
        frame
    }

    /// From 10.0.0.1 to 10.0.0.2; `fragment` as in the header.
    pub fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + payload.len()).expect("short");
        let mut header = vec![0x45, 0];
        header.extend(length.to_be_bytes());
        header.extend([0x12, 0x34]);
        header.extend(fragment.to_be_bytes());
        header.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        header.extend(payload);
        header
    }

    /// From fd77::1 to fd77::2.
    pub fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut header = vec![0x60, 0, 0, 0];
        header.extend(u16::try_from(payload.len()).expect("short").to_be_bytes());
        header.extend([next, 64]);
        for last in [1, 2] {
            header.extend([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        header.extend(payload);
        header
    }

    /// From port 51234 to 80.
    pub fn tcp(flags: u8) -> Vec<u8> {
        let mut header = vec![0xc8, 0x22, 0, 80, 0, 0, 0, 1, 0, 0, 0, 2, 5 << 4, flags, 0x20, 0];
        header.resize(20, 0);
        header
    }
}
