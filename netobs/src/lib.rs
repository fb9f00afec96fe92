//! netobs: what each container sends and receives, in numbers equal to the kernel's.
//!
//! ```text
//! kernel maps ─► ebpf ──────┐
//!                           ├─► model (state ► snapshot) ─► output: watch, topology, prometheus, …
//! netlink, /proc, engines ─►┘ discovery
//! ```
//!
//! `model` is pure. `ebpf` and `discovery` know `model`'s types and not each other; each `output` reads
//! a snapshot and nothing else; `agent` knows all of them.

pub mod agent;
pub mod attacher;
pub mod certificates;
pub mod cleanup;
pub mod cli;
pub mod demo;
pub mod discovery;
pub mod doctor;
pub mod drain;
pub mod drops;
pub mod ebpf;
pub mod events;
pub mod flows;
#[doc(hidden)]
pub mod fuzzing;
pub mod generate;
pub mod inside;
pub mod model;
pub mod netlink;
pub mod observe;
pub mod output;
pub mod privileges;
pub mod resolvers;
pub mod running;
pub mod serve;
pub mod topology;
pub mod trace;
pub mod watch;
