//! Kubernetes' container runtimes (containerd, CRI-O) over their Container Runtime Interface: gRPC on a local
//! socket. It is asked only what there is; nothing is started, stopped or changed.

mod client;
pub mod convert;
pub mod messages;
mod task;

pub use client::Client;
pub(super) use task::run;

/// Where runtimes listen, of the distributions of Kubernetes too.
pub const USUAL_SOCKETS: [&str; 5] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
];
