//! What is looked at before interfaces of the host are attached to: what room others leave there, and where packets
//! pass. Making a clsact qdisc drops some of what comes out of the interface in that moment, which a TCX link does not;
//! but links take long (docs/adr/0002-clsact-before-tcx.md).

use std::{
    collections::BTreeMap,
    io,
    time::{Duration, Instant},
};

use super::{
    attach::{self, AttachMode, Way},
    clsact::{self, Qdisc},
};
use crate::netlink::{self, Netlink};

/// So far apart two readings are at least.
const WINDOW: Duration = Duration::from_millis(50);

/// Traffic is so many packets a second, and so many in all: an interface that is new, and otherwise idle, has one or
/// two of its own.
const RATE: f64 = 60.0;
const PACKETS: u64 = 3;

/// For so long links are made on account of traffic. All other network configuration of the host waits for each.
const LIMIT: Duration = Duration::from_secs(1);

/// Packets that each interface had sent at a time, by ifindex.
type Sent = (Instant, BTreeMap<u32, u64>);

pub struct Survey {
    mode: AttachMode,
    qdiscs: BTreeMap<u32, Qdisc>,
    /// None: traffic makes no difference.
    sent: Option<Sent>,
    /// Packets a second of interfaces with traffic, until they are attached to.
    busy: BTreeMap<u32, f64>,
    /// What is left of [`LIMIT`].
    left: Duration,
}

impl Survey {
    /// The first of two readings. To be made before programs are loaded, so that nothing has to wait for the second.
    pub fn begin(mode: AttachMode) -> Self {
        let chooses = mode == AttachMode::Auto && attach::has_tcx_at_all();
        let sent =
            if chooses { Netlink::connect().ok().and_then(|mut netlink| sent(&mut netlink)) } else { None };
        Self { mode, qdiscs: BTreeMap::new(), sent, busy: BTreeMap::new(), left: LIMIT }
    }

    pub const fn mode(&self) -> AttachMode {
        self.mode
    }

    /// Looks at everything, before a number of interfaces are attached to. Waits if it was looked a moment ago.
    pub fn look(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        self.look_at_qdiscs(netlink)?;
        self.left = LIMIT;
        if let Some((at, before)) = &self.sent {
            std::thread::sleep(WINDOW.saturating_sub(at.elapsed()));
            if let Some((now_at, now)) = sent(netlink) {
                self.busy = busy(before, &now, now_at.duration_since(*at));
                self.sent = Some((now_at, now));
            }
        }
        Ok(())
    }

    /// What others have there may be another by now.
    pub fn look_at_qdiscs(&mut self, netlink: &mut Netlink) -> io::Result<()> {
        self.qdiscs = clsact::qdiscs(netlink)?;
        Ok(())
    }

    /// Packets a second of interfaces with traffic that have not been attached to since it was looked, by ifindex.
    pub const fn busy(&self) -> &BTreeMap<u32, f64> {
        &self.busy
    }

    /// Whether what passes an interface is worth a link; asked once.
    pub fn spares(&mut self, ifindex: u32) -> bool {
        self.busy.remove(&ifindex).is_some() && !self.left.is_zero()
    }

    /// Links for the sake of traffic have taken so long.
    pub const fn spend(&mut self, time: Duration) {
        self.left = self.left.saturating_sub(time);
    }

    /// By what an interface is attached to, if its traffic is to be `spared`.
    pub fn way(&self, ifindex: u32, spared: bool) -> Way {
        match (self.mode, self.qdiscs.get(&ifindex)) {
            (AttachMode::Tcx, _) | (AttachMode::Auto, Some(Qdisc::Ingress)) => Way::Link,
            (AttachMode::Clsact, _) => Way::Filter,
            (AttachMode::Auto, None) if spared => Way::LinkOrFilter,
            (AttachMode::Auto, _) => Way::FilterOrLink,
        }
    }
}

/// None if it cannot be told, which is no reason not to attach.
fn sent(netlink: &mut Netlink) -> Option<Sent> {
    let at = Instant::now();
    Some((at, netlink::stats(netlink, |stats| stats.tx_packets).ok()?))
}

fn busy(before: &BTreeMap<u32, u64>, now: &BTreeMap<u32, u64>, time: Duration) -> BTreeMap<u32, f64> {
    let rate = |(ifindex, now): (&u32, &u64)| {
        let sent = now.saturating_sub(*before.get(ifindex)?);
        let rate = sent as f64 / time.as_secs_f64();
        (sent >= PACKETS && rate >= RATE).then_some((*ifindex, rate))
    };
    now.iter().filter_map(rate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_traffic() {
        let before = BTreeMap::from([(1, 0), (2, 1000), (3, 0), (4, 100), (5, 7), (7, 9)]);
        // Two packets are a new interface's own; 4 is another's by now, 5 has gone, 6 is new.
        let now = BTreeMap::from([(1, 3), (2, 1000), (3, 2), (4, 0), (6, 500), (7, 509)]);
        assert_eq!(busy(&before, &now, WINDOW), BTreeMap::from([(1, 60.0), (7, 10_000.0)]));
        assert_eq!(busy(&before, &now, Duration::from_secs(5)), BTreeMap::from([(7, 100.0)]));
    }

    #[test]
    fn by_what_it_is_attached_to() {
        let mut survey = Survey {
            mode: AttachMode::Auto,
            qdiscs: BTreeMap::from([(1, Qdisc::Clsact), (2, Qdisc::Ingress)]),
            sent: None,
            busy: BTreeMap::from([(1, 90.0), (3, 100.0), (4, 70.0)]),
            left: LIMIT,
        };
        let ways = |survey: &mut Survey| {
            [1, 2, 3, 5].map(|ifindex| {
                let spared = survey.spares(ifindex);
                survey.way(ifindex, spared)
            })
        };
        assert_eq!(ways(&mut survey), [Way::FilterOrLink, Way::Link, Way::LinkOrFilter, Way::FilterOrLink]);
        // Who has the number next is not known.
        assert_eq!(survey.way(3, true), Way::LinkOrFilter);
        assert!(!survey.spares(3));
        survey.spend(LIMIT * 2);
        assert!(!survey.spares(4), "it takes too long");
        for (mode, way) in [(AttachMode::Tcx, Way::Link), (AttachMode::Clsact, Way::Filter)] {
            survey.mode = mode;
            survey.busy.insert(3, 100.0);
            assert_eq!(ways(&mut survey), [way; 4]);
        }
    }
}
