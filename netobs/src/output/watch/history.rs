//! Bits per second of each container, one point per snapshot: what sparklines are drawn from.

use std::collections::{HashMap, VecDeque};

use crate::model::Snapshot;

/// Points kept of one container; the oldest goes.
pub const POINTS: usize = 120;
const LEVELS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// By container ID. Pruned with the containers, so bounded by their number times [`POINTS`].
#[derive(Clone, Debug, Default)]
pub struct History(HashMap<String, VecDeque<f64>>);

impl History {
    pub fn push(&mut self, snapshot: &Snapshot) {
        let mut kept = HashMap::with_capacity(snapshot.containers.len());
        for container in &snapshot.containers {
            let mut points = self.0.remove(&container.id).unwrap_or_default();
            if points.len() == POINTS {
                points.pop_front();
            }
            let rate = container.rates.map_or(0.0, |r| r.rx_bits_per_second + r.tx_bits_per_second);
            points.push_back(rate);
            kept.insert(container.id.clone(), points);
        }
        self.0 = kept;
    }

    pub fn points(&self, id: &str) -> usize {
        self.0.get(id).map_or(0, VecDeque::len)
    }

    /// The newest `width` points as bars, against the highest of them; blank where nothing passed.
    pub fn sparkline(&self, id: &str, width: usize) -> String {
        let Some(points) = self.0.get(id) else { return String::new() };
        let shown = || points.iter().skip(points.len().saturating_sub(width));
        let highest = shown().copied().fold(0.0, f64::max);
        shown().map(|point| level(*point, highest)).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of 8, not negative")]
fn level(point: f64, highest: f64) -> char {
    if point <= 0.0 || highest <= 0.0 {
        return ' ';
    }
    let step = (point / highest * LEVELS.len() as f64).ceil() as usize;
    LEVELS[step.clamp(1, LEVELS.len()) - 1]
}
