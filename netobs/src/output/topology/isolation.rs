//! What networks reach, and which are kept apart from each other, as far as it follows from what the engine
//! says. Nobody reads the host's packet filter here: "by the engine's rule" is what the engine sets up, and
//! what an administrator added to it is not known.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::graph::{Engine, Key, Network};

/// Podman's option of a bridge network.
const ISOLATE: &str = "isolate";

/// What a network's containers reach beyond the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// The host, and by it what it routes to.
    ThroughHost,
    /// `internal`: no way out of the host.
    Internal,
    /// It is the host itself.
    Host,
    /// Not even each other.
    Nothing,
    /// What is on the link of a parent interface; not the host.
    Parent,
    /// Depends on a driver that netobs does not know.
    Unknown,
}

impl Reach {
    pub fn of(driver: &str, internal: bool) -> Self {
        match driver {
            "host" => Self::Host,
            "null" | "none" => Self::Nothing,
            _ if internal => Self::Internal,
            "bridge" => Self::ThroughHost,
            "macvlan" | "ipvlan" => Self::Parent,
            _ => Self::Unknown,
        }
    }

    /// For people; nothing where nothing is known.
    pub const fn text(self) -> Option<&'static str> {
        match self {
            Self::ThroughHost => Some("reaches out through the host"),
            Self::Internal => Some("internal: no way out of the host"),
            Self::Host => Some("the host itself"),
            Self::Nothing => Some("isolated: no network"),
            Self::Parent => Some("reaches its parent's network, not the host"),
            Self::Unknown => None,
        }
    }
}

/// Two networks of one engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Between {
    pub a: Key,
    pub b: Key,
    /// None: it does not follow from what is known.
    pub isolated: Option<bool>,
    pub why: Why,
    /// Those that are on both: their processes reach both, packets are not forwarded by default.
    pub joined_by: Vec<Key>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    /// The engine keeps its bridge networks apart.
    EngineRule,
    /// A container is on both.
    Joined,
    /// One of them is no network at all.
    NoNetwork,
    /// One of them has no way out of the host.
    Internal,
    /// The host has an address on each of its bridges.
    HostOnBridge,
    /// Podman keeps networks apart only if asked.
    NotAskedFor,
    /// Podman lets nothing out of an internal network, and packets of others into it: they come from the
    /// address that the host has there.
    IntoInternal,
    /// The kernel passes nothing between a macvlan or ipvlan and the interface that it is made of.
    NotToHost,
    /// Both are on the link of one parent interface.
    SameParent,
    /// The network outside decides.
    Outside,
    /// The driver decides.
    Driver,
}

impl Why {
    pub const fn text(self) -> &'static str {
        match self {
            Self::EngineRule => "by the engine's rule",
            Self::Joined => "joined by a container",
            Self::NoNetwork => "no network",
            Self::Internal => "no way out of the host",
            Self::HostOnBridge => "the host has an address on it",
            Self::NotAskedFor => "the option isolate is not set on both",
            Self::IntoInternal => "packets get into the internal one, none come out",
            Self::NotToHost => "by the kernel: not to the parent's own host",
            Self::SameParent => "same parent interface",
            Self::Outside => "as the network outside decides",
            Self::Driver => "as the driver decides",
        }
    }
}

/// Each pair of networks of one engine, in the order of `networks`. `on`: the containers of each network.
pub fn isolation(
    engines: &[Engine],
    networks: &[Network],
    on: &BTreeMap<&Key, BTreeSet<&Key>>,
) -> Vec<Between> {
    let nobody = BTreeSet::new();
    let mut pairs = Vec::new();
    for (at, a) in networks.iter().enumerate() {
        let on_a = on.get(&a.key).unwrap_or(&nobody);
        let engine = engines.iter().find(|engine| engine.name == a.engine);
        let version = engine.and_then(|engine| engine.version.as_deref());
        for b in networks[at + 1..].iter().filter(|b| b.engine == a.engine) {
            let on_b = on.get(&b.key).unwrap_or(&nobody);
            let joined_by: Vec<Key> = on_a.intersection(on_b).map(|key| (*key).clone()).collect();
            let (isolated, why) =
                if joined_by.is_empty() { between(a, b, version) } else { (Some(false), Why::Joined) };
            pairs.push(Between { a: a.key.clone(), b: b.key.clone(), isolated, why, joined_by });
        }
    }
    pairs
}

/// Two networks without a container on both; `version` is their engine's.
fn between(a: &Network, b: &Network, version: Option<&str>) -> (Option<bool>, Why) {
    let either = |what: &dyn Fn(&Network) -> bool| what(a) || what(b);
    let both = |what: &dyn Fn(&Network) -> bool| what(a) && what(b);
    let is_bridge = |network: &Network| network.driver == "bridge";
    let has_parent = |network: &Network| matches!(network.driver.as_str(), "macvlan" | "ipvlan");
    if either(&|network| network.reach == Reach::Nothing) {
        (Some(true), Why::NoNetwork)
    } else if either(&|network| network.reach == Reach::Host) {
        if either(&is_bridge) {
            (Some(false), Why::HostOnBridge)
        } else if either(&has_parent) {
            (Some(true), Why::NotToHost)
        } else {
            (None, Why::Driver)
        }
    } else if both(&is_bridge) {
        bridges(a, b, version)
    } else if either(&|network| network.reach == Reach::Internal) {
        (Some(true), Why::Internal)
    } else if both(&has_parent) && a.parent.is_some() && a.parent == b.parent {
        (Some(false), Why::SameParent)
    } else if either(&|network| network.reach == Reach::Unknown) {
        (None, Why::Driver)
    } else {
        (None, Why::Outside)
    }
}

fn bridges(a: &Network, b: &Network, version: Option<&str>) -> (Option<bool>, Why) {
    // The second engine of a kind is called `docker-2`.
    match a.engine.split('-').next() {
        Some("podman") => bridges_of_podman(a, b, version),
        Some("docker") => (Some(true), Why::EngineRule),
        // Made by hand: nobody is known who would keep them apart.
        _ => (None, Why::Driver),
    }
}

fn bridges_of_podman(a: &Network, b: &Network, version: Option<&str>) -> (Option<bool>, Why) {
    let isolates = [a, b].map(|network| network.options.get(ISOLATE).map(String::as_str));
    let isolates = isolates.map(|isolate| isolate.or_else(|| default_isolate(version?)));
    match (a.internal, b.internal) {
        _ if isolates.contains(&Some("strict")) => (Some(true), Why::EngineRule),
        (true, true) => (Some(true), Why::Internal),
        _ if isolates.contains(&None) => (None, Why::Driver),
        // Whatever the options: Podman's filter has no rules for internal networks.
        (true, false) | (false, true) => (Some(false), Why::IntoInternal),
        (false, false) if isolates == [Some("true"); 2] => (Some(true), Why::EngineRule),
        (false, false) => (Some(false), Why::NotAskedFor),
    }
}

/// What a network without the option is, as far as known: Podman 4 and 5 forward, later ones need not.
fn default_isolate(version: &str) -> Option<&'static str> {
    matches!(version.split('.').next(), Some("4" | "5")).then_some("false")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(engine: &str, name: &str, driver: &str) -> Network {
        Network {
            key: Key::network(engine, name),
            id: name.into(),
            name: name.into(),
            driver: driver.into(),
            engine: engine.into(),
            internal: false,
            bridge: None,
            parent: None,
            reach: Reach::of(driver, false),
            subnets: Vec::new(),
            options: BTreeMap::new(),
        }
    }

    fn docker(name: &str, driver: &str) -> Network {
        network("docker", name, driver)
    }

    #[test]
    fn what_each_driver_reaches() {
        for (driver, internal, reach) in [
            ("bridge", false, Reach::ThroughHost),
            ("bridge", true, Reach::Internal),
            ("null", false, Reach::Nothing),
            ("host", false, Reach::Host),
            ("macvlan", false, Reach::Parent),
            ("ipvlan", true, Reach::Internal),
            ("weave", false, Reach::Unknown),
        ] {
            assert_eq!(Reach::of(driver, internal), reach, "{driver}");
        }
    }

    #[test]
    fn each_pair_of_drivers() {
        let with_parent = |name: &str, driver: &str, parent: &str| Network {
            parent: Some(parent.into()),
            ..docker(name, driver)
        };
        let internal = Network { internal: true, reach: Reach::Internal, ..docker("i", "macvlan") };
        let cases = [
            (docker("a", "bridge"), docker("b", "bridge"), Some(true), Why::EngineRule),
            (docker("a", "bridge"), docker("none", "null"), Some(true), Why::NoNetwork),
            (docker("host", "host"), docker("none", "null"), Some(true), Why::NoNetwork),
            (docker("a", "bridge"), docker("host", "host"), Some(false), Why::HostOnBridge),
            (docker("host", "host"), docker("m", "macvlan"), Some(true), Why::NotToHost),
            (docker("a", "bridge"), docker("m", "macvlan"), None, Why::Outside),
            (docker("a", "bridge"), internal, Some(true), Why::Internal),
            (
                with_parent("m", "macvlan", "eth0"),
                with_parent("i", "ipvlan", "eth0"),
                Some(false),
                Why::SameParent,
            ),
            (with_parent("m", "macvlan", "eth0"), with_parent("i", "macvlan", "eth1"), None, Why::Outside),
            (docker("a", "bridge"), docker("o", "overlay"), None, Why::Driver),
            (docker("a", "bridge"), network("docker-2", "b", "bridge"), Some(true), Why::EngineRule),
            (network("demo", "a", "bridge"), network("demo", "b", "bridge"), None, Why::Driver),
        ];
        for (a, b, isolated, why) in cases {
            for (a, b) in [(&a, &b), (&b, &a)] {
                assert_eq!(between(a, b, None), (isolated, why), "{} {}", a.driver, b.driver);
            }
        }
    }

    #[test]
    fn bridges_of_podman_by_their_options() {
        let podman = |isolate: &str, internal: bool| {
            let options = Some(isolate).filter(|isolate| !isolate.is_empty());
            Network {
                internal,
                reach: Reach::of("bridge", internal),
                options: options.into_iter().map(|value| (ISOLATE.to_owned(), value.to_owned())).collect(),
                ..network("podman", "a", "bridge")
            }
        };
        for (a, b, isolated, why) in [
            (podman("", false), podman("", false), false, Why::NotAskedFor),
            (podman("true", false), podman("", false), false, Why::NotAskedFor),
            (podman("true", false), podman("false", false), false, Why::NotAskedFor),
            (podman("true", false), podman("true", false), true, Why::EngineRule),
            (podman("strict", false), podman("", false), true, Why::EngineRule),
            (podman("", true), podman("", false), false, Why::IntoInternal),
            (podman("true", true), podman("true", false), false, Why::IntoInternal),
            (podman("", true), podman("", true), true, Why::Internal),
        ] {
            for (a, b) in [(&a, &b), (&b, &a)] {
                let said = between(a, b, Some("4.3.1"));
                assert_eq!(said, (Some(isolated), why), "{:?} {:?}", a.options, b.options);
            }
        }
        // A later Podman has another default, and of one that does not answer it is not known.
        for version in [Some("6.0.0"), None] {
            let between = |a, b| between(&a, &b, version);
            assert_eq!(between(podman("", false), podman("", false)), (None, Why::Driver));
            assert_eq!(between(podman("", true), podman("", false)), (None, Why::Driver));
            assert_eq!(between(podman("true", false), podman("true", false)), (Some(true), Why::EngineRule));
            assert_eq!(
                between(podman("true", false), podman("false", false)),
                (Some(false), Why::NotAskedFor)
            );
        }
    }

    #[test]
    fn a_container_on_both_joins_them_and_engines_are_apart() {
        let networks = [docker("a", "bridge"), docker("b", "bridge"), network("podman", "c", "bridge")];
        let both = Key::container("both");
        let on = networks[..2].iter().map(|network| (&network.key, BTreeSet::from([&both]))).collect();
        let pairs = isolation(&[], &networks, &on);
        assert_eq!(pairs.len(), 1, "{pairs:?}");
        assert_eq!((pairs[0].isolated, pairs[0].why), (Some(false), Why::Joined));
        assert_eq!(pairs[0].joined_by, std::slice::from_ref(&both));
    }
}
