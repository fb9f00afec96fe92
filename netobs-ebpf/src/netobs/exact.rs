//! The exact layer: every packet of an attachment, counted once, by what it is.

use aya_ebpf::{bindings::__sk_buff, programs::TcContext};
use aya_log_ebpf::debug;
use netobs_common::{Count, Counters, Hook, SIZE_BOUNDS, class};
use netobs_ebpf::{
    headers::tcp_flag,
    packet::{self, Cast, Version},
};

use crate::{
    events, fast,
    flows::{self, Amount},
    maps, senders,
};

/// Counts one packet. `LINK` is whether it begins with an Ethernet header; `FLOWS` whether it is also counted in
/// its flow, where flows are counted at all.
#[inline(always)]
pub fn count<const LINK: bool, const FLOWS: bool>(skb: *mut __sk_buff, hook: Hook) {
    if !LINK {
        look_and_count::<LINK, FLOWS>(skb, hook);
    } else if !fast::count::<FLOWS>(skb, hook) {
        slow::<FLOWS>(skb, hook);
    }
}

/// The slow path of an interface, a function of its own: what the fast one has come to know need not be kept for it. The
/// verifier walks it once, in whatever way the slot was found.
#[inline(never)]
fn slow<const FLOWS: bool>(skb: *mut __sk_buff, hook: Hook) -> u64 {
    look_and_count::<true, FLOWS>(skb, Hook::from_index(packet::opaque(hook.index().into()) as u32));
    0
}

#[inline(always)]
fn look_and_count<const LINK: bool, const FLOWS: bool>(skb: *mut __sk_buff, hook: Hook) {
    let cpu = maps::cpu();
    if let Some(counters) = maps::counters(cpu, hook) {
        // SAFETY: points into this CPU's block, which no other CPU writes.
        add::<LINK, FLOWS>(skb, hook, cpu, unsafe { &mut *counters });
    }
}

#[inline(always)]
fn add<const LINK: bool, const FLOWS: bool>(
    skb: *mut __sk_buff,
    hook: Hook,
    cpu: u32,
    counters: &mut Counters,
) {
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let (len, gso_size) = unsafe { (u64::from((*skb).len), u64::from((*skb).gso_size)) };
    if FLOWS && LINK {
        senders::look(skb, hook, len);
    }
    // A VLAN tag that the kernel keeps outside the frame.
    // SAFETY: as above.
    let tag_len = if LINK && unsafe { (*skb).vlan_present } != 0 { VLAN_TAG_LEN } else { 0 };
    if gso_size == 0 {
        bucket::<LINK>(counters, len + tag_len, 1);
        // Untagged, as nearly all are, it stays on two cache lines.
        if tag_len != 0 {
            plus::<LINK>(&mut counters.unfolded_bytes, tag_len);
        }
    }
    let packet = packet::parse::<LINK>(skb);
    // Before the class: whoever reads the class first finds what is not unicast there too.
    if packet.cast != Cast::UNICAST {
        let count =
            if packet.cast == Cast::MULTICAST { &mut counters.multicast } else { &mut counters.broadcast };
        increment::<LINK>(count, len);
    }
    // SAFETY: a class is less than their number; the mask tells the verifier that it stays in the block.
    increment::<LINK>(unsafe { counters.class.get_unchecked_mut(packet.class as usize & CLASS_MASK) }, len);
    if packet.tcp_flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0 {
        plus::<LINK>(&mut counters.tcp_syn, u64::from(packet.tcp_flags & tcp_flag::SYN != 0));
        plus::<LINK>(&mut counters.tcp_fin, u64::from(packet.tcp_flags & tcp_flag::FIN != 0));
        plus::<LINK>(&mut counters.tcp_rst, u64::from(packet.tcp_flags & tcp_flag::RST != 0));
    }
    let mut zero_window = 0;
    if packet.window == 0 && packet.tcp_flags & (tcp_flag::SYN | tcp_flag::RST) == 0 {
        plus::<LINK>(&mut counters.tcp_zero_window, 1);
        zero_window = flows::ZERO_WINDOW;
    }
    if packet.truncated {
        plus::<LINK>(&mut counters.truncated, 1);
        // The one thing about a packet that nobody expects. Off unless asked for, and then not in the program.
        debug!(&TcContext::new(skb), "packet of {} bytes ends inside a header, slot {}", len, hook.slot());
    }
    let mut amount = Amount { bytes: len, unfolded: 0, unfolded_bytes: tag_len as u32, zero_window };
    if gso_size != 0 {
        let unfolded = unfold::<LINK>(skb, counters, len, gso_size, u64::from(packet.headers_len), tag_len);
        (amount.unfolded, amount.unfolded_bytes) = (unfolded.packets as u32, unfolded.bytes as u32);
    }
    if FLOWS
        && maps::flows()
        && packet.class < class::VLAN_NOT_IP
        && !flows::count::<LINK>(skb, hook, cpu, &packet, amount)
    {
        // In this order, as above.
        plus::<LINK>(&mut counters.unflowed_truncated, u64::from(packet.version == Version::NONE));
        increment::<LINK>(&mut counters.unflowed, len);
    }
    if FLOWS {
        events::look::<LINK>(skb, hook, &packet);
    }
}

const VLAN_TAG_LEN: u64 = 4;

/// As many counts as there is room for in a block.
const CLASS_MASK: usize = size_of::<Counters>() / size_of::<Count>() - 1;

const _: () = assert!(core::mem::offset_of!(Counters, class) == 0 && class::COUNT <= CLASS_MASK);

/// Counts a super-packet as the segments that it stands for, each with a copy of the headers
/// (`gso_segs` of the skb; worked out where the sender left it open): what that adds.
#[inline(always)]
pub fn unfold<const ALONE: bool>(
    skb: *mut __sk_buff,
    counters: &mut Counters,
    len: u64,
    gso_size: u64,
    headers_len: u64,
    tag_len: u64,
) -> Count {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    let mut segments = unsafe { u64::from((*skb).gso_segs) };
    if segments == 0 {
        segments = (len.saturating_sub(headers_len)).div_ceil(gso_size).max(1);
    }
    let repeated = (segments - 1) * headers_len;
    let unfolded = Count { packets: segments - 1, bytes: repeated + segments * tag_len };
    plus::<ALONE>(&mut counters.unfolded_bytes, unfolded.bytes);
    let full = headers_len + gso_size;
    bucket::<ALONE>(counters, full + tag_len, segments - 1);
    bucket::<ALONE>(counters, (len + repeated).saturating_sub((segments - 1) * full) + tag_len, 1);
    unfolded
}

#[inline(always)]
pub fn increment<const ALONE: bool>(count: &mut Count, len: u64) {
    plus::<ALONE>(&mut count.packets, 1);
    plus::<ALONE>(&mut count.bytes, len);
}

/// `ALONE`: whether nothing that adds to the same block can come in between. Nothing can at TC, where programs run
/// with softirqs off; a program of a cgroup runs in a process's context, too, and may be interrupted by another.
#[inline(always)]
fn plus<const ALONE: bool>(word: &mut u64, by: u64) {
    if ALONE {
        *word += by;
    } else {
        maps::increase(word, by);
    }
}

/// Adds `packets` of `len` bytes to the size histogram.
#[inline(always)]
pub fn bucket<const ALONE: bool>(counters: &mut Counters, len: u64, packets: u64) {
    let len = len as u32;
    let size = &mut counters.size;
    // A tree of three or four comparisons; each arm has a constant index, which the verifier likes.
    let size = if len <= SIZE_BOUNDS[3] {
        if len <= SIZE_BOUNDS[1] {
            if len <= SIZE_BOUNDS[0] { &mut size[0] } else { &mut size[1] }
        } else if len <= SIZE_BOUNDS[2] {
            &mut size[2]
        } else {
            &mut size[3]
        }
    } else if len <= SIZE_BOUNDS[5] {
        if len <= SIZE_BOUNDS[4] { &mut size[4] } else { &mut size[5] }
    } else if len <= SIZE_BOUNDS[6] {
        &mut size[6]
    } else if len <= SIZE_BOUNDS[7] {
        &mut size[7]
    } else {
        &mut size[8]
    };
    plus::<ALONE>(size, packets);
}
