//! Packets that were captured, and the places where they were: whose, and on which network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use serde::Serialize;

use super::{
    drops::{Directory, DropKind, Party},
    fold::display_name,
    named::is_named,
    state::{InterfaceEntry, State},
    update::{InterfaceKey, InterfaceKind, Place},
};

/// A place where packets pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    pub key: InterfaceKey,
    /// What is attached to: an interface of the host, one inside the container, `cgroup`.
    pub interface: String,
    pub kind: InterfaceKind,
    pub place: Place,
    /// None: a bridge, or not (yet) known.
    pub owner: Option<PointOwner>,
    pub network: Option<String>,
    /// Whether more is not to be expected: the container's name, or the network's.
    pub is_named: bool,
}

/// The container at a [`Point`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PointOwner {
    pub id: String,
    /// The name, or the first digits of the ID.
    pub name: String,
    /// Those that use its network, by name and ID.
    pub members: Vec<(String, String)>,
    /// The interface inside.
    pub interface: String,
    pub addresses: Vec<IpAddr>,
}

/// Who is where: what the packets of a moment are told with.
#[derive(Clone, Debug, Default)]
pub struct Book {
    /// By slot of the attachment: the place, and whether it is told as well as it will be.
    pub by_slot: BTreeMap<u32, (Arc<Point>, bool)>,
    /// Containers by address, where an address is of one alone.
    pub by_address: BTreeMap<IpAddr, String>,
    /// Whose dropped packets are.
    pub directory: Directory,
    /// IDs of the containers whose packets are asked for, by whatever name.
    pub chosen: BTreeSet<String>,
}

impl Book {
    /// The containers that have these addresses.
    pub fn addresses<'a>(points: impl IntoIterator<Item = &'a Point>) -> BTreeMap<IpAddr, String> {
        let mut names: BTreeMap<IpAddr, Option<String>> = BTreeMap::new();
        for owner in points.into_iter().filter_map(|point| point.owner.as_ref()) {
            for address in &owner.addresses {
                let name = names.entry(*address).or_insert_with(|| Some(owner.name.clone()));
                if name.as_ref() != Some(&owner.name) {
                    *name = None;
                }
            }
        }
        names.into_iter().filter_map(|(address, name)| Some((address, name?))).collect()
    }
}

/// Which way a packet passes a [`Point`]: seen from its container, or from a bridge device itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Way {
    Rx,
    Tx,
}

impl Way {
    pub const fn other(self) -> Self {
        match self {
            Self::Rx => Self::Tx,
            Self::Tx => Self::Rx,
        }
    }
}

/// A packet as it passed.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Since the epoch.
    pub time_ns: u64,
    /// None: the attachment is not known (any more).
    pub point: Option<Arc<Point>>,
    /// The slot of the attachment.
    pub slot: u32,
    pub way: Way,
    /// Whole length, VLAN tag included.
    pub length: u32,
    /// Segments of a super-packet; 0: it is none, or not known.
    pub segments: u16,
    /// Whether it begins with an Ethernet header; otherwise with the IP header.
    pub link: bool,
    /// The beginning, as far as it was captured.
    pub bytes: Vec<u8>,
}

/// A packet that the kernel dropped.
#[derive(Clone, Debug)]
pub struct Dropped {
    /// At no [`Point`]; as much of it as is known.
    pub packet: Packet,
    pub kind: DropKind,
}

impl Dropped {
    /// Who had its addresses.
    pub fn names(&self) -> BTreeMap<IpAddr, String> {
        let parties = [&self.kind.source, &self.kind.destination];
        parties.into_iter().filter_map(|party| Some((party.address?, party.name()?))).collect()
    }

    /// Without the names of who had its addresses.
    #[must_use]
    pub fn numeric(mut self) -> Self {
        for party in [&mut self.kind.source, &mut self.kind.destination] {
            *party = Party { address: party.address, ..Party::default() };
        }
        self
    }
}

impl Point {
    /// From its container's side, of what the attached interface receives (or else sends).
    pub fn way(&self, ingress: bool) -> Way {
        let from_other_end = self.place == Place::Host && self.kind == InterfaceKind::Veth;
        if ingress == from_other_end { Way::Tx } else { Way::Rx }
    }

    /// The container, or else the network or the host's interface.
    pub fn name(&self) -> &str {
        match (&self.owner, &self.network) {
            (Some(owner), _) => &owner.name,
            (None, Some(network)) if self.kind == InterfaceKind::Bridge => network,
            _ => &self.interface,
        }
    }

    /// Whether the container, or one that uses its network, is called so, or has an ID that begins so.
    pub fn is_of(&self, name: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| {
            let is = |known: &str, id: &str| is_named(name, known, id);
            is(&owner.name, &owner.id) || owner.members.iter().any(|(known, id)| is(known, id))
        })
    }
}

impl State {
    /// Every place that is attached to or could be, in the order in which they were found.
    pub fn points(&self) -> Vec<Point> {
        let live = self.interfaces.values().filter(|entry| entry.ended.is_none());
        live.map(|entry| self.point_at(entry)).collect()
    }

    fn point_at(&self, entry: &InterfaceEntry) -> Point {
        let container = entry.owner.as_ref().and_then(|owner| {
            let container = self.containers.get(&owner.container)?;
            Some((owner, container))
        });
        let network = match container {
            Some((_, container)) => entry.network(&container.info),
            None => entry.network.clone(),
        };
        let is_named = match container {
            Some((_, container)) => !container.info.name.is_empty() || !self.any_engine(),
            None => {
                let is_bridge = entry.info.kind == InterfaceKind::Bridge;
                is_bridge && (network.as_ref() != Some(&entry.info.name) || !self.any_engine())
            }
        };
        Point {
            key: entry.info.key,
            interface: entry.info.name.clone(),
            kind: entry.info.kind,
            place: entry.info.place,
            network,
            is_named,
            owner: container.map(|(owner, container)| PointOwner {
                id: owner.container.clone(),
                name: display_name(&owner.container, &container.info.name),
                members: self.member_ids(&owner.container),
                interface: owner.inner.name.clone(),
                addresses: owner.inner.addresses.clone(),
            }),
        }
    }

    fn member_ids(&self, owner: &str) -> Vec<(String, String)> {
        let by_mode = format!("container:{owner}");
        let members = self.containers.iter().filter(|(_, entry)| entry.info.network_mode == by_mode);
        members.map(|(id, entry)| (display_name(id, &entry.info.name), id.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(place: Place, kind: InterfaceKind) -> Point {
        let owner = PointOwner {
            id: "abcdef012345".into(),
            name: "web".into(),
            members: vec![("sidecar".into(), "fedcba".into())],
            interface: "eth0".into(),
            addresses: Vec::new(),
        };
        Point {
            key: InterfaceKey(0),
            interface: "veth1".into(),
            kind,
            place,
            owner: (kind != InterfaceKind::Bridge).then_some(owner),
            network: Some("front".into()),
            is_named: true,
        }
    }

    #[test]
    fn ways_are_the_containers() {
        for (place, kind, of_ingress) in [
            (Place::Host, InterfaceKind::Veth, Way::Tx),
            (Place::Host, InterfaceKind::Bridge, Way::Rx),
            (Place::Inside, InterfaceKind::Macvlan, Way::Rx),
            (Place::Inside, InterfaceKind::Veth, Way::Rx),
            (Place::Cgroup, InterfaceKind::Cgroup, Way::Rx),
        ] {
            let point = point(place, kind);
            assert_eq!(point.way(true), of_ingress, "{place:?} {kind:?}");
            assert_ne!(point.way(false), of_ingress, "{place:?} {kind:?}");
        }
    }

    #[test]
    fn by_name_or_beginning_of_the_id() {
        let point = point(Place::Host, InterfaceKind::Veth);
        for name in ["web", "abcd", "abcdef012345", "sidecar", "fedc"] {
            assert!(point.is_of(name), "{name}");
        }
        for name in ["we", "abc", "eth0", "front", ""] {
            assert!(!point.is_of(name), "{name}");
        }
    }

    #[test]
    fn an_address_of_two_containers_names_neither() {
        let (mut one, mut other) =
            (point(Place::Host, InterfaceKind::Veth), point(Place::Host, InterfaceKind::Veth));
        let addresses = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("address")).collect();
        one.owner.as_mut().expect("an owner").addresses = addresses(&["10.0.0.1", "10.0.0.9"]);
        let owner = other.owner.as_mut().expect("an owner");
        (owner.name, owner.addresses) = ("db".into(), addresses(&["10.0.0.2", "10.0.0.9"]));
        let names = Book::addresses([&one, &other]);
        let name = |address: &str| names.get(&address.parse::<IpAddr>().expect("address")).cloned();
        assert_eq!((name("10.0.0.1"), name("10.0.0.2")), (Some("web".into()), Some("db".into())));
        assert_eq!(name("10.0.0.9"), None);
    }

    #[test]
    fn bridges_go_by_their_network() {
        assert_eq!(point(Place::Host, InterfaceKind::Bridge).name(), "front");
        let unknown = Point { owner: None, ..point(Place::Host, InterfaceKind::Veth) };
        assert_eq!(unknown.name(), "veth1");
    }
}
