//! Finding out what is there: interfaces by netlink, processes by `/proc`, containers by their engines.
//! Read-only. Knows `model`'s types; does not know `ebpf`.

pub mod cgroup;
pub mod engine;
pub mod namespace;
pub mod netlink;
pub mod procfs;
