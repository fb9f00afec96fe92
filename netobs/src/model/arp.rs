//! ARP as containers see it (RFC 826, RFC 5227): requests and replies, requests that nobody answered, and
//! addresses that two have.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    net::Ipv4Addr,
    time::Duration,
};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacketSlice, EtherType};
use serde::{Deserialize, Serialize};

use super::{capture::Way, event::Event, state::State, update::InterfaceKey};

/// A request without a reply for so long is unanswered: then the kernel asks again.
pub const TIMEOUT: Duration = Duration::from_secs(1);

/// How long a claim to an address stands, and how long two that are in conflict are told of.
pub const WINDOW: Duration = Duration::from_secs(60);

/// Requests that may wait for their replies at a time, and addresses of which claims are kept.
const MAX_OUTSTANDING: usize = 16_384;
const MAX_ADDRESSES: usize = 4096;

/// Claims to one address that are kept, and MAC addresses of one claimer that are found in conflict about it.
const MAX_CLAIMS: usize = 4;

const ETHERNET_HEADER: usize = 14;

/// From the container's side: `rx` is what it received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ArpCounts {
    pub requests_rx: u64,
    pub requests_tx: u64,
    pub replies_rx: u64,
    pub replies_tx: u64,
    /// Of the requests that it sent, those that ask nobody: that tell its own address (gratuitous), or look
    /// whether anybody has one (probes).
    pub announcements: u64,
    /// Requests that it sent without a reply within [`TIMEOUT`]; announcements are not among them.
    pub unanswered: u64,
    /// Requests that there was no room to wait for.
    pub untracked: u64,
    /// Times that another MAC address was found to claim an address that it claims; again after [`WINDOW`] without.
    pub duplicates: u64,
    /// Packets that are neither requests nor replies of IPv4 over Ethernet.
    pub other: u64,
}

impl std::ops::AddAssign for ArpCounts {
    fn add_assign(&mut self, other: Self) {
        self.requests_rx += other.requests_rx;
        self.requests_tx += other.requests_tx;
        self.replies_rx += other.replies_rx;
        self.replies_tx += other.replies_tx;
        self.announcements += other.announcements;
        self.unanswered += other.unanswered;
        self.untracked += other.untracked;
        self.duplicates += other.duplicates;
        self.other += other.other;
    }
}

/// What is known of a container's ARP.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ArpReport {
    #[serde(flatten)]
    pub counts: ArpCounts,
    /// Addresses that it and another claim.
    pub conflicts: Vec<Conflict>,
}

/// An address that several claim.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Conflict {
    pub address: Ipv4Addr,
    pub network: Option<String>,
    pub macs: Vec<String>,
    /// Names of those that are containers, sorted.
    pub containers: Vec<String>,
}

/// Where an address means one thing: a network, or where that is not known what one interface sees.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Scope {
    Network(String),
    Interface(InterfaceKey),
}

type Mac = [u8; 6];

#[derive(Clone, Copy, Debug)]
struct Claim {
    mac: Mac,
    /// Who sent it, as far as that is a container's interface.
    by: Option<InterfaceKey>,
    last_ns: u64,
}

#[derive(Debug, Default)]
struct Claims {
    claims: Vec<Claim>,
    /// MAC addresses that were found in conflict, whose those are, and when last.
    conflict: BTreeMap<Mac, (Option<InterfaceKey>, u64)>,
}

#[derive(Debug, Default)]
pub(super) struct Arp {
    /// When each request was sent, earliest first.
    since_ns: HashMap<(InterfaceKey, Ipv4Addr), VecDeque<u64>>,
    outstanding: usize,
    order: VecDeque<(u64, InterfaceKey, Ipv4Addr)>,
    addresses: HashMap<(Scope, Ipv4Addr), Claims>,
}

/// A request or reply of IPv4 over Ethernet.
struct Packet {
    is_request: bool,
    sender: Ipv4Addr,
    sender_mac: Mac,
    target: Ipv4Addr,
}

impl Packet {
    fn read(frame: &[u8]) -> Option<Self> {
        let arp = ArpPacketSlice::from_slice(frame.get(ETHERNET_HEADER..)?).ok()?;
        let is_ipv4 =
            arp.hw_addr_type() == ArpHardwareId::ETHERNET && arp.proto_addr_type() == EtherType::IPV4;
        let is_request = match arp.operation() {
            ArpOperation::REQUEST => true,
            ArpOperation::REPLY => false,
            _ => return None,
        };
        let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from);
        is_ipv4.then_some(())?;
        Some(Self {
            is_request,
            sender: address(arp.sender_protocol_addr())?,
            sender_mac: arp.sender_hw_addr().try_into().ok()?,
            target: address(arp.target_protocol_addr())?,
        })
    }
}

impl Arp {
    /// Counts a packet; the attachments of containers that were found to have an address that another has.
    /// `is_there`: whether an attachment has not been let go.
    pub fn packet(
        &mut self,
        event: &Event,
        frame: &[u8],
        counts: &mut ArpCounts,
        scope: Scope,
        is_there: impl Fn(InterfaceKey) -> bool,
    ) -> Vec<InterfaceKey> {
        let Some(packet) = Packet::read(frame) else {
            counts.other += 1;
            return Vec::new();
        };
        match (packet.is_request, event.way) {
            (true, Way::Rx) => counts.requests_rx += 1,
            (true, Way::Tx) => {
                counts.requests_tx += 1;
                self.request(event, &packet, counts);
            }
            (false, Way::Rx) => {
                counts.replies_rx += 1;
                self.reply(event.interface, packet.sender);
            }
            (false, Way::Tx) => counts.replies_tx += 1,
        }
        if packet.sender.is_unspecified() { Vec::new() } else { self.claim(event, &packet, scope, is_there) }
    }

    fn request(&mut self, event: &Event, packet: &Packet, counts: &mut ArpCounts) {
        if packet.sender == packet.target || packet.sender.is_unspecified() {
            counts.announcements += 1;
            return;
        }
        if self.outstanding >= MAX_OUTSTANDING {
            counts.untracked += 1;
            return;
        }
        self.since_ns.entry((event.interface, packet.target)).or_default().push_back(event.time_ns);
        self.outstanding += 1;
        self.order.push_back((event.time_ns, event.interface, packet.target));
        if self.order.len() > 2 * MAX_OUTSTANDING {
            let since_ns = &self.since_ns;
            self.order.retain(|(time, interface, target)| {
                since_ns.get(&(*interface, *target)).is_some_and(|times| times.contains(time))
            });
        }
    }

    fn reply(&mut self, interface: InterfaceKey, from: Ipv4Addr) {
        let key = (interface, from);
        if let Some(times) = self.since_ns.get_mut(&key) {
            times.pop_front();
            self.outstanding -= 1;
            if times.is_empty() {
                self.since_ns.remove(&key);
            }
        }
    }

    /// Counts those as unanswered that have waited for too long, by what was seen up to a time.
    pub fn expire(&mut self, read_ns: u64, mut unanswered: impl FnMut(InterfaceKey)) {
        while let Some((time_ns, interface, target)) = self.order.front().copied()
            && time_ns.saturating_add(nanoseconds(TIMEOUT)) <= read_ns
        {
            self.order.pop_front();
            let is_first = |times: &VecDeque<u64>| times.front() == Some(&time_ns);
            if self.since_ns.get(&(interface, target)).is_some_and(is_first) {
                self.reply(interface, target);
                unanswered(interface);
            }
        }
    }

    /// Two have an address if both are there and claim it: by two attachments at once, or in turns. One that
    /// claims it after another has gone is its heir.
    fn claim(
        &mut self,
        event: &Event,
        packet: &Packet,
        scope: Scope,
        is_there: impl Fn(InterfaceKey) -> bool,
    ) -> Vec<InterfaceKey> {
        let key = (scope, packet.sender);
        if self.addresses.len() >= MAX_ADDRESSES && !self.addresses.contains_key(&key) {
            let oldest = event.time_ns.saturating_sub(nanoseconds(WINDOW));
            self.addresses.retain(|_, claims| claims.claims.iter().any(|claim| claim.last_ns > oldest));
            if self.addresses.len() >= MAX_ADDRESSES {
                return Vec::new();
            }
        }
        let claims = self.addresses.entry(key).or_default();
        let by = (event.way == Way::Tx).then_some(event.interface);
        claims.take(Claim { mac: packet.sender_mac, by, last_ns: event.time_ns }, is_there)
    }
}

impl Claims {
    fn take(&mut self, mut claim: Claim, is_there: impl Fn(InterfaceKey) -> bool) -> Vec<InterfaceKey> {
        let now_ns = claim.last_ns;
        let oldest = now_ns.saturating_sub(nanoseconds(WINDOW));
        self.claims.retain(|other| other.last_ns >= oldest);
        self.conflict.retain(|_, (_, last_ns)| *last_ns >= oldest);
        let mine = self.claims.iter().position(|other| other.mac == claim.mac);
        let before_ns = mine.map(|at| self.claims[at].last_ns);
        if let Some(at) = mine {
            claim.by = claim.by.or(self.claims[at].by);
            self.claims.remove(at);
        }
        let mut told = Vec::new();
        for other in &self.claims {
            let at_once = match (claim.by, other.by) {
                (Some(one), Some(another)) => one != another && is_there(another),
                _ => false,
            };
            let in_turns = before_ns.is_some_and(|before_ns| before_ns < other.last_ns);
            if !at_once && !in_turns {
                continue;
            }
            for one in [&claim, other] {
                let before = self.conflict.get(&one.mac).map(|(by, _)| *by);
                // Who makes up ever new ones is told of all the same.
                let is_theirs = |(by, _): &&(Option<InterfaceKey>, u64)| *by == one.by;
                if before != Some(one.by) && self.conflict.values().filter(is_theirs).count() >= MAX_CLAIMS {
                    continue;
                }
                self.conflict.insert(one.mac, (one.by, now_ns));
                if before.is_none() {
                    told.extend(one.by);
                }
            }
        }
        self.claims.push(claim);
        if self.claims.len() > MAX_CLAIMS {
            self.claims.remove(0);
        }
        told
    }
}

impl State {
    /// Where addresses that are seen at an attachment mean one thing.
    pub(super) fn arp_scope(&self, key: InterfaceKey) -> Scope {
        self.network_of_attachment(key).map_or(Scope::Interface(key), Scope::Network)
    }

    fn network_of_attachment(&self, key: InterfaceKey) -> Option<String> {
        let entry = self.interfaces.get(&key)?;
        let owner = entry.owner.as_ref().and_then(|owner| self.containers.get(&owner.container));
        match owner {
            Some(container) => entry.network(&container.info),
            None => entry.network.clone(),
        }
    }

    /// Conflicts that each container is in, at a time.
    pub(super) fn conflicts(&self, arp: &Arp, read_ns: u64) -> BTreeMap<String, Vec<Conflict>> {
        let oldest = read_ns.saturating_sub(nanoseconds(WINDOW));
        let mut conflicts: BTreeMap<String, Vec<Conflict>> = BTreeMap::new();
        let standing = arp.addresses.iter().map(|(key, claims)| {
            let lately = claims.conflict.iter().filter(|(_, (_, last_ns))| *last_ns >= oldest);
            (key, lately.map(|(mac, (by, _))| (mac, *by)).collect::<Vec<_>>())
        });
        let mut standing: Vec<_> = standing.filter(|(_, conflict)| !conflict.is_empty()).collect();
        standing.sort_by_key(|(key, _)| *key);
        for ((scope, address), conflict) in standing {
            let owners: BTreeSet<&str> = conflict
                .iter()
                .filter_map(|(_, by)| by.as_ref())
                .filter_map(|key| Some(self.interfaces.get(key)?.owner.as_ref()?.container.as_str()))
                .collect();
            let network = match scope {
                Scope::Network(name) => Some(name.clone()),
                Scope::Interface(_) => None,
            };
            let mut containers: Vec<String> = owners.iter().map(|id| self.container_name(id)).collect();
            containers.sort();
            let macs = conflict.iter().map(|(mac, _)| format_mac(mac)).collect();
            let conflict = Conflict { address: *address, network, macs, containers };
            for id in owners {
                conflicts.entry(id.to_owned()).or_default().push(conflict.clone());
            }
        }
        conflicts
    }
}

fn format_mac(mac: &Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::event::What;

    const SECOND: u64 = 1_000_000_000;

    fn claims(told: &[(u8, Option<u64>, u64)], gone: &[u64]) -> Vec<Vec<u64>> {
        let mut claims = Claims::default();
        let take = |&(mac, by, second): &(u8, Option<u64>, u64)| {
            let claim = Claim { mac: [mac; 6], by: by.map(InterfaceKey), last_ns: second * SECOND };
            let told = claims.take(claim, |key| !gone.contains(&key.0));
            told.into_iter().map(|key| key.0).collect()
        };
        told.iter().map(take).collect()
    }

    #[test]
    fn two_have_an_address_if_both_are_there() {
        // Two attachments: at once, and both are told of once.
        assert_eq!(
            claims(&[(1, Some(1), 1), (2, Some(2), 2), (1, Some(1), 3)], &[]),
            [vec![], vec![2, 1], vec![]]
        );
        // The other sees it, too, which tells nothing new.
        assert_eq!(claims(&[(1, Some(1), 1), (1, None, 1), (2, Some(2), 2)], &[]).concat(), [2, 1]);
        assert!(claims(&[(1, Some(1), 1), (2, Some(2), 2)], &[1]).concat().is_empty(), "its heir");
        assert!(claims(&[(1, Some(1), 1), (2, Some(2), 70)], &[]).concat().is_empty(), "long ago");
        assert!(claims(&[(1, Some(1), 1), (2, None, 2)], &[]).concat().is_empty(), "an heir outside");
        assert_eq!(claims(&[(1, Some(1), 1), (2, None, 2), (1, Some(1), 3)], &[]).concat(), [1], "in turns");
        // After a minute without, it is told of again.
        let again = [(1, Some(1), 1), (2, Some(2), 2), (1, Some(1), 100), (2, Some(2), 101)];
        assert_eq!(claims(&again, &[]), [vec![], vec![2, 1], vec![], vec![2, 1]]);
    }

    /// A container may claim an address with ever new MAC addresses: few are kept, and who else has it is still found.
    #[test]
    fn made_up_addresses_are_bounded() {
        let mut claims = Claims::default();
        let mut take = |mac: [u8; 6], by: u64, second: u64| {
            claims.take(Claim { mac, by: Some(InterfaceKey(by)), last_ns: second * SECOND }, |_| true);
            claims.conflict.len()
        };
        for n in 0..1000u16 {
            let [high, low] = n.to_be_bytes();
            let (one, other) = ([2, 0, 0, high, low, 1], [2, 0, 0, high, low, 2]);
            let second = 1 + u64::from(n) / 20;
            for mac in [one, other, one] {
                assert!(take(mac, 1, second) <= MAX_CLAIMS);
            }
        }
        take([4; 6], 2, 51);
        assert!(claims.conflict.contains_key(&[4; 6]), "the other who has it");
        // Two who take each other's, again and again.
        let mut claims = Claims::default();
        for n in 0..1000u64 {
            let [.., high, low] = n.to_be_bytes();
            for by in [1, 2, 1] {
                for last in [1, 2] {
                    let by = Some(InterfaceKey(by));
                    claims.take(Claim { mac: [2, 0, 0, high, low, last], by, last_ns: SECOND + n }, |_| true);
                }
            }
            assert!(claims.conflict.len() <= 2 * MAX_CLAIMS, "{}", claims.conflict.len());
        }
    }

    /// Whatever arrives, nothing panics: cut at every byte, and with every byte of the header changed.
    #[test]
    fn hostile_frames() {
        let mut frame = vec![0; 14];
        frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
        frame.extend([2, 0, 0, 0, 0, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
        let read = |bytes: &[u8]| {
            let event = Event {
                interface: InterfaceKey(1),
                way: Way::Tx,
                time_ns: 1,
                what: What::Arp(bytes.to_vec()),
            };
            let mut counts = ArpCounts::default();
            let scope = Scope::Interface(InterfaceKey(1));
            Arp::default().packet(&event, bytes, &mut counts, scope, |_| true);
            (counts.requests_tx, counts.other)
        };
        assert_eq!(read(&frame), (1, 0));
        for end in 0..frame.len() {
            assert_eq!(read(&frame[..end]), (0, 1), "cut at {end}");
        }
        for at in 14..22 {
            for value in 0..=255 {
                let mut changed = frame.clone();
                changed[at] = value;
                let (requests, other) = read(&changed);
                assert!(requests + other <= 1);
            }
        }
    }
}
