//! The kernel side as userspace holds it: the loaded object, its attachments, its counters.
//! Knows `model`'s types; does not know `discovery`.

mod attach;
mod clsact;
mod log;
mod mapping;
mod observer;
mod slots;

pub use attach::AttachMode;
pub use observer::{AttachError, LoadError, Observer, Options};
