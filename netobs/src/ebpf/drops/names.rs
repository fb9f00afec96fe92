//! What the kernel's numbers and addresses are called.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv6Addr},
};

use netobs_common::drops::{DropCount, DropKey, flag};

use super::{
    layout::Reasons,
    places::{Place, Places},
};
use crate::model::drops::{DropEvent, Netfilter};

#[derive(Debug)]
pub struct Names {
    reasons: Reasons,
    has_reasons: bool,
    places: Places,
    has_places: bool,
}

impl Names {
    pub fn new(reasons: Reasons, has_reasons: bool, has_places: bool) -> Self {
        Self { reasons, has_reasons, places: Places::default(), has_places }
    }

    /// Reads what functions there are, so that learning takes no time.
    pub fn read_places(&mut self) -> io::Result<()> {
        if self.has_places {
            self.places = Places::read_all()?;
        }
        Ok(())
    }

    /// Learns the functions at these addresses.
    pub fn learn(&mut self, addresses: impl Iterator<Item = u64>) {
        if self.has_places {
            let addresses: BTreeSet<u64> = addresses.filter(|address| *address != 0).collect();
            self.places.learn(&addresses);
        }
    }

    pub fn event(&self, key: &DropKey, count: &DropCount) -> DropEvent {
        let has = |bit: u8| key.flags & bit != 0;
        let some = |number: u32| (number != 0).then_some(number);
        let address = |bytes: [u8; 16]| IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical();
        DropEvent {
            reason: self.reason(key.reason),
            place: self.places.get(key.location).map(text),
            netfilter: self.netfilter(count),
            netns: some(key.netns).map(u64::from),
            ifindex: some(key.ifindex),
            out_ifindex: some(key.out_ifindex),
            source_mac: (key.source_mac != [0; 6]).then(|| mac(key.source_mac)),
            ethertype: key.ethertype,
            addresses: has(flag::ADDRESSES).then(|| (address(key.source), address(key.destination))),
            protocol: has(flag::ADDRESSES).then_some(key.protocol),
            port: has(flag::PORT).then_some(key.port),
            ordinary: has(flag::ORDINARY),
            packets: count.packets,
        }
    }

    fn netfilter(&self, count: &DropCount) -> Option<Netfilter> {
        let caller = self.places.get(count.hook)?;
        let function = self.places.get(count.hook_function);
        Some(Netfilter::of(&caller.function, function.map(|place| place.function.as_str())))
    }

    pub fn reason(&self, number: u32) -> String {
        match self.reasons.get(&number) {
            _ if !self.has_reasons => "not told by this kernel".to_owned(),
            Some(name) => name.clone(),
            // Of a subsystem (upper half), whose names are elsewhere.
            None if number > 0xffff => format!("{}:{}", number >> 16, number & 0xffff),
            None => number.to_string(),
        }
    }
}

/// As the kernel writes it: `nf_hook_slow+0xa6`, `br_nf_forward_ip+0x23 [br_netfilter]`.
fn text(place: &Place) -> String {
    let module = place.module.as_ref().map(|module| format!(" [{module}]")).unwrap_or_default();
    format!("{}+{:#x}{module}", place.function, place.offset)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
