//! Each event by itself, with the beginning of the packet.

use core::{ffi::c_void, ptr::read_volatile};

use aya_ebpf::{
    helpers::{bpf_ktime_get_boot_ns, generated::bpf_probe_read_kernel},
    macros::map,
    maps::RingBuf,
    programs::RawTracePointContext,
};
use netobs_common::drops::{DROP_ROOMS, DropHeader, DropKey};
use netobs_ebpf::headers::ETH_LEN;

use crate::{
    event::{is_by_netfilter, read_hook},
    kernel::Skb,
};

/// Events in records of [`DROP_ROOMS`]; sized by userspace, which reads them. Full: lost, and counted so.
#[map]
static RING: RingBuf = RingBuf::with_byte_size(4096, 0);

/// Bytes of each packet that are captured, at most [`netobs_common::drops::MAX_DROP_SNAPLEN`].
#[unsafe(no_mangle)]
static SNAPLEN: u32 = 128;

/// A record of the ring.
#[repr(C)]
struct Record<const ROOM: usize> {
    header: DropHeader,
    bytes: [u8; ROOM],
}

/// 0 if the ring is full.
#[inline(never)]
pub fn send(ctx: *mut c_void, skb: &Skb, key: &DropKey) -> u64 {
    // SAFETY: takes no argument and cannot fail.
    let time_ns = unsafe { bpf_ktime_get_boot_ns() };
    let mut hook_function = 0;
    let hook = if is_by_netfilter(key) { read_hook(ctx, &mut hook_function) } else { 0 };
    let part = Part::of(skb, RawTracePointContext::new(ctx).arg(0));
    let sent = if part.captured <= DROP_ROOMS[0] as u32 {
        submit::<{ DROP_ROOMS[0] }>(key, time_ns, hook, hook_function, &part)
    } else if part.captured <= DROP_ROOMS[1] as u32 {
        submit::<{ DROP_ROOMS[1] }>(key, time_ns, hook, hook_function, &part)
    } else {
        submit::<{ DROP_ROOMS[2] }>(key, time_ns, hook, hook_function, &part)
    };
    u64::from(sent)
}

/// What of the packet is told.
struct Part {
    address: u64,
    len: u32,
    captured: u32,
    link: u32,
}

impl Part {
    /// From the Ethernet header on, if there is one, else from the network header; of the linear part.
    #[inline(always)]
    fn of(skb: &Skb, address: u64) -> Self {
        let (head, network, mac, tail) = (skb.head(), skb.network_header(), skb.mac_header(), skb.tail());
        let link = mac != Skb::NO_MAC_HEADER && mac + ETH_LEN as u64 <= network;
        let start = if link { mac } else { network };
        // No packet begins where its buffer does: then the header was not set.
        if network == 0 || tail <= start {
            return Self { address: 0, len: skb.length(), captured: 0, link: 0 };
        }
        let linear = (tail - start) as u32;
        // The kernel may be further on in it, or not as far.
        let behind = Skb::data(address).wrapping_sub(head).wrapping_sub(start) as u32;
        let len = skb.length().wrapping_add(behind);
        // SAFETY: a static of the program's read-only data; volatile, as userspace sets it at load time.
        let snaplen = unsafe { read_volatile(&raw const SNAPLEN) };
        let captured = if linear < snaplen { linear } else { snaplen };
        Self { address: head + start, len, captured, link: u32::from(link) }
    }
}

/// False if the ring is full.
#[inline(always)]
fn submit<const ROOM: usize>(
    key: &DropKey,
    time_ns: u64,
    hook: u64,
    hook_function: u64,
    part: &Part,
) -> bool {
    let Some(mut record) = RING.reserve::<Record<ROOM>>(0) else { return false };
    let pointer = record.as_mut_ptr();
    // From memory and masked, so that neither the compiler nor the verifier has to know the way here: from 1
    // to ROOM.
    // SAFETY: a local.
    let captured = unsafe { read_volatile(&raw const part.captured) };
    let size = (captured.wrapping_sub(1) & (ROOM as u32 - 1)) + 1;
    let header = DropHeader {
        time_ns,
        hook,
        hook_function,
        key: *key,
        len: part.len,
        captured,
        link: part.link,
        reserved: 0,
    };
    // SAFETY: reserved with the size of the record; the helper writes no more than there is room for, and bears
    // any source address.
    unsafe {
        (*pointer).header = header;
        let bytes = (&raw mut (*pointer).bytes).cast();
        if captured == 0 || bpf_probe_read_kernel(bytes, size, part.address as *const c_void) != 0 {
            (*pointer).header.captured = 0;
        }
    }
    record.submit(0);
    true
}
