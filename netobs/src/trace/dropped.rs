//! Which of the packets that the kernel dropped are asked for. The program tells of all: whose a packet was is
//! not known in the kernel.

use std::{collections::BTreeSet, net::IpAddr};

use crate::{
    ebpf::PacketFilter,
    model::{
        Dropped,
        drops::{DropKind, Party},
        named::has_id,
    },
    output::trace::{Layers, Transport},
};

/// What is asked for; all that is given must hold.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub filter: PacketFilter,
    /// By name or ID; empty: all.
    pub containers: Vec<String>,
    pub networks: Vec<String>,
}

impl Wanted {
    /// `chosen`: IDs of those that are asked for by other names than their own.
    pub fn has(&self, dropped: &Dropped, chosen: &BTreeSet<String>) -> bool {
        self.has_party(&dropped.kind, chosen) && has_headers(&self.filter, dropped)
    }

    /// A container that sent it, was to get it, or dropped it, that is asked for and on a network that is; of a
    /// network alone, anybody on it. Nobody asked for: any container's or network's.
    fn has_party(&self, kind: &DropKind, chosen: &BTreeSet<String>) -> bool {
        let parties = [&kind.source, &kind.destination];
        let on_network = |party: &Party| {
            self.networks.is_empty()
                || party.network.as_ref().is_some_and(|network| self.networks.contains(network))
        };
        if self.containers.is_empty() {
            let is_somebodys = |party: &Party| {
                party.container.is_some() || party.network.is_some() || !party.ambiguous.is_empty()
            };
            return parties.into_iter().any(|party| is_somebodys(party) && on_network(party))
                || self.networks.is_empty() && kind.at.container.is_some();
        }
        let is = |name: Option<&String>, id: Option<&String>| {
            id.is_some_and(|id| chosen.contains(id) || self.names_id(id))
                || name.is_some_and(|name| self.containers.contains(name))
        };
        let is_party = |party: &Party| {
            is(party.container.as_ref(), party.container_id.as_ref())
                || party.ambiguous.iter().any(|name| self.containers.contains(name))
        };
        parties.into_iter().any(|party| is_party(party) && on_network(party))
            || self.networks.is_empty() && is(kind.at.container.as_ref(), kind.at.container_id.as_ref())
    }

    /// As packets that pass are asked for.
    fn names_id(&self, id: &str) -> bool {
        self.containers.iter().any(|name| has_id(name, id))
    }
}

/// As the programs test packets that pass; one of which too little is to be had is not asked for.
fn has_headers(filter: &PacketFilter, dropped: &Dropped) -> bool {
    if *filter == PacketFilter::default() {
        return true;
    }
    let layers = Layers::of(&dropped.packet);
    let has_ethertype = |wanted: u16| {
        let of_frame = layers.ethernet.as_ref().map_or(dropped.kind.ethertype, |link| link.ethertype.0);
        of_frame == wanted || layers.vlan.iter().any(|tag| tag.ethertype.0 == wanted)
    };
    let has_host = |(address, prefix): (IpAddr, u8)| {
        let ends = match (&layers.ip, &layers.arp) {
            (Some(ip), _) => [ip.source, ip.destination],
            (None, Some(arp)) => [arp.sender.into(), arp.target.into()],
            (None, None) => return false,
        };
        ends.into_iter().any(|end| is_within(end, address, prefix))
    };
    let has_port = |wanted: u16| match layers.transport {
        Some(
            Transport::Tcp { source_port, destination_port, .. }
            | Transport::Udp { source_port, destination_port }
            | Transport::Sctp { source_port, destination_port },
        ) => wanted == source_port || wanted == destination_port,
        _ => false,
    };
    filter.ethertype.is_none_or(has_ethertype)
        && filter.host.is_none_or(has_host)
        && filter.protocol.is_none_or(|wanted| layers.ip.as_ref().is_some_and(|ip| ip.protocol == wanted))
        && filter.port.is_none_or(has_port)
}

/// Whether the first `prefix` bits are the same.
fn is_within(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let (address, network, width) = match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            (address.to_bits().into(), network.to_bits().into(), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => (address.to_bits(), network.to_bits(), 128),
        _ => return false,
    };
    let host_bits = u32::saturating_sub(width, prefix.into());
    u128::checked_shr(address ^ network, host_bits).is_none_or(|differs| differs == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Packet, Way, drops::Location};

    fn kind(source: Party, destination: Party, at: Location) -> DropKind {
        DropKind {
            reason: "R".into(),
            ordinary: false,
            source,
            destination,
            ethertype: 0x0800,
            protocol: Some(17),
            port: Some(53),
            icmp_type: None,
            icmp_code: None,
            place: None,
            netfilter: None,
            at,
        }
    }

    fn party(name: &str, network: &str) -> Party {
        let id = format!("{name:0<8}");
        Party {
            container: Some(name.into()),
            container_id: Some(id),
            network: Some(network.into()),
            ..Party::default()
        }
    }

    fn wanted(containers: &[&str], networks: &[&str]) -> Wanted {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Wanted { containers: owned(containers), networks: owned(networks), ..Wanted::default() }
    }

    #[test]
    fn whose_it_is() {
        let nobody = Party::default;
        let between = kind(party("web", "front"), party("db", "back"), Location::default());
        let at = Location {
            container: Some("web".into()),
            container_id: Some("web00000".into()),
            ..Location::default()
        };
        let inside = kind(nobody(), nobody(), at);
        let hosts =
            kind(Party { host: true, ..nobody() }, nobody(), Location { host: true, ..Location::default() });
        let either = kind(
            Party { ambiguous: vec!["web".into(), "db".into()], ..nobody() },
            nobody(),
            Location::default(),
        );
        let chosen = BTreeSet::from(["db000000".to_owned()]);
        for (containers, networks, expected) in [
            (&[][..], &[][..], [true, true, false, true]),
            (&["web"], &[], [true, true, false, true]),
            (&["web0"], &[], [true, true, false, false]),
            (&["we"], &[], [false; 4]),
            (&["web"], &["front"], [true, false, false, false]),
            (&["web"], &["back"], [false; 4]),
            (&[], &["back"], [true, false, false, false]),
            (&["other"], &[], [false; 4]),
        ] {
            let wanted = wanted(containers, networks);
            let has =
                [&between, &inside, &hosts, &either].map(|kind| wanted.has_party(kind, &BTreeSet::new()));
            assert_eq!(has, expected, "{containers:?} {networks:?}");
        }
        assert!(wanted(&["member"], &[]).has_party(&between, &chosen));
    }

    #[test]
    fn what_it_is() {
        let mut bytes = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        bytes.extend([0, 7, 0, 53, 0, 16, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
        let dropped = |bytes: &[u8]| Dropped {
            packet: Packet {
                time_ns: 0,
                point: None,
                slot: 0,
                way: Way::Rx,
                length: 36,
                segments: 0,
                link: false,
                bytes: bytes.to_vec(),
            },
            kind: kind(Party::default(), Party::default(), Location::default()),
        };
        let host = |text: &str, prefix| Some((text.parse().expect("an address"), prefix));
        let any = PacketFilter::default();
        for (filter, expected) in [
            (any, true),
            (PacketFilter { protocol: Some(17), port: Some(53), ..any }, true),
            (PacketFilter { port: Some(7), ethertype: Some(0x0800), ..any }, true),
            (PacketFilter { port: Some(54), ..any }, false),
            (PacketFilter { protocol: Some(6), ..any }, false),
            (PacketFilter { ethertype: Some(0x86dd), ..any }, false),
            (PacketFilter { host: host("10.0.0.2", 32), ..any }, true),
            (PacketFilter { host: host("10.0.0.0", 30), ..any }, true),
            (PacketFilter { host: host("10.0.0.4", 30), ..any }, false),
            (PacketFilter { host: host("0.0.0.0", 0), ..any }, true),
            (PacketFilter { host: host("::", 0), ..any }, false),
        ] {
            assert_eq!(has_headers(&filter, &dropped(&bytes)), expected, "{filter:?}");
        }
        assert!(!has_headers(&PacketFilter { protocol: Some(17), ..any }, &dropped(&[])));
        assert!(has_headers(&any, &dropped(&[])));
    }
}
