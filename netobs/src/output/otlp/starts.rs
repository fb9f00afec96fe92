//! Since when each series counts what it counts: what makes a counter that began again one that did not go back.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash, Hasher},
    time::SystemTime,
};

use opentelemetry_proto::tonic::common::v1::KeyValue;

/// Series that are remembered, those that are gone included; some 50 bytes each.
const MOST: usize = 262_144;

/// Since when series count that were never there before.
#[derive(Clone, Copy, Debug)]
pub struct Since {
    /// What goes on with `--pin`: counters of the host's interfaces.
    pub pinned: SystemTime,
    /// All others: since this process.
    pub started: SystemTime,
}

/// What was sent of each series.
#[derive(Debug)]
pub struct Starts {
    since: Since,
    series: HashMap<u64, Series>,
    /// The latest time of what was forgotten of series that are gone: one of these may come again.
    floor: SystemTime,
    round: u64,
    most: usize,
}

#[derive(Clone, Copy, Debug)]
struct Series {
    start: SystemTime,
    /// The last one's.
    value: f64,
    time: SystemTime,
    round: u64,
}

/// Families whose counters are in maps that are pinned: the exact layer's.
const PINNED: [&str; 13] = [
    "netobs_container_receive_",
    "netobs_container_transmit_",
    "netobs_container_ethertype_",
    "netobs_container_cast_",
    "netobs_container_protocol_",
    "netobs_container_tcp_flags_",
    "netobs_container_unflowed_cause_",
    "netobs_container_foreign_mac_",
    "netobs_container_unjudged_mac_",
    "netobs_network_receive_",
    "netobs_network_transmit_",
    "netobs_interface_receive_",
    "netobs_interface_transmit_",
];

/// Whether a family's series go on with `--pin`, if all of their interfaces are the host's.
pub(super) fn goes_on(family: &str) -> bool {
    PINNED.iter().any(|prefix| family.starts_with(prefix))
}

impl Starts {
    pub fn new(since: Since) -> Self {
        let floor = since.started.min(since.pinned);
        Self { since, series: HashMap::new(), floor, round: 0, most: MOST }
    }

    /// A new snapshot follows.
    pub(super) fn next(&mut self) {
        self.round += 1;
    }

    /// A series of this family, with its value at this time: since when that was counted. Of `is_pinned` see
    /// [`goes_on`].
    pub(super) fn of(
        &mut self,
        family: &str,
        is_pinned: bool,
        attributes: &[KeyValue],
        value: f64,
        time: SystemTime,
    ) -> SystemTime {
        let mut hasher = DefaultHasher::new();
        family.hash(&mut hasher);
        for attribute in attributes {
            attribute.key.hash(&mut hasher);
            // A value's text differs where the value does.
            format!("{:?}", attribute.value).hash(&mut hasher);
        }
        let identity = hasher.finish();
        let round = self.round;
        if let Some(series) = self.series.get_mut(&identity) {
            // It has become less, or was not there the last time: what it had counted is forgotten.
            if value < series.value || series.round + 1 < round {
                series.start = series.time;
            }
            *series = Series { start: series.start, value, time, round };
            return series.start;
        }
        let since = if is_pinned { self.since.pinned } else { self.since.started };
        let start = since.max(self.floor).min(time);
        if self.series.len() >= self.most {
            self.forget();
        }
        if self.series.len() < self.most {
            self.series.insert(identity, Series { start, value, time, round });
        } else {
            // Nothing is known of it the next time: what comes then must not overlap with this.
            self.floor = self.floor.max(time);
        }
        start
    }

    /// Series that are gone, to make room.
    fn forget(&mut self) {
        let Self { series, floor, round, .. } = self;
        series.retain(|_, series| {
            let is_there = series.round + 1 >= *round;
            if !is_there {
                *floor = (*floor).max(series.time);
            }
            is_there
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::output::otlp::text;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn starts() -> Starts {
        Starts::new(Since { pinned: at(10), started: at(20) })
    }

    fn named(name: &str) -> Vec<KeyValue> {
        vec![text("container.name", name.to_owned())]
    }

    #[test]
    fn a_counter_that_began_again_says_since_when() {
        let mut starts = starts();
        let mut of = |family: &str, value: f64, seconds: u64| {
            starts.next();
            starts.of(family, goes_on(family), &named("a"), value, at(seconds))
        };
        const EDGE: &str = "netobs_edge_bytes_total";
        assert_eq!(of(EDGE, 5.0, 30), at(20), "since the process");
        assert_eq!(of(EDGE, 5.0, 40), at(20));
        assert_eq!(of(EDGE, 4.0, 50), at(40), "it is less: since the last one that was told");
        assert_eq!(of(EDGE, 9.0, 60), at(40));
        assert_eq!(of("netobs_container_receive_bytes_total", 5.0, 70), at(10), "since it was pinned");
        assert_eq!(of(EDGE, 90.0, 80), at(60), "it was gone in between");
        let overruns = "netobs_interface_event_overruns_total";
        assert_eq!(of(overruns, 1.0, 90), at(20), "of the process, whatever its name begins with");
    }

    /// However many come and go, and whether or not they come again, no two periods of one series overlap.
    #[test]
    fn what_is_forgotten_does_not_overlap() {
        let mut starts = starts();
        starts.most = 8;
        let mut told: HashMap<u64, SystemTime> = HashMap::new();
        for round in 0..200 {
            starts.next();
            let time = at(100 + round);
            for n in 0..12 {
                let name = round * (n % 4) / 3 % 40 + n;
                // Each begins again after each time that it was not there.
                let start = starts.of("netobs_edge_bytes_total", false, &named(&name.to_string()), 1.0, time);
                let last = told.insert(name, time);
                let went_on = last == Some(at(99 + round)) || last == Some(time);
                assert!(went_on || last.is_none_or(|last| start >= last), "{name} in round {round}");
            }
            assert!(starts.series.len() <= 8);
        }
    }
}
