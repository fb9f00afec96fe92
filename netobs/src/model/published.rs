//! Traffic of published ports: added up over a container's lives, and told by how it got there, which is found out
//! when it is counted: what its surroundings become later changes nothing of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    flow::FlowId,
    snapshot::{Binding, Client, PortCount, Published, PublishedTraffic, SHOWN_CLIENTS, Subnet, Via},
    state::is_live,
    update::{ContainerInfo, FlowCount, NetworkInfo, Protocol, Proxy, PublishedPort},
};

/// Clients that are kept of each port; what others counted stays in the port's total.
const KEPT_CLIENTS: usize = 4096;

/// By protocol (IANA number) and the container's port: all of it, and that of each client that is told apart.
#[derive(Clone, Debug, Default)]
pub struct PortTotals(BTreeMap<(u8, u16), Totals>);

#[derive(Clone, Debug, Default)]
struct Totals {
    all: PortCount,
    clients: BTreeMap<(IpAddr, Via), PortCount>,
    /// Whether the engine's proxy has stood before the port, when the container was last there.
    proxied: bool,
}

impl PortTotals {
    /// Adds what a flow to a container's published port has counted.
    pub fn add(
        &mut self,
        container: &ContainerInfo,
        surroundings: &Surroundings<'_>,
        flow: &FlowId,
        rx: FlowCount,
        tx: FlowCount,
    ) {
        let count = PortCount {
            rx_packets: rx.packets,
            rx_bytes: rx.bytes,
            tx_packets: tx.packets,
            tx_bytes: tx.bytes,
        };
        let totals = self.0.entry((flow.protocol, flow.local.port)).or_default();
        // The proxy ends before the last of what it has passed on is counted.
        if is_live(container) {
            totals.proxied = surroundings.has_proxy(container, flow.protocol, flow.local.port);
        }
        let client = (flow.remote.address, surroundings.via(flow.remote.address, totals.proxied));
        totals.all += count;
        if totals.clients.len() < KEPT_CLIENTS || totals.clients.contains_key(&client) {
            *totals.clients.entry(client).or_default() += count;
        }
    }

    /// A container's published ports as they are shown.
    /// `counted`: whether there can be any traffic; where there cannot, none is told of, not even that it is 0.
    pub fn fold(&self, container: &ContainerInfo, counted: bool) -> Vec<Published> {
        let mut bindings: BTreeMap<(Protocol, u16), Vec<Binding>> = BTreeMap::new();
        for port in &container.published {
            let binding = Binding { address: port.host_address, port: port.host_port };
            bindings.entry((port.protocol, port.container_port)).or_default().push(binding);
        }
        bindings
            .into_iter()
            .map(|((protocol, container_port), bindings)| {
                let traffic = counted.then(|| {
                    let totals = self.0.get(&(protocol.number(), container_port));
                    totals.map_or_else(PublishedTraffic::default, Totals::fold)
                });
                Published { protocol, container_port, bindings, traffic }
            })
            .collect()
    }
}

impl Totals {
    fn fold(&self) -> PublishedTraffic {
        let mut traffic = PublishedTraffic::default();
        let mut unknown = self.all;
        for ((address, via), count) in &self.clients {
            *traffic.via.entry(*via).or_default() += *count;
            unknown = unknown.less(*count);
            traffic.clients.push(Client { address: *address, via: *via, count: *count });
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

impl<'a> Surroundings<'a> {
    pub fn of(
        container: &ContainerInfo,
        networks: impl Iterator<Item = &'a NetworkInfo>,
        host_addresses: &'a BTreeSet<IpAddr>,
        proxies: &'a BTreeSet<Proxy>,
    ) -> Self {
        let is_on = |network: &&NetworkInfo| {
            container.endpoints.iter().any(|endpoint| endpoint.network_id == network.id)
        };
        let subnets = networks.filter(is_on).flat_map(|network| &network.subnets).collect();
        Self { host_addresses, proxies, subnets }
    }

    fn has_proxy(&self, container: &ContainerInfo, protocol: u8, container_port: u16) -> bool {
        let published = &container.published;
        let is_it = |port: &&PublishedPort| {
            port.protocol.number() == protocol && port.container_port == container_port
        };
        published.iter().find(is_it).is_some_and(|port| {
            container.endpoints.iter().flat_map(|endpoint| &endpoint.addresses).any(|address| {
                let (protocol, container_address) = (port.protocol, *address);
                self.proxies.contains(&Proxy { protocol, container_address, container_port })
            })
        })
    }

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
    use crate::model::{ContainerState, Endpoint, FlowEnd, InterfaceKey};

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

    fn count(packets: u64) -> FlowCount {
        FlowCount { packets, bytes: 100 * packets, wire_packets: packets, wire_bytes: 100 * packets }
    }

    fn flow(protocol: u8, port: u16, client: &str) -> FlowId {
        let end = |address, port| FlowEnd { address, port };
        let (local, remote) = (end(address("172.17.0.2"), port), end(address(client), 40_000));
        FlowId { interface: InterfaceKey(1), local, remote, protocol }
    }

    /// What a container's only published port, TCP 80, has received, in packets.
    fn received(totals: &PortTotals, container: &ContainerInfo) -> Vec<(Via, u64)> {
        let published = totals.fold(container, true);
        let via = &published[0].traffic.as_ref().expect("counted").via;
        via.iter().map(|(via, count)| (*via, count.rx_packets)).collect()
    }

    #[test]
    fn each_packet_came_one_way() {
        let mut container = ContainerInfo {
            state: ContainerState::Running,
            endpoints: vec![Endpoint {
                addresses: vec![address("172.17.0.2")],
                network_id: "one".to_owned(),
                ..Endpoint::default()
            }],
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_address: Some(address("0.0.0.0")),
                host_port: 8080,
            }],
            ..ContainerInfo::default()
        };
        let network = |id: &str, subnet: &str, gateway: &str| NetworkInfo {
            id: id.to_owned(),
            subnets: vec![Subnet { subnet: subnet.to_owned(), gateway: Some(gateway.to_owned()) }],
            ..NetworkInfo::default()
        };
        let networks =
            [network("one", "172.17.0.0/16", "172.17.0.1"), network("two", "192.0.2.0/24", "192.0.2.1")];
        let proxy =
            Proxy { protocol: Protocol::Tcp, container_address: address("172.17.0.2"), container_port: 80 };
        let (mut host_addresses, mut proxies): (BTreeSet<_>, BTreeSet<_>) =
            ([address("10.1.1.1")].into(), [proxy].into());
        let mut totals = PortTotals::default();
        let surroundings = Surroundings::of(&container, networks.iter(), &host_addresses, &proxies);
        for (client, n) in [("172.17.0.1", 2), ("172.17.0.3", 4), ("192.0.2.7", 8), ("10.1.1.1", 16)] {
            totals.add(&container, &surroundings, &flow(6, 80, client), count(n), count(2 * n));
        }
        totals.add(&container, &surroundings, &flow(17, 80, "192.0.2.8"), count(1), count(1));
        totals.add(&container, &surroundings, &flow(6, 81, "192.0.2.8"), count(1), count(1));
        let all = [(Via::Client, 8), (Via::DockerProxy, 2), (Via::Host, 16), (Via::Network, 4)];
        assert_eq!(received(&totals, &container), all);
        let published = totals.fold(&container, true);
        let clients = &published[0].traffic.as_ref().expect("counted").clients;
        assert_eq!(clients[0].address, address("10.1.1.1"), "most bytes first");
        assert_eq!(totals.fold(&container, false)[0].traffic, None, "not counted is not 0");

        // The proxy goes with the container, before the last that it has passed on is counted.
        proxies.clear();
        container.state = ContainerState::Exited;
        let add =
            |totals: &mut PortTotals, container: &ContainerInfo, host: &BTreeSet<IpAddr>, client: &str| {
                let surroundings = Surroundings::of(container, networks.iter(), host, &proxies);
                totals.add(container, &surroundings, &flow(6, 80, client), count(1), count(1));
            };
        add(&mut totals, &container, &host_addresses, "172.17.0.1");
        let all = [(Via::Client, 8), (Via::DockerProxy, 3), (Via::Host, 16), (Via::Network, 4)];
        assert_eq!(received(&totals, &container), all);
        // What was counted stays what it was, whatever an address becomes.
        container.state = ContainerState::Running;
        host_addresses.insert(address("192.0.2.7"));
        for client in ["172.17.0.1", "192.0.2.7"] {
            add(&mut totals, &container, &host_addresses, client);
        }
        let all =
            [(Via::Client, 8), (Via::DockerProxy, 3), (Via::Host, 17), (Via::Gateway, 1), (Via::Network, 4)];
        assert_eq!(received(&totals, &container), all);
        // More clients than are told apart.
        for n in 0..KEPT_CLIENTS as u32 {
            let client = IpAddr::V4((0x0a00_0000 + n).into()).to_string();
            add(&mut totals, &container, &host_addresses, &client);
        }
        let unknown = received(&totals, &container).last().copied();
        assert_eq!(unknown, Some((Via::Unknown, 6)), "those for whom there was no room");
    }
}
