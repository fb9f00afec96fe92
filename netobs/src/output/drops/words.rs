//! What a row says in words, safe for a terminal.

use crate::{
    model::drops::{DropKind, Location, Netfilter, Party},
    output::format::escape,
};

/// `web 172.18.0.2 on front`, `host 172.18.0.1`, `192.0.2.7`; `-` where nothing is known.
pub fn party(party: &Party) -> String {
    let address = party.address.map(|address| address.to_string());
    let who = match (&party.container, party.ambiguous.as_slice()) {
        (Some(name), _) => Some(escape(name)),
        (None, []) => party.host.then(|| "host".to_owned()),
        (None, names) => {
            Some(format!("({})", names.iter().map(|name| escape(name)).collect::<Vec<_>>().join(" or ")))
        }
    };
    let network = party.network.as_ref().map(|network| format!("on {}", escape(network)));
    let words: Vec<String> = [who, address, network].into_iter().flatten().collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

/// `udp 9999`, `icmp echo-request`, `arp`, `0x88cc`.
pub fn what(kind: &DropKind) -> String {
    let Some(protocol) = kind.protocol else { return ethertype(kind.ethertype) };
    let name = protocol_name(protocol);
    match (kind.port, kind.icmp_type, kind.icmp_code) {
        (Some(port), _, _) => format!("{name} {port}"),
        (_, Some(message), Some(code)) => format!("{name} {}", icmp(protocol, message, code)),
        _ => name,
    }
}

/// The device, and whose namespace it is in if not the host's.
pub fn at(at: &Location) -> String {
    let device = match (&at.interface, at.ifindex) {
        (Some(name), _) => Some(escape(name)),
        (None, Some(ifindex)) => Some(format!("ifindex {ifindex}")),
        (None, None) => None,
    };
    let namespace = match (&at.container, &at.namespace) {
        _ if at.host => None,
        (Some(container), _) => Some(format!("in {}", escape(container))),
        (None, Some(namespace)) => Some(format!("in {namespace}")),
        (None, None) => None,
    };
    let words: Vec<String> = [device, namespace].into_iter().flatten().collect();
    if words.is_empty() { "-".to_owned() } else { words.join(" ") }
}

/// Where in the kernel: the function, and what is known of netfilter.
pub fn place(kind: &DropKind) -> String {
    let place = kind.place.as_deref().map_or_else(|| "unknown".to_owned(), escape);
    match &kind.netfilter {
        Some(netfilter) => format!("{place} ({})", self::netfilter(netfilter)),
        None => place,
    }
}

/// `nf_tables at forward`, `table filter of ip_tables at input`.
pub fn netfilter(netfilter: &Netfilter) -> String {
    let by = netfilter.by.as_deref().map_or_else(|| "netfilter".to_owned(), escape);
    let table =
        netfilter.table.as_deref().map(|table| format!("table {} of ", escape(table))).unwrap_or_default();
    let hook = netfilter.hook.as_deref().map_or_else(
        || format!("called by {}", escape(&netfilter.caller)),
        |hook| format!("at {}", escape(hook)),
    );
    format!("{table}{by} {hook}")
}

fn ethertype(ethertype: u16) -> String {
    match ethertype {
        0 => "-".to_owned(),
        0x0800 => "ipv4".to_owned(),
        0x0806 => "arp".to_owned(),
        0x86dd => "ipv6".to_owned(),
        0x8100 | 0x88a8 => "vlan".to_owned(),
        other => format!("{other:#06x}"),
    }
}

/// IANA numbers.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        2 => "igmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        132 => "sctp".to_owned(),
        other => format!("protocol {other}"),
    }
}

fn icmp(protocol: u8, message: u8, code: u8) -> String {
    match (protocol, message) {
        (1, 0) | (58, 129) => "echo-reply".to_owned(),
        (1, 8) | (58, 128) => "echo-request".to_owned(),
        (1, 3) | (58, 1) => format!("unreachable/{code}"),
        (1, 11) | (58, 3) => "time-exceeded".to_owned(),
        (58, 133) => "router-solicitation".to_owned(),
        (58, 134) => "router-advertisement".to_owned(),
        (58, 135) => "neighbour-solicitation".to_owned(),
        (58, 136) => "neighbour-advertisement".to_owned(),
        _ => format!("{message}/{code}"),
    }
}
