//! Where what is shown comes from: an agent of this process's own, or the one that runs on this host.

use std::{
    collections::BTreeSet,
    future::pending,
    time::{Duration, Instant},
};

use tokio::time::timeout_at;

use crate::{
    agent::Agent,
    ebpf::drops::DropOptions,
    model::{
        Snapshot,
        conversation::{Conversation, Conversations},
    },
    observe,
    running::Running,
};

const DROPS: &str = "drops";

pub enum Source {
    Own(Box<Agent>),
    Running(Running),
}

impl Source {
    /// Waits until it is known what there is.
    pub async fn settle(&mut self) {
        if let Self::Own(agent) = self {
            agent.settle(observe::SETTLE).await;
        }
    }

    /// Takes in what changes, for as long.
    pub async fn follow(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while timeout_at(end.into(), self.changed()).await.is_ok() {}
    }

    /// Returns when something has changed, and has been taken in.
    pub async fn changed(&mut self) {
        match self {
            Self::Own(agent) => agent.changed().await,
            Self::Running(_) => pending().await,
        }
    }

    /// What there is now. An agent that has gone has so long to come back.
    ///
    /// # Errors
    /// When the agent that runs does not answer.
    pub async fn sample(&mut self, patience: Duration) -> anyhow::Result<Snapshot> {
        match self {
            Self::Own(agent) => Ok(agent.sample()),
            Self::Running(running) => running.snapshot(patience).await,
        }
    }

    /// As [`Self::sample`], with dropped packets, or why there are none.
    ///
    /// # Errors
    /// When the agent that runs does not answer.
    pub async fn sample_with_drops(&mut self, options: &DropOptions) -> anyhow::Result<Snapshot> {
        match self {
            Self::Own(agent) => {
                agent.look_for_drops(options);
                Ok(agent.sample())
            }
            Self::Running(running) => {
                let mut snapshot = running.snapshot(Duration::ZERO).await?;
                let degraded = &mut snapshot.agent.degraded;
                if snapshot.drops.is_none() && !degraded.iter().any(|(feature, _)| feature == DROPS) {
                    let why = "the agent that runs does not look for them; --standalone does";
                    degraded.push((DROPS.to_owned(), why.to_owned()));
                }
                Ok(snapshot)
            }
        }
    }

    /// Flows of containers by their IDs, or of all.
    ///
    /// # Errors
    /// When the agent that runs does not answer.
    pub async fn flows(
        &mut self,
        containers: Option<BTreeSet<String>>,
        limit: usize,
    ) -> anyhow::Result<Conversations> {
        match self {
            Self::Own(agent) => {
                let is_wanted =
                    |flow: &Conversation| containers.as_ref().is_none_or(|ids| flow.is_of_any(ids));
                Ok(agent.flows(is_wanted, limit))
            }
            Self::Running(running) => running.flows(containers, limit).await,
        }
    }
}
