//! Which containers to show, said as with Docker's `--filter`: `key=value`, or a plain word.
//!
//! Values of one key are alternatives, different keys must all match.

use std::collections::HashSet;

use thiserror::Error;

use super::format::escape;
use crate::model::{Container, InterfaceKind, Network, Snapshot};

/// Shorter words are not taken for the beginning of an ID: `db` means a name.
const ID_WORD_MIN: usize = 3;
/// Below this likeness (Jaro-Winkler, 0 to 1) a suggestion would only puzzle.
const LIKENESS_MIN: f64 = 0.75;
const STATES: &str = "created, running, paused, restarting, exited, dead, removed, unknown";

#[derive(Debug, Error, PartialEq, Eq)]
pub enum FilterError {
    #[error(
        "unknown filter `{0}`: the keys are name, network, id, state, project, service, namespace and pod, or a plain word"
    )]
    Key(String),
    #[error("filter `{0}=` has no value")]
    Value(String),
    #[error("unknown state `{0}`: the states are {STATES}")]
    State(String),
}

/// Empty: everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Part of the name.
    name: Vec<String>,
    /// A network's name, or the beginning of its ID.
    network: Vec<String>,
    /// Beginning of the ID.
    id: Vec<String>,
    state: Vec<String>,
    project: Vec<String>,
    service: Vec<String>,
    namespace: Vec<String>,
    pod: Vec<String>,
    /// Part of a name or of a network's name, or beginning of an ID; case does not matter.
    word: Vec<String>,
}

impl Filter {
    pub fn parse(filters: &[String]) -> Result<Self, FilterError> {
        let mut parsed = Self::default();
        for filter in filters {
            let Some((key, value)) = filter.split_once('=') else {
                if !filter.trim().is_empty() {
                    parsed.word.push(filter.trim().to_lowercase());
                }
                continue;
            };
            let alternatives = match key {
                "name" => &mut parsed.name,
                "network" => &mut parsed.network,
                "id" => &mut parsed.id,
                "state" => &mut parsed.state,
                "project" => &mut parsed.project,
                "service" => &mut parsed.service,
                "namespace" => &mut parsed.namespace,
                "pod" => &mut parsed.pod,
                _ => return Err(FilterError::Key(escape(key))),
            };
            if value.is_empty() {
                return Err(FilterError::Value(key.to_owned()));
            }
            if key == "state" && !STATES.split(", ").any(|state| state == value) {
                return Err(FilterError::State(escape(value)));
            }
            alternatives.push(value.to_owned());
        }
        Ok(parsed)
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub fn matches(&self, container: &Container) -> bool {
        let any = |wanted: &[String], matches: &dyn Fn(&str) -> bool| {
            wanted.is_empty() || wanted.iter().any(|value| matches(value))
        };
        let (compose, pod) = (container.compose.as_ref(), container.pod.as_ref());
        any(&self.name, &|name| container.name.contains(name))
            && any(&self.id, &|id| container.id.starts_with(id))
            && any(&self.state, &|state| container.state.to_string() == state)
            && any(&self.project, &|project| compose.is_some_and(|compose| compose.project == project))
            && any(&self.service, &|service| compose.is_some_and(|compose| compose.service == service))
            && any(&self.namespace, &|namespace| pod.is_some_and(|pod| pod.namespace == namespace))
            && any(&self.pod, &|name| pod.is_some_and(|pod| pod.name == name))
            && any(&self.network, &|network| {
                container.networks.iter().any(|name| name == network)
                    || container.endpoints.iter().any(|endpoint| is_id(network, &endpoint.network_id))
            })
            && any(&self.word, &|word| {
                contains(&container.name, word)
                    || is_id(word, &container.id)
                    || container.networks.iter().any(|network| contains(network, word))
            })
    }

    /// By its own name or ID, whoever is on it.
    pub fn names_network(&self, network: &Network) -> bool {
        self.network.iter().any(|wanted| *wanted == network.name || is_id(wanted, &network.id))
            || self.word.iter().any(|word| contains(&network.name, word))
    }

    /// Keeps matching containers, networks that one of them is on or that are named, and their interfaces.
    pub fn apply(&self, mut snapshot: Snapshot) -> Snapshot {
        if self.is_empty() {
            return snapshot;
        }
        snapshot.containers.retain(|container| self.matches(container));
        let used: HashSet<&str> =
            snapshot.containers.iter().flat_map(|c| &c.networks).map(String::as_str).collect();
        snapshot
            .networks
            .retain(|network| used.contains(network.name.as_str()) || self.names_network(network));
        let ids: HashSet<&str> = snapshot.containers.iter().map(|container| container.id.as_str()).collect();
        let networks: HashSet<&str> = snapshot.networks.iter().map(|network| network.name.as_str()).collect();
        snapshot.interfaces.retain(|interface| {
            let owned = interface.container_id.as_deref().is_some_and(|id| ids.contains(id));
            let bridge = interface.kind == InterfaceKind::Bridge;
            owned || bridge && interface.network.as_deref().is_some_and(|name| networks.contains(name))
        });
        snapshot
    }
}

/// The container, service or network whose name is most like `name`, safe for a terminal.
pub fn nearest(name: &str, snapshot: &Snapshot) -> Option<String> {
    let containers = snapshot.containers.iter().map(|container| container.name.as_str());
    let services =
        snapshot.containers.iter().filter_map(|c| c.compose.as_ref()).map(|compose| compose.service.as_str());
    let networks = snapshot.networks.iter().map(|network| network.name.as_str());
    let likeness = |candidate: &str| strsim::jaro_winkler(&candidate.to_lowercase(), &name.to_lowercase());
    containers
        .chain(services)
        .chain(networks)
        .map(|candidate| (likeness(candidate), candidate))
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        // The first of equals: a container rather than a network.
        .reduce(|best, next| if next.0 > best.0 { next } else { best })
        .map(|(_, candidate)| escape(candidate))
}

fn contains(name: &str, word: &str) -> bool {
    name.to_lowercase().contains(word)
}

fn is_id(word: &str, id: &str) -> bool {
    word.len() >= ID_WORD_MIN && id.starts_with(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::fixture;

    fn parse(filters: &[&str]) -> Result<Filter, FilterError> {
        Filter::parse(&filters.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    fn names(filters: &[&str]) -> Vec<String> {
        let kept = parse(filters).expect("filter").apply(fixture::snapshot());
        kept.containers.into_iter().map(|container| container.name).collect()
    }

    #[test]
    fn keys_are_anded_and_values_of_a_key_ored() {
        assert_eq!(names(&["name=web"]), ["web-1"]);
        assert_eq!(names(&["name=web", "name=db"]), ["db", "web-1"]);
        assert_eq!(names(&["project=shop", "service=db"]), ["db"]);
        assert_eq!(names(&["network=shop_default", "state=running"]), ["db", "web-1"]);
        assert_eq!(names(&["id=aaaa"]), ["web-1"]);
        assert_eq!(names(&["network=shop_default", "state=paused"]), [""; 0]);
    }

    #[test]
    fn words_match_names_ids_and_networks() {
        assert_eq!(names(&["WEB"]), ["web-1"]);
        assert_eq!(names(&["aaa"]), ["web-1"]);
        assert_eq!(names(&["shop"]), ["db", "job", "web-1"]);
        assert_eq!(names(&["db", "host"]), ["db", "host-net"]);
    }

    #[test]
    fn networks_and_interfaces_follow() {
        let kept = parse(&["web"]).expect("filter").apply(fixture::snapshot());
        assert_eq!(kept.networks.iter().map(|n| n.name.as_str()).collect::<Vec<_>>(), ["shop_default"]);
        let interfaces: Vec<_> = kept.interfaces.iter().map(|i| i.name.as_str()).collect();
        assert_eq!(interfaces, ["br-eeeeeeeeeeee", "vetha"]);
        assert_eq!(Filter::default().apply(fixture::snapshot()), fixture::snapshot());
    }

    #[test]
    fn errors_say_what_is_allowed() {
        assert!(parse(&["colour=red"]).expect_err("key").to_string().contains("name, network, id"));
        assert!(parse(&["state=ill"]).expect_err("state").to_string().contains("running"));
        assert_eq!(parse(&["name="]), Err(FilterError::Value("name".into())));
    }

    #[test]
    fn suggests_the_nearest_or_nothing() {
        let snapshot = fixture::snapshot();
        assert_eq!(nearest("wbe-1", &snapshot).as_deref(), Some("web-1"));
        assert_eq!(nearest("shop_defualt", &snapshot).as_deref(), Some("shop_default"));
        assert_eq!(nearest("zzz", &snapshot), None);
    }
}
