//! Manifests, by the real kubectl and helm: typed, without a field that Kubernetes does not know, and with nothing
//! for netobs that netobs does not take.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use clap::Parser as _;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{Container, Namespace, Service, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    apimachinery::pkg::util::intstr::IntOrString,
};
use netobs::cli::{AgentArgs, Cli, Command as Netobs};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

const OVERLAYS: [&str; 4] = ["plain", "operator", "k3s", "kind"];

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// A program that the test command has found; if it has not, the test is noted as skipped.
fn tool(test: &str, variable: &str) -> Option<PathBuf> {
    let file = std::env::var_os(variable).map(PathBuf::from);
    if file.is_none() {
        netobs_tests::skip(test, &format!("{variable} names no program"));
    }
    file
}

fn printed(command: &mut Command) -> String {
    let output = command.output().expect("run a program");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.to_lowercase().contains("warning"), "{command:?}: {said}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

fn documents(yaml: &str) -> Vec<Value> {
    let all: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("YAML");
    all.into_iter().filter(|document| !document.is_null()).collect()
}

fn kustomized(kubectl: &Path, overlay: &str) -> Vec<Value> {
    let folder = deploy().join("kubernetes/overlays").join(overlay);
    documents(&printed(Command::new(kubectl).arg("kustomize").arg(folder)))
}

fn rendered(helm: &Path, values: &[&str]) -> Vec<Value> {
    let mut command = Command::new(helm);
    command.args(["template", "netobs"]).arg(deploy().join("helm/netobs")).args(["--namespace", "netobs"]);
    for value in values {
        command.args(["--set", value]);
    }
    documents(&printed(&mut command))
}

/// A document as what it says it is.
fn typed<T: DeserializeOwned>(document: &Value) -> T {
    let mut unknown = Vec::new();
    let parsed = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()));
    let parsed = parsed.unwrap_or_else(|error| panic!("{error}: {document}"));
    // Each type checks these by itself, or has no place for them.
    unknown.retain(|path| path != "apiVersion" && path != "kind");
    assert_eq!(unknown, Vec::<String>::new(), "unknown fields of {}", document["kind"]);
    parsed
}

/// What the Prometheus Operator's definition has of it, as far as it is used here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that it can be read is what is tested")]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    spec: PodMonitorSpec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that it can be read is what is tested")]
struct PodMonitorSpec {
    job_label: String,
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that it can be read is what is tested")]
struct Endpoint {
    port: String,
    path: String,
    interval: String,
    honor_labels: bool,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "that it can be read is what is tested")]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

/// All of it typed, and what hangs together does.
fn check(all: &[Value]) -> DaemonSet {
    let mut daemon_set = None;
    let mut kinds = BTreeSet::new();
    for document in all {
        let kind = document["kind"].as_str().expect("a kind");
        kinds.insert(kind);
        match kind {
            "Namespace" => drop(typed::<Namespace>(document)),
            "ServiceAccount" => drop(typed::<ServiceAccount>(document)),
            "ClusterRole" => only_looks(&typed(document)),
            "ClusterRoleBinding" => drop(typed::<ClusterRoleBinding>(document)),
            "Service" => drop(typed::<Service>(document)),
            "DaemonSet" => daemon_set = Some(typed::<DaemonSet>(document)),
            "PodMonitor" => drop(typed::<PodMonitor>(document)),
            other => panic!("{other}"),
        }
    }
    let daemon_set = daemon_set.expect("a DaemonSet");
    for kind in ["ServiceAccount", "Service"] {
        assert!(kinds.contains(kind), "no {kind}");
    }
    // The API is asked by who may, and by nobody else.
    let pod = daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).expect("a pod");
    let asks = !accepted(&daemon_set).observe.kubernetes.no_kubernetes;
    assert_eq!(pod.automount_service_account_token, Some(asks));
    for kind in ["ClusterRole", "ClusterRoleBinding"] {
        assert_eq!(kinds.contains(kind), asks, "{kind}");
    }
    daemon_set
}

fn only_looks(role: &ClusterRole) {
    assert_eq!(role.rules.as_ref().map(Vec::len), Some(1));
    for rule in role.rules.iter().flatten() {
        assert_eq!(rule.verbs, ["list", "watch"]);
        assert_eq!(rule.resources.as_deref(), Some(&["pods", "services"].map(str::to_owned)[..]));
        assert_eq!(rule.api_groups.as_deref(), Some(&[String::new()][..]));
    }
}

fn container(daemon_set: &DaemonSet) -> &Container {
    let pod = daemon_set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref()).expect("a pod");
    let [container] = pod.containers.as_slice() else { panic!("one container") };
    container
}

/// The program takes its arguments, and what they and the probes name is there.
fn accepted(daemon_set: &DaemonSet) -> AgentArgs {
    let container = container(daemon_set);
    let arguments = container.args.as_ref().expect("arguments");
    let parsed = Cli::try_parse_from(std::iter::once("netobs").chain(arguments.iter().map(String::as_str)))
        .unwrap_or_else(|error| panic!("{error}"));
    let Netobs::Agent(agent) = parsed.command else { panic!("not the agent: {arguments:?}") };
    let ports = container.ports.as_ref().expect("ports");
    assert_eq!(ports.len(), 1);
    assert_eq!(ports[0].container_port, i32::from(agent.listen.port()));
    assert_eq!(
        (ports[0].host_port, ports[0].name.as_deref()),
        (Some(ports[0].container_port), Some("metrics"))
    );
    for (probe, path) in [
        (&container.startup_probe, "/readyz"),
        (&container.readiness_probe, "/readyz"),
        (&container.liveness_probe, "/healthz"),
    ] {
        let get = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe");
        assert_eq!(
            (get.path.as_deref(), &get.port),
            (Some(path), &IntOrString::String("metrics".to_owned()))
        );
    }
    let node = container.env.iter().flatten().find(|variable| variable.name == "NODE_NAME");
    let node =
        node.and_then(|variable| variable.value_from.as_ref()?.field_ref.as_ref()).expect("the node's name");
    assert_eq!(node.field_path, "spec.nodeName");
    let mounts: Vec<&str> =
        container.volume_mounts.iter().flatten().map(|mount| mount.mount_path.as_str()).collect();
    let kept = agent.pin_folder.parent().expect("a folder").to_str().expect("UTF-8");
    assert_eq!(mounts.contains(&kept), agent.pin, "{mounts:?}");
    agent
}

#[test]
fn kustomizations() {
    let Some(kubectl) = tool("kustomizations", "NETOBS_KUBECTL") else { return };
    for overlay in OVERLAYS {
        let all = kustomized(&kubectl, overlay);
        let daemon_set = check(&all);
        let agent = accepted(&daemon_set);
        assert_eq!(agent.pin, overlay != "kind", "{overlay}");
        let monitored = all.iter().any(|document| document["kind"] == "PodMonitor");
        assert_eq!(monitored, overlay == "operator");
        let namespaces = all.iter().filter_map(|document| document["metadata"]["namespace"].as_str());
        assert!(namespaces.eq(std::iter::repeat_n("netobs", all.len() - 3)), "all but what has none");
        let runtime = if overlay == "k3s" { "/run/k3s/containerd" } else { "/run/containerd" };
        let mounts = container(&daemon_set).volume_mounts.clone().unwrap_or_default();
        let mount = mounts.iter().find(|mount| mount.name == "runtime").expect("the runtime's folder");
        assert_eq!((mount.mount_path.as_str(), mount.read_only), (runtime, Some(true)));
    }
}

#[test]
fn the_daemon_set_is_confined_and_everywhere() {
    let Some(kubectl) = tool("DaemonSet", "NETOBS_KUBECTL") else { return };
    let daemon_set = check(&kustomized(&kubectl, "plain"));
    let spec = daemon_set.spec.clone().expect("a specification");
    let strategy = spec.update_strategy.expect("a strategy").rolling_update.expect("rolling");
    assert_eq!(strategy.max_surge, Some(IntOrString::Int(0)), "two cannot pin at a time");
    let pod = spec.template.spec.clone().expect("a pod");
    assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (Some(true), Some(true), None));
    let tolerations = pod.tolerations.expect("tolerations");
    assert_eq!(tolerations.len(), 1);
    assert_eq!((tolerations[0].operator.as_deref(), &tolerations[0].key), (Some("Exists"), &None));
    assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"));
    let container = container(&daemon_set);
    let security = container.security_context.as_ref().expect("a security context");
    assert_eq!((security.privileged, security.read_only_root_filesystem), (None, Some(true)));
    let capabilities = security.capabilities.as_ref().expect("capabilities");
    assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
    let added: BTreeSet<&str> = capabilities.add.iter().flatten().map(String::as_str).collect();
    let table: BTreeSet<&str> = include_str!("../../README.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `CAP_")?.split('`').next())
        .collect();
    assert_eq!(added, table);
    let resources = container.resources.as_ref().expect("resources");
    assert!(resources.requests.as_ref().is_some_and(|requests| requests.len() == 2));
}

/// Without what says who made it, and in one order.
fn bare(documents: &[Value]) -> Vec<Value> {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.retain(|name, value| {
                    let by_helm = [
                        "app.kubernetes.io/instance",
                        "app.kubernetes.io/managed-by",
                        "app.kubernetes.io/version",
                        "helm.sh/chart",
                    ]
                    .contains(&name.as_str());
                    strip(value);
                    !by_helm
                });
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    let mut all: Vec<Value> =
        documents.iter().filter(|document| document["kind"] != "Namespace").cloned().collect();
    all.iter_mut().for_each(strip);
    all.sort_by_key(|document| document["kind"].to_string());
    all
}

#[test]
fn the_chart_has_what_the_kustomization_has() {
    let test = "chart";
    let (Some(kubectl), Some(helm)) = (tool(test, "NETOBS_KUBECTL"), tool(test, "NETOBS_HELM")) else {
        return;
    };
    printed(Command::new(&helm).args(["lint", "--strict"]).arg(deploy().join("helm/netobs")));
    for (overlay, values) in [
        ("plain", &[][..]),
        ("operator", &["podMonitor.enabled=true"]),
        ("k3s", &["runtimeFolder=/run/k3s/containerd"]),
        ("kind", &["pin=false", "image.pullPolicy=Never"]),
    ] {
        let chart = rendered(&helm, values);
        accepted(&check(&chart));
        let (chart, kustomization) = (bare(&chart), bare(&kustomized(&kubectl, overlay)));
        assert_eq!(chart.len(), kustomization.len());
        for (ours, theirs) in chart.iter().zip(&kustomization) {
            assert_eq!(sorted(ours), sorted(theirs), "{overlay}");
        }
    }
    let more = rendered(
        &helm,
        &[
            "port=9999",
            "extraArgs={--max-flows=1000,--no-dns}",
            "nodeSelector.disk=ssd",
            "priorityClassName=high",
        ],
    );
    let agent = accepted(&check(&more));
    assert_eq!((agent.listen.port(), agent.observe.max_flows, agent.events.no_dns), (9999, 1000, true));
    // A file that an option names, and what that asks of the kubelet.
    let guarded = rendered(
        &helm,
        &[
            "extraArgs={--web-config-file=/web/web.yml}",
            "extraVolumes[0].name=web,extraVolumes[0].secret.secretName=netobs-web",
            "extraVolumeMounts[0].name=web,extraVolumeMounts[0].mountPath=/web",
            "probes.scheme=HTTPS,probes.httpHeaders[0].name=Authorization,probes.httpHeaders[0].value=Basic bmV0",
        ],
    );
    accepted(&check(&guarded));
    let set = guarded.iter().find(|document| document["kind"] == "DaemonSet").expect("a DaemonSet");
    let (pod, container) =
        (&set["spec"]["template"]["spec"], &set["spec"]["template"]["spec"]["containers"][0]);
    let has = |list: &Value, item: &Value| list.as_array().is_some_and(|list| list.contains(item));
    assert!(has(&pod["volumes"], &json!({"name": "web", "secret": {"secretName": "netobs-web"}})));
    assert!(has(&container["volumeMounts"], &json!({"name": "web", "mountPath": "/web"})));
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let asked = &container[probe]["httpGet"];
        assert_eq!(asked["scheme"], "HTTPS", "{probe}");
        assert_eq!(asked["httpHeaders"][0]["value"], "Basic bmV0", "{probe}");
    }
    let without = accepted(&check(&rendered(&helm, &["kubernetesAPI=false"])));
    assert!(without.observe.kubernetes.no_kubernetes);
}

/// Lists whose order says nothing, in one order.
fn sorted(document: &Value) -> Value {
    let mut document = document.clone();
    for list in ["/spec/template/spec/volumes", "/spec/template/spec/containers/0/volumeMounts"] {
        if let Some(Value::Array(items)) = document.pointer_mut(list) {
            items.sort_by_key(ToString::to_string);
        }
    }
    document
}
