//! What is wrong now, one line each: the same list under the table and on the screen.

use super::format::escape;
use crate::model::{Snapshot, reconcile::Difference};

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
    let host = snapshot.interfaces.iter().map(|one| (escape(&one.name), one.difference));
    let inside = snapshot.containers.iter().flat_map(|container| {
        let of = |name: &str| format!("{} of {}", escape(name), escape(&container.name));
        container.interfaces.iter().map(move |one| (of(one.name.as_deref().unwrap_or("?")), one.difference))
    });
    let differing = host.chain(inside).filter_map(|(name, difference)| {
        let difference = difference.filter(|difference| !difference.is_none())?;
        let Difference { rx_packets, rx_bytes, tx_packets, tx_bytes } = difference;
        Some(format!(
            "counts differ from the kernel's: {name}: rx {rx_packets:+} packets {rx_bytes:+} bytes, \
             tx {tx_packets:+} packets {tx_bytes:+} bytes"
        ))
    });
    unattached.chain(differing).chain(engines).chain(degraded).chain(unattributed).collect()
}
