//! What following any engine has in common: trying again and again, and telling what has changed of it.

use std::{future::Future, time::Duration};

use tokio::{sync::mpsc, time::sleep};

use super::EngineTask;
use crate::model::{EngineStatus, Update};

/// Between two attempts to connect, growing.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LAST: Duration = Duration::from_secs(5);

/// The main loop has ended: nobody listens any more.
pub struct Closed;

/// One who follows an engine.
pub trait Follow {
    /// One connection, from beginning to end. Whether there was one.
    fn follow(&mut self) -> impl Future<Output = Result<bool, Closed>> + Send;
}

/// Follows it until nobody listens. The engine may come, go and restart at any time.
pub async fn again_and_again(mut follower: impl Follow) {
    let mut pause = RETRY_FIRST;
    while let Ok(was_connected) = follower.follow().await {
        pause = if was_connected { RETRY_FIRST } else { (pause * 2).min(RETRY_LAST) };
        sleep(pause).await;
    }
}

/// Who tells of an engine.
pub struct Reporter {
    pub task: EngineTask,
    updates: mpsc::Sender<Update>,
    /// Last told.
    status: Option<EngineStatus>,
}

impl Reporter {
    pub const fn new(task: EngineTask, updates: mpsc::Sender<Update>) -> Self {
        Self { task, updates, status: None }
    }

    /// Whether anything of the engine was told.
    pub const fn has_told(&self) -> bool {
        self.status.is_some()
    }

    pub async fn tell(&self, update: Update) -> Result<(), Closed> {
        self.updates.send(update).await.map_err(|_| Closed)
    }

    pub async fn connected(&mut self, version: Option<String>) -> Result<(), Closed> {
        self.status(true, version, None).await
    }

    pub async fn disconnected(&mut self, problem: String) -> Result<(), Closed> {
        self.status(false, None, Some(problem)).await
    }

    /// Tells what has changed.
    async fn status(
        &mut self,
        connected: bool,
        version: Option<String>,
        problem: Option<String>,
    ) -> Result<(), Closed> {
        let (name, endpoint) = (self.task.name.clone(), self.task.endpoint());
        let status = EngineStatus { name, endpoint, connected, version, problem };
        if self.status.as_ref() == Some(&status) {
            return if self.updates.is_closed() { Err(Closed) } else { Ok(()) };
        }
        self.status = Some(status.clone());
        self.tell(Update::Engine(status)).await
    }

    /// Returns when nobody listens.
    pub async fn closed(&self) {
        self.updates.closed().await;
    }
}
