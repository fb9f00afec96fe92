//! Finding out what is there: interfaces by netlink, processes by `/proc`, containers by their engines, workloads
//! and services by the API of Kubernetes. Read-only. Knows `model`'s types; does not know `ebpf`.

pub mod cgroup;
pub mod engine;
pub mod kubernetes;
pub mod namespace;
pub mod netlink;
pub mod procfs;
