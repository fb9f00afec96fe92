//! netobs's counters held against the kernel's own.
//!
//! Both cannot be read at one moment. So the kernel's are read some time before ours and again after: whatever
//! it had counted before, we must have counted by then, and nothing that it has not counted after. What is out
//! of these bounds twice in a row is a difference; it is at least so much.

use netobs_common::Counters;
use serde::{Deserialize, Serialize};

use super::{
    snapshot::Baseline,
    traffic::Traffic,
    update::{InterfaceKey, InterfaceKind, KernelStats},
};

/// Bytes that a bridge device's own receive counter leaves out of each frame.
const ETHERNET_HEADER_BYTES: u64 = 14;

/// A VLAN tag may be in the frame when the device counts it and not when we do.
const VLAN_TAG_BYTES: u64 = 4;

/// What a macvlan counts too much of a broadcast from another on the same parent (`macvlan_broadcast_one`).
const MACVLAN_HEADER_BYTES: u64 = 14;

/// No packet of the stack has more, with its headers (`IP6_MAX_MTU` and BIG TCP aside).
const MAX_PACKET_BYTES: u64 = 65_575;

/// One attachment's counters, and the kernel's of its interface before and after.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub key: InterfaceKey,
    pub before: KernelStats,
    pub ingress: Counters,
    pub egress: Counters,
    pub after: KernelStats,
}

/// The kernel's counters less netobs's and what is stated as unobserved; 0 within what can be told. Positive:
/// netobs has missed so much, and does not know it. Directions are the interface's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Difference {
    pub rx_packets: i64,
    pub rx_bytes: i64,
    pub tx_packets: i64,
    pub tx_bytes: i64,
}

/// Whether the kernel counts at such an interface what passes our programs. A card counts what is on its wire,
/// where super-packets are unfolded and some of its own frames pass; a cgroup has no counters.
pub const fn is_comparable(kind: InterfaceKind) -> bool {
    match kind {
        InterfaceKind::Veth | InterfaceKind::Bridge | InterfaceKind::Macvlan | InterfaceKind::Ipvlan => true,
        InterfaceKind::Vlan | InterfaceKind::Device | InterfaceKind::Cgroup => false,
    }
}

/// What the device's own receive counter says of packets that we count with their Ethernet header.
pub const fn kernel_rx_bytes(kind: InterfaceKind, packets: u64, bytes: u64) -> u64 {
    match kind {
        InterfaceKind::Bridge => bytes.saturating_sub(packets * ETHERNET_HEADER_BYTES),
        _ => bytes,
    }
}

/// How an interface has been compared so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reconciled {
    /// As of the last reading: not yet told.
    last: Option<Difference>,
    /// None: not compared yet.
    pub difference: Option<Difference>,
}

impl Reconciled {
    /// Takes in one more reading. `start` is what the kernel's counters were when we began.
    pub fn read(&mut self, reading: &Reading, kind: InterfaceKind, baseline: Baseline, start: &KernelStats) {
        let now = difference(reading, kind, baseline, start);
        self.difference = self.last.map(|last| last.common(now)).or(self.difference);
        self.last = Some(now);
    }

    /// Whether what was read last has to be read again to be believed.
    pub fn is_suspect(&self) -> bool {
        self.last.is_some_and(|last| last != Difference::default() && self.difference != Some(last))
    }

    /// Begins anew, as the baseline does.
    pub fn reset(&mut self) {
        *self = Self { last: None, difference: self.difference.map(|_| Difference::default()) };
    }
}

impl Difference {
    pub fn is_none(self) -> bool {
        self == Self::default()
    }

    /// What both have of each.
    fn common(self, other: Self) -> Self {
        let common = |a: i64, b: i64| match (a.signum(), b.signum()) {
            (1, 1) => a.min(b),
            (-1, -1) => a.max(b),
            _ => 0,
        };
        Self {
            rx_packets: common(self.rx_packets, other.rx_packets),
            rx_bytes: common(self.rx_bytes, other.rx_bytes),
            tx_packets: common(self.tx_packets, other.tx_packets),
            tx_bytes: common(self.tx_bytes, other.tx_bytes),
        }
    }
}

fn difference(reading: &Reading, kind: InterfaceKind, baseline: Baseline, start: &KernelStats) -> Difference {
    let (rx, tx) = (Traffic::from(&reading.ingress), Traffic::from(&reading.egress));
    let (before, after) = (&reading.before, &reading.after);
    // Packets passed while the baseline was read: it may be too low by so much.
    let unsure = baseline.uncertain_packets;
    let unsure_bytes = unsure * MAX_PACKET_BYTES;
    // The device drops after our program has counted.
    let dropped = after.tx_dropped.saturating_sub(start.tx_dropped);
    let tags = |traffic: &Traffic| traffic.ethertype.vlan.packets * VLAN_TAG_BYTES;
    let groups = rx.cast.multicast.packets + rx.cast.broadcast.packets;
    let twice = if kind == InterfaceKind::Macvlan { groups * MACVLAN_HEADER_BYTES } else { 0 };
    let rx_packets = baseline.rx_packets + rx.packets;
    let rx_bytes = baseline.rx_bytes + kernel_rx_bytes(kind, rx.packets, rx.bytes);
    let tx_packets = baseline.tx_packets + tx.packets;
    let tx_bytes = baseline.tx_bytes + tx.bytes;
    Difference {
        rx_packets: outside([rx_packets, rx_packets + unsure], before.rx_packets, after.rx_packets),
        rx_bytes: outside(
            [rx_bytes, rx_bytes + tags(&rx) + twice + unsure_bytes],
            before.rx_bytes,
            after.rx_bytes,
        ),
        tx_packets: outside(
            [tx_packets.saturating_sub(dropped), tx_packets + unsure],
            before.tx_packets,
            after.tx_packets,
        ),
        tx_bytes: outside(
            [tx_bytes.saturating_sub(dropped * MAX_PACKET_BYTES), tx_bytes + tags(&tx) + unsure_bytes],
            before.tx_bytes,
            after.tx_bytes,
        ),
    }
}

/// By how much what the kernel should say (from, to) is less than what it had said before, or more than what it
/// says after.
fn outside([from, to]: [u64; 2], before: u64, after: u64) -> i64 {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    if to < before {
        signed(before - to)
    } else if from > after {
        -signed(from - after)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use netobs_common::{Count, class, l4};

    use super::*;

    fn counters(packets: u64, vlan: u64) -> Counters {
        let mut counters = Counters::ZERO;
        counters.class[(class::IPV4 + l4::TCP) as usize] = Count { packets, bytes: 100 * packets };
        counters.class[(class::VLAN + l4::TCP) as usize] = Count { packets: vlan, bytes: 100 * vlan };
        counters
    }

    fn kernel(rx: u64, tx: u64) -> KernelStats {
        KernelStats {
            rx_packets: rx,
            rx_bytes: 100 * rx,
            tx_packets: tx,
            tx_bytes: 100 * tx,
            ..KernelStats::default()
        }
    }

    fn reading(before: KernelStats, [ingress, egress]: [u64; 2], after: KernelStats) -> Reading {
        let (ingress, egress) = (counters(ingress, 0), counters(egress, 0));
        Reading { key: InterfaceKey(1), before, ingress, egress, after }
    }

    const BASELINE: Baseline =
        Baseline { rx_packets: 10, rx_bytes: 1000, tx_packets: 20, tx_bytes: 2000, uncertain_packets: 0 };

    fn of(reading: &Reading, baseline: Baseline) -> Difference {
        difference(reading, InterfaceKind::Veth, baseline, &KernelStats::default())
    }

    #[test]
    fn what_passes_meanwhile_is_no_difference() {
        for ours in [[5, 7], [6, 7], [9, 12]] {
            let reading = reading(kernel(15, 27), ours, kernel(19, 32));
            assert!(of(&reading, BASELINE).is_none(), "{ours:?}");
        }
    }

    #[test]
    fn missing_and_too_much() {
        let now = of(&reading(kernel(15, 27), [3, 14], kernel(19, 32)), BASELINE);
        let expected = Difference { rx_packets: 2, rx_bytes: 200, tx_packets: -2, tx_bytes: -200 };
        assert_eq!(now, expected);
        let unsure = Baseline { uncertain_packets: 1, ..BASELINE };
        let now = of(&reading(kernel(15, 27), [3, 14], kernel(19, 32)), unsure);
        assert_eq!((now.rx_packets, now.tx_packets), (1, -2), "the baseline is never too high");
    }

    #[test]
    fn what_the_device_drops_we_have_counted() {
        let dropped = |tx_dropped| KernelStats { tx_dropped, ..kernel(19, 32) };
        let reading = |after| reading(kernel(15, 27), [5, 14], after);
        let start = KernelStats { tx_dropped: 40, ..KernelStats::default() };
        let of = |after| difference(&reading(after), InterfaceKind::Veth, BASELINE, &start);
        assert_eq!(of(dropped(41)).tx_packets, -1);
        assert!(of(dropped(42)).is_none());
    }

    #[test]
    fn tags_and_a_bridges_headers() {
        let same = KernelStats { rx_bytes: 15 * 100 + 8, ..kernel(15, 25) };
        let tagged = Reading { ingress: counters(3, 2), ..reading(same, [0, 5], same) };
        assert!(of(&tagged, BASELINE).is_none());
        let more = KernelStats { rx_bytes: 15 * 100 + 9, ..same };
        assert_eq!(of(&Reading { before: more, after: more, ..tagged }, BASELINE).rx_bytes, 1);
        let bridge = KernelStats { rx_bytes: 1000 + 5 * 86, ..kernel(15, 25) };
        let reading = reading(bridge, [5, 5], bridge);
        let of = |kind| difference(&reading, kind, BASELINE, &KernelStats::default());
        assert!(of(InterfaceKind::Bridge).is_none());
        assert_eq!(of(InterfaceKind::Veth).rx_bytes, -70);
    }

    #[test]
    fn twice_in_a_row_is_believed() {
        let mut reconciled = Reconciled::default();
        let mut read = |rx: u64, ours: u64| {
            let reading = reading(kernel(rx, 25), [ours, 5], kernel(rx, 25));
            reconciled.read(&reading, InterfaceKind::Veth, BASELINE, &KernelStats::default());
            (reconciled.difference.map(|difference| difference.rx_packets), reconciled.is_suspect())
        };
        assert_eq!(read(15, 5), (None, false), "once is not yet told");
        assert_eq!(read(18, 5), (Some(0), true), "a packet may be on its way");
        assert_eq!(read(20, 8), (Some(2), false));
        assert_eq!(read(20, 10), (Some(0), false), "they came");
        assert_eq!(read(20, 13), (Some(0), true));
        assert_eq!(read(20, 14), (Some(-3), true));
        reconciled.reset();
        assert_eq!(reconciled.difference, Some(Difference::default()));
    }
}
