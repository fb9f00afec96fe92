//! Frames that a container sends from a MAC address that is not its interface's.

use netobs_common::mac_word;
use serde::{Deserialize, Serialize};

use super::{
    State,
    state::{InterfaceEntry, NO_MAC},
    traffic::Count,
    update::{InnerLink, InterfaceKey, Place},
};

/// Source MAC addresses of what a container sends at one interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Senders {
    /// [`netobs_common::mac_word`] of the address that frames are compared with: that of the first, or what it was
    /// corrected to. None before there was a frame.
    pub usual: Option<u64>,
    /// Frames from another, and of those that were judged before it was corrected.
    pub other: Count,
    /// Frames that passed before it was corrected and were not compared with what it should have been.
    pub unjudged: u64,
}

/// What a container has sent from MAC addresses that are not those of its interfaces; as the stack counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct ForeignMac {
    #[serde(flatten)]
    pub count: Count,
    /// Frames of which it is not known, beside these: they had passed before it was known that the first of them
    /// had an address that is not the interface's.
    pub unjudged_packets: u64,
}

impl std::ops::Add for ForeignMac {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.count += other.count;
        self.unjudged_packets += other.unjudged_packets;
        self
    }
}

impl State {
    /// Attachments whose frames are compared with another address than the interface in the container has; with
    /// that one, and what was compared before it had it.
    pub fn misjudged_senders(&self) -> Vec<(InterfaceKey, [u8; 6], Judged)> {
        let live = self.interfaces.values().filter(|entry| entry.ended.is_none());
        live.filter_map(|entry| {
            let (usual, own) = (entry.comparison.usual()?, entry.own_mac()?);
            (usual != mac_word(own)).then_some((entry.info.key, own, entry.comparison.judged))
        })
        .collect()
    }
}

/// How far frames have been compared with the address that they should have.
#[derive(Clone, Copy, Debug, Default)]
pub struct Judged {
    /// All that had another.
    pub foreign: Count,
    /// Frames that were compared.
    pub frames: u64,
}

/// Frames of one interface that are compared: with an address that may turn out to be wrong, or change.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Comparison {
    senders: Option<Senders>,
    /// Up to the last reading in which the address was right.
    judged: Judged,
}

impl Comparison {
    /// What frames are compared with, [`netobs_common::mac_word`] of it.
    pub(super) fn usual(&self) -> Option<u64> {
        self.senders?.usual
    }

    fn take(&mut self, senders: Option<Senders>, own: Option<[u8; 6]>, sent: u64) {
        self.senders = senders;
        if let (Some(senders), Some(own)) = (senders, own)
            && senders.usual == Some(mac_word(own))
        {
            self.judged = Judged { foreign: senders.other, frames: sent.saturating_sub(senders.unjudged) };
        }
    }

    fn foreign(&self, own: Option<[u8; 6]>, sent: u64) -> Option<ForeignMac> {
        let (senders, own) = (self.senders?, own?);
        if senders.usual.is_none_or(|usual| usual == mac_word(own)) {
            return Some(ForeignMac { count: senders.other, unjudged_packets: senders.unjudged });
        }
        let unjudged_packets = sent.saturating_sub(self.judged.frames);
        Some(ForeignMac { count: self.judged.foreign, unjudged_packets })
    }
}

impl InterfaceEntry {
    /// Takes in what was read, after the counters themselves.
    pub(super) fn compare(&mut self, senders: Option<Senders>) {
        let (own, sent) = (self.own_mac(), self.sent_frames());
        self.comparison.take(senders, own, sent);
    }

    /// None where there are no MAC addresses, nobody looks, or it is not known whose it is.
    pub fn foreign_mac(&self) -> Option<ForeignMac> {
        self.comparison.foreign(self.own_mac(), self.sent_frames())
    }

    fn own_mac(&self) -> Option<[u8; 6]> {
        own_mac(&self.owner.as_ref()?.inner)
    }

    /// By the container.
    const fn sent_frames(&self) -> u64 {
        if matches!(self.info.place, Place::Host) { self.ingress.packets } else { self.egress.packets }
    }
}

/// The address that frames of an interface inside a container should have.
fn own_mac(link: &InnerLink) -> Option<[u8; 6]> {
    if link.mac == NO_MAC {
        return None;
    }
    mac_bytes(&link.mac)
}

/// `aa:bb:cc:dd:ee:ff`
pub(super) fn mac_bytes(text: &str) -> Option<[u8; 6]> {
    let mut bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16).ok());
    let mac = [(); 6].map(|()| bytes.next().flatten());
    let [Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)] = mac else { return None };
    bytes.next().is_none().then_some([a, b, c, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first frame had another address; then the interface is given a new one, unnoticed for a while.
    #[test]
    fn what_was_judged_stays_so() {
        let [first, own, new] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3]];
        let mut comparison = Comparison::default();
        let mut read = |usual: [u8; 6], other: u64, unjudged: u64, own: [u8; 6], sent: u64| {
            let other = Count { packets: other, bytes: 100 * other };
            let senders = Senders { usual: Some(mac_word(usual)), other, unjudged };
            comparison.take(Some(senders), Some(own), sent);
            let foreign = comparison.foreign(Some(own), sent).expect("compared");
            let Judged { foreign: kept, frames } = comparison.judged;
            ((foreign.count.packets, foreign.unjudged_packets), (kept.packets, frames))
        };
        assert_eq!(read(first, 5, 0, own, 8), ((0, 8), (0, 0)), "compared with a wrong one");
        assert_eq!(read(own, 0, 9, own, 9), ((0, 9), (0, 0)), "corrected");
        assert_eq!(read(own, 3, 9, own, 20), ((3, 9), (3, 11)));
        assert_eq!(read(own, 7, 9, new, 25), ((3, 14), (3, 11)), "has a new one");
        assert_eq!(read(new, 3, 26 - 11, new, 26), ((3, 15), (3, 11)), "corrected, with what was judged");
        assert_eq!(read(new, 5, 15, new, 30), ((5, 15), (5, 15)));
    }

    #[test]
    fn a_mac_address_is_six_bytes() {
        let of = |mac: &str| own_mac(&InnerLink { mac: mac.to_owned(), ..InnerLink::default() });
        assert_eq!(of("02:42:ac:11:00:fe"), Some([0x02, 0x42, 0xac, 0x11, 0x00, 0xfe]));
        for none in ["", "00:00:00:00:00:00", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:xx"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
