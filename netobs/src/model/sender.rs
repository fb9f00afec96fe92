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
    /// Frames from another.
    pub other: Count,
    /// Frames that passed before it was corrected: not compared with what it should have been.
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
    /// that one.
    pub fn misjudged_senders(&self) -> Vec<(InterfaceKey, [u8; 6])> {
        let live = self.interfaces.values().filter(|entry| entry.ended.is_none());
        live.filter_map(|entry| {
            let (usual, own) = (entry.senders?.usual?, own_mac(&entry.owner.as_ref()?.inner)?);
            (usual != mac_word(own)).then_some((entry.info.key, own))
        })
        .collect()
    }
}

impl InterfaceEntry {
    /// None where there are no MAC addresses, nobody looks, or it is not known whose it is.
    pub fn foreign_mac(&self) -> Option<ForeignMac> {
        let (senders, own) = (self.senders?, own_mac(&self.owner.as_ref()?.inner)?);
        if senders.usual.is_none_or(|usual| usual == mac_word(own)) {
            return Some(ForeignMac { count: senders.other, unjudged_packets: senders.unjudged });
        }
        let sent = if self.info.place == Place::Host { &self.ingress } else { &self.egress };
        Some(ForeignMac { count: Count::default(), unjudged_packets: sent.packets })
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

    #[test]
    fn a_mac_address_is_six_bytes() {
        let of = |mac: &str| own_mac(&InnerLink { mac: mac.to_owned(), ..InnerLink::default() });
        assert_eq!(of("02:42:ac:11:00:fe"), Some([0x02, 0x42, 0xac, 0x11, 0x00, 0xfe]));
        for none in ["", "00:00:00:00:00:00", "02:42:ac:11:00", "02:42:ac:11:00:02:03", "02:42:ac:11:00:xx"] {
            assert_eq!(of(none), None, "{none}");
        }
    }
}
