//! `netobs watch --demo`: a small world of namespaces with real traffic, for machines without containers.
//!
//! The whole process moves into a network namespace of its own, which plays the host; each "container" is
//! a thread in another one. Nothing has a name outside this process, so when it ends, by whatever means,
//! the kernel takes everything away.

mod roles;
mod world;

pub use world::{World, build};
