//! A packet as a line of text.

use std::{
    fmt::Write as _,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use super::dissect::{Icmp, Ip, Layers, Transport, ethertype_name, protocol_name};
use crate::{
    model::{Book, Dropped, InterfaceKind, Packet, Place, Way, drops::DropKind},
    output::{drops::words, format::escape},
};

/// With the line's end.
pub fn line(packet: &Packet, layers: &Layers, book: &Book, into: &mut Vec<u8>) {
    let mut line = format!("{} ", time_of_day(packet.time_ns));
    line += &place(packet);
    line += match packet.way {
        Way::Rx => " rx",
        Way::Tx => " tx",
    };
    headers(packet, layers, book, &mut line);
    line.push('\n');
    into.extend(line.as_bytes());
}

/// With the line's end: where and why, and then as of any other packet.
pub fn dropped(dropped: &Dropped, layers: &Layers, into: &mut Vec<u8>) {
    let Dropped { packet, kind } = dropped;
    let mut line = format!("{} {}", time_of_day(packet.time_ns), end_of(kind));
    let book = Book { by_address: dropped.names(), ..Book::default() };
    if packet.bytes.is_empty() {
        // None of it is to be had: what else is known.
        let (from, to) = (words::party(&kind.source), words::party(&kind.destination));
        let _ = write!(line, ", {from} > {to} {} length {}", words::what(kind), packet.length);
    } else {
        line.push(',');
        headers(packet, layers, &book, &mut line);
    }
    line.push('\n');
    into.extend(line.as_bytes());
}

/// `dropped NO_SOCKET at eth0 in web by udp_queue_rcv_one_skb+0x1a4`.
pub fn end_of(kind: &DropKind) -> String {
    let ordinary = if kind.ordinary { " (ordinary)" } else { "" };
    let (reason, at, place) = (escape(&kind.reason), words::at(&kind.at), words::place(kind));
    format!("dropped {reason}{ordinary} at {at} by {place}")
}

/// From the link header to the length.
fn headers(packet: &Packet, layers: &Layers, book: &Book, line: &mut String) {
    link(layers, line);
    if let Some(arp) = &layers.arp {
        let operation = match arp.operation {
            1 => "request".to_owned(),
            2 => "reply".to_owned(),
            other => format!("operation {other}"),
        };
        let _ = write!(
            line,
            " ARP {operation} sender {} {}{} target {} {}{}",
            arp.sender_mac,
            arp.sender,
            name(arp.sender.into(), book),
            arp.target_mac,
            arp.target,
            name(arp.target.into(), book)
        );
    } else if let Some(ip) = &layers.ip {
        network(ip, layers.transport.as_ref(), book, line);
    } else if let Some(ethernet) = &layers.ethernet {
        match ethertype_name(ethernet.ethertype.0) {
            Some(name) => *line += &format!(" {name}"),
            None => *line += &format!(" ethertype {}", ethernet.ethertype),
        }
    }
    if layers.truncated {
        *line += " [cut]";
    }
    let _ = write!(line, " length {}", packet.length);
    if packet.segments > 1 {
        let _ = write!(line, " ({} segments)", packet.segments);
    }
}

fn link(layers: &Layers, line: &mut String) {
    if let Some(ethernet) = &layers.ethernet {
        let _ = write!(line, " {} > {}", ethernet.source, ethernet.destination);
    }
    for tag in &layers.vlan {
        let _ = write!(line, " vlan {}", tag.id);
        if tag.priority != 0 {
            let _ = write!(line, " priority {}", tag.priority);
        }
    }
}

fn network(ip: &Ip, transport: Option<&Transport>, book: &Book, line: &mut String) {
    let version = if ip.source.is_ipv4() { "IPv4" } else { "IPv6" };
    let (from, to) = match transport.and_then(ports) {
        Some((from, to)) => (end(ip.source, Some(from)), end(ip.destination, Some(to))),
        None => (end(ip.source, None), end(ip.destination, None)),
    };
    let (from_name, to_name) = (name(ip.source, book), name(ip.destination, book));
    let _ = write!(line, " {version} {from}{from_name} > {to}{to_name}");
    match protocol_name(ip.protocol) {
        Some(name) => *line += &format!(" {name}"),
        None => *line += &format!(" protocol {}", ip.protocol),
    }
    match transport {
        Some(Transport::Tcp { flags, sequence, acknowledgement, window, .. }) => {
            if let Some(flags) = flags {
                let _ = write!(line, " [{flags}]");
            }
            for (what, value) in
                [("seq", *sequence), ("ack", *acknowledgement), ("win", window.map(u32::from))]
            {
                if let Some(value) = value {
                    let _ = write!(line, " {what} {value}");
                }
            }
        }
        Some(Transport::Icmp(icmp) | Transport::Icmpv6(icmp)) => *line += &icmp_text(icmp),
        Some(Transport::Udp { .. } | Transport::Sctp { .. }) | None => {}
    }
    if let Some(fragment) = &ip.fragment {
        let more = if fragment.more { "+" } else { "" };
        let _ = write!(line, " fragment {} at {}{more}", fragment.id, fragment.offset_bytes);
    }
}

fn icmp_text(icmp: &Icmp) -> String {
    match &icmp.echo {
        Some(echo) => {
            let what = if echo.request { "request" } else { "reply" };
            format!(" echo {what} id {} seq {}", echo.id, echo.sequence)
        }
        None => format!(" type {} code {}", icmp.kind, icmp.code),
    }
}

const fn ports(transport: &Transport) -> Option<(u16, u16)> {
    match transport {
        Transport::Tcp { source_port, destination_port, .. }
        | Transport::Udp { source_port, destination_port }
        | Transport::Sctp { source_port, destination_port } => Some((*source_port, *destination_port)),
        Transport::Icmp(_) | Transport::Icmpv6(_) => None,
    }
}

fn end(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (_, None) => address.to_string(),
        (IpAddr::V4(address), Some(port)) => format!("{address}:{port}"),
        (IpAddr::V6(address), Some(port)) => format!("[{address}]:{port}"),
    }
}

fn name(address: IpAddr, book: &Book) -> String {
    book.by_address.get(&address).map(|name| format!(" ({})", escape(name))).unwrap_or_default()
}

/// `container/interface@host-interface`; `network@bridge` for a bridge.
pub fn place(packet: &Packet) -> String {
    let Some(point) = &packet.point else { return "?".to_owned() };
    let at = match point.place {
        Place::Host => escape(&point.interface),
        Place::Inside | Place::Cgroup => point.place.name().to_owned(),
    };
    match &point.owner {
        Some(owner) if point.place == Place::Cgroup => format!("{}@{at}", escape(&owner.name)),
        Some(owner) => format!("{}/{}@{at}", escape(&owner.name), escape(&owner.interface)),
        None if point.kind == InterfaceKind::Bridge => format!("{}@{at}", escape(point.name())),
        None => format!("?@{at}"),
    }
}

/// UTC, to the nanosecond: `10:40:40.123456789`.
fn time_of_day(time_ns: u64) -> String {
    let (seconds, nanoseconds) = (time_ns / 1_000_000_000 % 86_400, time_ns % 1_000_000_000);
    format!("{:02}:{:02}:{:02}.{nanoseconds:09}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// UTC, RFC 3339 to the nanosecond.
pub fn timestamp(time_ns: u64) -> String {
    let time = SystemTime::UNIX_EPOCH + Duration::from_nanos(time_ns);
    humantime::format_rfc3339_nanos(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::trace::fixture::{self, book, frame, packet};

    fn told(bytes: Vec<u8>) -> String {
        let packet = packet(bytes);
        let mut text = Vec::new();
        line(&packet, &Layers::of(&packet), &book(), &mut text);
        String::from_utf8(text).expect("UTF-8")
    }

    #[test]
    fn lines() {
        const BEGIN: &str = "10:40:40.123456789 web/eth0@veth1 rx 02:00:00:00:00:01 > 02:00:00:00:00:02";
        const NAME: &str = "(we\\x1b[31mb\\n\"\\u{202e})";
        let framed = |ethertype, rest: &[u8]| [frame::ethernet(ethertype).as_slice(), rest].concat();
        for (bytes, rest) in [
            (
                framed(0x0800, &frame::ipv4(6, 0, &frame::tcp(0x12))),
                format!(
                    "IPv4 10.0.0.1:51234 {NAME} > 10.0.0.2:80 (web) TCP [S.] seq 1 ack 2 win 8192 length 54"
                ),
            ),
            (
                framed(0x86dd, &frame::ipv6(58, &[128, 0, 0, 0, 0, 7, 0, 3])),
                "IPv6 fd77::1 > fd77::2 ICMPv6 echo request id 7 seq 3 length 62".to_owned(),
            ),
            (
                framed(0x86dd, &frame::ipv6(17, &[0, 1, 0, 2, 0, 8, 0, 0])),
                "IPv6 [fd77::1]:1 > [fd77::2]:2 UDP length 62".to_owned(),
            ),
            (
                framed(0x0800, &frame::ipv4(17, 0x2001, &[0; 8])),
                format!("IPv4 10.0.0.1 {NAME} > 10.0.0.2 (web) UDP fragment 4660 at 8+ length 42"),
            ),
            (
                framed(0x8100, &[0x60, 5, 0x88, 0xcc, 0]),
                "vlan 5 priority 3 ethertype 0x88cc length 19".to_owned(),
            ),
            (framed(0x0800, &[0x45]), "IPv4 [cut] length 15".to_owned()),
            (
                framed(0x0800, &frame::ipv4(47, 0, &[])),
                format!("IPv4 10.0.0.1 {NAME} > 10.0.0.2 (web) protocol 47 length 34"),
            ),
        ] {
            assert_eq!(told(bytes), format!("{BEGIN} {rest}\n"));
        }
        let mut arp = frame::ethernet(0x0806);
        arp.extend([0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        assert_eq!(
            told(arp),
            format!(
                "{BEGIN} ARP request sender 02:00:00:00:00:01 10.0.0.1 {NAME} target 00:00:00:00:00:00 \
                 10.0.0.2 (web) length 42\n"
            )
        );
    }

    #[test]
    fn drops() {
        const BEGIN: &str = "10:40:40.123456789 dropped NETFILTER_DROP at eth0 in web by nft_do_chain+0x3e8 \
                             (nf_tables at input), ";
        let told = |dropped: &Dropped| {
            let mut text = Vec::new();
            super::dropped(dropped, &Layers::of(&dropped.packet), &mut text);
            String::from_utf8(text).expect("UTF-8")
        };
        let bytes = [frame::ethernet(0x0800).as_slice(), &frame::ipv4(6, 0, &frame::tcp(0x02))].concat();
        let whole = fixture::dropped(bytes);
        assert_eq!(
            told(&whole),
            format!(
                "{BEGIN}02:00:00:00:00:01 > 02:00:00:00:00:02 IPv4 10.0.0.1:51234 (we\\x1b[31mb\\n\"\\u{{202e}}) > \
                 10.0.0.2:80 (web) TCP [S] seq 1 ack 2 win 8192 length 54\n"
            )
        );
        assert!(told(&whole.numeric()).contains("IPv4 10.0.0.1:51234 > 10.0.0.2:80 TCP"));
        // None of it was to be had.
        assert_eq!(
            told(&fixture::dropped(Vec::new())),
            format!("{BEGIN}we\\x1b[31mb\\n\"\\u{{202e}} 10.0.0.1 > web 10.0.0.2 tcp 80 length 54\n")
        );
    }
}
