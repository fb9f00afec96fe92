//! One direction of one interface, container or network, added up over CPUs and taken apart by kind.

use netobs_common::{Counters, SIZE_BUCKETS, class, l4};
use serde::{Deserialize, Serialize};

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// By what the Ethernet header announces. A tagged frame is `vlan`, whatever is in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ByEthertype {
    pub ipv4: Count,
    pub ipv6: Count,
    pub arp: Count,
    pub vlan: Count,
    pub other: Count,
}

/// By destination MAC address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ByCast {
    pub unicast: Count,
    pub multicast: Count,
    pub broadcast: Count,
}

/// By L4 protocol, of IPv4 and IPv6 packets, tagged or not. Frames that are not IP are in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ByProtocol {
    pub tcp: Count,
    pub udp: Count,
    pub icmp: Count,
    pub icmpv6: Count,
    pub sctp: Count,
    pub other: Count,
}

/// Stack packets whose TCP header has the flag; one packet may have several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct TcpFlags {
    pub syn: u64,
    pub fin: u64,
    pub rst: u64,
}

/// One direction. Bytes are whole frames with the Ethernet header, without FCS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Traffic {
    /// As the stack counts: a super-packet (GSO, GRO) is one packet.
    pub packets: u64,
    pub bytes: u64,
    /// As on a wire: super-packets unfolded into segments, each with its headers.
    pub wire_packets: u64,
    pub wire_bytes: u64,
    pub ethertype: ByEthertype,
    pub cast: ByCast,
    pub protocol: ByProtocol,
    pub tcp_flags: TcpFlags,
    /// Stack packets with a TCP window of 0 and neither SYN nor RST: their sender takes nothing more for now.
    pub tcp_zero_window: u64,
    /// Wire packets by size; bounds are [`netobs_common::SIZE_BOUNDS`], the last bucket has none.
    pub size: [u64; SIZE_BUCKETS],
    /// Frames that ended inside a header that was needed to classify them; they are counted above too.
    pub truncated: u64,
    /// IP packets that are in no flow: there was no room for one more, or their IP header was cut. What flows
    /// have counted and this are all IP packets, as the stack counts them. 0 where flows are off.
    pub unflowed: Count,
    /// How many of these had their IP header cut.
    pub unflowed_truncated: u64,
}

impl std::ops::AddAssign for Count {
    fn add_assign(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }
}

impl Count {
    /// Both numbers less those of another; none of them below 0.
    pub const fn less(self, other: Self) -> Self {
        Self {
            packets: self.packets.saturating_sub(other.packets),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |mut sum, count| {
            sum += count;
            sum
        })
    }
}

impl From<netobs_common::Count> for Count {
    fn from(count: netobs_common::Count) -> Self {
        Self { packets: count.packets, bytes: count.bytes }
    }
}

impl From<&Counters> for Traffic {
    fn from(raw: &Counters) -> Self {
        let at = |index: u32| Count::from(raw.class[index as usize]);
        let block = |base: u32| (base..base + l4::COUNT).map(at).sum::<Count>();
        let protocol =
            |l4: u32| [class::IPV4, class::IPV6, class::VLAN].map(|base| at(base + l4)).into_iter().sum();
        let mut vlan = block(class::VLAN);
        vlan += at(class::VLAN_NOT_IP);
        let ethertype = ByEthertype {
            ipv4: block(class::IPV4),
            ipv6: block(class::IPV6),
            arp: at(class::ARP),
            vlan,
            other: at(class::OTHER),
        };
        let all: Count = raw.class.iter().copied().map(Count::from).sum();
        let (multicast, broadcast) = (Count::from(raw.multicast), Count::from(raw.broadcast));
        let unicast = all.less(multicast).less(broadcast);
        Self {
            packets: all.packets,
            bytes: all.bytes,
            wire_packets: raw.size.iter().sum(),
            wire_bytes: all.bytes + raw.unfolded_bytes,
            ethertype,
            cast: ByCast { unicast, multicast, broadcast },
            protocol: ByProtocol {
                tcp: protocol(l4::TCP),
                udp: protocol(l4::UDP),
                icmp: protocol(l4::ICMP),
                icmpv6: protocol(l4::ICMPV6),
                sctp: protocol(l4::SCTP),
                other: protocol(l4::OTHER),
            },
            tcp_flags: TcpFlags { syn: raw.tcp_syn, fin: raw.tcp_fin, rst: raw.tcp_rst },
            tcp_zero_window: raw.tcp_zero_window,
            size: raw.size,
            truncated: raw.truncated,
            unflowed: raw.unflowed.into(),
            unflowed_truncated: raw.unflowed_truncated,
        }
    }
}

impl std::ops::AddAssign<&Traffic> for Traffic {
    fn add_assign(&mut self, other: &Self) {
        self.with(other, |sum, more| *sum += more);
    }
}

impl Traffic {
    /// What programs have counted, as it is told of after `earlier`. They count while it is read, word by word, and a
    /// part of a packet may be there that is not in the whole yet: it is told of the next time, so that what is left of
    /// the whole without the part never becomes less either.
    pub fn after(self, earlier: &Self) -> Self {
        let mut now = self;
        let more = |part: Count, before: Count, whole: Count| {
            let more = part.less(before);
            Count { packets: more.packets.min(whole.packets), bytes: more.bytes.min(whole.bytes) }
        };
        let whole = Count { packets: now.packets, bytes: now.bytes };
        let mut left = whole.less(Count { packets: earlier.packets, bytes: earlier.bytes });
        let (cast, before) = (&mut now.cast, &earlier.cast);
        for (part, before) in
            [(&mut cast.multicast, before.multicast), (&mut cast.broadcast, before.broadcast)]
        {
            let more = more(*part, before, left);
            left = left.less(more);
            *part = before;
            *part += more;
        }
        cast.unicast = whole.less(cast.multicast).less(cast.broadcast);
        let left = now.unflowed.packets.saturating_sub(earlier.unflowed.packets);
        let truncated = now.unflowed_truncated.saturating_sub(earlier.unflowed_truncated);
        now.unflowed_truncated = earlier.unflowed_truncated + truncated.min(left);
        now
    }

    /// What of it was counted after `earlier`.
    pub fn since(mut self, earlier: &Self) -> Self {
        self.with(earlier, |now, then| *now = now.saturating_sub(then));
        self
    }

    /// Does the same to each number and its counterpart.
    fn with(&mut self, other: &Self, change: impl Fn(&mut u64, u64)) {
        let of_count = |count: &mut Count, other: Count| {
            change(&mut count.packets, other.packets);
            change(&mut count.bytes, other.bytes);
        };
        change(&mut self.packets, other.packets);
        change(&mut self.bytes, other.bytes);
        change(&mut self.wire_packets, other.wire_packets);
        change(&mut self.wire_bytes, other.wire_bytes);
        for (count, (_, other)) in self.ethertype.each_mut().into_iter().zip(other.ethertype.each()) {
            of_count(count, other);
        }
        for (count, (_, other)) in self.cast.each_mut().into_iter().zip(other.cast.each()) {
            of_count(count, other);
        }
        for (count, (_, other)) in self.protocol.each_mut().into_iter().zip(other.protocol.each()) {
            of_count(count, other);
        }
        change(&mut self.tcp_flags.syn, other.tcp_flags.syn);
        change(&mut self.tcp_flags.fin, other.tcp_flags.fin);
        change(&mut self.tcp_flags.rst, other.tcp_flags.rst);
        change(&mut self.tcp_zero_window, other.tcp_zero_window);
        for (count, other) in self.size.iter_mut().zip(other.size) {
            change(count, other);
        }
        change(&mut self.truncated, other.truncated);
        of_count(&mut self.unflowed, other.unflowed);
        change(&mut self.unflowed_truncated, other.unflowed_truncated);
    }
}

impl ByEthertype {
    /// The parts with the names that outputs use.
    pub fn each(&self) -> [(&'static str, Count); 5] {
        [
            ("ipv4", self.ipv4),
            ("ipv6", self.ipv6),
            ("arp", self.arp),
            ("vlan", self.vlan),
            ("other", self.other),
        ]
    }

    fn each_mut(&mut self) -> [&mut Count; 5] {
        [&mut self.ipv4, &mut self.ipv6, &mut self.arp, &mut self.vlan, &mut self.other]
    }
}

impl ByCast {
    /// The parts with the names that outputs use.
    pub fn each(&self) -> [(&'static str, Count); 3] {
        [("unicast", self.unicast), ("multicast", self.multicast), ("broadcast", self.broadcast)]
    }

    fn each_mut(&mut self) -> [&mut Count; 3] {
        [&mut self.unicast, &mut self.multicast, &mut self.broadcast]
    }
}

impl ByProtocol {
    /// The parts with the names that outputs use.
    pub fn each(&self) -> [(&'static str, Count); 6] {
        [
            ("tcp", self.tcp),
            ("udp", self.udp),
            ("icmp", self.icmp),
            ("icmpv6", self.icmpv6),
            ("sctp", self.sctp),
            ("other", self.other),
        ]
    }

    fn each_mut(&mut self) -> [&mut Count; 6] {
        [&mut self.tcp, &mut self.udp, &mut self.icmp, &mut self.icmpv6, &mut self.sctp, &mut self.other]
    }
}

impl TcpFlags {
    /// The parts with the names that outputs use.
    pub fn each(&self) -> [(&'static str, u64); 3] {
        [("syn", self.syn), ("fin", self.fin), ("rst", self.rst)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(packets: u64, multicast: u64, unflowed: u64, truncated: u64) -> Counters {
        let count = |packets| netobs_common::Count { packets, bytes: 100 * packets };
        let mut raw = Counters::ZERO;
        raw.class[class::OTHER as usize] = count(packets);
        raw.multicast = count(multicast);
        raw.unflowed = count(unflowed);
        raw.unflowed_truncated = truncated;
        raw
    }

    /// A part that is read before the packet that it is of is in the whole.
    #[test]
    fn a_torn_reading_makes_nothing_less() {
        let first = Traffic::from(&raw(10, 3, 5, 2)).after(&Traffic::default());
        assert_eq!((first.cast.unicast.packets, first.cast.multicast.packets), (7, 3));
        let torn = Traffic::from(&raw(10, 4, 5, 3)).after(&first);
        assert_eq!(torn, first);
        let then = Traffic::from(&raw(12, 4, 7, 3)).after(&torn);
        assert_eq!((then.cast.unicast.packets, then.cast.unicast.bytes), (8, 800));
        assert_eq!((then.cast.multicast.packets, then.cast.multicast.bytes), (4, 400));
        assert_eq!((then.unflowed.packets, then.unflowed_truncated), (7, 3));
    }
}
