//! The API of Kubernetes, where there is access to it: what has made the pods of this node, and what services'
//! addresses stand for. It is only asked: two lists, each followed by a watch. Nothing waits for it.

mod access;
mod client;
mod kubeconfig;
mod messages;
mod watch;

use tokio::sync::mpsc;

pub use self::access::{Access, valid_node};
use self::watch::Follower;
use crate::model::{
    Update,
    state::{PODS, SERVICES},
};

/// What is followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resource {
    /// Of one node, by name: never those of the whole cluster.
    Pods(String),
    Services,
}

impl Resource {
    const fn feature(&self) -> &'static str {
        match self {
            Self::Pods(_) => PODS,
            Self::Services => SERVICES,
        }
    }
}

/// The API, and the node that we are on.
#[derive(Clone, Debug)]
pub struct Api {
    pub access: Access,
    pub node: Option<String>,
}

const NO_NODE: &str = "the node's name is not known: --node-name or NODE_NAME tells it";

impl Api {
    fn resources(&self) -> [Result<Resource, (&'static str, &'static str)>; 2] {
        let pods = self.node.clone().map(Resource::Pods).ok_or((PODS, NO_NODE));
        [pods, Ok(Resource::Services)]
    }

    /// Follows it until nobody listens. Inside a tokio runtime.
    pub fn follow(self, updates: &mpsc::Sender<Update>) {
        for resource in self.resources() {
            let updates = updates.clone();
            match resource {
                Ok(resource) => {
                    tokio::spawn(Follower::new(self.access.clone(), resource, updates).run());
                }
                Err((feature, why)) => {
                    tokio::spawn(async move {
                        // Nobody listens: then nobody has to know.
                        let _ = updates.send(Update::Degraded { feature, why: why.to_owned() }).await;
                    });
                }
            }
        }
    }

    /// What it says now, by feature: nothing, or why it does not tell.
    pub async fn check(&self) -> Vec<(&'static str, Result<(), String>)> {
        let mut found = Vec::new();
        for resource in self.resources() {
            found.push(match resource {
                Ok(resource) => (resource.feature(), watch::ask_once(&self.access, &resource).await),
                Err((feature, why)) => (feature, Err(why.to_owned())),
            });
        }
        found
    }
}
