//! Traffic of published ports: added up over a container's lives, and told by how it got there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    snapshot::{Binding, Client, PortCount, Published, PublishedTraffic, SHOWN_CLIENTS, Subnet, Via},
    update::{ContainerInfo, FlowCount, Protocol, Proxy},
};

/// Clients that are kept of each port; what others counted stays in the port's total.
const KEPT_CLIENTS: usize = 4096;

/// By protocol (IANA number) and the container's port: all of it, and that of each client that is told apart.
#[derive(Clone, Debug, Default)]
pub struct PortTotals(BTreeMap<(u8, u16), Totals>);

#[derive(Clone, Debug, Default)]
struct Totals {
    all: PortCount,
    clients: BTreeMap<IpAddr, PortCount>,
}

impl PortTotals {
    pub fn add(&mut self, protocol: u8, port: u16, client: IpAddr, rx: FlowCount, tx: FlowCount) {
        let count = PortCount {
            rx_packets: rx.packets,
            rx_bytes: rx.bytes,
            tx_packets: tx.packets,
            tx_bytes: tx.bytes,
        };
        let totals = self.0.entry((protocol, port)).or_default();
        totals.all += count;
        if totals.clients.len() < KEPT_CLIENTS || totals.clients.contains_key(&client) {
            *totals.clients.entry(client).or_default() += count;
        }
    }

    /// A container's published ports as they are shown.
    /// `counted`: whether there can be any traffic; where there cannot, none is told of, not even that it is 0.
    pub fn fold(
        &self,
        container: &ContainerInfo,
        counted: bool,
        surroundings: &Surroundings<'_>,
    ) -> Vec<Published> {
        let mut bindings: BTreeMap<(Protocol, u16), Vec<Binding>> = BTreeMap::new();
        for port in &container.published {
            let binding = Binding { address: port.host_address, port: port.host_port };
            bindings.entry((port.protocol, port.container_port)).or_default().push(binding);
        }
        bindings
            .into_iter()
            .map(|((protocol, container_port), bindings)| {
                let traffic = counted.then(|| {
                    let Some(totals) = self.0.get(&(protocol.number(), container_port)) else {
                        return PublishedTraffic::default();
                    };
                    let proxied =
                        container.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).any(|address| {
                            let proxy = Proxy { protocol, container_address: *address, container_port };
                            surroundings.proxies.contains(&proxy)
                        });
                    totals.fold(proxied, surroundings)
                });
                Published { protocol, container_port, bindings, traffic }
            })
            .collect()
    }
}

impl Totals {
    fn fold(&self, proxied: bool, surroundings: &Surroundings<'_>) -> PublishedTraffic {
        let mut traffic = PublishedTraffic::default();
        let mut unknown = self.all;
        for (address, count) in &self.clients {
            let via = surroundings.via(*address, proxied);
            *traffic.via.entry(via).or_default() += *count;
            unknown = unknown.less(*count);
            traffic.clients.push(Client { address: *address, via, count: *count });
        }
        if unknown != PortCount::default() {
            traffic.via.insert(Via::Unknown, unknown);
        }
        traffic
            .clients
            .sort_by_key(|client| std::cmp::Reverse(client.count.rx_bytes + client.count.tx_bytes));
        traffic.clients.truncate(SHOWN_CLIENTS);
        traffic
    }
}

/// What an address is told by.
pub struct Surroundings<'a> {
    pub host_addresses: &'a BTreeSet<IpAddr>,
    pub proxies: &'a BTreeSet<Proxy>,
    /// Of the container's networks.
    pub subnets: Vec<&'a Subnet>,
}

impl Surroundings<'_> {
    fn via(&self, client: IpAddr, proxied: bool) -> Via {
        let on_network = self.subnets.iter().any(|subnet| contains(&subnet.subnet, client));
        // The gateway is the host's address on the network; engines don't always name it.
        let is_gateway = on_network && self.host_addresses.contains(&client)
            || self.subnets.iter().any(|subnet| {
                subnet.gateway.as_ref().and_then(|gateway| gateway.parse().ok()) == Some(client)
            });
        if is_gateway && proxied {
            Via::DockerProxy
        } else if is_gateway {
            Via::Gateway
        } else if self.host_addresses.contains(&client) {
            Via::Host
        } else if on_network {
            Via::Network
        } else {
            Via::Client
        }
    }
}

/// Whether an address is in a CIDR. Not in one that cannot be read.
pub fn contains(cidr: &str, address: IpAddr) -> bool {
    let Some((network, length)) = cidr.split_once('/') else { return false };
    let (Ok(network), Ok(length)) = (network.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    let Some(host_bits) = u32::checked_sub(width, length) else { return false };
    network.checked_shr(host_bits) == address.checked_shr(host_bits)
}

impl PortCount {
    fn less(self, other: Self) -> Self {
        Self {
            rx_packets: self.rx_packets.saturating_sub(other.rx_packets),
            rx_bytes: self.rx_bytes.saturating_sub(other.rx_bytes),
            tx_packets: self.tx_packets.saturating_sub(other.tx_packets),
            tx_bytes: self.tx_bytes.saturating_sub(other.tx_bytes),
        }
    }
}

impl std::ops::AddAssign for PortCount {
    fn add_assign(&mut self, other: Self) {
        self.rx_packets += other.rx_packets;
        self.rx_bytes += other.rx_bytes;
        self.tx_packets += other.tx_packets;
        self.tx_bytes += other.tx_bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Endpoint, PublishedPort};

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn subnets_contain_addresses() {
        for (cidr, inside, yes) in [
            ("172.17.0.0/16", "172.17.255.1", true),
            ("172.17.0.0/16", "172.18.0.1", false),
            ("0.0.0.0/0", "9.9.9.9", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("fd00::/64", "fd00::9", true),
            ("fd00::/64", "fd01::9", false),
            ("::/0", "fd01::9", true),
            ("10.0.0.0/8", "fd00::1", false),
            ("10.0.0.0/33", "10.0.0.1", false),
            ("10.0.0.0", "10.0.0.0", false),
            ("junk/8", "10.0.0.1", false),
        ] {
            assert_eq!(contains(cidr, address(inside)), yes, "{inside} in {cidr}");
        }
    }

    #[test]
    fn each_packet_came_one_way() {
        let count = |n: u64| FlowCount { packets: n, bytes: 100 * n, wire_packets: n, wire_bytes: 100 * n };
        let container = ContainerInfo {
            endpoints: vec![Endpoint { addresses: vec![address("172.17.0.2")], ..Endpoint::default() }],
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_address: Some(address("0.0.0.0")),
                host_port: 8080,
            }],
            ..ContainerInfo::default()
        };
        let subnet = Subnet { subnet: "172.17.0.0/16".to_owned(), gateway: Some("172.17.0.1".to_owned()) };
        let proxy =
            Proxy { protocol: Protocol::Tcp, container_address: address("172.17.0.2"), container_port: 80 };
        let mut totals = PortTotals::default();
        for (client, n) in [("172.17.0.1", 2), ("172.17.0.3", 4), ("192.0.2.7", 8), ("10.1.1.1", 16)] {
            totals.add(6, 80, address(client), count(n), count(2 * n));
        }
        totals.add(17, 80, address("192.0.2.8"), count(1), count(1));
        totals.add(6, 81, address("192.0.2.8"), count(1), count(1));
        let (host_addresses, proxies) = ([address("10.1.1.1")].into(), [proxy].into());
        let surroundings =
            Surroundings { host_addresses: &host_addresses, proxies: &proxies, subnets: vec![&subnet] };
        let published = totals.fold(&container, true, &surroundings);
        let traffic = published[0].traffic.clone().expect("counted");
        let packets: Vec<(Via, u64)> =
            traffic.via.iter().map(|(via, count)| (*via, count.rx_packets)).collect();
        assert_eq!(packets, [(Via::Client, 8), (Via::DockerProxy, 2), (Via::Host, 16), (Via::Network, 4)]);
        assert_eq!(traffic.clients[0].address, address("10.1.1.1"), "most bytes first");
        let no_proxies = BTreeSet::new();
        let without = Surroundings { proxies: &no_proxies, ..surroundings };
        let published = totals.fold(&container, true, &without);
        let via = &published[0].traffic.as_ref().expect("counted").via;
        assert!(via.contains_key(&Via::Gateway) && !via.contains_key(&Via::DockerProxy), "no proxy: {via:?}");
        assert_eq!(totals.fold(&container, false, &without)[0].traffic, None, "not counted is not 0");
        // More clients than are told apart.
        for n in 0..KEPT_CLIENTS as u32 {
            totals.add(6, 80, IpAddr::V4((0x0a00_0000 + n).into()), count(1), count(1));
        }
        let published = totals.fold(&container, true, &without);
        let via = &published[0].traffic.as_ref().expect("counted").via;
        assert_eq!(via[&Via::Unknown].rx_packets, 4, "those for whom there was no room: {via:?}");
    }
}
