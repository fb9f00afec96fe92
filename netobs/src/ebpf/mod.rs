//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod attachments;
mod batch;
mod btf;
mod clsact;
mod directory;
pub mod drops;
mod events;
mod flows;
mod hooks;
mod log;
mod mapping;
mod object;
mod observer;
mod resolvers;
mod slots;
mod table;
pub mod tcp;
mod tracer;

pub use attach::AttachMode;
pub use attachments::{Attach, AttachError};
pub use clsact::remove_leftovers;
pub use drops::{DropCounts, DropRecord, DropRing, EachDrop, EachOptions};
pub use events::{EventOptions, EventRing, MIN_EVENT_BYTES, monotonic_ns};
pub use flows::wait_for_programs;
pub use object::{LoadError, Options};
pub use observer::Observer;
pub use resolvers::LOOPBACK;
pub use tracer::{MIN_RING_BYTES, PacketFilter, Ring, TraceOptions, Tracer};
