//! What Kubernetes says of pods and services: whose a pod is, and what a service's address stands for.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::snapshot::Pod;

/// What has made a pod: a Deployment, StatefulSet, DaemonSet, Job, or whatever else is its controller.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Workload {
    /// As Kubernetes writes it.
    pub kind: String,
    /// In the pod's namespace.
    pub name: String,
}

/// A pod as the API describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodIdentity {
    /// As the container runtime has it: of a static pod, that of its file.
    pub uid: String,
    /// None: nothing has made it.
    pub owner: Option<Workload>,
}

/// A service and its addresses in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceInfo {
    /// `NAMESPACE/NAME`.
    pub name: String,
    /// ClusterIPs; none of a headless one.
    pub addresses: Vec<IpAddr>,
}

/// A label that the Deployment controller sets, with the hash in the name of its ReplicaSet.
const TEMPLATE_HASH: &str = "pod-template-hash";
const OF_STATEFUL_SET: &str = "statefulset.kubernetes.io/pod-name";
const REVISION_HASH: &str = "controller-revision-hash";
const JOB_NAME: &str = "batch.kubernetes.io/job-name";
/// Before Kubernetes 1.27; both of the Job controller.
const OLD_JOB_NAMES: [&str; 2] = ["job-name", "controller-uid"];

/// What Kubernetes makes random names of (`k8s.io/apimachinery/pkg/util/rand`), and how long the end of a pod's is.
const ALPHABET: &str = "bcdfghjklmnpqrstvwxz2456789";
const RANDOM_LENGTH: usize = 5;

impl Workload {
    fn new(kind: &str, name: &str) -> Self {
        Self { kind: kind.to_owned(), name: name.to_owned() }
    }

    /// By the reference to its controller. A ReplicaSet that a Deployment has made is the Deployment.
    pub fn of_controller(kind: &str, name: &str, template_hash: Option<&str>) -> Self {
        if kind == "ReplicaSet"
            && let Some(deployment) =
                template_hash.and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'))
            && !deployment.is_empty()
        {
            return Self::new("Deployment", deployment);
        }
        Self::new(kind, name)
    }

    /// By a pod's name and its labels. None where these leave it open.
    pub fn by_labels<'a>(pod: &'a str, label: impl Fn(&str) -> Option<&'a str>) -> Option<Self> {
        if label(OF_STATEFUL_SET) == Some(pod) {
            let (name, ordinal) = pod.rsplit_once('-')?;
            let is_ordinal = !ordinal.is_empty() && ordinal.bytes().all(|byte| byte.is_ascii_digit());
            return (is_ordinal && !name.is_empty()).then(|| Self::new("StatefulSet", name));
        }
        let [old_job_name, old_uid] = OLD_JOB_NAMES;
        let job = label(JOB_NAME).or_else(|| label(old_job_name).filter(|_| label(old_uid).is_some()));
        if let Some(job) = job.filter(|job| !job.is_empty()) {
            return Some(Self::new("Job", job));
        }
        if let Some(hash) = label(TEMPLATE_HASH) {
            let name = generated(pod)?.strip_suffix(hash)?.strip_suffix('-')?;
            return (!name.is_empty() && !hash.is_empty()).then(|| Self::new("Deployment", name));
        }
        // Others have revisions, too; a DaemonSet's is the hash alone.
        if label(REVISION_HASH).is_some_and(is_random) && label(OF_STATEFUL_SET).is_none() {
            return generated(pod).map(|name| Self::new("DaemonSet", name));
        }
        None
    }
}

/// What a name was generated from, without the `-` before its random end. None of one that was cut: to be generated
/// from, a name has at most 58 characters.
fn generated(pod: &str) -> Option<&str> {
    let (name, random) = pod.rsplit_once('-')?;
    (random.len() == RANDOM_LENGTH && is_random(random) && !name.is_empty()).then_some(name)
}

fn is_random(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|character| ALPHABET.contains(character))
}

/// What the API has told. Bounded by who tells.
#[derive(Debug, Default)]
pub(super) struct Cluster {
    /// The node's name; all pods here are on it.
    pub node: Option<String>,
    /// The API is asked, and has neither told its services nor why not.
    pub awaited: bool,
    /// By UID, and whether the API has it still.
    pods: BTreeMap<String, (PodIdentity, bool)>,
    services: BTreeMap<String, Vec<IpAddr>>,
    by_address: HashMap<IpAddr, Arc<str>>,
}

impl Cluster {
    /// All pods of the node.
    pub fn all_pods(&mut self, pods: Vec<PodIdentity>) {
        for (_, is_there) in self.pods.values_mut() {
            *is_there = false;
        }
        for pod in pods {
            self.pod(pod);
        }
    }

    pub fn pod(&mut self, pod: PodIdentity) {
        self.pods.insert(pod.uid.clone(), (pod, true));
    }

    /// Its containers may be shown for a while.
    pub fn pod_removed(&mut self, uid: &str) {
        if let Some((_, is_there)) = self.pods.get_mut(uid) {
            *is_there = false;
        }
    }

    /// Forgets pods that the API does not have and nobody asks for any more.
    pub fn expire(&mut self, wanted: &BTreeSet<&str>) {
        self.pods.retain(|uid, (_, is_there)| *is_there || wanted.contains(uid.as_str()));
    }

    pub fn all_services(&mut self, services: Vec<ServiceInfo>) {
        self.services.clear();
        self.by_address.clear();
        for service in services {
            self.service(service);
        }
    }

    pub fn service(&mut self, service: ServiceInfo) {
        self.service_removed(&service.name);
        let name: Arc<str> = service.name.as_str().into();
        for address in &service.addresses {
            self.by_address.insert(*address, Arc::clone(&name));
        }
        self.services.insert(service.name, service.addresses);
    }

    pub fn service_removed(&mut self, name: &str) {
        for address in self.services.remove(name).unwrap_or_default() {
            // It may be another's by now.
            if self.by_address.get(&address).is_some_and(|of| **of == *name) {
                self.by_address.remove(&address);
            }
        }
    }

    /// The service that an address is of.
    pub fn service_at(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.by_address.get(&address)
    }

    /// With what is known of it beside what its runtime has told.
    pub fn identified(&self, pod: &Pod) -> Pod {
        let mut pod = pod.clone();
        if let Some((told, _)) = self.pods.get(&pod.uid) {
            pod.owner.clone_from(&told.owner);
        }
        pod.node.clone_from(&self.node);
        pod
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_labels(pod: &'static str, labels: &[(&str, &'static str)]) -> Option<(String, String)> {
        let label = |name: &str| labels.iter().find(|(label, _)| *label == name).map(|(_, value)| *value);
        Workload::by_labels(pod, label).map(|owner| (owner.kind, owner.name))
    }

    #[test]
    fn owners_by_labels() {
        let is = |kind: &str, name: &str| Some((kind.to_owned(), name.to_owned()));
        for (pod, labels, owner) in [
            ("web-6d4cf56db6-x7k2p", &[("pod-template-hash", "6d4cf56db6")][..], is("Deployment", "web")),
            ("a-b-c-6d4cf56db6-x7k2p", &[("pod-template-hash", "6d4cf56db6")], is("Deployment", "a-b-c")),
            ("db-0", &[("statefulset.kubernetes.io/pod-name", "db-0")], is("StatefulSet", "db")),
            (
                "my-db-12",
                &[
                    ("statefulset.kubernetes.io/pod-name", "my-db-12"),
                    ("controller-revision-hash", "my-db-7c9d8b5f4"),
                ],
                is("StatefulSet", "my-db"),
            ),
            (
                "backup-29381-hj2kq",
                &[("batch.kubernetes.io/job-name", "backup-29381")],
                is("Job", "backup-29381"),
            ),
            ("once-hj2kq", &[("job-name", "once"), ("controller-uid", "1-2")], is("Job", "once")),
            ("proxy-x7k2p", &[("controller-revision-hash", "6b7d5c9f4")], is("DaemonSet", "proxy")),
            // By hand, or by others' controllers.
            ("web", &[], None),
            ("web-x7k2p", &[], None),
            ("web", &[("pod-template-hash", "6d4cf56db6")], None),
            ("web-6d4cf56db6-aeiou", &[("pod-template-hash", "6d4cf56db6")], None),
            ("-6d4cf56db6-x7k2p", &[("pod-template-hash", "6d4cf56db6")], None),
            ("copy-0", &[("statefulset.kubernetes.io/pod-name", "db-0")], None),
            (
                "copy-x7k2p",
                &[("statefulset.kubernetes.io/pod-name", "db-0"), ("controller-revision-hash", "6b7d5")],
                None,
            ),
            ("db-x", &[("statefulset.kubernetes.io/pod-name", "db-x")], None),
            ("once-hj2kq", &[("job-name", "once")], None),
            ("clone-x7k2p", &[("controller-revision-hash", "clone-6b7d5c9f4")], None),
            ("proxy", &[("controller-revision-hash", "6b7d5c9f4")], None),
        ] {
            assert_eq!(by_labels(pod, labels), owner, "{pod} {labels:?}");
        }
    }

    #[test]
    fn owners_by_their_controller() {
        for (kind, name, hash, owner) in [
            ("ReplicaSet", "web-6d4cf56db6", Some("6d4cf56db6"), ("Deployment", "web")),
            ("ReplicaSet", "web-6d4cf56db6", None, ("ReplicaSet", "web-6d4cf56db6")),
            ("ReplicaSet", "web", Some("6d4cf56db6"), ("ReplicaSet", "web")),
            ("ReplicaSet", "-6d4cf56db6", Some("6d4cf56db6"), ("ReplicaSet", "-6d4cf56db6")),
            ("DaemonSet", "proxy", Some("x"), ("DaemonSet", "proxy")),
            ("Node", "node-1", None, ("Node", "node-1")),
        ] {
            let found = Workload::of_controller(kind, name, hash);
            assert_eq!((found.kind.as_str(), found.name.as_str()), owner, "{kind} {name}");
        }
    }

    #[test]
    fn an_address_is_that_of_who_has_it_now() {
        let address: IpAddr = "10.96.0.10".parse().expect("an address");
        let service = |name: &str| ServiceInfo { name: name.to_owned(), addresses: vec![address] };
        let mut cluster = Cluster::default();
        let at = |cluster: &Cluster| cluster.service_at(address).map(|name| name.to_string());
        cluster.service(service("shop/web"));
        cluster.service(service("shop/api"));
        cluster.service_removed("shop/web");
        assert_eq!(at(&cluster).as_deref(), Some("shop/api"));
        cluster.service(ServiceInfo { addresses: Vec::new(), ..service("shop/api") });
        assert_eq!(at(&cluster), None, "it is headless now");
        cluster.all_services(vec![service("shop/db")]);
        assert_eq!(at(&cluster).as_deref(), Some("shop/db"));
        cluster.all_services(Vec::new());
        assert_eq!(at(&cluster), None);
    }

    #[test]
    fn a_pods_identity_outlives_it_as_long_as_it_is_asked_for() {
        let pod = Pod { uid: "1-2".to_owned(), ..Pod::default() };
        let owner = Some(Workload::new("Deployment", "web"));
        let mut cluster = Cluster { node: Some("node-1".to_owned()), ..Cluster::default() };
        cluster.all_pods(vec![PodIdentity { uid: "1-2".to_owned(), owner: owner.clone() }]);
        cluster.all_pods(Vec::new());
        cluster.expire(&BTreeSet::from(["1-2"]));
        assert_eq!(cluster.identified(&pod).owner, owner);
        assert_eq!(cluster.identified(&pod).node.as_deref(), Some("node-1"));
        cluster.expire(&BTreeSet::new());
        assert_eq!(cluster.identified(&pod).owner, None);
    }
}
