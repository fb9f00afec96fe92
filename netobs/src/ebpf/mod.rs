//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod attachments;
mod batch;
pub(crate) mod btf;
mod clsact;
mod directory;
pub mod drops;
mod events;
mod flows;
mod hooks;
mod left_out;
mod log;
mod mapping;
mod object;
mod observer;
mod owner;
pub mod pins;
mod resolvers;
mod senders;
mod slots;
mod survey;
mod table;
pub mod tcp;
mod tracer;

pub use attach::AttachMode;
pub use attachments::{Attach, AttachError, Counted, Repaired};
pub use clsact::{Leftover, leftovers, remove_leftovers};
pub use drops::{DropCounts, DropRecord, DropRing, EachDrop, EachOptions};
pub use events::{EventOptions, EventRing, MIN_EVENT_BYTES, monotonic_ns};
pub use flows::wait_for_programs;
pub use object::{LoadError, Options};
pub use observer::Observer;
pub use owner::claim_pinned;
pub use resolvers::LOOPBACK;
pub use tracer::{MIN_RING_BYTES, PacketFilter, Ring, TraceOptions, Tracer};

/// Why something could not be loaded: the verifier's log is long, and its first line says what was refused.
pub fn first_line(error: &impl std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}
