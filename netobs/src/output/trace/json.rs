//! A packet as a line of JSON.

use std::net::IpAddr;

use serde::Serialize;

use super::{dissect::Layers, text::timestamp};
use crate::{
    model::{Book, Dropped, Packet, Way, drops::DropKind},
    output::json::document,
};

#[derive(Serialize)]
struct Line<'a> {
    /// UTC, RFC 3339 to the nanosecond.
    time: String,
    /// None: a bridge, or not known.
    container: Option<&'a str>,
    container_id: Option<&'a str>,
    /// Inside the container.
    interface: Option<&'a str>,
    network: Option<&'a str>,
    /// What is attached to: an interface of the host, one inside the container, `cgroup`.
    attached_to: Option<&'a str>,
    place: Option<&'static str>,
    /// From the container's side; a bridge's own where there is none.
    direction: Way,
    length: u32,
    captured: usize,
    /// Of a GSO or GRO super-packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    segments: Option<u16>,
    /// Containers that have the addresses (of ARP: sender and target).
    #[serde(skip_serializing_if = "Option::is_none")]
    source_container: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_container: Option<&'a str>,
    #[serde(flatten)]
    layers: &'a Layers,
}

/// With the line's end.
pub fn line(packet: &Packet, layers: &Layers, book: &Book, into: &mut Vec<u8>) -> serde_json::Result<()> {
    let point = packet.point.as_deref();
    let owner = point.and_then(|point| point.owner.as_ref());
    let ends: Option<(IpAddr, IpAddr)> = match (&layers.ip, &layers.arp) {
        (Some(ip), _) => Some((ip.source, ip.destination)),
        (None, Some(arp)) => Some((arp.sender.into(), arp.target.into())),
        (None, None) => None,
    };
    let name = |address: IpAddr| book.by_address.get(&address).map(String::as_str);
    let line = Line {
        time: timestamp(packet.time_ns),
        container: owner.map(|owner| owner.name.as_str()),
        container_id: owner.map(|owner| owner.id.as_str()),
        interface: owner.map(|owner| owner.interface.as_str()),
        network: point.and_then(|point| point.network.as_deref()),
        attached_to: point.map(|point| point.interface.as_str()),
        place: point.map(|point| point.place.name()),
        direction: packet.way,
        length: packet.length,
        captured: packet.bytes.len(),
        segments: (packet.segments > 1).then_some(packet.segments),
        source_container: ends.and_then(|(source, _)| name(source)),
        destination_container: ends.and_then(|(_, destination)| name(destination)),
        layers,
    };
    into.extend_from_slice(document(&line)?.as_bytes());
    into.push(b'\n');
    Ok(())
}

#[derive(Serialize)]
struct DroppedLine<'a> {
    /// As of other lines, which have no `event`.
    time: String,
    event: &'static str,
    /// As `netobs drops` has it.
    #[serde(flatten)]
    kind: &'a DropKind,
    length: u32,
    captured: usize,
    #[serde(flatten)]
    layers: &'a Layers,
}

/// With the line's end.
pub fn dropped(dropped: &Dropped, layers: &Layers, into: &mut Vec<u8>) -> serde_json::Result<()> {
    let Dropped { packet, kind } = dropped;
    let line = DroppedLine {
        time: timestamp(packet.time_ns),
        event: "drop",
        kind,
        length: packet.length,
        captured: packet.bytes.len(),
        layers,
    };
    into.extend_from_slice(document(&line)?.as_bytes());
    into.push(b'\n');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::trace::fixture::{self, HOSTILE, book, frame, packet};

    #[test]
    fn one_object_a_line() {
        let mut bytes = frame::ethernet(0x8100);
        bytes.extend([0, 5, 0x08, 0]);
        bytes.extend(frame::ipv4(6, 0, &frame::tcp(0x02)));
        let packet = packet(bytes);
        let mut text = Vec::new();
        line(&packet, &Layers::of(&packet), &book(), &mut text).expect("JSON");
        assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1);
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        let expected = serde_json::json!({
            "time": "2026-11-21T10:40:40.123456789Z",
            "container": "web", "container_id": "0123456789abcdef", "interface": "eth0", "network": "front",
            "attached_to": "veth1", "place": "host", "direction": "rx", "length": 58, "captured": 58,
            "source_container": HOSTILE, "destination_container": "web",
            "ethernet": {
                "source": "02:00:00:00:00:01", "destination": "02:00:00:00:00:02", "ethertype": "0x0800"
            },
            "vlan": [{"id": 5, "priority": 0, "ethertype": "0x8100"}],
            "ip": {"source": "10.0.0.1", "destination": "10.0.0.2", "protocol": 6, "ttl": 64},
            "transport": {
                "protocol": "tcp", "source_port": 51234, "destination_port": 80, "flags": "S",
                "sequence": 1, "acknowledgement": 2, "window": 8192
            },
            "truncated": false,
        });
        assert_eq!(value, expected);
    }

    #[test]
    fn drops_have_what_netobs_drops_has() {
        let mut bytes = frame::ethernet(0x0800);
        bytes.extend(frame::ipv4(6, 0, &frame::tcp(0x02)));
        let told = fixture::dropped(bytes);
        let mut text = Vec::new();
        dropped(&told, &Layers::of(&told.packet), &mut text).expect("JSON");
        let value: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(
            (&value["event"], &value["time"]),
            (&"drop".into(), &"2026-11-21T10:40:40.123456789Z".into())
        );
        for (field, expected) in
            serde_json::to_value(&told.kind).expect("JSON").as_object().expect("an object")
        {
            assert_eq!(value[field], *expected, "{field}");
        }
        assert_eq!((&value["source"]["container"], &value["length"]), (&HOSTILE.into(), &54.into()));
        assert_eq!((&value["captured"], &value["transport"]["destination_port"]), (&54.into(), &80.into()));
    }
}
