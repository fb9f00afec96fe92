//! What passed containers' published ports, by port and client.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use aya::maps::{Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use netobs_common::{ClientKey, Count, PortCounters, PortKey};

use crate::model::{ClientTraffic, PortTraffic, Protocol};

/// A container's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub protocol: Protocol,
    pub port: u16,
}

/// [`PortKey`], [`ClientKey`] and [`PortCounters`] as the map library can pass them on.
type RawPort = [u8; size_of::<PortKey>()];
type RawClient = [u8; size_of::<ClientKey>()];
type RawCounters = [u64; 4];

pub struct Ports {
    ports: PerCpuHashMap<MapData, RawPort, RawCounters>,
    clients: PerCpuHashMap<MapData, RawClient, RawCounters>,
}

impl Ports {
    pub fn new(ports: Map, clients: Map) -> Result<Self, MapError> {
        Ok(Self { ports: PerCpuHashMap::try_from(ports)?, clients: PerCpuHashMap::try_from(clients)? })
    }

    /// Counts a port of the container behind a slot from now on.
    pub fn add(&mut self, slot: u32, port: Port) -> Result<(), MapError> {
        let cpus = aya::util::nr_cpus().map_err(|(_, io_error)| MapError::IoError(io_error))?;
        let zero = PerCpuValues::try_from(vec![RawCounters::default(); cpus]).map_err(MapError::IoError)?;
        self.ports.insert(raw_port(slot, port), zero, 0)
    }

    /// Counts these ports no more, and forgets their clients.
    pub fn remove(&mut self, slot: u32, ports: &[Port]) {
        if ports.is_empty() {
            return;
        }
        for port in ports {
            if let Err(error) = self.ports.remove(&raw_port(slot, *port)) {
                tracing::warn!(%error, slot, ?port, "remove a published port");
            }
        }
        for key in self.client_keys(slot, ports) {
            // Its packets may have ended meanwhile; nobody else removes entries.
            let _ = self.clients.remove(&key);
        }
    }

    /// What passed each port, and by whom.
    pub fn read(&self, slot: u32, ports: &[Port]) -> Vec<PortTraffic> {
        if ports.is_empty() {
            return Vec::new();
        }
        // Clients before totals: a packet between the two readings is of the remainder for a moment, and
        // never are there more packets of clients than there are.
        let mut clients: BTreeMap<RawPort, Vec<ClientTraffic>> = BTreeMap::new();
        for key in self.client_keys(slot, ports) {
            let Ok(values) = self.clients.get(&key, 0) else { continue };
            let (port, address) = key.split_at(size_of::<PortKey>());
            let (Ok(port), Ok(address)) = (RawPort::try_from(port), <[u8; 16]>::try_from(address)) else {
                continue;
            };
            let address = IpAddr::V6(Ipv6Addr::from(address)).to_canonical();
            clients.entry(port).or_default().push(ClientTraffic { address, traffic: sum(&values) });
        }
        ports
            .iter()
            .filter_map(|port| {
                let key = raw_port(slot, *port);
                let traffic = sum(&self.ports.get(&key, 0).ok()?);
                let clients = clients.remove(&key).unwrap_or_default();
                Some(PortTraffic { protocol: port.protocol, port: port.port, traffic, clients })
            })
            .collect()
    }

    fn client_keys(&self, slot: u32, ports: &[Port]) -> Vec<RawClient> {
        let wanted: Vec<RawPort> = ports.iter().map(|port| raw_port(slot, *port)).collect();
        self.clients
            .keys()
            .filter_map(Result::ok)
            .filter(|key| wanted.iter().any(|port| key.starts_with(port)))
            .collect()
    }
}

fn raw_port(slot: u32, port: Port) -> RawPort {
    let key = PortKey { slot, port: port.port, protocol: port.protocol.number(), reserved: 0 };
    // SAFETY: plain integers without padding, as asserted beside the type, and as many bytes.
    unsafe { std::mem::transmute::<PortKey, RawPort>(key) }
}

fn sum(values: &PerCpuValues<RawCounters>) -> PortCounters {
    let mut sum = RawCounters::default();
    for value in values.iter() {
        for (sum, word) in sum.iter_mut().zip(value) {
            *sum += word;
        }
    }
    let [rx_packets, rx_bytes, tx_packets, tx_bytes] = sum;
    PortCounters {
        rx: Count { packets: rx_packets, bytes: rx_bytes },
        tx: Count { packets: tx_packets, bytes: tx_bytes },
    }
}
