//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod attachments;
mod clsact;
mod directory;
mod hooks;
mod log;
mod mapping;
mod object;
mod observer;
mod ports;
mod slots;
mod tracer;

pub use attach::AttachMode;
pub use attachments::{Attach, AttachError, Last};
pub use clsact::remove_leftovers;
pub use object::{LoadError, Options};
pub use observer::Observer;
pub use ports::Port;
pub use tracer::{MIN_RING_BYTES, PacketFilter, Ring, TraceOptions, Tracer};
