//! From a runtime's answers to the model's types. Whatever is missing in an answer stays empty.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use serde::{Deserialize, de::DeserializeOwned};

use super::messages::{
    Container, ContainerStatusResponse, PodSandbox, PodSandboxMetadata, PodSandboxStatusResponse,
};
use crate::{
    discovery::engine::convert::text,
    model::{ContainerInfo, ContainerState, Endpoint, NetworkInfo, Pod, Subnet, Workload},
};

/// Labels of a pod that are kept; the others are left out.
const MOST_LABELS: usize = 64;

/// What the kubelet gives each pod and container as a label: the pod's identity, which is told anyway.
const KUBELET_LABELS: &str = "io.kubernetes.";

/// `NODE` of `NamespaceMode`.
const OF_THE_HOST: i32 = 2;

/// The interface that has the network's address, by the kubelet's convention.
const POD_INTERFACE: &str = "eth0";

/// The network of a pod where the runtime does not say its name.
pub const UNNAMED_NETWORK: &str = "pods";

/// What only the status of a single sandbox or container says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detail {
    /// First process, as numbered by the host.
    pub pid: Option<u32>,
    /// It is in the host's network namespace.
    pub host_network: bool,
    pub addresses: Vec<IpAddr>,
    pub mac: Option<String>,
    pub image: String,
}

/// `info` of a verbose status, by containerd and CRI-O alike.
#[derive(Debug, Default, Deserialize)]
struct Info {
    #[serde(default)]
    pid: Option<i64>,
    #[serde(default, rename = "cniResult")]
    cni_result: Option<CniResult>,
}

#[derive(Debug, Default, Deserialize)]
struct CniResult {
    #[serde(default, rename = "Interfaces")]
    interfaces: Option<HashMap<String, CniInterface>>,
}

#[derive(Debug, Default, Deserialize)]
struct CniInterface {
    #[serde(default, rename = "Mac")]
    mac: String,
}

impl Detail {
    /// `PodSandboxStatus`
    pub fn of_sandbox(answer: PodSandboxStatusResponse) -> Self {
        let info: Info = info(&answer.info, "info");
        let status = answer.status.unwrap_or_default();
        let network = status.network.unwrap_or_default();
        let others = network.additional_ips.iter().map(|one| one.ip.as_str());
        let addresses = std::iter::once(network.ip.as_str()).chain(others);
        let mode = status.linux.and_then(|linux| linux.namespaces).and_then(|namespaces| namespaces.options);
        let interfaces = info.cni_result.and_then(|result| result.interfaces).unwrap_or_default();
        Self {
            pid: pid(info.pid),
            host_network: mode.is_some_and(|mode| mode.network == OF_THE_HOST),
            addresses: addresses.filter_map(|address| address.parse().ok()).collect(),
            mac: interfaces.get(POD_INTERFACE).map(|one| text(&one.mac)).filter(|mac| !mac.is_empty()),
            image: String::new(),
        }
    }

    /// `ContainerStatus`
    pub fn of_container(answer: ContainerStatusResponse) -> Self {
        let info: Info = info(&answer.info, "info");
        let image = answer.status.and_then(|status| status.image).unwrap_or_default();
        Self { pid: pid(info.pid), image: text(&image.image), ..Self::default() }
    }
}

/// A pod's sandbox: it owns the network. Connected with `network`, if it has one of its own.
pub fn sandbox(engine: &str, sandbox: &PodSandbox, detail: &Detail, network: &str) -> ContainerInfo {
    let is_ready = sandbox.state == 0;
    let labels = sandbox.labels.iter().filter(|(name, _)| !name.starts_with(KUBELET_LABELS));
    let mut labels: Vec<(String, String)> = labels.map(|(name, value)| (text(name), text(value))).collect();
    labels.sort();
    labels.truncate(MOST_LABELS);
    let pod = Pod { labels: labels.into_iter().collect(), ..of_sandbox(sandbox) };
    let endpoint = Endpoint {
        network: network.to_owned(),
        network_id: network.to_owned(),
        addresses: detail.addresses.clone(),
        mac: detail.mac.clone(),
    };
    let has_endpoint = !detail.host_network && !detail.addresses.is_empty();
    ContainerInfo {
        id: sandbox.id.clone(),
        name: pod.path(),
        pod: Some(pod),
        state: if is_ready { ContainerState::Running } else { ContainerState::Exited },
        engine: engine.to_owned(),
        pid: detail.pid.filter(|_| is_ready),
        network_mode: if detail.host_network { "host".to_owned() } else { network.to_owned() },
        endpoints: has_endpoint.then_some(endpoint).into_iter().collect(),
        ..ContainerInfo::default()
    }
}

/// A container of a pod, in the network of its sandbox.
pub fn container(
    engine: &str,
    container: &Container,
    detail: &Detail,
    of: Option<(&PodSandbox, &Detail)>,
) -> ContainerInfo {
    let name = container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    let pod = of.map_or_else(|| pod(None, &container.labels), |(sandbox, _)| of_sandbox(sandbox));
    let pod = Pod { container: Some(text(name)), ..pod };
    let listed_image = container.image.as_ref().map_or("", |image| image.image.as_str());
    let state = match container.state {
        0 => ContainerState::Created,
        1 => ContainerState::Running,
        2 => ContainerState::Exited,
        _ => ContainerState::Unknown,
    };
    let on_host = of.is_some_and(|(_, detail)| detail.host_network);
    ContainerInfo {
        id: container.id.clone(),
        name: pod.path(),
        pod: Some(pod),
        image: if detail.image.is_empty() { text(listed_image) } else { detail.image.clone() },
        state,
        engine: engine.to_owned(),
        pid: detail.pid.filter(|_| state == ContainerState::Running),
        network_mode: if on_host {
            "host".to_owned()
        } else {
            format!("container:{}", container.pod_sandbox_id)
        },
        ..ContainerInfo::default()
    }
}

/// With what has made it, as far as its labels say; the API may know better.
fn of_sandbox(sandbox: &PodSandbox) -> Pod {
    let pod = pod(sandbox.metadata.as_ref(), &sandbox.labels);
    let label = |name: &str| sandbox.labels.get(name).map(String::as_str);
    let name = sandbox.metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    let owner = Workload::by_labels(name, label);
    let owner = owner.map(|owner| Workload { kind: owner.kind, name: text(&owner.name) });
    Pod { owner, ..pod }
}

/// By what the runtime was told, else by the labels that the kubelet sets.
fn pod(metadata: Option<&PodSandboxMetadata>, labels: &HashMap<String, String>) -> Pod {
    match metadata {
        Some(metadata) => Pod {
            namespace: text(&metadata.namespace),
            name: text(&metadata.name),
            uid: text(&metadata.uid),
            ..Pod::default()
        },
        None => {
            let label = |name: &str| text(labels.get(name).map_or("", String::as_str));
            Pod {
                namespace: label("io.kubernetes.pod.namespace"),
                name: label("io.kubernetes.pod.name"),
                uid: label("io.kubernetes.pod.uid"),
                ..Pod::default()
            }
        }
    }
}

/// `cniconfig` of containerd's verbose status: what it has read from the folder of CNI's configurations.
#[derive(Debug, Default, Deserialize)]
struct CniConfig {
    #[serde(default, rename = "Networks")]
    networks: Option<Vec<CniNetwork>>,
}

#[derive(Debug, Default, Deserialize)]
struct CniNetwork {
    #[serde(default, rename = "Config")]
    config: Option<CniNetworkConfig>,
    #[serde(default, rename = "IFName")]
    interface: String,
}

#[derive(Debug, Default, Deserialize)]
struct CniNetworkConfig {
    #[serde(default, rename = "Name")]
    name: String,
    #[serde(default, rename = "Plugins")]
    plugins: Option<Vec<CniPlugin>>,
}

#[derive(Debug, Default, Deserialize)]
struct CniPlugin {
    /// JSON, as in the file.
    #[serde(default, rename = "Source")]
    source: String,
}

/// A plugin's own configuration, as far as the distribution's plugins and those like them have it.
#[derive(Debug, Default, Deserialize)]
struct Plugin {
    #[serde(default, rename = "type")]
    driver: String,
    #[serde(default)]
    bridge: Option<String>,
    #[serde(default)]
    master: Option<String>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    ipam: Option<Ipam>,
}

#[derive(Debug, Default, Deserialize)]
struct Ipam {
    #[serde(flatten)]
    range: Range,
    #[serde(default)]
    ranges: Option<Vec<Vec<Range>>>,
}

#[derive(Debug, Default, Deserialize)]
struct Range {
    #[serde(default)]
    subnet: Option<String>,
    #[serde(default)]
    gateway: Option<String>,
}

/// As the runtime says.
pub fn version(version: &str) -> String {
    text(version)
}

/// The network that the runtime connects pods with now, where it says.
pub fn network(engine: &str, info: &HashMap<String, String>) -> Option<NetworkInfo> {
    let config: CniConfig = self::info(info, "cniconfig");
    let networks = config.networks.unwrap_or_default();
    let config = networks.into_iter().find(|network| network.interface == POD_INTERFACE)?.config?;
    let name = Some(text(&config.name)).filter(|name| !name.is_empty())?;
    let first = config.plugins.unwrap_or_default().into_iter().next().unwrap_or_default();
    let plugin: Plugin = serde_json::from_str(&first.source).unwrap_or_default();
    let ipam = plugin.ipam.unwrap_or_default();
    let ranges = std::iter::once(ipam.range).chain(ipam.ranges.unwrap_or_default().into_iter().flatten());
    let options = [("parent", plugin.master), ("mode", plugin.mode)];
    Some(NetworkInfo {
        id: name.clone(),
        name,
        // The plugin's own default.
        bridge: (plugin.driver == "bridge").then(|| text(plugin.bridge.as_deref().unwrap_or("cni0"))),
        driver: text(&plugin.driver),
        engine: engine.to_owned(),
        internal: false,
        subnets: ranges
            .filter_map(|range| {
                Some(Subnet { subnet: text(&range.subnet?), gateway: range.gateway.as_deref().map(text) })
            })
            .collect(),
        options: options
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), text(&value?))))
            .collect::<BTreeMap<_, _>>(),
    })
}

fn info<T: DeserializeOwned + Default>(info: &HashMap<String, String>, name: &str) -> T {
    info.get(name).and_then(|json| serde_json::from_str(json).ok()).unwrap_or_default()
}

fn pid(pid: Option<i64>) -> Option<u32> {
    u32::try_from(pid?).ok().filter(|pid| *pid > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::discovery::engine::cri::messages::{
        ContainerMetadata, ContainerStatus, ImageSpec, LinuxPodSandboxStatus, NamespaceOption, Namespaces,
        PodIp, PodSandboxNetworkStatus, PodSandboxStatus,
    };

    fn ready() -> PodSandbox {
        let labels = [("app", "web"), ("io.kubernetes.pod.name", "web-1")];
        PodSandbox {
            id: "a".repeat(64),
            metadata: Some(PodSandboxMetadata {
                name: "web-1".into(),
                uid: "1-2-3".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            state: 0,
            labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        }
    }

    fn status(network: i32) -> PodSandboxStatusResponse {
        let options = Some(NamespaceOption { network });
        let json = r#"{"pid":4711,"cniResult":{"Interfaces":{"eth0":{"Mac":"0a:58:0a:0a:00:05"},"lo":{}}}}"#;
        PodSandboxStatusResponse {
            status: Some(PodSandboxStatus {
                network: Some(PodSandboxNetworkStatus {
                    ip: "10.10.0.5".into(),
                    additional_ips: vec![PodIp { ip: "fd00::5".into() }, PodIp { ip: "nonsense".into() }],
                }),
                linux: Some(LinuxPodSandboxStatus { namespaces: Some(Namespaces { options }) }),
            }),
            info: HashMap::from([("info".into(), json.into())]),
        }
    }

    #[test]
    fn a_sandbox_owns_the_network_of_its_pod() {
        let info = sandbox("containerd", &ready(), &Detail::of_sandbox(status(0)), "cluster");
        assert_eq!((info.name.as_str(), info.state), ("shop/web-1", ContainerState::Running));
        assert_eq!((info.pid, info.network_mode.as_str()), (Some(4711), "cluster"));
        let addresses: Vec<IpAddr> = ["10.10.0.5", "fd00::5"].map(|one| one.parse().expect("address")).into();
        assert_eq!(info.endpoints[0].addresses, addresses);
        assert_eq!(info.endpoints[0].mac.as_deref(), Some("0a:58:0a:0a:00:05"));
        let pod = info.pod.expect("a pod");
        assert_eq!((pod.uid.as_str(), pod.container.as_deref()), ("1-2-3", None));
        assert_eq!(pod.labels, BTreeMap::from([("app".into(), "web".into())]), "the kubelet's are left out");
    }

    #[test]
    fn one_that_is_not_ready_has_ended() {
        let stopped = PodSandbox { state: 1, ..ready() };
        let info = sandbox("containerd", &stopped, &Detail::of_sandbox(status(0)), "cluster");
        assert_eq!((info.state, info.pid), (ContainerState::Exited, None));
    }

    #[test]
    fn containers_are_in_the_network_of_their_sandbox() {
        let listed = Container {
            id: "b".repeat(64),
            pod_sandbox_id: "a".repeat(64),
            metadata: Some(ContainerMetadata { name: "app".into(), attempt: 2 }),
            image: Some(ImageSpec { image: "sha256:1234".into() }),
            state: 1,
            labels: HashMap::new(),
        };
        let detail = Detail::of_container(ContainerStatusResponse {
            status: Some(ContainerStatus { image: Some(ImageSpec { image: "nginx:1.27".into() }) }),
            info: HashMap::from([("info".into(), r#"{"pid":42}"#.into())]),
        });
        let (sandbox, of_pod) = (ready(), Detail::of_sandbox(status(0)));
        let info = container("cri-o", &listed, &detail, Some((&sandbox, &of_pod)));
        assert_eq!((info.name.as_str(), info.image.as_str()), ("shop/web-1/app", "nginx:1.27"));
        assert_eq!(info.network_mode, format!("container:{}", "a".repeat(64)));
        assert_eq!((info.pid, info.state), (Some(42), ContainerState::Running));
        let on_host = Detail::of_sandbox(status(OF_THE_HOST));
        let info = container("cri-o", &listed, &detail, Some((&sandbox, &on_host)));
        assert_eq!(info.network_mode, "host");
        let info = container("cri-o", &listed, &Detail::default(), None);
        assert_eq!(info.image, "sha256:1234", "it is gone, but what was listed is known");
    }

    #[test]
    fn the_network_is_as_configured() {
        let plugin = r#"{\"type\":\"bridge\",\"bridge\":\"cni-shop\",\"ipam\":{\"type\":\"host-local\",\"ranges\":[[{\"subnet\":\"10.10.0.0/24\",\"gateway\":\"10.10.0.1\"}]]}}"#;
        let json = format!(
            r#"{{"Networks":[{{"Config":{{"Name":"cni-loopback","Plugins":[]}},"IFName":"lo"}},
                {{"Config":{{"Name":"cluster","Plugins":[{{"Source":"{plugin}"}}]}},"IFName":"eth0"}}]}}"#
        );
        let network = network("containerd", &HashMap::from([("cniconfig".into(), json)])).expect("a network");
        assert_eq!((network.name.as_str(), network.driver.as_str()), ("cluster", "bridge"));
        assert_eq!(network.bridge.as_deref(), Some("cni-shop"));
        assert_eq!(network.subnets[0].subnet, "10.10.0.0/24");
    }

    #[test]
    fn what_is_nonsense_is_left_out() {
        for json in ["", "{", "[]", r#"{"pid":-1}"#, r#"{"pid":"x"}"#, r#"{"cniResult":{"Interfaces":null}}"#]
        {
            let info =
                HashMap::from([("info".to_owned(), json.to_owned()), ("cniconfig".into(), json.into())]);
            let answer = PodSandboxStatusResponse { status: None, info: info.clone() };
            assert_eq!(Detail::of_sandbox(answer), Detail::default(), "{json}");
            assert_eq!(network("containerd", &info), None, "{json}");
        }
        let long = PodSandbox {
            metadata: Some(PodSandboxMetadata { name: "x".repeat(10_000), ..PodSandboxMetadata::default() }),
            labels: (0..100).map(|number| (number.to_string(), "y".repeat(10_000))).collect(),
            ..ready()
        };
        let pod = sandbox("containerd", &long, &Detail::default(), "pods").pod.expect("a pod");
        assert_eq!((pod.name.len(), pod.labels.len()), (4096, MOST_LABELS));
        assert!(pod.labels.values().all(|value| value.len() == 4096));
    }
}
