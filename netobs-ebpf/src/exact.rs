//! The exact layer: every frame of an attached interface, counted once, by what it is.

use aya_ebpf::programs::TcContext;
use aya_log_ebpf::debug;
use netobs_common::{Count, Counters, SIZE_BOUNDS, class};

use crate::{
    maps,
    packet::{self, Cast, tcp_flag},
};

/// Counts one frame. `DIRECTION` is the attached interface's, see [`netobs_common::INGRESS`].
#[inline(always)]
pub fn count<const DIRECTION: u32>(ctx: &TcContext) {
    if let Some(counters) = maps::counters(ifindex(ctx), DIRECTION) {
        // SAFETY: points into this CPU's block, which no other CPU writes.
        add(ctx, unsafe { &mut *counters });
    }
}

#[inline(always)]
fn ifindex(ctx: &TcContext) -> u32 {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    unsafe { (*ctx.skb.skb).ifindex }
}

#[inline(always)]
fn add(ctx: &TcContext, counters: &mut Counters) {
    let len = u64::from(ctx.len());
    let gso_size = gso_size(ctx);
    // A VLAN tag that the kernel keeps outside the frame.
    let tag_len = if tagged(ctx) { VLAN_TAG_LEN } else { 0 };
    if gso_size == 0 {
        bucket(counters, len + tag_len, 1);
        // Untagged, as nearly all are, it stays on two cache lines.
        if tag_len != 0 {
            counters.unfolded.bytes += tag_len;
        }
    }
    let packet = packet::parse(ctx);
    if let Some(count) = counters.class.get_mut(packet.class as usize) {
        increment(count, len);
    }
    match packet.cast {
        Cast::Unicast => {}
        Cast::Multicast => increment(&mut counters.multicast, len),
        Cast::Broadcast => increment(&mut counters.broadcast, len),
    }
    if packet.tcp_flags & (tcp_flag::SYN | tcp_flag::FIN | tcp_flag::RST) != 0 {
        counters.tcp_syn += u64::from(packet.tcp_flags & tcp_flag::SYN != 0);
        counters.tcp_fin += u64::from(packet.tcp_flags & tcp_flag::FIN != 0);
        counters.tcp_rst += u64::from(packet.tcp_flags & tcp_flag::RST != 0);
    }
    if packet.truncated {
        counters.truncated += 1;
        // The one thing about a packet that nobody expects. Off unless asked for, and then not in the program.
        debug!(ctx, "frame of {} bytes ends inside a header, ifindex {}", ctx.len(), ifindex(ctx));
    }
    if gso_size != 0 {
        unfold(ctx, counters, len, gso_size, u64::from(packet.headers_len), tag_len);
    }
}

const VLAN_TAG_LEN: u64 = 4;

/// Payload bytes of each segment of a super-packet but the last; 0 for an ordinary packet.
#[inline(always)]
fn gso_size(ctx: &TcContext) -> u64 {
    // SAFETY: a valid context pointer; the verifier rewrites the access to the skb's field.
    u64::from(unsafe { (*ctx.skb.skb).gso_size })
}

#[inline(always)]
fn tagged(ctx: &TcContext) -> bool {
    // SAFETY: as above.
    unsafe { (*ctx.skb.skb).vlan_present != 0 }
}

/// Counts a super-packet as the segments that it stands for, each with a copy of the headers
/// (`gso_segs` of the skb; worked out where the sender left it open).
#[inline(always)]
fn unfold(ctx: &TcContext, counters: &mut Counters, len: u64, gso_size: u64, headers_len: u64, tag_len: u64) {
    // SAFETY: as above.
    let mut segments = unsafe { u64::from((*ctx.skb.skb).gso_segs) };
    if segments == 0 {
        segments = (len.saturating_sub(headers_len)).div_ceil(gso_size).max(1);
    }
    let repeated = (segments - 1) * headers_len;
    counters.unfolded.packets += segments - 1;
    counters.unfolded.bytes += repeated + segments * tag_len;
    let full = headers_len + gso_size;
    bucket(counters, full + tag_len, segments - 1);
    bucket(counters, (len + repeated).saturating_sub((segments - 1) * full) + tag_len, 1);
}

#[inline(always)]
fn increment(count: &mut Count, len: u64) {
    count.packets += 1;
    count.bytes += len;
}

/// Adds `packets` of `len` bytes to the size histogram.
#[inline(always)]
fn bucket(counters: &mut Counters, len: u64, packets: u64) {
    let len = len as u32;
    let size = &mut counters.size;
    // A tree of three or four comparisons; each arm has a constant index, which the verifier likes.
    if len <= SIZE_BOUNDS[3] {
        if len <= SIZE_BOUNDS[1] {
            if len <= SIZE_BOUNDS[0] { size[0] += packets } else { size[1] += packets }
        } else if len <= SIZE_BOUNDS[2] {
            size[2] += packets
        } else {
            size[3] += packets
        }
    } else if len <= SIZE_BOUNDS[5] {
        if len <= SIZE_BOUNDS[4] { size[4] += packets } else { size[5] += packets }
    } else if len <= SIZE_BOUNDS[6] {
        size[6] += packets
    } else if len <= SIZE_BOUNDS[7] {
        size[7] += packets
    } else {
        size[8] += packets
    }
}

const _: () = assert!(class::COUNT <= u32::MAX as usize);
