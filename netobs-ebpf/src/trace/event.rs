//! From a packet that matches to a record in the ring, or to a count of why there is none.

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr::read_volatile,
};

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::{bpf_ktime_get_boot_ns, bpf_skb_load_bytes},
};
use netobs_common::{
    Hook,
    trace::{ROOMS, TraceHeader},
};

use crate::maps;

/// Bytes of each packet that are captured, at most [`netobs_common::trace::MAX_SNAPLEN`].
#[unsafe(no_mangle)]
static SNAPLEN: u32 = 128;

/// Packets a second that are captured; 0: no limit.
#[unsafe(no_mangle)]
static MAX_RATE: u32 = 0;

const NANOSECONDS: u64 = 1_000_000_000;

/// A record of the ring.
#[repr(C)]
struct Record<const ROOM: usize> {
    header: TraceHeader,
    bytes: [u8; ROOM],
}

/// Captures a packet. `LINK` says whether it begins with an Ethernet header.
#[inline(always)]
pub fn send<const LINK: bool>(skb: *mut __sk_buff, hook: Hook) {
    let Some(counts) = maps::counts(hook) else { return };
    // SAFETY: points into a map's value; others add to it atomically as well.
    let (matched, delivered, lost, limited) = unsafe {
        (
            &raw mut (*counts).matched,
            &raw mut (*counts).delivered,
            &raw mut (*counts).lost,
            &raw mut (*counts).limited,
        )
    };
    increment(matched);
    // SAFETY: takes no argument and cannot fail.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    if is_over_rate(time_ns) {
        return increment(limited);
    }
    // SAFETY: a valid context pointer; the verifier rewrites the accesses to the skb's fields.
    let skb_ref = unsafe { &*skb };
    let snaplen = global(&raw const SNAPLEN);
    let len = skb_ref.len;
    let tagged = LINK && skb_ref.vlan_present != 0;
    let header = TraceHeader {
        time_ns,
        slot: hook.slot(),
        len,
        captured: if len < snaplen { len } else { snaplen },
        vlan_tci: if tagged { skb_ref.vlan_tci as u16 } else { 0 },
        vlan_protocol: if tagged { u16::from_be(skb_ref.vlan_proto as u16) } else { 0 },
        direction: hook.direction() as u8,
        link: LINK as u8,
        segments: if skb_ref.gso_size == 0 { 0 } else { skb_ref.gso_segs as u16 },
        reserved: 0,
    };
    if submit_in_room(skb, header) { increment(delivered) } else { increment(lost) }
}

/// In the smallest room that is large enough: what a program reserves must be known when it is loaded.
#[inline(always)]
fn submit_in_room(skb: *mut __sk_buff, header: TraceHeader) -> bool {
    let captured = header.captured as usize;
    if captured <= ROOMS[0] {
        submit::<{ ROOMS[0] }>(skb, header)
    } else if captured <= ROOMS[1] {
        submit::<{ ROOMS[1] }>(skb, header)
    } else if captured <= ROOMS[2] {
        submit::<{ ROOMS[2] }>(skb, header)
    } else if captured <= ROOMS[3] {
        submit::<{ ROOMS[3] }>(skb, header)
    } else {
        submit::<{ ROOMS[4] }>(skb, header)
    }
}

/// False if the ring is full.
#[inline(always)]
fn submit<const ROOM: usize>(skb: *mut __sk_buff, header: TraceHeader) -> bool {
    let Some(mut record) = maps::EVENTS.reserve::<Record<ROOM>>(0) else { return false };
    let pointer = record.as_mut_ptr();
    // From memory and masked, so that neither the compiler nor the verifier has to know the way here: from 1
    // to ROOM. Nothing to copy becomes too much to copy, which the helper refuses.
    // SAFETY: a local.
    let captured = unsafe { read_volatile(&raw const header.captured) };
    let size = (captured.wrapping_sub(1) & (ROOM as u32 - 1)) + 1;
    // SAFETY: reserved with the size of the record; the helper writes no more than there is room for.
    unsafe {
        (*pointer).header = header;
        if bpf_skb_load_bytes(skb.cast(), 0, (&raw mut (*pointer).bytes).cast(), size) != 0 {
            (*pointer).header.captured = 0;
        }
    }
    record.submit(0);
    true
}

/// Whether the second's share has been captured. Two CPUs that ask at the same moment may both get the
/// last place: the limit is exceeded by one for each further CPU at most.
#[inline(always)]
fn is_over_rate(time_ns: u64) -> bool {
    let limit = global(&raw const MAX_RATE);
    if limit == 0 {
        return false;
    }
    let Some(cell) = maps::rate_cell() else { return false };
    // SAFETY: one aligned word, read and written whole.
    let seen = unsafe { read_volatile(cell) };
    let second = time_ns / NANOSECONDS;
    if seen >> 32 != second & 0xffff_ffff {
        // SAFETY: as above.
        unsafe { cell.write_volatile(second << 32 | 1) };
        return false;
    }
    if seen as u32 >= limit {
        return true;
    }
    increment(cell);
    false
}

#[inline(always)]
fn increment(counter: *mut u64) {
    // SAFETY: a word of a map's value, which nobody accesses but whole.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(counter, 1) };
}

/// A value that userspace sets before the program is loaded.
#[inline(always)]
pub fn global<T: Copy>(value: *const T) -> T {
    // SAFETY: a static; volatile, since what it will be is not known here.
    unsafe { read_volatile(value) }
}
