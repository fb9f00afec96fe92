//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod clsact;
mod directory;
mod flows;
mod log;
mod mapping;
mod object;
mod observer;
mod slots;

pub use attach::AttachMode;
pub use clsact::remove_leftovers;
pub use flows::wait_for_programs;
pub use object::{LoadError, Options};
pub use observer::{AttachError, Observer};
