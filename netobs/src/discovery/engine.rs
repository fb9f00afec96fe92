//! (placeholder by the integrator; to be replaced)
use std::path::PathBuf;
use tokio::sync::mpsc;
use crate::model::Update;
#[derive(Debug)]
pub struct EngineTask { pub name: String, pub socket: PathBuf }
impl EngineTask { pub async fn run(self, _updates: mpsc::Sender<Update>) {} }
pub fn default_sockets() -> Vec<EngineTask> { Vec::new() }
