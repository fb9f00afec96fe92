//! Frames whose source MAC address is not the one that an interface's frames have.

use aya_ebpf::bindings::__sk_buff;
use netobs_common::{ANY_SENDER, Hook, mac_word_of};
use netobs_ebpf::{
    headers::Ethernet,
    source::{Linear, Source as _, Whole},
};

use crate::maps;

/// Compares a frame of `len` bytes with the first one; where userspace says so.
#[inline(always)]
pub fn look(skb: *mut __sk_buff, hook: Hook, len: u64) {
    let Some(sender) = maps::sender(hook) else { return };
    // SAFETY: an aligned word of a map's value, which others write whole.
    let usual = unsafe { core::ptr::read_volatile(&raw const (*sender).mac) };
    if usual == ANY_SENDER {
        return;
    }
    let Some(mac) = mac(skb) else { return };
    if usual == mac {
        return;
    }
    if usual == 0 {
        // SAFETY: as above.
        unsafe { core::ptr::write_volatile(&raw mut (*sender).mac, mac) };
        return;
    }
    // SAFETY: points into a map's value; added to by atomics alone.
    let other = unsafe { &mut (*sender).other };
    maps::increase(&mut other.packets, 1);
    maps::increase(&mut other.bytes, len);
}

/// `None` if the frame ends before.
#[inline(always)]
fn mac(skb: *mut __sk_buff) -> Option<u64> {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (data, end) = unsafe { ((*skb).data as usize, (*skb).data_end as usize) };
    let ethernet: Option<Ethernet> = Linear { data, end }.read(0);
    let ethernet = match ethernet {
        Some(ethernet) => ethernet,
        None => Whole { skb, start: 0 }.read(0)?,
    };
    Some(mac_word_of(ethernet.source))
}
