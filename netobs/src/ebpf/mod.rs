//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod btf;
mod clsact;
mod directory;
pub mod drops;
mod log;
mod mapping;
mod object;
mod observer;
mod ports;
mod slots;

pub use attach::AttachMode;
pub use clsact::remove_leftovers;
pub use object::{LoadError, Options};
pub use observer::{AttachError, Observer};
pub use ports::Port;
