//! From the Engine API's answers to the model's types. Whatever is missing in an answer stays empty.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use bollard::models::{
    ContainerInspectResponse, ContainerState as ApiState, ContainerStateStatusEnum, ContainerSummary,
    ContainerSummaryStateEnum, EndpointSettings, Network, PortMap,
};

use super::libpod;
use crate::model::{
    Compose, ContainerInfo, ContainerState, Endpoint, NetworkInfo, Protocol, PublishedPort, Subnet,
};

/// Names and labels longer than that are cut: they are anybody's data.
const LONGEST_TEXT: usize = 4096;

/// Digits of a network's ID in the name of its bridge (libnetwork's bridge driver).
const BRIDGE_ID_LEN: usize = 12;

/// `GET /containers/{id}/json`
pub fn container(engine: &str, answer: ContainerInspectResponse) -> Option<ContainerInfo> {
    let config = answer.config.unwrap_or_default();
    let settings = answer.network_settings.unwrap_or_default();
    let mut endpoints = endpoints(settings.networks.unwrap_or_default());
    let mut published = published(settings.ports.unwrap_or_default());
    let network_mode = network_mode(answer.host_config.and_then(|config| config.network_mode).as_deref());
    // Podman repeats the owner's with each member of its namespace.
    if network_mode.starts_with("container:") {
        endpoints.clear();
        published.clear();
    }
    let state = answer.state.unwrap_or_default();
    Some(ContainerInfo {
        id: answer.id.filter(|id| !id.is_empty())?,
        name: text(answer.name.as_deref().unwrap_or_default().trim_start_matches('/')),
        image: text(config.image.as_deref().unwrap_or_default()),
        state: status(&state),
        engine: engine.to_owned(),
        pid: state.pid.and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
        compose: compose(&config.labels.unwrap_or_default()),
        pod: None,
        network_mode,
        endpoints,
        published,
    })
}

/// What `GET /containers/json` says of one: not its process. Published ports are left to the answer for itself.
pub fn from_summary(engine: &str, answer: ContainerSummary) -> Option<ContainerInfo> {
    use ContainerSummaryStateEnum as State;
    let settings = answer.network_settings.unwrap_or_default();
    let names = answer.names.unwrap_or_default();
    let names: Vec<&str> = names.iter().map(|name| name.trim_start_matches('/')).collect();
    let network_mode = network_mode(answer.host_config.and_then(|config| config.network_mode).as_deref());
    let is_member = network_mode.starts_with("container:");
    Some(ContainerInfo {
        id: answer.id.filter(|id| !id.is_empty())?,
        // Beside its own it has one for each link to it: `/other/alias`.
        name: text(names.into_iter().find(|name| !name.contains('/')).unwrap_or_default()),
        image: text(answer.image.as_deref().unwrap_or_default()),
        state: match answer.state {
            Some(State::CREATED) => ContainerState::Created,
            Some(State::RUNNING | State::STOPPING) => ContainerState::Running,
            Some(State::PAUSED) => ContainerState::Paused,
            Some(State::RESTARTING) => ContainerState::Restarting,
            Some(State::REMOVING | State::EXITED) => ContainerState::Exited,
            Some(State::DEAD) => ContainerState::Dead,
            _ => ContainerState::Unknown,
        },
        engine: engine.to_owned(),
        compose: compose(&answer.labels.unwrap_or_default()),
        network_mode,
        endpoints: if is_member { Vec::new() } else { endpoints(settings.networks.unwrap_or_default()) },
        ..ContainerInfo::default()
    })
}

/// A container in a list, with what else was known of it.
pub fn listed(summary: ContainerInfo, known: Option<ContainerInfo>) -> ContainerInfo {
    let Some(known) = known else { return summary };
    ContainerInfo {
        // Of one that has begun or ended since it is another.
        pid: known.pid.filter(|_| known.state == summary.state),
        name: summary.name,
        state: summary.state,
        endpoints: if summary.endpoints.is_empty() { known.endpoints } else { summary.endpoints },
        ..known
    }
}

/// Of `HostConfig`: a network's name, `host`, `none`, or `container:` and whose.
fn network_mode(mode: Option<&str>) -> String {
    match mode {
        Some("default") => "bridge".to_owned(),
        mode => text(mode.unwrap_or_default()),
    }
}

/// `NetworkSettings.Ports`: `80/tcp` to where it is bound on the host, null where it is only exposed.
fn published(ports: PortMap) -> Vec<PublishedPort> {
    let mut published = Vec::new();
    for (name, bindings) in ports {
        let (port, protocol) = name.split_once('/').unwrap_or((name.as_str(), "tcp"));
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => continue,
        };
        let Ok(container_port) = port.parse() else { continue };
        for binding in bindings.unwrap_or_default() {
            let Some(host_port) = binding.host_port.and_then(|port| port.parse().ok()) else { continue };
            let host_address = binding.host_ip.and_then(|address| address.parse().ok());
            published.push(PublishedPort { protocol, container_port, host_address, host_port });
        }
    }
    published.sort_by_key(|port| (port.protocol, port.container_port, port.host_address, port.host_port));
    published
}

/// What the attributes of a container's event say of it (`GET /events`, `Actor.Attributes`).
pub fn from_event(engine: &str, id: &str, attributes: &HashMap<String, String>) -> ContainerInfo {
    let attribute = |key: &str| text(attributes.get(key).map_or("", String::as_str));
    ContainerInfo {
        id: id.to_owned(),
        name: attribute("name"),
        image: attribute("image"),
        state: ContainerState::Created,
        engine: engine.to_owned(),
        compose: compose(attributes),
        ..ContainerInfo::default()
    }
}

/// Gives a container's endpoints the IDs of their networks where the engine says the name (Podman does).
/// Whether all are known.
pub fn find_networks(info: &mut ContainerInfo, networks: &[NetworkInfo]) -> bool {
    let mut all_known = true;
    for endpoint in &mut info.endpoints {
        if networks.iter().any(|network| network.id == endpoint.network_id) {
            continue;
        }
        match networks.iter().find(|network| network.name == endpoint.network) {
            Some(network) => endpoint.network_id.clone_from(&network.id),
            None => all_known = false,
        }
    }
    all_known
}

/// `GET /libpod/networks/json`; `on_host`: its bridges are the host's.
pub fn of_podman(engine: &str, answer: libpod::Network, on_host: bool) -> Option<NetworkInfo> {
    let named = Some(answer.network_interface).filter(|name| !name.is_empty());
    let (bridge, parent) = if answer.driver == "bridge" { (named, None) } else { (None, named) };
    let mut options: BTreeMap<String, String> =
        answer.options.iter().map(|(key, value)| (text(key), text(value))).collect();
    options.extend(parent.map(|parent| ("parent".to_owned(), text(&parent))));
    Some(NetworkInfo {
        id: Some(answer.id).filter(|id| !id.is_empty())?,
        name: text(&answer.name),
        driver: text(&answer.driver),
        engine: engine.to_owned(),
        bridge: bridge.filter(|_| on_host),
        internal: answer.internal,
        subnets: answer
            .subnets
            .into_iter()
            .map(|one| Subnet { subnet: one.subnet, gateway: one.gateway })
            .collect(),
        options,
    })
}

/// `GET /networks`
pub fn network(engine: &str, answer: Network) -> Option<NetworkInfo> {
    let id = answer.id.filter(|id| !id.is_empty())?;
    let driver = answer.driver.unwrap_or_default();
    let options = answer.options.unwrap_or_default();
    let bridge =
        options.get("com.docker.network.bridge.name").filter(|name| !name.is_empty()).cloned().or_else(
            || {
                // Podman counts its bridges.
                (driver == "bridge" && !engine.starts_with("podman"))
                    .then(|| format!("br-{}", prefix(&id, BRIDGE_ID_LEN)))
            },
        );
    let subnets = answer
        .ipam
        .and_then(|ipam| ipam.config)
        .unwrap_or_default()
        .into_iter()
        .filter_map(|config| Some(Subnet { subnet: config.subnet?, gateway: config.gateway }))
        .collect();
    Some(NetworkInfo {
        id,
        name: text(answer.name.as_deref().unwrap_or_default()),
        driver,
        engine: engine.to_owned(),
        bridge,
        internal: answer.internal.unwrap_or_default(),
        subnets,
        options: options.into_iter().map(|(key, value)| (text(&key), text(&value))).collect(),
    })
}

/// `NetworkSettings.Networks`
fn endpoints(networks: HashMap<String, EndpointSettings>) -> Vec<Endpoint> {
    let mut endpoints: Vec<Endpoint> =
        networks.into_iter().map(|(name, settings)| endpoint(name, settings)).collect();
    endpoints.sort_by(|a, b| a.network.cmp(&b.network));
    endpoints
}

fn endpoint(network: String, settings: EndpointSettings) -> Endpoint {
    let addresses = [settings.ip_address, settings.global_ipv6_address]
        .into_iter()
        .flatten()
        .filter_map(|address| address.parse::<IpAddr>().ok())
        .collect();
    Endpoint {
        network: text(&network),
        network_id: settings.network_id.unwrap_or_default(),
        addresses,
        mac: settings.mac_address.filter(|mac| !mac.is_empty()),
    }
}

fn status(state: &ApiState) -> ContainerState {
    match state.status {
        Some(ContainerStateStatusEnum::CREATED) => ContainerState::Created,
        Some(ContainerStateStatusEnum::RUNNING) => ContainerState::Running,
        Some(ContainerStateStatusEnum::PAUSED) => ContainerState::Paused,
        Some(ContainerStateStatusEnum::RESTARTING) => ContainerState::Restarting,
        Some(ContainerStateStatusEnum::REMOVING | ContainerStateStatusEnum::EXITED) => ContainerState::Exited,
        Some(ContainerStateStatusEnum::DEAD) => ContainerState::Dead,
        _ => ContainerState::Unknown,
    }
}

fn compose(labels: &HashMap<String, String>) -> Option<Compose> {
    let label = |suffix: &str| {
        ["com.docker.compose", "io.podman.compose"]
            .iter()
            .find_map(|prefix| labels.get(&format!("{prefix}.{suffix}")))
            .map(|value| text(value))
    };
    Some(Compose { project: label("project")?, service: label("service").unwrap_or_default() })
}

pub(in crate::discovery) fn text(text: &str) -> String {
    prefix(text, LONGEST_TEXT).to_owned()
}

/// At most `max` bytes, whole characters.
fn prefix(text: &str, max: usize) -> &str {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_container() {
        let answer = serde_json::from_value(serde_json::json!({
            "Id": "ab".repeat(32),
            "Name": "/web",
            "State": {"Status": "running", "Pid": 4711},
            "Config": {"Image": "nginx:1", "Labels": {
                "com.docker.compose.project": "shop", "com.docker.compose.service": "front"}},
            "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": {
                "b": {"NetworkID": "n2", "IPAddress": "172.18.0.3", "GlobalIPv6Address": "fd00::3",
                      "MacAddress": "02:42:ac:12:00:03"},
                "a": {"NetworkID": "n1", "IPAddress": ""}},
                "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}, {"HostIp": "::", "HostPort": "8080"}],
                          "53/udp": [{"HostIp": "", "HostPort": "53"}], "443/tcp": null, "x/tcp": []}}
        }))
        .expect("an answer");
        let info = container("docker", answer).expect("a container");
        assert_eq!((info.name.as_str(), info.image.as_str(), info.pid), ("web", "nginx:1", Some(4711)));
        assert_eq!(info.state, ContainerState::Running);
        assert_eq!(info.network_mode, "bridge");
        assert_eq!(info.compose, Some(Compose { project: "shop".into(), service: "front".into() }));
        assert_eq!(info.endpoints.len(), 2);
        assert_eq!((info.endpoints[0].network.as_str(), info.endpoints[0].addresses.len()), ("a", 0));
        assert_eq!(info.endpoints[1].addresses.len(), 2);
        let published: Vec<_> = info
            .published
            .iter()
            .map(|port| (port.protocol, port.container_port, port.host_address))
            .collect();
        let any = |text: &str| text.parse().ok();
        assert_eq!(
            published,
            [(Protocol::Tcp, 80, any("0.0.0.0")), (Protocol::Tcp, 80, any("::")), (Protocol::Udp, 53, None)]
        );
    }

    #[test]
    fn a_container_in_a_list() {
        let answer = serde_json::from_value(serde_json::json!({
            "Id": "ab".repeat(32), "Names": ["/other/alias", "/web"], "Image": "nginx:1", "State": "running",
            "Labels": {"com.docker.compose.project": "shop"}, "HostConfig": {"NetworkMode": "default"},
            "NetworkSettings": {"Networks": {"a": {"NetworkID": "n1", "IPAddress": "172.18.0.3"}}}
        }))
        .expect("an answer");
        let info = from_summary("docker", answer).expect("a container");
        assert_eq!((info.name.as_str(), info.image.as_str(), info.pid), ("web", "nginx:1", None));
        assert_eq!((info.state, info.network_mode.as_str()), (ContainerState::Running, "bridge"));
        assert_eq!((info.endpoints.len(), info.endpoints[0].addresses.len()), (1, 1));
        assert!(info.compose.is_some());

        let before = ContainerInfo {
            name: "old".into(),
            pid: Some(7),
            published: vec![PublishedPort {
                protocol: Protocol::Tcp,
                container_port: 80,
                host_address: None,
                host_port: 8080,
            }],
            ..info.clone()
        };
        let now = listed(info.clone(), Some(before.clone()));
        assert_eq!((now.name.as_str(), now.pid, now.published.len()), ("web", Some(7), 1));
        let ended = ContainerInfo { state: ContainerState::Exited, ..info.clone() };
        let now = listed(ended, Some(before));
        assert_eq!((now.state, now.pid, now.published.len()), (ContainerState::Exited, None, 1));
        assert_eq!(listed(info.clone(), None), info);
    }

    #[test]
    fn a_stopped_container_has_no_process() {
        let answer = serde_json::from_value(serde_json::json!({
            "Id": "cd".repeat(32), "State": {"Status": "exited", "Pid": 0}
        }))
        .expect("an answer");
        let info = container("docker", answer).expect("a container");
        assert_eq!((info.pid, info.state), (None, ContainerState::Exited));
        assert!(container("docker", ContainerInspectResponse::default()).is_none(), "no ID, no container");
    }

    #[test]
    fn names_of_bridges() {
        let bridge = |json: serde_json::Value, engine| {
            let answer = serde_json::from_value(json).expect("an answer");
            network(engine, answer).expect("a network").bridge
        };
        let id = "5d170daf5b6e".repeat(5);
        let named = serde_json::json!({"Id": id, "Name": "bridge", "Driver": "bridge",
            "Options": {"com.docker.network.bridge.name": "docker0"}});
        assert_eq!(bridge(named, "docker").as_deref(), Some("docker0"));
        let unnamed = serde_json::json!({"Id": id, "Name": "myapp", "Driver": "bridge"});
        assert_eq!(bridge(unnamed.clone(), "docker").as_deref(), Some("br-5d170daf5b6e"));
        assert_eq!(bridge(unnamed, "podman"), None);
        let host = serde_json::json!({"Id": id, "Name": "host", "Driver": "host"});
        assert_eq!(bridge(host, "docker"), None);
    }

    #[test]
    fn networks_of_podman() {
        let network = |json: serde_json::Value, on_host| {
            let answer = serde_json::from_value(json).expect("an answer");
            of_podman("podman", answer, on_host).expect("a network")
        };
        let id = "8e".repeat(32);
        let named = |driver: &str| {
            serde_json::json!({"name": "shop", "id": id, "driver": driver, "network_interface": "podman1",
                "subnets": [{"subnet": "10.89.0.0/24", "gateway": "10.89.0.1"}, {"subnet": "fd00::/64"}],
                "internal": false, "options": {"isolate": "true"}})
        };
        let shop = network(named("bridge"), true);
        assert_eq!(shop.bridge.as_deref(), Some("podman1"));
        assert_eq!(shop.options, BTreeMap::from([("isolate".to_owned(), "true".to_owned())]));
        assert_eq!((shop.subnets.len(), shop.subnets[1].gateway.as_deref()), (2, None));
        assert_eq!(network(named("bridge"), false).bridge, None, "a user's bridges are not the host's");
        let macvlan = network(named("macvlan"), true);
        assert_eq!(macvlan.bridge, None);
        assert_eq!(macvlan.options.get("parent").map(String::as_str), Some("podman1"));
        let bare = serde_json::json!({"name": "bare", "id": id, "driver": "bridge"});
        assert_eq!(network(bare, true).bridge, None);

        let on = |network: &str, id: &str| Endpoint {
            network: network.into(),
            network_id: id.into(),
            ..Endpoint::default()
        };
        let mut info =
            ContainerInfo { endpoints: vec![on("shop", "shop"), on("x", &id)], ..ContainerInfo::default() };
        assert!(find_networks(&mut info, std::slice::from_ref(&shop)));
        assert_eq!(info.endpoints[0].network_id, shop.id, "Podman says the name");
        info.endpoints.push(on("new", "new"));
        assert!(!find_networks(&mut info, &[shop]));
    }

    #[test]
    fn members_of_a_pod_have_what_its_owner_has() {
        let answer = serde_json::from_value(serde_json::json!({
            "Id": "ab".repeat(32), "State": {"Status": "running", "Pid": 1},
            "HostConfig": {"NetworkMode": format!("container:{}", "cd".repeat(32))},
            "NetworkSettings": {"Networks": {"podman": {"NetworkID": "podman", "IPAddress": "10.88.0.2"}},
                "Ports": {"80/tcp": [{"HostIp": "", "HostPort": "8080"}]}}
        }))
        .expect("an answer");
        let info = container("podman", answer).expect("a container");
        assert!(info.endpoints.is_empty() && info.published.is_empty(), "{info:?}");
    }

    #[test]
    fn long_names_are_cut_between_characters() {
        assert_eq!(prefix("aé", 2), "a");
        assert_eq!(text(&"é".repeat(LONGEST_TEXT)).len(), LONGEST_TEXT);
    }
}
