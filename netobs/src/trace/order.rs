//! Captured packets in the order of their times.
//!
//! A program takes the time before it gets a place in the ring: packets of two CPUs may come out of the
//! ring the wrong way round. So each is held until no earlier one is to be expected.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use netobs_common::trace::TraceHeader;

use crate::{ebpf::DropRecord, model::drops::DropEvent};

/// How long a packet is held. A program does not take that long, unless its virtual CPU is stopped.
const HOLD: Duration = Duration::from_millis(10);

/// How long a packet is held at most until it is known whose it is.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Bytes held at most; then the earliest goes.
const MAX_BYTES: usize = 32 * 1024 * 1024;

/// What a held packet takes beside its bytes, roughly.
const OVERHEAD_BYTES: usize = 128;

/// A packet as it came out of a ring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Of one that was dropped: time, lengths and whether it begins with Ethernet.
    pub header: TraceHeader,
    pub bytes: Vec<u8>,
    /// None: it passed.
    pub dropped: Option<Box<DropEvent>>,
}

impl Captured {
    pub fn of_drop(record: DropRecord) -> Self {
        let DropRecord { event, time_ns, len, link, bytes } = record;
        let captured = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let header = TraceHeader { time_ns, len, captured, link: u8::from(link), ..TraceHeader::default() };
        Self { header, bytes, dropped: Some(Box::new(event)) }
    }
}

#[derive(Default)]
pub struct Order {
    heap: BinaryHeap<Reverse<Held>>,
    next: u64,
    bytes: usize,
}

/// By time; of the same time, as they came.
struct Held {
    number: u64,
    captured: Captured,
}

impl Order {
    pub fn push(&mut self, captured: Captured) {
        self.bytes += captured.bytes.len() + OVERHEAD_BYTES;
        self.heap.push(Reverse(Held { number: self.next, captured }));
        self.next += 1;
    }

    /// The earliest, if it need not be held any longer: all that had come out of a program by `until_ns`, by the packets'
    /// clock, is here; `is_named` says whether it is known whose a slot is. Dropped ones may be nobody's, and do not
    /// wait for it.
    pub fn pop(&mut self, until_ns: u64, is_named: impl FnOnce(u32) -> bool) -> Option<Captured> {
        let Reverse(first) = self.heap.peek()?;
        let header = &first.captured.header;
        let age = Duration::from_nanos(until_ns.saturating_sub(header.time_ns));
        let is_dropped = first.captured.dropped.is_some();
        let is_due = age >= PATIENCE || age >= HOLD && (is_dropped || is_named(header.slot));
        if is_due || self.bytes > MAX_BYTES { self.take() } else { None }
    }

    /// The earliest, in any case.
    pub fn take(&mut self) -> Option<Captured> {
        let Reverse(Held { captured, .. }) = self.heap.pop()?;
        self.bytes -= captured.bytes.len() + OVERHEAD_BYTES;
        Some(captured)
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl Held {
    const fn key(&self) -> (u64, u64) {
        (self.captured.header.time_ns, self.number)
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Held {}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Held {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(&other.key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn captured(time_ns: u64, slot: u32, bytes: usize) -> Captured {
        Captured {
            header: TraceHeader { time_ns, slot, ..TraceHeader::default() },
            bytes: vec![0; bytes],
            dropped: None,
        }
    }

    #[test]
    fn by_time_and_held_until_no_earlier_one_comes() {
        let mut order = Order::default();
        for (time, slot) in [(20 * MS, 1), (10 * MS, 2), (10 * MS, 3), (30 * MS, 4)] {
            order.push(captured(time, slot, 10));
        }
        let mut pop = |now| order.pop(now, |_| true).map(|captured| captured.header.slot);
        assert_eq!(pop(19 * MS), None);
        assert_eq!((pop(20 * MS), pop(20 * MS), pop(20 * MS)), (Some(2), Some(3), None));
        assert_eq!((pop(40 * MS), pop(40 * MS), pop(40 * MS)), (Some(1), Some(4), None));
        assert!(order.is_empty());
    }

    #[test]
    fn nameless_packets_wait_and_not_forever() {
        let mut order = Order::default();
        order.push(captured(0, 1, 10));
        order.push(captured(1, 2, 10));
        assert_eq!(order.pop(999 * MS, |slot| slot != 1), None);
        assert_eq!(order.pop(1000 * MS, |slot| slot != 1).map(|captured| captured.header.slot), Some(1));
        assert_eq!(order.pop(1000 * MS, |slot| slot != 1).map(|captured| captured.header.slot), Some(2));
    }

    #[test]
    fn dropped_packets_wait_for_no_name() {
        let mut order = Order::default();
        order.push(Captured { dropped: Some(Box::default()), ..captured(0, 0, 10) });
        order.push(captured(1, 1, 10));
        assert_eq!(order.pop(9 * MS, |_| false), None);
        assert!(order.pop(10 * MS, |_| false).is_some_and(|captured| captured.dropped.is_some()));
        assert_eq!(order.pop(999 * MS, |_| false), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut order = Order::default();
        let mut held = 0;
        for number in 0..2000 {
            order.push(captured(number, 0, 65_535));
            held += 1;
            while order.pop(number, |_| false).is_some() {
                held -= 1;
            }
        }
        assert!(held * 65_535 <= MAX_BYTES, "{held}");
        assert!(order.take().is_some());
    }
}
