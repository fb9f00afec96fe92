//! Container engines that speak Docker's API: what containers and networks there are, and every change.
//! Only `GET` requests.

mod convert;
mod libpod;
mod names;
mod task;

pub use names::{default_tasks, tasks};
pub use task::EngineTask;
