//! Every map, and the ways to a slot.

#[expect(deprecated, reason = "the newer map needs the task's cgroup, and kernel 6.2")]
use aya_ebpf::maps::CgroupStorage;
use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    macros::map,
    maps::{Array, HashMap, RingBuf},
};
use netobs_common::{Hook, trace::TraceCounts};

/// ifindex to slot of interfaces attached by TCX. Written by userspace, which sizes it to the slots; never
/// full before they are.
#[map]
static SLOTS: HashMap<u32, u32> = HashMap::with_max_entries(1, 0);

/// Slot plus one of an attached cgroup, by cgroup and direction; 0 until userspace has written it.
#[map]
#[expect(deprecated, reason = "as above")]
static CGROUPS: CgroupStorage<u64> = CgroupStorage::new();

/// What became of the packets, by [`Hook::index`]; sized by userspace to slots × 2. Added to by all CPUs,
/// atomically: a cgroup's programs may be interrupted by another packet's on the same CPU.
#[map]
static COUNTS: Array<TraceCounts> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Captured packets, in records of [`netobs_common::trace::ROOMS`]; sized by userspace. Full: lost, and
/// counted so.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(4096, 0);

/// One cell: the second that events are counted in at the moment (high half), and how many there were.
#[map]
static RATE: Array<u64> = Array::with_max_entries(1, 0);

#[inline(always)]
pub fn slot_of_interface(ifindex: u32) -> Option<u32> {
    // SAFETY: the value is a plain u32 that userspace never changes while it is in the map.
    unsafe { SLOTS.get(ifindex) }.copied()
}

/// The slot of the cgroup that the program runs for.
#[inline(always)]
pub fn slot_of_cgroup() -> Option<u32> {
    // SAFETY: the pointer is valid while the program runs; userspace writes the word once.
    let word = unsafe { core::ptr::read_volatile(CGROUPS.get_ptr_mut()) };
    (word as u32).checked_sub(1)
}

#[inline(always)]
pub fn counts(hook: Hook) -> Option<*mut TraceCounts> {
    COUNTS.get_ptr_mut(hook.index())
}

#[inline(always)]
pub fn rate_cell() -> Option<*mut u64> {
    RATE.get_ptr_mut(0)
}
