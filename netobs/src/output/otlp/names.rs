//! From names and labels of `/metrics` to OpenTelemetry's names and attributes.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::KeyValue;

use super::{number, text};
use crate::{
    model::{Pod, Snapshot, Workload},
    output::format::{short_id, visible},
};

/// A metric's, made of a family's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub name: String,
    /// UCUM, as OpenTelemetry has it.
    pub unit: &'static str,
    /// `receive` or `transmit`, where each is a family of its own.
    pub direction: Option<&'static str>,
}

/// The one that the semantic conventions have a name for.
const CONTAINER_BYTES: (&str, &str) = ("netobs.container.bytes", "container.network.io");

impl Name {
    pub fn of(family: &str) -> Self {
        let mut words: Vec<&str> = family.split('_').collect();
        words.retain(|word| *word != "total");
        let mut direction = None;
        for one in ["receive", "transmit"] {
            if let Some(at) = words.iter().position(|word| *word == one) {
                words.remove(at);
                direction = Some(one);
            }
        }
        let has = |unit| words.contains(&unit);
        let unit = match words.last().copied() {
            Some("seconds") => "s",
            _ if has("bytes") => "By",
            _ if has("packets") => "{packet}",
            _ => "1",
        };
        if unit == "s" {
            words.pop();
        }
        // What it is about, and what is told of that: `netobs.container.wire_bytes`.
        let depth = words.len().min(2);
        let name = [words[..depth].join("."), words[depth..].join("_")];
        let name = name.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(".");
        let name = if name == CONTAINER_BYTES.0 { CONTAINER_BYTES.1.to_owned() } else { name };
        Self { name, unit, direction }
    }
}

/// What labels stand for: whole IDs of containers by the short ones, and what has made a pod.
#[derive(Debug, Default)]
pub struct Ids<'a> {
    whole: HashMap<&'a str, Option<&'a str>>,
    /// By namespace and name.
    owners: HashMap<[&'a str; 2], &'a Workload>,
}

impl<'a> Ids<'a> {
    pub fn of(snapshot: &'a Snapshot) -> Self {
        let ends = snapshot.edges.iter().flat_map(|edge| [&edge.source, &edge.destination]);
        let ids = ends.filter_map(|end| end.id.as_deref());
        let mut whole = HashMap::new();
        for id in snapshot.containers.iter().map(|container| container.id.as_str()).chain(ids) {
            // Two that begin alike stay short.
            whole
                .entry(short_id(id))
                .and_modify(|known: &mut Option<&str>| *known = known.filter(|known| *known == id))
                .or_insert(Some(id));
        }
        let pods = snapshot.containers.iter().filter_map(|container| container.pod.as_ref());
        let owner = |pod: &'a Pod| Some(([pod.namespace.as_str(), pod.name.as_str()], pod.owner.as_ref()?));
        Self { whole, owners: pods.filter_map(owner).collect() }
    }

    fn whole<'b>(&'b self, short: &'b str) -> &'b str {
        self.whole.get(short).copied().flatten().unwrap_or(short)
    }
}

/// Attributes of labels. A label without a value is none.
pub fn attributes(labels: &[(String, String)], ids: &Ids<'_>) -> Vec<KeyValue> {
    let of = |name: &str| labels.iter().find(|(label, _)| label == name).map_or("", |(_, value)| value);
    let mut attributes = Vec::with_capacity(labels.len());
    for (label, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
        let key = match label.as_str() {
            "id" | "source_id" | "destination_id" => {
                let end = label.strip_suffix("id").unwrap_or_default().replace('_', ".");
                attributes.push(text(&format!("{end}container.id"), ids.whole(value).to_owned()));
                continue;
            }
            // A container where there is an ID, else what is there instead.
            end @ ("source" | "destination") if !of(&format!("{end}_id")).is_empty() => {
                format!("{end}.container.name")
            }
            end @ ("source" | "destination") => format!("netobs.{end}.class"),
            "source_service" | "destination_service" => {
                let end = label.strip_suffix("_service").unwrap_or_default();
                attributes.extend(service(end, value));
                continue;
            }
            "owner_kind" if owner_key(value) != OTHER_OWNER => continue,
            "owner_name" => owner_key(of("owner_kind")),
            "port" => {
                // Of an edge and of a published port: the service's.
                attributes.extend(value.parse().ok().map(|port| number("server.port", port)));
                continue;
            }
            other => key(other),
        };
        attributes.push(text(&key, value.clone()));
    }
    // Here there is nothing to join on.
    let ends = if of("owner_kind").is_empty() { &ENDS[..] } else { &[] };
    for [end, namespace, pod] in ends {
        if let Some(owner) = ids.owners.get(&[of(namespace), of(pod)]) {
            let key = format!("{end}{}", owner_key(&owner.kind));
            attributes.push(text(&key, visible(&owner.name).into_owned()));
        }
    }
    attributes
}

/// Of an end that is a service, by its `NAMESPACE/NAME`.
pub fn service(end: &str, path: &str) -> impl Iterator<Item = KeyValue> {
    let (namespace, name) = path.split_once('/').unwrap_or(("", path));
    let parts = [("namespace", namespace), ("service", name)];
    let parts = parts.map(|(part, value)| text(&format!("{end}.k8s.{part}.name"), value.to_owned()));
    parts.into_iter().skip(usize::from(namespace.is_empty()))
}

/// Before an attribute's name, and the labels that say which pod it is.
const ENDS: [[&str; 3]; 3] = [
    ["", "namespace", "pod"],
    ["source.", "source_namespace", "source_pod"],
    ["destination.", "destination_namespace", "destination_pod"],
];

/// Of what the conventions have no name for; its kind is beside it.
const OTHER_OWNER: &str = "netobs.owner.name";

/// For the name of what has made a pod, by its kind.
fn owner_key(kind: &str) -> String {
    let known = match kind {
        "Deployment" => "k8s.deployment.name",
        "StatefulSet" => "k8s.statefulset.name",
        "DaemonSet" => "k8s.daemonset.name",
        "ReplicaSet" => "k8s.replicaset.name",
        "Job" => "k8s.job.name",
        _ => OTHER_OWNER,
    };
    known.to_owned()
}

/// An attribute's name: the semantic conventions', else one of our own.
fn key(label: &str) -> String {
    let known = match label {
        "container" => "container.name",
        "image" => "container.image.name",
        "engine" => "container.runtime.name",
        "namespace" => "k8s.namespace.name",
        "pod" => "k8s.pod.name",
        "pod_uid" => "k8s.pod.uid",
        "node" => "k8s.node.name",
        "interface" => "network.interface.name",
        "direction" => "network.io.direction",
        "protocol" => "network.transport",
        "ethertype" => "network.type",
        "name" => "dns.question.name",
        "version" => "service.version",
        "network" => "netobs.network.name",
        "source_network" => "netobs.source.network.name",
        "destination_network" => "netobs.destination.network.name",
        "source_namespace" => "source.k8s.namespace.name",
        "source_pod" => "source.k8s.pod.name",
        "destination_namespace" => "destination.k8s.namespace.name",
        "destination_pod" => "destination.k8s.pod.name",
        "owner_kind" => "netobs.owner.kind",
        "compose_project" => "netobs.compose.project",
        "compose_service" => "netobs.compose.service",
        other => return format!("netobs.{other}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_direction_and_unit_apart() {
        let name = |name: &str, unit, direction| Name { name: name.to_owned(), unit, direction };
        let receive = Some("receive");
        for (family, wanted) in [
            ("netobs_container_receive_bytes_total", name("container.network.io", "By", receive)),
            ("netobs_container_receive_packets_total", name("netobs.container.packets", "{packet}", receive)),
            (
                "netobs_container_protocol_transmit_bytes_total",
                name("netobs.container.protocol_bytes", "By", Some("transmit")),
            ),
            (
                "netobs_container_receive_packet_size_bytes",
                name("netobs.container.packet_size_bytes", "By", receive),
            ),
            (
                "netobs_container_receive_packets_dropped_total",
                name("netobs.container.packets_dropped", "{packet}", receive),
            ),
            ("netobs_container_tcp_rtt_seconds", name("netobs.container.tcp_rtt", "s", None)),
            ("netobs_edge_bytes_total", name("netobs.edge.bytes", "By", None)),
            ("netobs_drops_total", name("netobs.drops", "1", None)),
        ] {
            assert_eq!(Name::of(family), wanted, "{family}");
        }
    }
}
