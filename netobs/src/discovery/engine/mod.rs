//! Container engines that speak Docker's API: what containers and networks there are, and every change.
//! Only `GET` requests.

mod convert;
mod task;

pub use task::{EngineTask, default_sockets};
