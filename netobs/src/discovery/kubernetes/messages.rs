//! What the API answers, as far as it is used, and what that is to the model. All else is skipped.

use std::{collections::BTreeMap, net::IpAddr};

use serde::Deserialize;

use super::Resource;
use crate::{
    discovery::engine::convert::text,
    model::{PodIdentity, ServiceInfo, Update, Workload},
};

/// `PodList`, `ServiceList`, `PartialObjectMetadataList`
#[derive(Debug, Default, Deserialize)]
pub struct List {
    #[serde(default)]
    pub metadata: ListMeta,
    pub items: Option<Vec<Object>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ListMeta {
    #[serde(default)]
    pub resource_version: String,
}

/// `WatchEvent`
#[derive(Debug, Deserialize)]
pub struct Event {
    #[serde(rename = "type")]
    pub kind: EventKind,
    pub object: Object,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
    /// Nothing has happened up to a version.
    Bookmark,
    Error,
    #[serde(other)]
    Unknown,
}

/// `Pod`, `Service`, `PartialObjectMetadata`; with an error `Status`.
#[derive(Debug, Default, Deserialize)]
pub struct Object {
    #[serde(default)]
    pub metadata: Meta,
    spec: Option<ServiceSpec>,
    pub code: Option<u16>,
    pub message: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    name: String,
    namespace: String,
    uid: String,
    pub resource_version: String,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Debug, Deserialize)]
struct OwnerReference {
    kind: String,
    name: String,
    controller: Option<bool>,
}

/// Of a pod nothing is taken of it.
#[derive(Debug, Default, Deserialize)]
struct ServiceSpec {
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs")]
    cluster_ips: Option<Vec<String>>,
}

/// On what the API shows of a static pod, the UID that the kubelet has given it.
const STATIC_POD: &str = "kubernetes.io/config.mirror";

/// What is kept of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Pod(PodIdentity),
    Service(ServiceInfo),
}

impl Item {
    /// Its name to the model.
    pub fn key(&self) -> &str {
        match self {
            Self::Pod(pod) => &pod.uid,
            Self::Service(service) => &service.name,
        }
    }

    pub fn into_pod(self) -> Option<PodIdentity> {
        match self {
            Self::Pod(pod) => Some(pod),
            Self::Service(_) => None,
        }
    }

    pub fn into_service(self) -> Option<ServiceInfo> {
        match self {
            Self::Pod(_) => None,
            Self::Service(service) => Some(service),
        }
    }

    pub fn into_update(self) -> Update {
        match self {
            Self::Pod(pod) => Update::Pod(pod),
            Self::Service(service) => Update::Service(service),
        }
    }

    pub fn into_removal(self) -> Update {
        match self {
            Self::Pod(pod) => Update::PodRemoved { uid: pod.uid },
            Self::Service(service) => Update::ServiceRemoved { name: service.name },
        }
    }

    /// A service without an address says nothing.
    pub fn is_of_use(&self) -> bool {
        match self {
            Self::Pod(_) => true,
            Self::Service(service) => !service.addresses.is_empty(),
        }
    }
}

impl Object {
    /// None: it has no name.
    pub fn item(&self, resource: &Resource) -> Option<Item> {
        match resource {
            Resource::Pods(_) => self.pod().map(Item::Pod),
            Resource::Services => self.service().map(Item::Service),
        }
    }

    fn pod(&self) -> Option<PodIdentity> {
        let Meta { uid, labels, annotations, owner_references, .. } = &self.metadata;
        let static_uid = annotations.as_ref().and_then(|all| all.get(STATIC_POD));
        let uid = static_uid.unwrap_or(uid);
        if uid.is_empty() {
            return None;
        }
        let controller = owner_references.iter().flatten().find(|one| one.controller == Some(true));
        let hash = labels.as_ref().and_then(|labels| labels.get("pod-template-hash"));
        let owner = controller.map(|one| {
            let owner = Workload::of_controller(&one.kind, &one.name, hash.map(String::as_str));
            Workload { kind: text(&owner.kind), name: text(&owner.name) }
        });
        Some(PodIdentity { uid: text(uid), owner })
    }

    fn service(&self) -> Option<ServiceInfo> {
        let Meta { name, namespace, .. } = &self.metadata;
        if name.is_empty() {
            return None;
        }
        // `None` of a headless one is no address; before 1.20 there was one.
        let all = self.spec.iter().flat_map(|spec| {
            let all = spec.cluster_ips.iter().flatten();
            all.chain(spec.cluster_ip.as_ref().filter(|_| spec.cluster_ips.is_none()))
        });
        let addresses: Vec<IpAddr> =
            all.filter_map(|address| address.parse().ok()).take(MOST_ADDRESSES).collect();
        Some(ServiceInfo { name: text(&format!("{namespace}/{name}")), addresses })
    }
}

/// One of IPv4 and one of IPv6.
const MOST_ADDRESSES: usize = 2;

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: &str) -> Option<PodIdentity> {
        let object: Object = serde_json::from_str(json).expect("an object");
        match object.item(&Resource::Pods("node-1".to_owned())) {
            Some(Item::Pod(pod)) => Some(pod),
            _ => None,
        }
    }

    fn service(json: &str) -> Option<(String, Vec<String>)> {
        let object: Object = serde_json::from_str(json).expect("an object");
        match object.item(&Resource::Services) {
            Some(Item::Service(one)) => {
                Some((one.name, one.addresses.iter().map(ToString::to_string).collect()))
            }
            _ => None,
        }
    }

    #[test]
    fn pods() {
        let of_replica_set = r#"{"kind": "PartialObjectMetadata", "metadata": {"name": "web-6d4cf56db6-x7k2p",
            "namespace": "shop", "uid": "1-2", "labels": {"pod-template-hash": "6d4cf56db6"}, "managedFields": [{}],
            "ownerReferences": [{"apiVersion": "x/v1", "kind": "Other", "name": "x", "uid": "0"},
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4cf56db6", "uid": "3", "controller": true}]}}"#;
        let owner = Some(Workload { kind: "Deployment".to_owned(), name: "web".to_owned() });
        assert_eq!(pod(of_replica_set), Some(PodIdentity { uid: "1-2".to_owned(), owner }));
        let by_hand =
            r#"{"metadata": {"name": "x", "uid": "1", "labels": null}, "spec": {"nodeName": "node-1"}}"#;
        assert_eq!(pod(by_hand), Some(PodIdentity { uid: "1".to_owned(), owner: None }));
        let of_file = r#"{"metadata": {"name": "etcd-node-1", "uid": "1", "annotations": {"kubernetes.io/config.mirror": "ab12"}}}"#;
        assert_eq!(pod(of_file).map(|pod| pod.uid).as_deref(), Some("ab12"));
        assert_eq!(pod(r#"{"metadata": {}}"#), None);
        assert_eq!(pod("{}"), None);
    }

    #[test]
    fn services() {
        let is = |name: &str, addresses: &[&str]| {
            Some((name.to_owned(), addresses.iter().map(|one| (*one).to_owned()).collect()))
        };
        let two = r#"{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.7",
            "clusterIPs": ["10.96.0.7", "fd00:96::7", "10.96.0.8"], "ports": [{"port": 80}]}}"#;
        assert_eq!(service(two), is("shop/web", &["10.96.0.7", "fd00:96::7"]));
        let old = r#"{"metadata": {"name": "web", "namespace": "shop"}, "spec": {"clusterIP": "10.96.0.7"}}"#;
        assert_eq!(service(old), is("shop/web", &["10.96.0.7"]));
        for none in [
            r#""clusterIP": "None", "clusterIPs": ["None"]"#,
            r#""clusterIP": """#,
            r#""type": "ExternalName""#,
        ] {
            let json =
                format!(r#"{{"metadata": {{"name": "web", "namespace": "shop"}}, "spec": {{{none}}}}}"#);
            assert_eq!(service(&json), is("shop/web", &[]), "{none}");
        }
        assert_eq!(service("{}"), None);
        let long = format!(r#"{{"metadata": {{"name": "{}", "namespace": "shop"}}}}"#, "x".repeat(10_000));
        assert_eq!(service(&long).map(|(name, _)| name.len()), Some(4096));
    }
}
