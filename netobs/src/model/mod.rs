//! What is known, and nothing about how: counters, updates that change the state, snapshots of it.
//!
//! Pure: no aya, tokio, terminal, filesystem or clock. Time comes in as a parameter.

pub mod arp;
mod brief;
pub mod capture;
pub mod class;
pub mod conversation;
pub mod dns;
pub mod drops;
pub mod edge;
pub mod event;
pub mod flow;
mod fold;
mod kept;
pub mod named;
pub mod published;
pub mod reconcile;
pub mod sender;
pub mod snapshot;
pub mod state;
pub mod tcp;
#[cfg(test)]
mod tests;
pub mod traffic;
pub mod update;
pub mod workload;

pub use netobs_common::trace::TraceCounts;

pub use capture::{Book, Dropped, Packet, Point, PointOwner, Way};
pub use event::Looked;
pub use sender::{ForeignMac, Judged, Senders};
pub use snapshot::{
    AgentHealth, Baseline, Compose, Container, Drops, Endpoint, EngineStatus, Interface, Latency, Network,
    Pod, Published, Rates, Snapshot, Subnet, Via,
};
pub use state::State;
pub use traffic::{Count, Traffic};
pub use update::{
    ContainerInfo, ContainerState, FlowCount, FlowEnd, FlowRecord, InnerLink, InterfaceInfo, InterfaceKey,
    InterfaceKind, KernelStats, Namespace, NetworkInfo, Owner, Place, Protocol, Proxy, PublishedPort,
    Removal, Sample, Update,
};
pub use workload::{PodIdentity, ServiceInfo, Workload};
