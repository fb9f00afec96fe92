//! Container engines that speak Docker's API, and runtimes that have the CRI: what containers and networks there
//! are, and every change. Only requests that read.

pub(crate) mod convert;
pub mod cri;
pub(crate) mod libpod;
mod names;
mod reporter;
mod task;

pub use names::{Api, default_tasks, tasks};
pub use task::EngineTask;
