//! What is wrong now, one line each: the same list under the table and on the screen.

use super::format::escape;
use crate::model::Snapshot;

/// Interfaces without netobs, engines that do not answer, features that are off. Safe for a terminal.
pub fn problems(snapshot: &Snapshot) -> Vec<String> {
    let agent = &snapshot.agent;
    let unattached =
        agent.unattached.iter().map(|(name, why)| format!("not observed: {}: {}", escape(name), escape(why)));
    let engines = snapshot.engines.iter().filter(|engine| !engine.connected || engine.problem.is_some());
    let engines = engines.map(|engine| {
        let what = if engine.connected { "problem" } else { "not connected" };
        let why = engine.problem.as_deref().map(|why| format!(": {}", escape(why))).unwrap_or_default();
        format!("{} {what} ({}){why}", escape(&engine.name), escape(&engine.endpoint))
    });
    let degraded =
        agent.degraded.iter().map(|(feature, why)| format!("degraded: {}: {}", escape(feature), escape(why)));
    let unattributed = (agent.unattributed_interfaces > 0).then(|| {
        format!("{} observed interface(s) belong to no known container", agent.unattributed_interfaces)
    });
    unattached.chain(engines).chain(degraded).chain(unattributed).collect()
}
